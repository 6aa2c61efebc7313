//! I/O: devlink (generic netlink): the eswitch mode of a device, the firmware's version, health reporters.
//!
//! What does not live here: parameters and reloads (`params`), when to change a mode (the planner decides).
//!
//! Invariant: a kernel without devlink, and a driver without an eswitch, are in legacy mode; only an answer says otherwise.

mod params;

use netlink_packet_core::{DefaultNla, NLM_F_DUMP};
pub use params::{ConfigMode, Param, ParamError, ParamValue, ReloadAction};

use super::attribute::{find, text_of, u8_of, u16_of, walk};
use super::generic::{Family, bytes, text};
use super::{NetlinkError, Subject};
use crate::inventory::EswitchMode;
use crate::pci::PciAddress;

/// A devlink socket in the calling thread's network namespace.
#[derive(Debug)]
pub struct Devlink {
    family: Family,
}

/// A device as devlink names it: `pci/0000:3b:00.0`, `netdevsim/netdevsim10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The bus.
    pub bus: String,
    /// The device's name on it.
    pub name: String,
}

// include/uapi/linux/devlink.h, v6.12
const DEVLINK_VERSION: u8 = 1;
const DEVLINK_CMD_ESWITCH_GET: u8 = 29;
const DEVLINK_CMD_ESWITCH_SET: u8 = 30;
const DEVLINK_CMD_INFO_GET: u8 = 51;
const DEVLINK_CMD_HEALTH_REPORTER_GET: u8 = 52;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_ESWITCH_MODE: u16 = 25;
const DEVLINK_ATTR_PARAM_NAME: u16 = 81;
const DEVLINK_ATTR_INFO_VERSION_RUNNING: u16 = 101;
const DEVLINK_ATTR_INFO_VERSION_NAME: u16 = 103;
const DEVLINK_ATTR_INFO_VERSION_VALUE: u16 = 104;
const DEVLINK_ATTR_HEALTH_REPORTER: u16 = 114;
const DEVLINK_ATTR_HEALTH_REPORTER_NAME: u16 = 115;
const DEVLINK_ATTR_HEALTH_REPORTER_STATE: u16 = 116;
/// `DEVLINK_HEALTH_REPORTER_STATE_ERROR`.
const REPORTER_ERROR: u8 = 1;
/// The multicast group of all changes of devlink devices.
const DEVLINK_GROUP: &str = "config";
const ANNOUNCEMENT_BYTES: usize = 32 * 1024;
const DEVLINK_ESWITCH_MODE_LEGACY: u16 = 0;
const DEVLINK_ESWITCH_MODE_SWITCHDEV: u16 = 1;

/// Names under which drivers tell the version of the whole firmware, in order of preference (Documentation/networking/devlink/devlink-info.rst, v6.12).
const FIRMWARE_NAMES: [&str; 4] = ["fw", "fw.version", "fw.mgmt", "fw.bundle_id"];

impl From<PciAddress> for Device {
    fn from(address: PciAddress) -> Self {
        Self { bus: "pci".to_owned(), name: address.to_string() }
    }
}

impl Device {
    fn attributes(&self) -> Vec<DefaultNla> {
        vec![text(DEVLINK_ATTR_BUS_NAME, &self.bus), text(DEVLINK_ATTR_DEV_NAME, &self.name)]
    }

    fn subject(&self, operation: &'static str, what: &str) -> Subject {
        Subject::new(operation, format!("{}/{}{what}", self.bus, self.name))
    }
}

impl Devlink {
    /// Opens a socket and looks the family up.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { family: Family::open("devlink", DEVLINK_VERSION)? })
    }

    /// The eswitch mode of a PCI function (`devlink dev eswitch show pci/ADDRESS`). `switchdev_inactive` of newer kernels is switchdev.
    pub fn eswitch_mode(&self, address: PciAddress) -> Result<EswitchMode, NetlinkError> {
        self.eswitch_mode_of(&address.into())
    }

    /// As [`Devlink::eswitch_mode`], of any device.
    pub fn eswitch_mode_of(&self, device: &Device) -> Result<EswitchMode, NetlinkError> {
        let replies = match self.family.request(&device.subject("read the eswitch mode", ""), 0, DEVLINK_CMD_ESWITCH_GET, device.attributes()) {
            Ok(replies) => replies,
            // No devlink device, or a driver without eswitch.
            Err(error) if error.is_gone() || error.is_unsupported() => return Ok(EswitchMode::Legacy),
            Err(error) => return Err(error),
        };
        let mode = replies.first().and_then(|reply| find(reply, DEVLINK_ATTR_ESWITCH_MODE)).and_then(u16_of);
        Ok(match mode {
            None | Some(DEVLINK_ESWITCH_MODE_LEGACY) => EswitchMode::Legacy,
            Some(_) => EswitchMode::Switchdev,
        })
    }

    /// Sets the eswitch mode (`devlink dev eswitch set DEVICE mode MODE`), unless it is set already.
    pub fn set_eswitch_mode(&self, device: &Device, mode: EswitchMode) -> Result<(), NetlinkError> {
        if self.eswitch_mode_of(device)? == mode {
            return Ok(());
        }
        let (number, word) = match mode {
            EswitchMode::Legacy => (DEVLINK_ESWITCH_MODE_LEGACY, "legacy"),
            EswitchMode::Switchdev => (DEVLINK_ESWITCH_MODE_SWITCHDEV, "switchdev"),
        };
        let mut attributes = device.attributes();
        attributes.push(bytes(DEVLINK_ATTR_ESWITCH_MODE, &number.to_ne_bytes()));
        self.family.change(&device.subject("set the eswitch mode", &format!(": {word}")), DEVLINK_CMD_ESWITCH_SET, attributes)
    }

    /// A version that runs on a device (`devlink dev info DEVICE`), by its name: `fw.app.name` is the DDP profile of Intel's NICs. `None` when the
    /// driver does not tell it.
    pub fn running_version(&self, device: &Device, name: &str) -> Result<Option<String>, NetlinkError> {
        let replies = self.ask(device, "read the versions", 0, DEVLINK_CMD_INFO_GET)?;
        Ok(replies.first().and_then(|reply| version_of(reply, name)))
    }

    /// The first health reporter of a device that is in the error state (`devlink health show DEVICE`).
    pub fn faulty_reporter(&self, device: &Device) -> Result<Option<String>, NetlinkError> {
        let replies = self.ask(device, "read the health reporters", NLM_F_DUMP, DEVLINK_CMD_HEALTH_REPORTER_GET)?;
        Ok(replies.iter().find_map(|reply| faulty_reporter_of(reply, device)))
    }

    /// The answers about one device; none when the driver does not answer this.
    fn ask(&self, device: &Device, operation: &'static str, flags: u16, command: u8) -> Result<Vec<Vec<u8>>, NetlinkError> {
        match self.family.request(&device.subject(operation, ""), flags, command, device.attributes()) {
            Err(error) if error.is_gone() || error.is_unsupported() => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// The firmware's version as the driver tells it (`devlink dev info DEVICE`); `None` where it does not.
    pub fn firmware(&self, device: &Device) -> Result<Option<String>, NetlinkError> {
        match self.family.request(&device.subject("read the firmware's version", ""), 0, DEVLINK_CMD_INFO_GET, device.attributes()) {
            Ok(replies) => Ok(replies.first().and_then(|reply| firmware_of(reply))),
            Err(error) if error.is_gone() || error.is_unsupported() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The reporter of this message, if it is the device's and in the error state. Kernels before 6.4 list the reporters of all devices.
fn faulty_reporter_of(reply: &[u8], device: &Device) -> Option<String> {
    let is = |kind, name: &str| find(reply, kind).and_then(text_of).as_deref() == Some(name);
    let reporter = find(reply, DEVLINK_ATTR_HEALTH_REPORTER)?;
    let faulty = find(reporter, DEVLINK_ATTR_HEALTH_REPORTER_STATE).and_then(u8_of) == Some(REPORTER_ERROR);
    let own = is(DEVLINK_ATTR_BUS_NAME, &device.bus) && is(DEVLINK_ATTR_DEV_NAME, &device.name);
    find(reporter, DEVLINK_ATTR_HEALTH_REPORTER_NAME).and_then(text_of).filter(|_| faulty && own)
}

fn version_of(reply: &[u8], wanted: &str) -> Option<String> {
    let mut running = walk(reply).filter(|(kind, _)| *kind == DEVLINK_ATTR_INFO_VERSION_RUNNING).map(|(_, version)| version);
    let version = running.find(|version| find(version, DEVLINK_ATTR_INFO_VERSION_NAME).and_then(text_of).as_deref() == Some(wanted))?;
    find(version, DEVLINK_ATTR_INFO_VERSION_VALUE).and_then(text_of)
}

/// Hears that something of a devlink device changed.
#[derive(Debug)]
pub struct DevlinkMonitor {
    socket: netlink_sys::Socket,
}

impl DevlinkMonitor {
    /// Opens it in the calling thread's network namespace, where the socket stays.
    pub fn open() -> Result<Self, NetlinkError> {
        let subject = Subject::new("listen to devlink", DEVLINK_GROUP);
        let group = super::generic::group("devlink", DEVLINK_GROUP)?.ok_or_else(|| subject.unreadable())?;
        let open = || {
            let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            socket.add_membership(group)?;
            Ok(Self { socket })
        };
        open().map_err(|error: std::io::Error| subject.failed(&error))
    }

    /// Forgets all that was announced; whether anything was, or may have been.
    pub fn drain(&self) -> bool {
        let mut any = false;
        let mut bytes = Vec::with_capacity(ANNOUNCEMENT_BYTES);
        loop {
            bytes.clear();
            match self.socket.recv_from(&mut bytes, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Too many at once: the kernel says so once, and goes on.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => any = true,
                Err(_) => return true,
            }
        }
    }
}

impl std::os::fd::AsFd for DevlinkMonitor {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn firmware_of(reply: &[u8]) -> Option<String> {
    FIRMWARE_NAMES.iter().find_map(|name| version_of(reply, name))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::super::generic::nested;
    use super::*;

    fn nowhere() -> Device {
        // Bus ff of the last domain: no machine has it.
        "ffff:ff:1f.7".parse::<PciAddress>().unwrap().into()
    }

    fn reply(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut buffer = vec![0; attributes.buffer_len()];
        attributes.emit(&mut buffer);
        buffer
    }

    #[test]
    fn a_function_without_devlink_is_in_legacy_mode_and_tells_no_version() {
        let devlink = Devlink::open().unwrap();
        assert_eq!(devlink.eswitch_mode_of(&nowhere()).unwrap(), EswitchMode::Legacy);
        assert_eq!(devlink.firmware(&nowhere()).unwrap(), None);
        devlink.set_eswitch_mode(&nowhere(), EswitchMode::Legacy).unwrap();
        assert!(devlink.set_eswitch_mode(&nowhere(), EswitchMode::Switchdev).is_err(), "only legacy can be had without an eswitch");
    }

    #[test]
    fn only_a_reporter_of_the_device_that_is_in_error_is_told() {
        let message = |device: &Device, state: u8| {
            let reporter = nested(
                DEVLINK_ATTR_HEALTH_REPORTER,
                &[text(DEVLINK_ATTR_HEALTH_REPORTER_NAME, "fw"), bytes(DEVLINK_ATTR_HEALTH_REPORTER_STATE, &[state])],
            );
            reply(&[device.attributes(), vec![reporter]].concat())
        };
        let other = Device { bus: "pci".to_owned(), name: "0000:01:00.0".to_owned() };
        assert_eq!(faulty_reporter_of(&message(&nowhere(), 1), &nowhere()).as_deref(), Some("fw"));
        assert_eq!(faulty_reporter_of(&message(&nowhere(), 0), &nowhere()), None);
        assert_eq!(faulty_reporter_of(&message(&other, 1), &nowhere()), None);
        let devlink = Devlink::open().unwrap();
        assert_eq!((devlink.faulty_reporter(&nowhere()).unwrap(), devlink.running_version(&nowhere(), "fw.app.name").unwrap()), (None, None));
    }

    #[test]
    fn the_firmware_is_the_running_one_of_the_most_general_name() {
        let version =
            |kind, name: &str, value: &str| nested(kind, &[text(DEVLINK_ATTR_INFO_VERSION_NAME, name), text(DEVLINK_ATTR_INFO_VERSION_VALUE, value)]);
        let stored = version(DEVLINK_ATTR_INFO_VERSION_RUNNING + 1, "fw", "9.9");
        let told =
            [version(DEVLINK_ATTR_INFO_VERSION_RUNNING, "fw.mgmt", "7.3"), stored, version(DEVLINK_ATTR_INFO_VERSION_RUNNING, "fw.version", "22.41")];
        assert_eq!(firmware_of(&reply(&told)).as_deref(), Some("22.41"));
    }
}
