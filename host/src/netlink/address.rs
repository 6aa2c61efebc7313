//! Pure: IP addresses and routes as rtnetlink takes and reports them.
//!
//! Invariant: reading never fails on a single attribute; only a message without its address or interface is left out.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType};

use super::attribute::{find, u32_of};

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address itself.
    pub address: IpAddr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// Duplicate address detection has not finished: not usable yet (IPv6).
    pub tentative: bool,
    /// Duplicate address detection found another owner (IPv6).
    pub dad_failed: bool,
    /// Valid on its link only (`fe80::/10`).
    pub link_local: bool,
}

/// A unicast route to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination network; all zero with prefix 0 is the default route.
    pub dst: IpAddr,
    /// Prefix length of the destination.
    pub prefix: u8,
    /// Next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub ifindex: u32,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised TCP segment size in bytes.
    pub advmss: Option<u32>,
    /// Metric; the lowest wins. The kernel's default is 0 for IPv4 and 1024 for IPv6.
    pub priority: Option<u32>,
    /// Routing table; the main table when `None`.
    pub table: Option<u32>,
    /// `RT_SCOPE_*`; link scope without a gateway and universe with one when `None`.
    pub scope: Option<u8>,
}

/// A unicast route of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Destination network.
    pub dst: IpAddr,
    /// Prefix length of the destination.
    pub prefix: u8,
    /// Next hop, if any.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub ifindex: u32,
    /// Metric.
    pub priority: u32,
    /// Routing table.
    pub table: u32,
}

/// Where packets to a network leave the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteOut {
    /// Destination network; all zero with prefix 0 is the default route.
    pub dst: IpAddr,
    /// Prefix length of the destination.
    pub prefix: u8,
    /// Metric.
    pub priority: u32,
    /// Outgoing interfaces: one, or one for each next hop.
    pub ifindexes: Vec<u32>,
}

impl RouteSpec {
    /// A route to `dst`/`prefix` out of this interface, everything else as the kernel chooses.
    pub fn new(dst: IpAddr, prefix: u8, ifindex: u32) -> Self {
        Self { dst, prefix, gateway: None, ifindex, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// Length of `struct rtmsg`.
const ROUTE_HEADER_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn ip_of(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// The message that names `address`/`prefix` on an interface.
pub(super) fn address_message(ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = ifindex;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if let IpAddr::V4(v4) = address
        && prefix < 31
    {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from_bits(v4.to_bits() | hosts)));
    }
    message
}

/// The interface and the address in the payload of an `RTM_NEWADDR` answer.
pub(super) fn parse_address(payload: &[u8]) -> Option<(u32, InterfaceAddress)> {
    let header = AddressHeader::parse(payload).ok()?;
    let attributes = payload.get(ADDRESS_HEADER_LEN..)?;
    // On a point-to-point link IFA_ADDRESS is the other side; IPv6 has no IFA_LOCAL otherwise.
    let address = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS)).and_then(ip_of)?;
    let flags = find(attributes, IFA_FLAGS).and_then(u32_of).unwrap_or(u32::from(header.flags.bits()));
    let flags = AddressFlags::from_bits_retain(flags);
    let found = InterfaceAddress {
        address,
        prefix: header.prefix_len,
        tentative: flags.contains(AddressFlags::Tentative),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
        link_local: header.scope == AddressScope::Link,
    };
    Some((header.index, found))
}

/// The message that adds this route.
pub(super) fn route_message(route: &RouteSpec) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst);
    message.header.destination_prefix_length = route.prefix;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.scope {
        Some(scope) => RouteScope::from(scope),
        None if route.gateway.is_none() => RouteScope::Link,
        None => RouteScope::Universe,
    };
    let table = route.table.unwrap_or(RouteHeader::RT_TABLE_MAIN.into());
    // A table above 255 is told by its attribute alone.
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    let metrics: Vec<_> = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)].into_iter().flatten().collect();
    let attributes = [
        Some(RouteAttribute::Destination(RouteAddress::from(route.dst))),
        Some(RouteAttribute::Oif(route.ifindex)),
        Some(RouteAttribute::Table(table)),
        route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))),
        route.priority.map(RouteAttribute::Priority),
        (!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)),
    ];
    message.attributes = attributes.into_iter().flatten().collect();
    message
}

/// A unicast route from the payload of an `RTM_NEWROUTE` answer; `None` for other kinds and for routes with several next hops.
pub(super) fn parse_route(payload: &[u8]) -> Option<RouteEntry> {
    let header = RouteHeader::parse(payload).ok().filter(|header| header.kind == RouteType::Unicast)?;
    let attributes = payload.get(ROUTE_HEADER_LEN..)?;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let number = |kind| find(attributes, kind).and_then(u32_of);
    Some(RouteEntry {
        dst: find(attributes, RTA_DST).and_then(ip_of).unwrap_or(any),
        prefix: header.destination_prefix_length,
        gateway: find(attributes, RTA_GATEWAY).and_then(ip_of),
        ifindex: number(RTA_OIF)?,
        priority: number(RTA_PRIORITY).unwrap_or_default(),
        table: number(RTA_TABLE).unwrap_or(header.table.into()),
    })
}

/// A unicast route of the main table from the payload of an `RTM_NEWROUTE` answer, with all its next hops.
pub(super) fn parse_route_out(payload: &[u8]) -> Option<RouteOut> {
    let header = RouteHeader::parse(payload).ok().filter(|header| header.kind == RouteType::Unicast)?;
    let attributes = payload.get(ROUTE_HEADER_LEN..)?;
    let table = find(attributes, RTA_TABLE).and_then(u32_of).unwrap_or(header.table.into());
    let any = match header.address_family {
        AddressFamily::Inet if table == u32::from(RouteHeader::RT_TABLE_MAIN) => IpAddr::from([0; 4]),
        AddressFamily::Inet6 if table == u32::from(RouteHeader::RT_TABLE_MAIN) => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut ifindexes: Vec<u32> = find(attributes, RTA_OIF).and_then(u32_of).into_iter().collect();
    // struct rtnexthop: length (2), flags (1), hops (1), interface (4), then its attributes.
    let mut hops = find(attributes, RTA_MULTIPATH).unwrap_or_default();
    while let Some(length) = super::attribute::u16_of(hops).map(usize::from).filter(|length| *length >= 8) {
        ifindexes.extend(hops.get(4..8).and_then(u32_of));
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let dst = find(attributes, RTA_DST).and_then(ip_of).unwrap_or(any);
    let priority = find(attributes, RTA_PRIORITY).and_then(u32_of).unwrap_or_default();
    Some(RouteOut { dst, prefix: header.destination_prefix_length, priority, ifindexes })
}
