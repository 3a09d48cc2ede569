//! Law 3: ledger, methods, eval and shares turn values into values; the engine reads and writes.

use crate::laws::RustFile;
use crate::repo::Repo;
use crate::rust_scan::Token;
use crate::violation::{Law, Violation};

/// Packages without input and output, by their short names.
const PURE: [&str; 4] = ["ledger", "methods", "eval", "shares"];

/// Modules of `std` that reach outside the process.
const OUTSIDE: [&str; 2] = ["fs", "net"];

/// Checks law 3.
pub fn check(repo: &Repo, rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in rust {
        let path = &file.file.path;
        let Some(package) = repo.package_of(path).filter(|package| PURE.contains(&package.short.as_str())) else {
            continue;
        };
        for (line, name) in mentions(&file.scan.tokens()) {
            if !file.is_test_line(line) {
                violations.push(
                    Violation::new(Law::NoIo, path, line)
                        .expected(format!("`{}` to turn values into values", package.short))
                        .found(format!("`{name}`"))
                        .hint("take bytes or a reader from the caller; the engine does the reading and writing"),
                );
            }
        }
    }
    if let Some(text) = repo.text("crates/ascribe-ledger/src/lib.rs")
        && !["deny", "forbid"].iter().any(|level| text.contains(&format!("#![{level}(clippy::float_arithmetic)]")))
    {
        violations.push(
            Violation::new(Law::NoIo, "crates/ascribe-ledger/src/lib.rs", 0)
                .expected("`#![deny(clippy::float_arithmetic)]`")
                .found("none")
                .hint("money is integer; cents vanish in floats"),
        );
    }
    violations
}

/// `(line, path)` wherever `std::fs` or `std::net` is named: as a path, inside a group of a `use`, or by an alias of `std`.
fn mentions(tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.text == "std") {
        let rest: Vec<&str> = tokens[i + 1..].iter().take(3).map(|token| token.text).collect();
        match rest.as_slice() {
            ["as", ..] => found.push((token.line, "std as …".to_owned())),
            [":", ":", module] if OUTSIDE.contains(module) => found.push((token.line, format!("std::{module}"))),
            [":", ":", "*"] => found.push((token.line, "std::*".to_owned())),
            [":", ":", "{"] => found.extend(group_mentions(&tokens[i + 3..])),
            _ => {}
        }
    }
    found
}

/// Names at the first level of the `{…}` at the front of `tokens`.
fn group_mentions(tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut depth = 0usize;
    let mut before = "";
    for token in tokens {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 1 && before != ":" && OUTSIDE.contains(&name) => {
                found.push((token.line, format!("std::{name}")));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        before = token.text;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LIB: &str = "crates/ascribe-ledger/src/lib.rs";
    const HEAD: &str = "//! Money.\n#![deny(clippy::float_arithmetic)]\n";

    #[test]
    fn files_and_sockets_are_found_however_they_are_named() {
        for (text, found) in [
            ("use std::fs;", "`std::fs`"),
            ("fn f() { ::std :: net::TcpStream::connect(\"\"); }", "`std::net`"),
            ("use std::{collections::{BTreeMap, BTreeSet}, fs::File};", "`std::fs`"),
            ("use std as s;", "`std as …`"),
            ("use std::*;", "`std::*`"),
        ] {
            let planted = Planted::tidy();
            planted.write(LIB, &format!("{HEAD}{text}\n"));
            planted.assert_breach(Law::NoIo, LIB, 3, found);
        }
    }

    #[test]
    fn words_that_only_look_like_it_pass() {
        let planted = Planted::tidy();
        let text = "// std::fs\nuse std::{fmt, net_like::x::fs};\nfn f() -> &'static str { \"std::fs\" }\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        planted.write(LIB, &format!("{HEAD}{text}"));
        planted.write("crates/ascribe-ledger/examples/dump.rs", "//! Dumps.\nuse std::fs;\n");
        planted.write("crates/ascribe-core/src/lib.rs", "//! Words.\nuse std::fs;\n");
        planted.assert_tidy();
    }

    #[test]
    fn the_ledger_denies_floats() {
        let planted = Planted::tidy();
        planted.write(LIB, "//! Money.\n");
        planted.assert_breach(Law::NoIo, LIB, 0, "float_arithmetic");
    }
}
