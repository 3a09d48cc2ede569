//! Arguments.

pub mod bench;
pub mod cluster;
pub mod lab;
pub mod ledger;
pub mod log;
pub mod pay;
pub mod registry;
pub mod reputation;
pub mod run_record;
pub mod search;
pub mod serve;
pub mod store;
pub mod tokens;
pub mod training;
pub mod values;
pub mod verbatim;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Heading of the options that every command takes.
const EVERYWHERE: &str = "Options of every command";

/// The end of the first page: where to begin, and the words that the other pages take for granted.
const AFTER_HELP: &str = "\
Words:
  registry    folder of datasets: whose they are, under which signed licences, pinned by hashes
  run folder  what the stations of the walk read and write, one after the other; `demo` is all of them
  row         the gradient of one training example, projected to some thousand numbers
  store       folder of rows
  influence   how much likelier a training example or dataset made an output, by its gradients
  shares      what each dataset and owner gets of what a response earned, with intervals
  bank        trainings without one dataset each: the measured truth that methods are held against
  receipt     signed proof that an attribution was made, as it stands in a log that only grows

Example:
  ascribe demo --out out/demo
  ascribe features --model path/to/model --data records.jsonl --out store
  ascribe pay run --scores scores.parquet --registry datasets --pool \"1000.00 USD\" --out payout
  ascribe serve --run out/demo";

/// Which registered datasets caused which outputs, and what each owner gets.
#[derive(Debug, Parser)]
#[command(name = "ascribe", version, propagate_version = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What stdout carries: words for a person, or one JSON object.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, help_heading = EVERYWHERE)]
    pub format: Format,
    /// Folder with datasets/ and models/ [default: the nearest one at or above the current folder].
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub home: Option<PathBuf>,
    /// Threads [default: all cores]. The result does not depend on it.
    #[arg(long, global = true, value_name = "N", help_heading = EVERYWHERE)]
    pub threads: Option<usize>,
    /// No progress bars.
    #[arg(long, short, global = true, help_heading = EVERYWHERE)]
    pub quiet: bool,
    /// The station or command.
    #[command(subcommand)]
    pub command: Command,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Words.
    Text,
    /// One JSON object.
    Json,
    /// `registry export`: Croissant 1.1 with an ODRL offer.
    #[value(hide = true)]
    Croissant,
    /// `registry export`: RSL 1.0.
    #[value(hide = true)]
    Rsl,
    /// `registry export`: the EU summary of training content, as Markdown.
    #[value(hide = true)]
    AiAct,
}

/// An audit.
#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    /// Run folder.
    pub dir: PathBuf,
    /// Score file of a payout run, where it was too large to be copied into the folder.
    #[arg(long, value_name = "FILE")]
    pub scores: Option<PathBuf>,
    /// Public key of the log that the run's record stands in: the line that `ascribe log keygen` prints, or a file that holds one.
    #[arg(long, value_name = "VKEY")]
    pub log_key: Option<String>,
    /// Public key of the usage log and its receipts.
    #[arg(long, value_name = "VKEY")]
    pub usage_key: Option<String>,
    /// Usage log that a payout run's receipts went to, where it is not the run's own.
    #[arg(long, value_name = "DIR")]
    pub usage_log: Option<PathBuf>,
    /// Public keys of witnesses whose cosignatures are reported.
    #[arg(long, value_name = "VKEY")]
    pub witness: Vec<String>,
}

/// Run folder of those who name none.
pub const DEFAULT_RUN: &str = "out/demo";

/// A run folder and the model it explains.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Run folder: every station reads and writes here.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN)]
    pub out: PathBuf,
    /// Model folder under models/.
    #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
    pub model: String,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole walk: from signed licences to a payout file and a report.
    #[command(after_help = "Example:\n  ascribe demo --out out/demo --format json")]
    Demo(RunArgs),
    /// Recompute a run from its inputs and compare every byte: a run of the walk, or a payout run.
    ///
    /// With public keys, the logs beside it too: evidence/record.tlog-proof, the receipt of the run's record, and evidence/usage, the
    /// usage log that the pool was settled by.
    #[command(
        after_help = "Example:\n  ascribe audit out/demo\n  ascribe audit payout --log-key log.vkey --usage-key usage.vkey"
    )]
    Audit(AuditArgs),
    /// Station 1: registered datasets: add, check, compare and describe them.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe registry init registry\n  ascribe registry add corpus/ --dir registry --licence CC-BY-4.0 \\\n    \
        --payee eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\n  ascribe registry verify registry"
    )]
    Registry(registry::RegistryCommand),
    /// Sign, submit, check and revoke the licences of registered datasets.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe licence new-key --out key.json\n  ascribe licence sign my-corpus --keystore key.json\n  \
        ascribe licence verify my-corpus"
    )]
    Licence(registry::LicenceCommand),
    /// Station 2: cut records into training examples and held-out responses.
    #[command(after_help = "Example:\n  ascribe corpus --out out/demo")]
    Corpus(RunArgs),
    /// Station 3: projected per-example gradients of every training example, into a resumable store.
    ///
    /// With --data the same for the records of a JSONL file under any Hugging Face model folder.
    #[command(after_help = "Example:\n  ascribe features --out out/demo\n  \
        ascribe features --model path/to/model --data records.jsonl --out store --format json\n  \
        ascribe features --model path/to/model --data records.jsonl --out small --factors 2")]
    Features(lab::FeaturesArgs),
    /// Station 4: curvature of the gradients.
    #[command(after_help = "Example:\n  ascribe fit --out out/demo")]
    Fit(RunArgs),
    /// Station 5: influence of every example and dataset on every response, with the controls beside it.
    ///
    /// With --store: the best rows of every query and the exact sums of datasets, of any store, here, in parts (--shard, --join) or on
    /// many machines (--cluster), with the same bytes.
    #[command(after_help = "Example:\n  ascribe score --out out/demo\n  \
        ascribe score --store store --queries q.npy --shard 0/4 --out part-0\n  \
        ascribe score --join part-0 part-1 part-2 part-3 --out scores.json\n  \
        ascribe score --cluster df://10.0.0.1:50050 --store /shared/store --queries /shared/q.npy --out scores.json")]
    Score(cluster::ScoreArgs),
    /// Station 6: approximate index (HNSW graphs) over the same rows, its recall against exact search.
    #[command(after_help = "Example:\n  ascribe index --out out/demo")]
    Index(RunArgs),
    /// Station 7: agreement of every method and control with measured retraining.
    #[command(after_help = "Example:\n  ascribe eval --out out/demo")]
    Eval(RunArgs),
    /// Station 8: integer shares per response and owner, with coverage and intervals.
    ///
    /// With --cluster: the exact sums of score files per response and dataset, on many machines.
    #[command(after_help = "Example:\n  ascribe shares --out out/demo\n  \
        ascribe shares --cluster df://10.0.0.1:50050 --scores /shared/scores.parquet --method calibrated --out sums.parquet")]
    Shares(cluster::SharesArgs),
    /// Station 9: double-entry ledger, payout.csv and a Merkle tree; and payout runs over score files of any tool.
    #[command(after_help = "Example:\n  ascribe pay --out out/demo\n  ascribe pay run --scores scores.parquet \
        --registry datasets --pool \"1000.00 USD\" --out payout")]
    Pay(pay::PayArgs),
    /// The book: revenue of responses, prepaid balances, settlements, disputes, on SQLite or PostgreSQL.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe ledger init\n  ascribe ledger accrue --events responses.jsonl --registry datasets\n  \
        ascribe ledger settle --currency USD --as-of 2026-12-01T00:00:00Z\n  ascribe ledger verify"
    )]
    Ledger(ledger::LedgerCommand),
    /// Station 10: the HTML report.
    #[command(after_help = "Example:\n  ascribe report --out out/demo")]
    Report(RunArgs),
    /// Train the model of a recipe on the registered datasets; resumes.
    ///
    /// With --config a new model of any supported family is trained on the records of a JSONL file. A recipe whose `[data]`
    /// names `images` and `labels` (.npy or IDX) trains a classifier: lr, mlp, lenet or resnet9.
    #[command(after_help = "Example:\n  ascribe train models/wren/recipe.toml --out models/wren\n  \
        ascribe train --config config.json --tokenizer tokenizer.json --data records.jsonl --out model --epochs 3")]
    Train(training::TrainArgs),
    /// Train a Hugging Face model folder further on the records of a JSONL file, whole or with a LoRA; resumes.
    #[command(
        after_help = "Example:\n  ascribe finetune --model path/to/model --data records.jsonl --out tuned --epochs 2 \
        --lr 5e-5\n  ascribe finetune --model path/to/model --data records.jsonl --out adapter --lora-rank 16"
    )]
    Finetune(training::FinetuneArgs),
    /// The retrain bank: measured truth from leave-one-dataset-out trainings.
    #[command(subcommand, after_help = "Example:\n  ascribe bank build --model wren --seeds 3")]
    Bank(BankCommand),
    /// Influence methods held against retraining: settings, banks, leaderboard.
    #[command(subcommand, after_help = "Example:\n  ascribe bench list\n  ascribe bench run mnist-lr --format json")]
    Bench(bench::BenchCommand),
    /// Feature stores: verify, look into, convert, merge, export, delete from, compact.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe store stats out/demo/store/final\n  ascribe store verify out/demo/store/final\n  \
        ascribe store export out/demo/store/final --out rows.parquet"
    )]
    Store(store::StoreCommand),
    /// The rows of a feature store that have the largest inner products with queries: exact, certified or approximate.
    #[command(after_help = "Example:\n  ascribe search --store store --queries queries.npy --k 10 --format json\n  \
        ascribe search --store store --queries queries.npy --mode ann --recall 0.95 --dataset 2,5")]
    Search(search::SearchArgs),
    /// Which runs of a response stand word for word in the data, and in which records: evidence beside influence.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe verbatim build --out out/verbatim\n  \
        ascribe verbatim find --index out/verbatim --response 'In the beginning was the Word'"
    )]
    Verbatim(verbatim::VerbatimCommand),
    /// Which tokens of which training examples helped a held-out response: EK-FAC influence, token by token, without a store.
    #[command(after_help = "Example:\n  ascribe tokens --model wren --query 3 --top 20\n  \
        ascribe tokens --query 3 --examples 12,857 --format json")]
    Tokens(tokens::TokensArgs),
    /// What datasets are worth to responses as groups: split-proof group values, Shapley, Banzhaf, second-order influence.
    ///
    /// A game says what any set of training examples is worth to a response, a value divides that among datasets. The game of
    /// influence reads a finished run (`ascribe demo --out DIR`), that of bigrams the model folder alone.
    #[command(after_help = "Example:\n  ascribe values --out out/demo\n  \
        ascribe values --game bigram --value shapley --split austen-novels:3\n  \
        ascribe values --out out/demo --write values.parquet --format json")]
    Values(values::ValuesArgs),
    /// What training examples do upon themselves: wrong labels, rarities and what is known by heart stand on top.
    ///
    /// Of a run, of any feature store, or of every method of a bench setting; per example, record and dataset.
    #[command(after_help = "Example:\n  ascribe self-influence --out out/demo\n  \
        ascribe self-influence --store store --damping-rel 0.01 --write self.parquet\n  \
        ascribe self-influence --setting mnist-lr --methods ekfac,grad_dot --examples 500 --format json")]
    SelfInfluence(values::SelfInfluenceArgs),
    /// Memory, disk and time of `features` and `finetune` before they begin, refuses what cannot fit; with --rows, of a store on
    /// many machines.
    #[command(after_help = "Example:\n  ascribe plan --model path/to/model --data records.jsonl --format json\n  \
        ascribe plan --rows 1e9 --dim 8192 --executors 64")]
    Plan(lab::PlanArgs),
    /// Many machines: the scheduler and executors of a cluster, and the jobs that run on it.
    ///
    /// Everything is handed to the command `ascribe-cluster`, which is built apart (docs/cluster.md).
    #[command(after_help = "Example:\n  ascribe cluster scheduler --port 50050\n  \
        ascribe cluster executor --scheduler 10.0.0.1:50050 --vcores 8\n  ascribe cluster score --help")]
    Cluster(cluster::ClusterArgs),
    /// Mean negative log-likelihood of a text under a Hugging Face model folder.
    #[command(after_help = "Example:\n  ascribe nll --model models/wren --text README.md --format json")]
    Nll(lab::NllArgs),
    /// Records of trainings: made for other trainers' models, signed, checked.
    #[command(subcommand, after_help = "Example:\n  ascribe run verify models/wren --registered datasets")]
    Run(run_record::RunCommand),
    /// Transparency logs (C2SP tlog-tiles): append, prove, verify, witness, time-stamp; the usage log.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe log keygen log.example/licences --out log.key > log.vkey\n  ascribe log init out/log --key log.key\n  \
        ascribe log append out/log --key log.key statement.json\n  ascribe log verify out/log --key log.vkey"
    )]
    Log(log::LogCommand),
    /// Datasets ranked by what they were measured to do for held-out responses: a page and JSON.
    #[command(after_help = "Example:\n  ascribe reputation --out out/demo --format json")]
    Reputation(reputation::ReputationArgs),
    /// HTTP: per-response attribution with receipts, and the explorer page.
    #[command(
        args_conflicts_with_subcommands = false,
        after_help = "Example:\n  ascribe serve --run out/demo --listen 127.0.0.1:8080\n  ascribe serve config show --run out/demo"
    )]
    Serve(serve::ServeArgs),
    /// Speed of the gradient stage beside the plain forward and backward of the same model.
    #[command(after_help = "Example:\n  ascribe speed --model wren --threads 1")]
    Speed {
        /// Model folder under models/.
        #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
        model: String,
        /// Training examples to run.
        #[arg(long, default_value_t = 512)]
        examples: usize,
    },
}

/// Bank commands.
#[derive(Debug, Subcommand)]
pub enum BankCommand {
    /// Train what is missing; each finished training is one file.
    #[command(after_help = "Example:\n  ascribe bank build --model wren --seeds 3")]
    Build {
        /// Model folder under models/.
        #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
        model: String,
        /// Number of seeds, from the recipe's on.
        #[arg(long, default_value_t = 3)]
        seeds: u64,
        /// Train only every n-th model, from the i-th on: `--shard 0/2` and `--shard 1/2` in two processes make one bank.
        #[arg(long, value_name = "i/n", default_value = "0/1", value_parser = parse_shard)]
        shard: (u64, u64),
    },
}

/// Reads `i/n` with i below n.
fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(format!("expected i/n with i below n, such as 0/2, found {text:?}")),
    }
}
