//! Runs on a tiny setting of random images: banks are built, judged, refused when they belong to another recipe.

use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_methods::rows::InMemory;
use ascribe_methods::source::{CaptureSource, Labels};
use ascribe_methods::{captured, trak};
use ndarray::Array2;

use super::*;
use crate::bench::contest::Verdict;
use crate::bench::lab::{Quantity, Which};
use crate::bench::methods::{Method, Spec, trak_places};
use crate::bench::runners::build_bank;

const TINY: &str = r#"
name = "tiny"
about = "two classes that a line separates"
[subject]
kind = "images"
model = { kind = "lr" }
checkpoint_epochs = [1, 3]
[subject.data]
images = "train.idx3"
labels = "train.idx1"
mean = [0.5]
std = [0.5]
[subject.queries]
images = "query.idx3"
labels = "query.idx1"
[subject.train]
epochs = 3
batch = 4
drop_last = false
lr = 0.1
schedule = "constant"
weight_decay = 0.0
optimizer = { kind = "sgd", momentum = 0.0 }
[banks.halves]
players = "examples"
draw = { kind = "random", m = 8, alpha = 0.5, seed = 1 }
seeds = [1, 2]
[banks.loo]
players = "examples"
draw = { kind = "leave_one_out", m = 5, seed = 1 }
seeds = [1]
[protocols.mislabel]
part = 0.25
queries = 8
seed = 1
[protocols.subclass]
merge = 2
queries = 4
[protocols.removal]
parts = [0.1, 0.4]
queries = 2
seeds = [1]
methods = ["embedding"]
[protocols.tail_patch]
k = 3
queries = 4
[[gates]]
about = "similar images help"
methods = ["embedding"]
figure = "lds"
at_least = 0.1
"#;

/// A home with a setting of 24 images of 2 × 2 in two classes that a line separates.
pub(super) fn tiny(dir: &Path) -> (Home, Setting) {
    tiny_of(dir, |i| {
        let class = (i % 2) as u8;
        [200 * class + (i % 7) as u8, 100, 200 * (1 - class) + (i % 5) as u8, (i * 37 % 251) as u8]
    })
}

/// The same of other images.
fn tiny_of(dir: &Path, image: impl Fn(u32) -> [u8; 4]) -> (Home, Setting) {
    std::fs::create_dir_all(dir.join("datasets")).unwrap();
    std::fs::create_dir_all(dir.join("models")).unwrap();
    let folder = dir.join("benches/settings/tiny");
    let idx = |name: &str, dims: &[u32], bytes: &[u8]| {
        let mut file = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| file.extend(d.to_be_bytes()));
        file.extend(bytes);
        files::write_atomic(&folder.join(name), &file).unwrap();
    };
    for (name, n) in [("train", 24u32), ("query", 6)] {
        let pixels: Vec<u8> = (0..n).flat_map(&image).collect();
        let labels: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
        idx(&format!("{name}.idx3"), &[n, 2, 2], &pixels);
        idx(&format!("{name}.idx1"), &[n], &labels);
    }
    files::write_atomic(&folder.join("setting.toml"), TINY.as_bytes()).unwrap();
    let home = Home::find(Some(dir)).unwrap();
    let setting = Setting::named(&home, "tiny").unwrap();
    (home, setting)
}

pub(super) fn build(home: &Home, setting: &Setting) {
    for bank in ["halves", "loo"] {
        build_bank(home, setting, bank, None, (0, 1), &NoProgress).unwrap();
    }
}

#[test]
fn a_setting_from_its_images_to_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    let error = run(&home, &setting, &RunOptions::default(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("ascribe bench bank tiny"), "{error}");
    build(&home, &setting);
    assert_eq!(build_bank(&home, &setting, "halves", None, (0, 1), &NoProgress).unwrap(), 0, "all is there");

    let listed = list(&home).unwrap();
    assert_eq!(
        (listed[0].name.as_str(), listed[0].banks[0].complete, listed[0].banks[0].subsets),
        ("tiny", 2, Some(8))
    );

    let out = dir.path().join("out");
    let methods =
        ["embedding", "random", "grad_dot", "tracin_cp", "ekfac", "cg", "logra", "magic"].map(str::to_owned).to_vec();
    let options = RunOptions { out: Some(out.clone()), methods, ..RunOptions::default() };
    let report = run(&home, &setting, &options, &NoProgress).unwrap();
    assert_eq!(report.notes, Vec::<String>::new(), "every method ran");
    assert_eq!((report.queries, report.examples, report.truth.subsets, report.truth.seeds), (6, 24, 8, 2));
    let names: Vec<&String> = report.methods.keys().collect();
    assert!(names.iter().any(|n| *n == "embedding") && names.iter().any(|n| *n == "random"), "{names:?}");
    let embedding = &report.methods["embedding"];
    assert!(
        embedding.value.is_some()
            && embedding.extra.contains_key("loo_pearson")
            && embedding.figure("class_top1").is_some(),
        "{embedding:?}"
    );
    assert_eq!(report.gates[0].met, embedding.value.map(|v| v >= 0.1));
    let written: SettingReport = serde_json::from_slice(&files::read(&out.join("tiny/report.json")).unwrap()).unwrap();
    assert_eq!(written, report);

    // The second run finds all scores; the costs are those of the first.
    assert_eq!(run(&home, &setting, &options, &NoProgress).unwrap(), report);
    let fewer = RunOptions { queries: Some(2), methods: vec!["embedding".into()], ..options };
    let fewer = run(&home, &setting, &fewer, &NoProgress).unwrap();
    assert_eq!((fewer.queries, fewer.methods.len(), fewer.methods["embedding"].n), (2, 1, 2));
}

#[test]
fn protocols_are_run_kept_and_noted_where_they_cannot_run() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let out = dir.path().join("out");
    let methods = ["embedding", "grad_dot", "loss", "random"].map(str::to_owned).to_vec();
    let protocols = vec!["all".to_owned()];
    let options = RunOptions { out: Some(out.clone()), methods, protocols, ..RunOptions::default() };
    let report = run(&home, &setting, &options, &NoProgress).unwrap();
    // Two classes cannot be merged; everybody else is measured.
    assert_eq!(report.notes.len(), 4, "{:?}", report.notes);
    assert!(report.notes.iter().all(|n| n.starts_with("subclass of ") && n.contains("merge: expected")));
    for (name, figure) in &report.methods {
        for measure in ["mislabel_auc", "mislabel_found_area", "tail_patch", "tail_patch_low", "class_top1"] {
            assert!(figure.extra.contains_key(measure), "{name} {measure}");
        }
        let removed = ["removal_effect@0.1", "removal_effect", "brittleness@0.4", "removals_to_flip"];
        assert!(removed.iter().all(|m| figure.extra.contains_key(*m) == (name == "embedding")), "{name}");
    }
    // A wrong label on a line's wrong side has a large loss and a large gradient; the own cosine is always 1.
    let auc = |name: &str| report.methods[name].figure("mislabel_auc").unwrap();
    assert!(auc("loss") > 0.9 && auc("grad_dot") > 0.9, "{} {}", auc("loss"), auc("grad_dot"));
    assert_eq!(auc("embedding"), 0.5);
    assert!(out.join("tiny/protocols/removal/embedding.json").exists());
    assert_eq!(run(&home, &setting, &options, &NoProgress).unwrap(), report, "kept figures are used again");
    // Those that another build left are, if that is asked for: here one with a figure that nobody would measure.
    let kept = out.join("tiny/protocols/tail_patch/embedding.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    json["program"] = serde_json::to_value(Digest::of(b"another build")).unwrap();
    json["figures"]["tail_patch"] = 77.0.into();
    std::fs::write(&kept, json.to_string()).unwrap();
    let figure = |any_build| {
        let options = RunOptions { any_build, ..options.clone() };
        run(&home, &setting, &options, &NoProgress).unwrap().methods["embedding"].extra["tail_patch"]
    };
    assert_eq!(figure(true), Some(77.0));
    assert_eq!(figure(false), report.methods["embedding"].extra["tail_patch"], "measured again");
    // Kept figures of other settings are not.
    let path = dir.path().join("benches/settings/tiny/setting.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("k = 3", "k = 99").replace("parts = [0.1, 0.4]", "parts = [0.4]")).unwrap();
    let other = run(&home, &Setting::named(&home, "tiny").unwrap(), &options, &NoProgress).unwrap();
    let embedding = &other.methods["embedding"];
    assert!(!embedding.extra.contains_key("removal_effect@0.1") && embedding.extra.contains_key("removal_effect@0.4"));
    assert!(other.notes.iter().any(|n| n.contains("tail_patch of loss did not run: --k: expected 1 to 24, found 99")));
    assert!(!embedding.extra.contains_key("tail_patch"));
    // None asked for, none run; unknown ones are refused before anything runs.
    let none = RunOptions { protocols: vec![], ..options.clone() };
    let none = run(&home, &setting, &none, &NoProgress).unwrap();
    assert!(none.notes.is_empty() && !none.methods["loss"].extra.contains_key("mislabel_auc"));
    let unknown = RunOptions { protocols: vec!["magic".into()], ..options };
    let error = run(&home, &setting, &unknown, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("--protocols: expected all or some of mislabel, subclass, removal, tail_patch"), "{error}");
}

#[test]
fn quick_methods_run_when_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let setting = Setting { quick: vec!["random".into(), "embedding".into()], ..setting };
    let names = |methods: &[&str]| {
        let methods = methods.iter().map(|m| (*m).to_owned()).collect();
        let report = run(&home, &setting, &RunOptions { methods, ..RunOptions::default() }, &NoProgress).unwrap();
        report.methods.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["embedding", "random"]);
    assert_eq!(names(&["loss"]), ["loss"]);
    let all = known_methods(&home, &setting).unwrap();
    assert_eq!(all.iter().filter(|m| m.quick).count(), 2);
    assert!(setting.asked(&["all".to_owned()]).is_empty() && all.len() > 20, "no names stand for every one");
    let error = known_methods(&home, &Setting { quick: vec!["magick".into()], ..setting.clone() }).unwrap_err();
    assert!(error.to_string().contains("setting.toml: expected `quick` to name methods"), "{error}");
    let stale = Setting { quick: vec!["magick".into()], ..setting.clone() };
    let error = run(&home, &stale, &RunOptions::default(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("magick"), "a setting file that names what is not there is told: {error}");
}

#[test]
fn foreign_banks_and_unknown_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let unknown = RunOptions { methods: vec!["magick".into()], ..RunOptions::default() };
    let error = run(&home, &setting, &unknown, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("--methods: expected one of") && error.contains("magick"), "{error}");
    assert!(Setting::named(&home, "tinny").unwrap_err().to_string().contains("one of tiny"));
    let path = dir.path().join("benches/settings/tiny/setting.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("lr = 0.1", "lr = 0.2")).unwrap();
    let other = Setting::named(&home, "tiny").unwrap();
    let error = run(&home, &other, &RunOptions::default(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("a bank of this setting's data and recipe"), "{error}");
    // A method that fails costs the others nothing; alone it is the error.
    std::fs::write(&path, text.replace("epochs = 3", "epoch = 3")).unwrap();
    assert!(Setting::named(&home, "tiny").unwrap_err().to_string().contains("setting.toml"));
}

/// Grey images alone: every gradient is a multiple of one vector, the curvature has rank 1, embeddings are all zero. Damping,
/// or a definition for lengths of zero, leaves every method an answer: none refuses, and none has a number that is none.
#[test]
fn images_without_content_give_defined_results() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny_of(dir.path(), |_| [127; 4]);
    build(&home, &setting);
    let out = dir.path().join("out");
    let methods = vec!["all".to_owned()];
    let options = RunOptions { out: Some(out.clone()), methods, ..RunOptions::default() };
    let report = run(&home, &setting, &options, &NoProgress).unwrap();
    let known = known_methods(&home, &setting).unwrap();
    assert!(known.len() > 30 && report.methods.len() == known.len(), "{:#?}", report.notes);
    for method in &known {
        let figure = &report.methods[&method.name];
        let numbers = [figure.value, figure.low, figure.high].into_iter().chain(figure.extra.values().copied());
        assert!(numbers.flatten().all(f64::is_finite), "{figure:?}");
        let path = out.join("tiny/scores").join(format!("{}.safetensors", method.name));
        let file = ascribe_store::FactorFile::read(&path, None).unwrap();
        let values = file.tensors["values"].as_f32().unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{}", method.name);
    }
    assert!(report.notes.iter().all(|note| !note.contains("did not run")), "{:#?}", report.notes);
}

#[test]
fn what_cannot_be_run_is_told_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let none = RunOptions { queries: Some(0), ..RunOptions::default() };
    let error = run(&home, &setting, &none, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("--queries: expected at least 1, found 0"), "{error}");
    // A NaN in a bank's file is found, by its checksum or by itself.
    let path = dir.path().join("benches/settings/tiny/banks/halves/seed-1.safetensors");
    let mut bytes = files::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    files::write_atomic(&path, &bytes).unwrap();
    let error = run(&home, &setting, &RunOptions::default(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("seed-1.safetensors"), "{error}");
}

/// Fails, or gives scores of the wrong shape.
struct Broken(&'static str, usize);

impl Contestant<ImageLab> for Broken {
    fn name(&self) -> &str {
        self.0
    }
    fn about(&self) -> &str {
        "never works"
    }
    fn source(&self) -> &str {
        "—"
    }
    fn run(&self, _: &ImageLab, _: &dyn Progress) -> Result<Scores, EngineError> {
        let values = ndarray::Array2::from_elem((6, self.1), 1.0);
        let settings = serde_json::Value::Null;
        Ok(Scores { values, cpu_fit: 0.0, cpu_score: 0.0, bytes_per_example: 0.0, settings })
    }
}

#[test]
fn a_broken_method_is_noted_and_a_constant_one_has_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let Subject::Images(subject) = &setting.subject else { panic!("an image setting") };
    let images = subject.open(&setting.dir).unwrap();
    let lab = ImageLab::new(subject.as_ref().clone(), images).unwrap();
    let bank = read_bank(&setting, "halves").unwrap();
    let options = RunOptions::default();
    let arena = || Arena {
        setting: &setting,
        options: &options,
        lab: lab.digest(),
        truths: Truths { banks: vec![("halves".into(), bank.clone())], ..Truths::default() },
        notes: Vec::new(),
        n_queries: 6,
        columns: vec![24],
    };
    let wrong = || -> Box<dyn Contestant<ImageLab>> { Box::new(Broken("wrong", 23)) };
    let report =
        arena().hold(vec![wrong(), Box::new(Broken("constant", 24))], &lab, &NoProgress, &|_, _, _| Ok(())).unwrap();
    assert_eq!(report.methods.len(), 1);
    assert_eq!((report.methods["constant"].value, report.methods["constant"].n_undefined), (None, 6));
    assert!(report.notes[0].contains("wrong did not run") && report.notes[0].contains("6 × 23"), "{:?}", report.notes);
    let error = arena().hold(vec![wrong()], &lab, &NoProgress, &|_, _, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("method `wrong`"), "{error}");
    assert_eq!(Verdict::default().main, None);
    assert_eq!(lab.stretches().len(), 2);
    let last = lab.train(0, Some(3)).unwrap();
    assert_eq!(last.parameters(), lab.train(0, None).unwrap().parameters(), "the last kept epoch is the model");
    assert_ne!(last.parameters(), lab.train(1, None).unwrap().parameters());
}

/// Halves are halves, each its own; TRAK on them and with other projections has other scores, with the same ones the same bytes; and
/// its projection is the matrix that is told to others.
#[test]
fn trak_on_halves_and_its_projection() {
    let dir = tempfile::tempdir().unwrap();
    let (_, setting) = tiny(dir.path());
    let Subject::Images(subject) = &setting.subject else { panic!("an image setting") };
    let lab = ImageLab::new(subject.as_ref().clone(), subject.open(&setting.dir).unwrap()).unwrap();
    let half = |offset| lab.train_on_half(offset).unwrap().parameters().to_vec();
    assert_ne!(half(0), lab.train(0, None).unwrap().parameters());
    assert_ne!(half(0), half(1));
    let scores = |models: u64, settings: &str| {
        let text = format!(r#"{{"method":"trak","models":{models},"dim":4,"ridge":0.1{settings}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let method = Method { name: "t".into(), about: String::new(), source: String::new(), spec };
        method.run(&lab as &dyn Lab, &NoProgress).unwrap().values
    };
    let plain = scores(2, "");
    assert_eq!(plain, scores(2, r#","halves":false,"projection":0"#));
    assert_ne!(plain, scores(2, r#","halves":true"#));
    assert_ne!(plain, scores(2, r#","projection":1"#));
    assert_eq!(scores(2, r#","halves":true"#), scores(2, r#","halves":true"#));
    let view = lab.model(Which::Final(0)).unwrap();
    let layers = view.train(Quantity::Loss).unwrap().layers().to_vec();
    let places = trak_places(&layers, 4, 0);
    assert_eq!(places.len(), 10, "two classes of four pixels and a bias");
    assert!(places.iter().all(|&(place, sign)| place < 4 && sign.abs() == 1.0));
    assert_ne!(places, trak_places(&layers, 4, 1));
    // A second route to one model's scores: rows by the places that are told, then the formula.
    let rows = |source: &dyn CaptureSource| {
        let ids: Vec<u32> = (0..source.len() as u32).collect();
        let gradients = captured::gradients(source, &ids, Labels::Given).unwrap();
        let mut out = Array2::<f32>::zeros((ids.len(), 4));
        for ((row, column), &g) in gradients.indexed_iter() {
            let (place, sign) = places[column];
            out[(row, place as usize)] += g * sign;
        }
        out
    };
    let train = rows(view.train(Quantity::NegativeMargin).unwrap().as_ref());
    let queries = rows(view.queries(Quantity::NegativeMargin).unwrap().as_ref());
    let (ridge, soft) = (trak::Ridge::Relative { part: 0.1 }, trak::SoftThreshold::None);
    let residuals = view.residuals().unwrap();
    let expected =
        trak::score(&InMemory::new(train.view()), queries.view(), &residuals, ridge, soft, &NoProgress).unwrap();
    assert_eq!(scores(1, ""), expected.values);
}
