//! `run.toml`: what went in, how it was set, what came out; replayable and sealed.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;
use crate::recipe::Attribution;
use crate::report::data::Timing;
use crate::summary::DemoSummary;

/// Version of `run.toml`.
pub const RUN_FORMAT_VERSION: u32 = 1;
/// Name of the run file in a run folder.
pub const RUN_FILE: &str = "run.toml";

/// One run of the walk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// [`RUN_FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of Ascribe.
    pub ascribe_version: String,
    /// The command that makes this run again.
    pub command: String,
    /// Name of the model folder.
    pub model: String,
    /// Digests of everything that was read: registry, licence log, weights, tokenizer, corpus, recipe, bank.
    pub inputs: BTreeMap<String, Digest>,
    /// Settings.
    pub attribution: Attribution,
    /// What the command printed.
    pub summary: DemoSummary,
    /// Seconds per station.
    pub timings: Vec<Timing>,
    /// SHA-256 of every file in the run folder, by relative path.
    pub outputs: BTreeMap<String, Digest>,
}

impl RunFile {
    /// Writes the file with its seal: the first line holds the SHA-256 of all bytes after it, so that a changed byte
    /// anywhere in the file shows.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, dir: &Path) -> Result<(), EngineError> {
        let path = dir.join(RUN_FILE);
        let body = toml::to_string(self)
            .map_err(|e| EngineError::Recipe { path: path.clone(), why: format!("cannot be written as TOML: {e}") })?;
        files::write_atomic(&path, format!("seal = \"{}\"\n{body}", Digest::of(body.as_bytes())).as_bytes())
    }

    /// Reads the file and checks its seal.
    ///
    /// # Errors
    /// A broken seal, or a field that is missing, unknown or of another type.
    pub fn read(dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join(RUN_FILE);
        let bytes = files::read(&path)?;
        let content = |expected: &str, found: &str| EngineError::Content {
            path: path.clone(),
            expected: expected.into(),
            found: found.into(),
        };
        let text = String::from_utf8(bytes).map_err(|_| content("UTF-8", "other bytes"))?;
        let (seal, body) = text.split_once('\n').unwrap_or((&text, ""));
        let seal: Digest = seal
            .strip_prefix("seal = \"")
            .and_then(|s| s.strip_suffix('"'))
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| content("`seal = \"<64 hex digits>\"` on the first line", seal))?;
        let found = Digest::of(body.as_bytes());
        if found != seal {
            let hint = "; hint: the file was changed after the run";
            return Err(EngineError::Digest { what: path, expected: seal, found, hint });
        }
        let run: Self =
            toml::from_str(body).map_err(|e| EngineError::Recipe { path: path.clone(), why: e.to_string() })?;
        match run.format_version {
            RUN_FORMAT_VERSION => Ok(run),
            other => Err(content(&format!("format version {RUN_FORMAT_VERSION}"), &other.to_string())),
        }
    }
}
