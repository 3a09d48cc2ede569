//! Typed access to the fields of a `config.json`: every refusal names the field, what is expected and what stands there.
//! Which fields a family has lives in `families`.

use std::path::Path;

use serde_json::{Map, Value};

use super::{MAX_LAYERS, MAX_SIZE};
use crate::arch::Activation;
use crate::error::ModelError;

/// The JSON object, and the file for messages.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub fields: &'a Map<String, Value>,
    pub path: &'a Path,
}

impl<'a> Reader<'a> {
    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// True if the field says null in so many words, which may mean something else than its absence.
    pub fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    pub fn fail(&self, field: &'static str, expected: impl Into<String>) -> ModelError {
        let found = self.get(field).map_or_else(|| "nothing".into(), |v| v.to_string().chars().take(120).collect());
        ModelError::Config { path: self.path.into(), field, expected: expected.into(), found }
    }

    /// Refuses `field` unless it is absent, null or `only`.
    pub fn only(&self, field: &'static str, only: &Value, expected: &str) -> Result<(), ModelError> {
        match self.get(field) {
            Some(value) if value != only => Err(self.fail(field, expected)),
            _ => Ok(()),
        }
    }

    /// A size; null counts as absent, and without a default it must be there.
    pub fn size(&self, field: &'static str, default: Option<usize>) -> Result<usize, ModelError> {
        let size = match self.get(field) {
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
            None => default,
        };
        let expected = || format!("an integer from 1 to {MAX_SIZE}");
        size.filter(|n| (1..=MAX_SIZE).contains(n)).ok_or_else(|| self.fail(field, expected()))
    }

    /// The first of two names for the same size.
    pub fn size_of_two(&self, names: [&'static str; 2], default: Option<usize>) -> Result<usize, ModelError> {
        let name = if self.get(names[0]).is_none() && self.get(names[1]).is_some() { names[1] } else { names[0] };
        self.size(name, default)
    }

    /// The number of layers, under one of two names. Capped before anything is made per layer.
    pub fn layers(&self, names: [&'static str; 2], default: Option<usize>) -> Result<usize, ModelError> {
        let layers = self.size_of_two(names, default)?;
        if layers > MAX_LAYERS {
            let name = if self.get(names[0]).is_some() { names[0] } else { names[1] };
            return Err(self.fail(name, format!("an integer from 1 to {MAX_LAYERS}")));
        }
        Ok(layers)
    }

    /// A positive number, `default` if absent or null.
    pub fn positive(&self, field: &'static str, default: f64) -> Result<f64, ModelError> {
        let number = self.get(field).map_or(Some(default), Value::as_f64);
        number.filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.fail(field, "a positive number"))
    }

    /// A positive number that null switches off.
    pub fn positive_or_null(&self, field: &'static str, default: Option<f64>) -> Result<Option<f64>, ModelError> {
        match (self.is_null(field), self.get(field), default) {
            (true, ..) | (false, None, None) => Ok(None),
            (false, _, default) => self.positive(field, default.unwrap_or(1.0)).map(Some),
        }
    }

    pub fn flag(&self, field: &'static str, default: bool) -> Result<bool, ModelError> {
        self.get(field).map_or(Some(default), Value::as_bool).ok_or_else(|| self.fail(field, "true or false"))
    }

    /// Bookkeeping only (several end tokens are possible there), so nothing is refused.
    pub fn token(&self, field: &str) -> Option<u32> {
        self.get(field).and_then(Value::as_u64).and_then(|token| u32::try_from(token).ok())
    }

    pub fn activation(&self, field: &'static str, default: Activation) -> Result<Activation, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        Ok(match value.as_str() {
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu" | "gelu_python") => Activation::Gelu,
            // One formula; the names differ in how PyTorch computes it.
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate") => {
                Activation::GeluTanh
            }
            Some("relu") => Activation::Relu,
            _ => return Err(self.fail(field, "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast or relu")),
        })
    }

    /// For each layer, whether `layer_types` says that it sees a window only; none if the field is absent.
    pub fn layer_types(&self, n_layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        const FIELD: &str = "layer_types";
        let Some(value) = self.get(FIELD) else { return Ok(None) };
        let kinds = value.as_array().filter(|kinds| kinds.len() == n_layers);
        let kinds = kinds.ok_or_else(|| self.fail(FIELD, format!("one entry for each of {n_layers} layers")))?;
        let is_sliding = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention" | "attention") => Ok(false),
            _ => Err(self.fail(FIELD, "\"full_attention\" or \"sliding_attention\"")),
        };
        kinds.iter().map(is_sliding).collect::<Result<_, _>>().map(Some)
    }
}
