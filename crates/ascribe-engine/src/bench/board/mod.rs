//! The leaderboard page: one self-contained HTML file, complete without scripts.
//!
//! Numbers are written and laid out here, drawn by `template.html` with the report's style and `style.css`. Here never lives
//! measurement: what is not in the [`Leaderboard`] is not on the page.

mod further;
mod scatter;

use minijinja::{Value, context};
use serde::Serialize;

use super::report::{GateFigure, MethodFigure, SettingReport, smaller_is_better};
use super::suite::Leaderboard;
use crate::error::EngineError;
use crate::report::page;
use further::Further;
use scatter::Plot;

const TEMPLATE: &str = include_str!("template.html");
const STYLE: &str = include_str!("style.css");
/// Further measures that have a column of their own, with what the head of the column says.
const COLUMNS: [(&str, &str); 9] = [
    ("lds_removed", "LDS, removal form"),
    ("loo_pearson", "leave-one-out, Pearson"),
    ("lds_one_seed", "against one seed"),
    ("lds", "LDS over datasets"),
    ("tv_raw", "raw"),
    ("tv_unseen_datasets", "on unseen datasets"),
    ("hit_at_1", "hit@1"),
    ("hit_at_10", "hit@10"),
    ("mrr", "MRR"),
];

/// Draws the page. Same leaderboard, same bytes.
///
/// # Errors
/// A fault of the template.
pub fn render(leaderboard: &Leaderboard) -> Result<String, EngineError> {
    let view = Page::of(leaderboard);
    let html = page::render(
        "leaderboard",
        TEMPLATE,
        context! {
            page => page::value(serde_json::to_value(&view)?),
            style => Value::from_safe_string(format!("{}\n{STYLE}", page::STYLE)),
        },
    )?;
    Ok(html)
}

#[derive(Serialize)]
struct Page {
    about: String,
    version: String,
    instructions: String,
    date: String,
    n_settings: usize,
    n_methods: usize,
    gates: String,
    has_gates: bool,
    settings: Vec<Section>,
    failed: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Section {
    name: String,
    about: String,
    metric: String,
    less: bool,
    facts: Vec<(String, String)>,
    command: String,
    columns: Vec<String>,
    rows: Vec<Row>,
    axis: [String; 2],
    /// Place of zero on the bars, where it is not their left end.
    zero: Option<String>,
    ceiling: Option<String>,
    plots: Vec<Plot>,
    gates: Vec<Gate>,
    notes: Vec<String>,
    sets: Option<Sets>,
    further: Option<Further>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    about: String,
    source: String,
    control: bool,
    best: bool,
    value: String,
    interval: String,
    undefined: Option<String>,
    left: String,
    width: String,
    low: String,
    span: String,
    extra: Vec<String>,
    cpu: String,
    cpu_parts: String,
    bytes: String,
}

#[derive(Serialize)]
struct Gate {
    about: String,
    verdict: &'static str,
    class: &'static str,
    found: String,
    threshold: String,
    method: String,
    anchor: String,
}

/// The main measure per fact set.
#[derive(Serialize)]
struct Sets {
    names: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Page {
    fn of(leaderboard: &Leaderboard) -> Self {
        let gates: Vec<&GateFigure> = leaderboard.settings.iter().flat_map(|s| &s.gates).collect();
        let met = gates.iter().filter(|gate| gate.met == Some(true)).count();
        let mut methods: Vec<&String> = leaderboard.settings.iter().flat_map(|s| s.methods.keys()).collect();
        methods.sort();
        methods.dedup();
        Self {
            about: leaderboard.about.clone(),
            version: leaderboard.ascribe_version.clone(),
            instructions: leaderboard.instructions.clone(),
            date: leaderboard.date.clone(),
            n_settings: leaderboard.settings.len(),
            n_methods: methods.len(),
            gates: format!("{met} of {}", gates.len()),
            has_gates: !gates.is_empty(),
            settings: leaderboard.settings.iter().map(Section::of).collect(),
            failed: leaderboard.failed.clone(),
        }
    }
}

impl Section {
    fn of(report: &SettingReport) -> Self {
        let ranked = report.ranked();
        let metric = ranked.first().map_or_else(String::new, |m| m.metric.clone());
        let scale = Scale::of(&ranked, report.truth.ceiling.map(|c| c.mean));
        let shown = |name: &str| name != metric && ranked.iter().any(|m| m.figure(name).is_some());
        let columns: Vec<(&str, &str)> = COLUMNS.into_iter().filter(|(name, _)| shown(name)).collect();
        let best = ranked.iter().find(|m| m.value.is_some()).map(|m| m.name.clone());
        let row = |m: &&MethodFigure| Row::of(m, &scale, &columns, best.as_ref() == Some(&m.name));
        let mut facts = vec![
            ("Queries".to_owned(), grouped(report.queries)),
            ("Scored examples".to_owned(), grouped(report.examples)),
            // Words of a terminal, where names stand in backticks.
            ("Truth".to_owned(), report.truth.about.replace('`', "")),
        ];
        if let Some(c) = report.truth.ceiling {
            let text = format!("{:.3} [{:.3}, {:.3}], against their mean", c.mean, c.low, c.high);
            facts.push(("Agreement of one retraining seed with the others".to_owned(), text));
        }
        if let Some(bank) = report.truth.bank {
            facts.push(("Bank".to_owned(), bank.to_string()[..16].to_owned()));
        }
        let label = metric_name(&metric);
        let plots = [
            scatter::plot(&ranked, &label, "Bytes kept per example", scatter::Unit::Bytes, |m| m.bytes_per_example),
            scatter::plot(&ranked, &label, "CPU-seconds, fit and score", scatter::Unit::Seconds, |m| m.cpu_seconds()),
        ];
        Self {
            name: report.setting.clone(),
            about: report.about.clone(),
            less: smaller_is_better(&metric),
            facts,
            command: report.truth.command.clone(),
            columns: columns.iter().map(|(_, head)| (*head).to_owned()).collect(),
            rows: ranked.iter().map(row).collect(),
            axis: [scale.low, scale.high].map(|end| format!("{end:.1}").replace('-', "−")),
            zero: (scale.low < 0.0).then(|| scale.percent(0.0)),
            ceiling: report.truth.ceiling.map(|c| scale.percent(c.mean)),
            plots: plots.into_iter().flatten().collect(),
            gates: report.gates.iter().map(Gate::of).collect(),
            notes: report.notes.iter().map(|note| note.replace('`', "")).collect(),
            sets: Sets::of(&ranked, &metric),
            further: Further::of(&ranked),
            metric: label,
        }
    }
}

impl Row {
    fn of(m: &MethodFigure, scale: &Scale, columns: &[(&str, &str)], best: bool) -> Self {
        let value = m.value.unwrap_or(0.0);
        let (start, end) = (value.min(0.0).max(scale.low), value.max(0.0).max(scale.low));
        let (low, high) = (m.low.unwrap_or(value), m.high.unwrap_or(value));
        Self {
            name: m.name.clone(),
            about: m.about.clone(),
            source: m.source.clone(),
            control: m.control,
            best,
            value: written(m.value),
            interval: match (m.low, m.high) {
                (Some(low), Some(high)) => format!("{} to {}", written(Some(low)), written(Some(high))),
                _ => "—".into(),
            },
            undefined: (m.n_undefined > 0)
                .then(|| format!("undefined for {} of {} queries", m.n_undefined, m.n + m.n_undefined)),
            left: scale.percent(start),
            width: scale.part(end - start),
            low: scale.percent(low),
            span: scale.part(high - low),
            extra: columns.iter().map(|(name, _)| written(m.figure(name))).collect(),
            cpu: seconds(m.cpu_seconds()),
            cpu_parts: format!("{} + {}", seconds(m.cpu_fit), seconds(m.cpu_score)),
            bytes: bytes(m.bytes_per_example),
        }
    }
}

impl Gate {
    fn of(gate: &GateFigure) -> Self {
        let (verdict, class) = match gate.met {
            Some(true) => ("met", "met"),
            Some(false) => ("missed", "missed"),
            None => ("no figure", "open"),
        };
        Self {
            about: gate.about.clone(),
            verdict,
            class,
            found: written(gate.found),
            threshold: written(gate.threshold),
            method: gate.method.clone().unwrap_or_else(|| "—".into()),
            anchor: gate.anchor.clone(),
        }
    }
}

impl Sets {
    fn of(ranked: &[&MethodFigure], metric: &str) -> Option<Self> {
        let prefix = format!("{metric}@");
        let first = ranked.first()?;
        let plain = |name: &&str| !name.ends_with("_low") && !name.ends_with("_high");
        let names: Vec<&str> = first.extra.keys().filter_map(|name| name.strip_prefix(&prefix)).filter(plain).collect();
        if names.is_empty() {
            return None;
        }
        let row = |m: &&MethodFigure| {
            let cells = names.iter().map(|set| written(m.figure(&format!("{prefix}{set}")))).collect();
            (m.name.clone(), cells)
        };
        Some(Self { rows: ranked.iter().map(row).collect(), names: names.into_iter().map(str::to_owned).collect() })
    }
}

/// From values to places on the bars, in tenths.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(methods: &[&MethodFigure], ceiling: Option<f64>) -> Self {
        let values = methods.iter().flat_map(|m| [m.value, m.low, m.high]).flatten().chain(ceiling);
        let (low, high) = values.fold((0.0f64, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
        let tenth = |v: f64| (v * 10.0 - 1e-9).ceil() / 10.0;
        Self { low: -tenth(-low), high: tenth(high).max(0.1) }
    }

    fn percent(&self, value: f64) -> String {
        self.part(value - self.low)
    }

    fn part(&self, length: f64) -> String {
        format!("{:.2}%", 100.0 * length / (self.high - self.low))
    }
}

/// What a metric is called on the page.
fn metric_name(metric: &str) -> String {
    match metric {
        "lds" => "LDS".into(),
        "tv_shapley" => "total variation to exact Shapley shares".into(),
        other => other.replace("_at_", "@").replace('_', " "),
    }
}

fn written(value: Option<f64>) -> String {
    match value {
        // A true minus sign, as wide as a plus.
        Some(v) => format!("{v:.3}").replace('-', "−"),
        None => "—".into(),
    }
}

fn seconds(s: f64) -> String {
    match s {
        0.0 => "0 s".into(),
        s if s < 0.01 => "<0.01 s".into(),
        s if s < 1.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{} s", grouped(s.round() as usize)),
    }
}

fn bytes(b: f64) -> String {
    match b {
        0.0 => "none".into(),
        b if b < 1_000.0 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b => format!("{:.1} MB", b / 1e6),
    }
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests;
