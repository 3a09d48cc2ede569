//! Commands: each turns its arguments into calls of the engine and its result into output.

mod accrue;
mod audit;
mod bench;
mod cluster;
mod fitted;
mod guide;
mod lab;
mod ledger;
mod licence;
mod log;
mod pay;
mod registry;
mod reputation;
mod run_record;
mod search;
mod serve;
mod shares;
mod store;
mod tokens;
mod usage;
mod values;
mod verbatim;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use ascribe_core::Progress;
use ascribe_engine::recipe::{DampingRule, Recipe};
use ascribe_engine::summary::DemoSummary;
use ascribe_engine::walk::damping::DampingCurves;
use ascribe_engine::walk::stamps::Stamps;
use ascribe_engine::walk::{self, Context, calibrate, evaluate, features, fit, index, pay as payout, report, score};
use ascribe_engine::{Home, bank, demo, train};
use ascribe_registry::Registry;
use serde_json::json;

use crate::args::bench::BenchCommand;
use crate::args::pay::PayArgs;
use crate::args::training::TrainArgs;
use crate::args::{BankCommand, Cli, Command, Format, RunArgs};
use crate::bars::{Bars, watch_interrupts};
use crate::output::{print, table};

/// Runs one command.
///
/// # Errors
/// Whatever the engine refuses; the message says what, where, expected and found.
pub fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(n) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(n).build_global().context("--threads")?;
    }
    watch_interrupts()?;
    let (bars, format) = (Bars::new(cli.quiet), cli.format);
    match &cli.command {
        Command::Registry(command) => return registry::run(&cli, command, &bars).map(|()| ExitCode::SUCCESS),
        Command::Licence(command) => return licence::run(&cli, command).map(|()| ExitCode::SUCCESS),
        _ if !matches!(format, Format::Text | Format::Json) => {
            anyhow::bail!("--format: expected text or json, found a format of registry export");
        }
        _ => {}
    }
    if let Some(code) = cluster::run(&cli.command, format)? {
        return Ok(code);
    }
    if let Some(code) = lab::run(&cli.command, format, &bars)? {
        return Ok(code);
    }
    let home = cli.home.as_deref();
    let done = match &cli.command {
        Command::Store(command) => Some(store::run(command, format, &bars)),
        Command::Search(args) => Some(search::run(args, format, &bars)),
        Command::Bench(BenchCommand::Search(args)) => Some(search::measure(args, format, &bars)),
        Command::Serve(args) => Some(serve::run(home, args, format)),
        Command::Verbatim(command) => Some(verbatim::run(home, command, format, &bars)),
        Command::Ledger(command) => Some(ledger::run(command, format, &bars)),
        Command::Pay(PayArgs { command: Some(command), .. }) => Some(pay::run(command, format, &bars)),
        Command::Audit(args) => Some(audit::run(home, args, format, &bars)),
        _ => None,
    };
    if let Some(done) = done {
        return done.map(|()| ExitCode::SUCCESS);
    }
    let command = match cli.command {
        Command::Log(command) => return log::run(command, format, &bars).map(|()| ExitCode::SUCCESS),
        Command::Run(command) => return run_record::run(command, format),
        others => others,
    };
    let home = Home::find(cli.home.as_deref())?;
    match command {
        Command::Demo(args) => {
            let summary = demo::run(&home, &args.model, &args.out, &bars)?;
            print(format, &summary, |s| demo_text(s, &args.out))?;
        }
        Command::Train(TrainArgs { recipe: Some(recipe), out, seal, .. }) => {
            let registry = Registry::open(&home.datasets())?;
            let report = train::run::run(&registry, &Recipe::read(&recipe)?, &out, &bars)?;
            run_record::seal_written(&seal, &out)?;
            print(format, &report, train_text)?;
        }
        Command::Bank(BankCommand::Build { model, seeds, shard }) => {
            let trained = build_bank(&home, &model, seeds, shard, &bars)?;
            print(format, &json!({ "trained": trained }), |_| format!("{trained} trainings done"))?;
        }
        Command::Bench(command) => bench::run(&home, &command, format, &bars)?,
        Command::Tokens(args) => tokens::run(&home, &args, format, &bars)?,
        Command::Values(args) => values::run(&home, &args, format, &bars)?,
        Command::SelfInfluence(args) => values::upon(&home, &args, format, &bars)?,
        Command::Reputation(args) => reputation::run(&home, &args, format, &bars)?,
        Command::Speed { model, examples } => {
            let report = ascribe_engine::speed::run(&home, &model, examples)?;
            print(format, &report, |r| r.to_string())?;
        }
        station => run_station(&home, station, format, &bars)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Curvature, with the curve of the damping that it has.
fn fit_station(context: &Context, stamps: &mut Stamps, format: Format, bars: &Bars) -> Result<()> {
    fit::run(context, stamps, bars)?;
    let curves = match context.attribution.damping {
        DampingRule::Fixed => DampingCurves::compute(context, bars)?,
        DampingRule::HeldOutLikelihood => DampingCurves::read(context)?,
    };
    print(format, &fitted::Fitted::new(context, stamps.get("fit"), curves), fitted::text)
}

/// One station alone: it reads what the ones before it left in the run folder.
fn run_station(home: &Home, command: Command, format: Format, bars: &Bars) -> Result<()> {
    let args = match &command {
        Command::Features(args) => &args.station(),
        Command::Pay(args) => &args.station,
        Command::Score(args) => &args.run,
        Command::Shares(args) => &args.run,
        Command::Corpus(args)
        | Command::Fit(args)
        | Command::Index(args)
        | Command::Eval(args)
        | Command::Report(args) => args,
        _ => anyhow::bail!("not a station"),
    };
    let context = open(home, args, bars)?;
    let mut stamps = Stamps::read(&context.out);
    match command {
        Command::Corpus(_) => {
            print(format, &context.corpus.manifest, |_| corpus_text(&context))?;
        }
        Command::Features(_) => {
            let tokens = features::run(&context, bars)?;
            print(format, &json!({ "tokens": tokens }), |_| format!("{tokens} tokens done in this call"))?;
        }
        Command::Fit(_) => fit_station(&context, &mut stamps, format, bars)?,
        Command::Score(_) => {
            score::run(&context, &mut stamps, bars)?;
            let found = calibrate::run(&context, &mut stamps, bars)?;
            let printed = shares::Scored { stamp: stamps.get("score"), shares: &found };
            print(format, &printed, |p| format!("scores in {}\n\n{}", score::SCORES_FILE, shares::text(p.shares)))?;
        }
        Command::Index(_) => {
            index::run(&context, &mut stamps, bars)?;
            let report = index::IndexReport::read(&context.out)?;
            print(format, &report, |r| format!("recall@10 {:.3} against exact search", r.recall_at_10))?;
        }
        Command::Eval(_) => {
            let found = evaluate::run(&context, &mut stamps, bars)?;
            let intervals = calibrate::run(&context, &mut stamps, bars)?;
            let gates = walk::gates::walk_gates(&found.methods, &found.default_method);
            let printed = shares::Evaluated { evaluation: &found, gates, intervals: &intervals };
            let text = |p: &shares::Evaluated<'_>| {
                format!("{}\n{}\n{}", eval_text(p.evaluation), bench::gates_text(&p.gates), shares::text(p.intervals))
            };
            print(format, &printed, text)?;
        }
        Command::Shares(_) => {
            let book = walk::shares::run(&context, &mut stamps, bars)?;
            let found = calibrate::run(&context, &mut stamps, bars)?;
            let verdicts = walk::shares::verdicts(&book);
            let printed = shares::Shared { coverage_ppm: book.coverage_ppm, verdicts, shares: &found };
            print(format, &printed, shares::shared_text)?;
        }
        Command::Pay(_) => {
            let book = walk::shares::run(&context, &mut stamps, bars)?;
            let paid = payout::run(&context, &mut stamps, &book, bars)?;
            let conservation = paid.conservation.holds();
            print(format, &json!({ "conservation": conservation, "payees": paid.rows.len() }), |_| payout_text(&paid))?;
        }
        _ => {
            let evaluation = evaluate::run(&context, &mut stamps, bars)?;
            let book = walk::shares::run(&context, &mut stamps, bars)?;
            let paid = payout::run(&context, &mut stamps, &book, bars)?;
            let parts = report::Ingredients { evaluation: &evaluation, book: &book, paid: &paid, timings: &[] };
            report::run(&context, &parts, bars)?;
            let path = context.out.join(report::REPORT_FILE);
            print(format, &json!({ "report": path }), |_| format!("{}", path.display()))?;
        }
    }
    Ok(())
}

fn open(home: &Home, args: &RunArgs, bars: &dyn Progress) -> Result<Context> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    Ok(Context::open(home, &args.model, &args.out, bars)?)
}

fn build_bank(home: &Home, model: &str, seeds: u64, shard: (u64, u64), bars: &dyn Progress) -> Result<u64> {
    let dir = home.model(model);
    let recipe = Recipe::read(&dir.join("recipe.toml"))?;
    let registry = Registry::open(&home.datasets())?;
    let parts = train::run::dataset_parts(&registry)?;
    let tokenizer = train::run::tokenizer(&dir, &parts, &recipe)?;
    let corpus = ascribe_corpus::Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
    let seeds: Vec<u64> = (recipe.seed..recipe.seed + seeds).collect();
    Ok(bank::build(&dir.join("bank"), &corpus, &recipe, &seeds, shard, bars)?)
}

fn corpus_text(context: &Context) -> String {
    let row = |d: &ascribe_corpus::corpus::CorpusDataset| {
        vec![d.name.clone(), d.records_used.to_string(), d.records_held_out.to_string(), d.n_examples.to_string()]
    };
    let rows: Vec<Vec<String>> = context.corpus.manifest.datasets.iter().map(row).collect();
    table(&["dataset", "records", "held out", "examples"], &rows)
}

fn train_text(report: &train::run::TrainReport) -> String {
    let row = |r: &train::run::HeldOutRow| {
        let bits = [r.bits_per_byte, r.bits_per_byte_bigram, r.bits_per_byte_unigram];
        std::iter::once(r.dataset.clone()).chain(bits.map(|b| format!("{b:.3}"))).collect()
    };
    let rows: Vec<Vec<String>> = report.held_out.iter().map(row).collect();
    format!(
        "{} parameters, {} examples, {} steps, {:.0} tokens a second\n\nheld-out bits per byte\n{}",
        report.parameters,
        report.examples,
        report.steps,
        report.tokens_per_second,
        table(&["dataset", "model", "bigram", "unigram"], &rows)
    )
}

fn methods_text(
    methods: &std::collections::BTreeMap<String, ascribe_engine::summary::MethodSummary>,
    ceiling: Option<(f64, f64)>,
) -> String {
    let mut sorted: Vec<_> = methods.iter().collect();
    sorted.sort_by(|a, b| a.1.calibrated.total_cmp(&b.1.calibrated));
    let row = |(name, m): (&String, &ascribe_engine::summary::MethodSummary)| {
        vec![
            if m.control { format!("{name} (control)") } else { name.clone() },
            format!("{:.3} [{:.3}, {:.3}]", m.share_error, m.share_error_low, m.share_error_high),
            format!("{:.3} [{:.3}, {:.3}]", m.calibrated, m.calibrated_low, m.calibrated_high),
            format!("{:.3}", m.calibrated_unseen_datasets),
            format!("{:.2} [{:.2}, {:.2}]", m.top1, m.top1_low, m.top1_high),
            format!("{:.3} [{:.3}, {:.3}]", m.spearman, m.low, m.high),
            format!("{:.3}", m.spearman_others),
        ]
    };
    let rows: Vec<Vec<String>> = sorted.into_iter().map(row).collect();
    let header = ["", "share error, raw", "calibrated", "unseen datasets", "top-1", "Spearman", "others"];
    let ceiling = ceiling.map_or_else(String::new, |(error, rank)| {
        format!("agreement of one retraining seed with the others: share error {error:.3}, Spearman {rank:.3}\n")
    });
    table(&header, &rows) + &ceiling
}

/// The table, and how far the default leads on the very same responses.
fn eval_text(found: &evaluate::Evaluation) -> String {
    let ceiling = found.ceiling.as_ref().map(|c| (c.share_error.mean, c.spearman.mean));
    let row = |(name, lead): (&String, &ascribe_engine::Estimate)| {
        let rank = &found.rank_lead[name];
        let of = |e: &ascribe_engine::Estimate| format!("{:+.3} [{:+.3}, {:+.3}]", e.mean, e.low, e.high);
        vec![name.clone(), of(lead), of(rank)]
    };
    let rows: Vec<Vec<String>> = found.lead.iter().map(row).collect();
    let header = ["default ahead of", "share error, calibrated", "Spearman"];
    format!(
        "{} seeds of retraining, {} responses with true shares\n{}\n{}",
        found.seeds.len(),
        found.usable,
        methods_text(&found.methods, ceiling),
        table(&header, &rows)
    )
}

fn payout_text(paid: &payout::Paid) -> String {
    let row = |r: &ascribe_engine::walk::pay::PayoutLine| {
        let account = r.account.as_ref().map_or_else(|| "carried".to_owned(), ToString::to_string);
        vec![r.owner.clone(), account, format!("{} {}", r.amount.decimal(), r.amount.currency.code())]
    };
    let rows: Vec<Vec<String>> = paid.rows.iter().map(row).collect();
    table(&["owner", "account", "amount"], &rows)
}

fn demo_text(summary: &DemoSummary, out: &Path) -> String {
    let noise = shares::Noise {
        n_responses: summary.queries,
        too_noisy: summary.too_noisy_to_pay,
        threshold: summary.noise_threshold,
        sources: &summary.share_std_errors,
        additivity: summary.additivity_residual,
    };
    format!(
        "{} datasets, {} records, {} examples, {} responses, {:.1} s, {:.0} MiB\n\nagainst retraining (held-out)\n{}\n\
         {}\n{}\nevery unit of the pool accounted for: {}\nreport: {}\n",
        summary.datasets,
        summary.records,
        summary.examples,
        summary.queries,
        summary.seconds,
        summary.peak_rss_mib,
        methods_text(&summary.methods, summary.ceiling_share_error.zip(summary.ceiling_spearman)),
        shares::pool_text(&summary.pool),
        noise.text(),
        if summary.conservation { "yes" } else { "NO" },
        out.join(report::REPORT_FILE).display()
    )
}
