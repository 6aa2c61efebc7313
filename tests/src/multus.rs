//! Pure: the contract between Multus and the world, as far as our tests lean on it: names, paths, forms. What acts on it is in the modules below.
//!
//! Multus is in no package registry, so the tests ship a stand-in (`bin/multus_standin.rs`, for tests only) that honours this contract.
//! `LAB_MULTUS_DIR` puts real Multus in its place ([`shipping`]). Where the stand-in and Multus differ, Multus is right and this file is to be mended.
//!
//! Sources: "Kubernetes Network Custom Resource Definition De-facto Standard", version 1.3 (below: NPWG §); the device information
//! specification, version 1.1.0 (below: DEVINFO §); the CNI specification 1.1 (below: CNI §); Multus 4.2, `pkg/multus/multus.go`,
//! `pkg/k8sclient/k8sclient.go`, `pkg/types/conf.go` and `pkg/netutils`, for what the standard leaves open.
//!
//! | step | what happens | source |
//! |---|---|---|
//! | 1 | `CNI_ARGS` names the pod; a pod that the API does not know gets an empty success; another UID than the API's is an error | multus.go `GetPod` |
//! | 2 | the cluster's first network is a configuration list on the node; [`DEFAULT_NETWORK`] of the pod replaces it with a NAD | NPWG §4.1.2 |
//! | 3 | [`NETWORKS`] of the pod lists the others, as `[<namespace>/]<name>[@<interface>]` with commas, or as JSON | NPWG §4.1.1 |
//! | 4 | a NAD's `spec.config` is one plugin's configuration or a list of them; an empty one is searched in `confDir` by name | NPWG §3.2 |
//! | 5 | [`RESOURCE_NAME`] of the NAD: the devices of the pod are asked from the kubelet, all containers' together, sorted, one for each use | k8sclient.go |
//! | 6 | that device enters each plugin's configuration as `deviceID` and as `pciBusID` | conf.go `delegateAddDeviceID` |
//! | 7 | `runtimeConfig` holds what was requested, each part only for plugins that declare the capability | CNI conventions, NPWG §4.1.1 |
//! | 8 | the plugins run in order; the first network's interface is the runtime's, the n-th other one's is `net<n>` unless requested | NPWG §5 |
//! | 9 | a failed ADD deletes what was added before it, last first, and is reported | multus.go `cmdAdd` |
//! | 10 | [`NETWORK_STATUS`] is written to the pod; the result of the first network is the result | NPWG §4.2 |
//! | 11 | DEL uses what ADD left in `cniDir`, last network first, goes on over failures and returns them; nothing known is a success | multus.go `cmdDel` |
//! | 12 | the device plugin's device information is copied for each network before ADD, and removed at DEL | DEVINFO §4 |
//!
//! Not honoured, because none of our tests needs it: namespace isolation, DRA claims, the kubelet checkpoint as a source of devices, default
//! route changes, the log options, chained auxiliary plugins.

pub mod annotation;
pub mod cache;
pub mod cluster;
pub mod delegate;
pub mod plugin;
pub mod shipping;
pub mod status;
pub mod verbs;

use std::path::PathBuf;

use serde::Deserialize;

/// Pod annotation: the networks besides the first.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Pod annotation: a NAD in place of the cluster's first network; without a namespace it is looked for in [`MULTUS_NAMESPACE`].
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// Pod annotation, written at the end of ADD.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// NAD annotation: the extended resource that backs the network.
pub const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";
/// Where default networks are looked for.
pub const MULTUS_NAMESPACE: &str = "kube-system";
/// The kubelet's PodResources service, version v1.
pub const POD_RESOURCES_SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
/// Device information: the device plugin writes below `dp`, the copies for the CNI are below `cni`.
pub const DEVICE_INFO_FOLDER: &str = "/var/run/k8s.cni.cncf.io/devinfo";

/// The configuration that the runtime passes on standard input: the keys of Multus' own configuration that the stand-in knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conf {
    /// CNI version that the runtime speaks, and that results are given in.
    #[serde(default)]
    pub cni_version: Option<String>,
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Path of the configuration list of the cluster's first network.
    pub cluster_network: PathBuf,
    /// Where plugins are looked for before `CNI_PATH`.
    #[serde(default = "default_bin_dir")]
    pub bin_dir: PathBuf,
    /// What must be remembered between ADD and DEL.
    #[serde(default = "default_cni_dir")]
    pub cni_dir: PathBuf,
    /// Where configurations of NADs without one are looked for.
    #[serde(default = "default_conf_dir")]
    pub conf_dir: PathBuf,
    /// Keep what ADD left until a DEL succeeds. Multus' default is to forget it at the first DEL.
    #[serde(default)]
    pub retry_delete_on_error: bool,
    /// Requests of the runtime, passed on to the first network.
    #[serde(default)]
    pub runtime_config: serde_json::Map<String, serde_json::Value>,
    /// The kubelet's socket; only tests set it.
    #[serde(default = "default_socket")]
    pub pod_resources_socket: PathBuf,
    /// Parent of `dp` and `cni`; only tests set it.
    #[serde(default = "default_device_info")]
    pub device_info_folder: PathBuf,
}

fn default_bin_dir() -> PathBuf {
    "/opt/cni/bin".into()
}
fn default_cni_dir() -> PathBuf {
    "/var/lib/cni/multus".into()
}
fn default_conf_dir() -> PathBuf {
    "/etc/cni/multus/net.d".into()
}
fn default_socket() -> PathBuf {
    POD_RESOURCES_SOCKET.into()
}
fn default_device_info() -> PathBuf {
    DEVICE_INFO_FOLDER.into()
}

/// The pod that a request is for, from `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; older runtimes leave it out.
    pub uid: Option<String>,
}

impl PodRef {
    /// Reads `KEY=value;KEY=value`; `None` if it names no pod.
    pub fn from_cni_args(args: &str) -> Option<Self> {
        let value = |key: &str| {
            let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned()).next()
        };
        Some(Self { namespace: value("K8S_POD_NAMESPACE")?, name: value("K8S_POD_NAME")?, uid: value("K8S_POD_UID") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_read_from_the_arguments_of_the_runtime() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=red;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";
        let pod = PodRef::from_cni_args(args).unwrap();
        assert_eq!(pod, PodRef { namespace: "red".into(), name: "web".into(), uid: Some("u1".into()) });
        assert_eq!(PodRef::from_cni_args("K8S_POD_NAMESPACE=red;K8S_POD_NAME=web").unwrap().uid, None);
        assert_eq!(PodRef::from_cni_args("IgnoreUnknown=1"), None);
        assert_eq!(PodRef::from_cni_args("K8S_POD_NAMESPACE=;K8S_POD_NAME=web"), None);
    }

    #[test]
    fn a_short_configuration_gets_the_paths_of_multus() {
        let text = r#"{"cniVersion":"1.0.0","kubeconfig":"/k","clusterNetwork":"/c"}"#;
        let conf: Conf = serde_json::from_str(text).unwrap();
        assert_eq!(conf.bin_dir, PathBuf::from("/opt/cni/bin"));
        assert_eq!(conf.cni_dir, PathBuf::from("/var/lib/cni/multus"));
        assert!(!conf.retry_delete_on_error);
        assert!(serde_json::from_str::<Conf>(r#"{"kubeconfig":"/k"}"#).is_err(), "the first network must be named");
    }
}
