//! Games that datasets play: a utility for every subset, per query, and what each player is worth in it.
//!
//! Here lives: the table of utilities (`Game`), exact Shapley and Banzhaf values, leave-one-out, their estimators from sampled
//! subsets (`sampling`), shares of what a training gained (`royalty`), and how far a game is from a sum of its players
//! (`additivity`). Here never lives: where utilities come from (a retrain bank, or a predicted one).
//!
//! A subset is a bit mask: bit k is set when player k is in. Values are per query, `[Q, K]`, in the unit of the utility.

mod additivity;
mod royalty;
mod sampling;
mod values;

use ndarray::{Array2, ArrayView2};

use crate::error::{EvalError, check_finite};

pub use additivity::{Additivity, Fit, additivity};
pub use royalty::{Royalty, royalty};
pub use sampling::{Sampled, banzhaf_msr, shapley_permutations};

/// Most players of an exact table: 4,096 utilities per query.
pub const MAX_PLAYERS: usize = 12;

/// Utilities of all subsets.
#[derive(Clone, Debug, PartialEq)]
pub struct Game {
    n_players: usize,
    /// `[2^K, Q]`.
    utilities: Array2<f64>,
}

impl Game {
    /// From a table `[2^K, Q]`; row m is the subset with mask m. Larger is better.
    ///
    /// # Errors
    /// A number of rows that is no power of two up to `2^`[`MAX_PLAYERS`], at least 2; no query; NaN.
    pub fn new(utilities: Array2<f64>) -> Result<Self, EvalError> {
        let rows = utilities.nrows();
        if !(rows.is_power_of_two() && (2..=1 << MAX_PLAYERS).contains(&rows)) {
            let expected = format!("2^K for 1 to {MAX_PLAYERS} players");
            return Err(EvalError::shape("subsets of a game", expected, rows));
        }
        if utilities.ncols() == 0 {
            return Err(EvalError::Empty { what: "the set of queries of a game" });
        }
        check_finite("utilities", utilities.view())?;
        Ok(Self { n_players: rows.trailing_zeros() as usize, utilities })
    }

    /// From subsets in any order: `kept` is `[2^K, K]`, `outcomes` `[2^K, Q]`.
    ///
    /// # Errors
    /// As [`Game::new`]; a subset that is missing or there twice.
    pub fn from_subsets(kept: ArrayView2<'_, bool>, outcomes: ArrayView2<'_, f64>) -> Result<Self, EvalError> {
        let (n_subsets, n_players) = kept.dim();
        if outcomes.nrows() != n_subsets {
            return Err(EvalError::shape("outcomes, one row per subset", n_subsets, outcomes.nrows()));
        }
        if n_players == 0 || n_players > MAX_PLAYERS || n_subsets != 1 << n_players {
            return Err(EvalError::shape("subsets of a game of all subsets", format!("2^{n_players}"), n_subsets));
        }
        let mut utilities = Array2::from_elem(outcomes.dim(), f64::NAN);
        let mut seen = vec![false; n_subsets];
        for (row, outcome) in kept.rows().into_iter().zip(outcomes.rows()) {
            let mask = row.iter().enumerate().fold(0usize, |m, (k, &kept)| m | usize::from(kept) << k);
            if std::mem::replace(&mut seen[mask], true) {
                return Err(EvalError::shape("subsets of a game", "every subset once", format!("mask {mask} twice")));
            }
            utilities.row_mut(mask).assign(&outcome);
        }
        Self::new(utilities)
    }

    /// Players K.
    pub fn n_players(&self) -> usize {
        self.n_players
    }

    /// Queries Q.
    pub fn n_queries(&self) -> usize {
        self.utilities.ncols()
    }

    /// `[2^K, Q]`.
    pub fn utilities(&self) -> ArrayView2<'_, f64> {
        self.utilities.view()
    }

    /// `[2^K, K]`: who is in each subset.
    pub fn members(&self) -> Array2<bool> {
        Array2::from_shape_fn((self.utilities.nrows(), self.n_players), |(m, k)| m >> k & 1 == 1)
    }

    /// Per query `U(all) − U(∅)`: what training gained.
    pub fn gain(&self) -> Vec<f64> {
        let last = self.utilities.nrows() - 1;
        (0..self.n_queries()).map(|q| self.utilities[(last, q)] - self.utilities[(0, q)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    #[test]
    fn subsets_in_any_order_make_the_same_game() {
        let kept = arr2(&[[true, true], [false, false], [false, true], [true, false]]);
        let game = Game::from_subsets(kept.view(), arr2(&[[3.0], [0.0], [2.0], [1.0]]).view()).unwrap();
        assert_eq!(game, Game::new(arr2(&[[0.0], [1.0], [2.0], [3.0]])).unwrap());
        assert_eq!((game.n_players(), game.n_queries(), game.gain()), (2, 1, vec![3.0]));
        assert_eq!(game.members().row(2).to_vec(), [false, true]);
    }

    #[test]
    fn bad_input_is_named() {
        let text = |u: Array2<f64>| Game::new(u).unwrap_err().to_string();
        assert!(text(Array2::zeros((3, 1))).contains("found 3"));
        assert!(text(Array2::zeros((1, 1))).contains("found 1"));
        assert!(text(Array2::zeros((8192, 1))).contains("found 8192"));
        assert!(text(Array2::zeros((4, 0))).contains("is empty"));
        assert!(text(arr2(&[[0.0], [f64::NAN]])).contains("utilities, row 1"));
        let twice = arr2(&[[true, true], [false, false], [true, true], [true, false]]);
        let error = Game::from_subsets(twice.view(), Array2::zeros((4, 1)).view()).unwrap_err().to_string();
        assert!(error.contains("mask 3 twice"), "{error}");
        let short = arr2(&[[true, true], [false, false]]);
        assert!(Game::from_subsets(short.view(), Array2::zeros((2, 1)).view()).is_err());
    }
}
