//! `sources.json`: records that were registered where they lie, without a copy. The content root pins them all the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::files;
use crate::licence::check_equal;
use crate::source::{Fields, SourceFormat, SourceSet};

/// Version of the file that this code reads and writes.
pub const SOURCES_FORMAT_VERSION: u32 = 1;

/// Name of the file.
pub(crate) const SOURCES_FILE: &str = "sources.json";

/// Where the records of a dataset lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    format_version: u32,
    /// Folder, or the one file.
    root: PathBuf,
    format: SourceFormat,
    /// Files relative to the folder, in order; empty when the root is the file.
    files: Vec<PathBuf>,
    fields: Fields,
}

impl Reference {
    /// Says where the files of a set lie.
    ///
    /// # Errors
    /// [`RegistryError::Io`] when the folder has no absolute path.
    pub(crate) fn new(set: &SourceSet, fields: &Fields) -> Result<Self, RegistryError> {
        let root = set.root.canonicalize().map_err(RegistryError::io(&set.root, "finding"))?;
        let below = |file: &PathBuf| file.strip_prefix(&set.root).ok().map(Path::to_owned);
        let files = set.files.iter().filter_map(below).filter(|file| !file.as_os_str().is_empty()).collect();
        Ok(Self { format_version: SOURCES_FORMAT_VERSION, root, format: set.format, files, fields: fields.clone() })
    }

    /// The reference of the dataset in `dir`, if its records were not copied.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, RegistryError> {
        let path = dir.join(SOURCES_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let reference: Self = files::parse_json(&path, &files::read_small(&path, "list of sources")?)?;
        let version = [SOURCES_FORMAT_VERSION, reference.format_version].map(|version| version.to_string());
        check_equal(&path, "format_version", &version[0], &version[1])?;
        Ok(Some(reference))
    }

    /// The files, in order.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        if self.files.is_empty() {
            vec![self.root.clone()]
        } else {
            self.files.iter().map(|file| self.root.join(file)).collect()
        }
    }

    pub(crate) fn fields(&self) -> &Fields {
        &self.fields
    }

    pub(crate) fn format(&self) -> SourceFormat {
        self.format
    }

    /// The files as a source.
    ///
    /// # Errors
    /// A file that is not there any more.
    pub(crate) fn set(&self) -> Result<SourceSet, RegistryError> {
        SourceSet::again(&self.root, self.format, self.paths())
    }
}
