//! What a process has open: generations of stores, query matrices by content, and the few shards that are being read. Opened once,
//! kept while they are wanted.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use anyhow::{Result, bail, ensure};
use ascribe_store::StoreError;
use ascribe_store::features::{SingleShard, Snapshot};
use ndarray::Array2;

use crate::objects::{self, Remote};

/// Generations and matrices that are kept; a scheduler's client may bring any number of jobs.
const KEPT_MAX: usize = 16;

/// A generation of a store, without its rows.
#[derive(Debug)]
pub struct Opened {
    /// Folder or address.
    pub location: String,
    /// What the generation says.
    pub snapshot: Snapshot,
    /// Place of each shard among the live ones, by its number.
    pub place: HashMap<u32, usize>,
    remote: Option<Remote>,
}

impl Opened {
    /// The newest generation at a folder or an address.
    ///
    /// # Errors
    /// Those of the store and of its medium.
    pub fn open(location: &str) -> Result<Self> {
        let remote = objects::is_url(location).then(|| Remote::open(location)).transpose()?;
        let snapshot = match &remote {
            Some(remote) => Snapshot::read(remote)?,
            None => Snapshot::open(Path::new(location))?,
        };
        let place = snapshot.entries().iter().enumerate().map(|(i, entry)| (entry.shard, i)).collect();
        Ok(Self { location: location.to_owned(), snapshot, place, remote })
    }

    /// Rows that are not deleted.
    pub fn n_rows(&self) -> u64 {
        self.snapshot.generation().n_rows
    }

    /// Numbers of a row.
    pub fn dim(&self) -> usize {
        self.snapshot.header().spec.dim
    }

    /// Maps or fetches the shard at `place`.
    ///
    /// # Errors
    /// One that is missing or changed; the medium's.
    pub fn shard(&self, place: usize) -> Result<SingleShard, StoreError> {
        match &self.remote {
            Some(remote) => self.snapshot.fetch_shard(remote, place),
            None => self.snapshot.map_shard(Path::new(&self.location), place),
        }
    }

    /// Where the side file of the shard at `place` is.
    pub fn side(&self, place: usize) -> String {
        match &self.remote {
            Some(_) => format!("{}/{}", self.location, self.snapshot.side_key(place)),
            None => format!("{}/side/s-{:06}.parquet", self.location, self.snapshot.entries()[place].shard),
        }
    }
}

type Kept<K, V> = LazyLock<Mutex<HashMap<K, Arc<V>>>>;
type Slot = Arc<Mutex<Option<Arc<SingleShard>>>>;
type ShardKey = (String, String, usize);

static STORES: Kept<(String, String), Opened> = LazyLock::new(Mutex::default);
static QUERIES: Kept<String, Array2<f32>> = LazyLock::new(Mutex::default);
static SHARDS: Mutex<VecDeque<(ShardKey, Slot)>> = Mutex::new(VecDeque::new());
static SHARDS_MAX: OnceLock<usize> = OnceLock::new();

/// Says how many tasks run at once: so many shards are kept, the last ones asked for. Without it, one a core.
pub fn keep_shards(n: usize) {
    // Said once, when the process starts.
    let _ = SHARDS_MAX.set(n.max(1));
}

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

/// The store at `location`, if its newest generation is the one with this manifest.
///
/// # Errors
/// Those of the store; another generation.
pub fn store(location: &str, manifest_blake3: &str) -> Result<Arc<Opened>> {
    kept(&STORES, &(location.to_owned(), manifest_blake3.to_owned()), || {
        let opened = Opened::open(location)?;
        let found = opened.snapshot.manifest_blake3();
        ensure!(
            found == manifest_blake3,
            "{location}: expected the generation with manifest {manifest_blake3}, found {found} (hint: it changed while the job \
             ran, or this node sees another folder; run the job again)"
        );
        Ok(opened)
    })
}

/// The shard at `place`, kept until others were asked for: batches of one shard follow each other.
///
/// # Errors
/// As [`Opened::shard`].
pub fn shard(opened: &Opened, place: usize) -> Result<Arc<SingleShard>, StoreError> {
    let key = (opened.location.clone(), opened.snapshot.manifest_blake3().to_owned(), place);
    let slot = {
        let mut shards = SHARDS.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shards.iter().position(|(held, _)| *held == key).and_then(|at| shards.remove(at));
        let (key, slot) = found.unwrap_or_else(|| (key, Slot::default()));
        shards.push_back((key, slot.clone()));
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        while shards.len() > *SHARDS_MAX.get_or_init(cores) {
            shards.pop_front();
        }
        slot
    };
    // Opened under the slot's own lock: others may open others meanwhile.
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = slot.as_ref() {
        return Ok(found.clone());
    }
    let opened = Arc::new(opened.shard(place)?);
    *slot = Some(opened.clone());
    Ok(opened)
}

/// The query matrix at `location`, if its bytes have this hash; in standard layout.
///
/// # Errors
/// Those of reading; other bytes.
pub fn queries(location: &str, blake3: &str) -> Result<Arc<Array2<f32>>> {
    kept(&QUERIES, &blake3.to_owned(), || {
        let (matrix, found) = read_queries(location)?;
        ensure!(found == blake3, "{location}: expected the queries with BLAKE3 {blake3}, found {found}");
        Ok(matrix)
    })
}

/// A query matrix and the hash of its file.
///
/// # Errors
/// Those of reading; a number that is not finite.
pub fn read_queries(location: &str) -> Result<(Array2<f32>, String)> {
    let bytes = objects::read(location)?;
    let matrix = crate::npy::parse(Path::new(location), &bytes)?;
    if let Some(((query, column), x)) = matrix.indexed_iter().find(|(_, x)| !x.is_finite()) {
        bail!("{location}: query {query}, column {column}: expected a finite number, found {x}");
    }
    Ok((matrix, blake3::hash(&bytes).to_hex().to_string()))
}
