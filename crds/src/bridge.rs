//! Pure: the managed software bridge of a PF, as a policy asks for it and as a node state lists it. Wire types only.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A policy's bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// An Open vSwitch bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ovs: Option<OvsPolicy>,
}

/// An Open vSwitch bridge with one uplink, the PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsPolicy {
    /// Settings of the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<OvsBridgeConfig>,
    /// Settings of the port that the PF becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<OvsUplinkPolicy>,
}

/// The uplink part of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsUplinkPolicy {
    /// Row of OVSDB's `Interface` table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<OvsInterface>,
}

/// Settings in OVSDB's `Bridge` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsBridgeConfig {
    /// `datapath_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_type: Option<String>,
    /// `external_ids`.
    #[serde(rename = "externalIDs", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub external_ids: BTreeMap<String, String>,
    /// `other_config`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_config: BTreeMap<String, String>,
    /// `fail_mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["secure", "standalone"]))]
    pub fail_mode: Option<String>,
}

/// Settings in OVSDB's `Interface` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsInterface {
    /// `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `options`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// `external_ids`.
    #[serde(rename = "externalIDs", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub external_ids: BTreeMap<String, String>,
    /// `other_config`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_config: BTreeMap<String, String>,
    /// `mtu_request`, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_request: Option<i64>,
}

/// The bridges of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bridges {
    /// Open vSwitch bridges, in order of name. Written also when there is none: what another field manager wrote goes away only by being told.
    #[serde(default)]
    pub ovs: Vec<OvsBridge>,
}

/// One Open vSwitch bridge of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsBridge {
    /// Its name, `br-` and the PCI address of the PF with `_` for `:`.
    pub name: String,
    /// Its settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<OvsBridgeConfig>,
    /// Its uplinks; exactly one is ever rendered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<OvsUplink>,
}

/// A PF that is the uplink of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OvsUplink {
    /// PCI address of the PF.
    pub pci_address: String,
    /// Netdev name of the PF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Settings of the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<OvsInterface>,
}
