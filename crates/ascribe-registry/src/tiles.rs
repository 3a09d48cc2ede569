//! The licence log as a transparency log: the digests of `licences.log`, line by line, as the entries of a C2SP tlog-tiles
//! folder beside it. Both are one tree, so the root that old run records state is the root of its signed checkpoints.
//!
//! The text is written first; the registrar brings the tiles up to it before it reports a licence or revocation as registered,
//! and after a crash when it is opened again. So the tiles are never ahead.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use ascribe_core::{NoProgress, Progress};
use ascribe_tlog::{
    CHECKPOINT_FILE, Ed25519Key, LogWriter, NoteSigner, NoteVerifier, SignatureKind, SignedCheckpoint, TileTree,
    read_checkpoint, write_secret,
};
use zeroize::Zeroizing;

use crate::error::RegistryError;
use crate::files;
pub use crate::log::LOG_FILE;
use crate::log::{LOG_LINE_BYTES, LicenceLog, LogHead};

/// Name of the folder within a registry folder.
pub const TILES_DIR: &str = "licences.tlog";

/// Origin of the demo registry's log.
pub const DEMO_ORIGIN: &str = "ascribe.example/demo-licences";

/// Folder of what must not leave the registry with its evidence: hidden, for its owner alone, ignored by git.
pub(crate) const SECRET_DIR: &str = ".secret";

/// The key that signs the checkpoints of the licence log; a link to it where the operator keeps it elsewhere.
const LOG_KEY_FILE: &str = "log.key";

/// The signer of the demo registry's log. Anybody can derive its key: it shows how a log is checked and proves nothing.
pub fn demo_signer() -> NoteSigner {
    NoteSigner::new(DEMO_ORIGIN, SignatureKind::Note, Ed25519Key::demo(DEMO_ORIGIN)).expect("the origin is a key name")
}

/// Brings the tiles up to the text log: makes them if there are none, appends what they lack, signs a checkpoint.
///
/// # Errors
/// [`RegistryError::LogRewritten`] if the tiles are not a beginning of the text log; whatever reading or writing gives.
pub fn mirror(
    registry_dir: &Path,
    signer: NoteSigner,
    progress: &dyn Progress,
) -> Result<SignedCheckpoint, RegistryError> {
    let (log, dir) = (LicenceLog::read(registry_dir)?, registry_dir.join(TILES_DIR));
    let mut writer = if dir.join(CHECKPOINT_FILE).exists() {
        LogWriter::open(&dir, signer)?
    } else {
        LogWriter::create(&dir, signer)?
    };
    let head = writer.checkpoint().head();
    check_prefix(&log, LogHead { size: head.size, root: head.root })?;
    let missing = log.digests().iter().skip(head.size as usize).map(|digest| digest.0);
    Ok(writer.append(missing, progress)?.checkpoint)
}

/// Brings the demo registry's tiles up to its text log.
///
/// # Errors
/// As [`mirror`].
pub fn mirror_demo(registry_dir: &Path) -> Result<SignedCheckpoint, RegistryError> {
    mirror(registry_dir, demo_signer(), &NoProgress)
}

/// The same if there are tiles under the demo key; a registry whose log has another key has a signer of its own.
pub(crate) fn follow_demo(registry_dir: &Path) -> Result<(), RegistryError> {
    let dir = registry_dir.join(TILES_DIR);
    if dir.exists() && ascribe_tlog::read_key(&dir)? == *demo_signer().verifier() {
        mirror_demo(registry_dir)?;
    }
    Ok(())
}

/// Makes the transparency log of a new registry, of no entries: with the key in `given`, which stays where it is, or with a
/// new one named after the registry's salt.
pub(crate) fn create(registry_dir: &Path, salt: &[u8; 32], given: Option<&Path>) -> Result<(), RegistryError> {
    let secret = registry_dir.join(SECRET_DIR);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&secret)
        .map_err(RegistryError::io(&secret, "creating"))?;
    files::write_atomic(&secret.join(".gitignore"), b"*\n")?;
    let path = secret.join(LOG_KEY_FILE);
    match given {
        Some(given) => {
            let given = given.canonicalize().map_err(RegistryError::io(given, "finding"))?;
            std::os::unix::fs::symlink(given, &path).map_err(RegistryError::io(&path, "linking"))?;
        }
        None => {
            let origin = format!("ascribe.example/registry-{}", hex::encode(&salt[..8]));
            let signer = NoteSigner::new(&origin, SignatureKind::Note, Ed25519Key::generate()?)?;
            write_secret(&path, signer.secret_line().as_bytes())?;
        }
    }
    match own_signer(registry_dir)? {
        Some(signer) => LogWriter::create(&registry_dir.join(TILES_DIR), signer).map(drop)?,
        None => return Err(RegistryError::Missing { path, what: "key of the licence log" }),
    }
    Ok(())
}

/// The signer of a registry's own log; `None` where its key is not: in a copy for readers, or in the demo registry.
///
/// # Errors
/// A key that cannot be read.
pub fn own_signer(registry_dir: &Path) -> Result<Option<NoteSigner>, RegistryError> {
    let path = registry_dir.join(SECRET_DIR).join(LOG_KEY_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let line = Zeroizing::new(files::read_small(&path, "key of the licence log")?);
    let line = std::str::from_utf8(&line).map_err(|_| RegistryError::field(&path, "key", "a line of text", "bytes"))?;
    Ok(Some(NoteSigner::parse(line).map_err(|error| error.in_file(&path))?))
}

/// How many lines of the text log the tiles cover, and who signs the rest; `None` when they cover all, or when the key is away.
pub(crate) fn behind(registry_dir: &Path) -> Result<Option<(u64, NoteSigner)>, RegistryError> {
    let dir = registry_dir.join(TILES_DIR);
    let signer = own_signer(registry_dir)?.filter(|_| dir.join(CHECKPOINT_FILE).exists());
    let Some(signer) = signer else { return Ok(None) };
    let path = registry_dir.join(LOG_FILE);
    let len_bytes = std::fs::metadata(&path).map_err(RegistryError::io(&path, "finding"))?.len();
    let covered = read_checkpoint(&dir, signer.verifier(), &[])?.head().size;
    Ok((covered < len_bytes / LOG_LINE_BYTES).then_some((covered, signer)))
}

/// Checks that the tiles in a registry folder are the text log: the same entries, as many of them. Returns the head.
///
/// # Errors
/// [`RegistryError::LogRewritten`], [`RegistryError::Field`]; whatever is wrong with checkpoint or tiles.
pub fn check_mirror(registry_dir: &Path, key: &NoteVerifier) -> Result<LogHead, RegistryError> {
    let (log, dir) = (LicenceLog::read(registry_dir)?, registry_dir.join(TILES_DIR));
    let head = read_checkpoint(&dir, key, &[])?.head();
    check_prefix(&log, LogHead { size: head.size, root: head.root })?;
    if head.size != log.head().size {
        let expected = format!("{} entries, as {LOG_FILE} has lines (hint: ascribe log mirror)", log.head().size);
        return Err(RegistryError::field(&dir.join(CHECKPOINT_FILE), "size", expected, head.size));
    }
    TileTree::new(&dir, head).check_root().map_err(|error| error.in_file(&dir))?;
    Ok(log.head())
}

fn check_prefix(log: &LicenceLog, tiles: LogHead) -> Result<(), RegistryError> {
    let then = log.head_at(tiles.size).map(|head| head.root);
    if then == Some(tiles.root) {
        return Ok(());
    }
    Err(RegistryError::LogRewritten {
        path: log.path().to_owned(),
        size: tiles.size,
        expected: tiles.root.to_string(),
        found: then.map_or_else(|| format!("only {} licences", log.head().size), |root| root.to_string()),
    })
}
