//! Who saves an index is killed, or not alone: what stands in the folder is always one index, whole.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ascribe_index::{Effort, HnswIndex, HnswParams, IndexError, VectorIndex};
use ascribe_store::StoreError;
use ascribe_testkit::MemoryReader;

use crate::contract::{clustered, queries};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_SAVERS_DIR";
const N_KILLS: usize = 16;

/// Two indexes that differ in the number of their graphs.
fn params(n_graphs: usize) -> HnswParams {
    HnswParams { point_dim: 24, n_graphs, ..HnswParams::default() }
}

fn rows() -> MemoryReader {
    clustered(300, 40, 6, 61)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Not a test of its own: the child process of the test below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child_saver() {
    let dir = std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder");
    let (reader, dir) = (rows(), Path::new(&dir).join("index"));
    let indexes = [2, 3].map(|n| HnswIndex::build(&reader, params(n)).unwrap());
    loop {
        indexes.iter().for_each(|index| index.save(&dir).unwrap());
    }
}

fn start(dir: &Path) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["savers::child_saver", "--exact", "--ignored", "--nocapture"]);
    command.env(DIR_VARIABLE, dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Opens the index in `dir` and asks it; it must be one of the two, and answer as it does.
fn whole(dir: &Path, reader: &MemoryReader) -> usize {
    let index = HnswIndex::open(reader, dir).unwrap();
    let n_graphs = index.n_graphs();
    assert_eq!(index.params(), &params(n_graphs));
    let queries = queries(reader, 3, 62);
    let hits = index.search_many(queries.view(), 5, Effort::new(300)).unwrap();
    let exact = ascribe_index::ExactIndex::new(reader).unwrap();
    assert_eq!(hits, exact.search_many(queries.view(), 5, Effort::default()).unwrap());
    n_graphs
}

#[test]
fn after_every_kill_one_index_is_there() {
    let (dir, reader) = (tempfile::tempdir().unwrap(), rows());
    let path = dir.path().join("index");
    HnswIndex::build(&reader, params(2)).unwrap().save(&path).unwrap();
    let (mut seen, mut draw) = (std::collections::BTreeSet::new(), 1u64);
    for _ in 0..N_KILLS {
        let before = fs::metadata(path.join("index.json")).and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH);
        let mut child = start(dir.path());
        let deadline = Instant::now() + Duration::from_secs(60);
        // Once the child saves: the header is another one.
        while fs::metadata(path.join("index.json")).and_then(|m| m.modified()).is_ok_and(|now| now == before) {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the child does not get on");
            std::thread::sleep(Duration::from_micros(200));
        }
        draw = draw * 7919 % 20_011;
        std::thread::sleep(Duration::from_micros(draw));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it saves without end");
        assert!(HnswIndex::<MemoryReader>::is_kept(&path));
        seen.insert(whole(&path, &reader));
    }
    assert!(!seen.is_empty());
    // The next saver clears away what was left.
    HnswIndex::build(&reader, params(3)).unwrap().save(&path).unwrap();
    assert_eq!(names(dir.path()), ["index"]);
    assert_eq!(whole(&path, &reader), 3);
}

/// A kill between any two steps of putting a new index in the old one's place, made by hand.
#[test]
fn between_the_two_renames_the_old_one_is_opened() {
    let (dir, reader) = (tempfile::tempdir().unwrap(), rows());
    let [path, old, tmp] = ["index", "index.old", "index.tmp"].map(|name| dir.path().join(name));
    let two = HnswIndex::build(&reader, params(2)).unwrap();
    let three = HnswIndex::build(&reader, params(3)).unwrap();
    two.save(&path).unwrap();
    three.save(&tmp).unwrap();
    fs::rename(&path, &old).unwrap();
    assert!(HnswIndex::<MemoryReader>::is_kept(&path));
    assert_eq!(whole(&path, &reader), 2, "put away, and nothing in its place");
    // The new one has its name, the old one is still there.
    fs::rename(&tmp, &path).unwrap();
    assert_eq!(whole(&path, &reader), 3);
    // A saver that fails puts back what was put away before it.
    fs::rename(&path, &tmp).unwrap();
    fs::remove_dir_all(&tmp).unwrap();
    two.save(&path).unwrap();
    assert_eq!((names(dir.path()), whole(&path, &reader)), (vec!["index".into()], 2));
    assert!(matches!(
        HnswIndex::open(&reader, &dir.path().join("none")),
        Err(IndexError::Store(StoreError::Missing { path, .. })) if path.ends_with("none/index.json")
    ));
}

/// Savers in two processes and two threads at once, and readers beside them.
#[test]
fn savers_wait_for_each_other_and_readers_meet_whole_indexes() {
    let (dir, reader) = (tempfile::tempdir().unwrap(), rows());
    let path = dir.path().join("index");
    let [two, three] = [2, 3].map(|n| HnswIndex::build(&reader, params(n)).unwrap());
    two.save(&path).unwrap();
    let mut child = start(dir.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    let n_read = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut n = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                whole(&path, &reader);
                n += 1;
            }
            n
        });
        let savers = [&two, &three].map(|index| {
            let path = &path;
            scope.spawn(move || (0..30).for_each(|_| index.save(path).unwrap()))
        });
        savers.into_iter().for_each(|saver| saver.join().unwrap());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reading.join().unwrap()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(n_read > 1, "the reader saw {n_read}");
    three.save(&path).unwrap();
    assert_eq!((names(dir.path()), whole(&path, &reader)), (vec!["index".into()], 3));
}
