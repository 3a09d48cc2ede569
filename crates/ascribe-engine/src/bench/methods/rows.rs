//! Methods on rows that are kept: projected gradients with their block Fisher matrix, TrackStar; rows in few bits.

use ascribe_core::{Column, Progress};
use ascribe_linalg::{Code, Sjlt, Stream, TwoSided, factor};
use ascribe_methods::block_fisher::Covariance;
use ascribe_methods::coded::{CodedRows, Coding, Groups, whiten_queries};
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::lorif::{self, Expanded, Layout, LowRank};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::projected::{Basis, Projected};
use ascribe_methods::rows::InMemory;
use ascribe_methods::source::{CaptureSource, Labels, Layer, dim};
use ascribe_methods::trackstar::{self, TrackStar};
use ascribe_methods::{MethodError, captured, dot, rows};
use ndarray::{Array2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::lab::{Lab, Quantity, View, Which};
use super::{Timed, averaged, clocked, explained, whitened};
use crate::error::EngineError;

/// How rows are made, kept and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSettings {
    /// Which directions are kept.
    pub basis: BasisKind,
    /// Numbers kept per side of every module.
    pub k: usize,
    /// A sparse transform of what is left of a module to this many numbers (FactGraSS with [`BasisKind::Mask`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<usize>,
    /// Rows kept as factors of this rank (LoRIF), and the eigenpairs kept of their second moments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factors: Option<(usize, usize)>,
    /// Rows whitened from both sides and kept as coded factors of this rank (LoRIF, as `ascribe features --factors`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whitened: Option<usize>,
    /// Rows whitened and coded: `int8`, `four_bit`, `two_bit`, `ternary` or `sign`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Damping relative to the mean eigenvalue of each module; `None` compares rows without curvature.
    pub damping_rel: Option<f64>,
    /// What scores are divided by.
    #[serde(default)]
    pub normalise: Normalisation,
    /// Sum over kept checkpoints with their learning rates, instead of the final model alone.
    #[serde(default)]
    pub trajectory: bool,
}

/// Directions of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasisKind {
    /// Seeded ±1/√k.
    Random,
    /// Leading eigenvectors of the covariances of inputs and output gradients.
    Pca,
    /// Seeded places.
    Mask,
}

/// Seed of all projections.
pub(super) const SEED: u64 = 7;

/// Numbers of a gradient whose places are worked out once, 128 MB of them, and not for every example.
const LONGEST_TABLE: usize = 16 << 20;

/// Influence in the space of projected rows.
pub(super) fn projected(lab: &dyn Lab, settings: &RowSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    if !settings.trajectory {
        return projected_at(explained(lab)?.as_ref(), settings, progress);
    }
    let mut total = Timed::new(Array2::zeros((lab.n_queries(), lab.n_examples())), 0.0, 0.0);
    for (i, stretch) in lab.stretches().iter().enumerate() {
        let one = projected_at(lab.model(Which::Kept(i))?.as_ref(), settings, progress)?;
        total.values.scaled_add(stretch.learning_rate_sum as f32, &one.values);
        total.fit += one.fit;
        total.score += one.score;
        total.bytes += one.bytes;
    }
    total.settings = json!({ "checkpoints": lab.stretches().len() });
    Ok(total)
}

fn projected_at(view: &dyn View, settings: &RowSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let (mut fit, mut score) = (0.0, 0.0);
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let bases = clocked(&mut fit, || bases(train.as_ref(), settings, progress))?;
    let train = clocked(&mut fit, || Rows::of(train.as_ref(), &bases, settings))?;
    let queries = clocked(&mut score, || Rows::of(queries.as_ref(), &bases, settings))?;
    let reader = train.reader()?;
    if let Some((rank, eigenpairs)) = settings.factors {
        return factored(&train, &queries, (rank, eigenpairs), settings, (fit, score), progress);
    }
    if let Some(rank) = settings.whitened {
        return whitened::whitened(&train, &queries, rank, settings, (fit, score), progress);
    }
    let Some(damping_rel) = settings.damping_rel else {
        let values = clocked(&mut score, || {
            Ok(rows::score(&reader, queries.values.view(), None, settings.normalise, progress)?.values)
        })?;
        return Ok(Timed { bytes: train.bytes(), ..Timed::new(values, fit, score) });
    };
    let metric = clocked(&mut fit, || Ok(Covariance::fit(&reader, progress)?.cholesky(damping_rel)?))?;
    let Some(code) = &settings.code else {
        let values = clocked(&mut score, || {
            Ok(rows::score(&reader, queries.values.view(), Some(&metric), settings.normalise, progress)?.values)
        })?;
        return Ok(Timed { bytes: train.bytes(), ..Timed::new(values, fit, score) });
    };
    let coding = Coding { code: named(code)?, groups: Groups::Row, rotation: Some(SEED) };
    let coded = clocked(&mut fit, || Ok(CodedRows::encode(&reader, coding, Some(&metric), progress)?))?;
    let values = clocked(&mut score, || {
        let vectors = whiten_queries(&metric, queries.values.view())?;
        Ok(dot::score(&coded, vectors.view(), None, progress)?.values)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = coded.bytes_per_example() as f64;
    timed.settings = json!({ "lost": coded.lost() });
    Ok(timed)
}

/// Shapes of the modules whose factors of `rank` are fewer numbers than their matrix.
pub(super) fn factorable(rows: &Rows, rank: usize) -> Vec<Option<[usize; 2]>> {
    rows.layers.iter().map(|l| (rank * (l.n_out + l.n_in) < l.len()).then_some([l.n_out, l.n_in])).collect()
}

/// LoRIF: rows as factors, curvature as a few eigenpairs per module.
fn factored(
    train: &Rows,
    queries: &Rows,
    (rank, eigenpairs): (usize, usize),
    settings: &RowSettings,
    (mut fit, mut score): (f64, f64),
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let shapes = factorable(train, rank);
    let columns = columns(
        &train
            .layers
            .iter()
            .zip(&shapes)
            .map(|(layer, shape)| (layer.name.clone(), shape.map_or(layer.len(), |[o, i]| rank * (o + i))))
            .collect::<Vec<_>>(),
    );
    let stored = clocked(&mut fit, || factor_rows(train, &shapes, rank))?;
    let query_rows = clocked(&mut score, || factor_rows(queries, &shapes, rank))?;
    let layout = Layout::new(&columns, &shapes, rank)?;
    let reader = InMemory::new(stored.view()).with_columns(columns)?;
    let metric = clocked(&mut fit, || {
        let damping_rel = settings.damping_rel.unwrap_or(1e-3);
        let options = lorif::Options { rank: eigenpairs, damping_rel, ..lorif::Options::default() };
        Ok(LowRank::fit(&Expanded::new(&reader, &layout)?, options, progress)?)
    })?;
    let values =
        clocked(&mut score, || Ok(lorif::score(&reader, query_rows.view(), &layout, &metric, progress)?.values))?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = 4.0 * stored.ncols() as f64;
    Ok(timed)
}

/// Best factors of every module of every row: `left [o, c]`, then `right [i, c]`, each with the root of the singular values.
fn factor_rows(rows: &Rows, shapes: &[Option<[usize; 2]>], rank: usize) -> Result<Array2<f32>, EngineError> {
    let one = |row: ndarray::ArrayView1<'_, f32>| -> Result<Vec<f32>, EngineError> {
        let (mut out, mut start) = (Vec::new(), 0);
        for (layer, shape) in rows.layers.iter().zip(shapes) {
            let block = row.slice(s![start..start + layer.len()]);
            start += layer.len();
            let Some([o, i]) = *shape else {
                out.extend(block.iter());
                continue;
            };
            let block = block.to_shape((o, i)).expect("a module's numbers are its matrix");
            let found = factor::factors(block.view(), rank).map_err(|source| MethodError::Factor {
                module: layer.name.clone(),
                damping_rel: 0.0,
                source,
            })?;
            out.extend(found.left.iter().map(|&v| v as f32));
            out.extend(found.right.iter().map(|&v| v as f32));
        }
        Ok(out)
    };
    let found: Vec<Result<Vec<f32>, EngineError>> =
        (0..rows.values.nrows()).into_par_iter().map(|r| one(rows.values.row(r))).collect();
    let found: Vec<Vec<f32>> = found.into_iter().collect::<Result<_, _>>()?;
    let width = found.first().map_or(0, Vec::len);
    let n = found.len();
    Ok(Array2::from_shape_vec((n, width), found.concat()).expect("all rows have one layout"))
}

/// Rows `P H^{−½} g` in few bits: whitening comes before the projection, so what a projection leaves out is evenly little of
/// everything. With uncoded numbers a score is an unbiased estimate of EK-FAC's; codes of one bit shrink it, alike for all rows of a
/// length. Rows of several models are added up, each with a transform of its own: the inner product of sums is the sum of inner
/// products, in the bytes of one row, and what is one run's accident averages out.
pub(super) fn sketch(lab: &dyn Lab, settings: &SketchSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let (mut fit, mut score) = (0.0, 0.0);
    let shape = |n: usize| Array2::<f32>::zeros((n, settings.dim));
    let (mut rows, mut vectors) = (shape(lab.n_examples()), shape(lab.n_queries()));
    for (i, which) in (0u64..).zip(averaged(lab, settings.models, settings.checkpoints)?) {
        let view = lab.model(which)?;
        let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
        let factors = clocked(&mut fit, || Ok(Kron::fit(train.as_ref(), &Options::default(), progress)?))?;
        let inverted = factors.inverse(Inverse::Damped, &settings.damping)?;
        let sketch = Sketch::new(SEED + i, train.layers(), settings.dim);
        let whiten = |rows: Array2<f32>| Ok(inverted.solve_half(rows.view())?);
        rows += &clocked(&mut fit, || sketch.mapped(train.as_ref(), &whiten))?;
        vectors += &clocked(&mut score, || sketch.mapped(queries.as_ref(), &whiten))?;
    }
    let coded = clocked(&mut fit, || {
        let reader = InMemory::new(rows.view());
        let coding = Coding { code: named(&settings.code)?, groups: Groups::Row, rotation: Some(SEED) };
        Ok(CodedRows::encode(&reader, coding, None, progress)?)
    })?;
    let mut values =
        clocked(&mut score, || Ok(dot::score(&coded, vectors.mapv(f64::from).view(), None, progress)?.values))?;
    if let Some(noise) = settings.shrink {
        shrink(&mut values, noise);
    }
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = coded.bytes_per_example() as f64;
    timed.settings = json!({ "lost": coded.lost() });
    Ok(timed)
}

/// How [`sketch`] makes and reads its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SketchSettings {
    /// Damping of EK-FAC.
    pub damping: Damping,
    /// Numbers of a row.
    pub dim: usize,
    /// `int8`, `four_bit`, `two_bit`, `ternary` or `sign`.
    pub code: String,
    /// Models whose rows are added up.
    #[serde(default = "one")]
    pub models: u64,
    /// The kept checkpoints of the one model instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoints: bool,
    /// Scores are pulled towards 0 by this many standard deviations of a query's noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrink: Option<f64>,
}

fn one() -> u64 {
    1
}

/// Pulls every query's scores towards 0 by `noise` standard deviations of its noise. Most examples have next to no influence on a
/// query, so the median of magnitudes measures what projection and codes add: σ = median/0.6745. Summed over thousands of examples
/// this noise would drown the few that matter. Source: soft thresholding (Donoho, IEEE Trans. Inf. Theory 41, 1995), as in TRAK.
fn shrink(values: &mut Array2<f32>, noise: f64) {
    for mut row in values.rows_mut() {
        let mut magnitudes: Vec<f32> = row.iter().map(|v| v.abs()).collect();
        if magnitudes.is_empty() {
            continue;
        }
        let middle = magnitudes.len() / 2;
        let (_, &mut median, _) = magnitudes.select_nth_unstable_by(middle, f32::total_cmp);
        let threshold = (noise * f64::from(median) / 0.674_489_750_196_081_7) as f32;
        row.mapv_inplace(|v| v.signum() * (v.abs() - threshold).max(0.0));
    }
}

pub(super) fn named(code: &str) -> Result<Code, EngineError> {
    Code::named(code).ok_or_else(|| EngineError::Setting {
        setting: "code",
        expected: Code::ALL.map(Code::name).join(", "),
        found: code.to_owned(),
    })
}

/// TrackStar: both sides' second moments mixed, cosines in that metric.
pub(super) fn track_star(lab: &dyn Lab, k: usize, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let settings = RowSettings {
        basis: BasisKind::Random,
        k,
        sparse: None,
        factors: None,
        whitened: None,
        code: None,
        damping_rel: None,
        normalise: Normalisation::None,
        trajectory: false,
    };
    let (train, queries) = match lab.decoder() {
        // Rows as Adam sees them: every number divided by the root of its second moment, before the projection.
        Some(decoder) => {
            let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
            let train = clocked(&mut fit, || super::adam::normalized_rows(decoder, train.as_ref(), k))?;
            (train, clocked(&mut score, || super::adam::normalized_rows(decoder, queries.as_ref(), k))?)
        }
        None => {
            let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
            let bases = bases(train.as_ref(), &settings, progress)?;
            let train = clocked(&mut fit, || Rows::of(train.as_ref(), &bases, &settings))?;
            (train, clocked(&mut score, || Rows::of(queries.as_ref(), &bases, &settings))?)
        }
    };
    let reader = train.reader()?;
    let (metric, lambda) = clocked(&mut fit, || {
        let eval = Covariance::fit(&queries.reader()?, progress)?;
        let metric = TrackStar::fit(&Covariance::fit(&reader, progress)?, &eval, trackstar::Options::default())?;
        let lambda = metric.lambda();
        Ok((metric, lambda))
    })?;
    let values = clocked(&mut score, || Ok(metric.score(&reader, queries.values.view(), progress)?.values))?;
    let mut timed = Timed { bytes: train.bytes(), ..Timed::new(values, fit, score) };
    timed.settings = json!({ "lambda": lambda });
    Ok(timed)
}

/// Rows of all examples, with the modules that they belong to.
pub(in crate::bench) struct Rows {
    pub layers: Vec<Layer>,
    pub values: Array2<f32>,
    pub columns: Vec<Column>,
}

impl Rows {
    fn of(source: &dyn CaptureSource, bases: &[Basis], settings: &RowSettings) -> Result<Self, EngineError> {
        let projected = Projected::new(source, bases)?;
        let ids: Vec<u32> = (0..projected.len() as u32).collect();
        let layers = projected.layers().to_vec();
        let named = |layers: &[Layer], len: &dyn Fn(&Layer) -> usize| -> Vec<(String, usize)> {
            layers.iter().map(|l| (l.name.clone(), len(l))).collect()
        };
        let Some(width) = settings.sparse else {
            let values = captured::gradients(&projected, &ids, Labels::Given)?;
            let columns = columns(&named(&layers, &Layer::len));
            return Ok(Self { layers, values, columns });
        };
        let sketches: Vec<Sjlt> = layers.iter().map(|l| Sjlt::new(SEED, &l.name, width, 1)).collect();
        let mut values = Array2::zeros((ids.len(), width * layers.len()));
        for chunk in ids.chunks(512) {
            let full = captured::gradients(&projected, chunk, Labels::Given)?;
            for (row, &id) in full.rows().into_iter().zip(chunk) {
                let row = row.to_slice().expect("fresh rows are contiguous");
                let (mut start, mut target) = (0, values.row_mut(id as usize));
                let target = target.as_slice_mut().expect("fresh rows are contiguous");
                for (l, (layer, sketch)) in layers.iter().zip(&sketches).enumerate() {
                    sketch.add(0, &row[start..start + layer.len()], &mut target[l * width..(l + 1) * width]);
                    start += layer.len();
                }
            }
        }
        let columns = columns(&named(&layers, &|_| width));
        Ok(Self { layers, values, columns })
    }

    pub(super) fn reader(&self) -> Result<InMemory<'_>, EngineError> {
        Ok(InMemory::new(self.values.view()).with_columns(self.columns.clone())?)
    }

    fn bytes(&self) -> f64 {
        4.0 * self.values.ncols() as f64
    }
}

/// Column groups of these names and lengths.
pub(in crate::bench) fn columns(named: &[(String, usize)]) -> Vec<Column> {
    let mut start = 0;
    named
        .iter()
        .map(|(name, len)| {
            let column = Column { name: name.clone(), start, len: *len };
            start += len;
            column
        })
        .collect()
}

/// The matrices of `BasisKind::Random`, one pair per layer, `k` rows on either side: what a comparison with another implementation
/// needs to project alike.
pub fn random_bases(layers: &[Layer], k: usize) -> Vec<Basis> {
    let basis = |l: &Layer| {
        let found = TwoSided::new(SEED, &l.name, l.n_in, l.n_out, k, k);
        Basis { input: found.p_in.t().mapv(f64::from), output: found.p_out.t().mapv(f64::from) }
    };
    layers.iter().map(basis).collect()
}

fn bases(
    source: &dyn CaptureSource,
    settings: &RowSettings,
    progress: &dyn Progress,
) -> Result<Vec<Basis>, EngineError> {
    let k = settings.k;
    Ok(match settings.basis {
        BasisKind::Pca => Kron::fit(source, &Options::default(), progress)?.leading(k, k)?,
        BasisKind::Random => random_bases(source.layers(), k),
        BasisKind::Mask => {
            let pick = |name: &str, side: &str, n: usize| {
                let places = ascribe_linalg::sparse::mask(SEED, &format!("{name}/{side}"), n, k.min(n));
                let scale = (n as f64 / places.len() as f64).sqrt();
                let mut basis = Array2::zeros((places.len(), n));
                places.iter().enumerate().for_each(|(row, &place)| basis[(row, place)] = scale);
                basis
            };
            let basis = |l: &Layer| Basis { input: pick(&l.name, "in", l.n_in), output: pick(&l.name, "out", l.n_out) };
            source.layers().iter().map(basis).collect()
        }
    })
}

/// One sparse transform of the whole gradient: TRAK's rows.
pub(super) struct Sketch {
    seed: u64,
    dim: usize,
    width: usize,
}

impl Sketch {
    pub fn new(seed: u64, layers: &[Layer], width: usize) -> Self {
        Self { seed, dim: dim(layers), width }
    }

    fn transform(&self) -> Sjlt {
        Sjlt::new(Stream::new(self.seed, "bench/trak").at(0), "all", self.width, 1)
    }

    /// Place and sign of every number of a gradient, as [`Sketch::transform`] has them: worked out once for all examples.
    pub fn table(&self) -> Vec<(u32, f32)> {
        let transform = self.transform();
        let entry = |number| {
            let (place, negative) = transform.place(number, 0);
            (place as u32, if negative { -1.0 } else { 1.0 })
        };
        (0..self.dim).map(entry).collect()
    }

    /// `[N, width]`; entries of the transform are ±1 at one seeded place each.
    pub fn rows(&self, source: &dyn CaptureSource) -> Result<Array2<f32>, EngineError> {
        match self.dim <= LONGEST_TABLE {
            true => Ok(captured::sketched(source, Labels::Given, &self.table(), self.width)?),
            false => self.mapped(source, &|rows| Ok(rows)),
        }
    }

    /// The same of gradients `[n, P]` that went through `change`.
    fn mapped(
        &self,
        source: &dyn CaptureSource,
        change: &dyn Fn(Array2<f32>) -> Result<Array2<f32>, EngineError>,
    ) -> Result<Array2<f32>, EngineError> {
        let ids: Vec<u32> = (0..source.len() as u32).collect();
        let mut out = Array2::zeros((ids.len(), self.width));
        let sketch = self.transform();
        let table = (self.dim <= LONGEST_TABLE).then(|| self.table());
        let chunk = ((64 << 20) / self.dim.max(1)).clamp(8, 512);
        for part in ids.chunks(chunk) {
            let full = change(captured::gradients(source, part, Labels::Given)?)?;
            let first = part[0] as usize;
            let mut target = out.slice_mut(s![first..first + part.len(), ..]);
            let pairs = target.rows_mut().into_iter().zip(full.rows()).collect::<Vec<_>>();
            pairs.into_par_iter().for_each(|(mut target, row)| {
                let row = row.to_slice().expect("fresh rows are contiguous");
                let target = target.as_slice_mut().expect("rows of a standard array are contiguous");
                match &table {
                    Some(table) => {
                        row.iter().zip(table).for_each(|(&x, &(place, sign))| target[place as usize] += x * sign);
                    }
                    None => sketch.add(0, row, target),
                }
            });
        }
        Ok(out)
    }
}
