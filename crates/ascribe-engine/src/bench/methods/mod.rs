//! The methods that take part in the contest, over any [`Lab`]. Here lives: which mathematics runs with which settings, and
//! what it costs. Here never lives: the mathematics (methods).

mod adam;
mod catalogue;
mod controls;
mod grass;
mod kron;
mod offered;
mod operators;
mod outside;
mod plain;
mod rows;
mod spec;
mod stored;
mod trak;
mod upon;
mod whitened;

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::source::{Labels, dim};
use ndarray::{Array2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use ascribe_methods::normalise::Normalisation;
pub use catalogue::{catalogue, contestants, find};
pub use offered::{ENCODER, Offer, word};
pub use outside::OutsideSettings;
pub use rows::random_bases;
pub use stored::{Kept, StoredSettings};
pub use trak::trak_places;
pub use upon::{Upon, by_table, self_influence};

use super::contest::{Contestant, Scores};
use super::lab::{Lab, Quantity, View, Which};
use super::report::cpu_of;
use crate::error::EngineError;

/// A method with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Short name.
    pub name: String,
    /// What it computes.
    pub about: String,
    /// Where its formula stands.
    pub source: String,
    /// How it is run.
    pub spec: Spec,
}

/// What is run; every number is a setting that stands in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Spec {
    /// Inner products of gradients at the final weights.
    Gradient {
        /// What scores are divided by.
        normalise: Normalisation,
    },
    /// Inner products summed over kept checkpoints, each with the learning rates of its stretch.
    TracIn {
        /// What scores are divided by, per checkpoint.
        normalise: Normalisation,
    },
    /// LESS at the final weights: training gradients as the Adam step that they would make, cosine. One model, not a sum over
    /// checkpoints, and without Adam's first moment: model folders keep second moments of the last step only.
    Less,
    /// The whole curvature matrix, factored.
    Explicit {
        /// Added to the diagonal.
        damping: f64,
        /// Queries at most.
        queries: usize,
        /// The Hessian instead of the Gauss–Newton matrix.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        hessian: bool,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// Conjugate gradients.
    Cg {
        /// Added to the diagonal.
        damping: f64,
        /// Iterations at most.
        iterations: usize,
        /// Queries at most.
        queries: usize,
        /// Residuals pass through EK-FAC's inverse with the same damping, which saves iterations.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        preconditioned: bool,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// Stochastic Neumann series.
    Lissa {
        /// Added to the diagonal.
        damping: f64,
        /// Steps.
        depth: usize,
        /// Examples per step.
        batch: usize,
        /// Queries at most.
        queries: usize,
        /// Above half of every batch's largest eigenvalue; estimated without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<f64>,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// Largest eigenpairs of a Krylov space.
    Arnoldi {
        /// Added to the kept eigenvalues.
        damping: f64,
        /// Basis vectors.
        basis: usize,
        /// Eigenpairs kept.
        top: usize,
        /// Vectors of the start.
        block: usize,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// DataInf's swapped inverse.
    DataInf {
        /// Ridge relative to the layer's mean eigenvalue.
        ridge: f64,
        /// Queries at most.
        queries: usize,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// Kronecker-factored curvature.
    Kron {
        /// Which factors.
        kind: ascribe_methods::kron::Kind,
        /// In the place of `1/Λ`.
        inverse: ascribe_methods::kron::Inverse,
        /// Damping.
        damping: ascribe_methods::kron::Damping,
        /// Models whose scores are averaged.
        models: u64,
        /// The kept checkpoints of the one model instead: one training run, several points of it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        checkpoints: bool,
        /// What scores are divided by.
        normalise: Normalisation,
        /// The examples' own labels (the empirical Fisher matrix) instead of sampled ones.
        #[serde(default)]
        empirical: bool,
        /// Eigenvalues measured on labels drawn anew.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        redraw: bool,
    },
    /// EK-FAC refined by products with the curvature.
    Astra {
        /// Added to the curvature.
        damping: f64,
        /// Passes over the examples.
        passes: f64,
        /// Queries at most.
        queries: usize,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// SOURCE over the kept checkpoints of a run, two to a segment.
    Source {
        /// Models whose scores are averaged.
        models: u64,
        /// Eigenvalues measured on labels drawn anew.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        redraw: bool,
    },
    /// Two-sided projections and the block Fisher matrix of the rows.
    Projected(rows::RowSettings),
    /// Rows of a decoder's fused modules as a feature store keeps them. Text only.
    Stored(StoredSettings),
    /// GraSS: places of the whole gradient, sparsely transformed.
    Grass(grass::GrassSettings),
    /// Gradients whitened by EK-FAC's half power as a whole, then one sparse transform, then few bits a number.
    Sketch(rows::SketchSettings),
    /// TRAK.
    Trak {
        /// Models.
        models: u64,
        /// Numbers of a row.
        dim: usize,
        /// Ridge relative to the mean diagonal.
        ridge: f64,
        /// Models trained on random halves of the examples, as in the paper, instead of on all of them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        halves: bool,
        /// Another seed draws other projections.
        #[serde(default, skip_serializing_if = "is_zero")]
        projection: u64,
        /// What scores are divided by.
        #[serde(default, skip_serializing_if = "is_plain")]
        normalise: Normalisation,
    },
    /// TrackStar.
    TrackStar {
        /// Numbers per side and module.
        k: usize,
    },
    /// Exact metagradients of the training run.
    Magic {
        /// Queries at most.
        queries: usize,
    },
    /// Mean of the parts' scores, each in standard deviations of its query's.
    Sum {
        /// What is added.
        parts: Vec<Spec>,
        /// Weight of each; equal ones without.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        weights: Vec<f64>,
    },
    /// Representer points of the last layer.
    Representer {
        /// L2 penalty of the refitted layer.
        penalty: f64,
    },
    /// KNN-Shapley in the space of hidden states.
    KnnShapley {
        /// Neighbours.
        k: usize,
    },
    /// Cosine of hidden states.
    Embedding,
    /// Cosine of an outside encoder's vectors.
    Outside(OutsideSettings),
    /// BM25 over words.
    Bm25,
    /// Longest common run of tokens.
    Verbatim,
    /// The training gradient's length, whatever the query.
    GradientNorm,
    /// The training loss, whatever the query.
    Loss,
    /// Nothing but a seed.
    Random {
        /// The seed.
        seed: u64,
    },
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_plain(by: &Normalisation) -> bool {
    *by == Normalisation::None
}

/// Scores with the CPU seconds of both parts.
struct Timed {
    values: Array2<f32>,
    fit: f64,
    score: f64,
    bytes: f64,
    settings: Value,
}

impl Timed {
    fn new(values: Array2<f32>, fit: f64, score: f64) -> Self {
        Self { values, fit, score, bytes: 0.0, settings: Value::Null }
    }
}

impl Contestant<dyn Lab> for Method {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn source(&self) -> &str {
        &self.source
    }

    fn control(&self) -> bool {
        matches!(
            self.spec,
            Spec::Embedding
                | Spec::Outside(_)
                | Spec::Bm25
                | Spec::Verbatim
                | Spec::GradientNorm
                | Spec::Loss
                | Spec::Random { .. }
                | Spec::KnnShapley { .. }
        )
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.spec).unwrap_or(Value::Null)
    }

    fn run(&self, lab: &dyn Lab, progress: &dyn Progress) -> Result<Scores, EngineError> {
        let timed = self.spec.timed(lab, progress)?;
        let mut settings = self.settings();
        if let (Value::Object(own), Value::Object(found)) = (&mut settings, timed.settings) {
            own.extend(found);
        }
        Ok(Scores {
            values: timed.values,
            cpu_fit: timed.fit,
            cpu_score: timed.score,
            bytes_per_example: timed.bytes,
            settings,
        })
    }
}

impl Spec {
    fn timed(&self, lab: &dyn Lab, progress: &dyn Progress) -> Result<Timed, EngineError> {
        match self {
            Spec::Gradient { normalise } => plain::gradient(lab, *normalise, progress),
            Spec::TracIn { normalise } => plain::tracin(lab, *normalise, progress),
            Spec::Less => adam::less(lab, progress),
            Spec::Explicit { damping, queries, hessian, normalise } => {
                operators::explicit(lab, *damping, (*queries, *normalise), *hessian, progress)
            }
            Spec::Cg { damping, iterations, queries, preconditioned, normalise } => {
                operators::cg(lab, *damping, *iterations, (*queries, *normalise), *preconditioned, progress)
            }
            Spec::Lissa { damping, depth, batch, queries, scale, normalise } => {
                let steps = operators::Steps { depth: *depth, batch: *batch, scale: *scale };
                operators::lissa(lab, *damping, &steps, (*queries, *normalise), progress)
            }
            Spec::Arnoldi { damping, basis, top, block, normalise } => {
                operators::arnoldi(lab, *damping, (*basis, *top, *block), *normalise, progress)
            }
            Spec::DataInf { ridge, queries, normalise } => {
                operators::data_inf(lab, *ridge, (*queries, *normalise), progress)
            }
            Spec::Kron { kind, inverse, damping, models, checkpoints, normalise, empirical, redraw } => {
                let (kind, inverse, models, checkpoints) = (*kind, *inverse, *models, *checkpoints);
                let (empirical, redraw) = (*empirical, *redraw);
                let settings = kron::KronSettings { kind, inverse, damping, models, checkpoints, empirical, redraw };
                kron::score(lab, &settings, *normalise, progress)
            }
            Spec::Astra { damping, passes, queries, normalise } => {
                kron::astra(lab, *damping, *passes, (*queries, *normalise), progress)
            }
            Spec::Source { models, redraw } => kron::source(lab, *models, *redraw, progress),
            Spec::Projected(settings) => rows::projected(lab, settings, progress),
            Spec::Stored(settings) => stored::stored(lab, settings, progress),
            Spec::Grass(settings) => grass::grass(lab, settings, progress),
            Spec::Sketch(settings) => rows::sketch(lab, settings, progress),
            Spec::Trak { models, dim, ridge, halves, projection, normalise } => {
                let (models, dim, ridge, halves) = (*models, *dim, *ridge, *halves);
                let (projection, normalise) = (*projection, *normalise);
                let settings = trak::TrakSettings { models, dim, ridge, halves, projection, normalise };
                trak::trak(lab, &settings, progress)
            }
            Spec::TrackStar { k } => rows::track_star(lab, *k, progress),
            Spec::Sum { parts, weights } => sum(lab, parts, weights, progress),
            Spec::Magic { queries } => plain::magic(lab, *queries),
            Spec::Representer { penalty } => controls::representer(lab, *penalty, progress),
            Spec::KnnShapley { k } => controls::knn_shapley(lab, *k, progress),
            Spec::Embedding => controls::embedding(lab),
            Spec::Outside(settings) => outside::outside(lab, settings, progress),
            Spec::Bm25 => controls::bm25(lab),
            Spec::Verbatim => controls::verbatim(lab, progress),
            Spec::GradientNorm => controls::gradient_norm(lab, progress),
            Spec::Loss => controls::loss(lab, progress),
            Spec::Random { seed } => controls::random(lab, *seed),
        }
    }
}

/// Parts added after each query's scores were brought to mean 0 and standard deviation 1; a part that is constant for a query
/// says nothing about it.
fn sum(lab: &dyn Lab, parts: &[Spec], weights: &[f64], progress: &dyn Progress) -> Result<Timed, EngineError> {
    if !weights.is_empty() && (weights.len() != parts.len() || !weights.iter().all(|w| w.is_finite())) {
        let expected = format!("a finite weight for each of the {} parts", parts.len());
        return Err(EngineError::Setting { setting: "weights", expected, found: format!("{weights:?}") });
    }
    let mut total: Option<Timed> = None;
    // Words are read off the tokens that a search for equal runs keeps: parts that read the text keep it once, the larger copy.
    let (mut bytes, mut text) = (0.0, 0.0f64);
    for (i, part) in parts.iter().enumerate() {
        let weight = weights.get(i).copied().unwrap_or(1.0);
        let mut one = part.timed(lab, progress)?;
        match part {
            Spec::Bm25 | Spec::Verbatim => text = text.max(one.bytes),
            _ => bytes += one.bytes,
        }
        for mut row in one.values.rows_mut() {
            let n = row.len().max(1) as f64;
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let deviation = (row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
            let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
            row.mapv_inplace(|v| ((f64::from(v) - mean) * scale * weight / parts.len() as f64) as f32);
        }
        let (values, fit, score) = match total {
            None => (one.values, one.fit, one.score),
            Some(sum) => (sum.values + one.values, sum.fit + one.fit, sum.score + one.score),
        };
        total = Some(Timed { bytes: bytes + text, ..Timed::new(values, fit, score) });
    }
    total.ok_or_else(|| lacks("parts to add"))
}

/// Gradients `[q, P]` of the first `limit` queries.
fn query_gradients(view: &dyn View, quantity: Quantity, limit: usize) -> Result<Array2<f32>, EngineError> {
    let queries = view.queries(quantity)?;
    let ids: Vec<u32> = (0..queries.len().min(limit) as u32).collect();
    Ok(captured::gradients(queries.as_ref(), &ids, Labels::Given)?)
}

/// Scores `[q, N]` of query vectors in parts that fit into memory beside their packed copy.
fn score_vectors(view: &dyn View, vectors: &Array2<f32>, progress: &dyn Progress) -> Result<Array2<f32>, EngineError> {
    let train = view.train(Quantity::Loss)?;
    let mut out = Array2::zeros((vectors.nrows(), train.len()));
    for rows in parts(vectors.nrows(), vectors.ncols()) {
        let found = captured::score(train.as_ref(), vectors.slice(s![rows.clone(), ..]), Labels::Given, progress)?;
        out.slice_mut(s![rows, ..]).assign(&found);
    }
    Ok(out)
}

/// Scores of the first `limit` queries through an inverse curvature that treats queries one by one: gradients, solutions and
/// their packed copy are in memory for a part of the queries at a time.
fn score_solved(
    view: &dyn View,
    limit: usize,
    solve: &captured::Solve<'_>,
    progress: &dyn Progress,
) -> Result<Array2<f32>, EngineError> {
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let n = queries.len().min(limit);
    let mut out = Array2::zeros((n, train.len()));
    for rows in parts(n, dim(train.layers())) {
        let ids: Vec<u32> = (rows.start as u32..rows.end as u32).collect();
        let solved = solve(captured::gradients(queries.as_ref(), &ids, Labels::Given)?.view())?;
        let found = captured::score(train.as_ref(), solved.view(), Labels::Given, progress)?;
        out.slice_mut(s![rows, ..]).assign(&found);
    }
    Ok(out)
}

/// Runs of rows of `width` numbers, 32 MiB each, but not under 64 rows: every run is a pass over the training examples.
fn parts(n: usize, width: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let part = ((8 << 20) / width.max(1)).max(64);
    (0..n).step_by(part).map(move |start| start..(start + part).min(n))
}

/// What scores are averaged over: `models` trained models, or the kept checkpoints of the one that is explained.
fn averaged(lab: &dyn Lab, models: u64, checkpoints: bool) -> Result<Vec<Which>, EngineError> {
    match (checkpoints, models) {
        (false, _) => Ok((0..models).map(Which::Final).collect()),
        (true, 1) if !lab.stretches().is_empty() => Ok((0..lab.stretches().len()).map(Which::Kept).collect()),
        (true, _) => Err(lacks("kept checkpoints, of one model")),
    }
}

/// The model that is explained.
fn explained(lab: &dyn Lab) -> Result<Box<dyn View + '_>, EngineError> {
    lab.model(Which::Final(0))
}

/// Runs a part and adds its CPU seconds to `clock`.
fn clocked<T>(clock: &mut f64, work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    let (out, seconds) = cpu_of(work);
    *clock += seconds;
    out
}

/// What a lab lacks for a method.
fn lacks(what: &str) -> EngineError {
    EngineError::Setting { setting: "method", expected: format!("a setting with {what}"), found: "one without".into() }
}
