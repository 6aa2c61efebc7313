//! I/O: devlink (generic netlink): the eswitch mode of a PCI function.
//!
//! What lives here: the family's number and one query. Changing the mode does not live here.
//!
//! Invariant: a kernel without devlink, and a driver without an eswitch, are in legacy mode; only an answer says otherwise.

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_generic::constants::GENL_HDRLEN;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::attribute::{find, u16_of};
use super::{NetlinkError, Socket, Subject};
use crate::inventory::EswitchMode;
use crate::pci::PciAddress;

/// A devlink socket in the calling thread's network namespace.
#[derive(Debug)]
pub struct Devlink {
    socket: Socket,
    /// The family's number; `None` when the kernel has no devlink.
    family: Option<u16>,
}

/// A request: a command of a generic family with attributes.
#[derive(Clone, Debug)]
struct Request {
    command: u8,
    version: u8,
    attributes: Vec<DefaultNla>,
}

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const DEVLINK_VERSION: u8 = 1;
const DEVLINK_CMD_ESWITCH_GET: u8 = 29;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_ESWITCH_MODE: u16 = 25;
const DEVLINK_ESWITCH_MODE_LEGACY: u16 = 0;

impl GenlFamily for Request {
    fn family_name() -> &'static str {
        "devlink"
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

impl Devlink {
    /// Opens a socket and looks the family up.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(NETLINK_GENERIC)?;
        let family = family(&socket)?;
        Ok(Self { socket, family })
    }

    /// The eswitch mode of a PCI function (`devlink dev eswitch show pci/ADDRESS`). `switchdev_inactive` of newer kernels is switchdev.
    pub fn eswitch_mode(&self, address: PciAddress) -> Result<EswitchMode, NetlinkError> {
        let Some(family) = self.family else { return Ok(EswitchMode::Legacy) };
        let attributes = vec![text(DEVLINK_ATTR_BUS_NAME, "pci"), text(DEVLINK_ATTR_DEV_NAME, &address.to_string())];
        let request = message(family, Request { command: DEVLINK_CMD_ESWITCH_GET, version: DEVLINK_VERSION, attributes });
        let subject = Subject::new("read the eswitch mode", format!("pci/{address}"));
        let replies = match self.socket.request(&subject, 0, &request) {
            Ok(replies) => replies,
            // No devlink device, or a driver without eswitch.
            Err(error) if error.is_gone() || error.is_unsupported() => return Ok(EswitchMode::Legacy),
            Err(error) => return Err(error),
        };
        let mode = replies
            .first()
            .and_then(|reply| reply.payload.get(GENL_HDRLEN..))
            .and_then(|bytes| find(bytes, DEVLINK_ATTR_ESWITCH_MODE))
            .and_then(u16_of);
        Ok(match mode {
            None | Some(DEVLINK_ESWITCH_MODE_LEGACY) => EswitchMode::Legacy,
            Some(_) => EswitchMode::Switchdev,
        })
    }
}

/// The number that the kernel gave the devlink family.
fn family(socket: &Socket) -> Result<Option<u16>, NetlinkError> {
    let attributes = vec![text(CTRL_ATTR_FAMILY_NAME, Request::family_name())];
    let request = message(GENL_ID_CTRL, Request { command: CTRL_CMD_GETFAMILY, version: CTRL_VERSION, attributes });
    let subject = Subject::new("look up the generic netlink family", Request::family_name());
    let replies = match socket.request(&subject, 0, &request) {
        Ok(replies) => replies,
        Err(error) if error.is_gone() => return Ok(None),
        Err(error) => return Err(error),
    };
    let id = replies.first().and_then(|reply| reply.payload.get(GENL_HDRLEN..)).and_then(|bytes| find(bytes, CTRL_ATTR_FAMILY_ID)).and_then(u16_of);
    id.map(Some).ok_or_else(|| subject.unreadable())
}

fn message(family: u16, request: Request) -> GenlMessage<Request> {
    GenlMessage::new(GenlHeader { cmd: request.command, version: request.version }, request, family)
}

fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_without_devlink_is_in_legacy_mode() {
        let devlink = Devlink::open().unwrap();
        // Bus ff of the last domain: no machine has it.
        assert_eq!(devlink.eswitch_mode("ffff:ff:1f.7".parse().unwrap()).unwrap(), EswitchMode::Legacy);
    }

    #[test]
    fn the_controller_family_answers_for_names_that_it_does_not_know() {
        let socket = Socket::open(NETLINK_GENERIC).unwrap();
        let request = message(
            GENL_ID_CTRL,
            Request { command: CTRL_CMD_GETFAMILY, version: CTRL_VERSION, attributes: vec![text(CTRL_ATTR_FAMILY_NAME, "nl-none")] },
        );
        let error = socket.request(&Subject::new("look up", "nl-none"), 0, &request).err().unwrap();
        assert!(error.is_gone(), "{error}");
    }
}
