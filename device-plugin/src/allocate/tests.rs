//! Pure: tests of allocation. Golden answers are in `testdata/allocate/<case>`: `pool.json`, `request.json`, `answer.json`.

use serde::Deserialize;
use serde_json::{Value, json};
use sriov_host::function::Vdpa;

use super::*;
use crate::pool::{Needs, Place};
use crate::{cdi, device_info};

/// `pool.json`: the name in two parts, and the devices with what a look at them finds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    prefix: String,
    resource: String,
    devices: BTreeMap<DeviceId, CaseDevice>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "the facts of a case, as its file gives them")]
struct CaseDevice {
    driver: String,
    iommu_group: Option<u32>,
    no_iommu: bool,
    vfio_node: Option<String>,
    iommufd: bool,
    uio: Option<String>,
    rdma: Vec<String>,
    rdma_nodes: Vec<String>,
    vdpa: Option<(String, String, Option<String>)>,
    need_vhost_net: bool,
    is_rdma: bool,
    vdpa_type: Option<String>,
    extra: BTreeMap<String, String>,
}

impl Case {
    fn pool(&self) -> Pool {
        let mut pool = Pool::empty(PoolName::new(&self.prefix, &self.resource).unwrap());
        for (address, case) in &self.devices {
            let vdpa = case.vdpa_type.as_deref().map(|kind| if kind == "vhost" { VdpaType::Vhost } else { VdpaType::Virtio });
            let needs = Needs { rdma: case.is_rdma, vdpa, vhost_net: case.need_vhost_net };
            pool.devices.insert(*address, device(Some(&case.driver), needs, Health::Healthy, case.extra.clone()));
        }
        pool
    }

    fn look(&self, id: &DeviceId) -> Option<Access> {
        let case = self.devices.get(id)?;
        let vdpa = case.vdpa.clone().map(|(name, driver, node)| Vdpa { name, driver: Some(driver), node });
        Some(Access {
            driver: Some(case.driver.clone()),
            iommu_group: case.iommu_group,
            no_iommu: case.no_iommu,
            vfio_node: case.vfio_node.clone(),
            iommufd: case.iommufd,
            uio: case.uio.clone(),
            rdma: case.rdma.clone(),
            rdma_nodes: case.rdma_nodes.clone(),
            vdpa,
        })
    }
}

fn device(driver: Option<&str>, needs: Needs, health: Health, extra: BTreeMap<String, String>) -> Device {
    Device { driver: driver.map(str::to_owned), numa_node: None, health, needs, place: Place::default(), extra }
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
        let pool = case.pool();
        let grant = container(&pool, &ids, &|address| case.look(address)).unwrap();

        let nodes: Vec<Value> = grant.nodes().iter().map(|node| json!([node.host, node.container, "rw"])).collect();
        let mut answer = json!({ "envs": grant.envs, "devices": nodes });
        let expected: Value = serde_json::from_str(&read("answer.json")).unwrap();
        // Told only where the case asks for it.
        let infos: Vec<Value> = grant.devices.iter().map(|granted| serde_json::from_str(&device_info::render(granted)).unwrap()).collect();
        for (key, value) in [("deviceInfo", json!(infos)), ("cdi", cdi::spec(&pool.name, &grant.devices).unwrap_or_default())] {
            if expected.get(key).is_some() {
                answer[key] = value;
            }
        }
        assert_eq!(answer, expected, "{}\n{answer:#}", path.display());
        cases += 1;
    }
    assert!(cases >= 14, "{folder} lost its cases");
}

fn address() -> DeviceId {
    "0000:01:10.0".parse().unwrap()
}

fn pool_of(driver: &str, needs: Needs, health: Health) -> Pool {
    let mut pool = Pool::empty(PoolName::new("intel.com", "a").unwrap());
    pool.devices.insert(address(), device(Some(driver), needs, health, BTreeMap::new()));
    pool
}

fn refused(pool: &Pool, id: &str, access: Option<&Access>) -> AllocateError {
    container(pool, &[id.to_owned()], &|_| access.cloned()).unwrap_err()
}

#[test]
fn what_is_not_there_as_it_was_offered_is_refused() {
    let pool = pool_of("vfio-pci", Needs::default(), Health::Healthy);
    let present = |driver: Option<&str>, iommu_group| Access { driver: driver.map(str::to_owned), iommu_group, ..Access::default() };
    let right = present(Some("vfio-pci"), Some(8));
    let name = pool.name.clone();
    assert!(matches!(refused(&pool, "0000:01:10.2", Some(&right)), AllocateError::MissDevice { .. }));
    assert!(matches!(refused(&pool, "no address", Some(&right)), AllocateError::MissDevice { .. }));
    assert_eq!(refused(&pool, "0000:01:10.0", None), AllocateError::LoseDevice { address: address(), pool: name });
    let moved = refused(&pool, "0000:01:10.0", Some(&present(Some("igbvf"), Some(8))));
    assert_eq!(moved.to_string(), "0000:01:10.0 of intel.com/a has driver igbvf, it was offered with vfio-pci");
    let unbound = refused(&pool, "0000:01:10.0", Some(&present(None, Some(8))));
    assert_eq!(unbound.to_string(), "0000:01:10.0 of intel.com/a has driver none, it was offered with vfio-pci");
}

#[test]
fn a_missing_node_is_a_refusal_that_names_it() {
    let with = |rdma, vdpa| Needs { rdma, vdpa, vhost_net: false };
    for (driver, needs, missing) in [
        ("vfio-pci", Needs::default(), "IOMMU group, which driver vfio-pci needs"),
        ("igb_uio", Needs::default(), "uio node, which driver igb_uio makes"),
        ("mlx5_core", with(true, None), "RDMA device"),
        ("mlx5_core", with(false, Some(VdpaType::Vhost)), "vDPA device with driver vhost_vdpa"),
    ] {
        let access = Access { driver: Some(driver.to_owned()), ..Access::default() };
        let error = refused(&pool_of(driver, needs, Health::Healthy), "0000:01:10.0", Some(&access));
        assert_eq!((error.to_string(), error.reason()), (format!("0000:01:10.0 of intel.com/a has no {missing}"), "MissNode"));
    }
}

#[test]
fn an_unhealthy_device_is_refused_with_its_reason() {
    let error = refused(&pool_of("vfio-pci", Needs::default(), Health::Unbound), "0000:01:10.0", Some(&Access::default()));
    assert_eq!(error.to_string(), "0000:01:10.0 of intel.com/a cannot be used: no driver is bound");
}
