//! I/O: rtnetlink, one verb per kernel operation; each says which `ip` command it equals.
//!
//! What lives here: links, VFs through their PF, addresses, routes. What the messages look like lives in `link`, `vf_info` and `address`.
//!
//! Invariant: one request per change; a link, once found, is named by its index, which a rename does not change.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkSerializable};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage, Prop};
use netlink_packet_route::route::RouteMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::address::{self, InterfaceAddress, RouteEntry, RouteOut, RouteSpec};
use super::link::{self, IFLA_ALT_IFNAME, Link, LinkChange};
use super::{NetlinkError, Socket, Subject, vf_info};
use crate::netns::{NetNs, NetNsError};
use crate::pci::PciAddress;
use crate::vf::{VfAttributes, VfCounters, VfIndex, VfSetting};

mod neighbour;

/// Names longer than this (`IFNAMSIZ` less the closing zero) can only be alternative names.
const MAX_NAME_BYTES: usize = 15;

#[cfg(any(test, feature = "testing"))]
const RTM_NEWLINK: u16 = 16;
#[cfg(any(test, feature = "testing"))]
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWLINKPROP: u16 = 108;
const RTM_DELLINKPROP: u16 = 109;

/// A request: its type and its content. The library's own sum of all messages would link the code of each that there is (30 KB of the CNI).
struct Message<T>(u16, T);

impl<T: Emitable> NetlinkSerializable for Message<T> {
    fn message_type(&self) -> u16 {
        self.0
    }

    fn buffer_len(&self) -> usize {
        self.1.buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.1.emit(buffer);
    }
}

/// A route socket in one network namespace.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
}

/// Why a route socket could not be opened inside a namespace.
#[derive(Debug, thiserror::Error)]
pub enum OpenRouteError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] NetNsError),
    /// The socket could not be opened in it.
    #[error(transparent)]
    Open(#[from] NetlinkError),
}

impl Route {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open(NETLINK_ROUTE)? })
    }

    /// Opens a socket in `netns`, where it stays.
    pub fn open_in(netns: &NetNs) -> Result<Self, OpenRouteError> {
        Ok(netns.run_in(Self::open)??)
    }

    /// All links of the namespace in one dump (`ip -d link`). VFs of PFs are not asked for: drivers answer that slowly.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = Message(RTM_GETLINK, LinkMessage::default());
        let replies = self.socket.request(&Subject::new("list links", "the namespace"), NLM_F_DUMP, &request)?;
        Ok(replies.iter().filter_map(|reply| link::parse(&reply.payload)).collect())
    }

    /// The link with this name or alternative name (`ip link show NAME`).
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let attribute = if name.len() > MAX_NAME_BYTES {
            LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), &[0]].concat()))
        } else {
            LinkAttribute::IfName(name.to_owned())
        };
        self.link(&Subject::new("read the link", name), link::message(0, vec![attribute]))
    }

    /// The link with this index (`ip link show` by index).
    pub fn link_by_index(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        self.link(&Subject::new("read the link", format!("ifindex {ifindex}")), link::message(ifindex, Vec::new()))
    }

    /// The link of a PCI function. Of several (a PF in switchdev mode and its representors) the uplink, see [`uplink`].
    pub fn link_by_pci(&self, address: PciAddress) -> Result<Option<Link>, NetlinkError> {
        let links = self.links()?;
        Ok(uplink(links.iter().filter(|link| link.parent == Some(address))).cloned())
    }

    /// What the PF reports of one VF; `None` when it reports nothing of it.
    pub fn vf(&self, pf_ifindex: u32, vf: VfIndex) -> Result<Option<VfAttributes>, NetlinkError> {
        Ok(self.vfs(pf_ifindex)?.into_iter().find(|attributes| attributes.index == vf))
    }

    /// What the PF reports of its VFs, in order of index, without counters (`ip link show PF`).
    pub fn vfs(&self, pf_ifindex: u32) -> Result<Vec<VfAttributes>, NetlinkError> {
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]);
        let subject = Subject::new("read the VFs", format!("ifindex {pf_ifindex}"));
        let reply = self.socket.get(&subject, &Message(RTM_GETLINK, link::message(pf_ifindex, vec![mask])))?;
        Ok(vf_info::parse(link::attributes(&reply.payload)))
    }

    /// What has passed each VF of the PF since it was made, in order of index; a VF for which the driver counts nothing is not there. Drivers may
    /// ask their firmware for each VF, so this takes time.
    pub fn vf_counters(&self, pf_ifindex: u32) -> Result<Vec<(VfIndex, VfCounters)>, NetlinkError> {
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]);
        let subject = Subject::new("read the counters of the VFs", format!("ifindex {pf_ifindex}"));
        let reply = self.socket.get(&subject, &Message(RTM_GETLINK, link::message(pf_ifindex, vec![mask])))?;
        Ok(vf_info::parse_counters(link::attributes(&reply.payload)))
    }

    /// Sets attributes of one VF in one message (`ip link set PF vf N ...`).
    ///
    /// The kernel applies them in its own order (MAC, VLAN, rate, spoof check, link state, trust) and stops at the first refusal, with
    /// those before it in effect: after an error, read again.
    pub fn set_vf(&self, pf_ifindex: u32, vf: VfIndex, settings: &[VfSetting]) -> Result<(), NetlinkError> {
        if settings.is_empty() {
            return Ok(());
        }
        let words: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let subject = Subject::new("set VF attributes", format!("ifindex {pf_ifindex} vf {vf}: {}", words.join(", ")));
        self.socket.change(&subject, 0, &Message(RTM_SETLINK, set_vf_message(pf_ifindex, vf, settings)))
    }

    /// Changes a link in one message (`ip link set dev LINK ...`); a move and a rename go together. For what an error leaves behind, see
    /// [`LinkChange`].
    pub fn change_link(&self, ifindex: u32, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let subject = Subject::new("change the link", format!("ifindex {ifindex}: {}", change.describe()));
        self.socket.change(&subject, 0, &Message(RTM_SETLINK, change.message(ifindex)))
    }

    /// Adds an alternative name (`ip link property add dev LINK altname NAME`).
    pub fn add_alt_name(&self, ifindex: u32, name: &str) -> Result<(), NetlinkError> {
        let subject = Subject::new("add an alternative name", format!("ifindex {ifindex}: {name}"));
        self.socket.change(&subject, NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND, &Message(RTM_NEWLINKPROP, alt_name_message(ifindex, name)))
    }

    /// Removes an alternative name (`ip link property del dev LINK altname NAME`).
    pub fn del_alt_name(&self, ifindex: u32, name: &str) -> Result<(), NetlinkError> {
        let subject = Subject::new("remove an alternative name", format!("ifindex {ifindex}: {name}"));
        self.socket.change(&subject, 0, &Message(RTM_DELLINKPROP, alt_name_message(ifindex, name)))
    }

    /// Adds an address with its network's broadcast address (`ip address add ADDRESS/PREFIX broadcast + dev LINK`); `EEXIST` when it is there.
    pub fn add_address(&self, ifindex: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let subject = Subject::new("add an address", format!("ifindex {ifindex}: {address}/{prefix}"));
        self.socket.change(&subject, NLM_F_CREATE | NLM_F_EXCL, &Message(RTM_NEWADDR, address::address_message(ifindex, address, prefix)))
    }

    /// The addresses of a link, both families (`ip address show dev LINK`).
    pub fn addresses(&self, ifindex: u32) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let subject = Subject::new("list addresses", format!("ifindex {ifindex}"));
        let replies = self.socket.request(&subject, NLM_F_DUMP, &Message(RTM_GETADDR, AddressMessage::default()))?;
        let all = replies.iter().filter_map(|reply| address::parse_address(&reply.payload));
        Ok(all.filter(|(index, _)| *index == ifindex).map(|(_, address)| address).collect())
    }

    /// The addresses of all links of the namespace, each with the index of its link.
    pub fn all_addresses(&self) -> Result<Vec<(u32, InterfaceAddress)>, NetlinkError> {
        let subject = Subject::new("list addresses", "the namespace");
        let replies = self.socket.request(&subject, NLM_F_DUMP, &Message(RTM_GETADDR, AddressMessage::default()))?;
        Ok(replies.iter().filter_map(|reply| address::parse_address(&reply.payload)).collect())
    }

    /// The unicast routes of the main table, both families, with the interfaces that they leave by.
    pub fn routes_out(&self) -> Result<Vec<RouteOut>, NetlinkError> {
        let subject = Subject::new("list routes", "the namespace");
        let replies = self.socket.request(&subject, NLM_F_DUMP, &Message(RTM_GETROUTE, RouteMessage::default()))?;
        Ok(replies.iter().filter_map(|reply| address::parse_route_out(&reply.payload)).collect())
    }

    /// Removes all addresses of a link (`ip address flush dev LINK`). One that went away meanwhile is no error.
    pub fn flush_addresses(&self, ifindex: u32) -> Result<(), NetlinkError> {
        for InterfaceAddress { address, prefix, .. } in self.addresses(ifindex)? {
            let subject = Subject::new("remove an address", format!("ifindex {ifindex}: {address}/{prefix}"));
            match self.socket.change(&subject, 0, &Message(RTM_DELADDR, address::address_message(ifindex, address, prefix))) {
                // Secondary addresses go with their primary one.
                Err(error) if !error.is(rustix::io::Errno::ADDRNOTAVAIL) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds a unicast route (`ip route prepend DST via GATEWAY dev LINK`); `EEXIST` when it is there with the same next hop. With another next
    /// hop it is put before the one that is there: IPv4 takes the first, IPv6 shares the load.
    pub fn add_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let subject = Subject::new("add a route", format!("ifindex {}: {}/{}{via}", route.ifindex, route.dst, route.prefix));
        self.socket.change(&subject, NLM_F_CREATE, &Message(RTM_NEWROUTE, address::route_message(route)))
    }

    /// The unicast routes out of a link, both families, all tables (`ip route show dev LINK table all`).
    pub fn routes(&self, ifindex: u32) -> Result<Vec<RouteEntry>, NetlinkError> {
        let subject = Subject::new("list routes", format!("ifindex {ifindex}"));
        let replies = self.socket.request(&subject, NLM_F_DUMP, &Message(RTM_GETROUTE, RouteMessage::default()))?;
        Ok(replies.iter().filter_map(|reply| address::parse_route(&reply.payload)).filter(|route| route.ifindex == ifindex).collect())
    }

    fn link(&self, subject: &Subject, message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        match self.socket.get(subject, &Message(RTM_GETLINK, message)) {
            Ok(reply) => link::parse(&reply.payload).map(Some).ok_or_else(|| subject.unreadable()),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Route {
    /// Adds a pair of connected Ethernet links (`ip link add NAME type veth peer name PEER`).
    pub fn add_link_veth(&self, name: &str, peer: &str) -> Result<(), NetlinkError> {
        use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkInfo};
        let other = InfoVeth::Peer(link::message(0, vec![LinkAttribute::IfName(peer.to_owned())]));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(other))];
        self.add_link(name, info)
    }

    /// Adds a link that goes nowhere (`ip link add NAME type dummy`). Needs the kernel's `dummy` driver.
    pub fn add_link_dummy(&self, name: &str) -> Result<(), NetlinkError> {
        use netlink_packet_route::link::{InfoKind, LinkInfo};
        self.add_link(name, vec![LinkInfo::Kind(InfoKind::Dummy)])
    }

    /// Removes a virtual link (`ip link del`).
    pub fn del_link(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let subject = Subject::new("remove the link", format!("ifindex {ifindex}"));
        self.socket.change(&subject, 0, &Message(RTM_DELLINK, link::message(ifindex, Vec::new())))
    }

    fn add_link(&self, name: &str, info: Vec<netlink_packet_route::link::LinkInfo>) -> Result<(), NetlinkError> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        self.socket.change(&Subject::new("add the link", name), NLM_F_CREATE | NLM_F_EXCL, &Message(RTM_NEWLINK, link::message(0, attributes)))
    }
}

/// Of the links of one PCI function the one through which it is configured: with several the uplink (physical port name `p0`, `p1`, ...),
/// else one that is no representor, else the first made. In switchdev mode representors have the same parent as their uplink.
pub fn uplink<'a>(links: impl Iterator<Item = &'a Link>) -> Option<&'a Link> {
    links.min_by_key(|link| {
        let rank = match link.phys_port_name.as_deref() {
            Some(name) if is_uplink_name(name) => 0,
            None => 1,
            Some(_) => 2,
        };
        (rank, link.netdev.ifindex)
    })
}

fn is_uplink_name(name: &str) -> bool {
    name.strip_prefix('p').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn set_vf_message(pf_ifindex: u32, vf: VfIndex, settings: &[VfSetting]) -> LinkMessage {
    link::message(pf_ifindex, vec![LinkAttribute::VfInfoList(vec![vf_info::change(vf, settings)])])
}

fn alt_name_message(ifindex: u32, name: &str) -> LinkMessage {
    link::message(ifindex, vec![LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())])])
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
