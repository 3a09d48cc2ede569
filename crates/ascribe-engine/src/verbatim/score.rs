//! Method `verbatim` in a score file: for each response and record the longest run of tokens that both have.
//!
//! The same measure as the control of that name (`methods::controls::verbatim`, longest run), found by the index instead of
//! passing every record through an automaton of every response. Records are the examples here: `example_idx` and `record_row`
//! are both the row. A dataset's score is that of its best record. Runs shorter than `min_tokens` count as none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::{DatasetScores, Digest, ExampleId, Progress, QueryId, RecordId, ScoreTable};
use ascribe_store::{ScoreFileMeta, ScoreWriter};
use ascribe_verbatim::Run;
use ndarray::Array2;
use serde::Serialize;

use super::{Evidence, METHOD, NOTE, parse};
use crate::error::EngineError;
use crate::lab::lines::Lines;

/// Lines read at a time.
const BATCH_LINES: usize = 256;

/// What is asked.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// Folder of the index.
    pub index: PathBuf,
    /// JSONL of responses: `text`, or `prompt` and `completion` (the completion is scored), or token ids.
    pub queries: PathBuf,
    /// The score file.
    pub out: PathBuf,
    /// Shortest run that counts.
    pub min_tokens: usize,
    /// Records kept for each response.
    pub top_k: usize,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct ScoreReport {
    /// The score file.
    pub scores: PathBuf,
    /// Responses.
    pub queries: u32,
    /// Datasets.
    pub datasets: usize,
    /// Rows of the file.
    pub rows: u64,
    /// BLAKE3 of the content.
    pub content_blake3: String,
    /// What this is not.
    pub note: &'static str,
}

/// Scores every response of a file.
///
/// # Errors
/// [`EngineError::Record`] naming file, line and field; those of index and store; [`EngineError::Stopped`].
pub fn run(request: &ScoreRequest, progress: &dyn Progress) -> Result<ScoreReport, EngineError> {
    let evidence = Evidence::open(&request.index)?;
    let index = evidence.index();
    let corpus = index.digest();
    let spec = Digest::of_json(&(METHOD, corpus, request.min_tokens))?;
    let methods = BTreeMap::from([(METHOD.to_owned(), spec)]);
    let mut writer = ScoreWriter::create(&request.out, &ScoreFileMeta { spec, corpus, methods })?;
    let mut lines = Lines::open(&request.queries)?;
    let mut n_queries = 0u32;
    progress.start("verbatim scores", 0, "responses");
    loop {
        let batch = lines.batch(BATCH_LINES)?;
        if batch.is_empty() {
            break;
        }
        for line in batch {
            let record = parse(&request.queries, line.number, &line.text)?;
            let tokens = record.tokens(&request.queries, Some(evidence.tokenizer()), usize::MAX)?;
            let runs = index.longest_runs(&tokens.ids[tokens.loss_from..], request.min_tokens)?;
            let query = QueryId(n_queries);
            writer.push_examples(&examples(query, spec, &runs), Some(request.top_k), &|id| {
                Some(RecordId { dataset: id.dataset, row: id.idx })
            })?;
            writer.push_datasets(&datasets(query, spec, &runs, index.sources().len()))?;
            n_queries += 1;
            progress.advance(1);
        }
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
    }
    if n_queries == 0 {
        let expected = "at least one response".into();
        return Err(EngineError::Content { path: request.queries.clone(), expected, found: "none".into() });
    }
    let written = writer.finish()?;
    progress.finish(&format!("{n_queries} responses, {} score rows", written.n_rows));
    Ok(ScoreReport {
        scores: request.out.clone(),
        queries: n_queries,
        datasets: index.sources().len(),
        rows: written.n_rows,
        content_blake3: written.content_blake3,
        note: NOTE,
    })
}

/// `[1, N]` over the records that share a run; the others have none and are left out.
fn examples(query: QueryId, spec: Digest, runs: &[Run]) -> ScoreTable {
    let id = |run: &Run| ExampleId { dataset: run.record.dataset, idx: run.record.row };
    ScoreTable {
        method: METHOD.to_owned(),
        spec,
        queries: vec![query],
        examples: runs.iter().map(id).collect(),
        values: Array2::from_shape_fn((1, runs.len()), |(_, n)| runs[n].tokens as f32),
    }
}

/// `[1, K]`: the longest run of each dataset, 0 where there is none.
fn datasets(query: QueryId, spec: Digest, runs: &[Run], n_datasets: usize) -> DatasetScores {
    let mut values = Array2::zeros((1, n_datasets));
    for run in runs {
        let best = &mut values[(0, run.record.dataset as usize)];
        *best = f64::max(*best, f64::from(run.tokens));
    }
    DatasetScores { method: METHOD.to_owned(), spec, queries: vec![query], values }
}
