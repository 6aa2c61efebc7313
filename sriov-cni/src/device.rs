//! I/O: which device a PCI address names: a VF of which PF, with a netdev of the kernel or in the hands of a program.
//!
//! What does not live here: changing anything.
//!
//! Invariant: devices are found by PCI address; names are looked up each time, because anybody may change them.

use sriov_host::Host;
use sriov_host::discover::{self, DiscoverError, VfLocation};
use sriov_host::netlink::{Link, NetlinkError, Route, route};
use sriov_host::pci::PciAddress;
use sriov_host::sysfs::SysfsError;
use sriov_host::vf::{VfAttributes, VfIndex};

use crate::quirks;

/// A VF that can be attached.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its PCI address.
    pub vf: PciAddress,
    /// Its PF; `None` in a virtual machine that was given the VF alone.
    pub pf: Option<PciAddress>,
    /// Its index on the PF; 0 without one.
    pub index: VfIndex,
    /// The bound driver.
    pub driver: String,
    /// Its netdev in the host's namespace; `None` when a userspace driver holds it.
    pub netdev: Option<Link>,
}

/// A device that can't be attached. CNI error code 100, or 11 when waiting can help.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not there, or not a VF.
    #[error("failed to find the VF {vf}: {cause}")]
    Find {
        /// The address asked for.
        vf: PciAddress,
        /// Why.
        cause: DiscoverError,
    },
    /// No driver is bound.
    #[error("VF {vf} has no driver: expected a network driver, vfio-pci, uio_pci_generic or igb_uio")]
    NoDriver {
        /// The VF.
        vf: PciAddress,
    },
    /// A network function with all its VFs, or one that the node itself lives on.
    #[error("{vf} is not a VF: {why}")]
    NotAVf {
        /// The function.
        vf: PciAddress,
        /// What it is.
        why: &'static str,
    },
    /// Attributes are asked of a PF that is not here.
    #[error(
        "VF {vf} has no PF on this machine (a virtual machine that was given the VF alone): vlan, rates, spoofchk, trust and link_state have to be \
             set where its PF is"
    )]
    NoPf {
        /// The VF.
        vf: PciAddress,
    },
    /// A driver that gives no netdev here.
    #[error("VF {vf} with driver {driver} has no netdev in the host's network namespace: is it still in another container?")]
    NoNetdev {
        /// The VF.
        vf: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The PF can't be configured from here.
    #[error("PF {pf} of VF {vf} has no netdev here: attributes of the VF can't be set")]
    NoPfNetdev {
        /// The VF.
        vf: PciAddress,
        /// The PF.
        pf: PciAddress,
    },
    /// The PF's driver leaves the VF out.
    #[error("PF {pf} does not report VF {index} ({vf}): its attributes can't be remembered, so none is set")]
    NotReported {
        /// The VF.
        vf: PciAddress,
        /// The PF.
        pf: PciAddress,
        /// The VF's index.
        index: VfIndex,
    },
    /// A file of the machine.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// A netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Device {
    /// The VF with this address, as it is now.
    pub fn find(host: &Host, route: &Route, vf: PciAddress) -> Result<Self, DeviceError> {
        let Location { pf, index, driver } = locate(host, vf)?;
        let driver = driver.ok_or(DeviceError::NoDriver { vf })?;
        let netdev = if quirks::is_userspace(&driver) {
            None
        } else {
            let found = netdev_in_host(host, route, vf)?.map_or_else(|| route.link_by_pci(vf), |link| Ok(Some(link)))?;
            Some(found.ok_or_else(|| DeviceError::NoNetdev { vf, driver: driver.clone() })?)
        };
        if let (None, Some(link)) = (pf, &netdev)
            && route.routes(link.netdev.ifindex)?.iter().any(|r| r.prefix == 0)
        {
            return Err(DeviceError::NotAVf { vf, why: "it has no PF here, and the node's default route goes over it" });
        }
        Ok(Self { vf, pf, index, driver, netdev })
    }

    /// The userspace driver that holds it.
    pub fn userspace_driver(&self) -> Option<&str> {
        self.netdev.is_none().then_some(self.driver.as_str())
    }

    /// The kernel driver that makes its netdev.
    pub fn kernel_driver(&self) -> Option<&str> {
        self.netdev.is_some().then_some(self.driver.as_str())
    }

    /// What its PF reports of it, with the PF's netdev.
    pub fn attributes(&self, host: &Host, route: &Route) -> Result<(Link, VfAttributes), DeviceError> {
        let Self { vf, index, .. } = *self;
        let pf = self.pf.ok_or(DeviceError::NoPf { vf })?;
        let link = pf_link(host, route, pf)?.ok_or(DeviceError::NoPfNetdev { vf, pf })?;
        let attributes = route.vf(link.netdev.ifindex, index)?.ok_or(DeviceError::NotReported { vf, pf, index })?;
        Ok((link, attributes))
    }
}

/// Where a function stands: its PF if that is here, its index there, its driver.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) pf: Option<PciAddress>,
    pub(crate) index: VfIndex,
    pub(crate) driver: Option<String>,
}

/// Finds a VF. A function without `physfn` is one too unless it can have VFs itself: in a virtual machine nothing tells that it is one.
pub(crate) fn locate(host: &Host, vf: PciAddress) -> Result<Location, DeviceError> {
    match discover::vf_location(host, vf) {
        Ok(VfLocation { pf, index, driver, .. }) => Ok(Location { pf: Some(pf), index, driver }),
        Err(DiscoverError::NotAVf(_)) => {
            let device = format!("/sys/bus/pci/devices/{vf}");
            if host.sysfs().exists(format!("{device}/sriov_totalvfs")) {
                return Err(DeviceError::NotAVf { vf, why: "it is a PF" });
            }
            if host.sysfs().read_opt(format!("{device}/class"))?.is_none_or(|class| !class.starts_with("0x02")) {
                return Err(DeviceError::NotAVf { vf, why: "it is no network function" });
            }
            let driver = host.sysfs().read_link_name(format!("{device}/driver"))?;
            Ok(Location { pf: None, index: VfIndex(0), driver })
        }
        Err(cause) => Err(DeviceError::Find { vf, cause }),
    }
}

/// The netdev of a VF in the host's namespace, found without listing all links; `None` when it is not there.
pub(crate) fn netdev_in_host(host: &Host, route: &Route, vf: PciAddress) -> Result<Option<Link>, DeviceError> {
    Ok(links_of(host, route, vf)?.into_iter().next())
}

/// The netdev through which a PF configures its VFs; `None` when the PF has none here (a virtual machine that was given VFs only).
pub(crate) fn pf_link(host: &Host, route: &Route, pf: PciAddress) -> Result<Option<Link>, DeviceError> {
    let links = links_of(host, route, pf)?;
    Ok(route::uplink(links.iter()).cloned())
}

/// The links that sysfs lists for a PCI function. A link that netlink does not know or gives to another function is left out: sysfs may have
/// been mounted for another network namespace.
fn links_of(host: &Host, route: &Route, function: PciAddress) -> Result<Vec<Link>, DeviceError> {
    let names = host.sysfs().list_opt(format!("/sys/bus/pci/devices/{function}/net"))?.unwrap_or_default();
    let mut links = Vec::new();
    for name in names {
        if let Some(link) = route.link_by_name(&name)?
            && link.netdev.name == name
            && link.parent.is_none_or(|parent| parent == function)
        {
            links.push(link);
        }
    }
    Ok(links)
}
