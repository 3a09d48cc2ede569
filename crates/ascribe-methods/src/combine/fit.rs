//! Fits a calibration: few parameters, every one of them bounded, the same answer every time.
//!
//! Cross-entropy is convex in `θ = w/T` and gives the first start; single channels and equal weights give the others.
//! Each runs downhill on rounded total variation, and the best are polished on total variation itself by a pattern
//! search, which needs no slope at the corners.

use ndarray::{Array2, ArrayView2};

use super::calibration::{Calibration, Channel, ChannelSpec, check_names};
use super::objective::{Problem, Smooth};
use super::transform::Transform;
use crate::dot::check_finite;
use crate::error::MethodError;

/// Largest `θ_c`: beyond it a softmax over z-scores is one-hot anyway.
const MAX_THETA: f64 = 20.0;

/// Corner radius of the rounded total variation: a fiftieth of the whole.
const CORNER: f64 = 0.02;

/// Steps of a downhill run.
const MAX_DESCENT_STEPS: usize = 200;

/// Starts that are polished.
const POLISHED_STARTS: usize = 3;

/// First and last step of the pattern search.
const PATTERN_STEPS: (f64, f64) = (0.5, 1e-3);

/// What may be fitted, and how hard weights are held down.
#[derive(Clone, Debug, PartialEq)]
pub struct FitOptions {
    /// One transform per channel, or `None`: each channel takes the one under which it fits best by itself.
    pub transforms: Option<Vec<Transform>>,
    /// Added to the mean total variation: `ridge · Σ θ_c²`. Spreads weight over channels that say the same.
    pub ridge: f64,
    /// Added to the mean total variation: this times the mean cross-entropy in nats, which counts ratios and so the order among
    /// small shares, where total variation sees nothing.
    pub entropy: f64,
}

impl FitOptions {
    /// Ridge of [`FitOptions::default`]: at `θ = 1` a thousandth of the whole.
    pub const RIDGE: f64 = 1e-3;
    /// Weight of the cross-entropy in [`FitOptions::default`].
    pub const ENTROPY: f64 = 0.0;
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { transforms: None, ridge: Self::RIDGE, entropy: Self::ENTROPY }
    }
}

/// Fits weights and temperature on the given queries.
///
/// `truth` is `[Q, K]`, rows of `queries` being shares (not negative, sum 1); `queries` are the rows to fit on. With one
/// channel this is the one-temperature calibration. Deterministic. Cost: some thousand evaluations of `Q·K·C`.
///
/// # Errors
/// No channel, no query, shapes, NaN, rows of `truth` that are no shares, another number of transforms than channels.
pub fn fit(
    channels: &[Channel<'_>],
    truth: ArrayView2<'_, f64>,
    queries: &[usize],
    options: &FitOptions,
) -> Result<Calibration, MethodError> {
    check(channels, truth, queries, options)?;
    let transforms = match &options.transforms {
        Some(transforms) => transforms.clone(),
        None => channels.iter().map(|c| best_transform(c, truth, queries, options)).collect(),
    };
    let tables: Vec<Array2<f64>> = channels.iter().zip(&transforms).map(|(c, t)| t.apply(c.scores)).collect();
    let problem = Problem::new(&tables.iter().collect::<Vec<_>>(), truth, queries);
    let theta = minimise(&problem, options);
    let spec = |(c, &transform): (&Channel<'_>, &Transform)| ChannelSpec { name: c.name.to_owned(), transform };
    Ok(Calibration::from_theta(channels.iter().zip(&transforms).map(spec).collect(), &theta))
}

fn check(
    channels: &[Channel<'_>],
    truth: ArrayView2<'_, f64>,
    queries: &[usize],
    options: &FitOptions,
) -> Result<(), MethodError> {
    if channels.is_empty() {
        return Err(MethodError::Empty { what: "the list of channels" });
    }
    if queries.is_empty() {
        return Err(MethodError::Empty { what: "the set of fitting queries" });
    }
    check_names(channels.iter().map(|c| c.name))?;
    for channel in channels {
        if channel.scores.dim() != truth.dim() {
            return Err(MethodError::shape("shape of a channel", truth.dim(), channel.scores.dim()));
        }
        check_finite(channel.name, channel.scores)?;
    }
    if let Some(transforms) = &options.transforms
        && transforms.len() != channels.len()
    {
        return Err(MethodError::shape("transforms, one per channel", channels.len(), transforms.len()));
    }
    for (field, found) in [("ridge", options.ridge), ("weight of the cross-entropy", options.entropy)] {
        if !(found.is_finite() && found >= 0.0) {
            return Err(MethodError::Parameter { field, expected: "finite and not negative", found });
        }
    }
    check_shares(truth, queries)
}

/// Rows `queries` of `truth` must be shares.
pub(super) fn check_shares(truth: ArrayView2<'_, f64>, queries: &[usize]) -> Result<(), MethodError> {
    for &q in queries {
        if q >= truth.nrows() {
            return Err(MethodError::shape("query", format!("below {}", truth.nrows()), q));
        }
        let row = truth.row(q);
        if let Some(column) = row.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(MethodError::BadValue { what: "true shares".to_owned(), row: q, column, found: row[column] });
        }
        // Shares come from one division each: the sum is off by rounding alone.
        if (row.sum() - 1.0).abs() > 1e-9 {
            return Err(MethodError::shape("sum of a row of true shares", 1.0, format!("{} in row {q}", row.sum())));
        }
    }
    Ok(())
}

/// The transform under which the channel alone has the smallest penalised total variation; ties to the earlier one.
fn best_transform(
    channel: &Channel<'_>,
    truth: ArrayView2<'_, f64>,
    queries: &[usize],
    options: &FitOptions,
) -> Transform {
    let mut best = (f64::INFINITY, Transform::ALL[0]);
    for transform in Transform::ALL {
        let table = transform.apply(channel.scores);
        let problem = Problem::new(&[&table], truth, queries);
        let value = penalised(&problem, &minimise(&problem, options), options);
        if value < best.0 {
            best = (value, transform);
        }
    }
    best.1
}

/// The smallest penalised total variation found over `0 ≤ θ ≤ MAX_THETA`.
fn minimise(problem: &Problem, options: &FitOptions) -> Vec<f64> {
    let n = problem.n_channels();
    let convex = descend(problem, Smooth::CrossEntropy, options, vec![0.0; n]);
    let mut starts = vec![vec![0.0; n], convex];
    for c in 0..n {
        starts.push(best_on_ray(problem, options, |scale| (0..n).map(|i| if i == c { scale } else { 0.0 }).collect()));
    }
    if n > 1 {
        starts.push(best_on_ray(problem, options, |scale| vec![scale / n as f64; n]));
    }
    let mut runs: Vec<(f64, Vec<f64>)> = Vec::new();
    for start in starts {
        let end = descend(problem, Smooth::TotalVariation { corner: CORNER }, options, start.clone());
        // The rounded objective may prefer a point that the exact one does not: keep both.
        for theta in [start, end] {
            runs.push((penalised(problem, &theta, options), theta));
        }
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs.dedup_by(|b, a| a.1.iter().zip(&b.1).all(|(x, y)| (x - y).abs() < 1e-3));
    let polished = runs.into_iter().take(POLISHED_STARTS).map(|(_, theta)| polish(problem, options, theta));
    polished.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, theta)| theta).expect("there is always a start")
}

fn penalised(problem: &Problem, theta: &[f64], options: &FitOptions) -> f64 {
    let exact = problem.total_variation(theta) + options.ridge * theta.iter().map(|t| t * t).sum::<f64>();
    match options.entropy {
        0.0 => exact,
        weight => exact + weight * problem.cross_entropy(theta),
    }
}

/// The best of a logarithmic grid of scales along one ray from the origin.
fn best_on_ray(problem: &Problem, options: &FitOptions, ray: impl Fn(f64) -> Vec<f64>) -> Vec<f64> {
    const GRID: usize = 24;
    let scale = |i: usize| 0.05 * (MAX_THETA / 0.05).powf(i as f64 / (GRID - 1) as f64);
    let points = (0..GRID).map(|i| ray(scale(i))).map(|theta| (penalised(problem, &theta, options), theta));
    points.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, theta)| theta).expect("the grid has points")
}

/// Projected gradient descent with backtracking (Armijo) and Barzilai–Borwein first steps.
fn descend(problem: &Problem, smooth: Smooth, options: &FitOptions, mut theta: Vec<f64>) -> Vec<f64> {
    let evaluate = |theta: &[f64]| {
        let ridge = options.ridge;
        let (mut value, mut gradient) = problem.value_and_gradient(theta, smooth);
        if options.entropy > 0.0 && !matches!(smooth, Smooth::CrossEntropy) {
            let (more, slopes) = problem.value_and_gradient(theta, Smooth::CrossEntropy);
            value += options.entropy * more;
            gradient.iter_mut().zip(slopes).for_each(|(g, s)| *g += options.entropy * s);
        }
        gradient.iter_mut().zip(theta).for_each(|(g, t)| *g += 2.0 * ridge * t);
        (value + ridge * theta.iter().map(|t| t * t).sum::<f64>(), gradient)
    };
    let (mut value, mut gradient) = evaluate(&theta);
    let mut step = 1.0;
    for _ in 0..MAX_DESCENT_STEPS {
        let mut accepted = None;
        for _ in 0..40 {
            let moved: Vec<f64> =
                theta.iter().zip(&gradient).map(|(t, g)| (t - step * g).clamp(0.0, MAX_THETA)).collect();
            let descent: f64 = moved.iter().zip(&theta).zip(&gradient).map(|((m, t), g)| (m - t) * g).sum();
            let (new_value, new_gradient) = evaluate(&moved);
            if new_value <= value + 1e-4 * descent {
                accepted = Some((moved, new_value, new_gradient, descent));
                break;
            }
            step *= 0.5;
        }
        let Some((moved, new_value, new_gradient, descent)) = accepted else { break };
        let (mut ss, mut sy) = (0.0, 0.0);
        for i in 0..theta.len() {
            let s = moved[i] - theta[i];
            ss += s * s;
            sy += s * (new_gradient[i] - gradient[i]);
        }
        (theta, value, gradient) = (moved, new_value, new_gradient);
        if descent.abs() < 1e-12 {
            break;
        }
        step = if sy > 0.0 { (ss / sy).clamp(1e-4, 1e3) } else { step * 2.0 };
    }
    theta
}

/// Pattern search on the exact objective: single channels, the common scale, and exchanges between two channels.
fn polish(problem: &Problem, options: &FitOptions, mut theta: Vec<f64>) -> (f64, Vec<f64>) {
    let n = theta.len();
    let mut value = penalised(problem, &theta, options);
    let mut step = PATTERN_STEPS.0;
    while step >= PATTERN_STEPS.1 {
        let mut moves: Vec<Vec<f64>> = Vec::new();
        for factor in [1.0 + step, 1.0 / (1.0 + step)] {
            moves.push(theta.iter().map(|t| t * factor).collect());
        }
        for c in 0..n {
            for sign in [step, -step] {
                let mut moved = theta.clone();
                moved[c] += sign;
                moves.push(moved.clone());
                for other in (0..n).filter(|&other| other != c && sign > 0.0 && theta[other] > 0.0) {
                    let mut exchanged = moved.clone();
                    exchanged[other] -= step;
                    moves.push(exchanged);
                }
            }
        }
        let mut improved = false;
        for mut candidate in moves {
            candidate.iter_mut().for_each(|t| *t = t.clamp(0.0, MAX_THETA));
            let candidate_value = penalised(problem, &candidate, options);
            // Gains below rounding would let the search wander for ever.
            if candidate_value < value - 1e-12 {
                (value, theta, improved) = (candidate_value, candidate, true);
            }
        }
        if !improved {
            step *= 0.5;
        }
    }
    (value, theta)
}
