//! Run records for models that somebody else's program trained: a folder of weights, a list of datasets, what is known of
//! the run. What can be seen is computed (files, licences, log); what can only be told is marked as told (the builder).

use std::path::Path;

use ascribe_core::Digest;
use ascribe_tlog::{CHECKPOINT_FILE, Checkpoint, SignedNote};
use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::files;
use crate::log::LogHead;
use crate::model_signing::ModelManifest;
use crate::registry::Registry;
use crate::run::{DatasetUse, RunDetail, RunRecord, Subject};
use crate::tiles::TILES_DIR;

/// One line of a dataset list: which dataset, and how it was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedDataset {
    /// Name or `urn:uuid:…` of a registered dataset.
    pub dataset: String,
    /// Records that were trained on [default: all].
    #[serde(default)]
    pub records_used: Option<u64>,
    /// Passes over them, as a decimal [default: those of the run].
    #[serde(default)]
    pub epochs: Option<String>,
    /// Seed of their order [default: that of the run].
    #[serde(default)]
    pub sampling_seed: Option<u64>,
    /// SHA-256 of whatever chose the records.
    #[serde(default)]
    pub filter_sha256: Option<Digest>,
}

/// Reads a dataset list: a JSON array of [`ListedDataset`].
///
/// # Errors
/// [`RegistryError::Missing`], [`RegistryError::Json`].
pub fn read_dataset_list(path: &Path) -> Result<Vec<ListedDataset>, RegistryError> {
    files::parse_json(path, &files::read_small(path, "dataset list")?)
}

/// What is told about a run.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// Unique name of the run; empty for one made of the model's digest.
    pub invocation_id: String,
    /// The program that trained; `None` when it was ours.
    pub trainer: Option<String>,
    /// Start, Unix seconds.
    pub started_unix_s: u64,
    /// End, Unix seconds.
    pub finished_unix_s: u64,
    /// SHA-256 of the recipe or configuration.
    pub recipe_sha256: Digest,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Passes over the data, as a decimal.
    pub epochs: String,
    /// Git commit of the training code.
    pub code_commit: Option<String>,
    /// SHA-256 of the weights that it began with.
    pub base_model_sha256: Option<Digest>,
    /// Checkpoint of the licence log at the start; see [`StartEvidence::of_registry`].
    pub start: StartEvidence,
}

/// The licence log's checkpoint as a run begins, and the time stamp over it, if there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartEvidence {
    /// Signed note.
    pub checkpoint: Option<String>,
    /// RFC 3161 answer.
    pub time_stamp: Option<Vec<u8>>,
}

impl StartEvidence {
    /// What lies in the registry's folder now: take it before training begins.
    ///
    /// # Errors
    /// [`RegistryError::Io`]; [`RegistryError::Log`] for a file that is no checkpoint.
    pub fn of_registry(registry: &Registry) -> Result<Self, RegistryError> {
        let dir = registry.log().path().with_file_name(TILES_DIR);
        let path = dir.join(CHECKPOINT_FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let note = SignedNote::parse(&files::read_small(&path, "checkpoint")?)?;
        let size = Checkpoint::parse(&note.text)?.head.size;
        let stamp = dir.join("timestamps").join(format!("{size}.tsr"));
        let time_stamp = if stamp.exists() { Some(files::read_small(&stamp, "time stamp")?) } else { None };
        Ok(Self { checkpoint: Some(note.as_str().to_owned()), time_stamp })
    }

    /// Size and root that the checkpoint states; whether it is signed is for `check_run_start` to say.
    ///
    /// # Errors
    /// [`RegistryError::Log`].
    pub fn head(&self) -> Result<Option<LogHead>, RegistryError> {
        let Some(note) = &self.checkpoint else { return Ok(None) };
        let head = Checkpoint::parse(&SignedNote::parse(note.as_bytes())?.text)?.head;
        Ok(Some(LogHead { size: head.size, root: head.root }))
    }
}

/// The record of a run over the datasets of a list, before there is a model: no subject, no end. Make it before training
/// begins and hold it against the registry ([`Registry::check_run_datasets`]); [`finish_run`] completes it.
///
/// # Errors
/// [`RegistryError::Missing`] for a dataset that the registry does not have, [`RegistryError::NotInLog`] for one whose
/// licence was never registered.
pub fn plan_run(registry: &Registry, list: &[ListedDataset], facts: RunFacts) -> Result<RunRecord, RegistryError> {
    let datasets = list.iter().map(|listed| used(registry, listed, &facts)).collect::<Result<Vec<_>, _>>()?;
    Ok(RunRecord {
        invocation_id: facts.invocation_id,
        builder_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s: facts.started_unix_s,
        finished_unix_s: facts.finished_unix_s,
        recipe_sha256: facts.recipe_sha256,
        seed: facts.seed,
        steps: facts.steps,
        epochs: facts.epochs,
        subjects: Vec::new(),
        datasets,
        licence_log: facts.start.head()?.unwrap_or_else(|| registry.log().head()),
        detail: RunDetail {
            trainer: facts.trainer,
            code_commit: facts.code_commit,
            base_model_sha256: facts.base_model_sha256,
            output_model_sha256: None,
            start_checkpoint: facts.start.checkpoint,
            start_time_stamp: facts.start.time_stamp,
        },
    })
}

/// Adds the finished model to a planned record: every file of the folder as a subject, the digest over all of them, and a
/// name for the run if it has none.
///
/// # Errors
/// What is wrong with the folder or with the record as a whole.
pub fn finish_run(mut record: RunRecord, model_dir: &Path) -> Result<RunRecord, RegistryError> {
    let manifest = ModelManifest::of(model_dir)?;
    let subject = |(name, sha256): (&String, &Digest)| Subject { name: name.clone(), sha256: *sha256 };
    record.subjects = manifest.files.iter().map(subject).collect();
    let model = manifest.digest();
    record.detail.output_model_sha256 = Some(model);
    if record.invocation_id.is_empty() {
        record.invocation_id = format!("{}-{}", manifest.name, &model.to_string()[..12]);
    }
    record.validate(model_dir)?;
    Ok(record)
}

fn used(registry: &Registry, listed: &ListedDataset, facts: &RunFacts) -> Result<DatasetUse, RegistryError> {
    let named = |dataset: &&crate::registry::Dataset| {
        dataset.name() == listed.dataset || dataset.manifest.uuid == listed.dataset
    };
    let dataset = registry.datasets().iter().find(named).ok_or_else(|| RegistryError::Missing {
        path: registry.log().path().with_file_name(&listed.dataset),
        what: "registered dataset of that name (hint: only licensed datasets can stand in a run record)",
    })?;
    let records = listed.records_used.unwrap_or(dataset.manifest.record_count);
    let epochs = listed.epochs.clone().unwrap_or_else(|| facts.epochs.clone());
    let used = registry.dataset_use(dataset, records, epochs, listed.sampling_seed.unwrap_or(facts.seed));
    let used = used.ok_or_else(|| RegistryError::NotInLog {
        path: registry.log().path().to_owned(),
        dataset: dataset.name().to_owned(),
        digest: dataset.licence.digest().to_string(),
    })?;
    Ok(DatasetUse { filter_sha256: listed.filter_sha256, ..used })
}
