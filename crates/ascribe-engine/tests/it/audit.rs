//! The audit: an untouched folder passes, any changed, added or removed file does not, and neither does a forgery that
//! makes the folder agree with itself.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_engine::run_file::{RUN_FILE, RunFile};
use ascribe_engine::walk::usage::USAGE_DIR;
use ascribe_engine::{audit, files};
use ascribe_registry::{SignedUsage, UsageLog, UsageReceipt, demo_usage_signer};

use crate::common::{Tiny, digests, finished};

/// What the audit says against a folder.
fn refusal(tiny: &Tiny) -> String {
    let error = audit::run(&tiny.home(), &tiny.out(), &NoProgress).expect_err("the audit should find something");
    assert!(!tiny.out().join(".audit").exists(), "the second run was left behind");
    error.to_string()
}

/// Flips a bit in place: writing the whole file again would wait for the disk each time.
fn flip(path: &Path, at: usize) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (SeekFrom::Start(at as u64), [0]);
    file.seek(at).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(at).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// Makes `run.toml` agree with the folder again, seal and all, as a forger would.
fn reseal(tiny: &Tiny, change: impl FnOnce(&mut RunFile)) {
    let mut run = RunFile::read(&tiny.out()).unwrap();
    for (name, digest) in &mut run.outputs {
        *digest = files::digest(&tiny.out().join(name)).unwrap();
    }
    change(&mut run);
    run.write(&tiny.out()).unwrap();
}

#[test]
fn an_untouched_folder_passes() {
    let tiny = finished().tiny.copy_with_run();
    let before = digests(&tiny.out());
    let report = audit::run(&tiny.home(), &tiny.out(), &NoProgress).unwrap();
    assert!(report.identical && report.differences.is_empty());
    assert_eq!(report.files, before.len() as u64);
    assert_eq!(digests(&tiny.out()), before, "the audit changed the folder");
}

#[test]
fn a_flipped_bit_in_any_file_is_found_and_the_file_named() {
    let tiny = finished().tiny.copy_with_run();
    let names: Vec<String> = digests(&tiny.out()).into_keys().collect();
    for part in ["store/", "factors/", "index/", "payout/", "eval.json", "stations.json", "report.html", RUN_FILE] {
        assert!(names.iter().any(|n| n.starts_with(part)), "the folder has no {part}");
    }
    for name in &names {
        let path = tiny.out().join(name);
        let len = fs::metadata(&path).unwrap().len() as usize;
        // An empty file (a writer's lock) has no bit to flip: it grows by a byte.
        let change = || if len > 0 { flip(&path, len / 2) } else { fs::write(&path, [1]).unwrap() };
        change();
        let message = refusal(&tiny);
        assert!(message.contains(name.as_str()), "{name}: {message}");
        if len > 0 { change() } else { fs::write(&path, []).unwrap() }
    }
}

#[test]
fn every_byte_of_the_run_file_counts() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.out().join(RUN_FILE);
    for at in 0..fs::metadata(&path).unwrap().len() as usize {
        flip(&path, at);
        let message = refusal(&tiny);
        assert!(message.contains(RUN_FILE) && message.contains("expected"), "byte {at}: {message}");
        flip(&path, at);
    }
}

#[test]
fn an_added_and_a_removed_file_are_named() {
    let tiny = finished().tiny.copy_with_run();
    let added = tiny.out().join("payout/more.csv");
    fs::write(&added, "x").unwrap();
    assert!(refusal(&tiny).contains("payout/more.csv: not in run.toml, found in the folder"));
    fs::remove_file(&added).unwrap();
    for name in ["payout/payout.csv", "eval.json"] {
        let kept = fs::read(tiny.out().join(name)).unwrap();
        fs::remove_file(tiny.out().join(name)).unwrap();
        let message = refusal(&tiny);
        assert!(message.contains(&format!("{name}: in run.toml, missing in the folder")), "{message}");
        fs::write(tiny.out().join(name), kept).unwrap();
    }
    fs::remove_file(tiny.out().join(RUN_FILE)).unwrap();
    assert!(refusal(&tiny).contains(RUN_FILE));
}

#[test]
fn a_payout_that_was_changed_and_sealed_again_is_found_beside_its_journal() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.out().join("payout/payout.csv");
    let text = fs::read_to_string(&path).unwrap();
    let digit = text.rfind(|c: char| c.is_ascii_digit()).unwrap();
    flip(&path, digit);
    reseal(&tiny, |_| {});
    let message = refusal(&tiny);
    assert!(message.contains("payout/payout.csv") && message.contains("journal"), "{message}");
}

/// Whoever has the key moves a unit of revenue, or of a share, from one response to another and logs it anew: the sums still close.
#[test]
fn a_forged_receipt_that_was_signed_and_sealed_again_is_found() {
    let tiny = finished().tiny.copy_with_run();
    let dir = tiny.out().join(USAGE_DIR);
    let text = fs::read_to_string(dir.join("receipts/0.jsonl")).unwrap();
    let honest: Vec<_> = text.lines().map(|line| SignedUsage::parse(line.as_bytes()).unwrap().receipt).collect();
    let rewrite = |receipts: Vec<UsageReceipt>| {
        fs::remove_dir_all(&dir).unwrap();
        let signer = demo_usage_signer();
        let signed = receipts.into_iter().map(|receipt| receipt.sign(signer.key())).collect();
        UsageLog::open(&dir, demo_usage_signer()).unwrap().append(signed, &NoProgress).unwrap();
        reseal(&tiny, |_| {});
    };
    let mut forged = honest.clone();
    forged[0].revenue.minor_units += 1;
    forged[1].revenue.minor_units -= 1;
    rewrite(forged);
    assert!(refusal(&tiny).contains("usage/"), "{}", refusal(&tiny));
    let mut larger = honest.clone();
    larger[0].revenue.minor_units += 1;
    rewrite(larger);
    assert!(refusal(&tiny).contains("receipts settle"), "{}", refusal(&tiny));
    rewrite(honest);
    audit::run(&tiny.home(), &tiny.out(), &NoProgress).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let mut run = RunFile::read(&tiny.out()).unwrap();
    run.outputs.retain(|name, _| !name.starts_with("usage/"));
    run.write(&tiny.out()).unwrap();
    assert!(refusal(&tiny).contains("no receipts"), "{}", refusal(&tiny));
}

/// Receipts of an operator whose key the auditor has not: all but their salted outputs is held against the run.
#[test]
fn receipts_under_an_operators_own_key_are_audited_without_it() {
    let tiny = finished().tiny.copy();
    let secret = tiny.datasets().join(".secret");
    fs::create_dir(&secret).unwrap();
    tiny.demo(&tiny.out()).unwrap();
    fs::remove_dir_all(&secret).unwrap();
    audit::run(&tiny.home(), &tiny.out(), &NoProgress).unwrap();
    let other = finished().tiny.out();
    let receipts = |out: &Path| fs::read(out.join(USAGE_DIR).join("receipts/0.jsonl")).unwrap();
    assert_ne!(receipts(&tiny.out()), receipts(&other));
}

#[test]
fn a_summary_that_was_changed_and_sealed_again_is_found_by_recomputing() {
    let tiny = finished().tiny.copy_with_run();
    reseal(&tiny, |run| run.summary.methods.get_mut("calibrated").unwrap().share_error = 0.0);
    let message = refusal(&tiny);
    assert!(message.contains(RUN_FILE) && message.contains("summary"), "{message}");
}

#[test]
fn settings_of_another_day_are_told_apart_from_a_forgery() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.model().join("attribution.toml");
    let text = fs::read_to_string(&path).unwrap().replace("1000.00 USDC", "2000.00 USDC");
    fs::write(&path, text).unwrap();
    let message = refusal(&tiny);
    assert!(message.contains("attribution"), "{message}");
}
