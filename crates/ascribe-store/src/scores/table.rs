//! Score rows in memory, and how they become tables again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::{DatasetScores, Digest, ExampleId, QueryId, RecordId, ScoreTable};
use ndarray::Array2;

use crate::error::StoreError;

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Level {
    /// One training example.
    Example,
    /// One dataset.
    Dataset,
}

impl Level {
    /// The word that stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Example => "example",
            Self::Dataset => "dataset",
        }
    }
}

/// One row of a score file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScoreRow {
    /// Position of the method in [`ScoreFileMeta::method_names`].
    pub method: u16,
    /// What the row is about.
    pub level: Level,
    /// The response.
    pub query: QueryId,
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Position of the example within its dataset; `None` at dataset level.
    pub example_idx: Option<u32>,
    /// Row of the record that fills most of the example, if known.
    pub record_row: Option<u32>,
    /// The score; positive = proponent.
    pub score: f64,
    /// 1 = highest of its method, level and query.
    pub rank: u32,
}

impl ScoreRow {
    /// The example, at example level.
    pub fn example(&self) -> Option<ExampleId> {
        self.example_idx.map(|idx| ExampleId { dataset: self.dataset, idx })
    }

    /// The record, if known.
    pub fn record(&self) -> Option<RecordId> {
        self.record_row.map(|row| RecordId { dataset: self.dataset, row })
    }
}

/// What a score file says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScoreFileMeta {
    /// Hash of the feature spec.
    pub spec: Digest,
    /// Hash of the corpus manifest.
    pub corpus: Digest,
    /// Every method in the file, with the hash of its own spec and factors.
    pub methods: BTreeMap<String, Digest>,
}

impl ScoreFileMeta {
    /// Names in the order that [`ScoreRow::method`] counts.
    pub fn method_names(&self) -> impl Iterator<Item = &str> {
        self.methods.keys().map(String::as_str)
    }

    /// Position of a method.
    pub fn method_idx(&self, name: &str) -> Option<u16> {
        self.method_names().position(|n| n == name).and_then(|i| u16::try_from(i).ok())
    }
}

/// A score file that was read.
#[derive(Clone, PartialEq, Debug)]
pub struct ScoreFile {
    /// Where it was.
    pub path: PathBuf,
    /// What it says of itself.
    pub meta: ScoreFileMeta,
    /// Its rows, in file order.
    pub rows: Vec<ScoreRow>,
}

impl ScoreFile {
    /// Rows of one method and level, in file order (by query, then by rank).
    pub fn rows_of<'a>(&'a self, method: &str, level: Level) -> impl Iterator<Item = &'a ScoreRow> {
        let idx = self.meta.method_idx(method);
        self.rows.iter().filter(move |row| Some(row.method) == idx && row.level == level)
    }

    /// Top examples of one query, best first.
    pub fn top_examples<'a>(&'a self, method: &str, query: QueryId) -> impl Iterator<Item = &'a ScoreRow> {
        self.rows_of(method, Level::Example).filter(move |row| row.query == query)
    }

    /// The dataset-level table of one method, `[Q, K]`.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if the method is not there or a cell of the table is missing.
    pub fn datasets(&self, method: &str) -> Result<DatasetScores, StoreError> {
        let spec = self.spec_of(method)?;
        let queries = self.queries_of(method, Level::Dataset);
        let n_datasets = self.rows_of(method, Level::Dataset).map(|row| row.dataset as usize + 1).max().unwrap_or(0);
        let n_rows = self.rows_of(method, Level::Dataset).count();
        // Compared before anything of that size is made: a hostile ordinal must not exhaust memory.
        self.expect_cells("cells of the dataset table", queries.len().checked_mul(n_datasets), n_rows)?;
        let mut values = Array2::from_elem((queries.len(), n_datasets), f64::NAN);
        for row in self.rows_of(method, Level::Dataset) {
            let q = queries.binary_search(&row.query).expect("every query of the rows is in the list");
            values[(q, row.dataset as usize)] = row.score;
        }
        let n_filled = values.iter().filter(|x| !x.is_nan()).count();
        self.expect_cells("cells of the dataset table", Some(values.len()), n_filled)?;
        Ok(DatasetScores { method: method.to_owned(), spec, queries, values })
    }

    /// The example-level table of one method, `[Q, N]` with examples in ascending order; for files that hold all rows.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if the method is not there or a cell of the table is missing.
    pub fn examples(&self, method: &str) -> Result<ScoreTable, StoreError> {
        let spec = self.spec_of(method)?;
        let queries = self.queries_of(method, Level::Example);
        let mut examples: Vec<ExampleId> = self.rows_of(method, Level::Example).filter_map(ScoreRow::example).collect();
        let n_rows = examples.len();
        examples.sort_unstable();
        examples.dedup();
        self.expect_cells("cells of the example table", queries.len().checked_mul(examples.len()), n_rows)?;
        let mut values = Array2::from_elem((queries.len(), examples.len()), f32::NAN);
        for row in self.rows_of(method, Level::Example) {
            let q = queries.binary_search(&row.query).expect("every query of the rows is in the list");
            let id = row.example().expect("rows of this level have an example");
            let n = examples.binary_search(&id).expect("every example of the rows is in the list");
            values[(q, n)] = row.score as f32;
        }
        let n_filled = values.iter().filter(|x| !x.is_nan()).count();
        self.expect_cells("cells of the example table", Some(values.len()), n_filled)?;
        Ok(ScoreTable { method: method.to_owned(), spec, queries, examples, values })
    }

    fn spec_of(&self, method: &str) -> Result<Digest, StoreError> {
        self.meta.methods.get(method).copied().ok_or_else(|| {
            let found = self.meta.method_names().collect::<Vec<_>>().join(", ");
            StoreError::malformed(&self.path, "methods", format!("`{method}`"), found)
        })
    }

    fn queries_of(&self, method: &str, level: Level) -> Vec<QueryId> {
        let mut queries: Vec<QueryId> = self.rows_of(method, level).map(|row| row.query).collect();
        queries.sort_unstable();
        queries.dedup();
        queries
    }

    fn expect_cells(&self, what: &'static str, expected: Option<usize>, found: usize) -> Result<(), StoreError> {
        if expected == Some(found) {
            return Ok(());
        }
        let expected = expected.map_or("a table that fits in memory".to_owned(), |n| n.to_string());
        Err(StoreError::malformed(&self.path, what, expected, found))
    }
}
