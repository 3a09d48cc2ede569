//! Arguments of `ascribe pay`: the station of the walk, and payout runs over score files of any tool.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::RunArgs;

/// The station, or one of the commands for payout runs.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PayArgs {
    /// A payout run; without one, the station of the walk.
    #[command(subcommand)]
    pub command: Option<PayCommand>,
    /// The station's run folder.
    #[command(flatten)]
    pub station: RunArgs,
}

/// Commands for payout runs.
#[derive(Debug, Subcommand)]
pub enum PayCommand {
    /// Pay a pool out by a score file: weights, books, and one file per payout format.
    ///
    /// The score file may be Parquet, Arrow, CSV or .npy; it has columns query_id, dataset_id and score (docs/payouts.md).
    /// The same inputs give the same run; running it again changes nothing.
    #[command(
        after_help = "Example:\n  ascribe pay run --scores scores.parquet --registry datasets --pool \"1000.00 USD\" \
        --out payout --format json"
    )]
    Run(PayRunArgs),
    /// Say who would get what and why, against the run before; writes nothing.
    #[command(
        after_help = "Example:\n  ascribe pay plan --scores scores.parquet --registry datasets --pool \"1000.00 USD\" \
        --previous payout-october"
    )]
    Plan(PayPlanArgs),
    /// Make a run again from its own folder and compare every byte.
    #[command(after_help = "Example:\n  ascribe pay verify payout --format json")]
    Verify {
        /// Run folder.
        dir: PathBuf,
        /// The score file, where it was too large to be copied into the folder.
        #[arg(long, value_name = "FILE")]
        scores: Option<PathBuf>,
        /// Usage log that holds the receipts [default: the run's own, DIR/usage].
        #[arg(long, value_name = "DIR")]
        usage_log: Option<PathBuf>,
        /// Public key of the operator who signed the receipts: a verifier key line, or a file with it [default: the one in the log's
        /// folder, which proves nothing about who].
        #[arg(long, value_name = "KEY|FILE")]
        usage_key: Option<String>,
    },
    /// Approve a run: sign its id with an Ed25519 keystore.
    ///
    /// A policy with `approval` asks for two or more people above a threshold (docs/ledger.md). `pay run` is refused until they have
    /// signed and says which run they are to sign; `pay plan` says it beforehand.
    #[command(after_help = "Example:\n  ascribe pay approve payout --keystore ann.json --passphrase-file phrase.txt")]
    Approve {
        /// Run folder.
        dir: PathBuf,
        /// The run [default: the one that DIR is about].
        #[arg(long, value_name = "ID")]
        run_id: Option<String>,
        /// Who approves.
        #[command(flatten)]
        key: super::registry::KeyArgs,
    },
    /// Compare what two runs pay.
    #[command(after_help = "Example:\n  ascribe pay diff payout-october payout-november")]
    Diff {
        /// The earlier run.
        before: PathBuf,
        /// The later run.
        after: PathBuf,
    },
}

/// What a payout follows from.
#[derive(Debug, Args)]
pub struct PayJobArgs {
    /// Score file: Parquet, Arrow, CSV or .npy; or a `shares.json` of the walk.
    #[arg(long, value_name = "FILE")]
    pub scores: PathBuf,
    /// Registry folder.
    #[arg(long, value_name = "DIR")]
    pub registry: PathBuf,
    /// Settled revenue to pay out, such as "1000.00 USD" [default: the sum of the score file's column revenue].
    #[arg(long, value_name = "AMOUNT")]
    pub pool: Option<String>,
    /// First and last day of what is paid, as YYYY-MM-DD/YYYY-MM-DD [default: that of the run in DIR, else this month].
    #[arg(long, value_name = "DAYS")]
    pub period: Option<String>,
    /// Method whose rows count, where the score file holds several.
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Report of duplicates, from `ascribe registry duplicates --format json`: copies then earn for the earliest licence.
    #[arg(long, value_name = "FILE")]
    pub duplicates: Option<PathBuf>,
    /// Folder of the run before this one: its carried balances, dust and claimable amounts come along.
    #[arg(long, value_name = "DIR")]
    pub previous: Option<PathBuf>,
    /// Policy file (TOML): rule, coverage, noise floor, minimum, cap, embargo, chain, payer. The flags below win over it.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Part of the pool that measured evidence covers, as a fraction such as 0.85; the rest stays unattributed.
    #[arg(long, value_name = "FRACTION")]
    pub coverage: Option<f64>,
    /// Token contract of the on-chain files.
    #[arg(long, value_name = "ADDRESS")]
    pub token: Option<String>,
    /// Decimals of that token [default: those of the currency].
    #[arg(long, value_name = "N")]
    pub token_decimals: Option<u8>,
    /// Chain of the on-chain files [default: the one that most payees are on].
    #[arg(long, value_name = "ID")]
    pub chain: Option<u64>,
}

/// A run.
#[derive(Debug, Args)]
pub struct PayRunArgs {
    /// What is paid, to whom, and how.
    #[command(flatten)]
    pub job: PayJobArgs,
    /// Folder of the run.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Usage log that gets a receipt of every response; a response that another run has paid by the same log is refused
    /// [default: one of the run's own, OUT/usage].
    #[arg(long, value_name = "DIR")]
    pub usage_log: Option<PathBuf>,
    /// Secret key file of the operator, who signs the receipts (`ascribe log keygen`) [default: the registry's usage key; the public
    /// demo key where a registry has no secrets].
    #[arg(long, value_name = "FILE")]
    pub usage_key: Option<PathBuf>,
    /// Record of the training run of the model that the scores explain (run.json): the receipts name model and run.
    #[arg(long, value_name = "FILE")]
    pub run_record: Option<PathBuf>,
    /// Texts of the responses, a line {"query_id": …, "output": "…"} each: the receipts hold their salted hashes
    /// [default: salted hashes of the ids].
    #[arg(long, value_name = "FILE")]
    pub outputs: Option<PathBuf>,
}

/// A dry run.
#[derive(Debug, Args)]
pub struct PayPlanArgs {
    /// What is paid, to whom, and how.
    #[command(flatten)]
    pub job: PayJobArgs,
    /// Payees to list.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub top: usize,
}
