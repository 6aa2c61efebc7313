//! I/O (tests): rtnetlink verbs against the running kernel, each test in network namespaces of its own. Needs root.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use super::*;
use crate::inventory::{LinkType, Netdev};
use crate::mac::MacAddr;
use crate::netns::NetNs;
use crate::testing::new_netns;

fn with_pair() -> (NetNs, Route, Link) {
    let netns = new_netns().unwrap();
    let route = Route::open_in(&netns).unwrap();
    route.add_link_veth("a0", "b0").unwrap();
    let link = route.link_by_name("a0").unwrap().unwrap();
    (netns, route, link)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_link_is_found_by_name_and_by_index() {
    let (_netns, route, link) = with_pair();
    assert_eq!((link.netdev.name.as_str(), link.netdev.link_type, link.netdev.mtu), ("a0", LinkType::Ether, 1500));
    assert!(!link.netdev.admin_up && link.netdev.mac.is_some() && link.parent.is_none());
    assert_eq!(route.link_by_index(link.netdev.ifindex).unwrap(), Some(link.clone()));
    assert!(route.links().unwrap().contains(&link));
    assert_eq!(route.link_by_name("none").unwrap(), None);
    assert_eq!(route.link_by_name("a-name-that-is-too-long-for-a-link").unwrap(), None);
    assert_eq!(route.link_by_index(9999).unwrap(), None);
    assert_eq!(route.link_by_pci("ffff:ff:1f.7".parse().unwrap()).unwrap(), None);
}

#[test]
fn a_dump_of_many_links_is_whole() {
    let (_netns, route, _) = with_pair();
    for number in 0..100 {
        route.add_link_veth(&format!("x{number}"), &format!("y{number}")).unwrap();
    }
    assert_eq!(route.links().unwrap().len(), 1 + 2 + 200);
}

/// Alternative names are the way to a large answer without a NIC; VF lists reach the same size.
#[test]
fn an_answer_of_fifty_kilobytes_is_whole() {
    let (_netns, route, link) = with_pair();
    let names: Vec<String> = (0..400).map(|number| format!("n{number:0>120}")).collect();
    for name in &names {
        route.add_alt_name(link.netdev.ifindex, name).unwrap();
    }
    assert_eq!(route.link_by_index(link.netdev.ifindex).unwrap().unwrap().netdev.alt_names, names);
}

#[test]
fn one_message_changes_many_things() {
    let (_netns, route, link) = with_pair();
    let mac = MacAddr([0x02, 0, 0x5e, 0x10, 0, 9]);
    let change =
        LinkChange { name: Some("eth7"), mtu: Some(9000), mac: Some(mac), up: Some(true), promisc: Some(true), allmulti: Some(true), netns: None };
    route.change_link(link.netdev.ifindex, &change).unwrap();
    let changed = route.link_by_index(link.netdev.ifindex).unwrap().unwrap();
    let netdev = Netdev { name: "eth7".to_owned(), mtu: 9000, mac: Some(mac), admin_up: true, ..link.netdev.clone() };
    assert_eq!(changed, Link { netdev, promisc: true, allmulti: true, ..link.clone() });
    route.change_link(link.netdev.ifindex, &LinkChange { up: Some(false), promisc: Some(false), ..LinkChange::default() }).unwrap();
    let down = route.link_by_index(link.netdev.ifindex).unwrap().unwrap();
    assert_eq!((down.netdev.admin_up, down.promisc, down.allmulti), (false, false, true));
}

#[test]
fn carrier_follows_the_other_end() {
    let (_netns, route, link) = with_pair();
    let other = route.link_by_name("b0").unwrap().unwrap();
    for ifindex in [link.netdev.ifindex, other.netdev.ifindex] {
        assert!(!route.link_by_index(ifindex).unwrap().unwrap().netdev.carrier);
        route.change_link(ifindex, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }
    assert!(route.link_by_index(link.netdev.ifindex).unwrap().unwrap().netdev.carrier);
}

#[test]
fn a_move_and_a_rename_are_one_message() {
    let (_netns, route, link) = with_pair();
    let pod = new_netns().unwrap();
    let inside = Route::open_in(&pod).unwrap();
    // A link with the old name is already in the target: only the new name has to be free there.
    inside.add_link_veth("a0", "z0").unwrap();
    let change = LinkChange { netns: Some(pod.as_fd()), name: Some("net1"), mtu: Some(1400), up: Some(true), ..LinkChange::default() };
    route.change_link(link.netdev.ifindex, &change).unwrap();
    assert_eq!(route.link_by_name("a0").unwrap(), None);
    let moved = inside.link_by_name("net1").unwrap().unwrap().netdev;
    assert_eq!((moved.mac, moved.mtu, moved.admin_up), (link.netdev.mac, 1400, true));
}

/// Pins the kernel's behaviour that the CNI has to expect: the rename is refused after the move was made.
#[test]
fn a_move_to_a_name_that_is_taken_leaves_the_link_in_the_target_with_its_old_name() {
    let (_netns, route, link) = with_pair();
    let pod = new_netns().unwrap();
    let inside = Route::open_in(&pod).unwrap();
    inside.add_link_veth("net1", "z0").unwrap();
    let change = LinkChange { netns: Some(pod.as_fd()), name: Some("net1"), ..LinkChange::default() };
    let error = route.change_link(link.netdev.ifindex, &change).unwrap_err();
    assert_eq!(error.errno(), 17, "{error}");
    assert_eq!(route.link_by_name("a0").unwrap(), None);
    assert_eq!(inside.link_by_name("a0").unwrap().unwrap().netdev.mac, link.netdev.mac);
}

/// With both names taken the kernel refuses before it moves.
#[test]
fn a_move_for_which_no_name_is_free_changes_nothing() {
    let (_netns, route, link) = with_pair();
    let pod = new_netns().unwrap();
    Route::open_in(&pod).unwrap().add_link_veth("net1", "a0").unwrap();
    let change = LinkChange { netns: Some(pod.as_fd()), name: Some("net1"), ..LinkChange::default() };
    let error = route.change_link(link.netdev.ifindex, &change).unwrap_err();
    assert_eq!(error.errno(), 17, "{error}");
    assert_eq!(route.link_by_index(link.netdev.ifindex).unwrap(), Some(link));
}

#[test]
fn alternative_names_find_the_link_until_they_are_removed() {
    let (_netns, route, link) = with_pair();
    let long = "a-name-of-more-than-fifteen-bytes";
    route.add_alt_name(link.netdev.ifindex, "enp1s0v0").unwrap();
    route.add_alt_name(link.netdev.ifindex, long).unwrap();
    let found = route.link_by_name("enp1s0v0").unwrap().unwrap().netdev;
    assert_eq!((found.ifindex, found.name.as_str()), (link.netdev.ifindex, "a0"));
    assert_eq!(found.alt_names, ["enp1s0v0", long]);
    assert_eq!(route.link_by_name(long).unwrap().unwrap().netdev, found);
    assert_eq!(route.add_alt_name(link.netdev.ifindex, "b0").unwrap_err().errno(), 17);
    route.del_alt_name(link.netdev.ifindex, "enp1s0v0").unwrap();
    assert_eq!(route.link_by_name("enp1s0v0").unwrap(), None);
}

#[test]
fn an_alternative_name_blocks_a_rename_to_it() {
    let (_netns, route, link) = with_pair();
    let rename = LinkChange { name: Some("enp1s0v0"), ..LinkChange::default() };
    route.add_alt_name(link.netdev.ifindex, "enp1s0v0").unwrap();
    assert_eq!(route.change_link(link.netdev.ifindex, &rename).unwrap_err().errno(), 17);
    route.del_alt_name(link.netdev.ifindex, "enp1s0v0").unwrap();
    route.change_link(link.netdev.ifindex, &rename).unwrap();
}

#[test]
fn addresses_are_added_once_listed_and_flushed() {
    let (_netns, route, link) = with_pair();
    let ifindex = link.netdev.ifindex;
    for (address, prefix) in [("10.56.217.5", 24), ("10.56.217.6", 24), ("192.0.2.1", 32), ("2001:db8::5", 64)] {
        route.add_address(ifindex, ip(address), prefix).unwrap();
    }
    assert_eq!(route.add_address(ifindex, ip("10.56.217.5"), 24).unwrap_err().errno(), 17);
    let mut found: Vec<_> = route.addresses(ifindex).unwrap().iter().map(|found| format!("{}/{}", found.address, found.prefix)).collect();
    found.sort_unstable();
    assert_eq!(found, ["10.56.217.5/24", "10.56.217.6/24", "192.0.2.1/32", "2001:db8::5/64"]);
    assert_eq!(route.addresses(route.link_by_name("b0").unwrap().unwrap().netdev.ifindex).unwrap(), []);
    route.flush_addresses(ifindex).unwrap();
    assert_eq!(route.addresses(ifindex).unwrap(), []);
}

#[test]
fn routes_are_added_once_and_listed() {
    let (_netns, route, link) = with_pair();
    let ifindex = link.netdev.ifindex;
    for name in ["a0", "b0"] {
        let end = route.link_by_name(name).unwrap().unwrap().netdev.ifindex;
        route.change_link(end, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }
    route.add_address(ifindex, ip("10.56.217.5"), 24).unwrap();
    let default = RouteSpec { gateway: Some(ip("10.56.217.1")), mtu: Some(1400), ..RouteSpec::new(ip("0.0.0.0"), 0, ifindex) };
    route.add_route(&default).unwrap();
    assert_eq!(route.add_route(&default).unwrap_err().errno(), 17);
    route.add_route(&RouteSpec { priority: Some(7), table: Some(1000), ..RouteSpec::new(ip("198.51.100.0"), 24, ifindex) }).unwrap();
    route.add_route(&RouteSpec::new(ip("2001:db8:1::"), 48, ifindex)).unwrap();
    let routes = route.routes(ifindex).unwrap();
    let entry = |dst: &str, prefix, gateway: Option<&str>, priority, table| RouteEntry {
        dst: ip(dst),
        prefix,
        gateway: gateway.map(ip),
        ifindex,
        priority,
        table,
    };
    for wanted in [
        entry("0.0.0.0", 0, Some("10.56.217.1"), 0, 254),
        entry("10.56.217.0", 24, None, 0, 254),
        entry("198.51.100.0", 24, None, 7, 1000),
        entry("2001:db8:1::", 48, None, 1024, 254),
    ] {
        assert!(routes.contains(&wanted), "{wanted:?} in {routes:?}");
    }
    let unreachable = RouteSpec { gateway: Some(ip("203.0.113.1")), ..RouteSpec::new(ip("192.0.2.0"), 24, ifindex) };
    let error = route.add_route(&unreachable).unwrap_err();
    assert_eq!((error.errno(), error.ext_ack.as_deref()), (101, Some("Nexthop has invalid gateway")), "{error}");
}

#[test]
fn a_refusal_says_what_was_asked_and_what_the_kernel_answered() {
    let (_netns, route, link) = with_pair();
    let error = route.change_link(link.netdev.ifindex, &LinkChange { mtu: Some(70_000), ..LinkChange::default() }).unwrap_err();
    assert_eq!((error.errno(), error.ext_ack.as_deref()), (22, Some("mtu greater than device maximum")));
    let text = error.to_string();
    assert!(text.contains("change the link") && text.contains("mtu 70000") && text.contains("device maximum"), "{text}");
    assert!(route.change_link(9999, &LinkChange::default()).unwrap_err().is_gone());
}

#[test]
fn a_link_without_vfs_has_none_and_refuses_to_set_one() {
    let (_netns, route, link) = with_pair();
    let ifindex = link.netdev.ifindex;
    assert_eq!(route.vfs(ifindex).unwrap(), []);
    assert_eq!(route.vf(ifindex, VfIndex(0)).unwrap(), None);
    let error = route.set_vf(ifindex, VfIndex(0), &[VfSetting::Trust(true), VfSetting::SpoofCheck(false)]).unwrap_err();
    assert!(error.is_unsupported() && error.object.contains("vf 0: trust on, spoofchk off"), "{error}");
    route.set_vf(ifindex, VfIndex(0), &[]).unwrap();
    assert!(route.vfs(9999).unwrap_err().is_gone());
}

#[test]
fn a_removed_link_is_gone() {
    let (_netns, route, link) = with_pair();
    route.del_link(link.netdev.ifindex).unwrap();
    assert_eq!(route.link_by_name("b0").unwrap(), None, "both ends go");
}

#[test]
fn of_several_links_of_a_function_the_uplink_is_the_one() {
    let (_netns, _, link) = with_pair();
    let named = |ifindex, name: Option<&str>| Link {
        netdev: Netdev { ifindex, ..link.netdev.clone() },
        phys_port_name: name.map(str::to_owned),
        ..link.clone()
    };
    let chosen = |links: &[Link]| uplink(links.iter()).map(|link| link.netdev.ifindex);
    assert_eq!(chosen(&[named(4, Some("pf0vf0")), named(9, Some("p0")), named(5, Some("pf0hpf"))]), Some(9));
    assert_eq!(chosen(&[named(4, Some("pf0vf0")), named(9, None)]), Some(9));
    assert_eq!(chosen(&[named(9, None), named(4, None)]), Some(4));
    assert_eq!(chosen(&[]), None);
    assert!(!is_uplink_name("p") && !is_uplink_name("p0s1") && is_uplink_name("p10"));
}

/// The kernel takes 495 names of the greatest length, which make the description of the link longer than the first buffer.
#[test]
fn an_answer_that_is_longer_than_the_buffer_is_read_whole() {
    let netns = new_netns().unwrap();
    let route = Route::open_in(&netns).unwrap();
    route.add_link_veth("a0", "b0").unwrap();
    let link = route.link_by_name("a0").unwrap().unwrap();
    let names: Vec<String> = (0..495).map(|number| format!("{number:0127}")).collect();
    for name in &names {
        route.add_alt_name(link.netdev.ifindex, name).unwrap();
    }
    assert_eq!(route.link_by_name("a0").unwrap().unwrap().netdev.alt_names, names);
    // The socket is as good as before.
    assert_eq!(route.link_by_index(link.netdev.ifindex).unwrap().unwrap().netdev.name, "a0");
    assert_eq!(route.link_by_name("none").unwrap(), None);
}
