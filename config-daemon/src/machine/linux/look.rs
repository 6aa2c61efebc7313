//! I/O: looking at this machine: its functions through `sriov-host`, the files of `store`, the kubelet, modules.
//!
//! What does not live here: reading functions (`sriov_host::discover`), what a look is for (`plan`).
//!
//! Invariants: who uses VFs, and what bridges there are, is read at each look. The rest is kept between looks only where the kernel announces its changes, and a look that begins with
//! what was kept is for finding out whether something is to be done: steps are planned from a look at everything (`node_state`).

use std::fmt::Display;
use std::sync::PoisonError;

use sriov_host::discover::{Changes, KeptSurvey, Read};
use sriov_host::pci::PciAddress;
use sriov_host::{driver, kernel, module, sriov, vdpa};

use super::{Linux, NO_IOMMU};
use crate::desired::VdpaType;
use crate::machine::ObserveError;
use crate::observed::Observed;
use crate::plan::step::VFIO_PCI;

/// What the last look found, from which the next one may begin.
#[derive(Debug, Default)]
pub(super) struct KeptLook {
    survey: KeptSurvey,
    /// What was read besides functions and users.
    rest: Observed,
    /// All of it but bridges, where those are managed.
    last: Option<Observed>,
}

impl Linux {
    /// A look at what changed since the last one, which costs what the PFs cost that are named; at everything where that is not certain to be right.
    pub fn look(&self, changes: &Changes) -> Result<Observed, ObserveError> {
        let users = || self.store.vfs_in_use().map_err(|error| unreadable("the CNI's journals", &error));
        let held = self.kubelet.devices().map_err(|error| unreadable("who has VFs", &error))?;
        // Read before and after: a pod that ends or starts during the look has its VF in one of them, whatever the look saw of it.
        let mut vfs_in_use = users()?;
        let mut last = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken away, so that a look that fails leaves nothing to begin with.
        let mut kept = std::mem::take(&mut *last);
        let found = kept.survey.look(&self.host, changes).map_err(|error| ObserveError::Discover(error.to_string()))?;
        vfs_in_use.append(&mut users()?);
        let inventory = found.survey.inventory;
        let (mut rest, pfs) = match found.read {
            Read::Everything => (self.rest()?, inventory.pfs.iter().map(|pf| pf.address).collect()),
            Read::Pfs(pfs) => (kept.rest, pfs),
        };
        for pf in pfs {
            self.read_autoprobe(pf, &mut rest)?;
        }
        kept.rest = rest.clone();
        let faults = found.survey.faults.into_iter().map(|(pf, fault)| (pf, fault.to_string())).collect();
        let mut observed = Observed { inventory, faults, vfs_in_use, has_namespaces: self.store.has_namespaces(), ..rest };
        observed.add_held(held);
        self.name_networks(&mut observed);
        kept.last = self.ovs.as_ref().map(|_| observed.clone());
        *last = kept;
        drop(last);
        Ok(self.with_bridges_of_now(observed))
    }

    /// The last look with the bridges as they are now, which reads nothing else; at everything where there was none.
    pub fn look_at_bridges(&self) -> Result<Observed, ObserveError> {
        let last = self.kept.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        last.map_or_else(|| self.look(&Changes::everything()), |observed| Ok(self.with_bridges_of_now(observed)))
    }

    fn with_bridges_of_now(&self, mut observed: Observed) -> Observed {
        match &self.ovs {
            Some(ovs) => observed.add_bridges(ovs.look(&self.store)),
            // A file that is not understood names none.
            None => observed.leave_bridges(&self.store.bridges().unwrap_or_default()),
        }
        observed
    }

    /// Everything but functions and who uses them.
    fn rest(&self) -> Result<Observed, ObserveError> {
        let mut rest = Observed { machine_id: self.machine_id(), ..Observed::default() };
        rest.vfio_pci_loaded = driver::is_loaded(&self.host, VFIO_PCI);
        rest.vfio_pci_loadable = !rest.vfio_pci_loaded && module::is_available(&self.host, VFIO_PCI);
        for driver in VdpaType::ALL.map(VdpaType::driver) {
            if vdpa::is_loaded(&self.host, driver) {
                rest.vdpa_drivers.insert(driver.to_owned());
            } else if module::is_available(&self.host, driver) {
                rest.vdpa_drivers_loadable.insert(driver.to_owned());
            }
        }
        rest.guids = self.store.guids().map_err(|error| unreadable("the GUIDs of InfiniBand VFs", &error))?;
        rest.staged_rdma_mode = self.store.staged_rdma_mode().map_err(|error| unreadable("the mode of RDMA devices", &error))?;
        rest.staged_firmware = self.store.staged_firmware().map_err(|error| unreadable("what firmware was told", &error))?;
        rest.left_firmware.clone_from(&self.left_firmware);
        // Only compared, with what another look read.
        rest.boot_id = kernel::boot_id(&self.host).unwrap_or_default();
        rest.records = self.store.records().map_err(|error| unreadable("the records of configured PFs", &error))?;
        rest.vfio_without_iommu = module::parameter(&self.host, "vfio", NO_IOMMU).is_some_and(|value| value == "Y");
        Ok(rest)
    }

    fn read_autoprobe(&self, pf: PciAddress, rest: &mut Observed) -> Result<(), ObserveError> {
        if sriov::autoprobe(&self.host, pf).map_err(|error| ObserveError::Discover(error.to_string()))? == Some(false) {
            rest.autoprobe_off.insert(pf);
        } else {
            rest.autoprobe_off.remove(&pf);
        }
        Ok(())
    }
}

fn unreadable(what: &str, error: &dyn Display) -> ObserveError {
    ObserveError::ReadState { what: what.to_owned(), reason: error.to_string() }
}
