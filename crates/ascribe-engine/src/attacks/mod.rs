//! `ascribe bench attacks`: what an attacker gains under each policy, on a finished run of the real model.
//!
//! Here live attackers' texts, the attacked registries, policies, and the table. Attribution is run again for every record that an
//! attack adds: its gradients at every kept checkpoint, through the run's own curvature and its own calibration. The claim "the model
//! was trained on it" is taken from the attacked registry; with [`AttackOptions::retrain`] attacks that add text are also tried on a
//! model that did learn from it (`retrain.rs`). Attacks that move existing records to other names add nothing and need no new gradient.

mod attack;
mod craft;
mod page;
mod policies;
mod retrain;
mod scorer;
mod world;

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use ascribe_methods::combine::Calibration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::walk::calibrated_file::{self, CALIBRATED_FILE};
use crate::walk::truth::TruthBoard;
use crate::walk::{Context, features};

pub use attack::{ATTACKS, AttackInfo};
pub use page::{html, markdown};
use policies::{Basis, Policy, pool};
pub use retrain::{RETRAINED, Retrained};
use scorer::{Records, Rows, Scorer};
use world::World;

/// Version of the report.
pub const REPORT_VERSION: u32 = 1;
/// Windows of noise that the operator plants to measure what noise earns.
const PLANTED_WINDOWS: usize = 300;
/// Largest part of a pool that an attack may gain where the default policy claims to stop it, in percent.
pub const BAR_PERCENT: f64 = 2.0;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct AttackOptions {
    /// Names of attacks; all without.
    pub only: Vec<String>,
    /// One victim and a third of the added text.
    pub quick: bool,
    /// Seed of the attackers' texts.
    pub seed: u64,
    /// Try attacks that add text on a model that was trained with it, too.
    pub retrain: bool,
}

/// One attack on one victim, or by one attacker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Name of the attack.
    pub attack: String,
    /// The dataset that is copied, split, or watered.
    pub target: String,
    /// Windows that were added and attributed anew.
    pub added_windows: u64,
    /// Records that the search for duplicates gave to an earlier licence, and added records; where records were added.
    pub caught: Option<(u64, u64)>,
    /// Gain by policy, in percent of the pool: what the attacker's names get after, less what they got before.
    pub gain_percent: BTreeMap<String, Option<f64>>,
}

/// A policy's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyLine {
    /// Name.
    pub name: String,
    /// What it does.
    pub about: String,
    /// Mean total variation between what it pays owners and what retraining says, over responses; `None` without a bank.
    pub share_error: Option<f64>,
    /// Largest gain over all outcomes, in percent.
    pub worst_percent: Option<f64>,
    /// The same over the attacks that the default policy claims to stop.
    pub worst_claimed_percent: Option<f64>,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackReport {
    /// [`REPORT_VERSION`].
    pub format_version: u32,
    /// Model folder.
    pub model: String,
    /// Responses.
    pub responses: u64,
    /// Pins rows, calibration, seed and size of the attacks.
    pub key: Digest,
    /// Whether `--quick` was given.
    pub quick: bool,
    /// Policies, the default first.
    pub policies: Vec<PolicyLine>,
    /// Outcomes, in the order of [`ATTACKS`].
    pub outcomes: Vec<Outcome>,
    /// The same attacks on models that were trained with the added text, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrained: Vec<Retrained>,
}

/// Everything that attacks share.
pub(crate) struct Bench<'a> {
    pub(crate) context: &'a Context,
    pub(crate) scorer: Scorer<'a>,
    pub(crate) honest: World,
    pub(crate) planted: Rows,
    pub(crate) calibration: Calibration,
    pub(crate) words: Vec<String>,
    pub(crate) floors: Vec<f64>,
    pub(crate) options: AttackOptions,
    pub(crate) dir: std::path::PathBuf,
}

/// Runs attacks over the finished run in `run_dir`; results are kept one by one in `out`, so a second call goes on where the first stopped.
///
/// # Errors
/// No finished run, channels that the bench does not know, an unknown attack, the disk's.
pub fn run(
    home: &Home,
    model: &str,
    run_dir: &Path,
    out: &Path,
    options: &AttackOptions,
    progress: &dyn Progress,
) -> Result<AttackReport, EngineError> {
    if let Some(unknown) = options.only.iter().find(|name| !ATTACKS.iter().any(|a| a.name == name.as_str())) {
        let expected = format!("attacks among {}", ATTACKS.map(|a| a.name).join(", "));
        return Err(EngineError::Setting { setting: "--only", expected, found: unknown.clone() });
    }
    let context = Context::open(home, model, run_dir, progress)?;
    let calibration = calibrated_file::read(&run_dir.join(CALIBRATED_FILE), None)?.calibration;
    let pins = (features::digest(&context)?, &calibration, options.seed, options.quick, env!("CARGO_PKG_VERSION"));
    let key = Digest::of_json(&pins)?;
    let bench = Bench::open(&context, calibration, options, out, progress)?;
    let (mut outcomes, mut retrained) = (Vec::new(), Vec::new());
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    for attack in ATTACKS.iter().filter(|attack| wanted(attack.name)) {
        for target in bench.targets(attack) {
            let path = out.join(format!("outcomes/{}-{target}.json", attack.name));
            outcomes.push(kept_or(&path, key, || bench.attack(attack, &target, progress))?);
            if options.retrain && RETRAINED.contains(&attack.name) {
                let path = out.join(format!("outcomes/{}-{target}-retrained.json", attack.name));
                retrained.push(kept_or(&path, key, || bench.retrained(attack, &target, progress))?);
            }
        }
    }
    let report = bench.report(key, outcomes, retrained)?;
    files::write_atomic(&out.join("attacks.json"), &[serde_json::to_vec_pretty(&report)?, b"\n".to_vec()].concat())?;
    files::write_atomic(&out.join("attacks.md"), markdown(&report).as_bytes())?;
    files::write_atomic(&out.join("attacks.html"), html(&report).as_bytes())?;
    Ok(report)
}

/// An outcome of an earlier call over the same inputs, or a new one, which is kept.
fn kept_or<T: Serialize + DeserializeOwned>(
    path: &Path,
    key: Digest,
    make: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    if path.exists() {
        let found: Result<(Digest, T), _> = serde_json::from_slice(&files::read(path)?);
        if let Some((_, outcome)) = found.ok().filter(|(of, _)| *of == key) {
            return Ok(outcome);
        }
    }
    let outcome = make()?;
    files::write_atomic(path, &serde_json::to_vec_pretty(&(key, &outcome))?)?;
    Ok(outcome)
}

impl<'a> Bench<'a> {
    fn open(
        context: &'a Context,
        calibration: Calibration,
        options: &AttackOptions,
        out: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let scorer = Scorer::open(context, progress)?;
        let honest = world::honest(context, progress)?;
        let words = attack::vocabulary(context);
        // The operator's own seed: attackers do not know it.
        let noise = attack::noise_records(&words, PLANTED_WINDOWS, "planted", options.seed ^ 0x5eed);
        let mut records = Records::new(context, noise)?;
        records.windows.truncate(PLANTED_WINDOWS);
        let planted = scorer.score(&records, progress)?;
        let unit = scorer.n_base() as f64 / honest.datasets.len() as f64;
        let floors = noise_floors(&planted, unit);
        let dir = out.to_path_buf();
        Ok(Self { context, scorer, honest, planted, calibration, words, floors, options: options.clone(), dir })
    }

    /// Runs one attack.
    pub(crate) fn attack(
        &self,
        attack: &AttackInfo,
        target: &str,
        progress: &dyn Progress,
    ) -> Result<Outcome, EngineError> {
        let (world, added) = self.build(attack, target, progress)?;
        let before = self.paid(&self.honest, None)?;
        let after = self.paid(&world, added.as_ref())?;
        let mut gain_percent = BTreeMap::new();
        for ((name, _, _), (before, after)) in Policy::all().iter().zip(before.iter().zip(&after)) {
            let gain = before.as_ref().zip(after.as_ref()).map(|(before, after)| {
                let of = |pool: &BTreeMap<String, f64>| -> f64 {
                    world.attackers.iter().map(|name| pool.get(name).copied().unwrap_or(0.0)).sum()
                };
                let (before, after) = (pool(&self.honest, before, false), pool(&world, after, true));
                let bought = bought(&world, self.n_responses());
                100.0 * (of(&after) - of(&before) * (1.0 - bought) - bought)
            });
            gain_percent.insert((*name).to_owned(), gain);
        }
        Ok(Outcome {
            attack: attack.name.to_owned(),
            target: target.to_owned(),
            added_windows: added.map_or(0, |rows| rows.count() as u64),
            caught: world.caught,
            gain_percent,
        })
    }

    fn n_responses(&self) -> usize {
        self.context.corpus.queries.len()
    }

    /// What every policy pays in a world.
    fn paid(&self, world: &World, added: Option<&Rows>) -> Result<Vec<Option<ndarray::Array2<f64>>>, EngineError> {
        let rows: Vec<&Rows> = added.into_iter().chain([&self.planted]).collect();
        let tables = self.scorer.tables(&rows)?;
        let basis = Basis {
            tables: &tables,
            planted: self.planted.count(),
            floors: &self.floors,
            calibration: &self.calibration,
            unit: self.scorer.n_base() as f64 / self.honest.datasets.len() as f64,
        };
        Policy::all().iter().map(|(_, policy, _)| policy.pay(world, &basis)).collect()
    }

    fn report(
        &self,
        key: Digest,
        outcomes: Vec<Outcome>,
        retrained: Vec<Retrained>,
    ) -> Result<AttackReport, EngineError> {
        let paid = self.paid(&self.honest, None)?;
        let truth = self.owners_truth()?;
        let worst = |name: &str, claimed: bool| {
            let counts = |o: &&Outcome| !claimed || ATTACKS.iter().any(|a| a.name == o.attack && a.claimed);
            let gains = outcomes.iter().filter(counts).filter_map(|o| o.gain_percent.get(name).copied().flatten());
            gains.reduce(f64::max)
        };
        let lines = Policy::all().into_iter().zip(&paid).map(|((name, _, about), paid)| PolicyLine {
            name: name.to_owned(),
            about: about.to_owned(),
            share_error: truth.as_ref().zip(paid.as_ref()).map(|((truth, usable), paid)| error(truth, usable, paid)),
            worst_percent: worst(name, false),
            worst_claimed_percent: worst(name, true),
        });
        Ok(AttackReport {
            format_version: REPORT_VERSION,
            model: self.context.model_name.clone(),
            responses: self.n_responses() as u64,
            key,
            quick: self.options.quick,
            policies: lines.collect(),
            outcomes,
            retrained,
        })
    }

    /// What retraining says about owners.
    fn owners_truth(&self) -> Result<Option<OwnersTruth>, EngineError> {
        let Some(bank) = self.context.bank_if_any()? else { return Ok(None) };
        let board = TruthBoard::new(self.context, &bank, None)?;
        let owner_of = self.honest.owner_of();
        let shares = &board.truth.shares;
        let mut out = ndarray::Array2::zeros((shares.nrows(), self.honest.owners().len()));
        for ((q, dataset), share) in shares.indexed_iter() {
            out[(q, owner_of[dataset] as usize)] += *share;
        }
        Ok(Some((out, board.truth.usable.clone())))
    }
}

/// Shares by owner `[Q, U]`, and the responses where they are defined.
type OwnersTruth = (ndarray::Array2<f64>, Vec<usize>);

/// Part of all revenue that the attacker paid in itself, for responses that it bought at the price of any other.
fn bought(world: &World, n_responses: usize) -> f64 {
    let bought: u64 = world.wash.iter().filter(|_| world.paid_for).map(|(_, n)| n).sum();
    bought as f64 / (n_responses as u64 + bought) as f64
}

/// Per response, what planted noise of the size of a dataset nets, whatever its sign.
fn noise_floors(planted: &Rows, unit: f64) -> Vec<f64> {
    let net = |row: ndarray::ArrayView1<'_, f32>| {
        (row.iter().map(|v| f64::from(*v)).sum::<f64>() * unit / planted.count() as f64).abs()
    };
    planted.influence.rows().into_iter().map(net).collect()
}

/// Mean total variation over usable responses; what a policy leaves unpaid counts as paid to nobody.
fn error(truth: &ndarray::Array2<f64>, usable: &[usize], paid: &ndarray::Array2<f64>) -> f64 {
    let one = |&q: &usize| {
        let apart: f64 = truth.row(q).iter().zip(paid.row(q)).map(|(t, p)| (t - p).abs()).sum();
        (apart + (1.0 - paid.row(q).sum()).abs()) / 2.0
    };
    usable.iter().map(one).sum::<f64>() / usable.len().max(1) as f64
}
