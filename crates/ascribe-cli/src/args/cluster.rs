//! Arguments of stations that run on other machines, and of `cluster`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::RunArgs;

/// What `score` writes, and where.
const SCORE_OUT: &str = "Run folder: reads its rows and factors, writes scores.parquet into it (per method and response the best examples \
                         and the score of every dataset). With --store or --join: the file that is written, JSON with the best rows of \
                         every query and the exact sums of datasets, or one part of it (--shard)";
/// The same of `shares`.
const SHARES_OUT: &str = "Run folder: reads its scores, writes shares.json into it (integer weights per response and payee, with coverage \
                          and intervals). With --cluster: the file that is written, Parquet, with the exact sum of every response and dataset";

/// A run's scores, or (with `--store`) those of any store, here, in parts, or on many machines.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("out", |out| out.help(SCORE_OUT)))]
pub struct ScoreArgs {
    /// Where the run is; with --store or --join the file of the result.
    #[command(flatten)]
    pub run: RunArgs,
    /// Score every row of this store: a folder (with --cluster one that every node sees at this path), or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "DIR", requires = "queries")]
    pub store: Option<String>,
    /// With --store: queries [Q, dim], f32, .npy; with --cluster seen by every node too, or s3://BUCKET/FILE.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub queries: Option<String>,
    /// With --store: best rows per query.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "store")]
    pub k: usize,
    /// With --store: score the i-th of n parts of the shards only, as `--shard 0/4` in one job of an array, into a part file.
    #[arg(long, value_name = "i/n", value_parser = super::parse_shard, requires = "store", conflicts_with = "cluster")]
    pub shard: Option<(u64, u64)>,
    /// Join the part files of such an array: the bytes that one job over all shards writes.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["store", "cluster"])]
    pub join: Vec<PathBuf>,
    /// With --store: scheduler of a cluster, df://HOST:PORT (`ascribe cluster scheduler` runs one), to score there: the same bytes.
    #[arg(long, value_name = "URL", requires = "store")]
    pub cluster: Option<String>,
}

/// A run's shares, or (with `--cluster`) the exact sums of score files on many machines.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("out", |out| out.help(SHARES_OUT)))]
pub struct SharesArgs {
    /// Where the run is, or with --cluster the file that the result goes to.
    #[command(flatten)]
    pub run: RunArgs,
    /// Scheduler of a cluster, df://HOST:PORT: add up --scores there, per response and dataset, with the bytes that one machine
    /// writes; `ascribe pay run` takes the result.
    #[arg(long, value_name = "URL", requires = "scores")]
    pub cluster: Option<String>,
    /// With --cluster: score files, Parquet, seen by every node, or s3://BUCKET/FILE.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "cluster")]
    pub scores: Vec<String>,
    /// With --cluster: the method, where a file holds several.
    #[arg(long, value_name = "NAME", requires = "cluster")]
    pub method: Option<String>,
}

/// What the command of the cluster is asked to do.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// Its path [default: beside this command, or on PATH].
    #[arg(long, value_name = "FILE", env = "ASCRIBE_CLUSTER")]
    pub command: Option<PathBuf>,
    /// scheduler, executor, score, shares or sql, with their arguments; `ascribe cluster score --help` lists them.
    #[arg(value_name = "ARGUMENTS", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}
