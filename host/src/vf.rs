//! Pure: a virtual function's index and the attributes that its PF holds for it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::guid::Guid;
use crate::mac::MacAddr;
use crate::rate::Mbps;
use crate::vlan::{VlanId, VlanProto, VlanQos};

/// The 0-based index of a VF on its PF (`virtfnN` in sysfs, `vf N` in `ip link`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VfIndex(pub u16);

impl fmt::Display for VfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The link state that the PF shows its VF (`IFLA_VF_LINK_STATE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfLinkState {
    /// As the PF's own link (0).
    #[default]
    Auto,
    /// Always up (1).
    Enable,
    /// Always down (2).
    Disable,
}

impl fmt::Display for VfLinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        })
    }
}

/// The port VLAN of a VF: what the PF tags and untags on the VF's behalf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VfVlan {
    /// The VLAN id; 0 is "no tag".
    pub id: VlanId,
    /// The 802.1p priority.
    pub qos: VlanQos,
    /// The tag protocol.
    pub proto: VlanProto,
}

/// What a PF reports of one VF over rtnetlink (`IFLA_VF_INFO`). `None` = the driver does not report it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfAttributes {
    /// The VF described.
    pub index: VfIndex,
    /// The administrative MAC; all zero when none was set.
    pub mac: MacAddr,
    /// The port VLAN.
    pub vlan: VfVlan,
    /// Guaranteed transmit rate; 0 is none.
    pub min_tx_rate: Mbps,
    /// Transmit rate limit; 0 is none.
    pub max_tx_rate: Mbps,
    /// Whether frames with a foreign source MAC are dropped.
    pub spoof_check: Option<bool>,
    /// Whether the VF may change its own MAC and filters.
    pub trust: Option<bool>,
    /// The link state that the VF is shown.
    pub link_state: Option<VfLinkState>,
    /// InfiniBand: the identifier of the VF's adapter (kernel 5.5 and later).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_guid: Option<Guid>,
    /// InfiniBand: the identifier of its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_guid: Option<Guid>,
}

impl VfAttributes {
    /// What a VF has that nobody has configured, as most drivers tell it.
    pub fn fresh(index: VfIndex) -> Self {
        Self {
            index,
            mac: MacAddr::ZERO,
            vlan: VfVlan::default(),
            min_tx_rate: Mbps(0),
            max_tx_rate: Mbps(0),
            spoof_check: Some(true),
            trust: Some(false),
            link_state: Some(VfLinkState::Auto),
            node_guid: None,
            port_guid: None,
        }
    }
}

/// What has passed a VF, as its PF counts it (`IFLA_VF_STATS`), seen from the VF: `rx` is what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Broadcast packets received.
    pub rx_broadcast: u64,
    /// Multicast packets received.
    pub rx_multicast: u64,
    /// Packets for it that were dropped.
    pub rx_dropped: u64,
    /// Packets of it that were dropped.
    pub tx_dropped: u64,
}

/// One attribute to set on a VF through its PF; each equals an `ip link set PF vf N ...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VfSetting {
    /// `mac ADDR`; all zero gives the choice back to the VF.
    Mac(MacAddr),
    /// `vlan ID qos QOS proto PROTO`.
    Vlan(VfVlan),
    /// `min_tx_rate MIN max_tx_rate MAX`: the kernel has one message for both.
    Rate {
        /// Guaranteed rate, 0 for none.
        min: Mbps,
        /// Limit, 0 for none.
        max: Mbps,
    },
    /// `spoofchk on|off`.
    SpoofCheck(bool),
    /// `state auto|enable|disable`.
    LinkState(VfLinkState),
    /// `trust on|off`.
    Trust(bool),
    /// `node_guid GUID`.
    NodeGuid(Guid),
    /// `port_guid GUID`.
    PortGuid(Guid),
}

impl VfSetting {
    /// The field's name of the attribute, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mac(_) => "mac",
            Self::Vlan(_) => "vlan",
            Self::Rate { .. } => "rate",
            Self::SpoofCheck(_) => "spoofchk",
            Self::LinkState(_) => "link_state",
            Self::Trust(_) => "trust",
            Self::NodeGuid(_) => "node_guid",
            Self::PortGuid(_) => "port_guid",
        }
    }
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Vlan(vlan) => write!(f, "vlan {} qos {} proto {}", vlan.id, vlan.qos, vlan.proto),
            Self::Rate { min, max } => write!(f, "min_tx_rate {} max_tx_rate {}", min.0, max.0),
            Self::SpoofCheck(on) => write!(f, "spoofchk {}", switch(on)),
            Self::LinkState(state) => write!(f, "state {state}"),
            Self::Trust(on) => write!(f, "trust {}", switch(on)),
            Self::NodeGuid(guid) => write!(f, "node_guid {guid}"),
            Self::PortGuid(guid) => write!(f, "port_guid {guid}"),
        }
    }
}
