//! Datasets of another store put behind those of this one: what a new supplier's rows become part of.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader as _, FeatureSink as _, FeatureSpec, Progress};

use super::ShardView;
use super::convert::copy_rows;
use super::reader::FeatureStore;
use super::terms::DatasetTerms;
use super::writer::FeatureWriter;
use crate::error::StoreError;

/// Ordinals of datasets there and here.
pub type Numbering = BTreeMap<u32, u32>;

/// Under which ordinals the datasets of `from` would stand in `store`: their own if both are of one corpus (parts of one build),
/// else the first free ones, in their order. `given` overrides.
///
/// # Errors
/// [`StoreError::SpecMismatch`] if rows are of another model, checkpoint, quantity or projection; [`StoreError::NoSuchRow`] for a
/// dataset that `from` has no row of; [`StoreError::Shape`] for two datasets under one ordinal, or one of another corpus under an
/// ordinal that has rows; [`StoreError::DuplicateExample`] for an example that is there.
pub fn numbering(store: &FeatureStore, from: &FeatureStore, given: &Numbering) -> Result<Numbering, StoreError> {
    let (ours, theirs) = (store.spec(), from.spec());
    let as_ours = FeatureSpec { corpus: ours.corpus, ..theirs.clone() };
    if as_ours.hash() != ours.hash() {
        from.header().expect_spec(&from.paths.header(), &FeatureSpec { corpus: theirs.corpus, ..ours.clone() })?;
    }
    let datasets: BTreeSet<u32> = from.ids().map(|id| id.dataset).collect();
    if let Some(&missing) = given.keys().find(|k| !datasets.contains(k)) {
        return Err(StoreError::NoSuchRow {
            path: from.paths.root.clone(),
            what: format!("a row of dataset {missing}"),
        });
    }
    let is_one_corpus = ours.corpus == theirs.corpus;
    let mut free = store.generation().n_datasets;
    let mut next_free = || {
        free += 1;
        free - 1
    };
    let place = |k: u32| (k, given.get(&k).copied().unwrap_or_else(|| if is_one_corpus { k } else { next_free() }));
    let found: Numbering = datasets.into_iter().map(place).collect();
    let mut taken = BTreeSet::new();
    let has_rows: HashSet<u32> =
        if is_one_corpus { HashSet::new() } else { store.ids().map(|id| id.dataset).collect() };
    for (&there, &here) in &found {
        if !taken.insert(here) || has_rows.contains(&here) {
            let expected = "an ordinal of its own for every dataset".to_owned();
            return Err(StoreError::Shape { what: "datasets to add", expected, found: format!("{there} as {here}") });
        }
    }
    let ids: HashSet<u64> = store.ids().map(|id| id.to_u64()).collect();
    let mut coming = from.ids().map(|id| placed(id, &found)).zip(store.n_rows()..);
    match coming.find(|(id, _)| ids.contains(&id.to_u64())) {
        Some((id, row)) => Err(StoreError::DuplicateExample { id, row }),
        None => Ok(found),
    }
}

/// Appends the live rows of `from` to the store at `dir`, their datasets under the ordinals of `numbering`, with what `terms` say of
/// these; the whole is one generation. Rows of the same type are copied, others coded again. After a kill the same call resumes.
///
/// Cost: one read and one write of the new rows, one of the sums; rows that are there are not read but for their ids.
///
/// # Errors
/// Those of [`numbering`], before anything is written; those of [`FeatureWriter::append`] and of writing; [`StoreError::Stopped`] on
/// request.
pub fn add(
    dir: &Path,
    from: &FeatureStore,
    numbering: &Numbering,
    terms: &[DatasetTerms],
    progress: &dyn Progress,
) -> Result<FeatureStore, StoreError> {
    let store = FeatureStore::open(dir, None)?;
    let numbering = self::numbering(&store, from, numbering)?;
    let other_corpus = (store.spec().corpus != from.spec().corpus).then_some(from.spec().corpus);
    let of_corpus = numbering.values().filter_map(|&dataset| {
        other_corpus.map(|corpus| DatasetTerms { dataset, corpus: Some(corpus), ..DatasetTerms::default() })
    });
    let known =
        from.terms().iter().filter_map(|t| Some(DatasetTerms { dataset: *numbering.get(&t.dataset)?, ..t.clone() }));
    let terms: Vec<DatasetTerms> = of_corpus.chain(known).chain(terms.iter().cloned()).collect();
    let mut writer = FeatureWriter::append(dir, store.spec(), from.n_rows())?.with_terms(terms);
    progress.start("add", from.n_rows(), "rows");
    progress.advance(writer.n_committed());
    let mut skip = writer.n_committed();
    for i in 0..from.n_shards() {
        let view = from.shard_view(i)?;
        let ids: Vec<u64> = (0..view.n_rows).map(|row| placed_or_dead(&view, row, &numbering).to_u64()).collect();
        let live: Vec<usize> = (0..view.n_rows).filter(|&row| view.is_live(row)).collect();
        let done = skip.min(live.len() as u64);
        skip -= done;
        copy_rows(&ShardView { ids: &ids, ..view }, &live[done as usize..], &mut writer, progress, true)?;
    }
    progress.finish(&format!("{} rows", from.n_rows()));
    writer.finish()
}

fn placed(id: ExampleId, numbering: &Numbering) -> ExampleId {
    ExampleId { dataset: numbering[&id.dataset], ..id }
}

/// The place of a row; a dead one's dataset may have none, and nobody looks at it.
fn placed_or_dead(view: &ShardView<'_>, row: usize, numbering: &Numbering) -> ExampleId {
    let id = view.id(row);
    if numbering.contains_key(&id.dataset) { placed(id, numbering) } else { id }
}
