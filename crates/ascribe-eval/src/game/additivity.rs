//! How far is a game from a sum of its players' scores? To be looked at before anybody is paid by such a sum.

use ndarray::{Array2, ArrayView2};

use super::Game;
use crate::error::{EvalError, check_finite};

/// Whether scores are in the unit of the utility.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// Prediction `U(∅) + Σ_{k∈S} s_k`: for values of the game itself (Shapley, Banzhaf).
    AsGiven,
    /// Prediction `a_q + b_q Σ_{k∈S} s_k` with least-squares `a`, `b ≥ 0` per query: for influence scores in a unit of their
    /// own. What is left is the fault of additivity and of the scores' proportions, not of their unit.
    Scaled,
}

/// Residuals of an additive prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Additivity {
    /// `[2^K, Q]`: utility minus prediction.
    pub residuals: Array2<f64>,
    /// Per query `1 − Σ residual² / Σ (U − mean U)²` over all subsets; `None` where utilities are constant. Below 0 is worse than
    /// a constant.
    pub r2: Vec<Option<f64>>,
}

/// Compares a game with sums of scores `[Q, K]`, over all `2^K` subsets.
///
/// # Errors
/// Shapes; NaN.
pub fn additivity(game: &Game, scores: ArrayView2<'_, f64>, fit: Fit) -> Result<Additivity, EvalError> {
    if scores.dim() != (game.n_queries(), game.n_players()) {
        return Err(EvalError::shape("scores of the players", (game.n_queries(), game.n_players()), scores.dim()));
    }
    check_finite("scores", scores)?;
    let members = game.members();
    let mut residuals = game.utilities().to_owned();
    let mut r2 = Vec::with_capacity(game.n_queries());
    for (q, mut column) in residuals.columns_mut().into_iter().enumerate() {
        let sum = |m: usize| (0..game.n_players()).filter(|&k| members[(m, k)]).map(|k| scores[(q, k)]).sum::<f64>();
        let sums: Vec<f64> = (0..column.len()).map(sum).collect();
        let n = column.len() as f64;
        let (mean_u, mean_s) = (column.sum() / n, sums.iter().sum::<f64>() / n);
        let (a, b) = match fit {
            Fit::AsGiven => (column[0], 1.0),
            Fit::Scaled => {
                let (mut us, mut ss) = (0.0, 0.0);
                for (u, s) in column.iter().zip(&sums) {
                    us += (u - mean_u) * (s - mean_s);
                    ss += (s - mean_s) * (s - mean_s);
                }
                let b = if ss > 0.0 { (us / ss).max(0.0) } else { 0.0 };
                (mean_u - b * mean_s, b)
            }
        };
        let total: f64 = column.iter().map(|u| (u - mean_u) * (u - mean_u)).sum();
        column.iter_mut().zip(&sums).for_each(|(u, s)| *u -= a + b * s);
        let left: f64 = column.iter().map(|r| r * r).sum();
        r2.push((total > 0.0).then(|| 1.0 - left / total));
    }
    Ok(Additivity { residuals, r2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn an_additive_game_leaves_nothing() {
        let sum = |m: usize| 5.0 + 2.0 * f64::from(u8::from(m & 1 != 0)) - f64::from(u8::from(m & 2 != 0));
        let game = Game::new(Array2::from_shape_fn((4, 1), |(m, _)| sum(m))).unwrap();
        for (scores, fit) in [([2.0, -1.0], Fit::AsGiven), ([200.0, -100.0], Fit::Scaled)] {
            let got = additivity(&game, arr2(&[scores]).view(), fit).unwrap();
            assert!(got.residuals.iter().all(|r| r.abs() < 1e-12) && (got.r2[0].unwrap() - 1.0).abs() < 1e-12);
        }
        // The wrong sign is not turned around: b = 0 is the mean.
        let got = additivity(&game, arr2(&[[-2.0, 1.0]]).view(), Fit::Scaled).unwrap();
        assert_eq!(got.r2[0], Some(0.0));
    }

    #[test]
    fn redundancy_by_hand() {
        // Either of two players is enough: U = 0, 1, 1, 1, Shapley (½, ½): residuals 0, ½, ½, 0; Σ(U − ¾)² = ¾.
        let game = Game::new(arr2(&[[0.0], [1.0], [1.0], [1.0]])).unwrap();
        let got = additivity(&game, game.shapley().view(), Fit::AsGiven).unwrap();
        assert_eq!(got.residuals, arr2(&[[0.0], [0.5], [0.5], [0.0]]));
        assert!((got.r2[0].unwrap() - (1.0 - 0.5 / 0.75)).abs() < 1e-15);
        // Least squares over the square: 1 − ¼/¾.
        let got = additivity(&game, game.banzhaf().view(), Fit::Scaled).unwrap();
        assert!((got.r2[0].unwrap() - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn constant_games_have_no_r2() {
        let game = Game::new(Array2::from_elem((4, 1), 2.0)).unwrap();
        assert_eq!(additivity(&game, Array2::zeros((1, 2)).view(), Fit::AsGiven).unwrap().r2, [None]);
        assert!(additivity(&game, Array2::zeros((1, 3)).view(), Fit::AsGiven).is_err());
        assert!(additivity(&game, arr2(&[[0.0, f64::NAN]]).view(), Fit::AsGiven).is_err());
    }
}
