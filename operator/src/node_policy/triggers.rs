//! Pure: which changes of watched objects can change a node state, and of which nodes. Saying too much costs a look, saying too little a stale
//! node; statuses and heartbeats, which change most often, are what must not be said.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Resource, ResourceExt};
use sriov_crds::keys::KEEP_STATE_UNTIL;
use sriov_crds::node_state::InterfaceStatus;
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovOperatorConfig};

use super::tally::Standing;
use super::validate::{may_select, was_reported};
use crate::cache::Change;
use crate::fleet::PoolGuard;
use crate::operator_config::gates;

/// Labels changed, or the node came or went.
pub(super) fn node_matters(change: &Change<'_, PartialObjectMeta<Node>>) -> bool {
    change.old.map(ResourceExt::labels) != change.new.map(ResourceExt::labels)
}

/// The spec changed, or the policy came or goes.
pub(super) fn policy_matters(change: &Change<'_, DeserializeGuard<SriovNetworkNodePolicy>>) -> bool {
    let spec = |policy: &DeserializeGuard<SriovNetworkNodePolicy>| (policy.meta().generation, policy.meta().deletion_timestamp.is_some());
    change.old.map(spec) != change.new.map(spec)
}

/// Nodes that the policy selected before or selects now, and those that have VFs of it.
pub(super) fn nodes_of_policy(
    change: &Change<'_, DeserializeGuard<SriovNetworkNodePolicy>>,
    nodes: &[Arc<PartialObjectMeta<Node>>],
    states: &[Arc<DeserializeGuard<SriovNetworkNodeState>>],
) -> Vec<String> {
    let sides: Vec<_> = change.old.into_iter().chain(change.new).collect();
    let selected = nodes.iter().filter(|node| sides.iter().any(|policy| may_select(policy, node.labels()))).map(|n| n.name_any());
    let has_group = |state: &DeserializeGuard<SriovNetworkNodeState>| {
        let groups = state.0.iter().flat_map(|s| &s.spec.interfaces).flat_map(|i| &i.vf_groups);
        groups.filter_map(|g| g.policy_name.as_ref()).any(|name| sides.iter().any(|policy| policy.name_any() == *name))
    };
    let users = states.iter().filter(|state| has_group(state)).map(|s| s.name_any());
    selected.chain(users).collect()
}

/// The spec was edited, the annotation that keeps the state changed, or the daemon reported other PFs (or for the first time).
pub(super) fn state_matters(change: &Change<'_, DeserializeGuard<SriovNetworkNodeState>>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else { return true };
    let annotation = |state: &DeserializeGuard<SriovNetworkNodeState>| state.annotations().get(KEEP_STATE_UNTIL).cloned();
    if annotation(old) != annotation(new) || old.owner_references() != new.owner_references() {
        return true;
    }
    match (&old.0, &new.0) {
        (Ok(old), Ok(new)) => old.spec != new.spec || identities(old) != identities(new),
        _ => true,
    }
}

/// What policies select PFs by; `None` before the first report.
fn identities(state: &SriovNetworkNodeState) -> Option<Vec<impl PartialEq>> {
    let identity = |pf: &InterfaceStatus| {
        let InterfaceStatus { pci_address, name, alt_names, vendor, device_id, net_filter, .. } = pf.clone();
        (pci_address, name, alt_names, vendor, device_id, net_filter)
    };
    let status = state.status.as_ref().filter(|s| was_reported(s))?;
    Some(status.interfaces.iter().map(identity).collect())
}

/// How the node stands to what is asked of it changed, or what is asked, which may be what a stronger policy decides.
pub(super) fn standing_matters(change: &Change<'_, DeserializeGuard<SriovNetworkNodeState>>) -> bool {
    let parts = |state: Option<&DeserializeGuard<SriovNetworkNodeState>>| {
        let state = state?.0.as_ref().ok();
        Some((Standing::of(state), state.map(|state| state.spec.interfaces.clone())))
    };
    parts(change.old) != parts(change.new)
}

/// Nodes of the pool, or what it says of them, changed; its status did not.
pub(super) fn pool_matters(change: &Change<'_, PoolGuard>) -> bool {
    let essence = |pool: Option<&PoolGuard>| {
        let pool = pool?;
        let deleted = pool.meta().deletion_timestamp.is_some();
        Some(pool.0.as_ref().map(|p| (p.spec.node_selector.clone(), p.spec.rdma_mode.clone(), deleted)).map_err(|e| e.error.clone()))
    };
    let (old, new): (Option<Result<_, String>>, _) = (essence(change.old), essence(change.new));
    old != new
}

/// The selection of nodes changed, or whether bridges are managed.
pub(super) fn config_matters(change: &Change<'_, DeserializeGuard<SriovOperatorConfig>>) -> bool {
    let part = |config: Option<&DeserializeGuard<SriovOperatorConfig>>| match config {
        None => Some(None),
        Some(DeserializeGuard(Ok(config))) => {
            Some(Some((config.spec.config_daemon_node_selector.clone(), gates::is_on(&config.spec.feature_gates, gates::BRIDGES))))
        }
        Some(DeserializeGuard(Err(_))) => None,
    };
    part(change.old) != part(change.new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(spec: &serde_json::Value, status: &serde_json::Value) -> DeserializeGuard<SriovNetworkNodeState> {
        let object = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": "n" }, "spec": spec, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn matters(old: &DeserializeGuard<SriovNetworkNodeState>, new: &DeserializeGuard<SriovNetworkNodeState>) -> bool {
        state_matters(&Change { old: Some(old), new: Some(new) })
    }

    #[test]
    fn a_new_pf_list_matters_and_the_rest_of_a_status_does_not() {
        let pf = |mtu: u32, name: &str| json!({ "interfaces": [{ "pciAddress": "0000:01:00.0", "name": name, "mtu": mtu }] });
        let old = state(&json!({}), &pf(1500, "eth0"));
        assert!(!matters(&old, &state(&json!({}), &pf(9000, "eth0"))));
        assert!(matters(&old, &state(&json!({}), &pf(1500, "eth1"))));
        assert!(matters(&state(&json!({}), &json!({})), &old), "the first report");
        assert!(matters(&state(&json!({}), &json!({})), &state(&json!({}), &json!({ "syncStatus": "Succeeded" }))), "a first report without PFs");
        assert!(matters(&old, &state(&json!({ "policyRevision": "x" }), &pf(1500, "eth0"))), "an edited spec");
    }

    #[test]
    fn a_heartbeat_of_a_node_does_not_matter_and_a_label_does() {
        let node = |labels: serde_json::Value, version: &str| -> PartialObjectMeta<Node> {
            serde_json::from_value(json!({ "metadata": { "name": "n", "labels": labels, "resourceVersion": version } })).unwrap()
        };
        let old = node(json!({ "a": "1" }), "1");
        assert!(!node_matters(&Change { old: Some(&old), new: Some(&node(json!({ "a": "1" }), "2")) }));
        assert!(node_matters(&Change { old: Some(&old), new: Some(&node(json!({ "a": "2" }), "2")) }));
        assert!(node_matters(&Change { old: Some(&old), new: None }));
    }

    #[test]
    fn a_policy_touches_the_nodes_it_selected_before_and_selects_now() {
        let policy = |pool: &str| -> DeserializeGuard<SriovNetworkNodePolicy> {
            serde_json::from_value(json!({
                "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "p" },
                "spec": { "resourceName": "r", "nodeSelector": { "pool": pool }, "nicSelector": {}, "numVfs": 1 },
            }))
            .unwrap()
        };
        let node = |name: &str, pool: &str| -> Arc<PartialObjectMeta<Node>> {
            Arc::new(serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "pool": pool } } })).unwrap())
        };
        let nodes = [node("a", "1"), node("b", "2"), node("c", "3")];
        let (old, new) = (policy("1"), policy("2"));
        assert_eq!(nodes_of_policy(&Change { old: Some(&old), new: Some(&new) }, &nodes, &[]), ["a", "b"]);
        let user = json!({ "interfaces": [{ "pciAddress": "0000:01:00.0", "vfGroups": [{ "policyName": "p" }] }] });
        let states = [Arc::new(state(&user, &json!({})))];
        assert_eq!(nodes_of_policy(&Change { old: Some(&old), new: None }, &nodes, &states), ["a", "n"]);
    }
}
