//! I/O: parameters of a devlink device, each with its value now, at the driver's next start and in the device's own memory; and the reload that
//! makes driver or firmware take them.
//!
//! What lives here: reading and setting one parameter, the reload. What does not: which parameter should have which value (the planner decides).
//!
//! Invariant: a parameter is set with the type that the kernel said it has, and only in a mode that it has, so that what the kernel would answer with
//! a bare EINVAL is told in words.

use std::collections::BTreeMap;
use std::fmt;

use netlink_packet_core::DefaultNla;
use rustix::io::Errno;

use super::{DEVLINK_ATTR_PARAM_NAME, Device, Devlink};
use crate::inventory::FirmwareSettings;
use crate::netlink::NetlinkError;
use crate::netlink::attribute::{find, text_of, u8_of, u16_of, u32_of, walk};
use crate::netlink::generic::{bytes, text};

// include/uapi/linux/devlink.h, v6.12
const DEVLINK_CMD_RELOAD: u8 = 37;
const DEVLINK_CMD_PARAM_GET: u8 = 38;
const DEVLINK_CMD_PARAM_SET: u8 = 39;
const DEVLINK_ATTR_PARAM: u16 = 80;
const DEVLINK_ATTR_PARAM_GENERIC: u16 = 82;
const DEVLINK_ATTR_PARAM_TYPE: u16 = 83;
const DEVLINK_ATTR_PARAM_VALUES_LIST: u16 = 84;
const DEVLINK_ATTR_PARAM_VALUE: u16 = 85;
const DEVLINK_ATTR_PARAM_VALUE_DATA: u16 = 86;
const DEVLINK_ATTR_PARAM_VALUE_CMODE: u16 = 87;
const DEVLINK_ATTR_RELOAD_ACTION: u16 = 153;
const DEVLINK_ATTR_RELOAD_ACTIONS_PERFORMED: u16 = 154;
// Types of parameters are those of netlink attributes (`NLA_*` of include/net/netlink.h).
const NLA_U8: u8 = 1;
const NLA_U16: u8 = 2;
const NLA_U32: u8 = 3;
const NLA_U64: u8 = 4;
const NLA_STRING: u8 = 5;
const NLA_FLAG: u8 = 6;

/// The generic parameter "the PF shows the SR-IOV capability" (Documentation/networking/devlink/devlink-params.rst).
const ENABLE_SRIOV: &str = "enable_sriov";
/// The generic parameter "the most VFs, as `sriov_totalvfs` will say after a reboot" (same page, since 6.18).
const TOTAL_VFS: &str = "total_vfs";

/// When a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigMode {
    /// At once.
    Runtime,
    /// When the driver starts anew ([`ReloadAction::DriverReinit`]).
    DriverInit,
    /// When the device starts anew: it is in the device's own memory.
    Permanent,
}

impl ConfigMode {
    const ALL: [Self; 3] = [Self::Runtime, Self::DriverInit, Self::Permanent];

    /// `DEVLINK_PARAM_CMODE_*`.
    fn number(self) -> u8 {
        match self {
            Self::Runtime => 0,
            Self::DriverInit => 1,
            Self::Permanent => 2,
        }
    }
}

impl fmt::Display for ConfigMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "runtime",
            Self::DriverInit => "driverinit",
            Self::Permanent => "permanent",
        })
    }
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValue {
    /// A switch.
    Bool(bool),
    /// A number of one byte.
    U8(u8),
    /// A number of two bytes.
    U16(u16),
    /// A number of four bytes.
    U32(u32),
    /// A number of eight bytes.
    U64(u64),
    /// A text.
    Text(String),
}

impl ParamValue {
    fn kind(&self) -> u8 {
        match self {
            Self::Bool(_) => NLA_FLAG,
            Self::U8(_) => NLA_U8,
            Self::U16(_) => NLA_U16,
            Self::U32(_) => NLA_U32,
            Self::U64(_) => NLA_U64,
            Self::Text(_) => NLA_STRING,
        }
    }

    /// `None` for a type that this program does not know, and where the data is missing.
    fn read(kind: u8, data: Option<&[u8]>) -> Option<Self> {
        match kind {
            // A flag is its attribute: there or not.
            NLA_FLAG => Some(Self::Bool(data.is_some())),
            NLA_U8 => u8_of(data?).map(Self::U8),
            NLA_U16 => u16_of(data?).map(Self::U16),
            NLA_U32 => u32_of(data?).map(Self::U32),
            NLA_U64 => data?.first_chunk().copied().map(u64::from_ne_bytes).map(Self::U64),
            NLA_STRING => text_of(data?).map(Self::Text),
            _ => None,
        }
    }

    fn data(&self) -> Option<DefaultNla> {
        let data = |value: &[u8]| Some(bytes(DEVLINK_ATTR_PARAM_VALUE_DATA, value));
        match self {
            Self::Bool(false) => None,
            Self::Bool(true) => data(&[]),
            Self::U8(value) => data(&value.to_ne_bytes()),
            Self::U16(value) => data(&value.to_ne_bytes()),
            Self::U32(value) => data(&value.to_ne_bytes()),
            Self::U64(value) => data(&value.to_ne_bytes()),
            Self::Text(value) => Some(text(DEVLINK_ATTR_PARAM_VALUE_DATA, value)),
        }
    }
}

impl fmt::Display for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::U8(value) => value.fmt(f),
            Self::U16(value) => value.fmt(f),
            Self::U32(value) => value.fmt(f),
            Self::U64(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// A parameter as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Whether its name and meaning are the same for all drivers.
    pub generic: bool,
    /// Its values, in the modes that it has.
    pub values: BTreeMap<ConfigMode, ParamValue>,
}

impl Param {
    fn read(reply: &[u8]) -> Option<Self> {
        let param = find(reply, DEVLINK_ATTR_PARAM)?;
        let kind = find(param, DEVLINK_ATTR_PARAM_TYPE).and_then(u8_of)?;
        let values = walk(find(param, DEVLINK_ATTR_PARAM_VALUES_LIST)?).filter(|(nested, _)| *nested == DEVLINK_ATTR_PARAM_VALUE);
        let read = |value: &[u8]| {
            let number = find(value, DEVLINK_ATTR_PARAM_VALUE_CMODE).and_then(u8_of)?;
            let mode = ConfigMode::ALL.into_iter().find(|mode| mode.number() == number)?;
            Some((mode, ParamValue::read(kind, find(value, DEVLINK_ATTR_PARAM_VALUE_DATA))?))
        };
        Some(Self { generic: find(param, DEVLINK_ATTR_PARAM_GENERIC).is_some(), values: values.filter_map(|(_, value)| read(value)).collect() })
    }
}

/// Why a parameter was not set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// Driver or kernel has no parameter of this name.
    #[error("cannot set devlink parameter {name} of {device}: its driver has no such parameter in this kernel")]
    MissingParam {
        /// The device.
        device: String,
        /// The parameter.
        name: String,
    },
    /// The parameter cannot be set so.
    #[error("cannot set devlink parameter {name} of {device} to {value} ({mode}): it has {has}")]
    MissingMode {
        /// The device.
        device: String,
        /// The parameter.
        name: String,
        /// What was given.
        value: ParamValue,
        /// The mode that was given.
        mode: ConfigMode,
        /// Its modes and values, as `driverinit true`.
        has: String,
    },
    /// The driver or the kernel refused it, in its own words where it said any.
    #[error(transparent)]
    Refused(#[from] NetlinkError),
}

impl ParamError {
    /// The kernel's errno; `EOPNOTSUPP` where it was not even asked.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(error) => error.errno(),
            Self::MissingParam { .. } | Self::MissingMode { .. } => Errno::OPNOTSUPP.raw_os_error(),
        }
    }
}

/// What is to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadAction {
    /// The driver: its netdevs go and come back.
    DriverReinit,
    /// The firmware, by a reset of the device; the driver follows.
    FwActivate,
}

impl ReloadAction {
    const ALL: [Self; 2] = [Self::DriverReinit, Self::FwActivate];

    /// `DEVLINK_RELOAD_ACTION_*`.
    fn number(self) -> u8 {
        match self {
            Self::DriverReinit => 1,
            Self::FwActivate => 2,
        }
    }

    /// devlink's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DriverReinit => "driver_reinit",
            Self::FwActivate => "fw_activate",
        }
    }
}

impl Devlink {
    /// A parameter with its values (`devlink dev param show DEVICE name NAME`); `None` where driver or kernel has none of this name, and where the
    /// device cannot tell its value.
    pub fn param(&self, device: &Device, name: &str) -> Result<Option<Param>, NetlinkError> {
        let mut attributes = device.attributes();
        attributes.push(text(DEVLINK_ATTR_PARAM_NAME, name));
        match self.family.request(&device.subject("read a devlink parameter", &format!(": {name}")), 0, DEVLINK_CMD_PARAM_GET, attributes) {
            Ok(replies) => Ok(replies.first().and_then(|reply| Param::read(reply))),
            // The kernel says EINVAL for a parameter that the driver does not have.
            Err(error) if error.is_gone() || error.is_unsupported() || error.is(Errno::INVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a parameter (`devlink dev param set DEVICE name NAME value VALUE cmode MODE`).
    pub fn set_param(&self, device: &Device, name: &str, mode: ConfigMode, value: &ParamValue) -> Result<(), ParamError> {
        let missing = || ParamError::MissingParam { device: device.to_string(), name: name.to_owned() };
        let known = self.param(device, name)?.ok_or_else(missing)?;
        if known.values.get(&mode).is_none_or(|now| now.kind() != value.kind()) {
            let has: Vec<String> = known.values.iter().map(|(mode, value)| format!("{mode} {value}")).collect();
            let (device, name, value) = (device.to_string(), name.to_owned(), value.clone());
            return Err(ParamError::MissingMode { device, name, value, mode, has: has.join(", ") });
        }
        let subject = device.subject("set a devlink parameter", &format!(": {name}={value} {mode}"));
        Ok(self.family.change(&subject, DEVLINK_CMD_PARAM_SET, [device.attributes(), setting(name, mode, value)].concat())?)
    }

    /// A text parameter of the driver as it runs; `None` where the driver has none of this name.
    pub fn text_param(&self, device: &Device, name: &str) -> Result<Option<String>, NetlinkError> {
        let value = self.param(device, name)?.and_then(|mut param| param.values.remove(&ConfigMode::Runtime));
        Ok(value.and_then(|value| if let ParamValue::Text(text) = value { Some(text) } else { None }))
    }

    /// What the device's own memory says about VFs, as far as its driver tells.
    pub fn firmware_settings(&self, device: &Device) -> Result<FirmwareSettings, NetlinkError> {
        let permanent =
            |name: &str| Ok::<_, NetlinkError>(self.param(device, name)?.and_then(|mut param| param.values.remove(&ConfigMode::Permanent)));
        let enable_sriov = permanent(ENABLE_SRIOV)?.and_then(|value| if let ParamValue::Bool(on) = value { Some(on) } else { None });
        let total_vfs = permanent(TOTAL_VFS)?.and_then(|value| if let ParamValue::U32(total) = value { Some(total) } else { None });
        Ok(FirmwareSettings { enable_sriov, total_vfs })
    }

    /// Writes these to the device's own memory; what is `None` is left. The switch goes first: it makes `mlx5_core` count VFs for each function by
    /// itself. Written also where they are so, because the function that is told next may change that for this one.
    pub fn set_firmware_settings(&self, device: &Device, wanted: &FirmwareSettings) -> Result<(), ParamError> {
        if let Some(on) = wanted.enable_sriov {
            self.set_param(device, ENABLE_SRIOV, ConfigMode::Permanent, &ParamValue::Bool(on))?;
        }
        if let Some(total) = wanted.total_vfs {
            self.set_param(device, TOTAL_VFS, ConfigMode::Permanent, &ParamValue::U32(total))?;
        }
        Ok(())
    }

    /// Starts driver or firmware anew (`devlink dev reload DEVICE action ACTION`); answers what the driver did for it. Returns when it is done.
    pub fn reload(&self, device: &Device, action: ReloadAction) -> Result<Vec<ReloadAction>, NetlinkError> {
        let subject = device.subject("reload", &format!(": {}", action.as_str()));
        let attributes = [device.attributes(), vec![bytes(DEVLINK_ATTR_RELOAD_ACTION, &[action.number()])]].concat();
        let replies = self.family.request(&subject, 0, DEVLINK_CMD_RELOAD, attributes)?;
        let performed = replies.first().and_then(|reply| performed(reply));
        performed.ok_or_else(|| subject.refused(Errno::OPNOTSUPP.raw_os_error(), Some("the kernel does not say what it did".to_owned())))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.name)
    }
}

/// The attributes that say which value a parameter is to have.
fn setting(name: &str, mode: ConfigMode, value: &ParamValue) -> Vec<DefaultNla> {
    let mut attributes = vec![text(DEVLINK_ATTR_PARAM_NAME, name), bytes(DEVLINK_ATTR_PARAM_TYPE, &[value.kind()])];
    attributes.extend(value.data());
    attributes.push(bytes(DEVLINK_ATTR_PARAM_VALUE_CMODE, &[mode.number()]));
    attributes
}

/// A bit for each action, and which bits count (`struct nla_bitfield32`).
fn performed(reply: &[u8]) -> Option<Vec<ReloadAction>> {
    let bits = find(reply, DEVLINK_ATTR_RELOAD_ACTIONS_PERFORMED).and_then(u32_of)?;
    Some(ReloadAction::ALL.into_iter().filter(|action| bits & (1 << action.number()) != 0).collect())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;
    use crate::netlink::generic::nested;

    fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut buffer = vec![0; attributes.buffer_len()];
        attributes.emit(&mut buffer);
        buffer
    }

    fn param(kind: u8, generic: bool, values: &[(u8, Option<&[u8]>)]) -> Vec<u8> {
        let value = |(mode, data): &(u8, Option<&[u8]>)| {
            let data = data.map(|data| bytes(DEVLINK_ATTR_PARAM_VALUE_DATA, data));
            nested(DEVLINK_ATTR_PARAM_VALUE, &[bytes(DEVLINK_ATTR_PARAM_VALUE_CMODE, &[*mode])].into_iter().chain(data).collect::<Vec<_>>())
        };
        let values: Vec<DefaultNla> = values.iter().map(value).collect();
        let mut inner = vec![text(DEVLINK_ATTR_PARAM_NAME, "x"), bytes(DEVLINK_ATTR_PARAM_TYPE, &[kind])];
        inner.extend(generic.then(|| bytes(DEVLINK_ATTR_PARAM_GENERIC, &[])));
        inner.push(nested(DEVLINK_ATTR_PARAM_VALUES_LIST, &values));
        emitted(&[nested(DEVLINK_ATTR_PARAM, &inner)])
    }

    #[test]
    fn a_parameter_has_a_value_for_each_of_its_modes() {
        let read = Param::read(&param(NLA_U32, true, &[(0, Some(&[8, 0, 0, 0])), (2, Some(&[16, 0, 0, 0]))])).unwrap();
        let expected = [(ConfigMode::Runtime, ParamValue::U32(8)), (ConfigMode::Permanent, ParamValue::U32(16))];
        assert_eq!(read, Param { generic: true, values: expected.into() });
        let text = Param::read(&param(NLA_STRING, false, &[(2, Some(b"dmfs\0")), (0, Some(b"smfs\0"))])).unwrap();
        assert_eq!((text.generic, text.values[&ConfigMode::Runtime].to_string()), (false, "smfs".to_owned()));
    }

    #[test]
    fn a_switch_that_is_off_has_no_data_and_is_no_missing_value() {
        let read = Param::read(&param(NLA_FLAG, true, &[(1, None), (2, Some(&[]))])).unwrap();
        assert_eq!(read.values, [(ConfigMode::DriverInit, ParamValue::Bool(false)), (ConfigMode::Permanent, ParamValue::Bool(true))].into());
    }

    #[test]
    fn values_of_unknown_type_or_mode_and_missing_data_are_left_out() {
        assert_eq!(Param::read(&param(99, false, &[(0, Some(&[1]))])).unwrap().values, BTreeMap::new());
        assert_eq!(Param::read(&param(NLA_U32, false, &[(7, Some(&[1, 0, 0, 0])), (2, None), (0, Some(&[1]))])).unwrap().values, BTreeMap::new());
        assert_eq!(Param::read(&emitted(&[nested(DEVLINK_ATTR_PARAM, &[])])), None);
    }

    /// Bytes as `devlink dev param set pci/... name NAME value VALUE cmode MODE` sends them.
    #[test]
    fn what_is_sent_is_the_bytes_of_the_kernels_header() {
        let sent = emitted(&setting("total_vfs", ConfigMode::Permanent, &ParamValue::U32(32)));
        let mut expected = vec![14, 0, 81, 0];
        expected.extend(b"total_vfs\0\0\0");
        expected.extend([5, 0, 83, 0, 3, 0, 0, 0, 8, 0, 86, 0]);
        expected.extend(32u32.to_ne_bytes());
        expected.extend([5, 0, 87, 0, 2, 0, 0, 0]);
        assert_eq!(sent, expected);
        let on = emitted(&setting("e", ConfigMode::Permanent, &ParamValue::Bool(true)));
        assert_eq!(on, [6, 0, 81, 0, b'e', 0, 0, 0, 5, 0, 83, 0, 6, 0, 0, 0, 4, 0, 86, 0, 5, 0, 87, 0, 2, 0, 0, 0]);
        let off = emitted(&setting("e", ConfigMode::DriverInit, &ParamValue::Bool(false)));
        assert_eq!(off, [6, 0, 81, 0, b'e', 0, 0, 0, 5, 0, 83, 0, 6, 0, 0, 0, 5, 0, 87, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_a_reload_did_is_told_by_bits() {
        let told =
            |bits: u32| performed(&emitted(&[bytes(DEVLINK_ATTR_RELOAD_ACTIONS_PERFORMED, &[bits.to_ne_bytes(), bits.to_ne_bytes()].concat())]));
        assert_eq!(told(0b110), Some(vec![ReloadAction::DriverReinit, ReloadAction::FwActivate]));
        assert_eq!(told(0b010), Some(vec![ReloadAction::DriverReinit]));
        assert_eq!(performed(&[]), None);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_parameters_and_takes_none() {
        let nowhere = Device { bus: "pci".to_owned(), name: "ffff:ff:1f.7".to_owned() };
        let devlink = Devlink::open().unwrap();
        assert_eq!((devlink.param(&nowhere, TOTAL_VFS).unwrap(), devlink.text_param(&nowhere, "flow_steering_mode").unwrap()), (None, None));
        assert_eq!(devlink.firmware_settings(&nowhere).unwrap(), FirmwareSettings::default());
        let refused = devlink.set_param(&nowhere, TOTAL_VFS, ConfigMode::Permanent, &ParamValue::U32(8)).unwrap_err();
        let said = "cannot set devlink parameter total_vfs of pci/ffff:ff:1f.7: its driver has no such parameter in this kernel";
        assert_eq!(refused.to_string(), said);
        assert!(devlink.reload(&nowhere, ReloadAction::FwActivate).is_err());
    }
}
