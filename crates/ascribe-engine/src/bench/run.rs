//! Runs a setting: opens its banks and its lab, lets every contestant score, judges, keeps the scores, reports.
//!
//! The output folder holds `SETTING/scores/METHOD.safetensors` and `SETTING/report.json`. Scores are used again when nothing
//! that decides them has changed, the program included.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use serde::Serialize;

use super::bank::{BankPlan, Draw, Players, RetrainBank};
use super::contest::{self, Contestant, Scores, ScoresKey, Truths};
use super::facts::{self, FactsRequest};
use super::lab::{DecoderLab, ImageLab, Lab, TunedLab};
use super::methods::{self, Offer};
use super::protocols::{Course, CourseLab, Figures, class_detection, dataset_detection, named, tuned_detection};
use super::report::SettingReport;
use super::runners::{decoder_players, read_bank, tuned_players};
use super::setting::{ImageSubject, Images, Setting, Subject, names};
use super::tuned::TunedSubject;
use super::{datasets, gates};
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::recipe::Recipe;

/// A setting's report in the output folder.
pub const REPORT_FILE: &str = "report.json";

/// What a run is asked for besides the setting.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Methods by name; `all` for every one; none for the setting's quick ones.
    pub methods: Vec<String>,
    /// Protocols besides the banks, by name; `all` for all that the setting has.
    pub protocols: Vec<String>,
    /// At most so many queries (of every set, for facts).
    pub queries: Option<usize>,
    /// Output folder; nothing is kept without one.
    pub out: Option<PathBuf>,
    /// Uses scores that another build of the program left.
    pub any_build: bool,
    /// Options of the methods, and an outside encoder.
    pub offer: Offer,
}

/// A method that a setting knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownMethod {
    /// Name.
    pub name: String,
    /// What it computes.
    pub about: String,
    /// Where its formula stands.
    pub source: String,
    /// True for controls.
    pub control: bool,
    /// True if it runs when no method is named.
    pub quick: bool,
}

/// A setting in the list.
#[derive(Clone, Debug, Serialize)]
pub struct ListedSetting {
    /// Name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Its banks.
    pub banks: Vec<ListedBank>,
    /// Methods that can run on it.
    pub methods: Vec<KnownMethod>,
    /// Protocols that can run besides its banks.
    pub protocols: Vec<&'static str>,
    /// What its methods have to reach, in words.
    pub gates: Vec<String>,
}

/// A bank in the list.
#[derive(Clone, Debug, Serialize)]
pub struct ListedBank {
    /// Name.
    pub name: String,
    /// Trainings per seed.
    pub subsets: Option<usize>,
    /// Seeds that the setting asks for.
    pub seeds: usize,
    /// Seeds with all their trainings.
    pub complete: usize,
    /// The command that makes what is missing.
    pub command: String,
}

/// All shipped settings with what is there of their banks.
///
/// # Errors
/// Settings or banks that do not read.
pub fn list(home: &Home) -> Result<Vec<ListedSetting>, EngineError> {
    names(home)?.into_iter().map(|name| list_one(home, &name)).collect()
}

/// One setting of the list.
///
/// # Errors
/// An unknown name; a setting or banks that do not read.
pub fn list_one(home: &Home, name: &str) -> Result<ListedSetting, EngineError> {
    let setting = Setting::named(home, name)?;
    let bank = |(name, bank): (&String, &super::setting::BankSettings)| -> Result<ListedBank, EngineError> {
        let dir = setting.bank_dir(name);
        let found = if dir.join(super::bank::PLAN_FILE).exists() { RetrainBank::read(&dir)? } else { None };
        Ok(ListedBank {
            name: name.clone(),
            subsets: found.as_ref().map(|b| b.kept.nrows()),
            seeds: bank.seeds.len(),
            complete: found.map_or(0, |b| b.seeds.len()),
            command: format!("ascribe bench bank {} {name}", setting.name),
        })
    };
    let banks = setting.banks.iter().map(bank).collect::<Result<_, _>>()?;
    let methods = known_methods(home, &setting)?;
    let protocols = setting.protocols.names();
    let gates = setting.gates.iter().map(|gate| gate.about.clone()).collect();
    Ok(ListedSetting { name: setting.name, about: setting.about, banks, methods, protocols, gates })
}

/// Methods that can run on a setting: those of its kind; of a game of datasets the games and their channels.
///
/// # Errors
/// A model folder's recipe that does not read; quick methods that there are not.
pub fn known_methods(home: &Home, setting: &Setting) -> Result<Vec<KnownMethod>, EngineError> {
    let quick = |name: &str| setting.quick.is_empty() || setting.quick.iter().any(|q| q == name);
    let known = |(name, about, source, control): (&str, &str, &str, bool)| KnownMethod {
        name: name.to_owned(),
        about: about.to_owned(),
        source: source.to_owned(),
        control,
        quick: quick(name),
    };
    let methods: Vec<KnownMethod> = match &setting.subject {
        Subject::Decoder { model } if is_game(setting) => {
            let recipe = Recipe::read(&home.model(model).join("recipe.toml"))?;
            let methods = datasets::methods_of(&recipe);
            methods.iter().map(|m| known((&m.name, &m.about, &m.source, m.control))).collect()
        }
        Subject::Images(_) | Subject::Decoder { .. } | Subject::Tuned(_) => {
            let methods = methods::contestants(setting);
            methods.iter().map(|c| known((c.name(), c.about(), c.source(), c.control()))).collect()
        }
        Subject::Facts { .. } => facts::METHODS.into_iter().map(known).collect(),
    };
    match setting.quick.iter().find(|name| methods.iter().all(|m| m.name != **name)) {
        None => Ok(methods),
        Some(unknown) => Err(EngineError::Content {
            path: setting.dir.join(super::setting::SETTING_FILE),
            expected: "`quick` to name methods of the setting".into(),
            found: unknown.clone(),
        }),
    }
}

/// Runs a setting and writes its report into the output folder.
///
/// # Errors
/// An unknown method; no complete bank; a bank of another recipe; what the lab or the only method says.
pub fn run(
    home: &Home,
    setting: &Setting,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<SettingReport, EngineError> {
    if options.queries == Some(0) {
        let expected = "at least 1".to_owned();
        return Err(EngineError::Setting { setting: "--queries", expected, found: "0".into() });
    }
    let mut report = match &setting.subject {
        Subject::Images(subject) => run_images(setting, subject, options, progress)?,
        Subject::Decoder { .. } if is_game(setting) => {
            setting.protocols.chosen(&options.protocols)?;
            datasets::run(home, setting, setting.asked(&options.methods), progress)?
        }
        Subject::Decoder { model } => run_decoder(home, setting, model, options, progress)?,
        Subject::Tuned(subject) => run_tuned(home, setting, subject, options, progress)?,
        Subject::Facts { corpora, queries, model } => {
            setting.protocols.chosen(&options.protocols)?;
            let request = FactsRequest {
                name: setting.name.clone(),
                about: setting.about.clone(),
                corpora: setting.dir.join(corpora),
                queries: queries.iter().map(|path| setting.dir.join(path)).collect(),
                model: home.model(model),
                encoder: None,
                methods: setting.asked(&options.methods).to_vec(),
                k: facts::DEFAULT_K,
                limit: options.queries,
            };
            facts::run(&request, progress)?
        }
    };
    report.gates.extend(gates::judge(&setting.gates, &report.methods));
    if let Some(out) = &options.out {
        let json = serde_json::to_vec_pretty(&report)?;
        files::write_atomic(&out.join(&setting.name).join(REPORT_FILE), &[json, b"\n".to_vec()].concat())?;
    }
    Ok(report)
}

/// The banks of a setting of images, checked against its data and recipe.
pub(super) fn image_truths(
    setting: &Setting,
    subject: &ImageSubject,
    images: &Images,
) -> Result<(Truths, Vec<String>), EngineError> {
    let players = Players::Examples(images.train.len());
    truths(setting, |bank| {
        let settings = setting.bank(bank)?;
        let (recipe, n) = (subject.bank_digest(settings), images.queries.len());
        Ok(setting.plan(bank, settings.draw.clone(), players.clone(), images.digest, recipe, n))
    })
}

/// The banks of a setting of a decoder, checked against its corpus and recipe.
pub(super) fn decoder_truths(setting: &Setting, lab: &DecoderLab) -> Result<(Truths, Vec<String>), EngineError> {
    let recipe = Recipe { seed: 0, ..lab.data.recipe.clone() }.digest();
    let (mut truths, notes) = truths(setting, |bank| {
        let settings = setting.bank(bank)?;
        let players = decoder_players(&lab.data, settings.players);
        let digest = lab.data.corpus.manifest.digest();
        Ok(setting.plan(bank, settings.draw.clone(), players, digest, recipe, lab.data.corpus.queries.len()))
    })?;
    truths.datasets = lab.datasets();
    truths.queries = Some(lab.data.corpus.queries.iter().map(|q| q.dataset).collect());
    Ok((truths, notes))
}

/// A setting of images.
fn run_images(
    setting: &Setting,
    subject: &ImageSubject,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<SettingReport, EngineError> {
    let images = subject.open(&setting.dir)?;
    let n = images.queries.len();
    let (truths, notes) = image_truths(setting, subject, &images)?;
    let n_queries = options.queries.unwrap_or(n).min(n);
    let n_train = images.train.len();
    let lab = ImageLab::new(subject.clone(), images)?.limited(n_queries)?;
    let arena = Arena { setting, options, lab: lab.digest(), truths, notes, n_queries, columns: vec![n_train] };
    let course = arena.course(CourseLab::Images(&lab))?;
    let report = arena.hold(contestants(setting, options)?, &lab as &dyn Lab, progress, &|name, scores, figures| {
        figures.extend(named("class_top1", class_detection(&lab, scores.values.view())?));
        course.run(name, scores, figures, progress)
    });
    course.noted(report)
}

/// A setting of a decoder's examples.
fn run_decoder(
    home: &Home,
    setting: &Setting,
    model: &str,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<SettingReport, EngineError> {
    let lab = DecoderLab::open(home, model)?;
    let (truths, notes) = decoder_truths(setting, &lab)?;
    let n_queries = options.queries.unwrap_or(usize::MAX).min(lab.n_queries());
    let lab = lab.limited(n_queries);
    let mut columns = vec![lab.data.corpus.examples.len()];
    if truths.banks.iter().all(|(_, bank)| matches!(bank.plan.players, Players::Datasets(_))) {
        columns.push(lab.data.corpus.n_datasets());
    }
    let arena = Arena { setting, options, lab: lab.digest(), truths, notes, n_queries, columns };
    let course = arena.course(CourseLab::Decoder(&lab))?;
    let n_examples = lab.n_examples();
    let report = arena.hold(contestants(setting, options)?, &lab as &dyn Lab, progress, &|name, scores, figures| {
        if scores.values.ncols() != n_examples {
            return Ok(());
        }
        figures.extend(named("dataset_top1", dataset_detection(&lab, scores.values.view())?));
        course.run(name, scores, figures, progress)
    });
    course.noted(report)
}

/// A setting of fine-tuning.
fn run_tuned(
    home: &Home,
    setting: &Setting,
    subject: &TunedSubject,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<SettingReport, EngineError> {
    let lab = TunedLab::new(subject.open(home)?);
    setting.protocols.chosen(&options.protocols)?;
    let (n_examples, n) = (lab.n_examples(), lab.n_queries());
    let (mut truths, notes) = truths(setting, |bank| {
        let settings = setting.bank(bank)?;
        let players = tuned_players(subject, n_examples, settings.players);
        Ok(setting.plan(bank, settings.draw.clone(), players, lab.data.digest, subject.recipe_digest(), n))
    })?;
    truths.datasets = lab.datasets();
    truths.queries = Some(lab.data.queries.iter().map(|q| q.dataset).collect());
    let n_queries = options.queries.unwrap_or(n).min(n);
    let lab = lab.limited(n_queries);
    let arena = Arena { setting, options, lab: lab.digest(), truths, notes, n_queries, columns: vec![n_examples] };
    arena.hold(contestants(setting, options)?, &lab as &dyn Lab, progress, &|_, scores, figures| {
        figures.extend(named("dataset_top1", tuned_detection(&lab.data, scores.values.view())?));
        Ok(())
    })
}

/// True for a setting whose truth is every subset of its datasets.
fn is_game(setting: &Setting) -> bool {
    matches!(setting.subject, Subject::Decoder { .. }) && setting.banks.values().any(|bank| bank.draw == Draw::PowerSet)
}

/// Reads the banks that have a complete seed and checks that they are of this data and recipe.
fn truths(
    setting: &Setting,
    plan: impl Fn(&str) -> Result<BankPlan, EngineError>,
) -> Result<(Truths, Vec<String>), EngineError> {
    let (mut banks, mut notes, mut missing) = (Vec::new(), Vec::new(), None);
    for (name, settings) in &setting.banks {
        let bank = match read_bank(setting, name) {
            Ok(bank) => bank,
            Err(error @ EngineError::Content { .. })
                if !setting.bank_dir(name).join(super::bank::PLAN_FILE).exists() =>
            {
                notes.push(format!("bank `{name}` is not there: ascribe bench bank {} {name}", setting.name));
                missing = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let expected = plan(name)?;
        if (BankPlan { command: expected.command.clone(), ..bank.plan.clone() }) != expected {
            return Err(EngineError::Content {
                path: setting.bank_dir(name).join(super::bank::PLAN_FILE),
                expected: format!("a bank of this setting's data and recipe, {}", serde_json::to_string(&expected)?),
                found: serde_json::to_string(&bank.plan)?,
            });
        }
        if bank.seeds.len() < settings.seeds.len() {
            notes.push(format!("bank `{name}` has {} of {} seeds", bank.seeds.len(), settings.seeds.len()));
        }
        banks.push((name.clone(), bank));
    }
    banks.sort_by_key(|(name, _)| setting.main_bank.as_ref() != Some(name));
    match (banks.is_empty(), missing) {
        (true, Some(error)) => Err(error),
        _ => Ok((Truths { banks, ..Truths::default() }, notes)),
    }
}

/// Measures of a method's scores that need the lab, not a bank.
type Further<'a> = dyn Fn(&str, &Scores, &mut Figures) -> Result<(), EngineError> + 'a;

/// A contest about to be held.
struct Arena<'a> {
    setting: &'a Setting,
    options: &'a RunOptions,
    lab: Digest,
    truths: Truths,
    notes: Vec<String>,
    n_queries: usize,
    columns: Vec<usize>,
}

impl<'a> Arena<'a> {
    /// The chosen protocols over this arena's lab.
    fn course(&self, lab: CourseLab<'a>) -> Result<Course<'a>, EngineError> {
        let chosen = self.setting.protocols.chosen(&self.options.protocols)?;
        Ok(Course::new(self.setting, lab, chosen, self.options.out.clone(), build(self.options)?))
    }

    fn hold<L: ?Sized>(
        mut self,
        contestants: Vec<Box<dyn Contestant<L>>>,
        lab: &L,
        progress: &dyn Progress,
        further: &Further<'_>,
    ) -> Result<SettingReport, EngineError> {
        let asked = self.setting.asked(&self.options.methods);
        // Of the quick methods those that have the option.
        let quick = self.options.methods.is_empty() && self.options.offer.normalise.is_some();
        let named: Vec<String> = asked.iter().map(|name| self.options.offer.name(name)).collect();
        let there = |name: &String| contestants.iter().any(|c| c.name() == name);
        let named: Vec<String> = named.into_iter().filter(|name| !quick || there(name)).collect();
        let chosen = chosen(contestants, &named)?;
        let program = build(self.options)?;
        let (mut methods, mut failure) = (BTreeMap::new(), None);
        for contestant in &chosen {
            match self.score(contestant.as_ref(), lab, program, progress) {
                Ok(scores) => {
                    let mut verdict = contest::judge(contestant.name(), scores.values.view(), &self.truths)?;
                    further(contestant.name(), &scores, &mut verdict.extra)?;
                    let figure = contest::figure(contestant.as_ref(), &scores, verdict);
                    methods.insert(contestant.name().to_owned(), figure);
                }
                Err(EngineError::Stopped) => return Err(EngineError::Stopped),
                // One method that cannot run must not cost the others their figures; the reader is told.
                Err(error) => {
                    self.notes.push(format!("{} did not run: {error}", contestant.name()));
                    failure.get_or_insert(error);
                }
            }
        }
        if let (true, Some(error)) = (methods.is_empty(), failure) {
            return Err(error);
        }
        let damped = |name: &String| {
            let damping = self.setting.dampings.get(name.split('@').next().unwrap_or(name))?;
            Some(format!("{name} {damping}"))
        };
        let damped: Vec<String> = methods.keys().filter_map(damped).collect();
        if !damped.is_empty() {
            let file = super::damping::DAMPING_FILE;
            self.notes.push(format!("dampings that half of the queries chose ({file}): {}", damped.join(", ")));
        }
        Ok(SettingReport {
            setting: self.setting.name.clone(),
            about: self.setting.about.clone(),
            queries: self.n_queries,
            examples: self.columns[0],
            truth: contest::truth_figure(&self.truths, self.n_queries)?,
            methods,
            gates: Vec::new(),
            notes: self.notes,
        })
    }

    fn score<L: ?Sized>(
        &self,
        contestant: &dyn Contestant<L>,
        lab: &L,
        program: Option<Digest>,
        progress: &dyn Progress,
    ) -> Result<Scores, EngineError> {
        let key = ScoresKey {
            setting: self.setting.name.clone(),
            method: contestant.name().to_owned(),
            settings: contestant.settings(),
            lab: self.lab,
            queries: self.n_queries,
            program,
        };
        let path = self.options.out.as_ref().map(|out| {
            let file = format!("{}.safetensors", contestant.name());
            out.join(&self.setting.name).join("scores").join(file)
        });
        if let Some(kept) = path.as_deref().map(|path| Scores::read(path, &key)).transpose()?.flatten() {
            return Ok(kept);
        }
        let scores = contestant.run(lab, progress)?;
        scores.check(contestant.name(), self.n_queries, &self.columns)?;
        if let Some(path) = &path {
            scores.write(path, &key)?;
        }
        Ok(scores)
    }
}

/// The setting's methods with a run's options.
fn contestants(setting: &Setting, options: &RunOptions) -> Result<Vec<Box<dyn Contestant<dyn Lab>>>, EngineError> {
    let methods = options.offer.methods(setting, &options.methods)?;
    Ok(methods.into_iter().map(|method| Box::new(method) as Box<dyn Contestant<dyn Lab>>).collect())
}

/// The contestants that were asked for; all if none was named.
fn chosen<L: ?Sized>(
    contestants: Vec<Box<dyn Contestant<L>>>,
    names: &[String],
) -> Result<Vec<Box<dyn Contestant<L>>>, EngineError> {
    let known: Vec<String> = contestants.iter().map(|c| c.name().to_owned()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let expected = format!("one of {}", known.join(", "));
        return Err(EngineError::Setting { setting: "--methods", expected, found: unknown.clone() });
    }
    Ok(contestants.into_iter().filter(|c| names.is_empty() || names.iter().any(|name| name == c.name())).collect())
}

/// The build that kept scores must be of; `None` for any.
fn build(options: &RunOptions) -> Result<Option<Digest>, EngineError> {
    if options.any_build {
        return Ok(None);
    }
    let program = std::env::current_exe().map_err(|e| EngineError::io(Path::new("the running program"), e))?;
    Ok(Some(files::digest(&program)?))
}

#[cfg(test)]
mod options_tests;
#[cfg(test)]
mod tests;
