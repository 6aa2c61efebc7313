//! Pure: the node DaemonSet: an init container that puts the CNI plugin in place, the config daemon, and the device plugin.
//!
//! Invariants: nothing is privileged; each container has the capabilities and the parts of the host that it needs and no others; only the
//! config daemon has cluster credentials, the device plugin has none. It has no owner: deleting the operator configuration means the defaults, and
//! takes no daemon away from nodes that have VFs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, EnvVar, EnvVarSource, HTTPGetAction,
    HostPathVolumeSource, KeyToPath, LocalObjectReference, ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
    ResourceRequirements, SELinuxOptions, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Toleration, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sriov_crds::{SriovOperatorConfig, SriovOperatorConfigSpec, keys};

use crate::context::Settings;
use crate::node_policy::validate::node_selector;

/// Where the daemon leaves the device plugin its configuration.
const PLUGIN_CONFIG: &str = "/run/sriov-operator/device-plugin/config.json";
/// ServiceAccount of the pods; `deploy` has its rights.
const SERVICE_ACCOUNT: &str = "sriov-network-config-daemon";
/// Volume with the daemon's cluster credentials.
const CREDENTIALS: &str = "credentials";
/// Longest life of a credential; the kubelet renews it before.
const TOKEN_SECONDS: i64 = 3607;

/// Variable with the address of the daemon's /metrics, /healthz and /readyz, and what it is unless `configDaemonEnvVars` says something else: the
/// pod has the node's network, so only the node itself reaches it.
const HTTP_ADDRESS: (&str, &str) = ("HTTP_BIND_ADDRESS", "127.0.0.1:9178");

/// A part of the host that containers see.
struct HostFolder {
    volume: &'static str,
    path: &'static str,
    /// False for what the kernel or the container runtime must have made.
    create: bool,
}

const FOLDERS: [HostFolder; 15] = [
    HostFolder { volume: "sys", path: "/sys", create: false },
    HostFolder { volume: "run", path: "/run/sriov-operator", create: true },
    HostFolder { volume: "records", path: "/etc/sriov-operator", create: true },
    HostFolder { volume: "udev-rules", path: "/etc/udev/rules.d", create: true },
    HostFolder { volume: "modprobe", path: "/etc/modprobe.d", create: true },
    HostFolder { volume: "boot", path: "/boot", create: true },
    HostFolder { volume: "modules", path: "/lib/modules", create: true },
    HostFolder { volume: "dbus", path: "/run/dbus", create: true },
    HostFolder { volume: "cni-state", path: "/var/lib/cni/sriov", create: true },
    HostFolder { volume: "cni-locks", path: "/var/lib/cni/sriov/lock", create: true },
    HostFolder { volume: "netns", path: "/run/netns", create: true },
    HostFolder { volume: "device-plugins", path: "/var/lib/kubelet/device-plugins", create: true },
    HostFolder { volume: "plugins-registry", path: "/var/lib/kubelet/plugins_registry", create: true },
    HostFolder { volume: "pod-resources", path: "/var/lib/kubelet/pod-resources", create: true },
    HostFolder { volume: "device-info", path: "/var/run/k8s.cni.cncf.io/devinfo/dp", create: true },
];

/// What is added in systemd mode.
const SYSTEMD_FOLDERS: [HostFolder; 2] = [
    HostFolder { volume: "host-programs", path: "/var/lib/sriov", create: true },
    HostFolder { volume: "systemd-units", path: "/etc/systemd/system", create: true },
];
/// What is added for `useCDI`: where container runtimes look for specs of devices.
const CDI: HostFolder = HostFolder { volume: "cdi", path: "/var/run/cdi", create: true };
/// The value of `configurationMode` that adds the folders of systemd.
const SYSTEMD: &str = "systemd";

/// Init container of systemd mode.
pub(super) const INSTALL_UNIT: &str = "install-unit";

/// The DaemonSet for this configuration; `None` is the defaults.
pub(super) fn build(config: Option<&SriovOperatorConfig>, settings: &Settings) -> DaemonSet {
    let labels: BTreeMap<_, _> = [("app".to_owned(), keys::NODE_DAEMON_SET.to_owned())].into();
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(keys::NODE_DAEMON_SET.to_owned()),
            namespace: Some(settings.namespace.clone()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: DaemonSetSpec {
            selector: LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(config, settings)),
            },
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::String("33%".to_owned())),
                    ..RollingUpdateDaemonSet::default()
                }),
            }),
            ..DaemonSetSpec::default()
        },
        status: None,
    }
}

fn pod(config: Option<&SriovOperatorConfig>, settings: &Settings) -> PodSpec {
    let spec = config.map(|c| &c.spec);
    let systemd = mode(spec) == SYSTEMD;
    let secrets = settings.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect::<Vec<_>>();
    let tolerate_everything = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
    PodSpec {
        node_selector: Some(node_selector(spec.map(|s| &s.config_daemon_node_selector))),
        tolerations: Some(vec![tolerate_everything]),
        priority_class_name: Some("system-node-critical".to_owned()),
        service_account_name: Some(SERVICE_ACCOUNT.to_owned()),
        // A token in every container is what is not wanted: the daemon mounts its own.
        automount_service_account_token: Some(false),
        host_network: Some(true),
        image_pull_secrets: Some(secrets).filter(|s| !s.is_empty()),
        init_containers: Some([install_cni(settings)].into_iter().chain(systemd.then(|| install_unit(settings))).collect()),
        containers: vec![config_daemon(spec, settings), device_plugin(uses_cdi(spec), settings)],
        volumes: Some(volumes(settings, systemd, uses_cdi(spec))),
        ..PodSpec::default()
    }
}

fn container(name: &str, settings: &Settings, command: &[&str], security: SecurityContext, mounts: Vec<VolumeMount>) -> Container {
    let requests = [("cpu", "20m"), ("memory", "32Mi")].map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    Container {
        name: name.to_owned(),
        image: Some(settings.node_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(command.iter().map(|&part| part.to_owned()).collect()),
        resources: Some(ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }),
        security_context: Some(security),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// Root, because sysfs and the kubelet's sockets belong to root; without any capability that is not named.
fn security(capabilities: &[&str]) -> SecurityContext {
    let added: Vec<_> = capabilities.iter().map(|&name| name.to_owned()).collect();
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: Some(added).filter(|a| !a.is_empty()) }),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(0),
        // With SELinux a container may otherwise not touch the host's files at all; without it this is ignored.
        se_linux_options: Some(SELinuxOptions { type_: Some("spc_t".to_owned()), ..SELinuxOptions::default() }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..SecurityContext::default()
    }
}

fn install_cni(settings: &Settings) -> Container {
    let command = ["/sriov-config-daemon", "install-cni", "--from", "/sriov", "--to", "/host/opt/cni/bin/sriov"];
    container("install-cni", settings, &command, security(&[]), vec![mount("cni-bin", "/host/opt/cni/bin", false)])
}

/// Systemd mode: the unit, and the program that it runs at boot.
fn install_unit(settings: &Settings) -> Container {
    let command = ["/sriov-config-daemon", "install-unit", "--from", "/sriov-config-daemon", "--root", "/host"];
    let mounts = vec![mount("host-programs", "/host/var/lib/sriov", false), mount("systemd-units", "/host/etc/systemd/system", false)];
    container(INSTALL_UNIT, settings, &command, security(&[]), mounts)
}

fn mode(spec: Option<&SriovOperatorConfigSpec>) -> &str {
    spec.and_then(|s| s.configuration_mode.as_deref()).unwrap_or("daemon")
}

fn uses_cdi(spec: Option<&SriovOperatorConfigSpec>) -> bool {
    spec.is_some_and(|s| s.use_cdi)
}

fn config_daemon(spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> Container {
    let added = spec.map(|s| &s.config_daemon_env_vars);
    // NET_ADMIN: rtnetlink, devlink. SYS_ADMIN: entering network namespaces and driver binding. SYS_MODULE: loading vfio-pci.
    let security = security(&["NET_ADMIN", "SYS_ADMIN", "SYS_MODULE"]);
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
    let netns = VolumeMount { mount_propagation: Some("HostToContainer".to_owned()), ..mount("netns", "/host/run/netns", true) };
    let mounts = vec![
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
        netns,
        mount(CREDENTIALS, "/var/run/secrets/kubernetes.io/serviceaccount", true),
    ];
    let command = ["/sriov-config-daemon", "run", "--root", "/host"];
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
    ];
    if cdi {
        command.push("--use-cdi");
    }
    // With these it knows which VFs pods have, and which pods those are.
    let netns = VolumeMount { mount_propagation: Some("HostToContainer".to_owned()), ..mount("netns", "/host/run/netns", true) };
    let mut mounts = vec![
        mount("cni-state", "/host/var/lib/cni/sriov", true),
        netns,
        mount("pod-resources", "/var/lib/kubelet/pod-resources", true),
        mount("sys", "/host/sys", true),
        mount("run", "/run/sriov-operator", true),
        mount("device-plugins", "/var/lib/kubelet/device-plugins", false),
        mount("plugins-registry", "/var/lib/kubelet/plugins_registry", false),
        mount("device-info", "/var/run/k8s.cni.cncf.io/devinfo/dp", false),
    ];
    if cdi {
        mounts.push(mount(CDI.volume, CDI.path, false));
    }
    container("device-plugin", settings, &command, security(&[]), mounts)
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), read_only: Some(true).filter(|_| read_only), ..VolumeMount::default() }
}

fn volumes(settings: &Settings, systemd: bool, cdi: bool) -> Vec<Volume> {
    let host = |volume: &str, path: &str, create: bool| Volume {
        name: volume.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: path.to_owned(),
            type_: Some(if create { "DirectoryOrCreate" } else { "Directory" }.to_owned()),
        }),
        ..Volume::default()
    };
    let chosen = FOLDERS.iter().chain(SYSTEMD_FOLDERS.iter().filter(|_| systemd)).chain(Some(&CDI).filter(|_| cdi));
    let folders = chosen.map(|folder| host(folder.volume, folder.path, folder.create));
    folders.chain([host("cni-bin", &settings.cni_bin_path, true), credentials()]).collect()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        #[serde(default)]
        config: Option<SriovOperatorConfig>,
        #[serde(default)]
        image_pull_secrets: Vec<String>,
    }

    fn run(input: &Input) -> DaemonSet {
        let settings = Settings {
            namespace: "operators".into(),
            resource_prefix: "example.com".into(),
            node_image: "registry.example/node:1".into(),
            cni_bin_path: "/usr/libexec/cni".into(),
            image_pull_secrets: input.image_pull_secrets.clone(),
            stale_state_delay: Duration::ZERO,
            admission: crate::admission::Settings::for_tests(),
            drain_timeout: Duration::from_mins(15),
            external_drainer: false,
        };
        build(input.config.as_ref(), &settings)
    }

    #[test]
    fn golden() {
        crate::golden::check("operator_config", |input: Input| run(&input));
    }

    #[test]
    fn every_mount_has_a_volume_and_every_volume_a_mount() {
        let everything = SriovOperatorConfigSpec { use_cdi: true, configuration_mode: Some(SYSTEMD.into()), ..SriovOperatorConfigSpec::default() };
        let config = SriovOperatorConfig::new("default", everything);
        let daemon_set = run(&Input { config: Some(config), image_pull_secrets: vec![] });
        assert!(daemon_set.metadata.owner_references.is_none(), "B24 of the field: its daemons went with the configuration");
        let pod = daemon_set.spec.template.spec.unwrap();
        let containers = || pod.containers.iter().chain(pod.init_containers.iter().flatten());
        let mut mounted: Vec<_> = containers().flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.as_str()).collect();
        let mut volumes: Vec<_> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
        mounted.sort_unstable();
        mounted.dedup();
        volumes.sort_unstable();
        assert_eq!(mounted, volumes);
        let with_token: Vec<_> = containers().filter(|c| c.volume_mounts.iter().flatten().any(|m| m.name == CREDENTIALS)).map(|c| &c.name).collect();
        assert_eq!(with_token, ["config-daemon"]);
        assert!(containers().all(|c| c.security_context.as_ref().unwrap().privileged.is_none()));
    }
}
