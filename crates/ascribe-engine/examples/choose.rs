#![allow(clippy::print_stdout)] // an example talks to a person
//! Chooses an attribution's settings by measurement: every damping, every checkpoint weighting and every channel against
//! the retrain bank, held-out, and the order in which a forward selection would take channels.
//!
//! `cargo run --release -p ascribe-engine --example choose -- RUN_FOLDER [SEEDS [SET…]]` after `ascribe features --out RUN_FOLDER`.
//! Prints a table; what was taken from it stands in `attribution.toml` and `benches/BARS.md`. SEEDS takes the bank's first so many
//! retraining seeds only, so that the others can test the choice. A SET, names of the table with commas between them, is
//! calibrated together; with sets there is no forward selection.

use std::path::PathBuf;

use ascribe_core::{ExampleId, NoProgress};
use ascribe_engine::walk::features::{HIDDEN_DIRS, load_rows, open_train, query_dir};
use ascribe_engine::walk::{Context, score};
use ascribe_engine::{DEFAULT_MODEL, Home};
use ascribe_eval::{Truth, bootstrap_mean, measures::measure};
use ascribe_methods::aggregate::{Aggregate, to_datasets};
use ascribe_methods::block_fisher::{Covariance, precondition, removal_vectors};
use ascribe_methods::combine::{Channel, FitOptions, Holdout, Splits, TrueShares, cross_fit, forward_select};
use ascribe_methods::controls::{bm25::Bm25, embedding, ngram::Bigrams, text::terms};
use ascribe_methods::dot;
use ascribe_store::FeatureStore;
use ascribe_store::scores::read_scores;
use ndarray::{Array2, Axis};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DAMPINGS: [f64; 8] = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003];
const SEED: u64 = 7;

struct Board {
    truth: Truth,
    own: Vec<u32>,
}

impl Board {
    fn shares(&self) -> TrueShares<'_> {
        TrueShares { shares: self.truth.shares.view(), usable: &self.truth.usable, own: &self.own }
    }

    /// Held-out share error over queries and over unseen datasets, and Spearman, of one calibrated set of channels.
    fn line(&self, name: &str, channels: &[Channel<'_>]) -> Result<()> {
        let run = |holdout| {
            let splits = Splits { holdout, n: 5, seed: SEED };
            cross_fit(channels, &self.shares(), splits, &FitOptions::default())
        };
        let (queries, datasets) = (run(Holdout::Queries)?, run(Holdout::Datasets)?);
        let at = |q, s: ndarray::ArrayView1<'_, f64>| measure(&self.truth, q, s, s, self.own[q]);
        let error = bootstrap_mean(&queries.per_query(|q, s| at(q, s).share_error), SEED)?;
        let unseen = bootstrap_mean(&datasets.per_query(|q, s| at(q, s).share_error), SEED)?;
        let rank = bootstrap_mean(&queries.per_query(|q, s| at(q, s).spearman), SEED)?;
        let others = bootstrap_mean(&queries.per_query(|q, s| at(q, s).spearman_other), SEED)?;
        println!(
            "{name:<34} {:.4} [{:.4}, {:.4}]  {:.4}  {:.3}  {:.3}",
            error.mean, error.low, error.high, unseen.mean, rank.mean, others.mean
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let out = PathBuf::from(arguments.first().ok_or("usage: choose RUN_FOLDER [SEEDS [SET...]]")?);
    let seeds: usize = arguments.get(1).map_or(Ok(usize::MAX), |n| n.parse())?;
    let sets = arguments.get(2..).unwrap_or_default();
    let context = Context::open(&Home::find(None)?, DEFAULT_MODEL, &out, &NoProgress)?;
    let bank = context.bank()?;
    let changes: Vec<Array2<f64>> = bank.change.axis_iter(Axis(0)).take(seeds).map(|c| c.to_owned()).collect();
    let board = Board { truth: Truth::from_seeds(&changes)?, own: context.own() };
    println!("{} seeds, {} usable responses", changes.len(), board.truth.usable.len());
    println!("{:<34} held-out error            unseen  rank   others", "");
    let mut pool = gradients(&context)?;
    if let Ok(file) = read_scores(&out.join(score::SCORES_FILE)) {
        for method in score::METHODS.iter().filter(|m| m.control) {
            pool.push((method.name.to_owned(), file.datasets(method.name)?.values));
        }
    }
    pool.extend(beyond_the_walk(&context, &pool)?);
    if !sets.is_empty() {
        return sets.iter().try_for_each(|set| together(&board, &pool, set));
    }
    for (name, scores) in &pool {
        board.line(name, &[Channel { name, scores: scores.view() }])?;
    }
    let channels: Vec<Channel<'_>> = pool
        .iter()
        .filter(|(n, _)| !matches!(n.as_str(), "random" | "gradient_norm"))
        .map(|(name, scores)| Channel { name, scores: scores.view() })
        .collect();
    // Chosen on splits of their own (another seed): the figures printed for the chosen set are from other splits.
    let splits = Splits { holdout: Holdout::Queries, n: 3, seed: SEED + 1 };
    let steps = forward_select(&channels, &board.shares(), splits, &FitOptions::default(), 0.001)?;
    println!("\nforward selection");
    let mut taken: Vec<Channel<'_>> = Vec::new();
    for step in steps {
        taken.extend(channels.iter().filter(|c| c.name == step.name));
        board.line(&format!("+ {}", step.name), &taken)?;
    }
    Ok(())
}

/// Gradient channels: every checkpoint and damping, and their sums over checkpoints.
fn gradients(context: &Context) -> Result<Vec<(String, Array2<f64>)>> {
    let mut pool: Vec<(String, Array2<f64>)> = Vec::new();
    for checkpoint in &context.checkpoints {
        let store = open_train(context, &checkpoint.name)?;
        let rows = load_rows(&FeatureStore::open(&context.out.join(query_dir(&checkpoint.name)), None)?)?;
        let sums = store.dataset_sums()?.sums();
        let covariance = Covariance::fit(&store, &NoProgress)?;
        let plain = rows.mapv(f64::from);
        pool.push((
            format!("{} dot", checkpoint.name),
            dot::dataset_scores(plain.view(), sums.view())? * checkpoint.weight,
        ));
        for damping in DAMPINGS {
            let solved = precondition(&covariance.cholesky(damping)?, rows.view())?;
            let scores = dot::dataset_scores(solved.view(), sums.view())?;
            pool.push((format!("{} fisher {damping}", checkpoint.name), scores * checkpoint.weight));
        }
        for damping in [0.3, 0.1, 0.03] {
            if let Ok(gone) = removal_vectors(&store, &covariance, damping, context.corpus.n_datasets(), &NoProgress) {
                pool.push((
                    format!("{} removal {damping}", checkpoint.name),
                    dot::dataset_scores(plain.view(), gone.view())?,
                ));
            }
        }
    }
    let sum = |pool: &[(String, Array2<f64>)], kind: &str| {
        let parts: Vec<&Array2<f64>> =
            context.checkpoints.iter().filter_map(|c| find(pool, &format!("{} {kind}", c.name))).collect();
        parts.iter().fold(Array2::zeros(parts[0].dim()), |a, b| a + *b)
    };
    let mut totals = vec![("all dot".to_owned(), sum(&pool, "dot"))];
    totals.extend(DAMPINGS.map(|d| (format!("all fisher {d}"), sum(&pool, &format!("fisher {d}")))));
    pool.extend(totals);
    Ok(pool)
}

/// The line of channels that are calibrated together.
fn together(board: &Board, pool: &[(String, Array2<f64>)], set: &str) -> Result<()> {
    let mut channels: Vec<Channel<'_>> = Vec::new();
    for name in set.split(',').map(str::trim) {
        let scores = find(pool, name).ok_or_else(|| format!("no channel {name}"))?;
        channels.push(Channel { name, scores: scores.view() });
    }
    board.line(set, &channels)
}

/// Channels that the walk does not have: other aggregates of similarity, sums against the mean example, leaving datasets out of a
/// bigram model.
fn beyond_the_walk(context: &Context, pool: &[(String, Array2<f64>)]) -> Result<Vec<(String, Array2<f64>)>> {
    let (corpus, n) = (&context.corpus, context.corpus.n_datasets());
    let ids: Vec<ExampleId> = corpus.examples.iter().map(|e| e.id).collect();
    let sizes: Vec<f64> = (0..n).map(|k| ids.iter().filter(|id| id.dataset as usize == k).count() as f64).collect();
    let all: f64 = sizes.iter().sum();
    // Trainings without a dataset have as many steps, so its examples make room for others of mean influence.
    let against_mean = |sums: &Array2<f64>| {
        let mut out = sums.clone();
        for mut row in out.rows_mut() {
            let mean = row.sum() / all;
            row.iter_mut().zip(&sizes).for_each(|(v, size)| *v -= size * mean);
        }
        out
    };
    let mut out = Vec::new();
    for name in ["all fisher 0.001", "step-000800 fisher 0.001", "all dot"] {
        let Some(sums) = find(pool, name) else { continue };
        out.push((format!("{name} against mean"), against_mean(sums)));
        let mut means = sums.clone();
        means.columns_mut().into_iter().zip(&sizes).for_each(|(mut column, &size)| column /= size);
        out.push((format!("{name} mean"), means));
    }
    let words = |spans: &[ascribe_core::RecordSpan]| terms(&corpus.text_of(spans));
    let documents: Vec<Vec<String>> = corpus.examples.iter().map(|e| words(&e.spans)).collect();
    let questions: Vec<Vec<String>> = corpus.queries.iter().map(|q| words(&q.spans)).collect();
    let load =
        |dir: &str| -> Result<Array2<f32>> { Ok(load_rows(&FeatureStore::open(&context.out.join(dir), None)?)?) };
    let cosine = embedding::score(load(HIDDEN_DIRS[1])?.view(), load(HIDDEN_DIRS[0])?.view(), true)?;
    for (name, scores) in [("bm25", Bm25::build(&documents)?.score_all(&questions)), ("embedding", cosine)] {
        for k in [1, 5, 50, 100, 200] {
            let best = to_datasets(scores.view(), &ids, n, Aggregate::TopMean { k })?;
            out.push((format!("{name}_top{k}"), best));
        }
        out.push((format!("{name} against mean"), against_mean(&to_datasets(scores.view(), &ids, n, Aggregate::Sum)?)));
    }
    let vocabulary = corpus.examples.iter().flat_map(|e| &e.tokens).max().map_or(1, |&t| t as usize + 1);
    let vocabulary = vocabulary.max(corpus.queries.iter().flat_map(|q| &q.tokens).max().map_or(1, |&t| t as usize + 1));
    let windows = corpus.examples.iter().map(|e| (e.id.dataset, e.tokens.as_slice()));
    let bigrams = Bigrams::build(vocabulary, n, windows)?;
    let from = context.recipe.corpus.prompt_len;
    let queries: Vec<(&[u32], usize)> = corpus.queries.iter().map(|q| (q.tokens.as_slice(), from)).collect();
    for followers in [64.0, 256.0, 512.0, 1024.0, 4096.0] {
        out.push((format!("bigrams {followers}"), bigrams.leave_one_out(&queries, followers)?));
    }
    Ok(out)
}

fn find<'p>(pool: &'p [(String, Array2<f64>)], name: &str) -> Option<&'p Array2<f64>> {
    pool.iter().find(|(n, _)| n == name).map(|(_, s)| s)
}
