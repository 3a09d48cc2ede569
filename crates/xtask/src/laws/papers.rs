//! Law 8: nothing of somebody's machine stays in the files: no absolute paths, no registry addresses, no notes to self.

use crate::laws::RustFile;
use crate::repo::{Repo, RepoFile};
use crate::violation::{Law, Violation};

/// Folders at the root of somebody's machine. (Split here, so that this file keeps the law too.)
const MACHINE_FOLDERS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Files in which package managers note what they fetched and from where.
const LOCK_FILES: [&str; 9] = [
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "poetry.lock",
    "uv.lock",
    "pip.conf",
    ".npmrc",
    ".yarnrc.yml",
];

/// Options that name a registry, in two parts each: this file keeps the law, too.
///
/// The payout command has a `--registry` of its own, which is a folder; that of the package managers takes an address.
const REGISTRY_OPTIONS: [&str; 5] = [
    concat!("--index", "-url"),
    concat!("--extra-index", "-url"),
    concat!("--registry=", "http"),
    concat!("--registry ", "http"),
    concat!("--find", "-links"),
];

/// How the one source that `Cargo.lock` may name, cargo's public index, begins and ends.
const CARGO_SOURCE: (&str, &str) = ("registry+", "-index");

/// Checks law 8.
pub fn check(repo: &Repo, rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repo.files.iter().filter(|file| !is_shipped_text(file)) {
        let Some(text) = file.text.as_deref() else { continue };
        for (line, idx) in text.lines().zip(1..) {
            violations.extend(machine_path(file, line, idx));
            violations.extend(registry_address(file, line, idx));
            violations.extend(note_to_self(file, line, idx));
        }
    }
    for file in rust {
        for pair in file.scan.tokens().windows(2) {
            if matches!(pair[0].text, "todo" | "unimplemented") && pair[1].text == "!" {
                violations.push(
                    Violation::new(Law::Papers, &file.file.path, pair[0].line)
                        .expected("finished code")
                        .found(format!("`{}!`", pair[0].text))
                        .hint("write it, or leave the feature out"),
                );
            }
        }
    }
    violations
}

/// The registered texts themselves: what stands in them is not ours to change.
fn is_shipped_text(file: &RepoFile) -> bool {
    file.path.starts_with("datasets/") && matches!(file.name(), "records.jsonl" | "terms.txt")
}

fn machine_path(file: &RepoFile, line: &str, idx: usize) -> Option<Violation> {
    let found = MACHINE_FOLDERS.iter().find(|folder| {
        line.match_indices(**folder).any(|(at, _)| {
            // `design/work/` or `$HOME/work/` go on from something; a path of a machine starts there.
            let before = line[..at].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric() && !"._-~*})>".contains(c))
        })
    })?;
    let breach =
        Violation::new(Law::Papers, &file.path, idx).expected("paths that are relative, or taken from arguments");
    Some(breach.found(format!("a path under {found}")).hint("the project runs on everybody's machine"))
}

fn registry_address(file: &RepoFile, line: &str, idx: usize) -> Option<Violation> {
    let breach = |found: &str| {
        Violation::new(Law::Papers, &file.path, idx)
            .expected("no address of a package registry")
            .found(found)
            .hint("name packages and versions; whoever runs it has a registry of their own")
    };
    if file.name() == "Cargo.lock" {
        let source = line.strip_prefix("source = ")?.trim_matches('"');
        let public = source.starts_with(CARGO_SOURCE.0) && source.ends_with(CARGO_SOURCE.1);
        return (!public).then(|| breach("a crate from elsewhere than the public index"));
    }
    let is_lock = LOCK_FILES.contains(&file.name()) || file.name().starts_with("requirements");
    if is_lock && ["http://", "https://"].iter().any(|scheme| line.contains(scheme)) {
        return Some(breach("one in a lock file"));
    }
    let is_script =
        matches!(file.extension(), "sh" | "py" | "js" | "mjs" | "yml" | "yaml" | "toml") || file.path == ".ci/run";
    let option = REGISTRY_OPTIONS.iter().find(|option| is_script && line.contains(**option))?;
    Some(breach(&format!("`{option}`")))
}

fn note_to_self(file: &RepoFile, line: &str, idx: usize) -> Option<Violation> {
    const NOTE: &str = concat!("FIX", "ME");
    let is_ours = !file.path.starts_with("datasets/") && !file.path.starts_with("models/");
    let breach = || {
        Violation::new(Law::Papers, &file.path, idx)
            .expected("finished work")
            .found(format!("`{NOTE}`"))
            .hint("do it, or write an issue")
    };
    (is_ours && line.contains(NOTE)).then(breach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    #[test]
    fn paths_of_a_machine() {
        let folder = MACHINE_FOLDERS[0];
        for text in [format!("see {folder}notes"), format!("\"{folder}\""), format!("file://{folder}x")] {
            let planted = Planted::tidy();
            planted.write("README.md", &format!("# Title\n{text}\n"));
            planted.assert_breach(Law::Papers, "README.md", 2, "a path under");
        }
        let planted = Planted::tidy();
        planted.write("README.md", &format!("a{folder} ${{HOME}}{folder} ~{folder} https://example.org{folder}\n"));
        planted.write("datasets/a/records.jsonl", &format!("{{\"text\": \"{folder}\"}}\n"));
        planted.assert_tidy();
    }

    #[test]
    fn addresses_of_registries() {
        let scheme = "https:/";
        for (path, text) in [
            ("tests/x/package-lock.json", format!("{{\"resolved\": \"{scheme}/npm.example.org/a.tgz\"}}")),
            ("tests/x/requirements.txt", format!("a @ {scheme}/pip.example.org/a.whl")),
            ("tests/x/run.sh", format!("pip install {} x a", REGISTRY_OPTIONS[0])),
            ("Cargo.lock", "source = \"git+ssh://example.org/a\"".to_owned()),
        ] {
            let planted = Planted::tidy();
            planted.write(path, &format!("{text}\n"));
            planted.assert_breach(Law::Papers, path, 1, "no address of a package registry");
        }
        let planted = Planted::tidy();
        planted.write("Cargo.lock", &format!("source = \"{}a.public{}\"\n", CARGO_SOURCE.0, CARGO_SOURCE.1));
        planted.write("tests/x/requirements.txt", "numpy==2.1.0\n");
        planted.write("README.md", &format!("{scheme}/example.org\n"));
        planted.assert_tidy();
    }

    #[test]
    fn unfinished_work() {
        let planted = Planted::tidy();
        let lib = "crates/ascribe-core/src/lib.rs";
        planted.write(lib, "//! Words.\n// todo!() is a word here\nfn f() { todo!(\"later\") }\n");
        planted.assert_breach(Law::Papers, lib, 3, "found `todo!`");
        let planted = Planted::tidy();
        planted.write("README.md", concat!("FIX", "ME: explain\n"));
        planted.assert_breach(Law::Papers, "README.md", 1, "finished work");
    }
}
