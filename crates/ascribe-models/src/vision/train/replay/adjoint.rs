//! Some queries' adjoints on their way back through a run: the rule of a step turned around, and the products with the Hessian
//! that every rule needs.

use ndarray::Array2;

use super::super::Optimizer;
use crate::vision::Classifier;
use crate::vision::curvature::{Curvature, Dual, Vectors};
use crate::vision::data::ImageSet;

/// What the way back needs of one step.
pub(super) struct Moment {
    /// Weights before the step.
    pub model: Classifier,
    pub batch: Vec<u32>,
    /// The batch's weights over its size.
    pub shares: Vec<f32>,
    pub lr: f32,
    /// Of Adam's rules.
    pub adam: Option<AdamMoment>,
}

/// One step of Adam: its numbers in the form of [`Vectors`], and its constants.
pub(super) struct AdamMoment {
    /// Mean gradient, with what a coupled decay adds.
    pub gradient: Vec<Vec<f32>>,
    /// Both moments after the step.
    pub first: Vec<Vec<f32>>,
    pub second: Vec<Vec<f32>>,
    /// `η/(1 − β₁ᵗ)`.
    pub step_size: f64,
    /// `1/√(1 − β₂ᵗ)`.
    pub correction: f64,
}

/// Constants of a rule.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub optimizer: Optimizer,
    pub decay: f64,
}

/// Some queries on their way back.
pub(super) struct Adjoint {
    pub parameters: Vectors,
    /// The derivative by the step's gradient: what the Hessian is multiplied with. Of SGD it is the velocity's adjoint too.
    direction: Vectors,
    /// Adjoints of Adam's moments.
    moments: Option<[Vectors; 2]>,
    /// `[R, N]`.
    pub by_image: Array2<f64>,
}

impl Adjoint {
    /// After the last step: `parameters` is the gradient of what is measured.
    pub fn new(parameters: Vectors, rule: Rule, n_images: usize) -> Self {
        let moments = match rule.optimizer {
            Optimizer::Sgd { .. } => None,
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => Some([parameters.zeros(), parameters.zeros()]),
        };
        let by_image = Array2::zeros((parameters.n_vectors, n_images));
        Self { direction: parameters.zeros(), parameters, moments, by_image }
    }

    /// The steps of `moments`, the last one first; `block` images at most share a pass.
    pub fn back(&mut self, set: &ImageSet, moments: &[Moment], rule: Rule, block: usize) {
        let Some(last) = moments.last() else { return };
        let longest = moments.iter().map(|m| m.batch.len()).max().unwrap_or(1);
        let mut dual = Dual::new(&last.model, block.min(longest), self.parameters.n_vectors);
        for moment in moments.iter().rev() {
            self.through_rule(moment, rule);
            dual.look_at(&moment.model);
            let share = 1.0 / moment.batch.len() as f64;
            let capacity = dual.capacity();
            for (ids, shares) in moment.batch.chunks(capacity).zip(moment.shares.chunks(capacity)) {
                dual.tangent(set, ids, &self.direction);
                let (v, p) = (&self.direction, &mut self.parameters);
                let slopes = dual.adjoint(set, ids, Some(shares), Curvature::Hessian, v, p);
                for (&id, slopes) in ids.iter().zip(slopes.chunks_exact(v.n_vectors)) {
                    let column = self.by_image.column_mut(id as usize);
                    column.into_iter().zip(slopes).for_each(|(sum, slope)| *sum += share * slope);
                }
            }
        }
    }

    /// Adjoints of weights and moments before the step, as far as they do not go through the gradient, and the direction.
    fn through_rule(&mut self, moment: &Moment, rule: Rule) {
        let n_vectors = self.parameters.n_vectors;
        match (rule.optimizer, &moment.adam, &mut self.moments) {
            (Optimizer::Sgd { momentum }, ..) => {
                let (momentum, decay) = (momentum as f32, rule.decay as f32);
                // The velocity's adjoint is multiplied by μ here rather than behind the step before: it starts as zero.
                let layers = self.direction.layers.iter_mut().zip(&mut self.parameters.layers);
                for (v, p) in layers.flat_map(|(v, p)| v.iter_mut().zip(p)) {
                    *v = momentum * *v - moment.lr * *p;
                    *p += decay * *v;
                }
            }
            (optimizer, Some(adam), Some([first, second])) => {
                let numbers = Adam::of(optimizer, adam, f64::from(moment.lr), rule.decay);
                for (layer, p) in self.parameters.layers.iter_mut().enumerate() {
                    let len = p.len() / n_vectors.max(1);
                    for (at, p) in p.iter_mut().enumerate() {
                        let i = at % len;
                        let known = [&adam.gradient, &adam.first, &adam.second].map(|part| f64::from(part[layer][i]));
                        let [m, v] = [&mut first.layers[layer][at], &mut second.layers[layer][at]];
                        self.direction.layers[layer][at] = numbers.back(known, p, m, v);
                    }
                }
            }
            _ => unreachable!("moments of a step and of its adjoint follow from one rule"),
        }
    }
}

/// Constants of one step of Adam or AdamW.
struct Adam {
    beta1: f64,
    beta2: f64,
    eps: f64,
    step_size: f64,
    correction: f64,
    /// What is left of a weight (AdamW).
    keep: f64,
    /// What of a weight is added to its gradient (Adam).
    coupled: f64,
}

impl Adam {
    fn of(optimizer: Optimizer, moment: &AdamMoment, lr: f64, decay: f64) -> Self {
        let (beta1, beta2, eps, coupled) = match optimizer {
            Optimizer::Adam { beta1, beta2, eps } => (beta1, beta2, eps, true),
            Optimizer::AdamW { beta1, beta2, eps } => (beta1, beta2, eps, false),
            Optimizer::Sgd { .. } => unreachable!("SGD has no moments of Adam's"),
        };
        let AdamMoment { step_size, correction, .. } = *moment;
        let (keep, coupled) = if coupled { (1.0, decay) } else { (1.0 - lr * decay, 0.0) };
        Self { beta1, beta2, eps, step_size, correction, keep, coupled }
    }

    /// One number's adjoints from after to before the step; returns the derivative by its gradient.
    ///
    /// With `m' = β₁m + (1−β₁)g`, `v' = β₂v + (1−β₂)g²`, `d = c√v' + ε`, `θ' = kθ − s m'/d` and `g = ∇ + λθ` (Adam).
    fn back(&self, [g, m_new, v_new]: [f64; 3], p: &mut f32, m: &mut f32, v: &mut f32) -> f32 {
        let root = v_new.sqrt();
        let d = self.correction * root + self.eps;
        let after = f64::from(*p);
        let m_bar = f64::from(*m) - self.step_size * after / d;
        // Where a gradient was always 0 the root has no derivative, and m' is 0 too: nothing depends on it.
        let slope =
            if root > 0.0 { self.step_size * after * m_new * self.correction / (2.0 * root * d * d) } else { 0.0 };
        let v_bar = f64::from(*v) + slope;
        let g_bar = (1.0 - self.beta1) * m_bar + 2.0 * (1.0 - self.beta2) * g * v_bar;
        *m = (self.beta1 * m_bar) as f32;
        *v = (self.beta2 * v_bar) as f32;
        *p = (self.keep * after + self.coupled * g_bar) as f32;
        g_bar as f32
    }
}
