//! Verbatim overlap: the longest run of tokens that query and example share, or how many of the query's n-grams stand there.
//!
//! A control for copying: text that the model repeats word for word has an obvious source. Each query becomes a suffix automaton
//! (Blumer et al., Theor. Comput. Sci. 40, 1985), through which every example's tokens pass once. Here never lives: tokenisation.

use ndarray::Array2;
use ndarray::Axis;
use ndarray::parallel::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::MethodError;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Measure {
    /// Tokens of the longest common run.
    LongestRun,
    /// Part of the query's n-grams (counted as often as they stand in the query) that the other side has, 0 to 1; 0 for a query
    /// of fewer than n tokens.
    Containment {
        /// Tokens of an n-gram, at least 1.
        n: usize,
    },
}

/// `[Q, N]` overlaps. Cost: the tokens of all examples times Q, a few comparisons each; queries side by side.
///
/// # Errors
/// `n = 0`; a query of 2³⁰ tokens or more.
pub fn score<Q: AsRef<[u32]> + Sync, E: AsRef<[u32]> + Sync>(
    queries: &[Q],
    examples: &[E],
    measure: Measure,
) -> Result<Array2<f32>, MethodError> {
    check(queries, measure)?;
    let mut out = Array2::zeros((queries.len(), examples.len()));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(queries).for_each(|(mut row, query)| {
        let automaton = Automaton::of(query.as_ref());
        let mut seen = Seen::new(&automaton);
        for (to, example) in row.iter_mut().zip(examples) {
            seen.clear();
            automaton.pass(example.as_ref(), measure, &mut seen);
            *to = automaton.value(measure, &seen) as f32;
        }
    });
    Ok(out)
}

/// `[Q, K]`: the same with all examples of a dataset as the other side. The longest run is the largest of its examples; an n-gram
/// counts when any example has it (no run crosses from one example into the next). `datasets[i]` is the dataset of example i.
///
/// # Errors
/// As [`score`]; another number of datasets than examples; an ordinal of `n_datasets` or more.
pub fn dataset_scores<Q: AsRef<[u32]> + Sync, E: AsRef<[u32]> + Sync>(
    queries: &[Q],
    examples: &[E],
    datasets: &[u32],
    n_datasets: usize,
    measure: Measure,
) -> Result<Array2<f64>, MethodError> {
    check(queries, measure)?;
    if datasets.len() != examples.len() {
        return Err(MethodError::shape("datasets, one per example", examples.len(), datasets.len()));
    }
    if let Some(&k) = datasets.iter().find(|&&k| k as usize >= n_datasets) {
        return Err(MethodError::shape("dataset ordinal", format!("below {n_datasets}"), k));
    }
    let mut out = Array2::zeros((queries.len(), n_datasets));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(queries).for_each(|(mut row, query)| {
        let automaton = Automaton::of(query.as_ref());
        let mut seen: Vec<Seen> = (0..n_datasets).map(|_| Seen::new(&automaton)).collect();
        for (example, &k) in examples.iter().zip(datasets) {
            automaton.pass(example.as_ref(), measure, &mut seen[k as usize]);
        }
        row.iter_mut().zip(&seen).for_each(|(to, seen)| *to = automaton.value(measure, seen));
    });
    Ok(out)
}

fn check<Q: AsRef<[u32]>>(queries: &[Q], measure: Measure) -> Result<(), MethodError> {
    if measure == (Measure::Containment { n: 0 }) {
        return Err(MethodError::Parameter { field: "n of the n-grams", expected: "at least 1", found: 0.0 });
    }
    match queries.iter().map(|q| q.as_ref().len()).find(|&len| len >= 1 << 30) {
        Some(len) => Err(MethodError::shape("tokens of a query", "fewer than 2^30", len)),
        None => Ok(()),
    }
}

/// What one other side has shown of the query.
struct Seen {
    longest: usize,
    /// States whose n-gram was met.
    met: Vec<bool>,
}

impl Seen {
    fn new(automaton: &Automaton) -> Self {
        Self { longest: 0, met: vec![false; automaton.states.len()] }
    }

    fn clear(&mut self) {
        self.longest = 0;
        self.met.fill(false);
    }
}

/// One state: the substrings with lengths from above its link's to `len` that end at the same places.
#[derive(Clone, Debug, Default)]
struct State {
    len: usize,
    /// The state of the longest suffix that ends at more places; 0 for the root's children (and the root).
    link: usize,
    /// `(token, state)`, by token.
    next: Vec<(u32, usize)>,
    /// Places where its substrings end.
    count: usize,
}

impl State {
    fn step(&self, token: u32) -> Option<usize> {
        self.next.binary_search_by_key(&token, |&(t, _)| t).ok().map(|at| self.next[at].1)
    }

    fn set(&mut self, token: u32, state: usize) {
        match self.next.binary_search_by_key(&token, |&(t, _)| t) {
            Ok(at) => self.next[at].1 = state,
            Err(at) => self.next.insert(at, (token, state)),
        }
    }
}

/// The suffix automaton of a query.
struct Automaton {
    states: Vec<State>,
    len: usize,
}

impl Automaton {
    fn of(query: &[u32]) -> Self {
        let mut states = vec![State::default()];
        let mut last = 0;
        for &token in query {
            last = extend(&mut states, last, token);
        }
        // Places add up along links, longest first.
        let mut order: Vec<usize> = (1..states.len()).collect();
        order.sort_by_key(|&s| std::cmp::Reverse(states[s].len));
        for s in order {
            let (count, link) = (states[s].count, states[s].link);
            states[link].count += count;
        }
        Self { states, len: query.len() }
    }

    /// Takes the tokens of one text.
    fn pass(&self, tokens: &[u32], measure: Measure, seen: &mut Seen) {
        let (mut state, mut run) = (0, 0);
        for &token in tokens {
            loop {
                match self.states[state].step(token) {
                    Some(next) => {
                        (state, run) = (next, run + 1);
                        break;
                    }
                    None if state == 0 => {
                        run = 0;
                        break;
                    }
                    None => {
                        state = self.states[state].link;
                        run = self.states[state].len;
                    }
                }
            }
            seen.longest = seen.longest.max(run);
            if let Measure::Containment { n } = measure
                && run >= n
            {
                // The state that holds the run's last n tokens.
                let mut holder = state;
                while self.states[self.states[holder].link].len >= n {
                    holder = self.states[holder].link;
                }
                seen.met[holder] = true;
            }
        }
    }

    fn value(&self, measure: Measure, seen: &Seen) -> f64 {
        match measure {
            Measure::LongestRun => seen.longest as f64,
            Measure::Containment { n } if self.len < n => 0.0,
            Measure::Containment { n } => {
                let met = self.states.iter().zip(&seen.met).filter(|(_, met)| **met);
                let found: usize = met.map(|(state, _)| state.count).sum();
                found as f64 / (self.len + 1 - n) as f64
            }
        }
    }
}

/// Adds a token to the automaton; returns the state of the whole text.
fn extend(states: &mut Vec<State>, last: usize, token: u32) -> usize {
    let current = states.len();
    states.push(State { len: states[last].len + 1, count: 1, ..State::default() });
    let mut at = Some(last);
    while let Some(p) = at {
        match states[p].step(token) {
            None => {
                states[p].set(token, current);
                at = (p != 0).then(|| states[p].link);
            }
            Some(q) if states[p].len + 1 == states[q].len => {
                states[current].link = q;
                return current;
            }
            Some(q) => {
                let copy = states.len();
                states.push(State { len: states[p].len + 1, count: 0, ..states[q].clone() });
                let mut redirected = Some(p);
                while let Some(r) = redirected {
                    if states[r].step(token) != Some(q) {
                        break;
                    }
                    states[r].set(token, copy);
                    redirected = (r != 0).then(|| states[r].link);
                }
                states[q].link = copy;
                states[current].link = copy;
                return current;
            }
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    fn tokens(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    #[test]
    fn by_hand() {
        let query = [tokens("abcabd")];
        let run = |text| score(&query, &[tokens(text)], Measure::LongestRun).unwrap()[(0, 0)];
        assert_eq!([run("xxcabxx"), run("abd"), run("abcabd"), run("zzz"), run("")], [3.0, 3.0, 6.0, 0.0, 0.0]);
        // Bigrams of the query: ab bc ca ab bd. `abx` has ab, which stands there twice: 2 of 5.
        let part = |text| score(&query, &[tokens(text)], Measure::Containment { n: 2 }).unwrap()[(0, 0)];
        assert_eq!([part("abx"), part("abcabd"), part("b"), part("bdxbc")], [0.4, 1.0, 0.0, 0.4]);
        // Datasets: the second has ab in one example and bd in another, but never abd in one.
        let examples = [tokens("ca"), tokens("xab"), tokens("bd")];
        let of = |measure| dataset_scores(&query, &examples, &[0, 1, 1], 3, measure).unwrap();
        assert_eq!(of(Measure::LongestRun), ndarray::arr2(&[[2.0, 2.0, 0.0]]));
        assert_eq!(of(Measure::Containment { n: 2 }), ndarray::arr2(&[[0.2, 0.6, 0.0]]));
        assert_eq!(of(Measure::Containment { n: 3 }), ndarray::arr2(&[[0.0, 0.0, 0.0]]));
    }

    /// Against the double loop, over texts of few letters (many repeats, hence many copied states).
    #[test]
    fn it_agrees_with_brute_force() {
        let mut stream = Stream::new(5, "verbatim-test");
        let mut text = |len: u32, letters: u32| -> Vec<u32> { (0..len).map(|_| stream.below(letters)).collect() };
        let queries: Vec<Vec<u32>> = (0..12).map(|i| text(3 * i, 2 + i % 3)).collect();
        let examples: Vec<Vec<u32>> = (0..15).map(|i| text(2 * i, 2 + i % 4)).collect();
        let runs = score(&queries, &examples, Measure::LongestRun).unwrap();
        for ((q, e), &found) in runs.indexed_iter() {
            let (query, example) = (&queries[q], &examples[e]);
            let shared = |n: &usize| query.windows(*n).any(|w| example.windows(*n).any(|v| v == w));
            let expected = (1..=query.len().max(1)).take_while(shared).last().unwrap_or(0);
            assert_eq!(found, expected as f32, "{query:?} {example:?}");
        }
        for n in [1, 2, 3, 5] {
            let parts = score(&queries, &examples, Measure::Containment { n }).unwrap();
            let all = dataset_scores(&queries, &examples, &[0; 15], 1, Measure::Containment { n }).unwrap();
            for (q, query) in queries.iter().enumerate() {
                let grams = query.windows(n).count().max(1) as f64;
                let within = |example: &Vec<u32>, w: &[u32]| example.windows(n).any(|v| v == w);
                for (e, example) in examples.iter().enumerate() {
                    let expected = query.windows(n).filter(|w| within(example, w)).count() as f64 / grams;
                    assert_eq!(parts[(q, e)], expected as f32, "{n}: {query:?} {example:?}");
                }
                let anywhere = |w: &&[u32]| examples.iter().any(|example| within(example, w));
                assert_eq!(all[(q, 0)], query.windows(n).filter(anywhere).count() as f64 / grams);
            }
        }
    }

    #[test]
    fn bad_input_is_named() {
        let one = [vec![1u32]];
        let error = score(&one, &one, Measure::Containment { n: 0 }).unwrap_err().to_string();
        assert!(error.contains("n of the n-grams must be at least 1"), "{error}");
        let error = dataset_scores(&one, &one, &[], 1, Measure::LongestRun).unwrap_err().to_string();
        assert!(error.contains("expected 1, found 0"), "{error}");
        assert!(dataset_scores(&one, &one, &[1], 1, Measure::LongestRun).is_err());
        assert_eq!(score(&[Vec::<u32>::new()], &one, Measure::LongestRun).unwrap()[(0, 0)], 0.0);
    }
}
