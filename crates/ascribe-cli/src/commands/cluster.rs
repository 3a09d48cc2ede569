//! `ascribe cluster`, and `score` and `shares` with `--cluster`: handed to `ascribe-cluster`, a command of its own, because
//! the engine below it brings hundreds of crates that nobody else should pay for. `score` of a store without a cluster is done here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use ascribe_engine::store::scoring::{self, Scoring, ScoringRequest};

use crate::args::cluster::{ClusterArgs, ScoreArgs, SharesArgs};
use crate::args::{Command as Asked, DEFAULT_RUN, Format, RunArgs};
use crate::output::print;

/// Name of the command.
const COMMAND: &str = "ascribe-cluster";

/// Runs the command if it is one for other machines.
///
/// # Errors
/// A command that cannot be found or started; what the engine refuses.
pub fn run(command: &Asked, format: Format) -> Result<Option<ExitCode>> {
    let (named, arguments) = match command {
        Asked::Score(ScoreArgs {
            run, store: Some(store), queries: Some(queries), k, shard, cluster: None, ..
        }) => {
            let (store, queries, part) = (store.into(), queries.into(), shard.unwrap_or((0, 1)));
            let request = ScoringRequest { store, queries, k: *k, part, out: file_of(run)? };
            print(format, &scoring::run(&request)?, scoring_text)?;
            return Ok(Some(ExitCode::SUCCESS));
        }
        Asked::Score(ScoreArgs { run, join, .. }) if !join.is_empty() => {
            print(format, &scoring::join(join, &file_of(run)?)?, scoring_text)?;
            return Ok(Some(ExitCode::SUCCESS));
        }
        Asked::Cluster(ClusterArgs { command, arguments }) => (command.as_deref(), arguments.clone()),
        Asked::Score(ScoreArgs { run, cluster: Some(url), store: Some(store), queries: Some(queries), k, .. }) => {
            let texts = ["score", "--cluster", url, "--store", store, "--queries", queries, "--k", &k.to_string()];
            (None, with_out(&texts, run)?)
        }
        Asked::Shares(SharesArgs { run, cluster: Some(url), scores, method }) => {
            let mut texts = vec!["shares", "--cluster", url];
            if let Some(method) = method {
                texts.extend(["--method", method]);
            }
            texts.push("--scores");
            texts.extend(scores.iter().map(String::as_str));
            (None, with_out(&texts, run)?)
        }
        _ => return Ok(None),
    };
    let program = find(named)?;
    let status = match Command::new(&program).args(arguments).status() {
        Ok(status) => status,
        Err(error) => bail!("{} cannot be started: {error}", program.display()),
    };
    // A code that is none: a signal ended it.
    Ok(Some(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2))))
}

fn scoring_text(scoring: &Scoring) -> String {
    let Scoring { rows, store_rows, queries, out } = scoring;
    format!("{rows} of {store_rows} rows under {queries} queries, in {}", out.display())
}

/// The file of the result: where a run's default folder stands, nobody named one.
fn file_of(run: &RunArgs) -> Result<PathBuf> {
    if run.out == Path::new(DEFAULT_RUN) {
        bail!("--out: expected the file of the result, found none");
    }
    Ok(run.out.clone())
}

fn with_out(texts: &[&str], run: &RunArgs) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = texts.iter().map(OsString::from).collect();
    arguments.extend([OsString::from("--out"), file_of(run)?.into_os_string()]);
    Ok(arguments)
}

/// The named one, else the one beside this command, else one on PATH.
fn find(named: Option<&Path>) -> Result<PathBuf> {
    let named = named.map(Path::to_path_buf).or_else(|| std::env::var_os("ASCRIBE_CLUSTER").map(PathBuf::from));
    if let Some(named) = named {
        return Ok(named);
    }
    let beside = std::env::current_exe().ok().and_then(|here| Some(here.parent()?.join(COMMAND)));
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = beside.into_iter().chain(std::env::split_paths(&folders).map(|folder| folder.join(COMMAND)));
    match found.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "{COMMAND}: expected it beside this command or on PATH, found none (hint: `cargo build --release --manifest-path \
             crates/ascribe-cluster/Cargo.toml` builds it, --command or ASCRIBE_CLUSTER names it)"
        ),
    }
}
