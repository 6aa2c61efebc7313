//! I/O: what rtnetlink announces to everybody who listens to a group: the socket and the wait, for whatever is made of an announcement.
//!
//! What does not live here: which groups, and what an announcement means (`monitor`, `changes`).
//!
//! Invariant: only the kernel is listened to; lost announcements are said to be lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Room for a burst: an announcement takes about 1.5 KiB.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// Longer than any announcement, because VFs are not in them.
const ANNOUNCEMENT_BYTES: usize = 64 * 1024;

/// A monitor failed.
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

/// A socket that receives announcements of one network namespace.
#[derive(Debug)]
pub(super) struct Announcements {
    socket: netlink_sys::Socket,
}

impl Announcements {
    /// Listens to these groups (bits of `RTMGRP_*`) in the calling thread's network namespace, where the socket stays.
    pub(super) fn open(groups: u32) -> Result<Self, LinkMonitorError> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, groups))?;
            socket.set_non_blocking(true)?;
            socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
            Ok(Self { socket })
        };
        open().map_err(LinkMonitorError::Open)
    }

    /// What `read` makes of the next announcement of which it makes anything; `None` when the deadline passes first.
    pub(super) fn next<T>(&self, deadline: Instant, read: impl Fn(&NetlinkBuffer<&[u8]>) -> Option<T>) -> Result<Option<T>, LinkMonitorError> {
        let mut bytes = Vec::with_capacity(ANNOUNCEMENT_BYTES);
        loop {
            bytes.clear();
            match self.socket.recv_from(&mut bytes, 0) {
                // Only the kernel is port 0; it announces one thing a datagram.
                Ok((_, sender)) if sender.port_number() == 0 => {
                    if let Some(news) = NetlinkBuffer::new_checked(bytes.as_slice()).ok().and_then(|message| read(&message)) {
                        return Ok(Some(news));
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

impl AsFd for Announcements {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
