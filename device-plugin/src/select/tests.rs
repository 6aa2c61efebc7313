//! Pure: tests of selecting, on an inventory of two igb PFs: the first with four VFs (the last two on vfio-pci), the second without.

use sriov_host::vf::VfIndex;

use super::*;
use crate::config;

fn netdev(name: &str, admin_up: bool) -> Netdev {
    let mut netdev = serde_json::json!({ "ifindex": 2, "name": name, "alt_names": ["enp1s0f0"], "mtu": 1500, "carrier": true, "link_type": "ether" });
    netdev["admin_up"] = admin_up.into();
    serde_json::from_value(netdev).unwrap()
}

fn inventory() -> Inventory {
    let pf = |address: &str, vfs: Vec<Vf>| Pf {
        address: address.parse().unwrap(),
        vendor: VendorId(0x8086),
        device: DeviceId(0x10c9),
        vf_device: Some(DeviceId(0x10ca)),
        driver: Some("igb".to_owned()),
        totalvfs: 7,
        numvfs: u16::try_from(vfs.len()).unwrap(),
        numa_node: Some(0),
        eswitch_mode: sriov_host::inventory::EswitchMode::Legacy,
        netdev: None,
        link_speed_mbps: None,
        vfs,
        facts: sriov_host::inventory::Facts::default(),
    };
    let vf = |index: u16| Vf {
        index: VfIndex(index),
        address: format!("0000:01:10.{}", 2 * index).parse().unwrap(),
        vendor: VendorId(0x8086),
        device: DeviceId(0x10ca),
        driver: Some(if index < 2 { "igbvf" } else { "vfio-pci" }.to_owned()),
        iommu_group: Some(8 + u32::from(index)),
        numa_node: Some(1),
        netdev: None,
        attributes: None,
        facts: sriov_host::inventory::Facts::default(),
    };
    let mut first = pf("0000:01:00.0", (0..4).map(vf).collect());
    first.netdev = Some(netdev("ens1f0", true));
    Inventory { pfs: vec![first, pf("0000:02:00.0", Vec::new())], ..Inventory::default() }
}

/// The pools of these resources: name -> `device` or `device!` if unhealthy, by the last part of the address.
fn selected(resources: &str, inventory: &Inventory) -> Vec<(String, Vec<String>)> {
    let config = config::parse("c.json", &format!(r#"{{"resourceList":[{resources}]}}"#), "x.io").unwrap();
    assert_eq!(config.errors, []);
    let device = |(address, device): (&PciAddress, &Device)| {
        let mark = if device.health == Health::Healthy { "" } else { "!" };
        format!("{}{mark}", &address.to_string()[5..])
    };
    let pools = select(&config.pools, inventory);
    pools.iter().map(|pool| (pool.name.to_string(), pool.devices.iter().map(device).collect())).collect()
}

fn of(selectors: &str) -> Vec<String> {
    selected(&format!(r#"{{"resourceName":"a","selectors":{selectors}}}"#), &inventory()).remove(0).1
}

#[test]
fn each_key_selects() {
    for (selector, devices) in [
        (r#"{"vendors":["8086"]}"#, &["01:10.0", "01:10.2", "01:10.4", "01:10.6", "02:00.0"][..]),
        (r#"{"vendors":["15b3"]}"#, &[]),
        (r#"{"devices":["10c9"]}"#, &["02:00.0"]),
        (r#"{"drivers":["igbvf"]}"#, &["01:10.0", "01:10.2"]),
        (r#"{"drivers":["vfio-pci","igb"]}"#, &["01:10.4", "01:10.6", "02:00.0"]),
        (r#"{"pciAddresses":["0000:01:10.2"]}"#, &["01:10.2"]),
        (r#"{"pfNames":["ENS1F0#1-2"]}"#, &["01:10.2", "01:10.4"]),
        (r#"{"pfNames":["enp1s0f0"]}"#, &["01:10.0", "01:10.2", "01:10.4", "01:10.6"]),
        (r#"{"pfNames":["ens1f0#0","ens1f0#3"]}"#, &["01:10.0", "01:10.6"]),
        (r#"{"pfNames":["ens9"]}"#, &[]),
        (r#"{"rootDevices":["0000:01:00.0#3"]}"#, &["01:10.6"]),
        (r#"{"rootDevices":["0000:02:00.0"]}"#, &[]),
        (r#"{"linkTypes":["ether"]}"#, &["01:10.0", "01:10.2", "01:10.4", "01:10.6"]),
        (r#"{"linkTypes":["infiniband"]}"#, &[]),
        (r#"{"drivers":["igbvf"],"rootDevices":["0000:01:00.0#1"]}"#, &["01:10.2"]),
        (r#"[{"pciAddresses":["0000:01:10.0"]},{"pciAddresses":["0000:01:10.6"]}]"#, &["01:10.0", "01:10.6"]),
        ("[]", &[]),
    ] {
        assert_eq!(of(selector), devices, "{selector}");
    }
}

#[test]
fn a_device_is_in_the_first_pool_that_takes_it_and_an_empty_pool_is_still_there() {
    let resources = r#"{"resourceName":"a","selectors":{"rootDevices":["0000:01:00.0#0-1"]}},
        {"resourceName":"b","selectors":{"rootDevices":["0000:01:00.0"]}},
        {"resourceName":"c","selectors":{"drivers":["igbvf"]}}"#;
    let expected = [("x.io/a", vec!["01:10.0", "01:10.2"]), ("x.io/b", vec!["01:10.4", "01:10.6"]), ("x.io/c", vec![])];
    let expected = expected.map(|(name, devices)| (name.to_owned(), devices.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    assert_eq!(selected(resources, &inventory()), expected);
}

#[test]
fn a_vf_named_by_index_with_another_driver_is_unhealthy_unless_it_is_right_for_another_pool() {
    let named = r#"{"resourceName":"a","selectors":{"rootDevices":["0000:01:00.0#0-3"],"drivers":["vfio-pci"]}}"#;
    let all = ["01:10.0!", "01:10.2!", "01:10.4", "01:10.6"];
    assert_eq!(selected(named, &inventory())[0].1, all);
    let other = r#"{"resourceName":"b","selectors":{"drivers":["igbvf"]}}"#;
    let pools = selected(&format!("{named},{other}"), &inventory());
    assert_eq!(
        (&pools[0].1[..], &pools[1].1[..]),
        (&all[2..].iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()[..], &["01:10.0".to_owned(), "01:10.2".to_owned()][..])
    );
    // A selector by kind only does not wait for any one device.
    assert_eq!(of(r#"{"rootDevices":["0000:01:00.0"],"drivers":["vfio-pci"]}"#), ["01:10.4", "01:10.6"]);
}

#[test]
fn a_vf_without_driver_is_unhealthy_if_it_is_named_and_skipped_otherwise() {
    let mut inventory = inventory();
    inventory.pfs[0].vfs[0].driver = None;
    let pool = |selector: &str| selected(&format!(r#"{{"resourceName":"a","selectors":{selector}}}"#), &inventory).remove(0).1;
    assert_eq!(pool(r#"{"rootDevices":["0000:01:00.0#0-1"]}"#), ["01:10.0!", "01:10.2"]);
    assert_eq!(pool(r#"{"rootDevices":["0000:01:00.0"]}"#), ["01:10.2", "01:10.4", "01:10.6"]);
}

#[test]
fn a_pf_is_offered_only_without_vfs_and_while_the_host_does_not_use_it() {
    let mut inventory = inventory();
    let pool = |inventory: &Inventory| selected(r#"{"resourceName":"a","selectors":{"devices":["10c9"]}}"#, inventory).remove(0).1;
    assert_eq!(pool(&inventory), ["02:00.0"]);
    inventory.pfs[1].netdev = Some(netdev("ens2f0", false));
    assert_eq!(pool(&inventory), ["02:00.0"]);
    inventory.pfs[1].netdev = Some(netdev("ens2f0", true));
    assert!(pool(&inventory).is_empty());
}

#[test]
fn drivers_that_cannot_be_served_make_a_device_unhealthy() {
    let mut inventory = inventory();
    inventory.pfs[0].vfs[0].driver = Some("igb_uio".to_owned());
    assert_eq!(selected(r#"{"resourceName":"a","selectors":{"pciAddresses":["0000:01:10.0"]}}"#, &inventory)[0].1, ["01:10.0!"]);
}

#[test]
fn topology_info_and_vhost_follow_the_selector_that_took_the_device() {
    let text = r#"{"resourceList":[{"resourceName":"a","excludeTopology":true,"additionalInfo":{"*":{"k":"1","l":"1"},"0000:01:10.0":{"k":"2"}},
        "selectors":[{"pciAddresses":["0000:01:10.0"],"needVhostNet":true},{"drivers":["igbvf"]}]}]}"#;
    let pools = select(&config::parse("c.json", text, "x.io").unwrap().pools, &inventory());
    let device = |address: &str| &pools[0].devices[&address.parse().unwrap()];
    let extra = |pairs: [(&str, &str); 2]| pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!((device("0000:01:10.0").need_vhost_net, device("0000:01:10.2").need_vhost_net), (true, false));
    assert_eq!(device("0000:01:10.0").extra, extra([("k", "2"), ("l", "1")]));
    assert_eq!(device("0000:01:10.2").extra, extra([("k", "1"), ("l", "1")]));
    assert_eq!(device("0000:01:10.0").numa_node, None);
}
