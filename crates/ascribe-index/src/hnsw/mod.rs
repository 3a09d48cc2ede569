//! Approximate search in navigable small-world graphs (HNSW, arXiv:1603.09320, by the `hnsw_rs` crate).
//!
//! Six decisions, each measured (with the throughput example: 9,000 rows of 4,096 numbers, norms over two decades; or with
//! `ascribe bench search`):
//!
//! 1. **Graphs are angular, one per range of norms.** The usual reduction of inner products to distances,
//!    `x̃ = [x, √(M² − ‖x‖²)]`, `q̃ = [q, 0]` (Bachrach et al., RecSys 2014), makes every query an outsider to the
//!    points: in two large graphs 23 % of the rows could not be reached by a search for themselves. Rows sorted by norm, cut
//!    into runs (norm-ranging, arXiv:1809.08782) and compared by angle within a run do better: with 18 runs and 128
//!    candidates from each, recall@10 is 0.97 instead of 0.87. Ranges also build in parallel, each by one thread in one
//!    order: same rows, same graphs. Under [`Metric::Cosine`], and for rows of one length, one graph is all it takes.
//! 2. **Points are short** if wanted: rows are projected by a seeded matrix of signs (Johnson–Lindenstrauss) before they
//!    are inserted.
//! 3. **Built by `hnsw_rs`, mended and walked by us** (`refine.rs`, `graph.rs`, `walk.rs`): the library's lists are thinned
//!    out for variety and laid out as bytes, with int8 codes for points; a file is mapped and searched as it lies. Large graphs
//!    are better built by us ([`GraphBuilder::Batches`], `insert.rs`): over the codes, on all threads, with the same result for any.
//! 4. **A graph only nominates.** A nominee's score is estimated from its codes and norm, the best `n_exact` are
//!    scored again, exactly, from the store: a hit's score is never approximate. Graphs are asked from the longest rows
//!    down, and no further than rows are long enough to reach the k-th best estimate.
//! 5. **No row is lost**: after the build every row is searched for by itself; those that the graph does not lead to are
//!    written down and nominated always. So are rows that the store got later, while they are few.
//! 6. **Recall is measured when an index is built**, against exact search, and kept with it: [`HnswIndex::effort_for`]
//!    reads from that how hard to try.
//!
//! A caution for preconditioned queries `F⁻¹g`: they are nearly at right angles to all rows (on the gradients of a small
//! decoder the ten best rows have a mean cosine of 0.02), so what decides is smaller than the error of a projection: the
//! best 512 by points of 1,024 numbers hold 0.18 of the true ten. Either keep the rows as they are (`point_dim` at least
//! the row's length; recall@10 0.99), or index whitened rows `L⁻¹x` and ask with `L⁻¹g`, `F = LLᵀ`: the products are
//! the same, the cosines are 0.15, and the best 512 by such points hold 0.94.
//!
//! `hnsw_rs` aborts on NaN distances, so nothing that is not finite gets near it.

mod build;
pub(crate) mod curve;
mod file;
mod graph;
mod insert;
pub(crate) mod points;
mod refine;
mod search;
mod v1;
mod walk;

use std::collections::BTreeSet;

use ascribe_core::{ExampleId, FeatureReader};
use serde::{Deserialize, Serialize};

use self::graph::Graph;
use self::walk::Query;
use crate::candidates::Blocks;
use crate::error::IndexError;

pub use build::UnitDistance;
pub use curve::{RecallCurve, RecallPoint};

/// Version of the header and of the files beside it.
pub const INDEX_FORMAT_VERSION: u32 = 3;

/// What a search ranks by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Inner products: influence.
    #[default]
    InnerProduct,
    /// Cosines: similarity. Scores of hits are cosines, too.
    Cosine,
}

/// What builds the graphs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphBuilder {
    /// `hnsw_rs`, one thread a graph, over f32 points.
    #[default]
    Library,
    /// Batches over int8 codes, on all threads: for large graphs.
    Batches,
}

impl GraphBuilder {
    fn is_library(&self) -> bool {
        *self == Self::Library
    }
}

/// How graphs are built. The defaults are measured in the throughput example.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HnswParams {
    /// Neighbours per point and layer (`M`), 2 to 255.
    pub n_neighbours: usize,
    /// Candidates while building (`efConstruction`).
    pub ef_construction: usize,
    /// Numbers per point; a multiple of 8 suits the SIMD distance.
    pub point_dim: usize,
    /// Ranges of norms, each with its own graph.
    pub n_graphs: usize,
    /// Seed of the projection.
    pub seed: u64,
    /// What is ranked by.
    #[serde(default)]
    pub metric: Metric,
    /// What builds them. Absent in headers of the library's graphs, which are older than the choice.
    #[serde(default, skip_serializing_if = "GraphBuilder::is_library")]
    pub builder: GraphBuilder,
}

impl Default for HnswParams {
    fn default() -> Self {
        Self {
            n_neighbours: 16,
            ef_construction: 100,
            point_dim: 1024,
            n_graphs: 64,
            seed: 0,
            metric: Metric::InnerProduct,
            builder: GraphBuilder::Library,
        }
    }
}

impl HnswParams {
    fn check(&self) -> Result<(), IndexError> {
        let bad = |setting, expected, found| Err(IndexError::BadSetting { setting, expected, found });
        match *self {
            // The library ends the whole process above 256.
            Self { n_neighbours: n @ (0 | 1 | 256..), .. } => bad("neighbours per point", "2 to 255", n),
            Self { ef_construction: n @ (0 | 65_537..), .. } => bad("candidates while building", "1 to 65536", n),
            Self { point_dim: n @ (0 | 65_537..), .. } => bad("numbers per point", "1 to 65536", n),
            Self { n_graphs: n @ (0 | 1000..), .. } => bad("graphs", "1 to 999", n),
            _ => Ok(()),
        }
    }
}

/// One graph and what is known of its nodes' rows today.
struct Range {
    graph: Graph,
    /// Row of each node in the store; [`Range::GONE`] where the store has lost it.
    rows: Vec<u32>,
    /// Largest norm; falls from graph to graph.
    max_norm: f64,
    /// True if examples rise with the nodes.
    is_sorted: bool,
    /// Largest scale of the nodes' codes.
    max_scale: f64,
}

impl Range {
    /// The row of a node that the store no longer has.
    const GONE: u32 = u32::MAX;

    fn new(graph: Graph, rows: Vec<u32>) -> Self {
        let max = |numbers: &[f32]| f64::from(numbers.iter().fold(0.0f32, |m, &x| m.max(x)));
        let (max_norm, max_scale, is_sorted) = (max(graph.norms()), max(graph.scales()), graph.ids().is_sorted());
        // Norms are kept in f32: rounded up again, since a search stops by them.
        Self { graph, rows, max_norm: max_norm * (1.0 + 1e-6), is_sorted, max_scale }
    }

    /// How far coding may take a cosine: four standard errors of rounding both points, each number by up to half a step.
    fn code_error(&self, query: &Query<'_>) -> f64 {
        4.0 * (self.max_scale.powi(2) + query.scale().min(1.0).powi(2)).sqrt() / 12f64.sqrt()
    }
}

/// Graphs over the rows of a reader, which stays at hand for exact scores.
pub struct HnswIndex<'r, R> {
    reader: &'r R,
    params: HnswParams,
    ranges: Vec<Range>,
    /// Rows that the graphs do not lead to, ascending.
    orphans: Vec<u64>,
    /// Examples that were deleted from the index.
    deleted: BTreeSet<ExampleId>,
    blocks: Blocks,
    projection: points::Projection,
    curve: RecallCurve,
}

impl<'r, R: FeatureReader> HnswIndex<'r, R> {
    fn assemble(
        reader: &'r R,
        params: HnswParams,
        ranges: Vec<Range>,
        orphans: Vec<u64>,
        blocks: Blocks,
        projection: points::Projection,
    ) -> Self {
        let (deleted, curve) = (BTreeSet::new(), RecallCurve::default());
        Self { reader, params, ranges, orphans, deleted, blocks, projection, curve }
    }

    /// How it was built.
    pub fn params(&self) -> &HnswParams {
        &self.params
    }

    /// Number of graphs.
    pub fn n_graphs(&self) -> usize {
        self.ranges.len()
    }

    /// Rows that the graphs do not lead to; they are candidates of every search.
    pub fn orphans(&self) -> &[u64] {
        &self.orphans
    }

    /// Takes examples out of every later search: tombstones, kept by [`HnswIndex::save`]. Their nodes stay as way stations,
    /// so recall stays; build again when a good part is gone.
    pub fn delete(&mut self, ids: impl IntoIterator<Item = ExampleId>) {
        self.deleted.extend(ids);
    }

    /// Examples that were deleted, ascending.
    pub fn deleted(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.deleted.iter().copied()
    }
}

impl<R> std::fmt::Debug for HnswIndex<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n_orphans = self.orphans.len();
        f.debug_struct("HnswIndex")
            .field("params", &self.params)
            .field("n_graphs", &self.ranges.len())
            .field("n_orphans", &n_orphans)
            .finish_non_exhaustive()
    }
}
