//! Damping by evidence: the first half of the queries chooses, the other half judges, and both figures are kept.
//!
//! A damping that was chosen on the queries that judge it flatters its method. `ascribe bench damping` runs a method over a grid, takes
//! the damping with the best LDS on the first half of the bank's queries, and reports what that damping reaches on the second half,
//! which had no say. With `--keep` the curve is written beside the setting (`damping.json`) and every later run takes the choice from
//! there. Here never lives: a method, a damping that was chosen by hand (`methods::catalogue`).

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use ascribe_eval::Estimate;
use serde::{Deserialize, Serialize};

use super::contest::{self, Contestant, Truths};
use super::lab::{DecoderLab, ImageLab, Lab};
use super::methods::{Method, find};
use super::run;
use super::setting::{Setting, Subject};
use crate::error::EngineError;
use crate::files;
use crate::home::Home;

/// The curves and choices beside a setting's file.
pub const DAMPING_FILE: &str = "damping.json";

/// Factors of a method's own damping that are tried without a grid.
pub const FACTORS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// One damping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DampingPoint {
    /// Tried, in the method's unit.
    pub damping: f64,
    /// LDS on the choosing half.
    pub choosing: Option<f64>,
    /// LDS on the judging half.
    pub judging: Option<f64>,
}

/// A method's curve and choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DampingCurve {
    /// In the order that they were tried.
    pub points: Vec<DampingPoint>,
    /// The best of the choosing half.
    pub chosen: f64,
    /// Its LDS on the judging half, with an interval over queries.
    pub judged: Option<Estimate>,
    /// The best that any damping reaches on the judging half: what choosing cost.
    pub best_judging: Option<f64>,
}

/// What was chosen on a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DampingReport {
    /// Setting.
    pub setting: String,
    /// In words.
    pub criterion: String,
    /// The bank that judged.
    pub bank: Option<Digest>,
    /// Queries that choose: `[from, to)`.
    pub choosing: [usize; 2],
    /// Queries that judge.
    pub judging: [usize; 2],
    /// By method.
    pub methods: BTreeMap<String, DampingCurve>,
}

/// The choices beside a setting, by method; empty without a file.
///
/// # Errors
/// A file that does not parse, or of another setting; a damping that is not positive and finite.
pub fn kept(dir: &Path, setting: &str) -> Result<BTreeMap<String, f64>, EngineError> {
    let path = dir.join(DAMPING_FILE);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let report: DampingReport = serde_json::from_slice(&files::read(&path)?)
        .map_err(|e| EngineError::Recipe { path: path.clone(), why: e.to_string() })?;
    let refuse = |expected: String, found: String| EngineError::Content { path: path.clone(), expected, found };
    if report.setting != setting {
        return Err(refuse(format!("dampings of {setting}"), report.setting));
    }
    match report.methods.iter().find(|(_, curve)| !(curve.chosen.is_finite() && curve.chosen > 0.0)) {
        None => Ok(report.methods.into_iter().map(|(name, curve)| (name, curve.chosen)).collect()),
        Some((name, curve)) => Err(refuse(format!("a positive `chosen` of `{name}`"), curve.chosen.to_string())),
    }
}

/// Runs the methods over dampings and chooses. Cost: a run of the method per damping.
///
/// # Errors
/// A setting without random subsets; an unknown method, or one without damping; a grid that is not positive and finite; what banks and
/// methods refuse.
pub fn choose(
    home: &Home,
    setting: &Setting,
    names: &[String],
    grid: &[f64],
    progress: &dyn Progress,
) -> Result<DampingReport, EngineError> {
    if let Some(found) = grid.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
        let expected = "positive, finite numbers".to_owned();
        return Err(EngineError::Setting { setting: "--grid", expected, found: found.to_string() });
    }
    let methods: Vec<Method> = names.iter().map(|name| named(setting, name)).collect::<Result<_, _>>()?;
    let (lab, truths, _) = opened(home, setting)?;
    let n = truths.banks.first().map_or(0, |(_, bank)| bank.plan.n_queries);
    let mut report = DampingReport {
        setting: setting.name.clone(),
        criterion: "largest LDS over random subsets on the first half of the queries".into(),
        bank: truths.banks.first().map(|(_, bank)| bank.digest),
        choosing: [0, n / 2],
        judging: [n / 2, n],
        methods: BTreeMap::new(),
    };
    for method in methods {
        progress.start(&format!("damping of {}", method.name), 0, "");
        let curve = curve(&method, grid, lab.as_ref(), &truths, progress)?;
        progress.finish(&format!("{} dampings", curve.points.len()));
        report.methods.insert(method.name, curve);
    }
    Ok(report)
}

/// Writes the report beside the setting; methods of an earlier one that were not run now stay.
///
/// # Errors
/// The disk's; an earlier file that does not parse.
pub fn keep(setting: &Setting, report: &DampingReport) -> Result<(), EngineError> {
    let path = setting.dir.join(DAMPING_FILE);
    let mut report = report.clone();
    if path.exists() {
        let before: DampingReport = serde_json::from_slice(&files::read(&path)?)
            .map_err(|e| EngineError::Recipe { path: path.clone(), why: e.to_string() })?;
        // Curves of another bank or split say nothing here.
        if (before.bank, before.choosing, before.judging) == (report.bank, report.choosing, report.judging) {
            before.methods.into_iter().for_each(|(name, curve)| {
                report.methods.entry(name).or_insert(curve);
            });
        }
    }
    files::write_atomic(&path, &[serde_json::to_vec_pretty(&report)?, b"\n".to_vec()].concat())
}

fn named(setting: &Setting, name: &str) -> Result<Method, EngineError> {
    let refuse = |expected: String| EngineError::Setting { setting: "--methods", expected, found: name.to_owned() };
    let method = find(setting, name).ok_or_else(|| refuse(format!("a method of {}", setting.name)))?;
    match method.spec.damping() {
        Some(_) => Ok(method),
        None => Err(refuse("a method with a damping".into())),
    }
}

/// A setting's lab, its truth, and what is to be said of it.
type Opened = (Box<dyn Lab>, Truths, Vec<String>);

/// The lab with its truth, banks over random subsets of examples only.
fn opened(home: &Home, setting: &Setting) -> Result<Opened, EngineError> {
    let (lab, mut truths, notes): Opened = match &setting.subject {
        Subject::Images(subject) => {
            let images = subject.open(&setting.dir)?;
            let (truths, notes) = run::image_truths(setting, subject, &images)?;
            (Box::new(ImageLab::new((**subject).clone(), images)?), truths, notes)
        }
        Subject::Decoder { model } => {
            let lab = DecoderLab::open(home, model)?;
            let (truths, notes) = run::decoder_truths(setting, &lab)?;
            (Box::new(lab), truths, notes)
        }
        Subject::Tuned(_) | Subject::Facts { .. } => {
            let expected = "a setting of images or of a decoder, with random subsets of examples".to_owned();
            return Err(EngineError::Setting { setting: "setting", expected, found: setting.name.clone() });
        }
    };
    truths.banks.retain(|(_, bank)| matches!(bank.plan.draw, super::bank::Draw::Random { .. }));
    truths.banks.truncate(1);
    match truths.banks.is_empty() {
        false => Ok((lab, truths, notes)),
        true => {
            let expected = "a bank of random subsets".to_owned();
            Err(EngineError::Setting { setting: "setting", expected, found: setting.name.clone() })
        }
    }
}

/// To nine digits, as one would write it.
fn rounded(v: f64) -> f64 {
    format!("{v:.8e}").parse().unwrap_or(v)
}

fn curve(
    method: &Method,
    grid: &[f64],
    lab: &(dyn Lab + 'static),
    truths: &Truths,
    progress: &dyn Progress,
) -> Result<DampingCurve, EngineError> {
    let own = method.spec.damping().expect("checked before");
    let dampings: Vec<f64> = match grid {
        [] => FACTORS.iter().map(|f| rounded(f * own)).collect(),
        given => given.to_vec(),
    };
    let (mut points, mut estimates) = (Vec::new(), Vec::new());
    for damping in dampings {
        // Iterative methods explain a few queries by default; both halves must be there.
        let spec = method.spec.damped(damping).expect("a method with a damping takes another").for_all_queries();
        let scores = Method { spec, ..method.clone() }.run(lab, progress)?;
        scores.check(&method.name, lab.n_queries(), &[lab.n_examples()])?;
        let halves = contest::halves(&method.name, scores.values.view(), truths)?;
        let [choosing, judging] = halves.map(|half| half.map(|e| e.mean));
        points.push(DampingPoint { damping, choosing, judging });
        estimates.push(halves[1]);
    }
    let best = (0..points.len()).filter(|&i| points[i].choosing.is_some()).reduce(|a, b| {
        // The earlier of equals: smaller in the own grid.
        if points[b].choosing > points[a].choosing { b } else { a }
    });
    let best = best.ok_or_else(|| EngineError::Setting {
        setting: "--grid",
        expected: "a damping with a defined LDS on the choosing half".into(),
        found: format!("{} without", points.len()),
    })?;
    let best_judging = points.iter().filter_map(|p| p.judging).reduce(f64::max);
    Ok(DampingCurve { chosen: points[best].damping, judged: estimates[best], best_judging, points })
}
