//! I/O: this machine: a look through `sriov-host` and the files of `store`, and each step as the host's verbs, with its deadline.
//!
//! What does not live here: what to do and in which order (`plan`).
//!
//! Invariants: nothing is cached, PF and VF are looked up when a step is performed; a VF that a pod took after the look is not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sriov_host::cloud::Metadata;
use sriov_host::discover::DiscoverError;
use sriov_host::driver::DriverError;
use sriov_host::guid::Guid;
use sriov_host::inventory::Netdev;
use sriov_host::module::ModuleError;
use sriov_host::netlink::devlink::Devlink;
use sriov_host::netlink::ethtool::Ethtool;
use sriov_host::netlink::rdma::Rdma;
use sriov_host::netlink::route::uplink;
use sriov_host::netlink::vdpa::{Carrier, VdpaBus};
use sriov_host::netlink::{LinkChange, NetlinkError, Route};
use sriov_host::pci::PciAddress;
use sriov_host::sriov::SriovError;
use sriov_host::sysfs::SysfsError;
use sriov_host::uevent::{UeventError, UeventSocket};
use sriov_host::vf::{VfIndex, VfSetting};
use sriov_host::{Host, cloud, discover, driver, function, kernel, module, sriov, vdpa};

use super::ovs::Ovs;
use super::{Machine, ObserveError, StepError};
use crate::desired::VdpaType;
use crate::kubelet::{Kubelet, KubeletError};
use crate::networks::{self, Networks};
use crate::observed::Observed;
use crate::plan::step::{Driver, Step, VFIO_PCI};
use crate::store::{Store, StoreError, VfLock};

/// Longest wait for VFs after `sriov_numvfs` was written: drivers with many VFs need a while.
const VFS_DEADLINE: Duration = Duration::from_mins(2);
/// Longest wait for a driver or for a netdev.
const DRIVER_DEADLINE: Duration = Duration::from_secs(20);
/// The switch of module `vfio` by which devices without an IOMMU are taken.
const NO_IOMMU: &str = "enable_unsafe_noiommu_mode";
/// Longest wait for the vDPA driver of a VF.
const VDPA_DEADLINE: Duration = Duration::from_secs(5);

/// This machine.
#[derive(Clone, Debug)]
pub struct Linux {
    host: Host,
    store: Store,
    kubelet: Kubelet,
    networks: Arc<Mutex<Told>>,
    /// Set where bridges are managed.
    ovs: Option<Ovs>,
}

/// What the cloud told of this machine's networks.
#[derive(Debug, Default)]
struct Told {
    networks: Networks,
    /// The NICs there were when it was asked last.
    nics: BTreeSet<PciAddress>,
}

impl Linux {
    /// The machine whose `/sys` is below `root`; netlink speaks to this process's network namespace, which must be the host's.
    pub fn new(root: &Path, store: Store) -> Self {
        Self { host: Host::at(root), store, kubelet: Kubelet::at(root), networks: Arc::default(), ovs: None }
    }

    /// The same machine, whose bridges are managed.
    #[must_use]
    pub fn with_bridges(self, ovs: Ovs) -> Self {
        Self { ovs: Some(ovs), ..self }
    }

    fn ovs(&self) -> Result<&Ovs, StepError> {
        self.ovs.as_ref().ok_or_else(|| StepError::refused("this program was not told to manage bridges (--manage-software-bridges)"))
    }

    /// The files that outlive this process.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the machine was rebooted for this cause already. What cannot be told counts as no.
    pub fn was_rebooted_for(&self, cause: &str) -> bool {
        kernel::boot_id(&self.host).is_ok_and(|boot| self.store.was_rebooted_for(cause, &boot).unwrap_or_default())
    }

    /// Remembers that the machine is about to be rebooted for this cause.
    pub fn remember_reboot(&self, cause: &str) -> Result<(), StepError> {
        let boot = kernel::boot_id(&self.host).map_err(refused)?;
        self.store.keep_reboot(cause, &boot).map_err(refused)
    }

    /// A later reboot is a new matter.
    pub fn forget_reboot(&self) {
        if let Err(error) = self.store.forget_reboot() {
            tracing::warn!("{error}");
        }
    }

    /// What no two machines of one network share: the name, and the firmware's identifier where there is one. `/etc/machine-id` is the same on all
    /// machines that were made from one disk image.
    fn machine_id(&self) -> String {
        format!("{} {}", kernel::host_name(), kernel::system_uuid(&self.host).unwrap_or_default())
    }

    fn vf_address(&self, pf: PciAddress, vf: VfIndex) -> Result<PciAddress, StepError> {
        if vf == VfIndex(0) && discover::is_lone(self.host.sysfs(), pf) {
            return Ok(pf);
        }
        let find = || -> Result<Option<PciAddress>, StepError> {
            let vfs = discover::vf_addresses(&self.host, pf).map_err(refused)?;
            Ok(vfs.into_iter().find_map(|(index, address)| (index == vf).then_some(address)))
        };
        let missing = || StepError::refused(format!("PF {pf} shows no VF {vf} within {DRIVER_DEADLINE:?}"));
        wait(find)?.ok_or_else(missing)
    }

    /// Who uses VFs now, by the CNI's files and by the kubelet.
    fn users(&self) -> Result<BTreeMap<PciAddress, String>, StepError> {
        let mut users = self.store.vfs_in_use().map_err(refused)?;
        users.extend(self.kubelet.devices().map_err(refused)?.into_iter().map(|(vf, held)| (vf, held.by)));
        Ok(users)
    }

    /// The VF's address and its lock, unless a pod has it. While the lock is held the CNI gives the VF to nobody.
    fn free_vf(&self, pf: PciAddress, vf: VfIndex) -> Result<(PciAddress, VfLock), StepError> {
        let address = self.vf_address(pf, vf)?;
        let lock = self.lock(address)?;
        // A VF without a driver is in no pool, so that the kubelet has given it to nobody; it is not asked for each of many fresh ones.
        let fresh = driver::current(&self.host, address).map_err(refused)?.is_none();
        let mut users = if fresh { self.store.vfs_in_use().map_err(refused)? } else { self.users()? };
        match users.remove(&address) {
            Some(user) => Err(StepError::VfTaken { vf: address.to_string(), user }),
            None => Ok((address, lock)),
        }
    }

    fn lock(&self, vf: PciAddress) -> Result<VfLock, StepError> {
        let taken = || StepError::VfTaken { vf: vf.to_string(), user: "a CNI call that is under way".to_owned() };
        self.store.lock_vf(vf).map_err(refused)?.ok_or_else(taken)
    }

    /// The locks of all VFs of a PF, of which none is in use.
    fn none_in_use(&self, pf: PciAddress) -> Result<Vec<VfLock>, StepError> {
        let vfs = discover::vf_addresses(&self.host, pf).map_err(refused)?;
        let locks = vfs.iter().map(|(_, address)| self.lock(*address)).collect::<Result<Vec<_>, _>>()?;
        let users = if locks.is_empty() { BTreeMap::new() } else { self.users()? };
        for (_, address) in vfs {
            if let Some(user) = users.get(&address) {
                return Err(StepError::VfTaken { vf: address.to_string(), user: user.clone() });
            }
        }
        Ok(locks)
    }

    fn set_numvfs(&self, pf: PciAddress, to: u16) -> Result<(), StepError> {
        let _locks = if to == 0 { self.none_in_use(pf)? } else { Vec::new() };
        sriov::set_numvfs(&self.host, pf, to).map_err(|error| no_vfs(&error, &kernel::command_line(&self.host).unwrap_or_default()))?;
        sriov::wait_for_vfs(&self.host, pf, to, Instant::now() + VFS_DEADLINE).map_err(refused)
    }

    fn bind(&self, pf: PciAddress, vf: VfIndex, driver: Driver) -> Result<(), StepError> {
        let (address, _lock) = self.free_vf(pf, vf)?;
        let deadline = Instant::now() + DRIVER_DEADLINE;
        match driver {
            Driver::VfioPci => driver::bind(&self.host, address, VFIO_PCI, deadline).map_err(refused),
            Driver::KernelDefault => {
                driver::bind_default(&self.host, address, deadline).map_err(refused)?;
                // A VF is ready with its netdev, which some drivers register later.
                netdev(&Route::open().map_err(refused)?, address).map(drop)
            }
        }
    }
}

impl Linux {
    /// Says of each NIC of a virtual machine which network of the cloud it is in. The cloud is asked again when there are other NICs.
    fn name_networks(&self, observed: &mut Observed) {
        let lone: BTreeSet<PciAddress> = observed.inventory.pfs.iter().filter(|pf| pf.facts.lone).map(|pf| pf.address).collect();
        let Some(cloud) = cloud::of(&self.host).filter(|_| !lone.is_empty()) else { return };
        let mut told = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if told.nics != lone {
            match networks::look(&self.host, cloud, Metadata::default()) {
                Ok(networks) => *told = Told { networks, nics: lone },
                // Policies that name no network go on.
                Err(error) => tracing::warn!("{error}; it is asked again at the next look"),
            }
        }
        for pf in observed.inventory.pfs.iter_mut().filter(|pf| pf.facts.lone) {
            let kept = observed.records.get(&pf.address).and_then(|record| record.net_filter.clone());
            pf.facts.net_filter = told.networks.of(pf).cloned().or(kept);
        }
    }

    /// Both GUIDs, and the driver away that has read earlier ones.
    fn set_guid(&self, pf: PciAddress, vf: VfIndex, guid: Guid) -> Result<(), StepError> {
        let (address, _lock) = self.free_vf(pf, vf)?;
        let route = Route::open().map_err(refused)?;
        let netdev = netdev(&route, pf)?;
        // One message each: drivers take no more.
        for setting in [VfSetting::NodeGuid(guid), VfSetting::PortGuid(guid)] {
            route.set_vf(netdev.ifindex, vf, &[setting]).map_err(refused)?;
        }
        if driver::current(&self.host, address).map_err(refused)?.is_some_and(|driver| !driver::is_userspace(&driver)) {
            driver::unbind(&self.host, address).map_err(refused)?;
        }
        Ok(())
    }

    /// Makes a vDPA device unless the VF has one, and gives it its driver.
    fn make_vdpa(&self, pf: PciAddress, vf: VfIndex, driver: &str) -> Result<(), StepError> {
        let (address, _lock) = self.free_vf(pf, vf)?;
        let find = || function::vdpa_of(&self.host, address).map_err(refused);
        let name = if let Some(found) = find()? {
            found.name
        } else {
            let (bus, name) = (VdpaBus::open().map_err(refused)?, vdpa::name_of(address));
            let mut last = None;
            // The VF's vDPA driver comes a moment after its network driver.
            let add = || match bus.add(&Carrier::from(address), &name) {
                Ok(()) => Ok(Some(())),
                Err(error) if error.is_gone() => {
                    last = Some(error);
                    Ok(None)
                }
                Err(error) => Err(refused(error)),
            };
            let events = UeventSocket::open().map_err(refused)?;
            let added = events.wait_until(Instant::now() + VDPA_DEADLINE, add)?;
            let cure = "its driver offers no vDPA: load the vDPA driver of the NIC (mlx5_vdpa for ConnectX-6 Dx and later), or remove vdpaType from the policy";
            if let (None, Some(error)) = (added, last) {
                return Err(StepError::Refused { said: format!("{error}; {cure}"), errno: Some(error.errno()) });
            }
            name
        };
        vdpa::bind(&self.host, &name, driver).map_err(refused)
    }
}

impl Machine for Linux {
    fn observe(&self) -> Result<Observed, ObserveError> {
        let read = |what: &str, error: &dyn std::fmt::Display| ObserveError::ReadState { what: what.to_owned(), reason: error.to_string() };
        let users = || self.store.vfs_in_use().map_err(|error| read("the CNI's journals", &error));
        let held = self.kubelet.devices().map_err(|error| read("who has VFs", &error))?;
        // Read before and after: a pod that ends or starts during the look has its VF in one of them, whatever the look saw of it.
        let mut vfs_in_use = users()?;
        let survey = discover::survey(&self.host).map_err(|error| ObserveError::Discover(error.to_string()))?;
        vfs_in_use.append(&mut users()?);
        let faults = survey.faults.into_iter().map(|(pf, fault)| (pf, fault.to_string())).collect();
        let mut observed = Observed { inventory: survey.inventory, faults, vfs_in_use, machine_id: self.machine_id(), ..Observed::default() };
        observed.add_held(held);
        for pf in &observed.inventory.pfs {
            if sriov::autoprobe(&self.host, pf.address).map_err(|error| ObserveError::Discover(error.to_string()))? == Some(false) {
                observed.autoprobe_off.insert(pf.address);
            }
        }
        observed.vfio_pci_loaded = driver::is_loaded(&self.host, VFIO_PCI);
        observed.vfio_pci_loadable = !observed.vfio_pci_loaded && module::is_available(&self.host, VFIO_PCI);
        for driver in VdpaType::ALL.map(VdpaType::driver) {
            if vdpa::is_loaded(&self.host, driver) {
                observed.vdpa_drivers.insert(driver.to_owned());
            } else if module::is_available(&self.host, driver) {
                observed.vdpa_drivers_loadable.insert(driver.to_owned());
            }
        }
        observed.guids = self.store.guids().map_err(|error| read("the GUIDs of InfiniBand VFs", &error))?;
        observed.staged_rdma_mode = self.store.staged_rdma_mode().map_err(|error| read("the mode of RDMA devices", &error))?;
        observed.has_namespaces = self.store.has_namespaces();
        observed.records = self.store.records().map_err(|error| read("the records of configured PFs", &error))?;
        observed.vfio_without_iommu = module::parameter(&self.host, "vfio", NO_IOMMU).is_some_and(|value| value == "Y");
        self.name_networks(&mut observed);
        if let Some(ovs) = &self.ovs {
            observed.add_bridges(ovs.look(&self.store));
        }
        Ok(observed)
    }

    fn perform(&self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::RecordOwnership { pf, record } => self.store.write_record(*pf, record).map_err(refused),
            Step::Forget { pf } => self.store.delete_record(*pf).map_err(refused),
            Step::SetAutoprobe { pf, on } => sriov::set_autoprobe(&self.host, *pf, *on).map_err(refused),
            Step::SetNumVfs { pf, to, .. } => self.set_numvfs(*pf, *to),
            Step::AllowNoIommu => module::set_parameter(&self.host, "vfio", NO_IOMMU, "Y").map_err(refused),
            Step::LoadModule { module } => module::load(&self.host, module).map_err(refused),
            Step::SetRdmaMode { mode } => Rdma::open().and_then(|rdma| rdma.set_mode(*mode)).map_err(refused),
            Step::StageRdmaMode { mode } => self.store.stage_rdma_mode(*mode).map_err(refused),
            Step::SetEswitchMode { pf, mode } => {
                let _locks = self.none_in_use(*pf)?;
                Devlink::open().and_then(|devlink| devlink.set_eswitch_mode(&(*pf).into(), *mode)).map_err(refused)
            }
            Step::EnableOffload { pf } => enable_offload(*pf),
            Step::SetSteering { pf, mode } => set_steering(*pf, mode),
            Step::SetPfUp { pf } => change_netdev(*pf, &LinkChange { up: Some(true), ..LinkChange::default() }),
            Step::SetPfMtu { pf, to, .. } => change_netdev(*pf, &LinkChange { mtu: Some(*to), ..LinkChange::default() }),
            Step::SetAdminMac { pf, vf, mac } => {
                let _free = self.free_vf(*pf, *vf)?;
                let route = Route::open().map_err(refused)?;
                let netdev = netdev(&route, *pf)?;
                route.set_vf(netdev.ifindex, *vf, &[VfSetting::Mac(*mac)]).map_err(refused)
            }
            Step::SetVfGuid { pf, vf, guid } => self.set_guid(*pf, *vf, *guid),
            Step::MakeVdpa { pf, vf, kind } => self.make_vdpa(*pf, *vf, kind.driver()),
            Step::RemoveVdpa { pf, vf } => {
                let (address, _lock) = self.free_vf(*pf, *vf)?;
                VdpaBus::open().and_then(|bus| bus.remove(&vdpa::name_of(address))).map_err(refused)
            }
            Step::MakeBridge { pf, wanted, netdev } => self.ovs()?.make(&self.store, *pf, wanted, netdev),
            Step::CorrectBridge { pf, wanted, netdev } => self.ovs()?.correct(&self.store, *pf, wanted, netdev),
            Step::RemoveBridge { name, .. } => self.ovs()?.remove(&self.store, name),
            Step::NameRepresentors { pf, base } => name_representors(*pf, base),
            Step::BindDriver { pf, vf, driver } => self.bind(*pf, *vf, *driver),
            Step::SetVfMtu { pf, vf, mtu } => {
                let (address, _lock) = self.free_vf(*pf, *vf)?;
                change_netdev(address, &LinkChange { mtu: Some(*mtu), ..LinkChange::default() })
            }
        }
    }
}

/// Looks again after each device event until `find` finds, or the deadline passes.
fn wait<T>(mut find: impl FnMut() -> Result<Option<T>, StepError>) -> Result<Option<T>, StepError> {
    if let Some(found) = find()? {
        return Ok(Some(found));
    }
    let events = UeventSocket::open().map_err(refused)?;
    events.wait_until(Instant::now() + DRIVER_DEADLINE, find)
}

fn netdev(route: &Route, address: PciAddress) -> Result<Netdev, StepError> {
    let find = || Ok(route.link_by_pci(address).map_err(refused)?.map(|link| link.netdev));
    let missing = || StepError::refused(format!("{address} has no netdev in this network namespace within {DRIVER_DEADLINE:?}"));
    wait(find)?.ok_or_else(missing)
}

/// The kernel answers with ENOMEM where the firmware gave the bridge above a PF too little space for its VFs.
fn no_vfs(error: &SriovError, command_line: &str) -> StepError {
    if error.errno() != Some(Errno::NOMEM.raw_os_error()) {
        return refused(error);
    }
    let asked = command_line.split_whitespace().filter_map(|word| word.strip_prefix("pci=")).any(|values| values.split(',').any(|v| v == "realloc"));
    let cure = if asked {
        "the PCI bridge above the PF has too little space for its VFs although the kernel was told pci=realloc: enable SR-IOV and memory above 4G in the \
         machine's firmware, or ask for fewer VFs"
    } else {
        "the PCI bridge above the PF has too little space for its VFs: enable SR-IOV and memory above 4G in the machine's firmware, or put  pci=realloc  on \
         the kernel command line and reboot"
    };
    StepError::NoSpace { said: error.to_string(), cure }
}

/// Those that are up, or ports of something, keep their names: somebody counts on them.
fn name_representors(pf: PciAddress, base: &str) -> Result<(), StepError> {
    let route = Route::open().map_err(refused)?;
    let links = route.links().map_err(refused)?;
    let Some(uplink) = uplink(links.iter().filter(|link| link.parent == Some(pf))) else { return Ok(()) };
    for (index, found) in discover::representors(uplink, &links) {
        let name = format!("{base}_{index}");
        let idle = links.iter().find(|link| link.netdev.name == found && !link.netdev.admin_up && link.stack.master.is_none());
        if let Some(link) = idle.filter(|link| link.netdev.name != name) {
            route.change_link(link.netdev.ifindex, &LinkChange { name: Some(&name), ..LinkChange::default() }).map_err(refused)?;
        }
    }
    Ok(())
}

/// A driver without the feature is left as it is: switchdev mode works without, in software.
fn enable_offload(pf: PciAddress) -> Result<(), StepError> {
    let netdev = netdev(&Route::open().map_err(refused)?, pf)?;
    match Ethtool::open().and_then(|ethtool| ethtool.enable_feature(netdev.ifindex, "hw-tc-offload")) {
        Err(error) if error.is_unsupported() => Ok(()),
        result => result.map_err(refused),
    }
}

/// A driver without the choice is left as it is.
fn set_steering(pf: PciAddress, mode: &str) -> Result<(), StepError> {
    const PARAM: &str = "flow_steering_mode";
    let devlink = Devlink::open().map_err(refused)?;
    match devlink.text_param(&pf.into(), PARAM).map_err(refused)? {
        Some(found) if found != mode => match devlink.set_text_param(&pf.into(), PARAM, mode) {
            Err(error) if error.is_unsupported() => Ok(()),
            result => result.map_err(refused),
        },
        _ => Ok(()),
    }
}

fn change_netdev(address: PciAddress, change: &LinkChange<'_>) -> Result<(), StepError> {
    let route = Route::open().map_err(refused)?;
    let netdev = netdev(&route, address)?;
    route.change_link(netdev.ifindex, change).map_err(refused)
}

impl From<UeventError> for StepError {
    fn from(error: UeventError) -> Self {
        Self::refused(error.to_string())
    }
}

/// What the kernel or the file system said; its number decides how soon it is worth another try.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives values")]
fn refused<E: Answer>(error: E) -> StepError {
    StepError::Refused { errno: error.errno(), said: error.to_string() }
}

/// An error that may carry the kernel's number.
trait Answer: std::fmt::Display {
    fn errno(&self) -> Option<i32> {
        None
    }
}

impl Answer for UeventError {}
impl Answer for DiscoverError {}
impl Answer for KubeletError {}

impl Answer for SysfsError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

impl Answer for SriovError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

impl Answer for &SriovError {
    fn errno(&self) -> Option<i32> {
        SriovError::errno(self)
    }
}

impl Answer for DriverError {
    fn errno(&self) -> Option<i32> {
        // A driver or a setting that is missing is not there a second later either.
        let missing = matches!(self, Self::MissingDriver { .. } | Self::AutoprobeOff { .. });
        Self::errno(self).or(missing.then_some(Errno::NODEV.raw_os_error()))
    }
}

impl Answer for ModuleError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Load { cause, .. } => cause.raw_os_error(),
            Self::Missing { .. } => Some(Errno::NODEV.raw_os_error()),
            _ => None,
        }
    }
}

impl Answer for NetlinkError {
    fn errno(&self) -> Option<i32> {
        Some(Self::errno(self))
    }
}

impl Answer for StoreError {
    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn b2_missing_memory_space_is_never_told_without_its_cure() {
        let error = |errno: Errno| SriovError::SetNumvfs {
            pf: "0000:01:00.0".parse().unwrap(),
            given: 8,
            had: "0".to_owned(),
            allowed: "64".to_owned(),
            cause: SysfsError::Write { path: "/sys/x".into(), text: "8".to_owned(), cause: io::Error::from_raw_os_error(errno.raw_os_error()) },
        };
        let said = no_vfs(&error(Errno::NOMEM), "quiet pci=noaer").to_string();
        assert!(said.contains("cannot give PF 0000:01:00.0 8 VFs") && said.contains("put  pci=realloc  on"), "{said}");
        let said = no_vfs(&error(Errno::NOMEM), "quiet pci=noaer,realloc").to_string();
        assert!(said.contains("although the kernel was told pci=realloc"), "{said}");
        assert!(matches!(no_vfs(&error(Errno::BUSY), ""), StepError::Refused { .. }));
    }
}
