//! I/O: the HTTP side: `/metrics`, `/healthz`, `/readyz`, and a count of the requests that go to the API server.
//!
//! What does not live here: what is counted (`metrics`).
//!
//! Invariant: an answer takes no lock that work on the machine holds, so a probe is answered while VFs are made.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// What Prometheus expects of an OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("failed to listen on {address} for /metrics, /healthz and /readyz (--http-bind-address): {cause}")]
    Bind {
        /// As given.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Afterwards.
    #[error("failed to serve /metrics, /healthz and /readyz: {0}")]
    Serve(std::io::Error),
}

/// Serves until it fails.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address).await.map_err(|cause| ServeError::Bind { address, cause })?;
    axum::serve(listener, router(metrics)).await.map_err(ServeError::Serve)
}

fn router(metrics: Arc<Metrics>) -> Router {
    let text = async |State(metrics): State<Arc<Metrics>>| ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.text());
    let health = async |State(metrics): State<Arc<Metrics>>| answer(!metrics.is_stuck(), "work on the machine takes longer than any step may");
    let ready = async |State(metrics): State<Arc<Metrics>>| answer(metrics.is_ready(), "the machine was not looked at yet");
    Router::new().route("/metrics", get(text)).route("/healthz", get(health)).route("/readyz", get(ready)).with_state(metrics)
}

fn answer(good: bool, otherwise: &'static str) -> impl IntoResponse {
    if good { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, otherwise) }
}

/// Puts the count around a client.
#[derive(Clone, Debug)]
pub struct CountRequests(pub Arc<Metrics>);

/// A client that is counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: Arc::clone(&self.0) }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let method = request.method().as_str();
        self.metrics.request(if watch {
            "watch"
        } else if method == "POST" {
            "create"
        } else if method == "PATCH" {
            "patch"
        } else {
            "get"
        });
        self.inner.call(request)
    }
}
