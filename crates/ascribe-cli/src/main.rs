//! The `ascribe` command: arguments become one typed meaning, the engine does the work, the result goes to stdout.
//!
//! Here lives: arguments, bars, text and JSON output, exit codes (0 done, 1 the input was wrong, 2 a fault of ours).
//! Here never lives: anything that computes.

mod args;
mod bars;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let format = cli.format;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commands::run(cli)));
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => output::fail(&error, format),
        // The panic hook has already printed the broken invariant.
        Err(_) => ExitCode::from(2),
    }
}
