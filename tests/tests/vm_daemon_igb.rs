//! I/O: tier 2: the config daemon on a real kernel: what it sees, what it makes, what it refuses, and that it can be killed at any moment.
//!
//! What lives here: `observe`, `plan`, `apply` and `reset` in two guests, of which the second has no IOMMU. What does not: the loop around
//! them, which needs a cluster (`cluster_slice`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sriov_host::inventory::{Pf, RdmaMode};
use sriov_tests::lab::Lab;
use sriov_tests::lab::config_daemon::{CONFINED, ConfigDaemon, PROGRAM, Wish, capabilities, node_state};
use sriov_tests::lab::guest::{Guest, Outcome};
use sriov_tests::lab::topology::{Nic, Node, Topology};

sriov_tests::lab_tests! { Topology::guests([Node::new(1).with_disk(), Node::new(2).without_iommu()]);
    it_sees_what_the_kernel_shows,
    netdevice_vfs_get_their_driver_mac_and_mtu,
    a_second_apply_finds_nothing_to_do,
    reset_gives_the_pf_back_as_it_was,
    one_pf_has_vfs_for_both_kinds_of_driver,
    the_number_of_vfs_goes_from_two_to_four_to_none,
    too_many_vfs_are_refused_while_the_other_pf_is_configured,
    killed_after_any_step_it_converges_and_never_makes_right_vfs_again,
    a_port_that_the_host_uses_is_refused_and_its_traffic_is_left_alone,
    vfio_pci_is_loaded_when_it_is_missing,
    without_an_iommu_vfio_is_refused_and_nothing_is_touched,
    policies_are_planned_without_a_cluster_and_without_root,
    network_manager_is_told_to_leave_vfs_alone,
    after_a_power_cut_the_same_vfs_are_there_before_anything_else_runs,
    doctor_finds_the_iommu_that_is_missing,
    the_mode_of_rdma_devices_changes_at_once_or_waits_for_a_boot,
    a_full_disk_changes_no_pf_and_is_told,
    a_clock_that_jumps_changes_nothing,
    a_reboot_is_named_only_when_the_boot_loader_brings_what_is_missing,
    a_pf_that_is_unplugged_while_a_plan_runs_harms_nobody_else,
}

fn first(lab: &Lab) -> Result<(&Guest, Nic, Nic)> {
    pfs(lab.guest(1)?)
}

fn pfs(guest: &Guest) -> Result<(&Guest, Nic, Nic)> {
    let mut nics = guest.node().nics();
    Ok((guest, nics.next().context("no PF")?, nics.next().context("one PF only")?))
}

fn links(guest: &Guest) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&guest.run(&["/usr/sbin/ip", "-j", "-d", "link"])?)?)
}

fn link(guest: &Guest, name: &str) -> Result<Value> {
    links(guest)?.into_iter().find(|link| link["ifname"] == name).with_context(|| format!("there is no link {name}"))
}

fn drivers(pf: &Pf) -> Vec<Option<&str>> {
    pf.vfs.iter().map(|vf| vf.driver.as_deref()).collect()
}

/// Applies and fails unless everything was done.
fn apply(daemon: &ConfigDaemon<'_>, wishes: &[Wish]) -> Result<()> {
    let outcome = daemon.apply(wishes)?;
    ensure!(outcome.success() && outcome.text().contains("left: nothing to do"), "{outcome}");
    Ok(())
}

fn reset(daemon: &ConfigDaemon<'_>) -> Result<()> {
    let outcome = daemon.reset()?;
    ensure!(outcome.success(), "{outcome}");
    Ok(())
}

fn it_sees_what_the_kernel_shows(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", nic.pci_address()), "2")?;
    guest.run(&["/usr/sbin/ip", "link", "set", &nic.netdev(), "up"])?;
    let carrier = || Ok((guest.read_text(&format!("/sys/class/net/{}/carrier", nic.netdev()))? == "1").then_some(()));
    // The kernel takes no rate for a PF without a link speed.
    guest.poll(Instant::now() + Duration::from_secs(30), "the PF has a carrier", carrier)?;
    guest.sh(&format!("ip link set {} vf 1 mac 52:54:00:01:02:03 vlan 42 qos 3 spoofchk off trust on max_tx_rate 100", nic.netdev()))?;
    let netdevs = || Ok(daemon.pf(nic).ok().filter(|pf| pf.vfs.iter().all(|vf| vf.netdev.is_some())));
    let pf = guest.poll(Instant::now() + Duration::from_secs(30), "both VFs have netdevs", netdevs)?;
    let shown = link(guest, &nic.netdev())?;
    assert_eq!((pf.numvfs, pf.totalvfs, pf.driver.as_deref(), pf.vfs.len()), (2, 7, Some("igb"), 2));
    let netdev = pf.netdev.context("the PF has no netdev")?;
    assert_eq!((netdev.name.as_str(), netdev.ifindex), (shown["ifname"].as_str().unwrap_or(""), serde_json::from_value(shown["ifindex"].clone())?));
    assert_eq!(netdev.mac.map(|mac| mac.to_string()).as_deref(), shown["address"].as_str());
    for (vf, shown) in pf.vfs.iter().zip(shown["vfinfo_list"].as_array().context("ip shows no VFs")?) {
        let attributes = serde_json::to_value(vf.attributes.as_ref().context("the VF has no attributes")?)?;
        let vlan = shown["vlan_list"][0]["vlan"].as_u64().unwrap_or(0);
        assert_eq!(attributes["mac"], shown["address"], "{attributes} {shown}");
        assert_eq!(attributes["vlan"]["id"].as_u64().unwrap_or(0), vlan, "{attributes} {shown}");
        assert_eq!((&attributes["spoof_check"], &attributes["trust"]), (&shown["spoofchk"], &shown["trust"]), "{attributes} {shown}");
        let netdev = vf.netdev.as_ref().context("the VF has no netdev")?;
        assert_eq!(Some(netdev.mac.context("no MAC")?.to_string().as_str()), link(guest, &netdev.name)?["address"].as_str());
        assert!(vf.iommu_group.is_some(), "{vf:?}");
    }
    assert!(daemon.observe()?.iommu.active);
    assert_eq!(daemon.pf(other)?.numvfs, 0);
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", nic.pci_address()), "0")
}

fn netdevice_vfs_get_their_driver_mac_and_mtu(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    apply(&daemon, &[Wish::vfs(nic, 2).group("0-1", "netdevice").mtu(4000)])?;
    let pf = daemon.pf(nic)?;
    assert_eq!(drivers(&pf), [Some("igbvf"), Some("igbvf")]);
    for vf in &pf.vfs {
        let name = format!("{}v{}", nic.netdev(), serde_json::to_value(vf.index)?);
        let shown = link(guest, &name)?;
        assert_eq!(shown["mtu"], 4000, "{shown}");
        let admin = vf.attributes.as_ref().context("the VF has no attributes")?.mac;
        assert!(!admin.is_zero());
        assert_eq!(shown["address"], admin.to_string(), "{shown}");
    }
    assert_eq!(link(guest, &nic.netdev())?["mtu"], 4000);
    assert_eq!((daemon.pf(other)?.numvfs, &link(guest, &other.netdev())?["mtu"]), (0, &1500.into()));
    Ok(())
}

fn a_second_apply_finds_nothing_to_do(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let wish = [Wish::vfs(nic, 2).group("0-1", "netdevice").mtu(4000)];
    apply(&daemon, &wish)?;
    let before = without_carrier(links(guest)?);
    assert_eq!(daemon.plan(&wish)?, "nothing to do\n");
    let outcome = daemon.apply(&wish)?;
    ensure!(outcome.text().starts_with("0 of 0 steps done"), "{outcome}");
    assert_eq!(without_carrier(links(guest)?), before);
    Ok(())
}

/// Links without what changes by itself for a while after a PF was set up: its carrier.
fn without_carrier(mut links: Vec<Value>) -> Vec<Value> {
    for link in links.iter_mut().filter_map(Value::as_object_mut) {
        link.remove("operstate");
        if let Some(flags) = link.get_mut("flags").and_then(Value::as_array_mut) {
            flags.retain(|flag| flag != "LOWER_UP" && flag != "NO-CARRIER");
        }
    }
    links
}

fn reset_gives_the_pf_back_as_it_was(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    apply(&daemon, &[Wish::vfs(nic, 2).group("0-1", "netdevice").mtu(4000)])?;
    reset(&daemon)?;
    assert_eq!((daemon.pf(nic)?.numvfs, &link(guest, &nic.netdev())?["mtu"]), (0, &1500.into()));
    assert_eq!(guest.run(&["find", "/etc/sriov-operator", "-type", "f", "-path", "*/pci/*"])?, "");
    Ok(())
}

fn one_pf_has_vfs_for_both_kinds_of_driver(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    apply(&daemon, &[Wish::vfs(nic, 3).group("0-0", "netdevice").group("1-2", "vfio-pci")])?;
    let pf = daemon.pf(nic)?;
    assert_eq!(drivers(&pf), [Some("igbvf"), Some("vfio-pci"), Some("vfio-pci")]);
    let groups: Vec<_> = pf.vfs[1..].iter().filter_map(|vf| vf.iommu_group).collect();
    assert!(groups.len() == 2 && groups[0] != groups[1], "{groups:?}");
    for group in groups {
        guest.run(&["test", "-c", &format!("/dev/vfio/{group}")])?;
    }
    reset(&daemon)
}

fn the_number_of_vfs_goes_from_two_to_four_to_none(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    for count in [2, 4] {
        apply(&daemon, &[Wish::vfs(nic, count).group(&format!("0-{}", count - 1), "netdevice")])?;
        let pf = daemon.pf(nic)?;
        assert_eq!((pf.numvfs, pf.vfs.iter().filter(|vf| vf.netdev.is_some()).count()), (u16::from(count), usize::from(count)));
    }
    // Nothing is wanted any more, which is not the same as a PF with no VFs wanted.
    apply(&daemon, &[])?;
    assert_eq!(daemon.pf(nic)?.numvfs, 0);
    Ok(())
}

fn too_many_vfs_are_refused_while_the_other_pf_is_configured(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let outcome = daemon.apply(&[Wish::vfs(nic, 9).group("0-8", "netdevice"), Wish::vfs(other, 1).group("0-0", "netdevice")])?;
    ensure!(!outcome.success() && outcome.text().contains("refused (TooManyVfs)"), "{outcome}");
    ensure!(outcome.text().contains("at most 7"), "{outcome}");
    assert_eq!((daemon.pf(nic)?.numvfs, daemon.pf(other)?.numvfs), (0, 1));
    reset(&daemon)
}

/// Starts `apply`, kills it as soon as it has said `steps` lines, and gives how many it had said then; `None` when it ended before.
fn apply_and_kill(guest: &Guest, wish: &str, steps: usize) -> Result<bool> {
    guest.write("/tmp/wish.json", wish.as_bytes(), 0o600)?;
    let capabilities = capabilities()?;
    let script = format!(
        "rm -f /tmp/apply.log; {CONFINED} {capabilities} {PROGRAM} apply -f /tmp/wish.json >/dev/null 2>/tmp/apply.log & p=$!
         while kill -0 $p 2>/dev/null && [ \"$(grep -c ' INFO ' /tmp/apply.log)\" -lt {steps} ]; do :; done
         kill -9 $p 2>/dev/null; wait $p; echo $?"
    );
    let status = guest.command(&["/bin/sh", "-c", &script]).limit(Duration::from_mins(2)).output()?;
    Ok(status.trim() == "137")
}

fn killed_after_any_step_it_converges_and_never_makes_right_vfs_again(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let wish = [Wish::vfs(nic, 2).group("0-0", "netdevice").group("1-1", "vfio-pci").mtu(4000)];
    let steps = daemon.plan(&wish)?.lines().filter(|line| line.starts_with("0000:")).count();
    ensure!(steps >= 8, "a plan of {steps} steps is no test");
    let mut killed = 0;
    for after in 1..=steps {
        if apply_and_kill(guest, &node_state(&wish), after)? {
            killed += 1;
        }
        let made = daemon.pf(nic)?.numvfs == 2;
        let plan = daemon.plan(&wish)?;
        ensure!(!made || !plan.contains("sriov_numvfs"), "killed after step {after}, the VFs are there, and yet: {plan}");
        apply(&daemon, &wish).with_context(|| format!("killed after step {after}; what was left: {plan}"))?;
        let pf = daemon.pf(nic)?;
        assert_eq!(drivers(&pf), [Some("igbvf"), Some("vfio-pci")], "killed after step {after}");
        assert_eq!(
            guest.read_text(&format!("/sys/bus/pci/devices/{}/sriov_drivers_autoprobe", nic.pci_address()))?,
            "1",
            "killed after step {after}"
        );
        reset(&daemon)?;
    }
    // The last step may be over before it can be killed.
    ensure!(killed + 2 >= steps, "only {killed} of {steps} runs were killed");
    Ok(())
}

fn without_an_iommu_vfio_is_refused_and_nothing_is_touched(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = pfs(lab.guest(2)?)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    assert!(!daemon.observe()?.iommu.active);
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", other.pci_address()), "1")?;
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let before = (links(guest)?, daemon.observe()?);
    let outcome = daemon.apply(&[Wish::vfs(nic, 2).group("0-1", "vfio-pci")])?;
    ensure!(!outcome.success() && outcome.text().contains("refused (IommuInactive)"), "{outcome}");
    ensure!(
        outcome.text().contains("put intel_iommu=on iommu=pt") && outcome.text().contains("in the place of  intel_iommu=off"),
        "the refusal does not say what to do: {outcome}"
    );
    assert_eq!((links(guest)?, daemon.observe()?), before);
    Ok(())
}

const POLICIES: &str = "\
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodePolicy
metadata: {name: kernel}
spec: {resourceName: a, nodeSelector: {role: x}, nicSelector: {pfNames: ['PF#0-0']}, numVfs: 2, priority: 10}
---
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodePolicy
metadata: {name: userspace}
spec: {resourceName: b, nodeSelector: {}, nicSelector: {pfNames: ['PF#1-1']}, numVfs: 2, priority: 10, deviceType: vfio-pci}
";

fn policies_are_planned_without_a_cluster_and_without_root(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    reset(&daemon)?;
    guest.write("/tmp/policies.yaml", POLICIES.replace("PF", &nic.netdev()).as_bytes(), 0o644)?;
    let as_nobody = |command: &str| guest.run(&["su", "-s", "/bin/sh", "nobody", "-c", &format!("{PROGRAM} {command}")]);
    let plan = as_nobody("plan -f /tmp/policies.yaml")?;
    ensure!(plan.contains("create 2 VFs") && plan.contains("vf 1: bind to vfio-pci"), "{plan}");
    let seen = as_nobody("observe")?;
    ensure!(seen.contains(nic.pci_address().as_str()), "{seen}");
    assert_eq!(daemon.pf(nic)?.numvfs, 0, "plan changed the machine");
    guest.run(&[CONFINED, &capabilities()?, PROGRAM, "apply", "-f", "/tmp/policies.yaml"])?;
    assert_eq!(drivers(&daemon.pf(nic)?), [Some("igbvf"), Some("vfio-pci")]);
    reset(&daemon)
}

fn network_manager_is_told_to_leave_vfs_alone(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    apply(&daemon, &[Wish::vfs(nic, 1).group("0-0", "netdevice")])?;
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let of = |name: &str| guest.run(&["udevadm", "info", "--query=property", &format!("/sys/class/net/{name}")]);
    let vf = daemon.pf(nic)?.vfs.first().and_then(|vf| vf.netdev.clone()).context("the VF has no netdev")?.name;
    let (pf, vf) = (of(&nic.netdev())?, of(&vf)?);
    ensure!(vf.lines().any(|line| line == "NM_UNMANAGED=1"), "{vf}");
    ensure!(!pf.contains("NM_UNMANAGED"), "{pf}");
    reset(&daemon)?;
    assert_eq!(guest.run(&["find", "/etc/udev/rules.d", "-name", "10-nm-disable-*"])?, "", "the rule outlived its VFs");
    Ok(())
}

fn after_a_power_cut_the_same_vfs_are_there_before_anything_else_runs(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let wish = [Wish::vfs(nic, 2).group("0-0", "netdevice").group("1-1", "vfio-pci").mtu(4000)];
    apply(&daemon, &wish)?;
    let admin_macs = |pf: &Pf| -> Vec<_> { pf.vfs.iter().filter_map(|vf| Some(vf.attributes.as_ref()?.mac)).collect() };
    let before = daemon.pf(nic)?;
    // What the daemon keeps of its cluster's wish; that it does, and in this form, is shown by apiserver_daemon.
    guest.write("/etc/sriov-operator/node-state.json", node_state(&wish).as_bytes(), 0o600)?;
    guest.write("/etc/sriov-operator/sriov-supported-nics-ids.yaml", b"8086 10c9 10ca\n", 0o600)?;
    guest.write("/state/boot-hook", format!("#!/bin/sh\n{PROGRAM} apply --systemd >/var/log/restore 2>&1\n").as_bytes(), 0o755)?;
    guest.run(&["sync"])?;
    let boot = guest.boot_id()?;
    guest.reset(Instant::now() + Duration::from_mins(3))?;
    ensure!(guest.boot_id()? != boot, "the guest was not started anew");
    let after = daemon.pf(nic).with_context(|| guest.read_text("/var/log/restore").unwrap_or_default())?;
    assert_eq!(drivers(&after), [Some("igbvf"), Some("vfio-pci")], "{}", guest.read_text("/var/log/restore")?);
    assert_eq!(admin_macs(&after), admin_macs(&before), "MACs differ after the boot");
    ensure!(daemon.plan(&wish)? == "nothing to do\n", "{}", daemon.plan(&wish)?);
    let result = guest.read_text("/etc/sriov-operator/sriov-interface-result.yaml")?;
    ensure!(result.contains("Succeeded"), "{result}");
    guest.run(&["rm", "-f", "/state/boot-hook", "/etc/sriov-operator/node-state.json"])?;
    reset(&daemon)
}

fn doctor_finds_the_iommu_that_is_missing(lab: &mut Lab) -> Result<()> {
    let doctor = |number: u8| lab.guest(number)?.command(&[CONFINED, &capabilities()?, PROGRAM, "doctor"]).outcome();
    let (with, without) = (doctor(1)?, doctor(2)?);
    ensure!(!with.text().contains("IOMMU: "), "{with}");
    ensure!(without.text().contains("note: IOMMU: ") && without.text().contains("cure: "), "{without}");
    Ok(())
}

fn a_port_that_the_host_uses_is_refused_and_its_traffic_is_left_alone(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    guest.sh(&format!(
        "ip link add link {0} name {0}.7 type vlan id 7 && ip link set {0} up && ip addr add 198.51.100.1/24 dev {0}.7",
        nic.netdev()
    ))?;
    let before = without_carrier(links(guest)?);
    let outcome = daemon.apply(&[Wish::vfs(nic, 2).group("0-1", "netdevice"), Wish::vfs(other, 1).group("0-0", "netdevice")])?;
    ensure!(!outcome.success() && outcome.text().contains("refused (PfInUse)"), "{outcome}");
    for word in [format!("address 198.51.100.1/24 is on {}.7", nic.netdev()), format!("{}.7 (vlan) stands on it", nic.netdev())] {
        ensure!(outcome.text().contains(&word), "{word:?} is not in {outcome}");
    }
    let is_ours = |link: &&Value| link["ifname"].as_str().is_some_and(|name| name.starts_with(&nic.netdev()));
    let after = without_carrier(links(guest)?);
    assert_eq!(after.iter().filter(is_ours).collect::<Vec<_>>(), before.iter().filter(is_ours).collect::<Vec<_>>());
    assert_eq!((daemon.pf(nic)?.numvfs, daemon.pf(other)?.numvfs), (0, 1), "the other port is configured");
    guest.sh(&format!("ip link del {}.7", nic.netdev()))?;
    apply(&daemon, &[Wish::vfs(nic, 2).group("0-1", "netdevice"), Wish::vfs(other, 1).group("0-0", "netdevice")])?;
    reset(&daemon)
}

fn vfio_pci_is_loaded_when_it_is_missing(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    guest.sh("modprobe -r vfio-pci; [ ! -e /sys/bus/pci/drivers/vfio-pci ]")?;
    let wish = [Wish::vfs(nic, 1).group("0-0", "vfio-pci")];
    ensure!(daemon.plan(&wish)?.starts_with("machine: load kernel module vfio-pci\n"), "{}", daemon.plan(&wish)?);
    apply(&daemon, &wish)?;
    assert_eq!(drivers(&daemon.pf(nic)?), [Some("vfio-pci")]);
    reset(&daemon)
}

/// A wish for the mode of RDMA devices alone, planned or applied.
fn rdma_mode(guest: &Guest, command: &str, mode: &str) -> Result<Outcome> {
    let mut state: Value = serde_json::from_str(&node_state(&[]))?;
    state["spec"]["system"] = serde_json::json!({ "rdmaMode": mode });
    guest.command(&[CONFINED, &capabilities()?, PROGRAM, command, "-f", "-"]).stdin(state.to_string()).outcome()
}

fn the_mode_of_rdma_devices_changes_at_once_or_waits_for_a_boot(lab: &mut Lab) -> Result<()> {
    const STAGED: &str = "/etc/modprobe.d/sriov_network_operator_modules_config.conf";
    let (guest, _, _) = first(lab)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    // Soft RDMA brings the core, whose mode it is.
    guest.sh("modprobe rdma_rxe")?;
    let found = || Ok::<_, anyhow::Error>(daemon.observe()?.kernel.rdma_mode);
    assert_eq!(found()?, Some(RdmaMode::Shared), "the kernel's default");
    let done = rdma_mode(guest, "apply", "exclusive")?;
    ensure!(done.success() && done.text().contains("left: nothing to do"), "{done}");
    assert_eq!(found()?, Some(RdmaMode::Exclusive));
    assert_eq!(guest.run(&["cat", STAGED])?, "options ib_core netns_mode=0\n");
    guest.sh("ip netns add holds")?;
    let waits = rdma_mode(guest, "apply", "shared")?;
    let kept = found()?;
    guest.sh("ip netns del holds")?;
    ensure!(waits.text().contains("refused (RebootRequired)") && waits.text().contains("disruption: Reboot"), "{waits}");
    assert_eq!(kept, Some(RdmaMode::Exclusive), "the kernel would refuse it");
    assert_eq!(guest.run(&["cat", STAGED])?, "options ib_core netns_mode=1\n", "the next boot has it");
    let done = rdma_mode(guest, "apply", "shared")?;
    ensure!(done.success(), "{done}");
    assert_eq!(found()?, Some(RdmaMode::Shared));
    // A mode that nobody asks for is left, and our file goes.
    let done = rdma_mode(guest, "apply", "")?;
    ensure!(done.success(), "{done}");
    guest.sh(&format!("test ! -e {STAGED}"))?;
    assert_eq!(found()?, Some(RdmaMode::Shared));
    Ok(())
}

fn a_full_disk_changes_no_pf_and_is_told(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    reset(&daemon)?;
    guest.sh("mkdir -p /etc/sriov-operator && mount -t tmpfs -o size=8k tmpfs /etc/sriov-operator")?;
    guest.sh("dd if=/dev/zero of=/etc/sriov-operator/filler bs=4k count=8 2>/dev/null || true")?;
    let wish = [Wish::vfs(nic, 1).group("0-0", "netdevice")];
    let outcome = daemon.apply(&wish)?;
    let numvfs = daemon.pf(nic)?.numvfs;
    guest.sh("umount /etc/sriov-operator")?;
    ensure!(!outcome.success() && outcome.text().contains("No space left on device"), "{outcome}");
    assert_eq!(numvfs, 0, "VFs of which nobody would know that they are ours");
    apply(&daemon, &wish)?;
    reset(&daemon)
}

fn a_clock_that_jumps_changes_nothing(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    let wish = [Wish::vfs(nic, 2).group("0-1", "netdevice")];
    apply(&daemon, &wish)?;
    // A pod of the Go plugin, which tells when it got its VF by a file's time alone.
    let vf = daemon.pf(nic)?.vfs[0].address;
    guest.sh(&format!("ip netns add clock && mkdir -p /var/lib/cni/sriov/pci && printf /run/netns/clock > /var/lib/cni/sriov/pci/{vf}"))?;
    let now = guest.sh("date +%s")?;
    let mut seen = Vec::new();
    for jump in ["2031-01-01 00:00:00", "2001-01-01 00:00:00"] {
        guest.sh(&format!("date -s '{jump}'"))?;
        seen.push((daemon.plan(&wish)?, daemon.plan(&[Wish::vfs(nic, 3).group("0-2", "netdevice")])?));
    }
    guest.sh(&format!("date -s @{}; ip netns del clock; rm -f /var/lib/cni/sriov/pci/{vf}", now.trim()))?;
    for (same, more) in seen {
        assert_eq!(same, "nothing to do\n");
        ensure!(more.contains(&format!("{vf} (the pod with network namespace clock")) && !more.contains("create 3 VFs"), "{more}");
    }
    reset(&daemon)
}

fn a_reboot_is_named_only_when_the_boot_loader_brings_what_is_missing(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = pfs(lab.guest(2)?)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    let wish = [Wish::vfs(nic, 1).group("0-0", "vfio-pci")];
    ensure!(daemon.plan(&wish)?.ends_with("disruption: None\n"), "{}", daemon.plan(&wish)?);
    guest.sh("mkdir -p /boot/grub")?;
    guest.write("/boot/grub/grub.cfg", b"\tlinux /vmlinuz root=/dev/vda intel_iommu=on\n", 0o600)?;
    let staged = daemon.plan(&wish)?;
    guest.run(&["rm", "/boot/grub/grub.cfg"])?;
    ensure!(staged.contains("refused (RebootRequired)") && staged.contains("disruption: Reboot"), "{staged}");
    assert_eq!(daemon.pf(nic)?.numvfs, 0);
    Ok(())
}

fn a_pf_that_is_unplugged_while_a_plan_runs_harms_nobody_else(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let wish = [Wish::vfs(nic, 2).group("0-1", "netdevice"), Wish::vfs(other, 4).group("0-3", "netdevice")];
    guest.write("/tmp/wish.json", node_state(&wish).as_bytes(), 0o600)?;
    guest.sh(&format!(
        "{CONFINED} {} {PROGRAM} apply -f /tmp/wish.json > /tmp/apply.out 2> /tmp/apply.log & echo $! > /tmp/apply.pid",
        capabilities()?
    ))?;
    let begun = || Ok(guest.sh("cat /tmp/apply.log")?.contains(&format!("{}: create 4 VFs", other.pci_address())).then_some(()));
    guest.poll(Instant::now() + Duration::from_mins(1), "VFs are being made on the port that is to go", begun)?;
    guest.monitor().unplug(&other.device_id())?;
    let ended = || Ok((!guest.sh("kill -0 $(cat /tmp/apply.pid) 2>/dev/null && echo runs || true")?.contains("runs")).then_some(()));
    guest.poll(Instant::now() + Duration::from_secs(150), "the run ends", ended)?;
    let gone = || Ok(daemon.observe()?.pfs.iter().all(|pf| pf.address.to_string() != other.pci_address()).then_some(()));
    guest.poll(Instant::now() + Duration::from_mins(1), "the port is gone", gone)?;
    let pf = daemon.pf(nic)?;
    assert_eq!(drivers(&pf), [Some("igbvf"), Some("igbvf")], "the port that stayed: {}", guest.sh("cat /tmp/apply.log")?);
    let plan = daemon.plan(&wish)?;
    ensure!(plan.starts_with("refused (PfNotFound)"), "{plan}");
    reset(&daemon)
}
