//! Arguments of the bench.

use std::path::PathBuf;

use ascribe_engine::bench::methods::Normalisation;
use clap::{Args, Subcommand, ValueEnum};

use super::parse_shard;
use super::search::BenchSearchArgs;

/// What scores of gradient methods are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum NormaliseArg {
    /// Nothing.
    None,
    /// The query's length in the method's metric.
    UnitQuery,
    /// The training example's length: ℓ-RelatIF.
    UnitTrain,
    /// Both: a cosine.
    Cosine,
    /// How far the example moves the parameters: θ-RelatIF.
    RelatIf,
    /// Less half of the example's self-influence: minus half a squared distance.
    Distance,
}

impl From<NormaliseArg> for Normalisation {
    fn from(given: NormaliseArg) -> Self {
        match given {
            NormaliseArg::None => Self::None,
            NormaliseArg::UnitQuery => Self::UnitQuery,
            NormaliseArg::UnitTrain => Self::UnitTrain,
            NormaliseArg::Cosine => Self::Cosine,
            NormaliseArg::RelatIf => Self::RelatIf,
            NormaliseArg::Distance => Self::Distance,
        }
    }
}

/// Bench commands.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Settings, their retrain banks (complete or not), the methods and protocols that can run on them.
    ///
    /// With a setting: every method of it in words, with its source.
    #[command(after_help = "Example:\n  ascribe bench list\n  ascribe bench list mnist-lr")]
    List {
        /// One setting [default: all, with the names of their methods].
        setting: Option<String>,
    },
    /// Run the methods of a setting against its truth, or all settings of a suite with a leaderboard.
    ///
    /// Scores are kept in the output folder: a run that was stopped goes on where it was.
    ///
    /// `lds`: over random subsets of the examples, how well the sum of a method's scores orders what models that were trained on the
    /// subsets say (Spearman, mean over queries, with a 95 % interval over queries). `lds_removed` sums over what was left out,
    /// `lds_one_seed` is held against one training seed, `lds_first_half` and `lds_second_half` are over halves of the queries, of
    /// which the first may have chosen a damping. `loo_pearson`: the same where one example was left out. `tv_shapley`: distance to exact
    /// Shapley shares of datasets. `class_top1` and `dataset_top1`: how often the best example is of the query's class or dataset.
    #[command(after_help = "Example:\n  ascribe bench run mnist-lr --format json\n  \
        ascribe bench run gpt-small --methods all\n  \
        ascribe bench run mnist-lr --methods ekfac,trak_10,random --protocols removal,mislabel\n  \
        ascribe bench run benches/suites/all.toml --out out/bench")]
    Run {
        /// Name of a setting, or a suite file (`.toml`).
        target: String,
        /// Methods, comma-separated, or `all` [default: the setting's quick ones; of a suite those that it names].
        #[arg(long, value_delimiter = ',', value_name = "A,B|all")]
        methods: Vec<String>,
        /// Protocols besides the retrain banks, comma-separated, or `all`: mislabel (are planted wrong labels found?), subclass (classes
        /// merged: has the best example the own one?), removal (what does a training without the best examples lose?), tail_patch (what
        /// does one more step on them gain?).
        #[arg(long, value_delimiter = ',', value_name = "A,B|all")]
        protocols: Vec<String>,
        /// Explain only the first so many queries (of every set, for facts).
        #[arg(long, value_name = "N")]
        queries: Option<usize>,
        /// Folder of scores, reports and leaderboard.
        #[arg(long, value_name = "DIR", default_value = "out/bench")]
        out: PathBuf,
        /// Use scores and figures of protocols that another build of the program left, too.
        #[arg(long)]
        any_build: bool,
        /// Divide the scores of gradient methods: RelatIF and unit norms as options. Runs the methods that have the option, under
        /// the name METHOD@OPTION.
        #[arg(long, value_enum)]
        normalise: Option<NormaliseArg>,
        /// One more control, `encoder`: cosine of an outside encoder's vectors. A model folder (any decoder or BERT).
        #[arg(long, value_name = "DIR", conflicts_with = "vectors")]
        encoder: Option<PathBuf>,
        /// The same from vectors that were made elsewhere: two .npy files of rows, of all training examples and of all queries.
        #[arg(long, num_args = 2, value_names = ["EXAMPLES.npy", "QUERIES.npy"])]
        vectors: Vec<PathBuf>,
    },
    /// Choose dampings on the first half of the queries; the second half, which had no say, judges them.
    #[command(after_help = "Example:\n  ascribe bench damping mnist-lr --methods ekfac,logra\n  \
        ascribe bench damping mnist-mlp --methods ekfac_run --grid 0.0001,0.0003,0.001,0.003 --keep --format json")]
    Damping {
        /// Name of a setting with a bank of random subsets.
        setting: String,
        /// Methods, comma-separated.
        #[arg(long, value_delimiter = ',', value_name = "A,B", required = true)]
        methods: Vec<String>,
        /// Dampings to try, in the method's own unit [default: a hundredth to a hundred times its present one].
        #[arg(long, value_delimiter = ',', value_name = "X,Y")]
        grid: Vec<f64>,
        /// Write the curves beside the setting (damping.json): from then on `bench run` takes the choice from there.
        #[arg(long)]
        keep: bool,
    },
    /// Fact tracing: do methods find the records that state a fact? Recall, hits and reciprocal ranks per set.
    #[command(
        after_help = "Example:\n  ascribe bench facts --corpora datasets --queries benches/data/facts/poem-lines.jsonl\n  \
        ascribe bench facts --corpora DIR --queries a.jsonl --queries b.jsonl --methods bm25,random --format json"
    )]
    Facts {
        /// Folder of records: `.jsonl` files of `{"id", "text"}` lines, at any depth.
        #[arg(long, value_name = "DIR")]
        corpora: PathBuf,
        /// A set of queries: `{"id", "query", "answer", "sources": [record ids]}` lines. May be given several times.
        #[arg(long, value_name = "FILE", required = true)]
        queries: Vec<PathBuf>,
        /// Model for `embedding` and `influence`: a folder under models/, or any model folder.
        #[arg(long, value_name = "NAME|DIR", default_value = ascribe_engine::DEFAULT_MODEL)]
        model: String,
        /// Model folder for `encoder`: any decoder or BERT.
        #[arg(long, value_name = "DIR")]
        encoder: Option<PathBuf>,
        /// Methods, comma-separated [default: all that can run].
        #[arg(long, value_delimiter = ',', value_name = "A,B")]
        methods: Vec<String>,
        /// Records counted by recall.
        #[arg(long, default_value_t = ascribe_engine::bench::facts::DEFAULT_K)]
        k: usize,
        /// At most so many queries of every set.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// How fast rows are searched here: memory, scans of every row type, certified against exact search, the HNSW graph.
    #[command(after_help = "Example:\n  ascribe bench search --rows 100000 --dim 128 --format json\n  \
        ascribe bench search --data rows.npy --queries queries.npy --dir kept")]
    Search(BenchSearchArgs),
    /// What attackers gain under each payout policy: copies, splits, noise farms, false names, outliers, shadows, wash usage.
    ///
    /// Works on a finished run: the records that an attack adds are attributed anew through the run's model and curvature.
    #[command(after_help = "Example:\n  ascribe bench attacks --run out/demo --quick\n  \
        ascribe bench attacks --run out/demo --only near_copy,noise_farm --format json")]
    Attacks(BenchAttacksArgs),
    /// Train what is missing of a setting's retrain banks; resumes.
    #[command(after_help = "Example:\n  ascribe bench bank mnist-lr halves\n  \
        ascribe bench bank gpt-small halves --seeds 1,2 --shard 0/2")]
    Bank {
        /// Name of a setting.
        setting: String,
        /// Bank of the setting [default: all of them].
        bank: Option<String>,
        /// Seeds [default: those of the setting].
        #[arg(long, value_delimiter = ',')]
        seeds: Option<Vec<u64>>,
        /// Train only every n-th model, from the i-th on: `--shard 0/2` and `--shard 1/2` in two processes make one bank.
        #[arg(long, value_name = "i/n", default_value = "0/1", value_parser = parse_shard)]
        shard: (u64, u64),
    },
    /// Join the files of processes that shared a bank's work.
    #[command(after_help = "Example:\n  ascribe bench pack gpt-small halves")]
    Pack {
        /// Name of a setting.
        setting: String,
        /// Bank of the setting.
        bank: String,
    },
}

/// Attacks.
#[derive(Debug, Args)]
pub struct BenchAttacksArgs {
    /// Folder of a finished run (`ascribe demo`).
    #[arg(long, value_name = "DIR", default_value = super::DEFAULT_RUN)]
    pub run: PathBuf,
    /// Model folder under models/.
    #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
    pub model: String,
    /// Folder of the table (`attacks.json`, `.md`, `.html`); finished attacks in it are not run again.
    #[arg(long, value_name = "DIR", default_value = "out/attacks")]
    pub out: PathBuf,
    /// Attacks, comma-separated [default: all].
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub only: Vec<String>,
    /// One target and a third of the text.
    #[arg(long)]
    pub quick: bool,
    /// Seed of the attackers' texts.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Copies and noise farms also on models trained with them: a training and a walk each, resumed where it was stopped.
    #[arg(long)]
    pub retrain: bool,
}
