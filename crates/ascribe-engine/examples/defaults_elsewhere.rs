//! The documented default weights of the calibrated combination on a model that they were not fitted on: share error against
//! leave-one-dataset-out retraining of finch (six datasets, three seeds), and the quantile of their interval rule. What it prints is what
//! `CalibratedMethod::defaults` claims, to three places.
//!
//! `cargo run --release -p ascribe-engine --example defaults_elsewhere`
#![allow(clippy::print_stdout, reason = "an example prints its figures")]

use ascribe_core::ExampleId;
use ascribe_engine::Home;
use ascribe_engine::bench::datasets::channels::channels;
use ascribe_engine::bench::runners::{DecoderData, open_decoder, read_bank};
use ascribe_engine::bench::setting::Setting;
use ascribe_eval::measures::measure;
use ascribe_eval::{Truth, bootstrap_mean};
use ascribe_methods::aggregate::{exchanged, sizes};
use ascribe_methods::combine::{CalibratedMethod, Channel, Conformal};
use ascribe_methods::controls::ngram::{Bigrams, FOLLOWER_PSEUDO_COUNT};
use ndarray::Array2;

const SEED: u64 = 7;

/// Channels by name, `[Q, K]` each.
type Named = Vec<(String, Array2<f64>)>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = Home::find(None)?;
    let setting = Setting::named(&home, "datasets-shapley")?;
    let (bank, data) = (read_bank(&setting, "all")?, open_decoder(&home, "finch")?);
    let (q, k) = (data.corpus.queries.len(), data.corpus.n_datasets());
    let row = |without: Option<usize>| {
        let wanted =
            |row: ndarray::ArrayView1<'_, bool>| row.iter().enumerate().all(|(i, kept)| *kept == (Some(i) != without));
        bank.kept.rows().into_iter().position(wanted).ok_or("a subset that the bank does not have")
    };
    let all = row(None)?;
    let left_out: Vec<usize> = (0..k).map(|k| row(Some(k))).collect::<Result<_, _>>()?;
    // Outcomes are negative nats: what falls without a dataset is what it was worth.
    let change = |s: usize| {
        Array2::from_shape_fn((q, k), |(q, k)| bank.outcomes[(s, all, q)] - bank.outcomes[(s, left_out[k], q)])
    };
    let changes: Vec<Array2<f64>> = (0..bank.seeds.len()).map(change).collect();
    let truth = Truth::from_seeds(&changes)?;
    let own: Vec<u32> = data.corpus.queries.iter().map(|q| q.dataset).collect();
    let found = channels(&home, "finch", &data, &|_| true)?;
    let mut named: Named = found.list.iter().map(|c| (c.name.clone(), c.scores.clone())).collect();
    named.extend(of_the_walk(&data, &named)?);
    let tables: Vec<Channel<'_>> = named.iter().map(|(name, scores)| Channel { name, scores: scores.view() }).collect();
    let defaults = CalibratedMethod::defaults();
    let shares = defaults.calibration.predict(&tables)?;
    let errors: Vec<_> = (0..q).map(|q| measure(&truth, q, shares.row(q), shares.row(q), own[q]).share_error).collect();
    let ranks: Vec<_> = (0..q).map(|q| measure(&truth, q, shares.row(q), shares.row(q), own[q]).spearman).collect();
    let (error, rank) = (bootstrap_mean(&errors, SEED)?, bootstrap_mean(&ranks, SEED)?);
    let rule = Conformal::fit(shares.view(), truth.shares.view(), &truth.usable, 0.9)?;
    println!("{} responses, {} seeds", truth.usable.len(), bank.seeds.len());
    println!("share error {:.4} [{:.4}, {:.4}], Spearman {:.3}", error.mean, error.low, error.high, rank.mean);
    println!("90 % quantile {:.4} of {} residuals", rule.quantile, rule.n_residuals);
    let names =
        ["trajectory_fisher", "trajectory_fisher_exchange", "bm25_top20", "bm25_exchange", "embedding_top20", "bigram"];
    for name in names {
        let (_, scores) = named.iter().find(|(n, _)| n == name).ok_or("a channel is missing")?;
        let one = |q: usize| {
            let raw = ascribe_eval::shares::raw_shares(scores.row(q));
            measure(&truth, q, scores.row(q), raw.view(), own[q])
        };
        let raw = bootstrap_mean(&(0..q).map(|q| one(q).share_error).collect::<Vec<_>>(), SEED)?;
        let rank = bootstrap_mean(&(0..q).map(|q| one(q).spearman).collect::<Vec<_>>(), SEED)?;
        println!("{name}, raw: {:.4} [{:.4}, {:.4}], Spearman {:.3}", raw.mean, raw.low, raw.high, rank.mean);
    }
    Ok(())
}

/// Channels that the walk has and the bench of games has not: datasets against as many examples of the others, counted bigrams.
fn of_the_walk(data: &DecoderData, known: &[(String, Array2<f64>)]) -> Result<Named, Box<dyn std::error::Error>> {
    let (corpus, k) = (&data.corpus, data.corpus.n_datasets());
    let ids: Vec<ExampleId> = corpus.examples.iter().map(|e| e.id).collect();
    let sizes = sizes(&ids, k)?;
    let mut out = Vec::new();
    for (name, is_mean) in [("trajectory_fisher", false), ("bm25", true)] {
        let (_, scores) = known.iter().find(|(n, _)| n == name).ok_or("a channel is missing")?;
        let mut sums = scores.clone();
        if is_mean {
            sums.columns_mut().into_iter().zip(&sizes).for_each(|(mut column, &size)| column *= size as f64);
        }
        out.push((format!("{name}_exchange"), exchanged(sums.view(), &sizes)?));
    }
    let windows = corpus.examples.iter().map(|e| (e.id.dataset, e.tokens.as_slice()));
    let bigrams = Bigrams::build(data.recipe.corpus.vocab_size, k, windows)?;
    let from = corpus.manifest.config.prompt_len;
    let queries: Vec<(&[u32], usize)> = corpus.queries.iter().map(|q| (q.tokens.as_slice(), from)).collect();
    out.push(("bigram".to_owned(), bigrams.leave_one_out(&queries, FOLLOWER_PSEUDO_COUNT)?));
    Ok(out)
}
