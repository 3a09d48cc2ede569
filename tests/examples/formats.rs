//! Prints what Ascribe makes of files of other projects, for an outside judge.
//!
//! `formats gguf FILE IDS`: logits of a GGUF model. `formats adapter BASE ADAPTER IDS`: logits, loss and adapter gradients of
//! a model folder with a PEFT folder. `formats train BASE OUT TARGETS IDS`: a few steps of a new adapter on `TARGETS` (a
//! regular expression, or `all-linear`), written to `OUT`; then the same facts. IDS are numbers with commas between them.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use ascribe_models::lora::{AdaptedDecoder, Adapter, LoraConfig, Targets};
use ascribe_models::{Decoder, Sequence, gguf};
use serde_json::{Value, json};

/// The loss counts from this position on.
const LOSS_FROM: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let facts = match arguments[..] {
        ["gguf", file, ids] => {
            let (config, parameters) = gguf::open(Path::new(file))?;
            json!({ "logits": logits(&Decoder::from_parameters(config, parameters)?, &parse(ids)?)? })
        }
        ["adapter", base, adapter, ids] => {
            let decoder = Decoder::load(Path::new(base), "model.safetensors")?;
            let adapter = Adapter::load(&decoder, Path::new(adapter))?;
            facts(&AdaptedDecoder::new(decoder, adapter)?, &parse(ids)?)?
        }
        ["train", base, out, targets, ids] => {
            let decoder = Decoder::load(Path::new(base), "model.safetensors")?;
            let targets = if targets == "all-linear" { Targets::AllLinear } else { Targets::Pattern(targets.into()) };
            let adapter = Adapter::init(&decoder, LoraConfig::new(4, 6.0, targets), 7)?;
            let mut adapted = AdaptedDecoder::new(decoder, adapter)?;
            let ids = parse(ids)?;
            for _ in 0..5 {
                let gradient = adapted.gradient_sum(&[Sequence { tokens: &ids, loss_from: LOSS_FROM }])?;
                let step = adapted.adapter().parameters().iter().zip(gradient).map(|(x, g)| x - 0.01 * g);
                adapted.set_parameters(&step.collect::<Vec<_>>())?;
            }
            adapted.adapter().save(adapted.decoder(), Path::new(out))?;
            facts(&adapted, &ids)?
        }
        _ => return Err("usage: formats gguf FILE IDS | adapter BASE ADAPTER IDS | train BASE OUT TARGETS IDS".into()),
    };
    writeln!(std::io::stdout(), "{facts}")?;
    Ok(())
}

fn parse(ids: &str) -> Result<Vec<u32>, Box<dyn Error>> {
    ids.split(',').map(|id| id.parse::<u32>().map_err(Into::into)).collect()
}

fn logits(decoder: &Decoder, ids: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
    Ok(decoder.logits(ids)?.iter().copied().collect())
}

fn facts(adapted: &AdaptedDecoder, ids: &[u32]) -> Result<Value, Box<dyn Error>> {
    let sequence = Sequence { tokens: ids, loss_from: LOSS_FROM };
    let gradient = adapted.gradient_sum(&[sequence])?;
    let slots = adapted.adapter().slots();
    let by_name: serde_json::Map<String, Value> =
        slots.into_iter().map(|slot| (slot.name, json!(gradient[slot.range]))).collect();
    let loss = adapted.decoder().losses(&[sequence])?[0];
    Ok(json!({ "logits": logits(adapted.decoder(), ids)?, "loss": loss, "gradient": by_name }))
}
