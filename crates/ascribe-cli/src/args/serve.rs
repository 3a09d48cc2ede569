//! Arguments of `serve`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What is served, and how. Every option is a setting: the file says it as `name = value`, the environment as
/// `ASCRIBE_SERVE_NAME`; a flag wins over both.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Show settings, or make API keys.
    #[command(subcommand)]
    pub command: Option<ServeCommand>,
    /// What is served.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// The settings.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingArgs {
    /// Configuration file (TOML, `name = value`).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Finished run folder that is served.
    #[arg(long, value_name = "DIR", global = true)]
    pub run: Option<String>,
    /// Feature store that is served without a model, instead of a run.
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<String>,
    /// Registry folder that describes a store's datasets.
    #[arg(long, value_name = "DIR", global = true)]
    pub datasets: Option<String>,
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR", global = true)]
    pub listen: Option<String>,
    /// Folder of keys, receipts and caches [default: beside the run, with -serve behind its name].
    #[arg(long, value_name = "DIR", global = true)]
    pub state: Option<String>,
    /// File of API keys.
    #[arg(long, value_name = "FILE", global = true)]
    pub api_keys: Option<String>,
    /// PEM chain: HTTPS is spoken.
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_certificate: Option<String>,
    /// PEM private key of the chain.
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_key: Option<String>,
    /// Listen beyond loopback without API keys.
    #[arg(long, global = true)]
    pub allow_anonymous: bool,
    /// Threads that answer [default: as many as cores].
    #[arg(long, value_name = "N", global = true)]
    pub workers: Option<String>,
    /// Answers whose receipt cannot be logged: refuse or mark.
    #[arg(long, value_name = "POLICY", global = true)]
    pub receipt_policy: Option<String>,
    /// Any other setting, as NAME=VALUE; `ascribe serve config show` lists them.
    #[arg(long = "set", value_name = "NAME=VALUE", global = true)]
    pub set: Vec<String>,
}

/// Commands beside serving.
#[derive(Debug, Subcommand)]
pub enum ServeCommand {
    /// Settings: what they are, and where each was set.
    #[command(subcommand, after_help = "Example:\n  ascribe serve config show --run out/demo")]
    Config(ConfigCommand),
    /// API keys: make, list and revoke them.
    #[command(subcommand, after_help = "Example:\n  ascribe serve key new proxy --api-keys keys.json")]
    Key(KeyCommand),
}

/// Settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every setting, its value, and where it came from.
    #[command(after_help = "Example:\n  ascribe serve config show --config serve.toml --format json")]
    Show,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Ask for attributions.
    Attribute,
    /// Read datasets, receipts, statements.
    Read,
    /// Reload, read the audit.
    Admin,
}

/// API keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key; it is shown once, the file keeps its hash.
    #[command(
        after_help = "Example:\n  ascribe serve key new proxy --api-keys keys.json --scope attribute read --per-second 50"
    )]
    New {
        /// Id of the key: letters, digits and -.
        id: String,
        /// What it may do.
        #[arg(long, value_enum, num_args = 1.., default_values_t = [ScopeArg::Attribute, ScopeArg::Read])]
        scope: Vec<ScopeArg>,
        /// Last moment, RFC 3339 in UTC [default: none].
        #[arg(long, value_name = "MOMENT")]
        expires: Option<String>,
        /// Requests a second [default: the server's].
        #[arg(long, value_name = "N")]
        per_second: Option<u32>,
        /// For people.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Keys of a file, without secrets.
    #[command(after_help = "Example:\n  ascribe serve key list --api-keys keys.json")]
    List,
    /// Remove a key; a running server takes it over with the next reload.
    #[command(after_help = "Example:\n  ascribe serve key revoke proxy --api-keys keys.json")]
    Revoke {
        /// Id of the key.
        id: String,
    },
}

impl SettingArgs {
    /// The settings that were given, as `(name, value)`.
    ///
    /// # Errors
    /// A `--set` without `=`.
    pub fn flags(&self) -> anyhow::Result<Vec<(String, String)>> {
        let given = [
            ("run", &self.run),
            ("store", &self.store),
            ("datasets", &self.datasets),
            ("listen", &self.listen),
            ("state", &self.state),
            ("api_keys", &self.api_keys),
            ("tls_certificate", &self.tls_certificate),
            ("tls_key", &self.tls_key),
            ("workers", &self.workers),
            ("receipt_policy", &self.receipt_policy),
        ];
        let mut flags: Vec<(String, String)> =
            given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
        if self.allow_anonymous {
            flags.push(("allow_anonymous".into(), "true".into()));
        }
        for pair in &self.set {
            let Some((name, value)) = pair.split_once('=') else {
                anyhow::bail!("--set: expected NAME=VALUE, found {pair:?}");
            };
            flags.push((name.replace('-', "_"), value.to_owned()));
        }
        Ok(flags)
    }
}
