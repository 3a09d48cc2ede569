//! One small door over two databases: SQLite inside the process, PostgreSQL beside it.
//!
//! Here live connections, values, migrations, transactions and bulk inserts, with the same meaning on both engines. Here
//! never lives a table: schemas belong to the crates that own their rows.
//!
//! One dialect is written and both engines speak it:
//!
//! - column types are `BIGINT`, `TEXT`, `BLOB` and `AMOUNT` (an integer of 128 bits without sign); tables are strict on SQLite
//!   as they are on PostgreSQL;
//! - placeholders are `?1`, `?2`, …, each as often as needed;
//! - a transaction is serializable: `IMMEDIATE` on SQLite, `SERIALIZABLE` with retries on PostgreSQL;
//! - what is committed is durable: SQLite runs in WAL mode with `synchronous = FULL`.
//!
//! A statement holds no value: values travel as [`Value`]s beside it, so no text of a stranger is ever read as SQL.
//!
//! ```
//! use ascribe_sql::{Database, Migration, SqlError, Value};
//!
//! const SCHEMA: [Migration; 1] =
//!     [Migration { version: 1, statements: &["CREATE TABLE pets (name TEXT PRIMARY KEY, legs BIGINT NOT NULL)"] }];
//!
//! let mut db = Database::open("sqlite::memory:")?;
//! db.migrate("pets", &SCHEMA)?;
//! db.transaction(|tx| tx.execute("INSERT INTO pets VALUES (?1, ?2)", &["cat".into(), 4.into()]))?;
//! let rows = db.query("SELECT legs FROM pets WHERE name = ?1", &["cat".into()])?;
//! assert_eq!(rows[0].int(0)?, 4);
//! # Ok::<(), SqlError>(())
//! ```

mod database;
mod dialect;
mod driver;
mod error;
mod migrate;
mod numeric;
mod postgres;
mod sqlite;
mod value;

pub use database::{Database, Transaction};
pub use dialect::Engine;
pub use error::SqlError;
pub use migrate::Migration;
pub use value::{Row, Value};
