//! Keeping an index: the library's dump of each graph, and a header that says what it is and pins every byte.
//!
//! ```text
//! index/
//!   index.json                  version, spec hash, rows, settings, orphans, and length and SHA-256 of each file
//!   graph-000.hnsw.graph        neighbours (hnsw_rs 0.3.5, its format 4)
//!   graph-000.hnsw.data         points
//! ```
//!
//! The folder is made under another name and renamed. The sums guard against damage, not against malice: the library
//! believes what it reads, so an index from a stranger is to be built again rather than opened.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, FeatureReader};
use ascribe_store::StoreError;
use ascribe_store::atomic::{create_dirs, read_capped, sync_dir, write_atomic};
use hnsw_rs::api::AnnT;
use hnsw_rs::hnswio::HnswIo;
use hnsw_rs::prelude::DistL2;
use serde::{Deserialize, Serialize};

use super::points::Projection;
use super::{Graph, HnswIndex, HnswParams, INDEX_FORMAT_VERSION};
use crate::candidates::RowMap;
use crate::error::{IndexError, RowsOf};

const HEADER: &str = "index.json";
const LIBRARY: &str = "hnsw_rs 0.3.5";
const BUILD_AGAIN: &str = "build the index again";
/// A header of ten million orphans is shorter.
const HEADER_MAX_BYTES: u64 = 256 << 20;
const FILE_MAX_BYTES: u64 = 64 << 30;

#[derive(Serialize, Deserialize)]
struct Header {
    format_version: u32,
    library: String,
    spec_sha256: Digest,
    n_rows: u64,
    params: HnswParams,
    orphans: Vec<u64>,
    graphs: Vec<[Part; 2]>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    bytes: u64,
    sha256: Digest,
}

impl<'r, R: FeatureReader> HnswIndex<'r, R> {
    /// Keeps the index in the folder `dir`, in place of one that is there.
    ///
    /// # Errors
    /// [`IndexError::Store`] with what the file system said. The old folder stays unless everything was written.
    pub fn save(&self, dir: &Path) -> Result<(), IndexError> {
        let mut tmp = dir.as_os_str().to_owned();
        tmp.push(".tmp");
        let tmp = PathBuf::from(tmp);
        remove_folder(&tmp)?;
        create_dirs(&tmp)?;
        let result = self.save_into(&tmp).and_then(|()| {
            remove_folder(dir)?;
            fs::rename(&tmp, dir).map_err(|source| StoreError::io("rename", dir, source))?;
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(sync_dir(parent)?)
        });
        if result.is_err() {
            // The first error is the one that matters.
            let _ = fs::remove_dir_all(&tmp);
        }
        result
    }

    fn save_into(&self, dir: &Path) -> Result<(), IndexError> {
        let mut graphs = Vec::with_capacity(self.graphs.len());
        for (i, graph) in self.graphs.iter().enumerate() {
            let base = format!("graph-{i:03}");
            dump(graph, dir, &base)?;
            graphs.push([part(dir, format!("{base}.hnsw.graph"))?, part(dir, format!("{base}.hnsw.data"))?]);
        }
        let header = Header {
            format_version: INDEX_FORMAT_VERSION,
            library: LIBRARY.to_owned(),
            spec_sha256: self.reader.spec().hash(),
            n_rows: self.reader.n_rows(),
            params: self.params,
            orphans: self.orphans.clone(),
            graphs,
        };
        let path = dir.join(HEADER);
        let json = serde_json::to_vec_pretty(&header)
            .map_err(|error| StoreError::malformed(&path, "index header", "a value", error))?;
        Ok(write_atomic(&path, &json)?)
    }

    /// Opens the index in `dir` over `reader`, whose rows must be the ones that it was built over.
    ///
    /// # Errors
    /// [`IndexError::SpecMismatch`] for other rows; [`IndexError::Store`] for a missing, cut, changed or newer file;
    /// those of the reader.
    pub fn open(reader: &'r R, dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join(HEADER);
        let header = read_header(&path)?;
        let expected = RowsOf { spec: reader.spec().hash(), n_rows: reader.n_rows() };
        let found = RowsOf { spec: header.spec_sha256, n_rows: header.n_rows };
        if expected != found {
            return Err(IndexError::SpecMismatch { path, expected, found });
        }
        header.params.check()?;
        if header.orphans.iter().any(|&row| row >= header.n_rows) || !header.orphans.is_sorted() {
            return Err(StoreError::malformed(&path, "orphans", "ascending rows of the store", "others").into());
        }
        let projection = Projection::new(reader.spec().dim, header.params.point_dim, header.params.seed);
        let map = RowMap::new(reader)?;
        let mut graphs = Vec::with_capacity(header.graphs.len());
        let (mut max_norms, mut n_points) = (Vec::with_capacity(header.graphs.len()), 0);
        for (i, parts) in header.graphs.iter().enumerate() {
            let base = format!("graph-{i:03}");
            for (part, ending) in parts.iter().zip(["graph", "data"]) {
                check_part(dir, part, &format!("{base}.hnsw.{ending}"))?;
            }
            let graph = load(dir, &base)?;
            max_norms.push(check_graph(&path, &graph, &map, projection.point_dim)?);
            n_points += graph.get_nb_point() as u64;
            graphs.push(graph);
        }
        if n_points != header.n_rows || !max_norms.is_sorted_by(|a, b| a >= b) {
            let found = format!("{n_points} points, largest norms {max_norms:?}");
            return Err(StoreError::malformed(&path, "graphs", "every row, longest first", found).into());
        }
        Ok(Self { reader, params: header.params, graphs, max_norms, orphans: header.orphans, map, projection })
    }
}

fn read_header(path: &Path) -> Result<Header, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let bytes = read_capped(path, HEADER_MAX_BYTES, BUILD_AGAIN)?;
    let bad = |error| StoreError::malformed(path, "index header", "its JSON form", error);
    let found = serde_json::from_slice::<Version>(&bytes).map_err(bad)?.format_version;
    if found != INDEX_FORMAT_VERSION {
        let (path, expected) = (path.to_path_buf(), INDEX_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "index", expected, found });
    }
    let header: Header = serde_json::from_slice(&bytes).map_err(bad)?;
    if header.library != LIBRARY {
        return Err(StoreError::malformed(path, "library", LIBRARY, header.library));
    }
    Ok(header)
}

/// The library panics where it cannot write; a panic becomes the error that it should have been.
fn dump(graph: &Graph, dir: &Path, base: &str) -> Result<(), StoreError> {
    let failed = |what: String| StoreError::io("write", &dir.join(base), std::io::Error::other(what));
    // An index that was read may be kept again only under a name that the library does not change.
    match catch_unwind(AssertUnwindSafe(|| graph.file_dump(dir, base))) {
        Ok(Ok(name)) if name == base => Ok(()),
        Ok(Ok(name)) => Err(failed(format!("the graph was written as {name}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the graph library gave up".to_owned())),
    }
}

fn part(dir: &Path, name: String) -> Result<Part, StoreError> {
    let path = dir.join(&name);
    let failed = |source| StoreError::io("sync", &path, source);
    File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
    let bytes = fs::read(&path).map_err(failed)?;
    Ok(Part { name, bytes: bytes.len() as u64, sha256: Digest::of(&bytes) })
}

fn check_part(dir: &Path, part: &Part, name: &str) -> Result<(), StoreError> {
    let path = dir.join(name);
    if part.name != name {
        return Err(StoreError::malformed(&dir.join(HEADER), "name of a file", name, &part.name));
    }
    let bytes = read_capped(&path, FILE_MAX_BYTES, BUILD_AGAIN)?;
    if bytes.len() as u64 != part.bytes {
        return Err(StoreError::WrongLength { path, expected: part.bytes, found: bytes.len() as u64 });
    }
    let found = Digest::of(&bytes);
    if found != part.sha256 {
        let (expected, found) = (part.sha256.to_string(), found.to_string());
        return Err(StoreError::WrongChecksum { path, expected, found });
    }
    Ok(())
}

fn load(dir: &Path, base: &str) -> Result<Graph, StoreError> {
    // The library ties a graph to the reader it came from, for the sake of maps that are not used here. The reader is
    // given away for good: some hundred bytes for each graph that is opened.
    let read = || {
        let reader: &'static mut HnswIo = Box::leak(Box::new(HnswIo::new(dir, base)));
        reader.load_hnsw::<f32, DistL2>()
    };
    let bad = |what: String| StoreError::malformed(&dir.join(base), "graph", LIBRARY, what);
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(mut graph)) => {
            graph.set_searching_mode(true);
            Ok(graph)
        }
        Ok(Err(error)) => Err(bad(error.to_string())),
        Err(_) => Err(bad("bytes that it cannot read".to_owned())),
    }
}

/// The largest norm of a graph's rows. Its points must name rows of the store and be finite: a search trusts both.
fn check_graph(path: &Path, graph: &Graph, map: &RowMap, point_dim: usize) -> Result<f64, StoreError> {
    let mut max_norm = 0.0f64;
    for point in graph.get_point_indexation() {
        let (numbers, row) = (point.get_v(), point.get_origin_id());
        let norm = map.norms.get(row).filter(|_| numbers.len() == point_dim && numbers.iter().all(|x| x.is_finite()));
        let Some(norm) = norm else {
            let expected = format!("a row of the store with {point_dim} finite numbers");
            return Err(StoreError::malformed(path, "point", expected, row));
        };
        max_norm = max_norm.max(*norm);
    }
    Ok(max_norm)
}

fn remove_folder(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", dir, error)),
        _ => Ok(()),
    }
}
