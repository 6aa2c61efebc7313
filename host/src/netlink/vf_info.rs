//! Pure: `IFLA_VFINFO_LIST`, in both directions.
//!
//! What lives here: the attributes of VFs in an answer of the PF's link, and the entry of a change to one VF.
//!
//! Invariant: a VF is known by the index that each of its attributes carries, never by its position in the list (drivers leave VFs out). What
//! a driver leaves out is `None`, not a default that looks like knowledge.

use std::collections::BTreeMap;

use netlink_packet_route::link::{
    LinkVfInfo, VfInfo, VfInfoGuid, VfInfoLinkState, VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState as WireLinkState,
    VfVlan as WireVlan, VfVlanInfo, VlanProtocol,
};

use super::attribute::{find, u16_of, u32_of, walk};
use crate::guid::Guid;
use crate::mac::MacAddr;
use crate::rate::Mbps;
use crate::vf::{VfAttributes, VfCounters, VfIndex, VfLinkState, VfSetting, VfVlan};
use crate::vlan::{VlanId, VlanProto, VlanQos};

const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_TX_RATE: u16 = 3;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_STATS: u16 = 8;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_IB_NODE_GUID: u16 = 10;
const IFLA_VF_IB_PORT_GUID: u16 = 11;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;

/// What the answer holds of one VF, number by number.
#[derive(Default)]
struct Raw {
    mac: Option<MacAddr>,
    vlan: Option<(u32, u32)>,
    tagged: Option<(u32, u32, u16)>,
    tx_rate: Option<u32>,
    rate: Option<(u32, u32)>,
    spoof_check: Option<u32>,
    trust: Option<u32>,
    link_state: Option<u32>,
    node_guid: Option<Guid>,
    port_guid: Option<Guid>,
}

/// The VFs in the attributes of a PF's link, in order of index. A VF whose VLAN is outside the standard's range (igb takes 4095) is left
/// out: unknown is safer than wrong.
pub(super) fn parse(link_attributes: &[u8]) -> Vec<VfAttributes> {
    let mut vfs = BTreeMap::<u32, Raw>::new();
    let list = find(link_attributes, IFLA_VFINFO_LIST).unwrap_or_default();
    for (_, entry) in walk(list).filter(|(kind, _)| *kind == IFLA_VF_INFO) {
        for (kind, value) in walk(entry) {
            // The VLAN list is the one attribute whose index is a level deeper.
            let value = if kind == IFLA_VF_VLAN_LIST { find(value, IFLA_VF_VLAN_INFO).unwrap_or_default() } else { value };
            if let Some((index, fields)) = value.split_first_chunk().map(|(index, fields)| (u32::from_ne_bytes(*index), fields)) {
                vfs.entry(index).or_default().take(kind, fields);
            }
        }
    }
    vfs.into_iter().filter_map(|(index, raw)| raw.attributes(VfIndex(u16::try_from(index).ok()?))).collect()
}

/// The counters of VFs in the attributes of a PF's link. Without the skip bit the kernel adds them to each VF, all zero where the driver has none;
/// those are left out unless the driver reported the VF at all.
pub(super) fn parse_counters(link_attributes: &[u8]) -> Vec<(VfIndex, VfCounters)> {
    let list = find(link_attributes, IFLA_VFINFO_LIST).unwrap_or_default();
    let mut counters = BTreeMap::new();
    for (_, entry) in walk(list).filter(|(kind, _)| *kind == IFLA_VF_INFO) {
        let index = find(entry, IFLA_VF_MAC).and_then(u32_of).and_then(|index| u16::try_from(index).ok());
        let (Some(index), Some(stats)) = (index, find(entry, IFLA_VF_STATS)) else { continue };
        let number = |kind| find(stats, kind).and_then(|value| value.first_chunk().copied()).map(u64::from_ne_bytes).unwrap_or_default();
        counters.insert(
            VfIndex(index),
            VfCounters {
                rx_packets: number(0),
                tx_packets: number(1),
                rx_bytes: number(2),
                tx_bytes: number(3),
                rx_broadcast: number(4),
                rx_multicast: number(5),
                rx_dropped: number(7),
                tx_dropped: number(8),
            },
        );
    }
    counters.into_iter().collect()
}

impl Raw {
    /// Notes one attribute; `fields` is what follows the index.
    fn take(&mut self, kind: u16, fields: &[u8]) {
        let first = u32_of(fields);
        let second = fields.get(4..).and_then(u32_of);
        match kind {
            IFLA_VF_MAC => self.mac = fields.first_chunk().copied().map(MacAddr),
            IFLA_VF_VLAN => self.vlan = first.zip(second),
            IFLA_VF_VLAN_LIST => {
                let proto = fields.get(8..).and_then(u16_of).map(u16::from_be);
                self.tagged = first.zip(second).zip(proto).map(|((id, qos), proto)| (id, qos, proto));
            }
            IFLA_VF_TX_RATE => self.tx_rate = first,
            IFLA_VF_RATE => self.rate = first.zip(second),
            IFLA_VF_SPOOFCHK => self.spoof_check = first,
            IFLA_VF_LINK_STATE => self.link_state = first,
            IFLA_VF_TRUST => self.trust = first,
            IFLA_VF_IB_NODE_GUID => self.node_guid = guid(fields),
            IFLA_VF_IB_PORT_GUID => self.port_guid = guid(fields),
            _ => {}
        }
    }

    fn attributes(self, index: VfIndex) -> Option<VfAttributes> {
        let (id, qos, ethertype) = match (self.tagged, self.vlan) {
            (Some(tagged), _) => tagged,
            (None, Some((id, qos))) => (id, qos, VlanProto::Dot1q.ethertype()),
            (None, None) => (0, 0, VlanProto::Dot1q.ethertype()),
        };
        let vlan = VfVlan {
            id: VlanId::try_from(u16::try_from(id).ok()?).ok()?,
            qos: VlanQos::try_from(u8::try_from(qos).ok()?).ok()?,
            // Without a VLAN some drivers report protocol 0.
            proto: VlanProto::from_ethertype(ethertype).or((id == 0).then_some(VlanProto::Dot1q))?,
        };
        let (min, max) = self.rate.unwrap_or((0, self.tx_rate.unwrap_or_default()));
        Some(VfAttributes {
            index,
            mac: self.mac.unwrap_or_default(),
            vlan,
            min_tx_rate: Mbps(min),
            max_tx_rate: Mbps(max),
            spoof_check: self.spoof_check.and_then(switch),
            trust: self.trust.and_then(switch),
            link_state: self.link_state.and_then(link_state),
            node_guid: self.node_guid,
            port_guid: self.port_guid,
        })
    }
}

/// The kernel presets switches with all ones, which stays when the driver does not report them.
fn switch(value: u32) -> Option<bool> {
    (value != u32::MAX).then_some(value != 0)
}

/// `struct ifla_vf_guid` after its index: the number of eight bytes is the last of it, behind padding where the machine aligns it.
fn guid(fields: &[u8]) -> Option<Guid> {
    fields.last_chunk().copied().map(u64::from_ne_bytes).map(Guid)
}

fn link_state(value: u32) -> Option<VfLinkState> {
    match value {
        0 => Some(VfLinkState::Auto),
        1 => Some(VfLinkState::Enable),
        2 => Some(VfLinkState::Disable),
        _ => None,
    }
}

/// The entry that changes one VF. Whatever the order here, the kernel applies MAC, VLAN, rate, spoof check, link state, trust, GUIDs, and stops
/// at the first refusal.
pub(super) fn change(index: VfIndex, settings: &[VfSetting]) -> LinkVfInfo {
    let vf = u32::from(index.0);
    LinkVfInfo(settings.iter().map(|setting| encode(vf, *setting)).collect())
}

fn encode(vf: u32, setting: VfSetting) -> VfInfo {
    match setting {
        VfSetting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac.0)),
        VfSetting::Vlan(VfVlan { id, qos, proto }) => {
            let (id, qos) = (u32::from(id.get()), u32::from(qos.get()));
            match proto {
                // The older attribute means 802.1Q and is known to all drivers and kernels.
                VlanProto::Dot1q => VfInfo::Vlan(VfInfoVlan::new(vf, id, qos)),
                VlanProto::Dot1ad => VfInfo::VlanList(vec![WireVlan::Info(VfVlanInfo::new(vf, id, qos, VlanProtocol::Ieee8021Ad))]),
            }
        }
        VfSetting::Rate { min, max } => VfInfo::Rate(VfInfoRate::new(vf, min.0, max.0)),
        VfSetting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on)),
        VfSetting::LinkState(state) => VfInfo::LinkState(VfInfoLinkState::new(
            vf,
            match state {
                VfLinkState::Auto => WireLinkState::Auto,
                VfLinkState::Enable => WireLinkState::Enable,
                VfLinkState::Disable => WireLinkState::Disable,
            },
        )),
        VfSetting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(vf, on)),
        VfSetting::NodeGuid(guid) => VfInfo::IbNodeGuid(VfInfoGuid::new(vf, guid.0)),
        VfSetting::PortGuid(guid) => VfInfo::IbPortGuid(VfInfoGuid::new(vf, guid.0)),
    }
}

#[cfg(test)]
#[path = "vf_info_tests.rs"]
mod tests;
