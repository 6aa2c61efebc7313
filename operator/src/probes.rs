//! I/O: the two small HTTP servers of the process: `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus.
//!
//! Invariant: ready means that the process does its part: it leads with complete caches, or it waits for the lease. A process that lost its
//! watches' first lists is alive and not ready.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// The media type of the metrics' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing is known of the cluster yet.
    Starting = 0,
    /// Another leads; this one waits.
    Standby = 1,
    /// It leads and waits for its first lists.
    Listing = 2,
    /// It leads and works.
    Leading = 3,
}

/// Where the process is, as the probes see it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<AtomicU8>);

impl Health {
    /// From now on.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        match self.0.load(Ordering::Relaxed) {
            0 => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            1 => (StatusCode::OK, "standby\n"),
            2 => (StatusCode::SERVICE_UNAVAILABLE, "listing\n"),
            _ => (StatusCode::OK, "leading\n"),
        }
    }
}

/// Why a server cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error("address {given:?} must be host:port, :port, or 0 for none")]
    ReadAddress {
        /// What was given.
        given: String,
    },
    /// Not ours to listen on.
    #[error("failed to listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        cause: std::io::Error,
    },
}

/// Reads `host:port`, `:port` (all addresses), or `0` (none).
pub fn address(given: &str) -> Result<Option<SocketAddr>, Error> {
    if given == "0" || given.is_empty() {
        return Ok(None);
    }
    let whole = if given.starts_with(':') { format!("0.0.0.0{given}") } else { given.to_owned() };
    whole.parse().map(Some).map_err(|_| Error::ReadAddress { given: given.to_owned() })
}

/// Listens on each address that there is, and serves in the background as long as the process lives. Answers the addresses.
pub async fn serve(
    health_at: Option<SocketAddr>,
    metrics_at: Option<SocketAddr>,
    health: Health,
    metrics: Metrics,
) -> Result<Vec<SocketAddr>, Error> {
    let mut addresses = vec![];
    let probes = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(async move || health.ready()));
    let text = Router::new().route("/metrics", get(async move || ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics.text())));
    for (address, router) in [(health_at, probes), (metrics_at, text)] {
        let Some(address) = address else { continue };
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })?;
        addresses.push(listener.local_addr().unwrap_or(address));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, %address, "HTTP server ended");
            }
        });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn request(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn addresses_are_those_of_the_field() {
        assert_eq!(address("0").unwrap(), None);
        assert_eq!(address(":8081").unwrap().unwrap().to_string(), "0.0.0.0:8081");
        assert_eq!(address("127.0.0.1:9").unwrap().unwrap().to_string(), "127.0.0.1:9");
        assert!(address("8081").unwrap_err().to_string().contains(r#""8081" must be host:port"#));
    }

    #[tokio::test]
    async fn ready_is_who_waits_for_the_lease_or_leads_with_complete_lists() {
        let any = "127.0.0.1:0".parse().ok();
        let (health, metrics) = (Health::default(), Metrics::default());
        let [probes, text] = serve(any, any, health.clone(), metrics.clone()).await.unwrap()[..] else { panic!("two servers") };
        for (phase, code) in [(Phase::Starting, 503), (Phase::Standby, 200), (Phase::Listing, 503), (Phase::Leading, 200)] {
            health.set(phase);
            assert!(request(probes, "/readyz").await.starts_with(&format!("HTTP/1.1 {code} ")), "{phase:?}");
            assert!(request(probes, "/healthz").await.starts_with("HTTP/1.1 200 "));
        }
        metrics.leads();
        assert!(request(text, "/metrics").await.contains("sriov_operator_leader 1"));
        assert!(request(text, "/healthz").await.starts_with("HTTP/1.1 404 "));
    }
}
