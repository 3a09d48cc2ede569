//! Names of the files of a feature store, and `store.json`, which says what the store is.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, FeatureSpec, RowType};
use serde::{Deserialize, Serialize};

use super::sealed::{self, NO_CHECKSUM};
use super::{FEATURES_FORMAT_VERSION, ROW_ALIGN};
use crate::atomic::read_capped;
use crate::error::{SpecDifference, StoreError};
use crate::limits::{DIM_MAX, HEADER_MAX_BYTES, ROWS_PER_SHARD_MAX, SHARD_MAX_BYTES};

const NEVER_BEGUN: &str = "this folder is no feature store; run the writing step";

/// `store.json`: what the store is, fixed when it is begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreHeader {
    /// [`FEATURES_FORMAT_VERSION`], or an older one.
    pub format_version: u32,
    /// Name of the store: a UUID (version 8) cut from SHA-256 over spec hash, row type, shard size and row count, and what
    /// a companion belongs to.
    pub uuid: String,
    /// Hash of `spec`.
    pub spec_sha256: Digest,
    /// How numbers are kept.
    pub row_type: RowType,
    /// Rows of a full shard.
    pub rows_per_shard: u32,
    /// Rows of the first generation.
    pub expected_rows: u64,
    /// Bytes from one row to the next: a whole number of [`ROW_ALIGN`] from version 2 on.
    #[serde(default)]
    pub stride_bytes: u64,
    /// The store whose rows these are, in fewer bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companion_of: Option<CompanionOf>,
    /// What the rows are.
    pub spec: FeatureSpec,
    /// See [`sealed`].
    #[serde(default)]
    pub(crate) checksum: String,
}

/// What ties a companion to its store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CompanionOf {
    /// The store's uuid.
    pub uuid: String,
    /// Its generation when the companion was made.
    pub generation: u64,
    /// Checksum of that generation's manifest.
    pub manifest_blake3: String,
    /// [`super::FeatureStore::rows_blake3`]: it stays as long as the shards do, so that deletions leave a companion valid.
    pub rows_blake3: String,
}

impl StoreHeader {
    /// The header of a new store.
    pub(crate) fn new(spec: &FeatureSpec, row_type: RowType, rows_per_shard: u32, expected_rows: u64) -> Self {
        let mut header = Self {
            format_version: FEATURES_FORMAT_VERSION,
            uuid: String::new(),
            spec_sha256: spec.hash(),
            row_type,
            rows_per_shard,
            expected_rows,
            stride_bytes: (row_type.row_bytes(spec.dim) as u64).next_multiple_of(ROW_ALIGN as u64),
            companion_of: None,
            spec: spec.clone(),
            checksum: NO_CHECKSUM.to_owned(),
        };
        header.uuid = header.derived_uuid();
        header
    }

    /// The same for a companion.
    pub(crate) fn companion(mut self, of: CompanionOf) -> Self {
        self.companion_of = Some(of);
        self.uuid = self.derived_uuid();
        self
    }

    fn derived_uuid(&self) -> String {
        let Self { format_version, spec_sha256, row_type, rows_per_shard, expected_rows, companion_of, .. } = self;
        let mut key =
            format!("ascribe-store-v{format_version}\n{spec_sha256}\n{row_type:?}\n{rows_per_shard}\n{expected_rows}");
        if let Some(of) = companion_of {
            key += &format!("\n{}\n{}", of.uuid, of.rows_blake3);
        }
        uuid_v8(Digest::of(key.as_bytes()))
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
        let shard_bytes = u64::from(self.rows_per_shard) * self.stride() as u64;
        if shard_bytes > SHARD_MAX_BYTES {
            return too_large("bytes of a shard", SHARD_MAX_BYTES, shard_bytes);
        }
        Ok(())
    }

    /// True for the first format: rows without padding, `MANIFEST.json`, no error bounds.
    pub(crate) fn is_v1(&self) -> bool {
        self.format_version == 1
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        let packed = self.row_type.row_bytes(self.spec.dim);
        if self.is_v1() { packed } else { packed.next_multiple_of(ROW_ALIGN) }
    }

    /// Numbers from one row to the next, as the shape of the tensor says (bytes for int4).
    pub(crate) fn stride_numbers(&self) -> usize {
        match self.row_type {
            RowType::Int4 => self.stride(),
            other => self.stride() * 8 / other.bits(),
        }
    }

    pub(crate) fn write(&self, paths: &Paths) -> Result<(), StoreError> {
        sealed::write(&paths.header(), self)
    }

    pub(crate) fn read(paths: &Paths) -> Result<Self, StoreError> {
        let path = paths.header();
        Self::parse(&path, &read_capped(&path, HEADER_MAX_BYTES, NEVER_BEGUN)?)
    }

    /// Reads the bytes of a `store.json` that came from `path`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let version = check_version(path, bytes)?;
        let mut header: Self = parse_json(path, "store header", bytes)?;
        if version > 1 {
            sealed::check(path, bytes, &header.checksum)?;
        }
        header.checksum = NO_CHECKSUM.to_owned();
        let found = header.spec.hash();
        if found != header.spec_sha256 {
            let (expected, found) = (header.spec_sha256.to_string(), found.to_string());
            return Err(StoreError::WrongChecksum { path: path.to_path_buf(), expected, found });
        }
        let uuid = header.derived_uuid();
        if uuid != header.uuid {
            return Err(StoreError::malformed(path, "uuid", uuid, &header.uuid));
        }
        header.check()?;
        if header.is_v1() == (header.stride_bytes != 0)
            || (!header.is_v1() && header.stride_bytes != header.stride() as u64)
        {
            return Err(StoreError::malformed(path, "stride_bytes", header.stride(), header.stride_bytes));
        }
        header.spec.columns.iter().try_for_each(|c| {
            let is_inside = c.start.checked_add(c.len).is_some_and(|end| end <= header.spec.dim);
            let expected = format!("columns below {}", header.spec.dim);
            let found = || format!("`{}` from {} on, {} of them", c.name, c.start, c.len);
            is_inside.then_some(()).ok_or_else(|| StoreError::malformed(path, "columns", expected, found()))
        })?;
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

    /// The rows that a companion was made of.
    fn rows_of(&self) -> String {
        self.companion_of
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), |of| format!("{} of {}", of.rows_blake3, of.uuid))
    }

    /// Refuses a store that was begun with other settings.
    pub(crate) fn expect_settings(&self, path: &Path, expected: &Self) -> Result<(), StoreError> {
        self.expect_spec(path, &expected.spec)?;
        let settings = [
            ("row type", expected.row_type.name().to_owned(), self.row_type.name().to_owned()),
            ("rows per shard", expected.rows_per_shard.to_string(), self.rows_per_shard.to_string()),
            ("expected rows", expected.expected_rows.to_string(), self.expected_rows.to_string()),
            ("companion of", expected.rows_of(), self.rows_of()),
        ];
        match settings.into_iter().find(|(_, a, b)| a != b) {
            Some((setting, expected, found)) => {
                Err(StoreError::SettingMismatch { path: path.to_path_buf(), setting, expected, found })
            }
            None => Ok(()),
        }
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
    /// The seal of a store of version 1.
    pub fn seal_v1(&self) -> PathBuf {
        self.root.join("MANIFEST.json")
    }
    pub fn current(&self) -> PathBuf {
        self.root.join("CURRENT")
    }
    pub fn pending(&self) -> PathBuf {
        self.root.join("PENDING.json")
    }
    pub fn generation(&self, generation: u64) -> PathBuf {
        self.root.join(format!("MANIFEST-{generation:06}.json"))
    }
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest.log")
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
    /// Folder of the companion in `row_type`.
    pub fn companion(&self, row_type: RowType) -> PathBuf {
        self.root.join(row_type.name())
    }
}

pub(crate) fn parse_json<'a, T: Deserialize<'a>>(
    path: &Path,
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::malformed(path, what, "its JSON form", error))
}

/// Reads the version before anything else, so that a newer file is called newer and not broken.
pub(crate) fn check_version(path: &Path, bytes: &[u8]) -> Result<u32, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let found = parse_json::<Version>(path, "format version", bytes)?.format_version;
    if found == 0 || found > FEATURES_FORMAT_VERSION {
        let (path, expected) = (path.to_path_buf(), FEATURES_FORMAT_VERSION);
        return Err(StoreError::WrongVersion { path, format: "feature store", expected, found });
    }
    Ok(found)
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
