//! The GGUF container (versions 2 and 3, little-endian): metadata, tensor table, data. What the entries mean for a model
//! lives in `model`.
//!
//! Nothing in the file is believed before it is compared with the file's length: counts, string lengths, shapes and offsets
//! are capped, sums are checked, names must be new, data must lie inside, aligned, and no two tensors may overlap.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::blocks::{Kind, SUPPORTED};
use crate::error::ModelError;

const MAGIC: [u8; 4] = *b"GGUF";

/// More entries than this has no file of one model.
const MAX_ENTRIES: u64 = 1 << 17;

/// A name longer than this is not one.
const MAX_NAME_BYTES: u64 = 256;

/// Texts beyond this are passed over (chat templates); so are lists of more than [`MAX_LIST`] numbers (vocabularies).
const MAX_TEXT_BYTES: u64 = 1024;

const MAX_LIST: u64 = 4096;

/// Numbers in all lists that are kept: what a file costs in memory does not grow with its length.
const MAX_LISTED: u64 = 1 << 16;

/// Numbers in one tensor.
const MAX_NUMBERS: u64 = 1 << 40;

/// Bytes that are decoded at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A metadata value, as far as models need it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    /// Any integer.
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
    /// Too long, or a list of texts: its length.
    Skipped(u64),
}

/// A tensor's line in the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Slowest dimension first (the file has the fastest first).
    pub shape: Vec<usize>,
    pub kind: Kind,
    /// From the start of the data.
    offset: u64,
    len_bytes: u64,
}

impl Entry {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An opened file.
#[derive(Debug)]
pub(crate) struct Container<R> {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Entry>,
    source: Source<R>,
    data: u64,
}

impl<R: Read + Seek> Container<R> {
    /// Reads header and tables; `path` is for messages.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Format`] for anything that is not so; [`ModelError::Tensor`] for a number type or
    /// a shape that is not read.
    pub fn open(reader: R, path: &Path) -> Result<Self, ModelError> {
        let mut source = Source::new(reader, path)?;
        let magic = source.bytes::<4>()?;
        if magic != MAGIC {
            return Err(source.bad("a GGUF file", format!("it begins with {magic:02x?}")));
        }
        let version = source.u32()?;
        if !(2..=3).contains(&version) {
            let found =
                if (1..=3).contains(&version.swap_bytes()) { "a big-endian file".into() } else { version.to_string() };
            return Err(source.bad("version 2 or 3, little-endian", found));
        }
        let n_tensors = source.count("tensors")?;
        let n_entries = source.count("metadata entries")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..n_entries {
            let name = source.text(MAX_NAME_BYTES)?;
            let kind = source.u32()?;
            let value = source.value(kind, 0)?;
            if metadata.insert(name.clone(), value).is_some() {
                return Err(source.bad("every metadata key once", format!("{name:?} twice")));
            }
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..n_tensors {
            let name = source.text(MAX_NAME_BYTES)?;
            let entry = source.entry(&name)?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(source.bad("every tensor once", format!("{name:?} twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n)) if (1..=1 << 16).contains(n) && (*n as u64).is_power_of_two() => *n as u64,
            Some(other) => return Err(source.bad("general.alignment a power of two up to 65536", format!("{other:?}"))),
        };
        // Both are at most the file's length: no sum here overflows.
        let data = source.at.next_multiple_of(alignment);
        let container = Self { metadata, tensors, source, data };
        container.check_places(alignment)?;
        Ok(container)
    }

    fn check_places(&self, alignment: u64) -> Result<(), ModelError> {
        let room = self.source.len.saturating_sub(self.data);
        let mut places: Vec<(u64, u64, &str)> = vec![];
        for (name, entry) in &self.tensors {
            let end = entry.offset.checked_add(entry.len_bytes).filter(|&end| end <= room);
            let Some(end) = end else {
                let found = format!("tensor {name:?} of {} bytes at {}", entry.len_bytes, entry.offset);
                return Err(self.source.bad(&format!("{room} bytes of data to hold every tensor"), found));
            };
            if !entry.offset.is_multiple_of(alignment) {
                let found = format!("tensor {name:?} at {}", entry.offset);
                return Err(self.source.bad(&format!("tensors at multiples of {alignment}"), found));
            }
            places.push((entry.offset, end, name));
        }
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            None => Ok(()),
            Some(pair) => {
                let found = format!("{:?} and {:?} overlap", pair[0].2, pair[1].2);
                Err(self.source.bad("each tensor in a place of its own", found))
            }
        }
    }

    /// Decodes a tensor of the table into `out`, which has its length.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn read(&mut self, entry: &Entry, out: &mut [f32]) -> Result<(), ModelError> {
        assert_eq!(out.len(), entry.len(), "a tensor goes into a place of its length");
        let (len, width) = (entry.kind.block_len(), entry.kind.block_bytes());
        let blocks = CHUNK_BYTES / width;
        let mut buffer = vec![0u8; (blocks * width).min(entry.len_bytes as usize)];
        self.source.seek(self.data + entry.offset)?;
        for out in out.chunks_mut(blocks * len) {
            let bytes = &mut buffer[..out.len() / len * width];
            self.source.fill(bytes)?;
            entry.kind.decode(bytes, out);
        }
        Ok(())
    }
}

impl<R: Read + Seek> Container<R> {
    /// True if two tensors are the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn same_bytes(&mut self, a: &Entry, b: &Entry) -> Result<bool, ModelError> {
        if a.len_bytes != b.len_bytes {
            return Ok(false);
        }
        let size = (CHUNK_BYTES as u64).min(a.len_bytes) as usize;
        let (mut x, mut y) = (vec![0; size], vec![0; size]);
        for start in (0..a.len_bytes).step_by(size) {
            let n = (a.len_bytes - start).min(size as u64) as usize;
            self.source.seek(self.data + a.offset + start)?;
            self.source.fill(&mut x[..n])?;
            self.source.seek(self.data + b.offset + start)?;
            self.source.fill(&mut y[..n])?;
            if x[..n] != y[..n] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A reader that knows where it is and where the file ends.
#[derive(Debug)]
struct Source<R> {
    reader: R,
    path: PathBuf,
    at: u64,
    len: u64,
    /// Numbers that lists hold already.
    listed: u64,
}

impl<R: Read + Seek> Source<R> {
    fn new(mut reader: R, path: &Path) -> Result<Self, ModelError> {
        let mut measure = || {
            let len = reader.seek(SeekFrom::End(0))?;
            reader.rewind()?;
            Ok(len)
        };
        let len = measure().map_err(ModelError::io("read", path))?;
        Ok(Self { reader, path: path.into(), at: 0, len, listed: 0 })
    }

    fn bad(&self, expected: &str, found: String) -> ModelError {
        ModelError::Format { path: self.path.clone(), expected: expected.into(), found }
    }

    fn left(&self) -> u64 {
        self.len.saturating_sub(self.at)
    }

    /// Refuses a length that the rest of the file cannot hold.
    fn expect_room(&self, bytes: u64) -> Result<(), ModelError> {
        if bytes > self.left() {
            let expected = format!("{bytes} more bytes after byte {}", self.at);
            return Err(self.bad(&expected, format!("{} (the file is cut off, or lies)", self.left())));
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), ModelError> {
        self.expect_room(out.len() as u64)?;
        self.reader.read_exact(out).map_err(ModelError::io("read", &self.path))?;
        self.at += out.len() as u64;
        Ok(())
    }

    fn seek(&mut self, to: u64) -> Result<(), ModelError> {
        self.reader.seek(SeekFrom::Start(to)).map_err(ModelError::io("read", &self.path))?;
        self.at = to;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.expect_room(bytes)?;
        // A buffered reader keeps its buffer for short ways.
        self.reader.seek_relative(bytes as i64).map_err(ModelError::io("read", &self.path))?;
        self.at += bytes;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self, of: &str) -> Result<u64, ModelError> {
        let n = self.u64()?;
        if n > MAX_ENTRIES {
            return Err(self.bad(&format!("at most {MAX_ENTRIES} {of}"), n.to_string()));
        }
        Ok(n)
    }

    fn text(&mut self, max_bytes: u64) -> Result<String, ModelError> {
        let len = self.u64()?;
        if len > max_bytes {
            return Err(self.bad(&format!("a name of at most {max_bytes} bytes"), format!("one of {len}")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| self.bad("names in UTF-8", error.to_string()))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Integer(self.bytes::<1>()?[0].into()),
            1 => Value::Integer((self.bytes::<1>()?[0] as i8).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => match self.bytes::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.bad("a truth value of 0 or 1", other.to_string())),
            },
            8 => {
                let len = self.u64()?;
                if len > MAX_TEXT_BYTES {
                    self.skip(len)?;
                    return Ok(Value::Skipped(len));
                }
                let mut bytes = vec![0; len as usize];
                self.fill(&mut bytes)?;
                // Texts of a tokenizer need not be UTF-8; those that a model needs are.
                String::from_utf8(bytes).map_or(Value::Skipped(len), Value::Text)
            }
            9 => self.list(depth)?,
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.bad("a metadata type of 0 to 12", other.to_string())),
        })
    }

    fn list(&mut self, depth: u32) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let len = self.u64()?;
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            // A text has a length, a list a type and a length.
            8 => 8,
            9 if depth == 0 => 12,
            9 => return Err(self.bad("lists of lists at most", "lists of lists of lists".into())),
            other => return Err(self.bad("a metadata type of 0 to 12", other.to_string())),
        };
        let room = len.checked_mul(width).ok_or_else(|| self.bad("a list that fits the file", len.to_string()))?;
        self.expect_room(room)?;
        match kind {
            8 | 9 => {
                for _ in 0..len {
                    if kind == 8 {
                        let text = self.u64()?;
                        self.skip(text)?;
                    } else {
                        self.list(depth + 1)?;
                    }
                }
                Ok(Value::Skipped(len))
            }
            _ if len > MAX_LIST || self.listed + len > MAX_LISTED => {
                self.skip(room)?;
                Ok(Value::Skipped(len))
            }
            _ => {
                self.listed += len;
                Ok(Value::List((0..len).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>()?))
            }
        }
    }

    fn entry(&mut self, name: &str) -> Result<Entry, ModelError> {
        let wrong = |path: &Path, expected: String, found: String| {
            Err(ModelError::Tensor { path: path.into(), tensor: name.into(), expected, found })
        };
        let n_dims = self.u32()?;
        if !(1..=4).contains(&n_dims) {
            return wrong(&self.path, "1 to 4 dimensions".into(), n_dims.to_string());
        }
        let mut dims = vec![];
        for _ in 0..n_dims {
            dims.push(self.u64()?);
        }
        let numbers = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let id = self.u32()?;
        let offset = self.u64()?;
        let Some(numbers) = numbers.filter(|n| (1..=MAX_NUMBERS).contains(n)) else {
            return wrong(&self.path, format!("1 to {MAX_NUMBERS} numbers"), format!("dimensions {dims:?}"));
        };
        let Some(kind) = Kind::from_id(id) else {
            return wrong(&self.path, SUPPORTED.into(), format!("ggml type {id}"));
        };
        if !dims[0].is_multiple_of(kind.block_len() as u64) {
            let expected = format!("rows of whole blocks of {} ({kind:?})", kind.block_len());
            return wrong(&self.path, expected, format!("rows of {}", dims[0]));
        }
        let len_bytes = numbers / kind.block_len() as u64 * kind.block_bytes() as u64;
        let shape = dims.iter().rev().map(|&dim| dim as usize).collect();
        Ok(Entry { shape, kind, offset, len_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    /// A file with the given tensors (name, dimensions, type, offset), metadata already encoded, and 64 bytes of data.
    fn file(tensors: &[(&str, &[u64], u32, u64)], n_entries: u64, metadata: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(n_entries.to_le_bytes());
        bytes.extend(metadata);
        for (name, dims, kind, offset) in tensors {
            text(&mut bytes, name);
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32) + 64, 1);
        bytes
    }

    fn entry(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        text(&mut bytes, name);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<Container<Cursor<Vec<u8>>>, ModelError> {
        Container::open(Cursor::new(bytes), Path::new("model.gguf"))
    }

    #[track_caller]
    fn refused(bytes: Vec<u8>, part: &str) {
        let message = open(bytes).expect_err("a lie must be refused").to_string();
        assert!(message.contains("model.gguf") && message.contains("expected") && message.contains(part), "{message}");
    }

    #[test]
    fn tables_are_read() {
        let mut metadata = entry("a", 4, &7u32.to_le_bytes());
        metadata.extend(entry("b", 9, &[&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0, 1]].concat()));
        let mut words = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        text(&mut words, "word");
        metadata.extend(entry("c", 9, &words));
        let mut opened = open(file(&[("x", &[2, 3], 0, 32), ("y", &[4], 1, 0)], 3, &metadata)).unwrap();
        assert_eq!(opened.metadata["a"], Value::Integer(7));
        assert_eq!(opened.metadata["b"], Value::List(vec![Value::Bool(false), Value::Bool(true)]));
        assert_eq!(opened.metadata["c"], Value::Skipped(1));
        let x = opened.tensors["x"].clone();
        assert_eq!(x.shape, [3, 2]);
        let mut numbers = [0.0; 6];
        opened.read(&x, &mut numbers).unwrap();
        assert_eq!(numbers, [f32::from_le_bytes([1; 4]); 6]);
    }

    #[test]
    fn lies_are_refused() {
        let good = || file(&[("x", &[4], 0, 0)], 0, &[]);
        let spoilt = |at: usize, with: &[u8]| {
            let mut bytes = good();
            bytes[at..at + with.len()].copy_from_slice(with);
            bytes
        };
        open(good()).unwrap();
        refused(spoilt(0, b"GGML"), "a GGUF file");
        refused(spoilt(4, &9u32.to_le_bytes()), "version 2 or 3");
        refused(spoilt(4, &3u32.to_be_bytes()), "big-endian");
        refused(spoilt(8, &u64::MAX.to_le_bytes()), "tensors");
        refused(spoilt(16, &(1u64 << 40).to_le_bytes()), "metadata entries");
        refused(spoilt(24, &u64::MAX.to_le_bytes()), "a name of at most");
        refused(good()[..20].to_vec(), "more bytes");
        refused(file(&[("x", &[4], 4, 0)], 0, &[]), "ggml type 4");
        refused(file(&[("x", &[4], 2, 0)], 0, &[]), "whole blocks of 32");
        refused(file(&[("x", &[], 0, 0)], 0, &[]), "1 to 4 dimensions");
        refused(file(&[("x", &[0], 0, 0)], 0, &[]), "numbers");
        refused(file(&[("x", &[1 << 62, 1 << 62], 0, 0)], 0, &[]), "numbers");
        refused(file(&[("x", &[17], 0, 0)], 0, &[]), "64 bytes of data");
        refused(file(&[("x", &[4], 0, u64::MAX - 15)], 0, &[]), "64 bytes of data");
        refused(file(&[("x", &[4], 0, 8)], 0, &[]), "multiples of 32");
        refused(file(&[("x", &[4], 0, 0), ("x", &[4], 0, 32)], 0, &[]), "once");
        refused(file(&[("x", &[12], 0, 0), ("y", &[4], 0, 32)], 0, &[]), "overlap");
        refused(file(&[], 1, &entry("a", 13, &[])), "0 to 12");
        refused(file(&[], 1, &entry("a", 7, &[2])), "truth value");
        refused(file(&[], 2, &[entry("a", 0, &[1]), entry("a", 0, &[1])].concat()), "once");
        refused(file(&[], 1, &entry("general.alignment", 4, &3u32.to_le_bytes())), "power of two");
        let long = [&0u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        refused(file(&[], 1, &entry("a", 9, &long)), "more bytes");
        let lists =
            |of: u32| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &of.to_le_bytes(), &0u64.to_le_bytes()].concat();
        open(file(&[], 1, &entry("a", 9, &lists(0)))).unwrap();
        refused(file(&[], 1, &entry("a", 9, &lists(9))), "lists of lists");
    }

    /// `gguf`'s own package wrote the file and decoded it: equal to the bit.
    #[test]
    fn every_number_type_decodes_as_llama_cpp_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
        let path = folder.join("types.gguf");
        let mut file = Container::open(std::io::BufReader::new(std::fs::File::open(&path).unwrap()), &path).unwrap();
        let bytes = std::fs::read(folder.join("types.safetensors")).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensors.len(), 15);
        for (name, entry) in file.tensors.clone() {
            let mut numbers = vec![f32::NAN; 512];
            file.read(&entry, &mut numbers).unwrap();
            let expected = reference.tensor(&name).unwrap();
            assert_eq!(entry.shape, expected.shape());
            let decoded: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(decoded == expected.data(), "{name}: {:?}", &numbers[..8]);
        }
    }
}
