//! A whole store scored: the best rows of each query and the exact sum of every dataset, in one go or as the parts of a job array.
//!
//! The work is the shard job's (`ascribe_index::shard_job`), the file the one that a cluster writes (`ascribe-cluster score`): equal
//! bytes for equal rows and queries, whatever the number of parts. A part file lives as long as its job: one line of JSON that
//! says what it is a part of, then the partial answer.

use std::path::{Path, PathBuf};

use ascribe_index::refuse_factors;
use ascribe_index::shard_job::{Partial, Scored, run_opened};
use ascribe_models::vision::data::read_matrix;
use ascribe_store::blake3_hex;
use ascribe_store::features::Snapshot;
use serde::{Deserialize, Serialize};

use super::environment;
use crate::error::EngineError;
use crate::files;
use crate::lab::fetched;

/// What is to be scored.
#[derive(Clone, Debug)]
pub struct ScoringRequest {
    /// The store: a folder, or the address of an object store (`s3://`, `az://`, `gs://`), where it is read a shard at a time on each thread.
    pub store: PathBuf,
    /// Queries `[Q, dim]`, `.npy`; `s3://BUCKET/FILE` is copied to `OUT.data`.
    pub queries: PathBuf,
    /// Rows per query.
    pub k: usize,
    /// The `i`-th of `n` parts of the shards; `(0, 1)` is all, and makes the result at once.
    pub part: (u64, u64),
    /// File of the result, or of the part.
    pub out: PathBuf,
}

/// What `ascribe score --store` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Scoring {
    /// Rows that were scored.
    pub rows: u64,
    /// Rows of the whole store.
    pub store_rows: u64,
    /// Queries.
    pub queries: usize,
    /// The file.
    pub out: PathBuf,
}

/// First line of a part.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartHead {
    store: String,
    manifest_blake3: String,
    queries_blake3: String,
    queries: usize,
    k: usize,
    store_rows: u64,
    part: u64,
    parts: u64,
}

/// Scores a store, or a part of its shards. Cost `2·Q·n·dim` in f64, on all threads.
///
/// # Errors
/// Those of the store and the queries; rows that are factors; parts without shards; the file system's.
pub fn run(request: &ScoringRequest) -> Result<Scoring, EngineError> {
    let objects = match request.store.to_str().filter(|text| ascribe_objects::is_address(text)) {
        Some(url) => Some(ascribe_objects::open(url, &environment)?),
        None => None,
    };
    let store = match &objects {
        Some(objects) => Snapshot::read(&**objects)?,
        None => Snapshot::open(&request.store)?,
    };
    refuse_factors(&store.header().spec)?;
    let queries_at = fetched::local(&request.queries, &request.out)?;
    let queries = read_matrix(&queries_at)?;
    let queries_blake3 = blake3_hex(&files::read(&queries_at)?);
    let (n_shards, (part, parts)) = (store.entries().len() as u64, request.part);
    if parts > n_shards.max(1) || part >= parts {
        let expected = format!("i/n with i < n, and n at most the {n_shards} shards");
        return Err(EngineError::Setting { setting: "--shard", expected, found: format!("{part}/{parts}") });
    }
    let end = |part: u64| (u128::from(n_shards) * u128::from(part) / u128::from(parts)) as usize;
    let open = |shard: usize| match &objects {
        Some(objects) => store.fetch_shard(&**objects, shard),
        None => store.map_shard(&request.store, shard),
    };
    let answer = run_opened(&store, end(part)..end(part + 1), open, queries.view(), request.k)?;
    let head = PartHead {
        store: store.header().uuid.clone(),
        manifest_blake3: store.manifest_blake3().to_owned(),
        queries_blake3,
        queries: queries.nrows(),
        k: request.k,
        store_rows: store.generation().n_rows,
        part,
        parts,
    };
    if parts == 1 {
        return write(head, answer, &request.out);
    }
    let rows = answer.n_rows();
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.push(b'\n');
    bytes.extend(answer.to_bytes());
    files::write_atomic(&request.out, &bytes)?;
    Ok(Scoring { rows, store_rows: head.store_rows, queries: head.queries, out: request.out.clone() })
}

/// Joins the parts of a scoring job, in whatever order they are named.
///
/// # Errors
/// Files that are no parts, parts of several jobs, a part that is missing or there twice.
pub fn join(parts: &[PathBuf], out: &Path) -> Result<Scoring, EngineError> {
    let mut job: Option<(PartHead, Partial)> = None;
    let mut seen = std::collections::BTreeSet::new();
    for path in parts {
        let (head, partial) = read(path)?;
        let wrong = |expected: String, found: String| EngineError::Content { path: path.clone(), expected, found };
        if !seen.insert(head.part) {
            return Err(wrong("every part once".into(), format!("part {} again", head.part)));
        }
        job = Some(match job {
            None => (head, partial),
            Some((first, _)) if (PartHead { part: first.part, ..head.clone() }) != first => {
                let found = format!("a part of another ({} parts, manifest {})", head.parts, head.manifest_blake3);
                return Err(wrong(format!("a part of the job of {}", parts[0].display()), found));
            }
            Some((first, mut all)) => {
                all.merge(partial);
                (first, all)
            }
        });
    }
    let Some((head, all)) = job else {
        let (expected, found) = ("the files of all parts".to_owned(), "none".to_owned());
        return Err(EngineError::Setting { setting: "--join", expected, found });
    };
    if let Some(missing) = (0..head.parts).find(|part| !seen.contains(part)) {
        let expected = format!("all {} parts", head.parts);
        return Err(EngineError::Setting { setting: "--join", expected, found: format!("no part {missing}") });
    }
    write(head, all, out)
}

/// Writes the result, if it is one over all rows.
fn write(head: PartHead, all: Partial, out: &Path) -> Result<Scoring, EngineError> {
    let (rows, store_rows, queries) = (all.n_rows(), head.store_rows, head.queries);
    if rows != store_rows {
        let (expected, found) = (format!("an answer over {store_rows} rows"), format!("one over {rows}"));
        return Err(EngineError::Content { path: out.to_path_buf(), expected, found });
    }
    let scored = Scored {
        store: &head.store,
        manifest_blake3: &head.manifest_blake3,
        queries_blake3: &head.queries_blake3,
        k: head.k,
        rows,
        answer: all.finish(),
    };
    files::write_atomic(out, &scored.to_bytes()?)?;
    Ok(Scoring { rows, store_rows, queries, out: out.to_path_buf() })
}

fn read(path: &Path) -> Result<(PartHead, Partial), EngineError> {
    let bytes = files::read(path)?;
    let wrong = |found: String| {
        let expected = "a part that `ascribe score --store --shard` wrote".to_owned();
        EngineError::Content { path: path.to_path_buf(), expected, found }
    };
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| wrong("no line of JSON".into()))?;
    let head: PartHead = serde_json::from_slice(&bytes[..end]).map_err(|error| wrong(error.to_string()))?;
    let partial = Partial::from_bytes(&bytes[end + 1..], Some((head.queries, head.k)));
    Ok((head, partial.map_err(|error| wrong(error.to_string()))?))
}
