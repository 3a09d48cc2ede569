//! The repository as a sorted list of files, and its packages.
//!
//! Inside a git checkout the list is what git tracks or would track (so a build folder or somebody's notes do not
//! count); elsewhere it is every file below the root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A file of the repository.
#[derive(Clone, Debug)]
pub struct RepoFile {
    /// Path from the root, with slashes.
    pub path: String,
    /// Size.
    pub len_bytes: u64,
    /// Content, where it is text (UTF-8 without a NUL).
    pub text: Option<String>,
}

impl RepoFile {
    /// The part of the path after its last slash.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The part of the name after its last dot, or nothing.
    pub fn extension(&self) -> &str {
        self.name().rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    /// Rust text, where the file is Rust.
    pub fn rust(&self) -> Option<&str> {
        (self.extension() == "rs").then_some(self.text.as_deref()).flatten()
    }

    /// Tests, benches, examples: code that no shipped crate contains.
    pub fn is_test_code(&self) -> bool {
        let mut folders = self.path.split('/').rev().skip(1);
        self.name() == "tests.rs" || folders.any(|folder| matches!(folder, "tests" | "benches" | "examples"))
    }
}

/// A workspace member.
#[derive(Clone, Debug)]
pub struct Package {
    /// Folder from the root (`crates/ascribe-core`).
    pub dir: String,
    /// Package name without `ascribe-`: the word that the crate map uses.
    pub short: String,
    /// Its `Cargo.toml`.
    pub manifest: toml::Table,
}

impl Package {
    /// Path of the manifest from the root.
    pub fn manifest_path(&self) -> String {
        format!("{}/Cargo.toml", self.dir)
    }
}

/// The repository.
#[derive(Debug)]
pub struct Repo {
    /// Files, sorted by path.
    pub files: Vec<RepoFile>,
    /// Packages below `crates/`, `benches/`, `tests/`, in the order of their folders.
    pub packages: Vec<Package>,
}

impl Repo {
    /// Reads the repository at `root`.
    ///
    /// # Errors
    /// If git or a file cannot be read, or a package's manifest is not TOML with a name.
    pub fn load(root: &Path) -> Result<Self> {
        let mut paths = if root.join(".git").exists() { git_paths(root)? } else { all_paths(root)? };
        paths.sort();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let full = root.join(&path);
            // Git lists a file that was deleted but not yet committed; it is no longer part of the repository.
            let Ok(bytes) = std::fs::read(&full) else { continue };
            let len_bytes = bytes.len() as u64;
            let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
            files.push(RepoFile { path, len_bytes, text });
        }
        let packages = files.iter().filter_map(package).collect::<Result<Vec<_>>>()?;
        Ok(Self { files, packages })
    }

    /// The text file at `path`.
    pub fn text(&self, path: &str) -> Option<&str> {
        let idx = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        self.files[idx].text.as_deref()
    }

    /// The package that owns `path`.
    pub fn package_of(&self, path: &str) -> Option<&Package> {
        self.packages.iter().find(|package| path.strip_prefix(&package.dir).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Files below `dir`.
    pub fn below<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = &'a RepoFile> {
        self.files.iter().filter(move |file| file.path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
    }
}

fn package(file: &RepoFile) -> Option<Result<Package>> {
    let dir = file.path.strip_suffix("/Cargo.toml")?;
    if dir != "benches" && dir != "tests" && !(dir.starts_with("crates/") && dir.matches('/').count() == 1) {
        return None;
    }
    let read = || -> Result<Option<Package>> {
        let text = file.text.as_deref().context("not a text file")?;
        let manifest: toml::Table = text.parse().context("not TOML")?;
        // A workspace of its own has its own versions and lints.
        if manifest.contains_key("workspace") {
            return Ok(None);
        }
        let name = manifest.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str);
        let name = name.context("no `package.name`")?;
        let short = name.strip_prefix("ascribe-").unwrap_or(name).to_owned();
        Ok(Some(Package { dir: dir.to_owned(), short, manifest }))
    };
    read().with_context(|| file.path.clone()).transpose()
}

/// Tracked files and untracked ones that git does not ignore: what the next commit could contain.
fn git_paths(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git, which lists the files of a checkout")?;
    if !output.status.success() {
        bail!("git ls-files in {}: {}", root.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(listing.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

fn all_paths(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        for entry in std::fs::read_dir(&full).with_context(|| full.display().to_string())? {
            let entry = entry.with_context(|| full.display().to_string())?;
            let path = folder.join(entry.file_name());
            match entry.file_type().with_context(|| path.display().to_string())? {
                kind if kind.is_dir() && entry.file_name() != "target" => folders.push(path),
                kind if kind.is_file() => {
                    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
                    paths.push(text.replace('\\', "/"));
                }
                _ => {}
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    #[test]
    fn a_plain_folder_is_walked_and_its_packages_are_known() {
        let planted = Planted::tidy();
        let repo = planted.repo();
        assert!(repo.files.is_sorted_by(|a, b| a.path < b.path));
        assert_eq!(repo.packages.iter().map(|p| p.short.as_str()).collect::<Vec<_>>(), ["core", "ledger"]);
        let owner = repo.package_of("crates/ascribe-ledger/src/lib.rs").expect("a file of a package");
        assert_eq!(owner.short, "ledger");
        assert!(repo.package_of("README.md").is_none());
    }

    #[test]
    fn in_a_checkout_ignored_files_do_not_count() {
        let planted = Planted::tidy();
        planted.write(".gitignore", "/out\n");
        planted.write("out/big.bin", "x");
        let status = Command::new("git").args(["init", "-q"]).arg(planted.root()).status().expect("git");
        assert!(status.success());
        let repo = planted.repo();
        assert!(repo.text("out/big.bin").is_none());
        assert!(repo.text("ARCHITECTURE.md").is_some());
    }

    #[test]
    fn test_code_is_known_by_its_place() {
        let file = |path: &str| RepoFile { path: path.to_owned(), len_bytes: 0, text: Some(String::new()) };
        assert!(file("crates/a/tests/it.rs").is_test_code());
        assert!(file("crates/a/examples/show.rs").is_test_code());
        assert!(file("crates/a/src/walk/tests.rs").is_test_code());
        assert!(!file("crates/a/src/testsuite.rs").is_test_code());
        assert_eq!(file("crates/a/src/lib.rs").rust(), Some(""));
        assert_eq!(file(".gitignore").rust(), None);
    }
}
