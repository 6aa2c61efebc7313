//! I/O: what stands between a machine's network functions and VFs: firmware tables, lockdown, address space, drivers; for people who ask why.
//!
//! What does not live here: the inventory that plans are made from (`discover`), advice (the config daemon's `doctor`).
//!
//! Invariant: only reads, and what cannot be read is unknown, not an error: this is for machines on which something is wrong.

use serde::{Deserialize, Serialize};

use crate::Host;
use crate::driver;
use crate::pci::{DeviceId, PciAddress, VendorId};

/// First IOV line of a function's `resource` file (`PCI_IOV_RESOURCES`, include/linux/pci.h, v6.12): six BARs and the ROM come before.
const FIRST_IOV_BAR: usize = 7;
/// `IORESOURCE_MEM` and `IORESOURCE_UNSET` (include/linux/ioport.h, v6.12).
const MEMORY: u64 = 0x200;
const UNSET: u64 = 0x2000_0000;

/// A network function, also one that cannot have VFs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// PCI address.
    pub address: PciAddress,
    /// PCI vendor.
    pub vendor: VendorId,
    /// PCI device.
    pub device: DeviceId,
    /// Bound driver.
    pub driver: Option<String>,
    /// `sriov_totalvfs`; `None` without the SR-IOV capability, 0 when firmware switched it off.
    pub totalvfs: Option<u16>,
    /// Whether the BARs of its VFs have addresses; `None` when it has no such BARs or that is not told.
    pub vf_space: Option<bool>,
}

/// The machine below its network functions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The ACPI table by which firmware tells of an IOMMU: `DMAR` (Intel), `IVRS` (AMD), `IORT` (Arm).
    pub iommu_table: Option<String>,
    /// Kernel lockdown in force: `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// All network functions that are no VFs.
    pub nics: Vec<Nic>,
}

/// Looks at all of it.
pub fn platform(host: &Host) -> Platform {
    let sysfs = host.sysfs();
    let tables = sysfs.list_opt("/sys/firmware/acpi/tables").ok().flatten().unwrap_or_default();
    let iommu_table = ["DMAR", "IVRS", "IORT"].into_iter().find(|table| tables.iter().any(|found| found == table)).map(str::to_owned);
    let lockdown = sysfs.read_opt("/sys/kernel/security/lockdown").ok().flatten().as_deref().and_then(chosen);
    let mut addresses: Vec<PciAddress> =
        sysfs.list_opt("/sys/bus/pci/devices").ok().flatten().unwrap_or_default().iter().filter_map(|n| n.parse().ok()).collect();
    addresses.sort_unstable();
    Platform { iommu_table, lockdown, nics: addresses.into_iter().filter_map(|address| nic(host, address)).collect() }
}

/// The word in brackets, unless it is `none`.
fn chosen(text: &str) -> Option<String> {
    let word = text.split_once('[')?.1.split_once(']')?.0;
    (word != "none").then(|| word.to_owned())
}

fn nic(host: &Host, address: PciAddress) -> Option<Nic> {
    let device = crate::pci_device(address);
    let text = |name: &str| host.sysfs().read_opt(format!("{device}/{name}")).ok().flatten();
    let is_vf = host.sysfs().list_opt(&device).ok().flatten()?.iter().any(|name| name == "physfn");
    if is_vf || !text("class")?.starts_with("0x02") {
        return None;
    }
    Some(Nic {
        address,
        vendor: text("vendor")?.parse().ok()?,
        device: text("device")?.parse().ok()?,
        driver: driver::current(host, address).ok().flatten(),
        totalvfs: text("sriov_totalvfs").and_then(|total| total.parse().ok()),
        vf_space: text("resource").as_deref().and_then(vf_space),
    })
}

/// Each line of `resource` is start, end and flags. An IOV BAR that the kernel found no place for is memory that starts at 0 or is marked unset.
pub(crate) fn vf_space(resource: &str) -> Option<bool> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let bars: Vec<(u64, u64)> = resource
        .lines()
        .skip(FIRST_IOV_BAR)
        .take(6)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, _, flags) = (number(words.next()?)?, words.next()?, number(words.next()?)?);
            (flags & MEMORY != 0).then_some((start, flags))
        })
        .collect();
    (!bars.is_empty()).then(|| bars.iter().all(|(start, flags)| *start != 0 && flags & UNSET == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SysfsTree, igb_pf};

    const NONE: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";

    #[test]
    fn bars_without_a_place_are_told_from_bars_with_one_and_from_none() {
        let with = |line: &str| format!("{}{line}\n{}", NONE.repeat(7), NONE.repeat(5));
        assert_eq!(vf_space(&with("0x00000000fe840000 0x00000000fe85ffff 0x0000000000140204")), Some(true));
        assert_eq!(vf_space(&with("0x0000000000000000 0x000000000001ffff 0x0000000020140204")), Some(false));
        assert_eq!(vf_space(&with("0x0000000000000000 0x000000000001ffff 0x0000000000140204")), Some(false));
        assert_eq!(vf_space(&NONE.repeat(13)), None);
    }

    #[test]
    fn functions_that_cannot_have_vfs_are_seen_too_and_vfs_are_not() {
        let plain = "/sys/bus/pci/devices/0000:00:03.0";
        let tree = igb_pf(SysfsTree::new(), 2)
            .file(&format!("{plain}/class"), "0x020000\n")
            .file(&format!("{plain}/vendor"), "0x1af4\n")
            .file(&format!("{plain}/device"), "0x1041\n")
            .dir("/sys/firmware/acpi/tables/DMAR")
            .file("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        let seen = platform(&tree.build().unwrap().host());
        let nics: Vec<_> = seen.nics.iter().map(|nic| (nic.address.to_string(), nic.totalvfs, nic.driver.as_deref())).collect();
        assert_eq!(nics, [("0000:00:03.0".to_owned(), None, None), ("0000:01:00.0".to_owned(), Some(7), Some("igb"))]);
        assert_eq!((seen.iommu_table.as_deref(), seen.lockdown.as_deref()), (Some("DMAR"), Some("integrity")));
    }
}
