//! The usage log: a transparency log of receipt digests, the receipts beside it, and the ids against replays.
//!
//! ```text
//! log/                   the transparency log; entry i is the digest of receipt i
//! receipts/FIRST.jsonl   the signed receipts of one batch, from index FIRST on; an erased one is an empty line
//! requests.bin           SHA-256 of each request id, 32 bytes each, in the order of the log; survives an erasure
//! ```
//!
//! The log's checkpoint is the commit: receipts and ids are durable before it, and what no checkpoint covers is removed when
//! the log is opened again. So a crash loses a batch whole or not at all, and the caller, who was told nothing, sends it
//! again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_tlog::{
    Ed25519PublicKey, LogAudit, LogWriter, NoteSigner, NoteVerifier, Receipt, SignedCheckpoint, TileTree, audit,
    leaf_hash, read_checkpoint,
};
use serde::Serialize;

use crate::error::RegistryError;
use crate::files;
use crate::usage::{RECEIPT_CAP_BYTES, SignedUsage, UsageError, UsageReceipt};

const LOG_DIR: &str = "log";
const RECEIPTS_DIR: &str = "receipts";
const REQUESTS_FILE: &str = "requests.bin";
const ID_LEN_BYTES: u64 = 32;

/// The only writer of a usage log.
pub struct UsageLog {
    dir: PathBuf,
    writer: LogWriter,
    seen: HashSet<Digest>,
    operator: Ed25519PublicKey,
}

/// What [`verify_usage_log`] has checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsageAudit {
    /// Receipts in the log.
    pub size: u64,
    /// Root over their digests.
    pub root: Digest,
    /// Receipts that are still there, each with a signature that holds and the digest that was logged.
    pub receipts: u64,
    /// Receipts that were erased; their digests stand.
    pub erased: u64,
    /// Settled revenue of the receipts that are there, by currency, in smallest units, as decimal strings.
    pub revenue: Vec<(String, String)>,
}

impl UsageLog {
    /// Opens the usage log in `dir`, or makes one if there is none. Receipts are signed by the operator's key, which is the
    /// log's key too.
    ///
    /// # Errors
    /// Whatever [`LogWriter::open`] refuses (a second writer among it); a request file that is shorter than the log.
    pub fn open(dir: &Path, signer: NoteSigner) -> Result<Self, RegistryError> {
        let (log_dir, operator) = (dir.join(LOG_DIR), signer.key().public());
        let writer = if log_dir.join(ascribe_tlog::CHECKPOINT_FILE).exists() {
            LogWriter::open(&log_dir, signer)?
        } else {
            LogWriter::create(&log_dir, signer)?
        };
        let size = writer.checkpoint().head().size;
        let seen = recover(dir, size)?;
        Ok(Self { dir: dir.to_owned(), writer, seen, operator })
    }

    /// Receipts so far.
    pub fn size(&self) -> u64 {
        self.writer.checkpoint().head().size
    }

    /// The latest checkpoint.
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        self.writer.checkpoint()
    }

    /// True if a request with this id has been logged.
    pub fn has_request(&self, request_id: &str) -> bool {
        self.seen.contains(&Digest::of(request_id.as_bytes()))
    }

    /// Signs and logs a batch, whole or not at all; when this returns it is durable. Returns the index of the first.
    ///
    /// # Errors
    /// [`RegistryError::Field`] naming a request id that was logged before (a replay) or stands twice in the batch;
    /// [`RegistryError::Usage`]; [`RegistryError::Io`].
    pub fn append(
        &mut self,
        receipts: Vec<SignedUsage>,
        progress: &dyn Progress,
    ) -> Result<(u64, SignedCheckpoint), RegistryError> {
        let (first, mut ids) = (self.size(), Vec::with_capacity(receipts.len()));
        let mut new = HashSet::new();
        for signed in &receipts {
            signed.receipt.validate()?;
            signed.verify(&self.operator)?;
            let id = Digest::of(signed.receipt.request_id.as_bytes());
            if self.seen.contains(&id) || !new.insert(id) {
                let found = format!("{:?} again", signed.receipt.request_id);
                return Err(RegistryError::field(&self.dir, "requestId", "each request once (a replay)", found));
            }
            ids.push(id);
        }
        if receipts.is_empty() {
            return Ok((first, self.checkpoint().clone()));
        }
        let lines: Vec<u8> = receipts.iter().flat_map(|signed| signed.to_bytes().into_iter().chain([b'\n'])).collect();
        let folder = self.dir.join(RECEIPTS_DIR);
        fs::create_dir_all(&folder).map_err(RegistryError::io(&folder, "creating"))?;
        files::write_atomic(&folder.join(format!("{first}.jsonl")), &lines)?;
        append_ids(&self.dir.join(REQUESTS_FILE), first, &ids)?;
        let entries = receipts.iter().map(|signed| signed.receipt.digest().0);
        let appended = self.writer.append(entries, progress)?;
        self.seen.extend(ids);
        Ok((first, appended.checkpoint))
    }

    /// Erases receipt `index` for good; its digest and the id of its request stand. True if it was there.
    ///
    /// # Errors
    /// [`RegistryError::Io`]; what is wrong with the batch.
    pub fn erase(&mut self, index: u64) -> Result<bool, RegistryError> {
        let Some((first, path)) = batch_of(&self.dir, index)? else { return Ok(false) };
        let mut batch = read_batch(&path)?;
        let Some(there) = batch.get_mut((index - first) as usize).filter(|receipt| receipt.is_some()) else {
            return Ok(false);
        };
        *there = None;
        let line = |receipt: Option<SignedUsage>| {
            receipt.map_or_else(Vec::new, |signed| signed.to_bytes()).into_iter().chain([b'\n'])
        };
        files::write_atomic(&path, &batch.into_iter().flat_map(line).collect::<Vec<u8>>())?;
        Ok(true)
    }

    /// The proof that receipt `index` is in the log, with the receipt itself as the proof's extra data.
    ///
    /// # Errors
    /// Whatever reading the log refuses; [`RegistryError::Missing`] if the receipt was erased.
    pub fn prove(&self, index: u64) -> Result<Receipt, RegistryError> {
        let mut proof = Receipt::issue(&self.writer.tree(), self.checkpoint(), index)?;
        proof.extra = Some(find_receipt(&self.dir, index)?.to_bytes());
        Ok(proof)
    }
}

/// Checks a proof that carries its receipt: signature of the operator, place in the log, checkpoint.
///
/// # Errors
/// What is wrong with it.
pub fn verify_usage_proof(
    proof: &Receipt,
    log: &NoteVerifier,
    witnesses: &[NoteVerifier],
) -> Result<(UsageReceipt, SignedCheckpoint), RegistryError> {
    let signed = SignedUsage::parse(proof.extra.as_deref().unwrap_or_default())?;
    signed.verify(&log.key())?;
    let checkpoint = proof.verify(leaf_hash(&signed.receipt.digest().0), log, witnesses)?;
    Ok((signed.receipt, checkpoint))
}

/// Checks a whole usage log: the transparency log, every receipt that is there, every request once.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_usage_log(
    dir: &Path,
    log: &NoteVerifier,
    older: &[SignedCheckpoint],
    progress: &dyn Progress,
) -> Result<UsageAudit, RegistryError> {
    let log_dir = dir.join(LOG_DIR);
    let LogAudit { head, .. } = audit(&log_dir, log, &[], older, progress)?;
    let ids = read_ids(&dir.join(REQUESTS_FILE), head.size)?;
    if ids.iter().collect::<HashSet<_>>().len() as u64 != head.size {
        return Err(RegistryError::field(&dir.join(REQUESTS_FILE), "request ids", "each once", "one twice"));
    }
    let tree = TileTree::new(&log_dir, head);
    let (mut receipts, mut revenue) = (0, std::collections::BTreeMap::<String, u128>::new());
    for (first, path) in batches(dir)? {
        if first >= head.size {
            continue;
        }
        for (index, signed) in (first..).zip(read_batch(&path)?) {
            let Some(signed) = signed else { continue };
            let at = |error: UsageError| RegistryError::Json { path: path.clone(), reason: error.to_string() };
            signed.verify(&log.key()).map_err(at)?;
            let (expected, found) = (tree.entry(index)?, signed.receipt.digest().0);
            if expected != found {
                let field = format!("digest of receipt {index}");
                return Err(RegistryError::field(&path, field, hex::encode(expected), hex::encode(found)));
            }
            if ids[index as usize] != Digest::of(signed.receipt.request_id.as_bytes()) {
                return Err(RegistryError::field(&path, format!("id of receipt {index}"), "the logged one", "another"));
            }
            let sum = revenue.entry(signed.receipt.revenue.currency.clone()).or_default();
            *sum = sum.saturating_add(signed.receipt.revenue.minor_units);
            receipts += 1;
        }
    }
    let revenue = revenue.into_iter().map(|(currency, sum)| (currency, sum.to_string())).collect();
    Ok(UsageAudit { size: head.size, root: head.root, receipts, erased: head.size - receipts, revenue })
}

/// Reads the latest checkpoint of a usage log.
///
/// # Errors
/// What is wrong with it.
pub fn usage_checkpoint(dir: &Path, log: &NoteVerifier) -> Result<SignedCheckpoint, RegistryError> {
    Ok(read_checkpoint(&dir.join(LOG_DIR), log, &[])?)
}

/// Removes what no checkpoint covers, and reads the ids.
fn recover(dir: &Path, size: u64) -> Result<HashSet<Digest>, RegistryError> {
    for (first, path) in batches(dir)? {
        if first >= size {
            fs::remove_file(&path).map_err(RegistryError::io(&path, "removing"))?;
        }
    }
    Ok(read_ids(&dir.join(REQUESTS_FILE), size)?.into_iter().collect())
}

/// Writes the ids of a batch behind the first `size` of the file; what a crash left behind them is cut off first.
fn append_ids(path: &Path, size: u64, ids: &[Digest]) -> Result<(), RegistryError> {
    let append = || -> std::io::Result<()> {
        let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
        file.set_len(size * ID_LEN_BYTES)?;
        file.seek(std::io::SeekFrom::End(0))?;
        file.write_all(&ids.iter().flat_map(|id| id.0).collect::<Vec<u8>>())?;
        file.sync_all()
    };
    append().map_err(RegistryError::io(path, "writing"))
}

fn read_ids(path: &Path, size: u64) -> Result<Vec<Digest>, RegistryError> {
    if size == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let file = files::open(path, "request ids of the usage log")?;
    file.take(size * ID_LEN_BYTES).read_to_end(&mut bytes).map_err(RegistryError::io(path, "reading"))?;
    if bytes.len() as u64 != size * ID_LEN_BYTES {
        return Err(RegistryError::field(path, "length", format!("{} bytes", size * ID_LEN_BYTES), bytes.len()));
    }
    Ok(bytes.as_chunks::<{ ID_LEN_BYTES as usize }>().0.iter().map(|id| Digest(*id)).collect())
}

/// Batches by their first index.
fn batches(dir: &Path) -> Result<Vec<(u64, PathBuf)>, RegistryError> {
    let folder = dir.join(RECEIPTS_DIR);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut batches = Vec::new();
    for entry in fs::read_dir(&folder).map_err(RegistryError::io(&folder, "listing"))? {
        let path = entry.map_err(RegistryError::io(&folder, "listing"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(first) = name.strip_suffix(".jsonl").and_then(|first| first.parse().ok()) {
            batches.push((first, path));
        }
    }
    batches.sort();
    Ok(batches)
}

/// The receipts of a batch; `None` where one was erased.
fn read_batch(path: &Path) -> Result<Vec<Option<SignedUsage>>, RegistryError> {
    let mut reader = BufReader::new(files::open(path, "receipts")?);
    let (mut receipts, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let cap = RECEIPT_CAP_BYTES as u64 + 1;
        reader.by_ref().take(cap).read_until(b'\n', &mut line).map_err(RegistryError::io(path, "reading"))?;
        let Some(bytes) = line.strip_suffix(b"\n") else {
            if line.is_empty() {
                return Ok(receipts);
            }
            return Err(RegistryError::Json { path: path.to_owned(), reason: "a line without its end".to_owned() });
        };
        let at = |error: UsageError| RegistryError::Json {
            path: path.to_owned(),
            reason: format!("line {}: {error}", receipts.len() + 1),
        };
        receipts.push(if bytes.is_empty() { None } else { Some(SignedUsage::parse(bytes).map_err(at)?) });
    }
}

fn find_receipt(dir: &Path, index: u64) -> Result<SignedUsage, RegistryError> {
    let missing = || RegistryError::Missing { path: dir.join(RECEIPTS_DIR), what: "receipt (it may have been erased)" };
    let (first, path) = batch_of(dir, index)?.ok_or_else(missing)?;
    read_batch(&path)?.into_iter().nth((index - first) as usize).flatten().ok_or_else(missing)
}

fn batch_of(dir: &Path, index: u64) -> Result<Option<(u64, PathBuf)>, RegistryError> {
    Ok(batches(dir)?.into_iter().rfind(|(first, _)| *first <= index))
}
