//! A writer that is killed, and one that runs out of room. The writer is this test binary, started again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{folder, ids, rows, spec};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_STORE_DIR";
/// If it is there, every shard is written past the page cache.
const DIRECT_VARIABLE: &str = "ASCRIBE_TEST_STORE_DIRECT";
const DIM: usize = 64;
const PER_SHARD: u32 = 16;
const N: usize = 16 * 150 + 5;
const N_KILLS: usize = 52;

/// Not a test of its own: the child process of the two tests below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child_writer() {
    let dir = std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder");
    match write(Path::new(&dir), 7) {
        Ok(_) => {}
        Err(StoreError::DiskFull { path, .. }) => {
            println!("disk full at {}", path.display());
            std::process::exit(42);
        }
        Err(other) => panic!("{other}"),
    }
}

fn write(dir: &Path, push: usize) -> Result<FeatureStore, StoreError> {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::F32, PER_SHARD, N as u64)?;
    if std::env::var_os(DIRECT_VARIABLE).is_some() {
        writer = writer.direct_from(0);
    }
    let from = writer.n_committed() as usize;
    for start in (from..N).step_by(push) {
        let range = start..(start + push).min(N);
        writer.push(&ids(range.clone()), rows(range, DIM).view())?;
    }
    writer.finish()
}

fn child_args() -> [&'static str; 4] {
    ["kill::child_writer", "--exact", "--ignored", "--nocapture"]
}

fn start(dir: &Path, is_direct: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if is_direct {
        command.env(DIRECT_VARIABLE, "1");
    }
    command.args(child_args()).env(DIR_VARIABLE, dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn n_lines(dir: &Path) -> usize {
    std::fs::read(dir.join("manifest.log")).map_or(0, |bytes| bytes.iter().filter(|&&b| b == b'\n').count())
}

/// Rows whose shards are committed and whole, as the next writer sees them (it hashes each one).
fn committed(dir: &Path) -> u64 {
    FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::F32, PER_SHARD, N as u64).unwrap().n_committed()
}

/// A build is killed at moments that differ each time and resumed; one that reaches its end between two kills is compared, taken
/// away and begun again. So every kill that is counted interrupted a writer.
#[test]
fn a_writer_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let plain = tempfile::tempdir().unwrap();
    write(plain.path(), 100).unwrap();
    let plain = folder(plain.path());
    let mut dir = tempfile::tempdir().unwrap();
    let (mut n_kills, mut n_builds, mut pause_us) = (0, 0, 1u64);
    while n_kills < N_KILLS {
        let n_before = n_lines(dir.path());
        // Plainly and past the page cache in turn: a store may be begun one way and gone on with the other.
        let mut child = start(dir.path(), n_kills % 2 == 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        // Two lines further the child is inside its loop; then a pause that differs each time, so that the kill falls
        // into every phase of a commit.
        while n_lines(dir.path()) < n_before + 2 && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the child does not get on");
            std::thread::sleep(Duration::from_micros(200));
        }
        pause_us = (pause_us * 7919) % 3001;
        std::thread::sleep(Duration::from_micros(pause_us));
        // SIGKILL: no destructor runs. An error only says that the child has ended already.
        let _ = child.kill();
        if child.wait().unwrap().success() {
            // On a busy machine the child may reach its end before this process is woken.
            assert_eq!(folder(dir.path()), plain, "the bytes differ from an uninterrupted run after {n_kills} kills");
            (dir, n_builds) = (tempfile::tempdir().unwrap(), n_builds + 1);
            assert!(n_builds < 50 * N_KILLS, "only {n_kills} kills of {n_builds} builds hit one");
            continue;
        }
        n_kills += 1;
        let n_committed = committed(dir.path());
        let n_seen = (n_before as u64 + 2) * u64::from(PER_SHARD);
        assert!(n_committed >= n_seen.min(N as u64), "{n_committed} rows after {n_before} lines");
        match FeatureStore::open(dir.path(), None) {
            Err(StoreError::Unfinished { .. }) => {}
            // Killed after its last commit: whole, or not there.
            Ok(store) => assert_eq!(store.verify().unwrap().n_rows, N as u64),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(start(dir.path(), false).wait().unwrap().success());
    assert_eq!(folder(dir.path()), plain, "the bytes differ from an uninterrupted run");
    assert_eq!(FeatureStore::open(dir.path(), None).unwrap().verify().unwrap().n_rows, N as u64);
}

/// A real refusal by the system in the middle of a shard: files may not grow beyond `ulimit -f` blocks.
#[cfg(unix)]
#[test]
fn a_writer_without_room_says_so_and_leaves_nothing_half_written() {
    without_room(&[]);
}

/// The same past the page cache, where the blocks of a file are asked for before it is written.
#[cfg(unix)]
#[test]
fn a_writer_past_the_page_cache_without_room_says_so_and_leaves_nothing_half_written() {
    without_room(&[(DIRECT_VARIABLE, "1")]);
}

#[cfg(unix)]
fn without_room(settings: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    // Sixteen rows of 64 numbers are 4 KiB of data plus a head: more than four blocks of 512 (or two of 1,024) bytes,
    // but store.json fits.
    let script = "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(child_args())
        .env(DIR_VARIABLE, dir.path())
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(42), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("disk full at") && text.contains("s-000000.safetensors"), "{text}");
    let left: Vec<String> = folder(dir.path()).into_keys().collect();
    assert_eq!(left, ["manifest.log", "store.json", "writer.lock"], "something half written stayed");
    // With room again, the same folder ends like any other.
    let plain = tempfile::tempdir().unwrap();
    write(plain.path(), N).unwrap();
    assert_eq!(committed(dir.path()), 0);
    assert_eq!(write(dir.path(), 33).unwrap().n_rows(), N as u64);
    assert_eq!(folder(dir.path()), folder(plain.path()));
}
