//! I/O: the operator configuration -> the DaemonSets of nodes. `gather -> validate -> build -> apply -> report`, as functions; the DaemonSets are built
//! in `daemon_sets`, `gates` knows the feature gates, `legacy` what the Go operator left (all pure).
//!
//! Without an operator configuration the defaults hold, and its deletion takes nothing away: the DaemonSets have no owner, and the configuration no
//! finalizer. Invariant: the DaemonSets' selector is the one that `node_policy` uses, so that a node has a daemon exactly when it has a node state.

mod daemon_sets;
pub(crate) mod gates;
mod legacy;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use sriov_crds::conditions::{DEGRADED, Outcome, PROGRESSING, READY, operator_config as reason};
use sriov_crds::{SriovOperatorConfig, keys};

use crate::cache::{Cache, Change, Key};
use crate::context::Context;
use crate::queue::{self, Next, Retry, Retryable};
use crate::resources::{self, RequestFailed};

pub(crate) use legacy::DAEMON_SETS as LEFT_DAEMON_SETS;

/// Our DaemonSets, in the order in which they are applied.
const OURS: [&str; 2] = [keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET];

/// The one thing that is reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Everything;

impl fmt::Display for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DaemonSets {} and {}", OURS[0], OURS[1])
    }
}

#[derive(Default)]
struct Caches {
    configs: Cache<DeserializeGuard<SriovOperatorConfig>>,
    /// All of the namespace: ours, and what the Go operator left.
    daemon_sets: Cache<DaemonSet>,
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
    let listed = caches.daemon_sets.each_relist(|| queue.add(Everything));
    let daemon_sets = Api::namespaced(context.client.clone(), namespace);
    let daemon_sets = caches.daemon_sets.watch(daemon_sets, watcher::Config::default(), |change| {
        let concerns = change.new.or(change.old).is_some_and(|d| OURS.contains(&d.name_any().as_str()) || legacy::is_leftover(d));
        if concerns && (spec_changed(&change) || change.old.map(rollout) != change.new.map(rollout)) {
            queue.add(Everything);
        }
    });
    let reconcile_all = async {
        caches.configs.ready().await;
        caches.daemon_sets.ready().await;
        requests.serve(1, |_| reconcile(context, &caches)).await;
    };
    futures::join!(configs, daemon_sets, listed, reconcile_all);
}

/// How many nodes are to run the DaemonSet's pod, and how many run the present one.
fn rollout(daemon_set: &DaemonSet) -> Option<(i32, i32)> {
    let status = daemon_set.status.as_ref()?;
    // Before its controller has looked, the numbers are those of another generation.
    let seen = status.observed_generation >= daemon_set.metadata.generation;
    Some((status.desired_number_scheduled, if seen { status.updated_number_scheduled.unwrap_or(0) } else { 0 }))
}

/// Generation, owners, finalizers or deletion changed; a status did not.
fn spec_changed<T: Resource>(change: &Change<'_, T>) -> bool {
    let parts = |object: &T| {
        let meta = object.meta();
        (meta.uid.clone(), meta.generation, meta.owner_references.clone(), meta.finalizers.clone(), meta.deletion_timestamp.is_some())
    };
    change.old.map(parts) != change.new.map(parts)
}

async fn reconcile(context: &Context, caches: &Caches) -> Result<Next, Error> {
    // Also of one that goes away or cannot be read: nobody else would take it off.
    release(context, caches).await?;
    let config = gather(context, caches)?;
    context.set_log_level(config.as_ref().and_then(|c| c.spec.log_level));
    let applied = apply(context, caches, &daemon_sets::build(config.as_ref(), &context.settings)).await;
    if let Some(config) = &config {
        let rollouts = OURS.iter().filter_map(|name| Some((*name, rollout(&*there(context, caches, name)?)?))).collect::<Vec<_>>();
        report(context, config, &verdict(applied.as_ref().err(), &rollouts)).await?;
    }
    applied?;
    Ok(Next::Wait)
}

async fn release(context: &Context, caches: &Caches) -> Result<(), RequestFailed> {
    let Some(config) = caches.configs.get(&Key::new(&context.settings.namespace, keys::DEFAULT_CONFIG)) else { return Ok(()) };
    let api: Api<DeserializeGuard<SriovOperatorConfig>> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    resources::release(&api, config.as_ref(), keys::CONFIG_FINALIZER).await
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

/// One of our DaemonSets as it is now.
fn there(context: &Context, caches: &Caches, name: &str) -> Option<Arc<DaemonSet>> {
    caches.daemon_sets.get(&Key::new(&context.settings.namespace, name))
}

/// In this order: what the Go operator left goes, then pods that are not ours, then ours come. The API server drops an apply that changes
/// nothing.
async fn apply(context: &Context, caches: &Caches, daemon_sets: &[DaemonSet]) -> Result<(), RequestFailed> {
    const KIND: &str = "DaemonSet";
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    for leftover in caches.daemon_sets.list().iter().filter(|daemon_set| legacy::is_leftover(daemon_set)) {
        resources::delete(&api, KIND, &leftover.name_any()).await?;
        tracing::info!(name = leftover.name_any(), "DaemonSet of the Go operator deleted");
    }
    for daemon_set in daemon_sets {
        let name = &daemon_set.name_any();
        if let Some(there) = there(context, caches, name) {
            if legacy::is_foreign(&there, daemon_set) {
                resources::delete(&api, KIND, name).await?;
                tracing::info!(name, "DaemonSet with containers of others deleted; ours takes its place");
            } else if legacy::is_owned_by_configuration(&there) {
                let others: Vec<_> = there.owner_references().iter().filter(|owner| owner.kind != "SriovOperatorConfig").collect();
                let metadata = json!({ "ownerReferences": others, "resourceVersion": there.resource_version() });
                resources::merge_metadata(&api, KIND, name, metadata).await?;
            }
        }
        resources::apply(&api, KIND, name, daemon_set).await?;
    }
    Ok(())
}

/// `Ready`, `Progressing` and `Degraded`. `rollouts` says of each DaemonSet how many nodes are to run its pod, and how many run the present one.
fn verdict(failure: Option<&RequestFailed>, rollouts: &[(&str, (i32, i32))]) -> [Outcome; 3] {
    let outcome = |kind, status, reason, message: String| Outcome { kind, status, reason, message };
    let behind = rollouts.iter().filter(|(_, (wanted, updated))| updated < wanted && failure.is_none());
    let behind: Vec<_> =
        behind.map(|(name, (wanted, updated))| format!("{updated} of {wanted} nodes run the present pod of DaemonSet {name}")).collect();
    let rolling = if behind.is_empty() {
        outcome(PROGRESSING, false, reason::READY, String::new())
    } else {
        outcome(PROGRESSING, true, reason::ROLLING_OUT, behind.join("; "))
    };
    let (reason, ready, degraded) = match failure {
        Some(failure) => (reason::SYNC_FAILED, failure.to_string(), failure.to_string()),
        None => (reason::READY, "the DaemonSets of nodes are in place".to_owned(), String::new()),
    };
    let fine = reason == reason::READY;
    [outcome(READY, fine, reason, ready), rolling, outcome(DEGRADED, !fine, reason, degraded)]
}

async fn report(context: &Context, config: &SriovOperatorConfig, outcomes: &[Outcome]) -> Result<(), RequestFailed> {
    let existing = config.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    resources::report(context, config, existing, outcomes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_progress() {
        let says = |nodes: &[(i32, i32)]| {
            let rollouts: Vec<_> = OURS.into_iter().zip(nodes.iter().copied()).collect();
            verdict(None, &rollouts).map(|o| (o.status, o.reason))
        };
        assert_eq!(says(&[(3, 3), (3, 3)]), [(true, reason::READY), (false, reason::READY), (false, reason::READY)]);
        assert_eq!(says(&[]), says(&[(0, 0)]));
        assert_eq!(says(&[(3, 1)])[1], (true, reason::ROLLING_OUT));
        assert_eq!(says(&[(3, 3), (3, 2)])[1], (true, reason::ROLLING_OUT));
    }

    #[test]
    fn numbers_of_another_generation_do_not_count_as_updated() {
        let daemon_set = |observed: i64| -> DaemonSet {
            serde_json::from_value(json!({
                "metadata": { "generation": 2 }, "spec": { "selector": {}, "template": {} },
                "status": { "currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
                    "observedGeneration": observed, "updatedNumberScheduled": 3 },
            }))
            .unwrap()
        };
        assert_eq!(rollout(&daemon_set(1)), Some((3, 0)));
        assert_eq!(rollout(&daemon_set(2)), Some((3, 3)));
    }
}
