//! I/O: a stand-in for the kubelet's `PodResourcesLister`: it tells whatever pods a test says.
//!
//! What does not live here: the device manager (`kubelet`).

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use sriov_device_plugin::api::podresources_v1 as v1;
use v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};

/// Namespace and name of a pod, the resource by which it has a device, the device.
pub type Held<'a> = (&'a str, &'a str, &'a str, &'a str);

/// The service; it ends when this is dropped.
#[derive(Debug)]
pub struct PodResources {
    pods: Pods,
    _running: oneshot::Sender<()>,
}

/// What is told; `None` is an error of the kubelet.
type Pods = Arc<Mutex<Option<Vec<v1::PodResources>>>>;

impl PodResources {
    /// Serves below `root`, where a kubelet has its socket. Must be called inside a runtime.
    pub fn serve(root: &Path, held: &[Held<'_>]) -> Result<Self> {
        let folder = root.join("var/lib/kubelet/pod-resources");
        fs::create_dir_all(&folder)?;
        let listener = UnixListener::bind(folder.join("kubelet.sock")).context("listen on the socket of PodResources")?;
        let pods = Pods::default();
        let (running, ended) = oneshot::channel::<()>();
        let server = Server::builder().add_service(PodResourcesListerServer::new(Lister(Arc::clone(&pods))));
        tokio::spawn(server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { drop(ended.await) }));
        let service = Self { pods, _running: running };
        service.hold(held);
        Ok(service)
    }

    /// Tells these from now on.
    pub fn hold(&self, held: &[Held<'_>]) {
        self.tell(Some(held.iter().map(pod).collect()));
    }

    /// Answers with an error from now on.
    pub fn refuse(&self) {
        self.tell(None);
    }

    fn tell(&self, pods: Option<Vec<v1::PodResources>>) {
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }
}

fn pod((namespace, name, resource, device): &Held<'_>) -> v1::PodResources {
    let devices =
        v1::ContainerDevices { resource_name: (*resource).to_owned(), device_ids: vec![(*device).to_owned()], ..v1::ContainerDevices::default() };
    let container = v1::ContainerResources { name: "app".to_owned(), devices: vec![devices], ..v1::ContainerResources::default() };
    v1::PodResources { name: (*name).to_owned(), namespace: (*namespace).to_owned(), containers: vec![container] }
}

struct Lister(Pods);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(&self, _: Request<v1::ListPodResourcesRequest>) -> Result<Response<v1::ListPodResourcesResponse>, Status> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pod_resources = pods.ok_or_else(|| Status::unavailable("told to refuse"))?;
        Ok(Response::new(v1::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<v1::AllocatableResourcesRequest>,
    ) -> Result<Response<v1::AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks it"))
    }

    async fn get(&self, _: Request<v1::GetPodResourcesRequest>) -> Result<Response<v1::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks it"))
    }
}
