//! A feature store of clustered rows, for measuring the server: `make_store -- OUT rows dim datasets`.
//!
//! Rows lie around as many centres as there are datasets, as embeddings of registered texts do; seeded, so the same every time.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::path::Path;

use ascribe_core::{Column, Digest, ExampleId, FeatureSink as _, FeatureSpec, ProjectorSpec, RowType};
use ascribe_linalg::Stream;
use ascribe_store::FeatureWriter;
use ndarray::Array2;

const BLOCK: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, rows, dim, datasets] = args.as_slice() else { return Err("expected OUT ROWS DIM DATASETS".into()) };
    let (rows, dim, datasets): (usize, usize, usize) = (rows.parse()?, dim.parse()?, datasets.parse()?);
    let spec = FeatureSpec {
        model: Digest::of(b"make_store"),
        checkpoint: "none".into(),
        quantity: "embedding".into(),
        loss: "none".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![Column { name: "embedding".into(), start: 0, len: dim }],
        dim,
        corpus: Digest::of(b"make_store"),
    };
    let mut centres = Stream::new(1, "make_store/centres");
    let centres = Array2::from_shape_fn((datasets, dim), |_| centres.normal() as f32);
    let mut noise = Stream::new(1, "make_store/rows");
    let rows_per_shard = ((64 << 20) / (4 * dim)).max(1) as u32;
    let mut writer = FeatureWriter::create_or_resume(Path::new(out), &spec, RowType::F32, rows_per_shard, rows as u64)?;
    // Rows stand dataset by dataset, as in a corpus.
    let dataset_of = |row: usize| (row * datasets / rows) as u32;
    let mut first_of = vec![None; datasets];
    for start in (0..rows).step_by(BLOCK) {
        let n = BLOCK.min(rows - start);
        let mut block = Array2::<f32>::zeros((n, dim));
        let mut ids = Vec::with_capacity(n);
        for (i, mut row) in block.rows_mut().into_iter().enumerate() {
            let dataset = dataset_of(start + i);
            let first = *first_of[dataset as usize].get_or_insert(start + i);
            ids.push(ExampleId { dataset, idx: (start + i - first) as u32 });
            let centre = centres.row(dataset as usize);
            row.iter_mut().zip(centre).for_each(|(x, c)| *x = 0.5 * c + noise.normal() as f32);
        }
        writer.push(&ids, block.view())?;
    }
    writer.finish()?;
    println!("{rows} rows of {dim} numbers, {datasets} datasets, in {out}");
    Ok(())
}
