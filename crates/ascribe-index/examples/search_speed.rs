//! How fast rows are searched: exact scan speed, graph build time, and recall beside the time it was bought with.
//!
//! `cargo run --release -p ascribe-index --example search_speed -- [rows] [dim]` makes rows;
//! `cargo run --release -p ascribe-index --example search_speed -- store FOLDER` takes those of a store.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, RowType};
use ascribe_index::{Effort, ExactIndex, HnswIndex, HnswParams, VectorIndex, recall_at_k};
use ascribe_linalg::Stream;
use ascribe_store::{FeatureStore, FeatureWriter};
use ascribe_testkit::gradient_spec;
use ndarray::Array2;

const N_QUERIES: usize = 64;
const N_DATASETS: usize = 10;
const K: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, folder] = args.as_slice()
        && word == "store"
    {
        return measure(&FeatureStore::open(Path::new(folder), None)?);
    }
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |text| text.parse());
    let (n_rows, dim) = (number(0, 9_000)?, number(1, 4_096)?);
    let dir = std::env::temp_dir().join("ascribe-index-throughput");
    let result = made(&dir, n_rows, dim).and_then(|store| measure(&store));
    std::fs::remove_dir_all(&dir)?;
    result
}

/// Rows as gradients are: a shared part, a part per dataset, a part per topic, noise, and norms over two decades.
fn made(dir: &Path, n_rows: usize, dim: usize) -> Result<FeatureStore, Box<dyn Error>> {
    let n_topics = 300;
    let mut stream = Stream::new(1, "throughput/rows");
    // Sums of uniform numbers are normal enough here and much quicker than normal ones.
    let mut noise = |n: usize| Array2::from_shape_fn((n, dim), |_| (stream.uniform() + stream.uniform() - 1.0) as f32);
    let (shared, datasets, topics) = (noise(1), noise(N_DATASETS), noise(n_topics));
    let mut writer = FeatureWriter::create_or_resume(dir, &gradient_spec(&[dim]), RowType::F32, 1024, n_rows as u64)?;
    let mut draw = Stream::new(2, "throughput/draw");
    for start in (writer.n_committed() as usize..n_rows).step_by(1024) {
        let n = 1024.min(n_rows - start);
        let mut rows = noise(n);
        let mut ids = Vec::with_capacity(n);
        for (i, mut row) in rows.rows_mut().into_iter().enumerate() {
            let dataset = (start + i) * N_DATASETS / n_rows;
            ids.push(ExampleId { dataset: dataset as u32, idx: (start + i) as u32 });
            let topic = draw.below(n_topics as u32) as usize;
            row.scaled_add(0.3, &shared.row(0));
            row.scaled_add(0.5, &datasets.row(dataset));
            row.scaled_add(0.6, &topics.row(topic));
            let length = (draw.normal() * 0.7).exp() as f32;
            row.mapv_inplace(|x| x * length);
        }
        writer.push(&ids, rows.view())?;
    }
    Ok(writer.finish()?)
}

fn measure(store: &FeatureStore) -> Result<(), Box<dyn Error>> {
    let (n_rows, dim) = (store.n_rows() as usize, store.spec().dim);
    let bytes = (n_rows * dim * 4) as f64;
    println!("{n_rows} rows of {dim} numbers, {N_QUERIES} queries, k = {K}");
    let queries = queries(store)?;
    let exact = ExactIndex::new(store)?;
    for n_queries in [1, 8, 32, N_QUERIES] {
        let some = queries.slice(ndarray::s![..n_queries, ..]);
        exact.search_many(some, K, Effort::default())?;
        let begun = Instant::now();
        exact.search_many(some, K, Effort::default())?;
        let s = begun.elapsed().as_secs_f64();
        let gflops = 2.0 * n_queries as f64 * bytes / 4.0 / 1e9 / s;
        println!(
            "exact, {n_queries:3} queries: {:7.1} ms, {:5.1} GB/s of rows, {gflops:6.1} Gflop/s",
            s * 1e3,
            bytes / 1e9 / s
        );
    }
    for params in settings() {
        let begun = Instant::now();
        let index = HnswIndex::build(store, params)?;
        let (build_s, n_graphs, n_orphans) = (begun.elapsed().as_secs_f64(), index.n_graphs(), index.orphans().len());
        println!("hnsw {params:?}: built in {build_s:.2} s, {n_graphs} graphs, {n_orphans} orphans");
        for ef in [16, 32, 64, 128] {
            let begun = Instant::now();
            index.search_many(queries.view(), K, Effort::new(ef))?;
            let ms = begun.elapsed().as_secs_f64() * 1e3 / N_QUERIES as f64;
            let recall = recall_at_k(&index, &exact, queries.view(), K, Effort::new(ef))?;
            println!(
                "  ef {ef:3}: recall@{K} {:.4} (worst query {:.1}), {ms:6.2} ms per query",
                recall.mean, recall.min
            );
        }
    }
    Ok(())
}

/// The default, and one step from it in each direction.
fn settings() -> Vec<HnswParams> {
    let default = HnswParams::default();
    vec![
        default,
        HnswParams { point_dim: 512, ..default },
        HnswParams { point_dim: 2048, ..default },
        HnswParams { n_graphs: 1, ..default },
        HnswParams { n_graphs: 16, ..default },
        HnswParams { n_neighbours: 32, ..default },
        HnswParams { ef_construction: 200, ..default },
    ]
}

/// Rows of the store themselves with as much noise again: related to some rows, equal to none.
fn queries(store: &FeatureStore) -> Result<Array2<f32>, Box<dyn Error>> {
    let dim = store.spec().dim;
    let mut stream = Stream::new(3, "throughput/queries");
    let mut queries = Array2::zeros((N_QUERIES, dim));
    for mut query in queries.rows_mut() {
        let block = store.block(stream.below(store.n_blocks() as u32) as usize)?;
        let row = block.rows.row(stream.below(block.ids.len() as u32) as usize);
        let scale = (f64::from(row.dot(&row)) / dim as f64).sqrt();
        query.zip_mut_with(&row, |q, &x| *q = x + (stream.normal() * scale) as f32);
    }
    Ok(queries)
}
