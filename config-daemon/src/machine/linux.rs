//! I/O: this machine: each step as the host's verbs, with its deadline.
//!
//! What does not live here: what to do and in which order (`plan`), looking (`look`, `clouds`), vDPA devices (`vdpa_devices`), settings of
//! firmware (`firmware`), what a refusal of the kernel means (`answer`).
//!
//! Invariants: PF and VF are looked up when a step is performed; a VF that a pod took after the look is not changed.

mod answer;
mod clouds;
mod firmware;
mod look;
mod no_vfs;
mod vdpa_devices;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sriov_host::discover::Changes;
use sriov_host::guid::Guid;
use sriov_host::inventory::Netdev;
use sriov_host::netlink::devlink::{ConfigMode, Devlink, ParamError, ParamValue};
use sriov_host::netlink::ethtool::Ethtool;
use sriov_host::netlink::rdma::Rdma;
use sriov_host::netlink::route::uplink;
use sriov_host::netlink::{LinkChange, Route};
use sriov_host::pci::{PciAddress, VendorId};
use sriov_host::uevent::UeventSocket;
use sriov_host::vf::{VfIndex, VfSetting};
use sriov_host::{Host, discover, driver, kernel, module, sriov};

use super::ovs::Ovs;
use super::{Machine, ObserveError, StepError};
use crate::kubelet::{self, Kubelet};
use crate::observed::Observed;
use crate::ovsdb::Ovsdb;
use crate::plan::step::{Driver, Step, VFIO_PCI};
use crate::store::{Store, VfLock};
use answer::refused;
use clouds::Told;
use look::KeptLook;
use no_vfs::no_vfs;

/// Longest wait for VFs after `sriov_numvfs` was written: drivers with many VFs need a while.
const VFS_DEADLINE: Duration = Duration::from_mins(2);
/// Longest wait for a driver or for a netdev.
const DRIVER_DEADLINE: Duration = Duration::from_secs(20);
/// The switch of module `vfio` by which devices without an IOMMU are taken.
const NO_IOMMU: &str = "enable_unsafe_noiommu_mode";

/// This machine.
#[derive(Clone, Debug)]
pub struct Linux {
    host: Host,
    store: Store,
    kubelet: Kubelet,
    networks: Arc<Mutex<Told>>,
    kept: Arc<Mutex<KeptLook>>,
    /// Set where bridges are managed.
    ovs: Option<Ovs>,
    /// Vendors whose NICs' firmware is left as it is.
    left_firmware: BTreeSet<VendorId>,
}

impl Linux {
    /// The machine whose `/sys` is below `root`; netlink speaks to this process's network namespace, which must be the host's.
    pub fn new(root: &Path, store: Store) -> Self {
        let kubelet = Kubelet::at(root, kubelet::DEFAULT_FOLDER);
        Self { host: Host::at(root), store, kubelet, networks: Arc::default(), kept: Arc::default(), ovs: None, left_firmware: BTreeSet::new() }
    }

    /// The same machine with this kubelet.
    #[must_use]
    pub fn with_kubelet(self, kubelet: Kubelet) -> Self {
        Self { kubelet, ..self }
    }

    /// The same machine, whose bridges are managed.
    #[must_use]
    pub fn with_bridges(self, ovs: Ovs) -> Self {
        Self { ovs: Some(ovs), ..self }
    }

    /// The same machine, whose bridges are left as they are.
    #[must_use]
    pub fn without_bridges(&self) -> Self {
        Self { ovs: None, ..self.clone() }
    }

    /// The database of bridges, where they are managed.
    pub fn ovsdb(&self) -> Option<&Ovsdb> {
        self.ovs.as_ref().map(Ovs::ovsdb)
    }

    /// The same machine, whose NICs of these vendors keep the settings of their firmware.
    #[must_use]
    pub fn leaving_firmware(self, left_firmware: BTreeSet<VendorId>) -> Self {
        Self { left_firmware, ..self }
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
        sriov::set_numvfs(&self.host, pf, to).map_err(|error| {
            let driver = driver::current(&self.host, pf).ok().flatten();
            no_vfs(&error, driver.as_deref(), to, &kernel::command_line(&self.host).unwrap_or_default())
        })?;
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
}

impl Machine for Linux {
    fn observe(&self) -> Result<Observed, ObserveError> {
        self.look(&Changes::everything())
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
            Step::RemoveVdpa { pf, vf } => self.remove_vdpa(*pf, *vf),
            Step::MakeBridge { pf, wanted, netdev } => self.ovs()?.make(&self.store, *pf, wanted, netdev),
            Step::CorrectBridge { pf, wanted, netdev } => self.ovs()?.correct(&self.store, *pf, wanted, netdev),
            Step::RemoveBridge { name, .. } => self.ovs()?.remove(&self.store, name),
            Step::StageFirmware { pf, settings, before } => self.stage_firmware(*pf, settings, before),
            Step::KeepFirmware { pf, settings } => self.stage_firmware(*pf, settings, settings),
            Step::UnstageFirmware { pf, settings } => self.unstage_firmware(*pf, settings),
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
        Some(found) if found != mode => match devlink.set_param(&pf.into(), PARAM, ConfigMode::Runtime, &ParamValue::Text(mode.to_owned())) {
            Err(ParamError::Refused(error)) if error.is_unsupported() => Ok(()),
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
