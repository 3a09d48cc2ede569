//! How fast a store is searched on this machine, with the machine's own limits measured in the same run.
//!
//! Rows are made (unit vectors around centres: what neighbour graphs are usually judged on) or read from `.npy`, so that
//! other libraries can be given the same. Figures: memory read by all cores; a scan of the whole store for one query and
//! for blocks of them, as bytes of rows and as operations; the same kernel on rows that stay in the cache, which is the
//! product's peak in the row type; certified against exact search; the graph at rising effort, on one thread.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::{
    Column, Digest, ExampleId, FeatureReader, FeatureSink, FeatureSpec, Progress, ProjectorSpec, RowType,
};
use ascribe_index::{CertifiedIndex, Effort, ExactIndex, Filter, Hit, HnswIndex, HnswParams, VectorIndex};
use ascribe_linalg::Stream;
use ascribe_linalg::scan::{Block, Lines, Queries, Scores};
use ascribe_models::vision::data::read_matrix;
use ascribe_store::features::make_companion;
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::Serialize;

use super::cold::ColdFigure;
use crate::error::EngineError;
use crate::machine;

/// Rows per query.
pub(super) const K: usize = 10;
/// Queries of the largest block.
const N_QUERIES: usize = 64;
/// Queries that the graph is asked.
const N_ANN_QUERIES: usize = 500;
/// Centres of made rows.
const N_CENTRES: usize = 200;
/// Bytes that are read to measure memory: more than the caches hold.
const READ_BYTES: usize = 768 << 20;
/// Times that a figure is taken; the best counts.
const REPEATS: usize = 5;
/// Rows of a shard.
const SHARD_ROWS: u32 = 16_384;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    /// Rows, where none are given.
    pub rows: usize,
    /// Numbers of a row.
    pub dim: usize,
    /// Rows `[n, dim]`, `.npy`, in their place.
    pub data: Option<PathBuf>,
    /// Queries `[Q, dim]`, `.npy`.
    pub queries: Option<PathBuf>,
    /// Folder of the store; kept and used again. Without it a temporary one.
    pub dir: Option<PathBuf>,
    /// Build a graph, too.
    pub hnsw: bool,
    /// Measure a search whose rows come from the disk, too.
    pub cold: bool,
}

/// The figures. GB are 10⁹ bytes.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Rows searched.
    pub rows: u64,
    /// Numbers of a row.
    pub dim: usize,
    /// Cores.
    pub threads: usize,
    /// Memory read by all cores.
    pub read_gb_s: f64,
    /// Bytes of int8 rows scanned for one query, every score worked out, from the page cache: that of `scans`.
    pub scan_gb_s: f64,
    /// The same of a certified search through int8 rows as a whole: thresholds, bounds, rows scored again and the best of them.
    pub certified_gb_s: f64,
    /// Certified hits were those of brute force, every id and every bit of every score.
    pub certified_equals_exact: bool,
    /// Milliseconds of certified top-10 for one query, and for the whole block: int4 rows first for the one, int8 for the block.
    pub certified_ms: [f64; 2],
    /// Milliseconds for one query through int8 rows alone.
    pub certified_int8_ms: f64,
    /// Rows that were scanned for one query: `int4`, or `int8` where too few were ruled out by those.
    pub certified_scanned: &'static str,
    /// Rows scored again for that query.
    pub certified_rescored: u64,
    /// Milliseconds of brute force for the same.
    pub exact_ms: [f64; 2],
    /// Rows scored again, of every query of the block.
    pub rows_rescored_mean: f64,
    /// Most resident memory of the process so far, MiB.
    pub peak_rss_mib: f64,
    /// By row type.
    pub scans: Vec<ScanFigure>,
    /// By effort; empty if no graph was wanted.
    pub hnsw: Vec<HnswFigure>,
    /// CPU-seconds of building the graph.
    pub hnsw_build_cpu_s: Option<f64>,
    /// With rows that come from the disk; none if it was not wanted.
    pub cold: Option<ColdFigure>,
}

/// The kernels alone over one row type, all cores.
#[derive(Clone, Debug, Serialize)]
pub struct ScanFigure {
    /// The type.
    pub row_type: &'static str,
    /// Queries at once.
    pub queries: usize,
    /// Bytes of rows a second.
    pub gb_s: f64,
    /// Operations (two per number and query) a second, 10⁹.
    pub gop_s: f64,
    /// The same kernel on rows that stay in the cache.
    pub peak_gop_s: f64,
}

/// The graph at one effort, one thread.
#[derive(Clone, Debug, Serialize)]
pub struct HnswFigure {
    /// Candidates.
    pub ef: usize,
    /// Candidates that were scored exactly.
    pub n_exact: usize,
    /// Recall@10 against brute force.
    pub recall: f64,
    /// Queries a second of the clock.
    pub qps: f64,
    /// Queries a CPU-second.
    pub qps_per_cpu: f64,
}

/// Measures. The store is made first, where it is not there.
///
/// # Errors
/// Files that do not fit; those of the store and of the search.
pub fn run(request: &BenchRequest, progress: &dyn Progress) -> Result<BenchReport, EngineError> {
    let temporary = request.dir.is_none();
    let name = format!("ascribe-bench-search-{}", std::process::id());
    let dir = request.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
    let report = run_in(request, &dir, progress);
    if temporary {
        // What was measured matters, not whether the folder could be removed.
        let _ = std::fs::remove_dir_all(&dir);
    }
    report
}

fn run_in(request: &BenchRequest, dir: &Path, progress: &dyn Progress) -> Result<BenchReport, EngineError> {
    let given = request.data.as_deref().map(read_matrix).transpose()?;
    let (rows, dim) = given.as_ref().map_or((request.rows, request.dim), |rows| rows.dim());
    let store = made_store(dir, rows, dim, given.as_ref(), progress)?;
    drop(given);
    let queries = match &request.queries {
        Some(path) => read_matrix(path)?,
        None => drawn(&Centres::new(dim), "bench-search/queries", N_ANN_QUERIES),
    };
    let block = queries.slice(s![..N_QUERIES.min(queries.nrows()), ..]);
    progress.start("search", 0, "");
    let read_gb_s = read_rate();
    let companion = make_companion(&store, RowType::Int8, progress)?;
    let coarse = make_companion(&store, RowType::Int4, progress)?;
    let (fine, exact) = (CertifiedIndex::new(&store, Some(&companion))?, ExactIndex::new(&store)?);
    let certified = CertifiedIndex::new(&store, Some(&companion))?.with_coarse(Some(&coarse))?;
    let all = Filter::default();
    let search = |queries| certified.search_certified(queries, K, &all);
    let brute = |queries| exact.search_many(queries, K, Effort::default());
    // The first searches hash the shards and bring them into the page cache.
    let (found, certificate) = search(block)?;
    let truth = brute(block)?;
    let one = block.slice(s![..1, ..]);
    let (alone_equal, certified_scanned, certified_rescored) = alone(&certified, block, &truth)?;
    let certified_int8_ms = best_ms(|| fine.search_certified(one, K, &all).map(drop))?;
    let certified_ms = [best_ms(|| search(one).map(drop))?, best_ms(|| search(block).map(drop))?];
    let exact_ms = [best_ms(|| brute(one).map(drop))?, best_ms(|| brute(block).map(drop))?];
    let row_bytes = companion.header().stride() as f64 * store.n_rows() as f64;
    let mut report = BenchReport {
        rows: store.n_rows(),
        dim,
        threads: rayon::current_num_threads(),
        read_gb_s,
        scan_gb_s: 0.0,
        certified_gb_s: row_bytes / 1e6 / certified_int8_ms,
        certified_equals_exact: found == truth && alone_equal,
        certified_ms,
        certified_int8_ms,
        certified_scanned,
        certified_rescored,
        exact_ms,
        rows_rescored_mean: certificate.rescored.iter().sum::<u64>() as f64 / block.nrows() as f64,
        peak_rss_mib: machine::peak_rss_mib(),
        scans: Vec::new(),
        hnsw: Vec::new(),
        hnsw_build_cpu_s: None,
        cold: None,
    };
    for row_type in [RowType::Int8, RowType::Int4, RowType::Bf16, RowType::F16, RowType::F32] {
        let of_type = if row_type == RowType::F32 { None } else { Some(make_companion(&store, row_type, progress)?) };
        for n in [1, 32, N_QUERIES].into_iter().filter(|&n| n <= block.nrows()) {
            report.scans.push(scan_rate(of_type.as_ref().unwrap_or(&store), block.slice(s![..n, ..]))?);
        }
    }
    report.scan_gb_s = report.scans.first().map_or(0.0, |int8| int8.gb_s);
    if request.hnsw {
        let truth = brute(queries.view())?;
        (report.hnsw, report.hnsw_build_cpu_s) = graph(&store, dir, queries.view(), &truth)?;
    }
    if request.cold {
        report.cold = Some(super::cold::measure(dir, one)?);
    }
    progress.finish("measured");
    Ok(report)
}

/// Asks for the queries one by one, which goes the way of the coarse rows: whether all hits are the true ones, which rows were
/// scanned for the first, and how many scored again.
fn alone(
    index: &CertifiedIndex<'_>,
    queries: ArrayView2<'_, f32>,
    truth: &[Vec<Hit>],
) -> Result<(bool, &'static str, u64), EngineError> {
    let (mut all_equal, mut first) = (true, None);
    for (i, hits) in truth.iter().enumerate() {
        let (found, certificate) = index.search_certified(queries.slice(s![i..i + 1, ..]), K, &Filter::default())?;
        all_equal &= found[0] == *hits;
        first.get_or_insert((certificate.scanned.name(), certificate.rescored[0]));
    }
    let (scanned, n_rescored) = first.unwrap_or_default();
    Ok((all_equal, scanned, n_rescored))
}

/// The store in `dir`, made of given or drawn rows.
fn made_store(
    dir: &Path,
    n: usize,
    dim: usize,
    given: Option<&Array2<f32>>,
    progress: &dyn Progress,
) -> Result<FeatureStore, EngineError> {
    let spec = FeatureSpec {
        model: Digest::of(b"bench search"),
        checkpoint: "none".into(),
        quantity: "synthetic".into(),
        loss: "none".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![Column { name: "all".into(), start: 0, len: dim }],
        dim,
        corpus: Digest::of_json(&(n, dim, given.is_some()))?,
    };
    if let Ok(store) = FeatureStore::open(dir, Some(&spec)) {
        return Ok(store);
    }
    let mut writer = FeatureWriter::create_or_resume(dir, &spec, RowType::F32, SHARD_ROWS, n as u64)?;
    let centres = Centres::new(dim);
    progress.start("rows", n as u64, "rows");
    let step = SHARD_ROWS as usize;
    for start in (writer.n_committed() as usize..n).step_by(step) {
        let end = (start + step).min(n);
        let rows = match given {
            Some(rows) => rows.slice(s![start..end, ..]).to_owned(),
            None => drawn(&centres, &format!("bench-search/rows/{start}"), end - start),
        };
        let ids: Vec<ExampleId> =
            (start..end).map(|i| ExampleId { dataset: (i * 10 / n) as u32, idx: i as u32 }).collect();
        writer.push(&ids, rows.view())?;
        progress.advance((end - start) as u64);
    }
    progress.finish("rows");
    Ok(writer.finish()?)
}

/// Centres that rows and queries gather around.
struct Centres(Array2<f32>);

impl Centres {
    fn new(dim: usize) -> Self {
        let mut stream = Stream::new(1, "bench-search/centres");
        Self(Array2::from_shape_fn((N_CENTRES, dim), |_| stream.normal() as f32))
    }
}

/// `n` vectors of length 1 around the centres, drawn in parallel from a stream for each.
fn drawn(centres: &Centres, name: &str, n: usize) -> Array2<f32> {
    let dim = centres.0.ncols();
    let mut rows = Array2::zeros((n, dim));
    rows.axis_iter_mut(ndarray::Axis(0)).into_par_iter().enumerate().for_each(|(i, mut row)| {
        let mut stream = Stream::new(i as u64, name);
        let centre = centres.0.row(stream.below(N_CENTRES as u32) as usize);
        // Sums of three uniform numbers are normal enough here, and much quicker.
        let mut noise = || (stream.uniform() + stream.uniform() + stream.uniform() - 1.5) as f32;
        row.zip_mut_with(&centre, |x, &c| *x = c + 1.8 * noise());
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        row.mapv_inplace(|x| (f64::from(x) / norm) as f32);
    });
    rows
}

/// Bytes that all cores read from memory in a second, 10⁹.
fn read_rate() -> f64 {
    let words: Vec<u64> = (0..READ_BYTES as u64 / 8).collect();
    let part = words.len().div_ceil(4 * rayon::current_num_threads().max(1));
    let sum = |part: &[u64]| {
        let mut lanes = [0u64; 16];
        for line in part.as_chunks::<16>().0 {
            for (lane, &word) in lanes.iter_mut().zip(line) {
                *lane = lane.wrapping_add(word);
            }
        }
        lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(lane))
    };
    let once = || {
        let begun = Instant::now();
        std::hint::black_box(words.par_chunks(part).map(sum).reduce(|| 0, u64::wrapping_add));
        begun.elapsed().as_secs_f64()
    };
    once();
    let s = (0..REPEATS).map(|_| once()).fold(f64::INFINITY, f64::min);
    READ_BYTES as f64 / 1e9 / s
}

fn best_ms<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let begun = Instant::now();
        work()?;
        best = best.min(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

/// The kernel alone over all rows of a store, then over a few of them again and again.
fn scan_rate(store: &FeatureStore, queries: ArrayView2<'_, f32>) -> Result<ScanFigure, EngineError> {
    const PART: usize = 256;
    let row_type = store.row_type();
    let prepared = Queries::new(row_type, queries);
    let views: Vec<_> = (0..store.n_shards()).map(|i| store.shard_view(i)).collect::<Result<_, _>>()?;
    let n: usize = views.iter().map(|view| view.n_rows).sum();
    let stride = store.header().stride();
    let multiply = |bytes: &[u8], dim: usize, scores: &mut Scores| {
        let (lines, width) = match row_type {
            RowType::F32 => (Lines::F32(bytemuck::cast_slice(bytes)), 4),
            RowType::F16 => (Lines::F16(bytemuck::cast_slice(bytes)), 2),
            RowType::Bf16 => (Lines::Bf16(bytemuck::cast_slice(bytes)), 2),
            RowType::Int8 => (Lines::Int8(bytes), 1),
            RowType::Int4 => (Lines::Int4(bytes), 1),
        };
        scores.multiply(&Block { lines, n_rows: bytes.len() / stride, dim, stride: stride / width }, &prepared);
    };
    let dim = store.spec().dim;
    let pass = || {
        let parts: Vec<&[u8]> = views.iter().flat_map(|view| view.rows.chunks(PART * stride)).collect();
        parts.par_iter().with_min_len(4).for_each_init(Scores::new, |scores, bytes| multiply(bytes, dim, scores));
        Ok::<(), EngineError>(())
    };
    pass()?;
    let s = best_ms(pass)? / 1e3;
    let few = views.first().map_or(&[][..], |view| &view.rows[..view.rows.len().min(64 * stride)]);
    let n_few = few.len() / stride.max(1);
    let repeats = (1 << 29) / (2 * n_few * dim * queries.nrows()).max(1) + 1;
    let peak_s = best_ms(|| {
        (0..4 * rayon::current_num_threads()).into_par_iter().for_each_init(Scores::new, |scores, _| {
            (0..repeats).for_each(|_| multiply(few, dim, scores));
        });
        Ok::<(), EngineError>(())
    })? / 1e3;
    let per_row = 2.0 * (dim * queries.nrows()) as f64;
    Ok(ScanFigure {
        row_type: row_type.name(),
        queries: queries.nrows(),
        gb_s: (n * stride) as f64 / 1e9 / s,
        gop_s: n as f64 * per_row / 1e9 / s,
        peak_gop_s: (4 * rayon::current_num_threads() * repeats * n_few) as f64 * per_row / 1e9 / peak_s,
    })
}

/// A graph over the store, kept beside it, at rising effort on one thread.
fn graph(
    store: &FeatureStore,
    dir: &Path,
    queries: ArrayView2<'_, f32>,
    truth: &[Vec<Hit>],
) -> Result<(Vec<HnswFigure>, Option<f64>), EngineError> {
    let path = dir.join(super::INDEX_FOLDER);
    let mut build_cpu_s = None;
    if !path.exists() {
        let begun = machine::cpu_seconds();
        HnswIndex::build(store, HnswParams::default())?.save(&path)?;
        build_cpu_s = Some(machine::cpu_seconds() - begun);
    }
    let index = HnswIndex::open(store, &path)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| EngineError::Setting {
        setting: "threads",
        expected: "one more".into(),
        found: error.to_string(),
    })?;
    let mut figures = Vec::new();
    for ef in [10, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 128, 256] {
        // Codes of a byte err by a thousandth of a cosine: the true ten are among the twenty best by them.
        let effort = Effort { ef, n_exact: 2 * K };
        let search = || pool.install(|| index.search_many(queries, K, effort));
        let found = search()?;
        let (cpu, begun) = (machine::cpu_seconds(), Instant::now());
        for _ in 0..REPEATS {
            search()?;
        }
        let (cpu_s, s) = (machine::cpu_seconds() - cpu, begun.elapsed().as_secs_f64());
        let asked = (REPEATS * queries.nrows()) as f64;
        let common = |(t, f): (&Vec<Hit>, &Vec<Hit>)| t.iter().filter(|t| f.iter().any(|f| f.row == t.row)).count();
        let n_found: usize = truth.iter().zip(&found).map(common).sum();
        let recall = n_found as f64 / truth.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        figures.push(HnswFigure { ef, n_exact: effort.n_exact, recall, qps: asked / s, qps_per_cpu: asked / cpu_s });
    }
    Ok((figures, build_cpu_s))
}
