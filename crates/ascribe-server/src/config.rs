//! Settings: defaults < file < environment < flags, each value with its origin.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::error::ServerError;

/// Before every name in the environment.
pub const ENV_PREFIX: &str = "ASCRIBE_SERVE_";

/// Names, defaults and meanings, in the order of `config show`.
const SETTINGS: [(&str, &str, &str); 30] = [
    ("run", "", "finished run folder that is served"),
    ("store", "", "feature store that is served without a model, instead of a run"),
    ("datasets", "", "registry folder that describes a store's datasets"),
    ("listen", "127.0.0.1:8080", "address and port; port 0 takes a free one"),
    ("state", "", "folder of keys, receipts and caches [default: beside the run, with -serve behind its name]"),
    ("operator_key", "", "secret key of receipts [default: operator.key in the state folder, made at the first start]"),
    (
        "api_keys",
        "",
        "file of API keys; without it everybody may ask and nobody may administer but by the state folder's token",
    ),
    ("allow_anonymous", "false", "listen beyond loopback without API keys"),
    ("workers", "0", "threads that answer; 0 for as many as cores"),
    ("queue_depth", "64", "questions that may wait; more are refused with 503"),
    ("max_in_flight", "512", "requests worked on at once; more are refused with 503"),
    ("max_connections", "2048", "open connections; more wait to be accepted"),
    ("request_timeout_ms", "30000", "time limit of a request"),
    ("header_timeout_ms", "10000", "time limit for a request's head"),
    ("body_timeout_ms", "10000", "time limit for a request's body"),
    ("write_timeout_ms", "10000", "time in which a client must take some of an answer"),
    ("body_limit_bytes", "4194304", "largest body"),
    (
        "lame_duck_ms",
        "0",
        "time after SIGTERM in which only /readyz refuses, so that load balancers learn of the end before callers",
    ),
    ("drain_timeout_ms", "30000", "time for requests in flight after that"),
    ("per_second", "0", "requests a second and key; 0 for no limit"),
    ("receipt_policy", "refuse", "answers whose receipt cannot be logged: refuse or mark"),
    ("tls_certificate", "", "PEM chain; with tls_key HTTPS is spoken"),
    ("tls_key", "", "PEM private key"),
    ("log", "info", "filter of the log, as `info` or `ascribe_server=debug`"),
    ("log_format", "json", "json or text"),
    ("runtime_threads", "2", "threads that read and write connections"),
    ("operator_name", "ascribe.local/usage", "name of the operator's key, as in the usage log's checkpoints"),
    ("paywall", "", "file of a paywall: responses are sold at /v1/paid/attributions"),
    ("otlp_endpoint", "", "collector of traces, as http://127.0.0.1:4318; needs a build with the feature otel"),
    ("trust_proxy_ids", "true", "take x-request-id of a proxy for the request's id"),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// A variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One setting as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Name.
    pub name: &'static str,
    /// Value, as text.
    pub value: String,
    /// Where it came from, in words.
    pub origin: String,
    /// What it means.
    pub about: &'static str,
}

/// What to do with an answer whose receipt cannot be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptPolicy {
    /// No answer.
    Refuse,
    /// The answer, marked.
    Mark,
}

/// All settings, as texts with origins.
#[derive(Clone, Debug)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Settings {
    /// Puts the layers together. `env` and `flags` are `(name, value)`; names of the environment still have their prefix.
    ///
    /// # Errors
    /// A file that cannot be read; an unknown name in any layer.
    pub fn layered(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ServerError> {
        let defaults = SETTINGS.iter().map(|(name, value, _)| (*name, ((*value).to_owned(), Origin::Default)));
        let mut settings = Self { values: defaults.collect() };
        if let Some(path) = file {
            for (name, value) in read_file(path)? {
                settings.set(&name, value, Origin::File(path.to_owned()))?;
            }
        }
        for (variable, value) in env {
            if let Some(name) = variable.strip_prefix(ENV_PREFIX) {
                let name = name.to_ascii_lowercase();
                settings.set(&name, value, Origin::Environment(variable.clone()))?;
            }
        }
        for (name, value) in flags {
            let flag = name.replace('_', "-");
            settings.set(&name, value, Origin::Flag(flag))?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: String, origin: Origin) -> Result<(), ServerError> {
        match self.values.get_mut(name) {
            Some(entry) => {
                *entry = (value, origin);
                Ok(())
            }
            None => Err(ServerError::Setting {
                setting: name.to_owned(),
                origin: origin.to_string(),
                expected: format!("one of {}", SETTINGS.map(|(n, ..)| n).join(", ")),
                found: "an unknown name".into(),
            }),
        }
    }

    /// Every setting with its origin.
    pub fn show(&self) -> Vec<Shown> {
        let shown = |(name, _, about): &(&'static str, &str, &'static str)| {
            let (value, origin) = &self.values[name];
            Shown { name, value: value.clone(), origin: origin.to_string(), about }
        };
        SETTINGS.iter().map(shown).collect()
    }

    fn text(&self, name: &'static str) -> &str {
        &self.values[name].0
    }

    fn refuse(&self, name: &'static str, expected: &str) -> ServerError {
        let (found, origin) = &self.values[name];
        ServerError::Setting {
            setting: name.to_owned(),
            origin: origin.to_string(),
            expected: expected.to_owned(),
            found: format!("{found:?}"),
        }
    }

    fn number(&self, name: &'static str, least: u64, most: u64) -> Result<u64, ServerError> {
        let value = self.text(name).parse().ok().filter(|n| (least..=most).contains(n));
        value.ok_or_else(|| self.refuse(name, &format!("a number from {least} to {most}")))
    }

    fn path(&self, name: &'static str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|t| !t.is_empty()).map(PathBuf::from)
    }

    fn flag(&self, name: &'static str) -> Result<bool, ServerError> {
        match self.text(name) {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(self.refuse(name, "true or false")),
        }
    }

    fn millis(&self, name: &'static str) -> Result<Duration, ServerError> {
        Ok(Duration::from_millis(self.number(name, 1, 86_400_000)?))
    }

    /// The settings as values.
    ///
    /// # Errors
    /// A value that cannot be used, with its origin.
    pub fn config(&self) -> Result<Config, ServerError> {
        let (run, store) = (self.path("run"), self.path("store"));
        let served = match (&run, &store) {
            (Some(dir), None) | (None, Some(dir)) => dir.clone(),
            (Some(_), Some(_)) => return Err(self.refuse("store", "a run or a store, not both")),
            (None, None) => return Err(self.refuse("run", "a run folder; hint: --run out/demo")),
        };
        let state = self.path("state").unwrap_or_else(|| {
            let mut name = served.file_name().unwrap_or_default().to_os_string();
            name.push("-serve");
            served.with_file_name(name)
        });
        let listen: SocketAddr =
            self.text("listen").parse().map_err(|_| self.refuse("listen", "an address and port, as 127.0.0.1:8080"))?;
        let api_keys = self.path("api_keys");
        let allow_anonymous = self.flag("allow_anonymous")?;
        if api_keys.is_none() && !listen.ip().is_loopback() && !allow_anonymous {
            return Err(self.refuse("listen", "loopback, or API keys; hint: --api-keys FILE or --allow-anonymous"));
        }
        let receipt_policy = match self.text("receipt_policy") {
            "refuse" => ReceiptPolicy::Refuse,
            "mark" => ReceiptPolicy::Mark,
            _ => return Err(self.refuse("receipt_policy", "refuse or mark")),
        };
        let tls = match (self.path("tls_certificate"), self.path("tls_key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(self.refuse("tls_key", "the key of the certificate")),
            (None, Some(_)) => return Err(self.refuse("tls_certificate", "the certificate of the key")),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = match self.number("workers", 0, 1024)? as usize {
            0 => cores,
            n => n,
        };
        Ok(Config {
            operator_key: self.path("operator_key").unwrap_or_else(|| state.join("operator.key")),
            run,
            store,
            datasets: self.path("datasets"),
            listen,
            state,
            api_keys,
            workers,
            queue_depth: self.number("queue_depth", 1, 1_000_000)? as usize,
            max_in_flight: self.number("max_in_flight", 1, 1_000_000)? as usize,
            max_connections: self.number("max_connections", 1, 1_000_000)? as usize,
            request_timeout: self.millis("request_timeout_ms")?,
            header_timeout: self.millis("header_timeout_ms")?,
            body_timeout: self.millis("body_timeout_ms")?,
            write_timeout: self.millis("write_timeout_ms")?,
            body_limit: self.number("body_limit_bytes", 1, 1 << 40)? as usize,
            lame_duck: Duration::from_millis(self.number("lame_duck_ms", 0, 86_400_000)?),
            drain_timeout: self.millis("drain_timeout_ms")?,
            per_second: self.number("per_second", 0, 1_000_000)? as u32,
            receipt_policy,
            tls,
            log: self.text("log").to_owned(),
            log_json: match self.text("log_format") {
                "json" => true,
                "text" => false,
                _ => return Err(self.refuse("log_format", "json or text")),
            },
            runtime_threads: self.number("runtime_threads", 1, 1024)? as usize,
            operator_name: self.text("operator_name").to_owned(),
            paywall: self.path("paywall"),
            otlp_endpoint: self.text("otlp_endpoint").to_owned(),
            trust_proxy_ids: self.flag("trust_proxy_ids")?,
        })
    }
}

/// A TOML file of plain values.
fn read_file(path: &Path) -> Result<Vec<(String, String)>, ServerError> {
    let text = std::fs::read_to_string(path).map_err(|e| ServerError::io(path, e))?;
    let refuse = |found: String| ServerError::Content {
        path: path.to_owned(),
        expected: "settings as TOML, `name = value`".into(),
        found,
    };
    let table: toml::Table = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    let plain = |(name, value): (String, toml::Value)| match value {
        toml::Value::String(text) => Ok((name, text)),
        toml::Value::Integer(n) => Ok((name, n.to_string())),
        toml::Value::Boolean(b) => Ok((name, b.to_string())),
        other => Err(refuse(format!("{name} = {other}"))),
    };
    table.into_iter().map(plain).collect()
}

/// The settings of a server.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each stands in `SETTINGS` with its meaning.
pub struct Config {
    pub run: Option<PathBuf>,
    pub store: Option<PathBuf>,
    pub datasets: Option<PathBuf>,
    pub listen: SocketAddr,
    pub state: PathBuf,
    pub operator_key: PathBuf,
    pub api_keys: Option<PathBuf>,
    pub workers: usize,
    pub queue_depth: usize,
    pub max_in_flight: usize,
    pub max_connections: usize,
    pub request_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub body_limit: usize,
    pub lame_duck: Duration,
    pub drain_timeout: Duration,
    pub per_second: u32,
    pub receipt_policy: ReceiptPolicy,
    pub tls: Option<(PathBuf, PathBuf)>,
    pub log: String,
    pub log_json: bool,
    pub runtime_threads: usize,
    pub operator_name: String,
    pub paywall: Option<PathBuf>,
    pub otlp_endpoint: String,
    pub trust_proxy_ids: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn layered(file: Option<&Path>, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, ServerError> {
        let of = |list: &[(&str, &str)]| list.iter().map(|(n, v)| pair(n, v)).collect::<Vec<_>>().into_iter();
        Settings::layered(file, of(env), of(flags))
    }

    #[test]
    fn later_layers_win_and_every_value_names_its_origin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serve.toml");
        std::fs::write(&path, "run = \"out/demo\"\nqueue_depth = 7\nworkers = 3\n").unwrap();
        let settings =
            layered(Some(&path), &[("ASCRIBE_SERVE_QUEUE_DEPTH", "8"), ("HOME", "x")], &[("workers", "1")]).unwrap();
        let config = settings.config().unwrap();
        assert_eq!((config.queue_depth, config.workers, config.run), (8, 1, Some("out/demo".into())));
        assert_eq!(config.state, PathBuf::from("out/demo-serve"));
        let origin = |name: &str| settings.show().into_iter().find(|s| s.name == name).unwrap().origin;
        assert_eq!(origin("queue_depth"), "environment ASCRIBE_SERVE_QUEUE_DEPTH");
        assert_eq!(origin("workers"), "flag --workers");
        assert!(origin("run").ends_with("serve.toml"));
        assert_eq!(origin("log"), "default");
    }

    #[test]
    fn bad_values_name_setting_and_origin() {
        let check = |flags: &[(&str, &str)], words: &[&str]| {
            let found = layered(None, &[], flags).and_then(|s| s.config()).unwrap_err().to_string();
            assert!(words.iter().all(|w| found.contains(w)), "{found}");
        };
        check(&[("run", "r"), ("queue_depth", "many")], &["queue_depth", "flag --queue-depth", "\"many\""]);
        check(&[("run", "r"), ("listen", "0.0.0.0:80")], &["loopback", "--allow-anonymous"]);
        check(&[("run", "r"), ("store", "s")], &["not both"]);
        check(&[("run", "r"), ("tls_key", "k")], &["tls_certificate"]);
        check(&[("rum", "r")], &["rum", "unknown name"]);
        check(&[], &["run", "hint"]);
        assert!(layered(None, &[("ASCRIBE_SERVE_X", "1")], &[]).unwrap_err().to_string().contains("ASCRIBE_SERVE_X"));
    }
}
