//! Held-out predictions: fit on one half, predict the other, many times.
//!
//! Halves are drawn over queries (each dataset's queries dealt evenly to both sides), or over datasets (all queries of
//! half of the datasets are held out: does a calibration carry over to sources it never saw?). Every split gives two
//! folds, so every query is held out exactly once per split.

use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use super::calibration::{Calibration, Channel};
use super::fit::{FitOptions, check_shares, fit};
use crate::error::MethodError;

/// What is held out together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holdout {
    /// Half of the queries of every dataset.
    Queries,
    /// All queries of half of the datasets.
    Datasets,
}

impl Holdout {
    const fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::Datasets => "datasets",
        }
    }
}

/// True shares of a set of queries, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct TrueShares<'a> {
    /// `[Q, K]`; the rows of `usable` are shares (not negative, sum 1), the others are not read.
    pub shares: ArrayView2<'a, f64>,
    /// Queries that have true shares.
    pub usable: &'a [usize],
    /// `[Q]`: ordinal of the dataset that each query was held out from (its stratum).
    pub own: &'a [u32],
}

impl TrueShares<'_> {
    pub(super) fn check(&self) -> Result<(), MethodError> {
        if self.own.len() != self.shares.nrows() {
            return Err(MethodError::shape("datasets of the queries", self.shares.nrows(), self.own.len()));
        }
        check_shares(self.shares, self.usable)
    }
}

/// How queries are split, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Splits {
    /// What is held out together.
    pub holdout: Holdout,
    /// Splits; each gives two folds.
    pub n: usize,
    /// Seed of the streams `"crossfit/<holdout>/<split>"`.
    pub seed: u64,
}

/// One fit and its predictions for queries it never saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// Queries that were fitted, rising.
    pub fitted: Vec<usize>,
    /// Queries that were held out, rising; none of them is in `fitted`.
    pub held_out: Vec<usize>,
    /// What the fit found.
    pub calibration: Calibration,
    /// Shares of the held-out queries, `[held_out, K]`.
    pub shares: Array2<f64>,
}

/// All folds of a cross-fit.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossFit {
    /// Two folds per split, in split order.
    pub folds: Vec<Fold>,
    n_queries: usize,
    n_datasets: usize,
}

impl CrossFit {
    /// A measure per query, averaged over the folds that held it out; `None` where it was never defined.
    ///
    /// `measure(query, shares)` sees held-out shares only. Feed the result to a bootstrap over queries.
    pub fn per_query(&self, measure: impl Fn(usize, ArrayView1<'_, f64>) -> Option<f64>) -> Vec<Option<f64>> {
        let mut sums = vec![(0.0, 0u32); self.n_queries];
        for fold in &self.folds {
            for (&query, shares) in fold.held_out.iter().zip(fold.shares.rows()) {
                if let Some(value) = measure(query, shares) {
                    sums[query].0 += value;
                    sums[query].1 += 1;
                }
            }
        }
        sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / f64::from(n))).collect()
    }

    /// Mean held-out shares, `[Q, K]`; zeros for a query that was never held out.
    ///
    /// For showing and for residuals. Averages of several fits are a little better than one fit: report
    /// [`CrossFit::per_query`] as the held-out error instead.
    pub fn mean_shares(&self) -> Array2<f64> {
        let mut mean = Array2::zeros((self.n_queries, self.n_datasets));
        let mut counts = vec![0.0f64; self.n_queries];
        for fold in &self.folds {
            for (&query, shares) in fold.held_out.iter().zip(fold.shares.rows()) {
                mean.row_mut(query).scaled_add(1.0, &shares);
                counts[query] += 1.0;
            }
        }
        for (mut row, count) in mean.rows_mut().into_iter().zip(counts) {
            row /= count.max(1.0);
        }
        mean
    }
}

/// Fits on halves, predicts the other halves.
///
/// Channels are `[Q, K]` like the truth; `n` splits give `2·n` folds. Folds run side by side; nothing depends on threads.
/// Cost: `2·n` fits.
///
/// # Errors
/// Those of [`fit`]; fewer than two usable queries, or fewer than two datasets when datasets are held out; no split;
/// `own` of another length.
pub fn cross_fit(
    channels: &[Channel<'_>],
    truth: &TrueShares<'_>,
    splits: Splits,
    options: &FitOptions,
) -> Result<CrossFit, MethodError> {
    truth.check()?;
    if splits.n == 0 {
        return Err(MethodError::Empty { what: "the list of splits" });
    }
    let mut sides = Vec::with_capacity(2 * splits.n);
    for split in 0..splits.n {
        let mut stream = Stream::new(splits.seed, &format!("crossfit/{}/{split}", splits.holdout.name()));
        let (a, b) = halves(truth, splits.holdout, &mut stream)?;
        sides.push((a.clone(), b.clone()));
        sides.push((b, a));
    }
    let folds: Result<Vec<Fold>, MethodError> = sides
        .into_par_iter()
        .map(|(fitted, held_out)| {
            let calibration = fit(channels, truth.shares, &fitted, options)?;
            let selected: Vec<Array2<f64>> =
                channels.iter().map(|c| c.scores.select(ndarray::Axis(0), &held_out)).collect();
            let unseen: Vec<Channel<'_>> =
                channels.iter().zip(&selected).map(|(c, s)| Channel { name: c.name, scores: s.view() }).collect();
            let shares = calibration.predict(&unseen)?;
            Ok(Fold { fitted, held_out, calibration, shares })
        })
        .collect();
    Ok(CrossFit { folds: folds?, n_queries: truth.shares.nrows(), n_datasets: truth.shares.ncols() })
}

/// The halves that split `number` of `splits` deals all queries into; `own` is each query's dataset.
pub(crate) fn halves_of(own: &[u32], splits: Splits, number: usize) -> Result<(Vec<usize>, Vec<usize>), MethodError> {
    let usable: Vec<usize> = (0..own.len()).collect();
    let shares = ArrayView2::from_shape((own.len(), 0), &[]).expect("a table without columns needs no numbers");
    let mut stream = Stream::new(splits.seed, &format!("crossfit/{}/{number}", splits.holdout.name()));
    halves(&TrueShares { shares, usable: &usable, own }, splits.holdout, &mut stream)
}

/// Two halves of the usable queries, both rising.
pub(super) fn halves(
    truth: &TrueShares<'_>,
    holdout: Holdout,
    stream: &mut Stream,
) -> Result<(Vec<usize>, Vec<usize>), MethodError> {
    let TrueShares { usable, own, .. } = *truth;
    let mut datasets: Vec<u32> = usable.iter().map(|&q| own[q]).collect();
    datasets.sort_unstable();
    datasets.dedup();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    match holdout {
        Holdout::Queries => {
            // One deck: each dataset's queries shuffled, datasets in order, dealt to the two sides in turn.
            let mut deck = Vec::with_capacity(usable.len());
            for dataset in datasets {
                let mut own_queries: Vec<usize> = usable.iter().copied().filter(|&q| own[q] == dataset).collect();
                stream.shuffle(&mut own_queries);
                deck.append(&mut own_queries);
            }
            for (i, query) in deck.into_iter().enumerate() {
                if i % 2 == 0 { a.push(query) } else { b.push(query) }
            }
        }
        Holdout::Datasets => {
            stream.shuffle(&mut datasets);
            let first = &datasets[..datasets.len() / 2];
            (a, b) = usable.iter().partition(|&&q| first.contains(&own[q]));
        }
    }
    if a.is_empty() || b.is_empty() {
        let expected = format!("at least two {} with true shares", holdout.name());
        return Err(MethodError::shape("what can be held out", expected, usable.len()));
    }
    a.sort_unstable();
    b.sort_unstable();
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(
        usable: &[usize],
        own: &[u32],
        holdout: Holdout,
        seed: u64,
    ) -> Result<(Vec<usize>, Vec<usize>), MethodError> {
        let truth = TrueShares { shares: ArrayView2::from_shape((own.len(), 0), &[]).unwrap(), usable, own };
        halves(&truth, holdout, &mut Stream::new(seed, "halves-test"))
    }

    #[test]
    fn halves_of_queries_are_balanced_per_dataset() {
        let own: Vec<u32> = (0..35).map(|q| q / 7).collect();
        let usable: Vec<usize> = (0..35).filter(|q| q % 9 != 0).collect();
        let (a, b) = cut(&usable, &own, Holdout::Queries, 1).unwrap();
        let mut all = [a.clone(), b.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, usable);
        for dataset in 0..5 {
            let count = |side: &[usize]| side.iter().filter(|&&q| own[q] == dataset).count() as i64;
            assert!((count(&a) - count(&b)).abs() <= 1, "dataset {dataset}");
        }
        let other = cut(&usable, &own, Holdout::Queries, 2).unwrap();
        assert_ne!(a, other.0);
    }

    #[test]
    fn halves_of_datasets_share_no_dataset() {
        let own: Vec<u32> = (0..30).map(|q| q % 5).collect();
        let usable: Vec<usize> = (0..30).collect();
        let (a, b) = cut(&usable, &own, Holdout::Datasets, 1).unwrap();
        assert_eq!(a.len() + b.len(), 30);
        assert!(a.iter().all(|&q| b.iter().all(|&r| own[q] != own[r])));
        let one = vec![0u32; 30];
        assert!(cut(&usable, &one, Holdout::Datasets, 1).is_err());
        assert!(cut(&[3], &own, Holdout::Queries, 1).is_err());
    }
}
