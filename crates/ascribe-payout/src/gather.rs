//! Rows to accruals: parts of the score file are read by all threads and parted by response; then every response is weighed and
//! accrued. Sums are integers, so neither order nor threads nor chunks can move money.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ascribe_core::Progress;
use ascribe_ledger::{Accruals, Line};
use ascribe_shares::{Holdings, Scored, Summed, sum_rows};
use ascribe_store::StoreError;
use ascribe_store::score_rows::{RowBatch, ScoreRows};

use crate::error::PayError;
use crate::evidence::{ShareLine, Shares, TopResponse, Tops};
use crate::revenue::{Column, Funded, Funding, Refused, Revenue};
use crate::settings::PaySettings;
use crate::spill::{Row, Spill};
use crate::terms::PayTerms;
use crate::usage::{UseNotes, Uses};

/// Strangers that a record names.
const NAMED_STRANGERS: usize = 20;

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// Rows.
    pub rows: u64,
    /// Responses.
    pub responses: u64,
    /// Responses that were paid for.
    pub paid_responses: u64,
    /// Responses whose scores cancelled to rounding.
    pub cancelled: u64,
    /// The first names that no dataset has.
    pub unregistered: Vec<String>,
    /// How many there are.
    pub unregistered_count: u64,
    /// Method whose rows were read.
    pub method: Option<String>,
    /// Datasets that may not be paid.
    pub blocked: BTreeMap<String, String>,
    /// Per owner ordinal, the responses in which it has the largest shares. Empty for many owners.
    pub top: Vec<Vec<TopResponse>>,
    /// Every share, response by response; `None` where there are too many to list.
    pub shares: Option<Vec<ShareLine>>,
    /// What each response gave, for its receipt.
    pub uses: Uses,
    /// What a reader should know of the rows.
    pub notes: Vec<String>,
}

/// Reads all rows and accrues all responses; each gets its own revenue where the rows say it ([`crate::revenue`]), else
/// `⌊funded/n⌋` sub-units, and what is left is dust.
///
/// # Errors
/// Rows that cannot be used, a pool that is not what the rows say, too many owners for a rule, the disk's, a stop on request.
pub fn gather(
    rows: &ScoreRows,
    terms: &PayTerms,
    settings: &PaySettings,
    funding: &Funding,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<(Accruals, Gathered, Funded), PayError> {
    let spill = Spill::new(rows.n_rows(), scratch);
    let (n_rows, n_responses, column) = read_all(rows, terms, &spill, progress)?;
    let (funds, revenue) = column.split(funding, n_responses)?;
    let funded = funds.pool.sub_units()?.plus(funds.rest)?.plus(funding.dust)?.0;
    progress.start("weigh responses", spill.n_parts() as u64, "parts");
    let floor = settings.floor()?;
    let holdings = terms.holdings_as_read()?;
    let controls = terms.controls(&settings.noise_controls)?;
    let work = Work { terms, holdings, controls, settings, floor, spill: &spill, revenue: &revenue, progress };
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Mine::new(terms, n_rows));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads() {
            scope.spawn(|| match work.parts(&next, n_rows) {
                Ok(mine) => {
                    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if let Err(error) = total.merge(mine) {
                        keep_first(&failed, error);
                    }
                }
                Err(error) => keep_first(&failed, error),
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    let Mine { mut accruals, tops, shares, uses, cancelled } =
        total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if n_responses > 0 {
        accruals.dust += revenue.left(funded, n_responses);
    }
    progress.finish(&format!("{} of {n_responses} responses paid for", accruals.paid_events));
    let name = |query: u64| rows.query_text(query).map_or_else(|| Cow::Owned(query.to_string()), Cow::Owned);
    let (unregistered, unregistered_count) = unregistered(terms, &settings.noise_controls);
    let own = "each response pays its own contributors with its own revenue, as the column `revenue` says";
    let notes = if matches!(revenue, Revenue::Own(_)) { vec![own.to_owned()] } else { Vec::new() };
    let gathered = Gathered {
        rows: n_rows,
        responses: n_responses,
        paid_responses: accruals.paid_events,
        cancelled,
        unregistered,
        unregistered_count,
        method: rows.method(),
        blocked: BTreeMap::new(),
        top: tops.named(&name),
        shares: shares.named(&name),
        uses: uses.finish(terms, &|query| rows.query_text(query), &revenue, None),
        notes,
    };
    Ok((accruals, gathered, funds))
}

/// The first names that no dataset has, and how many there are.
pub(crate) fn unregistered(terms: &PayTerms, controls: &[String]) -> (Vec<String>, u64) {
    let mut names = terms.stranger_names();
    names.retain(|name| !controls.contains(name));
    let count = names.len() as u64;
    names.truncate(NAMED_STRANGERS);
    (names, count)
}

fn keep_first(failed: &Mutex<Option<PayError>>, error: PayError) {
    failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
}

/// Fills the spill; returns the numbers of rows and responses, and what they say of revenue.
fn read_all(
    rows: &ScoreRows,
    terms: &PayTerms,
    spill: &Spill,
    progress: &dyn Progress,
) -> Result<(u64, u64, Column), PayError> {
    progress.start("read scores", rows.n_rows().unwrap_or(0), "rows");
    let (n_rows, seen) = (AtomicU64::new(0), Mutex::new((HashSet::<u64>::new(), Column::default())));
    let resolve = |label: ascribe_store::score_rows::Label<'_>| terms.resolve(label);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let read_parts = || -> Result<(), PayError> {
        let (mut mine, mut column) = (HashSet::new(), Column::default());
        let mut last = None;
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= rows.n_parts() {
                break;
            }
            let mut push_error = None;
            let read = rows.read_part(part, &resolve, &mut |batch: &RowBatch| {
                for query in &batch.queries {
                    if last != Some(*query) {
                        mine.insert(*query);
                        last = Some(*query);
                    }
                }
                n_rows.fetch_add(batch.scores.len() as u64, Ordering::Relaxed);
                progress.advance(batch.scores.len() as u64);
                let pushed = if progress.stop_requested() { Err(PayError::Stopped) } else { spill.push(batch) };
                let taken = column.take(batch).map_err(|refused| refusal(rows, refused));
                pushed.and(taken).map_err(|error| {
                    // The reader knows only errors of its own; ours is told below.
                    push_error = Some(error);
                    StoreError::Missing { path: Default::default(), hint: "stopped" }
                })
            });
            match (push_error, read) {
                (Some(error), _) => return Err(error),
                (None, read) => read?,
            }
        }
        let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.0.extend(mine);
        seen.1.merge(column).map_err(|refused| refusal(rows, refused))
    };
    std::thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads().min(rows.n_parts().max(1)) {
            scope.spawn(|| {
                if let Err(error) = read_parts() {
                    keep_first(&failed, error);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    let (queries, column) = seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (n_rows, n_queries) = (n_rows.into_inner(), queries.len() as u64);
    progress.finish(&format!("{n_rows} rows of {n_queries} responses"));
    Ok((n_rows, n_queries, column))
}

/// A revenue that cannot stand, with the response as the file calls it.
fn refusal(rows: &ScoreRows, refused: Refused) -> PayError {
    let path = rows.path().to_path_buf();
    match refused {
        Refused::Amount(error) => {
            let expected = "column `revenue`: sub-units as an integer, or an amount such as \"0.0012 USD\"".to_owned();
            PayError::Content { path, expected, found: error.to_string() }
        }
        Refused::Currency { first, second } => {
            let expected = "column `revenue`: one currency".to_owned();
            PayError::Content { path, expected, found: format!("{first} and {second}") }
        }
        Refused::Differs { query, first, second } => {
            let name = rows.query_text(query).unwrap_or_else(|| query.to_string());
            let expected = format!("column `revenue`: the same on all rows of response {name:?}");
            PayError::Content { path, expected, found: format!("{first} and {second} sub-units") }
        }
    }
}

struct Work<'a> {
    terms: &'a PayTerms,
    holdings: Holdings,
    controls: Vec<u32>,
    settings: &'a PaySettings,
    floor: f64,
    spill: &'a Spill,
    revenue: &'a Revenue,
    progress: &'a dyn Progress,
}

struct Mine {
    accruals: Accruals,
    tops: Tops,
    shares: Shares,
    uses: UseNotes,
    cancelled: u64,
}

impl Mine {
    fn new(terms: &PayTerms, n_rows: u64) -> Self {
        let (accruals, tops, shares) = (Accruals::new(&terms.batch), Tops::new(terms, n_rows), Shares::default());
        Self { accruals, tops, shares, uses: UseNotes::new(terms, n_rows), cancelled: 0 }
    }

    fn merge(&mut self, other: Self) -> Result<(), PayError> {
        self.tops.merge(other.tops);
        self.shares.merge(other.shares);
        self.uses.merge(other.uses);
        self.cancelled += other.cancelled;
        Ok(self.accruals.merge(&other.accruals)?)
    }
}

impl Work<'_> {
    /// Takes parts until none is left.
    fn parts(&self, next: &AtomicUsize, n_rows: u64) -> Result<Mine, PayError> {
        let mut mine = Mine::new(self.terms, n_rows);
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= self.spill.n_parts() {
                return Ok(mine);
            }
            let rows = self.spill.sorted(part)?;
            let mut scored = Vec::new();
            for response in rows.chunk_by(|a, b| a.query == b.query) {
                self.response(response, &mut scored, &mut mine)?;
            }
            self.progress.advance(1);
            if self.progress.stop_requested() {
                return Err(PayError::Stopped);
            }
        }
    }

    fn response(&self, rows: &[Row], scored: &mut Vec<Scored>, mine: &mut Mine) -> Result<(), PayError> {
        scored.clear();
        scored.extend(rows.iter().map(|row| Scored { dataset: row.dataset, score: row.score }));
        let query = rows[0].query;
        let (mut sums, mut floor) = sum_rows(query as usize, scored, self.floor)?;
        if !self.controls.is_empty() {
            let control = |sum: &Summed| self.controls.contains(&sum.dataset);
            let noise = sums.iter().filter(|sum| control(sum)).map(|sum| sum.score.unsigned_abs()).max();
            floor = floor.max(noise.unwrap_or(0));
            sums.retain(|sum| !control(sum));
        }
        let weighed = self.settings.rule.weigh(&self.holdings, &sums, floor)?;
        mine.cancelled += u64::from(weighed.cancelled);
        let lines: Vec<Line> = weighed.lines.iter().map(|&(dataset, weight)| Line { dataset, weight }).collect();
        let coverage = self.settings.coverage_ppm;
        let (revenue, mut parts) = (self.revenue.of(query), Vec::with_capacity(lines.len()));
        let mut part = |dataset, amount| parts.push((dataset, amount));
        mine.accruals.event_parts(&self.terms.batch, revenue, coverage, &lines, weighed.unknown, &mut part)?;
        mine.uses.response(query, &parts);
        let owner_of = self.terms.batch.owner_of_dataset();
        mine.tops.response(owner_of, query, &lines, weighed.unknown, &|_| None);
        mine.shares.response(query, &lines, weighed.unknown, &|_| None);
        Ok(())
    }
}
