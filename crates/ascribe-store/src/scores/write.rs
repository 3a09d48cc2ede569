//! Writing score files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use ascribe_core::{DatasetScores, Digest, ExampleId, QueryId, RecordId, ScoreTable};
use ndarray::ArrayView2;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::content::ContentHasher;
use super::seal::write_seal;
use super::table::{Level, ScoreFileMeta, ScoreRow};
use super::{KEY_CONTENT, KEY_CORPUS, KEY_METHODS, KEY_SPEC, KEY_VERSION, SCORES_FORMAT_VERSION};
use crate::atomic::AtomicFile;
use crate::error::StoreError;
use crate::limits::SCORE_ROWS_MAX;

/// Rows that are handed to Parquet at once.
const BATCH_ROWS: usize = 1 << 16;
const ZSTD_LEVEL: i32 = 3;

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScoresWritten {
    /// Rows in the file.
    pub n_rows: u64,
    /// BLAKE3 of the content, hex (also in the file).
    pub content_blake3: String,
}

/// A [`ScoreTable`] whose matrix lies elsewhere, in a caller's array or a mapped file: writing it copies nothing of it.
pub struct ScoreTableView<'a> {
    /// Method name.
    pub method: &'a str,
    /// Hash of the spec (and factors) the scores came from.
    pub spec: Digest,
    /// Row labels.
    pub queries: &'a [QueryId],
    /// `[Q, N]`, with any strides.
    pub values: ArrayView2<'a, f32>,
    /// Label of a column below N: ids may be kept packed, or computed.
    pub example_of: &'a dyn Fn(usize) -> ExampleId,
}

/// [`DatasetScores`] that lie elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct DatasetScoresView<'a> {
    /// Method name.
    pub method: &'a str,
    /// Hash of the spec (and factors) the scores came from.
    pub spec: Digest,
    /// Row labels.
    pub queries: &'a [QueryId],
    /// `[Q, K]`; column k is the dataset with ordinal k.
    pub values: ArrayView2<'a, f64>,
}

/// Writes a score file table by table. Dropped before [`ScoreWriter::finish`] it leaves nothing behind.
#[derive(Debug)]
pub struct ScoreWriter {
    path: PathBuf,
    meta: ScoreFileMeta,
    schema: SchemaRef,
    out: ArrowWriter<AtomicFile>,
    hasher: ContentHasher,
    rows: Vec<ScoreRow>,
    n_rows: u64,
    seen: HashSet<(u16, Level, QueryId)>,
}

impl ScoreWriter {
    /// Begins a file that will stand at `path`. `meta` names every method that will be pushed.
    ///
    /// # Errors
    /// Those of the file system; [`StoreError::TooLarge`] for more than 65,535 methods.
    pub fn create(path: &Path, meta: &ScoreFileMeta) -> Result<Self, StoreError> {
        let (limit, found) = (u64::from(u16::MAX), meta.methods.len() as u64);
        if found > limit {
            return Err(StoreError::TooLarge { what: "methods of a score file", limit, found });
        }
        let schema = schema();
        let properties = properties(path, meta)?;
        let file = AtomicFile::create(path)?;
        let out = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(|e| failed(path, e))?;
        Ok(Self {
            path: path.to_path_buf(),
            meta: meta.clone(),
            schema,
            out,
            hasher: ContentHasher::new(meta),
            rows: Vec::new(),
            n_rows: 0,
            seen: HashSet::new(),
        })
    }

    /// Adds the `top_k` best examples of each query (all of them with `None`), best first, ties by example.
    ///
    /// `record_of` names the record that fills most of an example; it may know nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFinite`] names method, query and example; [`StoreError::Shape`] if labels and values do not fit,
    /// the method is not in the metadata, or a query comes again; those of the file system.
    pub fn push_examples(
        &mut self,
        table: &ScoreTable,
        top_k: Option<usize>,
        record_of: &dyn Fn(ExampleId) -> Option<RecordId>,
    ) -> Result<(), StoreError> {
        self.method(&table.method, table.spec)?;
        expect_shape(table.values.dim(), (table.queries.len(), table.examples.len()))?;
        let view = ScoreTableView {
            method: &table.method,
            spec: table.spec,
            queries: &table.queries,
            values: table.values.view(),
            example_of: &|n| table.examples[n],
        };
        self.push_examples_view(&view, top_k, record_of)
    }

    /// [`ScoreWriter::push_examples`] of a table that is borrowed: the same bytes. Beside the table it takes eight bytes per example,
    /// and a batch of rows.
    ///
    /// # Errors
    /// As [`ScoreWriter::push_examples`].
    pub fn push_examples_view(
        &mut self,
        table: &ScoreTableView<'_>,
        top_k: Option<usize>,
        record_of: &dyn Fn(ExampleId) -> Option<RecordId>,
    ) -> Result<(), StoreError> {
        let method = self.method(table.method, table.spec)?;
        let example_of = table.example_of;
        expect_shape(table.values.dim(), (table.queries.len(), table.values.ncols()))?;
        for (&query, scores) in table.queries.iter().zip(table.values.rows()) {
            self.expect_new(table.method, method, Level::Example, query)?;
            let mut order: Vec<usize> = (0..scores.len()).collect();
            if let Some(&bad) = order.iter().find(|&&n| !scores[n].is_finite()) {
                let place = format!("method `{}`, query {}, example {}", table.method, query.0, example_of(bad));
                return Err(StoreError::NotFinite { place, found: scores[bad].to_string() });
            }
            let better = |&a: &usize, &b: &usize| {
                scores[b].total_cmp(&scores[a]).then_with(|| example_of(a).cmp(&example_of(b)))
            };
            let n_kept = top_k.unwrap_or(usize::MAX).min(order.len());
            if n_kept < order.len() && n_kept > 0 {
                order.select_nth_unstable_by(n_kept - 1, better);
            }
            order.truncate(n_kept);
            order.sort_unstable_by(better);
            for (i, n) in order.into_iter().enumerate() {
                let id = example_of(n);
                self.push(ScoreRow {
                    method,
                    level: Level::Example,
                    query,
                    dataset: id.dataset,
                    example_idx: Some(id.idx),
                    record_row: record_of(id).map(|record| record.row),
                    score: f64::from(scores[n]),
                    rank: i as u32 + 1,
                })?;
            }
        }
        Ok(())
    }

    /// Adds the scores of all datasets for each query, best first, ties by ordinal.
    ///
    /// # Errors
    /// As [`ScoreWriter::push_examples`].
    pub fn push_datasets(&mut self, table: &DatasetScores) -> Result<(), StoreError> {
        let DatasetScores { method, spec, queries, values } = table;
        self.push_datasets_view(DatasetScoresView { method, spec: *spec, queries, values: values.view() })
    }

    /// [`ScoreWriter::push_datasets`] of a table that is borrowed: the same bytes.
    ///
    /// # Errors
    /// As [`ScoreWriter::push_examples`].
    pub fn push_datasets_view(&mut self, table: DatasetScoresView<'_>) -> Result<(), StoreError> {
        let method = self.method(table.method, table.spec)?;
        expect_shape(table.values.dim(), (table.queries.len(), table.values.ncols()))?;
        for (&query, scores) in table.queries.iter().zip(table.values.rows()) {
            self.expect_new(table.method, method, Level::Dataset, query)?;
            let mut order: Vec<usize> = (0..scores.len()).collect();
            if let Some(&bad) = order.iter().find(|&&k| !scores[k].is_finite()) {
                let place = format!("method `{}`, query {}, dataset {bad}", table.method, query.0);
                return Err(StoreError::NotFinite { place, found: scores[bad].to_string() });
            }
            order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            for (i, k) in order.into_iter().enumerate() {
                self.push(ScoreRow {
                    method,
                    level: Level::Dataset,
                    query,
                    dataset: k as u32,
                    example_idx: None,
                    record_row: None,
                    score: scores[k],
                    rank: i as u32 + 1,
                })?;
            }
        }
        Ok(())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`] or [`StoreError::Io`]; the old file, if any, is then still there.
    pub fn finish(mut self) -> Result<ScoresWritten, StoreError> {
        self.write_batch()?;
        let content_blake3 = self.hasher.finish();
        self.out.append_key_value_metadata(KeyValue::new(KEY_CONTENT.to_owned(), content_blake3.clone()));
        let mut file = self.out.into_inner().map_err(|error| failed(&self.path, error))?;
        write_seal(&self.path, &mut file)?;
        file.commit()?;
        Ok(ScoresWritten { n_rows: self.n_rows, content_blake3 })
    }

    fn method(&self, name: &str, spec: Digest) -> Result<u16, StoreError> {
        match (self.meta.methods.get(name), self.meta.method_idx(name)) {
            (Some(&declared), Some(idx)) if declared == spec => Ok(idx),
            (declared, _) => Err(StoreError::Shape {
                what: "method and spec of a score table",
                expected: declared.map_or("a method of the metadata".to_owned(), |d| format!("`{name}` of {d}")),
                found: format!("`{name}` of {spec}"),
            }),
        }
    }

    fn expect_new(&mut self, name: &str, method: u16, level: Level, query: QueryId) -> Result<(), StoreError> {
        if self.seen.insert((method, level, query)) {
            return Ok(());
        }
        let found = format!("method `{name}`, level {}, query {} again", level.as_str(), query.0);
        Err(StoreError::Shape { what: "score tables", expected: "each query of a method once".into(), found })
    }

    fn push(&mut self, row: ScoreRow) -> Result<(), StoreError> {
        self.n_rows += 1;
        if self.n_rows > SCORE_ROWS_MAX {
            let (limit, found) = (SCORE_ROWS_MAX, self.n_rows);
            return Err(StoreError::TooLarge { what: "rows of a score file", limit, found });
        }
        self.hasher.row(&row);
        self.rows.push(row);
        if self.rows.len() == BATCH_ROWS { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(self.meta.method_names()));
        let levels: ArrayRef =
            Arc::new(StringArray::from_iter_values([Level::Example, Level::Dataset].map(Level::as_str)));
        let methods = Int32Array::from_iter_values(rows.iter().map(|r| i32::from(r.method)));
        let level_keys = Int32Array::from_iter_values(rows.iter().map(|r| r.level as i32));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(DictionaryArray::<Int32Type>::new(methods, names)),
            Arc::new(DictionaryArray::<Int32Type>::new(level_keys, levels)),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.query.0))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.dataset))),
            Arc::new(UInt32Array::from_iter(rows.iter().map(|r| r.example_idx))),
            Arc::new(UInt32Array::from_iter(rows.iter().map(|r| r.record_row))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.score))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.rank))),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| StoreError::malformed(&self.path, "score batch", "equal columns", error))?;
        self.out.write(&batch).map_err(|error| failed(&self.path, error))
    }
}

/// The schema of version 1.
pub(crate) fn schema() -> SchemaRef {
    let word = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("method", word(), false),
        Field::new("level", word(), false),
        Field::new("query_id", DataType::UInt32, false),
        Field::new("dataset_id", DataType::UInt32, false),
        Field::new("example_idx", DataType::UInt32, true),
        Field::new("record_row", DataType::UInt32, true),
        Field::new("score", DataType::Float64, false),
        Field::new("rank", DataType::UInt32, false),
    ]))
}

fn properties(path: &Path, meta: &ScoreFileMeta) -> Result<WriterProperties, StoreError> {
    let methods = serde_json::to_string(&meta.methods)
        .map_err(|error| StoreError::malformed(path, "methods", "a JSON map", error))?;
    let keys = [
        (KEY_VERSION, SCORES_FORMAT_VERSION.to_string()),
        (KEY_SPEC, meta.spec.to_string()),
        (KEY_CORPUS, meta.corpus.to_string()),
        (KEY_METHODS, methods),
    ];
    let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|error| failed(path, error))?;
    Ok(WriterProperties::builder()
        // Fixed, so that a newer Parquet library alone does not change the bytes' claim of origin.
        .set_created_by(format!("ascribe-store scores v{SCORES_FORMAT_VERSION}"))
        .set_compression(Compression::ZSTD(level))
        .set_key_value_metadata(Some(keys.into_iter().map(|(k, v)| KeyValue::new(k.to_owned(), v)).collect()))
        .build())
}

fn expect_shape(found: (usize, usize), expected: (usize, usize)) -> Result<(), StoreError> {
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
    Err(StoreError::Shape { what: "score table", expected, found })
}

/// Finds the operating system's error inside a Parquet error, so that a full disk is still called one.
fn failed(path: &Path, error: ParquetError) -> StoreError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(source) => StoreError::io("write", path, *source),
            Err(other) => StoreError::malformed(path, "score file", "Parquet", other),
        },
        other => StoreError::malformed(path, "score file", "Parquet", other),
    }
}
