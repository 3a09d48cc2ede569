//! A build without room: the system refuses to let a file grow beyond `ulimit -f`, for real. Finished shards stay, nothing unfinished
//! is opened, the error names the file, and the same build ends, once there is room, with the bytes of one that always had it. The
//! builder is this test binary, started again under that limit.
#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use ascribe_linalg::Stream;
use ascribe_store::StoreError;
use ascribe_verbatim::{IndexSettings, VerbatimError, VerbatimIndex, VerbatimWriter};

use crate::common::{Datasets, build, datasets, records, settings, sources};

const DIR_VARIABLE: &str = "ASCRIBE_TEST_VERBATIM_FULL_DIR";
/// Exit code of the child.
const NO_ROOM: i32 = 42;
/// Limits in blocks of 512 bytes, each in turn on what the one before has left: from nothing at all to more than the longest file.
const LIMITS: [u64; 14] = [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 4096];
const SETTINGS: fn() -> IndexSettings = || settings(30, 300);

fn data() -> Datasets {
    datasets(&mut Stream::new(17, "verbatim-full"), 4, 200, 30)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| {
        let path = e.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

fn work(dir: &Path) -> Result<(), VerbatimError> {
    let data = data();
    let mut writer = VerbatimWriter::open(dir, SETTINGS(), sources(data.len()))?;
    if writer.is_complete() {
        return Ok(());
    }
    let next = writer.next_record();
    for (id, offset, tokens) in records(&data).filter(|(id, ..)| *id >= next) {
        writer.push(id, offset, tokens)?;
    }
    writer.finish().map(drop)
}

/// Not a test of its own: the child process of the test below.
#[test]
#[ignore = "started by the next test, with a folder in its environment"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder"));
    match work(&dir) {
        Ok(()) => {}
        Err(VerbatimError::Store(error @ StoreError::DiskFull { .. })) => {
            eprintln!("refused: {error}");
            std::process::exit(NO_ROOM);
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_build_without_room_is_gone_on_with() {
    let (plain, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(plain.path(), &data(), SETTINGS());
    let plain = files(plain.path());
    let (mut refused_for, mut before) = (Vec::new(), BTreeSet::new());
    for blocks in LIMITS {
        // Without the trap the system would end the process instead of refusing the write.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" full::child --exact --ignored --nocapture");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(std::env::current_exe().unwrap());
        let output = command.env(DIR_VARIABLE, dir.path()).output().unwrap();
        if output.status.success() {
            break;
        }
        let talk = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(NO_ROOM), "{blocks} blocks: {talk}");
        let said = talk.lines().find_map(|line| line.split("refused: ").nth(1)).unwrap();
        let named = said.strip_prefix("no room to write ").and_then(|rest| rest.split(": ").next()).unwrap();
        let named = Path::new(named).strip_prefix(dir.path()).unwrap_or_else(|_| panic!("no file named: {said}"));
        refused_for.push(named.display().to_string());
        match VerbatimIndex::open(dir.path()) {
            Ok(_) => panic!("{blocks} blocks: an unfinished index was opened"),
            Err(VerbatimError::Store(StoreError::Missing { .. })) => assert!(before.is_empty()),
            Err(other) => assert!(other.to_string().contains("unfinished"), "{other}"),
        }
        let after = files(dir.path());
        let half: Vec<&String> = after.keys().filter(|name| name.ends_with(".tmp")).collect();
        assert!(half.is_empty(), "{blocks} blocks: {half:?} stayed");
        // Shards never change; the manifest is another with each that is finished.
        let shards = after.into_iter().filter(|(name, bytes)| plain.get(name) == Some(bytes)).map(|(name, _)| name);
        let shards: BTreeSet<String> = shards.filter(|name| name.ends_with(".safetensors")).collect();
        assert!(shards.is_superset(&before), "{blocks} blocks: {before:?} became {shards:?}");
        before = shards;
    }
    refused_for.dedup();
    assert!(refused_for.len() >= 2, "the build was refused for {refused_for:?} only");
    work(dir.path()).unwrap();
    let now = files(dir.path());
    assert_eq!(now.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "other files");
    let changed: Vec<&String> = now.keys().filter(|name| now[*name] != plain[*name]).collect();
    assert!(changed.is_empty(), "other bytes than those of a build with room in {changed:?}");
}
