//! Licences and revocations in: checked against everything that is registered, committed, written, logged.

use ascribe_sql::{Transaction, Value};
use serde::Serialize;

use super::{Registrar, int, now_unix_s};
use crate::error::RegistryError;
use crate::files;
use crate::history;
use crate::licence::{LICENCE_FILE, LicenceDigest, LicenceMessage, Licensor};
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::prepare::Grant;
use crate::registry::TERMS_FILE;
use crate::revocation::{REVOCATION_FILE, Revocation, RevocationMessage};
use crate::signed::SignedLicence;

/// How much the clock of a licensor may be behind: a licence from before its content was registered is backdated.
const CLOCK_TOLERANCE_S: u64 = 24 * 3600;

/// A message that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// Its digest.
    pub digest: LicenceDigest,
    /// Its place in the log.
    pub log_index: u64,
    /// `licence` or `revocation`.
    pub kind: &'static str,
    /// Name of the dataset.
    pub dataset: String,
    /// Who signed.
    pub licensor: String,
    /// The nonce that it used up.
    pub nonce: u64,
}

/// A row that waits for its place in the log.
pub(super) struct Pending {
    pub(super) digest: LicenceDigest,
    pub(super) kind: String,
    pub(super) dataset: String,
    pub(super) subject: Option<LicenceDigest>,
    pub(super) document: Vec<u8>,
}

/// A version of a dataset as it was registered.
struct Version {
    uuid: String,
    name: String,
    version: u64,
    manifest: Manifest,
    terms: Vec<u8>,
    added_unix_s: u64,
}

/// The newest licence of a dataset, of whatever version.
struct Newest {
    digest: LicenceDigest,
    licensor: String,
}

impl Registrar {
    /// The message that `licensor` would sign for the current version of a dataset: next nonce, superseding what there is.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an unknown dataset.
    pub fn prepare<L: Licensor>(
        &mut self,
        name: &str,
        licensor: L,
        valid_from: Option<u64>,
        valid_until: u64,
    ) -> Result<LicenceMessage<L>, RegistryError> {
        let (uuid, who) = (self.uuid_of(name)?, licensor.spell());
        let (version, newest, nonce) = self.db.transaction(|tx| {
            let version = current_version(tx, &uuid)?;
            let newest = newest_licence(tx, &uuid)?;
            Ok::<_, RegistryError>((version, newest, last_nonce(tx, &who)? + 1))
        })?;
        let supersedes = newest.map(|newest| newest.digest).unwrap_or_default();
        let grant = Grant { valid_from: valid_from.unwrap_or_else(now_unix_s), valid_until, nonce, supersedes };
        let message = LicenceMessage::of(licensor, &version.manifest, &version.terms, grant);
        message.validate(&self.dir.join(&version.name).join(LICENCE_FILE))?;
        Ok(message)
    }

    /// The message that would revoke a licence (the newest one of a dataset, unless a digest is named).
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a dataset without a licence.
    pub fn prepare_revocation(
        &mut self,
        name: &str,
        effective_from: Option<u64>,
        reason: &str,
    ) -> Result<(String, RevocationMessage), RegistryError> {
        let uuid = self.uuid_of(name)?;
        let found = self.db.transaction(|tx| {
            let newest = newest_licence(tx, &uuid)?;
            let Some(newest) = newest else {
                return Err(RegistryError::refused(format!("dataset {name:?}"), "a licence to revoke", "none"));
            };
            let nonce = last_nonce(tx, &newest.licensor)? + 1;
            Ok((newest, nonce))
        })?;
        let (Newest { digest, licensor }, nonce) = found;
        let effective_from = effective_from.unwrap_or_else(now_unix_s);
        Ok((licensor, RevocationMessage { licence: digest, effective_from, reason: reason.to_owned(), nonce }))
    }

    /// Accepts a signed licence for the current version of the dataset that it names.
    ///
    /// # Errors
    /// Whatever [`SignedLicence::verify`] refuses; [`RegistryError::Refused`] for a licence that is known already, a nonce
    /// that does not rise, one that does not supersede the licence before it or comes from another licensor, one from
    /// before its content was registered, and one that is over.
    pub fn accept(&mut self, licence: &SignedLicence) -> Result<Accepted, RegistryError> {
        let message = licence.message();
        let (dir, domain) = (self.dir.clone(), self.domain().clone());
        let dataset = self.db.transaction(|tx| {
            let version = current_version(tx, &message.dataset)?;
            let path = dir.join(&version.name).join(LICENCE_FILE);
            licence.verify(&path, &domain, &version.manifest, &version.terms)?;
            check_new(tx, licence.digest())?;
            check_nonce(tx, &message.licensor, message.nonce)?;
            check_chain(tx, &version, &message)?;
            check_times(&version, &message)?;
            let document = files::to_json(licence);
            insert(tx, "licence", licence.digest(), &version.uuid, version.version, &message, None, document)?;
            Ok::<_, RegistryError>(version.name)
        })?;
        self.finish(licence.digest(), "licence", dataset, &message.licensor, message.nonce)
    }

    /// Accepts a signed revocation.
    ///
    /// # Errors
    /// As [`Registrar::accept`]; [`RegistryError::Refused`] for a licence that is not known, or was revoked before.
    pub fn revoke(&mut self, revocation: &Revocation) -> Result<Accepted, RegistryError> {
        let domain = self.domain().clone();
        let path = self.dir.join(REVOCATION_FILE);
        let Revocation { message, licensor, digest, .. } = revocation;
        let dataset = self.db.transaction(|tx| {
            let subject = Value::from(message.licence.0);
            let sql = "SELECT s.document, s.uuid, s.version, d.name FROM signatures s JOIN datasets d ON d.uuid = s.uuid \
                       WHERE s.digest = ?1 AND s.kind = 'licence'";
            let rows = tx.query(sql, std::slice::from_ref(&subject))?;
            let Some(row) = rows.first() else {
                return Err(RegistryError::refused("revocation", "a licence of this registry", message.licence));
            };
            let licence: SignedLicence = files::parse_json(&path, row.bytes(0)?)?;
            history::check_revocation(&path, revocation, &licence, &domain)?;
            if !tx.query("SELECT 1 FROM signatures WHERE subject = ?1", &[subject])?.is_empty() {
                let what = format!("licence {}", message.licence);
                return Err(RegistryError::refused(what, "one that was not revoked yet", "a revoked one"));
            }
            check_new(tx, *digest)?;
            check_nonce(tx, licensor, message.nonce)?;
            let as_licence = LicenceMessage {
                nonce: message.nonce,
                valid_from: message.effective_from,
                valid_until: 0,
                ..licence.message()
            };
            let document = files::to_json(revocation);
            let (uuid, version) = (row.text(1)?.to_owned(), row.uint(2)?);
            insert(tx, "revocation", *digest, &uuid, version, &as_licence, Some(message.licence), document)?;
            Ok(row.text(3)?.to_owned())
        })?;
        self.finish(*digest, "revocation", dataset, licensor, message.nonce)
    }

    fn finish(
        &mut self,
        digest: LicenceDigest,
        kind: &'static str,
        dataset: String,
        licensor: &str,
        nonce: u64,
    ) -> Result<Accepted, RegistryError> {
        self.finish_pending()?;
        let rows = self.db.query("SELECT log_index FROM signatures WHERE digest = ?1", &[digest.0.into()])?;
        let log_index = rows[0].uint(0)?;
        Ok(Accepted { digest, log_index, kind, dataset, licensor: licensor.to_owned(), nonce })
    }

    /// Writes the file of an accepted message into the folder.
    pub(super) fn write_evidence(&self, pending: &Pending) -> Result<(), RegistryError> {
        let dir = self.dir.join(&pending.dataset);
        match pending.subject {
            None => {
                keep_current(&dir, Some(pending.digest))?;
                files::write_atomic(&dir.join(LICENCE_FILE), &pending.document)
            }
            Some(licence) => {
                let past = dir.join(history::HISTORY_DIR).join(licence.to_string());
                let place = if past.is_dir() { past } else { dir };
                files::write_atomic(&place.join(REVOCATION_FILE), &pending.document)
            }
        }
    }

    fn uuid_of(&mut self, name: &str) -> Result<String, RegistryError> {
        Ok(self.dataset_row("uuid", name)?.text(0)?.to_owned())
    }
}

/// Moves the current licence of a dataset into its history, unless it is `but`. Can be done again after a crash.
pub(super) fn keep_current(dir: &std::path::Path, but: Option<LicenceDigest>) -> Result<(), RegistryError> {
    let path = dir.join(LICENCE_FILE);
    if !path.exists() {
        return Ok(());
    }
    let licence: SignedLicence = files::parse_json(&path, &files::read_small(&path, "licence")?)?;
    let digest = licence.digest();
    if but == Some(digest) {
        return Ok(());
    }
    let past = dir.join(history::HISTORY_DIR).join(digest.to_string());
    std::fs::create_dir_all(&past).map_err(RegistryError::io(&past, "creating"))?;
    for file in [TERMS_FILE, MANIFEST_FILE, LICENCE_FILE] {
        files::write_atomic(&past.join(file), &files::read_small(&dir.join(file), "file of a licence")?)?;
    }
    let revocation = dir.join(REVOCATION_FILE);
    if revocation.exists() {
        files::write_atomic(&past.join(REVOCATION_FILE), &files::read_small(&revocation, "revocation")?)?;
        std::fs::remove_file(&revocation).map_err(RegistryError::io(&revocation, "removing"))?;
    }
    std::fs::remove_file(&path).map_err(RegistryError::io(&path, "removing"))
}

fn current_version(tx: &mut Transaction<'_>, uuid: &str) -> Result<Version, RegistryError> {
    let sql = "SELECT d.name, v.version, v.manifest, v.terms, v.added_unix_s FROM datasets d \
               JOIN dataset_versions v ON v.uuid = d.uuid AND v.version = d.version WHERE d.uuid = ?1";
    let rows = tx.query(sql, &[uuid.into()])?;
    let Some(row) = rows.first() else {
        return Err(RegistryError::refused("message.dataset", "the urn:uuid of a registered dataset", uuid));
    };
    let name = row.text(0)?.to_owned();
    let path = std::path::PathBuf::from(&name).join(MANIFEST_FILE);
    Ok(Version {
        uuid: uuid.to_owned(),
        version: row.uint(1)?,
        manifest: files::parse_json(&path, row.bytes(2)?)?,
        terms: row.bytes(3)?.to_vec(),
        added_unix_s: row.uint(4)?,
        name,
    })
}

fn newest_licence(tx: &mut Transaction<'_>, uuid: &str) -> Result<Option<Newest>, RegistryError> {
    // Of one licensor nonces rise, and only the first licensor of a dataset may supersede: the highest is the newest.
    let sql =
        "SELECT digest, licensor FROM signatures WHERE uuid = ?1 AND kind = 'licence' ORDER BY nonce DESC LIMIT 1";
    let rows = tx.query(sql, &[uuid.into()])?;
    let newest = |row: &ascribe_sql::Row| -> Result<Newest, RegistryError> {
        Ok(Newest { digest: LicenceDigest(row.array(0)?), licensor: row.text(1)?.to_owned() })
    };
    rows.first().map(newest).transpose()
}

fn last_nonce(tx: &mut Transaction<'_>, licensor: &str) -> Result<u64, RegistryError> {
    let rows = tx.query("SELECT max(nonce) FROM signatures WHERE licensor = ?1", &[licensor.into()])?;
    if rows[0].is_null(0) { Ok(0) } else { Ok(rows[0].uint(0)?) }
}

fn check_new(tx: &mut Transaction<'_>, digest: LicenceDigest) -> Result<(), RegistryError> {
    let rows = tx.query("SELECT log_index FROM signatures WHERE digest = ?1", &[digest.0.into()])?;
    match rows.first() {
        None => Ok(()),
        Some(_) => {
            Err(RegistryError::refused("message", "one that was not registered before", format!("{digest} again")))
        }
    }
}

fn check_nonce(tx: &mut Transaction<'_>, licensor: &str, nonce: u64) -> Result<(), RegistryError> {
    let last = last_nonce(tx, licensor)?;
    if nonce > last {
        return Ok(());
    }
    let expected = format!("more than {last}, the highest one that {licensor} used");
    Err(RegistryError::refused("message.nonce", expected, nonce))
}

/// A dataset has one line of licences by one licensor, each naming the one before it.
fn check_chain(
    tx: &mut Transaction<'_>,
    version: &Version,
    message: &LicenceMessage<String>,
) -> Result<(), RegistryError> {
    let newest = newest_licence(tx, &version.uuid)?;
    let expected = newest.as_ref().map(|newest| newest.digest).unwrap_or_default();
    if let Some(newest) = &newest
        && newest.licensor != message.licensor
    {
        let what = format!("licensor of dataset {:?}", version.name);
        let found = format!("{} (hint: if the data is yours, ascribe registry dispute)", message.licensor);
        return Err(RegistryError::refused(what, &newest.licensor, found));
    }
    if message.supersedes != expected {
        return Err(RegistryError::refused("message.supersedes", expected, message.supersedes));
    }
    Ok(())
}

fn check_times(version: &Version, message: &LicenceMessage<String>) -> Result<(), RegistryError> {
    let earliest = version.added_unix_s.saturating_sub(CLOCK_TOLERANCE_S);
    if message.valid_from < earliest {
        let expected = format!(
            "at least {earliest}, when the content was registered (hint: a licence covers runs that begin after it)"
        );
        return Err(RegistryError::refused("message.validFrom", expected, message.valid_from));
    }
    let now = now_unix_s();
    if message.valid_until != 0 && message.valid_until <= now {
        return Err(RegistryError::refused(
            "message.validUntil",
            format!("0 or more than {now}, now"),
            message.valid_until,
        ));
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one argument a column")]
fn insert(
    tx: &mut Transaction<'_>,
    kind: &str,
    digest: LicenceDigest,
    uuid: &str,
    version: u64,
    message: &LicenceMessage<String>,
    subject: Option<LicenceDigest>,
    document: Vec<u8>,
) -> Result<(), RegistryError> {
    let sql = "INSERT INTO signatures (digest, kind, uuid, version, licensor, nonce, subject, valid_from, valid_until, \
               document, accepted_unix_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let values = [
        digest.0.into(),
        kind.into(),
        uuid.into(),
        int("version", version)?,
        message.licensor.as_str().into(),
        int("message.nonce", message.nonce)?,
        subject.map(|subject| subject.0).into(),
        int("message.validFrom", message.valid_from)?,
        int("message.validUntil", message.valid_until)?,
        document.into(),
        int("time", now_unix_s())?,
    ];
    tx.execute(sql, &values)?;
    Ok(())
}
