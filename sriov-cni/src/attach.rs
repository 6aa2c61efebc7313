//! I/O: the changes of ADD, one function each: attributes through the PF, move, bring up, addresses, announcement. Order and undo are `add`'s and `undo`'s.
//!
//! Invariant: each change can be taken back from the journal alone, so that none keeps anything to itself.

use std::net::IpAddr;
use std::time::Instant;

use rustix::io::Errno;
use sriov_host::Host;
use sriov_host::guid::Guid;
use sriov_host::inventory::LinkType;
use sriov_host::mac::MacAddr;
use sriov_host::netlink::route::OpenRouteError;
use sriov_host::netlink::{Link, LinkChange, NetlinkError, Route, RouteSpec};
use sriov_host::netns::{NetNs, NetNsError};
use sriov_host::pci::PciAddress;
use sriov_host::sysfs::SysfsError;
use sriov_host::vf::{VfIndex, VfSetting};

use crate::conf::VfRequest;
use crate::deadline::while_busy;
use crate::device::{Device, DeviceError, pf_link, without_pf};
use crate::infiniband::{self, ProbeError};
use crate::log::{Level, Log};
use crate::quirks::{self, MacOrder};
use crate::rdma::RdmaError;
use crate::result::CniResult;
use crate::vlan_set::VlanSet;
use crate::{trunk, vf_plan};
use sriov_host::device_id::DeviceId;

/// A change that the kernel or a driver refused. CNI error code 101 for attributes, 102 for the rest.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The driver refused one attribute.
    #[error("VF {index} of {pf}: the driver refused {} ({setting}): {cause}", setting.name())]
    Refused {
        /// Name of the PF's netdev.
        pf: String,
        /// The VF.
        index: VfIndex,
        /// The attribute.
        setting: VfSetting,
        /// The driver's answer.
        cause: Box<NetlinkError>,
    },
    /// The driver accepted an attribute and left it as it was.
    #[error("VF {index} of {pf}: the driver accepted {} ({setting}) but did not take it over", setting.name())]
    Ignored {
        /// Name of the PF's netdev.
        pf: String,
        /// The VF.
        index: VfIndex,
        /// The attribute.
        setting: VfSetting,
    },
    /// More than the driver says it can do.
    #[error("mtu is {asked}: {netdev} takes at most {max}")]
    Mtu {
        /// The netdev.
        netdev: String,
        /// What was asked.
        asked: u32,
        /// Its limit.
        max: u32,
    },
    /// There is no netdev to set this on.
    #[error("{key} is {given}: VF {vf} is held by {driver}, so that only the program which uses it can set this")]
    Userspace {
        /// The key.
        key: &'static str,
        /// What was asked.
        given: String,
        /// The VF.
        vf: DeviceId,
        /// Its driver.
        driver: String,
    },
    /// A netdev where the network wants none.
    #[error("vfioPciMode is true: VF {vf} has driver {driver} and the netdev {netdev}; the pool's devices have to be held by vfio-pci")]
    NotUserspace {
        /// The VF.
        vf: DeviceId,
        /// Its driver.
        driver: String,
        /// Its netdev.
        netdev: String,
    },
    /// A link of the asked name is there.
    #[error("the container already has an interface {name:?}")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A netdev that was just moved is not found.
    #[error("the container has no interface {name:?}")]
    Lost {
        /// The name.
        name: String,
    },
    /// A change of the netdev failed.
    #[error("failed to {what}: {cause}")]
    Change {
        /// The change.
        what: String,
        /// Why.
        cause: NetlinkError,
    },
    /// A GUID for a VF that has none.
    #[error("infinibandGUID is {guid}: PF {pf} is no InfiniBand port")]
    NotInfiniband {
        /// Name of the PF's netdev.
        pf: String,
        /// What was asked.
        guid: Guid,
    },
    /// No interface for trunks.
    #[error(
        "vlanTrunk is {trunk}: the driver of PF {pf} has no interface for it (no file sriov/{index}/trunk in the PF's folder of sysfs; of drivers in the \
             kernel's own tree none has it)"
    )]
    NoTrunk {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        index: VfIndex,
        /// What was asked.
        trunk: VlanSet,
    },
    /// The driver refused the trunk.
    #[error("VF {index} of {pf}: the driver refused vlanTrunk ({trunk}): {cause}")]
    TrunkRefused {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        index: VfIndex,
        /// What was asked.
        trunk: VlanSet,
        /// The driver's answer.
        cause: SysfsError,
    },
    /// The driver accepted the trunk and left it as it was.
    #[error("VF {index} of {pf}: the driver accepted vlanTrunk ({trunk}) but has {found}")]
    TrunkIgnored {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        index: VfIndex,
        /// What was asked.
        trunk: VlanSet,
        /// What is there.
        found: VlanSet,
    },
    /// Its RDMA device.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
    /// Binding it anew.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The container's namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl From<OpenRouteError> for AttachError {
    fn from(error: OpenRouteError) -> Self {
        match error {
            OpenRouteError::Enter(error) => Self::NetNs(error),
            OpenRouteError::Open(error) => Self::Netlink(error),
        }
    }
}

/// Sets attributes of a VF in one message. If the driver refuses it, each is tried alone, so that the refused one has a name: the kernel's
/// answer does not say which it was, and those before it are in effect by then.
pub(crate) fn set_attributes(route: &Route, pf: &Link, index: VfIndex, settings: &[VfSetting]) -> Result<(), AttachError> {
    if settings.is_empty() {
        return Ok(());
    }
    let refused = |setting: &VfSetting, cause| AttachError::Refused { pf: pf.netdev.name.clone(), index, setting: *setting, cause: Box::new(cause) };
    match (route.set_vf(pf.netdev.ifindex, index, settings), settings) {
        (Ok(()), _) => Ok(()),
        (Err(cause), [only]) => Err(refused(only, cause)),
        (Err(_), _) => settings.iter().try_for_each(|s| route.set_vf(pf.netdev.ifindex, index, &[*s]).map_err(|cause| refused(s, cause))),
    }
}

/// Brings a VF's attributes to `asked`, with the netdev's address in the order that its driver needs, and looks once whether they arrived. True when
/// the VF was bound anew for that: its netdev is then another.
pub(crate) fn configure(host: &Host, route: &Route, device: &mut Device, asked: &[VfSetting], deadline: Instant) -> Result<bool, AttachError> {
    let (pf, mut current) = device.attributes(host, route)?;
    let mac = asked.iter().find_map(|s| if let VfSetting::Mac(mac) = s { Some(*mac) } else { None });
    if let (Some(mac), Some(link), MacOrder::NetdevFirst) = (mac, &device.netdev, quirks::mac_order(device.kernel_driver()))
        && let Some(own) = link.netdev.mac
    {
        if let Some(release) = vf_plan::release_mac(&current, own, mac) {
            set_attributes(route, &pf, device.index, &[release])?;
            current.mac = MacAddr::ZERO;
        }
        if own != mac {
            let own = LinkChange { mac: Some(mac), ..LinkChange::default() };
            change(route, link, &own, deadline, || format!("set MAC {mac} on {}", link.netdev.name))?;
        }
    }
    let settings = vf_plan::changes(asked, &current);
    if settings.is_empty() {
        return Ok(false);
    }
    set_attributes(route, &pf, device.index, &settings)?;
    let (pf, after) = device.attributes(host, route)?;
    if let Some(vf_plan::Unmet(setting)) = vf_plan::unmet(&settings, &after) {
        return Err(AttachError::Ignored { pf: pf.netdev.name, index: device.index, setting });
    }
    match (infiniband::needs_probe(device.kernel_driver(), &settings), device.vf.pci()) {
        (true, Some(vf)) => {
            device.netdev = Some(infiniband::probe_again(host, route, vf, &device.driver, deadline)?);
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The trunk of a VF before it is changed.
pub(crate) fn original_trunk(host: &Host, device: &Device, asked: &VlanSet) -> Result<VlanSet, AttachError> {
    let pf = device.pf.ok_or_else(|| without_pf(device.vf))?;
    let current = trunk::read(host, pf, device.index).map_err(DeviceError::from)?;
    current.ok_or_else(|| AttachError::NoTrunk { pf, index: device.index, trunk: asked.clone() })
}

/// Lets these VLANs through to the VF and no others, and looks once whether it is so.
pub(crate) fn set_trunk(host: &Host, device: &Device, asked: &VlanSet) -> Result<(), AttachError> {
    let current = original_trunk(host, device, asked)?;
    let (pf, index) = (device.pf.ok_or_else(|| without_pf(device.vf))?, device.index);
    trunk::write(host, pf, index, &current, asked).map_err(|cause| AttachError::TrunkRefused { pf, index, trunk: asked.clone(), cause })?;
    let found = original_trunk(host, device, asked)?;
    if found == *asked { Ok(()) } else { Err(AttachError::TrunkIgnored { pf, index, trunk: asked.clone(), found }) }
}

/// Refuses a GUID for a VF of an Ethernet port, which could only fail half-way.
pub(crate) fn check_guid(pf: &Link, asked: Option<Guid>) -> Result<(), AttachError> {
    match asked {
        Some(guid) if pf.netdev.link_type != LinkType::Infiniband => Err(AttachError::NotInfiniband { pf: pf.netdev.name.clone(), guid }),
        _ => Ok(()),
    }
}

/// Refuses an MTU that the VF's or the PF's driver can't do.
pub(crate) fn check_mtu(host: &Host, route: &Route, device: &Device, asked: Option<u32>) -> Result<(), AttachError> {
    let Some(asked) = asked else { return Ok(()) };
    let pf = device.pf.map(|pf| pf_link(host, route, pf)).transpose()?.flatten();
    for link in device.netdev.iter().chain(pf.iter()) {
        if let Some(max) = link.netdev.max_mtu.filter(|max| asked > *max) {
            return Err(AttachError::Mtu { netdev: link.netdev.name.clone(), asked, max });
        }
    }
    Ok(())
}

/// What only a netdev has can't be set on a VF that a program holds. An MTU can: it is told in the result, as the PF's is without one.
pub(crate) fn refuse_without_netdev(wanted: &VfRequest, device: &Device) -> Result<(), AttachError> {
    let asked = [
        wanted.allmulti.map(|on| ("allmulti", if on { "on" } else { "off" }.to_owned())),
        wanted.promisc.map(|on| ("promisc", if on { "on" } else { "off" }.to_owned())),
    ];
    match asked.into_iter().flatten().next() {
        Some((key, given)) => Err(AttachError::Userspace { key, given, vf: device.vf, driver: device.driver.clone() }),
        None => Ok(()),
    }
}

/// A network for programs alone must not put a netdev into the container.
pub(crate) fn refuse_netdev(wanted: &VfRequest, device: &Device) -> Result<(), AttachError> {
    match &device.netdev {
        Some(link) if wanted.vfio_pci_mode => {
            Err(AttachError::NotUserspace { vf: device.vf, driver: device.driver.clone(), netdev: link.netdev.name.clone() })
        }
        _ => Ok(()),
    }
}

/// Refuses a name that the container already uses, which could only fail half-way.
pub(crate) fn check_name(pod: &Route, if_name: &str) -> Result<(), AttachError> {
    match pod.link_by_name(if_name)? {
        Some(_) => Err(AttachError::NameTaken { name: if_name.to_owned() }),
        None => Ok(()),
    }
}

/// Moves a netdev into the container under its new name, in one message.
pub(crate) fn move_in(route: &Route, link: &Link, netns: &NetNs, if_name: &str, deadline: Instant) -> Result<(), AttachError> {
    use std::os::fd::AsFd as _;
    // The kernel refuses a name that the link itself has as an alternative one (since 5.5).
    if link.netdev.alt_names.iter().any(|name| name == if_name) {
        route.del_alt_name(link.netdev.ifindex, if_name)?;
    }
    let moving = LinkChange { name: Some(if_name), netns: Some(netns.as_fd()), ..LinkChange::default() };
    let what = || format!("move {} into the container as {if_name}", link.netdev.name);
    match change(route, link, &moving, deadline, what) {
        // Since 6.6 the kernel also refuses a link whose alternative name the container uses.
        Err(AttachError::Change { cause, .. })
            if cause.errno() == Errno::EXIST.raw_os_error() && clear_alt_names(route, link, &Route::open_in(netns)?)? =>
        {
            change(route, link, &moving, deadline, what)
        }
        moved => moved,
    }
}

/// Takes away the alternative names of a link that the namespace it is bound for has too; the journal remembers them. False when there is none.
pub(crate) fn clear_alt_names(here: &Route, link: &Link, there: &Route) -> Result<bool, NetlinkError> {
    let mut cleared = false;
    for name in &link.netdev.alt_names {
        if there.link_by_name(name)?.is_some() {
            here.del_alt_name(link.netdev.ifindex, name)?;
            cleared = true;
        }
    }
    Ok(cleared)
}

/// In the container: address and MTU where they differ, then up. Returns the link as it is afterwards.
pub(crate) fn bring_up(pod: &Route, if_name: &str, asked: &VfRequest, deadline: Instant) -> Result<Link, AttachError> {
    let link = link_in_pod(pod, if_name)?;
    let wanted = LinkChange {
        mac: asked.mac.filter(|mac| link.netdev.mac != Some(*mac)),
        mtu: asked.mtu.filter(|mtu| link.netdev.mtu != *mtu),
        allmulti: asked.allmulti.filter(|on| link.allmulti != *on),
        promisc: asked.promisc.filter(|on| link.promisc != *on),
        ..LinkChange::default()
    };
    if wanted.mac.is_some() || wanted.mtu.is_some() || wanted.allmulti.is_some() || wanted.promisc.is_some() {
        change(pod, &link, &wanted, deadline, || format!("set MAC, MTU or flags of {if_name}"))?;
    }
    change(pod, &link, &LinkChange { up: Some(true), ..LinkChange::default() }, deadline, || format!("set {if_name} up"))?;
    link_in_pod(pod, if_name)
}

/// Sysctls by which neighbours learn quickly, before the netdev is up. The calling thread is in the container's namespace.
pub(crate) fn notify_neighbours(host: &Host, log: &Log, if_name: &str) {
    for sysctl in ["ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify", "ipv6/conf/{}/optimistic_dad"] {
        set_sysctl(host, log, &sysctl.replace("{}", if_name), "1");
    }
}

/// Runtimes turn IPv6 off in containers of a cluster without it. The calling thread is in the container's namespace.
pub(crate) fn allow_ipv6(host: &Host, log: &Log, if_name: &str) {
    set_sysctl(host, log, "ipv6/conf/lo/disable_ipv6", "0");
    set_sysctl(host, log, &format!("ipv6/conf/{if_name}/disable_ipv6"), "0");
    set_sysctl(host, log, &format!("ipv6/conf/{if_name}/keep_addr_on_down"), "1");
}

/// In the container: addresses, routes, then the announcement.
pub(crate) fn add_addresses(route: &Route, log: &Log, if_name: &str, result: &CniResult) -> Result<(), AttachError> {
    let ifindex = link_in_pod(route, if_name)?.netdev.ifindex;
    let there = |error: &NetlinkError| error.errno() == Errno::EXIST.raw_os_error();
    for ip in &result.ips {
        match route.add_address(ifindex, ip.address.addr, ip.address.len) {
            Err(cause) if !there(&cause) => return Err(AttachError::Change { what: format!("add {} to {if_name}", ip.address), cause }),
            _ => {}
        }
    }
    for entry in &result.routes {
        let spec = RouteSpec {
            gateway: entry.gw.or_else(|| gateway_of_family(result, entry.dst.addr)),
            mtu: entry.mtu,
            advmss: entry.advmss,
            priority: entry.priority,
            table: entry.table,
            scope: entry.scope,
            ..RouteSpec::new(entry.dst.addr, entry.dst.len, ifindex)
        };
        match route.add_route(&spec) {
            Err(cause) if !there(&cause) => return Err(AttachError::Change { what: format!("add the route to {} on {if_name}", entry.dst), cause }),
            _ => {}
        }
    }
    announce(route, log, ifindex, result);
    Ok(())
}

/// Tells neighbours that the IPv4 addresses are here now; for IPv6 the kernel does it by itself (`ndisc_notify`). Best effort: neighbours that
/// keep an old entry for a while are no reason to stop a pod.
fn announce(route: &Route, log: &Log, ifindex: u32, result: &CniResult) {
    for ip in &result.ips {
        if let IpAddr::V4(address) = ip.address.addr
            && let Err(error) = route.announce(ifindex, address)
        {
            log.write(Level::Warning, &error);
        }
    }
}

/// The gateway for a route that names none, as in the reference plugins (`ipam.ConfigureIface`).
fn gateway_of_family(result: &CniResult, dst: IpAddr) -> Option<IpAddr> {
    result.ips.iter().find(|ip| ip.address.addr.is_ipv4() == dst.is_ipv4()).and_then(|ip| ip.gateway)
}

fn link_in_pod(route: &Route, if_name: &str) -> Result<Link, AttachError> {
    route.link_by_name(if_name)?.ok_or_else(|| AttachError::Lost { name: if_name.to_owned() })
}

fn change(route: &Route, link: &Link, change: &LinkChange<'_>, deadline: Instant, what: impl FnOnce() -> String) -> Result<(), AttachError> {
    while_busy(deadline, || route.change_link(link.netdev.ifindex, change)).map_err(|cause| AttachError::Change { what: what(), cause })
}

/// A sysctl below `net`. Best effort: a kernel without IPv6 or without the option still carries packets.
fn set_sysctl(host: &Host, log: &Log, name: &str, value: &str) {
    if let Err(error) = host.sysfs().write(format!("/proc/sys/net/{name}"), value) {
        log.write(Level::Debug, &error);
    }
}
