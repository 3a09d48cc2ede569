//! What others read: Croissant with ODRL, RSL, and the summary of training content of the EU AI Act.
//!
//! Each is made from a checked dataset ([`crate::Registry::verify`] comes first) and says nothing that is not registered. No
//! export makes a legal claim: what was signed is quoted, what is missing is called missing.

pub mod ai_act;
pub mod croissant;
pub mod rsl;

use time::OffsetDateTime;
use time::macros::format_description;

/// Name space of members that no standard has.
pub(crate) const NAMESPACE: &str = "urn:ascribe:licence#";

/// A day, `2026-11-28`, of a moment in Unix seconds; `1970-01-01` for one that no calendar holds.
pub(crate) fn day(unix_s: u64) -> String {
    let moment = i64::try_from(unix_s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let moment = moment.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(format_description!("[year]-[month]-[day]")).unwrap_or_else(|_| "1970-01-01".to_owned())
}

/// The page of an SPDX licence, where the expression is one licence of the list; the expression itself otherwise.
pub(crate) fn licence_page(expression: &str) -> String {
    match spdx::license_id(expression) {
        Some(id) => format!("https://spdx.org/licenses/{}.html", id.name),
        None => expression.to_owned(),
    }
}

/// Text as it stands in XML.
pub(crate) fn xml_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 cannot hold other control characters at all.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_pages_and_escapes() {
        assert_eq!(day(1_767_225_600), "2026-01-01");
        assert_eq!(day(u64::MAX), "1970-01-01");
        assert_eq!(licence_page("MIT"), "https://spdx.org/licenses/MIT.html");
        assert_eq!(licence_page("MIT OR Apache-2.0"), "MIT OR Apache-2.0");
        assert_eq!(xml_escape("a<b>&\"\u{1}"), "a&lt;b&gt;&amp;&quot;\u{fffd}");
    }
}
