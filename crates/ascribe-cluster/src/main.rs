//! The walk on Apache DataFusion Ballista: our own scheduler and executor, which carry our functions, and the jobs that run on them.
//!
//! Here lives: what becomes SQL, which functions the SQL calls, the processes. Here never lives: how a row is scored or joined
//! (`ascribe_index::shard_job`, the same on one machine), how rows are kept (store).
//!
//! Without `--cluster`, the same SQL runs on the embedded DataFusion; results are equal to the byte, because rows are scored alone
//! and joined exactly.

mod error;
mod functions;
mod jobs;
mod npy;
mod objects;
mod processes;
mod session;
mod stores;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "ascribe-cluster", version, about = "Ascribe on Apache DataFusion Ballista")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A scheduler that knows our functions.
    ///
    /// Example: ascribe-cluster scheduler --port 50050
    Scheduler(processes::SchedulerArgs),
    /// An executor that knows our functions. Shards and queries are read by path, then every node needs the same folder, or from an
    /// object store, then every node needs its keys in the environment.
    ///
    /// Example: ascribe-cluster executor --scheduler 10.0.0.1:50050 --vcores 8
    Executor(processes::ExecutorArgs),
    /// Scores every row of a store: the best rows of each query, and the sum of every dataset.
    ///
    /// Example: ascribe-cluster score --store STORE --queries Q.npy --k 10 --out scores.json --cluster df://10.0.0.1:50050
    Score(jobs::ScoreArgs),
    /// Adds up a score file per response and dataset, exactly: what `ascribe pay run` takes in.
    ///
    /// Example: ascribe-cluster shares --scores scores.parquet --out sums.parquet --cluster df://10.0.0.1:50050
    Shares(jobs::SharesArgs),
    /// Runs SQL over Parquet files, with our functions; prints JSON lines.
    ///
    /// Example: ascribe-cluster sql --table scores=scores.parquet "SELECT dataset_id, exact_sum(score) FROM scores GROUP BY 1"
    Sql(jobs::SqlArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Deep plans recurse: DataFusion asks for more than the usual stack.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(16 << 20)
        .build()
        .map_err(Into::into);
    let done: Result<()> = runtime.and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Command::Scheduler(args) => processes::scheduler(args).await,
                Command::Executor(args) => processes::executor(args).await,
                Command::Score(args) => jobs::score(args).await,
                Command::Shares(args) => jobs::shares(args).await,
                Command::Sql(args) => jobs::sql(args).await,
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
