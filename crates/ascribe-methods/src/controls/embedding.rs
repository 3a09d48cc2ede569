//! Similarity of pooled hidden states. Source: RepSim, cosine of representations (e.g. arXiv:2409.19998).

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::blocks;
use crate::error::MethodError;

/// Cosine of every query with every example: `[Q, d]`, `[N, d]` → `[Q, N]` in `[−1, 1]`.
///
/// With `center`, the mean of the examples is subtracted on both sides first: hidden states share a large common
/// direction that hides the differences. A row of zeros has cosine 0 with everything. Arithmetic in f64. Cost `2·Q·N·d`.
///
/// # Errors
/// Widths that differ; NaN; no examples.
pub fn score(
    queries: ArrayView2<'_, f32>,
    examples: ArrayView2<'_, f32>,
    center: bool,
) -> Result<Array2<f32>, MethodError> {
    check_widths(queries, examples.ncols())?;
    Examples::new(examples, center)?.score(queries)
}

fn check_widths(queries: ArrayView2<'_, f32>, width: usize) -> Result<(), MethodError> {
    match queries.ncols() == width {
        true => Ok(()),
        false => Err(MethodError::shape("width of the query embeddings", width, queries.ncols())),
    }
}

/// Examples with length 1, kept for queries that come one by one.
#[derive(Clone, Debug)]
pub struct Examples {
    /// `[d]`: what is subtracted on both sides.
    mean: Array1<f64>,
    /// `[N, d]`.
    unit: Array2<f64>,
}

impl Examples {
    /// Examples `[N, d]`; `center` as in [`score`].
    ///
    /// # Errors
    /// NaN; no examples.
    pub fn new(examples: ArrayView2<'_, f32>, center: bool) -> Result<Self, MethodError> {
        if examples.nrows() == 0 {
            return Err(MethodError::Empty { what: "the set of example embeddings" });
        }
        let examples = widen("example embeddings", examples)?;
        let mean = match center {
            true => examples.mean_axis(Axis(0)).ok_or(MethodError::Empty { what: "the set of example embeddings" })?,
            false => Array1::zeros(examples.ncols()),
        };
        Ok(Self { unit: unit_rows(examples - &mean), mean })
    }

    /// What is subtracted from embeddings, `[d]`.
    pub fn mean(&self) -> &Array1<f64> {
        &self.mean
    }

    /// As [`score`]: the same bytes.
    ///
    /// # Errors
    /// Widths that differ; NaN.
    pub fn score(&self, queries: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        check_widths(queries, self.mean.len())?;
        let queries = unit_rows(widen("query embeddings", queries)? - &self.mean);
        Ok(blocks::rows_times(queries.view(), self.unit.t()).mapv(|v| v as f32))
    }
}

fn widen(what: &str, rows: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
    let wide = rows.mapv(f64::from);
    crate::dot::check_finite(what, wide.view())?;
    Ok(wide)
}

fn unit_rows(mut rows: Array2<f64>) -> Array2<f64> {
    for mut row in rows.rows_mut() {
        let norm = row.dot(&row).sqrt();
        row *= if norm > 0.0 { 1.0 / norm } else { 0.0 };
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn by_hand() {
        let examples = arr2(&[[2.0f32, 0.0], [0.0, 3.0], [0.0, 0.0]]);
        let scores = score(arr2(&[[1.0f32, 1.0]]).view(), examples.view(), false).unwrap();
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert!((scores[(0, 0)] - half).abs() < 1e-7 && (scores[(0, 1)] - half).abs() < 1e-7);
        assert_eq!(scores[(0, 2)], 0.0);
    }

    #[test]
    fn centring_removes_a_common_direction() {
        // All vectors lean on (100, 0); what differs is the sign of the second coordinate.
        let examples = arr2(&[[100.0f32, 1.0], [100.0, -1.0]]);
        let query = arr2(&[[100.0f32, 0.5]]);
        let plain = score(query.view(), examples.view(), false).unwrap();
        assert!((plain[(0, 0)] - plain[(0, 1)]).abs() < 1e-3);
        assert_eq!(score(query.view(), examples.view(), true).unwrap(), arr2(&[[1.0f32, -1.0]]));
    }

    #[test]
    fn bad_input_is_named() {
        let (q, e) = (arr2(&[[1.0f32, f32::NAN]]), arr2(&[[1.0f32, 1.0]]));
        assert!(
            score(q.view(), e.view(), false).unwrap_err().to_string().contains("query embeddings, row 0, column 1")
        );
        assert!(score(e.view(), arr2(&[[1.0f32]]).view(), false).unwrap_err().to_string().contains("expected 1"));
        assert!(score(e.view(), Array2::zeros((0, 2)).view(), true).unwrap_err().to_string().contains("is empty"));
    }
}
