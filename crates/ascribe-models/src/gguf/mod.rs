//! GGUF files (llama.cpp), read only: configuration and f32 weights in our layout, quantised blocks decoded.
//!
//! The container is read in `container`, blocks are decoded in `blocks`, metadata become a configuration in `model`; here
//! tensors find their places and are turned back to the form that Hugging Face files have. A tokenizer inside the file is
//! not read: `tokenizer.json` is expected beside it. Writing lives nowhere.

mod blocks;
mod container;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Seek};
use std::ops::Range;
use std::path::Path;

use container::{Container, Value};

use crate::arch::{Family, NormKind, QkvOrder};
use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::layout::{LinearLayout, NormLayout, ParameterLayout};
use crate::weights::check_finite;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Reads the GGUF file at `path`: its configuration, and its weights flat in the order of
/// [`ParameterLayout`], decoded to f32.
///
/// Architectures `llama` (Llama, Mistral, SmolLM2), `qwen2`, `qwen3`, `gemma2`, `gemma3`, `gpt2`, `gptneox` and `olmo2`;
/// numbers in F32, F16, BF16, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q2_K` to `Q6_K`, `IQ4_NL` and `IQ4_XS`. What llama.cpp's converter does to tensors is undone:
/// rows of queries and keys that turn in neighbouring pairs stand in halves again (`llama`), fused products in the order of
/// heads (`gptneox`), Conv1D weights `[in, out]` (`gpt2`), gains without their one (Gemma; exact to the last bit of an f32).
/// An output layer that repeats the embedding bit for bit is tied to it. Memory: the f32 weights, one tensor of them
/// twice, and a MiB of file.
///
/// # Errors
/// [`ModelError::Io`]; [`ModelError::Format`] for a torn or lying file; [`ModelError::Config`] naming the metadata key;
/// missing, extra, misshapen or non-finite tensors by name.
///
/// ```no_run
/// # fn main() -> Result<(), ascribe_models::ModelError> {
/// let (config, parameters) = ascribe_models::gguf::open(std::path::Path::new("model-Q4_K_M.gguf"))?;
/// let decoder = ascribe_models::Decoder::from_parameters(config, parameters)?;
/// # Ok(())
/// # }
/// ```
pub fn open(path: &Path) -> Result<(DecoderConfig, Vec<f32>), ModelError> {
    let file = std::fs::File::open(path).map_err(ModelError::io("read", path))?;
    read(BufReader::with_capacity(1 << 16, file), path)
}

/// As [`open`], from any reader; `path` is for error messages only.
///
/// # Errors
/// As [`open`].
pub fn read(reader: impl Read + Seek, path: &Path) -> Result<(DecoderConfig, Vec<f32>), ModelError> {
    let mut file = Container::open(reader, path)?;
    let config = configure(&mut file, path)?;
    let layout = ParameterLayout::new(&config);
    let wanted = wanted(&config, &layout);
    // Every tensor is looked at before memory is asked for: a number costs the
    // file a third of a byte at least.
    for slot in layout.slots() {
        let want = &wanted[&slot.name];
        let missing = || ModelError::MissingTensor { path: path.into(), tensor: want.name.clone() };
        let entry = file.tensors.get(&want.name).ok_or_else(missing)?;
        let mut shape = slot.shape.clone();
        if want.turn == Turn::Transpose {
            shape.reverse();
        }
        if entry.shape != shape {
            let (expected, found) = (format!("shape {shape:?}"), format!("shape {:?}", entry.shape));
            return Err(ModelError::Tensor { path: path.into(), tensor: want.name.clone(), expected, found });
        }
    }
    let known: BTreeSet<&str> = layout.slots().iter().map(|slot| wanted[&slot.name].name.as_str()).collect();
    let extra = |name: &&String| !known.contains(name.as_str()) && *name != ROPE_DIVISORS && *name != OUTPUT;
    if let Some(tensor) = file.tensors.keys().find(extra) {
        return Err(ModelError::ExtraTensor { path: path.into(), tensor: tensor.clone() });
    }
    let mut parameters = vec![0.0f32; layout.len()];
    let mut scratch = vec![];
    for slot in layout.slots() {
        let want = &wanted[&slot.name];
        let entry = file.tensors[&want.name].clone();
        let out = &mut parameters[slot.range.clone()];
        file.read(&entry, out)?;
        check_finite(out, path, &want.name)?;
        want.turn.back(&entry.shape, out, &mut scratch);
        check_finite(out, path, &want.name)?;
    }
    Ok((config, parameters))
}

fn configure<R: Read + Seek>(file: &mut Container<R>, path: &Path) -> Result<DecoderConfig, ModelError> {
    model::family(&file.metadata, path)?;
    if let Some(parts) =
        file.metadata.get("split.count").filter(|&n| ![Value::Integer(0), Value::Integer(1)].contains(n))
    {
        return Err(ModelError::Config {
            path: path.into(),
            field: "split.count",
            expected: "a file that is whole (llama-gguf-split --merge joins the parts)".into(),
            found: format!("{parts:?}"),
        });
    }
    let missing = || ModelError::MissingTensor { path: path.into(), tensor: EMBEDDING.into() };
    let embedding = file.tensors.get(EMBEDDING).cloned().ok_or_else(missing)?;
    let [vocab_size, _] = embedding.shape[..] else {
        let (expected, found) = ("two dimensions".into(), format!("{}", embedding.shape.len()));
        return Err(ModelError::Tensor { path: path.into(), tensor: EMBEDDING.into(), expected, found });
    };
    let tied = match file.tensors.get(OUTPUT).cloned() {
        None => true,
        Some(output) => {
            output.shape == embedding.shape && output.kind == embedding.kind && file.same_bytes(&embedding, &output)?
        }
    };
    let mut divisors = vec![];
    if let Some(entry) = file.tensors.get(ROPE_DIVISORS).cloned() {
        if entry.len() > 1 << 16 {
            let (expected, found) = ("one number per pair of a head".into(), format!("{}", entry.len()));
            return Err(ModelError::Tensor { path: path.into(), tensor: ROPE_DIVISORS.into(), expected, found });
        }
        divisors.resize(entry.len(), 0.0);
        file.read(&entry, &mut divisors)?;
        check_finite(&divisors, path, ROPE_DIVISORS)?;
    }
    let tables = model::Tables {
        vocab_size,
        tied,
        n_tensors: file.tensors.len(),
        has: &|name| file.tensors.contains_key(name),
        rope_divisors: (!divisors.is_empty()).then_some(&divisors[..]),
    };
    model::config(&file.metadata, path, &tables)
}

/// What the converter did to a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Nothing,
    /// `[in, out]` became `[out, in]`.
    Transpose,
    /// Rows `(half, pair)` of each of so many heads became `(pair, half)`.
    Pairs {
        heads: usize,
    },
    /// Rows `(head, q|k|v)` became `(q|k|v, head)`.
    Blocks {
        heads: usize,
    },
    /// 1 was added.
    PlusOne,
}

impl Turn {
    /// Undoes it; `shape` is that of the file.
    fn back(self, shape: &[usize], out: &mut [f32], scratch: &mut Vec<f32>) {
        let rows = shape[0];
        let width = out.len() / rows;
        let mut permute = |from: &dyn Fn(usize) -> usize| {
            scratch.clear();
            scratch.extend_from_slice(out);
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let from = from(row);
                out.copy_from_slice(&scratch[from * width..(from + 1) * width]);
            }
        };
        match self {
            Self::Nothing => {}
            Self::PlusOne => out.iter_mut().for_each(|x| *x -= 1.0),
            Self::Pairs { heads } => {
                let head = rows / heads;
                permute(&|row| {
                    let (h, within) = (row / head, row % head);
                    h * head + 2 * (within % (head / 2)) + within / (head / 2)
                });
            }
            Self::Blocks { heads } => {
                let head = rows / (3 * heads);
                permute(&|row| {
                    let (h, part, within) = (row / (3 * head), row / head % 3, row % head);
                    (part * heads + h) * head + within
                });
            }
            Self::Transpose => {
                scratch.clear();
                scratch.extend_from_slice(out);
                for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (o, out) in out.iter_mut().enumerate() {
                        *out = scratch[o * width + i];
                    }
                }
            }
        }
    }
}

/// A tensor of the file.
struct Want {
    name: String,
    turn: Turn,
}

/// Where the numbers of each slot stand in the file, by the slot's name.
fn wanted(config: &DecoderConfig, layout: &ParameterLayout) -> BTreeMap<String, Want> {
    let gain = if config.arch.norm == NormKind::RmsPlusOne { Turn::PlusOne } else { Turn::Nothing };
    let mut map = Map { layout, wanted: BTreeMap::new(), gain };
    map.slot(&layout.embedding, EMBEDDING.into(), Turn::Nothing);
    if let Some(positions) = &layout.positions {
        map.slot(positions, "position_embd.weight".into(), Turn::Nothing);
    }
    for (l, layer) in layout.layers.iter().enumerate() {
        let name = |part: &str| format!("blk.{l}.{part}");
        let norms = [
            (&layer.attn_norm, "attn_norm"),
            (&layer.q_norm, "attn_q_norm"),
            (&layer.k_norm, "attn_k_norm"),
            (&layer.attn_post, "post_attention_norm"),
            (&layer.mlp_norm, "ffn_norm"),
            (&layer.mlp_post, "post_ffw_norm"),
        ];
        for (norm, part) in norms {
            map.norm(norm.as_ref(), &name(part));
        }
        let (q, kv) = (config.num_attention_heads, config.num_key_value_heads);
        let pairs = |heads| if config.arch.family == Family::Llama { Turn::Pairs { heads } } else { Turn::Nothing };
        if layer.qkv.parts.len() == 1 {
            let blocks = config.arch.qkv_order == QkvOrder::Interleaved;
            map.linear(
                &layer.qkv,
                0,
                &name("attn_qkv"),
                if blocks { Turn::Blocks { heads: q } } else { Turn::Nothing },
            );
        } else {
            map.linear(&layer.qkv, 0, &name("attn_q"), pairs(q));
            map.linear(&layer.qkv, 1, &name("attn_k"), pairs(kv));
            map.linear(&layer.qkv, 2, &name("attn_v"), Turn::Nothing);
        }
        map.linear(&layer.o, 0, &name("attn_output"), Turn::Nothing);
        if layer.up.parts.len() == 1 {
            map.linear(&layer.up, 0, &name("ffn_up"), Turn::Nothing);
        } else {
            map.linear(&layer.up, 0, &name("ffn_gate"), Turn::Nothing);
            map.linear(&layer.up, 1, &name("ffn_up"), Turn::Nothing);
        }
        map.linear(&layer.down, 0, &name("ffn_down"), Turn::Nothing);
    }
    map.norm(layout.norm.as_ref(), "output_norm");
    if !config.tie_word_embeddings {
        map.linear(&layout.head, 0, "output", Turn::Nothing);
    }
    map.wanted
}

struct Map<'a> {
    layout: &'a ParameterLayout,
    wanted: BTreeMap<String, Want>,
    /// What happened to gains.
    gain: Turn,
}

impl Map<'_> {
    fn slot(&mut self, range: &Range<usize>, name: String, turn: Turn) {
        let slot = self.layout.slots().iter().find(|slot| slot.range == *range).expect("places are those of slots");
        self.wanted.insert(slot.name.clone(), Want { name, turn });
    }

    fn norm(&mut self, norm: Option<&NormLayout>, name: &str) {
        let Some(norm) = norm else { return };
        self.wanted.insert(format!("{}.weight", norm.name), Want { name: format!("{name}.weight"), turn: self.gain });
        let bias = Want { name: format!("{name}.bias"), turn: Turn::Nothing };
        self.wanted.insert(format!("{}.bias", norm.name), bias);
    }

    fn linear(&mut self, linear: &LinearLayout, part: usize, name: &str, turn: Turn) {
        let part = &linear.parts[part].name;
        let weight = if linear.transposed { Turn::Transpose } else { turn };
        self.wanted.insert(format!("{part}.weight"), Want { name: format!("{name}.weight"), turn: weight });
        self.wanted.insert(format!("{part}.bias"), Want { name: format!("{name}.bias"), turn });
    }
}
