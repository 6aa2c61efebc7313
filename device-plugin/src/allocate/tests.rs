//! Pure: tests of allocation. Golden answers are in `testdata/allocate/<case>`: `pool.json`, `request.json`, `answer.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

/// `pool.json`: the name in two parts, and the devices with what a look at them finds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    prefix: String,
    resource: String,
    devices: BTreeMap<PciAddress, CaseDevice>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseDevice {
    driver: String,
    #[serde(default)]
    iommu_group: Option<u32>,
    #[serde(default)]
    need_vhost_net: bool,
    #[serde(default)]
    extra: BTreeMap<String, String>,
}

impl Case {
    fn pool(&self) -> Pool {
        let mut pool = Pool::empty(PoolName::new(&self.prefix, &self.resource).unwrap());
        for (address, case) in &self.devices {
            let (driver, extra) = (Some(case.driver.clone()), case.extra.clone());
            pool.devices.insert(*address, Device { driver, numa_node: None, health: Health::Healthy, need_vhost_net: case.need_vhost_net, extra });
        }
        pool
    }

    fn look(&self, address: PciAddress) -> Option<Present> {
        let case = self.devices.get(&address)?;
        Some(Present { driver: Some(case.driver.clone()), iommu_group: case.iommu_group })
    }
}

#[test]
fn answers_are_the_golden_ones() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/allocate");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        let case: Case = serde_json::from_str(&read("pool.json")).unwrap();
        let ids: Vec<String> = serde_json::from_str(&read("request.json")).unwrap();
        let answer = container(&case.pool(), &ids, &|address| case.look(address)).unwrap();

        assert!(answer.mounts.is_empty() && answer.annotations.is_empty() && answer.cdi_devices.is_empty());
        let nodes: Vec<Value> = answer.devices.iter().map(|node| json!([node.host_path, node.container_path, node.permissions])).collect();
        let expected: Value = serde_json::from_str(&read("answer.json")).unwrap();
        assert_eq!(json!({ "envs": answer.envs, "devices": nodes }), expected, "{}", path.display());
        cases += 1;
    }
    assert!(cases >= 4, "{folder} lost its cases");
}

fn address() -> PciAddress {
    "0000:01:10.0".parse().unwrap()
}

fn pool(health: Health) -> Pool {
    let mut pool = Pool::empty(PoolName::new("intel.com", "a").unwrap());
    let device = Device { driver: Some("vfio-pci".to_owned()), numa_node: None, health, need_vhost_net: false, extra: BTreeMap::new() };
    pool.devices.insert(address(), device);
    pool
}

fn refused(pool: &Pool, id: &str, present: Option<&Present>) -> AllocateError {
    container(pool, &[id.to_owned()], &|_| present.cloned()).unwrap_err()
}

#[test]
fn what_is_not_there_as_it_was_offered_is_refused() {
    let pool = pool(Health::Healthy);
    let present = |driver: Option<&str>, iommu_group| Present { driver: driver.map(str::to_owned), iommu_group };
    let right = present(Some("vfio-pci"), Some(8));
    let name = pool.name.clone();
    assert!(matches!(refused(&pool, "0000:01:10.2", Some(&right)), AllocateError::MissDevice { .. }));
    assert!(matches!(refused(&pool, "no address", Some(&right)), AllocateError::MissDevice { .. }));
    assert_eq!(refused(&pool, "0000:01:10.0", None), AllocateError::LoseDevice { address: address(), pool: name });
    assert!(matches!(refused(&pool, "0000:01:10.0", Some(&present(Some("vfio-pci"), None))), AllocateError::MissGroup { .. }));
    let moved = refused(&pool, "0000:01:10.0", Some(&present(Some("igbvf"), Some(8))));
    assert_eq!(moved.to_string(), "0000:01:10.0 of intel.com/a has driver igbvf, it was offered with vfio-pci");
    let unbound = refused(&pool, "0000:01:10.0", Some(&present(None, Some(8))));
    assert_eq!(unbound.to_string(), "0000:01:10.0 of intel.com/a has driver none, it was offered with vfio-pci");
}

#[test]
fn an_unhealthy_device_is_refused_with_its_reason() {
    let error = refused(&pool(Health::Unbound), "0000:01:10.0", Some(&Present { driver: None, iommu_group: None }));
    assert_eq!(error.to_string(), "0000:01:10.0 of intel.com/a cannot be used: no driver is bound");
}
