//! The one dialect and its two spellings.

use std::borrow::Cow;
use std::fmt;

use crate::error::SqlError;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// SQLite, inside the process.
    Sqlite,
    /// PostgreSQL, a server.
    Postgres,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        })
    }
}

impl Engine {
    /// A statement as this engine spells it: `?1` is `$1` on PostgreSQL. Text in quotes is left alone.
    pub(crate) fn spell<'a>(self, sql: &'a str) -> Cow<'a, str> {
        match self {
            Self::Sqlite => Cow::Borrowed(sql),
            Self::Postgres => Cow::Owned(outside_quotes(sql, |part| part.replace('?', "$"))),
        }
    }

    /// A statement of a schema: the type words as well, and strict tables on SQLite.
    pub(crate) fn spell_schema(self, sql: &str) -> String {
        match self {
            Self::Postgres => outside_quotes(sql, |part| {
                replace_word(&replace_word(part, "BLOB", "BYTEA"), "AMOUNT", "NUMERIC(39,0)")
            }),
            Self::Sqlite => {
                let spelt = outside_quotes(sql, |part| {
                    replace_word(&replace_word(part, "BIGINT", "INTEGER"), "AMOUNT", "BLOB")
                });
                let is_table = spelt.trim_start().to_ascii_uppercase().starts_with("CREATE TABLE");
                if is_table { format!("{} STRICT", spelt.trim_end()) } else { spelt }
            }
        }
    }
}

/// Applies `change` to the parts of `sql` outside single quotes.
fn outside_quotes(sql: &str, change: impl Fn(&str) -> String) -> String {
    // A doubled quote within a text ends it and begins the next one: both are left alone.
    let parts = sql.split('\'').enumerate();
    let spelt: Vec<String> = parts.map(|(i, part)| if i % 2 == 0 { change(part) } else { part.to_owned() }).collect();
    spelt.join("'")
}

/// Replaces whole words.
fn replace_word(text: &str, word: &str, by: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let (before, tail) = rest.split_at(start);
        let end = tail.find(|c| !is_word(c)).unwrap_or(tail.len());
        let (found, after) = tail.split_at(end);
        out.push_str(before);
        out.push_str(if found == word { by } else { found });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Checks a name that becomes part of a statement.
pub(crate) fn check_name(name: &str) -> Result<(), SqlError> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let led = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if plain && led { Ok(()) } else { Err(SqlError::Name { found: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings() {
        let sql = "SELECT a FROM t WHERE b = ?2 AND c = '?1' AND d = ?1";
        assert_eq!(Engine::Postgres.spell(sql), "SELECT a FROM t WHERE b = $2 AND c = '?1' AND d = $1");
        assert_eq!(Engine::Sqlite.spell(sql), sql);
        let table = "CREATE TABLE t (a BIGINT, blobs BLOB DEFAULT 'BLOB', n AMOUNT)";
        let expected = "CREATE TABLE t (a BIGINT, blobs BYTEA DEFAULT 'BLOB', n NUMERIC(39,0))";
        assert_eq!(Engine::Postgres.spell_schema(table), expected);
        let expected = "CREATE TABLE t (a INTEGER, blobs BLOB DEFAULT 'BLOB', n BLOB) STRICT";
        assert_eq!(Engine::Sqlite.spell_schema(table), expected);
    }

    #[test]
    fn names_are_plain() {
        assert!(check_name("licences_2").is_ok());
        for bad in ["", "2a", "a b", "a;drop", "A"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
