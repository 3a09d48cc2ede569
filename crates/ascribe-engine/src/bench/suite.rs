//! Suites: several settings in one run, and the leaderboard that comes of them.
//!
//! A suite is a TOML file: `about`, and `[[settings]]` with a name and, where wanted, `methods`, `protocols` and `queries`. Written into
//! the output folder are every setting's report, `leaderboard.json` and `leaderboard.html`.

use std::path::Path;

use ascribe_core::Progress;
use serde::{Deserialize, Serialize};

use super::board;
use super::report::SettingReport;
use super::run::{self, RunOptions};
use super::setting::{ALL_METHODS, Setting};
use crate::error::EngineError;
use crate::files;
use crate::home::Home;

/// The page in the output folder.
pub const PAGE_FILE: &str = "leaderboard.html";
/// Its numbers.
pub const BOARD_FILE: &str = "leaderboard.json";

/// A suite file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// What it is, in a sentence.
    pub about: String,
    /// Its settings, in the order of the page.
    pub settings: Vec<SuiteSetting>,
}

/// A setting of a suite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteSetting {
    /// Its name.
    pub name: String,
    /// Methods; all if none is named.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Protocols besides the banks; `all` for all that the setting has.
    #[serde(default)]
    pub protocols: Vec<String>,
    /// At most so many queries.
    #[serde(default)]
    pub queries: Option<usize>,
}

/// Everything that the page shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leaderboard {
    /// What the suite is.
    pub about: String,
    /// Version of Ascribe.
    pub ascribe_version: String,
    /// Instruction sets of the products.
    pub instructions: String,
    /// Day of the run, UTC.
    pub date: String,
    /// Reports, in the order of the suite.
    pub settings: Vec<SettingReport>,
    /// Settings that could not run, with the reason.
    pub failed: Vec<(String, String)>,
}

impl Suite {
    /// Reads a suite file.
    ///
    /// # Errors
    /// The file, and the field that is wrong.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let text = std::fs::read_to_string(path).map_err(|e| EngineError::io(path, e))?;
        toml::from_str(&text).map_err(|e| EngineError::Recipe { path: path.into(), why: e.to_string() })
    }
}

/// Runs a suite and writes the leaderboard after every setting, so that a stopped run leaves what is known.
///
/// `options.methods`, `options.protocols` and `options.queries` take precedence over the suite's. A setting that cannot run (its bank is not
/// there) is listed with its reason and does not stop the others.
///
/// # Errors
/// A suite that does not read or names an unknown setting; [`EngineError::Stopped`]; the disk's.
pub fn run(
    home: &Home,
    path: &Path,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<Leaderboard, EngineError> {
    let suite = Suite::read(path)?;
    let settings: Vec<Setting> =
        suite.settings.iter().map(|s| Setting::named(home, &s.name)).collect::<Result<_, _>>()?;
    let mut leaderboard = Leaderboard {
        about: suite.about,
        ascribe_version: env!("CARGO_PKG_VERSION").into(),
        instructions: ascribe_linalg::packed::isa().into(),
        date: time::OffsetDateTime::now_utc().date().to_string(),
        settings: Vec::new(),
        failed: Vec::new(),
    };
    for (setting, wanted) in settings.iter().zip(&suite.settings) {
        let mut own = options.clone();
        if own.methods.is_empty() {
            own.methods = match wanted.methods.is_empty() {
                true => vec![ALL_METHODS.to_owned()],
                false => wanted.methods.clone(),
            };
        }
        if own.protocols.is_empty() {
            own.protocols.clone_from(&wanted.protocols);
        }
        own.queries = own.queries.or(wanted.queries);
        match run::run(home, setting, &own, progress) {
            Ok(report) => leaderboard.settings.push(report),
            Err(EngineError::Stopped) => return Err(EngineError::Stopped),
            Err(error) => leaderboard.failed.push((setting.name.clone(), error.to_string())),
        }
        if let Some(out) = &options.out {
            let json = serde_json::to_vec_pretty(&leaderboard)?;
            files::write_atomic(&out.join(BOARD_FILE), &[json, b"\n".to_vec()].concat())?;
            files::write_atomic(&out.join(PAGE_FILE), board::render(&leaderboard)?.as_bytes())?;
        }
    }
    Ok(leaderboard)
}
