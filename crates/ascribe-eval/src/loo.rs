//! Leave-one-out correlation: do scores say what leaving one player out does to a query?
//!
//! Pearson correlation per query over the players that were left out. Source: the protocol of dattri (arXiv:2410.04555); size
//! counts here, not order alone. Here never lives: which players are left out (that is the bank's plan).

use ndarray::ArrayView2;

use crate::error::{EvalError, check_finite};
use crate::rank::pearson;

/// Per query the Pearson correlation between scores and measured worth over players.
///
/// `scores` and `worth` are `[Q, R]`, columns are the same R players: the score (positive = proponent), and the query's
/// outcome with all players minus its outcome without this one (positive = its presence helped). `None` for a query whose
/// scores or worths are constant. Cost `Q·R`.
///
/// # Errors
/// Shapes; NaN; fewer than two players.
pub fn loo_correlation(scores: ArrayView2<'_, f64>, worth: ArrayView2<'_, f64>) -> Result<Vec<Option<f64>>, EvalError> {
    if scores.dim() != worth.dim() {
        return Err(EvalError::shape("scores of the players left out", worth.dim(), scores.dim()));
    }
    if scores.ncols() < 2 {
        return Err(EvalError::shape("players left out", "at least 2", scores.ncols()));
    }
    check_finite("scores", scores)?;
    check_finite("worth of the players left out", worth)?;
    Ok(scores.rows().into_iter().zip(worth.rows()).map(|(s, w)| pearson(&s.to_vec(), &w.to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    #[test]
    fn by_hand() {
        // Deviations (−1, 0, 1) and (−1, −1, 2)/1: 3/√(2·6).
        let got = loo_correlation(
            arr2(&[[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]).view(),
            arr2(&[[0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]).view(),
        )
        .unwrap();
        assert!((got[0].unwrap() - 3.0 / 12.0f64.sqrt()).abs() < 1e-15);
        assert_eq!(got[1], None);
    }

    #[test]
    fn bad_input_is_named() {
        let text = |s: &Array2<f64>, w: &Array2<f64>| loo_correlation(s.view(), w.view()).unwrap_err().to_string();
        assert!(text(&Array2::zeros((1, 3)), &Array2::zeros((1, 2))).contains("expected (1, 2), found (1, 3)"));
        assert!(text(&Array2::zeros((1, 1)), &Array2::zeros((1, 1))).contains("at least 2"));
        assert!(text(&Array2::zeros((1, 2)), &arr2(&[[0.0, f64::NAN]])).contains("row 0, column 1"));
    }
}
