//! Changes of a finished store under SIGKILL, without room, and in a folder that may not be written. The one who changes is this
//! test binary, started again.
#![cfg(unix)]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{DatasetTerms, Deletion, compact, convert, delete, make_companion, relicense};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{folder, ids, rows, spec};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_CHANGE_DIR";
const WHAT_VARIABLE: &str = "ASCRIBE_TEST_CHANGE";
const DIM: usize = 64;
const STEP: usize = 12;
const LIVE: usize = 40;
const N_KILLS: usize = 24;
/// Exit codes of the child.
const NO_ROOM: i32 = 42;
const REFUSED: i32 = 43;

fn build(dir: &Path) {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::F32, 8, LIVE as u64).unwrap();
    writer.push(&ids(0..LIVE), rows(0..LIVE, DIM).view()).unwrap();
    writer.finish().unwrap();
}

/// The place of an example in the order in which `common::ids` counts.
fn place(id: ExampleId) -> usize {
    id.idx as usize * 3 + id.dataset as usize
}

/// Reads everything; the store must hold rows `a..b`, whole and in order.
fn window(dir: &Path) -> std::ops::Range<usize> {
    let store = FeatureStore::open(dir, None).unwrap();
    store.verify().unwrap();
    let places: Vec<usize> = store.ids().map(place).collect();
    let (a, b) = (places[0], places[places.len() - 1] + 1);
    assert!(places.iter().copied().eq(a..b), "{places:?}");
    let expected = rows(a..b, DIM);
    let mut at = 0;
    for i in 0..store.n_blocks() {
        for row in store.block(i).unwrap().rows.rows() {
            assert_eq!(row, expected.row(at));
            at += 1;
        }
    }
    a..b
}

fn append(dir: &Path, range: std::ops::Range<usize>) -> Result<(), StoreError> {
    let mut writer = FeatureWriter::append(dir, &spec(DIM), range.len() as u64)?;
    let from = range.start + writer.n_committed() as usize;
    writer.push(&ids(from..range.end), rows(from..range.end, DIM).view())?;
    writer.finish().map(drop)
}

fn remove(dir: &Path, range: std::ops::Range<usize>) -> Result<(), StoreError> {
    let examples = ids(range).into_iter().collect();
    delete(dir, &Deletion { examples, ..Deletion::default() }).map(drop)
}

/// Appends, deletes and compacts in turn: the window of rows walks on.
fn walk(dir: &Path) -> Result<(), StoreError> {
    loop {
        let now = window(dir);
        if now.len() < LIVE + STEP {
            append(dir, now.end..now.end + STEP)?;
        }
        let now = window(dir);
        remove(dir, now.start..now.end - LIVE)?;
        compact(dir)?;
    }
}

/// Not a test of its own: the child process of the tests below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child() {
    let dir = std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder");
    let (dir, what) = (Path::new(&dir), std::env::var(WHAT_VARIABLE).expect("the parent says what to do"));
    let result = match what.as_str() {
        "walk" => walk(dir),
        "append" => append(dir, LIVE..LIVE + STEP),
        "delete" => remove(dir, 1..3),
        "compact" => compact(dir).map(drop),
        "relicense" => {
            let of = |dataset: u32| DatasetTerms {
                dataset,
                owner: Some(format!("owner {dataset}")),
                ..DatasetTerms::default()
            };
            relicense(dir, &[of(0), of(1), of(2)]).map(drop)
        }
        "convert" => {
            convert(&FeatureStore::open(dir, None).unwrap(), &dir.with_extension("out"), RowType::Bf16, &NoProgress)
                .map(drop)
        }
        "companion" => make_companion(&FeatureStore::open(dir, None).unwrap(), RowType::Bf16, &NoProgress).map(drop),
        "create" => FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::F32, 8, 1).map(drop),
        "read" => {
            window(dir);
            Ok(())
        }
        other => panic!("no such change: {other}"),
    };
    match result {
        Ok(()) => {}
        Err(error @ StoreError::DiskFull { .. }) => {
            println!("{error}");
            std::process::exit(NO_ROOM);
        }
        Err(error @ StoreError::Io { .. }) => {
            println!("{error}");
            std::process::exit(REFUSED);
        }
        Err(other) => panic!("{other}"),
    }
}

fn command(program: &str, what: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["faults::child", "--exact", "--ignored", "--nocapture"]);
    command.env(DIR_VARIABLE, dir).env(WHAT_VARIABLE, what).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_changing_store_is_whole_after_every_kill() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path());
    let exe = std::env::current_exe().unwrap();
    let (mut pause_us, mut last) = (1u64, 0..LIVE);
    for n in 0..N_KILLS {
        let manifests = || {
            let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|n| n.starts_with("MANIFEST")).max()
        };
        let before = manifests();
        let mut child = command(exe.to_str().unwrap(), "walk", dir.path()).spawn().unwrap();
        // One generation further the child is inside its loop; then a pause that differs each time, so that the kill falls into
        // every step.
        let deadline = Instant::now() + Duration::from_secs(60);
        while manifests() == before {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the child does not get on");
            std::thread::sleep(Duration::from_micros(200));
        }
        pause_us = (pause_us * 7919) % 20_011;
        std::thread::sleep(Duration::from_micros(pause_us));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the walk has no end");
        let now = window(dir.path());
        assert!(now.start >= last.start && now.end >= last.end, "kill {n}: {now:?} after {last:?}");
        assert!((LIVE..=LIVE + STEP).contains(&now.len()), "kill {n}: {now:?}");
        last = now;
    }
    assert!(last.end > LIVE, "the walk never got on: {last:?}");
    // What the last kill left behind is taken up and cleared away.
    if last.len() < LIVE + STEP {
        append(dir.path(), last.end..last.end + STEP).unwrap();
    }
    compact(dir.path()).unwrap();
    let names: Vec<String> = folder(dir.path()).into_keys().collect();
    assert!(!names.iter().any(|n| n.ends_with(".tmp") || n.starts_with("PENDING")), "{names:?}");
    assert_eq!(names.iter().filter(|n| n.starts_with("MANIFEST")).count(), 1, "{names:?}");
}

/// A real refusal by the system: files may not grow beyond `ulimit -f` blocks.
#[test]
fn a_change_without_room_leaves_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path());
    remove(dir.path(), 0..1).unwrap();
    let before = folder(dir.path());
    for what in ["append", "delete", "relicense", "compact"] {
        let exe = std::env::current_exe().unwrap();
        let script = "trap '' XFSZ; ulimit -f 4; exec \"$0\" faults::child --exact --ignored --nocapture";
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(exe)
            .env(DIR_VARIABLE, dir.path())
            .env(WHAT_VARIABLE, what)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let talk = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(NO_ROOM), "{what}: {text} {talk}");
        assert!(text.contains("no room to write") && text.contains(&*dir.path().to_string_lossy()), "{what}: {text}");
        assert_eq!(window(dir.path()), 1..LIVE, "{what}");
        let after = folder(dir.path());
        for (name, bytes) in &before {
            assert!(name == "manifest.log" || after.get(name) == Some(bytes), "{what} changed {name}");
        }
        let half: Vec<_> = after.keys().filter(|n| !before.contains_key(*n) && *n != "PENDING.json").collect();
        assert!(half.is_empty(), "{what} left {half:?}");
        if what == "append" {
            // With room again the same append goes on; here it is given up instead.
            std::fs::remove_file(dir.path().join("PENDING.json")).unwrap();
        }
    }
    compact(dir.path()).unwrap();
    assert_eq!(window(dir.path()), 1..LIVE);
}

/// As an ordinary user (root may write anywhere): reading works, every change is refused and names the place.
#[test]
fn a_folder_that_may_not_be_written_can_be_read_and_nothing_else() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    build(&store);
    let before = folder(&store);
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set(dir.path(), 0o555);
    for sub in ["", "shards", "side"] {
        set(&store.join(sub), 0o555);
    }
    for name in before.keys() {
        set(&store.join(name), 0o444);
    }
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let fresh = dir.path().join("fresh");
    let changes =
        ["read", "append", "delete", "relicense", "companion", "convert", "compact"].map(|what| (what, &store));
    let cases = changes.into_iter().chain([("create", &fresh)]);
    for (what, place) in cases {
        // Through /proc the binary runs wherever it lies, even below a folder that only root may enter.
        let mut child = command("/proc/self/exe", what, place);
        if is_root {
            child.uid(65_534).gid(65_534);
        }
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if what == "read" {
            assert!(output.status.success(), "{text}");
        } else {
            assert_eq!(output.status.code(), Some(REFUSED), "{what}: {text}");
            assert!(text.contains(&*place.to_string_lossy()), "{what}: {text}");
        }
    }
    for sub in ["", "shards", "side"] {
        set(&store.join(sub), 0o755);
    }
    set(dir.path(), 0o755);
    assert_eq!(folder(&store), before);
}
