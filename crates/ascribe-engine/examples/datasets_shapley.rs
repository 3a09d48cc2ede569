#![allow(clippy::print_stdout)] // an example talks to a person
//! Runs the setting of whole datasets and prints its report as JSON.
//!
//! `cargo run --release -p ascribe-engine --example datasets_shapley` in the repository, with the setting's bank in place.

use ascribe_core::NoProgress;
use ascribe_engine::Home;
use ascribe_engine::bench::datasets;
use ascribe_engine::bench::setting::Setting;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = Home::find(None)?;
    let setting = Setting::named(&home, "datasets-shapley")?;
    let report = datasets::run(&home, &setting, &[], &NoProgress)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
