//! Pure: udev rules of the PFs that are wanted: NetworkManager leaves their VFs alone. One file a PF, under the Go daemon's names, so that an
//! upgrade replaces its files; no script is called.
//!
//! What does not live here: writing them (`store`). udev looks for changed rules by itself, so it is told nothing.
//!
//! Invariant: a rule names VFs by their PF's address, so it is right before they exist and whatever their names are.

use std::collections::BTreeMap;

use crate::desired::Desired;

/// How the names of our files begin and end; nothing else in the folder is ours.
pub const PREFIX: &str = "10-nm-disable-";
/// See [`PREFIX`].
pub const SUFFIX: &str = ".rules";

/// File names and contents.
pub fn rules(desired: &Desired) -> BTreeMap<String, String> {
    let with_vfs = desired.pfs.values().flatten().filter(|pf| pf.numvfs > 0);
    with_vfs
        .map(|pf| {
            let address = pf.address;
            let text = format!(
                "# Written by the SR-IOV config daemon: NetworkManager leaves the VFs of {address} alone.\n\
                 ACTION!=\"remove\", SUBSYSTEM==\"net\", ATTRS{{physfn/uevent}}==\"*PCI_SLOT_NAME={address}*\", ENV{{NM_UNMANAGED}}=\"1\"\n"
            );
            (format!("{PREFIX}{address}{SUFFIX}"), text)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b6_a_rule_never_depends_on_a_list_of_devices_that_may_not_be_loaded() {
        // As `apply --systemd` has it at boot, where no cluster tells supported NICs.
        let rules = rules(&Desired::read(&serde_saphyr::from_str("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2}]").unwrap()));
        let rule = rules.values().next().unwrap();
        assert!(!rule.contains("{device}") && !rule.contains("\"\""), "{rule}");
        assert!(rule.contains("ATTRS{physfn/uevent}"), "{rule}");
    }

    #[test]
    fn each_pf_with_vfs_has_its_rule_and_no_other() {
        let text =
            "interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2}, {pciAddress: '0000:02:00.0', numVfs: 0}, {pciAddress: nonsense, numVfs: 1}]";
        let rules = rules(&Desired::read(&serde_saphyr::from_str(text).unwrap()));
        assert_eq!(rules.keys().collect::<Vec<_>>(), ["10-nm-disable-0000:01:00.0.rules"]);
        let rule = &rules["10-nm-disable-0000:01:00.0.rules"];
        assert!(rule.contains("PCI_SLOT_NAME=0000:01:00.0*") && rule.contains("NM_UNMANAGED"), "{rule}");
    }
}
