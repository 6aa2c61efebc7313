//! I/O: telling the kubelet of a pool: the call `Register` on `kubelet.sock` (device plugin API v1beta1, "legacy" registration).
//!
//! What does not live here: finding out that the kubelet is a new one (`run`), what an older instance needs (`handover`), being found by the kubelet
//! (`watcher`).
//!
//! Invariant: a pool is registered until the kubelet has taken it: refused or unanswered calls are repeated with growing pauses, and without a
//! kubelet there is nothing to repeat, only to wait for its socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tonic::transport::Endpoint;

use crate::api::deviceplugin_v1beta1::registration_client::RegistrationClient;
use crate::api::deviceplugin_v1beta1::{DevicePluginOptions, RegisterRequest};
use crate::handover::{self, Elder};
use crate::metrics::Metrics;
use crate::pool::PoolName;

/// The name of the kubelet's socket in its device plugin folder (`deviceplugin/v1beta1/constants.go`).
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// The version of the device plugin API that is spoken here.
pub const API_VERSION: &str = "v1beta1";

/// The kubelet answers only after it has connected to the pool's socket, for which it takes up to 10 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A registration that lasted this long was a good one.
const SETTLED: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A registration that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Nobody listens on the socket.
    #[error("failed to connect to {}: {}", path.display(), root_cause(cause))]
    Connect {
        /// The kubelet's socket.
        path: PathBuf,
        /// Why.
        cause: tonic::transport::Error,
    },
    /// The kubelet said no, or nothing.
    #[error("the kubelet refused: {} ({:?})", status.message(), status.code())]
    Refused {
        /// Its answer.
        status: Box<tonic::Status>,
    },
}

/// tonic's own text is only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Keeps a pool registered with the kubelet.
pub struct Registrar<F> {
    /// The folder with the kubelet's socket and the pool's.
    pub folder: PathBuf,
    /// The pool.
    pub pool: PoolName,
    /// The options that the pool has now.
    pub options: F,
    /// A reason to register again.
    pub again: Arc<Notify>,
    /// Becomes true when a kubelet has taken the pool and an older instance may end.
    pub taken: watch::Sender<bool>,
    /// What happens is counted here.
    pub metrics: Arc<Metrics>,
}

impl<F: Fn() -> DevicePluginOptions> Registrar<F> {
    /// Registers with the kubelet whose socket is in the folder, and again after each `again`, each time with the options that the pool has then. From
    /// an `elder` it takes over. Never returns; it is dropped with the pool.
    pub async fn run(self, mut elder: Option<Elder>) {
        let pool = &self.pool;
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = register(&self.folder, pool, pool.socket_name(), (self.options)()).await;
            self.metrics.registered(pool, answer.is_ok());
            match answer {
                Ok(()) => {
                    tracing::info!(%pool, "registered with the kubelet");
                    let taken = Instant::now();
                    self.until_again(&mut elder).await;
                    if taken.elapsed() > SETTLED {
                        pause = FIRST_PAUSE;
                    } else {
                        // A kubelet that ends each stream at once must not keep the processor busy.
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
                Err(error) if !self.folder.join(KUBELET_SOCKET).exists() => {
                    tracing::info!(%pool, %error, "waiting for the kubelet");
                    self.again.notified().await;
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    tracing::warn!(%pool, %error, "failed to register with the kubelet, trying again");
                    match tokio::time::timeout(pause, self.again.notified()).await {
                        Ok(()) => pause = FIRST_PAUSE,
                        Err(_elapsed) => pause = (pause * 2).min(LONGEST_PAUSE),
                    }
                }
            }
        }
    }

    /// Returns when there is a reason to register again; the end of an older instance is one.
    async fn until_again(&self, elder: &mut Option<Elder>) {
        let Some(older) = elder else {
            self.taken.send_replace(true);
            return self.again.notified().await;
        };
        match handover::detach(&self.folder, &self.pool).await {
            Ok(()) => tracing::info!(pool = %self.pool, "taking over from an older instance"),
            Err(error) => {
                tracing::warn!(pool = %self.pool, %error, "an older instance will take the pool from the kubelet for a moment when it ends");
            }
        }
        self.taken.send_replace(true);
        tokio::select! {
            () = older.ended() => *elder = None,
            () = self.again.notified() => return,
        }
        tracing::info!(pool = %self.pool, "the older instance has ended");
        // Being told earlier means that the kubelet has ended the stream after all.
        let _ = tokio::time::timeout(handover::NOTICED_WITHIN, self.again.notified()).await;
    }
}

/// One call `Register` for `pool` at the socket `endpoint` of the folder.
pub(crate) async fn register(folder: &Path, pool: &PoolName, endpoint: String, options: DevicePluginOptions) -> Result<(), RegisterError> {
    let path = folder.join(KUBELET_SOCKET);
    let connect = |cause| RegisterError::Connect { path: path.clone(), cause };
    let channel =
        Endpoint::from_shared(format!("unix:{}", path.display())).map_err(connect)?.timeout(ANSWER_WITHIN).connect().await.map_err(connect)?;
    let request = RegisterRequest { version: API_VERSION.to_owned(), endpoint, resource_name: pool.to_string(), options: Some(options) };
    let answer = RegistrationClient::new(channel).register(request).await;
    answer.map(drop).map_err(|status| RegisterError::Refused { status: Box::new(status) })
}
