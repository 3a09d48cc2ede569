//! `ascribe serve`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ascribe_core::Digest;
use ascribe_engine::Home;
use ascribe_server::keys::{API_KEYS_VERSION, KeyEntry, KeyFile, Scope};
use ascribe_server::{Settings, Source, logging};
use serde_json::json;

use crate::args::Format;
use crate::args::serve::{ConfigCommand, KeyCommand, ScopeArg, ServeArgs, ServeCommand};
use crate::output::{print, table};

/// Runs the command.
pub fn run(home: Option<&Path>, args: &ServeArgs, format: Format) -> Result<()> {
    let flags = args.settings.flags()?;
    let settings = Settings::layered(args.settings.config.as_deref(), std::env::vars(), flags.into_iter())?;
    match &args.command {
        None => {
            let config = settings.config()?;
            logging::init(&config)?;
            let source = match (&config.run, &config.store) {
                (Some(dir), _) => Source::Run { home: Home::find(home)?, dir: dir.clone() },
                (None, Some(dir)) => Source::Store { dir: dir.clone(), registry: config.datasets.clone() },
                (None, None) => anyhow::bail!("run: expected a run folder, found none"),
            };
            Ok(ascribe_server::run(config, source)?)
        }
        Some(ServeCommand::Config(ConfigCommand::Show)) => {
            let shown = settings.show();
            print(format, &shown, |all| {
                let row =
                    |s: &ascribe_server::config::Shown| vec![s.name.to_owned(), s.value.clone(), s.origin.clone()];
                table(&["setting", "value", "origin"], &all.iter().map(row).collect::<Vec<_>>())
            })
        }
        Some(ServeCommand::Key(command)) => {
            let path = settings.show().into_iter().find(|s| s.name == "api_keys").map(|s| s.value);
            let path =
                path.filter(|p| !p.is_empty()).context("--api-keys: expected the file of API keys, found none")?;
            key(command, &PathBuf::from(path), format)
        }
    }
}

fn key(command: &KeyCommand, path: &Path, format: Format) -> Result<()> {
    let mut file = match path.exists() {
        true => KeyFile::read(path)?,
        false => KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() },
    };
    match command {
        KeyCommand::New { id, scope, expires, per_second, note } => {
            let of = |s: &ScopeArg| match s {
                ScopeArg::Attribute => Scope::Attribute,
                ScopeArg::Read => Scope::Read,
                ScopeArg::Admin => Scope::Admin,
            };
            let scopes = scope.iter().map(of).collect();
            let entry = KeyEntry {
                id: id.clone(),
                sha256: Digest([0; 32]),
                scopes,
                expires: expires.clone(),
                per_second: *per_second,
                note: note.clone(),
            };
            let key = file.add(entry)?;
            file.write(path)?;
            // What was written is read again: an id or a moment that a server would refuse is refused here.
            KeyFile::read(path)?;
            print(format, &json!({ "id": id, "key": key }), |_| key.clone())
        }
        KeyCommand::List => print(format, &file, |f| {
            let row = |k: &KeyEntry| {
                let scopes: Vec<String> = k.scopes.iter().map(|s| format!("{s:?}").to_lowercase()).collect();
                vec![k.id.clone(), scopes.join(","), k.expires.clone().unwrap_or_default(), k.note.clone()]
            };
            table(&["id", "scopes", "expires", "note"], &f.keys.iter().map(row).collect::<Vec<_>>())
        }),
        KeyCommand::Revoke { id } => {
            let before = file.keys.len();
            file.keys.retain(|k| k.id != *id);
            anyhow::ensure!(file.keys.len() < before, "key: expected an id of {}, found {id:?}", path.display());
            file.write(path)?;
            print(format, &json!({ "revoked": id }), |_| {
                format!("{id} is revoked; running servers take it over with a reload")
            })
        }
    }
}
