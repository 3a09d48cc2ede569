//! Arguments of the commands that train on somebody's own records.

use std::path::PathBuf;

use ascribe_engine::lab::settings::{Length, TrainSettings};
use ascribe_models::Schedule;
use ascribe_models::lora::{LoraConfig, Targets};
use clap::{Args, ValueEnum};

use super::lab::RecordArgs;
use super::run_record::SealArgs;

/// Fine-tuning of a model folder.
#[derive(Clone, Debug, Args)]
pub struct FinetuneArgs {
    /// Hugging Face model folder to begin with.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// JSONL records to train on: `text`, `prompt` with `completion` (the prompt is not learnt), or `input_ids`.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Folder of the run: model, checkpoints, log.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Train a LoRA of this rank and leave the weights alone; the folder is one that PEFT opens.
    #[arg(long, value_name = "R")]
    pub lora_rank: Option<usize>,
    /// Strength of the LoRA: alpha/R times B·A is added [default: twice the rank].
    #[arg(long, value_name = "ALPHA", requires = "lora_rank")]
    pub lora_alpha: Option<f64>,
    /// Modules that get a LoRA, by name or end of name [default: all linear modules of the layers].
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "lora_rank")]
    pub lora_targets: Vec<String>,
    /// How long and how fast.
    #[command(flatten)]
    pub numbers: NumberArgs,
    /// How records are read.
    #[command(flatten)]
    pub records: RecordArgs,
    /// How the run is recorded.
    #[command(flatten)]
    pub seal: SealArgs,
}

impl FinetuneArgs {
    /// The LoRA that is asked for.
    pub fn lora(&self) -> Option<LoraConfig> {
        let rank = self.lora_rank?;
        let targets = match self.lora_targets.is_empty() {
            true => Targets::AllLinear,
            false => Targets::Names(self.lora_targets.clone()),
        };
        let mut config = LoraConfig::new(rank, self.lora_alpha.unwrap_or(2.0 * rank as f64), targets);
        config.base_model = Some(self.model.display().to_string());
        Some(config)
    }
}

/// Training from nothing: of a registered recipe, or of a `config.json` on somebody's own records.
#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    /// Recipe file: train on the registered datasets, or on the images that it names.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub recipe: Option<PathBuf>,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Shape of a new model: a Hugging Face config.json of any supported family.
    #[arg(long, value_name = "FILE", requires = "data")]
    pub config: Option<PathBuf>,
    /// JSONL records to train on.
    #[arg(long, value_name = "FILE", requires = "config")]
    pub data: Option<PathBuf>,
    /// tokenizer.json for records of text [default: the one beside the config].
    #[arg(long, value_name = "FILE", requires = "config")]
    pub tokenizer: Option<PathBuf>,
    /// How long and how fast.
    #[command(flatten)]
    pub numbers: NumberArgs,
    /// How records are read.
    #[command(flatten)]
    pub records: RecordArgs,
    /// How the run is recorded.
    #[command(flatten)]
    pub seal: SealArgs,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleArg {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
}

/// Numbers of a run.
#[derive(Clone, Debug, Args)]
pub struct NumberArgs {
    /// JSONL records to measure on, before, after and on the way; never trained on.
    #[arg(long, value_name = "FILE", requires = "data")]
    pub held_out: Option<PathBuf>,
    /// Passes over the records [default: 1].
    #[arg(long, value_name = "X", conflicts_with = "steps", requires = "data")]
    pub epochs: Option<f64>,
    /// Optimiser steps [default: as many as --epochs takes].
    #[arg(long, value_name = "N", requires = "data")]
    pub steps: Option<u32>,
    /// Sequences per step.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "data")]
    pub batch: u32,
    /// Sequences whose gradients are added one after another; groups run in parallel. Part of what decides the weights.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "data")]
    pub micro_batch: u32,
    /// Highest learning rate [default: 2e-5; 1e-4 for a LoRA, 3e-4 for a new model].
    #[arg(long, value_name = "X", requires = "data")]
    pub lr: Option<f64>,
    /// Last learning rate, as a part of the highest.
    #[arg(long, value_name = "PART", default_value_t = 0.0, requires = "data")]
    pub lr_floor: f64,
    /// Part of the steps in which the learning rate climbs.
    #[arg(long, value_name = "PART", default_value_t = 0.03, requires = "data")]
    pub warmup: f64,
    /// How the learning rate falls.
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear, requires = "data")]
    pub schedule: ScheduleArg,
    /// Decoupled weight decay of matrices.
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "data")]
    pub weight_decay: f64,
    /// AdamW: decay of the mean gradient.
    #[arg(long, value_name = "X", default_value_t = 0.9, requires = "data")]
    pub beta1: f64,
    /// AdamW: decay of the mean squared gradient.
    #[arg(long, value_name = "X", default_value_t = 0.999, requires = "data")]
    pub beta2: f64,
    /// AdamW: added to the denominator.
    #[arg(long, value_name = "X", default_value_t = 1e-8, requires = "data")]
    pub eps: f64,
    /// Gradients longer than this are shortened to it; 0 for never.
    #[arg(long, value_name = "X", default_value_t = 1.0, requires = "data")]
    pub clip_norm: f64,
    /// Seed of the order, of new weights and new adapters.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "data")]
    pub train_seed: u64,
    /// Keep a checkpoint (a model folder with second moments) every N steps; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "data")]
    pub checkpoint_every: u32,
    /// Measure held-out records every N steps; 0 for before and after alone.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "data")]
    pub eval_every: u32,
}

impl NumberArgs {
    /// Settings of the engine.
    pub fn settings(&self, default_lr: f64) -> TrainSettings {
        TrainSettings {
            length: self.steps.map_or(Length::Epochs(self.epochs.unwrap_or(1.0)), Length::Steps),
            batch: self.batch,
            micro_batch: self.micro_batch,
            lr: self.lr.unwrap_or(default_lr),
            lr_floor_rel: self.lr_floor,
            warmup_part: self.warmup,
            schedule: match self.schedule {
                ScheduleArg::Cosine => Schedule::Cosine,
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Constant => Schedule::Constant,
            },
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            clip_norm: self.clip_norm,
            seed: self.train_seed,
            checkpoint_every: self.checkpoint_every,
            eval_every: self.eval_every,
        }
    }
}
