//! What ships is what the papers say: the model, its training-run record and its truth, against the registered datasets.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use ascribe_core::{Digest, NoProgress};
use ascribe_corpus::Corpus;
use ascribe_engine::DEFAULT_MODEL;
use ascribe_engine::bank::Bank;
use ascribe_engine::recipe::Recipe;
use ascribe_engine::train::order::Sampler;
use ascribe_engine::train::run::{HELD_OUT_FILE, HeldOutRow, RUN_RECORD_FILE, dataset_parts, read_log, tokenizer};
use ascribe_models::train::load_second_moments;
use ascribe_models::{Decoder, Trainer};
use ascribe_registry::{Registry, RunRecord};
use ascribe_tests::root;

/// Steps of the recorded training that are made again.
const REPEATED_STEPS: usize = 3;

/// Responses that the truth must hold, and seeds.
const QUERIES_MIN: usize = 60;
const SEEDS_MIN: usize = 2;

fn model() -> PathBuf {
    root().join("models").join(DEFAULT_MODEL)
}

fn registry() -> Registry {
    Registry::open(&root().join("datasets")).unwrap()
}

fn recipe() -> Recipe {
    Recipe::read(&model().join("recipe.toml")).unwrap()
}

fn corpus() -> Corpus {
    let parts = dataset_parts(&registry()).unwrap();
    let tokenizer = tokenizer(&model(), &parts, &recipe()).unwrap();
    Corpus::build(parts, &tokenizer, recipe().corpus).unwrap()
}

#[test]
fn the_run_record_names_these_files_and_these_datasets() {
    let record = RunRecord::read(&model().join(RUN_RECORD_FILE)).unwrap();
    registry().verify(Some(&record), &NoProgress).unwrap();
    for subject in &record.subjects {
        let bytes = fs::read(model().join(&subject.name)).unwrap();
        assert_eq!(Digest::of(&bytes), subject.sha256, "{}", subject.name);
    }
    let registry = registry();
    assert_eq!(record.datasets.len(), registry.datasets().len());
    for (used, dataset) in record.datasets.iter().zip(registry.datasets()) {
        assert_eq!((used.name.as_str(), used.content_root), (dataset.name(), dataset.id().0));
        assert_eq!(used.licence_digest, dataset.licence.digest(), "{}", used.name);
    }
}

#[test]
fn the_model_has_the_promised_size_and_checkpoints() {
    let config = recipe().decoder_config();
    assert!((800_000..=3_000_000).contains(&config.num_parameters()), "{} parameters", config.num_parameters());
    assert_eq!(Decoder::load(&model(), "model.safetensors").unwrap().config(), &config);
    // The last checkpoint is the model itself.
    let n_kept = fs::read_dir(model().join("checkpoints")).unwrap().count() + 1;
    assert!(n_kept >= 3, "{n_kept} checkpoints");
    let moments = load_second_moments(&config, &model().join("second_moments.safetensors")).unwrap();
    assert!(moments.iter().any(|&moment| moment > 0.0));
}

#[test]
fn the_first_steps_give_the_recorded_losses() {
    let (corpus, recipe) = (corpus(), recipe());
    let mut settings = recipe.train.clone();
    settings.init_seed = recipe.seed;
    let mut trainer = Trainer::new(recipe.decoder_config(), settings).unwrap();
    let mut sampler = Sampler::new(recipe.seed, (0..corpus.examples.len() as u32).collect());
    let log = read_log(&model()).unwrap();
    assert_eq!(log.len(), recipe.train.steps as usize);
    for line in &log[..REPEATED_STEPS] {
        let picks = sampler.batch(trainer.step_count(), recipe.train.batch as usize);
        let batch: Vec<&[u32]> = picks.iter().map(|&i| corpus.examples[i as usize].tokens.as_slice()).collect();
        let report = trainer.step(&batch).unwrap();
        // A processor with other vector units adds in another order within a product: f32 rounding of a loss near 8.
        assert!((report.loss - line.loss).abs() < 1e-4, "step {}: {} against {}", line.step, report.loss, line.loss);
    }
}

#[test]
fn the_model_beats_unigram_and_bigram_on_every_dataset() {
    let text = fs::read_to_string(model().join(HELD_OUT_FILE)).unwrap();
    let rows: Vec<HeldOutRow> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), registry().datasets().len());
    for row in rows {
        let best = row.bits_per_byte_bigram.min(row.bits_per_byte_unigram);
        assert!(row.bits_per_byte < best, "{}: {} against {best}", row.dataset, row.bits_per_byte);
    }
}

#[test]
fn the_truth_covers_enough_responses_of_every_dataset() {
    let (corpus, recipe) = (corpus(), recipe());
    assert!(corpus.queries.len() >= QUERIES_MIN, "{} responses", corpus.queries.len());
    let spread: BTreeSet<u32> = corpus.queries.iter().map(|query| query.dataset).collect();
    assert_eq!(spread.len(), corpus.n_datasets());
    let bank = Bank::read(&model().join("bank"), &corpus, &recipe).unwrap().expect("a bank with a complete seed");
    assert!(bank.seeds.len() >= SEEDS_MIN, "complete seeds: {:?}", bank.seeds);
    assert_eq!(bank.change.dim(), (bank.seeds.len(), corpus.queries.len(), corpus.n_datasets()));
}
