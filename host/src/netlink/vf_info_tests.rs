//! Pure (tests): VF lists in both directions, byte for byte.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::chars)
        .filter_map(|c| c.to_digit(16))
        .map(|d| u8::try_from(d).unwrap())
        .collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn emit(vf: u16, settings: &[VfSetting]) -> Vec<u8> {
    use netlink_packet_core::Emitable as _;
    use netlink_packet_route::link::LinkAttribute;
    let message = crate::netlink::link::message(3, vec![LinkAttribute::VfInfoList(vec![change(VfIndex(vf), settings)])]);
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn vlan(id: u16, qos: u8, proto: VlanProto) -> VfVlan {
    VfVlan { id: id.try_into().unwrap(), qos: qos.try_into().unwrap(), proto }
}

/// The netlink header is not ours to compare: iproute2 numbers its messages by time and says NEWLINK where we say SETLINK.
const NETLINK_HEADER_BYTES: usize = 16;

#[test]
fn a_change_of_everything_is_what_iproute2_sends() {
    let settings = [
        VfSetting::Mac(MacAddr([0x02, 0, 0x5e, 0x10, 0, 1])),
        VfSetting::Vlan(vlan(100, 3, VlanProto::Dot1q)),
        VfSetting::SpoofCheck(false),
        VfSetting::LinkState(VfLinkState::Enable),
        VfSetting::Trust(true),
        VfSetting::Rate { min: Mbps(50), max: Mbps(200) },
    ];
    assert_eq!(emit(1, &settings), hex(include_str!("../../testdata/netlink/set_vf_all.hex"))[NETLINK_HEADER_BYTES..]);
}

#[test]
fn a_service_vlan_is_what_iproute2_sends() {
    let settings = [VfSetting::Vlan(vlan(7, 0, VlanProto::Dot1ad))];
    assert_eq!(emit(6, &settings), hex(include_str!("../../testdata/netlink/set_vf_service_vlan.hex"))[NETLINK_HEADER_BYTES..]);
}

#[test]
fn identifiers_of_an_infiniband_vf_are_what_iproute2_sends_and_read_back() {
    let (node, port) = (Guid(0xc211_2233_4455_6677), Guid(0xc211_2233_4455_6678));
    assert_eq!(emit(1, &[VfSetting::NodeGuid(node)]), hex(include_str!("../../testdata/netlink/set_vf_node_guid.hex"))[NETLINK_HEADER_BYTES..]);
    assert_eq!(emit(1, &[VfSetting::PortGuid(port)]), hex(include_str!("../../testdata/netlink/set_vf_port_guid.hex"))[NETLINK_HEADER_BYTES..]);
    let sent = emit(1, &[VfSetting::Mac(MacAddr::ZERO), VfSetting::NodeGuid(node), VfSetting::PortGuid(port)]);
    let vf = parse(crate::netlink::link::attributes(&sent)).remove(0);
    assert_eq!((vf.index, vf.node_guid, vf.port_guid), (VfIndex(1), Some(node), Some(port)));
}

/// Values laid out by hand after `struct ifla_vf_*` of linux/if_link.h, not captured: VF 3 comes before VF 1, and the driver leaves things
/// out for VF 1.
#[test]
fn vfs_are_known_by_the_index_in_their_attributes() {
    let mut list = entry(&[
        (1, "03000000 02005e100003 0000000000000000000000000000000000000000000000000000"),
        (2, "03000000 64000000 05000000"),
        (12, "14000100 03000000 64000000 05000000 88a8 0000"),
        (3, "03000000 2c010000"),
        (6, "03000000 0a000000 2c010000"),
        (4, "03000000 01000000"),
        (5, "03000000 02000000"),
        (9, "03000000 00000000"),
    ]);
    list.extend(entry(&[
        (1, "01000000 00000000000000000000000000000000000000000000000000000000000000000000"),
        (4, "01000000 ffffffff"),
        (9, "01000000 ffffffff"),
    ]));
    let full = VfAttributes {
        index: VfIndex(3),
        mac: MacAddr([0x02, 0, 0x5e, 0x10, 0, 3]),
        vlan: vlan(100, 5, VlanProto::Dot1ad),
        min_tx_rate: Mbps(10),
        max_tx_rate: Mbps(300),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(VfLinkState::Disable),
        node_guid: None,
        port_guid: None,
    };
    let sparse = VfAttributes {
        index: VfIndex(1),
        mac: MacAddr::ZERO,
        vlan: VfVlan::default(),
        min_tx_rate: Mbps(0),
        max_tx_rate: Mbps(0),
        spoof_check: None,
        trust: None,
        link_state: None,
        node_guid: None,
        port_guid: None,
    };
    assert_eq!(parse(&attribute(22, &list)), [sparse, full]);
}

#[test]
fn attributes_of_two_vfs_in_one_entry_are_told_apart() {
    let list = entry(&[(4, "00000000 01000000"), (4, "02000000 00000000")]);
    let found: Vec<_> = parse(&attribute(22, &list)).into_iter().map(|vf| (vf.index.0, vf.spoof_check)).collect();
    assert_eq!(found, [(0, Some(true)), (2, Some(false))]);
}

#[test]
fn an_old_driver_tells_only_a_limit_and_a_plain_vlan() {
    let list = entry(&[(2, "00000000 2a000000 01000000"), (3, "00000000 64000000")]);
    let vf = &parse(&attribute(22, &list))[0];
    assert_eq!((vf.vlan, vf.min_tx_rate, vf.max_tx_rate), (vlan(42, 1, VlanProto::Dot1q), Mbps(0), Mbps(100)));
}

#[test]
fn a_vlan_outside_the_standard_hides_that_vf_only() {
    let mut list = entry(&[(2, "00000000 ff0f0000 00000000")]);
    list.extend(entry(&[(2, "01000000 00000000 00000000")]));
    let found: Vec<_> = parse(&attribute(22, &list)).into_iter().map(|vf| vf.index.0).collect();
    assert_eq!(found, [1]);
}

#[test]
fn a_broken_list_keeps_what_came_before_the_break() {
    let list = entry(&[(4, "00000000 01000000")]);
    let mut bytes = attribute(22, &[list.as_slice(), &[40, 0, 1, 0, 9]].concat());
    assert_eq!(parse(&bytes).len(), 1);
    bytes.truncate(6);
    assert_eq!(parse(&bytes), []);
    assert_eq!(parse(&[]), []);
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn entry(attributes: &[(u16, &str)]) -> Vec<u8> {
    let inner: Vec<u8> = attributes.iter().flat_map(|(kind, value)| attribute(*kind, &hex(value))).collect();
    attribute(IFLA_VF_INFO, &inner)
}
