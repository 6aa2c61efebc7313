//! I/O: a stand-in for the kubelet's device manager, for the device plugin's tests: it takes registrations, connects to what registered, and
//! keeps what each resource has told.
//!
//! It does what `pkg/kubelet/cm/devicemanager` and `pkg/kubelet/pluginmanager` of Kubernetes 1.36 do, as far as a plugin can see it: at its start it removes
//! all sockets from its folder and makes `kubelet.sock`; it answers a registration only after it has connected back; it reads `ListAndWatch` until it
//! ends, and then disconnects whatever client the resource has then; a disconnected resource has no healthy devices and gives none. In the folder
//! `plugins_registry` it takes each appearance of a socket for a new plugin.
//!
//! What does not live here: giving devices to pods by itself. A test asks for an allocation.

mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use sriov_device_plugin::api::deviceplugin_v1beta1 as v1beta1;
use v1beta1::device_plugin_client::DevicePluginClient;
use v1beta1::registration_server::{Registration, RegistrationServer};

/// How long a test waits for something that should come at once.
pub const SOON: Duration = Duration::from_secs(10);

/// What one registered resource has told.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// The last registration.
    pub request: v1beta1::RegisterRequest,
    /// How often it has registered with this kubelet.
    pub registrations: usize,
    /// All device lists since the last registration, oldest first.
    pub lists: Vec<Vec<v1beta1::Device>>,
    /// `ListAndWatch` of the last registration is still open.
    pub watching: bool,
    /// It was disconnected since: nothing is allocated.
    pub stopped: bool,
}

impl Resource {
    /// Ids in the last list.
    pub fn ids(&self) -> Vec<&str> {
        self.lists.last().map(|devices| devices.iter().map(|device| device.id.as_str()).collect()).unwrap_or_default()
    }

    /// Ids in the last list that may be given to pods.
    pub fn healthy(&self) -> Vec<&str> {
        let last = self.lists.last().map(Vec::as_slice).unwrap_or_default();
        last.iter().filter(|device| device.health == "Healthy").map(|device| device.id.as_str()).collect()
    }
}

/// All resources by name (`prefix/resource`).
pub type Resources = BTreeMap<String, Resource>;

/// A client in the kubelet's list: who may be disconnected.
#[derive(Debug)]
struct Client {
    /// Ends its stream.
    disconnect: Arc<Notify>,
}

/// What the tasks of one kubelet share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    resources: watch::Sender<Resources>,
    /// By resource; a registration that fails takes the name out.
    clients: Mutex<BTreeMap<String, Client>>,
    /// How many healthy devices each resource had, at each change of it.
    history: Mutex<BTreeMap<String, Vec<usize>>>,
    /// Registrations still to be refused.
    refusals: watch::Sender<usize>,
    /// Registrations still to be refused after the plugin was connected to.
    late_refusals: watch::Sender<usize>,
}

/// A running kubelet. Dropped, it is gone, and its socket file stays, as after a kill.
#[derive(Debug)]
pub struct Kubelet {
    shared: Arc<Shared>,
    _running: oneshot::Sender<()>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        locked(&self.shared.clients).values().for_each(|client| client.disconnect.notify_one());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Kubelet {
    /// Starts a kubelet with this device plugin folder, which refuses the first `refusals` registrations.
    pub fn start(folder: &Path, refusals: usize) -> Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                fs::remove_file(entry.path())?;
            }
        }
        Self::listen(folder, refusals)
    }

    /// As [`Kubelet::start`], of a kubelet that leaves the sockets of plugins alone.
    pub fn start_without_wiping(folder: &Path) -> Result<Self> {
        let socket = folder.join("kubelet.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        Self::listen(folder, 0)
    }

    fn listen(folder: &Path, refusals: usize) -> Result<Self> {
        let listener = UnixListener::bind(folder.join("kubelet.sock")).context("listen on kubelet.sock")?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            resources: watch::Sender::new(Resources::new()),
            clients: Mutex::default(),
            history: Mutex::default(),
            refusals: watch::Sender::new(refusals),
            late_refusals: watch::Sender::new(0),
        });
        let (running, ended) = oneshot::channel::<()>();
        let server = Server::builder().add_service(RegistrationServer::new(Registrations(shared.clone())));
        tokio::spawn(server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { drop(ended.await) }));
        Ok(Self { shared, _running: running, tasks: Vec::new() })
    }

    /// Follows a folder `plugins_registry` too.
    pub fn watch_plugins(&mut self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        self.tasks.push(tokio::spawn(registry::follow(self.shared.clone(), folder.to_owned())));
        Ok(())
    }

    /// Waits until the resources are as the condition says, and gives them as they are then.
    pub async fn until(&self, condition: impl Fn(&Resources) -> bool) -> Result<Resources> {
        let mut resources = self.shared.resources.subscribe();
        let wait = resources.wait_for(|resources| condition(resources));
        if let Ok(resources) = tokio::time::timeout(SOON, wait).await {
            return Ok(resources?.clone());
        }
        bail!("the kubelet has after {SOON:?}: {:#?}", self.now())
    }

    /// As [`Kubelet::until`], of one resource that is registered.
    pub async fn until_resource(&self, name: &str, condition: impl Fn(&Resource) -> bool) -> Result<Resource> {
        let mut resources = self.until(|resources| resources.get(name).is_some_and(&condition)).await.with_context(|| format!("wait for {name}"))?;
        resources.remove(name).with_context(|| format!("{name} vanished"))
    }

    /// The resources as they are.
    pub fn now(&self) -> Resources {
        self.shared.resources.borrow().clone()
    }

    /// How many healthy devices a resource had for this kubelet, at each change of it: after each list, and none after it was disconnected.
    pub fn history(&self, name: &str) -> Vec<usize> {
        locked(&self.shared.history).get(name).cloned().unwrap_or_default()
    }

    /// Refuses this many registrations after it has connected to the plugin.
    pub fn refuse_late(&self, refusals: usize) {
        self.shared.late_refusals.send_replace(refusals);
    }

    /// Late refusals that are still to come.
    pub fn late_refusals_left(&self) -> usize {
        *self.shared.late_refusals.borrow()
    }

    /// Registrations that are still to be refused.
    pub fn refusals_left(&self) -> usize {
        *self.shared.refusals.borrow()
    }

    /// A connection of its own to the resource's plugin.
    pub async fn plugin(&self, name: &str) -> Result<DevicePluginClient<Channel>, Status> {
        let resource = self.now().remove(name).ok_or_else(|| Status::not_found(format!("{name} is not registered")))?;
        if resource.stopped {
            return Err(Status::unavailable(format!("the endpoint of {name} is stopped")));
        }
        let endpoint = resource.request.endpoint;
        connect(&self.shared.folder.join(endpoint)).await.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Which of these the plugin would take for one container.
    pub async fn preferred(&self, name: &str, available: &[&str], size: i32) -> Result<Vec<String>, Status> {
        let available_device_i_ds = available.iter().map(ToString::to_string).collect();
        let container = v1beta1::ContainerPreferredAllocationRequest { available_device_i_ds, allocation_size: size, ..Default::default() };
        let request = v1beta1::PreferredAllocationRequest { container_requests: vec![container] };
        let answer = self.plugin(name).await?.get_preferred_allocation(request).await?.into_inner();
        answer
            .container_responses
            .into_iter()
            .next()
            .map(|container| container.device_i_ds)
            .ok_or_else(|| Status::internal("no answer for the container"))
    }

    /// Asks the resource's plugin for these devices for one container.
    pub async fn allocate(&self, name: &str, ids: &[&str]) -> Result<v1beta1::ContainerAllocateResponse, Status> {
        let mut plugin = self.plugin(name).await?;
        let devices_ids = ids.iter().map(ToString::to_string).collect();
        let request = v1beta1::AllocateRequest { container_requests: vec![v1beta1::ContainerAllocateRequest { devices_ids }] };
        let mut answers = plugin.allocate(request).await?.into_inner().container_responses;
        answers.pop().filter(|_| answers.is_empty()).ok_or_else(|| Status::internal("expected one answer for one container"))
    }
}

async fn connect(socket: &Path) -> Result<DevicePluginClient<Channel>> {
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?.connect().await?;
    Ok(DevicePluginClient::new(channel))
}

/// The service on `kubelet.sock`.
struct Registrations(Arc<Shared>);

#[tonic::async_trait]
impl Registration for Registrations {
    async fn register(&self, request: Request<v1beta1::RegisterRequest>) -> Result<Response<v1beta1::Empty>, Status> {
        let request = request.into_inner();
        let refused = self.0.refusals.send_if_modified(|left| {
            let refuse = *left > 0;
            *left = left.saturating_sub(1);
            refuse
        });
        if refused {
            return Err(Status::unavailable("not now"));
        }
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument(format!("version {} is not v1beta1", request.version)));
        }
        self.0.connect_client(request).await.map(|()| Response::new(v1beta1::Empty {}))
    }
}

impl Shared {
    /// `connectClient`: the name is in the list before the connection is made, and out of it when that fails.
    async fn connect_client(self: &Arc<Self>, request: v1beta1::RegisterRequest) -> Result<(), Status> {
        let name = request.resource_name.clone();
        let disconnect = Arc::new(Notify::new());
        locked(&self.clients).insert(name.clone(), Client { disconnect: disconnect.clone() });
        match self.connected(request).await {
            Ok((number, plugin)) => drop(tokio::spawn(run_client(self.clone(), name, number, plugin, disconnect))),
            Err(status) => {
                locked(&self.clients).remove(&name);
                return Err(status);
            }
        }
        Ok(())
    }

    /// `PluginConnected`: from here on the resource has a new endpoint.
    async fn connected(&self, request: v1beta1::RegisterRequest) -> Result<(usize, DevicePluginClient<Channel>), Status> {
        let name = request.resource_name.clone();
        let mut plugin = connect(&self.folder.join(&request.endpoint)).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let options = plugin.get_device_plugin_options(v1beta1::Empty {}).await?.into_inner();
        if options.pre_start_required {
            return Err(Status::unimplemented("this kubelet does not offer it"));
        }
        if request.options.as_ref().is_some_and(|told| *told != options) {
            return Err(Status::invalid_argument(format!("{options:?} were told, {:?} at the registration", request.options)));
        }
        let late = self.late_refusals.send_if_modified(|left| {
            let refuse = *left > 0;
            *left = left.saturating_sub(1);
            refuse
        });
        if late {
            return Err(Status::aborted("not after all"));
        }
        let mut number = 0;
        self.resources.send_modify(|resources| {
            let resource = resources.entry(name).or_default();
            number = resource.registrations + 1;
            *resource = Resource { request, registrations: number, lists: Vec::new(), watching: true, stopped: false };
        });
        Ok((number, plugin))
    }

    /// `disconnectClient`: whoever is in the list under this name.
    fn disconnect(&self, name: &str) {
        let Some(client) = locked(&self.clients).remove(name) else { return };
        client.disconnect.notify_one();
        self.note(name, 0);
        self.resources.send_modify(|resources| {
            if let Some(resource) = resources.get_mut(name) {
                resource.stopped = true;
            }
        });
    }

    fn note(&self, name: &str, healthy: usize) {
        locked(&self.history).entry(name.to_owned()).or_default().push(healthy);
    }
}

/// `runClient`: follows `ListAndWatch` to its end. What an earlier registration still tells is not shown to tests, and counts all the same.
async fn run_client(shared: Arc<Shared>, name: String, number: usize, mut plugin: DevicePluginClient<Channel>, disconnect: Arc<Notify>) {
    let tell = |change: &dyn Fn(&mut Resource)| {
        shared.resources.send_modify(|resources| {
            if let Some(resource) = resources.get_mut(&name).filter(|resource| resource.registrations == number) {
                change(resource);
            }
        });
    };
    if let Ok(answer) = plugin.list_and_watch(v1beta1::Empty {}).await {
        let mut lists = answer.into_inner();
        loop {
            let list = tokio::select! {
                list = lists.message() => list,
                () = disconnect.notified() => break,
            };
            let Ok(Some(list)) = list else { break };
            shared.note(&name, list.devices.iter().filter(|device| device.health == "Healthy").count());
            tell(&|resource| resource.lists.push(list.devices.clone()));
        }
    }
    tell(&|resource| resource.watching = false);
    shared.disconnect(&name);
}
