//! A registry of three small datasets and a job over it.

use std::fs;
use std::path::Path;

use ascribe_payout::PayJob;
use ascribe_payout::settings::PaySettings;
use ascribe_registry::prepare::{Grant, NewDataset, demo_account, license_dataset, write_dataset};
use ascribe_registry::{LicenceDigest, LicenceKey, Payee, Source};

/// Registers `name` of `owner` with one record of `text`.
pub fn register(dir: &Path, name: &str, owner: &str, text: &str, valid: (u64, u64), permits: &str) {
    let account = demo_account(owner);
    let new = NewDataset {
        name: name.into(),
        title: name.into(),
        owner: owner.into(),
        language: "en".into(),
        licence: "CC0-1.0".into(),
        permits: vec![permits.into()],
        prohibits: Vec::new(),
        payees: vec![Payee { account, share_ppm: 1_000_000 }],
        source: Source { registry: "none".into(), package: "test".into(), version: "1".into() },
        notes: String::new(),
        terms: "Terms.\n".into(),
    };
    write_dataset(dir, &new, std::iter::once(("1", text))).unwrap();
    let supersedes = LicenceDigest::default();
    let nonce = fs::read_to_string(dir.join("licences.log")).map_or(1, |log| 1 + log.lines().count() as u64);
    let grant = Grant { valid_from: valid.0, valid_until: valid.1, nonce, supersedes };
    license_dataset(dir, name, &LicenceKey::demo(owner), grant).unwrap();
}

/// Ada has `odes` and `essays`, Bob has `tales`.
pub fn registry(dir: &Path) {
    register(dir, "odes", "Ada", "An ode.", (1, 0), "ai-train");
    register(dir, "tales", "Bob", "A tale.", (1, 0), "ai-all");
    register(dir, "essays", "Ada", "An essay.", (1, 0), "ai-train");
}

pub fn job(dir: &Path, rows: &str) -> PayJob {
    let scores = dir.join("scores.csv");
    fs::write(&scores, format!("query_id,dataset_id,score\n{rows}")).unwrap();
    PayJob {
        scores,
        registry: dir.join("registry"),
        pool: Some("100.00 USD".parse().unwrap()),
        period: "2026-11-01/2026-11-30".parse().unwrap(),
        method: None,
        duplicates: None,
        previous: None,
        settings: PaySettings::default(),
    }
}

pub const ROWS: &str = "q1,odes,3\nq1,tales,1\nq2,tales,2\nq2,essays,-1\nq3,nobody,1\nq3,odes,1\n";
