//! I/O: reads PFs and VFs out of sysfs and joins them with what netlink said.
//!
//! What lives here: one function at a time, with few system calls each: the folder of a function is opened once, what many functions have in common is
//! read once. What does not: which functions there are, netlink (`discover`).
//!
//! Invariant: a function that vanishes while it is read is left out without an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::{DiscoverError, NetFacts, is_lone, is_pf, link_by_index, link_speed, parse, representors, vfs_of};
use crate::function::{Vdpa, identity};
use crate::guid::Guid;
use crate::host_use::HostUse;
use crate::inventory::{EswitchMode, Facts, FirmwareSettings, Netdev, Pf, Vf};
use crate::netlink::Link;
use crate::netlink::route::uplink;
use crate::nic::vf_space;
use crate::pci::{DeviceId, PciAddress, VendorId};
use crate::sysfs::Folder;
use crate::vf::VfIndex;
use crate::{Host, cloud, pci_device};

/// Reads functions of one machine at one moment.
pub(super) struct Reader<'a> {
    host: &'a Host,
    facts: &'a NetFacts,
    by_parent: BTreeMap<PciAddress, Vec<&'a Link>>,
    /// Links that anything of the host depends on, directly or through others. Most VFs' are not among them.
    in_use: BTreeSet<u32>,
    /// Versions of drivers' modules, by driver.
    versions: Mutex<BTreeMap<String, Option<String>>>,
    /// vDPA devices, by the function that carries them.
    vdpa: BTreeMap<PciAddress, Vdpa>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(host: &'a Host, facts: &'a NetFacts, vdpa: BTreeMap<PciAddress, Vdpa>) -> Self {
        let mut by_parent: BTreeMap<PciAddress, Vec<&Link>> = BTreeMap::new();
        let mut in_use: BTreeSet<u32> = facts.network.addresses.iter().map(|(index, _)| *index).collect();
        in_use.extend(facts.network.routes.iter().flat_map(|route| &route.ifindexes));
        for link in &facts.links {
            if let Some(parent) = link.parent {
                by_parent.entry(parent).or_default().push(link);
            }
            in_use.extend(link.stack.lower);
            in_use.extend(link.stack.master.map(|_| link.netdev.ifindex));
        }
        Self { host, facts, by_parent, in_use, versions: Mutex::default(), vdpa }
    }

    fn link(&self, address: PciAddress) -> Option<&'a Link> {
        let links = self.by_parent.get(&address).map(Vec::as_slice).unwrap_or_default();
        uplink(links.iter().copied()).or_else(|| link_by_index(self.host, address, &self.facts.links))
    }

    /// One PF; `None` when there is no such function or it cannot have VFs.
    pub(super) fn pf(&self, address: PciAddress) -> Result<Option<Pf>, DiscoverError> {
        let settings = self.facts.firmware_settings.get(&address).cloned().unwrap_or_default();
        let is_off = !is_pf(self.host.sysfs(), address);
        if is_off && !settings.is_offered() {
            return self.lone(address);
        }
        let Some(device) = Device::open(self.host, address)? else { return Ok(None) };
        let Some((vendor, id)) = device.ids()? else { return Ok(None) };
        // Without the capability there are no such files.
        let count = |name: &str| Ok::<_, DiscoverError>(device.number::<u16>(name)?.or(is_off.then_some(0)));
        let Some(totalvfs) = count("sriov_totalvfs")? else { return Ok(None) };
        let Some(numvfs) = count("sriov_numvfs")? else { return Ok(None) };
        let link = self.link(address);
        let attributes = link.and_then(|link| self.facts.vf_attributes.get(&link.netdev.ifindex)).map(Vec::as_slice).unwrap_or_default();
        let mut attributes: BTreeMap<VfIndex, _> = attributes.iter().map(|attributes| (attributes.index, attributes)).collect();
        let mut representors = link.map(|link| representors(link, &self.facts.links)).unwrap_or_default();
        let mut vfs = Vec::with_capacity(numvfs.into());
        for (index, vf) in vfs_of(&device.folder, &device.path)? {
            let Some(found) = self.vf(vf, index)? else { continue };
            let representor = representors.remove(&index);
            let facts = Facts { representor_idle: representor.as_deref().is_some_and(|name| self.is_idle(name)), representor, ..found.facts };
            vfs.push(Vf { attributes: attributes.remove(&index).cloned(), facts, ..found });
        }
        let driver = device.folder.read_link_name("driver")?;
        let vf_space = device.folder.read_opt("resource")?.as_deref().and_then(vf_space);
        let more = self.function(&device, driver.as_deref(), link)?;
        Ok(Some(Pf {
            address,
            vendor,
            device: id,
            vf_device: device.folder.read_opt("sriov_vf_device")?.and_then(|id| id.parse().ok()),
            totalvfs,
            numvfs,
            numa_node: device.numa_node()?,
            eswitch_mode: self.facts.eswitch_modes.get(&address).copied().unwrap_or_default(),
            link_speed_mbps: link.and_then(|link| link_speed(self.host.sysfs(), &device.path, &link.netdev)),
            netdev: link.map(|link| link.netdev.clone()),
            vfs,
            facts: Facts { firmware: self.facts.firmware.get(&address).cloned(), firmware_settings: settings, vf_space, ..more },
            driver,
        }))
    }

    /// A function of a virtual machine that stands for its PF and is its only VF.
    fn lone(&self, address: PciAddress) -> Result<Option<Pf>, DiscoverError> {
        if cloud::of(self.host).is_none() || !is_lone(self.host.sysfs(), address) {
            return Ok(None);
        }
        let Some(found) = self.vf(address, VfIndex(0))? else { return Ok(None) };
        let link = self.link(address).or_else(|| self.virtio_link(address));
        let netdev = link.map(|link| link.netdev.clone());
        let vf = Vf { facts: Facts { uses: self.uses(netdev.as_ref()), ..found.facts }, netdev: netdev.clone(), ..found };
        Ok(Some(Pf {
            address,
            vendor: vf.vendor,
            device: vf.device,
            vf_device: Some(vf.device),
            driver: vf.driver.clone(),
            totalvfs: 1,
            numvfs: 1,
            numa_node: vf.numa_node,
            eswitch_mode: EswitchMode::Legacy,
            link_speed_mbps: link.and_then(|link| link_speed(self.host.sysfs(), &pci_device(address), &link.netdev)),
            netdev,
            facts: Facts { lone: true, ..vf.facts.clone() },
            vfs: vec![vf],
        }))
    }

    /// The netdev of a virtio device, whose parent is that device and not its PCI function.
    fn virtio_link(&self, address: PciAddress) -> Option<&'a Link> {
        let names = self.host.sysfs().list_opt(pci_device(address)).ok().flatten().unwrap_or_default();
        let virtio = names.iter().find(|name| name.starts_with("virtio"))?;
        self.facts.links.iter().find(|link| link.parent_device.as_ref() == Some(virtio))
    }

    /// What the host uses this netdev for.
    fn uses(&self, netdev: Option<&Netdev>) -> Vec<HostUse> {
        let index = netdev.map(|netdev| netdev.ifindex).filter(|index| self.in_use.contains(index));
        index.map(|index| self.facts.network.uses_of(index, &self.facts.links)).unwrap_or_default()
    }

    /// Says anew what the host uses a PF and its VFs for, which may change without any change of theirs.
    pub(super) fn read_uses_again(&self, pf: &mut Pf) {
        pf.facts.uses = self.uses(pf.netdev.as_ref());
        for vf in &mut pf.vfs {
            vf.facts.uses = self.uses(vf.netdev.as_ref());
        }
    }

    /// Whether a representor is down and a port of nothing.
    fn is_idle(&self, name: &str) -> bool {
        self.facts.links.iter().any(|link| link.netdev.name == name && !link.netdev.admin_up && link.stack.master.is_none())
    }

    /// A VF without what its PF says of it; `None` when it has vanished.
    fn vf(&self, address: PciAddress, index: VfIndex) -> Result<Option<Vf>, DiscoverError> {
        let Some(device) = Device::open(self.host, address)? else { return Ok(None) };
        let Some((vendor, id)) = device.ids()? else { return Ok(None) };
        let link = self.link(address);
        let driver = device.folder.read_link_name("driver")?;
        Ok(Some(Vf {
            index,
            address,
            vendor,
            device: id,
            iommu_group: device.iommu_group()?,
            numa_node: device.numa_node()?,
            netdev: link.map(|link| link.netdev.clone()),
            attributes: None,
            facts: self.function(&device, driver.as_deref(), link)?,
            driver,
        }))
    }

    /// What is read of PFs and VFs alike.
    fn function(&self, device: &Device, driver: Option<&str>, link: Option<&Link>) -> Result<Facts, DiscoverError> {
        let rdma = device.folder.list_opt("infiniband")?.unwrap_or_default();
        Ok(Facts {
            node_guid: rdma.first().map(|first| device.node_guid(first)).transpose()?.flatten(),
            port_guid: link.and_then(|link| link.port_guid),
            vdpa: self.vdpa.get(&device.address).cloned(),
            uses: self.uses(link.map(|link| &link.netdev)),
            representor: None,
            representor_idle: false,
            lone: false,
            net_filter: None,
            rdma,
            iommu_type: device.folder.read_opt("iommu_group/type")?,
            firmware: None,
            firmware_settings: FirmwareSettings::default(),
            vf_space: None,
            driver_version: driver.map(|driver| self.version(device, driver)).transpose()?.flatten(),
        })
    }

    fn version(&self, device: &Device, driver: &str) -> Result<Option<String>, DiscoverError> {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = versions.get(driver) {
            return Ok(version.clone());
        }
        let version = device.folder.read_opt("driver/module/version")?;
        versions.insert(driver.to_owned(), version.clone());
        Ok(version)
    }
}

/// The folder of a function.
struct Device {
    folder: Folder,
    path: String,
    address: PciAddress,
}

impl Device {
    fn open(host: &Host, address: PciAddress) -> Result<Option<Self>, DiscoverError> {
        let path = pci_device(address);
        Ok(host.sysfs().folder(&path)?.map(|folder| Self { folder, path, address }))
    }

    /// `uevent` tells both in one read; files of their own tell the same.
    fn ids(&self) -> Result<Option<(VendorId, DeviceId)>, DiscoverError> {
        if let Some(told) = self.folder.read_opt("uevent")?.as_deref().and_then(identity) {
            return Ok(Some((told.vendor, told.device)));
        }
        let (Some(vendor), Some(device)) = (self.folder.read_opt("vendor")?, self.folder.read_opt("device")?) else { return Ok(None) };
        let vendor = parse(&self.of("vendor"), &vendor, "a PCI vendor id", |text| text.parse().ok())?;
        Ok(Some((vendor, parse(&self.of("device"), &device, "a PCI device id", |text| text.parse().ok())?)))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, DiscoverError> {
        let Some(text) = self.folder.read_opt(name)? else { return Ok(None) };
        parse(&self.of(name), &text, "a number", |text| text.parse().ok()).map(Some)
    }

    /// The kernel writes `0c42:a103:0016:054c`.
    fn node_guid(&self, rdma: &str) -> Result<Option<Guid>, DiscoverError> {
        let text = self.folder.read_opt(&format!("infiniband/{rdma}/node_guid"))?.unwrap_or_default();
        Ok(text.replace(':', ".").parse().ok())
    }

    /// The kernel writes -1 where the platform tells no node.
    fn numa_node(&self) -> Result<Option<u16>, DiscoverError> {
        Ok(self.number::<i32>("numa_node")?.and_then(|node| u16::try_from(node).ok()))
    }

    fn iommu_group(&self) -> Result<Option<u32>, DiscoverError> {
        let Some(name) = self.folder.read_link_name("iommu_group")? else { return Ok(None) };
        parse(&self.of("iommu_group"), &name, "an IOMMU group number", |text| text.parse().ok()).map(Some)
    }

    fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}
