//! The registry as something that is written to: contributors, datasets and their versions, licences, revocations,
//! disputes. Tables in a database, evidence in the folder.
//!
//! The database is asked and enforces what no file can (one nonce once, one content under one claim); the folder and its
//! log are what an outsider checks, with nothing but [`crate::Registry::verify`]. A message is accepted in three steps:
//! its row is committed with everything needed for the rest; its file and its line in the log are written; the row learns
//! its place in the log. A crash between them leaves a row without a place, and the next program that opens the registry
//! does the rest ([`Registrar::open`]): nothing is lost, nothing stands in the log that the database does not know.

mod accept;
mod add;
mod copy;
mod disputes;
mod list;
mod recover;
mod schema;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ascribe_core::Progress;
use ascribe_sql::{Database, Row, Value};

use crate::error::RegistryError;
use crate::files;
use crate::licence::{LicenceDigest, RegistryDomain};
use crate::log::LOG_FILE;
use crate::registry::Registry;
use crate::settings::{SETTINGS_FILE, Settings};
use crate::tiles;
use crate::verify::VerifyReport;

pub use accept::Accepted;
pub use add::{Added, NewContent};
pub use disputes::Dispute;
pub use list::{DatasetState, LicenceState};

/// An open registry.
pub struct Registrar {
    dir: PathBuf,
    settings: Settings,
    db: Database,
    /// Goes when the registrar goes.
    _lock: File,
}

/// What [`Registrar::verify`] found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verified {
    /// What the folder says by itself.
    #[serde(flatten)]
    pub folder: VerifyReport,
    /// Datasets that nobody has licensed yet; their content was checked.
    pub unlicensed: Vec<String>,
    /// Licences and revocations whose signatures were checked, past ones too.
    pub signatures: u64,
    /// Open disputes.
    pub open_disputes: u64,
}

impl Registrar {
    /// Makes a registry in `dir`, which must not be one yet, with a new key for its licence log.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a folder that is a registry, [`RegistryError::Io`], [`RegistryError::Sql`].
    pub fn init(dir: &Path, settings: &Settings) -> Result<Self, RegistryError> {
        Self::init_with_log_key(dir, settings, None)
    }

    /// The same with the licence log's key in a file elsewhere, which the registry links to (`ascribe log keygen`).
    ///
    /// # Errors
    /// As [`Registrar::init`]; [`RegistryError::Log`] for a file that is no such key.
    pub fn init_with_log_key(dir: &Path, settings: &Settings, key: Option<&Path>) -> Result<Self, RegistryError> {
        if dir.join(SETTINGS_FILE).exists() || dir.join(LOG_FILE).exists() {
            return Err(RegistryError::refused(dir.display(), "a folder that is no registry yet", "one that is"));
        }
        fs::create_dir_all(dir).map_err(RegistryError::io(dir, "creating"))?;
        let lock = recover::lock(dir)?;
        let mut db = Database::open(&settings.database_of(dir))?;
        db.migrate(schema::COMPONENT, &schema::MIGRATIONS)?;
        files::write_atomic(&dir.join(LOG_FILE), b"")?;
        tiles::create(dir, &settings.domain.salt, key)?;
        // Last: a folder with this file is whole.
        files::write_atomic(&dir.join(SETTINGS_FILE), &files::to_json(settings))?;
        Ok(Self { dir: dir.to_owned(), settings: settings.clone(), db, _lock: lock })
    }

    /// Opens the registry in `dir` and finishes what a crash may have left half done. Waits while another program has it
    /// open: one writes at a time.
    ///
    /// # Errors
    /// [`RegistryError::Missing`] without a settings file, [`RegistryError::Sql`], and what recovery meets.
    pub fn open(dir: &Path) -> Result<Self, RegistryError> {
        let settings = Settings::read(dir)?;
        let lock = recover::lock(dir)?;
        let mut db = Database::open(&settings.database_of(dir))?;
        db.migrate(schema::COMPONENT, &schema::MIGRATIONS)?;
        let mut registrar = Self { dir: dir.to_owned(), settings, db, _lock: lock };
        registrar.recover()?;
        Ok(registrar)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What every signature in it is for.
    pub fn domain(&self) -> &RegistryDomain {
        &self.settings.domain
    }

    /// Checks the folder as an outsider would, and that the database says the same.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&mut self, progress: &dyn Progress) -> Result<Verified, RegistryError> {
        let states = self.datasets()?;
        let unlicensed: Vec<String> =
            states.iter().filter(|state| state.licence.is_none()).map(|state| state.name.clone()).collect();
        let registry = self.licensed()?;
        let folder = registry.verify(None, progress)?;
        self.check_log()?;
        let signatures = self.verify_signatures(progress)?;
        for name in &unlicensed {
            self.check_unlicensed(name)?;
        }
        for state in &states {
            let Some(licence) = &state.licence else { continue };
            let dataset = registry.dataset(&state.name).ok_or_else(|| RegistryError::Missing {
                path: self.dir.join(&state.name),
                what: "dataset that the database knows",
            })?;
            let path = dataset.licence_path();
            let digests = [licence.digest, dataset.licence.digest()].map(|digest| digest.to_string());
            crate::licence::check_equal(
                &path,
                "digest of the licence that the database knows",
                &digests[0],
                &digests[1],
            )?;
        }
        let open_disputes = self.db.query("SELECT count(*) FROM disputes WHERE closed_unix_s IS NULL", &[])?;
        Ok(Verified { folder, unlicensed, signatures, open_disputes: open_disputes[0].uint(0)? })
    }

    /// The folder as it is read: the datasets that have a licence.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn licensed(&mut self) -> Result<Registry, RegistryError> {
        let states = self.datasets()?;
        let unlicensed = states.into_iter().filter(|state| state.licence.is_none()).map(|state| state.name).collect();
        Registry::open_without(&self.dir, self.domain().clone(), &unlicensed)
    }

    /// The owner of a dataset, by name or `urn:uuid:…`.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an unknown dataset.
    pub fn owner_of(&mut self, name: &str) -> Result<String, RegistryError> {
        Ok(self.dataset_row("contributor", name)?.text(0)?.to_owned())
    }

    /// Who signed a licence.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an unknown licence.
    pub fn licensor_of(&mut self, licence: LicenceDigest) -> Result<String, RegistryError> {
        let sql = "SELECT licensor FROM signatures WHERE digest = ?1 AND kind = 'licence'";
        let rows = self.db.query(sql, &[licence.0.into()])?;
        let row = rows.first().ok_or_else(|| RegistryError::refused("licence", "one of this registry", licence))?;
        Ok(row.text(0)?.to_owned())
    }

    /// The one row of a dataset, by name or `urn:uuid:…`.
    fn dataset_row(&mut self, columns: &str, name_or_uuid: &str) -> Result<Row, RegistryError> {
        let sql = format!("SELECT {columns} FROM datasets WHERE name = ?1 OR uuid = ?1");
        let mut rows = self.db.query(&sql, &[Value::from(name_or_uuid)])?;
        rows.pop().ok_or_else(|| {
            let what = format!("dataset {name_or_uuid:?}");
            RegistryError::refused(
                what,
                "the name or urn:uuid of a registered one (hint: ascribe registry list)",
                "none",
            )
        })
    }
}

/// Seconds since 1970, now.
pub(crate) fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An integer for a `BIGINT`.
fn int(what: &str, value: u64) -> Result<Value, RegistryError> {
    let fits = i64::try_from(value).map(Value::Int);
    fits.map_err(|_| RegistryError::refused(what, "at most 2^63 - 1", value))
}
