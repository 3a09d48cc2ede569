//! Runs over a small registry: amounts, crashes, order, licences, embargo, duplicates, caps.

use std::fs;

use ascribe_core::NoProgress;
use ascribe_payout::{PayError, PaySummary, compute, run, verify::verify};
use ascribe_shares::Rule;

use crate::common::{ROWS, job, register, registry};

/// Owner and minor units.
fn paid(job: &ascribe_payout::PayJob) -> Vec<(String, u128)> {
    let scratch = tempfile::tempdir().unwrap();
    let computed = compute(job, scratch.path(), &NoProgress).unwrap();
    computed.statement.check().unwrap();
    computed.statement.rows.iter().map(|row| (row.row.owner.clone(), row.row.amount.minor)).collect()
}

fn pairs(list: &[(&str, u128)]) -> Vec<(String, u128)> {
    list.iter().map(|(owner, minor)| ((*owner).to_owned(), *minor)).collect()
}

/// 33.33 for each response: Ada 3/4 of the first and half of the third (the other half is a stranger's), Bob the rest.
#[test]
fn amounts_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    assert_eq!(paid(&job(dir.path(), ROWS)), pairs(&[("Ada", 4166), ("Bob", 4166)]));
    let mut fixed = job(dir.path(), ROWS);
    fixed.settings.rule = Rule::Equal;
    assert_eq!(paid(&fixed), pairs(&[("Ada", 4999), ("Bob", 4999)]));
    let mut capped = job(dir.path(), ROWS);
    capped.settings.cap_ppm = Some(100_000);
    assert_eq!(paid(&capped), pairs(&[("Ada", 1000), ("Bob", 1000)]));
    let mut least = job(dir.path(), ROWS);
    least.settings.minimum_minor = 5000;
    assert_eq!(paid(&least), pairs(&[("Ada", 0), ("Bob", 0)]));
}

/// Rows in any order, cut into any rows that add up, give the same money.
#[test]
fn order_and_pieces_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let expected = paid(&job(dir.path(), ROWS));
    let pieces = "q3,odes,0.5\nq2,essays,-1\nq1,tales,0.25\nq1,odes,4\nq3,nobody,1\nq2,tales,2\nq1,tales,0.75\nq1,odes,-1\nq3,odes,0.5\n";
    assert_eq!(paid(&job(dir.path(), pieces)), expected);
}

/// A crash before `run.json` leaves a folder that the same command finishes, to the same bytes.
#[test]
fn a_crash_before_the_record_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let job = job(dir.path(), ROWS);
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let first: PaySummary = run(&job, &whole, &NoProgress).unwrap();
    for name in
        first.record.files.keys().filter(|name| !name.starts_with("inputs/") && !name.starts_with("statements/"))
    {
        run(&job, &broken, &NoProgress).unwrap();
        fs::remove_file(broken.join("run.json")).unwrap();
        // Half a file of another life in its place.
        fs::write(broken.join(name), "half").unwrap();
        let again = run(&job, &broken, &NoProgress).unwrap();
        assert!(!again.already_done);
        assert_eq!(again.record, first.record, "{name}");
        verify(&broken, None, &NoProgress).unwrap();
    }
    // A folder whose record is there is never written over, not even where a file is gone.
    fs::remove_file(broken.join("safe.csv")).unwrap();
    assert!(matches!(run(&job, &broken, &NoProgress).unwrap_err(), PayError::Io { .. }));
}

#[test]
fn licences_decide_who_is_paid() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    registry(&at);
    // Ended before November; not for training; from 2030 on.
    register(&at, "ended", "Cid", "Ended.", (1, 1_000_000_000), "ai-train");
    register(&at, "search-only", "Dan", "Search.", (1, 0), "search");
    register(&at, "later", "Eve", "Later.", (1_900_000_000, 0), "ai-train");
    let job = job(dir.path(), "q,ended,1\nq,search-only,1\nq,later,1\nq,odes,1\n");
    assert_eq!(paid(&job), pairs(&[("Ada", 2500)]));
    let summary = run(&job, &dir.path().join("out"), &NoProgress).unwrap();
    let blocked: Vec<_> = summary.record.blocked.keys().map(String::as_str).collect();
    assert_eq!(blocked, ["ended", "later", "search-only"]);
    assert!(summary.record.totals.unattributed["NotLicensed"].starts_with("75.00"));
    let mut embargoed = job;
    embargoed.settings.embargo.insert("odes".into(), "2027-01-01".into());
    assert_eq!(paid(&embargoed), pairs(&[]));
    embargoed.settings.embargo = [("odes".to_owned(), "2026-11-01".to_owned())].into();
    assert_eq!(paid(&embargoed), pairs(&[("Ada", 2500)]));
    embargoed.settings.embargo.insert("nobody".into(), "2027-01-01".into());
    assert!(matches!(compute(&embargoed, dir.path(), &NoProgress).unwrap_err(), PayError::Setting { .. }));
}

/// A copy registered later earns for the original, whoever's name the scores say.
#[test]
fn copies_earn_for_the_earliest_licence() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    registry(&at);
    register(&at, "a-copy", "Mallory", "An ode.", (1, 0), "ai-train");
    let job = job(dir.path(), "q,odes,1\nq,a-copy,1\nq,tales,2\n");
    assert_eq!(paid(&job), pairs(&[("Ada", 5000), ("Bob", 5000)]));
}

/// A licence whose signature or payees were changed stops the run.
#[test]
fn forged_licences_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let job = job(dir.path(), ROWS);
    for file in ["licence.json", "manifest.json", "terms.txt"] {
        let path = dir.path().join("registry/odes").join(file);
        let good = fs::read_to_string(&path).unwrap();
        let bad = match file {
            "terms.txt" => "Other terms.\n".to_owned(),
            _ => good.replacen("eip155:31337:0x", "eip155:31338:0x", 1),
        };
        assert_ne!(good, bad);
        fs::write(&path, bad).unwrap();
        assert!(matches!(compute(&job, dir.path(), &NoProgress).unwrap_err(), PayError::Registry(_)), "{file}");
        fs::write(&path, good).unwrap();
    }
}
