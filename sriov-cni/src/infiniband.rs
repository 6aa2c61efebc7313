//! I/O: what an InfiniBand VF needs beyond its settings: new GUIDs reach it when its driver probes it (`quirks::guid_at_probe`), so that it is bound
//! anew; its netdev and RDMA device are made anew with that, in the host's namespace.
//!
//! What does not live here: setting GUIDs (attributes like others: `vf_plan`, `attach`).

use std::time::Instant;

use sriov_host::Host;
use sriov_host::driver::{self, DriverError};
use sriov_host::netlink::{Link, Route};
use sriov_host::pci::PciAddress;
use sriov_host::uevent::{UeventError, UeventSocket};
use sriov_host::vf::VfSetting;

use crate::device::{DeviceError, netdev_in_host};
use crate::quirks;
use sriov_host::device_id::DeviceId;

/// A VF that could not be bound anew. CNI error codes 102 and 105.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The driver.
    #[error("failed to bind VF {vf} anew, by which it takes its GUIDs over: {cause}")]
    Bind {
        /// The VF.
        vf: PciAddress,
        /// Why.
        cause: DriverError,
    },
    /// Its netdev did not come.
    #[error("VF {vf} has no netdev after it was bound anew to {driver}")]
    NoNetdev {
        /// The VF.
        vf: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Kernel events.
    #[error(transparent)]
    Uevent(#[from] UeventError),
}

/// Whether these changes reach a VF of this driver only with the next probe.
pub(crate) fn needs_probe(driver: Option<&str>, changes: &[VfSetting]) -> bool {
    quirks::guid_at_probe(driver) && changes.iter().any(|change| matches!(change, VfSetting::NodeGuid(_) | VfSetting::PortGuid(_)))
}

/// Binds a VF anew to its driver and returns its new netdev.
pub(crate) fn probe_again(host: &Host, route: &Route, vf: PciAddress, driver: &str, deadline: Instant) -> Result<Link, ProbeError> {
    // Before the change, so that no event is missed.
    let events = UeventSocket::open()?;
    let bound = driver::unbind(host, vf).and_then(|()| driver::bind(host, vf, driver, deadline));
    bound.map_err(|cause| ProbeError::Bind { vf, cause })?;
    let look = || Ok::<_, ProbeError>(netdev_in_host(host, route, DeviceId::Pci(vf))?);
    events.wait_until(deadline, look)?.ok_or_else(|| ProbeError::NoNetdev { vf, driver: driver.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_identifiers_of_a_driver_that_reads_them_once_ask_for_a_probe() {
        let guid = VfSetting::NodeGuid("c2:11:22:33:44:55:66:77".parse().unwrap());
        assert!(needs_probe(Some("mlx5_core"), &[VfSetting::Trust(true), guid]));
        assert!(!needs_probe(Some("mlx5_core"), &[VfSetting::Trust(true)]));
        assert!(!needs_probe(Some("vfio-pci"), &[guid]) && !needs_probe(None, &[guid]));
    }
}
