//! The attacks: what each registers, moves, or buys.

use std::collections::BTreeSet;
use std::path::Path;

use ascribe_core::Progress;
use ascribe_linalg::rng::Stream;

use super::scorer::{Records, Rows};
use super::world::{self, NewSet, World};
use super::{Bench, craft};
use crate::error::EngineError;
use crate::walk::Context;

/// Parts that a dataset is split into, and datasets of a farm.
const PARTS: usize = 10;
/// Windows that outliers and shadows register.
const CHOSEN_WINDOWS: usize = 100;
/// Windows of each dataset of a noise farm.
const FARM_WINDOWS: usize = 60;
/// How often a wash buyer asks for each response of its own dataset.
const WASH_ROUNDS: u64 = 10;
/// The attacker.
const MALLORY: &str = "Mallory";

/// An attack.
#[derive(Debug)]
pub struct AttackInfo {
    /// Name.
    pub name: &'static str,
    /// What the attacker does.
    pub about: &'static str,
    /// The default policy claims to stop it.
    pub claimed: bool,
    /// It is done to (or by the owner of) single datasets.
    pub targets: Targets,
}

/// Whom an attack is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Each of the datasets that are looked at.
    Datasets,
    /// Datasets in English, for rewriting rules that know English.
    English,
    /// Nobody in particular.
    None,
}

const fn attack(name: &'static str, claimed: bool, targets: Targets, about: &'static str) -> AttackInfo {
    AttackInfo { name, about, claimed, targets }
}

/// All attacks, in the order of the table.
pub const ATTACKS: [AttackInfo; 13] = [
    attack("exact_copy", true, Targets::Datasets, "registers another owner's records but one, word for word"),
    attack("near_copy", true, Targets::Datasets, "registers them with one word in ten damaged"),
    attack(
        "paraphrase",
        false,
        Targets::English,
        "registers them rewritten by rules: sentences and clauses in another order, a hundred words and turns replaced",
    ),
    attack("split_datasets", true, Targets::Datasets, "the owner splits its dataset into ten of its own"),
    attack("split_persons", true, Targets::Datasets, "the owner splits its dataset among ten false names"),
    attack(
        "sort_datasets",
        true,
        Targets::Datasets,
        "the owner sorts its records by the sign of their influence into two datasets of its own",
    ),
    attack("throwaway", true, Targets::Datasets, "the same, and the bad half goes to a throwaway name"),
    attack("noise_farm", true, Targets::None, "ten datasets of random words under one name"),
    attack("noise_persons", true, Targets::None, "the same under ten throwaway names"),
    attack(
        "outlier",
        true,
        Targets::None,
        "a hundred windows of texts with the longest gradients, chosen with the model's first checkpoint",
    ),
    attack(
        "shadow",
        true,
        Targets::None,
        "a hundred windows of the owners' unregistered text that the first checkpoint finds closest to likely questions",
    ),
    attack(
        "wash_usage",
        true,
        Targets::Datasets,
        "the owner buys every response of its own subject ten times, at the price of a response",
    ),
    attack("wash_flat", false, Targets::Datasets, "the same where responses cost nothing and split a fixed pool"),
];

/// Owners of what is added, and the windows that each registers.
type Parts = Vec<(String, Vec<usize>)>;

impl AttackInfo {
    fn washes(&self) -> bool {
        self.name.starts_with("wash")
    }
}

/// One dataset for each part.
fn sets<'r>(attack: &AttackInfo, records: &'r Records, parts: Parts) -> Vec<NewSet<'r>> {
    let set = |(n, (owner, windows)): (usize, (String, Vec<usize>))| NewSet {
        name: format!("mallory-{}-{n}", attack.name.replace('_', "-")),
        owner,
        records,
        windows,
    };
    parts.into_iter().enumerate().map(set).collect()
}

/// Distinct words of the registered texts, Chinese characters in runs of up to four; in the order of their first use.
pub(super) fn vocabulary(context: &Context) -> Vec<String> {
    let (mut seen, mut words) = (BTreeSet::new(), Vec::new());
    for dataset in &context.corpus.datasets {
        for record in dataset.records.iter().step_by(7) {
            for word in record.text.split_whitespace() {
                let word: String = word.chars().take(if word.is_ascii() { 14 } else { 4 }).collect();
                if seen.insert(word.clone()) {
                    words.push(word);
                }
            }
        }
    }
    words
}

/// Records of random words for at least so many windows; the name parts one farm's draws from another's.
pub(super) fn noise_records(words: &[String], n_windows: usize, name: &str, seed: u64) -> Vec<(String, String)> {
    let mut stream = Stream::new(seed, &format!("attacks/noise/{name}"));
    // Random words break into more tokens than text: forty of them are more than half a window.
    (0..2 * n_windows).map(|n| (format!("{name}/{n}"), craft::noise(words, 60, &mut stream))).collect()
}

impl Bench<'_> {
    /// Whom an attack is tried on: an English encyclopedia, and without `--quick` Chinese poems; rewriting rules know English only.
    pub(super) fn targets(&self, attack: &AttackInfo) -> Vec<String> {
        let all: &[&str] = match attack.targets {
            Targets::None => return vec!["none".to_owned()],
            Targets::English => &["foldoc"],
            Targets::Datasets => &["foldoc", "zh-classics"],
        };
        let known = |name: &&&str| self.honest.datasets.iter().any(|d| d.name == ***name);
        let named: Vec<String> = all.iter().filter(known).map(|name| (*name).to_owned()).collect();
        let named = if named.is_empty() { vec![self.honest.datasets[0].name.clone()] } else { named };
        named.into_iter().take(if self.options.quick { 1 } else { 2 }).collect()
    }

    /// The attacked world, and the rows of what was added.
    pub(super) fn build(
        &self,
        attack: &AttackInfo,
        target: &str,
        progress: &dyn Progress,
    ) -> Result<(World, Option<Rows>), EngineError> {
        if let Some((records, parts)) = self.text(attack, target)? {
            return self.added(attack, target, &records, parts, None, progress);
        }
        match attack.name {
            "outlier" | "shadow" => self.chosen(attack, progress),
            _ if attack.washes() => Ok((self.washed(attack, target), None)),
            _ => Ok((self.moved(attack.name, target), None)),
        }
    }

    /// What an attack registers and under which names, where no look at the model decides it.
    fn text(&self, attack: &AttackInfo, target: &str) -> Result<Option<(Records, Parts)>, EngineError> {
        match attack.name {
            "exact_copy" | "near_copy" | "paraphrase" => {
                let records = Records::new(self.context, self.copies(attack.name, target))?;
                let windows = (0..records.windows.len()).collect();
                Ok(Some((records, vec![(MALLORY.to_owned(), windows)])))
            }
            "noise_farm" | "noise_persons" => self.farm(attack).map(Some),
            _ => Ok(None),
        }
    }

    /// Registers and licenses what an attack adds in a copy of the registry in `dir`, which stays; attributes nothing.
    pub(super) fn registered(
        &self,
        attack: &AttackInfo,
        target: &str,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<World, EngineError> {
        let Some((records, parts)) = self.text(attack, target)? else {
            let expected = "an attack that adds text which no model chose".to_owned();
            return Err(EngineError::Setting { setting: "--retrain", expected, found: attack.name.to_owned() });
        };
        world::register(self.context, &self.honest, &sets(attack, &records, parts), dir, progress)
    }

    fn ordinal(&self, target: &str) -> usize {
        self.honest.datasets.iter().position(|d| d.name == target).unwrap_or(0)
    }

    fn copies(&self, how: &str, target: &str) -> Vec<(String, String)> {
        let dataset = &self.context.corpus.datasets[self.ordinal(target)];
        let mut stream = Stream::new(self.options.seed, &format!("attacks/{how}/{target}"));
        let step = if self.options.quick { 3 } else { 1 };
        let rewrite = |text: &str, stream: &mut Stream| match how {
            "near_copy" => craft::near_copy(text, stream),
            "paraphrase" => craft::paraphrase(text, stream),
            _ => text.to_owned(),
        };
        // One record less: another content root, or the registry would refuse it as a second licence for the same content.
        let kept = dataset.records.iter().skip(1).step_by(step);
        let mut out: Vec<(String, String)> =
            kept.map(|record| (format!("mine/{}", record.row), rewrite(&record.text, &mut stream))).collect();
        out.retain(|(_, text)| !text.trim().is_empty());
        out
    }

    /// Registers parts of `records`, one dataset each, and attributes them.
    fn added(
        &self,
        attack: &AttackInfo,
        target: &str,
        records: &Records,
        parts: Parts,
        rows: Option<Rows>,
        progress: &dyn Progress,
    ) -> Result<(World, Option<Rows>), EngineError> {
        let sets = sets(attack, records, parts);
        let order: Vec<usize> = sets.iter().flat_map(|set| set.windows.iter().copied()).collect();
        let dir = self.dir.join(format!("registries/{}-{target}", attack.name));
        let world = world::register(self.context, &self.honest, &sets, &dir, progress)?;
        let removed = std::fs::remove_dir_all(&dir);
        removed.map_err(|e| EngineError::io(&dir, e))?;
        let rows = match rows {
            Some(rows) => rows,
            None => self.scorer.score(records, progress)?,
        };
        Ok((world, Some(rows.select(&order))))
    }

    fn farm(&self, attack: &AttackInfo) -> Result<(Records, Parts), EngineError> {
        let n = if self.options.quick { FARM_WINDOWS / 3 } else { FARM_WINDOWS };
        // Both farms plant the same text: only the names differ.
        let mut records = Records::new(self.context, noise_records(&self.words, n * PARTS, "farm", self.options.seed))?;
        records.windows.truncate(n * PARTS);
        let owner = |part: usize| match attack.name {
            "noise_persons" => format!("{MALLORY} {part}"),
            _ => MALLORY.to_owned(),
        };
        // A window's main record must belong to one part only.
        let cut = |part: usize| (part * n..(part + 1) * n).collect::<Vec<usize>>();
        let parts = (0..PARTS).map(|part| (owner(part), cut(part))).collect();
        Ok((records, parts))
    }

    /// Outliers by gradient length, shadows by influence on likely questions: both chosen with the first checkpoint only, which stands
    /// for a model of the attacker's own.
    fn chosen(&self, attack: &AttackInfo, progress: &dyn Progress) -> Result<(World, Option<Rows>), EngineError> {
        let mut stream = Stream::new(self.options.seed, &format!("attacks/{}", attack.name));
        let candidates = match attack.name {
            "outlier" => {
                (0..600).map(|n| (format!("odd/{n}"), craft::outlier(n, &self.words, &mut stream))).collect::<Vec<_>>()
            }
            _ => {
                let of = |(n, window): (usize, &ascribe_corpus::Query)| {
                    (format!("shadow/{n}"), self.context.corpus.text_of(&window.spans))
                };
                self.context.corpus.validation.iter().enumerate().map(of).collect()
            }
        };
        let records = Records::new(self.context, candidates)?;
        let rows = self.scorer.score(&records, progress)?;
        let worth: Vec<f64> = match attack.name {
            "outlier" => rows.norms.iter().map(|norm| f64::from(*norm)).collect(),
            _ => self.likeness(&records)?,
        };
        let mut order: Vec<usize> = (0..records.windows.len()).collect();
        order.sort_by(|a, b| worth[*b].total_cmp(&worth[*a]).then(a.cmp(b)));
        order.truncate(CHOSEN_WINDOWS);
        order.sort_unstable();
        let parts = vec![(MALLORY.to_owned(), order)];
        self.added(attack, "none", &records, parts, Some(rows), progress)
    }

    /// What a window's gradient at the first checkpoint shares with the mean gradient of all candidates: the attacker does not know the
    /// questions, but candidates are drawn from what people ask.
    fn likeness(&self, records: &Records) -> Result<Vec<f64>, EngineError> {
        use ascribe_models::{GradientStage, Sequence};
        let context = self.context;
        let decoder = context.decoder(&context.checkpoints[0])?;
        let stage = GradientStage::new(&decoder, crate::walk::features::taps_of(&context.attribution))?;
        let sequences: Vec<Sequence<'_>> = records.windows.iter().map(|w| Sequence::whole(&w.tokens)).collect();
        let mut rows = ndarray::Array2::zeros((sequences.len(), stage.dim()));
        stage.rows(&sequences, rows.view_mut(), None)?;
        let rows = rows.mapv(f64::from);
        let Some(mean) = rows.mean_axis(ndarray::Axis(0)) else { return Ok(Vec::new()) };
        Ok(rows.dot(&mean).to_vec())
    }

    /// Examples of the target under other names.
    fn moved(&self, name: &str, target: &str) -> World {
        let mut world = self.honest.clone();
        let ordinal = self.ordinal(target);
        let owner = world.datasets[ordinal].owner.clone();
        world.attackers.push(owner.clone());
        let own: Vec<usize> =
            (0..world.dataset_of.len()).filter(|i| world.dataset_of[*i] as usize == ordinal).collect();
        if name.starts_with("split") {
            // The first part stays where it is.
            for (part, chunk) in own.chunks(own.len().div_ceil(PARTS)).enumerate().skip(1) {
                let to = if name == "split_persons" { format!("{MALLORY} {part}") } else { owner.clone() };
                if to != owner {
                    world.attackers.push(to.clone());
                }
                world.part(format!("{target}-{part}"), to, chunk);
            }
            return world;
        }
        // An attacker who knows the outcome: the mean influence over all responses.
        let influence = self.scorer.mean_influence();
        let bad: Vec<usize> = own.into_iter().filter(|i| influence[*i] < 0.0).collect();
        let to = if name == "throwaway" { format!("{MALLORY} 1") } else { owner.clone() };
        if to != owner {
            world.attackers.push(to.clone());
        }
        world.part(format!("{target}-bad"), to, &bad);
        world
    }

    fn washed(&self, attack: &AttackInfo, target: &str) -> World {
        let mut world = self.honest.clone();
        let ordinal = self.ordinal(target);
        world.attackers.push(world.datasets[ordinal].owner.clone());
        let own = self.context.corpus.queries.iter().enumerate().filter(|(_, q)| q.dataset as usize == ordinal);
        world.wash = own.map(|(q, _)| (q, WASH_ROUNDS)).collect();
        world.paid_for = attack.name == "wash_usage";
        world
    }
}
