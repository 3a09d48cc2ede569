//! Reputation of datasets: what each was measured to do for held-out responses. No votes, no opinions.
//!
//! How much there is to gain on a held-out response q from having the datasets at all is measured with a model that is counted in
//! a second: g(q) = Σ_k max(0, bigram nats of q without dataset k − with all). Attribution of the real model says which part
//! s(q, d) of it is dataset d's (held-out calibrated shares: those of a fit that has not seen q). Then
//!
//! ```text
//! influence(d, C) = mean over q in C of s(q, d) · g(q)          nats a response, with a bootstrap interval over responses
//! score(d)        = influence(d, all) · (1 − duplication(d))
//! ```
//!
//! A capability C is the set of responses held out from datasets of one language tag. Duplication is the part of a dataset's
//! records whose text stands in a dataset that was licensed earlier, or earlier in itself. Uniqueness is what retraining
//! without the dataset costs, where a retrain bank was made; it is shown, and never part of the score, so that the order of
//! the scores can be held against it ([`Agreement`], beside the bigram model's own order as a control). Licence clarity counts answers to five plain questions.

mod page;

use std::collections::{BTreeMap, HashMap};

use ascribe_core::{Digest, Progress};
use ascribe_corpus::baseline::NGram;
use ascribe_eval::rank::spearman;
use ascribe_eval::{Estimate, bootstrap_mean};
use ascribe_registry::{Dataset, read_records};
use ndarray::{Array1, Array2};
use serde::Serialize;

use crate::error::EngineError;
use crate::walk::Context;
use crate::walk::evaluate::Evaluation;
pub use page::render;

/// The formula, as the page and the JSON state it.
pub const FORMULA: &str = "score(d) = (1 − duplication(d)) · mean over held-out responses q of share(q, d) · g(q); share is \
    held-out calibrated attribution, g(q) the nats that a bigram model loses on q when each dataset in turn is left out, summed \
    where positive; no retraining of the model enters";

/// One dataset's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReputationRow {
    /// Place, from 1.
    pub rank: usize,
    /// Dataset.
    pub dataset: String,
    /// Owner.
    pub owner: String,
    /// Nats a response after duplication.
    pub score: f64,
    /// Attributed nats a response, over all held-out responses.
    pub influence: Estimate,
    /// The same by capability.
    pub by_capability: BTreeMap<String, Estimate>,
    /// Nats a response that are lost when the dataset is removed and the model trained again.
    pub uniqueness: Estimate,
    /// Part of the records that stand elsewhere earlier.
    pub duplication: f64,
    /// Part of the five questions that are answered well.
    pub licence_clarity: f64,
    /// The questions that are not.
    pub licence_gaps: Vec<String>,
}

/// How far the order of influences is that of leave-one-dataset-out retraining.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Spearman of scores with the mean loss change of retraining, over all responses.
    pub spearman: Option<f64>,
    /// The same by capability.
    pub by_capability: BTreeMap<String, Option<f64>>,
    /// Control: the order of what the bigram model alone loses without each dataset.
    pub bigram_alone: Option<f64>,
    /// Seeds of the retraining.
    pub seeds: usize,
}

/// The leaderboard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reputation {
    /// [`FORMULA`].
    pub formula: String,
    /// Model whose responses were measured.
    pub model: String,
    /// Responses by capability.
    pub capabilities: BTreeMap<String, usize>,
    /// Datasets, best first.
    pub datasets: Vec<ReputationRow>,
    /// Against retraining.
    pub agreement: Agreement,
}

/// Measures every dataset of an evaluated run. Same run, same bytes; the bootstrap draws from the recipe's seed.
///
/// # Errors
/// No evaluation or bank; what reading records refuses.
pub fn measure(context: &Context, evaluation: &Evaluation, progress: &dyn Progress) -> Result<Reputation, EngineError> {
    let (corpus, bank, seed) = (&context.corpus, context.bank()?, context.recipe.seed);
    progress.start("reputation", corpus.n_datasets() as u64, "datasets");
    let losses = bigram_losses(context);
    let gains: Vec<f64> = losses.rows().into_iter().map(|row| row.iter().map(|loss| loss.max(0.0)).sum()).collect();
    let language = |dataset: u32| context.registry.datasets()[dataset as usize].manifest.language.clone();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (q, own) in context.own().into_iter().enumerate() {
        groups.entry(language(own)).or_default().push(q);
    }
    let all: Vec<usize> = (0..gains.len()).collect();
    let change = bank.change.mean_axis(ndarray::Axis(0)).unwrap_or_default();
    let duplication = duplication(context)?;
    let mean_over = |queries: &[usize], value: &dyn Fn(usize) -> f64| {
        let values: Vec<Option<f64>> = queries.iter().map(|q| Some(value(*q))).collect();
        bootstrap_mean(&values, seed)
    };
    let mut rows = Vec::new();
    for (k, dataset) in context.registry.datasets().iter().enumerate() {
        let attributed = |q: usize| evaluation.shares[q][k] * gains[q];
        let influence = mean_over(&all, &attributed)?;
        let by_capability = groups
            .iter()
            .map(|(name, queries)| Ok((name.clone(), mean_over(queries, &attributed)?)))
            .collect::<Result<_, EngineError>>()?;
        let gaps = licence_gaps(dataset, context.run_record.started_unix_s);
        rows.push(ReputationRow {
            rank: 0,
            dataset: dataset.name().to_owned(),
            owner: dataset.manifest.owner.clone(),
            score: influence.mean * (1.0 - duplication[k]),
            influence,
            by_capability,
            uniqueness: mean_over(&all, &|q| change[(q, k)])?,
            duplication: duplication[k],
            licence_clarity: 1.0 - gaps.len() as f64 / QUESTIONS as f64,
            licence_gaps: gaps,
        });
        progress.advance(1);
    }
    let mut agreement = agreement(&rows, &groups, &change, bank.seeds.len());
    agreement.bigram_alone = spearman(&column_means(&losses), &column_means(&change));
    rows.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.dataset.cmp(&b.dataset)));
    for (rank, row) in (1..).zip(&mut rows) {
        row.rank = rank;
    }
    progress.finish(&format!("{} datasets over {} responses", rows.len(), gains.len()));
    Ok(Reputation {
        formula: FORMULA.to_owned(),
        model: context.model_name.clone(),
        capabilities: groups.into_iter().map(|(name, queries)| (name, queries.len())).collect(),
        datasets: rows,
        agreement,
    })
}

/// Nats that a bigram model of the training tokens loses on each response when a dataset is left out, `[Q, K]`.
fn bigram_losses(context: &Context) -> Array2<f64> {
    let (corpus, config) = (&context.corpus, &context.corpus.manifest.config);
    let nats = |removed: Option<u32>| -> Array1<f64> {
        let examples = corpus.examples.iter().filter(|example| Some(example.id.dataset) != removed);
        let ngram = NGram::fit(config.vocab_size, examples.map(|example| example.tokens.as_slice()));
        corpus.queries.iter().map(|query| ngram.sequence_nll(&query.tokens, config.prompt_len).1).collect()
    };
    let all = nats(None);
    let mut losses = Array2::zeros((corpus.queries.len(), corpus.n_datasets()));
    for (k, mut column) in (0..).zip(losses.columns_mut()) {
        column.assign(&(nats(Some(k)) - &all));
    }
    losses
}

/// Against retraining: the order of scores and the order of what removal costs.
fn agreement(
    rows: &[ReputationRow],
    groups: &BTreeMap<String, Vec<usize>>,
    change: &Array2<f64>,
    seeds: usize,
) -> Agreement {
    let truth = |queries: &[usize]| -> Vec<f64> {
        (0..rows.len()).map(|k| queries.iter().map(|q| change[(*q, k)]).sum::<f64>() / queries.len() as f64).collect()
    };
    let all: Vec<usize> = (0..change.nrows()).collect();
    let scores: Vec<f64> = rows.iter().map(|row| row.score).collect();
    let within = |(name, queries): (&String, &Vec<usize>)| {
        let scores: Vec<f64> = rows.iter().map(|row| row.by_capability[name].mean * (1.0 - row.duplication)).collect();
        (name.clone(), spearman(&scores, &truth(queries)))
    };
    Agreement {
        spearman: spearman(&scores, &truth(&all)),
        by_capability: groups.iter().map(within).collect(),
        bigram_alone: None,
        seeds,
    }
}

fn column_means(table: &Array2<f64>) -> Vec<f64> {
    table.columns().into_iter().map(|column| column.sum() / table.nrows() as f64).collect()
}

/// Part of each dataset's records whose text was licensed earlier: in a dataset before it in the log, or in itself.
fn duplication(context: &Context) -> Result<Vec<f64>, EngineError> {
    let datasets = context.registry.datasets();
    let mut order: Vec<&Dataset> = datasets.iter().collect();
    order.sort_by_key(|dataset| context.registry.log().index_of(dataset.licence.digest()));
    let (mut seen, mut part) = (HashMap::new(), vec![0.0; datasets.len()]);
    for dataset in order {
        let records = read_records(dataset)?;
        let repeated = records
            .iter()
            .filter(|record| seen.insert(Digest::of(record.text.as_bytes()), dataset.ordinal).is_some())
            .count();
        part[dataset.ordinal as usize] = repeated as f64 / records.len() as f64;
    }
    Ok(part)
}

const QUESTIONS: usize = 5;

/// The questions about a licence that have no good answer.
fn licence_gaps(dataset: &Dataset, run_start: u64) -> Vec<String> {
    let message = dataset.licence.message();
    let in_force = message.valid_from <= run_start && (message.valid_until == 0 || message.valid_until > run_start);
    let answers: [(&str, bool); QUESTIONS] = [
        ("a licence from the SPDX list", !message.licence.contains("LicenseRef-")),
        ("training permitted by name", message.permits.iter().any(|permit| permit == "ai-train" || permit == "ai-all")),
        ("in force when training began", in_force),
        ("open end", message.valid_until == 0),
        ("signed by a key of the licensor's own", !dataset.licence.demo_key()),
    ];
    answers.iter().filter(|(_, good)| !good).map(|(question, _)| (*question).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(mean: f64) -> Estimate {
        Estimate { mean, low: mean, high: mean, n: 2, n_undefined: 0 }
    }

    fn row(name: &str, zh: f64, en: f64, duplication: f64) -> ReputationRow {
        let influence = estimate((zh + en) / 2.0);
        ReputationRow {
            rank: 0,
            dataset: name.to_owned(),
            owner: "Ann".to_owned(),
            score: influence.mean * (1.0 - duplication),
            influence,
            by_capability: [("zh".to_owned(), estimate(zh)), ("en".to_owned(), estimate(en))].into(),
            uniqueness: estimate(0.0),
            duplication,
            licence_clarity: 1.0,
            licence_gaps: Vec::new(),
        }
    }

    /// Three datasets, one response of each capability, worked out by hand.
    #[test]
    fn agreement_is_that_of_the_orders() {
        let rows = [row("a", 4.0, 0.0, 0.0), row("b", 1.0, 2.0, 0.0), row("c", 0.0, 1.0, 0.0)];
        let groups = BTreeMap::from([("zh".to_owned(), vec![0]), ("en".to_owned(), vec![1])]);
        let change = ndarray::arr2(&[[9.0, 3.0, 1.0], [5.0, 3.0, 1.0]]);
        let found = agreement(&rows, &groups, &change, 1);
        assert_eq!(found.spearman, Some(1.0));
        assert_eq!(found.by_capability["zh"], Some(1.0));
        // Scores 0, 2, 1 against 5, 3, 1: ranks 1, 3, 2 against 3, 2, 1, so 1 − 6·(4 + 1 + 1)/24.
        assert_eq!(found.by_capability["en"], Some(-0.5));
    }

    /// A copy of everything is worth nothing, whatever it is said to have caused.
    #[test]
    fn a_copy_has_no_score() {
        assert_eq!(row("copy", 9.0, 9.0, 1.0).score, 0.0);
    }
}
