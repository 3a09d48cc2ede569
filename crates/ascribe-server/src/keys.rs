//! API keys: who may ask what, how often, until when. The file holds hashes only.
//!
//! A key is `ask_ID_SECRET`: the id is found in the file, the secret is 256 random bits, so that one SHA-256 is as good as a slow
//! hash (nobody guesses it), and comparing takes the same time whatever differs.

use std::collections::BTreeSet;
use std::path::Path;

use ascribe_core::Digest;
use ascribe_tlog::random_bytes;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::ServerError;
use crate::problem::Problem;

/// Version of the key file.
pub const API_KEYS_VERSION: u32 = 1;
const PREFIX: &str = "ask_";

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Ask for attributions.
    Attribute,
    /// Read datasets, receipts, statements.
    Read,
    /// Reload and look at the audit.
    Admin,
}

/// One key, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// Id: the part of the key that may be known.
    pub id: String,
    /// SHA-256 of the whole key, hex.
    pub sha256: Digest,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// Last moment, RFC 3339; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Requests a second; the server's default without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The key file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// [`API_KEYS_VERSION`].
    pub format_version: u32,
    /// Keys.
    pub keys: Vec<KeyEntry>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Id of the key, or `anonymous`.
    pub id: String,
    /// Requests a second; 0 for no limit.
    pub per_second: u32,
}

impl KeyFile {
    /// Reads a key file.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let bytes = std::fs::read(path).map_err(|e| ServerError::io(path, e))?;
        let content = |expected: &str, found: String| ServerError::Content {
            path: path.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let file: Self = serde_json::from_slice(&bytes).map_err(|e| content("a file of API keys", e.to_string()))?;
        if file.format_version != API_KEYS_VERSION {
            return Err(content(&format!("format_version {API_KEYS_VERSION}"), file.format_version.to_string()));
        }
        let mut seen = BTreeSet::new();
        for key in &file.keys {
            if key.id.is_empty() || key.id.len() > 64 || !key.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            {
                return Err(content("ids of letters, digits and -", format!("{:?}", key.id)));
            }
            if !seen.insert(&key.id) {
                return Err(content("each id once", format!("{:?} twice", key.id)));
            }
            if let Some(expires) = key.expires.as_deref().filter(|e| OffsetDateTime::parse(e, &Rfc3339).is_err()) {
                return Err(content("moments in RFC 3339", format!("{expires:?} of key {:?}", key.id)));
            }
        }
        Ok(file)
    }

    /// Writes the file, readable by its owner alone.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, path: &Path) -> Result<(), ServerError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| ServerError::Load(e.to_string()))?;
        write_private(path, &[&bytes[..], b"\n"].concat())
    }

    /// Adds a key and returns it: the only time that its secret is seen.
    ///
    /// # Errors
    /// No random bytes; an id that is there.
    pub fn add(&mut self, entry: KeyEntry) -> Result<String, ServerError> {
        if self.keys.iter().any(|key| key.id == entry.id) {
            return Err(ServerError::Load(format!("key {:?}: expected a new id, found one that is there", entry.id)));
        }
        let secret = random_bytes()?;
        let key = format!("{PREFIX}{}_{}", entry.id, hex::encode(&secret[..]));
        self.keys.push(KeyEntry { sha256: Digest::of(key.as_bytes()), ..entry });
        Ok(key)
    }

    /// Who has this key, if it may do `scope` now.
    ///
    /// # Errors
    /// 401 for a key that is unknown, false or expired; 403 for one without the scope.
    pub fn check(&self, key: &str, scope: Scope, now: OffsetDateTime) -> Result<Caller, Problem> {
        let unknown = || Problem::unauthorized("expected a valid API key, found an unknown one");
        let id =
            key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map(|(id, _)| id).ok_or_else(unknown)?;
        let entry = self.keys.iter().find(|entry| entry.id == id).ok_or_else(unknown)?;
        if !bool::from(Digest::of(key.as_bytes()).0.ct_eq(&entry.sha256.0)) {
            return Err(unknown());
        }
        let expires = entry.expires.as_deref().and_then(|e| OffsetDateTime::parse(e, &Rfc3339).ok());
        if expires.is_some_and(|end| now > end) {
            return Err(Problem::unauthorized("expected a valid API key, found one that has expired"));
        }
        if !entry.scopes.contains(&scope) {
            return Err(Problem::forbidden(format!("expected a key with scope {scope:?}, found one without")));
        }
        Ok(Caller { id: entry.id.clone(), per_second: entry.per_second.unwrap_or(0) })
    }
}

/// Writes a file that its owner alone may read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ServerError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| ServerError::io(parent, e))?;
    }
    let tmp = path.with_extension("tmp");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)
    };
    write().map_err(|e| ServerError::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (KeyFile, String) {
        let mut file = KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() };
        let entry = KeyEntry {
            id: "proxy".into(),
            sha256: Digest([0; 32]),
            scopes: BTreeSet::from([Scope::Attribute]),
            expires: Some("2027-01-01T00:00:00Z".into()),
            per_second: Some(5),
            note: String::new(),
        };
        let key = file.add(entry.clone()).unwrap();
        assert!(file.add(entry).is_err());
        (file, key)
    }

    #[test]
    fn a_key_opens_what_it_may_until_it_expires() {
        let (file, key) = file();
        let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
        let now = at("2026-11-29T00:00:00Z");
        assert_eq!(file.check(&key, Scope::Attribute, now).unwrap(), Caller { id: "proxy".into(), per_second: 5 });
        let status = |key: &str, scope, now| file.check(key, scope, now).unwrap_err().status;
        assert_eq!(status(&key, Scope::Admin, now), 403);
        assert_eq!(status(&key, Scope::Attribute, at("2027-01-01T00:00:01Z")), 401);
        let forged = format!("{}0", &key[..key.len() - 1]);
        for bad in ["", "ask_", "ask_proxy", "ask_proxy_", "ask_other_00", &forged[..key.len() - 1]] {
            assert_eq!(status(bad, Scope::Attribute, now), 401, "{bad}");
        }
        // The file does not hold the key.
        assert!(!serde_json::to_string(&file).unwrap().contains(&key[10..]));
    }

    #[test]
    fn a_file_comes_back_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let (file, _) = file();
        file.write(&path).unwrap();
        assert_eq!(KeyFile::read(&path).unwrap(), file);
        std::fs::write(&path, "{\"format_version\":1,\"keys\":[],\"more\":1}").unwrap();
        assert!(KeyFile::read(&path).unwrap_err().to_string().contains("keys.json"));
    }
}
