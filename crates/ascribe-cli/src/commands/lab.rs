//! Commands on somebody's own model folder: they need no datasets/ and models/.

use std::path::Path;

use anyhow::Result;
use ascribe_engine::lab::features::{self, FeaturesReport, FeaturesRequest};
use ascribe_engine::lab::finetune::{self, FinetuneReport, FinetuneRequest, Start};
use ascribe_engine::nll;

use crate::args::lab::{FeaturesArgs, NllArgs, special_tokens};
use crate::args::{Command, Format};
use crate::bars::Bars;
use crate::output::print;

/// Highest learning rates of those who name none.
const FINETUNE_LR: f64 = 2e-5;
const LORA_LR: f64 = 1e-4;
const TRAIN_LR: f64 = 3e-4;

/// Runs the command if it is one of these.
///
/// # Errors
/// Whatever the engine refuses.
pub fn run(command: &Command, format: Format, bars: &Bars) -> Result<bool> {
    match command {
        Command::Nll(args) => nll(args, format)?,
        Command::Features(FeaturesArgs { model: Some(model), out: Some(out), data: Some(data), records, taps }) => {
            let request = FeaturesRequest {
                model: model.clone(),
                data: data.clone(),
                out: out.clone(),
                options: records.options(),
                special_tokens: records.special_tokens(),
                taps: taps.config(),
                row_type: taps.row_type.into(),
            };
            print(format, &features::run(&request, bars)?, features_text)?;
        }
        Command::Finetune(args) => {
            let default_lr = if args.lora_rank.is_some() { LORA_LR } else { FINETUNE_LR };
            let request = FinetuneRequest {
                start: Start::Model(args.model.clone()),
                data: args.data.clone(),
                held_out: args.numbers.held_out.clone(),
                out: args.out.clone(),
                options: args.records.options(),
                special_tokens: args.records.special_tokens(),
                settings: args.numbers.settings(default_lr),
                lora: args.lora(),
            };
            print(format, &finetune::run(&request, bars)?, |r| finetune_text(r, &args.out))?;
        }
        Command::Train(args) => {
            let (Some(config), Some(data)) = (&args.config, &args.data) else { return Ok(false) };
            let request = FinetuneRequest {
                start: Start::Config { config: config.clone(), tokenizer: args.tokenizer.clone() },
                data: data.clone(),
                held_out: args.numbers.held_out.clone(),
                out: args.out.clone(),
                options: args.records.options(),
                special_tokens: args.records.special_tokens(),
                settings: args.numbers.settings(TRAIN_LR),
                lora: None,
            };
            print(format, &finetune::run(&request, bars)?, |r| finetune_text(r, &args.out))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn nll(args: &NllArgs, format: Format) -> Result<()> {
    let special = special_tokens(args.no_special_tokens);
    let report = match (&args.text, &args.data) {
        (Some(text), _) => nll::run(&args.model, text, special)?,
        (None, Some(data)) => nll::run_records(&args.model, data, special)?,
        (None, None) => anyhow::bail!("expected --text or --data, found neither"),
    };
    print(format, &report, |r| format!("{:.4} nats per token over {} tokens", r.nll, r.tokens))
}

fn features_text(r: &FeaturesReport) -> String {
    format!(
        "{} rows of {} numbers, {} tokens in {}\n{} rows done in this call: {:.1} CPU-seconds, {:.1} s, {:.0} tokens per \
         CPU-second, {:.0} MiB at most",
        r.examples,
        r.dim,
        r.tokens,
        r.store.display(),
        r.examples_done,
        r.cpu_seconds,
        r.seconds,
        r.tokens_per_cpu_second,
        r.peak_rss_mib
    )
}

fn finetune_text(r: &FinetuneReport, out: &Path) -> String {
    let held_out = match (r.held_out_before, r.held_out_after) {
        (Some(before), Some(after)) => format!("held-out loss {before:.4} before, {after:.4} after\n"),
        _ => String::new(),
    };
    format!(
        "{} of {} parameters trained on {} examples, {} steps, {:.2} epochs\nloss {:.4} in the first batch, {:.4} in the last\n\
         {held_out}{:.0} tokens per CPU-second, {:.0} MiB at most, in {}",
        r.trained_parameters,
        r.parameters,
        r.examples,
        r.steps,
        r.epochs,
        r.first_loss,
        r.last_loss,
        r.tokens_per_cpu_second,
        r.peak_rss_mib,
        out.display()
    )
}
