//! The decoder: weights, and what can be asked of them for sequences of tokens.
//!
//! In the exact route one sequence at a time walks through single-threaded products of fixed shapes; in the packed route
//! sequences share products whose rows do not feel each other (`products`). Either way the bytes of a result depend on the
//! sequence and the weights, never on threads or on the company of other sequences.

mod backward;
mod forward;
mod loss;
mod products;
mod workspace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, RowType};
use ascribe_linalg::Stream;
use ascribe_linalg::elementwise::{Act, add_assign, cross_entropy};
use ndarray::{Array2, ArrayViewMut1, Axis};
use rayon::prelude::*;

pub(crate) use backward::{Module, Norm, NormGradient, Rows, Sink};
pub(crate) use forward::{Pass, head_pieces, packs, put_columns, some, take_columns};
pub use loss::Loss;
pub(crate) use loss::Objective;
pub(crate) use products::PackedWeights;
pub(crate) use workspace::{LayerTape, Pool, Span, Workspace};

use crate::arch::{Activation, NormKind, QkvOrder};
use crate::config::{CONFIG_FILE, DecoderConfig};
use crate::error::ModelError;
use crate::layout::{LinearLayout, NormLayout, ParameterLayout};
use crate::ops::attention::{Attention, Heads};
use crate::ops::linear::{Fan, Linear};
use crate::ops::norm::NormOp;
use crate::ops::rope::{Places, Rotary};
use crate::weights::{self, Tensor};

/// A sequence and the part of it whose prediction counts.
///
/// The loss is the *sum* over `t` in `max(1, loss_from)..len` of `−ln p(tokens[t] | tokens[..t])`, in nats.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Token ids; 1 to `max_position_embeddings` of them.
    pub tokens: &'a [u32],
    /// First position whose token counts (a prompt before it is context only). 0 and 1 mean all that can be predicted.
    pub loss_from: usize,
}

impl<'a> Sequence<'a> {
    /// A sequence of which every prediction counts.
    pub fn whole(tokens: &'a [u32]) -> Self {
        Self { tokens, loss_from: 0 }
    }

    /// Positions whose logits count: `[first, len − 1)`; the prediction for token t is made at position t − 1.
    pub(crate) fn predicting(&self) -> std::ops::Range<usize> {
        let last = self.tokens.len().saturating_sub(1);
        (self.loss_from.max(1) - 1).min(last)..last
    }

    /// Number of predictions in the loss.
    pub fn n_predictions(&self) -> usize {
        self.predicting().len()
    }
}

/// A transformer of any of the families of [`Arch`](crate::Arch), with f32 weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    pub(crate) layout: ParameterLayout,
    pub(crate) parameters: Vec<f32>,
    pub(crate) rotary: Rotary,
    pool: Pool,
    file_digest: Option<Digest>,
}

impl Decoder {
    /// Opens the model folder `dir`: `config.json` with `model.safetensors`, or with the shards that
    /// `model.safetensors.index.json` names, or else the only `.gguf` file there. `dir` may also be a `.gguf` file.
    ///
    /// # Errors
    /// No weights in any of these forms; else as [`Decoder::load`].
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = match dir.extension() {
            Some(extension) if extension == "gguf" && dir.is_file() => dir.to_path_buf(),
            _ => match weights::find(dir)? {
                weights::Source::Safetensors(file) => return Self::load(dir, file),
                weights::Source::Gguf(file) => dir.join(file),
            },
        };
        let (config, parameters) = crate::gguf::open(&path)?;
        let mut decoder = Self::from_parameters(config, parameters)?;
        decoder.file_digest = Some(weights::digest_of_file(&path)?);
        Ok(decoder)
    }

    /// Opens `config.json` and `weights_file` (safetensors, f32, bf16 or f16; or the `.json` index of several) of the
    /// folder `dir`.
    ///
    /// Memory: the weights in f32 and a megabyte; files are read once, front to back.
    ///
    /// # Errors
    /// A missing or foreign file, an unsupported configuration, a missing, extra, misshapen or non-finite tensor: each
    /// names the file, the field or tensor, what was expected and what was found.
    pub fn load(dir: &Path, weights_file: &str) -> Result<Self, ModelError> {
        let config = DecoderConfig::from_file(dir)?;
        let layout = ParameterLayout::new(&config);
        let (parameters, digest) = weights::load(dir, weights_file, &config, &layout)?;
        let mut decoder = Self::from_parts(config, layout, parameters);
        decoder.file_digest = Some(digest);
        Ok(decoder)
    }

    /// Fresh weights: normal with `initializer_range`, the two projections into the residual stream divided by `√(2L)`,
    /// norms that change nothing, biases 0. Each tensor draws the stream `init/{name}` of `seed`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration contradicts itself.
    pub fn init(config: DecoderConfig, seed: u64) -> Result<Self, ModelError> {
        config.validate()?;
        let layout = ParameterLayout::new(&config);
        let mut parameters = vec![0.0f32; layout.len()];
        let gain = if config.arch.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
        for slot in layout.slots().iter().filter(|slot| !slot.is_matrix() && !slot.name.ends_with(".bias")) {
            parameters[slot.range.clone()].fill(gain);
        }
        let residual = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
        for slot in layout.slots().iter().filter(|slot| slot.is_matrix()) {
            let into_residual =
                layout.layers.iter().any(|layer| layer.o.weight == slot.range || layer.down.weight == slot.range);
            let std = config.initializer_range * if into_residual { residual } else { 1.0 };
            let mut stream = Stream::new(seed, &format!("init/{}", slot.name));
            parameters[slot.range.clone()].fill_with(|| (stream.normal() * std) as f32);
        }
        Ok(Self::from_parts(config, layout, parameters))
    }

    /// A decoder around given weights (flat, in the order of [`ParameterLayout`]).
    ///
    /// # Errors
    /// A configuration that contradicts itself, another number of weights, a weight that is not finite.
    pub fn from_parameters(config: DecoderConfig, parameters: Vec<f32>) -> Result<Self, ModelError> {
        config.validate()?;
        let layout = ParameterLayout::new(&config);
        if parameters.len() != layout.len() {
            let (expected, found) = (layout.len().to_string(), parameters.len().to_string());
            return Err(ModelError::Mismatch { what: "number of weights", expected, found });
        }
        for slot in layout.slots() {
            weights::check_finite(&parameters[slot.range.clone()], &PathBuf::from("<memory>"), &slot.name)?;
        }
        Ok(Self::from_parts(config, layout, parameters))
    }

    fn from_parts(config: DecoderConfig, layout: ParameterLayout, parameters: Vec<f32>) -> Self {
        let rotary = Rotary::of(&config);
        Self { config, layout, parameters, rotary, pool: Pool::default(), file_digest: None }
    }

    /// Writes the weights to `path` (safetensors, Hugging Face names), atomically; returns the SHA-256 of the file.
    ///
    /// `metadata` is kept beside them (`format: pt` is added, `transformers` asks for it). Equal weights and metadata give
    /// equal bytes.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::NotFinite`] if a weight does not fit the narrower type.
    pub fn save(
        &self,
        path: &Path,
        row_type: RowType,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Digest, ModelError> {
        if row_type == RowType::F16 {
            for slot in self.layout.slots() {
                let rounded: Vec<f32> =
                    self.parameters[slot.range.clone()].iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
                weights::check_finite(&rounded, path, &slot.name)?;
            }
        }
        let mut metadata = metadata.clone();
        metadata.insert("format".into(), "pt".into());
        let tensors = Tensor::of_layout(&self.layout, &self.parameters, "");
        weights::write_atomically(path, &weights::to_bytes(&tensors, row_type, &metadata))
    }

    /// Writes `config.json` into the folder `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save_config(&self, dir: &Path) -> Result<Digest, ModelError> {
        let mut text = format!("{:#}", self.config.to_json());
        text.push('\n');
        weights::write_atomically(&dir.join(CONFIG_FILE), text.as_bytes())
    }

    /// What the weights are: SHA-256 of the file they were loaded from (of shards, the SHA-256 of their SHA-256s in the
    /// order of their names), or, for weights that were never a file, of their
    /// f32 little-endian bytes in the order of [`ParameterLayout`].
    pub fn weights_digest(&self) -> Digest {
        self.file_digest.unwrap_or_else(|| {
            let bytes: Vec<u8> = self.parameters.iter().flat_map(|x| x.to_le_bytes()).collect();
            Digest::of(&bytes)
        })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Order of the parameters in [`Decoder::parameters`] and in flat gradients.
    pub fn parameter_layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// All weights, flat.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// Writable weights; whatever digest the decoder had is forgotten.
    pub(crate) fn parameters_mut(&mut self) -> &mut [f32] {
        self.file_digest = None;
        &mut self.parameters
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn heads(&self) -> Heads {
        let c = &self.config;
        Heads { queries: c.num_attention_heads, keys: c.num_key_value_heads, width: c.head_dim }
    }

    /// Fan of a fused module.
    pub(crate) fn fan(&self, module: Module) -> Fan {
        let c = &self.config;
        let (input, output) = match module {
            Module::Qkv(_) => (c.hidden_size, c.qkv_width()),
            Module::O(_) => (c.query_width(), c.hidden_size),
            Module::Up(_) => (c.hidden_size, if c.arch.gated { 2 } else { 1 } * c.intermediate_size),
            Module::Down(_) => (c.intermediate_size, c.hidden_size),
            Module::Head => (c.hidden_size, c.vocab_size),
        };
        Fan { input, output }
    }

    /// Places of a fused module's weight and bias.
    pub(crate) fn linear_layout(&self, module: Module) -> &LinearLayout {
        let layers = &self.layout.layers;
        match module {
            Module::Qkv(l) => &layers[l].qkv,
            Module::O(l) => &layers[l].o,
            Module::Up(l) => &layers[l].up,
            Module::Down(l) => &layers[l].down,
            Module::Head => &self.layout.head,
        }
    }

    /// Places of a norm's parameters.
    ///
    /// # Panics
    /// If the family has no such norm.
    pub(crate) fn norm_layout(&self, norm: Norm) -> &NormLayout {
        let layers = &self.layout.layers;
        let found = match norm {
            Norm::Attn(l) => &layers[l].attn_norm,
            Norm::Query(l) => &layers[l].q_norm,
            Norm::Key(l) => &layers[l].k_norm,
            Norm::AttnPost(l) => &layers[l].attn_post,
            Norm::Mlp(l) => &layers[l].mlp_norm,
            Norm::MlpPost(l) => &layers[l].mlp_post,
            Norm::Out => &self.layout.norm,
        };
        found.as_ref().expect("a pass asks for the norms of its own topology")
    }

    /// Numbers of a linear module.
    pub(crate) fn linear(&self, module: Module) -> Linear<'_> {
        let layout = self.linear_layout(module);
        Linear {
            fan: self.fan(module),
            weight: &self.parameters[layout.weight.clone()],
            bias: layout.bias.clone().map(|bias| &self.parameters[bias]),
            transposed: layout.transposed,
        }
    }

    /// Numbers of a norm.
    pub(crate) fn norm_op(&self, layout: &NormLayout) -> NormOp<'_> {
        NormOp {
            kind: self.config.arch.norm,
            gain: &self.parameters[layout.gain.clone()],
            bias: layout.bias.clone().map_or(&[], |bias| &self.parameters[bias]),
            eps: self.config.rms_norm_eps as f32,
        }
    }

    /// Attention of layer `l`.
    pub(crate) fn attention(&self, l: usize) -> Attention {
        let arch = &self.config.arch;
        let plain = Attention::plain(self.heads());
        Attention {
            order: arch.qkv_order,
            scale: arch.attention_scale.map_or(plain.scale, |scale| scale as f32),
            soft_cap: arch.attention_softcap.map(|cap| cap as f32),
            causal: !arch.is_encoder(),
            window: arch.window(l),
            ..plain
        }
    }

    /// Turns (`sign = 1`) or turns back (`sign = −1`) queries and keys in the fused rows of one sequence.
    pub(crate) fn turn(&self, l: usize, rows: &mut [f32], sign: f32) {
        let Heads { queries, keys, width } = self.heads();
        let (stride, local) = (self.config.qkv_width(), self.config.arch.window(l) != usize::MAX);
        match self.config.arch.qkv_order {
            // Queries and keys are neighbours.
            QkvOrder::Blocked => {
                let places = Places { first: 0, step: width, n_heads: queries + keys };
                self.rotary.turn(local, rows, stride, places, sign);
            }
            QkvOrder::Interleaved => {
                for first in [0, width] {
                    let places = Places { first, step: 3 * width, n_heads: queries };
                    self.rotary.turn(local, rows, stride, places, sign);
                }
            }
        }
    }

    /// Columns of all queries and of all keys in a fused row, for families that norm them.
    pub(crate) fn normed_columns(&self) -> [std::ops::Range<usize>; 2] {
        let (q, k) = (self.config.query_width(), self.config.key_width());
        [0..q, q..q + k]
    }

    /// The feed-forward's non-linearity.
    pub(crate) fn act(&self) -> Act {
        match self.config.arch.activation {
            Activation::Silu => Act::Silu,
            Activation::Gelu => Act::Gelu,
            Activation::GeluTanh => Act::GeluTanh,
            Activation::Relu => Act::Relu,
        }
    }

    /// Checks lengths and token ids of a call's sequences, and that the model predicts at all.
    pub(crate) fn check(&self, sequences: &[Sequence<'_>]) -> Result<(), ModelError> {
        if self.config.arch.is_encoder() {
            let (expected, found) =
                ("a decoder, which predicts tokens", format!("an encoder ({:?})", self.config.arch.family));
            return Err(ModelError::Mismatch { what: "kind of model", expected: expected.into(), found });
        }
        self.check_tokens(sequences)
    }

    /// Checks lengths and token ids.
    pub(crate) fn check_tokens(&self, sequences: &[Sequence<'_>]) -> Result<(), ModelError> {
        let (context, vocabulary) = (self.config.max_position_embeddings, self.config.vocab_size);
        for (sequence, Sequence { tokens, .. }) in sequences.iter().enumerate() {
            if tokens.is_empty() || tokens.len() > context {
                return Err(ModelError::Length { sequence, context, found: tokens.len() });
            }
            if let Some(position) = tokens.iter().position(|&token| token as usize >= vocabulary) {
                return Err(ModelError::Token { sequence, position, vocabulary, found: tokens[position] });
            }
        }
        Ok(())
    }

    /// Nats of every token but the first: entry `t` is `−ln p(tokens[t+1] | tokens[..=t])`, `len − 1` entries.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn token_nll(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let sequence = Sequence::whole(tokens);
        self.check(&[sequence])?;
        Ok(self.pool.with(|ws| self.nll(sequence, ws)))
    }

    /// Summed nats of each sequence's counted part (see [`Sequence`]), in order. Sequences run in parallel; tokens are
    /// summed in f64, in order. Cost: one forward pass.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn losses(&self, sequences: &[Sequence<'_>]) -> Result<Vec<f64>, ModelError> {
        self.check(sequences)?;
        let loss = |&sequence: &Sequence<'_>| {
            self.pool.with(|ws| self.nll(sequence, ws).into_iter().map(f64::from).sum::<f64>())
        };
        Ok(sequences.par_iter().map(loss).collect())
    }

    /// Logits `[T, V]` of one sequence.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.check(&[Sequence::whole(tokens)])?;
        let mut logits = Array2::zeros((tokens.len(), self.config.vocab_size));
        let out = logits.as_slice_mut().expect("a fresh array is contiguous");
        self.pool.with(|ws| {
            self.read(tokens, ws);
            Pass::only_up(self).head_forward(0..tokens.len(), ws, |rows, logits| {
                let width = self.config.vocab_size;
                out[rows.start * width..rows.end * width].copy_from_slice(logits);
            });
        });
        Ok(logits)
    }

    /// Mean over positions of the last hidden state (normed as the family norms it), `[n, d]`: the embedding of each
    /// sequence. Encoders see every token at every position, and every token is of the first type.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn mean_hidden(&self, sequences: &[Sequence<'_>]) -> Result<Array2<f32>, ModelError> {
        self.check_tokens(sequences)?;
        let d = self.config.hidden_size;
        let mut out = Array2::zeros((sequences.len(), d));
        let mean = |(mut row, sequence): (ArrayViewMut1<'_, f32>, &Sequence<'_>)| {
            self.pool.with(|ws| {
                self.read(sequence.tokens, ws);
                let out = row.as_slice_mut().expect("a row of a fresh array is contiguous");
                ws.hidden(sequence.tokens.len(), d).chunks_exact(d).for_each(|hidden| add_assign(out, hidden));
                ascribe_linalg::elementwise::scale(out, 1.0 / sequence.tokens.len() as f32);
            });
        };
        out.axis_iter_mut(Axis(0)).into_par_iter().zip(sequences).for_each(mean);
        Ok(out)
    }

    /// Last hidden states `[T, d]` of one sequence, normed as the family norms them.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn hidden_states(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.check_tokens(&[Sequence::whole(tokens)])?;
        let d = self.config.hidden_size;
        let hidden = self.pool.with(|ws| {
            self.read(tokens, ws);
            ws.hidden(tokens.len(), d).to_vec()
        });
        Ok(Array2::from_shape_vec((tokens.len(), d), hidden).expect("as many numbers as the shape says"))
    }

    /// Forward pass over one sequence that no way back follows, in the exact route.
    fn read(&self, tokens: &[u32], ws: &mut Workspace) {
        Pass::only_up(self).forward(std::iter::once((0, tokens)), ws);
    }

    /// Forward pass over one sequence, in the exact route.
    pub(crate) fn forward(&self, tokens: &[u32], ws: &mut Workspace) {
        Pass::exact(self).forward(std::iter::once((0, tokens)), ws);
    }

    /// Forward pass and losses of the counted positions.
    pub(crate) fn nll(&self, sequence: Sequence<'_>, ws: &mut Workspace) -> Vec<f32> {
        let predicting = sequence.predicting();
        let mut nll = vec![0.0; predicting.len()];
        if predicting.is_empty() {
            return nll;
        }
        self.read(sequence.tokens, ws);
        let first = predicting.start;
        Pass::only_up(self).head_forward(predicting, ws, |rows, logits| {
            let targets = &sequence.tokens[rows.start + 1..=rows.end];
            cross_entropy(logits, self.config.vocab_size, targets, &mut nll[rows.start - first..rows.end - first]);
        });
        nll
    }
}

#[cfg(test)]
pub(crate) mod tests;
