//! Parquet files: two columns, read batch by batch.

use std::path::{Path, PathBuf};

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::arrow::{check_columns, pairs_of};
use super::{Batch, Fields, RecordSource, bad, catching, compressed};
use crate::error::RegistryError;
use crate::files;

/// Rows of a batch: at the longest text this is 256 MiB, at a usual one 1 MiB.
const BATCH_ROWS: usize = 256;

pub(super) struct Parquet {
    reader: ParquetRecordBatchReader,
    path: PathBuf,
    fields: Fields,
    next_row: u64,
    /// Bytes of text that the file may still stand for.
    left: u64,
}

impl Parquet {
    pub(super) fn open(path: &Path, fields: &Fields) -> Result<Self, RegistryError> {
        catching(path, || {
            let file = files::open(path, "source file")?;
            let len_bytes = file.metadata().map_err(RegistryError::io(path, "reading"))?.len();
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| bad(path, error))?;
            let cap = compressed::expansion_cap(len_bytes);
            check_claims(path, &builder, cap)?;
            let names = check_columns(path, builder.schema(), fields)?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), names.iter().map(String::as_str));
            let reader =
                builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(|error| bad(path, error))?;
            Ok(Self { reader, path: path.to_owned(), fields: fields.clone(), next_row: 1, left: cap })
        })
    }
}

/// Sizes that the footer claims: a page is allocated before it is read, so what cannot be true is refused first.
fn check_claims(
    path: &Path,
    builder: &ParquetRecordBatchReaderBuilder<std::fs::File>,
    cap: u64,
) -> Result<(), RegistryError> {
    let mut total = 0u64;
    for group in builder.metadata().row_groups() {
        for column in group.columns() {
            let claimed = u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX);
            total = total.saturating_add(claimed);
        }
        if group.num_rows() < 0 || total > cap {
            let expected = format!("at most {cap} bytes, the cap for a file of this size");
            return Err(RegistryError::field(path, "uncompressed bytes that the footer claims", expected, total));
        }
    }
    Ok(())
}

impl RecordSource for Parquet {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        let batch = batch.map_err(|error| bad(&self.path, error))?;
        let pairs = pairs_of(&self.path, &batch, &self.fields)?;
        // A dictionary and run lengths let a few bytes stand for any number of rows.
        let len_bytes: u64 = pairs.iter().map(|(_, text)| 1 + text.as_ref().map_or(0, |text| text.len() as u64)).sum();
        self.left = self.left.checked_sub(len_bytes).ok_or_else(|| {
            let expected = "no more than the cap for a file of this size";
            RegistryError::field(&self.path, format!("text up to row {}", self.next_row), expected, "more")
        })?;
        let first_row = self.next_row;
        self.next_row += pairs.len() as u64;
        Ok(Some(Batch::Pairs { first_row, pairs }))
    }
}
