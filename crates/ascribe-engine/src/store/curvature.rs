//! The second moments of a store's rows, kept beside them as `curvature.safetensors` and brought up to date with them.
//!
//! Withdrawing a dataset takes its outer products out, an append puts its rows' in; nothing else is read. Equal to fitting anew
//! within `1e-12` of a module's largest second moment (f64 sums in another order; the tests hold it). A file of another
//! generation than the store's is not used: a crash between the two costs one fit, never a wrong number.

use std::path::Path;

use ascribe_core::{FeatureReader, Progress};
use ascribe_index::refuse_factors;
use ascribe_methods::block_fisher::Covariance;
use ascribe_store::features::Generation;
use ascribe_store::{FactorData, FactorFile, FeatureStore, StoreError};
use serde::Serialize;

use crate::error::EngineError;

/// Name of the file in the store's folder.
pub const CURVATURE_FILE: &str = "curvature.safetensors";
const METHOD: &str = "second_moments";
/// Metadata keys: the manifest that the moments belong to, its generation, and how many rows were averaged.
const MANIFEST_KEY: &str = "manifest_blake3";
const ROWS_KEY: &str = "n_rows";
const SHARDS_KEY: &str = "rows_blake3";

/// Second moments of a store's rows.
#[derive(Clone, Debug, Serialize)]
pub struct Curvature {
    /// Generation of the store.
    pub generation: u64,
    /// Rows that were averaged.
    pub n_rows: u64,
    /// `kept`, `updated` or `fitted`.
    pub how: &'static str,
    /// Modules with the mean of the diagonal of their second moments.
    pub mean_diagonals: Vec<(String, f64)>,
}

/// Reads the moments beside the store, brings them up to date by appended rows, or fits them; writes them back.
///
/// # Errors
/// From the store; a store without rows, or one of factors: moments of factors are not those of gradients.
pub fn refresh(dir: &Path, progress: &dyn Progress) -> Result<Curvature, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    refuse_factors(store.spec())?;
    let (covariance, how) = match read_current(dir, &store)? {
        Some(kept) => (kept, "kept"),
        None => match appended(dir, &store, progress)? {
            Some(updated) => (updated, "updated"),
            None => (Covariance::fit(&store, progress)?, "fitted"),
        },
    };
    if how != "kept" {
        write(dir, &covariance, &store)?;
    }
    let names = covariance.columns().iter().map(|c| c.name.clone());
    Ok(Curvature {
        generation: store.generation().generation,
        n_rows: store.n_rows(),
        how,
        mean_diagonals: names.zip(covariance.mean_diagonals()).collect(),
    })
}

/// The moments of this very generation, if they are there.
///
/// # Errors
/// A damaged file.
pub fn read_current(dir: &Path, store: &FeatureStore) -> Result<Option<Covariance>, EngineError> {
    let Some(file) = read_file(dir, store)? else { return Ok(None) };
    if file.metadata.get(MANIFEST_KEY).map(String::as_str) != Some(store.manifest_blake3()) {
        return Ok(None);
    }
    parse(dir, store, &file).map(Some)
}

/// Writes the moments of the store's generation.
///
/// # Errors
/// From writing.
pub fn write(dir: &Path, covariance: &Covariance, store: &FeatureStore) -> Result<(), EngineError> {
    let mut file = FactorFile::new(METHOD, store.header().spec_sha256);
    file.metadata.insert(MANIFEST_KEY.to_owned(), store.manifest_blake3().to_owned());
    file.metadata.insert(ROWS_KEY.to_owned(), covariance.n_rows().to_string());
    file.metadata.insert(SHARDS_KEY.to_owned(), state(store.generation(), &shards(store)));
    for (module, column) in covariance.columns().iter().enumerate() {
        let block = covariance.block(module).to_owned().into_dyn();
        file.tensors.insert(column.name.clone(), FactorData::F64(block));
    }
    Ok(file.write(&dir.join(CURVATURE_FILE))?)
}

/// Writes moments as those of `after`, if they average as many rows as it has; else the old file stays, which no later generation
/// uses.
///
/// # Errors
/// From writing.
pub fn carry(dir: &Path, covariance: &Covariance, after: &FeatureStore) -> Result<(), EngineError> {
    if covariance.n_rows() as u64 == after.n_rows() { write(dir, covariance, after) } else { Ok(()) }
}

/// Takes rows out of the moments and writes what is left as those of `after` ([`carry`]); without rows left the file goes.
///
/// # Errors
/// From reading and writing.
pub fn take_out<R: FeatureReader>(
    dir: &Path,
    kept: Covariance,
    gone: &R,
    after: &FeatureStore,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    if after.n_rows() == 0 {
        let path = dir.join(CURVATURE_FILE);
        return std::fs::remove_file(&path).map_err(|source| EngineError::io(&path, source));
    }
    let left = kept.without(gone, progress)?;
    carry(dir, &left, after)
}

/// Moments of an earlier generation, to which only shards were added since.
fn appended(dir: &Path, store: &FeatureStore, progress: &dyn Progress) -> Result<Option<Covariance>, EngineError> {
    let Some(file) = read_file(dir, store)? else { return Ok(None) };
    let Some(was) = file.metadata.get(SHARDS_KEY) else { return Ok(None) };
    let all = shards(store);
    let Some(n_before) = (1..all.len()).find(|&n| *was == state(store.generation(), &all[..n])) else {
        return Ok(None);
    };
    let before = parse(dir, store, &file)?;
    let new: std::collections::HashSet<u64> = (n_before..all.len())
        .map(|i| store.shard_view(i).map(|view| view.ids.to_vec()))
        .collect::<Result<Vec<_>, _>>()?
        .concat()
        .into_iter()
        .collect();
    Ok(Some(before.with(&store.subset(|id| new.contains(&id.to_u64())), progress)?))
}

fn shards(store: &FeatureStore) -> Vec<String> {
    store.entries().iter().map(|e| e.blake3.clone()).collect()
}

/// Shards and deleted rows, in one line.
fn state(generation: &Generation, shards: &[String]) -> String {
    let dead = generation.tombstones.as_ref().map_or("none", |part| part.blake3.as_str());
    let mut digest = String::new();
    for shard in shards {
        digest = ascribe_core::Digest::of(format!("{digest}{shard}").as_bytes()).to_string();
    }
    format!("{digest} {dead}")
}

fn read_file(dir: &Path, store: &FeatureStore) -> Result<Option<FactorFile>, EngineError> {
    match FactorFile::read(&dir.join(CURVATURE_FILE), Some(store.header().spec_sha256)) {
        Ok(file) => Ok(Some(file)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parse(dir: &Path, store: &FeatureStore, file: &FactorFile) -> Result<Covariance, EngineError> {
    let refused =
        |expected: String| EngineError::Content { path: dir.join(CURVATURE_FILE), expected, found: "none".to_owned() };
    let n_rows = file.metadata.get(ROWS_KEY).and_then(|n| n.parse().ok());
    let n_rows = n_rows.ok_or_else(|| refused(format!("a number of rows in `{ROWS_KEY}`")))?;
    let columns = store.spec().columns.clone();
    let block = |column: &ascribe_core::Column| {
        let tensor = file.tensors.get(&column.name).and_then(FactorData::as_f64).cloned();
        let matrix = tensor.and_then(|t| t.into_dimensionality().ok());
        matrix.ok_or_else(|| refused(format!("an f64 matrix `{}`", column.name)))
    };
    let blocks = columns.iter().map(block).collect::<Result<Vec<_>, _>>()?;
    Ok(Covariance::from_parts(columns, n_rows, blocks)?)
}
