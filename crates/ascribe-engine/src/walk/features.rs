//! Station 3: projected per-example gradients of every training example at every kept checkpoint, gradients of the
//! responses, and mean hidden states for the similarity control.

use ascribe_core::{Column, Digest, ExampleId, FeatureSink as _, FeatureSpec, Progress, ProjectorSpec};
use ascribe_linalg::project::TWO_SIDED_VERSION;
use ascribe_models::{Decoder, GradientStage, Sequence, TapConfig};
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::Array2;

use super::context::{Checkpoint, Context};
use crate::error::EngineError;
use crate::recipe::Attribution;

/// Rows per shard: at 8,000 numbers a row about 60 MB in f32.
const ROWS_PER_SHARD: u32 = 2048;
/// Rows made between two looks at the stop flag.
const CHUNK: usize = 256;

/// Folder of a checkpoint's training rows.
pub fn train_dir(checkpoint: &str) -> String {
    format!("store/{checkpoint}")
}

/// Folder of a checkpoint's response rows.
pub fn query_dir(checkpoint: &str) -> String {
    format!("store/{checkpoint}-responses")
}

/// Folders of mean hidden states: training examples and responses.
pub const HIDDEN_DIRS: [&str; 2] = ["store/hidden", "store/hidden-responses"];

/// Taps and projection of a run.
pub fn taps_of(a: &Attribution) -> TapConfig {
    TapConfig { k_in: a.k_in, k_out: a.k_out, embedding: a.embedding, norms: a.norms, ..TapConfig::all(a.seed, a.k_in) }
}

fn gradient_spec(context: &Context, decoder: &Decoder, checkpoint: &Checkpoint, columns: Vec<Column>) -> FeatureSpec {
    let a = &context.attribution;
    FeatureSpec {
        model: decoder.weights_digest(),
        checkpoint: checkpoint.name.clone(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::TwoSided { seed: a.seed, k_in: a.k_in, k_out: a.k_out, version: TWO_SIDED_VERSION },
        dim: columns.iter().map(|c| c.len).sum(),
        columns,
        corpus: context.corpus.manifest.digest(),
    }
}

fn hidden_spec(context: &Context, decoder: &Decoder) -> FeatureSpec {
    let dim = decoder.config().hidden_size;
    FeatureSpec {
        model: decoder.weights_digest(),
        checkpoint: context.last().name.clone(),
        quantity: "hidden_mean".into(),
        loss: "none".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![Column { name: "hidden".into(), start: 0, len: dim }],
        dim,
        corpus: context.corpus.manifest.digest(),
    }
}

/// Ids of response rows: the dataset that a response was held out from, and its position in the query set.
pub fn query_row_ids(context: &Context) -> Vec<ExampleId> {
    let id = |(idx, q): (usize, &ascribe_corpus::Query)| ExampleId { dataset: q.dataset, idx: idx as u32 };
    context.corpus.queries.iter().enumerate().map(id).collect()
}

/// Builds what is missing; finished stores are opened and left alone. Returns tokens done in this call.
///
/// Rows do not depend on threads, on how rows are grouped, or on interruptions.
///
/// # Errors
/// A store of another model or setting, the disk's errors, [`EngineError::Stopped`].
pub fn run(context: &Context, progress: &dyn Progress) -> Result<u64, EngineError> {
    let ids: Vec<ExampleId> = context.corpus.examples.iter().map(|e| e.id).collect();
    let query_ids = query_row_ids(context);
    let mut n_tokens = 0;
    for checkpoint in &context.checkpoints {
        let decoder = context.decoder(checkpoint)?;
        let stage = GradientStage::new(&decoder, taps_of(&context.attribution))?;
        let spec = gradient_spec(context, &decoder, checkpoint, stage.columns().to_vec());
        let rows = |sequences: &[Sequence<'_>]| {
            let mut out = Array2::zeros((sequences.len(), stage.dim()));
            stage.rows(sequences, out.view_mut(), None)?;
            Ok(out)
        };
        let name = format!("gradients {}", checkpoint.name);
        let queries = (query_dir(&checkpoint.name), query_ids.as_slice(), context.query_sequences());
        build(context, &name, queries, &spec, &rows, progress)?;
        let train = (train_dir(&checkpoint.name), ids.as_slice(), context.example_sequences());
        n_tokens += build(context, &name, train, &spec, &rows, progress)?;
    }
    let decoder = context.decoder(context.last())?;
    let spec = hidden_spec(context, &decoder);
    let rows = |sequences: &[Sequence<'_>]| Ok(decoder.mean_hidden(sequences)?);
    let train = (HIDDEN_DIRS[0].to_owned(), ids.as_slice(), context.example_sequences());
    build(context, "hidden states", train, &spec, &rows, progress)?;
    let queries = (HIDDEN_DIRS[1].to_owned(), query_ids.as_slice(), context.query_sequences());
    build(context, "hidden states", queries, &spec, &rows, progress)?;
    Ok(n_tokens)
}

/// Folder, ids and sequences of one store.
type Part<'a> = (String, &'a [ExampleId], Vec<Sequence<'a>>);

/// Makes the rows of some sequences.
type RowsOf<'a> = &'a dyn Fn(&[Sequence<'_>]) -> Result<Array2<f32>, EngineError>;

fn build(
    context: &Context,
    stage: &str,
    (dir, ids, sequences): Part<'_>,
    spec: &FeatureSpec,
    rows: RowsOf<'_>,
    progress: &dyn Progress,
) -> Result<u64, EngineError> {
    let dir = context.out.join(dir);
    let row_type = match spec.projector {
        ProjectorSpec::Identity => ascribe_core::RowType::F32,
        _ => context.attribution.row_type,
    };
    let mut writer = FeatureWriter::create_or_resume(&dir, spec, row_type, ROWS_PER_SHARD, ids.len() as u64)?;
    let start = writer.n_committed() as usize;
    if start < ids.len() {
        progress.start(stage, ids.len() as u64, "rows");
        progress.advance(start as u64);
        for (ids, sequences) in ids[start..].chunks(CHUNK).zip(sequences[start..].chunks(CHUNK)) {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            writer.push(ids, rows(sequences)?.view())?;
            progress.advance(ids.len() as u64);
        }
        progress.finish(&format!("{} rows", ids.len() - start));
    }
    writer.finish()?;
    Ok(sequences[start..].iter().map(|s| s.tokens.len() as u64).sum())
}

/// Opens the training rows of a checkpoint.
///
/// # Errors
/// From the store.
pub fn open_train(context: &Context, checkpoint: &str) -> Result<FeatureStore, EngineError> {
    Ok(FeatureStore::open(&context.out.join(train_dir(checkpoint)), None)?)
}

/// All rows of a small store (responses, hidden states) in memory.
///
/// # Errors
/// From the store.
pub fn load_rows(store: &FeatureStore) -> Result<Array2<f32>, EngineError> {
    use ascribe_core::FeatureReader as _;
    let mut out = Array2::zeros((store.n_rows() as usize, store.spec().dim));
    let mut at = 0;
    for b in 0..store.n_blocks() {
        let block = store.block(b)?;
        let n = block.rows.nrows();
        out.slice_mut(ndarray::s![at..at + n, ..]).assign(&block.rows);
        at += n;
    }
    Ok(out)
}

/// Digest over the manifests of all stores: it pins every row.
///
/// # Errors
/// From the stores.
pub fn digest(context: &Context) -> Result<Digest, EngineError> {
    let mut dirs: Vec<String> = HIDDEN_DIRS.iter().map(|d| (*d).to_owned()).collect();
    dirs.extend(context.checkpoints.iter().flat_map(|c| [train_dir(&c.name), query_dir(&c.name)]));
    let pin = |dir: &String| {
        let store = FeatureStore::open(&context.out.join(dir), None)?;
        Ok((dir.clone(), store.header().spec_sha256, store.manifest_blake3().to_owned()))
    };
    let pins = dirs.iter().map(pin).collect::<Result<Vec<_>, EngineError>>()?;
    Ok(Digest::of_json(&pins)?)
}
