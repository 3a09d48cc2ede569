//! Two-dimensional convolution as a matrix product over patches.
//!
//! `patches` is `[C·k·k, positions]` (PyTorch's `unfold`): `y = W·patches + b`, `d_W = d_y·patchesᵀ`,
//! `d_patches = Wᵀ·d_y`. So to a tap a convolution is a linear layer that sees `positions` rows per image.

use ascribe_linalg::{Threads, gemm};

use crate::ops::{matrix, matrix_mut};

/// Sizes of one convolution: square kernel, zero padding, one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Conv {
    pub channels_in: usize,
    pub height: usize,
    pub width: usize,
    pub channels_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Conv {
    /// Sizes for an input `[C, H, W]`; nothing if the padded image does not cover the kernel.
    pub fn new(input: [usize; 3], channels_out: usize, kernel: usize, stride: usize, padding: usize) -> Option<Self> {
        let [channels_in, height, width] = input;
        let out = |side: usize| Some((side + 2 * padding).checked_sub(kernel)? / stride + 1);
        let (out_height, out_width) = (out(height)?, out(width)?);
        Some(Self { channels_in, height, width, channels_out, kernel, stride, padding, out_height, out_width })
    }

    /// Numbers in one patch, the fan-in.
    pub fn patch(&self) -> usize {
        self.channels_in * self.kernel * self.kernel
    }

    /// Positions of the output.
    pub fn area(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Output columns `from..to` whose input column `column · stride + offset − padding` lies in the image.
    fn inside(&self, offset: usize) -> (usize, usize) {
        let from = self.padding.saturating_sub(offset).div_ceil(self.stride);
        let to = (self.width + self.padding).saturating_sub(offset).div_ceil(self.stride).min(self.out_width);
        (from.min(to), to)
    }

    /// Calls `line(patch row, output row, first input column or nothing outside, from, to)` for every stretch.
    fn for_lines(&self, mut line: impl FnMut(usize, usize, Option<usize>, usize, usize)) {
        let mut row = 0;
        for channel in 0..self.channels_in {
            for (ky, kx) in (0..self.kernel).flat_map(|ky| (0..self.kernel).map(move |kx| (ky, kx))) {
                let (from, to) = self.inside(kx);
                for oy in 0..self.out_height {
                    let y = (oy * self.stride + ky).checked_sub(self.padding).filter(|&y| y < self.height);
                    let first = y
                        .filter(|_| from < to)
                        .map(|y| (channel * self.height + y) * self.width + from * self.stride + kx - self.padding);
                    line(row, oy, first, from, to);
                }
                row += 1;
            }
        }
    }

    /// `patches` `[C·k·k, positions]` of the image `x`.
    pub fn unfold(&self, x: &[f32], patches: &mut [f32]) {
        let (area, width, stride) = (self.area(), self.out_width, self.stride);
        self.for_lines(|row, oy, first, from, to| {
            let out = &mut patches[row * area + oy * width..][..width];
            let Some(first) = first else { return out.fill(0.0) };
            out[..from].fill(0.0);
            out[to..].fill(0.0);
            if stride == 1 {
                out[from..to].copy_from_slice(&x[first..first + to - from]);
            } else {
                out[from..to].iter_mut().zip(x[first..].iter().step_by(stride)).for_each(|(out, &x)| *out = x);
            }
        });
    }

    /// Adds patch gradients to the image's gradient: the transpose of [`Self::unfold`].
    pub fn fold_add(&self, patches: &[f32], d_x: &mut [f32]) {
        let (area, width, stride) = (self.area(), self.out_width, self.stride);
        self.for_lines(|row, oy, first, from, to| {
            let Some(first) = first else { return };
            let line = &patches[row * area + oy * width + from..][..to - from];
            if stride == 1 {
                d_x[first..first + line.len()].iter_mut().zip(line).for_each(|(d, &p)| *d += p);
            } else {
                d_x[first..].iter_mut().step_by(stride).zip(line).for_each(|(d, &p)| *d += p);
            }
        });
    }

    /// `y ← W·patches + b`; y `[O, positions]`, W `[O, C·k·k]`.
    pub fn forward(&self, weight: &[f32], bias: Option<&[f32]>, patches: &[f32], y: &mut [f32]) {
        let (o, i, t) = (self.channels_out, self.patch(), self.area());
        let keep = match bias {
            Some(bias) => {
                y.chunks_exact_mut(t).zip(bias).for_each(|(y, &b)| y.fill(b));
                1.0
            }
            None => 0.0,
        };
        gemm(1.0, matrix(weight, o, i), matrix(patches, i, t), keep, matrix_mut(y, o, t), Threads::One);
    }

    /// `d_W ← d_y·patchesᵀ + keep·d_W`.
    pub fn backward_weight(&self, patches: &[f32], d_y: &[f32], keep: f32, d_weight: &mut [f32]) {
        let (o, i, t) = (self.channels_out, self.patch(), self.area());
        gemm(1.0, matrix(d_y, o, t), matrix(patches, i, t).t(), keep, matrix_mut(d_weight, o, i), Threads::One);
    }

    /// `d_x ← d_x + fold(Wᵀ·d_y)`; `d_patches` is scratch of `C·k·k·positions`.
    pub fn backward_input(&self, weight: &[f32], d_y: &[f32], d_patches: &mut [f32], d_x: &mut [f32]) {
        let (o, i, t) = (self.channels_out, self.patch(), self.area());
        gemm(1.0, matrix(weight, o, i).t(), matrix(d_y, o, t), 0.0, matrix_mut(d_patches, i, t), Threads::One);
        self.fold_add(d_patches, d_x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::differences::{check, inner, noise};
    use super::*;

    const SHAPES: [([usize; 3], usize, usize, usize, usize); 7] = [
        ([1, 5, 5], 2, 3, 1, 0),
        ([2, 5, 6], 3, 3, 1, 1),
        ([2, 7, 6], 2, 5, 2, 2),
        ([1, 4, 4], 2, 1, 1, 0),
        ([2, 6, 5], 2, 3, 2, 1),
        ([1, 7, 7], 1, 2, 3, 1),
        ([1, 2, 1], 2, 5, 1, 2),
    ];

    fn plain(c: &Conv, w: &[f32], b: &[f32], x: &[f32]) -> Vec<f64> {
        let mut y = vec![];
        for o in 0..c.channels_out {
            for (oy, ox) in (0..c.out_height).flat_map(|oy| (0..c.out_width).map(move |ox| (oy, ox))) {
                let mut sum = f64::from(b[o]);
                for i in 0..c.channels_in {
                    for (ky, kx) in (0..c.kernel).flat_map(|ky| (0..c.kernel).map(move |kx| (ky, kx))) {
                        let (iy, ix) = (oy * c.stride + ky, ox * c.stride + kx);
                        if (c.padding..c.height + c.padding).contains(&iy)
                            && (c.padding..c.width + c.padding).contains(&ix)
                        {
                            let x = x[(i * c.height + iy - c.padding) * c.width + ix - c.padding];
                            let w = w[((o * c.channels_in + i) * c.kernel + ky) * c.kernel + kx];
                            sum += f64::from(x) * f64::from(w);
                        }
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    fn run(c: &Conv, w: &[f32], b: &[f32], x: &[f32]) -> Vec<f32> {
        let mut patches = vec![f32::NAN; c.patch() * c.area()];
        c.unfold(x, &mut patches);
        let mut y = vec![f32::NAN; c.channels_out * c.area()];
        c.forward(w, Some(b), &patches, &mut y);
        y
    }

    /// The definition, loop by loop, is the second route; ⟨d_y, y⟩ is bilinear, so differences of any step are exact.
    #[test]
    fn convolutions_agree_with_the_definition_and_finite_differences() {
        for (input, channels_out, kernel, stride, padding) in SHAPES {
            let c = Conv::new(input, channels_out, kernel, stride, padding).unwrap();
            let (x, b) = (noise("x", input.iter().product()), noise("b", channels_out));
            let w = noise("w", channels_out * c.patch());
            let y = run(&c, &w, &b, &x);
            for (got, exact) in y.iter().zip(plain(&c, &w, &b, &x)) {
                assert!((f64::from(*got) - exact).abs() < 1e-5 * (1.0 + exact.abs()), "{c:?}: {got} {exact}");
            }
            let d_y = noise("d_y", y.len());
            let mut patches = vec![0.0; c.patch() * c.area()];
            c.unfold(&x, &mut patches);
            let mut d_w = vec![f32::NAN; w.len()];
            c.backward_weight(&patches, &d_y, 0.0, &mut d_w);
            let (mut d_x, mut scratch) = (vec![0.0; x.len()], vec![f32::NAN; patches.len()]);
            c.backward_input(&w, &d_y, &mut scratch, &mut d_x);
            check(&w, &d_w, 0.5, 1e-4, |w| inner(&run(&c, w, &b, &x), &d_y));
            check(&x, &d_x, 0.5, 1e-4, |x| inner(&run(&c, &w, &b, x), &d_y));
        }
    }

    /// A 2 × 2 kernel over a 3 × 3 image, added up by hand.
    #[test]
    fn a_convolution_by_hand() {
        let c = Conv::new([1, 3, 3], 1, 2, 1, 0).unwrap();
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        assert_eq!(run(&c, &[1.0, 0.0, 0.0, -1.0], &[0.5], &x), [-3.5; 4]);
        assert_eq!(run(&c, &[1.0, 1.0, 1.0, 1.0], &[0.0], &x), [12.0, 16.0, 24.0, 28.0]);
        assert!(Conv::new([1, 3, 3], 1, 4, 1, 0).is_none());
    }
}
