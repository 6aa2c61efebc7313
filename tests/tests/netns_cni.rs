//! I/O: the CNI's verbs on a real kernel without a VF: a veth stands for the VF's netdev, in namespaces of each test's own. Needs root.
//!
//! What does not live here: a process that dies, two that race (`netns_cni_races`); attributes that a PF holds (emulated hardware).

use std::num::NonZero;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use serde_json::{Value, json};
use sriov_cni::Error;
use sriov_cni::io::SystemIo;
use sriov_cni::request::Command::{Add, Check, Del, Gc, Status};
use sriov_host::netlink::{LinkChange, Route};
use sriov_tests::cni::{Machine, NETDEV, Pod, USERSPACE_VF, VF, WIRE, as_host, host_link};

/// The VF's netdev is in the host exactly as before, and nobody remembers an attachment.
fn assert_untouched(machine: &Machine, before: &sriov_host::netlink::Link) -> Result<()> {
    let mut link = host_link(NETDEV)?;
    // A move may give a new index, and carrier follows the state of both ends.
    link.netdev.ifindex = before.netdev.ifindex;
    link.netdev.carrier = before.netdev.carrier;
    assert_eq!(link, *before);
    assert_eq!(machine.journals(), [""; 0]);
    assert_eq!(machine.leases(), [""; 0]);
    Ok(())
}

fn code(result: Result<Option<Value>, Error>) -> u64 {
    result.expect_err("the call must fail").code()
}

#[test]
fn an_attached_vf_is_as_asked_and_comes_back_as_it_was() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let route = Route::open()?;
        let ifindex = host_link(NETDEV)?.netdev.ifindex;
        route.change_link(ifindex, &LinkChange { up: Some(true), mtu: Some(1600), ..LinkChange::default() })?;
        route.add_alt_name(ifindex, "enx020000000001")?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"mtu": 1400, "ipam": machine.host_local()}));

        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        let mac = before.netdev.mac.context("a MAC")?;
        let interface = json!({"name": "net1", "mac": mac, "mtu": 1400, "sandbox": pod.path(), "pciID": VF});
        let expected = json!({
            "cniVersion": "1.1.0", "interfaces": [interface],
            "ips": [{"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0}], "routes": [{"dst": "198.51.100.0/24"}]
        });
        assert_eq!(result, expected);
        let link = pod.link("net1")?;
        assert!(link.netdev.admin_up && link.netdev.mtu == 1400 && link.netdev.mac == Some(mac), "{link:?}");
        let addresses = pod.route()?.addresses(link.netdev.ifindex)?;
        assert!(addresses.iter().any(|a| a.address.to_string() == "192.0.2.2" && a.prefix == 24), "{addresses:?}");
        let routes = pod.route()?.routes(link.netdev.ifindex)?;
        let via = |r: &sriov_host::netlink::RouteEntry| (r.dst.to_string(), r.gateway.map(|g| g.to_string()));
        assert!(routes.iter().any(|r| via(r) == ("198.51.100.0".to_owned(), Some("192.0.2.1".to_owned()))), "{routes:?}");
        let notify = pod.netns().run_in(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/net1/arp_notify"))??;
        assert_eq!(notify.trim(), "1");
        assert_eq!(machine.journals(), [format!("{VF}.json")]);
        machine.call(Check, &pod, &conf)?;

        assert_eq!(machine.call(Del, &pod, &conf)?, None);
        assert_eq!(pod.links()?, ["lo".to_owned()].into());
        assert_untouched(&machine, &before)?;
        assert_eq!(machine.call(Del, &pod, &conf)?, None, "DEL again");
        Ok(())
    })
}

#[test]
fn neighbours_hear_of_the_address() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let protocol = Protocol::from_raw(NonZero::new(u32::from(0x0806_u16.to_be())).context("ARP")?);
        let frames = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        ensure!(host_link(WIRE)?.netdev.admin_up, "the wire is up");
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &machine.conf(&json!({"ipam": machine.host_local()})))?;

        let deadline = Instant::now() + Duration::from_secs(10);
        let mut frame = [0; 64];
        loop {
            let left = deadline.checked_duration_since(Instant::now()).context("no gratuitous ARP before the deadline")?;
            poll(&mut [PollFd::new(&frames, PollFlags::IN)], Some(&left.try_into()?))?;
            let (length, _) = rustix::net::recv(&frames, &mut frame, RecvFlags::DONTWAIT).unwrap_or((0, 0));
            // A request (operation 1) whose sender and target both have our address.
            if length >= 42
                && frame[..6] == [0xff; 6]
                && frame[20..22] == [0, 1]
                && frame[28..32] == [192, 0, 2, 2]
                && frame[38..42] == [192, 0, 2, 2]
            {
                return Ok(());
            }
        }
    })
}

#[test]
fn a_second_address_family_works_too() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let ipam = json!({"type": "static", "addresses": [{"address": "2001:db8::5/64", "gateway": "2001:db8::1"}], "routes": [{"dst": "::/0"}]});
        let conf = machine.conf(&json!({"ipam": ipam}));
        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        assert_eq!(result["ips"], json!([{"address": "2001:db8::5/64", "gateway": "2001:db8::1", "interface": 0}]));
        let ifindex = pod.link("net1")?.netdev.ifindex;
        assert!(pod.route()?.addresses(ifindex)?.iter().any(|a| a.address.to_string() == "2001:db8::5"));
        assert!(pod.route()?.routes(ifindex)?.iter().any(|r| r.gateway.is_some_and(|g| g.to_string() == "2001:db8::1")));
        machine.call(Del, &pod, &conf)?;
        Ok(())
    })
}

#[test]
fn a_repeated_add_gives_the_same_result_and_changes_nothing() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        let first = machine.call(Add, &pod, &conf)?;
        let link = pod.link("net1")?;
        assert_eq!(machine.call(Add, &pod, &conf)?, first);
        assert_eq!(pod.link("net1")?, link);
        assert_eq!(machine.leases().len(), 1);
        Ok(())
    })
}

#[test]
fn a_vf_of_a_living_container_is_refused_to_another() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        machine.call(Add, &first, &conf)?;
        let error = machine.call(Add, &second, &conf).unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("container a as net1")), (11, true), "{error}");
        // The refused one's DEL must not take the VF away from the first.
        machine.call(Del, &second, &conf)?;
        assert!(pod_has_net1(&first)?);
        assert_eq!(machine.leases().len(), 1);
        Ok(())
    })
}

fn pod_has_net1(pod: &Pod) -> Result<bool> {
    Ok(pod.links()?.contains("net1"))
}

#[test]
fn after_its_namespace_died_the_vf_is_restored_under_whatever_name_it_came_back() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        for name in ["net1", "dev7"] {
            let pod = Pod::new("a")?;
            let conf = machine.conf(&json!({"mtu": 1300, "ipam": machine.host_local()}));
            machine.call(Add, &pod, &conf)?;
            let gone = machine.request(Del, &pod, &conf);
            pod.end(&machine, "net1", name)?;
            // udev gives a netdev that arrives under a foreign name its usual one as an alternative.
            Route::open()?.add_alt_name(host_link(name)?.netdev.ifindex, NETDEV)?;
            sriov_cni::run(&gone, &machine.host(), &SystemIo)?;
            assert_untouched(&machine, &before)?;
            machine.netdev_is_now(NETDEV)?;
        }
        Ok(())
    })
}

#[test]
fn a_vf_of_a_dead_container_is_restored_before_it_is_given_to_another() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        machine.call(Add, &first, &machine.conf(&json!({"mtu": 1300})))?;
        first.end(&machine, "net1", "dev7")?;
        let conf = machine.conf(&json!({}));
        let result = machine.call(Add, &second, &conf);
        // The folder is no kernel: it still shows dev7 where sysfs would show the name that was just given back.
        ensure!(matches!(result, Err(Error::Device(_))), "{result:?}");
        machine.netdev_is_now(NETDEV)?;
        assert_untouched(&machine, &before)?;
        let result = machine.call(Add, &second, &conf)?.context("a result")?;
        assert_eq!(result["interfaces"][0]["mtu"], before.netdev.mtu);
        Ok(())
    })
}

#[test]
fn what_ipam_refuses_is_undone() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let full = json!({"type": "host-local", "dataDir": machine.state(), "ranges": [[{"subnet": "192.0.2.0/30", "rangeStart": "192.0.2.9"}]]});
        let absent = json!({"type": "no-such-ipam"});
        let no_address = json!({"type": "static"});
        for ipam in [full, absent, no_address] {
            let result = machine.call(Add, &pod, &machine.conf(&json!({"mtu": 1300, "ipam": ipam})));
            assert!(result.is_err(), "{ipam}");
            assert_eq!(pod.links()?, ["lo".to_owned()].into());
            assert_untouched(&machine, &before)?;
        }
        Ok(())
    })
}

#[test]
fn an_address_that_cannot_be_used_goes_back_to_ipam() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let mut ipam = machine.host_local();
        // The next hop is not reachable over the link, so that the kernel refuses the route.
        ipam["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]);
        assert_eq!(code(machine.call(Add, &pod, &machine.conf(&json!({"ipam": ipam})))), 102);
        assert_untouched(&machine, &before)
    })
}

#[test]
fn what_can_only_fail_is_refused_before_anything_changes() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        for (extra, expected) in [
            (json!({"vlan": 5}), 100),
            (json!({"mac": "02:00:00:00:00:01"}), 100),
            (json!({"deviceID": "0000:01:00.0"}), 100),
            (json!({"vlan": 4095}), 7),
            (json!({"colour": "red"}), 2),
        ] {
            assert_eq!(code(machine.call(Add, &pod, &machine.conf(&extra))), expected, "{extra}");
            assert_untouched(&machine, &before)?;
        }
        pod.route()?.add_link_veth("net1", "peer")?;
        let error = machine.call(Add, &pod, &machine.conf(&json!({}))).unwrap_err();
        assert!(error.code() == 102 && error.to_string().contains("already has an interface \"net1\""), "{error}");
        assert_untouched(&machine, &before)
    })
}

#[test]
fn names_that_stand_in_the_way_are_no_obstacle() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        Route::open()?.add_alt_name(host_link(NETDEV)?.netdev.ifindex, "net1")?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        // The container has a link with the VF's own name, from before or from its own doing.
        pod.route()?.add_link_veth(NETDEV, "peer")?;
        let conf = machine.conf(&json!({}));
        machine.call(Add, &pod, &conf)?;
        assert!(pod_has_net1(&pod)?);
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)?;
        assert_eq!(pod.links()?, ["lo".to_owned(), NETDEV.to_owned(), "peer".to_owned()].into());
        Ok(())
    })
}

#[test]
fn check_finds_what_somebody_changed() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        let with_result = machine.conf(&json!({"ipam": machine.host_local(), "prevResult": result}));
        machine.call(Check, &pod, &with_result)?;
        let (route, ifindex) = (pod.route()?, pod.link("net1")?.netdev.ifindex);
        let change = |mtu, up| route.change_link(ifindex, &LinkChange { mtu, up, ..LinkChange::default() });
        let check = |expected: &str| {
            let error = machine.call(Check, &pod, &with_result).unwrap_err();
            assert!(error.code() == 104 && error.to_string().starts_with(expected), "{error}");
        };
        change(Some(1400), None)?;
        check("MTU of net1 is 1400");
        change(Some(1500), Some(false))?;
        check("interface net1 is down");
        change(None, Some(true))?;
        route.flush_addresses(ifindex)?;
        check("address 192.0.2.2/24 of net1 is not there");
        Ok(())
    })
}

#[test]
fn gc_collects_what_the_runtime_does_not_know() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let ipam = json!({"ipam": machine.host_local()});
        machine.call(Add, &pod, &machine.conf(&ipam))?;
        let gc = |name: &str, valid: Value| {
            let mut conf = machine.conf(&ipam);
            conf["name"] = name.into();
            conf["cni.dev/valid-attachments"] = valid;
            machine.call(Gc, &pod, &conf)
        };
        gc("blue", json!([{"containerID": "a", "ifname": "net1"}]))?;
        gc("red", json!([]))?;
        assert!(pod_has_net1(&pod)?, "valid, and of another network");
        gc("blue", json!([{"containerID": "b", "ifname": "net1"}, {"containerID": "a", "ifname": "net2"}]))?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_userspace_vf_stays_where_it_is() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({"deviceID": USERSPACE_VF, "ipam": machine.host_local()}));
        let result = machine.call(Add, &pod, &conf)?.context("a result")?;
        assert_eq!(result["interfaces"], json!([{"name": "net1", "sandbox": pod.path(), "pciID": USERSPACE_VF}]));
        assert_eq!(result["ips"][0]["address"], "192.0.2.2/24");
        assert_eq!(pod.links()?, ["lo".to_owned()].into());
        machine.call(Check, &pod, &conf)?;
        machine.call(Del, &pod, &conf)?;
        assert!(machine.journals().is_empty() && machine.leases().is_empty());
        assert_eq!(code(machine.call(Add, &pod, &machine.conf(&json!({"deviceID": USERSPACE_VF, "promisc": "on"})))), 7);
        Ok(())
    })
}

#[test]
fn a_namespace_is_known_by_its_identity_and_not_by_its_path() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        let conf = machine.conf(&json!({}));
        // The runtime bind mounts a namespace after it was made: one path goes, another stays.
        let other_path = std::fs::File::open(pod.path())?;
        let mut add = machine.request(Add, &pod, &conf);
        add.netns = Some(format!("/proc/{}/fd/{}", std::process::id(), other_path.as_raw_fd()).into());
        sriov_cni::run(&add, &machine.host(), &SystemIo)?;
        drop(other_path);
        machine.call(Del, &pod, &conf)?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn a_lost_or_unreadable_journal_stops_nobody() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let conf = machine.conf(&json!({"ipam": machine.host_local()}));
        let journal = machine.state().join("v1").join(format!("{VF}.json"));
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &conf)?;
        std::fs::write(&journal, "{\"version\": 1, \"own")?;
        machine.call(Del, &pod, &conf)?;
        assert!(machine.leases().is_empty(), "IPAM was asked");
        assert!(!journal.exists());
        Ok(())
    })
}

#[test]
fn a_journal_from_before_a_reboot_is_no_attachment() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let (first, second) = (Pod::new("a")?, Pod::new("b")?);
        let conf = machine.conf(&json!({}));
        machine.call(Add, &first, &conf)?;
        first.end(&machine, "net1", NETDEV)?;
        machine.reboot()?;
        machine.call(Add, &second, &conf)?;
        assert!(pod_has_net1(&second)?);
        Ok(())
    })
}

#[test]
fn del_finds_the_vf_without_its_address() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let before = host_link(NETDEV)?;
        let pod = Pod::new("a")?;
        machine.call(Add, &pod, &machine.conf(&json!({})))?;
        machine.call(Del, &pod, &machine.conf(&json!({"deviceID": null})))?;
        assert_untouched(&machine, &before)
    })
}

#[test]
fn status_asks_ipam() -> Result<()> {
    as_host(|| {
        let machine = Machine::new()?;
        let pod = Pod::new("a")?;
        let status = |ipam: Value| machine.call(Status, &pod, &machine.conf(&json!({"ipam": ipam})));
        status(machine.host_local())?;
        assert_eq!(code(status(json!({"type": "no-such-ipam"}))), 50);
        Ok(())
    })
}
