//! I/O: `/metrics` and `/healthz`. A scrape reads the counters of the VFs at that moment; nothing is read while nobody asks.
//!
//! What does not live here: what the text looks like (`metrics`).
//!
//! Invariant: what cannot be read is missing in the answer, and never keeps the rest from being told or a device from being given.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use sriov_host::Host;
use sriov_host::function::{self, NETWORK_CLASS};
use sriov_host::netlink::Route;
use sriov_host::pci::PciAddress;
use sriov_host::vf::{VfCounters, VfIndex};
use tokio::net::{TcpListener, TcpSocket};

use crate::metrics::{Metrics, VfSample};
use crate::pod_resources::{Owner, PodResources};

/// Connections that wait to be taken; those of a few scrapers.
const BACKLOG: u32 = 16;

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The machine.
    pub host: Host,
    /// The counters of this process.
    pub metrics: Arc<Metrics>,
    /// The kubelet, to tell pods.
    pub pods: Option<PodResources>,
}

/// Listens on `address`, also while an older instance of this program does: the newer one answers alone when that has ended.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers on `listener` until the process ends.
pub async fn serve(listener: TcpListener, sources: Sources) -> io::Result<()> {
    let router = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/metrics", get(metrics)).with_state(sources);
    axum::serve(listener, router).await
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let owners = match &sources.pods {
        Some(pods) => pods.owners().await.unwrap_or_else(|status| {
            tracing::debug!(error = status.message(), "the kubelet does not tell which pods have which devices");
            BTreeMap::new()
        }),
        None => BTreeMap::new(),
    };
    let host = sources.host.clone();
    let vfs = tokio::task::spawn_blocking(move || samples(&host, owners)).await.unwrap_or_default();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], sources.metrics.render(&vfs))
}

/// All VFs of the machine with their counters and owners.
fn samples(host: &Host, owners: BTreeMap<(String, String), Owner>) -> Vec<VfSample> {
    let owners: BTreeMap<String, Owner> = owners.into_iter().map(|((_, id), owner)| (id, owner)).collect();
    let functions = function::scan(host, &[NETWORK_CLASS]).map(|scan| scan.functions).unwrap_or_default();
    let route = Route::open().ok();
    let links = route.as_ref().and_then(|route| route.links().ok()).unwrap_or_default();
    let mut of_pf: BTreeMap<PciAddress, (String, BTreeMap<VfIndex, VfCounters>)> = BTreeMap::new();
    for (address, function) in functions.iter().filter(|(_, function)| function.numvfs > 0) {
        let link = sriov_host::netlink::route::uplink(links.iter().filter(|link| link.parent == Some(*address)));
        let counters = route.as_ref().zip(link).and_then(|(route, link)| route.vf_counters(link.netdev.ifindex).ok()).unwrap_or_default();
        let name = link.map(|link| link.netdev.name.clone()).or_else(|| function.netdevs.first().cloned()).unwrap_or_default();
        of_pf.insert(*address, (name, counters.into_iter().collect()));
    }
    let sample = |(address, function): (&PciAddress, &function::Function)| {
        let (pf, index) = function.vf_of?;
        let (name, counters) = of_pf.get(&pf)?;
        Some(VfSample {
            pf: name.clone(),
            vf: index.0,
            address: Some(*address),
            numa_node: function.numa_node,
            owner: owners.get(&address.to_string()).cloned(),
            counters: counters.get(&index).copied(),
            of_driver: function::vf_stats(host, pf, index),
            rdma: function::rdma_counters(host, *address, &function.rdma),
        })
    };
    functions.iter().filter_map(sample).collect()
}
