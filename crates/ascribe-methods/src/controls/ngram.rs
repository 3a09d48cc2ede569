//! A proxy model that is cheap enough to be trained on every subset: bigrams of tokens, counted.
//!
//! `p_S(b | a) = (c_S(a,b) + β_S·p_S(b)) / (c_S(a) + β_S)` over `p_S(b) = (c_S(b) + α_S/V) / (c_S + α_S)`: bigrams backed off
//! to unigrams backed off to equal chances. Counts of datasets add up, so a subset's model costs nothing to "train" and
//! `U_S(q) = Σ_t ln p_S(q_t | q_{t−1})` is exact for all `2^K` subsets. The empty subset has equal chances, like a model that
//! has seen nothing. Trainings have the same number of steps whatever is kept, so counts are those of as many tokens: pseudo
//! counts shrink with the subset, `β_S = β·c_S/c_all`, which is the same. Source: interpolated backing-off (Jelinek and Mercer
//! 1980; Dirichlet smoothing, MacKay and Peto 1995).
//!
//! It never sees the explained model: a control, and a channel of the combination. Here never lives: text.

mod members;

use std::collections::HashMap;

use ndarray::Array2;
use rayon::prelude::*;

use crate::error::MethodError;

pub use members::{MemberBigrams, MemberCounts};

/// How many tokens the equal chances weigh against the unigrams.
pub const UNIGRAM_PSEUDO_COUNT: f64 = 64.0;

/// How many followers of a token the unigrams weigh: larger = a weaker model. Chosen on the first two seeds of the
/// bank of `datasets-shapley`; the third had no say (`benches/SETTINGS.md`).
pub const FOLLOWER_PSEUDO_COUNT: f64 = 512.0;

/// Most datasets of a table over all subsets.
pub const MAX_DATASETS: usize = 12;

/// How often something stands in each dataset; datasets without it are not listed.
#[derive(Clone, Debug, Default)]
struct Counts {
    total: f64,
    /// By dataset, rising.
    of: Vec<(u32, f64)>,
}

impl Counts {
    fn add(&mut self, dataset: u32) {
        self.total += 1.0;
        match self.of.binary_search_by_key(&dataset, |(d, _)| *d) {
            Ok(at) => self.of[at].1 += 1.0,
            Err(at) => self.of.insert(at, (dataset, 1.0)),
        }
    }

    /// Counts are whole numbers: their sums and differences are exact, whatever the order.
    fn within(&self, kept: &[bool]) -> f64 {
        self.of.iter().filter(|(d, _)| kept[*d as usize]).map(|(_, n)| n).sum()
    }

    fn without(&self, dataset: u32) -> f64 {
        let out = self.of.binary_search_by_key(&dataset, |(d, _)| *d).map_or(0.0, |at| self.of[at].1);
        self.total - out
    }
}

/// Counts per dataset. Memory: 16 bytes for every dataset that a token or pair stands in.
#[derive(Clone, Debug)]
pub struct Bigrams {
    n_datasets: usize,
    /// `[V]`.
    unigrams: Vec<Counts>,
    /// Followers of a token, `[V]`: the unigram counts but for the last tokens of windows.
    contexts: Vec<Counts>,
    pairs: HashMap<(u32, u32), Counts>,
    /// Tokens of each dataset, `[K]`.
    totals: Vec<f64>,
}

impl Bigrams {
    /// Counts token windows; `windows` are (dataset, tokens).
    ///
    /// # Errors
    /// No dataset, an empty vocabulary, a token or dataset out of range.
    pub fn build<'a>(
        vocab_size: usize,
        n_datasets: usize,
        windows: impl Iterator<Item = (u32, &'a [u32])>,
    ) -> Result<Self, MethodError> {
        if vocab_size == 0 || n_datasets == 0 {
            return Err(MethodError::Empty { what: "the vocabulary or the set of datasets" });
        }
        let mut out = Self {
            n_datasets,
            unigrams: vec![Counts::default(); vocab_size],
            contexts: vec![Counts::default(); vocab_size],
            pairs: HashMap::new(),
            totals: vec![0.0; n_datasets],
        };
        for (dataset, tokens) in windows {
            if dataset as usize >= n_datasets {
                return Err(MethodError::shape("dataset ordinal", format!("below {n_datasets}"), dataset));
            }
            check_tokens(tokens, vocab_size)?;
            out.totals[dataset as usize] += tokens.len() as f64;
            tokens.iter().for_each(|&t| out.unigrams[t as usize].add(dataset));
            for pair in tokens.windows(2) {
                out.contexts[pair[0] as usize].add(dataset);
                out.pairs.entry((pair[0], pair[1])).or_default().add(dataset);
            }
        }
        Ok(out)
    }

    /// Datasets.
    pub fn n_datasets(&self) -> usize {
        self.n_datasets
    }

    /// Utilities of all subsets in nats, `[2^K, Q]`; row m is the subset with bit mask m. A query is its tokens and the first
    /// position that is predicted (at least 1); `followers` is β.
    ///
    /// Sums in f64 in token order; queries side by side. Cost `2^K·Q·T·K`.
    ///
    /// # Errors
    /// More than [`MAX_DATASETS`] datasets; no query; tokens out of range; a β that is not positive.
    pub fn utilities(&self, queries: &[(&[u32], usize)], followers: f64) -> Result<Array2<f64>, MethodError> {
        let k = self.n_datasets();
        if k > MAX_DATASETS {
            return Err(MethodError::shape("datasets of a table of all subsets", format!("at most {MAX_DATASETS}"), k));
        }
        self.check(queries, followers)?;
        let subsets: Vec<Vec<bool>> =
            (0..1usize << k).map(|mask| (0..k).map(|k| mask >> k & 1 == 1).collect()).collect();
        let likelihood = |query: (&[u32], usize), kept: &[bool]| {
            let total = self.totals.iter().zip(kept).filter(|(_, kept)| **kept).map(|(n, _)| n).sum();
            self.log_likelihood(query, followers, total, &|counts| counts.within(kept))
        };
        let column =
            |&query: &(&[u32], usize)| -> Vec<f64> { subsets.iter().map(|kept| likelihood(query, kept)).collect() };
        let columns: Vec<Vec<f64>> = queries.par_iter().map(column).collect();
        Ok(Array2::from_shape_fn((subsets.len(), queries.len()), |(m, q)| columns[q][m]))
    }

    /// `U(all) − U(all but k)` in nats, `[Q, K]`, for any number of datasets: what leaving one out costs the proxy. As
    /// [`Bigrams::utilities`]; cost `Q·T·K`.
    ///
    /// # Errors
    /// No query; tokens out of range; a β that is not positive.
    pub fn leave_one_out(&self, queries: &[(&[u32], usize)], followers: f64) -> Result<Array2<f64>, MethodError> {
        self.check(queries, followers)?;
        let all: f64 = self.totals.iter().sum();
        let row = |&query: &(&[u32], usize)| -> Vec<f64> {
            let whole = self.log_likelihood(query, followers, all, &|counts| counts.total);
            let without = |(k, total): (u32, &f64)| {
                self.log_likelihood(query, followers, all - total, &|counts| counts.without(k))
            };
            (0u32..).zip(&self.totals).map(|at| whole - without(at)).collect()
        };
        let rows: Vec<Vec<f64>> = queries.par_iter().map(row).collect();
        Ok(Array2::from_shape_fn((queries.len(), self.n_datasets), |(q, k)| rows[q][k]))
    }

    fn check(&self, queries: &[(&[u32], usize)], followers: f64) -> Result<(), MethodError> {
        if queries.is_empty() {
            return Err(MethodError::Empty { what: "the set of queries" });
        }
        if !(followers.is_finite() && followers > 0.0) {
            let expected = "finite and positive";
            return Err(MethodError::Parameter { field: "pseudo count of followers", expected, found: followers });
        }
        queries.iter().try_for_each(|(tokens, _)| check_tokens(tokens, self.unigrams.len()))
    }

    /// Of a model counted on `total` tokens, those that `of` counts.
    fn log_likelihood(
        &self,
        (tokens, from): (&[u32], usize),
        followers: f64,
        total: f64,
        of: &dyn Fn(&Counts) -> f64,
    ) -> f64 {
        let (all, vocab_size): (f64, f64) = (self.totals.iter().sum(), self.unigrams.len() as f64);
        let pairs = tokens.windows(2).skip(from.max(1) - 1);
        if total == 0.0 {
            return -(pairs.len() as f64) * vocab_size.ln();
        }
        let (alpha, beta) = (UNIGRAM_PSEUDO_COUNT * total / all, followers * total / all);
        let mut sum = 0.0;
        for pair in pairs {
            let (a, b) = (pair[0] as usize, pair[1] as usize);
            let unigram = (of(&self.unigrams[b]) + alpha / vocab_size) / (total + alpha);
            let together = self.pairs.get(&(pair[0], pair[1])).map_or(0.0, of);
            sum += ((together + beta * unigram) / (of(&self.contexts[a]) + beta)).ln();
        }
        sum
    }
}

fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<(), MethodError> {
    match tokens.iter().find(|t| **t as usize >= vocab_size) {
        None => Ok(()),
        Some(t) => Err(MethodError::shape("token", format!("below {vocab_size}"), t)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Bigrams {
        let windows: [(u32, &[u32]); 3] = [(0, &[0, 1, 0, 1]), (1, &[2, 2]), (0, &[1, 1])];
        Bigrams::build(3, 2, windows.into_iter()).unwrap()
    }

    #[test]
    fn by_hand() {
        let got = tiny().utilities(&[(&[0, 1, 2], 1)], 8.0).unwrap();
        // Nothing counted: equal chances, twice.
        assert!((got[(0, 0)] - 2.0 * (1.0f64 / 3.0).ln()).abs() < 1e-12);
        // Dataset 0 alone, 6 of 8 tokens: unigrams (2, 4, 0); 0→1 twice of 2 contexts; 1→2 never of 2 (1→0, 1→1).
        let (alpha, beta) = (UNIGRAM_PSEUDO_COUNT * 6.0 / 8.0, 8.0 * 6.0 / 8.0);
        let unigram = |c: f64| (c + alpha / 3.0) / (6.0 + alpha);
        let expected = ((2.0 + beta * unigram(4.0)) / (2.0 + beta)).ln() + (beta * unigram(0.0) / (2.0 + beta)).ln();
        assert!((got[(1, 0)] - expected).abs() < 1e-12);
        // Only the last prediction counts from position 2 on.
        let last = tiny().utilities(&[(&[0, 1, 2], 2)], 8.0).unwrap();
        assert!((last[(1, 0)] - (beta * unigram(0.0) / (2.0 + beta)).ln()).abs() < 1e-12);
        // Leaving one out is a difference of the same table.
        let loo = tiny().leave_one_out(&[(&[0, 1, 2], 1)], 8.0).unwrap();
        assert_eq!(loo.row(0).to_vec(), [got[(3, 0)] - got[(2, 0)], got[(3, 0)] - got[(1, 0)]]);
    }

    #[test]
    fn chances_add_up_to_one() {
        for mask in 0..4 {
            let chance = |b: u32| tiny().utilities(&[(&[1, b], 1)], 8.0).unwrap()[(mask, 0)].exp();
            let total: f64 = (0..3).map(chance).sum();
            assert!((total - 1.0).abs() < 1e-12, "{mask}: {total}");
        }
    }

    #[test]
    fn a_subset_is_the_model_counted_on_it() {
        // Second route: both datasets counted as one; and a lone dataset repeated to the length of all has the same chances.
        let windows: [(u32, &[u32]); 3] = [(0, &[0, 1, 0, 1]), (0, &[2, 2]), (0, &[1, 1])];
        let joined = Bigrams::build(3, 1, windows.into_iter()).unwrap();
        let query: &[(&[u32], usize)] = &[(&[0, 1, 2, 2], 1)];
        let subset = tiny().utilities(query, 8.0).unwrap()[(3, 0)];
        assert!((subset - joined.utilities(query, 8.0).unwrap()[(1, 0)]).abs() < 1e-12);
        let once: [(u32, &[u32]); 2] = [(0, &[0, 1, 2]), (1, &[1, 1, 1])];
        let alone = Bigrams::build(3, 2, once.into_iter()).unwrap().utilities(query, 8.0).unwrap()[(1, 0)];
        let twice: [(u32, &[u32]); 2] = [(0, &[0, 1, 2]), (0, &[0, 1, 2])];
        let repeated = Bigrams::build(3, 1, twice.into_iter()).unwrap().utilities(query, 8.0).unwrap()[(1, 0)];
        assert!((alone - repeated).abs() < 1e-12);
    }

    #[test]
    fn bad_input_is_named() {
        let text = |r: Result<Bigrams, MethodError>| r.unwrap_err().to_string();
        assert!(text(Bigrams::build(3, 2, [(2, &[0u32][..])].into_iter())).contains("dataset ordinal"));
        assert!(text(Bigrams::build(3, 2, [(0, &[3u32][..])].into_iter())).contains("token: expected"));
        assert!(text(Bigrams::build(0, 2, std::iter::empty())).contains("is empty"));
        assert!(tiny().utilities(&[], 8.0).is_err() && tiny().utilities(&[(&[9], 1)], 8.0).is_err());
        assert!(tiny().utilities(&[(&[0, 1], 1)], 0.0).unwrap_err().to_string().contains("pseudo count"));
    }
}
