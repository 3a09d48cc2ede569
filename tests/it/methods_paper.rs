//! What `docs/methods.md` says about witnesses: every test that its tables name is a test of some crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ascribe_tests::root;

/// Columns that hold names of tests.
const WITNESSES: [&str; 5] = ["by hand", "closed form", "second route", "finite differences", "tests"];

/// Names in backticks, one word each, of the columns above.
fn named(paper: &str) -> BTreeSet<String> {
    let (mut names, mut columns) = (BTreeSet::new(), Vec::new());
    for line in paper.lines() {
        let cells: Vec<&str> =
            line.strip_prefix('|').map(|row| row.split('|').map(str::trim).collect()).unwrap_or_default();
        if cells.is_empty() || cells.iter().any(|cell| WITNESSES.contains(cell)) {
            columns = (0..cells.len()).filter(|&c| WITNESSES.contains(&cells[c])).collect();
            continue;
        }
        for &column in &columns {
            let quoted = cells[column].split('`').skip(1).step_by(2);
            names.extend(quoted.filter(|name| !name.contains([' ', ':'])).map(str::to_owned));
        }
    }
    names
}

/// Functions under `#[test]` in every Rust file below `dir`.
fn tests_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let after = text.split("#[test]").skip(1);
            let name = |part: &str| {
                part.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map(|(n, _)| n.to_owned())
            };
            found.extend(after.filter_map(name));
        }
    }
}

#[test]
fn every_witness_that_the_paper_names_is_a_test() {
    let names = named(&fs::read_to_string(root().join("docs/methods.md")).unwrap());
    assert!(names.len() > 80, "{} names: the tables were not read", names.len());
    let mut tests = BTreeSet::new();
    tests_below(&root().join("crates"), &mut tests);
    let missing: Vec<&String> = names.difference(&tests).collect();
    assert!(missing.is_empty(), "docs/methods.md names tests that are not there: {missing:?}");
}
