//! Listening: TCP or TLS, at most so many connections, and an end that lets requests in flight finish.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::app::App;
use crate::config::Config;
use crate::error::ServerError;
use crate::generation::Source;
use crate::routes::{Peer, router};
use crate::socket::Impatient;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed (no file descriptors): connections wait in the kernel meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT; the first line of stdout is one JSON object with the bound address.
///
/// SIGHUP loads everything again. After SIGTERM `/readyz` says 503; for the lame-duck time everything else goes on, so that whoever
/// balances load learns of it before a connection is refused. Then no connection is accepted, and requests in flight have the drain
/// timeout to finish; then receipts are closed. A second signal ends the lame-duck time at once.
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: Config, source: Source) -> Result<(), ServerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.runtime_threads)
        .enable_all()
        .build()
        .map_err(|e| ServerError::io(Path::new("runtime"), e))?;
    runtime.block_on(serve(config, source))
}

async fn serve(config: Config, source: Source) -> Result<(), ServerError> {
    let tls = config.tls.as_ref().map(|(certificate, key)| acceptor(certificate, key)).transpose()?;
    let at = |e| ServerError::io(Path::new(&config.listen.to_string()), e);
    // Bound first: a port that is taken is found out before minutes of loading.
    let listener = TcpListener::bind(config.listen).await.map_err(at)?;
    let address = listener.local_addr().map_err(at)?;
    let (lame_duck, drain) = (config.lame_duck, config.drain_timeout);
    let limits = (config.max_connections, config.header_timeout, config.write_timeout);
    let app = Arc::new(App::start(config, source).await?);
    let paid = paid_routes(&app).await?;
    let router = router(Arc::clone(&app), paid);
    // Before anybody is told where the server is: a signal that nobody listens for ends the process then and there.
    let mut stop = Stop::listen()?;
    reload_on_hangup(Arc::clone(&app))?;
    announce(&app, address, tls.is_some())?;
    let connections = Connections::new(router, tls, limits);
    tokio::select! {
        () = stop.told() => {}
        () = connections.accept_all(&listener) => {}
    }
    app.drain();
    if !lame_duck.is_zero() {
        tracing::info!(?lame_duck, "not ready any more; requests are still taken");
        tokio::select! {
            () = stop.told() => {}
            () = tokio::time::sleep(lame_duck) => {}
            () = connections.accept_all(&listener) => {}
        }
    }
    drop(listener);
    tracing::info!("draining");
    if tokio::time::timeout(drain, connections.graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight when the drain timeout ended");
    }
    let closing = Arc::clone(&app);
    let closed = tokio::task::spawn_blocking(move || {
        closing.receipts.close();
        closing.traces.close();
    });
    let closed = closed.await;
    if closed.is_err() {
        tracing::error!("the receipts could not be closed in order");
    }
    tracing::info!("ended");
    Ok(())
}

/// Routes of what is sold, where a paywall is set.
async fn paid_routes(app: &Arc<App>) -> Result<Router, ServerError> {
    let Some(path) = app.config.paywall.clone() else { return Ok(Router::new()) };
    let theirs = Arc::clone(app);
    let opened = tokio::task::spawn_blocking(move || crate::shop::open(&path, &theirs)).await;
    let shop = Arc::new(opened.map_err(|e| ServerError::Load(e.to_string()))??);
    crate::x402::watch(&shop);
    Ok(crate::x402::routes(shop))
}

/// The first line of stdout.
fn announce(app: &App, address: SocketAddr, tls: bool) -> Result<(), ServerError> {
    let scheme = if tls { "https" } else { "http" };
    let opened = &app.generation().known.opened;
    let line = serde_json::json!({
        "address": address.to_string(),
        "url": format!("{scheme}://{address}"),
        "model": opened.model,
        "generation": opened.generation,
        "state": app.config.state,
        "pid": std::process::id(),
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| ServerError::io(Path::new("stdout"), e))?;
    tracing::info!(%address, generation = opened.generation, load_s = app.generation().known.load_s, "listening");
    Ok(())
}

/// What is served on each connection, and those that are open.
struct Connections {
    router: Router,
    tls: Option<TlsAcceptor>,
    http: http1::Builder,
    write_timeout: Duration,
    room: Arc<Semaphore>,
    graceful: GracefulShutdown,
}

impl Connections {
    /// Limits: open connections, time for a request's head, time between two writes.
    fn new(router: Router, tls: Option<TlsAcceptor>, limits: (usize, Duration, Duration)) -> Self {
        let (most, header_timeout, write_timeout) = limits;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(header_timeout);
        let (room, graceful) = (Arc::new(Semaphore::new(most)), GracefulShutdown::new());
        Self { router, tls, http, write_timeout, room, graceful }
    }

    /// Accepts connections, each once there is room for it. May be dropped between any two.
    async fn accept_all(&self, listener: &TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => self.serve(stream, peer, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Answers on a task of the connection's own.
    fn serve(&self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        // Answers are one write each: waiting for more to send would only delay them.
        drop(stream.set_nodelay(true));
        let (stream, service) = (Impatient::new(stream, self.write_timeout), service(self.router.clone(), peer));
        match &self.tls {
            None => {
                let watched = self.graceful.watch(self.http.serve_connection(TokioIo::new(stream), service));
                tokio::spawn(async move {
                    let (_permit, _outcome) = (permit, watched.await);
                });
            }
            Some(tls) => {
                let (tls, http, watcher) = (tls.clone(), self.http.clone(), self.graceful.watcher());
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        let connection = http.serve_connection(TokioIo::new(stream), service);
                        drop(watcher.watch(connection).await);
                    }
                });
            }
        }
    }
}

/// The routes for one connection: requests know its peer.
fn service(
    router: Router,
    peer: SocketAddr,
) -> TowerToHyperService<
    impl tower::Service<
        Request<Incoming>,
        Response = axum::response::Response,
        Error = std::convert::Infallible,
        Future: Send,
    > + Clone,
> {
    TowerToHyperService::new(router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        request.map(axum::body::Body::new)
    }))
}

/// The signals that end the process.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn listen() -> Result<Self, ServerError> {
        let listen = |kind| signal(kind).map_err(|e| ServerError::io(Path::new("signals"), e));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// Returns when the process is told to end, once for each time.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// SIGHUP is a reload.
fn reload_on_hangup(app: Arc<App>) -> Result<(), ServerError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| ServerError::io(Path::new("signals"), e))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // The outcome is in the log and the audit.
            drop(app.reload("SIGHUP").await);
        }
    });
    Ok(())
}

/// TLS 1.2 and 1.3 with a PEM chain and key.
fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, ServerError> {
    let content = |path: &Path, expected: &str, found: String| ServerError::Content {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|e| content(certificate, "a PEM chain", e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| content(key, "a PEM private key", e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| content(certificate, "TLS 1.2 or 1.3", e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| content(certificate, "a chain of that key", e.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
