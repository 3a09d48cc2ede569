//! What an engine must do; everything else is written once above it.

use crate::error::SqlError;
use crate::value::{Row, Value};

/// What [`Driver::query_each`] hands every row to.
pub(crate) type EachRow<'a> = dyn FnMut(Row) -> Result<(), SqlError> + 'a;

/// A connection to an engine. Statements arrive in the one dialect.
pub(crate) trait Driver: Send {
    /// Runs a statement; returns the rows that it changed.
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError>;

    /// Hands over every row of a query, one by one, without keeping them.
    fn query_each(&mut self, sql: &str, params: &[Value], each: &mut EachRow<'_>) -> Result<(), SqlError>;

    /// Runs a statement as the engine itself spells it, without values.
    fn run_raw(&mut self, sql: &str) -> Result<(), SqlError>;

    /// Begins a transaction that no other writer can come between.
    fn begin(&mut self) -> Result<(), SqlError>;

    /// Inserts many rows at the engine's own best speed, within the current transaction. Names were checked.
    fn insert_many(
        &mut self,
        table: &str,
        columns: &[&str],
        rows: &mut dyn Iterator<Item = Vec<Value>>,
    ) -> Result<u64, SqlError>;
}
