//! I/O: the Secret with the certificates: made when it is not there, moved on in time, and followed, so that every replica shows what is in it
//! now. Any replica may write; the API server lets one of two through.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{PostParams, ResourceExt};
use kube::runtime::watcher;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::certificates::{self, Decision, Subject};
use crate::cache::{Cache, Key};

/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// Clocks are set now and then, so that a far time is looked at again earlier.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// The certificate that is shown to new connections; running ones are not touched.
#[derive(Debug, Default)]
pub(super) struct Shown(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Shown {
    /// True once there is one.
    pub(super) fn is_ready(&self) -> bool {
        self.0.load().is_some()
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
    #[error("failed to write Secret {name}: {cause}")]
    Write { name: String, cause: kube::Error },
}

/// Follows and writes the Secret; ends only by being dropped.
pub(super) async fn run(client: kube::Client, subject: &Subject, shown: &Shown) {
    let api: Api<Secret> = Api::namespaced(client, &subject.namespace);
    let cache = Cache::default();
    let changed = Notify::new();
    let only = watcher::Config::default().fields(&format!("metadata.name={}", subject.secret));
    let follow = cache.watch(api.clone(), only, |_| changed.notify_one());
    let keep = async {
        cache.ready().await;
        loop {
            let there = cache.get(&Key::new(&subject.namespace, &subject.secret));
            let wait = step(&api, subject, there.as_deref(), shown).await.unwrap_or_else(|error| {
                tracing::warn!(%error, secret = subject.secret, "no usable certificate for the admission server; trying again");
                AGAIN
            });
            // Whichever comes first.
            timeout(wait, changed.notified()).await.ok();
        }
    };
    futures::join!(follow, keep);
}

/// Shows what is there, writes if it is time; answers when to look again.
async fn step(api: &Api<Secret>, subject: &Subject, there: Option<&Secret>, shown: &Shown) -> Result<Duration, Error> {
    let now = Timestamp::now();
    match subject.decide(there, now)? {
        Decision::Keep(until) => {
            if let Some(secret) = there {
                shown.0.store(Some(certificates::certified_key(secret)?));
            }
            let left = until.and_then(|until| Duration::try_from(until.duration_since(now)).ok()).unwrap_or(LONGEST_WAIT);
            Ok(left.min(LONGEST_WAIT))
        }
        Decision::Write(secret) => {
            let params = PostParams { field_manager: Some(sriov_crds::keys::FIELD_MANAGER.to_owned()), ..PostParams::default() };
            let written = match there {
                None => api.create(&params, &secret).await,
                Some(there) => api.replace(&there.name_any(), &params, &secret).await,
            };
            match written {
                Ok(_) => tracing::info!(secret = subject.secret, "certificates of the admission server written"),
                // Another replica was faster; the watch tells.
                Err(kube::Error::Api(status)) if status.code == 409 => sleep(Duration::from_millis(100)).await,
                Err(cause) => return Err(Error::Write { name: subject.secret.clone(), cause }),
            }
            Ok(AGAIN)
        }
    }
}
