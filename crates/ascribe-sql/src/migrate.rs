//! Schemas with versions: applied once, in order, each in one transaction, never changed afterwards.

use sha2::{Digest as _, Sha256};

use crate::database::Database;
use crate::dialect::check_name;
use crate::error::SqlError;

/// One step of a schema, in the one dialect.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Version, from 1 on, without gaps.
    pub version: i64,
    /// The statements, one a string and without a closing semicolon.
    pub statements: &'static [&'static str],
}

/// Table of what was applied.
const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT NOT NULL, version BIGINT NOT NULL, \
                        sha256 TEXT NOT NULL, PRIMARY KEY (component, version))";

impl Migration {
    fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for statement in self.statements {
            hash.update(statement.as_bytes());
            hash.update([0]);
        }
        hex::encode(hash.finalize())
    }
}

/// Races against other programs that migrate the same database; each one leaves fewer of them.
const RACES_MAX: u32 = 8;

/// See [`Database::migrate`].
pub(crate) fn migrate(db: &mut Database, component: &str, migrations: &[Migration]) -> Result<i64, SqlError> {
    check_name(component)?;
    let in_order = (1..).zip(migrations).all(|(version, migration)| migration.version == version);
    assert!(in_order, "versions of {component} must be 1, 2, 3, …");
    let engine = db.engine();
    // Two programs may come here at once: whoever loses the race finds the table there.
    if let Err(error @ (SqlError::Statement { .. } | SqlError::Conflict { .. })) =
        db.driver().run_raw(&engine.spell_schema(VERSIONS))
    {
        return Err(error);
    }
    let mut lost = 0;
    loop {
        match apply(db, component, migrations) {
            // Another program made the same tables meanwhile: they are looked at again.
            Err(SqlError::Duplicate { .. }) if lost < RACES_MAX => lost += 1,
            done => return done,
        }
    }
}

/// Applies what is missing, all of it or nothing.
fn apply(db: &mut Database, component: &str, migrations: &[Migration]) -> Result<i64, SqlError> {
    let newest = migrations.last().map_or(0, |migration| migration.version);
    db.transaction(|tx| {
        let sql = "SELECT version, sha256 FROM schema_versions WHERE component = ?1 ORDER BY version";
        let applied = tx.query(sql, &[component.into()])?;
        for row in &applied {
            let version = row.int(0)?;
            let Some(migration) = migrations.iter().find(|migration| migration.version == version) else {
                return Err(SqlError::SchemaTooNew {
                    component: component.to_owned(),
                    expected: newest,
                    found: version,
                });
            };
            if row.text(1)? != migration.sha256() {
                return Err(SqlError::MigrationChanged {
                    component: component.to_owned(),
                    version,
                    expected: migration.sha256(),
                    found: row.text(1)?.to_owned(),
                });
            }
        }
        for migration in &migrations[applied.len()..] {
            for statement in migration.statements {
                tx.run_schema(statement)?;
            }
            let values = [component.into(), migration.version.into(), migration.sha256().into()];
            tx.execute("INSERT INTO schema_versions (component, version, sha256) VALUES (?1, ?2, ?3)", &values)?;
        }
        Ok(newest)
    })
}
