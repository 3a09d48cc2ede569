//! Arguments of the commands that take somebody's own model folder.

use std::path::PathBuf;

use ascribe_core::RowType;
use ascribe_corpus::SpecialTokens;
use ascribe_engine::lab::data::DataOptions;
use ascribe_engine::lab::model::Subject;
use ascribe_engine::lab::scale::ScaleRequest;
use ascribe_models::features::{Granularity, Precision, Projection};
use ascribe_models::{Loss, TapConfig};
use clap::{Args, ValueEnum};

use super::training::NumberArgs;
use super::{DEFAULT_RUN, RunArgs};

/// Default projector seed.
const SEED: u64 = 7;
/// Columns kept of a side where a kind of projection does not ask for them.
const SIDE: usize = 16;
/// Places that a sparse projection adds a number to, if not said.
const NNZ: usize = 1;
/// Modules of layers have dots in their names, output layers have none.
const ALL_LAYERS: &str = "*.*";

/// The feature station of a run, or (with `--data`) the gradient rows of somebody's own records.
#[derive(Clone, Debug, Args)]
pub struct FeaturesArgs {
    /// With --data: a Hugging Face model folder. Without: a model folder under models/ [default: wren].
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// With --data: folder of the feature store. Without: run folder [default: out/demo].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// JSONL records: `text`, `prompt` with `completion`, or `input_ids`; `id`, `loss_from` and a dataset's name if wanted. A file, or
    /// s3://BUCKET/FILE, which is copied to OUT.data.
    #[arg(long, value_name = "FILE", requires_all = ["model", "out"])]
    pub data: Option<PathBuf>,
    /// How records are read.
    #[command(flatten)]
    pub records: RecordArgs,
    /// What is tapped and kept.
    #[command(flatten)]
    pub taps: TapArgs,
    /// Rows are mean hidden states in the place of gradients: what similarity is measured on, and the only rows of an encoder
    /// (BERT, MiniLM).
    #[arg(long, requires = "data", conflicts_with_all = ["taps", "exclude", "fused", "projection", "loss", "precision", "embedding", "norms", "biases", "positions", "adapter_weights", "moments", "seed"])]
    pub embeddings: bool,
    /// Where the passes run: `cpu`, `cuda` or `cuda:N` (only in a build with `--features cuda`). A device's rows agree with
    /// the processor's to rounding, not to the byte.
    #[arg(long, value_name = "PLACE", default_value = "cpu", value_parser = parse_device, requires = "data")]
    pub device: Device,
    /// Make the i-th of n parts of the rows only, as `--shard 0/4` in one job of an array; then `ascribe store merge` joins the
    /// parts, dataset by dataset, to the same bytes for every n.
    #[arg(long, value_name = "i/n", default_value = "0/1", value_parser = super::parse_shard, requires = "data")]
    pub shard: (u64, u64),
    /// Keep the best factors of this rank of every module's matrix, whitened from both sides (LoRIF), as `ascribe store convert --factors`
    /// does: rows that `ascribe search --mode exact` scores with the inverse curvature in them. The dense rows lie in OUT.dense until
    /// the factors are there.
    #[arg(long, value_name = "RANK", requires = "data", conflicts_with = "embeddings")]
    pub factors: Option<usize>,
    /// Damping of the whitening, relative to the mean eigenvalue of each side.
    #[arg(long, value_name = "X", default_value_t = super::store::WHITENING_DAMPING, requires = "factors")]
    pub damping: f64,
    /// Row type of the factors.
    #[arg(long, value_enum, default_value_t = super::store::StoreRows::Int4, requires = "factors")]
    pub factor_rows: super::store::StoreRows,
}

/// Where passes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Number of the CUDA device; none for the processor.
    pub cuda: Option<usize>,
}

fn parse_device(text: &str) -> Result<Device, String> {
    let cuda = match text {
        "cpu" => None,
        "cuda" => Some(0),
        _ => match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Some(ordinal),
            _ => return Err("expected cpu, cuda or cuda:N".into()),
        },
    };
    Ok(Device { cuda })
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
    /// Field that names a record's dataset; a store of rows keeps exact sums per dataset.
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
    /// Linear modules to tap, by Hugging Face name; `*` stands for any text. Can be given several times. The default is
    /// every one of every layer; `*` takes the output layer too.
    #[arg(long, value_name = "PATTERN", default_value = ALL_LAYERS, requires = "data")]
    pub taps: Vec<String>,
    /// Modules to leave out again, by the same patterns.
    #[arg(long, value_name = "PATTERN", requires = "data")]
    pub exclude: Vec<String>,
    /// Tap the products as the passes compute them (`layers.0.attn.qkv`, `layers.0.mlp.gate_up`): fewer and faster.
    #[arg(long, requires = "data")]
    pub fused: bool,
    /// What is kept of a module's gradient: INxOUT columns of its two sides, `full`, `factored:INxOUT:RANK`,
    /// `sparse:DIM[:NNZ]` or `masked:INxOUT:DIM[:NNZ]`.
    #[arg(long, value_name = "KIND", default_value = "16x16", value_parser = parse_projection, requires = "data")]
    pub projection: Kept,
    /// The scalar that is differentiated: `next-token`, `margin` or `sampled:SEED` (labels drawn from the model itself).
    #[arg(long, value_name = "KIND", default_value = "next-token", value_parser = parse_loss, requires = "data")]
    pub loss: Loss,
    /// Number type of the model's products: bf16 is faster and near 10⁻² in a row, which ranks alike.
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32, requires = "data")]
    pub precision: PrecisionArg,
    /// Tap the embedding too; a tied output layer is added in.
    #[arg(long, requires = "data")]
    pub embedding: bool,
    /// Keep the gradients of norms too, as they are.
    #[arg(long, requires = "data")]
    pub norms: bool,
    /// Keep the gradients of the tapped modules' biases too, as they are.
    #[arg(long, requires = "data")]
    pub biases: bool,
    /// Tap the table of learned positions too.
    #[arg(long, requires = "data")]
    pub positions: bool,
    /// PEFT folder of a LoRA: its weights are merged into the model.
    #[arg(long, value_name = "DIR", requires = "data")]
    pub adapter: Option<PathBuf>,
    /// Rows over the adapter's weights (`*.lora_A`, `*.lora_B`) in the place of the merged ones.
    #[arg(long, requires = "adapter")]
    pub adapter_weights: bool,
    /// Second moments of AdamW (a run's second_moments.safetensors): gradients are divided by their roots.
    #[arg(long, value_name = "FILE", requires = "data", conflicts_with = "adapter_weights")]
    pub moments: Option<PathBuf>,
    /// Seed of the projectors.
    #[arg(long, value_name = "N", default_value_t = SEED, requires = "data")]
    pub seed: u64,
    /// Numbers of the rows on disk.
    #[arg(long, value_enum, default_value_t = RowTypeArg::F32, requires = "data")]
    pub row_type: RowTypeArg,
}

impl TapArgs {
    /// Adapter and moments of the engine.
    pub fn subject(&self) -> Subject {
        Subject { adapter: self.adapter.clone(), adapter_weights: self.adapter_weights, moments: self.moments.clone() }
    }

    /// Taps of the engine.
    pub fn config(&self) -> TapConfig {
        let Kept { k_in, k_out, projection } = self.projection;
        TapConfig {
            seed: self.seed,
            k_in,
            k_out,
            embedding: self.embedding,
            norms: self.norms,
            modules: self.taps.clone(),
            exclude: self.exclude.clone(),
            biases: self.biases,
            positions: self.positions,
            granularity: if self.fused { Granularity::Fused } else { Granularity::Module },
            projection,
            loss: self.loss,
            precision: match self.precision {
                PrecisionArg::F32 => Precision::F32,
                PrecisionArg::Bf16 => Precision::Bf16,
            },
        }
    }
}

/// A projection and the widths that it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    k_in: usize,
    k_out: usize,
    projection: Projection,
}

/// Number type of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// 32-bit floats.
    F32,
    /// bfloat16 factors, f32 sums.
    Bf16,
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

/// What is to be planned.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Hugging Face model folder.
    #[arg(long, value_name = "DIR", required_unless_present = "rows", requires = "data")]
    pub model: Option<PathBuf>,
    /// JSONL records.
    #[arg(long, value_name = "FILE", required_unless_present = "rows")]
    pub data: Option<PathBuf>,
    /// A store on many machines in the place of a model and its records.
    #[command(flatten)]
    pub scale: ScaleArgs,
    /// Where the store or the run would go: whose disk is asked.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Plan the training of a LoRA of this rank.
    #[arg(long, value_name = "R")]
    pub lora_rank: Option<usize>,
    /// How records are read.
    #[command(flatten)]
    pub records: RecordArgs,
    /// What is tapped and kept.
    #[command(flatten)]
    pub taps: TapArgs,
    /// How long training would be, and how large its batches.
    #[command(flatten)]
    pub numbers: NumberArgs,
}

/// A store of any size on any number of machines.
#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    /// Plan a store of so many rows (`1e9`): bytes, memory, network, time, from a probe of one core of this machine.
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with_all = ["model", "data"])]
    pub rows: Option<u64>,
    /// Numbers per row.
    #[arg(long, value_name = "N", default_value = "8192", requires = "rows")]
    pub dim: usize,
    /// Numbers at rest of that store: f32, bf16, f16, int8, int4.
    #[arg(long, value_name = "TYPE", default_value = "int8", value_parser = parse_row_type, requires = "rows")]
    pub stored: RowType,
    /// Queries of a scoring job.
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_count, requires = "rows")]
    pub queries: u64,
    /// Best rows per query.
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse_count, requires = "rows")]
    pub best: u64,
    /// Datasets.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_count, requires = "rows")]
    pub datasets: u64,
    /// Executors.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_count, requires = "rows")]
    pub executors: u64,
    /// Cores of each executor; 0.5 where two share one.
    #[arg(long, value_name = "X", default_value = "8", requires = "rows")]
    pub cores: f64,
    /// GB/s that an executor reads from its disk or from the object store.
    #[arg(long, value_name = "X", default_value = "1", requires = "rows")]
    pub disk_gb_s: f64,
    /// GB/s of an executor's network.
    #[arg(long, value_name = "X", default_value = "1", requires = "rows")]
    pub network_gb_s: f64,
    /// Tokens per CPU-second of the gradient stage (`ascribe plan --model` measures it): plans the making of the rows too.
    #[arg(long, value_name = "X", requires = "rows")]
    pub build_rate: Option<f64>,
    /// Tokens per row.
    #[arg(long, value_name = "N", default_value = "512", value_parser = parse_count, requires = "build_rate")]
    pub row_tokens: u64,
}

impl ScaleArgs {
    /// The engine's request, if one is made.
    pub fn request(&self) -> Option<ScaleRequest> {
        Some(ScaleRequest {
            rows: self.rows?,
            dim: self.dim,
            row_type: self.stored,
            queries: self.queries,
            k: self.best,
            datasets: self.datasets,
            executors: self.executors,
            cores: self.cores,
            disk_gb_s: self.disk_gb_s,
            network_gb_s: self.network_gb_s,
            build: self.build_rate.map(|rate| (self.row_tokens, rate)),
        })
    }
}

/// A count, also as `1e9`.
fn parse_count(text: &str) -> Result<u64, String> {
    let whole = |x: f64| (x.fract() == 0.0 && (1.0..=1e15).contains(&x)).then_some(x as u64);
    let found = text.parse().ok().or_else(|| whole(text.parse().ok()?));
    found.filter(|&n| n > 0).ok_or_else(|| format!("expected a whole number from 1 to 1e15, found {text:?}"))
}

fn parse_row_type(text: &str) -> Result<RowType, String> {
    let all = [RowType::F32, RowType::Bf16, RowType::F16, RowType::Int8, RowType::Int4];
    all.into_iter()
        .find(|row_type| row_type.name() == text)
        .ok_or_else(|| format!("expected f32, bf16, f16, int8 or int4, found {text:?}"))
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
    /// PEFT folder of a LoRA that is merged into the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Do not add the special tokens (`<s>`, …) that tokenizer.json asks for.
    #[arg(long)]
    pub no_special_tokens: bool,
}

/// Reads `INxOUT`, or one number for both.
fn sides(text: &str) -> Option<(usize, usize)> {
    let (k_in, k_out) = text.split_once('x').unwrap_or((text, text));
    Some((count(k_in)?, count(k_out)?))
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|&n| n > 0)
}

/// Reads a kind of projection.
fn parse_projection(text: &str) -> Result<Kept, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let nnz = |text: Option<&&str>| text.map_or(Some(NNZ), |text| count(text));
    let kept = |projection| Kept { k_in: SIDE, k_out: SIDE, projection };
    let parsed = match parts[..] {
        ["full"] => Some(kept(Projection::Full)),
        ["sparse", dim, ref rest @ ..] if rest.len() < 2 => {
            count(dim).zip(nnz(rest.first())).map(|(dim, nnz)| kept(Projection::Sparse { dim, nnz }))
        }
        ["masked", keep, dim, ref rest @ ..] if rest.len() < 2 => sides(keep)
            .zip(count(dim))
            .zip(nnz(rest.first()))
            .map(|(((keep_in, keep_out), dim), nnz)| kept(Projection::MaskedSparse { keep_in, keep_out, dim, nnz })),
        ["factored", columns, rank] => sides(columns).zip(count(rank)).map(|((k_in, k_out), rank)| Kept {
            k_in,
            k_out,
            projection: Projection::Factored { rank },
        }),
        [columns] => sides(columns).map(|(k_in, k_out)| Kept { k_in, k_out, projection: Projection::TwoSided }),
        _ => None,
    };
    parsed.ok_or_else(|| {
        format!(
            "expected INxOUT (such as 16x16), full, factored:INxOUT:RANK, sparse:DIM[:NNZ] or masked:INxOUT:DIM[:NNZ] with \
             numbers from 1, found {text:?}"
        )
    })
}

/// Reads a kind of loss.
fn parse_loss(text: &str) -> Result<Loss, String> {
    match text.split_once(':') {
        None if text == "next-token" => Ok(Loss::NextToken),
        None if text == "margin" => Ok(Loss::Margin),
        Some(("sampled", seed)) => match seed.parse() {
            Ok(seed) => Ok(Loss::Sampled { seed }),
            Err(_) => Err(format!("expected sampled:SEED with a number, found {text:?}")),
        },
        _ => Err(format!("expected next-token, margin or sampled:SEED, found {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_and_losses_are_read() {
        let kept = |text| parse_projection(text).map(|k| (k.k_in, k.k_out, k.projection));
        assert_eq!(kept("16x8"), Ok((16, 8, Projection::TwoSided)));
        assert_eq!(kept("4"), Ok((4, 4, Projection::TwoSided)));
        assert_eq!(kept("full"), Ok((SIDE, SIDE, Projection::Full)));
        assert_eq!(kept("factored:32x16:2"), Ok((32, 16, Projection::Factored { rank: 2 })));
        assert_eq!(kept("sparse:512"), Ok((SIDE, SIDE, Projection::Sparse { dim: 512, nnz: NNZ })));
        let masked = Projection::MaskedSparse { keep_in: 8, keep_out: 4, dim: 64, nnz: 2 };
        assert_eq!(kept("masked:8x4:64:2"), Ok((SIDE, SIDE, masked)));
        for wrong in ["", "0x4", "16x", "sparse", "sparse:1:2:3", "full:1", "masked:8:0", "x"] {
            assert!(kept(wrong).unwrap_err().contains("expected INxOUT"), "{wrong}");
        }
        assert_eq!(parse_loss("sampled:5"), Ok(Loss::Sampled { seed: 5 }));
        assert_eq!(parse_loss("margin"), Ok(Loss::Margin));
        assert!(parse_loss("sampled").is_err() && parse_loss("sampled:x").is_err());
    }
}
