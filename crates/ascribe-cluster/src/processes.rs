//! The scheduler and the executor as processes of ours: the stock binaries do not know our functions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use clap::Args;

use crate::{functions, objects, session, stores};

/// Largest message between the processes. Queries travel by path, answers are small.
const MESSAGE_BYTES: u32 = 64 << 20;

/// Settings of the scheduler.
#[derive(Args)]
pub struct SchedulerArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on.
    #[arg(long, default_value_t = 50050)]
    port: u16,
    /// Seconds without a heartbeat after which an executor is lost and its tasks go to others.
    #[arg(long, default_value_t = 20)]
    executor_timeout: u64,
}

/// Settings of an executor.
#[derive(Args)]
pub struct ExecutorArgs {
    /// Host and port of the scheduler.
    #[arg(long, default_value = "127.0.0.1:50050")]
    scheduler: String,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Name or address by which others reach this executor [default: that it listens on].
    #[arg(long)]
    external_host: Option<String>,
    /// Port for results of stages.
    #[arg(long, default_value_t = 50051)]
    port: u16,
    /// Port for tasks.
    #[arg(long, default_value_t = 50052)]
    grpc_port: u16,
    /// Tasks at once.
    #[arg(long, default_value_t = 1)]
    vcores: usize,
    /// Folder for results of stages [default: a temporary one].
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 2)]
    heartbeat: u64,
}

/// Runs the scheduler until it is told to stop.
///
/// # Errors
/// A port that is taken; those of Ballista.
pub async fn scheduler(args: SchedulerArgs) -> Result<()> {
    let config = SchedulerConfig {
        external_host: args.host.clone(),
        bind_host: args.host.clone(),
        bind_port: args.port,
        scheduling_policy: TaskSchedulingPolicy::PushStaged,
        executor_timeout_seconds: args.executor_timeout,
        expire_dead_executor_interval_seconds: args.executor_timeout.div_ceil(4).max(1),
        no_executors_grace_period_seconds: 10 * args.executor_timeout,
        grpc_server_max_decoding_message_size: MESSAGE_BYTES,
        grpc_server_max_encoding_message_size: MESSAGE_BYTES,
        grpc_client_max_message_size: MESSAGE_BYTES,
        override_session_builder: Some(Arc::new(session::state)),
        ..SchedulerConfig::default()
    };
    let address: SocketAddr = format!("{}:{}", args.host, args.port)
        .parse()
        .with_context(|| format!("expected an address and a port, found {}:{}", args.host, args.port))?;
    let cluster = BallistaCluster::new_from_config(&config).await?;
    eprintln!("scheduler listens on {address}");
    Ok(start_server(cluster, address, Arc::new(config)).await?)
}

/// Runs an executor until it is told to stop.
///
/// # Errors
/// A scheduler that cannot be reached, a port that is taken; those of Ballista.
pub async fn executor(args: ExecutorArgs) -> Result<()> {
    let found = &args.scheduler;
    let (host, port) = found
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)))
        .with_context(|| format!("--scheduler: expected host:port, found {found}"))?;
    let mut registry = BallistaFunctionRegistry::default();
    registry.scalar_functions.extend(functions::scalars().into_iter().map(|f| (f.name().to_owned(), f)));
    registry.aggregate_functions.extend(functions::aggregates().into_iter().map(|f| (f.name().to_owned(), f)));
    let temporary = args.work_dir.clone();
    let work_dir = args.work_dir.map(|dir| dir.display().to_string());
    stores::keep_shards(args.vcores);
    let config = ExecutorProcessConfig {
        bind_host: args.host.clone(),
        external_host: Some(args.external_host.unwrap_or(args.host)),
        port: args.port,
        grpc_port: args.grpc_port,
        scheduler_host: host,
        scheduler_port: port,
        scheduler_connect_timeout_seconds: 30,
        vcores: args.vcores,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir,
        grpc_max_decoding_message_size: MESSAGE_BYTES,
        grpc_max_encoding_message_size: MESSAGE_BYTES,
        executor_heartbeat_interval_seconds: args.heartbeat,
        override_function_registry: Some(Arc::new(registry)),
        override_runtime_producer: Some(Arc::new(move |_| objects::runtime(temporary.as_deref()))),
        ..ExecutorProcessConfig::default()
    };
    eprintln!("executor of {found} listens on {} and {}", args.port, args.grpc_port);
    Ok(start_executor_process(Arc::new(config)).await?)
}
