//! Everything that answers are made of, loaded once and checked as the walk checks it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Column, Digest, ExampleId, FeatureReader as _, Progress, RowType};
use ascribe_index::{HnswIndex, HnswParams, Metric};
use ascribe_methods::block_fisher::{Factors, Preconditioner};
use ascribe_methods::combine::{CalibratedMethod, Calibration, Conformal, FitOptions, Holdout, fit};
use ascribe_methods::controls::{bm25::Bm25, embedding::Examples, ngram::Bigrams, text::terms};
use ascribe_methods::group::intervals::PreparedColumns;
use ascribe_models::Decoder;
use ascribe_store::FeatureStore;
use ascribe_store::features::make_companion;
use ascribe_store::scores::read_scores;
use ascribe_verbatim::VerbatimIndex;
use ndarray::{Array2, s};
use rayon::prelude::*;
use serde::Serialize;

use super::catalog::Catalog;
use super::channels::Kind;
use super::evidence;
use super::turned::Turned;
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::run_file::{RUN_FILE, RunFile};
use crate::walk::calibrate::{channels_of, seed_calibrations, tables};
use crate::walk::calibrated_file::{self, CALIBRATED_FILE};
use crate::walk::features::{HIDDEN_DIRS, load_rows, open_train, train_dir};
use crate::walk::fit as curvature;
use crate::walk::noise::{Plain, shapes};
use crate::walk::report::texts;
use crate::walk::score::SCORES_FILE;
use crate::walk::truth::TruthBoard;
use crate::walk::{Context, channels};

/// Companion that certified searches scan where none in the curvature's metric can be made (`turned`): int8 reads a quarter of the bytes, but its bound (1.4 % of the norms) rules out nothing
/// where cosines spread by less. Measured on the demo's rows, 7,000 numbers each: all 10,462 survived int8.
const fn companion_of(dim: usize) -> RowType {
    if dim > INT8_MAX_DIM { RowType::Bf16 } else { RowType::Int8 }
}
/// Longest rows for which int8 is taken.
const INT8_MAX_DIM: usize = 2_048;

/// One checkpoint, ready for responses.
pub(super) struct Part {
    pub(super) decoder: Decoder,
    pub(super) factors: Factors,
    plain: Plain,
    /// `[K, D]`.
    pub(super) sums: Array2<f64>,
    pub(super) columns: Vec<Column>,
    curved: Option<PreparedColumns>,
    flat: Option<PreparedColumns>,
}

impl Part {
    /// The preconditioner of curved or plain channels, with its prepared columns where a channel needs them.
    pub(super) fn curvature(&self, curved: bool) -> (&dyn Preconditioner, Option<&PreparedColumns>) {
        match curved {
            true => (&self.factors, self.curved.as_ref()),
            false => (&self.plain, self.flat.as_ref()),
        }
    }
}

/// What stands behind the answers, for whoever checks them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// Digest over run, model, registry and rows: answers with equal generation and question are equal.
    pub generation: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of its weights.
    pub model_sha256: Digest,
    /// Id of the training run.
    pub run_id: String,
    /// Hash of the feature spec of the last checkpoint.
    pub spec_hash: Digest,
    /// Digest of the registry.
    pub registry: Digest,
    /// Digest of the corpus manifest.
    pub corpus: Digest,
    /// BLAKE3 of the rows' manifest.
    pub rows_blake3: String,
    /// Rows.
    pub rows: u64,
    /// Numbers per row.
    pub dim: usize,
    /// Numbers per embedding.
    pub embedding_dim: usize,
    /// Datasets.
    pub datasets: usize,
    /// Methods that can be asked for.
    pub methods: Vec<String>,
    /// Held-out responses that can be asked for by number.
    pub examples: usize,
}

/// A held-out response of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Number, as [`super::Input::Example`] takes it.
    pub number: usize,
    /// Prompt.
    pub prompt: String,
    /// Completion.
    pub completion: String,
    /// Ordinal of the dataset that it was held out from.
    pub dataset: usize,
}

/// Calibration of one control alone, with what it covers.
pub(super) struct Single {
    pub(super) calibration: Calibration,
    pub(super) coverage: f64,
    /// Its own intervals, of the held-out shares whose error is `1 - coverage`.
    pub(super) conformal: Conformal,
}

/// Everything, loaded.
pub struct Material {
    /// The walk's context.
    pub context: Context,
    /// The registered datasets.
    pub catalog: Catalog,
    /// What stands behind the answers.
    pub opened: Opened,
    pub(super) method: CalibratedMethod,
    pub(super) method_spec: Digest,
    pub(super) channels: Vec<(String, Kind)>,
    pub(super) seed_calibrations: Vec<Calibration>,
    pub(super) embedding_alone: Option<Single>,
    pub(super) checkpoints: Vec<Part>,
    /// `A⁻¹ G_k` at the last checkpoint, `[K, D]`.
    pub(super) solved_sums: Array2<f64>,
    pub(super) ids: Vec<ExampleId>,
    /// Where a channel asks for it.
    pub(super) bm25: Option<Bm25>,
    /// Where a channel counts them.
    pub(super) bigrams: Option<Bigrams>,
    pub(super) hidden: Examples,
    pub(super) hidden_store: FeatureStore,
    pub(super) hidden_dir: PathBuf,
    pub(super) rows: FeatureStore,
    pub(super) companion: Option<FeatureStore>,
    /// What certified searches scan where it can be made.
    pub(super) turned: Option<Turned>,
    pub(super) verbatim: VerbatimIndex,
}

impl Material {
    /// Loads the finished run in `dir`; what is derived from it and worth keeping (coded rows, an index of hidden states, a
    /// verbatim index) goes to `cache`, by digest. The run folder itself is not touched.
    ///
    /// # Errors
    /// What [`Context::open`] refuses; a run file whose seal is broken or whose outputs have other bytes; a run of another model
    /// or registry than today's.
    pub fn open(home: &Home, dir: &Path, cache: &Path, progress: &dyn Progress) -> Result<Self, EngineError> {
        let run = RunFile::read(dir)?;
        check_outputs(dir, &run)?;
        let context = Context::open(home, &run.model, dir, progress)?;
        check_inputs(dir, &run, &context)?;
        let names = channels::names(&context)?;
        let kind = |name: &String| {
            let gradient = channels::gradient(&context, name)?;
            let kind = Kind::of(name, gradient).map_err(|e| EngineError::Content {
                path: context.model_dir.join("attribution.toml"),
                expected: "channels that read the response".into(),
                found: e.to_string(),
            })?;
            Ok((name.clone(), kind))
        };
        let channels = names.iter().map(kind).collect::<Result<Vec<_>, EngineError>>()?;
        progress.start("load", context.checkpoints.len() as u64, "checkpoints");
        let checkpoints = parts(&context, &channels, progress)?;
        let last = checkpoints.last().expect("a recipe has a last checkpoint");
        let solved_sums = solved_sums(last);
        let (method, method_spec, seeds, embedding_alone) = calibrations(&context, &names)?;
        let rows = cached_rows(&context, cache)?;
        let turned = Turned::open(&rows, &last.factors, cache, progress)?;
        let narrow = companion_of(rows.spec().dim);
        let companion = match turned.is_none() && narrow.bits() < rows.row_type().bits() {
            true => Some(make_companion(&rows, narrow, progress)?),
            false => None,
        };
        let hidden_store = FeatureStore::open(&dir.join(HIDDEN_DIRS[0]), None)?;
        let hidden_dir = hidden_index(&hidden_store, cache, progress)?;
        let verbatim = evidence::open_verbatim(&context, cache, progress)?;
        let catalog = Catalog::of(&context.registry);
        let opened = opened(&context, &run, last, &rows, &hidden_store, &catalog);
        progress.finish(&format!("generation {}", opened.generation));
        Ok(Self {
            bm25: channels.iter().any(|(_, k)| matches!(k, Kind::Bm25(_))).then(|| bm25(&context)).transpose()?,
            bigrams: channels.iter().any(|(_, k)| matches!(k, Kind::Bigram)).then(|| context.bigrams()).transpose()?,
            hidden: Examples::new(load_rows(&hidden_store)?.view(), true)?,
            ids: context.corpus.examples.iter().map(|e| e.id).collect(),
            seed_calibrations: seeds,
            catalog,
            opened,
            method,
            method_spec,
            channels,
            embedding_alone,
            solved_sums,
            checkpoints,
            hidden_store,
            hidden_dir,
            rows,
            companion,
            turned,
            verbatim,
            context,
        })
    }

    /// The corpus's held-out responses, to try.
    pub fn samples(&self) -> Vec<Sample> {
        let corpus = &self.context.corpus;
        let prompt_len = corpus.manifest.config.prompt_len;
        let sample = |(number, query): (usize, &ascribe_corpus::Query)| {
            let (prompt, completion) = texts(&self.context, &query.tokens, prompt_len);
            Sample { number, prompt, completion, dataset: query.dataset as usize }
        };
        corpus.queries.iter().enumerate().map(sample).collect()
    }

    pub(super) fn last(&self) -> &Part {
        self.checkpoints.last().expect("a recipe has a last checkpoint")
    }

    /// Longest window that the model was trained on.
    pub(super) fn context_len(&self) -> usize {
        self.context.corpus.manifest.config.seq_len
    }
}

/// A run whose files have changed is refused: shares would be of nobody's scores.
fn check_outputs(dir: &Path, run: &RunFile) -> Result<(), EngineError> {
    let differs = |(path, expected): (&String, &Digest)| -> Option<EngineError> {
        match files::digest(&dir.join(path)) {
            Ok(found) if found == *expected => None,
            Ok(found) => Some(EngineError::Digest {
                what: dir.join(path),
                expected: *expected,
                found,
                hint: "; hint: the file was changed after the run",
            }),
            Err(error) => Some(error),
        }
    };
    let outputs: Vec<(&String, &Digest)> = run.outputs.iter().collect();
    outputs.into_par_iter().find_map_first(differs).map_or(Ok(()), Err)
}

fn check_inputs(dir: &Path, run: &RunFile, context: &Context) -> Result<(), EngineError> {
    for (name, found) in &context.inputs {
        if let Some(expected) = run.inputs.get(name).filter(|expected| *expected != found) {
            let what = dir.join(RUN_FILE).join(name);
            let hint = "; hint: the run is of another model or registry, make it again";
            return Err(EngineError::Digest { what, expected: *expected, found: *found, hint });
        }
    }
    Ok(())
}

fn parts(context: &Context, kinds: &[(String, Kind)], progress: &dyn Progress) -> Result<Vec<Part>, EngineError> {
    let uses = |c: usize, curved: bool| {
        kinds.iter().any(|(_, kind)| match kind {
            Kind::Gradient(channel) => channel.curved == curved && channel.checkpoints.contains(&c),
            _ => false,
        })
    };
    let part = |(c, checkpoint)| {
        let store = open_train(context, &checkpoint_name(checkpoint))?;
        let columns = store.spec().columns.clone();
        let sums = store.dataset_sums()?.sums();
        if sums.nrows() != context.corpus.n_datasets() {
            return Err(EngineError::Content {
                path: context.out.join(train_dir(&checkpoint_name(checkpoint))),
                expected: format!("sums of {} datasets", context.corpus.n_datasets()),
                found: sums.nrows().to_string(),
            });
        }
        let factors = curvature::read(context, checkpoint)?;
        let (plain, shapes) = (Plain(columns.clone()), shapes(context, &columns));
        let prepared = |by: &dyn Preconditioner| PreparedColumns::new(by, &shapes, sums.view());
        let curved = uses(c, true).then(|| prepared(&factors)).transpose()?;
        let flat = uses(c, false).then(|| prepared(&plain)).transpose()?;
        let decoder = context.decoder(checkpoint)?;
        progress.advance(1);
        Ok(Part { decoder, factors, plain, sums, columns, curved, flat })
    };
    context.checkpoints.iter().enumerate().map(part).collect()
}

/// The index of the examples' words.
fn bm25(context: &Context) -> Result<Bm25, EngineError> {
    let of = |e: &ascribe_corpus::Example| terms(&context.corpus.text_of(&e.spans));
    let documents: Vec<Vec<String>> = context.corpus.examples.par_iter().map(of).collect();
    Ok(Bm25::build(&documents)?)
}

fn checkpoint_name(checkpoint: &crate::walk::context::Checkpoint) -> String {
    checkpoint.name.clone()
}

/// `A⁻¹ G_k` at the last checkpoint, in f64 throughout.
fn solved_sums(last: &Part) -> Array2<f64> {
    let mut solved = last.sums.clone();
    let modules = last.columns.iter().enumerate();
    modules.for_each(|(m, c)| last.factors.solve(m, solved.slice_mut(s![.., c.start..c.start + c.len])));
    solved
}

type Calibrations = (CalibratedMethod, Digest, Vec<Calibration>, Option<Single>);

/// The default method, what decides its scores, its fits without one retraining seed each, and the embedding alone.
fn calibrations(context: &Context, names: &[String]) -> Result<Calibrations, EngineError> {
    let path = context.out.join(CALIBRATED_FILE);
    let method = calibrated_file::read(&path, None)?;
    let spec = files::digest(&path)?;
    let Some(bank) = context.bank_if_any()? else { return Ok((method, spec, Vec::new(), None)) };
    let scores = read_scores(&context.out.join(SCORES_FILE))?;
    let seeds = seed_calibrations(context, &bank, &channels_of(&tables(&scores, names)?))?;
    let board = TruthBoard::new(context, &bank, None)?;
    let alone = tables(&scores, &[super::EMBEDDING.to_owned()])?;
    let (channels, truth, usable) = (channels_of(&alone), board.truth.shares.view(), &board.truth.usable);
    let calibration = fit(&channels, truth, usable, &FitOptions::default())?;
    let held_out = board.cross_fit(&channels, Holdout::Queries)?.mean_shares();
    let conformal = Conformal::fit(held_out.view(), truth, usable, context.attribution.interval_level)?;
    let run = RunFile::read(&context.out)?;
    let error = run.summary.methods.get(super::EMBEDDING).map_or(1.0, |m| m.calibrated);
    Ok((method, spec, seeds, Some(Single { calibration, coverage: (1.0 - error).clamp(0.0, 1.0), conformal })))
}

/// The last checkpoint's rows in a folder of their own: links to the run's files, so that a companion can stand below them
/// without touching the run.
fn cached_rows(context: &Context, cache: &Path) -> Result<FeatureStore, EngineError> {
    let from = context.out.join(train_dir(&context.last().name));
    let store = FeatureStore::open(&from, None)?;
    let from = std::fs::canonicalize(&from).map_err(|e| EngineError::io(&from, e))?;
    let dir = cache.join(format!("rows-{}", &store.manifest_blake3()[..16]));
    for path in files::list(&from)? {
        let (source, link) = (from.join(&path), dir.join(&path));
        let parent = link.parent().unwrap_or(&dir);
        std::fs::create_dir_all(parent).map_err(|e| EngineError::io(parent, e))?;
        if std::fs::read_link(&link).is_ok_and(|target| target == source) {
            continue;
        }
        // A link to a folder that is gone, or half of an earlier attempt.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&source, &link).map_err(|e| EngineError::io(&link, e))?;
    }
    Ok(FeatureStore::open(&dir, None)?)
}

/// Builds the index of hidden states, unless it is there.
fn hidden_index(store: &FeatureStore, cache: &Path, progress: &dyn Progress) -> Result<PathBuf, EngineError> {
    let dir = cache.join(format!("hidden-{}", &store.manifest_blake3()[..16]));
    if !dir.exists() {
        progress.start("index of hidden states", 0, "");
        let params = HnswParams { point_dim: 8192, n_graphs: 1, metric: Metric::Cosine, ..HnswParams::default() };
        HnswIndex::build(store, params)?.save(&dir)?;
        progress.finish(&format!("{} rows", store.n_rows()));
    }
    Ok(dir)
}

fn opened(
    context: &Context,
    run: &RunFile,
    last: &Part,
    rows: &FeatureStore,
    hidden: &FeatureStore,
    catalog: &Catalog,
) -> Opened {
    let parts: BTreeMap<&str, &Digest> = run.outputs.iter().map(|(path, digest)| (path.as_str(), digest)).collect();
    let pinned = (&context.inputs, parts, rows.manifest_blake3());
    let generation = Digest::of_json(&pinned).expect("strings and digests always serialise");
    let mut methods: Vec<String> = vec![super::CALIBRATED.to_owned()];
    methods.extend(super::GRADIENT_METHODS.iter().skip(1).map(|m| (*m).to_owned()));
    methods.push(super::EMBEDDING.to_owned());
    Opened {
        generation: generation.to_string()[..16].to_owned(),
        model: context.model_name.clone(),
        model_sha256: last.decoder.weights_digest(),
        run_id: context.run_record.invocation_id.clone(),
        spec_hash: rows.spec().hash(),
        registry: context.registry.digest(),
        corpus: context.corpus.manifest.digest(),
        rows_blake3: rows.manifest_blake3().to_owned(),
        rows: rows.n_rows(),
        dim: rows.spec().dim,
        embedding_dim: hidden.spec().dim,
        datasets: catalog.datasets.len(),
        methods,
        examples: context.corpus.queries.len(),
    }
}
