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
