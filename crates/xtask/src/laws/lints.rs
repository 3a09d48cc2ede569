//! Law 4: lints stand once, in the workspace manifest; every crate takes them and nobody steps around them.

use toml::Value;

use crate::laws::{DOORS, RustFile};
use crate::repo::Repo;
use crate::rust_scan::Token;
use crate::violation::{Law, Violation};

/// Clippy lints that must be denied, and may be allowed in doors and tests only.
const DENIED: [&str; 6] = ["print_stdout", "print_stderr", "dbg_macro", "todo", "unimplemented", "unwrap_used"];

/// Packages that talk to developers: like doors for this law.
const WORKBENCH: [&str; 4] = ["xtask", "testkit", "tests", "benches"];

/// Checks law 4.
pub fn check(repo: &Repo, rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut violations = workspace_lints(repo);
    for package in &repo.packages {
        let inherits = package.manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if inherits.and_then(Value::as_bool) != Some(true) {
            violations.push(
                Violation::new(Law::Lints, package.manifest_path(), 0)
                    .expected("`[lints] workspace = true`")
                    .found("lints of its own, or none")
                    .hint("all lints stand in the root manifest"),
            );
        }
    }
    for file in rust {
        head(file, &mut violations);
        let short = repo.package_of(&file.file.path).map_or("", |package| package.short.as_str());
        if DOORS.contains(&short) || WORKBENCH.contains(&short) {
            continue;
        }
        for (line, lint) in allowances(&file.scan.tokens()) {
            if !file.is_test_line(line) {
                violations.push(
                    Violation::new(Law::Lints, &file.file.path, line)
                        .expected(format!("`{lint}` to stay denied outside doors and tests"))
                        .found("an attribute that allows it")
                        .hint("return an error, or `expect` with the sentence that makes it impossible"),
                );
            }
        }
    }
    violations
}

fn workspace_lints(repo: &Repo) -> Vec<Violation> {
    let manifest: toml::Table = repo.text("Cargo.toml").unwrap_or_default().parse().unwrap_or_default();
    let lints = manifest.get("workspace").and_then(|workspace| workspace.get("lints"));
    let wanted = DENIED.iter().map(|name| ("clippy", *name, "deny"));
    let wanted = wanted.chain([("rust", "unsafe_code", "deny"), ("rust", "missing_docs", "warn")]);
    wanted
        .filter_map(|(tool, name, level)| {
            let value = lints.and_then(|lints| lints.get(tool)).and_then(|tool| tool.get(name));
            // A level stands alone or, with a priority, in a table.
            let found = value.map(|value| value.get("level").unwrap_or(value)).and_then(Value::as_str);
            let is_kept = found.is_some_and(|found| found == level || matches!(found, "deny" | "forbid"));
            let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("\"{found}\""));
            let breach = Violation::new(Law::Lints, "Cargo.toml", 0)
                .expected(format!("`{name} = \"{level}\"` under [workspace.lints.{tool}]"))
                .found(found)
                .hint("laws that the compiler can keep are kept by the compiler");
            (!is_kept).then_some(breach)
        })
        .collect()
}

/// Each file opens by saying what lives in it; only attributes of the whole file may stand before.
fn head(file: &RustFile<'_>, violations: &mut Vec<Violation>) {
    let mut lines = file.file.text.as_deref().unwrap_or_default().lines().map(str::trim_start);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with("#!["));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        violations.push(
            Violation::new(Law::Lints, &file.file.path, 1)
                .expected("a head: `//!` and what lives in this file")
                .found("none")
                .hint("absence cannot be read from code: say also what never lives here"),
        );
    }
}

/// `(line, lint)` for each denied lint inside an `allow(…)` or `expect(…)` attribute.
fn allowances(tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for i in 1..tokens.len() {
        // `[allow(` or `, allow(` of a `cfg_attr`; a method `.expect(` has a dot before it.
        let is_attribute = matches!(tokens[i].text, "allow" | "expect") && matches!(tokens[i - 1].text, "[" | ",");
        if !is_attribute || tokens.get(i + 1).is_none_or(|next| next.text != "(") {
            continue;
        }
        let inside = tokens[i + 2..].iter().take_while(|token| token.text != ")");
        found.extend(inside.filter(|t| DENIED.contains(&t.text)).map(|t| (t.line, t.text.to_owned())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LIB: &str = "crates/ascribe-core/src/lib.rs";

    #[test]
    fn a_lint_missing_from_the_workspace() {
        let planted = Planted::tidy();
        planted.edit("Cargo.toml", "unwrap_used = \"deny\"\n", "");
        planted.assert_breach(Law::Lints, "Cargo.toml", 0, "`unwrap_used = \"deny\"`");
        let planted = Planted::tidy();
        planted.edit("Cargo.toml", "todo = \"deny\"", "todo = { level = \"warn\", priority = 1 }");
        planted.assert_breach(Law::Lints, "Cargo.toml", 0, "found \"warn\"");
    }

    #[test]
    fn a_stricter_level_is_fine() {
        let planted = Planted::tidy();
        planted.edit("Cargo.toml", "missing_docs = \"warn\"", "missing_docs = \"deny\"");
        planted.assert_tidy();
    }

    #[test]
    fn a_crate_without_the_lints() {
        let planted = Planted::tidy();
        let manifest = "crates/ascribe-core/Cargo.toml";
        planted.edit(manifest, "[lints]\nworkspace = true\n", "");
        planted.assert_breach(Law::Lints, manifest, 0, "`[lints] workspace = true`");
    }

    #[test]
    fn an_allowance_in_a_library() {
        for attribute in [
            "#![allow(clippy::unwrap_used)]",
            "#[expect(unused, clippy::unwrap_used)]",
            "#[cfg_attr(x, allow(clippy::unwrap_used))]",
        ] {
            let planted = Planted::tidy();
            planted.write(LIB, &format!("//! Words.\n{attribute}\nfn f() {{}}\n"));
            planted.assert_breach(Law::Lints, LIB, 2, "`unwrap_used` to stay denied");
        }
    }

    #[test]
    fn tests_doors_and_methods_named_expect_pass() {
        let planted = Planted::tidy();
        let text = "//! Words.\nfn f(todo: Option<u8>) { g(1, todo.expect(\"todo\")); }\n#[cfg(test)]\nmod tests {\n    #![allow(clippy::unwrap_used)]\n}\n";
        planted.write(LIB, text);
        planted.write("crates/ascribe-core/tests/it.rs", "//! Tests.\n#![allow(clippy::print_stdout)]\n");
        planted.assert_tidy();
    }

    #[test]
    fn a_file_without_a_head() {
        let planted = Planted::tidy();
        for text in ["pub mod a;\n//! Words.\n", "// Words.\n", "#[allow(unused)]\n//! Words.\n", ""] {
            planted.write(LIB, text);
            planted.assert_breach(Law::Lints, LIB, 1, "a head");
        }
        planted.write(LIB, "#![allow(unused)] // for a reason\n\n//! Words.\n");
        planted.assert_tidy();
    }
}
