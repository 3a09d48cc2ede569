//! TRAK: sparse transforms of margin gradients, one kernel per model.

use ascribe_core::Progress;
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::rows::InMemory;
use ascribe_methods::source::Layer;
use ascribe_methods::trak::{Ensemble, Kernel, Ridge, SoftThreshold};
use ndarray::ArrayView2;

use super::super::lab::{Lab, Quantity, Which};
use super::rows::{SEED, Sketch};
use super::{Timed, clocked};
use crate::error::EngineError;

/// What [`trak`] runs on.
pub(super) struct TrakSettings {
    pub models: u64,
    pub dim: usize,
    pub ridge: f64,
    pub halves: bool,
    pub projection: u64,
    pub normalise: Normalisation,
}

/// Seed of the `model`-th projection. Another `projection` shifts all of them past any ensemble.
fn trak_seed(model: u64, projection: u64) -> u64 {
    SEED + model + 1_000_003 * projection
}

/// Where TRAK's projection of the first model puts every number of a gradient in layer form, and with which sign, `[P]`: what a
/// comparison with another implementation needs to use the same one.
pub fn trak_places(layers: &[Layer], width: usize, projection: u64) -> Vec<(u32, f32)> {
    let sketch = Sketch::new(trak_seed(0, projection), layers, width);
    sketch.table()
}

/// TRAK over models, each with a projection of its own.
pub(super) fn trak(lab: &dyn Lab, settings: &TrakSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let TrakSettings { models, dim: width, ridge, halves, projection, normalise: by } = *settings;
    let (mut fit, mut score) = (0.0, 0.0);
    let (mut ensemble, mut lengths) = (Ensemble::new(), Lengths::default());
    for model in 0..models {
        let view = lab.model(if halves { Which::Half(model) } else { Which::Final(model) })?;
        let (train, queries) = (view.train(Quantity::NegativeMargin)?, view.queries(Quantity::NegativeMargin)?);
        let sketch = Sketch::new(trak_seed(model, projection), train.layers(), width);
        let train = clocked(&mut fit, || sketch.rows(train.as_ref()))?;
        let residuals = clocked(&mut fit, || view.residuals())?;
        let queries = clocked(&mut score, || sketch.rows(queries.as_ref()))?;
        let reader = InMemory::new(train.view());
        clocked(&mut fit, || {
            let kernel = Kernel::fit(&reader, Ridge::Relative { part: ridge }, progress)?;
            lengths.add(&kernel, by, (queries.view(), train.view()), &residuals)?;
            Ok(ensemble.add_fitted(&kernel, &reader, queries.view(), &residuals, progress)?)
        })?;
    }
    let values = clocked(&mut score, || {
        let mut values = ensemble.into_scores(SoftThreshold::None)?.values;
        lengths.divide(&mut values, by, models)?;
        Ok(values)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = 4.0 * width as f64 * models as f64;
    Ok(timed)
}

/// Sums over models of what an option divides by: `φᵀK⁻¹φ` of queries and of training rows, `‖K⁻¹φ‖²` of training rows, and `1 − p`, by
/// which a training row is the gradient of its loss.
#[derive(Default)]
struct Lengths {
    query: Vec<f64>,
    train: Vec<f64>,
    moved: Vec<f64>,
    residuals: Vec<f64>,
}

impl Lengths {
    fn add(
        &mut self,
        kernel: &Kernel,
        by: Normalisation,
        (queries, train): (ArrayView2<'_, f32>, ArrayView2<'_, f32>),
        residuals: &[f32],
    ) -> Result<(), EngineError> {
        if by.needs_query() {
            let solved = kernel.precondition(queries)?;
            added(&mut self.query, products(queries, solved.view()));
        }
        if by.needs_train() || by.needs_moved() {
            let solved = kernel.precondition(train)?;
            added(&mut self.train, products(train, solved.view()));
            added(&mut self.moved, solved.rows().into_iter().map(|row| row.dot(&row)));
            added(&mut self.residuals, residuals.iter().map(|&r| f64::from(r)));
        }
        Ok(())
    }

    fn divide(self, values: &mut ndarray::Array2<f32>, by: Normalisation, models: u64) -> Result<(), EngineError> {
        if by == Normalisation::None {
            return Ok(());
        }
        let mean = |sum: f64| sum / models as f64;
        let query: Vec<f64> = self.query.iter().map(|&s| mean(s)).collect();
        let squares = || self.residuals.iter().map(|&r| mean(r).powi(2));
        let train: Vec<f64> = self.train.iter().zip(squares()).map(|(&s, r)| mean(s) * r).collect();
        let moved: Vec<f64> = self.moved.iter().zip(squares()).map(|(&s, r)| (mean(s) * r).sqrt()).collect();
        Ok(normalise(values, by, &Own { query: Some(&query), train: Some(&train), moved: Some(&moved) })?)
    }
}

fn added(to: &mut Vec<f64>, values: impl Iterator<Item = f64>) {
    let values: Vec<f64> = values.collect();
    to.resize(values.len(), 0.0);
    to.iter_mut().zip(values).for_each(|(to, v)| *to += v);
}

/// Of every row with its solution; rounding does not make one negative.
fn products<'a>(rows: ArrayView2<'a, f32>, solved: ArrayView2<'a, f64>) -> impl Iterator<Item = f64> + use<'a> {
    (0..rows.nrows())
        .map(move |i| rows.row(i).iter().zip(solved.row(i)).map(|(&a, b)| f64::from(a) * b).sum::<f64>().max(0.0))
}
