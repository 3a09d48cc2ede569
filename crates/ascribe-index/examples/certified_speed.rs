//! What a certified search costs, query by query, with the memory that it holds: the figures behind `benches/BARS.md`.
//!
//! `cargo run --release -p ascribe-index --example certified_speed -- ROWS.npy QUERIES.npy STORE [int8|int4|both] [rounds]`
//!
//! Makes the store and its companions where they are not there. Rows and queries are f32, in C order.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::Instant;

use ascribe_core::{ExampleId, FeatureSink, NoProgress, RowType};
use ascribe_index::{CertifiedIndex, Filter};
use ascribe_linalg::scan::{Block, Lines, Queries, Scores};
use ascribe_store::features::make_companion;
use ascribe_store::mmap::Advice;
use ascribe_store::{FeatureStore, FeatureWriter};
use ascribe_testkit::gradient_spec;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

const K: usize = 10;
const SHARD_ROWS: usize = 16_384;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rows, queries, dir, rest @ ..] = args.as_slice() else {
        return Err("expected ROWS.npy QUERIES.npy STORE [int8|int4|both] [rounds]".into());
    };
    let (which, rounds) = (rest.first().map_or("both", |w| w.as_str()), rest.get(1).map_or(Ok(5), |n| n.parse())?);
    let store = match FeatureStore::open(Path::new(dir), None) {
        Ok(store) => store,
        Err(_) => made(Path::new(dir), &mut Npy::open(rows)?)?,
    };
    let mut queries = Npy::open(queries)?;
    let queries = queries.next(queries.rows.min(64))?;
    // Made by another map of the store than the one that is searched: making reads, and so maps, all of it.
    let companion = |row_type| match store.companion(row_type) {
        Ok(companion) => Ok(companion),
        Err(_) => make_companion(&FeatureStore::open(Path::new(dir), None)?, row_type, &NoProgress),
    };
    let (fine, coarse) = (companion(RowType::Int8)?, companion(RowType::Int4)?);
    let index = match which {
        "int8" => CertifiedIndex::new(&store, Some(&fine))?,
        "int4" => CertifiedIndex::new(&store, Some(&coarse))?,
        _ => CertifiedIndex::new(&store, Some(&fine))?.with_coarse(Some(&coarse))?,
    };
    let all = Filter::default();
    for n in [1, queries.nrows()] {
        let block = queries.slice(s![..n, ..]);
        let mut best = f64::INFINITY;
        for round in 0..rounds {
            let begun = Instant::now();
            let (_, certificate) = index.search_certified(block, K, &all)?;
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            best = best.min(ms);
            let rescored = certificate.rescored.iter().sum::<u64>() / n as u64;
            println!(
                "{n:3} queries, round {round}: {ms:8.2} ms, {} scanned, {rescored} scored again",
                certificate.scanned.name()
            );
        }
        println!("{n:3} queries: least {best:.2} ms; {}", memory());
    }
    let mut each: Vec<f64> = Vec::new();
    for i in (0..rounds).flat_map(|_| 0..queries.nrows()) {
        let begun = Instant::now();
        index.search_certified(queries.slice(s![i..i + 1, ..]), K, &all)?;
        each.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    each.sort_by(f64::total_cmp);
    println!(
        "one by one: least {:.2}, median {:.2}, most {:.2} ms; {}",
        each[0],
        each[each.len() / 2],
        each[each.len() - 1],
        memory()
    );
    kernel_alone(if which == "int8" { &fine } else { &coarse }, queries.slice(s![..1, ..]), rounds)?;
    Ok(())
}

/// The products of one query alone, nothing done with them.
fn kernel_alone(store: &FeatureStore, query: ArrayView2<'_, f32>, rounds: usize) -> Result<(), Box<dyn Error>> {
    const PART: usize = 256;
    let prepared = Queries::new(store.row_type(), query);
    let (stride, dim) = (store.header().stride(), prepared.dim());
    let views: Vec<_> = (0..store.n_shards()).map(|i| store.shard_view(i)).collect::<Result<_, _>>()?;
    let bytes: usize = views.iter().map(|view| view.rows.len()).sum();
    let parts: Vec<&[u8]> = views.iter().flat_map(|view| view.rows.chunks(PART * stride)).collect();
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let begun = Instant::now();
        parts.par_iter().with_min_len(4).for_each_init(Scores::new, |scores, &part| {
            let lines = if store.row_type() == RowType::Int8 { Lines::Int8(part) } else { Lines::Int4(part) };
            scores.multiply(&Block { lines, n_rows: part.len() / stride, dim, stride }, &prepared);
        });
        best = best.min(begun.elapsed().as_secs_f64());
    }
    println!(
        "{} rows, the kernel alone: {:.2} ms, {:.1} GB/s",
        store.row_type().name(),
        best * 1e3,
        bytes as f64 / 1e9 / best
    );
    (0..store.n_shards()).for_each(|i| store.advise(i, Advice::DontNeed));
    Ok(())
}

/// Resident memory of this process, and what of it is mapped by large entries.
fn memory() -> String {
    let read = |file: &str, fields: &[&str]| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().filter(|line| fields.iter().any(|field| line.starts_with(field)));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
    };
    let status = read("/proc/self/status", &["VmHWM", "VmRSS", "RssAnon"]);
    format!("{status}, {}", read("/proc/self/smaps_rollup", &["FilePmdMapped"]))
}

fn made(dir: &Path, rows: &mut Npy) -> Result<FeatureStore, Box<dyn Error>> {
    let n = rows.rows;
    let spec = gradient_spec(&[rows.dim]);
    let mut writer = FeatureWriter::create_or_resume(dir, &spec, RowType::F32, SHARD_ROWS as u32, n as u64)?;
    for start in (0..n).step_by(SHARD_ROWS) {
        let end = (start + SHARD_ROWS).min(n);
        let ids: Vec<ExampleId> =
            (start..end).map(|i| ExampleId { dataset: (i * 10 / n) as u32, idx: i as u32 }).collect();
        let block = rows.next(end - start)?;
        if start as u64 >= writer.n_committed() {
            writer.push(&ids, block.view())?;
        }
    }
    Ok(writer.finish()?)
}

/// A file of f32 numbers, read from its start.
struct Npy {
    file: BufReader<File>,
    rows: usize,
    dim: usize,
}

impl Npy {
    fn open(path: &str) -> Result<Self, Box<dyn Error>> {
        let mut file = BufReader::new(File::open(path)?);
        let mut head = [0u8; 10];
        file.read_exact(&mut head)?;
        let mut text = vec![0u8; usize::from(u16::from_le_bytes([head[8], head[9]]))];
        file.read_exact(&mut text)?;
        let text = String::from_utf8(text)?;
        if &head[1..6] != b"NUMPY" || !text.contains("'<f4'") || text.contains("'fortran_order': True") {
            return Err(format!("{path}: expected f32 numbers in C order").into());
        }
        let shape = text.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).ok_or("no shape")?.0;
        let sizes: Vec<usize> = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        let [rows, dim] = sizes[..] else { return Err(format!("{path}: expected two dimensions").into()) };
        Ok(Self { file, rows, dim })
    }

    fn next(&mut self, n: usize) -> Result<Array2<f32>, Box<dyn Error>> {
        let mut numbers = vec![0.0f32; n * self.dim];
        self.file.read_exact(bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(Array2::from_shape_vec((n, self.dim), numbers)?)
    }
}
