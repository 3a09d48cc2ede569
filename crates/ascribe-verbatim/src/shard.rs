//! One shard: written at once, then mapped and looked into.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ascribe_core::RecordId;
use ascribe_store::StoreError;
use ascribe_store::atomic::write_hashed;
use ascribe_store::mmap::Map;
use ascribe_store::tensors::{self, Table, Tensor};
use safetensors::tensor::Dtype;

use crate::error::VerbatimError;
use crate::layout::{Part, ShardEntry, VERBATIM_FORMAT_VERSION};
use crate::pages::{PAGE_BYTES, Pages, sums};
use crate::text::{Text, is_narrow};

/// Metadata key of the version.
const KEY_VERSION: &str = "ascribe.verbatim_format_version";
/// Arrays that are checked page by page, and their checksums.
const CHECKED: [(&str, &str); 4] = [
    ("tokens", "tokens.sums"),
    ("suffixes", "suffixes.sums"),
    ("record_starts", "record_starts.sums"),
    ("source_offsets", "source_offsets.sums"),
];
const COUNTS: &str = "counts";

/// Sorts the suffixes of `text` and writes the shard; same records, same bytes.
///
/// # Errors
/// [`VerbatimError::Sort`], those of the file system; nothing half written stays.
pub fn write_shard(
    path: &Path,
    text: &mut Text,
    record_starts: &[u32],
    source_offsets: &[u64],
    vocab_size: u32,
    parts: Vec<Part>,
) -> Result<ShardEntry, VerbatimError> {
    let suffixes = text.sorted_suffixes()?;
    let counts = text.counts(vocab_size);
    let (n, r) = (text.len(), record_starts.len());
    let arrays: [(Dtype, usize, &[u8]); 4] = [
        (token_type(vocab_size), n, text.bytes()),
        // Positions are not negative, so the bytes are those of u32.
        (Dtype::U32, n, bytemuck::cast_slice(&suffixes)),
        (Dtype::U32, r, bytemuck::cast_slice(record_starts)),
        (Dtype::U64, r, bytemuck::cast_slice(source_offsets)),
    ];
    let page_sums: Vec<Vec<u32>> = arrays.iter().map(|(_, _, bytes)| sums(bytes)).collect();
    let mut tensors = Vec::new();
    for ((name, _), (dtype, len, bytes)) in CHECKED.iter().zip(arrays) {
        tensors.push(Tensor::new(name, dtype, &[len], bytes));
    }
    let mut tables = blake3::Hasher::new();
    let mut table = |name: &str, numbers: &[u32]| -> Tensor<'static> {
        let bytes: Vec<u8> = bytemuck::cast_slice(numbers).to_vec();
        tables.update(&bytes);
        Tensor::new(name, Dtype::U32, &[numbers.len()], bytes)
    };
    tensors.push(table(COUNTS, &counts));
    for ((_, name), numbers) in CHECKED.iter().zip(&page_sums) {
        tensors.push(table(name, numbers));
    }
    let tables_blake3 = tables.finalize().to_hex().to_string();
    let metadata = BTreeMap::from([(KEY_VERSION.to_owned(), VERBATIM_FORMAT_VERSION.to_string())]);
    let (bytes, blake3) = write_hashed(path, |out| tensors::write(out, path, &tensors, &metadata).map(|_| ()))?;
    Ok(ShardEntry { tokens: n as u32, parts, bytes, blake3, tables_blake3 })
}

fn token_type(vocab_size: u32) -> Dtype {
    if is_narrow(vocab_size) { Dtype::U16 } else { Dtype::U32 }
}

/// A mapped shard. Every number that is handed out lies in a page whose checksum held.
#[derive(Debug)]
pub struct Shard {
    pub path: PathBuf,
    pub entry: ShardEntry,
    map: Map,
    narrow: bool,
    tokens: Pages,
    suffixes: Pages,
    record_starts: Pages,
    source_offsets: Pages,
    /// Suffixes that begin with symbol `s` are number `first[s]..first[s + 1]` in their order.
    first: Vec<u32>,
}

impl Shard {
    /// Maps the file and checks what is read at once: its length, head, counts and checksums.
    ///
    /// # Errors
    /// [`StoreError`] naming the file and what is wrong with it.
    pub fn open(path: PathBuf, entry: &ShardEntry, vocab_size: u32) -> Result<Self, StoreError> {
        let map = Map::open(&path)?;
        if map.len() as u64 != entry.bytes {
            return Err(StoreError::WrongLength { path, expected: entry.bytes, found: map.len() as u64 });
        }
        let table = Table::read(&path, &map)?;
        let version = table.key(&path, KEY_VERSION)?;
        if version != VERBATIM_FORMAT_VERSION.to_string() {
            return Err(StoreError::malformed(&path, KEY_VERSION, VERBATIM_FORMAT_VERSION, version));
        }
        let mut tables = blake3::Hasher::new();
        let mut numbers = |name, len: usize| -> Result<Vec<u32>, StoreError> {
            let bytes = &map[table.range(&path, name, Dtype::U32, &[len])?];
            tables.update(bytes);
            Ok(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
        };
        let counts = numbers(COUNTS, vocab_size as usize + 1)?;
        let (n, r) = (entry.tokens as usize, entry.records());
        let narrow = is_narrow(vocab_size);
        let token_bytes = if narrow { 2 } else { 4 };
        let lens = [n * token_bytes, n * 4, r * 4, r * 8];
        let mut page_sums = Vec::new();
        for ((_, name), len) in CHECKED.iter().zip(lens) {
            page_sums.push(numbers(name, len.div_ceil(PAGE_BYTES))?);
        }
        let found = tables.finalize().to_hex().to_string();
        if found != entry.tables_blake3 {
            return Err(StoreError::WrongChecksum { path, expected: entry.tables_blake3.clone(), found });
        }
        let first = starts(&path, &counts, n)?;
        let shapes = [(token_type(vocab_size), n), (Dtype::U32, n), (Dtype::U32, r), (Dtype::U64, r)];
        let mut pages = Vec::new();
        for (((name, _), (dtype, len)), sums) in CHECKED.iter().zip(shapes).zip(page_sums) {
            pages.push(Pages::new(name, table.range(&path, name, dtype, &[len])?, sums));
        }
        let [tokens, suffixes, record_starts, source_offsets] =
            <[Pages; 4]>::try_from(pages).expect("one for each of the four names");
        let entry = entry.clone();
        Ok(Self { path, entry, map, narrow, tokens, suffixes, record_starts, source_offsets, first })
    }

    /// Compares the whole file with its BLAKE3.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`].
    pub fn verify(&self) -> Result<(), StoreError> {
        let found = blake3::hash(&self.map).to_hex().to_string();
        if found == self.entry.blake3 {
            return Ok(());
        }
        Err(StoreError::WrongChecksum { path: self.path.clone(), expected: self.entry.blake3.clone(), found })
    }

    /// Tokens and separators.
    pub fn len(&self) -> usize {
        self.entry.tokens as usize
    }

    /// The symbol at a position.
    #[inline]
    pub fn symbol(&self, at: usize) -> Result<u32, StoreError> {
        if self.narrow {
            Ok(u32::from(self.tokens.u16(&self.path, &self.map, at)?))
        } else {
            self.tokens.u32(&self.path, &self.map, at)
        }
    }

    /// Where suffix number `number` begins.
    #[inline]
    pub fn suffix(&self, number: usize) -> Result<usize, StoreError> {
        let at = self.suffixes.u32(&self.path, &self.map, number)? as usize;
        // Page sums and seal agree on what a stranger wrote: positions are not to be believed either.
        if at < self.len() {
            return Ok(at);
        }
        Err(StoreError::malformed(&self.path, "position of a suffix", format!("below {}", self.len()), at))
    }

    /// Numbers of the suffixes that begin with a symbol; nothing beyond the vocabulary.
    pub fn beginning_with(&self, symbol: u32) -> Range<usize> {
        let bound = |s: usize| self.first.get(s).map(|&n| n as usize);
        match (bound(symbol as usize), bound(symbol as usize + 1)) {
            (Some(start), Some(end)) => start..end,
            _ => 0..0,
        }
    }

    /// How often a symbol stands here.
    pub fn count(&self, symbol: u32) -> u64 {
        self.beginning_with(symbol).len() as u64
    }

    /// Number of the record that holds a position, and where the record begins.
    pub fn record_at(&self, position: usize) -> Result<(usize, usize), StoreError> {
        let (mut low, mut high) = (0, self.entry.records());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.record_start(middle)? <= position { low = middle + 1 } else { high = middle }
        }
        let Some(number) = low.checked_sub(1) else {
            return Err(StoreError::malformed(&self.path, "start of the first record", 0, self.record_start(0)?));
        };
        Ok((number, self.record_start(number)?))
    }

    /// Where a record begins; the shard's length for the one past the last.
    pub fn record_start(&self, number: usize) -> Result<usize, StoreError> {
        if number == self.entry.records() {
            return Ok(self.len());
        }
        Ok(self.record_starts.u32(&self.path, &self.map, number)? as usize)
    }

    /// Byte of the source file at which a record's line begins.
    pub fn source_offset(&self, number: usize) -> Result<u64, StoreError> {
        self.source_offsets.u64(&self.path, &self.map, number)
    }

    /// The id of record `number`.
    pub fn record_id(&self, number: usize) -> RecordId {
        let mut left = number as u32;
        for part in &self.entry.parts {
            if left < part.records {
                return RecordId { dataset: part.dataset, row: part.first_row + left };
            }
            left -= part.records;
        }
        unreachable!("record {number} of a shard with {} records", self.entry.records())
    }
}

/// Running sums of the counts, which must add up to `n`.
fn starts(path: &Path, counts: &[u32], n: usize) -> Result<Vec<u32>, StoreError> {
    let mut starts = Vec::with_capacity(counts.len() + 1);
    let mut total = 0u64;
    for &count in counts {
        starts.push(total.min(u64::from(u32::MAX)) as u32);
        total += u64::from(count);
    }
    if total != n as u64 {
        return Err(StoreError::malformed(path, "sum of counts", n, total));
    }
    starts.push(n as u32);
    Ok(starts)
}
