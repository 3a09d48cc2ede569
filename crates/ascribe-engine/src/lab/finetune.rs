//! Training somebody's own model on somebody's own records: from a model folder (all weights, or a LoRA on them), or from
//! nothing with a `config.json`.
//!
//! A run folder holds what a Hugging Face folder holds, checkpoints that are such folders too, and a log. An unfinished
//! run goes on from its last saved state, with the same bytes as one that was never stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ascribe_core::{Digest, Progress, RowType};
use ascribe_corpus::text_tokenizer::TOKENIZER_FILE;
use ascribe_corpus::{SpecialTokens, TextTokenizer};
use ascribe_models::lora::{Adapter, LoraConfig};
use ascribe_models::{Decoder, DecoderConfig, Sequence, StepReport, TrainRecipe, Trainer};
use serde::{Deserialize, Serialize};

use super::data::{DataOptions, LabData};
use super::model::LabModel;
use super::plan;
use super::settings::TrainSettings;
use crate::error::EngineError;
use crate::files;
use crate::machine::{cpu_seconds, peak_rss_mib};
use crate::train::order::Sampler;
use crate::train::run::{LOSS_LOG_FILE, LossLine, read_log};

/// What the finished run was, in its folder.
pub const RUN_FILE: &str = "finetune.json";
/// Held-out losses along the run.
pub const HELD_OUT_LOG_FILE: &str = "held_out.jsonl";
/// Second moments beside a checkpoint's weights.
pub const MOMENTS_FILE: &str = "second_moments.safetensors";

const STATE_DIR: &str = ".state";
const SETTINGS_FILE: &str = "settings.json";
/// A state is saved when so much time went by since the last: what a kill can cost.
const STATE_EVERY: Duration = Duration::from_secs(60);
/// Files of a model folder that go along unchanged.
const COMPANIONS: [&str; 6] = [
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
];

/// Where the weights come from.
#[derive(Clone, Debug)]
pub enum Start {
    /// A Hugging Face folder.
    Model(PathBuf),
    /// Nothing: the shape of a `config.json`, and the tokenizer that the records need, if they are text.
    Config {
        /// The configuration.
        config: PathBuf,
        /// A `tokenizer.json`.
        tokenizer: Option<PathBuf>,
    },
}

/// What is trained, on what, and where it goes.
#[derive(Clone, Debug)]
pub struct FinetuneRequest {
    /// Where the weights come from.
    pub start: Start,
    /// JSONL records to train on.
    pub data: PathBuf,
    /// JSONL records to measure on.
    pub held_out: Option<PathBuf>,
    /// Run folder.
    pub out: PathBuf,
    /// How records are read; `max_len` 0 means the model's context.
    pub options: DataOptions,
    /// What the tokenizer adds.
    pub special_tokens: SpecialTokens,
    /// Numbers of the run.
    pub settings: TrainSettings,
    /// Train a LoRA and leave the weights alone.
    pub lora: Option<LoraConfig>,
}

/// What `ascribe finetune` prints and keeps in [`RUN_FILE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneReport {
    /// Version of Ascribe.
    pub ascribe_version: String,
    /// SHA-256 over everything that decides the weights: start, records, settings.
    pub settings_sha256: Digest,
    /// SHA-256 of the weights (of the adapter's, if one was trained).
    pub weights_sha256: Digest,
    /// Weights of the model.
    pub parameters: u64,
    /// Weights that were trained.
    pub trained_parameters: u64,
    /// Sequences: records, or pieces of records longer than the context.
    pub examples: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Passes over the examples.
    pub epochs: f64,
    /// Loss of the first step, nats per token.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Mean loss on held-out records before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_before: Option<f64>,
    /// The same after the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_after: Option<f64>,
    /// Tokens of the steps of the call that finished the run.
    pub tokens: u64,
    /// CPU seconds of those steps, all threads.
    pub cpu_seconds: f64,
    /// Their rate.
    pub tokens_per_cpu_second: f64,
    /// Wall seconds of the whole call.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub peak_rss_mib: f64,
}

/// One line of [`HELD_OUT_LOG_FILE`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutLine {
    /// Steps done.
    pub step: u32,
    /// Mean nats per counted token.
    pub loss: f64,
    /// Counted tokens.
    pub tokens: u64,
}

/// Trains; a run that was begun goes on where it stopped, one that is finished is told again. Weights do not depend on
/// threads or interruptions.
///
/// # Errors
/// The model's, the first bad record, settings that contradict themselves, a folder of another run, divergence, the disk's,
/// [`EngineError::Stopped`] (the state is saved).
pub fn run(request: &FinetuneRequest, progress: &dyn Progress) -> Result<FinetuneReport, EngineError> {
    let clock = Instant::now();
    check_out(request)?;
    if let Start::Model(dir) = &request.start {
        plan::check_weights(dir)?;
    }
    progress.start("load model", 0, "");
    let model = open(&request.start, request.settings.seed)?;
    progress.finish(&format!("{} parameters", model.decoder().parameters().len()));
    let options = model.options(&request.options)?;
    let read = |path: &Path| {
        let tokenizer = || tokenizer(request, &model);
        LabData::read(path, &options, model.decoder().config().vocab_size, &tokenizer, progress)
    };
    let data = read(&request.data)?;
    let held_out = request.held_out.as_deref().map(read).transpose()?;
    let recipe = request.settings.recipe(data.windows.len())?;
    let rank = request.lora.as_ref().map(|lora| lora.rank);
    plan::check(&plan::finetune(&model, &data, &request.settings, rank), &request.out, &model, &data)?;
    let adapter = match &request.lora {
        Some(lora) => Some(Adapter::init(model.decoder(), lora.clone(), request.settings.seed)?),
        None => None,
    };
    let settings_sha256 = settings_digest(request, &model, &data, held_out.as_ref(), &recipe)?;
    if let Some(report) = finished(&request.out, settings_sha256)? {
        return Ok(report);
    }
    let run = Run { request, data: &data, held_out: held_out.as_ref(), recipe: &recipe, progress };
    let trainer = run.trainer(model, adapter, settings_sha256)?;
    let (trainer, log, work) = run.steps(trainer)?;
    let weights_sha256 = save_model(&request.out, &trainer, request)?;
    let held_out = run.read_held_out()?;
    let report = FinetuneReport {
        ascribe_version: env!("CARGO_PKG_VERSION").into(),
        settings_sha256,
        weights_sha256,
        parameters: trainer.decoder().parameters().len() as u64,
        trained_parameters: trainer.n_trained() as u64,
        examples: data.windows.len() as u64,
        steps: trainer.step_count(),
        epochs: f64::from(recipe.steps) * f64::from(recipe.batch) / data.windows.len() as f64,
        first_loss: log.first().map_or(0.0, |line| line.loss),
        last_loss: log.last().map_or(0.0, |line| line.loss),
        held_out_before: held_out.first().filter(|line| line.step == 0).map(|line| line.loss),
        held_out_after: held_out.last().filter(|line| line.step == recipe.steps).map(|line| line.loss),
        tokens: work.tokens,
        cpu_seconds: work.cpu_seconds,
        tokens_per_cpu_second: if work.tokens == 0 { 0.0 } else { work.tokens as f64 / work.cpu_seconds },
        seconds: clock.elapsed().as_secs_f64(),
        peak_rss_mib: peak_rss_mib(),
    };
    let text = format!("{}\n", serde_json::to_string_pretty(&report)?);
    files::write_atomic(&request.out.join(RUN_FILE), text.as_bytes())?;
    let state = request.out.join(STATE_DIR);
    std::fs::remove_dir_all(&state).map_err(|e| EngineError::io(&state, e))?;
    Ok(report)
}

/// A run must not overwrite what it begins with.
fn check_out(request: &FinetuneRequest) -> Result<(), EngineError> {
    let own = |path: &Path| path.canonicalize().ok();
    match &request.start {
        Start::Model(dir) if own(dir).is_some() && own(dir) == own(&request.out) => Err(EngineError::Setting {
            setting: "--out",
            expected: "another folder than the model's own".into(),
            found: request.out.display().to_string(),
        }),
        _ => Ok(()),
    }
}

/// The weights that the run begins with.
fn open(start: &Start, seed: u64) -> Result<LabModel, EngineError> {
    match start {
        Start::Model(dir) => LabModel::open(dir),
        Start::Config { config, .. } => {
            let text = files::read(config)?;
            let value = serde_json::from_slice(&text).map_err(|e| EngineError::Content {
                path: config.clone(),
                expected: "a JSON object".into(),
                found: e.to_string(),
            })?;
            let shape = DecoderConfig::from_json(&value, config)?;
            let dir = config.parent().unwrap_or(Path::new(".")).to_path_buf();
            Ok(LabModel::of(dir, Decoder::init(shape, seed)?))
        }
    }
}

fn tokenizer(request: &FinetuneRequest, model: &LabModel) -> Result<TextTokenizer, EngineError> {
    match &request.start {
        Start::Config { tokenizer: Some(path), .. } => {
            let tokenizer = TextTokenizer::load_file(path, request.special_tokens)?;
            tokenizer.check_fits(path, model.decoder().config().vocab_size)?;
            Ok(tokenizer)
        }
        _ => model.tokenizer(request.special_tokens),
    }
}

/// Everything that decides the weights. Threads, progress and places do not.
fn settings_digest(
    request: &FinetuneRequest,
    model: &LabModel,
    data: &LabData,
    held_out: Option<&LabData>,
    recipe: &TrainRecipe,
) -> Result<Digest, EngineError> {
    let lora = request.lora.as_ref().map(|lora| lora.to_json(false));
    let held_out = held_out.map(LabData::digest);
    let parts = (model.decoder().weights_digest(), data.digest(), held_out, recipe, lora, request.settings.seed);
    Ok(Digest::of_json(&(parts, request.settings.eval_every))?)
}

/// The report of a finished run of the same settings.
fn finished(out: &Path, settings: Digest) -> Result<Option<FinetuneReport>, EngineError> {
    let path = out.join(RUN_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let content =
        |expected: &str, found: String| EngineError::Content { path: path.clone(), expected: expected.into(), found };
    let report: FinetuneReport = serde_json::from_slice(&files::read(&path)?)
        .map_err(|e| content("the report of a finished run", e.to_string()))?;
    if report.settings_sha256 != settings {
        let found = "a finished run of other settings; hint: choose another --out".to_owned();
        return Err(content(&format!("settings of SHA-256 {settings}"), found));
    }
    Ok(Some(report))
}

/// Tokens and CPU seconds of the steps of one call.
#[derive(Default)]
struct Work {
    tokens: u64,
    cpu_seconds: f64,
}

struct Run<'a> {
    request: &'a FinetuneRequest,
    data: &'a LabData,
    held_out: Option<&'a LabData>,
    recipe: &'a TrainRecipe,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    fn state_dir(&self) -> PathBuf {
        self.request.out.join(STATE_DIR)
    }

    /// A trainer at the start, or where the last call stopped.
    fn trainer(&self, model: LabModel, adapter: Option<Adapter>, settings: Digest) -> Result<Trainer, EngineError> {
        let state = self.state_dir();
        let path = state.join(SETTINGS_FILE);
        if path.exists() {
            let found = String::from_utf8_lossy(&files::read(&path)?).trim().to_owned();
            if found != settings.to_string() {
                let expected = format!("an unfinished run of settings {settings}");
                let found = format!("one of settings {found}; hint: finish that one, or choose another --out");
                return Err(EngineError::Content { path, expected, found });
            }
        } else {
            files::write_atomic(&path, settings.to_string().as_bytes())?;
        }
        let recipe = self.recipe.clone();
        let resumes = Trainer::has_state(&state);
        Ok(match (adapter, resumes) {
            (None, false) => Trainer::from_decoder(model.into_decoder(), recipe)?,
            (None, true) => Trainer::resume(model.decoder().config().clone(), recipe, &state)?,
            (Some(adapter), false) => Trainer::from_adapter(model.into_decoder(), adapter, recipe)?,
            (Some(adapter), true) => Trainer::resume_adapter(model.into_decoder(), adapter, recipe, &state)?,
        })
    }

    fn steps(&self, mut trainer: Trainer) -> Result<(Trainer, Vec<LossLine>, Work), EngineError> {
        let mut sampler = Sampler::new(self.request.settings.seed, (0..self.data.windows.len() as u32).collect());
        let mut log = read_log(&self.request.out)?;
        let mut work = Work::default();
        let steps = u64::from(self.recipe.steps);
        self.progress.start("train", steps, "steps");
        self.progress.advance(trainer.step_count());
        let mut saved = Instant::now();
        if trainer.step_count() == 0 {
            self.measure(&trainer, 0)?;
        }
        while trainer.step_count() < steps {
            let picks = sampler.batch(trainer.step_count(), self.recipe.batch as usize);
            let batch: Vec<Sequence<'_>> =
                picks.iter().map(|&i| self.data.sequence(&self.data.windows[i as usize])).collect();
            let cpu = cpu_seconds();
            let report = trainer.step_on(&batch)?;
            work.cpu_seconds += cpu_seconds() - cpu;
            work.tokens += batch.iter().map(|s| s.tokens.len() as u64).sum::<u64>();
            self.progress.advance(1);
            note(&mut log, &report);
            let (stop, done) = (self.progress.stop_requested(), trainer.step_count() == steps);
            let every = self.request.settings.eval_every;
            if done || (every > 0 && report.step.is_multiple_of(every)) {
                self.measure(&trainer, report.step)?;
            }
            if trainer.checkpoint_due() && !done {
                save_checkpoint(&self.request.out, &trainer, self.request)?;
            }
            if stop || done || saved.elapsed() > STATE_EVERY {
                self.save_log(&log)?;
                trainer.save_state(&self.state_dir())?;
                saved = Instant::now();
            }
            if stop && !done {
                return Err(EngineError::Stopped);
            }
        }
        self.progress.finish(&format!("{:.4} nats per token in the last batch", log.last().map_or(0.0, |l| l.loss)));
        Ok((trainer, log, work))
    }

    fn save_log(&self, log: &[LossLine]) -> Result<(), EngineError> {
        let mut text = String::new();
        for line in log {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        files::write_atomic(&self.request.out.join(LOSS_LOG_FILE), text.as_bytes())
    }

    /// Adds the held-out loss after `step` to its log. A resumed run may measure a step again: the last word counts.
    fn measure(&self, trainer: &Trainer, step: u32) -> Result<(), EngineError> {
        let Some(held_out) = self.held_out else { return Ok(()) };
        let sequences = held_out.sequences();
        let tokens: u64 = sequences.iter().map(|s| s.n_predictions() as u64).sum();
        let nats: f64 = trainer.decoder().losses(&sequences)?.iter().sum();
        let mut lines = self.read_held_out()?;
        lines.retain(|line| line.step < step);
        lines.push(HeldOutLine { step, loss: nats / tokens as f64, tokens });
        let mut text = String::new();
        for line in &lines {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        files::write_atomic(&self.request.out.join(HELD_OUT_LOG_FILE), text.as_bytes())
    }

    fn read_held_out(&self) -> Result<Vec<HeldOutLine>, EngineError> {
        let path = self.request.out.join(HELD_OUT_LOG_FILE);
        if self.held_out.is_none() || !path.exists() {
            return Ok(vec![]);
        }
        let bytes = files::read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        let parse = |(n, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| EngineError::Content {
                path: path.clone(),
                expected: format!("a held-out loss at line {}", n + 1),
                found: e.to_string(),
            })
        };
        text.lines().enumerate().map(parse).collect()
    }
}

/// A resumed run may repeat steps that the log already has; they are the same numbers, and the log stays gapless.
fn note(log: &mut Vec<LossLine>, report: &StepReport) {
    log.truncate(report.step as usize - 1);
    log.push(LossLine { step: report.step, loss: report.loss, grad_norm: report.grad_norm, lr: report.lr });
}

/// Weights or adapter, configuration, tokenizer and second moments: a folder that opens by itself.
fn save_model(dir: &Path, trainer: &Trainer, request: &FinetuneRequest) -> Result<Digest, EngineError> {
    std::fs::create_dir_all(dir).map_err(|e| EngineError::io(dir, e))?;
    let digest = match trainer.adapter() {
        Some(adapter) => adapter.save(trainer.decoder(), dir)?,
        None => {
            trainer.decoder().save_config(dir)?;
            let metadata = [("step".to_owned(), trainer.step_count().to_string())].into();
            trainer.decoder().save(&dir.join("model.safetensors"), RowType::F32, &metadata)?
        }
    };
    trainer.save_second_moments(&dir.join(MOMENTS_FILE), RowType::F32)?;
    for name in COMPANIONS {
        let source = match &request.start {
            Start::Model(from) => from.join(name),
            Start::Config { tokenizer: Some(path), .. } if name == TOKENIZER_FILE => path.clone(),
            Start::Config { .. } => continue,
        };
        if source.exists() {
            files::write_atomic(&dir.join(name), &files::read(&source)?)?;
        }
    }
    Ok(digest)
}

fn save_checkpoint(out: &Path, trainer: &Trainer, request: &FinetuneRequest) -> Result<(), EngineError> {
    let dir = out.join(format!("checkpoints/step-{:06}", trainer.step_count()));
    save_model(&dir, trainer, request).map(drop)
}
