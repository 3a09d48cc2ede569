//! The walk: best first through a graph's codes, with bounded memory and one answer.
//!
//! The pool holds the `ef` best nodes seen so far, best first (ties to the lower node), each open or visited. The best open
//! one is visited: its unseen neighbours are scored together and enter the pool where they belong. When none is open, the
//! pool is the answer. That is HNSW's search (arXiv:1603.09320, algorithm 2) with both of its heaps in one sorted array,
//! which for some hundred entries is quicker than heaps. An entry is one word, so that most nodes cost one comparison (most
//! are worse than the whole pool), a place is found without a branch, and what moves is eight bytes an entry.

use ascribe_linalg::scan::{Codes, Queries, ask_for, dots_at};

use super::graph::{Graph, NODES_MAX};

/// A node that was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Product of the node's codes with the query's, times the node's scale: grows with the cosine.
    pub score: f32,
    /// The node.
    pub node: u32,
}

/// An entry of the pool: 32 bits that rise with the score, 31 that fall with the node, and one that is set until it is visited.
/// So a better entry is a greater word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Entry(u64);

/// Nodes that the lowest layer is entered by. One of them lies in one cluster, and where that is the wrong one the lowest layer,
/// whose edges are short, hardly leads out: of 1,000 queries among 100,000 rows around 200 centres 12 missed all of their ten
/// neighbours at `ef` 56, with four ways in 2, with eight none, at hardly any cost.
const WAYS_IN: usize = 8;
/// All bits of a node.
const NODE_BITS: u64 = (1 << 31) - 1;
const _: () = assert!(NODES_MAX as u64 <= NODE_BITS, "a node fits an entry of the pool");

impl Entry {
    /// Below every entry.
    const LEAST: Self = Self(0);

    #[inline(always)]
    fn open(score: f32, node: u32) -> Self {
        // Zero has one sign, or a product of nothing would not tie with another. Then the bits of positive numbers rise with
        // them, and those of negative ones fall.
        let bits = (score + 0.0).to_bits();
        let rising = bits ^ ((bits as i32 >> 31) as u32 | 1 << 31);
        Self(u64::from(rising) << 32 | (NODE_BITS - u64::from(node)) << 1 | 1)
    }

    fn is_open(self) -> bool {
        self.0 & 1 == 1
    }

    fn visited(self) -> Self {
        Self(self.0 & !1)
    }

    #[inline(always)]
    fn node(self) -> u32 {
        (NODE_BITS - (self.0 >> 1 & NODE_BITS)) as u32
    }

    fn seen(self) -> Seen {
        let rising = (self.0 >> 32) as u32;
        let bits = if rising >> 31 == 1 { rising ^ 1 << 31 } else { !rising };
        Seen { score: f32::from_bits(bits), node: self.node() }
    }
}

/// Memory of a walk, used again by the next.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Which nodes were seen in the walk of number `epoch`.
    marks: Vec<u8>,
    epoch: u8,
    pool: Vec<Entry>,
    found: Vec<Seen>,
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
    walk_by(graph, query, ef, WAYS_IN, scratch)
}

/// The same from `n_ways` nodes on the lowest layer.
pub fn walk_by<'s>(graph: &Graph, query: &Query<'_>, ef: usize, n_ways: usize, scratch: &'s mut Scratch) -> &'s [Seen] {
    descend(graph, query, n_ways, scratch);
    let entries = std::mem::take(&mut scratch.found);
    let score = |nodes: &[u32], products: &mut Vec<i32>| query.score(graph.codes(), nodes, products);
    let neighbours = |node| graph.neighbours(node, 0);
    best_first(&entries, neighbours, graph.scales(), score, ef.max(entries.len()), scratch);
    scratch.found.truncate(ef);
    &scratch.found
}

/// The same over any lists: from `entries`, whose scores are known, by `neighbours`, with products by `score` and a scale for each node.
#[inline]
pub fn best_first<'s, 'g>(
    entries: &[Seen],
    neighbours: impl Fn(u32) -> &'g [u32],
    scales: &[f32],
    score: impl Fn(&[u32], &mut Vec<i32>),
    ef: usize,
    scratch: &'s mut Scratch,
) -> &'s [Seen] {
    scratch.begin(scales.len());
    let Scratch { marks, epoch, pool, found, batch, products } = scratch;
    let epoch = *epoch;
    pool.clear();
    pool.extend(entries.iter().take(ef).map(|entry| Entry::open(entry.score, entry.node)));
    pool.sort_unstable_by(|a, b| b.cmp(a));
    entries.iter().for_each(|entry| marks[entry.node as usize] = epoch);
    let mut first_open = 0;
    while let Some(at) = next_open(pool, first_open) {
        pool[at] = pool[at].visited();
        first_open = at + 1;
        let list = neighbours(pool[at].node());
        // Without a branch: whether a node was seen is as good as a coin.
        batch.resize(list.len(), 0);
        let mut n_new = 0;
        for &other in list {
            let mark = &mut marks[other as usize];
            batch[n_new] = other;
            n_new += usize::from(*mark != epoch);
            *mark = epoch;
        }
        batch.truncate(n_new);
        // Where nothing better comes up the next open node is visited next.
        if let Some(next) = next_open(pool, first_open) {
            ask_for(neighbours(pool[next].node()));
        }
        score(batch, products);
        let mut worst = if pool.len() >= ef { pool[ef - 1] } else { Entry::LEAST };
        for (&node, &product) in batch.iter().zip(products.iter()) {
            let entry = Entry::open(product as f32 * scales[node as usize], node);
            if entry > worst {
                first_open = first_open.min(insert(pool, entry, ef));
                worst = if pool.len() >= ef { pool[ef - 1] } else { Entry::LEAST };
            }
        }
    }
    found.clear();
    found.extend(pool.iter().map(|entry| entry.seen()));
    found
}

fn next_open(pool: &[Entry], from: usize) -> Option<usize> {
    pool[from..].iter().position(|entry| entry.is_open()).map(|i| from + i)
}

/// The `ef` best of given nodes by their codes, best first.
pub fn best_of<'s>(graph: &Graph, query: &Query<'_>, nodes: &[u32], ef: usize, scratch: &'s mut Scratch) -> &'s [Seen] {
    let scales = graph.scales();
    let Scratch { pool, found, products, .. } = scratch;
    query.score(graph.codes(), nodes, products);
    pool.clear();
    for (&node, &product) in nodes.iter().zip(products.iter()) {
        let entry = Entry::open(product as f32 * scales[node as usize], node);
        if pool.len() < ef || pool.last().is_some_and(|&worst| entry > worst) {
            insert(pool, entry, ef);
        }
    }
    found.clear();
    found.extend(pool.iter().map(|entry| entry.seen()));
    found
}

/// From the entry down to the nodes that the lowest layer is entered by: always to the best neighbour on the layers that few
/// nodes have, and by a walk on the last of them.
fn descend(graph: &Graph, query: &Query<'_>, n_ways: usize, scratch: &mut Scratch) {
    let entry = graph.shape().entry;
    let score = |nodes: &[u32], products: &mut Vec<i32>| query.score(graph.codes(), nodes, products);
    let mut best = scored(entry, graph.scales(), score, scratch);
    let top = graph.level(entry);
    let first = if n_ways > 1 { 2 } else { 1 };
    for layer in (first..=top).rev() {
        best = greedy(best, |node| graph.neighbours(node, layer), graph.scales(), score, scratch);
    }
    if n_ways > 1 && top > 0 {
        best_first(&[best], |node| graph.neighbours(node, 1), graph.scales(), score, n_ways, scratch);
    } else {
        scratch.found.clear();
        scratch.found.push(best);
    }
}

/// A node with its score.
pub fn scored(node: u32, scales: &[f32], score: impl Fn(&[u32], &mut Vec<i32>), scratch: &mut Scratch) -> Seen {
    score(&[node], &mut scratch.products);
    Seen { score: scratch.products[0] as f32 * scales[node as usize], node }
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
            let seen = Seen { score: product as f32 * scales[node as usize], node };
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

/// Puts an entry where it belongs in a pool that keeps `ef`, the worst leaving a full one; says where.
fn insert(pool: &mut Vec<Entry>, entry: Entry, ef: usize) -> usize {
    if pool.len() >= ef {
        pool.pop();
    }
    let place = pool.partition_point(|&other| other > entry);
    pool.insert(place, entry);
    place
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_rise_with_the_score_and_fall_with_the_node() {
        let scores = [f32::MIN, -3.5, -1e-40, 0.0, 1e-40, 0.25, 7.0, f32::MAX];
        for (i, &a) in scores.iter().enumerate() {
            for &b in &scores[i + 1..] {
                assert!(Entry::open(a, 0) < Entry::open(b, NODES_MAX as u32 - 1), "{a} {b}");
            }
            for node in [0, 1, 77, NODES_MAX as u32 - 1] {
                let entry = Entry::open(a, node);
                assert!(entry.is_open() && !entry.visited().is_open() && entry > Entry::LEAST);
                assert_eq!((entry.seen(), entry.visited().seen()), (Seen { score: a, node }, Seen { score: a, node }));
                assert!(node == 0 || entry < Entry::open(a, node - 1));
            }
        }
        assert_eq!(Entry::open(-0.0, 3), Entry::open(0.0, 3), "zero has one sign");
    }

    #[test]
    fn a_pool_keeps_the_best() {
        let mut pool = Vec::new();
        for (i, score) in [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0].into_iter().enumerate() {
            let entry = Entry::open(score, i as u32);
            if pool.len() < 4 || entry > pool[3] {
                insert(&mut pool, entry, 4);
            }
        }
        assert_eq!(pool.iter().map(|entry| entry.node()).collect::<Vec<_>>(), [5, 7, 4, 2]);
    }
}
