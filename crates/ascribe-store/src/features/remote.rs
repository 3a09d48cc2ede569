//! Stores on object stores: pushed, pulled, and read where they are, over four operations that every object store has.
//!
//! An object store cannot append or rename, and two machines share no lock. So every object's name carries its hash and is
//! written once (a race writes two names, not one twice), and a commit is the creation of `commits/<number>.json` on the
//! condition that there is none: of two writers who build on the same state one wins, the other is told
//! [`StoreError::Conflict`]. Numbers of commits have no gaps; `CURRENT` names one that is known to be there, later ones follow it.
//!
//! ```text
//! store.json                                  as in a folder
//! shards/s-000000-<16 digits>.safetensors     the same bytes, the name with the first 16 digits of their BLAKE3
//! side/s-000000-<16 digits>.parquet
//! parts/<16 digits>-<name>                    manifest, its part of manifest.log, sums, tombstones, owners
//! commits/000000.json                         names the objects of one generation
//! CURRENT                                     number of a commit, tab, CRC-32
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ascribe_core::{FeatureReader, FeatureSpec, Features, Progress};
use serde::{Deserialize, Serialize};

use super::files;
use super::generation::{Generation, Part, current_line, parse_current};
use super::layout::{Paths, StoreHeader, parse_json};
use super::leaves;
use super::manifest::{Manifest, ShardEntry};
use super::reader::{FeatureStore, live_entries};
use super::sealed::{self, NO_CHECKSUM};
use super::shard::Shard;
use super::snapshot::{SingleShard, Snapshot};
use super::sums::{DatasetSums, check_part};
use super::tombstones::Tombstones;
use super::{BLOCK_ROWS, FEATURES_FORMAT_VERSION};
use crate::atomic::{create_dirs, write_atomic};
use crate::error::StoreError;
use crate::lock::Lock;

/// What an object store can do. Keys are relative, with `/` between their parts.
pub trait Objects: Sync {
    /// Where this is, for messages.
    fn name(&self) -> String;
    /// The whole object, or `None` if there is none.
    ///
    /// # Errors
    /// The medium's.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Length of an object, or `None` if there is none.
    ///
    /// # Errors
    /// The medium's.
    fn len(&self, key: &str) -> Result<Option<u64>, StoreError>;
    /// Writes an object whole, over an old one.
    ///
    /// # Errors
    /// The medium's.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError>;
    /// Writes an object whole if there is none of that name, in one step; false if there is.
    ///
    /// # Errors
    /// The medium's.
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError>;
}

/// `commits/000000.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Commit {
    format_version: u32,
    uuid: String,
    number: u64,
    generation: u64,
    manifest: Part,
    log: Part,
    checksum: String,
}

fn commit_key(number: u64) -> String {
    format!("commits/{number:06}.json")
}

fn hashed(folder: &str, stem: &str, blake3: &str, ending: &str) -> String {
    format!("{folder}/{stem}-{}.{ending}", blake3.chars().take(16).collect::<String>())
}

pub(crate) fn part_key(part: &Part) -> String {
    format!("parts/{}-{}", part.blake3.chars().take(16).collect::<String>(), part.file)
}

fn shard_keys(entry: &ShardEntry) -> [(String, u64, &str); 2] {
    let stem = format!("s-{:06}", entry.shard);
    [
        (hashed("shards", &stem, &entry.blake3, "safetensors"), entry.bytes, &entry.blake3),
        (hashed("side", &stem, &entry.side_blake3, "parquet"), entry.side_bytes, &entry.side_blake3),
    ]
}

/// The path that messages name.
pub(crate) fn named(objects: &dyn Objects, key: &str) -> PathBuf {
    PathBuf::from(format!("{}/{key}", objects.name()))
}

fn fetch(objects: &dyn Objects, key: &str) -> Result<Vec<u8>, StoreError> {
    let missing =
        || StoreError::Missing { path: named(objects, key), hint: "a commit names this object; push the store again" };
    objects.get(key)?.ok_or_else(missing)
}

fn fetch_part(objects: &dyn Objects, part: &Part) -> Result<Vec<u8>, StoreError> {
    let key = part_key(part);
    let bytes = fetch(objects, &key)?;
    check_part(&named(objects, &key), &bytes, part)?;
    Ok(bytes)
}

/// The newest commit, or `None` if nothing was ever pushed.
fn newest(objects: &dyn Objects) -> Result<Option<Commit>, StoreError> {
    let current = match objects.get("CURRENT")? {
        Some(bytes) => parse_current(&named(objects, "CURRENT"), &bytes)?,
        None if objects.len(&commit_key(0))?.is_some() => 0,
        None => return Ok(None),
    };
    let mut number = current;
    while objects.len(&commit_key(number + 1))?.is_some() {
        number += 1;
    }
    let key = commit_key(number);
    let (path, bytes) = (named(objects, &key), fetch(objects, &key)?);
    let commit: Commit = parse_json(&path, "commit", &bytes)?;
    sealed::check(&path, &bytes, &commit.checksum)?;
    if commit.number != number {
        return Err(StoreError::malformed(&path, "number", number, commit.number));
    }
    Ok(Some(commit))
}

/// Puts the open generation of `store` onto an object store; what is there already is not sent again. Returns the commit's number.
///
/// # Errors
/// [`StoreError::Conflict`] if the object store holds something that this store was not built on, or if another writer commits
/// meanwhile; damage in the store; the medium's.
pub fn push(store: &FeatureStore, objects: &dyn Objects, progress: &dyn Progress) -> Result<u64, StoreError> {
    let paths = &store.paths;
    let generation = store.generation();
    let read = |path: &Path| std::fs::read(path).map_err(|source| StoreError::io("read", path, source));
    let part_of = |file: String, bytes: &[u8]| Part {
        file,
        bytes: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    };
    let before = newest(objects)?;
    let number = before.as_ref().map_or(0, |c| c.number + 1);
    let mut log = read(&paths.manifest())?;
    log.truncate(generation.log_bytes as usize);
    let manifest = read(&paths.generation(generation.generation))?;
    let manifest_part = part_of(format!("MANIFEST-{:06}.json", generation.generation), &manifest);
    if let Some(before) = &before {
        if before.manifest == manifest_part {
            return point_to(objects, before.number);
        }
        let is_built_on = before.uuid == generation.uuid
            && before.generation < generation.generation
            && log
                .get(..before.log.bytes as usize)
                .is_some_and(|l| blake3::hash(l).to_hex().as_str() == before.log.blake3);
        if !is_built_on {
            let path = named(objects, &commit_key(before.number));
            return Err(StoreError::Conflict { path, generation: before.generation });
        }
    }
    progress.start("push", store.entries().len() as u64, "shards");
    put_head(objects, &read(&paths.header())?)?;
    for (i, entry) in store.entries().iter().enumerate() {
        if progress.stop_requested() {
            return Err(StoreError::Stopped);
        }
        store.shard_view(i)?;
        let local = [paths.shard(entry.shard), paths.side(entry.shard)];
        for ((key, bytes, blake3), path) in shard_keys(entry).into_iter().zip(local) {
            if objects.len(&key)? != Some(bytes) {
                let found = read(&path)?;
                check_part(&path, &found, &Part { file: String::new(), bytes, blake3: blake3.to_owned() })?;
                put_once(objects, &key, &found)?;
            }
        }
        progress.advance(1);
    }
    for part in generation.parts() {
        put_once(objects, &part_key(part), &read(&paths.root.join(&part.file))?)?;
    }
    let log_part = part_of("manifest.log".to_owned(), &log);
    put_once(objects, &part_key(&log_part), &log)?;
    put_once(objects, &part_key(&manifest_part), &manifest)?;
    let commit = Commit {
        format_version: FEATURES_FORMAT_VERSION,
        uuid: generation.uuid.clone(),
        number,
        generation: generation.generation,
        manifest: manifest_part,
        log: log_part,
        checksum: NO_CHECKSUM.to_owned(),
    };
    let key = commit_key(number);
    if !objects.put_new(&key, &sealed::to_bytes(&named(objects, &key), &commit)?)? {
        return Err(StoreError::Conflict { path: named(objects, &key), generation: generation.generation });
    }
    objects.put("CURRENT", &current_line(number))?;
    progress.finish(&format!("commit {number}, generation {}", generation.generation));
    Ok(number)
}

/// Writes `CURRENT` if a push was killed between its commit and that.
fn point_to(objects: &dyn Objects, number: u64) -> Result<u64, StoreError> {
    if objects.get("CURRENT")? != Some(current_line(number)) {
        objects.put("CURRENT", &current_line(number))?;
    }
    Ok(number)
}

/// Writes the head, and refuses a medium that creates it a second time: it would create a commit twice as well.
fn put_head(objects: &dyn Objects, head: &[u8]) -> Result<(), StoreError> {
    put_once(objects, "store.json", head)?;
    if objects.put_new("store.json", head)? {
        let said =
            "it created an object that was there already (hint: it ignores conditions, so two writers would lose rows)";
        let source = std::io::Error::new(std::io::ErrorKind::Unsupported, said);
        return Err(StoreError::io("create on condition", &named(objects, "store.json"), source));
    }
    Ok(())
}

/// Writes an object whose name says what it holds; one that is there already must have its length.
fn put_once(objects: &dyn Objects, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
    if objects.put_new(key, bytes)? {
        return Ok(());
    }
    match objects.len(key)? {
        Some(len) if len == bytes.len() as u64 => Ok(()),
        found => {
            let (path, expected) = (named(objects, key), bytes.len() as u64);
            Err(StoreError::WrongLength { path, expected, found: found.unwrap_or(0) })
        }
    }
}

/// A commit with everything but its rows, fetched and checked.
struct Fetched {
    header_bytes: Vec<u8>,
    header: StoreHeader,
    commit: Commit,
    manifest_bytes: Vec<u8>,
    generation: Generation,
    log: Vec<u8>,
    entries: Vec<ShardEntry>,
}

fn fetch_newest(objects: &dyn Objects) -> Result<Fetched, StoreError> {
    let Some(commit) = newest(objects)? else {
        let hint = "nothing was pushed there; `ascribe store push DIR URL` does";
        return Err(StoreError::Missing { path: named(objects, "commits"), hint });
    };
    let header_path = named(objects, "store.json");
    let header_bytes = fetch(objects, "store.json")?;
    let header = StoreHeader::parse(&header_path, &header_bytes)?;
    let path = named(objects, &part_key(&commit.manifest));
    let manifest_bytes = fetch_part(objects, &commit.manifest)?;
    let generation = Generation::parse(&path, &manifest_bytes, &header, commit.generation)?;
    let log_path = named(objects, &part_key(&commit.log));
    let log = fetch_part(objects, &commit.log)?;
    let parsed = Manifest::parse(&log_path, log.clone(), &header)?;
    let n_lines = parsed.n_lines_of(&log_path, &generation)?;
    let entries = live_entries(&path, &generation, &parsed.entries[..n_lines])?;
    Ok(Fetched { header_bytes, header, commit, manifest_bytes, generation, log, entries })
}

/// Brings the newest commit of an object store into the folder `dir`, which must be empty or an earlier pull of the same commit;
/// files that are there and whole are not fetched again. Returns the store, open for reading.
///
/// # Errors
/// Objects that are missing or changed; a folder that holds something else; the medium's and the file system's.
pub fn pull(objects: &dyn Objects, dir: &Path, progress: &dyn Progress) -> Result<FeatureStore, StoreError> {
    let fetched = fetch_newest(objects)?;
    let paths = Paths::new(dir);
    create_dirs(&paths.shards())?;
    create_dirs(&paths.sides())?;
    let _lock = Lock::take(paths.lock())?;
    files::remove_tmp(&paths.root)?;
    for (path, bytes) in [(paths.header(), &fetched.header_bytes), (paths.manifest(), &fetched.log)] {
        match std::fs::read(&path) {
            Ok(found) if found == *bytes => {}
            Ok(_) => {
                let (setting, expected, found) = ("content", "this commit's".to_owned(), "another store's".to_owned());
                return Err(StoreError::SettingMismatch { path, setting, expected, found });
            }
            Err(_) => write_atomic(&path, bytes)?,
        }
    }
    progress.start("pull", fetched.entries.len() as u64, "shards");
    for entry in &fetched.entries {
        if progress.stop_requested() {
            return Err(StoreError::Stopped);
        }
        let local = [paths.shard(entry.shard), paths.side(entry.shard)];
        for ((key, bytes, blake3), path) in shard_keys(entry).into_iter().zip(local) {
            let part = Part { file: String::new(), bytes, blake3: blake3.to_owned() };
            if std::fs::read(&path).is_ok_and(|found| check_part(&path, &found, &part).is_ok()) {
                continue;
            }
            let found = fetch(objects, &key)?;
            check_part(&named(objects, &key), &found, &part)?;
            if blake3 == entry.blake3 {
                leaves::write_for(&path, &found)?;
            }
            write_atomic(&path, &found)?;
        }
        progress.advance(1);
    }
    for part in fetched.generation.parts() {
        write_atomic(&paths.root.join(&part.file), &fetch_part(objects, part)?)?;
    }
    write_atomic(&paths.generation(fetched.generation.generation), &fetched.manifest_bytes)?;
    write_atomic(&paths.current(), &current_line(fetched.generation.generation))?;
    progress.finish(&format!("commit {}", fetched.commit.number));
    FeatureStore::open_any(dir, None)
}

impl Snapshot {
    /// The newest commit of an object store.
    ///
    /// # Errors
    /// Objects that are missing or changed; the medium's.
    pub fn read(objects: &dyn Objects) -> Result<Self, StoreError> {
        let Fetched { header, generation, entries, .. } = fetch_newest(objects)?;
        let tombstones = match &generation.tombstones {
            Some(part) => {
                let path = named(objects, &part_key(part));
                Tombstones::parse(&path, &fetch_part(objects, part)?, part, &generation, &entries)?
            }
            None => Tombstones::default(),
        };
        Ok(Self::of(header, generation, entries, &tombstones))
    }

    /// Key of the side file of shard `i` on an object store.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn side_key(&self, i: usize) -> String {
        let [_, (key, ..)] = shard_keys(&self.entries[i]);
        key
    }

    /// Fetches shard `i` from the object store and checks every byte of it.
    ///
    /// # Errors
    /// An object that is missing or changed; the medium's.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn fetch_shard(&self, objects: &dyn Objects, i: usize) -> Result<SingleShard, StoreError> {
        let [(key, ..), _] = shard_keys(&self.entries[i]);
        let bytes = fetch(objects, &key)?;
        let shard = Shard::from_bytes(&named(objects, &key), &bytes, &self.header, &self.entries[i])?;
        shard.check_bytes()?;
        Ok(SingleShard { shard, dead: self.dead[i].clone() })
    }
}

/// A store read where it is: one shard at a time is fetched, checked and kept until another is asked for.
pub struct RemoteStore<'a> {
    objects: &'a dyn Objects,
    snapshot: Snapshot,
    /// Live rows of each shard.
    live: Vec<Vec<u32>>,
    /// Shard, and places among its live rows.
    blocks: Vec<(usize, std::ops::Range<usize>)>,
    last: Mutex<Option<(usize, Arc<SingleShard>)>>,
}

impl<'a> RemoteStore<'a> {
    /// Opens the newest commit.
    ///
    /// # Errors
    /// Objects that are missing or changed; the medium's.
    pub fn open(objects: &'a dyn Objects) -> Result<Self, StoreError> {
        let snapshot = Snapshot::read(objects)?;
        let live_of = |(e, dead): (&ShardEntry, &Vec<u32>)| {
            (0..e.rows).filter(|row| dead.binary_search(row).is_err()).collect::<Vec<u32>>()
        };
        let live: Vec<Vec<u32>> = snapshot.entries.iter().zip(&snapshot.dead).map(live_of).collect();
        let cut = |(i, rows): (usize, &Vec<u32>)| {
            let n = rows.len();
            (0..n).step_by(BLOCK_ROWS).map(move |start| (i, start..(start + BLOCK_ROWS).min(n))).collect::<Vec<_>>()
        };
        let blocks = live.iter().enumerate().flat_map(cut).collect();
        Ok(Self { objects, snapshot, live, blocks, last: Mutex::new(None) })
    }

    /// What the store says of itself.
    pub fn header(&self) -> &StoreHeader {
        &self.snapshot.header
    }

    /// The generation that was pushed.
    pub fn generation(&self) -> &Generation {
        &self.snapshot.generation
    }

    /// The exact sums per dataset.
    ///
    /// # Errors
    /// A missing or changed object; a companion has none.
    pub fn dataset_sums(&self) -> Result<DatasetSums, StoreError> {
        let hint = "a companion has no sums of its own; ask its store";
        let missing = || StoreError::Missing { path: named(self.objects, "parts/dataset_sums"), hint };
        let generation = &self.snapshot.generation;
        let part = generation.sums.as_ref().ok_or_else(missing)?;
        let path = named(self.objects, &part_key(part));
        let bytes = fetch_part(self.objects, part)?;
        DatasetSums::parse(&path, &bytes, part, &self.snapshot.header, generation.n_datasets as usize)
    }

    fn shard(&self, i: usize) -> Result<Arc<SingleShard>, StoreError> {
        // A poisoned lock only means that another thread panicked; what is kept is whole or absent.
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, shard)) = last.as_ref()
            && *at == i
        {
            return Ok(Arc::clone(shard));
        }
        let shard = Arc::new(self.snapshot.fetch_shard(self.objects, i)?);
        *last = Some((i, Arc::clone(&shard)));
        Ok(shard)
    }
}

impl FeatureReader for RemoteStore<'_> {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.snapshot.header.spec
    }

    fn n_rows(&self) -> u64 {
        self.snapshot.generation.n_rows
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, StoreError> {
        let Some((i, range)) = self.blocks.get(block_idx).cloned() else {
            let expected = format!("below {}", self.blocks.len());
            return Err(StoreError::Shape { what: "number of a block", expected, found: block_idx.to_string() });
        };
        let (shard, rows) = (self.shard(i)?, &self.live[i][range]);
        let view = shard.view()?;
        let ids: Vec<_> = rows.iter().map(|&row| view.id(row as usize)).collect();
        let numbers = shard.shard.rows_at(rows)?.into_owned();
        Ok(Features { ids: ids.into(), rows: numbers.into() })
    }
}

/// A folder as an object store: a shared file system, and what the tests race on. Creation is one step (`link` of a finished file).
#[derive(Clone, Debug)]
pub struct FolderObjects {
    root: PathBuf,
}

impl FolderObjects {
    /// Objects below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let path = self.root.join(key);
        if let Some(parent) = path.parent() {
            create_dirs(parent)?;
        }
        Ok(path)
    }
}

impl Objects for FolderObjects {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.root.join(key);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("read", &path, source)),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let path = self.root.join(key);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("measure", &path, source)),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        write_atomic(&self.path(key)?, bytes)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let path = self.path(key)?;
        if path.exists() {
            return Ok(false);
        }
        // A name of its own, so that two writers do not write into one file.
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut own = path.clone().into_os_string();
        own.push(format!(".{}-{n}", std::process::id()));
        let own = PathBuf::from(own);
        write_atomic(&own, bytes)?;
        let linked = std::fs::hard_link(&own, &path);
        files::remove(&own)?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(StoreError::io("link", &path, source)),
        }
    }
}
