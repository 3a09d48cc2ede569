//! What is done to the library's lists before they are searched: edges both ways, thinned out for variety, and a way to
//! every node.
//!
//! `hnsw_rs` drops the farthest neighbour of a list that is full, so that lists end up all nearest, and whole clusters are
//! left without an edge from outside (of 100,000 rows of 128 numbers around 200 centres 557 could not be reached by a search
//! for themselves, and recall@10 at ef 64 was 0.984). Here every list is chosen anew from its own nodes and those that list
//! the node, by HNSW's heuristic (arXiv:1603.09320, algorithm 4: a neighbour is kept if it is nearer to the node than to any
//! that is kept). Then nodes that a search for themselves does not find get an edge from the nearest node that it did find.
//! Every step depends on the lists alone: not on threads.

use ascribe_core::RowType;
use ascribe_linalg::elementwise::dot;
use ascribe_linalg::scan::Queries;
use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::HnswParams;
use super::graph::Graph;
use super::walk::{Query, Scratch, walk_by};

/// Neighbours of every node, layer by layer, nearest first.
pub type Layers = Vec<Vec<Vec<u32>>>;

/// First try of a search for a node itself; nearly every one is found with it.
const SELF_QUERY_EF: usize = 12;
/// Queries that are prepared together.
const BATCH: usize = 256;
/// Edges that a node may get beyond its degree, so that strays are led to.
pub const SPARE: usize = 16;

/// Chooses every list anew. `n_neighbours` on the higher layers, twice as many on the lowest.
pub fn varied(points: &Array2<f32>, run: &[usize], layers: &Layers, n_neighbours: usize) -> Layers {
    let point = |node: u32| points.row(run[node as usize]).to_slice().expect("points are in standard layout");
    let n_layers = layers.iter().map(Vec::len).max().unwrap_or(0);
    let mut chosen: Layers = layers.iter().map(|lists| vec![Vec::new(); lists.len()]).collect();
    for layer in 0..n_layers {
        let mut candidates: Vec<Vec<u32>> =
            layers.iter().map(|lists| lists.get(layer).cloned().unwrap_or_default()).collect();
        for (node, lists) in layers.iter().enumerate() {
            for &other in lists.get(layer).into_iter().flatten() {
                candidates[other as usize].push(node as u32);
            }
        }
        let most = if layer == 0 { 2 * n_neighbours } else { n_neighbours };
        let lists: Vec<Vec<u32>> = candidates
            .into_par_iter()
            .enumerate()
            .map(|(node, mut others)| {
                others.sort_unstable();
                others.dedup();
                let near = |other: u32| dot(point(node as u32), point(other));
                let mut sorted: Vec<(f32, u32)> = others.into_iter().map(|other| (near(other), other)).collect();
                sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                heuristic(&sorted, most, |a, b| dot(point(a), point(b)))
            })
            .collect();
        for (lists, list) in chosen.iter_mut().zip(lists) {
            if let Some(place) = lists.get_mut(layer) {
                *place = list;
            }
        }
    }
    chosen
}

/// Of candidates by falling nearness, those that are nearer to the node than to any kept before; then the nearest others.
pub fn heuristic(sorted: &[(f32, u32)], most: usize, mut near: impl FnMut(u32, u32) -> f32) -> Vec<u32> {
    let (mut kept, mut left) = (Vec::with_capacity(most), Vec::new());
    for &(to_node, other) in sorted {
        if kept.len() >= most {
            break;
        }
        if kept.iter().all(|&k| near(k, other) < to_node) {
            kept.push(other);
        } else {
            left.push(other);
        }
    }
    // A few of the nearest beside: they are what a search ends among.
    kept.extend(left.into_iter().take((most - kept.len()).min(most / 4)));
    kept
}

/// A node that a search for itself does not find, and those that it found instead, nearest first.
pub struct Stray {
    /// The node.
    pub node: u32,
    /// What was found.
    pub found: Vec<u32>,
}

/// The strays of a graph, by rising node.
pub fn strays(graph: &Graph, points: &Array2<f32>, run: &[usize], params: &HnswParams) -> Vec<Stray> {
    run.par_chunks(BATCH)
        .enumerate()
        .flat_map_iter(|(chunk, rows)| {
            let queries = Queries::new(RowType::Int8, points.select(Axis(0), rows).view());
            let mut scratch = Scratch::default();
            let mut strays = Vec::new();
            for i in 0..rows.len() {
                let (query, node) = (Query::new(&queries, i), (chunk * BATCH + i) as u32);
                // By one way in, though a search has more: whoever is found by one is not lost with a hard query.
                let is_found =
                    |ef, scratch: &mut Scratch| walk_by(graph, &query, ef, 1, scratch).iter().any(|s| s.node == node);
                if is_found(SELF_QUERY_EF, &mut scratch) {
                    continue;
                }
                let found = walk_by(graph, &query, params.ef_construction.max(SELF_QUERY_EF), 1, &mut scratch);
                if found.iter().all(|seen| seen.node != node) {
                    strays.push(Stray { node, found: found.iter().map(|seen| seen.node).collect() });
                }
            }
            strays
        })
        .collect()
}

/// Gives every stray an edge from the nearest found node with room for one. True if there was any.
pub fn lead_to(strays: &[Stray], layers: &mut Layers, most: usize) -> bool {
    let mut any = false;
    for stray in strays {
        let has_room = |other: &&u32| layers[**other as usize].first().is_some_and(|list| list.len() < most);
        if let Some(&other) = stray.found.iter().find(has_room) {
            layers[other as usize][0].push(stray.node);
            any = true;
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heuristic_prefers_variety_and_then_the_nearest() {
        // Two near nodes that are nearer to each other than to the node, and a farther one elsewhere.
        let near = |a: u32, b: u32| if (a, b) == (1, 2) || (a, b) == (2, 1) { 0.99 } else { 0.1 };
        let sorted = [(0.9, 1), (0.8, 2), (0.5, 3)];
        assert_eq!(heuristic(&sorted, 2, near), [1, 3]);
        assert_eq!(heuristic(&sorted, 4, near), [1, 3, 2]);
        assert_eq!(heuristic(&sorted, 1, near), [1]);
    }

    #[test]
    fn lists_become_mutual_where_there_is_room() {
        let points = ndarray::arr2(&[[1.0f32, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]);
        let layers: Layers = vec![vec![vec![1]], vec![vec![2]], vec![vec![3]], vec![vec![]]];
        let chosen = varied(&points, &[0, 1, 2, 3], &layers, 4);
        assert_eq!(chosen, [vec![vec![1]], vec![vec![0, 2]], vec![vec![1, 3]], vec![vec![2]]]);
    }
}
