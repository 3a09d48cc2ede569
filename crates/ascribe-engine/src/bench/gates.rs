//! Gates: what a setting demands of its methods, written in its file, judged when its figures are known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::{GateFigure, MethodFigure, smaller_is_better};

/// A demand, as it stands in `setting.toml`. Exactly one of `at_least`, `at_most`, `times_best`, `above`, `near` and
/// `no_worse_than` says what the figure is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSettings {
    /// What is demanded, in words.
    pub about: String,
    /// The best of these methods is judged; empty for all that are no controls.
    #[serde(default)]
    pub methods: Vec<String>,
    /// `lds`, `recall_at_10`, … or the name of a further measure.
    pub figure: String,
    /// Methods that store more per example take no part.
    #[serde(default)]
    pub bytes_at_most: Option<PartOf>,
    /// The least that will do.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// The most that will do.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// A part of what the best of other methods reaches.
    #[serde(default)]
    pub times_best: Option<PartOf>,
    /// Better than every one of these methods; `["controls"]` for all controls.
    #[serde(default)]
    pub above: Option<Vec<String>>,
    /// No further from another method's figure than this.
    #[serde(default)]
    pub near: Option<Near>,
    /// Behind another method's figure by no more than this; ahead of it by anything.
    #[serde(default)]
    pub no_worse_than: Option<Near>,
    /// Published or re-measured figures that the demand comes from.
    #[serde(default)]
    pub anchor: String,
}

/// A multiple of the best figure of some methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartOf {
    /// The methods.
    pub methods: Vec<String>,
    /// The factor.
    pub times: f64,
}

/// Another method's figure and a distance to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Near {
    /// The other method.
    pub method: String,
    /// Largest distance.
    pub within: f64,
}

/// Judges every demand; a figure that is missing decides nothing.
pub fn judge(gates: &[GateSettings], methods: &BTreeMap<String, MethodFigure>) -> Vec<GateFigure> {
    gates.iter().map(|gate| judge_one(gate, methods)).collect()
}

fn judge_one(gate: &GateSettings, methods: &BTreeMap<String, MethodFigure>) -> GateFigure {
    let name = gate.figure.as_str();
    let limit = gate.bytes_at_most.as_ref().map(|part| {
        let of = part.methods.iter().filter_map(|name| methods.get(name)).map(|m| m.bytes_per_example);
        part.times * of.fold(0.0, f64::max)
    });
    let takes_part = |m: &&MethodFigure| {
        let named = match gate.methods.is_empty() {
            true => !m.control,
            false => gate.methods.contains(&m.name),
        };
        named && limit.is_none_or(|limit| m.bytes_per_example <= limit)
    };
    let best = best_of(name, methods.values().filter(takes_part));
    let found = best.as_ref().map(|(_, value)| *value);
    let named = |names: &[String]| {
        let controls = names.iter().any(|n| n == "controls");
        best_of(name, methods.values().filter(|m| names.contains(&m.name) || (controls && m.control)))
            .map(|(_, value)| value)
    };
    let less = smaller_is_better(name);
    let reaches = |found: f64, threshold: f64| if less { found <= threshold } else { found >= threshold };
    let (found, threshold, met) = if let Some(near) = &gate.near {
        let other = methods.get(&near.method).and_then(|m| m.figure(name));
        let distance = found.zip(other).map(|(a, b)| (a - b).abs());
        (distance, Some(near.within), distance.map(|d| d <= near.within))
    } else if let Some(near) = &gate.no_worse_than {
        let other = methods.get(&near.method).and_then(|m| m.figure(name));
        let threshold = other.map(|other| if less { other + near.within } else { other - near.within });
        (found, threshold, found.zip(threshold).map(|(f, t)| reaches(f, t)))
    } else if let Some(names) = &gate.above {
        let threshold = named(names);
        let better = |(f, t): (f64, f64)| if less { f < t } else { f > t };
        (found, threshold, found.zip(threshold).map(better))
    } else {
        let part = gate.times_best.as_ref().and_then(|part| Some(part.times * named(&part.methods)?));
        let threshold = gate.at_least.or(gate.at_most).or(part);
        let met = found.zip(threshold).map(|(f, t)| match (gate.at_least, gate.at_most) {
            (Some(least), _) => f >= least,
            (_, Some(most)) => f <= most,
            _ => reaches(f, t),
        });
        (found, threshold, met)
    };
    GateFigure {
        about: gate.about.clone(),
        method: best.map(|(name, _)| name),
        threshold,
        found,
        met,
        anchor: gate.anchor.clone(),
    }
}

/// The best of some methods under a figure, the first by name of equals.
fn best_of<'a>(figure: &str, methods: impl Iterator<Item = &'a MethodFigure>) -> Option<(String, f64)> {
    let sign = if smaller_is_better(figure) { -1.0 } else { 1.0 };
    let mut best: Option<(String, f64)> = None;
    for method in methods {
        if let Some(value) = method.figure(figure).filter(|v| v.is_finite())
            && best.as_ref().is_none_or(|(_, b)| sign * value > sign * b)
        {
            best = Some((method.name.clone(), value));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(metric: &str) -> BTreeMap<String, MethodFigure> {
        let of = |name: &str, value, bytes, control| {
            let figure = MethodFigure { value, bytes_per_example: bytes, control, ..MethodFigure::new(name, metric) };
            (name.to_owned(), figure)
        };
        BTreeMap::from([
            of("exact", Some(0.8), 0.0, false),
            of("near", Some(0.797), 0.0, false),
            of("stored", Some(0.5), 64.0, false),
            of("big", Some(0.75), 1024.0, false),
            of("words", Some(0.6), 9.0, true),
            of("broken", None, 9.0, false),
        ])
    }

    fn gate(toml: &str) -> GateFigure {
        let text = format!("about = \"g\"\n{toml}");
        let metric = if toml.contains("tv_shapley") { "tv_shapley" } else { "lds" };
        judge(&[toml::from_str(&text).unwrap()], &methods(metric)).remove(0)
    }

    #[test]
    fn every_form_by_hand() {
        for (toml, method, threshold, found, met) in [
            ("figure = 'lds'\nat_least = 0.79", Some("exact"), Some(0.79), Some(0.8), Some(true)),
            ("figure = 'lds'\nmethods = ['near']\nat_least = 0.8", Some("near"), Some(0.8), Some(0.797), Some(false)),
            ("figure = 'tv_shapley'\nat_most = 0.55", Some("stored"), Some(0.55), Some(0.5), Some(true)),
            (
                "figure = 'lds'\nmethods = ['stored', 'big']\nbytes_at_most = { methods = ['big'], times = 0.0625 }\n\
                 times_best = { methods = ['exact'], times = 0.5 }",
                Some("stored"),
                Some(0.4),
                Some(0.5),
                Some(true),
            ),
            (
                "figure = 'lds'\nmethods = ['stored']\nabove = ['controls']",
                Some("stored"),
                Some(0.6),
                Some(0.5),
                Some(false),
            ),
            ("figure = 'lds'\nabove = ['controls']", Some("exact"), Some(0.6), Some(0.8), Some(true)),
            (
                "figure = 'lds'\nmethods = ['stored']\nbytes_at_most = { methods = ['big'], times = 0.0625 }\n\
                 no_worse_than = { method = 'big', within = 0.25 }",
                Some("stored"),
                Some(0.5),
                Some(0.5),
                Some(true),
            ),
            (
                "figure = 'lds'\nmethods = ['stored']\nbytes_at_most = { methods = ['big'], times = 0.0624 }\n\
                 no_worse_than = { method = 'big', within = 0.25 }",
                None,
                Some(0.5),
                None,
                None,
            ),
            (
                "figure = 'lds'\nmethods = ['exact']\nno_worse_than = { method = 'near', within = 0.0 }",
                Some("exact"),
                Some(0.797),
                Some(0.8),
                Some(true),
            ),
            (
                "figure = 'tv_shapley'\nmethods = ['big']\nno_worse_than = { method = 'stored', within = 0.125 }",
                Some("big"),
                Some(0.625),
                Some(0.75),
                Some(false),
            ),
            ("figure = 'lds'\nmethods = ['broken']\nat_least = 0.1", None, Some(0.1), None, None),
            ("figure = 'lds'\nmethods = ['unknown']\nat_least = 0.1", None, Some(0.1), None, None),
        ] {
            let got = gate(toml);
            assert_eq!(
                (got.method.as_deref(), got.threshold, got.found, got.met),
                (method, threshold, found, met),
                "{toml}"
            );
        }
        let near = gate("figure = 'lds'\nmethods = ['near']\nnear = { method = 'exact', within = 0.005 }");
        assert!((near.found.unwrap() - 0.003).abs() < 1e-12 && near.met == Some(true), "{near:?}");
        assert_eq!(gate("figure = 'loo_pearson'\nat_least = 0.1").met, None);
    }
}
