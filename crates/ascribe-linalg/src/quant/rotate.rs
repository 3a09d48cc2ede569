//! A seeded rotation that spreads large numbers over their neighbours: random signs and Hadamard transforms.

use crate::rng::Stream;

/// Two rounds of seeded signs and Hadamard transforms over the powers of two that make up the length: the first round cuts
/// from the left, largest power first, the second from the right, so that all numbers meet. Orthogonal, hence undone by the
/// transpose; nothing is padded. Cost `2·n·log₂ n` additions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    len: usize,
    /// Sign of every number in both rounds.
    signs: [Vec<f32>; 2],
}

impl Rotation {
    /// The rotation of `len` numbers by the stream `name` under `seed`: the top bit of word `2i + round` is the sign of number
    /// `i`.
    pub fn new(seed: u64, name: &str, len: usize) -> Self {
        let stream = Stream::new(seed, name);
        let sign = |word: u64| if word >> 63 == 0 { 1.0 } else { -1.0 };
        let round = |r: u64| (0..len as u64).map(|i| sign(stream.at(2 * i + r))).collect();
        Self { len, signs: [round(0), round(1)] }
    }

    /// Numbers that are turned.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a rotation of nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Turns `x` in place.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn apply(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.len, "a rotation of another length");
        for (round, signs) in self.signs.iter().enumerate() {
            x.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
            transform(x, round == 1);
        }
    }

    /// Turns `x` back.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn undo(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.len, "a rotation of another length");
        for (round, signs) in self.signs.iter().enumerate().rev() {
            transform(x, round == 1);
            x.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
        }
    }
}

/// Hadamard transforms, each scaled by `1/√n`, over pieces whose lengths are falling powers of two from one end. Its own
/// inverse.
fn transform(x: &mut [f32], from_right: bool) {
    let mut rest = x;
    while !rest.is_empty() {
        let piece_len = 1 << rest.len().ilog2();
        let piece;
        if from_right {
            let middle = rest.len() - piece_len;
            (rest, piece) = rest.split_at_mut(middle);
        } else {
            (piece, rest) = rest.split_at_mut(piece_len);
        }
        hadamard(piece);
    }
}

/// The Walsh–Hadamard transform of a power of two of numbers, scaled to keep lengths.
fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}
