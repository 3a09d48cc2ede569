//! Building the graphs and checking that they lead to every row.

use ascribe_core::FeatureReader;
use hnsw_rs::prelude::DistL2;
use ndarray::Array2;
use rayon::prelude::*;

use super::points::{Projection, norm_ranges};
use super::{Graph, HnswIndex, HnswParams};
use crate::candidates::RowMap;
use crate::error::IndexError;

/// Layers at most; the library's own cap.
const N_LAYERS: usize = 16;
/// First try of the self-query; nearly every point is found with it.
const SELF_QUERY_EF: usize = 12;

impl<'r, R: FeatureReader> HnswIndex<'r, R> {
    /// Builds graphs over all rows of `reader`.
    ///
    /// Each graph is built by one thread, in the order of the rows, with the library's fixed level generator: the graphs
    /// do not depend on the number of threads. Cost at the default settings:
    /// 9,000 rows of 4,096 numbers take about one second on two busy cores.
    ///
    /// # Errors
    /// [`IndexError::EmptyStore`], [`IndexError::BadSetting`], [`IndexError::RowNotFinite`], those of the reader.
    pub fn build(reader: &'r R, params: HnswParams) -> Result<Self, IndexError> {
        params.check()?;
        if reader.n_rows() == 0 {
            return Err(IndexError::EmptyStore);
        }
        let map = RowMap::new(reader)?;
        let projection = Projection::new(reader.spec().dim, params.point_dim, params.seed);
        let points = projection.all_points(reader, &map)?;
        let runs = norm_ranges(&map.norms, params.n_graphs);
        let max_norms = runs.iter().map(|run| run.iter().map(|&row| map.norms[row]).fold(0.0, f64::max)).collect();
        let built: Vec<(Graph, Vec<u64>)> = runs.par_iter().map(|run| build_graph(&points, run, &params)).collect();
        let mut graphs = Vec::with_capacity(built.len());
        let mut orphans = Vec::new();
        for (graph, lost) in built {
            graphs.push(graph);
            orphans.extend(lost);
        }
        orphans.sort_unstable();
        Ok(Self { reader, params, graphs, max_norms, orphans, map, projection })
    }
}

/// One graph over the rows of `run`, and the rows that it does not lead to.
fn build_graph(points: &Array2<f32>, run: &[usize], params: &HnswParams) -> (Graph, Vec<u64>) {
    let point = |row: usize| points.row(row).to_slice().expect("points are in standard layout");
    let mut graph = Graph::new(params.n_neighbours, run.len(), N_LAYERS, params.ef_construction, DistL2);
    for &row in run {
        graph.insert((point(row), row));
    }
    graph.set_searching_mode(true);
    let is_found = |row: usize| {
        [SELF_QUERY_EF, params.ef_construction.max(SELF_QUERY_EF)]
            .into_iter()
            .any(|ef| graph.search(point(row), ef, ef).iter().any(|neighbour| neighbour.d_id == row))
    };
    let lost = run.iter().filter(|&&row| !is_found(row)).map(|&row| row as u64).collect();
    (graph, lost)
}
