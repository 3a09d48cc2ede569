//! Commands on somebody's own model folder: they need no datasets/ and models/.

use anyhow::Result;
use ascribe_engine::lab::features::{self, FeaturesReport, FeaturesRequest};
use ascribe_engine::nll;

use crate::args::lab::{FeaturesArgs, NllArgs, special_tokens};
use crate::args::{Command, Format};
use crate::bars::Bars;
use crate::output::print;

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
