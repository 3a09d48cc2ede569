//! A fitted calibration: plain values that can be stored, read and applied anywhere.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::objective::softmax;
use super::transform::Transform;
use crate::dot::check_finite;
use crate::error::MethodError;

/// Version of the serialised form of [`Calibration`].
pub const CALIBRATION_FORMAT_VERSION: u32 = 1;

/// One method's dataset scores, as input of a combination.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    /// Name of the method (`block_fisher`).
    pub name: &'a str,
    /// `[Q, K]`, positive = proponent.
    pub scores: ArrayView2<'a, f64>,
}

/// One channel of a stored calibration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSpec {
    /// Name of the method.
    pub name: String,
    /// Its transform.
    pub transform: Transform,
}

/// `p_q = softmax_k(Σ_c weight_c · z_qck / temperature)`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`CALIBRATION_FORMAT_VERSION`].
    pub format_version: u32,
    /// Channels, in the order of `weights`.
    pub channels: Vec<ChannelSpec>,
    /// Non-negative, sum 1.
    pub weights: Vec<f64>,
    /// Positive. Large = nearly equal shares.
    pub temperature: f64,
}

impl Calibration {
    /// Smallest `Σθ`: a calibration that found nothing has this inverse temperature and gives equal shares.
    const MIN_SCALE: f64 = 1e-9;

    /// From `θ_c = w_c / T ≥ 0`.
    pub(crate) fn from_theta(channels: Vec<ChannelSpec>, theta: &[f64]) -> Self {
        let scale: f64 = theta.iter().sum();
        let (weights, temperature) = if scale > Self::MIN_SCALE {
            (theta.iter().map(|t| t / scale).collect(), 1.0 / scale)
        } else {
            (vec![1.0 / theta.len() as f64; theta.len()], 1.0 / Self::MIN_SCALE)
        };
        Self { format_version: CALIBRATION_FORMAT_VERSION, channels, weights, temperature }
    }

    /// `θ_c = w_c / T`.
    pub fn theta(&self) -> Vec<f64> {
        self.weights.iter().map(|w| w / self.temperature).collect()
    }

    /// Checks a calibration that came from a file.
    ///
    /// # Errors
    /// Another version, no channel, two channels of one name, weights that are negative, not finite or do not sum to 1,
    /// a temperature that is not positive.
    pub fn validate(&self) -> Result<(), MethodError> {
        if self.format_version != CALIBRATION_FORMAT_VERSION {
            let (expected, found) = (CALIBRATION_FORMAT_VERSION, self.format_version);
            return Err(MethodError::shape("format version of the calibration", expected, found));
        }
        if self.channels.is_empty() {
            return Err(MethodError::Empty { what: "the list of channels" });
        }
        if self.channels.len() != self.weights.len() {
            return Err(MethodError::shape("weights, one per channel", self.channels.len(), self.weights.len()));
        }
        check_names(self.channels.iter().map(|c| c.name.as_str()))?;
        if let Some(&found) = self.weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
            return Err(MethodError::Parameter { field: "channel weight", expected: "finite and not negative", found });
        }
        let total: f64 = self.weights.iter().sum();
        // Weights are written with 17 digits: the sum is off by rounding alone.
        if (total - 1.0).abs() > 1e-9 {
            return Err(MethodError::Parameter { field: "sum of channel weights", expected: "1", found: total });
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            let found = self.temperature;
            return Err(MethodError::Parameter { field: "temperature", expected: "finite and positive", found });
        }
        Ok(())
    }

    /// Shares `[Q, K]` of the channels' queries; every row is positive and sums to 1 (to rounding).
    ///
    /// Channels are found by name; others may be present. A query's shares depend on its own scores alone.
    ///
    /// # Errors
    /// As [`Calibration::validate`]; a missing channel; shapes; NaN.
    pub fn predict(&self, channels: &[Channel<'_>]) -> Result<Array2<f64>, MethodError> {
        self.validate()?;
        let mut logits: Option<Array2<f64>> = None;
        for (spec, theta) in self.channels.iter().zip(self.theta()) {
            let channel = channels.iter().find(|c| c.name == spec.name).ok_or_else(|| {
                let names: Vec<&str> = channels.iter().map(|c| c.name).collect();
                MethodError::shape("channels of the calibration", &spec.name, names)
            })?;
            check_finite(channel.name, channel.scores)?;
            let scaled = spec.transform.apply(channel.scores) * theta;
            logits = Some(match logits {
                None => scaled,
                Some(sum) if sum.dim() == scaled.dim() => sum + scaled,
                Some(sum) => return Err(MethodError::shape("shape of a channel", sum.dim(), scaled.dim())),
            });
        }
        let mut shares = logits.ok_or(MethodError::Empty { what: "the list of channels" })?;
        if shares.ncols() == 0 {
            return Err(MethodError::Empty { what: "the set of datasets" });
        }
        shares.rows_mut().into_iter().for_each(softmax);
        Ok(shares)
    }
}

/// Names must be unique: a channel is found by name.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), MethodError> {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Err(MethodError::shape("channel names", "unique names", name));
        }
        seen.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    fn spec(name: &str, transform: Transform) -> ChannelSpec {
        ChannelSpec { name: name.to_owned(), transform }
    }

    #[test]
    fn two_channels_by_hand() {
        let (a, b) = (arr2(&[[1.0, 3.0]]), arr2(&[[10.0, -10.0]]));
        let channels = [Channel { name: "a", scores: a.view() }, Channel { name: "b", scores: b.view() }];
        let both = vec![spec("a", Transform::ZScore), spec("b", Transform::ZScore)];
        // z: (−1, 1) and (1, −1); θ = (1.5, 0.5): logits (−1, 1).
        let calibration = Calibration::from_theta(both, &[1.5, 0.5]);
        assert_eq!((calibration.weights.clone(), calibration.temperature), (vec![0.75, 0.25], 0.5));
        let shares = calibration.predict(&channels).unwrap();
        let expected = 1.0 / (1.0 + 2.0f64.exp());
        assert!((shares[(0, 0)] - expected).abs() < 1e-15 && (shares.sum() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn nothing_found_means_equal_shares() {
        let scores = arr2(&[[1.0, 3.0, 99.0]]);
        let calibration = Calibration::from_theta(vec![spec("a", Transform::ZScore)], &[0.0]);
        calibration.validate().unwrap();
        let shares = calibration.predict(&[Channel { name: "a", scores: scores.view() }]).unwrap();
        assert!(shares.iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-8));
    }

    #[test]
    fn lies_in_a_file_are_refused() {
        let good =
            Calibration::from_theta(vec![spec("a", Transform::Rank), spec("b", Transform::LogShare)], &[1.0, 2.0]);
        good.validate().unwrap();
        let check = |change: &dyn Fn(&mut Calibration), message: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&|c| c.format_version = 2, "format version of the calibration: expected 1, found 2");
        check(&|c| c.weights[0] = -0.1, "channel weight must be finite and not negative, found -0.1");
        check(&|c| c.weights[0] = 0.5, "sum of channel weights must be 1");
        check(&|c| c.weights = vec![1.0], "expected 2, found 1");
        check(&|c| c.temperature = 0.0, "temperature must be finite and positive");
        check(&|c| c.temperature = f64::NAN, "temperature must be finite and positive");
        check(&|c| c.channels[1].name = "a".to_owned(), "unique names");
        check(&|c| c.channels.clear(), "list of channels is empty");
    }

    #[test]
    fn prediction_names_what_is_missing() {
        let scores = arr2(&[[1.0, f64::NAN]]);
        let calibration = Calibration::from_theta(vec![spec("a", Transform::ZScore)], &[1.0]);
        let error = |name| calibration.predict(&[Channel { name, scores: scores.view() }]).unwrap_err().to_string();
        assert_eq!(error("b"), "channels of the calibration: expected \"a\", found [\"b\"]");
        assert!(error("a").contains("a, row 0, column 1"));
    }
}
