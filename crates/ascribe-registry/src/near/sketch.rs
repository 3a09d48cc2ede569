//! MinHash signatures in bands, and the temporary file that keeps whole shingle sets for the judgement.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use super::shingle::shingles;
use super::text_hash;

/// Bands of a signature.
pub const BANDS: usize = 40;

/// Numbers of a band.
pub const ROWS: usize = 2;

const HASHES: usize = BANDS * ROWS;

/// What is kept of a record while others are read.
pub(super) struct Sketch {
    pub(super) shingles: Vec<u32>,
    pub(super) bands: Vec<u64>,
    pub(super) text_hash: [u8; 16],
    pub(super) text_bytes: u64,
}

impl Sketch {
    pub(super) fn of(text: &str) -> Self {
        let shingles = shingles(text);
        let bands = bands(&shingles);
        Self { bands, shingles, text_hash: text_hash(text), text_bytes: text.len() as u64 }
    }
}

/// The keys of the bands of a shingle set; an empty set has none and is near nothing.
///
/// The signature is a one-permutation hashing (Li, Owen, Zhang 2012): a shingle falls into one of the [`HASHES`] bins by its
/// high bits, and the least of a bin is its number, so that a set is read once and not once per number. A bin that nothing
/// fell into takes the number of another one, chosen by a hash of the bin alone until one is found that has a number (optimal
/// densification, Shrivastava 2017): two sets agree in a bin with the probability of their Jaccard similarity, whether it
/// was filled or lent.
fn bands(shingles: &[u32]) -> Vec<u64> {
    if shingles.is_empty() {
        return Vec::new();
    }
    let mut least = [EMPTY; HASHES];
    for shingle in shingles {
        let mixed = split_mix(u64::from(*shingle));
        let bin = ((mixed >> 32) * HASHES as u64) >> 32;
        let least = &mut least[bin as usize];
        *least = (*least).min(mixed & LOW);
    }
    let lent = |bin: usize| {
        let tries = (0u64..).map(|attempt| split_mix((bin as u64) << 32 | attempt) % HASHES as u64);
        tries.map(|donor| least[donor as usize]).find(|number| *number != EMPTY).unwrap_or(EMPTY)
    };
    let number = |bin: usize| if least[bin] == EMPTY { lent(bin) } else { least[bin] };
    let key = |band: usize| {
        (band * ROWS..(band + 1) * ROWS).fold(band as u64, |key, bin| split_mix(key.rotate_left(7) ^ number(bin)))
    };
    (0..BANDS).map(key).collect()
}

/// The low half of a mixed shingle, by which those of one bin are ordered.
const LOW: u64 = u32::MAX as u64;

/// No number: above all that there are.
const EMPTY: u64 = u64::MAX;

/// One step of SplitMix64.
const fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Shingle sets of all records, one after the other in a temporary file.
pub(super) struct ShingleFile {
    out: BufWriter<File>,
    /// Where each set begins, in numbers; one more than there are sets.
    starts: Vec<u64>,
}

impl ShingleFile {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(1 << 20, tempfile::tempfile()?), starts: vec![0] })
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Appends a set; returns its record.
    pub(super) fn push(&mut self, shingles: &[u32]) -> io::Result<u32> {
        let record = u32::try_from(self.len()).map_err(|_| io::Error::other("expected at most 2^32 records"))?;
        for shingle in shingles {
            self.out.write_all(&shingle.to_le_bytes())?;
        }
        self.starts.push(self.starts[self.len()] + shingles.len() as u64);
        Ok(record)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The set of a record.
    pub(super) fn get(&self, record: u32) -> io::Result<Vec<u32>> {
        let (start, end) = (self.starts[record as usize], self.starts[record as usize + 1]);
        let mut bytes = vec![0; 4 * (end - start) as usize];
        self.out.get_ref().read_exact_at(&mut bytes, 4 * start)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of equal minima estimates the Jaccard similarity: the law that the bands stand on.
    #[test]
    fn bands_agree_as_often_as_the_law_says() {
        let set = |from: u32, to: u32| -> Vec<u32> { (from..to).map(|i| split_mix(i.into()) as u32).collect() };
        // Jaccard of [0, 300) and [100, 400) is 1/2: a band of two rows agrees with probability 1/4.
        let mut agree = 0;
        for trial in 0..200u32 {
            let at = trial * 1000;
            let (a, b) = (bands(&set(at, at + 300)), bands(&set(at + 100, at + 400)));
            agree += a.iter().zip(&b).filter(|(x, y)| x == y).count();
        }
        let share = agree as f64 / (200 * BANDS) as f64;
        // 8000 bands, of which those of one trial lean together a little: 0.02 is about four standard errors.
        assert!((share - 0.25).abs() < 0.02, "{share}");
    }

    #[test]
    fn sets_come_back() {
        let mut file = ShingleFile::new().unwrap();
        for set in [&[1u32, 2, 3][..], &[], &[u32::MAX]] {
            file.push(set).unwrap();
        }
        file.flush().unwrap();
        assert_eq!(file.get(0).unwrap(), [1, 2, 3]);
        assert!(file.get(1).unwrap().is_empty());
        assert_eq!(file.get(2).unwrap(), [u32::MAX]);
    }
}
