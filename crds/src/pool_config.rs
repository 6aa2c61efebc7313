//! Pure: `SriovNetworkPoolConfig`: nodes that are drained together, and their RDMA mode. Wire types only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool of nodes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovNetworkPoolConfig",
    plural = "sriovnetworkpoolconfigs",
    shortname = "snpc",
    category = "sriov",
    namespaced,
    status = "SriovNetworkPoolConfigStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Nodes that are drained together, and their RDMA mode.",
    printcolumn(name = "Max Unavailable", type_ = "string", json_path = ".spec.maxUnavailable"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.draining"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkPoolConfigSpec {
    /// Members of the pool; unset is all nodes. A node may be in one pool at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// How many members may be drained at a time: a number, or a percentage as in "33%"; unset is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// Whether RDMA devices are shared between network namespaces on the members.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["shared", "exclusive"]))]
    pub rdma_mode: Option<String>,
    /// Ours: how far a drain goes at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// OpenShift: pool whose Open vSwitch offloads to hardware; excludes the other fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ovs_hardware_offload_config: Option<OvsHardwareOffloadConfig>,
}

/// Ours: a drain of the whole pool in stages, the first of which are canaries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Nodes (a number or a percentage of the pool, growing) that are through before the next stage begins; after the last one, all the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<IntOrString>,
    /// Whether no further node is drained while a node of the pool says that it failed.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub stop_on_failure: bool,
}

/// Hardware offload of Open vSwitch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsHardwareOffloadConfig {
    /// Name of the MachineConfigPool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the operator made of the pool. Ours: the Go operator's status is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkPoolConfigStatus {
    /// Nodes of the pool.
    #[serde(default)]
    pub nodes: i64,
    /// How many of them may be drained at a time; absent is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<i64>,
    /// Nodes that are being drained or configured.
    #[serde(default)]
    pub draining: i64,
    /// Nodes that wait for their turn.
    #[serde(default)]
    pub waiting: i64,
    /// Nodes that are through since the pool was last at rest.
    #[serde(default)]
    pub done: i64,
    /// `Ready`: whether the pool can be used. `Progressing`: whether nodes are drained. `Degraded`: whether something stops it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
