//! What a run will take before it takes it: memory, disk and time, stage by stage, held against what the machine has.
//!
//! Bytes follow from the configuration, the records and the settings. Time comes from a short probe: real passes over a few
//! of the records, for a part of a second. The stages ask the same questions before they begin and refuse what cannot fit.

use std::path::{Path, PathBuf};

use ascribe_core::{Progress, RowType};
use ascribe_corpus::SpecialTokens;
use ascribe_models::features::Memory;
use ascribe_models::memory::{linear_numbers, lora_numbers, weights_bytes, workspace_bytes};
use ascribe_models::{DecoderConfig, Sequence, TapConfig};
use ndarray::Array2;
use serde::Serialize;

use super::data::{DataOptions, LabData};
use super::features::{CHUNK_NUMBERS, SHARD_NUMBERS, SHARD_ROWS_MAX};
use super::model::{LabModel, Subject};
use super::settings::TrainSettings;
use crate::error::EngineError;
use crate::machine::{cpu_seconds, disk_available_bytes, ram_available_bytes};

/// Program, libraries, allocator, thread stacks: measured on small models, whose own numbers are nothing beside it.
const PROCESS_BYTES: u64 = 32 << 20;
/// A tokenizer in memory takes about so many times its file.
const TOKENIZER_FACTOR: u64 = 12;
/// CPU seconds of a probe.
const PROBE_SECONDS: f64 = 0.3;
/// Most sequences of a probe.
const PROBE_SEQUENCES: usize = 64;
/// Threads reach this part of their number times one thread's rate.
const PARALLEL_PART: f64 = 0.9;
/// Bytes that an AdamW step reads and writes per parameter: weight, gradient and both moments, three of them twice.
const ADAM_BYTES: f64 = 28.0;
/// Bytes per second that one thread moves in such a step.
const ADAM_BYTES_PER_SECOND: f64 = 8e9;
/// Bytes of a row beside its numbers: sidecar, manifest, line of `examples.jsonl`.
const ROW_OVERHEAD_BYTES: u64 = 220;

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// Model folder.
    pub model: PathBuf,
    /// JSONL records.
    pub data: PathBuf,
    /// Where stores and runs would go: whose disk is asked.
    pub out: PathBuf,
    /// How records are read.
    pub options: DataOptions,
    /// What the tokenizer adds.
    pub special_tokens: SpecialTokens,
    /// Taps and projection.
    pub taps: TapConfig,
    /// Numbers at rest.
    pub row_type: RowType,
    /// Numbers of a training run.
    pub settings: TrainSettings,
    /// Rank of a LoRA, if one is trained.
    pub lora_rank: Option<usize>,
}

/// An item of a stage's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// What it is.
    pub what: &'static str,
    /// How large.
    pub bytes: u64,
}

/// One stage.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// Name of the command.
    pub stage: &'static str,
    /// Memory, item by item; they are in memory at the same time.
    pub ram: Vec<Item>,
    /// Their sum: the peak.
    pub ram_bytes: u64,
    /// What is written.
    pub disk_bytes: u64,
    /// Rate of the probe, one thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_cpu_second: Option<f64>,
    /// Estimated wall seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Memory of a GPU, by formula: weights and one batch with its activations and rows. Nothing is measured there.
#[derive(Clone, Debug, Serialize)]
pub struct GpuPlan {
    /// Weights in bf16.
    pub weights_bf16_bytes: u64,
    /// Weights in f32.
    pub weights_f32_bytes: u64,
    /// What one token leaves for the way back, in f32 (bf16: half).
    pub activations_per_token_f32_bytes: u64,
    /// A row before it is taken off.
    pub row_f32_bytes: u64,
}

/// Everything that is printed.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Weights of the model.
    pub parameters: u64,
    /// Records.
    pub records: u64,
    /// Sequences.
    pub examples: u64,
    /// Tokens of all sequences.
    pub tokens: u64,
    /// Tokens of the longest.
    pub longest: u64,
    /// Numbers per row.
    pub dim: u64,
    /// Threads.
    pub threads: u64,
    /// Memory that new work can take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_available_bytes: Option<u64>,
    /// Disk that can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_available_bytes: Option<u64>,
    /// Stage by stage.
    pub stages: Vec<StagePlan>,
    /// By formula.
    pub gpu: GpuPlan,
    /// What does not fit, and which setting to change; empty when everything does.
    pub problems: Vec<String>,
}

/// Sizes of the gradient stage.
#[derive(Clone, Copy, Debug)]
pub struct FeatureSizes {
    /// Numbers per row.
    pub dim: usize,
    /// Rows.
    pub rows: usize,
    /// What the stage itself takes.
    pub memory: Memory,
    /// Datasets.
    pub datasets: usize,
    /// Numbers at rest.
    pub row_type: RowType,
}

/// Plans and probes.
///
/// # Errors
/// Weights that do not fit into memory at all; what reading model and records refuses.
pub fn run(request: &PlanRequest, progress: &dyn Progress) -> Result<Plan, EngineError> {
    check_weights(&request.model)?;
    let model = LabModel::open(&request.model)?;
    let options = model.options(&request.options)?;
    let vocab_size = model.decoder().config().vocab_size;
    let tokenizer = || model.tokenizer(request.special_tokens);
    let data = LabData::read(&request.data, &options, vocab_size, &tokenizer, progress)?;
    let recipe = request.settings.recipe(data.windows.len())?;
    // The probe itself must not be what does not fit.
    let threads = rayon::current_num_threads();
    let probe_bytes = workspace_bytes(model.decoder().config(), data.longest(), data.longest()) * threads as u64;
    require_ram("plan", probe_bytes, "a lower --threads or --max-len")?;
    let stage = model.stage(&request.taps, &Subject::default())?;
    let sizes = FeatureSizes {
        dim: stage.dim(),
        rows: data.windows.len(),
        memory: stage.memory(data.longest()),
        datasets: data.datasets.len(),
        row_type: request.row_type,
    };
    progress.start("probe", 0, "");
    let mut features = features(&model, &data, sizes);
    let rate = probe(&data, |sequences| {
        let mut rows = Array2::zeros((sequences.len(), stage.dim()));
        stage.rows(sequences, rows.view_mut(), None).map(drop)
    })?;
    let wall = |seconds: f64| seconds / (1.0 + (threads as f64 - 1.0) * PARALLEL_PART);
    (features.tokens_per_cpu_second, features.seconds) = (Some(rate), Some(wall(data.n_tokens() as f64 / rate)));
    let mut training = finetune(&model, &data, &request.settings, request.lora_rank);
    let rate = probe(&data, |sequences| model.decoder().gradient_norms(sequences).map(drop))?;
    let steps = f64::from(recipe.steps);
    let per_step = data.n_tokens() as f64 / data.windows.len() as f64 * f64::from(recipe.batch);
    let adam = trained(&model, request.lora_rank) as f64 * ADAM_BYTES / ADAM_BYTES_PER_SECOND;
    let seconds = steps * (per_step / rate + adam);
    (training.tokens_per_cpu_second, training.seconds) = (Some(steps * per_step / seconds), Some(wall(seconds)));
    progress.finish("");
    let config = model.decoder().config();
    let mut plan = Plan {
        parameters: model.decoder().parameters().len() as u64,
        records: data.records.len() as u64,
        examples: data.windows.len() as u64,
        tokens: data.n_tokens(),
        longest: data.longest() as u64,
        dim: sizes.dim as u64,
        threads: threads as u64,
        ram_available_bytes: ram_available_bytes(),
        disk_available_bytes: disk_available_bytes(&request.out),
        stages: vec![features, training],
        gpu: GpuPlan {
            weights_bf16_bytes: weights_bytes(config) / 2,
            weights_f32_bytes: weights_bytes(config),
            activations_per_token_f32_bytes: workspace_bytes(config, data.longest(), data.longest())
                / data.longest() as u64,
            row_f32_bytes: 4 * sizes.dim as u64,
        },
        problems: vec![],
    };
    // What this process holds already is part of what a stage will take.
    let held = own_bytes(&model, &data);
    plan.problems = problems(&plan, held);
    Ok(plan)
}

/// Memory and disk of `ascribe features`.
pub fn features(model: &LabModel, data: &LabData, sizes: FeatureSizes) -> StagePlan {
    let config = model.decoder().config();
    let threads = rayon::current_num_threads() as u64;
    let row_bytes = sizes.row_type.row_bytes(sizes.dim) as u64;
    let chunk = (CHUNK_NUMBERS.max(sizes.dim * threads as usize)).min(sizes.dim * sizes.rows) as u64;
    let shard_rows = (SHARD_NUMBERS / sizes.dim).clamp(1, SHARD_ROWS_MAX).min(sizes.rows) as u64;
    let ram = vec![
        Item { what: "process", bytes: PROCESS_BYTES },
        Item { what: "weights", bytes: weights_bytes(config) },
        Item { what: "tokenizer", bytes: tokenizer_bytes(model) },
        Item { what: "records", bytes: data.bytes() },
        Item { what: "packed weights", bytes: sizes.memory.packed as u64 },
        Item { what: "projectors", bytes: sizes.memory.projectors as u64 },
        Item { what: "passes", bytes: threads * sizes.memory.per_thread as u64 },
        Item { what: "sums per dataset", bytes: (sizes.datasets * sizes.dim * 16) as u64 },
        // Made, waiting, and being written.
        Item { what: "rows on their way", bytes: 3 * 4 * chunk },
        Item { what: "shards being filled and written", bytes: 2 * shard_rows * row_bytes },
    ];
    let disk = sizes.rows as u64 * (row_bytes + ROW_OVERHEAD_BYTES) + (sizes.datasets * sizes.dim * 16) as u64;
    stage_plan("features", ram, disk)
}

/// Memory and disk of `ascribe finetune` and `ascribe train`.
pub fn finetune(model: &LabModel, data: &LabData, settings: &TrainSettings, lora_rank: Option<usize>) -> StagePlan {
    let config = model.decoder().config();
    let threads = rayon::current_num_threads() as u64;
    let trained = 4 * trained(model, lora_rank);
    let n_groups = u64::from(settings.batch.div_ceil(settings.micro_batch.max(1)));
    let vectors = if n_groups > threads { threads + 1 } else { n_groups };
    let workspaces = threads.min(n_groups) * workspace_bytes(config, data.longest(), data.longest());
    let mut ram = vec![
        Item { what: "process", bytes: PROCESS_BYTES },
        Item { what: "weights", bytes: weights_bytes(config) },
        Item { what: "tokenizer", bytes: tokenizer_bytes(model) },
        Item { what: "records", bytes: data.bytes() },
        Item { what: "optimizer moments", bytes: 2 * trained },
        Item { what: "gradients", bytes: vectors * trained },
        Item { what: "workspaces", bytes: workspaces },
        // The state's file is made in memory.
        Item { what: "state being saved", bytes: 3 * trained },
    ];
    if lora_rank.is_some() {
        ram.push(Item { what: "adapted weights before merging", bytes: 4 * linear_numbers(config) });
    }
    let checkpoints = settings.recipe(data.windows.len()).map_or(0, |recipe| recipe.checkpoint_steps.len() as u64);
    let saved = 2 * trained + tokenizer_file(model);
    stage_plan("finetune", ram, 3 * trained + (checkpoints + 1) * saved)
}

fn stage_plan(stage: &'static str, ram: Vec<Item>, disk_bytes: u64) -> StagePlan {
    let ram_bytes = ram.iter().map(|item| item.bytes).sum();
    StagePlan { stage, ram, ram_bytes, disk_bytes, tokens_per_cpu_second: None, seconds: None }
}

/// Trained numbers.
fn trained(model: &LabModel, lora_rank: Option<usize>) -> u64 {
    let config = model.decoder().config();
    match lora_rank {
        None => config.num_parameters() as u64,
        Some(rank) => lora_numbers(config, rank),
    }
}

fn tokenizer_file(model: &LabModel) -> u64 {
    let path = model.dir.join(ascribe_corpus::text_tokenizer::TOKENIZER_FILE);
    std::fs::metadata(path).map_or(0, |file| file.len())
}

fn tokenizer_bytes(model: &LabModel) -> u64 {
    TOKENIZER_FACTOR * tokenizer_file(model)
}

/// What a process holds that has read model and records.
fn own_bytes(model: &LabModel, data: &LabData) -> u64 {
    PROCESS_BYTES + weights_bytes(model.decoder().config()) + tokenizer_bytes(model) + data.bytes()
}

/// Tokens per CPU-second of `work` on sequences spread over the data.
fn probe(
    data: &LabData,
    work: impl Fn(&[Sequence<'_>]) -> Result<(), ascribe_models::ModelError>,
) -> Result<f64, EngineError> {
    let step = (data.windows.len() / PROBE_SEQUENCES).max(1);
    let sequences: Vec<Sequence<'_>> =
        data.windows.iter().step_by(step).take(PROBE_SEQUENCES).map(|window| data.sequence(window)).collect();
    // The first sequence pays for memory that is kept afterwards.
    work(&sequences[..1])?;
    let (mut tokens, started) = (0, cpu_seconds());
    for sequence in sequences.iter().cycle() {
        work(std::slice::from_ref(sequence))?;
        tokens += sequence.tokens.len();
        if cpu_seconds() - started > PROBE_SECONDS {
            break;
        }
    }
    Ok(tokens as f64 / (cpu_seconds() - started))
}

fn problems(plan: &Plan, held: u64) -> Vec<String> {
    let mut problems = vec![];
    for stage in &plan.stages {
        let hint = hint(stage.stage);
        if let Some(free) = plan.ram_available_bytes.map(|free| free + held).filter(|&free| free < stage.ram_bytes) {
            let largest = stage.ram.iter().max_by_key(|item| item.bytes).map_or("", |item| item.what);
            let (needed, free) = (mib(stage.ram_bytes), mib(free));
            problems.push(format!(
                "{}: expected {needed} of memory, found {free}; most goes to {largest}; hint: {}",
                stage.stage, hint.0
            ));
        }
        if let Some(free) = plan.disk_available_bytes.filter(|&free| free < stage.disk_bytes) {
            let (needed, free) = (mib(stage.disk_bytes), mib(free));
            problems.push(format!("{}: expected {needed} of disk, found {free}; hint: {}", stage.stage, hint.1));
        }
    }
    problems
}

/// Settings that change a stage's memory and disk.
fn hint(stage: &str) -> (&'static str, &'static str) {
    match stage {
        "features" => (
            "lower --threads, --max-len or --projection",
            "lower --projection, fewer --taps, --row-type bf16, or another --out",
        ),
        _ => (
            "lower --threads or --max-len, or train a LoRA (--lora-rank)",
            "a larger --checkpoint-every, a LoRA (--lora-rank), or another --out",
        ),
    }
}

/// Refuses a stage that cannot fit, before it begins. Model and records are in memory by then.
///
/// # Errors
/// [`EngineError::DoesNotFit`] naming stage, needed, available and the setting to change.
pub fn check(plan: &StagePlan, out: &Path, model: &LabModel, data: &LabData) -> Result<(), EngineError> {
    let hint = hint(plan.stage);
    require_ram(plan.stage, plan.ram_bytes.saturating_sub(own_bytes(model, data)), hint.0)?;
    require("disk", plan.stage, plan.disk_bytes, disk_available_bytes(out), hint.1)
}

/// Refuses a model whose weights cannot fit, before they are read.
///
/// # Errors
/// [`EngineError::DoesNotFit`]; the configuration's own errors are left to the loading that follows.
pub fn check_weights(dir: &Path) -> Result<(), EngineError> {
    match DecoderConfig::from_file(dir) {
        Ok(config) => require_ram("load model", weights_bytes(&config), "a machine with more memory"),
        Err(_) => Ok(()),
    }
}

fn require_ram(stage: &'static str, needed: u64, hint: &'static str) -> Result<(), EngineError> {
    require("memory", stage, needed, ram_available_bytes(), hint)
}

fn require(
    what: &'static str,
    stage: &'static str,
    needed: u64,
    available: Option<u64>,
    hint: &'static str,
) -> Result<(), EngineError> {
    match available {
        Some(found) if found < needed => {
            Err(EngineError::DoesNotFit { stage, what, expected: mib(needed), found: mib(found), hint })
        }
        _ => Ok(()),
    }
}

/// Mebibytes in words.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
