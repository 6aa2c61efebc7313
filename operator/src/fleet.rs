//! I/O: what more than one controller reads: nodes (metadata only), policies, node states, pools and the operator configuration, each watched
//! once for the whole process. What does not live here: what a change means; each [`Listener`] decides that for itself.
//!
//! Invariants: what nobody reads is dropped before it is kept (a node state's VFs and plan steps, a node's foreign annotations), so that memory
//! is bounded by what is decided on; a listener is told after the cache has the change.

use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkPoolConfig, SriovOperatorConfig, keys};

use crate::cache::{Cache, Change};
use crate::context::Context;

/// A node, as far as it is read.
pub type NodeMeta = PartialObjectMeta<Node>;
/// A policy that may be unreadable.
pub type PolicyGuard = DeserializeGuard<SriovNetworkNodePolicy>;
/// A node state that may be unreadable.
pub type StateGuard = DeserializeGuard<SriovNetworkNodeState>;
/// A pool that may be unreadable.
pub type PoolGuard = DeserializeGuard<SriovNetworkPoolConfig>;
/// An operator configuration that may be unreadable.
pub type ConfigGuard = DeserializeGuard<SriovOperatorConfig>;

/// Objects of one page of a list: small enough that a page of large node states is no peak of its own.
const PAGE: u32 = 100;

/// The caches.
#[derive(Default)]
pub struct Fleet {
    /// All nodes of the cluster.
    pub nodes: Cache<NodeMeta>,
    /// Policies of the operator's namespace.
    pub policies: Cache<PolicyGuard>,
    /// Node states of the operator's namespace, without VFs and plan steps.
    pub states: Cache<StateGuard>,
    /// Pools of the operator's namespace.
    pub pools: Cache<PoolGuard>,
    /// The operator configuration.
    pub configs: Cache<ConfigGuard>,
}

/// Is told of every change. The default is to take no notice.
pub trait Listener {
    /// A node.
    fn node(&self, _change: &Change<'_, NodeMeta>) {}
    /// A policy.
    fn policy(&self, _change: &Change<'_, PolicyGuard>) {}
    /// A node state.
    fn state(&self, _change: &Change<'_, StateGuard>) {}
    /// All node states were listed again; see [`Cache::each_relist`].
    fn states_listed(&self) {}
    /// A pool.
    fn pool(&self, _change: &Change<'_, PoolGuard>) {}
    /// The operator configuration.
    fn config(&self, _change: &Change<'_, ConfigGuard>) {}
}

impl Fleet {
    /// Waits for the first complete list of every kind.
    pub async fn ready(&self) {
        self.nodes.ready().await;
        self.policies.ready().await;
        self.states.ready().await;
        self.pools.ready().await;
        self.configs.ready().await;
    }

    /// The operator configuration, when there is one that can be read.
    pub fn config(&self, namespace: &str) -> Option<SriovOperatorConfig> {
        self.configs.get(&crate::cache::Key::new(namespace, keys::DEFAULT_CONFIG)).and_then(|config| config.0.as_ref().ok().cloned())
    }

    /// Watches everything, for ever.
    pub async fn watch(&self, context: &Context, listeners: &[&dyn Listener]) {
        let (client, namespace) = (&context.client, context.settings.namespace.as_str());
        let all = watcher::Config::default().page_size(PAGE);
        let only_default = all.clone().fields(&format!("metadata.name={}", keys::DEFAULT_CONFIG));
        futures::join!(
            self.nodes.watch_trimmed(Api::all(client.clone()), all.clone(), trim_node, |c| listeners.iter().for_each(|l| l.node(&c))),
            self.policies.watch(Api::namespaced(client.clone(), namespace), all.clone(), |c| listeners.iter().for_each(|l| l.policy(&c))),
            self.states.watch_trimmed(Api::namespaced(client.clone(), namespace), all.clone(), trim_state, |c| {
                for listener in listeners {
                    listener.state(&c);
                }
            }),
            self.states.each_relist(|| listeners.iter().for_each(|l| l.states_listed())),
            self.pools.watch(Api::namespaced(client.clone(), namespace), all.clone(), |c| listeners.iter().for_each(|l| l.pool(&c))),
            self.configs.watch(Api::namespaced(client.clone(), namespace), only_default, |c| listeners.iter().for_each(|l| l.config(&c))),
        );
    }
}

fn trim_node(node: &mut NodeMeta) {
    node.annotations_mut().retain(|key, _| key == keys::CORDONED || key == keys::NODE_DRAIN_STATE);
    node.finalizers_mut().clear();
}

fn trim_state(state: &mut StateGuard) {
    let Some(status) = state.0.as_mut().ok().and_then(|s| s.status.as_mut()) else { return };
    for pf in &mut status.interfaces {
        pf.vfs = Vec::new();
        pf.refusal = None;
    }
    if let Some(plan) = &mut status.plan {
        plan.steps = Vec::new();
        plan.refusals = Vec::new();
    }
    status.bridges = None;
}
