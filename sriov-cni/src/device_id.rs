//! Pure: what names a device: the PCI address of a VF, or the name of a sub-function on the auxiliary bus.
//!
//! A vDPA device has the id of the VF that it is made of; the Go operator's name for it (`vdpa:0000:65:00.2`) is taken, too.
//!
//! Invariant: an id is the name of a folder of sysfs and of our own files, so that it never holds a separator.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sriov_host::pci::PciAddress;

/// Longest name of a sub-function that is taken: `mlx5_core.sf.4294967295`. No other driver of the kernel's tree makes sub-functions.
const NAME_BYTES: usize = 23;

/// The name of a sub-function's device on the auxiliary bus: driver, `.sf.`, number (`mlx5_core.sf.4`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubFunction {
    bytes: [u8; NAME_BYTES],
    length: u8,
}

/// Names a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceId {
    /// A VF.
    Pci(PciAddress),
    /// A sub-function.
    SubFunction(SubFunction),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is neither the PCI address of a VF, as 0000:3b:02.1, nor the name of a sub-function, as mlx5_core.sf.4")]
pub struct DeviceIdError {
    given: String,
}

impl DeviceId {
    /// The PCI address of a VF; `None` for a sub-function.
    pub fn pci(self) -> Option<PciAddress> {
        match self {
            Self::Pci(address) => Some(address),
            Self::SubFunction(_) => None,
        }
    }

    /// The device's folder in sysfs.
    pub(crate) fn folder(self) -> String {
        match self {
            Self::Pci(address) => format!("/sys/bus/pci/devices/{address}"),
            Self::SubFunction(name) => format!("/sys/bus/auxiliary/devices/{name}"),
        }
    }
}

impl From<PciAddress> for DeviceId {
    fn from(address: PciAddress) -> Self {
        Self::Pci(address)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::SubFunction(name) => name.fmt(f),
        }
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.strip_prefix("vdpa:").unwrap_or(text).parse() {
            return Ok(Self::Pci(address));
        }
        SubFunction::parse(text).map(Self::SubFunction).ok_or_else(|| DeviceIdError { given: text.to_owned() })
    }
}

impl TryFrom<String> for DeviceId {
    type Error = DeviceIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.to_string()
    }
}

impl SubFunction {
    fn parse(text: &str) -> Option<Self> {
        let (driver, number) = text.split_once(".sf.")?;
        let is_name = !driver.is_empty() && driver.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let is_number = !number.is_empty() && number.len() <= 10 && number.bytes().all(|byte| byte.is_ascii_digit());
        if !is_name || !is_number {
            return None;
        }
        let mut bytes = [0; NAME_BYTES];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes, length: u8::try_from(text.len()).ok()? })
    }

    fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.length)).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl fmt::Display for SubFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SubFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_pci_address_or_a_sub_function() {
        for (text, id, folder) in [
            ("0000:3B:02.1", "0000:3b:02.1", "/sys/bus/pci/devices/0000:3b:02.1"),
            ("vdpa:0000:3b:02.1", "0000:3b:02.1", "/sys/bus/pci/devices/0000:3b:02.1"),
            ("mlx5_core.sf.4", "mlx5_core.sf.4", "/sys/bus/auxiliary/devices/mlx5_core.sf.4"),
            ("mlx5_core.sf.4294967295", "mlx5_core.sf.4294967295", "/sys/bus/auxiliary/devices/mlx5_core.sf.4294967295"),
        ] {
            let parsed: DeviceId = text.parse().unwrap();
            assert_eq!((parsed.to_string().as_str(), parsed.folder().as_str()), (id, folder));
            assert_eq!(serde_json::from_value::<DeviceId>(serde_json::to_value(parsed).unwrap()).unwrap(), parsed);
        }
    }

    #[test]
    fn no_other_text_becomes_the_name_of_a_folder() {
        for text in [
            "",
            "..",
            "mlx5_core.sf.",
            ".sf.4",
            "mlx5_core.sf.4/../..",
            "../mlx5_core.sf.4",
            "mlx5_core.eth.4",
            "a.b.sf.4",
            "mlx5_core.sf.4 ",
            "vdpa:x",
            "eth0",
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text}");
        }
        assert!(format!("{}.sf.1", "x".repeat(60)).parse::<DeviceId>().is_err());
    }
}
