//! Building the graphs and checking that they lead to every row.

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_linalg::elementwise::dot;
use hnsw_rs::prelude::{Distance, Hnsw};
use ndarray::Array2;
use rayon::prelude::*;

use super::graph::{Graph, NODES_MAX, Node};
use super::points::{Projection, norm_ranges};
use super::refine::{Layers, SPARE, lead_to, strays, varied};
use super::{GraphBuilder, HnswIndex, HnswParams, Metric, Range, insert};
use crate::candidates::{Blocks, norms};
use crate::error::IndexError;

/// Layers at most; the library's own cap.
const N_LAYERS: usize = 16;
/// Largest norm over smallest up to which rows count as of one length.
const LEVEL_SPREAD: f64 = 1.05;
/// Times that strays are looked for and led to.
const ROUNDS: usize = 4;

/// Distance of points of length 1, in the order of their Euclidean distance: `1 − ⟨a, b⟩`, never below 0.
///
/// The kernel is ours (AVX-512 where there is one) over contiguous numbers; the library's own stops at AVX2 and takes a root.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnitDistance;

impl Distance<f32> for UnitDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - dot(a, b)).max(0.0)
    }
}

/// The library's graph; its points carry their position in the run as id.
type Library = Hnsw<'static, f32, UnitDistance>;

impl<'r, R: FeatureReader> HnswIndex<'r, R> {
    /// Builds graphs over all rows of `reader`, and measures what they find ([`HnswIndex::curve`]).
    ///
    /// The library builds each graph by one thread, in the order of the rows, with its fixed level generator; ours joins batches
    /// whose borders depend on the rows alone: the graphs do not depend on the number of threads.
    ///
    /// # Errors
    /// [`IndexError::EmptyStore`], [`IndexError::BadSetting`], [`IndexError::RowNotFinite`], those of the reader.
    pub fn build(reader: &'r R, params: HnswParams) -> Result<Self, IndexError> {
        params.check()?;
        if reader.n_rows() == 0 {
            return Err(IndexError::EmptyStore);
        }
        if reader.n_rows() > NODES_MAX as u64 {
            return Err(IndexError::TooMany { k: usize::MAX, n_rows: NODES_MAX as u64 });
        }
        let (blocks, ids) = Blocks::of(reader)?;
        let norms = norms(reader)?;
        let projection = Projection::new(reader.spec().dim, params.point_dim, params.seed);
        let points = projection.all_points(reader, &blocks)?;
        let spread = norms.iter().fold(0.0f64, |m, &n| m.max(n)) / norms.iter().fold(f64::INFINITY, |m, &n| m.min(n));
        // Rows of one length need no ranges.
        let is_level = params.metric == Metric::Cosine || spread <= LEVEL_SPREAD;
        let n_graphs = if is_level { 1 } else { params.n_graphs };
        let runs = norm_ranges(&norms, n_graphs);
        let laid: Vec<(Graph, Vec<u64>)> = runs
            .par_iter()
            .map(|run| {
                let nodes = Nodes { points: &points, run, norms: &norms, ids: &ids };
                let layers = match params.builder {
                    GraphBuilder::Library => {
                        let library = lists_of(&library_graph(&points, run, &params), run.len());
                        varied(&points, run, &library, params.n_neighbours)
                    }
                    GraphBuilder::Batches => insert::layers(&points, run, &params),
                };
                nodes.with_ways(layers, &params)
            })
            .collect();
        let mut ranges = Vec::with_capacity(laid.len());
        let mut orphans = Vec::new();
        for ((graph, lost), run) in laid.into_iter().zip(&runs) {
            orphans.extend(lost);
            ranges.push(Range::new(graph, run.iter().map(|&row| row as u32).collect()));
        }
        orphans.sort_unstable();
        let mut index = Self::assemble(reader, params, ranges, orphans, blocks, projection);
        index.curve = index.measure()?;
        Ok(index)
    }
}

fn library_graph(points: &Array2<f32>, run: &[usize], params: &HnswParams) -> Library {
    let mut graph = Library::new(params.n_neighbours, run.len(), N_LAYERS, params.ef_construction, UnitDistance);
    for (node, &row) in run.iter().enumerate() {
        graph.insert((points.row(row).to_slice().expect("points are in standard layout"), node));
    }
    graph.set_searching_mode(true);
    graph
}

/// The library's neighbours of each node, layer by layer.
fn lists_of(library: &Library, n_nodes: usize) -> Layers {
    let mut levels = vec![0u8; n_nodes];
    for point in library.get_point_indexation() {
        levels[point.get_origin_id()] = point.get_point_id().0;
    }
    let lists = library.get_point_indexation().into_iter().map(|point| {
        let node = point.get_origin_id();
        let layers = point.get_neighborhood_id().into_iter().enumerate().take(usize::from(levels[node]) + 1);
        let layers = layers.map(|(layer, list)| {
            let others = list.iter().map(|n| n.d_id).filter(|&other| other != node);
            // The library also notes entries that are on a layer below: a walk of this layer may not use them.
            others.filter(|&other| usize::from(levels[other]) >= layer).map(|other| other as u32).collect()
        });
        (node, layers.collect::<Vec<Vec<u32>>>())
    });
    let mut layers: Layers = vec![Vec::new(); n_nodes];
    lists.for_each(|(node, lists)| layers[node] = lists);
    layers
}

/// The rows of one graph.
#[derive(Clone, Copy)]
pub(super) struct Nodes<'a> {
    /// Points of all rows of the store.
    pub points: &'a Array2<f32>,
    /// Row of each node.
    pub run: &'a [usize],
    /// Norms of all rows.
    pub norms: &'a [f64],
    /// Examples of all rows.
    pub ids: &'a [ExampleId],
}

impl Nodes<'_> {
    /// Lists with a way to every node, laid out; and the rows that a search for themselves still does not find.
    fn with_ways(&self, mut layers: Layers, params: &HnswParams) -> (Graph, Vec<u64>) {
        let most = 2 * params.n_neighbours + SPARE;
        let mut graph = self.laid(layers.clone());
        let mut left = strays(&graph, self.points, self.run, params);
        for _ in 0..ROUNDS {
            if left.is_empty() || !lead_to(&left, &mut layers, most) {
                break;
            }
            graph = self.laid(layers.clone());
            left = strays(&graph, self.points, self.run, params);
        }
        (graph, left.iter().map(|stray| self.run[stray.node as usize] as u64).collect())
    }

    /// Lays nodes out whose neighbours are known.
    pub(super) fn laid(&self, layers: Layers) -> Graph {
        let degree = layers
            .iter()
            .flat_map(|lists| lists.iter().enumerate())
            .map(|(layer, list)| if layer == 0 { list.len() } else { 2 * list.len() })
            .max()
            .unwrap_or(0)
            // A whole number of cache lines.
            .next_multiple_of(16)
            .max(16);
        // The first of the highest layer: the lowest node, so that the choice is the same whatever the library's order.
        let highest = layers.iter().map(Vec::len).max().unwrap_or(1);
        let entry = layers.iter().position(|lists| lists.len() == highest).unwrap_or(0) as u32;
        let node = |(layers, &row): (Vec<Vec<u32>>, &usize)| Node {
            point: self.points.row(row).to_slice().expect("points are in standard layout"),
            norm: self.norms[row].min(f64::from(f32::MAX)) as f32,
            id: self.ids[row].to_u64(),
            row: row as u32,
            layers,
        };
        let nodes: Vec<Node<'_>> = layers.into_iter().zip(self.run).map(node).collect();
        Graph::lay(self.points.ncols(), degree, entry, &nodes)
    }
}
