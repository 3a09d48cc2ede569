//! `manifest.json`: what a dataset is, whose it is, who is paid, and what its bytes add up to.

use std::path::Path;

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::check_account;
use crate::error::RegistryError;
use crate::spdx_terms;

/// Version of the manifest form that this code reads and writes.
pub const MANIFEST_FORMAT_VERSION: u32 = 1;

/// Name of the manifest file of a dataset.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A whole, in parts per million.
pub const PPM: u64 = 1_000_000;

/// The RSL 1.0 usage tokens that permits and prohibits are made of.
pub const USAGE_TOKENS: [&str; 5] = ["ai-all", "ai-index", "ai-input", "ai-train", "search"];

/// Members of a manifest that the licence states, and signs, under names of its own; the metadata hash leaves them out.
const TERM_MEMBERS: [&str; 4] = ["licence", "permits", "prohibits", "payees"];

const NAME_CAP_BYTES: usize = 64;
const TEXT_CAP_BYTES: usize = 4096;
const PAYEES_CAP: usize = 256;

/// One paid account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payee {
    /// CAIP-10 account.
    pub account: String,
    /// Share of what the dataset earns, in parts per million.
    pub share_ppm: u32,
}

/// Where the text was taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Kind of package registry (`deb`, `npm`, `pypi`).
    pub registry: String,
    /// Package.
    pub package: String,
    /// Its version.
    pub version: String,
}

/// A dataset's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT_VERSION`].
    pub format_version: u32,
    /// `urn:uuid:…`, see [`dataset_uuid`].
    pub uuid: String,
    /// Name: also the folder, `[a-z0-9-]`.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// Owner: the paid party. Datasets with one owner string belong together.
    pub owner: String,
    /// Language tag.
    pub language: String,
    /// SPDX licence expression.
    pub licence: String,
    /// Permitted uses, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses, RSL tokens; they win over permits.
    pub prohibits: Vec<String>,
    /// Who is paid; shares sum to 1,000,000 ppm.
    pub payees: Vec<Payee>,
    /// Origin of the text.
    pub source: Source,
    /// Records.
    pub record_count: u64,
    /// Bytes of the record file.
    pub len_bytes: u64,
    /// RFC 6962 root over the record hashes.
    pub content_root: Digest,
    /// What a reader should know besides.
    pub notes: String,
}

/// The dataset's identifier: a version 5 UUID of its name in the namespace `urn:ascribe:datasets`.
pub fn dataset_uuid(name: &str) -> String {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:ascribe:datasets");
    Uuid::new_v5(&namespace, name.as_bytes()).urn().to_string()
}

impl Manifest {
    /// Checks every field that can be checked without other files. `path` is what errors name.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::SharesDoNotSum`].
    pub fn validate(&self, path: &Path) -> Result<(), RegistryError> {
        if self.format_version != MANIFEST_FORMAT_VERSION {
            return Err(RegistryError::field(path, "format_version", MANIFEST_FORMAT_VERSION, self.format_version));
        }
        check_name(path, &self.name)?;
        let uuid = dataset_uuid(&self.name);
        if self.uuid != uuid {
            return Err(RegistryError::field(path, "uuid", uuid, &self.uuid));
        }
        let texts = [
            ("title", &self.title),
            ("owner", &self.owner),
            ("language", &self.language),
            ("source.registry", &self.source.registry),
            ("source.package", &self.source.package),
            ("source.version", &self.source.version),
        ];
        for (field, text) in texts {
            check_text(path, field, text)?;
        }
        if self.notes.len() > TEXT_CAP_BYTES {
            return Err(RegistryError::field(
                path,
                "notes",
                format!("at most {TEXT_CAP_BYTES} bytes"),
                self.notes.len(),
            ));
        }
        spdx_terms::check(path, &self.licence)?;
        check_usage(path, &self.permits, &self.prohibits)?;
        check_payees(path, &self.payees)?;
        if self.record_count == 0 {
            return Err(RegistryError::field(path, "record_count", "at least 1", 0));
        }
        Ok(())
    }

    /// What the licence pins as `metadataSha256`: SHA-256 of the RFC 8785 (JCS) form of the manifest object without its
    /// members `licence`, `permits`, `prohibits` and `payees`, which the licence states itself.
    pub fn metadata_sha256(&self) -> Digest {
        let mut value = serde_json::to_value(self).expect("a manifest is plain JSON");
        let object = value.as_object_mut().expect("a struct serialises as an object");
        for member in TERM_MEMBERS {
            object.remove(member);
        }
        let canonical = serde_json_canonicalizer::to_vec(&value).expect("a manifest holds no number that JCS refuses");
        Digest::of(&canonical)
    }
}

/// True when `permits` grant `usage` and `prohibits` do not take it away; `ai-all` covers the other `ai-` tokens.
pub fn permits_usage(permits: &[String], prohibits: &[String], usage: &str) -> bool {
    let covers = |token: &String| token == usage || (token == "ai-all" && usage.starts_with("ai-"));
    permits.iter().any(covers) && !prohibits.iter().any(covers)
}

/// Checks a dataset name: it becomes a folder name, so nothing that could leave the registry folder passes. `path` is what the
/// error names.
///
/// # Errors
/// [`RegistryError::Field`].
pub fn check_name(path: &Path, name: &str) -> Result<(), RegistryError> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain && !name.is_empty() && name.len() <= NAME_CAP_BYTES && !name.starts_with('-') {
        return Ok(());
    }
    Err(RegistryError::field(path, "name", "1 to 64 of a-z, 0-9 and -, not led by -", format!("{name:?}")))
}

fn check_text(path: &Path, field: &str, text: &str) -> Result<(), RegistryError> {
    let printable = !text.chars().any(char::is_control);
    if printable && !text.trim().is_empty() && text.len() <= TEXT_CAP_BYTES {
        return Ok(());
    }
    Err(RegistryError::field(path, field, "one line of text", format!("{text:?}")))
}

/// Checks that tokens are known, unique, and not permitted and prohibited at once.
pub(crate) fn check_usage(path: &Path, permits: &[String], prohibits: &[String]) -> Result<(), RegistryError> {
    for (field, tokens) in [("permits", permits), ("prohibits", prohibits)] {
        for (i, token) in tokens.iter().enumerate() {
            if !USAGE_TOKENS.contains(&token.as_str()) {
                let expected = format!("one of {}", USAGE_TOKENS.join(", "));
                return Err(RegistryError::field(path, format!("{field}[{i}]"), expected, format!("{token:?}")));
            }
            if tokens[..i].contains(token) {
                return Err(RegistryError::field(
                    path,
                    format!("{field}[{i}]"),
                    "each token once",
                    format!("{token:?}"),
                ));
            }
        }
    }
    match permits.iter().find(|token| prohibits.contains(token)) {
        Some(token) => {
            Err(RegistryError::field(path, "prohibits", "no token that is permitted too", format!("{token:?}")))
        }
        None => Ok(()),
    }
}

/// Checks accounts, their uniqueness, and that shares make a whole.
pub(crate) fn check_payees(path: &Path, payees: &[Payee]) -> Result<(), RegistryError> {
    if payees.is_empty() || payees.len() > PAYEES_CAP {
        return Err(RegistryError::field(path, "payees", format!("1 to {PAYEES_CAP} payees"), payees.len()));
    }
    for (i, payee) in payees.iter().enumerate() {
        check_account(path, &format!("payees[{i}].account"), &payee.account)?;
        if payee.share_ppm == 0 {
            return Err(RegistryError::field(path, format!("payees[{i}].share_ppm"), "at least 1", 0));
        }
        if payees[..i].iter().any(|earlier| earlier.account == payee.account) {
            return Err(RegistryError::field(
                path,
                format!("payees[{i}].account"),
                "each account once",
                &payee.account,
            ));
        }
    }
    let found_ppm: u64 = payees.iter().map(|payee| u64::from(payee.share_ppm)).sum();
    if found_ppm == PPM { Ok(()) } else { Err(RegistryError::SharesDoNotSum { path: path.to_owned(), found_ppm }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let account = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".to_owned();
        Manifest {
            format_version: 1,
            uuid: dataset_uuid("tiny"),
            name: "tiny".into(),
            title: "Tiny".into(),
            owner: "Nobody".into(),
            language: "en".into(),
            licence: "MIT OR LicenseRef-mine".into(),
            permits: vec!["ai-train".into()],
            prohibits: vec!["search".into()],
            payees: vec![Payee { account, share_ppm: 1_000_000 }],
            source: Source { registry: "deb".into(), package: "p".into(), version: "1".into() },
            record_count: 2,
            len_bytes: 10,
            content_root: Digest::of(b"root"),
            notes: String::new(),
        }
    }

    fn check(change: impl FnOnce(&mut Manifest)) -> String {
        let mut changed = manifest();
        change(&mut changed);
        changed.validate(Path::new("m.json")).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn each_field_is_checked() {
        assert_eq!(check(|_| ()), "fine");
        let message = check(|m| m.licence = "MTI".into());
        assert!(
            message.starts_with("m.json: licence: expected an SPDX licence expression, found \"MTI\""),
            "{message}"
        );
        assert_eq!(
            check(|m| m.payees[0].share_ppm = 999_999),
            "m.json: payees: expected shares that sum to 1000000 ppm, found 999999"
        );
        assert!(check(|m| m.permits.push("inference".into())).contains("permits[1]: expected one of ai-all"));
        assert!(check(|m| m.prohibits.push("ai-train".into())).contains("no token that is permitted too"));
        assert!(check(|m| m.name = "../up".into()).contains("name: expected 1 to 64"));
        assert!(check(|m| m.uuid = dataset_uuid("other")).contains("uuid: expected urn:uuid:"));
        assert!(check(|m| m.record_count = 0).contains("record_count: expected at least 1, found 0"));
        assert!(check(|m| m.format_version = 2).contains("format_version: expected 1, found 2"));
        assert!(check(|m| m.owner = " ".into()).contains("owner: expected one line of text"));
        assert!(check(|m| m.payees.clear()).contains("payees: expected 1 to 256 payees, found 0"));
        let twice = check(|m| m.payees.push(m.payees[0].clone()));
        assert!(twice.contains("payees[1].account: expected each account once"), "{twice}");
    }

    #[test]
    fn metadata_hash_is_over_canonical_json_without_the_terms() {
        let m = manifest();
        let by_hand = format!(
            concat!(
                r#"{{"content_root":"{}","format_version":1,"language":"en","len_bytes":10,"name":"tiny","notes":"","#,
                r#""owner":"Nobody","record_count":2,"source":{{"package":"p","registry":"deb","version":"1"}},"#,
                r#""title":"Tiny","uuid":"{}"}}"#
            ),
            m.content_root, m.uuid
        );
        assert_eq!(m.metadata_sha256(), Digest::of(by_hand.as_bytes()));
        let terms = Manifest { licence: "MIT".into(), permits: vec![], ..m.clone() };
        assert_eq!(terms.metadata_sha256(), m.metadata_sha256());
        assert_ne!(Manifest { title: "Other".into(), ..m.clone() }.metadata_sha256(), m.metadata_sha256());
    }

    #[test]
    fn prohibits_win_and_ai_all_covers() {
        let list = |tokens: &[&str]| tokens.iter().map(|token| (*token).to_owned()).collect::<Vec<_>>();
        assert!(permits_usage(&list(&["ai-all"]), &[], "ai-train"));
        assert!(!permits_usage(&list(&["ai-all"]), &[], "search"));
        assert!(!permits_usage(&list(&["ai-all"]), &list(&["ai-train"]), "ai-train"));
        assert!(!permits_usage(&list(&["ai-train"]), &list(&["ai-all"]), "ai-train"));
        assert!(!permits_usage(&[], &[], "ai-train"));
    }
}
