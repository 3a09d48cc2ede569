//! Rotary positions in a `config.json`: `rope_theta` and `rope_scaling` of older files, `rope_parameters` of newer ones.
//! What the numbers do to the frequencies lives in `ops::rope`.

use serde_json::{Map, Value, json};

use super::reader::Reader;
use crate::arch::RopeScaling;
use crate::error::ModelError;

/// What stands there about rotary positions.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// Part of a head that is turned, if it is said.
    pub partial: Option<f64>,
}

/// One object of parameters, and the field that it came from.
struct Object<'a> {
    reader: Reader<'a>,
    field: &'static str,
    entries: Map<String, Value>,
}

/// One set of parameters for all layers. `theta` is the base if no parameter names one.
pub(super) fn flat(reader: &Reader<'_>, theta: f64, context: usize) -> Result<Rope, ModelError> {
    // `transformers` lets the old field win where both stand.
    let field = if is_filled(reader.get("rope_scaling")) { "rope_scaling" } else { "rope_parameters" };
    let object = Object::new(reader, field, reader.get(field))?;
    if let Some(layer_type) = ["full_attention", "sliding_attention"].iter().find(|key| object.get(key).is_some()) {
        return Err(object.fail(&format!("one set of parameters for all layers, not `{layer_type}`")));
    }
    object.rope(theta, context)
}

/// Gemma 3: one set for layers that see everything, and the base of the others.
pub(super) fn global_and_local(reader: &Reader<'_>, context: usize) -> Result<(Rope, f64), ModelError> {
    let (old, new) = ("rope_scaling", "rope_parameters");
    let nested = Object::new(reader, new, reader.get(new))?;
    let part = |key: &str| nested.get(key).cloned();
    if !nested.entries.is_empty() && part("full_attention").is_none() && part("sliding_attention").is_none() {
        return Err(nested.fail("parameters under `full_attention` and `sliding_attention`"));
    }
    let mut full = Object::new(reader, new, part("full_attention").as_ref())?;
    if let Some(Value::Object(scaling)) = reader.get(old) {
        full.field = old;
        full.entries.extend(scaling.clone());
    }
    let global = full.rope(reader.positive("rope_theta", 1e6)?, context)?;
    let sliding = Object::new(reader, new, part("sliding_attention").as_ref())?;
    let local = sliding.rope(reader.positive("rope_local_base_freq", 1e4)?, context)?;
    if local.scaling != RopeScaling::None {
        return Err(sliding.fail("rope_type \"default\" under `sliding_attention`"));
    }
    Ok((global, local.theta))
}

/// The `rope_scaling` of older files, which newer versions read too.
pub(super) fn to_json(scaling: &RopeScaling) -> Value {
    match *scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings } => {
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
    }
}

fn is_filled(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.as_object().is_none_or(|entries| !entries.is_empty()))
}

impl<'a> Object<'a> {
    fn new(reader: &Reader<'a>, field: &'static str, value: Option<&Value>) -> Result<Self, ModelError> {
        let entries = match value {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(entries)) => entries.clone(),
            Some(_) => return Err(reader.fail(field, "an object or null")),
        };
        Ok(Self { reader: *reader, field, entries })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    fn fail(&self, expected: &str) -> ModelError {
        let found = Value::Object(self.entries.clone()).to_string().chars().take(200).collect();
        ModelError::Config { path: self.reader.path.into(), field: self.field, expected: expected.into(), found }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.fail(&format!("a positive `{key}`")))
    }

    fn required(&self, key: &str) -> Result<f64, ModelError> {
        self.number(key)?.ok_or_else(|| self.fail(&format!("a positive `{key}`")))
    }

    /// The context before it was made longer: beside the object, in it, or unchanged.
    fn original(&self, context: usize) -> Result<usize, ModelError> {
        const KEY: &str = "original_max_position_embeddings";
        if self.reader.get(KEY).is_some() {
            return self.reader.size(KEY, None);
        }
        let Some(value) = self.get(KEY) else { return Ok(context) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=super::MAX_SIZE).contains(n));
        size.ok_or_else(|| self.fail(&format!("an integer `{KEY}` from 1 to {}", super::MAX_SIZE)))
    }

    fn rope(&self, theta: f64, context: usize) -> Result<Rope, ModelError> {
        let kind = self.get("rope_type").or_else(|| self.get("type")).map_or(Some("default"), Value::as_str);
        let scaling = match kind {
            // Dynamic scaling begins where the context ends, and no text is longer than the context.
            Some("default" | "dynamic") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.required("factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_max_position_embeddings: self.original(context)?,
            },
            Some("yarn") => self.yarn(context)?,
            _ => return Err(self.fail("rope_type \"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\"")),
        };
        let theta = self.number("rope_theta")?.unwrap_or(theta);
        Ok(Rope { theta, scaling, partial: self.number("partial_rotary_factor")? })
    }

    /// Defaults of arXiv:2309.00071 as `transformers` has them.
    fn yarn(&self, context: usize) -> Result<RopeScaling, ModelError> {
        if self.get("truncate").is_some_and(|truncate| truncate != true) {
            return Err(self.fail("truncate true"));
        }
        let original = self.original(context)?;
        let factor = self.number("factor")?.unwrap_or(context as f64 / original as f64);
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let nonzero =
            |key: &str| if self.get(key).and_then(Value::as_f64) == Some(0.0) { Ok(None) } else { self.number(key) };
        let attention_factor = match (self.number("attention_factor")?, nonzero("mscale")?, nonzero("mscale_all_dim")?)
        {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(one), Some(all)) => magnitude(one) / magnitude(all),
            _ => magnitude(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
            beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            original_max_position_embeddings: original,
        })
    }
}
