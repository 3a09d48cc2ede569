//! Receipts of runs: one a response, their sums the books', no response paid twice by one log, none that can be forged or left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, NoProgress};
use ascribe_payout::usage::{USAGE_CHECKPOINT, USAGE_DIR, UsageCheck, UsageJob};
use ascribe_payout::verify::{verify, verify_with};
use ascribe_payout::{PayError, PayJob, compute, run, run_with};
use ascribe_registry::{
    Registry, SignedUsage, UsageLog, UsageReceipt, UsageSalts, demo_usage_signer, salted_hash, verify_usage_log,
};

use crate::common::{ROWS, job, registry};

fn receipts(log: &Path) -> Vec<UsageReceipt> {
    let text = fs::read_to_string(log.join("receipts/0.jsonl")).unwrap();
    text.lines().map(|line| SignedUsage::parse(line.as_bytes()).unwrap().receipt).collect()
}

fn by_id(log: &Path) -> BTreeMap<String, UsageReceipt> {
    receipts(log).into_iter().map(|receipt| (receipt.request_id.clone(), receipt)).collect()
}

fn shared(dir: &Path) -> UsageJob {
    UsageJob { log: Some(dir.join("shared")), ..UsageJob::default() }
}

fn world() -> (tempfile::TempDir, PayJob, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    let (job, out) = (job(dir.path(), ROWS), dir.path().join("out"));
    (dir, job, out)
}

/// 100.00 dollars over three responses: 33.33, 33.33 and 33.34; what datasets earned by them is what the books say.
#[test]
fn every_response_leaves_a_receipt_and_they_sum_to_the_books() {
    let (dir, job, out) = world();
    let summary = run(&job, &out, &NoProgress).unwrap();
    let done = summary.usage_log.unwrap();
    assert_eq!((done.appended, done.there, done.demo_key), (3, 0, true));
    let log = out.join(USAGE_DIR);
    let audit = verify_usage_log(&log, demo_usage_signer().verifier(), &[], &NoProgress).unwrap();
    assert_eq!((audit.receipts, audit.revenue), (3, vec![("USD".to_owned(), "10000".to_owned())]));
    let found = by_id(&log);
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["q1", "q2", "q3"]);
    assert!(found.values().all(|r| (3333..=3334).contains(&r.revenue.minor_units) && r.weight_total == 3_333_333_333));
    let first = &found["q1"];
    assert_eq!(first.shares.iter().map(|share| share.weight).collect::<Vec<_>>(), [2_499_999_999, 833_333_333]);
    assert_eq!(first.settled_on, "2026-11-30T00:00:00Z");
    assert_eq!(first.spec_sha256, summary.record.run_id);
    assert_eq!(first.attribution_sha256, Some(Digest::of(&fs::read(&job.scores).unwrap())));
    // Half of the third is a stranger's: nobody's.
    assert_eq!(found["q3"].shares.iter().map(|share| share.weight).sum::<u128>(), 1_666_666_666);
    let mut earned: BTreeMap<String, u128> = BTreeMap::new();
    let opened = Registry::open(&job.registry).unwrap();
    let owner = |uuid: &str| opened.datasets().iter().find(|d| d.manifest.uuid == uuid).unwrap().manifest.owner.clone();
    for share in found.values().flat_map(|receipt| &receipt.shares) {
        *earned.entry(owner(&share.dataset)).or_default() += share.weight;
    }
    let computed = compute(&job, dir.path(), &NoProgress).unwrap();
    let books = computed.statement.rows.iter().map(|row| (row.row.owner.clone(), row.accrued)).collect();
    assert_eq!(earned, books);
    let verified = verify(&out, None, &NoProgress).unwrap().receipts;
    assert_eq!((verified.checked, verified.erased, verified.unchecked), (3, 0, None));
}

#[test]
fn a_rerun_leaves_the_log_alone() {
    let (_dir, job, out) = world();
    run(&job, &out, &NoProgress).unwrap();
    let checkpoint = fs::read(out.join("usage/log/checkpoint")).unwrap();
    let again = run(&job, &out, &NoProgress).unwrap();
    assert!(again.already_done && again.usage_log.is_none());
    assert_eq!(fs::read(out.join("usage/log/checkpoint")).unwrap(), checkpoint);
}

#[test]
fn a_response_that_the_log_has_paid_is_refused_before_anything_is_written() {
    let (dir, job, out) = world();
    let usage = shared(dir.path());
    run_with(&job, &usage, &out, &NoProgress).unwrap();
    let log = dir.path().join("shared");
    let size = fs::metadata(log.join("requests.bin")).unwrap().len();
    let mut december = job.clone();
    december.period = "2026-12-01/2026-12-31".parse().unwrap();
    let mut larger = job.clone();
    larger.pool = Some("200.00 USD".parse().unwrap());
    // The same scores with one response more: the others were paid.
    let mut more = job.clone();
    more.scores = dir.path().join("more.csv");
    fs::write(&more.scores, format!("query_id,dataset_id,score\n{ROWS}q4,odes,1\n")).unwrap();
    for (i, replay) in [december, larger, more].iter().enumerate() {
        let folder = dir.path().join(format!("replay-{i}"));
        let error = run_with(replay, &usage, &folder, &NoProgress).unwrap_err().to_string();
        assert!(error.contains("each response paid once (a replay), found \"q"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{i}: something was written");
    }
    assert_eq!(fs::metadata(log.join("requests.bin")).unwrap().len(), size);
    // By another log, or with other responses, it is paid.
    let (scores, next) = (dir.path().join("next.csv"), dir.path().join("next"));
    fs::write(&scores, "query_id,dataset_id,score\nq9,tales,1\n").unwrap();
    let done = run_with(&PayJob { scores, ..job.clone() }, &usage, &next, &NoProgress).unwrap().usage_log.unwrap();
    assert_eq!((done.appended, done.there), (1, 0));
    // The first run's receipts are still those of its checkpoint.
    let check = UsageCheck { log: Some(log), key: None };
    for folder in [&out, &next] {
        verify_with(folder, None, &check, &NoProgress).unwrap();
        assert!(folder.join(USAGE_CHECKPOINT).exists() && !folder.join(USAGE_DIR).exists());
        let unchecked = verify(folder, None, &NoProgress).unwrap().receipts.unchecked.unwrap();
        assert!(unchecked.contains("--usage-log"), "{unchecked}");
    }
}

/// The very same run in another folder is the same run: its receipts are there already.
#[test]
fn the_same_run_elsewhere_appends_nothing() {
    let (dir, job, out) = world();
    let usage = shared(dir.path());
    let first = run_with(&job, &usage, &out, &NoProgress).unwrap();
    let twin = run_with(&job, &usage, &dir.path().join("twin"), &NoProgress).unwrap();
    let done = twin.usage_log.unwrap();
    assert_eq!((done.appended, done.there), (0, 3));
    assert_eq!(twin.record, first.record);
}

/// After the receipts, before `run.json`: the same command finishes, and appends none twice.
#[test]
fn a_crash_between_receipts_and_record_is_mended() {
    let (_dir, job, out) = world();
    let first = run(&job, &out, &NoProgress).unwrap();
    fs::remove_file(out.join("run.json")).unwrap();
    // Another run cannot take the folder over meanwhile.
    let mut other = job.clone();
    other.pool = Some("1.00 USD".parse().unwrap());
    assert!(run(&other, &out, &NoProgress).unwrap_err().to_string().contains("a replay"));
    let again = run(&job, &out, &NoProgress).unwrap();
    let done = again.usage_log.unwrap();
    assert_eq!((done.appended, done.there), (0, 3));
    assert_eq!(again.record, first.record);
    verify(&out, None, &NoProgress).unwrap();
}

/// Somebody with the key writes another log in the place of the run's: its signatures hold, the run does not give it.
#[test]
fn forged_missing_and_further_receipts_are_found() {
    let (_dir, job, out) = world();
    run(&job, &out, &NoProgress).unwrap();
    let log = out.join(USAGE_DIR);
    let honest = receipts(&log);
    let rewrite = |receipts: &[UsageReceipt]| {
        fs::remove_dir_all(&log).unwrap();
        let signer = demo_usage_signer();
        let signed = receipts.iter().map(|receipt| receipt.clone().sign(signer.key())).collect();
        UsageLog::open(&log, demo_usage_signer()).unwrap().append(signed, &NoProgress).unwrap();
        verify(&out, None, &NoProgress).map(drop).map_err(|error| error.to_string())
    };
    let mut forged = honest.clone();
    forged[0].shares[0].weight -= 1;
    let message = rewrite(&forged).unwrap_err();
    assert!(message.contains("receipt of response") && message.contains(", shares: expected"), "{message}");
    let mut forged = honest.clone();
    forged[1].revenue.minor_units += 1;
    assert!(rewrite(&forged).unwrap_err().contains(", revenue: expected"));
    let message = rewrite(&honest[..2]).unwrap_err();
    assert!(message.contains("one of every response of the run"), "{message}");
    let mut further = honest.clone();
    further.push(honest[0].clone());
    further[3].request_id = "q4".to_owned();
    assert!(rewrite(&further).unwrap_err().contains("3 receipts, those of the run, found 4"));
    rewrite(&honest).unwrap();
    // One digit of one receipt, and none at all.
    let path = log.join("receipts/0.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"minorUnits\":\"3333\"", "\"minorUnits\":\"9333\"", 1)).unwrap();
    assert!(matches!(verify(&out, None, &NoProgress).unwrap_err(), PayError::Registry(_)));
    fs::remove_dir_all(&log).unwrap();
    assert!(
        verify(&out, None, &NoProgress).unwrap_err().to_string().contains("a usage log with 3 receipts, found none")
    );
}

#[test]
fn outputs_stand_as_salted_hashes_that_the_operator_opens() {
    let (dir, job, out) = world();
    let outputs = dir.path().join("outputs.jsonl");
    let lines = "{\"query_id\":\"q1\",\"output\":\"one\"}\n{\"query_id\":\"q3\",\"output\":\"três\"}\n";
    let usage = UsageJob {
        outputs: Some(outputs.clone()),
        run_record: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/wren/run.json")),
        ..UsageJob::default()
    };
    fs::write(&outputs, lines).unwrap();
    let missing = run_with(&job, &usage, &out, &NoProgress).unwrap_err().to_string();
    assert!(missing.contains("none for response \"q2\""), "{missing}");
    fs::write(&outputs, format!("{lines}{{\"query_id\":\"q1\",\"output\":\"again\"}}\n")).unwrap();
    assert!(run_with(&job, &usage, &out, &NoProgress).unwrap_err().to_string().contains("response \"q1\" again"));
    fs::write(&outputs, format!("{lines}{{\"query_id\":\"q2\",\"output\":\"two\"}}\n")).unwrap();
    let record = run_with(&job, &usage, &out, &NoProgress).unwrap().record;
    let facts = record.usage.unwrap();
    assert!(facts.model_sha256 != Digest::default() && facts.model_run != "not stated");
    let found = by_id(&out.join(USAGE_DIR));
    let salt = UsageSalts::of(demo_usage_signer().key()).salt("q3");
    assert_eq!(found["q3"].output_salted_sha256, salted_hash(&salt, "três".as_bytes()));
    assert_eq!((found["q3"].model_sha256, &found["q3"].run_id), (facts.model_sha256, &facts.model_run));
    verify(&out, None, &NoProgress).unwrap();
}

#[test]
fn responses_with_odd_names_and_numbers_have_receipts_too() {
    let (dir, mut job, _) = world();
    let long = "x".repeat(300);
    for (rows, expected) in [
        ("17,odes,1\n3,tales,1\n".to_owned(), vec!["17".to_owned(), "3".to_owned()]),
        (format!("{long},odes,1\n"), vec![format!("sha256:{}", Digest::of(long.as_bytes()))]),
    ] {
        fs::write(&job.scores, format!("query_id,dataset_id,score\n{rows}")).unwrap();
        let out = dir.path().join(format!("out-{}", expected.len()));
        run(&job, &out, &NoProgress).unwrap();
        assert_eq!(by_id(&out.join(USAGE_DIR)).into_keys().collect::<Vec<_>>(), expected);
        verify(&out, None, &NoProgress).unwrap();
    }
    // A pool too small to weigh: receipts without revenue, and nothing refused.
    job.pool = Some("0.00 USD".parse().unwrap());
    let out = dir.path().join("nothing");
    run(&job, &out, &NoProgress).unwrap();
    assert!(by_id(&out.join(USAGE_DIR)).values().all(|r| r.revenue.minor_units == 0 && r.shares.is_empty()));
    verify(&out, None, &NoProgress).unwrap();
}

/// Revenues of their own: 0.4, 0.4 and 0.4 cents are a cent, which the response gets that completes it; the rest is below one.
#[test]
fn revenues_of_responses_become_whole_units_of_the_pool() {
    let (dir, mut job, out) = world();
    let rows = "query_id,dataset_id,score,revenue\nq1,odes,1,0.004 USD\nq2,tales,1,0.004 USD\nq3,odes,1,0.004 USD\n";
    fs::write(&job.scores, rows).unwrap();
    job.pool = None;
    run(&job, &out, &NoProgress).unwrap();
    let found = receipts(&out.join(USAGE_DIR));
    assert!(found.iter().all(|receipt| receipt.weight_total == 400_000));
    assert_eq!(found.iter().map(|receipt| receipt.revenue.minor_units).sum::<u128>(), 1);
    verify(&out, None, &NoProgress).unwrap();
    drop(dir);
}
