//! I/O: PCI functions one by one, as a program that offers them to others needs them: what each is, and by which device nodes it is used.
//!
//! What lives here: [`scan`] (all of them once), [`read`] (one again), [`access`] (how one is used right now). What does not: what a PF is
//! configured to (`discover`), netdevs (`netlink`).
//!
//! Invariant: everything is read from sysfs alone, in a number of operations that grows with the number of functions and not faster. Numbers of
//! IOMMU groups and device nodes change over a reboot; only [`access`] tells them for use.

use std::collections::BTreeMap;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::discover::{self, DiscoverError};
use crate::pci::{DeviceId, PciAddress, VendorId};
use crate::sysfs::{self, Sysfs, SysfsError};
use crate::vf::VfIndex;
use crate::{Host, pci_device};

/// PCI base class "network controller".
pub const NETWORK_CLASS: u8 = 0x02;
/// PCI base class "processing accelerator".
pub const ACCELERATOR_CLASS: u8 = 0x12;

/// Threads that read all functions: each function costs a dozen system calls and nothing else.
const READERS: usize = 2;
/// Functions that are not worth another thread.
const SHARE: usize = 128;

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// PCI base class.
    pub class: u8,
    /// PCI vendor.
    pub vendor: VendorId,
    /// PCI device.
    pub device: DeviceId,
    /// Vendor and device of the board that it is on.
    pub subsystem: Option<(VendorId, DeviceId)>,
    /// Bound driver; `None` when unbound.
    pub driver: Option<String>,
    /// NUMA node, if the platform tells one.
    pub numa_node: Option<u16>,
    /// Whether it is in an IOMMU group.
    pub has_group: bool,
    /// For a VF whose PF is on this machine: the PF and the index there.
    pub vf_of: Option<(PciAddress, VfIndex)>,
    /// For a PF: the VFs that it has now (`sriov_numvfs`).
    pub numvfs: u16,
    /// The firmware's number of the slot (`acpi_index`).
    pub acpi_index: Option<String>,
    /// The netdevs that sysfs shows of it; one in another namespace is not shown.
    pub netdevs: Vec<String>,
    /// RDMA devices (`mlx5_7`), in order of name. One in another namespace is not shown.
    pub rdma: Vec<String>,
    /// The first partition key of its first RDMA device, as sysfs writes it (`0x8001`).
    pub pkey: Option<String>,
    /// Its vDPA device.
    pub vdpa: Option<Vdpa>,
    /// The PCI root that it hangs on (`pci0000:3a`); `None` for a VF, which is where its PF is.
    pub root: Option<String>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The functions.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Those that could not be read, each with its reason.
    pub faults: Vec<(PciAddress, DiscoverError)>,
}

/// A vDPA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdpa {
    /// Its name on the vDPA bus (`vdpa0`).
    pub name: String,
    /// The bus driver: `vhost_vdpa` or `virtio_vdpa`.
    pub driver: Option<String>,
    /// The name of its device node (`vhost-vdpa-0`), with driver `vhost_vdpa`.
    pub node: Option<String>,
}

/// How a function is used right now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Bound driver.
    pub driver: Option<String>,
    /// IOMMU group number.
    pub iommu_group: Option<u32>,
    /// The group is one of vfio's own, without an IOMMU behind it (`/dev/vfio/noiommu-N`).
    pub no_iommu: bool,
    /// Name of its own vfio node (`vfio3` of `/dev/vfio/devices/vfio3`), on kernels that have them.
    pub vfio_node: Option<String>,
    /// Whether the machine has `/dev/iommu`.
    pub iommufd: bool,
    /// Name of its uio node (`uio0`).
    pub uio: Option<String>,
    /// Its RDMA devices.
    pub rdma: Vec<String>,
    /// Names of the RDMA devices' nodes below `/dev/infiniband`, in the field's order: ucm, issm, umad, uverbs, rdma_cm.
    pub rdma_nodes: Vec<String>,
    /// Its vDPA device.
    pub vdpa: Option<Vdpa>,
}

/// All functions of these base classes, and those that could not be read. One that vanishes while it is read is left out without a fault.
pub fn scan(host: &Host, classes: &[u8]) -> Result<Scan, DiscoverError> {
    let names = host.sysfs().list("/sys/bus/pci/devices")?;
    let addresses: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let share = addresses.len().div_ceil(READERS).max(SHARE);
    let shares = thread::scope(|scope| {
        let mut shares = addresses.chunks(share);
        // This thread reads too, and alone where there is little.
        let own = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || read_share(host, share, classes))).collect();
        let mut read = vec![read_share(host, own, classes)];
        read.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
        read
    });
    let mut all = Share::default();
    for Share { functions, vfs, faults } in shares {
        all.functions.extend(functions);
        all.vfs.extend(vfs);
        all.faults.extend(faults);
    }
    let mut functions: BTreeMap<_, _> = all.functions.into_iter().collect();
    for (vf, place) in all.vfs {
        if let Some(function) = functions.get_mut(&vf) {
            function.vf_of = Some(place);
        }
    }
    Ok(Scan { functions, faults: all.faults })
}

/// What one thread read.
#[derive(Default)]
struct Share {
    functions: Vec<(PciAddress, Function)>,
    /// The VFs that these functions link to, each with its place.
    vfs: Vec<(PciAddress, (PciAddress, VfIndex))>,
    faults: Vec<(PciAddress, DiscoverError)>,
}

fn read_share(host: &Host, addresses: &[PciAddress], classes: &[u8]) -> Share {
    let mut share = Share::default();
    for address in addresses.iter().copied() {
        match read_one(host, address, classes) {
            Ok(Some((function, folder))) => {
                share.vfs.extend(virtual_functions(&folder).into_iter().map(|(index, vf)| (vf, (address, index))));
                share.functions.push((address, function));
            }
            Ok(None) => {}
            Err(error) => share.faults.push((address, error)),
        }
    }
    share
}

/// One function; `None` when there is none, or it is of another base class.
pub fn read(host: &Host, address: PciAddress, classes: &[u8]) -> Result<Option<Function>, DiscoverError> {
    let Some((mut function, folder)) = read_one(host, address, classes)? else { return Ok(None) };
    if folder.has("physfn")
        && let Some(pf) = folder.link_name("physfn")?.and_then(|name| name.parse().ok())
    {
        // Between the birth of a VF and its PF's link to it nobody can name it; the PF's own event follows.
        function.vf_of = discover::vf_index(host.sysfs(), pf, address).ok().map(|index| (pf, index));
    }
    Ok(Some(function))
}

/// How a function is used right now; `None` when it is not there.
pub fn access(host: &Host, address: PciAddress) -> Result<Option<Access>, DiscoverError> {
    access_of(host, &pci_device(address))
}

/// How the device with this folder is used right now.
pub(crate) fn access_of(host: &Host, device: &str) -> Result<Option<Access>, DiscoverError> {
    let Some(folder) = Folder::open(host.sysfs(), device)? else { return Ok(None) };
    let first = |name: &str| Ok::<_, SysfsError>(folder.list(name)?.into_iter().next());
    let iommu_group = folder.link_name("iommu_group")?;
    let iommu_group = iommu_group
        .map(|name| discover::parse(&format!("{device}/iommu_group"), &name, "an IOMMU group number", |text| text.parse().ok()))
        .transpose()?;
    let group_name = if iommu_group.is_some() { folder.read("iommu_group/name")? } else { None };
    Ok(Some(Access {
        driver: folder.link_name("driver")?,
        iommu_group,
        no_iommu: group_name.as_deref() == Some("vfio-noiommu"),
        vfio_node: first("vfio-dev")?,
        iommufd: misc(host, "iommu"),
        uio: first("uio")?,
        rdma: folder.list("infiniband")?,
        rdma_nodes: rdma_nodes(host, &folder)?,
        vdpa: vdpa(&folder)?,
    }))
}

/// What the RDMA devices of a function count at their port 1, by the kernel's names; what cannot be read is left out.
pub fn rdma_counters(host: &Host, address: PciAddress, devices: &[String]) -> Vec<(String, u64)> {
    let mut counters = Vec::new();
    for name in devices {
        let folder = format!("{}/infiniband/{name}/ports/1/counters", pci_device(address));
        for counter in host.sysfs().list_opt(&folder).ok().flatten().unwrap_or_default() {
            let value = host.sysfs().read(format!("{folder}/{counter}")).ok().and_then(|text| text.parse().ok());
            counters.extend(value.map(|value| (counter, value)));
        }
    }
    counters
}

/// The speed of a PCI function's link `netdev` in Mbit/s, where its driver tells one.
pub fn link_speed(host: &Host, address: PciAddress, netdev: &str) -> Option<u32> {
    host.sysfs().read(format!("{}/net/{netdev}/speed", pci_device(address))).ok()?.parse().ok().filter(|speed| *speed > 0)
}

/// What drivers from outside the kernel count of a VF below `sriov/<index>/stats` of its PF, by their names: a folder with a file each (i40e, ice), or one
/// file with a line each (mlx5). Nothing where the driver has no such thing.
pub fn vf_stats(host: &Host, pf: PciAddress, index: VfIndex) -> Vec<(String, u64)> {
    let place = format!("{}/sriov/{}/stats", pci_device(pf), index.0);
    let sysfs = host.sysfs();
    if let Some(names) = sysfs.list_opt(&place).ok().flatten() {
        let value = |name: String| Some((name.clone(), sysfs.read(format!("{place}/{name}")).ok()?.parse().ok()?));
        return names.into_iter().filter_map(value).collect();
    }
    let text = sysfs.read_opt(&place).ok().flatten().unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Whether the kernel has the miscellaneous device `name` (`vhost-net`, `tun`, `iommu`), and with it its node.
pub fn misc(host: &Host, name: &str) -> bool {
    host.sysfs().exists(format!("/sys/class/misc/{name}"))
}

/// The open folder of a device, with the names in it: what is not there is not asked for.
#[derive(Debug)]
pub(crate) struct Folder {
    open: sysfs::Folder,
    /// Sorted.
    names: Vec<String>,
}

impl Folder {
    /// `None` when the folder or its device is not there.
    pub(crate) fn open(sysfs: &Sysfs, path: &str) -> Result<Option<Self>, SysfsError> {
        let Some(open) = sysfs.folder(path)? else { return Ok(None) };
        Ok(open.list_opt(".")?.map(|names| Self { open, names }))
    }

    /// Whether this name is in it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    /// The text of a file in it, or below a folder of it.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, SysfsError> {
        self.open.read_opt(name)
    }

    /// The last component of a link's target.
    pub(crate) fn link_name(&self, name: &str) -> Result<Option<String>, SysfsError> {
        self.open.read_link_name(name)
    }

    /// The names in a folder of it; none when there is no such folder.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<String>, SysfsError> {
        if self.has(name) { Ok(self.open.list_opt(name)?.unwrap_or_default()) } else { Ok(Vec::new()) }
    }
}

/// What `uevent` tells of a function in one read; files of their own tell the same.
pub(crate) struct Identity {
    class: u32,
    pub(crate) vendor: VendorId,
    pub(crate) device: DeviceId,
    subsystem: Option<(VendorId, DeviceId)>,
    driver: Option<String>,
}

/// `None` when a line is missing that each PCI function has.
pub(crate) fn identity(uevent: &str) -> Option<Identity> {
    let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let pair = |text: &str| {
        let (vendor, device) = text.split_once(':')?;
        Some((vendor.parse().ok()?, device.parse().ok()?))
    };
    let (vendor, device) = value("PCI_ID").and_then(pair)?;
    let class = u32::from_str_radix(value("PCI_CLASS")?, 16).ok()?;
    Some(Identity { class, vendor, device, subsystem: value("PCI_SUBSYS_ID").and_then(pair), driver: value("DRIVER").map(str::to_owned) })
}

/// As [`identity`], from files.
fn identity_of_files(sysfs: &Sysfs, device: &str, folder: &Folder) -> Result<Option<Identity>, DiscoverError> {
    let class_file = format!("{device}/class");
    let Some(class) = folder.read("class")? else { return Ok(None) };
    let class = discover::parse(&class_file, &class, "a PCI class such as 0x020000", |text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok())?;
    let Some((vendor, id)) = discover::ids(sysfs, device)? else { return Ok(None) };
    let subsystem = match (folder.read("subsystem_vendor")?, folder.read("subsystem_device")?) {
        (Some(vendor), Some(id)) => vendor.parse().ok().zip(id.parse().ok()),
        _ => None,
    };
    Ok(Some(Identity { class, vendor, device: id, subsystem, driver: folder.link_name("driver")? }))
}

/// A function without its place on a PF, and its folder.
fn read_one(host: &Host, address: PciAddress, classes: &[u8]) -> Result<Option<(Function, Folder)>, DiscoverError> {
    let (sysfs, device) = (host.sysfs(), pci_device(address));
    let Some(folder) = Folder::open(sysfs, &device)? else { return Ok(None) };
    let told = if folder.has("uevent") { folder.read("uevent")? } else { None };
    let told = match told.as_deref().and_then(identity) {
        Some(told) => told,
        None => match identity_of_files(sysfs, &device, &folder)? {
            Some(read) => read,
            None => return Ok(None),
        },
    };
    let Some(class) = told.class.to_be_bytes().get(1).copied().filter(|class| classes.contains(class)) else { return Ok(None) };
    let rdma = folder.list("infiniband")?;
    let function = Function {
        class,
        vendor: told.vendor,
        device: told.device,
        subsystem: told.subsystem,
        driver: told.driver,
        numa_node: node(&device, &folder)?,
        has_group: folder.has("iommu_group"),
        vf_of: None,
        numvfs: if folder.has("sriov_numvfs") { discover::number(sysfs, &device, "sriov_numvfs")?.unwrap_or_default() } else { 0 },
        acpi_index: if folder.has("acpi_index") { folder.read("acpi_index")? } else { None },
        netdevs: folder.list("net")?,
        pkey: first_pkey(&folder, &rdma)?,
        rdma,
        vdpa: vdpa(&folder)?,
        root: if folder.has("physfn") { None } else { pci_root(sysfs, address)? },
    };
    Ok(Some((function, folder)))
}

/// The NUMA node; the kernel writes -1 where the platform tells none.
pub(crate) fn node(device: &str, folder: &Folder) -> Result<Option<u16>, DiscoverError> {
    let Some(text) = folder.read("numa_node")? else { return Ok(None) };
    let node: i32 = discover::parse(&format!("{device}/numa_node"), &text, "a number", |text| text.parse().ok())?;
    Ok(u16::try_from(node).ok())
}

pub(crate) fn first_pkey(folder: &Folder, rdma: &[String]) -> Result<Option<String>, SysfsError> {
    match rdma.first() {
        Some(first) => folder.read(&format!("infiniband/{first}/ports/1/pkeys/0")),
        None => Ok(None),
    }
}

/// The VFs that a PF links to.
fn virtual_functions(folder: &Folder) -> Vec<(VfIndex, PciAddress)> {
    let vf = |name: &String| {
        let index = name.strip_prefix("virtfn")?.parse().ok()?;
        Some((VfIndex(index), folder.link_name(name).ok()??.parse().ok()?))
    };
    folder.names.iter().filter_map(vf).collect()
}

/// The functions that the machine's own tree puts on one PCI root, by the link of the bus: `../../../devices/pci0000:3a/...`.
fn pci_root(sysfs: &Sysfs, address: PciAddress) -> Result<Option<String>, SysfsError> {
    let target = sysfs.read_link(pci_device(address))?;
    let root = |part: std::path::Component<'_>| Some(part.as_os_str().to_str()?.to_owned()).filter(|part| part.starts_with("pci"));
    Ok(target.and_then(|target| target.components().find_map(root)))
}

/// The vDPA device of a function; `None` when it has none.
pub fn vdpa_of(host: &Host, address: PciAddress) -> Result<Option<Vdpa>, SysfsError> {
    Folder::open(host.sysfs(), &pci_device(address))?.map_or(Ok(None), |folder| vdpa(&folder))
}

/// A vDPA device has the name that its maker gave: the kernel's habit is `vdpa0`, that of the Go operator `vdpa:0000:65:00.2`.
pub(crate) fn vdpa(folder: &Folder) -> Result<Option<Vdpa>, SysfsError> {
    let is_vdpa = |name: &&String| {
        name.strip_prefix("vdpa").is_some_and(|rest| !rest.is_empty() && (rest.starts_with(':') || rest.bytes().all(|byte| byte.is_ascii_digit())))
    };
    let Some(name) = folder.names.iter().find(is_vdpa) else { return Ok(None) };
    let node = folder.list(name)?.into_iter().find(|name| name.starts_with("vhost-vdpa-"));
    Ok(Some(Vdpa { name: name.clone(), driver: folder.link_name(&format!("{name}/driver"))?, node }))
}

fn rdma_nodes(host: &Host, folder: &Folder) -> Result<Vec<String>, SysfsError> {
    let mut nodes = Vec::new();
    for (of, kind) in [("infiniband_cm", "ucm"), ("infiniband_mad", "issm"), ("infiniband_mad", "umad"), ("infiniband_verbs", "uverbs")] {
        nodes.extend(folder.list(of)?.into_iter().filter(|node| node.starts_with(kind)));
    }
    if !nodes.is_empty() && misc(host, "rdma_cm") {
        nodes.push("rdma_cm".to_owned());
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SysfsTree, igb_pf};

    const VF: &str = "0000:01:10.2";

    #[test]
    fn a_scan_and_a_single_read_say_the_same() {
        let fake = igb_pf(SysfsTree::new(), 3).build().unwrap();
        let Scan { functions, faults } = scan(&fake.host(), &[NETWORK_CLASS]).unwrap();
        assert!(faults.is_empty());
        assert_eq!(functions.len(), 4);
        for (address, function) in &functions {
            assert_eq!(read(&fake.host(), *address, &[NETWORK_CLASS]).unwrap().as_ref(), Some(function));
        }
        let vf = &functions[&VF.parse().unwrap()];
        assert_eq!(vf.vf_of, Some(("0000:01:00.0".parse().unwrap(), VfIndex(1))));
        assert_eq!((vf.driver.as_deref(), vf.has_group, vf.numa_node), (Some("igbvf"), true, None));
        assert_eq!(functions[&"0000:01:00.0".parse().unwrap()].numvfs, 3);
        assert!(scan(&fake.host(), &[ACCELERATOR_CLASS]).unwrap().functions.is_empty());
    }

    #[test]
    fn what_two_threads_read_is_what_one_reads() {
        // The PF is in the first share, its VFs in the second, as is one that cannot be read.
        let others = (0..100).map(|n| (0, n)).chain((0..120).map(|n| (1, 8 + n)));
        let address = |(bus, n): (u8, u8)| format!("0000:{bus:02x}:{:02x}.{}", n / 8, n % 8);
        let tree = others.clone().fold(igb_pf(SysfsTree::new(), 7), |tree, n| {
            tree.file(&format!("/sys/bus/pci/devices/{}/uevent", address(n)), "PCI_CLASS=20000\nPCI_ID=8086:10C9\n")
        });
        let fake = tree.file(&format!("/sys/bus/pci/devices/{}/numa_node", address((1, 127))), "nonsense\n").build().unwrap();
        let Scan { functions, faults } = scan(&fake.host(), &[NETWORK_CLASS]).unwrap();
        assert_eq!((functions.len(), faults.len()), (100 + 120 + 8 - 1, 1));
        for (address, function) in &functions {
            assert_eq!(read(&fake.host(), *address, &[NETWORK_CLASS]).unwrap().as_ref(), Some(function));
        }
        let places: Vec<_> = functions.values().filter_map(|function| function.vf_of).map(|(_, index)| index.0).collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn one_file_tells_what_five_others_do() {
        let device = format!("/sys/bus/pci/devices/{VF}");
        let plain = igb_pf(SysfsTree::new(), 3)
            .file(&format!("{device}/subsystem_vendor"), "0x1028\n")
            .file(&format!("{device}/subsystem_device"), "0x1f9b\n");
        let uevent = "DRIVER=igbvf\nPCI_CLASS=20000\nPCI_ID=8086:10CA\nPCI_SUBSYS_ID=1028:1F9B\nPCI_SLOT_NAME=0000:01:10.2\n";
        let told = plain.clone().file(&format!("{device}/uevent"), uevent);
        let read = |tree: SysfsTree| {
            let fake = tree.build().unwrap();
            super::read(&fake.host(), VF.parse().unwrap(), &[NETWORK_CLASS]).unwrap()
        };
        let function = read(plain.clone()).unwrap();
        assert_eq!(function.subsystem, Some((VendorId(0x1028), DeviceId(0x1f9b))));
        assert_eq!(read(told.clone()), Some(function.clone()));
        // Cut short by a kernel that we do not know, it is not believed.
        assert_eq!(read(plain.file(&format!("{device}/uevent"), "DRIVER=other\n")), Some(function));
        let unbound = told.file(&format!("{device}/uevent"), &uevent.replace("DRIVER=igbvf\n", ""));
        assert_eq!(read(unbound).unwrap().driver, None);
    }

    #[test]
    fn one_function_that_cannot_be_read_is_a_fault_and_hides_no_other() {
        let fake = igb_pf(SysfsTree::new(), 2).file("/sys/bus/pci/devices/0000:01:10.0/vendor", "nonsense\n").build().unwrap();
        let Scan { functions, faults } = scan(&fake.host(), &[NETWORK_CLASS]).unwrap();
        assert_eq!((functions.len(), faults.len()), (2, 1));
        assert_eq!(faults[0].0.to_string(), "0000:01:10.0");
    }

    #[test]
    fn what_drivers_from_outside_the_kernel_count_is_read_from_a_folder_or_a_file() {
        let stats = |index: u16| format!("/sys/bus/pci/devices/0000:01:00.0/sriov/{index}/stats");
        let tree = igb_pf(SysfsTree::new(), 3)
            .file(&format!("{}/tx_errors", stats(0)), "7\n")
            .file(&format!("{}/rx_bytes", stats(0)), "9\n")
            .file(&stats(1), "tx_packets    : 5011\ntx_bytes      : 4450870\nnonsense\n");
        let fake = tree.build().unwrap();
        let read = |index| vf_stats(&fake.host(), "0000:01:00.0".parse().unwrap(), VfIndex(index));
        assert_eq!(read(0), [("rx_bytes".to_owned(), 9), ("tx_errors".to_owned(), 7)]);
        assert_eq!(read(1), [("tx_packets".to_owned(), 5011), ("tx_bytes".to_owned(), 4_450_870)]);
        assert_eq!(read(2), []);
    }

    #[test]
    fn device_nodes_are_found_by_the_folders_of_the_function() {
        let device = format!("/sys/bus/pci/devices/{VF}");
        let tree = igb_pf(SysfsTree::new(), 3)
            .dir(&format!("{device}/vfio-dev/vfio3"))
            .dir(&format!("{device}/uio/uio5"))
            .dir(&format!("{device}/infiniband/mlx5_7"))
            .file(&format!("{device}/infiniband/mlx5_7/ports/1/pkeys/0"), "0x8001\n")
            .dir(&format!("{device}/infiniband_verbs/uverbs7"))
            .dir(&format!("{device}/infiniband_mad/umad7"))
            .dir(&format!("{device}/infiniband_mad/issm7"))
            .dir("/sys/class/misc/rdma_cm")
            .dir(&format!("{device}/vdpa2/vhost-vdpa-4"))
            .link(&format!("{device}/vdpa2/driver"), "../../../../bus/vdpa/drivers/vhost_vdpa")
            .file("/sys/kernel/iommu_groups/9/name", "vfio-noiommu\n");
        let fake = tree.build().unwrap();
        let access = access(&fake.host(), VF.parse().unwrap()).unwrap().unwrap();
        assert_eq!(
            (access.iommu_group, access.vfio_node.as_deref(), access.uio.as_deref(), access.iommufd),
            (Some(9), Some("vfio3"), Some("uio5"), false)
        );
        assert_eq!(access.rdma_nodes, ["issm7", "umad7", "uverbs7", "rdma_cm"]);
        let vdpa = Vdpa { name: "vdpa2".into(), driver: Some("vhost_vdpa".into()), node: Some("vhost-vdpa-4".into()) };
        assert_eq!(access.vdpa, Some(vdpa.clone()));
        let function = read(&fake.host(), VF.parse().unwrap(), &[NETWORK_CLASS]).unwrap().unwrap();
        assert_eq!((function.rdma, function.pkey.as_deref(), function.vdpa), (vec!["mlx5_7".to_owned()], Some("0x8001"), Some(vdpa)));
        assert_eq!(super::access(&fake.host(), "0000:09:00.0".parse().unwrap()).unwrap(), None);
    }
}
