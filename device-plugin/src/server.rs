//! I/O: one gRPC server a pool, on a unix socket in the kubelet's folder: the service `DevicePlugin` of the device plugin API v1beta1.
//!
//! What does not live here: which devices there are (`select`), what a container gets (`allocate`), when to look again (`run`).
//!
//! **Guarantees.** `ListAndWatch` sends the whole pool at once, then again at each difference and only then. A pool that goes away sends an
//! empty list before its stream ends. A socket is renamed into its place when it already answers, and only the instance that made it removes it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use futures::stream::{self, Stream};
use sriov_host::Host;
use sriov_host::auxiliary;
use sriov_host::function;
use sriov_host::pci::PciAddress;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::allocate::{self, AllocateError, Grant, Granted};
use crate::api::deviceplugin_v1beta1 as api;
use crate::api::deviceplugin_v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::api::pluginregistration_v1::registration_server::RegistrationServer;
use crate::authority::Named;
use crate::claims::Claims;
use crate::handover::Elder;
use crate::kubelet::Registrar;
use crate::metrics::Metrics;
use crate::pool::{Health, Pool};
use crate::socket::{self, Identity, SocketError};
use crate::watch::FolderWatch;
use crate::watcher::{self, Introduction};
use crate::{cdi, device_info, prefer};
use sriov_host::device_id::DeviceId;

/// How long an allocation waits for the pod that had a device to give it back. The kubelet gives a device away when a pod's containers have ended,
/// which can be before its network is taken down.
const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// What all pools of this node share.
#[derive(Debug)]
pub struct Node {
    /// The machine.
    pub host: Host,
    /// The kubelet's folder for the pools' sockets.
    pub sockets: PathBuf,
    /// That folder is `plugins_registry`: the kubelet finds the sockets by itself and asks what they are.
    pub found_by_kubelet: bool,
    /// The folder of device-info files.
    pub device_info: PathBuf,
    /// The folder of CDI specs; `None`: device nodes are given one by one.
    pub cdi: Option<PathBuf>,
    /// Taken while a CDI spec is written.
    pub cdi_writes: Mutex<()>,
    /// Who has which VF.
    pub claims: Claims,
    /// What happens is counted here.
    pub metrics: Arc<Metrics>,
}

impl Node {
    /// How a device is used now. A device that cannot be read is one that cannot be given.
    fn look(&self, id: &DeviceId) -> Option<function::Access> {
        let found = match id {
            DeviceId::Pci(address) => function::access(&self.host, *address),
            DeviceId::Sf(name) => auxiliary::access(&self.host, *name),
        };
        found.ok().flatten()
    }

    /// Brings the pool's CDI spec in line with its devices. What a device needs that cannot be given now is told at its allocation.
    pub fn write_cdi(&self, pool: &Pool) {
        let Some(folder) = &self.cdi else { return };
        // An offer and an allocation may write at the same time.
        let _one_at_a_time = self.cdi_writes.lock().unwrap_or_else(PoisonError::into_inner);
        let healthy = pool.devices.iter().filter(|(_, device)| device.health == Health::Healthy);
        let granted = |(id, _): (&DeviceId, _)| allocate::container(pool, &[id.to_string()], &|id| self.look(id)).ok();
        let devices: Vec<Granted> = healthy.filter_map(granted).flat_map(|grant| grant.devices).collect();
        if let Err(error) = cdi::write(folder, &pool.name, &devices) {
            tracing::error!(pool = %pool.name, %error, "failed to write the CDI spec");
        }
    }
}

/// The service of one pool.
struct Service {
    node: Arc<Node>,
    pool: watch::Receiver<Arc<Pool>>,
    streams: Streams,
}

/// The `ListAndWatch` streams of one socket. When the newest one ends, the pool registers again: the kubelet has disconnected it, and says so in no other
/// way. An older one may stay open beside it: both tell the same.
#[derive(Clone, Debug)]
struct Streams {
    newest: Arc<AtomicU64>,
    again: Arc<Notify>,
}

/// One open stream, with its number.
struct OpenStream(Streams, u64);

impl Streams {
    fn open(&self) -> OpenStream {
        let number = self.newest.fetch_add(1, Ordering::AcqRel) + 1;
        OpenStream(self.clone(), number)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.newest.load(Ordering::Acquire) == self.1 {
            self.0.again.notify_one();
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Offers = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Offers;

    async fn get_device_plugin_options(&self, _: Request<api::Empty>) -> Answer<api::DevicePluginOptions> {
        Ok(Response::new(options(&self.pool.borrow())))
    }

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Answer<Offers> {
        Ok(Response::new(Box::pin(offers(self.pool.clone(), self.streams.open()))))
    }

    async fn get_preferred_allocation(&self, request: Request<api::PreferredAllocationRequest>) -> Answer<api::PreferredAllocationResponse> {
        let pool = self.pool.borrow().clone();
        let choose = |request: &api::ContainerPreferredAllocationRequest| api::ContainerPreferredAllocationResponse {
            device_i_ds: prefer::choose(
                &pool,
                &request.available_device_i_ds,
                &request.must_include_device_i_ds,
                usize::try_from(request.allocation_size).unwrap_or_default(),
            ),
        };
        let container_responses = request.into_inner().container_requests.iter().map(choose).collect();
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<api::AllocateRequest>) -> Answer<api::AllocateResponse> {
        let (node, pool, request) = (self.node.clone(), self.pool.borrow().clone(), request.into_inner());
        let ids: Vec<PciAddress> =
            request.container_requests.iter().flat_map(|request| &request.devices_ids).filter_map(|id| id.parse().ok()).collect();
        let answer = match returned(&node, &pool, &ids).await {
            Ok(()) => {
                let (node, pool) = (node.clone(), pool.clone());
                let answer = tokio::task::spawn_blocking(move || allocate(&node, &pool, &request)).await;
                answer.map_err(|error| Status::internal(error.to_string()))?
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => Ok(Response::new(answer)),
            Err(error) => {
                tracing::warn!(pool = %pool.name, %error, "refused an allocation");
                node.metrics.refused(&pool.name, error.reason());
                Err(Status::failed_precondition(error.to_string()))
            }
        }
    }

    async fn pre_start_container(&self, _: Request<api::PreStartContainerRequest>) -> Answer<api::PreStartContainerResponse> {
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}

/// The pool now and at each change; ends after the last state of a pool that goes away.
fn offers(mut pool: watch::Receiver<Arc<Pool>>, open: OpenStream) -> impl Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send {
    pool.mark_changed();
    stream::unfold((pool, open), |(mut pool, open)| async move {
        pool.changed().await.ok()?;
        let offer = pool.borrow_and_update().offer();
        Some((Ok(offer), (pool, open)))
    })
}

fn options(pool: &Pool) -> api::DevicePluginOptions {
    api::DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: pool.preference.is_some() }
}

/// Waits until no pod has any of these VFs, or too long.
async fn returned(node: &Node, pool: &Pool, addresses: &[PciAddress]) -> Result<(), AllocateError> {
    let held = || addresses.iter().find_map(|address| Some((*address, node.claims.holder(*address)?)));
    let Some((address, by)) = held() else { return Ok(()) };
    tracing::info!(pool = %pool.name, device = %address, %by, "waiting for a device to be given back");
    let deadline = tokio::time::Instant::now() + RETURN_WITHIN;
    let Ok(mut journals) = FolderWatch::start(&node.claims.journals()) else {
        return Err(AllocateError::RefuseHeld { address: address.into(), pool: pool.name.clone(), by });
    };
    while let Some((address, by)) = held() {
        match tokio::time::timeout_at(deadline, journals.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(AllocateError::RefuseHeld { address: address.into(), pool: pool.name.clone(), by }),
        }
    }
    Ok(())
}

fn allocate(node: &Node, pool: &Pool, request: &api::AllocateRequest) -> Result<api::AllocateResponse, AllocateError> {
    let mut answer = api::AllocateResponse::default();
    for container in &request.container_requests {
        let ids = &container.devices_ids;
        let grant = allocate::container(pool, ids, &|id| node.look(id))?;
        for granted in grant.devices.iter().filter(|_| pool.has_device_info) {
            // Multus can do without the file; the pod gets its device.
            if let Err(error) = device_info::write(&node.device_info, &pool.name, granted) {
                tracing::warn!(pool = %pool.name, %error, "failed to write a device-info file");
            }
        }
        // Groups and nodes may have other numbers than when the spec was written.
        if node.cdi.as_ref().is_some_and(|folder| !cdi::holds(folder, &pool.name, &grant.devices)) {
            node.write_cdi(pool);
        }
        tracing::info!(pool = %pool.name, devices = %ids.join(","), "allocated");
        node.metrics.allocated(&pool.name);
        answer.container_responses.push(response(pool, grant, node.cdi.is_some()));
    }
    Ok(answer)
}

/// The kubelet's form of a grant: with CDI the runtime adds the nodes by the devices' names, else the kubelet does.
fn response(pool: &Pool, grant: Grant, by_cdi: bool) -> api::ContainerAllocateResponse {
    let mut response = api::ContainerAllocateResponse::default();
    if by_cdi {
        let with_nodes = grant.devices.iter().filter(|granted| !granted.nodes.is_empty());
        response.cdi_devices = with_nodes.map(|granted| api::CdiDevice { name: cdi::device_name(&pool.name, &granted.address) }).collect();
    } else {
        let node = |node: &allocate::Node| api::DeviceSpec {
            container_path: node.container.clone(),
            host_path: node.host.clone(),
            permissions: "rw".to_owned(),
        };
        response.devices = grant.nodes().into_iter().map(node).collect();
    }
    response.envs = grant.envs;
    response
}

/// A pool that is being served.
#[derive(Debug)]
pub struct Serving {
    node: Arc<Node>,
    pool: watch::Sender<Arc<Pool>>,
    path: PathBuf,
    taken: watch::Sender<bool>,
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
        node.write_cdi(&pool);
        Self { node, pool: watch::Sender::new(Arc::new(pool)), path, taken: watch::Sender::new(false), bound: None }
    }

    /// The pool as it is offered.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.borrow().clone()
    }

    /// Offers `pool` from now on; true when it differs from what was offered.
    pub fn offer(&self, pool: Pool) -> bool {
        let before = self.pool();
        if *before == pool {
            return false;
        }
        self.node.write_cdi(&pool);
        let other_options = options(&before) != options(&pool);
        self.pool.send_replace(Arc::new(pool));
        // The kubelet learns of options only when a pool registers.
        if other_options {
            self.register_again();
        }
        true
    }

    /// Makes the socket, and registers it, if there is none or someone removed it. A kubelet removes all sockets when it starts. One that
    /// another instance has put in its place is left alone: during an upgrade the newer instance serves. True when the socket is new.
    pub fn ensure_bound(&mut self) -> Result<bool, SocketError> {
        if self.bound.is_some() && self.path.exists() {
            return Ok(false);
        }
        self.bound = None;
        let elder = Elder::at(&self.path).filter(|_| !self.node.found_by_kubelet);
        let (listener, identity) = socket::bind(&self.path)?;
        let (serving, ended) = oneshot::channel::<()>();
        let again = Arc::new(Notify::new());
        let streams = Streams { newest: Arc::default(), again: again.clone() };
        let service = Service { node: self.node.clone(), pool: self.pool.subscribe(), streams };
        let (pool, metrics) = (self.pool().name.clone(), self.node.metrics.clone());
        let taken = self.taken.clone();
        let introduction = self.node.found_by_kubelet.then(|| Introduction { pool: pool.clone(), taken: taken.clone(), metrics: metrics.clone() });
        let server = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(service))
            .add_optional_service(introduction.map(RegistrationServer::new));
        let path = self.path.clone();
        let found_by_kubelet = self.node.found_by_kubelet;
        tokio::spawn(async move {
            let (until, incoming) = (async { drop(ended.await) }, UnixListenerStream::new(listener));
            let outcome = if found_by_kubelet {
                server.serve_with_incoming_shutdown(incoming.map_ok(Named::from), until).await
            } else {
                server.serve_with_incoming_shutdown(incoming, until).await
            };
            if let Err(error) = outcome {
                tracing::error!(socket = %path.display(), %error, "failed to serve");
            }
        });
        let registrar = if self.node.found_by_kubelet {
            tokio::spawn(watcher::keep_seen(self.path.clone(), again.clone()))
        } else {
            let offered = self.pool.subscribe();
            let options = move || options(&offered.borrow());
            tokio::spawn(Registrar { folder: self.node.sockets.clone(), pool, options, again: again.clone(), taken, metrics }.run(elder))
        };
        self.bound = Some(Bound { identity, again, registrar, _serving: serving });
        Ok(true)
    }

    /// Becomes true when a kubelet has taken the pool for the first time.
    pub fn taken(&self) -> watch::Receiver<bool> {
        self.taken.subscribe()
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
