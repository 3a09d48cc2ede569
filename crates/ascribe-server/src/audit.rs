//! Who did what as an administrator: one JSON line each, synced before the action's answer leaves.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::error::ServerError;

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditLine {
    /// When, RFC 3339.
    pub at: String,
    /// Id of the key.
    pub who: String,
    /// What.
    pub action: String,
    /// Generation that answers after it.
    pub generation: String,
    /// `ok`, or why not.
    pub outcome: String,
}

/// The file.
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

impl Audit {
    /// Opens the file for more lines.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| ServerError::io(path, e))?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk's.
    pub fn note(&self, who: &str, action: &str, generation: &str, outcome: &str) -> Result<(), ServerError> {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = AuditLine {
            at,
            who: who.to_owned(),
            action: action.to_owned(),
            generation: generation.to_owned(),
            outcome: outcome.to_owned(),
        };
        let mut bytes = serde_json::to_vec(&line).map_err(|e| ServerError::Load(e.to_string()))?;
        bytes.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(|e| ServerError::io(&self.path, e))
    }

    /// The last `n` lines, oldest first.
    ///
    /// # Errors
    /// The disk's.
    pub fn last(&self, n: usize) -> Result<Vec<AuditLine>, ServerError> {
        let file = File::open(&self.path).map_err(|e| ServerError::io(&self.path, e))?;
        let mut lines = std::collections::VecDeque::new();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|e| ServerError::io(&self.path, e))?;
            if let Ok(line) = serde_json::from_str(&line) {
                lines.push_back(line);
            }
            if lines.len() > n {
                lines.pop_front();
            }
        }
        Ok(lines.into())
    }
}
