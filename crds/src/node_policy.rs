//! Pure: `SriovNetworkNodePolicy`: which VFs an administrator wants on which PFs of which nodes. Wire types only; what a policy means is decided
//! in the operator's `node_policy`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bridge::Bridge;

/// The weakest priority, which a policy has when it says none. The Go operator's schema has no default, so that a policy became the strongest
/// when its webhook was off.
pub const DEFAULT_PRIORITY: i64 = 99;
/// `deviceType` of VFs that the kernel drives.
pub const NETDEVICE: &str = "netdevice";
/// `deviceType` of VFs for userspace drivers.
pub const VFIO_PCI: &str = "vfio-pci";

/// What is wanted on the PFs that it selects.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovNetworkNodePolicy",
    plural = "sriovnetworknodepolicies",
    shortname = "snp",
    category = "sriov",
    namespaced,
    status = "SriovNetworkNodePolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "VFs wanted on the selected PFs of the selected nodes.",
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resourceName"),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".spec.numVfs"),
    printcolumn(name = "Device Type", type_ = "string", json_path = ".spec.deviceType"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.matchedNodes"),
    printcolumn(name = "Configured", type_ = "integer", json_path = ".status.configuredNodes"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failedNodes"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkNodePolicySpec {
    /// Last part of the extended resource `<prefix>/<resourceName>` that pods ask for.
    pub resource_name: String,
    /// Labels that a node must have, all of them; an empty map selects every managed node.
    pub node_selector: BTreeMap<String, String>,
    /// Which PFs; the fields are and-ed, an entirely empty selector selects nothing.
    pub nic_selector: NicSelector,
    /// VFs wanted on each selected PF.
    #[schemars(range(min = 0))]
    pub num_vfs: i64,
    /// 0 is the strongest, 99 the weakest.
    #[serde(default = "default_priority")]
    #[schemars(range(min = 0, max = 99))]
    pub priority: i64,
    /// MTU of the VFs in bytes, and lower bound of the PF's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub mtu: Option<i64>,
    /// Which driver the VFs get: the kernel's, or vfio-pci.
    #[serde(default = "default_device_type")]
    #[schemars(extend("enum" = ["netdevice", "vfio-pci"]))]
    pub device_type: String,
    /// Whether the VFs are to be usable for RDMA.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub is_rdma: bool,
    /// Whether pods also get /dev/vhost-net and /dev/net/tun.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub need_vhost_net: bool,
    /// Wanted link layer of the PF; unset keeps what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["eth", "ETH", "ib", "IB"]))]
    pub link_type: Option<String>,
    /// Wanted eswitch mode of the PF; unset is legacy.
    #[serde(rename = "eSwitchMode", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["legacy", "switchdev"]))]
    pub eswitch_mode: Option<String>,
    /// vDPA device to create for each VF.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["virtio", "vhost"]))]
    pub vdpa_type: Option<String>,
    /// Whether the device plugin leaves the NUMA node out.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub exclude_topology: bool,
    /// Whether the VFs were made by someone else: they are bound and checked, never created or removed.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub externally_managed: bool,
    /// Software bridge to put the PF into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
}

/// Which PFs of a node a policy means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NicSelector {
    /// PCI vendor, four hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// PCI device of the PF, four hexadecimal digits.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// PCI addresses of PFs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_devices: Vec<String>,
    /// Names or alternative names of PFs, each optionally with a VF range as in ens1f0#0-3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pf_names: Vec<String>,
    /// Network of a cloud: openstack/NetworkID:<uuid> or aws/NetworkID:<subnet>.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_filter: Option<String>,
}

/// What the operator made of a policy. Ours: the Go operator's status is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkNodePolicyStatus {
    /// Managed nodes that it selects.
    #[serde(default)]
    pub matched_nodes: i64,
    /// Those that carried out everything asked of them.
    #[serde(default)]
    pub configured_nodes: i64,
    /// Those that have not yet.
    #[serde(default)]
    pub pending_nodes: i64,
    /// Those that could not.
    #[serde(default)]
    pub failed_nodes: i64,
    /// The first node, by name, that could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<NodeFailure>,
    /// `Ready`: whether the policy takes part. `Progressing`: whether nodes are at it. `Degraded`: whether some could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A node that could not carry out a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFailure {
    /// Its name.
    pub node: String,
    /// What it says.
    pub message: String,
}

fn default_priority() -> i64 {
    DEFAULT_PRIORITY
}

fn default_device_type() -> String {
    NETDEVICE.to_owned()
}
