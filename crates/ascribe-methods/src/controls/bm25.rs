//! BM25 over an inverted index: lexical overlap of the query's text with every example's text.
//!
//! `score(q, i) = Σ_{t∈q} idf(t) · tf·(k₁+1) / (tf + k₁(1 − b + b·len_i/mean len))`, repeated query terms counted as often
//! as they stand there; `idf = ln(1 + (N − df + ½)/(df + ½))`, which is never negative. Source: Robertson and Zaragoza,
//! "The Probabilistic Relevance Framework" (2009), with Lucene's idf.

use std::collections::HashMap;

use ndarray::parallel::prelude::*;
use ndarray::{Array2, Axis};

use crate::error::MethodError;

/// Saturation of the term frequency.
pub const K1: f64 = 1.2;

/// Strength of the length normalisation.
pub const B: f64 = 0.75;

/// An inverted index over the examples' terms.
#[derive(Clone, Debug)]
pub struct Bm25 {
    terms: HashMap<String, u32>,
    /// Per term: `(example, weight)` with idf and length normalisation already in the weight, examples in order.
    postings: Vec<Vec<(u32, f64)>>,
    n_examples: usize,
}

impl Bm25 {
    /// Indexes the examples, given as their terms (see `text::terms`), in example order.
    ///
    /// Deterministic: the order of additions in a score is that of the query's terms. Cost: the number of terms.
    ///
    /// # Errors
    /// No example, or more than 2³² of them.
    pub fn build<T: AsRef<str>>(examples: &[Vec<T>]) -> Result<Self, MethodError> {
        if examples.is_empty() {
            return Err(MethodError::Empty { what: "the set of example texts" });
        }
        if u32::try_from(examples.len()).is_err() {
            return Err(MethodError::shape("example texts", "at most 2^32", examples.len()));
        }
        let mut terms: HashMap<String, u32> = HashMap::new();
        let mut counts: Vec<Vec<(u32, u32)>> = Vec::new();
        for (example, words) in examples.iter().enumerate() {
            for word in words {
                let term = match terms.get(word.as_ref()) {
                    Some(&term) => term,
                    None => {
                        terms.insert(word.as_ref().to_owned(), counts.len() as u32);
                        counts.push(Vec::new());
                        counts.len() as u32 - 1
                    }
                };
                match counts[term as usize].last_mut() {
                    Some((last, tf)) if *last == example as u32 => *tf += 1,
                    _ => counts[term as usize].push((example as u32, 1)),
                }
            }
        }
        let n = examples.len() as f64;
        let mean_len = (examples.iter().map(Vec::len).sum::<usize>() as f64 / n).max(1.0);
        let postings = counts
            .iter()
            .map(|list| {
                let df = list.len() as f64;
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                let weight = |&(example, tf): &(u32, u32)| {
                    let len = examples[example as usize].len() as f64;
                    let tf = f64::from(tf);
                    (example, idf * tf * (K1 + 1.0) / (tf + K1 * (1.0 - B + B * len / mean_len)))
                };
                list.iter().map(weight).collect()
            })
            .collect();
        Ok(Self { terms, postings, n_examples: examples.len() })
    }

    /// Examples in the index.
    pub fn n_examples(&self) -> usize {
        self.n_examples
    }

    /// Scores of one query, `[N]`, never negative. Cost: the postings of its terms.
    pub fn score<T: AsRef<str>>(&self, query: &[T]) -> Vec<f64> {
        let mut scores = vec![0.0; self.n_examples];
        for word in query {
            if let Some(&term) = self.terms.get(word.as_ref()) {
                for &(example, weight) in &self.postings[term as usize] {
                    scores[example as usize] += weight;
                }
            }
        }
        scores
    }

    /// Scores of many queries, `[Q, N]`, queries side by side.
    pub fn score_all<T: AsRef<str> + Sync>(&self, queries: &[Vec<T>]) -> Array2<f32> {
        let mut out = Array2::zeros((queries.len(), self.n_examples));
        out.axis_iter_mut(Axis(0)).into_par_iter().zip(queries).for_each(|(mut row, query)| {
            row.iter_mut().zip(self.score(query)).for_each(|(to, v)| *to = v as f32);
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controls::text::terms;

    fn index(texts: &[&str]) -> Bm25 {
        Bm25::build(&texts.iter().map(|t| terms(t)).collect::<Vec<_>>()).unwrap()
    }

    /// The formula read off the page, without an index.
    fn plain(texts: &[&str], query: &str, example: usize) -> f64 {
        let documents: Vec<Vec<String>> = texts.iter().map(|t| terms(t)).collect();
        let n = documents.len() as f64;
        let mean_len = documents.iter().map(Vec::len).sum::<usize>() as f64 / n;
        let mut total = 0.0;
        for word in terms(query) {
            let df = documents.iter().filter(|d| d.contains(&word)).count() as f64;
            let tf = documents[example].iter().filter(|w| **w == word).count() as f64;
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
            let len = documents[example].len() as f64;
            total += idf * tf * (K1 + 1.0) / (tf + K1 * (1.0 - B + B * len / mean_len));
        }
        total
    }

    #[test]
    fn by_hand() {
        // Two examples of one word each: idf = ln(1 + 1.5/1.5) = ln 2, length factor 1, tf part 2.2/2.2 = 1.
        let scores = index(&["cat", "dog"]).score(&["cat"]);
        assert!((scores[0] - std::f64::consts::LN_2).abs() < 1e-15, "{scores:?}");
        assert_eq!(scores[1], 0.0);
    }

    #[test]
    fn agrees_with_the_plain_formula() {
        let texts = ["the cat sat on the mat", "a dog", "the law of contract 合同法", "合同 cat cat", ""];
        let built = index(&texts);
        for query in ["the cat", "合同法", "cat cat dog", "nothing known", ""] {
            for (example, got) in built.score(&terms(query)).into_iter().enumerate() {
                let expected = plain(&texts, query, example);
                // A handful of additions of numbers of order 1.
                assert!((got - expected).abs() < 1e-14, "{query:?} {example}: {got} {expected}");
            }
        }
    }

    #[test]
    fn an_example_finds_itself() {
        let texts = ["rain falls on the hill", "the mountain under snow", "a contract is void", "山下有雪"];
        let built = index(&texts);
        for (i, text) in texts.iter().enumerate() {
            let scores = built.score(&terms(text));
            assert!(scores.iter().enumerate().all(|(j, &s)| j == i || s < scores[i]), "{text}: {scores:?}");
        }
        let all = built.score_all(&texts.iter().map(|t| terms(t)).collect::<Vec<_>>());
        assert_eq!(all.dim(), (4, 4));
        assert_eq!(all[(2, 2)], built.score(&terms(texts[2]))[2] as f32);
    }

    #[test]
    fn nothing_to_index_is_an_error() {
        assert!(Bm25::build::<String>(&[]).unwrap_err().to_string().contains("set of example texts is empty"));
        assert_eq!(Bm25::build(&[Vec::<String>::new()]).unwrap().score(&["x"]), [0.0]);
    }
}
