//! Pure: what is to be written for one node. How policies become a spec is `sriov_crds::resolve`, which the daemon's command line uses too.
//!
//! Invariants: `policyRevision` is in every rendered spec; nothing is rendered before the daemon reported the PFs; a malformed policy never takes
//! VFs away: while one has groups in a node's spec, that spec stays.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use sriov_crds::bridge::Bridges;
use sriov_crds::node_state::{InterfaceStatus, System};
use sriov_crds::resolve::{bridges, spec};
use sriov_crds::{SriovNetworkNodeStateSpec, keys};

use super::validate::Node;

/// What is to be written for one node; an empty value is "nothing".
#[derive(Debug, Default, PartialEq)]
pub(super) struct Desired {
    /// The spec to write, when it differs from what is there.
    pub spec: Option<SriovNetworkNodeStateSpec>,
    /// Whether there is no node state yet.
    pub create: bool,
    /// What happens to the annotation `keep-state-until`.
    pub keep: Keep,
    /// Whether the node state is deleted.
    pub delete: bool,
    /// When to look again although nothing changed.
    pub again: Option<Timestamp>,
    /// Whether the operator configuration owns the node state, as the Go operator left it; it would go with it.
    pub disown: bool,
    /// Malformed policies because of which the spec stays as it is.
    pub held_by: Vec<String>,
}

/// A change of the annotation `keep-state-until`.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Keep {
    /// As it is.
    #[default]
    Leave,
    /// Its node left.
    Until(Timestamp),
    /// Its node came back.
    Clear,
}

pub(super) fn desired(node: &Node, now: Timestamp, stale_state_delay: Duration) -> Desired {
    let until = node.state.as_ref().and_then(|s| s.annotations().get(keys::KEEP_STATE_UNTIL));
    let disown = node.state.iter().flat_map(ResourceExt::owner_references).any(|owner| owner.kind == "SriovOperatorConfig");
    if !node.selected {
        return if node.state.is_some() { Desired { disown, ..left(until, now, stale_state_delay) } } else { Desired::default() };
    }
    let keep = if until.is_some() { Keep::Clear } else { Keep::Leave };
    let held_by = held_by(node);
    let wanted = match (&node.pfs, &node.state) {
        _ if !held_by.is_empty() => None,
        (Some(pfs), _) => Some(SriovNetworkNodeStateSpec { system: system_of(node), bridges: bridges_of(node, pfs), ..spec(&node.policies, pfs) }),
        (None, None) => Some(SriovNetworkNodeStateSpec::default()),
        // Not reported (any more): what was rendered stays.
        (None, Some(_)) => None,
    };
    let spec = wanted.filter(|wanted| node.state.as_ref().is_none_or(|state| is_other(&state.spec, wanted)));
    Desired { spec, create: node.state.is_none(), keep, disown, held_by, ..Desired::default() }
}

/// The bridges of the node, when its daemon makes them. What was said once is said again, as an empty list: a field manager that leaves out what
/// another one has part in leaves a null, which the API server refuses.
fn bridges_of(node: &Node, pfs: &[InterfaceStatus]) -> Option<Bridges> {
    let wanted = node.manages_bridges.then(|| bridges(&node.policies, pfs)).flatten();
    wanted.or_else(|| node.state.as_ref()?.spec.bridges.as_ref().map(|_| Bridges::default()))
}

/// The settings of the whole node; an empty mode in the same way.
fn system_of(node: &Node) -> Option<System> {
    let unset = || System { rdma_mode: Some(String::new()), ..System::default() };
    node.system.clone().or_else(|| node.state.as_ref()?.spec.system.as_ref().map(|_| unset()))
}

/// Whether two specs ask for different things. The Go operator writes empty objects where nothing is asked for.
fn is_other(one: &SriovNetworkNodeStateSpec, other: &SriovNetworkNodeStateSpec) -> bool {
    let said = |spec: &SriovNetworkNodeStateSpec| {
        let mut spec = spec.clone();
        spec.bridges = spec.bridges.filter(|bridges| !bridges.ovs.is_empty());
        if let Some(system) = &mut spec.system {
            system.rdma_mode = system.rdma_mode.take().filter(|mode| !mode.is_empty());
        }
        spec.system = spec.system.filter(|system| *system != System::default());
        spec
    };
    said(one) != said(other)
}

/// A node that is not selected any more keeps its state for a while, because it may come back.
fn left(until: Option<&String>, now: Timestamp, delay: Duration) -> Desired {
    if delay.is_zero() {
        return Desired { delete: true, ..Desired::default() };
    }
    match until.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(until) if until <= now => Desired { delete: true, ..Desired::default() },
        Some(until) => Desired { again: Some(until), ..Desired::default() },
        None => {
            let until = SignedDuration::try_from(delay).ok().and_then(|d| now.checked_add(d).ok()).unwrap_or(Timestamp::MAX);
            Desired { keep: Keep::Until(until), again: Some(until), ..Desired::default() }
        }
    }
}

fn held_by(node: &Node) -> Vec<String> {
    let groups = node.state.iter().flat_map(|s| &s.spec.interfaces).flat_map(|i| &i.vf_groups);
    let in_use: Vec<_> = groups.filter_map(|g| g.policy_name.as_ref()).collect();
    node.malformed.iter().filter(|name| in_use.contains(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::DeserializeGuard;
    use serde::Deserialize;
    use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovOperatorConfig};

    use super::super::gather::Gathered;
    use super::super::validate;
    use super::*;

    #[derive(Deserialize)]
    struct Input {
        #[serde(default)]
        config: Option<SriovOperatorConfig>,
        #[serde(default)]
        policies: Vec<serde_json::Value>,
        #[serde(default)]
        pools: Vec<serde_json::Value>,
        labels: BTreeMap<String, String>,
        #[serde(default)]
        state: Option<SriovNetworkNodeState>,
    }

    fn node(input: Input) -> Node {
        let guard = |value| std::sync::Arc::new(serde_json::from_value::<DeserializeGuard<SriovNetworkNodePolicy>>(value).unwrap());
        let policies = input.policies.into_iter().map(guard).collect();
        let pools = input.pools.into_iter().map(|pool| std::sync::Arc::new(serde_json::from_value(pool).unwrap())).collect();
        validate::node(Gathered { labels: Some(input.labels), config: input.config, policies, pools, state: input.state })
    }

    fn noon() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn at(input: Input, now: Timestamp) -> Desired {
        desired(&node(input), now, Duration::from_mins(30))
    }

    #[test]
    fn golden() {
        crate::golden::check("node_policy", |input: Input| {
            let mut desired = at(input, noon());
            // Of the revision it is only said that it is there: it is a hash.
            if let Some(revision) = desired.spec.as_mut().and_then(|s| s.policy_revision.as_mut()) {
                "(hash)".clone_into(revision);
            }
            serde_json::json!({
                "spec": desired.spec, "delete": desired.delete, "heldBy": desired.held_by,
                "keep": format!("{:?}", desired.keep), "again": desired.again.map(|t| t.to_string()),
            })
        });
    }

    fn input(text: &str) -> Input {
        serde_saphyr::from_str(text).unwrap()
    }

    const RENDERED: &str = r#"
labels: {feature.node.kubernetes.io/network-sriov.capable: "true", kubernetes.io/os: linux}
policies:
- {apiVersion: sriovnetwork.openshift.io/v1, kind: SriovNetworkNodePolicy, metadata: {name: one}, spec: {resourceName: a, nodeSelector: {}, nicSelector: {pfNames: [eth0]}, numVfs: 2}}
state:
  apiVersion: sriovnetwork.openshift.io/v1
  kind: SriovNetworkNodeState
  metadata: {name: n}
  spec: {}
  status: {interfaces: [{pciAddress: "0000:01:00.0", name: eth0}]}
"#;

    #[test]
    fn a_spec_that_is_already_there_is_not_written_again() {
        let mut again = input(RENDERED);
        again.state.as_mut().unwrap().spec = at(input(RENDERED), noon()).spec.unwrap();
        assert_eq!(at(again, noon()), Desired::default());
    }

    #[test]
    fn the_revision_moves_with_the_policies_and_with_nothing_else() {
        let revision = |input: Input| at(input, noon()).spec.unwrap().policy_revision.unwrap();
        let first = revision(input(RENDERED));
        let renamed = revision(input(&RENDERED.replace("name: eth0}", "name: eth9}")));
        assert_eq!(first, renamed, "PFs are not policies");
        assert_ne!(first, revision(input(&RENDERED.replace("numVfs: 2", "numVfs: 3"))));
        assert_ne!(first, revision(input(&RENDERED.replace("name: one", "name: two"))));
    }

    #[test]
    fn a_node_that_left_is_kept_until_its_time_and_then_deleted() {
        let mut gone = input(RENDERED);
        gone.labels.clear();
        let mut node = node(gone);
        let half_hour = Duration::from_mins(30);
        let marked = desired(&node, noon(), half_hour);
        let until: Timestamp = "2026-01-01T12:30:00Z".parse().unwrap();
        assert_eq!((marked.keep, marked.again, marked.delete), (Keep::Until(until), Some(until), false));
        assert!(marked.spec.is_none(), "what was wanted stays");
        assert!(desired(&node, noon(), Duration::ZERO).delete);
        let annotations = node.state.as_mut().unwrap().annotations_mut();
        annotations.insert(keys::KEEP_STATE_UNTIL.into(), until.to_string());
        assert_eq!(desired(&node, noon(), half_hour), Desired { again: Some(until), ..Desired::default() });
        assert!(desired(&node, until, half_hour).delete);
        node.selected = true;
        assert_eq!(desired(&node, until, half_hour).keep, Keep::Clear);
    }
}
