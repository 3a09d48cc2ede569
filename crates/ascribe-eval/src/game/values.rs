//! Exact values from a table of all subsets: Shapley, Banzhaf, leave-one-out.

use ndarray::Array2;

use super::Game;

impl Game {
    /// Shapley values `[Q, K]`: `φ_k = Σ_{S∌k} |S|!(K−|S|−1)!/K! · [U(S∪k) − U(S)]`.
    ///
    /// Source: Shapley 1953; for data, arXiv:1904.02868. They add up to `U(all) − U(∅)` (to rounding, see
    /// [`Game::efficiency_residual`]). Sums in f64 in mask order; cost `2^K·K·Q`.
    pub fn shapley(&self) -> Array2<f64> {
        // |S|!(K−|S|−1)!/K! = 1/(K·C(K−1, |S|)).
        let k = self.n_players;
        let mut binomial = 1.0;
        let weights: Vec<f64> = (0..k)
            .map(|s| {
                let weight = 1.0 / (k as f64 * binomial);
                binomial *= (k - 1 - s) as f64 / (s + 1) as f64;
                weight
            })
            .collect();
        self.weighted_gains(|size| weights[size])
    }

    /// Banzhaf values `[Q, K]`: the mean gain of a player over all subsets of the others, `2^{1−K} Σ_{S∌k} [U(S∪k) − U(S)]`.
    ///
    /// The least sensitive of all such values to noise in the utilities, and the slope of the best additive approximation of
    /// the table; they do not add up to the whole. Source: Data Banzhaf, arXiv:2205.15466. Cost as [`Game::shapley`].
    pub fn banzhaf(&self) -> Array2<f64> {
        let weight = 0.5f64.powi(self.n_players as i32 - 1);
        self.weighted_gains(|_| weight)
    }

    /// Leave-one-out worth `[Q, K]`: `U(all) − U(all but k)`.
    pub fn leave_one_out(&self) -> Array2<f64> {
        let last = self.n_players - 1;
        self.weighted_gains(|size| if size == last { 1.0 } else { 0.0 })
    }

    /// Per query `Σ_k φ_k − (U(all) − U(∅))`: zero but for rounding for Shapley values, and what any other values (Banzhaf,
    /// leave-one-out, influence sums `[Q, K]`) leave open.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn efficiency_residual(&self, values: ndarray::ArrayView2<'_, f64>) -> Vec<f64> {
        assert_eq!(values.dim(), (self.n_queries(), self.n_players), "one value per query and player");
        self.gain().iter().zip(values.rows()).map(|(gain, row)| row.sum() - gain).collect()
    }

    /// `Σ_{S∌k} weight(|S|)·[U(S∪k) − U(S)]`, `[Q, K]`.
    fn weighted_gains(&self, weight: impl Fn(usize) -> f64) -> Array2<f64> {
        let mut out = Array2::zeros((self.n_queries(), self.n_players));
        for k in 0..self.n_players {
            let mut column = out.column_mut(k);
            for mask in (0..self.utilities.nrows()).filter(|mask| mask >> k & 1 == 0) {
                let weight = weight(mask.count_ones() as usize);
                let (without, with) = (self.utilities.row(mask), self.utilities.row(mask | 1 << k));
                ndarray::Zip::from(&mut column).and(&without).and(&with).for_each(|v, &a, &b| *v += weight * (b - a));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    fn noise(k: usize, q: usize, seed: u64) -> Game {
        let mut stream = Stream::new(seed, "game-test");
        Game::new(Array2::from_shape_fn((1 << k, q), |_| stream.normal())).unwrap()
    }

    fn close(a: &Array2<f64>, b: &Array2<f64>) {
        assert!((a - b).iter().all(|e| e.abs() < 1e-12), "{a} {b}");
    }

    #[test]
    fn gloves_by_hand() {
        // Players 0 and 1 have a left glove each, 2 the right one; a pair is worth 1. Known: (1/6, 1/6, 2/3).
        let pair = |m: usize| f64::from(u8::from(m & 4 != 0 && m & 3 != 0));
        let game = Game::new(Array2::from_shape_fn((8, 1), |(m, _)| pair(m))).unwrap();
        close(&game.shapley(), &arr2(&[[1.0 / 6.0, 1.0 / 6.0, 2.0 / 3.0]]));
        // Banzhaf: player 0 turns 1 of 4 subsets, player 2 turns 3.
        close(&game.banzhaf(), &arr2(&[[0.25, 0.25, 0.75]]));
        close(&game.leave_one_out(), &arr2(&[[0.0, 0.0, 1.0]]));
        assert!((game.efficiency_residual(game.banzhaf().view())[0] - 0.25).abs() < 1e-15);
    }

    #[test]
    fn shapley_is_the_mean_over_all_orders() {
        // The definition by orders is a second route: 4! of them.
        let game = noise(4, 3, 1);
        let mut total = Array2::zeros((3, 4));
        let mut orders = 0;
        for code in 0..4usize.pow(4) {
            let order: Vec<usize> = (0..4).map(|i| code / 4usize.pow(i) % 4).collect();
            if (0..4).any(|k| !order.contains(&k)) {
                continue;
            }
            orders += 1;
            let mut mask = 0;
            for k in order {
                for q in 0..3 {
                    total[(q, k)] += game.utilities()[(mask | 1 << k, q)] - game.utilities()[(mask, q)];
                }
                mask |= 1 << k;
            }
        }
        assert_eq!(orders, 24);
        close(&game.shapley(), &(total / 24.0));
    }

    #[test]
    fn axioms_hold() {
        for k in 1..=8 {
            let game = noise(k, 2, k as u64);
            assert!(game.efficiency_residual(game.shapley().view()).iter().all(|r| r.abs() < 1e-12));
        }
        // A null player gets nothing, twins get the same, a sum of games gets the sum.
        let (a, b) = (noise(3, 1, 5), noise(3, 1, 6));
        let sum = Game::new(&a.utilities + &b.utilities).unwrap();
        close(&sum.shapley(), &(a.shapley() + b.shapley()));
        let null = Game::new(Array2::from_shape_fn((8, 1), |(m, _)| a.utilities[(m & 3, 0)])).unwrap();
        assert_eq!((null.shapley()[(0, 2)], null.banzhaf()[(0, 2)]), (0.0, 0.0));
        let twins = Game::new(Array2::from_shape_fn((8, 1), |(m, _)| f64::from(m.count_ones()).sqrt())).unwrap();
        let phi = twins.shapley();
        assert!((phi[(0, 0)] - phi[(0, 2)]).abs() < 1e-15 && (phi[(0, 0)] - 3f64.sqrt() / 3.0).abs() < 1e-15);
    }

    #[test]
    fn in_an_additive_game_every_value_is_the_score() {
        let scores = [2.0, -1.0, 0.5];
        let sum = |m: usize| 7.0 + (0..3).filter(|k| m >> k & 1 == 1).map(|k| scores[k]).sum::<f64>();
        let game = Game::new(Array2::from_shape_fn((8, 1), |(m, _)| sum(m))).unwrap();
        for values in [game.shapley(), game.banzhaf(), game.leave_one_out()] {
            close(&values, &arr2(&[scores]));
        }
    }

    #[test]
    fn banzhaf_is_the_slope_of_the_best_additive_approximation() {
        // Least squares over all masks: contrasts ±1 are orthogonal, so the slope of player k is Σ_m ±U/2^{K−1}.
        let game = noise(5, 1, 9);
        let slope = |k: usize| {
            (0..32).map(|m| if m >> k & 1 == 1 { 1.0 } else { -1.0 } * game.utilities[(m, 0)]).sum::<f64>() / 16.0
        };
        let expected = Array2::from_shape_fn((1, 5), |(_, k)| slope(k));
        close(&game.banzhaf(), &expected);
    }
}
