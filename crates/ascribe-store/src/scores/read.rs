//! Reading score files: everything is checked before a row is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type, UInt32Type};
use ascribe_core::{Digest, QueryId};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;

use super::content::ContentHasher;
use super::seal::check_seal;
use super::table::{Level, ScoreFile, ScoreFileMeta, ScoreRow};
use super::write::schema;
use super::{KEY_CONTENT, KEY_CORPUS, KEY_METHODS, KEY_SPEC, KEY_VERSION, SCORES_FORMAT_VERSION};
use crate::error::StoreError;
use crate::limits::SCORE_ROWS_MAX;

/// Reads a whole score file.
///
/// # Errors
/// [`StoreError::Missing`], [`StoreError::WrongVersion`], [`StoreError::Malformed`] (not Parquet, another schema, an
/// unknown method or level, a score that is not finite), [`StoreError::WrongChecksum`] if any row or key was changed.
pub fn read_scores(path: &Path) -> Result<ScoreFile, StoreError> {
    let mut file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => StoreError::Missing { path: path.to_path_buf(), hint: "run the scoring step" },
        _ => StoreError::io("open", path, source),
    })?;
    check_seal(path, &mut file)?;
    // A forged seal still meets a decoder that panics on some nonsense; to our caller that is a malformed file too.
    catch_unwind(AssertUnwindSafe(|| read_sealed(path, file)))
        .unwrap_or_else(|_| Err(StoreError::malformed(path, "score file", "Parquet", "pages that cannot be decoded")))
}

fn read_sealed(path: &Path, file: File) -> Result<ScoreFile, StoreError> {
    let not_parquet = |error: &dyn std::fmt::Display| StoreError::malformed(path, "score file", "Parquet", error);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| not_parquet(&e))?;
    let keys: BTreeMap<&str, &str> =
        builder.metadata().file_metadata().key_value_metadata().into_iter().flatten().filter_map(pair).collect();
    let (meta, expected) = decode_keys(path, &keys)?;
    if builder.schema().fields() != schema().fields() {
        let found = format!("{:?}", builder.schema().fields());
        return Err(StoreError::malformed(path, "schema", "that of version 1", found));
    }
    let n_rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(u64::MAX);
    if n_rows > SCORE_ROWS_MAX {
        return Err(StoreError::malformed(path, "rows", format!("at most {SCORE_ROWS_MAX}"), n_rows));
    }
    let mut rows = Vec::new();
    let mut hasher = ContentHasher::new(&meta);
    for batch in builder.build().map_err(|e| not_parquet(&e))? {
        let from = rows.len();
        decode(path, &meta, &batch.map_err(|e| not_parquet(&e))?, &mut rows)?;
        rows[from..].iter().for_each(|row| hasher.row(row));
    }
    let found = hasher.finish();
    if found != expected {
        return Err(StoreError::WrongChecksum { path: path.to_path_buf(), expected, found });
    }
    Ok(ScoreFile { path: path.to_path_buf(), meta, rows })
}

/// The metadata and the checksum of the content.
fn decode_keys(path: &Path, keys: &BTreeMap<&str, &str>) -> Result<(ScoreFileMeta, String), StoreError> {
    let key = |name: &'static str| {
        keys.get(name).copied().ok_or_else(|| StoreError::malformed(path, "metadata", format!("key `{name}`"), "none"))
    };
    check_version(path, key(KEY_VERSION)?)?;
    let meta = ScoreFileMeta {
        spec: digest(path, KEY_SPEC, key(KEY_SPEC)?)?,
        corpus: digest(path, KEY_CORPUS, key(KEY_CORPUS)?)?,
        methods: serde_json::from_str(key(KEY_METHODS)?)
            .map_err(|error| StoreError::malformed(path, KEY_METHODS, "a JSON map of hashes", error))?,
    };
    Ok((meta, key(KEY_CONTENT)?.to_owned()))
}

fn pair(entry: &KeyValue) -> Option<(&str, &str)> {
    entry.value.as_deref().map(|value| (entry.key.as_str(), value))
}

fn check_version(path: &Path, text: &str) -> Result<(), StoreError> {
    let found: u32 = text.parse().map_err(|_| StoreError::malformed(path, KEY_VERSION, "a number", text))?;
    if found != SCORES_FORMAT_VERSION {
        let (path, expected) = (path.to_path_buf(), SCORES_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "score file", expected, found });
    }
    Ok(())
}

fn digest(path: &Path, key: &'static str, text: &str) -> Result<Digest, StoreError> {
    text.parse().map_err(|error| StoreError::malformed(path, key, "64 hex digits", error))
}

fn decode(path: &Path, meta: &ScoreFileMeta, batch: &RecordBatch, rows: &mut Vec<ScoreRow>) -> Result<(), StoreError> {
    let methods = words(path, batch, 0, |word| meta.method_idx(word))?;
    let levels =
        words(path, batch, 1, |word| [Level::Example, Level::Dataset].into_iter().find(|l| l.as_str() == word))?;
    let number = |i: usize| batch.column(i).as_primitive::<UInt32Type>();
    let (queries, datasets, examples, records) = (number(2), number(3), number(4), number(5));
    let (scores, ranks) = (batch.column(6).as_primitive::<Float64Type>(), number(7));
    for i in 0..batch.num_rows() {
        let row = ScoreRow {
            method: methods[i],
            level: levels[i],
            query: QueryId(queries.value(i)),
            dataset: datasets.value(i),
            example_idx: examples.is_valid(i).then(|| examples.value(i)),
            record_row: records.is_valid(i).then(|| records.value(i)),
            score: scores.value(i),
            rank: ranks.value(i),
        };
        if !row.score.is_finite() {
            return Err(StoreError::malformed(path, "score", "a finite number", row.score));
        }
        if row.example_idx.is_some() != (row.level == Level::Example) {
            return Err(StoreError::malformed(path, "example_idx", "one at level `example` only", format!("{row:?}")));
        }
        rows.push(row);
    }
    Ok(())
}

/// Decodes a dictionary column; every word must be known.
fn words<T: Copy>(
    path: &Path,
    batch: &RecordBatch,
    column: usize,
    meaning: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, StoreError> {
    let dictionary = batch.column(column).as_dictionary::<Int32Type>();
    let values = dictionary.values().as_string::<i32>();
    let meanings: Vec<Option<T>> = values.iter().map(|word| word.and_then(&meaning)).collect();
    let unknown = |key: i32| {
        let found = usize::try_from(key).ok().filter(|&k| k < values.len()).map_or("?", |k| values.value(k));
        StoreError::malformed(path, "method or level", "a known word", found)
    };
    let keys = dictionary.keys().values().iter();
    keys.map(|&key| meanings.get(key as usize).copied().flatten().ok_or_else(|| unknown(key))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use ascribe_core::{DatasetScores, QueryId};
    use ndarray::array;

    use super::super::seal::write_seal;
    use super::super::write::ScoreWriter;
    use super::*;

    /// Somebody changes a bit and forges the seal: the decoder may refuse or panic inside, but what is read without an
    /// error is what was written.
    #[test]
    fn a_forged_seal_buys_no_other_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scores.parquet");
        let spec = Digest::of(b"spec");
        let methods = BTreeMap::from([("bm25".to_owned(), spec)]);
        let meta = ScoreFileMeta { spec, corpus: Digest::of(b"corpus"), methods };
        let queries = vec![QueryId(0), QueryId(1)];
        let values = array![[0.25, -1.0, 3.0], [1.0, 2.0, 3.0]];
        let mut writer = ScoreWriter::create(&path, &meta).unwrap();
        writer.push_datasets(&DatasetScores { method: "bm25".into(), spec, queries, values }).unwrap();
        writer.finish().unwrap();
        let (good, sealed) = (read_scores(&path).unwrap(), fs::read(&path).unwrap());
        let footer_len = u32::from_le_bytes(*sealed[sealed.len() - 8..].first_chunk().unwrap()) as usize;
        let footer_start = sealed.len() - 8 - footer_len;
        let plain = [&sealed[..footer_start - 40], &sealed[footer_start..]].concat();
        let mut n_refused = 0;
        for at in (0..plain.len() - 8).step_by(3) {
            let mut forged = plain.clone();
            forged[at] ^= 1 << (at % 8);
            fs::write(&path, &forged).unwrap();
            let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            write_seal(&path, &mut file).unwrap();
            match read_scores(&path) {
                Ok(read) => assert_eq!(read, good, "byte {at} changed the meaning unnoticed"),
                Err(_) => n_refused += 1,
            }
        }
        assert!(n_refused > plain.len() / 12, "only {n_refused} forgeries were refused");
    }
}
