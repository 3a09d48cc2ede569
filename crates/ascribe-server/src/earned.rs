//! What datasets have earned by receipts: sums of integer parts, nothing else. Payments are made by the ledger, from the same
//! receipts; this is the running view of them that a page shows.
//!
//! A start reads every receipt of the log, a gigabyte and more per million. So the sums are kept beside it (`earned.json`), with a digest
//! over names, lengths and times of the batches that they cover: a start adds what came after. A batch that was written again (an erasure)
//! makes another digest, and everything is read. The file says nothing that the log does not: it may be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ascribe_core::Digest;
use ascribe_registry::{SignedUsage, UsageReceipt};
use serde::{Deserialize, Serialize};

use crate::error::ServerError;

/// Receipts of the usage log, in batches.
const RECEIPTS_DIR: &str = "receipts";
/// Sums over them.
const EARNED_FILE: &str = "earned.json";
/// Receipts after which the sums are kept again: what a start after a crash reads at most, half a second.
pub(crate) const KEEP_EVERY: u64 = 50_000;
/// Number of the kept sums' form; another one is read as none.
const KEPT: u32 = 1;

/// Currencies that are summed: a caller may name what it likes, and sums are kept for ever.
pub const CURRENCIES: usize = 64;

/// One dataset's sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetEarned {
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts per 10⁶ of a response: 1,000,000 is one whole response.
    #[serde(with = "decimal")]
    pub response_ppm: u128,
    /// Settled revenue by currency, `⌊minor units · weight / total⌋` per receipt, for the log's first [`CURRENCIES`].
    #[serde(with = "decimals")]
    pub revenue: BTreeMap<String, u128>,
}

/// Sums as JSON: decimal strings, since numbers of other readers end at 2⁵³.
mod decimal {
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(n: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(n)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The same by currency.
mod decimals {
    use std::collections::BTreeMap;

    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(sums: &BTreeMap<String, u128>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(sums.iter().map(|(currency, n)| (currency, n.to_string())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, u128>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(from)?;
        texts.into_iter().map(|(currency, n)| Ok((currency, n.parse().map_err(D::Error::custom)?))).collect()
    }
}

/// Sums over the first batches of a log, as they are kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    kept: u32,
    /// Batches that are covered.
    batches: usize,
    /// Over their names, lengths and times.
    digest: Digest,
    earned: Earned,
}

/// All sums, by `urn:uuid:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earned {
    /// Receipts in all.
    pub receipts: u64,
    /// By dataset.
    pub datasets: BTreeMap<String, DatasetEarned>,
    /// Those that are summed.
    currencies: BTreeSet<String>,
}

impl Earned {
    /// Sums over the batches in `dir`, the folder of a usage log's receipts; an erased receipt counts no more. Those that `kept` holds
    /// are not read again: with it, the cost is that of what came since.
    ///
    /// # Errors
    /// A batch that cannot be read.
    pub fn read(dir: &Path, kept: &Path) -> Result<Self, ServerError> {
        let batches = batches(dir)?;
        let (mut earned, mut from) = (Self::default(), 0);
        if let Some(found) = fs::read(kept).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok()) {
            let covered = batches.get(..found.batches);
            if found.kept == KEPT && covered.is_some_and(|covered| digest(covered) == found.digest) {
                (earned, from) = (found.earned, found.batches);
            }
        }
        for Batch { path, .. } in &batches[from..] {
            let bytes = fs::read(path).map_err(|e| ServerError::io(path, e))?;
            for (n, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
                let signed = SignedUsage::parse(line).map_err(|e| ServerError::Journal {
                    path: path.clone(),
                    line: n as u64 + 1,
                    why: e.to_string(),
                })?;
                earned.add(&signed.receipt);
            }
        }
        Ok(earned)
    }

    /// Keeps these sums, which are those of all batches in `dir` and of nothing else.
    ///
    /// # Errors
    /// The disk.
    pub fn keep(&self, dir: &Path, kept: &Path) -> Result<(), ServerError> {
        let batches = batches(dir)?;
        let all = Kept { kept: KEPT, batches: batches.len(), digest: digest(&batches), earned: self.clone() };
        let bytes = serde_json::to_vec(&all).map_err(|e| ServerError::io(kept, e.into()))?;
        // A torn file is no JSON, and read as none; a whole one takes the place of the old one.
        let new = kept.with_extension("new");
        fs::write(&new, bytes).and_then(|()| fs::rename(&new, kept)).map_err(|e| ServerError::io(kept, e))
    }

    /// Adds a receipt. Sums that would pass 2¹²⁸ stay there.
    pub fn add(&mut self, receipt: &UsageReceipt) {
        self.receipts += 1;
        let total = receipt.weight_total.max(1);
        let is_summed = self.is_summed(&receipt.revenue.currency);
        for share in &receipt.shares {
            let sums = self.datasets.entry(share.dataset.clone()).or_default();
            sums.receipts += 1;
            let ppm = share.weight.saturating_mul(1_000_000) / total;
            sums.response_ppm = sums.response_ppm.saturating_add(ppm);
            if !is_summed {
                continue;
            }
            // In two parts, because the product of amount and weight can pass 2¹²⁸.
            let amount = receipt.revenue.minor_units;
            let part = (amount / total) * share.weight + (amount % total) * share.weight / total;
            let sum = sums.revenue.entry(receipt.revenue.currency.clone()).or_default();
            *sum = sum.saturating_add(part);
        }
    }

    /// True for a currency that has a sum or may have one.
    fn is_summed(&mut self, currency: &str) -> bool {
        if self.currencies.contains(currency) {
            return true;
        }
        let has_room = self.currencies.len() < CURRENCIES;
        if has_room {
            self.currencies.insert(currency.to_owned());
        }
        has_room
    }
}

/// Sums over what is in the log: kept from time to time, and at the end.
pub(crate) struct Sums {
    dir: PathBuf,
    earned: Earned,
    /// Receipts that the kept sums do not cover.
    since: u64,
}

impl Sums {
    /// Of the usage log in `dir`. What was read may not be kept yet: it is at the end.
    ///
    /// # Errors
    /// A batch that cannot be read.
    pub(crate) fn read(dir: &Path) -> Result<Self, ServerError> {
        let earned = Earned::read(&dir.join(RECEIPTS_DIR), &dir.join(EARNED_FILE))?;
        let since = earned.receipts.min(1);
        Ok(Self { dir: dir.to_owned(), earned, since })
    }

    pub(crate) fn earned(&self) -> &Earned {
        &self.earned
    }

    pub(crate) fn add(&mut self, receipt: &UsageReceipt) {
        self.earned.add(receipt);
        self.since += 1;
    }

    /// Keeps them if at least so many receipts came since. A disk that refuses costs the next start time, nothing else.
    pub(crate) fn keep(&mut self, at_least: u64) {
        if self.since < at_least {
            return;
        }
        match self.earned.keep(&self.dir.join(RECEIPTS_DIR), &self.dir.join(EARNED_FILE)) {
            Ok(()) => self.since = 0,
            Err(error) => {
                tracing::warn!(%error, "sums of receipts could not be kept; the next start reads the receipts")
            }
        }
    }
}

/// A batch of the log.
struct Batch {
    first: u64,
    path: PathBuf,
    len: u64,
    changed_ns: u128,
}

/// All batches in the order of the log, by the index of the first receipt, which is the name.
fn batches(dir: &Path) -> Result<Vec<Batch>, ServerError> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| ServerError::io(dir, e))? {
        let entry = entry.map_err(|e| ServerError::io(dir, e))?;
        let path = entry.path();
        let Some(first) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok()) else { continue };
        if path.extension().is_some_and(|e| e == "jsonl") {
            let about = entry.metadata().map_err(|e| ServerError::io(&path, e))?;
            let changed = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            found.push(Batch { first, path, len: about.len(), changed_ns: changed.map_or(0, |at| at.as_nanos()) });
        }
    }
    found.sort_by_key(|batch| batch.first);
    Ok(found)
}

fn digest(batches: &[Batch]) -> Digest {
    let one = |b: &Batch| [&b.first.to_le_bytes()[..], &b.len.to_le_bytes(), &b.changed_ns.to_le_bytes()].concat();
    Digest::of(&batches.iter().flat_map(one).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_registry::{SettledRevenue, Usage, UsageShare};

    #[test]
    fn invented_currencies_are_not_summed_without_end() {
        let mut earned = Earned::default();
        let zero = Digest([0; 32]);
        let mut add = |currency: String| {
            let usage = Usage {
                request_id: currency.clone(),
                model_sha256: zero,
                run_id: "run".into(),
                output_salted_sha256: zero,
                method: "calibrated".into(),
                spec_sha256: zero,
                attribution_sha256: None,
                shares: vec![UsageShare { dataset: "urn:uuid:00000000-0000-4000-8000-000000000001".into(), weight: 1 }],
                weight_total: 2,
                revenue: SettledRevenue { currency, minor_units: 100 },
                settled_unix_s: 1_800_000_000,
            };
            earned.add(&UsageReceipt::new(usage).unwrap());
        };
        add("USD".into());
        (0..3 * CURRENCIES).for_each(|i| add(format!("X{i}")));
        add("USD".into());
        let sums = earned.datasets.values().next().unwrap();
        assert_eq!((sums.revenue.len(), sums.revenue["USD"]), (CURRENCIES, 100));
        // Everything else counts all receipts.
        assert_eq!((sums.receipts, earned.receipts), (3 * CURRENCIES as u64 + 2, 3 * CURRENCIES as u64 + 2));
    }

    fn receipt(id: u64, units: u128) -> UsageReceipt {
        let zero = Digest([0; 32]);
        UsageReceipt::new(Usage {
            request_id: format!("attr_{id}"),
            model_sha256: zero,
            run_id: "run".into(),
            output_salted_sha256: zero,
            method: "calibrated".into(),
            spec_sha256: zero,
            attribution_sha256: None,
            shares: vec![UsageShare { dataset: "urn:uuid:00000000-0000-4000-8000-000000000001".into(), weight: 1 }],
            weight_total: 3,
            revenue: SettledRevenue { currency: "USD".into(), minor_units: units },
            settled_unix_s: 1_800_000_000,
        })
        .unwrap()
    }

    fn batch(dir: &Path, first: u64, receipts: &[UsageReceipt]) -> PathBuf {
        let key = ascribe_tlog::Ed25519Key::demo("server");
        let line = |r: &UsageReceipt| [r.clone().sign(&key).to_bytes(), b"\n".to_vec()].concat();
        let path = dir.join(format!("{first}.jsonl"));
        fs::write(&path, receipts.iter().flat_map(line).collect::<Vec<u8>>()).unwrap();
        path
    }

    /// Kept sums stand for the batches that they were made of: those are not read again, later ones are, and one that changed makes
    /// all be read.
    #[test]
    fn kept_sums_stand_for_what_they_were_made_of() {
        let root = tempfile::tempdir().unwrap();
        let (dir, kept) = (root.path().join("receipts"), root.path().join("earned.json"));
        fs::create_dir(&dir).unwrap();
        // Above 2⁵³ and 2⁶⁴: sums survive the file to the last unit.
        let first = batch(&dir, 0, &[receipt(0, u128::from(u64::MAX) * 1_000), receipt(1, 100)]);
        let read = || Earned::read(&dir, &kept);
        let before = read().unwrap();
        before.keep(&dir, &kept).unwrap();
        assert_eq!(read().unwrap(), before);
        // Other bytes of the same length and time are not looked at: nothing was read again.
        let changed = fs::metadata(&first).unwrap().modified().unwrap();
        let whole = fs::read(&first).unwrap();
        let spoil = |bytes: &[u8]| {
            fs::write(&first, bytes).unwrap();
            fs::File::options().write(true).open(&first).unwrap().set_modified(changed).unwrap();
        };
        spoil(&vec![b'x'; whole.len()]);
        assert_eq!(read().unwrap(), before);
        spoil(&whole);
        batch(&dir, 2, &[receipt(2, 300)]);
        let after = read().unwrap();
        let sum = |earned: &Earned| earned.datasets.values().next().unwrap().revenue["USD"];
        assert_eq!((after.receipts, sum(&after) - sum(&before)), (3, 100));
        // An erasure writes a batch again: what was erased counts no more.
        batch(&dir, 0, &[receipt(1, 100)]);
        let erased = read().unwrap();
        assert_eq!((erased.receipts, sum(&erased)), (2, 133));
        // Torn, of another number, of batches that are gone: as if it were not there.
        for text in [&b"{\"kept\":1,"[..], b"", b"{\"kept\":2,\"batches\":0,\"digest\":\"00\",\"earned\":{}}"] {
            fs::write(&kept, text).unwrap();
            assert_eq!(read().unwrap(), erased);
        }
        erased.keep(&dir, &kept).unwrap();
        fs::remove_file(dir.join("2.jsonl")).unwrap();
        assert_eq!(read().unwrap().receipts, 1);
    }
}
