//! Building: files of records, tokenised batch by batch, into an index that resumes at its last finished shard.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::{Digest, Progress, RecordId};
use ascribe_corpus::{SpecialTokens, TextTokenizer};
use ascribe_registry::Registry;
use ascribe_registry::content::summarise;
use ascribe_verbatim::{IndexSettings, Source, VerbatimIndex, VerbatimWriter};
use rayon::prelude::*;
use serde::Serialize;

use super::{TOKENIZER_FILE, parse, tokenizer_path};
use crate::error::EngineError;
use crate::files;
use crate::lab::lines::{Line, Lines};
use crate::machine::{cpu_seconds, peak_rss_mib};

/// Lines tokenised in parallel before the next are read.
const BATCH_LINES: usize = 1024;

/// What is indexed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inputs {
    /// All registered datasets below this folder, in the order of the registry. Content roots are checked.
    Registered(PathBuf),
    /// JSONL files, one dataset each, named as the file; every line has `text` (or `prompt` and `completion`, or token ids).
    Files(Vec<PathBuf>),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// What is indexed.
    pub inputs: Inputs,
    /// A `tokenizer.json`, or the folder of a model that has one.
    pub tokenizer: PathBuf,
    /// Folder of the index.
    pub out: PathBuf,
    /// Tokens per shard: bounds the memory of the build, about ten bytes each.
    pub shard_tokens: u32,
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// Folder of the index.
    pub index: PathBuf,
    /// Datasets.
    pub datasets: usize,
    /// Records.
    pub records: u64,
    /// Tokens.
    pub tokens: u64,
    /// Shards.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Tokens that this call tokenised and sorted; the others were there.
    pub tokens_done: u64,
    /// Wall time of this call.
    pub seconds: f64,
    /// Processor time of this call.
    pub cpu_seconds: f64,
    /// Most memory that the process held.
    pub peak_rss_mib: f64,
}

/// Builds the index, or finishes one that was begun.
///
/// The bytes depend on records, tokenizer and shard size alone. Memory: one batch of lines (64 MiB of text), one shard.
///
/// # Errors
/// [`EngineError::Record`] naming file, line and field; [`EngineError::Digest`] for a registered file that is not what its
/// manifest says; an index of other settings or sources in the folder; [`EngineError::Stopped`].
pub fn run(request: &BuildRequest, progress: &dyn Progress) -> Result<BuildReport, EngineError> {
    let started = (Instant::now(), cpu_seconds());
    let tokenizer = TextTokenizer::load_file(&tokenizer_path(&request.tokenizer), SpecialTokens::None)?;
    let vocab_size = u32::try_from(tokenizer.id_bound_with_added()).unwrap_or(u32::MAX);
    let settings = IndexSettings { tokenizer: tokenizer.digest(), vocab_size, shard_tokens: request.shard_tokens };
    let sources = sources(&request.inputs, progress)?;
    let paths: Vec<PathBuf> = sources.iter().map(|source| PathBuf::from(&source.path)).collect();
    let mut writer = VerbatimWriter::open(&request.out, settings, sources)?;
    files::write_atomic(&request.out.join(TOKENIZER_FILE), tokenizer.json().as_bytes())?;
    let before = writer.committed_tokens();
    if !writer.is_complete() {
        let mut bytes = 0;
        for path in &paths {
            bytes += std::fs::metadata(path).map_err(|e| EngineError::io(path, e))?.len();
        }
        progress.start("index records", bytes >> 10, "KiB");
        let from = writer.next_record().dataset as usize;
        for (dataset, path) in paths.iter().enumerate().skip(from) {
            read_source(dataset as u32, path, &tokenizer, vocab_size, &mut writer, progress)?;
        }
        writer.finish()?;
    }
    let index = VerbatimIndex::open(&request.out)?;
    let report = BuildReport {
        index: request.out.clone(),
        datasets: index.sources().len(),
        records: index.n_records(),
        tokens: index.n_tokens(),
        shards: index.n_shards(),
        bytes: index.n_bytes(),
        // Separators count while building and not afterwards, one for each record.
        tokens_done: (index.n_tokens() + index.n_records()).saturating_sub(before),
        seconds: started.0.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds() - started.1,
        peak_rss_mib: peak_rss_mib(),
    };
    progress.finish(&format!("{} records, {} tokens, {} shards", report.records, report.tokens, report.shards));
    Ok(report)
}

/// The datasets, each pinned by its content.
fn sources(inputs: &Inputs, progress: &dyn Progress) -> Result<Vec<Source>, EngineError> {
    progress.start("hash sources", 0, "files");
    let found: Vec<Source> = match inputs {
        Inputs::Registered(dir) => {
            let registry = Registry::open(dir)?;
            registry.datasets().iter().map(registered).collect::<Result<_, _>>()?
        }
        Inputs::Files(paths) => paths.iter().map(|path| file(path)).collect::<Result<_, _>>()?,
    };
    if found.is_empty() {
        let expected = "at least one dataset".to_owned();
        return Err(EngineError::Setting { setting: "--data", expected, found: "none".into() });
    }
    if let Some(again) = (1..found.len()).find(|&i| found[..i].iter().any(|s| s.name == found[i].name)) {
        let expected = "one file for each name".to_owned();
        return Err(EngineError::Setting {
            setting: "--data",
            expected,
            found: format!("{} twice", found[again].name),
        });
    }
    progress.finish(&format!("{} datasets", found.len()));
    Ok(found)
}

fn registered(dataset: &ascribe_registry::Dataset) -> Result<Source, EngineError> {
    let path = dataset.records_path();
    let (expected, found) = (dataset.id().0, summarise(&path)?.root);
    if expected != found {
        let hint = "; hint: run `ascribe registry verify`";
        return Err(EngineError::Digest { what: path, expected, found, hint });
    }
    Ok(Source { name: dataset.name().to_owned(), id: expected, path: path_text(&path)? })
}

fn file(path: &Path) -> Result<Source, EngineError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let id: Digest = files::digest(path)?;
    Ok(Source { name, id, path: path_text(path)? })
}

/// The manifest is JSON, so a path must be text.
fn path_text(path: &Path) -> Result<String, EngineError> {
    path.to_str().map(str::to_owned).ok_or_else(|| EngineError::Setting {
        setting: "--data",
        expected: "a path that is UTF-8".into(),
        found: path.display().to_string(),
    })
}

/// One dataset's records from the first that the index lacks.
fn read_source(
    dataset: u32,
    path: &Path,
    tokenizer: &TextTokenizer,
    vocab_size: u32,
    writer: &mut VerbatimWriter,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    let first = Some(writer.next_record()).filter(|next| next.dataset == dataset).map_or(0, |next| next.row);
    let mut lines = Lines::open(path)?;
    let mut row = 0u32;
    loop {
        let batch = lines.batch(BATCH_LINES)?;
        let (Some(begin), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let end = last.offset + last.text.len() as u64;
        progress.advance((end >> 10) - (begin.offset >> 10));
        let known = (first.saturating_sub(row) as usize).min(batch.len());
        row = u32::try_from(known).ok().and_then(|known| row.checked_add(known)).ok_or_else(|| too_many(path))?;
        let tokens: Vec<Result<Vec<u32>, EngineError>> =
            batch[known..].par_iter().map(|line| tokens(path, line, tokenizer, vocab_size)).collect();
        for (line, tokens) in batch[known..].iter().zip(tokens) {
            writer.push(RecordId { dataset, row }, line.offset, &tokens?)?;
            row = row.checked_add(1).ok_or_else(|| too_many(path))?;
        }
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
    }
}

fn tokens(path: &Path, line: &Line, tokenizer: &TextTokenizer, vocab_size: u32) -> Result<Vec<u32>, EngineError> {
    let record = parse(path, line.number, &line.text)?;
    Ok(record.tokens(path, Some(tokenizer), vocab_size as usize)?.ids)
}

fn too_many(path: &Path) -> EngineError {
    let expected = "fewer than 2^32 records".into();
    EngineError::Content { path: path.into(), expected, found: "more".into() }
}
