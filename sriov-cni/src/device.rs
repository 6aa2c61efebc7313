//! I/O: which device a PCI address names: a VF of which PF, with a netdev of the kernel or in the hands of a program.
//!
//! What does not live here: changing anything.
//!
//! Invariant: devices are found by PCI address; names are looked up each time, because anybody may change them.

use sriov_host::Host;
use sriov_host::discover::{self, DiscoverError};
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
    /// Its PF.
    pub pf: PciAddress,
    /// Its index on the PF.
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
        let location = discover::vf_location(host, vf).map_err(|cause| DeviceError::Find { vf, cause })?;
        let driver = location.driver.ok_or(DeviceError::NoDriver { vf })?;
        let netdev = if quirks::is_userspace(&driver) {
            None
        } else {
            let found = netdev_in_host(host, route, vf)?.map_or_else(|| route.link_by_pci(vf), |link| Ok(Some(link)))?;
            Some(found.ok_or_else(|| DeviceError::NoNetdev { vf, driver: driver.clone() })?)
        };
        Ok(Self { vf, pf: location.pf, index: location.index, driver, netdev })
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
        let Self { vf, pf, index, .. } = *self;
        let link = pf_link(host, route, pf)?.ok_or(DeviceError::NoPfNetdev { vf, pf })?;
        let attributes = route.vf(link.netdev.ifindex, index)?.ok_or(DeviceError::NotReported { vf, pf, index })?;
        Ok((link, attributes))
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
