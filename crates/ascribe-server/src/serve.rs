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
use tokio::signal::unix::{SignalKind, signal};
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
/// SIGHUP loads everything again. After SIGTERM `/readyz` says 503, no connection is accepted, and requests in flight have the
/// drain timeout to finish; then receipts are closed.
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
    let (max_connections, drain) = (config.max_connections, config.drain_timeout);
    let (header_timeout, write_timeout) = (config.header_timeout, config.write_timeout);
    let app = Arc::new(App::start(config, source).await?);
    let paid = paid_routes(&app).await?;
    let router = router(Arc::clone(&app), paid);
    announce(&app, address, tls.is_some())?;
    let (connections, graceful) = (Arc::new(Semaphore::new(max_connections)), GracefulShutdown::new());
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let end = stop_signal()?;
    tokio::pin!(end);
    reload_on_hangup(Arc::clone(&app))?;
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let (stream, service) = (Impatient::new(stream, write_timeout), service(router.clone(), peer));
        match &tls {
            None => {
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                let watched = graceful.watch(connection);
                tokio::spawn(async move {
                    let (_permit, _outcome) = (permit, watched.await);
                });
            }
            Some(tls) => {
                let (tls, builder, watcher) = (tls.clone(), builder.clone(), graceful.watcher());
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        let connection = builder.serve_connection(TokioIo::new(stream), service);
                        drop(watcher.watch(connection).await);
                    }
                });
            }
        }
    }
    app.drain();
    drop(listener);
    tracing::info!("draining");
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
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

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Answers are one write each: waiting for more to send would only delay them.
            drop(stream.set_nodelay(true));
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
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

/// Ends when the process is told to.
fn stop_signal() -> Result<impl Future<Output = ()>, ServerError> {
    let listen = |kind| signal(kind).map_err(|e| ServerError::io(Path::new("signals"), e));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
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
