//! Forward and backward pass of a whole batch: what a training step needs, with the batch's own statistics in norms.
//!
//! Dense layers are one product over the batch. Networks with convolutions cut a batch into at most [`MAX_GROUPS`] groups,
//! which run in parallel; sums over groups follow their order. The cut depends on the size of the batch alone, so the bytes
//! do not depend on threads.

use ascribe_linalg::elementwise::{
    add_assign, add_bias, channel_affine, channel_backward, channel_products, channel_squares, channel_sums, relu,
    relu_backward,
};
use ascribe_linalg::{Threads, gemm};
use rayon::prelude::*;

use crate::ops::{matrix, matrix_mut};
use crate::vision::Classifier;
use crate::vision::data::ImageSet;
use crate::vision::loss::Measure;
use crate::vision::network::{Network, Node, Op};
use crate::vision::ops::{Conv, loss_and_gradient};

/// Groups of a batch at most: part of the definition of the bytes.
const MAX_GROUPS: usize = 8;

/// Examples of a group at least: part of the definition of the bytes.
const MIN_GROUP: usize = 4;

/// Memory of one group.
#[derive(Clone, Debug)]
struct Group {
    patches: Vec<f32>,
    d_patches: Vec<f32>,
    /// Weight gradient of one convolution.
    d_weight: Vec<f32>,
    /// Two sums per channel.
    sums: Vec<f64>,
}

/// Statistics of one norm over the batch.
#[derive(Clone, Debug, Default)]
struct Statistics {
    mean: Vec<f32>,
    variance: Vec<f64>,
    inverse: Vec<f64>,
    /// Numbers per channel.
    count: f64,
}

/// Memory of a training pass.
#[derive(Clone, Debug)]
pub(super) struct BatchPass {
    values: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    groups: Vec<Group>,
    /// By node; empty where there is no norm.
    statistics: Vec<Statistics>,
    terms: Vec<f64>,
    /// Summed gradient of the last pass, flat.
    pub gradient: Vec<f32>,
}

/// What a pass measured.
pub(super) struct BatchLoss {
    /// Summed cross-entropy.
    pub nats: f64,
    /// Images whose largest logit is their label's.
    pub correct: usize,
}

impl BatchPass {
    /// Memory for batches of up to `batch` images.
    pub fn new(network: &Network, batch: usize) -> Self {
        let values: Vec<Vec<f32>> = network.values.iter().map(|&len| vec![0.0; batch * len]).collect();
        let mut gradients = values.clone();
        gradients[0] = vec![];
        let (mut weight, mut channels) = (0, 0);
        for node in &network.nodes {
            match &node.op {
                Op::Conv { weight: range, conv, .. } => {
                    weight = weight.max(range.len());
                    channels = channels.max(conv.channels_out);
                }
                Op::Norm { gain, .. } => channels = channels.max(gain.len()),
                _ => {}
            }
        }
        let group = Group {
            patches: vec![0.0; network.longest_patches()],
            d_patches: vec![0.0; network.longest_patches()],
            d_weight: vec![0.0; weight],
            sums: vec![0.0; 2 * channels],
        };
        let n_groups = if network.has_convolutions() { MAX_GROUPS } else { 1 };
        Self {
            values,
            gradients,
            groups: vec![group; n_groups],
            statistics: vec![Statistics::default(); network.nodes.len()],
            terms: vec![0.0; network.n_classes()],
            gradient: vec![0.0; network.n_parameters],
        }
    }

    /// Summed loss of the images `ids` and, in `self.gradient`, its gradient; every image counts `weights[id]` times.
    pub fn run(&mut self, model: &Classifier, set: &ImageSet, ids: &[u32], weights: Option<&[f32]>) -> BatchLoss {
        let network = &model.network;
        let n = ids.len();
        for (&id, out) in ids.iter().zip(self.values[0].chunks_exact_mut(network.values[0])) {
            set.image_into(id as usize, out);
        }
        let cut = Cut::new(n, network);
        for (i, node) in network.nodes.iter().enumerate() {
            self.node_forward(model, i, node, &cut);
        }
        let loss = self.head(network, set, ids, weights);
        let last = self.gradients.len() - 1;
        self.gradients[1..last].iter_mut().for_each(|gradient| gradient.fill(0.0));
        for (i, node) in network.nodes.iter().enumerate().rev() {
            self.node_backward(model, i, node, &cut);
        }
        loss
    }

    fn head(&mut self, network: &Network, set: &ImageSet, ids: &[u32], weights: Option<&[f32]>) -> BatchLoss {
        let (c, last) = (network.n_classes(), self.values.len() - 1);
        let mut loss = BatchLoss { nats: 0.0, correct: 0 };
        let rows = self.values[last].chunks_exact(c).zip(self.gradients[last].chunks_exact_mut(c));
        for ((logits, d), &id) in rows.zip(ids) {
            let class = set.labels()[id as usize] as usize;
            let best = (0..c).fold(0, |best, j| if logits[j] > logits[best] { j } else { best });
            loss.correct += usize::from(best == class);
            let nats = loss_and_gradient(Measure::CrossEntropy, logits, class, &mut self.terms, d);
            // A weight of 1 changes no bit.
            let weight = weights.map_or(1.0, |w| w[id as usize]);
            d.iter_mut().for_each(|d| *d *= weight);
            loss.nats += f64::from(weight) * nats;
        }
        loss
    }

    fn node_forward(&mut self, model: &Classifier, i: usize, node: &Node, cut: &Cut) {
        let sizes = &model.network.values;
        let (x_len, y_len, n) = (sizes[node.from], sizes[node.to], cut.n);
        if let Op::Norm { .. } = node.op {
            self.measure_norm(model, i, node, cut);
        }
        let Self { values, groups, statistics, .. } = self;
        let (before, after) = values.split_at_mut(node.to);
        let y = &mut after[0][..n * y_len];
        if let Op::Relu = node.op {
            return cut.over(y, y_len, groups, |_, y, _| relu(y));
        }
        let x = &before[node.from][..n * x_len];
        let parameters = &model.parameters;
        match &node.op {
            Op::Conv { conv, weight, bias } => {
                let bias = bias.as_ref().map(|bias| &parameters[bias.clone()]);
                cut.over(y, y_len, groups, |examples, y, group| {
                    for (e, y) in examples.zip(y.chunks_exact_mut(y_len)) {
                        conv.unfold(&x[e * x_len..(e + 1) * x_len], &mut group.patches);
                        conv.forward(&parameters[weight.clone()], bias, &group.patches, y);
                    }
                });
            }
            Op::Norm { area, gain, bias, .. } => {
                let s = &statistics[i];
                let gains = parameters[gain.clone()].iter().zip(&s.inverse);
                let scale: Vec<f64> = gains.map(|(&g, inv)| f64::from(g) * inv).collect();
                let shift = parameters[bias.clone()].iter().zip(&s.mean).zip(&scale);
                let shift: Vec<f32> = shift.map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32).collect();
                let scale = narrow(&scale);
                cut.over(y, y_len, groups, |examples, y, _| {
                    for (e, y) in examples.zip(y.chunks_exact_mut(y_len)) {
                        channel_affine(&x[e * x_len..(e + 1) * x_len], &scale, &shift, *area, y);
                    }
                });
            }
            Op::Pool(pool) => cut.over(y, y_len, groups, |examples, y, _| {
                for (e, y) in examples.zip(y.chunks_exact_mut(y_len)) {
                    pool.forward(&x[e * x_len..(e + 1) * x_len], y);
                }
            }),
            Op::Dense { fan_in, fan_out, weight, bias } => {
                let w = matrix(&parameters[weight.clone()], *fan_out, *fan_in);
                gemm(1.0, matrix(x, n, *fan_in), w.t(), 0.0, matrix_mut(y, n, *fan_out), Threads::One);
                if let Some(bias) = bias {
                    add_bias(y, &parameters[bias.clone()]);
                }
            }
            Op::Add { plus } => {
                y.copy_from_slice(x);
                add_assign(y, &before[*plus][..n * y_len]);
            }
            Op::Scale(factor) => y.iter_mut().zip(x).for_each(|(y, &x)| *y = factor * x),
            Op::Relu => {}
        }
    }

    /// Mean and (biased) variance of every channel over the batch.
    fn measure_norm(&mut self, model: &Classifier, i: usize, node: &Node, cut: &Cut) {
        let Op::Norm { area, gain, .. } = &node.op else { return };
        let (len, channels) = (model.network.values[node.from], gain.len());
        let x = &self.values[node.from];
        let example = |e: usize| &x[e * len..(e + 1) * len];
        let count = (cut.n * area) as f64;
        cut.each(&mut self.groups, |examples, group| {
            group.sums.fill(0.0);
            examples.for_each(|e| channel_sums(example(e), *area, &mut group.sums[..channels]));
        });
        let mean: Vec<f32> = cut.total(&self.groups, 0, channels).iter().map(|sum| (sum / count) as f32).collect();
        cut.each(&mut self.groups, |examples, group| {
            group.sums.fill(0.0);
            examples.for_each(|e| channel_squares(example(e), &mean, *area, &mut group.sums[..channels]));
        });
        let variance: Vec<f64> = cut.total(&self.groups, 0, channels).iter().map(|sum| sum / count).collect();
        let eps = model.batch_norm_eps();
        let inverse = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        self.statistics[i] = Statistics { mean, variance, inverse, count };
    }

    fn node_backward(&mut self, model: &Classifier, i: usize, node: &Node, cut: &Cut) {
        let sizes = &model.network.values;
        let (x_len, y_len, n) = (sizes[node.from], sizes[node.to], cut.n);
        let Self { values, gradients, groups, statistics, gradient, .. } = self;
        let (below, above) = gradients.split_at_mut(node.to);
        let d_y = &mut above[0][..n * y_len];
        if let Op::Relu = node.op {
            let y = &values[node.to];
            return cut.over(d_y, y_len, groups, |examples, d, _| {
                relu_backward(&y[examples.start * y_len..examples.end * y_len], d);
            });
        }
        let d_y = &*d_y;
        let x = &values[node.from][..n * x_len];
        let d_x = if node.from == 0 { &mut [][..] } else { &mut below[node.from][..n * x_len] };
        let parameters = &model.parameters;
        match &node.op {
            Op::Conv { conv, weight, bias } => {
                let tensors = ConvTensors { conv, x, d_y };
                tensors.weight_gradient(cut, groups, &mut gradient[weight.clone()]);
                if let Some(bias) = bias {
                    tensors.bias_gradient(cut, groups, &mut gradient[bias.clone()]);
                }
                cut.over(d_x, x_len, groups, |examples, d_x, group| {
                    for (e, d_x) in examples.zip(d_x.chunks_exact_mut(x_len)) {
                        let d_y = &d_y[e * y_len..(e + 1) * y_len];
                        conv.backward_input(&parameters[weight.clone()], d_y, &mut group.d_patches, d_x);
                    }
                });
            }
            Op::Norm { area, gain, bias, .. } => {
                let norm = NormTensors { x, d_y, area: *area, statistics: &statistics[i] };
                let (products, sums) = norm.sums(cut, groups);
                for ((out, p), inv) in gradient[gain.clone()].iter_mut().zip(&products).zip(&norm.statistics.inverse) {
                    *out = (p * inv) as f32;
                }
                gradient[bias.clone()].iter_mut().zip(&sums).for_each(|(out, &sum)| *out = sum as f32);
                norm.backward(&parameters[gain.clone()], &products, &sums, cut, groups, d_x);
            }
            Op::Pool(pool) => cut.over(d_x, x_len, groups, |examples, d_x, _| {
                for (e, d_x) in examples.zip(d_x.chunks_exact_mut(x_len)) {
                    pool.backward(&x[e * x_len..(e + 1) * x_len], &d_y[e * y_len..(e + 1) * y_len], d_x);
                }
            }),
            Op::Dense { fan_in, fan_out, weight, bias } => {
                let (x, d_y) = (matrix(x, n, *fan_in), matrix(d_y, n, *fan_out));
                let d_w = matrix_mut(&mut gradient[weight.clone()], *fan_out, *fan_in);
                gemm(1.0, d_y.t(), x, 0.0, d_w, Threads::One);
                if let Some(bias) = bias {
                    let d_bias = &mut gradient[bias.clone()];
                    d_bias.fill(0.0);
                    d_y.rows().into_iter().for_each(|row| d_bias.iter_mut().zip(row).for_each(|(d, &g)| *d += g));
                }
                if !d_x.is_empty() {
                    let w = matrix(&parameters[weight.clone()], *fan_out, *fan_in);
                    gemm(1.0, d_y, w, 1.0, matrix_mut(d_x, n, *fan_in), Threads::One);
                }
            }
            Op::Add { plus } => {
                add_assign(&mut below[node.from][..n * x_len], d_y);
                add_assign(&mut below[*plus][..n * y_len], d_y);
            }
            Op::Scale(factor) => d_x.iter_mut().zip(d_y).for_each(|(d_x, &d_y)| *d_x += factor * d_y),
            Op::Relu => {}
        }
    }

    /// Moves running statistics towards the last batch's, as PyTorch does (the variance there is the unbiased one).
    pub fn update_running(&self, network: &Network, momentum: f64, buffers: &mut [f32]) {
        for (node, s) in network.nodes.iter().zip(&self.statistics) {
            let Op::Norm { mean, variance, .. } = &node.op else { continue };
            let unbiased = s.count / (s.count - 1.0).max(1.0);
            let moved = |old: f32, new: f64| (f64::from(old) * (1.0 - momentum) + new * momentum) as f32;
            let means = buffers[mean.clone()].iter_mut().zip(&s.mean);
            means.for_each(|(old, &new)| *old = moved(*old, f64::from(new)));
            let variances = buffers[variance.clone()].iter_mut().zip(&s.variance);
            variances.for_each(|(old, &new)| *old = moved(*old, new * unbiased));
        }
    }
}

/// How a batch is cut into groups.
struct Cut {
    n: usize,
    group: usize,
}

impl Cut {
    fn new(n: usize, network: &Network) -> Self {
        let group = if network.has_convolutions() { n.div_ceil(MAX_GROUPS).max(MIN_GROUP) } else { n };
        Self { n, group }
    }

    fn n_groups(&self) -> usize {
        self.n.div_ceil(self.group)
    }

    fn examples(&self, g: usize) -> std::ops::Range<usize> {
        g * self.group..((g + 1) * self.group).min(self.n)
    }

    /// Runs `work` on every group.
    fn each(&self, groups: &mut [Group], work: impl Fn(std::ops::Range<usize>, &mut Group) + Sync) {
        match &mut groups[..self.n_groups()] {
            [only] => work(self.examples(0), only),
            groups => groups.par_iter_mut().enumerate().for_each(|(g, group)| work(self.examples(g), group)),
        }
    }

    /// Runs `work` on every group's part of `y` (`len` numbers per example); does nothing if `y` is empty.
    fn over(
        &self,
        y: &mut [f32],
        len: usize,
        groups: &mut [Group],
        work: impl Fn(std::ops::Range<usize>, &mut [f32], &mut Group) + Sync,
    ) {
        if y.is_empty() {
            return;
        }
        match &mut groups[..self.n_groups()] {
            [only] => work(self.examples(0), y, only),
            groups => {
                let parts = y.par_chunks_mut(self.group * len).zip(groups).enumerate();
                parts.for_each(|(g, (y, group))| work(self.examples(g), y, group));
            }
        }
    }

    /// The groups' sums `first..first + len`, added in order.
    fn total(&self, groups: &[Group], first: usize, len: usize) -> Vec<f64> {
        let mut total = vec![0.0; len];
        for group in &groups[..self.n_groups()] {
            total.iter_mut().zip(&group.sums[first..]).for_each(|(total, sum)| *total += sum);
        }
        total
    }
}

/// A convolution's input and output gradient over a batch.
struct ConvTensors<'a> {
    conv: &'a Conv,
    x: &'a [f32],
    d_y: &'a [f32],
}

impl ConvTensors<'_> {
    fn weight_gradient(&self, cut: &Cut, groups: &mut [Group], out: &mut [f32]) {
        let Self { conv, x, d_y } = *self;
        let (x_len, y_len) = (x.len() / cut.n, d_y.len() / cut.n);
        cut.each(groups, |examples, group| {
            let first = examples.start;
            for e in examples {
                conv.unfold(&x[e * x_len..(e + 1) * x_len], &mut group.patches);
                let keep = if e == first { 0.0 } else { 1.0 };
                conv.backward_weight(&group.patches, &d_y[e * y_len..(e + 1) * y_len], keep, &mut group.d_weight);
            }
        });
        out.copy_from_slice(&groups[0].d_weight[..out.len()]);
        for group in &groups[1..cut.n_groups()] {
            add_assign(out, &group.d_weight[..out.len()]);
        }
    }

    fn bias_gradient(&self, cut: &Cut, groups: &mut [Group], out: &mut [f32]) {
        let (y_len, channels) = (self.d_y.len() / cut.n, out.len());
        cut.each(groups, |examples, group| {
            group.sums.fill(0.0);
            let d_y = &self.d_y;
            examples.for_each(|e| {
                channel_sums(&d_y[e * y_len..(e + 1) * y_len], self.conv.area(), &mut group.sums[..channels]);
            });
        });
        out.iter_mut().zip(cut.total(groups, 0, channels)).for_each(|(out, sum)| *out = sum as f32);
    }
}

/// A norm's input and output gradient over a batch.
struct NormTensors<'a> {
    x: &'a [f32],
    d_y: &'a [f32],
    area: usize,
    statistics: &'a Statistics,
}

impl NormTensors<'_> {
    /// `Σ d_y·(x − mean)` and `Σ d_y` per channel.
    fn sums(&self, cut: &Cut, groups: &mut [Group]) -> (Vec<f64>, Vec<f64>) {
        let Self { x, d_y, area, statistics: s } = *self;
        let (len, channels) = (x.len() / cut.n, s.mean.len());
        cut.each(groups, |examples, group| {
            group.sums.fill(0.0);
            let (products, sums) = group.sums.split_at_mut(channels);
            for e in examples {
                let (x, d_y) = (&x[e * len..(e + 1) * len], &d_y[e * len..(e + 1) * len]);
                channel_products(x, &s.mean, d_y, area, products);
                channel_sums(d_y, area, &mut sums[..channels]);
            }
        });
        (cut.total(groups, 0, channels), cut.total(groups, channels, channels))
    }

    /// `d_x += γ·inv·(d_y − mean(d_y) − x̂·mean(d_y∘x̂))`.
    fn backward(
        &self,
        gains: &[f32],
        products: &[f64],
        sums: &[f64],
        cut: &Cut,
        groups: &mut [Group],
        d_x: &mut [f32],
    ) {
        let Self { x, d_y, area, statistics: s } = *self;
        let len = x.len() / cut.n;
        let a: Vec<f64> = gains.iter().zip(&s.inverse).map(|(&g, inv)| f64::from(g) * inv).collect();
        let b = a.iter().zip(&s.inverse).zip(products).map(|((a, inv), p)| -a * inv * inv * p / s.count);
        let b: Vec<f32> = b.map(|b| b as f32).collect();
        let c: Vec<f32> = a.iter().zip(sums).map(|(a, sum)| (-a * sum / s.count) as f32).collect();
        let a = narrow(&a);
        cut.over(d_x, len, groups, |examples, d_x, _| {
            for (e, d_x) in examples.zip(d_x.chunks_exact_mut(len)) {
                let (x, d_y) = (&x[e * len..(e + 1) * len], &d_y[e * len..(e + 1) * len]);
                channel_backward(x, d_y, &s.mean, &a, &b, &c, area, d_x);
            }
        });
    }
}

fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|&x| x as f32).collect()
}
