//! I/O: being found by the kubelet: the service `Registration` of `pluginregistration/v1` on a pool's own socket in the folder
//! `plugins_registry`, which the kubelet watches. The other way, where the plugin calls the kubelet, is `kubelet`.
//!
//! Invariant: the kubelet asks at each appearance of the socket's name and at its own start, and never in between; whoever wants to be asked again
//! lets the name appear again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tonic::{Request, Response, Status};

use crate::api::pluginregistration_v1 as api;
use crate::api::pluginregistration_v1::registration_server::Registration;
use crate::metrics::Metrics;
use crate::pool::PoolName;

/// The kubelet's word for this kind of plugin (`pkg/apis/pluginregistration/v1/constants.go`).
const KIND: &str = "DevicePlugin";

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A registration that lasted this long was a good one.
const SETTLED: Duration = Duration::from_secs(3);

/// Tells the kubelet what is behind a socket.
#[derive(Debug)]
pub struct Introduction {
    /// The pool behind it.
    pub pool: PoolName,
    /// Becomes true when the kubelet has taken it.
    pub taken: watch::Sender<bool>,
    /// What the kubelet makes of it is counted here.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl Registration for Introduction {
    async fn get_info(&self, _: Request<api::InfoRequest>) -> Result<Response<api::PluginInfo>, Status> {
        // No endpoint: it is this very socket, by whatever path the kubelet sees it.
        Ok(Response::new(api::PluginInfo {
            r#type: KIND.to_owned(),
            name: self.pool.to_string(),
            endpoint: String::new(),
            supported_versions: vec![crate::kubelet::API_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<api::RegistrationStatus>,
    ) -> Result<Response<api::RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        self.metrics.registered(&self.pool, status.plugin_registered);
        if status.plugin_registered {
            self.taken.send_replace(true);
            tracing::info!(pool = %self.pool, "registered with the kubelet");
        } else {
            // It tries again by itself, with growing pauses.
            tracing::warn!(pool = %self.pool, error = %status.error, "the kubelet refused the registration");
        }
        Ok(Response::new(api::RegistrationStatusResponse {}))
    }
}

/// Lets the socket at `path` appear again at each `again`. Never returns; it is dropped with the pool.
pub async fn keep_seen(path: PathBuf, again: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let before = Instant::now();
        again.notified().await;
        pause = if before.elapsed() > SETTLED { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::time::sleep(pause).await;
        if let Err(error) = appear_again(&path) {
            tracing::warn!(socket = %path.display(), %error, "failed to let the kubelet see the socket again");
        }
    }
}

/// The kubelet takes a name that comes back for a new plugin; one that begins with a dot it does not see.
fn appear_again(path: &Path) -> std::io::Result<()> {
    let hidden = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
    fs::rename(path, &hidden)?;
    fs::rename(&hidden, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_appears_again_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "1").unwrap();
        appear_again(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(appear_again(&dir.path().join("none")).is_err());
    }
}
