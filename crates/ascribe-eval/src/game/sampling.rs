//! Values from sampled subsets, for more players than a table holds. Every estimate carries its standard error.

use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2};

use crate::error::{EvalError, check_finite};

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// Estimated values with their sampling errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// `[Q, K]`.
    pub values: Array2<f64>,
    /// `[Q, K]`: standard errors of `values` from the sampling of subsets alone (not from noise that all subsets share).
    pub std_errors: Array2<f64>,
    /// Subsets or orders that were drawn.
    pub n_draws: usize,
}

impl Sampled {
    /// Lower and upper ends of the normal 95 % intervals, each `[Q, K]`.
    pub fn intervals(&self) -> (Array2<f64>, Array2<f64>) {
        (&self.values - &self.std_errors * Z95, &self.values + &self.std_errors * Z95)
    }
}

/// Shapley values as the mean gain over random orders of the players, each order taken with its reverse.
///
/// `utility(kept)` returns the `[Q]` utilities of a subset; it is asked `2·n_pairs·K + 1` times at most (the empty set once) and
/// may cache. Reversed orders halve the variance where gains shrink with the size of the subset. Errors are those of the mean
/// over pairs. Source: Castro et al. 2009; antithetic orders: Mitchell et al., arXiv:2104.12199. Orders come from the streams
/// `"shapley/order/<i>"` under `seed`.
///
/// # Errors
/// Fewer than two pairs (no error could be told), no player, another number of queries, NaN; those of `utility`.
pub fn shapley_permutations<E: From<EvalError>>(
    n_players: usize,
    n_pairs: usize,
    seed: u64,
    mut utility: impl FnMut(&[bool]) -> Result<Vec<f64>, E>,
) -> Result<Sampled, E> {
    if n_players == 0 {
        return Err(EvalError::Empty { what: "the set of players" }.into());
    }
    if n_pairs < 2 {
        return Err(EvalError::shape("pairs of orders", "at least 2", n_pairs).into());
    }
    let empty = utility(&vec![false; n_players])?;
    let n_queries = empty.len();
    let mut ask = |kept: &[bool]| -> Result<Vec<f64>, E> {
        let row = utility(kept)?;
        if row.len() != n_queries {
            return Err(EvalError::shape("queries of a utility", n_queries, row.len()).into());
        }
        match row.iter().position(|u| !u.is_finite()) {
            None => Ok(row),
            Some(q) => Err(EvalError::NotFinite { what: "utilities", row: 0, column: q, found: row[q] }.into()),
        }
    };
    let mut moments = Moments::new(n_queries, n_players);
    for pair in 0..n_pairs {
        let mut order: Vec<usize> = (0..n_players).collect();
        Stream::new(seed, &format!("shapley/order/{pair}")).shuffle(&mut order);
        let mut gains = Array2::<f64>::zeros((n_queries, n_players));
        for reversed in [false, true] {
            if reversed {
                order.reverse();
            }
            let (mut kept, mut before) = (vec![false; n_players], empty.clone());
            for &k in &order {
                kept[k] = true;
                let after = ask(&kept)?;
                (0..n_queries).for_each(|q| gains[(q, k)] += 0.5 * (after[q] - before[q]));
                before = after;
            }
        }
        moments.add(&gains);
    }
    let (values, std_errors) = moments.mean_and_error();
    Ok(Sampled { values, std_errors, n_draws: 2 * n_pairs })
}

/// Banzhaf values by maximum sample reuse: for every player the mean outcome of the subsets with it minus that of the subsets
/// without it; every subset serves every player.
///
/// `kept` is `[M, K]`, `outcomes` `[M, Q]`. Unbiased for subsets that hold each player independently with probability ½; for
/// other draws (all subsets of one size) it estimates the value of that draw. Errors from the two groups' variances. Source: Data
/// Banzhaf, arXiv:2205.15466, §4.
///
/// # Errors
/// Shapes; NaN; a player with fewer than two subsets on either side.
pub fn banzhaf_msr(kept: ArrayView2<'_, bool>, outcomes: ArrayView2<'_, f64>) -> Result<Sampled, EvalError> {
    let (n_subsets, n_players) = kept.dim();
    if outcomes.nrows() != n_subsets {
        return Err(EvalError::shape("outcomes, one row per subset", n_subsets, outcomes.nrows()));
    }
    check_finite("outcomes", outcomes)?;
    let n_queries = outcomes.ncols();
    let (mut values, mut std_errors) = (Array2::zeros((n_queries, n_players)), Array2::zeros((n_queries, n_players)));
    for k in 0..n_players {
        let mut sides = [Moments::new(n_queries, 1), Moments::new(n_queries, 1)];
        for (row, outcome) in kept.rows().into_iter().zip(outcomes.rows()) {
            sides[usize::from(row[k])].add(&outcome.to_owned().insert_axis(ndarray::Axis(1)));
        }
        let smaller = sides[0].n.min(sides[1].n);
        if smaller < 2 {
            let expected = format!("at least 2 with and 2 without player {k}");
            return Err(EvalError::shape("subsets for a Banzhaf estimate", expected, smaller));
        }
        let ((mean_without, error_without), (mean_with, error_with)) =
            (sides[0].mean_and_error(), sides[1].mean_and_error());
        for q in 0..n_queries {
            values[(q, k)] = mean_with[(q, 0)] - mean_without[(q, 0)];
            std_errors[(q, k)] = error_with[(q, 0)].hypot(error_without[(q, 0)]);
        }
    }
    Ok(Sampled { values, std_errors, n_draws: n_subsets })
}

/// Running means and squared deviations (Welford), so that large utilities do not drown small differences.
struct Moments {
    n: usize,
    mean: Array2<f64>,
    squares: Array2<f64>,
}

impl Moments {
    fn new(rows: usize, columns: usize) -> Self {
        Self { n: 0, mean: Array2::zeros((rows, columns)), squares: Array2::zeros((rows, columns)) }
    }

    fn add(&mut self, values: &Array2<f64>) {
        self.n += 1;
        let n = self.n as f64;
        ndarray::Zip::from(&mut self.mean).and(&mut self.squares).and(values).for_each(|mean, squares, &v| {
            let before = v - *mean;
            *mean += before / n;
            *squares += before * (v - *mean);
        });
    }

    /// Mean and its standard error; needs two values.
    fn mean_and_error(&self) -> (Array2<f64>, Array2<f64>) {
        let n = self.n as f64;
        (self.mean.clone(), self.squares.mapv(|s| (s / (n - 1.0) / n).sqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::game::Game;

    fn game(k: usize, seed: u64) -> Game {
        let mut stream = Stream::new(seed, "sampling-test");
        Game::new(Array2::from_shape_fn((1 << k, 2), |(m, q)| {
            100.0 + (m.count_ones() as f64).sqrt() * (q + 1) as f64 + 0.3 * stream.normal()
        }))
        .unwrap()
    }

    fn utility(game: &Game, kept: &[bool]) -> Result<Vec<f64>, EvalError> {
        let mask = kept.iter().enumerate().fold(0usize, |m, (k, &kept)| m | usize::from(kept) << k);
        Ok(game.utilities().row(mask).to_vec())
    }

    #[test]
    fn permutations_cover_the_exact_values() {
        let game = game(6, 1);
        let exact = game.shapley();
        let mut covered = 0;
        for seed in 0..20 {
            let got = shapley_permutations(6, 60, seed, |kept| utility(&game, kept)).unwrap();
            let (low, high) = got.intervals();
            covered += exact.indexed_iter().filter(|(at, v)| low[*at] <= **v && **v <= high[*at]).count();
            // Every order adds up to the gain exactly, hence so do the means.
            assert!(game.efficiency_residual(got.values.view()).iter().all(|r| r.abs() < 1e-10));
        }
        // 240 intervals at 95 %: 228 expected, 3.4 the deviation of independent ones; those of one seed hang together.
        assert!((205..=240).contains(&covered), "{covered}");
    }

    #[test]
    fn all_subsets_give_the_exact_banzhaf_values() {
        let game = game(5, 2);
        let got = banzhaf_msr(game.members().view(), game.utilities()).unwrap();
        assert!((&got.values - &game.banzhaf()).iter().all(|e| e.abs() < 1e-12));
    }

    #[test]
    fn sampled_banzhaf_intervals_cover() {
        let game = game(6, 3);
        let exact = game.banzhaf();
        let mut covered = 0;
        for seed in 0..20 {
            let mut stream = Stream::new(seed, "msr-test");
            let masks: Vec<usize> = (0..80).map(|_| stream.below(64) as usize).collect();
            let kept = Array2::from_shape_fn((80, 6), |(m, k)| masks[m] >> k & 1 == 1);
            let got = banzhaf_msr(kept.view(), game.utilities().select(ndarray::Axis(0), &masks).view()).unwrap();
            let (low, high) = got.intervals();
            covered += exact.indexed_iter().filter(|(at, v)| low[*at] <= **v && **v <= high[*at]).count();
        }
        assert!((205..=240).contains(&covered), "{covered}");
    }

    #[test]
    fn bad_input_is_named() {
        let game = game(3, 4);
        let text = |pairs| shapley_permutations(3, pairs, 1, |kept| utility(&game, kept)).unwrap_err().to_string();
        assert!(text(1).contains("at least 2"));
        let nan = shapley_permutations(2, 2, 1, |kept| -> Result<Vec<f64>, EvalError> {
            Ok(vec![if kept[0] { f64::NAN } else { 0.0 }])
        });
        assert!(nan.unwrap_err().to_string().contains("utilities, row 0, column 0"));
        let always = Array2::from_elem((4, 2), true);
        let error = banzhaf_msr(always.view(), Array2::zeros((4, 1)).view()).unwrap_err().to_string();
        assert!(error.contains("without player 0") && error.contains("found 0"), "{error}");
    }
}
