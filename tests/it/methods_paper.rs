//! What `docs/methods.md` says about witnesses: every test that its tables name is one test of some crate. And about names: every
//! method of the catalogue stands there, with its settings, its configuration and its options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ascribe_engine::Home;
use ascribe_engine::bench::contest::Contestant;
use ascribe_engine::bench::methods::{Method, Normalisation, catalogue};
use ascribe_engine::bench::setting::{self, Setting, Subject};
use ascribe_tests::root;
use serde_json::Value;

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

/// The head of the table of names.
const BY_NAME: [&str; 6] = ["method", "name", "on", "configuration", "`--normalise`", "self-influence"];

/// A line of the table of names.
struct Line {
    /// Row of another table that has formula and witnesses.
    method: String,
    names: Vec<String>,
    /// `images`, `text` or settings.
    on: String,
    /// Kind, then fields.
    configuration: Vec<String>,
    normalise: String,
    own: String,
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn lines(paper: &str) -> Vec<Line> {
    let head = |line: &&str| cells(line) == BY_NAME;
    let table = paper.lines().skip_while(|line| !head(line)).skip(2).take_while(|line| line.starts_with('|'));
    table
        .map(|line| match cells(line)[..] {
            [method, names, on, configuration, normalise, own] => Line {
                method: method.to_owned(),
                names: quoted(names),
                on: on.to_owned(),
                configuration: quoted(configuration),
                normalise: normalise.to_owned(),
                own: own.to_owned(),
            },
            _ => panic!("not six cells: {line}"),
        })
        .collect()
}

/// The methods of every shipped setting that explains examples, with the word that the table has for it; settings that keep to a
/// few methods are left out.
fn shipped() -> Vec<(Setting, &'static str, Vec<Method>)> {
    let home = Home::find(Some(&root())).unwrap();
    let all = setting::names(&home).unwrap().into_iter().map(|name| Setting::named(&home, &name).unwrap());
    let word = |setting: &Setting| match setting.subject {
        Subject::Images(_) => Some("images"),
        // Truth over subsets of datasets has channels in the place of the catalogue's methods.
        Subject::Decoder { .. } | Subject::Tuned(_) if setting.name != "datasets-shapley" => Some("text"),
        _ => None,
    };
    all.filter(|setting| setting.only.is_empty())
        .filter_map(|setting| word(&setting).map(|word| (word, setting)))
        .map(|(word, setting)| {
            let methods = catalogue(&setting);
            (setting, word, methods)
        })
        .collect()
}

#[test]
fn names_settings_and_options_are_the_catalogues() {
    let paper = fs::read_to_string(root().join("docs/methods.md")).unwrap();
    let (lines, shipped) = (lines(&paper), shipped());
    assert!(shipped.len() >= 6, "{} settings", shipped.len());
    let mut listed: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in &lines {
        let row = format!("| {}", line.method);
        assert!(paper.lines().any(|other| other.starts_with(&row) && cells(other).len() != BY_NAME.len()), "{row}");
        let on = |setting: &Setting, word: &str| {
            line.on.split(", ").any(|part| part == word || part.trim_matches('`') == setting.name)
        };
        let mut fields = BTreeSet::new();
        for (setting, _, methods) in shipped.iter().filter(|(setting, word, _)| on(setting, word)) {
            for name in &line.names {
                *listed.entry((setting.name.clone(), name.clone())).or_default() += 1;
                let method = methods.iter().find(|m| m.name == *name);
                let method = method.unwrap_or_else(|| panic!("{name} does not run on {}", setting.name));
                let Value::Object(settings) = method.settings() else { panic!("{name}: no object") };
                assert_eq!(settings["method"], line.configuration[0], "{name}");
                fields.extend(settings.into_iter().map(|(field, _)| field).filter(|field| field != "method"));
                let option = method.spec.normalised(Normalisation::Cosine).is_some();
                assert_eq!(line.normalise, if option { "yes" } else { "no" }, "{name}");
                assert_eq!(line.own == "control", method.control(), "{name}");
            }
        }
        let told: BTreeSet<String> = line.configuration[1..].iter().cloned().collect();
        assert_eq!(fields, told, "{:?}", line.names);
    }
    let known =
        shipped.iter().flat_map(|(s, _, methods)| methods.iter().map(|m| ((s.name.clone(), m.name.clone()), 1)));
    assert_eq!(listed, known.collect::<BTreeMap<_, _>>());
}
