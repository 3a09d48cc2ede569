//! Commands on somebody's own model folder: they need no datasets/ and models/.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use ascribe_engine::lab::features::{self, FeaturesReport, FeaturesRequest};
use ascribe_engine::lab::fetched;
use ascribe_engine::lab::finetune::{self, FinetuneReport, FinetuneRequest, Start};
use ascribe_engine::lab::model::{LabModel, Subject};
use ascribe_engine::lab::plan::{self, Plan, PlanRequest, mib};
use ascribe_engine::lab::scale::{self, ScalePlan};
use ascribe_engine::nll;
use ascribe_engine::store::factored::{self, FactorSettings, Factored};
use ascribe_engine::train::vision::{self, ImageTrainReport, Judgement};

use super::run_record::Seal;
use super::store::made_text;
use crate::args::lab::{FeaturesArgs, NllArgs, PlanArgs, special_tokens};
use crate::args::run_record::SealArgs;
use crate::args::{Command, Format};
use crate::bars::Bars;
use crate::output::{print, table};

/// Highest learning rates of those who name none.
const FINETUNE_LR: f64 = 2e-5;
const LORA_LR: f64 = 1e-4;
const TRAIN_LR: f64 = 3e-4;

/// Runs the command if it is one of these.
///
/// # Errors
/// Whatever the engine refuses.
pub fn run(command: &Command, format: Format, bars: &Bars) -> Result<Option<ExitCode>> {
    match command {
        Command::Nll(args) => nll(args, format)?,
        Command::Features(args) => {
            let (Some(model), Some(out), Some(data)) = (&args.model, &args.out, &args.data) else { return Ok(None) };
            features(args, [model, out, data], format, bars)?;
        }
        Command::Plan(args) => return plan(args, format, bars).map(Some),
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
            finetune(&request, &args.seal, format, bars)?;
        }
        Command::Train(args) => {
            if let Some(recipe) = &args.recipe
                && vision::is_image_recipe(recipe)?
            {
                print(format, &vision::run(recipe, &args.out, bars)?, image_text)?;
                return Ok(Some(ExitCode::SUCCESS));
            }
            let (Some(config), Some(data)) = (&args.config, &args.data) else { return Ok(None) };
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
            finetune(&request, &args.seal, format, bars)?;
        }
        _ => return Ok(None),
    }
    Ok(Some(ExitCode::SUCCESS))
}

fn features(args: &FeaturesArgs, [model, out, data]: [&PathBuf; 3], format: Format, bars: &Bars) -> Result<()> {
    let request = FeaturesRequest {
        model: model.clone(),
        data: fetched::local(data, out)?,
        out: out.clone(),
        options: args.records.options(),
        special_tokens: args.records.special_tokens(),
        taps: args.taps.config(),
        subject: args.taps.subject(),
        row_type: args.taps.row_type.into(),
        embeddings: args.embeddings,
        cuda: args.device.cuda,
        part: args.shard,
    };
    let Some(rank) = args.factors else { return print(format, &features::run(&request, bars)?, features_text) };
    let settings = FactorSettings { rank, damping: args.damping, row_type: args.factor_rows.into() };
    print(format, &factored::run(&request, settings, bars)?, factored_text)
}

/// Trains; what comes from registered datasets is checked before and recorded after.
fn finetune(request: &FinetuneRequest, seal: &SealArgs, format: Format, bars: &Bars) -> Result<()> {
    let base = match &request.start {
        Start::Model(dir) => Some(dir.as_path()),
        Start::Config { .. } => None,
    };
    let begun = Seal::begin(seal, &request.data, base, request.settings.seed)?;
    let report = finetune::run(request, bars)?;
    if let Some(begun) = begun {
        begun.finish(&request.out, report.settings_sha256, report.steps, report.epochs)?;
    }
    print(format, &report, |r| finetune_text(r, &request.out))
}

fn nll(args: &NllArgs, format: Format) -> Result<()> {
    let special = special_tokens(args.no_special_tokens);
    let subject = Subject { adapter: args.adapter.clone(), ..Subject::default() };
    let model = LabModel::open_subject(&args.model, &subject)?;
    let report = match (&args.text, &args.data) {
        (Some(text), _) => nll::run(&model, text, special)?,
        (None, Some(data)) => nll::run_records(&model, data, special)?,
        (None, None) => anyhow::bail!("expected --text or --data, found neither"),
    };
    print(format, &report, |r| format!("{:.4} nats per token over {} tokens", r.nll, r.tokens))
}

fn factored_text(f: &Factored) -> String {
    let made = made_text(&f.made);
    f.features.as_ref().map_or_else(|| made.clone(), |rows| format!("{}\n{made}", features_text(rows)))
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

fn image_text(r: &ImageTrainReport) -> String {
    let judged = |name: &str, j: &Judgement| {
        format!("{name}: cross-entropy {:.4}, {:.2} % right of {} images", j.loss, 100.0 * j.accuracy, j.images)
    };
    let held_out = r.held_out.as_ref().map_or_else(String::new, |j| format!("\n{}", judged("held out", j)));
    format!(
        "{} parameters, {} steps on {} images, {:.0} images a second, in {}\n{}{held_out}",
        r.parameters,
        r.steps,
        r.images,
        r.images_per_second,
        r.out.display(),
        judged("training", &r.train)
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

/// Prints the plan; what does not fit is told on stderr, with exit code 1.
fn plan(args: &PlanArgs, format: Format, bars: &Bars) -> Result<ExitCode> {
    if let Some(request) = args.scale.request() {
        print(format, &scale::run(&request)?, scale_text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(model), Some(data)) = (&args.model, &args.data) else {
        anyhow::bail!("expected --model and --data, or --rows, found neither");
    };
    let request = PlanRequest {
        model: model.clone(),
        data: data.clone(),
        out: args.out.clone(),
        options: args.records.options(),
        special_tokens: args.records.special_tokens(),
        taps: args.taps.config(),
        row_type: args.taps.row_type.into(),
        settings: args.numbers.settings(FINETUNE_LR),
        lora_rank: args.lora_rank,
    };
    let plan = plan::run(&request, bars)?;
    print(format, &plan, plan_text)?;
    for problem in &plan.problems {
        // If stderr is closed the exit code still tells.
        let _ = writeln!(std::io::stderr(), "error: {problem}");
    }
    Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn scale_text(plan: &ScalePlan) -> String {
    let (storage, score) = (&plan.storage, &plan.score);
    let gb = |bytes: u64| format!("{:.3} GB", bytes as f64 / 1e9);
    let mut text = format!(
        "{} rows of {} numbers on {} executors of {} cores\n\nstorage {} in {} shards, {} per executor\nscoring about {:.1} s, \
         bound by {}: computing {:.1} s ({:.0} CPU-seconds), reading {:.1} s, network {} in {:.2} s\nmemory {} an executor \
         beside the mapped shards, {} the client\n",
        plan.rows,
        plan.dim,
        plan.executors,
        plan.cores,
        gb(storage.total_bytes),
        storage.shards,
        gb(storage.per_executor_bytes),
        score.seconds,
        score.bound_by,
        score.compute_seconds,
        score.cpu_seconds,
        score.read_seconds,
        gb(score.network_bytes),
        score.network_seconds,
        mib(score.executor_bytes),
        mib(score.client_bytes)
    );
    if let Some(build) = &plan.build {
        text.push_str(&format!("rows made in about {:.0} s, {:.0} CPU-seconds\n", build.seconds, build.cpu_seconds));
    }
    let rates = &plan.rates;
    text.push_str(&format!(
        "\nmeasured here: {:.3e} multiply-adds a second and core; assumed: disks {} GB/s, network {} GB/s an executor\n",
        rates.mul_adds_per_cpu_second, rates.disk_gb_s, rates.network_gb_s
    ));
    text
}

fn plan_text(plan: &Plan) -> String {
    let or_unknown = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), mib);
    let mut text = format!(
        "{} parameters; {} examples of {} records, {} tokens, the longest {}; {} numbers a row\n\
         {} threads; memory {}, disk {}\n\n",
        plan.parameters,
        plan.examples,
        plan.records,
        plan.tokens,
        plan.longest,
        plan.dim,
        plan.threads,
        or_unknown(plan.ram_available_bytes),
        or_unknown(plan.disk_available_bytes)
    );
    for stage in &plan.stages {
        let seconds = stage.seconds.map_or(String::new(), |s| format!(", about {s:.0} s"));
        let rate = stage.tokens_per_cpu_second.map_or(String::new(), |r| format!(" at {r:.0} tokens per CPU-second"));
        let (ram, disk) = (mib(stage.ram_bytes), mib(stage.disk_bytes));
        text.push_str(&format!("{}: memory {ram}, disk {disk}{seconds}{rate}\n", stage.stage));
        let rows: Vec<Vec<String>> =
            stage.ram.iter().map(|item| vec![format!("  {}", item.what), mib(item.bytes)]).collect();
        text.push_str(&table(&["  memory", ""], &rows));
        text.push('\n');
    }
    let gpu = &plan.gpu;
    text.push_str(&format!(
        "a GPU would hold (by formula) {} of weights in bf16 or {} in f32, {} a token of activations in f32, {} a row\n",
        mib(gpu.weights_bf16_bytes),
        mib(gpu.weights_f32_bytes),
        mib(gpu.activations_per_token_f32_bytes),
        mib(gpu.row_f32_bytes)
    ));
    text
}
