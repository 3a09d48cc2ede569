//! Sorts any number of short entries in bounded memory: full blocks are sorted and spilled to a temporary file, which nobody
//! else sees and which goes with the sorter; at the end all blocks are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use rayon::slice::ParallelSliceMut as _;

/// Bytes of a block.
const BLOCK_BYTES: usize = 48 << 20;

/// Entries of a block that are read at once.
const BUFFER_ENTRIES: usize = 4096;

/// Entries of `N` bytes, in the order of their bytes.
pub(crate) struct Sorter<const N: usize> {
    block: Vec<[u8; N]>,
    block_len: usize,
    /// The spilled blocks, one after the other, and how many entries each has.
    spilled: Option<(BufWriter<File>, Vec<usize>)>,
}

impl<const N: usize> Sorter<N> {
    pub(crate) fn new() -> Self {
        Self::with_block(BLOCK_BYTES / N)
    }

    pub(crate) fn with_block(block_len: usize) -> Self {
        Self { block: Vec::new(), block_len, spilled: None }
    }

    pub(crate) fn push(&mut self, entry: [u8; N]) -> io::Result<()> {
        self.block.push(entry);
        if self.block.len() < self.block_len {
            return Ok(());
        }
        sort(&mut self.block);
        let (file, blocks) = match &mut self.spilled {
            Some(spilled) => spilled,
            None => self.spilled.insert((BufWriter::with_capacity(1 << 20, tempfile::tempfile()?), Vec::new())),
        };
        for entry in &self.block {
            file.write_all(entry)?;
        }
        blocks.push(self.block.len());
        self.block.clear();
        Ok(())
    }

    /// Hands over all entries in their order; an error of `each` ends it.
    pub(crate) fn finish(mut self, mut each: impl FnMut([u8; N]) -> io::Result<()>) -> io::Result<()> {
        sort(&mut self.block);
        let Some((file, blocks)) = self.spilled else {
            return self.block.into_iter().try_for_each(each);
        };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut start = 0;
        let mut runs = Vec::new();
        for len in blocks {
            runs.push(Run { file: &file, at: start, left: len, buffer: Vec::new(), used: 0 });
            start += (len * N) as u64;
        }
        let n_runs = runs.len();
        let mut in_memory = self.block.into_iter();
        let mut next = |run: usize| if run < n_runs { runs[run].next() } else { Ok(in_memory.next()) };
        let mut heap = BinaryHeap::new();
        for run in 0..=n_runs {
            if let Some(entry) = next(run)? {
                heap.push(Reverse((entry, run)));
            }
        }
        while let Some(Reverse((entry, run))) = heap.pop() {
            each(entry)?;
            if let Some(entry) = next(run)? {
                heap.push(Reverse((entry, run)));
            }
        }
        Ok(())
    }
}

/// Sorts by the bytes. The first eight decide nearly always, and compare as one number.
fn sort<const N: usize>(block: &mut [[u8; N]]) {
    let head = |entry: &[u8; N]| entry.first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
    block.par_sort_unstable_by(|a, b| head(a).cmp(&head(b)).then_with(|| a.cmp(b)));
}

/// A sorted block in the temporary file, read at its own position: blocks share the file.
struct Run<'a, const N: usize> {
    file: &'a File,
    at: u64,
    left: usize,
    buffer: Vec<u8>,
    used: usize,
}

impl<const N: usize> Run<'_, N> {
    fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.used == self.buffer.len() {
            let n_entries = self.left.min(BUFFER_ENTRIES);
            if n_entries == 0 {
                return Ok(None);
            }
            self.buffer.resize(n_entries * N, 0);
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.at += self.buffer.len() as u64;
            self.left -= n_entries;
            self.used = 0;
        }
        let mut entry = [0; N];
        entry.copy_from_slice(&self.buffer[self.used..self.used + N]);
        self.used += N;
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spilled_or_not_the_same_order(entries in prop::collection::vec(any::<[u8; 3]>(), 0..100), block in 1usize..20) {
            let mut sorter = Sorter::with_block(block);
            for entry in &entries {
                sorter.push(*entry).unwrap();
            }
            let mut sorted = Vec::new();
            sorter.finish(|entry| { sorted.push(entry); Ok(()) }).unwrap();
            let mut expected = entries;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }
}
