//! Shares that a policy has decided already (`shares.json` of the walk) as the source of a payout: weights as they are, unpaid
//! responses unpaid, coverage and intervals carried along. The book names the scores and the spec that it follows from, so the chain
//! from money back to scores stays whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ascribe_ledger::{Accruals, Line};
use ascribe_shares::{SHARES_MAX_BYTES, ShareBook, Summed, Verdict};
use ascribe_store::score_rows::Label;

use crate::error::PayError;
use crate::evidence::{Shares, Tops};
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
            let ends = intervals.entry(ordinal).or_insert((0u32, 0u32));
            *ends = ((ends.0 + share.low_ppm).min(1_000_000), (ends.1 + share.high_ppm).min(1_000_000));
        }
        let sums: Vec<Summed> = sums.into_iter().map(|(dataset, score)| Summed { dataset, score }).collect();
        let (sums, _) = terms.holdings.duplicates.apply(&sums, 0);
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
