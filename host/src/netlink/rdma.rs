//! I/O: the RDMA subsystem (`NETLINK_RDMA`): whether RDMA devices belong to one network namespace or are shared by all.
//!
//! Invariant: a kernel without the RDMA core has no mode; only an answer says which there is.

use netlink_packet_core::{DefaultNla, Emitable, NetlinkSerializable};
use rustix::io::Errno;

use super::attribute::{find, u8_of};
use super::generic::bytes;
use super::{NetlinkError, Socket, Subject};
use crate::inventory::RdmaMode;

/// An RDMA socket.
#[derive(Debug)]
pub struct Rdma {
    /// `None` when the kernel has no such netlink protocol.
    socket: Option<Socket>,
}

/// `NETLINK_RDMA`, include/uapi/linux/netlink.h.
const NETLINK_RDMA: isize = 20;
// include/uapi/rdma/rdma_netlink.h, v6.12
const RDMA_NL_NLDEV: u16 = 5;
const RDMA_NLDEV_CMD_SYS_GET: u16 = 6;
const RDMA_NLDEV_CMD_SYS_SET: u16 = 7;
const RDMA_NLDEV_SYS_ATTR_NETNS_MODE: u16 = 66;

/// A message of the RDMA protocol: its type holds client and command, its body is attributes alone.
#[derive(Clone, Debug)]
struct Message {
    command: u16,
    attributes: Vec<DefaultNla>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        (RDMA_NL_NLDEV << 10) | self.command
    }

    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl Rdma {
    /// Opens the socket in the calling thread's network namespace. Modes can be set in the first namespace alone.
    pub fn open() -> Result<Self, NetlinkError> {
        match Socket::open(NETLINK_RDMA) {
            Ok(socket) => Ok(Self { socket: Some(socket) }),
            Err(error) if error.is_unsupported() => Ok(Self { socket: None }),
            Err(error) => Err(error),
        }
    }

    /// The mode (`rdma system show`); `None` without the RDMA core.
    pub fn mode(&self) -> Result<Option<RdmaMode>, NetlinkError> {
        let Some(socket) = &self.socket else { return Ok(None) };
        let subject = Subject::new("read the namespace mode of RDMA devices", "the machine");
        let replies = match socket.request(&subject, 0, &Message { command: RDMA_NLDEV_CMD_SYS_GET, attributes: Vec::new() }) {
            Ok(replies) => replies,
            // The protocol is there, its client is not (yet): ib_core is not loaded. Kernels answer with EINVAL.
            Err(error) if error.is_gone() || error.is_unsupported() || error.is(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mode = replies.first().and_then(|reply| find(&reply.payload, RDMA_NLDEV_SYS_ATTR_NETNS_MODE)).and_then(u8_of);
        Ok(mode.map(|mode| if mode == 0 { RdmaMode::Exclusive } else { RdmaMode::Shared }))
    }

    /// Sets the mode (`rdma system set netns MODE`); `EBUSY` while there is any network namespace besides the first.
    pub fn set_mode(&self, mode: RdmaMode) -> Result<(), NetlinkError> {
        let subject = Subject::new("set the namespace mode of RDMA devices", mode.as_str());
        let Some(socket) = &self.socket else { return Err(subject.refused(Errno::OPNOTSUPP.raw_os_error(), None)) };
        let value = u8::from(mode == RdmaMode::Shared);
        let attributes = vec![bytes(RDMA_NLDEV_SYS_ATTR_NETNS_MODE, &[value])];
        socket.change(&subject, 0, &Message { command: RDMA_NLDEV_CMD_SYS_SET, attributes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_addressed_to_the_device_client() {
        let message = Message { command: RDMA_NLDEV_CMD_SYS_SET, attributes: vec![bytes(RDMA_NLDEV_SYS_ATTR_NETNS_MODE, &[1])] };
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        assert_eq!(message.message_type(), 0x1407);
        assert_eq!(buffer, [5, 0, 66, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_machine_without_rdma_has_no_mode() {
        // Either answer is right for the machine that runs the test; an error is not.
        Rdma::open().unwrap().mode().unwrap();
    }
}
