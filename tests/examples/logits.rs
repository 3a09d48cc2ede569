//! Prints what a model folder makes of a text, for an outside judge: `logits MODEL_FOLDER TEXT_FILE [OUT_FOLDER]`.
//!
//! One JSON object: `tokens` (ids) and, of a decoder, `token_nll` (nats, one per token but the first) and `last_logits` (at
//! the last token); of an encoder, `mean_hidden`. With OUT_FOLDER the model is also written there, as we write models.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use ascribe_core::RowType;
use ascribe_corpus::BpeTokenizer;
use ascribe_models::{Decoder, Sequence};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, text, out @ ..] = arguments.as_slice() else {
        return Err("usage: logits MODEL_FOLDER TEXT_FILE [OUT_FOLDER]".into());
    };
    let model = Path::new(model);
    let decoder = Decoder::open(model)?;
    let tokenizer = BpeTokenizer::load(&model.join("tokenizer.json"))?;
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let facts = if decoder.config().arch.is_encoder() {
        let mean = decoder.mean_hidden(&[Sequence::whole(&ids)])?;
        json!({ "tokens": ids, "mean_hidden": mean.row(0).to_vec() })
    } else {
        let last_logits = decoder.logits(&ids)?.rows().into_iter().next_back().map(|row| row.to_vec());
        json!({ "tokens": ids, "token_nll": decoder.token_nll(&ids)?, "last_logits": last_logits })
    };
    if let [out] = out {
        decoder.save_config(Path::new(out))?;
        decoder.save(&Path::new(out).join("model.safetensors"), RowType::F32, &BTreeMap::new())?;
    }
    writeln!(std::io::stdout(), "{facts}")?;
    Ok(())
}
