//! I/O: generic netlink families (devlink, ethtool, vdpa): a family's number, requests as a command with attributes.
//!
//! What does not live here: what a command means (`devlink`, `ethtool`, `vdpa`).
//!
//! Invariant: a kernel without the family answers every question with "there is none", not with an error.

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_generic::constants::GENL_HDRLEN;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::attribute::{find, text_of, u16_of, u32_of, walk};
use super::{NetlinkError, Socket, Subject};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
/// `NLA_F_NESTED`: an attribute that holds attributes.
const NESTED: u16 = 0x8000;

/// One family, as far as the kernel has it.
#[derive(Debug)]
pub(crate) struct Family {
    socket: Socket,
    number: Option<u16>,
    version: u8,
}

/// A command with attributes.
#[derive(Clone, Debug)]
struct Request {
    command: u8,
    version: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Request {
    // Asked by nobody: the number is looked up before a request is made, and given to the message.
    fn family_name() -> &'static str {
        "generic"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        self.version
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl Family {
    /// Opens a socket in the calling thread's network namespace and looks the family up.
    pub(crate) fn open(name: &'static str, version: u8) -> Result<Self, NetlinkError> {
        let socket = Socket::open(NETLINK_GENERIC)?;
        let number = number(&socket, name)?;
        Ok(Self { socket, number, version })
    }

    /// The answers without their generic header; none when the kernel does not have the family.
    pub(crate) fn request(&self, subject: &Subject, flags: u16, command: u8, attributes: Vec<DefaultNla>) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let Some(number) = self.number else { return Ok(Vec::new()) };
        let request = message(number, Request { command, version: self.version, attributes });
        let replies = self.socket.request(subject, flags, &request)?;
        Ok(replies.into_iter().filter_map(|reply| Some(reply.payload.get(GENL_HDRLEN..)?.to_vec())).collect())
    }

    /// Changes something; a kernel without the family refuses it as unsupported.
    pub(crate) fn change(&self, subject: &Subject, command: u8, attributes: Vec<DefaultNla>) -> Result<(), NetlinkError> {
        if self.number.is_none() {
            return Err(subject.refused(rustix::io::Errno::OPNOTSUPP.raw_os_error(), Some("the kernel does not have this netlink family".to_owned())));
        }
        self.request(subject, 0, command, attributes).map(drop)
    }
}

/// The number of a family's multicast group; `None` when the kernel does not have it.
pub(crate) fn group(family: &'static str, name: &str) -> Result<Option<u32>, NetlinkError> {
    let Some(reply) = describe(&Socket::open(NETLINK_GENERIC)?, family)? else { return Ok(None) };
    let mut groups = walk(find(&reply, CTRL_ATTR_MCAST_GROUPS).unwrap_or_default()).map(|(_, group)| group);
    let wanted = groups.find(|group| find(group, CTRL_ATTR_MCAST_GRP_NAME).and_then(text_of).as_deref() == Some(name));
    Ok(wanted.and_then(|group| find(group, CTRL_ATTR_MCAST_GRP_ID)).and_then(u32_of))
}

/// The number that the kernel gave a family; `None` when it has none of this name.
fn number(socket: &Socket, name: &'static str) -> Result<Option<u16>, NetlinkError> {
    let Some(reply) = describe(socket, name)? else { return Ok(None) };
    let id = find(&reply, CTRL_ATTR_FAMILY_ID).and_then(u16_of);
    id.map(Some).ok_or_else(|| Subject::new("look up the generic netlink family", name).unreadable())
}

/// What the kernel says of a family, without the generic header.
fn describe(socket: &Socket, name: &'static str) -> Result<Option<Vec<u8>>, NetlinkError> {
    let request =
        message(GENL_ID_CTRL, Request { command: CTRL_CMD_GETFAMILY, version: CTRL_VERSION, attributes: vec![text(CTRL_ATTR_FAMILY_NAME, name)] });
    let subject = Subject::new("look up the generic netlink family", name);
    let replies = match socket.request(&subject, 0, &request) {
        Ok(replies) => replies,
        Err(error) if error.is_gone() => return Ok(None),
        Err(error) => return Err(error),
    };
    let reply = replies.first().and_then(|reply| reply.payload.get(GENL_HDRLEN..)).map(<[u8]>::to_vec);
    reply.map(Some).ok_or_else(|| subject.unreadable())
}

fn message(family: u16, request: Request) -> GenlMessage<Request> {
    GenlMessage::new(GenlHeader { cmd: request.command, version: request.version }, request, family)
}

/// A text attribute with its closing zero.
pub(crate) fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}

/// An attribute of raw bytes.
pub(crate) fn bytes(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

/// An attribute that holds attributes.
pub(crate) fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut buffer = vec![0; inner.buffer_len()];
    inner.emit(&mut buffer);
    DefaultNla::new(kind | NESTED, buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_does_not_have_has_no_number() {
        let none = Family::open("nl-none", 1).unwrap();
        let subject = Subject::new("ask", "nl-none");
        assert!(none.request(&subject, 0, 1, Vec::new()).unwrap().is_empty());
        assert!(none.change(&subject, 1, Vec::new()).unwrap_err().is_unsupported());
        assert!(Family::open("nlctrl", 2).unwrap().number.is_some());
    }
}
