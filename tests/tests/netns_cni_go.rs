//! I/O: pods that outlive a change between the Go plugin and this one, in both directions: its records are read, and written for it. On a real
//! kernel without a VF, as `netns_cni`. Needs root.
//!
//! What does not live here: the Go plugin itself, which is in no registry; its files are written as its source writes them.

use std::fs;
use std::os::fd::AsFd as _;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sriov_cni::Error;
use sriov_cni::request::Command::{Add, Check, Del, Gc};
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_host::netns::NetNs;
use sriov_tests::cni::{Machine, NETDEV, Pod, VF, as_host, host_link};

/// Attaches the VF as the Go plugin leaves it: the netdev in the pod with another MTU, both records on disk.
fn add_by_go(machine: &Machine, pod: &Pod, before: &Link) -> Result<()> {
    let into = LinkChange { netns: Some(pod.netns().as_fd()), name: Some("net1"), ..LinkChange::default() };
    Route::open()?.change_link(before.netdev.ifindex, &into)?;
    let route = pod.route()?;
    route.change_link(pod.link("net1")?.netdev.ifindex, &LinkChange { mtu: Some(1300), up: Some(true), ..LinkChange::default() })?;
    let mac = before.netdev.mac.context("a MAC")?;
    let cached = json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "sriov", "ipam": {"type": "host-local"}, "dns": {},
        "OrigVfState": {
            "HostIFName": NETDEV, "SpoofChk": true, "Trust": false, "AdminMAC": "", "EffectiveMAC": mac, "Vlan": 0, "VlanQoS": 0,
            "VlanProto": 33024, "MinTxRate": 0, "MaxTxRate": 0, "LinkState": 0, "MTU": before.netdev.mtu
        },
        "Master": "enp1s0", "MAC": "", "MTU": 1300, "vlan": null, "vlanQoS": null, "vlanProto": null, "deviceID": VF, "VFID": 0,
        "min_tx_rate": null, "max_tx_rate": null, "runtimeConfig": {}
    });
    fs::create_dir_all(machine.state().join("pci"))?;
    fs::write(record(machine, pod), cached.to_string())?;
    fs::write(allocation(machine), pod.path().to_str().context("UTF-8")?)?;
    Ok(())
}

fn record(machine: &Machine, pod: &Pod) -> std::path::PathBuf {
    machine.state().join(format!("{}-net1", pod.container_id()))
}

fn allocation(machine: &Machine) -> std::path::PathBuf {
    machine.state().join("pci").join(VF)
}

fn assert_nothing_left(machine: &Machine, pod: &Pod, before: &Link) -> Result<()> {
    let mut link = host_link(NETDEV)?;
    link.netdev.ifindex = before.netdev.ifindex;
    link.netdev.carrier = before.netdev.carrier;
    assert_eq!(link, *before);
    assert!(!record(machine, pod).exists() && !allocation(machine).exists() && machine.journals().is_empty());
    Ok(())
}

#[test]
fn a_pod_of_the_go_plugin_is_checked_and_detached_cleanly() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        add_by_go(&machine, &pod, &before)?;
        machine.call(Check, &pod, &machine.conf(&json!({})))?;
        machine.call(Del, &pod, &machine.conf(&json!({})))?;
        assert_nothing_left(&machine, &pod, &before)?;
        // And where the runtime lost the device's address.
        let pod = Pod::new("b")?;
        add_by_go(&machine, &pod, &host_link(NETDEV)?)?;
        machine.call(Del, &pod, &machine.conf(&json!({"deviceID": null})))?;
        assert_nothing_left(&machine, &pod, &before)
    })
}

#[test]
fn a_vf_of_a_living_pod_of_the_go_plugin_is_refused_to_another() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        add_by_go(&machine, &first, &before)?;
        let conf = machine.conf(&json!({}));
        let error = machine.call(Add, &second, &conf).unwrap_err();
        assert!(error.code() == 11 && error.to_string().contains("by the Go plugin"), "{error}");
        machine.call(Del, &second, &conf)?;
        assert!(first.links()?.contains("net1") && record(&machine, &first).exists());
        // The runtime ends the first without DEL.
        let former = record(&machine, &first);
        first.end(&machine, "net1", "dev7")?;
        let result = machine.call(Add, &second, &conf);
        assert!(matches!(result, Err(Error::Device(_))), "sysfs of the test still shows dev7: {result:?}");
        machine.netdev_is_now(NETDEV)?;
        assert!(!former.exists());
        let result = machine.call(Add, &second, &conf)?.context("a result")?;
        assert_eq!(result["interfaces"][0]["mtu"], before.netdev.mtu, "restored before it was given away");
        Ok(())
    })
}

#[test]
fn an_add_that_the_go_plugin_did_is_done_again_by_a_repeated_add() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        add_by_go(&machine, &pod, &before)?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        assert_eq!(result["interfaces"][0]["mtu"], before.netdev.mtu);
        machine.call(Del, &pod, &conf)?;
        assert_nothing_left(&machine, &pod, &before)
    })
}

#[test]
fn gc_collects_a_pod_of_the_go_plugin_unless_it_is_valid() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        add_by_go(&machine, &pod, &before)?;
        let gc = |valid: Value| {
            let mut conf = machine.conf(&json!({"ipam": machine.host_local()}));
            conf["cni.dev/valid-attachments"] = valid;
            machine.call(Gc, &pod, &conf)
        };
        gc(json!([{"containerID": "a", "ifname": "net1"}]))?;
        assert!(pod.links()?.contains("net1"));
        gc(json!([{"containerID": "b", "ifname": "net1"}]))?;
        assert_nothing_left(&machine, &pod, &before)
    })
}

#[test]
fn a_record_from_before_a_reboot_restores_nothing() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let before = host_link(NETDEV)?;
        add_by_go(&machine, &pod, &before)?;
        let host = NetNs::current()?;
        let back = LinkChange { netns: Some(host.as_fd()), name: Some(NETDEV), ..LinkChange::default() };
        pod.route()?.change_link(pod.link("net1")?.netdev.ifindex, &back)?;
        fs::write(machine.host().root().join("proc/uptime"), "5.00 5.00\n")?;
        fs::File::open(record(&machine, &pod))?.set_modified(SystemTime::now() - Duration::from_mins(1))?;
        machine.call(Del, &pod, &machine.conf(&json!({})))?;
        assert_eq!(host_link(NETDEV)?.netdev.mtu, 1300, "a VF after a boot is as its driver makes it");
        assert!(!record(&machine, &pod).exists() && !allocation(&machine).exists());
        Ok(())
    })
}

#[test]
fn the_go_plugin_finds_what_it_needs_to_detach_our_pods() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"mtu": 1400, "logLevel": "error"}));
        machine.call(Add, &pod, &conf)?;
        let written: Value = serde_json::from_slice(&fs::read(record(&machine, &pod))?)?;
        let expected = json!({
            "HostIFName": NETDEV, "SpoofChk": false, "Trust": false, "AdminMAC": "", "EffectiveMAC": before.netdev.mac, "Vlan": 0,
            "VlanQoS": 0, "VlanProto": 0, "MinTxRate": 0, "MaxTxRate": 0, "LinkState": 0, "MTU": before.netdev.mtu
        });
        assert_eq!(written["OrigVfState"], expected);
        assert_eq!((&written["deviceID"], &written["VFID"], &written["MAC"]), (&VF.into(), &0.into(), &"".into()));
        assert_eq!((written.get("mtu"), written.get("mac")), (None, None), "Go would take them for its own");
        assert_eq!(fs::read_to_string(allocation(&machine))?, pod.path().to_str().context("UTF-8")?);
        machine.call(Del, &pod, &conf)?;
        assert_nothing_left(&machine, &pod, &before)
    })
}

#[test]
fn what_the_go_plugin_detached_after_a_downgrade_is_not_restored_again() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        for takes_over in ["ADD", "DEL"] {
            let pod = Pod::new("a")?;
            let conf = machine.conf(&json!({}));
            machine.call(Add, &pod, &conf)?;
            // As the Go plugin's DEL does it; afterwards somebody gives the VF another MTU.
            let mut back = LinkChange { up: Some(false), ..LinkChange::default() };
            pod.route()?.change_link(pod.link("net1")?.netdev.ifindex, &back)?;
            let host = NetNs::current()?;
            back = LinkChange { netns: Some(host.as_fd()), name: Some(NETDEV), ..LinkChange::default() };
            pod.route()?.change_link(pod.link("net1")?.netdev.ifindex, &back)?;
            fs::remove_file(record(&machine, &pod))?;
            fs::remove_file(allocation(&machine))?;
            Route::open()?.change_link(host_link(NETDEV)?.netdev.ifindex, &LinkChange { mtu: Some(1450), ..LinkChange::default() })?;
            if takes_over == "ADD" {
                let next = Pod::new("b")?;
                let result = machine.call(Add, &next, &conf)?.context("a result")?;
                assert_eq!(result["interfaces"][0]["mtu"], 1450);
                machine.call(Del, &next, &conf)?;
            } else {
                machine.call(Del, &pod, &conf)?;
            }
            assert_eq!(host_link(NETDEV)?.netdev.mtu, 1450, "{takes_over}");
            assert!(machine.journals().is_empty(), "{takes_over}");
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_the_go_plugin_attached_after_a_downgrade_is_detached_cleanly() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        let conf = machine.conf(&json!({}));
        machine.call(Add, &first, &conf)?;
        // The Go plugin's DEL of the first and ADD of the second; the journal of the first is still there.
        let host = NetNs::current()?;
        let back = LinkChange { netns: Some(host.as_fd()), name: Some(NETDEV), ..LinkChange::default() };
        first.route()?.change_link(first.link("net1")?.netdev.ifindex, &back)?;
        fs::remove_file(record(&machine, &first))?;
        add_by_go(&machine, &second, &host_link(NETDEV)?)?;
        machine.call(Check, &second, &conf)?;
        machine.call(Del, &second, &conf)?;
        assert_nothing_left(&machine, &second, &before)
    })
}
