//! Gradient rows of every record of a file under somebody's model, into a feature store that resumes.
//!
//! Beside the store's own files stand `examples.jsonl` (row → record, line, place in the record) and `lab.json` (what was
//! asked for, digests of what was read).

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use ascribe_core::{Digest, ExampleId, FeatureSink as _, Progress, RowType};
use ascribe_corpus::SpecialTokens;
use ascribe_models::TapConfig;
use ascribe_store::{FeatureWriter, StoreError};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::data::{DataOptions, LabData};
use super::maker::Maker;
use super::model::{LabModel, Subject};
use super::plan::{self, FeatureSizes};
use crate::error::EngineError;
use crate::machine::{cpu_seconds, peak_rss_mib};

/// Row → record, one line per row, in the order of the rows.
pub const EXAMPLES_FILE: &str = "examples.jsonl";
/// What was asked for.
pub const LAB_FILE: &str = "lab.json";

/// Numbers of a shard in memory: 16 Mi numbers are 64 MiB in f32.
pub(super) const SHARD_NUMBERS: usize = 16 << 20;
/// Most rows of a shard.
pub(crate) const SHARD_ROWS_MAX: usize = 1024;
/// Numbers of the rows that are made between two looks at the stop flag.
pub(super) const CHUNK_NUMBERS: usize = 4 << 20;
/// Tokens between two looks at the stop flag, per thread.
const CHUNK_TOKENS_PER_THREAD: usize = 8 << 10;

/// Chunks that may wait for the writer; the plan counts them.
const WAITING_CHUNKS: usize = 1;

/// What rows are made of.
#[derive(Clone, Debug)]
pub struct FeaturesRequest {
    /// Model folder.
    pub model: PathBuf,
    /// JSONL file.
    pub data: PathBuf,
    /// Folder of the store.
    pub out: PathBuf,
    /// How records are read; `max_len` 0 means the model's context.
    pub options: DataOptions,
    /// What the tokenizer adds.
    pub special_tokens: SpecialTokens,
    /// Taps and projection.
    pub taps: TapConfig,
    /// Adapter and moments.
    pub subject: Subject,
    /// Numbers at rest.
    pub row_type: RowType,
    /// Rows are mean hidden states in the place of gradients; the only rows of an encoder.
    pub embeddings: bool,
    /// CUDA device that the passes run on, in a build with the feature `cuda`; none for the processor.
    pub cuda: Option<usize>,
    /// Make the `i`-th of `n` parts of the rows only, each a store of its own; `ascribe store merge` joins all
    /// parts, dataset by dataset, to the same bytes for every `n`. `(0, 1)` is all.
    pub part: (u64, u64),
}

/// What `ascribe features --model … --data …` prints.
#[derive(Clone, Debug, Serialize)]
pub struct FeaturesReport {
    /// Rows of the store: records, or pieces of records longer than the context.
    pub examples: u64,
    /// Tokens of all rows, each counted as often as it is read by the model (once).
    pub tokens: u64,
    /// CPU seconds of the gradient stage in this call, all threads: projectors, passes, rows, writing. Loading and
    /// tokenising come before.
    pub cpu_seconds: f64,
    /// Tokens done in this call over `cpu_seconds`; 0 when nothing was left to do.
    pub tokens_per_cpu_second: f64,
    /// Peak resident memory of the process.
    pub peak_rss_mib: f64,
    /// Records read.
    pub records: u64,
    /// Rows made in this call; the others were there already.
    pub examples_done: u64,
    /// Tokens done in this call.
    pub tokens_done: u64,
    /// Wall seconds of the gradient stage in this call.
    pub seconds: f64,
    /// Numbers per row.
    pub dim: u64,
    /// Hash of the feature spec: rows of equal hashes compare.
    pub spec_sha256: Digest,
    /// Instruction sets of the products: a processor without bf16 products multiplies bf16 numbers in f32.
    pub instructions: &'static str,
    /// The store.
    pub store: PathBuf,
}

/// What stands in [`LAB_FILE`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabFile {
    /// Version of Ascribe.
    pub ascribe_version: String,
    /// Name of the data file.
    pub data: String,
    /// SHA-256 of the data file, as far as it was read.
    pub data_sha256: Digest,
    /// SHA-256 over all windows.
    pub windows_sha256: Digest,
    /// SHA-256 of the weights.
    pub model_sha256: Digest,
    /// Names of datasets by ordinal.
    pub datasets: Vec<String>,
    /// Records read.
    pub records: u64,
    /// How they were read.
    pub options: DataOptions,
    /// Taps and projection.
    pub taps: TapConfig,
    /// Rows are mean hidden states.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embeddings: bool,
    /// CUDA device that made the rows: they agree with the processor's to rounding, not to the byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<usize>,
}

/// One line of [`EXAMPLES_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleLine {
    /// Row in the store.
    pub row: u64,
    /// Id in the store ([`ExampleId::to_u64`]).
    pub example_id: u64,
    /// The record's id.
    pub record: String,
    /// The record's dataset.
    pub dataset: String,
    /// The record's line, from 1.
    pub line: u64,
    /// First token of the record in this row.
    pub token_start: u64,
    /// One past the last token of the record in this row.
    pub token_end: u64,
    /// First token of the row whose prediction counts.
    pub loss_from: u64,
}

/// Makes the rows; a store that was begun goes on where it stopped. Everything is read and checked before the store is
/// touched. Rows do not depend on threads, on how they are grouped, or on interruptions.
///
/// # Errors
/// The model's, the tokenizer's, the first bad record, a store of other settings, the disk's, [`EngineError::Stopped`].
pub fn run(request: &FeaturesRequest, progress: &dyn Progress) -> Result<FeaturesReport, EngineError> {
    let (model, options, mut data) = open(request, progress)?;
    let (clock, cpu) = (std::time::Instant::now(), cpu_seconds());
    let maker = Maker::new(request, &model)?;
    // Of all records: parts belong together because their specs are equal.
    let spec = maker.spec(data.digest());
    let notes = notes(request, &options, &model, &data)?;
    keep_part(&mut data, request.part)?;
    let sizes = FeatureSizes {
        dim: spec.dim,
        rows: data.windows.len(),
        memory: maker.memory(data.longest()),
        datasets: data.datasets.len(),
        row_type: request.row_type,
    };
    plan::check(&plan::features(&model, &data, sizes), &request.out, &model, &data)?;
    let spec_sha256 = spec.hash();
    let rows_per_shard = (SHARD_NUMBERS / spec.dim).clamp(1, SHARD_ROWS_MAX) as u32;
    let n_rows = data.windows.len() as u64;
    let writer = FeatureWriter::create_or_resume(&request.out, &spec, request.row_type, rows_per_shard, n_rows)?;
    for (name, text) in notes {
        ascribe_store::features::write_note(&request.out, name, text.as_bytes())?;
    }
    let first = writer.n_committed() as usize;
    let writer = fill(&maker, &data, writer, progress)?;
    writer.finish()?;
    let (seconds, cpu_seconds) = (clock.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let tokens_done: u64 = data.windows[first..].iter().map(|w| data.sequence(w).tokens.len() as u64).sum();
    Ok(FeaturesReport {
        examples: n_rows,
        tokens: data.n_tokens(),
        cpu_seconds,
        tokens_per_cpu_second: tokens_done as f64 / cpu_seconds,
        peak_rss_mib: peak_rss_mib(),
        records: data.records.len() as u64,
        examples_done: n_rows - first as u64,
        tokens_done,
        seconds,
        dim: spec.dim as u64,
        spec_sha256,
        instructions: ascribe_linalg::packed::isa(),
        store: request.out.clone(),
    })
}

/// Model and records, read and checked.
fn open(request: &FeaturesRequest, progress: &dyn Progress) -> Result<(LabModel, DataOptions, LabData), EngineError> {
    plan::check_weights(&request.model)?;
    progress.start("load model", 0, "");
    let model = match request.embeddings {
        true => LabModel::open_reader(&request.model, &request.subject)?,
        false => LabModel::open_subject(&request.model, &request.subject)?,
    };
    progress.finish(&format!("{} parameters", model.decoder().parameters().len()));
    let options = model.options(&request.options)?;
    let tokenizer = || model.tokenizer(request.special_tokens);
    let vocab_size = model.decoder().config().vocab_size;
    let data = LabData::read(&request.data, &options, vocab_size, &tokenizer, progress)?;
    Ok((model, options, data))
}

/// [`EXAMPLES_FILE`] and [`LAB_FILE`] as [`run`] writes them, without a row.
///
/// # Errors
/// Those of [`run`] before it touches the store.
pub(crate) fn notes_of(request: &FeaturesRequest, progress: &dyn Progress) -> Result<[String; 2], EngineError> {
    let (model, options, data) = open(request, progress)?;
    Ok(notes(request, &options, &model, &data)?.map(|(_, text)| text))
}

/// Leaves the windows of one part.
fn keep_part(data: &mut LabData, (part, n_parts): (u64, u64)) -> Result<(), EngineError> {
    let n = data.windows.len() as u64;
    if n_parts > n || part >= n_parts {
        let (expected, found) = (format!("i/n with i < n, and n at most the {n} rows"), format!("{part}/{n_parts}"));
        return Err(EngineError::Setting { setting: "--shard", expected, found });
    }
    let end = |part: u64| (u128::from(n) * u128::from(part) / u128::from(n_parts)) as usize;
    data.windows.truncate(end(part + 1));
    data.windows.drain(..end(part));
    Ok(())
}

/// Makes what the store lacks. One thread writes while the others go on with the next rows.
fn fill(
    maker: &Maker<'_>,
    data: &LabData,
    mut writer: FeatureWriter,
    progress: &dyn Progress,
) -> Result<FeatureWriter, EngineError> {
    let (first, total) = (writer.n_committed() as usize, data.windows.len());
    if first == total {
        return Ok(writer);
    }
    progress.start(maker.name(), total as u64, "rows");
    progress.advance(first as u64);
    let (send, receive) = sync_channel::<(Vec<ExampleId>, Array2<f32>)>(WAITING_CHUNKS);
    let writer = std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<FeatureWriter, StoreError> {
            for (ids, rows) in receive {
                writer.push(&ids, rows.view())?;
            }
            Ok(writer)
        });
        let made = make_rows(maker, data, first, progress, |ids, rows| send.send((ids, rows)).is_ok());
        drop(send);
        // A disk that is full is the cause of rows that nobody took, so it is told first.
        let writer = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        made.map(|()| writer)
    })?;
    progress.finish(&format!("{} rows", total - first));
    Ok(writer)
}

/// Hands rows to `take`, in order, until it refuses.
fn make_rows(
    maker: &Maker<'_>,
    data: &LabData,
    first: usize,
    progress: &dyn Progress,
    take: impl Fn(Vec<ExampleId>, Array2<f32>) -> bool,
) -> Result<(), EngineError> {
    let rows_max = (CHUNK_NUMBERS / maker.dim()).max(rayon::current_num_threads());
    let tokens_max = CHUNK_TOKENS_PER_THREAD * rayon::current_num_threads();
    let mut at = first;
    while at < data.windows.len() {
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
        let mut n_tokens = 0;
        let windows: Vec<_> = data.windows[at..]
            .iter()
            .take(rows_max)
            .take_while(|window| {
                let fits = n_tokens < tokens_max;
                n_tokens += data.sequence(window).tokens.len();
                fits
            })
            .collect();
        let rows = maker.rows(data, &windows)?;
        at += windows.len();
        if !take(windows.iter().map(|window| window.id).collect(), rows) {
            break;
        }
        progress.advance(windows.len() as u64);
    }
    Ok(())
}

/// The files beside the store's own: of all rows, whatever part is made.
fn notes(
    request: &FeaturesRequest,
    options: &DataOptions,
    model: &LabModel,
    data: &LabData,
) -> Result<[(&'static str, String); 2], EngineError> {
    let mut lines = String::new();
    for (row, window) in data.windows.iter().enumerate() {
        let record = &data.records[window.record];
        let line = ExampleLine {
            row: row as u64,
            example_id: window.id.to_u64(),
            record: record.id.clone(),
            dataset: data.datasets[record.dataset as usize].clone(),
            line: record.line,
            token_start: window.token_start,
            token_end: window.token_start + data.sequence(window).tokens.len() as u64,
            loss_from: window.loss_from as u64,
        };
        lines.push_str(&serde_json::to_string(&line)?);
        lines.push('\n');
    }
    let lab = LabFile {
        ascribe_version: env!("CARGO_PKG_VERSION").into(),
        data: file_name(&request.data),
        data_sha256: data.file_sha256,
        windows_sha256: data.digest(),
        model_sha256: model.decoder().weights_digest(),
        datasets: data.datasets.clone(),
        records: data.records.len() as u64,
        options: options.clone(),
        taps: request.taps.clone(),
        embeddings: request.embeddings,
        cuda: request.cuda,
    };
    Ok([(EXAMPLES_FILE, lines), (LAB_FILE, format!("{}\n", serde_json::to_string_pretty(&lab)?))])
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
