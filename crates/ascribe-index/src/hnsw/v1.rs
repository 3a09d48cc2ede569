//! Indexes of version 1: the library's own dump of each graph. They are read for ever, never written.
//!
//! ```text
//! index/
//!   index.json                  version, spec hash, rows, settings, orphans, and length and SHA-256 of each file
//!   graph-000.hnsw.graph        neighbours (hnsw_rs 0.3.5, its format 4)
//!   graph-000.hnsw.data         points
//! ```
//!
//! The sums guard against damage, not against malice: the library believes what it reads, so an index from a stranger is to
//! be built again rather than opened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ascribe_core::{Digest, ExampleId, FeatureReader};
use ascribe_store::StoreError;
use hnsw_rs::hnswio::HnswIo;
use hnsw_rs::prelude::{DistL2, Hnsw};
use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};

use super::build::Nodes;
use super::file::{Part, bad_header, check_part};
use super::points::Projection;
use super::{HnswIndex, HnswParams, Range};
use crate::candidates::{Blocks, norms};
use crate::error::{IndexError, RowsOf};

const LIBRARY: &str = "hnsw_rs 0.3.5";

#[derive(Serialize, Deserialize)]
struct Header {
    library: String,
    spec_sha256: Digest,
    n_rows: u64,
    params: HnswParams,
    orphans: Vec<u64>,
    graphs: Vec<[Part; 2]>,
}

/// Opens an index of version 1: its graphs are laid out anew in memory.
pub(super) fn open<'r, R: FeatureReader>(
    reader: &'r R,
    dir: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<HnswIndex<'r, R>, IndexError> {
    let header: Header = serde_json::from_slice(bytes).map_err(|error| bad_header(path, error))?;
    if header.library != LIBRARY {
        return Err(StoreError::malformed(path, "library", LIBRARY, header.library).into());
    }
    let expected = RowsOf { spec: reader.spec().hash(), n_rows: reader.n_rows() };
    let found = RowsOf { spec: header.spec_sha256, n_rows: header.n_rows };
    if expected != found {
        return Err(IndexError::SpecMismatch { path: path.to_path_buf(), expected, found });
    }
    header.params.check()?;
    if header.orphans.iter().any(|&row| row >= header.n_rows) || !header.orphans.is_sorted() {
        return Err(StoreError::malformed(path, "orphans", "ascending rows of the store", "others").into());
    }
    let projection = Projection::new(reader.spec().dim, header.params.point_dim, header.params.seed);
    let (blocks, ids) = Blocks::of(reader)?;
    let norms = norms(reader)?;
    let mut ranges = Vec::with_capacity(header.graphs.len());
    let mut n_points = 0;
    for (i, parts) in header.graphs.iter().enumerate() {
        let base = format!("graph-{i:03}");
        for (part, ending) in parts.iter().zip(["graph", "data"]) {
            check_part(dir, part, &format!("{base}.hnsw.{ending}"))?;
        }
        let range = lay(path, &load(dir, &base)?, projection.point_dim, &norms, &ids)?;
        n_points += range.rows.len() as u64;
        ranges.push(range);
    }
    if n_points != header.n_rows || !ranges.is_sorted_by(|a, b| a.max_norm >= b.max_norm) {
        let found = format!("{n_points} points in {} graphs", ranges.len());
        return Err(StoreError::malformed(path, "graphs", "every row, longest first", found).into());
    }
    Ok(HnswIndex::assemble(reader, header.params, ranges, header.orphans, blocks, projection))
}

fn load(dir: &Path, base: &str) -> Result<Hnsw<'static, f32, DistL2>, StoreError> {
    // The library ties a graph to the reader it came from, for the sake of maps that are not used here. The reader is
    // given away for good: some hundred bytes for each graph that is opened.
    let read = || {
        let reader: &'static mut HnswIo = Box::leak(Box::new(HnswIo::new(dir, base)));
        reader.load_hnsw::<f32, DistL2>()
    };
    let bad = |what: String| StoreError::malformed(&dir.join(base), "graph", LIBRARY, what);
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(graph)) => Ok(graph),
        Ok(Err(error)) => Err(bad(error.to_string())),
        Err(_) => Err(bad("bytes that it cannot read".to_owned())),
    }
}

/// Lays a graph out anew. Its points must name rows of the store and be finite: a search trusts both.
fn lay(
    path: &Path,
    graph: &Hnsw<'static, f32, DistL2>,
    point_dim: usize,
    norms: &[f64],
    ids: &[ExampleId],
) -> Result<Range, StoreError> {
    let bad = |what: &'static str, found: usize| StoreError::malformed(path, "point", what, found);
    let mut points = Array2::<f32>::zeros((norms.len(), point_dim));
    let mut levels: Vec<Option<u8>> = vec![None; norms.len()];
    for point in graph.get_point_indexation() {
        let (numbers, row) = (point.get_v(), point.get_origin_id());
        if row >= norms.len() || numbers.len() != point_dim || !numbers.iter().all(|x| x.is_finite()) {
            return Err(bad("a row of the store with finite numbers", row));
        }
        points.row_mut(row).assign(&ArrayView1::from(numbers));
        levels[row] = Some(point.get_point_id().0);
    }
    let run: Vec<usize> = (0..norms.len()).filter(|&row| levels[row].is_some()).collect();
    let mut layers: Vec<Vec<Vec<u32>>> = vec![Vec::new(); run.len()];
    for point in graph.get_point_indexation() {
        let row = point.get_origin_id();
        let level = usize::from(levels[row].unwrap_or(0));
        let node = run.partition_point(|&r| r < row);
        for (layer, list) in point.get_neighborhood_id().iter().enumerate().take(level + 1) {
            let mut others = Vec::with_capacity(list.len());
            for other in list.iter().map(|n| n.d_id).filter(|&other| other != row) {
                match levels.get(other).copied().flatten() {
                    Some(level) if usize::from(level) >= layer => {
                        others.push(run.partition_point(|&r| r < other) as u32);
                    }
                    Some(_) => {}
                    None => return Err(bad("neighbours that are points of the graph", other)),
                }
            }
            layers[node].push(others);
        }
    }
    if run.is_empty() {
        return Err(bad("points", 0));
    }
    let rows = run.iter().map(|&row| row as u32).collect();
    let nodes = Nodes { points: &points, run: &run, norms, ids };
    Ok(Range::new(nodes.laid(layers), rows))
}
