//! Disputes: somebody says that a dataset is not its contributor's. Settlement holds what it earns until it is closed.

use ascribe_sql::Value;
use serde::Serialize;

use super::{Registrar, int, now_unix_s};
use crate::error::RegistryError;

/// A dispute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dispute {
    /// Number, from 1.
    pub id: u64,
    /// The dataset, by name.
    pub dataset: String,
    /// Who claims it.
    pub claimant: String,
    /// Why.
    pub reason: String,
    /// When it was opened, Unix seconds.
    pub opened_unix_s: u64,
    /// When it was closed, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_unix_s: Option<u64>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

impl Registrar {
    /// Opens a dispute about a dataset; returns its number.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an unknown dataset or an empty claim.
    pub fn open_dispute(&mut self, name: &str, claimant: &str, reason: &str) -> Result<u64, RegistryError> {
        for (what, text) in [("claimant", claimant), ("reason", reason)] {
            if text.trim().is_empty() || text.len() > 4096 || text.chars().any(char::is_control) {
                return Err(RegistryError::refused(what, "one line of text", format!("{text:?}")));
            }
        }
        let uuid = Value::from(self.dataset_row("uuid", name)?.text(0)?);
        let now = int("time", now_unix_s())?;
        self.db.transaction(|tx| {
            let last = tx.query("SELECT coalesce(max(id), 0) FROM disputes", &[])?[0].uint(0)?;
            let values = [int("id", last + 1)?, uuid.clone(), claimant.into(), reason.into(), now.clone()];
            let sql = "INSERT INTO disputes (id, uuid, claimant, reason, opened_unix_s) VALUES (?1, ?2, ?3, ?4, ?5)";
            tx.execute(sql, &values)?;
            Ok(last + 1)
        })
    }

    /// Closes a dispute.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when there is no such open dispute.
    pub fn close_dispute(&mut self, id: u64, outcome: &str) -> Result<(), RegistryError> {
        let values = [int("id", id)?, int("time", now_unix_s())?, outcome.into()];
        let sql = "UPDATE disputes SET closed_unix_s = ?2, outcome = ?3 WHERE id = ?1 AND closed_unix_s IS NULL";
        match self.db.execute(sql, &values)? {
            0 => Err(RegistryError::refused("dispute", "the number of an open one", id)),
            _ => Ok(()),
        }
    }

    /// All disputes, in the order in which they were opened.
    ///
    /// # Errors
    /// [`RegistryError::Sql`].
    pub fn disputes(&mut self) -> Result<Vec<Dispute>, RegistryError> {
        let sql = "SELECT s.id, d.name, s.claimant, s.reason, s.opened_unix_s, s.closed_unix_s, s.outcome \
                   FROM disputes s JOIN datasets d ON d.uuid = s.uuid ORDER BY s.id";
        let mut disputes = Vec::new();
        for row in self.db.query(sql, &[])? {
            disputes.push(Dispute {
                id: row.uint(0)?,
                dataset: row.text(1)?.to_owned(),
                claimant: row.text(2)?.to_owned(),
                reason: row.text(3)?.to_owned(),
                opened_unix_s: row.uint(4)?,
                closed_unix_s: if row.is_null(5) { None } else { Some(row.uint(5)?) },
                outcome: if row.is_null(6) { None } else { Some(row.text(6)?.to_owned()) },
            });
        }
        Ok(disputes)
    }
}
