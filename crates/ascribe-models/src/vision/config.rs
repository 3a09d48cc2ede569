//! What an image classifier looks like: `config.json` with a `model_type` of ours and the sizes, read strictly.
//!
//! There is no public configuration format for these small networks, so the names of fields are ours while the names of
//! tensors are those of the PyTorch modules that `network.rs` documents. Unknown fields are refused: a misspelt size would
//! otherwise silently be its default.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::read_json;
use crate::error::ModelError;

/// No side, width or number of channels beyond this is believed.
const MAX_SIZE: usize = 1 << 16;

/// No product of sizes beyond this is believed.
pub(super) const MAX_NUMBERS: usize = 1 << 31;

/// Dense layers beyond this are not an MLP.
const MAX_LAYERS: usize = 64;

/// Fields that say nothing about the arithmetic.
const IGNORED: [&str; 4] = ["architectures", "torch_dtype", "dtype", "transformers_version"];

/// Default widths of LeNet's hidden dense layers.
const LENET_WIDTHS: [usize; 2] = [120, 84];

/// How a pooling layer joins a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The largest; its gradient goes to the first of several.
    Max,
    /// The mean.
    Average,
}

/// Which of the two usual ResNet-9 networks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResNet9Form {
    /// Four convolution blocks with max pools and two residuals; PyTorch names `conv1.0`, `res1.0.0`, `classifier.2`.
    Pooled,
    /// The network of the attribution benchmarks (TRAK, arXiv:2303.14186): a strided 5 × 5 convolution, unpadded last
    /// block, logits scaled by 0.2; the PyTorch names are places in an `nn.Sequential` (`0.0`, `2.module.0.0`, `9`).
    Strided,
}

/// The kind of network and the sizes that only it has.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifierKind {
    /// Multinomial logistic regression: one dense layer `fc`.
    LogisticRegression,
    /// Dense layers `fc1`, `fc2`, … with rectifiers between them.
    Mlp {
        /// Widths of the hidden layers.
        widths: Vec<usize>,
    },
    /// LeNet: twice convolution, rectifier, 2 × 2 pool; then three dense layers.
    LeNet {
        /// Channels after each convolution.
        channels: [usize; 2],
        /// Side of both kernels.
        kernel_size: usize,
        /// Zeros around the image in the first convolution.
        padding: usize,
        /// The pools.
        pool: Pooling,
        /// Widths of the two hidden dense layers.
        widths: [usize; 2],
    },
    /// ResNet-9: convolution, batch normalisation, rectifier; two residuals.
    ResNet9 {
        /// Which network.
        form: ResNet9Form,
        /// Channels after the four blocks that change them.
        channels: [usize; 4],
        /// True if convolutions have biases.
        conv_bias: bool,
        /// Added to variances.
        batch_norm_eps: f64,
        /// Share of a batch's statistics in the running ones.
        batch_norm_momentum: f64,
    },
}

impl ClassifierKind {
    /// `model_type` in `config.json`.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::LogisticRegression => "ascribe-lr",
            Self::Mlp { .. } => "ascribe-mlp",
            Self::LeNet { .. } => "ascribe-lenet",
            Self::ResNet9 { .. } => "ascribe-resnet9",
        }
    }

    /// LeNet-5 with max pools: 6 and 16 channels, 5 × 5 kernels, 120 and 84 wide.
    pub fn lenet() -> Self {
        Self::LeNet { channels: [6, 16], kernel_size: 5, padding: 0, pool: Pooling::Max, widths: LENET_WIDTHS }
    }

    /// The pooled ResNet-9: 64, 128, 256 and 512 channels, convolutions with biases.
    pub fn resnet9() -> Self {
        Self::ResNet9 {
            form: ResNet9Form::Pooled,
            channels: [64, 128, 256, 512],
            conv_bias: true,
            batch_norm_eps: 1e-5,
            batch_norm_momentum: 0.1,
        }
    }
}

/// Input, output and kind of a classifier.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClassifierConfig {
    /// Channels, height and width of an image; `[1, 1, D]` for a row of a table.
    pub input_shape: [usize; 3],
    /// Classes, C.
    pub num_classes: usize,
    /// The network.
    pub kind: ClassifierKind,
}

impl ClassifierConfig {
    /// A configuration in memory; [`Self::validate`] checks it, and so does everything that takes one.
    pub fn new(input_shape: [usize; 3], num_classes: usize, kind: ClassifierKind) -> Self {
        Self { input_shape, num_classes, kind }
    }

    /// Reads `config.json` of the model folder `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Format`] if it is no JSON object, [`ModelError::Config`] naming the field.
    pub fn from_file(dir: &Path) -> Result<Self, ModelError> {
        let (value, path) = read_json(dir)?;
        Self::from_json(&value, &path)
    }

    /// Reads the configuration out of a JSON object; `path` is for error messages only.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, ModelError> {
        let fields = value.as_object().ok_or_else(|| ModelError::Format {
            path: path.into(),
            expected: "a JSON object".into(),
            found: value.to_string().chars().take(120).collect(),
        })?;
        let reader = Reader { fields, path };
        let kind = reader.kind()?;
        let config = Self { input_shape: reader.input_shape()?, num_classes: reader.size("num_classes", None)?, kind };
        config.check(path)?;
        Ok(config)
    }

    /// The object that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "model_type": self.kind.model_type(), "input_shape": self.input_shape, "num_classes": self.num_classes,
        });
        match &self.kind {
            ClassifierKind::LogisticRegression => {}
            ClassifierKind::Mlp { widths } => value["widths"] = json!(widths),
            ClassifierKind::LeNet { channels, kernel_size, padding, pool, widths } => {
                value["channels"] = json!(channels);
                value["kernel_size"] = json!(kernel_size);
                value["padding"] = json!(padding);
                value["pool"] = json!(pool);
                value["widths"] = json!(widths);
            }
            ClassifierKind::ResNet9 { form, channels, conv_bias, batch_norm_eps, batch_norm_momentum } => {
                value["form"] = json!(form);
                value["channels"] = json!(channels);
                value["conv_bias"] = json!(conv_bias);
                value["batch_norm_eps"] = json!(batch_norm_eps);
                value["batch_norm_momentum"] = json!(batch_norm_momentum);
            }
        }
        value
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.check(Path::new("<memory>"))
    }

    /// Numbers of one image.
    pub fn input_len(&self) -> usize {
        self.input_shape.iter().product()
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let fail = |field, expected: &str, found: String| {
            Err(ModelError::Config { path: path.into(), field, expected: expected.into(), found })
        };
        let size = |n: usize| (1..=MAX_SIZE).contains(&n);
        if !self.input_shape.iter().all(|&n| size(n)) || self.input_len() > MAX_NUMBERS {
            return fail(
                "input_shape",
                "channels, height and width from 1 to 65536",
                format!("{:?}", self.input_shape),
            );
        }
        if !(2..=MAX_SIZE).contains(&self.num_classes) {
            return fail("num_classes", "an integer from 2 to 65536", self.num_classes.to_string());
        }
        match &self.kind {
            ClassifierKind::LogisticRegression => {}
            ClassifierKind::Mlp { widths } => {
                if widths.is_empty() || widths.len() > MAX_LAYERS || !widths.iter().all(|&n| size(n)) {
                    return fail("widths", "1 to 64 widths from 1 to 65536", format!("{widths:?}"));
                }
            }
            ClassifierKind::LeNet { channels, kernel_size, padding, widths, .. } => {
                if !channels.iter().all(|&n| size(n)) {
                    return fail("channels", "two numbers from 1 to 65536", format!("{channels:?}"));
                }
                if !widths.iter().all(|&n| size(n)) {
                    return fail("widths", "two widths from 1 to 65536", format!("{widths:?}"));
                }
                if !(1..=64).contains(kernel_size) {
                    return fail("kernel_size", "an integer from 1 to 64", kernel_size.to_string());
                }
                if padding >= kernel_size {
                    return fail("padding", "less than kernel_size", padding.to_string());
                }
            }
            ClassifierKind::ResNet9 { channels, batch_norm_eps, batch_norm_momentum, .. } => {
                if !channels.iter().all(|&n| size(n)) {
                    return fail("channels", "four numbers from 1 to 65536", format!("{channels:?}"));
                }
                if !(batch_norm_eps.is_finite() && *batch_norm_eps > 0.0) {
                    return fail("batch_norm_eps", "a positive number", batch_norm_eps.to_string());
                }
                if !(0.0..=1.0).contains(batch_norm_momentum) {
                    return fail("batch_norm_momentum", "a number from 0 to 1", batch_norm_momentum.to_string());
                }
            }
        }
        match super::network::Network::new(self) {
            Ok(_) => Ok(()),
            Err((field, expected, found)) => fail(field, &expected, found),
        }
    }
}

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    path: &'a Path,
}

impl Reader<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn fail(&self, field: &'static str, expected: impl Into<String>) -> ModelError {
        let found = self.get(field).map_or_else(|| "nothing".into(), |v| v.to_string().chars().take(120).collect());
        ModelError::Config { path: self.path.into(), field, expected: expected.into(), found }
    }

    fn kind(&self) -> Result<ClassifierKind, ModelError> {
        let (own, kind): (&[&str], _) = match self.get("model_type").and_then(Value::as_str) {
            Some("ascribe-lr") => (&[], ClassifierKind::LogisticRegression),
            Some("ascribe-mlp") => (&["widths"], ClassifierKind::Mlp { widths: self.sizes("widths", None)? }),
            Some("ascribe-lenet") => (&["channels", "kernel_size", "padding", "pool", "widths"], self.lenet()?),
            Some("ascribe-resnet9") => {
                (&["form", "channels", "conv_bias", "batch_norm_eps", "batch_norm_momentum"], self.resnet9()?)
            }
            _ => {
                let kinds = "\"ascribe-lr\", \"ascribe-mlp\", \"ascribe-lenet\" or \"ascribe-resnet9\"";
                return Err(self.fail("model_type", kinds));
            }
        };
        let shared = ["model_type", "input_shape", "num_classes"];
        let known = |name: &str| own.contains(&name) || shared.contains(&name) || IGNORED.contains(&name);
        if let Some(found) = self.fields.keys().find(|name| !known(name)) {
            return Err(ModelError::Config {
                path: self.path.into(),
                field: "model_type",
                expected: format!("only the fields {}", [&shared, own].concat().join(", ")),
                found: found.chars().take(120).collect(),
            });
        }
        Ok(kind)
    }

    fn lenet(&self) -> Result<ClassifierKind, ModelError> {
        let pool = match self.get("pool").map_or(Some("max"), Value::as_str) {
            Some("max") => Pooling::Max,
            Some("average") => Pooling::Average,
            _ => return Err(self.fail("pool", "\"max\" or \"average\"")),
        };
        Ok(ClassifierKind::LeNet {
            channels: self.array("channels", [6, 16])?,
            kernel_size: self.size("kernel_size", Some(5))?,
            padding: self.count("padding", 0)?,
            pool,
            widths: self.array("widths", LENET_WIDTHS)?,
        })
    }

    fn resnet9(&self) -> Result<ClassifierKind, ModelError> {
        let (form, channels) = match self.get("form").map_or(Some("pooled"), Value::as_str) {
            Some("pooled") => (ResNet9Form::Pooled, [64, 128, 256, 512]),
            Some("strided") => (ResNet9Form::Strided, [64, 128, 256, 128]),
            _ => return Err(self.fail("form", "\"pooled\" or \"strided\"")),
        };
        let number = |field, default: f64| {
            self.get(field).map_or(Some(default), Value::as_f64).ok_or_else(|| self.fail(field, "a number"))
        };
        let bias = self.get("conv_bias").map_or(Some(form == ResNet9Form::Pooled), Value::as_bool);
        Ok(ClassifierKind::ResNet9 {
            form,
            channels: self.array("channels", channels)?,
            conv_bias: bias.ok_or_else(|| self.fail("conv_bias", "true or false"))?,
            batch_norm_eps: number("batch_norm_eps", 1e-5)?,
            batch_norm_momentum: number("batch_norm_momentum", 0.1)?,
        })
    }

    fn input_shape(&self) -> Result<[usize; 3], ModelError> {
        match self.sizes("input_shape", None)?[..] {
            [d] => Ok([1, 1, d]),
            [h, w] => Ok([1, h, w]),
            [c, h, w] => Ok([c, h, w]),
            _ => Err(self.fail("input_shape", "[length], [height, width] or [channels, height, width]")),
        }
    }

    fn sizes(&self, field: &'static str, default: Option<&[usize]>) -> Result<Vec<usize>, ModelError> {
        let fail = || self.fail(field, format!("an array of integers from 1 to {MAX_SIZE}"));
        let Some(value) = self.get(field) else { return default.map(<[_]>::to_vec).ok_or_else(fail) };
        let items = value.as_array().filter(|items| items.len() <= MAX_LAYERS).ok_or_else(fail)?;
        items.iter().map(|item| integer(item).filter(|n| (1..=MAX_SIZE).contains(n)).ok_or_else(fail)).collect()
    }

    fn array<const N: usize>(&self, field: &'static str, default: [usize; N]) -> Result<[usize; N], ModelError> {
        let sizes = self.sizes(field, Some(&default))?;
        sizes.try_into().map_err(|_| self.fail(field, format!("{N} integers")))
    }

    fn size(&self, field: &'static str, default: Option<usize>) -> Result<usize, ModelError> {
        let size = self.get(field).map_or(default, integer);
        size.filter(|n| (1..=MAX_SIZE).contains(n))
            .ok_or_else(|| self.fail(field, format!("an integer from 1 to {MAX_SIZE}")))
    }

    fn count(&self, field: &'static str, default: usize) -> Result<usize, ModelError> {
        let count = self.get(field).map_or(Some(default), integer).filter(|&n| n <= MAX_SIZE);
        count.ok_or_else(|| self.fail(field, format!("an integer from 0 to {MAX_SIZE}")))
    }
}

fn integer(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value) -> Result<ClassifierConfig, ModelError> {
        ClassifierConfig::from_json(value, Path::new("config.json"))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let kinds = [
            ClassifierKind::LogisticRegression,
            ClassifierKind::Mlp { widths: vec![128, 64] },
            ClassifierKind::lenet(),
            ClassifierKind::resnet9(),
        ];
        for kind in kinds {
            let config = ClassifierConfig::new([3, 32, 32], 10, kind);
            assert_eq!(read(&config.to_json()).unwrap(), config);
        }
        let short = json!({"model_type": "ascribe-resnet9", "input_shape": [3, 32, 32], "num_classes": 2});
        assert_eq!(read(&short).unwrap().kind, ClassifierKind::resnet9());
        let row = json!({"model_type": "ascribe-lr", "input_shape": [784], "num_classes": 10});
        assert_eq!(read(&row).unwrap().input_shape, [1, 1, 784]);
    }

    #[test]
    fn impossible_files_are_refused_by_field() {
        let mlp = || json!({"model_type": "ascribe-mlp", "input_shape": [4], "num_classes": 3, "widths": [5]});
        let lenet = || json!({"model_type": "ascribe-lenet", "input_shape": [1, 28, 28], "num_classes": 10});
        let resnet = || json!({"model_type": "ascribe-resnet9", "input_shape": [3, 32, 32], "num_classes": 10});
        let cases = [
            (mlp(), "model_type", json!("llama")),
            (mlp(), "model_type", Value::Null),
            (mlp(), "widths", json!([])),
            (mlp(), "widths", json!([0])),
            (mlp(), "widths", json!(vec![1; 65])),
            (mlp(), "widths", Value::Null),
            (mlp(), "num_classes", json!(1)),
            (mlp(), "num_classes", json!(1u64 << 40)),
            (mlp(), "input_shape", json!([1, 2, 3, 4])),
            (mlp(), "input_shape", json!([65536, 65536, 65536])),
            (mlp(), "input_shape", json!("big")),
            (lenet(), "input_shape", json!([1, 8, 8])),
            (lenet(), "kernel_size", json!(65)),
            (lenet(), "padding", json!(5)),
            (lenet(), "pool", json!("min")),
            (lenet(), "channels", json!([6])),
            (resnet(), "input_shape", json!([3, 4, 4])),
            (resnet(), "form", json!("deep")),
            (resnet(), "batch_norm_eps", json!(0.0)),
            (resnet(), "batch_norm_momentum", json!(2)),
            (resnet(), "conv_bias", json!("yes")),
        ];
        for (mut value, field, bad) in cases {
            value[field] = bad;
            let message = read(&value).unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")) && message.contains("expected"), "{field}: {message}");
        }
        let mut misspelt = mlp();
        misspelt["witdhs"] = json!([3]);
        let message = read(&misspelt).unwrap_err().to_string();
        assert!(message.contains("witdhs") && message.contains("widths"), "{message}");
    }
}
