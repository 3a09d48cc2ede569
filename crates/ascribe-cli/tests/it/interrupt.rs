//! Ctrl-C: the command stops at its next safe point, says so, and goes on from there when it is run again.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{ascribe, stderr};

/// No machine is so slow.
const PATIENCE: Duration = Duration::from_secs(120);

fn features(out: &Path) -> Child {
    let mut command = ascribe();
    command.args(["features", "--out"]).arg(out).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn interrupt(child: Child) -> Output {
    // The signal that a terminal sends on Ctrl-C.
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait_with_output().unwrap()
}

fn wait_until(child: &mut Child, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended before {what}");
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_stopped(output: &Output) {
    let talk = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("stopping at the next safe point"), "{talk}");
    assert!(talk.contains("error: stopped on request; run the same command again to go on from here"), "{talk}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_stopped_feature_stage_keeps_what_it_has_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = |name: &str| dir.path().join("store").join(name);
    // The gradients of the responses are one whole store; those of the examples follow it.
    let (responses, examples) = (store("step-000800-responses"), store("step-000800"));
    let seal = responses.join("MANIFEST-000000.json");
    let mut child = features(dir.path());
    wait_until(&mut child, "a store of examples", || examples.join("manifest.log").exists());
    let output = interrupt(child);
    assert_stopped(&output);
    assert!(stderr(&output).contains("gradients step-000800"), "{}", stderr(&output));
    assert!(seal.exists() && !examples.join("MANIFEST-000000.json").exists());
    assert!(!store("step-001700").exists(), "it went on after the request");
    let modified = || fs::metadata(&seal).unwrap().modified().unwrap();
    let (time, bytes) = (modified(), fs::read(&seal).unwrap());
    // Again: the finished store is not made again. The other is taken up, and what a crash may leave in it cleared away.
    let leftover = examples.join("left-by-a-crash.tmp");
    fs::write(&leftover, "half").unwrap();
    let mut child = features(dir.path());
    wait_until(&mut child, "a writer that takes the store up", || !leftover.exists());
    let output = interrupt(child);
    assert_stopped(&output);
    let talk = stderr(&output);
    assert!(!talk.contains("gradients step-000800"), "the responses were made again: {talk}");
    assert_eq!((modified(), fs::read(&seal).unwrap()), (time, bytes));
}
