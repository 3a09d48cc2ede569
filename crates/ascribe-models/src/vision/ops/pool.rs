//! Pools over windows that do not overlap. What does not fill a window is left out, as in PyTorch.

use crate::vision::config::Pooling;

/// Sizes of one pool; the stride is the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pool {
    pub kind: Pooling,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// Height and width of a window.
    pub window: [usize; 2],
    pub out_height: usize,
    pub out_width: usize,
}

impl Pool {
    /// Sizes for an input `[C, H, W]`.
    pub fn new(kind: Pooling, [channels, height, width]: [usize; 3], window: [usize; 2]) -> Self {
        let (out_height, out_width) = (height / window[0], width / window[1]);
        Self { kind, channels, height, width, window, out_height, out_width }
    }

    /// First element of every window, in the order of the outputs.
    fn corners(&self) -> impl Iterator<Item = usize> + use<> {
        let Self { channels, height, width, window, out_height, out_width, .. } = *self;
        (0..channels).flat_map(move |c| {
            (0..out_height)
                .flat_map(move |y| (0..out_width).map(move |x| (c * height + y * window[0]) * width + x * window[1]))
        })
    }

    /// Place of the first maximum of the window at `corner`; NaN counts as the largest, as in PyTorch.
    #[inline(always)]
    fn first_maximum(&self, x: &[f32], corner: usize) -> usize {
        let mut best = corner;
        for y in 0..self.window[0] {
            let line = corner + y * self.width;
            for place in line..line + self.window[1] {
                if x[place] > x[best] || (x[place].is_nan() && !x[best].is_nan()) {
                    best = place;
                }
            }
        }
        best
    }

    /// x `[C, H, W]` → y.
    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let share = 1.0 / (self.window[0] * self.window[1]) as f32;
        for (y, corner) in y.iter_mut().zip(self.corners()) {
            *y = match self.kind {
                Pooling::Max => x[self.first_maximum(x, corner)],
                Pooling::Average => {
                    let lines = (0..self.window[0]).map(|line| &x[corner + line * self.width..][..self.window[1]]);
                    share * lines.flatten().sum::<f32>()
                }
            };
        }
    }

    /// Place of every window's first maximum, in the order of the outputs.
    pub fn maxima(&self, x: &[f32], places: &mut Vec<usize>) {
        places.clear();
        places.extend(self.corners().map(|corner| self.first_maximum(x, corner)));
    }

    /// `d_x ← d_x + (gradient through the pool of d_y)`; a maximum's gradient goes to the first of equals.
    pub fn backward(&self, x: &[f32], d_y: &[f32], d_x: &mut [f32]) {
        let share = 1.0 / (self.window[0] * self.window[1]) as f32;
        for (&d_y, corner) in d_y.iter().zip(self.corners()) {
            match self.kind {
                Pooling::Max => d_x[self.first_maximum(x, corner)] += d_y,
                Pooling::Average => {
                    for line in 0..self.window[0] {
                        let line = &mut d_x[corner + line * self.width..][..self.window[1]];
                        line.iter_mut().for_each(|d| *d += share * d_y);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::differences::{check, inner, noise};
    use super::*;

    fn run(pool: &Pool, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; pool.channels * pool.out_height * pool.out_width];
        pool.forward(x, &mut y);
        y
    }

    #[test]
    fn pools_agree_with_finite_differences() {
        for kind in [Pooling::Max, Pooling::Average] {
            for (input, window) in [([2, 4, 4], [2, 2]), ([1, 5, 7], [2, 2]), ([3, 3, 2], [3, 2])] {
                let pool = Pool::new(kind, input, window);
                let x = noise("pool", input.iter().product());
                let d_y = noise("d_y", run(&pool, &x).len());
                let mut d_x = vec![0.0; x.len()];
                pool.backward(&x, &d_y, &mut d_x);
                // Small enough a step that no maximum changes place.
                check(&x, &d_x, 1e-3, 1e-3, |x| inner(&run(&pool, x), &d_y));
            }
        }
    }

    #[test]
    fn pools_by_hand() {
        let x = [1.0, 5.0, 2.0, 5.0, 0.0, 9.0, 4.0, 4.0, 4.0, 7.0];
        let pool = Pool::new(Pooling::Max, [1, 2, 5], [2, 2]);
        // Columns 0 and 1, then 2 and 3: the fifth column fills no window.
        assert_eq!(run(&pool, &x), [9.0, 5.0]);
        let mut d_x = vec![0.0; 10];
        pool.backward(&x, &[1.0, 10.0], &mut d_x);
        assert_eq!(d_x, [0.0, 0.0, 0.0, 10.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        // Four equal numbers: the first takes it all.
        let flat = Pool::new(Pooling::Max, [1, 2, 2], [2, 2]);
        let mut d_x = vec![0.0; 4];
        flat.backward(&[3.0; 4], &[2.0], &mut d_x);
        assert_eq!(d_x, [2.0, 0.0, 0.0, 0.0]);
        let mean = Pool::new(Pooling::Average, [1, 2, 2], [2, 2]);
        assert_eq!(run(&mean, &[1.0, 2.0, 3.0, 6.0]), [3.0]);
        assert!(run(&flat, &[1.0, f32::NAN, 2.0, 0.0])[0].is_nan());
    }
}
