//! Unigram and bigram models of tokens: what the language model must beat.

use std::collections::HashMap;

/// Counts of single tokens and of pairs.
#[derive(Clone, Debug)]
pub struct NGram {
    vocab_size: usize,
    unigram: Vec<u64>,
    total: u64,
    bigram: HashMap<(u32, u32), u64>,
    /// Occurrences of a token as the first of a pair, and how many different tokens followed it.
    context: HashMap<u32, (u64, u64)>,
}

/// Absolute discount of the bigram (Ney, Essen & Kneser 1994: between 0.5 and 0.9 for such counts).
const DISCOUNT: f64 = 0.75;

impl NGram {
    /// Counts over `sequences`. Pairs do not cross sequences.
    pub fn fit<'s>(vocab_size: usize, sequences: impl Iterator<Item = &'s [u32]>) -> Self {
        let mut model = Self {
            vocab_size,
            unigram: vec![0; vocab_size],
            total: 0,
            bigram: HashMap::new(),
            context: HashMap::new(),
        };
        for tokens in sequences {
            for &token in tokens {
                model.unigram[token as usize] += 1;
                model.total += 1;
            }
            for pair in tokens.windows(2) {
                let count = model.bigram.entry((pair[0], pair[1])).or_default();
                *count += 1;
                let context = model.context.entry(pair[0]).or_default();
                context.0 += 1;
                context.1 += u64::from(*count == 1);
            }
        }
        model
    }

    /// Nats of `token` under add-one smoothed unigram counts.
    pub fn unigram_nll(&self, token: u32) -> f64 {
        -((self.unigram[token as usize] + 1) as f64 / (self.total + self.vocab_size as u64) as f64).ln()
    }

    /// Nats of `token` after `before`: absolute discounting, backing off to the unigram.
    pub fn bigram_nll(&self, before: u32, token: u32) -> f64 {
        let unigram = (-self.unigram_nll(token)).exp();
        let Some(&(n, kinds)) = self.context.get(&before) else { return -unigram.ln() };
        let count = self.bigram.get(&(before, token)).copied().unwrap_or(0) as f64;
        let direct = (count - DISCOUNT).max(0.0) / n as f64;
        -(direct + DISCOUNT * kinds as f64 / n as f64 * unigram).ln()
    }

    /// Summed nats of `tokens[from..]` under both models: `(unigram, bigram)`.
    pub fn sequence_nll(&self, tokens: &[u32], from: usize) -> (f64, f64) {
        (from.max(1)..tokens.len()).fold((0.0, 0.0), |(u, b), t| {
            (u + self.unigram_nll(tokens[t]), b + self.bigram_nll(tokens[t - 1], tokens[t]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let data: [&[u32]; 2] = [&[0, 1, 1, 2, 0, 1], &[3, 3, 1]];
        let model = NGram::fit(5, data.into_iter());
        let unigram: f64 = (0..5).map(|t| (-model.unigram_nll(t)).exp()).sum();
        assert!((unigram - 1.0).abs() < 1e-12);
        for before in 0..5 {
            let bigram: f64 = (0..5).map(|t| (-model.bigram_nll(before, t)).exp()).sum();
            assert!((bigram - 1.0).abs() < 1e-12, "context {before}: {bigram}");
        }
    }

    #[test]
    fn a_deterministic_chain_is_learnt() {
        let chain: Vec<u32> = (0..400).map(|i| i % 4).collect();
        let model = NGram::fit(4, std::iter::once(chain.as_slice()));
        assert!(model.bigram_nll(0, 1) < 0.02 && model.unigram_nll(1) > 1.3);
    }
}
