//! Trajectory influence: inner products summed over the checkpoints that training passed through.
//!
//! `τ(q, i) = Σ_c η_c ⟨ĝ_i^c, q̂^c⟩`. Source: TracInCP, arXiv:2002.08484; `η_c` is the learning rate times the
//! steps that checkpoint c stands for. With preconditioned queries the same sum gives a trajectory of block-Fisher
//! influences. Here never lives: choosing checkpoints or weights (that is measured), files.

use ascribe_core::{FeatureReader, Progress};
use ascribe_linalg::sum;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::dot::{self, ExampleScores};
use crate::error::MethodError;

/// One checkpoint of an example-level trajectory.
pub struct CheckpointRows<'a, R> {
    /// Feature rows at this checkpoint; every checkpoint must list the same examples in the same order.
    pub reader: &'a R,
    /// Query vectors at this checkpoint, `[Q, D]`: plain gradients, or preconditioned ones.
    pub queries: ArrayView2<'a, f64>,
    /// `η_c`: finite; learning rate × steps for TracInCP.
    pub weight: f64,
}

/// One checkpoint of a dataset-level trajectory.
pub struct CheckpointSums<'a> {
    /// Query vectors at this checkpoint, `[Q, D]`.
    pub queries: ArrayView2<'a, f64>,
    /// Exact per-dataset sums of rows at this checkpoint, `[K, D]`.
    pub sums: ArrayView2<'a, f64>,
    /// `η_c`.
    pub weight: f64,
}

/// Example-level trajectory scores `[Q, N]`, added over checkpoints in f64 in the given order.
///
/// Cost: that of `dot::score` per checkpoint; memory `8·Q·N` bytes.
///
/// # Errors
/// No checkpoint; a weight that is not finite; checkpoints that list other examples; reader errors; NaN.
pub fn score<R: FeatureReader>(
    checkpoints: &[CheckpointRows<'_, R>],
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let first = checkpoints.first().ok_or(MethodError::Empty { what: "the list of checkpoints" })?;
    let shape = (first.queries.nrows(), dot::n_rows(first.reader)?);
    let mut total = Array2::<f64>::zeros(shape);
    let mut examples = Vec::with_capacity(shape.1);
    for (c, checkpoint) in checkpoints.iter().enumerate() {
        check_weight(checkpoint.weight)?;
        let found = (checkpoint.queries.nrows(), dot::n_rows(checkpoint.reader)?);
        if found != shape {
            return Err(MethodError::shape("queries and rows of a checkpoint", shape, found));
        }
        dot::for_each_scores(checkpoint.reader, checkpoint.queries, None, progress, |first_row, ids, scores| {
            if c == 0 {
                examples.extend_from_slice(ids);
            } else if examples[first_row..first_row + ids.len()] != *ids {
                let expected = examples[first_row];
                return Err(MethodError::shape("order of examples in a checkpoint", expected, ids[0]));
            }
            let mut target = total.slice_mut(ndarray::s![.., first_row..first_row + ids.len()]);
            target.scaled_add(checkpoint.weight, &scores);
            Ok(())
        })?;
    }
    Ok(ExampleScores { examples, values: total.mapv(|v| v as f32) })
}

/// Dataset-level trajectory scores `[Q, K]`: `Σ_c η_c ⟨G_k^c, q^c⟩`, exactly the sums of the example-level ones.
///
/// # Errors
/// No checkpoint; shapes that differ between checkpoints; NaN.
pub fn dataset_scores(checkpoints: &[CheckpointSums<'_>]) -> Result<Array2<f64>, MethodError> {
    let first = checkpoints.first().ok_or(MethodError::Empty { what: "the list of checkpoints" })?;
    let mut total = Array2::<f64>::zeros((first.queries.nrows(), first.sums.nrows()));
    for checkpoint in checkpoints {
        check_weight(checkpoint.weight)?;
        let scores = dot::dataset_scores(checkpoint.queries, checkpoint.sums)?;
        if scores.dim() != total.dim() {
            return Err(MethodError::shape("queries and datasets of a checkpoint", total.dim(), scores.dim()));
        }
        total.scaled_add(checkpoint.weight, &scores);
    }
    Ok(total)
}

/// Full dataset gradients of one checkpoint, divided by the optimiser's step scale.
///
/// `score(q)_k = η · ⟨G_k ⊘ (√v̂ + ε), q⟩`: Adam moves along the gradient divided by the root of its second moment, so
/// that is the step that dataset k caused. Source: LESS, arXiv:2402.04333, without its momentum term. Full gradients
/// (no projection), hence dataset level only.
#[derive(Clone, Debug)]
pub struct ScaledGradients {
    /// `[K, P]`.
    scaled: Array2<f32>,
    weight: f64,
}

impl ScaledGradients {
    /// Adam's scale. `dataset_gradients` is `[K, P]`, `second_moments` the optimiser's `v`, `[P]`, `v_scale` its bias
    /// correction `1/(1 − β₂^t)`, `eps` the optimiser's ε, `weight` the checkpoint's `η_c`.
    ///
    /// # Errors
    /// Shapes; NaN; a negative second moment; parameters out of range.
    pub fn adam(
        dataset_gradients: Array2<f32>,
        second_moments: &[f32],
        v_scale: f64,
        eps: f64,
        weight: f64,
    ) -> Result<Self, MethodError> {
        if second_moments.len() != dataset_gradients.ncols() {
            let (expected, found) = (dataset_gradients.ncols(), second_moments.len());
            return Err(MethodError::shape("second moments, one per parameter", expected, found));
        }
        if !(eps.is_finite() && eps > 0.0) {
            return Err(MethodError::Parameter { field: "eps", expected: "finite and positive", found: eps });
        }
        if !(v_scale.is_finite() && v_scale > 0.0) {
            return Err(MethodError::Parameter { field: "v_scale", expected: "finite and positive", found: v_scale });
        }
        if let Some(column) = second_moments.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            let found = f64::from(second_moments[column]);
            return Err(MethodError::BadValue { what: "second moments".to_owned(), row: 0, column, found });
        }
        let mut scaled = Self::plain(dataset_gradients, weight)?;
        scaled.scaled.outer_iter_mut().into_par_iter().for_each(|mut row| {
            for (g, &v) in row.iter_mut().zip(second_moments) {
                *g = (f64::from(*g) / ((f64::from(v) * v_scale).sqrt() + eps)) as f32;
            }
        });
        Ok(scaled)
    }

    /// No scale: plain gradient descent (TracIn over all parameters).
    ///
    /// # Errors
    /// NaN; a weight that is not finite.
    pub fn plain(dataset_gradients: Array2<f32>, weight: f64) -> Result<Self, MethodError> {
        check_weight(weight)?;
        if let Some(((row, column), &g)) = dataset_gradients.indexed_iter().find(|(_, g)| !g.is_finite()) {
            let what = "dataset gradients".to_owned();
            return Err(MethodError::BadValue { what, row, column, found: f64::from(g) });
        }
        Ok(Self { scaled: dataset_gradients.as_standard_layout().into_owned(), weight })
    }

    /// Scores of one query gradient, `[P]` → `[K]`. Products and sums in f64, in a fixed order. Cost `2·K·P`.
    ///
    /// # Errors
    /// Another length than the dataset gradients; a gradient that is not finite.
    pub fn score(&self, query_gradient: &[f32]) -> Result<Vec<f64>, MethodError> {
        if query_gradient.len() != self.scaled.ncols() {
            return Err(MethodError::shape("parameters of the query", self.scaled.ncols(), query_gradient.len()));
        }
        if let Some(column) = query_gradient.iter().position(|g| !g.is_finite()) {
            let found = f64::from(query_gradient[column]);
            return Err(MethodError::BadValue { what: "query gradient".to_owned(), row: 0, column, found });
        }
        let rows = self.scaled.rows().into_iter();
        Ok(rows
            .map(|row| {
                let row = row.to_slice().expect("gradients were laid out row by row");
                self.weight * sum::dot(row, query_gradient)
            })
            .collect())
    }
}

fn check_weight(weight: f64) -> Result<(), MethodError> {
    if weight.is_finite() {
        return Ok(());
    }
    Err(MethodError::Parameter { field: "checkpoint weight", expected: "finite", found: weight })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn adam_scale_by_hand() {
        // √(4·1) + 1 = 3 and √(9·1) + 1 = 4; the query (3, 4) then sees 1·g₀ + 1·g₁, times η = 0.5.
        let gradients = arr2(&[[3.0f32, 8.0], [-6.0, 4.0]]);
        let adam = ScaledGradients::adam(gradients, &[4.0, 9.0], 1.0, 1.0, 0.5).unwrap();
        assert_eq!(adam.score(&[3.0, 4.0]).unwrap(), [0.5 * (3.0 + 8.0), 0.5 * (-6.0 + 4.0)]);
    }

    #[test]
    fn two_checkpoints_by_hand() {
        let (q0, g0) = (arr2(&[[1.0, 2.0]]), arr2(&[[1.0, 1.0], [0.0, -1.0]]));
        let (q1, g1) = (arr2(&[[3.0]]), arr2(&[[2.0], [1.0]]));
        let terms = [
            CheckpointSums { queries: q0.view(), sums: g0.view(), weight: 1.0 },
            CheckpointSums { queries: q1.view(), sums: g1.view(), weight: 0.1 },
        ];
        // Checkpoints may have different projections: only Q and K must agree.
        let scores = dataset_scores(&terms).unwrap();
        assert!((scores[(0, 0)] - 3.6).abs() < 1e-15 && (scores[(0, 1)] + 1.7).abs() < 1e-15, "{scores}");
    }

    #[test]
    fn bad_input_is_named() {
        let g = arr2(&[[1.0f32, 2.0]]);
        let text = |e: MethodError| e.to_string();
        let adam = |v: &[f32], eps| text(ScaledGradients::adam(g.clone(), v, 1.0, eps, 1.0).unwrap_err());
        assert_eq!(adam(&[1.0], 1.0), "second moments, one per parameter: expected 2, found 1");
        assert!(adam(&[1.0, -1.0], 1.0).contains("second moments, row 0, column 1"));
        assert!(adam(&[1.0, 1.0], 0.0).contains("eps must be finite and positive, found 0"));
        let plain = ScaledGradients::plain(g.clone(), 1.0).unwrap();
        assert!(text(plain.score(&[1.0]).unwrap_err()).contains("expected 2, found 1"));
        assert!(text(plain.score(&[1.0, f32::NAN]).unwrap_err()).contains("column 1"));
        assert!(text(ScaledGradients::plain(g, f64::INFINITY).unwrap_err()).contains("checkpoint weight"));
        assert!(text(dataset_scores(&[]).unwrap_err()).contains("list of checkpoints is empty"));
    }
}
