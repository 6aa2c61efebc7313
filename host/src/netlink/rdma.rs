//! I/O: the RDMA subsystem (`NETLINK_RDMA`): whether RDMA devices belong to one network namespace or are shared by all, which there are, and moving
//! one to another namespace.
//!
//! Invariant: a kernel without the RDMA core has no mode and no devices; only an answer says which there are.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_DUMP, NetlinkSerializable};
use rustix::io::Errno;

use super::attribute::{find, text_of, u8_of, u32_of};
use super::generic::{bytes, text};
use super::{NetlinkError, Socket, Subject};
use crate::inventory::RdmaMode;
use crate::netns::NetNs;

use super::route::OpenRouteError;

/// An RDMA device as the RDMA core knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaDevice {
    /// Its number, the same in all namespaces as long as its driver has it registered.
    pub index: u32,
    /// Its name (`mlx5_7`).
    pub name: String,
}

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
const RDMA_NLDEV_CMD_GET: u16 = 1;
const RDMA_NLDEV_CMD_SET: u16 = 2;
const RDMA_NLDEV_ATTR_DEV_INDEX: u16 = 1;
const RDMA_NLDEV_ATTR_DEV_NAME: u16 = 2;
const RDMA_NLDEV_NET_NS_FD: u16 = 68;
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

    /// Opens the socket inside `netns`, where it stays.
    pub fn open_in(netns: &NetNs) -> Result<Self, OpenRouteError> {
        Ok(netns.run_in(Self::open)??)
    }

    /// The devices of the namespace (`rdma dev show`): all of the machine in shared mode, its own in exclusive mode. None without the RDMA core.
    pub fn devices(&self) -> Result<Vec<RdmaDevice>, NetlinkError> {
        let Some(socket) = &self.socket else { return Ok(Vec::new()) };
        let subject = Subject::new("list RDMA devices", "the namespace");
        match socket.request(&subject, NLM_F_DUMP, &Message { command: RDMA_NLDEV_CMD_GET, attributes: Vec::new() }) {
            Ok(replies) => Ok(replies.iter().filter_map(|reply| device(&reply.payload)).collect()),
            // As in `mode`: the core is not loaded.
            Err(error) if error.is_gone() || error.is_unsupported() || error.is(Errno::INVAL) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Moves a device of this socket's namespace to another (`rdma dev set NAME netns NS`). `EOPNOTSUPP` in shared mode and for drivers that can't
    /// take a device away from programs that have it open.
    pub fn move_device(&self, device: &RdmaDevice, netns: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let subject = Subject::new("move the RDMA device to another namespace", device.name.clone());
        self.set(&subject, &move_message(device.index, netns.as_raw_fd()))
    }

    /// Renames a device of this socket's namespace (`rdma dev set NAME name NEW`).
    pub fn rename_device(&self, device: &RdmaDevice, name: &str) -> Result<(), NetlinkError> {
        let subject = Subject::new("rename the RDMA device", format!("{} to {name}", device.name));
        let attributes = vec![bytes(RDMA_NLDEV_ATTR_DEV_INDEX, &device.index.to_ne_bytes()), text(RDMA_NLDEV_ATTR_DEV_NAME, name)];
        self.set(&subject, &Message { command: RDMA_NLDEV_CMD_SET, attributes })
    }

    fn set(&self, subject: &Subject, message: &Message) -> Result<(), NetlinkError> {
        let Some(socket) = &self.socket else { return Err(subject.refused(Errno::OPNOTSUPP.raw_os_error(), None)) };
        socket.change(subject, 0, message)
    }

    /// Sets the mode (`rdma system set netns MODE`); `EBUSY` while there is any network namespace besides the first.
    pub fn set_mode(&self, mode: RdmaMode) -> Result<(), NetlinkError> {
        let subject = Subject::new("set the namespace mode of RDMA devices", mode.as_str());
        let value = u8::from(mode == RdmaMode::Shared);
        let attributes = vec![bytes(RDMA_NLDEV_SYS_ATTR_NETNS_MODE, &[value])];
        self.set(&subject, &Message { command: RDMA_NLDEV_CMD_SYS_SET, attributes })
    }
}

fn move_message(index: u32, netns: i32) -> Message {
    let attributes = vec![bytes(RDMA_NLDEV_ATTR_DEV_INDEX, &index.to_ne_bytes()), bytes(RDMA_NLDEV_NET_NS_FD, &netns.to_ne_bytes())];
    Message { command: RDMA_NLDEV_CMD_SET, attributes }
}

/// A device from an answer to `RDMA_NLDEV_CMD_GET`.
fn device(payload: &[u8]) -> Option<RdmaDevice> {
    let index = find(payload, RDMA_NLDEV_ATTR_DEV_INDEX).and_then(u32_of)?;
    Some(RdmaDevice { index, name: find(payload, RDMA_NLDEV_ATTR_DEV_NAME).and_then(text_of)? })
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

    /// Laid out after `rdma_netlink.h`.
    #[test]
    fn a_move_names_the_device_by_number_and_the_namespace_by_descriptor() {
        let message = move_message(7, 5);
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        assert_eq!(message.message_type(), 0x1402);
        assert_eq!(buffer, [8, 0, 1, 0, 7, 0, 0, 0, 8, 0, 68, 0, 5, 0, 0, 0]);
    }

    #[test]
    fn a_device_is_read_by_its_attributes_and_half_an_answer_is_none() {
        let answer = [8, 0, 1, 0, 7, 0, 0, 0, 11, 0, 2, 0, b'm', b'l', b'x', b'5', b'_', b'7', 0, 0];
        assert_eq!(device(&answer), Some(RdmaDevice { index: 7, name: "mlx5_7".to_owned() }));
        assert_eq!(device(&answer[..8]), None);
        assert_eq!(device(&answer[8..]), None);
    }

    #[test]
    fn a_machine_without_rdma_has_no_mode() {
        // Either answer is right for the machine that runs the test; an error is not.
        let rdma = Rdma::open().unwrap();
        if rdma.mode().unwrap().is_none() {
            assert_eq!(rdma.devices().unwrap(), []);
        }
    }
}
