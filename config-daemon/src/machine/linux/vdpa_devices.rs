//! I/O: making and removing the vDPA devices of VFs.
//!
//! What does not live here: whether a VF is to have one (`plan`), the bus itself (`sriov_host::vdpa`).
//!
//! Invariant: only devices with the name that is ours are removed.

use std::time::{Duration, Instant};

use sriov_host::netlink::vdpa::{Carrier, VdpaBus};
use sriov_host::pci::PciAddress;
use sriov_host::uevent::UeventSocket;
use sriov_host::vf::VfIndex;
use sriov_host::{function, vdpa};

use super::Linux;
use super::answer::refused;
use crate::machine::StepError;

/// Longest wait for the vDPA driver of a VF.
const VDPA_DEADLINE: Duration = Duration::from_secs(5);

impl Linux {
    /// Makes a vDPA device unless the VF has one, and gives it its driver.
    pub(super) fn make_vdpa(&self, pf: PciAddress, vf: VfIndex, driver: &str) -> Result<(), StepError> {
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

    /// Removes the device that we made for the VF.
    pub(super) fn remove_vdpa(&self, pf: PciAddress, vf: VfIndex) -> Result<(), StepError> {
        let (address, _lock) = self.free_vf(pf, vf)?;
        VdpaBus::open().and_then(|bus| bus.remove(&vdpa::name_of(address))).map_err(refused)
    }
}
