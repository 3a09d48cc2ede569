//! Rows of numbers in few bits: a code per number, a scale per group, and an optional rotation before.
//!
//! A row is cut into groups (one per module of a gradient row, or one for all of it). A group is stored as its codes, packed
//! without gaps, after an f32 scale: `4 + ⌈n·bits/8⌉` bytes for `n` numbers (`⌈n/5⌉` for [`Code::Ternary`], five to a byte).
//! Encoding reads nothing but the row, so bytes depend on neither threads nor neighbours. Here never lives: which rows are
//! worth storing, files.
//!
//! | code | bits | levels (times the scale) | part of a normal group's energy that is lost |
//! |---|---|---|---|
//! | [`Code::Int8`] | 8 | −127 … 127 | at most `n·s²/4` with `s = max|x|/127`; about 0.00005 |
//! | [`Code::Four`] | 4 | 16, Lloyd–Max | 0.0095 |
//! | [`Code::Two`] | 2 | ±0.4528, ±1.5104 | 0.1175 |
//! | [`Code::Ternary`] | 1.6 | 0, ±1.2240 | 0.1902 |
//! | [`Code::Sign`] | 1 | ±0.7979 | 0.3634 (`1 − 2/π`) |
//!
//! Levels are those with the least mean squared error for a normal number (Max, IRE Trans. Inf. Theory 6, 1960). A code with
//! such levels keeps the centroid of what it merges, so `E[x̂ · x] = E[x̂²]`: dot products with an exact query lose size, which
//! no rank feels, and gain noise of the part above. Gradients have heavy tails; the seeded rotation spreads them over their
//! group, after which numbers are close to normal whatever they were (Ailon and Chazelle, SIAM J. Comput. 39, 2009).

mod code;
mod rotate;

pub use code::Code;
pub use rotate::Rotation;

use crate::error::LinalgError;

/// Bytes of a group's scale.
const SCALE_BYTES: usize = 4;

/// Turns rows of one shape into bytes and back.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCodec {
    code: Code,
    groups: Vec<usize>,
    rotations: Option<Vec<Rotation>>,
    seed: Option<u64>,
}

impl RowCodec {
    /// A codec for rows of `groups` (their lengths, in order). With a `rotation` seed, group `g` is turned by the stream
    /// `quant/g` first.
    pub fn new(code: Code, groups: Vec<usize>, rotation: Option<u64>) -> Self {
        let turn = |seed| groups.iter().enumerate().map(move |(g, &n)| Rotation::new(seed, &format!("quant/{g}"), n));
        let rotations = rotation.map(|seed| turn(seed).collect());
        Self { code, groups, rotations, seed: rotation }
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Lengths of the groups.
    pub fn groups(&self) -> &[usize] {
        &self.groups
    }

    /// Seed of the rotations.
    pub fn rotation(&self) -> Option<u64> {
        self.seed
    }

    /// Numbers of a row.
    pub fn dim(&self) -> usize {
        self.groups.iter().sum()
    }

    /// Bytes of a row: `Σ_g 4 + ⌈n_g·bits/8⌉`, exactly.
    pub fn len_bytes(&self) -> usize {
        self.groups.iter().map(|&n| SCALE_BYTES + self.code.len_bytes(n)).sum()
    }

    /// Writes `row` into `bytes`; returns `‖row − decoded‖²`, summed over groups (before the rotation is undone, which keeps
    /// lengths). Cost `O(n)` per group, `O(n log n)` with a rotation.
    ///
    /// # Errors
    /// [`LinalgError::NotFinite`], naming the column.
    ///
    /// # Panics
    /// If `row` or `bytes` has another length than the codec says.
    pub fn encode(&self, row: &[f32], bytes: &mut [u8]) -> Result<f64, LinalgError> {
        assert!(
            row.len() == self.dim() && bytes.len() == self.len_bytes(),
            "a row and its bytes have the codec's lengths"
        );
        if let Some(col) = row.iter().position(|x| !x.is_finite()) {
            return Err(LinalgError::NotFinite { row: 0, col, found: f64::from(row[col]) });
        }
        let (mut row, mut bytes, mut lost) = (row, bytes, 0.0);
        let mut turned = Vec::new();
        for (g, &n) in self.groups.iter().enumerate() {
            let (group, rest) = row.split_at(n);
            let (scale, after) = bytes.split_at_mut(SCALE_BYTES);
            let (codes, after) = after.split_at_mut(self.code.len_bytes(n));
            (row, bytes) = (rest, after);
            let found = match &self.rotations {
                None => self.code.encode(group, codes),
                Some(rotations) => {
                    turned.clear();
                    turned.extend_from_slice(group);
                    rotations[g].apply(&mut turned);
                    self.code.encode(&turned, codes)
                }
            };
            scale.copy_from_slice(&found.scale.to_le_bytes());
            lost += found.lost;
        }
        Ok(lost)
    }

    /// Reads a row back. Bytes that [`RowCodec::check`] refuses give some numbers, never a panic.
    ///
    /// # Panics
    /// If `row` or `bytes` has another length than the codec says.
    pub fn decode(&self, bytes: &[u8], row: &mut [f32]) {
        assert!(
            row.len() == self.dim() && bytes.len() == self.len_bytes(),
            "a row and its bytes have the codec's lengths"
        );
        let (mut row, mut bytes) = (row, bytes);
        for (g, &n) in self.groups.iter().enumerate() {
            let (group, rest) = row.split_at_mut(n);
            let (scale, after) = bytes.split_at(SCALE_BYTES);
            let (codes, after) = after.split_at(self.code.len_bytes(n));
            (row, bytes) = (rest, after);
            self.code.decode(read_scale(scale), codes, group);
            if let Some(rotations) = &self.rotations {
                rotations[g].undo(group);
            }
        }
    }

    /// Looks at bytes that come from outside: length, scales, codes that no encoder writes.
    ///
    /// # Errors
    /// [`LinalgError::Length`], [`LinalgError::BadCode`].
    pub fn check(&self, bytes: &[u8]) -> Result<(), LinalgError> {
        if bytes.len() != self.len_bytes() {
            return Err(LinalgError::Length { expected: self.len_bytes(), found: bytes.len() });
        }
        let mut at = 0;
        for (group, &n) in self.groups.iter().enumerate() {
            let scale = read_scale(&bytes[at..at + SCALE_BYTES]);
            if !(scale.is_finite() && scale >= 0.0) {
                return Err(LinalgError::BadCode { group, byte: at, found: f64::from(scale) });
            }
            at += SCALE_BYTES;
            let codes = &bytes[at..at + self.code.len_bytes(n)];
            if let Some(byte) = self.code.first_bad(n, codes) {
                return Err(LinalgError::BadCode { group, byte: at + byte, found: f64::from(codes[byte]) });
            }
            at += codes.len();
        }
        Ok(())
    }
}

fn read_scale(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests;
