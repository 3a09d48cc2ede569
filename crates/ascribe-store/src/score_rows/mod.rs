//! Score files of any tool, as rows: response, dataset, score. Read in pieces, so that a hundred million rows need little memory.
//!
//! | column | other names | type | meaning |
//! |---|---|---|---|
//! | `query_id` | `query`, `response_id`, `response` | integer from 0 or text | the response |
//! | `dataset_id` | `dataset` | integer (ordinal) or text (name, `urn:uuid:`, content root) | the dataset |
//! | `score` | `influence`, `value` | f64, f32, f16 or integer, finite | positive = proponent |
//! | `level` | | text, optional | where it stands, only rows that say `dataset` count |
//! | `method` | | text, optional | where a file holds several, one is chosen |
//! | `revenue` | | integer from 0 or text, optional | what the response earned, on each of its rows; the payout gives it its meaning |
//!
//! Containers, told apart by their first bytes: Parquet (any common compression), Arrow IPC file or stream, CSV with a header line
//! (RFC 4180), NumPy `.npy` with a matrix `[responses, datasets]` of `<f4` or `<f8`. Of the names of one line of the table the first
//! counts; two columns of one name are refused, for nobody could say which of them is paid. Other columns are ignored. Rows of one
//! response and dataset add up, so record-level scores flow through too. Order, chunks and compression carry no meaning.
//!
//! Files are hostile: nulls, numbers that are not finite, negative ids and undecodable pages are refused with the row's number.
//! Unlike `scores`, which reads back only what this program has sealed, this reads what strangers write.

mod batch;
mod csv;
mod ipc;
mod npy;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use arrow::datatypes::Schema;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use crate::error::StoreError;
use crate::limits::SCORE_ROWS_MAX;

/// Rows handed over at once.
pub const BATCH_ROWS: usize = 1 << 16;
/// Columns of any file that is read here.
const COLUMNS_MAX: usize = 4096;

/// What a file calls a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label<'a> {
    /// An ordinal.
    Number(u64),
    /// A name or identifier.
    Text(&'a str),
}

/// Tells the ordinal behind a label.
pub type Resolve<'a> = dyn Fn(Label<'_>) -> u32 + Sync + 'a;
/// Takes rows; may refuse them.
pub type Each<'a> = dyn FnMut(&RowBatch) -> Result<(), StoreError> + 'a;

/// What the column `revenue` says, row by row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Revenues {
    /// The file has no such column.
    #[default]
    None,
    /// Integers.
    Integers(Vec<u64>),
    /// Texts, none of them empty.
    Texts(Vec<String>),
}

/// Some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowBatch {
    /// Responses: the number itself, or the number that stands for a text.
    pub queries: Vec<u64>,
    /// Datasets, as resolved.
    pub datasets: Vec<u32>,
    /// Scores, finite.
    pub scores: Vec<f64>,
    /// Revenues of the responses, one a row.
    pub revenues: Revenues,
}

impl RowBatch {
    fn clear(&mut self) {
        self.queries.clear();
        self.datasets.clear();
        self.scores.clear();
        self.revenues = Revenues::None;
    }
}

#[derive(Debug)]
enum Container {
    Parquet(ArrowReaderMetadata),
    ArrowFile,
    ArrowStream,
    Csv,
    Npy,
}

/// Texts that name responses, by the number that stands for them, and the method that all rows must share.
#[derive(Debug, Default)]
struct Seen {
    queries: HashMap<u64, String>,
    method: Option<String>,
}

/// An opened score file of any tool.
#[derive(Debug)]
pub struct ScoreRows {
    path: PathBuf,
    container: Container,
    method: Option<String>,
    seen: Mutex<Seen>,
}

impl ScoreRows {
    /// Opens `path`. Of a file with a `method` column only rows of `method` are read; without one given, all rows must share one.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Malformed`] for a container or header that is none of those above.
    pub fn open(path: &Path, method: Option<&str>) -> Result<Self, StoreError> {
        let mut file = open(path)?;
        let mut head = [0u8; 8];
        let n = file.read(&mut head).map_err(|source| StoreError::io("read", path, source))?;
        let container = match &head[..n] {
            [b'P', b'A', b'R', b'1', ..] => Container::Parquet(parquet_head(path)?),
            [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Container::ArrowFile,
            [0xff, 0xff, 0xff, 0xff, ..] => Container::ArrowStream,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Container::Npy,
            [b'P', b'K', 3, 4, ..] => {
                let found = "an archive (.npz or .zip); hint: numpy.save writes one matrix as .npy";
                return Err(StoreError::malformed(path, "score file", "Parquet, Arrow, CSV or .npy", found));
            }
            [] => return Err(StoreError::malformed(path, "score file", "rows", "an empty file")),
            _ => Container::Csv,
        };
        Ok(Self { path: path.to_path_buf(), container, method: method.map(str::to_owned), seen: Mutex::default() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Parts that threads may read side by side.
    pub fn n_parts(&self) -> usize {
        match &self.container {
            Container::Parquet(head) => head.metadata().num_row_groups(),
            _ => 1,
        }
    }

    /// Rows, where the file says so before it is read.
    pub fn n_rows(&self) -> Option<u64> {
        match &self.container {
            Container::Parquet(head) => u64::try_from(head.metadata().file_metadata().num_rows()).ok(),
            _ => None,
        }
    }

    /// The text behind a response's number; `None` where the file has numbers.
    pub fn query_text(&self, query: u64) -> Option<String> {
        self.seen().queries.get(&query).cloned()
    }

    /// The method whose rows were read, once they were.
    pub fn method(&self) -> Option<String> {
        self.method.clone().or_else(|| self.seen().method.clone())
    }

    /// Reads one part, batch by batch.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] with row and column; what `each` refuses; those of the file system.
    pub fn read_part(&self, part: usize, resolve: &Resolve<'_>, each: &mut Each<'_>) -> Result<(), StoreError> {
        // The decoders of version 59 panic on some nonsense; to our caller that is a malformed file.
        let read = AssertUnwindSafe(|| self.read_container(part, resolve, each));
        catch_unwind(read).unwrap_or_else(|_| {
            Err(StoreError::malformed(&self.path, "score file", "pages that can be decoded", "a page that cannot"))
        })
    }

    fn read_container(&self, part: usize, resolve: &Resolve<'_>, each: &mut Each<'_>) -> Result<(), StoreError> {
        match &self.container {
            Container::Parquet(head) => self.read_parquet(head, part, resolve, each),
            Container::ArrowFile => {
                ipc::check_file(&self.path)?;
                let file = open(&self.path)?;
                let reader = arrow::ipc::reader::FileReader::try_new_buffered(file, None).map_err(|e| self.bad(e))?;
                self.read_batches(&reader.schema(), reader, resolve, each)
            }
            Container::ArrowStream => {
                ipc::check_stream(&self.path)?;
                let file = open(&self.path)?;
                let reader = arrow::ipc::reader::StreamReader::try_new_buffered(file, None).map_err(|e| self.bad(e))?;
                self.read_batches(&reader.schema(), reader, resolve, each)
            }
            Container::Csv => csv::read(self, resolve, each),
            Container::Npy => npy::read(&self.path, resolve, each),
        }
    }

    fn read_parquet(
        &self,
        head: &ArrowReaderMetadata,
        part: usize,
        resolve: &Resolve<'_>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        let columns = batch::Columns::find(&self.path, head.schema())?;
        let mask = ProjectionMask::roots(head.parquet_schema(), columns.indices());
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(open(&self.path)?, head.clone());
        let reader = builder.with_projection(mask).with_row_groups(vec![part]).with_batch_size(BATCH_ROWS).build();
        let reader = reader.map_err(|e| self.bad(e))?;
        let schema = Schema::new(columns.indices().map(|i| head.schema().field(i).clone()).collect::<Vec<_>>());
        self.read_batches(&schema, reader, resolve, each)
    }

    fn read_batches(
        &self,
        schema: &Schema,
        batches: impl Iterator<Item = Result<arrow::array::RecordBatch, arrow::error::ArrowError>>,
        resolve: &Resolve<'_>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        let columns = batch::Columns::find(&self.path, schema)?;
        let mut rows = RowBatch::default();
        let mut first_row = 0u64;
        for found in batches {
            let found = found.map_err(|e| self.bad(e))?;
            rows.clear();
            batch::decode(self, &columns, &found, first_row, resolve, &mut rows)?;
            first_row += found.num_rows() as u64;
            if first_row > SCORE_ROWS_MAX {
                return Err(StoreError::malformed(&self.path, "rows", format!("at most {SCORE_ROWS_MAX}"), first_row));
            }
            each(&rows)?;
        }
        Ok(())
    }

    fn bad(&self, error: impl std::fmt::Display) -> StoreError {
        StoreError::malformed(&self.path, "score file", "what its first bytes announce", error)
    }

    /// Whether rows of this method count; refuses a second method where none was chosen.
    fn takes_method(&self, found: &str) -> Result<bool, StoreError> {
        if let Some(wanted) = &self.method {
            return Ok(wanted == found);
        }
        let mut seen = self.seen();
        match &seen.method {
            None => seen.method = Some(found.to_owned()),
            Some(first) if first != found => {
                let both = format!("`{first}` and `{found}`; hint: choose one with --method");
                return Err(StoreError::malformed(&self.path, "column `method`", "one method", both));
            }
            Some(_) => {}
        }
        Ok(true)
    }

    /// The number of a response's text: the first 64 bits of its BLAKE3, so that it does not depend on the order of rows.
    fn query_number(&self, text: &str) -> Result<u64, StoreError> {
        let hash = blake3::hash(text.as_bytes());
        let number = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"));
        let mut seen = self.seen();
        let known = seen.queries.entry(number).or_insert_with(|| text.to_owned());
        if known != text {
            let found = format!("{known:?} and {text:?}, whose hashes begin with the same 64 bits");
            return Err(StoreError::malformed(&self.path, "response", "texts that can be told apart", found));
        }
        Ok(number)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // What a panicking thread left is still a valid map.
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            StoreError::Missing { path: path.to_path_buf(), hint: "name a score file: Parquet, Arrow, CSV or .npy" }
        }
        _ => StoreError::io("open", path, source),
    })
}

fn parquet_head(path: &Path) -> Result<ArrowReaderMetadata, StoreError> {
    let file = open(path)?;
    let load =
        AssertUnwindSafe(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::new().with_skip_arrow_metadata(true)));
    let head =
        catch_unwind(load).map_err(|_| StoreError::malformed(path, "score file", "Parquet", "a broken footer"))?;
    let head = head.map_err(|error| StoreError::malformed(path, "score file", "Parquet", error))?;
    let n_rows = u64::try_from(head.metadata().file_metadata().num_rows()).unwrap_or(u64::MAX);
    if n_rows > SCORE_ROWS_MAX {
        return Err(StoreError::malformed(path, "rows", format!("at most {SCORE_ROWS_MAX}"), n_rows));
    }
    if head.schema().fields().len() > COLUMNS_MAX {
        let found = head.schema().fields().len();
        return Err(StoreError::malformed(path, "columns", format!("at most {COLUMNS_MAX}"), found));
    }
    batch::Columns::find(path, head.schema())?;
    Ok(head)
}
