//! The bigram proxy counted on any set of examples, for games whose players are single examples.
//!
//! The model is that of [`super::Bigrams`]; what is kept differs: only counts that the queries read, per example, so a subset costs one
//! addition per occurrence. Counts are whole numbers, so sums are exact in any order and the utility of a dataset's examples is that
//! of the dataset to the last bit.

use std::collections::HashMap;

use super::{UNIGRAM_PSEUDO_COUNT, check_tokens};
use crate::error::MethodError;

/// Counts of every example that the queries read. Memory: four bytes for every such token or pair of the examples.
#[derive(Clone, Debug)]
pub struct MemberBigrams {
    vocab_size: f64,
    followers: f64,
    n_cells: usize,
    /// Tokens of every example, `[N]`.
    tokens: Vec<u32>,
    /// Cells of example i: `cells[starts[i]..starts[i + 1]]`, one entry per occurrence.
    starts: Vec<usize>,
    cells: Vec<u32>,
    /// Per query the cells of every predicted token: pair, context, token.
    read: Vec<Vec<[u32; 3]>>,
    all: f64,
}

/// Counts of a set of examples; those of disjoint sets add up.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberCounts {
    cells: Vec<f64>,
    tokens: f64,
}

impl MemberCounts {
    /// Takes another set's counts in.
    ///
    /// # Panics
    /// If the other counts are of another [`MemberBigrams`].
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.cells.len(), other.cells.len(), "counts of other queries");
        self.cells.iter_mut().zip(&other.cells).for_each(|(to, n)| *to += n);
        self.tokens += other.tokens;
    }
}

/// Numbers cells as they are met.
#[derive(Default)]
struct Cells {
    of: HashMap<(u8, u32, u32), u32>,
}

impl Cells {
    fn of(&mut self, kind: u8, a: u32, b: u32) -> u32 {
        let next = self.of.len() as u32;
        *self.of.entry((kind, a, b)).or_insert(next)
    }
}

const PAIR: u8 = 0;
const CONTEXT: u8 = 1;
const TOKEN: u8 = 2;

impl MemberBigrams {
    /// Counts what `queries` (tokens, and the first position that is predicted) read in every example; `followers` is β of
    /// [`super::Bigrams::utilities`].
    ///
    /// # Errors
    /// An empty vocabulary; no query; tokens out of range; a β that is not positive.
    pub fn build(
        vocab_size: usize,
        examples: &[&[u32]],
        queries: &[(&[u32], usize)],
        followers: f64,
    ) -> Result<Self, MethodError> {
        if vocab_size == 0 || queries.is_empty() {
            return Err(MethodError::Empty { what: "the vocabulary or the set of queries" });
        }
        if !(followers.is_finite() && followers > 0.0) {
            let expected = "finite and positive";
            return Err(MethodError::Parameter { field: "pseudo count of followers", expected, found: followers });
        }
        let mut numbers = Cells::default();
        let mut read = Vec::with_capacity(queries.len());
        for &(tokens, from) in queries {
            check_tokens(tokens, vocab_size)?;
            let predicted = tokens.windows(2).skip(from.max(1) - 1);
            let cells = predicted.map(|pair| {
                [numbers.of(PAIR, pair[0], pair[1]), numbers.of(CONTEXT, pair[0], 0), numbers.of(TOKEN, pair[1], 0)]
            });
            read.push(cells.collect());
        }
        let (mut starts, mut cells) = (vec![0], Vec::new());
        for tokens in examples {
            check_tokens(tokens, vocab_size)?;
            let mut count = |kind, a, b| cells.extend(numbers.of.get(&(kind, a, b)));
            tokens.iter().for_each(|&t| count(TOKEN, t, 0));
            for pair in tokens.windows(2) {
                count(CONTEXT, pair[0], 0);
                count(PAIR, pair[0], pair[1]);
            }
            starts.push(cells.len());
        }
        let tokens: Vec<u32> = examples.iter().map(|e| e.len() as u32).collect();
        let all = tokens.iter().map(|&n| f64::from(n)).sum();
        let n_cells = numbers.of.len();
        Ok(Self { vocab_size: vocab_size as f64, followers, n_cells, tokens, starts, cells, read, all })
    }

    /// Examples N.
    pub fn n_examples(&self) -> usize {
        self.tokens.len()
    }

    /// Counts of `members`, which are example numbers.
    ///
    /// # Errors
    /// A number that is no example.
    pub fn counts(&self, members: &[u32]) -> Result<MemberCounts, MethodError> {
        let mut out = MemberCounts { cells: vec![0.0; self.n_cells], tokens: 0.0 };
        for &i in members {
            let i = i as usize;
            if i >= self.n_examples() {
                return Err(MethodError::shape("example", format!("below {}", self.n_examples()), i));
            }
            out.tokens += f64::from(self.tokens[i]);
            self.cells[self.starts[i]..self.starts[i + 1]].iter().for_each(|&c| out.cells[c as usize] += 1.0);
        }
        Ok(out)
    }

    /// Utilities `[Q]` in nats of a model counted on `counts`. Sums in f64 in token order; cost: the queries' predicted tokens.
    pub fn utilities(&self, counts: &MemberCounts) -> Vec<f64> {
        let query = |cells: &Vec<[u32; 3]>| -> f64 {
            if counts.tokens == 0.0 {
                return -(cells.len() as f64) * self.vocab_size.ln();
            }
            let part = counts.tokens / self.all;
            let (alpha, beta) = (UNIGRAM_PSEUDO_COUNT * part, self.followers * part);
            let mut sum = 0.0;
            for &[pair, context, token] in cells {
                let of = |cell: u32| counts.cells[cell as usize];
                let unigram = (of(token) + alpha / self.vocab_size) / (counts.tokens + alpha);
                sum += ((of(pair) + beta * unigram) / (of(context) + beta)).ln();
            }
            sum
        };
        self.read.iter().map(query).collect()
    }

    /// [`MemberBigrams::utilities`] of the examples `members`.
    ///
    /// # Errors
    /// As [`MemberBigrams::counts`].
    pub fn utility(&self, members: &[u32]) -> Result<Vec<f64>, MethodError> {
        Ok(self.utilities(&self.counts(members)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bigrams;
    use super::*;
    use ascribe_linalg::Stream;

    #[test]
    fn by_hand() {
        // Of (0 1 0 1) and (2 2) the first alone: 4 of 6 tokens; 0→1 twice of 2 contexts, unigram of 1 is 2 of 4.
        let examples: [&[u32]; 2] = [&[0, 1, 0, 1], &[2, 2]];
        let bigrams = MemberBigrams::build(3, &examples, &[(&[0, 1], 1)], 8.0).unwrap();
        let (alpha, beta) = (64.0 * 4.0 / 6.0, 8.0 * 4.0 / 6.0f64);
        let unigram = (2.0 + alpha / 3.0) / (4.0 + alpha);
        let expected = ((2.0 + beta * unigram) / (2.0 + beta)).ln();
        assert!((bigrams.utility(&[0]).unwrap()[0] - expected).abs() < 1e-12);
        assert!((bigrams.utility(&[]).unwrap()[0] - (1.0f64 / 3.0).ln()).abs() < 1e-12);
    }

    #[test]
    fn a_subset_of_datasets_has_the_utility_of_its_examples() {
        let mut stream = Stream::new(5, "members-test");
        let texts: Vec<Vec<u32>> = (0..12).map(|_| (0..9).map(|_| stream.below(7)).collect()).collect();
        let examples: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let dataset = |i: usize| (i % 3) as u32;
        let queries: [(&[u32], usize); 2] = [(&[1, 2, 3, 4, 5], 2), (&[6, 0, 6], 1)];
        let windows = examples.iter().enumerate().map(|(i, e)| (dataset(i), *e));
        let table = Bigrams::build(7, 3, windows).unwrap().utilities(&queries, 8.0).unwrap();
        let members = MemberBigrams::build(7, &examples, &queries, 8.0).unwrap();
        for mask in 0..8usize {
            let kept: Vec<u32> = (0..12u32).filter(|&i| mask >> dataset(i as usize) & 1 == 1).collect();
            assert_eq!(members.utility(&kept).unwrap(), table.row(mask).to_vec(), "{mask}");
            let mut sum = members.counts(&[]).unwrap();
            kept.iter().for_each(|&i| sum.add(&members.counts(&[i]).unwrap()));
            assert_eq!(members.utilities(&sum), table.row(mask).to_vec());
        }
    }

    #[test]
    fn bad_input_is_named() {
        let text = |examples: &[&[u32]], queries: &[(&[u32], usize)], followers| {
            MemberBigrams::build(3, examples, queries, followers).unwrap_err().to_string()
        };
        assert!(text(&[], &[], 8.0).contains("is empty"));
        assert!(text(&[&[3]], &[(&[0, 1], 1)], 8.0).contains("token: expected"));
        assert!(text(&[&[0]], &[(&[0, 1], 1)], f64::NAN).contains("pseudo count"));
        let found = MemberBigrams::build(3, &[&[0]], &[(&[0, 1], 1)], 8.0).unwrap();
        assert!(found.utility(&[1]).unwrap_err().to_string().contains("below 1"));
    }
}
