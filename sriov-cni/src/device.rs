//! I/O: which device an id names: a VF of which PF, a vDPA device of a VF or a sub-function; with a netdev of the kernel or in the hands of a program.
//!
//! What does not live here: changing anything.
//!
//! Invariant: devices are found by their place on a bus; names are looked up each time, because anybody may change them.

use sriov_host::Host;
use sriov_host::discover::{self, DiscoverError, VfLocation};
use sriov_host::function::{self, Vdpa};
use sriov_host::netlink::{Link, NetlinkError, Route, route};
use sriov_host::pci::PciAddress;
use sriov_host::sysfs::SysfsError;
use sriov_host::vf::{VfAttributes, VfIndex};

use crate::quirks;
use sriov_host::device_id::DeviceId;

/// The bus drivers of vDPA devices: the first hands them to programs, the second makes a netdev.
const VHOST: &str = "vhost_vdpa";
const VIRTIO: &str = "virtio_vdpa";

/// A VF or sub-function that can be attached.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub vf: DeviceId,
    /// Its PF; `None` in a virtual machine that was given the VF alone, and for a sub-function.
    pub pf: Option<PciAddress>,
    /// Its index on the PF; 0 without one.
    pub index: VfIndex,
    /// The driver that it is used by: the bound one, for a vDPA device that of its own bus.
    pub driver: String,
    /// Its vDPA device.
    pub vdpa: Option<Vdpa>,
    /// Its netdev in the host's namespace; `None` when a program uses it.
    pub netdev: Option<Link>,
}

/// A device that can't be attached. CNI error code 100, or 11 when waiting can help.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not there, or not a VF.
    #[error("failed to find the VF {vf}: {cause}")]
    Find {
        /// The address asked for.
        vf: DeviceId,
        /// Why.
        cause: Box<DiscoverError>,
    },
    /// No driver is bound.
    #[error("VF {vf} has no driver: expected a network driver, vfio-pci, uio_pci_generic or igb_uio")]
    NoDriver {
        /// The VF.
        vf: DeviceId,
    },
    /// A vDPA device that nothing uses.
    #[error("the vDPA device {name} of VF {vf} has {}: expected vhost_vdpa or virtio_vdpa", driver.as_ref().map_or("no driver".to_owned(), |d| format!("driver {d}")))]
    VdpaDriver {
        /// The VF.
        vf: DeviceId,
        /// Its vDPA device.
        name: String,
        /// What is bound to that.
        driver: Option<String>,
    },
    /// No such sub-function.
    #[error("failed to find the sub-function {sf}: there is no such device on the auxiliary bus")]
    FindSubFunction {
        /// Its name.
        sf: DeviceId,
    },
    /// Attributes that only VFs have.
    #[error("{sf} is a sub-function: vlan, vlanTrunk, rates, spoofchk, trust, link_state and infinibandGUID are set on VFs by their PF")]
    OnSubFunction {
        /// Its name.
        sf: DeviceId,
    },
    /// A network function with all its VFs, or one that the node itself lives on.
    #[error("{vf} is not a VF: {why}")]
    NotAVf {
        /// The function.
        vf: DeviceId,
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
        vf: DeviceId,
    },
    /// A driver that gives no netdev here.
    #[error("VF {vf} with driver {driver} has no netdev in the host's network namespace: is it still in another container?")]
    NoNetdev {
        /// The VF.
        vf: DeviceId,
        /// Its driver.
        driver: String,
    },
    /// The PF can't be configured from here.
    #[error("PF {pf} of VF {vf} has no netdev here: attributes of the VF can't be set")]
    NoPfNetdev {
        /// The VF.
        vf: DeviceId,
        /// The PF.
        pf: PciAddress,
    },
    /// The PF's driver leaves the VF out.
    #[error("PF {pf} does not report VF {index} ({vf}): its attributes can't be remembered, so none is set")]
    NotReported {
        /// The VF.
        vf: DeviceId,
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
    pub fn find(host: &Host, route: &Route, vf: DeviceId) -> Result<Self, DeviceError> {
        let Location { pf, index, driver } = locate(host, vf)?;
        let mut driver = driver.ok_or(DeviceError::NoDriver { vf })?;
        let vdpa = if quirks::is_userspace(&driver) { None } else { vdpa_of(host, vf)? };
        if let Some(Vdpa { name, driver: user, .. }) = &vdpa {
            match user {
                Some(user) if user == VHOST || user == VIRTIO => driver.clone_from(user),
                _ => return Err(DeviceError::VdpaDriver { vf, name: name.clone(), driver: user.clone() }),
            }
        }
        let netdev = if has_netdev(&driver) {
            let found = netdev_in_host(host, route, vf)?.map_or_else(|| listed(route, vf), |link| Ok(Some(link)))?;
            Some(found.ok_or_else(|| DeviceError::NoNetdev { vf, driver: driver.clone() })?)
        } else {
            None
        };
        if let (None, Some(link)) = (pf, &netdev)
            && route.routes(link.netdev.ifindex)?.iter().any(|r| r.prefix == 0)
        {
            return Err(DeviceError::NotAVf { vf, why: "it has no PF here, and the node's default route goes over it" });
        }
        Ok(Self { vf, pf, index, driver, vdpa, netdev })
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
        attributes(host, route, self.vf, (self.pf, self.index))
    }
}

/// What the PF of a device reports of it, with the PF's netdev; `place` is the PF, if there is one here, and the index there.
pub(crate) fn attributes(
    host: &Host,
    route: &Route,
    vf: DeviceId,
    place: (Option<PciAddress>, VfIndex),
) -> Result<(Link, VfAttributes), DeviceError> {
    let (pf, index) = (place.0.ok_or_else(|| without_pf(vf))?, place.1);
    let link = pf_link(host, route, pf)?.ok_or(DeviceError::NoPfNetdev { vf, pf })?;
    let attributes = route.vf(link.netdev.ifindex, index)?.ok_or(DeviceError::NotReported { vf, pf, index })?;
    Ok((link, attributes))
}

/// Why nothing can be asked of the PF of a device that has none here.
pub(crate) fn without_pf(vf: DeviceId) -> DeviceError {
    if vf.pci().is_some() { DeviceError::NoPf { vf } } else { DeviceError::OnSubFunction { sf: vf } }
}

/// Whether a device that is used by this driver has a netdev.
pub(crate) fn has_netdev(driver: &str) -> bool {
    !quirks::is_userspace(driver) && driver != VHOST
}

/// Where a function stands: its PF if that is here, its index there, its driver.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) pf: Option<PciAddress>,
    pub(crate) index: VfIndex,
    pub(crate) driver: Option<String>,
}

/// Finds a device. A PCI function without `physfn` is a VF too unless it can have VFs itself: in a virtual machine nothing tells that it is one.
pub(crate) fn locate(host: &Host, vf: DeviceId) -> Result<Location, DeviceError> {
    let folder = vf.folder();
    let alone = |folder: &str| {
        let driver = host.sysfs().read_link_name(format!("{folder}/driver"))?;
        Ok(Location { pf: None, index: VfIndex(0), driver })
    };
    let Some(address) = vf.pci() else {
        return if host.sysfs().exists(&folder) { alone(&folder) } else { Err(DeviceError::FindSubFunction { sf: vf }) };
    };
    match discover::vf_location(host, address) {
        Ok(VfLocation { pf, index, driver, .. }) => Ok(Location { pf: Some(pf), index, driver }),
        Err(DiscoverError::NotAVf(_)) => {
            if host.sysfs().exists(format!("{folder}/sriov_totalvfs")) {
                return Err(DeviceError::NotAVf { vf, why: "it is a PF" });
            }
            if host.sysfs().read_opt(format!("{folder}/class"))?.is_none_or(|class| !class.starts_with("0x02")) {
                return Err(DeviceError::NotAVf { vf, why: "it is no network function" });
            }
            alone(&folder)
        }
        Err(cause) => Err(DeviceError::Find { vf, cause: Box::new(cause) }),
    }
}

fn vdpa_of(host: &Host, vf: DeviceId) -> Result<Option<Vdpa>, SysfsError> {
    match vf.pci() {
        // Most machines have no such bus, and a function's folder is long.
        Some(address) if host.sysfs().exists("/sys/bus/vdpa") => function::vdpa_of(host, address),
        _ => Ok(None),
    }
}

/// The netdev of a device in the host's namespace, found without listing all links; `None` when it is not there.
pub(crate) fn netdev_in_host(host: &Host, route: &Route, vf: DeviceId) -> Result<Option<Link>, DeviceError> {
    let folder = vf.folder();
    let folder = match vdpa_of(host, vf)?.filter(|vdpa| vdpa.driver.as_deref() == Some(VIRTIO)) {
        // Its netdev is that of the virtio device on it.
        Some(vdpa) => {
            let names = host.sysfs().list_opt(format!("{folder}/{}", vdpa.name))?.unwrap_or_default();
            let Some(virtio) = names.into_iter().find(|name| name.starts_with("virtio")) else { return Ok(None) };
            format!("{folder}/{}/{virtio}", vdpa.name)
        }
        None => folder,
    };
    Ok(links_of(host, route, &folder, vf.pci())?.into_iter().next())
}

/// The netdev of a device among all links of a namespace, for kernels that tell its device (5.14); a vDPA device is not told apart from others there.
pub(crate) fn listed(route: &Route, vf: DeviceId) -> Result<Option<Link>, NetlinkError> {
    match vf {
        DeviceId::Pci(address) => route.link_by_pci(address),
        DeviceId::Sf(_) => by_device(route, &vf.to_string()),
    }
}

/// The link of this device, on whatever bus.
pub(crate) fn by_device(route: &Route, device: &str) -> Result<Option<Link>, NetlinkError> {
    Ok(route.links()?.into_iter().find(|link| link.parent_device.as_deref() == Some(device)))
}

/// The netdev through which a PF configures its VFs; `None` when the PF has none here (a virtual machine that was given VFs only).
pub(crate) fn pf_link(host: &Host, route: &Route, pf: PciAddress) -> Result<Option<Link>, DeviceError> {
    let links = links_of(host, route, &DeviceId::Pci(pf).folder(), Some(pf))?;
    Ok(route::uplink(links.iter()).cloned())
}

/// The links that sysfs lists for a device. A link that netlink does not know or gives to another function is left out: sysfs may have been mounted
/// for another network namespace.
fn links_of(host: &Host, route: &Route, folder: &str, function: Option<PciAddress>) -> Result<Vec<Link>, DeviceError> {
    let names = host.sysfs().list_opt(format!("{folder}/net"))?.unwrap_or_default();
    let mut links = Vec::new();
    for name in names {
        if let Some(link) = route.link_by_name(&name)?
            && link.netdev.name == name
            && link.parent.is_none_or(|parent| Some(parent) == function)
        {
            links.push(link);
        }
    }
    Ok(links)
}
