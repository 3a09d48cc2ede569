//! What a bench reports: one figure per method, gates with what was found, and the JSON that other programs read.
//!
//! Here lives the shape of results. Here never lives: how they come about (`contest`), how a page shows them (`board`).

use std::collections::BTreeMap;

use ascribe_core::Digest;
use ascribe_eval::Estimate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine;

/// How good one method is, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Wire", from = "Wire")]
pub struct MethodFigure {
    /// Name, as on the command line.
    pub name: String,
    /// What it computes, in a sentence.
    pub about: String,
    /// Where its formula stands.
    pub source: String,
    /// True for what every method has to beat: it never looks at a gradient.
    pub control: bool,
    /// What `value` is: `lds`, `recall_at_10`, `tv_shapley`, …
    pub metric: String,
    /// Mean over queries; `None` where it is defined for no query (constant scores have no order).
    pub value: Option<f64>,
    /// Lower end of the bootstrap interval over queries.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Queries where the measure is defined.
    pub n: usize,
    /// Queries where it is not.
    pub n_undefined: usize,
    /// CPU seconds (all threads) spent once, whatever the queries.
    pub cpu_fit: f64,
    /// CPU seconds spent on the queries.
    pub cpu_score: f64,
    /// Bytes that the method keeps per training example between fit and score; 0 if it stores nothing.
    pub bytes_per_example: f64,
    /// The method's settings.
    pub settings: Value,
    /// Further measures by name; `None` where one is not defined.
    pub extra: BTreeMap<String, Option<f64>>,
}

/// The JSON of a figure: the value stands under the name of its metric.
#[derive(Serialize, Deserialize)]
struct Wire {
    name: String,
    #[serde(default)]
    about: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    control: bool,
    metric: String,
    low: Option<f64>,
    high: Option<f64>,
    #[serde(default)]
    n: usize,
    #[serde(default)]
    n_undefined: usize,
    cpu_seconds: f64,
    #[serde(default)]
    cpu_fit: f64,
    #[serde(default)]
    cpu_score: f64,
    bytes_per_example: f64,
    #[serde(default)]
    settings: Value,
    #[serde(default)]
    extra: BTreeMap<String, Option<f64>>,
    /// `{metric: value}`.
    #[serde(flatten)]
    named: BTreeMap<String, Option<f64>>,
}

impl From<MethodFigure> for Wire {
    fn from(figure: MethodFigure) -> Self {
        Self {
            cpu_seconds: figure.cpu_seconds(),
            named: BTreeMap::from([(figure.metric.clone(), figure.value)]),
            name: figure.name,
            about: figure.about,
            source: figure.source,
            control: figure.control,
            metric: figure.metric,
            low: figure.low,
            high: figure.high,
            n: figure.n,
            n_undefined: figure.n_undefined,
            cpu_fit: figure.cpu_fit,
            cpu_score: figure.cpu_score,
            bytes_per_example: figure.bytes_per_example,
            settings: figure.settings,
            extra: figure.extra,
        }
    }
}

impl From<Wire> for MethodFigure {
    fn from(wire: Wire) -> Self {
        Self {
            value: wire.named.get(&wire.metric).copied().flatten(),
            name: wire.name,
            about: wire.about,
            source: wire.source,
            control: wire.control,
            metric: wire.metric,
            low: wire.low,
            high: wire.high,
            n: wire.n,
            n_undefined: wire.n_undefined,
            cpu_fit: wire.cpu_fit,
            cpu_score: wire.cpu_score,
            bytes_per_example: wire.bytes_per_example,
            settings: wire.settings,
            extra: wire.extra,
        }
    }
}

impl MethodFigure {
    /// A figure that has a name and a metric and nothing else yet.
    pub fn new(name: &str, metric: &str) -> Self {
        Self {
            name: name.to_owned(),
            about: String::new(),
            source: String::new(),
            control: false,
            metric: metric.to_owned(),
            value: None,
            low: None,
            high: None,
            n: 0,
            n_undefined: 0,
            cpu_fit: 0.0,
            cpu_score: 0.0,
            bytes_per_example: 0.0,
            settings: Value::Null,
            extra: BTreeMap::new(),
        }
    }

    /// Takes value and interval from an estimate; without one all queries are undefined.
    #[must_use]
    pub fn estimated(mut self, estimate: Option<&Estimate>, n_queries: usize) -> Self {
        (self.value, self.low, self.high) =
            (estimate.map(|e| e.mean), estimate.map(|e| e.low), estimate.map(|e| e.high));
        self.n = estimate.map_or(0, |e| e.n);
        self.n_undefined = n_queries - self.n;
        self
    }

    /// CPU seconds of fit and score together.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu_fit + self.cpu_score
    }

    /// The value of this metric, or a further measure of this name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        if name == self.metric { self.value } else { self.extra.get(name).copied().flatten() }
    }
}

/// True for measures where less is better: errors and distances.
pub fn smaller_is_better(metric: &str) -> bool {
    ["tv_", "share_error", "cpu_", "bytes_"].iter().any(|start| metric.starts_with(start))
}

/// What the methods were held against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TruthFigure {
    /// Where the truth comes from, in words.
    pub about: String,
    /// SHA-256 of the retrain bank, if that is what it is.
    pub bank: Option<Digest>,
    /// The command that makes it again.
    pub command: String,
    /// Subsets that were trained on.
    pub subsets: usize,
    /// Trainings per subset.
    pub seeds: usize,
    /// Agreement of one retraining seed with the others: the same measure for one seed of the truth against the mean of the others,
    /// mean over seeds. It says how noisy the truth is. It bounds nothing, whatever the field is called: methods are held against the
    /// mean of all seeds, which is less noisy.
    pub ceiling: Option<Estimate>,
}

/// A demand on the figures of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateFigure {
    /// What is demanded, in words.
    pub about: String,
    /// The method that was judged: the best of those that the gate names.
    pub method: Option<String>,
    /// What it must reach.
    pub threshold: Option<f64>,
    /// What it reached; `None` if it has no figure.
    pub found: Option<f64>,
    /// `Some(true)` if met, `Some(false)` if missed, `None` if no figure decides it.
    pub met: Option<bool>,
    /// Published or re-measured figures that the demand comes from.
    pub anchor: String,
}

/// Everything that one setting says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingReport {
    /// Name of the setting.
    pub setting: String,
    /// What it is, in a sentence.
    pub about: String,
    /// Queries that were explained.
    pub queries: usize,
    /// Training examples, records or datasets that got a score.
    pub examples: usize,
    /// What the methods were held against.
    pub truth: TruthFigure,
    /// Figures by name of the method.
    pub methods: BTreeMap<String, MethodFigure>,
    /// Demands and what was found.
    #[serde(default)]
    pub gates: Vec<GateFigure>,
    /// What a reader should know: methods that refused to run and why, parts that are missing.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl SettingReport {
    /// Methods with the best first; those without a value last, then by name.
    pub fn ranked(&self) -> Vec<&MethodFigure> {
        let mut ranked: Vec<&MethodFigure> = self.methods.values().collect();
        let key = |m: &MethodFigure| m.value.map(|v| if smaller_is_better(&m.metric) { v } else { -v });
        ranked.sort_by(|a, b| match (key(a), key(b)) {
            (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| a.name.cmp(&b.name)),
            (x, y) => y.is_some().cmp(&x.is_some()).then_with(|| a.name.cmp(&b.name)),
        });
        ranked
    }
}

/// Runs `work` and tells the CPU seconds that the whole process took meanwhile, all threads. Right only while nothing else
/// runs in the process.
pub fn cpu_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = machine::cpu_seconds();
    let out = work();
    (out, machine::cpu_seconds() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> MethodFigure {
        let estimate = Estimate { mean: 0.5, low: 0.25, high: 0.75, n: 3, n_undefined: 1 };
        let mut figure = MethodFigure::new("ek-fac", "lds").estimated(Some(&estimate), 4);
        (figure.cpu_fit, figure.cpu_score, figure.bytes_per_example) = (1.0, 0.5, 128.0);
        figure.extra.insert("loo_pearson".into(), Some(0.875));
        figure.extra.insert("undefined".into(), None);
        figure.settings = serde_json::json!({ "damping_rel": 0.001 });
        figure
    }

    #[test]
    fn the_value_stands_under_its_metric_and_comes_back() {
        let json = serde_json::to_value(figure()).unwrap();
        for (key, value) in
            [("lds", 0.5), ("low", 0.25), ("high", 0.75), ("cpu_seconds", 1.5), ("bytes_per_example", 128.0)]
        {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(serde_json::from_value::<MethodFigure>(json).unwrap(), figure());
        let undefined = MethodFigure::new("constant", "lds").estimated(None, 4);
        let json = serde_json::to_string(&undefined).unwrap();
        assert!(json.contains("\"lds\":null") && json.contains("\"n_undefined\":4"), "{json}");
        assert_eq!(serde_json::from_str::<MethodFigure>(&json).unwrap(), undefined);
    }

    #[test]
    fn figures_are_found_by_name_and_ranked_by_value() {
        assert_eq!(figure().figure("lds"), Some(0.5));
        assert_eq!(figure().figure("loo_pearson"), Some(0.875));
        assert_eq!((figure().figure("undefined"), figure().figure("nothing")), (None, None));
        let of = |name: &str, metric: &str, value| MethodFigure { value, ..MethodFigure::new(name, metric) };
        let report = |metric: &str| SettingReport {
            setting: "s".into(),
            about: String::new(),
            queries: 1,
            examples: 1,
            truth: TruthFigure::default(),
            methods: [("a", Some(0.1)), ("b", None), ("c", Some(0.3)), ("d", Some(0.1))]
                .map(|(name, value)| (name.to_owned(), of(name, metric, value)))
                .into(),
            gates: Vec::new(),
            notes: Vec::new(),
        };
        let names = |metric| report(metric).ranked().iter().map(|m| m.name.clone()).collect::<String>();
        assert_eq!(names("lds"), "cadb");
        assert_eq!(names("tv_shapley"), "adcb");
    }

    #[test]
    fn cpu_time_is_that_of_the_work() {
        let (out, seconds) = cpu_of(|| {
            let start = machine::cpu_seconds();
            while machine::cpu_seconds() - start < 0.01 {}
            7
        });
        assert!(out == 7 && seconds >= 0.01, "{seconds}");
    }
}
