//! Pure: `SriovOperatorConfig`: settings of the product itself. Only the object named `default` in the operator's namespace is honoured.
//! Wire types only.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the product.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sriovnetwork.openshift.io",
    version = "v1",
    kind = "SriovOperatorConfig",
    plural = "sriovoperatorconfigs",
    shortname = "soc",
    category = "sriov",
    namespaced,
    status = "SriovOperatorConfigStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Settings of the SR-IOV operator; only the object named default in the operator's namespace counts.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SriovOperatorConfigSpec {
    /// Labels of the nodes that are managed; replaces the default selector entirely when not empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_daemon_node_selector: BTreeMap<String, String>,
    /// Whether the network resources injector runs.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub enable_injector: bool,
    /// Whether the admission webhook runs.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub enable_operator_webhook: bool,
    /// 0 to 2; higher logs more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2))]
    pub log_level: Option<i64>,
    /// Whether nodes are configured without draining.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub disable_drain: bool,
    /// Never read, as in the Go operator; accepted for compatibility.
    #[serde(default, skip_serializing_if = "crate::is_false")]
    pub enable_ovs_offload: bool,
    /// Who applies the configuration at boot; unset is daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["daemon", "systemd"]))]
    pub configuration_mode: Option<String>,
    /// Whether the device plugin names devices by CDI.
    #[serde(rename = "useCDI", default, skip_serializing_if = "crate::is_false")]
    pub use_cdi: bool,
    /// Vendor parts of the daemon that are switched off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = {"type": "string", "enum": ["mellanox"]}))]
    pub disable_plugins: Vec<String>,
    /// Feature gates; names that are not known do nothing, and the webhook says so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// Environment variables added to the daemon's container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_daemon_env_vars: BTreeMap<String, String>,
}

/// What the operator made of the settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SriovOperatorConfigStatus {
    /// Never written, as in the Go operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injector: Option<String>,
    /// Never written, as in the Go operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_webhook: Option<String>,
    /// `Ready`: whether everything was deployed as asked. `Progressing`: whether pods are being replaced. `Degraded`: what is not done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
