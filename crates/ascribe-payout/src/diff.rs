//! Two runs side by side: who gets more, who gets less, who is new, who is gone, and why.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::Digest;
use ascribe_ledger::{Caip10, Currency, Money, Payee};
use serde::Serialize;

use crate::error::PayError;
use crate::files;
use crate::outputs::{self, share_interval};
use crate::{Computed, PayRunRecord};

/// One payee of a run, with what the payment rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Who.
    pub payee: Payee,
    /// Paid, in minor units.
    pub paid_minor: u128,
    /// Earned in the run, in sub-units.
    pub accrued: u128,
    /// Carried in from earlier runs, in sub-units.
    pub carried_in: u128,
    /// Mean share of the responses, in ppm, of the payee's owner.
    pub share_ppm: u64,
    /// Responses in which the owner has a part.
    pub responses: u64,
}

/// A run as a comparison sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Identity.
    pub run_id: String,
    /// Currency.
    pub currency: Currency,
    /// Pool in minor units.
    pub pool_minor: u128,
    /// Payees.
    pub rows: Vec<Standing>,
}

/// One payee in two runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PayDiffRow {
    /// Owner.
    pub owner: String,
    /// Account, or nothing.
    pub account: String,
    /// Paid in the first run, decimal.
    pub before: String,
    /// Paid in the second run, decimal.
    pub after: String,
    /// Second less first, with its sign.
    pub change: String,
    /// Mean share of the responses in the first run, in ppm.
    pub share_before_ppm: u64,
    /// The same in the second run.
    pub share_after_ppm: u64,
    /// Where the change comes from, in words.
    pub why: String,
}

/// Two runs compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PayDiff {
    /// Currency of both.
    pub currency: String,
    /// First run.
    pub before: String,
    /// Second run.
    pub after: String,
    /// Rows of payees whose payment differs, largest change first.
    pub rows: Vec<PayDiffRow>,
    /// Payees paid the same in both.
    pub unchanged: u64,
}

impl Side {
    /// Of a finished run folder.
    ///
    /// # Errors
    /// A folder without a finished run, or with a changed or malformed table.
    pub fn read(dir: &Path) -> Result<Self, PayError> {
        let record = PayRunRecord::read(dir)?;
        let path = dir.join(outputs::PAYEES_CSV);
        let bytes = files::read(&path)?;
        let found = Digest::of(&bytes);
        if let Some(expected) = record.files.get(outputs::PAYEES_CSV).copied().filter(|expected| *expected != found) {
            return Err(PayError::Digest { path, expected, found, hint: "the table was changed after the run" });
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.lines();
        let refuse = |expected: String, found: &str| PayError::Content {
            path: path.clone(),
            expected,
            found: found.chars().take(200).collect(),
        };
        match lines.next() {
            Some(outputs::PAYEES_HEADER) => {}
            other => return Err(refuse(format!("header {}", outputs::PAYEES_HEADER), other.unwrap_or_default())),
        }
        let rows: Option<Vec<Standing>> = lines.map(standing).collect();
        let rows = rows.ok_or_else(|| refuse("lines of its header".into(), "another"))?;
        let Money { minor, currency } = record.run.policy.pool;
        Ok(Self { run_id: record.run_id.to_string(), currency, pool_minor: minor, rows })
    }

    /// Of a run that was computed and not written.
    pub fn of(computed: &Computed) -> Self {
        let row = |found: &ascribe_ledger::BatchRow| {
            let row = &found.row;
            let owner = computed.owners.binary_search(&row.owner).ok();
            Standing {
                payee: Payee { owner: row.owner.clone(), account: row.account.clone() },
                paid_minor: row.amount.minor,
                accrued: found.accrued,
                carried_in: found.carried_in,
                share_ppm: owner.map_or(0, |owner| share_interval(computed, owner).0),
                responses: row.responses.into(),
            }
        };
        let Money { minor, currency } = computed.run.policy.pool;
        let rows = computed.statement.rows.iter().map(row).collect();
        Self { run_id: computed.run_id.to_string(), currency, pool_minor: minor, rows }
    }

    /// A run that never was, in the currency of another.
    pub fn none(like: &Self) -> Self {
        Self { run_id: String::new(), currency: like.currency, pool_minor: 0, rows: Vec::new() }
    }
}

/// A line of `payees.csv`.
fn standing(line: &str) -> Option<Standing> {
    let cells = cells(line);
    let [owner, account, _, carried_in, accrued, paid, _, responses, _, share, _, _] = cells.as_slice() else {
        return None;
    };
    let account = if account.is_empty() { None } else { Some(account.parse::<Caip10>().ok()?) };
    Some(Standing {
        payee: Payee { owner: owner.clone(), account },
        paid_minor: paid.parse().ok()?,
        accrued: accrued.parse().ok()?,
        carried_in: carried_in.parse().ok()?,
        share_ppm: share.parse().ok()?,
        responses: responses.parse().ok()?,
    })
}

/// Cells of a CSV line; a quote within quotes is doubled.
fn cells(line: &str) -> Vec<String> {
    let (mut out, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(std::mem::take(&mut cell)),
            other => cell.push(other),
        }
    }
    out.push(cell);
    out
}

/// Compares two run folders.
///
/// # Errors
/// As [`Side::read`]; runs of different currencies.
pub fn diff(before: &Path, after: &Path) -> Result<PayDiff, PayError> {
    compare(&Side::read(before)?, &Side::read(after)?)
}

/// Compares two runs.
///
/// # Errors
/// Runs of different currencies.
pub fn compare(before: &Side, after: &Side) -> Result<PayDiff, PayError> {
    let currency = after.currency;
    if before.currency != currency {
        let (expected, found) = (format!("runs in {currency}"), before.currency.to_string());
        return Err(PayError::Setting { setting: "runs to compare", expected, found });
    }
    let mut both: BTreeMap<&Payee, [Option<&Standing>; 2]> = BTreeMap::new();
    for (side, run) in [before, after].into_iter().enumerate() {
        for row in &run.rows {
            both.entry(&row.payee).or_default()[side] = Some(row);
        }
    }
    let paid = |row: Option<&Standing>| row.map_or(0, |row| row.paid_minor);
    let unchanged = both.values().filter(|[a, b]| paid(*a) == paid(*b) && paid(*a) > 0).count() as u64;
    let mut changed: Vec<_> = both.into_iter().filter(|(_, [a, b])| paid(*a) != paid(*b)).collect();
    let size = |[a, b]: &[Option<&Standing>; 2]| paid(*a).abs_diff(paid(*b));
    changed.sort_by(|(x, a), (y, b)| size(b).cmp(&size(a)).then_with(|| x.cmp(y)));
    let text = |minor: u128| Money { minor, currency }.decimal();
    let row = |(payee, [a, b]): (&Payee, [Option<&Standing>; 2])| PayDiffRow {
        owner: payee.owner.clone(),
        account: payee.account.as_ref().map_or(String::new(), ToString::to_string),
        before: text(paid(a)),
        after: text(paid(b)),
        change: format!("{}{}", if paid(b) >= paid(a) { "+" } else { "-" }, text(paid(b).abs_diff(paid(a)))),
        share_before_ppm: a.map_or(0, |row| row.share_ppm),
        share_after_ppm: b.map_or(0, |row| row.share_ppm),
        why: why((before, a), (after, b)),
    };
    Ok(PayDiff {
        currency: currency.to_string(),
        before: before.run_id.clone(),
        after: after.run_id.clone(),
        rows: changed.into_iter().map(row).collect(),
        unchanged,
    })
}

/// Parts per million as a percentage with two decimals.
fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

/// The facts behind a change, the larger ones first: new or gone, share, pool, number of responses, carried balances.
fn why((first, a): (&Side, Option<&Standing>), (second, b): (&Side, Option<&Standing>)) -> String {
    if first.run_id.is_empty() {
        return b
            .map_or(String::new(), |b| format!("first run; {} of {} responses", percent(b.share_ppm), b.responses));
    }
    let (Some(a), Some(b)) = (a, b) else {
        return match (a, b) {
            (None, Some(b)) => format!("new: {} in {} responses", percent(b.share_ppm), b.responses),
            (Some(a), None) => format!("gone: earned nothing now, had {}", percent(a.share_ppm)),
            _ => String::new(),
        };
    };
    let mut facts = Vec::new();
    if a.share_ppm != b.share_ppm {
        facts.push(format!("share {} to {}", percent(a.share_ppm), percent(b.share_ppm)));
    }
    if first.pool_minor != second.pool_minor {
        let text = |side: &Side| Money { minor: side.pool_minor, currency: side.currency }.to_string();
        facts.push(format!("pool {} to {}", text(first), text(second)));
    }
    if a.responses != b.responses {
        facts.push(format!("responses {} to {}", a.responses, b.responses));
    }
    // A balance below the minimum waits: then one run pays for two.
    let waited = |row: &Standing| row.carried_in >= ascribe_ledger::SUB_UNITS_PER_MINOR;
    if waited(b) || (a.paid_minor == 0 && a.accrued > 0) {
        facts.push("a balance that waited is paid along".to_owned());
    }
    if b.paid_minor == 0 && b.accrued > 0 {
        facts.push("now below the minimum, or without an account: carried".to_owned());
    }
    if facts.is_empty() { "licence splits or caps".to_owned() } else { facts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(id: &str, pool: &str, rows: &[(&str, u128, u64, u64)]) -> Side {
        let Money { minor, currency } = pool.parse().unwrap();
        let row = |&(owner, paid_minor, share_ppm, responses): &(&str, u128, u64, u64)| Standing {
            payee: Payee { owner: owner.into(), account: None },
            paid_minor,
            accrued: paid_minor * 1_000_000,
            carried_in: 0,
            share_ppm,
            responses,
        };
        Side { run_id: id.into(), currency, pool_minor: minor, rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn every_change_has_its_reason() {
        let before = side("a", "10.00 USD", &[("Ada", 500, 500_000, 9), ("Bob", 300, 300_000, 4), ("Cid", 1, 1, 1)]);
        let after = side("b", "12.00 USD", &[("Ada", 500, 416_666, 9), ("Bob", 720, 600_000, 4), ("Dan", 5, 9_000, 1)]);
        let found = compare(&before, &after).unwrap();
        let seen: Vec<_> = found.rows.iter().map(|r| (r.owner.as_str(), r.change.as_str(), r.why.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("Bob", "+4.20", "share 30.00 % to 60.00 %; pool 10.00 USD to 12.00 USD"),
                ("Dan", "+0.05", "new: 0.90 % in 1 responses"),
                ("Cid", "-0.01", "gone: earned nothing now, had 0.00 %"),
            ]
        );
        assert_eq!(found.unchanged, 1);
        assert!(compare(&side("a", "1.00 EUR", &[]), &after).is_err());
        let first = compare(&Side::none(&after), &after).unwrap();
        assert_eq!(first.rows[0].why, "first run; 60.00 % of 4 responses");
    }

    #[test]
    fn quoted_cells_come_apart() {
        assert_eq!(cells("a,\"b, \"\"c\"\"\",,d"), ["a", "b, \"c\"", "", "d"]);
    }
}
