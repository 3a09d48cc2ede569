//! `ascribe pay run | plan | verify | diff` over the registry that ships: the contract that outside checks rely on.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{run, stderr, stdout};

const FILES: [&str; 8] = [
    "merkle.json",
    "cumulative.json",
    "uniswap.json",
    "splits-v2.json",
    "safe.csv",
    "pain001.xml",
    "run.journal",
    "run.beancount",
];

/// Three responses over names of the shipped registry.
const SCORES: &str = "query_id,dataset_id,score\n1,jargon-file,3.5\n1,kjv-bible,1.5\n1,austen-novels,-2\n2,kjv-bible,0.25\n\
                      2,foldoc,0.75\n3,python-docs,-1\n3,nobody-knows,0\n";

fn args<'a>(command: &'a str, scores: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["pay", command, "--scores", scores.to_str().unwrap(), "--registry", "datasets"];
    args.extend(["--pool", "1000.00 USD", "--format", "json", "--quiet"]);
    if command == "run" {
        args.extend(["--out", out.to_str().unwrap()]);
    }
    args.extend_from_slice(more);
    args
}

fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn refused(args: &[&str], words: &str) {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(stderr(&output).contains(words), "{:?} lacks {words:?}", stderr(&output));
}

fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    FILES
        .iter()
        .chain(&["payout.csv", "payees.csv", "run.json"])
        .map(|n| ((*n).to_owned(), fs::read(dir.join(n)).unwrap()))
        .collect()
}

#[test]
fn the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(&scores, SCORES).unwrap();
    let summary = json(&args("run", &scores, &out, &[]));
    assert_eq!(summary["totals"]["conserved"], true);
    assert_eq!(summary["paid_responses"], 2);
    assert_eq!(summary["already_done"], false);
    let first = bytes(&out);
    // A rerun changes nothing and says so.
    assert_eq!(json(&args("run", &scores, &out, &[]))["already_done"], true);
    assert_eq!(bytes(&out), first);
    // Reordered rows are another file with another digest, but the same money on one thread.
    let other = dir.path().join("turned.csv");
    let mut lines: Vec<&str> = SCORES.lines().skip(1).collect();
    lines.reverse();
    fs::write(&other, format!("query_id,dataset_id,score\n{}\n", lines.join("\n"))).unwrap();
    let again = dir.path().join("again");
    json(&args("run", &other, &again, &["--threads", "1"]));
    for name in ["merkle.json", "uniswap.json", "splits-v2.json", "safe.csv"] {
        assert_eq!(fs::read(again.join(name)).unwrap(), fs::read(out.join(name)).unwrap(), "{name}");
    }
    // Verified from its own folder, whatever became of the score file.
    fs::remove_file(&scores).unwrap();
    let verified = json(&["pay", "verify", out.to_str().unwrap(), "--format", "json", "--quiet"]);
    assert_eq!(verified["recomputed"], true);
    // Another run does not overwrite this one.
    refused(&args("run", &other, &out, &[]), "another run stands in this folder");
}

/// 1000.00 over three responses: a third each; of the first the Jargon File gets 3.5/5, of the second FOLDOC 0.75 less a floor; the
/// third has no proponent.
#[test]
fn the_amounts_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(&scores, SCORES).unwrap();
    let summary = json(&args("run", &scores, &out, &[]));
    let (_, payout) = bytes(&out).into_iter().find(|(name, _)| name == "payout.csv").unwrap();
    let payout = String::from_utf8(payout).unwrap();
    assert!(payout.contains(",USD,23333,233.33,1,"), "{payout}");
    assert!(payout.contains(",USD,24999,249.99,1,"), "{payout}");
    assert!(summary["totals"]["unattributed"]["NoShares"].as_str().unwrap().starts_with("333.3333333"), "{summary}");
    let uniswap: Value = serde_json::from_slice(&fs::read(out.join("uniswap.json")).unwrap()).unwrap();
    let total = u64::from_str_radix(uniswap["tokenTotal"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let paid: u64 = payout
        .lines()
        .skip(1)
        .map(|l| l.split(",USD,").nth(1).unwrap().split(',').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, paid);
}

#[test]
fn a_changed_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(&scores, SCORES).unwrap();
    json(&args("run", &scores, &out, &[]));
    let verify = ["pay", "verify", out.to_str().unwrap(), "--quiet"];
    for name in FILES.iter().copied().chain(["inputs/scores.csv", "inputs/registry/kjv-bible/licence.json"]) {
        let good = fs::read(out.join(name)).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(out.join(name), &bad).unwrap();
        refused(&verify, "SHA-256");
        fs::write(out.join(name), &good).unwrap();
    }
    // A forger who also mends the record's digests is found by recomputing.
    let (safe, record) = (out.join("safe.csv"), out.join("run.json"));
    let text = fs::read_to_string(&safe).unwrap().replacen("233.33", "933.33", 1);
    let old = ascribe_core::Digest::of(&fs::read(&safe).unwrap()).to_string();
    fs::write(&safe, &text).unwrap();
    let forged =
        fs::read_to_string(&record).unwrap().replace(&old, &ascribe_core::Digest::of(text.as_bytes()).to_string());
    fs::write(&record, forged).unwrap();
    refused(&verify, "safe.csv: made again");
    fs::write(out.join("more.txt"), "x").unwrap();
    refused(&verify, "not part of the run");
}

#[test]
fn periods_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let scores = dir.path().join("scores.csv");
    fs::write(&scores, SCORES).unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    json(&args("run", &scores, &first, &["--period", "2026-10-01/2026-10-31"]));
    let previous = ["--previous", first.to_str().unwrap()];
    let later = [&previous[..], &["--period", "2026-11-01/2026-11-30"]].concat();
    let plan = json(&args("plan", &scores, &second, &later));
    // FOLDOC's cent that was short comes with what it carried; the other two are paid the same.
    assert_eq!(plan["against_previous"]["unchanged"], 2);
    let summary = json(&args("run", &scores, &second, &later));
    assert_eq!(plan["run_id"], summary["run_id"]);
    let cumulative = |dir: &Path| -> u128 {
        let tree: Value = serde_json::from_slice(&fs::read(dir.join("cumulative.json")).unwrap()).unwrap();
        tree["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["value"][2].as_str().unwrap().parse::<u128>().unwrap())
            .sum()
    };
    assert!(cumulative(&second) >= 2 * cumulative(&first));
    json(&["pay", "verify", second.to_str().unwrap(), "--format", "json", "--quiet"]);
    let changed = json(&["pay", "diff", first.to_str().unwrap(), second.to_str().unwrap(), "--format", "json"]);
    assert_eq!(changed["unchanged"], 2);
    assert_eq!(changed["rows"][0]["change"], "+0.01");
    let earlier = [&previous[..], &["--period", "2026-10-15/2026-11-30"]].concat();
    refused(&args("run", &scores, &dir.path().join("3"), &earlier), "a period after the earlier run's last day");
}

#[test]
fn hostile_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    let head = "query_id,dataset_id,score\n";
    for (rows, words) in [
        ("1,kjv-bible,NaN\n", "finite number"),
        ("1,kjv-bible,inf\n", "finite number"),
        ("1,kjv-bible\n", "3 as in the header"),
    ] {
        fs::write(&scores, format!("{head}{rows}")).unwrap();
        refused(&args("run", &scores, &out, &[]), words);
        assert!(!out.join("run.json").exists());
    }
    fs::write(&scores, "a,b,c\n1,2,3\n").unwrap();
    refused(&args("run", &scores, &out, &[]), "column of the response");
    for (pool, words) in
        [("1000 XYZ", "unknown currency"), ("1000.001 USD", "at most 2 decimals"), ("-1 USD", "not an amount")]
    {
        fs::write(&scores, format!("{head}1,kjv-bible,1\n")).unwrap();
        let mut with = args("run", &scores, &out, &[]);
        let at = with.iter().position(|a| *a == "1000.00 USD").unwrap();
        with[at] = pool;
        // `-1 USD` looks like a flag to the parser: it is refused either way.
        let output = run(&with);
        assert_eq!(output.status.code(), Some(1), "{pool}");
        assert!(stderr(&output).contains(words) || pool.starts_with('-'), "{}", stderr(&output));
    }
    // Nobody to pay: every unit is unattributed, and no chain file pretends otherwise.
    for rows in ["1,kjv-bible,0\n1,foldoc,-0.0\n", "1,kjv-bible,-5e-324\n2,foldoc,-1\n", "1,stranger,4\n", ""] {
        fs::write(&scores, format!("{head}{rows}")).unwrap();
        let out = dir.path().join(format!("none{}", rows.len()));
        let summary = json(&args("run", &scores, &out, &[]));
        assert_eq!(summary["totals"]["conserved"], true);
        assert_eq!(summary["paid_payees"], 0);
        assert!(summary["skipped"]["merkle.json"].as_str().unwrap().contains("nobody is paid"));
        json(&["pay", "verify", out.to_str().unwrap(), "--format", "json", "--quiet"]);
    }
    // Denormals are numbers like others; amounts beyond 2^64 and 2^53 survive.
    fs::write(&scores, format!("{head}1,kjv-bible,5e-324\n1,foldoc,1.5e-323\n")).unwrap();
    let out = dir.path().join("large");
    let mut large = args("run", &scores, &out, &[]);
    let at = large.iter().position(|a| *a == "1000.00 USD").unwrap();
    large[at] = "12345678901234.000000000000000001 ETH";
    let summary = json(&large);
    assert_eq!(summary["totals"]["conserved"], true);
    let splits: Value = serde_json::from_slice(&fs::read(out.join("splits-v2.json")).unwrap()).unwrap();
    assert_eq!(splits["totalAllocation"].as_str().unwrap().len(), 32, "{splits}");
    assert!(summary["skipped"]["pain001.xml"].as_str().unwrap().contains("ETH"));
}

/// The record of a run in a log: found with the log's key, refused with another, and a changed record has no place in it.
#[test]
fn an_audit_reads_the_log_beside_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(&scores, SCORES).unwrap();
    json(&args("run", &scores, &out, &[]));
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [key, other, log] = ["log.key", "other.key", "log"].map(path);
    let public = json(&["log", "keygen", "log.example/runs", "--out", &key, "--format", "json"]);
    let stranger = json(&["log", "keygen", "log.example/runs", "--out", &other, "--format", "json"]);
    json(&["log", "init", &log, "--key", &key, "--format", "json"]);
    let record = out.join("run.json").to_str().unwrap().to_owned();
    json(&["log", "append", &log, "--key", &key, &record, "--format", "json", "--quiet"]);
    fs::create_dir_all(out.join("evidence")).unwrap();
    let proof = out.join("evidence/record.tlog-proof");
    assert!(run(&["log", "prove", &log, "0", "--out", proof.to_str().unwrap()]).status.success());
    let audit = |vkey: &Value| {
        let vkey = vkey["key"].as_str().unwrap().to_owned();
        run(&["audit", out.to_str().unwrap(), "--log-key", &vkey, "--format", "json", "--quiet"])
    };
    let found: Value = serde_json::from_str(&stdout(&audit(&public))).unwrap();
    assert_eq!((&found["recomputed"], &found["evidence"]["record"]["index"]), (&Value::from(true), &Value::from(0)));
    let refused = audit(&stranger);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("a receipt of run.json from the log of log.example/runs"),
        "{}",
        stderr(&refused)
    );
    // Without a key the receipt is named, not believed.
    let unread = json(&["audit", out.to_str().unwrap(), "--format", "json", "--quiet"]);
    assert_eq!(unread["evidence"]["unchecked"][0], "evidence/record.tlog-proof");
}

/// A pool above the policy's threshold waits for two different people; the plan says so beforehand, and neither one person twice nor
/// somebody who is not on the list will do.
#[test]
fn two_people_approve_a_large_pool() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(&scores, SCORES).unwrap();
    let phrase = path("phrase.txt");
    fs::write(&phrase, "correct horse battery staple\n").unwrap();
    let person = |name: &str| {
        let keystore = path(name);
        let made = json(&[
            "licence",
            "new-key",
            "--out",
            &keystore,
            "--kind",
            "ed25519",
            "--passphrase-file",
            &phrase,
            "--format",
            "json",
        ]);
        (keystore, made["licensor"].as_str().unwrap().to_owned())
    };
    let [ann, ben, eve] = ["ann.json", "ben.json", "eve.json"].map(person);
    let policy = path("policy.toml");
    let text = format!("approval = {{ above_minor = 99999, approvers = [\"{}\", \"{}\"] }}\n", ann.1, ben.1);
    fs::write(&policy, text).unwrap();
    let with = ["--policy", policy.as_str()];
    let plan = json(&args("plan", &scores, &out, &with));
    assert_eq!((&plan["approval"]["needed"], &plan["approval"]["required"]), (&true.into(), &2.into()));
    refused(&args("run", &scores, &out, &with), "expected 2 different approvers");
    assert!(!out.join("run.json").exists());
    let folder = out.to_str().unwrap();
    let approve = |keystore: &str| {
        let args = ["pay", "approve", folder, "--keystore", keystore, "--passphrase-file", &phrase, "--format", "json"];
        json(&args)
    };
    // Without --run-id the run that waits in the folder is signed: the one that the plan named.
    assert_eq!(approve(&ann.0)["run_id"], plan["run_id"]);
    approve(&ann.0);
    refused(&args("run", &scores, &out, &with), "found 1");
    approve(&eve.0);
    refused(&args("run", &scores, &out, &with), "an approver of the policy");
    let theirs = fs::read_dir(out.join("approvals")).unwrap().map(|entry| entry.unwrap().path());
    theirs.filter(|p| fs::read_to_string(p).unwrap().contains(&eve.1)).for_each(|p| fs::remove_file(p).unwrap());
    approve(&ben.0);
    let summary = json(&args("run", &scores, &out, &with));
    assert_eq!(summary["run_id"], plan["run_id"]);
    json(&["pay", "verify", folder, "--format", "json", "--quiet"]);
    // Another pool is another run, which nobody has signed.
    let larger_out = dir.path().join("larger");
    let mut larger = args("run", &scores, &larger_out, &with);
    let at = larger.iter().position(|a| *a == "1000.00 USD").unwrap();
    larger[at] = "1000.01 USD";
    refused(&larger, "expected 2 different approvers");
    // Below the threshold nobody is asked.
    let small_out = dir.path().join("small");
    let mut small = args("run", &scores, &small_out, &with);
    small[at] = "999.99 USD";
    json(&small);
    refused(
        &["pay", "approve", folder, "--run-id", "12", "--keystore", &ann.0, "--passphrase-file", &phrase],
        "64 hex digits",
    );
}

/// A score file that says what each response earned needs no pool, and a pool beside it must be the sum.
#[test]
fn revenue_by_response_is_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let (scores, out) = (dir.path().join("scores.csv"), dir.path().join("out"));
    fs::write(
        &scores,
        "query_id,dataset_id,score,revenue\n1,jargon-file,3,2.00 USD\n1,kjv-bible,1,2.00 USD\n2,kjv-bible,5,0.30 USD\n",
    )
    .unwrap();
    refused(&args("run", &scores, &out, &[]), "expected 2.30 USD, the sum of the column `revenue`");
    let mut without = args("run", &scores, &out, &[]);
    let at = without.iter().position(|a| *a == "--pool").unwrap();
    without.drain(at..at + 2);
    let summary = json(&without);
    assert_eq!(
        (&summary["run"]["policy"]["pool"], &summary["totals"]["conserved"]),
        (&"2.30 USD".into(), &true.into())
    );
    let payout = fs::read_to_string(out.join("payout.csv")).unwrap();
    assert!(payout.contains(",USD,150,1.50,1,") && payout.contains(",USD,80,0.80,2,"), "{payout}");
    fs::write(&scores, SCORES).unwrap();
    without[at - 1] = "datasets";
    let none = dir.path().join("none");
    let out_at = without.iter().position(|a| *a == "--out").unwrap() + 1;
    without[out_at] = none.to_str().unwrap();
    refused(&without, "--pool: expected the settled revenue");
    fs::write(&scores, "query_id,dataset_id,score,score\n1,kjv-bible,1,2\n").unwrap();
    refused(&args("run", &scores, &none, &[]), "`score` twice, as columns 3 and 4");
}

/// Every paid response leaves a receipt; a log refuses to pay one twice; `pay verify`, `audit`, `log verify` and `log usage` read it.
#[test]
fn receipts_are_left_checked_and_not_paid_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (scores, out, next, shared) = (path("scores.csv"), path("out"), path("next"), path("shared"));
    fs::write(&scores, SCORES).unwrap();
    let summary = json(&args("run", &scores, &out, &[]));
    assert_eq!(summary["usage_log"]["appended"], 3);
    assert_eq!(summary["usage_log"]["demo_key"], true);
    let own = out.join("usage");
    let (folder, log) = (out.to_str().unwrap(), own.join("log"));
    assert_eq!(json(&["log", "verify", log.to_str().unwrap(), "--format", "json"])["size"], 3);
    let vkey = log.join("log.vkey");
    let vkey = vkey.to_str().unwrap();
    let usage = json(&["log", "usage", "verify", own.to_str().unwrap(), "--key", vkey, "--format", "json"]);
    assert_eq!(usage["revenue"], serde_json::json!([["USD", "100000"]]));
    assert_eq!(json(&["pay", "verify", folder, "--usage-key", vkey, "--format", "json"])["receipts"]["checked"], 3);
    let audited = json(&["audit", folder, "--usage-key", vkey, "--format", "json"]);
    assert_eq!((&audited["receipts"]["checked"], &audited["evidence"]["usage"]["receipts"]), (&3.into(), &3.into()));
    // With a key of one's own, in a log of several runs.
    let key = path("operator.key");
    let made = json(&["log", "keygen", "operator.example/usage", "--out", key.to_str().unwrap(), "--format", "json"]);
    let vkey = made["key"].as_str().unwrap();
    let usage = ["--usage-log", shared.to_str().unwrap(), "--usage-key", key.to_str().unwrap()];
    let outputs = path("outputs.jsonl");
    let line = |(id, text): (u32, &str)| serde_json::json!({ "query_id": id, "output": text }).to_string() + "\n";
    fs::write(&outputs, [(1, "one"), (2, "two"), (3, "three")].map(line).concat()).unwrap();
    let with_outputs = [&usage[..], &["--outputs", outputs.to_str().unwrap()]].concat();
    json(&args("run", &scores, &next, &with_outputs));
    let replay = path("replay");
    let again = [&usage[..], &["--period", "2030-01-01/2030-01-31"]].concat();
    refused(&args("run", &scores, &replay, &again), "each response paid once (a replay), found \"");
    assert_eq!(fs::read_dir(&replay).unwrap().count(), 0);
    let shared = shared.to_str().unwrap();
    let verified = json(&[
        "pay",
        "verify",
        next.to_str().unwrap(),
        "--usage-log",
        shared,
        "--usage-key",
        vkey,
        "--format",
        "json",
    ]);
    assert_eq!(verified["receipts"]["checked"], 3);
    let answer = path("answer");
    fs::write(&answer, "two").unwrap();
    let (key, answer) = (key.to_str().unwrap(), answer.to_str().unwrap());
    let lines = fs::read_to_string(Path::new(shared).join("receipts/0.jsonl")).unwrap();
    let at = lines.lines().position(|line| line.contains("\"requestId\":\"2\"")).unwrap();
    let (second, other) = (at.to_string(), ((at + 1) % 3).to_string());
    let opened = json(&["log", "usage", "open", shared, &second, "--key", key, "--output", answer, "--format", "json"]);
    assert_eq!((opened["request_id"].as_str(), opened["opened"].as_bool()), (Some("2"), Some(true)));
    let wrong = ["log", "usage", "open", shared, &other, "--key", key, "--output", answer];
    refused(&wrong, &format!("not the output of receipt {other}"));
    // A forged receipt, and none.
    let receipts = own.join("receipts/0.jsonl");
    let honest = fs::read_to_string(&receipts).unwrap();
    fs::write(&receipts, honest.replacen("\"minorUnits\":\"3", "\"minorUnits\":\"4", 1)).unwrap();
    refused(&["pay", "verify", folder], "signature");
    refused(&["audit", folder], "signature");
    fs::remove_dir_all(&own).unwrap();
    refused(&["pay", "verify", folder], "a usage log with 3 receipts, found none");
}
