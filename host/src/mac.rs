//! Pure: Ethernet hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address of six bytes, printed `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a MAC address: expected six bytes in hexadecimal as 02:00:5e:10:00:01, 02-00-5e-10-00-01 or 0200.5e10.0001")]
pub struct MacParseError {
    /// The refused text.
    pub given: String,
}

impl MacAddr {
    /// All zero: "no address" in the kernel's VF interface.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether this is the all-zero address.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Whether the group bit is set (multicast or broadcast), which no interface may have.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [b0, b1, b2, b3, b4, b5] = self.0;
        write!(f, "{b0:02x}:{b1:02x}:{b2:02x}:{b3:02x}:{b4:02x}:{b5:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    /// Takes colon, hyphen and dot forms in either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (separator, group) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut digits = Vec::with_capacity(12);
        for part in text.split(separator) {
            if part.len() != group || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacParseError { given: text.to_owned() });
            }
            digits.extend(part.chars().filter_map(|c| c.to_digit(16)));
        }
        let bytes: Vec<u8> = digits.chunks(2).filter_map(|pair| u8::try_from(pair[0] << 4 | pair.get(1)?).ok()).collect();
        <[u8; 6]>::try_from(bytes).map(Self).map_err(|_| MacParseError { given: text.to_owned() })
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_name_the_same_address() {
        let mac = MacAddr([0x02, 0, 0x5e, 0x10, 0, 1]);
        for text in ["02:00:5e:10:00:01", "02-00-5E-10-00-01", "0200.5e10.0001"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "02:00-5e:10:00:01",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:0g",
            "0200.5e10",
            "é2:00:5e:10:00:01",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
