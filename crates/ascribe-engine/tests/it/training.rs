//! Training: the recorded losses come again, an interruption changes nothing, a bank goes on where it stopped.

use std::cell::RefCell;
use std::fs;

use ascribe_core::NoProgress;
use ascribe_engine::recipe::Recipe;
use ascribe_engine::train::run::{LOSS_LOG_FILE, LossLine, RUN_RECORD_FILE, read_log};
use ascribe_engine::{EngineError, bank, files, train};
use ascribe_registry::{Registry, RunRecord};

use crate::common::{SEEDS, StopAfter, copy_folder, corpus, finished, repository};

/// Products are summed in another order by another instruction set; after five steps that moves a loss by less than
/// this. On the instruction set that the model was trained on the losses are the same to the last bit.
const OTHER_CPU_REL: f64 = 1e-4;

#[test]
fn the_first_steps_of_the_shipped_model_give_the_recorded_losses() {
    const STEPS: usize = 5;
    let model = repository().join("models/wren");
    let recipe = Recipe::read(&model.join("recipe.toml")).unwrap();
    let registry = Registry::open(&repository().join("datasets")).unwrap();
    let corpus = corpus(&registry, &recipe, &model);
    let recorded = read_log(&model).unwrap();
    assert_eq!(recorded.len(), recipe.train.steps as usize);
    let lines = RefCell::new(Vec::new());
    let stop = StopAfter::new("train", STEPS as u64);
    let outcome = train::train(&corpus, &recipe, recipe.seed, None, None, &stop, |step, _| {
        let line = LossLine { step: step.step, loss: step.loss, grad_norm: step.grad_norm, lr: step.lr };
        lines.borrow_mut().push(line);
        Ok(())
    });
    assert!(matches!(outcome, Err(EngineError::Stopped)));
    let lines = lines.into_inner();
    assert_eq!(lines.len(), STEPS);
    for (found, recorded) in lines.iter().zip(&recorded) {
        assert_eq!((found.step, found.lr), (recorded.step, recorded.lr));
        for (what, a, b) in [("loss", found.loss, recorded.loss), ("norm", found.grad_norm, recorded.grad_norm)] {
            let relative = (a - b).abs() / b;
            assert!(relative <= OTHER_CPU_REL, "step {}: {what} {a}, recorded {b}", found.step);
        }
    }
    // A loss of five steps ago is no loss: the first must be that of guessing, and it must fall.
    assert!((lines[0].loss - (recipe.corpus.vocab_size as f64).ln()).abs() < 0.1, "{}", lines[0].loss);
    assert!(lines[STEPS - 1].loss < lines[0].loss);
}

#[test]
fn an_interrupted_training_ends_with_the_same_files() {
    let tiny = finished().tiny.copy();
    let again = tiny.root().join("models/again");
    let (registry, recipe) = (tiny.registry(), tiny.recipe());
    for limit in [17, 32] {
        let stop = StopAfter::new("train", limit);
        let error = train::run::run(&registry, &recipe, &again, &stop).unwrap_err();
        assert!(matches!(error, EngineError::Stopped), "{error}");
        assert!(!again.join(RUN_RECORD_FILE).exists() && !again.join("model.safetensors").exists());
        assert_eq!(read_log(&again).unwrap().len() as u64, limit);
    }
    let report = train::run::run(&registry, &recipe, &again, &NoProgress).unwrap();
    assert_eq!(report.steps, 40);
    let names = files::list(&again).unwrap();
    assert!(
        names.contains(&"model.safetensors".to_owned()) && names.iter().all(|n| !n.contains(".state")),
        "{names:?}"
    );
    // The record names another start, and nothing else may differ.
    for name in names.iter().filter(|n| *n != RUN_RECORD_FILE) {
        assert_eq!(fs::read(again.join(name)).unwrap(), fs::read(tiny.model().join(name)).unwrap(), "{name}");
    }
    let read = |dir: &std::path::Path| RunRecord::read(&dir.join(RUN_RECORD_FILE)).unwrap();
    assert_eq!(read(&again).subjects, read(&tiny.model()).subjects);
    assert_eq!(read(&again).datasets, read(&tiny.model()).datasets);
    assert!(names.contains(&LOSS_LOG_FILE.to_owned()));
}

#[test]
fn the_record_of_a_training_names_all_that_it_stands_on() {
    let tiny = &finished().tiny;
    let record = RunRecord::read(&tiny.model().join(RUN_RECORD_FILE)).unwrap();
    let (registry, corpus) = (tiny.registry(), tiny.corpus());
    assert_eq!(record.datasets.len(), 3);
    for ((used, dataset), part) in record.datasets.iter().zip(registry.datasets()).zip(&corpus.manifest.datasets) {
        assert_eq!(used.content_root, dataset.manifest.content_root);
        assert_eq!(used.licence_digest, dataset.licence.digest());
        assert_eq!(used.records_used, part.records_used);
        assert!(part.records_used + part.records_held_out <= dataset.manifest.record_count);
    }
    assert_eq!((record.seed, record.steps, record.recipe_sha256), (1, 40, tiny.recipe().digest()));
    assert!(record.started_unix_s <= record.finished_unix_s);
}

#[test]
fn a_bank_trains_only_what_is_missing() {
    let tiny = finished().tiny.copy();
    let dir = tiny.model().join("bank");
    let read = |path: &std::path::Path| -> serde_json::Value {
        let mut cell: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        cell.as_object_mut().unwrap().remove("seconds").expect("a cell says how long it took");
        cell
    };
    let path = bank::cell_path(&dir, 2, Some("zh-classics"));
    let before: Vec<_> = files::list(&dir).unwrap().iter().map(|n| (n.clone(), read(&dir.join(n)))).collect();
    assert_eq!(before.len(), 8);
    let kept = bank::cell_path(&dir, 2, None);
    let modified = fs::metadata(&kept).unwrap().modified().unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(tiny.build_bank(), 1);
    assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), modified);
    for (name, cell) in &before {
        assert_eq!(&read(&dir.join(name)), cell, "{name}");
    }
    assert_eq!(tiny.build_bank(), 0);
}

#[test]
fn two_shards_of_work_and_an_interruption_make_the_same_bank() {
    let tiny = finished().tiny.copy();
    let (corpus, recipe) = (tiny.corpus(), tiny.recipe());
    let dir = tiny.root().join("bank");
    let stop = StopAfter::new("train", 60);
    let error = bank::build(&dir, &corpus, &recipe, &SEEDS, (1, 2), &stop).unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error}");
    let first = bank::build(&dir, &corpus, &recipe, &SEEDS, (1, 2), &NoProgress).unwrap();
    assert_eq!(first, 3, "one of the shard's four cells was done before the stop");
    // The other shard comes from another machine.
    let shipped = tiny.model().join("bank");
    let other = tiny.root().join("other");
    copy_folder(&shipped, &other);
    for name in files::list(&dir).unwrap() {
        fs::copy(dir.join(&name), other.join(&name)).unwrap();
    }
    let read = |dir| bank::Bank::read(dir, &corpus, &recipe).unwrap().unwrap();
    let (a, b) = (read(&shipped), read(&other));
    assert_eq!((a.seeds, a.full, a.change), (b.seeds, b.full, b.change));
}
