//! Predicted utilities of every subset, and a calibrated sum of several such predictions.
//!
//! Dataset scores say what a dataset adds to the whole; training on a subset for the same number of steps sees each of its
//! datasets more often. So a score becomes a table either as a sum (`Σ_{k∈S} s_k`) or as a mean over the subset's examples
//! (`n/|S| · Σ_{k∈S} s_k`, [`mean_table`]), and a proxy model gives its table directly. `U_q(S) ≈ Σ_c w_c T_c(S, q) + const_q`
//! with `w ≥ 0` fitted by least squares to measured utilities of other queries; Shapley values of the fitted game are its
//! shares. Source: ours; measured in `benches/SETTINGS.md`.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::MAX_DATASETS;
use crate::combine::{Holdout, Splits, halves_of};
use crate::dot::check_finite;
use crate::error::MethodError;

/// One prediction of all subsets' utilities.
#[derive(Clone, Copy, Debug)]
pub struct GroupChannel<'a> {
    /// Name of the method or proxy.
    pub name: &'a str,
    /// `[2^K, Q]`; row m is the subset with bit mask m. Any unit, larger = better.
    pub table: ArrayView2<'a, f64>,
}

/// `Σ_{k∈S} s_k` for scores `[Q, K]`: `[2^K, Q]`.
///
/// # Errors
/// No or more than [`MAX_DATASETS`] datasets; NaN.
pub fn sum_table(scores: ArrayView2<'_, f64>) -> Result<Array2<f64>, MethodError> {
    weighted_table(scores, |_| 1.0)
}

/// `(n/n_S) Σ_{k∈S} s_k` for scores `[Q, K]` and examples per dataset `[K]`: what the subset's mean example says, when every
/// training has the same number of steps. The empty subset is 0. `[2^K, Q]`.
///
/// # Errors
/// As [`sum_table`]; another number of sizes; a size that is not positive.
pub fn mean_table(scores: ArrayView2<'_, f64>, sizes: &[f64]) -> Result<Array2<f64>, MethodError> {
    if sizes.len() != scores.ncols() {
        return Err(MethodError::shape("sizes of datasets", scores.ncols(), sizes.len()));
    }
    if let Some(&found) = sizes.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
        return Err(MethodError::Parameter { field: "size of a dataset", expected: "finite and positive", found });
    }
    let all: f64 = sizes.iter().sum();
    let kept = |mask: usize| (0..sizes.len()).filter(|k| mask >> k & 1 == 1).map(|k| sizes[k]).sum::<f64>();
    weighted_table(scores, |mask| if mask == 0 { 0.0 } else { all / kept(mask) })
}

fn weighted_table(scores: ArrayView2<'_, f64>, weight: impl Fn(usize) -> f64) -> Result<Array2<f64>, MethodError> {
    let (n_queries, k) = scores.dim();
    if k == 0 || k > MAX_DATASETS {
        return Err(MethodError::shape("datasets of a table of all subsets", format!("1 to {MAX_DATASETS}"), k));
    }
    check_finite("dataset scores", scores)?;
    let mut out = Array2::zeros((1 << k, n_queries));
    for (mask, mut row) in out.rows_mut().into_iter().enumerate() {
        for member in (0..k).filter(|member| mask >> member & 1 == 1) {
            row += &scores.column(member);
        }
        row *= weight(mask);
    }
    Ok(out)
}

/// `U_q(S) = Σ_c weight_c · T_c(S, q) / scale_c`, in the unit of the utilities it was fitted to, up to a constant per query.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCalibration {
    /// Channels, in the order of `weights`.
    pub channels: Vec<String>,
    /// Root mean square of each channel's table over fitted queries and subsets, after each query's mean was taken out.
    pub scales: Vec<f64>,
    /// Not negative.
    pub weights: Vec<f64>,
}

impl GroupCalibration {
    /// Fits weights on the columns `queries` of `truth` `[2^K, Q]`.
    ///
    /// Least squares over subsets and queries, each query's mean over subsets taken out on both sides (it decides neither
    /// order nor values), under `w ≥ 0`. Convex; solved by cyclic coordinate descent to its minimum, so the answer does not
    /// depend on a start. A channel that is constant for every query has scale and weight 0. Cost `2^K·Q·C²`.
    ///
    /// # Errors
    /// No channel or query, equal names, shapes, NaN.
    pub fn fit(
        channels: &[GroupChannel<'_>],
        truth: ArrayView2<'_, f64>,
        queries: &[usize],
    ) -> Result<Self, MethodError> {
        check(channels, truth.dim())?;
        check_finite("measured utilities", truth)?;
        if queries.is_empty() {
            return Err(MethodError::Empty { what: "the set of fitting queries" });
        }
        if let Some(q) = queries.iter().find(|q| **q >= truth.ncols()) {
            return Err(MethodError::shape("query", format!("below {}", truth.ncols()), q));
        }
        let target = centred(truth, queries);
        let mut tables: Vec<Array2<f64>> = channels.iter().map(|c| centred(c.table, queries)).collect();
        let mut scales = Vec::with_capacity(tables.len());
        for table in &mut tables {
            let scale = (table.iter().map(|v| v * v).sum::<f64>() / table.len() as f64).sqrt();
            // What differs by rounding alone says nothing.
            let scale = if scale > 1e-12 { scale } else { 0.0 };
            table.mapv_inplace(|v| if scale > 0.0 { v / scale } else { 0.0 });
            scales.push(scale);
        }
        let inner = |a: &Array2<f64>, b: &Array2<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let n = tables.len();
        let gram = Array2::from_shape_fn((n, n), |(a, b)| inner(&tables[a], &tables[b]) / target.len() as f64);
        let against: Vec<f64> = tables.iter().map(|t| inner(t, &target) / target.len() as f64).collect();
        let weights = non_negative_least_squares(gram.view(), &against);
        Ok(Self { channels: channels.iter().map(|c| c.name.to_owned()).collect(), scales, weights })
    }

    /// Predicted utilities `[2^K, Q]` of the channels' queries; channels are found by name.
    ///
    /// # Errors
    /// A missing channel, shapes, NaN.
    pub fn predict(&self, channels: &[GroupChannel<'_>]) -> Result<Array2<f64>, MethodError> {
        let first = channels.first().ok_or(MethodError::Empty { what: "the list of channels" })?;
        check(channels, first.table.dim())?;
        let mut out = Array2::zeros(first.table.dim());
        for ((name, &scale), &weight) in self.channels.iter().zip(&self.scales).zip(&self.weights) {
            let channel = channels.iter().find(|c| c.name == name).ok_or_else(|| {
                let names: Vec<&str> = channels.iter().map(|c| c.name).collect();
                MethodError::shape("channels of the calibration", name, names)
            })?;
            if scale > 0.0 && weight > 0.0 {
                out.scaled_add(weight / scale, &channel.table);
            }
        }
        Ok(out)
    }
}

/// Predictions for queries that the fit never saw, `[2^K, Q]` per split: every query is held out once in each.
///
/// `own` is each query's dataset, `splits` as in `combine::cross_fit`. With `Holdout::Datasets` all queries of half of the
/// datasets are held out together.
///
/// # Errors
/// As [`GroupCalibration::fit`]; what cannot be split.
pub fn cross_fit_group(
    channels: &[GroupChannel<'_>],
    truth: ArrayView2<'_, f64>,
    own: &[u32],
    splits: Splits,
) -> Result<Vec<Array2<f64>>, MethodError> {
    check(channels, truth.dim())?;
    if own.len() != truth.ncols() {
        return Err(MethodError::shape("datasets of the queries", truth.ncols(), own.len()));
    }
    if splits.n == 0 {
        return Err(MethodError::Empty { what: "the list of splits" });
    }
    let split = |number: usize| -> Result<Array2<f64>, MethodError> {
        let (a, b) = halves_of(own, splits, number)?;
        let mut out = Array2::zeros(truth.dim());
        for (fitted, held_out) in [(&a, &b), (&b, &a)] {
            let predicted = GroupCalibration::fit(channels, truth, fitted)?.predict(channels)?;
            held_out.iter().for_each(|&q| out.column_mut(q).assign(&predicted.column(q)));
        }
        Ok(out)
    };
    (0..splits.n).into_par_iter().map(split).collect()
}

/// Whether a split holds out queries or whole datasets, as a word for reports.
pub const fn holdout_name(holdout: Holdout) -> &'static str {
    match holdout {
        Holdout::Queries => "queries",
        Holdout::Datasets => "datasets",
    }
}

fn check(channels: &[GroupChannel<'_>], shape: (usize, usize)) -> Result<(), MethodError> {
    if channels.is_empty() {
        return Err(MethodError::Empty { what: "the list of channels" });
    }
    for (i, channel) in channels.iter().enumerate() {
        if channels[..i].iter().any(|other| other.name == channel.name) {
            return Err(MethodError::shape("channel names", "unique names", channel.name));
        }
        if channel.table.dim() != shape {
            return Err(MethodError::shape("shape of a channel's table", shape, channel.table.dim()));
        }
        check_finite(channel.name, channel.table)?;
    }
    Ok(())
}

/// Chosen columns, each without its mean.
fn centred(table: ArrayView2<'_, f64>, queries: &[usize]) -> Array2<f64> {
    let mut out = table.select(Axis(1), queries);
    for mut column in out.columns_mut() {
        let mean = column.sum() / column.len() as f64;
        column.mapv_inplace(|v| v - mean);
    }
    out
}

/// Minimum of `½wᵀGw − hᵀw` over `w ≥ 0`, G positive semi-definite with a diagonal of ones or zeros.
fn non_negative_least_squares(gram: ArrayView2<'_, f64>, against: &[f64]) -> Vec<f64> {
    const SWEEPS: usize = 20_000;
    // Channels that say exactly the same share their weight instead of trading it for ever.
    const RIDGE: f64 = 1e-6;
    let mut weights = vec![0.0f64; against.len()];
    for _ in 0..SWEEPS {
        let mut moved = 0.0f64;
        for i in 0..weights.len() {
            if gram[(i, i)] == 0.0 {
                continue;
            }
            let slope =
                against[i] - gram.row(i).iter().zip(&weights).map(|(g, w)| g * w).sum::<f64>() - RIDGE * weights[i];
            let next = (weights[i] + slope / (gram[(i, i)] + RIDGE)).max(0.0);
            moved = moved.max((next - weights[i]).abs());
            weights[i] = next;
        }
        if moved < 1e-14 {
            break;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut stream = Stream::new(seed, "utility-test");
        Array2::from_shape_fn((rows, columns), |_| stream.normal())
    }

    #[test]
    fn tables_by_hand() {
        let scores = arr2(&[[1.0, 3.0]]);
        assert_eq!(sum_table(scores.view()).unwrap(), arr2(&[[0.0], [1.0], [3.0], [4.0]]));
        // 40 examples: 10 of the first, 30 of the second.
        assert_eq!(mean_table(scores.view(), &[10.0, 30.0]).unwrap(), arr2(&[[0.0], [4.0], [4.0], [4.0]]));
    }

    #[test]
    fn known_weights_are_found_again() {
        let (a, b) = (noise(16, 12, 1), noise(16, 12, 2));
        let channels = [GroupChannel { name: "a", table: a.view() }, GroupChannel { name: "b", table: b.view() }];
        // Constants per query must not matter.
        let truth = &a * 3.0 + &b * 0.5 + noise(1, 12, 3).row(0);
        let fitted: Vec<usize> = (0..6).collect();
        let got = GroupCalibration::fit(&channels, truth.view(), &fitted).unwrap();
        let weights: Vec<f64> = got.weights.iter().zip(&got.scales).map(|(w, s)| w / s).collect();
        // The ridge takes a millionth.
        assert!((weights[0] - 3.0).abs() < 1e-4 && (weights[1] - 0.5).abs() < 1e-4, "{weights:?}");
        let left = got.predict(&channels).unwrap() - &truth;
        for column in left.columns() {
            assert!(column.iter().all(|v| (v - column[0]).abs() < 1e-3));
        }
    }

    #[test]
    fn the_minimum_satisfies_its_conditions() {
        // Karush–Kuhn–Tucker: no slope where w > 0, none downhill where w = 0.
        let tables: Vec<Array2<f64>> = (0..4).map(|c| noise(8, 10, 10 + c)).collect();
        let names = ["a", "b", "c", "d"];
        let channels: Vec<GroupChannel<'_>> =
            tables.iter().zip(names).map(|(t, name)| GroupChannel { name, table: t.view() }).collect();
        let truth = &tables[0] - &tables[1] + &noise(8, 10, 20);
        let all: Vec<usize> = (0..10).collect();
        let got = GroupCalibration::fit(&channels, truth.view(), &all).unwrap();
        let value = |weights: &[f64]| {
            let at = GroupCalibration { weights: weights.to_vec(), ..got.clone() }.predict(&channels).unwrap();
            centred((at - &truth).view(), &all).iter().map(|v| v * v).sum::<f64>() / truth.len() as f64
        };
        assert!(got.weights[1] == 0.0 && got.weights[0] > 0.0);
        for c in 0..4 {
            let mut up = got.weights.clone();
            up[c] += 1e-4;
            let slope = (value(&up) - value(&got.weights)) / 1e-4;
            assert!(if got.weights[c] > 0.0 { slope.abs() < 1e-3 } else { slope > -1e-3 }, "{c}: {slope}");
        }
    }

    #[test]
    fn held_out_predictions_do_not_see_their_query() {
        let a = noise(8, 12, 5);
        let channels = [GroupChannel { name: "a", table: a.view() }];
        let own: Vec<u32> = (0..12).map(|q| q % 3).collect();
        let truth = &a + &noise(8, 12, 6);
        let splits = Splits { holdout: Holdout::Queries, n: 2, seed: 1 };
        let before = cross_fit_group(&channels, truth.view(), &own, splits).unwrap();
        let mut changed = truth.clone();
        changed.column_mut(4).mapv_inplace(|v| 9.0 * v);
        let after = cross_fit_group(&channels, changed.view(), &own, splits).unwrap();
        for (b, a) in before.iter().zip(&after) {
            assert_eq!(b.column(4), a.column(4));
            assert_ne!(b, a);
        }
    }

    #[test]
    fn constant_channels_have_no_weight_and_bad_input_is_named() {
        let (flat, table) = (Array2::from_elem((4, 3), 7.0), noise(4, 3, 8));
        let channels =
            [GroupChannel { name: "flat", table: flat.view() }, GroupChannel { name: "a", table: table.view() }];
        let got = GroupCalibration::fit(&channels, table.view(), &[0, 1, 2]).unwrap();
        assert_eq!((got.scales[0], got.weights[0]), (0.0, 0.0));
        assert!(got.predict(&channels).unwrap().iter().all(|v| v.is_finite()));
        assert!(got.predict(&channels[..1]).unwrap_err().to_string().contains("channels of the calibration"));
        let twice = [channels[0], channels[0]];
        assert!(GroupCalibration::fit(&twice, table.view(), &[0]).unwrap_err().to_string().contains("unique"));
        assert!(GroupCalibration::fit(&channels, table.view(), &[3]).is_err());
        let mut nan = table.clone();
        nan[(1, 2)] = f64::NAN;
        let error = GroupCalibration::fit(&channels, nan.view(), &[0]).unwrap_err().to_string();
        assert!(error.contains("measured utilities, row 1, column 2"), "{error}");
        assert!(mean_table(arr2(&[[1.0]]).view(), &[0.0]).is_err());
        assert!(sum_table(Array2::zeros((1, 13)).view()).is_err());
    }
}
