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
use ascribe_engine::bench::lab::{self, Lab, Quantity, Which};
use ascribe_engine::bench::methods::{Method, random_bases, trak_places};
use ascribe_engine::bench::setting::Setting;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["weights", setting, path] => weights(setting, "final:0", Path::new(path)),
        ["weights", setting, path, which] => weights(setting, which, Path::new(path)),
        ["projection", setting, width, path] => projection(setting, width.parse()?, Path::new(path)),
        ["bases", setting, k, path] => bases(setting, k.parse()?, Path::new(path)),
        [setting, spec, path] => scores(setting, spec, Path::new(path)),
        _ => Err("usage: influence_scores SETTING SPEC.json OUT.npy\n       influence_scores weights SETTING \
            OUT.safetensors [final:K|kept:K]\n       influence_scores projection SETTING WIDTH OUT.npy\n       \
            influence_scores bases SETTING K OUT.npy\nSETTING is a shipped one's name or the path of a setting.toml"
            .into()),
    }
}

/// A shipped setting by its name, or any by the path of its file.
fn opened(setting: &str) -> Result<Box<dyn Lab>, Box<dyn std::error::Error>> {
    let home = Home::find(None)?;
    let setting = match setting.ends_with(".toml") {
        true => Setting::read(Path::new(setting))?,
        false => Setting::named(&home, setting)?,
    };
    Ok(lab::open(&home, &setting)?)
}

/// Runs the method and saves its scores `[Q, N]`.
fn scores(setting: &str, spec: &str, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lab = opened(setting)?;
    let method =
        Method { name: "given".into(), about: String::new(), source: String::new(), spec: serde_json::from_str(spec)? };
    let scores = method.run(lab.as_ref() as &dyn Lab, &NoProgress)?;
    write_npy(path, scores.values.dim(), scores.values.iter().copied())?;
    println!(
        "{}",
        serde_json::json!({ "cpu_fit": scores.cpu_fit, "cpu_score": scores.cpu_score, "settings": scores.settings })
    );
    Ok(())
}

fn write_npy(
    path: &Path,
    (rows, columns): (usize, usize),
    values: impl Iterator<Item = f32>,
) -> Result<(), Box<dyn std::error::Error>> {
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
    for v in values {
        file.write_all(&v.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// Saves a model of a setting of images, with its names in PyTorch's manner: trained to the end under seed 1 + K, or the K-th kept
/// checkpoint of the model that is explained. Prints the sums of learning rates up to each kept checkpoint from the one before.
fn weights(setting: &str, which: &str, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lab = opened(setting)?;
    let images = lab.images().ok_or("a setting of images")?;
    let model = match which.split_once(':') {
        Some(("final", k)) => images.train(k.parse()?, None)?,
        Some(("kept", k)) => {
            let epochs = &images.subject.checkpoint_epochs;
            images.train(0, Some(*epochs.get(k.parse::<usize>()?).ok_or("a kept checkpoint")?))?
        }
        _ => return Err("final:K or kept:K".into()),
    };
    model.save(path, ascribe_core::RowType::F32, &std::collections::BTreeMap::new())?;
    let sums: Vec<f64> = lab.stretches().iter().map(|stretch| stretch.learning_rate_sum).collect();
    println!("{}", serde_json::json!({ "learning_rate_sums": sums }));
    Ok(())
}

/// Saves TRAK's projection of the first model, `[P, 2]`: where each number of a gradient in layer form goes, and its sign.
fn projection(setting: &str, width: usize, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lab = opened(setting)?;
    let view = lab.model(Which::Final(0))?;
    let places = trak_places(view.train(Quantity::Loss)?.layers(), width, 0);
    write_npy(path, (places.len(), 2), places.into_iter().flat_map(|(place, sign)| [place as f32, sign]))
}

/// Saves LoGra's matrices of the first model, one row of numbers: per layer `P_in [k_in, n_in]`, then `P_out [k_out, n_out]`.
fn bases(setting: &str, k: usize, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lab = opened(setting)?;
    let view = lab.model(Which::Final(0))?;
    let bases = random_bases(view.train(Quantity::Loss)?.layers(), k);
    let numbers: Vec<f32> = bases.iter().flat_map(|b| b.input.iter().chain(&b.output)).map(|&v| v as f32).collect();
    write_npy(path, (1, numbers.len()), numbers.into_iter())
}
