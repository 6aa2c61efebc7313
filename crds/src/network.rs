//! Pure: the three network kinds, each of which becomes a NetworkAttachmentDefinition: `SriovNetwork`, `SriovIBNetwork`, `OVSNetwork`.
//! Wire types only; `capabilities`, `ipam` and `metaPlugins` are JSON as text and are read by the operator's `network`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network whose interfaces are Ethernet VFs.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovNetwork",
    plural = "sriovnetworks",
    shortname = "sn",
    category = "sriov",
    namespaced,
    status = "NetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A network whose interfaces are Ethernet VFs.",
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resourceName"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkSpec {
    /// Last part of the extended resource whose VFs are used.
    pub resource_name: String,
    /// Namespace of the NetworkAttachmentDefinition; only allowed on objects in the operator's namespace. Unset is the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<String>,
    /// VLAN id; 0 is untagged.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: i64,
    /// 802.1p priority.
    #[serde(rename = "vlanQoS", default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 7))]
    pub vlan_qos: i64,
    /// Tag protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["802.1q", "802.1Q", "802.1ad", "802.1AD"]))]
    pub vlan_proto: Option<String>,
    /// Whether frames with a foreign source MAC are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["on", "off"]))]
    pub spoof_chk: Option<String>,
    /// Whether the VF may change its own MAC and filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["on", "off"]))]
    pub trust: Option<String>,
    /// Link state that the VF is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "enable", "disable"]))]
    pub link_state: Option<String>,
    /// Guaranteed transmit rate, Mbit/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_tx_rate: Option<i64>,
    /// Transmit rate limit, Mbit/s; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_tx_rate: Option<i64>,
    /// CNI capabilities, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<String>,
    /// IPAM configuration, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<String>,
    /// CNI plugins to chain, one or more JSON objects as text, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_plugins: Option<String>,
    /// Log level of the CNI plugin.
    #[serde(default = "default_log_level", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["panic", "error", "warning", "info", "debug", ""]))]
    pub log_level: Option<String>,
    /// Log file of the CNI plugin on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
}

/// A network whose interfaces are InfiniBand VFs.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovIBNetwork",
    plural = "sriovibnetworks",
    shortname = "sibn",
    category = "sriov",
    namespaced,
    status = "NetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A network whose interfaces are InfiniBand VFs.",
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resourceName"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovIBNetworkSpec {
    /// Last part of the extended resource whose VFs are used.
    pub resource_name: String,
    /// Namespace of the NetworkAttachmentDefinition; only allowed on objects in the operator's namespace. Unset is the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<String>,
    /// Link state that the VF is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "enable", "disable"]))]
    pub link_state: Option<String>,
    /// CNI capabilities, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<String>,
    /// IPAM configuration, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<String>,
    /// CNI plugins to chain, one or more JSON objects as text, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_plugins: Option<String>,
}

/// A network whose interfaces are VFs with a representor in an Open vSwitch bridge.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "OVSNetwork",
    plural = "ovsnetworks",
    shortname = "ovsn",
    category = "sriov",
    namespaced,
    status = "NetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A network whose interfaces are VFs with a representor in an Open vSwitch bridge.",
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resourceName"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct OVSNetworkSpec {
    /// Last part of the extended resource whose VFs are used.
    pub resource_name: String,
    /// Namespace of the NetworkAttachmentDefinition; only allowed on objects in the operator's namespace. Unset is the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<String>,
    /// CNI capabilities, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<String>,
    /// IPAM configuration, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<String>,
    /// CNI plugins to chain, one or more JSON objects as text, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_plugins: Option<String>,
    /// Bridge; unset lets the CNI plugin find it from the VF's PF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// VLAN id; 0 is untagged.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 4095))]
    pub vlan: i64,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    pub mtu: i64,
    /// VLANs of a trunk port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<TrunkConfig>,
    /// Type of the port in Open vSwitch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_type: Option<String>,
}

/// VLANs of a trunk: one id, or all from `minID` to `maxID`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrunkConfig {
    /// First VLAN id.
    #[serde(rename = "minID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4095))]
    pub min_id: Option<i64>,
    /// Last VLAN id.
    #[serde(rename = "maxID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4095))]
    pub max_id: Option<i64>,
    /// One VLAN id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4095))]
    pub id: Option<i64>,
}

/// What the operator made of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// `Ready`: whether the NetworkAttachmentDefinition is in place. `Progressing`: whether its namespace is waited for. `Degraded`: what is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_log_level() -> Option<String> {
    Some("info".to_owned())
}
