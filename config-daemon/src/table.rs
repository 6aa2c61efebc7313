//! Pure: the machine as a table for people.

use std::fmt::Write as _;

use sriov_host::inventory::{Inventory, Netdev, Pf, Vf};

use crate::nic_names;

/// PFs, each with its VFs below it, in columns that are as wide as they need to be.
pub fn table(inventory: &Inventory) -> String {
    let mut rows = vec![["PCI ADDRESS", "VF", "ID", "DRIVER", "NETDEV", "MAC", "MTU", "STATE", "VFS", "MODEL"].map(str::to_owned).to_vec()];
    for pf in &inventory.pfs {
        rows.push(pf_row(pf));
        rows.extend(pf.vfs.iter().map(vf_row));
    }
    let mut text = format!("IOMMU: {}\n", if inventory.iommu.active { "active" } else { "inactive" });
    if inventory.pfs.is_empty() {
        text.push_str("no SR-IOV capable network function\n");
        return text;
    }
    let widths: Vec<usize> = (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn pf_row(pf: &Pf) -> Vec<String> {
    let [name, mac, mtu, state] = netdev_cells(pf.netdev.as_ref());
    let driver = pf.driver.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        pf.address.to_string(),
        String::new(),
        format!("{}:{}", pf.vendor, pf.device),
        driver,
        name,
        mac,
        mtu,
        state,
        vfs_cell(pf),
        nic_names::name(pf.vendor, pf.device).unwrap_or_default(),
    ]
}

/// VFs there are and the most there can be, with what firmware is told where that differs.
fn vfs_cell(pf: &Pf) -> String {
    let (now, told) = (format!("{} of {}", pf.numvfs, pf.totalvfs), &pf.facts.firmware_settings);
    match (told.enable_sriov, told.total_vfs) {
        (Some(false), _) if pf.totalvfs > 0 => format!("{now} (SR-IOV off at the next start)"),
        (Some(false), _) => format!("{now} (SR-IOV off in firmware)"),
        (_, Some(total)) if total != u32::from(pf.totalvfs) => format!("{now} ({total} at the next start)"),
        _ => now,
    }
}

fn vf_row(vf: &Vf) -> Vec<String> {
    let [name, mac, mtu, state] = netdev_cells(vf.netdev.as_ref());
    let admin = || vf.attributes.as_ref().map(|a| a.mac).filter(|mac| !mac.is_zero()).map_or_else(|| "-".to_owned(), |mac| mac.to_string());
    let mac = if mac == "-" { admin() } else { mac };
    let driver = vf.driver.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        format!("  {}", vf.address),
        vf.index.to_string(),
        format!("{}:{}", vf.vendor, vf.device),
        driver,
        name,
        mac,
        mtu,
        state,
        String::new(),
        String::new(),
    ]
}

fn netdev_cells(netdev: Option<&Netdev>) -> [String; 4] {
    let none = || "-".to_owned();
    let Some(netdev) = netdev else { return [none(), none(), none(), none()] };
    let state = match (netdev.admin_up, netdev.carrier) {
        (false, _) => "down",
        (true, false) => "no carrier",
        (true, true) => "up",
    };
    [netdev.name.clone(), netdev.mac.map_or_else(none, |mac| mac.to_string()), netdev.mtu.to_string(), state.to_owned()]
}

#[cfg(test)]
mod tests {
    use sriov_host::inventory::FirmwareSettings;

    use super::*;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;

    #[test]
    fn what_firmware_is_told_is_shown_where_it_runs_with_something_else() {
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        let cell = |totalvfs, enable_sriov, total_vfs| {
            let mut pf = sim.observe().unwrap().inventory.pfs.remove(0);
            (pf.totalvfs, pf.facts.firmware_settings) = (totalvfs, FirmwareSettings { enable_sriov, total_vfs });
            vfs_cell(&pf)
        };
        assert_eq!(cell(7, None, None), "0 of 7");
        assert_eq!(cell(8, Some(true), Some(8)), "0 of 8");
        assert_eq!(cell(8, Some(true), Some(32)), "0 of 8 (32 at the next start)");
        assert_eq!(cell(0, Some(false), Some(8)), "0 of 0 (SR-IOV off in firmware)");
        assert_eq!(cell(8, Some(false), None), "0 of 8 (SR-IOV off at the next start)");
    }

    #[test]
    fn vfs_stand_below_their_pf() {
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        sim.make_vfs("0000:01:00.0".parse().unwrap(), 1);
        let expected = "\
IOMMU: active
PCI ADDRESS     VF  ID         DRIVER  NETDEV          MAC                MTU   STATE  VFS     MODEL
0000:01:00.0        8086:10c9  igb     pf2             52:54:00:00:00:02  1500  down   1 of 7  Intel Corporation 82576 Gigabit Network Connection
  0000:01:10.0  0   8086:10ca  igbvf   vf0000:01:10.0  02:ff:ff:00:00:02  1500  up
";
        assert_eq!(table(&sim.observe().unwrap().inventory), expected);
        assert_eq!(table(&Inventory::default()), "IOMMU: inactive\nno SR-IOV capable network function\n");
    }
}
