//! Factor files: named f32 and f64 tensors with a checksum, in safetensors. Curvature factors and calibrations are kept
//! in them; what the names mean is the business of the methods.
//!
//! Metadata keys: `ascribe.format_version`, `ascribe.kind`, `ascribe.spec`, `ascribe.blake3`, and the caller's own. The
//! checksum is BLAKE3 over the file's head as it is without that key, followed by the data section: it covers names,
//! shapes, metadata and numbers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use ascribe_core::Digest;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::Dtype;

use crate::atomic::write_atomic;
use crate::error::StoreError;
use crate::mmap::Map;
use crate::tensors::{self, PAD_PREFIX, Table, Tensor};

/// Version of the layout above.
pub const FACTORS_FORMAT_VERSION: u32 = 1;
/// Prefix of the metadata keys of the format itself.
const OWN_PREFIX: &str = "ascribe.";
const KEY_VERSION: &str = "ascribe.format_version";
const KEY_KIND: &str = "ascribe.kind";
const KEY_SPEC: &str = "ascribe.spec";
const KEY_BLAKE3: &str = "ascribe.blake3";

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum FactorData {
    /// Single precision.
    F32(ArrayD<f32>),
    /// Double precision.
    F64(ArrayD<f64>),
}

impl FactorData {
    /// The f64 tensor, if it is one.
    pub fn as_f64(&self) -> Option<&ArrayD<f64>> {
        if let Self::F64(array) = self { Some(array) } else { None }
    }

    /// The f32 tensor, if it is one.
    pub fn as_f32(&self) -> Option<&ArrayD<f32>> {
        if let Self::F32(array) = self { Some(array) } else { None }
    }

    fn to_tensor(&self, name: &str) -> Tensor<'static> {
        match self {
            Self::F32(array) => {
                let bytes: Vec<u8> = array.iter().flat_map(|x| x.to_le_bytes()).collect();
                Tensor::new(name, Dtype::F32, array.shape(), bytes)
            }
            Self::F64(array) => {
                let bytes: Vec<u8> = array.iter().flat_map(|x| x.to_le_bytes()).collect();
                Tensor::new(name, Dtype::F64, array.shape(), bytes)
            }
        }
    }

    /// First number that is not finite, with its place in row-major order.
    fn not_finite(&self) -> Option<(usize, String)> {
        match self {
            Self::F32(array) => array.iter().enumerate().find(|(_, x)| !x.is_finite()).map(|(i, x)| (i, x.to_string())),
            Self::F64(array) => array.iter().enumerate().find(|(_, x)| !x.is_finite()).map(|(i, x)| (i, x.to_string())),
        }
    }
}

/// What one factor file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorFile {
    /// What it is (`block_fisher`, `calibration`).
    pub kind: String,
    /// Hash of the spec that the factors were fitted on.
    pub spec: Digest,
    /// Settings of the fit, for people and for checks. Keys must not begin with `ascribe.`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors. Names must not begin with `_`.
    pub tensors: BTreeMap<String, FactorData>,
}

impl FactorFile {
    /// An empty file of this kind and spec.
    pub fn new(kind: &str, spec: Digest) -> Self {
        Self { kind: kind.to_owned(), spec, metadata: BTreeMap::new(), tensors: BTreeMap::new() }
    }

    /// Writes the file, whole or not at all. Same content, same bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFinite`] names the tensor; [`StoreError::Malformed`] for a reserved name;
    /// [`StoreError::DiskFull`] and [`StoreError::Io`] leave the old file.
    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        for (name, data) in &self.tensors {
            if name.starts_with('_') {
                return Err(StoreError::malformed(path, "name of a tensor", "one without a leading `_`", name));
            }
            if let Some((i, found)) = data.not_finite() {
                return Err(StoreError::NotFinite { place: format!("tensor `{name}`, number {i}"), found });
            }
        }
        if let Some(key) = self.metadata.keys().find(|k| k.starts_with(OWN_PREFIX)) {
            return Err(StoreError::malformed(path, "metadata key", "one not beginning with `ascribe.`", key));
        }
        let tensors: Vec<Tensor<'_>> = self.tensors.iter().map(|(name, data)| data.to_tensor(name)).collect();
        let mut metadata = self.metadata.clone();
        metadata.insert(KEY_VERSION.to_owned(), FACTORS_FORMAT_VERSION.to_string());
        metadata.insert(KEY_KIND.to_owned(), self.kind.clone());
        metadata.insert(KEY_SPEC.to_owned(), self.spec.to_string());
        let mut sum = Hasher(blake3::Hasher::new());
        tensors::write(&mut sum, path, &tensors, &metadata)?;
        metadata.insert(KEY_BLAKE3.to_owned(), sum.0.finalize().to_hex().to_string());
        let mut bytes = Vec::new();
        tensors::write(&mut bytes, path, &tensors, &metadata)?;
        write_atomic(path, &bytes)
    }

    /// Reads a file back; with `expected_spec`, only if it was fitted on that spec.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Malformed`], [`StoreError::WrongVersion`], [`StoreError::WrongChecksum`],
    /// [`StoreError::SettingMismatch`] if it is of another spec.
    pub fn read(path: &Path, expected_spec: Option<Digest>) -> Result<Self, StoreError> {
        let map = Map::open(path)?;
        let table = Table::read(path, &map)?;
        check_version(path, &table)?;
        let mut metadata: BTreeMap<String, String> =
            table.metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let expected = table.key(path, KEY_BLAKE3)?.to_owned();
        metadata.remove(KEY_BLAKE3);
        let found = checksum(path, &table, &metadata, &map[table.data_start..])?;
        if found != expected {
            return Err(StoreError::WrongChecksum { path: path.to_path_buf(), expected, found });
        }
        let spec_text = table.key(path, KEY_SPEC)?;
        let spec: Digest = spec_text.parse().map_err(|e| StoreError::malformed(path, KEY_SPEC, "64 hex digits", e))?;
        if let Some(expected) = expected_spec.filter(|e| *e != spec) {
            return Err(StoreError::SettingMismatch {
                path: path.to_path_buf(),
                setting: "spec",
                expected: expected.to_string(),
                found: spec.to_string(),
            });
        }
        let kind = table.key(path, KEY_KIND)?.to_owned();
        metadata.retain(|key, _| !key.starts_with(OWN_PREFIX));
        let mut file = Self { kind, spec, metadata, tensors: BTreeMap::new() };
        for name in table.metadata.offset_keys().into_iter().filter(|n| !n.starts_with(PAD_PREFIX)) {
            let data = decode(path, &table, &name, &map)?;
            file.tensors.insert(name, data);
        }
        Ok(file)
    }
}

fn check_version(path: &Path, table: &Table) -> Result<(), StoreError> {
    let text = table.key(path, KEY_VERSION)?;
    let found: u32 = text.parse().map_err(|_| StoreError::malformed(path, KEY_VERSION, "a number", text))?;
    if found != FACTORS_FORMAT_VERSION {
        let (path, expected) = (path.to_path_buf(), FACTORS_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "factor file", expected, found });
    }
    Ok(())
}

/// The checksum of a file with this table, metadata (without the checksum itself) and data section.
fn checksum(
    path: &Path,
    table: &Table,
    metadata: &BTreeMap<String, String>,
    data: &[u8],
) -> Result<String, StoreError> {
    let names = table.metadata.offset_keys();
    let tensors: Vec<_> = names
        .iter()
        .filter(|name| !name.starts_with(PAD_PREFIX))
        .filter_map(|name| table.metadata.info(name).map(|info| (name, info)))
        .map(|(name, info)| {
            let len_bytes = info.data_offsets.1 - info.data_offsets.0;
            (name.as_str(), info.dtype, info.shape.as_slice(), len_bytes)
        })
        .collect();
    let head = tensors::head(&tensors, metadata).map_err(|error| StoreError::malformed(path, "head", "JSON", error))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    hasher.update(data);
    Ok(hasher.finalize().to_hex().to_string())
}

fn decode(path: &Path, table: &Table, name: &str, map: &Map) -> Result<FactorData, StoreError> {
    let info = table.metadata.info(name).expect("the name comes from the same table");
    let range = table.data_start + info.data_offsets.0..table.data_start + info.data_offsets.1;
    let (bytes, shape) = (&map[range], IxDyn(&info.shape));
    let bad_shape = |error| StoreError::malformed(path, "shape of a tensor", "one that fits its bytes", error);
    match info.dtype {
        Dtype::F32 => {
            let numbers = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Ok(FactorData::F32(ArrayD::from_shape_vec(shape, numbers).map_err(bad_shape)?))
        }
        Dtype::F64 => {
            let numbers = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            Ok(FactorData::F64(ArrayD::from_shape_vec(shape, numbers).map_err(bad_shape)?))
        }
        other => Err(StoreError::malformed(path, "type of a tensor", "F32 or F64", format!("{other:?}"))),
    }
}

struct Hasher(blake3::Hasher);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
