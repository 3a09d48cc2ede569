//! Second-order group influence: what datasets do together, less what they say twice.
//!
//! `Û(S) = Σ_{k∈S} s_k − ½ Σ_{k,l∈S} M_kl` with a symmetric M: first-order influence minus the interaction of the members.
//! Source: second-order group influence, Basu et al., arXiv:1911.00418. Its Shapley values are `s_k − ½ Σ_l M_kl`, no sampling
//! needed. [`overlap`] gives the M of gradients in the curvature's metric, whose scale is to be fitted.

use ndarray::{Array2, ArrayView2};

use crate::block_fisher::{Preconditioner, precondition};
use crate::dot::check_finite;
use crate::error::MethodError;

/// Group influence `[M, Q]` of subsets `kept` `[M, K]` from scores `[Q, K]` and one interaction `[K, K]` for all queries.
///
/// Cost `M·(K² + Q·K)`. Sums in f64 in dataset order.
///
/// # Errors
/// Shapes; NaN; an interaction that is not symmetric.
pub fn group_influence(
    scores: ArrayView2<'_, f64>,
    interaction: ArrayView2<'_, f64>,
    kept: ArrayView2<'_, bool>,
) -> Result<Array2<f64>, MethodError> {
    check(scores, interaction)?;
    if kept.ncols() != scores.ncols() {
        return Err(MethodError::shape("datasets of the subsets", scores.ncols(), kept.ncols()));
    }
    let mut out = Array2::zeros((kept.nrows(), scores.nrows()));
    for (mut row, members) in out.rows_mut().into_iter().zip(kept.rows()) {
        let members: Vec<usize> = (0..members.len()).filter(|&k| members[k]).collect();
        let joint: f64 =
            members.iter().flat_map(|&k| members.iter().map(move |&l| (k, l))).map(|at| interaction[at]).sum();
        for (value, query) in row.iter_mut().zip(scores.rows()) {
            *value = members.iter().map(|&k| query[k]).sum::<f64>() - 0.5 * joint;
        }
    }
    Ok(out)
}

/// Shapley values `[Q, K]` of that game: `s_k − ½ Σ_l M_kl`.
///
/// # Errors
/// As [`group_influence`].
pub fn shapley(scores: ArrayView2<'_, f64>, interaction: ArrayView2<'_, f64>) -> Result<Array2<f64>, MethodError> {
    check(scores, interaction)?;
    let half: ndarray::Array1<f64> = interaction.rows().into_iter().map(|row| 0.5 * row.sum()).collect();
    Ok(&scores - &half)
}

/// `G_kᵀ (H + λ)⁻¹ G_l`, `[K, K]`, of dataset sums `[K, D]`: how much two datasets pull the weights the same way. Symmetric and
/// positive semi-definite to rounding, which is evened out.
///
/// # Errors
/// Those of `precondition`.
pub fn overlap(by: &dyn Preconditioner, sums: ArrayView2<'_, f64>) -> Result<Array2<f64>, MethodError> {
    check_finite("dataset sums", sums)?;
    // Sums are larger than rows: to one scale first, so that f32 has room.
    let largest = sums.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return Ok(Array2::zeros((sums.nrows(), sums.nrows())));
    }
    let solved = precondition(by, sums.mapv(|v| (v / largest) as f32).view())? * largest;
    let plain = crate::dot::dataset_scores(solved.view(), sums)?;
    Ok((&plain + &plain.t()) * 0.5)
}

fn check(scores: ArrayView2<'_, f64>, interaction: ArrayView2<'_, f64>) -> Result<(), MethodError> {
    let k = scores.ncols();
    if interaction.dim() != (k, k) {
        return Err(MethodError::shape("interaction of the datasets", (k, k), interaction.dim()));
    }
    check_finite("dataset scores", scores)?;
    check_finite("interaction of the datasets", interaction)?;
    let largest = interaction.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    // A few roundings of the largest entry.
    let unequal = |((k, l), v): &((usize, usize), &f64)| (interaction[(*l, *k)] - **v).abs() > 1e-12 * largest;
    match interaction.indexed_iter().find(unequal) {
        None => Ok(()),
        Some(((k, l), v)) => {
            Err(MethodError::shape("interaction of the datasets", format!("symmetric at ({k}, {l})"), v))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    #[test]
    fn by_hand() {
        let (scores, m) = (arr2(&[[3.0, 2.0]]), arr2(&[[1.0, 0.5], [0.5, 2.0]]));
        let kept = arr2(&[[false, false], [true, false], [false, true], [true, true]]);
        let got = group_influence(scores.view(), m.view(), kept.view()).unwrap();
        assert_eq!(got, arr2(&[[0.0], [2.5], [1.0], [3.0]]));
        assert_eq!(shapley(scores.view(), m.view()).unwrap(), arr2(&[[2.25, 0.75]]));
    }

    #[test]
    fn the_closed_form_is_the_shapley_value_of_the_table() {
        let mut stream = Stream::new(1, "quadratic-test");
        let scores = Array2::from_shape_fn((3, 5), |_| stream.normal());
        let half = Array2::from_shape_fn((5, 5), |_| stream.normal());
        let m = &half + &half.t();
        let kept = Array2::from_shape_fn((32, 5), |(mask, k)| mask >> k & 1 == 1);
        let table = group_influence(scores.view(), m.view(), kept.view()).unwrap();
        let closed = shapley(scores.view(), m.view()).unwrap();
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        for k in 0..5 {
            for q in 0..3 {
                let gain = |mask: usize| {
                    let size = mask.count_ones() as usize;
                    factorial(size) * factorial(4 - size) / factorial(5)
                        * (table[(mask | 1 << k, q)] - table[(mask, q)])
                };
                let exact: f64 = (0..32).filter(|mask| mask >> k & 1 == 0).map(gain).sum();
                assert!((exact - closed[(q, k)]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn overlap_by_hand() {
        use crate::block_fisher::Covariance;
        // Mean diagonal 3, λ = 1.5: inverses 1/3.5 and 1/5.5.
        let columns = vec![ascribe_core::Column { name: "m".into(), start: 0, len: 2 }];
        let covariance = Covariance::from_parts(columns, 10, vec![arr2(&[[2.0, 0.0], [0.0, 4.0]])]).unwrap();
        let factors = covariance.cholesky(0.5).unwrap();
        let got = overlap(&factors, arr2(&[[1.0, 0.0], [1.0, 2.0]]).view()).unwrap();
        let expected = arr2(&[[1.0 / 3.5, 1.0 / 3.5], [1.0 / 3.5, 1.0 / 3.5 + 4.0 / 5.5]]);
        // Sums pass through f32 on one side.
        assert!((&got - &expected).iter().all(|e| e.abs() < 1e-6), "{got}");
        assert_eq!(overlap(&factors, Array2::zeros((2, 2)).view()).unwrap(), Array2::<f64>::zeros((2, 2)));
    }

    #[test]
    fn bad_input_is_named() {
        let kept = arr2(&[[true, false]]);
        let text = |m: Array2<f64>| {
            group_influence(arr2(&[[1.0, 2.0]]).view(), m.view(), kept.view()).unwrap_err().to_string()
        };
        assert!(text(arr2(&[[0.0, 1.0], [2.0, 0.0]])).contains("symmetric at (0, 1)"));
        assert!(text(Array2::zeros((3, 3))).contains("expected (2, 2), found (3, 3)"));
        assert!(text(arr2(&[[0.0, f64::NAN], [0.0, 0.0]])).contains("row 0, column 1"));
    }
}
