//! NumPy's `.npy`, versions 1 to 3: a magic, the length of a Python dictionary, the dictionary, numbers in C order.
//! Little-endian f32, u8 and integers are read; the dictionary is parsed as the literal that NumPy writes, nothing more.

use super::{Header, Numbers, Refusal};

/// First bytes of the format.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// A dictionary longer than this describes no array of ours.
pub(super) const MAX_HEADER_BYTES: usize = 1 << 12;

/// Dimensions beyond this are no images.
const MAX_DIMS: usize = 8;

/// Reads the header at the start of a file.
pub(super) fn header(head: &[u8]) -> Result<Header, Refusal> {
    let short = || ("a .npy header of at most 4 KiB", format!("{} bytes", head.len()));
    let (prefix, len) = match head.get(6..12).ok_or_else(short)? {
        [1, _, a, b, ..] => (10, usize::from(u16::from_le_bytes([*a, *b]))),
        [2 | 3, _, a, b, c, d] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        other => return Err((".npy version 1, 2 or 3", format!("version {}", other[0]))),
    };
    let end = len.checked_add(prefix).filter(|&end| end <= head.len()).ok_or_else(short)?;
    let text = std::str::from_utf8(&head[prefix..end]).map_err(|e| ("a .npy header of text", e.to_string()))?;
    let entry = |key: &str| {
        let quoted = format!("'{key}':");
        text.split_once(&quoted).map(|(_, rest)| rest.trim_start())
    };
    let missing = |expected: &'static str| (expected, text.chars().take(200).collect::<String>());
    let descr = entry("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'').map(|(name, _)| name));
    let descr = descr.ok_or_else(|| missing("a .npy header with one number type `descr`"))?;
    if !entry("fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return Err(missing("a .npy array in C order"));
    }
    let dims = entry("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')').map(|(dims, _)| dims));
    let shape = dims.and_then(shape).ok_or_else(|| missing("a .npy header with a `shape` of up to 8 integers"))?;
    let (width, decode): (usize, fn(Vec<u8>) -> Numbers) = match descr {
        "|u1" => (1, super::bytes),
        "|i1" => (1, |data| integers::<1>(&data, |b| i64::from(i8::from_le_bytes(b)))),
        "<i2" => (2, |data| integers(&data, |b| i64::from(i16::from_le_bytes(b)))),
        "<u2" => (2, |data| integers(&data, |b| i64::from(u16::from_le_bytes(b)))),
        "<i4" => (4, |data| integers(&data, |b| i64::from(i32::from_le_bytes(b)))),
        "<u4" => (4, |data| integers(&data, |b| i64::from(u32::from_le_bytes(b)))),
        "<i8" => (8, |data| integers(&data, i64::from_le_bytes)),
        "<f4" => (4, |data| {
            let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Numbers::Floats(data.chunks_exact(4).map(number).collect())
        }),
        other => return Err(("u8, little-endian f32 or integers", other.chars().take(40).collect())),
    };
    Ok(Header { len: end, shape, width, decode })
}

fn shape(dims: &str) -> Option<Vec<usize>> {
    let dims = dims.trim().trim_end_matches(',');
    let shape: Option<Vec<usize>> = dims.split(',').take(MAX_DIMS + 1).map(|n| n.trim().parse().ok()).collect();
    shape.filter(|shape| shape.len() <= MAX_DIMS)
}

fn integers<const W: usize>(data: &[u8], read: impl Fn([u8; W]) -> i64) -> Numbers {
    Numbers::Integers(data.as_chunks::<W>().0.iter().map(|&b| read(b)).collect())
}
