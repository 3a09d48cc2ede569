//! Arguments of `run`, and of training that is to be recorded.

use std::path::PathBuf;

use ascribe_registry::RunPolicy;
use clap::{Args, Subcommand, ValueEnum};

/// What happens to a run with findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// Refuse what is wrong, flag what is only unproven.
    Refuse,
    /// Refuse both.
    Strict,
    /// Flag both.
    Flag,
}

impl From<PolicyArg> for RunPolicy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::Refuse => Self::Refuse,
            PolicyArg::Strict => Self::Strict,
            PolicyArg::Flag => Self::Flag,
        }
    }
}

/// Recording of a training.
#[derive(Clone, Debug, Args)]
pub struct SealArgs {
    /// Registered datasets that the records come from, a JSON list of {"dataset", "records_used", …}: the run is checked
    /// before it begins and recorded when it ends.
    #[arg(long, value_name = "FILE", requires = "registered")]
    pub datasets: Option<PathBuf>,
    /// Registry folder of those datasets.
    #[arg(long, value_name = "DIR")]
    pub registered: Option<PathBuf>,
    /// Secret key file of the operator: the run record is signed.
    #[arg(long, value_name = "FILE")]
    pub run_key: Option<PathBuf>,
    /// P-256 key as PKCS #8 PEM: the model folder is signed in OpenSSF's form.
    #[arg(long, value_name = "PEM")]
    pub model_key: Option<PathBuf>,
    /// Git commit of the training code.
    #[arg(long, value_name = "HEX")]
    pub code_commit: Option<String>,
    /// What happens when a dataset is unlicensed, expired, revoked or licensed too late.
    #[arg(long, value_enum, default_value_t = PolicyArg::Refuse)]
    pub policy: PolicyArg,
}

/// Run commands.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Record a training that another program did: a folder of weights, a list of datasets, what is known of the run.
    #[command(
        after_help = "Example:\n  ascribe run record --model-dir model --datasets used.json --registered datasets \
        --trainer 'pytorch 2.9' --started 2026-05-01T00:00:00Z --finished 2026-05-02T00:00:00Z --steps 1000 --key run.key"
    )]
    Record(Box<RecordArgs>),
    /// Check a run record: signatures, files, licences as of its start, and the proof of that start.
    #[command(after_help = "Example:\n  ascribe run verify models/wren --registered datasets\n  \
        ascribe run verify model --registered datasets --key run.vkey --log-key log.vkey --tsa tsa.pem --policy strict")]
    Verify(Box<VerifyArgs>),
    /// Sign a run record that is there, and the model folder when a model key is given.
    #[command(after_help = "Example:\n  ascribe run sign models/wren --key run.key --model-key model.pem")]
    Sign {
        /// Model folder with run.json.
        dir: PathBuf,
        /// Secret key file of the operator.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// P-256 key as PKCS #8 PEM.
        #[arg(long, value_name = "PEM")]
        model_key: Option<PathBuf>,
    },
    /// Make a P-256 key for model folders; its public half goes to stdout, the secret into a new file of mode 0600.
    #[command(after_help = "Example:\n  ascribe run keygen --out model.pem > model.pub.pem")]
    Keygen {
        /// New file for the secret, PKCS #8 PEM.
        #[arg(long, value_name = "PEM")]
        out: PathBuf,
    },
}

/// Arguments of `run record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// Model folder; the record goes into it as run.json.
    #[arg(long, value_name = "DIR")]
    pub model_dir: PathBuf,
    /// Registered datasets that were trained on, a JSON list of {"dataset", "records_used", "epochs", "sampling_seed",
    /// "filter_sha256"}; only the first is needed.
    #[arg(long, value_name = "FILE")]
    pub datasets: PathBuf,
    /// Registry folder.
    #[arg(long, value_name = "DIR")]
    pub registered: PathBuf,
    /// The program that trained, with its version.
    #[arg(long, value_name = "TEXT")]
    pub trainer: String,
    /// Start, RFC 3339 or Unix seconds.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub started: u64,
    /// End, RFC 3339 or Unix seconds.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub finished: u64,
    /// Optimiser steps.
    #[arg(long, value_name = "N")]
    pub steps: u64,
    /// Passes over the data.
    #[arg(long, value_name = "X", default_value = "1")]
    pub epochs: String,
    /// Seed of the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Recipe or configuration, pinned by its digest [default: config.json of the model folder].
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Git commit of the training code.
    #[arg(long, value_name = "HEX")]
    pub code_commit: Option<String>,
    /// Weights that training began with, pinned by their digest.
    #[arg(long, value_name = "FILE")]
    pub base_model: Option<PathBuf>,
    /// Checkpoint of the licence log that was taken when training began [default: the registry's latest].
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// An authority's time stamp (RFC 3161) over that checkpoint.
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    pub time_stamp: Option<PathBuf>,
    /// Unique name of the run [default: made of the model's digest].
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub id: String,
    /// Secret key file of the operator: the record is signed.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// P-256 key as PKCS #8 PEM: the model folder is signed in OpenSSF's form.
    #[arg(long, value_name = "PEM")]
    pub model_key: Option<PathBuf>,
    /// What happens when a dataset is unlicensed, expired, revoked or licensed too late.
    #[arg(long, value_enum, default_value_t = PolicyArg::Refuse)]
    pub policy: PolicyArg,
}

/// Arguments of `run verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Model folder with run.json, or the record itself.
    pub dir: PathBuf,
    /// Registry folder.
    #[arg(long, value_name = "DIR")]
    pub registered: PathBuf,
    /// Verifier key line or did:key of the operator, or a file with it: the record must be signed by it.
    #[arg(long, value_name = "KEY|FILE")]
    pub key: Option<String>,
    /// Verifier key line of the licence log, or a file with it [default: the one in the registry folder].
    #[arg(long, value_name = "KEY|FILE")]
    pub log_key: Option<String>,
    /// Verifier key line of a witness, or a file with it. May be given several times.
    #[arg(long, value_name = "KEY|FILE")]
    pub witness: Vec<String>,
    /// Certificates of time-stamping authorities, as PEM.
    #[arg(long, value_name = "PEM")]
    pub tsa: Option<PathBuf>,
    /// Public P-256 key as PEM: the folder's model.sig must hold under it.
    #[arg(long, value_name = "PEM")]
    pub model_key: Option<PathBuf>,
    /// Refuse what is wrong, refuse what is unproven too, or only tell.
    #[arg(long, value_enum, default_value_t = PolicyArg::Refuse)]
    pub policy: PolicyArg,
}

/// RFC 3339 or Unix seconds.
fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    ascribe_registry::parse_moment(text).ok_or_else(|| format!("expected RFC 3339 or Unix seconds, found {text:?}"))
}
