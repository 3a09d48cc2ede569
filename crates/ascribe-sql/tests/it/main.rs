//! One suite over every engine: the same promises on SQLite and on PostgreSQL.
//!
//! SQLite always runs. PostgreSQL runs when `ASCRIBE_TEST_POSTGRES` holds the address of a server;
//! `tests/conformance/sql/run.sh` starts one and fails when there is none.

#![allow(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod suite;

use ascribe_sql::Database;
use tempfile::TempDir;

/// A database that several connections can open, alone in its engine.
struct Place {
    address: String,
    _dir: Option<TempDir>,
}

impl Place {
    fn sqlite() -> Self {
        let dir = TempDir::new().unwrap();
        Self { address: format!("sqlite:{}", dir.path().join("t.db").display()), _dir: Some(dir) }
    }

    /// A new database on the server, if there is one.
    fn postgres(name: &str) -> Option<Self> {
        let server = std::env::var("ASCRIBE_TEST_POSTGRES").ok()?;
        let database = format!("sql_{}_{name}", std::process::id());
        let mut db = Database::open(&server).unwrap();
        db.execute(&format!("CREATE DATABASE {database}"), &[]).unwrap();
        Some(Self { address: server.replace("/postgres?", &format!("/{database}?")), _dir: None })
    }

    fn open(&self) -> Database {
        Database::open(&self.address).unwrap()
    }
}

/// Makes one test per promise and engine. The PostgreSQL half is ignored by a plain `cargo test`; the conformance suite asks
/// for it, sets the address and counts the tests.
macro_rules! on_both_engines {
    ($($promise:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $promise() { crate::suite::$promise(&crate::Place::sqlite()); })*
        }
        mod postgres {
            $(
                #[test]
                #[ignore = "needs a server: tests/conformance/sql/run.sh"]
                fn $promise() {
                    let place = crate::Place::postgres(stringify!($promise));
                    crate::suite::$promise(&place.expect("ASCRIBE_TEST_POSTGRES holds the address of a server"));
                }
            )*
        }
    };
}

on_both_engines!(
    values_come_back,
    amounts_keep_all_digits_and_order,
    a_statement_holds_no_value,
    migrations_apply_once,
    programs_that_migrate_at_once_all_find_the_tables,
    a_changed_migration_is_refused,
    a_newer_schema_is_refused,
    a_failed_transaction_changes_nothing,
    rules_of_the_table_hold,
    types_are_strict,
    bulk_rows_arrive,
    a_failed_bulk_insert_changes_nothing,
    writers_do_not_lose_updates,
    long_results_come_row_by_row,
    committed_is_durable,
);

#[test]
fn addresses_that_are_none() {
    for bad in ["", "sqlite:", "mysql://x", "t.db"] {
        let Err(error) = Database::open(bad) else { panic!("{bad} was opened") };
        assert!(error.to_string().contains("expected sqlite:PATH"), "{error}");
    }
    let Err(error) = Database::open("sqlite:/nowhere/at/all/t.db") else { panic!("it was opened") };
    assert!(error.to_string().starts_with("database sqlite:/nowhere/at/all/t.db: cannot open it: "), "{error}");
}
