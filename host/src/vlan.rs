//! Pure: VLAN tags as the kernel's VF interface takes them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A VLAN id, 0 to 4094; 0 means "no tag" (`ip link set PF vf N vlan 0`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// A priority (IEEE 802.1p), 0 to 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VlanQos(u8);

/// A number outside the range of a tag's field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VlanRangeError {
    /// Above 4094. Some drivers (igb) accept 4095, which the standard reserves, so it is refused here.
    #[error("VLAN {0} is out of range: allowed are 0 (no tag) to 4094")]
    Id(u16),
    /// Above 7.
    #[error("VLAN priority {0} is out of range: allowed are 0 to 7")]
    Qos(u8),
}

/// The tag protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VlanProto {
    /// IEEE 802.1Q, ethertype 0x8100.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1q,
    /// IEEE 802.1ad (service tag), ethertype 0x88a8.
    #[serde(rename = "802.1ad")]
    Dot1ad,
}

impl VlanId {
    /// The id as a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl VlanQos {
    /// The priority as a number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = VlanRangeError;

    fn try_from(id: u16) -> Result<Self, Self::Error> {
        if id <= 4094 { Ok(Self(id)) } else { Err(VlanRangeError::Id(id)) }
    }
}

impl TryFrom<u8> for VlanQos {
    type Error = VlanRangeError;

    fn try_from(qos: u8) -> Result<Self, Self::Error> {
        if qos <= 7 { Ok(Self(qos)) } else { Err(VlanRangeError::Qos(qos)) }
    }
}

impl From<VlanId> for u16 {
    fn from(id: VlanId) -> Self {
        id.0
    }
}

impl From<VlanQos> for u8 {
    fn from(qos: VlanQos) -> Self {
        qos.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for VlanQos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl VlanProto {
    /// The ethertype, in host byte order; the kernel's `ifla_vf_vlan_info.vlan_proto` is big endian.
    pub fn ethertype(self) -> u16 {
        match self {
            Self::Dot1q => 0x8100,
            Self::Dot1ad => 0x88a8,
        }
    }

    /// The protocol with this ethertype (host byte order), if it is a VLAN protocol.
    pub fn from_ethertype(ethertype: u16) -> Option<Self> {
        match ethertype {
            0x8100 => Some(Self::Dot1q),
            0x88a8 => Some(Self::Dot1ad),
            _ => None,
        }
    }
}

impl fmt::Display for VlanProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dot1q => "802.1q",
            Self::Dot1ad => "802.1ad",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_the_standard_ends_them() {
        assert_eq!(VlanId::try_from(4094).unwrap().get(), 4094);
        assert_eq!(VlanId::try_from(4095), Err(VlanRangeError::Id(4095)));
        assert_eq!(VlanQos::try_from(7).unwrap().get(), 7);
        assert_eq!(VlanQos::try_from(8), Err(VlanRangeError::Qos(8)));
    }
}
