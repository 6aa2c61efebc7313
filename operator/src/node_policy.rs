//! I/O: policies -> one `SriovNetworkNodeState` a node. `gather -> validate -> build -> apply -> report`, once for each node by itself: a node's
//! trouble stays its own, and a node is looked at only when its labels, a policy that selects it, its state or the operator configuration changed.
//!
//! Invariant: a node state's spec is a function of the policies that select its node and of the PFs that its daemon reported, nothing else.

mod apply;
mod build;
mod gather;
mod report;
mod triggers;
pub(crate) mod validate;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovOperatorConfig, keys};

use crate::cache::{Cache, Change};
use crate::context::Context;
use crate::queue::{self, Next, Queue, Retry, Retryable};
use crate::resources::RequestFailed;

/// How many nodes or policies are worked on at a time.
const CONCURRENCY: usize = 16;

/// What is reconciled: a node's state from all policies, or a policy's own condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Node(String),
    Policy(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Policy(name) => write!(f, "policy {name}"),
        }
    }
}

/// What the watches of this controller know.
#[derive(Default)]
struct Caches {
    nodes: Cache<PartialObjectMeta<Node>>,
    policies: Cache<DeserializeGuard<SriovNetworkNodePolicy>>,
    states: Cache<DeserializeGuard<SriovNetworkNodeState>>,
    configs: Cache<DeserializeGuard<SriovOperatorConfig>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Gather(#[from] gather::Error),
    #[error(transparent)]
    Request(#[from] RequestFailed),
}

impl Retryable for Error {
    fn retry(&self) -> Retry {
        match self {
            Self::Gather(_) => Retry::WhenChanged,
            Self::Request(request) => request.retry(),
        }
    }
}

/// Runs the controller; ends only by being dropped.
pub async fn run(context: &Context) {
    let caches = Arc::new(Caches::default());
    let (queue, requests) = queue::new();
    let reconcile_all = async {
        caches.nodes.ready().await;
        caches.policies.ready().await;
        caches.states.ready().await;
        caches.configs.ready().await;
        requests.serve(CONCURRENCY, |subject| reconcile(context, &caches, subject)).await;
    };
    futures::join!(watch_nodes(context, &caches, &queue), watch_objects(context, &caches, &queue), reconcile_all);
}

async fn watch_nodes(context: &Context, caches: &Caches, queue: &Queue<Subject>) {
    let on_change = |change: Change<'_, PartialObjectMeta<Node>>| {
        if triggers::node_matters(&change) {
            add_nodes(queue, change.new.or(change.old).map(ResourceExt::name_any));
        }
    };
    caches.nodes.watch(Api::all(context.client.clone()), watcher::Config::default(), on_change).await;
}

async fn watch_objects(context: &Context, caches: &Caches, queue: &Queue<Subject>) {
    let (client, namespace, all) = (&context.client, &context.settings.namespace, watcher::Config::default());
    let policies = caches.policies.watch(Api::namespaced(client.clone(), namespace), all.clone(), |change| {
        if triggers::policy_matters(&change) {
            change.new.iter().for_each(|policy| queue.add(Subject::Policy(policy.name_any())));
            let (nodes, states) = (caches.nodes.list(), caches.states.list());
            add_nodes(queue, triggers::nodes_of_policy(&change, &nodes, &states));
        }
    });
    let states = caches.states.watch(Api::namespaced(client.clone(), namespace), all.clone(), |change| {
        if triggers::state_matters(&change) {
            add_nodes(queue, change.new.or(change.old).map(ResourceExt::name_any));
        }
    });
    let only = all.clone().fields(&format!("metadata.name={}", keys::DEFAULT_CONFIG));
    let configs = caches.configs.watch(Api::namespaced(client.clone(), namespace), only, |change| {
        if triggers::config_matters(&change) {
            add_nodes(queue, caches.nodes.list().iter().map(|n| n.name_any()));
            add_nodes(queue, caches.states.list().iter().map(|s| s.name_any()));
        }
    });
    futures::join!(policies, states, configs);
}

fn add_nodes(queue: &Queue<Subject>, names: impl IntoIterator<Item = String>) {
    names.into_iter().for_each(|name| queue.add(Subject::Node(name)));
}

async fn reconcile(context: &Context, caches: &Caches, subject: Subject) -> Result<Next, Error> {
    match subject {
        Subject::Policy(name) => {
            if let Some(policy) = gather::policy(caches, context, &name) {
                report::policy(context, &policy, validate::policy(&policy)).await?;
            }
            Ok(Next::Wait)
        }
        Subject::Node(name) => {
            let gathered = gather::node(caches, context, &name)?;
            let node = validate::node(gathered);
            let desired = build::desired(&node, Timestamp::now(), context.settings.stale_state_delay);
            apply::node_state(context, &name, &desired).await?;
            Ok(report::node(&name, &node, &desired))
        }
    }
}
