//! Arrow IPC files and streams (what Hugging Face `datasets` saves), and the two columns of any record batch.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::{root_as_footer, root_as_message};

use super::{Batch, Fields, Pair, RecordSource, bad, catching};
use crate::error::RegistryError;
use crate::files;

/// First bytes of the file form; a stream has none.
const FILE_MAGIC: &[u8] = b"ARROW1";

/// Largest metadata of a message that is believed.
const METADATA_CAP_BYTES: u64 = 16 << 20;

/// Largest footer of the file form that is believed: 24 bytes a batch.
const FOOTER_CAP_BYTES: u64 = 256 << 20;

/// What ends the file form: the footer's length and the magic.
const FILE_END_LEN: u64 = 4 + FILE_MAGIC.len() as u64;

/// Rows that are handed on at once.
const SLICE_ROWS: usize = 4096;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, arrow::error::ArrowError>> + Send>;

pub(super) struct Arrow {
    batches: Batches,
    path: PathBuf,
    fields: Fields,
    next_row: u64,
    /// A batch of which rows from `.1` on were not handed on yet.
    current: Option<(RecordBatch, usize)>,
}

impl Arrow {
    pub(super) fn open(path: &Path, fields: &Fields) -> Result<Self, RegistryError> {
        catching(path, || {
            let mut file = files::open(path, "source file")?;
            let len_bytes = file.metadata().map_err(RegistryError::io(path, "reading"))?.len();
            let mut magic = [0; FILE_MAGIC.len()];
            let is_file = len_bytes > 8
                && file
                    .read_exact(&mut magic)
                    .map_err(RegistryError::io(path, "reading"))
                    .map(|()| magic == FILE_MAGIC)?;
            // The messages of the file form begin after the magic and its padding.
            check_messages(path, &mut file, if is_file { 8 } else { 0 }, len_bytes)?;
            if is_file {
                check_footer(path, &mut file, len_bytes)?;
            }
            file.seek(SeekFrom::Start(0)).map_err(RegistryError::io(path, "reading"))?;
            let refuse = |error| bad(path, error);
            let (schema, batches): (_, Batches) = if is_file {
                let reader = FileReader::try_new_buffered(file, None).map_err(refuse)?;
                (reader.schema(), Box::new(reader))
            } else {
                let reader = StreamReader::try_new(BufReader::new(file), None).map_err(refuse)?;
                (reader.schema(), Box::new(reader))
            };
            check_columns(path, &schema, fields)?;
            Ok(Self { batches, path: path.to_owned(), fields: fields.clone(), next_row: 1, current: None })
        })
    }
}

impl RecordSource for Arrow {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        let (batch, start) = match self.current.take() {
            Some(current) => current,
            None => match self.batches.next() {
                None => return Ok(None),
                Some(batch) => (batch.map_err(|error| bad(&self.path, error))?, 0),
            },
        };
        let n_rows = SLICE_ROWS.min(batch.num_rows() - start);
        let pairs = pairs_of(&self.path, &batch.slice(start, n_rows), &self.fields)?;
        if start + n_rows < batch.num_rows() {
            self.current = Some((batch, start + n_rows));
        }
        let first_row = self.next_row;
        self.next_row += n_rows as u64;
        Ok(Some(Batch::Pairs { first_row, pairs }))
    }
}

/// Walks the messages and compares every claimed length with what the file has left: the library allocates a body before
/// it reads it.
fn check_messages(path: &Path, file: &mut File, start: u64, len_bytes: u64) -> Result<(), RegistryError> {
    let io = |error| RegistryError::io(path, "reading")(error);
    let too_long = |what: &str, at: u64, found: u64| {
        let expected = format!("at most the {} bytes that the file has left", len_bytes.saturating_sub(at));
        RegistryError::field(path, format!("{what} of the message at byte {at}"), expected, found)
    };
    let mut at = start;
    while at + 8 <= len_bytes {
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(io)?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        // A marker of four 0xff bytes stands before the length since version 0.15 of the format.
        let (metadata_len, header_len) = if word(0) == u32::MAX { (word(4), 8) } else { (word(0), 4) };
        if metadata_len == 0 {
            return Ok(());
        }
        let body_at = at + header_len + u64::from(metadata_len);
        if u64::from(metadata_len) > METADATA_CAP_BYTES || body_at > len_bytes {
            return Err(too_long("metadata length", at, metadata_len.into()));
        }
        let mut metadata = vec![0; metadata_len as usize];
        file.seek(SeekFrom::Start(at + header_len)).map_err(io)?;
        file.read_exact(&mut metadata).map_err(io)?;
        let message = root_as_message(&metadata).map_err(|error| bad(path, error))?;
        let body_len = u64::try_from(message.bodyLength()).unwrap_or(u64::MAX);
        if body_len > len_bytes - body_at {
            return Err(too_long("body length", at, body_len));
        }
        at = body_at + body_len;
    }
    Ok(())
}

/// The file form lists its messages once more at its end, and the library allocates what that list claims.
fn check_footer(path: &Path, file: &mut File, len_bytes: u64) -> Result<(), RegistryError> {
    let io = |error| RegistryError::io(path, "reading")(error);
    let before_end = len_bytes.saturating_sub(FILE_END_LEN);
    file.seek(SeekFrom::Start(before_end)).map_err(io)?;
    let mut len = [0; 4];
    file.read_exact(&mut len).map_err(io)?;
    let footer_len = u64::from(u32::from_le_bytes(len));
    let cap = before_end.min(FOOTER_CAP_BYTES);
    if footer_len > cap {
        return Err(RegistryError::field(path, "length of the footer", format!("at most {cap} bytes"), footer_len));
    }
    let mut footer = vec![0; footer_len as usize];
    file.seek(SeekFrom::Start(before_end - footer_len)).map_err(io)?;
    file.read_exact(&mut footer).map_err(io)?;
    let footer = root_as_footer(&footer).map_err(|error| bad(path, error))?;
    let part = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    for block in footer.recordBatches().into_iter().flatten().chain(footer.dictionaries().into_iter().flatten()) {
        let parts = [block.offset(), block.metaDataLength().into(), block.bodyLength()];
        let end = parts.into_iter().fold(0, |sum: u64, n| sum.saturating_add(part(n)));
        if end > len_bytes {
            let expected = format!("one that ends within the {len_bytes} bytes of the file");
            return Err(RegistryError::field(path, "a block of the footer", expected, end));
        }
    }
    Ok(())
}

/// Checks that the columns are there and can be read; gives the names that are read.
pub(super) fn check_columns(path: &Path, schema: &Schema, fields: &Fields) -> Result<Vec<String>, RegistryError> {
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let mut found = Vec::new();
    for (wanted, needed) in [(&fields.id, false), (&fields.text, true)] {
        match schema.column_with_name(wanted) {
            Some((_, field)) if is_readable(field.data_type(), needed) => found.push(wanted.clone()),
            Some((_, field)) => {
                let expected = if needed { "a column of strings" } else { "a column of strings or integers" };
                return Err(RegistryError::field(path, format!("column {wanted:?}"), expected, field.data_type()));
            }
            None if needed => return Err(RegistryError::no_column(path, wanted, &names)),
            None => (),
        }
    }
    Ok(found)
}

fn is_readable(ty: &DataType, only_text: bool) -> bool {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => matches!(**value, DataType::Utf8 | DataType::LargeUtf8),
        ty => !only_text && ty.is_integer(),
    }
}

/// Ids and texts of a batch.
pub(super) fn pairs_of(path: &Path, batch: &RecordBatch, fields: &Fields) -> Result<Vec<Pair>, RegistryError> {
    let column = |name: &str| -> Result<Option<Vec<Option<String>>>, RegistryError> {
        let Some(array) = batch.column_by_name(name) else { return Ok(None) };
        let strings = cast(array, &DataType::LargeUtf8).map_err(|error| bad(path, error))?;
        let strings = strings.as_string::<i64>();
        let value = |i: usize| strings.is_valid(i).then(|| strings.value(i).to_owned());
        Ok(Some((0..strings.len()).map(value).collect()))
    };
    let texts = column(&fields.text)?.unwrap_or_default();
    let ids = column(&fields.id)?.unwrap_or_else(|| vec![None; texts.len()]);
    Ok(ids.into_iter().zip(texts).collect())
}
