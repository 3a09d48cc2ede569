//! Arguments of the commands that take somebody's own model folder.

use std::path::PathBuf;

use ascribe_core::RowType;
use ascribe_corpus::SpecialTokens;
use ascribe_engine::lab::data::DataOptions;
use ascribe_models::TapConfig;
use clap::{Args, ValueEnum};

use super::{DEFAULT_RUN, RunArgs};

/// Default projector seed.
const SEED: u64 = 7;

/// The feature station of a run, or (with `--data`) the gradient rows of somebody's own records.
#[derive(Clone, Debug, Args)]
pub struct FeaturesArgs {
    /// With --data: a Hugging Face model folder. Without: a model folder under models/ [default: wren].
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// With --data: folder of the feature store. Without: run folder [default: out/demo].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// JSONL records: `text`, `prompt` with `completion`, or `input_ids`; `id`, `loss_from` and a dataset's name if wanted.
    #[arg(long, value_name = "FILE", requires_all = ["model", "out"])]
    pub data: Option<PathBuf>,
    /// How records are read.
    #[command(flatten)]
    pub records: RecordArgs,
    /// What is tapped and kept.
    #[command(flatten)]
    pub taps: TapArgs,
}

impl FeaturesArgs {
    /// The station's arguments, for a call without `--data`.
    pub fn station(&self) -> RunArgs {
        let model = self.model.as_ref().map(|name| name.display().to_string());
        RunArgs {
            out: self.out.clone().unwrap_or_else(|| DEFAULT_RUN.into()),
            model: model.unwrap_or_else(|| ascribe_engine::DEFAULT_MODEL.into()),
        }
    }
}

/// How records are read.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// Longest sequence; longer records are cut into windows, each an example of its own [default: the model's context].
    #[arg(long, value_name = "N", requires = "data")]
    pub max_len: Option<usize>,
    /// Field that names a record's dataset: the store keeps exact sums per dataset.
    #[arg(long, value_name = "FIELD", default_value = "dataset", requires = "data")]
    pub dataset_field: String,
    /// Read only the first N records.
    #[arg(long, value_name = "N", requires = "data")]
    pub limit: Option<usize>,
    /// Leave out records in which nothing can be predicted, instead of refusing them.
    #[arg(long, requires = "data")]
    pub skip_empty: bool,
    /// Do not add the special tokens (`<s>`, …) that tokenizer.json asks for.
    #[arg(long, requires = "data")]
    pub no_special_tokens: bool,
}

impl RecordArgs {
    /// Options of the engine; a `max_len` of 0 stands for the model's context.
    pub fn options(&self) -> DataOptions {
        DataOptions {
            max_len: self.max_len.unwrap_or(0),
            dataset_field: self.dataset_field.clone(),
            limit: self.limit,
            skip_empty: self.skip_empty,
        }
    }

    /// What the tokenizer adds.
    pub fn special_tokens(&self) -> SpecialTokens {
        special_tokens(self.no_special_tokens)
    }
}

/// What the tokenizer adds.
pub fn special_tokens(none: bool) -> SpecialTokens {
    if none { SpecialTokens::None } else { SpecialTokens::AsFile }
}

/// What is tapped and kept.
#[derive(Clone, Debug, Args)]
pub struct TapArgs {
    /// Linear modules to tap, by name; `*` stands for any text. Can be given several times.
    #[arg(long, value_name = "PATTERN", default_value = "*", requires = "data")]
    pub taps: Vec<String>,
    /// Columns kept of every module's input and output side.
    #[arg(long, value_name = "INxOUT", default_value = "16x16", value_parser = parse_projection, requires = "data")]
    pub projection: (usize, usize),
    /// Tap the embedding and the output layer too.
    #[arg(long, requires = "data")]
    pub embedding: bool,
    /// Keep the gradients of norms too, as they are.
    #[arg(long, requires = "data")]
    pub norms: bool,
    /// Seed of the projectors.
    #[arg(long, value_name = "N", default_value_t = SEED, requires = "data")]
    pub seed: u64,
    /// Numbers of the rows on disk.
    #[arg(long, value_enum, default_value_t = RowTypeArg::F32, requires = "data")]
    pub row_type: RowTypeArg,
}

impl TapArgs {
    /// Taps of the engine.
    pub fn config(&self) -> TapConfig {
        let (k_in, k_out) = self.projection;
        TapConfig {
            seed: self.seed,
            k_in,
            k_out,
            embedding: self.embedding,
            norms: self.norms,
            modules: self.taps.clone(),
        }
    }
}

/// Numbers at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowTypeArg {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the disk, 8 bits of precision.
    Bf16,
    /// IEEE half precision: rows with large numbers are refused.
    F16,
}

impl From<RowTypeArg> for RowType {
    fn from(given: RowTypeArg) -> Self {
        match given {
            RowTypeArg::F32 => Self::F32,
            RowTypeArg::Bf16 => Self::Bf16,
            RowTypeArg::F16 => Self::F16,
        }
    }
}

/// Text or records to read with a model.
#[derive(Clone, Debug, Args)]
pub struct NllArgs {
    /// Hugging Face model folder (config.json, weights, tokenizer.json).
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// UTF-8 text; longer ones are read in windows of the model's context.
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    pub text: Option<PathBuf>,
    /// JSONL records (`text`, `prompt` with `completion`, or `input_ids`) in the place of one text.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub data: Option<PathBuf>,
    /// Do not add the special tokens (`<s>`, …) that tokenizer.json asks for.
    #[arg(long)]
    pub no_special_tokens: bool,
}

/// Reads `INxOUT` or one number for both.
fn parse_projection(text: &str) -> Result<(usize, usize), String> {
    let (k_in, k_out) = text.split_once('x').unwrap_or((text, text));
    match (k_in.parse(), k_out.parse()) {
        (Ok(k_in), Ok(k_out)) if k_in > 0 && k_out > 0 => Ok((k_in, k_out)),
        _ => Err(format!("expected INxOUT with numbers from 1, such as 16x16, found {text:?}")),
    }
}
