//! I/O: the HTTPS server: listening, TLS, limits, and the way from a request to its judgement and back.
//!
//! Invariants: nothing that a client sends ends the server or keeps a connection for ever; a question that could not be judged is an HTTP error,
//! so that the API server's failure policy decides, never an answer that was made up.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::configurations::{INJECT, MUTATE_POLICIES, VALIDATE, VALIDATE_NADS};
use super::judge::{self, Unjudged};
use super::review::{Answer, Request};
use super::secret::Shown;
use super::tls::Tls;
use crate::context::Context;

/// Object and old object, each 3 MiB at most for the API server, and what JSON adds.
const LARGEST_BODY: usize = 8 << 20;
/// Connections at a time; an API server keeps a few.
const CONNECTIONS: usize = 256;
/// Until TLS is spoken, and until each request's header is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// For requests that run when the server is to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long new connections are taken after that, until no API server is led here any more: nobody's write goes unjudged in a hand-over.
const LINGER: Duration = Duration::from_secs(3);
/// Whether anybody ever asked; otherwise nobody is led here.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves until `stop` is done, then lets running requests end.
pub(super) async fn run(context: Arc<Context>, address: SocketAddr, shown: Arc<Shown>, stop: impl Future<Output = ()>) {
    let Some(config) = tls(&context.settings.admission.tls, Arc::clone(&shown)) else { return };
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let router = router(context, shown);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let accept = async {
        let listener = listen(address).await;
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = connection(stream, acceptor.clone(), router.clone(), graceful.watcher());
                    tokio::spawn(async move {
                        connection.await;
                        drop(slot);
                    });
                }
                // Out of file descriptors, or the client is gone already.
                Err(error) => {
                    tracing::warn!(%error, "connection to the admission server not accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let stop = async {
        stop.await;
        if ASKED.load(Ordering::Relaxed) {
            sleep(LINGER).await;
        }
    };
    tokio::select! {
        () = stop => {}
        () = accept => {}
    }
    timeout(LAST_WORDS, graceful.shutdown()).await.ok();
}

/// Only HTTP/1.1: the multiplexing of HTTP/2 would let one client open any number of requests on a connection.
fn tls(settings: &Tls, shown: Arc<Shown>) -> Option<ServerConfig> {
    let (provider, versions) = match settings.choose() {
        Ok(chosen) => chosen,
        Err(error) => {
            tracing::error!(%error, "admission server not started");
            return None;
        }
    };
    match ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions) {
        Ok(builder) => {
            let mut config = builder.with_no_client_auth().with_cert_resolver(shown);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(config)
        }
        Err(error) => {
            tracing::error!(%error, "admission server not started: TLS cannot be set up");
            None
        }
    }
}

/// An address that is taken is no reason to stop everything else.
async fn listen(address: SocketAddr) -> TcpListener {
    loop {
        let mut result = TcpListener::bind(address).await;
        if result.is_err() && address.ip().is_unspecified() {
            // A machine without IPv6.
            result = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
        }
        match result {
            Ok(listener) => {
                tracing::info!(%address, "admission server listens");
                return listener;
            }
            Err(error) => tracing::warn!(%error, %address, "admission server cannot listen; trying again"),
        }
        sleep(AGAIN).await;
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router, watcher: hyper_util::server::graceful::Watcher) {
    let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE * 6);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection to the admission server ended");
    }
}

fn router(context: Arc<Context>, shown: Arc<Shown>) -> Router {
    let ready = move || async move { if shown.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } };
    Router::new()
        .route(MUTATE_POLICIES, post(async |request: Bytes| answer(&request, async |r| Ok(judge::fill_in(r))).await))
        .route(VALIDATE, post(async |State(context): State<Arc<Context>>, body: Bytes| answer(&body, async |r| judge::ours(&context, r).await).await))
        .route(
            VALIDATE_NADS,
            post(async |State(context): State<Arc<Context>>, body: Bytes| answer(&body, async |r| judge::nad(&context, r).await).await),
        )
        .route(INJECT, post(async |State(context): State<Arc<Context>>, body: Bytes| answer(&body, async |r| judge::pod(&context, r).await).await))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(context)
}

async fn answer(body: &[u8], judge: impl AsyncFnOnce(&Request) -> Result<Answer, Unjudged>) -> Response {
    let request = match Request::parse(body) {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    ASKED.store(true, Ordering::Relaxed);
    match judge(&request).await {
        Ok(answer) => {
            let review = answer.review(&request.uid).to_string();
            ([(header::CONTENT_TYPE, "application/json")], review).into_response()
        }
        Err(error) => {
            let Request { kind, namespace, name, .. } = &request;
            tracing::warn!(%error, kind = kind.kind, namespace, name, "write not judged");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}
