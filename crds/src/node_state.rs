//! Pure: `SriovNetworkNodeState`: what one node's PFs are to be (spec, written by the operator only) and what they are (status, written by the
//! config daemon only). Named after its node. Wire types only.
//!
//! Invariant: a spec without `policyRevision` and without interfaces was not rendered yet; the daemon then changes nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bridge::Bridges;

/// `syncStatus` when the node is as asked.
pub const SYNC_SUCCEEDED: &str = "Succeeded";
/// `syncStatus` while the daemon works.
pub const SYNC_IN_PROGRESS: &str = "InProgress";
/// `syncStatus` when something could not be done.
pub const SYNC_FAILED: &str = "Failed";

/// What the operator wants of a node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovNetworkNodeState",
    plural = "sriovnetworknodestates",
    shortname = "sns",
    category = "sriov",
    namespaced,
    status = "SriovNetworkNodeStateStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What the PFs of one node are to be, and what they are.",
    printcolumn(name = "PFs", type_ = "integer", json_path = ".status.pfCount"),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".status.vfCount"),
    printcolumn(name = "Sync Status", type_ = "string", json_path = ".status.syncStatus"),
    printcolumn(name = "Desired Sync State", type_ = "string", json_path = r".metadata.annotations.sriovnetwork\.openshift\.io/desired-state"),
    printcolumn(name = "Current Sync State", type_ = "string", json_path = r".metadata.annotations.sriovnetwork\.openshift\.io/current-state"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkNodeStateSpec {
    /// The PFs that policies want something of; a PF that is not here is not wanted by any. Written also when there is none: what another field
    /// manager wrote goes away only by being told.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Software bridges wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridges: Option<Bridges>,
    /// Settings of the whole node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<System>,
    /// Ours: a hash of the policies that this spec was rendered from, written on every render. Absent together with no interfaces means "not
    /// rendered yet", which is not "nothing wanted".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
}

/// What is wanted of one PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// PCI address of the PF, by which it is known.
    pub pci_address: String,
    /// Netdev name of the PF when this was rendered; information only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// VFs wanted.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    pub num_vfs: i64,
    /// MTU of the PF in bytes, a lower bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Link layer wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_type: Option<String>,
    /// Eswitch mode wanted.
    #[serde(rename = "eSwitchMode", skip_serializing_if = "Option::is_none")]
    pub eswitch_mode: Option<String>,
    /// Whether someone else creates the VFs.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub externally_managed: bool,
    /// What the VFs are for, one group per contributing policy; the first group that has a VF's index counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vf_groups: Vec<VfGroup>,
}

/// What is wanted of a range of VFs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VfGroup {
    /// Last part of the extended resource name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    /// `netdevice` or `vfio-pci`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_type: Option<String>,
    /// The VFs meant, `first-last`, inclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vf_range: Option<String>,
    /// Name of the policy that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    /// MTU of the VFs in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Whether the VFs are to be usable for RDMA.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub is_rdma: bool,
    /// vDPA device to create for each VF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa_type: Option<String>,
    /// Ours: whether pods also get /dev/vhost-net and /dev/net/tun.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub need_vhost_net: bool,
    /// Ours: whether the device plugin leaves the NUMA node out.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub exclude_topology: bool,
}

/// Settings of the whole node, wanted (spec) or found (status).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct System {
    /// Whether RDMA devices are shared between network namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["shared", "exclusive", ""]))]
    pub rdma_mode: Option<String>,
    /// Ours, status only: `active` or `inactive`; VFs for userspace drivers need an active IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<String>,
}

/// What the daemon found and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SriovNetworkNodeStateStatus {
    /// The PFs of the node, in order of PCI address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceStatus>,
    /// Ours: how many PFs the node has; for the list that people see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pf_count: Option<i64>,
    /// Ours: how many VFs all PFs of the node have now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vf_count: Option<i64>,
    /// Software bridges found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridges: Option<Bridges>,
    /// Settings of the node found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<System>,
    /// `Succeeded`, `InProgress` or `Failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_status: Option<String>,
    /// What went wrong last; empty when nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_error: Option<String>,
    /// Ours: `metadata.generation` that this status answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ours: what the daemon is going to do or could not do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// Ours: `Ready`, `Progressing`, `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The daemon's plan, published before it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// What the plan costs the node: `None`, `EvictPods`, `Drain` or `Reboot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disruption: Option<String>,
    /// The steps in order, each one line for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// Extended resources, with their prefix, whose pods must leave before the steps can run; empty together with a disruption of `EvictPods`
    /// means those of all our resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evict_resources: Vec<String>,
    /// PFs (or parts of them) that are left alone, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

/// One wish that the daemon does not fulfil.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// PCI address of the PF.
    pub pci_address: String,
    /// Netdev name of the PF, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One word for programs.
    pub reason: String,
    /// What a person needs to know to change it.
    pub message: String,
}

/// A PF as found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// PCI address.
    pub pci_address: String,
    /// Netdev name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Alternative names of the netdev.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alt_names: Vec<String>,
    /// Hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Bound kernel driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// PCI vendor, four hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// PCI device, four hexadecimal digits.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Ours: vendor and model in words, by the PCI ID list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Network of the cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_filter: Option<String>,
    /// MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// VFs it has now.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    pub num_vfs: i64,
    /// Most VFs it can have. The spelling is the API's.
    #[serde(rename = "totalvfs", default, skip_serializing_if = "crate::is_zero")]
    pub total_vfs: i64,
    /// Link speed as text, `N Mb/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_speed: Option<String>,
    /// `ETH` or `IB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_type: Option<String>,
    /// `up` or `down`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_admin_state: Option<String>,
    /// `legacy` or `switchdev`.
    #[serde(rename = "eSwitchMode", skip_serializing_if = "Option::is_none")]
    pub eswitch_mode: Option<String>,
    /// Whether someone else creates the VFs.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub externally_managed: bool,
    /// Ours: whether the model is listed in `supported-nic-ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,
    /// Ours: why the PF is not configured as asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The VFs, in order of index. The spelling is the API's.
    #[serde(rename = "Vfs", default, skip_serializing_if = "Vec::is_empty")]
    pub vfs: Vec<VfStatus>,
}

/// A VF as found. Name, MAC and MTU are absent while it is in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VfStatus {
    /// PCI address.
    pub pci_address: String,
    /// Index on the PF.
    #[serde(rename = "vfID")]
    pub vf_id: i64,
    /// Netdev name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Bound driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// PCI vendor, four hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// PCI device, four hexadecimal digits.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// vDPA device type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa_type: Option<String>,
    /// Netdev name of the representor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub representor_name: Option<String>,
    /// InfiniBand GUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
    /// Port VLAN; the Go daemon never fills it. The spelling is the API's.
    #[serde(rename = "Vlan", skip_serializing_if = "Option::is_none")]
    pub vlan: Option<i64>,
    /// Who uses it; the Go daemon never fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned: Option<String>,
    /// Ours: IOMMU group number, the `N` of `/dev/vfio/N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<i64>,
}
