//! I/O: `cargo xtask gen-nic-names`: names of network functions for the config daemon, out of the PCI ID list that the crate `pci-ids` carries.
//!
//! Invariant: the committed file is exactly what this module writes; `cargo xtask check` compares them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use pci_ids::{Vendor, Vendors};

use crate::workspace::Workspace;

const FILE: &str = "config-daemon/src/nic_names.txt";

/// Vendors of NICs. The list has no classes, so that of those that make other things too a device's name decides.
const VENDORS: [(u16, bool); 17] = [
    (0x8086, false),
    (0x15b3, true),
    (0x14e4, false),
    (0x1077, false),
    (0x1af4, false),
    (0x177d, false),
    (0x1d0f, false),
    (0x10df, false),
    (0x19a2, false),
    (0x1924, true),
    (0x1425, true),
    (0x19e5, false),
    (0x1dd8, false),
    (0x1414, false),
    (0x1ae0, false),
    (0x8088, true),
    (0x1ded, false),
];

/// A name with one of these is that of a network function.
const WORDS: [&str; 16] = [
    "ethernet",
    "network",
    " nic",
    "gigabit",
    "10g",
    "25g",
    "40g",
    "50g",
    "100g",
    "200g",
    "infiniband",
    "omni-path",
    "virtual function",
    "x710",
    "e810",
    "adaptive virtual",
];

/// Writes the file, or with `check` fails when it is not what the list says.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let wanted = text();
    let path = workspace.path(FILE);
    if check {
        ensure!(fs::read_to_string(&path).unwrap_or_default() == wanted, "{FILE} is not what the PCI ID list says: run `cargo xtask gen-nic-names`");
        return Ok(());
    }
    fs::write(&path, wanted).with_context(|| format!("write {}", path.display()))
}

/// One line a vendor, `vvvv name`, and one a device, `vvvv dddd name`, in order.
fn text() -> String {
    let mut text = String::new();
    let vendors: BTreeMap<u16, &Vendor> = Vendors::iter().map(|vendor| (vendor.id(), vendor)).collect();
    let mut wanted = VENDORS;
    wanted.sort_unstable();
    for (id, all) in wanted {
        let Some(vendor) = vendors.get(&id) else { continue };
        // Writing to a String cannot fail.
        _ = writeln!(text, "{id:04x} {}", vendor.name());
        let devices: BTreeMap<u16, &str> = vendor.devices().map(|device| (device.id(), device.name())).collect();
        for (device, name) in devices.into_iter().filter(|(_, name)| all || is_nic(name)) {
            _ = writeln!(text, "{id:04x} {device:04x} {name}");
        }
    }
    text
}

fn is_nic(name: &str) -> bool {
    let name = name.to_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_functions_have_names_and_others_are_left_out() {
        let text = text();
        for line in ["8086 Intel Corporation\n", "8086 10c9 82576 Gigabit Network Connection\n", "15b3 101d MT2892 Family [ConnectX-6 Dx]\n"] {
            assert!(text.contains(line), "{line:?} is missing");
        }
        assert!(!text.contains("SATA") && text.len() < 200_000, "{} bytes", text.len());
    }
}
