//! Law 7: unsafe code only in the files that ARCHITECTURE.md names, each use with a comment that says why it is sound.

use crate::architecture::{Architecture, PATH};
use crate::laws::RustFile;
use crate::violation::{Law, Violation};

/// How far above an `unsafe` its comment may end (attributes and the head of the statement stand between).
const COMMENT_DISTANCE_MAX: usize = 6;

/// Checks law 7.
pub fn check(architecture: &Architecture, rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust {
        let path = &file.file.path;
        let is_listed = architecture.unsafe_files.iter().any(|entry| entry.path == *path);
        let uses = uses(file);
        if is_listed {
            violations.extend(unexplained(file, &uses));
            continue;
        }
        if let Some(line) = uses.first().copied().or_else(|| allowance(file)) {
            violations.push(
                Violation::new(Law::Unsafe, path, line)
                    .expected(format!("unsafe code only in the files that {PATH} lists"))
                    .found(format!("{} uses here", uses.len().max(1)))
                    .hint("write it safely; or list the file with the measured benefit and its safe twin"),
            );
        }
    }
    for entry in &architecture.unsafe_files {
        let is_used = rust.iter().any(|file| file.file.path == entry.path && !uses(file).is_empty());
        if !is_used {
            violations.push(
                Violation::new(Law::Unsafe, PATH, entry.line)
                    .expected(format!("unsafe code in {}", entry.path))
                    .found("none")
                    .hint("remove the row, so that the list stays true"),
            );
        }
    }
    violations
}

/// Lines of `unsafe` blocks, functions and impls; `unsafe fn(…)` as a type is none.
fn uses(file: &RustFile<'_>) -> Vec<usize> {
    let tokens = file.scan.tokens();
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text);
    let is_type = |i: usize| {
        let mut next = i + 1;
        if text(next) == "extern" {
            next += 1;
            // The ABI's string is blank; its quotes are too.
        }
        text(next) == "fn" && text(next + 1) == "("
    };
    (0..tokens.len()).filter(|&i| text(i) == "unsafe" && !is_type(i)).map(|i| tokens[i].line).collect()
}

/// Line of an attribute that would let the compiler accept unsafe code.
fn allowance(file: &RustFile<'_>) -> Option<usize> {
    let tokens = file.scan.tokens();
    tokens.windows(3).find_map(|window| {
        let [level, open, name] = window else { return None };
        let is_it = matches!(level.text, "allow" | "expect" | "warn") && open.text == "(" && name.text == "unsafe_code";
        is_it.then_some(level.line)
    })
}

/// Uses without a comment of their own: one comment explains one use.
fn unexplained<'a>(file: &'a RustFile<'_>, uses: &'a [usize]) -> impl Iterator<Item = Violation> + 'a {
    let mut from = 0;
    uses.iter().filter_map(move |&line| {
        let explanation = explanations(file)
            .into_iter()
            .find(|&(start, end)| start >= from && start <= line && line.saturating_sub(end) <= COMMENT_DISTANCE_MAX);
        if let Some((_, end)) = explanation {
            from = end + 1;
            return None;
        }
        let breach = Violation::new(Law::Unsafe, &file.file.path, line).expected("a comment `SAFETY: …` right above");
        Some(breach.found("none of its own").hint("say which checks make it sound"))
    })
}

/// First line of each `SAFETY:` (or `# Safety`), with the last line of the comment that it stands in.
fn explanations(file: &RustFile<'_>) -> Vec<(usize, usize)> {
    let lines: Vec<usize> = file.scan.comments.iter().map(|(line, _)| *line).collect();
    let mut found = Vec::new();
    for (line, text) in &file.scan.comments {
        if text.contains("SAFETY:") || text.contains("# Safety") {
            let end = (*line..).take_while(|next| lines.contains(next)).last().unwrap_or(*line);
            found.push((*line, end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LIB: &str = "crates/ascribe-core/src/lib.rs";
    const BLOCK: &str =
        "// SAFETY: the pointer comes from a live slice,\n// whose length was checked.\nlet x = unsafe { *p };\n";

    fn listed() -> Planted {
        let planted = Planted::tidy();
        let head = "| file | why |\n|---|---|\n";
        planted.edit("ARCHITECTURE.md", head, &format!("{head}| `{LIB}` | mmap |\n"));
        planted
    }

    #[test]
    fn unsafe_code_in_a_file_that_is_not_listed() {
        let planted = Planted::tidy();
        planted.write(LIB, &format!("//! Words.\n{BLOCK}"));
        planted.assert_breach(Law::Unsafe, LIB, 4, "only in the files that ARCHITECTURE.md lists");
        planted.write(LIB, "//! Words.\n#![allow(unsafe_code)]\n");
        planted.assert_breach(Law::Unsafe, LIB, 2, "only in the files");
    }

    #[test]
    fn each_use_has_its_own_comment() {
        let planted = listed();
        planted.write(LIB, &format!("//! Words.\n#![allow(unsafe_code)]\n{BLOCK}"));
        planted.assert_tidy();
        planted.write(LIB, &format!("//! Words.\n{BLOCK}let y = unsafe {{ *q }};\n"));
        planted.assert_breach(Law::Unsafe, LIB, 5, "found none of its own");
        planted.write(
            LIB,
            "//! Words.\n/// # Safety\n/// Needs AVX2.\n#[target_feature(enable = \"avx2\")]\npub unsafe fn f() {}\n",
        );
        planted.assert_tidy();
        planted.write(LIB, "//! Words.\n// SAFETY: far away.\n\n\n\n\n\n\n\nunsafe impl Send for A {}\n");
        planted.assert_breach(Law::Unsafe, LIB, 10, "SAFETY");
    }

    #[test]
    fn words_and_types_are_not_uses() {
        let planted = Planted::tidy();
        planted.write(
            LIB,
            "//! Words: unsafe { }.\ntype F = unsafe fn(u8);\n#![deny(unsafe_code)]\nconst A: &str = \"unsafe {\";\n",
        );
        planted.assert_tidy();
    }

    #[test]
    fn a_row_without_unsafe_code_is_stale() {
        listed().assert_breach(Law::Unsafe, PATH, 18, "remove the row");
    }
}
