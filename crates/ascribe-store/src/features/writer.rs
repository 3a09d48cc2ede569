//! Writing: rows in, shards committed one by one, resumable after a kill at any point.

use std::path::Path;

use ascribe_core::{ExampleId, FeatureSink, FeatureSpec, RowType};
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

use super::appender::Appender;
use super::files;
use super::fit::{first_bad_row, fits, limit};
use super::generation::{Generation, current_line, remove_old};
use super::layout::{Paths, StoreHeader, parse_json};
use super::manifest::ShardEntry;
use super::reader::FeatureStore;
use super::sealed::{self, NO_CHECKSUM};
use super::seen::Seen;
use super::sums::DatasetSums;
use super::terms::{DatasetTerms, Terms};
use super::tombstones::Tombstones;
use super::{FEATURES_FORMAT_VERSION, ShardView};
use crate::atomic::{create_dirs, read_capped, sync_dir, write_atomic};
use crate::error::StoreError;
use crate::limits::{DATASETS_MAX, HEADER_MAX_BYTES};
use crate::lock::Lock;

/// Takes rows and commits them shard by shard. One per store at a time.
#[derive(Debug)]
pub struct FeatureWriter {
    appender: Appender,
    /// The generation that is built on, and how the one that is built is called.
    base: Generation,
    made_by: &'static str,
    /// The generation is there already: nothing is left to do.
    is_sealed: bool,
    /// Rows that this build or append brings.
    target_rows: u64,
    seen: Seen,
    /// What is to be known of the datasets.
    terms: Vec<DatasetTerms>,
    n_committed: u64,
}

/// `PENDING.json`: an append that was begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Pending {
    format_version: u32,
    uuid: String,
    /// The generation that the append will be.
    generation: u64,
    pub expected_rows: u64,
    checksum: String,
}

impl Pending {
    /// The append that is under way, if there is one.
    pub fn read(paths: &Paths, newest: &Generation) -> Result<Option<Self>, StoreError> {
        let path = paths.pending();
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_capped(&path, HEADER_MAX_BYTES, "")?;
        let found: Self = parse_json(&path, "pending append", &bytes)?;
        sealed::check(&path, &bytes, &found.checksum)?;
        if found.uuid != newest.uuid {
            return Err(StoreError::malformed(&path, "store", &newest.uuid, &found.uuid));
        }
        if found.generation <= newest.generation {
            // Killed between its commit and the removal of this file.
            files::remove(&path)?;
            return Ok(None);
        }
        Ok(Some(found))
    }
}

impl FeatureWriter {
    /// Begins the store at `dir`, or goes on with it.
    ///
    /// `expected_rows` is how many rows the finished store has; [`FeatureSink::n_committed`] says how many of them are
    /// there already, and the caller pushes the others in the same order. A leftover of a kill (unnamed files, a torn
    /// manifest line, shards without a line) is removed here. On a finished store this succeeds with all rows committed.
    ///
    /// # Errors
    /// [`StoreError::Locked`] beside another writer; [`StoreError::SpecMismatch`] or [`StoreError::SettingMismatch`] if
    /// the store was begun differently; [`StoreError::WrongVersion`] if an older program began it and did not finish;
    /// [`StoreError::Malformed`], [`StoreError::Missing`], [`StoreError::WrongLength`], [`StoreError::WrongChecksum`] if a
    /// committed shard is damaged; those of the file system.
    pub fn create_or_resume(
        dir: &Path,
        spec: &FeatureSpec,
        row_type: RowType,
        rows_per_shard: u32,
        expected_rows: u64,
    ) -> Result<Self, StoreError> {
        Self::begin(dir, StoreHeader::new(spec, row_type, rows_per_shard, expected_rows))
    }

    /// The same for a header that is made already.
    pub(crate) fn begin(dir: &Path, mut header: StoreHeader) -> Result<Self, StoreError> {
        header.check()?;
        let paths = Paths::new(dir);
        create_dirs(&paths.shards())?;
        create_dirs(&paths.sides())?;
        let lock = Lock::take(paths.lock())?;
        files::remove_tmp(&paths.root)?;
        if paths.header().exists() {
            let found = StoreHeader::read(&paths)?;
            found.expect_settings(&paths.header(), &header)?;
            header = found;
        } else {
            header.write(&paths)?;
        }
        let newest = Generation::newest(&paths, &header)?;
        if newest.is_none() && header.is_v1() {
            let (path, expected) = (paths.header(), FEATURES_FORMAT_VERSION);
            return Err(StoreError::WrongVersion { path, format: "feature store", expected, found: 1 });
        }
        let is_sealed = newest.is_some();
        if let Some(newest) = newest.as_ref().filter(|_| !header.is_v1() && !paths.current().exists()) {
            // Killed between the first manifest and this.
            write_atomic(&paths.current(), &current_line(newest.generation))?;
        }
        let target_rows = header.expected_rows;
        let base = newest.unwrap_or_else(|| Generation::before(&header));
        Self::on(Appender::open(paths, header, &base, true, lock)?, base, "build", target_rows, is_sealed)
    }

    /// Goes on with a finished store: `n_rows` more rows, which make its next generation. The store stays readable as it is
    /// until [`FeatureWriter::finish`]; after a kill the same call resumes, [`FeatureSink::n_committed`] counting the new
    /// rows.
    ///
    /// # Errors
    /// As [`FeatureWriter::create_or_resume`]; [`StoreError::Unfinished`] if the store is not finished,
    /// [`StoreError::SettingMismatch`] if an append of another number of rows is under way.
    pub fn append(dir: &Path, spec: &FeatureSpec, n_rows: u64) -> Result<Self, StoreError> {
        let paths = Paths::new(dir);
        let (header, base, lock) = open_to_change(&paths)?;
        header.expect_spec(&paths.header(), spec)?;
        match Pending::read(&paths, &base)? {
            Some(pending) if pending.expected_rows != n_rows => {
                let (path, setting) = (paths.pending(), "rows to append");
                let (expected, found) = (n_rows.to_string(), pending.expected_rows.to_string());
                return Err(StoreError::SettingMismatch { path, setting, expected, found });
            }
            Some(_) => {}
            None => {
                // Lines behind the generation are no append's: a compaction was killed. They go before the append is announced.
                drop(Appender::open(paths.clone(), header.clone(), &base, false, lock)?);
                let lock = Lock::take(paths.lock())?;
                let (uuid, generation) = (header.uuid.clone(), base.generation + 1);
                let checksum = NO_CHECKSUM.to_owned();
                let pending = Pending {
                    format_version: FEATURES_FORMAT_VERSION,
                    uuid,
                    generation,
                    expected_rows: n_rows,
                    checksum,
                };
                sealed::write(&paths.pending(), &pending)?;
                return Self::on(Appender::open(paths, header, &base, true, lock)?, base, "append", n_rows, false);
            }
        }
        Self::on(Appender::open(paths, header, &base, true, lock)?, base, "append", n_rows, false)
    }

    fn on(
        mut appender: Appender,
        base: Generation,
        made_by: &'static str,
        target_rows: u64,
        is_sealed: bool,
    ) -> Result<Self, StoreError> {
        let mut seen = Seen::new();
        // A companion has no sums of its own.
        let mut sums = if appender.header.companion_of.is_some() { None } else { Some(DatasetSums::new(0)) };
        let live = appender.entries_of(&base);
        if is_sealed {
            // Nothing is left to write, but whoever asks for a whole store must not get a damaged one.
            for entry in &live {
                appender.shard(entry)?.check_bytes()?;
                super::shard::check_len(&appender.paths.side(entry.shard), entry.side_bytes)?;
            }
        } else {
            let dead = Tombstones::of(&appender.paths, &base, &live)?;
            for entry in &live {
                let (shard, dead) = (appender.shard(entry)?, dead.of_shard(entry.shard));
                let ids = shard.unchecked().ids.iter().enumerate();
                seen.extend(ids.filter(|(row, _)| dead.binary_search(&(*row as u32)).is_err()).map(|(_, &id)| id));
            }
            if let Some(sums) = &mut sums {
                *sums = DatasetSums::of(&appender.paths, &appender.header, &base)?;
            }
            for entry in &appender.added {
                take_committed(&appender, entry, &mut seen, sums.as_mut())?;
            }
        }
        if let Some(sums) = sums {
            appender.sum_up(sums);
        }
        let n_committed = if is_sealed { target_rows } else { appender.n_added() };
        let terms = Vec::new();
        Ok(Self { appender, base, made_by, is_sealed, target_rows, seen, terms, n_committed })
    }

    /// The same with changes to what the store knows of its datasets, committed with the rows. They are not kept over a kill: whoever
    /// resumes gives them again.
    #[must_use]
    pub fn with_terms(mut self, changes: Vec<DatasetTerms>) -> Self {
        self.terms = changes;
        self
    }

    /// The same with another length of rows (4 MiB if this is not called) from which on a shard is written past the page cache, where the
    /// file system allows that: faster and without pushing out what else is cached, but whoever reads the shard first fetches it from
    /// the disk. `usize::MAX` writes all of them plainly. The bytes are the same.
    #[must_use]
    pub fn direct_from(mut self, min_bytes: usize) -> Self {
        self.appender.direct_min_bytes = min_bytes;
        self
    }

    /// Seals the store: exact sums per dataset and the manifest of the generation. Returns the store, open for reading.
    ///
    /// On a store that is sealed already this only opens it.
    ///
    /// # Errors
    /// [`StoreError::Unfinished`] if rows are missing; those of reading back and of the file system.
    pub fn finish(mut self) -> Result<FeatureStore, StoreError> {
        self.settle()?;
        let (log_digest, sums) = (self.appender.log_digest()?, self.appender.take_sums());
        let (paths, header) = (&self.appender.paths, &self.appender.header);
        if self.n_committed != self.target_rows {
            return Err(StoreError::Unfinished {
                path: paths.root.clone(),
                expected_rows: self.target_rows,
                found_rows: self.n_taken(),
            });
        }
        if !self.is_sealed {
            let is_first = self.made_by == "build";
            let mut next = if is_first { Generation::before(header) } else { self.base.next(self.made_by) };
            let numbers: Vec<u32> = next.shard_numbers().chain(self.appender.added.iter().map(|e| e.shard)).collect();
            next.set_shards(numbers);
            next.n_rows += self.target_rows;
            (next.log_bytes, next.log_blake3) = log_digest;
            if let Some(sums) = &sums {
                next.n_datasets = sums.counts.len() as u32;
                next.sums = Some(sums.write(paths, header, next.generation)?);
                let mut terms = Terms::of(paths, header, &self.base)?;
                self.terms.iter().try_for_each(|change| terms.set(change))?;
                terms.write(paths, header, &mut next, sums)?;
            }
            next.commit(paths)?;
            if !is_first {
                files::remove(&paths.pending())?;
                remove_old(paths, header, &next)?;
            }
        }
        FeatureStore::open_any(&paths.root, Some(&header.spec))
    }

    /// Rows taken so far: committed, on their way to disk, or waiting for their shard to fill.
    pub fn n_taken(&self) -> u64 {
        self.n_committed + self.appender.n_under_way() + self.appender.buffer.n_rows() as u64
    }

    /// Waits until every shard that was begun is committed.
    fn settle(&mut self) -> Result<(), StoreError> {
        let result = self.appender.settle();
        if !self.is_sealed {
            self.n_committed = self.appender.n_added();
        }
        result
    }

    /// Refuses a block as a whole, before any of its rows is taken; its numbers only if they are not looked at when they are coded. The ids
    /// of one that is not refused are taken.
    fn check_block(
        &mut self,
        ids: &[ExampleId],
        rows: ArrayView2<'_, f32>,
        are_numbers: bool,
    ) -> Result<(), StoreError> {
        let dim = self.appender.header.spec.dim;
        let expected = format!("[{}, {dim}]", ids.len());
        if rows.dim() != (ids.len(), dim) {
            let found = format!("{:?}", rows.shape());
            return Err(StoreError::Shape { what: "block of rows", expected, found });
        }
        let n_rows = self.n_taken() + ids.len() as u64;
        if n_rows > self.target_rows {
            let limit = self.target_rows;
            return Err(StoreError::TooLarge { what: "rows of the store", limit, found: n_rows });
        }
        let bad_id = self.take_ids(ids).err();
        // The first bad row is told, whatever is bad of it.
        let n_checked = bad_id.as_ref().map_or(if are_numbers { ids.len() } else { 0 }, |(i, _)| *i);
        let checked = rows.slice(ndarray::s![..n_checked, ..]);
        if let Some(row) = first_bad_row(checked, limit(self.appender.header.row_type)) {
            if bad_id.is_none() {
                self.seen.remove_all(ids);
            }
            return Err(self.refuse_row(row, ids, rows));
        }
        bad_id.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Takes the ids of a block, or none: the first that is bad.
    fn take_ids(&mut self, ids: &[ExampleId]) -> Result<(), (usize, StoreError)> {
        let first_row = self.first_row_of_block();
        let beyond = ids.iter().position(|id| id.dataset >= DATASETS_MAX);
        let fine = beyond.unwrap_or(ids.len());
        if let Err(i) = self.seen.insert_all(&ids[..fine]) {
            return Err((i, StoreError::DuplicateExample { id: ids[i], row: first_row + i as u64 }));
        }
        let Some(i) = beyond else { return Ok(()) };
        self.seen.remove_all(&ids[..fine]);
        let (limit, found) = (u64::from(DATASETS_MAX) - 1, u64::from(ids[i].dataset));
        Err((i, StoreError::TooLarge { what: "ordinal of a dataset", limit, found }))
    }

    /// Row number of the first row of a block that is pushed now.
    fn first_row_of_block(&self) -> u64 {
        self.appender.first_row() + self.n_taken()
    }

    /// What is bad of row `i` of a block, which has a number that does not fit.
    fn refuse_row(&self, i: usize, ids: &[ExampleId], rows: ArrayView2<'_, f32>) -> StoreError {
        let limit = limit(self.appender.header.row_type);
        let bad = rows.row(i).into_iter().copied().enumerate().find(|&(_, x)| !fits(x, limit));
        let (column, value) = bad.expect("a row is refused for a number of it");
        self.refuse_value(self.first_row_of_block() + i as u64, ids[i], column, value)
    }

    fn refuse_value(&self, row: u64, id: ExampleId, column: usize, value: f32) -> StoreError {
        if value.is_finite() {
            let row_type = self.appender.header.row_type.name();
            return StoreError::OutOfRange { row, id, column, value, row_type };
        }
        let columns = &self.appender.header.spec.columns;
        let group = columns.iter().find(|c| (c.start..c.start + c.len).contains(&column));
        let module = group.map_or("no module", |c| c.name.as_str());
        let place = format!("row {row} (example {id}), column {column} (module `{module}`)");
        StoreError::NotFinite { place, found: value.to_string() }
    }

    /// Takes rows of the store that is converted, byte for byte if `raw`; `lost` is what each had lost before.
    pub(crate) fn push_converted(
        &mut self,
        ids: &[ExampleId],
        rows: ArrayView2<'_, f32>,
        lost: Option<&[f32]>,
    ) -> Result<(), StoreError> {
        if self.appender.is_full() {
            // An earlier commit failed and the caller tries again all the same.
            self.commit_shard()?;
        }
        let standard = rows.as_standard_layout();
        // Numbers are looked at once where they are coded, if a bad one can still be told before any shard has begun its way.
        let is_split = ids.len() > self.n_rows_of_shard_left();
        self.check_block(ids, standard.view(), is_split)?;
        let mut done = 0;
        while done < ids.len() {
            let part = done..(done + self.n_rows_of_shard_left().max(1)).min(ids.len());
            let rows = standard.slice(ndarray::s![part.clone(), ..]);
            let lost = lost.map(|lost| &lost[part.clone()]);
            self.appender.begin_shard(self.target_rows - self.n_taken());
            if let Err(row) = self.appender.buffer.push(&ids[part.clone()], rows, &self.appender.header, lost) {
                self.seen.remove_all(&ids[done..]);
                return Err(self.refuse_row(done + row, ids, standard.view()));
            }
            if let Err(error) = self.after_push() {
                self.seen.remove_all(&ids[part.end..]);
                return Err(error);
            }
            done = part.end;
        }
        Ok(())
    }

    /// Rows that the shard which fills has room for.
    fn n_rows_of_shard_left(&self) -> usize {
        (self.appender.header.rows_per_shard as usize).saturating_sub(self.appender.buffer.n_rows())
    }

    /// Takes row `i` of a shard of the same row type and width as it is.
    pub(crate) fn push_stored(&mut self, view: &ShardView<'_>, i: usize) -> Result<(), StoreError> {
        let id = view.id(i);
        if !self.seen.insert(id.to_u64()) {
            let row = self.appender.first_row() + self.n_taken();
            return Err(StoreError::DuplicateExample { id, row });
        }
        self.appender.begin_shard(self.target_rows.saturating_sub(self.n_taken()));
        self.appender.buffer.push_stored(view, i, &self.appender.header);
        self.after_push()
    }

    fn after_push(&mut self) -> Result<(), StoreError> {
        let is_last = self.n_taken() == self.target_rows;
        if is_last || self.appender.is_full() {
            self.commit_shard()?;
        }
        if is_last { self.settle() } else { Ok(()) }
    }

    /// Commits what waits for its shard to fill: the next row begins another shard.
    pub(crate) fn commit_shard(&mut self) -> Result<(), StoreError> {
        let result = self.appender.commit_shard();
        self.n_committed = self.appender.n_added();
        result
    }

    pub(crate) fn header(&self) -> &StoreHeader {
        &self.appender.header
    }
}

impl FeatureSink for FeatureWriter {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.appender.header.spec
    }

    fn n_committed(&self) -> u64 {
        self.n_committed
    }

    /// Takes rows; a shard that is full is written by a thread of its own while the next one fills.
    ///
    /// # Errors
    /// A block with a bad row ([`StoreError::NotFinite`], [`StoreError::OutOfRange`], [`StoreError::DuplicateExample`],
    /// [`StoreError::Shape`], [`StoreError::TooLarge`]) is refused as a whole. What the writing of an earlier shard failed of is
    /// told when the next one is full, at the latest by [`FeatureWriter::finish`]: after [`StoreError::DiskFull`] or
    /// [`StoreError::Io`] drop the writer: shards committed before stay, and a new writer goes on from there.
    fn push(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) -> Result<(), StoreError> {
        self.push_converted(ids, rows, None)
    }
}

/// Header, newest generation and lock of a finished store that is to be changed.
pub(crate) fn open_to_change(paths: &Paths) -> Result<(StoreHeader, Generation, Lock), StoreError> {
    let header = StoreHeader::read(paths)?;
    if header.is_v1() {
        let (path, expected) = (paths.header(), FEATURES_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "feature store", expected, found: 1 });
    }
    if header.companion_of.is_some() {
        return Err(StoreError::malformed(&paths.header(), "kind of store", "a store of its own", "a companion"));
    }
    let lock = Lock::take(paths.lock())?;
    files::remove_tmp(&paths.root)?;
    let Some(newest) = Generation::newest(paths, &header)? else {
        let (path, expected_rows) = (paths.root.clone(), header.expected_rows);
        return Err(StoreError::Unfinished { path, expected_rows, found_rows: 0 });
    };
    // A kill between a commit and this leaves files that nothing names.
    remove_old(paths, &header, &newest)?;
    sync_dir(&paths.root)?;
    Ok((header, newest, lock))
}

/// Rows that a killed writer had committed: their bytes are checked, their ids and sums taken up.
fn take_committed(
    appender: &Appender,
    entry: &ShardEntry,
    seen: &mut Seen,
    sums: Option<&mut DatasetSums>,
) -> Result<(), StoreError> {
    let shard = appender.shard(entry)?;
    let view = shard.view()?;
    seen.extend(view.ids.iter().copied());
    super::shard::check_len(&appender.paths.side(entry.shard), entry.side_bytes)?;
    if let Some(sums) = sums {
        sums.add_stored(&view);
    }
    Ok(())
}
