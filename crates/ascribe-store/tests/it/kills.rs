//! SIGKILL in the middle of what makes a store of another one, and of what changes its owners: the source stays whole, what was begun
//! is refused or gone on from, and ends with the bytes of a run that nobody interrupted. The one who is killed is this test binary,
//! started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ascribe_core::{FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{
    DatasetTerms, FolderObjects, Numbering, add, convert, make_companion, merge, pull, push, relicense,
};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{copy, folder, ids, rows, spec};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_KILLS_DIR";
const WHAT_VARIABLE: &str = "ASCRIBE_TEST_KILLS";
const DIM: usize = 48;
const PER_SHARD: u32 = 16;
const N: usize = 16 * 60 + 3;
const N_KILLS: usize = 9;

fn build(dir: &Path, range: std::ops::Range<usize>) -> FeatureStore {
    build_of(dir, range, DIM)
}

fn build_of(dir: &Path, range: std::ops::Range<usize>, dim: usize) -> FeatureStore {
    let n = range.len() as u64;
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(dim), RowType::F32, PER_SHARD, n).unwrap();
    writer.push(&ids(range.clone()), rows(range, dim).view()).unwrap();
    writer.finish().unwrap()
}

fn open(dir: &Path) -> FeatureStore {
    FeatureStore::open(dir, None).unwrap()
}

/// What the child does below `dir`; every call of it goes on with the one before.
pub fn work(dir: &Path, what: &str) -> Result<(), StoreError> {
    let (source, other, out) = (dir.join("source"), dir.join("other"), dir.join("out"));
    match what {
        "companion" | "stale companion" => make_companion(&open(&source), RowType::Int8, &NoProgress).map(drop),
        "convert" => convert(&open(&source), &out, RowType::Int4, &NoProgress).map(drop),
        "merge" => merge(&[open(&source), open(&other)], &out, &NoProgress).map(drop),
        "pull" | "pull of long shards" => pull(&FolderObjects::new(&dir.join("objects")), &out, &NoProgress).map(drop),
        "push" => push(&open(&source), &FolderObjects::new(&out), &NoProgress).map(drop),
        "add" => match add(&source, &open(&other), &Numbering::new(), &[owned(1, "Moss")], &NoProgress) {
            // Killed after its commit: whoever changes the store next clears away what was left.
            Err(StoreError::DuplicateExample { .. }) => relicense(&source, &[]).map(drop),
            done => done.map(drop),
        },
        other => panic!("no such work: {other}"),
    }
}

fn owned(dataset: u32, owner: &str) -> DatasetTerms {
    DatasetTerms { dataset, owner: Some(owner.into()), ..DatasetTerms::default() }
}

/// What the child finds, and what stays untouched.
pub fn prepare(dir: &Path, what: &str) {
    // Shards that are longer than the log of all of them.
    let source = match what {
        "pull of long shards" => build_of(&dir.join("source"), 0..5 * PER_SHARD as usize + 3, 20 * DIM),
        _ => build(&dir.join("source"), 0..N),
    };
    match what {
        "stale companion" => {
            make_companion(&source, RowType::Int8, &NoProgress).unwrap();
            let mut writer = FeatureWriter::append(&dir.join("source"), &spec(DIM), 5).unwrap();
            writer.push(&ids(N..N + 5), rows(N..N + 5, DIM).view()).unwrap();
            writer.finish().unwrap();
        }
        "merge" | "add" => drop(build(&dir.join("other"), 2 * N..3 * N)),
        "pull" | "pull of long shards" => {
            push(&source, &FolderObjects::new(&dir.join("objects")), &NoProgress).map(drop).unwrap()
        }
        _ => {}
    }
}

/// Everything that a kill may leave is an error that says so, or whole.
pub fn check(dir: &Path, what: &str) {
    open(&dir.join("source")).verify().unwrap();
    let found = match what {
        "companion" | "stale companion" => open(&dir.join("source")).companion(RowType::Int8),
        "push" | "add" => return,
        _ => FeatureStore::open(&dir.join("out"), None),
    };
    match found {
        Ok(whole) => drop(whole.verify().unwrap()),
        Err(StoreError::Unfinished { .. } | StoreError::Missing { .. }) => {}
        Err(StoreError::Stale { .. }) if what == "stale companion" => {}
        Err(other) => panic!("{what}: {other}"),
    }
}

/// Not a test of its own: the child process of the tests below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder"));
    match std::env::var(WHAT_VARIABLE).expect("the parent says what to do").as_str() {
        "owners" => loop {
            for owner in ["Arbour", "Birch", "", "Moss"] {
                relicense(&dir, &[owned(0, owner), owned(2, owner)]).unwrap();
            }
        },
        what => work(&dir, what).unwrap(),
    }
}

fn start(dir: &Path, what: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["kills::child", "--exact", "--ignored", "--nocapture"]);
    command.env(DIR_VARIABLE, dir).env(WHAT_VARIABLE, what).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills the work at moments that differ each time and goes on with it; what reaches its end is compared and begun anew.
fn killed_again_and_again(what: &str) {
    let fresh = tempfile::tempdir().unwrap();
    prepare(fresh.path(), what);
    let plain = tempfile::tempdir().unwrap();
    copy(fresh.path(), plain.path());
    let clock = Instant::now();
    work(plain.path(), what).unwrap();
    let lasts_us = clock.elapsed().as_micros() as u64;
    let plain = folder(plain.path());
    let begin = || {
        let dir = tempfile::tempdir().unwrap();
        copy(fresh.path(), dir.path());
        dir
    };
    let same = |dir: &Path| {
        let mut files = folder(dir);
        if what == "push" {
            // Objects that were never given their names: a folder has nobody who would know whether they are still written.
            files.retain(|name, _| plain.contains_key(name) || !name.rsplit('.').next().is_some_and(is_nameless));
        }
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&files), names(&plain), "{what}: other files than an uninterrupted run has");
        let changed: Vec<&String> = files.keys().filter(|name| files[*name] != plain[*name]).collect();
        assert!(changed.is_empty(), "{what}: other bytes than those of an uninterrupted run in {changed:?}");
    };
    let (mut dir, mut n_kills, mut draw) = (begin(), 0, 1u64);
    let deadline = Instant::now() + Duration::from_secs(240);
    while n_kills < N_KILLS {
        assert!(Instant::now() < deadline, "{what}: only {n_kills} kills hit it");
        let mut child = start(dir.path(), what);
        draw = draw * 7919 % 1_000_003;
        std::thread::sleep(Duration::from_micros(draw * (lasts_us + 20_000) / 1_000_003));
        // SIGKILL: no destructor runs. An error only says that the child has ended already.
        let _ = child.kill();
        if child.wait().unwrap().success() {
            same(dir.path());
            dir = begin();
            continue;
        }
        n_kills += 1;
        check(dir.path(), what);
        if n_kills % 4 == 3 {
            // Every fourth is ended, so that kills of the first steps are gone on from, too.
            work(dir.path(), what).unwrap();
            same(dir.path());
            dir = begin();
        }
    }
}

/// Endings of objects under way: process and number, or what [`ascribe_store::atomic`] appends to that.
fn is_nameless(ending: &str) -> bool {
    ending == "tmp" || ending.split_once('-').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
}

#[test]
fn a_companion() {
    killed_again_and_again("companion");
}

#[test]
fn a_companion_in_the_place_of_a_stale_one() {
    killed_again_and_again("stale companion");
}

#[test]
fn a_conversion() {
    killed_again_and_again("convert");
}

#[test]
fn a_merge() {
    killed_again_and_again("merge");
}

#[test]
fn a_pull() {
    killed_again_and_again("pull");
}

#[test]
fn a_push() {
    killed_again_and_again("push");
}

#[test]
fn an_added_store() {
    killed_again_and_again("add");
}

/// Owners change on and on: after every kill the store is whole, and its sums are those of the owners that it names.
#[test]
fn owners() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..60);
    let (mut last, mut draw) = (0, 1u64);
    for n in 0..2 * N_KILLS {
        let mut child = start(dir.path(), "owners");
        let deadline = Instant::now() + Duration::from_secs(60);
        while open(dir.path()).generation().generation <= last {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the child does not get on");
            std::thread::sleep(Duration::from_micros(200));
        }
        draw = draw * 7919 % 20_011;
        std::thread::sleep(Duration::from_micros(draw));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "owners change without end");
        let store = open(dir.path());
        store.verify().unwrap();
        assert!(store.generation().generation > last, "kill {n} went back to {}", store.generation().generation);
        last = store.generation().generation;
        let owner = store.terms().of_dataset(0).and_then(|terms| terms.owner.clone());
        assert_eq!(owner, store.terms().of_dataset(2).and_then(|terms| terms.owner.clone()), "half a change");
        assert_eq!(store.owner_sums().unwrap().sums.counts, owner.map_or(vec![], |_| vec![40]));
        assert_eq!(store.n_rows(), 60);
    }
    relicense(dir.path(), &[owned(1, "Reed")]).unwrap();
    let names: Vec<String> = folder(dir.path()).into_keys().collect();
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
    for prefix in ["datasets-", "owner_sums-", "MANIFEST-"] {
        assert_eq!(names.iter().filter(|name| name.starts_with(prefix)).count(), 1, "{names:?}");
    }
}
