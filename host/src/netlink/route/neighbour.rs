//! I/O: telling neighbours that an address is here now.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};

use super::{Message, RTM_NEWNEIGH, Route};
use crate::netlink::{NetlinkError, Subject};

impl Route {
    /// Lets the kernel announce an IPv4 address of a link (`ip neigh replace ADDRESS dev LINK use`): asked for the neighbour that has our own
    /// address, it broadcasts gratuitous ARP requests on this link, three times a second apart, also after the caller has ended and when the
    /// carrier comes up meanwhile. Of several addresses in one network only the first is announced. IPv6 needs no such verb: with the sysctl
    /// `ndisc_notify` the kernel announces an address when its duplicate detection has ended.
    pub fn announce(&self, ifindex: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
        let subject = Subject::new("announce an address", format!("ifindex {ifindex} ({address})"));
        self.socket.change(&subject, NLM_F_CREATE | NLM_F_REPLACE, &Message(RTM_NEWNEIGH, message))
    }
}
