//! Arguments of `reputation`.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;

/// The leaderboard of datasets.
#[derive(Clone, Debug, Args)]
pub struct ReputationArgs {
    /// The evaluated run.
    #[command(flatten)]
    pub run: RunArgs,
    /// File for the page [default: reputation.html in the run folder].
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}
