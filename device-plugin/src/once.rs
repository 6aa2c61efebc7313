//! Pure: what `--once` prints: the pools that would be offered, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use sriov_host::host_use::HostUse;

use crate::config::ConfigError;
use crate::pool::Pool;
use sriov_host::device_id::DeviceId;

/// A line a device under a line of headings; a pool without devices has one line, and so has a device that is not offered because the host uses it.
pub fn table(pools: &[Pool], withheld: &BTreeMap<DeviceId, HostUse>) -> String {
    let mut rows = vec![["RESOURCE", "DEVICE", "DRIVER", "NUMA", "HEALTH"].map(str::to_owned)];
    let dash = || "-".to_owned();
    for pool in pools {
        let name = pool.name.to_string();
        if pool.devices.is_empty() {
            rows.push([name.clone(), dash(), dash(), dash(), "no device matches".to_owned()]);
        }
        for (address, device) in &pool.devices {
            let numa = device.numa_node.map_or_else(dash, |node| node.to_string());
            rows.push([name.clone(), address.to_string(), device.driver.clone().unwrap_or_else(dash), numa, device.health.to_string()]);
        }
    }
    for (address, reason) in withheld {
        rows.push([dash(), address.to_string(), dash(), dash(), format!("not offered: {reason}")]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3)];
    rows.iter().fold(String::new(), |mut text, row| {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text + &row[4] + "\n"
    })
}

/// One object: `pools` with name and devices, `withheld` devices with the host's use of them, `errors` as texts.
pub fn json(pools: &[Pool], withheld: &BTreeMap<DeviceId, HostUse>, errors: &[ConfigError]) -> String {
    let pool = |pool: &Pool| {
        let devices = pool.devices.iter().map(|(address, device)| {
            json!({ "id": address, "driver": device.driver, "numaNode": device.numa_node, "healthy": device.health.word() == "Healthy", "reason": device.health.to_string(), "place": device.place })
        });
        json!({ "name": pool.name.to_string(), "devices": devices.collect::<Value>() })
    };
    let withheld: BTreeMap<String, String> = withheld.iter().map(|(address, reason)| (address.to_string(), reason.to_string())).collect();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    format!("{:#}\n", json!({ "pools": pools.iter().map(pool).collect::<Value>(), "withheld": withheld, "errors": errors }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Device, Health, Needs, Place, PoolName};

    fn pools() -> Vec<Pool> {
        let mut pool = Pool::empty(PoolName::new("intel.com", "nics").unwrap());
        let (needs, place, extra) = (Needs::default(), Place::default(), BTreeMap::new());
        let device = Device { driver: Some("igbvf".to_owned()), numa_node: Some(0), health: Health::Healthy, needs, place, extra };
        let other = Health::OtherDriver { bound: "igbvf".to_owned(), expected: vec!["vfio-pci".to_owned()] };
        pool.devices.insert("0000:01:10.0".parse().unwrap(), device.clone());
        pool.devices.insert("0000:01:10.2".parse().unwrap(), Device { numa_node: None, health: other, ..device });
        vec![pool, Pool::empty(PoolName::new("intel.com", "none").unwrap())]
    }

    fn withheld() -> BTreeMap<DeviceId, HostUse> {
        [("0000:02:00.0".parse().unwrap(), HostUse::DefaultRoute { link: "ens2".into(), family: "IPv4".into() })].into()
    }

    #[test]
    fn the_table_says_why_a_device_is_not_usable() {
        let expected = "\
RESOURCE        DEVICE        DRIVER  NUMA  HEALTH
intel.com/nics  0000:01:10.0  igbvf   0     healthy
intel.com/nics  0000:01:10.2  igbvf   -     driver igbvf is bound, expected is vfio-pci
intel.com/none  -             -       -     no device matches
-               0000:02:00.0  -       -     not offered: the IPv4 default route leaves by ens2
";
        assert_eq!(table(&pools(), &withheld()), expected);
    }

    #[test]
    fn the_json_has_pools_and_errors() {
        let value: Value = serde_json::from_str(&json(&pools(), &withheld(), &[])).unwrap();
        assert_eq!(value["pools"][0]["devices"][1]["healthy"], false);
        assert_eq!(value["pools"][1], json!({ "name": "intel.com/none", "devices": [] }));
        assert_eq!(value["withheld"], json!({ "0000:02:00.0": "the IPv4 default route leaves by ens2" }));
        assert_eq!(value["errors"], json!([]));
    }
}
