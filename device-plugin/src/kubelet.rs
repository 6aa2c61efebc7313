//! I/O: telling the kubelet of a pool: the call `Register` on `kubelet.sock` (device plugin API v1beta1, "legacy" registration).
//!
//! What does not live here: finding out that the kubelet is a new one (`run`).
//!
//! Invariant: a pool is registered until the kubelet has taken it: refused or unanswered calls are repeated with growing pauses, and without a
//! kubelet there is nothing to repeat, only to wait for its socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::transport::Endpoint;

use crate::api::deviceplugin_v1beta1::registration_client::RegistrationClient;
use crate::api::deviceplugin_v1beta1::{DevicePluginOptions, RegisterRequest};
use crate::metrics::Metrics;
use crate::pool::PoolName;

/// The name of the kubelet's socket in its device plugin folder (`deviceplugin/v1beta1/constants.go`).
pub const KUBELET_SOCKET: &str = "kubelet.sock";
const API_VERSION: &str = "v1beta1";

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

/// Registers `pool` with the kubelet whose socket is in `folder`, and again after each `again`, each time with the options that it has then. Never
/// returns; it is dropped with the pool.
pub async fn keep_registered(folder: PathBuf, pool: PoolName, options: impl Fn() -> DevicePluginOptions, again: Arc<Notify>, metrics: Arc<Metrics>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = register(&folder, &pool, options()).await;
        metrics.registered(&pool, answer.is_ok());
        match answer {
            Ok(()) => {
                tracing::info!(%pool, "registered with the kubelet");
                let taken = Instant::now();
                again.notified().await;
                if taken.elapsed() > SETTLED {
                    pause = FIRST_PAUSE;
                } else {
                    // A kubelet that ends each stream at once must not keep the processor busy.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            Err(error) if !folder.join(KUBELET_SOCKET).exists() => {
                tracing::info!(%pool, %error, "waiting for the kubelet");
                again.notified().await;
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                tracing::warn!(%pool, %error, "failed to register with the kubelet, trying again");
                match tokio::time::timeout(pause, again.notified()).await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(_elapsed) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            }
        }
    }
}

async fn register(folder: &Path, pool: &PoolName, options: DevicePluginOptions) -> Result<(), RegisterError> {
    let path = folder.join(KUBELET_SOCKET);
    let connect = |cause| RegisterError::Connect { path: path.clone(), cause };
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).map_err(connect)?.timeout(ANSWER_WITHIN);
    let channel = endpoint.connect().await.map_err(connect)?;
    let request =
        RegisterRequest { version: API_VERSION.to_owned(), endpoint: pool.socket_name(), resource_name: pool.to_string(), options: Some(options) };
    let answer = RegistrationClient::new(channel).register(request).await;
    answer.map(drop).map_err(|status| RegisterError::Refused { status: Box::new(status) })
}
