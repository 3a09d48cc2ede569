//! The registry from outside: small registries made on the fly, and the shipped one.

#![allow(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod exports;
mod golden;
mod near;
mod place;
mod refusals;
mod registrar;
mod runs;
mod shipped;
mod signed;
mod sources;
mod usage;
mod usage_run;
mod wiring;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::prepare::{Grant, NewDataset, demo_account, license_dataset, write_dataset};
use ascribe_registry::{
    DatasetUse, LicenceDigest, LicenceKey, Payee, Registry, RegistryError, RunDetail, RunRecord, Source, Subject,
    VerifyReport,
};
use tempfile::TempDir;

/// When the licences of the small registries begin.
const VALID_FROM: u64 = 1_000;

/// A registry of three datasets: `alpha` and `beta` of one owner, `gamma` of another with two payees.
struct Tiny {
    dir: TempDir,
}

impl Tiny {
    fn new() -> Self {
        let tiny = Self { dir: TempDir::new().unwrap() };
        for (name, owner, nonce) in [("alpha", "Ann", 1), ("beta", "Ann", 2), ("gamma", "Bob", 1)] {
            tiny.write(&new_dataset(name, owner));
            tiny.license(name, owner, grant(nonce)).unwrap();
        }
        tiny
    }

    /// The same registry without the cost of making it durable, for properties with many cases.
    fn copy() -> Self {
        static ORIGINAL: LazyLock<Tiny> = LazyLock::new(Tiny::new);
        let tiny = Self { dir: TempDir::new().unwrap() };
        fs::copy(ORIGINAL.path("licences.log"), tiny.path("licences.log")).unwrap();
        for name in ["alpha", "beta", "gamma"] {
            fs::create_dir(tiny.path(name)).unwrap();
            for file in ["manifest.json", "licence.json", "terms.txt", "records.jsonl"] {
                fs::copy(ORIGINAL.path(name).join(file), tiny.path(name).join(file)).unwrap();
            }
        }
        tiny
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn write(&self, new: &NewDataset) {
        let texts: Vec<(String, String)> =
            (0..5).map(|i| (format!("{}/{i}", new.name), format!("text {i} of {}", new.name))).collect();
        let records = texts.iter().map(|(id, text)| (id.as_str(), text.as_str()));
        write_dataset(self.root(), new, records).unwrap();
    }

    fn license(&self, name: &str, owner: &str, grant: Grant) -> Result<(LicenceDigest, u64), RegistryError> {
        license_dataset(self.root(), name, &LicenceKey::demo(owner), grant)
    }

    fn open(&self) -> Result<Registry, RegistryError> {
        Registry::open(self.root())
    }

    fn verify(&self, run: Option<&RunRecord>) -> Result<VerifyReport, RegistryError> {
        self.open()?.verify(run, &NoProgress)
    }

    /// The message with which the registry is refused, without the path of the temporary folder.
    fn refusal(&self, run: Option<&RunRecord>) -> String {
        let message = self.verify(run).expect_err("the registry should be refused").to_string();
        message.replace(&format!("{}/", self.root().display()), "")
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} holds no {from:?}");
        fs::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }

    /// A run over all datasets that begins at `started` and has seen the whole log.
    fn run(&self, started: u64) -> RunRecord {
        let registry = self.open().unwrap();
        let used = |dataset| registry.dataset_use(dataset, 5, "2".to_owned(), u64::MAX).unwrap();
        let datasets: Vec<DatasetUse> = registry.datasets().iter().map(used).collect();
        RunRecord {
            invocation_id: "run-1".to_owned(),
            builder_version: "0.1.0".to_owned(),
            started_unix_s: started,
            finished_unix_s: started + 60,
            recipe_sha256: Digest::of(b"recipe"),
            seed: u64::MAX,
            steps: 12,
            epochs: "2.5".to_owned(),
            subjects: vec![Subject {
                name: "checkpoints/step-12.safetensors".to_owned(),
                sha256: Digest::of(b"weights"),
            }],
            datasets,
            licence_log: registry.log().head(),
            detail: RunDetail::default(),
        }
    }
}

fn grant(nonce: u64) -> Grant {
    Grant { valid_from: VALID_FROM, valid_until: 0, nonce, supersedes: LicenceDigest::default() }
}

fn new_dataset(name: &str, owner: &str) -> NewDataset {
    let payee = |party: &str, share_ppm| Payee { account: demo_account(party), share_ppm };
    let payees = match owner {
        "Bob" => vec![payee("Bob", 600_000), payee("Eve", 400_000)],
        _ => vec![payee(owner, 1_000_000)],
    };
    NewDataset {
        name: name.to_owned(),
        title: format!("The {name}"),
        owner: owner.to_owned(),
        language: "en".to_owned(),
        licence: "MIT".to_owned(),
        permits: vec!["ai-train".to_owned()],
        prohibits: vec![],
        payees,
        source: Source { registry: "deb".to_owned(), package: name.to_owned(), version: "1".to_owned() },
        notes: String::new(),
        terms: format!("Terms of {name}.\n"),
    }
}
