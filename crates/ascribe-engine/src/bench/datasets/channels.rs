//! What methods and controls say about datasets, before any calibration: tables `[query, dataset]` for a bench decoder.
//!
//! Gradient channels come from projected rows at every kept checkpoint, one checkpoint in memory at a time. Here never lives:
//! the truth, or anything fitted to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

use ascribe_core::{Digest, ExampleId, FeatureReader, FeatureSpec, Features, NoProgress};
use ascribe_methods::aggregate::{Aggregate, to_datasets};
use ascribe_methods::block_fisher::{Covariance, precondition};
use ascribe_methods::controls::{
    bm25::Bm25,
    embedding,
    ngram::{Bigrams, FOLLOWER_PSEUDO_COUNT},
    random,
    text::terms,
};
use ascribe_methods::dot;
use ascribe_models::{Decoder, GradientStage, TapConfig};
use ndarray::{Array1, Array2, CowArray, s};
use rayon::prelude::*;

use super::{GameMethod, groups};
use crate::bank::query_sequences;
use crate::bench::runners::DecoderData;
use crate::error::EngineError;
use crate::home::Home;
use crate::machine::cpu_seconds;
use crate::recipe::Recipe;
use crate::walk::context::checkpoints;

/// Examples that count in the top means of similarity.
const TOP_MEAN_K: usize = 20;
/// Columns kept per side of every module.
const K_SIDE: usize = 16;
/// Damping relative to a block's mean eigenvalue, as chosen for wren (`benches/SETTINGS.md`).
const DAMPING_REL: f64 = 0.001;
/// Seed of projections and of the random control.
const SEED: u64 = 7;

/// One method's or control's dataset scores and what they cost.
#[derive(Clone, Debug)]
pub struct MeasuredChannel {
    /// Name in reports.
    pub name: String,
    /// True for controls: they do not look at the model's gradients.
    pub control: bool,
    /// `[Q, K]`, positive = proponent.
    pub scores: Array2<f64>,
    /// Process CPU seconds of everything that only this channel (or its family) needed.
    pub cpu_seconds: f64,
    /// Bytes kept per training example.
    pub bytes_per_example: f64,
    /// Utilities `[2^K, Q]` that the method predicts itself, where it is no sum of scores.
    pub game: Option<Array2<f64>>,
    /// What the method found out besides, for the report.
    pub found: BTreeMap<String, f64>,
}

impl MeasuredChannel {
    /// A channel of scores alone, with its CPU seconds and bytes per example.
    pub(super) fn new(
        name: &str,
        control: bool,
        scores: Array2<f64>,
        (cpu_seconds, bytes_per_example): (f64, f64),
    ) -> Self {
        let name = name.to_owned();
        Self { name, control, scores, cpu_seconds, bytes_per_example, game: None, found: BTreeMap::new() }
    }
}

/// What an interval needs to know about one checkpoint's projected sums.
#[derive(Clone, Debug)]
pub struct CheckpointScores {
    /// Weight in the trajectory.
    pub weight: f64,
    /// `[Q, K]`: block-Fisher scores at this checkpoint, without the weight.
    pub scores: Array2<f64>,
    /// `[Q]`: norms of the preconditioned query vectors.
    pub query_norms: Array1<f64>,
    /// `[K]`: norms of the dataset sums.
    pub sum_norms: Array1<f64>,
    /// Numbers per row.
    pub dim: usize,
}

/// All channels of a decoder setting.
#[derive(Clone, Debug)]
pub struct Channels {
    /// In the order of reports.
    pub list: Vec<MeasuredChannel>,
    /// Per kept checkpoint, first to last.
    pub checkpoints: Vec<CheckpointScores>,
    /// Utilities of the bigram proxy, `[2^K, Q]`, if it was asked for.
    pub proxy: Option<Array2<f64>>,
}

/// The channel that comes of the bigram proxy.
pub const BIGRAMS: &str = "bigram_shapley";
/// Second-order group influence, from the same rows as `trajectory_fisher`.
pub const SECOND_ORDER: &str = "trajectory_fisher_second_order";
/// Adam's scale on full dataset gradients.
pub const ADAM: &str = "adam_dot";

/// Every channel of a decoder of this recipe, in the order of reports.
pub fn known(recipe: &Recipe) -> Vec<GameMethod> {
    let method = |name: &str, about: &str, source: &str, control| GameMethod {
        name: name.to_owned(),
        about: about.to_owned(),
        source: source.to_owned(),
        control,
    };
    let tracin = "arXiv:2002.08484";
    let fisher = "block-Fisher influence of a dataset's summed rows";
    let mut out =
        vec![method("trajectory_fisher", &format!("{fisher} over all checkpoints"), "own; arXiv:2405.13954", false)];
    for checkpoint in checkpoints(recipe) {
        let about = format!("{fisher} at {}", checkpoint.name);
        out.push(method(&format!("fisher_{}", checkpoint.name), &about, "arXiv:2405.13954", false));
    }
    out.push(method(
        SECOND_ORDER,
        &format!("{fisher} over all checkpoints, with what datasets say together: second order, split-proof"),
        "arXiv:1911.00418",
        false,
    ));
    out.push(method("tracin", "inner products of rows over all checkpoints, times learning rates", tracin, false));
    out.push(method("dot", "inner products of rows at the last checkpoint", tracin, false));
    let about = "inner products of summed gradients of all parameters, divided by the root of Adam's second moments";
    out.push(method(ADAM, about, "arXiv:2402.04333, without its first moment", false));
    out.push(method("gradient_norm", "mean length of a dataset's gradients, whatever the query", "control", true));
    for (name, about) in [("embedding", "cosine of hidden states"), ("bm25", "BM25 over words")] {
        out.push(method(name, &format!("{about}, mean over a dataset"), "control", true));
        let best = format!("{about}, mean over a dataset's {TOP_MEAN_K} best examples");
        out.push(method(&format!("{name}_top{TOP_MEAN_K}"), &best, "control", true));
    }
    out.push(method(BIGRAMS, "Shapley values of a bigram model fitted on every subset", "control", true));
    out.push(method("random", "numbers drawn under a seed, whatever the query", "control", true));
    out
}

/// Rows of one checkpoint, in memory.
pub(super) struct Rows {
    spec: FeatureSpec,
    ids: Vec<ExampleId>,
    rows: Array2<f32>,
}

impl FeatureReader for Rows {
    type Error = Infallible;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.ids.len() as u64
    }

    fn n_blocks(&self) -> usize {
        1
    }

    fn block(&self, _: usize) -> Result<Features<'_>, Infallible> {
        Ok(Features { ids: Cow::Borrowed(&self.ids), rows: CowArray::from(self.rows.view()) })
    }
}

/// Makes every channel that is wanted. Deterministic; cost: one gradient pass per checkpoint for the channels of gradients.
///
/// # Errors
/// A model folder without its checkpoints; what models and methods refuse.
pub fn channels(
    home: &Home,
    model: &str,
    data: &DecoderData,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Channels, EngineError> {
    let mut list = Vec::new();
    let of_gradients = |m: &GameMethod| {
        let others = ["embedding", "bm25", BIGRAMS, ADAM, "random"];
        let similar = others.iter().any(|start| m.name.starts_with(start));
        !similar && wanted(&m.name)
    };
    let checkpoints = match known(&data.recipe).iter().any(of_gradients) {
        true => gradients(home, model, data, wanted, &mut list)?,
        false => Vec::new(),
    };
    similarities(home, model, data, wanted, &mut list)?;
    let k = data.corpus.n_datasets();
    let proxy = match wanted(BIGRAMS) {
        true => Some(bigrams(data, &mut list)?),
        false => None,
    };
    let n = (data.corpus.queries.len(), k);
    let values = random::score(SEED, n.0, n.1).mapv(f64::from);
    list.push(MeasuredChannel::new("random", true, values, (0.0, 0.0)));
    if wanted(ADAM) {
        list.push(groups::adam(home, model, data)?);
    }
    list.retain(|channel| wanted(&channel.name));
    Ok(Channels { list, checkpoints, proxy })
}

/// Utilities of all subsets under bigram models, and their Shapley values as a channel.
fn bigrams(data: &DecoderData, list: &mut Vec<MeasuredChannel>) -> Result<Array2<f64>, EngineError> {
    let start = cpu_seconds();
    let windows = data.corpus.examples.iter().map(|e| (e.id.dataset, e.tokens.as_slice()));
    let bigrams = Bigrams::build(data.recipe.corpus.vocab_size, data.corpus.n_datasets(), windows)?;
    let from = data.corpus.manifest.config.prompt_len;
    let queries: Vec<(&[u32], usize)> = data.corpus.queries.iter().map(|q| (q.tokens.as_slice(), from)).collect();
    let proxy = bigrams.utilities(&queries, FOLLOWER_PSEUDO_COUNT)?;
    let game = ascribe_eval::game::Game::new(proxy.clone())?;
    // Counts of the windows' tokens and pairs: at most a number of four bytes for each.
    let bytes = 8.0 * data.recipe.corpus.seq_len as f64;
    list.push(MeasuredChannel::new(BIGRAMS, true, game.shapley(), (cpu_seconds() - start, bytes)));
    Ok(proxy)
}

fn gradients(
    home: &Home,
    model: &str,
    data: &DecoderData,
    wanted: &dyn Fn(&str) -> bool,
    list: &mut Vec<MeasuredChannel>,
) -> Result<Vec<CheckpointScores>, EngineError> {
    let (corpus, k) = (&data.corpus, data.corpus.n_datasets());
    let ids: Vec<ExampleId> = corpus.examples.iter().map(|e| e.id).collect();
    let sequences: Vec<_> = corpus.examples.iter().map(|e| ascribe_models::Sequence::whole(&e.tokens)).collect();
    let queries = query_sequences(corpus);
    let (mut out, mut dots, mut norms) = (Vec::new(), Vec::new(), None);
    let (mut rows_cpu, mut fit_cpu, mut dim) = (0.0, 0.0, 0);
    let (mut second, mut second_cpu) = (groups::SecondOrder::new(queries.len(), k), 0.0);
    for checkpoint in checkpoints(&data.recipe) {
        let start = cpu_seconds();
        let decoder = Decoder::load(&home.model(model), &checkpoint.file)?;
        let taps = TapConfig { embedding: true, norms: true, ..TapConfig::all(SEED, K_SIDE) };
        let stage = GradientStage::new(&decoder, taps)?;
        dim = stage.dim();
        let mut query_rows = Array2::zeros((queries.len(), dim));
        stage.rows(&queries, query_rows.view_mut(), None)?;
        let mut rows = Array2::zeros((sequences.len(), dim));
        let mut row_norms = vec![0.0; sequences.len()];
        stage.rows(&sequences, rows.view_mut(), Some(&mut row_norms))?;
        let reader = Rows { spec: stage.spec(&checkpoint.name, corpus.manifest.digest()), ids: ids.clone(), rows };
        let sums = dot::dataset_sums(&reader, k, None, &NoProgress)?;
        let rows_done = cpu_seconds();
        let factors = Covariance::fit(&reader, &NoProgress)?.cholesky(DAMPING_REL)?;
        let solved = precondition(&factors, query_rows.view())?;
        let scores = dot::dataset_scores(solved.view(), sums.view())?;
        rows_cpu += rows_done - start;
        fit_cpu += cpu_seconds() - rows_done;
        if wanted(SECOND_ORDER) {
            let before = cpu_seconds();
            second.add(&reader, &factors, (solved.view(), sums.view()), checkpoint.weight)?;
            second_cpu += cpu_seconds() - before;
        }
        let plain = dot::dataset_scores(query_rows.mapv(f64::from).view(), sums.view())?;
        dots.push(plain * checkpoint.weight);
        let (query_norms, sum_norms) = (lengths(&solved), lengths(&sums));
        out.push(CheckpointScores { weight: checkpoint.weight, scores, query_norms, sum_norms, dim });
        let mean =
            to_datasets(Array2::from_shape_fn((1, ids.len()), |(_, i)| row_norms[i]).view(), &ids, k, Aggregate::Mean)?;
        norms = Some(mean);
    }
    let (bytes, shape) = (4.0 * dim as f64 * out.len() as f64, (queries.len(), k));
    let fisher = total(shape, out.iter().map(|c| &c.scores * c.weight));
    if wanted(SECOND_ORDER) {
        list.push(second.channel(fisher.clone(), (rows_cpu + fit_cpu + second_cpu, bytes))?);
    }
    let mut push = |name: String, scores, cpu_seconds, bytes_per_example, control| {
        list.push(MeasuredChannel::new(&name, control, scores, (cpu_seconds, bytes_per_example)));
    };
    push("trajectory_fisher".into(), fisher, rows_cpu + fit_cpu, bytes, false);
    let names: Vec<String> = checkpoints(&data.recipe).into_iter().map(|c| c.name).collect();
    for (name, c) in names.iter().zip(&out) {
        let part = out.len() as f64;
        push(format!("fisher_{name}"), c.scores.clone(), (rows_cpu + fit_cpu) / part, bytes / part, false);
    }
    push("tracin".into(), total(shape, dots.iter().cloned()), rows_cpu, bytes, false);
    if let Some(dot) = dots.pop() {
        push("dot".into(), dot, rows_cpu / out.len() as f64, bytes / out.len() as f64, false);
    }
    if let Some(mean) = norms {
        let table = Array2::from_shape_fn((queries.len(), k), |(_, k)| mean[(0, k)]);
        push("gradient_norm".into(), table, rows_cpu / out.len() as f64, 4.0, true);
    }
    Ok(out)
}

/// Length of every row.
fn lengths(rows: &Array2<f64>) -> Array1<f64> {
    rows.rows().into_iter().map(|r| r.dot(&r).sqrt()).collect()
}

/// Sum of tables of one shape.
fn total(shape: (usize, usize), tables: impl Iterator<Item = Array2<f64>>) -> Array2<f64> {
    tables.fold(Array2::zeros(shape), |sum, t| sum + t)
}

fn similarities(
    home: &Home,
    model: &str,
    data: &DecoderData,
    wanted: &dyn Fn(&str) -> bool,
    list: &mut Vec<MeasuredChannel>,
) -> Result<(), EngineError> {
    let (corpus, k) = (&data.corpus, data.corpus.n_datasets());
    let ids: Vec<ExampleId> = corpus.examples.iter().map(|e| e.id).collect();
    let mut push = |name: &str, values: &Array2<f32>, cpu_seconds, bytes_per_example| -> Result<(), EngineError> {
        let top = format!("_top{TOP_MEAN_K}");
        for (suffix, how) in [("", Aggregate::Mean), (top.as_str(), Aggregate::TopMean { k: TOP_MEAN_K })] {
            let scores = to_datasets(values.view(), &ids, k, how)?;
            let costs = (cpu_seconds, bytes_per_example);
            list.push(MeasuredChannel::new(&format!("{name}{suffix}"), true, scores, costs));
        }
        Ok(())
    };
    let needed = |name: &str| wanted(name) || wanted(&format!("{name}_top{TOP_MEAN_K}"));
    if needed("embedding") {
        let start = cpu_seconds();
        let decoder = Decoder::load(&home.model(model), "model.safetensors")?;
        let sequences: Vec<_> = corpus.examples.iter().map(|e| ascribe_models::Sequence::whole(&e.tokens)).collect();
        let hidden = decoder.mean_hidden(&sequences)?;
        let cosine = embedding::score(decoder.mean_hidden(&query_sequences(corpus))?.view(), hidden.view(), true)?;
        push("embedding", &cosine, cpu_seconds() - start, 4.0 * hidden.ncols() as f64)?;
    }
    if !needed("bm25") {
        return Ok(());
    }
    let start = cpu_seconds();
    let words = |spans: &[ascribe_core::RecordSpan]| terms(&corpus.text_of(spans));
    let documents: Vec<Vec<String>> = corpus.examples.par_iter().map(|e| words(&e.spans)).collect();
    let questions: Vec<Vec<String>> = corpus.queries.par_iter().map(|q| words(&q.spans)).collect();
    let bm25 = Bm25::build(&documents)?.score_all(&questions);
    let postings: usize = documents.iter().map(|d| d.iter().collect::<std::collections::BTreeSet<_>>().len()).sum();
    push("bm25", &bm25, cpu_seconds() - start, 12.0 * postings as f64 / documents.len().max(1) as f64)
}

/// SHA-256 over the channels' names and numbers.
pub fn digest(channels: &Channels) -> Result<Digest, EngineError> {
    let parts: Vec<(&str, Vec<f64>)> =
        channels.list.iter().map(|c| (c.name.as_str(), c.scores.slice(s![.., ..]).iter().copied().collect())).collect();
    Ok(Digest::of_json(&parts)?)
}
