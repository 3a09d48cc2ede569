//! The table of further protocols: detection, removal, tail-patch, one column per measure, the best of every column marked.
//!
//! Here never lives: what the measures mean (eval), markup (`template.html`).

use serde::Serialize;

use super::written;
use crate::bench::report::MethodFigure;

/// Measures by name, and what the head of their column says; `@` stands for one column per part that was removed.
const MEASURES: [(&str, &str); 9] = [
    ("class_top1", "top example of the query's class"),
    ("subclass_top1", "of its class, trained on merged ones"),
    ("dataset_top1", "top example of the query's dataset"),
    ("mislabel_auc", "wrong labels found, AUC"),
    ("mislabel_found_area", "wrong labels found, area"),
    ("tail_patch", "tail-patch, rise of probability"),
    ("removal_effect@", "margin lost"),
    ("brittleness@", "predictions turned"),
    ("removals_to_flip", "removals that turn a prediction, median"),
];
/// The one measure of these where less is better.
const FEWER: &str = "removals_to_flip";

/// The table, written.
#[derive(Debug, Serialize)]
pub struct Further {
    heads: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    control: bool,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    value: String,
    interval: Option<String>,
    best: bool,
}

impl Further {
    /// The table of methods that have any of the measures; `None` if none has. In the order of `ranked`.
    pub fn of(ranked: &[&MethodFigure]) -> Option<Self> {
        let columns = columns(ranked);
        let has = |m: &&&MethodFigure| columns.iter().any(|(name, _)| m.figure(name).is_some());
        let shown: Vec<&&MethodFigure> = ranked.iter().filter(has).collect();
        if shown.is_empty() {
            return None;
        }
        let best: Vec<Option<f64>> = columns.iter().map(|(name, _)| best(name, &shown)).collect();
        let cell = |m: &MethodFigure, (name, best): (&str, &Option<f64>)| {
            let ends = (m.figure(&format!("{name}_low")), m.figure(&format!("{name}_high")));
            let value = m.figure(name);
            Cell {
                value: if name == FEWER { counted(value) } else { written(value) },
                interval: ends
                    .0
                    .zip(ends.1)
                    .map(|(low, high)| format!("{} to {}", written(Some(low)), written(Some(high)))),
                best: value.is_some() && value == *best,
            }
        };
        let row = |m: &&&MethodFigure| Row {
            name: m.name.clone(),
            control: m.control,
            cells: columns.iter().map(|(name, _)| name.as_str()).zip(&best).map(|at| cell(m, at)).collect(),
        };
        Some(Self {
            heads: columns.iter().map(|(_, head)| head.clone()).collect(),
            rows: shown.iter().map(row).collect(),
        })
    }
}

/// Columns that some method has: name of the measure and head.
fn columns(ranked: &[&MethodFigure]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (name, head) in MEASURES {
        match name.strip_suffix('@') {
            None => out.push((name.to_owned(), head.to_owned())),
            Some(_) => out.extend(parts(ranked, name).into_iter().map(|(part, written)| {
                let percent = format!("{:.2}", 100.0 * part);
                let percent = percent.trim_end_matches('0').trim_end_matches('.');
                (format!("{name}{written}"), format!("{head}, top {percent} % removed"))
            })),
        }
    }
    out.retain(|(name, _)| ranked.iter().any(|m| m.figure(name).is_some()));
    out
}

/// Removed parts that some method has figures for, rising, with how they are written.
fn parts(ranked: &[&MethodFigure], prefix: &str) -> Vec<(f64, String)> {
    let suffixes = ranked.iter().flat_map(|m| m.extra.keys()).filter_map(|name| name.strip_prefix(prefix));
    let mut parts: Vec<(f64, String)> =
        suffixes.filter_map(|text| Some((text.parse::<f64>().ok()?, text.to_owned()))).collect();
    parts.sort_by(|a, b| a.0.total_cmp(&b.0));
    parts.dedup();
    parts
}

fn best(name: &str, shown: &[&&MethodFigure]) -> Option<f64> {
    let values = shown.iter().filter_map(|m| m.figure(name));
    if name == FEWER { values.reduce(f64::min) } else { values.reduce(f64::max) }
}

fn counted(value: Option<f64>) -> String {
    value.map_or_else(|| "—".into(), |v| format!("{v:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, extra: &[(&str, f64)]) -> MethodFigure {
        let extra = extra.iter().map(|(name, v)| ((*name).to_owned(), Some(*v))).collect();
        MethodFigure { extra, ..MethodFigure::new(name, "lds") }
    }

    #[test]
    fn columns_follow_what_was_measured() {
        let a = method(
            "a",
            &[
                ("mislabel_auc", 0.9),
                ("mislabel_auc_low", 0.8),
                ("mislabel_auc_high", 0.95),
                ("removal_effect@0.1", 2.0),
                ("removal_effect@0.02", 1.0),
                ("removal_effect@0.02_low", 0.5),
                ("removals_to_flip", 25.0),
            ],
        );
        let b = method("b", &[("mislabel_auc", 0.95), ("removals_to_flip", 500.0)]);
        let c = method("c", &[("loo_pearson", 0.5)]);
        let further = Further::of(&[&a, &b, &c]).unwrap();
        assert_eq!(
            further.heads,
            [
                "wrong labels found, AUC",
                "margin lost, top 2 % removed",
                "margin lost, top 10 % removed",
                "removals that turn a prediction, median"
            ]
        );
        assert_eq!(further.rows.len(), 2, "c has none of them");
        let cells: Vec<(&str, bool)> =
            further.rows.iter().flat_map(|r| r.cells.iter().map(|c| (c.value.as_str(), c.best))).collect();
        assert_eq!(
            cells,
            [
                ("0.900", false),
                ("1.000", true),
                ("2.000", true),
                ("25", true),
                ("0.950", true),
                ("—", false),
                ("—", false),
                ("500", false)
            ]
        );
        assert_eq!(further.rows[0].cells[0].interval.as_deref(), Some("0.800 to 0.950"));
        assert_eq!(further.rows[0].cells[1].interval, None, "an interval has two ends");
        assert!(Further::of(&[&c]).is_none());
    }
}
