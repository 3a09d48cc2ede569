//! The bench's commands.

use std::path::Path;

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_engine::attacks::{self, AttackOptions};
use ascribe_engine::bench::damping::{self, DampingReport};
use ascribe_engine::bench::facts::{self, FactsRequest};
use ascribe_engine::bench::methods::Offer;
use ascribe_engine::bench::report::{GateFigure, SettingReport};
use ascribe_engine::bench::run::{self, ListedSetting, RunOptions};
use ascribe_engine::bench::setting::Setting;
use ascribe_engine::bench::{bank, runners, suite};
use ascribe_engine::outside::Outside;
use serde_json::json;

use crate::args::Format;
use crate::args::bench::BenchCommand;
use crate::output::{print, table};

/// Runs one command of the bench.
pub fn run(home: &Home, command: &BenchCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    match command {
        BenchCommand::List { setting: None } => {
            let settings = run::list(home)?;
            print(format, &json!({ "settings": settings }), |_| list_text(&settings))
        }
        BenchCommand::List { setting: Some(name) } => {
            let setting = run::list_one(home, name)?;
            print(format, &json!({ "settings": [&setting] }), |_| setting_text(&setting))
        }
        BenchCommand::Run { .. } => run_target(home, command, format, bars),
        BenchCommand::Damping { setting, methods, grid, keep } => {
            let setting = Setting::named(home, setting)?;
            let report = damping::choose(home, &setting, methods, grid, bars)?;
            if *keep {
                damping::keep(&setting, &report)?;
            }
            print(format, &report, damping_text)
        }
        BenchCommand::Facts { corpora, queries, model, encoder, methods, k, limit } => {
            let named = home.model(model);
            let request = FactsRequest {
                name: "facts".into(),
                about: format!("fact tracing over the records of {}", corpora.display()),
                corpora: corpora.clone(),
                queries: queries.clone(),
                model: if named.is_dir() { named } else { model.into() },
                encoder: encoder.clone(),
                methods: methods.clone(),
                k: *k,
                limit: *limit,
            };
            print(format, &facts::run(&request, bars)?, report_text)
        }
        BenchCommand::Bank { setting, bank, seeds, shard } => {
            let setting = Setting::named(home, setting)?;
            let names = match bank {
                Some(name) => vec![name.clone()],
                None => setting.banks.keys().cloned().collect(),
            };
            let shard = (usize::try_from(shard.0)?, usize::try_from(shard.1)?);
            let mut trained = 0;
            for name in &names {
                trained += runners::build_bank(home, &setting, name, seeds.as_deref(), shard, bars)?;
            }
            print(format, &json!({ "trained": trained }), |_| format!("{trained} trainings done"))
        }
        BenchCommand::Attacks(args) => {
            let options =
                AttackOptions { only: args.only.clone(), quick: args.quick, seed: args.seed, retrain: args.retrain };
            let report = attacks::run(home, &args.model, &args.run, &args.out, &options, bars)?;
            print(format, &report, attacks::markdown)
        }
        BenchCommand::Search(args) => super::search::measure(args, format, bars),
        BenchCommand::Pack { setting, bank: name } => {
            let setting = Setting::named(home, setting)?;
            setting.bank(name)?;
            bank::pack(&setting.bank_dir(name))?;
            print(format, &json!({ "packed": name }), |_| format!("{name} packed"))
        }
    }
}

/// Runs a setting, or a suite with its leaderboard.
fn run_target(home: &Home, command: &BenchCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    let BenchCommand::Run { target, methods, protocols, queries, out, any_build, normalise, encoder, vectors } =
        command
    else {
        return Ok(());
    };
    let options = RunOptions {
        methods: methods.clone(),
        protocols: protocols.clone(),
        queries: *queries,
        out: Some(out.clone()),
        any_build: *any_build,
        offer: Offer { normalise: normalise.map(Into::into), outside: outside(encoder.as_deref(), vectors) },
    };
    if Path::new(target).extension().is_some_and(|extension| extension == "toml") {
        let board = suite::run(home, Path::new(target), &options, bars)?;
        let page = out.join(suite::PAGE_FILE);
        return print(format, &board, |b| {
            let texts: Vec<String> = b.settings.iter().map(report_text).collect();
            format!("{}\nleaderboard: {}", texts.join("\n"), page.display())
        });
    }
    let report = run::run(home, &Setting::named(home, target)?, &options, bars)?;
    print(format, &report, report_text)
}

/// Where an outside encoder's vectors come from, if there is one.
fn outside(encoder: Option<&Path>, vectors: &[std::path::PathBuf]) -> Option<Outside> {
    match (encoder, vectors) {
        (Some(model), _) => Some(Outside::Model { model: model.into() }),
        (None, [examples, queries]) => Some(Outside::Vectors { examples: examples.clone(), queries: queries.clone() }),
        _ => None,
    }
}

fn damping_text(report: &DampingReport) -> String {
    let [choosing, judging] =
        [report.choosing, report.judging].map(|[from, to]| format!("queries {from} to {}", to.max(1) - 1));
    let mut out = format!("{}: {choosing} choose, {judging} judge\n", report.setting);
    for (name, curve) in &report.methods {
        let row = |p: &damping::DampingPoint| {
            let mark = if p.damping == curve.chosen { "chosen" } else { "" };
            vec![format!("{:.6}", p.damping), number(p.choosing, 4), number(p.judging, 4), mark.to_owned()]
        };
        let rows: Vec<Vec<String>> = curve.points.iter().map(row).collect();
        let judged =
            curve.judged.map_or_else(|| "—".to_owned(), |e| format!("{:.4} [{:.4}, {:.4}]", e.mean, e.low, e.high));
        out += &format!(
            "\n{name}\n{}{} judged: {judged}; the best of the judging half: {}\n",
            table(&["damping", "choosing half", "judging half", ""], &rows),
            curve.chosen,
            number(curve.best_judging, 4)
        );
    }
    out
}

/// What a setting is, and its banks.
fn head_text(setting: &ListedSetting) -> String {
    let mut text = format!("{}: {}\n", setting.name, setting.about);
    for bank in &setting.banks {
        let subsets = bank.subsets.map_or_else(String::new, |n| format!(", {n} trainings each"));
        text += &format!("  bank {}: {} of {} seeds{subsets}", bank.name, bank.complete, bank.seeds);
        text += &if bank.complete < bank.seeds { format!(" ({})\n", bank.command) } else { "\n".to_owned() };
    }
    text
}

/// One setting with every method in words.
fn setting_text(setting: &ListedSetting) -> String {
    let mut text = head_text(setting);
    if !setting.protocols.is_empty() {
        text += &format!("  protocols: {}\n", setting.protocols.join(", "));
    }
    text.extend(setting.gates.iter().map(|gate| format!("  gate: {gate}\n")));
    let width = setting.methods.iter().map(|m| m.name.len()).max().unwrap_or(0);
    for (head, quick) in [("methods", true), ("only when named, or with --methods all", false)] {
        let of: Vec<_> = setting.methods.iter().filter(|m| m.quick == quick).collect();
        if !of.is_empty() {
            text += &format!("  {head}:\n");
        }
        text.extend(of.iter().map(|m| format!("    {:width$}  {} [{}]\n", m.name, m.about, m.source)));
    }
    text
}

fn list_text(settings: &[ListedSetting]) -> String {
    let mut text = String::new();
    for setting in settings {
        text += &head_text(setting);
        let names = |quick: bool| {
            let of = setting.methods.iter().filter(|m| m.quick == quick).map(|m| m.name.as_str());
            of.collect::<Vec<_>>().join(", ")
        };
        text += &format!("  methods: {}\n", names(true));
        if setting.methods.iter().any(|m| !m.quick) {
            text += &format!("  only when named, or with --methods all: {}\n", names(false));
        }
        if !setting.protocols.is_empty() {
            text += &format!("  protocols: {}\n", setting.protocols.join(", "));
        }
    }
    text + "\nwhat the methods of a setting compute: ascribe bench list SETTING\n"
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "—".to_owned(), |v| format!("{v:.digits$}"))
}

/// A line per demand: met, missed, or without a figure that could decide it.
pub fn gates_text(gates: &[GateFigure]) -> String {
    let verdict = |gate: &GateFigure| match gate.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "no figure",
    };
    let line = |gate: &GateFigure| {
        let by = gate.method.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        let (found, threshold) = (number(gate.found, 3), number(gate.threshold, 3));
        format!("gate {}: {}: {found} against {threshold}{by}\n", verdict(gate), gate.about)
    };
    gates.iter().map(line).collect()
}

fn report_text(report: &SettingReport) -> String {
    let mut names: Vec<String> = Vec::new();
    for method in report.methods.values() {
        let shown = |name: &&String| !name.contains('@') && !name.ends_with("_low") && !name.ends_with("_high");
        for name in method.extra.keys().filter(shown) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    let metric = report.methods.values().next().map_or("value", |m| m.metric.as_str());
    let mut header = vec!["", metric, "95 % interval"];
    header.extend(names.iter().map(String::as_str));
    header.extend(["CPU s", "bytes per example"]);
    let row = |m: &&ascribe_engine::bench::report::MethodFigure| {
        let mut cells = vec![
            if m.control { format!("{} (control)", m.name) } else { m.name.clone() },
            number(m.value, 3),
            format!("[{}, {}]", number(m.low, 3), number(m.high, 3)),
        ];
        cells.extend(names.iter().map(|name| number(m.figure(name), 3)));
        cells.extend([format!("{:.2}", m.cpu_seconds()), format!("{:.0}", m.bytes_per_example)]);
        cells
    };
    let rows: Vec<Vec<String>> = report.ranked().iter().map(row).collect();
    let ceiling = report.truth.ceiling.map_or_else(String::new, |c| {
        format!("\nagreement of one retraining seed with the others: {:.3} [{:.3}, {:.3}]", c.mean, c.low, c.high)
    });
    let mut text = format!(
        "{}: {}\n{} queries, {} examples; truth: {}{ceiling}\n\n{}",
        report.setting,
        report.about,
        report.queries,
        report.examples,
        report.truth.about,
        table(&header, &rows)
    );
    text += &gates_text(&report.gates);
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_met_missed_or_without_a_figure() {
        let gate = |about: &str, method: Option<&str>, found, met| GateFigure {
            about: about.into(),
            method: method.map(str::to_owned),
            threshold: Some(0.15),
            found,
            met,
            anchor: String::new(),
        };
        let gates = [
            gate("share error", Some("calibrated"), Some(0.0763), Some(true)),
            gate("rank", Some("calibrated"), Some(0.1), Some(false)),
            gate("lds", None, None, None),
        ];
        let lines = "gate met: share error: 0.076 against 0.150 (calibrated)\n\
                     gate missed: rank: 0.100 against 0.150 (calibrated)\n\
                     gate no figure: lds: — against 0.150\n";
        assert_eq!(gates_text(&gates), lines);
    }
}
