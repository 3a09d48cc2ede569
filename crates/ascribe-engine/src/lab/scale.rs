//! What a store of any size takes on any number of machines, before there is one: bytes, memory, network, time.
//!
//! Bytes follow from the layout (docs/STORE.md); time from rates that a probe of a second measures on one core of this machine:
//! how fast the shard job scores rows of that length under that many queries. What the probe cannot know (disks, network) is
//! asked for and repeated in the answer. `docs/scale.md` says how far the model was off where it could be checked.

use ascribe_core::{ExampleId, RowType};
use ascribe_index::shard_job::{Partial, ROWS_AT_ONCE, score_rows};
use ascribe_linalg::Stream;
use ndarray::{Array2, s};
use serde::Serialize;

use super::features::{SHARD_NUMBERS, SHARD_ROWS_MAX};
use crate::error::EngineError;
use crate::machine::cpu_seconds;

/// Bytes of a row beside its numbers: id, norm, scale, error.
const ROW_LABELS: u64 = 8 + 4 + 4 + 4;
/// Bytes of a row in the Parquet side file: measured on the demo's store, 2,048 rows a file.
const SIDE_BYTES: u64 = 21;
/// Leaves of the shard's hash: 32 bytes for 16 KiB.
const LEAF_PART: u64 = 512;
/// A line of the manifest log.
const LOG_LINE: u64 = 420;
/// Rows that the engine hands to a function at once.
const BATCH_ROWS: u64 = 8192;
/// An executor or scheduler without a job, about: not measured for every version of the engine.
const PROCESS_BYTES: u64 = 108 << 20;
/// An exact sum on the wire: a few limbs of its 70.
const SUM_WIRE_BYTES: u64 = 42;
/// The same in memory.
const SUM_BYTES: u64 = 568;
/// A best row, on the wire and in memory.
const BEST_BYTES: u64 = 16;
/// CPU seconds of a probe.
const PROBE_SECONDS: f64 = 0.6;
/// Queries of the probe: more change nothing per query.
const PROBE_QUERIES: u64 = 32;
/// Datasets of the probe.
const PROBE_DATASETS: u32 = 16;

/// What is to be planned.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRequest {
    /// Rows of the store.
    pub rows: u64,
    /// Numbers per row.
    pub dim: usize,
    /// Numbers at rest.
    pub row_type: RowType,
    /// Queries of a job.
    pub queries: u64,
    /// Best rows per query.
    pub k: u64,
    /// Datasets.
    pub datasets: u64,
    /// Executors.
    pub executors: u64,
    /// Cores of each; below 1 where executors share a core.
    pub cores: f64,
    /// GB/s that an executor reads from its disk or from the object store.
    pub disk_gb_s: f64,
    /// GB/s of an executor's network.
    pub network_gb_s: f64,
    /// Tokens per row, and tokens per CPU-second of the gradient stage (`ascribe plan --model` measures it); for the build.
    pub build: Option<(u64, f64)>,
}

/// The plan. Bytes in bytes, time in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct ScalePlan {
    /// Rows.
    pub rows: u64,
    /// Numbers per row.
    pub dim: usize,
    /// Executors.
    pub executors: u64,
    /// Cores of each.
    pub cores: f64,
    /// What lies on disks.
    pub storage: Storage,
    /// What a scoring job takes.
    pub score: Score,
    /// What making the rows takes.
    pub build: Option<Build>,
    /// What was measured or assumed.
    pub rates: Rates,
}

/// What lies on disks.
#[derive(Clone, Debug, Serialize)]
pub struct Storage {
    /// Shards with their labels and leaves.
    pub shard_bytes: u64,
    /// Side files.
    pub side_bytes: u64,
    /// Manifest, sums of datasets.
    pub other_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
    /// Shards.
    pub shards: u64,
    /// Of the total, per executor.
    pub per_executor_bytes: u64,
}

/// What a scoring job takes.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// Cores together.
    pub cpu_seconds: f64,
    /// If only cores counted.
    pub compute_seconds: f64,
    /// If only disks counted.
    pub read_seconds: f64,
    /// The results of shards, over the network.
    pub network_bytes: u64,
    /// If only the network counted.
    pub network_seconds: f64,
    /// Expected: the slower of computing and reading, then the network, and the unevenness of the last shards.
    pub seconds: f64,
    /// `compute`, `disk` or `network`.
    pub bound_by: &'static str,
    /// Memory of an executor beside mapped shards.
    pub executor_bytes: u64,
    /// Memory of the process that asks.
    pub client_bytes: u64,
}

/// What making the rows takes.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// Cores together.
    pub cpu_seconds: f64,
    /// By the clock.
    pub seconds: f64,
}

/// What was measured or assumed.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// Multiply-adds of the shard job, one core, with joining; measured here.
    pub mul_adds_per_cpu_second: f64,
    /// Asked for.
    pub disk_gb_s: f64,
    /// Asked for.
    pub network_gb_s: f64,
}

/// Plans.
///
/// # Errors
/// [`EngineError::Setting`] for a number that is none or beyond what a store can hold.
pub fn run(request: &ScaleRequest) -> Result<ScalePlan, EngineError> {
    check(request)?;
    let r = request;
    let storage = storage(r);
    let rate = probe(r)?;
    let cpu_seconds = r.rows as f64 * r.dim as f64 * r.queries as f64 / rate;
    let all_cores = r.executors as f64 * r.cores;
    let compute_seconds = cpu_seconds / all_cores.min(storage.shards as f64);
    let read_seconds = storage.total_bytes as f64 / (r.executors as f64 * r.disk_gb_s * 1e9);
    // Records of a dataset lie together: a shard has two datasets, now and then more.
    let per_shard = r.datasets.min(2) * r.queries * (SUM_WIRE_BYTES + BEST_BYTES * r.k);
    let network_bytes = storage.shards * per_shard;
    let network_seconds = network_bytes as f64 / (r.executors as f64 * r.network_gb_s * 1e9);
    // The last shard of the slowest core: half a shard's time on average, and nobody helps.
    let last_shard = compute_seconds.max(read_seconds) / (storage.shards as f64 / all_cores).max(1.0) / 2.0;
    let slower = [("compute", compute_seconds), ("disk", read_seconds), ("network", network_seconds)];
    let bound_by = slower.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("compute", |slowest| slowest.0);
    let state = r.datasets * r.queries * (SUM_BYTES + (4 * r.k + 16) * BEST_BYTES);
    let queries_bytes = r.queries * r.dim as u64 * 4;
    let score = Score {
        cpu_seconds,
        compute_seconds,
        read_seconds,
        network_bytes,
        network_seconds,
        seconds: compute_seconds.max(read_seconds) + network_seconds + last_shard,
        bound_by,
        executor_bytes: PROCESS_BYTES + queries_bytes + r.cores.ceil() as u64 * (BATCH_ROWS * r.queries * 8 + state),
        client_bytes: PROCESS_BYTES + queries_bytes + 2 * state,
    };
    let build = r.build.map(|(tokens, rate)| {
        let cpu_seconds = r.rows as f64 * tokens as f64 / rate;
        Build { cpu_seconds, seconds: cpu_seconds / all_cores }
    });
    let rates = Rates { mul_adds_per_cpu_second: rate, disk_gb_s: r.disk_gb_s, network_gb_s: r.network_gb_s };
    Ok(ScalePlan { rows: r.rows, dim: r.dim, executors: r.executors, cores: r.cores, storage, score, build, rates })
}

fn check(r: &ScaleRequest) -> Result<(), EngineError> {
    let rates = [("--disk-gb-s", r.disk_gb_s), ("--network-gb-s", r.network_gb_s), ("--cores", r.cores)];
    let counts = [
        ("--rows", r.rows),
        ("--dim", r.dim as u64),
        ("--queries", r.queries),
        ("--k", r.k),
        ("--datasets", r.datasets),
        ("--executors", r.executors),
    ];
    let found = counts.iter().find(|(_, n)| *n == 0 || *n > 1 << 50).map(|(name, n)| (*name, n.to_string()));
    let bad = rates.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)).map(|(name, x)| (*name, x.to_string()));
    match found.or(bad) {
        Some((setting, found)) => {
            Err(EngineError::Setting { setting, expected: "a number above 0 and below 10^15".into(), found })
        }
        None => Ok(()),
    }
}

fn storage(r: &ScaleRequest) -> Storage {
    let row = (r.row_type.row_bytes(r.dim) as u64).next_multiple_of(64) + ROW_LABELS;
    let rows_per_shard = (SHARD_NUMBERS / r.dim).clamp(1, SHARD_ROWS_MAX) as u64;
    let shards = r.rows.div_ceil(rows_per_shard);
    let data = r.rows.saturating_mul(row);
    let shard_bytes = data.saturating_add(data / LEAF_PART);
    let side_bytes = r.rows.saturating_mul(SIDE_BYTES);
    // Sums: two f64 per number and dataset.
    let other_bytes = shards * LOG_LINE + r.datasets * r.dim as u64 * 16;
    let total_bytes = shard_bytes.saturating_add(side_bytes).saturating_add(other_bytes);
    Storage { shard_bytes, side_bytes, other_bytes, total_bytes, shards, per_executor_bytes: total_bytes / r.executors }
}

/// Multiply-adds a second of one core: rows scored and joined as the shard job does it.
fn probe(r: &ScaleRequest) -> Result<f64, EngineError> {
    let queries = r.queries.min(PROBE_QUERIES) as usize;
    let mut stream = Stream::new(7, "scale/probe");
    let mut drawn = |rows: usize| {
        let numbers = (0..rows * r.dim).map(|_| stream.normal() as f32).collect();
        Array2::from_shape_vec((rows, r.dim), numbers).expect("as many numbers as the shape has")
    };
    // Rows beyond the caches, as in a scan; whole chunks of them.
    let n_chunks = ((32 << 20) / (4 * r.dim) / ROWS_AT_ONCE).clamp(1, 1 << 12);
    let rows = drawn(n_chunks * ROWS_AT_ONCE);
    let queries = drawn(queries);
    let numbers: Vec<usize> = (0..ROWS_AT_ONCE).collect();
    let mut joined = Partial::new(queries.nrows(), r.k as usize);
    let mut scores = Vec::with_capacity(ROWS_AT_ONCE * queries.nrows());
    // CPU time: a busy machine does not look like a slow one.
    let (began, mut done) = (cpu_seconds(), 0);
    while cpu_seconds() - began < PROBE_SECONDS {
        let at = done % rows.nrows();
        scores.clear();
        score_rows(rows.slice(s![at..at + ROWS_AT_ONCE, ..]), queries.view(), &numbers, &mut scores)?;
        for (i, scores) in scores.chunks_exact(queries.nrows()).enumerate() {
            joined.push(ExampleId { dataset: (done + i) as u32 % PROBE_DATASETS, idx: (done + i) as u32 }, scores);
        }
        done += ROWS_AT_ONCE;
    }
    Ok((done * queries.nrows()) as f64 * r.dim as f64 / (cpu_seconds() - began))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: u64, executors: u64) -> ScaleRequest {
        ScaleRequest {
            rows,
            dim: 512,
            row_type: RowType::Int8,
            queries: 8,
            k: 10,
            datasets: 100,
            executors,
            cores: 4.0,
            disk_gb_s: 1.0,
            network_gb_s: 1.0,
            build: Some((128, 1000.0)),
        }
    }

    #[test]
    fn bytes_by_hand() {
        let plan = run(&request(1_000_000, 2)).unwrap();
        // 512 codes and 20 bytes of labels a row, 1/512 for the leaves; 21 bytes in the side file.
        assert_eq!(plan.storage.shard_bytes, 532_000_000 + 532_000_000 / 512);
        assert_eq!(plan.storage.side_bytes, 21_000_000);
        assert_eq!(plan.storage.shards, 1_000_000_u64.div_ceil(1024));
        assert_eq!(plan.build.unwrap().cpu_seconds, 128_000.0);
        assert!(plan.rates.mul_adds_per_cpu_second > 1e6);
    }

    #[test]
    fn twice_the_executors_halve_what_is_divided() {
        let (few, many) = (run(&request(50_000_000, 2)).unwrap(), run(&request(50_000_000, 4)).unwrap());
        assert_eq!(few.score.read_seconds, 2.0 * many.score.read_seconds);
        assert_eq!(few.score.network_bytes, many.score.network_bytes);
        assert_eq!(few.storage.total_bytes, many.storage.total_bytes);
    }

    #[test]
    fn half_a_core_takes_twice_as_long() {
        let of = |executors, cores| run(&ScaleRequest { cores, ..request(50_000_000, executors) }).unwrap();
        let (half, whole) = (of(4, 0.5), of(2, 1.0));
        // Each probes by itself: rates differ, seconds over rates do not.
        let work = |plan: &ScalePlan| plan.score.compute_seconds * plan.rates.mul_adds_per_cpu_second;
        assert!((work(&half) / work(&whole) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_is_refused_with_its_name() {
        let error = run(&ScaleRequest { executors: 0, ..request(1, 1) }).unwrap_err().to_string();
        assert!(error.contains("--executors"), "{error}");
        let error = run(&ScaleRequest { disk_gb_s: f64::NAN, ..request(1, 1) }).unwrap_err().to_string();
        assert!(error.contains("--disk-gb-s"), "{error}");
    }
}
