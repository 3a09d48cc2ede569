//! The laws, one module each, in the order of ARCHITECTURE.md.

mod data;
mod dependencies;
mod formats;
mod lints;
mod no_io;
mod papers;
mod sizes;
mod unsafe_code;

use std::ops::RangeInclusive;

use anyhow::Result;

use crate::architecture::Architecture;
use crate::ratchet::Ratchet;
use crate::repo::{Repo, RepoFile};
use crate::rust_scan::Scan;
use crate::violation::Violation;

/// How many laws there are.
pub const COUNT: usize = 9;

/// Packages that talk to people or machines, by their short names: they may print and use `anyhow`.
const DOORS: [&str; 4] = ["cli", "server", "python", "cluster"];

/// A Rust file with what the scanner found in it.
pub struct RustFile<'a> {
    /// The file.
    pub file: &'a RepoFile,
    /// Its text, taken apart.
    pub scan: Scan,
    /// Lines of `#[cfg(test)]` items.
    test_ranges: Vec<RangeInclusive<usize>>,
}

impl RustFile<'_> {
    /// True for test code: by the file's place, or by `#[cfg(test)]` around the line.
    pub fn is_test_line(&self, line: usize) -> bool {
        self.file.is_test_code() || self.test_ranges.iter().any(|range| range.contains(&line))
    }
}

/// Every breach of every law, by file and line.
///
/// # Errors
/// If a paper that holds the laws cannot be read.
pub fn check(repo: &Repo) -> Result<Vec<Violation>> {
    let architecture = Architecture::read(repo)?;
    let ratchet = Ratchet::read(repo)?;
    let rust: Vec<RustFile<'_>> = repo
        .files
        .iter()
        .filter(|file| !file.path.starts_with("datasets/") && !file.path.starts_with("models/"))
        .filter_map(|file| {
            let scan = Scan::new(file.rust()?);
            let test_ranges = scan.test_ranges();
            Some(RustFile { file, scan, test_ranges })
        })
        .collect();

    let mut violations = dependencies::check(repo, &architecture);
    violations.extend(no_io::check(repo, &rust));
    violations.extend(lints::check(repo, &rust));
    violations.extend(sizes::check(repo, &rust, &ratchet));
    violations.extend(formats::check(repo, &rust));
    violations.extend(unsafe_code::check(&architecture, &rust));
    violations.extend(papers::check(repo, &rust));
    violations.extend(data::check(repo));
    violations.sort_by(|a, b| (&a.file, a.line, a.law).cmp(&(&b.file, b.line, b.law)));
    Ok(violations)
}

#[cfg(test)]
mod tests {
    use crate::fixture::Planted;

    #[test]
    fn the_fixture_is_tidy() {
        Planted::tidy().assert_tidy();
    }

    #[test]
    fn without_its_paper_nothing_is_checked_quietly() {
        let planted = Planted::tidy();
        std::fs::remove_file(planted.root().join("ARCHITECTURE.md")).expect("the paper");
        let error = super::check(&planted.repo()).expect_err("no laws to check").to_string();
        assert!(error.contains("ARCHITECTURE.md is missing"), "{error}");
    }
}
