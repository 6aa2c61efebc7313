//! I/O, tier 3: from a policy to two pods that reach each other over VFs, on a real cluster whose nodes have emulated SR-IOV NICs.
//!
//! node1 has an IOMMU, node2 has none. The tests run in order on one lab: the product is installed first, and `enp1s0` of both nodes stays a pool of
//! four kernel VFs (`pool_a`) for the tests in between; tests that change a PF use `enp2s0`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sriov_tests::cluster::objects::{OPERATOR_NAMESPACE, Policy, RESOURCE_PREFIX, host_local, network, pod};
use sriov_tests::cluster::{Cluster, PATIENCE, VfSnapshot, condition, pf, same};
use sriov_tests::lab::Lab;
use sriov_tests::lab::guest::Guest;
use sriov_tests::lab::topology::{Node, Topology};

sriov_tests::lab_tests! {
    Topology::cluster([Node::new(1), Node::new(2).without_iommu()]);
    nodes_without_the_label_get_no_daemon_and_no_node_state,
    a_labelled_node_publishes_what_the_machine_has,
    a_nic_that_is_not_listed_is_reported_and_configured_once_it_is_listed,
    two_pods_ping_over_a_vlan_and_the_tag_is_on_the_wire,
    different_vlans_do_not_reach_each_other,
    a_pod_with_only_the_annotation_gets_its_vf_from_the_injector,
    a_deleted_pod_gives_its_vf_back_as_it_was,
    a_pod_killed_while_the_runtime_is_stopped_gives_its_vf_back,
    settings_of_the_network_reach_the_vf_and_leave_with_the_pod,
    a_vfio_pool_gives_the_group_and_moves_no_netdev,
    vfio_without_an_iommu_is_refused_and_touches_nothing,
    more_vfs_than_totalvfs_are_refused_at_that_pf_only,
    numvfs_grows_and_shrinks_without_a_restart_of_the_device_plugin,
    an_update_of_the_device_plugin_costs_no_device_for_a_moment,
    the_stronger_of_two_policies_wins,
    selectors_by_vendor_device_and_root_device_select,
    pods_keep_working_while_the_api_server_is_away,
    deleted_policies_take_their_vfs_along,
    a_node_that_loses_its_label_loses_its_daemon,
}

const POOL: &str = "pool_a";

fn nodes_without_the_label_get_no_daemon_and_no_node_state(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.install()?;
    cluster.wait("the node DaemonSet exists", PATIENCE, || cluster.daemon_set_size())?;
    cluster.set_capable("node1", true)?;
    cluster.wait("node1 has a node state", PATIENCE, || cluster.node_state("node1"))?;
    cluster.wait("one daemon is wanted", PATIENCE, || Ok(cluster.daemon_set_size()?.filter(|size| *size == 1)))?;
    // node1's state came after its label, so an answer for node2 would be there by now as well.
    ensure!(cluster.node_state("node2")?.is_none(), "node2 has no label but a node state");
    ensure!(cluster.node_pods("node2")?.is_empty(), "node2 has no label but a daemon");
    Ok(())
}

fn a_labelled_node_publishes_what_the_machine_has(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.set_capable("node2", true)?;
    for (number, iommu) in [(1, "active"), (2, "inactive")] {
        let node = format!("node{number}");
        let state = cluster.wait_node_state(&node, "two PFs are published", |s| s.status.as_ref().is_some_and(|s| s.interfaces.len() == 2))?;
        let found = pf(&state, "enp1s0").context("enp1s0 is not published")?;
        let guest = cluster.guest(number)?;
        let attribute = |name: &str| guest.read_text(&format!("/sys/class/net/enp1s0/{name}"));
        same("totalvfs", &found.total_vfs.to_string(), &attribute("device/sriov_totalvfs")?)?;
        same("mac", &found.mac.clone().unwrap_or_default(), &attribute("address")?)?;
        same("mtu", &found.mtu.unwrap_or_default().to_string(), &attribute("mtu")?)?;
        same("driver", &found.driver.as_deref(), &Some("igb"))?;
        same("vendor and device", &(found.vendor.as_deref(), found.device_id.as_deref()), &(Some("8086"), Some("10c9")))?;
        let status = state.status.clone().unwrap_or_default();
        same("iommu", &status.system.and_then(|s| s.iommu).as_deref(), &Some(iommu))?;
        same("supported", &found.supported, &Some(true))?;
    }
    Ok(())
}

fn a_nic_that_is_not_listed_is_reported_and_configured_once_it_is_listed(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let listed: Value = cluster.get(OPERATOR_NAMESPACE, "configmap", "supported-nic-ids")?.context("there is no ConfigMap supported-nic-ids")?;
    let data = listed["data"].as_object().context("it has no data")?;
    let (key, value) = data.iter().find(|(_, v)| v.as_str().is_some_and(|v| v.starts_with("8086 10c9"))).context("the 82576 is not listed")?;
    let patch = |value: &Value| serde_json::json!({"data": {key: value}}).to_string();
    let map = ["-n", OPERATOR_NAMESPACE, "patch", "configmap", "supported-nic-ids", "--type=merge", "-p"];
    cluster.kubectl(&[&map[..], &[&patch(&Value::Null)]].concat())?;
    for node in ["node1", "node2"] {
        cluster.wait_node_state(node, "the NIC counts as not supported", |s| pf(s, "enp1s0").is_some_and(|p| p.supported == Some(false)))?;
    }
    let daemons = daemon_identities(&cluster)?;
    cluster.apply(&Policy::new("main", POOL, 4, "{pfNames: [enp1s0]}").yaml())?;
    let state = cluster
        .wait_node_state("node1", "the refusal is a condition", |s| condition(s, "Ready").is_some_and(|(_, _, m)| m.contains("supported-nic-ids")))?;
    let (ready, _, message) = condition(&state, "Ready").context("Ready")?;
    same("Ready", &ready, &"False")?;
    ensure!(message.contains("8086 10c9 10ca"), "the message does not show the entry that would allow the NIC: {message}");
    same("numvfs of enp1s0", &cluster.guest(1)?.read_text("/sys/class/net/enp1s0/device/sriov_numvfs")?.as_str(), &"0")?;
    cluster.kubectl(&[&map[..], &[&patch(value)]].concat())?;
    for node in ["node1", "node2"] {
        cluster.wait_ready(node, "True")?;
        cluster.wait_allocatable(node, POOL, 4, PATIENCE)?;
    }
    same("daemons", &daemon_identities(&cluster)?, &daemons)
}

/// Name, uid and restart counts of every pod of the DaemonSets of nodes.
fn daemon_identities(cluster: &Cluster<'_>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in ["node1", "node2"] {
        for pod in cluster.node_pods(node)? {
            let restarts: Vec<i32> = pod.status.and_then(|s| s.container_statuses).unwrap_or_default().iter().map(|c| c.restart_count).collect();
            all.push(format!("{node} {:?} {restarts:?}", pod.metadata.uid));
        }
    }
    ensure!(all.len() == 4, "expected two pods a node: {all:?}");
    Ok(all)
}

/// A network on `VLAN` whose addresses are 192.0.2.`first` to `last`.
fn vlan_network(cluster: &Cluster<'_>, name: &str, vlan: u16, range: (u8, u8), more: &[&str]) -> Result<()> {
    let ipam = host_local("192.0.2.0/24", &format!("192.0.2.{}", range.0), &format!("192.0.2.{}", range.1));
    let vlan = format!("vlan: {vlan}");
    let mac = r#"capabilities: '{"mac": true}'"#;
    cluster.apply(&network(name, POOL, &ipam, &[&[vlan.as_str(), mac], more].concat()))?;
    cluster.wait("its NAD exists", PATIENCE, || cluster.get::<Value>("default", "network-attachment-definitions.k8s.cni.cncf.io", name)).map(drop)
}

fn start_pod(cluster: &Cluster<'_>, name: &str, node: &str, networks: &str) -> Result<()> {
    cluster.apply(&pod(name, node, networks, POOL, 1))?;
    cluster.wait_pod(name).map(drop)
}

fn delete_pod(cluster: &Cluster<'_>, name: &str) -> Result<()> {
    cluster.delete("default", "pod", name)
}

/// The first address of an interface in a pod, without its prefix.
fn address_of(cluster: &Cluster<'_>, pod: &str, interface: &str) -> Result<String> {
    let text = cluster.exec(pod, &["ip", "-4", "addr", "show", "dev", interface])?;
    let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).and_then(|a| a.split('/').next());
    address.map(str::to_owned).with_context(|| format!("{pod} has no address on {interface}:\n{text}"))
}

fn two_pods_ping_over_a_vlan_and_the_tag_is_on_the_wire(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    vlan_network(&cluster, "blue-1", 100, (10, 19), &[])?;
    vlan_network(&cluster, "blue-2", 100, (20, 29), &[])?;
    start_pod(&cluster, "a", "node1", "blue-1")?;
    start_pod(&cluster, "b", "node2", "blue-2")?;
    let peer = address_of(&cluster, "b", "net1")?;
    let source: sriov_host::mac::MacAddr = cluster.exec("a", &["cat", "/sys/class/net/net1/address"])?.trim().parse()?;
    let mut capture = cluster.lab.capture("vlan 100")?;
    cluster.exec("a", &["ping", "-c", "3", "-W", "5", &peer])?;
    let frame = capture.wait_for("an IPv4 frame of pod a with tag 100", |f| f.source == source && f.ethertype == 0x0800, Duration::from_secs(10))?;
    same("tags", &frame.tags.iter().map(|t| (t.protocol, t.vlan)).collect::<Vec<_>>(), &vec![(0x8100, 100)])?;
    capture.stop();
    let seen: Value = cluster.get("default", "pod", "a")?.context("pod a")?;
    let status = seen["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().context("pod a has no network-status")?;
    ensure!(status.contains("net1") && status.contains("192.0.2.1"), "network-status does not show the secondary address: {status}");
    Ok(())
}

fn different_vlans_do_not_reach_each_other(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    vlan_network(&cluster, "red", 200, (30, 39), &[])?;
    start_pod(&cluster, "c", "node2", "red")?;
    let other = address_of(&cluster, "c", "net1")?;
    ensure!(cluster.exec("a", &["ping", "-c", "2", "-W", "2", &other]).is_err(), "pod a on VLAN 100 reached pod c on VLAN 200");
    // The same pods and interfaces, so that it was the VLAN and nothing else.
    let peer = address_of(&cluster, "b", "net1")?;
    cluster.exec("a", &["ping", "-c", "2", "-W", "5", &peer])?;
    ["a", "b", "c"].iter().try_for_each(|name| delete_pod(&cluster, name))
}

/// The default manifest has the injector switched on; the API server calls it at its pod's address, by the certificate that the operator made.
fn a_pod_with_only_the_annotation_gets_its_vf_from_the_injector(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.wait("the injector is in place", PATIENCE, || {
        cluster.get::<Value>("", "mutatingwebhookconfigurations", "network-resources-injector-config")
    })?;
    let whole = pod("plain", "node1", "blue-1", POOL, 1);
    let (plain, _) = whole.split_once("    resources:").context("a pod with resources")?;
    cluster.apply(plain)?;
    let running = cluster.wait_pod("plain")?;
    let containers = running.spec.map(|spec| spec.containers).unwrap_or_default();
    let asked = containers.first().and_then(|c| c.resources.as_ref()?.requests.as_ref()?.get(&format!("{RESOURCE_PREFIX}/{POOL}")).cloned());
    same("what the pod asks for", &asked.map(|quantity| quantity.0).as_deref(), &Some("1"))?;
    ensure!(address_of(&cluster, "plain", "net1")?.starts_with("192.0.2."), "it has no address of its network");
    same("VFs of the pod", &cluster.devices_of("plain", POOL)?.len(), &1)?;
    delete_pod(&cluster, "plain")
}

/// All VFs of the pool on a node, before a pod gets one.
fn snapshots(cluster: &Cluster<'_>, number: u8, pf: &str, count: usize) -> Result<Vec<VfSnapshot>> {
    (0..count).map(|index| cluster.vf(number, pf, index)).collect()
}

fn a_deleted_pod_gives_its_vf_back_as_it_was(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.wait("the pods of earlier tests gave their VFs back", PATIENCE, || {
        Ok(snapshots(&cluster, 1, "enp1s0", 4)?.iter().all(|vf| vf.netdev.is_some()).then_some(()))
    })?;
    let before = snapshots(&cluster, 1, "enp1s0", 4)?;
    start_pod(&cluster, "a", "node1", r#"[{"name": "blue-1", "interface": "fast0", "mac": "02:00:00:00:00:2a"}]"#)?;
    let device = cluster.devices_of("a", POOL)?.pop().context("pod a has no VF")?;
    let index = cluster.index_of(1, "enp1s0", &device)?;
    same("MAC in the pod", &cluster.exec("a", &["cat", "/sys/class/net/fast0/address"])?.trim(), &"02:00:00:00:00:2a")?;
    let during = cluster.vf(1, "enp1s0", index)?;
    ensure!(during.netdev.is_none() && during != before[index], "the VF did not leave the host: {during:?}");
    delete_pod(&cluster, "a")?;
    cluster.wait_vf(1, "enp1s0", index, &before[index])
}

fn a_pod_killed_while_the_runtime_is_stopped_gives_its_vf_back(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let before = snapshots(&cluster, 1, "enp1s0", 4)?;
    start_pod(&cluster, "a", "node1", "blue-1")?;
    let device = cluster.devices_of("a", POOL)?.pop().context("pod a has no VF")?;
    let index = cluster.index_of(1, "enp1s0", &device)?;
    let guest = cluster.guest(1)?;
    let journal: Value = serde_json::from_slice(&guest.read(&format!("/var/lib/cni/sriov/v1/{device}.json"))?)?;
    let namespace = journal["owner"]["netnsPath"].as_str().context("the journal names no namespace")?.to_owned();
    // The runtime stands still, then the pod and its namespace die without any DEL.
    let stopped = StoppedRuntime::stop(guest)?;
    cluster.kubectl(&["delete", "pod", "a", "--wait=false"])?;
    // The first process that dies may take others of the list along; that none is left is what counts.
    let name = namespace.rsplit('/').next().unwrap_or_default();
    guest.sh(&format!("for p in $(ip netns pids {name}); do kill -9 $p 2>/dev/null || true; done"))?;
    guest.poll(Instant::now() + PATIENCE, "no process is in the pod's namespace", || {
        Ok(guest.run(&["ip", "netns", "pids", name])?.trim().is_empty().then_some(()))
    })?;
    guest.sh(&format!("umount {namespace}; rm -f {namespace}"))?;
    let driver = format!("/sys/bus/pci/devices/{device}/net");
    guest.poll(Instant::now() + PATIENCE, "the kernel gives the VF back to the host", || {
        Ok((!guest.run(&["ls", &driver])?.trim().is_empty()).then_some(()))
    })?;
    drop(stopped);
    cluster.wait("pod a is gone", PATIENCE, || Ok(cluster.get::<Value>("default", "pod", "a")?.is_none().then_some(())))?;
    cluster.wait_vf(1, "enp1s0", index, &before[index])
}

/// containerd of a guest, standing still until this is dropped: a test that fails in between must not take the tests after it along.
struct StoppedRuntime<'a>(&'a Guest);

impl<'a> StoppedRuntime<'a> {
    fn stop(guest: &'a Guest) -> Result<Self> {
        guest.sh("kill -STOP $(pidof containerd)")?;
        Ok(Self(guest))
    }
}

impl Drop for StoppedRuntime<'_> {
    fn drop(&mut self) {
        // The node's init starts it anew; that it came back shows in the next pod.
        if let Err(error) = self.0.sh("kill -9 $(pidof containerd)") {
            eprintln!("containerd could not be started again: {error:#}");
        }
    }
}

fn settings_of_the_network_reach_the_vf_and_leave_with_the_pod(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let before = snapshots(&cluster, 1, "enp1s0", 4)?;
    vlan_network(&cluster, "limited", 42, (40, 49), &["vlanQoS: 3", "spoofChk: \"off\"", "trust: \"on\"", "maxTxRate: 100"])?;
    start_pod(&cluster, "a", "node1", "limited")?;
    let device = cluster.devices_of("a", POOL)?.pop().context("pod a has no VF")?;
    let index = cluster.index_of(1, "enp1s0", &device)?;
    let attributes = cluster.vf(1, "enp1s0", index)?.attributes;
    same("vlan", &attributes["vlan_list"][0]["vlan"], &42.into())?;
    same("qos", &attributes["vlan_list"][0]["qos"], &3.into())?;
    same("spoofchk", &attributes["spoofchk"], &false.into())?;
    same("trust", &attributes["trust"], &true.into())?;
    same("max_tx_rate", &attributes["rate"]["max_tx"], &100.into())?;
    delete_pod(&cluster, "a")?;
    cluster.wait_vf(1, "enp1s0", index, &before[index])
}

fn a_vfio_pool_gives_the_group_and_moves_no_netdev(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let kernel = Policy::new("second-kernel", "pool_k", 4, "{pfNames: ['enp2s0#2-3']}").on("node1");
    let vfio = Policy::new("second-vfio", "pool_v", 4, "{pfNames: ['enp2s0#0-1']}").on("node1").device_type("vfio-pci");
    cluster.apply(&kernel.yaml())?;
    cluster.apply(&vfio.yaml())?;
    cluster.wait_allocatable("node1", "pool_v", 2, PATIENCE)?;
    cluster.wait_allocatable("node1", "pool_k", 2, PATIENCE)?;
    let before = snapshots(&cluster, 1, "enp2s0", 4)?;
    let drivers: Vec<String> = before.iter().map(|vf| vf.driver.clone()).collect();
    same("drivers", &drivers, &["vfio-pci", "vfio-pci", "igbvf", "igbvf"].map(str::to_owned).to_vec())?;
    cluster.apply(&network("raw", "pool_v", "{}", &["vlan: 77"]))?;
    cluster.wait("its NAD exists", PATIENCE, || cluster.get::<Value>("default", "network-attachment-definitions.k8s.cni.cncf.io", "raw"))?;
    cluster.apply(&pod("v", "node1", "raw", "pool_v", 1))?;
    cluster.wait_pod("v")?;
    let device = cluster.devices_of("v", "pool_v")?.pop().context("pod v has no VF")?;
    let group = cluster.guest(1)?.run(&["readlink", "-f", &format!("/sys/bus/pci/devices/{device}/iommu_group")])?;
    let group = group.trim().rsplit('/').next().unwrap_or_default().to_owned();
    let nodes = cluster.exec("v", &["ls", "/dev/vfio"])?;
    same("/dev/vfio in the pod", &nodes.split_whitespace().collect::<Vec<_>>(), &vec![group.as_str(), "vfio"])?;
    let links = cluster.exec("v", &["ls", "/sys/class/net"])?;
    ensure!(!links.contains("net1"), "a netdev was moved for a vfio-pci VF: {links}");
    let index = cluster.index_of(1, "enp2s0", &device)?;
    same("vlan", &cluster.vf(1, "enp2s0", index)?.attributes["vlan_list"][0]["vlan"], &77.into())?;
    delete_pod(&cluster, "v")?;
    cluster.wait_vf(1, "enp2s0", index, &before[index])
}

fn vfio_without_an_iommu_is_refused_and_touches_nothing(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let before = cluster.guest(2)?.run(&["ip", "-d", "link", "show", "dev", "enp2s0"])?;
    let pool = snapshots(&cluster, 2, "enp1s0", 4)?;
    cluster.apply(&Policy::new("no-iommu", "pool_n", 2, "{pfNames: [enp2s0]}").on("node2").device_type("vfio-pci").yaml())?;
    let state = cluster.wait_node_state("node2", "the refusal is a condition", |s| {
        condition(s, "Ready").is_some_and(|(v, _, m)| v == "False" && m.contains("intel_iommu=on"))
    })?;
    let (_, _, message) = condition(&state, "Ready").context("Ready")?;
    ensure!(message.contains("enp2s0") && message.contains("iommu=pt"), "the message does not name the PF and the kernel arguments: {message}");
    same("enp2s0", &cluster.guest(2)?.run(&["ip", "-d", "link", "show", "dev", "enp2s0"])?, &before)?;
    same("VFs of enp1s0", &snapshots(&cluster, 2, "enp1s0", 4)?, &pool)?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "no-iommu")?;
    cluster.wait_ready("node2", "True").map(drop)
}

fn more_vfs_than_totalvfs_are_refused_at_that_pf_only(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let too_many = Policy::new("too-many", "pool_t", 8, "{pfNames: [enp2s0]}").on("node2").yaml();
    let refusal = format!("{:#}", cluster.apply(&too_many).err().context("admission takes more VFs than the PF can have")?);
    ensure!(refusal.contains("numVfs") && refusal.contains("node2"), "admission does not tell what is refused, and for whom: {refusal}");
    // Without admission, as on a cluster whose webhook is off or unreachable, the daemon refuses.
    ask_admission(&cluster, false)?;
    cluster.apply(&too_many)?;
    ask_admission(&cluster, true)?;
    cluster.apply(&Policy::new("main", POOL, 3, "{pfNames: [enp1s0]}").yaml())?;
    let state = cluster.wait_node_state("node2", "the refusal is a condition", |s| {
        condition(s, "Ready").is_some_and(|(v, _, m)| v == "False" && m.contains("enp2s0"))
    })?;
    let (_, _, message) = condition(&state, "Ready").context("Ready")?;
    ensure!(message.contains('8') && message.contains('7'), "the message does not tell what was asked and what is allowed: {message}");
    cluster.wait_allocatable("node2", POOL, 3, PATIENCE)?;
    same("numvfs of enp2s0", &cluster.guest(2)?.read_text("/sys/class/net/enp2s0/device/sriov_numvfs")?.as_str(), &"0")?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "too-many")?;
    cluster.apply(&Policy::new("main", POOL, 4, "{pfNames: [enp1s0]}").yaml())?;
    for node in ["node1", "node2"] {
        cluster.wait_ready(node, "True")?;
        cluster.wait_allocatable(node, POOL, 4, PATIENCE)?;
    }
    Ok(())
}

/// Switches the validation of policies, and waits until the API server asks it, or no more.
fn ask_admission(cluster: &Cluster<'_>, on: bool) -> Result<()> {
    let patch = format!(r#"{{"spec": {{"enableOperatorWebhook": {on}}}}}"#);
    cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "patch", "sriovoperatorconfig", "default", "--type=merge", "-p", &patch])?;
    cluster.wait("admission is switched", PATIENCE, || {
        let found = cluster.get::<Value>("", "validatingwebhookconfigurations", "sriov-operator-webhook-config")?;
        Ok((found.is_some() == on).then_some(()))
    })
}

fn numvfs_grows_and_shrinks_without_a_restart_of_the_device_plugin(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    let daemons = daemon_identities(&cluster)?;
    for count in [2, 4, 1] {
        cluster.apply(&Policy::new("resized", "pool_r", count, "{pfNames: [enp2s0]}").on("node2").yaml())?;
        cluster.wait_node_state("node2", &format!("{count} VFs are ready"), |s| {
            let published = pf(s, "enp2s0").is_some_and(|p| p.num_vfs == i64::from(count) && p.vfs.len() == count as usize);
            published && condition(s, "Ready").is_some_and(|(value, _, _)| value == "True")
        })?;
        let ready = Instant::now();
        // The promise is 5 s; the rest is for a machine that emulates two others.
        cluster.wait_allocatable("node2", "pool_r", count, Duration::from_secs(5 + 10))?;
        cluster.lab.progress(&format!("{count} VFs: allocatable followed after {:.1} s", ready.elapsed().as_secs_f64()));
    }
    // Admission takes no policy of 0 VFs, as in the field: without the policy there are none.
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "resized")?;
    cluster.wait_allocatable("node2", "pool_r", 0, PATIENCE)?;
    cluster.wait("the PF has no VFs", PATIENCE, || {
        Ok((cluster.guest(2)?.read_text("/sys/class/net/enp2s0/device/sriov_numvfs")? == "0").then_some(()))
    })?;
    same("daemons", &daemon_identities(&cluster)?, &daemons)
}

fn the_stronger_of_two_policies_wins(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.apply(&Policy::new("weak", "pool_w", 5, "{pfNames: [enp2s0]}").on("node2").priority(99).yaml())?;
    cluster.wait_allocatable("node2", "pool_w", 5, PATIENCE)?;
    // Admission, as the field's, refuses two that name the same VFs; where it is not asked, priority decides.
    ask_admission(&cluster, false)?;
    cluster.apply(&Policy::new("strong", "pool_s", 2, "{pfNames: [enp2s0]}").on("node2").priority(10).yaml())?;
    ask_admission(&cluster, true)?;
    cluster.wait_allocatable("node2", "pool_s", 2, PATIENCE)?;
    cluster.wait_allocatable("node2", "pool_w", 0, PATIENCE)?;
    same("numvfs of enp2s0", &cluster.guest(2)?.read_text("/sys/class/net/enp2s0/device/sriov_numvfs")?.as_str(), &"2")?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "strong")?;
    cluster.wait_allocatable("node2", "pool_w", 5, PATIENCE)?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "weak")?;
    cluster.wait_allocatable("node2", "pool_w", 0, PATIENCE)
}

fn selectors_by_vendor_device_and_root_device_select(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    // By vendor and device both PFs would match, so the root device narrows it to one.
    let selector = "{vendor: '8086', deviceID: '10c9', rootDevices: ['0000:02:00.0']}";
    cluster.apply(&Policy::new("rooted", "pool_d", 1, selector).on("node2").mtu(4000).yaml())?;
    cluster.wait_allocatable("node2", "pool_d", 1, PATIENCE)?;
    let vf = cluster.vf(2, "enp2s0", 0)?;
    same("MTU of the VF", &vf.netdev.context("the VF has no netdev")?.3, &4000)?;
    same("MTU of the PF", &cluster.guest(2)?.read_text("/sys/class/net/enp2s0/mtu")?.as_str(), &"4000")?;
    same("numvfs of enp1s0", &cluster.guest(2)?.read_text("/sys/class/net/enp1s0/device/sriov_numvfs")?.as_str(), &"4")?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "rooted")?;
    cluster
        .wait("the PF has its first MTU again", PATIENCE, || Ok((cluster.guest(2)?.read_text("/sys/class/net/enp2s0/mtu")? == "1500").then_some(())))
}

fn pods_keep_working_while_the_api_server_is_away(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    start_pod(&cluster, "a", "node1", "blue-1")?;
    start_pod(&cluster, "b", "node2", "blue-2")?;
    let peer = address_of(&cluster, "b", "net1")?;
    let device = cluster.devices_of("a", POOL)?.pop().context("pod a has no VF")?;
    let before = snapshots(&cluster, 1, "enp1s0", 4)?;
    let journal: Value = serde_json::from_slice(&cluster.guest(1)?.read(&format!("/var/lib/cni/sriov/v1/{device}.json"))?)?;
    let namespace = journal["owner"]["netnsPath"].as_str().context("the journal names no namespace")?.to_owned();
    let daemons = daemon_identities(&cluster)?;

    cluster.lab.stop_api_server()?;
    let away = Instant::now();
    let guest = cluster.guest(1)?;
    let ping = || guest.run(&["nsenter", &format!("--net={namespace}"), "ping", "-c", "2", "-W", "5", &peer]);
    ping()?;
    // The device plugin still serves: the kubelet starts a static pod that needs a VF, for which it asks nobody but the plugin.
    guest.write("/etc/kubernetes/manifests/static.yaml", static_pod().as_bytes(), 0o644)?;
    guest.poll(Instant::now() + PATIENCE, "the static pod got a VF", || {
        Ok(guest.sh("cat /var/log/pods/default_static-node1_*/c/0.log")?.contains("PCIDEVICE_OPENSHIFT_IO_POOL_A=0000:01:").then_some(()))
    })?;
    // The CNI still serves: by hand, on the last VF, which no pod has.
    cni_round_trip(&cluster, &before)?;
    guest.run(&["rm", "/etc/kubernetes/manifests/static.yaml"])?;
    while away.elapsed() < Duration::from_mins(1) {
        thread::sleep(Duration::from_secs(2));
    }
    ping()?;
    cluster.lab.start_api_server()?;

    // All catches up: a change that is made now is done.
    cluster.apply(&Policy::new("late", "pool_l", 2, "{pfNames: [enp2s0]}").on("node2").yaml())?;
    cluster.wait_allocatable("node2", "pool_l", 2, PATIENCE)?;
    cluster.exec("a", &["ping", "-c", "2", "-W", "5", &peer])?;
    same("daemons", &daemon_identities(&cluster)?, &daemons)?;
    cluster.delete(OPERATOR_NAMESPACE, "sriovnetworknodepolicy", "late")?;
    ["a", "b"].iter().try_for_each(|name| delete_pod(&cluster, name))
}

fn static_pod() -> String {
    "apiVersion: v1\nkind: Pod\nmetadata: {name: static, namespace: default}\nspec:\n  hostNetwork: true\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
     - name: c\n    image: localhost/busybox:lab\n    imagePullPolicy: Never\n    command: [sh, -c, 'env; trap exit TERM; while true; do sleep 1; done']\n    \
     resources: {limits: {openshift.io/pool_a: '1'}, requests: {openshift.io/pool_a: '1'}}\n"
        .to_owned()
}

/// ADD and DEL of a free VF by hand, and the VF is as before.
fn cni_round_trip(cluster: &Cluster<'_>, before: &[VfSnapshot]) -> Result<()> {
    let guest = cluster.guest(1)?;
    let index = before.iter().rposition(|vf| vf.netdev.is_some()).context("no VF is free")?;
    let device = guest.sh(&format!("basename $(readlink /sys/class/net/enp1s0/device/virtfn{index})"))?;
    let configuration = serde_json::json!({"cniVersion": "1.0.0", "name": "by-hand", "type": "sriov", "deviceID": device.trim(), "vlan": 5,
        "ipam": {"type": "static", "addresses": [{"address": "192.0.2.200/24"}]}});
    guest.sh("ip netns add by-hand")?;
    let run = |verb: &str| {
        let command = guest.command(&["/opt/cni/bin/sriov"]).env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "by-hand").env("CNI_IFNAME", "net1");
        command.env("CNI_NETNS", "/run/netns/by-hand").env("CNI_PATH", "/opt/cni/bin").stdin(configuration.to_string()).output()
    };
    let added = run("ADD")?;
    ensure!(added.contains("192.0.2.200/24"), "the result of ADD has no address: {added}");
    ensure!(guest.run(&["ip", "-n", "by-hand", "addr", "show", "net1"])?.contains("192.0.2.200/24"), "net1 has no address");
    run("DEL")?;
    cluster.wait_vf(1, "enp1s0", index, &before[index])?;
    guest.sh("ip netns del by-hand").map(drop)
}

/// `useCDI` is an argument of the plugin, so that its DaemonSet replaces its pods, here under a pod that has a VF.
fn an_update_of_the_device_plugin_costs_no_device_for_a_moment(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    start_pod(&cluster, "holder", "node1", "")?;
    let plugin = || -> Result<Vec<String>> {
        let pods = cluster
            .node_pods("node1")?
            .into_iter()
            .filter(|pod| pod.spec.iter().flat_map(|spec| &spec.containers).any(|c| c.name == "device-plugin"));
        Ok(pods.filter_map(|pod| pod.metadata.uid).collect())
    };
    let (before, skip) = (plugin()?, cluster.kubelet_log_lines(1)?);
    same("plugins on node1", &before.len(), &1)?;
    for (number, cdi) in ["true", "false"].into_iter().enumerate() {
        let older = plugin()?;
        let patch = format!(r#"{{"spec": {{"useCDI": {cdi}}}}}"#);
        cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "patch", "sriovoperatorconfig", "default", "--type=merge", "-p", &patch])?;
        cluster.wait("the newer plugin is alone", PATIENCE, || {
            let now = plugin()?;
            Ok((now.len() == 1 && now != older).then_some(()))
        })?;
        cluster.wait("the newer plugin is registered for good", PATIENCE, || {
            // Once beside the older one, and once after its end.
            Ok((cluster.kubelet_counts(1, POOL, skip)?.len() >= 2 * (number + 1)).then_some(()))
        })?;
        start_pod(&cluster, "next", "node1", "")?;
        delete_pod(&cluster, "next")?;
    }
    let counts = cluster.kubelet_counts(1, POOL, skip)?;
    ensure!(counts.iter().all(|count| *count == 4), "the kubelet counted {counts:?}");
    cluster.wait_pod("holder")?;
    delete_pod(&cluster, "holder")
}

fn deleted_policies_take_their_vfs_along(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "delete", "sriovnetworknodepolicies", "--all", "--timeout=60s"])?;
    for number in [1, 2] {
        for pf in ["enp1s0", "enp2s0"] {
            let guest = cluster.guest(number)?;
            guest.poll(Instant::now() + PATIENCE, &format!("{pf} has no VFs"), || {
                Ok((guest.read_text(&format!("/sys/class/net/{pf}/device/sriov_numvfs"))? == "0").then_some(()))
            })?;
        }
        cluster.wait_allocatable(&format!("node{number}"), POOL, 0, PATIENCE)?;
    }
    Ok(())
}

fn a_node_that_loses_its_label_loses_its_daemon(lab: &mut Lab) -> Result<()> {
    let cluster = Cluster::of(lab);
    cluster.set_capable("node2", false)?;
    cluster.wait("node2 has no daemon", PATIENCE, || Ok(cluster.node_pods("node2")?.is_empty().then_some(())))?;
    same("pods on node1", &cluster.node_pods("node1")?.len(), &2)
}
