//! SQLite, inside the process.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql};

use crate::dialect::Engine;
use crate::driver::{Driver, EachRow};
use crate::error::SqlError;
use crate::value::{Row, Value};

/// How long a writer waits for another one.
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// Statements kept prepared.
const STATEMENTS_KEPT: usize = 64;

pub(crate) struct Sqlite(Connection);

impl Sqlite {
    /// Opens a file, or makes it; `:memory:` is a database of this connection alone.
    pub(crate) fn open(path: &Path) -> Result<Self, SqlError> {
        let opened = (|| {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_WAIT)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
            // Answers with the mode, so it is a query; a database in memory says `memory`.
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            connection
                .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF")?;
            Ok(connection)
        })();
        opened.map(Self).map_err(|error: rusqlite::Error| SqlError::Open {
            address: format!("sqlite:{}", path.display()),
            reason: error.to_string(),
        })
    }
}

impl Driver for Sqlite {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        let changed = self.0.prepare_cached(sql).and_then(|mut statement| statement.execute(bound(params)));
        changed.map(|n| n as u64).map_err(|error| refusal(error, sql))
    }

    fn query_each(&mut self, sql: &str, params: &[Value], each: &mut EachRow<'_>) -> Result<(), SqlError> {
        let refuse = |error| refusal(error, sql);
        let mut statement = self.0.prepare_cached(sql).map_err(refuse)?;
        let n_columns = statement.column_count();
        let mut rows = statement.query(bound(params)).map_err(refuse)?;
        while let Some(row) = rows.next().map_err(refuse)? {
            let mut values = Vec::with_capacity(n_columns);
            for column in 0..n_columns {
                values.push(from_sqlite(column, row.get_ref(column).map_err(refuse)?)?);
            }
            each(Row(values))?;
        }
        Ok(())
    }

    fn run_raw(&mut self, sql: &str) -> Result<(), SqlError> {
        self.0.execute_batch(sql).map_err(|error| refusal(error, sql))
    }

    fn begin(&mut self) -> Result<(), SqlError> {
        // Immediate: a transaction that only found out at its first write that another one writes could not wait for it.
        self.run_raw("BEGIN IMMEDIATE")
    }

    fn insert_many(
        &mut self,
        table: &str,
        columns: &[&str],
        rows: &mut dyn Iterator<Item = Vec<Value>>,
    ) -> Result<u64, SqlError> {
        let places: Vec<String> = (1..=columns.len()).map(|i| format!("?{i}")).collect();
        let sql = format!("INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), places.join(", "));
        let mut statement = self.0.prepare_cached(&sql).map_err(|error| refusal(error, &sql))?;
        let mut n_rows = 0;
        for row in rows {
            statement.execute(bound(&row)).map_err(|error| refusal(error, &sql))?;
            n_rows += 1;
        }
        Ok(n_rows)
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Bytes(value) => ValueRef::Blob(value),
            // SQLite's integers end at 2^63.
            Self::Amount(value) => return Ok(ToSqlOutput::Owned(Owned::Blob(value.to_be_bytes().to_vec()))),
        }))
    }
}

fn bound(params: &[Value]) -> impl rusqlite::Params + '_ {
    rusqlite::params_from_iter(params)
}

fn from_sqlite(column: usize, value: ValueRef<'_>) -> Result<Value, SqlError> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Int(value),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => return Err(SqlError::Column { column, expected: "UTF-8", found: "other bytes".to_owned() }),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(value) => {
            let found = format!("the floating-point number {value}");
            return Err(SqlError::Column { column, expected: "an integer, text or bytes", found });
        }
    })
}

fn refusal(error: rusqlite::Error, sql: &str) -> SqlError {
    let (engine, reason) = (Engine::Sqlite, error.to_string());
    match error.sqlite_error() {
        Some(code) if code.code == ErrorCode::ConstraintViolation => match code.extended_code {
            rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY | rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE => {
                SqlError::Duplicate { engine, reason }
            }
            _ => SqlError::Constraint { engine, reason },
        },
        Some(code) if matches!(code.code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            SqlError::Conflict { engine, reason }
        }
        _ => SqlError::Statement { engine, reason, statement: sql.to_owned() },
    }
}
