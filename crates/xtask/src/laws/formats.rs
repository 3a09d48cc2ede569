//! Law 6: every format version has golden files, opened by a test for ever.

use crate::laws::RustFile;
use crate::repo::Repo;
use crate::rust_scan::Token;
use crate::violation::{Law, Violation};

/// A `const …FORMAT_VERSION: … = N;`.
struct FormatVersion {
    line: usize,
    /// What stands before `_FORMAT_VERSION`, in lower case; empty for a bare `FORMAT_VERSION`.
    prefix: String,
    version: Option<u32>,
}

/// Checks law 6.
pub fn check(repo: &Repo, rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust {
        let path = &file.file.path;
        for constant in constants(&file.scan.tokens()) {
            if file.is_test_line(constant.line) {
                continue;
            }
            let breach = || Violation::new(Law::Formats, path, constant.line);
            let name = if constant.prefix.is_empty() { module_name(path) } else { constant.prefix };
            let Some(newest) = constant.version else {
                let hint = "the number is what golden folders are named after";
                violations
                    .push(breach().expected("a format version as a plain number").found("something else").hint(hint));
                continue;
            };
            let dir = repo.package_of(path).map_or("", |package| package.dir.as_str());
            for version in 1..=newest {
                violations.extend(golden(repo, dir, &name, version).map(|wanted| {
                    breach()
                        .expected(wanted)
                        .found("none")
                        .hint("keep one small folder per version, with the script that made it: old files must open")
                }));
            }
        }
    }
    violations
}

/// What is missing of the golden folder `name/vN` of the package in `dir`, if anything.
fn golden(repo: &Repo, dir: &str, name: &str, version: u32) -> Option<String> {
    let spellings = [name.to_owned(), name.replace('_', "-")];
    let homes = [format!("{dir}/tests/formats"), "tests/formats".to_owned()];
    let has_files = homes
        .iter()
        .any(|home| spellings.iter().any(|name| repo.below(&format!("{home}/{name}/v{version}")).next().is_some()));
    if !has_files {
        return Some(format!("golden files in {dir}/tests/formats/{name}/v{version}/"));
    }
    let opens = |text: &str| spellings.iter().any(|name| text.contains(&format!("formats/{name}/v")));
    let mut tests = repo.below(dir).chain(repo.below("tests")).filter_map(|file| file.rust());
    (!tests.any(opens)).then(|| format!("a test that opens \"…formats/{name}/v{version}\""))
}

fn constants(tokens: &[Token<'_>]) -> Vec<FormatVersion> {
    let mut found = Vec::new();
    for pair in tokens.windows(2).enumerate() {
        let (i, [keyword, name]) = pair else { continue };
        let Some(prefix) = name.text.strip_suffix("FORMAT_VERSION").filter(|_| keyword.text == "const") else {
            continue;
        };
        if !prefix.is_empty() && !prefix.ends_with('_') {
            continue;
        }
        let value: Vec<&str> = tokens[i + 2..]
            .iter()
            .map(|token| token.text)
            .skip_while(|text| *text != "=")
            .skip(1)
            .take_while(|text| *text != ";")
            .collect();
        let version = if let [number] = value.as_slice() { literal(number) } else { None };
        let prefix = prefix.trim_end_matches('_').to_lowercase();
        found.push(FormatVersion { line: name.line, prefix, version });
    }
    found
}

/// The value of `1`, `1_u32`, `10u64`.
fn literal(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '_').filter(|c| *c != '_').collect();
    digits.parse().ok()
}

/// The module's name, which stands for the format where the constant says none.
fn module_name(path: &str) -> String {
    let mut parts = path.trim_end_matches(".rs").rsplit('/');
    match parts.next() {
        Some("mod" | "lib" | "main") => parts.find(|part| *part != "src").unwrap_or("format"),
        Some(name) => name,
        None => "format",
    }
    .trim_start_matches("ascribe-")
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LIB: &str = "crates/ascribe-core/src/lib.rs";
    const OPENS: &str = "//! Tests.\n#[test]\nfn opens() { open(\"tests/formats/store/v1\"); }\n";

    #[test]
    fn a_version_without_golden_files() {
        let planted = Planted::tidy();
        planted.write(LIB, "//! Words.\npub const STORE_FORMAT_VERSION: u32 = 1;\n");
        planted.assert_breach(Law::Formats, LIB, 2, "golden files in crates/ascribe-core/tests/formats/store/v1/");
    }

    #[test]
    fn golden_files_that_nobody_opens() {
        let planted = Planted::tidy();
        planted.write(LIB, "//! Words.\npub const STORE_FORMAT_VERSION: u32 = 1;\n");
        planted.write("crates/ascribe-core/tests/formats/store/v1/store.json", "{}");
        planted.assert_breach(Law::Formats, LIB, 2, "a test that opens");
        planted.write("crates/ascribe-core/tests/it.rs", OPENS);
        planted.assert_tidy();
    }

    #[test]
    fn a_new_version_keeps_the_old_files() {
        let planted = Planted::tidy();
        planted.write(LIB, "//! Words.\npub const STORE_FORMAT_VERSION: u32 = 2;\n");
        planted.write("crates/ascribe-core/tests/it.rs", OPENS);
        planted.write("tests/formats/store/v2/store.json", "{}");
        planted.assert_breach(Law::Formats, LIB, 2, "store/v1/");
    }

    #[test]
    fn a_bare_name_means_its_module_and_a_computed_number_is_refused() {
        assert_eq!(module_name("crates/ascribe-store/src/scores.rs"), "scores");
        assert_eq!(module_name("crates/ascribe-store/src/scores/mod.rs"), "scores");
        assert_eq!(module_name("crates/ascribe-store/src/lib.rs"), "store");
        assert_eq!(literal("1_u32"), Some(1));
        assert_eq!(literal("12u64"), Some(12));
        let planted = Planted::tidy();
        planted.write(LIB, "//! Words.\npub const FORMAT_VERSION: u32 = 1 + OTHER;\n");
        planted.assert_breach(Law::Formats, LIB, 2, "a plain number");
    }

    #[test]
    fn other_words_pass() {
        let planted = Planted::tidy();
        planted.write(LIB, "//! Words.\n// const A_FORMAT_VERSION: u32 = 1;\nconst REFORMAT_VERSION: u32 = 1;\n");
        planted.assert_tidy();
    }
}
