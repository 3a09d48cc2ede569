//! What `docs/methods.md` says about witnesses: every test that its tables name is one test of some crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ascribe_tests::root;

/// Columns that hold names of tests.
const WITNESSES: [&str; 5] = ["by hand", "closed form", "second route", "finite differences", "tests"];

/// What stands in backticks in the columns above: `test` or `file::test`, where a folder may stand before the file.
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
            names.extend(cells[column].split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    names
}

/// Functions under `#[test]` in every Rust file below `dir`, each as its file's path without the ending and its name.
fn tests_below(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let name = |part: &str| {
                part.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map(|(n, _)| n.to_owned())
            };
            let file = path.with_extension("").to_string_lossy().into_owned();
            found.extend(text.split("#[test]").skip(1).filter_map(name).map(|test| (file.clone(), test)));
        }
    }
}

/// How many tests a name of the paper stands for.
fn matches(name: &str, tests: &[(String, String)]) -> usize {
    let (file, test) = name.split_once("::").map_or((None, name), |(file, test)| (Some(format!("/{file}")), test));
    tests.iter().filter(|(f, t)| t == test && file.as_ref().is_none_or(|file| f.ends_with(file.as_str()))).count()
}

#[test]
fn every_witness_that_the_paper_names_is_a_test() {
    let names = named(&fs::read_to_string(root().join("docs/methods.md")).unwrap());
    assert!(names.len() > 80, "{} names: the tables were not read", names.len());
    let mut tests = Vec::new();
    tests_below(&root().join("crates"), &mut tests);
    let wrong: Vec<(&String, usize)> =
        names.iter().map(|name| (name, matches(name, &tests))).filter(|(_, n)| *n != 1).collect();
    assert!(wrong.is_empty(), "docs/methods.md names tests that are not there, or several at once: {wrong:?}");
}

#[test]
fn names_are_one_test_each() {
    let tests = [("/a/rank", "by_hand"), ("/a/game/mod", "by_hand"), ("/b/mod", "by_hand"), ("/b/mod", "other")];
    let tests = tests.map(|(file, test)| (file.to_owned(), test.to_owned()));
    let counts =
        ["by_hand", "other", "rank::by_hand", "mod::by_hand", "game/mod::by_hand", "ank::by_hand", "rank::other"];
    assert_eq!(counts.map(|name| matches(name, &tests)), [3, 1, 1, 2, 1, 0, 0]);
    let table = "| method | by hand |\n|---|---|\n| x `y` | `rank::by_hand`, `no such test` |\n";
    assert_eq!(named(table).into_iter().collect::<Vec<_>>(), ["no such test", "rank::by_hand"]);
}
