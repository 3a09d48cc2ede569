//! Datasets that come to a store, and whose they are: adding, relicensing, and the sums that follow.
//!
//! The store keeps the sums per dataset and per owner with each generation; here is who says what an ordinal stands for (a
//! registry, or the caller), and that the curvature and the notes beside the rows follow.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ascribe_core::{ExampleId, FeatureReader as _, Progress};
use ascribe_index::refuse_factors;
use ascribe_methods::dot;
use ascribe_models::vision::data::read_matrix;
use ascribe_registry::Registry;
use ascribe_store::FeatureStore;
use ascribe_store::features::{self, DatasetStats, DatasetTerms, Numbering, OwnerStats};
use serde::Serialize;

use super::{curvature, follows, notes};
use crate::error::EngineError;
use crate::lab::features::{EXAMPLES_FILE, ExampleLine, LAB_FILE, LabFile};

/// Rows of another store that are to be added.
#[derive(Clone, Debug)]
pub struct AddRequest {
    /// The store that grows.
    pub store: PathBuf,
    /// The store whose live rows are added.
    pub from: PathBuf,
    /// Ordinals there and here; the others as [`features::numbering`] says.
    pub numbering: Numbering,
    /// Owner of the added datasets.
    pub owner: Option<String>,
    /// Licence of the added datasets.
    pub licence: Option<String>,
}

/// What was added.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// The store.
    pub store: PathBuf,
    /// Its new generation.
    pub generation: u64,
    /// Rows of the whole store.
    pub n_rows: u64,
    /// Rows that were added.
    pub added_rows: u64,
    /// The datasets, as the store has them now.
    pub datasets: Vec<AddedDataset>,
    /// `updated` if the curvature beside the rows was brought up to date; none if there is none.
    pub curvature: Option<&'static str>,
}

/// A dataset that was added.
#[derive(Clone, Debug, Serialize)]
pub struct AddedDataset {
    /// Its ordinal in the store that it came from.
    pub from: u32,
    /// Its ordinal here.
    #[serde(flatten)]
    pub terms: DatasetTerms,
}

/// Adds the rows of one store to another; sums per dataset and owner, and the curvature, are brought up to date by them. The lines of
/// `examples.jsonl` come along, datasets keep the names that `lab.json` gives them. After a kill the same call goes on.
///
/// # Errors
/// Those of [`features::add`]; of reading and writing notes.
pub fn add(request: &AddRequest, progress: &dyn Progress) -> Result<Added, EngineError> {
    let AddRequest { store: dir, from, owner, licence, .. } = request;
    let (before, other) = (FeatureStore::open(dir, None)?, FeatureStore::open(from, None)?);
    let numbering = features::numbering(&before, &other, &request.numbering)?;
    let names = lab_names(from)?;
    let told = |(&there, &here): (&u32, &u32)| {
        let name = names.as_ref().and_then(|names| names.get(there as usize).cloned());
        let name = name.filter(|_| other.terms().of_dataset(there).is_none_or(|terms| terms.name.is_none()));
        DatasetTerms { dataset: here, name, owner: owner.clone(), licence: licence.clone(), corpus: None }
    };
    let terms: Vec<DatasetTerms> = numbering.iter().map(told).collect();
    let had_curvature = dir.join(curvature::CURVATURE_FILE).exists();
    // Before the rows: lines of rows that never came are no harm, rows without their lines would be.
    join_notes(dir, &other, from, &numbering)?;
    let after = features::add(dir, &other, &numbering, &terms, progress)?;
    let curvature = had_curvature.then(|| curvature::refresh(dir, progress)).transpose()?;
    let now = |(&from, here): (&u32, &u32)| AddedDataset {
        from,
        terms: after
            .terms()
            .of_dataset(*here)
            .cloned()
            .unwrap_or(DatasetTerms { dataset: *here, ..DatasetTerms::default() }),
    };
    Ok(Added {
        store: dir.clone(),
        generation: after.generation().generation,
        n_rows: after.n_rows(),
        added_rows: other.n_rows(),
        datasets: numbering.iter().map(now).collect(),
        curvature: curvature.map(|found| found.how),
    })
}

/// Names of datasets by ordinal, if somebody's records were read.
fn lab_names(dir: &Path) -> Result<Option<Vec<String>>, EngineError> {
    let Some(bytes) = features::read_note(dir, LAB_FILE)? else { return Ok(None) };
    let found: LabFile = serde_json::from_slice(&bytes)?;
    Ok(Some(found.datasets))
}

/// Lines for the rows that come, behind those that are there.
fn join_notes(dir: &Path, other: &FeatureStore, from: &Path, numbering: &Numbering) -> Result<(), EngineError> {
    let path = from.join(EXAMPLES_FILE);
    let (ours, theirs) = (features::read_note(dir, EXAMPLES_FILE)?, features::read_note(from, EXAMPLES_FILE)?);
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(()) };
    let ours = notes::parse(&dir.join(EXAMPLES_FILE), &ours)?;
    let theirs = notes::by_id(notes::parse(&path, &theirs)?);
    let placed = |id: ExampleId| {
        let here = ExampleId { dataset: numbering[&id.dataset], ..id };
        Some((here.to_u64(), theirs.get(&id.to_u64())?))
    };
    let coming: Vec<(u64, &ExampleLine)> = other.ids().filter_map(placed).collect();
    let ids: HashSet<u64> = coming.iter().map(|(id, _)| *id).collect();
    // Lines of an earlier call that was cut off make room.
    let mut lines: Vec<ExampleLine> = ours.into_iter().filter(|line| !ids.contains(&line.example_id)).collect();
    lines.sort_by_key(|line| line.row);
    let first = lines.last().map_or(0, |line| line.row + 1);
    let numbered = |(n, (example_id, line)): (usize, (u64, &ExampleLine))| ExampleLine {
        row: first + n as u64,
        example_id,
        ..line.clone()
    };
    lines.extend(coming.into_iter().enumerate().map(numbered));
    Ok(features::write_note(dir, EXAMPLES_FILE, notes::text(&lines)?.as_bytes())?)
}

/// Who is told to own what.
#[derive(Clone, Debug, Default)]
pub struct RelicenseRequest {
    /// The store.
    pub store: PathBuf,
    /// Datasets, by ordinal; what follows is said of each. Empty with a registry: it says it of all that it knows.
    pub datasets: Vec<u32>,
    /// Their name; empty takes it away.
    pub name: Option<String>,
    /// Their owner; empty takes it away.
    pub owner: Option<String>,
    /// Their licence; empty takes it away.
    pub licence: Option<String>,
    /// Folder of registered datasets.
    pub registry: Option<PathBuf>,
}

/// What the store knows now.
#[derive(Clone, Debug, Serialize)]
pub struct Relicensed {
    /// The store.
    pub store: PathBuf,
    /// Its newest generation; the one before if nothing changed.
    pub generation: u64,
    /// What is known of the datasets.
    pub datasets: Vec<DatasetTerms>,
    /// Rows by owner.
    pub owners: Vec<OwnerStats>,
    /// Datasets with rows and without an owner.
    pub without_owner: Vec<u32>,
}

/// Changes names, owners or licences of datasets. Rows, sums per dataset and curvature stay; sums per owner are made of those.
///
/// A registry's datasets are found by the names that the store (or its `lab.json`) gives its own; in a store that has no names
/// ordinals are the registry's, as in a run.
///
/// # Errors
/// Those of [`features::relicense`]; a registry that cannot be opened or knows none of the datasets.
pub fn relicense(request: &RelicenseRequest) -> Result<Relicensed, EngineError> {
    let dir = &request.store;
    let before = FeatureStore::open(dir, None)?;
    let RelicenseRequest { name, owner, licence, .. } = request;
    let one = |&dataset: &u32| DatasetTerms {
        dataset,
        name: name.clone(),
        owner: owner.clone(),
        licence: licence.clone(),
        corpus: None,
    };
    let changes = match &request.registry {
        Some(registry) => of_registry(&before, dir, registry)?,
        None => request.datasets.iter().map(one).collect(),
    };
    let kept = curvature::read_current(dir, &before)?;
    let made = features::relicense(dir, &changes)?;
    let after = FeatureStore::open(dir, None)?;
    if let Some(kept) = kept
        && follows(&before, &made, &after)
    {
        // The rows are the same; only their generation is another.
        curvature::carry(dir, &kept, &after)?;
    }
    let stats = after.stats()?;
    Ok(Relicensed {
        store: dir.clone(),
        generation: stats.generation,
        datasets: after.terms().iter().cloned().collect(),
        owners: stats.owners,
        without_owner: stats.datasets.iter().filter(|d| d.owner.is_none()).map(|d| d.dataset).collect(),
    })
}

/// What a registry says of the store's datasets.
fn of_registry(store: &FeatureStore, dir: &Path, registry: &Path) -> Result<Vec<DatasetTerms>, EngineError> {
    let opened = Registry::open(registry)?;
    let lab = lab_names(dir)?;
    let name_of = |k: u32| {
        let told = store.terms().of_dataset(k).and_then(|terms| terms.name.clone());
        told.or_else(|| lab.as_ref()?.get(k as usize).cloned())
    };
    let is_named = lab.is_some() || store.terms().iter().any(|terms| terms.name.is_some());
    let said = |k: u32| {
        let found = match (name_of(k), is_named) {
            (Some(name), _) => opened.datasets().iter().find(|d| d.name() == name)?,
            (None, false) => opened.datasets().get(k as usize)?,
            (None, true) => return None,
        };
        let text = |text: &str| Some(text.to_owned());
        let (name, owner, licence) = (text(found.name()), text(&found.manifest.owner), text(&found.manifest.licence));
        Some(DatasetTerms { dataset: k, name, owner, licence, corpus: None })
    };
    let changes: Vec<DatasetTerms> = (0..store.generation().n_datasets).filter_map(said).collect();
    if changes.is_empty() {
        let expected = format!("a registry with datasets of {}", dir.display());
        let found = format!("{} others", opened.datasets().len());
        return Err(EngineError::Content { path: registry.to_path_buf(), expected, found });
    }
    Ok(changes)
}

/// Sums of a store.
#[derive(Clone, Debug, Serialize)]
pub struct SumsReport {
    /// Its generation.
    pub generation: u64,
    /// BLAKE3 of the generation's manifest: it pins every row, every sum and every owner.
    pub manifest_blake3: String,
    /// Rows and norm of the sum of each dataset that has rows.
    pub datasets: Vec<DatasetStats>,
    /// The same by owner.
    pub owners: Vec<OwnerStats>,
    /// By query, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queries: Option<Vec<QuerySums>>,
}

/// Scores of one query: inner products with the sums, which are the sums of the rows' scores.
#[derive(Clone, Debug, Serialize)]
pub struct QuerySums {
    /// In the order of [`SumsReport::datasets`].
    pub datasets: Vec<f64>,
    /// In the order of [`SumsReport::owners`].
    pub owners: Vec<f64>,
}

/// Sums per dataset and per owner, and what queries (`.npy`, `[Q, dim]`) score by them. No row is read.
///
/// # Errors
/// Sums that are not the committed ones; rows that are factors; queries of another width.
pub fn sums(dir: &Path, queries: Option<&Path>) -> Result<SumsReport, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    refuse_factors(store.spec())?;
    let stats = store.stats()?;
    let scored = match queries {
        Some(path) => Some(scores(&store, path, &stats.datasets)?),
        None => None,
    };
    Ok(SumsReport {
        generation: stats.generation,
        manifest_blake3: store.manifest_blake3().to_owned(),
        datasets: stats.datasets,
        owners: stats.owners,
        queries: scored,
    })
}

fn scores(store: &FeatureStore, path: &Path, listed: &[DatasetStats]) -> Result<Vec<QuerySums>, EngineError> {
    let queries = read_matrix(path)?;
    if queries.ncols() != store.spec().dim {
        let (expected, found) = (format!("{} numbers a query", store.spec().dim), queries.ncols().to_string());
        return Err(EngineError::Content { path: path.to_path_buf(), expected, found });
    }
    let queries = queries.mapv(f64::from);
    let datasets = dot::dataset_scores(queries.view(), store.dataset_sums()?.sums().view())?;
    let owners = dot::dataset_scores(queries.view(), store.owner_sums()?.sums.sums().view())?;
    let by_query = datasets.outer_iter().zip(owners.outer_iter());
    let of = |(datasets, owners): (ndarray::ArrayView1<'_, f64>, ndarray::ArrayView1<'_, f64>)| QuerySums {
        datasets: listed.iter().map(|d| datasets[d.dataset as usize]).collect(),
        owners: owners.to_vec(),
    };
    Ok(by_query.map(of).collect())
}
