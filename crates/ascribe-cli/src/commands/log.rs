//! `ascribe log`: transparency logs, receipts, witnesses, time stamps.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ascribe_core::{Digest, Progress};
use ascribe_registry::tiles;
use ascribe_tlog::{
    CHECKPOINT_FILE, Ed25519Key, LogWriter, NoteSigner, NoteVerifier, Receipt, SignatureKind, SignedCheckpoint,
    SignedNote, TileTree, VerifiedSignature, audit, check_extends, leaf_hash, open_checkpoint, read_checkpoint,
    read_key, time_stamp_request, verify_time_stamp, write_secret,
};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::usage;
use crate::args::Format;
use crate::args::log::{LogCommand, TrustArgs};
use crate::output::print;

const TIME_STAMPS_DIR: &str = "timestamps";

/// Runs the command.
pub fn run(command: LogCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    match command {
        LogCommand::Keygen { name, out, cosigner } => keygen(&name, &out, cosigner, format),
        LogCommand::Init { dir, key } => {
            let writer = LogWriter::create(&dir, read_signer(&key)?)?;
            print(format, &json!({ "origin": writer.verifier().name(), "key": writer.verifier().to_string() }), |_| {
                format!("an empty log of {} in {}", writer.verifier().name(), dir.display())
            })
        }
        LogCommand::Append { dir, key, files, digests } => append(&dir, &key, &files, digests.as_deref(), format, bars),
        LogCommand::Verify { dir, trust, older, tsa } => verify(&dir, &trust, &older, tsa.as_deref(), format, bars),
        LogCommand::Mirror { dir, key } => {
            let own = || Ok(tiles::own_signer(&dir)?.unwrap_or_else(tiles::demo_signer));
            let signer = key.as_deref().map_or_else(own, read_signer)?;
            let head = tiles::mirror(&dir, signer, bars)?.head();
            print(format, &json!({ "size": head.size, "root": head.root }), |_| {
                format!("{} licences, root {}", head.size, head.root)
            })
        }
        LogCommand::Prove { dir, index, trust, out } => {
            let (_, checkpoint) = open(&dir, &trust)?;
            let tree = TileTree::new(&dir, checkpoint.head());
            deliver(Receipt::issue(&tree, &checkpoint, index)?.to_text().as_bytes(), out.as_deref())
        }
        LogCommand::Check { receipt, file, digest, key, witness, quorum } => {
            let bytes = match (file, digest) {
                (Some(file), _) => Digest::of(&read(&file)?),
                (None, digest) => digest.unwrap_or_default().parse::<Digest>().context("--digest")?,
            };
            check(&receipt, bytes, &read_verifier(&key)?, &read_verifiers(&witness)?, quorum, format)
        }
        LogCommand::Cosign { dir, key, log_key, seen } => {
            let trust = TrustArgs { key: log_key, witness: Vec::new() };
            cosign(&dir, &trust, &read_signer(&key)?, &seen)
        }
        LogCommand::Attach { dir, cosigned, key, witness } => {
            let note = SignedNote::parse(&read(&cosigned)?).with_context(|| cosigned.display().to_string())?;
            let mut writer = LogWriter::open(&dir, read_signer(&key)?)?;
            writer.add_cosignature(&note, &read_verifier(&witness)?)?;
            let size = writer.checkpoint().head().size;
            print(format, &json!({ "size": size }), |_| format!("checkpoint of {size} entries is cosigned"))
        }
        LogCommand::Stamp { dir, request, answer, tsa, trust } => {
            stamp(&dir, &trust, request.as_deref(), answer.as_deref().zip(tsa.as_deref()), format)
        }
        LogCommand::Usage(command) => usage::run(command, format, bars),
    }
}

/// Reads a whole small file, with its name in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Reads a secret key file; the secret is wiped from memory afterwards.
pub fn read_signer(path: &Path) -> Result<NoteSigner> {
    let bytes = Zeroizing::new(read(path)?);
    let line = std::str::from_utf8(&bytes).with_context(|| format!("{}: not a key file", path.display()))?;
    NoteSigner::parse(line).with_context(|| path.display().to_string())
}

/// A verifier key line, or a file that holds one.
pub fn read_verifier(text: &str) -> Result<NoteVerifier> {
    if let Ok(verifier) = NoteVerifier::parse(text) {
        return Ok(verifier);
    }
    let path = Path::new(text);
    let line = if path.is_file() { String::from_utf8_lossy(&read(path)?).into_owned() } else { text.to_owned() };
    NoteVerifier::parse(&line).with_context(|| format!("{text:?}"))
}

/// Several of them.
pub fn read_verifiers(texts: &[String]) -> Result<Vec<NoteVerifier>> {
    texts.iter().map(|text| read_verifier(text)).collect()
}

/// The key of a log: the given one, or the one in its folder.
pub fn log_key(dir: &Path, given: Option<&str>) -> Result<NoteVerifier> {
    given.map_or_else(|| Ok(read_key(dir)?), read_verifier)
}

/// Writes data to a file, or to stdout.
pub fn deliver(bytes: &[u8], out: Option<&Path>) -> Result<()> {
    match out {
        Some(path) => fs::write(path, bytes).with_context(|| path.display().to_string()),
        None => Ok(std::io::stdout().write_all(bytes)?),
    }
}

fn open(dir: &Path, trust: &TrustArgs) -> Result<(NoteVerifier, SignedCheckpoint)> {
    let key = log_key(dir, trust.key.as_deref())?;
    let checkpoint = read_checkpoint(dir, &key, &read_verifiers(&trust.witness)?)?;
    Ok((key, checkpoint))
}

fn keygen(name: &str, out: &Path, cosigner: bool, format: Format) -> Result<()> {
    let kind = if cosigner { SignatureKind::Cosignature } else { SignatureKind::Note };
    let signer = NoteSigner::new(name, kind, Ed25519Key::generate()?)?;
    write_secret(out, signer.secret_line().as_bytes())?;
    let public = signer.verifier();
    let value = json!({ "key": public.to_string(), "did": public.key().did_key() });
    print(format, &value, |_| public.to_string())
}

fn append(
    dir: &Path,
    key: &Path,
    files: &[PathBuf],
    digests: Option<&Path>,
    format: Format,
    bars: &dyn Progress,
) -> Result<()> {
    let mut entries: Vec<Digest> = files.iter().map(|file| Ok(Digest::of(&read(file)?))).collect::<Result<_>>()?;
    if let Some(path) = digests {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for (i, line) in text.lines().enumerate() {
            entries.push(line.parse().with_context(|| format!("{}: line {}", path.display(), i + 1))?);
        }
    }
    if entries.is_empty() {
        bail!("nothing to append (hint: name files, or a list with --digests)");
    }
    let mut writer = LogWriter::open(dir, read_signer(key)?)?;
    bars.start("append", entries.len() as u64, "entries");
    let appended = writer.append(entries.iter().map(|digest| digest.0), bars)?;
    let head = appended.checkpoint.head();
    bars.finish(&format!("{} entries", head.size - appended.first_index));
    let value = json!({ "first_index": appended.first_index, "size": head.size, "root": head.root });
    print(format, &value, |_| format!("entries {} to {}, root {}", appended.first_index, head.size - 1, head.root))
}

/// What `log verify` found.
#[derive(Serialize)]
struct Verified {
    origin: String,
    size: u64,
    root: Digest,
    extends: Vec<u64>,
    key_from_folder: bool,
    witnesses: Vec<Witnessed>,
    time_stamps: Vec<Stamped>,
    licences: Option<u64>,
}

#[derive(Serialize)]
struct Witnessed {
    name: String,
    unix_s: u64,
}

#[derive(Serialize)]
struct Stamped {
    size: u64,
    unix_s: u64,
    authority: String,
}

fn verify(
    given: &Path,
    trust: &TrustArgs,
    older: &[PathBuf],
    tsa: Option<&Path>,
    format: Format,
    bars: &dyn Progress,
) -> Result<()> {
    // A registry folder: its text log and its tiles must be one log.
    let is_registry = !given.join(CHECKPOINT_FILE).exists() && given.join(tiles::LOG_FILE).exists();
    let dir = if is_registry { given.join(tiles::TILES_DIR) } else { given.to_owned() };
    let (key, witnesses) = (log_key(&dir, trust.key.as_deref())?, read_verifiers(&trust.witness)?);
    let older: Vec<SignedCheckpoint> =
        older.iter().map(|path| Ok(open_checkpoint(path, &key, &witnesses)?)).collect::<Result<_>>()?;
    let found = audit(&dir, &key, &witnesses, &older, bars)?;
    let licences = if is_registry { Some(tiles::check_mirror(given, &key)?.size) } else { None };
    let witnessed = |s: &VerifiedSignature| s.unix_s.map(|unix_s| Witnessed { name: s.name.clone(), unix_s });
    let verified = Verified {
        origin: found.origin,
        size: found.head.size,
        root: found.head.root,
        extends: found.extends,
        key_from_folder: trust.key.is_none(),
        witnesses: found.signatures.iter().filter_map(witnessed).collect(),
        time_stamps: tsa.map_or(Ok(Vec::new()), |tsa| time_stamps(&dir, &key, tsa))?,
        licences,
    };
    print(format, &verified, verified_text)
}

fn verified_text(v: &Verified) -> String {
    let mut text = format!(
        "{}: {} entries, root {}\nevery entry, tile and signature holds; extends {} earlier checkpoints\n",
        v.origin,
        v.size,
        v.root,
        v.extends.len()
    );
    for Witnessed { name, unix_s } in &v.witnesses {
        text += &format!("witnessed by {name} at {unix_s}\n");
    }
    for Stamped { size, unix_s, authority } in &v.time_stamps {
        text += &format!("{size} entries time-stamped at {unix_s} by {authority}\n");
    }
    if let Some(licences) = v.licences {
        text += &format!("the licence log's {licences} lines are these entries\n");
    }
    if v.key_from_folder {
        text += "the key came from the folder itself: whoever must know whose log this is gives --key\n";
    }
    text
}

fn time_stamps(dir: &Path, key: &NoteVerifier, tsa: &Path) -> Result<Vec<Stamped>> {
    let (folder, trusted) = (dir.join(TIME_STAMPS_DIR), read(tsa)?);
    let Ok(listing) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut stamps = Vec::new();
    for item in listing {
        let path = item?.path();
        let size = path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
        let size = size.with_context(|| format!("{}: expected SIZE.tsr", path.display()))?;
        let checkpoint = open_checkpoint(&dir.join("checkpoints").join(size.to_string()), key, &[])?;
        let stamp = verify_time_stamp(&read(&path)?, checkpoint.checkpoint.text().as_bytes(), &trusted)
            .with_context(|| path.display().to_string())?;
        stamps.push(Stamped { size, unix_s: stamp.unix_s, authority: stamp.authority });
    }
    stamps.sort_by_key(|stamp| stamp.size);
    Ok(stamps)
}

fn check(
    path: &Path,
    digest: Digest,
    log: &NoteVerifier,
    witnesses: &[NoteVerifier],
    quorum: usize,
    format: Format,
) -> Result<()> {
    let receipt = Receipt::parse(&read(path)?).with_context(|| path.display().to_string())?;
    let checkpoint =
        receipt.verify(leaf_hash(&digest.0), log, witnesses).with_context(|| path.display().to_string())?;
    let mut seen: Vec<&str> =
        checkpoint.signatures.iter().filter(|s| s.unix_s.is_some()).map(|s| s.name.as_str()).collect();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() < quorum {
        bail!("{}: expected cosignatures of {quorum} witnesses, found {} {seen:?}", path.display(), seen.len());
    }
    let value = json!({
        "index": receipt.index, "size": checkpoint.head().size, "origin": log.name(), "witnesses": seen,
        "witnessed_unix_s": checkpoint.witnessed_unix_s(),
    });
    print(format, &value, |_| {
        format!("{digest} is entry {} of {}, {} witnesses", receipt.index, log.name(), seen.len())
    })
}

fn cosign(dir: &Path, trust: &TrustArgs, witness: &NoteSigner, seen: &Path) -> Result<()> {
    if witness.verifier().kind() != SignatureKind::Cosignature {
        bail!("{}: expected a cosigner's key (hint: ascribe log keygen --cosigner)", witness.verifier().name());
    }
    let (key, checkpoint) = open(dir, trust)?;
    let tree = TileTree::new(dir, checkpoint.head());
    tree.check_root()?;
    if seen.exists() {
        check_extends(&tree, &open_checkpoint(seen, &key, &[])?)?;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let cosigned = checkpoint.note.with_signature(witness, now)?;
    // What was seen is kept before anybody gets the signature: a witness must not forget.
    let temporary = seen.with_added_extension("tmp");
    fs::write(&temporary, cosigned.as_str()).with_context(|| temporary.display().to_string())?;
    fs::rename(&temporary, seen).with_context(|| seen.display().to_string())?;
    deliver(cosigned.as_str().as_bytes(), None)
}

fn stamp(
    dir: &Path,
    trust: &TrustArgs,
    request: Option<&Path>,
    answer: Option<(&Path, &Path)>,
    format: Format,
) -> Result<()> {
    let (_, checkpoint) = open(dir, trust)?;
    let (text, size) = (checkpoint.checkpoint.text(), checkpoint.head().size);
    if let Some(path) = request {
        deliver(&time_stamp_request(text.as_bytes()), Some(path))?;
        return print(format, &json!({ "size": size, "request": path }), |_| {
            format!("request for the checkpoint of {size} entries in {}", path.display())
        });
    }
    let Some((answer, tsa)) = answer else { bail!("expected --request, or --answer with --tsa") };
    let bytes = read(answer)?;
    let stamp =
        verify_time_stamp(&bytes, text.as_bytes(), &read(tsa)?).with_context(|| answer.display().to_string())?;
    let folder = dir.join(TIME_STAMPS_DIR);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    deliver(&bytes, Some(&folder.join(format!("{size}.tsr"))))?;
    let value = json!({ "size": size, "unix_s": stamp.unix_s, "authority": stamp.authority, "policy": stamp.policy });
    print(format, &value, |_| format!("{size} entries time-stamped at {} by {}", stamp.unix_s, stamp.authority))
}
