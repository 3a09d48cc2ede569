//! The bench on a decoder, every method of its catalogue: gradients of a real training, its moments, its kept checkpoints.

use std::collections::BTreeMap;

use ascribe_core::NoProgress;
use ascribe_engine::bench::run::{RunOptions, known_methods, run};
use ascribe_engine::bench::runners::build_bank;
use ascribe_engine::bench::setting::Setting;
use ascribe_engine::files;
use ascribe_store::FactorFile;

use crate::common::finished;

const SETTING: &str = r#"
name = "tiny-text"
about = "the tiny decoder; truth from trainings on random halves"
[subject]
kind = "decoder"
model = "tiny"
[banks.halves]
players = "examples"
draw = { kind = "random", m = 4, alpha = 0.5, seed = 1 }
seeds = [1]
"#;

/// Methods that this decoder has no answer for, with a part of the reason that is noted.
const REFUSED: [(&str, &str); 0] = [];

#[test]
fn every_method_of_the_catalogue_runs_on_a_decoder_or_says_why_not() {
    let tiny = finished().tiny.copy();
    let dir = tiny.root().join("benches/settings/tiny-text");
    files::write_atomic(&dir.join("setting.toml"), SETTING.as_bytes()).unwrap();
    let home = tiny.home();
    let setting = Setting::named(&home, "tiny-text").unwrap();
    assert_eq!(build_bank(&home, &setting, "halves", None, (0, 1), &NoProgress).unwrap(), 4);
    let out = tiny.root().join("bench");
    // Three responses: iterative methods solve for each.
    let methods = vec!["all".to_owned()];
    let options = RunOptions { out: Some(out.clone()), methods, queries: Some(3), ..RunOptions::default() };
    let report = run(&home, &setting, &options, &NoProgress).unwrap();
    let known: Vec<String> = known_methods(&home, &setting).unwrap().into_iter().map(|m| m.name).collect();
    for name in [
        "less",
        "trackstar",
        "trak_3",
        "ekfac_3",
        "source",
        "astra",
        "lorif",
        "lorif_whitened",
        "lorif_fused",
        "logra_fused",
        "sketch_and_text",
    ] {
        assert!(known.iter().any(|k| k == name), "{name} is in {known:?}");
    }
    let mut refused = BTreeMap::new();
    for name in &known {
        let Some(figure) = report.methods.get(name) else {
            let told = format!("{name} did not run: ");
            let note = report.notes.iter().find_map(|note| note.strip_prefix(&told));
            refused.insert(name.as_str(), note.unwrap_or_else(|| panic!("nothing is said of {name}")));
            continue;
        };
        let numbers = [figure.value, figure.low, figure.high].into_iter().chain(figure.extra.values().copied());
        assert!(numbers.flatten().all(f64::is_finite), "{figure:?}");
        let path = out.join("tiny-text/scores").join(format!("{name}.safetensors"));
        let scores = FactorFile::read(&path, None).unwrap();
        let values = scores.tensors["values"].as_f32().unwrap();
        assert!(values.shape()[0] > 0 && values.shape()[1] == report.examples, "{name}: {:?}", values.shape());
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
        // Ranks need scores that differ; a method that says nothing about these texts would be noticed here.
        assert!(values.iter().any(|v| Some(v) != values.first()), "{name} gives every text the same score");
    }
    let names: Vec<&&str> = refused.keys().collect();
    assert!(
        refused.len() == REFUSED.len()
            && REFUSED.iter().all(|(name, why)| refused.get(name).is_some_and(|r| r.contains(why))),
        "{names:?}: {refused:?}"
    );
}
