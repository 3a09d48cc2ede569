//! Arguments of `verbatim`.

use std::path::PathBuf;

use ascribe_engine::verbatim::ScoreRequest;
use clap::{Args, Subcommand, ValueEnum};

/// Tokens per shard of those who name none: the build then takes about 700 MB.
const SHARD_TOKENS: u32 = 1 << 26;
/// Shortest span of those who name none.
const MIN_TOKENS: u32 = 8;

/// Verbatim evidence.
#[derive(Debug, Subcommand)]
pub enum VerbatimCommand {
    /// Build the token suffix array over registered datasets or JSONL files; resumes at its last finished shard.
    #[command(after_help = "Example:\n  ascribe verbatim build --out out/verbatim\n  \
        ascribe verbatim build --data a.jsonl b.jsonl --tokenizer path/to/model --out out/verbatim --format json")]
    Build(BuildArgs),
    /// The longest runs of a response that stand in the data, rarest first, with counts and records.
    #[command(
        after_help = "Example:\n  ascribe verbatim find --index out/verbatim --response 'In the beginning was the Word'\n  \
        ascribe verbatim find --index out/verbatim --text response.txt --min-tokens 12 --format json"
    )]
    Find(FindArgs),
    /// Method `verbatim` in a score file: the longest common run of every response with every record and dataset.
    #[command(
        after_help = "Example:\n  ascribe verbatim score --index out/verbatim --queries responses.jsonl --out scores.parquet"
    )]
    Score(ScoreArgs),
    /// Compare every file of an index with its checksum.
    #[command(after_help = "Example:\n  ascribe verbatim verify out/verbatim")]
    Verify {
        /// Folder of the index.
        dir: PathBuf,
    },
}

/// What is indexed.
#[derive(Clone, Debug, Args)]
pub struct BuildArgs {
    /// JSONL files, one dataset each [default: all registered datasets].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// A tokenizer.json, or a model folder that has one [default: that of --model].
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Model folder under models/ whose tokenizer is used.
    #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
    pub model: String,
    /// Folder of the index.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Tokens per shard: the build takes about ten bytes of memory for each.
    #[arg(long, value_name = "N", default_value_t = SHARD_TOKENS)]
    pub shard_tokens: u32,
}

/// Which span comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RankArg {
    /// The least likely if each token were drawn by its frequency.
    Unigram,
    /// The one that stands there least often.
    Count,
}

/// What is searched for.
#[derive(Clone, Debug, Args)]
pub struct FindArgs {
    /// Folder of the index.
    #[arg(long, value_name = "DIR")]
    pub index: PathBuf,
    /// The response is the content of this file.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["response", "tokens"])]
    pub text: Option<PathBuf>,
    /// The response itself.
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    pub response: Option<String>,
    /// The response as token ids.
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with_all = ["text", "response"])]
    pub tokens: Vec<u32>,
    /// Shortest span.
    #[arg(long, value_name = "N", default_value_t = MIN_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub min_tokens: u32,
    /// Which span comes first.
    #[arg(long, value_enum, default_value_t = RankArg::Unigram)]
    pub rank: RankArg,
    /// Spans shown, best first; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub spans: usize,
    /// Places shown for each span; 0 for all. Counts are exact in any case.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub places: usize,
}

/// What is scored.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// Folder of the index.
    #[arg(long, value_name = "DIR")]
    pub index: PathBuf,
    /// JSONL of responses: text, or prompt and completion (the completion is scored), or token ids.
    #[arg(long, value_name = "FILE")]
    pub queries: PathBuf,
    /// The score file.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Shortest run that counts.
    #[arg(long, value_name = "N", default_value_t = MIN_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    pub min_tokens: u32,
    /// Records kept for each response, best first.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub top_k: usize,
}

impl ScoreArgs {
    /// What the engine is asked.
    pub fn request(&self) -> ScoreRequest {
        ScoreRequest {
            index: self.index.clone(),
            queries: self.queries.clone(),
            out: self.out.clone(),
            min_tokens: self.min_tokens as usize,
            top_k: self.top_k,
        }
    }
}
