//! I/O: what a network can ask of a VF's netdev beyond addresses, what stands in the way of moving it, and what the CNI tells people; on a real
//! kernel without a VF, as `netns_cni`. Needs root.
//!
//! What does not live here: attributes that a PF holds (emulated hardware).

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use serde_json::{Value, json};
use sriov_cni::explain::explain;
use sriov_cni::request::Command::{Add, Del};
use sriov_cni::{Error, doctor};
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_tests::cni::{Machine, NETDEV, Pod, USERSPACE_VF, VF, WIRE, as_host, host_link};

fn assert_untouched(machine: &Machine, before: &Link) -> Result<()> {
    let mut link = host_link(NETDEV)?;
    link.netdev.ifindex = before.netdev.ifindex;
    link.netdev.carrier = before.netdev.carrier;
    assert_eq!(link, *before);
    assert!(machine.journals().is_empty());
    Ok(())
}

fn refusal(result: Result<Option<Value>, Error>) -> (u64, String) {
    let error = result.expect_err("the call must fail");
    (error.code(), error.to_string())
}

#[test]
fn flags_are_set_and_taken_back_with_all_that_the_container_changed() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"allmulti": "on", "promisc": "on", "mtu": 1400}));
        machine.call(Add, &pod, &conf)?;
        let link = pod.link("net1")?;
        assert!(link.allmulti && link.promisc && link.netdev.mtu == 1400, "{link:?}");
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)?;

        let conf = machine.conf(&json!({}));
        machine.call(Add, &pod, &conf)?;
        assert!(!pod.link("net1")?.promisc, "what is not asked for is left alone");
        let change = LinkChange { promisc: Some(true), allmulti: Some(true), mtu: Some(1280), ..LinkChange::default() };
        pod.route()?.change_link(pod.link("net1")?.netdev.ifindex, &change)?;
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)?;
        let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({"deviceID": USERSPACE_VF, "promisc": "on"}))));
        assert!(code == 7 && text.starts_with("promisc is on: VF 0000:01:10.2 is held by vfio-pci"), "{text}");
        Ok(())
    })
}

#[test]
fn an_mtu_up_to_the_netdevs_limit_is_set_and_taken_back() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let max = before.netdev.max_mtu.context("a veth has a limit")?;
        // A greater one is refused by the configuration's own limit; drivers with less are in guests (`vm_cni_undo`).
        ensure!(max == 65535, "a veth takes {max} bytes");
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &machine.conf(&json!({"mtu": max})))?;
        assert_eq!(pod.link("net1")?.netdev.mtu, max);
        machine.call(Del, &pod, &machine.conf(&json!({"mtu": max})))?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn neighbours_hear_of_an_ipv6_address() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let protocol = Protocol::from_raw(NonZero::new(u32::from(0x86dd_u16.to_be())).context("IPv6")?);
        let frames = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        ensure!(host_link(WIRE)?.netdev.admin_up, "the wire is up");
        let pod = Pod::new("a")?;
        let ipam = json!({"type": "static", "addresses": [{"address": "2001:db8::5/64"}]});
        machine.call(Add, &pod, &machine.conf(&json!({"ipam": ipam})))?;
        let address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

        let deadline = Instant::now() + Duration::from_secs(15);
        let mut frame = [0; 128];
        loop {
            let left = deadline.checked_duration_since(Instant::now()).context("no neighbour advertisement before the deadline")?;
            poll(&mut [PollFd::new(&frames, PollFlags::IN)], Some(&left.try_into()?))?;
            let (length, _) = rustix::net::recv(&frames, &mut frame, RecvFlags::DONTWAIT).unwrap_or((0, 0));
            // Ethernet (14), IPv6 (40): next header ICMPv6, hop limit 255, to all nodes; type 136 with the override flag, about our address.
            if length >= 78
                && (frame[20], frame[21]) == (58, 255)
                && frame[38..54] == all_nodes
                && frame[54] == 136
                && frame[58] & 0x20 != 0
                && frame[62..78] == address
            {
                return Ok(());
            }
        }
    })
}

#[test]
fn alternative_names_that_the_other_side_uses_stop_no_move_in_either_direction() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        Route::open()?.add_alt_name(host_link(NETDEV)?.netdev.ifindex, "storage0")?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        pod.route()?.add_link_veth("storage0", "peer")?;
        let conf = machine.conf(&json!({}));
        machine.call(Add, &pod, &conf)?;
        pod.route()?.add_alt_name(pod.link("net1")?.netdev.ifindex, WIRE)?;
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_name_that_somebody_took_meanwhile_keeps_no_pod_from_ending() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({}));
        let mac = host_link(NETDEV)?.netdev.mac;
        machine.call(Add, &pod, &conf)?;
        // sysfs of a real machine shows no netdev of the VF now.
        fs::remove_dir(machine.host().root().join(format!("sys/bus/pci/devices/{VF}/net/{NETDEV}")))?;
        Route::open()?.add_link_veth(NETDEV, "peer")?;
        let foreign = host_link(NETDEV)?;
        machine.call(Del, &pod, &conf)?;
        assert_eq!(pod.links()?, ["lo".to_owned()].into());
        assert!(machine.journals().is_empty());
        assert_eq!(host_link(NETDEV)?, foreign, "the link of that name is not ours to change");
        assert_eq!(host_link("dev0")?.netdev.mac, mac);
        Ok(())
    })
}

#[test]
fn the_device_info_file_is_written_where_the_device_plugin_did_not() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let path = "/var/run/k8s.cni.cncf.io/devinfo/cni/default-blue-a_net1";
        let file = machine.host().root().join(path.trim_start_matches('/'));
        let conf = machine.conf(&json!({"runtimeConfig": {"CNIDeviceInfoFile": path}}));
        machine.call(Add, &pod, &conf)?;
        let expected = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": VF, "pf-pci-address": "0000:01:00.0"}});
        assert_eq!(serde_json::from_slice::<Value>(&fs::read(&file)?)?, expected);
        machine.call(Del, &pod, &conf)?;
        assert!(!file.exists());
        // The device plugin's own.
        fs::write(&file, "{}")?;
        machine.call(Add, &pod, &conf)?;
        machine.call(Del, &pod, &conf)?;
        assert_eq!(fs::read_to_string(&file)?, "{}");
        Ok(())
    })
}

#[test]
fn without_a_pf_the_netdev_is_attached_and_what_only_a_pf_can_set_is_refused() -> Result<()> {
    as_host(|| {
        let machine = Machine::without_pf()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        for (key, value) in [("vlan", json!(5)), ("trust", json!("on")), ("max_tx_rate", json!(100))] {
            let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({key: value}))));
            assert!(code == 100 && text.contains("has no PF on this machine"), "{key}: {text}");
            assert_untouched(&machine, &before)?;
        }
        let conf = machine.conf(&json!({"mac": "02:00:5e:10:00:07", "mtu": 1400, "ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        assert_eq!((&result["interfaces"][0]["mac"], &result["interfaces"][0]["mtu"]), (&"02:00:5e:10:00:07".into(), &1400.into()));
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)?;
        // The interface that the node itself lives on is not for pods.
        let route = Route::open()?;
        route.change_link(before.netdev.ifindex, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        let ifindex = host_link(NETDEV)?.netdev.ifindex;
        route.add_address(ifindex, "203.0.113.2".parse()?, 24)?;
        route.add_route(&sriov_host::netlink::RouteSpec {
            gateway: Some("203.0.113.1".parse()?),
            ..sriov_host::netlink::RouteSpec::new("0.0.0.0".parse()?, 0, ifindex)
        })?;
        let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({}))));
        assert!(code == 100 && text.contains("default route"), "{text}");
        Ok(())
    })
}

#[test]
fn a_locked_vf_is_waited_for_until_the_deadline_that_the_network_sets() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let locks = machine.state().join("lock");
        fs::create_dir_all(&locks)?;
        let lock = fs::File::create(locks.join(format!("{VF}.lock")))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let started = Instant::now();
        let (code, text) = refusal(machine.call(Add, &pod, &machine.conf(&json!({"deadlineSeconds": 1}))));
        assert!(code == 11 && text.contains("locked by another call"), "{text}");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(8), "{waited:?}");
        Ok(())
    })
}

#[test]
fn explain_tells_what_add_would_do_and_does_nothing() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let asked = json!({"mtu": 1400, "promisc": "on", "ipam": machine.host_local()});
        let told = explain(machine.conf(&asked).to_string().as_bytes(), None, &machine.host());
        let expected = [
            "use 0000:01:10.0, VF 0 of PF 0000:01:00.0, with driver igbvf",
            "move enp1s0v0 into the container under the name CNI_IFNAME",
            "set mtu of the netdev to 1400",
            "set promisc of the netdev to on",
            "set the netdev up",
            "ask the IPAM plugin host-local for addresses and set them",
        ];
        assert_eq!((told.steps.as_slice(), told.refusal.is_none()), (expected.map(str::to_owned).as_slice(), true));
        assert!(!machine.state().exists());
        assert_untouched(&machine, &before)?;
        for (extra, code) in [(json!({"vlan": 5}), 100), (json!({"vlan": 4095}), 7), (json!({"colour": 1}), 2), (json!({"deviceID": null}), 7)] {
            let told = explain(machine.conf(&extra).to_string().as_bytes(), None, &machine.host());
            assert_eq!(told.to_json()["refusal"]["code"], code, "{told}");
        }
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &machine.conf(&json!({})))?;
        let told = explain(machine.conf(&asked).to_string().as_bytes(), None, &machine.host());
        assert!(told.to_string().contains("ADD would be refused (code 11)"), "{told}");
        Ok(())
    })
}

#[test]
fn doctor_tells_whole_attachments_from_those_that_need_repair() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let states = || -> Result<Vec<(String, &'static str, bool)>> {
            let findings = doctor::examine(&machine.state(), &machine.host(), Path::new("/opt/cni/bin/sriov"))?;
            Ok(findings.into_iter().map(|f| (f.vf.clone(), f.state, f.repair.is_some())).collect())
        };
        assert_eq!(states()?, []);
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &machine.conf(&json!({})))?;
        assert_eq!(states()?, [(VF.to_owned(), "attached", false)]);
        let route = pod.route()?;
        let ifindex = pod.link("net1")?.netdev.ifindex;
        route.change_link(ifindex, &LinkChange { up: Some(false), ..LinkChange::default() })?;
        route.change_link(ifindex, &LinkChange { name: Some("other"), ..LinkChange::default() })?;
        assert_eq!(states()?, [(VF.to_owned(), "lost-netdev", true)]);
        pod.end(&machine, "other", "dev7")?;
        assert_eq!(states()?, [(VF.to_owned(), "leaked", true)]);
        fs::remove_file(machine.state().join("pci").join(VF))?;
        assert_eq!(states()?, [(VF.to_owned(), "ended-by-go", true)]);
        machine.reboot()?;
        assert_eq!(states()?, [(VF.to_owned(), "before-reboot", true)]);
        let repair = &doctor::examine(&machine.state(), &machine.host(), Path::new("/opt/cni/bin/sriov"))?[0].repair;
        let repair = repair.as_deref().context("a command")?;
        assert!(repair.starts_with("echo '{") && repair.contains("CNI_COMMAND=DEL CNI_CONTAINERID='a' CNI_IFNAME='net1'"), "{repair}");
        fs::write(machine.state().join("v1").join(format!("{VF}.json")), "{")?;
        assert_eq!(states()?[0].1, "unreadable");
        Ok(())
    })
}

#[test]
fn a_del_that_fails_keeps_what_the_next_one_needs() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"mtu": 1300, "ipam": machine.host_local()}));
        machine.call(Add, &pod, &conf)?;
        // The PF does not list its VF for a while, as while its driver is reloaded.
        let link = machine.host().root().join("sys/bus/pci/devices/0000:01:00.0/virtfn0");
        let target = fs::read_link(&link)?;
        fs::remove_file(&link)?;
        let (code, text) = refusal(machine.call(Del, &pod, &conf));
        assert!(code == 105 && text.contains("does not list its VF"), "{code} {text}");
        assert!(machine.journals().len() == 1 && pod.links()?.contains("net1"));
        std::os::unix::fs::symlink(target, &link)?;
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_vf_that_was_removed_meanwhile_is_nothing_to_restore() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        machine.call(Add, &pod, &conf)?;
        fs::remove_dir_all(machine.host().root().join(format!("sys/bus/pci/devices/{VF}")))?;
        machine.call(Del, &pod, &conf)?;
        assert!(machine.journals().is_empty() && machine.leases().is_empty());
        Ok(())
    })
}
