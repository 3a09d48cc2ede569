//! Reading: a finished store, mapped, checked, handed out in blocks or shard by shard.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features, RowType};

use super::BLOCK_ROWS;
use super::copies::{Beside, RowCopies};
use super::generation::{Generation, Part};
use super::layout::{CompanionOf, Paths, StoreHeader};
use super::manifest::{Manifest, ShardEntry};
use super::shard::Shard;
use super::sums::DatasetSums;
use super::terms::{OwnerSums, Terms};
use super::tombstones::Tombstones;
use super::view::ShardView;
use crate::error::StoreError;
use crate::mmap::{Advice, Map};

/// Tries of an open beside a compaction that takes files away.
const TRIES: usize = 8;

/// One generation of a finished feature store, open for reading from any number of threads.
///
/// Opening checks versions, hashes of the spec and of the manifest, and the length and head of every shard. The bytes of
/// a row are checked once, before it is handed out: by the leaves of its shard's hash, or with the whole shard where there are
/// none. So a changed byte never gives a row, and looking at a few rows does not read all of them ([`FeatureStore::verify`]
/// hashes everything at once, side files too). What is open stays as it is while others append, delete or compact; deleted
/// rows are not handed out.
#[derive(Debug)]
pub struct FeatureStore {
    pub(super) paths: Paths,
    header: StoreHeader,
    pub(super) generation: Generation,
    /// Live shards, in the order of the rows.
    pub(super) entries: Vec<ShardEntry>,
    pub(super) shards: Vec<Shard>,
    /// Deleted rows of each shard.
    pub(super) dead: Vec<Vec<u32>>,
    /// Rows that are left, of the shards that have dead ones.
    live: Vec<Option<Vec<u32>>>,
    /// Shard, and places among its live rows.
    blocks: Vec<(usize, Range<usize>)>,
    /// Mapped when the store is opened, so that a compaction cannot take it away.
    sums: Option<Map>,
    /// Mapped likewise.
    owner_sums: Option<Map>,
    terms: Terms,
}

impl FeatureStore {
    /// Opens the newest generation of the store at `dir`; with `expected_spec`, only if it is of that spec.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::WrongVersion`], [`StoreError::SpecMismatch`], [`StoreError::Unfinished`],
    /// [`StoreError::WrongLength`], [`StoreError::WrongChecksum`], [`StoreError::Malformed`]; those of the file system.
    /// A companion is refused: only its store knows which rows are deleted ([`FeatureStore::companion`]).
    pub fn open(dir: &Path, expected_spec: Option<&FeatureSpec>) -> Result<Self, StoreError> {
        let store = Self::open_any(dir, expected_spec)?;
        refuse_companion(&store.paths, &store.header)?;
        Ok(store)
    }

    /// The same, companions too.
    pub(crate) fn open_any(dir: &Path, expected_spec: Option<&FeatureSpec>) -> Result<Self, StoreError> {
        let paths = Paths::new(dir);
        let header = StoreHeader::read(&paths)?;
        if let Some(expected) = expected_spec {
            header.expect_spec(&paths.header(), expected)?;
        }
        newest_generation(&paths, &header, |generation| Self::open_generation(&paths, &header, generation))
    }

    fn open_generation(paths: &Paths, header: &StoreHeader, generation: Generation) -> Result<Self, StoreError> {
        let (entries, tombstones) = read_generation(paths, header, &generation)?;
        let manifest_path = paths.generation(generation.generation);
        let shards: Result<Vec<_>, _> = entries.iter().map(|e| Shard::open(&paths.shard(e.shard), header, e)).collect();
        let mut store = Self::of_parts(paths.clone(), header.clone(), generation, entries, shards?, &tombstones);
        store.sums = store.map_part(store.generation.sums.as_ref())?;
        store.owner_sums = store.map_part(store.generation.owner_sums.as_ref())?;
        store.terms = Terms::of(paths, header, &store.generation)?;
        let n_live: u64 = store.blocks.iter().map(|(_, rows)| rows.len() as u64).sum();
        if n_live != store.generation.n_rows {
            return Err(StoreError::malformed(&manifest_path, "live rows", store.generation.n_rows, n_live));
        }
        Ok(store)
    }

    fn of_parts(
        paths: Paths,
        header: StoreHeader,
        generation: Generation,
        entries: Vec<ShardEntry>,
        shards: Vec<Shard>,
        tombstones: &Tombstones,
    ) -> Self {
        let dead = entries.iter().map(|e| tombstones.of_shard(e.shard)).collect();
        let (live, blocks, terms) = (vec![], vec![], Terms::default());
        let (sums, owner_sums) = (None, None);
        let mut store =
            Self { paths, header, generation, entries, shards, dead, live, blocks, sums, owner_sums, terms };
        store.set_live();
        store
    }

    /// Maps a part of the generation; its bytes are checked when they are looked at.
    fn map_part(&self, part: Option<&Part>) -> Result<Option<Map>, StoreError> {
        let Some(part) = part else { return Ok(None) };
        let path = self.paths.root.join(&part.file);
        let map = Map::open(&path)?;
        if map.len() as u64 != part.bytes {
            return Err(StoreError::WrongLength { path, expected: part.bytes, found: map.len() as u64 });
        }
        Ok(Some(map))
    }

    /// Draws the blocks from the shards and their dead rows.
    fn set_live(&mut self) {
        let live = self.shards.iter().zip(&self.dead).map(|(shard, dead)| {
            let left = |row: &u32| dead.binary_search(row).is_err();
            (!dead.is_empty()).then(|| (0..shard.n_rows() as u32).filter(left).collect::<Vec<u32>>())
        });
        self.live = live.collect();
        let counts = self.shards.iter().zip(&self.live).map(|(s, live)| live.as_ref().map_or(s.n_rows(), Vec::len));
        let blocks = counts
            .enumerate()
            .flat_map(|(i, n)| (0..n).step_by(BLOCK_ROWS).map(move |start| (i, start..(start + BLOCK_ROWS).min(n))));
        self.blocks = blocks.collect();
    }

    /// The companion of this store in `row_type`: the same rows in the same shards and places, in fewer bits, deleted where
    /// this store's are.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is none, [`StoreError::Stale`] if it was made of other rows; those of opening it.
    pub fn companion(&self, row_type: RowType) -> Result<Self, StoreError> {
        let dir = self.paths.companion(row_type);
        let mut found = Self::open_any(&dir, None)?;
        let of = found.header.companion_of.as_ref();
        let is_ours = of.is_some_and(|of| of.uuid == self.header.uuid && of.rows_blake3 == self.rows_blake3());
        let rows_of = |s: &Self| s.entries.iter().map(|e| e.rows).collect::<Vec<_>>();
        if !is_ours || found.header.row_type != row_type || rows_of(&found) != rows_of(self) {
            let made_of =
                of.map_or_else(|| "no companion".to_owned(), |of| format!("{} of {}", of.rows_blake3, of.uuid));
            let expected = format!("{} of {}", self.rows_blake3(), self.header.uuid);
            return Err(StoreError::Stale { path: dir, expected, found: made_of, row_type: row_type.name() });
        }
        found.dead.clone_from(&self.dead);
        found.generation.n_rows = self.generation.n_rows;
        found.generation.n_dead = self.generation.n_dead;
        found.set_live();
        Ok(found)
    }

    /// What a companion of this generation is tied to.
    pub(crate) fn companion_of(&self) -> CompanionOf {
        CompanionOf {
            uuid: self.header.uuid.clone(),
            generation: self.generation.generation,
            manifest_blake3: self.generation.checksum.clone(),
            rows_blake3: self.rows_blake3(),
        }
    }

    /// What the store says of itself.
    pub fn header(&self) -> &StoreHeader {
        &self.header
    }

    /// The generation that is open.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// How numbers are kept.
    pub fn row_type(&self) -> RowType {
        self.header.row_type
    }

    /// Bytes of all shard and side files.
    pub fn len_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes + e.side_bytes).sum()
    }

    /// BLAKE3 of the generation's manifest, hex: it pins the hash of every shard and the deleted rows, so it pins every row.
    pub fn manifest_blake3(&self) -> &str {
        &self.generation.checksum
    }

    /// BLAKE3 over one line per shard, `rows blake3\n`, hex: it changes with the shards, not with deletions.
    pub fn rows_blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for entry in &self.entries {
            hasher.update(format!("{} {}\n", entry.rows, entry.blake3).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Shards, in the order of the rows.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// What the manifest says of each shard, in the order of the rows.
    pub fn entries(&self) -> &[ShardEntry] {
        &self.entries
    }

    /// The rows of shard `i` (of [`FeatureStore::n_shards`]) as they lie in the map, without a copy. The first call hashes the
    /// shard; later ones cost nothing.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`] if the shard is not the committed one; [`StoreError::Shape`] past the end.
    pub fn shard_view(&self, i: usize) -> Result<ShardView<'_>, StoreError> {
        let Some(shard) = self.shards.get(i) else {
            let expected = format!("below {}", self.shards.len());
            return Err(StoreError::Shape { what: "number of a shard", expected, found: i.to_string() });
        };
        Ok(ShardView { dead: &self.dead[i], ..shard.view()? })
    }

    /// The rows `rows` of shard `i` as they lie in the map; the others must not be looked at, since only what these are read
    /// from has been checked. A group of bytes that was checked once costs nothing later.
    ///
    /// # Errors
    /// As [`FeatureStore::shard_view`].
    ///
    /// # Panics
    /// If a row is behind the shard's end.
    pub fn shard_rows(
        &self,
        i: usize,
        rows: impl IntoIterator<Item = Range<usize>>,
    ) -> Result<ShardView<'_>, StoreError> {
        let Some(shard) = self.shards.get(i) else { return self.shard_view(i) };
        Ok(ShardView { dead: &self.dead[i], ..shard.view_of(rows)? })
    }

    /// Copies the rows `rows` of shard `i` and what `beside` says of them into `out`: for a few rows here and there, whose pages are not to
    /// become this process's. They are checked as [`FeatureStore::shard_rows`] does. Cost: a read of the page cache (or the disk) a row.
    ///
    /// # Errors
    /// As [`FeatureStore::shard_view`].
    ///
    /// # Panics
    /// If a row is behind the shard's end.
    pub fn copy_rows(&self, i: usize, rows: &[u32], beside: Beside, out: &mut RowCopies) -> Result<(), StoreError> {
        let Some(shard) = self.shards.get(i) else { return self.shard_view(i).map(drop) };
        shard.copy_rows(rows, beside, out)
    }

    /// Waits until the rows `rows` of shard `i` and what is known of them lie in the page cache, for whoever scans them soon.
    /// Nothing is checked or handed out.
    ///
    /// # Panics
    /// If there is no shard `i`, or a row is behind its end.
    pub fn read_ahead(&self, i: usize, rows: Range<usize>) {
        self.shards[i].read_ahead(rows);
    }

    /// Deleted rows of shard `i` before its row `row`, without touching its rows.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn n_dead_before(&self, i: usize, row: u32) -> usize {
        self.dead[i].partition_point(|&dead| dead < row)
    }

    /// Deleted rows of shard `i`, without touching its rows.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn n_dead(&self, i: usize) -> usize {
        self.dead[i].len()
    }

    /// Tells the system how the pages of shard `i` will be used: read ahead, or drop them after a scan of a store that is
    /// larger than memory. Nothing that is read changes.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn advise(&self, i: usize, advice: Advice) {
        self.shards[i].advise(advice);
    }

    /// All ids, in the order of the rows.
    pub fn ids(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.live_rows().map(|(view, row)| view.id(row))
    }

    /// Euclidean norms of all rows as stored, in their order.
    pub fn norms(&self) -> impl Iterator<Item = f32> + '_ {
        self.live_rows().map(|(view, row)| view.norm[row])
    }

    fn live_rows(&self) -> impl Iterator<Item = (ShardView<'_>, usize)> + '_ {
        self.shards.iter().zip(&self.dead).flat_map(|(shard, dead)| {
            let view = shard.unchecked();
            (0..view.n_rows).filter(move |&row| dead.binary_search(&(row as u32)).is_err()).map(move |row| (view, row))
        })
    }

    /// The exact sums per dataset, checked against their hash.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`], [`StoreError::Malformed`]; [`StoreError::Missing`] for a companion, whose store has them.
    pub fn dataset_sums(&self) -> Result<DatasetSums, StoreError> {
        let (Some(part), Some(map)) = (&self.generation.sums, &self.sums) else {
            let hint = "a companion has no sums of its own; ask its store";
            return Err(StoreError::Missing { path: self.paths.root.join("dataset_sums"), hint });
        };
        let path = self.paths.root.join(&part.file);
        DatasetSums::parse(&path, map, part, &self.header, self.generation.n_datasets as usize)
    }

    /// What the store was told of its datasets.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The exact sums per owner, checked against their hash; of nobody if the store knows no owners.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`], [`StoreError::Malformed`].
    pub fn owner_sums(&self) -> Result<OwnerSums, StoreError> {
        let owners = self.terms.owners();
        let (Some(part), Some(map)) = (&self.generation.owner_sums, &self.owner_sums) else {
            return Ok(OwnerSums { owners: Vec::new(), sums: DatasetSums::new(self.header.spec.dim) });
        };
        let path = self.paths.root.join(&part.file);
        let sums = DatasetSums::parse(&path, map, part, &self.header, owners.len())?;
        Ok(OwnerSums { owners, sums })
    }
}

impl FeatureReader for FeatureStore {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.header.spec
    }

    fn n_rows(&self) -> u64 {
        self.generation.n_rows
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_ids(&self, block_idx: usize) -> Result<Cow<'_, [ExampleId]>, StoreError> {
        let Some((shard_idx, range)) = self.blocks.get(block_idx).cloned() else {
            return Ok(self.block(block_idx)?.ids);
        };
        let view = self.shards[shard_idx].unchecked();
        Ok(match &self.live[shard_idx] {
            None => range.map(|row| view.id(row)).collect(),
            Some(live) => live[range].iter().map(|&row| view.id(row as usize)).collect(),
        })
    }

    fn rows_at(&self, block_idx: usize, places: &[u32]) -> Result<Features<'_>, StoreError> {
        let Some((shard_idx, range)) = self.blocks.get(block_idx).cloned() else { return self.block(block_idx) };
        let shard = &self.shards[shard_idx];
        let row = |&place: &u32| match &self.live[shard_idx] {
            None => (range.start + place as usize) as u32,
            Some(live) => live[range.clone()][place as usize],
        };
        if let [place] = places {
            // What a search of a graph asks for: its rows are far apart, and one may be borrowed.
            let row = row(place) as usize;
            let (rows, view) = (shard.rows(row..row + 1)?, shard.unchecked());
            return Ok(Features { ids: Cow::Owned(vec![view.id(row)]), rows });
        }
        let places: Vec<u32> = places.iter().map(row).collect();
        let (rows, view) = (shard.rows_at(&places)?, shard.unchecked());
        let ids = places.iter().map(|&row| view.id(row as usize)).collect();
        Ok(Features { ids: Cow::Owned(ids), rows })
    }

    /// Block `block_idx`: at most [`BLOCK_ROWS`] rows of one shard, borrowed from the map if they are f32, without padding and
    /// none of their shard is deleted.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`] if the shard is not the committed one; [`StoreError::Shape`] past the end.
    fn block(&self, block_idx: usize) -> Result<Features<'_>, StoreError> {
        let Some((shard_idx, range)) = self.blocks.get(block_idx).cloned() else {
            let expected = format!("below {}", self.blocks.len());
            return Err(StoreError::Shape { what: "number of a block", expected, found: block_idx.to_string() });
        };
        let shard = &self.shards[shard_idx];
        let view = shard.unchecked();
        // Rows first: they check the ids beside them.
        Ok(match &self.live[shard_idx] {
            None => {
                let rows = shard.rows(range.clone())?;
                Features { ids: Cow::Owned(range.map(|i| view.id(i)).collect()), rows }
            }
            Some(live) => {
                let live = &live[range];
                let rows = shard.rows_at(live)?;
                Features { ids: Cow::Owned(live.iter().map(|&i| view.id(i as usize)).collect()), rows }
            }
        })
    }
}

/// A companion is opened through its store.
pub(super) fn refuse_companion(paths: &Paths, header: &StoreHeader) -> Result<(), StoreError> {
    match header.companion_of {
        None => Ok(()),
        Some(_) => {
            let found = "a companion; open the store above";
            Err(StoreError::malformed(&paths.header(), "kind of store", "a store of its own", found))
        }
    }
}

/// Opens the newest generation, or the one that came meanwhile.
pub(super) fn newest_generation<T>(
    paths: &Paths,
    header: &StoreHeader,
    open: impl Fn(Generation) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut tried = None;
    for _ in 0..TRIES {
        let Some(generation) = Generation::newest(paths, header)? else {
            let log = paths.manifest();
            let found_rows = if log.exists() { Manifest::read(&log, header)?.n_rows() } else { 0 };
            let (path, expected_rows) = (paths.root.clone(), header.expected_rows);
            return Err(StoreError::Unfinished { path, expected_rows, found_rows });
        };
        let number = generation.generation;
        match open(generation) {
            // A newer generation came and its files were taken away meanwhile: open that one.
            Err(StoreError::Missing { .. }) if tried.is_none_or(|n| n < number) => tried = Some(number),
            other => return other,
        }
    }
    Err(StoreError::Missing { path: paths.root.clone(), hint: "it changes faster than it can be opened; try again" })
}

/// The shards of a generation and the rows that are deleted in them.
pub(super) fn read_generation(
    paths: &Paths,
    header: &StoreHeader,
    generation: &Generation,
) -> Result<(Vec<ShardEntry>, Tombstones), StoreError> {
    let log_path = paths.manifest();
    let log = Manifest::read(&log_path, header)?;
    let n_lines = log.n_lines_of(&log_path, generation)?;
    let entries = live_entries(&paths.generation(generation.generation), generation, &log.entries[..n_lines])?;
    let tombstones = Tombstones::of(paths, generation, &entries)?;
    Ok((entries, tombstones))
}

/// The lines of a generation's shards, in the order of its rows.
pub(crate) fn live_entries(
    path: &Path,
    generation: &Generation,
    lines: &[ShardEntry],
) -> Result<Vec<ShardEntry>, StoreError> {
    let mut entries = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for &[start, end] in &generation.shards {
        if start >= end || end as usize > lines.len() {
            let expected = format!("shards below {}", lines.len());
            return Err(StoreError::malformed(path, "shards", expected, format!("{start}..{end}")));
        }
        for n in start..end {
            if !seen.insert(n) {
                return Err(StoreError::malformed(path, "shards", "each shard once", format!("shard {n} twice")));
            }
            entries.push(lines[n as usize].clone());
        }
    }
    let n_rows: u64 = entries.iter().map(|e| u64::from(e.rows)).sum();
    if n_rows.checked_sub(generation.n_dead) != Some(generation.n_rows) {
        let expected = format!("{n_rows} rows of its shards");
        let found = format!("{} and {} deleted", generation.n_rows, generation.n_dead);
        return Err(StoreError::malformed(path, "rows", expected, found));
    }
    Ok(entries)
}
