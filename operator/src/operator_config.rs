//! I/O: the operator configuration -> the node DaemonSet. `gather -> validate -> build -> apply -> report`, as five functions; the DaemonSet
//! itself is built in `daemon_set` (pure).
//!
//! Without an operator configuration the defaults hold and the DaemonSet has no owner. Invariant: the DaemonSet's selector is the one that
//! `node_policy` uses, so that a node has a daemon exactly when it has a node state.

mod daemon_set;

use std::fmt;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::Resource;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use sriov_crds::conditions::{self, Outcome, operator_config as reason};
use sriov_crds::{SriovOperatorConfig, SriovOperatorConfigSpec, keys};

use crate::cache::{Cache, Change, Key};
use crate::context::Context;
use crate::queue::{self, Next, Retry, Retryable};
use crate::resources::{self, RequestFailed};

/// The one thing that is reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Everything;

impl fmt::Display for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DaemonSet {}", keys::NODE_DAEMON_SET)
    }
}

#[derive(Default)]
struct Caches {
    configs: Cache<DeserializeGuard<SriovOperatorConfig>>,
    daemon_sets: Cache<PartialObjectMeta<DaemonSet>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read SriovOperatorConfig {}: {why}", keys::DEFAULT_CONFIG)]
    ReadConfig { why: String },
    #[error(transparent)]
    Request(#[from] RequestFailed),
}

impl Retryable for Error {
    fn retry(&self) -> Retry {
        match self {
            Self::ReadConfig { .. } => Retry::WhenChanged,
            Self::Request(request) => request.retry(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ReadConfig { .. } => "Unreadable",
            Self::Request(request) => request.reason(),
        }
    }
}

/// Runs the controller; ends only by being dropped.
pub async fn run(context: &Context) {
    let caches = Caches::default();
    let (queue, requests) = queue::new();
    let requests = requests.measured(context.metrics.meter("operator_config"));
    // Without any object there is no event either.
    queue.add(Everything);
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let namespace = &context.settings.namespace;
    let configs = caches.configs.watch(Api::namespaced(context.client.clone(), namespace), named(keys::DEFAULT_CONFIG), |change| {
        if spec_changed(&change) {
            queue.add(Everything);
        }
    });
    let daemon_sets = Api::namespaced(context.client.clone(), namespace);
    let daemon_sets = caches.daemon_sets.watch(daemon_sets, named(keys::NODE_DAEMON_SET), |change| {
        if spec_changed(&change) {
            queue.add(Everything);
        }
    });
    let reconcile_all = async {
        caches.configs.ready().await;
        caches.daemon_sets.ready().await;
        requests.serve(1, |_| reconcile(context, &caches)).await;
    };
    futures::join!(configs, daemon_sets, reconcile_all);
}

/// Generation, owners or deletion changed; a status did not.
fn spec_changed<T: Resource>(change: &Change<'_, T>) -> bool {
    let parts = |object: &T| {
        let meta = object.meta();
        (meta.uid.clone(), meta.generation, meta.owner_references.clone(), meta.deletion_timestamp.is_some())
    };
    change.old.map(parts) != change.new.map(parts)
}

async fn reconcile(context: &Context, caches: &Caches) -> Result<Next, Error> {
    let config = gather(context, caches)?;
    context.set_log_level(config.as_ref().and_then(|c| c.spec.log_level));
    let unsupported = validate(config.as_ref().map(|c| &c.spec));
    let daemon_set = daemon_set::build(config.as_ref(), &context.settings);
    let applied = apply(context, &daemon_set).await;
    if let Some(config) = &config {
        report(context, config, applied.as_ref().err(), &unsupported).await?;
    }
    applied?;
    Ok(Next::Wait)
}

fn gather(context: &Context, caches: &Caches) -> Result<Option<SriovOperatorConfig>, Error> {
    match caches.configs.get(&Key::new(&context.settings.namespace, keys::DEFAULT_CONFIG)).as_deref() {
        None => Ok(None),
        // One that goes away owns nothing any more.
        Some(DeserializeGuard(Ok(config))) if config.metadata.deletion_timestamp.is_some() => Ok(None),
        Some(DeserializeGuard(Ok(config))) => Ok(Some(config.clone())),
        Some(DeserializeGuard(Err(invalid))) => Err(Error::ReadConfig { why: invalid.error.clone() }),
    }
}

/// Settings that this version does not carry out.
fn validate(spec: Option<&SriovOperatorConfigSpec>) -> Vec<&'static str> {
    let Some(spec) = spec else { return vec![] };
    let wanted = [("useCDI", spec.use_cdi)];
    wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
}

/// The API server drops an apply that changes nothing.
async fn apply(context: &Context, daemon_set: &DaemonSet) -> Result<(), RequestFailed> {
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    resources::apply(&api, "DaemonSet", keys::NODE_DAEMON_SET, daemon_set).await
}

async fn report(context: &Context, config: &SriovOperatorConfig, failure: Option<&RequestFailed>, unsupported: &[&str]) -> Result<(), RequestFailed> {
    let (status, reason, message) = match (failure, unsupported) {
        (Some(failure), _) => (false, reason::SYNC_FAILED, failure.to_string()),
        (None, []) => (true, reason::READY, "the node DaemonSet is in place".to_owned()),
        (None, some) => (false, reason::UNSUPPORTED, format!("the node DaemonSet is in place; not supported by this version: {}", some.join(", "))),
    };
    let outcome = Outcome { kind: conditions::READY, status, reason, message };
    let existing = config.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    resources::report(context, config, existing, outcome).await
}
