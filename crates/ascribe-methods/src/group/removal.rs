//! The game that second-order group influence plays: what is lost when several datasets go together.
//!
//! Taking the datasets S out costs a query `w(S) = Σ_{k∈S} s_k + Σ_{k,l∈S} R_kl` to second order, R from
//! [`super::additivity::second_order`]; keeping S is worth `U(S) = w(all) − w(all∖S)`. Source: second-order group influence, Basu et al.,
//! arXiv:1911.00418. Every player's gain is linear in who came before, so Shapley value, Banzhaf value and the split-proof group value
//! are one number, `φ_k = s_k + ½ Σ_l (R_kl + R_lk)`, and no sampling is needed. Both terms are sums over the members of a dataset
//! (`R_kl = Σ_{i∈k, j∈l} r_ij`), so an owner who registers a dataset in parts gains nothing. Here never lives: how R is made.

use ndarray::{Array2, Array3, ArrayView2};

use super::MAX_DATASETS;
use crate::dot::check_finite;
use crate::error::MethodError;

/// First- and second-order influence of datasets on queries.
#[derive(Clone, Debug, PartialEq)]
pub struct RemovalGame {
    /// `[Q, K]`.
    scores: Array2<f64>,
    /// `[Q, K, K]`.
    pairs: Array3<f64>,
}

impl RemovalGame {
    /// A game from dataset scores `[Q, K]` and `R` `[Q, K, K]`, in one unit.
    ///
    /// # Errors
    /// No query or dataset; shapes; NaN, with its place (of `R` the row is the query's number times K plus k).
    pub fn new(scores: Array2<f64>, pairs: Array3<f64>) -> Result<Self, MethodError> {
        let (q, k) = scores.dim();
        if q == 0 || k == 0 {
            return Err(MethodError::Empty { what: "the set of queries or of datasets" });
        }
        if pairs.dim() != (q, k, k) {
            return Err(MethodError::shape("second-order influence", (q, k, k), pairs.dim()));
        }
        check_finite("dataset scores", scores.view())?;
        let flat = pairs.view().into_shape_with_order((q * k, k)).expect("a fresh table is contiguous");
        check_finite("second-order influence", flat)?;
        Ok(Self { scores, pairs })
    }

    /// Datasets K.
    pub fn n_datasets(&self) -> usize {
        self.scores.ncols()
    }

    /// `[Q, K]`: the values that add up to `w(all)`. Cost `Q·K²`.
    pub fn values(&self) -> Array2<f64> {
        Array2::from_shape_fn(self.scores.dim(), |(q, k)| {
            let joint: f64 = (0..self.n_datasets()).map(|l| self.pairs[(q, k, l)] + self.pairs[(q, l, k)]).sum();
            self.scores[(q, k)] + 0.5 * joint
        })
    }

    /// `[Q, K]`: `w({k})`, what leaving out one dataset costs; not a split-proof value, for comparison.
    pub fn leave_one_out(&self) -> Array2<f64> {
        Array2::from_shape_fn(self.scores.dim(), |(q, k)| self.scores[(q, k)] + self.pairs[(q, k, k)])
    }

    /// `U(S)` `[Q]` of the kept datasets. Cost `Q·K²`.
    ///
    /// # Errors
    /// Another number of datasets.
    pub fn utility(&self, kept: &[bool]) -> Result<Vec<f64>, MethodError> {
        if kept.len() != self.n_datasets() {
            return Err(MethodError::shape("datasets of a subset", self.n_datasets(), kept.len()));
        }
        let whole: Vec<usize> = (0..kept.len()).collect();
        let gone: Vec<usize> = (0..kept.len()).filter(|&k| !kept[k]).collect();
        let lost = |q: usize, set: &[usize]| -> f64 {
            let pairs = set.iter().flat_map(|&k| set.iter().map(move |&l| (q, k, l)));
            set.iter().map(|&k| self.scores[(q, k)]).sum::<f64>() + pairs.map(|at| self.pairs[at]).sum::<f64>()
        };
        Ok((0..self.scores.nrows()).map(|q| lost(q, &whole) - lost(q, &gone)).collect())
    }

    /// `U` of all subsets, `[2^K, Q]`; row m is the subset with bit mask m.
    ///
    /// # Errors
    /// More than [`MAX_DATASETS`] datasets.
    pub fn table(&self) -> Result<Array2<f64>, MethodError> {
        let k = self.n_datasets();
        if k > MAX_DATASETS {
            return Err(MethodError::shape("datasets of a table of all subsets", format!("1 to {MAX_DATASETS}"), k));
        }
        let mut out = Array2::zeros((1 << k, self.scores.nrows()));
        for (mask, mut row) in out.rows_mut().into_iter().enumerate() {
            let kept: Vec<bool> = (0..k).map(|member| mask >> member & 1 == 1).collect();
            row.iter_mut().zip(self.utility(&kept)?).for_each(|(to, u)| *to = u);
        }
        Ok(out)
    }

    /// The first-order scores `[Q, K]`.
    pub fn scores(&self) -> ArrayView2<'_, f64> {
        self.scores.view()
    }

    /// Per query the part that sums of scores leave out ([`super::additivity::residuals`]).
    ///
    /// # Errors
    /// Never: the shapes are those of the game.
    pub fn residuals(&self) -> Result<Vec<Option<f64>>, MethodError> {
        super::additivity::residuals(&self.pairs, self.scores.view())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::{arr2, arr3};

    fn random(q: usize, k: usize) -> RemovalGame {
        let mut stream = Stream::new(3, "removal-test");
        let scores = Array2::from_shape_fn((q, k), |_| stream.normal());
        RemovalGame::new(scores, Array3::from_shape_fn((q, k, k), |_| stream.normal())).unwrap()
    }

    #[test]
    fn two_datasets_by_hand() {
        // w({0}) = 3 + 1, w({1}) = 2 + 2, w(both) = 5 + 1 + 0.5 + 0.25 + 2.
        let game = RemovalGame::new(arr2(&[[3.0, 2.0]]), arr3(&[[[1.0, 0.5], [0.25, 2.0]]])).unwrap();
        assert_eq!(game.table().unwrap(), arr2(&[[0.0], [4.75], [4.75], [8.75]]));
        // Half of each order: (4.75 + 4)/2 for either.
        assert_eq!(game.values(), arr2(&[[4.375, 4.375]]));
        assert_eq!(game.leave_one_out(), arr2(&[[4.0, 4.0]]));
        assert_eq!(game.residuals().unwrap(), [Some(0.75 / 5.0)]);
    }

    #[test]
    fn values_are_shapley_and_banzhaf_values_of_the_table() {
        let game = random(3, 5);
        let (table, values) = (game.table().unwrap(), game.values());
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        for k in 0..5 {
            for q in 0..3 {
                let gain = |mask: usize| table[(mask | 1 << k, q)] - table[(mask, q)];
                let without = || (0..32usize).filter(|mask| mask >> k & 1 == 0);
                let order = |mask: usize| {
                    let size = mask.count_ones() as usize;
                    factorial(size) * factorial(4 - size) / factorial(5)
                };
                let shapley: f64 = without().map(|mask| order(mask) * gain(mask)).sum();
                let banzhaf: f64 = without().map(gain).sum::<f64>() / 16.0;
                assert!((shapley - values[(q, k)]).abs() < 1e-12 && (banzhaf - values[(q, k)]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn registering_in_parts_adds_up() {
        // Members 0..4 belong to datasets 0, 0, 1, 1; then the second owner splits.
        let members = random(2, 4);
        let grouped = |group_of: &[usize], n: usize| {
            let (mut scores, mut pairs) = (Array2::zeros((2, n)), Array3::zeros((2, n, n)));
            for q in 0..2 {
                for (i, &k) in group_of.iter().enumerate() {
                    scores[(q, k)] += members.scores[(q, i)];
                    for (j, &l) in group_of.iter().enumerate() {
                        pairs[(q, k, l)] += members.pairs[(q, i, j)];
                    }
                }
            }
            RemovalGame::new(scores, pairs).unwrap()
        };
        let (whole, split) = (grouped(&[0, 0, 1, 1], 2), grouped(&[0, 0, 1, 2], 3));
        for q in 0..2 {
            let parts = split.values()[(q, 1)] + split.values()[(q, 2)];
            assert!((parts - whole.values()[(q, 1)]).abs() < 1e-12);
            // Leaving one out at a time is not: what both parts say together is said by neither.
            let alone = split.leave_one_out()[(q, 1)] + split.leave_one_out()[(q, 2)];
            assert!((alone - whole.leave_one_out()[(q, 1)]).abs() > 1e-3);
        }
    }

    #[test]
    fn bad_input_is_named() {
        let text = |s: Array2<f64>, r: Array3<f64>| RemovalGame::new(s, r).unwrap_err().to_string();
        assert!(text(Array2::zeros((0, 2)), Array3::zeros((0, 2, 2))).contains("is empty"));
        assert!(text(Array2::zeros((1, 2)), Array3::zeros((1, 2, 3))).contains("second-order influence"));
        let mut pairs = Array3::zeros((2, 2, 2));
        pairs[(1, 0, 1)] = f64::NAN;
        assert!(text(Array2::zeros((2, 2)), pairs).contains("second-order influence, row 2, column 1"));
        assert!(random(1, 3).utility(&[true]).unwrap_err().to_string().contains("expected 3, found 1"));
        assert!(random(1, 13).table().unwrap_err().to_string().contains("1 to 12"));
        // One dataset is all there is.
        let one = RemovalGame::new(arr2(&[[2.0]]), arr3(&[[[0.5]]])).unwrap();
        assert_eq!(one.values(), arr2(&[[2.5]]));
    }
}
