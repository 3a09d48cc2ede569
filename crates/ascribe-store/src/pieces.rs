//! Large files, written in whole pieces that begin at multiples of their length.
//!
//! What the page cache gets in one write it keeps in one block where it can, up to 2 MiB and at multiples of that. A block costs one
//! entry of the page tables in the place of 512, for the writer and for whoever maps the file while it is cached: mapping 256 MiB that
//! were written so takes 0.15 ms, that came in pieces of 1 MiB at odd places some 10 (Linux 6.18, ext4). The bytes are the same.

use std::io::{self, Write};

/// A page table's worth of pages.
const PIECE_BYTES: usize = 2 << 20;
/// Bytes of one write: while they are on their way to the disk, others can be hashed.
const WRITE_BYTES: usize = 16 << 20;

/// Passes on what is written in whole pieces; the last one when it is flushed, after which nothing more must be written.
#[derive(Debug)]
pub(crate) struct Pieces<W> {
    out: W,
    /// Bytes since the last multiple.
    waiting: Vec<u8>,
}

impl<W: Write> Pieces<W> {
    /// In front of a file that is empty.
    pub fn new(out: W) -> Self {
        Self { out, waiting: Vec::new() }
    }
}

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.is_empty() && bytes.len() >= PIECE_BYTES {
            let n = (bytes.len() / PIECE_BYTES * PIECE_BYTES).min(WRITE_BYTES);
            self.out.write_all(&bytes[..n])?;
            return Ok(n);
        }
        let n = bytes.len().min(PIECE_BYTES - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..n]);
        if self.waiting.len() == PIECE_BYTES {
            self.out.write_all(&self.waiting)?;
            self.waiting.clear();
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.waiting)?;
        self.waiting.clear();
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrived, write by write.
    #[derive(Default)]
    struct Seen(Vec<Vec<u8>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_write_begins_at_a_multiple_and_nothing_is_changed() {
        let bytes: Vec<u8> = (0..5 * PIECE_BYTES + 4321).map(|i| ((i * 31) >> 7) as u8).collect();
        for cuts in [vec![640], vec![], vec![PIECE_BYTES], vec![1, 2, PIECE_BYTES - 1, 3 * PIECE_BYTES + 5]] {
            let mut out = Pieces::new(Seen::default());
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                out.write_all(&bytes[start..cut]).unwrap();
                start = cut;
            }
            out.flush().unwrap();
            let written = out.out.0;
            assert_eq!(written.concat(), bytes);
            let (_, whole) = written.split_last().unwrap();
            assert!(whole.iter().all(|bytes| bytes.len().is_multiple_of(PIECE_BYTES) && bytes.len() <= WRITE_BYTES));
        }
    }
}
