//! Feature stores as such: checking, looking into, converting, merging, exporting, deleting from, compacting.
//!
//! The bytes are `ascribe-store`'s; here is what a person asks for and gets told. [`curvature`] keeps the second moments of a
//! store beside its rows and brings them up to date with it.

pub mod curvature;
pub mod factored;
mod notes;
pub mod owners;
pub mod scoring;
pub mod whitened;

use std::path::{Path, PathBuf};

use ascribe_core::{FeatureReader as _, Progress, RowType};
use ascribe_index::{HnswIndex, IndexError};
use ascribe_store::features::{self, Deletion, ExportFormat, Generation, StoreStats};
use ascribe_store::{FactorFile, FeatureStore, StoreError};
use serde::Serialize;

use crate::error::EngineError;
use crate::files;
use crate::search::INDEX_FOLDER;
use notes::NOTES;

/// What `verify` checked.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The store.
    pub store: PathBuf,
    /// Generation that is open.
    pub generation: u64,
    /// Rows that are not deleted.
    pub n_rows: u64,
    /// Deleted rows that are still in their shards.
    pub n_dead: u64,
    /// Shards.
    pub n_shards: u32,
    /// Bytes checked, companions and what lies beside the rows too.
    pub bytes: u64,
    /// Companions that were checked as well.
    pub companions: Vec<&'static str>,
    /// What else lies beside the rows and was checked: `examples.jsonl` and `lab.json` if `notes.json` names them,
    /// `whitening.safetensors`, `curvature.safetensors`, `hnsw`.
    pub beside: Vec<&'static str>,
}

/// Hashes every file of the store, of its companions, of its curvature and the graphs of its index, and adds up the rows again.
/// `hnsw/index.json` of version 2 has no checksum of its own: it is parsed, and its graphs, spec and settings must fit together.
///
/// # Errors
/// The first file that is not as it was written; a stale companion. Curvature and an index of an earlier generation are whole files
/// as well: they are hashed, and it is no error that they are old.
pub fn verify(dir: &Path) -> Result<Verified, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    let report = store.verify()?;
    let (mut bytes, mut companions) = (report.len_bytes, Vec::new());
    for row_type in RowType::ALL {
        match store.companion(row_type) {
            Ok(companion) => {
                bytes += companion.verify()?.len_bytes;
                companions.push(row_type.name());
            }
            Err(StoreError::Missing { path, .. }) if path.ends_with(format!("{}/store.json", row_type.name())) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut beside = Vec::new();
    let (notes, len_bytes) = features::verify_notes(dir)?;
    bytes += len_bytes;
    beside.extend(NOTES.into_iter().filter(|name| notes.iter().any(|note| note == name)));
    if whitened::Whitened::of(dir, &store)?.is_some() {
        bytes += len_of(&dir.join(whitened::WHITENING_FILE))?;
        beside.push(whitened::WHITENING_FILE);
    }
    let moments = dir.join(curvature::CURVATURE_FILE);
    if moments.exists() {
        FactorFile::read(&moments, Some(store.header().spec_sha256))?;
        bytes += len_of(&moments)?;
        beside.push(curvature::CURVATURE_FILE);
    }
    let index = dir.join(INDEX_FOLDER);
    if index.exists() {
        match HnswIndex::open(&store, &index) {
            Ok(_) => {}
            // Too many rows are newer than the graphs, which were hashed before this was seen (not those of an index of version 1):
            // a search asks for a new build.
            Err(IndexError::SpecMismatch { expected, found, .. }) if expected.spec == found.spec => {}
            Err(error) => return Err(error.into()),
        }
        for entry in std::fs::read_dir(&index).map_err(|error| EngineError::io(&index, error))? {
            bytes += len_of(&entry.map_err(|error| EngineError::io(&index, error))?.path())?;
        }
        beside.push(INDEX_FOLDER);
    }
    Ok(Verified {
        store: dir.to_path_buf(),
        generation: store.generation().generation,
        n_rows: report.n_rows,
        n_dead: report.n_dead,
        n_shards: report.n_shards,
        bytes,
        companions,
        beside,
    })
}

fn len_of(path: &Path) -> Result<u64, EngineError> {
    Ok(std::fs::metadata(path).map_err(|error| EngineError::io(path, error))?.len())
}

/// Numbers of a store.
///
/// # Errors
/// From opening it.
pub fn stats(dir: &Path) -> Result<StoreStats, EngineError> {
    Ok(FeatureStore::open(dir, None)?.stats()?)
}

/// A store that a command made or changed.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Where it is.
    pub store: PathBuf,
    /// How it keeps numbers.
    pub row_type: &'static str,
    /// Its newest generation.
    pub generation: u64,
    /// Rows that are not deleted.
    pub n_rows: u64,
    /// Deleted rows that are still in their shards.
    pub n_dead: u64,
    /// Bytes of shard and side files.
    pub bytes: u64,
}

impl Made {
    fn of(dir: &Path, store: &FeatureStore) -> Self {
        let generation = store.generation();
        Self {
            store: dir.to_path_buf(),
            row_type: store.row_type().name(),
            generation: generation.generation,
            n_rows: store.n_rows(),
            n_dead: generation.n_dead,
            bytes: store.len_bytes(),
        }
    }
}

/// Writes the rows of `dir` to a new store `out` in `row_type`; without `out` makes the companion beside them. A new store gets the notes
/// of the old one (see `notes`).
///
/// # Errors
/// From reading and writing.
pub fn convert(
    dir: &Path,
    row_type: RowType,
    out: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Made, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    match out {
        Some(out) => {
            if let Some(bytes) = whitening(dir)? {
                files::write_atomic(&out.join(whitened::WHITENING_FILE), &bytes)?;
            }
            let made = features::convert(&store, out, row_type, progress)?;
            notes::carry(dir, &store, out)?;
            Ok(Made::of(out, &made))
        }
        None => {
            let made = features::make_companion(&store, row_type, progress)?;
            Ok(Made::of(&dir.join(row_type.name()), &made))
        }
    }
}

/// Merges stores with disjoint rows of one spec.
///
/// # Errors
/// Stores that do not belong together; from reading and writing.
pub fn merge(dirs: &[PathBuf], out: &Path, progress: &dyn Progress) -> Result<Made, EngineError> {
    let stores: Result<Vec<_>, _> = dirs.iter().map(|dir| FeatureStore::open(dir, None)).collect();
    let made = Made::of(out, &features::merge(&stores?, out, progress)?);
    // Parts of one build carry the same notes of all its rows: they are the whole's.
    for name in NOTES {
        let notes = dirs.iter().map(|dir| features::read_note(dir, name)).collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = shared(&notes) {
            features::write_note(out, name, first)?;
        }
    }
    let whitenings = dirs.iter().map(|dir| whitening(dir)).collect::<Result<Vec<_>, _>>()?;
    if let Some(first) = shared(&whitenings) {
        files::write_atomic(&out.join(whitened::WHITENING_FILE), first)?;
    }
    Ok(made)
}

/// What all have, if all have the same.
fn shared(files: &[Option<Vec<u8>>]) -> Option<&[u8]> {
    let first = files.first()?.as_deref()?;
    files.iter().all(|other| other.as_deref() == Some(first)).then_some(first)
}

/// The bytes of a store's whitening, which its spec has the hash of; none if there is none.
fn whitening(dir: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    let path = dir.join(whitened::WHITENING_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::io(&path, error)),
    }
}

/// Files that an export wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Rows in them.
    pub n_rows: u64,
}

/// Writes the live rows to one file; its ending says which format.
///
/// # Errors
/// An ending that is none of ours; from reading and writing.
pub fn export(dir: &Path, out: &Path, progress: &dyn Progress) -> Result<Exported, EngineError> {
    let Some(format) = ExportFormat::of(out) else {
        let expected = "a file that ends in .npy, .safetensors, .arrow, .arrows or .parquet".to_owned();
        return Err(EngineError::Setting { setting: "--out", expected, found: out.display().to_string() });
    };
    let store = FeatureStore::open(dir, None)?;
    Ok(Exported { files: features::export(&store, out, format, progress)?, n_rows: store.n_rows() })
}

/// Deletes rows; the curvature beside them, if there is one, is brought down by them.
///
/// # Errors
/// A dataset or example without rows; from reading and writing.
pub fn delete(dir: &Path, what: &Deletion, progress: &dyn Progress) -> Result<Made, EngineError> {
    let before = FeatureStore::open(dir, None)?;
    let kept = curvature::read_current(dir, &before)?;
    let made = features::delete(dir, what)?;
    let after = FeatureStore::open(dir, None)?;
    if let Some(kept) = kept
        && follows(&before, &made, &after)
    {
        let gone = |id: ascribe_core::ExampleId| what.datasets.contains(&id.dataset) || what.examples.contains(&id);
        curvature::take_out(dir, kept, &before.subset(gone), &after, progress)?;
    }
    Ok(Made::of(dir, &after))
}

/// True if nobody else's commit lies between the generation that was read (`before`), the one that was `made` and the one that is open
/// now. Only then is what was kept of `before` brought up to `after`: the lock of a change does not span what was read before it.
fn follows(before: &FeatureStore, made: &Generation, after: &FeatureStore) -> bool {
    let (was, is) = (before.generation().generation, after.generation().generation);
    is == made.generation && (is == was || is == was + 1)
}

/// Takes the bytes of deleted rows away.
///
/// # Errors
/// From reading and writing.
pub fn compact(dir: &Path) -> Result<Made, EngineError> {
    let before = FeatureStore::open(dir, None)?;
    let kept = curvature::read_current(dir, &before)?;
    let made = features::compact(dir)?;
    let after = FeatureStore::open(dir, None)?;
    if let Some(kept) = kept
        && follows(&before, &made, &after)
    {
        // The rows are the same; only their generation is another.
        curvature::carry(dir, &kept, &after)?;
    }
    Ok(Made::of(dir, &after))
}

/// A commit on an object store.
#[derive(Clone, Debug, Serialize)]
pub struct Pushed {
    /// Its number.
    pub commit: u64,
    /// Generation of the store.
    pub generation: u64,
    /// Rows in it.
    pub n_rows: u64,
}

/// Puts a store onto an object store: `s3://`, `az://` or `gs://BUCKET/PREFIX`, or a folder that is laid out as one. Keys and
/// endpoints come from the environment ([`ascribe_objects::open`]).
///
/// # Errors
/// A place with something that the store was not built on; from reading and writing.
pub fn push(dir: &Path, to: &str, progress: &dyn Progress) -> Result<Pushed, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    let objects = ascribe_objects::open(to, &environment)?;
    let commit = features::push(&store, &*objects, progress)?;
    features::push_notes(dir, &NOTES, &*objects)?;
    // Every generation has the same.
    if let Some(bytes) = whitening(dir)? {
        objects.put_new(whitened::WHITENING_FILE, &bytes)?;
    }
    Ok(Pushed { commit, generation: store.generation().generation, n_rows: store.n_rows() })
}

/// Brings a pushed store into the folder `out`; `from` as in [`push`].
///
/// # Errors
/// A folder that holds something else; from reading and writing.
pub fn pull(from: &str, out: &Path, progress: &dyn Progress) -> Result<Made, EngineError> {
    let objects = ascribe_objects::open(from, &environment)?;
    let store = features::pull(&*objects, out, progress)?;
    features::pull_notes(&*objects, out, &NOTES)?;
    if let Some(bytes) = objects.get(whitened::WHITENING_FILE)? {
        files::write_atomic(&out.join(whitened::WHITENING_FILE), &bytes)?;
    }
    Ok(Made::of(out, &store))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use ascribe_core::{Column, Digest, ExampleId, FeatureSink as _, FeatureSpec, NoProgress, ProjectorSpec};
    use ascribe_store::FeatureWriter;
    use ndarray::Array2;

    use super::*;

    fn spec(projector: ProjectorSpec) -> FeatureSpec {
        FeatureSpec {
            model: Digest::of(b"weights"),
            checkpoint: "final".into(),
            quantity: "gradient".into(),
            loss: "next_token_nll_sum".into(),
            normalizer: "none".into(),
            projector,
            columns: vec![Column { name: "layers.0.up".into(), start: 0, len: 4 }],
            dim: 4,
            corpus: Digest::of(b"corpus"),
        }
    }

    fn push(mut writer: FeatureWriter, dataset: u32, n: u32) {
        let ids: Vec<ExampleId> = (0..n).map(|idx| ExampleId { dataset, idx }).collect();
        let number = |(i, j): (usize, usize)| ((7 * i + 3 * j + dataset as usize) % 11) as f32 - 5.0;
        writer.push(&ids, Array2::from_shape_fn((ids.len(), 4), number).view()).unwrap();
        writer.finish().unwrap();
    }

    fn build(dir: &Path, projector: ProjectorSpec, n: u32) {
        push(FeatureWriter::create_or_resume(dir, &spec(projector), RowType::F32, 8, n.into()).unwrap(), 0, n);
    }

    /// What [`delete`] and [`compact`] read before they take the lock is not what they change, if somebody else commits in between.
    #[test]
    fn moments_are_never_stamped_with_a_generation_that_they_do_not_cover() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        build(dir, ProjectorSpec::Identity, 20);
        curvature::refresh(dir, &NoProgress).unwrap();
        let what = |idx| Deletion { examples: [ExampleId { dataset: 0, idx }].into(), ..Deletion::default() };
        // Nobody else is there: the moments follow.
        delete(dir, &what(3), &NoProgress).unwrap();
        assert_eq!(curvature::refresh(dir, &NoProgress).unwrap().how, "kept");
        // An append between the first look and the lock, for either command.
        for change in [
            |dir: &Path, what: &Deletion| features::delete(dir, what).unwrap(),
            |dir: &Path, _: &Deletion| features::compact(dir).unwrap(),
        ] {
            let before = FeatureStore::open(dir, None).unwrap();
            let n = before.n_rows();
            push(FeatureWriter::append(dir, before.spec(), 5).unwrap(), before.generation().generation as u32, 5);
            let made = change(dir, &what(4));
            let after = FeatureStore::open(dir, None).unwrap();
            assert_eq!(after.generation().generation, before.generation().generation + 2);
            assert!(!follows(&before, &made, &after));
            // Even as the next generation in name: fewer rows were averaged than it has.
            let moments = ascribe_methods::block_fisher::Covariance::fit(&before, &NoProgress).unwrap();
            assert_eq!(moments.n_rows() as u64, n);
            curvature::carry(dir, &moments, &after).unwrap();
            assert!(curvature::read_current(dir, &after).unwrap().is_none());
            assert_eq!(curvature::refresh(dir, &NoProgress).unwrap().n_rows, after.n_rows());
        }
        // One commit after ours, before we look again.
        let before = FeatureStore::open(dir, None).unwrap();
        let made = features::delete(dir, &what(5)).unwrap();
        assert!(follows(&before, &made, &FeatureStore::open(dir, None).unwrap()));
        features::delete(dir, &what(6)).unwrap();
        assert!(!follows(&before, &made, &FeatureStore::open(dir, None).unwrap()));
    }

    #[test]
    fn the_server_does_not_open_factors() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &Path| crate::respond::StoreMaterial::open(dir, None, cache.path(), &NoProgress);
        let factored = dir.path().join("factored");
        build(&factored, ProjectorSpec::Factored { seed: 1, k_in: 3, k_out: 1, rank: 1, version: 1 }, 20);
        let error = open(&factored).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("found factors (LoRIF)"), "{error}");
        let plain = dir.path().join("plain");
        build(&plain, ProjectorSpec::Identity, 20);
        assert!(open(&plain).is_ok());
    }
}
