//! What all requests share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ascribe_core::Digest;
use ascribe_tlog::{Ed25519Key, NoteSigner, SignatureKind, random_bytes};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::audit::Audit;
use crate::config::Config;
use crate::error::ServerError;
use crate::generation::{Generation, Source, Workers};
use crate::keys::{Caller, KeyFile, Scope, write_private};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::receipts::Receipts;
use crate::traces::Traces;

/// Where the administrator's token lies in the state folder when there is no file of API keys.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Rate limiters that are kept; above, all begin again.
const LIMITERS: usize = 10_000;
/// Id of callers without a key.
const ANONYMOUS: &str = "anonymous";

/// The server's state.
pub struct App {
    /// Settings.
    pub config: Config,
    /// Counters.
    pub metrics: Metrics,
    /// Receipts.
    pub receipts: Receipts,
    /// Spans of requests.
    pub traces: Traces,
    /// Requests that may be worked on at once.
    pub in_flight: Semaphore,
    source: Source,
    current: ArcSwap<Generation>,
    keys: ArcSwap<Option<KeyFile>>,
    admin_token: Digest,
    limiters: Mutex<HashMap<(String, u32), Arc<DefaultDirectRateLimiter>>>,
    reloading: tokio::sync::Mutex<()>,
    audit: Audit,
    draining: AtomicBool,
}

impl App {
    /// Loads everything; returns when questions can be answered.
    ///
    /// # Errors
    /// What cannot be loaded, in words.
    pub async fn start(config: Config, source: Source) -> Result<Self, ServerError> {
        let state = &config.state;
        let traces = Traces::open(&config.otlp_endpoint)?;
        std::fs::create_dir_all(state).map_err(|e| ServerError::io(state, e))?;
        let secret = operator_secret(&config.operator_key, &config.operator_name)?;
        let receipts = Receipts::open(&state.join("usage"), &secret)?;
        let keys = config.api_keys.as_deref().map(KeyFile::read).transpose()?;
        let token = hex::encode(&random_bytes()?[..]);
        write_private(&state.join(ADMIN_TOKEN_FILE), format!("{token}\n").as_bytes())?;
        let generation = Generation::load(source.clone(), workers(&config)).await.map_err(ServerError::Load)?;
        let metrics = Metrics::default();
        metrics.load_seconds.set(generation.known.load_s);
        let audit = Audit::open(&state.join("audit.jsonl"))?;
        audit.note("system", "start", &generation.known.opened.generation, "ok")?;
        Ok(Self {
            in_flight: Semaphore::new(config.max_in_flight),
            current: ArcSwap::from_pointee(generation),
            keys: ArcSwap::from_pointee(keys),
            admin_token: Digest::of(token.as_bytes()),
            limiters: Mutex::default(),
            reloading: tokio::sync::Mutex::new(()),
            draining: AtomicBool::new(false),
            config,
            metrics,
            receipts,
            traces,
            source,
            audit,
        })
    }

    /// The generation that answers now.
    pub fn generation(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The audit of admin actions.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Loads index, model, registry and API keys again and swaps them in; the old ones go on until then, and for ever if the new
    /// ones cannot be loaded. Keys count from the moment that their file is read: a revoked one is gone though a model is spoilt.
    ///
    /// # Errors
    /// A reload in progress; what could not be loaded.
    pub async fn reload(&self, who: &str) -> Result<Arc<Generation>, Problem> {
        let Ok(_one) = self.reloading.try_lock() else {
            self.metrics.reload("busy");
            self.note(who, &self.generation().known.opened.generation, "refused: a reload is in progress");
            return Err(Problem::new(
                axum::http::StatusCode::CONFLICT,
                "reloading",
                "A reload is in progress",
                "expected one reload at a time, found another; hint: wait for it",
            ));
        };
        let outcome = self.load_again().await;
        let (said, kept) = match &outcome {
            Ok(generation) => ("ok".to_owned(), generation.known.opened.generation.clone()),
            Err(why) => (why.clone(), self.generation().known.opened.generation.clone()),
        };
        self.metrics.reload(if outcome.is_ok() { "ok" } else { "refused" });
        self.note(who, &kept, &said);
        outcome.map_err(|why| {
            tracing::error!(why, "reload refused; the old generation goes on");
            Problem::new(
                axum::http::StatusCode::UNPROCESSABLE_ENTITY,
                "reload-refused",
                "The new generation cannot be loaded",
                format!("{why}; the old one ({kept}) goes on"),
            )
        })
    }

    fn note(&self, who: &str, generation: &str, outcome: &str) {
        if let Err(error) = self.audit.note(who, "reload", generation, outcome) {
            tracing::error!(%error, "the audit could not be written");
        }
    }

    async fn load_again(&self) -> Result<Arc<Generation>, String> {
        let keys = self.config.api_keys.as_deref().map(KeyFile::read).transpose().map_err(|e| e.to_string())?;
        self.keys.store(Arc::new(keys));
        let generation = Arc::new(Generation::load(self.source.clone(), workers(&self.config)).await?);
        self.metrics.load_seconds.set(generation.known.load_s);
        self.current.store(Arc::clone(&generation));
        tracing::info!(generation = generation.known.opened.generation, "loaded");
        Ok(generation)
    }

    /// Who asks, if they may, and not too often.
    ///
    /// # Errors
    /// 401, 403, 429.
    pub fn admit(&self, headers: &HeaderMap, peer: Option<IpAddr>, scope: Scope) -> Result<Caller, Problem> {
        let bearer = headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
        let bearer = bearer.map(|text| text.strip_prefix("Bearer ").unwrap_or_default());
        let is_admin_token = |key: &str| bool::from(Digest::of(key.as_bytes()).0.ct_eq(&self.admin_token.0));
        let keys = self.keys.load();
        let caller = match (keys.as_ref(), bearer) {
            (_, Some(key)) if is_admin_token(key) => Caller { id: "state-token".into(), per_second: 0 },
            (Some(file), Some(key)) => file.check(key, scope, OffsetDateTime::now_utc())?,
            (Some(_), None) => return Err(Problem::unauthorized("expected a bearer API key, found none")),
            (None, _) if scope == Scope::Admin => {
                let hint =
                    format!("expected the token of {ADMIN_TOKEN_FILE} in the state folder, found none or another");
                return Err(Problem::unauthorized(hint));
            }
            (None, Some(_)) => {
                return Err(Problem::unauthorized("expected no key or a valid one, found an unknown one"));
            }
            (None, None) => {
                let id = peer.map_or_else(|| ANONYMOUS.to_owned(), |ip| format!("{ANONYMOUS}@{ip}"));
                Caller { id, per_second: 0 }
            }
        };
        self.limit(&caller)?;
        Ok(caller)
    }

    fn limit(&self, caller: &Caller) -> Result<(), Problem> {
        let rate = if caller.per_second > 0 { caller.per_second } else { self.config.per_second };
        let Some(rate) = NonZeroU32::new(rate) else { return Ok(()) };
        let limiter = {
            let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
            if limiters.len() >= LIMITERS {
                limiters.clear();
            }
            let new = || Arc::new(RateLimiter::direct(Quota::per_second(rate)));
            Arc::clone(limiters.entry((caller.id.clone(), rate.get())).or_insert_with(new))
        };
        limiter.check().map_err(|_| Problem::too_many(1))
    }

    /// No more work is wanted: readiness ends.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// True once [`App::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

fn workers(config: &Config) -> Workers {
    Workers { threads: config.workers, queue_depth: config.queue_depth, cache: config.state.join("cache") }
}

/// The operator's secret line; made at the first start.
fn operator_secret(path: &Path, name: &str) -> Result<String, ServerError> {
    if !path.exists() {
        let signer = NoteSigner::new(name, SignatureKind::Note, Ed25519Key::generate()?)?;
        write_private(path, signer.secret_line().as_bytes())?;
    }
    std::fs::read_to_string(path).map_err(|e| ServerError::io(path, e))
}
