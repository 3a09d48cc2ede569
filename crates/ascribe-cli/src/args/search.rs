//! Arguments of `search`, and of the bench that measures it.

use std::path::PathBuf;

use ascribe_core::RowType;
use ascribe_engine::search::bench::BenchRequest;
use ascribe_engine::search::{Mode, SearchRequest};
use clap::{Args, ValueEnum};

/// Rows of a feature store with the largest inner products.
#[derive(Clone, Debug, Args)]
pub struct SearchArgs {
    /// Feature store.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Queries: a .npy file of f32 numbers, Q × dim or dim.
    #[arg(long, value_name = "FILE")]
    pub queries: PathBuf,
    /// Rows per query.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub k: usize,
    /// How rows are found. `exact` and `certified` give the same rows.
    #[arg(long, value_enum, default_value_t = SearchMode::Certified)]
    pub mode: SearchMode,
    /// Score by these modules only: whole names, or what stands before a dot (`layers.0`). Queries stay as wide as rows.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub modules: Vec<String>,
    /// Companion to scan [default: the first there is of int8, bf16, f16, int4; without any the store itself].
    #[arg(long, value_enum, value_name = "ROWS")]
    pub companion: Option<CompanionRows>,
    /// Folder of the index of `ann`; built if there is none [default: hnsw in the store's folder].
    #[arg(long, value_name = "DIR")]
    pub index: Option<PathBuf>,
    /// Keep the index of `ann` in a PostgreSQL with pgvector instead: postgresql://USER@HOST/NAME. Built if there is none.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ASCRIBE_SEARCH_BACKEND",
        hide_env_values = true,
        conflicts_with = "index"
    )]
    pub backend: Option<String>,
    /// Recall that `ann` aims at, by what was measured when its index was built; exact search where it was never reached.
    #[arg(long, value_name = "X", default_value_t = 0.99)]
    pub recall: f64,
    /// Keep to these datasets, by number (`ascribe store stats` lists them).
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub dataset: Vec<u32>,
    /// Folder of registered datasets, which knows owners and licences [default: what the store was told].
    #[arg(long, value_name = "DIR")]
    pub registry: Option<PathBuf>,
    /// Keep to the datasets of this owner.
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
    /// Keep to the datasets under this licence, by its SPDX name.
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
}

/// How rows are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SearchMode {
    /// Read every row of the store.
    Exact,
    /// Read every row in few bits, and again those that may be among the best.
    Certified,
    /// Walk an HNSW graph; what it finds is scored exactly.
    Ann,
}

/// Row types of companions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CompanionRows {
    /// A byte a number.
    Int8,
    /// Two numbers a byte.
    Int4,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
}

impl SearchArgs {
    /// What the engine is asked.
    pub fn request(&self) -> SearchRequest {
        SearchRequest {
            store: self.store.clone(),
            queries: self.queries.clone(),
            k: self.k,
            modules: self.modules.clone(),
            mode: match self.mode {
                SearchMode::Exact => Mode::Exact,
                SearchMode::Certified => Mode::Certified,
                SearchMode::Ann => Mode::Ann,
            },
            companion: self.companion.map(|rows| match rows {
                CompanionRows::Int8 => RowType::Int8,
                CompanionRows::Int4 => RowType::Int4,
                CompanionRows::Bf16 => RowType::Bf16,
                CompanionRows::F16 => RowType::F16,
            }),
            index: self.index.clone(),
            backend: self.backend.clone(),
            recall: self.recall,
            datasets: self.dataset.clone(),
            registry: self.registry.clone(),
            owner: self.owner.clone(),
            licence: self.licence.clone(),
        }
    }
}

/// How fast a store is searched here.
#[derive(Clone, Debug, Args)]
pub struct BenchSearchArgs {
    /// Rows to make.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = parse_count)]
    pub rows: usize,
    /// Numbers of a row.
    #[arg(long, value_name = "D", default_value_t = 128, value_parser = parse_count)]
    pub dim: usize,
    /// Rows to search in the place of made ones: a .npy file of f32 numbers, [n, dim].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rows", "dim"])]
    pub data: Option<PathBuf>,
    /// Queries in the place of made ones: a .npy file of f32 numbers.
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
    /// Folder for the store and its index, kept for the next run [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the graph out: it takes longest to build.
    #[arg(long)]
    pub no_hnsw: bool,
    /// Also with int8 rows that come from the disk: the page cache is asked to let go of the store, and the same files are
    /// read one after the other, as dd does.
    #[arg(long)]
    pub cold: bool,
}

impl BenchSearchArgs {
    /// What the engine is asked.
    pub fn request(&self) -> BenchRequest {
        BenchRequest {
            rows: self.rows,
            dim: self.dim,
            data: self.data.clone(),
            queries: self.queries.clone(),
            dir: self.dir.clone(),
            hnsw: !self.no_hnsw,
            cold: self.cold,
        }
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    let parsed: Result<usize, _> = text.parse();
    match parsed {
        Ok(n @ 1..=1_000_000_000) => Ok(n),
        _ => Err(format!("expected a number from 1 to a billion, found {text:?}")),
    }
}
