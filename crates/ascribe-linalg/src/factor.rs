//! The best rank-c approximation of a small matrix, as two factors. Nothing else is factored here.

use ndarray::{Array2, ArrayView2};

use crate::eigen::SymmetricEigen;
use crate::error::LinalgError;
use crate::gemm::{Threads, gemm_f64};

/// `A ≈ left · rightᵀ`, the best of its rank in the Frobenius norm (Eckart and Young).
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[m, c]`.
    pub left: Array2<f64>,
    /// `[n, c]`.
    pub right: Array2<f64>,
    /// `‖A‖²`.
    pub squared: f64,
    /// `‖A − left·rightᵀ‖²`, from the difference itself.
    pub dropped: f64,
}

/// Factors of `a` `[m, n]` of rank `c = min(rank, m, n)`, both sides carrying the root of the singular values.
///
/// The eigenvectors of the smaller of `A·Aᵀ` and `Aᵀ·A` (f64, one thread) are the singular vectors of that side; the sign of
/// each pair is such that the first largest entry of that side's vector is positive. Cost about `2·m·n·s + 9·s³` with
/// `s = min(m, n)`.
///
/// # Errors
/// [`LinalgError::NotFinite`], [`LinalgError::NoConvergence`].
pub fn factors(a: ArrayView2<'_, f32>, rank: usize) -> Result<Factors, LinalgError> {
    let a = a.mapv(f64::from);
    if a.nrows() > a.ncols() {
        let Factors { left, right, squared, dropped } = of_wide(&a.t().to_owned(), rank)?;
        return Ok(Factors { left: right, right: left, squared, dropped });
    }
    of_wide(&a, rank)
}

/// [`factors`] of a matrix with no more rows than columns.
fn of_wide(a: &Array2<f64>, rank: usize) -> Result<Factors, LinalgError> {
    let (m, n) = a.dim();
    let rank = rank.min(m);
    let mut gram = Array2::zeros((m, m));
    gemm_f64(1.0, a.view(), a.t(), 0.0, gram.view_mut(), Threads::One);
    let eigen = SymmetricEigen::of(gram.view())?;
    let (mut left, mut right) = (Array2::zeros((m, rank)), Array2::zeros((n, rank)));
    for c in 0..rank {
        let vector = eigen.vectors.row(m - 1 - c);
        let largest = vector.iter().fold(0.0f64, |best, &x| if x.abs() > best.abs() { x } else { best });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        let image = a.t().dot(&vector);
        let sigma = image.dot(&image).sqrt();
        if sigma > 0.0 {
            left.column_mut(c).assign(&(&vector * (sign * sigma.sqrt())));
            right.column_mut(c).assign(&(&image * (sign / sigma.sqrt())));
        }
    }
    let mut rest = a.clone();
    gemm_f64(-1.0, left.view(), right.t(), 1.0, rest.view_mut(), Threads::One);
    let sum = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>();
    Ok(Factors { squared: sum(a), dropped: sum(&rest), left, right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use ndarray::arr2;

    fn noise(name: &str, m: usize, n: usize) -> Array2<f32> {
        let mut stream = Stream::new(4, name);
        Array2::from_shape_fn((m, n), |_| stream.normal() as f32)
    }

    /// diag(3, 2) in the upper left of a 2 × 3 matrix: rank 1 keeps the 3, and what is dropped is 2² of 13.
    #[test]
    fn a_diagonal_by_hand() {
        let a = arr2(&[[3.0f32, 0.0, 0.0], [0.0, 2.0, 0.0]]);
        let f = factors(a.view(), 1).unwrap();
        assert!((f.left[(0, 0)] - 3f64.sqrt()).abs() < 1e-12 && (f.right[(0, 0)] - 3f64.sqrt()).abs() < 1e-12);
        assert!((f.squared - 13.0).abs() < 1e-12 && (f.dropped - 4.0).abs() < 1e-12);
        assert_eq!(factors(Array2::zeros((3, 2)).view(), 2).unwrap().dropped, 0.0);
    }

    #[test]
    fn a_matrix_of_low_rank_comes_back_and_tall_is_wide_turned() {
        let a = noise("u", 7, 3).dot(&noise("v", 3, 12));
        for a in [a.clone(), a.t().to_owned()] {
            let f = factors(a.view(), 3).unwrap();
            assert!(f.dropped < 1e-10 * f.squared, "{} {}", f.dropped, f.squared);
            let back = f.left.dot(&f.right.t());
            assert!(back.iter().zip(&a).all(|(x, &y)| (x - f64::from(y)).abs() < 1e-4));
        }
    }

    /// Closed form: what rank c drops is the sum of the smaller eigenvalues of A·Aᵀ; and no other pair of factors does better.
    #[test]
    fn it_is_the_best_of_its_rank() {
        let a = noise("a", 6, 9);
        let wide = a.mapv(f64::from);
        let values = SymmetricEigen::of(wide.dot(&wide.t()).view()).unwrap().values;
        for rank in 0..=6 {
            let f = factors(a.view(), rank).unwrap();
            let expected: f64 = values[..6 - rank].iter().sum();
            assert!((f.dropped - expected).abs() < 1e-9 * f.squared, "{rank}: {} {expected}", f.dropped);
        }
        let f = factors(a.view(), 2).unwrap();
        for h in [1e-2, -1e-2] {
            for i in 0..12 {
                let mut left = f.left.clone();
                left[(i / 2, i % 2)] += h;
                let rest = &wide - &left.dot(&f.right.t());
                assert!(rest.iter().map(|x| x * x).sum::<f64>() > f.dropped);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let mut a = noise("a", 3, 4);
        a[(1, 2)] = f32::NAN;
        assert!(factors(a.view(), 1).is_err());
    }
}
