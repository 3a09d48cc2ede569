//! LoRA adapters from outside: PEFT as reference, folders that lie.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::RowType;
use ascribe_linalg::TwoSided;
use ascribe_models::features::Projection;
use ascribe_models::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, AdaptedDecoder, Adapter, LoraConfig, Targets};
use ascribe_models::{Decoder, DecoderConfig, GradientStage, Sequence, TapConfig};
use safetensors::SafeTensors;

use super::{f32s, fixture, worst};

const CASES: [&str; 4] = ["llama", "llama-all", "llama-regex", "gpt2"];

fn adapted(name: &str) -> AdaptedDecoder {
    let dir = fixture("lora").join(name);
    let decoder = Decoder::load(&dir, "model.safetensors").unwrap();
    let adapter = Adapter::load(&decoder, &dir).unwrap();
    AdaptedDecoder::new(decoder, adapter).unwrap()
}

/// Logits, loss and the gradient of every adapter weight, against PEFT in f64 (the script stands beside the files).
#[test]
fn peft_sees_the_same_adapter() {
    for name in CASES {
        let adapted = adapted(name);
        let bytes = std::fs::read(fixture("lora").join(name).join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let tokens: Vec<u32> = serde_json::from_str(&metadata["tokens"]).unwrap();
        let sequence = Sequence { tokens: &tokens, loss_from: metadata["loss_from"].parse().unwrap() };

        let logits = adapted.decoder().logits(&tokens).unwrap();
        assert!(worst(logits.as_slice().unwrap(), &f32s(&file, "logits")) < 1e-5, "{name}");
        let loss = adapted.decoder().losses(&[sequence]).unwrap()[0];
        assert!((loss / f64::from(f32s(&file, "loss")[0]) - 1.0).abs() < 1e-6, "{name}: {loss}");
        let gradient = adapted.gradient_sum(&[sequence]).unwrap();
        let slots = adapted.adapter().slots();
        assert_eq!(slots.len() + 2, file.len(), "{name}: PEFT has as many gradients");
        for slot in slots {
            let off = worst(&gradient[slot.range], &f32s(&file, &format!("grad.base_model.model.{}", slot.name)));
            assert!(off < 1e-5, "{name} {}: {off}", slot.name);
        }
    }
}

/// What PEFT wrote and what is written of it hold the same tensors under the same names, bit for bit.
#[test]
fn a_saved_adapter_is_the_one_that_was_read() {
    for name in CASES {
        let adapted = adapted(name);
        let dir = tempfile::tempdir().unwrap();
        adapted.adapter().save(adapted.decoder(), dir.path()).unwrap();
        let again = Adapter::load(adapted.decoder(), dir.path()).unwrap();
        assert_eq!(again.parameters(), adapted.adapter().parameters());
        assert_eq!(again.slots(), adapted.adapter().slots());
        let [ours, theirs] = [dir.path().to_path_buf(), fixture("lora").join(name)]
            .map(|dir| std::fs::read(dir.join(ADAPTER_WEIGHTS_FILE)).unwrap());
        let [ours, theirs] = [&ours, &theirs].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        for (name, tensor) in ours.tensors() {
            let other = theirs.tensor(&name).unwrap();
            assert_eq!((tensor.shape(), tensor.data()), (other.shape(), other.data()), "{name}");
        }
        // PEFT adds a copy of the output layer where that is adapted.
        let copies = theirs.names().into_iter().filter(|name| name.contains(".base_layer.")).count();
        assert_eq!(ours.len() + copies, theirs.len());
    }
}

fn fresh(targets: Targets) -> AdaptedDecoder {
    let decoder = Decoder::init(DecoderConfig::llama(29, 16, 20, 2, 4, 2, 24), 3).unwrap();
    let adapter = Adapter::init(&decoder, LoraConfig::new(3, 6.0, targets), 11).unwrap();
    AdaptedDecoder::new(decoder, adapter).unwrap()
}

#[test]
fn a_fresh_adapter_changes_nothing_and_its_draws_have_names() {
    let all = fresh(Targets::AllLinear);
    let base = Decoder::init(DecoderConfig::llama(29, 16, 20, 2, 4, 2, 24), 3).unwrap();
    assert_eq!(all.decoder().parameters(), base.parameters());
    let some = fresh(Targets::Names(vec!["v_proj".into()]));
    let slot = |adapted: &AdaptedDecoder| {
        let name = "model.layers.1.self_attn.v_proj.lora_A.weight";
        let slot = adapted.adapter().slots().into_iter().find(|slot| slot.name == name).unwrap();
        adapted.adapter().parameters()[slot.range].to_vec()
    };
    assert_eq!(slot(&all), slot(&some), "what else is adapted does not change a draw");
    assert!(slot(&all).iter().all(|x| x.abs() <= 0.25) && slot(&all).iter().any(|x| x.abs() > 0.2), "±1/√16");
}

/// A step along the gradient, and back: finite differences of the loss, and merging leaves nothing behind.
#[test]
fn gradients_agree_with_finite_differences() {
    let mut adapted = fresh(Targets::Names(vec!["q_proj".into(), "down_proj".into()]));
    let before = adapted.decoder().parameters().to_vec();
    let zero = adapted.adapter().parameters().to_vec();
    let mut stream = ascribe_linalg::Stream::new(5, "lora test");
    let at: Vec<f32> = zero.iter().map(|x| x + 0.3 * stream.normal() as f32).collect();
    let texts: Vec<Vec<u32>> = (0..20).map(|i| (0..20).map(|t| (7 * i + t * t) % 29).collect()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence { tokens, loss_from: 3 }).collect();
    adapted.set_parameters(&at).unwrap();
    let gradient = adapted.gradient_sum(&sequences).unwrap();
    let each = adapted.gradients(&sequences).unwrap().sum_axis(ndarray::Axis(0));
    assert!(worst(each.as_slice().unwrap(), &gradient) < 1e-5);
    let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let mut loss = |step: f64| {
        let moved: Vec<f32> =
            at.iter().zip(&gradient).map(|(x, &g)| (f64::from(*x) + step * f64::from(g) / norm) as f32).collect();
        adapted.set_parameters(&moved).unwrap();
        adapted.decoder().losses(&sequences).unwrap().iter().sum::<f64>()
    };
    // Along the gradient the slope is its norm; the step balances curvature and rounding of f32 weights.
    let slope = (loss(0.01) - loss(-0.01)) / 0.02;
    assert!((slope / norm - 1.0).abs() < 1e-3, "{slope} {norm}");
    adapted.set_parameters(&zero).unwrap();
    assert_eq!(adapted.decoder().parameters(), before);
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut adapted = fresh(Targets::AllLinear);
    let moved: Vec<f32> =
        adapted.adapter().parameters().iter().enumerate().map(|(i, x)| x + (i % 7) as f32 * 0.01).collect();
    adapted.set_parameters(&moved).unwrap();
    let texts: Vec<Vec<u32>> = (0..40).map(|i| (0..=(i % 23)).map(|t| (3 * i + t) % 29).collect()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
    let both = [1, 3].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| (adapted.gradient_sum(&sequences).unwrap(), adapted.gradients(&sequences).unwrap()))
    });
    assert!(both[0] == both[1]);
    let alone = adapted.gradients(&sequences[30..31]).unwrap();
    assert_eq!(alone.row(0), both[0].1.row(30));
}

fn copy(from: &Path, to: &Path) {
    for name in [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[test]
fn lies_are_named() {
    let from = fixture("lora").join("llama");
    let decoder = Decoder::load(&from, "model.safetensors").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let spoilt = |spoil: &dyn Fn(&Path), parts: &[&str]| {
        copy(&from, dir.path());
        spoil(dir.path());
        let message = Adapter::load(&decoder, dir.path()).expect_err("a lie must be refused").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let config = |field: &'static str, value: serde_json::Value| {
        move |dir: &Path| {
            let path = dir.join(ADAPTER_CONFIG_FILE);
            let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config[field] = value.clone();
            std::fs::write(path, config.to_string()).unwrap();
        }
    };
    let weights = |spoil: fn(&mut Vec<u8>)| {
        move |dir: &Path| {
            let path = dir.join(ADAPTER_WEIGHTS_FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            spoil(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        }
    };
    fn rename(bytes: &mut [u8], from: &str, to: &str) {
        assert_eq!(from.len(), to.len(), "offsets must stay");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    spoilt(&config("use_dora", true.into()), &[ADAPTER_CONFIG_FILE, "`use_dora`"]);
    spoilt(
        &config("r", 4.into()),
        &[ADAPTER_WEIGHTS_FILE, "v_proj.lora_A.weight", "expected shape [4, 16]", "[3, 16]"],
    );
    spoilt(&weights(|b| b.truncate(100)), &["whole safetensors file"]);
    spoilt(
        &weights(|b| rename(b, "layers.1.self_attn.v_proj.lora_B", "layers.7.self_attn.v_proj.lora_B")),
        &["layers.7"],
    );
    spoilt(&weights(|b| rename(b, "v_proj.lora_B.weight", "v_proj.lora_C.weight")), &["v_proj.lora_C"]);
    spoilt(&weights(|b| b.splice(b.len() - 4.., f32::NAN.to_le_bytes()).for_each(drop)), &["NaN"]);
    spoilt(&|dir| std::fs::remove_file(dir.join(ADAPTER_WEIGHTS_FILE)).unwrap(), &["cannot read"]);

    let tied = Decoder::init(DecoderConfig::llama(29, 16, 20, 2, 4, 2, 24), 3).unwrap();
    let head = LoraConfig::new(2, 2.0, Targets::Names(vec!["lm_head".into()]));
    let message = Adapter::init(&tied, head, 1).unwrap_err().to_string();
    assert!(message.contains("tied output layer"), "{message}");
    let nothing = LoraConfig::new(2, 2.0, Targets::Names(vec!["c_attn".into()]));
    let message = Adapter::init(&tied, nothing, 1).unwrap_err().to_string();
    assert!(message.contains("target_modules") && message.contains("self_attn.q_proj"), "{message}");
    let other = Decoder::init(DecoderConfig::llama(29, 16, 24, 2, 4, 2, 24), 3).unwrap();
    let adapter = Adapter::init(&other, LoraConfig::new(2, 2.0, Targets::AllLinear), 1).unwrap();
    assert!(AdaptedDecoder::new(tied, adapter).unwrap_err().to_string().contains("an adapter for this model"));
}

/// The merged model is a model: saved in the usual form, it is opened as one.
#[test]
fn a_merged_model_is_saved_like_any_other() {
    let decoder = adapted("llama").into_decoder();
    let dir = tempfile::tempdir().unwrap();
    decoder.save_config(dir.path()).unwrap();
    decoder.save(&dir.path().join("model.safetensors"), RowType::F32, &BTreeMap::new()).unwrap();
    let again = Decoder::load(dir.path(), "model.safetensors").unwrap();
    assert_eq!(again.parameters(), decoder.parameters());
}

/// Rows over adapter weights against the full gradient: as it is, and put through the same projection.
#[test]
fn rows_over_adapter_weights_are_projections_of_the_gradient() {
    for name in CASES {
        let adapted = adapted(name);
        let texts: Vec<Vec<u32>> = (0..5).map(|i| (0..(9 + 3 * i)).map(|t| (5 * i + t * t) % 29).collect()).collect();
        let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence { tokens, loss_from: 2 }).collect();
        let full = adapted.gradients(&sequences).unwrap();

        let config = TapConfig { projection: Projection::Full, ..TapConfig::modules(7, 4, &["*"]) };
        let stage = GradientStage::of_adapter(&adapted, config).unwrap();
        let mut rows = ndarray::Array2::zeros((5, stage.dim()));
        stage.rows(&sequences, rows.view_mut(), None).unwrap();
        assert_eq!(stage.dim(), full.ncols());
        assert!(worst(rows.as_slice().unwrap(), full.as_slice().unwrap()) < 1e-5, "{name}");

        let stage = GradientStage::of_adapter(&adapted, TapConfig::modules(7, 4, &["*"])).unwrap();
        let mut rows = ndarray::Array2::zeros((5, stage.dim()));
        stage.rows(&sequences, rows.view_mut(), None).unwrap();
        for (slot, column) in adapted.adapter().slots().iter().zip(stage.columns()) {
            assert_eq!(slot.name, format!("{}.weight", column.name));
            let [o, i] = slot.shape;
            let p = TwoSided::new(7, &column.name, i, o, 4, 4);
            for (row, full) in rows.rows().into_iter().zip(full.rows()) {
                let g = full.slice(ndarray::s![slot.range.clone()]);
                let exact = p.p_out.t().dot(&g.to_shape((o, i)).unwrap()).dot(&p.p_in);
                let got = row.slice(ndarray::s![column.start..column.start + column.len]).to_vec();
                assert!(worst(&got, &exact.iter().copied().collect::<Vec<_>>()) < 2e-5, "{name} {}", slot.name);
            }
        }
    }
    let adapted = adapted("llama");
    let message = GradientStage::of_adapter(&adapted, TapConfig::all(1, 4)).unwrap_err().to_string();
    assert!(message.contains("taps of an adapter"), "{message}");
    let half = GradientStage::of_adapter(&adapted, TapConfig::modules(1, 4, &["*.q_proj.lora_B"])).unwrap();
    assert_eq!(half.columns().len(), 2);
}
