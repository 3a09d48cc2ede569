//! Protocols besides the retrain banks: planted label errors, merged classes, removal of the top examples, tail-patch.
//!
//! Here lives: what a setting says about them (`[protocols.NAME]` in `setting.toml`), their running for one method after another
//! on a `Course`, and the figures that are kept so that a stopped run goes on. One file per protocol: `planted` (wrong labels,
//! merged classes), `removal`, `patch`. Here never lives: the measures (eval), a method.

mod patch;
mod planted;
mod removal;
#[cfg(test)]
mod tests;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::{Digest, Progress};
use ascribe_eval::{Estimate, bootstrap_mean};
use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

pub use patch::{tail_patch, text_tail_patch};
pub use planted::{Detection, Merged, Planted, detect, merge, mislabel};
pub use removal::{RemovalFigure, RemovalOptions, RemovalReport, removal, text_removal};

use super::contest::{Contestant, Scores};
use super::lab::{DecoderLab, ImageLab, Lab};
use super::methods::{self, Method};
use super::report::SettingReport;
use super::setting::Setting;
use super::tuned::{TunedData, TunedWindow};
use crate::error::EngineError;
use crate::files;

/// Seed of intervals over queries.
const BOOTSTRAP_SEED: u64 = 1;

/// Figures by name, as in a report.
pub type Figures = BTreeMap<String, Option<f64>>;

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Wrong labels are planted; does self-influence find them?
    Mislabel,
    /// Classes are merged; has the top example the query's own class all the same?
    Subclass,
    /// The top examples are taken out; what does that cost, and when does the prediction turn?
    Removal,
    /// One step on each of the top examples; how much does the probability rise?
    TailPatch,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mislabel, Self::Subclass, Self::Removal, Self::TailPatch];

    /// As on the command line and in `setting.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mislabel => "mislabel",
            Self::Subclass => "subclass",
            Self::Removal => "removal",
            Self::TailPatch => "tail_patch",
        }
    }
}

/// What a setting says about protocols; those without a table cannot be run on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolSettings {
    /// Planted label errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mislabel: Option<MislabelSettings>,
    /// Merged classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subclass: Option<SubclassSettings>,
    /// Removal of the top examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<RemovalSettings>,
    /// One step on each of the top examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_patch: Option<TailPatchSettings>,
}

/// `[protocols.mislabel]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MislabelSettings {
    /// Part of the training labels that are changed.
    pub part: f64,
    /// Training images whose self-influence is asked for: in turn one with a wrong and one with its right label.
    pub queries: usize,
    /// Seed of the changes.
    pub seed: u64,
    /// Methods that take part; empty for all.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// `[protocols.subclass]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubclassSettings {
    /// Neighbouring classes that become one.
    pub merge: u32,
    /// The first so many queries.
    pub queries: usize,
    /// Methods that take part; empty for all.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// `[protocols.removal]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalSettings {
    /// Parts of the training examples that are taken out, rising.
    pub parts: Vec<f64>,
    /// The first so many queries; of a decoder's, so many evenly spaced.
    pub queries: usize,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
    /// Methods that take part; empty for all. Every query of every method costs a training per part and seed.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// `[protocols.tail_patch]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailPatchSettings {
    /// Top examples of every query.
    pub k: usize,
    /// The first so many queries.
    pub queries: usize,
    /// Methods that take part; empty for all.
    #[serde(default)]
    pub methods: Vec<String>,
}

impl ProtocolSettings {
    /// Protocols that have a table.
    pub fn names(&self) -> Vec<&'static str> {
        Protocol::ALL.into_iter().filter(|p| self.digest_of(*p).is_some()).map(Protocol::name).collect()
    }

    /// The protocols asked for by name; `all` stands for all that the setting has.
    ///
    /// # Errors
    /// A name that the setting has no table for.
    pub fn chosen(&self, names: &[String]) -> Result<Vec<Protocol>, EngineError> {
        let known = self.names();
        let refuse = |found: &String| EngineError::Setting {
            setting: "--protocols",
            expected: match known.is_empty() {
                true => "no protocol: this setting has none".to_owned(),
                false => format!("all or some of {}", known.join(", ")),
            },
            found: found.clone(),
        };
        // A dash does as well as an underscore.
        let plain: Vec<String> = names.iter().map(|name| name.replace('-', "_")).collect();
        if let Some(unknown) = plain.iter().find(|name| *name != "all" && !known.contains(&name.as_str())) {
            return Err(refuse(unknown));
        }
        let wanted = |p: &Protocol| plain.iter().any(|name| name == "all" || name == p.name());
        Ok(Protocol::ALL.into_iter().filter(|p| known.contains(&p.name())).filter(wanted).collect())
    }

    /// SHA-256 of a protocol's table, if there is one: figures made under another are not used again.
    fn digest_of(&self, protocol: Protocol) -> Option<Digest> {
        let of = |value: serde_json::Result<Digest>| value.expect("numbers and strings always serialise");
        match protocol {
            Protocol::Mislabel => self.mislabel.as_ref().map(|s| of(Digest::of_json(s))),
            Protocol::Subclass => self.subclass.as_ref().map(|s| of(Digest::of_json(s))),
            Protocol::Removal => self.removal.as_ref().map(|s| of(Digest::of_json(s))),
            Protocol::TailPatch => self.tail_patch.as_ref().map(|s| of(Digest::of_json(s))),
        }
    }

    fn methods_of(&self, protocol: Protocol) -> &[String] {
        let methods = match protocol {
            Protocol::Mislabel => self.mislabel.as_ref().map(|s| &s.methods),
            Protocol::Subclass => self.subclass.as_ref().map(|s| &s.methods),
            Protocol::Removal => self.removal.as_ref().map(|s| &s.methods),
            Protocol::TailPatch => self.tail_patch.as_ref().map(|s| &s.methods),
        };
        methods.map_or(&[], Vec::as_slice)
    }
}

/// What is explained.
#[derive(Clone, Copy)]
pub(super) enum CourseLab<'a> {
    Images(&'a ImageLab),
    Decoder(&'a DecoderLab),
}

/// Figures kept in the output folder.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: Digest,
    /// SHA-256 of the program that made them.
    #[serde(default)]
    program: Option<Digest>,
    figures: Figures,
}

/// The chosen protocols of a setting, run for one method after another.
pub(super) struct Course<'a> {
    setting: &'a Setting,
    lab: CourseLab<'a>,
    chosen: Vec<Protocol>,
    /// Where figures are kept, and the build that they must be of; `None` for any.
    out: Option<PathBuf>,
    program: Option<Digest>,
    /// What could not run, for the report.
    notes: RefCell<Vec<String>>,
    planted: OnceCell<Planted>,
    merged: OnceCell<Merged>,
}

impl<'a> Course<'a> {
    pub fn new(
        setting: &'a Setting,
        lab: CourseLab<'a>,
        chosen: Vec<Protocol>,
        out: Option<PathBuf>,
        program: Option<Digest>,
    ) -> Self {
        let notes = RefCell::default();
        Self { setting, lab, chosen, out, program, notes, planted: OnceCell::new(), merged: OnceCell::new() }
    }

    /// Adds the figures of every chosen protocol for a method whose scores on the setting are given. A protocol that cannot run
    /// for a method is noted and costs the others nothing.
    ///
    /// # Errors
    /// [`EngineError::Stopped`]; the disk's.
    pub fn run(
        &self,
        name: &str,
        scores: &Scores,
        figures: &mut Figures,
        progress: &dyn Progress,
    ) -> Result<(), EngineError> {
        for &protocol in &self.chosen {
            let methods = self.setting.protocols.methods_of(protocol);
            if !methods.is_empty() && !methods.iter().any(|m| m == name) {
                continue;
            }
            let (path, key) = self.place(protocol, name, scores)?;
            let usable = |kept: &Kept| kept.key == key && (self.program.is_none() || kept.program == self.program);
            if let Some(kept) = path.as_deref().map(read_kept).transpose()?.flatten().filter(usable) {
                figures.extend(kept.figures);
                continue;
            }
            match self.one(protocol, name, scores, progress) {
                Ok(found) => {
                    if let Some(path) = &path {
                        let json =
                            serde_json::to_vec_pretty(&Kept { key, program: self.program, figures: found.clone() })?;
                        files::write_atomic(path, &json)?;
                    }
                    figures.extend(found);
                }
                Err(EngineError::Stopped) => return Err(EngineError::Stopped),
                Err(error) => {
                    self.notes.borrow_mut().push(format!("{} of {name} did not run: {error}", protocol.name()));
                }
            }
        }
        Ok(())
    }

    /// The report with what could not run.
    pub fn noted(self, report: Result<SettingReport, EngineError>) -> Result<SettingReport, EngineError> {
        let mut report = report?;
        report.notes.extend(self.notes.into_inner());
        Ok(report)
    }

    fn place(&self, protocol: Protocol, name: &str, scores: &Scores) -> Result<(Option<PathBuf>, Digest), EngineError> {
        let lab = match self.lab {
            CourseLab::Images(lab) => lab.digest(),
            CourseLab::Decoder(lab) => lab.digest(),
        };
        let settings = self.setting.protocols.digest_of(protocol);
        let values: Vec<u8> = scores.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let key = (&self.setting.name, name, lab, settings, Digest::of(&values));
        let path = self.out.as_ref().map(|out| {
            out.join(&self.setting.name).join("protocols").join(protocol.name()).join(format!("{name}.json"))
        });
        Ok((path, Digest::of_json(&key)?))
    }

    fn one(
        &self,
        protocol: Protocol,
        name: &str,
        scores: &Scores,
        progress: &dyn Progress,
    ) -> Result<Figures, EngineError> {
        let settings = &self.setting.protocols;
        match (protocol, self.lab) {
            (Protocol::Mislabel, CourseLab::Images(lab)) => {
                let settings = settings.mislabel.as_ref().expect("chosen protocols have a table");
                let planted = cached(&self.planted, || {
                    mislabel(lab, settings.part, settings.seed)?.asked_about(settings.queries)
                })?;
                let own = planted.self_influence(&self.scored(name, &planted.lab, progress)?.values.view());
                planted.figures(&own)
            }
            (Protocol::Subclass, CourseLab::Images(lab)) => {
                let settings = settings.subclass.as_ref().expect("chosen protocols have a table");
                let merged = cached(&self.merged, || merge(lab, settings.merge, settings.queries))?;
                merged.figures(self.scored(name, &merged.lab, progress)?.values.view())
            }
            (Protocol::Removal, lab) => {
                let settings = settings.removal.as_ref().expect("chosen protocols have a table");
                let (parts, seeds) = (settings.parts.clone(), settings.seeds.clone());
                let options = RemovalOptions { parts, n_queries: settings.queries, seeds };
                let report = match lab {
                    CourseLab::Images(lab) => removal(lab, scores.values.view(), &options, progress)?,
                    CourseLab::Decoder(lab) => text_removal(lab, scores.values.view(), &options, progress)?,
                };
                Ok(report.figures())
            }
            (Protocol::TailPatch, lab) => {
                let settings = settings.tail_patch.as_ref().expect("chosen protocols have a table");
                let n = settings.queries.min(scores.values.nrows());
                let values = scores.values.slice(ndarray::s![..n, ..]);
                let rise = match lab {
                    CourseLab::Images(lab) => tail_patch(lab, &lab.train(0, None)?, values, settings.k)?,
                    CourseLab::Decoder(lab) => text_tail_patch(lab, values, settings.k, progress)?,
                };
                Ok(named("tail_patch", Some(rise)))
            }
            (_, CourseLab::Decoder(_)) => {
                let expected = "a setting of images, whose labels it changes".to_owned();
                Err(EngineError::Setting { setting: protocol.name(), expected, found: "a decoder".into() })
            }
        }
    }

    /// The method's scores on a changed lab.
    fn scored(&self, name: &str, lab: &ImageLab, progress: &dyn Progress) -> Result<Scores, EngineError> {
        let method: Method = methods::find(self.setting, name).ok_or_else(|| EngineError::Setting {
            setting: "method",
            expected: "one of the catalogue".into(),
            found: name.to_owned(),
        })?;
        let scores = method.run(lab as &dyn Lab, progress)?;
        scores.check(name, lab.n_queries(), &[lab.n_examples()])?;
        Ok(scores)
    }
}

/// The value, made on the first call that succeeds.
fn cached<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, EngineError>) -> Result<&T, EngineError> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

/// A kept file; `None` if it is not there or does not read, since it can be made again.
fn read_kept(path: &std::path::Path) -> Result<Option<Kept>, EngineError> {
    match path.exists() {
        true => Ok(serde_json::from_slice(&files::read(path)?).ok()),
        false => Ok(None),
    }
}

/// An estimate as `name`, `name_low` and `name_high`.
pub(super) fn named(name: &str, estimate: Option<Estimate>) -> Figures {
    Figures::from([
        (name.to_owned(), estimate.map(|e| e.mean)),
        (format!("{name}_low"), estimate.map(|e| e.low)),
        (format!("{name}_high"), estimate.map(|e| e.high)),
    ])
}

/// The `k` highest scores' places, the first of equals first.
fn top(scores: ArrayView1<'_, f32>, k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(k);
    order
}

/// How often the example with the highest score has the query's label; `None` if all scores are constant.
///
/// # Errors
/// Shapes; NaN.
pub fn class_detection(lab: &ImageLab, scores: ArrayView2<'_, f32>) -> Result<Option<Estimate>, EngineError> {
    top_label(scores, &lab.images.queries.labels()[..scores.nrows()], lab.images.train.labels())
}

/// How often the example with the highest score is of the query's dataset; `None` if all scores are constant.
///
/// # Errors
/// Shapes; NaN.
pub fn dataset_detection(lab: &DecoderLab, scores: ArrayView2<'_, f32>) -> Result<Option<Estimate>, EngineError> {
    let corpus = &lab.data.corpus;
    let queries: Vec<u32> = corpus.queries.iter().take(scores.nrows()).map(|q| q.dataset).collect();
    let examples: Vec<u32> = corpus.examples.iter().map(|e| e.id.dataset).collect();
    top_label(scores, &queries, &examples)
}

/// The same for a tuned model.
///
/// # Errors
/// Shapes; NaN.
pub fn tuned_detection(data: &TunedData, scores: ArrayView2<'_, f32>) -> Result<Option<Estimate>, EngineError> {
    let of = |windows: &[TunedWindow]| windows.iter().map(|w| w.dataset).collect::<Vec<u32>>();
    top_label(scores, &of(&data.queries)[..scores.nrows()], &of(&data.examples))
}

fn top_label(scores: ArrayView2<'_, f32>, queries: &[u32], labels: &[u32]) -> Result<Option<Estimate>, EngineError> {
    estimated(&ascribe_eval::detection::label_top1(scores.mapv(f64::from).view(), queries, labels)?)
}

fn estimated(values: &[Option<f64>]) -> Result<Option<Estimate>, EngineError> {
    match values.iter().any(Option::is_some) {
        true => Ok(Some(bootstrap_mean(values, BOOTSTRAP_SEED)?)),
        false => Ok(None),
    }
}
