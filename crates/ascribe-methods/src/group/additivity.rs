//! How far are scores of datasets from adding up? The second-order term that a sum leaves out, from scores that are there already.
//!
//! Under a quadratic loss whose curvature is the Fisher matrix, taking datasets S out changes the loss of a query by
//! `qᵀ(A − Σ_{k∈S} H_k)⁻¹ Σ_{k∈S} G_k / n` (group influence, arXiv:1905.13289; second order: arXiv:1911.00418). To second order
//! the pair (k, l) adds `R_kl + R_lk` with `R_kl = qᵀA⁻¹ H_k A⁻¹ G_l = (1/n) Σ_{i∈k} τ(q, i)·τ(G_l, i)`: products of example
//! scores of the query with example scores of the dataset's sum. Here never lives: measured utilities (eval's `game::additivity`).

use ascribe_core::ExampleId;
use ndarray::{Array3, ArrayView2};

use crate::error::MethodError;

/// `[Q, K, K]`: `R_kl` in the unit of the dataset scores.
///
/// `query_scores` `[Q, N]` are `τ(q, i)`, `sum_scores` `[K, N]` are `τ(G_l, i)`, both through the same inverse curvature, columns
/// in the order of `ids`. Sums in f64 in row order. Cost `Q·K·N`.
///
/// # Errors
/// Shapes; an ordinal of K or more; no rows.
pub fn second_order(
    query_scores: ArrayView2<'_, f32>,
    sum_scores: ArrayView2<'_, f64>,
    ids: &[ExampleId],
) -> Result<Array3<f64>, MethodError> {
    let (n, k) = (ids.len(), sum_scores.nrows());
    if query_scores.ncols() != n || sum_scores.ncols() != n {
        let found = (query_scores.ncols(), sum_scores.ncols());
        return Err(MethodError::shape("examples of both score tables", n, found));
    }
    if n == 0 {
        return Err(MethodError::Empty { what: "the set of training rows" });
    }
    if let Some(id) = ids.iter().find(|id| id.dataset as usize >= k) {
        return Err(MethodError::shape("dataset ordinal", format!("below {k}"), id.dataset));
    }
    let mut out = Array3::<f64>::zeros((query_scores.nrows(), k, k));
    for (mut table, row) in out.outer_iter_mut().zip(query_scores.rows()) {
        for ((id, &tau), column) in ids.iter().zip(row).zip(sum_scores.columns()) {
            table.row_mut(id.dataset as usize).scaled_add(f64::from(tau) / n as f64, &column);
        }
    }
    Ok(out)
}

/// Per query the part that a sum of dataset scores leaves out: `Σ_{k≠l} R_kl / Σ_k |S_k|`; `None` where all scores are 0.
///
/// 0 means additive to second order; positive means that datasets replace each other, so taking several out hurts more than the
/// sum of single removals says.
///
/// # Errors
/// Shapes.
pub fn residuals(pairs: &Array3<f64>, scores: ArrayView2<'_, f64>) -> Result<Vec<Option<f64>>, MethodError> {
    let (q, k, _) = pairs.dim();
    if scores.dim() != (q, k) {
        return Err(MethodError::shape("dataset scores", (q, k), scores.dim()));
    }
    let one = |(table, row): (ndarray::ArrayView2<'_, f64>, ndarray::ArrayView1<'_, f64>)| {
        let size: f64 = row.iter().map(|s| s.abs()).sum();
        let joint = table.sum() - table.diag().sum();
        (size > 0.0).then(|| joint / size)
    };
    Ok(pairs.outer_iter().zip(scores.rows()).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    /// One number per row: everything can be divided out by hand.
    #[test]
    fn it_is_the_second_order_term_of_removing_two_datasets() {
        let (a, q, n) = (2.0, 3.0, 1000.0);
        let rows = [(0, 0.5), (0, -0.2), (1, 0.4), (1, 0.3)];
        let ids: Vec<ExampleId> =
            rows.iter().enumerate().map(|(i, &(dataset, _))| ExampleId { dataset, idx: i as u32 }).collect();
        let sum = |k: u32| rows.iter().filter(|r| r.0 == k).map(|r| r.1).sum::<f64>();
        let h = |k: u32| rows.iter().filter(|r| r.0 == k).map(|r| r.1 * r.1).sum::<f64>() / n;
        let query = Array2::from_shape_fn((1, 4), |(_, i)| (q / a * rows[i].1) as f32);
        let sums = Array2::from_shape_fn((2, 4), |(k, i)| sum(k as u32) / a * rows[i].1);
        // The function divides by its own four rows; 1,000 rows here, of which the other 996 are zero.
        let pairs = second_order(query.view(), sums.view(), &ids).unwrap() * (4.0 / n);
        let removed = |curvature: f64, gradient: f64| q * gradient / (a - curvature);
        let exact = removed(h(0) + h(1), sum(0) + sum(1)) - removed(h(0), sum(0)) - removed(h(1), sum(1));
        let found = pairs[(0, 0, 1)] + pairs[(0, 1, 0)];
        // What is left is of third order: h² ≈ 1e-8 of the scores.
        assert!((found - exact).abs() < 1e-3 * exact.abs(), "{found} {exact}");
        let scores = arr2(&[[q * sum(0) / a, q * sum(1) / a]]);
        let residual = residuals(&pairs, scores.view()).unwrap()[0].unwrap();
        assert!((residual - exact / (scores[(0, 0)].abs() + scores[(0, 1)].abs())).abs() < 1e-6);
    }

    #[test]
    fn orthogonal_datasets_add_up() {
        let ids = [ExampleId { dataset: 0, idx: 0 }, ExampleId { dataset: 1, idx: 0 }];
        let pairs = second_order(arr2(&[[1.0f32, 2.0]]).view(), arr2(&[[3.0, 0.0], [0.0, 4.0]]).view(), &ids).unwrap();
        assert_eq!(residuals(&pairs, arr2(&[[1.0, 2.0]]).view()).unwrap(), [Some(0.0)]);
        assert_eq!(residuals(&pairs, arr2(&[[0.0, 0.0]]).view()).unwrap(), [None]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ids = [ExampleId { dataset: 2, idx: 0 }];
        let (q, s) = (arr2(&[[1.0f32]]), arr2(&[[1.0], [2.0]]));
        assert!(second_order(q.view(), s.view(), &ids).unwrap_err().to_string().contains("below 2"));
        assert!(second_order(q.view(), s.view(), &[]).is_err());
        let none = second_order(Array2::zeros((1, 0)).view(), Array2::zeros((2, 0)).view(), &[]);
        assert!(none.unwrap_err().to_string().contains("is empty"));
    }
}
