//! What calibration minimises: distance between predicted and true shares as a function of `θ = w / T`.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis};

/// Transformed channels and true shares of the queries that are fitted, laid out for the optimiser.
pub(crate) struct Problem {
    /// `[C, Q·K]`: z of channel c at (q, k), channel by channel so that a logit table is a few long additions.
    features: Array2<f64>,
    /// `[Q, K]`.
    truth: Array2<f64>,
}

impl Problem {
    /// `channels`: C tables `[Q, K]`; `truth` `[Q, K]`; `queries`: the rows to use.
    pub(crate) fn new(channels: &[&Array2<f64>], truth: ArrayView2<'_, f64>, queries: &[usize]) -> Self {
        let k = truth.ncols();
        let features =
            Array2::from_shape_fn((channels.len(), queries.len() * k), |(c, i)| channels[c][(queries[i / k], i % k)]);
        Self { features, truth: truth.select(Axis(0), queries) }
    }

    /// Parameters.
    pub(crate) fn n_channels(&self) -> usize {
        self.features.nrows()
    }

    /// Shares `[Q, K]` under `theta`.
    pub(crate) fn shares(&self, theta: &[f64]) -> Array2<f64> {
        let mut logits = vec![0.0; self.truth.len()];
        for (feature, &t) in self.features.rows().into_iter().zip(theta) {
            // A channel without weight must not bring in 0·z either: it is simply absent.
            if t != 0.0 {
                logits.iter_mut().zip(feature).for_each(|(l, z)| *l += t * z);
            }
        }
        let shares = Array2::from_shape_vec(self.truth.raw_dim(), logits);
        let mut shares = shares.expect("one logit per entry of the truth");
        shares.rows_mut().into_iter().for_each(softmax);
        shares
    }

    /// Mean total variation at `theta`.
    pub(crate) fn total_variation(&self, theta: &[f64]) -> f64 {
        mean_total_variation(self.shares(theta).view(), self.truth.view())
    }

    /// Mean cross-entropy in nats at `theta`.
    pub(crate) fn cross_entropy(&self, theta: &[f64]) -> f64 {
        cross_entropy(self.shares(theta).view(), self.truth.view())
    }

    /// Value and gradient `[C]` of one of the smooth objectives at `theta`.
    pub(crate) fn value_and_gradient(&self, theta: &[f64], smooth: Smooth) -> (f64, Vec<f64>) {
        let shares = self.shares(theta);
        let n_queries = self.truth.nrows() as f64;
        let mut value = 0.0;
        // dℓ/dlogit_k = p_k (dℓ/dp_k − Σ_j p_j dℓ/dp_j), row by row.
        let mut slopes = Vec::with_capacity(shares.len());
        for (p, t) in shares.rows().into_iter().zip(self.truth.rows()) {
            let start = slopes.len();
            slopes.extend(p.iter().zip(&t).map(|(&p, &t)| smooth.slope(p, t)));
            value += p.iter().zip(&t).map(|(&p, &t)| smooth.value(p, t)).sum::<f64>();
            let mean: f64 = p.iter().zip(&slopes[start..]).map(|(p, s)| p * s).sum();
            slopes[start..].iter_mut().zip(&p).for_each(|(s, p)| *s = p * (*s - mean));
        }
        let gradient = |feature: ArrayView1<'_, f64>| -> f64 {
            feature.iter().zip(&slopes).map(|(z, s)| z * s).sum::<f64>() / n_queries
        };
        (value / n_queries, self.features.rows().into_iter().map(gradient).collect())
    }
}

/// A differentiable stand-in for total variation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Smooth {
    /// `−Σ t ln p`: convex in θ, so its minimum is one and is found.
    CrossEntropy,
    /// `½ Σ (√((p − t)² + ε²) − ε)`: total variation with its corners rounded on the scale ε.
    TotalVariation {
        /// ε.
        corner: f64,
    },
}

impl Smooth {
    fn value(self, p: f64, t: f64) -> f64 {
        match self {
            Self::CrossEntropy if t == 0.0 => 0.0,
            Self::CrossEntropy => -t * p.max(f64::MIN_POSITIVE).ln(),
            Self::TotalVariation { corner } => 0.5 * (((p - t).powi(2) + corner * corner).sqrt() - corner),
        }
    }

    fn slope(self, p: f64, t: f64) -> f64 {
        match self {
            Self::CrossEntropy => -t / p.max(f64::MIN_POSITIVE),
            Self::TotalVariation { corner } => 0.5 * (p - t) / ((p - t).powi(2) + corner * corner).sqrt(),
        }
    }
}

/// Softmax in place, shifted by the maximum.
pub(crate) fn softmax(mut logits: ArrayViewMut1<'_, f64>) {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
    logits.mapv_inplace(|v| (v - largest).exp());
    let total: f64 = logits.sum();
    logits.mapv_inplace(|v| v / total);
}

/// Mean over queries of `½ Σ_k |p_k − t_k|`, in `[0, 1]` for shares.
///
/// # Panics
/// If the shapes differ.
pub fn mean_total_variation(shares: ArrayView2<'_, f64>, truth: ArrayView2<'_, f64>) -> f64 {
    assert_eq!(shares.dim(), truth.dim(), "shares and truth have different shapes");
    let total: f64 = shares.iter().zip(&truth).map(|(p, t)| (p - t).abs()).sum();
    0.5 * total / shares.nrows().max(1) as f64
}

/// [`mean_total_variation`] with corners rounded on the scale `corner`: `½ Σ (√((p−t)² + ε²) − ε)`, which has a gradient.
///
/// # Panics
/// If the shapes differ.
pub fn smooth_total_variation(shares: ArrayView2<'_, f64>, truth: ArrayView2<'_, f64>, corner: f64) -> f64 {
    assert_eq!(shares.dim(), truth.dim(), "shares and truth have different shapes");
    let smooth = Smooth::TotalVariation { corner };
    shares.iter().zip(&truth).map(|(&p, &t)| smooth.value(p, t)).sum::<f64>() / shares.nrows().max(1) as f64
}

/// Mean over queries of `−Σ_k t_k ln p_k`, in nats.
///
/// # Panics
/// If the shapes differ.
pub fn cross_entropy(shares: ArrayView2<'_, f64>, truth: ArrayView2<'_, f64>) -> f64 {
    assert_eq!(shares.dim(), truth.dim(), "shares and truth have different shapes");
    let smooth = Smooth::CrossEntropy;
    shares.iter().zip(&truth).map(|(&p, &t)| smooth.value(p, t)).sum::<f64>() / shares.nrows().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    fn problem() -> Problem {
        let mut stream = Stream::new(4, "objective-test");
        let channels: Vec<Array2<f64>> = (0..3).map(|_| Array2::from_shape_fn((9, 5), |_| stream.normal())).collect();
        let mut truth = Array2::from_shape_fn((9, 5), |_| (stream.normal() - 0.2).max(0.0));
        for mut row in truth.rows_mut() {
            row[0] += 0.1;
            let total = row.sum();
            row /= total;
        }
        Problem::new(&channels.iter().collect::<Vec<_>>(), truth.view(), &[0, 2, 3, 4, 5, 6, 8])
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let problem = problem();
        for smooth in [Smooth::CrossEntropy, Smooth::TotalVariation { corner: 0.05 }] {
            for theta in [[0.0, 0.0, 0.0], [0.3, 1.1, 0.02], [2.0, 0.0, 0.7]] {
                let (_, gradient) = problem.value_and_gradient(&theta, smooth);
                for c in 0..3 {
                    let h = 1e-5;
                    let at = |shift: f64| {
                        let mut moved = theta;
                        moved[c] += shift;
                        problem.value_and_gradient(&moved, smooth).0
                    };
                    // Five points: truncation h⁴, rounding eps/h ≈ 2e-11.
                    let slope = (at(-2.0 * h) - 8.0 * at(-h) + 8.0 * at(h) - at(2.0 * h)) / (12.0 * h);
                    assert!((gradient[c] - slope).abs() < 1e-9, "{smooth:?} {theta:?} {c}: {} {slope}", gradient[c]);
                }
            }
        }
    }

    #[test]
    fn values_by_hand() {
        let (p, t) = (arr2(&[[0.5, 0.5], [0.25, 0.75]]), arr2(&[[1.0, 0.0], [0.25, 0.75]]));
        assert_eq!(mean_total_variation(p.view(), t.view()), 0.25);
        let ln = (2.0f64.ln() - 0.25 * 0.25f64.ln() - 0.75 * 0.75f64.ln()) / 2.0;
        assert!((cross_entropy(p.view(), t.view()) - ln).abs() < 1e-15);
        // ε → 0 gives total variation back; the rounding takes away at most ε/2 per entry.
        assert!((smooth_total_variation(p.view(), t.view(), 1e-9) - 0.25).abs() < 1e-8);
    }

    #[test]
    fn smooth_value_and_problem_agree() {
        let problem = problem();
        let theta = [0.4, 0.2, 0.9];
        let shares = problem.shares(&theta);
        let smooth = problem.value_and_gradient(&theta, Smooth::TotalVariation { corner: 0.02 }).0;
        assert!((smooth - smooth_total_variation(shares.view(), problem.truth.view(), 0.02)).abs() < 1e-14);
        assert!((problem.total_variation(&theta) - smooth).abs() < 0.02 * 5.0 / 2.0);
        assert!(shares.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-14));
    }
}
