//! `adapter_config.json` of PEFT: which modules are adapted, how wide, how strongly. Weights live in `adapter`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::error::ModelError;

/// Name of the configuration file in an adapter's folder.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";

/// A configuration file larger than this is not one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Wider than this is no low rank.
const MAX_RANK: usize = 1 << 14;

/// A pattern longer than this is not one.
const MAX_PATTERN_BYTES: usize = 1 << 12;

/// Which linear modules get an adapter, by Hugging Face name (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Targets {
    /// Every linear module but the output layer: `"all-linear"`.
    AllLinear,
    /// Modules of these names, or whose name ends in one of them after a dot.
    Names(Vec<String>),
    /// Modules whose whole name the regular expression matches.
    Pattern(String),
}

/// The settings of a LoRA (arXiv:2106.09685) as PEFT keeps them: `W = W₀ + s·B·A`, `A` `[r, in]`, `B` `[out, r]`,
/// `s = alpha/r`, or `alpha/√r` with `use_rslora` (arXiv:2312.03732).
#[derive(Clone, PartialEq, Debug)]
pub struct LoraConfig {
    /// Width of the adapters, r.
    pub rank: usize,
    /// Strength; divided by r or its root.
    pub alpha: f64,
    /// True for `alpha/√r`.
    pub use_rslora: bool,
    /// Adapted modules.
    pub targets: Targets,
    /// Modules that are left out again, by name or end of name.
    pub exclude: Vec<String>,
    /// Other widths: the end of a name, or a regular expression of it → r.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other strengths.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// What the adapter was trained on; carried along.
    pub base_model: Option<String>,
}

impl LoraConfig {
    /// Rank `rank` and strength `alpha` on `targets`.
    pub fn new(rank: usize, alpha: f64, targets: Targets) -> Self {
        Self {
            rank,
            alpha,
            use_rslora: false,
            targets,
            exclude: vec![],
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            base_model: None,
        }
    }

    /// Reads `adapter_config.json` of the folder `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Format`] if it is no JSON object; [`ModelError::Config`] naming a field that is
    /// missing, malformed, or asks for what is not supported (DoRA, `modules_to_save`, biases, adapters that change the
    /// base weights, …).
    pub fn from_file(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(ADAPTER_CONFIG_FILE);
        let size = std::fs::metadata(&path).map_err(ModelError::io("read", &path))?.len();
        let format =
            |expected: &str, found: String| ModelError::Format { path: path.clone(), expected: expected.into(), found };
        if size > MAX_CONFIG_BYTES {
            return Err(format(&format!("at most {MAX_CONFIG_BYTES} bytes of JSON"), format!("{size} bytes")));
        }
        let bytes = std::fs::read(&path).map_err(ModelError::io("read", &path))?;
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|error| format("a JSON object", error.to_string()))?;
        Self::from_json(&value, &path)
    }

    /// Reads the settings out of a JSON object; `path` is for error messages only.
    ///
    /// # Errors
    /// As [`LoraConfig::from_file`].
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, ModelError> {
        let Value::Object(fields) = value else {
            let found = value.to_string().chars().take(60).collect();
            return Err(ModelError::Format { path: path.into(), expected: "a JSON object".into(), found });
        };
        let reader = Reader { fields, path };
        reader.refuse_what_is_not_supported()?;
        let config = Self {
            rank: reader.rank("r", reader.get("r"))?,
            alpha: reader.number("lora_alpha", reader.get("lora_alpha"))?,
            use_rslora: reader.flag("use_rslora")?,
            targets: reader.targets()?,
            exclude: match reader.get("exclude_modules") {
                None => vec![],
                Some(list) => reader.names("exclude_modules", list)?,
            },
            rank_pattern: reader.pattern("rank_pattern", |value| reader.rank("rank_pattern", value))?,
            alpha_pattern: reader.pattern("alpha_pattern", |value| reader.number("alpha_pattern", value))?,
            base_model: reader.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
        };
        config.check(path)?;
        Ok(config)
    }

    /// The form that PEFT opens; `fan_in_fan_out` is true for GPT-2's Conv1D.
    pub fn to_json(&self, fan_in_fan_out: bool) -> Value {
        let targets = match &self.targets {
            Targets::AllLinear => json!("all-linear"),
            Targets::Names(names) => json!(names),
            Targets::Pattern(pattern) => json!(pattern),
        };
        json!({
            "alpha_pattern": self.alpha_pattern.iter().map(|(name, &x)| (name, number(x))).collect::<BTreeMap<_, _>>(),
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "exclude_modules": if self.exclude.is_empty() { Value::Null } else { json!(self.exclude) },
            "fan_in_fan_out": fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(self.alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": self.rank_pattern,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }

    /// Checks what a hand-written configuration may get wrong.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.check(&PathBuf::from("<memory>"))
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let fail = |field, expected: &str, found: String| {
            Err(ModelError::Config { path: path.into(), field, expected: expected.into(), found })
        };
        let ranks = std::iter::once(("r", self.rank)).chain(self.rank_pattern.values().map(|&r| ("rank_pattern", r)));
        for (field, rank) in ranks {
            if !(1..=MAX_RANK).contains(&rank) {
                return fail(field, &format!("a rank from 1 to {MAX_RANK}"), rank.to_string());
            }
        }
        let alphas = self.alpha_pattern.values().map(|&x| ("alpha_pattern", x));
        for (field, alpha) in std::iter::once(("lora_alpha", self.alpha)).chain(alphas) {
            if !(alpha.is_finite() && alpha > 0.0) {
                return fail(field, "a positive number", alpha.to_string());
            }
        }
        self.compile(path).map(|_| ())
    }

    fn compile(&self, path: &Path) -> Result<Compiled, ModelError> {
        let regex = |field: &'static str, pattern: &str, whole: String| {
            let refuse = |found: String| ModelError::Config {
                path: path.into(),
                field,
                expected: "a regular expression without look-around or back-references".into(),
                found: format!("{pattern:?}: {found}"),
            };
            if pattern.len() > MAX_PATTERN_BYTES {
                return Err(refuse(format!("{} bytes", pattern.len())));
            }
            Regex::new(&whole).map_err(|error| refuse(error.to_string()))
        };
        let end = |field, pattern: &str| regex(field, pattern, format!("^(?:.*\\.)?(?:{pattern})$"));
        Ok(Compiled {
            target: match &self.targets {
                Targets::Pattern(pattern) => Some(regex("target_modules", pattern, format!("^(?:{pattern})$"))?),
                _ => None,
            },
            ranks: self
                .rank_pattern
                .iter()
                .map(|(pattern, &rank)| Ok((end("rank_pattern", pattern)?, rank)))
                .collect::<Result<_, ModelError>>()?,
            alphas: self
                .alpha_pattern
                .iter()
                .map(|(pattern, &alpha)| Ok((end("alpha_pattern", pattern)?, alpha)))
                .collect::<Result<_, ModelError>>()?,
        })
    }

    /// What can be asked about module names, patterns compiled once.
    pub(super) fn rules(&self, path: &Path) -> Result<Rules<'_>, ModelError> {
        Ok(Rules { compiled: self.compile(path)?, config: self, path: path.into() })
    }
}

/// An integer where it is one: PEFT writes `"lora_alpha": 8`.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

struct Compiled {
    target: Option<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

/// Compiled patterns of a configuration.
pub(super) struct Rules<'a> {
    compiled: Compiled,
    config: &'a LoraConfig,
    path: PathBuf,
}

impl Rules<'_> {
    /// True if the module is adapted; `head` is the output layer.
    pub fn targets(&self, name: &str, head: bool) -> bool {
        let ends = |names: &[String]| {
            names.iter().any(|end| name.strip_suffix(end.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('.')))
        };
        let wanted = match (&self.config.targets, &self.compiled.target) {
            (Targets::Names(names), _) => ends(names),
            (_, Some(pattern)) => pattern.is_match(name),
            _ => !head,
        };
        wanted && !ends(&self.config.exclude)
    }

    /// Rank and factor `s` of a module.
    ///
    /// # Errors
    /// [`ModelError::Config`] if two patterns give it two values: PEFT takes the first in the file's order, which JSON does
    /// not promise to keep.
    pub fn rank_and_scale(&self, name: &str) -> Result<(usize, f32), ModelError> {
        let rank = self.one("rank_pattern", name, &self.compiled.ranks)?.unwrap_or(self.config.rank);
        let alpha = self.one("alpha_pattern", name, &self.compiled.alphas)?.unwrap_or(self.config.alpha);
        let width = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / width) as f32))
    }

    fn one<T: Copy + PartialEq>(
        &self,
        field: &'static str,
        name: &str,
        rules: &[(Regex, T)],
    ) -> Result<Option<T>, ModelError> {
        let mut found = rules.iter().filter(|(pattern, _)| pattern.is_match(name)).map(|&(_, value)| value);
        let first = found.next();
        if found.any(|other| Some(other) != first) {
            let (expected, found) = ("one value per module".into(), format!("several for {name}"));
            return Err(ModelError::Config { path: self.path.clone(), field, expected, found });
        }
        Ok(first)
    }
}

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    path: &'a Path,
}

impl Reader<'_> {
    /// A field that says something: neither absent nor null, nor empty.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        })
    }

    fn fail(&self, field: &'static str, expected: impl Into<String>) -> ModelError {
        let found = self.get(field).map_or_else(|| "nothing".into(), |v| v.to_string().chars().take(120).collect());
        ModelError::Config { path: self.path.into(), field, expected: expected.into(), found }
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ModelError> {
        if self.get("peft_type").is_none_or(|kind| kind != "LORA") {
            return Err(self.fail("peft_type", "\"LORA\" (the only kind that is supported)"));
        }
        if self.get("bias").is_some_and(|bias| bias != "none") {
            return Err(self.fail("bias", "\"none\""));
        }
        // Other ways to begin change the weights of the model itself.
        if self
            .get("init_lora_weights")
            .is_some_and(|how| !how.is_boolean() && how != "gaussian" && how != "orthogonal")
        {
            return Err(self.fail("init_lora_weights", "true, false, \"gaussian\" or \"orthogonal\""));
        }
        for field in ["use_dora", "use_qalora", "lora_bias", "ensure_weight_tying"] {
            if self.flag(field)? {
                return Err(self.fail(field, "false"));
            }
        }
        let absent = [
            "modules_to_save",
            "trainable_token_indices",
            "target_parameters",
            "layer_replication",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "use_bdlora",
            "velora_config",
        ];
        match absent.into_iter().find(|field| self.get(field).is_some_and(|value| *value != false)) {
            None => Ok(()),
            Some(field) => Err(self.fail(field, "nothing (plain LoRA on linear modules)")),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.fail(field, "true or false")),
        }
    }

    fn rank(&self, field: &'static str, value: Option<&Value>) -> Result<usize, ModelError> {
        let rank = value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        rank.ok_or_else(|| self.fail(field, format!("a rank from 1 to {MAX_RANK}")))
    }

    fn number(&self, field: &'static str, value: Option<&Value>) -> Result<f64, ModelError> {
        value.and_then(Value::as_f64).ok_or_else(|| self.fail(field, "a positive number"))
    }

    fn names(&self, field: &'static str, list: &Value) -> Result<Vec<String>, ModelError> {
        let names = list.as_array().map(|list| list.iter().map(|name| name.as_str().map(str::to_string)).collect());
        names.flatten().ok_or_else(|| self.fail(field, "a list of module names"))
    }

    fn targets(&self) -> Result<Targets, ModelError> {
        match self.get("target_modules") {
            None => Err(self.fail("target_modules", "names of modules, a regular expression or \"all-linear\"")),
            Some(Value::String(all)) if all == "all-linear" => Ok(Targets::AllLinear),
            Some(Value::String(pattern)) => Ok(Targets::Pattern(pattern.clone())),
            Some(list) => Ok(Targets::Names(self.names("target_modules", list)?)),
        }
    }

    fn pattern<T>(
        &self,
        field: &'static str,
        read: impl Fn(Option<&Value>) -> Result<T, ModelError>,
    ) -> Result<BTreeMap<String, T>, ModelError> {
        match self.get(field) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => {
                map.iter().map(|(name, value)| Ok((name.clone(), read(Some(value))?))).collect()
            }
            Some(_) => Err(self.fail(field, "an object of module names")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value) -> Result<LoraConfig, ModelError> {
        LoraConfig::from_json(value, Path::new("adapter_config.json"))
    }

    fn plain() -> Value {
        json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]})
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config = LoraConfig::new(4, 8.0, Targets::Pattern(".*(q|v)_proj".into()));
        config.rank_pattern.insert("layers.0.*".into(), 2);
        config.alpha_pattern.insert("q_proj".into(), 2.5);
        config.exclude.push("layers.1.self_attn.v_proj".into());
        config.base_model = Some("base".into());
        assert_eq!(read(&config.to_json(true)).unwrap(), config);
    }

    #[test]
    fn names_match_as_in_peft() {
        let config = read(&plain()).unwrap();
        let rules = config.rules(Path::new("x")).unwrap();
        assert!(rules.targets("model.layers.0.self_attn.q_proj", false) && rules.targets("q_proj", false));
        assert!(!rules.targets("model.layers.0.self_attn.xq_proj", false));
        let all = LoraConfig::new(4, 8.0, Targets::AllLinear);
        let rules = all.rules(Path::new("x")).unwrap();
        assert!(rules.targets("a.b", false) && !rules.targets("lm_head", true));
        let mut config = LoraConfig { use_rslora: true, ..LoraConfig::new(4, 8.0, Targets::AllLinear) };
        config.rank_pattern.insert("layers.0.x".into(), 16);
        config.alpha_pattern.insert("^a.layers.\\d+.x".into(), 2.0);
        let rules = config.rules(Path::new("x")).unwrap();
        assert_eq!(rules.rank_and_scale("a.layers.0.x").unwrap(), (16, 0.5));
        assert_eq!(rules.rank_and_scale("b.layers.0.x").unwrap(), (16, 2.0));
        assert_eq!(rules.rank_and_scale("layers.00.x").unwrap(), (4, 4.0));
        config.rank_pattern.insert("x".into(), 3);
        let message = config.rules(Path::new("x")).unwrap().rank_and_scale("a.layers.0.x").unwrap_err().to_string();
        assert!(message.contains("several for a.layers.0.x"), "{message}");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases = [
            ("peft_type", json!("IA3")),
            ("bias", json!("all")),
            ("use_dora", json!(true)),
            ("lora_bias", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("init_lora_weights", json!("pissa")),
            ("layer_replication", json!([[0, 1]])),
            ("trainable_token_indices", json!([1])),
            ("r", json!(0)),
            ("r", json!(1u64 << 60)),
            ("r", json!(-1)),
            ("lora_alpha", json!(0)),
            ("use_rslora", json!("yes")),
            ("target_modules", Value::Null),
            ("target_modules", json!([1])),
            ("target_modules", json!("(?=a)b")),
            ("rank_pattern", json!({"(": 2})),
            ("rank_pattern", json!({"a": "b"})),
            ("alpha_pattern", json!([1])),
        ];
        for (field, bad) in cases {
            let mut value = plain();
            value[field] = bad;
            let message = read(&value).unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")) && message.contains("expected"), "{field}: {message}");
        }
    }
}
