//! What the ledger must refuse, and in which words.

use ascribe_core::{Digest, Share, ShareTable};
use ascribe_ledger::{Journal, LedgerError, Plan, SubUnits, pay};

use crate::toy::{event, plan, run, terms};

fn refuses(change: impl FnOnce(&mut Plan), words: &str) {
    let mut plan = plan();
    change(&mut plan);
    let error = pay(&plan).unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} lacks {words:?}");
}

#[test]
fn broken_plans() {
    refuses(
        |plan| plan.events[0].lines[0].dataset = 3,
        "response 7: dataset ordinal 3 is unknown; the plan has terms for ordinals below 3",
    );
    refuses(|plan| plan.events[0].lines[0].dataset = 1, "duplicate dataset 1 in response 7");
    refuses(|plan| plan.events[1].response = 7, "duplicate response 7");
    refuses(|plan| plan.terms[1].dataset = "urn:uuid:a".into(), "duplicate dataset urn:uuid:a");
    refuses(
        |plan| plan.terms[0].payees[0].share_ppm = 700_001,
        "payees of urn:uuid:a: expected a sum of 1000000 ppm, found 1000001",
    );
    refuses(|plan| plan.terms[0].owner = String::new(), "bad owner \"\"");
    refuses(|plan| plan.terms[0].owner = "x".repeat(201), "expected 1 to 200 characters");
    refuses(|plan| plan.run.policy.coverage_ppm = 1_000_001, "coverage: expected at most 1000000 ppm, found 1000001");
    refuses(|plan| plan.run.inputs.retain(|name, _| name == "registry"), "run inputs lack the digest of \"shares\"");
    refuses(|plan| plan.run.policy.pool.minor = u128::MAX, "overflow while computing an amount in sub-units");
    let most = u128::MAX / 4_000_000;
    refuses(|plan| plan.run.policy.pool.minor = most + 1, "overflow while computing the turnover of the pool");
}

#[test]
fn a_zero_pool_pays_nothing_and_closes() {
    let mut plan = plan();
    plan.run.policy.pool.minor = 0;
    let statement = pay(&plan).unwrap();
    assert!(statement.rows.is_empty() && statement.journal.transfers().is_empty());
    assert!(statement.conservation.holds());
}

#[test]
fn without_events_the_pool_waits() {
    for events in [vec![], vec![ascribe_ledger::Event { weight: 0, ..event(1, &[(0, 1)]) }]] {
        let statement = pay(&Plan { events, ..plan() }).unwrap();
        assert_eq!(statement.conservation.unspent, SubUnits(1_000_000_000));
        assert!(statement.rows.is_empty());
    }
}

/// Events of no weight at all: the whole pool is unattributed, nobody is paid by accident.
#[test]
fn all_zero_events_are_unattributed() {
    let mut plan = plan();
    plan.events = vec![event(1, &[(0, 0), (1, 0)])];
    let statement = pay(&plan).unwrap();
    assert_eq!(statement.conservation.unattributed, SubUnits(1_000_000_000));
}

#[test]
fn amounts_above_64_bits() {
    let mut plan = plan();
    // 10^30 wei: a million million ether.
    plan.run.policy.pool = "1000000000000 ETH".parse().unwrap();
    let statement = pay(&plan).unwrap();
    assert!(statement.conservation.holds());
    // 1/3 of the pool, 80 % covered, 3/4 of it, 70 % of that: 14 %, less a few floors.
    let exact = 10u128.pow(30) / 100 * 14;
    assert!(exact - statement.rows[0].amount.minor <= 1, "{}", statement.rows[0].amount);
}

#[test]
fn a_share_table_must_fit_its_run() {
    let share = |dataset, weight| Share { dataset, weight, share_ppm: 0, low_ppm: 0, high_ppm: 0 };
    let table = ShareTable {
        format_version: 1,
        policy: "toy".into(),
        scores_sha256: Digest::of(b"scores"),
        spec: Digest::of(b"spec"),
        coverage_ppm: 800_000,
        responses: vec![vec![share(0, 3), share(1, 1)], vec![], vec![share(2, 5)]],
    };
    let make = |run, responses: &[u32]| Plan::from_shares(run, &table, responses, plan().terms);
    assert_eq!(make(plan().run, &[7, 8, 9]).unwrap(), plan());
    let words = |error: LedgerError| error.to_string();
    let coverage = words(make(run("10.00 USD", 1, 0), &[7, 8, 9]).unwrap_err());
    assert_eq!(coverage, "share table: coverage_ppm: expected 1, found 800000");
    let count = words(make(plan().run, &[7, 8]).unwrap_err());
    assert_eq!(count, "share table: responses: expected 2, found 3");
    let mut other = plan().run;
    other.policy.shares = "pro_rata".into();
    assert_eq!(words(make(other, &[7, 8, 9]).unwrap_err()), "share table: policy: expected pro_rata, found toy");
}

/// Every kind of lie in a journal file.
#[test]
fn changed_journals() {
    let text = String::from_utf8(pay(&plan()).unwrap().journal.to_json().unwrap()).unwrap();
    let check = |from: &str, to: &str, words: &str| {
        assert!(text.contains(from), "{from}");
        let error = Journal::from_json(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{from} -> {to}: {error}");
    };
    check("10.00 USD", "10.01 USD", "journal.json: run_id: expected");
    check("10.00 USD", "10.00 XYZ", "unknown currency");
    check("\"format_version\":1", "\"format_version\":2", "format_version: expected 1, found 2");
    check("\"amount\":\"139999999\"", "\"amount\":\"139999998\"", "balance: expected");
    check("\"amount\":\"139999999\"", "\"amount\":139999999", "line 6: invalid type");
    check("\"amount\":\"139999999\"", "\"amount\":\"999139999999\"", "overdraws Liabilities:Pool");
    check("\"credits_posted\":\"3\"", "\"credits_posted\":\"4\"", "balance: expected Liabilities:Dust");
    check("\"phase\"", "\"note\":1,\"phase\"", "unknown field `note`");
    check("\"kind\":\"cash\"", "\"kind\":\"bank\"", "unknown variant `bank`");
    check("\"kind\":\"cash\"", "\"x\":1,\"kind\":\"cash\"", "sha256: expected");
    let last = text.len() - 2;
    check(&text[last..], " }\n", "sha256");
    // What no sum of money depends on is still under the checksum.
    check("\"response\":7", "\"response\":6", "journal.json: sha256: expected");
    check(",\n", ",\n ", "sha256: expected");
    let first = text.lines().nth(2).unwrap();
    check(first, &format!("{first}\n{first}"), "duplicate transfer");
    for cut in [0, 1, text.len() / 2, text.len() - 2] {
        assert!(Journal::from_json(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
    }
    // One flipped bit anywhere is refused, or it is not the same journal.
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(Journal::from_json(&bytes).is_err(), "bit of byte {at}");
    }
}

#[test]
fn many_owners_of_one_name_are_one_owner() {
    let mut plan = plan();
    plan.terms[1] = terms("b", "Ada ", &[(None, 1_000_000)]);
    // A trailing space would make two owners that read alike.
    assert!(matches!(pay(&plan), Err(LedgerError::BadName { what: "owner", .. })));
}
