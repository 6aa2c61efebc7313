//! Pure: the pod of the device plugin, which has no cluster credentials and no capability.
//!
//! Invariant: on a node the newer pod runs, and the kubelet has taken its pools, before the older one ends: an update costs no device for a moment,
//! and a version that the kubelet does not take replaces none.

use k8s_openapi::api::apps::v1::RollingUpdateDaemonSet;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, ExecAction, Probe, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sriov_crds::{SriovOperatorConfigSpec, keys};

use super::{Node, container, mount, mount_netns, security};
use crate::context::Settings;

/// Where the daemon leaves the device plugin its configuration.
const PLUGIN_CONFIG: &str = "/run/sriov-operator/device-plugin/config.json";
/// Volume, folder and file by which the plugin says that it is ready.
const READY: &str = "ready";
const READY_FOLDER: &str = "/run/sriov-device-plugin";
const READY_FILE: &str = "/run/sriov-device-plugin/ready";

pub(super) fn node(spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> Node {
    Node {
        name: keys::PLUGIN_DAEMON_SET,
        init_containers: vec![],
        containers: vec![device_plugin(spec.is_some_and(|s| s.use_cdi), settings)],
        volumes: vec![Volume { name: READY.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }],
        update: RollingUpdateDaemonSet { max_surge: Some(IntOrString::String("33%".to_owned())), max_unavailable: Some(IntOrString::Int(0)) },
    }
}

fn device_plugin(cdi: bool, settings: &Settings) -> Container {
    let mut command = vec![
        "/sriov-device-plugin",
        "--config-file",
        PLUGIN_CONFIG,
        "--resource-prefix",
        &settings.resource_prefix,
        "--root",
        "/host",
        "--http-address",
        "0.0.0.0:9808",
        "--ready-file",
        READY_FILE,
    ];
    if cdi {
        command.push("--use-cdi");
    }
    let mut mounts = vec![
        // With these it knows which VFs pods have, and which pods those are.
        mount("cni-state", "/host/var/lib/cni/sriov", true),
        mount_netns(),
        mount("pod-resources", "/var/lib/kubelet/pod-resources", true),
        mount("sys", "/host/sys", true),
        mount("run", "/run/sriov-operator", true),
        mount("device-plugins", "/var/lib/kubelet/device-plugins", false),
        mount("plugins-registry", "/var/lib/kubelet/plugins_registry", false),
        mount("device-info", "/var/run/k8s.cni.cncf.io/devinfo/dp", false),
        mount(READY, READY_FOLDER, false),
    ];
    if cdi {
        mounts.push(mount("cdi", "/var/run/cdi", false));
    }
    Container { startup_probe: Some(is_ready()), ..container("device-plugin", settings, &command, security(&[]), mounts) }
}

/// Asked until the kubelet has taken all pools, and never again.
fn is_ready() -> Probe {
    let command = ["/sriov-device-plugin", "--ready-file", READY_FILE, "--is-ready"].map(str::to_owned);
    Probe {
        exec: Some(ExecAction { command: Some(command.into()) }),
        period_seconds: Some(2),
        timeout_seconds: Some(5),
        // A kubelet that takes none for this long: a new start may help, and is seen.
        failure_threshold: Some(90),
        ..Probe::default()
    }
}
