//! Commands: each turns its arguments into calls of the engine and its result into output.

use std::process::ExitCode;

use anyhow::{Context, Result};
use ascribe_core::Progress;
use ascribe_engine::recipe::Recipe;
use ascribe_engine::{Home, bank, train};
use ascribe_registry::Registry;

use crate::args::{BankCommand, Cli, Command};
use crate::bars::Bars;
use crate::output;

/// Runs one command.
///
/// # Errors
/// Whatever the engine refuses; the message says what, where, expected and found.
pub fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(n) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(n).build_global().context("--threads")?;
    }
    let bars = Bars::new(cli.quiet);
    let home = Home::find(cli.home.as_deref())?;
    match cli.command {
        Command::Train { recipe, out } => {
            let registry = Registry::open(&home.datasets())?;
            let report = train::run::run(&registry, &Recipe::read(&recipe)?, &out, &bars as &dyn Progress)?;
            output::print(cli.format, &report, |r| serde_json::to_string_pretty(r).unwrap_or_default())?;
        }
        Command::Bank(BankCommand::Build { model, seeds }) => {
            let dir = home.model(&model);
            let recipe = Recipe::read(&dir.join("recipe.toml"))?;
            let registry = Registry::open(&home.datasets())?;
            let parts = train::run::dataset_parts(&registry)?;
            let tokenizer = train::run::tokenizer(&dir, &parts, &recipe)?;
            let corpus = ascribe_corpus::Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
            let seeds: Vec<u64> = (recipe.seed..recipe.seed + seeds).collect();
            let n = bank::build(&dir.join("bank"), &corpus, &recipe, &seeds, &bars)?;
            output::print(cli.format, &serde_json::json!({ "trained": n }), |_| format!("{n} trainings done"))?;
        }
        _ => anyhow::bail!("WIP"),
    }
    Ok(ExitCode::SUCCESS)
}
