//! What a process has open: stores by folder and generation, query matrices by content. Opened once, kept while the process lives.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use ascribe_store::FeatureStore;
use ndarray::Array2;

/// Open things of one kind that are kept; a scheduler's client may bring any number of jobs.
const KEPT_MAX: usize = 16;

/// A store with the places of its shards.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: FeatureStore,
    /// Place of each shard among the live ones, by its number.
    pub place: HashMap<u32, usize>,
}

type Kept<K, V> = LazyLock<Mutex<HashMap<K, Arc<V>>>>;

static STORES: Kept<(String, String), Opened> = LazyLock::new(Mutex::default);
static QUERIES: Kept<String, Array2<f32>> = LazyLock::new(Mutex::default);

fn kept<K: Eq + Hash + Clone, V>(all: &Kept<K, V>, key: &K, open: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
    // Opened under the lock: the other threads want the same thing.
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = all.get(key) {
        return Ok(found.clone());
    }
    let opened = Arc::new(open()?);
    if all.len() >= KEPT_MAX {
        all.clear();
    }
    all.insert(key.clone(), opened.clone());
    Ok(opened)
}

/// The store at `dir`, if its newest generation is the one with this manifest.
///
/// # Errors
/// Those of the store; another generation.
pub fn store(dir: &str, manifest_blake3: &str) -> Result<Arc<Opened>> {
    kept(&STORES, &(dir.to_owned(), manifest_blake3.to_owned()), || {
        let store = FeatureStore::open(Path::new(dir), None)?;
        let found = store.manifest_blake3();
        ensure!(
            found == manifest_blake3,
            "{dir}: expected the generation with manifest {manifest_blake3}, found {found} (hint: it changed while the job \
             ran, or this node sees another folder; run the job again)"
        );
        let place = store.entries().iter().enumerate().map(|(i, entry)| (entry.shard, i)).collect();
        Ok(Opened { store, place })
    })
}

/// The query matrix at `path`, if its bytes have this hash; in standard layout.
///
/// # Errors
/// Those of reading; other bytes.
pub fn queries(path: &str, blake3: &str) -> Result<Arc<Array2<f32>>> {
    kept(&QUERIES, &blake3.to_owned(), || {
        let (matrix, found) = read_queries(Path::new(path))?;
        ensure!(found == blake3, "{path}: expected the queries with BLAKE3 {blake3}, found {found}");
        Ok(matrix)
    })
}

/// A query matrix and the hash of its file.
///
/// # Errors
/// Those of reading; a number that is not finite.
pub fn read_queries(path: &Path) -> Result<(Array2<f32>, String)> {
    let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let matrix = crate::npy::parse(path, &bytes)?;
    if let Some(((query, column), x)) = matrix.indexed_iter().find(|(_, x)| !x.is_finite()) {
        anyhow::bail!("{}: query {query}, column {column}: expected a finite number, found {x}", path.display());
    }
    Ok((matrix, blake3::hash(&bytes).to_hex().to_string()))
}
