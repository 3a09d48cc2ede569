//! Contexts: embedded or on a cluster, both with our functions.

use ballista::prelude::{SessionConfigExt as _, SessionContextExt as _};
use datafusion::error::Result;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::{functions, objects};

/// A state with the defaults of DataFusion and our functions.
///
/// # Errors
/// Those of DataFusion.
pub fn state(config: SessionConfig) -> Result<SessionState> {
    use datafusion::execution::FunctionRegistry as _;
    let builder = SessionStateBuilder::new().with_default_features().with_config(config);
    let mut state = builder.with_runtime_env(objects::runtime(None)?).build();
    for function in functions::scalars() {
        state.register_udf(function)?;
    }
    for function in functions::aggregates() {
        state.register_udaf(function)?;
    }
    Ok(state)
}

/// A context on the cluster at `url`, or on this process's threads.
///
/// `partitions` is the number of tasks that a scan may be cut into.
///
/// # Errors
/// An address that is none; those of DataFusion. Nobody is asked before there is a statement.
pub async fn context(url: Option<&str>, partitions: usize) -> Result<SessionContext> {
    let Some(url) = url else {
        let config = SessionConfig::new().with_target_partitions(partitions.max(1));
        return Ok(SessionContext::new_with_state(state(config)?));
    };
    let config = SessionConfig::new_with_ballista().with_target_partitions(partitions.max(1));
    let context = SessionContext::remote_with_state(url, state(config)?)
        .await
        .map_err(|error| error.context(format!("--cluster: expected df://HOST:PORT, found {url}")))?;
    // The upgrade for the cluster puts Ballista's functions in the place of ours.
    for function in functions::scalars() {
        context.register_udf((*function).clone());
    }
    for function in functions::aggregates() {
        context.register_udaf((*function).clone());
    }
    Ok(context)
}
