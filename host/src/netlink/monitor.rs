//! I/O: links as rtnetlink announces their changes (`RTNLGRP_LINK`, what `ip monitor link` shows): unlike device events these also tell of MTU,
//! address, up, down and carrier.
//!
//! Invariant: an announcement is a reason to look again, not a record of what is; lost ones are said to be lost.

use std::io;
use std::time::Instant;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::link::{self, Link};

/// `RTMGRP_LINK`.
const LINK_GROUP: u32 = 1;
/// Room for a burst: an announcement takes about 1.5 KiB.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// Longer than any announcement, because VFs are not in them.
const ANNOUNCEMENT_BYTES: usize = 64 * 1024;

/// Receives the changes of the links of one network namespace.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: netlink_sys::Socket,
}

/// The monitor failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkMonitorError {
    /// It could not be opened.
    #[error("cannot open the socket for changes of links: {0}")]
    Open(io::Error),
    /// It could not be read.
    #[error("cannot read changes of links: {0}")]
    Receive(io::Error),
    /// Changes came faster than they were read, and some are lost: look at the links again.
    #[error("changes of links were lost because they came faster than they were read")]
    Overrun,
}

impl LinkMonitor {
    /// Opens it in the calling thread's network namespace, where the socket stays.
    pub fn open() -> Result<Self, LinkMonitorError> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
            socket.set_non_blocking(true)?;
            socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
            Ok(Self { socket })
        };
        open().map_err(LinkMonitorError::Open)
    }

    /// The next link that changed, or came, or went; `None` when the deadline passes first.
    pub fn next(&self, deadline: Instant) -> Result<Option<Link>, LinkMonitorError> {
        let mut bytes = Vec::with_capacity(ANNOUNCEMENT_BYTES);
        loop {
            bytes.clear();
            match self.socket.recv_from(&mut bytes, 0) {
                // Only the kernel is port 0; it announces one link a datagram.
                Ok((_, sender)) if sender.port_number() == 0 => {
                    if let Some(link) = NetlinkBuffer::new_checked(&bytes).ok().and_then(|message| link::parse(message.payload())) {
                        return Ok(Some(link));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.readable(deadline)? {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Err(LinkMonitorError::Overrun),
                Err(error) => return Err(LinkMonitorError::Receive(error)),
            }
        }
    }

    /// Waits until there is something to read; false when the deadline passes first.
    fn readable(&self, deadline: Instant) -> Result<bool, LinkMonitorError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true), // The caller reads, finds nothing and comes back.
            Err(errno) => Err(LinkMonitorError::Receive(errno.into())),
        }
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
