//! Graphs built in batches over int8 codes: HNSW's construction (arXiv:1603.09320, algorithms 1 to 4), on every core.
//!
//! The library inserts one node after the other over shared pointers and f32 points. Here a batch of nodes looks for its
//! neighbours in the graph as it was before the batch, in parallel, and then their lists are joined to it: first their own, then
//! those of every node that they chose, each chosen anew by the heuristic when it is full, so that no list drops its only edge to
//! another cluster. Nodes of one batch see each other too: every one is scored against those before it. Batches are at most 1/16
//! of the graph, and their borders depend on the number of nodes alone: same rows, same graph, whatever the threads.
//!
//! Nearness is the cosine of the codes, which is what a search will see. Lists come out as [`super::refine`] wants them.

use ascribe_linalg::Stream;
use ascribe_linalg::scan::{Codes, dots_at};
use ndarray::Array2;
use rayon::prelude::*;

use super::HnswParams;
use super::graph::put;
use super::refine::{Layers, heuristic};
use super::walk::{Scratch, best_first, greedy, scored};

/// Highest layer.
const TOP: u8 = 15;
/// A batch is at most one in so many of the nodes that are there.
const BATCH_SHARE: usize = 16;
/// And at most so many, so that scoring them against each other stays cheap.
const BATCH_MAX: usize = 256;
const STREAM_NAME: &str = "index/hnsw/levels";
/// Codes begin on a cache line.
const LINE: usize = 64;

/// An edge with its nearness.
type Edge = (f32, u32);

/// A graph that grows.
struct Draft {
    memory: Vec<u8>,
    start: usize,
    code_bytes: usize,
    /// Of each node: what a product of its codes with others' is to be multiplied with, and the sum of its codes.
    scales: Vec<f32>,
    sums: Vec<i32>,
    levels: Vec<u8>,
    /// Lowest layer: `most` places to a node.
    base: Vec<u32>,
    n_base: Vec<u16>,
    /// Layers above, of the nodes that have some.
    upper: Vec<Vec<Vec<u32>>>,
    most: usize,
}

/// A reverse edge: layer, node whose list it enters, node that chose it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Back {
    layer: u8,
    node: u32,
    from: u32,
}

/// Neighbours of every node of `run`, layer by layer, nearest first.
///
/// Cost: about `n · ef_construction · 2·n_neighbours` products of codes, on all threads.
pub fn layers(points: &Array2<f32>, run: &[usize], params: &HnswParams) -> Layers {
    let mut draft = Draft::new(points, run, params);
    let (mut entry, mut done) = (0u32, 1usize);
    while done < run.len() {
        let batch = done as u32..(done + (done / BATCH_SHARE).clamp(1, BATCH_MAX)).min(run.len()) as u32;
        let chosen: Vec<Vec<Vec<u32>>> = batch
            .clone()
            .into_par_iter()
            .map_init(Scratch::default, |scratch, node| draft.choose(node, entry, batch.start, params, scratch))
            .collect();
        draft.join(batch.start, &chosen);
        // The first of the highest layer, as in a finished graph.
        for node in batch.clone() {
            if draft.levels[node as usize] > draft.levels[entry as usize] {
                entry = node;
            }
        }
        done = batch.end as usize;
    }
    draft.into_layers()
}

impl Draft {
    fn new(points: &Array2<f32>, run: &[usize], params: &HnswParams) -> Self {
        let (n, code_bytes) = (run.len(), points.ncols().next_multiple_of(LINE));
        let mut memory = vec![0u8; n * code_bytes + LINE];
        let start = memory.as_ptr().align_offset(LINE).min(LINE);
        let facts: Vec<(f32, i32)> = memory[start..start + n * code_bytes]
            .par_chunks_mut(code_bytes)
            .zip(run)
            .map(|(codes, &row)| {
                let scale = put(codes, points.row(row).to_slice().expect("points are in standard layout"));
                (scale, codes.iter().map(|&code| i32::from(code as i8)).sum())
            })
            .collect();
        let (scales, sums) = facts.into_iter().unzip();
        let stream = Stream::new(params.seed, STREAM_NAME);
        let per_level = (params.n_neighbours as f64).ln();
        let level = |node: usize| {
            // A number in (0, 1]: 53 bits and one more, so that its logarithm is finite.
            let u = ((stream.at(node as u64) >> 11) + 1) as f64 / 2f64.powi(53);
            ((-u.ln() / per_level) as u64).min(u64::from(TOP)) as u8
        };
        let levels: Vec<u8> = (0..n).map(level).collect();
        let most = 2 * params.n_neighbours;
        let upper = levels.iter().map(|&level| vec![Vec::new(); usize::from(level)]).collect();
        let (base, n_base) = (vec![0; n * most], vec![0; n]);
        Self { memory, start, code_bytes, scales, sums, levels, base, n_base, upper, most }
    }

    fn codes(&self) -> Codes<'_> {
        Codes::new(&self.memory[self.start..self.start + self.scales.len() * self.code_bytes], self.code_bytes)
    }

    fn neighbours(&self, node: u32, layer: u8) -> &[u32] {
        let node = node as usize;
        match layer {
            0 => &self.base[node * self.most..][..usize::from(self.n_base[node])],
            _ => &self.upper[node][usize::from(layer) - 1],
        }
    }

    fn most_of(&self, layer: u8) -> usize {
        if layer == 0 { self.most } else { self.most / 2 }
    }

    fn put_list(&mut self, node: u32, layer: u8, list: impl ExactSizeIterator<Item = u32>) {
        let at = node as usize;
        match layer {
            0 => {
                self.n_base[at] = list.len() as u16;
                self.base[at * self.most..].iter_mut().zip(list).for_each(|(place, other)| *place = other);
            }
            _ => self.upper[at][usize::from(layer) - 1] = list.collect(),
        }
    }

    /// Products of a node's codes with those of others, times the others' scales: grows with the cosine.
    fn products(&self, node: u32, others: &[u32], products: &mut Vec<i32>) {
        let at = self.start + node as usize * self.code_bytes;
        let own: &[i8] = bytemuck::cast_slice(&self.memory[at..at + self.code_bytes]);
        products.resize(others.len(), 0);
        dots_at(self.codes(), own, self.sums[node as usize], others, products);
    }

    /// Cosine of two nodes by their codes.
    fn near(&self, a: u32, b: u32, products: &mut Vec<i32>) -> f32 {
        self.products(a, &[b], products);
        products[0] as f32 * self.scales[a as usize] * self.scales[b as usize]
    }

    /// Neighbours of a node that is not in the graph yet, layer by layer from the lowest, out of the graph and of the batch before it.
    fn choose(&self, node: u32, entry: u32, first: u32, params: &HnswParams, scratch: &mut Scratch) -> Vec<Vec<u32>> {
        let (level, top) = (self.levels[node as usize], self.levels[entry as usize]);
        let score = |others: &[u32], products: &mut Vec<i32>| self.products(node, others, products);
        let mut best = scored(entry, &self.scales, score, scratch);
        for layer in (level + 1..=top).rev() {
            best = greedy(best, |at| self.neighbours(at, layer), &self.scales, score, scratch);
        }
        let scale = self.scales[node as usize];
        let mut products = Vec::new();
        let before: Vec<u32> = (first..node).collect();
        self.products(node, &before, &mut products);
        let batch: Vec<Edge> =
            before.iter().zip(&products).map(|(&b, &p)| (p as f32 * self.scales[b as usize] * scale, b)).collect();
        let mut lists = vec![Vec::new(); usize::from(level) + 1];
        for layer in (0..=level).rev() {
            let mut candidates: Vec<Edge> =
                batch.iter().copied().filter(|&(_, other)| self.levels[other as usize] >= layer).collect();
            if layer <= top {
                let lists = |at: u32| self.neighbours(at, layer);
                let found = best_first(&[best], lists, &self.scales, score, params.ef_construction, scratch);
                best = found[0];
                candidates.extend(found.iter().map(|seen| (seen.score * scale, seen.node)));
            }
            candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            candidates.truncate(params.ef_construction);
            lists[usize::from(layer)] =
                heuristic(&candidates, params.n_neighbours, |a, b| self.near(a, b, &mut products));
        }
        lists
    }

    /// Puts the lists of a batch that begins at `first` into the graph, and the batch into the lists that it chose.
    fn join(&mut self, first: u32, chosen: &[Vec<Vec<u32>>]) {
        let mut backs: Vec<Back> = Vec::new();
        for (node, lists) in (first..).zip(chosen) {
            for (layer, list) in (0u8..).zip(lists) {
                self.put_list(node, layer, list.iter().copied());
                backs.extend(list.iter().map(|&other| Back { layer, node: other, from: node }));
            }
        }
        backs.sort_unstable();
        let groups: Vec<&[Back]> = backs.chunk_by(|a, b| (a.layer, a.node) == (b.layer, b.node)).collect();
        let lists: Vec<Vec<u32>> =
            groups.par_iter().map_init(Vec::new, |products, group| self.with(group, products)).collect();
        for (group, list) in groups.iter().zip(lists) {
            self.put_list(group[0].node, group[0].layer, list.into_iter());
        }
    }

    /// A node's list with new edges; chosen anew, nearest first, if it is too long.
    fn with(&self, group: &[Back], products: &mut Vec<i32>) -> Vec<u32> {
        let Back { layer, node, .. } = group[0];
        let mut list = self.neighbours(node, layer).to_vec();
        list.extend(group.iter().map(|back| back.from).filter(|from| !self.neighbours(node, layer).contains(from)));
        let most = self.most_of(layer);
        if list.len() <= most {
            return list;
        }
        let sorted = self.sorted(node, &list, products);
        heuristic(&sorted, most, |a, b| self.near(a, b, products))
    }

    /// Edges of a node by falling nearness.
    fn sorted(&self, node: u32, list: &[u32], products: &mut Vec<i32>) -> Vec<Edge> {
        self.products(node, list, products);
        let scale = self.scales[node as usize];
        let edge = |(&other, &product): (&u32, &i32)| (product as f32 * self.scales[other as usize] * scale, other);
        let mut sorted: Vec<Edge> = list.iter().zip(products.iter()).map(edge).collect();
        sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        sorted
    }

    fn into_layers(self) -> Layers {
        (0..self.levels.len() as u32)
            .into_par_iter()
            .map_init(Vec::new, |products, node| {
                (0..=self.levels[node as usize])
                    .map(|layer| {
                        let list = self.sorted(node, self.neighbours(node, layer), products);
                        list.into_iter().map(|(_, other)| other).collect()
                    })
                    .collect()
            })
            .collect()
    }
}
