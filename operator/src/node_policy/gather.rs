//! I/O: what one node's state is made from, taken from the fleet. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use kube::core::DeserializeGuard;
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkPoolConfig, SriovOperatorConfig, keys};

use super::tally::{self, Standing};
use super::validate;
use crate::cache::Key;
use crate::context::Context;
use crate::fleet::{Fleet, PoolGuard};
use crate::operator_config::gates;

/// Why a node cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Which nodes are selected is unknown, so no node may be taken for unselected.
    #[error("failed to read SriovOperatorConfig {}: {why}", keys::DEFAULT_CONFIG)]
    ReadConfig {
        /// What is wrong with it.
        why: String,
    },
    /// What is wanted now is unknown, so it cannot be compared.
    #[error("failed to read SriovNetworkNodeState {name}: {why}")]
    ReadState {
        /// Its name, which is its node's.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Everything about one node.
pub(super) struct Gathered {
    /// The node's labels; `None` when there is no such node.
    pub labels: Option<BTreeMap<String, String>>,
    /// The operator configuration; `None` when there is none.
    pub config: Option<SriovOperatorConfig>,
    /// All policies of the operator's namespace.
    pub policies: Vec<Arc<DeserializeGuard<SriovNetworkNodePolicy>>>,
    /// All pools of the operator's namespace.
    pub pools: Vec<Arc<PoolGuard>>,
    /// The node's state, if there is one.
    pub state: Option<SriovNetworkNodeState>,
}

impl Gathered {
    /// Pools that can be read.
    pub(super) fn readable_pools(&self) -> impl Iterator<Item = &SriovNetworkPoolConfig> {
        self.pools.iter().filter_map(|pool| pool.0.as_ref().ok())
    }
}

pub(super) fn node(fleet: &Fleet, context: &Context, name: &str) -> Result<Gathered, Error> {
    let namespace = &context.settings.namespace;
    let config = match fleet.configs.get(&Key::new(namespace, keys::DEFAULT_CONFIG)).as_deref() {
        None => None,
        Some(DeserializeGuard(Ok(config))) => Some(config.clone()),
        Some(DeserializeGuard(Err(invalid))) => return Err(Error::ReadConfig { why: invalid.error.clone() }),
    };
    let state = match fleet.states.get(&Key::new(namespace, name)).as_deref() {
        None => None,
        Some(DeserializeGuard(Ok(state))) => Some(state.clone()),
        Some(DeserializeGuard(Err(invalid))) => return Err(Error::ReadState { name: name.to_owned(), why: invalid.error.clone() }),
    };
    let labels = fleet.nodes.get(&Key::new("", name)).map(|node| node.labels().clone());
    Ok(Gathered { labels, config, policies: fleet.policies.list(), pools: fleet.pools.list(), state })
}

pub(super) fn policy(fleet: &Fleet, context: &Context, name: &str) -> Option<Arc<DeserializeGuard<SriovNetworkNodePolicy>>> {
    fleet.policies.get(&Key::new(&context.settings.namespace, name))
}

/// What a stronger policy decides otherwise on the nodes where this one has VFs: the first by name, and how many.
pub(super) fn overridden(fleet: &Fleet, policy: &DeserializeGuard<SriovNetworkNodePolicy>) -> Option<(String, i64)> {
    let object = policy.0.as_ref().ok()?;
    let name = object.name_any();
    let states = fleet.states.list();
    let told = states.iter().filter_map(|state| {
        let state = state.0.as_ref().ok()?;
        Some((state.name_any(), tally::overridden_on(&name, &object.spec, state)?))
    });
    told.fold(None, |first, (node, what)| match first {
        None => Some((format!("node {node}: {what}"), 1)),
        Some((first, count)) => Some((first, count + 1)),
    })
}

/// Whether the policy names a bridge that no daemon makes.
pub(super) fn bridge_ignored(fleet: &Fleet, context: &Context, policy: &DeserializeGuard<SriovNetworkNodePolicy>) -> bool {
    let names_one = policy.0.as_ref().is_ok_and(|policy| policy.spec.bridge.as_ref().is_some_and(|bridge| bridge.ovs.is_some()));
    let config = fleet.config(&context.settings.namespace);
    names_one && !config.is_some_and(|config| gates::is_on(&config.spec.feature_gates, gates::BRIDGES))
}

/// How the managed nodes that the policy selects stand, by name.
pub(super) fn standings(fleet: &Fleet, context: &Context, policy: &DeserializeGuard<SriovNetworkNodePolicy>) -> Vec<(String, Standing)> {
    let config = fleet.config(&context.settings.namespace);
    let selector = validate::node_selector(config.as_ref().map(|c| &c.spec.config_daemon_node_selector));
    let nodes = fleet.nodes.list();
    let counted = nodes.iter().filter(|node| sriov_crds::resolve::selects(&selector, node.labels()) && validate::may_select(policy, node.labels()));
    let standing = |name: String| {
        let state = fleet.states.get(&Key::new(&context.settings.namespace, &name));
        let standing = Standing::of(state.as_ref().and_then(|state| state.0.as_ref().ok()));
        (name, standing)
    };
    counted.map(|node| standing(node.name_any())).collect()
}
