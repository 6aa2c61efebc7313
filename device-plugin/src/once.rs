//! Pure: what `--once` prints: the pools that would be offered, as a table or as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::config::ConfigError;
use crate::pool::Pool;

/// A line a device under a line of headings; a pool without devices has one line.
pub fn table(pools: &[Pool]) -> String {
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
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3)];
    rows.iter().fold(String::new(), |mut text, row| {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text + &row[4] + "\n"
    })
}

/// One object: `pools` with name and devices, `errors` as texts.
pub fn json(pools: &[Pool], errors: &[ConfigError]) -> String {
    let pool = |pool: &Pool| {
        let devices = pool.devices.iter().map(|(address, device)| {
            json!({ "id": address, "driver": device.driver, "numaNode": device.numa_node, "healthy": device.health.word() == "Healthy", "reason": device.health.to_string() })
        });
        json!({ "name": pool.name.to_string(), "devices": devices.collect::<Value>() })
    };
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    format!("{:#}\n", json!({ "pools": pools.iter().map(pool).collect::<Value>(), "errors": errors }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pool::{Device, Health, PoolName};

    fn pools() -> Vec<Pool> {
        let mut pool = Pool::empty(PoolName::new("intel.com", "nics").unwrap());
        let device =
            Device { driver: Some("igbvf".to_owned()), numa_node: Some(0), health: Health::Healthy, need_vhost_net: false, extra: BTreeMap::new() };
        let other = Health::OtherDriver { bound: "igbvf".to_owned(), expected: vec!["vfio-pci".to_owned()] };
        pool.devices.insert("0000:01:10.0".parse().unwrap(), device.clone());
        pool.devices.insert("0000:01:10.2".parse().unwrap(), Device { numa_node: None, health: other, ..device });
        vec![pool, Pool::empty(PoolName::new("intel.com", "none").unwrap())]
    }

    #[test]
    fn the_table_says_why_a_device_is_not_usable() {
        let expected = "\
RESOURCE        DEVICE        DRIVER  NUMA  HEALTH
intel.com/nics  0000:01:10.0  igbvf   0     healthy
intel.com/nics  0000:01:10.2  igbvf   -     driver igbvf is bound, expected is vfio-pci
intel.com/none  -             -       -     no device matches
";
        assert_eq!(table(&pools()), expected);
    }

    #[test]
    fn the_json_has_pools_and_errors() {
        let value: Value = serde_json::from_str(&json(&pools(), &[])).unwrap();
        assert_eq!(value["pools"][0]["devices"][1]["healthy"], false);
        assert_eq!(value["pools"][1], json!({ "name": "intel.com/none", "devices": [] }));
        assert_eq!(value["errors"], json!([]));
    }
}
