//! Rows parted by response, so that each part fits in memory: in memory while they are few, else in files of a temporary folder.

use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ascribe_store::score_rows::RowBatch;

use crate::error::PayError;

/// Rows that are kept in memory before files are used.
const MEMORY_ROWS: usize = 6 << 20;
/// Rows that a part should not exceed by much.
const PART_ROWS: u64 = 3 << 19;
/// Parts when nobody knows how many rows there are.
const PARTS_UNKNOWN: u64 = 64;
const PARTS_MAX: u64 = 1024;
const ROW_BYTES: usize = 20;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Response.
    pub query: u64,
    /// Dataset.
    pub dataset: u32,
    /// Finite.
    pub score: f64,
}

#[derive(Default)]
struct Part {
    rows: Vec<Row>,
    file: Option<File>,
    spilled: u64,
}

/// The parts. Dropping it removes its folder.
pub struct Spill {
    parts: Vec<Mutex<Part>>,
    in_memory: AtomicUsize,
    dir: PathBuf,
}

impl Spill {
    /// Parts for about `n_rows` rows; files, if any are needed, go into a folder within `scratch`.
    pub fn new(n_rows: Option<u64>, scratch: &Path) -> Self {
        let n_parts = n_rows.map_or(PARTS_UNKNOWN, |n| n.div_ceil(PART_ROWS)).clamp(1, PARTS_MAX);
        let parts = (0..n_parts).map(|_| Mutex::default()).collect();
        Self { parts, in_memory: AtomicUsize::new(0), dir: scratch.join(".spill") }
    }

    /// Number of parts.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Adds rows; threads may do so side by side.
    ///
    /// # Errors
    /// The disk's.
    pub fn push(&self, batch: &RowBatch) -> Result<(), PayError> {
        let n_parts = self.parts.len();
        let mut sorted: Vec<Vec<Row>> = vec![Vec::new(); n_parts];
        let columns = batch.queries.iter().zip(&batch.datasets).zip(&batch.scores);
        for ((&query, &dataset), &score) in columns {
            sorted[part_of(query, n_parts)].push(Row { query, dataset, score });
        }
        for (part, rows) in self.parts.iter().zip(sorted).filter(|(_, rows)| !rows.is_empty()) {
            let mut part = lock(part);
            part.rows.extend_from_slice(&rows);
            let total = self.in_memory.fetch_add(rows.len(), Ordering::Relaxed) + rows.len();
            if total > MEMORY_ROWS && part.rows.len() > MEMORY_ROWS / (2 * n_parts) {
                self.in_memory.fetch_sub(part.rows.len(), Ordering::Relaxed);
                self.write_out(&mut part)?;
            }
        }
        Ok(())
    }

    fn write_out(&self, part: &mut Part) -> Result<(), PayError> {
        let mut bytes = Vec::with_capacity(part.rows.len() * ROW_BYTES);
        for row in part.rows.drain(..) {
            bytes.extend_from_slice(&row.query.to_le_bytes());
            bytes.extend_from_slice(&row.dataset.to_le_bytes());
            bytes.extend_from_slice(&row.score.to_le_bytes());
            part.spilled += 1;
        }
        let file = match &mut part.file {
            Some(file) => file,
            None => part.file.insert(self.create()?),
        };
        file.write_all(&bytes).map_err(|e| PayError::io(&self.dir, e))
    }

    /// A file that has lost its name already: it goes with its handle, whatever becomes of the process.
    fn create(&self) -> Result<File, PayError> {
        std::fs::create_dir_all(&self.dir).map_err(|e| PayError::io(&self.dir, e))?;
        let path = self.dir.join(format!("{}", SEQUENCE.fetch_add(1, Ordering::Relaxed)));
        let options = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = options.map_err(|e| PayError::io(&path, e))?;
        std::fs::remove_file(&path).map_err(|e| PayError::io(&path, e))?;
        Ok(file)
    }

    /// All rows of a part, sorted by response. May be called again.
    ///
    /// # Errors
    /// The disk's.
    pub fn sorted(&self, part: usize) -> Result<Vec<Row>, PayError> {
        use std::io::Seek as _;
        let mut part = lock(&self.parts[part]);
        let mut rows = Vec::with_capacity(part.rows.len() + part.spilled as usize);
        rows.extend_from_slice(&part.rows);
        let n_spilled = part.spilled;
        if let Some(file) = &mut part.file {
            let io = |e| PayError::io(&self.dir, e);
            file.rewind().map_err(io)?;
            let mut reader = BufReader::with_capacity(1 << 20, file);
            let mut bytes = [0u8; ROW_BYTES];
            for _ in 0..n_spilled {
                reader.read_exact(&mut bytes).map_err(io)?;
                let [q0, q1, q2, q3, q4, q5, q6, q7, d0, d1, d2, d3, score @ ..] = bytes;
                rows.push(Row {
                    query: u64::from_le_bytes([q0, q1, q2, q3, q4, q5, q6, q7]),
                    dataset: u32::from_le_bytes([d0, d1, d2, d3]),
                    score: f64::from_le_bytes(score),
                });
            }
        }
        drop(part);
        rows.sort_unstable_by_key(|row| row.query);
        Ok(rows)
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // Empty by now, for its files have no names; if it stays, the next run uses it.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

static SEQUENCE: AtomicUsize = AtomicUsize::new(0);

fn lock(part: &Mutex<Part>) -> std::sync::MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Spreads responses over parts: the high half of a product with an odd constant.
fn part_of(query: u64, n_parts: usize) -> usize {
    let mixed = (query ^ (query >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * n_parts as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files and memory give the same rows back.
    #[test]
    fn rows_come_back_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(Some(4 * PART_ROWS), dir.path());
        assert_eq!(spill.n_parts(), 4);
        let batch = |from: u64| RowBatch {
            queries: (0..1000).map(|n| (from + n) % 77).collect(),
            datasets: (0..1000).map(|n| n as u32).collect(),
            scores: (0..1000).map(|n| (from + n) as f64).collect(),
            ..RowBatch::default()
        };
        for round in 0..20 {
            spill.push(&batch(round * 1000)).unwrap();
            if round % 3 == 0 {
                spill.parts.iter().for_each(|part| spill.write_out(&mut lock(part)).unwrap());
            }
        }
        let mut n_rows = 0;
        for part in 0..spill.n_parts() {
            let rows = spill.sorted(part).unwrap();
            assert!(rows.windows(2).all(|pair| pair[0].query <= pair[1].query));
            assert!(rows.iter().all(|row| row.score as u64 % 77 == row.query));
            n_rows += rows.len();
            assert_eq!(spill.sorted(part).unwrap().len(), rows.len());
        }
        assert_eq!(n_rows, 20_000);
        drop(spill);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the temporary folder stayed");
    }
}
