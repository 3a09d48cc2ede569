//! Query matrices: `.npy`, version 1 to 3, little-endian f32, C order, `[Q, dim]`.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use ndarray::Array2;

/// NumPy's own headers stay far below.
const HEADER_MAX: usize = 1 << 12;

/// Reads the bytes of a `.npy` file.
///
/// # Errors
/// Naming the file, what was expected and what was found.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Array2<f32>> {
    let name = path.display();
    ensure!(bytes.starts_with(b"\x93NUMPY"), "{name}: expected a .npy file, found other bytes (hint: numpy.save)");
    let (start, len) = match bytes.get(6) {
        Some(1) if bytes.len() >= 10 => (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))),
        Some(2 | 3) if bytes.len() >= 12 => {
            (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize)
        }
        version => bail!("{name}: expected .npy version 1, 2 or 3, found {version:?}"),
    };
    ensure!(len <= HEADER_MAX && bytes.len() >= start + len, "{name}: expected a header of at most {HEADER_MAX} bytes");
    let header = std::str::from_utf8(&bytes[start..start + len])?;
    ensure!(header.contains("'<f4'"), "{name}: expected '<f4' numbers, found {header} (hint: .astype('float32'))");
    ensure!(header.contains("'fortran_order': False"), "{name}: expected C order (hint: numpy.ascontiguousarray)");
    let shape: Option<Vec<usize>> = header
        .split_once("'shape': (")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(shape, _)| shape.split(',').map(str::trim).filter(|s| !s.is_empty()).collect::<Vec<_>>())
        .and_then(|shape| shape.into_iter().map(|n| n.parse().ok()).collect());
    let Some([rows, columns]) = shape.as_deref() else { bail!("{name}: expected a matrix [Q, dim], found {header}") };
    let data = &bytes[start + len..];
    let expected = rows.checked_mul(*columns).and_then(|n| n.checked_mul(4));
    ensure!(expected == Some(data.len()), "{name}: expected {rows} x {columns} numbers, found {} bytes", data.len());
    let numbers = data.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    Ok(Array2::from_shape_vec((*rows, *columns), numbers)?)
}
