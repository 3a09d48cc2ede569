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

use std::collections::HashMap;

use ndarray::Array2;
use rayon::prelude::*;

use crate::error::MethodError;

/// How many tokens the equal chances weigh against the unigrams.
pub const UNIGRAM_PSEUDO_COUNT: f64 = 64.0;

/// How many followers of a token the unigrams weigh: larger = a weaker model. Chosen on the first two seeds of the
/// bank of `datasets-shapley`; the third had no say (`benches/SETTINGS.md`).
pub const FOLLOWER_PSEUDO_COUNT: f64 = 512.0;

/// Most datasets of a table over all subsets.
pub const MAX_DATASETS: usize = 12;

/// Counts per dataset.
#[derive(Clone, Debug)]
pub struct Bigrams {
    vocab_size: usize,
    /// `[V][K]`.
    unigrams: Array2<f64>,
    /// Followers of a token, `[V][K]`: the unigram counts but for the last tokens of windows.
    contexts: Array2<f64>,
    /// `(a, b)` → `[K]`.
    pairs: HashMap<(u32, u32), Vec<f64>>,
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
        let mut unigrams = Array2::zeros((vocab_size, n_datasets));
        let mut contexts = Array2::zeros((vocab_size, n_datasets));
        let mut pairs: HashMap<(u32, u32), Vec<f64>> = HashMap::new();
        for (dataset, tokens) in windows {
            let k = dataset as usize;
            if k >= n_datasets {
                return Err(MethodError::shape("dataset ordinal", format!("below {n_datasets}"), k));
            }
            check_tokens(tokens, vocab_size)?;
            tokens.iter().for_each(|&t| unigrams[(t as usize, k)] += 1.0);
            for pair in tokens.windows(2) {
                contexts[(pair[0] as usize, k)] += 1.0;
                pairs.entry((pair[0], pair[1])).or_insert_with(|| vec![0.0; n_datasets])[k] += 1.0;
            }
        }
        Ok(Self { vocab_size, unigrams, contexts, pairs })
    }

    /// Datasets.
    pub fn n_datasets(&self) -> usize {
        self.unigrams.ncols()
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
        let subsets: Vec<Vec<bool>> =
            (0..1usize << k).map(|mask| (0..k).map(|k| mask >> k & 1 == 1).collect()).collect();
        self.table(queries, followers, &subsets)
    }

    /// `U(all) − U(all but k)` in nats, `[Q, K]`, for any number of datasets: what leaving one out costs the proxy.
    ///
    /// # Errors
    /// No query; tokens out of range; a β that is not positive.
    pub fn leave_one_out(&self, queries: &[(&[u32], usize)], followers: f64) -> Result<Array2<f64>, MethodError> {
        let k = self.n_datasets();
        let subsets: Vec<Vec<bool>> = (0..=k).map(|out| (0..k).map(|k| k != out).collect()).collect();
        let table = self.table(queries, followers, &subsets)?;
        Ok(Array2::from_shape_fn((queries.len(), k), |(q, out)| table[(k, q)] - table[(out, q)]))
    }

    fn table(
        &self,
        queries: &[(&[u32], usize)],
        followers: f64,
        subsets: &[Vec<bool>],
    ) -> Result<Array2<f64>, MethodError> {
        if queries.is_empty() {
            return Err(MethodError::Empty { what: "the set of queries" });
        }
        if !(followers.is_finite() && followers > 0.0) {
            let expected = "finite and positive";
            return Err(MethodError::Parameter { field: "pseudo count of followers", expected, found: followers });
        }
        queries.iter().try_for_each(|(tokens, _)| check_tokens(tokens, self.vocab_size))?;
        let totals: Vec<f64> = self.unigrams.columns().into_iter().map(|c| c.sum()).collect();
        let columns: Vec<Vec<f64>> = queries
            .par_iter()
            .map(|&query| subsets.iter().map(|kept| self.log_likelihood(kept, &totals, query, followers)).collect())
            .collect();
        Ok(Array2::from_shape_fn((subsets.len(), queries.len()), |(m, q)| columns[q][m]))
    }

    fn log_likelihood(&self, kept: &[bool], totals: &[f64], (tokens, from): (&[u32], usize), followers: f64) -> f64 {
        let of = |counts: &mut dyn Iterator<Item = &f64>| -> f64 {
            counts.zip(kept).filter(|(_, kept)| **kept).map(|(c, _)| c).sum()
        };
        let (total, all) = (of(&mut totals.iter()), totals.iter().sum::<f64>());
        let pairs = tokens.windows(2).skip(from.max(1) - 1);
        if total == 0.0 {
            return -(pairs.len() as f64) * (self.vocab_size as f64).ln();
        }
        let (alpha, beta) = (UNIGRAM_PSEUDO_COUNT * total / all, followers * total / all);
        let mut sum = 0.0;
        for pair in pairs {
            let (a, b) = (pair[0] as usize, pair[1] as usize);
            let unigram = (of(&mut self.unigrams.row(b).iter()) + alpha / self.vocab_size as f64) / (total + alpha);
            let together = self.pairs.get(&(pair[0], pair[1])).map_or(0.0, |counts| of(&mut counts.iter()));
            let context = of(&mut self.contexts.row(a).iter());
            sum += ((together + beta * unigram) / (context + beta)).ln();
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
