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

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_tlog::{
    Ed25519Key, Ed25519PublicKey, LogAudit, LogWriter, NoteSigner, NoteVerifier, Receipt, SignedCheckpoint, TileTree,
    audit, leaf_hash, read_checkpoint,
};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::RegistryError;
use crate::files;
use crate::usage::{RECEIPT_CAP_BYTES, SealedUsage, SignedUsage, UsageError, UsageReceipt};

const LOG_DIR: &str = "log";
const RECEIPTS_DIR: &str = "receipts";
const REQUESTS_FILE: &str = "requests.bin";
const ID_LEN_BYTES: u64 = 32;

/// The only writer of a usage log.
pub struct UsageLog {
    dir: PathBuf,
    writer: LogWriter,
    /// Place of each request by the digest of its id.
    seen: HashMap<Digest, u64>,
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
        self.find(request_id).is_some()
    }

    /// Place of the receipt of a request, from 0.
    pub fn find(&self, request_id: &str) -> Option<u64> {
        self.seen.get(&Digest::of(request_id.as_bytes())).copied()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn tree(&self) -> TileTree {
        self.writer.tree()
    }

    pub(crate) fn key(&self) -> &Ed25519Key {
        self.writer.key()
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
        for signed in &receipts {
            signed.receipt.validate()?;
            signed.verify(&self.operator)?;
        }
        let ids = self.new_ids(receipts.iter())?;
        let lines: Vec<u8> = receipts.iter().flat_map(|signed| signed.to_bytes().into_iter().chain([b'\n'])).collect();
        self.write(ids, &lines, receipts.iter().map(|signed| signed.receipt.digest()), progress)
    }

    /// The same for receipts that this process sealed: their bytes and digests are there, and their signatures hold.
    ///
    /// # Errors
    /// As [`UsageLog::append`]; [`RegistryError::Usage`] for a receipt that another key sealed.
    pub fn append_sealed<'s>(
        &mut self,
        receipts: impl Iterator<Item = &'s SealedUsage> + Clone,
        progress: &dyn Progress,
    ) -> Result<(u64, SignedCheckpoint), RegistryError> {
        let operator = self.operator.did_key();
        if let Some(other) = receipts.clone().map(|sealed| &sealed.signed().signer).find(|signer| **signer != operator)
        {
            return Err(UsageError { field: "signer", expected: operator, found: other.clone() }.into());
        }
        let ids = self.new_ids(receipts.clone().map(SealedUsage::signed))?;
        let mut lines = Vec::new();
        for sealed in receipts.clone() {
            lines.extend_from_slice(sealed.line());
            lines.push(b'\n');
        }
        self.write(ids, &lines, receipts.map(SealedUsage::digest), progress)
    }

    /// Digests of the ids of requests, none of which was logged before or stands here twice.
    fn new_ids<'s>(&self, receipts: impl Iterator<Item = &'s SignedUsage>) -> Result<Vec<Digest>, RegistryError> {
        let (mut ids, mut new) = (Vec::new(), HashSet::new());
        for signed in receipts {
            let id = Digest::of(signed.receipt.request_id.as_bytes());
            if self.seen.contains_key(&id) || !new.insert(id) {
                let found = format!("{:?} again", signed.receipt.request_id);
                return Err(RegistryError::field(&self.dir, "requestId", "each request once (a replay)", found));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Receipts, then ids, then the log: its checkpoint is the commit.
    fn write(
        &mut self,
        ids: Vec<Digest>,
        lines: &[u8],
        digests: impl Iterator<Item = Digest>,
        progress: &dyn Progress,
    ) -> Result<(u64, SignedCheckpoint), RegistryError> {
        let first = self.size();
        if ids.is_empty() {
            return Ok((first, self.checkpoint().clone()));
        }
        let folder = self.dir.join(RECEIPTS_DIR);
        fs::create_dir_all(&folder).map_err(RegistryError::io(&folder, "creating"))?;
        files::write_atomic(&folder.join(format!("{first}.jsonl")), lines)?;
        append_ids(&self.dir.join(REQUESTS_FILE), first, &ids)?;
        let appended = self.writer.append(digests.map(|digest| digest.0), progress)?;
        self.seen.extend(ids.into_iter().zip(first..));
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
    walk_usage_log(dir, log, older, progress, &mut |_, _, _| Ok(()))
}

/// What is told each receipt of a log: its place, the digest of its request's id, and the receipt unless it was erased.
pub(crate) type EachReceipt<'a> = dyn FnMut(u64, Digest, Option<&SignedUsage>) -> Result<(), RegistryError> + 'a;

/// Checks a whole usage log and hands over its receipts, in order, each once it is known to be the logged one.
pub(crate) fn walk_usage_log(
    dir: &Path,
    log: &NoteVerifier,
    older: &[SignedCheckpoint],
    progress: &dyn Progress,
    each: &mut EachReceipt<'_>,
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
        let batch = read_batch(&path)?;
        // Signatures are most of the work: they are checked on all threads, and the first that fails is the one that is told.
        let bad = batch.par_iter().flatten().map(|signed| signed.verify(&log.key())).find_map_first(Result::err);
        if let Some(error) = bad {
            return Err(RegistryError::Json { path, reason: error.to_string() });
        }
        for (index, signed) in (first..head.size).zip(&batch) {
            let id = ids[index as usize];
            let Some(signed) = signed else {
                each(index, id, None)?;
                continue;
            };
            let (expected, found) = (tree.entry(index)?, signed.receipt.digest().0);
            if expected != found {
                let field = format!("digest of receipt {index}");
                return Err(RegistryError::field(&path, field, hex::encode(expected), hex::encode(found)));
            }
            if id != Digest::of(signed.receipt.request_id.as_bytes()) {
                return Err(RegistryError::field(&path, format!("id of receipt {index}"), "the logged one", "another"));
            }
            each(index, id, Some(signed))?;
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
fn recover(dir: &Path, size: u64) -> Result<HashMap<Digest, u64>, RegistryError> {
    for (first, path) in batches(dir)? {
        if first >= size {
            fs::remove_file(&path).map_err(RegistryError::io(&path, "removing"))?;
        }
    }
    Ok(read_ids(&dir.join(REQUESTS_FILE), size)?.into_iter().zip(0..).collect())
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

/// Lines of a batch.
struct Lines<'p> {
    path: &'p Path,
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl<'p> Lines<'p> {
    fn open(path: &'p Path) -> Result<Self, RegistryError> {
        Ok(Self { path, reader: BufReader::new(files::open(path, "receipts")?), line: Vec::new() })
    }

    /// The next line, without its end.
    fn next(&mut self) -> Result<Option<&[u8]>, RegistryError> {
        self.line.clear();
        let cap = RECEIPT_CAP_BYTES as u64 + 1;
        let read = self.reader.by_ref().take(cap).read_until(b'\n', &mut self.line);
        read.map_err(RegistryError::io(self.path, "reading"))?;
        match self.line.strip_suffix(b"\n") {
            Some(line) => Ok(Some(line)),
            None if self.line.is_empty() => Ok(None),
            None => {
                Err(RegistryError::Json { path: self.path.to_owned(), reason: "a line without its end".to_owned() })
            }
        }
    }
}

/// The receipts of a batch; `None` where one was erased.
fn read_batch(path: &Path) -> Result<Vec<Option<SignedUsage>>, RegistryError> {
    let (mut receipts, mut lines) = (Vec::new(), Lines::open(path)?);
    while let Some(line) = lines.next()? {
        let at = |error: UsageError| RegistryError::Json {
            path: path.to_owned(),
            reason: format!("line {}: {error}", receipts.len() + 1),
        };
        receipts.push(if line.is_empty() { None } else { Some(SignedUsage::parse(line).map_err(at)?) });
    }
    Ok(receipts)
}

fn find_receipt(dir: &Path, index: u64) -> Result<SignedUsage, RegistryError> {
    let missing = || RegistryError::Missing { path: dir.join(RECEIPTS_DIR), what: "receipt (it may have been erased)" };
    let (first, path) = batch_of(dir, index)?.ok_or_else(missing)?;
    // Only that line is read as a receipt: a batch may hold thousands.
    let mut lines = Lines::open(&path)?;
    for _ in first..index {
        lines.next()?.ok_or_else(missing)?;
    }
    let line = lines.next()?.filter(|line| !line.is_empty()).ok_or_else(missing)?;
    SignedUsage::parse(line).map_err(|error| RegistryError::Json { path: path.clone(), reason: error.to_string() })
}

fn batch_of(dir: &Path, index: u64) -> Result<Option<(u64, PathBuf)>, RegistryError> {
    Ok(batches(dir)?.into_iter().rfind(|(first, _)| *first <= index))
}
