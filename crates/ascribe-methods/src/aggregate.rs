//! From example scores to dataset scores, for methods that are not linear in the row.
//!
//! Influence needs none of this: its dataset score is an exact sum (see `dot::dataset_scores`). Similarity does: the sum
//! of a thousand weak similarities says nothing.

use ascribe_core::ExampleId;
use ascribe_linalg::top_k;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use crate::error::MethodError;

/// How the examples of one dataset become one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Aggregate {
    /// Sum over all examples.
    Sum,
    /// Mean over all examples.
    Mean,
    /// Mean over the k best examples (all, when the dataset has fewer).
    TopMean {
        /// Examples that count; at least 1.
        k: usize,
    },
    /// [`exchanged`] sums: a dataset's examples against as many of the others.
    Exchange,
}

/// Sums over datasets against what takes their place: `S_k − n_k/(n − n_k) · Σ_{j≠k} S_j`.
///
/// A training without dataset k that has as many steps draws every other example n/(n − n_k) times as often: to first order it loses
/// the sum over k and wins n_k times the mean of the others. `sums` is `[Q, K]`, `sizes` the number of examples of each dataset; units
/// are those of the sums. A dataset without examples gets 0, one that is alone keeps its sum: nothing takes its place. Linear in the
/// sums. Deterministic: sums in f64 in dataset order. Cost `Q·K`.
///
/// Source: first-order influence (arXiv:1703.04730) of the weights that leaving out gives.
///
/// # Errors
/// Another number of sizes than columns.
pub fn exchanged(sums: ArrayView2<'_, f64>, sizes: &[usize]) -> Result<Array2<f64>, MethodError> {
    if sizes.len() != sums.ncols() {
        return Err(MethodError::shape("sizes of datasets", sums.ncols(), sizes.len()));
    }
    let all: usize = sizes.iter().sum();
    let mut out = sums.to_owned();
    for mut row in out.rows_mut() {
        let total: f64 = row.iter().sum();
        for (value, &size) in row.iter_mut().zip(sizes) {
            match all - size {
                _ if size == 0 => *value = 0.0,
                0 => {}
                others => *value -= size as f64 / others as f64 * (total - *value),
            }
        }
    }
    Ok(out)
}

/// Examples of each dataset, `[K]`.
///
/// # Errors
/// An ordinal of `n_datasets` or more.
pub fn sizes(examples: &[ExampleId], n_datasets: usize) -> Result<Vec<usize>, MethodError> {
    let mut out = vec![0; n_datasets];
    for id in examples {
        match out.get_mut(id.dataset as usize) {
            Some(n) => *n += 1,
            None => {
                let found = format!("{} of example {id}", id.dataset);
                return Err(MethodError::shape("dataset ordinal", format!("below {n_datasets}"), found));
            }
        }
    }
    Ok(out)
}

/// `[Q, N]` example scores → `[Q, K]` dataset scores; the dataset of a column is the one in its id.
///
/// A dataset without examples gets 0. Sums in f64 in column order; rows side by side. Cost `Q·N`.
///
/// # Errors
/// Ids that do not fit the table, ordinals of `n_datasets` or more, NaN, `k = 0`.
pub fn to_datasets(
    scores: ArrayView2<'_, f32>,
    examples: &[ExampleId],
    n_datasets: usize,
    how: Aggregate,
) -> Result<Array2<f64>, MethodError> {
    if scores.ncols() != examples.len() {
        return Err(MethodError::shape("columns of the score table", examples.len(), scores.ncols()));
    }
    if how == (Aggregate::TopMean { k: 0 }) {
        return Err(MethodError::Parameter { field: "k of the top mean", expected: "at least 1", found: 0.0 });
    }
    let sizes = sizes(examples, n_datasets)?;
    if let Some(((row, column), &v)) = scores.indexed_iter().find(|(_, v)| !v.is_finite()) {
        let what = "example scores".to_owned();
        return Err(MethodError::BadValue { what, row, column, found: f64::from(v) });
    }
    let mut columns_of: Vec<Vec<usize>> = vec![Vec::new(); n_datasets];
    examples.iter().enumerate().for_each(|(column, id)| columns_of[id.dataset as usize].push(column));
    let mut out = Array2::zeros((scores.nrows(), n_datasets));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(scores.axis_iter(Axis(0)).into_par_iter()).for_each(
        |(mut target, row)| {
            for (k, columns) in columns_of.iter().enumerate() {
                target[k] = aggregate(row, columns, how);
            }
        },
    );
    if how == Aggregate::Exchange { exchanged(out.view(), &sizes) } else { Ok(out) }
}

fn aggregate(row: ArrayView1<'_, f32>, columns: &[usize], how: Aggregate) -> f64 {
    if columns.is_empty() {
        return 0.0;
    }
    let total = || ascribe_linalg::sum::sum_by(columns.len(), |i| f64::from(row[columns[i]]));
    match how {
        Aggregate::Sum | Aggregate::Exchange => total(),
        Aggregate::Mean => total() / columns.len() as f64,
        Aggregate::TopMean { k } => {
            let best = top_k(k, columns.iter().map(|&c| (f64::from(row[c]), c as u64)));
            best.iter().map(|hit| hit.score).sum::<f64>() / best.len() as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    fn ids(datasets: &[u32]) -> Vec<ExampleId> {
        datasets.iter().enumerate().map(|(idx, &dataset)| ExampleId { dataset, idx: idx as u32 }).collect()
    }

    #[test]
    fn by_hand() {
        let scores = arr2(&[[1.0f32, 5.0, 3.0, -2.0]]);
        let examples = ids(&[0, 2, 0, 0]);
        let check = |how, expected: [f64; 3]| {
            let got = to_datasets(scores.view(), &examples, 3, how).unwrap();
            assert_eq!(got, arr2(&[expected]), "{how:?}");
        };
        check(Aggregate::Sum, [2.0, 0.0, 5.0]);
        check(Aggregate::Mean, [2.0 / 3.0, 0.0, 5.0]);
        check(Aggregate::TopMean { k: 2 }, [2.0, 0.0, 5.0]);
        check(Aggregate::TopMean { k: 9 }, [2.0 / 3.0, 0.0, 5.0]);
        // Three examples of sum 2 against three of value 5; one of value 5 against the mean of sum 2 over three.
        check(Aggregate::Exchange, [2.0 - 3.0 * 5.0, 0.0, 5.0 - 2.0 / 3.0]);
    }

    /// Closed form: weights of a training of as many draws. Without k every other example counts n/(n − n_k) times, so what is lost is
    /// the sum at weights 1 less the sum at those weights.
    #[test]
    fn an_exchange_is_the_change_of_the_weighted_sum() {
        let sizes = [3usize, 1, 4, 0];
        let sums = arr2(&[[1.5, -2.0, 0.25, 0.0], [0.0, 0.0, 7.0, 0.0]]);
        let got = exchanged(sums.view(), &sizes).unwrap();
        for (q, row) in sums.rows().into_iter().enumerate() {
            for k in 0..sizes.len() {
                let factor = 8.0 / (8.0 - sizes[k] as f64);
                let without: f64 = (0..4).filter(|&j| j != k).map(|j| row[j] * factor).sum();
                let expected = if sizes[k] == 0 { 0.0 } else { row.sum() - without };
                // Some additions of numbers of order 10.
                assert!((got[(q, k)] - expected).abs() < 1e-14, "{q} {k}: {} {expected}", got[(q, k)]);
            }
        }
        // All examples alike: no dataset is worth more than what takes its place.
        let even = exchanged(arr2(&[[3.0, 1.0, 4.0, 0.0]]).view(), &sizes).unwrap();
        assert!(even.iter().all(|v| v.abs() < 1e-15), "{even}");
        // Nothing takes the place of the only dataset.
        assert_eq!(exchanged(arr2(&[[3.0, 0.0]]).view(), &[5, 0]).unwrap(), arr2(&[[3.0, 0.0]]));
    }

    #[test]
    fn bad_input_is_named() {
        let scores = arr2(&[[1.0f32, f32::NAN]]);
        let error = |n: usize, how, datasets: &[u32]| {
            to_datasets(scores.view(), &ids(datasets), n, how).unwrap_err().to_string()
        };
        assert!(error(2, Aggregate::Sum, &[0, 1]).contains("example scores, row 0, column 1"));
        assert!(error(1, Aggregate::Sum, &[0, 1]).contains("below 1"));
        assert!(error(2, Aggregate::TopMean { k: 0 }, &[0, 1]).contains("at least 1"));
        assert!(error(2, Aggregate::Sum, &[0]).contains("columns of the score table"));
        let short = exchanged(arr2(&[[1.0, 2.0]]).view(), &[1]).unwrap_err().to_string();
        assert!(short.contains("sizes of datasets: expected 2"), "{short}");
    }
}
