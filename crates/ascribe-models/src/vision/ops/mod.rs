//! Operators of image classifiers on one example's planes `[C, H, W]`, forward and backward, each checked against finite
//! differences.
//!
//! Products are single-threaded and of one fixed shape per example, so an example's bits depend on nothing but itself.

mod conv;
mod loss;
mod pool;

pub(super) use conv::Conv;
pub(super) use loss::{loss_and_gradient, sample_class};
pub(super) use pool::Pool;

#[cfg(test)]
pub(super) mod differences {
    //! Finite differences of a scalar function, in f64 around f32 arithmetic.

    use ascribe_linalg::Stream;

    /// Standard normal numbers.
    pub(crate) fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(31, name);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    /// ⟨a, b⟩ in f64.
    pub(crate) fn inner(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Compares `gradient` with central differences of `f` around `x`, with step `h`.
    #[track_caller]
    pub(crate) fn check(x: &[f32], gradient: &[f32], h: f32, tolerance: f64, f: impl Fn(&[f32]) -> f64) {
        assert_eq!(x.len(), gradient.len());
        assert!(gradient.iter().any(|&g| g != 0.0), "a gradient of zeros proves nothing");
        for i in 0..x.len() {
            let at = |step: f32| {
                let mut moved = x.to_vec();
                moved[i] += step;
                (f(&moved), f64::from(moved[i]))
            };
            let ((above, up), (below, down)) = (at(h), at(-h));
            let quotient = (above - below) / (up - down);
            let got = f64::from(gradient[i]);
            assert!((quotient - got).abs() < tolerance * (1.0 + got.abs()), "element {i}: {quotient} against {got}");
        }
    }
}
