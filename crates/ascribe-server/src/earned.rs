//! What datasets have earned by receipts: sums of integer parts, nothing else. Payments are made by the ledger, from the same
//! receipts; this is the running view of them that a page shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ascribe_registry::{SignedUsage, UsageReceipt};

use crate::error::ServerError;

/// One dataset's sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetEarned {
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts per 10⁶ of a response: 1,000,000 is one whole response.
    pub response_ppm: u128,
    /// Settled revenue by currency, `⌊minor units · weight / total⌋` per receipt.
    pub revenue: BTreeMap<String, u128>,
}

/// All sums, by `urn:uuid:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    /// Receipts in all.
    pub receipts: u64,
    /// By dataset.
    pub datasets: BTreeMap<String, DatasetEarned>,
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
        for entry in fs::read_dir(dir).map_err(|e| ServerError::io(dir, e))? {
            let path = entry.map_err(|e| ServerError::io(dir, e))?.path();
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
        for share in &receipt.shares {
            let sums = self.datasets.entry(share.dataset.clone()).or_default();
            sums.receipts += 1;
            let ppm = share.weight.saturating_mul(1_000_000) / total;
            sums.response_ppm = sums.response_ppm.saturating_add(ppm);
            // In two parts, because the product of amount and weight can pass 2¹²⁸.
            let amount = receipt.revenue.minor_units;
            let part = (amount / total) * share.weight + (amount % total) * share.weight / total;
            let sum = sums.revenue.entry(receipt.revenue.currency.clone()).or_default();
            *sum = sum.saturating_add(part);
        }
    }
}
