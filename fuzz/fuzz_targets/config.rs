//! Bytes as a `config.json` or an `adapter_config.json`: refused, or settings that survive being written.
#![no_main]

use std::path::Path;

use ascribe_models::lora::LoraConfig;
use ascribe_models::{DecoderConfig, ParameterLayout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let path = Path::new("fuzz.json");
    if let Ok(config) = DecoderConfig::from_json(&value, path) {
        if config.num_hidden_layers < 64 {
            assert_eq!(ParameterLayout::new(&config).len(), config.num_parameters());
        }
        let again = DecoderConfig::from_json(&config.to_json(), path).expect("what is written is read");
        assert_eq!(again, config);
    }
    if let Ok(config) = LoraConfig::from_json(&value, path) {
        assert_eq!(LoraConfig::from_json(&config.to_json(false), path).expect("what is written is read"), config);
    }
});
