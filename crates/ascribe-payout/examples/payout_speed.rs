//! A payout run without the command around it, stage by stage: `payout_speed SCORES REGISTRY POOL OUT`. Prints one JSON line.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use ascribe_core::Progress;
use ascribe_payout::settings::PaySettings;
use ascribe_payout::{PayJob, run};

/// Seconds from the start of each stage to the start of the next.
struct Stages(Mutex<Vec<(String, Instant)>>);

impl Progress for Stages {
    fn start(&self, stage: &str, _total: u64, _unit: &str) {
        if let Ok(mut stages) = self.0.lock() {
            stages.push((stage.to_owned(), Instant::now()));
        }
    }

    fn advance(&self, _done: u64) {}

    fn finish(&self, _note: &str) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [scores, registry, pool, out] = args.as_slice() else {
        return Err("expected SCORES REGISTRY POOL OUT".into());
    };
    let job = PayJob {
        scores: scores.into(),
        registry: registry.into(),
        pool: Some(pool.parse()?),
        period: "2026-11-01/2026-11-30".parse()?,
        method: None,
        duplicates: None,
        previous: None,
        settings: PaySettings::default(),
    };
    let (started, stages) = (Instant::now(), Stages(Mutex::default()));
    let record = run(&job, &PathBuf::from(out), &stages)?.record;
    let seconds = started.elapsed().as_secs_f64();
    let stages = stages.0.into_inner().map_err(|_| "a stage panicked")?;
    let ends = stages.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
    let stages: Vec<_> = stages.iter().zip(ends).map(|((name, at), end)| (name, (end - *at).as_secs_f64())).collect();
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim).unwrap_or_default();
    println!(
        "{}",
        serde_json::json!({
            "rows": record.rows, "payees": record.payees, "paid": record.paid_payees, "conserved": record.totals.conserved,
            "seconds": seconds, "stages": stages, "peak": peak,
        })
    );
    Ok(())
}
