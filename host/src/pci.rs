//! Pure: names of PCI functions and their identifiers, in the text forms that sysfs uses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI function, `domain:bus:device.function`, printed as sysfs prints it (`0000:3b:00.1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not a PCI address or identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciParseError {
    /// Not `dddd:bb:dd.f`.
    #[error("{given:?} is not a PCI address: expected domain:bus:device.function in hexadecimal, for example 0000:3b:00.1")]
    Address {
        /// The refused text.
        given: String,
    },
    /// Not one to four hexadecimal digits.
    #[error("{given:?} is not a PCI vendor or device id: expected up to four hexadecimal digits, for example 8086 or 0x10c9")]
    Id {
        /// The refused text.
        given: String,
    },
}

impl PciAddress {
    /// The address with these parts; `None` when the device is above 31 or the function above 7.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { domain, bus, device, function })
    }

    /// Its function, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }

    /// Domain, bus and device: what the functions of one device have in common.
    pub fn slot(self) -> (u32, u8, u8) {
        (self.domain, self.bus, self.device)
    }

    /// The routing id of the function on its domain: bus, device and function as one 16-bit number.
    pub fn routing_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// The function that lies `distance` routing ids behind this one, as SR-IOV counts VFs from their PF; `None` past the last bus.
    pub fn offset(self, distance: u32) -> Option<Self> {
        let id = u16::try_from(u32::from(self.routing_id()).checked_add(distance)?).ok()?;
        let [bus, low] = id.to_be_bytes();
        Self::new(self.domain, bus, low >> 3, low & 7)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = PciParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            if !(4..=8).contains(&domain.len()) || bus.len() != 2 || device.len() != 2 || function.len() != 1 {
                return None;
            }
            Self::new(hex(domain)?, u8::try_from(hex(bus)?).ok()?, u8::try_from(hex(device)?).ok()?, u8::try_from(hex(function)?).ok()?)
        };
        parse().ok_or_else(|| PciParseError::Address { given: text.to_owned() })
    }
}

/// `from_str_radix` also takes a sign; sysfs never prints one.
fn hex(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for PciAddress {
    type Error = PciParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

macro_rules! pci_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub u16);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:04x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = PciParseError;

            /// Takes sysfs's `0x8086` and the API's `8086`, in either case.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = text.trim_start_matches("0x");
                Some(digits)
                    .filter(|d| (1..=4).contains(&d.len()))
                    .and_then(hex)
                    .and_then(|id| u16::try_from(id).ok())
                    .map(Self)
                    .ok_or_else(|| PciParseError::Id { given: text.to_owned() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = PciParseError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

pci_id! {
    /// A PCI vendor id, printed as four hexadecimal digits (`8086`).
    VendorId
}
pci_id! {
    /// A PCI device id, printed as four hexadecimal digits (`10c9`).
    DeviceId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_sysfs_prints_them() {
        for text in ["0000:3b:00.1", "0000:ff:1f.7", "10000:01:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:3B:00.1".parse::<PciAddress>().unwrap().to_string(), "0000:3b:00.1");
    }

    #[test]
    fn other_texts_are_refused_with_the_form_that_is_expected() {
        for text in ["", "3b:00.1", "0000:3b:00", "0000:3b:20.0", "0000:3b:00.8", "0000:3b:00.1 ", "+000:3b:00.1", "../0:00:00.0"] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("domain:bus:device.function"), "{text}");
        }
    }

    #[test]
    fn vfs_are_found_by_offset_and_stride() {
        // igb: first VF offset 128, stride 2.
        let pf: PciAddress = "0000:01:00.0".parse().unwrap();
        let vfs: Vec<_> = (0..5).map(|i| pf.offset(128 + 2 * i).unwrap().to_string()).collect();
        assert_eq!(vfs, ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4", "0000:01:10.6", "0000:01:11.0"]);
        assert_eq!("0000:ff:1f.7".parse::<PciAddress>().unwrap().offset(1), None);
    }

    #[test]
    fn ids_take_both_forms() {
        assert_eq!("0x8086".parse::<VendorId>().unwrap(), VendorId(0x8086));
        assert_eq!("10C9".parse::<DeviceId>().unwrap().to_string(), "10c9");
        for text in ["", "0x", "12345", "zz", "-1"] {
            assert!(text.parse::<VendorId>().is_err(), "{text}");
        }
    }
}
