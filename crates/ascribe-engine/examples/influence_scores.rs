//! One method of the bench by its settings, scores as `.npy`: what `benches/peers/influence_compare.sh` puts beside a peer's.
//!
//! ```text
//! cargo run --release -p ascribe-engine --example influence_scores -- mnist-lr '{"method":"gradient","normalise":"none"}' out.npy
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its figures")]

use std::io::Write;
use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_engine::Home;
use ascribe_engine::bench::contest::Contestant;
use ascribe_engine::bench::lab::{self, Lab};
use ascribe_engine::bench::methods::Method;
use ascribe_engine::bench::setting::Setting;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [setting, spec, path] = &arguments[..] else {
        return Err("usage: influence_scores SETTING SPEC.json OUT.npy".into());
    };
    if setting == "weights" {
        return weights(spec, Path::new(path));
    }
    let home = Home::find(None)?;
    let setting = Setting::named(&home, setting)?;
    let lab = lab::open(&home, &setting)?;
    let method =
        Method { name: "given".into(), about: String::new(), source: String::new(), spec: serde_json::from_str(spec)? };
    let scores = method.run(lab.as_ref() as &dyn Lab, &NoProgress)?;
    let (rows, columns) = scores.values.dim();
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // Magic, version and length are ten bytes; the head ends with a newline at a multiple of 64.
    while !(10 + head.len() + 1).is_multiple_of(64) {
        head.push(' ');
    }
    head.push('\n');
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(head.len() as u16).to_le_bytes())?;
    file.write_all(head.as_bytes())?;
    for v in &scores.values {
        file.write_all(&v.to_le_bytes())?;
    }
    file.flush()?;
    println!(
        "{}",
        serde_json::json!({ "cpu_fit": scores.cpu_fit, "cpu_score": scores.cpu_score, "settings": scores.settings })
    );
    Ok(())
}

/// Saves the model that a setting of images explains, with its names in PyTorch's manner.
fn weights(setting: &str, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let home = Home::find(None)?;
    let setting = Setting::named(&home, setting)?;
    let lab = lab::open(&home, &setting)?;
    let model = lab.images().ok_or("a setting of images")?.train(0, None)?;
    model.save(path, ascribe_core::RowType::F32, &std::collections::BTreeMap::new())?;
    Ok(())
}
