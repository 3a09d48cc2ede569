//! An index on disk: it comes back the same, belongs to its rows, and damage is found.

use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_index::{Effort, ExactIndex, HnswIndex, HnswParams, IndexError, VectorIndex};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use ascribe_testkit::{MemoryReader, gradient_spec, toy_rows};
use ndarray::Axis;

use crate::contract::{clustered, queries};

fn params() -> HnswParams {
    HnswParams { point_dim: 24, n_graphs: 3, ..HnswParams::default() }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_index_comes_back_the_same_and_its_bytes_are_fixed() {
    let reader = clustered(400, 40, 6, 21);
    let queries = queries(&reader, 20, 22);
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let built = HnswIndex::build(&reader, params()).unwrap();
    built.save(&a).unwrap();
    HnswIndex::build(&reader, params()).unwrap().save(&b).unwrap();
    built.save(&b).unwrap(); // in place of one that is there
    assert_eq!(names(dir.path()), ["a", "b"], "something half written stayed");
    assert_eq!(names(&a).len(), 1 + 3);
    for name in names(&a) {
        assert_eq!(fs::read(a.join(&name)).unwrap(), fs::read(b.join(&name)).unwrap(), "{name}");
    }
    let opened = HnswIndex::open(&reader, &a).unwrap();
    assert_eq!((opened.params(), opened.orphans(), opened.curve()), (built.params(), built.orphans(), built.curve()));
    for ef in [5, 50] {
        let hits = |index: &dyn VectorIndex| index.search_many(queries.view(), 5, Effort::new(ef)).unwrap();
        assert_eq!(hits(&opened), hits(&built));
    }
}

#[test]
fn an_index_of_other_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let reader = clustered(100, 40, 6, 23);
    HnswIndex::build(&reader, params()).unwrap().save(&path).unwrap();
    let mut spec = gradient_spec(&[40]);
    spec.checkpoint = "step-000400".into();
    let other_spec = MemoryReader::new(spec.clone(), reader.ids().to_vec(), reader.rows().clone(), 64);
    let error = HnswIndex::open(&other_spec, &path).unwrap_err();
    assert!(matches!(error, IndexError::SpecMismatch { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&spec.hash().to_string()) && text.contains(&reader.spec().hash().to_string()), "{text}");
    // Too many rows that it does not know.
    let more = clustered(120, 40, 6, 23);
    assert!(matches!(HnswIndex::open(&more, &path), Err(IndexError::SpecMismatch { .. })));
    assert!(matches!(
        HnswIndex::open(&reader, &dir.path().join("none")),
        Err(IndexError::Store(StoreError::Missing { .. }))
    ));
}

#[test]
fn an_index_outlives_lost_and_new_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let reader = clustered(300, 40, 6, 33);
    HnswIndex::build(&reader, params()).unwrap().save(&path).unwrap();
    // The store has lost every tenth row and got nine new ones at its end.
    let all = clustered(309, 40, 6, 33);
    let left: Vec<usize> = (0..309).filter(|i| *i >= 300 || i % 10 != 4).collect();
    let ids = left.iter().map(|&i| all.ids()[i]).collect();
    let rows = all.rows().select(Axis(0), &left);
    let later = MemoryReader::new(reader.spec().clone(), ids, rows, 64);
    let index = HnswIndex::open(&later, &path).unwrap();
    assert!(index.orphans().contains(&278), "new rows are looked at always");
    let queries = queries(&later, 12, 34);
    let hits = |index: &dyn VectorIndex| index.search_many(queries.view(), 8, Effort::new(300)).unwrap();
    assert_eq!(hits(&index), hits(&ExactIndex::new(&later).unwrap()));
    index.save(&path).unwrap();
    assert_eq!(hits(&HnswIndex::open(&later, &path).unwrap()), hits(&index));
}

#[test]
fn deleted_examples_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let reader = clustered(300, 40, 6, 35);
    let queries = queries(&reader, 5, 36);
    let exact = ExactIndex::new(&reader).unwrap();
    let gone: Vec<_> = exact.search_many(queries.view(), 3, Effort::new(1)).unwrap().concat();
    let filter = ascribe_index::Filter::default().without(gone.iter().map(|hit| hit.id));
    let mut index = HnswIndex::build(&reader, params()).unwrap();
    index.delete(gone.iter().map(|hit| hit.id));
    index.save(&path).unwrap();
    let opened = HnswIndex::open(&reader, &path).unwrap();
    assert!(opened.deleted().eq(index.deleted()) && opened.deleted().count() > 0);
    let expected = exact.search_filtered(queries.view(), 10, Effort::new(1), &filter).unwrap();
    assert_eq!(opened.search_many(queries.view(), 10, Effort::new(300)).unwrap(), expected);
}

/// Bytes that hash as the header says and still lie about the graph.
#[test]
fn a_hostile_graph_is_refused_not_walked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let reader = clustered(100, 40, 6, 37);
    HnswIndex::build(&reader, params()).unwrap().save(&path).unwrap();
    let (file, header) = (path.join("graph-000.bin"), path.join("index.json"));
    let (good, text) = (fs::read(&file).unwrap(), fs::read_to_string(&header).unwrap());
    let mut refused = 0;
    for at in (0..good.len()).step_by(37) {
        let mut bytes = good.clone();
        bytes[at] = 0xC3;
        fs::write(&file, &bytes).unwrap();
        let digest = |bytes: &[u8]| ascribe_core::Digest::of(bytes).to_string();
        fs::write(&header, text.replace(&digest(&good), &digest(&bytes))).unwrap();
        match HnswIndex::open(&reader, &path) {
            // A wrong code or id is a wrong guess at worst: the store scores what is nominated.
            Ok(index) => drop(index.search_many(reader.rows().view(), 5, Effort::new(20)).unwrap()),
            Err(error) => {
                assert!(matches!(error, IndexError::Store(_) | IndexError::SpecMismatch { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn damage_is_found_before_the_library_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let reader = clustered(100, 40, 6, 24);
    let built = HnswIndex::build(&reader, params()).unwrap();
    built.save(&path).unwrap();
    for name in names(&path) {
        let file = path.join(&name);
        let bytes = fs::read(&file).unwrap();
        let step = if name == "index.json" { 1 } else { bytes.len() / 60 + 1 };
        for at in (0..bytes.len()).step_by(step) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&file, changed).unwrap();
            let error =
                HnswIndex::open(&reader, &path).err().unwrap_or_else(|| panic!("{name}: byte {at} changed unnoticed"));
            assert!(error.to_string().contains(&name), "byte {at} of {name}: {error}");
        }
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert!(HnswIndex::open(&reader, &path).is_err(), "{name}: cut unnoticed");
        fs::write(&file, &bytes).unwrap();
    }
    let header = path.join("index.json");
    let text = fs::read_to_string(&header).unwrap();
    fs::write(&header, text.replace("\"format_version\": 3", "\"format_version\": 9")).unwrap();
    let error = HnswIndex::open(&reader, &path).unwrap_err();
    let is_right = matches!(error, IndexError::Store(StoreError::WrongVersion { expected: 3, found: 9, .. }));
    assert!(is_right, "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let reader = clustered(100, 40, 6, 25);
    let index = HnswIndex::build(&reader, params()).unwrap();
    let in_the_way = dir.path().join("file");
    fs::write(&in_the_way, b"a file, not a folder").unwrap();
    let error = index.save(&in_the_way.join("index")).unwrap_err();
    assert!(matches!(error, IndexError::Store(StoreError::Io { .. })), "{error}");
    assert_eq!(names(dir.path()), ["file"]);
}

const DIR_VARIABLE: &str = "ASCRIBE_TEST_INDEX_DIR";

/// Not a test of its own: the child process of the test below.
#[test]
#[ignore = "started by the next test, with a folder in its environment"]
fn child_saver() {
    let dir = std::env::var_os(DIR_VARIABLE).expect("the parent sets the folder");
    let reader = clustered(400, 40, 6, 29);
    let saved = HnswIndex::build(&reader, params()).unwrap().save(&Path::new(&dir).join("index"));
    assert!(matches!(saved, Err(IndexError::Store(StoreError::Io { .. } | StoreError::DiskFull { .. }))), "{saved:?}");
}

/// A real refusal by the system in the middle of a dump: files may not grow beyond `ulimit -f` blocks.
#[cfg(unix)]
#[test]
fn an_index_without_room_says_so_and_leaves_nothing_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["kept::child_saver", "--exact", "--ignored"])
        .env(DIR_VARIABLE, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(names(dir.path()).is_empty(), "something half written stayed");
}

#[test]
fn a_changed_shard_of_the_store_stops_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let rows = clustered(300, 40, 6, 26);
    let mut writer = FeatureWriter::create_or_resume(dir.path(), rows.spec(), RowType::F32, 128, 300).unwrap();
    writer.push(rows.ids(), rows.rows().view()).unwrap();
    let store = writer.finish().unwrap();
    let query = queries(&rows, 1, 27);
    let from_store = ExactIndex::new(&store).unwrap().search(query.row(0), 9, Effort::default()).unwrap();
    let from_memory = ExactIndex::new(&rows).unwrap().search(query.row(0), 9, Effort::default()).unwrap();
    assert_eq!(from_store, from_memory);
    let index = HnswIndex::build(&store, params()).unwrap();
    assert_eq!(index.search(query.row(0), 9, Effort::new(300)).unwrap(), from_memory);
    drop(index);
    drop(store);
    let path = dir.path().join("shards/s-000001.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = FeatureStore::open(dir.path(), None).unwrap();
    let error = ExactIndex::new(&store).unwrap().search(query.row(0), 9, Effort::default()).unwrap_err();
    assert!(error.to_string().contains("s-000001"), "{error}");
    assert!(matches!(HnswIndex::build(&store, params()), Err(IndexError::Reader(_))));
}

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/index/v{version}"))
}

fn golden_reader() -> MemoryReader {
    let (ids, rows) = toy_rows(40, 12, 3);
    MemoryReader::new(gradient_spec(&[12]), ids, rows, 16)
}

/// Run by hand when the format gets a new version; the folders of old versions are never written again.
#[test]
#[ignore = "makes the golden files of the present version"]
fn make_golden() {
    let params = HnswParams { point_dim: 8, n_graphs: 2, ..HnswParams::default() };
    let dir = golden(ascribe_index::hnsw::INDEX_FORMAT_VERSION);
    HnswIndex::build(&golden_reader(), params).unwrap().save(&dir).unwrap();
}

#[test]
fn indexes_of_every_version_open() {
    let reader = golden_reader();
    for version in 1..=ascribe_index::hnsw::INDEX_FORMAT_VERSION {
        let index = HnswIndex::open(&reader, &golden(version)).unwrap();
        assert_eq!((index.n_graphs(), index.params().point_dim), (2, 8));
        let exact = ExactIndex::new(&reader).unwrap();
        let queries = reader.rows().select(Axis(0), &[0, 17, 39]);
        let hits = |index: &dyn VectorIndex| index.search_many(queries.view(), 6, Effort::new(40)).unwrap();
        assert_eq!(hits(&index), hits(&exact), "version {version}");
    }
}
