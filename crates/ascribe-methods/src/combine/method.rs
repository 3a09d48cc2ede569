//! The default method as it is kept and applied: a calibration, where its numbers came from, and what it reached on responses and
//! datasets that it had not seen. Here never lives: files (the engine keeps these values in a factor file).

use serde::{Deserialize, Serialize};

use super::calibration::{Calibration, ChannelSpec};
use super::conformal::Conformal;
use super::transform::Transform;
use crate::error::MethodError;

/// Version of what a calibrated method's factor file holds.
pub const CALIBRATED_FORMAT_VERSION: u32 = 1;

/// Where weights and temperature came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// Fitted on the retrain bank of the model that is explained.
    Bank {
        /// SHA-256 of the bank's cells, hex.
        digest: String,
        /// Retraining seeds.
        seeds: Vec<u64>,
        /// Responses with true shares.
        responses: u64,
    },
    /// [`CalibratedMethod::defaults`]: the model has no bank.
    Defaults,
}

/// Mean total variation between predicted and true shares on what a fit had not seen, with its 95 % interval over responses.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Mean.
    pub share_error: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl HeldOut {
    fn check(&self) -> Result<(), MethodError> {
        let numbers = [self.low, self.share_error, self.high];
        match numbers.iter().find(|v| !(0.0..=1.0).contains(*v)) {
            Some(&found) => {
                Err(MethodError::Parameter { field: "held-out share error", expected: "from 0 to 1", found })
            }
            None if self.low > self.share_error || self.share_error > self.high => Err(MethodError::shape(
                "held-out share error",
                "low, mean and high in this order",
                format!("{numbers:?}"),
            )),
            None => Ok(()),
        }
    }
}

/// The calibrated combination with everything that it is believed for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratedMethod {
    /// Channels, weights, temperature.
    pub calibration: Calibration,
    /// Where they came from.
    pub origin: Origin,
    /// On responses that were not fitted. For defaults: those of another model (finch) than the weights were fitted on, because a
    /// model without a bank is another model, too.
    pub queries: HeldOut,
    /// On responses of datasets that no fit had seen; `None` where that was not measured: how far defaults carry over to another
    /// model is not known without a bank of it.
    pub datasets: Option<HeldOut>,
    /// Interval rule of the shares.
    pub conformal: Conformal,
}

/// Channels of the defaults, with `weight / temperature` each: what `ascribe eval` fits on wren's bank (120 responses, three seeds,
/// ten datasets).
const DEFAULT_THETA: [(&str, Transform, f64); 3] = [
    ("trajectory_fisher_exchange", Transform::LogShare, 0.202),
    ("bm25_exchange", Transform::ZScore, 0.074),
    ("bigram", Transform::LogShare, 1.338),
];
/// Share error of these weights on finch, where neither they nor their channels were chosen, with its 95 % interval (example
/// `defaults_elsewhere` of the engine: 120 responses, three seeds, six datasets). On wren the same weights reach 0.0763: that is
/// what a fit may claim of its own model, and no other model.
const DEFAULT_QUERIES: HeldOut = HeldOut { share_error: 0.102, low: 0.079, high: 0.126 };
/// Interval rule from the same responses. The quantile of the fitted model (0.2505) would hold the truth too seldom elsewhere.
const DEFAULT_CONFORMAL: Conformal = Conformal { level: 0.9, quantile: 0.552, n_residuals: 720 };

impl CalibratedMethod {
    /// The documented numbers for a model without a retrain bank. Share error, coverage and interval rule are those of a model
    /// that had no say in the weights; how far they hold on the model that is explained is not known without a bank of it.
    pub fn defaults() -> Self {
        let spec = |(name, transform, _): (&str, Transform, f64)| ChannelSpec { name: name.to_owned(), transform };
        Self {
            calibration: Calibration::from_theta(
                DEFAULT_THETA.map(spec).into(),
                &DEFAULT_THETA.map(|(_, _, theta)| theta),
            ),
            origin: Origin::Defaults,
            queries: DEFAULT_QUERIES,
            datasets: None,
            conformal: DEFAULT_CONFORMAL,
        }
    }

    /// Part of a pool that these shares cover: the mean overlap with measured truth, `1 − share error` on responses that were not
    /// fitted.
    pub fn coverage(&self) -> f64 {
        1.0 - self.queries.share_error
    }

    /// Checks a method that came from a file.
    ///
    /// # Errors
    /// As [`Calibration::validate`]; held-out figures outside 0 to 1 or out of order; an interval rule without a level or with a
    /// quantile that is not finite; a bank without seeds or with a digest that is not 64 hex digits.
    pub fn validate(&self) -> Result<(), MethodError> {
        self.calibration.validate()?;
        self.queries.check()?;
        self.datasets.iter().try_for_each(HeldOut::check)?;
        let Conformal { level, quantile, .. } = self.conformal;
        if !(level > 0.0 && level < 1.0) {
            return Err(MethodError::Parameter {
                field: "level of the intervals",
                expected: "between 0 and 1",
                found: level,
            });
        }
        if !(quantile.is_finite() && quantile >= 0.0) {
            let expected = "finite and not negative";
            return Err(MethodError::Parameter { field: "quantile of the intervals", expected, found: quantile });
        }
        if let Origin::Bank { digest, seeds, .. } = &self.origin {
            if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MethodError::shape("digest of the bank", "64 hex digits", digest));
            }
            if seeds.is_empty() {
                return Err(MethodError::Empty { what: "the list of retraining seeds" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::combine::Channel;
    use ndarray::arr2;

    fn fitted() -> CalibratedMethod {
        let origin = Origin::Bank { digest: "0f".repeat(32), seeds: vec![1, 2], responses: 12 };
        let datasets = Some(HeldOut { share_error: 0.25, low: 0.125, high: 0.5 });
        CalibratedMethod { origin, datasets, ..CalibratedMethod::defaults() }
    }

    #[test]
    fn defaults_are_a_calibration_that_can_be_applied() {
        let defaults = CalibratedMethod::defaults();
        defaults.validate().unwrap();
        // Where every channel points at the first dataset, so do the shares.
        let scores = arr2(&[[9.0, 1.0, 0.5], [1.0, 1.0, 1.0]]);
        let channels: Vec<Channel<'_>> =
            defaults.calibration.channels.iter().map(|c| Channel { name: &c.name, scores: scores.view() }).collect();
        let shares = defaults.calibration.predict(&channels).unwrap();
        assert!(shares[(0, 0)] > 0.5 && shares[(0, 1)] > shares[(0, 2)], "{shares}");
        assert!(shares.row(1).iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-12), "{shares}");
        assert!((defaults.coverage() - (1.0 - defaults.queries.share_error)).abs() < 1e-15);
    }

    /// What a fit reached on its own model (wren, benches/SETTINGS.md) is not promised to models that had no fit.
    #[test]
    fn defaults_do_not_claim_what_the_fitted_model_reached() {
        const FITTED_ERROR_HIGH: f64 = 0.0920;
        const FITTED_QUANTILE: f64 = 0.2505;
        let defaults = CalibratedMethod::defaults();
        assert_eq!(defaults.origin, Origin::Defaults);
        assert!(defaults.queries.share_error > FITTED_ERROR_HIGH, "{:?}", defaults.queries);
        assert!(defaults.coverage() < 1.0 - FITTED_ERROR_HIGH);
        assert!(defaults.conformal.quantile > FITTED_QUANTILE, "{:?}", defaults.conformal);
        assert_eq!(defaults.datasets, None);
    }

    #[test]
    fn lies_in_a_file_are_refused() {
        fitted().validate().unwrap();
        let check = |change: &dyn Fn(&mut CalibratedMethod), message: &str| {
            let mut bad = fitted();
            change(&mut bad);
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&|m| m.queries.share_error = 1.5, "held-out share error must be from 0 to 1, found 1.5");
        check(&|m| m.datasets = Some(HeldOut { share_error: 0.25, low: 0.5, high: 0.5 }), "in this order");
        check(&|m| m.queries.high = f64::NAN, "held-out share error");
        check(&|m| m.conformal.level = 1.0, "level of the intervals");
        check(&|m| m.conformal.quantile = f64::INFINITY, "quantile of the intervals");
        check(&|m| m.calibration.temperature = 0.0, "temperature");
        let origin =
            |digest: &str, seeds: &[u64]| Origin::Bank { digest: digest.into(), seeds: seeds.into(), responses: 1 };
        check(&|m| m.origin = origin("xyz", &[1]), "64 hex digits");
        check(&|m| m.origin = origin(&"00".repeat(32), &[]), "list of retraining seeds is empty");
    }
}
