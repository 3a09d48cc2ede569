//! Sparse Johnson–Lindenstrauss transforms and seeded masks: projections that cost additions instead of products.
//!
//! Sources: Kane and Nelson, arXiv:1012.1577 (the block construction); GraSS, arXiv:2505.18976 (their use on gradients).
//! What is projected, and under which names, is the caller's business.

use crate::rng::Stream;

/// Version of the bits of [`Sjlt`] and [`mask`] (it stands in every `ProjectorSpec` that uses them).
pub const SPARSE_VERSION: u32 = 1;

/// `out = S·u`: every number of `u` is added, with a seeded sign and the factor `1/√s`, to one place in each of `s` equal
/// parts of `out`. `E⟨Su, Sv⟩ = ⟨u, v⟩` over seeds.
///
/// Places and signs of `u[j]` come from the words `j·s … j·s + s − 1` of the stream `{module}/sjlt`, so no table is kept.
#[derive(Clone, Debug)]
pub struct Sjlt {
    stream: Stream,
    dim: usize,
    nnz: usize,
    factor: f32,
}

impl Sjlt {
    /// The transform of `module` into `dim` numbers, `nnz` places each (1 to `dim`; others are taken as the nearest of these).
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn new(seed: u64, module: &str, dim: usize, nnz: usize) -> Self {
        assert!(dim > 0, "a projection into nothing");
        let nnz = nnz.clamp(1, dim);
        let stream = Stream::new(seed, &format!("{module}/sjlt"));
        Self { stream, dim, nnz, factor: 1.0 / (nnz as f32).sqrt() }
    }

    /// The same with all results times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f32) -> Self {
        self.factor *= factor;
        self
    }

    /// Numbers that come out.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// `out ← out + S·u`, where `u[0]` is number `first` of the whole vector. Numbers that are 0 cost nothing. Adds in order:
    /// the bytes depend on nothing else. Cost: `nnz` words and additions per number.
    ///
    /// # Panics
    /// If `out` has another length than [`Sjlt::dim`].
    pub fn add(&self, first: usize, u: &[f32], out: &mut [f32]) {
        assert_eq!(out.len(), self.dim, "a projection of another length");
        for (j, &x) in u.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            let x = x * self.factor;
            for r in 0..self.nnz {
                let (place, negative) = self.place(first + j, r);
                out[place] += if negative { -x } else { x };
            }
        }
    }

    /// Where number `j` goes in part `r` (below `nnz`), and whether its sign changes.
    pub fn place(&self, j: usize, r: usize) -> (usize, bool) {
        let (from, to) = (r * self.dim / self.nnz, (r + 1) * self.dim / self.nnz);
        let word = self.stream.at((j * self.nnz + r) as u64);
        let low = (word & 0xffff_ffff) as u128;
        (from + ((low * (to - from) as u128) >> 32) as usize, word >> 63 == 1)
    }
}

/// `keep` different numbers below `n` in rising order (all of them if `keep ≥ n`), by the stream `{name}`.
pub fn mask(seed: u64, name: &str, n: usize, keep: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    if keep < n {
        let mut stream = Stream::new(seed, name);
        for i in 0..keep {
            let bound = u32::try_from(n - i).expect("layers are narrower than 2^32");
            all.swap(i, i + stream.below(bound) as usize);
        }
        all.truncate(keep);
        all.sort_unstable();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED_PLACES: [(usize, bool); 6] = [(21, true), (63, false), (31, true), (55, true), (4, true), (56, true)];
    const PINNED_MASK: [usize; 6] = [1, 32, 54, 75, 76, 82];

    fn vector(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(8, name);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    /// Every number lands once in each part, and the transform is the matrix that its unit vectors say.
    #[test]
    fn it_is_a_matrix_with_s_entries_per_column_one_in_each_part() {
        let sjlt = Sjlt::new(3, "m", 10, 3);
        let u = vector("u", 20);
        let (mut whole, mut summed) = (vec![0.0; 10], vec![0.0f64; 10]);
        sjlt.add(0, &u, &mut whole);
        for (j, &x) in u.iter().enumerate() {
            let mut column = vec![0.0f32; 10];
            sjlt.add(j, &[1.0], &mut column);
            for part in [0..3, 3..6, 6..10] {
                let entries: Vec<f32> = column[part].iter().copied().filter(|&x| x != 0.0).collect();
                assert!(entries.len() == 1 && (entries[0].abs() - 1.0 / 3f32.sqrt()).abs() < 1e-7);
            }
            summed.iter_mut().zip(&column).for_each(|(s, &c)| *s += f64::from(x) * f64::from(c));
        }
        assert!(whole.iter().zip(&summed).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-5));
    }

    /// `Var⟨Su, Sv⟩ ≤ 2‖u‖²‖v‖²/dim` for one place per number; the mean of 4,000 seeds within five standard errors.
    #[test]
    fn dot_products_are_kept_on_average() {
        let (u, v) = (vector("u", 50), vector("v", 50));
        for nnz in [1, 4] {
            let one = |seed| {
                let (mut a, mut b) = (vec![0.0; 32], vec![0.0; 32]);
                let sjlt = Sjlt::new(seed, "m", 32, nnz);
                sjlt.add(0, &u, &mut a);
                sjlt.add(0, &v, &mut b);
                dot(&a, &b)
            };
            let mean = (0..4000).map(one).sum::<f64>() / 4000.0;
            let error = (2.0 * dot(&u, &u) * dot(&v, &v) / 32.0 / 4000.0).sqrt();
            assert!((mean - dot(&u, &v)).abs() < 5.0 * error, "{mean} {}", dot(&u, &v));
        }
    }

    /// Words of version 1: stores on disk depend on them. Computed a second time by a Python transcription of the definition.
    #[test]
    fn first_places_are_pinned() {
        let sjlt = Sjlt::new(7, "layers.0.attn.qkv", 64, 2);
        let places: Vec<(usize, bool)> =
            (0..3).flat_map(|j| (0..2).map(move |r| (j, r))).map(|(j, r)| sjlt.place(j, r)).collect();
        assert_eq!(places, PINNED_PLACES);
        assert_eq!(mask(7, "layers.0.attn.qkv/in", 100, 6), PINNED_MASK);
    }

    #[test]
    fn masks_are_subsets_of_the_asked_size_and_fair() {
        let mut counts = [0u32; 10];
        for seed in 0..5000 {
            let mask = mask(seed, "m", 10, 3);
            assert!(mask.len() == 3 && mask.windows(2).all(|pair| pair[0] < pair[1]));
            mask.iter().for_each(|&i| counts[i] += 1);
        }
        // Binomial(5000, 0.3): five standard deviations are 162.
        assert!(counts.iter().all(|&c| c.abs_diff(1500) < 162), "{counts:?}");
        assert_eq!(mask(1, "m", 3, 9), [0, 1, 2]);
    }
}
