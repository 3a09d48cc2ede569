//! Revenue by response: the column `revenue` pays each response's own contributors, to the last sub-unit, or the run is refused.

use std::fs;

use ascribe_core::NoProgress;
use ascribe_ledger::SubUnits;
use ascribe_payout::verify::verify;
use ascribe_payout::{PayJob, compute, run};

use crate::common::{job, registry};

fn with(dir: &std::path::Path, rows: &str) -> PayJob {
    let mut job = job(dir, "");
    fs::write(&job.scores, format!("query_id,dataset_id,score,revenue\n{rows}")).unwrap();
    job.pool = None;
    job
}

/// 9.00 of the first response go three to one, 1.00 of the second to Bob alone, half of 0.50 of the third to a stranger: an even split
/// of the same 10.50 would have paid 3.50 for each.
#[test]
fn each_response_pays_its_own_contributors() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let rows = "q1,odes,3,9.00 USD\nq1,tales,1,9 USD\nq2,tales,2,1.00 USD\nq2,essays,-1,1.00 USD\nq3,nobody,1,0.50 USD\nq3,odes,1,0.50 USD\n";
    let job = with(dir.path(), rows);
    let out = dir.path().join("out");
    let record = run(&job, &out, &NoProgress).unwrap().record;
    assert_eq!(record.run.policy.pool.to_string(), "10.50 USD");
    assert_eq!(record.pool_rest_subunits, None);
    let payout = fs::read_to_string(out.join("payout.csv")).unwrap();
    assert!(payout.contains(",USD,700,7.00,2,"), "Ada, by q1 and q3: {payout}");
    assert!(payout.contains(",USD,325,3.25,2,"), "Bob, by q1 and q2: {payout}");
    assert!(record.totals.unattributed["Unregistered"].starts_with("0.25"), "{:?}", record.totals);
    assert!(record.totals.conserved && record.notes.iter().any(|note| note.contains("column `revenue`")));
    verify(&out, None, &NoProgress).unwrap();
    // The pool may be named; it is a check and not a second source.
    let named = PayJob { pool: Some("10.50 USD".parse().unwrap()), ..job.clone() };
    assert!(run(&named, &out, &NoProgress).unwrap().already_done);
    let other = PayJob { pool: Some("10.51 USD".parse().unwrap()), ..job };
    let error = compute(&other, dir.path(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("--pool: expected 10.50 USD, the sum of the column `revenue`"), "{error}");
}

/// Revenue below a cent: what is beyond whole cents is funded too, and the next run's dust begins with nothing made or lost.
#[test]
fn sums_below_a_minor_unit_are_conserved() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let first = with(dir.path(), "q1,odes,1,1234567\nq1,tales,1,1234567\nq2,tales,1,1\n");
    // Integers name no currency.
    let error = compute(&first, dir.path(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("say no currency"), "{error}");
    let first = PayJob { pool: Some("0.01 USD".parse().unwrap()), ..first };
    let out = dir.path().join("first");
    let record = run(&first, &out, &NoProgress).unwrap().record;
    assert_eq!(record.pool_rest_subunits, Some(SubUnits(234_568)));
    assert_eq!((record.totals.funded.as_str(), record.totals.dust_subunits.as_str()), ("0.01234568 USD", "1"));
    verify(&out, None, &NoProgress).unwrap();
    // A swapped revenue is another run.
    let text = fs::read_to_string(out.join("inputs/scores.csv")).unwrap();
    fs::write(out.join("inputs/scores.csv"), text.replace("q2,tales,1,1", "q2,tales,1,2")).unwrap();
    assert!(verify(&out, None, &NoProgress).is_err());
    fs::write(out.join("inputs/scores.csv"), text).unwrap();
    let mut second = with(dir.path(), "q3,tales,1,0.02 USD\n");
    second.period = "2026-12-01/2026-12-31".parse().unwrap();
    second.previous = Some(out);
    let out = dir.path().join("second");
    let record = run(&second, &out, &NoProgress).unwrap().record;
    // Two cents, and a sub-unit of dust that stays dust.
    assert_eq!((record.totals.funded.as_str(), record.totals.dust_subunits.as_str()), ("0.02000001 USD", "1"));
    verify(&out, None, &NoProgress).unwrap();
}

#[test]
fn revenue_that_cannot_stand_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    for (rows, words) in [
        ("q1,odes,1,1 USD\nq1,tales,1,2 USD\n", "the same on all rows of response \"q1\""),
        ("q1,odes,1,1 USD\nq2,tales,1,1 EUR\n", "one currency, found USD and EUR"),
        ("q1,odes,1,1.5\n", "sub-units as an integer, or an amount"),
        ("q1,odes,1,-1\n", "sub-units as an integer, or an amount"),
        ("q1,odes,1,NaN USD\n", "sub-units as an integer, or an amount"),
        ("q1,odes,1,1e3 USD\n", "sub-units as an integer, or an amount"),
        ("q1,odes,1,1 XYZ\n", "unknown currency"),
        ("q1,odes,1,\n", "revenue"),
        ("q1,odes,1,340282366920938463463374607431768211455\nq2,odes,1,1 USD\n", "overflow"),
    ] {
        let error = compute(&with(dir.path(), rows), dir.path(), &NoProgress).unwrap_err().to_string();
        assert!(error.contains(words), "{rows}: {error}");
    }
    let mut without = job(dir.path(), "q1,odes,1\n");
    without.pool = None;
    let error = compute(&without, dir.path(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("--pool: expected the settled revenue"), "{error}");
    // A response that earned nothing pays nobody, and the others keep theirs.
    let computed = compute(&with(dir.path(), "q1,odes,1,0 USD\nq2,tales,1,3 USD\n"), dir.path(), &NoProgress).unwrap();
    let paid: Vec<_> =
        computed.statement.rows.iter().map(|row| (row.row.owner.as_str(), row.row.amount.minor)).collect();
    assert_eq!(paid, [("Bob", 300)]);
}

/// Many responses over several row groups' worth of batches: money by hand from the same integers.
#[test]
fn ten_thousand_responses_add_up() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let mut rows = String::new();
    let (mut ada, mut total) = (0u128, 0u128);
    for n in 0..10_000u128 {
        let revenue = n * 7919 % 100_003;
        rows += &format!("{n},odes,1,{revenue}\n{n},tales,3,{revenue}\n");
        ada += revenue / 4;
        total += revenue;
    }
    let mut job = with(dir.path(), &rows);
    job.pool = Some(format!("{}.{:02} USD", total / 100_000_000, total / 1_000_000 % 100).parse().unwrap());
    let computed = compute(&job, dir.path(), &NoProgress).unwrap();
    computed.statement.check().unwrap();
    assert_eq!(computed.statement.funded, SubUnits(total));
    // Weights are quantised once per response, so a quarter is exact.
    assert_eq!(computed.statement.rows[0].accrued, ada);
}
