//! What a payout can follow from: shares that a policy decided already, hostile numbers, amounts of any size, other clocks.

use std::fs;

use ascribe_core::{Digest, NoProgress, QueryId};
use ascribe_payout::verify::verify;
use ascribe_payout::{compute, default_period, run};
use ascribe_registry::Registry;
use ascribe_shares::{Evidence, InfluenceProportional, OwnerMap, Provenance, SharePolicy as _, Values};
use ndarray::{Array3, arr2};

use crate::common::{ROWS, job, registry};

/// A book of shares over the registry: essays, odes, tales; the second response is too noisy to pay.
fn book(registry: &Registry) -> Vec<u8> {
    let shares = arr2(&[[0.0, 0.75, 0.25], [0.5, 0.25, 0.25]]);
    let intervals = Array3::from_shape_fn((2, 3, 2), |(q, k, end)| match (q, end) {
        (1, 0) => 0.0,
        (_, 0) => 0.1,
        _ => 0.5 + k as f64 / 10.0,
    });
    let evidence = Evidence {
        queries: &[QueryId(4), QueryId(9)],
        values: Values::Calibrated(shares.view()),
        intervals: intervals.view(),
        coverage: 0.8,
        provenance: Provenance {
            scores_sha256: Digest::of(b"scores"),
            spec: Digest::of(b"spec"),
            registry: registry.digest(),
        },
    };
    let owners = OwnerMap::of_registry(registry).unwrap();
    InfluenceProportional::default().shares(&evidence, &owners).unwrap().to_json().unwrap()
}

/// 80 % of 50.00 is split three to one; the noisy response and the rest stay unattributed. Intervals and digests travel along.
#[test]
fn a_share_book_is_paid_as_it_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("registry");
    registry(&at);
    let bytes = book(&Registry::open(&at).unwrap());
    let mut job = job(dir.path(), "");
    job.scores = dir.path().join("shares.json");
    fs::write(&job.scores, &bytes).unwrap();
    let out = dir.path().join("out");
    let record = run(&job, &out, &NoProgress).unwrap().record;
    assert_eq!((record.responses, record.paid_responses, record.paid_payees), (2, 1, 2));
    assert!(record.totals.unattributed["Coverage"].starts_with("20.00"));
    assert!(record.totals.unattributed["NoShares"].starts_with("40.00"));
    assert!(record.notes.iter().any(|n| n.contains(&Digest::of(b"scores").to_string())), "{:?}", record.notes);
    let shares = fs::read_to_string(out.join("shares.csv")).unwrap();
    assert_eq!(
        shares,
        "response,dataset,owner,share_ppm,low_ppm,high_ppm\n4,odes,Ada,750000,100000,600000\n4,tales,Bob,250000,100000,700000\n"
    );
    let statement = fs::read_to_string(out.join("statements/0.html")).unwrap();
    assert!(statement.contains("10.00 % and 60.00 %"), "the interval is on the statement");
    verify(&out, None, &NoProgress).unwrap();
    // One weight changed: its shares no longer follow.
    let forged = String::from_utf8(bytes).unwrap().replacen("\"share_ppm\": 750000", "\"share_ppm\": 750001", 1);
    fs::write(&job.scores, forged).unwrap();
    assert!(compute(&job, dir.path(), &NoProgress).unwrap_err().to_string().contains("shares.json"));
}

/// A dataset that nobody registered gains nothing for anybody; a response of zeros or of losses alone is paid to nobody.
#[test]
fn hostile_numbers_have_defined_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let minor = |rows: &str| -> Result<u128, String> {
        let computed = compute(&job(dir.path(), rows), dir.path(), &NoProgress).map_err(|e| e.to_string())?;
        computed.statement.check().unwrap();
        Ok(computed.statement.rows.iter().map(|row| row.row.amount.minor).sum())
    };
    for bad in ["NaN", "inf", "-inf", "1e999", ""] {
        let error = minor(&format!("q,odes,1\nq,tales,{bad}\n")).unwrap_err();
        assert!(error.contains("scores.csv") && error.contains('3'), "{bad}: {error}");
    }
    assert_eq!(minor("q,odes,-0.0\nq,tales,0\n").unwrap(), 0);
    assert_eq!(minor("q,odes,-1\nq,tales,-2\n").unwrap(), 0);
    assert_eq!(minor("q,odes,5e-324\nq,tales,1e-310\n").unwrap(), 9999);
    assert_eq!(minor("q,odes,1e308\nq,odes,1e308\nq,tales,-1e308\n").unwrap(), 10_000);
    assert_eq!(minor("").unwrap(), 0);
}

/// Amounts above 2^53 and 2^64, to the last unit.
#[test]
fn amounts_of_any_size_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    for pool in ["90071992547409.93 USD", "184467440737095516.17 USD", "79228162514264337593543950.33 USD"] {
        let mut job = job(dir.path(), "q,odes,1\n");
        job.pool = Some(pool.parse().unwrap());
        let out = dir.path().join(pool.replace([' ', '.'], "-"));
        let record = run(&job, &out, &NoProgress).unwrap().record;
        assert_eq!(record.totals.paid.replace(".000000", ""), record.totals.funded.replace(".000000", ""));
        let merkle = fs::read_to_string(out.join("merkle.json")).unwrap();
        assert!(merkle.contains(&format!("\"{}\"", job.pool.unwrap().minor)), "amounts are strings: {merkle}");
        verify(&out, None, &NoProgress).unwrap();
    }
}

/// A score file that was swapped after the run, and one that was swapped together with its digest.
#[test]
fn a_swapped_score_file_shows() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let job = job(dir.path(), ROWS);
    let out = dir.path().join("out");
    let record = run(&job, &out, &NoProgress).unwrap().record;
    let swapped = "query_id,dataset_id,score\nq1,tales,9\n";
    fs::write(out.join("inputs/scores.csv"), swapped).unwrap();
    assert!(verify(&out, None, &NoProgress).unwrap_err().to_string().contains("changed after the run"));
    let text = fs::read_to_string(out.join("run.json")).unwrap();
    let old = record.files["inputs/scores.csv"].to_string();
    fs::write(out.join("run.json"), text.replace(&old, &Digest::of(swapped.as_bytes()).to_string())).unwrap();
    assert!(verify(&out, None, &NoProgress).is_err(), "the run's id follows from the scores");
}

/// Time enters a run through its period alone: a clock that jumps between two calls moves nothing, and periods do not overlap.
#[test]
fn a_clock_that_jumps_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let mut job = job(dir.path(), ROWS);
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let before = run(&job, &first, &NoProgress).unwrap().record;
    // Without --period a folder keeps the period that it was begun with.
    assert_eq!(default_period(Some(&first)).unwrap(), job.period);
    assert!(run(&job, &first, &NoProgress).unwrap().already_done);
    job.previous = Some(first);
    for backwards in ["2026-11-30/2026-12-31", "2026-10-01/2026-10-31", "2026-11-01/2026-11-30"] {
        job.period = backwards.parse().unwrap();
        assert!(run(&job, &second, &NoProgress).unwrap_err().to_string().contains("--period"), "{backwards}");
    }
    job.period = "2026-12-01/2026-12-31".parse().unwrap();
    let after = run(&job, &second, &NoProgress).unwrap().record;
    assert_ne!(after.run_id, before.run_id);
    // Claimable amounts only grow.
    let read = |name: &str| ascribe_ledger::PayoutTree::from_json(&fs::read(second.join(name)).unwrap()).unwrap();
    read("inputs/previous/cumulative.json").check_grows_into(&read("cumulative.json")).unwrap();
}
