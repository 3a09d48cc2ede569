//! A store of real embeddings with its index, for measuring look-ups: `make_states -- OUT ROWS [library]`, in a repository of Ascribe.
//!
//! A row is a token of the shipped corpus where it stands: the last hidden states of the shipped model's three checkpoints, one
//! behind the other (3 × 128 numbers), less their mean (which all states share and which says nothing), of length 1; the first
//! eight tokens of a window have too little before them and are left out. Queries are 256 such tokens of the held-out windows, in `OUT.queries.f32`; the index's recall is measured with them.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use ascribe_core::{Column, ExampleId, FeatureSink as _, FeatureSpec, NoProgress, ProjectorSpec, RowType};
use ascribe_engine::Home;
use ascribe_engine::search::INDEX_FOLDER;
use ascribe_engine::walk::Context;
use ascribe_index::{GraphBuilder, HnswIndex, HnswParams};
use ascribe_linalg::Stream;
use ascribe_models::{Decoder, ModelError};
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::{Array1, Array2, ArrayView1, Axis, s};
use rayon::prelude::*;

const MODEL: &str = "wren";
/// Tokens of a window that are left out.
const FIRST: usize = 8;
const N_QUERIES: usize = 256;
/// One in so many windows is asked for the mean.
const MEAN_OF: usize = 40;
/// Windows that are computed together.
const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, rows, builder) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [out, rows] => (out, rows, GraphBuilder::Batches),
        [out, rows, "library"] => (out, rows, GraphBuilder::Library),
        _ => return Err("expected OUT ROWS [library]".into()),
    };
    let (out, rows): (&Path, usize) = (Path::new(out), rows.parse()?);
    let began = Instant::now();
    let context = Context::open(&Home::find(None)?, MODEL, &std::env::temp_dir(), &NoProgress)?;
    let decoders = context.checkpoints.iter().map(|c| context.decoder(c)).collect::<Result<Vec<_>, _>>()?;
    let mean = mean(&decoders, context.corpus.examples.iter().step_by(MEAN_OF).map(|e| e.tokens.as_slice()))?;
    let states = |tokens: &[u32]| centred(&decoders, tokens, mean.view());
    write_rows(&context, &decoders, out, rows, &states)?;
    let queries = queries(&context, &states)?;
    let bytes: Vec<u8> = queries.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(format!("{}.queries.f32", out.display()), bytes)?;
    println!("{rows} rows of {} numbers in {:.1} s", mean.len(), began.elapsed().as_secs_f64());

    let began = Instant::now();
    let store = FeatureStore::open(out, None)?;
    let params = HnswParams { point_dim: mean.len(), n_graphs: 1, builder, ..HnswParams::default() };
    let mut index = HnswIndex::build(&store, params)?;
    let (seconds, orphans) = (began.elapsed().as_secs_f64(), index.orphans().len());
    println!("index built in {seconds:.1} s, {orphans} rows that it does not lead to");
    let curve = index.measure_with(queries.view())?;
    curve.points.iter().for_each(|p| println!("ef {}: recall@{} {:.4}, worst {:.1}", p.ef, curve.k, p.recall, p.worst));
    index.set_curve(curve);
    index.save(&out.join(INDEX_FOLDER))?;
    Ok(())
}

type States<'s> = dyn Fn(&[u32]) -> Result<Array2<f32>, ModelError> + Sync + 's;

/// Windows of all datasets, evenly, until there are `rows` rows.
fn write_rows(
    context: &Context,
    decoders: &[Decoder],
    out: &Path,
    rows: usize,
    states: &States<'_>,
) -> Result<(), Box<dyn Error>> {
    let dim = width(decoders);
    let spec = FeatureSpec {
        model: decoders.last().ok_or("a model without checkpoints")?.weights_digest(),
        checkpoint: "all".into(),
        quantity: "hidden_states".into(),
        loss: "none".into(),
        normalizer: "unit".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![Column { name: "states".into(), start: 0, len: dim }],
        dim,
        corpus: context.corpus.manifest.digest(),
    };
    let rows_per_shard = ((64 << 20) / (4 * dim)).max(1) as u32;
    let mut writer = FeatureWriter::create_or_resume(out, &spec, RowType::F32, rows_per_shard, rows as u64)?;
    let (mut n, mut of_dataset) = (0, vec![0u32; context.corpus.n_datasets()]);
    let (all, per_window) = (&context.corpus.examples, context.corpus.manifest.config.seq_len - FIRST);
    let wanted = rows.div_ceil(per_window).min(all.len());
    let windows: Vec<_> = (0..wanted).map(|i| &all[i * all.len() / wanted]).collect();
    for batch in windows.chunks(BATCH) {
        let found: Vec<Array2<f32>> = batch.par_iter().map(|e| states(&e.tokens)).collect::<Result<_, _>>()?;
        for (example, found) in batch.iter().zip(found) {
            let found = found.slice(s![..found.nrows().min(rows - n), ..]);
            let next = &mut of_dataset[example.id.dataset as usize];
            let id = |i: u32| ExampleId { dataset: example.id.dataset, idx: *next + i };
            let ids: Vec<ExampleId> = (0..found.nrows() as u32).map(id).collect();
            writer.push(&ids, found)?;
            *next += found.nrows() as u32;
            n += found.nrows();
        }
    }
    if n < rows {
        return Err(format!("the corpus has {n} such tokens").into());
    }
    writer.finish()?;
    Ok(())
}

/// Tokens of held-out windows, drawn, `[256, Σ d]`.
fn queries(context: &Context, states: &States<'_>) -> Result<Array2<f32>, Box<dyn Error>> {
    let held_out: Vec<Array2<f32>> =
        context.corpus.queries.iter().map(|q| states(&q.tokens)).collect::<Result<_, _>>()?;
    let mut draw = Stream::new(1, "make_states/queries");
    let mut one = || {
        let window = &held_out[draw.below(held_out.len() as u32) as usize];
        window.row(draw.below(window.nrows() as u32) as usize).to_owned()
    };
    let drawn: Vec<Array1<f32>> = (0..N_QUERIES).map(|_| one()).collect();
    let views: Vec<_> = drawn.iter().map(|row| row.view()).collect();
    Ok(ndarray::stack(Axis(0), &views)?)
}

/// Numbers of a row.
fn width(decoders: &[Decoder]) -> usize {
    decoders.iter().map(|d| d.config().hidden_size).sum()
}

/// States of a window's tokens from the ninth on, `[T − 8, Σ d]`.
fn states(decoders: &[Decoder], tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
    let parts = decoders.iter().map(|d| d.hidden_states(tokens)).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = parts.iter().map(|p| p.slice(s![FIRST.min(p.nrows()).., ..])).collect();
    Ok(ndarray::concatenate(Axis(1), &views).expect("states of the same tokens"))
}

fn mean<'t>(decoders: &[Decoder], windows: impl Iterator<Item = &'t [u32]>) -> Result<Array1<f64>, ModelError> {
    let (mut sum, mut n) = (Array1::<f64>::zeros(width(decoders)), 0);
    for window in windows {
        let states = states(decoders, window)?;
        n += states.nrows();
        states.rows().into_iter().for_each(|row| sum.zip_mut_with(&row, |s, &x| *s += f64::from(x)));
    }
    Ok(sum / n as f64)
}

/// Less their mean, of length 1.
fn centred(decoders: &[Decoder], tokens: &[u32], mean: ArrayView1<'_, f64>) -> Result<Array2<f32>, ModelError> {
    let mut states = states(decoders, tokens)?;
    for mut row in states.rows_mut() {
        let less: Vec<f64> = row.iter().zip(mean).map(|(&x, m)| f64::from(x) - m).collect();
        let norm = less.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        row.iter_mut().zip(less).for_each(|(to, x)| *to = (x / norm) as f32);
    }
    Ok(states)
}
