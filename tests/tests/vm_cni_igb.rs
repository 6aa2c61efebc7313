//! I/O: tier 2: the SR-IOV CNI on a real kernel: a VF goes into a namespace as asked and comes back exactly as it was.
//!
//! What lives here: the plugin run as a container runtime runs it, with the reference IPAM plugins, on VFs of both PFs of one guest, which meet
//! on the lab's wire. What does not: pods (`cluster_slice`), and what needs no VF (`netns_cni`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_tests::lab::Lab;
use sriov_tests::lab::config_daemon::{ConfigDaemon, Wish};
use sriov_tests::lab::guest::{Guest, Outcome};
use sriov_tests::lab::topology::{Nic, Topology};
use sriov_tests::lab::wire::Tag;

sriov_tests::lab_tests! { Topology::one_guest();
    vfs_are_prepared,
    a_vf_goes_in_named_and_addressed_and_comes_back_as_it_was,
    what_the_network_asks_is_set_on_the_vf_and_taken_back,
    a_pf_that_was_renamed_meanwhile_is_found_by_its_address,
    a_vf_for_a_program_that_is_half_reset_is_attached_anew_by_a_repeated_add,
    a_vf_whose_namespace_was_destroyed_comes_back_as_it_was,
    a_second_del_changes_nothing,
    a_vf_whose_records_were_lost_goes_back_by_its_address_as_a_fresh_one,
    a_pod_from_before_an_upgrade_is_detached_by_the_go_plugins_record,
    a_vf_left_by_a_dead_container_is_restored_before_the_next_gets_it,
    a_vf_of_a_living_container_is_not_given_to_another,
    a_failed_add_leaves_the_vf_as_it_was,
    a_vf_for_a_userspace_driver_keeps_its_driver_and_no_netdev_moves,
    two_namespaces_meet_on_one_vlan_with_its_tag_and_not_on_two,
    the_config_daemon_leaves_vfs_in_use_alone,
    an_rdma_device_that_the_kernel_cannot_move_is_told_and_undone_and_check_looks_for_it,
}

const PLUGIN: &str = "/opt/cni/bin/sriov";

/// One attachment, as a container runtime asks for it.
struct Attachment<'a> {
    guest: &'a Guest,
    container: &'static str,
    conf: Value,
}

fn first(lab: &Lab) -> Result<(&Guest, Nic, Nic)> {
    let guest = lab.guest(1)?;
    let mut nics = guest.node().nics();
    Ok((guest, nics.next().context("no PF")?, nics.next().context("one PF only")?))
}

/// PCI address of a VF; igb numbers them from 16 devices above the PF, every second function.
fn vf(nic: Nic, index: u8) -> String {
    format!("0000:{:02x}:1{}.{}", nic.index + 1, index / 4, 2 * (index % 4))
}

impl<'a> Attachment<'a> {
    /// Of a VF to the container's namespace, which is made if it is not there; `asked` is added to the network's configuration.
    fn new(guest: &'a Guest, container: &'static str, vf: &str, asked: &Value) -> Result<Self> {
        guest.sh(&format!("[ -e /run/netns/{container} ] || ip netns add {container}"))?;
        let mut conf = json!({ "cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": vf });
        for (key, value) in asked.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        Ok(Self { guest, container, conf })
    }

    fn call(&self, verb: &str) -> Result<Outcome> {
        let command = self.guest.command(&[PLUGIN]).stdin(self.conf.to_string()).env("CNI_COMMAND", verb);
        let command = command.env("CNI_CONTAINERID", self.container).env("CNI_NETNS", format!("/run/netns/{}", self.container));
        command.env("CNI_IFNAME", "net1").env("CNI_PATH", "/opt/cni/bin").outcome()
    }

    fn add(&self) -> Result<Value> {
        let outcome = self.call("ADD")?;
        ensure!(outcome.success(), "ADD of {}: {outcome}", self.conf);
        Ok(serde_json::from_slice(&outcome.stdout)?)
    }

    fn del(&self) -> Result<()> {
        let outcome = self.call("DEL")?;
        ensure!(outcome.success(), "DEL of {}: {outcome}", self.conf);
        Ok(())
    }

    /// Runs `ip` inside the namespace.
    fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.guest.run(&[&["/usr/sbin/ip", "-n", self.container], arguments].concat())
    }

    /// The interface inside the namespace, with what the kernel tells of it.
    fn inside(&self) -> Result<Value> {
        let links: Vec<Value> = serde_json::from_str(&self.ip(&["-j", "-d", "addr", "show", "dev", "net1"])?)?;
        let mut link = links.into_iter().find(|link| link["ifname"] == "net1").context("net1 is not in the namespace")?;
        // The kernel's own IPv6 address changes by itself while the kernel looks for a duplicate.
        link["addr_info"].as_array_mut().into_iter().for_each(|addresses| addresses.retain(|address| address["family"] == "inet"));
        Ok(link)
    }

    fn end(self) -> Result<()> {
        self.guest.run(&["/usr/sbin/ip", "netns", "del", self.container]).map(drop)
    }
}

/// What must be the same before and after: the netdev with its names and the attributes that the PF holds.
fn snapshot(guest: &Guest, nic: Nic, index: u8) -> Result<Value> {
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let links: Vec<Value> = serde_json::from_str(&guest.run(&["/usr/sbin/ip", "-j", "-d", "link"])?)?;
    let pf = links.iter().find(|link| link["ifname"] == nic.netdev()).context("the PF has gone")?;
    let netdev = links.iter().find(|link| link["parentdev"] == vf(nic, index));
    let netdev = netdev.map(|link| json!([link["ifname"], link["altnames"], link["address"], link["mtu"], link["operstate"], link["promiscuity"]]));
    let driver = guest.sh(&format!("readlink /sys/bus/pci/devices/{}/driver || true", vf(nic, index)))?;
    Ok(json!({ "netdev": netdev, "held": pf["vfinfo_list"][usize::from(index)], "driver": driver.trim() }))
}

fn held(guest: &Guest, nic: Nic, index: u8) -> Result<Value> {
    Ok(snapshot(guest, nic, index)?["held"].clone())
}

fn vfs_are_prepared(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    lab.install(guest, "sriov", PLUGIN)?;
    let daemon = ConfigDaemon::install(lab, guest)?;
    let wishes = [Wish::vfs(nic, 3).group("0-1", "netdevice").group("2-2", "vfio-pci"), Wish::vfs(other, 2).group("0-1", "netdevice")];
    let outcome = daemon.apply(&wishes)?;
    ensure!(outcome.success(), "{outcome}");
    for nic in [nic, other] {
        let carrier = || Ok((guest.read_text(&format!("/sys/class/net/{}/carrier", nic.netdev()))? == "1").then_some(()));
        // The kernel takes no rate for a PF without a link speed.
        guest.poll(Instant::now() + Duration::from_secs(30), "the PF has a carrier", carrier)?;
    }
    Ok(())
}

/// Covers the VF's folder of sysfs with one that has the same files and this RDMA device.
fn cover(guest: &Guest, vf: &str, rdma: &str) -> Result<()> {
    guest
        .sh(&format!(
            "d=$(readlink -f /sys/bus/pci/devices/{vf}); mkdir -p /run/real; mount --bind $d /run/real; mount --make-private /run/real
         mount -t tmpfs none $d
         for e in /run/real/*; do if [ -L $e ]; then t=$(readlink $e); else t=$e; fi; ln -s $t $d/${{e##*/}}; done; mkdir -p $d/infiniband/{rdma}"
        ))
        .map(drop)
}

fn uncover(guest: &Guest, vf: &str) -> Result<()> {
    guest.sh(&format!("umount $(readlink -f /sys/bus/pci/devices/{vf}) /run/real")).map(drop)
}

/// The mode is set while there is no other namespace; one that was deleted ends some time later.
fn set_rdma_mode(guest: &Guest, mode: &str) -> Result<()> {
    let set = || Ok(guest.command(&["rdma", "system", "set", "netns", mode]).outcome()?.success().then_some(()));
    guest.poll(Instant::now() + Duration::from_secs(30), "the RDMA mode is set", set)
}

/// The only RDMA device to be had here is the kernel's software one. It belongs to no VF, so that the VF's folder of sysfs is covered by one that has it too;
/// and its driver can't take it away from programs, so that the kernel refuses to move it. What ADD and CHECK make of that is the product's; a move
/// that succeeds is not to be seen without an adapter whose driver can.
fn an_rdma_device_that_the_kernel_cannot_move_is_told_and_undone_and_check_looks_for_it(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    // The covered folder looks to udev like another device's, so that it makes up another alternative name.
    let look = || {
        let mut found = snapshot(guest, nic, 0)?;
        found["netdev"][1] = Value::Null;
        Ok::<_, anyhow::Error>(found)
    };
    let before = look()?;
    guest.run(&["modprobe", "rdma_rxe"])?;
    set_rdma_mode(guest, "exclusive")?;
    guest.run(&["rdma", "link", "add", "rxe0", "type", "rxe", "netdev", &nic.netdev()])?;
    let devices: Vec<Value> = serde_json::from_str(&guest.run(&["rdma", "-j", "dev", "show"])?)?;
    let index = devices.iter().find(|device| device["ifname"] == "rxe0").context("there is no rxe0")?["ifindex"].clone();
    cover(guest, &vf(nic, 0), "rxe0")?;

    for asked in [json!({ "vlan": 100 }), json!({ "rdmaIsolation": true })] {
        let outcome = Attachment::new(guest, "pod-a", &vf(nic, 0), &asked)?.call("ADD")?;
        let told = outcome.text();
        ensure!(!outcome.success() && told.contains("RDMA device") && told.contains("rxe0") && told.contains("rdmaIsolation false"), "{outcome}");
        assert_eq!(serde_json::from_slice::<Value>(&outcome.stdout)?["code"], 102, "{told}");
        assert_eq!(look()?, before, "ADD was undone");
    }

    // As if the device had gone along.
    let file = format!("{STATE}/v1/{}.json", vf(nic, 0));
    let remember = || {
        let mut journal: Value = serde_json::from_slice(&guest.read(&file)?)?;
        journal["rdma"] = json!([{ "index": index, "name": "rxe0" }]);
        guest.write(&file, journal.to_string().as_bytes(), 0o600)
    };
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "rdmaIsolation": false }))?;
    attachment.add()?;
    let outcome = attachment.call("CHECK")?;
    ensure!(outcome.success(), "{outcome}");
    remember()?;
    let outcome = attachment.call("CHECK")?;
    ensure!(!outcome.success() && outcome.text().contains("RDMA device rxe0"), "it is in the host: {outcome}");
    attachment.del()?;
    attachment.end()?;
    assert_eq!(look()?, before);

    set_rdma_mode(guest, "shared")?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({}))?;
    attachment.add()?;
    remember()?;
    let outcome = attachment.call("CHECK")?;
    ensure!(outcome.success(), "all namespaces see it: {outcome}");
    attachment.del()?;
    attachment.end()?;
    guest.run(&["rdma", "link", "del", "rxe0"])?;
    uncover(guest, &vf(nic, 0))?;
    assert_eq!(look()?, before);
    Ok(())
}

fn address(number: u8) -> Value {
    json!({ "ipam": { "type": "static", "addresses": [{ "address": format!("203.0.113.{number}/24") }] } })
}

fn a_vf_goes_in_named_and_addressed_and_comes_back_as_it_was(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &address(1))?;
    let result = attachment.add()?;
    assert_eq!(result["ips"][0]["address"], "203.0.113.1/24", "{result}");
    assert_eq!(result["interfaces"][0]["name"], "net1", "{result}");
    let inside = attachment.inside()?;
    assert_eq!(inside["address"], result["interfaces"][0]["mac"], "{inside} {result}");
    assert_eq!(inside["addr_info"][0]["local"], "203.0.113.1", "{inside}");
    assert!(inside["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into())), "{inside}");
    assert_eq!(snapshot(guest, nic, 0)?["netdev"], Value::Null);
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

fn what_the_network_asks_is_set_on_the_vf_and_taken_back(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let asked = json!({
        "vlan": 100, "vlanQoS": 3, "mac": "02:00:5e:10:00:01", "mtu": 1400,
        "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "min_tx_rate": 0,
    });
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &asked)?;
    let result = attachment.add()?;
    assert_eq!(result["interfaces"][0]["mac"], "02:00:5e:10:00:01", "{result}");
    let set = held(guest, nic, 0)?;
    assert_eq!((&set["address"], &set["spoofchk"], &set["trust"]), (&"02:00:5e:10:00:01".into(), &false.into(), &true.into()), "{set}");
    assert_eq!((&set["vlan_list"][0]["vlan"], &set["vlan_list"][0]["qos"], &set["rate"]["max_tx"]), (&100.into(), &3.into(), &200.into()), "{set}");
    let inside = attachment.inside()?;
    assert_eq!((&inside["address"], &inside["mtu"]), (&"02:00:5e:10:00:01".into(), &1400.into()), "{inside}");
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

fn a_pf_that_was_renamed_meanwhile_is_found_by_its_address(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "vlan": 100, "mac": "02:00:5e:10:00:01" }))?;
    attachment.add()?;
    let name = nic.netdev();
    guest.run(&["/usr/sbin/ip", "link", "set", "dev", &name, "name", "uplink0"])?;
    let outcome = attachment.call("CHECK")?;
    let deleted = attachment.del();
    // udev keeps the name that it would have given as an alternative one, which is then in the way.
    guest.sh(&format!(
        "udevadm settle --timeout=30; /usr/sbin/ip link property del dev uplink0 altname {name} 2>/dev/null
         /usr/sbin/ip link set dev uplink0 name {name}; udevadm settle --timeout=30"
    ))?;
    ensure!(outcome.success(), "CHECK: {outcome}");
    deleted?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

fn a_vf_for_a_program_that_is_half_reset_is_attached_anew_by_a_repeated_add(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 2)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 2), &json!({ "vlan": 100, "mac": "02:00:5e:10:00:03" }))?;
    attachment.add()?;
    let set = held(guest, nic, 2)?;
    // As a DEL that died has left it: its record is there, one of two settings is gone.
    guest.run(&["/usr/sbin/ip", "link", "set", "dev", &nic.netdev(), "vf", "2", "vlan", "0"])?;
    assert_ne!(held(guest, nic, 2)?, set);
    attachment.add()?;
    assert_eq!(held(guest, nic, 2)?, set);
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 2)?, before);
    attachment.end()
}

fn a_vf_whose_namespace_was_destroyed_comes_back_as_it_was(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let asked = json!({ "vlan": 200, "mac": "02:00:5e:10:00:02", "mtu": 1400 });
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &asked)?;
    attachment.add()?;
    guest.run(&["/usr/sbin/ip", "netns", "del", "pod-a"])?;
    let back = || Ok((snapshot(guest, nic, 0)?["netdev"] != Value::Null).then_some(()));
    // The kernel clears a namespace away some time after its last user has gone.
    guest.poll(Instant::now() + Duration::from_secs(30), "the kernel gives the netdev back", back)?;
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    Ok(())
}

fn a_second_del_changes_nothing(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &address(1))?;
    attachment.add()?;
    attachment.del()?;
    let before = snapshot(guest, nic, 0)?;
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

const STATE: &str = "/var/lib/cni/sriov";

fn a_vf_whose_records_were_lost_goes_back_by_its_address_as_a_fresh_one(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "vlan": 200, "trust": "on", "max_tx_rate": 100 }))?;
    attachment.add()?;
    guest.sh(&format!("rm {STATE}/v1/*.json {STATE}/pod-a-net1 {STATE}/pci/*"))?;
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

/// The record is the one that is written for the Go plugin in the same form; the Go plugin itself is in no registry.
fn a_pod_from_before_an_upgrade_is_detached_by_the_go_plugins_record(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    let asked = json!({ "vlan": 200, "vlanQoS": 2, "mac": "02:00:5e:10:00:06", "spoofchk": "off", "trust": "on", "mtu": 1400, "max_tx_rate": 100 });
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &asked)?;
    attachment.add()?;
    guest.sh(&format!("rm {STATE}/v1/*.json"))?;
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    assert_eq!(guest.sh(&format!("ls {STATE}/pci"))?.trim(), "");
    attachment.end()
}

fn a_vf_left_by_a_dead_container_is_restored_before_the_next_gets_it(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "vlan": 200, "trust": "on", "mac": "02:00:5e:10:00:03" }))?.add()?;
    guest.run(&["/usr/sbin/ip", "netns", "del", "pod-a"])?;
    let back = || Ok((snapshot(guest, nic, 0)?["netdev"] != Value::Null).then_some(()));
    guest.poll(Instant::now() + Duration::from_secs(30), "the kernel gives the netdev back", back)?;
    let next = Attachment::new(guest, "pod-b", &vf(nic, 0), &address(2))?;
    next.add()?;
    let set = held(guest, nic, 0)?;
    assert_eq!(
        (set["vlan_list"][0]["vlan"].as_u64().unwrap_or(0), &set["trust"]),
        (0, &false.into()),
        "the first pod's settings are still there: {set}"
    );
    next.del()?;
    assert_eq!(snapshot(guest, nic, 0)?, before);
    next.end()
}

fn a_vf_of_a_living_container_is_not_given_to_another(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let owner = Attachment::new(guest, "pod-a", &vf(nic, 0), &address(1))?;
    owner.add()?;
    let before = owner.inside()?;
    let thief = Attachment::new(guest, "pod-b", &vf(nic, 0), &address(2))?;
    let outcome = thief.call("ADD")?;
    ensure!(!outcome.success() && outcome.text().contains("pod-a"), "{outcome}");
    assert_eq!(owner.inside()?, before);
    owner.del()?;
    owner.end()?;
    thief.end()
}

fn a_failed_add_leaves_the_vf_as_it_was(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 0)?;
    // The PF of an igb cannot guarantee a rate, which the kernel says only after other attributes were set.
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "vlan": 100, "min_tx_rate": 50, "mac": "02:00:5e:10:00:04" }))?;
    let outcome = attachment.call("ADD")?;
    ensure!(!outcome.success() && outcome.text().contains("rate"), "{outcome}");
    assert_eq!(snapshot(guest, nic, 0)?, before);
    // And so it is when addresses cannot be had, which comes last.
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &json!({ "vlan": 100, "ipam": { "type": "no-such-plugin" } }))?;
    let outcome = attachment.call("ADD")?;
    ensure!(!outcome.success() && outcome.text().contains("no-such-plugin"), "{outcome}");
    assert_eq!(snapshot(guest, nic, 0)?, before);
    attachment.end()
}

fn a_vf_for_a_userspace_driver_keeps_its_driver_and_no_netdev_moves(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let before = snapshot(guest, nic, 2)?;
    ensure!(before["driver"].as_str().is_some_and(|driver| driver.ends_with("/vfio-pci")), "{before}");
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 2), &json!({ "vlan": 300, "mac": "02:00:5e:10:00:05" }))?;
    attachment.add()?;
    let during = snapshot(guest, nic, 2)?;
    assert_eq!(during["driver"], before["driver"]);
    assert_eq!((&during["held"]["vlan_list"][0]["vlan"], &during["held"]["address"]), (&300.into(), &"02:00:5e:10:00:05".into()), "{during}");
    let links: Vec<Value> = serde_json::from_str(&attachment.ip(&["-j", "link"])?)?;
    ensure!(links.iter().all(|link| link["link_type"] != "ether"), "{links:?}");
    attachment.del()?;
    assert_eq!(snapshot(guest, nic, 2)?, before);
    attachment.end()
}

/// A network on a VLAN with an address.
fn on_vlan(number: u8, vlan: u16) -> Value {
    let mut asked = address(number);
    asked["vlan"] = json!(vlan);
    asked["vlanQoS"] = json!(5);
    asked
}

fn ping(from: &Attachment<'_>, to: &str) -> Result<Outcome> {
    from.guest.command(&["/usr/sbin/ip", "netns", "exec", from.container, "/bin/busybox", "ping", "-c", "3", "-W", "2", to]).outcome()
}

fn two_namespaces_meet_on_one_vlan_with_its_tag_and_not_on_two(lab: &mut Lab) -> Result<()> {
    let (guest, nic, other) = first(lab)?;
    let mut capture = lab.capture("")?;
    let near = Attachment::new(guest, "pod-a", &vf(nic, 0), &on_vlan(1, 100))?;
    let far = Attachment::new(guest, "pod-b", &vf(other, 0), &on_vlan(2, 100))?;
    let mac = near.add()?["interfaces"][0]["mac"].as_str().unwrap_or_default().to_owned();
    far.add()?;
    let answered = || Ok(ping(&near, "203.0.113.2")?.success().then_some(()));
    guest.poll(Instant::now() + Duration::from_mins(1), "the other namespace answers", answered)?;
    let tagged = |frame: &sriov_tests::lab::wire::EthernetFrame| frame.source.to_string() == mac && frame.ethertype == 0x0800;
    let frame = capture.wait_for("an IPv4 frame of the first namespace", tagged, Duration::from_secs(20))?;
    assert_eq!(frame.tags, [Tag { protocol: 0x8100, vlan: 100, priority: 5 }], "{frame:?}");
    far.del()?;
    let elsewhere = Attachment::new(guest, "pod-b", &vf(other, 0), &on_vlan(2, 200))?;
    elsewhere.add()?;
    let outcome = ping(&near, "203.0.113.2")?;
    ensure!(!outcome.success() && outcome.text().contains("100% packet loss"), "{outcome}");
    for attachment in [near, elsewhere] {
        attachment.del()?;
        attachment.end()?;
    }
    Ok(())
}

fn the_config_daemon_leaves_vfs_in_use_alone(lab: &mut Lab) -> Result<()> {
    let (guest, nic, _) = first(lab)?;
    let daemon = ConfigDaemon::installed(guest)?;
    let attachment = Attachment::new(guest, "pod-a", &vf(nic, 0), &address(1))?;
    attachment.add()?;
    let before = attachment.inside()?;
    let wish = [Wish::vfs(nic, 4).group("0-3", "netdevice")];
    let outcome = daemon.apply(&wish)?;
    ensure!(!outcome.success() && outcome.text().contains("refused (WaitingForVfsInUse)"), "{outcome}");
    ensure!(outcome.text().contains("pod-a"), "the refusal does not say who has the VF: {outcome}");
    assert_eq!((attachment.inside()?, daemon.pf(nic)?.numvfs), (before, 3));
    attachment.del()?;
    attachment.end()?;
    let outcome = daemon.apply(&wish)?;
    ensure!(outcome.success(), "{outcome}");
    assert_eq!(daemon.pf(nic)?.numvfs, 4);
    Ok(())
}
