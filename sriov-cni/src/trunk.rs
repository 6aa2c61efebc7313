//! I/O: the VLAN trunk of a VF: the tagged VLANs that its PF lets through. The kernel has no interface for it (`IFLA_VF_VLAN_LIST` takes one VLAN);
//! drivers from outside its tree have a file of sysfs, `sriov/<index>/trunk` of the PF's device, each with its own language.
//!
//! What does not live here: which language a driver speaks (`quirks`).
//!
//! Invariant: only ids that differ are written.

use sriov_host::Host;
use sriov_host::pci::PciAddress;
use sriov_host::sysfs::SysfsError;
use sriov_host::vf::VfIndex;

use crate::quirks::{self, TrunkWords};
use crate::vlan_set::VlanSet;

/// The trunk of a VF; `None` where the PF's driver has no such file.
pub(crate) fn read(host: &Host, pf: PciAddress, index: VfIndex) -> Result<Option<VlanSet>, SysfsError> {
    Ok(host.sysfs().read_opt(path(pf, index))?.map(|text| VlanSet::printed(&text)))
}

/// Brings the trunk of a VF from `current` to `wanted`.
pub(crate) fn write(host: &Host, pf: PciAddress, index: VfIndex, current: &VlanSet, wanted: &VlanSet) -> Result<(), SysfsError> {
    let driver = host.sysfs().read_link_name(format!("/sys/bus/pci/devices/{pf}/driver"))?;
    for command in commands(quirks::trunk_words(driver.as_deref()), current, wanted) {
        host.sysfs().write(path(pf, index), &command)?;
    }
    Ok(())
}

/// What is written to the file, one `write(2)` each. What is new comes first, so that VLANs that stay never miss.
fn commands(words: TrunkWords, current: &VlanSet, wanted: &VlanSet) -> Vec<String> {
    let mut commands = Vec::new();
    for (verb, set) in [("add", wanted.without(current)), ("rem", current.without(wanted))] {
        match words {
            TrunkWords::List if set == VlanSet::default() => {}
            TrunkWords::List => commands.push(format!("{verb} {set}")),
            TrunkWords::Ranges => commands.extend(set.ranges().into_iter().map(|range| format!("{verb} {} {}", range.start(), range.end()))),
        }
    }
    commands
}

fn path(pf: PciAddress, index: VfIndex) -> String {
    format!("/sys/bus/pci/devices/{pf}/sriov/{index}/trunk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_is_told_the_difference_in_its_words() {
        let (from, to): (VlanSet, VlanSet) = ("1-10,20".parse().unwrap(), "5-12,30".parse().unwrap());
        assert_eq!(commands(TrunkWords::List, &from, &to), ["add 11-12,30", "rem 1-4,20"]);
        assert_eq!(commands(TrunkWords::Ranges, &from, &to), ["add 11 12", "add 30 30", "rem 1 4", "rem 20 20"]);
        assert!(commands(TrunkWords::List, &to, &to).is_empty());
    }
}
