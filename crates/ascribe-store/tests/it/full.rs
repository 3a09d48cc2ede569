//! What makes a store of another one, without room: the system refuses to let a file grow beyond `ulimit -f`, for real. The source
//! stays whole, nothing half written is opened, the error names the file, and the same call ends, once there is room, with the bytes
//! of a run that always had it. The one who writes is this test binary, started again under that limit.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ascribe_store::StoreError;

use crate::common::{copy, folder};
use crate::kills::{check, prepare, work};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_FULL_DIR";
const WHAT_VARIABLE: &str = "ASCRIBE_TEST_FULL";
/// Exit code of the child.
const NO_ROOM: i32 = 42;
/// Limits in blocks of 512 bytes, each in turn on what the one before has left: from nothing at all to more than the longest file.
const LIMITS: [u64; 14] = [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 4096];

/// Not a test of its own: the child process of the tests below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder"));
    match work(&dir, &std::env::var(WHAT_VARIABLE).expect("the parent says what to do")) {
        Ok(()) => {}
        Err(error @ StoreError::DiskFull { .. }) => {
            println!("refused: {error}");
            std::process::exit(NO_ROOM);
        }
        Err(other) => panic!("{other}"),
    }
}

fn with_limit(dir: &Path, what: &str, blocks: u64) -> Output {
    // Without the trap the system would end the process instead of refusing the write.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" full::child --exact --ignored --nocapture");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(std::env::current_exe().unwrap());
    command.env(DIR_VARIABLE, dir).env(WHAT_VARIABLE, what).output().unwrap()
}

fn files_of(dir: &Path, below: &str) -> BTreeMap<String, Vec<u8>> {
    folder(dir).into_iter().filter(|(name, _)| name.starts_with(below)).collect()
}

/// Runs into every limit in turn. Returns the files that there was no room for, in their order.
fn without_room(what: &str) -> Vec<String> {
    let fresh = tempfile::tempdir().unwrap();
    prepare(fresh.path(), what);
    let (plain, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(fresh.path(), plain.path());
    copy(fresh.path(), dir.path());
    work(plain.path(), what).unwrap();
    let before = folder(fresh.path());
    let mut refused_for = Vec::new();
    for blocks in LIMITS {
        let output = with_limit(dir.path(), what, blocks);
        let text = String::from_utf8_lossy(&output.stdout);
        let talk = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(NO_ROOM), "{what}, {blocks} blocks: {text} {talk}");
        let said = text.lines().find_map(|line| line.split("refused: ").nth(1)).unwrap().to_owned();
        let named = said.strip_prefix("no room to write ").and_then(|rest| rest.split(": ").next()).unwrap();
        let named = Path::new(named).strip_prefix(dir.path()).unwrap_or_else(|_| panic!("no file named: {said}"));
        refused_for.push(named.display().to_string());
        check(dir.path(), what);
        let after = folder(dir.path());
        // The log of shards grows ahead of the generation that counts them; whatever else was there is as it was.
        for (name, bytes) in before.iter().filter(|(name, _)| !name.ends_with("manifest.log")) {
            assert!(after.get(name) == Some(bytes), "{what}, {blocks} blocks: {name} changed");
        }
        let half: Vec<&String> = after.keys().filter(|name| name.ends_with(".tmp")).collect();
        assert!(half.is_empty(), "{what}, {blocks} blocks: {half:?} stayed");
    }
    refused_for.dedup();
    assert!(refused_for.len() > 1, "{what} was refused for {refused_for:?} only");
    // With room, a call that has nothing left to do is none either; `add` would find its own rows there.
    if what != "add" || folder(dir.path()) != folder(plain.path()) {
        work(dir.path(), what).unwrap();
    }
    assert_eq!(files_of(dir.path(), "other"), files_of(fresh.path(), "other"), "{what} changed what it read");
    let (now, plain) = (folder(dir.path()), folder(plain.path()));
    assert_eq!(now.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "{what}: other files");
    let changed: Vec<&String> = now.keys().filter(|name| now[*name] != plain[*name]).collect();
    assert!(changed.is_empty(), "{what}: other bytes than those of a run with room in {changed:?}");
    refused_for
}

#[test]
fn a_companion() {
    without_room("companion");
}

#[test]
fn a_conversion() {
    without_room("convert");
}

#[test]
fn a_merge() {
    without_room("merge");
}

#[test]
fn a_pull() {
    without_room("pull");
}

/// The log of many short shards is longer than any of them, so that none is ever refused above. Here each is longer than the log.
#[test]
fn a_pull_past_the_manifest() {
    let refused_for = without_room("pull of long shards");
    assert!(refused_for.iter().any(|name| name.contains("shards/s-")), "{refused_for:?}");
}

#[test]
fn a_push() {
    without_room("push");
}

#[test]
fn an_added_store() {
    without_room("add");
}
