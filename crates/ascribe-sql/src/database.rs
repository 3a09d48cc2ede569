//! An open database and its transactions.

use std::path::Path;
use std::time::Duration;

use crate::dialect::{Engine, check_name};
use crate::driver::Driver;
use crate::error::SqlError;
use crate::migrate::{self, Migration};
use crate::postgres::Postgres;
use crate::sqlite::Sqlite;
use crate::value::{Row, Value};

/// How often a transaction that lost against another one is tried again.
const RETRIES: u32 = 12;

/// An open database.
pub struct Database {
    engine: Engine,
    driver: Box<dyn Driver>,
}

impl Database {
    /// Opens `sqlite:PATH` (made if it is not there), `sqlite::memory:` or `postgresql://…` (also `postgres://…`).
    ///
    /// # Errors
    /// [`SqlError::Address`], [`SqlError::Open`].
    pub fn open(address: &str) -> Result<Self, SqlError> {
        if let Some(path) = address.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            return Ok(Self { engine: Engine::Sqlite, driver: Box::new(Sqlite::open(Path::new(path))?) });
        }
        if address.starts_with("postgres://") || address.starts_with("postgresql://") {
            return Ok(Self { engine: Engine::Postgres, driver: Box::new(Postgres::open(address)?) });
        }
        Err(SqlError::Address { found: crate::postgres::without_password(address), plain: false })
    }

    /// Which engine it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn driver(&mut self) -> &mut dyn Driver {
        &mut *self.driver
    }

    /// Brings the tables of `component` to the newest version and returns it. Versions that were applied must be the
    /// ones that this program knows.
    ///
    /// # Errors
    /// [`SqlError::MigrationChanged`], [`SqlError::SchemaTooNew`], and whatever the statements meet.
    ///
    /// # Panics
    /// If versions are not 1, 2, 3, …: a fault of the program.
    pub fn migrate(&mut self, component: &str, migrations: &[Migration]) -> Result<i64, SqlError> {
        migrate::migrate(self, component, migrations)
    }

    /// Runs one statement as a transaction of its own; returns the rows that it changed.
    ///
    /// # Errors
    /// [`SqlError::Duplicate`], [`SqlError::Constraint`], [`SqlError::Conflict`], [`SqlError::Statement`].
    pub fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        self.driver.execute(sql, params)
    }

    /// All rows of a query. For results that may be long there is [`Database::query_each`].
    ///
    /// # Errors
    /// [`SqlError::Statement`], [`SqlError::Column`].
    pub fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, SqlError> {
        collect(&mut *self.driver, sql, params)
    }

    /// Hands over the rows of a query one by one; memory does not grow with them. An error of `each` ends it.
    ///
    /// # Errors
    /// As [`Database::query`], and those of `each`.
    pub fn query_each(
        &mut self,
        sql: &str,
        params: &[Value],
        mut each: impl FnMut(Row) -> Result<(), SqlError>,
    ) -> Result<(), SqlError> {
        self.driver.query_each(sql, params, &mut each)
    }

    /// Runs `work` in a serializable transaction: all of it is done, or nothing.
    ///
    /// A transaction that loses against another writer is run again from its beginning, up to 12 times, so `work` must
    /// not do anything that cannot be done twice outside the database.
    ///
    /// # Errors
    /// Those of `work`, after which nothing was changed; [`SqlError::Conflict`] when every try lost.
    pub fn transaction<T, E: From<SqlError>>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut attempt = 0;
        loop {
            match self.attempt(&mut work) {
                Err((true, _)) if attempt < RETRIES => {
                    // A little longer each time, so that two writers do not keep step.
                    std::thread::sleep(Duration::from_millis(1 << attempt.min(7)));
                    attempt += 1;
                }
                outcome => return outcome.map_err(|(_, error)| error),
            }
        }
    }

    /// One try of a transaction; an error comes with whether it lost against another writer.
    fn attempt<T, E: From<SqlError>>(
        &mut self,
        work: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, (bool, E)> {
        let lost = |error: SqlError| (error.is_conflict(), E::from(error));
        self.driver.begin().map_err(lost)?;
        let mut tx = Transaction { engine: self.engine, driver: &mut *self.driver, conflict: false };
        let done = work(&mut tx);
        let conflict = tx.conflict;
        let outcome = match done {
            Ok(value) => self.driver.run_raw("COMMIT").map(|()| value).map_err(lost),
            Err(error) => Err((conflict, error)),
        };
        if outcome.is_err() {
            // Only tells that there was nothing to roll back any more; the error that led here is the one to report.
            let _ = self.driver.run_raw("ROLLBACK");
        }
        outcome
    }
}

fn collect(driver: &mut dyn Driver, sql: &str, params: &[Value]) -> Result<Vec<Row>, SqlError> {
    let mut rows = Vec::new();
    driver.query_each(sql, params, &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// A transaction in progress; see [`Database::transaction`].
pub struct Transaction<'a> {
    engine: Engine,
    driver: &'a mut dyn Driver,
    /// True once a statement lost against another writer: the whole must then be run again.
    conflict: bool,
}

impl Transaction<'_> {
    fn noted<T>(&mut self, result: Result<T, SqlError>) -> Result<T, SqlError> {
        self.conflict |= result.as_ref().is_err_and(SqlError::is_conflict);
        result
    }

    /// As [`Database::execute`].
    ///
    /// # Errors
    /// As there. On PostgreSQL a transaction takes no more statements after an error.
    pub fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        let result = self.driver.execute(sql, params);
        self.noted(result)
    }

    /// As [`Database::query`].
    ///
    /// # Errors
    /// As there.
    pub fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, SqlError> {
        let result = collect(self.driver, sql, params);
        self.noted(result)
    }

    /// As [`Database::query_each`].
    ///
    /// # Errors
    /// As there.
    pub fn query_each(
        &mut self,
        sql: &str,
        params: &[Value],
        mut each: impl FnMut(Row) -> Result<(), SqlError>,
    ) -> Result<(), SqlError> {
        let result = self.driver.query_each(sql, params, &mut each);
        self.noted(result)
    }

    /// Inserts many rows into `columns` of `table` at the engine's best speed (a prepared statement, or binary `COPY`);
    /// returns how many.
    ///
    /// # Errors
    /// [`SqlError::Name`], and as [`Database::execute`].
    pub fn insert_many(
        &mut self,
        table: &str,
        columns: &[&str],
        rows: impl IntoIterator<Item = Vec<Value>>,
    ) -> Result<u64, SqlError> {
        check_name(table)?;
        columns.iter().try_for_each(|column| check_name(column))?;
        let result = self.driver.insert_many(table, columns, &mut rows.into_iter());
        self.noted(result)
    }

    /// Runs a statement of a schema.
    pub(crate) fn run_schema(&mut self, sql: &str) -> Result<(), SqlError> {
        let spelt = self.engine.spell_schema(sql);
        self.driver.run_raw(&spelt)
    }
}
