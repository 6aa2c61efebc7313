//! Pure: loose objects -> what `build` works on. A policy becomes a [`Policy`], or says in one sentence why it cannot; a node becomes a [`Node`].
//!
//! Only what makes a policy impossible to carry out makes it malformed here; what is merely unwise is the webhook's.

use std::collections::BTreeMap;

use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use sriov_crds::node_state::{InterfaceStatus, SriovNetworkNodeStateStatus, System};
use sriov_crds::resolve::{Malformed, Policy, order, selects};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, keys};

use super::gather::Gathered;
use crate::drain::pools::pools_of;
use crate::operator_config::gates;

/// A node as far as policies are concerned.
#[derive(Debug)]
pub(super) struct Node {
    /// Whether the operator manages it.
    pub selected: bool,
    /// The policies that select it, weakest first.
    pub policies: Vec<Policy>,
    /// Names of malformed policies that might select it.
    pub malformed: Vec<String>,
    /// PFs that its daemon reported; `None` before the first report.
    pub pfs: Option<Vec<InterfaceStatus>>,
    /// Whether its daemon makes the bridges that policies name.
    pub manages_bridges: bool,
    /// Settings of the whole node, from its pool.
    pub system: Option<System>,
    /// Its state, if there is one.
    pub state: Option<SriovNetworkNodeState>,
}

/// What a policy says, if it can be carried out.
pub(crate) fn policy(policy: &DeserializeGuard<SriovNetworkNodePolicy>) -> Result<Policy, Malformed> {
    let object = policy.0.as_ref().map_err(|invalid| Malformed::Unreadable(invalid.error.clone()))?;
    Policy::read(&policy.name_any(), &object.spec)
}

pub(super) fn node(gathered: Gathered) -> Node {
    let system = system(&gathered);
    let Gathered { labels, config, policies, pools: _, state } = gathered;
    let selector = node_selector(config.as_ref().map(|c| &c.spec.config_daemon_node_selector));
    let manages_bridges = config.is_some_and(|config| gates::is_on(&config.spec.feature_gates, gates::BRIDGES));
    let selected = labels.as_ref().is_some_and(|labels| selects(&selector, labels));
    let mut valid = vec![];
    let mut malformed = vec![];
    for object in policies.iter().filter(|p| p.name_any() != keys::LEGACY_DEFAULT_POLICY) {
        // Deleted means not wanted any more, also while someone's finalizer keeps the object.
        if object.meta().deletion_timestamp.is_some() || !labels.as_ref().is_some_and(|labels| may_select(object, labels)) {
            continue;
        }
        match policy(object) {
            Ok(policy) => valid.push(policy),
            Err(_) => malformed.push(object.name_any()),
        }
    }
    order(&mut valid);
    let pfs = state.as_ref().and_then(|s| s.status.as_ref()).filter(|s| was_reported(s)).map(|s| s.interfaces.clone());
    Node { selected, policies: valid, malformed, pfs, manages_bridges, system, state }
}

/// What the node's pool says of the whole node. With several pools, or one that cannot be read, what was rendered stays: "unknown" is not
/// "unset", which would cost the node a reboot.
fn system(gathered: &Gathered) -> Option<System> {
    let labels = gathered.labels.as_ref()?;
    let pools = pools_of(gathered.readable_pools(), labels);
    let unreadable = gathered.pools.iter().any(|pool| pool.0.is_err());
    match pools.as_slice() {
        [] if !unreadable => None,
        [pool] if !unreadable => {
            let mode = pool.spec.rdma_mode.clone().filter(|mode| !mode.is_empty());
            mode.map(|mode| System { rdma_mode: Some(mode), ..System::default() })
        }
        _ => gathered.state.as_ref().and_then(|state| state.spec.system.clone()),
    }
}

/// The node selector in force: the configured one replaces the default entirely.
pub(crate) fn node_selector(configured: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    match configured.filter(|selector| !selector.is_empty()) {
        Some(selector) => selector.clone(),
        None => [(keys::CAPABLE_LABEL, "true"), (keys::OS_LABEL, "linux")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    }
}

/// True when the policy selects a node with these labels, or cannot be read.
pub(super) fn may_select(policy: &DeserializeGuard<SriovNetworkNodePolicy>, labels: &BTreeMap<String, String>) -> bool {
    policy.0.as_ref().map_or(true, |policy| selects(&policy.spec.node_selector, labels))
}

/// A daemon that wrote anything has looked at the machine: an empty list of PFs then means that there are none.
pub(crate) fn was_reported(status: &SriovNetworkNodeStateStatus) -> bool {
    !status.interfaces.is_empty() || status.sync_status.is_some() || status.observed_generation.is_some() || !status.conditions.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn malformed(change: &serde_json::Value) -> String {
        let mut spec = json!({ "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 4 });
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let object =
            json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "p" }, "spec": spec });
        let guard: DeserializeGuard<SriovNetworkNodePolicy> = serde_json::from_value(object).unwrap();
        policy(&guard).map_or_else(|e| e.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn a_malformed_policy_says_what_was_given_and_what_is_allowed() {
        assert_eq!(malformed(&json!({})), "fine");
        assert!(malformed(&json!({ "resourceName": "" })).contains("1 to 63"));
        assert!(malformed(&json!({ "resourceName": "-nics" })).contains(r#""-nics""#));
        assert!(malformed(&json!({ "numVfs": 70000 })).contains("numVfs 70000 must be from 0 to 65535"));
        assert!(malformed(&json!({ "nicSelector": { "pfNames": ["eth0#3-1"] } })).contains("empty VF range 3-1"));
        assert!(malformed(&json!({ "nicSelector": { "pfNames": ["eth0#0-4"] } })).contains("eth0#0-4 needs at least 5 VFs, but numVfs is 4"));
        assert!(malformed(&json!({ "isRdma": true, "deviceType": "vfio-pci" })).contains("exclude each other"));
        assert!(malformed(&json!({ "numVfs": "four" })).contains("could not be read"));
    }

    #[test]
    fn without_a_configured_selector_the_label_of_node_feature_discovery_counts() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        let default = node_selector(Some(&BTreeMap::new()));
        assert!(selects(&default, &labels(&[(keys::CAPABLE_LABEL, "true"), (keys::OS_LABEL, "linux"), ("more", "x")])));
        assert!(!selects(&default, &labels(&[(keys::CAPABLE_LABEL, "false"), (keys::OS_LABEL, "linux")])));
        let own = node_selector(Some(&labels(&[("pool", "a")])));
        assert_eq!(own, labels(&[("pool", "a")]));
    }
}
