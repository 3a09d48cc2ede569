//! The walk: best first through a graph's codes, with bounded memory and one answer.
//!
//! The pool holds the `ef` best nodes seen so far, best first (ties to the lower node), each open or visited. The best open
//! one is visited: its unseen neighbours are scored together and enter the pool where they belong. When none is open, the
//! pool is the answer. That is HNSW's search (arXiv:1603.09320, algorithm 2) with both of its heaps in one sorted array,
//! which for some hundred entries is quicker than heaps.

use ascribe_linalg::scan::{Codes, Queries, dots_at};

use super::graph::Graph;

/// A node that was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Product of the node's codes with the query's, times the node's scale: grows with the cosine.
    pub score: f32,
    /// The node.
    pub node: u32,
    open: bool,
}

/// Memory of a walk, used again by the next.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Which nodes were seen in the walk of number `epoch`.
    marks: Vec<u8>,
    epoch: u8,
    pool: Vec<Seen>,
    batch: Vec<u32>,
    products: Vec<i32>,
}

/// A prepared query.
pub struct Query<'a> {
    queries: &'a Queries,
    codes: &'a [i8],
    sum: i32,
    at: usize,
}

impl<'a> Query<'a> {
    /// Query `at` of a batch that was prepared for int8 rows of the points' length.
    pub fn new(queries: &'a Queries, at: usize) -> Self {
        let (codes, sum) = queries.codes(at);
        Self { queries, codes, sum, at }
    }

    /// What a score is to be multiplied with to become a cosine.
    pub fn scale(&self) -> f64 {
        self.queries.scale(self.at)
    }

    fn score(&self, codes: Codes<'_>, nodes: &[u32], products: &mut Vec<i32>) {
        products.resize(nodes.len(), 0);
        dots_at(codes, self.codes, self.sum, nodes, products);
    }
}

/// The `ef` best nodes that the walk finds, best first. Cost: about `ef · degree` products.
pub fn walk<'s>(graph: &Graph, query: &Query<'_>, ef: usize, scratch: &'s mut Scratch) -> &'s [Seen] {
    let entry = descend(graph, query, scratch);
    let score = |nodes: &[u32], products: &mut Vec<i32>| query.score(graph.codes(), nodes, products);
    best_first(entry, |node| graph.neighbours(node, 0), graph.scales(), score, ef, scratch)
}

/// The same over any lists: from `entry`, whose score is known, by `neighbours`, with products by `score` and a scale for each node.
#[inline]
pub fn best_first<'s, 'g>(
    entry: Seen,
    neighbours: impl Fn(u32) -> &'g [u32],
    scales: &[f32],
    score: impl Fn(&[u32], &mut Vec<i32>),
    ef: usize,
    scratch: &'s mut Scratch,
) -> &'s [Seen] {
    scratch.begin(scales.len());
    let Scratch { marks, epoch, pool, batch, products } = scratch;
    pool.clear();
    pool.push(Seen { open: true, ..entry });
    marks[entry.node as usize] = *epoch;
    let mut first_open = 0;
    while let Some(at) = (first_open..pool.len()).find(|&i| pool[i].open) {
        pool[at].open = false;
        first_open = at + 1;
        batch.clear();
        for &other in neighbours(pool[at].node) {
            let mark = &mut marks[other as usize];
            if *mark != *epoch {
                *mark = *epoch;
                batch.push(other);
            }
        }
        score(batch, products);
        for (&node, &product) in batch.iter().zip(products.iter()) {
            let seen = Seen { score: product as f32 * scales[node as usize], node, open: true };
            if let Some(place) = insert(pool, seen, ef) {
                first_open = first_open.min(place);
            }
        }
    }
    pool
}

/// The `ef` best of given nodes by their codes, best first.
pub fn best_of<'s>(graph: &Graph, query: &Query<'_>, nodes: &[u32], ef: usize, scratch: &'s mut Scratch) -> &'s [Seen] {
    let scales = graph.scales();
    query.score(graph.codes(), nodes, &mut scratch.products);
    scratch.pool.clear();
    for (&node, &product) in nodes.iter().zip(&scratch.products) {
        insert(&mut scratch.pool, Seen { score: product as f32 * scales[node as usize], node, open: false }, ef);
    }
    &scratch.pool
}

/// From the entry down to the lowest layer, always to the best neighbour.
fn descend(graph: &Graph, query: &Query<'_>, scratch: &mut Scratch) -> Seen {
    let entry = graph.shape().entry;
    let score = |nodes: &[u32], products: &mut Vec<i32>| query.score(graph.codes(), nodes, products);
    let mut best = scored(entry, graph.scales(), score, scratch);
    for layer in (1..=graph.level(entry)).rev() {
        best = greedy(best, |node| graph.neighbours(node, layer), graph.scales(), score, scratch);
    }
    best
}

/// A node with its score.
pub fn scored(node: u32, scales: &[f32], score: impl Fn(&[u32], &mut Vec<i32>), scratch: &mut Scratch) -> Seen {
    score(&[node], &mut scratch.products);
    Seen { score: scratch.products[0] as f32 * scales[node as usize], node, open: true }
}

/// From a node to its best neighbour, for as long as one is better.
pub fn greedy<'g>(
    mut best: Seen,
    neighbours: impl Fn(u32) -> &'g [u32],
    scales: &[f32],
    score: impl Fn(&[u32], &mut Vec<i32>),
    scratch: &mut Scratch,
) -> Seen {
    loop {
        let list = neighbours(best.node);
        score(list, &mut scratch.products);
        let before = best.node;
        for (&node, &product) in list.iter().zip(&scratch.products) {
            let seen = Seen { score: product as f32 * scales[node as usize], node, open: true };
            if is_better(&seen, &best) {
                best = seen;
            }
        }
        if best.node == before {
            return best;
        }
    }
}

/// Higher score, then lower node. Scores are finite: they are integers times checked scales.
fn is_better(a: &Seen, b: &Seen) -> bool {
    a.score > b.score || (a.score == b.score && a.node < b.node)
}

/// Puts `seen` where it belongs among at most `ef`; says where, or that it was not good enough.
fn insert(pool: &mut Vec<Seen>, seen: Seen, ef: usize) -> Option<usize> {
    if pool.len() >= ef {
        match pool.last() {
            Some(last) if is_better(&seen, last) => pool.pop(),
            _ => return None,
        };
    }
    let place = pool.partition_point(|other| is_better(other, &seen));
    pool.insert(place, seen);
    Some(place)
}

impl Scratch {
    fn begin(&mut self, n_nodes: usize) {
        if self.marks.len() < n_nodes {
            self.marks.resize(n_nodes, 0);
        }
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.marks.fill(0);
            self.epoch = 1;
        }
    }
}
