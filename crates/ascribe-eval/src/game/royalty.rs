//! What a training gained, divided among those who made it possible.
//!
//! With `U(S) = log p_S(response)`, `U(S) − U(∅)` is the gain in log-likelihood over a model that saw none of the players;
//! a share is a Shapley value over the sum of the positive ones. Source: Wang et al., "An Economic Solution to Copyright
//! Challenges of Generative AI", arXiv:2404.13964.

use ndarray::{Array2, ArrayView2};

use crate::error::{EvalError, check_finite};
use crate::shares::clip_and_normalise;

/// Shares from values, and what clipping took away.
#[derive(Clone, Debug, PartialEq)]
pub struct Royalty {
    /// `[Q, K]`: values clipped at zero, divided by their sum; zeros in the rows of queries without shares.
    pub shares: Array2<f64>,
    /// Queries with at least one positive value, rising.
    pub usable: Vec<usize>,
    /// `[Q]`: `Σ|negative values| / Σ|values|`, the part that clipping ignored; 0 where all values are zero.
    pub clipped: Vec<f64>,
}

/// Royalty shares from values `[Q, K]`.
///
/// Clipping is per player, which is harmless only while a player cannot split: see `methods::group::fgsv` for the attack and
/// for a value that does not reward it.
///
/// # Errors
/// NaN; no query or no player.
pub fn royalty(values: ArrayView2<'_, f64>) -> Result<Royalty, EvalError> {
    if values.is_empty() {
        return Err(EvalError::Empty { what: "the table of values" });
    }
    check_finite("values", values)?;
    let mut shares = Array2::zeros(values.dim());
    let (mut usable, mut clipped) = (Vec::new(), Vec::new());
    for (q, row) in values.rows().into_iter().enumerate() {
        if let Some(share) = clip_and_normalise(row) {
            shares.row_mut(q).assign(&share);
            usable.push(q);
        }
        let (negative, all) = row.iter().fold((0.0, 0.0), |(n, a), v| (n + (-v).max(0.0), a + v.abs()));
        clipped.push(if all > 0.0 { negative / all } else { 0.0 });
    }
    Ok(Royalty { shares, usable, clipped })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn by_hand() {
        let got = royalty(arr2(&[[3.0, -1.0, 1.0], [-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]).view()).unwrap();
        assert_eq!(got.shares.row(0).to_vec(), [0.75, 0.0, 0.25]);
        assert_eq!((got.usable, got.clipped), (vec![0], vec![0.2, 1.0, 0.0]));
        assert_eq!(got.shares.row(1).sum() + got.shares.row(2).sum(), 0.0);
        let error = royalty(arr2(&[[f64::NAN]]).view()).unwrap_err().to_string();
        assert!(error.contains("values, row 0, column 0"), "{error}");
        assert!(royalty(Array2::zeros((0, 2)).view()).is_err());
    }
}
