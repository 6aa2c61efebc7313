//! I/O: one gRPC server a pool, on a unix socket in the kubelet's folder: the service `DevicePlugin` of the device plugin API v1beta1.
//!
//! What does not live here: which devices there are (`select`), what a container gets (`allocate`), when to look again (`run`).
//!
//! **Guarantees.** `ListAndWatch` sends the whole pool at once, then again at each difference and only then. A pool that goes away sends an
//! empty list before its stream ends. A socket is renamed into its place when it already answers, and only the instance that made it removes it.

mod socket;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{self, Stream};
use sriov_host::Host;
use sriov_host::discover;
use sriov_host::pci::PciAddress;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

pub use socket::{Identity, SocketError};

use crate::allocate::{self, Present};
use crate::api::deviceplugin_v1beta1 as api;
use crate::api::deviceplugin_v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::pool::Pool;
use crate::{device_info, kubelet};

/// What all pools of this node share.
#[derive(Debug)]
pub struct Node {
    /// The machine.
    pub host: Host,
    /// The kubelet's device plugin folder.
    pub sockets: PathBuf,
    /// The folder of device-info files.
    pub device_info: PathBuf,
}

impl Node {
    /// What is at `address` now. A device that cannot be read is one that cannot be given.
    fn look(&self, address: PciAddress) -> Option<Present> {
        if let Ok(vf) = discover::vf_location(&self.host, address) {
            return Some(Present { driver: vf.driver, iommu_group: vf.iommu_group });
        }
        let pf = discover::pf(&self.host, address).ok().flatten()?;
        Some(Present { driver: pf.driver, iommu_group: discover::iommu_group_of(&self.host, address).ok()? })
    }
}

/// The service of one pool.
struct Service {
    node: Arc<Node>,
    pool: watch::Receiver<Arc<Pool>>,
}

type Answer<T> = Result<Response<T>, Status>;
type Offers = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Offers;

    async fn get_device_plugin_options(&self, _: Request<api::Empty>) -> Answer<api::DevicePluginOptions> {
        Ok(Response::new(api::DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Answer<Offers> {
        Ok(Response::new(Box::pin(offers(self.pool.clone()))))
    }

    async fn get_preferred_allocation(&self, request: Request<api::PreferredAllocationRequest>) -> Answer<api::PreferredAllocationResponse> {
        // Not announced in the options; an empty preference leaves the choice to the kubelet.
        let containers = request.into_inner().container_requests.len();
        let none = api::ContainerPreferredAllocationResponse::default();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses: vec![none; containers] }))
    }

    async fn allocate(&self, request: Request<api::AllocateRequest>) -> Answer<api::AllocateResponse> {
        let (node, pool) = (self.node.clone(), self.pool.borrow().clone());
        let answer = tokio::task::spawn_blocking(move || allocate(&node, &pool, &request.into_inner())).await;
        answer.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }

    async fn pre_start_container(&self, _: Request<api::PreStartContainerRequest>) -> Answer<api::PreStartContainerResponse> {
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}

/// The pool now and at each change; ends after the last state of a pool that goes away.
fn offers(mut pool: watch::Receiver<Arc<Pool>>) -> impl Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send {
    pool.mark_changed();
    stream::unfold(pool, |mut pool| async move {
        pool.changed().await.ok()?;
        let offer = pool.borrow_and_update().offer();
        Some((Ok(offer), pool))
    })
}

fn allocate(node: &Node, pool: &Pool, request: &api::AllocateRequest) -> Result<api::AllocateResponse, Status> {
    let mut answer = api::AllocateResponse::default();
    for container in &request.container_requests {
        let ids = &container.devices_ids;
        let response = allocate::container(pool, ids, &|address| node.look(address)).map_err(|error| {
            tracing::warn!(pool = %pool.name, %error, "refused an allocation");
            Status::failed_precondition(error.to_string())
        })?;
        for address in ids.iter().filter_map(|id| id.parse().ok()) {
            // Multus can do without the file; the pod gets its device.
            if let Err(error) = device_info::write(&node.device_info, &pool.name, address) {
                tracing::warn!(pool = %pool.name, %error, "failed to write a device-info file");
            }
        }
        tracing::info!(pool = %pool.name, devices = %ids.join(","), "allocated");
        answer.container_responses.push(response);
    }
    Ok(answer)
}

/// A pool that is being served.
#[derive(Debug)]
pub struct Serving {
    node: Arc<Node>,
    pool: watch::Sender<Arc<Pool>>,
    path: PathBuf,
    bound: Option<Bound>,
}

/// A socket with its server.
#[derive(Debug)]
struct Bound {
    identity: Identity,
    again: Arc<Notify>,
    registrar: JoinHandle<()>,
    /// Dropped, it lets the server end when its last stream has.
    _serving: oneshot::Sender<()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.registrar.abort();
    }
}

impl Serving {
    /// A pool that nobody can see until [`Serving::ensure_bound`].
    pub fn new(node: Arc<Node>, pool: Pool) -> Self {
        let path = node.sockets.join(pool.name.socket_name());
        Self { node, pool: watch::Sender::new(Arc::new(pool)), path, bound: None }
    }

    /// The pool as it is offered.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.borrow().clone()
    }

    /// Offers `pool` from now on; true when it differs from what was offered.
    pub fn offer(&self, pool: Pool) -> bool {
        self.pool.send_if_modified(|current| {
            let differs = **current != pool;
            if differs {
                *current = Arc::new(pool);
            }
            differs
        })
    }

    /// Makes the socket, and registers it, if there is none or someone removed it. A kubelet removes all sockets when it starts. One that
    /// another instance has put in its place is left alone: during an upgrade the newer instance serves. True when the socket is new.
    pub fn ensure_bound(&mut self) -> Result<bool, SocketError> {
        if self.bound.is_some() && self.path.exists() {
            return Ok(false);
        }
        self.bound = None;
        let (listener, identity) = socket::bind(&self.path)?;
        let (serving, ended) = oneshot::channel::<()>();
        let service = Service { node: self.node.clone(), pool: self.pool.subscribe() };
        let server = tonic::transport::Server::builder().add_service(DevicePluginServer::new(service));
        let path = self.path.clone();
        tokio::spawn(async move {
            let until = async { drop(ended.await) };
            if let Err(error) = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await {
                tracing::error!(socket = %path.display(), %error, "failed to serve");
            }
        });
        let again = Arc::new(Notify::new());
        let registrar = tokio::spawn(kubelet::keep_registered(self.node.sockets.clone(), self.pool().name.clone(), again.clone()));
        self.bound = Some(Bound { identity, again, registrar, _serving: serving });
        Ok(true)
    }

    /// Registers again: there is a new kubelet.
    pub fn register_again(&self) {
        if let Some(bound) = &self.bound {
            bound.again.notify_one();
        }
    }

    /// Ends a pool that is no longer wanted: its last word is an empty list.
    pub fn retire(self) -> Result<(), SocketError> {
        let name = self.pool().name.clone();
        self.pool.send_replace(Arc::new(Pool::empty(name)));
        self.unlink()
    }

    /// Removes the socket if it is still ours, and says nothing: the next instance will offer the same.
    pub fn unlink(&self) -> Result<(), SocketError> {
        self.bound.as_ref().map_or(Ok(()), |bound| socket::remove(&self.path, &bound.identity))
    }
}

/// The folder in which a path's last part is; for a path of one part, the current folder.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
