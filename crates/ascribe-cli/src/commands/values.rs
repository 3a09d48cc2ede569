//! `ascribe values` and `ascribe self-influence`.

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_engine::upon::{self, UponReport};
use ascribe_engine::values::{self, ValuesReport};

use crate::args::Format;
use crate::args::values::{SelfInfluenceArgs, ValuesArgs};
use crate::output::{print, table};

/// Runs `values`.
pub fn run(home: &Home, args: &ValuesArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    print(format, &values::run(home, &args.request(), bars)?, text)
}

fn text(report: &ValuesReport) -> String {
    let row = |p: &values::PlayerValue| {
        let error = if report.exact { "exact".to_owned() } else { format!("± {:.4}", 1.96 * p.std_error) };
        vec![p.name.clone(), p.examples.to_string(), format!("{:+.4}", p.value), error, format!("{:.4}", p.share)]
    };
    let rows: Vec<Vec<String>> = report.players.iter().map(row).collect();
    let header = ["dataset", "examples", report.unit, "of the drawing, 95 %", "share"];
    let split = |s: &values::SplitGain| {
        format!(
            "{} registered in {} parts: {:+.4} in the place of {:+.4}, a gain of {:+.4} ± {:.4}\n",
            s.dataset,
            s.parts,
            s.split,
            s.whole,
            s.gain,
            1.96 * s.std_error
        )
    };
    let written = report.written.as_ref().map_or_else(String::new, |path| format!("written: {}\n", path.display()));
    format!(
        "means over {} responses; {}\n\n{}\nadditivity residual {:.4}; values add up to what everything is worth \
         within {:.1e}\n{}{written}",
        report.responses,
        values::asked(report.exact, report.utilities),
        table(&header, &rows),
        report.additivity_residual,
        report.efficiency_residual,
        report.splits.iter().map(split).collect::<String>()
    )
}

/// Runs `self-influence`.
pub fn upon(home: &Home, args: &SelfInfluenceArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    print(format, &upon::run(home, &args.request(), bars)?, upon_text)
}

fn upon_text(report: &UponReport) -> String {
    let mut out = format!("{}\n", report.of);
    for method in &report.methods {
        let (name, about) = (&method.method, &method.about);
        out += &format!("\n{name}: {about} ({:.1} CPU seconds)\n", method.cpu_seconds);
        let dataset = |d: &upon::UponDataset| {
            let numbers = [d.mean, d.median, d.largest].map(|v| format!("{v:.4e}"));
            [vec![d.dataset.clone(), d.examples.to_string()], numbers.to_vec()].concat()
        };
        let rows: Vec<Vec<String>> = method.datasets.iter().map(dataset).collect();
        out += &table(&["", "examples", "mean", "median", "largest"], &rows);
        let example = |e: &upon::UponExample| {
            let record = e.record.clone().unwrap_or_default();
            vec![format!("{} {}", e.dataset, e.example), format!("{:.4e}", e.value), record]
        };
        let rows: Vec<Vec<String>> = method.top.iter().map(example).collect();
        out += &table(&["largest upon themselves", "", ""], &rows);
        if !method.records.is_empty() {
            let record =
                |r: &upon::UponRecord| vec![r.record.clone(), r.examples.to_string(), format!("{:.4e}", r.mean)];
            let rows: Vec<Vec<String>> = method.records.iter().map(record).collect();
            out += &table(&["records", "examples", "mean"], &rows);
        }
    }
    for note in &report.notes {
        out += &format!("note: {note}\n");
    }
    out + &report.written.as_ref().map_or_else(String::new, |path| format!("written: {}\n", path.display()))
}
