//! Pure: how nodes stand to what is asked of them, and what that comes to for a policy's status.

use sriov_crds::node_policy::NodeFailure;
use sriov_crds::node_state::{SYNC_FAILED, SYNC_SUCCEEDED};
use sriov_crds::resolve::overridden;
use sriov_crds::{SriovNetworkNodePolicySpec, SriovNetworkNodeState};

/// How one node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is as asked.
    Configured,
    /// Its daemon has not answered the present spec.
    Pending,
    /// Its daemon says that something could not be done.
    Failed(String),
}

/// Of all nodes of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub matched: i64,
    pub configured: i64,
    pub pending: i64,
    pub failed: i64,
    /// The first by name.
    pub first_failure: Option<NodeFailure>,
    /// What a stronger policy decides otherwise for a PF on which this one has VFs, on the first node by name; and on how many nodes.
    pub overridden: Option<(String, i64)>,
    /// The policy names a bridge, and the feature gate that makes bridges is off.
    pub bridge_ignored: bool,
}

impl Standing {
    pub(super) fn of(state: Option<&SriovNetworkNodeState>) -> Self {
        let Some(status) = state.and_then(|state| state.status.as_ref()) else { return Self::Pending };
        let rendered = state.is_some_and(|state| state.spec.policy_revision.is_some());
        // The Go daemon does not say which generation it answers.
        let answered = status.observed_generation.is_none_or(|observed| state.and_then(|s| s.metadata.generation).is_none_or(|is| is == observed));
        match status.sync_status.as_deref() {
            Some(SYNC_FAILED) => Self::Failed(status.last_sync_error.clone().unwrap_or_default()),
            Some(SYNC_SUCCEEDED) if answered && rendered => Self::Configured,
            _ => Self::Pending,
        }
    }
}

/// What is not as this policy asks on a PF of the node, although the policy has VFs there.
pub(super) fn overridden_on(name: &str, spec: &SriovNetworkNodePolicySpec, state: &SriovNetworkNodeState) -> Option<String> {
    let ours = state.spec.interfaces.iter().filter(|pf| pf.vf_groups.iter().any(|group| group.policy_name.as_deref() == Some(name)));
    let told = ours.flat_map(|pf| {
        let by = pf.vf_groups.first().and_then(|group| group.policy_name.as_deref()).unwrap_or_default();
        overridden(spec, pf)
            .into_iter()
            .map(move |(field, asked, got)| format!("{field} of PF {} is {got} and not {asked}, as policy {by} decides", pf.pci_address))
    });
    told.reduce(|all, one| format!("{all}; {one}"))
}

pub(super) fn count(standings: &[(String, Standing)]) -> Tally {
    let mut tally = Tally::default();
    for (node, standing) in standings {
        tally.matched += 1;
        match standing {
            Standing::Configured => tally.configured += 1,
            Standing::Pending => tally.pending += 1,
            Standing::Failed(message) => {
                tally.failed += 1;
                if tally.first_failure.as_ref().is_none_or(|first| node < &first.node) {
                    tally.first_failure = Some(NodeFailure { node: node.clone(), message: message.clone() });
                }
            }
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn standing(generation: i64, spec: &Value, status: &Value) -> Standing {
        let state: SriovNetworkNodeState = serde_json::from_value(json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState",
            "metadata": { "name": "n", "generation": generation }, "spec": spec, "status": status,
        }))
        .unwrap();
        Standing::of(Some(&state))
    }

    #[test]
    fn success_counts_only_for_the_spec_that_is_there_now() {
        let rendered = json!({ "policyRevision": "x" });
        assert_eq!(standing(2, &rendered, &json!({ "syncStatus": "Succeeded", "observedGeneration": 2 })), Standing::Configured);
        assert_eq!(standing(3, &rendered, &json!({ "syncStatus": "Succeeded", "observedGeneration": 2 })), Standing::Pending);
        assert_eq!(standing(3, &rendered, &json!({ "syncStatus": "Succeeded" })), Standing::Configured, "the Go daemon");
        assert_eq!(
            standing(1, &json!({}), &json!({ "syncStatus": "Succeeded", "observedGeneration": 1 })),
            Standing::Pending,
            "nothing was asked yet"
        );
        assert_eq!(standing(2, &rendered, &json!({ "syncStatus": "InProgress", "observedGeneration": 2 })), Standing::Pending);
        assert_eq!(Standing::of(None), Standing::Pending);
    }

    /// B30 of the field, where the user looks: at the policy.
    #[test]
    fn a_weaker_policys_settings_are_not_overridden_in_silence() {
        let group = |policy: &str| json!({ "policyName": policy, "vfRange": "0-1" });
        let pf = |mode: &str| json!({ "pciAddress": "0000:01:00.0", "numVfs": 4, "eSwitchMode": mode, "vfGroups": [group("strong"), group("weak")] });
        let state = |mode: &str| -> SriovNetworkNodeState {
            serde_json::from_value(json!({
                "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": "n" },
                "spec": { "interfaces": [pf(mode)] },
            }))
            .unwrap()
        };
        let weak: SriovNetworkNodePolicySpec =
            serde_json::from_value(json!({ "resourceName": "r", "nodeSelector": {}, "nicSelector": {}, "numVfs": 4, "eSwitchMode": "switchdev" }))
                .unwrap();
        let told = overridden_on("weak", &weak, &state("legacy")).unwrap();
        assert_eq!(told, "eSwitchMode of PF 0000:01:00.0 is legacy and not switchdev, as policy strong decides");
        assert_eq!(overridden_on("weak", &weak, &state("switchdev")), None);
        assert_eq!(overridden_on("elsewhere", &weak, &state("legacy")), None, "a policy without VFs there has nothing to lose");
    }

    #[test]
    fn the_first_failure_is_told_with_its_text() {
        let failed = standing(1, &json!({}), &json!({ "syncStatus": "Failed", "lastSyncError": "no IOMMU" }));
        let nodes = [("b", failed.clone()), ("a", failed), ("c", Standing::Configured), ("d", Standing::Pending)];
        let tally = count(&nodes.map(|(name, standing)| (name.to_owned(), standing)));
        assert_eq!((tally.matched, tally.configured, tally.pending, tally.failed), (4, 1, 1, 2));
        assert_eq!(tally.first_failure.unwrap(), NodeFailure { node: "a".into(), message: "no IOMMU".into() });
    }
}
