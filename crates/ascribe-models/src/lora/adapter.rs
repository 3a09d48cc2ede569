//! An adapter's weights: which modules they belong to, where they lie in one flat vector, PEFT's files.
//!
//! Order of the vector: modules in the order of `ParameterLayout`, of each first `A` `[r, in]`, then `B` `[out, r]`, both
//! row-major. Putting them into a model lives in `merged`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, RowType};
use ascribe_linalg::Stream;
use safetensors::SafeTensors;

use super::config::{ADAPTER_CONFIG_FILE, LoraConfig, Targets};
use crate::decoder::{Decoder, Module};
use crate::error::ModelError;
use crate::ops::linear::Fan;
use crate::weights::{self, Tensor};

/// Name of the weights in an adapter's folder.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// One adapted linear module.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Hugging Face name.
    pub name: String,
    /// The product that it is part of, and its columns of that product's output.
    pub module: Module,
    pub columns: Range<usize>,
    /// Place of its weight in the decoder.
    pub weight: Range<usize>,
    pub fan: Fan,
    /// The decoder keeps the weight `[in, out]`.
    pub transposed: bool,
    pub rank: usize,
    /// `s` of `W₀ + s·B·A`.
    pub scale: f32,
    /// Place of `A` `[r, in]` in the adapter.
    pub a: Range<usize>,
    /// Place of `B` `[out, r]`.
    pub b: Range<usize>,
}

/// A LoRA for one shape of model: settings and weights, in one flat vector.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(super) config: LoraConfig,
    pub(super) parts: Vec<Part>,
    pub(super) parameters: Vec<f32>,
    conv1d: bool,
}

/// A tensor of an adapter: name without PEFT's prefix, shape, place in the flat vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdapterSlot {
    /// `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// `[r, in]` or `[out, r]`.
    pub shape: [usize; 2],
    /// Place in [`Adapter::parameters`].
    pub range: Range<usize>,
}

impl Adapter {
    /// A fresh adapter for `decoder`: `A` uniform in `±1/√in` (PEFT's Kaiming form), from the stream `lora/{module}` of
    /// `seed`; `B` zero, so the model is what it was.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the settings contradict themselves, fit no module, or want a tied output layer.
    pub fn init(decoder: &Decoder, config: LoraConfig, seed: u64) -> Result<Self, ModelError> {
        config.validate()?;
        let path = PathBuf::from("<memory>");
        let rules = config.rules(&path)?;
        let mut parts = vec![];
        for (site, head) in sites(decoder) {
            if rules.targets(&site.name, head) {
                let (rank, scale) = rules.rank_and_scale(&site.name)?;
                parts.push(Part { rank, scale, ..site });
            }
        }
        let mut adapter = Self::place(decoder, config, parts, &path)?;
        for part in &adapter.parts {
            let mut stream = Stream::new(seed, &format!("lora/{}", part.name));
            let bound = 1.0 / (part.fan.input as f64).sqrt();
            adapter.parameters[part.a.clone()].fill_with(|| ((2.0 * stream.uniform() - 1.0) * bound) as f32);
        }
        Ok(adapter)
    }

    /// Opens a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) for `decoder`. Which modules are adapted is
    /// what the file holds; a module that the settings name and the file does not is not adapted.
    ///
    /// # Errors
    /// A missing or foreign file, settings that are not supported, a tensor that is missing, belongs to no linear module of
    /// the model, repeats weights that are not the model's, has another shape or number type, or holds NaN or infinities: each by name.
    pub fn load(decoder: &Decoder, dir: &Path) -> Result<Self, ModelError> {
        let config = LoraConfig::from_file(dir)?;
        let path = dir.join(ADAPTER_WEIGHTS_FILE);
        let rules = config.rules(&dir.join(ADAPTER_CONFIG_FILE))?;
        let mut sites_and_ranks = vec![];
        let mut numbers = 0usize;
        for (site, _) in sites(decoder) {
            let (rank, scale) = rules.rank_and_scale(&site.name)?;
            numbers = numbers.saturating_add(rank.saturating_mul(site.fan.input + site.fan.output));
            sites_and_ranks.push(Part { rank, scale, ..site });
        }
        // PEFT keeps embedding and output layer with an adapter that touches one of them.
        let kept = 2 * decoder.config().vocab_size * decoder.config().hidden_size;
        let bytes = weights::read_capped(&path, numbers.saturating_add(kept))?;
        let file = weights::open(&bytes, &path)?;
        let mut names: Vec<&str> = file.names();
        names.sort_unstable();
        let parts: Vec<Part> = sites_and_ranks
            .into_iter()
            .filter(|part| part.tensor_names().iter().any(|name| names.binary_search(&name.as_str()).is_ok()))
            .collect();
        let known: Vec<String> = parts.iter().flat_map(Part::tensor_names).collect();
        for name in names.into_iter().filter(|name| !known.iter().any(|known| known == name)) {
            expect_own_weights(decoder, &file, &path, name)?;
        }
        let mut adapter = Self::place(decoder, config, parts, &path)?;
        adapter.fill(&file, &path)?;
        Ok(adapter)
    }

    fn place(decoder: &Decoder, config: LoraConfig, mut parts: Vec<Part>, path: &Path) -> Result<Self, ModelError> {
        let fail = |expected: String, found: &str| {
            Err(ModelError::Config { path: path.into(), field: "target_modules", expected, found: found.into() })
        };
        if parts.is_empty() {
            let names: Vec<String> = sites(decoder).map(|(site, _)| site.name).take(8).collect();
            return fail(format!("a linear module of the model ({}, …)", names.join(", ")), "none");
        }
        let tied = decoder.config().tie_word_embeddings;
        if let Some(head) = parts.iter().find(|part| part.module == Module::Head && tied) {
            return fail("modules with weights of their own".into(), &format!("the tied output layer {}", head.name));
        }
        let mut next = 0;
        for part in &mut parts {
            part.a = next..next + part.rank * part.fan.input;
            part.b = part.a.end..part.a.end + part.fan.output * part.rank;
            next = part.b.end;
        }
        Ok(Self { config, parts, parameters: vec![0.0; next], conv1d: decoder.config().arch.conv1d() })
    }

    fn fill(&mut self, file: &SafeTensors<'_>, path: &Path) -> Result<(), ModelError> {
        for slot in self.slots() {
            let tensor = format!("{PREFIX}{}", slot.name);
            let missing = || ModelError::MissingTensor { path: path.into(), tensor: tensor.clone() };
            let view = file.tensor(&tensor).map_err(|_| missing())?;
            if view.shape() != slot.shape {
                let (expected, found) = (format!("shape {:?}", slot.shape), format!("shape {:?}", view.shape()));
                return Err(ModelError::Tensor { path: path.into(), tensor, expected, found });
            }
            let out = &mut self.parameters[slot.range];
            weights::decode(view.dtype(), view.data(), out).map_err(|found| ModelError::Tensor {
                path: path.into(),
                tensor: tensor.clone(),
                expected: "F32, BF16 or F16".into(),
                found,
            })?;
            weights::check_finite(out, path, &tensor)?;
        }
        Ok(())
    }

    /// Writes the two files of a PEFT folder, each atomically; returns the SHA-256 of the weights.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(&self, decoder: &Decoder, dir: &Path) -> Result<Digest, ModelError> {
        let mut config = self.config.clone();
        // What the settings would pick again must be what is there; else the modules are named one by one.
        let rules = config.rules(&dir.join(ADAPTER_CONFIG_FILE))?;
        let picked: Vec<String> =
            sites(decoder).filter(|(site, head)| rules.targets(&site.name, *head)).map(|(site, _)| site.name).collect();
        let there: Vec<String> = self.parts.iter().map(|part| part.name.clone()).collect();
        if picked != there {
            config.targets = Targets::Names(there);
            config.exclude.clear();
        }
        let mut text = format!("{:#}", config.to_json(self.conv1d));
        text.push('\n');
        weights::write_atomically(&dir.join(ADAPTER_CONFIG_FILE), text.as_bytes())?;
        let slots = self.slots();
        let tensors: Vec<Tensor<'_>> = slots
            .iter()
            .map(|slot| Tensor {
                name: format!("{PREFIX}{}", slot.name),
                shape: &slot.shape,
                numbers: &self.parameters[slot.range.clone()],
            })
            .collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        weights::write_atomically(
            &dir.join(ADAPTER_WEIGHTS_FILE),
            &weights::to_bytes(&tensors, RowType::F32, &metadata),
        )
    }

    /// The settings.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// All tensors, in order, without gaps.
    pub fn slots(&self) -> Vec<AdapterSlot> {
        let slots = |part: &Part| {
            let [a, b] = ["lora_A", "lora_B"].map(|half| format!("{}.{half}.weight", part.name));
            let Fan { input, output } = part.fan;
            [
                AdapterSlot { name: a, shape: [part.rank, input], range: part.a.clone() },
                AdapterSlot { name: b, shape: [output, part.rank], range: part.b.clone() },
            ]
        };
        self.parts.iter().flat_map(slots).collect()
    }

    /// The adapted modules, in order.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All weights, flat.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// True when nothing is adapted (no valid adapter is like that).
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }
}

impl Part {
    fn tensor_names(&self) -> [String; 2] {
        ["lora_A", "lora_B"].map(|half| format!("{PREFIX}{}.{half}.weight", self.name))
    }
}

/// A tensor beside the adapter's own may repeat weights of the model; weights of another model are refused.
fn expect_own_weights(decoder: &Decoder, file: &SafeTensors<'_>, path: &Path, name: &str) -> Result<(), ModelError> {
    let own = name.strip_prefix(PREFIX).map(|own| own.replace(".base_layer.", "."));
    let slot = decoder.parameter_layout().slots().iter().find(|slot| Some(&slot.name) == own.as_ref());
    let (Some(slot), Ok(view)) = (slot, file.tensor(name)) else {
        return Err(ModelError::ExtraTensor { path: path.into(), tensor: name.into() });
    };
    let mut numbers = vec![0.0; slot.range.len()];
    let same = weights::decode(view.dtype(), view.data(), &mut numbers).is_ok()
        && numbers.iter().zip(&decoder.parameters()[slot.range.clone()]).all(|(a, b)| a.to_bits() == b.to_bits());
    if same {
        return Ok(());
    }
    Err(ModelError::Tensor {
        path: path.into(),
        tensor: name.into(),
        expected: "the weights of the model that the adapter is opened for".into(),
        found: "other weights".into(),
    })
}

/// Every linear module of a decoder that could be adapted, in the order of its layout; true for the output layer.
pub(super) fn sites(decoder: &Decoder) -> impl Iterator<Item = (Part, bool)> + '_ {
    let layers = decoder.layout.layers.iter().enumerate().flat_map(|(l, layer)| {
        [
            (Module::Qkv(l), &layer.qkv),
            (Module::O(l), &layer.o),
            (Module::Up(l), &layer.up),
            (Module::Down(l), &layer.down),
        ]
    });
    let encoder = decoder.config().arch.is_encoder();
    let head = (!encoder).then_some((Module::Head, &decoder.layout.head));
    layers.chain(head).flat_map(move |(module, layout)| {
        let input = decoder.fan(module).input;
        layout.parts.iter().map(move |part| {
            let start = layout.weight.start;
            let site = Part {
                name: part.name.clone(),
                module,
                columns: part.columns.clone(),
                weight: start + part.columns.start * input..start + part.columns.end * input,
                fan: Fan { input, output: part.columns.len() },
                transposed: layout.transposed,
                rank: 0,
                scale: 0.0,
                a: 0..0,
                b: 0..0,
            };
            (site, module == Module::Head)
        })
    })
}
