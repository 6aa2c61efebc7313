//! I/O: which driver a PCI function is bound to, and changing that through sysfs.
//!
//! What lives here: bind, unbind and the wait for their effect. Which driver is right is the planner's decision.
//!
//! Invariant: a function that has the wanted driver is not touched; `driver_override` is empty again afterwards, whatever happened.

use std::time::Instant;

use crate::pci::PciAddress;
use crate::sysfs::SysfsError;
use crate::uevent::{UeventError, UeventSocket};
use crate::{Host, pci_device};

/// A driver that could not be bound or unbound.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no such PCI function.
    #[error("there is no PCI function {address}")]
    MissingDevice {
        /// The function.
        address: PciAddress,
    },
    /// The kernel does not have the driver.
    #[error("cannot bind {address} to {driver}: the kernel has no such PCI driver; load its module")]
    MissingDriver {
        /// The function.
        address: PciAddress,
        /// The driver asked for.
        driver: String,
    },
    /// The driver refused the function.
    #[error("cannot bind {address} to {driver}: {cause}")]
    Bind {
        /// The function.
        address: PciAddress,
        /// The driver asked for.
        driver: String,
        /// The driver's answer, for example `EINVAL` of vfio-pci without an IOMMU.
        cause: SysfsError,
    },
    /// The PF forbids its VFs any driver but one named for them.
    #[error("cannot bind VF {address} to its default driver: sriov_drivers_autoprobe of PF {pf} is 0; set it to 1 first")]
    AutoprobeOff {
        /// The VF.
        address: PciAddress,
        /// Its PF.
        pf: String,
    },
    /// No driver, or another one, at the deadline.
    #[error("{address} is bound to {found} at the deadline, not to {wanted}; see the kernel's log")]
    AwaitDriver {
        /// The function.
        address: PciAddress,
        /// What was waited for.
        wanted: String,
        /// The driver that it has.
        found: String,
    },
    /// Another sysfs operation failed.
    #[error("cannot change the driver of {address}: {cause}")]
    Sysfs {
        /// The function.
        address: PciAddress,
        /// The kernel's answer.
        cause: SysfsError,
    },
    /// Waiting for events failed.
    #[error(transparent)]
    Wait(#[from] UeventError),
}

impl DriverError {
    /// The kernel's errno, when it refused something.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Bind { cause, .. } | Self::Sysfs { cause, .. } => cause.errno(),
            _ => None,
        }
    }
}

/// The driver that a function is bound to; `None` when unbound.
pub fn current(host: &Host, address: PciAddress) -> Result<Option<String>, SysfsError> {
    host.sysfs().read_link_name(format!("{}/driver", pci_device(address)))
}

/// Whether a driver hands its function to a process instead of the kernel, so that it is only ever bound by name.
pub fn is_userspace(driver: &str) -> bool {
    // Variant drivers of vendors are called `mlx5_vfio_pci`, `nvgrace_gpu_vfio_pci`, ...
    matches!(driver, "vfio-pci" | "uio_pci_generic" | "igb_uio" | "pci-stub") || driver.ends_with("_vfio_pci") || driver.ends_with("-vfio-pci")
}

/// Whether the kernel has a PCI driver with this name, built in or from a module that is loaded.
pub fn is_loaded(host: &Host, driver: &str) -> bool {
    host.sysfs().exists(format!("/sys/bus/pci/drivers/{driver}"))
}

/// Binds a function to the driver with this name, whatever ids the driver lists, and waits until it is bound.
///
/// Writes `driver_override`, unbinds the present driver, has the bus probe the function, and empties the override again (a binding
/// outlives it). Where the probe leaves the function unbound, the driver's `bind` file is written, because only that tells the reason.
pub fn bind(host: &Host, address: PciAddress, driver: &str, deadline: Instant) -> Result<(), DriverError> {
    let device = Device { host, address };
    if device.current()?.as_deref() == Some(driver) {
        return Ok(());
    }
    device.require()?;
    if !is_loaded(host, driver) {
        return Err(DriverError::MissingDriver { address, driver: driver.to_owned() });
    }
    let events = UeventSocket::open()?;
    device.set_override(driver)?;
    let bound = device.bind_overridden(&events, driver, deadline);
    // Also after a failure: an override left behind would give the function to that driver at the next probe.
    let cleared = device.set_override("");
    bound.and(cleared)
}

/// Binds a function to the driver that the kernel chooses for it, and waits until it is bound. A function that has a kernel driver is left
/// alone; one that has a userspace driver (see [`is_userspace`]) is unbound first.
pub fn bind_default(host: &Host, address: PciAddress, deadline: Instant) -> Result<(), DriverError> {
    let device = Device { host, address };
    if device.current()?.is_some_and(|driver| !is_userspace(&driver)) {
        return Ok(());
    }
    device.require()?;
    device.require_autoprobe()?;
    let events = UeventSocket::open()?;
    device.set_override("")?;
    device.unbind()?;
    device.probe()?;
    let bound = device.wait(&events, deadline, |driver| driver.is_some_and(|driver| !is_userspace(driver)))?;
    bound.map_err(|found| DriverError::AwaitDriver { address, wanted: "its default driver".to_owned(), found })
}

/// Takes a function's driver away; one that has none is left alone.
pub fn unbind(host: &Host, address: PciAddress) -> Result<(), DriverError> {
    Device { host, address }.unbind()
}

#[derive(Clone, Copy)]
struct Device<'a> {
    host: &'a Host,
    address: PciAddress,
}

impl Device<'_> {
    fn current(&self) -> Result<Option<String>, DriverError> {
        current(self.host, self.address).map_err(|cause| self.failed(cause))
    }

    fn require(&self) -> Result<(), DriverError> {
        let there = self.host.sysfs().exists(pci_device(self.address));
        if there { Ok(()) } else { Err(DriverError::MissingDevice { address: self.address }) }
    }

    /// With `sriov_drivers_autoprobe` 0 the PCI core refuses a VF to every driver but its override (`pci_device_can_probe` of
    /// drivers/pci/pci-driver.c), and the probe looks as if no driver knew it.
    fn require_autoprobe(&self) -> Result<(), DriverError> {
        let device = pci_device(self.address);
        let off = self.host.sysfs().read_opt(format!("{device}/physfn/sriov_drivers_autoprobe")).map_err(|cause| self.failed(cause))?;
        if off.as_deref() != Some("0") {
            return Ok(());
        }
        let pf = self.host.sysfs().read_link_name(format!("{device}/physfn")).map_err(|cause| self.failed(cause))?;
        Err(DriverError::AutoprobeOff { address: self.address, pf: pf.unwrap_or_default() })
    }

    /// An empty name clears the override; the kernel takes a lone newline for that.
    fn set_override(&self, driver: &str) -> Result<(), DriverError> {
        let path = format!("{}/driver_override", pci_device(self.address));
        self.host.sysfs().write(path, &format!("{driver}\n")).map_err(|cause| self.failed(cause))
    }

    fn unbind(&self) -> Result<(), DriverError> {
        if self.current()?.is_none() {
            return Ok(());
        }
        match self.host.sysfs().write(format!("{}/driver/unbind", pci_device(self.address)), &self.address.to_string()) {
            // Unbound by someone else meanwhile.
            Err(cause) if cause.is_gone() => Ok(()),
            result => result.map_err(|cause| self.failed(cause)),
        }
    }

    fn probe(&self) -> Result<(), DriverError> {
        self.host.sysfs().write("/sys/bus/pci/drivers_probe", &self.address.to_string()).map_err(|cause| self.failed(cause))
    }

    fn bind_overridden(&self, events: &UeventSocket, driver: &str, deadline: Instant) -> Result<(), DriverError> {
        self.unbind()?;
        self.probe()?;
        if self.current()?.is_none() {
            let text = self.address.to_string();
            match self.host.sysfs().write(format!("/sys/bus/pci/drivers/{driver}/bind"), &text) {
                Err(cause) if self.current()?.as_deref() != Some(driver) => {
                    return Err(DriverError::Bind { address: self.address, driver: driver.to_owned(), cause });
                }
                _ => {}
            }
        }
        let bound = self.wait(events, deadline, |current| current == Some(driver))?;
        bound.map_err(|found| DriverError::AwaitDriver { address: self.address, wanted: driver.to_owned(), found })
    }

    /// Waits until the driver is as wanted; at the deadline the inner error names the driver found.
    fn wait(&self, events: &UeventSocket, deadline: Instant, wanted: impl Fn(Option<&str>) -> bool) -> Result<Result<(), String>, DriverError> {
        let mut found = None;
        let done = events.wait_until(deadline, || {
            found = self.current()?;
            Ok::<_, DriverError>(wanted(found.as_deref()).then_some(()))
        })?;
        Ok(done.ok_or_else(|| found.unwrap_or_else(|| "no driver".to_owned())))
    }

    fn failed(&self, cause: SysfsError) -> DriverError {
        DriverError::Sysfs { address: self.address, cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SysfsTree, igb_pf};

    const VF: &str = "0000:01:10.0";

    fn address() -> PciAddress {
        VF.parse().unwrap()
    }

    #[test]
    fn a_function_that_has_the_driver_is_not_touched() {
        let fake = igb_pf(SysfsTree::new(), 1).build().unwrap();
        bind(&fake.host(), address(), "igbvf", Instant::now()).unwrap();
        bind_default(&fake.host(), address(), Instant::now()).unwrap();
        let device = format!("/sys/bus/pci/devices/{VF}");
        assert_eq!(fake.host().sysfs().read(format!("{device}/driver_override")).unwrap(), "(null)");
    }

    #[test]
    fn a_driver_that_the_kernel_does_not_have_is_named() {
        let fake = igb_pf(SysfsTree::new(), 1).build().unwrap();
        let error = bind(&fake.host(), address(), "no-such-driver", Instant::now()).unwrap_err();
        assert!(matches!(error, DriverError::MissingDriver { .. }), "{error}");
        let error = bind(&fake.host(), "0000:7f:00.0".parse().unwrap(), "igbvf", Instant::now()).unwrap_err();
        assert!(matches!(error, DriverError::MissingDevice { .. }), "{error}");
    }

    #[test]
    fn the_override_is_empty_again_after_a_failure() {
        // A tree is not a kernel: nothing answers the probe, so the deadline passes.
        let tree = igb_pf(SysfsTree::new(), 1).file("/sys/bus/pci/drivers/vfio-pci/bind", "").file("/sys/bus/pci/drivers_probe", "");
        let fake = tree.file("/sys/bus/pci/drivers/igbvf/unbind", "").build().unwrap();
        let error = bind(&fake.host(), address(), "vfio-pci", Instant::now()).unwrap_err();
        assert!(error.to_string().contains("not to vfio-pci"), "{error}");
        assert_eq!(fake.host().sysfs().read(format!("/sys/bus/pci/devices/{VF}/driver_override")).unwrap(), "");
        assert_eq!(fake.host().sysfs().read("/sys/bus/pci/drivers_probe").unwrap(), VF);
    }

    #[test]
    fn the_default_driver_needs_autoprobe() {
        let tree = igb_pf(SysfsTree::new(), 1).file("/sys/bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe", "0");
        let fake = tree.link(&format!("/sys/bus/pci/devices/{VF}/driver"), "../../../bus/pci/drivers/vfio-pci").build().unwrap();
        let error = bind_default(&fake.host(), address(), Instant::now()).unwrap_err();
        assert!(matches!(&error, DriverError::AutoprobeOff { pf, .. } if pf == "0000:01:00.0"), "{error}");
    }

    #[test]
    fn drivers_for_processes_are_known_by_name() {
        for (driver, userspace) in [("vfio-pci", true), ("mlx5_vfio_pci", true), ("uio_pci_generic", true), ("igbvf", false), ("mlx5_core", false)] {
            assert_eq!(is_userspace(driver), userspace, "{driver}");
        }
    }
}
