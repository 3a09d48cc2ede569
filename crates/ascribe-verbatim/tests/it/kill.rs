//! A builder that is killed again and again ends with the bytes of one that was not. It is this test binary, started again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ascribe_core::NoProgress;
use ascribe_linalg::Stream;
use ascribe_store::StoreError;
use ascribe_verbatim::{IndexSettings, VerbatimError, VerbatimIndex, VerbatimWriter};

use crate::common::{Datasets, build, datasets, settings, sources};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_VERBATIM_DIR";
const N_KILLS: usize = 12;
/// Small shards: some eighty of them, each a sync of its own.
const SETTINGS: fn() -> IndexSettings = || settings(30, 300);

fn data() -> Datasets {
    datasets(&mut Stream::new(17, "verbatim-kill"), 4, 700, 30)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| {
        let path = e.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

/// Not a test of its own: the child process of the test below.
#[test]
#[ignore = "started by the next test, with a folder in its environment"]
fn child() {
    let dir = std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder");
    build(Path::new(&dir), &data(), SETTINGS());
}

#[test]
fn a_builder_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let (plain, data) = (tempfile::tempdir().unwrap(), data());
    let clock = Instant::now();
    let index = build(plain.path(), &data, SETTINGS());
    assert!(index.n_shards() > 50, "{}", index.n_shards());
    let lasts_us = clock.elapsed().as_micros() as u64;
    let plain = files(plain.path());
    let (mut dir, mut n_kills, mut draw, mut n_before) = (tempfile::tempdir().unwrap(), 0, 1u64, 0);
    let deadline = Instant::now() + Duration::from_secs(240);
    while n_kills < N_KILLS {
        assert!(Instant::now() < deadline, "only {n_kills} kills hit a builder");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["kill::child", "--exact", "--ignored", "--nocapture"]).env(DIR_VARIABLE, dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        draw = draw * 7919 % 1_000_003;
        std::thread::sleep(Duration::from_micros(draw * (lasts_us / 2 + 20_000) / 1_000_003));
        // SIGKILL: no destructor runs. An error only says that the child has ended already.
        let _ = child.kill();
        if child.wait().unwrap().success() {
            assert_eq!(files(dir.path()), plain, "the bytes differ after {n_kills} kills");
            (dir, n_before) = (tempfile::tempdir().unwrap(), 0);
            continue;
        }
        n_kills += 1;
        match VerbatimIndex::open(dir.path()) {
            // Killed after its last commit.
            Ok(index) => index.verify(&NoProgress).unwrap(),
            Err(VerbatimError::Store(StoreError::Missing { .. })) => assert_eq!(n_before, 0),
            Err(other) => assert!(other.to_string().contains("unfinished"), "{other}"),
        }
        // Finished shards stay.
        let writer = VerbatimWriter::open(dir.path(), SETTINGS(), sources(data.len())).unwrap();
        assert!(writer.committed_tokens() >= n_before, "{} tokens after {n_before}", writer.committed_tokens());
        n_before = writer.committed_tokens();
    }
    build(dir.path(), &data, SETTINGS());
    assert_eq!(files(dir.path()), plain, "the bytes differ from an uninterrupted run");
}
