//! `ascribe ledger …` over a book of its own: what each command says, that money arrives where it should, and what is refused.

use std::fs;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::{
    Registry, SettledRevenue, Usage, UsageLog, UsageReceipt, UsageShare, demo_usage_signer, salted_hash,
};
use serde_json::Value;

use crate::common::{run, stderr, stdout};

/// Two of the shipped registry's owners.
const OLIVER: [&str; 2] =
    ["Oliver Elphick and Matthew Vernon", "eip155:31337:0x13F313ACbE66319372451f9924d5e549c9871b41"];

struct Book {
    dir: tempfile::TempDir,
    address: String,
}

impl Book {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("sqlite:{}", dir.path().join("ledger.db").display());
        let book = Self { dir, address };
        assert_eq!(book.ok(&["init"])["entries"], 0);
        book
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        // Sub-commands of `dispute` take the address behind their own name.
        let mut all = vec!["ledger"];
        all.extend_from_slice(args);
        all.extend(["--ledger", &self.address, "--format", "json", "--quiet"]);
        all
    }

    fn ok(&self, args: &[&str]) -> Value {
        let output = run(&self.args(args));
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    fn refused(&self, args: &[&str], words: &str) {
        let output = run(&self.args(args));
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {:?} lacks {words:?}", stderr(&output));
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn accrue(&self, events: &str, more: &[&str]) -> Value {
        let file = self.file("events.jsonl", events);
        self.ok(&[&["accrue", "--events", &file, "--registry", "datasets"], more].concat())
    }

    /// Available sub-units of the only account whose name has all of these words.
    fn holds(&self, words: &[&str]) -> u128 {
        let all = self.ok(&["balance"]);
        let named = all["accounts"].as_array().unwrap().iter();
        let found: Vec<&Value> =
            named.filter(|row| words.iter().all(|word| row["account"].as_str().unwrap().contains(word))).collect();
        match found.as_slice() {
            [] => 0,
            [one] => one["available_subunits"].as_str().unwrap().parse().unwrap(),
            more => panic!("{words:?} name {more:?}"),
        }
    }
}

fn event(id: &str, day: u32, revenue: &str, more: &str) -> String {
    format!(
        "{{\"id\":\"{id}\",\"at\":\"2026-11-{day:02}T12:00:00Z\",\"revenue\":\"{revenue}\",\"shares\":[{{\"dataset\":\"kjv-bible\",\"weight\":3}},{{\"dataset\":\"foldoc\",\"weight\":1}}]{more}}}\n"
    )
}

/// A dollar, a tenth of it the operator's, 90 cents three to one; a rerun books nothing.
#[test]
fn responses_are_booked_once() {
    let book = Book::new();
    let events = event("r1", 3, "1.00 USD", "") + &event("r2", 4, "0.0004 USD", ",\"coverage_ppm\":500000");
    let first = book.accrue(&events, &["--operator-ppm", "100000"]);
    assert_eq!((&first["responses"], &first["posted"]), (&2.into(), &2.into()));
    // 0.675 of the first; of the second 0.0004 · 0.9 · 0.5 · 3/4.
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 67_500_000 + 13_500);
    let again = book.accrue(&events, &["--operator-ppm", "100000"]);
    assert_eq!((&again["posted"], &again["already_there"]), (&0.into(), &2.into()));
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 67_513_500);
    // Another revenue under the same id is no rerun.
    let file = book.file("other.jsonl", &event("r1", 3, "2.00 USD", ""));
    book.refused(&["accrue", "--events", &file, "--registry", "datasets", "--operator-ppm", "100000"], "r1");
    let report = book.ok(&["verify"]);
    assert_eq!(report["entries"], 2);
    for (line, words) in [
        ("{\"id\":1}\n".to_owned(), "line 1"),
        (event("r9", 3, "1 XYZ", ""), "unknown currency"),
        (event("r9", 3, "-1 USD", ""), "revenue"),
        (event("r9", 3, "1 USD", ",\"luck\":1"), "unknown field `luck`"),
        (event("r9", 3, "1 USD", "").replace("T12:00:00Z", " noon"), "RFC 3339"),
        (event("r9", 3, "1 USD", ",\"customer\":\"acme\""), "acme"),
    ] {
        let file = book.file("bad.jsonl", &line);
        book.refused(&["accrue", "--events", &file, "--registry", "datasets"], words);
    }
    assert_eq!(book.ok(&["verify"])["entries"], 2, "what was refused left nothing behind");
    book.refused(&["accrue"], "--events");
}

#[test]
fn prepaid_balances_pay_for_what_they_hold() {
    let book = Book::new();
    let top_up = ["top-up", "--customer", "acme", "--amount", "1.50 USD", "--reference", "bank 7"];
    assert_eq!(book.ok(&top_up)["balance"], "1.50000000 USD");
    assert_eq!(book.ok(&top_up)["already_done"], true);
    book.accrue(&event("r1", 3, "1.00 USD", ",\"customer\":\"acme\""), &[]);
    assert_eq!(book.holds(&["repaid", "acme"]), 50_000_000);
    let file = book.file("more.jsonl", &event("r2", 3, "1.00 USD", ",\"customer\":\"acme\""));
    book.refused(&["accrue", "--events", &file, "--registry", "datasets"], "acme");
    book.ok(&["verify"]);
}

#[test]
fn settlements_hold_pay_and_return() {
    let book = Book::new();
    book.accrue(&(event("r1", 3, "8.00 USD", "") + &event("r2", 20, "4.00 USD", "")), &[]);
    // Ten days' hold on the 25th: only the first response is ripe.
    let settle = ["settle", "--currency", "USD", "--as-of", "2026-11-25T00:00:00Z", "--hold-days", "10"];
    let first = book.ok(&[&settle[..], &["--minimum", "3.00 USD"]].concat());
    assert_eq!(first["total"], "6.00 USD");
    let rows = first["rows"].as_array().unwrap();
    let row = |owner: &str| rows.iter().find(|row| row["owner"].as_str().unwrap() == owner).unwrap();
    assert_eq!(row(OLIVER[0])["pays"], "6.00");
    assert_eq!(book.ok(&[&settle[..], &["--minimum", "3.00 USD"]].concat())["already_done"], true);
    let id = first["id"].as_str().unwrap();
    assert_eq!(book.ok(&["settle", "--void", id, "--owner", OLIVER[0]])["returned"], 1);
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 900_000_000);
    let all = book.ok(&["settle", "--currency", "USD", "--as-of", "2026-12-25T00:00:00Z"]);
    assert_eq!(all["total"], "12.00 USD");
    assert_eq!(book.ok(&["settle", "--post", all["id"].as_str().unwrap()])["paid"], 2);
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 0);
    assert_eq!(book.ok(&["verify"])["open_pending"], 0);
    book.refused(&["settle", "--post", "00"], "00");
    book.refused(&["settle", "--currency", "USD", "--as-of", "tomorrow"], "--as-of");
    book.refused(
        &["settle", "--currency", "USD", "--as-of", "2026-12-25T00:00:00Z", "--minimum", "1 EUR"],
        "--minimum",
    );
    let statement = book.ok(&["statement", "--owner", OLIVER[0]]);
    assert!(statement["lines"].as_array().unwrap().len() >= 2, "{statement}");
}

#[test]
fn disputes_freeze_and_clawbacks_take() {
    let book = Book::new();
    book.accrue(&event("r1", 3, "8.00 USD", ""), &[]);
    let who = ["--owner", OLIVER[0], "--account", OLIVER[1]];
    let open = [&["dispute", "open", "case-7"], &who[..], &["--currency", "USD", "--reason", "copied"]].concat();
    book.ok(&[&open[..], &["--amount", "5.00 USD"]].concat());
    assert_eq!(book.ok(&["dispute", "list"])["disputes"][0]["id"], "case-7");
    let settled = book.ok(&["settle", "--currency", "USD", "--as-of", "2026-12-01T00:00:00Z"]);
    assert_eq!(settled["total"], "3.00 USD", "a dollar of Oliver's and two of FOLDOC's: five are frozen");
    book.refused(&[&open[..], &["--amount", "5.00 EUR"]].concat(), "--amount");
    let ended = book.ok(&["dispute", "end", "case-7", "--upheld"]);
    assert_eq!(ended["outcome"], "upheld");
    book.refused(&["dispute", "end", "case-7"], "case-7");
    // Four dollars are taken back; the one that is on its way returns first, three are owed and set off later.
    let take =
        [&["clawback"], &who[..], &["--amount", "4.00 USD", "--reference", "case 7", "--return-pending"]].concat();
    let taken = book.ok(&take);
    assert_eq!(
        (taken["taken_subunits"].as_str(), taken["owed_subunits"].as_str()),
        (Some("100000000"), Some("300000000"))
    );
    assert_eq!(book.ok(&take)["taken_subunits"], taken["taken_subunits"], "the same reference takes once");
    book.accrue(&event("r2", 5, "8.00 USD", ""), &[]);
    let later = book.ok(&["settle", "--currency", "USD", "--as-of", "2026-12-31T00:00:00Z"]);
    let rows = later["rows"].as_array().unwrap();
    let oliver = rows.iter().find(|row| row["owner"] == OLIVER[0]).unwrap();
    assert_eq!(oliver["pays"], "3.00", "six less the three that were owed");
    book.ok(&["verify"]);
}

/// A payout run is verified before it is taken in, once; both journals are written, and a changed folder is refused.
#[test]
fn runs_come_in_and_journals_go_out() {
    let book = Book::new();
    let scores =
        book.file("scores.csv", "query_id,dataset_id,score,revenue\n1,kjv-bible,1,0.755 USD\n2,foldoc,1,0.2504 USD\n");
    let out = book.dir.path().join("out");
    let dir = out.display().to_string();
    let paid = run(&[
        "pay",
        "run",
        "--scores",
        &scores,
        "--registry",
        "datasets",
        "--out",
        &dir,
        "--format",
        "json",
        "--quiet",
    ]);
    assert!(paid.status.success(), "{}", stderr(&paid));
    let record: Value = serde_json::from_str(&stdout(&paid)).unwrap();
    assert_eq!(
        (&record["run"]["policy"]["pool"], &record["pool_rest_subunits"]),
        (&"1.00 USD".into(), &"540000".into())
    );
    let first = book.ok(&["accrue", "--run", &dir]);
    assert_eq!((&first["payees"], &first["payments"], &first["already_done"]), (&2.into(), &2.into(), &false.into()));
    assert_eq!(book.ok(&["accrue", "--run", &dir])["already_done"], true);
    assert_eq!(book.ok(&["settle", "--post", first["run_id"].as_str().unwrap()])["paid"], 2);
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 500_000);
    for (to, word) in [("hledger", "USD"), ("beancount", "open")] {
        let journal = book.dir.path().join(to);
        book.ok(&["export", "--to", to, "--out", journal.to_str().unwrap()]);
        assert!(fs::read_to_string(&journal).unwrap().contains(word));
    }
    // Its receipts are the same money.
    let receipts = out.join("usage");
    book.refused(&["accrue", "--usage", receipts.to_str().unwrap(), "--registry", "datasets"], "--run");
    fs::write(out.join("safe.csv"), "changed").unwrap();
    book.refused(&["accrue", "--run", &dir], "SHA-256");
}

/// A receipt as the server makes it: weights are parts of 10¹².
fn receipt(id: &str, settled: (u128, &str), shares: &[(&str, u128)]) -> UsageReceipt {
    let share = |(dataset, weight): &(&str, u128)| UsageShare { dataset: (*dataset).to_owned(), weight: *weight };
    UsageReceipt::new(Usage {
        request_id: id.to_owned(),
        model_sha256: Digest::of(b"model"),
        run_id: "run".to_owned(),
        output_salted_sha256: salted_hash(&[7; 32], id.as_bytes()),
        method: "calibrated".to_owned(),
        spec_sha256: Digest::of(b"spec"),
        attribution_sha256: None,
        shares: shares.iter().map(share).collect(),
        weight_total: 1_000_000_000_000,
        revenue: SettledRevenue { currency: settled.1.to_owned(), minor_units: settled.0 },
        // 2026-11-29T12:00:00Z
        settled_unix_s: 1_795_953_600,
    })
    .unwrap()
}

fn append(dir: &std::path::Path, receipts: Vec<UsageReceipt>) {
    let signer = demo_usage_signer();
    let signed = receipts.into_iter().map(|receipt| receipt.sign(signer.key())).collect();
    UsageLog::open(dir, demo_usage_signer()).unwrap().append(signed, &NoProgress).unwrap();
}

/// `urn:uuid:…` of a dataset of the shipped registry.
fn uuid(name: &str) -> String {
    let registry =
        Registry::open(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets"))).unwrap();
    registry.datasets().iter().find(|d| d.manifest.name == name).unwrap().manifest.uuid.clone()
}

/// Six receipts in two batches: 1.18 dollars by four of them, one without revenue, one in a currency that there is not.
fn usage_log(dir: &std::path::Path) {
    let (kjv, foldoc) = (uuid("kjv-bible"), uuid("foldoc"));
    let (kjv, foldoc) = (kjv.as_str(), foldoc.as_str());
    let stranger = "urn:uuid:00000000-0000-4000-8000-000000000001";
    append(
        dir,
        vec![
            receipt("r1", (100, "USD"), &[(kjv, 600_000_000_000), (foldoc, 200_000_000_000)]),
            receipt("r2", (0, "XXX"), &[(kjv, 1_000_000_000_000)]),
            receipt("r3", (5, "XYZ"), &[(kjv, 1_000_000_000_000)]),
        ],
    );
    append(
        dir,
        vec![
            receipt("r4", (10, "USD"), &[(kjv, 500_000_000_000), (stranger, 500_000_000_000)]),
            receipt("r5", (7, "USD"), &[]),
            receipt("r6", (1, "USD"), &[(foldoc, 333_333_333_333)]),
        ],
    );
}

fn found(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap()
}

/// Receipts of a usage log to balances: what was settled arrives whole, once.
#[test]
fn receipts_of_a_usage_log_are_booked_once_and_whole() {
    let book = Book::new();
    let log = book.dir.path().join("usage");
    usage_log(&log);
    let (dir, key) = (log.display().to_string(), demo_usage_signer().verifier().to_string());
    let args = ["accrue", "--usage", &dir, "--key", &key, "--registry", "datasets", "--operator-ppm", "100000"];
    let first = book.ok(&args);
    assert_eq!((found(&first, "responses"), found(&first, "posted"), found(&first, "already_there")), (4, 4, 0));
    assert_eq!((found(&first, "without_revenue"), found(&first, "erased")), (1, 0));
    assert_eq!(first["other_currencies"], serde_json::json!({ "XYZ": 1 }));
    // Of a dollar a tenth is the operator's; of 90 cents four fifths are covered, three to one. Of 9 cents a stranger has half.
    assert_eq!(book.holds(&["ayable", OLIVER[0]]), 54_000_000 + 4_500_000);
    assert_eq!(book.holds(&["perator"]), 11_800_000);
    // Not covered: 18 cents, 6.3 cents, two thirds of 0.9 by parts per million; the stranger's 4.5.
    assert_eq!(book.holds(&["nattributed"]), 18_000_000 + 6_300_000 + 600_001 + 4_500_000);
    let report = book.ok(&["verify"]);
    assert_eq!(found(&report, "entries"), 4);
    let all = book.ok(&["balance"]);
    let sum = |asset: bool| -> u128 {
        let rows = all["accounts"].as_array().unwrap().iter();
        let of = rows.filter(|row| row["account"].as_str().unwrap().to_lowercase().contains("cash") == asset);
        of.map(|row| row["available_subunits"].as_str().unwrap().parse::<u128>().unwrap()).sum()
    };
    assert_eq!((sum(true), sum(false)), (118_000_000, 118_000_000), "what was settled is what is owed");
    // Again: nothing, whatever the operator's part is by then. What entered the log since is booked, what was erased is not.
    let again = book.ok(&args);
    assert_eq!((found(&again, "posted"), found(&again, "already_there")), (0, 4));
    let other = book.ok(&[&args[..7], &["--operator-ppm", "500000"]].concat());
    assert_eq!((found(&other, "posted"), found(&other, "already_there")), (0, 4));
    assert_eq!(book.ok(&["verify"])["chain"], report["chain"]);
    let kjv = uuid("kjv-bible");
    append(&log, ["r7", "r8"].map(|id| receipt(id, (1, "USD"), &[(&kjv, 1)])).to_vec());
    assert!(UsageLog::open(&log, demo_usage_signer()).unwrap().erase(7).unwrap());
    let more = book.ok(&args);
    assert_eq!((found(&more, "posted"), found(&more, "already_there"), found(&more, "erased")), (1, 4, 1));
}

/// A receipt that was changed, or a log of somebody else: nothing of it is booked.
#[test]
fn a_usage_log_that_does_not_hold_is_refused_whole() {
    let fresh = Book::new();
    let log = fresh.dir.path().join("usage");
    usage_log(&log);
    let (dir, key) = (log.display().to_string(), demo_usage_signer().verifier().to_string());
    let args = ["accrue", "--usage", &dir, "--key", &key, "--registry", "datasets"];
    // One digit in the second batch: nothing of the first is booked either.
    let batch = log.join("receipts/3.jsonl");
    let honest = fs::read_to_string(&batch).unwrap();
    fs::write(&batch, honest.replacen("\"minorUnits\":\"10\"", "\"minorUnits\":\"90\"", 1)).unwrap();
    fresh.refused(&args, "signature");
    assert_eq!(fresh.ok(&["verify"])["entries"], 0);
    fs::write(&batch, honest).unwrap();
    let secret = fresh.dir.path().join("other.key").display().to_string();
    let made = run(&["log", "keygen", "else.example/usage", "--out", &secret, "--format", "json"]);
    let made: Value = serde_json::from_str(&stdout(&made)).unwrap();
    let wrong = ["accrue", "--usage", &dir, "--key", made["key"].as_str().unwrap(), "--registry", "datasets"];
    fresh.refused(&wrong, "else.example/usage");
    assert_eq!(fresh.ok(&["verify"])["entries"], 0);
    assert_eq!(found(&fresh.ok(&args), "posted"), 4);
}
