//! Blocks of quantised numbers → f32, as ggml lays them out. Which tensor is of which type stands in `container`.
//!
//! Each format is a row of blocks of fixed size. The arithmetic (order of products and sums, each rounded to f32) is that of
//! ggml's reference code, so the numbers agree to the bit with `gguf`'s `dequantize`; a test holds them together.
//! Quantising lives nowhere: files of this kind are read, never written.

use half::{bf16, f16};

/// Number type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// What is read, for refusals.
pub(crate) const SUPPORTED: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL or IQ4_XS";

impl Kind {
    /// The type of ggml's number `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            20 => Self::Iq4Nl,
            23 => Self::Iq4Xs,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Numbers per block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Decodes whole blocks: `bytes` holds `out.len() / block_len` of them.
    ///
    /// # Panics
    /// If the two do not belong together.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let (len, width) = (self.block_len(), self.block_bytes());
        assert!(
            out.len().is_multiple_of(len)
                && bytes.len() / width == out.len() / len
                && bytes.len().is_multiple_of(width),
            "whole blocks"
        );
        let block = match self {
            Self::F32 => |b: &[u8], out: &mut [f32]| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => |b: &[u8], out: &mut [f32]| out[0] = half_at(b, 0),
            Self::Bf16 => |b: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::Iq4Nl => iq4_nl,
            Self::Iq4Xs => iq4_xs,
        };
        for (bytes, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(len)) {
            block(bytes, out);
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Low nibbles are the first 16 numbers, high ones the last 16.
fn nibble(qs: &[u8], j: usize) -> u8 {
    (qs[j % 16] >> (4 * (j / 16))) & 15
}

fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&b[2..], j)) - 8.0);
    }
}

fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&b[4..], j)) + m;
    }
}

/// The fifth bit of number `j` is bit `j` of a word of 32.
fn fifth(qh: &[u8], j: usize) -> u8 {
    ((qh[j / 8] >> (j % 8)) & 1) << 4
}

fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&b[6..], j) | fifth(&b[2..6], j)) - 16.0);
    }
}

fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&b[8..], j) | fifth(&b[4..8], j)) + m;
    }
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (out, &q) in out.iter_mut().zip(&b[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// Two bits of number `j`: halves of 128, in each four planes of 32.
fn two_bits(qs: &[u8], j: usize) -> u8 {
    (qs[32 * (j / 128) + j % 32] >> (2 * ((j / 32) % 4))) & 3
}

fn q2_k(b: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, d_min) = (half_at(b, 80), half_at(b, 82));
    for (j, out) in out.iter_mut().enumerate() {
        let s = scales[j / 16];
        *out = d * f32::from(s & 15) * f32::from(two_bits(qs, j)) - d_min * f32::from(s >> 4);
    }
}

fn q3_k(b: &[u8], out: &mut [f32]) {
    let (mask, qs, packed, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for (j, out) in out.iter_mut().enumerate() {
        let i = j / 16;
        let low = (packed[i % 8] >> (4 * (i / 8))) & 15;
        let high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
        let scale = f32::from(low | (high << 4)) - 32.0;
        // A bit that is set takes nothing away, one that is not takes 4.
        let below = if (mask[j % 32] >> (j / 32)) & 1 == 1 { 0.0 } else { 4.0 };
        *out = d * scale * (f32::from(two_bits(qs, j)) - below);
    }
}

/// Scale and minimum of the `i`-th run of 32: six bits each, of which the last four runs keep two elsewhere.
fn scale_and_min(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let shared = packed[i + 4];
        ((shared & 15) | ((packed[i - 4] >> 2) & 48), (shared >> 4) | ((packed[i] >> 2) & 48))
    }
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, d_min, packed, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for (j, out) in out.iter_mut().enumerate() {
        let run = j / 32;
        let (scale, min) = scale_and_min(packed, run);
        let q = (qs[32 * (run / 2) + j % 32] >> (4 * (run % 2))) & 15;
        *out = d * f32::from(scale) * f32::from(q) - d_min * f32::from(min);
    }
}

fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, d_min, packed, qh, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48], &b[48..176]);
    for (j, out) in out.iter_mut().enumerate() {
        let run = j / 32;
        let (scale, min) = scale_and_min(packed, run);
        let low = (qs[32 * (run / 2) + j % 32] >> (4 * (run % 2))) & 15;
        let q = low | (((qh[j % 32] >> run) & 1) << 4);
        *out = d * f32::from(scale) * f32::from(q) - d_min * f32::from(min);
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (j, out) in out.iter_mut().enumerate() {
        let (half, within) = (j / 128, j % 128);
        let low = (ql[64 * half + within % 64] >> (4 * (within / 64))) & 15;
        let high = (qh[32 * half + within % 32] >> (2 * (within / 32))) & 3;
        let scale = f32::from(scales[j / 16] as i8);
        *out = d * scale * (f32::from(low | (high << 4)) - 32.0);
    }
}

/// The sixteen values of ggml's non-linear four bits.
const LEVELS: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

fn iq4_nl(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * LEVELS[usize::from(nibble(&b[2..], j))];
    }
}

fn iq4_xs(b: &[u8], out: &mut [f32]) {
    let (d, high, low, qs) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8], &b[8..136]);
    for (j, out) in out.iter_mut().enumerate() {
        let run = j / 32;
        let bits = (low[run / 2] >> (4 * (run % 2))) & 15 | (((high >> (2 * run)) & 3) as u8) << 4;
        let scale = d * (f32::from(bits) - 32.0);
        *out = scale * LEVELS[usize::from(nibble(&qs[16 * run..], j % 32))];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand: scale 2, nibbles 0 and 15.
    #[test]
    fn a_block_by_hand() {
        let mut block = vec![0u8; 18];
        block[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        block[2] = 0xf0;
        let mut out = [0.0; 32];
        Kind::Q4_0.decode(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (-16.0, 14.0, -16.0));
        let mut block = vec![0u8; 34];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[33] = 0xff;
        Kind::Q8_0.decode(&block, &mut out);
        assert_eq!((out[0], out[31]), (0.0, -0.5));
    }

    #[test]
    fn unknown_types_have_no_kind() {
        assert!((0..64).filter(|&id| Kind::from_id(id).is_some()).count() == 15);
        assert!(Kind::from_id(4).is_none() && Kind::from_id(u32::MAX).is_none());
    }
}
