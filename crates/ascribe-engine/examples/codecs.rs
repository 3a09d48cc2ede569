#![allow(clippy::print_stdout)] // an example talks to a person
//! What a stored row may cost: bytes per example against what scores keep, for every projection and code.
//!
//! `cargo run --release -p ascribe-engine --example codecs -- MODEL [BANK|-] [DAMPING] [trajectory|store|whitened]` prints a table for a model
//! folder whose recipe's datasets are registered (`finch`, `wren`): Spearman over examples, per query, of each kind's scores with
//! those of the same rows in f32 (`own`) and with unprojected EK-FAC (`ekfac`), both means over queries; and with a retrain bank
//! over random halves of the examples the mean LDS. With `trajectory` the table is of the kept checkpoints, alone and summed
//! with the weights of their learning rates. With `store` it is of the row types of the feature store, written to one and read
//! back, and of LoRIF's factors in them; with `whitened` of factors of whitened matrices; bytes are those of the shard files. The tables stand in `benches/SETTINGS.md`.

use std::path::Path;
use std::time::Instant;

use ascribe_core::{
    Column, Digest, ExampleId, FeatureReader as _, FeatureSink as _, FeatureSpec, NoProgress, ProjectorSpec, RowType,
};
use ascribe_engine::Home;
use ascribe_engine::bench::bank::RetrainBank;
use ascribe_engine::bench::decoder::DecoderSource;
use ascribe_engine::bench::runners::{DecoderData, open_decoder};
use ascribe_engine::machine::cpu_seconds;
use ascribe_engine::train::run::checkpoint_file;
use ascribe_eval::lds::lds;
use ascribe_eval::rank::spearman;
use ascribe_linalg::Code;
use ascribe_methods::block_fisher::{Covariance, Factors, precondition};
use ascribe_methods::coded::{CodedRows, Coding, Groups, whiten_queries};
use ascribe_methods::lorif::{self, BothSides, Expanded, Layout, LowRank, Tail};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::rows::{self, InMemory};
use ascribe_methods::source::Labels;
use ascribe_methods::{captured, dot, kron};
use ascribe_models::{Decoder, Example, GradientStage, Granularity, Projection, Sequence, TapConfig};
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SEED: u64 = 7;
/// Of the unprojected reference, relative to the mean eigenvalue of a layer. On finch's bank 0.001, 0.01 and 0.1 gave an LDS of
/// 0.263, 0.256 and 0.240.
const EKFAC_DAMPING: f64 = 1e-3;

/// Side of the projection, rank and row type of the factored rows in a store: the same projection as the rows above them in
/// fewer numbers, then what LoRIF is for, a larger projection in the bytes of a smaller one.
const FACTORED: [(usize, usize, RowType); 11] = [
    (16, 1, RowType::F32),
    (22, 2, RowType::F32),
    (22, 2, RowType::Int4),
    (14, 3, RowType::Int4),
    (11, 4, RowType::Int4),
    (40, 1, RowType::F32),
    (40, 1, RowType::Int4),
    (16, 2, RowType::Int4),
    (32, 1, RowType::Int8),
    (32, 1, RowType::Int4),
    (48, 1, RowType::Int4),
];

/// Side and rank of factors of whitened matrices; what they take in codes of four bits is about the same. The first is the longest
/// row of at most a sixteenth of 16 × 16 numbers in f32, then others of that length.
const WHITENED: [(usize, usize); 3] = [(22, 2), (14, 3), (11, 4)];

/// What a line of the table is held against.
struct Board {
    ekfac: Array2<f32>,
    bank: Option<RetrainBank>,
    clock: (Instant, f64),
}

impl Board {
    fn line(&mut self, name: &str, bytes: f64, scores: &Array2<f32>, own: Option<&Array2<f32>>) -> Result<()> {
        let rank = |other: &Array2<f32>| mean_spearman(scores.view(), other.view());
        let own = own.map_or_else(|| "     -".to_owned(), |own| format!("{:6.3}", rank(own)));
        let truth = match &self.bank {
            Some(bank) => format!("{:6.3}", mean_lds(scores, bank)?),
            None => "     -".to_owned(),
        };
        let (wall, cpu) = (self.clock.0.elapsed().as_secs_f64(), cpu_seconds() - self.clock.1);
        println!("{name:<44} {bytes:>9.0}  {own}  {:6.3}  {truth}  {cpu:7.1}  {wall:7.1}", rank(&self.ekfac));
        self.clock = (Instant::now(), cpu_seconds());
        Ok(())
    }
}

fn mean_spearman(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f64 {
    let of = |q: usize| {
        let wide = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        spearman(&wide(a.row(q)), &wide(b.row(q)))
    };
    let all: Vec<f64> = (0..a.nrows()).into_par_iter().filter_map(of).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

fn mean_lds(scores: &Array2<f32>, bank: &RetrainBank) -> Result<f64> {
    let losses = bank.mean().mapv(|v| -v).reversed_axes();
    let values = lds(scores.mapv(f64::from).view(), bank.kept.view(), losses.view())?;
    let all: Vec<f64> = values.into_iter().flatten().collect();
    Ok(all.iter().sum::<f64>() / all.len() as f64)
}

/// Rows of training examples and queries under one projection.
struct Rows {
    columns: Vec<Column>,
    train: Array2<f32>,
    queries: Array2<f32>,
}

impl Rows {
    fn make(decoder: &Decoder, data: &DecoderData, config: TapConfig) -> Result<Self> {
        let stage = GradientStage::new(decoder, config)?;
        let rows = |sequences: &[Sequence<'_>]| -> Result<Array2<f32>> {
            let mut out = Array2::zeros((sequences.len(), stage.dim()));
            stage.rows(sequences, out.view_mut(), None)?;
            Ok(out)
        };
        let (train, queries) = sequences(data);
        Ok(Self { columns: stage.columns().to_vec(), train: rows(&train)?, queries: rows(&queries)? })
    }

    /// Every module's numbers (of a factored one the left factors and the right ones) divided by their root mean square over the
    /// training rows. Damping is relative to a module, so scores do not change; codes with one scale for a row do. Also what every
    /// module, multiplied out, was divided by.
    fn balanced(mut self, shapes: &[Option<[usize; 2]>]) -> (Self, Vec<f64>) {
        let mut sizes = vec![1.0; shapes.len()];
        for ((column, shape), total) in self.columns.iter().zip(shapes).zip(&mut sizes) {
            let middle = column.start + if shape.is_some() { column.len / 2 } else { column.len };
            for range in [column.start..middle, middle..column.start + column.len] {
                let part = self.train.slice(ndarray::s![.., range.clone()]);
                let square = part.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / part.len().max(1) as f64;
                if square > 0.0 {
                    let size = square.sqrt() as f32;
                    *total *= f64::from(size);
                    self.train.slice_mut(ndarray::s![.., range.clone()]).mapv_inplace(|v| v / size);
                    self.queries.slice_mut(ndarray::s![.., range]).mapv_inplace(|v| v / size);
                }
            }
        }
        (self, sizes)
    }

    fn reader(&self) -> Result<InMemory<'_>> {
        Ok(InMemory::new(self.train.view()).with_columns(self.columns.clone())?)
    }

    fn bytes(&self) -> f64 {
        4.0 * self.train.ncols() as f64
    }
}

fn sequences(data: &DecoderData) -> (Vec<Sequence<'_>>, Vec<Sequence<'_>>) {
    let from = data.corpus.manifest.config.prompt_len;
    let train = data.corpus.examples.iter().map(|e| Sequence::whole(&e.tokens)).collect();
    (train, data.corpus.queries.iter().map(|q| Sequence { tokens: &q.tokens, loss_from: from }).collect())
}

fn numbered<'a>(sequences: &[Sequence<'a>]) -> Vec<Example<'a>> {
    sequences.iter().enumerate().map(|(i, &sequence)| Example::numbered(sequence, i as u64)).collect()
}

/// Scores of unprojected EK-FAC.
fn reference(decoder: &Decoder, data: &DecoderData) -> Result<Array2<f32>> {
    let (train, queries) = sequences(data);
    let (n, n_queries) = (train.len(), queries.len());
    let train = DecoderSource::new(decoder, numbered(&train), &["*"], Granularity::Fused)?;
    let queries = DecoderSource::new(decoder, numbered(&queries), &["*"], Granularity::Fused)?;
    let factors = kron::Kron::fit(&train, &kron::Options::default(), &NoProgress)?;
    let ids: Vec<u32> = (0..n_queries as u32).collect();
    let gradients = captured::gradients(&queries, &ids, Labels::Given)?;
    println!("{n} examples, {n_queries} queries, {} unprojected parameters", gradients.ncols());
    let inverse = factors.inverse(kron::Inverse::Damped, &kron::Damping::Relative(EKFAC_DAMPING))?;
    Ok(captured::score(&train, inverse.solve(gradients.view())?.view(), Labels::Given, &NoProgress)?)
}

fn exact(rows: &Rows, damping: f64) -> Result<(Factors, Array2<f64>, Array2<f32>)> {
    let reader = rows.reader()?;
    let factors = Covariance::fit(&reader, &NoProgress)?.cholesky(damping)?;
    let solved = precondition(&factors, rows.queries.view())?;
    let scores = dot::score(&reader, solved.view(), None, &NoProgress)?.values;
    Ok((factors, solved, scores))
}

/// Every code over rows as they are and over whitened rows.
fn codes(board: &mut Board, name: &str, rows: &Rows, damping: f64, codes: &[Code]) -> Result<()> {
    let (factors, solved, own) = exact(rows, damping)?;
    board.line(&format!("{name} f32"), rows.bytes(), &own, None)?;
    let white = whiten_queries(&factors, rows.queries.view())?;
    let reader = rows.reader()?;
    for &code in codes {
        let plain = Coding { code, groups: Groups::Module, rotation: Some(SEED) };
        let coded = CodedRows::encode(&reader, plain, None, &NoProgress)?;
        let scores = dot::score(&coded, solved.view(), None, &NoProgress)?.values;
        board.line(&format!("{name} {}", code.name()), coded.bytes_per_example() as f64, &scores, Some(&own))?;
        let whole = Coding { groups: Groups::Row, ..plain };
        let coded = CodedRows::encode(&reader, whole, Some(&factors), &NoProgress)?;
        let scores = dot::score(&coded, white.view(), None, &NoProgress)?.values;
        let bytes = coded.bytes_per_example() as f64;
        board.line(&format!("{name} whitened, {}", code.name()), bytes, &scores, Some(&own))?;
    }
    Ok(())
}

/// Rows as a feature store keeps them: written, read back, scored as the f32 rows are.
fn store_lines(board: &mut Board, decoder: &Decoder, data: &DecoderData, damping: f64) -> Result<()> {
    let dense = Rows::make(decoder, data, TapConfig::all(SEED, 16))?;
    let (_, solved, own) = exact(&dense, damping)?;
    board.line("LoGra 16x16 f32 in memory", dense.bytes(), &own, None)?;
    for row_type in RowType::ALL {
        let (_dir, store) = stored(&dense, row_type)?;
        let scores = dot::score(&store, solved.view(), None, &NoProgress)?.values;
        board.line(&format!("LoGra 16x16, store {}", row_type.name()), shard_bytes(&store), &scores, Some(&own))?;
    }
    drop((dense, solved));
    // A row has one scale: modules of one size, or whitened rows, whose numbers all have one. One number less on a side pays for
    // a row's scale, norm, bound and id.
    for k in [16, 15, 8] {
        let dense = Rows::make(decoder, data, TapConfig::all(SEED, k))?;
        let (factors, _, own) = exact(&dense, damping)?;
        let white = |rows: &Array2<f32>| -> Result<Array2<f32>> {
            Ok(whiten_queries(&factors, rows.view())?.mapv(|v| v as f32))
        };
        let (train, queries) = (white(&dense.train)?, white(&dense.queries)?);
        let whitened = Rows { columns: dense.columns.clone(), train, queries };
        for row_type in [RowType::Int8, RowType::Int4] {
            let (_dir, store) = stored(&whitened, row_type)?;
            let scores = dot::score(&store, whitened.queries.mapv(f64::from).view(), None, &NoProgress)?.values;
            let name = format!("LoGra {k}x{k} whitened, store {}", row_type.name());
            board.line(&name, shard_bytes(&store), &scores, Some(&own))?;
        }
    }
    for (k, rank, row_type) in FACTORED {
        let config = TapConfig { projection: Projection::Factored { rank }, ..TapConfig::all(SEED, k) };
        let rows = Rows::make(decoder, data, config)?;
        let dense = GradientStage::new(decoder, TapConfig::all(SEED, k))?;
        let shape = |(stored, dense): (&Column, &Column)| (stored.len != dense.len).then_some([k, k]);
        let shapes: Vec<_> = rows.columns.iter().zip(dense.columns()).map(shape).collect();
        let layout = Layout::new(&rows.columns, &shapes, rank)?;
        let (rows, _) = rows.balanced(&shapes);
        let (_dir, store) = stored(&rows, row_type)?;
        let expanded = Expanded::new(&store, &layout)?;
        let factors = Covariance::fit(&expanded, &NoProgress)?.cholesky(damping)?;
        let solved = precondition(&factors, layout.expand_rows(rows.queries.view())?.view())?;
        let scores = dot::score(&expanded, solved.view(), None, &NoProgress)?.values;
        let name = format!("LoRIF {k}x{k}, rank {rank}, store {}", row_type.name());
        board.line(&name, shard_bytes(&store), &scores, Some(&own))?;
    }
    Ok(())
}

/// Factors of matrices that were whitened from both sides, in the bytes of a sixteenth, beside the rows that they are held against.
fn whitened_lines(board: &mut Board, decoder: &Decoder, data: &DecoderData, damping: f64) -> Result<()> {
    let dense = Rows::make(decoder, data, TapConfig::all(SEED, 16))?;
    let own = exact(&dense, damping)?.2;
    board.line("LoGra 16x16 f32 in memory", dense.bytes(), &own, None)?;
    let (_dir, store) = stored(&dense, RowType::F32)?;
    let bytes = shard_bytes(&store);
    drop(dense);
    for (k, rank) in WHITENED {
        let dense = Rows::make(decoder, data, TapConfig::all(SEED, k))?;
        let shapes: Vec<_> = dense.columns.iter().map(|c| (c.len == k * k).then_some([k, k])).collect();
        let by = BothSides::fit(&dense.reader()?, &shapes, damping, &NoProgress)?;
        let white = whiten_queries(&by, dense.queries.view())?;
        let train = whiten_queries(&by, dense.train.view())?.mapv(|v| v as f32);
        let reader = InMemory::new(train.view()).with_columns(dense.columns.clone())?;
        let scores = dot::score(&reader, white.view(), None, &NoProgress)?.values;
        board.line(&format!("LoGra {k}x{k} whitened from both sides"), dense.bytes(), &scores, Some(&own))?;
        for row_type in [RowType::F32, RowType::Int4] {
            let columns = by.stored_columns(rank);
            let train = by.factor(dense.train.view(), rank)?;
            let layout = Layout::new(&columns, &shapes, rank)?;
            // One scale for a row: both halves of every module to one size, which the queries take up.
            let rows = Rows { columns, train, queries: Array2::zeros((0, layout.stored_dim())) };
            let (rows, sizes) = rows.balanced(&shapes);
            let mut asked = white.clone();
            for (module, size) in layout.modules().iter().zip(sizes) {
                let to = &module.dense;
                asked.slice_mut(ndarray::s![.., to.start..to.start + to.len]).mapv_inplace(|x| x * size);
            }
            let (_dir, store) = stored(&rows, row_type)?;
            let expanded = Expanded::new(&store, &layout)?;
            let scores = dot::score(&expanded, asked.view(), None, &NoProgress)?.values;
            let name = format!("LoRIF {k}x{k} whitened, rank {rank}, store {}", row_type.name());
            board.line(&name, shard_bytes(&store), &scores, Some(&own))?;
            println!("    {:.4} of the bytes of 16x16 in f32", shard_bytes(&store) / bytes);
        }
    }
    Ok(())
}

/// The training rows in a store of their own, in a folder that goes with the guard.
fn stored(rows: &Rows, row_type: RowType) -> Result<(tempfile::TempDir, FeatureStore)> {
    let dir = tempfile::tempdir()?;
    let spec = FeatureSpec {
        model: Digest::of(b"codecs"),
        checkpoint: "final".into(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: rows.columns.clone(),
        dim: rows.train.ncols(),
        corpus: Digest::of(b"codecs"),
    };
    let n = rows.train.nrows();
    let ids: Vec<ExampleId> = (0..n as u32).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec, row_type, 4096, n as u64)?;
    writer.push(&ids, rows.train.view())?;
    Ok((dir, writer.finish()?))
}

/// Bytes of the shard files for each row: numbers, padding, scale, norm, bound and id.
fn shard_bytes(store: &FeatureStore) -> f64 {
    store.entries().iter().map(|e| e.bytes).sum::<u64>() as f64 / store.n_rows() as f64
}

fn lorif_lines(board: &mut Board, decoder: &Decoder, data: &DecoderData, dense: &Rows, damping: f64) -> Result<()> {
    let own = exact(dense, damping)?.2;
    for rank in [1, 2] {
        let config = TapConfig { projection: Projection::Factored { rank }, ..TapConfig::all(SEED, 16) };
        let rows = Rows::make(decoder, data, config)?;
        let shape = |(stored, dense): (&Column, &Column)| (stored.len != dense.len).then_some([16, 16]);
        let shapes: Vec<_> = rows.columns.iter().zip(&dense.columns).map(shape).collect();
        let layout = Layout::new(&rows.columns, &shapes, rank)?;
        let reader = rows.reader()?;
        let expanded = Expanded::new(&reader, &layout)?;
        let factors = Covariance::fit(&expanded, &NoProgress)?.cholesky(damping)?;
        let queries = layout.expand_rows(rows.queries.view())?;
        let solved = precondition(&factors, queries.view())?;
        let scores = dot::score(&expanded, solved.view(), None, &NoProgress)?.values;
        board.line(&format!("LoRIF 16x16, rank {rank}, exact inverse"), rows.bytes(), &scores, Some(&own))?;
        for (name, tail) in [("64 eigenpairs", Tail::Mean), ("the same, no tail", Tail::Zero)] {
            let options = lorif::Options { damping_rel: damping, tail, ..lorif::Options::default() };
            let low = LowRank::fit(&expanded, options, &NoProgress)?;
            let scores = lorif::score(&reader, rows.queries.view(), &layout, &low, &NoProgress)?.values;
            board.line(&format!("LoRIF 16x16, rank {rank}, {name}"), rows.bytes(), &scores, Some(&own))?;
        }
    }
    Ok(())
}

/// Rows at every kept checkpoint: each alone, and summed from the first one on. Bytes of a sum are those of all its rows.
fn trajectory(board: &mut Board, home: &Home, model: &str, data: &DecoderData, damping: f64) -> Result<()> {
    let train = &data.recipe.train;
    for (k, code) in [(16, Code::Ternary), (8, Code::Sign)] {
        let (mut from, mut bytes) = (0, [0.0; 2]);
        let mut sums: Option<[Array2<f32>; 2]> = None;
        for &step in &train.checkpoint_steps {
            let weight: f64 = (from..step).map(|s| train.learning_rate(s)).sum();
            from = step;
            let file = if step == train.steps { "model.safetensors".to_owned() } else { checkpoint_file(step) };
            let decoder = Decoder::load(&home.model(model), &file)?;
            let rows = Rows::make(&decoder, data, TapConfig::all(SEED, k))?;
            let (factors, _, own) = exact(&rows, damping)?;
            board.line(&format!("step {step}, {k}x{k} f32"), rows.bytes(), &own, None)?;
            let white = whiten_queries(&factors, rows.queries.view())?;
            let coding = Coding { code, groups: Groups::Row, rotation: Some(SEED) };
            let coded = CodedRows::encode(&rows.reader()?, coding, Some(&factors), &NoProgress)?;
            let scores = dot::score(&coded, white.view(), None, &NoProgress)?.values;
            let name = code.name();
            board.line(
                &format!("step {step}, {k}x{k} {name}"),
                coded.bytes_per_example() as f64,
                &scores,
                Some(&own),
            )?;
            bytes = [bytes[0] + rows.bytes(), bytes[1] + coded.bytes_per_example() as f64];
            let parts = [own, scores].map(|scores| scores.mapv(|v| (f64::from(v) * weight) as f32));
            let total = match sums.take() {
                None => parts,
                Some([a, b]) => [a + &parts[0], b + &parts[1]],
            };
            board.line(&format!("steps to {step}, {k}x{k} f32"), bytes[0], &total[0], None)?;
            board.line(&format!("steps to {step}, {k}x{k} {name}"), bytes[1], &total[1], Some(&total[0]))?;
            sums = Some(total);
        }
    }
    Ok(())
}

/// Cosine of mean hidden states, the control with the smallest rows.
fn embedding(board: &mut Board, decoder: &Decoder, data: &DecoderData) -> Result<()> {
    let (train, queries) = sequences(data);
    let (train, queries) = (decoder.mean_hidden(&train)?, decoder.mean_hidden(&queries)?);
    let reader = InMemory::new(train.view());
    let scores = rows::score(&reader, queries.view(), None, Normalisation::Cosine, &NoProgress)?.values;
    board.line("mean hidden states, cosine, f32", 4.0 * train.ncols() as f64, &scores, None)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let model = args.first().ok_or("usage: codecs MODEL [BANK|-] [DAMPING] [trajectory|store|whitened]")?;
    let bank = match args.get(1).filter(|path| *path != "-") {
        Some(path) => RetrainBank::read(Path::new(path))?,
        None => None,
    };
    let damping: f64 = args.get(2).map_or(Ok(1e-2), |text| text.parse())?;
    let home = Home::find(None)?;
    let data = open_decoder(&home, model)?;
    let decoder = Decoder::load(&home.model(model), "model.safetensors")?;
    let clock = (Instant::now(), cpu_seconds());
    let ekfac = reference(&decoder, &data)?;
    let mut board = Board { ekfac, bank, clock };
    let reference = board.ekfac.clone();
    println!("{:<44} bytes/ex.     own   ekfac     lds    cpu s   wall s   (damping {damping})", "");
    board.line("EK-FAC, unprojected", 0.0, &reference, None)?;
    embedding(&mut board, &decoder, &data)?;
    if args.get(3).is_some_and(|word| word == "trajectory") {
        return trajectory(&mut board, &home, model, &data, damping);
    }
    if args.get(3).is_some_and(|word| word == "store") {
        return store_lines(&mut board, &decoder, &data, damping);
    }
    if args.get(3).is_some_and(|word| word == "whitened") {
        return whitened_lines(&mut board, &decoder, &data, damping);
    }
    let dense = Rows::make(&decoder, &data, TapConfig::all(SEED, 16))?;
    codes(&mut board, "LoGra 16x16", &dense, damping, &Code::ALL)?;
    lorif_lines(&mut board, &decoder, &data, &dense, damping)?;
    drop(dense);
    let small = Rows::make(&decoder, &data, TapConfig::all(SEED, 8))?;
    codes(&mut board, "LoGra 8x8", &small, damping, &[Code::Int8, Code::Four])?;
    let wide = Rows::make(&decoder, &data, TapConfig::all(SEED, 24))?;
    codes(&mut board, "LoGra 24x24", &wide, damping, &[Code::Ternary, Code::Sign])?;
    drop(wide);
    let widest = Rows::make(&decoder, &data, TapConfig::all(SEED, 32))?;
    codes(&mut board, "LoGra 32x32", &widest, damping, &[Code::Sign])?;
    drop(widest);
    let kind = Projection::MaskedSparse { keep_in: 48, keep_out: 48, dim: 256, nnz: 1 };
    let sparse = Rows::make(&decoder, &data, TapConfig { projection: kind, ..TapConfig::all(SEED, 16) })?;
    codes(&mut board, "FactGraSS 48x48 to 256", &sparse, damping, &[Code::Two])
}
