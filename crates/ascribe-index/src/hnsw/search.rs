//! Searching: each graph nominates, the store decides.

use std::cmp::Ordering;

use ascribe_core::{ExampleId, FeatureReader, RowType};
use ascribe_linalg::elementwise::sum_squares;
use ascribe_linalg::scan::Queries;
use ndarray::ArrayView2;
use rayon::prelude::*;

use super::walk::{Query, Scratch, best_of, walk};
use super::{HnswIndex, Metric, Range};
use crate::candidates::rerank;
use crate::error::IndexError;
use crate::{Effort, Filter, Hit, VectorIndex, check_queries};

/// Where a filter leaves fewer than one node in so many, its nodes are scored one by one: a walk would see mostly others.
const WALK_SHARE: usize = 10;
/// So few nodes are scored one by one whatever their share.
const SCAN_NODES: usize = 2_000;

/// A row that a graph named.
#[derive(Clone, Copy)]
struct Nominee {
    row: u64,
    /// Its score by its point for a query of length 1: the cosine, times its norm where products are wanted.
    estimate: f64,
    /// How far the score hardly lies from it.
    slack: f64,
}

impl Nominee {
    fn least(&self) -> f64 {
        self.estimate - self.slack
    }
}

impl<R: FeatureReader> VectorIndex for HnswIndex<'_, R> {
    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn dim(&self) -> usize {
        self.reader.spec().dim
    }

    /// Each graph nominates `effort.ef` rows. The `k` best of them by estimate and all orphans are scored exactly, and of the
    /// `effort.n_exact` best those that reach the `k`-th score within what estimates err by (four standard errors). Where `filter`
    /// leaves few nodes, all of those are looked at.
    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        if k == 0 || queries.nrows() == 0 {
            return Ok(vec![Vec::new(); queries.nrows()]);
        }
        let filter = filter.clone().without(self.deleted.iter().copied());
        let chosen: Vec<Chosen> = self.ranges.iter().map(|range| Chosen::new(range, &filter)).collect();
        let queries = queries.as_standard_layout();
        let prepared = Queries::new(RowType::Int8, self.projection.points(queries.view()).view());
        (0..queries.nrows())
            .into_par_iter()
            .map_init(Scratch::default, |scratch, q| {
                let nominees = self.nominate(&Query::new(&prepared, q), k, effort, (&filter, &chosen), scratch);
                let query = queries.row(q).to_slice().expect("queries are in standard layout");
                self.decide(query, &nominees, k, &filter)
            })
            .collect()
    }
}

/// Which nodes of a graph a filter leaves.
enum Chosen {
    All,
    /// Few enough to look at each.
    These(Vec<u32>),
    /// One in so many: the walk keeps as many times more.
    OneIn(usize),
}

impl Chosen {
    fn new(range: &Range, filter: &Filter) -> Self {
        if filter.is_all() {
            return Self::All;
        }
        let ids = range.graph.ids();
        let n = ids.len();
        let allowed = |node: &u32| filter.allows(ExampleId::from_u64(ids[*node as usize]));
        // Ids usually rise, so that a dataset is one run of nodes.
        let candidates: Vec<u32> = match filter.dataset_ordinals() {
            Some(datasets) if range.is_sorted => datasets
                .flat_map(|dataset| {
                    let first = ids.partition_point(|&id| (id >> 32) < u64::from(dataset));
                    let last = ids.partition_point(|&id| (id >> 32) <= u64::from(dataset));
                    first as u32..last as u32
                })
                .collect(),
            // Deletions alone leave nearly everything.
            None if filter.deleted().count() * 2 < n => return Self::OneIn(2),
            _ => (0..n as u32).filter(allowed).collect(),
        };
        if candidates.len() > SCAN_NODES && candidates.len() * WALK_SHARE > n {
            return Self::OneIn(n.div_ceil(candidates.len()));
        }
        Self::These(candidates.into_iter().filter(allowed).collect())
    }
}

impl<R: FeatureReader> HnswIndex<'_, R> {
    /// The `k` best by exact scores among nominees, best estimate first, and orphans.
    fn decide(&self, query: &[f32], nominees: &[Nominee], k: usize, filter: &Filter) -> Result<Vec<Hit>, IndexError> {
        let cosine = self.params.metric == Metric::Cosine;
        let (sure, others) = nominees.split_at(k.min(nominees.len()));
        let mut rows: Vec<u64> = sure.iter().map(|n| n.row).chain(self.orphans.iter().copied()).collect();
        let mut hits = Vec::new();
        self.score(query, &mut rows, filter, &mut hits)?;
        if others.is_empty() {
            hits.truncate(k);
            return Ok(hits);
        }
        // In the units of an estimate; a query of zeros has no k-th score that anything could miss.
        let length = if cosine { 1.0 } else { sum_squares(query).sqrt() };
        let kth = k.checked_sub(1).and_then(|last| hits.get(last)).map_or(f64::NEG_INFINITY, |hit| hit.score / length);
        // Written so that a threshold that is no number leaves everything in.
        let is_below = |n: &Nominee| (n.estimate + n.slack).partial_cmp(&kth) == Some(Ordering::Less);
        let reaches = |n: &&Nominee| !is_below(n) && self.orphans.binary_search(&n.row).is_err();
        let mut rows: Vec<u64> = others.iter().filter(reaches).map(|n| n.row).collect();
        self.score(query, &mut rows, filter, &mut hits)?;
        hits.truncate(k);
        Ok(hits)
    }

    /// Scores rows and puts those that the filter allows (only orphans may be others) among the hits, best first.
    fn score(
        &self,
        query: &[f32],
        rows: &mut Vec<u64>,
        filter: &Filter,
        hits: &mut Vec<Hit>,
    ) -> Result<(), IndexError> {
        rows.sort_unstable();
        rows.dedup();
        let cosine = self.params.metric == Metric::Cosine;
        let found = rerank(self.reader, &self.blocks, query, rows, usize::MAX, cosine)?;
        hits.extend(found.into_iter().filter(|hit| filter.is_all() || filter.allows(hit.id)));
        hits.sort_unstable_by(Hit::rank);
        Ok(())
    }

    /// The `n_exact` best nominees by estimate, best first.
    fn nominate(
        &self,
        query: &Query<'_>,
        k: usize,
        effort: Effort,
        (filter, chosen): (&Filter, &[Chosen]),
        scratch: &mut Scratch,
    ) -> Vec<Nominee> {
        let (ef, n_exact) = (effort.ef.max(k), effort.n_exact.max(k));
        let mut nominees: Vec<Nominee> = Vec::new();
        for (range, chosen) in self.ranges.iter().zip(chosen) {
            let is_product = self.params.metric == Metric::InnerProduct;
            if is_product && nominees.len() >= k {
                // With a query of length 1 no product exceeds the row's norm, and norms only fall from here on.
                let by_least = |a: &Nominee, b: &Nominee| b.least().total_cmp(&a.least());
                let (_, kth, _) = nominees.select_nth_unstable_by(k - 1, by_least);
                if range.max_norm < kth.least() {
                    break;
                }
            }
            let graph = &range.graph;
            let found = match chosen {
                Chosen::All => walk(graph, query, ef, scratch),
                Chosen::These(nodes) => best_of(graph, query, nodes, ef, scratch),
                Chosen::OneIn(n) => walk(graph, query, ef.saturating_mul(*n).min(graph.shape().n_nodes), scratch),
            };
            let slack = self.projection.angle_error() + range.code_error(query);
            let (norms, ids) = (graph.norms(), graph.ids());
            nominees.extend(found.iter().filter_map(|seen| {
                let node = seen.node as usize;
                let is_allowed = || filter.is_all() || filter.allows(ExampleId::from_u64(ids[node]));
                if range.rows[node] == Range::GONE || !is_allowed() {
                    return None;
                }
                let cosine = f64::from(seen.score) * query.scale();
                let norm = if is_product { f64::from(norms[node]) } else { 1.0 };
                let row = u64::from(range.rows[node]);
                Some(Nominee { row, estimate: cosine * norm, slack: slack * norm })
            }));
        }
        let best_first = |a: &Nominee, b: &Nominee| b.estimate.total_cmp(&a.estimate).then(a.row.cmp(&b.row));
        if nominees.len() > n_exact {
            nominees.select_nth_unstable_by(n_exact, best_first);
            nominees.truncate(n_exact);
        }
        nominees.sort_unstable_by(best_first);
        nominees
    }
}
