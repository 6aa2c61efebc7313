//! I/O: vDPA devices (generic netlink): making one on a device that can carry it, and removing it.
//!
//! What does not live here: which driver of the vDPA bus it gets (`crate::vdpa`), when to make one (the planner decides).
//!
//! Invariant: a kernel without vDPA refuses to make a device as unsupported; a device that is not there is removed already.

use netlink_packet_core::DefaultNla;

use super::attribute::{find, text_of};
use super::generic::{Family, bytes, text};
use super::{NetlinkError, Subject};
use crate::pci::PciAddress;

// include/uapi/linux/vdpa.h, v6.12
const VDPA_VERSION: u8 = 1;
const VDPA_CMD_DEV_NEW: u8 = 3;
const VDPA_CMD_DEV_DEL: u8 = 4;
const VDPA_CMD_DEV_GET: u8 = 5;
const VDPA_ATTR_MGMTDEV_BUS_NAME: u16 = 1;
const VDPA_ATTR_MGMTDEV_DEV_NAME: u16 = 2;
const VDPA_ATTR_DEV_NAME: u16 = 4;
const VDPA_ATTR_DEV_NET_CFG_MAX_VQP: u16 = 12;

/// Pairs of virtqueues that a device is made with where its driver lets one choose: what the Go operator gives.
const QUEUE_PAIRS: u16 = 32;

/// What carries a vDPA device: `pci/0000:65:00.2`, or `vdpasim_net`, which is on no bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The bus; `None` for a device on none.
    pub bus: Option<String>,
    /// The device's name on it.
    pub name: String,
}

impl From<PciAddress> for Carrier {
    fn from(address: PciAddress) -> Self {
        Self { bus: Some("pci".to_owned()), name: address.to_string() }
    }
}

impl Carrier {
    fn attributes(&self) -> Vec<DefaultNla> {
        let bus = self.bus.as_ref().map(|bus| text(VDPA_ATTR_MGMTDEV_BUS_NAME, bus));
        bus.into_iter().chain([text(VDPA_ATTR_MGMTDEV_DEV_NAME, &self.name)]).collect()
    }

    fn label(&self) -> String {
        self.bus.as_ref().map_or_else(|| self.name.clone(), |bus| format!("{bus}/{}", self.name))
    }
}

/// A vDPA socket.
#[derive(Debug)]
pub struct VdpaBus {
    family: Family,
}

impl VdpaBus {
    /// Opens a socket and looks the family up.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { family: Family::open("vdpa", VDPA_VERSION)? })
    }

    /// Makes a device (`vdpa dev add name NAME mgmtdev CARRIER max_vqp 32`), without the last where the carrier does not offer it. `ENODEV` while
    /// the carrier's vDPA driver is not there, `EEXIST` when the name is taken.
    pub fn add(&self, carrier: &Carrier, name: &str) -> Result<(), NetlinkError> {
        let subject = Subject::new("add the vDPA device", format!("{name} on {}", carrier.label()));
        match self.family.change(&subject, VDPA_CMD_DEV_NEW, add_attributes(carrier, name, Some(QUEUE_PAIRS))) {
            Err(error) if error.is_unsupported() => self.family.change(&subject, VDPA_CMD_DEV_NEW, add_attributes(carrier, name, None)),
            result => result,
        }
    }

    /// Removes a device (`vdpa dev del NAME`).
    pub fn remove(&self, name: &str) -> Result<(), NetlinkError> {
        let subject = Subject::new("remove the vDPA device", name);
        match self.family.change(&subject, VDPA_CMD_DEV_DEL, vec![text(VDPA_ATTR_DEV_NAME, name)]) {
            Err(error) if error.is_gone() => Ok(()),
            result => result,
        }
    }

    /// Whether there is a device of this name (`vdpa dev show NAME`).
    pub fn has(&self, name: &str) -> Result<bool, NetlinkError> {
        match self.family.request(&Subject::new("look for the vDPA device", name), 0, VDPA_CMD_DEV_GET, vec![text(VDPA_ATTR_DEV_NAME, name)]) {
            Ok(replies) => Ok(replies.first().and_then(|reply| find(reply, VDPA_ATTR_DEV_NAME)).and_then(text_of).as_deref() == Some(name)),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn add_attributes(carrier: &Carrier, name: &str, queue_pairs: Option<u16>) -> Vec<DefaultNla> {
    let mut attributes = carrier.attributes();
    attributes.push(text(VDPA_ATTR_DEV_NAME, name));
    attributes.extend(queue_pairs.map(|pairs| bytes(VDPA_ATTR_DEV_NET_CFG_MAX_VQP, &pairs.to_ne_bytes())));
    attributes
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut buffer = vec![0; attributes.buffer_len()];
        attributes.emit(&mut buffer);
        buffer
    }

    #[test]
    fn a_device_is_asked_for_as_the_kernel_reads_it() {
        let carrier = Carrier::from("0000:65:00.2".parse::<PciAddress>().unwrap());
        let asked = emitted(&add_attributes(&carrier, "vdpa:0000:65:00.2", Some(32)));
        let is = |kind: u16| find(&asked, kind).map(<[u8]>::to_vec);
        assert_eq!(is(1).as_deref(), Some(b"pci\0".as_slice()), "bus");
        assert_eq!(is(2).as_deref(), Some(b"0000:65:00.2\0".as_slice()), "carrier");
        assert_eq!(is(4).as_deref(), Some(b"vdpa:0000:65:00.2\0".as_slice()), "name");
        assert_eq!(is(12), Some(32u16.to_ne_bytes().to_vec()), "pairs of queues");
        let simulator = Carrier { bus: None, name: "vdpasim_net".to_owned() };
        let asked = emitted(&add_attributes(&simulator, "vdpa0", None));
        assert_eq!((find(&asked, 1), find(&asked, 12)), (None, None));
        assert_eq!((carrier.label().as_str(), simulator.label().as_str()), ("pci/0000:65:00.2", "vdpasim_net"));
    }
}
