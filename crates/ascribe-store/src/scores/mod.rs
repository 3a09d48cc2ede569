//! Score files: one Parquet table that any SQL engine reads.
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `method` | dictionary of strings | name of the method |
//! | `level` | dictionary of strings | `example` or `dataset` |
//! | `query_id` | u32 | position of the response in the query set |
//! | `dataset_id` | u32 | ordinal of the dataset in the corpus manifest |
//! | `example_idx` | u32, null at level `dataset` | position of the example within its dataset |
//! | `record_row` | u32, null if not known | row of the record that fills most of the example |
//! | `score` | f64, finite | positive = proponent |
//! | `rank` | u32 | 1 = highest of its method, level and query; ties by dataset and position |
//!
//! Rows of level `example` are the exact top-k of each query (or all of them, when asked); rows of level `dataset` are
//! all datasets. File metadata: `ascribe.format_version`, `ascribe.spec` (hash of the feature spec), `ascribe.corpus`
//! (hash of the corpus manifest), `ascribe.methods` (JSON: method → hash of its own spec and factors) and
//! `ascribe.content_blake3` (over all rows and the other keys; readers recompute it). A hash of the whole file stands
//! between the last page and the footer, where Parquet readers do not look. Same rows, same bytes.

mod content;
mod read;
mod seal;
mod table;
mod write;

pub use read::read_scores;
pub use table::{Level, ScoreFile, ScoreFileMeta, ScoreRow};
pub use write::{DatasetScoresView, ScoreTableView, ScoreWriter, ScoresWritten};

/// Version of the layout above.
pub const SCORES_FORMAT_VERSION: u32 = 1;

pub(crate) const KEY_VERSION: &str = "ascribe.format_version";
pub(crate) const KEY_SPEC: &str = "ascribe.spec";
pub(crate) const KEY_CORPUS: &str = "ascribe.corpus";
pub(crate) const KEY_METHODS: &str = "ascribe.methods";
pub(crate) const KEY_CONTENT: &str = "ascribe.content_blake3";
