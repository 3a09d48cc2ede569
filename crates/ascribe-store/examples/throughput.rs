//! How fast the store writes and is read, beside the plain file system.
//!
//! `cargo run --release -p ascribe-store --example throughput -- [rows] [dim] [folder] [f32|bf16|…] [plain]`
//!
//! Rows and rows of a shard are those of f32; of a smaller type there are as many more as make the same bytes. `raw` is `dd
//! bs=16M conv=fsync`, `direct` the same with `oflag=direct`, past the page cache as the store writes. `raw, synced` is the same bytes
//! under the flush rule of the store: files of the shards' size, each synced and its folder too before the next begins. Three rounds,
//! turn about; each column has the median of its own; `of best` is beside the fastest of the three. `rows` are the f32 numbers that
//! were taken in. `plain`: the store, too, writes through the page cache.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, RowType};
use ascribe_store::{FeatureStore, FeatureWriter};
use ascribe_testkit::gradient_spec;
use ndarray::Array2;

const PUSH_ROWS: usize = 128;
const ROWS_PER_SHARD: u32 = 2048;
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |text| text.parse());
    let (n_rows, dim) = (number(0, 9_000)?, number(1, 4_096)?);
    let root = args.get(2).map_or_else(std::env::temp_dir, PathBuf::from).join("ascribe-throughput");
    let is_plain = args.get(4).is_some_and(|word| word == "plain");
    println!(
        "{n_rows} f32 rows of {dim} numbers, or as many bytes, pushes of {PUSH_ROWS}, shards of {ROWS_PER_SHARD} f32 rows"
    );
    println!(
        "{:6} {:>8} {:>10} {:>12} {:>12} {:>11} {:>9} {:>10} {:>8} {:>11} {:>11}",
        "type",
        "MiB",
        "raw MB/s",
        "raw, synced",
        "raw, direct",
        "store MB/s",
        "of best",
        "rows GB/s",
        "CPU s",
        "first GB/s",
        "again GB/s"
    );
    for row_type in RowType::ALL.into_iter().filter(|row_type| args.get(3).is_none_or(|name| name == row_type.name())) {
        measure(&root, n_rows, dim, row_type, is_plain)?;
    }
    Ok(())
}

fn measure(
    root: &Path,
    n_f32_rows: usize,
    dim: usize,
    row_type: RowType,
    is_plain: bool,
) -> Result<(), Box<dyn Error>> {
    let more = 32 / row_type.bits();
    let (n_rows, rows_per_shard) = (n_f32_rows * more, ROWS_PER_SHARD * more as u32);
    let len_bytes = n_rows * row_type.row_bytes(dim).next_multiple_of(64);
    let shard_bytes = rows_per_shard as usize * row_type.row_bytes(dim).next_multiple_of(64);
    let block = Array2::from_shape_fn((PUSH_ROWS, dim), |(i, j)| ((i * 31 + j * 17) % 1009) as f32 / 500.0 - 1.0);
    let ids: Vec<ExampleId> = (0..n_rows).map(|i| ExampleId { dataset: i as u32 % 10, idx: i as u32 / 10 }).collect();
    let write = |dir: &Path| -> Result<(f64, f64), Box<dyn Error>> {
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let spec = gradient_spec(&[dim]);
        let mut writer = FeatureWriter::create_or_resume(dir, &spec, row_type, rows_per_shard, n_rows as u64)?;
        if is_plain {
            writer = writer.direct_from(usize::MAX);
        }
        for chunk in ids.chunks(PUSH_ROWS) {
            writer.push(chunk, block.slice(ndarray::s![..chunk.len(), ..]))?;
        }
        drop(writer.finish()?);
        Ok((begun.elapsed().as_secs_f64(), cpu_seconds() - cpu))
    };
    let mut rounds: [Vec<f64>; 5] = Default::default();
    for round in 0..ROUNDS {
        let (raw, store) = (root.join("raw"), root.join("store"));
        let plain_s = dd(&raw, len_bytes, &["conv=fsync"])?;
        let synced_s = write_raw(&raw, len_bytes, shard_bytes)?;
        let direct_s = dd(&raw, len_bytes, &["oflag=direct", "conv=fsync"])?;
        rest();
        let (write_s, cpu_s) = write(&store)?;
        if round + 1 < ROUNDS {
            std::fs::remove_dir_all(&store)?;
            rest();
        }
        rounds.iter_mut().zip([plain_s, synced_s, direct_s, write_s, cpu_s]).for_each(|(all, s)| all.push(s));
    }
    let [plain_s, synced_s, direct_s, write_s, cpu_s] = rounds.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[ROUNDS / 2]
    });
    let best_s = plain_s.min(synced_s).min(direct_s);

    let store = FeatureStore::open(&root.join("store"), None)?;
    // The first pass hashes every shard before it hands out a row; later passes do not.
    let (first_s, again_s) = (scan(&store)?, scan(&store)?);
    let (mb, gb) = (len_bytes as f64 / 1e6, len_bytes as f64 / 1e9);
    println!(
        "{:6} {:8.0} {:10.0} {:12.0} {:12.0} {:11.0} {:7.0} % {:10.2} {:8.2} {:11.2} {:11.2}",
        row_type.name(),
        len_bytes as f64 / f64::from(1 << 20),
        mb / plain_s,
        mb / synced_s,
        mb / direct_s,
        mb / write_s,
        100.0 * best_s / write_s,
        (n_rows * dim * 4) as f64 / 1e9 / write_s,
        cpu_s,
        gb / first_s,
        gb / again_s
    );
    drop(store);
    std::fs::remove_dir_all(root)?;
    rest();
    Ok(())
}

/// Waits: ext4 without a journal looks for an inode past every one that was freed within the last five seconds, which took a tenth of a
/// second of CPU time of what came next.
fn rest() {
    std::thread::sleep(Duration::from_secs(6));
}

/// Seconds that `dd` takes for as many zeros in one file.
fn dd(dir: &Path, len_bytes: usize, how: &[&str]) -> Result<f64, Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    let (to, count) = (format!("of={}", dir.join("dd.bin").display()), format!("count={}", len_bytes / 4096 * 4096));
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", &to, "bs=16M", &count, "iflag=count_bytes", "status=none"]).args(how);
    let begun = Instant::now();
    if !dd.status()?.success() {
        return Err("dd failed".into());
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_dir_all(dir)?;
    Ok(seconds)
}

/// Seconds for as many bytes from one buffer in files of `piece` bytes; each is synced, and its folder.
fn write_raw(dir: &Path, len_bytes: usize, piece: usize) -> Result<f64, Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    let bytes = vec![0x5Au8; 16 << 20];
    let begun = Instant::now();
    for start in (0..len_bytes).step_by(piece) {
        let mut raw = File::create(dir.join(format!("{start}.bin")))?;
        let mut left = piece.min(len_bytes - start);
        while left > 0 {
            let n = left.min(bytes.len());
            raw.write_all(&bytes[..n])?;
            left -= n;
        }
        raw.sync_all()?;
        File::open(dir)?.sync_all()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_dir_all(dir)?;
    Ok(seconds)
}

/// CPU-seconds of this process, all threads, from the kernel's count; 0 where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted behind the name in brackets: user and system time in hundredths of a second.
    let after = stat.rsplit(") ").next().unwrap_or_default();
    after.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Reads every number once (eight running sums, so that the reading and not one long chain of additions is timed).
fn scan(store: &FeatureStore) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    let mut sums = [0.0f32; 8];
    for i in 0..store.n_blocks() {
        let block = store.block(i)?;
        let rows = block.rows.as_slice().ok_or("rows of a block are contiguous")?;
        for chunk in rows.as_chunks::<8>().0 {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
        }
    }
    assert!(sums.iter().all(|sum| sum.is_finite()), "the rows are small finite numbers");
    Ok(begun.elapsed().as_secs_f64())
}
