//! What datasets have earned by receipts: sums of integer parts, nothing else. Payments are made by the ledger, from the same
//! receipts; this is the running view of them that a page shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ascribe_registry::{SignedUsage, UsageReceipt};

use crate::error::ServerError;

/// Currencies that are summed: a caller may name what it likes, and sums are kept for ever.
pub const CURRENCIES: usize = 64;

/// One dataset's sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetEarned {
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts per 10⁶ of a response: 1,000,000 is one whole response.
    pub response_ppm: u128,
    /// Settled revenue by currency, `⌊minor units · weight / total⌋` per receipt, for the log's first [`CURRENCIES`].
    pub revenue: BTreeMap<String, u128>,
}

/// All sums, by `urn:uuid:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    /// Receipts in all.
    pub receipts: u64,
    /// By dataset.
    pub datasets: BTreeMap<String, DatasetEarned>,
    /// Those that are summed.
    currencies: BTreeSet<String>,
}

impl Earned {
    /// Sums over the batches of a usage log; an erased receipt counts no more.
    ///
    /// # Errors
    /// A batch that cannot be read.
    pub fn read(dir: &Path) -> Result<Self, ServerError> {
        let mut earned = Self::default();
        if !dir.is_dir() {
            return Ok(earned);
        }
        let entries = fs::read_dir(dir).map_err(|e| ServerError::io(dir, e))?;
        let paths = entries.map(|entry| Ok(entry.map_err(|e| ServerError::io(dir, e))?.path()));
        let mut paths = paths.collect::<Result<Vec<_>, ServerError>>()?;
        // In the order of the log, by the index of the first receipt, which is the name.
        paths.sort_by_key(|path| path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok()));
        for path in paths {
            if path.extension().is_none_or(|e| e != "jsonl") {
                continue;
            }
            let bytes = fs::read(&path).map_err(|e| ServerError::io(&path, e))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_core::Digest;
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
}
