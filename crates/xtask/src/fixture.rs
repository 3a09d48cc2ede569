//! A tiny repository that keeps every law, in a temporary folder, into which a test plants a breach.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::laws;
use crate::repo::Repo;
use crate::violation::{Law, Violation};

const ARCHITECTURE: &str = "# Map

<!-- tidy: crates -->
| crate | sentence | internal | external | why |
|---|---|---|---|---|
| core | words | — | serde | contract |
| ledger | money | core | — | law |

<!-- tidy: rooms -->
| dependency | only under |
|---|---|
| `candle*` | models |
| anyhow | cli, xtask |

<!-- tidy: unsafe -->
| file | why |
|---|---|
";

const WORKSPACE: &str = "[workspace]
members = [\"crates/*\"]

[workspace.lints.rust]
missing_docs = \"warn\"
unsafe_op_in_unsafe_fn = \"deny\"
unsafe_code = \"deny\"

[workspace.lints.clippy]
print_stdout = \"deny\"
print_stderr = \"deny\"
dbg_macro = \"deny\"
todo = \"deny\"
unimplemented = \"deny\"
unwrap_used = \"deny\"
";

/// The tiny repository.
pub struct Planted {
    dir: TempDir,
}

impl Planted {
    /// Two crates, two papers, no breach.
    pub fn tidy() -> Self {
        let planted = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        planted.write("ARCHITECTURE.md", ARCHITECTURE);
        planted.write("Cargo.toml", WORKSPACE);
        planted.write_manifest("core", "serde.workspace = true\n");
        planted.write_manifest("ledger", "ascribe-core.workspace = true\n");
        planted.write("crates/ascribe-core/src/lib.rs", "//! Words.\n");
        planted.write("crates/ascribe-ledger/src/lib.rs", "//! Money.\n#![deny(clippy::float_arithmetic)]\n");
        planted
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, with its folders.
    pub fn write(&self, path: &str, text: &str) {
        let full = self.root().join(path);
        fs::create_dir_all(full.parent().expect("a file stands in a folder")).expect("a folder");
        fs::write(full, text).expect("a small file");
    }

    /// Writes the manifest of `crates/ascribe-NAME` with these `[dependencies]` (and whatever sections follow them).
    pub fn write_manifest(&self, name: &str, dependencies: &str) {
        let text = format!(
            "[package]\nname = \"ascribe-{name}\"\n\n[lints]\nworkspace = true\n\n[dependencies]\n{dependencies}"
        );
        self.write(&format!("crates/ascribe-{name}/Cargo.toml"), &text);
    }

    /// Replaces `from` by `to` in a file.
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.root().join(path)).expect("a file of the fixture");
        assert!(text.contains(from), "{path} has no {from:?}");
        self.write(path, &text.replace(from, to));
    }

    /// The repository as the checks see it.
    pub fn repo(&self) -> Repo {
        Repo::load(self.root()).expect("a readable repository")
    }

    /// Every breach.
    pub fn breaches(&self) -> Vec<Violation> {
        laws::check(&self.repo()).expect("readable laws")
    }

    /// Asserts that there is exactly one breach: this law, at `file:line`, whose message contains `words`.
    pub fn assert_breach(&self, law: Law, file: &str, line: usize, words: &str) {
        let breaches = self.breaches();
        let shown: Vec<String> = breaches.iter().map(ToString::to_string).collect();
        let [breach] = breaches.as_slice() else {
            panic!("expected one breach, found {}:\n{}", shown.len(), shown.join("\n"))
        };
        assert_eq!((breach.law, breach.file.as_str(), breach.line), (law, file, line), "{breach}");
        assert!(shown[0].contains(words), "{:?} is not in {:?}", words, shown[0]);
    }

    /// Asserts that there is no breach.
    pub fn assert_tidy(&self) {
        let shown: Vec<String> = self.breaches().iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{}", shown.join("\n"));
    }
}
