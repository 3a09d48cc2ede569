//! Eigenvalues and eigenvectors of symmetric f64 matrices, through faer, on the calling thread.
//!
//! One decomposition gives every damping of a curvature block for free: `(A + λI)⁻¹ = Vᵀ diag(1/(λ_j + λ)) V`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, Par, diag::DiagMut};
use ndarray::{Array2, ArrayView2};

use crate::chol::check_symmetric_input;
use crate::error::LinalgError;

/// `A = Σ_j values[j] · v_j v_jᵀ`.
#[derive(Clone, Debug)]
pub struct SymmetricEigen {
    /// Eigenvalues in rising order.
    pub values: Vec<f64>,
    /// `[n, n]`; **row** j is the unit eigenvector of `values[j]`. Its sign is whatever the solver gave.
    pub vectors: Array2<f64>,
}

impl SymmetricEigen {
    /// Decomposes `a`, `[n, n]`; only the lower triangle is read. Cost about `9·n³`.
    ///
    /// # Errors
    /// [`LinalgError::NotSquare`], [`LinalgError::NotFinite`], [`LinalgError::NoConvergence`].
    pub fn of(a: ArrayView2<'_, f64>) -> Result<Self, LinalgError> {
        let n = check_symmetric_input(a)?;
        let mut values = vec![0.0f64; n];
        if n == 0 {
            return Ok(Self { values, vectors: Array2::zeros((0, 0)) });
        }
        let lower = Mat::from_fn(n, n, |i, j| a[(i.max(j), i.min(j))]);
        let mut vectors = Mat::<f64>::zeros(n, n);
        let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        let mut memory = MemBuffer::new(scratch);
        self_adjoint_evd(
            lower.as_ref(),
            DiagMut::from_slice_mut(&mut values),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut memory),
            Default::default(),
        )
        .map_err(|_| LinalgError::NoConvergence { dim: n })?;
        let vectors = Array2::from_shape_fn((n, n), |(j, i)| vectors[(i, j)]);
        Ok(Self { values, vectors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use ndarray::{Array1, arr2};

    #[test]
    fn a_two_by_two_by_hand() {
        // [[2, 1], [1, 2]] has eigenvalues 1 and 3 with vectors (1, −1)/√2 and (1, 1)/√2.
        let eigen = SymmetricEigen::of(arr2(&[[2.0, 0.0], [1.0, 2.0]]).view()).unwrap();
        assert!((eigen.values[0] - 1.0).abs() < 1e-15 && (eigen.values[1] - 3.0).abs() < 1e-15);
        assert!((eigen.vectors[(1, 0)] - eigen.vectors[(1, 1)]).abs() < 1e-15);
        assert!((eigen.vectors[(0, 0)] + eigen.vectors[(0, 1)]).abs() < 1e-15);
    }

    #[test]
    fn the_parts_give_back_the_whole() {
        for n in [1, 3, 40, 130] {
            let mut stream = Stream::new(n as u64, "eigen-test");
            let g = Array2::from_shape_fn((n / 2 + 1, n), |_| stream.normal());
            let a = g.t().dot(&g); // rank deficient: half of the eigenvalues are zero
            let eigen = SymmetricEigen::of(a.view()).unwrap();
            let back =
                eigen.vectors.t().dot(&Array2::from_diag(&Array1::from(eigen.values.clone()))).dot(&eigen.vectors);
            let norm = a.iter().map(|x| x * x).sum::<f64>().sqrt();
            // Backward error of a symmetric eigensolver: a small multiple of n·eps·‖A‖ for the whole matrix.
            let error = (&back - &a).iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(error <= 8.0 * n as f64 * f64::EPSILON * norm, "n = {n}: {error}");
            let gram = eigen.vectors.dot(&eigen.vectors.t()) - Array2::<f64>::eye(n);
            assert!(gram.iter().all(|x| x.abs() <= 8.0 * n as f64 * f64::EPSILON));
            assert!(eigen.values.windows(2).all(|w| w[0] <= w[1]));
        }
    }

    #[test]
    fn nan_is_refused() {
        let nan = arr2(&[[1.0, 0.0], [f64::NAN, 1.0]]);
        assert!(matches!(SymmetricEigen::of(nan.view()), Err(LinalgError::NotFinite { row: 1, col: 0, .. })));
    }
}
