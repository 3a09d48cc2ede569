//! On what terms each dataset of a registry is paid: one trait over the forms that a registry takes, and the checks that decide
//! whether a dataset may be paid at all.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ascribe_core::Digest;
use ascribe_ledger::{BatchTerms, Caip10, PayeeShare, Period, Terms, UnattributedReason};
use ascribe_registry::{Dataset, Registry};
use ascribe_shares::Holdings;
use ascribe_store::score_rows::Label;
use rayon::prelude::*;

use crate::duplicates::Moves;
use crate::error::PayError;
use crate::files;
use crate::settings::{PaySettings, TRAIN};

/// Unknown names that are told apart; a file with more of them is of another registry.
const STRANGERS_MAX: usize = 1 << 16;

/// One dataset as a payout sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidDataset {
    /// Short name.
    pub name: String,
    /// `urn:uuid:…`.
    pub uuid: String,
    /// Content root, hex.
    pub content_root: String,
    /// Registered records.
    pub records: u64,
    /// Place in the log of the first licence for this very content: of two claims on it the earlier counts. `None` if the current
    /// licence was never logged.
    pub licence_index: Option<u64>,
    /// The licence permits training.
    pub permits: bool,
    /// In force from and until (seconds since 1970; 0 = open).
    pub valid: (u64, u64),
    /// First moment at which the licence no longer counts for a new training, if it was revoked.
    pub revoked_from: Option<u64>,
    /// The owner and how its money is split.
    pub terms: Terms,
}

/// Something that knows datasets, licences and payees.
pub trait PaySource {
    /// Pins all terms.
    fn digest(&self) -> Digest;
    /// All datasets, in the order of ordinals.
    ///
    /// # Errors
    /// Licences that do not verify, accounts that are none.
    fn datasets(&self) -> Result<Vec<PaidDataset>, PayError>;
}

impl PaySource for Registry {
    fn digest(&self) -> Digest {
        Self::digest(self)
    }

    fn datasets(&self) -> Result<Vec<PaidDataset>, PayError> {
        // Signatures of thousands of licences are checked side by side; the first error in the order of datasets is told.
        let found: Vec<_> = Self::datasets(self).par_iter().map(|dataset| of_folder(self, dataset)).collect();
        found.into_iter().collect()
    }
}

/// Every licence is checked here, signature included: money is not paid on a file's word.
fn of_folder(registry: &Registry, dataset: &Dataset) -> Result<PaidDataset, PayError> {
    let (manifest, licence) = (&dataset.manifest, &dataset.licence);
    let terms_text = files::read(&dataset.terms_path())?;
    licence.verify(&dataset.licence_path(), registry.domain(), manifest, &terms_text)?;
    let payee = |p: &ascribe_registry::Payee| {
        Ok(PayeeShare { account: Some(p.account.parse::<Caip10>()?), share_ppm: p.share_ppm })
    };
    let message = licence.message();
    let mut revoked_from = None;
    if let Some(revocation) = &dataset.revocation {
        revocation.check_signed(&dataset.revocation_path(), registry.domain())?;
        if revocation.message.licence != licence.digest() || revocation.licensor != licence.licensor() {
            let (expected, found) = (format!("a revocation of licence {}", licence.digest()), "one of another".into());
            return Err(PayError::Content { path: dataset.revocation_path(), expected, found });
        }
        revoked_from = Some(revocation.message.effective_from);
    }
    let says = |list: &[String], word: &str| list.iter().any(|token| token == word);
    let permits = (says(&message.permits, TRAIN) || says(&message.permits, "ai-all"))
        && !says(&message.prohibits, TRAIN)
        && !says(&message.prohibits, "ai-all");
    Ok(PaidDataset {
        name: manifest.name.clone(),
        uuid: manifest.uuid.clone(),
        content_root: manifest.content_root.to_string(),
        records: manifest.record_count,
        licence_index: first_claim(registry, dataset)?,
        permits,
        valid: (message.valid_from, message.valid_until),
        revoked_from,
        terms: Terms {
            dataset: manifest.uuid.clone(),
            owner: manifest.owner.clone(),
            payees: manifest.payees.iter().map(payee).collect::<Result<_, PayError>>()?,
        },
    })
}

/// Place of the first licence for this very content. A renewed licence keeps its place; a licence for other content under the same
/// name does not lend its place to what was put there later.
fn first_claim(registry: &Registry, dataset: &Dataset) -> Result<Option<u64>, PayError> {
    let mut first = registry.log().index_of(dataset.licence.digest());
    for past in dataset.history.iter().filter(|past| past.manifest.content_root == dataset.manifest.content_root) {
        let terms = files::read(&past.dir.join("terms.txt"))?;
        past.licence.verify(&past.dir.join("licence.json"), registry.domain(), &past.manifest, &terms)?;
        if past.licence.licensor() == dataset.licence.licensor() && first.is_some() {
            first = first.into_iter().chain(registry.log().index_of(past.licence.digest())).min();
        }
    }
    Ok(first)
}

/// Terms ready for a run.
pub struct PayTerms {
    /// Names by ordinal.
    pub datasets: Vec<String>,
    /// `urn:uuid:…` by ordinal.
    pub uuids: Vec<String>,
    /// For the ledger.
    pub batch: BatchTerms,
    /// For the policy.
    pub holdings: Holdings,
    /// Pins all terms.
    pub digest: Digest,
    /// Pins all revocations, if there are any.
    pub revocations: Option<Digest>,
    /// Files of the registry that decide who is paid, relative to its folder.
    pub files: Vec<String>,
    /// Of what each dataset earns, the part that its licensor is owed, in ppm.
    pub revenue_share: Vec<u32>,
    moves: Moves,
    blocked: Vec<Option<UnattributedReason>>,
    by_text: HashMap<String, u32>,
    strangers: Mutex<HashMap<String, u32>>,
    by_record: AtomicBool,
    by_dataset: AtomicBool,
}

impl PayTerms {
    /// Opens the registry in `dir` and decides what may be paid in `period`.
    ///
    /// # Errors
    /// No registry, licences that do not verify, an embargo on a dataset that is not registered.
    pub fn read(
        dir: &Path,
        settings: &PaySettings,
        period: &Period,
        duplicates: Option<&Path>,
    ) -> Result<Self, PayError> {
        let registry = Registry::open(dir)?;
        let mut terms = Self::of(&registry, settings, period, duplicates)?;
        let revoked = registry.datasets().iter().filter_map(|d| d.revocation.as_ref().map(|r| (d.name(), r.digest)));
        let revoked: Vec<_> = revoked.collect();
        terms.files = crate::outputs::registry_files(&registry, dir);
        terms.revocations = if revoked.is_empty() { None } else { Some(Digest::of_json(&revoked)?) };
        Ok(terms)
    }

    /// The same of any source.
    ///
    /// # Errors
    /// As [`PayTerms::read`].
    pub fn of(
        source: &dyn PaySource,
        settings: &PaySettings,
        period: &Period,
        duplicates: Option<&Path>,
    ) -> Result<Self, PayError> {
        let datasets = source.datasets()?;
        let unknown = |name: &&String| !datasets.iter().any(|d| d.name == **name);
        let (embargo, shares) = (settings.embargo.keys().find(unknown), settings.revenue_share.keys().find(unknown));
        for (setting, name) in [("embargo", embargo), ("revenue_share", shares)] {
            if let Some(name) = name {
                let expected = "names of registered datasets".to_owned();
                return Err(PayError::Setting { setting, expected, found: name.clone() });
            }
        }
        let moves = duplicates.map(|path| Moves::read(path, &datasets)).transpose()?.unwrap_or_default();
        let blocked: Result<Vec<_>, PayError> =
            datasets.iter().map(|dataset| why_not(dataset, settings, period)).collect();
        let blocked = blocked?;
        let terms: Vec<Terms> = datasets.iter().map(|dataset| dataset.terms.clone()).collect();
        let batch = BatchTerms::new(&terms, blocked.clone())?;
        drop(terms);
        let holdings = Holdings {
            owner_of: batch.owner_of_dataset().to_vec(),
            stands_for: stand_ins(&datasets),
            records: datasets.iter().map(|dataset| dataset.records).collect(),
            licensed: blocked.iter().map(Option::is_none).collect(),
            duplicates: moves.parts.clone(),
        };
        let share = |d: &PaidDataset| settings.revenue_share.get(&d.name).copied().unwrap_or(1_000_000);
        let revenue_share = datasets.iter().map(share).collect();
        let mut by_text = HashMap::new();
        for (ordinal, dataset) in (0u32..).zip(&datasets) {
            by_text.insert(dataset.name.clone(), ordinal);
            by_text.insert(dataset.uuid.clone(), ordinal);
            // Duplicates share a root: it names the first of them, and their scores are added anyway.
            by_text.entry(dataset.content_root.clone()).or_insert(ordinal);
        }
        let (names, uuids) = datasets.into_iter().map(|dataset| (dataset.name, dataset.uuid)).unzip();
        let (digest, strangers) = (source.digest(), Mutex::default());
        Ok(Self {
            datasets: names,
            uuids,
            batch,
            holdings,
            digest,
            revocations: None,
            files: Vec::new(),
            revenue_share,
            moves,
            blocked,
            by_text,
            strangers,
            by_record: AtomicBool::new(false),
            by_dataset: AtomicBool::new(false),
        })
    }

    /// The ordinal whose sum a row of this label joins. Names that no dataset has get ordinals of their own beyond the registry's.
    ///
    /// `NAME#RECORD` is a record of a dataset: its score goes to the earliest licence of the record's cluster.
    pub fn resolve(&self, label: Label<'_>) -> u32 {
        let n = self.datasets.len() as u64;
        match label {
            Label::Number(ordinal) if ordinal < n => self.whole(ordinal as u32),
            Label::Number(ordinal) => self.stranger(&format!("ordinal {ordinal}")),
            Label::Text(text) => match self.by_text.get(text) {
                Some(ordinal) => self.whole(*ordinal),
                None => match text.parse::<u64>() {
                    Ok(ordinal) => self.resolve(Label::Number(ordinal)),
                    Err(_) => self.record(text).unwrap_or_else(|| self.stranger(text)),
                },
            },
        }
    }

    /// A row that speaks of a whole dataset.
    fn whole(&self, ordinal: u32) -> u32 {
        if self.holdings.duplicates.own_ppm(ordinal) < 1_000_000 {
            self.by_dataset.store(true, Ordering::Relaxed);
        }
        self.holdings.stand_in(ordinal)
    }

    /// A row that speaks of one record.
    fn record(&self, text: &str) -> Option<u32> {
        let (name, record) = text.split_once('#')?;
        let dataset = *self.by_text.get(name)?;
        self.by_record.store(true, Ordering::Relaxed);
        let first = self.moves.by_record.get(&(dataset, record.to_owned())).copied();
        Some(self.holdings.stand_in(first.unwrap_or(dataset)))
    }

    /// What rules know of the datasets, once all rows were resolved: scores by record were moved one by one already.
    ///
    /// # Errors
    /// A file that speaks of one dataset's records and of another's whole, while the latter has copies: what was moved could not be told.
    pub fn holdings_as_read(&self) -> Result<Holdings, PayError> {
        let (records, wholes) = (self.by_record.load(Ordering::Relaxed), self.by_dataset.load(Ordering::Relaxed));
        if records && wholes {
            let expected = "scores by dataset or by record (NAME#RECORD) for all datasets with duplicates".to_owned();
            return Err(PayError::Setting { setting: "score file", expected, found: "both".into() });
        }
        let mut holdings = self.holdings.clone();
        if records {
            holdings.duplicates = Default::default();
        }
        Ok(holdings)
    }

    fn stranger(&self, name: &str) -> u32 {
        // What a panicking thread left is still a valid map.
        let mut strangers = self.strangers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let next = strangers.len().min(STRANGERS_MAX) as u32;
        let at = match strangers.get(name) {
            Some(at) => *at,
            None if strangers.len() > STRANGERS_MAX => STRANGERS_MAX as u32,
            None => *strangers.entry(name.chars().take(200).collect()).or_insert(next),
        };
        self.datasets.len() as u32 + at
    }

    /// Ordinals that rows under these names got, once all rows were resolved.
    ///
    /// # Errors
    /// A name that a registered dataset has: noise that somebody owns would be a way to silence others.
    pub fn controls(&self, names: &[String]) -> Result<Vec<u32>, PayError> {
        let strangers = self.strangers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut found = Vec::new();
        for name in names {
            if self.by_text.contains_key(name) {
                let expected = "names that no registered dataset has".to_owned();
                return Err(PayError::Setting { setting: "noise_controls", expected, found: name.clone() });
            }
            found.extend(strangers.get(name).map(|at| self.datasets.len() as u32 + at));
        }
        Ok(found)
    }

    /// Names that no dataset has, sorted.
    pub fn stranger_names(&self) -> Vec<String> {
        let strangers = self.strangers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut names: Vec<String> = strangers.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Datasets that may not be paid, with the reason.
    pub fn blocked_names(&self) -> BTreeMap<String, String> {
        let named = self.datasets.iter().zip(&self.blocked);
        named.filter_map(|(name, reason)| reason.map(|reason| (name.clone(), format!("{reason:?}")))).collect()
    }
}

fn why_not(
    dataset: &PaidDataset,
    settings: &PaySettings,
    period: &Period,
) -> Result<Option<UnattributedReason>, PayError> {
    let (from, until) = dataset.valid;
    let (start, end) = (day_seconds(period.start())?, day_seconds(period.end())? + 86_400);
    // A revocation acts forward: a model whose training began before it goes on paying. Where nobody says when training began, it is
    // taken to be the start of the period, which is the latest that it can be for every response that is paid.
    let trained = settings.trained.as_deref().map(day_seconds).transpose()?;
    let revoked = dataset.revoked_from.is_some_and(|moment| moment <= trained.unwrap_or(start));
    let lapsed = match trained {
        Some(day) => from >= day + 86_400 || (until != 0 && until <= day),
        None => from >= end || (until != 0 && until <= start),
    };
    if !dataset.permits || dataset.licence_index.is_none() || lapsed || revoked {
        return Ok(Some(UnattributedReason::NotLicensed));
    }
    let embargoed = settings.embargo.get(&dataset.name).is_some_and(|day| period.start() < day.as_str());
    Ok(embargoed.then_some(UnattributedReason::Embargo))
}

/// Seconds since 1970 of a day's start; days before it count as 1970.
fn day_seconds(day: &str) -> Result<u64, PayError> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    let date = time::Date::parse(day, &format).map_err(|error| PayError::Setting {
        setting: "--period",
        expected: "calendar days".into(),
        found: format!("{day}: {error}"),
    })?;
    Ok(u64::try_from(date.midnight().assume_utc().unix_timestamp()).unwrap_or(0))
}

/// Of datasets with one content root, the one whose licence was logged first stands for all.
fn stand_ins(datasets: &[PaidDataset]) -> Vec<u32> {
    let mut first: HashMap<&str, (u64, u32)> = HashMap::new();
    for (ordinal, dataset) in (0u32..).zip(datasets) {
        let key = (dataset.licence_index.unwrap_or(u64::MAX), ordinal);
        let best = first.entry(dataset.content_root.as_str()).or_insert(key);
        *best = key.min(*best);
    }
    datasets.iter().map(|dataset| first[dataset.content_root.as_str()].1).collect()
}
