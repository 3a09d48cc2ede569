//! One pass over a padded batch: up to the loss and down to the lowest tap, on any device.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{D, DType, Device, Result, Tensor};

use super::attention::{Attention, Turn};
use super::functions::{self, Gate, product};
use super::tape::{Node, Tape};
use super::taps::{Collected, Taps};
use crate::arch::{NormKind, QkNorm, Topology};
use crate::decoder::{Decoder, Module, Norm, Sequence};
use crate::error::ModelError;
use crate::graph::net::unit_shape;
use crate::graph::tables;
use crate::layout::{LinearLayout, NormLayout};

/// Numbers of logits at a time, f32: half a GiB.
const MAX_LOGITS: usize = 1 << 27;

/// Masks that are kept.
const MAX_MASKS: usize = 8;

/// `y = x·W + b`.
struct Linear {
    /// `[I, O]`, a turned view where the file keeps `[O, I]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

struct Layer {
    qkv: Linear,
    o: Linear,
    up: Linear,
    down: Linear,
    /// Cosines and sines of all positions, f32.
    turn: Option<(Tensor, Tensor)>,
}

/// Frozen weights on the device.
pub(super) struct Model<'m> {
    decoder: &'m Decoder,
    pub device: Device,
    pub dtype: DType,
    embedding: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    norms: Vec<(Norm, functions::Norm)>,
    head: Linear,
    /// By window and length.
    masks: Mutex<BTreeMap<(usize, usize), Tensor>>,
}

/// Sequences, padded to one length.
pub(super) struct Batch {
    n_sequences: usize,
    t: usize,
    /// Tokens and positions, `[B·T]`.
    ids: Tensor,
    places: Tensor,
    /// Rows whose logits count, and their targets.
    rows: Vec<u32>,
    targets: Vec<u32>,
    /// For every row its place among the counted ones, or their number.
    counted: Vec<u32>,
    /// Counted rows per sequence.
    per_sequence: Vec<usize>,
}

/// Length that a batch of this longest sequence is padded to: products of bf16 want rows of 16 bytes.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

impl Batch {
    pub fn new(sequences: &[Sequence<'_>], n_positions: usize, device: &Device) -> Result<Self> {
        let t = padded(sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(1));
        let b = sequences.len();
        let (mut ids, mut rows, mut targets, mut per_sequence) = (vec![0u32; b * t], vec![], vec![], vec![]);
        for (i, sequence) in sequences.iter().enumerate() {
            ids[i * t..i * t + sequence.tokens.len()].copy_from_slice(sequence.tokens);
            let predicting = sequence.predicting();
            per_sequence.push(predicting.len());
            for at in predicting {
                rows.push((i * t + at) as u32);
                targets.push(sequence.tokens[at + 1]);
            }
        }
        let mut counted = vec![rows.len() as u32; b * t];
        rows.iter().zip(0..).for_each(|(&row, place)| counted[row as usize] = place);
        // Padding may reach past the last learned position; nothing comes of it.
        let places: Vec<u32> = (0..b * t).map(|at| (at % t).min(n_positions - 1) as u32).collect();
        let (ids, places) = (Tensor::from_vec(ids, b * t, device)?, Tensor::from_vec(places, b * t, device)?);
        Ok(Self { n_sequences: b, t, ids, places, rows, targets, counted, per_sequence })
    }
}

impl<'m> Model<'m> {
    pub fn new(decoder: &'m Decoder, device: Device, dtype: DType) -> Result<Self> {
        let (config, layout) = (decoder.config(), decoder.parameter_layout());
        let unit = |range: &std::ops::Range<usize>, dtype: DType| -> Result<Tensor> {
            let numbers =
                Tensor::from_slice(&decoder.parameters()[range.clone()], unit_shape(layout, range), &Device::Cpu)?;
            numbers.to_dtype(dtype)?.to_device(&device)
        };
        let linear = |linear: &LinearLayout| -> Result<Linear> {
            let weight = unit(&linear.weight, dtype)?;
            let weight = if linear.transposed { weight } else { weight.t()? };
            Ok(Linear { weight, bias: linear.bias.as_ref().map(|bias| unit(bias, dtype)).transpose()? })
        };
        let norm = |norm: &NormLayout| -> Result<functions::Norm> {
            let plus_one = if config.arch.norm == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
            let gain = unit(&norm.gain, DType::F32)?.affine(1.0, plus_one)?.to_dtype(dtype)?;
            let bias = norm.bias.as_ref().map(|bias| unit(bias, dtype)).transpose()?;
            let centred = config.arch.norm == NormKind::Layer;
            Ok(functions::Norm { gain, bias, centred, eps: config.rms_norm_eps })
        };
        let n = padded(config.max_position_embeddings);
        let turn = |l: usize| -> Result<Option<(Tensor, Tensor)>> {
            let Some(angles) = tables::angles(config, l, n) else { return Ok(None) };
            let table =
                |numbers: Vec<f32>| Tensor::from_vec(numbers, (n, angles.half), &Device::Cpu)?.to_device(&device);
            Ok(Some((table(angles.cos)?, table(angles.sin)?)))
        };
        let (mut layers, mut norms) = (vec![], vec![]);
        for (l, w) in layout.layers.iter().enumerate() {
            let all = [
                (Norm::Attn(l), &w.attn_norm),
                (Norm::Query(l), &w.q_norm),
                (Norm::Key(l), &w.k_norm),
                (Norm::AttnPost(l), &w.attn_post),
                (Norm::Mlp(l), &w.mlp_norm),
                (Norm::MlpPost(l), &w.mlp_post),
            ];
            for (name, place) in all.into_iter().filter_map(|(name, place)| Some((name, place.as_ref()?))) {
                norms.push((name, norm(place)?));
            }
            let turn = turn(l)?;
            let [qkv, o, up, down] = [&w.qkv, &w.o, &w.up, &w.down].map(linear);
            layers.push(Layer { qkv: qkv?, o: o?, up: up?, down: down?, turn });
        }
        if let Some(place) = &layout.norm {
            norms.push((Norm::Out, norm(place)?));
        }
        let embedding = unit(&layout.embedding, dtype)?;
        let head = if layout.head.weight == layout.embedding {
            Linear { weight: embedding.t()?, bias: None }
        } else {
            linear(&layout.head)?
        };
        let positions = layout.positions.as_ref().map(|range| unit(range, dtype)).transpose()?;
        Ok(Self { decoder, device, dtype, embedding, positions, layers, norms, head, masks: Mutex::default() })
    }

    fn norm(&self, norm: Norm) -> Option<&functions::Norm> {
        self.norms.iter().find(|(name, _)| *name == norm).map(|(_, norm)| norm)
    }

    fn mask(&self, l: usize, t: usize) -> Result<Tensor> {
        let config = self.decoder.config();
        // A window longer than the batch hides nothing.
        let key = (config.arch.window(l).min(t), t);
        let mut masks = self.masks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mask) = masks.get(&key) {
            return Ok(mask.clone());
        }
        let numbers = tables::mask(config, l, t).unwrap_or_else(|| vec![0.0; t * t]);
        let mask = Tensor::from_vec(numbers, (t, t), &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        if masks.len() >= MAX_MASKS {
            masks.clear();
        }
        masks.insert(key, mask.clone());
        Ok(mask)
    }

    /// Rows `[B, dim]` (f32, on the device) and summed losses of a batch in which every sequence predicts something.
    pub fn rows(&self, batch: &Batch, taps: &Taps) -> std::result::Result<(Tensor, Vec<f64>), ModelError> {
        let collected = Collected::new(batch.n_sequences);
        let nll = {
            let mut pass = Pass { model: self, taps, batch, collected: &collected, tape: Tape::default() };
            let hidden = pass.up()?;
            let (nll, d_hidden) = pass.head(&hidden)?;
            if let Some(d_hidden) = d_hidden {
                pass.tape.backward(&hidden, d_hidden)?;
            }
            nll
        };
        let rows = collected.rows(taps)?;
        let nll = nll.to_vec1::<f32>()?;
        let mut rest = &nll[..];
        let sum = |&n: &usize| {
            let (own, others) = rest.split_at(n);
            rest = others;
            own.iter().map(|&nats| f64::from(nats)).sum()
        };
        Ok((rows, batch.per_sequence.iter().map(sum).collect()))
    }
}

/// A pass under way.
struct Pass<'a, 'm> {
    model: &'a Model<'m>,
    taps: &'a Taps,
    batch: &'a Batch,
    collected: &'a Collected,
    tape: Tape<'a>,
}

impl<'a> Pass<'a, '_> {
    /// Embedding to final hidden states.
    fn up(&mut self) -> Result<Node> {
        let mut x = self.embed()?;
        for l in 0..self.model.layers.len() {
            x = self.layer(l, &x)?;
        }
        self.norm(Norm::Out, &x)
    }

    fn embed(&mut self) -> Result<Node> {
        let (batch, taps, collected) = (self.batch, self.taps, self.collected);
        let scale = self.model.decoder.config().arch.embedding_scale.unwrap_or(1.0);
        let mut x = self.model.embedding.index_select(&batch.ids, 0)?;
        if scale != 1.0 {
            x = x.affine(scale, 0.0)?;
        }
        if let Some(positions) = &self.model.positions {
            x = (x + positions.index_select(&batch.places, 0)?)?;
        }
        let wanted = taps.embedding.is_some() || taps.positions.is_some();
        Ok(self.tape.push(x, wanted, move |d| {
            if let Some(table) = &taps.embedding {
                // What is tracked is the table, not the scaled rows.
                let d = if scale == 1.0 { d.clone() } else { d.affine(scale, 0.0)? };
                collected.table(table, &batch.ids, &d)?;
            }
            if let Some(table) = &taps.positions {
                collected.table(table, &batch.places, &d)?;
            }
            Ok(vec![])
        }))
    }

    fn layer(&mut self, l: usize, x: &Node) -> Result<Node> {
        match self.model.decoder.config().arch.topology {
            Topology::Parallel => {
                let h = self.norm(Norm::Attn(l), x)?;
                let mixed = self.attention(l, &h)?;
                let h = self.norm(Norm::Mlp(l), x)?;
                let out = self.feed_forward(l, &h)?;
                let y = self.tape.add(x, &mixed)?;
                self.tape.add(&y, &out)
            }
            // A norm that a topology lacks changes nothing. Encoders have no loss and never come here.
            Topology::Pre | Topology::Post | Topology::Sandwich | Topology::Encoder => {
                let h = self.norm(Norm::Attn(l), x)?;
                let mixed = self.attention(l, &h)?;
                let mixed = self.norm(Norm::AttnPost(l), &mixed)?;
                let y = self.tape.add(x, &mixed)?;
                let h = self.norm(Norm::Mlp(l), &y)?;
                let out = self.feed_forward(l, &h)?;
                let out = self.norm(Norm::MlpPost(l), &out)?;
                self.tape.add(&y, &out)
            }
        }
    }

    fn norm(&mut self, name: Norm, x: &Node) -> Result<Node> {
        let Some(norm) = self.model.norm(name) else { return Ok(x.clone()) };
        let (tap, collected, id, below) = (self.taps.norm(name), self.collected, x.id(), x.wanted);
        let input = x.value.clone();
        Ok(self.tape.push(norm.forward(&x.value)?, below || tap.is_some(), move |d| {
            let (d_x, d_gain) = norm.backward(&input, &d)?;
            tap_norm(collected, tap, &d_gain, &d)?;
            Ok(if below { vec![(id, d_x)] } else { vec![] })
        }))
    }

    fn linear(&mut self, module: Module, linear: &'a Linear, x: &Node) -> Result<Node> {
        let mut y = product(&x.value, &linear.weight)?;
        if let Some(bias) = &linear.bias {
            y = y.broadcast_add(bias)?;
        }
        let site = self.taps.site(module);
        let px = site.map(|site| site.input(&x.value)).transpose()?.flatten();
        let (collected, id, below) = (self.collected, x.id(), x.wanted);
        Ok(self.tape.push(y, below || site.is_some(), move |d| {
            if let Some(site) = site {
                collected.site(site, px.as_ref(), site.output(&d)?.as_ref())?;
                collected.biases(site, &d)?;
            }
            Ok(if below { vec![(id, product(&d, &linear.weight.t()?)?)] } else { vec![] })
        }))
    }

    fn attention(&mut self, l: usize, x: &Node) -> Result<Node> {
        let layer = &self.model.layers[l];
        let qkv = self.linear(Module::Qkv(l), &layer.qkv, x)?;
        let (config, Batch { n_sequences, t, .. }) = (self.model.decoder.config(), self.batch);
        let turn = match &layer.turn {
            Some((cos, sin)) => Some(Turn { cos: cos.narrow(0, 0, *t)?, sin: sin.narrow(0, 0, *t)? }),
            None => None,
        };
        let attention = Attention {
            n_sequences: *n_sequences,
            t: *t,
            n_keys: config.num_key_value_heads,
            group: config.num_attention_heads / config.num_key_value_heads,
            width: config.head_dim,
            order: config.arch.qkv_order,
            qk_norm: config.arch.qk_norm,
            norms: match config.arch.qk_norm {
                QkNorm::None => None,
                _ => self.model.norm(Norm::Query(l)).zip(self.model.norm(Norm::Key(l))).map(<[_; 2]>::from),
            },
            turn,
            scale: config.arch.attention_scale.unwrap_or(1.0 / (config.head_dim as f64).sqrt()),
            cap: config.arch.attention_softcap,
            mask: self.model.mask(l, *t)?,
        };
        let (mixed, saved) = attention.forward(&qkv.value)?;
        let (collected, id) = (self.collected, qkv.id());
        let taps = [self.taps.norm(Norm::Query(l)), self.taps.norm(Norm::Key(l))];
        // Gains of queries and keys are reached even if nothing below is.
        let wanted = qkv.wanted || taps.iter().any(Option::is_some);
        let below = qkv.wanted;
        let mixed = self.tape.push(mixed, wanted, move |d| {
            let (d_qkv, norms) = attention.backward(saved, &d)?;
            for (tap, (d_gain, d)) in taps.into_iter().zip(norms.into_iter().flatten()) {
                tap_norm(collected, tap, &d_gain, &d)?;
            }
            Ok(if below { vec![(id, d_qkv)] } else { vec![] })
        });
        self.linear(Module::O(l), &layer.o, &mixed)
    }

    fn feed_forward(&mut self, l: usize, x: &Node) -> Result<Node> {
        let (layer, config) = (&self.model.layers[l], self.model.decoder.config());
        let up = self.linear(Module::Up(l), &layer.up, x)?;
        let gate =
            Gate { activation: config.arch.activation, gated: config.arch.gated, width: config.intermediate_size };
        let (input, id) = (up.value.clone(), up.id());
        let act =
            self.tape.push(gate.forward(&up.value)?, up.wanted, move |d| Ok(vec![(id, gate.backward(&input, &d)?)]));
        self.linear(Module::Down(l), &layer.down, &act)
    }

    /// Losses of the counted rows (f32), and the gradient of the hidden states if somebody wants it. Logits exist for
    /// some rows at a time.
    fn head(&self, hidden: &Node) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, head, device) = (self.batch, &self.model.head, &self.model.device);
        let site = self.taps.site(Module::Head);
        let n_words = head.weight.dim(1)?;
        let chunk = (MAX_LOGITS / n_words).clamp(64, 4096);
        let (mut nll, mut d_rows, mut px, mut pd) = (vec![], vec![], vec![], vec![]);
        for (rows, targets) in batch.rows.chunks(chunk).zip(batch.targets.chunks(chunk)) {
            let rows = Tensor::from_slice(rows, rows.len(), device)?;
            let targets = Tensor::from_slice(targets, (targets.len(), 1), device)?;
            let x = hidden.value.index_select(&rows, 0)?;
            let (losses, delta) = self.head_chunk(&x, &targets)?;
            nll.push(losses);
            if let Some(site) = site {
                px.extend(site.input(&x)?);
                pd.extend(site.output(&delta)?);
            }
            if hidden.wanted {
                d_rows.push(product(&delta, &head.weight.t()?)?);
            }
        }
        let counted = Tensor::from_slice(&batch.counted, batch.counted.len(), device)?;
        // Rows that do not count get the row of zeros that is put last.
        let spread = |mut parts: Vec<Tensor>| -> Result<Option<Tensor>> {
            let Some(first) = parts.first() else { return Ok(None) };
            parts.push(Tensor::zeros((1, first.dim(1)?), first.dtype(), device)?);
            Tensor::cat(&parts, 0)?.index_select(&counted, 0).map(Some)
        };
        if let Some(site) = site {
            self.collected.site(site, spread(px)?.as_ref(), spread(pd)?.as_ref())?;
        }
        Ok((Tensor::cat(&nll, 0)?, spread(d_rows)?))
    }

    /// Losses of some rows and the gradients of their logits.
    fn head_chunk(&self, x: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
        let cap = self.model.decoder.config().arch.logit_softcap;
        let mut logits = product(x, &self.model.head.weight)?.to_dtype(DType::F32)?;
        if let Some(cap) = cap {
            logits = functions::soft_cap(&logits, cap)?;
        }
        let log_sum = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
        let nll = (&log_sum - logits.gather(targets, 1)?)?.squeeze(1)?;
        let minus_one = Tensor::full(-1f32, targets.shape(), targets.device())?;
        let mut delta = logits.broadcast_sub(&log_sum)?.exp()?.scatter_add(targets, &minus_one, 1)?;
        if let Some(cap) = cap {
            delta = functions::soft_cap_backward(&logits, cap, &delta)?;
        }
        Ok((nll, delta.to_dtype(self.model.dtype)?))
    }
}

/// Gradients of a norm's parameters, if they are tracked.
fn tap_norm(collected: &Collected, tap: Option<(usize, Option<usize>)>, d_gain: &Tensor, d: &Tensor) -> Result<()> {
    let Some((gain, bias)) = tap else { return Ok(()) };
    collected.sums(gain, d_gain)?;
    match bias {
        Some(bias) => collected.sums(bias, d),
        None => Ok(()),
    }
}
