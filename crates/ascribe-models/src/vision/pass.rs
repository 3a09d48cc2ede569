//! Forward and backward passes of a few examples with frozen statistics, stopping at every tap.
//!
//! Every operator treats each example on its own and in one shape, so bits do not depend on who shares the pass. Training
//! passes, which share products and statistics across a batch, stand in `train/pass.rs`.

use std::sync::Mutex;

use ascribe_linalg::Stream;
use ascribe_linalg::elementwise::{
    add_assign, channel_affine, channel_backward, channel_products, channel_sums, dense_rows, dense_rows_backward,
    relu, relu_backward,
};

use super::Classifier;
use super::data::ImageSet;
use super::loss::{Objective, Target};
use super::network::{Node, Op};
use super::ops::{loss_and_gradient, sample_class};

/// What a tapped layer saw for one example: its input and the gradient of its output, one column per position (a dense
/// layer has one position).
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub fan_out: usize,
    /// `[I, positions]`.
    pub x: &'a [f32],
    /// `[O, positions]`.
    pub delta: &'a [f32],
}

impl Rows<'_> {
    /// Positions of the example.
    pub fn positions(&self) -> usize {
        self.delta.len() / self.fan_out
    }
}

/// What becomes of a pass's gradients. `node` is a place in the network, `example` one in the pass.
pub(super) trait Sink {
    /// False if nobody asks for the gradients of this node's parameters.
    fn wants(&self, node: usize) -> bool;
    /// A convolution or dense layer.
    fn linear(&mut self, node: usize, example: usize, rows: Rows<'_>);
    /// A norm's gradients.
    fn norm(&mut self, node: usize, example: usize, d_gain: &[f32], d_bias: &[f32]);
}

/// Memory of one worker.
#[derive(Debug)]
pub(super) struct Workspace {
    /// `[n, len]` of every value.
    pub values: Vec<Vec<f32>>,
    /// Gradients of the values; value 0 has none.
    pub gradients: Vec<Vec<f32>>,
    pub patches: Vec<f32>,
    pub d_patches: Vec<f32>,
    terms: Vec<f64>,
}

impl Workspace {
    /// Memory for up to `n` examples.
    pub fn new(model: &Classifier, n: usize) -> Self {
        let network = &model.network;
        let values: Vec<Vec<f32>> = network.values.iter().map(|&len| vec![0.0; n * len]).collect();
        let mut gradients = values.clone();
        gradients[0] = vec![];
        let patches = vec![0.0; network.longest_patches()];
        Self { values, gradients, d_patches: patches.clone(), patches, terms: vec![0.0; network.n_classes()] }
    }
}

/// Workspaces between uses. A clone of a model starts with none.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Workspace>>);

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    /// Lends a workspace to `work`.
    pub fn with<R>(&self, model: &Classifier, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let spare = self.0.lock().ok().and_then(|mut free| free.pop());
        let mut ws = spare.unwrap_or_else(|| Workspace::new(model, model.group()));
        let result = work(&mut ws);
        if let Ok(mut free) = self.0.lock() {
            free.push(ws);
        }
        result
    }
}

/// The numbers of a norm whose statistics are constants: `y = scale·x + shift`.
pub(super) struct FrozenNorm {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub inverse: Vec<f32>,
    zeros: Vec<f32>,
}

impl Classifier {
    /// Fills the values of the images `ids`.
    pub(super) fn forward(&self, set: &ImageSet, ids: &[u32], ws: &mut Workspace) {
        let (n, len) = (ids.len(), self.network.values[0]);
        for (&id, out) in ids.iter().zip(ws.values[0].chunks_exact_mut(len)) {
            set.image_into(id as usize, out);
        }
        for node in &self.network.nodes {
            self.node_forward(node, n, ws);
        }
    }

    fn node_forward(&self, node: &Node, n: usize, ws: &mut Workspace) {
        let sizes = &self.network.values;
        let (x_len, y_len) = (sizes[node.from], sizes[node.to]);
        let (before, after) = ws.values.split_at_mut(node.to);
        let y = &mut after[0][..n * y_len];
        if let Op::Relu = node.op {
            return relu(y);
        }
        let x = &before[node.from][..n * x_len];
        let examples = x.chunks_exact(x_len).zip(y.chunks_exact_mut(y_len));
        match &node.op {
            Op::Conv { conv, weight, bias } => {
                let bias = bias.as_ref().map(|bias| &self.parameters[bias.clone()]);
                for (x, y) in examples {
                    conv.unfold(x, &mut ws.patches);
                    conv.forward(&self.parameters[weight.clone()], bias, &ws.patches, y);
                }
            }
            Op::Norm { area, .. } => {
                let norm = self.frozen(node);
                examples.for_each(|(x, y)| channel_affine(x, &norm.scale, &norm.shift, *area, y));
            }
            Op::Pool(pool) => examples.for_each(|(x, y)| pool.forward(x, y)),
            Op::Dense { fan_in, fan_out, weight, bias } => {
                let bias = bias.as_ref().map_or(&[][..], |bias| &self.parameters[bias.clone()]);
                dense_rows(x, &self.parameters[weight.clone()], bias, *fan_in, *fan_out, y);
            }
            Op::Add { plus } => {
                y.copy_from_slice(x);
                add_assign(y, &before[*plus][..n * y_len]);
            }
            Op::Scale(factor) => y.iter_mut().zip(x).for_each(|(y, &x)| *y = factor * x),
            Op::Relu => {}
        }
    }

    /// Constants of a norm in f64, rounded once.
    pub(super) fn frozen(&self, node: &Node) -> FrozenNorm {
        let Op::Norm { gain, bias, mean, variance, .. } = &node.op else {
            unreachable!("only norms have statistics");
        };
        let eps = self.batch_norm_eps();
        let inverse = |&v: &f32| 1.0 / (f64::from(v) + eps).sqrt();
        let inverses: Vec<f64> = self.buffers[variance.clone()].iter().map(inverse).collect();
        let gains = &self.parameters[gain.clone()];
        let scales: Vec<f64> = gains.iter().zip(&inverses).map(|(&g, inv)| f64::from(g) * inv).collect();
        let means = &self.buffers[mean.clone()];
        let biases = &self.parameters[bias.clone()];
        let shift = |((&b, &m), s): ((&f32, &f32), &f64)| (f64::from(b) - f64::from(m) * s) as f32;
        FrozenNorm {
            shift: biases.iter().zip(means).zip(&scales).map(shift).collect(),
            zeros: vec![0.0; scales.len()],
            scale: scales.into_iter().map(|s| s as f32).collect(),
            inverse: inverses.into_iter().map(|s| s as f32).collect(),
        }
    }

    /// Added to variances.
    pub(super) fn batch_norm_eps(&self) -> f64 {
        match self.config.kind {
            super::ClassifierKind::ResNet9 { batch_norm_eps, .. } => batch_norm_eps,
            _ => 0.0,
        }
    }

    /// The measured numbers of a pass; leaves their gradients by the logits in the workspace. `first` is the place of
    /// `ids[0]` in the call, for given classes.
    pub(super) fn measure(
        &self,
        set: &ImageSet,
        ids: &[u32],
        first: usize,
        objective: Objective<'_>,
        ws: &mut Workspace,
    ) -> Vec<f64> {
        let n_classes = self.network.n_classes();
        let last = self.network.values.len() - 1;
        let Workspace { values, gradients, terms, .. } = ws;
        let rows = values[last].chunks_exact(n_classes).zip(gradients[last].chunks_exact_mut(n_classes));
        type Row<'r> = (&'r [f32], &'r mut [f32]);
        let measure = |(i, ((logits, d), &id)): (usize, (Row<'_>, &u32))| {
            let class = match objective.target {
                Target::Label => set.labels()[id as usize] as usize,
                Target::Given(classes) => classes[first + i] as usize,
                Target::Sampled { seed } => {
                    let word = Stream::new(seed, "vision/labels").at(u64::from(id));
                    sample_class(logits, (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64), terms)
                }
            };
            loss_and_gradient(objective.measure, logits, class, terms, d)
        };
        rows.zip(ids).enumerate().map(measure).collect()
    }

    /// The way down from the gradients that [`Self::measure`] left, showing every wanted layer to the sink.
    pub(super) fn backward(&self, n: usize, ws: &mut Workspace, sink: &mut impl Sink) {
        let nodes = &self.network.nodes;
        let last = ws.gradients.len() - 1;
        ws.gradients[1..last].iter_mut().for_each(|gradient| gradient.fill(0.0));
        // Below the lowest wanted layer nothing has to be known.
        let Some(lowest) = (0..nodes.len()).find(|&i| sink.wants(i)) else { return };
        for (i, node) in nodes.iter().enumerate().skip(lowest).rev() {
            self.node_backward(i, node, n, i > lowest, ws, sink);
        }
    }

    fn node_backward(&self, i: usize, node: &Node, n: usize, to_input: bool, ws: &mut Workspace, sink: &mut impl Sink) {
        let sizes = &self.network.values;
        let (x_len, y_len) = (sizes[node.from], sizes[node.to]);
        let Workspace { values, gradients, patches, d_patches, .. } = ws;
        let (below, above) = gradients.split_at_mut(node.to);
        let d_y = &mut above[0][..n * y_len];
        if let Op::Relu = node.op {
            return relu_backward(&values[node.to][..n * y_len], d_y);
        }
        let d_y = &*d_y;
        let x = &values[node.from][..n * x_len];
        // The image has no gradient.
        let d_x = if node.from == 0 || !to_input { &mut [][..] } else { &mut below[node.from][..n * x_len] };
        let inputs = || x.chunks_exact(x_len).zip(d_y.chunks_exact(y_len)).enumerate();
        match &node.op {
            Op::Conv { conv, weight, .. } => {
                if sink.wants(i) {
                    for (e, (x, delta)) in inputs() {
                        conv.unfold(x, patches);
                        let x = &patches[..conv.patch() * conv.area()];
                        sink.linear(i, e, Rows { fan_out: conv.channels_out, x, delta });
                    }
                }
                for (d_x, d_y) in d_x.chunks_exact_mut(x_len).zip(d_y.chunks_exact(y_len)) {
                    conv.backward_input(&self.parameters[weight.clone()], d_y, d_patches, d_x);
                }
            }
            Op::Dense { fan_in, fan_out, weight, .. } => {
                if sink.wants(i) {
                    for (e, (x, delta)) in inputs() {
                        sink.linear(i, e, Rows { fan_out: *fan_out, x, delta });
                    }
                }
                if !d_x.is_empty() {
                    dense_rows_backward(d_y, &self.parameters[weight.clone()], *fan_in, *fan_out, d_x);
                }
            }
            Op::Norm { area, mean, .. } => {
                let norm = self.frozen(node);
                let mean = &self.buffers[mean.clone()];
                if sink.wants(i) {
                    for (e, (x, d_y)) in inputs() {
                        let (d_gain, d_bias) = norm_gradients(x, d_y, mean, &norm.inverse, *area);
                        sink.norm(i, e, &d_gain, &d_bias);
                    }
                }
                for ((d_x, d_y), x) in
                    d_x.chunks_exact_mut(x_len).zip(d_y.chunks_exact(y_len)).zip(x.chunks_exact(x_len))
                {
                    channel_backward(x, d_y, mean, &norm.scale, &norm.zeros, &norm.zeros, *area, d_x);
                }
            }
            Op::Pool(pool) => {
                let examples = d_x.chunks_exact_mut(x_len).zip(d_y.chunks_exact(y_len)).zip(x.chunks_exact(x_len));
                examples.for_each(|((d_x, d_y), x)| pool.backward(x, d_y, d_x));
            }
            Op::Add { plus } => {
                add_assign(&mut below[node.from][..n * x_len], d_y);
                add_assign(&mut below[*plus][..n * y_len], d_y);
            }
            Op::Scale(factor) => d_x.iter_mut().zip(d_y).for_each(|(d_x, &d_y)| *d_x += factor * d_y),
            Op::Relu => {}
        }
    }
}

/// `(Σ d_y·(x − mean)·inv, Σ d_y)` per channel.
pub(super) fn norm_gradients(
    x: &[f32],
    d_y: &[f32],
    mean: &[f32],
    inverse: &[f32],
    area: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut products, mut sums) = (vec![0.0; mean.len()], vec![0.0; mean.len()]);
    channel_products(x, mean, d_y, area, &mut products);
    channel_sums(d_y, area, &mut sums);
    let gain = products.iter().zip(inverse).map(|(&p, &inv)| (p * f64::from(inv)) as f32).collect();
    (gain, sums.into_iter().map(|s| s as f32).collect())
}
