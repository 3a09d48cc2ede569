//! Arguments of `log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Whom a reader trusts.
#[derive(Clone, Debug, Default, Args)]
pub struct TrustArgs {
    /// Public key of the log: the line that `ascribe log keygen` prints, or a file with it [default: the one in the folder, which
    /// proves nothing about who].
    #[arg(long, value_name = "KEY|FILE")]
    pub key: Option<String>,
    /// Verifier key line of a witness, or a file with it. May be given several times.
    #[arg(long, value_name = "KEY|FILE")]
    pub witness: Vec<String>,
}

/// Log commands.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Make a signing key; its public line goes to stdout, the secret into a new file of mode 0600.
    #[command(after_help = "Example:\n  ascribe log keygen log.example/licences --out log.key")]
    Keygen {
        /// Name of the key: for a log its origin, a URL without scheme.
        name: String,
        /// New file for the secret.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A key for cosignatures, not for a log.
        #[arg(long)]
        cosigner: bool,
    },
    /// Make an empty log (C2SP tlog-tiles) in a folder.
    #[command(after_help = "Example:\n  ascribe log init out/log --key log.key")]
    Init {
        /// Folder.
        dir: PathBuf,
        /// Secret key file of the log.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Append the SHA-256 digests of files, or digests listed in a file, as one batch.
    #[command(after_help = "Example:\n  ascribe log append out/log --key log.key statement.json\n  \
        ascribe log append out/log --key log.key --digests digests.txt --format json")]
    Append {
        /// Folder of the log.
        dir: PathBuf,
        /// Secret key file of the log.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Files to log by their digest.
        files: Vec<PathBuf>,
        /// A file with one digest a line, 64 hex digits.
        #[arg(long, value_name = "FILE")]
        digests: Option<PathBuf>,
    },
    /// Check a log: checkpoint, every entry and tile, and that it extends every earlier checkpoint.
    ///
    /// A registry folder is accepted too: its licence log and the tiles beside it must be one.
    #[command(after_help = "Example:\n  ascribe log verify out/log --key log.vkey --older yesterday.checkpoint")]
    Verify {
        /// Folder of the log, or a registry folder.
        dir: PathBuf,
        /// Whom to trust.
        #[command(flatten)]
        trust: TrustArgs,
        /// A checkpoint seen earlier, which the log must extend. May be given several times.
        #[arg(long, value_name = "FILE")]
        older: Vec<PathBuf>,
        /// Time-stamping authorities' certificates as PEM: the time stamps in the folder are checked too.
        #[arg(long, value_name = "PEM")]
        tsa: Option<PathBuf>,
    },
    /// Bring the tiles of a registry's licence log up to its text file, under a signed checkpoint.
    #[command(after_help = "Example:\n  ascribe log mirror datasets --key log.key")]
    Mirror {
        /// Registry folder.
        dir: PathBuf,
        /// Secret key file of the log [default: the registry's own, or the demo registry's public demo key].
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Issue the receipt (C2SP tlog-proof) of an entry.
    #[command(after_help = "Example:\n  ascribe log prove out/log 123 --out 123.tlog-proof")]
    Prove {
        /// Folder of the log.
        dir: PathBuf,
        /// Index of the entry, from 0.
        index: u64,
        /// Whom to trust.
        #[command(flatten)]
        trust: TrustArgs,
        /// File for the receipt [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a receipt offline: is this file (or digest) logged?
    #[command(after_help = "Example:\n  ascribe log check 123.tlog-proof statement.json --key log.vkey")]
    Check {
        /// The receipt.
        receipt: PathBuf,
        /// The file that was logged by its digest.
        file: Option<PathBuf>,
        /// The digest that was logged, instead of a file.
        #[arg(long, value_name = "HEX", conflicts_with = "file", required_unless_present = "file")]
        digest: Option<String>,
        /// Verifier key line of the log, or a file with it.
        #[arg(long, value_name = "KEY|FILE")]
        key: String,
        /// Verifier key line of a witness, or a file with it. May be given several times.
        #[arg(long, value_name = "KEY|FILE")]
        witness: Vec<String>,
        /// Demand the cosignatures of at least so many of the witnesses.
        #[arg(long, value_name = "N", default_value_t = 0)]
        quorum: usize,
    },
    /// Act as a witness: check that a log extends what was seen before, and print its checkpoint with a cosignature.
    #[command(
        after_help = "Example:\n  ascribe log cosign out/log --key witness.key --seen seen.checkpoint > cosigned"
    )]
    Cosign {
        /// Folder of the log.
        dir: PathBuf,
        /// Secret key file of the witness.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Verifier key line of the log, or a file with it.
        #[arg(long, value_name = "KEY|FILE")]
        log_key: Option<String>,
        /// The last checkpoint that this witness has cosigned; made and kept up to date.
        #[arg(long, value_name = "FILE")]
        seen: PathBuf,
    },
    /// Put a witness's cosignature into the log's checkpoint.
    #[command(after_help = "Example:\n  ascribe log attach out/log --key log.key --witness witness.vkey cosigned")]
    Attach {
        /// Folder of the log.
        dir: PathBuf,
        /// The cosigned checkpoint.
        cosigned: PathBuf,
        /// Secret key file of the log.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Verifier key line of the witness, or a file with it.
        #[arg(long, value_name = "KEY|FILE")]
        witness: String,
    },
    /// Time stamps (RFC 3161) over the checkpoint: write the request, or check and keep the authority's answer.
    #[command(after_help = "Example:\n  ascribe log stamp out/log --request query.tsq\n  \
        ascribe log stamp out/log --answer answer.tsr --tsa authority.pem")]
    Stamp {
        /// Folder of the log.
        dir: PathBuf,
        /// File for the request that goes to the authority.
        #[arg(long, value_name = "FILE", conflicts_with = "answer", required_unless_present = "answer")]
        request: Option<PathBuf>,
        /// The authority's answer.
        #[arg(long, value_name = "FILE", requires = "tsa")]
        answer: Option<PathBuf>,
        /// The authority's certificate, or one that issued it, as PEM.
        #[arg(long, value_name = "PEM")]
        tsa: Option<PathBuf>,
        /// Whom to trust.
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// The usage log: receipts of paid attributions.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe log usage append out/usage receipts.jsonl --key operator.key\n  \
        ascribe log usage verify out/usage --key operator.vkey"
    )]
    Usage(UsageCommand),
}

/// Usage log commands.
#[derive(Debug, Subcommand)]
pub enum UsageCommand {
    /// Sign and append receipts, a batch whole or not at all; a request id that was logged before is refused.
    #[command(after_help = "Example:\n  ascribe log usage append out/usage receipts.jsonl --key operator.key")]
    Append {
        /// Folder of the usage log; made if there is none.
        dir: PathBuf,
        /// Unsigned receipts, one JSON object a line.
        receipts: PathBuf,
        /// Secret key file of the operator.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Check a usage log: its transparency log, every receipt that was not erased, each request once.
    #[command(after_help = "Example:\n  ascribe log usage verify out/usage --key operator.vkey")]
    Verify {
        /// Folder of the usage log.
        dir: PathBuf,
        /// Verifier key line of the operator, or a file with it.
        #[arg(long, value_name = "KEY|FILE")]
        key: Option<String>,
        /// A checkpoint seen earlier, which the log must extend. May be given several times.
        #[arg(long, value_name = "FILE")]
        older: Vec<PathBuf>,
    },
    /// Open the salted hash of a receipt's output: print the salt, which the operator's key gives, and hold an output against the hash.
    ///
    /// Whoever is shown the salt of one receipt checks SHA-256(salt ‖ output) alone; it says nothing about other receipts.
    #[command(after_help = "Example:\n  ascribe log usage open out/usage 7 --key operator.key --output answer.txt")]
    Open {
        /// Folder of the usage log.
        dir: PathBuf,
        /// Index of the receipt, from 0.
        index: u64,
        /// Secret key file of the operator.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// File with the output, byte by byte [default: the salt alone is printed].
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Issue the proof of one receipt, with the receipt in it.
    #[command(after_help = "Example:\n  ascribe log usage prove out/usage 7 --key operator.key --out 7.tlog-proof")]
    Prove {
        /// Folder of the usage log.
        dir: PathBuf,
        /// Index of the receipt, from 0.
        index: u64,
        /// Secret key file of the operator.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// File for the proof [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}
