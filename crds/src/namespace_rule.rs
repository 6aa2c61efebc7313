//! Pure: `SriovNamespaceRule` (ours, cluster-scoped): which VLANs, trust and rates networks of a namespace may ask for. Wire types only; what a
//! rule means is decided in the operator's `admission`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the networks of some namespaces may ask of a VF. A network is admitted when one rule that selects its namespace allows all that it asks
/// for; a namespace that no rule selects is free.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovNamespaceRule",
    plural = "sriovnamespacerules",
    shortname = "snr",
    category = "sriov",
    status = "SriovNamespaceRuleStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Which VLANs, trust and rates the networks of some namespaces may ask for.",
    printcolumn(name = "VLANs", type_ = "string", json_path = ".spec.vlans"),
    printcolumn(name = "Trust", type_ = "boolean", json_path = ".spec.allowTrust"),
    printcolumn(name = "Max Rate", type_ = "integer", json_path = ".spec.maxTxRate"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovNamespaceRuleSpec {
    /// The namespaces that it is about, by their labels; an empty selector is all of them.
    pub namespace_selector: LabelSelector,
    /// VLAN ids that may be asked for, each a number or a range as in "100-199"; 0 is untagged. Unset allows all, an empty list none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlans: Option<Vec<String>>,
    /// Whether trust may be switched on.
    #[serde(default)]
    pub allow_trust: bool,
    /// Whether the check of source MACs may be switched off.
    #[serde(default)]
    pub allow_spoof_check_off: bool,
    /// Highest transmit rate limit in Mbit/s; when set, a network must ask for a limit, from 1 to this. Unset allows all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_tx_rate: Option<i64>,
    /// Highest guaranteed transmit rate in Mbit/s; 0 allows no guarantee. Unset allows all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_tx_rate: Option<i64>,
}

/// What the operator made of the rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SriovNamespaceRuleStatus {
    /// `Ready`: whether the rule is enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
