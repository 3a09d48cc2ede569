//! All stations in order: the whole walk.

use std::path::Path;
use std::time::Instant;

use ascribe_core::{Digest, Progress};

use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::machine::peak_rss_mib;
use crate::report::data::Timing;
use crate::run_file::{RUN_FILE, RUN_FORMAT_VERSION, RunFile};
use crate::summary::DemoSummary;
use crate::walk::evaluate::COMBINED;
use crate::walk::stamps::Stamps;
use crate::walk::{Context, calibrate, evaluate, features, fit, index, pay, report, score, shares};

/// Runs the walk into `out`, skipping what is finished there, and writes `run.toml` last: a folder with a run file is a
/// whole run.
///
/// Everything but seconds and memory depends on the inputs alone.
///
/// # Errors
/// The first station's that fails; what was finished before it stays and is not done again.
pub fn run(home: &Home, model: &str, out: &Path, progress: &dyn Progress) -> Result<DemoSummary, EngineError> {
    let started = Instant::now();
    std::fs::create_dir_all(out).map_err(|e| EngineError::io(out, e))?;
    let mut clock = Clock::start();
    let context = Context::open(home, model, out, progress)?;
    evaluate::check(&context)?;
    clock.lap("verify and corpus", format!("{} examples", context.corpus.examples.len()));
    // From here on files may change; without a run file nobody takes the folder for a whole run.
    remove_run_file(out)?;
    let mut stamps = Stamps::read(out);
    let n_tokens = features::run(&context, progress)?;
    clock.rate("gradients and hidden states", n_tokens);
    fit::run(&context, &mut stamps, progress)?;
    clock.lap("fit", format!("{} checkpoints", context.checkpoints.len()));
    score::run(&context, &mut stamps, progress)?;
    clock.lap("score", format!("{} methods and controls", score::METHODS.len()));
    index::run(&context, &mut stamps, progress)?;
    clock.lap("index", "HNSW, recall measured against exact search".into());
    let evaluation = evaluate::run(&context, &mut stamps, progress)?;
    clock.lap("evaluate", format!("{} retraining seeds", evaluation.seeds.len()));
    let intervals = calibrate::run(&context, &mut stamps, progress)?;
    let book = shares::run(&context, &mut stamps, progress)?;
    let paid = pay::run(&context, &mut stamps, &book, progress)?;
    clock.lap("shares and payout", format!("{} payees", paid.rows.len()));
    let parts = report::Ingredients { evaluation: &evaluation, book: &book, paid: &paid, timings: &clock.laps };
    report::run(&context, &parts, progress)?;

    let index = index::IndexReport::read(out)?;
    let summary = DemoSummary {
        datasets: context.corpus.n_datasets() as u64,
        records: context.registry.datasets().iter().map(|d| d.manifest.record_count).sum(),
        examples: context.corpus.examples.len() as u64,
        queries: context.corpus.queries.len() as u64,
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_mib: peak_rss_mib(),
        default_method: COMBINED.to_owned(),
        conservation: paid.conservation.holds(),
        coverage_ppm: book.coverage_ppm,
        payable: (intervals.responses.len() - intervals.n_too_noisy()) as u64,
        too_noisy_to_pay: intervals.n_too_noisy() as u64,
        noise_threshold: intervals.threshold,
        share_std_errors: intervals.sources,
        additivity_residual: intervals.additivity_residual,
        pool: intervals.pool,
        hnsw_recall_at_10: index.recall_at_10,
        retraining_seeds: evaluation.seeds.len() as u64,
        ceiling_share_error: evaluation.ceiling.as_ref().map(|c| c.share_error.mean),
        ceiling_spearman: evaluation.ceiling.as_ref().map(|c| c.spearman.mean),
        methods: evaluation.methods.clone(),
    };
    let mut inputs = context.inputs.clone();
    inputs.insert("bank".to_owned(), evaluation.bank);
    RunFile {
        format_version: RUN_FORMAT_VERSION,
        ascribe_version: env!("CARGO_PKG_VERSION").into(),
        command: format!("ascribe demo --model {model}"),
        model: model.to_owned(),
        inputs,
        attribution: context.attribution.clone(),
        summary: summary.clone(),
        timings: clock.laps,
        outputs: outputs(out)?,
    }
    .write(out)?;
    Ok(summary)
}

fn remove_run_file(out: &Path) -> Result<(), EngineError> {
    let path = out.join(RUN_FILE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(EngineError::io(path, e)),
        _ => Ok(()),
    }
}

/// Digests of all files in the run folder but the run file itself.
fn outputs(out: &Path) -> Result<std::collections::BTreeMap<String, Digest>, EngineError> {
    let paths = files::list(out)?.into_iter().filter(|p| is_output(p));
    paths.map(|p| Ok((p.clone(), files::digest(&out.join(&p))?))).collect()
}

/// True for files whose digests stand in the run file: all but itself and what others add about it afterwards.
pub fn is_output(path: &str) -> bool {
    path != RUN_FILE && !path.starts_with("evidence/")
}

/// Stops the time of stations.
struct Clock {
    last: Instant,
    laps: Vec<Timing>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, stage: &str, note: String) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.laps.push(Timing { stage: stage.to_owned(), seconds, note });
        self.last = Instant::now();
    }

    fn rate(&mut self, stage: &str, n_tokens: u64) {
        let seconds = self.last.elapsed().as_secs_f64();
        let note = match n_tokens {
            0 => "finished earlier, not done again".to_owned(),
            n => format!("{n} tokens, {:.0} a second", n as f64 / seconds),
        };
        self.lap(stage, note);
    }
}
