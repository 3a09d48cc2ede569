//! Files of every version open for ever.

use std::path::{Path, PathBuf};

use ascribe_core::{NoProgress, RecordId};
use ascribe_verbatim::{FindOptions, Occurrence, VERBATIM_FORMAT_VERSION, VerbatimIndex};

use crate::common::{Datasets, build, settings};

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/verbatim/v{version}"))
}

/// Two shards, an empty record and an empty dataset.
fn data() -> Datasets {
    vec![vec![vec![1, 2, 3, 4], vec![], vec![2, 3, 4, 0]], vec![], vec![vec![5, 2, 3, 4], vec![0, 1]]]
}

#[test]
fn version_1_opens_and_means_the_same() {
    let index = VerbatimIndex::open(&folder(1)).unwrap();
    index.verify(&NoProgress).unwrap();
    assert_eq!((index.n_shards(), index.n_tokens(), index.record_counts()), (2, 14, vec![3, 0, 2]));
    let options = FindOptions { min_tokens: 3, ..FindOptions::default() };
    let found = index.find(&[9, 2, 3, 4, 0, 1], &options).unwrap();
    assert_eq!(found.spans.len(), 1);
    let at = |dataset, row, token_start, source_offset| Occurrence {
        record: RecordId { dataset, row },
        token_start,
        source_offset,
    };
    assert_eq!((found.spans[0].start, found.spans[0].end), (1, 5));
    assert_eq!(found.spans[0].occurrences, [at(0, 2, 0, 2000)]);
    let found = index.find(&[2, 3, 4], &options).unwrap();
    assert_eq!(found.spans[0].occurrences, [at(0, 0, 1, 0), at(0, 2, 0, 2000), at(2, 0, 1, 0)]);
}

#[test]
fn this_version_writes_the_golden_bytes() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &data(), settings(10, 8));
    let mut names = 0;
    for entry in std::fs::read_dir(folder(VERBATIM_FORMAT_VERSION)).unwrap() {
        let name = entry.unwrap().file_name();
        let golden = std::fs::read(folder(VERBATIM_FORMAT_VERSION).join(&name)).unwrap();
        assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), golden, "{name:?}");
        names += 1;
    }
    assert!(names >= 3);
}

/// `cargo test -p ascribe-verbatim -- --ignored make_golden` writes the newest version; older ones are never changed.
#[test]
#[ignore = "writes the golden files of the newest version"]
fn make_golden() {
    build(&folder(VERBATIM_FORMAT_VERSION), &data(), settings(10, 8));
}
