//! Named random streams: the only source of randomness in Ascribe.
//!
//! A stream is `(seed, name)`. Its i-th word is a pure function of `(seed, name, i)` (SplitMix64 on a key hashed with
//! SHA-256), so a projector can ask for any entry without drawing the ones before, and two parts of a program that use
//! two names never disturb each other.

use sha2::{Digest as _, Sha256};

/// Version of the generator's bits. A change of any output is a new version.
pub const STREAM_VERSION: u32 = 1;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A random-access stream of 64-bit words.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    next: u64,
}

impl Stream {
    /// The stream `name` under the run seed `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"ascribe-stream-v1\0");
        hasher.update(seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let hash = hasher.finalize();
        let mut key = [0u8; 8];
        key.copy_from_slice(&hash[..8]);
        Self { key: u64::from_le_bytes(key), next: 0 }
    }

    /// Word `i`, whatever was drawn before.
    pub fn at(&self, i: u64) -> u64 {
        let mut z = self.key.wrapping_add(GOLDEN.wrapping_mul(i.wrapping_add(1)));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next word.
    pub fn next_u64(&mut self) -> u64 {
        let word = self.at(self.next);
        self.next += 1;
        word
    }

    /// The next number in `[0, 1)`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The next standard normal number (Box–Muller, one branch; two words each).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// The next integer in `0..bound`, without modulo bias worth naming (multiply-shift, bias below 2⁻³²).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        assert!(bound > 0, "an empty range has no element to draw");
        (((self.next_u64() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// Shuffles in place (Fisher–Yates).
    ///
    /// # Panics
    /// If `items` has 2³² elements or more.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let bound = u32::try_from(i + 1).expect("fewer than 2^32 elements");
            items.swap(i, self.below(bound) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vector of version 1: it must never change, stores on disk depend on it.
    /// The words were computed a second time by a Python transcription of the definition above.
    #[test]
    fn first_words_are_pinned() {
        let stream = Stream::new(7, "layers.0.attn.qkv/in");
        let words: Vec<u64> = (0..3).map(|i| stream.at(i)).collect();
        assert_eq!(words, [10_099_969_406_804_391_547, 5_846_833_858_555_758_986, 13_800_700_862_574_192_520]);
    }

    #[test]
    fn sequence_and_random_access_agree() {
        let mut stream = Stream::new(1, "a");
        let copy = stream.clone();
        for i in 0..10 {
            assert_eq!(stream.next_u64(), copy.at(i));
        }
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut stream = Stream::new(3, "normal");
        let n = 200_000;
        let (mut sum, mut sum_sq) = (0.0, 0.0);
        for _ in 0..n {
            let x = stream.normal();
            sum += x;
            sum_sq += x * x;
        }
        // Five standard errors: sd of the mean is 1/√n, of the mean square √(2/n).
        let n = f64::from(n);
        assert!((sum / n).abs() < 5.0 / n.sqrt());
        assert!((sum_sq / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..100).collect();
        Stream::new(5, "shuffle").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
