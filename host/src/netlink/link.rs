//! Pure: links as rtnetlink describes them (`RTM_NEWLINK`), and changes to one as it takes them.
//!
//! Invariant: reading never fails on a single attribute; only a message without index or name is no link.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader, LinkMessage};

use super::attribute::{find, text_of, u8_of, u32_of, walk};
use crate::guid::Guid;
use crate::inventory::{LinkType, Netdev};
use crate::mac::MacAddr;
use crate::pci::PciAddress;

/// A netdev and what rtnetlink tells of it beyond the inventory's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The netdev.
    pub netdev: Netdev,
    /// The PCI function that it belongs to (`IFLA_PARENT_DEV_NAME` on bus `pci`). A representor has its PF here.
    pub parent: Option<PciAddress>,
    /// The device that it belongs to, on whatever bus (`IFLA_PARENT_DEV_NAME`): `0000:01:10.0`, `mlx5_core.sf.4`, `virtio3`.
    pub parent_device: Option<String>,
    /// `p0` for an uplink, `pf0vf1` for a representor; `None` where the driver gives none.
    pub phys_port_name: Option<String>,
    /// The address burnt in (`IFLA_PERM_ADDRESS`).
    pub permanent_mac: Option<MacAddr>,
    /// GUID of an InfiniBand port: the last eight bytes of its hardware address of twenty.
    pub port_guid: Option<Guid>,
    /// Set to receive all frames (`IFF_PROMISC`, as set by a user).
    pub promisc: bool,
    /// Set to receive all multicast frames (`IFF_ALLMULTI`, as set by a user).
    pub allmulti: bool,
    /// What it is stacked on and what is stacked on it.
    pub stack: Stack,
}

/// A link's place among the links of its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Index of the bond, bridge, team, VRF or switch that it is a port of (`IFLA_MASTER`).
    pub master: Option<u32>,
    /// Index of the link below it in the same namespace (`IFLA_LINK` of a VLAN, macvlan, ipvlan, tunnel).
    pub lower: Option<u32>,
    /// `bond`, `bridge`, `vlan`, `openvswitch`, ...; `None` for hardware.
    pub kind: Option<String>,
    /// Identifier of the hardware switch that it is a port of (`IFLA_PHYS_SWITCH_ID`), in hexadecimal.
    pub switch_id: Option<String>,
}

/// What to change on a link, all in one message; `None` leaves a thing alone.
///
/// With `netns` the kernel moves the link first (which sets it down), then renames and changes it there. The message is one, its effect is not
/// all or nothing: when a later part is refused, the link is in the target namespace already. That includes a new name that is taken there
/// (`EEXIST`): the link arrives under its old name, unless that is taken too, in which case it stays (`__dev_change_net_namespace` uses the
/// new name only then). So look in the target after an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// New name, at most 15 bytes.
    pub name: Option<&'a str>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: Option<bool>,
    /// The network namespace to move it to.
    pub netns: Option<BorrowedFd<'a>>,
    /// Receive all multicast frames.
    pub allmulti: Option<bool>,
    /// Receive all frames.
    pub promisc: Option<bool>,
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_CARRIER: u16 = 33;
const IFLA_PHYS_SWITCH_ID: u16 = 36;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PHYS_PORT_NAME: u16 = 38;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_PROP_LIST: u16 = 52;
pub(super) const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;

/// Length of `struct ifinfomsg`.
const LINK_HEADER_LEN: usize = 16;

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_INFINIBAND: u16 = 32;

/// The attributes of a link message.
pub(super) fn attributes(payload: &[u8]) -> &[u8] {
    payload.get(LINK_HEADER_LEN..).unwrap_or_default()
}

/// A link from the payload of an `RTM_NEWLINK` answer.
pub(super) fn parse(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    let attributes = attributes(payload);
    let text = |kind| find(attributes, kind).and_then(text_of);
    let number = |kind| find(attributes, kind).and_then(u32_of);
    let mac = |kind| find(attributes, kind).and_then(|value| <[u8; 6]>::try_from(value).ok()).map(MacAddr);
    let alt_names = find(attributes, IFLA_PROP_LIST).into_iter().flat_map(walk).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
    let carrier = find(attributes, IFLA_CARRIER).and_then(u8_of).map(|carrier| carrier != 0);
    let netdev = Netdev {
        ifindex: header.index,
        name: text(IFLA_IFNAME)?,
        alt_names: alt_names.filter_map(|(_, name)| text_of(name)).collect(),
        mac: mac(IFLA_ADDRESS),
        mtu: number(IFLA_MTU).unwrap_or_default(),
        max_mtu: number(IFLA_MAX_MTU).filter(|mtu| *mtu != 0),
        admin_up: header.flags.contains(LinkFlags::Up),
        carrier: carrier.unwrap_or(header.flags.contains(LinkFlags::LowerUp)),
        link_type: match u16::from(header.link_layer_type) {
            ARPHRD_ETHER => LinkType::Ether,
            ARPHRD_INFINIBAND => LinkType::Infiniband,
            _ => LinkType::Other,
        },
    };
    let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let stack = Stack {
        master: number(IFLA_MASTER).filter(|master| *master != 0),
        // With a namespace id the index counts there; a link that names itself (a tunnel) stands on nothing.
        lower: number(IFLA_LINK).filter(|lower| *lower != 0 && *lower != header.index && find(attributes, IFLA_LINK_NETNSID).is_none()),
        kind: find(attributes, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_KIND)).and_then(text_of),
        switch_id: find(attributes, IFLA_PHYS_SWITCH_ID).map(hex).filter(|id| !id.is_empty()),
    };
    let on_pci = text(IFLA_PARENT_DEV_BUS_NAME).is_some_and(|bus| bus == "pci");
    Some(Link {
        netdev,
        parent: text(IFLA_PARENT_DEV_NAME).filter(|_| on_pci).and_then(|name| name.parse().ok()),
        parent_device: text(IFLA_PARENT_DEV_NAME),
        phys_port_name: text(IFLA_PHYS_PORT_NAME),
        permanent_mac: mac(IFLA_PERM_ADDRESS),
        port_guid: find(attributes, IFLA_ADDRESS).and_then(port_guid),
        promisc: header.flags.contains(LinkFlags::Promisc),
        allmulti: header.flags.contains(LinkFlags::Allmulti),
        stack,
    })
}

fn port_guid(address: &[u8]) -> Option<Guid> {
    let last = address.get(12..).filter(|_| address.len() == 20)?;
    Some(Guid(u64::from_be_bytes(last.try_into().ok()?)))
}

/// A message about the link with this index and these attributes.
pub(super) fn message(ifindex: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    message
}

impl LinkChange<'_> {
    pub(super) fn message(&self, ifindex: u32) -> LinkMessage {
        let attributes = [
            self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())),
            self.name.map(|name| LinkAttribute::IfName(name.to_owned())),
            self.mtu.map(LinkAttribute::Mtu),
            self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())),
        ];
        let mut message = message(ifindex, attributes.into_iter().flatten().collect());
        for (wanted, flag) in [(self.up, LinkFlags::Up), (self.allmulti, LinkFlags::Allmulti), (self.promisc, LinkFlags::Promisc)] {
            if let Some(on) = wanted {
                message.header.change_mask.insert(flag);
                message.header.flags.set(flag, on);
            }
        }
        message
    }

    /// What is changed, for messages: `name net1, mtu 1500, to another namespace`.
    pub(super) fn describe(&self) -> String {
        let switch = |what: &str, on: Option<bool>| on.map(|on| format!("{what} {}", if on { "on" } else { "off" }));
        let parts = [
            self.netns.map(|_| "to another namespace".to_owned()),
            self.name.map(|name| format!("name {name}")),
            self.mtu.map(|mtu| format!("mtu {mtu}")),
            self.mac.map(|mac| format!("mac {mac}")),
            self.up.map(|up| if up { "up" } else { "down" }.to_owned()),
            switch("allmulti", self.allmulti),
            switch("promisc", self.promisc),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
