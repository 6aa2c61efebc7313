//! Pure: what names a device that pods get: the PCI address of a function, or the name of a subfunction on the auxiliary bus. The kubelet, CNI
//! configurations and journals hold it as text.
//!
//! Invariant: an id is the name of a folder of sysfs and of our own files, so that it never holds a separator.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pci::PciAddress;

/// Longest name of a subfunction that is taken: `mlx5_core.sf.4294967295`. No other driver of the kernel's tree makes subfunctions.
const NAME_BYTES: usize = 23;

/// The name of a subfunction on the auxiliary bus: driver, `sf`, number (`mlx5_core.sf.4`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SfName {
    bytes: [u8; NAME_BYTES],
    length: u8,
}

/// Names a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceId {
    /// A PCI function.
    Pci(PciAddress),
    /// A subfunction.
    Sf(SfName),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is neither a PCI address, as 0000:3b:02.1, nor the name of a subfunction, as mlx5_core.sf.4")]
pub struct DeviceIdError {
    /// The refused text.
    pub given: String,
}

impl DeviceId {
    /// The address of a PCI function; `None` for a subfunction.
    pub fn pci(self) -> Option<PciAddress> {
        match self {
            Self::Pci(address) => Some(address),
            Self::Sf(_) => None,
        }
    }

    /// The device's folder in sysfs, as a path on the machine.
    pub fn folder(self) -> String {
        match self {
            Self::Pci(address) => crate::pci_device(address),
            Self::Sf(name) => name.folder(),
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
            Self::Sf(name) => name.fmt(f),
        }
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Pci).or_else(|_| text.parse().map(Self::Sf))
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

impl SfName {
    /// Its folder in sysfs, as a path on the machine.
    pub fn folder(self) -> String {
        format!("{}/{self}", crate::auxiliary::DEVICES)
    }

    fn read(text: &str) -> Option<Self> {
        let (driver, number) = text.split_once(".sf.")?;
        let is_name = !driver.is_empty() && driver.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let is_number = (1..=10).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
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

impl FromStr for SfName {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text).ok_or_else(|| DeviceIdError { given: text.to_owned() })
    }
}

impl fmt::Display for SfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_pci_address_or_a_subfunction() {
        for (text, id, folder) in [
            ("0000:3B:02.1", "0000:3b:02.1", "/sys/bus/pci/devices/0000:3b:02.1"),
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
            "mlx5_core.sf",
            "mlx5_core.sf.",
            "mlx5_core.sf.x",
            "mlx5_core.sf.4.5",
            ".sf.4",
            "a/b.sf.4",
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
