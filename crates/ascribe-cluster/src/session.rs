//! Contexts: embedded or on a cluster, both with our functions.

use anyhow::{Context as _, Result};
use ballista::prelude::{SessionConfigExt as _, SessionContextExt as _};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::functions;

/// A state with the defaults of DataFusion and our functions.
///
/// # Errors
/// Those of DataFusion.
pub fn state(config: SessionConfig) -> datafusion::error::Result<SessionState> {
    use datafusion::execution::FunctionRegistry as _;
    let mut state = SessionStateBuilder::new().with_default_features().with_config(config).build();
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
/// A cluster that cannot be reached; those of DataFusion.
pub async fn context(url: Option<&str>, partitions: usize) -> Result<SessionContext> {
    let Some(url) = url else {
        let config = SessionConfig::new().with_target_partitions(partitions.max(1));
        return Ok(SessionContext::new_with_state(state(config)?));
    };
    let config = SessionConfig::new_with_ballista().with_target_partitions(partitions.max(1));
    let context = SessionContext::remote_with_state(url, state(config)?)
        .await
        .with_context(|| format!("the scheduler at {url} cannot be reached"))?;
    // The upgrade for the cluster puts Ballista's functions in the place of ours.
    for function in functions::scalars() {
        context.register_udf((*function).clone());
    }
    for function in functions::aggregates() {
        context.register_udaf((*function).clone());
    }
    Ok(context)
}
