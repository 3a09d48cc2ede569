//! Measures of attributions against ground truth: `ascribe_eval` for numpy. What is not defined for a query is NaN.

use ascribe_eval::detection::{auprc as area_pr, found_area as area_found, label_top1 as top1, roc_auc as area_roc};
use ascribe_eval::loo::loo_correlation;
use ascribe_eval::shares::total_variation;
use ascribe_eval::{PerQuery, Truth, bootstrap, lds as lds_of, rank, recall, removal};
use ndarray::ArrayView1;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{matrix, vector};
use crate::error::{OrRaise, value_error};

type Values<'py> = PyResult<Bound<'py, PyArray1<f64>>>;
type Array<'a, 'py> = &'a Bound<'py, PyAny>;

fn with_nan<'py>(py: Python<'py>, values: Vec<Option<f64>>) -> Bound<'py, PyArray1<f64>> {
    values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect::<Vec<_>>().into_pyarray(py)
}

fn without_nan(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().map(|&value| (!value.is_nan()).then_some(value)).collect()
}

/// Linear datamodelling score per query. `scores` `[Q, P]` f64, `included` `[S, P]` bool, `losses` `[Q, S]` f64 of trainings on the
/// subsets.
#[pyfunction]
pub fn lds<'py>(
    py: Python<'py>,
    scores: Array<'_, 'py>,
    included: Array<'_, 'py>,
    losses: Array<'_, 'py>,
) -> Values<'py> {
    let (s, i, l) =
        (matrix::<f64>("scores", scores)?, matrix::<bool>("included", included)?, matrix::<f64>("losses", losses)?);
    let (s, i, l) = (s.as_array(), i.as_array(), l.as_array());
    Ok(with_nan(py, py.detach(|| lds_of::lds(s, i, l)).or_raise()?))
}

/// The same, but the scores that are added up are those of what was removed.
#[pyfunction]
pub fn lds_removed<'py>(
    py: Python<'py>,
    scores: Array<'_, 'py>,
    included: Array<'_, 'py>,
    losses: Array<'_, 'py>,
) -> Values<'py> {
    let (s, i, l) =
        (matrix::<f64>("scores", scores)?, matrix::<bool>("included", included)?, matrix::<f64>("losses", losses)?);
    let (s, i, l) = (s.as_array(), i.as_array(), l.as_array());
    Ok(with_nan(py, py.detach(|| lds_of::lds_removed(s, i, l)).or_raise()?))
}

/// Pearson of scores `[Q, P]` with what leaving each player out did `[Q, P]`, per query.
#[pyfunction]
pub fn loo<'py>(py: Python<'py>, scores: Array<'_, 'py>, worth: Array<'_, 'py>) -> Values<'py> {
    let (s, w) = (matrix::<f64>("scores", scores)?, matrix::<f64>("worth", worth)?);
    let (s, w) = (s.as_array(), w.as_array());
    Ok(with_nan(py, py.detach(|| loo_correlation(s, w)).or_raise()?))
}

fn labelled(
    py: Python<'_>,
    scores: Array<'_, '_>,
    positive: Array<'_, '_>,
    area: impl Fn(&[f64], &[bool]) -> Option<f64> + Sync,
) -> PyResult<f64> {
    let (s, p) = (vector::<f64>("scores", scores)?, vector::<bool>("positive", positive)?);
    let (s, p) = (s.as_slice()?, p.as_slice()?);
    if s.len() != p.len() {
        return Err(value_error("positive", format!("{} labels, one per score", s.len()), p.len()));
    }
    Ok(py.detach(|| area(s, p)).unwrap_or(f64::NAN))
}

/// Area under the ROC curve of `scores` `[N]` for `positive` `[N]` bool.
#[pyfunction]
pub fn roc_auc(py: Python<'_>, scores: Array<'_, '_>, positive: Array<'_, '_>) -> PyResult<f64> {
    labelled(py, scores, positive, area_roc)
}

/// Area under precision over recall.
#[pyfunction]
pub fn auprc(py: Python<'_>, scores: Array<'_, '_>, positive: Array<'_, '_>) -> PyResult<f64> {
    labelled(py, scores, positive, area_pr)
}

/// Area under found positives over inspected examples (mislabel detection).
#[pyfunction]
pub fn found_area(py: Python<'_>, scores: Array<'_, '_>, positive: Array<'_, '_>) -> PyResult<f64> {
    labelled(py, scores, positive, area_found)
}

/// Per query 1 where the best example has the query's label.
#[pyfunction]
pub fn label_top1<'py>(
    py: Python<'py>,
    scores: Array<'_, 'py>,
    query_labels: Array<'_, 'py>,
    labels: Array<'_, 'py>,
) -> Values<'py> {
    let s = matrix::<f64>("scores", scores)?;
    let (q, l) = (vector::<u32>("query_labels", query_labels)?, vector::<u32>("labels", labels)?);
    let (s, q, l) = (s.as_array(), q.as_slice()?, l.as_slice()?);
    Ok(with_nan(py, py.detach(|| top1(s, q, l)).or_raise()?))
}

fn paired(
    py: Python<'_>,
    a: Array<'_, '_>,
    b: Array<'_, '_>,
    of: impl Fn(&[f64], &[f64]) -> Option<f64> + Sync,
) -> PyResult<f64> {
    let (a, b) = (vector::<f64>("a", a)?, vector::<f64>("b", b)?);
    let (a, b) = (a.as_slice()?, b.as_slice()?);
    if a.len() != b.len() {
        return Err(value_error("b", format!("{} numbers, as many as a", a.len()), b.len()));
    }
    Ok(py.detach(|| of(a, b)).unwrap_or(f64::NAN))
}

/// Rank correlation of two vectors; NaN where one is constant.
#[pyfunction]
pub fn spearman(py: Python<'_>, a: Array<'_, '_>, b: Array<'_, '_>) -> PyResult<f64> {
    paired(py, a, b, rank::spearman)
}

/// Correlation of two vectors; NaN where one is constant.
#[pyfunction]
pub fn pearson(py: Python<'_>, a: Array<'_, '_>, b: Array<'_, '_>) -> PyResult<f64> {
    paired(py, a, b, rank::pearson)
}

/// Total variation between two shares of one response `[K]`: the part of the money that goes to the wrong place.
#[pyfunction]
pub fn share_error(py: Python<'_>, a: Array<'_, '_>, b: Array<'_, '_>) -> PyResult<f64> {
    paired(py, a, b, |a, b| Some(total_variation(ArrayView1::from(a), ArrayView1::from(b))))
}

fn lists(relevant: &[Vec<u64>], found: &[Vec<u64>]) -> PyResult<()> {
    if relevant.len() == found.len() {
        return Ok(());
    }
    Err(value_error("found", format!("{} lists, one per query", relevant.len()), found.len()))
}

/// Per query the part of its relevant ids among the first k found.
#[pyfunction]
pub fn recall_at(py: Python<'_>, k: usize, relevant: Vec<Vec<u64>>, found: Vec<Vec<u64>>) -> Values<'_> {
    lists(&relevant, &found)?;
    Ok(with_nan(py, py.detach(|| recall::recall_at(k, &relevant, &found))))
}

/// Per query 1 where any relevant id is among the first k found.
#[pyfunction]
pub fn hit_at(py: Python<'_>, k: usize, relevant: Vec<Vec<u64>>, found: Vec<Vec<u64>>) -> Values<'_> {
    lists(&relevant, &found)?;
    Ok(with_nan(py, py.detach(|| recall::hit_at(k, &relevant, &found))))
}

/// Per query one over the rank of the first relevant id; their mean is the MRR.
#[pyfunction]
pub fn reciprocal_ranks(py: Python<'_>, relevant: Vec<Vec<u64>>, found: Vec<Vec<u64>>) -> Values<'_> {
    lists(&relevant, &found)?;
    Ok(with_nan(py, py.detach(|| recall::reciprocal_ranks(&relevant, &found))))
}

/// Mean outcome after removing random examples less that after removing the top ones, per query. Both `[Q, trainings]`.
#[pyfunction]
pub fn removal_effect<'py>(py: Python<'py>, removed: Array<'_, 'py>, random: Array<'_, 'py>) -> Values<'py> {
    let (a, b) = (matrix::<f64>("removed", removed)?, matrix::<f64>("random", random)?);
    let (a, b) = (a.as_array(), b.as_array());
    Ok(with_nan(py, py.detach(|| removal::removal_effect(a, b)).or_raise()?))
}

/// Part of the trainings after a removal that flip a query which was right before. `before` `[Q]`, `margins` `[Q, trainings]`.
#[pyfunction]
pub fn brittleness<'py>(py: Python<'py>, before: Array<'_, 'py>, margins: Array<'_, 'py>) -> Values<'py> {
    let (b, m) = (vector::<f64>("before", before)?, matrix::<f64>("margins", margins)?);
    let (b, m) = (b.as_slice()?, m.as_array());
    Ok(with_nan(py, py.detach(|| removal::brittleness(b, m)).or_raise()?))
}

/// Mean rise of the target's probability after one step on each top example. `before` `[Q]`, `after` `[Q, k]`.
#[pyfunction]
pub fn tail_patch<'py>(py: Python<'py>, before: Array<'_, 'py>, after: Array<'_, 'py>) -> Values<'py> {
    let (b, a) = (vector::<f64>("before", before)?, matrix::<f64>("after", after)?);
    let (b, a) = (b.as_slice()?, a.as_array());
    Ok(with_nan(py, py.detach(|| removal::tail_patch(b, a)).or_raise()?))
}

fn estimate_dict<'py>(py: Python<'py>, estimate: &bootstrap::Estimate) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("mean", estimate.mean)?;
    out.set_item("low", estimate.low)?;
    out.set_item("high", estimate.high)?;
    out.set_item("n", estimate.n)?;
    Ok(out)
}

/// Mean of a measure over queries with its 95 % bootstrap interval; NaN is left out.
#[pyfunction]
#[pyo3(signature = (values, seed=1))]
pub fn bootstrap_mean<'py>(py: Python<'py>, values: Array<'_, 'py>, seed: u64) -> PyResult<Bound<'py, PyDict>> {
    let values = vector::<f64>("values", values)?;
    let values = values.as_slice()?;
    estimate_dict(py, &py.detach(|| bootstrap::bootstrap_mean(&without_nan(values), seed)).or_raise()?)
}

/// Mean difference of two methods' measures over the same queries, with its interval.
#[pyfunction]
#[pyo3(signature = (a, b, seed=1))]
pub fn paired_difference<'py>(
    py: Python<'py>,
    a: Array<'_, 'py>,
    b: Array<'_, 'py>,
    seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let (a, b) = (vector::<f64>("a", a)?, vector::<f64>("b", b)?);
    let (a, b) = (a.as_slice()?, b.as_slice()?);
    let found = py.detach(|| bootstrap::paired_difference(&without_nan(a), &without_nan(b), seed));
    estimate_dict(py, &found.or_raise()?)
}

/// Dataset scores `[Q, K]` against what retraining showed: `change[q, k]` is the loss without dataset k less the loss with all. `own`
/// `[Q]` u32 names each query's own dataset. Share error, top-1 and rank correlations with intervals.
#[pyfunction]
#[pyo3(signature = (scores, change, own, calibrated=false, seed=1))]
pub fn evaluate<'py>(
    py: Python<'py>,
    scores: Array<'_, 'py>,
    change: Array<'_, 'py>,
    own: Array<'_, 'py>,
    calibrated: bool,
    seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let (s, c, o) = (matrix::<f64>("scores", scores)?, matrix::<f64>("change", change)?, vector::<u32>("own", own)?);
    let (s, c, o) = (s.as_array(), c.as_array(), o.as_slice()?);
    let summary: Result<_, ascribe_eval::EvalError> = py.detach(|| {
        let truth = Truth::from_change(c.to_owned())?;
        let measured = match calibrated {
            true => PerQuery::of_shares(&truth, s, o)?,
            false => PerQuery::of_scores(&truth, s, o)?,
        };
        Ok((measured.summary(seed)?, truth.excluded.len()))
    });
    let (summary, n_excluded) = summary.or_raise()?;
    let out = PyDict::new(py);
    let measures = [
        ("share_error", summary.share_error),
        ("top1", summary.top1),
        ("spearman", summary.spearman),
        ("spearman_other", summary.spearman_other),
    ];
    for (name, estimate) in measures {
        out.set_item(name, estimate.map(|estimate| estimate_dict(py, &estimate)).transpose()?)?;
    }
    out.set_item("n_excluded", n_excluded)?;
    Ok(out)
}
