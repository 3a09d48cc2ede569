//! The table as Markdown and as a page that is readable with scripts off.

use super::attack::ATTACKS;
use super::{AttackReport, BAR_PERCENT, Outcome, Retrained};

fn percent(value: Option<f64>) -> String {
    match value {
        None => "—".to_owned(),
        // No minus in front of what rounds to nothing.
        Some(v) if v.abs() < 0.005 => "0".to_owned(),
        Some(v) => format!("{v:+.2}"),
    }
}

fn share_error(value: Option<f64>) -> String {
    value.map_or_else(|| "—".to_owned(), |v| format!("{v:.3}"))
}

fn about(name: &str) -> (&'static str, bool) {
    ATTACKS.iter().find(|a| a.name == name).map_or(("", false), |a| (a.about, a.claimed))
}

fn caught(outcome: &Outcome) -> String {
    outcome.caught.map_or_else(|| "—".to_owned(), |(caught, all)| format!("{caught} of {all}"))
}

/// Cells of the table: one row an outcome, one column a policy.
fn rows(report: &AttackReport) -> Vec<Vec<String>> {
    let row = |outcome: &Outcome| {
        let claimed = if about(&outcome.attack).1 { "yes" } else { "no" };
        let mut cells = vec![outcome.attack.clone(), outcome.target.clone(), claimed.to_owned()];
        cells.push(outcome.added_windows.to_string());
        cells.push(caught(outcome));
        cells.extend(report.policies.iter().map(|p| percent(outcome.gain_percent.get(&p.name).copied().flatten())));
        cells
    };
    report.outcomes.iter().map(row).collect()
}

fn header(report: &AttackReport) -> Vec<String> {
    let fixed = ["attack", "target", "claimed", "windows added", "records caught"];
    fixed.iter().map(|text| (*text).to_owned()).chain(report.policies.iter().map(|p| p.name.clone())).collect()
}

fn markdown_table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", " --- |".repeat(header.len()));
    line(header) + &rule + &rows.iter().map(|cells| line(cells)).collect::<String>()
}

fn policy_rows(report: &AttackReport) -> Vec<Vec<String>> {
    let row = |p: &super::PolicyLine| {
        vec![
            p.name.clone(),
            p.about.clone(),
            share_error(p.share_error),
            percent(p.worst_claimed_percent),
            percent(p.worst_percent),
        ]
    };
    report.policies.iter().map(row).collect()
}

fn retrained_header(report: &AttackReport) -> Vec<String> {
    let fixed = ["attack", "target", "examples added", "of", "records caught", "held-out bits per byte"];
    fixed.iter().map(|text| (*text).to_owned()).chain(report.policies.iter().map(|p| p.name.clone())).collect()
}

/// One row an attack on a retrained model.
fn retrained_rows(report: &AttackReport) -> Vec<Vec<String>> {
    let row = |r: &Retrained| {
        let caught = r.caught.map_or_else(|| "—".to_owned(), |(caught, all)| format!("{caught} of {all}"));
        let counts =
            [r.trained_examples.to_string(), r.examples.to_string(), caught, format!("{:.4}", r.bits_per_byte)];
        let mut cells = vec![r.attack.clone(), r.target.clone()];
        cells.extend(counts);
        cells.extend(report.policies.iter().map(|p| percent(r.gain_percent.get(&p.name).copied().flatten())));
        cells
    };
    report.retrained.iter().map(row).collect()
}

const POLICY_HEADER: [&str; 5] =
    ["policy", "what it does", "share error, owners", "worst gain, claimed attacks", "worst gain, all attacks"];

/// The report as Markdown.
pub fn markdown(report: &AttackReport) -> String {
    let size = if report.quick { " Quick run: one target, a third of the text." } else { "" };
    let mut text = format!(
        "Model {}, {} responses, every gain in percent of the pool; the bar is {BAR_PERCENT} for claimed attacks.{size}\n\n",
        report.model, report.responses
    );
    text += &markdown_table(&POLICY_HEADER.map(str::to_owned), &policy_rows(report));
    text += "\n";
    text += &markdown_table(&header(report), &rows(report));
    text += "\n";
    if !report.retrained.is_empty() {
        text += "On models that were trained with the added text:\n\n";
        text += &markdown_table(&retrained_header(report), &retrained_rows(report));
        text += "\n";
    }
    for attack in ATTACKS.iter().filter(|a| report.outcomes.iter().any(|o| o.attack == a.name)) {
        text += &format!("- `{}`: {}.\n", attack.name, attack.about);
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn html_table(header: &[String], rows: &[Vec<String>], shade_from: usize) -> String {
    let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
    header.iter().for_each(|cell| out += &format!("<th>{}</th>", escape(cell)));
    out += "</tr></thead><tbody>\n";
    for cells in rows {
        out += "<tr>";
        for (column, cell) in cells.iter().enumerate() {
            let gain = cell.parse::<f64>().ok().filter(|_| column >= shade_from);
            let class = match gain {
                Some(gain) if gain > BAR_PERCENT => " class=\"bad\"",
                Some(gain) if gain > 0.0 => " class=\"some\"",
                Some(_) => " class=\"none\"",
                None => "",
            };
            out += &format!("<td{class}>{}</td>", escape(cell));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1b2330;--page:#f6f7f9;--card:#fff;--line:#d9dfe7;--bad:#f6c9bd;--some:#f5e6bd;--none:#d4ebe1}\
@media(prefers-color-scheme:dark){:root{--ink:#e7ecf3;--page:#11151b;--card:#191f28;--line:#303946;--bad:#6b2c1c;--some:#56471c;--none:#1f4338}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0}main{max-width:80rem;margin:0 auto;padding:2rem 1rem}\
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem;margin:1rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}th{font-size:.85em}td.bad,td.some,td.none{text-align:right}\
td.bad{background:var(--bad)}td.some{background:var(--some)}td.none{background:var(--none)}";

/// The report as a page.
pub fn html(report: &AttackReport) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\"><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>Attacks on {0}</title><style>{STYLE}</style></head><body><main><h1>What attacks on {0} gain</h1>\
         <p>{1} responses; gains in percent of the pool. Red is more than {BAR_PERCENT}.</p>",
        escape(&report.model),
        report.responses
    );
    out += &html_table(&POLICY_HEADER.map(str::to_owned), &policy_rows(report), 3);
    out += &html_table(&header(report), &rows(report), 5);
    if !report.retrained.is_empty() {
        out += "<h2>On models that were trained with the added text</h2>";
        out += &html_table(&retrained_header(report), &retrained_rows(report), 6);
    }
    out += "<ul>";
    for attack in &ATTACKS {
        out += &format!("<li><code>{}</code>: {}</li>", attack.name, escape(attack.about));
    }
    out + "</ul></main></body></html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_refused_is_a_dash_and_rounding_has_no_sign() {
        let outcome = Outcome {
            attack: "near_copy".into(),
            target: "a<b".into(),
            added_windows: 3,
            caught: Some((2, 3)),
            gain_percent: BTreeMap::from([("p".to_owned(), Some(2.5)), ("q".to_owned(), None)]),
        };
        let policy = |name: &str| super::super::PolicyLine {
            name: name.into(),
            about: "about".into(),
            share_error: Some(0.25),
            worst_percent: Some(-0.001),
            worst_claimed_percent: None,
        };
        let report = AttackReport {
            format_version: 1,
            model: "m".into(),
            responses: 4,
            key: ascribe_core::Digest::of(b""),
            quick: true,
            policies: vec![policy("p"), policy("q")],
            outcomes: vec![outcome],
            retrained: vec![Retrained {
                attack: "exact_copy".into(),
                target: "a<b".into(),
                trained_examples: 5,
                examples: 50,
                caught: None,
                bits_per_byte: 1.25,
                gain_percent: BTreeMap::from([("p".to_owned(), Some(-0.25))]),
            }],
        };
        let text = markdown(&report);
        assert!(text.contains("| near_copy | a<b | yes | 3 | 2 of 3 | +2.50 | — |"), "{text}");
        assert!(text.contains("| p | about | 0.250 | — | 0 |"), "{text}");
        assert!(text.contains("| exact_copy | a<b | 5 | 50 | — | 1.2500 | -0.25 |"), "{text}");
        let page = html(&report);
        assert!(page.contains("a&lt;b") && page.contains("<td class=\"bad\">+2.50</td>"), "{page}");
    }
}
