//! Station 5: influence of every example and every dataset on every response, the controls beside it, in one file.

use std::collections::BTreeMap;

use ascribe_core::{DatasetScores, Digest, ExampleId, FeatureReader as _, Progress, RecordId, ScoreTable};
use ascribe_methods::aggregate::{Aggregate, exchanged, to_datasets};
use ascribe_methods::block_fisher::precondition;
use ascribe_methods::controls::ngram::FOLLOWER_PSEUDO_COUNT;
use ascribe_methods::controls::{bm25::Bm25, embedding, gradient_norm, random, text::terms, verbatim};
use ascribe_methods::dot;
use ascribe_methods::trajectory::{self, CheckpointRows, CheckpointSums};
use ascribe_store::{FeatureStore, ScoreFileMeta, ScoreWriter};
use ndarray::Array2;
use rayon::prelude::*;

use super::channels::{self, EXCHANGE};
use super::context::Context;
use super::features::{self, HIDDEN_DIRS, load_rows, open_train, query_dir};
use super::fit;
use super::stamps::Stamps;
use crate::error::EngineError;

/// Score file, relative to the run folder.
pub const SCORES_FILE: &str = "scores.parquet";

/// Examples that count in the top means of similarity.
pub(crate) const TOP_MEAN_K: usize = 20;

/// A method or control of the walk.
pub struct MethodInfo {
    /// Name in files and reports.
    pub name: &'static str,
    /// True for controls.
    pub control: bool,
    /// One line for people.
    pub about: &'static str,
}

/// All methods and controls, in the order of reports. The default is a calibrated combination of some of them.
pub const METHODS: [MethodInfo; 14] = [
    MethodInfo { name: "block_fisher", control: false, about: "block-Fisher influence at the last checkpoint" },
    MethodInfo { name: "trajectory_fisher", control: false, about: "block-Fisher influence summed over checkpoints" },
    MethodInfo {
        name: "trajectory_fisher_exchange",
        control: false,
        about: "the same against as many examples of the other datasets",
    },
    MethodInfo { name: "tracin", control: false, about: "TracInCP: gradient products summed over checkpoints" },
    MethodInfo { name: "embedding", control: true, about: "cosine of mean hidden states, mean over a dataset" },
    MethodInfo { name: "embedding_top20", control: true, about: "the same, mean of a dataset's 20 best" },
    MethodInfo { name: "embedding_exchange", control: true, about: "the same, sum against as many of the others" },
    MethodInfo { name: "bm25", control: true, about: "BM25 over words and character pairs, mean over a dataset" },
    MethodInfo { name: "bm25_top20", control: true, about: "the same, mean of a dataset's 20 best" },
    MethodInfo { name: "bm25_exchange", control: true, about: "the same, sum against as many of the others" },
    MethodInfo { name: "bigram", control: true, about: "what a counted bigram model loses without a dataset" },
    MethodInfo { name: "verbatim", control: true, about: "longest run of equal tokens, the longest of a dataset" },
    MethodInfo {
        name: "gradient_norm",
        control: true,
        about: "length of the example's gradient, whatever the response",
    },
    MethodInfo { name: "random", control: true, about: "seeded normal numbers" },
];

struct Scored {
    examples: Option<ScoreTable>,
    datasets: DatasetScores,
}

/// Scores everything and writes the score file, unless it is there.
///
/// The file holds, per method and response, the best `top_k` examples and the score of every dataset, and the dataset scores of
/// channels that are parts of methods. Bytes depend on the stores and factors alone.
///
/// # Errors
/// From the stores, the methods, the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<(), EngineError> {
    let factors = stamps.outputs_digest(&["fit"]);
    let a = &context.attribution;
    let parts: Vec<String> = channels::names(context)?.into_iter().filter(|n| n.contains('/')).collect();
    let known: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
    let key = Digest::of_json(&("score", features::digest(context)?, factors, a.seed, a.top_k, &parts, known))?;
    if stamps.is_done(&context.out, "score", key) {
        return Ok(());
    }
    let mut scored = gradients(context, factors, progress)?;
    scored.extend(similarities(context, progress)?);
    for name in &parts {
        if let Some(channel) = channels::gradient(context, name)? {
            let spec = channel.digest(name, features::digest(context)?, factors)?;
            scored.push(self::scored(context, name, spec, None, channel.scores(context)?));
        }
    }
    let last = open_train(context, &context.last().name)?;
    let meta = ScoreFileMeta {
        spec: last.spec().hash(),
        corpus: context.corpus.manifest.digest(),
        methods: scored.iter().map(|s| (s.datasets.method.clone(), s.datasets.spec)).collect(),
    };
    let main_record = main_records(context);
    let mut writer = ScoreWriter::create(&context.out.join(SCORES_FILE), &meta)?;
    progress.start("write scores", scored.len() as u64, "methods");
    for method in &scored {
        if let Some(examples) = &method.examples {
            writer.push_examples(examples, Some(a.top_k), &|id| main_record.get(&id).copied())?;
        }
        writer.push_datasets(&method.datasets)?;
        progress.advance(1);
    }
    let written = writer.finish()?;
    progress.finish(&format!("{} score rows", written.n_rows));
    stamps.finish(&context.out, "score", key, &[SCORES_FILE.to_owned()])
}

/// The record that fills most of each example (the first of equals).
fn main_records(context: &Context) -> BTreeMap<ExampleId, RecordId> {
    let main = |e: &ascribe_corpus::Example| {
        let longest = e.spans.iter().rev().max_by_key(|s| s.token_end - s.token_start);
        longest.map(|s| (e.id, s.record))
    };
    context.corpus.examples.iter().filter_map(main).collect()
}

fn gradients(context: &Context, factors: Digest, progress: &dyn Progress) -> Result<Vec<Scored>, EngineError> {
    let stores: Vec<FeatureStore> =
        context.checkpoints.iter().map(|c| open_train(context, &c.name)).collect::<Result<_, _>>()?;
    let n_datasets = context.corpus.n_datasets();
    let (mut plain, mut solved, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for (checkpoint, store) in context.checkpoints.iter().zip(&stores) {
        let rows = load_rows(&FeatureStore::open(&context.out.join(query_dir(&checkpoint.name)), None)?)?;
        solved.push(precondition(&fit::read(context, checkpoint)?, rows.view())?);
        plain.push(rows.mapv(f64::from));
        let found = store.dataset_sums()?.sums();
        if found.nrows() != n_datasets {
            return Err(EngineError::Content {
                path: context.out.join(features::train_dir(&checkpoint.name)),
                expected: format!("sums of {n_datasets} datasets"),
                found: found.nrows().to_string(),
            });
        }
        sums.push(found);
    }
    let specs: Vec<Digest> = stores.iter().map(|s| s.spec().hash()).collect();
    let last = stores.len() - 1;
    let fisher = dot::score(&stores[last], solved[last].view(), None, progress)?;
    let fisher_datasets = dot::dataset_scores(solved[last].view(), sums[last].view())?;
    let spec = Digest::of_json(&("block_fisher", specs[last], factors))?;
    let mut out = vec![scored(context, "block_fisher", spec, Some((fisher.examples, fisher.values)), fisher_datasets)];
    for (name, queries) in [("trajectory_fisher", &solved), ("tracin", &plain)] {
        let parts = context.checkpoints.iter().zip(&stores).zip(queries);
        let rows: Vec<CheckpointRows<'_, FeatureStore>> =
            parts.map(|((c, reader), q)| CheckpointRows { reader, queries: q.view(), weight: c.weight }).collect();
        let parts = context.checkpoints.iter().zip(&sums).zip(queries);
        let totals: Vec<CheckpointSums<'_>> = parts
            .map(|((c, sums), q)| CheckpointSums { queries: q.view(), sums: sums.view(), weight: c.weight })
            .collect();
        let examples = trajectory::score(&rows, progress)?;
        let datasets = trajectory::dataset_scores(&totals)?;
        let spec = Digest::of_json(&(name, &specs, if name == "tracin" { None } else { Some(factors) }))?;
        if name == "trajectory_fisher" {
            let exchange = exchanged(datasets.view(), &context.sizes()?)?;
            let name = format!("{name}{EXCHANGE}");
            out.push(scored(context, &name, Digest::of_json(&(&name, spec))?, None, exchange));
        }
        out.push(scored(context, name, spec, Some((examples.examples, examples.values)), datasets));
    }
    Ok(out)
}

fn similarities(context: &Context, progress: &dyn Progress) -> Result<Vec<Scored>, EngineError> {
    progress.start("controls", 6, "controls");
    let n_queries = context.corpus.queries.len();
    let ids: Vec<ExampleId> = context.corpus.examples.iter().map(|e| e.id).collect();
    let mut out = Vec::new();
    let mut push = |name: &str, top: Option<&str>, spec: Digest, values: Array2<f32>| -> Result<(), EngineError> {
        let n = context.corpus.n_datasets();
        let mean = to_datasets(values.view(), &ids, n, Aggregate::Mean)?;
        if let Some(top) = top {
            let best = to_datasets(values.view(), &ids, n, Aggregate::TopMean { k: TOP_MEAN_K })?;
            out.push(scored(context, top, spec, None, best));
            let against = to_datasets(values.view(), &ids, n, Aggregate::Exchange)?;
            out.push(scored(context, &format!("{name}{EXCHANGE}"), spec, None, against));
        }
        out.push(scored(context, name, spec, Some((ids.clone(), values)), mean));
        progress.advance(1);
        Ok(())
    };
    let hidden = FeatureStore::open(&context.out.join(HIDDEN_DIRS[0]), None)?;
    let hidden_queries = FeatureStore::open(&context.out.join(HIDDEN_DIRS[1]), None)?;
    let cosine = embedding::score(load_rows(&hidden_queries)?.view(), load_rows(&hidden)?.view(), true)?;
    push("embedding", Some("embedding_top20"), Digest::of_json(&("embedding", hidden.spec().hash()))?, cosine)?;

    let corpus = context.corpus.manifest.digest();
    let words = |spans: &[ascribe_core::RecordSpan]| terms(&context.corpus.text_of(spans));
    let documents: Vec<Vec<String>> = context.corpus.examples.par_iter().map(|e| words(&e.spans)).collect();
    let questions: Vec<Vec<String>> = context.corpus.queries.par_iter().map(|q| words(&q.spans)).collect();
    let bm25 = Bm25::build(&documents)?.score_all(&questions);
    push("bm25", Some("bm25_top20"), Digest::of_json(&("bm25", corpus))?, bm25)?;

    let last = open_train(context, &context.last().name)?;
    let norms: Vec<f32> = last.norms().collect();
    let norm = gradient_norm::score(&norms, n_queries)?;
    push("gradient_norm", None, Digest::of_json(&("gradient_norm", last.spec().hash()))?, norm)?;

    let seed = context.attribution.seed;
    push("random", None, Digest::of_json(&("random", seed, corpus))?, random::score(seed, n_queries, ids.len()))?;
    out.push(verbatim_runs(context, &ids, corpus)?);
    progress.advance(1);
    out.push(bigram(context, corpus)?);
    progress.advance(1);
    progress.finish("embedding, BM25, bigrams, verbatim, gradient norm, random");
    Ok(out)
}

/// Longest runs of tokens that responses with their prompts share with examples; a dataset has that of its best example.
fn verbatim_runs(context: &Context, ids: &[ExampleId], corpus: Digest) -> Result<Scored, EngineError> {
    let examples: Vec<&[u32]> = context.corpus.examples.iter().map(|e| e.tokens.as_slice()).collect();
    let queries: Vec<&[u32]> = context.corpus.queries.iter().map(|q| q.tokens.as_slice()).collect();
    let runs = verbatim::score(&queries, &examples, verbatim::Measure::LongestRun)?;
    let longest = to_datasets(runs.view(), ids, context.corpus.n_datasets(), Aggregate::TopMean { k: 1 })?;
    let spec = Digest::of_json(&("verbatim", corpus))?;
    Ok(scored(context, "verbatim", spec, Some((ids.to_vec(), runs)), longest))
}

/// What a bigram model, counted on the same windows, loses on a response when it is counted without a dataset.
fn bigram(context: &Context, corpus: Digest) -> Result<Scored, EngineError> {
    let values = context.bigrams()?.leave_one_out(&context.predicted(), FOLLOWER_PSEUDO_COUNT)?;
    Ok(scored(context, "bigram", Digest::of_json(&("bigram", corpus))?, None, values))
}

fn scored(
    context: &Context,
    method: &str,
    spec: Digest,
    examples: Option<(Vec<ExampleId>, Array2<f32>)>,
    datasets: Array2<f64>,
) -> Scored {
    let (method, queries) = (method.to_owned(), context.query_ids());
    let table =
        |(examples, values)| ScoreTable { method: method.clone(), spec, queries: queries.clone(), examples, values };
    Scored {
        examples: examples.map(table),
        datasets: DatasetScores { method: method.clone(), spec, queries, values: datasets },
    }
}
