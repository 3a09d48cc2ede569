//! Keeping an index: the bytes of each graph, and a header that says what it is and pins every byte.
//!
//! ```text
//! index/
//!   index.json          version, spec hash, settings, shapes, orphans, deleted examples, measured recall, length and SHA-256
//!                       of each file, and its own checksum ([`ascribe_store::features::sealed`]; not in version 2)
//!   graph-000.bin       sections of `hnsw/graph.rs`; mapped when the index is opened
//! ```
//!
//! The folder is made under another name and renamed; one that stood there is `NAME.old` between two renames, and is opened as that
//! if a kill came in between. Savers of one folder wait for each other; a reader that met one looks again. An index belongs to the examples that it was built over, not to their
//! places: rows that the store has lost since are skipped, a few that it got are looked at always ([`NEW_ROWS_SHARE`]).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, ExampleId, FeatureReader};
use ascribe_store::StoreError;
use ascribe_store::atomic::{create_dirs, read_capped, sync_dir, write_atomic};
use ascribe_store::features::sealed::{self, NO_CHECKSUM};
use ascribe_store::mmap::Map;
use serde::{Deserialize, Serialize};

use super::graph::{Graph, Shape};
use super::points::Projection;
use super::{HnswIndex, HnswParams, INDEX_FORMAT_VERSION, Range, RecallCurve, v1};
use crate::candidates::Blocks;
use crate::error::{IndexError, RowsOf};

pub(super) const HEADER: &str = "index.json";
pub(super) const BUILD_AGAIN: &str = "build the index again";
/// The version whose header has no checksum.
const UNSEALED: u32 = 2;
/// A header of ten million orphans is shorter.
const HEADER_MAX_BYTES: u64 = 256 << 20;
pub(super) const FILE_MAX_BYTES: u64 = 1 << 40;
/// Of a store's rows so many may be newer than the index: each of them costs every search one exact score.
const NEW_ROWS_SHARE: f64 = 0.05;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format_version: u32,
    spec_sha256: Digest,
    n_rows: u64,
    params: HnswParams,
    orphans: Vec<u64>,
    deleted: Vec<u64>,
    recall: RecallCurve,
    graphs: Vec<GraphPart>,
    /// Of the header itself; none in version 2.
    #[serde(default)]
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphPart {
    shape: Shape,
    file: Part,
}

/// A file that the header pins.
#[derive(Serialize, Deserialize)]
pub(super) struct Part {
    pub name: String,
    pub bytes: u64,
    pub sha256: Digest,
}

impl<'r, R: FeatureReader> HnswIndex<'r, R> {
    /// Keeps the index in the folder `dir`, in place of one that is there.
    ///
    /// # Errors
    /// [`IndexError::Store`] with what the file system said. The old folder stays unless everything was written.
    pub fn save(&self, dir: &Path) -> Result<(), IndexError> {
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_dirs(parent)?;
        let _turn = turn(parent)?;
        let (tmp, old) = (beside(dir, "tmp"), beside(dir, "old"));
        restore(dir, &old)?;
        remove_folder(&tmp)?;
        create_dirs(&tmp)?;
        let result = self.save_into(&tmp).and_then(|()| {
            let rename = |from: &Path, to: &Path| match fs::rename(from, to) {
                Err(source) => Err(StoreError::io("rename", to, source)),
                Ok(()) => Ok(()),
            };
            if dir.exists() {
                rename(dir, &old)?;
            }
            rename(&tmp, dir)?;
            sync_dir(parent)?;
            Ok(remove_folder(&old)?)
        });
        if result.is_err() {
            // The first error is the one that matters.
            let _ = fs::remove_dir_all(&tmp);
            let _ = restore(dir, &old);
        }
        result
    }

    /// True if there is an index in `dir`, whole or as the last saver left it.
    pub fn is_kept(dir: &Path) -> bool {
        dir.exists() || beside(dir, "old").exists()
    }

    fn save_into(&self, dir: &Path) -> Result<(), IndexError> {
        let mut graphs = Vec::with_capacity(self.ranges.len());
        for (i, range) in self.ranges.iter().enumerate() {
            let (name, bytes) = (name_of(i), range.graph.bytes());
            write_atomic(&dir.join(&name), bytes)?;
            let file = Part { name, bytes: bytes.len() as u64, sha256: Digest::of(bytes) };
            graphs.push(GraphPart { shape: *range.graph.shape(), file });
        }
        let header = Header {
            format_version: INDEX_FORMAT_VERSION,
            spec_sha256: self.reader.spec().hash(),
            n_rows: self.reader.n_rows(),
            params: self.params,
            orphans: self.orphan_ids()?,
            deleted: self.deleted.iter().map(|id| id.to_u64()).collect(),
            recall: self.curve.clone(),
            graphs,
            checksum: NO_CHECKSUM.to_owned(),
        };
        Ok(sealed::write(&dir.join(HEADER), &header)?)
    }

    /// Examples of the orphans.
    fn orphan_ids(&self) -> Result<Vec<u64>, IndexError> {
        let (_, ids) = Blocks::of(self.reader)?;
        Ok(self.orphans.iter().map(|&row| ids[row as usize].to_u64()).collect())
    }

    /// Opens the index in `dir` over `reader`, which must have the spec that it was built for. Graphs are mapped, hashed and
    /// looked at whole once; rows are not read.
    ///
    /// # Errors
    /// [`IndexError::SpecMismatch`] for another spec, or too many rows that the index does not know;
    /// [`IndexError::Store`] for a missing, cut, changed or newer file; those of the reader.
    pub fn open(reader: &'r R, dir: &Path) -> Result<Self, IndexError> {
        let look = || {
            let (place, bytes) = header_bytes(dir)?;
            Self::open_at(reader, &place, &bytes)
        };
        look().or_else(|error| {
            // Another index may have taken the place while this one was looked at; while nobody saves it stands still.
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match turn(parent) {
                Ok(_turn) => look(),
                Err(_) => Err(error),
            }
        })
    }

    fn open_at(reader: &'r R, dir: &Path, bytes: &[u8]) -> Result<Self, IndexError> {
        let path = dir.join(HEADER);
        let found_version = version(&path, bytes)?;
        match found_version {
            1 => return v1::open(reader, dir, &path, bytes),
            UNSEALED | INDEX_FORMAT_VERSION => {}
            found => {
                let expected = INDEX_FORMAT_VERSION;
                return Err(StoreError::WrongVersion { path, format: "index", expected, found }.into());
            }
        }
        let header: Header = serde_json::from_slice(bytes).map_err(|error| bad_header(&path, error))?;
        match found_version {
            UNSEALED if header.checksum.is_empty() => {}
            UNSEALED => {
                return Err(StoreError::malformed(&path, "checksum", "none in version 2", header.checksum).into());
            }
            _ => sealed::check(&path, bytes, &header.checksum)?,
        }
        let expected = RowsOf { spec: reader.spec().hash(), n_rows: reader.n_rows() };
        let found = RowsOf { spec: header.spec_sha256, n_rows: header.n_rows };
        if expected.spec != found.spec {
            return Err(IndexError::SpecMismatch { path, expected, found });
        }
        header.params.check()?;
        let projection = Projection::new(reader.spec().dim, header.params.point_dim, header.params.seed);
        let mut graphs = Vec::with_capacity(header.graphs.len());
        for (i, part) in header.graphs.iter().enumerate() {
            let GraphPart { shape, file } = part;
            let map = check_part(dir, file, &name_of(i))?;
            let bad = |(expected, found): (&'static str, String)| {
                IndexError::from(StoreError::malformed(&dir.join(&file.name), "graph", expected, found))
            };
            if shape.point_dim != projection.point_dim {
                return Err(bad(("points as long as the settings say", shape.point_dim.to_string())));
            }
            graphs.push(Graph::from_map(*shape, map).map_err(bad)?);
        }
        let (blocks, ids) = Blocks::of(reader)?;
        let known = Known { graphs, orphans: header.orphans };
        let Some((ranges, orphans)) = known.placed(&ids) else {
            return Err(IndexError::SpecMismatch { path, expected, found });
        };
        if !ranges.is_sorted_by(|a, b| a.max_norm >= b.max_norm) {
            return Err(StoreError::malformed(&path, "graphs", "longest rows first", "another order").into());
        }
        let mut index = Self::assemble(reader, header.params, ranges, orphans, blocks, projection);
        index.deleted = header.deleted.into_iter().map(ExampleId::from_u64).collect::<BTreeSet<_>>();
        index.curve = header.recall;
        Ok(index)
    }
}

/// What an index knows, before its rows are found in a store.
struct Known {
    graphs: Vec<Graph>,
    orphans: Vec<u64>,
}

impl Known {
    /// Finds every node's row among the ids of a store; rows that the index does not know become orphans. None if they are
    /// too many.
    fn placed(self, ids: &[ExampleId]) -> Option<(Vec<Range>, Vec<u64>)> {
        let mut is_known = vec![false; ids.len()];
        let same = |graph: &Graph| {
            let stands = |(&row, &id): (&u32, &u64)| ids.get(row as usize).is_some_and(|found| found.to_u64() == id);
            graph.rows().iter().zip(graph.ids()).all(stands)
        };
        let by_id: Option<HashMap<u64, u32>> = (!self.graphs.iter().all(same))
            .then(|| ids.iter().enumerate().map(|(row, id)| (id.to_u64(), row as u32)).collect());
        let mut ranges = Vec::with_capacity(self.graphs.len());
        for graph in self.graphs {
            let rows: Vec<u32> = match &by_id {
                None => graph.rows().to_vec(),
                Some(by_id) => graph.ids().iter().map(|id| by_id.get(id).copied().unwrap_or(Range::GONE)).collect(),
            };
            rows.iter().filter(|&&row| row != Range::GONE).for_each(|&row| is_known[row as usize] = true);
            ranges.push(Range::new(graph, rows));
        }
        let n_new = is_known.iter().filter(|&&known| !known).count();
        if n_new as f64 > NEW_ROWS_SHARE * ids.len() as f64 {
            return None;
        }
        let orphans: BTreeSet<u64> = self.orphans.into_iter().collect();
        let is_orphan = |row: &usize| !is_known[*row] || orphans.contains(&ids[*row].to_u64());
        let orphans = (0..ids.len()).filter(is_orphan).map(|row| row as u64).collect();
        Some((ranges, orphans))
    }
}

/// The right to change what lies in `parent`, waited for: a lock of the operating system on the folder itself, so that nothing stays
/// behind. Systems that cannot open a folder have none, and no two savers at once.
fn turn(parent: &Path) -> Result<Option<fs::File>, StoreError> {
    if cfg!(windows) {
        return Ok(None);
    }
    let locked = fs::File::open(parent).and_then(|folder| folder.lock().map(|()| folder));
    locked.map(Some).map_err(|source| StoreError::io("lock", parent, source))
}

/// `dir` with an ending.
fn beside(dir: &Path, ending: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Puts back what a saver put away before it was killed; takes it away where that saver's own index is in its place.
fn restore(dir: &Path, old: &Path) -> Result<(), StoreError> {
    match (dir.exists(), old.exists()) {
        (_, false) => Ok(()),
        (true, true) => remove_folder(old),
        (false, true) => fs::rename(old, dir).map_err(|source| StoreError::io("rename", dir, source)),
    }
}

/// The header of the index in `dir`, or of the one that was put away for a saver that never came to its end.
fn header_bytes(dir: &Path) -> Result<(PathBuf, Vec<u8>), StoreError> {
    let read = |dir: &Path| {
        let bytes = read_capped(&dir.join(HEADER), HEADER_MAX_BYTES, BUILD_AGAIN)?;
        Ok((dir.to_path_buf(), bytes))
    };
    match read(dir) {
        Err(StoreError::Missing { path, hint }) if !dir.exists() => {
            let missing = |error| match error {
                StoreError::Missing { .. } => StoreError::Missing { path, hint },
                other => other,
            };
            read(&beside(dir, "old")).map_err(missing)
        }
        other => other,
    }
}

fn name_of(graph: usize) -> String {
    format!("graph-{graph:03}.bin")
}

/// Reads the version before anything else, so that a newer file is called newer and not broken.
fn version(path: &Path, bytes: &[u8]) -> Result<u32, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    Ok(serde_json::from_slice::<Version>(bytes).map_err(|error| bad_header(path, error))?.format_version)
}

pub(super) fn bad_header(path: &Path, error: serde_json::Error) -> StoreError {
    StoreError::malformed(path, "index header", "its JSON form", error)
}

/// Maps a pinned file and compares its bytes with the header.
pub(super) fn check_part(dir: &Path, part: &Part, name: &str) -> Result<Map, StoreError> {
    let path = dir.join(name);
    if part.name != name {
        return Err(StoreError::malformed(&dir.join(HEADER), "name of a file", name, &part.name));
    }
    let found_bytes = fs::metadata(&path).map_or(0, |found| found.len());
    if found_bytes > FILE_MAX_BYTES {
        return Err(StoreError::WrongLength { path, expected: part.bytes, found: found_bytes });
    }
    let map = Map::open(&path)?;
    if map.len() as u64 != part.bytes {
        return Err(StoreError::WrongLength { path, expected: part.bytes, found: map.len() as u64 });
    }
    let found = Digest::of(&map);
    if found != part.sha256 {
        let (expected, found) = (part.sha256.to_string(), found.to_string());
        return Err(StoreError::WrongChecksum { path, expected, found });
    }
    Ok(map)
}

fn remove_folder(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", dir, error)),
        _ => Ok(()),
    }
}
