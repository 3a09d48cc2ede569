//! How many of the true best rows an index finds.

use ndarray::ArrayView2;

use crate::error::IndexError;
use crate::{Effort, Hit, VectorIndex};

/// Recall of one index against another.
#[derive(Clone, PartialEq, Debug)]
pub struct Recall {
    /// Rows asked for.
    pub k: usize,
    /// Effort of the index under test.
    pub effort: Effort,
    /// Mean over queries of the part of the true k best that was found.
    pub mean: f64,
    /// The worst query's.
    pub min: f64,
    /// Each query's, in order.
    pub per_query: Vec<f64>,
}

/// Part of the `k` best rows by `exact` that `index` finds with `effort`, for each query of `[Q, dim]`.
///
/// Without queries the mean and the minimum are 1: nothing was missed.
///
/// # Errors
/// Those of either search; [`IndexError::BadSetting`] for `k = 0`.
pub fn recall_at_k(
    index: &dyn VectorIndex,
    exact: &dyn VectorIndex,
    queries: ArrayView2<'_, f32>,
    k: usize,
    effort: Effort,
) -> Result<Recall, IndexError> {
    if k == 0 {
        return Err(IndexError::BadSetting { setting: "k of recall", expected: "at least 1", found: 0 });
    }
    let (truth, found) = (exact.search_many(queries, k, effort)?, index.search_many(queries, k, effort)?);
    let per_query = per_query(&truth, &found);
    let (mean, min) = summary(&per_query);
    Ok(Recall { k, effort, mean, min, per_query })
}

/// Mean and least part of the true hits that were found.
pub(crate) fn mean_and_least(truth: &[Vec<Hit>], found: &[Vec<Hit>]) -> (f64, f64) {
    summary(&per_query(truth, found))
}

fn per_query(truth: &[Vec<Hit>], found: &[Vec<Hit>]) -> Vec<f64> {
    let part = |(truth, found): (&Vec<Hit>, &Vec<Hit>)| {
        let n_common = truth.iter().filter(|t| found.iter().any(|f| f.row == t.row)).count();
        n_common as f64 / truth.len() as f64
    };
    truth.iter().zip(found).map(part).collect()
}

/// Mean and least; 1 and 1 of nothing.
fn summary(per_query: &[f64]) -> (f64, f64) {
    let n = per_query.len();
    let mean = if n == 0 { 1.0 } else { per_query.iter().sum::<f64>() / n as f64 };
    (mean, per_query.iter().copied().fold(1.0, f64::min))
}
