//! From the view to bytes: the template engine, the content policy, and nothing else.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::ReportError;
use super::view::Page;

const TEMPLATE: &str = include_str!("template.html");
/// The house's colours, type and tables.
pub(crate) const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Draws the page from its view.
pub(super) fn draw(page: &Page) -> Result<String, ReportError> {
    let html = render(
        "report",
        TEMPLATE,
        context! {
            page => value(serde_json::to_value(page)?),
            style => Value::from_safe_string(STYLE.to_owned()),
            script => Value::from_safe_string(SCRIPT.to_owned()),
            script_digest => Value::from_safe_string(base64(&Sha256::digest(SCRIPT.as_bytes()))),
        },
    )?;
    Ok(html)
}

/// Renders a template of a page; every text is escaped.
pub(crate) fn render(name: &str, template: &str, context: Value) -> Result<String, ReportError> {
    let mut env = Environment::new();
    // A misspelt name in the template is an error, not an empty string on the page.
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    Ok(env.template_from_named_str(name, template)?.render(context)?)
}

/// The engine is built without its serde bridge; the view passes through JSON values, once per page.
pub(crate) fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(flag),
        Json::Number(number) => match number.as_u64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from(fields.into_iter().map(|(name, field)| (name, value(field))).collect::<BTreeMap<_, _>>())
        }
    }
}

/// Base64 with padding (RFC 4648 §4): content policies write digests so.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 4648 §10.
    #[test]
    fn base64_is_the_standard_one() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (plain, want) in cases {
            assert_eq!(base64(plain.as_bytes()), want);
        }
    }
}
