//! Pure: the operator configuration, pools and networks before they are stored (pkg/webhook/validate.go of the Go operator). What CEL decides is
//! repeated only where an older CustomResourceDefinition would let it pass.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use sriov_crds::{SriovNetworkPoolConfig, SriovNetworkPoolConfigSpec, SriovNetworkSpec, SriovOperatorConfigSpec, keys};

use super::policy::forecast::Node;
use super::review::some_of;
use crate::drain::pools::pools_of;
use crate::operator_config::gates;

/// Why an operator configuration is refused for its name; the others are ignored by the operator.
pub(super) fn misplaced_config(name: &str, namespace: &str, operator_namespace: &str) -> Option<String> {
    (name != keys::DEFAULT_CONFIG || namespace != operator_namespace).then(|| {
        format!("only the SriovOperatorConfig named {} in namespace {operator_namespace} counts, given: {namespace}/{name}", keys::DEFAULT_CONFIG)
    })
}

/// True when drains are switched off by this write.
pub(super) fn switches_drain_off(new: &SriovOperatorConfigSpec, old: Option<&SriovOperatorConfigSpec>) -> bool {
    new.disable_drain && old.is_some_and(|old| !old.disable_drain)
}

/// What an operator configuration says that is worth a second look.
pub(super) fn config_remarks(spec: &SriovOperatorConfigSpec) -> Vec<String> {
    let mut remarks = vec![];
    if spec.disable_drain {
        remarks.push("disableDrain is set: VFs may be taken away from pods that use them".to_owned());
    }
    if spec.enable_ovs_offload {
        remarks.push("enableOvsOffload does nothing; it is accepted for compatibility".to_owned());
    }
    remarks.extend(gates::remarks(&spec.feature_gates));
    remarks
}

/// Why a pool is refused.
pub(super) fn pool(spec: &SriovNetworkPoolConfigSpec) -> Result<(), String> {
    let offload = spec.ovs_hardware_offload_config.as_ref().and_then(|config| config.name.as_deref()).unwrap_or_default();
    if !offload.is_empty() && (spec.max_unavailable.is_some() || spec.node_selector.is_some()) {
        return Err("ovsHardwareOffloadConfig.name excludes maxUnavailable and nodeSelector".to_owned());
    }
    let allowed = match &spec.max_unavailable {
        None => true,
        Some(IntOrString::Int(number)) => *number >= 0,
        Some(IntOrString::String(text)) => {
            text.strip_suffix('%').and_then(|digits| digits.parse::<u8>().ok()).is_some_and(|percent| (1..=100).contains(&percent))
        }
    };
    if allowed { Ok(()) } else { Err("maxUnavailable must be a number from 0, or a percentage from 1% to 100%".to_owned()) }
}

/// Why a pool is refused for the sake of others: it selects a managed node that one of them has already. `others` has not the pool itself.
pub(super) fn overlap(pool: &SriovNetworkPoolConfig, others: &[SriovNetworkPoolConfig], nodes: &[Node]) -> Option<String> {
    let twice: Vec<(&Node, String)> = nodes
        .iter()
        .filter(|node| !pools_of([pool], &node.labels).is_empty())
        .filter_map(|node| pools_of(others, &node.labels).first().map(|other| (node, other.name_any())))
        .collect();
    let (_, first) = twice.first()?;
    let names: Vec<String> = twice.iter().filter(|(_, other)| other == first).map(|(node, _)| node.name.clone()).collect();
    Some(format!("a node may be in one pool only: pool {first} has {} already; narrow one of the two selectors first", some_of(&names)))
}

/// What a pool says that is worth a second look.
pub(super) fn pool_remarks(spec: &SriovNetworkPoolConfigSpec) -> Vec<String> {
    match &spec.max_unavailable {
        None => vec!["maxUnavailable is not set: all nodes of the pool may be drained at the same time".to_owned()],
        Some(IntOrString::Int(0)) => vec!["maxUnavailable is 0: no node of the pool is ever drained".to_owned()],
        Some(_) => vec![],
    }
}

/// Why the rates of a network are refused.
pub(super) fn rates(spec: &SriovNetworkSpec) -> Result<(), String> {
    match (spec.min_tx_rate, spec.max_tx_rate) {
        (Some(min), Some(max)) if max > 0 && min > max => Err(format!("minTxRate {min} is above maxTxRate {max}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_configuration_counts() {
        assert_eq!(misplaced_config("default", "ops", "ops"), None);
        assert!(misplaced_config("other", "ops", "ops").unwrap().contains("given: ops/other"));
        assert!(misplaced_config("default", "apps", "ops").is_some());
    }

    #[test]
    fn drains_are_switched_off_by_the_step_from_on_to_off() {
        let spec = |disable_drain| SriovOperatorConfigSpec { disable_drain, ..SriovOperatorConfigSpec::default() };
        assert!(switches_drain_off(&spec(true), Some(&spec(false))));
        assert!(!switches_drain_off(&spec(true), Some(&spec(true))));
        assert!(!switches_drain_off(&spec(true), None), "a new configuration drains nothing yet");
        assert_eq!(config_remarks(&spec(true)).len(), 1);
    }

    #[test]
    fn a_pool_says_how_many_in_a_way_that_means_something() {
        let spec = |value: serde_json::Value| serde_json::from_value::<SriovNetworkPoolConfigSpec>(value).unwrap();
        let max = |value: serde_json::Value| pool(&spec(serde_json::json!({ "maxUnavailable": value })));
        for good in [serde_json::json!(0), serde_json::json!(7), serde_json::json!("1%"), serde_json::json!("100%")] {
            assert_eq!(max(good), Ok(()));
        }
        for bad in [serde_json::json!(-1), serde_json::json!("0%"), serde_json::json!("101%"), serde_json::json!("5"), serde_json::json!("x")] {
            assert!(max(bad.clone()).is_err(), "{bad}");
        }
        let offload = serde_json::json!({ "nodeSelector": {}, "ovsHardwareOffloadConfig": { "name": "m" } });
        assert!(pool(&spec(offload)).is_err());
        assert!(pool_remarks(&spec(serde_json::json!({})))[0].contains("all nodes"));
        assert!(pool_remarks(&spec(serde_json::json!({ "maxUnavailable": 0 })))[0].contains("ever"));
    }

    #[test]
    fn a_node_in_two_pools_is_refused_and_named() {
        let pool = |name: &str, spec: serde_json::Value| SriovNetworkPoolConfig::new(name, serde_json::from_value(spec).unwrap());
        let rack = |name: &str, rack: &str| pool(name, serde_json::json!({ "nodeSelector": { "matchLabels": { "rack": rack } } }));
        let node = |name: &str, rack: &str| Node { name: name.into(), labels: [("rack".to_owned(), rack.to_owned())].into(), ..Node::default() };
        let nodes = [node("a", "1"), node("b", "1"), node("c", "2")];
        assert_eq!(overlap(&rack("new", "1"), &[rack("old", "2")], &nodes), None);
        let why = overlap(&rack("new", "1"), &[rack("other", "2"), rack("old", "1")], &nodes).unwrap();
        assert!(why.contains("pool old has a, b already"), "{why}");
        assert!(overlap(&pool("all", serde_json::json!({})), &[rack("old", "2")], &nodes).unwrap().contains("has c already"));
        assert_eq!(overlap(&rack("new", "3"), &[rack("old", "3")], &nodes), None, "no node is there yet");
        let offload = pool("offload", serde_json::json!({ "ovsHardwareOffloadConfig": { "name": "m" } }));
        assert_eq!(overlap(&offload, &[rack("old", "1")], &nodes), None, "it is not about nodes");
    }

    #[test]
    fn a_guarantee_is_not_above_the_limit() {
        let spec = |min, max| SriovNetworkSpec { min_tx_rate: min, max_tx_rate: max, ..SriovNetworkSpec::default() };
        assert!(rates(&spec(Some(10), Some(9))).is_err());
        assert!(rates(&spec(Some(10), Some(0))).is_ok(), "0 is no limit");
        assert!(rates(&spec(Some(10), None)).is_ok());
    }
}
