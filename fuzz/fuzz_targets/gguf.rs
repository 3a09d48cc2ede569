//! Bytes as a GGUF file: refused, or a model with finite weights.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok((config, parameters)) = ascribe_models::gguf::read(Cursor::new(data), Path::new("fuzz.gguf")) {
        assert_eq!(parameters.len(), ascribe_models::ParameterLayout::new(&config).len());
        assert!(parameters.iter().all(|x| x.is_finite()));
    }
});
