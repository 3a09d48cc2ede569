//! Why a database refused.

use crate::dialect::Engine;

/// A refusal. Each names the database, the statement or the column.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqlError {
    /// The address is none that this crate knows.
    #[error(
        "database {found:?}: expected sqlite:PATH, sqlite::memory: or postgresql://USER@HOST/NAME{hint}",
        hint = if *.plain { " (hint: this connection is not encrypted; add ?sslmode=disable if a tunnel or a private \
                            network carries it)" } else { "" }
    )]
    Address {
        /// What was given, without a password.
        found: String,
        /// True when it is refused only because the bytes would cross a network unencrypted.
        plain: bool,
    },
    /// The database cannot be opened or reached.
    #[error("database {address}: cannot open it: {reason}")]
    Open {
        /// The address, without a password.
        address: String,
        /// What the engine said.
        reason: String,
    },
    /// A row with that key, or a table or extension of that name, is there already.
    #[error("{engine}: expected a new key, found one that is there already: {reason}")]
    Duplicate {
        /// The engine.
        engine: Engine,
        /// What the engine said.
        reason: String,
    },
    /// A `CHECK`, `NOT NULL` or foreign key does not hold.
    #[error("{engine}: a rule of the table does not hold: {reason}")]
    Constraint {
        /// The engine.
        engine: Engine,
        /// What the engine said.
        reason: String,
    },
    /// Another writer was in the way, and trying again did not help.
    #[error("{engine}: another writer was in the way: {reason} (hint: try again)")]
    Conflict {
        /// The engine.
        engine: Engine,
        /// What the engine said.
        reason: String,
    },
    /// The engine refused a statement for another reason.
    #[error("{engine}: {reason}, in: {statement}")]
    Statement {
        /// The engine.
        engine: Engine,
        /// What the engine said.
        reason: String,
        /// The statement, as it was written.
        statement: String,
    },
    /// A column does not hold what the reader expected.
    #[error("column {column}: expected {expected}, found {found}")]
    Column {
        /// Column, from 0.
        column: usize,
        /// The expected type.
        expected: &'static str,
        /// The type there.
        found: String,
    },
    /// A migration that was applied is not the one that this program knows.
    #[error("schema {component:?}, version {version}: expected digest {expected}, found {found} in the database")]
    MigrationChanged {
        /// Who owns the tables.
        component: String,
        /// Version.
        version: i64,
        /// Digest of this program's migration.
        expected: String,
        /// Digest of the one that was applied.
        found: String,
    },
    /// The database was written by a newer program.
    #[error("schema {component:?}: expected at most version {expected}, found {found} (hint: use a newer ascribe)")]
    SchemaTooNew {
        /// Who owns the tables.
        component: String,
        /// Newest version that this program knows.
        expected: i64,
        /// Version in the database.
        found: i64,
    },
    /// A name of a table or column is not plain.
    #[error("name {found:?}: expected a-z, 0-9 and _, not led by a digit")]
    Name {
        /// The name.
        found: String,
    },
}

impl SqlError {
    /// True when the same transaction may succeed if it is tried again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
