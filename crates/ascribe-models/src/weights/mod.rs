//! Reading and writing of tensors in safetensors files. Files are hostile: sizes are capped before anything is read,
//! every tensor is checked against the configuration, numbers must be finite.
//!
//! Weights of models, which come from anywhere, are read by `load`; files of our own (optimizer moments, training states)
//! by [`fill`].

mod load;
mod names;
mod shard;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use ascribe_core::{Digest, RowType};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::error::ModelError;
use crate::layout::{ParameterLayout, ParameterSlot};

pub(crate) use load::{Source, digest_of_file, find, load};

/// What a file may hold beside the numbers: header, names, metadata.
const MAX_OVERHEAD_BYTES: u64 = 16 << 20;

/// Reads a whole file that should hold at most `max_numbers` f32 numbers.
pub(crate) fn read_capped(path: &Path, max_numbers: usize) -> Result<Vec<u8>, ModelError> {
    let size = std::fs::metadata(path).map_err(ModelError::io("read", path))?.len();
    let cap = 4 * max_numbers as u64 + MAX_OVERHEAD_BYTES;
    if size > cap {
        let (expected, found) = (format!("at most {cap} bytes for this configuration"), format!("{size} bytes"));
        return Err(ModelError::Format { path: path.into(), expected, found });
    }
    std::fs::read(path).map_err(ModelError::io("read", path))
}

/// Opens the safetensors container in `bytes`.
pub(crate) fn open<'a>(bytes: &'a [u8], path: &Path) -> Result<SafeTensors<'a>, ModelError> {
    SafeTensors::deserialize(bytes).map_err(|error| ModelError::Format {
        path: path.into(),
        expected: "a whole safetensors file".into(),
        found: error.to_string(),
    })
}

/// Fills the flat vector of `layout` from the file's tensors named `prefix + slot name`.
///
/// # Errors
/// A missing tensor, another shape or number type, a number that is not finite.
pub(crate) fn fill(
    file: &SafeTensors<'_>,
    path: &Path,
    layout: &ParameterLayout,
    prefix: &str,
) -> Result<Vec<f32>, ModelError> {
    let mut flat = vec![0.0f32; layout.len()];
    for slot in layout.slots() {
        let name = format!("{prefix}{}", slot.name);
        read_tensor(file, path, &name, &slot.shape, &mut flat[slot.range.clone()])?;
    }
    Ok(flat)
}

/// Fills `out` from the tensor `name` of `shape`.
///
/// # Errors
/// As [`fill`].
pub(crate) fn read_tensor(
    file: &SafeTensors<'_>,
    path: &Path,
    name: &str,
    shape: &[usize],
    out: &mut [f32],
) -> Result<(), ModelError> {
    let tensor = file.tensor(name).map_err(|_| ModelError::MissingTensor { path: path.into(), tensor: name.into() })?;
    if tensor.shape() != shape {
        let (expected, found) = (format!("shape {shape:?}"), format!("shape {:?}", tensor.shape()));
        return Err(ModelError::Tensor { path: path.into(), tensor: name.into(), expected, found });
    }
    decode(tensor.dtype(), tensor.data(), out).map_err(|found| ModelError::Tensor {
        path: path.into(),
        tensor: name.into(),
        expected: "F32, BF16 or F16".into(),
        found,
    })?;
    check_finite(out, path, name)
}

/// Refuses tensors that no slot asks for: the file belongs to another configuration.
pub(crate) fn refuse_extra(file: &SafeTensors<'_>, path: &Path, layout: &ParameterLayout) -> Result<(), ModelError> {
    let known: BTreeSet<&str> = layout.slots().iter().map(|slot| slot.name.as_str()).collect();
    let mut names: Vec<&str> = file.names();
    names.sort_unstable();
    for name in names {
        if !known.contains(name) {
            return Err(ModelError::ExtraTensor { path: path.into(), tensor: name.into() });
        }
    }
    Ok(())
}

pub(crate) fn decode(dtype: Dtype, data: &[u8], out: &mut [f32]) -> Result<(), String> {
    let width = match dtype {
        Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        other => return Err(format!("{other:?}")),
    };
    if data.len() != width * out.len() {
        return Err(format!("{} bytes of {dtype:?}", data.len()));
    }
    for (out, b) in out.iter_mut().zip(data.chunks_exact(width)) {
        *out = match dtype {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        };
    }
    Ok(())
}

/// Refuses NaN and infinities, naming the tensor.
pub(crate) fn check_finite(numbers: &[f32], path: &Path, tensor: &str) -> Result<(), ModelError> {
    match numbers.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(element) => {
            Err(ModelError::NotFinite { path: path.into(), tensor: tensor.into(), element, found: numbers[element] })
        }
    }
}

/// A tensor to write: its name, shape and numbers.
#[derive(Clone)]
pub(crate) struct Tensor<'a> {
    pub name: String,
    pub shape: &'a [usize],
    pub numbers: &'a [f32],
}

impl<'a> Tensor<'a> {
    /// The tensors of a flat vector, named `prefix + slot name`.
    pub fn of_layout(layout: &'a ParameterLayout, flat: &'a [f32], prefix: &str) -> Vec<Self> {
        let tensor = |slot: &'a ParameterSlot| Self {
            name: format!("{prefix}{}", slot.name),
            shape: &slot.shape,
            numbers: &flat[slot.range.clone()],
        };
        layout.slots().iter().map(tensor).collect()
    }
}

/// The bytes of a safetensors file. Equal input gives equal bytes: metadata is sorted, tensors stand in the given order,
/// data starts at a multiple of 64 bytes.
pub(crate) fn to_bytes(tensors: &[Tensor<'_>], row_type: RowType, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let width = row_type.row_bytes(1);
    let dtype = match row_type {
        RowType::F32 => "F32",
        RowType::Bf16 => "BF16",
        RowType::F16 => "F16",
        RowType::Int8 | RowType::Int4 => unreachable!("weights are kept as floats"),
    };
    let mut header = format!("{{\"__metadata__\":{}", json!(metadata));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + width * tensor.numbers.len();
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.push_str(&format!(",{}:{entry}", json!(tensor.name)));
        offset = end;
    }
    header.push('}');
    while !(header.len() + 8).is_multiple_of(64) {
        header.push(' ');
    }
    let mut bytes = Vec::with_capacity(8 + header.len() + offset);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    for x in tensors.iter().flat_map(|tensor| tensor.numbers) {
        match row_type {
            RowType::F32 => bytes.extend(x.to_le_bytes()),
            RowType::Bf16 => bytes.extend(bf16::from_f32(*x).to_le_bytes()),
            RowType::F16 => bytes.extend(f16::from_f32(*x).to_le_bytes()),
            RowType::Int8 | RowType::Int4 => unreachable!("weights are kept as floats"),
        }
    }
    bytes
}

/// Writes a file so that a reader sees the old one or the whole new one: temporary name, sync, rename, sync of the
/// folder. Returns the SHA-256 of the bytes.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<Digest, ModelError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(ModelError::io("create", folder))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // A full disk must not also keep the half of a file.
        let _ = std::fs::remove_file(&temporary);
        ModelError::Io { doing: "write", path: path.into(), source }
    })?;
    Ok(Digest::of(bytes))
}
