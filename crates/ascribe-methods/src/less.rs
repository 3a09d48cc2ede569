//! LESS: cosines of the step that Adam would take for an example with the gradient of a query, summed over checkpoints.
//!
//! `Γ(z) = (β₁m + (1 − β₁)g) / √(β₂v + (1 − β₂)g² + ε)` elementwise on the training side, plain gradients on the query side;
//! `score(q, i) = Σ_c η_c cos(Γ_c(z_i), ∇ℓ_c(q))`; over a task with subtasks the mean of a subtask's queries, then the largest.
//! Source: Xia et al., arXiv:2402.04333, section 3, and its code for what the text leaves open: ε stands inside the root, the
//! moments are not corrected for bias, and the mean over a subtask is one of cosines. Γ is elementwise, so it comes before any
//! projection ([`adam_steps`]); everything after works on projected rows too. Here never lives: gradients, projection.

use ascribe_core::{FeatureReader, Progress};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::blocks;
use crate::dot::{self, ExampleScores};
use crate::error::MethodError;
use crate::rows;

/// Adam's constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// ε inside the root, positive: a parameter that has never moved has no other scale.
    pub eps: f64,
}

impl Default for Adam {
    /// LESS's own constants.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Replaces flat gradients `[n, P]` by Adam's steps Γ, given its moments at the checkpoint, `[P]` each. Cost `n·P`, in f64.
///
/// # Errors
/// Constants out of range; moments of another length, not finite, or a negative second one; gradients that are not finite.
pub fn adam_steps(
    mut gradients: ArrayViewMut2<'_, f32>,
    first: &[f32],
    second: &[f32],
    adam: Adam,
) -> Result<(), MethodError> {
    let range = |field, v: f64, good: bool, expected| match good {
        true => Ok(()),
        false => Err(MethodError::Parameter { field, expected, found: v }),
    };
    range("beta1", adam.beta1, (0.0..1.0).contains(&adam.beta1), "from 0 to below 1")?;
    range("beta2", adam.beta2, (0.0..1.0).contains(&adam.beta2), "from 0 to below 1")?;
    range("eps", adam.eps, adam.eps.is_finite() && adam.eps > 0.0, "finite and positive")?;
    for (what, moments, negative) in [("first moments", first, true), ("second moments", second, false)] {
        if moments.len() != gradients.ncols() {
            return Err(MethodError::shape("moments, one per parameter", gradients.ncols(), moments.len()));
        }
        if let Some(column) = moments.iter().position(|v| !(v.is_finite() && (negative || *v >= 0.0))) {
            let found = f64::from(moments[column]);
            return Err(MethodError::BadValue { what: what.to_owned(), row: 0, column, found });
        }
    }
    if let Some(((row, column), &g)) = gradients.indexed_iter().find(|(_, g)| !g.is_finite()) {
        return Err(MethodError::BadValue { what: "gradients".to_owned(), row, column, found: f64::from(g) });
    }
    gradients.outer_iter_mut().into_par_iter().for_each(|mut row| {
        for ((g, &m), &v) in row.iter_mut().zip(first).zip(second) {
            let x = f64::from(*g);
            let step = adam.beta1 * f64::from(m) + (1.0 - adam.beta1) * x;
            *g = (step / (adam.beta2 * f64::from(v) + (1.0 - adam.beta2) * x * x + adam.eps).sqrt()) as f32;
        }
    });
    Ok(())
}

/// One checkpoint: rows of Γ, plain query rows, the learning rate there.
pub struct Checkpoint<'a, R> {
    /// Training rows; every checkpoint lists the same examples in the same order.
    pub reader: &'a R,
    /// Query rows, `[Q, D]`.
    pub queries: ArrayView2<'a, f32>,
    /// `η_c`: the mean learning rate of the epoch, finite and not negative.
    pub rate: f64,
}

/// `Σ_c η_c cos(row_c, query_c)`, `[Q, N]`, in f64 over checkpoints in the given order; a row or query of zeros has cosine 0.
/// Cost `2·(Q + 1)·N·D` per checkpoint; memory `8·Q·N` bytes.
///
/// # Errors
/// No checkpoint; a rate out of range; checkpoints with other queries or examples; reader errors; NaN.
pub fn score<R: FeatureReader>(
    checkpoints: &[Checkpoint<'_, R>],
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let first = checkpoints.first().ok_or(MethodError::Empty { what: "the list of checkpoints" })?;
    let shape = (first.queries.nrows(), dot::n_rows(first.reader)?);
    let mut total = Array2::<f64>::zeros(shape);
    let mut examples = Vec::with_capacity(shape.1);
    for (c, checkpoint) in checkpoints.iter().enumerate() {
        if !(checkpoint.rate.is_finite() && checkpoint.rate >= 0.0) {
            let expected = "finite and not negative";
            return Err(MethodError::Parameter { field: "learning rate", expected, found: checkpoint.rate });
        }
        let found = (checkpoint.queries.nrows(), dot::n_rows(checkpoint.reader)?);
        if found != shape {
            return Err(MethodError::shape("queries and rows of a checkpoint", shape, found));
        }
        let mut queries = blocks::query_rows(checkpoint.queries, &checkpoint.reader.spec().columns)?;
        for mut query in queries.rows_mut() {
            let length = ascribe_linalg::sum::sum_by(query.len(), |j| query[j] * query[j]).sqrt();
            query *= if length > 0.0 { 1.0 / length } else { 0.0 };
        }
        let inverse = |&s: &f64| if s > 0.0 { 1.0 / s.sqrt() } else { 0.0 };
        let weights: Vec<f64> = rows::square_norms(checkpoint.reader, progress)?.iter().map(inverse).collect();
        dot::for_each_scores(checkpoint.reader, queries.view(), Some(&weights), progress, |first, ids, scores| {
            if c == 0 {
                examples.extend_from_slice(ids);
            } else if examples[first..first + ids.len()] != *ids {
                return Err(MethodError::shape("order of examples in a checkpoint", examples[first], ids[0]));
            }
            total.slice_mut(s![.., first..first + ids.len()]).scaled_add(checkpoint.rate, &scores);
            Ok(())
        })?;
    }
    Ok(ExampleScores { examples, values: total.mapv(|v| v as f32) })
}

/// The paper's selection score of every example, `[N]`: the mean over each subtask's queries, then the largest subtask.
/// `subtasks[q]` is the subtask of query q.
///
/// # Errors
/// No query; another number of subtasks than queries; NaN.
pub fn best_subtask(scores: ArrayView2<'_, f32>, subtasks: &[usize]) -> Result<Vec<f32>, MethodError> {
    if subtasks.len() != scores.nrows() {
        return Err(MethodError::shape("subtasks, one per query", scores.nrows(), subtasks.len()));
    }
    if let Some(((row, column), &v)) = scores.indexed_iter().find(|(_, v)| !v.is_finite()) {
        return Err(MethodError::BadValue { what: "scores".to_owned(), row, column, found: f64::from(v) });
    }
    let mut members = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    subtasks.iter().enumerate().for_each(|(q, &t)| members.entry(t).or_default().push(q));
    if members.is_empty() {
        return Err(MethodError::Empty { what: "the set of queries" });
    }
    let best = |i: usize| {
        let mean = |queries: &Vec<usize>| {
            let sum: f64 = queries.iter().map(|&q| f64::from(scores[(q, i)])).sum();
            sum / queries.len() as f64
        };
        members.values().map(mean).fold(f64::NEG_INFINITY, f64::max) as f32
    };
    Ok((0..scores.ncols()).map(best).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn steps_and_subtasks_by_hand() {
        // β₁ = ½, β₂ = ¾, ε = 1: step ½·2 + ½·4 = 3 over √(¾·16/3 + ¼·16 + 1) = 3; step −1 over √(0 + ¼·4 + 1) = √2.
        let mut g = arr2(&[[4.0f32, -2.0]]);
        let adam = Adam { beta1: 0.5, beta2: 0.75, eps: 1.0 };
        adam_steps(g.view_mut(), &[2.0, 0.0], &[16.0 / 3.0, 0.0], adam).unwrap();
        assert!((g[(0, 0)] - 1.0).abs() < 1e-6, "{g}");
        assert!((f64::from(g[(0, 1)]) + 1.0 / 2f64.sqrt()).abs() < 1e-6, "{g}");
        // Subtask 0 is queries 0 and 2: means (2, 0); subtask 7 is query 1: (1, 3).
        let scores = arr2(&[[1.0f32, 1.0], [1.0, 3.0], [3.0, -1.0]]);
        assert_eq!(best_subtask(scores.view(), &[0, 7, 0]).unwrap(), [2.0, 3.0]);
    }

    /// With β = 0 and a vanishing ε the step is the gradient's sign.
    #[test]
    fn without_memory_a_step_is_a_sign() {
        let mut g = arr2(&[[4.0f32, -0.01, 100.0]]);
        adam_steps(g.view_mut(), &[9.0; 3], &[9.0; 3], Adam { beta1: 0.0, beta2: 0.0, eps: 1e-30 }).unwrap();
        assert!(g.iter().zip([1.0, -1.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{g}");
    }

    #[test]
    fn bad_input_is_named() {
        let error = |m: &[f32], v: &[f32], adam| {
            let mut g = arr2(&[[1.0f32, 2.0]]);
            adam_steps(g.view_mut(), m, v, adam).unwrap_err().to_string()
        };
        let good = Adam::default();
        assert!(error(&[0.0], &[0.0, 0.0], good).contains("expected 2, found 1"));
        assert!(error(&[0.0, f32::NAN], &[0.0, 0.0], good).contains("first moments, row 0, column 1"));
        assert!(error(&[0.0, 0.0], &[-1.0, 0.0], good).contains("second moments, row 0, column 0"));
        assert!(error(&[0.0; 2], &[0.0; 2], Adam { beta1: 1.0, ..good }).contains("beta1"));
        assert!(error(&[0.0; 2], &[0.0; 2], Adam { eps: 0.0, ..good }).contains("eps must be finite and positive"));
        let mut nan = arr2(&[[1.0f32, f32::NAN]]);
        assert!(adam_steps(nan.view_mut(), &[0.0; 2], &[0.0; 2], good).is_err());
        assert!(best_subtask(arr2(&[[1.0f32]]).view(), &[]).is_err());
    }
}
