//! `registry.json`: which registry a folder is, and where its database lies. The demo registry has none.

use std::path::{Path, PathBuf};

use alloy_primitives::keccak256;
use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::files;
use crate::licence::{RegistryDomain, check_equal};

/// Version of the settings file that this code reads and writes.
pub const SETTINGS_FORMAT_VERSION: u32 = 1;

/// Name of the settings file of a registry.
pub const SETTINGS_FILE: &str = "registry.json";

/// The embedded database of those who name none, beside the settings file.
pub const DEFAULT_DATABASE: &str = "sqlite:registry.db";

/// What a registry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// [`SETTINGS_FORMAT_VERSION`].
    pub format_version: u32,
    /// What every signature is for.
    pub domain: RegistryDomain,
    /// `sqlite:PATH`, relative to the folder, or `postgresql://…` without a password (the server's own files hold that).
    pub database: String,
}

impl Settings {
    /// The settings of a new registry: `salt` is the keccak256 of its name for people.
    pub fn new(name: &str, chain_id: u64, database: &str) -> Self {
        let domain = RegistryDomain { chain_id, salt: keccak256(name).0, ..RegistryDomain::demo() };
        Self { format_version: SETTINGS_FORMAT_VERSION, domain, database: database.to_owned() }
    }

    /// A name that no other registry has: 128 random bits in hex.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when the system has no random numbers.
    pub fn random_name() -> Result<String, RegistryError> {
        let mut bits = [0u8; 16];
        getrandom::fill(&mut bits).map_err(|error| RegistryError::refused("random numbers", "some", error))?;
        Ok(format!("registry {}", hex::encode(bits)))
    }

    /// Reads the settings of the registry in `dir`.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Json`], [`RegistryError::Field`].
    pub fn read(dir: &Path) -> Result<Self, RegistryError> {
        let path = dir.join(SETTINGS_FILE);
        let settings: Self = files::parse_json(&path, &files::read_small(&path, "settings of a registry")?)?;
        let version = [SETTINGS_FORMAT_VERSION, settings.format_version].map(|version| version.to_string());
        check_equal(&path, "format_version", &version[0], &version[1])?;
        let demo = RegistryDomain::demo();
        check_equal(&path, "domain.name", &demo.name, &settings.domain.name)?;
        check_equal(&path, "domain.version", &demo.version, &settings.domain.version)?;
        Ok(settings)
    }

    /// The domain of the registry in `dir`: the demo one without a settings file.
    pub(crate) fn domain_of(dir: &Path) -> Result<RegistryDomain, RegistryError> {
        if dir.join(SETTINGS_FILE).exists() { Ok(Self::read(dir)?.domain) } else { Ok(RegistryDomain::demo()) }
    }

    /// Address of the database of the registry in `dir`.
    pub(crate) fn database_of(&self, dir: &Path) -> String {
        match self.database.strip_prefix("sqlite:").map(Path::new) {
            Some(path) if path.is_relative() && self.database != "sqlite::memory:" => {
                format!("sqlite:{}", dir.join(path).display())
            }
            _ => self.database.clone(),
        }
    }

    /// The nearest folder with a settings file, at `start` or above it.
    pub fn find_dir(start: &Path) -> Option<PathBuf> {
        start.ancestors().find(|dir| dir.join(SETTINGS_FILE).is_file()).map(Path::to_owned)
    }
}
