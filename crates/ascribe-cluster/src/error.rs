//! How a statement ends without an answer. The engine's errors are texts by the time they come back from another machine; here they
//! are told apart again, once.

use datafusion::common::{DataFusionError, exec_datafusion_err};

/// A statement that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Nobody answers, or the connection ended: the statement may be sent again.
    #[error(
        "{url}: expected a scheduler that answers, found none: {said} (hint: `ascribe cluster scheduler` starts one)"
    )]
    Away {
        /// The scheduler's address.
        url: String,
        /// The engine's words.
        said: String,
    },
    /// The work on one shard failed: it would fail again.
    #[error("shard {shard} of {store}: {said}")]
    Shard {
        /// Its number.
        shard: u32,
        /// Its store.
        store: String,
        /// What is wrong with it.
        said: String,
    },
    /// The scheduler says that the job failed.
    #[error("the job on {url} failed: {said}")]
    Failed {
        /// The scheduler's address.
        url: String,
        /// The engine's words.
        said: String,
    },
    /// Something on this machine.
    #[error(transparent)]
    Own(#[from] DataFusionError),
}

/// What the engine says of a connection that ended.
const AWAY: [&str; 7] = [
    "transport error",
    "connection refused",
    "connection reset",
    "broken pipe",
    "tcp connect error",
    "unavailable",
    "h2 protocol",
];

impl JobError {
    /// What the engine's error means; `url` is the scheduler's address, if there is one.
    pub fn of(error: DataFusionError, url: Option<&str>) -> Self {
        let said = error.to_string();
        if let Some(found) = shard_of(&said) {
            return found;
        }
        let Some(url) = url.map(str::to_owned) else { return Self::Own(error) };
        let small = said.to_lowercase();
        match AWAY.iter().any(|sign| small.contains(sign)) {
            true => Self::Away { url, said },
            false => Self::Failed { url, said },
        }
    }
}

/// The error of a function that failed at a shard: a text that [`JobError::of`] finds within whatever the engine puts around it.
pub fn at_shard(store: &str, shard: u32, error: impl Into<anyhow::Error>) -> DataFusionError {
    let error = error.into();
    exec_datafusion_err!("<shard {shard} of {store}>{error:#}</shard>")
}

fn shard_of(said: &str) -> Option<JobError> {
    let (_, rest) = said.split_once("<shard ")?;
    let (rest, _) = rest.split_once("</shard>")?;
    let (shard, rest) = rest.split_once(" of ")?;
    let (store, said) = rest.split_once('>')?;
    // On its way the text was printed as a literal.
    let plain = |text: &str| text.replace('\\', "");
    Some(JobError::Shard { shard: shard.parse().ok()?, store: plain(store), said: plain(said) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: Option<&str> = Some("df://127.0.0.1:50050");

    #[test]
    fn a_shard_is_found_within_what_the_engine_says() {
        let at = at_shard("/data/store", 7, anyhow::anyhow!("expected \"a\", found \"b\""));
        let sent = DataFusionError::Execution(format!("Job x failed: Task failed: DataFusionError({at:?})"));
        let found = JobError::of(sent, URL);
        assert!(
            matches!(&found, JobError::Shard { shard: 7, store, said }
            if store == "/data/store" && said == "expected \"a\", found \"b\""),
            "{found:?}"
        );
        assert_eq!(found.to_string(), "shard 7 of /data/store: expected \"a\", found \"b\"");
    }

    #[test]
    fn a_connection_that_is_refused_names_the_address() {
        let said =
            "tonic::transport::Error(Transport, ConnectError(ConnectError(\"tcp connect error\", 127.0.0.1:50050)))";
        let found = JobError::of(DataFusionError::Execution(said.to_owned()), URL);
        assert!(
            matches!(found, JobError::Away { .. }) && found.to_string().starts_with("df://127.0.0.1:50050: "),
            "{found}"
        );
        let other = JobError::of(DataFusionError::Execution("Job x failed: no memory".to_owned()), URL);
        assert!(matches!(other, JobError::Failed { .. }), "{other}");
        let own = JobError::of(DataFusionError::Execution("connection refused".to_owned()), None);
        assert!(matches!(own, JobError::Own(_)), "{own}");
    }
}
