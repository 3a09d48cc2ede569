//! Shares that a policy has decided already (`shares.json` of the walk) as the source of a payout: weights as they are, unpaid
//! responses unpaid, coverage and intervals carried along. The book names the scores and the spec that it follows from, so the chain
//! from money back to scores stays whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ascribe_ledger::{Accruals, Line};
use ascribe_shares::{Duplicates, SHARES_MAX_BYTES, ShareBook, Summed, Verdict};
use ascribe_store::score_rows::Label;

use crate::error::PayError;
use crate::evidence::{Interval, Shares, Tops};
use crate::files;
use crate::gather::{Gathered, unregistered};
use crate::revenue::Revenue;
use crate::settings::PaySettings;
use crate::terms::PayTerms;
use crate::usage::UseNotes;

/// Reads the book at `path`; `None` for a file that is no JSON object, which is a score file then.
///
/// # Errors
/// A book whose figures contradict each other, the disk's.
pub fn read(path: &Path) -> Result<Option<ShareBook>, PayError> {
    use std::io::Read as _;
    let mut head = [0u8; 1];
    let mut file = std::fs::File::open(path).map_err(|e| PayError::io(path, e))?;
    let n = file.read(&mut head).map_err(|e| PayError::io(path, e))?;
    if n == 0 || head[0] != b'{' {
        return Ok(None);
    }
    let len = file.metadata().map_err(|e| PayError::io(path, e))?.len();
    if len > SHARES_MAX_BYTES as u64 {
        let (expected, found) = (format!("at most {SHARES_MAX_BYTES} bytes"), format!("{len} bytes"));
        return Err(PayError::Content { path: path.to_path_buf(), expected, found });
    }
    Ok(Some(ShareBook::from_json(&files::read(path)?)?))
}

/// The ends of a sum lie within the sums of the ends.
fn widen(intervals: &mut BTreeMap<u32, Interval>, dataset: u32, (low, high): Interval) {
    let ends = intervals.entry(dataset).or_insert((0, 0));
    *ends = ((ends.0 + low).min(1_000_000), (ends.1 + high).min(1_000_000));
}

/// Intervals of shares whose copied parts have gone to the earlier datasets: their ends go the same way, rounded outwards.
fn moved(duplicates: &Duplicates, intervals: &BTreeMap<u32, Interval>) -> BTreeMap<u32, Interval> {
    let mut moved = BTreeMap::new();
    for (&dataset, &(low, high)) in intervals {
        // Ends are at most a million, so the products fit.
        let part = |ppm: u32| {
            let (low, high) = (u64::from(low) * u64::from(ppm), u64::from(high) * u64::from(ppm));
            ((low / 1_000_000) as u32, high.div_ceil(1_000_000) as u32)
        };
        for &(to, ppm) in duplicates.of(dataset) {
            widen(&mut moved, to, part(ppm));
        }
        widen(&mut moved, dataset, part(duplicates.own_ppm(dataset)));
    }
    moved
}

/// Accrues all responses of a book; each gets `⌊funded/n⌋` sub-units, and what is left is dust.
///
/// # Errors
/// The ledger's.
pub fn gather(
    book: &ShareBook,
    terms: &PayTerms,
    settings: &PaySettings,
    funded: u128,
) -> Result<(Accruals, Gathered), PayError> {
    let n_rows: u64 = book.responses.iter().map(|response| response.shares.len() as u64).sum();
    let (mut accruals, mut tops, mut shares) =
        (Accruals::new(&terms.batch), Tops::new(terms, n_rows), Shares::default());
    let n = book.responses.len() as u64;
    let revenue = funded.checked_div(n.into()).unwrap_or(0);
    let (mut cancelled, mut uses, mut parts) = (0, UseNotes::new(terms, n_rows), Vec::new());
    let owner_of = terms.batch.owner_of_dataset();
    for response in &book.responses {
        cancelled += u64::from(response.verdict == Verdict::Cancelled);
        let mut sums: BTreeMap<u32, i64> = BTreeMap::new();
        let mut intervals = BTreeMap::new();
        let payable = response.verdict == Verdict::Payable;
        for share in response.shares.iter().filter(|_| payable) {
            let ordinal = terms.resolve(Label::Text(&book.owners.dataset(share.dataset)?.uuid));
            // Weights have 62 bits; duplicates of one dataset join.
            let sum = sums.entry(ordinal).or_default();
            *sum = sum.saturating_add_unsigned(share.weight);
            widen(&mut intervals, ordinal, (share.low_ppm, share.high_ppm));
        }
        let sums: Vec<Summed> = sums.into_iter().map(|(dataset, score)| Summed { dataset, score }).collect();
        let (sums, _) = terms.holdings.duplicates.apply(&sums, 0);
        let intervals = moved(&terms.holdings.duplicates, &intervals);
        let (known, strangers): (Vec<Summed>, Vec<Summed>) =
            sums.into_iter().filter(|sum| sum.score > 0).partition(|sum| (sum.dataset as usize) < owner_of.len());
        let unknown: u128 = strangers.iter().map(|sum| u128::from(sum.score.unsigned_abs())).sum();
        let line = |sum: &Summed| Line { dataset: sum.dataset, weight: sum.score.unsigned_abs() };
        let mut lines: Vec<Line> = known.iter().map(line).collect();
        lines.sort_unstable_by_key(|line| (owner_of[line.dataset as usize], line.dataset));
        parts.clear();
        let mut part = |dataset, amount| parts.push((dataset, amount));
        accruals.event_parts(&terms.batch, revenue, settings.coverage_ppm, &lines, unknown, &mut part)?;
        uses.response(response.query.0.into(), &parts);
        let interval = |dataset: u32| intervals.get(&dataset).copied();
        tops.response(owner_of, response.query.0.into(), &lines, unknown, &interval);
        shares.response(response.query.0.into(), &lines, unknown, &interval);
    }
    if n > 0 {
        accruals.dust += funded - revenue * u128::from(n);
    }
    let name = |query: u64| Cow::Owned(query.to_string());
    let (names, unregistered_count) = unregistered(terms, &[]);
    let p = &book.provenance;
    let mut notes = vec![format!("shares follow from scores {} of spec {}", p.scores_sha256, p.spec)];
    if p.registry != terms.digest {
        notes.push(format!("shares were decided over registry {}, licences have changed since", p.registry));
    }
    let gathered = Gathered {
        rows: n_rows,
        responses: n,
        paid_responses: accruals.paid_events,
        cancelled,
        unregistered: names,
        unregistered_count,
        method: None,
        blocked: BTreeMap::new(),
        top: tops.named(&name),
        shares: shares.named(&name),
        uses: uses.finish(terms, &|_| None, &Revenue::Even(revenue), Some(format!("shares of spec {}", p.spec))),
        notes,
    };
    Ok((accruals, gathered))
}

#[cfg(test)]
mod tests {
    use ascribe_shares::Derived;

    use super::*;

    /// A third of dataset 2 is a copy of dataset 0: so much of its share, and of both ends, is dataset 0's.
    #[test]
    fn intervals_go_where_shares_go() {
        let duplicates = Duplicates::new(&[Derived { from: 2, to: 0, ppm: 333_333 }]).unwrap();
        let intervals = BTreeMap::from([(0, (100_000, 200_000)), (1, (0, 5)), (2, (300_000, 600_001))]);
        let expected = BTreeMap::from([(0, (199_999, 400_001)), (1, (0, 5)), (2, (200_000, 400_001))]);
        assert_eq!(moved(&duplicates, &intervals), expected);
        assert_eq!(moved(&Duplicates::default(), &intervals), intervals);
        // What had no share of its own gets the part's interval.
        let moved = moved(&duplicates, &BTreeMap::from([(2, (900_000, 1_000_000))]));
        assert_eq!(moved, BTreeMap::from([(0, (299_999, 333_333)), (2, (600_000, 666_667))]));
    }
}
