//! What a shard, or any part of one, has to say: sums and best rows per dataset. Joining is associative and commutative.

use std::collections::BTreeMap;

use ascribe_core::ExampleId;
use serde::Serialize;

use super::exact_sum::ExactSum;
use crate::error::IndexError;

/// First bytes of a partial answer, with the version of its layout. It lives as long as its job: no other version is read.
const MAGIC: [u8; 8] = *b"ASCPART1";
/// More queries or rows per query than this are not a partial answer but an attempt on our memory.
const COUNT_MAX: usize = 1 << 24;

/// A row and its score.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Best {
    /// The example, as the store's `example_id` has it.
    pub id: u64,
    /// Its score.
    pub score: f64,
}

impl Best {
    /// Better first: higher score, then lower id.
    fn rank(&self, other: &Self) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

#[derive(Clone, Debug)]
struct OfDataset {
    rows: u64,
    /// Per query.
    sums: Vec<ExactSum>,
    /// Per query; kept short, in no order until the end.
    best: Vec<Vec<Best>>,
}

/// The answer of a part of the rows.
#[derive(Clone, Debug)]
pub struct Partial {
    n_queries: usize,
    k: usize,
    datasets: BTreeMap<u32, OfDataset>,
}

/// What a dataset's rows add up to.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct DatasetAnswer {
    /// Its ordinal.
    pub dataset: u32,
    /// Its rows.
    pub rows: u64,
    /// Sum of its rows' scores, per query: exact, rounded once.
    pub scores: Vec<f64>,
}

/// The answer of all rows.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Answer {
    /// By ordinal.
    pub datasets: Vec<DatasetAnswer>,
    /// The best rows of each query, best first, ties by id.
    pub hits: Vec<Vec<Best>>,
}

impl Partial {
    /// The answer of no rows.
    pub fn new(n_queries: usize, k: usize) -> Self {
        Self { n_queries, k, datasets: BTreeMap::new() }
    }

    /// Takes in one row with its score under every query.
    ///
    /// # Panics
    /// If there are more or fewer scores than queries, or one is not finite.
    pub fn push(&mut self, id: ExampleId, scores: &[f64]) {
        assert_eq!(scores.len(), self.n_queries, "a row needs a score for every query");
        let (n, k) = (self.n_queries, self.k);
        let of = self.datasets.entry(id.dataset).or_insert_with(|| OfDataset::new(n));
        of.rows += 1;
        for ((&score, sum), best) in scores.iter().zip(&mut of.sums).zip(&mut of.best) {
            sum.add(score);
            best.push(Best { id: id.to_u64(), score });
            shorten(best, k, 4 * k + 16);
        }
    }

    /// Takes in another part's answer.
    ///
    /// # Panics
    /// If it is of other queries or another `k`.
    pub fn merge(&mut self, other: Self) {
        assert_eq!((self.n_queries, self.k), (other.n_queries, other.k), "parts of one job are joined");
        let n = self.n_queries;
        for (dataset, theirs) in other.datasets {
            let ours = self.datasets.entry(dataset).or_insert_with(|| OfDataset::new(n));
            ours.rows += theirs.rows;
            for (sum, more) in ours.sums.iter_mut().zip(&theirs.sums) {
                sum.merge(more);
            }
            for (best, more) in ours.best.iter_mut().zip(theirs.best) {
                best.extend(more);
                shorten(best, self.k, 4 * self.k + 16);
            }
        }
    }

    /// Rows that were taken in.
    pub fn n_rows(&self) -> u64 {
        self.datasets.values().map(|of| of.rows).sum()
    }

    /// Bytes in memory, about.
    pub fn size(&self) -> usize {
        self.datasets.len() * self.n_queries * (size_of::<ExactSum>() + (4 * self.k + 16) * size_of::<Best>())
    }

    /// The answer: sums rounded, the best of all datasets in order.
    pub fn finish(mut self) -> Answer {
        let mut hits = vec![Vec::new(); self.n_queries];
        let mut datasets = Vec::with_capacity(self.datasets.len());
        for (dataset, of) in &mut self.datasets {
            let scores = of.sums.iter().map(ExactSum::value).collect();
            datasets.push(DatasetAnswer { dataset: *dataset, rows: of.rows, scores });
            for (all, best) in hits.iter_mut().zip(&mut of.best) {
                all.append(best);
            }
        }
        for best in &mut hits {
            shorten(best, self.k, 0);
        }
        Answer { datasets, hits }
    }

    /// The partial answer as bytes: the same for the same rows, whatever way they came together.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for count in [self.n_queries, self.k, self.datasets.len()] {
            out.extend((count as u64).to_le_bytes());
        }
        for (dataset, of) in &self.datasets {
            out.extend(dataset.to_le_bytes());
            out.extend(of.rows.to_le_bytes());
            for sum in &of.sums {
                sum.write(&mut out);
            }
            for best in &of.best {
                let mut best = best.clone();
                shorten(&mut best, self.k, 0);
                out.extend((best.len() as u32).to_le_bytes());
                for hit in best {
                    out.extend(hit.id.to_le_bytes());
                    out.extend(hit.score.to_bits().to_le_bytes());
                }
            }
        }
        out
    }

    /// Reads what [`Partial::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`IndexError::Partial`] if it is something else, cut short, or not of `expected` (queries, `k`).
    pub fn from_bytes(mut bytes: &[u8], expected: Option<(usize, usize)>) -> Result<Self, IndexError> {
        let wrong = |expected: &'static str| IndexError::Partial { expected };
        let bytes = &mut bytes;
        if take::<8>(bytes) != Some(MAGIC) {
            return Err(wrong("the magic number of version 1"));
        }
        let mut count = || {
            let count = usize::try_from(u64::from_le_bytes(take(bytes)?)).ok()?;
            (count <= COUNT_MAX).then_some(count)
        };
        let counts = (count(), count(), count());
        let (Some(n_queries), Some(k), Some(n_datasets)) = counts else { return Err(wrong("three counts")) };
        if expected.is_some_and(|expected| expected != (n_queries, k)) {
            return Err(wrong("the queries and k of this job"));
        }
        let mut partial = Self::new(n_queries, k);
        for _ in 0..n_datasets {
            let (dataset, of) =
                OfDataset::read(bytes, n_queries, k).ok_or_else(|| wrong("a dataset's sums and rows"))?;
            if partial.datasets.insert(dataset, of).is_some() {
                return Err(wrong("every dataset once"));
            }
        }
        if bytes.is_empty() { Ok(partial) } else { Err(wrong("nothing behind the last dataset")) }
    }
}

impl OfDataset {
    fn new(n_queries: usize) -> Self {
        Self { rows: 0, sums: vec![ExactSum::default(); n_queries], best: vec![Vec::new(); n_queries] }
    }

    fn read(bytes: &mut &[u8], n_queries: usize, k: usize) -> Option<(u32, Self)> {
        let dataset = u32::from_le_bytes(take(bytes)?);
        let rows = u64::from_le_bytes(take(bytes)?);
        let mut sums = Vec::new();
        for _ in 0..n_queries {
            sums.push(ExactSum::read(bytes)?);
        }
        let mut best = Vec::new();
        for _ in 0..n_queries {
            let n = u32::from_le_bytes(take(bytes)?) as usize;
            if n > k {
                return None;
            }
            let mut hits = Vec::new();
            for _ in 0..n {
                let id = u64::from_le_bytes(take(bytes)?);
                let score = f64::from_bits(u64::from_le_bytes(take(bytes)?));
                if !score.is_finite() {
                    return None;
                }
                hits.push(Best { id, score });
            }
            best.push(hits);
        }
        Some((dataset, Self { rows, sums, best }))
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (&head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(head)
}

/// Keeps the `k` best, in order, once there are more than `limit`.
fn shorten(best: &mut Vec<Best>, k: usize, limit: usize) {
    if best.len() > limit {
        best.sort_unstable_by(Best::rank);
        best.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(rows: &[(u32, u32, [f64; 2])], k: usize) -> Partial {
        let mut partial = Partial::new(2, k);
        rows.iter().for_each(|(dataset, idx, scores)| partial.push(ExampleId { dataset: *dataset, idx: *idx }, scores));
        partial
    }

    #[test]
    fn by_hand() {
        let rows = [(0, 0, [1.0, -1.0]), (0, 1, [3.0, 0.5]), (2, 0, [3.0, 0.25])];
        let answer = filled(&rows, 2).finish();
        let scores: Vec<_> = answer.datasets.iter().map(|d| (d.dataset, d.rows, d.scores.clone())).collect();
        assert_eq!(scores, [(0, 2, vec![4.0, -0.5]), (2, 1, vec![3.0, 0.25])]);
        let ids = |q: usize| answer.hits[q].iter().map(|hit| hit.id).collect::<Vec<_>>();
        assert_eq!((ids(0), ids(1)), (vec![1, 2 << 32], vec![1, 2 << 32]));
    }

    #[test]
    fn strange_bytes_are_refused() {
        let good = filled(&[(0, 0, [1.0, 2.0])], 3).to_bytes();
        assert!(Partial::from_bytes(&good, Some((2, 3))).is_ok());
        assert!(Partial::from_bytes(&good, Some((2, 4))).is_err());
        for cut in 0..good.len() {
            assert!(Partial::from_bytes(&good[..cut], None).is_err(), "{cut} bytes of {}", good.len());
        }
        assert!(Partial::from_bytes(&[good.as_slice(), &[0]].concat(), None).is_err());
        let mut many = good;
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Partial::from_bytes(&many, None).is_err());
    }

    proptest! {
        #[test]
        fn cuts_and_order_leave_no_trace(
            rows in prop::collection::vec((0_u32..4, -1e9_f64..1e9, prop::num::f64::NORMAL), 0..80),
            cuts in prop::collection::vec(0_usize..80, 0..5),
            k in 0_usize..6,
        ) {
            let rows: Vec<(u32, u32, [f64; 2])> =
                rows.iter().enumerate().map(|(i, &(d, a, b))| (d, i as u32, [a, b])).collect();
            let whole = filled(&rows, k);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).collect();
            cuts.extend([0, rows.len()]);
            cuts.sort_unstable();
            let mut joined = Partial::new(2, k);
            for pair in cuts.windows(2).rev() {
                let part = filled(&rows[pair[0]..pair[1]], k).to_bytes();
                joined.merge(Partial::from_bytes(&part, Some((2, k))).expect("what was written can be read"));
            }
            prop_assert_eq!(joined.to_bytes(), whole.to_bytes());
            prop_assert_eq!(joined.finish(), whole.finish());
        }
    }
}
