//! I/O: fills the inventory: PCI functions from sysfs, their netdevs and VF attributes from netlink.
//!
//! What lives here: reading and joining. What an inventory is lives in `inventory`; what should be lives elsewhere.
//!
//! Invariant: one bad device never hides the others; it is left out and named among the faults ([`survey`]). A device that vanishes while it
//! is read is left out without a fault.

mod answers;
mod changes;
mod kept;
mod reader;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::host_use::HostNetwork;
use crate::inventory::{EswitchMode, FirmwareSettings, Inventory, Kernel, Netdev, Pf, RdmaMode};
use crate::netlink::route::uplink;
use crate::netlink::{Link, NetlinkError};
use crate::pci::{DeviceId, PciAddress, VendorId};
use crate::sysfs::{Folder, Sysfs, SysfsError};
use crate::vf::{VfAttributes, VfIndex};
use crate::{Host, boot_config, cloud, driver, kernel, pci_device, vdpa};
pub use answers::Answers;
use answers::Kernel as NetlinkKernel;
pub use changes::Changes;
pub use kept::{KeptSurvey, Look, Read};
use reader::Reader;

const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// A machine with so many functions is read by two threads.
const WORTH_A_THREAD: usize = 128;

/// A machine or a device of it that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A file of the machine could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Netlink failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// An attribute holds something else than its form.
    #[error("{path} holds {given:?}, expected {expected}")]
    Malformed {
        /// The attribute, as a path of the machine.
        path: String,
        /// Its text.
        given: String,
        /// What was expected.
        expected: &'static str,
    },
    /// There is no such PCI function.
    #[error("there is no PCI function {0}")]
    MissingDevice(PciAddress),
    /// The function is there and is not a VF.
    #[error("{0} is not a VF: it has no physfn link")]
    NotAVf(PciAddress),
    /// The function says that it is a VF of a PF that does not list it.
    #[error("PF {pf} does not list its VF {vf} among its virtfn links")]
    NotListed {
        /// The PF that the VF names.
        pf: PciAddress,
        /// The VF.
        vf: PciAddress,
    },
}

/// An inventory and what is missing in it.
#[derive(Debug, Default)]
pub struct Survey {
    /// What was found.
    pub inventory: Inventory,
    /// PFs that could not be read, each with its reason; they are not in the inventory.
    pub faults: Vec<(PciAddress, DiscoverError)>,
}

/// Where a VF belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfLocation {
    /// Its PF.
    pub pf: PciAddress,
    /// Its index there.
    pub index: VfIndex,
    /// Bound driver; `None` when unbound.
    pub driver: Option<String>,
    /// IOMMU group number (`/dev/vfio/<group>`).
    pub iommu_group: Option<u32>,
}

/// What netlink knows that sysfs does not, as a value, so that joining needs no kernel.
#[derive(Clone, Debug, Default)]
pub struct NetFacts {
    /// The links of the namespace.
    pub links: Vec<Link>,
    /// VF attributes by ifindex of the PF.
    pub vf_attributes: BTreeMap<u32, Vec<VfAttributes>>,
    /// Eswitch modes; a PF that is not here is in legacy mode.
    pub eswitch_modes: BTreeMap<PciAddress, EswitchMode>,
    /// Versions of firmware.
    pub firmware: BTreeMap<PciAddress, String>,
    /// What firmware is told for its next start, of each function that was asked.
    pub firmware_settings: BTreeMap<PciAddress, FirmwareSettings>,
    /// Addresses, routes and storage of the host.
    pub network: HostNetwork,
    /// Namespace mode of RDMA devices.
    pub rdma_mode: Option<RdmaMode>,
}

/// Drivers that tell firmware settings: Documentation/networking/devlink/bnxt.rst and mlx5.rst, v6.18. Others are not asked.
const FIRMWARE_DRIVERS: [&str; 2] = ["mlx5_core", "bnxt_en"];

/// The SR-IOV side of the machine now; devices that could not be read are left out. [`survey`] also names those. Without CAP_NET_ADMIN every
/// PF is said to be in legacy mode.
pub fn inventory(host: &Host) -> Result<Inventory, DiscoverError> {
    survey(host).map(|survey| survey.inventory)
}

/// As [`inventory`], with the faults.
pub fn survey(host: &Host) -> Result<Survey, DiscoverError> {
    whole(host, &NetlinkKernel::open()?).map(|(_, survey)| survey)
}

/// A look at everything, and what netlink said for it.
fn whole(host: &Host, answers: &impl Answers) -> Result<(NetFacts, Survey), DiscoverError> {
    let functions = Functions::list(host)?;
    let (facts, mut faults) = gather(host, answers, &[functions.pfs.as_slice(), &functions.off].concat())?;
    let mut survey = read_all(host, &facts, &functions)?;
    // Netlink failed for these, so that what is said of them would be half a truth.
    survey.inventory.pfs.retain(|pf| faults.iter().all(|(faulty, _)| *faulty != pf.address));
    faults.append(&mut survey.faults);
    Ok((facts, Survey { faults, ..survey }))
}

/// As [`survey`], with netlink's part given: reads only files.
pub fn survey_with(host: &Host, facts: &NetFacts) -> Result<Survey, DiscoverError> {
    read_all(host, facts, &Functions::list(host)?)
}

fn read_all(host: &Host, facts: &NetFacts, functions: &Functions) -> Result<Survey, DiscoverError> {
    let mut survey = Survey::default();
    survey.inventory.iommu = kernel::iommu(host)?;
    survey.inventory.kernel = Kernel { lockdown: kernel::lockdown(host), rdma_mode: facts.rdma_mode, staged: boot_config::command_lines(host) };
    let reader = Reader::new(host, facts, vdpa::by_function(host)?);
    let (addresses, next) = ([functions.pfs.as_slice(), &functions.lone, &functions.off].concat(), AtomicUsize::new(0));
    // PFs differ much in their number of VFs: each thread takes the next one when it has read one.
    let read = || {
        let mine = std::iter::from_fn(|| addresses.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.map(|address| (*address, reader.pf(*address))).collect::<Vec<_>>()
    };
    let mut found = thread::scope(|scope| {
        let other = (functions.count >= WORTH_A_THREAD).then(|| scope.spawn(read));
        let mut found = read();
        found.extend(other.map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).unwrap_or_default());
        found
    });
    found.sort_by_key(|(address, _)| *address);
    for (address, read) in found {
        match read {
            Ok(pf) => survey.inventory.pfs.extend(pf),
            Err(error) => survey.faults.push((address, error)),
        }
    }
    Ok(survey)
}

/// One PF; `None` when there is no such function or it cannot have VFs.
pub fn pf(host: &Host, address: PciAddress) -> Result<Option<Pf>, DiscoverError> {
    let (facts, faults) = gather(host, &NetlinkKernel::open()?, &[address])?;
    if let Some((_, error)) = faults.into_iter().next() {
        return Err(error);
    }
    Reader::new(host, &facts, vdpa::by_function(host)?).pf(address)
}

/// Where a VF belongs, its driver and its IOMMU group: a handful of small reads, no netlink.
pub fn vf_location(host: &Host, vf: PciAddress) -> Result<VfLocation, DiscoverError> {
    let sysfs = host.sysfs();
    let device = pci_device(vf);
    let Some(name) = sysfs.read_link_name(format!("{device}/physfn"))? else {
        return Err(if sysfs.exists(&device) { DiscoverError::NotAVf(vf) } else { DiscoverError::MissingDevice(vf) });
    };
    let pf = parse(&format!("{device}/physfn"), &name, "a PCI address", |text| text.parse().ok())?;
    Ok(VfLocation { pf, index: vf_index(sysfs, pf, vf)?, driver: driver::current(host, vf)?, iommu_group: iommu_group(sysfs, &device)? })
}

/// The IOMMU group number (`/dev/vfio/<group>`) of a PCI function of any kind; `None` without an IOMMU.
pub fn iommu_group_of(host: &Host, address: PciAddress) -> Result<Option<u32>, DiscoverError> {
    iommu_group(host.sysfs(), &pci_device(address))
}

/// The VFs that a PF has now, in order of index, from its `virtfnN` links.
pub fn vf_addresses(host: &Host, pf: PciAddress) -> Result<Vec<(VfIndex, PciAddress)>, DiscoverError> {
    let device = pci_device(pf);
    host.sysfs().folder(&device)?.map_or(Ok(Vec::new()), |folder| vfs_of(&folder, &device))
}

/// The same, of the open folder of a PF.
fn vfs_of(folder: &Folder, device: &str) -> Result<Vec<(VfIndex, PciAddress)>, DiscoverError> {
    let mut vfs = Vec::new();
    for name in folder.list_opt(".")?.unwrap_or_default() {
        let Some(index) = name.strip_prefix("virtfn").and_then(|index| index.parse().ok()) else { continue };
        if let Some(target) = folder.read_link_name(&name)? {
            vfs.push((VfIndex(index), parse(&format!("{device}/{name}"), &target, "a PCI address", |text| text.parse().ok())?));
        }
    }
    vfs.sort_unstable();
    Ok(vfs)
}

/// Asks netlink about the machine and these PFs. What fails for one PF is a fault of that PF.
fn gather(host: &Host, answers: &impl Answers, pfs: &[PciAddress]) -> Result<(NetFacts, Vec<(PciAddress, DiscoverError)>), DiscoverError> {
    let mut facts = NetFacts { links: answers.links()?, network: answers.network(host)?, rdma_mode: answers.rdma_mode(), ..NetFacts::default() };
    let faults = pfs.iter().filter_map(|pf| Some((*pf, ask(host, answers, *pf, &mut facts)?))).collect();
    Ok((facts, faults))
}

/// Asks netlink about one PF, whose link is known; answers what failed.
fn ask(host: &Host, answers: &impl Answers, pf: PciAddress, facts: &mut NetFacts) -> Option<DiscoverError> {
    // Asked once a whole look: the kernel announces nothing of it, it changes by our own hand, and a NIC that does not know the question logs it.
    if !facts.firmware_settings.contains_key(&pf) && tells_settings(host, pf) {
        facts.firmware_settings.insert(pf, answers.firmware_settings(pf));
    }
    if is_off(host.sysfs(), pf) {
        return None;
    }
    match answers.eswitch_mode(pf) {
        Ok(mode) => facts.eswitch_modes.extend(mode.map(|mode| (pf, mode))),
        Err(error) => return Some(error.into()),
    }
    facts.firmware.extend(answers.firmware(pf).map(|firmware| (pf, firmware)));
    // Drivers answer for their VFs slowly, some through a firmware mailbox: ask only those that have any.
    let has_vfs = host.sysfs().read(format!("{}/sriov_numvfs", pci_device(pf))).map_or(true, |numvfs| numvfs != "0");
    let link = netdev_link(host, pf, &facts.links).filter(|_| has_vfs)?;
    let ifindex = link.netdev.ifindex;
    match answers.vfs(ifindex) {
        Ok(vfs) => facts.vf_attributes.extend([(ifindex, vfs)]),
        Err(error) if error.is_gone() => {}
        Err(error) => return Some(error.into()),
    }
    None
}

/// The PCI functions of a machine, those that count in order of address.
struct Functions {
    /// Network functions that can have VFs.
    pfs: Vec<PciAddress>,
    /// On a virtual machine of a cloud the network functions that are no PFs: VFs of which the hypervisor keeps the PF, and virtio.
    lone: Vec<PciAddress>,
    /// Functions whose firmware may have SR-IOV off, and may be told otherwise. On a machine of a cloud there are none: firmware is the hypervisor's there.
    off: Vec<PciAddress>,
    /// How many there are of all kinds.
    count: usize,
}

impl Functions {
    fn list(host: &Host) -> Result<Self, DiscoverError> {
        let (sysfs, names) = (host.sysfs(), host.sysfs().list(FUNCTIONS)?);
        let mut all: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
        all.sort_unstable();
        let folder = sysfs.folder(FUNCTIONS)?;
        let text = |name: String| folder.as_ref()?.read_opt(&name).ok().flatten();
        let pfs = all.iter().copied().filter(|address| can_have_vfs(|name| text(format!("{address}/{name}")))).collect();
        let is_cloud = cloud::of(host).is_some();
        let lone = all.iter().copied().filter(|address| is_cloud && is_lone(sysfs, *address)).collect();
        let off = if is_cloud { Vec::new() } else { off_functions(sysfs)? };
        Ok(Self { pfs, lone, off, count: all.len() })
    }
}

/// Functions of drivers that tell firmware settings, which show no SR-IOV capability and are no VFs.
fn off_functions(sysfs: &Sysfs) -> Result<Vec<PciAddress>, DiscoverError> {
    let mut found = Vec::new();
    for driver in FIRMWARE_DRIVERS {
        let names = sysfs.list_opt(format!("/sys/bus/pci/drivers/{driver}"))?.unwrap_or_default();
        found.extend(names.iter().filter_map(|name| name.parse().ok()).filter(|address| is_off(sysfs, *address)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a function may have SR-IOV switched off in its firmware: a network function that has neither a PF nor the capability.
fn is_off(sysfs: &Sysfs, address: PciAddress) -> bool {
    // First what most functions of such a driver are: a VF.
    !sysfs.exists(format!("{}/physfn", pci_device(address))) && is_lone(sysfs, address)
}

/// Whether a function is one of which its firmware's settings have to be asked to know whether it is a PF.
fn may_be_off(host: &Host, address: PciAddress) -> bool {
    is_off(host.sysfs(), address) && tells_settings(host, address)
}

fn tells_settings(host: &Host, address: PciAddress) -> bool {
    driver::current(host, address).is_ok_and(|driver| driver.is_some_and(|driver| FIRMWARE_DRIVERS.contains(&driver.as_str())))
}

/// The PFs of the device that a PF is a function of, itself among them, in order of address.
pub fn functions_of_card(host: &Host, pf: PciAddress) -> Result<Vec<PciAddress>, DiscoverError> {
    Ok(Functions::list(host)?.pfs.into_iter().filter(|address| address.slot() == pf.slot()).collect())
}

/// Whether a function is a network function that has neither a PF nor VFs that one could see.
pub fn is_lone(sysfs: &Sysfs, address: PciAddress) -> bool {
    let device = pci_device(address);
    let network = sysfs.read(format!("{device}/class")).is_ok_and(|class| class.starts_with("0x02"));
    network && !is_pf(sysfs, address) && !sysfs.exists(format!("{device}/physfn"))
}

/// Whether a function can have VFs: PCI class 02 is "network controller"; `sriov_totalvfs` exists on functions with the SR-IOV capability and is 0 when
/// firmware switched it off.
pub fn is_pf(sysfs: &Sysfs, address: PciAddress) -> bool {
    let device = pci_device(address);
    can_have_vfs(|name| sysfs.read(format!("{device}/{name}")).ok())
}

/// Most functions have no `sriov_totalvfs`, VFs among them, so that it is asked for first.
fn can_have_vfs(text: impl Fn(&str) -> Option<String>) -> bool {
    text("sriov_totalvfs").is_some_and(|total| total != "0") && text("class").is_some_and(|class| class.starts_with("0x02"))
}

/// The representors of an uplink's VFs: ports of the same hardware switch, named `pf<function>vf<index>`. Where a switch has VFs of several functions
/// (two ports that form one switch), those of the uplink's own port (`p<port>`) count.
pub fn representors(uplink: &Link, links: &[Link]) -> BTreeMap<VfIndex, String> {
    let same_switch = |link: &&Link| uplink.stack.switch_id.is_some() && link.stack.switch_id == uplink.stack.switch_id;
    let ports = || links.iter().filter(same_switch).filter_map(|link| Some((vf_port(link.phys_port_name.as_deref()?)?, &link.netdev.name)));
    let own = uplink.phys_port_name.as_deref().and_then(|name| name.strip_prefix('p')).and_then(|port| port.parse::<u16>().ok());
    let first = ports().next().map(|((function, _), _)| function);
    let one = ports().all(|((function, _), _)| Some(function) == first);
    let wanted = if one { first } else { own };
    ports().filter(|((function, _), _)| Some(*function) == wanted).map(|((_, index), name)| (index, name.clone())).collect()
}

/// Function and VF of a port's name; on a NIC with processors of its own names begin with the controller: `c1pf0vf3`.
fn vf_port(name: &str) -> Option<(u16, VfIndex)> {
    let (_, name) = name.split_once("pf")?;
    let (function, index) = name.split_once("vf")?;
    Some((function.parse().ok()?, VfIndex(index.parse().ok()?)))
}

/// The link of a PCI function: by the parent that the link names; on kernels whose links name none (before 5.14) by the interface indexes
/// that sysfs lists for the function.
fn netdev_link<'a>(host: &Host, address: PciAddress, links: &'a [Link]) -> Option<&'a Link> {
    uplink(links.iter().filter(|link| link.parent == Some(address))).or_else(|| link_by_index(host, address, links))
}

fn link_by_index<'a>(host: &Host, address: PciAddress, links: &'a [Link]) -> Option<&'a Link> {
    let folder = format!("{}/net", pci_device(address));
    let names = host.sysfs().list_opt(&folder).ok().flatten().unwrap_or_default();
    let indexes: Vec<u32> = names.iter().filter_map(|name| host.sysfs().read(format!("{folder}/{name}/ifindex")).ok()?.parse().ok()).collect();
    // The name must fit too: sysfs may show another namespace than netlink, where the same index is another link.
    uplink(links.iter().filter(|link| link.parent.is_none() && indexes.contains(&link.netdev.ifindex) && names.contains(&link.netdev.name)))
}

pub(crate) fn vf_index(sysfs: &Sysfs, pf: PciAddress, vf: PciAddress) -> Result<VfIndex, DiscoverError> {
    let device = pci_device(pf);
    let is_vf = |index: u16| Ok::<_, SysfsError>(sysfs.read_link_name(format!("{device}/virtfn{index}"))?.is_some_and(|name| name == vf.to_string()));
    // Offset and stride give the index at once; the link confirms it, because a kernel may hold stale numbers after a change of mode.
    if let (Some(offset), Some(stride)) = (number::<u16>(sysfs, &device, "sriov_offset")?, number::<u16>(sysfs, &device, "sriov_stride")?) {
        let distance = vf.routing_id().checked_sub(pf.routing_id()).and_then(|distance| distance.checked_sub(offset));
        if let Some(index) = distance.map(|distance| distance.checked_div(stride).unwrap_or(0))
            && is_vf(index)?
        {
            return Ok(VfIndex(index));
        }
    }
    for name in sysfs.list(&device)? {
        if let Some(index) = name.strip_prefix("virtfn").and_then(|index| index.parse().ok())
            && is_vf(index)?
        {
            return Ok(VfIndex(index));
        }
    }
    Err(DiscoverError::NotListed { pf, vf })
}

pub(crate) fn ids(sysfs: &Sysfs, device: &str) -> Result<Option<(VendorId, DeviceId)>, DiscoverError> {
    let (vendor, id) = (format!("{device}/vendor"), format!("{device}/device"));
    let (Some(vendor_text), Some(id_text)) = (sysfs.read_opt(&vendor)?, sysfs.read_opt(&id)?) else { return Ok(None) };
    let vendor = parse(&vendor, &vendor_text, "a PCI vendor id", |text| text.parse().ok())?;
    Ok(Some((vendor, parse(&id, &id_text, "a PCI device id", |text| text.parse().ok())?)))
}

pub(crate) fn number<T: std::str::FromStr>(sysfs: &Sysfs, device: &str, name: &str) -> Result<Option<T>, DiscoverError> {
    let path = format!("{device}/{name}");
    let Some(text) = sysfs.read_opt(&path)? else { return Ok(None) };
    parse(&path, &text, "a number", |text| text.parse().ok()).map(Some)
}

pub(crate) fn iommu_group(sysfs: &Sysfs, device: &str) -> Result<Option<u32>, DiscoverError> {
    let path = format!("{device}/iommu_group");
    let Some(name) = sysfs.read_link_name(&path)? else { return Ok(None) };
    parse(&path, &name, "an IOMMU group number", |text| text.parse().ok()).map(Some)
}

/// `speed` refuses to be read while the link is down, and is -1 where the driver does not know it.
fn link_speed(sysfs: &Sysfs, device: &str, netdev: &Netdev) -> Option<u32> {
    sysfs.read(format!("{device}/net/{}/speed", netdev.name)).ok()?.parse().ok().filter(|speed| *speed > 0)
}

pub(crate) fn parse<T>(path: &str, given: &str, expected: &'static str, form: impl Fn(&str) -> Option<T>) -> Result<T, DiscoverError> {
    form(given).ok_or_else(|| DiscoverError::Malformed { path: path.to_owned(), given: given.to_owned(), expected })
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
