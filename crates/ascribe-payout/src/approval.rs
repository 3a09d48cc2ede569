//! Approval by more than one person: above a threshold a run is written only when enough different approvers have signed its id.
//!
//! The id is the hash of everything that the money follows from, so whoever signs it has approved inputs, figures and policy, and
//! nothing else. Signatures lie beside the run, in `approvals/`, one file an approver: they are no part of what they approve.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use ascribe_ledger::Money;
use ascribe_registry::Signer;
use ascribe_tlog::Ed25519PublicKey;
use serde::{Deserialize, Serialize};

use crate::error::PayError;
use crate::files;
use crate::settings::PaySettings;
use crate::{PayRunRecord, RUN_JSON};

/// Folder of approvals within a run folder.
pub const APPROVALS: &str = "approvals";
/// Within it, what approvers are asked to look at.
pub const REQUEST: &str = "request.json";
/// Fewest people: one is no second pair of eyes.
const FEWEST: u32 = 2;
/// Longest approval file that is read.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// When a run needs approval, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// Pools above this many minor units need it.
    pub above_minor: u64,
    /// Who may approve: `did:key:z6Mk…` of Ed25519 keys.
    pub approvers: Vec<String>,
    /// How many of them must.
    #[serde(default = "fewest")]
    pub required: u32,
}

const fn fewest() -> u32 {
    FEWEST
}

impl ApprovalRule {
    /// Checks figures that the types allow.
    ///
    /// # Errors
    /// Fewer than two people, fewer approvers than are required, an approver twice, a text that is no key.
    pub fn check(&self) -> Result<(), PayError> {
        let refuse = |expected: String, found: String| Err(PayError::Setting { setting: "approval", expected, found });
        if self.required < FEWEST {
            return refuse(format!("required = {FEWEST} or more"), self.required.to_string());
        }
        let mut keys = BTreeSet::new();
        for approver in &self.approvers {
            let Ok(key) = Ed25519PublicKey::from_did_key(approver) else {
                return refuse("approvers as did:key:z6Mk… of Ed25519 keys".into(), approver.clone());
            };
            if !keys.insert(key.to_bytes()) {
                return refuse("each approver once".into(), format!("{approver} twice"));
            }
        }
        if keys.len() < self.required as usize {
            return refuse(format!("at least {} approvers", self.required), keys.len().to_string());
        }
        Ok(())
    }
}

/// What approvers are asked to look at. Written by a dry run; the signatures are over the run id alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    /// Identity of the run.
    pub run_id: Digest,
    /// Settled revenue that it splits.
    pub pool: Money,
    /// What it pays in sum.
    pub pays: String,
    /// To how many payees.
    pub payees: u64,
}

/// One approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The run.
    pub run_id: Digest,
    /// Who: `did:key:…`.
    pub approver: String,
    /// Ed25519 over [`message`], hex.
    pub signature: String,
}

/// What is needed and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApprovalState {
    /// True when the policy asks for approval of this pool.
    pub needed: bool,
    /// How many approvers must sign.
    pub required: u32,
    /// Those who have, by key.
    pub approved_by: Vec<String>,
}

impl ApprovalState {
    /// True when nothing is missing.
    pub fn is_enough(&self) -> bool {
        !self.needed || self.approved_by.len() >= self.required as usize
    }
}

/// The bytes that an approver signs.
pub fn message(run_id: &Digest) -> Vec<u8> {
    format!("ascribe payout approval v1\nrun {run_id}\n").into_bytes()
}

/// Looks up what a run needs and which valid approvals lie in `dir`. Files of other runs are left aside.
///
/// # Errors
/// A file that is no approval, a signature that does not verify, somebody who is not on the list.
pub fn state(
    dir: Option<&Path>,
    settings: &PaySettings,
    pool: &Money,
    run_id: &Digest,
) -> Result<ApprovalState, PayError> {
    let Some(rule) = settings.approval.as_ref().filter(|rule| pool.minor > u128::from(rule.above_minor)) else {
        return Ok(ApprovalState { needed: false, required: 0, approved_by: Vec::new() });
    };
    let allowed: BTreeSet<&str> = rule.approvers.iter().map(String::as_str).collect();
    let mut approved = BTreeSet::new();
    for (path, approval) in dir.map(read_all).transpose()?.unwrap_or_default() {
        if approval.run_id != *run_id {
            continue;
        }
        let refuse =
            |expected: &str, found: String| PayError::Content { path: path.clone(), expected: expected.into(), found };
        if !allowed.contains(approval.approver.as_str()) {
            return Err(refuse("an approver of the policy", approval.approver.clone()));
        }
        let key = Ed25519PublicKey::from_did_key(&approval.approver);
        let key = key.map_err(|_| refuse("a did:key of an Ed25519 key", approval.approver.clone()))?;
        let signature =
            decode(&approval.signature).ok_or_else(|| refuse("128 hex digits", approval.signature.clone()))?;
        key.verify(&message(run_id), &signature)
            .map_err(|_| refuse("a signature of the approver over the run id", "another signature".into()))?;
        approved.insert(approval.approver);
    }
    Ok(ApprovalState { needed: true, required: rule.required, approved_by: approved.into_iter().collect() })
}

/// Refuses a run that needs approval and has not enough.
///
/// # Errors
/// [`PayError::Setting`] with what is missing and how it is given; as [`state`].
pub fn check(dir: &Path, settings: &PaySettings, pool: &Money, run_id: &Digest) -> Result<ApprovalState, PayError> {
    let found = state(Some(dir), settings, pool, run_id)?;
    if found.is_enough() {
        return Ok(found);
    }
    let above = settings.approval.as_ref().map_or(0, |rule| rule.above_minor);
    let threshold = Money { minor: above.into(), currency: pool.currency };
    Err(PayError::Setting {
        setting: "approval",
        expected: format!(
            "{} different approvers of run {run_id}, as every pool above {threshold} needs; hint: each of them runs \
             `ascribe pay approve {} --run-id {run_id}` with a key of the policy",
            found.required,
            dir.display()
        ),
        found: found.approved_by.len().to_string(),
    })
}

/// Writes down what approvers are asked to look at.
///
/// # Errors
/// The disk's.
pub fn request(dir: &Path, request: &ApprovalRequest) -> Result<(), PayError> {
    let mut bytes = serde_json::to_vec_pretty(request)?;
    bytes.push(b'\n');
    files::write(&dir.join(APPROVALS).join(REQUEST), &bytes)
}

/// The run that `dir` is about: of its record, else of the request that a dry run left there.
///
/// # Errors
/// Neither is there, or it cannot be read.
pub fn run_id_of(dir: &Path) -> Result<Digest, PayError> {
    if dir.join(RUN_JSON).exists() {
        return Ok(PayRunRecord::read(dir)?.run_id);
    }
    let path = dir.join(APPROVALS).join(REQUEST);
    let request: ApprovalRequest = parse(&path)?;
    Ok(request.run_id)
}

/// Adds an approval of `run_id` by `signer` to `dir`. The same again writes the same file.
///
/// # Errors
/// A key that is not Ed25519; the disk's.
pub fn approve(dir: &Path, run_id: &Digest, signer: &dyn Signer) -> Result<Approval, PayError> {
    let approver = signer.licensor();
    if Ed25519PublicKey::from_did_key(&approver).is_err() {
        let expected = "a keystore of an Ed25519 key (did:key:z6Mk…)".to_owned();
        return Err(PayError::Setting { setting: "--keystore", expected, found: approver });
    }
    let signature = signer.sign(&message(run_id))?;
    let signature = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let approval = Approval { run_id: *run_id, approver, signature };
    let mut bytes = serde_json::to_vec_pretty(&approval)?;
    bytes.push(b'\n');
    // A key and a run have one file; the name only has to be different for different ones.
    let name = Digest::of(approval.approver.as_bytes()).to_string();
    let file = format!("{}-{}.json", &run_id.to_string()[..16], &name[..16]);
    files::write(&dir.join(APPROVALS).join(file), &bytes)?;
    Ok(approval)
}

fn read_all(dir: &Path) -> Result<Vec<(PathBuf, Approval)>, PayError> {
    let folder = dir.join(APPROVALS);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let names = files::list(&folder)?;
    let approvals = names.iter().filter(|name| name.ends_with(".json") && *name != REQUEST);
    approvals.map(|name| parse(&folder.join(name)).map(|approval| (folder.join(name), approval))).collect()
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, PayError> {
    let len = std::fs::metadata(path).map_err(|e| PayError::io(path, e))?.len();
    let content =
        |expected: &str, found: String| PayError::Content { path: path.into(), expected: expected.into(), found };
    if len > FILE_MAX_BYTES {
        return Err(content("a small file of JSON", format!("{len} bytes")));
    }
    serde_json::from_slice(&files::read(path)?)
        .map_err(|error| content("an approval or its request", error.to_string()))
}

fn decode(hex: &str) -> Option<Vec<u8>> {
    let is_hex = hex.len() == 128 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| (0..64).filter_map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect())
}

#[cfg(test)]
mod tests {
    use ascribe_registry::RegistryError;
    use ascribe_tlog::Ed25519Key;

    use super::*;

    struct Person(Ed25519Key);

    impl Signer for Person {
        fn licensor(&self) -> String {
            self.0.public().did_key()
        }

        fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, RegistryError> {
            Ok(self.0.sign(payload).to_vec())
        }
    }

    fn person(name: &str) -> Person {
        Person(Ed25519Key::demo(name))
    }

    fn settings(required: u32) -> PaySettings {
        let approvers = ["ann", "ben", "cid"].map(|name| person(name).licensor()).to_vec();
        let approval = Some(ApprovalRule { above_minor: 100_000, approvers, required });
        PaySettings { approval, ..PaySettings::default() }
    }

    #[test]
    fn two_different_people() {
        let dir = tempfile::tempdir().unwrap();
        let (small, large): (Money, Money) = ("1000.00 USD".parse().unwrap(), "1000.01 USD".parse().unwrap());
        let (run, other) = (Digest::of(b"run"), Digest::of(b"other"));
        let settings = settings(2);
        settings.check().unwrap();
        assert!(!check(dir.path(), &settings, &small, &run).unwrap().needed);
        let missing = check(dir.path(), &settings, &large, &run).unwrap_err().to_string();
        assert!(
            missing.contains("expected 2 different approvers") && missing.contains("above 1000.00 USD"),
            "{missing}"
        );
        // One person twice, and approvals of another run, are not two people.
        approve(dir.path(), &run, &person("ann")).unwrap();
        approve(dir.path(), &run, &person("ann")).unwrap();
        approve(dir.path(), &other, &person("ben")).unwrap();
        assert!(check(dir.path(), &settings, &large, &run).unwrap_err().to_string().ends_with("found 1"));
        approve(dir.path(), &run, &person("ben")).unwrap();
        let found = check(dir.path(), &settings, &large, &run).unwrap();
        assert_eq!((found.required, found.approved_by.len()), (2, 2));
        assert!(check(dir.path(), &settings, &large, &other).is_err());
        // Somebody else, and a signature that was moved from another run.
        approve(dir.path(), &run, &person("eve")).unwrap();
        assert!(
            check(dir.path(), &settings, &large, &run).unwrap_err().to_string().contains("an approver of the policy")
        );
        std::fs::remove_dir_all(dir.path().join(APPROVALS)).unwrap();
        let moved = Approval { run_id: run, ..approve(dir.path(), &other, &person("ben")).unwrap() };
        let path = dir.path().join(APPROVALS).join("moved.json");
        std::fs::write(&path, serde_json::to_vec(&moved).unwrap()).unwrap();
        let error = check(dir.path(), &settings, &large, &run).unwrap_err().to_string();
        assert!(error.contains("a signature of the approver over the run id"), "{error}");
    }

    #[test]
    fn requests_and_rules() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run_id_of(dir.path()).is_err());
        let pool = "5.00 USD".parse().unwrap();
        let asked = ApprovalRequest { run_id: Digest::of(b"run"), pool, pays: "4.00 USD".into(), payees: 3 };
        request(dir.path(), &asked).unwrap();
        assert_eq!(run_id_of(dir.path()).unwrap(), asked.run_id);
        assert!(settings(1).check().unwrap_err().to_string().contains("required = 2 or more"));
        assert!(settings(4).check().unwrap_err().to_string().contains("at least 4 approvers"));
        let mut twice = settings(2);
        if let Some(rule) = &mut twice.approval {
            rule.approvers[1] = rule.approvers[0].clone();
        }
        assert!(twice.check().unwrap_err().to_string().contains("each approver once"));
        // A policy without approval has the id that it always had.
        assert!(!serde_json::to_string(&PaySettings::default()).unwrap().contains("approval"));
    }
}
