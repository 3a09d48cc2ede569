//! Under which names a family's tensors occur in files, and which tensors may stand there without being weights.

use std::collections::BTreeMap;

use crate::arch::Family;
use crate::layout::ParameterLayout;

/// What a tensor of a file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Fills this slot of the layout.
    Slot(usize),
    /// The output layer of a tied model, which must equal the embedding.
    TiedHead,
    /// A buffer that follows from the configuration, or a part of a model that is not run here.
    Ignored,
    /// Belongs to another configuration.
    Unknown,
}

/// Finds the use of names in files of one family.
pub(super) struct Names<'a> {
    family: Family,
    slots: BTreeMap<&'a str, usize>,
    /// The output layer's name if it is the embedding.
    tied_head: Option<String>,
}

impl<'a> Names<'a> {
    pub fn new(family: Family, layout: &'a ParameterLayout) -> Self {
        let slots = layout.slots().iter().enumerate().map(|(i, slot)| (slot.name.as_str(), i)).collect();
        let is_tied = family != Family::Bert && layout.head.weight == layout.embedding;
        let tied_head = is_tied.then(|| format!("{}.weight", layout.head.parts[0].name));
        Self { family, slots, tied_head }
    }

    pub fn usage(&self, name: &str) -> Use {
        for name in spellings(self.family, name) {
            if let Some(&slot) = self.slots.get(name.as_str()) {
                return Use::Slot(slot);
            }
            if self.tied_head.as_deref() == Some(name.as_str()) {
                return Use::TiedHead;
            }
            if is_ignored(self.family, &name) {
                return Use::Ignored;
            }
        }
        Use::Unknown
    }
}

/// What `name` may stand for, as written first: files of base models lack their prefix, files of bigger models have one
/// more, and files from TensorFlow's time say gamma and beta.
fn spellings(family: Family, name: &str) -> Vec<String> {
    let mut found = vec![name.to_owned()];
    match family {
        Family::Gpt2 => found.push(format!("transformer.{name}")),
        // Newer versions of `transformers` have another name for the output layer in memory.
        Family::GptNeox if name == "lm_head.weight" => found.push("embed_out.weight".into()),
        Family::GptNeox => found.push(format!("gpt_neox.{name}")),
        Family::Bert => {
            let name = name.strip_prefix("bert.").unwrap_or(name);
            found.push(name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"));
        }
        _ => {
            if let (Family::Gemma3, Some(text)) =
                (family, name.strip_prefix("model.language_model.").or(name.strip_prefix("language_model.")))
            {
                found.extend([text.to_owned(), format!("model.{text}")]);
            }
            found.push(format!("model.{name}"));
        }
    }
    found
}

fn is_ignored(family: Family, name: &str) -> bool {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
    ends(&[".rotary_emb.inv_freq"])
        || match family {
            // Causal masks that old versions saved.
            Family::Gpt2 => ends(&[".attn.bias", ".attn.masked_bias"]),
            Family::GptNeox => ends(&[".attention.bias", ".attention.masked_bias"]),
            // Heads that hidden states do not pass through.
            Family::Bert => {
                starts(&["pooler.", "cls."]) || ends(&["embeddings.position_ids", "embeddings.token_type_ids"])
            }
            Family::Gemma3 => starts(&[
                "vision_tower.",
                "multi_modal_projector.",
                "model.vision_tower.",
                "model.multi_modal_projector.",
            ]),
            _ => false,
        }
}

/// The family whose files have such names, if it is another one than `family`.
pub(super) fn looks_like<'n>(family: Family, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'static str> {
    let has = |part: &str| names.clone().any(|name| name.contains(part));
    let q_norm = has(".self_attn.q_norm.");
    let guess = if has(".lora_A.") {
        "a PEFT adapter, not a model"
    } else if has(".experts.") || has("block_sparse_moe") {
        "a mixture of experts, which is not supported"
    } else if has(".attn.c_attn.") {
        "gpt2"
    } else if has(".attention.query_key_value.") {
        "gpt_neox"
    } else if has(".attention.self.query.") {
        "bert"
    } else if has(".pre_feedforward_layernorm.") {
        if q_norm { "gemma3_text" } else { "gemma2" }
    } else if q_norm {
        if has(".input_layernorm.") { "qwen3" } else { "olmo2" }
    } else if has(".self_attn.q_proj.bias") && !has(".self_attn.o_proj.bias") {
        "qwen2"
    } else if has(".self_attn.q_proj.") {
        "llama or mistral"
    } else {
        return None;
    };
    let is_own = match family {
        Family::Llama | Family::Mistral => guess == "llama or mistral",
        Family::Qwen2 => guess == "qwen2",
        Family::Qwen3 => guess == "qwen3",
        Family::Olmo2 => guess == "olmo2",
        Family::Gpt2 => guess == "gpt2",
        Family::GptNeox => guess == "gpt_neox",
        Family::Gemma2 => guess == "gemma2",
        Family::Gemma3 => guess == "gemma3_text",
        Family::Bert => guess == "bert",
    };
    (!is_own).then_some(guess)
}
