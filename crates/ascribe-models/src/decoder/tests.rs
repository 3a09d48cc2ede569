//! Tests of the decoder as a whole: finite differences of every parameter, invariance, bad input.

use std::collections::BTreeMap;

use ascribe_core::RowType;
use ascribe_linalg::Stream;
use ascribe_linalg::packed::Precision;

use super::*;
use crate::arch::{Arch, Family, Positions, QkNorm, RopeScaling, Topology};
use crate::gradient::{FullGradient, weight_and_bias};

/// Thirteen words, two layers, two query heads over one key head, tied.
pub(crate) fn tiny_config() -> DecoderConfig {
    DecoderConfig { initializer_range: 0.1, ..DecoderConfig::llama(13, 8, 12, 2, 2, 1, 80) }
}

/// A random sequence for [`tiny_config`].
pub(crate) fn tokens(seed: u64, len: usize) -> Vec<u32> {
    let mut stream = Stream::new(seed, "tokens");
    (0..len).map(|_| stream.below(13)).collect()
}

fn untied() -> DecoderConfig {
    DecoderConfig { tie_word_embeddings: false, num_key_value_heads: 2, ..tiny_config() }
}

/// [`tiny_config`] in the manner of every family, and of what no family combines: all that an [`Arch`] can say.
pub(crate) fn families() -> Vec<(&'static str, DecoderConfig)> {
    let llama = Arch::llama();
    let full_heads = DecoderConfig { num_key_value_heads: 2, ..tiny_config() };
    let rotary = |width, scaling, local_theta| Positions::Rotary { width, scaling, local_theta };
    let gpt2 = Arch {
        family: Family::Gpt2,
        norm: NormKind::Layer,
        activation: Activation::GeluTanh,
        gated: false,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        positions: Positions::Learned,
        ..llama.clone()
    };
    let neox = Arch {
        family: Family::GptNeox,
        topology: Topology::Parallel,
        activation: Activation::Gelu,
        qkv_order: QkvOrder::Interleaved,
        positions: rotary(2, RopeScaling::None, None),
        ..gpt2.clone()
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    let scaled =
        Arch { o_bias: true, mlp_bias: true, qkv_bias: true, positions: rotary(0, llama3, None), ..llama.clone() };
    let mistral = Arch { family: Family::Mistral, windows: vec![6, 6], ..llama.clone() };
    let qwen2 = Arch { family: Family::Qwen2, qkv_bias: true, ..llama.clone() };
    let qwen3 = Arch { family: Family::Qwen3, qk_norm: QkNorm::PerHead, ..llama.clone() };
    let olmo2 = Arch { family: Family::Olmo2, topology: Topology::Post, qk_norm: QkNorm::Full, ..llama.clone() };
    // (ReLU has kinks that whole-model differences step over; `ops::tests` checks it.)
    let sequential = Arch { topology: Topology::Pre, activation: Activation::Silu, ..neox.clone() };
    let grouped = |arch: Arch| DecoderConfig { arch, ..tiny_config() };
    let full = |arch: Arch| DecoderConfig { arch, ..full_heads.clone() };
    let untied = |arch: Arch| DecoderConfig { arch, tie_word_embeddings: false, ..full_heads.clone() };
    vec![
        ("llama", grouped(llama.clone())),
        ("llama, untied", untied(llama)),
        ("llama, biases, scaled rotary", grouped(scaled)),
        ("mistral", grouped(mistral)),
        ("qwen2", grouped(qwen2)),
        ("qwen3", untied(qwen3)),
        ("olmo2", untied(olmo2)),
        ("gpt2", full(gpt2)),
        ("gpt-neox", untied(neox)),
        ("gpt-neox, sequential", untied(sequential)),
    ]
    .into_iter()
    .chain(gemmas())
    .collect()
}

fn gemmas() -> [(&'static str, DecoderConfig); 2] {
    let rotary = |width, scaling, local_theta| Positions::Rotary { width, scaling, local_theta };
    let gemma2 = Arch {
        family: Family::Gemma2,
        norm: NormKind::RmsPlusOne,
        topology: Topology::Sandwich,
        activation: Activation::GeluTanh,
        windows: vec![5, 0],
        attention_scale: Some(0.4),
        attention_softcap: Some(3.0),
        logit_softcap: Some(4.0),
        embedding_scale: Some(8f64.sqrt()),
        ..Arch::llama()
    };
    let gemma3 = Arch {
        family: Family::Gemma3,
        qk_norm: QkNorm::PerHead,
        positions: rotary(0, RopeScaling::Linear { factor: 8.0 }, Some(100.0)),
        attention_softcap: None,
        logit_softcap: None,
        ..gemma2.clone()
    };
    [gemma2, gemma3].map(|arch| {
        let name = if arch.family == Family::Gemma2 { "gemma2" } else { "gemma3" };
        (name, DecoderConfig { arch, ..tiny_config() })
    })
}

/// A small encoder.
pub(crate) fn encoder_config() -> DecoderConfig {
    let arch = Arch {
        family: Family::Bert,
        norm: NormKind::Layer,
        topology: Topology::Encoder,
        activation: Activation::Gelu,
        gated: false,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        positions: Positions::Learned,
        token_types: 2,
        ..Arch::llama()
    };
    DecoderConfig { arch, num_key_value_heads: 2, ..tiny_config() }
}

/// Fresh weights in which gains, biases and norms are random too.
pub(crate) fn scattered(config: DecoderConfig, seed: u64) -> Decoder {
    let mut decoder = Decoder::init(config, seed).unwrap();
    let vectors: Vec<_> = decoder.layout.slots().iter().filter(|slot| !slot.is_matrix()).cloned().collect();
    for slot in vectors {
        let mut stream = Stream::new(seed, &format!("scattered/{}", slot.name));
        decoder.parameters_mut()[slot.range].iter_mut().for_each(|x| *x += (stream.normal() * 0.3) as f32);
    }
    decoder
}

/// Central differences of the loss along random directions in each tensor: the whole backward pass, tensor by tensor.
#[test]
fn every_tensor_has_the_gradient_that_finite_differences_give() {
    for (name, config) in families() {
        // Large weights: a step of 0.004 is then small against them, and the loss is smooth at its scale.
        let decoder = scattered(DecoderConfig { initializer_range: 0.4, ..config }, 4);
        let text = tokens(2, 70);
        let sequence = Sequence { tokens: &text, loss_from: 3 };
        let gradient = decoder.gradient_sum(&[sequence]).unwrap();
        for slot in decoder.parameter_layout().slots() {
            let mut stream = Stream::new(9, &slot.name);
            let direction: Vec<f32> = slot.range.clone().map(|_| stream.normal() as f32).collect();
            let moved = |h: f32| {
                let mut decoder = decoder.clone();
                let place = &mut decoder.parameters_mut()[slot.range.clone()];
                place.iter_mut().zip(&direction).for_each(|(p, d)| *p += h * d);
                decoder.losses(&[sequence]).unwrap()[0]
            };
            let exact: f64 =
                gradient[slot.range.clone()].iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            let size = gradient[slot.range.clone()].iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            // Fourth-order differences. Large steps suffer from truncation (h⁴, where a norm meets short rows), small ones
            // from rounding of an f32 loss of about 170 nats in 69 terms: the best of four must agree.
            let quotients = [0.004f32, 0.002, 0.001, 0.0005].map(|h| {
                let first = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                let second = (moved(2.0 * h) - moved(-2.0 * h)) / (4.0 * f64::from(h));
                (4.0 * first - second) / 3.0
            });
            let error = quotients.iter().map(|q| (q - exact).abs()).fold(f64::INFINITY, f64::min);
            assert!(error < 1e-3 * size + 1e-3, "{name} {}: {quotients:?} {exact} {size}", slot.name);
            // A bias of all keys moves all scores of a row alike: softmax does not feel it.
            let key_bias = slot.name.ends_with("k_proj.bias");
            assert!(size > if key_bias { -1.0 } else { 0.0 }, "{name} {} has no gradient at all", slot.name);
        }
    }
}

/// An encoder's rows: the future matters, the order matters, the last norm is a norm, and nothing can be predicted.
#[test]
fn an_encoder_embeds_and_does_not_predict() {
    let decoder = Decoder::init(encoder_config(), 4).unwrap();
    let text = tokens(6, 20);
    let hidden = decoder.hidden_states(&text).unwrap();
    for row in hidden.rows() {
        let (mean, square) = (row.sum() / 8.0, row.dot(&row) / 8.0);
        assert!(mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-3, "{mean} {square}");
    }
    let mut other = text.clone();
    other[19] = (other[19] + 1) % 13;
    assert_ne!(decoder.hidden_states(&other).unwrap().row(0), hidden.row(0));
    let mean = decoder.mean_hidden(&[Sequence::whole(&text)]).unwrap();
    let expected = hidden.mean_axis(Axis(0)).unwrap();
    assert!(mean.row(0).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
    let message = decoder.losses(&[Sequence::whole(&text)]).unwrap_err().to_string();
    assert!(message.contains("a decoder") && message.contains("encoder"), "{message}");
}

/// A full gradient of each sequence of a pass.
struct Each<'a> {
    decoder: &'a Decoder,
    flat: Vec<Vec<f32>>,
}

impl Sink for Each<'_> {
    fn linear(&mut self, module: Module, n: usize, rows: Rows<'_>) {
        FullGradient::new(self.decoder, &mut self.flat[rows.sequence]).linear(module, n, rows);
    }

    fn norm(&mut self, norm: Norm, sequence: usize) -> NormGradient<'_> {
        let layout = self.decoder.norm_layout(norm);
        let (gain, bias) = weight_and_bias(&mut self.flat[sequence], &layout.gain, layout.bias.as_ref());
        NormGradient { gain, bias: bias.unwrap_or_default() }
    }

    fn embedding(&mut self, sequence: usize, tokens: &[u32], d_x: &[f32]) {
        FullGradient::new(self.decoder, &mut self.flat[sequence]).embedding(sequence, tokens, d_x);
    }
}

/// Losses and full gradients of sequences in packs of `sizes`.
fn in_packs(pass: Pass<'_>, objectives: &[Objective<'_>], sizes: &[usize]) -> Vec<(f64, Vec<f32>)> {
    let (mut ws, mut done) = (Workspace::default(), vec![]);
    let mut rest = objectives;
    for &size in sizes {
        let pack;
        (pack, rest) = rest.split_at(size);
        let flat = vec![vec![0.0; pass.model.layout.len()]; size];
        let (mut sink, mut losses) = (Each { decoder: pass.model, flat }, vec![f64::NAN; size]);
        pass.backward(pack, &mut ws, &mut sink, &mut losses);
        done.extend(losses.into_iter().zip(sink.flat));
    }
    assert!(rest.is_empty(), "the packs hold all sequences");
    done
}

/// In the packed route neither the pack nor the order of the packs changes a bit, in f32 as in bf16; f32 agrees with the
/// exact route, bf16 to its own precision (rows of eight numbers do not average roundings out).
#[test]
fn packs_do_not_change_a_bit_and_agree_with_single_sequences() {
    for (name, config) in families() {
        let config = DecoderConfig { max_position_embeddings: 160, ..config };
        let decoder = scattered(DecoderConfig { initializer_range: 0.3, ..config }, 4);
        let texts: Vec<Vec<u32>> = [70, 1, 9, 150, 2, 33, 80].iter().map(|&len| tokens(len, len as usize)).collect();
        let sequence = |tokens| Sequence { tokens, loss_from: 3 };
        let objectives: Vec<Objective<'_>> = texts.iter().map(|tokens| sequence(tokens).into()).collect();
        let exact = in_packs(Pass::exact(&decoder), &objectives, &[1; 7]);
        for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 0.15)] {
            let weights = PackedWeights::new(&decoder, precision);
            let alone = in_packs(Pass::packed(&decoder, &weights), &objectives, &[1; 7]);
            for sizes in [&[7][..], &[2, 5], &[3, 1, 3]] {
                assert_eq!(
                    in_packs(Pass::packed(&decoder, &weights), &objectives, sizes),
                    alone,
                    "{name} {precision:?}"
                );
            }
            for ((loss, gradient), (exact_loss, exact)) in alone.iter().zip(&exact) {
                assert!((loss - exact_loss).abs() <= tolerance * exact_loss.abs(), "{name}: {loss} {exact_loss}");
                let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let off = norm(&mut gradient.iter().zip(exact).map(|(a, b)| a - b));
                let size = norm(&mut exact.iter().copied());
                assert!(off <= tolerance * size, "{name} {precision:?}: {off} of {size}");
            }
        }
    }
}

/// A way up without a tape has the bits of one with a tape, in every family, and a workspace may change between the two.
#[test]
fn a_pass_without_a_tape_gives_the_same_bits() {
    for (name, config) in families().into_iter().chain([("bert", encoder_config())]) {
        let decoder = scattered(config, 4);
        let mut ws = Workspace::default();
        let mut hidden = |pass: Pass<'_>, text: &[u32]| {
            pass.forward(std::iter::once((0, text)), &mut ws);
            ws.hidden(text.len(), 8).to_vec()
        };
        for len in [30, 70, 5] {
            let text = tokens(2, len);
            let taped = hidden(Pass::exact(&decoder), &text);
            assert_eq!(hidden(Pass::only_up(&decoder), &text), taped, "{name} {len}");
        }
    }
}

#[test]
fn losses_logits_and_token_losses_tell_the_same_story() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let text = tokens(5, 70);
    let logits = decoder.logits(&text).unwrap();
    let nll = decoder.token_nll(&text).unwrap();
    assert_eq!((logits.dim(), nll.len()), ((70, 13), 69));
    for t in 0..69 {
        let row = logits.row(t);
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = sum.ln() - f64::from(row[text[t + 1] as usize]);
        assert!((f64::from(nll[t]) - expected).abs() < 1e-5);
    }
    let tail = decoder.losses(&[Sequence { tokens: &text, loss_from: 66 }]).unwrap()[0];
    let expected: f64 = nll[65..].iter().map(|&x| f64::from(x)).sum();
    assert!((tail - expected).abs() < 1e-5, "four predictions: tokens 66 to 69");
    assert_eq!(decoder.losses(&[Sequence { tokens: &text, loss_from: 99 }]).unwrap(), [0.0]);
}

/// The future must not leak into the past, and a sequence must not feel its neighbours.
#[test]
fn the_past_and_the_neighbours_do_not_matter() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let text = tokens(6, 70);
    let mut other = text.clone();
    other[69] = (other[69] + 1) % 13;
    let (a, b) = (decoder.logits(&text).unwrap(), decoder.logits(&other).unwrap());
    assert_eq!(a.slice(ndarray::s![..69, ..]), b.slice(ndarray::s![..69, ..]));
    assert_ne!(a.row(69), b.row(69));
    let texts: Vec<Vec<u32>> = (0..9).map(|i| tokens(i, 20 + i as usize)).collect();
    let all: Vec<Sequence<'_>> = texts.iter().map(|t| Sequence::whole(t)).collect();
    let together = decoder.losses(&all).unwrap();
    let alone: Vec<f64> = all.iter().map(|&s| decoder.losses(&[s]).unwrap()[0]).collect();
    assert_eq!(together, alone);
    let hidden = decoder.mean_hidden(&all).unwrap();
    assert_eq!(hidden.row(3), decoder.mean_hidden(&all[3..4]).unwrap().row(0));
}

#[test]
fn summed_gradients_are_the_sum_and_do_not_feel_threads() {
    let decoder = Decoder::init(untied(), 4).unwrap();
    let texts: Vec<Vec<u32>> = (0..40).map(|i| tokens(i, 10 + i as usize % 7)).collect();
    let all: Vec<Sequence<'_>> = texts.iter().map(|t| Sequence::whole(t)).collect();
    let sum = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| decoder.gradient_sum(&all).unwrap())
    };
    let total = sum(1);
    assert_eq!(total, sum(3));
    let each = decoder.gradients(&all).unwrap();
    let added = each.sum_axis(Axis(0));
    let scale = total.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(added.iter().zip(&total).all(|(a, b)| (a - b).abs() < 1e-5 * scale));
    let norms = decoder.gradient_norms(&all).unwrap();
    let norm = each.row(7).iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((norms[7] / norm - 1.0).abs() < 1e-5);
}

#[test]
fn files_come_back_and_equal_weights_give_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let metadata = BTreeMap::from([("b".to_string(), "2".to_string()), ("a".into(), "1".into())]);
    decoder.save_config(dir.path()).unwrap();
    let digest = decoder.save(&dir.path().join("model.safetensors"), RowType::F32, &metadata).unwrap();
    let again = decoder.save(&dir.path().join("again.safetensors"), RowType::F32, &metadata).unwrap();
    assert_eq!(digest, again);
    let loaded = Decoder::load(dir.path(), "model.safetensors").unwrap();
    assert_eq!(loaded.parameters(), decoder.parameters());
    assert_eq!(loaded.config(), decoder.config());
    assert_eq!(loaded.weights_digest(), digest);
    for (name, row_type, bits) in [("bf16", RowType::Bf16, 8), ("f16", RowType::F16, 11)] {
        decoder.save(&dir.path().join(name), row_type, &metadata).unwrap();
        let rounded = Decoder::load(dir.path(), name).unwrap();
        let eps = 0.5f32.powi(bits);
        // Half a unit of the last bit, and f16's smallest step below its normal range.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() * eps + 3.0e-8;
        assert!(rounded.parameters().iter().zip(decoder.parameters()).all(near), "{name}");
    }
}

#[test]
fn bad_tokens_and_lengths_are_refused_by_place() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let message =
        |tokens: &[u32]| decoder.losses(&[Sequence::whole(&[1, 2]), Sequence::whole(tokens)]).unwrap_err().to_string();
    let bad = message(&[1, 2, 13]);
    assert!(bad.contains("sequence 1, position 2") && bad.contains("below 13, found 13"), "{bad}");
    assert!(message(&[1; 81]).contains("1 to 80 tokens, found 81"));
    assert!(message(&[]).contains("found 0"));
    assert!(
        decoder.token_nll(&[99]).is_err()
            && decoder.logits(&[]).is_err()
            && decoder.gradient_sum(&[Sequence::whole(&[])]).is_err()
    );
}
