//! Receipts of a payout run: one a response, made from what the run decided, settled into a usage log, and made again to be checked.
//!
//! A receipt is a pure function of the run and of the operator's key: no clock and no randomness. So settling a run twice changes
//! nothing, a run that died between two batches goes on where it died, and whoever has the run's inputs makes the same receipts again.

use std::collections::HashMap;
use std::path::Path;

use ascribe_core::{Digest, DigestStream, Progress};
use ascribe_tlog::{
    Ed25519Key, NoteSigner, NoteVerifier, SignatureKind, SignedCheckpoint, TreeNodes as _, leaf_hash, write_secret,
};
use rayon::prelude::*;
use zeroize::Zeroizing;

use crate::error::RegistryError;
use crate::files;
use crate::tiles::SECRET_DIR;
use crate::usage::{SettledRevenue, Usage, UsageError, UsageReceipt, UsageShare};
use crate::usage_log::{UsageAudit, UsageLog, walk_usage_log};

/// Origin of usage logs that are signed with the public demo key.
pub const DEMO_USAGE_ORIGIN: &str = "ascribe.example/demo-usage";

/// Receipts that are made, signed and committed together: some 25 MB, six waits for the disk.
const BATCH: u64 = 1 << 15;

const USAGE_KEY_FILE: &str = "usage.key";

/// The dataset shares of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaidShares {
    /// Each of them.
    Listed(Vec<UsageShare>),
    /// Too many to stand in a receipt: [`SharesDigest`] over them.
    Digest(Digest),
}

/// One response of a payout run.
#[derive(Clone, Debug)]
pub struct PaidResponse {
    /// [`crate::salted_hash`] of its output under its salt of [`UsageSalts`]; `None` for whoever checks a run without the operator's key.
    pub salted_output: Option<Digest>,
    /// What it had to give, in millionths of the currency's smallest unit.
    pub weight_total: u128,
    /// What each dataset earned by it, in the same unit; the rest stayed unattributed, or was dust.
    pub shares: PaidShares,
    /// Its revenue in whole smallest units; those of all responses sum to the pool.
    pub revenue_minor: u128,
}

/// A payout run as its receipts see it.
pub struct UsageRun<'a> {
    /// See [`UsageReceipt::model_sha256`].
    pub model_sha256: Digest,
    /// See [`UsageReceipt::run_id`].
    pub run_id: String,
    /// See [`UsageReceipt::method`].
    pub method: String,
    /// See [`UsageReceipt::spec_sha256`].
    pub spec_sha256: Digest,
    /// See [`UsageReceipt::attribution_sha256`].
    pub attribution_sha256: Option<Digest>,
    /// Currency of the pool.
    pub currency: String,
    /// Time of all receipts: that of the run, never a clock's.
    pub settled_unix_s: u64,
    /// How many responses there are.
    pub n_responses: u64,
    /// Name of the response at a place from 0, see [`request_id`].
    pub id: &'a (dyn Fn(u64) -> String + Sync),
    /// The response itself; the same for the same place, always.
    pub response: &'a (dyn Fn(u64) -> PaidResponse + Sync),
}

/// What [`UsageLog::settle`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Receipts that were appended.
    pub appended: u64,
    /// Receipts that stood there already.
    pub there: u64,
}

impl UsageRun<'_> {
    /// The receipt of the response at place `i`, not signed yet.
    ///
    /// # Errors
    /// [`UsageError`] for a run that no receipt can describe.
    pub fn receipt(&self, i: u64) -> Result<UsageReceipt, UsageError> {
        let paid = (self.response)(i);
        let (shares, digest) = match paid.shares {
            PaidShares::Listed(shares) => (shares, None),
            PaidShares::Digest(digest) => (Vec::new(), Some(digest)),
        };
        let receipt = UsageReceipt::new(Usage {
            request_id: (self.id)(i),
            model_sha256: self.model_sha256,
            run_id: self.run_id.clone(),
            output_salted_sha256: paid.salted_output.unwrap_or_default(),
            method: self.method.clone(),
            spec_sha256: self.spec_sha256,
            attribution_sha256: self.attribution_sha256,
            shares,
            // A response that had nothing to give has no shares, but a receipt's whole is never 0.
            weight_total: paid.weight_total.max(1),
            revenue: SettledRevenue { currency: self.currency.clone(), minor_units: paid.revenue_minor },
            settled_unix_s: self.settled_unix_s,
        })?;
        Ok(match digest {
            Some(digest) => receipt.with_shares_digest(digest),
            None => receipt,
        })
    }
}

/// The part of response `i` of `n` in a pool that is split evenly, in whole smallest units: `⌊P·(i+1)/n⌋ − ⌊P·i/n⌋`. Each is within one
/// unit of `P/n`, and all of them are the pool.
pub fn even_minor(pool_minor: u128, n: u64, i: u64) -> u128 {
    let n = u128::from(n.max(1));
    // The remainder and the place are below 2^64, so the product fits.
    let (whole, rest, i) = (pool_minor / n, pool_minor % n, u128::from(i));
    whole + rest * (i + 1) / n - rest * i / n
}

/// Digest of shares that are too many for a receipt: SHA-256 over 32 bytes each, the dataset's UUID (16) and its weight (16,
/// big-endian), owners and their datasets in the byte order of their names.
#[derive(Clone, Debug, Default)]
pub struct SharesDigest(DigestStream);

impl SharesDigest {
    /// Appends a share.
    pub fn push(&mut self, dataset_uuid: [u8; 16], weight: u128) {
        let mut entry = [0; 32];
        entry[..16].copy_from_slice(&dataset_uuid);
        entry[16..].copy_from_slice(&weight.to_be_bytes());
        self.0.update(&entry);
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// The name under which a response stands in a usage log: its own, or `sha256:HEX` of one that no receipt can carry.
pub fn request_id(name: &str) -> String {
    let plain = !name.trim().is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
    if plain { name.to_owned() } else { format!("sha256:{}", Digest::of(name.as_bytes())) }
}

/// The salts of an operator's receipts. Their secret is SHA-256 of the operator's Ed25519 signature over `"ascribe usage salts v2"`, the
/// salt of a response SHA-256 over the secret and the SHA-256 of its request id.
///
/// Signatures of RFC 8032 are a function of key and message, so the holder of the key finds the salt of any receipt again, nobody else
/// finds one, and a salt that is shown to open one hash says nothing about another. The secret is derived once: a signature a response
/// would cost as much as signing the receipt does.
pub struct UsageSalts(Zeroizing<[u8; 32]>);

impl UsageSalts {
    /// Those of the holder of `key`.
    pub fn of(key: &Ed25519Key) -> Self {
        let signature = Zeroizing::new(key.sign(b"ascribe usage salts v2"));
        Self(Zeroizing::new(Digest::of(&*signature).0))
    }

    /// The salt of a response's output.
    pub fn salt(&self, request_id: &str) -> Zeroizing<[u8; 32]> {
        let mut both = Zeroizing::new([0; 64]);
        both[..32].copy_from_slice(&*self.0);
        // The id's digest has one length, so no salt begins another.
        both[32..].copy_from_slice(&Digest::of(request_id.as_bytes()).0);
        Zeroizing::new(Digest::of(&*both).0)
    }
}

impl std::fmt::Debug for UsageSalts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UsageSalts")
    }
}

/// Who signs the receipts of payouts over a registry: its usage key, `.secret/usage.key`, which is made when it is first asked for; the
/// public demo key where a registry has no secrets (the demo's, or a reader's copy).
///
/// # Errors
/// A key that can neither be read nor be made.
pub fn usage_signer(registry_dir: &Path) -> Result<NoteSigner, RegistryError> {
    let secret = registry_dir.join(SECRET_DIR);
    if !secret.is_dir() {
        return Ok(demo_usage_signer());
    }
    let path = secret.join(USAGE_KEY_FILE);
    if !path.exists() {
        let key = Ed25519Key::generate()?;
        let origin = format!("ascribe.example/usage-{}", hex::encode(&key.public().to_bytes()[..8]));
        let signer = NoteSigner::new(&origin, SignatureKind::Note, key)?;
        // Another process may have been faster: then its key is the one.
        match write_secret(&path, signer.secret_line().as_bytes()) {
            Err(error) if !path.exists() => return Err(error.into()),
            _ => {}
        }
    }
    read_usage_key(&path)
}

/// Reads an operator's secret key file.
///
/// # Errors
/// No file, or one that holds no key.
pub fn read_usage_key(path: &Path) -> Result<NoteSigner, RegistryError> {
    let line = Zeroizing::new(files::read_small(path, "key of the usage log")?);
    let line = std::str::from_utf8(&line).map_err(|_| RegistryError::field(path, "key", "a line of text", "bytes"))?;
    Ok(NoteSigner::parse(line).map_err(|error| error.in_file(path))?)
}

/// The signer of receipts where nobody has a secret. Anybody can derive its key, so anybody could have signed, and the salts of its
/// receipts keep nothing secret.
pub fn demo_usage_signer() -> NoteSigner {
    let key = Ed25519Key::demo(DEMO_USAGE_ORIGIN);
    NoteSigner::new(DEMO_USAGE_ORIGIN, SignatureKind::Note, key).expect("the origin is a key name")
}

impl UsageLog {
    /// How many of a run's receipts are there. Nothing is written.
    ///
    /// # Errors
    /// [`RegistryError::Field`] naming a response that is there under another receipt: it was paid by another run.
    pub fn check_replay(&self, run: &UsageRun<'_>) -> Result<u64, RegistryError> {
        if self.size() == 0 {
            return Ok(0);
        }
        let (tree, mut there) = (self.tree(), 0);
        for i in 0..run.n_responses {
            let id = (run.id)(i);
            let Some(index) = self.find(&id) else { continue };
            if tree.node(0, index)? != leaf_hash(&run.receipt(i)?.digest().0) {
                let found = format!("{id:?} again: entry {index} is its receipt from another payout");
                return Err(RegistryError::field(self.dir(), "requestId", "each response paid once (a replay)", found));
            }
            there += 1;
        }
        Ok(there)
    }

    /// Makes, signs and logs the receipts of a run that are not there yet, batch by batch, each whole or not at all. The same run again
    /// changes nothing.
    ///
    /// Deterministic; receipts stand in the order of the responses. Cost: a signature and an entry a response, on all threads; memory
    /// for one batch.
    ///
    /// # Errors
    /// As [`UsageLog::check_replay`], before anything is written; [`RegistryError::Stopped`]; [`RegistryError::Io`].
    pub fn settle(&mut self, run: &UsageRun<'_>, progress: &dyn Progress) -> Result<Settled, RegistryError> {
        let there = self.check_replay(run)?;
        let mut appended = 0;
        for first in (0..run.n_responses).step_by(BATCH as usize) {
            if progress.stop_requested() {
                return Err(RegistryError::Stopped);
            }
            let places: Vec<u64> = (first..run.n_responses.min(first + BATCH))
                .filter(|i| there == 0 || self.find(&(run.id)(*i)).is_none())
                .collect();
            let key = self.key();
            let sealed: Result<Vec<_>, UsageError> = places.par_iter().map(|i| run.receipt(*i)?.seal(key)).collect();
            appended += places.len() as u64;
            self.append_sealed(sealed?.iter(), progress)?;
        }
        Ok(Settled { appended, there })
    }
}

/// Checks a usage log (as [`crate::verify_usage_log`] does), and that it holds every receipt of a run, each as the run gives it.
///
/// Where a run's responses come without salted outputs, those of the log are taken as they are: only the operator can make them again.
/// Receipts that were erased count as such.
///
/// # Errors
/// What is wrong with the log; [`RegistryError::Field`] naming a response without a receipt, or one with another, and what differs.
pub fn check_usage_run(
    dir: &Path,
    log: &NoteVerifier,
    older: &[SignedCheckpoint],
    run: &UsageRun<'_>,
    progress: &dyn Progress,
) -> Result<UsageAudit, RegistryError> {
    let mut places = HashMap::with_capacity(run.n_responses.min(1 << 24) as usize);
    for i in 0..run.n_responses {
        places.insert(Digest::of((run.id)(i).as_bytes()), i);
    }
    let mut erased = 0;
    let audit = walk_usage_log(dir, log, older, progress, &mut |index, id, signed| {
        let Some(i) = places.remove(&id) else { return Ok(()) };
        let Some(signed) = signed else {
            erased += 1;
            return Ok(());
        };
        let mut expected = run.receipt(i)?;
        if (run.response)(i).salted_output.is_none() {
            expected = expected.with_output(signed.receipt.output_salted_sha256);
        }
        if expected == signed.receipt {
            return Ok(());
        }
        let (field, expected, found) = expected.difference(&signed.receipt);
        let field = format!("receipt of response {:?} (entry {index}), {field}", signed.receipt.request_id);
        Err(RegistryError::field(dir, field, expected, found))
    })?;
    if let Some(i) = places.values().min() {
        let (id, n) = ((run.id)(*i), places.len());
        let found = format!("{n} responses without one, the first {id:?}");
        return Err(RegistryError::field(dir, "receipts", "one of every response of the run", found));
    }
    Ok(UsageAudit { receipts: run.n_responses - erased, erased, ..audit })
}
