//! Pure: what must hold for any bytes in the place of the config file, and for any JSON in the place of a selector.
//!
//! Used by the fuzz targets and by `tests/hostile_config.rs`. A property panics when it does not hold.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sriov_device_plugin::config::{self, Config};
use sriov_device_plugin::facts::Facts;
use sriov_device_plugin::machine::Wants;
use sriov_device_plugin::select::{select, withheld};
use sriov_host::function::{ACCELERATOR_CLASS, Function, NETWORK_CLASS};
use sriov_host::pci::{DeviceId, PciAddress, VendorId};
use sriov_host::vf::VfIndex;

const FILE: &str = "c.json";

/// Each file is followed or refused as a whole, and each resource of one that is followed is followed or named in an error.
pub(crate) fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match config::parse(FILE, &text, "intel.com") {
        Err(error) => assert!(error.to_string().starts_with("c.json: failed to read"), "{error}"),
        Ok(config) => served(&config),
    }
}

/// Whatever a selector is, the resources before and after it are served.
pub(crate) fn selector(data: &[u8]) {
    let Ok(selector) = serde_json::from_slice::<Value>(data) else { return };
    for device_type in ["netDevice", "accelerator", "auxNetDevice"] {
        let good = |name: &str| json!({ "resourceName": name, "selectors": {} });
        let resource = json!({ "resourceName": "x", "deviceType": device_type, "selectors": selector });
        let file = json!({ "resourceList": [good("first"), resource, good("last")] });
        match config::parse(FILE, &file.to_string(), "intel.com") {
            Err(error) => panic!("{error}"),
            Ok(config) => {
                let names: Vec<String> = config.pools.iter().map(|pool| pool.name.to_string()).collect();
                assert_eq!(names.first().map(String::as_str), Some("intel.com/first"));
                assert_eq!(names.last().map(String::as_str), Some("intel.com/last"));
                assert_eq!(config.pools.len() + config.errors.len(), 3, "{:?}", config.errors);
                served(&config);
            }
        }
    }
}

fn served(config: &Config) {
    for error in &config.errors {
        assert!(error.to_string().starts_with("c.json: resource "), "{error}");
    }
    let names: BTreeSet<String> = config.pools.iter().map(|pool| pool.name.to_string()).collect();
    assert_eq!(names.len(), config.pools.len(), "a name is served once");
    for pool in &config.pools {
        let (socket, info) = (pool.name.socket_name(), pool.name.device_info_name("0000:01:10.0"));
        assert!(!socket.contains('/') && !info.contains('/') && !socket.starts_with('.'), "{socket} {info}");
    }
    let _ = Wants::of(&config.pools);
    let facts = facts();
    let pools = select(&config.pools, &facts);
    assert_eq!(pools.len(), config.pools.len(), "an empty pool is there too");
    let mut seen = BTreeSet::new();
    for (pool, spec) in pools.iter().zip(&config.pools) {
        assert_eq!(pool.name, spec.name);
        for device in pool.devices.keys() {
            assert!(seen.insert(*device), "{device} is in two pools");
        }
        assert_eq!(pool.offer().devices.len(), pool.devices.len());
    }
    assert!(withheld(&config.pools, &facts).is_empty(), "the host uses nothing");
}

/// A PF with two VFs, one of them in user space, one function of each other kind, and a subfunction.
fn facts() -> Facts {
    let address = |text: &str| text.parse::<PciAddress>().unwrap_or_else(|error| panic!("{error}"));
    let function = |class: u8, driver: Option<&str>| Function {
        class,
        vendor: VendorId(0x8086),
        device: DeviceId(0x10ca),
        subsystem: Some((VendorId(0x1028), DeviceId(0x1f9b))),
        driver: driver.map(str::to_owned),
        numa_node: Some(0),
        has_group: true,
        vf_of: None,
        numvfs: 0,
        acpi_index: Some("101".to_owned()),
        netdevs: Vec::new(),
        rdma: Vec::new(),
        pkey: Some("0x8001".to_owned()),
        vdpa: None,
        root: Some("pci0000:00".to_owned()),
    };
    let pf = address("0000:01:00.0");
    let vf = |index, driver| Function { vf_of: Some((pf, VfIndex(index))), ..function(NETWORK_CLASS, driver) };
    let functions = [
        (pf, Function { numvfs: 2, ..function(NETWORK_CLASS, Some("igb")) }),
        (address("0000:01:10.0"), vf(0, Some("igbvf"))),
        (address("0000:01:10.2"), vf(1, Some("vfio-pci"))),
        (address("0000:02:00.0"), function(NETWORK_CLASS, None)),
        (address("0000:03:00.0"), function(ACCELERATOR_CLASS, Some("vfio-pci"))),
    ];
    let subfunction = Function { vf_of: Some((pf, VfIndex(4))), ..function(NETWORK_CLASS, Some("mlx5_core.sf")) };
    let name = "mlx5_core.sf.2".parse().unwrap_or_else(|error| panic!("{error}"));
    Facts { functions: functions.into(), subfunctions: [(name, subfunction)].into(), ..Facts::default() }
}
