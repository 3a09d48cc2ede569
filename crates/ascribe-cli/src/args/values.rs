//! Arguments of `values` and `self-influence`.

use std::path::PathBuf;

use ascribe_engine::upon::{UponRequest, UponSource};
use ascribe_engine::values::{Draws, GameKind, ValueKind, ValuesRequest};
use clap::{Args, ValueEnum};

use super::RunArgs;

/// What a set of examples is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GameArg {
    /// Nats of the response under a bigram model counted on the set: retrained exactly, a control.
    Bigram,
    /// Second-order influence of taking the rest away, from a run's rows and curvature.
    Influence,
}

/// How worth is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ValueArg {
    /// Sum of the examples' own Shapley values: registering a dataset in parts gains nothing.
    Fgsv,
    /// Shapley value of datasets as players: exact up to 12, drawn orders above.
    Shapley,
    /// Banzhaf value of datasets as players: exact up to 12, drawn subsets above.
    Banzhaf,
    /// What taking one dataset away costs.
    LeaveOneOut,
}

/// What datasets are worth.
#[derive(Clone, Debug, Args)]
pub struct ValuesArgs {
    /// The run and its model; the game of bigrams needs the model alone.
    #[command(flatten)]
    pub run: RunArgs,
    /// What a set of examples is worth to a response.
    #[arg(long, value_enum, default_value_t = GameArg::Influence)]
    pub game: GameArg,
    /// How worth is divided among datasets.
    #[arg(long, value_enum, default_value_t = ValueArg::Fgsv)]
    pub value: ValueArg,
    /// Registers a dataset in so many parts and shows what its owner would gain. May be given several times.
    #[arg(long, value_name = "DATASET:PARTS", value_parser = parse_split)]
    pub split: Vec<(String, usize)>,
    /// Only the first so many responses.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub queries: Option<u32>,
    /// Score file to write: a row per response and dataset, which `ascribe pay run` reads.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Group values: sizes of subsets that are drawn.
    #[arg(long, value_name = "N", default_value_t = Draws::default().sizes, help_heading = "Drawing")]
    pub sizes: usize,
    /// Group values: pairs of subsets per size.
    #[arg(long, value_name = "N", default_value_t = Draws::default().pairs, help_heading = "Drawing")]
    pub pairs: usize,
    /// Shapley values of more than 12 players: orders, each with its reverse.
    #[arg(long, value_name = "N", default_value_t = Draws::default().orders, help_heading = "Drawing")]
    pub orders: usize,
    /// Banzhaf values of more than 12 players: subsets.
    #[arg(long, value_name = "N", default_value_t = Draws::default().subsets, help_heading = "Drawing")]
    pub subsets: usize,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = Draws::default().seed, help_heading = "Drawing")]
    pub seed: u64,
}

fn parse_split(text: &str) -> Result<(String, usize), String> {
    let parsed = text.rsplit_once(':').and_then(|(name, parts)| Some((name.to_owned(), parts.parse().ok()?)));
    parsed.ok_or_else(|| format!("expected DATASET:PARTS, such as austen-novels:3, found {text:?}"))
}

impl ValuesArgs {
    /// What the engine is asked.
    pub fn request(&self) -> ValuesRequest {
        ValuesRequest {
            model: self.run.model.clone(),
            out: self.run.out.clone(),
            game: match self.game {
                GameArg::Bigram => GameKind::Bigram,
                GameArg::Influence => GameKind::Influence,
            },
            value: match self.value {
                ValueArg::Fgsv => ValueKind::Fgsv,
                ValueArg::Shapley => ValueKind::Shapley,
                ValueArg::Banzhaf => ValueKind::Banzhaf,
                ValueArg::LeaveOneOut => ValueKind::LeaveOneOut,
            },
            split: self.split.clone(),
            queries: self.queries.map(|n| n as usize),
            draws: Draws {
                sizes: self.sizes,
                pairs: self.pairs,
                orders: self.orders,
                subsets: self.subsets,
                seed: self.seed,
            },
            write: self.write.clone(),
        }
    }
}

/// What examples do upon themselves.
#[derive(Clone, Debug, Args)]
pub struct SelfInfluenceArgs {
    /// The run and its model.
    #[command(flatten)]
    pub run: RunArgs,
    /// A feature store instead of a run.
    #[arg(long, value_name = "DIR", conflicts_with = "setting")]
    pub store: Option<PathBuf>,
    /// Damping of a store's curvature, times the mean eigenvalue of each module.
    #[arg(long, value_name = "X", default_value_t = 0.01, requires = "store")]
    pub damping_rel: f64,
    /// A bench setting instead of a run: every method of its catalogue.
    #[arg(long, value_name = "NAME")]
    pub setting: Option<String>,
    /// Methods of the setting, comma-separated [default: all that are no controls].
    #[arg(long, value_delimiter = ',', value_name = "A,B", requires = "setting")]
    pub methods: Vec<String>,
    /// Looks at so many evenly spread training examples of the setting [default: all].
    #[arg(long, value_name = "N", requires = "setting")]
    pub examples: Option<usize>,
    /// How many examples and records are listed, largest first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// File of all values: .parquet (a score file whose one query stands for the example itself) or .json.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
}

impl SelfInfluenceArgs {
    /// What the engine is asked.
    pub fn request(&self) -> UponRequest {
        let source = match (&self.store, &self.setting) {
            (Some(dir), _) => UponSource::Store { dir: dir.clone(), damping_rel: self.damping_rel },
            (None, Some(name)) => {
                UponSource::Setting { name: name.clone(), methods: self.methods.clone(), examples: self.examples }
            }
            (None, None) => UponSource::Run { model: self.run.model.clone(), out: self.run.out.clone() },
        };
        UponRequest { source, top: self.top, write: self.write.clone() }
    }
}
