//! Whose text was first, what a licence's terms give, and what a revocation stops.

use std::fs;
use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_payout::verify::verify;
use ascribe_payout::{PayError, PayJob, compute, run};
use ascribe_registry::near::{self, Thresholds};
use ascribe_registry::prepare::{Grant, license_dataset};
use ascribe_registry::{LicenceKey, Registry, RegistryDomain, Revocation, RevocationMessage};

use crate::common::{job, register, registry};

fn paid(job: &PayJob) -> Vec<(String, u128)> {
    let scratch = tempfile::tempdir().unwrap();
    let computed = compute(job, scratch.path(), &NoProgress).unwrap();
    computed.statement.check().unwrap();
    let rows = computed.statement.rows.iter().filter(|row| row.row.amount.minor > 0);
    rows.map(|row| (row.row.owner.clone(), row.row.amount.minor)).collect()
}

fn pairs(list: &[(&str, u128)]) -> Vec<(String, u128)> {
    list.iter().map(|(owner, minor)| ((*owner).to_owned(), *minor)).collect()
}

const LONG: &str =
    "The quick brown fox jumps over the lazy dog while seven wise owls watch from the old oak tree by the river.";

/// What `ascribe registry duplicates --format json` writes.
fn report(dir: &Path) -> std::path::PathBuf {
    let found = near::find_in_registry(&dir.join("registry"), Thresholds::default(), &NoProgress).unwrap();
    let path = dir.join("duplicates.json");
    fs::write(&path, format!("{{\"clusters\":{}}}", clusters(&found))).unwrap();
    path
}

fn clusters(found: &near::Duplicates) -> String {
    let member = |m: &near::Member| {
        format!("{{\"dataset\":{:?},\"owner\":{:?},\"id\":{:?},\"row\":{}}}", m.dataset, m.owner, m.id, m.row)
    };
    let cluster =
        |c: &near::Cluster| format!("{{\"members\":[{}]}}", c.members.iter().map(member).collect::<Vec<_>>().join(","));
    format!("[{}]", found.clusters.iter().map(cluster).collect::<Vec<_>>().join(","))
}

/// A near copy has another content root, and still earns for the text that was licensed first; the report travels with the run.
#[test]
fn near_copies_earn_for_the_earliest_licence() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    register(&at, "tales", "Bob", LONG, (1, 0), "ai-all");
    register(&at, "a-copy", "Mallory", &LONG.replace("wise", "old"), (1, 0), "ai-train");
    register(&at, "odes", "Ada", "An ode to something else entirely.", (1, 0), "ai-train");
    let mut job = job(dir.path(), "q,odes,1\nq,a-copy,2\nq,tales,1\n");
    assert_eq!(paid(&job), pairs(&[("Ada", 2500), ("Bob", 2500), ("Mallory", 5000)]));
    job.duplicates = Some(report(dir.path()));
    assert_eq!(paid(&job), pairs(&[("Ada", 2500), ("Bob", 7500)]));
    let out = dir.path().join("out");
    let summary = run(&job, &out, &NoProgress).unwrap();
    assert!(summary.record.run.inputs.contains_key("duplicates"));
    verify(&out, None, &NoProgress).unwrap();
    // Scores by record are moved record by record.
    fs::write(&job.scores, "query_id,dataset_id,score\nq,odes#1,1\nq,a-copy#1,2\nq,tales#1,1\n").unwrap();
    assert_eq!(paid(&job), pairs(&[("Ada", 2500), ("Bob", 7500)]));
    // Half of each kind could not be told apart.
    fs::write(&job.scores, "query_id,dataset_id,score\nq,odes#1,1\nq,a-copy,2\n").unwrap();
    let error = compute(&job, dir.path(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("score file: expected scores by dataset or by record"), "{error}");
}

/// A licence that is renewed keeps its place in the log; a copier who came between does not move up.
#[test]
fn a_renewed_licence_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    registry(&at);
    register(&at, "a-copy", "Mallory", "An ode.", (1, 0), "ai-train");
    let before = Registry::open(&at).unwrap();
    let first = before.dataset("odes").unwrap().licence.digest();
    let past = at.join("odes/history").join(first.to_string());
    fs::create_dir_all(&past).unwrap();
    for file in ["manifest.json", "licence.json", "terms.txt"] {
        fs::copy(at.join("odes").join(file), past.join(file)).unwrap();
    }
    let grant = Grant { valid_from: 2, valid_until: 0, nonce: 9, supersedes: first };
    license_dataset(&at, "odes", &LicenceKey::demo("Ada"), grant).unwrap();
    let job = job(dir.path(), "q,odes,1\nq,a-copy,1\nq,tales,2\n");
    assert_eq!(paid(&job), pairs(&[("Ada", 5000), ("Bob", 5000)]));
    let out = dir.path().join("out");
    run(&job, &out, &NoProgress).unwrap();
    verify(&out, None, &NoProgress).unwrap();
    assert!(out.join("inputs/registry/odes/history").join(first.to_string()).join("licence.json").exists());
}

fn revoke(at: &Path, name: &str, owner: &str, effective_from: u64) {
    let licence = Registry::open(at).unwrap().dataset(name).unwrap().licence.digest();
    let message = RevocationMessage { licence, effective_from, reason: "no longer".into(), nonce: 7 };
    let path = at.join(name).join("revocation.json");
    let revocation = Revocation::sign(&path, RegistryDomain::demo(), message, &LicenceKey::demo(owner)).unwrap();
    fs::write(&path, serde_json::to_vec(&revocation).unwrap()).unwrap();
}

/// Seconds of a day.
fn moment(day: &str) -> u64 {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    time::Date::parse(day, &format).unwrap().midnight().assume_utc().unix_timestamp() as u64
}

/// A revocation acts forward: payment goes on for a model whose training had begun, also in the middle of a period.
#[test]
fn revocations_act_forward_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    registry(&at);
    let mut job = job(dir.path(), "q,odes,1\nq,tales,1\n");
    revoke(&at, "odes", "Ada", moment("2026-11-15"));
    assert_eq!(paid(&job), pairs(&[("Ada", 5000), ("Bob", 5000)]), "in the middle of the period");
    revoke(&at, "odes", "Ada", moment("2026-10-15"));
    assert_eq!(paid(&job), pairs(&[("Bob", 5000)]), "before it, and nobody says when training began");
    job.settings.trained = Some("2026-10-01".into());
    assert_eq!(paid(&job), pairs(&[("Ada", 5000), ("Bob", 5000)]), "training began before the revocation");
    job.settings.trained = Some("2026-10-15".into());
    assert_eq!(paid(&job), pairs(&[("Bob", 5000)]), "training began when it was revoked");
    let out = dir.path().join("out");
    let summary = run(&job, &out, &NoProgress).unwrap();
    assert_eq!(summary.record.blocked["odes"], "NotLicensed");
    assert!(summary.record.run.inputs.contains_key("revocations"));
    verify(&out, None, &NoProgress).unwrap();
    // Somebody else's revocation is none.
    revoke(&at, "odes", "Bob", moment("2026-10-15"));
    assert!(compute(&job, dir.path(), &NoProgress).unwrap_err().to_string().contains("a revocation of licence"));
}

/// Half of what its dataset earns is owed to Ada; the rest is nobody's.
#[test]
fn revenue_shares_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let mut job = job(dir.path(), "q,odes,1\nq,tales,1\n");
    job.settings.revenue_share.insert("odes".into(), 500_000);
    assert_eq!(paid(&job), pairs(&[("Ada", 2500), ("Bob", 5000)]));
    let summary = run(&job, &dir.path().join("out"), &NoProgress).unwrap();
    assert!(summary.record.totals.conserved);
    assert!(summary.record.totals.unattributed["Cap"].starts_with("25.00"));
    verify(&dir.path().join("out"), None, &NoProgress).unwrap();
    job.settings.revenue_share = [("nothing".to_owned(), 1)].into();
    assert!(matches!(compute(&job, dir.path(), &NoProgress), Err(PayError::Setting { setting: "revenue_share", .. })));
}

/// Planted noise sets the bar of each response; it is paid to nobody, and a registered dataset cannot be it.
#[test]
fn planted_noise_gates_response_by_response() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let mut job = job(dir.path(), "q1,odes,3\nq1,tales,1\nq1,planted,-2\nq2,odes,3\nq2,tales,1\nq2,planted,0.5\n");
    job.settings.noise_controls = vec!["planted".into()];
    // Of the first response Bob's 1 is below the noise of 2; of the second both pass.
    assert_eq!(paid(&job), pairs(&[("Ada", 8750), ("Bob", 1250)]));
    let record = run(&job, &dir.path().join("out"), &NoProgress).unwrap().record;
    assert_eq!(record.unregistered_count, 0);
    verify(&dir.path().join("out"), None, &NoProgress).unwrap();
    job.settings.noise_controls = vec!["tales".into()];
    assert!(compute(&job, dir.path(), &NoProgress).unwrap_err().to_string().contains("noise_controls"));
}
