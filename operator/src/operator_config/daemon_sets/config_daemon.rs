//! Pure: the pod of the config daemon: init containers that put the CNI plugin and, in systemd mode, the unit in place, and the daemon with its
//! cluster credentials. Invariant: only the daemon's container has the credentials.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::apps::v1::RollingUpdateDaemonSet;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, EnvVar, EnvVarSource, HTTPGetAction,
    HostPathVolumeSource, KeyToPath, ObjectFieldSelector, Probe, ProjectedVolumeSource, SecurityContext, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sriov_crds::{SriovOperatorConfigSpec, keys};

use super::{CNI_BIN, Node, container, mount, mount_netns, security};
use crate::context::Settings;
use crate::operator_config::gates;

/// Volume with the daemon's cluster credentials.
pub(super) const CREDENTIALS: &str = "credentials";
/// Longest life of a credential; the kubelet renews it before.
const TOKEN_SECONDS: i64 = 3607;

/// Variable with the address of the daemon's /metrics, /healthz and /readyz, and what it is unless `configDaemonEnvVars` says something else: the
/// pod has the node's network, so only the node itself reaches it.
const HTTP_ADDRESS: (&str, &str) = ("HTTP_BIND_ADDRESS", "127.0.0.1:9178");

/// Volume with the socket of Open vSwitch's database.
const OPENVSWITCH: &str = "openvswitch";

/// Variable with the socket, and what it is unless `configDaemonEnvVars` says something else.
const OVSDB_SOCKET: (&str, &str) = ("OVSDB_SOCKET_PATH", "unix:///var/run/openvswitch/db.sock");

/// The value of `configurationMode` that adds the unit.
pub(super) const SYSTEMD: &str = "systemd";

/// Init container of systemd mode.
pub(in super::super) const INSTALL_UNIT: &str = "install-unit";

pub(super) fn node(spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> Node {
    let systemd = mode(spec) == SYSTEMD;
    Node {
        name: keys::NODE_DAEMON_SET,
        init_containers: [install_cni(settings)].into_iter().chain(systemd.then(|| install_unit(settings))).collect(),
        containers: vec![config_daemon(spec, settings)],
        volumes: [credentials()].into_iter().chain(manages_bridges(spec).then(|| openvswitch(spec))).collect(),
        update: RollingUpdateDaemonSet { max_unavailable: Some(IntOrString::String("33%".to_owned())), ..RollingUpdateDaemonSet::default() },
    }
}

fn install_cni(settings: &Settings) -> Container {
    let command = ["/sriov-config-daemon", "install-cni", "--from", "/sriov", "--to", "/host/opt/cni/bin/sriov"];
    container("install-cni", settings, &command, security(&[]), vec![mount(CNI_BIN, "/host/opt/cni/bin", false)])
}

/// Systemd mode: the unit, and the program that it runs at boot.
fn install_unit(settings: &Settings) -> Container {
    let command = ["/sriov-config-daemon", "install-unit", "--from", "/sriov-config-daemon", "--root", "/host"];
    let mounts = vec![mount("host-programs", "/host/var/lib/sriov", false), mount("systemd-units", "/host/etc/systemd/system", false)];
    container(INSTALL_UNIT, settings, &command, security(&[]), mounts)
}

/// What the daemon's container sees of Open vSwitch: the folder of its database's socket, when bridges are managed.
fn openvswitch(spec: Option<&SriovOperatorConfigSpec>) -> Volume {
    let host_path = HostPathVolumeSource { path: socket_folder(spec), type_: Some("DirectoryOrCreate".to_owned()) };
    Volume { name: OPENVSWITCH.to_owned(), host_path: Some(host_path), ..Volume::default() }
}

fn manages_bridges(spec: Option<&SriovOperatorConfigSpec>) -> bool {
    spec.is_some_and(|spec| gates::is_on(&spec.feature_gates, gates::BRIDGES))
}

/// Where the database's socket is on the host: where Open vSwitch has it, unless `configDaemonEnvVars` names another.
fn socket_folder(spec: Option<&SriovOperatorConfigSpec>) -> String {
    let named = spec.and_then(|spec| spec.config_daemon_env_vars.get(OVSDB_SOCKET.0)).map_or(OVSDB_SOCKET.1, String::as_str);
    let path = named.strip_prefix("unix:").unwrap_or(named);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder).trim_start_matches('/');
    // Anything else is told by the daemon, which does not find the socket.
    if folder.is_empty() { "/var/run/openvswitch".to_owned() } else { format!("/{folder}") }
}

fn mode(spec: Option<&SriovOperatorConfigSpec>) -> &str {
    spec.and_then(|s| s.configuration_mode.as_deref()).unwrap_or("daemon")
}

fn config_daemon(spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> Container {
    let added = spec.map(|s| &s.config_daemon_env_vars);
    // NET_ADMIN: rtnetlink, devlink. SYS_ADMIN: entering network namespaces and driver binding. SYS_MODULE: loading vfio-pci.
    let security = SecurityContext {
        // The default profile of container runtimes has no rule for D-Bus, and a bus that mediates (Debian, Ubuntu) lets such a sender reach nobody: no
        // reboot could be asked for. Nothing else of what the profile forbids is done.
        app_armor_profile: Some(AppArmorProfile { type_: "Unconfined".to_owned(), ..AppArmorProfile::default() }),
        ..security(&["NET_ADMIN", "SYS_ADMIN", "SYS_MODULE"])
    };
    let from_field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let value = |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() };
    let mut env = vec![
        from_field("NODE_NAME", "spec.nodeName"),
        from_field("NAMESPACE", "metadata.namespace"),
        value("RESOURCE_PREFIX", &settings.resource_prefix),
        value(HTTP_ADDRESS.0, HTTP_ADDRESS.1),
        value("CONFIGURATION_MODE", mode(spec)),
        // So that it can tell when the machine's distribution looks for plugins elsewhere.
        value("SRIOV_CNI_BIN_PATH", &settings.cni_bin_path),
    ];
    for (name, text) in added.into_iter().flatten() {
        // A list with a name twice cannot be applied; the user's choice counts.
        env.retain(|var| var.name != *name);
        env.push(value(name, text));
    }
    let mut mounts = vec![
        mount("sys", "/host/sys", false),
        mount("run", "/run/sriov-operator", false),
        mount("records", "/host/etc/sriov-operator", false),
        mount("udev-rules", "/host/etc/udev/rules.d", false),
        mount("modprobe", "/host/etc/modprobe.d", false),
        // What the boot loader starts the kernel with next.
        mount("boot", "/host/boot", true),
        mount("modules", "/host/lib/modules", true),
        mount("dbus", "/host/run/dbus", true),
        mount("cni-state", "/host/var/lib/cni/sriov", true),
        // A VF is changed only under the lock under which the CNI gives it to pods.
        mount("cni-locks", "/host/var/lib/cni/sriov/lock", false),
        mount("pod-resources", "/host/var/lib/kubelet/pod-resources", true),
        mount_netns(),
        mount(CREDENTIALS, "/var/run/secrets/kubernetes.io/serviceaccount", true),
    ];
    let mut command = vec!["/sriov-config-daemon", "run", "--root", "/host", "--expect-kubelet"];
    if spec.is_some_and(|spec| spec.disable_plugins.iter().any(|plugin| plugin == "mellanox")) {
        command.extend(["--disable-plugins", "mellanox"]);
    }
    if spec.is_some_and(|spec| !gates::is_on(&spec.feature_gates, gates::FIRMWARE_RESET)) {
        command.push("--no-firmware-reset");
    }
    if manages_bridges(spec) {
        command.push("--manage-software-bridges");
        mounts.push(mount(OPENVSWITCH, &format!("/host{}", socket_folder(spec)), true));
    }
    Container {
        liveness_probe: Some(probe("/healthz", added)),
        readiness_probe: Some(probe("/readyz", added)),
        env: Some(env),
        ..container("config-daemon", settings, &command, security, mounts)
    }
}

fn probe(path: &str, added: Option<&BTreeMap<String, String>>) -> Probe {
    let address = added.and_then(|vars| vars.get(HTTP_ADDRESS.0)).map_or(HTTP_ADDRESS.1, String::as_str);
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
    // An address of one of the node's networks is probed there, one of all of them on loopback.
    let host = address
        .parse::<SocketAddr>()
        .ok()
        .map(|a| a.ip())
        .filter(|ip| !ip.is_unspecified())
        .map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string());
    Probe {
        http_get: Some(HTTPGetAction { host: Some(host), path: Some(path.to_owned()), port: IntOrString::Int(port), ..HTTPGetAction::default() }),
        period_seconds: Some(20),
        timeout_seconds: Some(5),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

/// The same three files that an automatic mount has.
fn credentials() -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            path: "token".to_owned(),
            expiration_seconds: Some(TOKEN_SECONDS),
            ..ServiceAccountTokenProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: "kube-root-ca.crt".to_owned(),
            items: Some(vec![KeyToPath { key: "ca.crt".to_owned(), path: "ca.crt".to_owned(), ..KeyToPath::default() }]),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".to_owned(),
                field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: "metadata.namespace".to_owned() }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: CREDENTIALS.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(vec![token, authority, namespace]), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    }
}
