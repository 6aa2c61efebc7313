//! Pure: udev rules of the PFs that are wanted: NetworkManager leaves their VFs alone; in switchdev mode the PF keeps its name, and representors have
//! names that tell PF and VF. Files are under the Go daemon's names, so that an upgrade replaces its files; no script is called.
//!
//! What does not live here: writing them (`store`); naming representors that are there already (`machine`). udev looks for changed rules by itself, so it
//! is told nothing.
//!
//! Invariant: a rule names devices by their PF's address and their port's name, so it is right before they exist and whatever their names are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sriov_host::inventory::EswitchMode;

use crate::desired::{Desired, DesiredPf};

/// How the names of our files begin; nothing else in the folder is ours.
const PREFIXES: [&str; 3] = ["10-nm-disable-", "10-pf-name-", "20-switchdev-"];
const SUFFIX: &str = ".rules";

/// Whether a file in udev's folder is one of ours.
pub fn is_ours(name: &str) -> bool {
    name.ends_with(SUFFIX) && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// File names and contents.
pub fn rules(desired: &Desired) -> BTreeMap<String, String> {
    let mut rules = BTreeMap::new();
    for pf in desired.pfs.values().flatten().filter(|pf| pf.numvfs > 0) {
        let mut put = |prefix: &str, text: String| rules.insert(format!("{prefix}{}{SUFFIX}", pf.address), text);
        put(PREFIXES[0], unmanaged(pf));
        if pf.eswitch_mode == EswitchMode::Switchdev && !pf.externally_managed && !pf.name.is_empty() {
            put(PREFIXES[1], pf_name(pf));
            put(PREFIXES[2], representor_names(pf));
        }
    }
    rules
}

fn unmanaged(pf: &DesiredPf) -> String {
    let address = pf.address;
    format!(
        "# Written by the SR-IOV config daemon: NetworkManager leaves the VFs of {address} alone.\n\
         ACTION!=\"remove\", SUBSYSTEM==\"net\", ATTRS{{physfn/uevent}}==\"*PCI_SLOT_NAME={address}*\", ENV{{NM_UNMANAGED}}=\"1\"\n"
    )
}

/// The uplink is made anew when the eswitch changes its mode, and would be named by its port then.
fn pf_name(pf: &DesiredPf) -> String {
    let (address, name) = (pf.address, &pf.name);
    format!(
        "# Written by the SR-IOV config daemon: {address} keeps its name in switchdev mode.\n\
         ACTION==\"add\", SUBSYSTEM==\"net\", KERNELS==\"{address}\", ATTR{{phys_port_name}}==\"p[0-9]*\", NAME=\"{name}\"\n"
    )
}

/// A line a VF: udev cannot take a number out of a port's name without a program. The port is `pf0vf3`, on a NIC with processors of its own `c1pf0vf3`.
fn representor_names(pf: &DesiredPf) -> String {
    let mut text = format!("# Written by the SR-IOV config daemon: representors of the VFs of {} are called {}_<VF>.\n", pf.address, pf.name);
    for vf in 0..pf.numvfs {
        // Writing to a String cannot fail.
        _ = writeln!(
            text,
            "ACTION==\"add|move\", SUBSYSTEM==\"net\", KERNELS==\"{}\", ATTR{{phys_port_name}}==\"*pf[0-9]*vf{vf}\", NAME=\"{}_{vf}\"",
            pf.address, pf.name
        );
    }
    text
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

    #[test]
    fn in_switchdev_mode_the_pf_keeps_its_name_and_representors_tell_pf_and_vf() {
        let text = "interfaces:
- {pciAddress: '0000:01:00.0', name: ens1f0, numVfs: 2, eSwitchMode: switchdev}
- {pciAddress: '0000:02:00.0', name: ens2f0, numVfs: 2, eSwitchMode: switchdev, externallyManaged: true}";
        let rules = rules(&Desired::read(&serde_saphyr::from_str(text).unwrap()));
        let names: Vec<&str> = rules.keys().map(String::as_str).collect();
        let nm = "10-nm-disable-0000:02:00.0.rules";
        assert_eq!(names, ["10-nm-disable-0000:01:00.0.rules", nm, "10-pf-name-0000:01:00.0.rules", "20-switchdev-0000:01:00.0.rules"]);
        assert!(names.iter().all(|name| is_ours(name)) && !is_ours("20-other.rules") && !is_ours("20-switchdev-x"));
        assert!(rules[names[2]].contains("KERNELS==\"0000:01:00.0\", ATTR{phys_port_name}==\"p[0-9]*\", NAME=\"ens1f0\""), "{}", rules[names[2]]);
        let lines: Vec<&str> = rules[names[3]].lines().skip(1).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("ATTR{phys_port_name}==\"*pf[0-9]*vf1\", NAME=\"ens1f0_1\""), "{}", lines[1]);
    }
}
