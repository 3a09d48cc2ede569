//! SPDX licence expressions in their one spelling, so that equal terms are equal text wherever they are compared or signed.
//!
//! Normalised are letter case, white space, the operators (`AND`, `OR`, `WITH`; a slash between licences is `OR`), needless
//! parentheses and the retired forms of the GNU licences (`GPL-2.0+` is `GPL-2.0-or-later`, `GPL-2.0` is `GPL-2.0-only`). The
//! order stays, and no name is guessed: `apache` is refused, because a contributor's terms are not ours to choose.

use std::path::Path;

use spdx::expression::{ExprNode, Operator};
use spdx::identifiers::{EXCEPTIONS, LICENSES};
use spdx::{Expression, LicenseItem, LicenseReq, ParseMode};

use crate::error::RegistryError;

/// What a person may write; [`normalise`] turns it into what SPDX's strict grammar takes.
const WRITTEN: ParseMode = ParseMode {
    allow_slash_as_or_operator: true,
    allow_imprecise_license_names: false,
    allow_postfix_plus_on_gpl: true,
    allow_deprecated: true,
    allow_unknown: false,
};

/// The normal form of an expression. Applied to itself it changes nothing.
///
/// # Errors
/// [`RegistryError::Field`] naming `path` for what is no SPDX expression.
pub fn normalise(path: &Path, expression: &str) -> Result<String, RegistryError> {
    let refuse = |error: spdx::error::ParseError| {
        let found = format!("{expression:?} ({})", error.reason);
        RegistryError::field(path, "licence", "an SPDX licence expression", found)
    };
    let cased = with_list_case(expression);
    let parsed = Expression::parse_mode(&cased, WRITTEN).map_err(refuse)?;
    Ok(infix(&parsed))
}

/// Checks that a text is an expression in some spelling: manifests of before hold what was written.
pub(crate) fn check(path: &Path, expression: &str) -> Result<(), RegistryError> {
    if Expression::parse(expression).is_ok() {
        return Ok(());
    }
    normalise(path, expression).map(drop)
}

/// Every word that is an identifier but for its letter case, in the list's letter case. References keep theirs.
fn with_list_case(expression: &str) -> String {
    let of_word = |word: &str| -> String {
        let (id, plus) = word.strip_suffix('+').map_or((word, ""), |id| (id, "+"));
        let names = LICENSES.iter().map(|licence| licence.name).chain(EXCEPTIONS.iter().map(|e| e.name));
        let upper = id.to_ascii_uppercase();
        match names.filter(|name| name.eq_ignore_ascii_case(id)).max_by_key(|name| *name == id) {
            Some(name) => format!("{name}{plus}"),
            None if matches!(upper.as_str(), "AND" | "OR" | "WITH") => upper,
            None => word.to_owned(),
        }
    };
    let mut out = String::with_capacity(expression.len());
    let mut word = String::new();
    for c in expression.chars().chain([' ']) {
        if c.is_whitespace() || matches!(c, '(' | ')' | '/') {
            out.push_str(&of_word(&std::mem::take(&mut word)));
            out.push(c);
        } else {
            word.push(c);
        }
    }
    out.pop();
    out
}

/// The expression with the parentheses that it needs: `AND` binds tighter than `OR`.
fn infix(parsed: &Expression) -> String {
    // Texts of what was read, and the operator that joins them, if one does.
    let mut stack: Vec<(String, Option<Operator>)> = Vec::new();
    for node in parsed.iter() {
        match node {
            ExprNode::Req(req) => stack.push((spell(&req.req), None)),
            ExprNode::Op(operator) => {
                let (right, left) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
                let inner = |(text, within): (String, Option<Operator>)| match (operator, within) {
                    (Operator::And, Some(Operator::Or)) => format!("({text})"),
                    _ => text,
                };
                let word = if *operator == Operator::And { "AND" } else { "OR" };
                stack.push((format!("{} {word} {}", inner(left), inner(right)), Some(*operator)));
            }
        }
    }
    stack.pop().map(|(text, _)| text).unwrap_or_default()
}

fn spell(req: &LicenseReq) -> String {
    let text = req.to_string();
    match &req.license {
        // `GPL-2.0` by itself has always meant this version only.
        LicenseItem::Spdx { id, or_later: false } if id.is_gnu() && id.is_deprecated() && !id.name.ends_with('+') => {
            let only = format!("{}-only", id.name);
            if spdx::license_id(&only).is_some() { text.replacen(id.name, &only, 1) } else { text }
        }
        LicenseItem::Spdx { id, .. } if id.is_gnu() && id.name.ends_with('+') => {
            text.replacen(id.name, &format!("{}-or-later", id.name.trim_end_matches('+')), 1)
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        normalise(Path::new("m.json"), text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn one_spelling_of_equal_terms() {
        for (written, expected) in [
            ("MIT", "MIT"),
            ("mit", "MIT"),
            (" MIT  or\tapache-2.0 ", "MIT OR Apache-2.0"),
            ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
            ("((MIT)) AND (ISC and 0BSD)", "MIT AND ISC AND 0BSD"),
            ("MIT AND (ISC OR 0BSD)", "MIT AND (ISC OR 0BSD)"),
            ("(MIT AND ISC) OR 0BSD", "MIT AND ISC OR 0BSD"),
            ("GPL-2.0+", "GPL-2.0-or-later"),
            ("GPL-2.0", "GPL-2.0-only"),
            ("gpl-2.0-only with classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
            ("Apache-2.0+", "Apache-2.0+"),
            ("LicenseRef-My.Terms", "LicenseRef-My.Terms"),
            ("DocumentRef-a:LicenseRef-b", "DocumentRef-a:LicenseRef-b"),
            ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ] {
            assert_eq!(normal(written), expected, "{written}");
            assert_eq!(normal(expected), expected, "{written}, again");
        }
    }

    #[test]
    fn nothing_is_guessed() {
        for bad in ["", "apache", "MTI", "MIT OR", "(MIT", "MIT ISC", "MIT WITH", "licenseref-x y"] {
            let error = normalise(Path::new("m.json"), bad).unwrap_err().to_string();
            assert!(error.starts_with("m.json: licence: expected an SPDX licence expression"), "{error}");
        }
    }
}
