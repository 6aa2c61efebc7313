//! I/O, tier 3: the device plugin alone with a real kubelet and a real containerd, on a node with emulated SR-IOV NICs. No operator, no CNI: what is seen
//! here is the plugin's own doing. The tests run in order on one lab.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_tests::cluster::objects::pod;
use sriov_tests::cluster::{Cluster, PATIENCE, same};
use sriov_tests::lab::Lab;
use sriov_tests::lab::artifacts::product;
use sriov_tests::lab::topology::{Node, Topology};

sriov_tests::lab_tests! {
    Topology::cluster([Node::new(1)]);
    vfs_of_a_file_written_by_hand_are_allocatable,
    the_capacity_never_dips_while_one_plugin_takes_over_from_another,
    a_file_that_is_written_again_changes_nothing,
    a_kubelet_that_restarts_has_the_capacity_again,
    a_vf_without_driver_is_not_allocatable_until_it_has_one_again,
    vfs_that_are_made_anew_are_offered_without_a_restart,
    a_container_gets_its_device_nodes_by_cdi,
    a_change_of_one_pf_leaves_the_capacity_of_the_other_alone,
    vfs_of_a_pf_that_is_pulled_out_are_gone,
    a_kubelet_finds_the_pools_in_its_folder_of_plugins,
}

const PROGRAM: &str = "/usr/local/sbin/sriov-device-plugin";
const CONFIG: &str = "/etc/pcidp/config.json";
const REGISTERED: &str = "registered with the kubelet";
const NODE: &str = "node1";
/// What a machine that emulates another one may take for what takes a second.
const SLOWLY: Duration = Duration::from_secs(30);

fn start(cluster: &Cluster<'_>, log: &str, more: &[&str]) -> Result<u32> {
    let arguments = [&[PROGRAM, "-config-file", CONFIG, "-resource-prefix", "openshift.io", "-use-cdi", "--v", "10"], more].concat();
    cluster.guest(1)?.command(&arguments).spawn(log)
}

/// How often this is in a log of the guest.
fn times(cluster: &Cluster<'_>, log: &str, text: &str) -> Result<usize> {
    Ok(cluster.guest(1)?.read_text(log)?.matches(text).count())
}

/// A pod is given a device of the pool.
fn gives(cluster: &Cluster<'_>, resource: &str) -> Result<()> {
    cluster.apply(&pod("given", NODE, "", resource, 1))?;
    cluster.wait_pod("given")?;
    ensure!(!cluster.devices_of("given", resource)?.concat().is_empty(), "the pod has no device");
    cluster.delete("default", "pod", "given")
}

fn configure(cluster: &Cluster<'_>, pools: &[Value]) -> Result<()> {
    let guest = cluster.guest(1)?;
    guest.sh("mkdir -p /etc/pcidp")?;
    guest.write(&format!("{CONFIG}.new"), json!({ "resourceList": pools }).to_string().as_bytes(), 0o644)?;
    guest.sh(&format!("mv {CONFIG}.new {CONFIG}")).map(drop)
}

/// The PCI address of a netdev's function.
fn address(cluster: &Cluster<'_>, netdev: &str) -> Result<String> {
    let path = cluster.guest(1)?.run(&["readlink", "-f", &format!("/sys/class/net/{netdev}/device")])?;
    Ok(path.trim().rsplit('/').next().unwrap_or_default().to_owned())
}

fn pool(name: &str, pf: &str, driver: &str) -> Value {
    json!({ "resourceName": name, "selectors": { "rootDevices": [format!("{pf}#0-6")], "drivers": [driver] } })
}

fn allocatable(cluster: &Cluster<'_>, resource: &str) -> Result<String> {
    let node: Value = cluster.get("", "node", NODE)?.context("there is no node")?;
    Ok(node["status"]["allocatable"][format!("openshift.io/{resource}")].as_str().unwrap_or("none").to_owned())
}

/// Looks at what is allocatable again and again for a while; each look must see the same.
fn stays(cluster: &Cluster<'_>, resource: &str, count: &str, during: Duration) -> Result<()> {
    let end = Instant::now() + during;
    while Instant::now() < end {
        same(&format!("allocatable of {resource}"), &allocatable(cluster, resource)?.as_str(), &count)?;
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn vfs_of_a_file_written_by_hand_are_allocatable(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    guest.copy_program(&product("sriov-device-plugin")?, PROGRAM)?;
    guest.sh("echo 4 > /sys/class/net/enp1s0/device/sriov_numvfs")?;
    configure(&cluster, &[pool("nics", &address(&cluster, "enp1s0")?, "igbvf")])?;
    start(&cluster, "/var/log/plugin-1.log", &[])?;
    cluster.wait_allocatable(NODE, "nics", 4, PATIENCE)
}

fn the_capacity_never_dips_while_one_plugin_takes_over_from_another(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let older = guest.run(&["pidof", "sriov-device-plugin"])?;
    let skip = cluster.kubelet_log_lines(1)?;
    let log = "/var/log/plugin-2.log";
    start(&cluster, log, &[])?;
    cluster.wait("the second plugin takes over", SLOWLY, || Ok((times(&cluster, log, "taking over from an older instance")? > 0).then_some(())))?;
    guest.sh(&format!("kill -TERM {}", older.trim()))?;
    cluster.wait("the second plugin is registered for good", SLOWLY, || {
        Ok((times(&cluster, log, "the older instance has ended")? > 0 && times(&cluster, log, REGISTERED)? > 1).then_some(()))
    })?;
    // Longer than the kubelet takes to tell the API server of a change.
    stays(&cluster, "nics", "4", Duration::from_secs(12))?;
    let counts = cluster.kubelet_counts(1, "nics", skip)?;
    ensure!(counts.len() >= 2 && counts.iter().all(|count| *count == 4), "the kubelet counted {counts:?}");
    gives(&cluster, "nics")
}

fn a_file_that_is_written_again_changes_nothing(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let skip = cluster.kubelet_log_lines(1)?;
    // As the config daemon does when it starts again.
    for _ in 0..3 {
        configure(&cluster, &[pool("nics", &address(&cluster, "enp1s0")?, "igbvf")])?;
    }
    stays(&cluster, "nics", "4", Duration::from_secs(3))?;
    same("the kubelet's counts", &cluster.kubelet_counts(1, "nics", skip)?, &vec![])
}

fn a_kubelet_that_restarts_has_the_capacity_again(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let log = "/var/log/plugin-2.log";
    let (before, skip) = (times(&cluster, log, REGISTERED)?, cluster.kubelet_log_lines(1)?);
    guest.sh("kill -KILL $(pidof kubelet)")?;
    let mut seen = Vec::new();
    cluster.wait("the plugin is registered with the new kubelet", PATIENCE, || {
        seen.push(allocatable(&cluster, "nics")?);
        Ok((times(&cluster, log, REGISTERED)? > before).then_some(()))
    })?;
    stays(&cluster, "nics", "4", Duration::from_secs(12))?;
    ensure!(seen.iter().all(|count| count == "4"), "the API server told {seen:?}");
    // A new kubelet counts none until it is told, which is before it tells the API server; from then on it is as before.
    let counts = cluster.kubelet_counts(1, "nics", skip)?;
    ensure!(!counts.is_empty() && counts.iter().all(|count| *count == 4), "the kubelet counted {counts:?}");
    Ok(())
}

fn a_vf_without_driver_is_not_allocatable_until_it_has_one_again(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let vf = guest.run(&["readlink", "-f", "/sys/class/net/enp1s0/device/virtfn2"])?;
    let vf = vf.trim().rsplit('/').next().unwrap_or_default().to_owned();
    guest.sh(&format!("echo {vf} > /sys/bus/pci/drivers/igbvf/unbind"))?;
    cluster.wait("the plugin says why", SLOWLY, || Ok(guest.read_text("/var/log/plugin-2.log")?.contains("no driver is bound").then_some(())))?;
    cluster.wait_allocatable(NODE, "nics", 3, SLOWLY)?;
    guest.sh(&format!("echo {vf} > /sys/bus/pci/drivers/igbvf/bind"))?;
    cluster.wait_allocatable(NODE, "nics", 4, SLOWLY)
}

fn vfs_that_are_made_anew_are_offered_without_a_restart(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let process = guest.run(&["pidof", "sriov-device-plugin"])?;
    for count in [0, 2, 0, 4] {
        guest.sh(&format!("echo {count} > /sys/class/net/enp1s0/device/sriov_numvfs"))?;
        cluster.wait_allocatable(NODE, "nics", count, SLOWLY)?;
    }
    same("the plugin's process", &guest.run(&["pidof", "sriov-device-plugin"])?, &process)
}

fn a_container_gets_its_device_nodes_by_cdi(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let (first, second) = (address(&cluster, "enp1s0")?, address(&cluster, "enp2s0")?);
    guest
        .sh("modprobe vfio-pci; echo 0 > /sys/class/net/enp2s0/device/sriov_drivers_autoprobe; echo 2 > /sys/class/net/enp2s0/device/sriov_numvfs")?;
    guest.sh(
        "for vf in /sys/class/net/enp2s0/device/virtfn*; do echo vfio-pci > $vf/driver_override; basename $(readlink -f $vf) > /sys/bus/pci/drivers_probe; done",
    )?;
    configure(&cluster, &[pool("nics", &first, "igbvf"), pool("dpdk", &second, "vfio-pci")])?;
    cluster.wait_allocatable(NODE, "dpdk", 2, SLOWLY)?;
    cluster.apply(&pod("v", NODE, "", "dpdk", 1))?;
    cluster.wait_pod("v")?;
    let device = cluster.exec("v", &["sh", "-c", "echo $PCIDEVICE_OPENSHIFT_IO_DPDK"])?;
    let group = guest.run(&["readlink", "-f", &format!("/sys/bus/pci/devices/{}/iommu_group", device.trim())])?;
    let group = group.trim().rsplit('/').next().unwrap_or_default().to_owned();
    let nodes = cluster.exec("v", &["ls", "/dev/vfio"])?;
    ensure!(nodes.split_whitespace().any(|node| node == group), "group {group} is not among {nodes}");
    // Only the runtime reads the spec, so this variable came through its parser.
    let name = format!("SRIOV_DEVICE_{}", device.trim().replace([':', '.'], "_"));
    same("the spec's variable", &cluster.exec("v", &["sh", "-c", &format!("echo ${name}")])?.trim(), &"openshift.io/dpdk")?;
    cluster.delete("default", "pod", "v")
}

fn a_change_of_one_pf_leaves_the_capacity_of_the_other_alone(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let skip = cluster.kubelet_log_lines(1)?;
    for count in [0, 3, 0, 4] {
        cluster.guest(1)?.sh(&format!("echo {count} > /sys/class/net/enp1s0/device/sriov_numvfs"))?;
        cluster.wait_allocatable(NODE, "nics", count, SLOWLY)?;
        same("allocatable of the other PF", &allocatable(&cluster, "dpdk")?.as_str(), &"2")?;
    }
    same("the kubelet's counts of the other PF", &cluster.kubelet_counts(1, "dpdk", skip)?, &vec![])
}

fn vfs_of_a_pf_that_is_pulled_out_are_gone(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let process = guest.run(&["pidof", "sriov-device-plugin"])?;
    guest.sh("echo 1 > /sys/class/net/enp1s0/device/remove")?;
    cluster.wait_allocatable(NODE, "nics", 0, SLOWLY)?;
    same("allocatable of the other PF", &allocatable(&cluster, "dpdk")?.as_str(), &"2")?;
    same("the plugin's process", &guest.run(&["pidof", "sriov-device-plugin"])?, &process)
}

fn a_kubelet_finds_the_pools_in_its_folder_of_plugins(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let guest = cluster.guest(1)?;
    let log = "/var/log/plugin-3.log";
    guest.sh("kill -TERM $(pidof sriov-device-plugin)")?;
    start(&cluster, log, &["--plugin-watcher"])?;
    let registered =
        |more: usize| cluster.wait("the kubelet has found the pool", PATIENCE, || Ok((times(&cluster, log, REGISTERED)? >= more).then_some(())));
    // The pool of the PF that is gone is there too, and empty.
    registered(2)?;
    guest
        .sh("test -S /var/lib/kubelet/plugins_registry/openshift.io_dpdk.sock && ! test -e /var/lib/kubelet/device-plugins/openshift.io_dpdk.sock")?;
    cluster.wait_allocatable(NODE, "dpdk", 2, SLOWLY)?;
    gives(&cluster, "dpdk")?;
    guest.sh("kill -KILL $(pidof kubelet)")?;
    registered(4)?;
    cluster.wait_allocatable(NODE, "dpdk", 2, SLOWLY)?;
    stays(&cluster, "dpdk", "2", Duration::from_secs(12))
}
