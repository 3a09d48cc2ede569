//! Bytes as the weights of a small fixed model: refused, or finite.
//!
//! Set TMPDIR to a folder in memory: every run writes its bytes to a file, as a stranger would.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use ascribe_models::{Decoder, DecoderConfig};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("ascribe-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
    let config = DecoderConfig::llama(5, 4, 4, 1, 1, 1, 8);
    let text = config.to_json().to_string();
    std::fs::write(folder.join("config.json"), text).expect("a temporary file can be written");
    folder
});

fuzz_target!(|data: &[u8]| {
    std::fs::write(FOLDER.join("model.safetensors"), data).expect("a temporary file can be written");
    if let Ok(decoder) = Decoder::load(&FOLDER, "model.safetensors") {
        assert!(decoder.parameters().iter().all(|x| x.is_finite()));
    }
});
