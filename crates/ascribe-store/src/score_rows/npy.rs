//! NumPy score matrices: `.npy` of shape `[responses, datasets]`, little-endian f32 or f64, C or Fortran order. Streamed.

use std::io::{BufReader, Read};
use std::path::Path;

use super::{BATCH_ROWS, Each, Label, Resolve, RowBatch, open};
use crate::error::StoreError;
use crate::limits::SCORE_ROWS_MAX;

/// NumPy's own writer keeps the dictionary far below this.
const HEADER_MAX_BYTES: usize = 1 << 12;

struct Head {
    n_queries: u64,
    n_datasets: u64,
    width: usize,
    fortran: bool,
}

pub(super) fn read(path: &Path, resolve: &Resolve<'_>, each: &mut Each<'_>) -> Result<(), StoreError> {
    let mut reader = BufReader::with_capacity(1 << 18, open(path)?);
    let head = head(path, &mut reader)?;
    let n_values = head.n_queries.checked_mul(head.n_datasets).filter(|n| *n <= SCORE_ROWS_MAX);
    let n_values =
        n_values.ok_or_else(|| StoreError::malformed(path, "values", format!("at most {SCORE_ROWS_MAX}"), "more"))?;
    let short = || StoreError::malformed(path, "length", format!("{n_values} values"), "fewer or more");
    let ordinals: Vec<u32> = (0..head.n_datasets).map(|k| resolve(Label::Number(k))).collect();
    let mut rows = RowBatch::default();
    let mut bytes = [0u8; 8];
    for at in 0..n_values {
        reader.read_exact(&mut bytes[..head.width]).map_err(|_| short())?;
        let score = match head.width {
            4 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            _ => f64::from_le_bytes(bytes),
        };
        let (query, dataset) = match head.fortran {
            false => (at / head.n_datasets, at % head.n_datasets),
            true => (at % head.n_queries, at / head.n_queries),
        };
        if !score.is_finite() {
            let found = format!("{score} at [{query}, {dataset}]");
            return Err(StoreError::malformed(path, "score", "a finite number", found));
        }
        rows.queries.push(query);
        rows.datasets.push(ordinals[dataset as usize]);
        rows.scores.push(score);
        if rows.scores.len() == BATCH_ROWS {
            each(&rows)?;
            rows.clear();
        }
    }
    if reader.read(&mut bytes[..1]).is_ok_and(|n| n > 0) {
        return Err(short());
    }
    if rows.scores.is_empty() { Ok(()) } else { each(&rows) }
}

fn head(path: &Path, reader: &mut impl Read) -> Result<Head, StoreError> {
    let bad = |expected: &str, found: &str| StoreError::malformed(path, ".npy header", expected, found);
    let mut prefix = [0u8; 10];
    reader.read_exact(&mut prefix).map_err(|_| bad("10 bytes", "fewer"))?;
    let len = match prefix[6] {
        1 => usize::from(u16::from_le_bytes([prefix[8], prefix[9]])),
        2 | 3 => {
            let mut high = [0u8; 2];
            reader.read_exact(&mut high).map_err(|_| bad("12 bytes", "fewer"))?;
            u32::from_le_bytes([prefix[8], prefix[9], high[0], high[1]]) as usize
        }
        other => return Err(bad("version 1, 2 or 3", &other.to_string())),
    };
    if len > HEADER_MAX_BYTES {
        return Err(bad("at most 4096 bytes", &len.to_string()));
    }
    let mut text = vec![0u8; len];
    reader.read_exact(&mut text).map_err(|_| bad("a whole header", "the end of the file"))?;
    let text = String::from_utf8(text).map_err(|_| bad("text", "other bytes"))?;
    let entry = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let quoted =
        |rest: &str| rest.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(name, _)| name.to_owned());
    let width = match entry("descr").and_then(quoted).as_deref() {
        Some("<f4") => 4,
        Some("<f8") => 8,
        _ => return Err(bad("descr '<f4' or '<f8'", &text)),
    };
    let fortran = match entry("fortran_order") {
        Some(rest) if rest.starts_with("True") => true,
        Some(rest) if rest.starts_with("False") => false,
        _ => return Err(bad("fortran_order", &text)),
    };
    let dims = entry("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).map(|(dims, _)| dims);
    let dims: Option<Vec<u64>> = dims.and_then(|dims| dims.split(',').map(|dim| dim.trim().parse().ok()).collect());
    match dims.as_deref() {
        Some(&[n_queries, n_datasets]) => Ok(Head { n_queries, n_datasets, width, fortran }),
        _ => Err(bad("shape (responses, datasets)", &text)),
    }
}
