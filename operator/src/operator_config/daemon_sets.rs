//! Pure: the two DaemonSets of nodes, and what their pods have in common: one with the config daemon (`config_daemon`), which also puts the CNI plugin in
//! place, and one with the device plugin (`device_plugin`), so that the newer plugin runs before the older one ends.
//!
//! Invariants: nothing is privileged; each container has the capabilities and the parts of the host that it needs and no others; only the
//! config daemon has cluster credentials. They have no owner: deleting the operator configuration means the defaults, and
//! takes no daemon away from nodes that have VFs.

mod config_daemon;
mod device_plugin;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, HostPathVolumeSource, LocalObjectReference, PodSpec, PodTemplateSpec, ResourceRequirements, SELinuxOptions,
    SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use sriov_crds::{SriovOperatorConfig, SriovOperatorConfigSpec};

use crate::context::Settings;
use crate::node_policy::validate::node_selector;

pub(super) use config_daemon::INSTALL_UNIT;

/// Volume with the folder of CNI plugins, which a setting names.
const CNI_BIN: &str = "cni-bin";

/// A part of the host that containers see.
struct HostFolder {
    volume: &'static str,
    path: &'static str,
    /// False for what the kernel or the container runtime must have made.
    create: bool,
}

/// All that any pod sees of the host; each pod has those that its containers mount.
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
    HostFolder { volume: "device-info", path: "/var/run/k8s.cni.cncf.io/devinfo/dp", create: true },
    // Systemd mode.
    HostFolder { volume: "host-programs", path: "/var/lib/sriov", create: true },
    HostFolder { volume: "systemd-units", path: "/etc/systemd/system", create: true },
    // `useCDI`: where container runtimes look for specs of devices.
    HostFolder { volume: "cdi", path: "/var/run/cdi", create: true },
];

/// Volumes with folders of the kubelet, which is where a setting says.
const KUBELET_FOLDERS: [(&str, &str); 3] =
    [("device-plugins", "device-plugins"), ("plugins-registry", "plugins_registry"), ("pod-resources", "pod-resources")];

/// What is different between the two.
struct Node {
    /// Of the DaemonSet, of the label `app` of its pods, and of their ServiceAccount; `deploy` has its rights.
    name: &'static str,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
    /// Volumes that are no folder of the host.
    volumes: Vec<Volume>,
    update: RollingUpdateDaemonSet,
}

/// The DaemonSets for this configuration, in the order in which they are applied; `None` is the defaults.
pub(super) fn build(config: Option<&SriovOperatorConfig>, settings: &Settings) -> [DaemonSet; 2] {
    let spec = config.map(|c| &c.spec);
    [config_daemon::node(spec, settings), device_plugin::node(spec, settings)].map(|node| daemon_set(node, spec, settings))
}

fn daemon_set(node: Node, spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> DaemonSet {
    let labels: BTreeMap<_, _> = [("app".to_owned(), node.name.to_owned())].into();
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(node.name.to_owned()),
            namespace: Some(settings.namespace.clone()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: DaemonSetSpec {
            selector: LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() },
            update_strategy: Some(DaemonSetUpdateStrategy { type_: Some("RollingUpdate".to_owned()), rolling_update: Some(node.update.clone()) }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(node, spec, settings)),
            },
            ..DaemonSetSpec::default()
        },
        status: None,
    }
}

fn pod(node: Node, spec: Option<&SriovOperatorConfigSpec>, settings: &Settings) -> PodSpec {
    let secrets = settings.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect::<Vec<_>>();
    let tolerate_everything = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
    let volumes = folders(settings, node.init_containers.iter().chain(&node.containers)).into_iter().chain(node.volumes);
    PodSpec {
        node_selector: Some(node_selector(spec.map(|s| &s.config_daemon_node_selector))),
        tolerations: Some(vec![tolerate_everything]),
        priority_class_name: Some("system-node-critical".to_owned()),
        service_account_name: Some(node.name.to_owned()),
        // A token in every container is what is not wanted: the daemon mounts its own.
        automount_service_account_token: Some(false),
        host_network: Some(true),
        image_pull_secrets: Some(secrets).filter(|s| !s.is_empty()),
        volumes: Some(volumes.collect()),
        init_containers: Some(node.init_containers).filter(|containers| !containers.is_empty()),
        containers: node.containers,
        ..PodSpec::default()
    }
}

/// The host's folders that these containers mount.
fn folders<'a>(settings: &Settings, containers: impl Iterator<Item = &'a Container>) -> Vec<Volume> {
    let mounted: BTreeSet<&str> = containers.flat_map(|c| c.volume_mounts.iter().flatten()).map(|mount| mount.name.as_str()).collect();
    let kubelet = settings.kubelet_path.trim_end_matches('/');
    let of_kubelet = KUBELET_FOLDERS.iter().map(|(volume, folder)| (*volume, format!("{kubelet}/{folder}"), true));
    let cni_bin = (CNI_BIN, settings.cni_bin_path.clone(), true);
    let all = FOLDERS.iter().map(|folder| (folder.volume, folder.path.to_owned(), folder.create)).chain(of_kubelet).chain([cni_bin]);
    let volume = |(name, path, create): (&str, String, bool)| Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource { path, type_: Some(if create { "DirectoryOrCreate" } else { "Directory" }.to_owned()) }),
        ..Volume::default()
    };
    all.filter(|(name, ..)| mounted.contains(name)).map(volume).collect()
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

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), read_only: Some(true).filter(|_| read_only), ..VolumeMount::default() }
}

/// The container runtime's changes of the host's network namespaces are seen, too.
fn mount_netns() -> VolumeMount {
    VolumeMount { mount_propagation: Some("HostToContainer".to_owned()), ..mount("netns", "/host/run/netns", true) }
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

    fn run(input: &Input) -> [DaemonSet; 2] {
        let settings = Settings {
            namespace: "operators".into(),
            resource_prefix: "example.com".into(),
            node_image: "registry.example/node:1".into(),
            cni_bin_path: "/usr/libexec/cni".into(),
            kubelet_path: "/data/kubelet/".into(),
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

    /// B27 of the field: a label of the node, set before there were VFs, started the device plugin. Ours knows no label, and has nothing to offer before
    /// the daemon has written the file, which a reboot takes away and which it cannot write itself.
    #[test]
    fn no_label_starts_the_device_plugin_before_there_are_vfs() {
        let [_, plugin] = run(&Input { config: None, image_pull_secrets: vec![] });
        let pod = plugin.spec.template.spec.unwrap();
        assert!(pod.node_selector.unwrap().keys().all(|label| !label.contains("device-plugin")));
        let command = pod.containers[0].command.clone().unwrap();
        let file = command.iter().skip_while(|part| *part != "--config-file").nth(1).unwrap();
        let mount = pod.containers[0].volume_mounts.iter().flatten().find(|m| file.starts_with(&m.mount_path)).unwrap();
        assert_eq!(mount.read_only, Some(true));
        let folder = pod.volumes.iter().flatten().find(|v| v.name == mount.name).unwrap().host_path.clone().unwrap().path;
        assert!(folder.starts_with("/run/"), "{folder} outlives a reboot, VFs do not");
    }

    #[test]
    fn every_mount_has_a_volume_and_every_volume_a_mount() {
        let mode = Some(config_daemon::SYSTEMD.into());
        let feature_gates = BTreeMap::from([(crate::operator_config::gates::BRIDGES.to_owned(), true)]);
        let everything = SriovOperatorConfigSpec { use_cdi: true, configuration_mode: mode, feature_gates, ..SriovOperatorConfigSpec::default() };
        let config = SriovOperatorConfig::new("default", everything);
        let mut with_token = vec![];
        for daemon_set in run(&Input { config: Some(config), image_pull_secrets: vec![] }) {
            assert!(daemon_set.metadata.owner_references.is_none(), "B24 of the field: its daemons went with the configuration");
            let pod = daemon_set.spec.template.spec.unwrap();
            assert_eq!(pod.automount_service_account_token, Some(false));
            let containers = || pod.containers.iter().chain(pod.init_containers.iter().flatten());
            let mut mounted: Vec<_> = containers().flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.as_str()).collect();
            let mut volumes: Vec<_> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
            mounted.sort_unstable();
            mounted.dedup();
            volumes.sort_unstable();
            assert_eq!(mounted, volumes);
            let credentials = |c: &&Container| c.volume_mounts.iter().flatten().any(|m| m.name == config_daemon::CREDENTIALS);
            with_token.extend(containers().filter(credentials).map(|c| c.name.clone()));
            assert!(containers().all(|c| c.security_context.as_ref().unwrap().privileged.is_none()));
        }
        assert_eq!(with_token, ["config-daemon"]);
    }
}
