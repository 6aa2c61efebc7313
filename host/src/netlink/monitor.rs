//! I/O: links as rtnetlink announces their changes (`RTNLGRP_LINK`, what `ip monitor link` shows): unlike device events these also tell of MTU,
//! address, up, down and carrier.
//!
//! Invariant: an announcement is a reason to look again, not a record of what is; lost ones are said to be lost.

use std::time::Instant;

use super::announcements::{Announcements, LinkMonitorError};
use super::link::{self, Link};

/// `RTMGRP_LINK`.
const LINK_GROUP: u32 = 1;

/// Receives the changes of the links of one network namespace.
#[derive(Debug)]
pub struct LinkMonitor {
    announcements: Announcements,
}

impl LinkMonitor {
    /// Opens it in the calling thread's network namespace, where the socket stays.
    pub fn open() -> Result<Self, LinkMonitorError> {
        Ok(Self { announcements: Announcements::open(LINK_GROUP)? })
    }

    /// The next link that changed, or came, or went; `None` when the deadline passes first.
    pub fn next(&self, deadline: Instant) -> Result<Option<Link>, LinkMonitorError> {
        self.announcements.next(deadline, |message| link::parse(message.payload()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::{LinkChange, Route};
    use crate::testing::new_netns;

    #[test]
    fn changes_that_no_device_event_tells_are_seen() {
        let netns = new_netns().unwrap();
        let route = Route::open_in(&netns).unwrap();
        route.add_link_veth("a0", "b0").unwrap();
        let monitor = netns.run_in(LinkMonitor::open).unwrap().unwrap();
        assert_eq!(monitor.next(Instant::now()).unwrap(), None, "nothing changed since it was opened");
        let link = route.link_by_name("a0").unwrap().unwrap();
        route.change_link(link.netdev.ifindex, &LinkChange { mtu: Some(1400), ..LinkChange::default() }).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let seen = std::iter::from_fn(|| monitor.next(deadline).unwrap()).find(|seen| seen.netdev.mtu == 1400);
        assert_eq!(seen.map(|seen| seen.netdev.name).as_deref(), Some("a0"));
    }
}
