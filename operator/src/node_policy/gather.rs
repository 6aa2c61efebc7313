//! I/O: what one node's state is made from, taken from the caches. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use kube::core::DeserializeGuard;
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovOperatorConfig, keys};

use super::Caches;
use crate::cache::Key;
use crate::context::Context;

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
    /// The node's state, if there is one.
    pub state: Option<SriovNetworkNodeState>,
}

pub(super) fn node(caches: &Caches, context: &Context, name: &str) -> Result<Gathered, Error> {
    let namespace = &context.settings.namespace;
    let config = match caches.configs.get(&Key::new(namespace, keys::DEFAULT_CONFIG)).as_deref() {
        None => None,
        Some(DeserializeGuard(Ok(config))) => Some(config.clone()),
        Some(DeserializeGuard(Err(invalid))) => return Err(Error::ReadConfig { why: invalid.error.clone() }),
    };
    let state = match caches.states.get(&Key::new(namespace, name)).as_deref() {
        None => None,
        Some(DeserializeGuard(Ok(state))) => Some(state.clone()),
        Some(DeserializeGuard(Err(invalid))) => return Err(Error::ReadState { name: name.to_owned(), why: invalid.error.clone() }),
    };
    let labels = caches.nodes.get(&Key::new("", name)).map(|node| node.labels().clone());
    Ok(Gathered { labels, config, policies: caches.policies.list(), state })
}

pub(super) fn policy(caches: &Caches, context: &Context, name: &str) -> Option<Arc<DeserializeGuard<SriovNetworkNodePolicy>>> {
    caches.policies.get(&Key::new(&context.settings.namespace, name))
}
