//! Names of the files of a feature store and the two JSON files that describe it as a whole.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, FeatureSpec, RowType};
use serde::{Deserialize, Serialize};

use super::FEATURES_FORMAT_VERSION;
use crate::atomic::{read_capped, write_atomic};
use crate::error::{SpecDifference, StoreError};
use crate::limits::{DIM_MAX, HEADER_MAX_BYTES, ROWS_PER_SHARD_MAX, SHARD_MAX_BYTES};

const NEVER_BEGUN: &str = "this folder is no feature store; run the writing step";
const NOT_FINISHED: &str = "the store is unfinished; run the writing step again, it resumes";

/// `store.json`: what the store is, fixed when it is begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreHeader {
    /// [`FEATURES_FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the store: a UUID (version 8) cut from SHA-256 over spec hash, row type, shard size and row count.
    pub uuid: String,
    /// Hash of `spec`.
    pub spec_sha256: Digest,
    /// How numbers are kept.
    pub row_type: RowType,
    /// Rows of every shard but the last.
    pub rows_per_shard: u32,
    /// Rows of the finished store.
    pub expected_rows: u64,
    /// What the rows are.
    pub spec: FeatureSpec,
}

impl StoreHeader {
    /// The header of a new store.
    pub(crate) fn new(spec: &FeatureSpec, row_type: RowType, rows_per_shard: u32, expected_rows: u64) -> Self {
        let spec_sha256 = spec.hash();
        let key = format!("ascribe-store-v1\n{spec_sha256}\n{row_type:?}\n{rows_per_shard}\n{expected_rows}");
        Self {
            format_version: FEATURES_FORMAT_VERSION,
            uuid: uuid_v8(Digest::of(key.as_bytes())),
            spec_sha256,
            row_type,
            rows_per_shard,
            expected_rows,
            spec: spec.clone(),
        }
    }

    /// Refuses sizes that would overflow or exhaust memory further down.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let too_large = |what, limit: u64, found: u64| Err(StoreError::TooLarge { what, limit, found });
        if self.spec.dim == 0 || self.rows_per_shard == 0 {
            let found = format!("dim {}, {} rows per shard", self.spec.dim, self.rows_per_shard);
            return Err(StoreError::Shape { what: "store", expected: "both at least 1".into(), found });
        }
        if self.spec.dim > DIM_MAX {
            return too_large("numbers in a row", DIM_MAX as u64, self.spec.dim as u64);
        }
        if self.rows_per_shard > ROWS_PER_SHARD_MAX {
            return too_large("rows of a shard", ROWS_PER_SHARD_MAX.into(), self.rows_per_shard.into());
        }
        let shard_bytes = u64::from(self.rows_per_shard) * self.row_bytes() as u64;
        if shard_bytes > SHARD_MAX_BYTES {
            return too_large("bytes of a shard", SHARD_MAX_BYTES, shard_bytes);
        }
        Ok(())
    }

    /// Bytes of one row at rest.
    pub fn row_bytes(&self) -> usize {
        self.spec.dim * self.row_type.len_bytes()
    }

    pub(crate) fn write(&self, paths: &Paths) -> Result<(), StoreError> {
        write_json(&paths.header(), self)
    }

    pub(crate) fn read(paths: &Paths) -> Result<Self, StoreError> {
        let path = paths.header();
        let bytes = read_capped(&path, HEADER_MAX_BYTES, NEVER_BEGUN)?;
        check_version(&path, &bytes)?;
        let header: Self = parse_json(&path, "store header", &bytes)?;
        let found = header.spec.hash();
        if found != header.spec_sha256 {
            let (expected, found) = (header.spec_sha256.to_string(), found.to_string());
            return Err(StoreError::WrongChecksum { path, expected, found });
        }
        let again = Self::new(&header.spec, header.row_type, header.rows_per_shard, header.expected_rows);
        if again.uuid != header.uuid {
            return Err(StoreError::malformed(&path, "uuid", again.uuid, &header.uuid));
        }
        header.check()?;
        Ok(header)
    }

    /// Refuses a store of another spec, naming the first field that differs.
    pub(crate) fn expect_spec(&self, path: &Path, expected: &FeatureSpec) -> Result<(), StoreError> {
        let expected_hash = expected.hash();
        if expected_hash == self.spec_sha256 {
            return Ok(());
        }
        let (field, expected_value, found_value) = first_difference(expected, &self.spec);
        let found = self.spec_sha256;
        let difference = SpecDifference { expected: expected_hash, found, field, expected_value, found_value };
        Err(StoreError::SpecMismatch { path: path.to_path_buf(), difference: Box::new(difference) })
    }
}

/// `MANIFEST.json`: the seal of a complete store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Seal {
    pub format_version: u32,
    pub uuid: String,
    pub spec_sha256: Digest,
    pub n_rows: u64,
    pub n_shards: u32,
    pub n_datasets: u32,
    pub manifest_log_blake3: String,
    pub dataset_sums_blake3: String,
}

impl Seal {
    pub fn write(&self, paths: &Paths) -> Result<(), StoreError> {
        write_json(&paths.seal(), self)
    }

    pub fn read(paths: &Paths) -> Result<Self, StoreError> {
        let path = paths.seal();
        let bytes = read_capped(&path, HEADER_MAX_BYTES, NOT_FINISHED)?;
        check_version(&path, &bytes)?;
        parse_json(&path, "seal", &bytes)
    }
}

/// Where the files of one store are.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub root: PathBuf,
}

impl Paths {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }
    pub fn header(&self) -> PathBuf {
        self.root.join("store.json")
    }
    pub fn seal(&self) -> PathBuf {
        self.root.join("MANIFEST.json")
    }
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest.log")
    }
    pub fn sums(&self) -> PathBuf {
        self.root.join("dataset_sums.safetensors")
    }
    pub fn lock(&self) -> PathBuf {
        self.root.join("writer.lock")
    }
    pub fn shards(&self) -> PathBuf {
        self.root.join("shards")
    }
    pub fn sides(&self) -> PathBuf {
        self.root.join("side")
    }
    pub fn shard(&self, shard_idx: u32) -> PathBuf {
        self.shards().join(format!("s-{shard_idx:06}.safetensors"))
    }
    pub fn side(&self, shard_idx: u32) -> PathBuf {
        self.sides().join(format!("s-{shard_idx:06}.parquet"))
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| StoreError::malformed(path, "JSON", "a value", error))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

pub(crate) fn parse_json<'a, T: Deserialize<'a>>(
    path: &Path,
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::malformed(path, what, "its JSON form", error))
}

/// Reads the version before anything else, so that a newer file is called newer and not broken.
fn check_version(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let found = parse_json::<Version>(path, "format version", bytes)?.format_version;
    if found != FEATURES_FORMAT_VERSION {
        let (path, expected) = (path.to_path_buf(), FEATURES_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "feature store", expected, found });
    }
    Ok(())
}

fn uuid_v8(digest: Digest) -> String {
    let mut b = [0u8; 16];
    b.copy_from_slice(&digest.0[..16]);
    b[6] = (b[6] & 0x0F) | 0x80; // version 8: vendor's own derivation (RFC 9562)
    b[8] = (b[8] & 0x3F) | 0x80; // the RFC's variant
    let hex = hex::encode(b);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// First field in which two specs differ, with both values.
pub(crate) fn first_difference(expected: &FeatureSpec, found: &FeatureSpec) -> (&'static str, String, String) {
    // Destructured in full, so that a field that is added to the spec cannot be forgotten here.
    let FeatureSpec { model, checkpoint, quantity, loss, normalizer, projector, columns, dim, corpus } = expected;
    let fields: [(&'static str, bool, String, String); 9] = [
        ("model", *model == found.model, model.to_string(), found.model.to_string()),
        ("checkpoint", *checkpoint == found.checkpoint, checkpoint.clone(), found.checkpoint.clone()),
        ("quantity", *quantity == found.quantity, quantity.clone(), found.quantity.clone()),
        ("loss", *loss == found.loss, loss.clone(), found.loss.clone()),
        ("normalizer", *normalizer == found.normalizer, normalizer.clone(), found.normalizer.clone()),
        ("projector", *projector == found.projector, format!("{projector:?}"), format!("{:?}", found.projector)),
        ("dim", *dim == found.dim, dim.to_string(), found.dim.to_string()),
        ("corpus", *corpus == found.corpus, corpus.to_string(), found.corpus.to_string()),
        ("columns", *columns == found.columns, names(columns), names(&found.columns)),
    ];
    let differing = fields.into_iter().find(|(_, equal, ..)| !equal);
    differing.map_or(("none", String::new(), String::new()), |(name, _, a, b)| (name, a, b))
}

fn names(columns: &[ascribe_core::Column]) -> String {
    let first: Vec<String> = columns.iter().take(4).map(|c| format!("{}[{}]", c.name, c.len)).collect();
    format!("{} groups: {} …", columns.len(), first.join(", "))
}
