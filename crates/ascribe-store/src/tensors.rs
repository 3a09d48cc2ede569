//! Safetensors files with fixed bytes: sorted metadata, tensors in the given order, every tensor 64-byte aligned.
//!
//! The `safetensors` crate reads what is written here (and checks it), but its writer takes metadata from a hash map
//! (bytes differ from run to run) and aligns to 8 only. The format forbids gaps between tensors, so the room up to the
//! next multiple of 64 is a tensor of its own, named [`PAD_PREFIX`] and a number; readers ignore it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Serialize;

use crate::error::StoreError;
use crate::limits::TENSOR_HEAD_MAX_BYTES;

/// Name of the filling between two tensors.
pub const PAD_PREFIX: &str = "_pad.";
/// Start of every tensor, in the file and in the data section.
pub(crate) const ALIGN: usize = 64;
const LEN_BYTES: usize = 8;

/// A tensor to write.
pub struct Tensor<'a> {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// A tensor of this name, type and shape over `bytes`, which must be as long as both say.
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(&'a BTreeMap<String, String>),
    Tensor { dtype: String, shape: &'a [usize], data_offsets: [usize; 2] },
}

/// The head for tensors given as `(name, dtype, shape, length)`, padded so that the data section starts aligned.
///
/// # Errors
/// A name or a metadata value that JSON cannot hold.
pub fn head(
    tensors: &[(&str, Dtype, &[usize], usize)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, serde_json::Error> {
    let pads = pad_lens(tensors.iter().map(|t| t.3));
    let pad_names: Vec<String> = (0..pads.len()).map(|i| format!("{PAD_PREFIX}{i}")).collect();
    let mut entries: BTreeMap<&str, Entry<'_>> = BTreeMap::new();
    entries.insert("__metadata__", Entry::Metadata(metadata));
    let mut offset = 0;
    for (i, &(name, dtype, shape, len_bytes)) in tensors.iter().enumerate() {
        let data_offsets = [offset, offset + len_bytes];
        entries.insert(name, Entry::Tensor { dtype: dtype.to_string(), shape, data_offsets });
        offset += len_bytes;
        if pads[i] > 0 {
            let (shape, data_offsets) = (std::slice::from_ref(&pads[i]), [offset, offset + pads[i]]);
            entries.insert(&pad_names[i], Entry::Tensor { dtype: Dtype::U8.to_string(), shape, data_offsets });
            offset += pads[i];
        }
    }
    let json = serde_json::to_vec(&entries)?;
    let len_padded = (LEN_BYTES + json.len()).next_multiple_of(ALIGN) - LEN_BYTES;
    let mut head = Vec::with_capacity(LEN_BYTES + len_padded);
    head.extend_from_slice(&(len_padded as u64).to_le_bytes());
    head.extend_from_slice(&json);
    head.resize(LEN_BYTES + len_padded, b' ');
    Ok(head)
}

/// Filling after each tensor; none after the last.
fn pad_lens(lens: impl ExactSizeIterator<Item = usize>) -> Vec<usize> {
    let n_tensors = lens.len();
    lens.enumerate().map(|(i, len)| if i + 1 == n_tensors { 0 } else { len.next_multiple_of(ALIGN) - len }).collect()
}

/// Length of the file that [`write`] writes.
///
/// # Errors
/// As [`write`], but for those of a file.
pub(crate) fn len(path: &Path, tensors: &[Tensor<'_>], metadata: &BTreeMap<String, String>) -> Result<u64, StoreError> {
    let data: usize = tensors.iter().map(|t| t.bytes.len()).sum();
    let pads: usize = pad_lens(tensors.iter().map(|t| t.bytes.len())).iter().sum();
    Ok((head_of(path, tensors, metadata)?.len() + data + pads) as u64)
}

fn head_of(path: &Path, tensors: &[Tensor<'_>], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, StoreError> {
    let table: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.bytes.len())).collect();
    head(&table, metadata).map_err(|error| StoreError::malformed(path, "tensor head", "JSON", error))
}

/// Writes a whole file and returns its length in bytes.
///
/// Same tensors, same metadata, same bytes.
///
/// # Errors
/// Those of `out`.
pub fn write(
    out: &mut impl Write,
    path: &Path,
    tensors: &[Tensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<u64, StoreError> {
    let head = head_of(path, tensors, metadata)?;
    let write_failed = |source| StoreError::io("write", path, source);
    out.write_all(&head).map_err(write_failed)?;
    let pads = pad_lens(tensors.iter().map(|t| t.bytes.len()));
    let mut len_bytes = head.len();
    for (tensor, pad) in tensors.iter().zip(pads) {
        out.write_all(&tensor.bytes).map_err(write_failed)?;
        out.write_all(&[0; ALIGN][..pad]).map_err(write_failed)?;
        len_bytes += tensor.bytes.len() + pad;
    }
    Ok(len_bytes as u64)
}

/// The checked head of a tensor file.
pub struct Table {
    /// Names, types, shapes, offsets.
    pub metadata: Metadata,
    /// Where the data section starts.
    pub data_start: usize,
}

impl Table {
    /// Reads the head of `bytes`; every offset in it then lies inside `bytes`.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] for a head that is too long or not one of a safetensors file.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        if let Some(len) = bytes.first_chunk::<LEN_BYTES>().map(|b| u64::from_le_bytes(*b))
            && len > TENSOR_HEAD_MAX_BYTES as u64
        {
            return Err(StoreError::malformed(path, "length of the tensor head", TENSOR_HEAD_MAX_BYTES, len));
        }
        let (len, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|error| StoreError::malformed(path, "tensor head", "a safetensors file", error))?;
        Ok(Self { metadata, data_start: LEN_BYTES + len })
    }

    /// Byte range of tensor `name` in the file, which must have this type and shape.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if there is none, or one of another type or shape.
    pub fn range(
        &self,
        path: &Path,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<std::ops::Range<usize>, StoreError> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| StoreError::malformed(path, "tensors", format!("one named `{name}`"), "none"))?;
        if info.dtype != dtype || info.shape != shape {
            let found = format!("{:?} {:?}", info.dtype, info.shape);
            return Err(StoreError::malformed(path, name, format!("{dtype:?} {shape:?}"), found));
        }
        Ok(self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1)
    }

    /// Value of a metadata key.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if it is not there.
    pub fn key(&self, path: &Path, key: &'static str) -> Result<&str, StoreError> {
        let found = self.metadata.metadata().as_ref().and_then(|map| map.get(key));
        found.map(String::as_str).ok_or_else(|| StoreError::malformed(path, "metadata", format!("key `{key}`"), "none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lens: &[usize]) {
        let path = Path::new("toy");
        let data: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, &n)| vec![i as u8 + 1; n]).collect();
        let tensors: Vec<Tensor<'_>> = data
            .iter()
            .enumerate()
            .map(|(i, bytes)| Tensor::new(&format!("t{i}"), Dtype::U8, &[bytes.len()], bytes.as_slice()))
            .collect();
        let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let mut file = Vec::new();
        let len = write(&mut file, path, &tensors, &metadata).unwrap();
        assert_eq!(len as usize, file.len());
        let table = Table::read(path, &file).unwrap();
        assert_eq!(table.key(path, "b").unwrap(), "2");
        let read = SafeTensors::deserialize(&file).unwrap();
        for (i, bytes) in data.iter().enumerate() {
            let name: &'static str = ["t0", "t1", "t2"][i];
            let range = table.range(path, name, Dtype::U8, &[bytes.len()]).unwrap();
            assert_eq!(range.start % ALIGN, 0);
            assert_eq!(&file[range], bytes);
            assert_eq!(read.tensor(name).unwrap().data(), bytes);
        }
    }

    #[test]
    fn every_tensor_is_aligned_and_the_common_reader_reads_it() {
        check(&[0]);
        check(&[64, 1]);
        check(&[1, 63, 65]);
        check(&[200, 0, 8]);
    }

    #[test]
    fn a_head_that_claims_too_much_is_refused() {
        let mut file = (u64::MAX).to_le_bytes().to_vec();
        file.extend_from_slice(b"{}");
        assert!(Table::read(Path::new("toy"), &file).is_err());
        assert!(Table::read(Path::new("toy"), b"abc").is_err());
    }
}
