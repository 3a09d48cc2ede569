//! The games and who plays them.
//!
//! Here lives: datasets as players, whole or in parts; the utility of a set of them; which estimator answers which question. Here never
//! lives: the estimators (methods, eval).

use std::collections::BTreeSet;

use ascribe_core::{Digest, ExampleId, FeatureReader as _, Progress};
use ascribe_corpus::Corpus;
use ascribe_eval::game::{self, MAX_PLAYERS, banzhaf_msr, shapley_permutations};
use ascribe_linalg::Stream;
use ascribe_methods::block_fisher::precondition;
use ascribe_methods::controls::ngram::{FOLLOWER_PSEUDO_COUNT, MemberBigrams, MemberCounts};
use ascribe_methods::dot;
use ascribe_methods::group::additivity::second_order;
use ascribe_methods::group::fgsv::{FgsvOptions, group_values};
use ascribe_methods::group::removal::RemovalGame;
use ndarray::{Array2, Array3, Axis, concatenate, s};

use super::{Draws, ValueKind};
use crate::error::EngineError;
use crate::walk::Context;
use crate::walk::channels::GradientChannel;
use crate::walk::features::{self, open_train};
use crate::walk::fit;

/// Drawn sets that the additivity residual is measured on.
const RESIDUAL_SETS: usize = 128;

/// Datasets, or parts of them, as players.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Players {
    /// Names of the corpus's datasets.
    pub datasets: Vec<String>,
    /// Names of the players.
    pub names: Vec<String>,
    /// The dataset of every player.
    pub dataset_of: Vec<usize>,
    /// The player of every example.
    pub group_of: Vec<u32>,
}

impl Players {
    /// Every dataset is a player.
    pub fn whole(corpus: &Corpus) -> Self {
        let datasets: Vec<String> = corpus.datasets.iter().map(|d| d.name.clone()).collect();
        Self {
            names: datasets.clone(),
            dataset_of: (0..datasets.len()).collect(),
            group_of: corpus.examples.iter().map(|e| e.id.dataset).collect(),
            datasets,
        }
    }

    /// The same with some datasets registered in parts: runs of examples, as equal as can be.
    ///
    /// # Errors
    /// An unknown dataset, one named twice, fewer than two parts, more parts than examples.
    pub fn split(&self, split: &[(String, usize)]) -> Result<Self, EngineError> {
        let refuse = |expected: String, found: String| EngineError::Setting { setting: "--split", expected, found };
        let mut parts = vec![1usize; self.datasets.len()];
        for (name, n) in split {
            let known = self.datasets.iter().position(|d| d == name);
            let k =
                known.ok_or_else(|| refuse(format!("a dataset among {}", self.datasets.join(", ")), name.clone()))?;
            let examples = self.sizes()[k];
            if *n < 2 || *n > examples {
                return Err(refuse(format!("2 to {examples} parts of {name}"), n.to_string()));
            }
            if parts[k] != 1 {
                return Err(refuse("every dataset once".into(), name.clone()));
            }
            parts[k] = *n;
        }
        let (mut names, mut dataset_of, mut first) = (Vec::new(), Vec::new(), Vec::new());
        for (k, name) in self.datasets.iter().enumerate() {
            first.push(names.len());
            for part in 0..parts[k] {
                names.push(if parts[k] == 1 { name.clone() } else { format!("{name} {}/{}", part + 1, parts[k]) });
                dataset_of.push(k);
            }
        }
        let sizes = self.sizes();
        let mut seen = vec![0usize; self.datasets.len()];
        let place = |&k: &u32| {
            let k = k as usize;
            let part = seen[k] * parts[k] / sizes[k];
            seen[k] += 1;
            (first[k] + part) as u32
        };
        let group_of = self.group_of.iter().map(place).collect();
        Ok(Self { datasets: self.datasets.clone(), names, dataset_of, group_of })
    }

    /// Examples of every player.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.names.len()];
        self.group_of.iter().for_each(|&g| sizes[g as usize] += 1);
        sizes
    }

    fn members(&self, player: usize) -> Vec<u32> {
        (0..self.group_of.len() as u32).filter(|&i| self.group_of[i as usize] as usize == player).collect()
    }
}

/// Values and how they came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// `[Q, K]`.
    pub values: Array2<f64>,
    /// `[Q, K]`.
    pub std_errors: Array2<f64>,
    /// True if nothing was drawn.
    pub exact: bool,
    /// Utilities asked for.
    pub utilities: usize,
    /// SHA-256 over what decides the game besides the corpus.
    pub decided_by: Digest,
}

/// What the report says about the values.
pub struct Residuals {
    pub efficiency: f64,
    pub additivity: f64,
}

/// What sets of players are worth.
pub trait Game {
    /// Values of the players.
    ///
    /// # Errors
    /// What methods refuse; a request to stop.
    fn values(
        &self,
        players: &Players,
        value: ValueKind,
        draws: Draws,
        progress: &dyn Progress,
    ) -> Result<Found, EngineError>;

    /// Utilities `[Q]` of sets of players.
    ///
    /// # Errors
    /// As [`Game::values`].
    fn utilities(&self, players: &Players, sets: &[Vec<bool>]) -> Result<Vec<Vec<f64>>, EngineError>;
}

/// Efficiency, and additivity over drawn sets.
///
/// # Errors
/// The game's.
pub fn residuals(
    game: &dyn Game,
    players: &Players,
    values: &Array2<f64>,
    seed: u64,
) -> Result<Residuals, EngineError> {
    let k = players.names.len();
    let mut stream = Stream::new(seed, "values/residual");
    let mut sets = vec![vec![false; k], vec![true; k]];
    sets.extend((0..RESIDUAL_SETS).map(|_| (0..k).map(|_| stream.below(2) == 1).collect::<Vec<bool>>()));
    let found = game.utilities(players, &sets)?;
    let (empty, full) = (&found[0], &found[1]);
    let (mut efficiency, mut off, mut size) = (0.0f64, 0.0, 0.0);
    for (q, row) in values.rows().into_iter().enumerate() {
        let gain = full[q] - empty[q];
        if gain != 0.0 {
            efficiency = efficiency.max(((row.sum() - gain) / gain).abs());
        }
        for (set, utilities) in sets[2..].iter().zip(&found[2..]) {
            let sum: f64 = row.iter().zip(set).filter(|(_, kept)| **kept).map(|(v, _)| v).sum();
            off += (utilities[q] - empty[q] - sum).powi(2);
            size += gain * gain;
        }
    }
    Ok(Residuals { efficiency, additivity: if size > 0.0 { (off / size).sqrt() } else { 0.0 } })
}

/// The bigram model's game over a corpus.
pub struct BigramGame {
    bigrams: MemberBigrams,
    n_queries: usize,
}

/// The game of the first `limit` responses.
///
/// # Errors
/// No response; tokens out of range.
pub fn bigrams(corpus: &Corpus, vocab_size: usize, limit: Option<usize>) -> Result<BigramGame, EngineError> {
    let examples: Vec<&[u32]> = corpus.examples.iter().map(|e| e.tokens.as_slice()).collect();
    let from = corpus.manifest.config.prompt_len;
    let all = corpus.queries.iter().map(|q| (q.tokens.as_slice(), from));
    let queries: Vec<(&[u32], usize)> = all.take(limit.unwrap_or(usize::MAX)).collect();
    let bigrams = MemberBigrams::build(vocab_size, &examples, &queries, FOLLOWER_PSEUDO_COUNT)?;
    Ok(BigramGame { bigrams, n_queries: queries.len() })
}

impl BigramGame {
    fn counts(&self, players: &Players) -> Result<Vec<MemberCounts>, EngineError> {
        let one = |player| Ok(self.bigrams.counts(&players.members(player))?);
        (0..players.names.len()).map(one).collect()
    }

    fn of(&self, counts: &[MemberCounts], kept: &[bool]) -> Result<Vec<f64>, EngineError> {
        let mut sum = self.bigrams.counts(&[])?;
        counts.iter().zip(kept).filter(|(_, kept)| **kept).for_each(|(part, _)| sum.add(part));
        Ok(self.bigrams.utilities(&sum))
    }

    /// Every subset's utilities.
    fn table(&self, counts: &[MemberCounts]) -> Result<game::Game, EngineError> {
        let k = counts.len();
        let mut table = Array2::zeros((1 << k, self.n_queries));
        for (mask, mut row) in table.rows_mut().into_iter().enumerate() {
            let kept: Vec<bool> = (0..k).map(|member| mask >> member & 1 == 1).collect();
            row.assign(&ndarray::Array1::from(self.of(counts, &kept)?));
        }
        Ok(game::Game::new(table)?)
    }

    fn found(&self, values: Array2<f64>, std_errors: Option<Array2<f64>>, utilities: usize) -> Found {
        let zeros = || Array2::zeros(values.dim());
        let exact = std_errors.is_none();
        Found {
            std_errors: std_errors.unwrap_or_else(zeros),
            exact,
            utilities,
            decided_by: Digest::of(b"bigram"),
            values,
        }
    }

    fn drawn_banzhaf(&self, counts: &[MemberCounts], draws: Draws) -> Result<Found, EngineError> {
        let mut stream = Stream::new(draws.seed, "values/banzhaf");
        let kept = Array2::from_shape_simple_fn((draws.subsets, counts.len()), || stream.below(2) == 1);
        let mut outcomes = Array2::zeros((draws.subsets, self.n_queries));
        for (set, mut row) in kept.rows().into_iter().zip(outcomes.rows_mut()) {
            row.assign(&ndarray::Array1::from(self.of(counts, &set.to_vec())?));
        }
        let found = banzhaf_msr(kept.view(), outcomes.view())?;
        Ok(self.found(found.values, Some(found.std_errors), draws.subsets))
    }
}

impl Game for BigramGame {
    fn values(
        &self,
        players: &Players,
        value: ValueKind,
        draws: Draws,
        progress: &dyn Progress,
    ) -> Result<Found, EngineError> {
        let k = players.names.len();
        if value == ValueKind::Fgsv {
            let options = FgsvOptions { pairs_per_size: draws.pairs, max_sizes: draws.sizes, seed: draws.seed };
            let found = group_values(&players.group_of, k, options, |members| match progress.stop_requested() {
                true => Err(ascribe_methods::MethodError::Stopped),
                false => self.bigrams.utility(members),
            })?;
            return Ok(self.found(found.values, Some(found.std_errors), found.n_utilities));
        }
        let counts = self.counts(players)?;
        match value {
            ValueKind::Fgsv | ValueKind::LeaveOneOut => {
                let full = self.of(&counts, &vec![true; k])?;
                let mut values = Array2::zeros((self.n_queries, k));
                for player in 0..k {
                    let kept: Vec<bool> = (0..k).map(|other| other != player).collect();
                    let without = self.of(&counts, &kept)?;
                    (0..self.n_queries).for_each(|q| values[(q, player)] = full[q] - without[q]);
                }
                Ok(self.found(values, None, k + 1))
            }
            ValueKind::Shapley if k <= MAX_PLAYERS => Ok(self.found(self.table(&counts)?.shapley(), None, 1 << k)),
            ValueKind::Banzhaf if k <= MAX_PLAYERS => Ok(self.found(self.table(&counts)?.banzhaf(), None, 1 << k)),
            ValueKind::Shapley => {
                let mut asked = BTreeSet::new();
                let found = shapley_permutations(k, draws.orders, draws.seed, |kept| {
                    if progress.stop_requested() {
                        return Err(EngineError::Stopped);
                    }
                    asked.insert(kept.to_vec());
                    self.of(&counts, kept)
                })?;
                Ok(self.found(found.values, Some(found.std_errors), asked.len()))
            }
            ValueKind::Banzhaf => self.drawn_banzhaf(&counts, draws),
        }
    }

    fn utilities(&self, players: &Players, sets: &[Vec<bool>]) -> Result<Vec<Vec<f64>>, EngineError> {
        let counts = self.counts(players)?;
        sets.iter().map(|kept| self.of(&counts, kept)).collect()
    }
}

/// Rows, curvature and responses of a run: products of every example with the responses, checkpoint by checkpoint.
pub struct InfluenceGame<'a> {
    context: &'a Context,
    n_queries: usize,
    decided_by: Digest,
}

/// The game of a run's first `limit` responses.
///
/// # Errors
/// A run whose rows or curvature are missing, with the command that makes them; no response.
pub fn influence<'a>(
    context: &'a Context,
    limit: Option<usize>,
    _: &dyn Progress,
) -> Result<InfluenceGame<'a>, EngineError> {
    let n_queries = context.corpus.queries.len().min(limit.unwrap_or(usize::MAX));
    if n_queries == 0 {
        let (expected, found) = ("at least 1".to_owned(), "0".to_owned());
        return Err(EngineError::Setting { setting: "--queries", expected, found });
    }
    for checkpoint in &context.checkpoints {
        let dir = context.out.join(features::train_dir(&checkpoint.name));
        if !dir.exists() {
            let expected = "rows of every checkpoint and their curvature".to_owned();
            let found =
                format!("none; hint: ascribe features --out {0}, then ascribe fit --out {0}", context.out.display());
            return Err(EngineError::Content { path: dir, expected, found });
        }
    }
    let dampings: Vec<f64> = context.checkpoints.iter().map(|c| fit::damping_rel(context, c)).collect();
    let decided_by = Digest::of_json(&(features::digest(context)?, dampings))?;
    Ok(InfluenceGame { context, n_queries, decided_by })
}

impl InfluenceGame<'_> {
    /// First and second order of the players, summed over checkpoints with their learning rates.
    fn game(&self, players: &Players, progress: &dyn Progress) -> Result<RemovalGame, EngineError> {
        let k = players.names.len();
        let (mut scores, mut pairs) = (Array2::zeros((self.n_queries, k)), Array3::zeros((self.n_queries, k, k)));
        for (c, checkpoint) in self.context.checkpoints.iter().enumerate() {
            let store = open_train(self.context, &checkpoint.name)?;
            let factors = fit::read(self.context, checkpoint)?;
            let whole = GradientChannel { curved: true, checkpoints: vec![c], modules: None, exchange: false };
            let rows = whole.queries(self.context, c, &store.spec().columns)?;
            let solved = precondition(&factors, rows.slice(s![..self.n_queries, ..]))?;
            let sums = self.sums(players, &store)?;
            // Sums are larger than rows: to one scale first, so that f32 has room.
            let largest = sums.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
            let solved_sums = precondition(&factors, sums.mapv(|v| (v / largest) as f32).view())?;
            let both = concatenate(Axis(0), &[solved.view(), solved_sums.view()]).expect("both have a row's columns");
            let scored = dot::score(&store, both.view(), None, progress)?;
            let (queries, datasets) = scored.values.view().split_at(Axis(0), self.n_queries);
            let placed = self.placed(players, &scored.examples)?;
            let found = second_order(queries, (datasets.mapv(f64::from) * largest).view(), &placed)?;
            pairs.scaled_add(checkpoint.weight, &found);
            scores.scaled_add(checkpoint.weight, &dot::dataset_scores(solved.view(), sums.view())?);
        }
        Ok(RemovalGame::new(scores, pairs)?)
    }

    /// Sums of rows per player, in f64 and in row order.
    fn sums(&self, players: &Players, store: &ascribe_store::FeatureStore) -> Result<Array2<f64>, EngineError> {
        let mut sums = Array2::<f64>::zeros((players.names.len(), store.spec().dim));
        for block in 0..store.n_blocks() {
            let block = store.block(block)?;
            for (id, row) in self.placed(players, &block.ids)?.iter().zip(block.rows.rows()) {
                let mut sum = sums.row_mut(id.dataset as usize);
                sum.zip_mut_with(&row, |to, &v| *to += f64::from(v));
            }
        }
        Ok(sums)
    }

    /// Ids whose dataset is the player.
    fn placed(&self, players: &Players, ids: &[ExampleId]) -> Result<Vec<ExampleId>, EngineError> {
        let examples = &self.context.corpus.examples;
        let place = |id: &ExampleId| {
            let found = examples.binary_search_by_key(id, |e| e.id).map_err(|_| EngineError::Content {
                path: self.context.out.clone(),
                expected: "rows of this corpus's examples".into(),
                found: format!("a row of example {}:{}", id.dataset, id.idx),
            })?;
            Ok(ExampleId { dataset: players.group_of[found], idx: id.idx })
        };
        ids.iter().map(place).collect()
    }
}

impl Game for InfluenceGame<'_> {
    fn values(
        &self,
        players: &Players,
        value: ValueKind,
        _: Draws,
        progress: &dyn Progress,
    ) -> Result<Found, EngineError> {
        let game = self.game(players, progress)?;
        let values = match value {
            // Gains are linear in who came before: all three are one number, and additive over examples.
            ValueKind::Fgsv | ValueKind::Shapley | ValueKind::Banzhaf => game.values(),
            ValueKind::LeaveOneOut => game.leave_one_out(),
        };
        let zeros = Array2::zeros(values.dim());
        Ok(Found { values, std_errors: zeros, exact: true, utilities: 0, decided_by: self.decided_by })
    }

    fn utilities(&self, players: &Players, sets: &[Vec<bool>]) -> Result<Vec<Vec<f64>>, EngineError> {
        let game = self.game(players, &ascribe_core::NoProgress)?;
        Ok(sets.iter().map(|kept| game.utility(kept)).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn players() -> Players {
        let datasets = vec!["a".to_owned(), "b".to_owned()];
        Players { names: datasets.clone(), dataset_of: vec![0, 1], group_of: vec![0, 0, 0, 1, 1], datasets }
    }

    #[test]
    fn parts_are_runs_of_examples() {
        let split = players().split(&[("a".into(), 2)]).unwrap();
        assert_eq!(split.names, ["a 1/2", "a 2/2", "b"]);
        assert_eq!((split.group_of.clone(), split.dataset_of.clone()), (vec![0, 0, 1, 2, 2], vec![0, 0, 1]));
        assert_eq!(split.sizes(), [2, 1, 2]);
        assert_eq!(players().split(&[]).unwrap(), players());
        let text = |s: &[(String, usize)]| players().split(s).unwrap_err().to_string();
        assert!(text(&[("c".into(), 2)]).contains("--split: expected a dataset among a, b, found c"));
        assert!(text(&[("a".into(), 4)]).contains("2 to 3 parts of a"));
        assert!(text(&[("a".into(), 1)]).contains("2 to 3 parts of a"));
        assert!(text(&[("a".into(), 2), ("a".into(), 3)]).contains("every dataset once"));
    }

    /// Two datasets of one text: whoever comes first brings everything, so a second registration pays where datasets are players.
    fn twins() -> (BigramGame, Players) {
        let texts: [&[u32]; 4] = [&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2]];
        let bigrams = MemberBigrams::build(5, &texts, &[(&[0, 1, 2], 1)], 4.0).unwrap();
        let datasets = vec!["a".to_owned(), "b".to_owned()];
        let players = Players { names: datasets.clone(), dataset_of: vec![0, 1], group_of: vec![0, 0, 1, 1], datasets };
        (BigramGame { bigrams, n_queries: 1 }, players)
    }

    #[test]
    fn a_split_gains_under_shapley_and_nothing_under_the_group_value() {
        let (game, whole) = twins();
        let split = whole.split(&[("b".into(), 2)]).unwrap();
        let draws = Draws { pairs: 400, ..Draws::default() };
        let of = |players: &Players, value| game.values(players, value, draws, &ascribe_core::NoProgress).unwrap();
        let gain = |value| {
            let (before, after) = (of(&whole, value), of(&split, value));
            after.values[(0, 1)] + after.values[(0, 2)] - before.values[(0, 1)]
        };
        let everything = of(&whole, ValueKind::Shapley).values.sum();
        assert!(gain(ValueKind::Shapley) > 0.1 * everything, "{} of {everything}", gain(ValueKind::Shapley));
        // Examples are alike: each is worth a quarter, however they are registered; the drawing's error is what is left.
        let (before, after) = (of(&whole, ValueKind::Fgsv), of(&split, ValueKind::Fgsv));
        let error = before.std_errors.sum() + after.std_errors.sum();
        assert!(gain(ValueKind::Fgsv).abs() <= 4.0 * error && error < 0.05 * everything, "{error}");
        assert!((before.values[(0, 1)] - everything / 2.0).abs() <= 4.0 * error);
        assert!(!before.exact && of(&whole, ValueKind::Shapley).exact);
    }

    #[test]
    fn values_above_twelve_players_are_drawn_and_near_the_exact_ones() {
        let mut stream = Stream::new(3, "values-test");
        let texts: Vec<Vec<u32>> = (0..14).map(|_| (0..12).map(|_| stream.below(6)).collect()).collect();
        let examples: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let bigrams = MemberBigrams::build(6, &examples, &[(&[0, 1, 2, 3, 4, 5], 1)], 4.0).unwrap();
        let game = BigramGame { bigrams, n_queries: 1 };
        let of = |n: u32| {
            let datasets: Vec<String> = (0..n).map(|k| k.to_string()).collect();
            let group_of = (0..14u32).map(|i| i.min(n - 1)).collect();
            Players { names: datasets.clone(), dataset_of: (0..n as usize).collect(), group_of, datasets }
        };
        let draws = Draws { orders: 200, subsets: 4000, ..Draws::default() };
        let run = |n, value| game.values(&of(n), value, draws, &ascribe_core::NoProgress).unwrap();
        for value in [ValueKind::Shapley, ValueKind::Banzhaf] {
            let (exact, drawn) = (run(12, value), run(14, value));
            assert!(exact.exact && exact.utilities == 4096 && !drawn.exact, "{value:?}");
            assert!(drawn.std_errors.iter().all(|e| *e > 0.0 && *e < 0.2), "{value:?}: {}", drawn.std_errors);
        }
        // Orders add up to what everything is worth, drawn or not.
        let players = of(14);
        let values = run(14, ValueKind::Shapley).values;
        let found = residuals(&game, &players, &values, 1).unwrap();
        assert!(found.efficiency < 1e-9 && found.additivity > 0.0, "{} {}", found.efficiency, found.additivity);
        // The twelve players' table against 200 orders of the same twelve.
        let counts = game.counts(&of(12)).unwrap();
        let sampled = shapley_permutations(12, 200, 7, |kept| game.of(&counts, kept)).unwrap();
        let exact = run(12, ValueKind::Shapley).values;
        for k in 0..12 {
            let off = (sampled.values[(0, k)] - exact[(0, k)]).abs() / sampled.std_errors[(0, k)];
            assert!(off < 4.5, "{k}: {off}");
        }
    }
}
