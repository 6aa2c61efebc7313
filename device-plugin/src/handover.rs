//! I/O: taking a pool over from an older instance without a moment in which the kubelet counts its devices as lost.
//!
//! When a `ListAndWatch` stream ends, kubelets since 1.25 look its client up by the resource's name alone and disconnect whom they find
//! (`devicemanager/plugin/v1beta1`: `runClient`, `disconnectClient`). After a take-over that is the newer instance: its devices count as unhealthy
//! until it registers once more, and a pod that is admitted in between fails. A registration that fails while the kubelet connects takes the name
//! out of that list and changes nothing else (`connectClient`): streams, devices and allocation go on. So the newer instance lets one fail between its own
//! registration and the end of the older one, which then finds nobody to disconnect. Afterwards it registers again, so that its own end
//! is noticed.
//!
//! Invariant: a failed hand-over leaves what there was without it: the pool is disconnected for a moment and registers again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::api::deviceplugin_v1beta1 as api;
use crate::api::deviceplugin_v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::kubelet;
use crate::pool::PoolName;
use crate::socket::{self, SocketError};

/// The kubelet is given this long to notice the end of the older instance's stream, which it does not tell.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// What the kubelet writes to its log at the registration that is meant to fail.
const MEANT: &str = "not a registration: a newer instance of this device plugin has taken over, and the end of the older must not disconnect it";

/// An older instance that serves the same pool: a connection to it, which ends with it.
#[derive(Debug)]
pub struct Elder {
    connection: UnixStream,
}

/// A hand-over that could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// No socket for the registration that is to fail.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kubelet took it.
    #[error("the kubelet took a registration that was refused to it")]
    Taken,
    /// The kubelet did not get as far as asking.
    #[error("failed to let a registration fail: {reason}")]
    Unasked {
        /// What it said.
        reason: String,
    },
}

impl Elder {
    /// The instance that serves at `path`, if there is one. Must be called inside a tokio runtime, before the socket is replaced.
    pub fn at(path: &Path) -> Option<Self> {
        let connection = std::os::unix::net::UnixStream::connect(path).ok()?;
        connection.set_nonblocking(true).ok()?;
        Some(Self { connection: UnixStream::from_std(connection).ok()? })
    }

    /// Returns when it has ended. Can be dropped and called again.
    pub async fn ended(&self) {
        let mut greeting = [0; 256];
        while self.connection.readable().await.is_ok() {
            match self.connection.try_read(&mut greeting) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

/// Lets a registration of `pool` fail on purpose, so that the kubelet no longer has the pool in its list of those to be disconnected.
pub async fn detach(folder: &Path, pool: &PoolName) -> Result<(), HandoverError> {
    let name = format!(".{}", pool.socket_name());
    let path: PathBuf = folder.join(&name);
    let (listener, made) = socket::bind(&path)?;
    let (asked, was_asked) = oneshot::channel();
    let (serving, ended) = oneshot::channel::<()>();
    let refusing = DevicePluginServer::new(Refusing { asked: std::sync::Mutex::new(Some(asked)) });
    let server = tonic::transport::Server::builder().add_service(refusing);
    tokio::spawn(server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { drop(ended.await) }));
    let answer = kubelet::register(folder, pool, name, api::DevicePluginOptions::default()).await;
    drop(serving);
    socket::remove(&path, &made)?;
    match answer {
        Ok(()) => Err(HandoverError::Taken),
        Err(_) if was_asked.await.is_ok() => Ok(()),
        Err(error) => Err(HandoverError::Unasked { reason: error.to_string() }),
    }
}

/// Refuses the first question of the kubelet, and notes that it was asked.
struct Refusing {
    asked: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

type Refusal<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DevicePlugin for Refusing {
    type ListAndWatchStream = futures::stream::Empty<Result<api::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<api::Empty>) -> Refusal<api::DevicePluginOptions> {
        let asked = self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(asked) = asked {
            let _ = asked.send(());
        }
        Err(Status::failed_precondition(MEANT))
    }

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Refusal<Self::ListAndWatchStream> {
        Err(Status::failed_precondition(MEANT))
    }

    async fn get_preferred_allocation(&self, _: Request<api::PreferredAllocationRequest>) -> Refusal<api::PreferredAllocationResponse> {
        Err(Status::failed_precondition(MEANT))
    }

    async fn allocate(&self, _: Request<api::AllocateRequest>) -> Refusal<api::AllocateResponse> {
        Err(Status::failed_precondition(MEANT))
    }

    async fn pre_start_container(&self, _: Request<api::PreStartContainerRequest>) -> Refusal<api::PreStartContainerResponse> {
        Err(Status::failed_precondition(MEANT))
    }
}
