//! Law 5: files over 600 lines and functions over 70 are listed, and the list only shrinks.

use crate::laws::RustFile;
use crate::ratchet::{self, FILES_MAX, FUNCTIONS_MAX, LongFile, LongFunction, Ratchet};
use crate::repo::{Repo, RepoFile};
use crate::violation::{Law, Violation};

/// Lines that a file may have: it should fit in a head.
const FILE_LINES_MAX: usize = 600;

/// Lines that a function may have: one screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Extensions of files that people write by hand.
const SOURCES: [&str; 7] = ["rs", "py", "sh", "js", "mjs", "css", "html"];

/// Checks law 5.
pub fn check(repo: &Repo, rust: &[RustFile<'_>], ratchet: &Ratchet) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (kind, n_entries, max) in
        [("files", ratchet.file.len(), FILES_MAX), ("functions", ratchet.function.len(), FUNCTIONS_MAX)]
    {
        if n_entries > max {
            violations.push(
                Violation::new(Law::Sizes, ratchet::PATH, 0)
                    .expected(format!("at most {max} long {kind}"))
                    .found(format!("{n_entries}"))
                    .hint("the list may only shrink: split what is long"),
            );
        }
    }
    files(repo, &ratchet.file, &mut violations);
    functions(rust, &ratchet.function, &mut violations);
    violations
}

fn files(repo: &Repo, listed: &[LongFile], violations: &mut Vec<Violation>) {
    let n_lines = |file: &RepoFile| file.text.as_deref().map_or(0, |text| text.lines().count());
    for file in repo.files.iter().filter(|file| is_source(file)) {
        if !listed.iter().any(|entry| entry.path == file.path) && n_lines(file) > FILE_LINES_MAX {
            let breach = Violation::new(Law::Sizes, &file.path, 0).expected(format!("at most {FILE_LINES_MAX} lines"));
            violations.push(breach.found(n_lines(file).to_string()).hint("split it: one concept per file"));
        }
    }
    for entry in listed {
        let found = repo.files.iter().find(|file| file.path == entry.path).map_or(0, n_lines);
        let what = format!("`{}` with {} lines", entry.path, entry.lines);
        violations.extend(held(&entry.path, 0, &what, found, entry.lines, FILE_LINES_MAX));
    }
}

fn functions(rust: &[RustFile<'_>], listed: &[LongFunction], violations: &mut Vec<Violation>) {
    let mut longest = vec![(0, 0); listed.len()];
    for file in rust {
        let path = &file.file.path;
        for function in file.scan.functions() {
            if let Some(idx) = listed.iter().position(|entry| entry.path == *path && entry.name == function.name) {
                longest[idx] = longest[idx].max((function.n_lines, function.line));
            } else if function.n_lines > FUNCTION_LINES_MAX {
                violations.push(
                    Violation::new(Law::Sizes, path, function.line)
                        .expected(format!("functions of at most {FUNCTION_LINES_MAX} lines"))
                        .found(format!("`{}` with {}", function.name, function.n_lines))
                        .hint("parents branch, leaves compute: move the leaves out"),
                );
            }
        }
    }
    for (entry, (found, line)) in listed.iter().zip(longest) {
        let what = format!("`{}` of {} with {} lines", entry.name, entry.path, entry.lines);
        violations.extend(held(&entry.path, line, &what, found, entry.lines, FUNCTION_LINES_MAX));
    }
}

/// A listed length may neither grow nor go stale.
fn held(path: &str, line: usize, what: &str, found: usize, listed: usize, max: usize) -> Option<Violation> {
    if found > listed {
        let breach = Violation::new(Law::Sizes, path, line).expected(what);
        return Some(breach.found(format!("{found}")).hint("a listed length may only shrink"));
    }
    let breach = Violation::new(Law::Sizes, ratchet::PATH, 0).expected(what);
    if found <= max {
        let hint = "remove the entry and lower the maximum in ratchet.rs: well done";
        return Some(breach.found(format!("{found}, which needs no entry")).hint(hint));
    }
    (found < listed).then(|| breach.found(format!("{found}")).hint("write the smaller number into the list"))
}

fn is_source(file: &RepoFile) -> bool {
    let is_ours = ["crates/", "tests/", "benches/", ".ci/"].iter().any(|folder| file.path.starts_with(folder));
    // Golden files are written by programs.
    let is_golden = file.path.split('/').any(|folder| matches!(folder, "formats" | "fixtures" | "snapshots"));
    is_ours && !is_golden && SOURCES.contains(&file.extension())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LIB: &str = "crates/ascribe-core/src/lib.rs";

    fn function(name: &str, n_lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    // \n".repeat(n_lines - 2))
    }

    #[test]
    fn limits_are_met_exactly() {
        let planted = Planted::tidy();
        planted.write(LIB, &format!("//! Words.\n{}", function("f", 70)));
        planted.write("crates/ascribe-core/src/a.rs", &"//! A.\n".repeat(600));
        planted.write("crates/ascribe-core/tests/fixtures/a.py", &"#\n".repeat(900));
        planted.assert_tidy();
        planted.write(LIB, &format!("//! Words.\n\n{}", function("f", 71)));
        planted.assert_breach(Law::Sizes, LIB, 3, "functions of at most 70 lines; found `f` with 71");
        planted.write(LIB, &"//! Words.\n".repeat(601));
        planted.assert_breach(Law::Sizes, LIB, 0, "at most 600 lines; found 601");
    }

    #[test]
    fn scripts_count_as_files() {
        let planted = Planted::tidy();
        planted.write("tests/conformance/x/check.py", &"#\n".repeat(601));
        planted.assert_breach(Law::Sizes, "tests/conformance/x/check.py", 0, "found 601");
    }

    #[test]
    fn a_new_entry_is_refused() {
        let planted = Planted::tidy();
        planted.write(LIB, &format!("//! Words.\n{}", function("f", 80)));
        planted.write(ratchet::PATH, &format!("[[function]]\npath = \"{LIB}\"\nname = \"f\"\nlines = 80\n"));
        planted.assert_breach(Law::Sizes, ratchet::PATH, 0, "at most 0 long functions; found 1");
    }

    /// What a listed entry gives, without the maximum of entries (which is zero today).
    fn listed(n_found: usize, n_listed: usize) -> Vec<String> {
        held("a.rs", 3, "`f`", n_found, n_listed, 70).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_listed_length_neither_grows_nor_goes_stale() {
        assert_eq!(listed(80, 80), Vec::<String>::new());
        assert!(listed(81, 80)[0].starts_with("a.rs:3: law 5 (sizes): expected `f`; found 81"));
        assert!(listed(75, 80)[0].contains("write the smaller number"));
        assert!(listed(70, 80)[0].contains("remove the entry"));
        assert!(listed(0, 80)[0].contains("remove the entry"));
    }

    #[test]
    fn a_listed_function_is_found_in_its_file_and_a_stale_one_is_named() {
        let planted = Planted::tidy();
        planted.write(LIB, &format!("//! Words.\n{}{}", function("f", 80), function("f", 90)));
        let repo = planted.repo();
        let scans: Vec<RustFile<'_>> = repo
            .files
            .iter()
            .filter(|file| file.path == LIB)
            .map(|file| RustFile {
                file,
                scan: crate::rust_scan::Scan::new(file.rust().expect("Rust")),
                test_ranges: vec![],
            })
            .collect();
        let entry = |name: &str| LongFunction { path: LIB.to_owned(), name: name.to_owned(), lines: 90 };
        let mut violations = Vec::new();
        functions(&scans, &[entry("f"), entry("gone")], &mut violations);
        let shown: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(shown[0].contains("`gone`") && shown[0].contains("remove the entry"), "{}", shown[0]);
    }
}
