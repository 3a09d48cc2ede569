//! The log: one line per event on stderr, as JSON for machines or as text for people.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Config;
use crate::error::ServerError;

/// Begins to log. A second call changes nothing.
///
/// # Errors
/// A filter that cannot be read.
pub fn init(config: &Config) -> Result<(), ServerError> {
    let filter = EnvFilter::try_new(&config.log).map_err(|e| ServerError::Setting {
        setting: "log".into(),
        origin: "settings".into(),
        expected: "a filter, as info or ascribe_server=debug".into(),
        found: e.to_string(),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    // Fails where a subscriber is set already: then that one is the log.
    drop(match config.log_json {
        true => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init(),
        false => registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init(),
    });
    Ok(())
}
