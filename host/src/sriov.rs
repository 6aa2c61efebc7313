//! I/O: the SR-IOV attributes of a PF in sysfs: how many VFs it has, whether new VFs are bound to a driver.
//!
//! What lives here: the writes and the wait for their effect. When to write what is the planner's decision.
//!
//! Invariant: nothing here writes an attribute that already has the wanted value; the kernel's errno is kept (`EBUSY` for N to M with N > 0,
//! `ERANGE` above `sriov_totalvfs`, `ENOMEM` without bus numbers or memory).

use std::time::Instant;

use crate::pci::PciAddress;
use crate::sysfs::SysfsError;
use crate::uevent::{UeventError, UeventSocket};
use crate::{Host, pci_device};

/// An SR-IOV operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum SriovError {
    /// The kernel refused the number of VFs.
    #[error("cannot give PF {pf} {given} VFs (it has {had}; from a number above 0 the kernel only goes to 0; allowed at most {allowed}): {cause}")]
    SetNumvfs {
        /// The PF.
        pf: PciAddress,
        /// The number asked for.
        given: u16,
        /// `sriov_numvfs` before, as sysfs said it.
        had: String,
        /// `sriov_totalvfs`, as sysfs said it.
        allowed: String,
        /// The kernel's answer.
        cause: SysfsError,
    },
    /// The driver took the number and made another one of it.
    #[error("PF {pf} took {given} VFs and has {got}")]
    Fewer {
        /// The PF.
        pf: PciAddress,
        /// The number asked for.
        given: u16,
        /// `sriov_numvfs` after, as sysfs says it.
        got: String,
    },
    /// The driver switch of new VFs could not be set.
    #[error("cannot set whether new VFs of PF {pf} are bound to a driver: {cause}")]
    SetAutoprobe {
        /// The PF.
        pf: PciAddress,
        /// The kernel's answer.
        cause: SysfsError,
    },
    /// The VFs did not appear or go in time.
    #[error("PF {pf} has {found} of {wanted} VFs at the deadline (sriov_numvfs says {numvfs})")]
    AwaitVfs {
        /// The PF.
        pf: PciAddress,
        /// The number waited for.
        wanted: u16,
        /// The VFs that sysfs shows.
        found: usize,
        /// `sriov_numvfs`, as sysfs says it.
        numvfs: String,
    },
    /// Reading sysfs failed.
    #[error(transparent)]
    Read(#[from] SysfsError),
    /// Waiting for events failed.
    #[error(transparent)]
    Wait(#[from] UeventError),
}

impl SriovError {
    /// The kernel's errno, when it refused a read or a write.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::SetNumvfs { cause, .. } | Self::SetAutoprobe { cause, .. } | Self::Read(cause) => cause.errno(),
            Self::Fewer { .. } | Self::AwaitVfs { .. } | Self::Wait(_) => None,
        }
    }
}

/// Writes `sriov_numvfs`. Returns when the driver has made or removed the VFs (2 to 3 s on igb); their netdevs come later. A driver may make fewer than it
/// is told, which the kernel counts as a success (drivers/pci/iov.c `sriov_numvfs_store`) and this as an error.
pub fn set_numvfs(host: &Host, pf: PciAddress, given: u16) -> Result<(), SriovError> {
    let device = pci_device(pf);
    let sysfs = host.sysfs();
    let had = sysfs.read(format!("{device}/sriov_numvfs"))?;
    if had == given.to_string() {
        return Ok(());
    }
    sysfs.write(format!("{device}/sriov_numvfs"), &given.to_string()).map_err(|cause| {
        let allowed = sysfs.read(format!("{device}/sriov_totalvfs")).unwrap_or_else(|_| "unknown".to_owned());
        SriovError::SetNumvfs { pf, given, had, allowed, cause }
    })?;
    let got = sysfs.read(format!("{device}/sriov_numvfs"))?;
    if got == given.to_string() { Ok(()) } else { Err(SriovError::Fewer { pf, given, got }) }
}

/// Writes `sriov_drivers_autoprobe`: whether the kernel binds VFs to drivers that are not named by `driver_override`. It acts on VFs made or
/// probed from now on, not on those that are bound.
pub fn set_autoprobe(host: &Host, pf: PciAddress, on: bool) -> Result<(), SriovError> {
    let path = format!("{}/sriov_drivers_autoprobe", pci_device(pf));
    if autoprobe(host, pf)? == Some(on) {
        return Ok(());
    }
    host.sysfs().write(path, if on { "1" } else { "0" }).map_err(|cause| SriovError::SetAutoprobe { pf, cause })
}

/// Reads `sriov_drivers_autoprobe`; `None` on kernels without it (before 4.12), which always bind.
pub fn autoprobe(host: &Host, pf: PciAddress) -> Result<Option<bool>, SysfsError> {
    let text = host.sysfs().read_opt(format!("{}/sriov_drivers_autoprobe", pci_device(pf)))?;
    Ok(text.map(|text| text != "0"))
}

/// Waits until the PF has exactly `wanted` VFs: `sriov_numvfs` says so and each `virtfnN` leads to a device.
pub fn wait_for_vfs(host: &Host, pf: PciAddress, wanted: u16, deadline: Instant) -> Result<(), SriovError> {
    let events = UeventSocket::open()?;
    let mut last = (String::new(), 0);
    let done = events.wait_until(deadline, || {
        last = count_vfs(host, pf)?;
        Ok::<_, SriovError>((last.0 == wanted.to_string() && last.1 == usize::from(wanted)).then_some(()))
    })?;
    let (numvfs, found) = last;
    done.ok_or(SriovError::AwaitVfs { pf, wanted, found, numvfs })
}

/// `sriov_numvfs` and the number of `virtfnN` links that lead to a device.
fn count_vfs(host: &Host, pf: PciAddress) -> Result<(String, usize), SysfsError> {
    let device = pci_device(pf);
    let numvfs = host.sysfs().read(format!("{device}/sriov_numvfs"))?;
    let names = host.sysfs().list(&device)?;
    let vfs = names.iter().filter(|name| name.starts_with("virtfn") && host.sysfs().exists(format!("{device}/{name}/vendor")));
    Ok((numvfs, vfs.count()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{SysfsTree, igb_pf};

    #[test]
    fn only_a_number_that_is_not_there_is_written() {
        let fake = igb_pf(SysfsTree::new(), 2).build().unwrap();
        let pf = "0000:01:00.0".parse().unwrap();
        let content = || std::fs::read_to_string(fake.path().join("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs")).unwrap();
        set_numvfs(&fake.host(), pf, 2).unwrap();
        assert_eq!(content(), "2\n", "the kernel's newline is gone when the file was written");
        set_numvfs(&fake.host(), pf, 0).unwrap();
        assert_eq!(content(), "0");
    }

    #[test]
    fn a_refusal_keeps_the_errno_and_tells_what_is_allowed() {
        let write = SysfsError::Write { path: "/sys/x/sriov_numvfs".into(), text: "8".to_owned(), cause: std::io::Error::from_raw_os_error(34) };
        let pf = "0000:01:00.0".parse().unwrap();
        let error = SriovError::SetNumvfs { pf, given: 8, had: "0".to_owned(), allowed: "7".to_owned(), cause: write };
        assert_eq!(error.errno(), Some(34));
        for word in ["0000:01:00.0 8 VFs", "it has 0", "at most 7", "sriov_numvfs", "out of range"] {
            assert!(error.to_string().contains(word), "{word:?} in {error}");
        }
    }

    #[test]
    fn a_pf_that_is_not_there_is_an_error_of_the_read() {
        let fake = SysfsTree::new().build().unwrap();
        let error = set_numvfs(&fake.host(), "0000:01:00.0".parse().unwrap(), 1).unwrap_err();
        assert_eq!(error.errno(), Some(2));
    }

    #[test]
    fn autoprobe_is_written_as_the_kernel_takes_it() {
        let fake = igb_pf(SysfsTree::new(), 0).build().unwrap();
        let pf = "0000:01:00.0".parse().unwrap();
        assert_eq!(autoprobe(&fake.host(), pf).unwrap(), Some(true));
        set_autoprobe(&fake.host(), pf, false).unwrap();
        assert_eq!(autoprobe(&fake.host(), pf).unwrap(), Some(false));
    }

    #[test]
    fn a_wait_ends_when_the_vfs_are_there_and_tells_what_is_missing_when_not() {
        let fake = igb_pf(SysfsTree::new(), 2).build().unwrap();
        let pf = "0000:01:00.0".parse().unwrap();
        wait_for_vfs(&fake.host(), pf, 2, Instant::now() + Duration::from_secs(5)).unwrap();
        let error = wait_for_vfs(&fake.host(), pf, 3, Instant::now()).unwrap_err();
        assert!(error.to_string().contains("has 2 of 3 VFs"), "{error}");
    }

    #[test]
    fn a_link_without_a_device_is_not_a_vf() {
        let tree = igb_pf(SysfsTree::new(), 2).file("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "3");
        let fake = tree.link("/sys/bus/pci/devices/0000:01:00.0/virtfn2", "../0000:01:10.4").build().unwrap();
        let error = wait_for_vfs(&fake.host(), "0000:01:00.0".parse().unwrap(), 3, Instant::now()).unwrap_err();
        assert!(error.to_string().contains("has 2 of 3 VFs at the deadline (sriov_numvfs says 3)"), "{error}");
    }
}
