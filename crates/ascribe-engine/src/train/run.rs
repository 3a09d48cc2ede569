//! `ascribe train`: from registered records to a model folder with its training-run record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ascribe_core::{Digest, Progress, RowType};
use ascribe_corpus::baseline::NGram;
use ascribe_corpus::{BpeTokenizer, Corpus, DatasetPart};
use ascribe_models::{Decoder, Sequence, StepReport, Trainer};
use ascribe_registry::{ModelManifest, Registry, RunDetail, RunRecord, StartEvidence, Subject, read_records};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;
use crate::recipe::Recipe;

/// Training-run record in a model folder.
pub const RUN_RECORD_FILE: &str = "run.json";
/// Losses of every step in a model folder.
pub const LOSS_LOG_FILE: &str = "train_log.jsonl";
/// Held-out bits per byte in a model folder.
pub const HELD_OUT_FILE: &str = "held_out.json";
const STATE_DIR: &str = ".state";
const STARTED_FILE: &str = "started";
/// Steps between two writings of the loss log.
const LOG_EVERY_STEPS: u32 = 100;

/// One line of the loss log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossLine {
    /// Step, from 1.
    pub step: u32,
    /// Mean nats per token of the batch.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Held-out text of one dataset: bits per byte of the model and of the two baselines that it must beat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutRow {
    /// Dataset name.
    pub dataset: String,
    /// Held-out windows.
    pub windows: u64,
    /// Bytes of text that they stand for.
    pub len_bytes: u64,
    /// The model.
    pub bits_per_byte: f64,
    /// Bigram with absolute discounting.
    pub bits_per_byte_bigram: f64,
    /// Unigram.
    pub bits_per_byte_unigram: f64,
}

/// What `ascribe train` prints.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// Model folder.
    pub out: PathBuf,
    /// Parameters.
    pub parameters: u64,
    /// Training examples.
    pub examples: u64,
    /// Steps of the recipe.
    pub steps: u64,
    /// Passes over the corpus.
    pub epochs: f64,
    /// Seconds of this call.
    pub seconds: f64,
    /// Tokens per second of this call.
    pub tokens_per_second: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Bits per byte per dataset, held-out.
    pub held_out: Vec<HeldOutRow>,
}

/// Reads all records of a registry (checked against their manifests) in ordinal order.
///
/// # Errors
/// The first dataset that does not read.
pub fn dataset_parts(registry: &Registry) -> Result<Vec<DatasetPart>, EngineError> {
    let part = |d: &ascribe_registry::Dataset| {
        Ok(DatasetPart { name: d.name().to_owned(), id: d.id(), records: read_records(d)? })
    };
    registry.datasets().iter().map(part).collect()
}

/// [`dataset_parts`] of the datasets that a recipe names, still in ordinal order; of all if it names none.
///
/// # Errors
/// A name that is not registered; the first dataset that does not read.
pub fn recipe_parts(registry: &Registry, recipe: &Recipe) -> Result<Vec<DatasetPart>, EngineError> {
    let registered: Vec<&str> = registry.datasets().iter().map(ascribe_registry::Dataset::name).collect();
    if let Some(name) = recipe.datasets.iter().find(|name| !registered.contains(&name.as_str())) {
        let (expected, found) = (format!("names out of {}", registered.join(", ")), name.clone());
        return Err(EngineError::Setting { setting: "datasets of the recipe", expected, found });
    }
    let mut parts = dataset_parts(registry)?;
    parts.retain(|part| recipe.datasets.is_empty() || recipe.datasets.contains(&part.name));
    Ok(parts)
}

/// Loads the tokenizer of a model folder, or learns it from the training records and writes it there.
///
/// # Errors
/// A broken tokenizer file, or one of another vocabulary size than the recipe's.
pub fn tokenizer(out: &Path, parts: &[DatasetPart], recipe: &Recipe) -> Result<BpeTokenizer, EngineError> {
    let path = out.join("tokenizer.json");
    let tokenizer = if path.exists() {
        BpeTokenizer::load(&path)?
    } else {
        let texts = Corpus::training_texts(parts, &recipe.corpus);
        let tokenizer = BpeTokenizer::train(texts.into_iter(), recipe.corpus.vocab_size)?;
        files::write_atomic(&path, tokenizer.json().as_bytes())?;
        tokenizer
    };
    if tokenizer.vocab_size() != recipe.corpus.vocab_size {
        let (expected, found) = (recipe.corpus.vocab_size, tokenizer.vocab_size());
        return Err(EngineError::Content {
            path,
            expected: format!("{expected} tokens, as the recipe says"),
            found: format!("{found}"),
        });
    }
    Ok(tokenizer)
}

/// Trains the recipe's model on the registry's datasets and fills the model folder; resumes an interrupted run.
///
/// # Errors
/// A licence that does not permit training, a dataset that changed, the trainer's or the disk's errors.
pub fn run(
    registry: &Registry,
    recipe: &Recipe,
    out: &Path,
    progress: &dyn Progress,
) -> Result<TrainReport, EngineError> {
    let clock = std::time::Instant::now();
    registry.verify(None, progress)?;
    let started = started_at(&out.join(STATE_DIR))?;
    registry.check_training_permitted(started)?;
    let parts = recipe_parts(registry, recipe)?;
    let tokenizer = tokenizer(out, &parts, recipe)?;
    let corpus = Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
    let mut log = read_log(out)?;
    let mut trained_tokens = 0;
    let trainer = super::train(&corpus, recipe, recipe.seed, None, Some(&out.join(STATE_DIR)), progress, |step, t| {
        trained_tokens += step.tokens;
        note_step(out, &mut log, step, t, progress.stop_requested())
    })?;
    let seconds = clock.elapsed().as_secs_f64();
    let decoder = save_model(out, &trainer, &tokenizer)?;
    let held_out = held_out(&corpus, &tokenizer, &decoder)?;
    files::write_atomic(&out.join(HELD_OUT_FILE), &[serde_json::to_vec_pretty(&held_out)?, b"\n".to_vec()].concat())?;
    let epochs = f64::from(recipe.train.steps) * f64::from(recipe.train.batch) / corpus.examples.len() as f64;
    write_record(out, registry, recipe, &corpus, started, epochs)?;
    let state = out.join(STATE_DIR);
    std::fs::remove_dir_all(&state).map_err(|e| EngineError::io(&state, e))?;
    Ok(TrainReport {
        out: out.to_path_buf(),
        parameters: trainer.decoder().parameters().len() as u64,
        examples: corpus.examples.len() as u64,
        steps: trainer.step_count(),
        epochs,
        seconds,
        tokens_per_second: trained_tokens as f64 / seconds,
        last_loss: log.last().map_or(0.0, |l| l.loss),
        held_out,
    })
}

fn unix_now() -> u64 {
    // A clock before 1970 would be caught by the licences' validity windows.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The start of a run survives interruptions: it is written once, beside the trainer's state.
fn started_at(state: &Path) -> Result<u64, EngineError> {
    let path = state.join(STARTED_FILE);
    if !path.exists() {
        files::write_atomic(&path, unix_now().to_string().as_bytes())?;
    }
    let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
    text.trim().parse().map_err(|_| EngineError::Content { path, expected: "Unix seconds".into(), found: text })
}

/// The loss log of a model folder.
///
/// # Errors
/// A line that is no loss line, with its number.
pub fn read_log(out: &Path) -> Result<Vec<LossLine>, EngineError> {
    let path = out.join(LOSS_LOG_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = files::read(&path)?;
    let text = String::from_utf8_lossy(&bytes);
    let parse = |(n, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| EngineError::Content {
            path: path.clone(),
            expected: format!("a loss line at line {}", n + 1),
            found: e.to_string(),
        })
    };
    text.lines().enumerate().map(parse).collect()
}

fn note_step(
    out: &Path,
    log: &mut Vec<LossLine>,
    report: &StepReport,
    trainer: &Trainer,
    stopping: bool,
) -> Result<(), EngineError> {
    // A resumed run may repeat steps that the log already has; they are the same bytes, and the log stays gapless.
    log.truncate(report.step as usize - 1);
    log.push(LossLine { step: report.step, loss: report.loss, grad_norm: report.grad_norm, lr: report.lr });
    let last = u64::from(report.step) == u64::from(trainer.recipe().steps);
    if last || stopping || report.step.is_multiple_of(LOG_EVERY_STEPS) {
        let mut text = String::new();
        for line in log.iter() {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        files::write_atomic(&out.join(LOSS_LOG_FILE), text.as_bytes())?;
    }
    // The last step's weights are model.safetensors itself.
    if trainer.checkpoint_due() && !last {
        let name = checkpoint_file(report.step);
        let path = out.join(&name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| EngineError::io(parent, e))?;
        }
        trainer.decoder().save(&path, RowType::Bf16, &metadata(report.step))?;
    }
    Ok(())
}

/// Weights file of the checkpoint after `step`, relative to the model folder.
pub fn checkpoint_file(step: u32) -> String {
    format!("checkpoints/step-{step:06}.safetensors")
}

fn metadata(step: u32) -> BTreeMap<String, String> {
    BTreeMap::from([("step".to_owned(), step.to_string())])
}

fn save_model(out: &Path, trainer: &Trainer, tokenizer: &BpeTokenizer) -> Result<Decoder, EngineError> {
    let steps = trainer.recipe().steps;
    trainer.decoder().save_config(out)?;
    trainer.decoder().save(&out.join("model.safetensors"), RowType::F32, &metadata(steps))?;
    trainer.save_second_moments(&out.join("second_moments.safetensors"), RowType::Bf16)?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": ascribe_corpus::tokenizer::END_OF_TEXT,
        "bos_token": ascribe_corpus::tokenizer::END_OF_TEXT,
        "model_max_length": trainer.decoder().config().max_position_embeddings,
        "clean_up_tokenization_spaces": false,
    });
    files::write_atomic(&out.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())?;
    files::write_atomic(&out.join("tokenizer.json"), tokenizer.json().as_bytes())?;
    Ok(Decoder::load(out, "model.safetensors")?)
}

/// Bits per byte of all held-out windows, per dataset, beside the baselines fitted on the training examples.
///
/// The first token of a window is context and is not counted; its bytes are not counted either.
///
/// # Errors
/// From the model.
pub fn held_out(corpus: &Corpus, tokenizer: &BpeTokenizer, decoder: &Decoder) -> Result<Vec<HeldOutRow>, EngineError> {
    let vocab_size = corpus.manifest.config.vocab_size;
    let ngram = NGram::fit(vocab_size, corpus.examples.iter().map(|e| e.tokens.as_slice()));
    let mut rows = Vec::new();
    for (k, dataset) in corpus.datasets.iter().enumerate() {
        let windows: Vec<_> =
            corpus.queries.iter().chain(&corpus.validation).filter(|w| w.dataset as usize == k).collect();
        let sequences: Vec<Sequence<'_>> = windows.iter().map(|w| Sequence::whole(&w.tokens)).collect();
        let nats: f64 = decoder.losses(&sequences)?.iter().sum();
        let (unigram, bigram) = windows.iter().fold((0.0, 0.0), |(u, b), w| {
            let (wu, wb) = ngram.sequence_nll(&w.tokens, 1);
            (u + wu, b + wb)
        });
        let len_bytes: u64 = windows.iter().map(|w| tokenizer.len_bytes(&w.tokens[1..])).sum();
        let bits = |nats: f64| nats / std::f64::consts::LN_2 / len_bytes as f64;
        rows.push(HeldOutRow {
            dataset: dataset.name.clone(),
            windows: windows.len() as u64,
            len_bytes,
            bits_per_byte: bits(nats),
            bits_per_byte_bigram: bits(bigram),
            bits_per_byte_unigram: bits(unigram),
        });
    }
    Ok(rows)
}

fn write_record(
    out: &Path,
    registry: &Registry,
    recipe: &Recipe,
    corpus: &Corpus,
    started: u64,
    epochs: f64,
) -> Result<(), EngineError> {
    let mut names = vec!["model.safetensors".to_owned(), "config.json".into(), "tokenizer.json".into()];
    names.push("second_moments.safetensors".into());
    let kept = recipe.train.checkpoint_steps.iter().filter(|&&s| s != recipe.train.steps);
    names.extend(kept.map(|&s| checkpoint_file(s)));
    let subject = |name: String| Ok(Subject { sha256: files::digest(&out.join(&name))?, name });
    let subjects = names.into_iter().map(subject).collect::<Result<Vec<_>, EngineError>>()?;
    let epochs = format!("{epochs:.3}");
    let named =
        registry.datasets().iter().filter(|d| corpus.manifest.datasets.iter().any(|part| part.name == d.name()));
    let used = named.zip(&corpus.manifest.datasets).map(|(dataset, part)| {
        registry.dataset_use(dataset, part.records_used, epochs.clone(), recipe.seed).ok_or_else(|| {
            EngineError::Content {
                path: registry.log().path().to_path_buf(),
                expected: format!("the licence of {}", dataset.name()),
                found: "no such line".into(),
            }
        })
    });
    let datasets = used.collect::<Result<Vec<_>, EngineError>>()?;
    let recipe_sha256 = recipe.digest();
    let files = subjects.iter().map(|subject| (subject.name.clone(), subject.sha256)).collect();
    let output_model_sha256 = Some(ModelManifest { name: recipe.name.clone(), files }.digest());
    // The registry was opened before training: a checkpoint of another size was signed since.
    let start = StartEvidence::of_registry(registry)?;
    let start = if start.head()? == Some(registry.log().head()) { start } else { StartEvidence::default() };
    let record = RunRecord {
        invocation_id: format!(
            "{}-{}",
            recipe.name,
            &Digest::of(format!("{recipe_sha256}{started}").as_bytes()).to_string()[..12]
        ),
        builder_version: env!("CARGO_PKG_VERSION").into(),
        started_unix_s: started,
        finished_unix_s: unix_now(),
        recipe_sha256,
        seed: recipe.seed,
        steps: u64::from(recipe.train.steps),
        epochs,
        subjects,
        datasets,
        licence_log: registry.log().head(),
        detail: RunDetail {
            output_model_sha256,
            start_checkpoint: start.checkpoint,
            start_time_stamp: start.time_stamp,
            ..RunDetail::default()
        },
    };
    record.write(&out.join(RUN_RECORD_FILE))?;
    Ok(())
}
