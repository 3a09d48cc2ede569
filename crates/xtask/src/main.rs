//! `cargo xtask`: chores of the repository. Today one: `tidy`, the laws of ARCHITECTURE.md as checks.
//!
//! Here lives what looks at the repository as files. Here never lives: anything that the shipped crates need at run
//! time, and anything that changes a file.

mod architecture;
#[cfg(test)]
mod fixture;
mod laws;
mod ratchet;
mod repo;
mod rust_scan;
mod violation;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::repo::Repo;

const USAGE: &str = "usage: cargo xtask tidy [FOLDER]

  tidy   checks the laws of ARCHITECTURE.md over the repository (or FOLDER) and lists every breach";

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["tidy"] => tidy(&find_root(&std::env::current_dir().context("the current folder")?)?),
        ["tidy", folder] => tidy(Path::new(folder)),
        ["help" | "--help" | "-h"] => {
            writeln!(std::io::stdout(), "{USAGE}")?;
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            writeln!(std::io::stderr(), "{USAGE}")?;
            Ok(ExitCode::from(1))
        }
    }
}

/// Checks one repository; breaches go to stdout, one closing line to stderr.
fn tidy(root: &Path) -> Result<ExitCode> {
    let repo = Repo::load(root)?;
    let violations = laws::check(&repo)?;
    let mut out = std::io::stdout().lock();
    for violation in &violations {
        writeln!(out, "{violation}")?;
    }
    let n_files = repo.files.len();
    if violations.is_empty() {
        writeln!(std::io::stderr(), "tidy: {n_files} files keep all {} laws", laws::COUNT)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(std::io::stderr(), "tidy: {} breaches in {n_files} files", violations.len())?;
    Ok(ExitCode::from(1))
}

/// The nearest folder at or above `start` whose `Cargo.toml` has a `[workspace]`.
fn find_root(start: &Path) -> Result<PathBuf> {
    for folder in start.ancestors() {
        let manifest = folder.join("Cargo.toml");
        if std::fs::read_to_string(&manifest).is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]")) {
            return Ok(folder.to_owned());
        }
    }
    bail!("no workspace at or above {}: run this inside the repository", start.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The repository itself keeps its laws: this is `cargo xtask tidy` under `cargo test`.
    #[test]
    fn this_repository_is_tidy() {
        let root = find_root(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("xtask stands inside the workspace");
        let repo = Repo::load(&root).expect("a readable repository");
        let violations = laws::check(&repo).expect("readable laws");
        let report: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(report.is_empty(), "{} breaches:\n{}", report.len(), report.join("\n"));
    }
}
