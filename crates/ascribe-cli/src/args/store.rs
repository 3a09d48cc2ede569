//! Arguments of `store`.

use std::path::PathBuf;

use ascribe_core::{ExampleId, RowType};
use ascribe_engine::store::owners::{AddRequest, RelicenseRequest};
use ascribe_store::features::Deletion;
use clap::{Args, Subcommand, ValueEnum};

/// Default damping of whitened factors.
pub const WHITENING_DAMPING: f64 = 0.01;

/// Commands on feature stores.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Hash every file of a store and its companions, and add up the rows again.
    #[command(after_help = "Example:\n  ascribe store verify out/demo/store/final")]
    Verify(StoreDir),
    /// Rows, bytes, datasets, modules and companions of a store.
    #[command(after_help = "Example:\n  ascribe store stats out/demo/store/final --format json")]
    Stats(StoreDir),
    /// The same rows in another row type: beside the store as its companion, or as a store of their own. Also upgrades a store of
    /// an older format version. Resumes.
    #[command(after_help = "Example:\n  ascribe store convert store --rows int8 --companion\n  \
        ascribe store convert old --rows bf16 --out new\n  \
        ascribe store convert store --rows int4 --factors 2 --out small")]
    Convert(ConvertArgs),
    /// One store of several with disjoint rows of one spec, in the order of their examples. Resumes.
    #[command(after_help = "Example:\n  ascribe store merge part0 part1 --out store")]
    Merge(MergeArgs),
    /// Write all rows to one file: .npy (ids beside it), .safetensors, .arrow, .arrows or .parquet.
    #[command(after_help = "Example:\n  ascribe store export store --out rows.parquet")]
    Export(ExportArgs),
    /// Add the datasets of another store of the same model and projection; sums, owners and curvature follow. Resumes.
    #[command(
        after_help = "Datasets of another corpus get the first free numbers, or those of --as; parts of one corpus keep theirs.\n\n\
        Example:\n  ascribe store add store new-supplier --owner 'Birch Press' --licence CC-BY-4.0\n  \
        ascribe store add store new-supplier --as 0:12 --as 1:13"
    )]
    Add(AddArgs),
    /// Say who owns datasets and under which licence; no row is touched, sums per owner follow.
    #[command(
        after_help = "Example:\n  ascribe store relicense store --dataset 3 --owner 'Birch Press' --licence CC-BY-4.0\n  \
        ascribe store relicense store --registry datasets"
    )]
    Relicense(RelicenseArgs),
    /// Exact sums per dataset and per owner, and what queries score by them.
    #[command(
        after_help = "Example:\n  ascribe store sums store\n  ascribe store sums store --queries q.npy --format json"
    )]
    Sums(SumsArgs),
    /// Delete datasets or single examples; sums and curvature beside the rows are brought down by them.
    #[command(after_help = "Example:\n  ascribe store delete store --dataset 3\n  \
        ascribe store delete store --example 1:57 --example 1:58")]
    Delete(DeleteArgs),
    /// Write shards with deleted rows again without them. Readers keep what they have open.
    #[command(after_help = "Example:\n  ascribe store compact store")]
    Compact(StoreDir),
    /// Put the store onto an object store, or into a folder laid out as one; of two writers one commits, the other is told.
    #[command(
        after_help = "Keys, region and endpoint come from the environment. S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
        AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL. Azure: AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or \
        AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ENDPOINT. Google: CLOUDSDK_AUTH_ACCESS_TOKEN, or GS_ACCESS_KEY_ID and \
        GS_SECRET_ACCESS_KEY; STORAGE_EMULATOR_HOST.\n\nExample:\n  ascribe store push store --to /mnt/shared/store\n  \
        ascribe store push store --to s3://bucket/stores/final"
    )]
    Push(PushArgs),
    /// Bring a pushed store into a folder. Goes on where it was cut off.
    #[command(after_help = "Example:\n  ascribe store pull /mnt/shared/store --out store\n  \
        ascribe store pull s3://bucket/stores/final --out store")]
    Pull(PullArgs),
    /// Second moments of the rows, kept beside them: read, brought up to date by appended rows, or fitted.
    #[command(after_help = "Example:\n  ascribe store curvature store")]
    Curvature(StoreDir),
}

/// A store.
#[derive(Clone, Debug, Args)]
pub struct StoreDir {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// How rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreRows {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Codes of 8 bits, one scale per row.
    Int8,
    /// Codes of 4 bits, one scale per row.
    Int4,
}

impl From<StoreRows> for RowType {
    fn from(given: StoreRows) -> Self {
        match given {
            StoreRows::F32 => Self::F32,
            StoreRows::Bf16 => Self::Bf16,
            StoreRows::F16 => Self::F16,
            StoreRows::Int8 => Self::Int8,
            StoreRows::Int4 => Self::Int4,
        }
    }
}

/// What to convert.
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Row type of the new rows.
    #[arg(long, value_enum)]
    pub rows: StoreRows,
    /// Beside the store, tied to its rows: what a search scans before it looks at the precise rows.
    #[arg(long, conflicts_with = "out", required_unless_present = "out")]
    pub companion: bool,
    /// Folder of a store of its own.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Keep the best factors of this rank of every module's matrix, whitened from both sides (LoRIF): rows that `search --mode exact`
    /// scores with the inverse curvature in them. Of a store of two-sided projections.
    #[arg(long, value_name = "RANK", requires = "out")]
    pub factors: Option<usize>,
    /// Damping of the whitening, relative to the mean eigenvalue of each side.
    #[arg(long, value_name = "X", default_value_t = WHITENING_DAMPING, requires = "factors")]
    pub damping: f64,
}

/// What to merge.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// Folders of the stores.
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Folder of the new store.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What to export.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// File to write; its ending says which format.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// What to push.
#[derive(Clone, Debug, Args)]
pub struct PushArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX, or a folder that holds the objects.
    #[arg(long, value_name = "PLACE")]
    pub to: String,
}

/// What to pull.
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX, or a folder that holds the objects.
    #[arg(value_name = "PLACE")]
    pub from: String,
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What to add.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct AddArgs {
    /// Folder of the store that grows.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Folder of the store whose rows are added.
    #[arg(value_name = "FROM")]
    pub from: PathBuf,
    /// Number of a dataset there and here.
    #[arg(long = "as", value_name = "THERE:HERE", value_parser = parse_numbers)]
    pub numbers: Vec<(u32, u32)>,
    /// Owner of the datasets that are added.
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
    /// Licence of the datasets that are added, by its SPDX name.
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
}

impl AddArgs {
    /// What the engine is asked.
    pub fn request(&self) -> AddRequest {
        AddRequest {
            store: self.dir.clone(),
            from: self.from.clone(),
            numbering: self.numbers.iter().copied().collect(),
            owner: self.owner.clone(),
            licence: self.licence.clone(),
        }
    }
}

/// Who is to own what.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct RelicenseArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// A dataset, by its number (`ascribe store stats` lists them).
    #[arg(long = "dataset", value_name = "N", required_unless_present = "registry")]
    pub datasets: Vec<u32>,
    /// Its name; empty takes it away.
    #[arg(long, value_name = "NAME", requires = "datasets")]
    pub name: Option<String>,
    /// Its owner; empty takes it away.
    #[arg(long, value_name = "NAME", requires = "datasets")]
    pub owner: Option<String>,
    /// Its licence, by its SPDX name; empty takes it away.
    #[arg(long, value_name = "SPDX", requires = "datasets")]
    pub licence: Option<String>,
    /// Folder of registered datasets: names, owners and licences of all of the store's that it knows.
    #[arg(long, value_name = "DATASETS", conflicts_with = "datasets")]
    pub registry: Option<PathBuf>,
}

impl RelicenseArgs {
    /// What the engine is asked.
    pub fn request(&self) -> RelicenseRequest {
        RelicenseRequest {
            store: self.dir.clone(),
            datasets: self.datasets.clone(),
            name: self.name.clone(),
            owner: self.owner.clone(),
            licence: self.licence.clone(),
            registry: self.registry.clone(),
        }
    }
}

/// Whose sums.
#[derive(Clone, Debug, Args)]
pub struct SumsArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Queries: a .npy file of f32 numbers, Q × dim or dim. Their products with the sums are the scores of datasets and owners.
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
}

/// What to delete.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct DeleteArgs {
    /// Folder of the store.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// A whole dataset, by its number (`ascribe store stats` lists them).
    #[arg(long = "dataset", value_name = "N", required_unless_present = "examples")]
    pub datasets: Vec<u32>,
    /// A single example.
    #[arg(long = "example", value_name = "DATASET:N", value_parser = parse_example)]
    pub examples: Vec<ExampleId>,
}

impl DeleteArgs {
    /// What the store is asked to delete.
    pub fn deletion(&self) -> Deletion {
        Deletion {
            datasets: self.datasets.iter().copied().collect(),
            examples: self.examples.iter().copied().collect(),
        }
    }
}

/// Reads `dataset:idx`.
fn parse_example(text: &str) -> Result<ExampleId, String> {
    let parsed = text.split_once(':').and_then(|(d, i)| Some((d.parse().ok()?, i.parse().ok()?)));
    let (dataset, idx) = parsed.ok_or_else(|| format!("expected DATASET:N, such as 1:57, found {text:?}"))?;
    Ok(ExampleId { dataset, idx })
}

/// Reads `there:here`.
fn parse_numbers(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(':').and_then(|(there, here)| Some((there.parse().ok()?, here.parse().ok()?)));
    parsed.ok_or_else(|| format!("expected THERE:HERE, such as 0:12, found {text:?}"))
}
