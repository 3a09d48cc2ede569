//! What a run says about single responses: the largest shares of each owner, and a line per share while there are few enough.

use std::borrow::Cow;

use ascribe_ledger::Line;

use crate::terms::PayTerms;

/// Responses listed per owner in statements.
pub const TOP_RESPONSES: usize = 10;
/// Share lines beyond which `shares.csv` is not written.
pub const SHARE_LINES_MAX: usize = 200_000;
/// Owners beyond which nobody's responses are listed.
const TOP_OWNERS_MAX: usize = 20_000;
/// Rows beyond which nobody's responses are listed.
const TOP_ROWS_MAX: u64 = 1 << 24;

/// Lower and upper end of a share, in ppm.
pub type Interval = (u32, u32);
/// The interval of a dataset's share of the response at hand, where it is known.
pub type IntervalOf<'a> = dyn Fn(u32) -> Option<Interval> + 'a;
/// The name of a response.
pub type NameOf<'a> = dyn Fn(u64) -> Cow<'a, str> + 'a;

/// A response in which an owner has a large share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopResponse {
    /// Its share, in ppm.
    pub share_ppm: u32,
    /// The response.
    pub response: String,
    /// Lower and upper end of the share in ppm, where the scores came with intervals.
    pub interval: Option<Interval>,
}

/// One dataset's share of one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareLine {
    /// The response.
    pub response: String,
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Its share, in ppm, rounded down.
    pub share_ppm: u32,
    /// Lower and upper end in ppm, where the scores came with intervals.
    pub interval: Option<Interval>,
}

fn ppm_of(weight: u128, total: u128) -> u32 {
    // Weights stay below 2^63 each, so a million times their sum fits.
    (weight * 1_000_000).checked_div(total).unwrap_or(0) as u32
}

fn total(lines: &[Line], unknown: u128) -> u128 {
    lines.iter().map(|line| u128::from(line.weight)).sum::<u128>() + unknown
}

type Found = (u32, u64, Option<Interval>);

/// The largest shares of each owner.
pub(crate) struct Tops(Vec<Vec<Found>>);

impl Tops {
    pub(crate) fn new(terms: &PayTerms, n_rows: u64) -> Self {
        let n_owners = terms.batch.owners().len();
        Self(vec![Vec::new(); if n_owners <= TOP_OWNERS_MAX && n_rows <= TOP_ROWS_MAX { n_owners } else { 0 }])
    }

    /// Takes note of a response whose lines stand in the order of owners.
    pub(crate) fn response(
        &mut self,
        owner_of: &[u32],
        query: u64,
        lines: &[Line],
        unknown: u128,
        interval: &IntervalOf<'_>,
    ) {
        if self.0.is_empty() {
            return;
        }
        let total = total(lines, unknown);
        for group in lines.chunk_by(|a, b| owner_of[a.dataset as usize] == owner_of[b.dataset as usize]) {
            let ppm = ppm_of(group.iter().map(|line| u128::from(line.weight)).sum(), total);
            // The ends of a sum lie within the sums of the ends.
            let both = group.iter().try_fold((0u32, 0u32), |(low, high), line| {
                let (l, h) = interval(line.dataset)?;
                Some(((low + l).min(1_000_000), (high + h).min(1_000_000)))
            });
            let list = &mut self.0[owner_of[group[0].dataset as usize] as usize];
            list.push((ppm, query, both));
            if list.len() > 16 * TOP_RESPONSES {
                shorten(list);
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            mine.extend(theirs);
        }
    }

    pub(crate) fn named(self, name: &NameOf<'_>) -> Vec<Vec<TopResponse>> {
        let list = |mut list: Vec<Found>| {
            shorten(&mut list);
            let one = |(share_ppm, query, interval): Found| TopResponse {
                share_ppm,
                response: name(query).into_owned(),
                interval,
            };
            let mut named: Vec<TopResponse> = list.into_iter().map(one).collect();
            named.sort_by(|a, b| b.share_ppm.cmp(&a.share_ppm).then_with(|| a.response.cmp(&b.response)));
            named
        };
        self.0.into_iter().map(list).collect()
    }
}

/// Keeps the best; of equal shares the smaller response.
fn shorten(list: &mut Vec<Found>) {
    list.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    list.truncate(TOP_RESPONSES);
}

/// Every share of every response, until there are too many.
#[derive(Default)]
pub(crate) struct Shares {
    lines: Vec<(u64, u32, u32, Option<Interval>)>,
    count: usize,
}

impl Shares {
    pub(crate) fn response(&mut self, query: u64, lines: &[Line], unknown: u128, interval: &IntervalOf<'_>) {
        self.count += lines.len();
        if self.count > SHARE_LINES_MAX {
            self.lines = Vec::new();
            return;
        }
        let total = total(lines, unknown);
        let line = |line: &Line| (query, line.dataset, ppm_of(line.weight.into(), total), interval(line.dataset));
        self.lines.extend(lines.iter().map(line));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.count += other.count;
        if self.count <= SHARE_LINES_MAX {
            self.lines.extend(other.lines);
        } else {
            self.lines = Vec::new();
        }
    }

    /// Responses in the order of their numbers, or of their names where they have names.
    pub(crate) fn named(mut self, name: &NameOf<'_>) -> Option<Vec<ShareLine>> {
        if self.count > SHARE_LINES_MAX {
            return None;
        }
        self.lines.sort_unstable();
        let line = |(query, dataset, share_ppm, interval): (u64, u32, u32, Option<Interval>)| ShareLine {
            response: name(query).into_owned(),
            dataset,
            share_ppm,
            interval,
        };
        let mut named: Vec<ShareLine> = self.lines.into_iter().map(line).collect();
        // Numbers of named responses are hashes; numbers that are numbers keep their order, because it is the sort above.
        if named.iter().any(|line| line.response.parse::<u64>().is_err()) {
            named.sort_by(|a, b| a.response.cmp(&b.response).then(a.dataset.cmp(&b.dataset)));
        }
        Some(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_listed_in_order_until_there_are_too_many() {
        let lines = [Line { dataset: 0, weight: 3 }, Line { dataset: 2, weight: 1 }];
        let mut shares = Shares::default();
        shares.response(10, &lines, 4, &|dataset| (dataset == 2).then_some((1, 9)));
        let mut other = Shares::default();
        other.response(9, &lines[..1], 0, &|_| None);
        shares.merge(other);
        let named = shares.named(&|query| Cow::Owned(query.to_string())).unwrap();
        let seen: Vec<_> = named.iter().map(|l| (l.response.as_str(), l.dataset, l.share_ppm, l.interval)).collect();
        assert_eq!(seen, [("9", 0, 1_000_000, None), ("10", 0, 375_000, None), ("10", 2, 125_000, Some((1, 9)))]);
        let mut many = Shares::default();
        (0..=SHARE_LINES_MAX as u64).for_each(|query| many.response(query, &lines[..1], 0, &|_| None));
        assert!(many.named(&|_| Cow::Borrowed("")).is_none());
    }
}
