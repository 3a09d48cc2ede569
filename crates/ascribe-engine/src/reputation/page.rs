//! The reputation leaderboard as one HTML file, readable with scripts off.

use minijinja::{Value, context};
use serde_json::json;

use super::{QUESTIONS, Reputation, ReputationRow};
use crate::error::EngineError;
use crate::report::page;

const TEMPLATE: &str = include_str!("template.html");

/// Draws the page. Same leaderboard, same bytes.
///
/// # Errors
/// A fault of the template.
pub fn render(reputation: &Reputation) -> Result<String, EngineError> {
    let capabilities: Vec<&String> = reputation.capabilities.keys().collect();
    let reach = reputation.datasets.iter().map(|row| row.influence.high.max(row.score)).fold(0.0, f64::max);
    let scale = rounded_up(reach);
    let view = json!({
        "model": reputation.model,
        "formula": reputation.formula,
        "agreement": reputation.agreement.spearman.map_or_else(|| "not defined".to_owned(), |s| format!("{s:.2}")),
        "bigram": reputation.agreement.bigram_alone.map_or_else(|| "not defined".to_owned(), |s| format!("{s:.2}")),
        "seeds": reputation.agreement.seeds,
        "responses": reputation.capabilities.values().sum::<usize>(),
        "scale": scale,
        "capabilities": reputation.capabilities.iter().map(|(name, n)| format!("{name} ({n})")).collect::<Vec<_>>(),
        "rows": reputation.datasets.iter().map(|row| row_view(row, &capabilities, scale)).collect::<Vec<_>>(),
    });
    let style = Value::from_safe_string(page::STYLE.to_owned());
    Ok(page::render("reputation", TEMPLATE, context! { page => page::value(view), style => style })?)
}

/// One dataset; bars in percent of the scale.
fn row_view(row: &ReputationRow, capabilities: &[&String], scale: f64) -> serde_json::Value {
    let by: Vec<String> = capabilities.iter().map(|name| format!("{:.2}", row.by_capability[*name].mean)).collect();
    let percent = |value: f64| (100.0 * value / scale).clamp(0.0, 100.0);
    let kept = 1.0 - row.duplication;
    let (low, high) = (row.influence.low * kept, row.influence.high * kept);
    let good = (QUESTIONS - row.licence_gaps.len().min(QUESTIONS)).to_string();
    json!({
        "rank": row.rank,
        "dataset": row.dataset,
        "owner": row.owner,
        "score": format!("{:.2}", row.score),
        "interval": format!("{low:.2} to {high:.2}"),
        "bar": format!("{:.2}", percent(row.score)),
        "low": format!("{:.2}", percent(low)),
        "span": format!("{:.2}", percent(high) - percent(low)),
        "influence": format!("{:.2} [{:.2}, {:.2}]", row.influence.mean, row.influence.low, row.influence.high),
        "best": best_of(row, capabilities),
        "by": by,
        "uniqueness": format!("{:.2} [{:.2}, {:.2}]", row.uniqueness.mean, row.uniqueness.low, row.uniqueness.high),
        "duplication": format!("{:.1} %", 100.0 * row.duplication),
        "clarity": format!("{good} of {QUESTIONS}"),
        "gaps": row.licence_gaps.join(", not "),
    })
}

/// The capabilities that a dataset helps, the most first: those with at least a tenth of its best.
fn best_of(row: &ReputationRow, capabilities: &[&String]) -> String {
    let mut helped: Vec<(&str, f64)> =
        capabilities.iter().map(|name| (name.as_str(), row.by_capability[*name].mean)).collect();
    helped.sort_by(|a, b| b.1.total_cmp(&a.1));
    let least = helped.first().map_or(0.0, |(_, best)| best / 10.0);
    let named = helped.iter().filter(|(_, mean)| *mean > 0.0 && *mean >= least);
    let named: Vec<String> = named.map(|(name, mean)| format!("{name} {mean:.1}")).collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

/// The next number above that ends well: 1, 2, 4 or 8 times a power of ten, so that quarters of it end well too.
fn rounded_up(reach: f64) -> f64 {
    let power = 10f64.powf(reach.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|scale| *scale >= reach).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ascribe_eval::Estimate;

    use super::*;
    use crate::reputation::{Agreement, FORMULA};

    #[test]
    fn scales_hold_what_they_show() {
        for (reach, scale) in [(0.0, 1e-9), (1.0, 1.0), (1.5, 2.0), (71.9, 80.0), (81.0, 100.0), (0.03, 0.04)] {
            assert!((rounded_up(reach) - scale).abs() < 1e-9, "{reach}: {}", rounded_up(reach));
        }
    }

    #[test]
    fn names_are_escaped_and_every_figure_is_there() {
        let estimate = Estimate { mean: 1.25, low: 1.0, high: 1.5, n: 4, n_undefined: 0 };
        let row = ReputationRow {
            rank: 1,
            dataset: "<script>alert(1)</script>".to_owned(),
            owner: "Ann & Bob".to_owned(),
            score: 1.25,
            influence: estimate,
            by_capability: BTreeMap::from([("en".to_owned(), estimate)]),
            uniqueness: estimate,
            duplication: 0.125,
            licence_clarity: 0.8,
            licence_gaps: vec!["open end".to_owned()],
        };
        let html = render(&Reputation {
            formula: FORMULA.to_owned(),
            model: "wren".to_owned(),
            capabilities: BTreeMap::from([("en".to_owned(), 4)]),
            datasets: vec![row],
            agreement: Agreement {
                spearman: Some(0.9),
                by_capability: BTreeMap::new(),
                bigram_alone: Some(0.8),
                seeds: 3,
            },
        })
        .unwrap();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && html.contains("Ann &amp; Bob"));
        for figure in ["1.25 [1.00, 1.50]", "12.5 %", "4 of 5", "not open end", "0.90", "en (4)", "width: 62.50%"] {
            assert!(html.contains(figure), "{figure}");
        }
    }
}
