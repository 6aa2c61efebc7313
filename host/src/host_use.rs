//! Pure: what the machine itself uses a network function for, from links, addresses and routes as values.
//!
//! What lives here: the ways in which traffic of the host depends on a netdev, directly or through what is stacked on it. What that means for a
//! plan does not live here.
//!
//! Invariant: a link-local address is no use (the kernel gives one to every link that is up); anything that an administrator or a network service
//! put on the link is.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::netlink::{InterfaceAddress, Link, RouteOut};

/// One use of a netdev by the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "use")]
pub enum HostUse {
    /// A default route leaves by it.
    DefaultRoute {
        /// The link of the route: the netdev or one above it.
        link: String,
        /// `IPv4` or `IPv6`.
        family: String,
    },
    /// The host has an address on it.
    Address {
        /// The link with the address.
        link: String,
        /// The address with its prefix length.
        address: String,
    },
    /// It is a port of a bond, bridge, team, switch or VRF, or carries a VLAN, macvlan or tunnel.
    Upper {
        /// The link above.
        link: String,
        /// Its kind: `bond`, `bridge`, `vlan`, `openvswitch`, ...
        kind: String,
    },
    /// Storage is reached by it.
    Storage {
        /// Which: `NFS server 10.0.0.9`, `NVMe target 10.0.0.9`, `iSCSI target 10.0.0.9`.
        target: String,
        /// The link that leads there.
        link: String,
    },
}

/// A storage target that the machine is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoragePeer {
    /// `NFS server`, `NVMe target`, `iSCSI target`.
    pub kind: &'static str,
    /// Where it is.
    pub address: IpAddr,
}

/// The network of the host, as values.
#[derive(Clone, Debug, Default)]
pub struct HostNetwork {
    /// Addresses with the index of their link.
    pub addresses: Vec<(u32, InterfaceAddress)>,
    /// Routes of the main table.
    pub routes: Vec<RouteOut>,
    /// Storage.
    pub storage: Vec<StoragePeer>,
}

impl HostNetwork {
    /// What the host uses the link with this index for, in a fixed order.
    pub fn uses_of(&self, ifindex: u32, links: &[Link]) -> Vec<HostUse> {
        let above = with_uppers(ifindex, links);
        let name = |index: u32| links.iter().find(|l| l.netdev.ifindex == index).map_or_else(|| format!("link {index}"), |l| l.netdev.name.clone());
        let mut uses = BTreeSet::new();
        for link in links.iter().filter(|l| l.netdev.ifindex != ifindex && above.contains(&l.netdev.ifindex)) {
            uses.insert(HostUse::Upper { link: link.netdev.name.clone(), kind: link.stack.kind.clone().unwrap_or_else(|| "link".to_owned()) });
        }
        for (index, found) in self.addresses.iter().filter(|(index, a)| above.contains(index) && !a.link_local) {
            uses.insert(HostUse::Address { link: name(*index), address: format!("{}/{}", found.address, found.prefix) });
        }
        for route in self.routes.iter().filter(|route| route.prefix == 0) {
            for index in route.ifindexes.iter().filter(|index| above.contains(index)) {
                let family = if route.dst.is_ipv4() { "IPv4" } else { "IPv6" };
                uses.insert(HostUse::DefaultRoute { link: name(*index), family: family.to_owned() });
            }
        }
        for peer in &self.storage {
            for index in self.way_to(peer.address).iter().filter(|index| above.contains(index)) {
                uses.insert(HostUse::Storage { target: format!("{} {}", peer.kind, peer.address), link: name(*index) });
            }
        }
        uses.into_iter().collect()
    }

    /// The interfaces of the most specific route to an address; of equal ones the lowest metric.
    fn way_to(&self, to: IpAddr) -> &[u32] {
        let fits = self.routes.iter().filter(|route| within(to, route.dst, route.prefix));
        fits.min_by_key(|route| (std::cmp::Reverse(route.prefix), route.priority)).map(|route| route.ifindexes.as_slice()).unwrap_or_default()
    }
}

/// The link and all that is stacked on it.
fn with_uppers(ifindex: u32, links: &[Link]) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([ifindex]);
    let mut open = vec![ifindex];
    while let Some(index) = open.pop() {
        let master = links.iter().find(|link| link.netdev.ifindex == index).and_then(|link| link.stack.master);
        let on_it = links.iter().filter(|link| link.stack.lower == Some(index)).map(|link| link.netdev.ifindex);
        for upper in master.into_iter().chain(on_it) {
            if found.insert(upper) {
                open.push(upper);
            }
        }
    }
    found
}

fn within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let bits = u32::from(prefix);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (a.to_bits() ^ n.to_bits()).checked_shr(32u32.saturating_sub(bits)).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits() ^ n.to_bits()).checked_shr(128u32.saturating_sub(bits)).unwrap_or(0) == 0,
        _ => false,
    }
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { link, family } => write!(f, "the {family} default route leaves by {link}"),
            Self::Address { link, address } => write!(f, "address {address} is on {link}"),
            Self::Upper { link, kind } => write!(f, "{link} ({kind}) stands on it"),
            Self::Storage { target, link } => write!(f, "{target} is reached by {link}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Stack;
    use crate::testing;

    fn link(ifindex: u32, name: &str, master: Option<u32>, lower: Option<u32>, kind: Option<&str>) -> Link {
        let stack = Stack { master, lower, kind: kind.map(str::to_owned), switch_id: None };
        Link { stack, ..testing::link(ifindex, name) }
    }

    fn address(text: &str, prefix: u8) -> InterfaceAddress {
        let address: IpAddr = text.parse().unwrap();
        InterfaceAddress { address, prefix, tentative: false, dad_failed: false, link_local: text.starts_with("fe80") }
    }

    fn route(dst: &str, prefix: u8, priority: u32, ifindexes: &[u32]) -> RouteOut {
        RouteOut { dst: dst.parse().unwrap(), prefix, priority, ifindexes: ifindexes.to_vec() }
    }

    fn said(network: &HostNetwork, ifindex: u32, links: &[Link]) -> Vec<String> {
        network.uses_of(ifindex, links).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_port_of_a_bond_carries_what_stands_on_the_bond() {
        let links = [
            link(2, "ens1f0", Some(5), None, None),
            link(3, "ens1f1", None, None, None),
            link(5, "bond0", None, None, Some("bond")),
            link(6, "bond0.100", Some(7), Some(5), Some("vlan")),
            link(7, "br-ex", None, None, Some("bridge")),
        ];
        let network = HostNetwork {
            addresses: vec![(7, address("10.0.0.5", 24)), (3, address("fe80::1", 64)), (2, address("fe80::2", 64))],
            routes: vec![route("0.0.0.0", 0, 100, &[7]), route("::", 0, 1024, &[3, 7])],
            storage: Vec::new(),
        };
        assert_eq!(
            said(&network, 2, &links),
            [
                "the IPv4 default route leaves by br-ex",
                "the IPv6 default route leaves by br-ex",
                "address 10.0.0.5/24 is on br-ex",
                "bond0 (bond) stands on it",
                "bond0.100 (vlan) stands on it",
                "br-ex (bridge) stands on it"
            ]
        );
        assert_eq!(said(&network, 3, &links), ["the IPv6 default route leaves by ens1f1"], "a next hop of several; a link-local address is no use");
    }

    #[test]
    fn storage_is_found_by_the_most_specific_route() {
        let links = [link(2, "a", None, None, None), link(3, "b", None, None, None)];
        let network = HostNetwork {
            addresses: Vec::new(),
            routes: vec![
                route("0.0.0.0", 0, 0, &[2]),
                route("10.9.0.0", 16, 100, &[2]),
                route("10.9.8.0", 24, 100, &[2]),
                route("10.9.8.0", 24, 50, &[3]),
            ],
            storage: vec![StoragePeer { kind: "NFS server", address: "10.9.8.7".parse().unwrap() }],
        };
        assert_eq!(said(&network, 3, &links), ["NFS server 10.9.8.7 is reached by b"]);
        assert_eq!(said(&network, 2, &links), ["the IPv4 default route leaves by a"]);
    }

    #[test]
    fn an_unused_link_has_no_uses() {
        assert_eq!(HostNetwork::default().uses_of(2, &[link(2, "a", None, None, None)]), []);
    }
}
