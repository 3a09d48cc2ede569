//! One store of several with disjoint rows, such as the parts of a build in `n` processes.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{ExampleId, FeatureSink as _, Progress};

use super::layout::StoreHeader;
use super::reader::FeatureStore;
use super::terms::DatasetTerms;
use super::writer::FeatureWriter;
use crate::error::StoreError;

/// Rows between two looks at the stop flag.
const CHUNK: usize = 1024;

/// Writes the live rows of all `inputs` to a new store at `out`, in the order of their examples: the bytes depend neither on
/// how the rows were spread over the inputs nor on the order of these. Rows are copied, not coded again. Resumes.
///
/// Cost: one read, one write, 24 bytes of memory for each row.
///
/// # Errors
/// [`StoreError::SpecMismatch`] or [`StoreError::SettingMismatch`], naming the input, if one differs from the first;
/// [`StoreError::DuplicateExample`] if two have the same example; [`StoreError::SettingMismatch`] if two know different things of a dataset; [`StoreError::Shape`] without inputs; damage; those of writing;
/// [`StoreError::Stopped`] on request.
pub fn merge(inputs: &[FeatureStore], out: &Path, progress: &dyn Progress) -> Result<FeatureStore, StoreError> {
    let Some(first) = inputs.first() else {
        return Err(StoreError::Shape {
            what: "stores to merge",
            expected: "at least one".into(),
            found: "none".into(),
        });
    };
    let header = first.header();
    let mut places: Vec<(ExampleId, u32, u32, u32)> = Vec::new();
    for (input, store) in inputs.iter().enumerate() {
        let path = store.paths.header();
        store.header().expect_spec(&path, &header.spec)?;
        let settings = [
            ("row type", header.row_type.name().to_owned(), store.row_type().name().to_owned()),
            ("rows per shard", header.rows_per_shard.to_string(), store.header().rows_per_shard.to_string()),
        ];
        if let Some((setting, expected, found)) = settings.into_iter().find(|(_, a, b)| a != b) {
            return Err(StoreError::SettingMismatch { path, setting, expected, found });
        }
        for i in 0..store.n_shards() {
            let view = store.shard_view(i)?;
            let live = (0..view.n_rows).filter(|&row| view.is_live(row));
            places.extend(live.map(|row| (view.id(row), input as u32, i as u32, row as u32)));
        }
    }
    places.sort_unstable();
    if let Some(at) = places.windows(2).position(|pair| pair[0].0 == pair[1].0) {
        return Err(StoreError::DuplicateExample { id: places[at].0, row: at as u64 + 1 });
    }
    let new = StoreHeader::new(&header.spec, header.row_type, header.rows_per_shard, places.len() as u64);
    let mut writer = FeatureWriter::begin(out, new)?.with_terms(terms(inputs)?);
    progress.start("merge", places.len() as u64, "rows");
    progress.advance(writer.n_committed());
    for chunk in places[writer.n_committed() as usize..].chunks(CHUNK) {
        if progress.stop_requested() {
            return Err(StoreError::Stopped);
        }
        for &(_, input, shard, row) in chunk {
            let view = inputs[input as usize].shard_view(shard as usize)?;
            writer.push_stored(&view, row as usize)?;
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish(&format!("{} rows of {} stores", places.len(), inputs.len()));
    writer.finish()
}

/// What the inputs know of the datasets, together.
fn terms(inputs: &[FeatureStore]) -> Result<Vec<DatasetTerms>, StoreError> {
    let mut all: BTreeMap<u32, &DatasetTerms> = BTreeMap::new();
    for store in inputs {
        for terms in store.terms().iter() {
            let before = all.insert(terms.dataset, terms).filter(|before| *before != terms);
            if let Some(before) = before {
                let (path, setting) = (store.paths.root.clone(), "terms of a dataset");
                let (expected, found) = (format!("{before:?}"), format!("{terms:?}"));
                return Err(StoreError::SettingMismatch { path, setting, expected, found });
            }
        }
    }
    Ok(all.into_values().cloned().collect())
}
