//! What every convolution and dense layer saw of single images: inputs and gradients of outputs, row by row. What becomes of
//! them (curvature factors, projections) is the methods' matter.

use rayon::prelude::*;

use super::Classifier;
use super::data::ImageSet;
use super::gradient::finite;
use super::layers::LinearLayer;
use super::loss::Objective;
use super::pass::{Rows, Sink};
use crate::error::ModelError;

/// Rows of one layer: image after image, `positions` rows each, so that `∂ℓ/∂W = Σ_t δ_t x_tᵀ`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRows {
    /// `[n·positions, n_in]`, the last column 1 where the layer has a bias; a convolution's rows are its patches.
    pub x: Vec<f32>,
    /// `[n·positions, n_out]`: gradients of the image's measure by the layer's outputs.
    pub delta: Vec<f32>,
}

/// The parts of the rows that one group of images fills, by layer.
struct Capturing<'a, 'l> {
    layers: &'l [LinearLayer],
    slots: Vec<(&'a mut [f32], &'a mut [f32])>,
}

impl Sink for Capturing<'_, '_> {
    fn wants(&self, node: usize) -> bool {
        self.layers.iter().any(|layer| layer.node == node)
    }

    fn linear(&mut self, node: usize, example: usize, rows: Rows<'_>) {
        let Some(l) = self.layers.iter().position(|layer| layer.node == node) else { return };
        let layer = &self.layers[l];
        let (n_in, n_out, t) = (layer.n_in, layer.n_out, rows.positions());
        let (x, delta) = &mut self.slots[l];
        let x = &mut x[example * t * n_in..(example + 1) * t * n_in];
        let delta = &mut delta[example * t * n_out..(example + 1) * t * n_out];
        // [I, T] → [T, I], the constant of the bias behind it.
        for (position, x) in x.chunks_exact_mut(n_in).enumerate() {
            let (inputs, one) = x.split_at_mut(layer.fan_in());
            inputs.iter_mut().zip(rows.x[position..].iter().step_by(t)).for_each(|(out, &x)| *out = x);
            one.fill(1.0);
        }
        for (position, delta) in delta.chunks_exact_mut(n_out).enumerate() {
            delta.iter_mut().zip(rows.delta[position..].iter().step_by(t)).for_each(|(out, &d)| *out = d);
        }
    }

    fn norm(&mut self, _: usize, _: usize, _: &[f32], _: &[f32]) {}
}

impl Classifier {
    /// Fills `out` with the rows of every layer of [`Classifier::linear_layers`] for the images `ids`, using its memory
    /// again; returns the measured numbers.
    ///
    /// An image's numbers depend on it (and its class) alone; images run in parallel. Memory `4·n·Σ positions·(n_in + n_out)`
    /// bytes. Cost: a forward and a backward pass.
    ///
    /// # Errors
    /// As [`Classifier::losses`]; [`ModelError::Diverged`] if a measure is not finite.
    pub fn capture(
        &self,
        set: &ImageSet,
        ids: &[u32],
        objective: Objective<'_>,
        out: &mut Vec<LayerRows>,
    ) -> Result<Vec<f64>, ModelError> {
        self.check(set, ids, objective)?;
        let layers = self.linear_layers();
        let group = self.group();
        out.resize_with(layers.len(), LayerRows::default);
        let mut work: Vec<Vec<(&mut [f32], &mut [f32])>> = Vec::new();
        work.resize_with(ids.len().div_ceil(group), Vec::new);
        for (layer, rows) in layers.iter().zip(out.iter_mut()) {
            let (x, delta) = (layer.positions * layer.n_in, layer.positions * layer.n_out);
            rows.x.resize(ids.len() * x, 0.0);
            rows.delta.resize(ids.len() * delta, 0.0);
            let parts = rows.x.chunks_mut(group * x).zip(rows.delta.chunks_mut(group * delta));
            work.iter_mut().zip(parts).for_each(|(slots, part)| slots.push(part));
        }
        let pass = |(i, (slots, ids)): (usize, (Vec<_>, &[u32]))| {
            self.pool.with(self, |ws| {
                self.forward(set, ids, ws);
                let losses = self.measure(set, ids, i * group, objective, ws);
                self.backward(ids.len(), ws, &mut Capturing { layers: &layers, slots });
                losses
            })
        };
        let losses: Vec<Vec<f64>> = work.into_par_iter().zip(ids.par_chunks(group)).enumerate().map(pass).collect();
        finite(losses.into_iter().flatten().collect(), "measure")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::tests::{FIXTURES, Fixture};
    use crate::vision::{Measure, Target};

    /// `Σ_t δ_t x_tᵀ` of the rows is the gradient that the other path gives, sampled labels and all.
    #[test]
    fn the_rows_make_the_gradient() {
        for name in FIXTURES {
            let Fixture { model, set, .. } = Fixture::open(name);
            let ids: Vec<u32> = (0..set.len() as u32).rev().collect();
            let sampled = Objective { measure: Measure::CrossEntropy, target: Target::Sampled { seed: 5 } };
            for objective in [Objective::LOSS, sampled] {
                let mut rows = vec![LayerRows { x: vec![f32::NAN; 3], delta: vec![] }];
                let losses = model.capture(&set, &ids, objective, &mut rows).unwrap();
                assert_eq!(losses, model.losses(&set, &ids, objective).unwrap());
                let gradients = model.layer_gradients(&set, &ids, objective).unwrap();
                for (e, gradient) in gradients.rows().into_iter().enumerate() {
                    let largest = gradient.iter().fold(0f32, |top, g| top.max(g.abs()));
                    let mut at = 0;
                    for (layer, rows) in model.linear_layers().iter().zip(&rows) {
                        for (o, i) in (0..layer.n_out).flat_map(|o| (0..layer.n_in).map(move |i| (o, i))) {
                            let sum: f64 = (e * layer.positions..(e + 1) * layer.positions)
                                .map(|t| {
                                    f64::from(rows.delta[t * layer.n_out + o]) * f64::from(rows.x[t * layer.n_in + i])
                                })
                                .sum();
                            assert!((sum as f32 - gradient[at]).abs() <= 1e-5 * largest, "{name} {e} {at}");
                            at += 1;
                        }
                    }
                    assert_eq!(at, gradient.len());
                }
            }
        }
    }

    #[test]
    fn an_image_is_captured_alone_as_in_company() {
        let Fixture { model, set, .. } = Fixture::open("lenet-max");
        let (mut all, mut one) = (vec![], vec![]);
        let ids: Vec<u32> = (0..set.len() as u32).collect();
        model.capture(&set, &ids, Objective::LOSS, &mut all).unwrap();
        model.capture(&set, &ids[1..2], Objective::LOSS, &mut one).unwrap();
        for ((all, one), layer) in all.iter().zip(&one).zip(model.linear_layers()) {
            let (x, delta) = (layer.positions * layer.n_in, layer.positions * layer.n_out);
            assert!(all.x[x..2 * x] == one.x[..] && all.delta[delta..2 * delta] == one.delta[..]);
        }
        assert!(model.capture(&set, &[set.len() as u32], Objective::LOSS, &mut one).is_err());
    }
}
