//! I/O: what changes in a network namespace, as rtnetlink announces it: links, addresses, routes (`ip monitor link address route`).
//!
//! What does not live here: device events (`uevent`), the links alone (`monitor`).
//!
//! Invariant: a change of a link is told with the link as it is now; addresses and routes are only told to have changed, and are read anew.
//! Lost announcements are said to be lost.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use netlink_packet_core::NetlinkBuffer;

use super::announcements::{Announcements, LinkMonitorError};
use super::link::{self, Link};

/// `RTMGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetChange {
    /// A link came or is different.
    Link(Box<Link>),
    /// The link with this index went.
    LinkGone(u32),
    /// Addresses or routes are different.
    Addressing,
}

/// Receives the changes of one network namespace.
#[derive(Debug)]
pub struct NetMonitor {
    announcements: Announcements,
}

impl NetMonitor {
    /// Opens it in the calling thread's network namespace, where the socket stays.
    pub fn open() -> Result<Self, LinkMonitorError> {
        Ok(Self { announcements: Announcements::open(GROUPS)? })
    }

    /// The next change; `None` when the deadline passes first.
    pub fn next(&self, deadline: Instant) -> Result<Option<NetChange>, LinkMonitorError> {
        self.announcements.next(deadline, read)
    }
}

impl AsFd for NetMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.announcements.as_fd()
    }
}

fn read(message: &NetlinkBuffer<&[u8]>) -> Option<NetChange> {
    match message.message_type() {
        RTM_NEWLINK => link::parse(message.payload()).map(|link| NetChange::Link(Box::new(link))),
        RTM_DELLINK => link::parse(message.payload()).map(|link| NetChange::LinkGone(link.netdev.ifindex)),
        _ => Some(NetChange::Addressing),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::{LinkChange, Route};
    use crate::testing::new_netns;

    #[test]
    fn links_and_addresses_are_told_apart() {
        let netns = new_netns().unwrap();
        let route = Route::open_in(&netns).unwrap();
        let monitor = netns.run_in(NetMonitor::open).unwrap().unwrap();
        route.add_link_veth("a0", "b0").unwrap();
        let index = route.link_by_name("a0").unwrap().unwrap().netdev.ifindex;
        route.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        route.add_address(index, "192.0.2.1".parse().unwrap(), 24).unwrap();
        route.del_link(index).unwrap();

        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        while !seen.contains(&NetChange::LinkGone(index)) {
            seen.push(monitor.next(deadline).unwrap().expect("a change before the deadline"));
        }
        let up = |change: &NetChange| matches!(change, NetChange::Link(link) if link.netdev.name == "a0" && link.netdev.admin_up);
        assert!(seen.iter().any(up), "{seen:?}");
        assert!(seen.contains(&NetChange::Addressing), "{seen:?}");
    }
}
