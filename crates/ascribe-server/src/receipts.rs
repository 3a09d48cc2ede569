//! Receipts that are never lost: a journal that is synced before an answer leaves, and the usage log behind it.
//!
//! ```text
//! usage/log/, receipts/, requests.bin   the usage log (ascribe-registry): transparency log of digests, receipts beside it
//! usage/journal/NNNNNNNN.jsonl          receipts that are durable and not yet in the log, one canonical line each
//! usage/earned.json                     sums over the log's receipts, so that a start does not read them all
//! ```
//!
//! One thread takes what waits, writes it with one call, syncs once and tells all who wait (group commit): a receipt is
//! acknowledged only after that. Another one moves finished journals into the usage log, all that wait in one batch, and removes
//! them then; it has their receipts still in memory, sealed, so that nothing is read, spelled or verified a second time. A crash
//! loses nothing acknowledged: journals that are there at a start are read and moved first, and a line that was torn by the crash was
//! never acknowledged. A journal whose batch is in the log already is recognised by its request ids.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ascribe_core::NoProgress;
use ascribe_registry::{SealedUsage, SignedUsage, UsageLog, UsageReceipt, UsageSalts};
use ascribe_tlog::NoteSigner;
use tokio::sync::oneshot;

use crate::earned::{Earned, KEEP_EVERY, Sums};
use crate::error::ServerError;

/// Receipts that may wait for the journal.
const WAITING: usize = 16_384;
/// Receipts of one sync.
const GROUP: usize = 4_096;
/// Receipts of one journal.
const JOURNAL: usize = 1_024;
/// Receipts of one batch of the log, that is of the journals that wait: a batch costs a dozen syncs whatever its size.
const BATCH: usize = 8_192;
/// Age at which a journal is moved though it is not full.
const JOURNAL_AGE: Duration = Duration::from_secs(2);

/// Why a receipt is not durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotLogged {
    /// Too many wait.
    Busy,
    /// The disk refused, in words.
    Disk(String),
    /// The receipt is none: a fault of whoever made it.
    Malformed(String),
}

struct Entry {
    sealed: Arc<SealedUsage>,
    done: oneshot::Sender<Result<(), NotLogged>>,
}

/// A receipt and, once it is in the log, the proof of its place.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The receipt.
    pub signed: SignedUsage,
    /// C2SP tlog-proof, as text.
    pub proof: Option<String>,
    /// Index in the log.
    pub index: Option<u64>,
}

struct Shared {
    dir: PathBuf,
    log: Mutex<UsageLog>,
    /// Durable, not yet in the log.
    recent: Mutex<HashMap<String, Arc<SealedUsage>>>,
    /// Receipts in the log. Changes with `recent` locked; the log itself is locked for as long as a batch takes.
    logged: AtomicU64,
    earned: Mutex<Earned>,
}

/// The receipts of a server.
pub struct Receipts {
    shared: Arc<Shared>,
    operator: Arc<NoteSigner>,
    salts: UsageSalts,
    waiting: Mutex<Option<SyncSender<Entry>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receipts {
    /// Opens the receipts below `dir`, moves journals that a crash left into the log, and starts the threads.
    ///
    /// # Errors
    /// A damaged log; a journal with a line that is no receipt of this operator, other than a torn last one.
    pub fn open(dir: &Path, secret: &str) -> Result<Self, ServerError> {
        let operator = NoteSigner::parse(secret)?;
        let mut log = UsageLog::open(dir, NoteSigner::parse(secret)?)?;
        let journals = dir.join("journal");
        fs::create_dir_all(&journals).map_err(|e| ServerError::io(&journals, e))?;
        let mut next = 0;
        for (number, path) in journals_in(&journals)? {
            move_journal(&mut log, &path)?;
            next = number + 1;
        }
        let sums = Sums::read(dir)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            logged: AtomicU64::new(log.size()),
            earned: Mutex::new(sums.earned().clone()),
            log: Mutex::new(log),
            recent: Mutex::default(),
        });
        let (waiting, entries) = sync_channel(WAITING);
        let (finished, journals_done) = channel();
        let (theirs, mut journal) = (Arc::clone(&shared), Journal::create(journals, next)?);
        let writer = move || write(&theirs, &mut journal, &entries, &finished);
        let theirs = Arc::clone(&shared);
        let mover = move || move_all(&theirs, &journals_done, sums);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map_err(|e| ServerError::io(dir, e))
        };
        let threads = vec![spawn("receipts", Box::new(writer))?, spawn("usage log", Box::new(mover))?];
        let salts = UsageSalts::of(operator.key());
        let (operator, waiting, threads) = (Arc::new(operator), Mutex::new(Some(waiting)), Mutex::new(threads));
        Ok(Self { shared, operator, salts, waiting, threads })
    }

    /// The operator's keys.
    pub fn operator(&self) -> &NoteSigner {
        &self.operator
    }

    /// Salts of the outputs, derived from the operator's key.
    pub fn salts(&self) -> &UsageSalts {
        &self.salts
    }

    /// Signs a receipt and returns when it is durable.
    ///
    /// # Errors
    /// [`NotLogged`]: then it is in no log.
    pub async fn log(&self, receipt: UsageReceipt) -> Result<SignedUsage, NotLogged> {
        let sealed = receipt.seal(self.operator.key()).map_err(|error| NotLogged::Malformed(error.to_string()))?;
        let sealed = Arc::new(sealed);
        let (done, outcome) = oneshot::channel();
        let entry = Entry { sealed: Arc::clone(&sealed), done };
        let closed = || NotLogged::Disk("the journal is closed".into());
        match lock(&self.waiting).as_ref().ok_or_else(closed)?.try_send(entry) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(NotLogged::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(closed()),
        }
        outcome.await.map_err(|_| closed())??;
        Ok(sealed.signed().clone())
    }

    /// A receipt by its request id. Reads files, and waits while a batch enters the log: call it where that may take time.
    ///
    /// # Errors
    /// A damaged log.
    pub fn find(&self, request_id: &str) -> Result<Option<Kept>, ServerError> {
        if let Some(sealed) = lock(&self.shared.recent).get(request_id) {
            return Ok(Some(Kept { signed: sealed.signed().clone(), proof: None, index: None }));
        }
        let log = lock(&self.shared.log);
        let Some(index) = log.find(request_id) else { return Ok(None) };
        let proof = log.prove(index)?;
        drop(log);
        let signed = SignedUsage::parse(proof.extra.as_deref().unwrap_or_default())?;
        Ok(Some(Kept { signed, proof: Some(proof.to_text()), index: Some(index) }))
    }

    /// Receipts that are durable: in the log and before it.
    pub fn n_receipts(&self) -> u64 {
        let recent = lock(&self.shared.recent);
        self.shared.logged.load(Ordering::SeqCst) + recent.len() as u64
    }

    /// What datasets have earned by these receipts.
    pub fn earned(&self) -> Earned {
        lock(&self.shared.earned).clone()
    }

    /// Finishes what waits, moves the last journal and ends the threads.
    pub fn close(&self) {
        drop(lock(&self.waiting).take());
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the receipts ended by a broken invariant");
            }
        }
    }
}

/// Journals by number.
fn journals_in(dir: &Path) -> Result<Vec<(u64, PathBuf)>, ServerError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| ServerError::io(dir, e))? {
        let path = entry.map_err(|e| ServerError::io(dir, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(number) = name.strip_suffix(".jsonl").and_then(|n| n.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The receipts of a journal; a torn last line was never acknowledged and is left out.
fn read_journal(path: &Path) -> Result<Vec<SignedUsage>, ServerError> {
    let bytes = fs::read(path).map_err(|e| ServerError::io(path, e))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(n, line)| {
            SignedUsage::parse(line).map_err(|e| ServerError::Journal {
                path: path.to_owned(),
                line: n as u64 + 1,
                why: e.to_string(),
            })
        })
        .collect()
}

/// Moves a journal that a crash left into the log and removes it.
fn move_journal(log: &mut UsageLog, path: &Path) -> Result<(), ServerError> {
    let mut batch = read_journal(path)?;
    batch.retain(|signed| !log.has_request(&signed.receipt.request_id));
    if !batch.is_empty() {
        log.append(batch, &NoProgress)?;
    }
    fs::remove_file(path).map_err(|e| ServerError::io(path, e))
}

/// A journal that is written to no more, with what is in it.
struct Finished {
    path: PathBuf,
    receipts: Vec<Arc<SealedUsage>>,
}

/// Moves finished journals into the log as one batch and removes them.
fn move_finished(log: &mut UsageLog, journals: &[Finished]) -> Result<(), ServerError> {
    let all = journals.iter().flat_map(|journal| &journal.receipts);
    // Half of an attempt that failed may be in the log already.
    let new = |sealed: &&Arc<SealedUsage>| !log.has_request(&sealed.signed().receipt.request_id);
    let batch: Vec<Arc<SealedUsage>> = all.filter(new).cloned().collect();
    if !batch.is_empty() {
        log.append_sealed(batch.iter().map(Arc::as_ref), &NoProgress)?;
    }
    for journal in journals {
        // One that stays is recognised by its ids at the next start.
        if let Err(error) = fs::remove_file(&journal.path) {
            tracing::warn!(%error, path = %journal.path.display(), "a journal that is in the log could not be removed");
        }
    }
    Ok(())
}

/// The journal that is written to.
struct Journal {
    dir: PathBuf,
    number: u64,
    path: PathBuf,
    file: File,
    /// Bytes that are synced, and the receipts in them.
    len: u64,
    receipts: Vec<Arc<SealedUsage>>,
    began: Instant,
}

impl Journal {
    fn create(dir: PathBuf, number: u64) -> Result<Self, ServerError> {
        let path = dir.join(format!("{number:08}.jsonl"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path);
        let file = file.map_err(|e| ServerError::io(&path, e))?;
        // The name must be durable before a receipt in it is acknowledged.
        File::open(&dir).and_then(|d| d.sync_all()).map_err(|e| ServerError::io(&dir, e))?;
        Ok(Self { dir, number, path, file, len: 0, receipts: Vec::new(), began: Instant::now() })
    }

    /// Appends lines and syncs. After an error the file ends where it ended before.
    fn append(&mut self, lines: &[u8], receipts: impl Iterator<Item = Arc<SealedUsage>>) -> std::io::Result<()> {
        let mut attempt = || {
            self.file.seek(SeekFrom::Start(self.len))?;
            self.file.write_all(lines)?;
            self.file.sync_data()
        };
        match attempt() {
            Ok(()) => {
                self.len += lines.len() as u64;
                self.receipts.extend(receipts);
                Ok(())
            }
            Err(error) => {
                // What was written of it must not be taken for receipts; a file that cannot be cut is left to the torn-line rule
                // at the next start, and the next append writes over it.
                drop(self.file.set_len(self.len).and_then(|()| self.file.sync_data()));
                Err(error)
            }
        }
    }
}

fn write(shared: &Shared, journal: &mut Journal, entries: &Receiver<Entry>, finished: &Sender<Finished>) {
    let mut group: Vec<Entry> = Vec::new();
    loop {
        let open = match entries.recv_timeout(JOURNAL_AGE) {
            Ok(first) => {
                group.push(first);
                group.extend(entries.try_iter().take(GROUP - 1));
                commit(shared, journal, &mut group);
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        let due = journal.receipts.len() >= JOURNAL || journal.began.elapsed() >= JOURNAL_AGE || !open;
        if due && !journal.receipts.is_empty() {
            match Journal::create(journal.dir.clone(), journal.number + 1) {
                Ok(next) => {
                    let done = std::mem::replace(journal, next);
                    // The mover is gone only when the process ends; the journal is moved at the next start then.
                    drop(finished.send(Finished { path: done.path, receipts: done.receipts }));
                }
                Err(error) => tracing::error!(%error, "no new journal; receipts go on into this one"),
            }
        }
        if !open {
            return;
        }
    }
}

fn commit(shared: &Shared, journal: &mut Journal, group: &mut Vec<Entry>) {
    let mut lines = Vec::with_capacity(group.iter().map(|entry| entry.sealed.line().len() + 1).sum());
    for entry in group.iter() {
        lines.extend_from_slice(entry.sealed.line());
        lines.push(b'\n');
    }
    let outcome = journal.append(&lines, group.iter().map(|entry| Arc::clone(&entry.sealed)));
    if outcome.is_ok() {
        let (mut recent, mut earned) = (lock(&shared.recent), lock(&shared.earned));
        for entry in group.iter() {
            let receipt = &entry.sealed.signed().receipt;
            earned.add(receipt);
            recent.insert(receipt.request_id.clone(), Arc::clone(&entry.sealed));
        }
    }
    let outcome = outcome.map_err(|error| {
        tracing::error!(%error, path = %journal.path.display(), "receipts could not be made durable");
        NotLogged::Disk(error.to_string())
    });
    for entry in group.drain(..) {
        drop(entry.done.send(outcome.clone()));
    }
}

/// Moves finished journals; those that cannot be moved (a full disk) are tried again, in order.
fn move_all(shared: &Shared, finished: &Receiver<Finished>, mut sums: Sums) {
    let mut left: Vec<Finished> = Vec::new();
    loop {
        let open = match finished.recv_timeout(if left.is_empty() { Duration::from_secs(3600) } else { JOURNAL_AGE }) {
            Ok(journal) => {
                left.push(journal);
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        left.extend(finished.try_iter());
        while !left.is_empty() {
            let mut n_receipts = 0;
            let fits = |journal: &&Finished| {
                n_receipts += journal.receipts.len();
                n_receipts <= BATCH
            };
            let n_journals = left.iter().take_while(fits).count().max(1);
            let mut log = lock(&shared.log);
            match move_finished(&mut log, &left[..n_journals]) {
                Ok(()) => {
                    let mut recent = lock(&shared.recent);
                    shared.logged.store(log.size(), Ordering::SeqCst);
                    for sealed in left.drain(..n_journals).flat_map(|journal| journal.receipts) {
                        recent.remove(&sealed.signed().receipt.request_id);
                        sums.add(&sealed.signed().receipt);
                    }
                    drop(recent);
                    // With the log locked, so that nothing is erased between the sums and what they are said to cover.
                    sums.keep(KEEP_EVERY);
                }
                Err(error) => {
                    tracing::error!(%error, dir = %shared.dir.display(), "journals stay where they are; they are tried again");
                    break;
                }
            }
        }
        if !open {
            // Half of an attempt that failed may be in the log, and not in the sums.
            if left.is_empty() {
                let _log = lock(&shared.log);
                sums.keep(1);
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_core::Digest;
    use ascribe_registry::{SettledRevenue, Usage};
    use ascribe_tlog::{Ed25519Key, SignatureKind};

    fn secret() -> String {
        let signer = NoteSigner::new("ascribe.test/usage", SignatureKind::Note, Ed25519Key::demo("server")).unwrap();
        signer.secret_line().to_string()
    }

    fn receipt(id: &str) -> UsageReceipt {
        let revenue = SettledRevenue { currency: "USD".into(), minor_units: 100 };
        let zero = Digest([0; 32]);
        UsageReceipt::new(Usage {
            request_id: id.into(),
            model_sha256: zero,
            run_id: "run".into(),
            output_salted_sha256: zero,
            method: "calibrated".into(),
            spec_sha256: zero,
            attribution_sha256: None,
            shares: Vec::new(),
            weight_total: 1,
            revenue,
            settled_unix_s: 1_800_000_000,
        })
        .unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn receipts_are_found_before_and_after_they_are_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let receipts = Receipts::open(dir.path(), &secret()).unwrap();
        let signed = block_on(receipts.log(receipt("a"))).unwrap();
        assert_eq!(receipts.find("a").unwrap().unwrap().signed, signed);
        assert!(receipts.find("b").unwrap().is_none());
        receipts.close();
        assert!(matches!(block_on(receipts.log(receipt("c"))), Err(NotLogged::Disk(_))));
        drop(receipts);
        assert!(dir.path().join("earned.json").exists());
        let again = Receipts::open(dir.path(), &secret()).unwrap();
        assert_eq!(again.earned().receipts, 1);
        let kept = again.find("a").unwrap().unwrap();
        assert_eq!((kept.signed, kept.index), (signed, Some(0)));
        assert!(kept.proof.is_some());
        again.close();
    }

    #[test]
    fn a_journal_of_a_crash_is_moved_and_its_torn_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        Receipts::open(dir.path(), &secret()).unwrap().close();
        let key = NoteSigner::parse(&secret()).unwrap();
        let line = |id: &str| [receipt(id).sign(key.key()).to_bytes(), b"\n".to_vec()].concat();
        let torn = &line("torn")[..40];
        fs::write(dir.path().join("journal/00000007.jsonl"), [&line("x")[..], &line("y"), torn].concat()).unwrap();
        // The log has y already: the crash came between the log and the end of its journal.
        let mut log = UsageLog::open(dir.path(), NoteSigner::parse(&secret()).unwrap()).unwrap();
        log.append(vec![receipt("y").sign(key.key())], &NoProgress).unwrap();
        drop(log);
        let receipts = Receipts::open(dir.path(), &secret()).unwrap();
        let index = |id: &str| receipts.find(id).unwrap().map(|kept| kept.index.unwrap());
        assert_eq!((index("y"), index("x"), index("torn")), (Some(0), Some(1), None));
        assert_eq!(receipts.n_receipts(), 2);
        receipts.close();
    }

    #[test]
    fn journals_that_wait_enter_the_log_together_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let receipts = Receipts::open(dir.path(), &secret()).unwrap();
        let n = 3 * JOURNAL + 5;
        let held = lock(&receipts.shared.log);
        let all = (0..n).map(|i| receipts.log(receipt(&format!("r{i}"))));
        let signed: Vec<_> = block_on(futures_util::future::join_all(all)).into_iter().map(Result::unwrap).collect();
        // Acknowledged, durable and found, though nothing could enter the log yet.
        assert_eq!(receipts.n_receipts(), n as u64);
        assert!(receipts.find("r7").unwrap().unwrap().proof.is_none());
        drop(held);
        receipts.close();
        let index = |i: usize| receipts.find(&format!("r{i}")).unwrap().unwrap().index.unwrap();
        assert!((0..n).all(|i| index(i) == i as u64));
        assert_eq!(receipts.find("r1025").unwrap().unwrap().signed, signed[1025]);
        assert!(journals_in(&dir.path().join("journal")).unwrap().iter().all(|(_, p)| fs::read(p).unwrap().is_empty()));
        let batches = fs::read_dir(dir.path().join("receipts")).unwrap().count();
        assert!(batches <= 3, "{batches} batches of {n} receipts");
        let verifier = NoteSigner::parse(&secret()).unwrap().verifier().clone();
        let audit = ascribe_registry::verify_usage_log(dir.path(), &verifier, &[], &NoProgress).unwrap();
        assert_eq!(audit.receipts, n as u64);
    }

    #[test]
    fn a_line_that_is_no_receipt_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("journal")).unwrap();
        fs::write(dir.path().join("journal/00000000.jsonl"), b"{}\n").unwrap();
        let error = Receipts::open(dir.path(), &secret()).err().unwrap().to_string();
        assert!(error.contains("00000000.jsonl") && error.contains("line 1"), "{error}");
    }
}
