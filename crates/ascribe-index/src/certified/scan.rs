//! One pass over all rows for a group of queries.

use std::borrow::Cow;
use std::ops::Range;

use ascribe_core::RowType;
use ascribe_linalg::scan::{Block, Bounds, Lines, Queries, RowFacts, Scores, Thresholds, reaching};
use ascribe_store::FeatureStore;
use ascribe_store::features::ShardView;
use ascribe_store::mmap::Advice;
use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use super::CertifiedIndex;
use super::ahead::Ahead;
use super::thresholds::{Candidate, Candidates};
use crate::error::IndexError;
use crate::{Filter, Hit};

/// Bytes of a part's rows: they and their products stay in the second cache.
const PART_BYTES: usize = 256 << 10;
/// Rows of a part are a multiple of this: two tiles.
const PART_ROWS: usize = 32;
/// Parts of one task, which one thread scans with thresholds of its own.
const TASK_PARTS: usize = 8;
/// Tasks that start from one threshold. Fixed, so that nothing depends on the number of threads.
const WAVE_TASKS: usize = 24;
/// Candidates of a query that a task holds before it scores them precisely.
const TASK_CANDIDATES: usize = 16 << 10;
/// A pass over a coarse companion is given up when more than one row in so many stays a candidate of some query: a row that is
/// looked at again costs eight times its bytes and a place of memory elsewhere, which is what the fewer bytes of sixteen rows
/// save. Asked after every wave, once there are enough rows to tell.
const COARSE_SHARE: u64 = 32;
const COARSE_SAMPLE: u64 = 8192;

/// Rows of one shard.
pub(super) type Part = (usize, Range<usize>);
/// Per query its hits, and how many rows were scored precisely for it.
type Answers = Vec<(Vec<Hit>, u64)>;

/// Queries in the basis in which a companion keeps its rows, and what turning lost of a product, relative to both norms.
#[derive(Clone, Copy)]
pub(super) struct Turned<'q> {
    pub queries: ArrayView2<'q, f32>,
    pub slack: f64,
}

impl Turned<'_> {
    /// Some of them.
    pub fn slice(&self, rows: Range<usize>) -> Turned<'_> {
        Turned { queries: self.queries.slice(s![rows, ..]), slack: self.slack }
    }
}

/// A pass.
pub(super) struct Pass<'p, 's, 'q> {
    pub index: &'p CertifiedIndex<'s>,
    pub queries: ArrayView2<'q, f32>,
    pub k: usize,
    filter: &'p Filter,
    pub scanned: &'s FeatureStore,
    /// What is scanned is not the precise store: rows have errors.
    is_companion: bool,
    prepared: Queries,
    bounds: Bounds,
    /// What a product may be off beyond the rows' errors, relative to both norms.
    slack: f64,
}

impl<'p, 's, 'q> Pass<'p, 's, 'q> {
    /// Over the rows of `scanned`: the index's store itself or one of its companions, which may keep them in another basis, in which
    /// queries are `turned`.
    pub fn new(
        index: &'p CertifiedIndex<'s>,
        scanned: &'s FeatureStore,
        queries: ArrayView2<'q, f32>,
        turned: Option<Turned<'_>>,
        k: usize,
        filter: &'p Filter,
    ) -> Self {
        let is_companion = !std::ptr::eq(scanned, index.precise);
        let (scanning, slack) = turned.map_or((queries, 0.0), |turned| (turned.queries, turned.slack));
        let prepared = Queries::new(scanned.row_type(), scanning);
        let bounds = Bounds::new(&prepared);
        Self { index, queries, k, filter, scanned, is_companion, prepared, bounds, slack }
    }

    /// Hits of every query, and how many rows were scored precisely for it.
    pub fn run(&self) -> Result<Answers, IndexError> {
        Ok(self.run_while(|_, _| true)?.unwrap_or_default())
    }

    /// The same for a coarse companion; nothing if too few rows are ruled out by it.
    pub fn run_coarse(&self) -> Result<Option<Answers>, IndexError> {
        self.run_while(|n_scanned, n_left| n_scanned < COARSE_SAMPLE || n_left as u64 <= n_scanned / COARSE_SHARE)
    }

    /// Goes on for as long as `is_worth` it says of the rows that were scanned and the candidates that are left of them.
    fn run_while(&self, is_worth: impl Fn(u64, usize) -> bool) -> Result<Option<Answers>, IndexError> {
        let mut found: Vec<Candidates> =
            (0..self.queries.nrows()).map(|_| Candidates::new(self.k, f64::NEG_INFINITY)).collect();
        if self.k == 0 {
            return Ok(Some(vec![(Vec::new(), 0); self.queries.nrows()]));
        }
        let parts = self.parts();
        // The first part alone: it gives the others a threshold to start from.
        let (first, rest) = parts.split_at(1.min(parts.len()));
        let (mut n_scanned, mut ahead) = (0, Ahead::new());
        let mut waves = std::iter::once(first).chain(rest.chunks(WAVE_TASKS * TASK_PARTS)).peekable();
        while let Some(wave) = waves.next() {
            let next = waves.peek().copied().unwrap_or_default();
            let n_rows = wave.iter().map(|(_, rows)| rows.len()).sum::<usize>();
            let bytes = n_rows * self.scanned.header().stride();
            ahead.beside(self.scanned, bytes, next, || self.wave(wave, &mut found))?;
            self.let_go(wave);
            self.sharpen(&mut found)?;
            n_scanned += n_rows as u64;
            if found.iter().any(|all| !is_worth(n_scanned, all.all().len())) {
                return Ok(None);
            }
            for (query, all) in found.iter_mut().enumerate() {
                if all.all().len() > TASK_CANDIDATES {
                    self.settle(query, all)?;
                }
            }
        }
        self.refine(&mut found)?;
        self.finish(found).map(Some)
    }

    fn parts(&self) -> Vec<Part> {
        let stride = self.scanned.header().stride().max(1);
        let rows = (PART_BYTES / stride).next_multiple_of(PART_ROWS).max(PART_ROWS);
        let of_shard = |shard: usize| {
            self.scanned.advise(shard, Advice::Scan);
            let n = self.scanned.entries()[shard].rows as usize;
            (0..n).step_by(rows).map(move |start| (shard, start..(start + rows).min(n)))
        };
        (0..self.scanned.n_shards()).flat_map(of_shard).collect()
    }

    /// Scans some parts and takes over what they found, task by task in their order.
    fn wave(&self, parts: &[Part], found: &mut [Candidates]) -> Result<(), IndexError> {
        let floors: Vec<f64> = found.iter().map(Candidates::threshold).collect();
        let tasks: Vec<Vec<Candidates>> = parts
            .par_chunks(TASK_PARTS)
            .map_init(Scores::new, |scores, task| self.task(task, &floors, scores))
            .collect::<Result<_, IndexError>>()?;
        for task in tasks {
            found.iter_mut().zip(task).for_each(|(all, some)| all.merge(some));
        }
        found.iter_mut().for_each(Candidates::thin);
        Ok(())
    }

    /// One thread's work: a run of parts.
    fn task(&self, parts: &[Part], floors: &[f64], scores: &mut Scores) -> Result<Vec<Candidates>, IndexError> {
        let n_queries = self.queries.nrows();
        let mut found: Vec<Candidates> = floors.iter().map(|&floor| Candidates::new(self.k, floor)).collect();
        let (mut thresholds, mut errors) = (Thresholds::new(&self.bounds, n_queries), Vec::new());
        floors.iter().enumerate().for_each(|(query, &floor)| thresholds.set(query, floor));
        for (shard, rows) in parts {
            // Checked as it is scanned: the part is in the cache for both.
            let view = self.scanned.shard_rows(*shard, [rows.clone()]).map_err(IndexError::reader)?;
            scores.multiply(&Aligned::new(&view, rows.clone()).block(), &self.prepared);
            let error = view.error.filter(|_| self.is_companion).map_or(&[][..], |error| &error[rows.clone()]);
            errors.clear();
            if self.slack > 0.0 {
                // `‖y‖ ≤ n + e`: what turning lost is one more part of the row's error. Up, as an error is.
                let wide = |(&e, &n): (&f32, &f32)| {
                    let (e, n) = (f64::from(e), f64::from(n));
                    ((e + self.slack * (n + e)) as f32).next_up()
                };
                errors.extend(error.iter().zip(&view.norm[rows.clone()]).map(wide));
            }
            let facts = RowFacts {
                scale: view.scale.map_or(&[], |scale| &scale[rows.clone()]),
                error: if self.slack > 0.0 { &errors } else { error },
                norm: &view.norm[rows.clone()],
            };
            reaching(scores, view.row_type, &facts, &self.bounds, &mut thresholds, |reach, thresholds| {
                let row = rows.start + reach.row;
                let is_shown = view.dead.is_empty() || view.is_live(row);
                if !is_shown || !(self.filter.is_all() || self.filter.allows(view.id(row))) {
                    return;
                }
                // An overflow says nothing: the row stays a candidate and lifts no threshold.
                let (lower, upper) = match reach.value.is_finite() && reach.bound.is_finite() {
                    true => (reach.value - reach.bound, reach.value + reach.bound),
                    false => (f64::NEG_INFINITY, f64::INFINITY),
                };
                let all = &mut found[reach.query];
                let candidate = Candidate { shard: *shard as u32, row: row as u32, lower, upper, is_exact: false };
                if all.push(candidate) {
                    thresholds.set(reach.query, all.threshold());
                }
            });
            for (query, all) in found.iter_mut().enumerate() {
                if all.all().len() > TASK_CANDIDATES {
                    all.thin();
                    if all.all().len() > TASK_CANDIDATES {
                        self.settle(query, all)?;
                        thresholds.set(query, all.threshold());
                    }
                }
            }
        }
        Ok(found)
    }

    /// Lets a wave's pages go where they do not stay mapped.
    fn let_go(&self, wave: &[Part]) {
        let mut shards: Vec<usize> = wave.iter().map(|(shard, _)| *shard).collect();
        shards.dedup();
        shards.retain(|&shard| self.index.is_dropped(self.scanned, shard));
        shards.into_par_iter().for_each(|shard| self.scanned.advise(shard, Advice::DontNeed));
    }
}

/// Rows of a shard, aligned for their numbers.
pub(super) struct Aligned<'a> {
    view: ShardView<'a>,
    rows: Range<usize>,
    floats: Cow<'a, [f32]>,
    halves: Cow<'a, [u16]>,
}

impl<'a> Aligned<'a> {
    pub fn new(view: &ShardView<'a>, rows: Range<usize>) -> Self {
        let bytes = &view.rows[rows.start * view.stride_bytes..rows.end * view.stride_bytes];
        let (mut floats, mut halves): (Cow<'a, [f32]>, Cow<'a, [u16]>) = (Cow::Borrowed(&[]), Cow::Borrowed(&[]));
        match view.row_type {
            RowType::F32 => floats = aligned(bytes),
            RowType::F16 | RowType::Bf16 => halves = aligned(bytes),
            RowType::Int8 | RowType::Int4 => {}
        }
        Self { view: *view, rows, floats, halves }
    }

    /// As a kernel reads them.
    pub fn block(&self) -> Block<'_> {
        let view = &self.view;
        let bytes = &view.rows[self.rows.start * view.stride_bytes..self.rows.end * view.stride_bytes];
        let (lines, width) = match view.row_type {
            RowType::F32 => (Lines::F32(&self.floats), 4),
            RowType::F16 => (Lines::F16(&self.halves), 2),
            RowType::Bf16 => (Lines::Bf16(&self.halves), 2),
            RowType::Int8 => (Lines::Int8(bytes), 1),
            RowType::Int4 => (Lines::Int4(bytes), 1),
        };
        Block { lines, n_rows: self.rows.len(), dim: view.dim, stride: view.stride_bytes / width }
    }
}

/// Numbers in place, or (a foreign writer may not have aligned them) copied.
fn aligned<T: bytemuck::Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    bytemuck::try_cast_slice(bytes).map_or_else(|_| Cow::Owned(copied(bytes)), Cow::Borrowed)
}

fn copied<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}
