//! CSV and TSV with a header line, RFC 4180 quoting.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::{BATCH_BYTES, Batch, Fields, RecordSource, bad, compressed};
use crate::content::LINE_CAP_BYTES;
use crate::error::RegistryError;

type Reader = csv::Reader<Box<dyn BufRead + Send>>;

pub(super) struct Csv {
    reader: Reader,
    path: PathBuf,
    id_column: Option<usize>,
    text_column: usize,
    next_row: u64,
    record: csv::ByteRecord,
}

impl Csv {
    pub(super) fn open(path: &Path, fields: &Fields) -> Result<Self, RegistryError> {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let delimiter = if name.contains(".tsv") { b'\t' } else { b',' };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(compressed::open(path)?);
        let header = reader.byte_headers().map_err(|error| bad(path, error))?.clone();
        // Some programs open the file with a byte order mark, which is no part of the first name.
        let names: Vec<String> =
            header.iter().map(|cell| String::from_utf8_lossy(cell).trim_start_matches('\u{feff}').to_owned()).collect();
        let place = |wanted: &str| names.iter().position(|name| name == wanted);
        let text_column = place(&fields.text).ok_or_else(|| RegistryError::no_column(path, &fields.text, &names))?;
        let id_column = place(&fields.id);
        Ok(Self { reader, path: path.to_owned(), id_column, text_column, next_row: 1, record: csv::ByteRecord::new() })
    }

    fn cell(&self, column: usize) -> Result<String, RegistryError> {
        let bytes = self.record.get(column).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let offset = error.valid_up_to();
                let (path, line, byte) = (self.path.clone(), self.next_row, bytes[offset]);
                Err(RegistryError::NotUtf8 { path, line, offset, byte })
            }
        }
    }
}

impl RecordSource for Csv {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        let (first_row, mut pairs, mut len_bytes) = (self.next_row, Vec::new(), 0);
        while len_bytes < BATCH_BYTES {
            let more = self.reader.read_byte_record(&mut self.record).map_err(|error| bad(&self.path, error))?;
            if !more {
                break;
            }
            if self.record.as_slice().len() as u64 > 4 * LINE_CAP_BYTES {
                let reason = format!("expected a row of at most {} bytes, found a longer one", 4 * LINE_CAP_BYTES);
                return Err(RegistryError::BadRecord { path: self.path.clone(), line: self.next_row, reason });
            }
            let id = self.id_column.map(|column| self.cell(column)).transpose()?;
            let text = self.cell(self.text_column)?;
            len_bytes += text.len() + 64;
            pairs.push((id, Some(text)));
            self.next_row += 1;
        }
        Ok((!pairs.is_empty()).then_some(Batch::Pairs { first_row, pairs }))
    }
}
