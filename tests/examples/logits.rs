//! Prints what a model folder makes of a text, for an outside judge: `logits MODEL_FOLDER TEXT_FILE`.
//!
//! One JSON object: `tokens` (ids), `token_nll` (nats, one per token but the first), `last_logits` (at the last token).

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use ascribe_corpus::BpeTokenizer;
use ascribe_models::Decoder;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, text] = arguments.as_slice() else { return Err("usage: logits MODEL_FOLDER TEXT_FILE".into()) };
    let model = Path::new(model);
    let decoder = Decoder::load(model, "model.safetensors")?;
    let tokenizer = BpeTokenizer::load(&model.join("tokenizer.json"))?;
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let last_logits = decoder.logits(&ids)?.rows().into_iter().next_back().map(|row| row.to_vec());
    let facts = json!({ "tokens": ids, "token_nll": decoder.token_nll(&ids)?, "last_logits": last_logits });
    writeln!(std::io::stdout(), "{facts}")?;
    Ok(())
}
