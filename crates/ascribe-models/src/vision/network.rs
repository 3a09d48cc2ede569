//! A classifier as a list of operators over numbered values: built once from its configuration, walked by every pass.
//!
//! Tensor names are those of these PyTorch modules, so that a `state_dict` saved as safetensors is a weights file:
//!
//! | kind | modules |
//! |---|---|
//! | logistic regression | `fc` |
//! | MLP | `fc1`, `fc2`, … |
//! | LeNet | `conv1`, `conv2`, `fc1`, `fc2`, `fc3` |
//! | ResNet-9, pooled | `convN.0` (convolution), `convN.1` (norm), `resN.0.0` …, `classifier.2` |
//! | ResNet-9, strided | `0.0`, `0.1`, `1.0`, …, `2.module.0.0`, …, `9` |
//!
//! Weights are `[O, I]` or `[O, C, k, k]`; a norm has `weight`, `bias`, `running_mean`, `running_var` (`num_batches_tracked`
//! may stand in a file and is not used). No arithmetic lives here.

use std::ops::Range;

use super::config::{ClassifierConfig, ClassifierKind, MAX_NUMBERS, Pooling, ResNet9Form};
use super::ops::{Conv, Pool};
use crate::layout::ParameterSlot;

/// What cannot be built: field, expected, found.
pub(super) type Refusal = (&'static str, String, String);

/// Factor on the logits of the strided ResNet-9.
const STRIDED_LOGIT_SCALE: f32 = 0.2;

/// One operator.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Conv {
        conv: Conv,
        weight: Range<usize>,
        bias: Option<Range<usize>>,
    },
    /// Batch normalisation; `mean` and `variance` are places among the buffers.
    Norm {
        area: usize,
        gain: Range<usize>,
        bias: Range<usize>,
        mean: Range<usize>,
        variance: Range<usize>,
    },
    /// In place.
    Relu,
    Pool(Pool),
    Dense {
        fan_in: usize,
        fan_out: usize,
        weight: Range<usize>,
        bias: Option<Range<usize>>,
    },
    /// Adds value `plus`.
    Add {
        plus: usize,
    },
    Scale(f32),
}

/// An operator between two values.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// PyTorch name of the module; empty where there are no parameters.
    pub name: String,
    pub op: Op,
    pub from: usize,
    pub to: usize,
}

/// The whole network. Value 0 is the image, the last one the logits.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub nodes: Vec<Node>,
    /// Numbers of each value per example.
    pub values: Vec<usize>,
    pub parameters: Vec<ParameterSlot>,
    pub n_parameters: usize,
    /// Running statistics.
    pub buffers: Vec<ParameterSlot>,
    pub n_buffers: usize,
    /// The value that the last dense layer reads: the embedding.
    pub embedding: usize,
}

impl Network {
    /// The network of a configuration.
    ///
    /// # Errors
    /// Which field does not fit.
    pub fn new(config: &ClassifierConfig) -> Result<Self, Refusal> {
        let mut builder = Builder::new(config);
        match &config.kind {
            ClassifierKind::LogisticRegression => builder.dense("fc", config.num_classes, true)?,
            ClassifierKind::Mlp { widths } => {
                for (i, &width) in widths.iter().enumerate() {
                    builder.dense(&format!("fc{}", i + 1), width, true)?;
                    builder.relu();
                }
                builder.dense(&format!("fc{}", widths.len() + 1), config.num_classes, true)?;
            }
            ClassifierKind::LeNet { channels, kernel_size, padding, pool, widths } => {
                for (i, &channels) in channels.iter().enumerate() {
                    let padding = if i == 0 { *padding } else { 0 };
                    builder.conv(&format!("conv{}", i + 1), channels, [*kernel_size, 1, padding], true)?;
                    builder.relu();
                    builder.pool(*pool, 2)?;
                }
                for (i, &width) in widths.iter().enumerate() {
                    builder.dense(&format!("fc{}", i + 1), width, true)?;
                    builder.relu();
                }
                builder.dense("fc3", config.num_classes, true)?;
            }
            ClassifierKind::ResNet9 { form: ResNet9Form::Pooled, channels, conv_bias, .. } => {
                builder.bias = *conv_bias;
                builder.pooled(channels, config.num_classes)?;
            }
            ClassifierKind::ResNet9 { form: ResNet9Form::Strided, channels, conv_bias, .. } => {
                builder.bias = *conv_bias;
                builder.strided(channels, config.num_classes)?;
            }
        }
        Ok(builder.network)
    }

    /// Numbers of the logits, C.
    pub fn n_classes(&self) -> usize {
        self.values[self.values.len() - 1]
    }

    /// Numbers of all values of one example.
    pub fn numbers(&self) -> usize {
        self.values.iter().sum()
    }

    /// The longest patch matrix of a convolution.
    pub fn longest_patches(&self) -> usize {
        let len = |node: &Node| if let Op::Conv { conv, .. } = &node.op { conv.patch() * conv.area() } else { 0 };
        self.nodes.iter().map(len).max().unwrap_or(0)
    }

    /// True if a pass is dominated by convolutions.
    pub fn has_convolutions(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.op, Op::Conv { .. }))
    }

    /// Multiplications of one forward pass of one example, times two.
    pub fn flop(&self) -> f64 {
        let flop = |node: &Node| match &node.op {
            Op::Conv { conv, .. } => 2.0 * (conv.channels_out * conv.patch() * conv.area()) as f64,
            Op::Dense { fan_in, fan_out, .. } => 2.0 * (fan_in * fan_out) as f64,
            _ => 0.0,
        };
        self.nodes.iter().map(flop).sum()
    }
}

struct Builder {
    network: Network,
    /// Channels, height, width of the last value.
    shape: [usize; 3],
    /// Convolutions of blocks have biases.
    bias: bool,
    input: [usize; 3],
}

impl Builder {
    fn new(config: &ClassifierConfig) -> Self {
        let network = Network {
            nodes: vec![],
            values: vec![config.input_len()],
            parameters: vec![],
            n_parameters: 0,
            buffers: vec![],
            n_buffers: 0,
            embedding: 0,
        };
        Self { network, shape: config.input_shape, bias: true, input: config.input_shape }
    }

    fn last(&self) -> usize {
        self.network.values.len() - 1
    }

    fn node(&mut self, name: &str, op: Op, shape: [usize; 3]) -> Result<(), Refusal> {
        let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n)).filter(|&len| len <= MAX_NUMBERS);
        let len = len.ok_or_else(|| self.too_large())?;
        let from = self.last();
        self.network.values.push(len);
        self.shape = shape;
        self.network.nodes.push(Node { name: name.into(), op, from, to: from + 1 });
        Ok(())
    }

    fn too_large(&self) -> Refusal {
        ("input_shape", format!("values and weights of at most {MAX_NUMBERS} numbers"), format!("{:?}", self.input))
    }

    fn parameter(&mut self, name: String, shape: Vec<usize>) -> Result<Range<usize>, Refusal> {
        let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
        let start = self.network.n_parameters;
        let end = len.and_then(|len| start.checked_add(len)).filter(|&end| end <= MAX_NUMBERS);
        let end = end.ok_or_else(|| self.too_large())?;
        self.network.n_parameters = end;
        self.network.parameters.push(ParameterSlot { name, shape, range: start..end });
        Ok(start..end)
    }

    fn buffer(&mut self, name: String, len: usize) -> Range<usize> {
        let range = self.network.n_buffers..self.network.n_buffers + len;
        self.network.n_buffers = range.end;
        self.network.buffers.push(ParameterSlot { name, shape: vec![len], range: range.clone() });
        range
    }

    fn dense(&mut self, name: &str, fan_out: usize, with_bias: bool) -> Result<(), Refusal> {
        let fan_in = self.shape.iter().product();
        let weight = self.parameter(format!("{name}.weight"), vec![fan_out, fan_in])?;
        let bias = if with_bias { Some(self.parameter(format!("{name}.bias"), vec![fan_out])?) } else { None };
        self.network.embedding = self.last();
        self.node(name, Op::Dense { fan_in, fan_out, weight, bias }, [1, 1, fan_out])
    }

    /// `size` is kernel side, stride, padding.
    fn conv(&mut self, name: &str, channels_out: usize, size: [usize; 3], with_bias: bool) -> Result<(), Refusal> {
        let [kernel, stride, padding] = size;
        let Some(conv) = Conv::new(self.shape, channels_out, kernel, stride, padding) else {
            let expected = format!("an image that still covers a {kernel} × {kernel} kernel at `{name}`");
            return Err(("input_shape", expected, format!("{:?}", self.input)));
        };
        if conv.patch().checked_mul(conv.area()).is_none_or(|len| len > MAX_NUMBERS) {
            return Err(self.too_large());
        }
        let shape = vec![channels_out, conv.channels_in, kernel, kernel];
        let weight = self.parameter(format!("{name}.weight"), shape)?;
        let bias = if with_bias { Some(self.parameter(format!("{name}.bias"), vec![channels_out])?) } else { None };
        let shape = [channels_out, conv.out_height, conv.out_width];
        self.node(name, Op::Conv { conv, weight, bias }, shape)
    }

    fn norm(&mut self, name: &str) -> Result<(), Refusal> {
        let [channels, height, width] = self.shape;
        let gain = self.parameter(format!("{name}.weight"), vec![channels])?;
        let bias = self.parameter(format!("{name}.bias"), vec![channels])?;
        let mean = self.buffer(format!("{name}.running_mean"), channels);
        let variance = self.buffer(format!("{name}.running_var"), channels);
        self.node(name, Op::Norm { area: height * width, gain, bias, mean, variance }, self.shape)
    }

    fn relu(&mut self) {
        let value = self.last();
        self.network.nodes.push(Node { name: String::new(), op: Op::Relu, from: value, to: value });
    }

    fn pool(&mut self, kind: Pooling, side: usize) -> Result<(), Refusal> {
        let [_, height, width] = self.shape;
        if height < side || width < side {
            let expected = format!("an image that still covers every {side} × {side} pool");
            return Err(("input_shape", expected, format!("{:?}", self.input)));
        }
        self.pool_window(kind, [side, side])
    }

    /// One window over the whole plane.
    fn global_pool(&mut self) -> Result<(), Refusal> {
        let [_, height, width] = self.shape;
        self.pool_window(Pooling::Max, [height, width])
    }

    fn pool_window(&mut self, kind: Pooling, window: [usize; 2]) -> Result<(), Refusal> {
        let pool = Pool::new(kind, self.shape, window);
        self.node("", Op::Pool(pool), [self.shape[0], pool.out_height, pool.out_width])
    }

    /// Convolution, norm, rectifier, named `name.0` and `name.1`.
    fn block(&mut self, name: &str, channels: usize, size: [usize; 3]) -> Result<(), Refusal> {
        self.conv(&format!("{name}.0"), channels, size, self.bias)?;
        self.norm(&format!("{name}.1"))?;
        self.relu();
        Ok(())
    }

    /// Two blocks of the same width around which the input goes.
    fn residual(&mut self, name: &str) -> Result<(), Refusal> {
        let (plus, channels) = (self.last(), self.shape[0]);
        self.block(&format!("{name}.0"), channels, [3, 1, 1])?;
        self.block(&format!("{name}.1"), channels, [3, 1, 1])?;
        self.node("", Op::Add { plus }, self.shape)
    }

    fn pooled(&mut self, channels: &[usize; 4], n_classes: usize) -> Result<(), Refusal> {
        self.block("conv1", channels[0], [3, 1, 1])?;
        self.block("conv2", channels[1], [3, 1, 1])?;
        self.pool(Pooling::Max, 2)?;
        self.residual("res1")?;
        self.block("conv3", channels[2], [3, 1, 1])?;
        self.pool(Pooling::Max, 2)?;
        self.block("conv4", channels[3], [3, 1, 1])?;
        self.pool(Pooling::Max, 2)?;
        self.residual("res2")?;
        self.global_pool()?;
        self.dense("classifier.2", n_classes, true)
    }

    fn strided(&mut self, channels: &[usize; 4], n_classes: usize) -> Result<(), Refusal> {
        self.block("0", channels[0], [3, 1, 1])?;
        self.block("1", channels[1], [5, 2, 2])?;
        self.residual("2.module")?;
        self.block("3", channels[2], [3, 1, 1])?;
        self.pool(Pooling::Max, 2)?;
        self.residual("5.module")?;
        self.block("6", channels[3], [3, 1, 0])?;
        self.global_pool()?;
        self.dense("9", n_classes, false)?;
        self.node("", Op::Scale(STRIDED_LOGIT_SCALE), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(shape: [usize; 3], kind: ClassifierKind) -> usize {
        Network::new(&ClassifierConfig::new(shape, 10, kind)).unwrap().n_parameters
    }

    /// Numbers of parameters that the literature states, or that add up by hand.
    #[test]
    fn parameters_are_as_many_as_they_should_be() {
        assert_eq!(count([1, 28, 28], ClassifierKind::LogisticRegression), 7850);
        assert_eq!(count([1, 28, 28], ClassifierKind::Mlp { widths: vec![128, 64] }), 109_386);
        // LeNet-5 on 32 × 32: 156 + 2,416 + 48,120 + 10,164 + 850.
        assert_eq!(count([1, 32, 32], ClassifierKind::lenet()), 61_706);
        // The pooled ResNet-9 of many CIFAR-10 notebooks prints 6,575,370 parameters.
        assert_eq!(count([3, 32, 32], ClassifierKind::resnet9()), 6_575_370);
    }

    #[test]
    fn a_residual_keeps_its_input() {
        let network = Network::new(&ClassifierConfig::new([3, 32, 32], 10, ClassifierKind::resnet9())).unwrap();
        let adds: Vec<(usize, usize)> = network
            .nodes
            .iter()
            .filter_map(|node| if let Op::Add { plus } = node.op { Some((plus, node.to)) } else { None })
            .collect();
        assert_eq!(adds.len(), 2);
        assert!(adds.iter().all(|&(plus, to)| network.values[plus] == network.values[to]));
        assert_eq!(network.values[network.embedding], 512);
    }
}
