//! Approximate search in navigable small-world graphs (HNSW, arXiv:1603.09320, by the `hnsw_rs` crate).
//!
//! Four decisions, each measured with the throughput example (9,000 rows of 4,096 numbers, norms over two decades):
//!
//! 1. **Graphs are angular, one per range of norms.** The usual reduction of inner products to distances,
//!    `x̃ = [x, √(M² − ‖x‖²)]`, `q̃ = [q, 0]` (Bachrach et al., RecSys 2014), makes every query an outsider to the
//!    points: in two large graphs 23 % of the rows could not be reached by a search for themselves. Rows sorted by norm, cut
//!    into runs (norm-ranging, arXiv:1809.08782) and compared by angle within a run do better: with 18 runs and 128
//!    candidates from each, recall@10 is 0.97 instead of 0.87. Ranges also build in parallel, each by one thread in one
//!    order: same rows, same graphs.
//! 2. **Points are short**: rows are projected by a seeded matrix of signs (Johnson–Lindenstrauss) before they are
//!    inserted.
//! 3. **A graph only nominates.** A nominee's product is estimated from its distance and norm, the best `n_exact` are
//!    scored again, exactly, from the store: a hit's score is never approximate. Graphs are asked from the longest rows
//!    down, and no further than rows are long enough to reach the k-th best estimate.
//! 4. **No row is lost**: after the build every row is searched for by itself; those that the graph does not lead to are
//!    written down and nominated always.
//!
//! A caution for preconditioned queries `F⁻¹g`: they are nearly at right angles to all rows (on the gradients of a small
//! decoder the ten best rows have a mean cosine of 0.02), so what decides is smaller than the error of a projection: the
//! best 512 by points of 1,024 numbers hold 0.18 of the true ten. Either keep the rows as they are (`point_dim` at least
//! the row's length; recall@10 0.99), or index whitened rows `L⁻¹x` and ask with `L⁻¹g`, `F = LLᵀ`: the products are
//! the same, the cosines are 0.15, and the best 512 by such points hold 0.94.
//!
//! `hnsw_rs` aborts on NaN distances, so nothing that is not finite gets near it.

mod build;
mod file;
mod points;
mod search;

use ascribe_core::FeatureReader;
use hnsw_rs::prelude::{DistL2, Hnsw};
use serde::{Deserialize, Serialize};

use crate::candidates::RowMap;
use crate::error::IndexError;

/// Version of the header and of the files beside it.
pub const INDEX_FORMAT_VERSION: u32 = 1;

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
}

impl Default for HnswParams {
    fn default() -> Self {
        Self { n_neighbours: 16, ef_construction: 100, point_dim: 1024, n_graphs: 64, seed: 0 }
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

/// One graph; its points carry their row as id.
type Graph = Hnsw<'static, f32, DistL2>;

/// Graphs over the rows of a reader, which stays at hand for exact scores.
pub struct HnswIndex<'r, R> {
    reader: &'r R,
    params: HnswParams,
    graphs: Vec<Graph>,
    /// Largest norm of each graph's rows; falls from graph to graph.
    max_norms: Vec<f64>,
    /// Rows that the graphs do not lead to, ascending.
    orphans: Vec<u64>,
    map: RowMap,
    projection: points::Projection,
}

impl<R: FeatureReader> HnswIndex<'_, R> {
    /// How it was built.
    pub fn params(&self) -> &HnswParams {
        &self.params
    }

    /// Number of graphs.
    pub fn n_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Rows that the graphs do not lead to; they are candidates of every search.
    pub fn orphans(&self) -> &[u64] {
        &self.orphans
    }
}

impl<R> std::fmt::Debug for HnswIndex<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n_orphans = self.orphans.len();
        f.debug_struct("HnswIndex")
            .field("params", &self.params)
            .field("n_graphs", &self.graphs.len())
            .field("n_orphans", &n_orphans)
            .finish_non_exhaustive()
    }
}
