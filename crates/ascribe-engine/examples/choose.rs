#![allow(clippy::print_stdout)] // an example talks to a person
//! Chooses an attribution's settings by measurement: every damping, every checkpoint weighting and every channel against
//! the retrain bank, held-out, and the order in which a forward selection would take channels.
//!
//! `cargo run --release -p ascribe-engine --example choose -- RUN_FOLDER [SEEDS [SET…]]` after `ascribe features --out RUN_FOLDER`.
//! Prints a table; what was taken from it stands in `attribution.toml` and `benches/BARS.md`. SEEDS (`1` or `2,3`) are the retraining
//! seeds that count (all without), so that the others can test the choice. A SET, names of channels with commas between them, is calibrated
//! together; with sets there is no forward selection. `SET@0.1` adds a tenth of the cross-entropy to what its fit minimises,
//! `4*SET` is every set of at most four of its channels.

use std::path::PathBuf;

use ascribe_core::{ExampleId, NoProgress};
use ascribe_engine::walk::features::{HIDDEN_DIRS, load_rows, open_train, query_dir};
use ascribe_engine::walk::{Context, channels, score};
use ascribe_engine::{DEFAULT_MODEL, Home};
use ascribe_eval::{Truth, bootstrap_mean, measures::measure};
use ascribe_methods::aggregate::{Aggregate, exchanged, to_datasets};
use ascribe_methods::block_fisher::{Covariance, precondition, removal_vectors};
use ascribe_methods::combine::{Channel, FitOptions, Holdout, Splits, TrueShares, cross_fit, forward_select};
use ascribe_methods::controls::{bm25::Bm25, embedding, text::terms};
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
    fn line(&self, name: &str, channels: &[Channel<'_>], options: &FitOptions) -> Result<()> {
        let run = |holdout| {
            let splits = Splits { holdout, n: 5, seed: SEED };
            cross_fit(channels, &self.shares(), splits, options)
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
    let asked: Vec<u64> = arguments.get(1).map_or(Ok(Vec::new()), |n| n.split(',').map(str::parse).collect())?;
    let sets = arguments.get(2..).unwrap_or_default();
    let context = Context::open(&Home::find(None)?, DEFAULT_MODEL, &out, &NoProgress)?;
    let bank = context.bank()?;
    let used = bank.seeds.iter().zip(bank.change.axis_iter(Axis(0)));
    let used = used.filter(|(seed, _)| asked.is_empty() || asked.contains(seed));
    let changes: Vec<Array2<f64>> = used.map(|(_, change)| change.to_owned()).collect();
    let board = Board { truth: Truth::from_seeds(&changes)?, own: context.own() };
    println!("{} seeds, {} usable responses", changes.len(), board.truth.usable.len());
    println!("{:<34} held-out error            unseen  rank   others", "");
    let mut pool = Vec::new();
    if let Ok(file) = read_scores(&out.join(score::SCORES_FILE)) {
        for method in score::METHODS.iter().filter(|m| m.control || !sets.is_empty()) {
            pool.push((method.name.to_owned(), file.datasets(method.name)?.values));
        }
    }
    pool.extend(beyond_the_walk(&context)?);
    if !sets.is_empty() {
        return sets.iter().try_for_each(|set| lines(&context, &board, &mut pool, set));
    }
    pool = [gradients(&context)?, pool].concat();
    for (name, scores) in &pool {
        board.line(name, &[Channel { name, scores: scores.view() }], &FitOptions::default())?;
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
        board.line(&format!("+ {}", step.name), &taken, &FitOptions::default())?;
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

/// Lines of a set, or of all its subsets of at most so many channels.
fn lines(context: &Context, board: &Board, pool: &mut Vec<(String, Array2<f64>)>, set: &str) -> Result<()> {
    let Some((most, names)) = set.split_once('*') else { return together(context, board, pool, set) };
    let (most, names): (u32, Vec<&str>) = (most.parse()?, names.split(',').collect());
    for mask in 1u32..1 << names.len() {
        if mask.count_ones() <= most {
            let taken: Vec<&str> =
                names.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, name)| *name).collect();
            together(context, board, pool, &taken.join(","))?;
        }
    }
    Ok(())
}

/// The line of channels that are calibrated together; parts of gradient methods are scored as the walk would.
fn together(context: &Context, board: &Board, pool: &mut Vec<(String, Array2<f64>)>, set: &str) -> Result<()> {
    let (names, entropy) = set.split_once('@').unwrap_or((set, "0"));
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    for name in &names {
        if find(pool, name).is_none() {
            let channel = channels::gradient(context, name)?.ok_or_else(|| format!("no channel {name}"))?;
            pool.push(((*name).to_owned(), channel.scores(context)?));
        }
    }
    let pool: &[(String, Array2<f64>)] = pool;
    let channels: Vec<Channel<'_>> = names
        .iter()
        .filter_map(|name| find(pool, name).map(|scores| Channel { name, scores: scores.view() }))
        .collect();
    board.line(set, &channels, &FitOptions { entropy: entropy.parse()?, ..FitOptions::default() })
}

/// Channels that the walk does not have: other aggregates of similarity, other smoothing of the bigram model.
fn beyond_the_walk(context: &Context) -> Result<Vec<(String, Array2<f64>)>> {
    let (corpus, n) = (&context.corpus, context.corpus.n_datasets());
    let ids: Vec<ExampleId> = corpus.examples.iter().map(|e| e.id).collect();
    let mut out = Vec::new();
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
    }
    let last = channels::gradient(context, "block_fisher")?.ok_or("no block_fisher")?.scores(context)?;
    out.push(("block_fisher_exchange".to_owned(), exchanged(last.view(), &context.sizes()?)?));
    let bigrams = context.bigrams()?;
    for followers in [64.0, 128.0, 256.0, 1024.0] {
        out.push((format!("bigram {followers}"), bigrams.leave_one_out(&context.predicted(), followers)?));
    }
    Ok(out)
}

fn find<'p>(pool: &'p [(String, Array2<f64>)], name: &str) -> Option<&'p Array2<f64>> {
    pool.iter().find(|(n, _)| n == name).map(|(_, s)| s)
}
