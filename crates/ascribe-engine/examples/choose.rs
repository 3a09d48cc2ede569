#![allow(clippy::print_stdout)] // an example talks to a person
//! Chooses an attribution's settings by measurement: every damping, every checkpoint weighting and every channel against
//! the retrain bank, held-out, and the order in which a forward selection would take channels.
//!
//! `cargo run --release -p ascribe-engine --example choose -- RUN_FOLDER` after `ascribe features --out RUN_FOLDER`.
//! Prints a table; what was taken from it stands in `attribution.toml` and `benches/BARS.md`.

use std::path::PathBuf;

use ascribe_core::NoProgress;
use ascribe_engine::walk::features::{load_rows, open_train, query_dir};
use ascribe_engine::walk::{Context, score};
use ascribe_engine::{DEFAULT_MODEL, Home};
use ascribe_eval::{Truth, bootstrap_mean, measures::measure};
use ascribe_methods::block_fisher::{Covariance, precondition, removal_vectors};
use ascribe_methods::combine::{Channel, FitOptions, Holdout, Splits, TrueShares, cross_fit, forward_select};
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
    let out = PathBuf::from(std::env::args().nth(1).ok_or("usage: choose RUN_FOLDER")?);
    let context = Context::open(&Home::find(None)?, DEFAULT_MODEL, &out, &NoProgress)?;
    let bank = context.bank()?;
    let changes: Vec<Array2<f64>> = bank.change.axis_iter(Axis(0)).map(|c| c.to_owned()).collect();
    let board = Board { truth: Truth::from_seeds(&changes)?, own: context.own() };
    println!("{} seeds, {} usable responses", bank.seeds.len(), board.truth.usable.len());
    println!("{:<34} held-out error            unseen  rank   others", "");
    let mut pool: Vec<(String, Array2<f64>)> = Vec::new();
    for checkpoint in &context.checkpoints {
        let store = open_train(&context, &checkpoint.name)?;
        let rows = load_rows(&FeatureStore::open(&out.join(query_dir(&checkpoint.name)), None)?)?;
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
    if let Ok(file) = read_scores(&out.join(score::SCORES_FILE)) {
        for method in score::METHODS.iter().filter(|m| m.control) {
            pool.push((method.name.to_owned(), file.datasets(method.name)?.values));
        }
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

fn find<'p>(pool: &'p [(String, Array2<f64>)], name: &str) -> Option<&'p Array2<f64>> {
    pool.iter().find(|(n, _)| n == name).map(|(_, s)| s)
}
