//! Pure: a pool's object -> the rules that it means, or why it means nothing. What does not live here: who is in the pool now.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use sriov_crds::SriovNetworkPoolConfig;

use super::Labels;

/// A pool's object, understood.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::drain) struct Rules {
    pub(super) selector: Selector,
    pub(super) allowed: Option<Amount>,
    pub(super) stages: Vec<Amount>,
    pub(super) stop_on_failure: bool,
}

/// A number of nodes, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) enum Amount {
    Nodes(usize),
    Percent(usize),
}

/// Why a pool means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::drain) enum Invalid {
    #[error("{field} {given:?} must be a number from 0, or a percentage from 1% to 100%")]
    Amount { field: &'static str, given: String },
    #[error("nodeSelector: {0}")]
    Selector(String),
    #[error("the object could not be read: {0}")]
    Unreadable(String),
}

impl Amount {
    fn read(field: &'static str, given: &IntOrString) -> Result<Self, Invalid> {
        let wrong = |given: String| Invalid::Amount { field, given };
        match given {
            IntOrString::Int(count) => usize::try_from(*count).map(Self::Nodes).map_err(|_| wrong(count.to_string())),
            IntOrString::String(text) => {
                let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
                let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| (1..=100).contains(percent));
                percent.map(Self::Percent).ok_or_else(|| wrong(text.clone()))
            }
        }
    }

    /// Of so many nodes, rounded down as the Go operator does.
    pub(super) fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(count) => count,
            Self::Percent(percent) => nodes * percent / 100,
        }
    }
}

/// Whether draining is this pool's affair at all.
pub(in crate::drain) fn is_for_nodes(pool: &SriovNetworkPoolConfig) -> bool {
    let offload = pool.spec.ovs_hardware_offload_config.as_ref().and_then(|offload| offload.name.as_ref());
    offload.is_none_or(String::is_empty) && pool.metadata.deletion_timestamp.is_none()
}

/// Reads a pool's object.
pub(in crate::drain) fn rules(pool: &SriovNetworkPoolConfig) -> Result<Rules, Invalid> {
    let spec = &pool.spec;
    let selector = spec.node_selector.clone().unwrap_or_default();
    let rollout = spec.rollout.clone().unwrap_or_default();
    Ok(Rules {
        selector: selector.try_into().map_err(|error: kube::core::ParseExpressionError| Invalid::Selector(error.to_string()))?,
        allowed: spec.max_unavailable.as_ref().map(|given| Amount::read("maxUnavailable", given)).transpose()?,
        stages: rollout.stages.iter().map(|given| Amount::read("rollout.stages", given)).collect::<Result<_, _>>()?,
        stop_on_failure: rollout.stop_on_failure,
    })
}

/// Names of the pools that select a node with these labels, from the objects; used where no counters are kept.
pub(crate) fn pools_of<'a>(pools: impl IntoIterator<Item = &'a SriovNetworkPoolConfig>, labels: &Labels) -> Vec<&'a SriovNetworkPoolConfig> {
    let selects = |pool: &&SriovNetworkPoolConfig| {
        is_for_nodes(pool) && Selector::try_from(pool.spec.node_selector.clone().unwrap_or_default()).is_ok_and(|selector| selector.matches(labels))
    };
    pools.into_iter().filter(selects).collect()
}
