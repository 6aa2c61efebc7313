//! Pure: tests of selecting, on two igb PFs: the first with four VFs (the last two on vfio-pci), the second without.

use proptest::prelude::*;
use sriov_host::function::Vdpa;
use sriov_host::pci::VendorId;
use sriov_host::vf::VfIndex;

use super::*;
use crate::config;
use crate::facts::Held;
use crate::pool::VdpaType;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn link(ifindex: u32, name: &str, parent: &str) -> Link {
    let mut link = Link { parent: parent.parse().ok(), ..sriov_host::testing::link(ifindex, name) };
    link.netdev.alt_names.push("enp1s0f0".to_owned());
    link
}

fn default_route() -> HostUse {
    HostUse::DefaultRoute { link: "ens2f0".to_owned(), family: "IPv4".to_owned() }
}

fn function(device: u16, driver: &str, vf_of: Option<(&str, u16)>) -> Function {
    Function {
        class: NETWORK_CLASS,
        vendor: VendorId(0x8086),
        device: sriov_host::pci::DeviceId(device),
        subsystem: None,
        driver: Some(driver.to_owned()),
        numa_node: Some(u16::from(vf_of.is_some())),
        has_group: true,
        vf_of: vf_of.map(|(pf, index)| (address(pf), VfIndex(index))),
        numvfs: 0,
        acpi_index: None,
        netdevs: Vec::new(),
        rdma: Vec::new(),
        pkey: None,
        vdpa: None,
        root: None,
    }
}

fn facts() -> Facts {
    let mut facts = Facts { vhost_net: true, ..Facts::default() };
    let first = Function { numvfs: 4, ..function(0x10c9, "igb", None) };
    facts.functions = [(address(PF), first), (address("0000:02:00.0"), function(0x10c9, "igb", None))].into();
    for index in 0..4 {
        let driver = if index < 2 { "igbvf" } else { "vfio-pci" };
        facts.functions.insert(address(&format!("0000:01:10.{}", 2 * index)), function(0x10ca, driver, Some((PF, index))));
    }
    facts.links = [(2, link(2, "ens1f0", PF))].into();
    facts
}

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";

fn change(facts: &mut Facts, device: &str, change: impl FnOnce(&mut Function)) {
    change(facts.functions.get_mut(&address(device)).unwrap());
}

/// The pools of these resources: name -> `device` or `device!` if unhealthy, by the last part of the address.
fn selected(resources: &str, facts: &Facts) -> Vec<(String, Vec<String>)> {
    let config = config::parse("c.json", &format!(r#"{{"resourceList":[{resources}]}}"#), "x.io").unwrap();
    assert_eq!(config.errors, []);
    let device = |(address, device): (&DeviceId, &Device)| {
        let mark = if device.health == Health::Healthy { "" } else { "!" };
        format!("{}{mark}", &address.to_string()[5..])
    };
    let pools = select(&config.pools, facts);
    pools.iter().map(|pool| (pool.name.to_string(), pool.devices.iter().map(device).collect())).collect()
}

fn of(selectors: &str) -> Vec<String> {
    selected(&format!(r#"{{"resourceName":"a","selectors":{selectors}}}"#), &facts()).remove(0).1
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
    assert_eq!(selected(resources, &facts()), expected);
}

#[test]
fn a_vf_named_by_index_with_another_driver_is_unhealthy_unless_it_is_right_for_another_pool() {
    let named = r#"{"resourceName":"a","selectors":{"rootDevices":["0000:01:00.0#0-3"],"drivers":["vfio-pci"]}}"#;
    let all = ["01:10.0!", "01:10.2!", "01:10.4", "01:10.6"];
    assert_eq!(selected(named, &facts())[0].1, all);
    let other = r#"{"resourceName":"b","selectors":{"drivers":["igbvf"]}}"#;
    let pools = selected(&format!("{named},{other}"), &facts());
    assert_eq!(
        (&pools[0].1[..], &pools[1].1[..]),
        (&all[2..].iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()[..], &["01:10.0".to_owned(), "01:10.2".to_owned()][..])
    );
    // A selector by kind only does not wait for any one device.
    assert_eq!(of(r#"{"rootDevices":["0000:01:00.0"],"drivers":["vfio-pci"]}"#), ["01:10.4", "01:10.6"]);
}

/// The only pool of this selector.
fn pool(facts: &Facts, selector: &str) -> Vec<String> {
    selected(&format!(r#"{{"resourceName":"a","selectors":{selector}}}"#), facts).remove(0).1
}

/// The health of the first VF in the only pool, which has these further keys.
fn health_of_vf(facts: &Facts, keys: &str) -> Health {
    let text = format!(r#"{{"resourceList":[{{"resourceName":"a",{keys}}}]}}"#);
    let pools = select(&config::parse("c.json", &text, "x.io").unwrap().pools, facts);
    pools[0].devices[&address(VF).into()].health.clone()
}

#[test]
fn a_vf_without_driver_is_unhealthy_if_it_is_named_and_skipped_otherwise() {
    let mut facts = facts();
    change(&mut facts, VF, |vf| vf.driver = None);
    assert_eq!(pool(&facts, r#"{"rootDevices":["0000:01:00.0#0-1"]}"#), ["01:10.0!", "01:10.2"]);
    assert_eq!(pool(&facts, r#"{"rootDevices":["0000:01:00.0"]}"#), ["01:10.2", "01:10.4", "01:10.6"]);
}

#[test]
fn keys_of_rdma_vdpa_slots_and_profiles_select() {
    let mut facts = facts();
    change(&mut facts, VF, |vf| {
        (vf.rdma, vf.pkey, vf.acpi_index) = (vec!["mlx5_0".to_owned()], Some("0x8001".to_owned()), Some("101".to_owned()));
    });
    change(&mut facts, "0000:01:10.2", |vf| vf.vdpa = Some(Vdpa { name: "vdpa0".into(), driver: Some("vhost_vdpa".into()), node: None }));
    facts.ddp_profiles = [(address("0000:02:00.0"), "GTP".to_owned())].into();
    for (selector, devices) in [
        (r#"{"isRdma":true}"#, &["01:10.0"][..]),
        (r#"{"isRdma":true,"rootDevices":["0000:01:00.0#0-1"]}"#, &["01:10.0", "01:10.2!"]),
        (r#"{"pKeys":["0x7fff","0X8001"]}"#, &[]),
        (r#"{"acpiIndexes":["101","7"]}"#, &["01:10.0"]),
        (r#"{"vdpaType":"vhost"}"#, &["01:10.2"]),
        (r#"{"vdpaType":"virtio"}"#, &[]),
        (r#"{"ddpProfiles":["GTP"]}"#, &["02:00.0"]),
        (r#"{"ddpProfiles":["gtp"]}"#, &[]),
    ] {
        let config = config::parse("c.json", &format!(r#"{{"resourceList":[{{"resourceName":"a","selectors":{selector}}}]}}"#), "x.io").unwrap();
        if config.errors.is_empty() {
            assert_eq!(pool(&facts, selector), devices, "{selector}");
        } else {
            assert!(selector.contains("0X8001"), "{:?}", config.errors);
        }
    }
    assert_eq!(pool(&facts, r#"{"pKeys":["0x7fff","0x8001"]}"#), ["01:10.0"]);
}

#[test]
fn an_rdma_vf_in_a_pod_is_still_one() {
    let mut facts = facts();
    change(&mut facts, PF, |pf| pf.rdma = vec!["mlx5_0".to_owned()]);
    // Its own driver is that of the PF, as mlx5_core's is, and neither netdev nor RDMA device is seen.
    change(&mut facts, PF, |pf| pf.driver = Some("igbvf".to_owned()));
    assert_eq!(pool(&facts, r#"{"isRdma":true}"#), ["01:10.0", "01:10.2"]);
    change(&mut facts, VF, |vf| vf.netdevs = vec!["ens1f0v0".to_owned()]);
    assert_eq!(pool(&facts, r#"{"isRdma":true}"#), ["01:10.2"]);
}

#[test]
fn what_the_host_uses_is_offered_only_where_it_is_allowed() {
    let mut facts = facts();
    let all = r#""selectors":{"devices":["10c9"]}"#;
    let plain = format!(r#"{{"resourceName":"a",{all}}}"#);
    assert_eq!(selected(&plain, &facts)[0].1, ["02:00.0"]);
    facts.links.insert(3, link(3, "ens2f0", "0000:02:00.0"));
    assert_eq!(selected(&plain, &facts)[0].1, ["02:00.0"], "up alone is no use");
    facts.uses = [(3, default_route()), (2, default_route())].into();
    assert!(selected(&plain, &facts)[0].1.is_empty());
    let config = config::parse("c.json", &format!(r#"{{"resourceList":[{plain}]}}"#), "x.io").unwrap();
    assert_eq!(withheld(&config.pools, &facts), [(address("0000:02:00.0").into(), default_route())].into());
    let allowed = format!(r#"{{"resourceName":"a","allowInUse":["0000:02:00.0"],{all}}}"#);
    assert_eq!(selected(&allowed, &facts)[0].1, ["02:00.0"]);
    // The host's use of a PF says nothing about its VFs; its use of a VF does.
    assert_eq!(pool(&facts, r#"{"rootDevices":["0000:01:00.0#0"]}"#), ["01:10.0"]);
    facts.links.insert(4, link(4, "ens1f0v0", VF));
    facts.uses.insert(4, HostUse::Upper { link: "bond0".to_owned(), kind: "bond".to_owned() });
    assert!(pool(&facts, r#"{"rootDevices":["0000:01:00.0#0"]}"#).is_empty());
}

#[test]
fn each_reason_for_ill_health_is_told() {
    let plain = r#""selectors":{"rootDevices":["0000:01:00.0"]}"#;
    let mut facts = facts();
    assert_eq!(health_of_vf(&facts, plain), Health::Healthy);
    let carrier = format!(r#"{plain},"carrierPolicy":"unhealthy""#);
    assert_eq!(health_of_vf(&facts, &carrier), Health::Healthy);
    facts.links.get_mut(&2).unwrap().netdev.carrier = false;
    assert_eq!(health_of_vf(&facts, &carrier), Health::NoCarrier { pf: address(PF) });
    assert_eq!(health_of_vf(&facts, plain), Health::Healthy, "ignored unless the pool says otherwise");
    facts.sick = [(address(PF), "fw".to_owned())].into();
    assert_eq!(health_of_vf(&facts, plain), Health::SickPf { pf: address(PF), reporter: "fw".to_owned() });
    facts.held = [(address(VF), Held { by: "container c".to_owned(), through: Some("x.io-b".to_owned()) })].into();
    assert_eq!(health_of_vf(&facts, plain), Health::HeldThrough { pool: "x.io-b".to_owned() });
    facts.vhost_net = false;
    assert_eq!(health_of_vf(&facts, r#""selectors":{"rootDevices":["0000:01:00.0"],"needVhostNet":true}"#), Health::MissVhostNet);
    change(&mut facts, VF, |vf| (vf.driver, vf.has_group) = (Some("vfio-pci".to_owned()), false));
    assert_eq!(health_of_vf(&facts, plain), Health::MissGroup);
    let named = |more: &str| format!(r#""selectors":{{"rootDevices":["0000:01:00.0#0"],{more}}}"#);
    change(&mut facts, VF, |vf| vf.driver = Some("igbvf".to_owned()));
    assert_eq!(health_of_vf(&facts, &named(r#""isRdma":true"#)), Health::MissRdma);
    assert_eq!(health_of_vf(&facts, &named(r#""vdpaType":"virtio""#)), Health::MissVdpa(VdpaType::Virtio));
}

#[test]
fn a_device_stays_healthy_in_the_pool_through_which_a_pod_has_it() {
    let mut facts = facts();
    facts.held = [(address(VF), Held { by: "container c".to_owned(), through: Some("x.io-a".to_owned()) })].into();
    assert_eq!(health_of_vf(&facts, r#""selectors":{"rootDevices":["0000:01:00.0"]}"#), Health::Healthy);
}

#[test]
fn accelerators_and_network_controllers_do_not_mix() {
    let mut facts = facts();
    change(&mut facts, "0000:02:00.0", |function| function.class = ACCELERATOR_CLASS);
    let resources =
        r#"{"resourceName":"a","deviceType":"accelerator","selectors":{"vendors":["8086"]}},{"resourceName":"b","selectors":{"devices":["10c9"]}}"#;
    let pools = selected(resources, &facts);
    assert_eq!((pools[0].1.clone(), pools[1].1.clone()), (vec!["02:00.0".to_owned()], vec![]));
}

#[test]
fn a_vf_whose_pf_is_elsewhere_is_selected_by_what_it_is() {
    let mut facts = facts();
    change(&mut facts, VF, |vf| vf.vf_of = None);
    assert_eq!(pool(&facts, r#"{"pciAddresses":["0000:01:10.0"]}"#), ["01:10.0"]);
    assert!(pool(&facts, r#"{"rootDevices":["0000:01:00.0#0"]}"#).is_empty());
}

proptest! {
    /// Whatever pools are asked for and whoever has what: a device is in one pool at most, and healthy only where no pod has it through another.
    #[test]
    fn a_device_is_in_at_most_one_pool_and_never_healthy_while_a_pod_has_it_through_another(
        pools in prop::collection::vec((0_u8..4, 0_u16..4, 0_u16..4, prop::bool::ANY), 0..6),
        held in prop::collection::btree_map(0_u16..4, prop::option::of(0_u8..4), 0..4),
    ) {
        let mut facts = facts();
        for (index, through) in &held {
            let through = through.map(|pool| format!("x.io-p{pool}"));
            facts.held.insert(address(&format!("0000:01:10.{}", 2 * index)), Held { by: "c".to_owned(), through });
        }
        let resource = |(name, first, more, vfio): &(u8, u16, u16, bool)| {
            let drivers = if *vfio { r#","drivers":["vfio-pci"]"# } else { "" };
            format!(r#"{{"resourceName":"p{name}","selectors":[{{"rootDevices":["{PF}#{first}-{}"]{drivers}}},{{"vendors":["8086"]}}]}}"#, first + more)
        };
        let text = format!(r#"{{"resourceList":[{}]}}"#, pools.iter().map(resource).collect::<Vec<_>>().join(","));
        let pools = select(&config::parse("c.json", &text, "x.io").unwrap().pools, &facts);
        let mut seen = BTreeSet::new();
        for pool in &pools {
            for (device, state) in &pool.devices {
                prop_assert!(seen.insert(*device), "{} is in two pools", device);
                let through = facts.held.get(&device.pci().unwrap()).and_then(|held| held.through.clone());
                let of_another = through.is_some_and(|through| through != pool.name.stem());
                prop_assert!(!(of_another && state.health == Health::Healthy), "{} is offered by {}", device, pool.name);
            }
        }
    }
}

/// A machine with subfunctions 4 and 88 of the PF that has no VFs, the first with RDMA.
fn facts_with_subfunctions() -> Facts {
    let mut facts = facts();
    facts.links.insert(3, link(3, "ens2f0", "0000:02:00.0"));
    for (name, number, rdma) in [("mlx5_core.sf.2", 4, vec!["mlx5_4".to_owned()]), ("mlx5_core.sf.3", 88, vec![])] {
        let function =
            Function { rdma, netdevs: vec![format!("ens2f0s{number}")], ..function(0x10c9, "mlx5_core.sf", Some(("0000:02:00.0", number))) };
        facts.subfunctions.insert(name.parse().unwrap(), function);
    }
    facts
}

#[test]
fn subfunctions_are_selected_by_their_parent_and_number() {
    let facts = facts_with_subfunctions();
    let of = |selectors: &str| {
        let resource = format!(r#"{{"resourceName":"a","deviceType":"auxNetDevice","selectors":{selectors}}}"#);
        selected(&resource, &facts).remove(0).1
    };
    let (four, both) = (&["core.sf.2"][..], &["core.sf.2", "core.sf.3"][..]);
    for (selector, devices) in [
        (r#"{"auxTypes":["sf"]}"#, both),
        (r#"{"auxTypes":["sf"],"vendors":["8086"],"devices":["10c9"]}"#, both),
        (r#"{"auxTypes":["sf"],"pfNames":["ens2f0#0-4"]}"#, four),
        (r#"{"auxTypes":["sf"],"rootDevices":["0000:02:00.0#88"]}"#, &["core.sf.3"]),
        (r#"{"auxTypes":["sf"],"rootDevices":["0000:01:00.0"]}"#, &[]),
        (r#"{"auxTypes":["sf"],"drivers":["igb"]}"#, both),
        (r#"{"auxTypes":["sf"],"drivers":["mlx5_core.sf"]}"#, both),
        (r#"{"auxTypes":["sf"],"drivers":["igbvf"]}"#, &[]),
        (r#"{"auxTypes":["sf"],"linkTypes":["ether"]}"#, both),
        (r#"{"auxTypes":["sf"],"isRdma":true}"#, four),
        (r#"[{"auxTypes":["sf"],"pfNames":["ens2f0#88"],"needVhostNet":true},{"auxTypes":["sf"],"isRdma":true}]"#, both),
    ] {
        assert_eq!(of(selector), devices, "{selector}");
    }
    // They are no network controllers on the PCI bus, and a PF that has some is still one.
    assert_eq!(pool(&facts, r#"{"devices":["10c9"]}"#), ["02:00.0"]);
}

#[test]
fn a_subfunction_has_the_health_of_its_parent_and_is_kept_from_pods_while_the_host_uses_it() {
    let mut facts = facts_with_subfunctions();
    let pool = |facts: &Facts, more: &str| {
        let resource = format!(r#"{{"resourceName":"a","deviceType":"auxNetDevice","selectors":{{"auxTypes":["sf"]}}{more}}}"#);
        let config = config::parse("c.json", &format!(r#"{{"resourceList":[{resource}]}}"#), "x.io").unwrap();
        (select(&config.pools, facts).remove(0), withheld(&config.pools, facts))
    };
    let id: DeviceId = "mlx5_core.sf.2".parse().unwrap();
    facts.links.get_mut(&3).unwrap().netdev.carrier = false;
    assert_eq!(pool(&facts, "").0.devices[&id].health, Health::Healthy);
    let parent = address("0000:02:00.0");
    assert_eq!(pool(&facts, r#","carrierPolicy":"unhealthy""#).0.devices[&id].health, Health::NoCarrier { pf: parent });
    let extra = pool(&facts, r#","additionalInfo":{"0000:02:00.0":{"k":"v"}}"#).0.devices[&id].extra.clone();
    assert_eq!(extra, [("k".to_owned(), "v".to_owned())].into());
    assert!(!pool(&facts, "").0.has_device_info);
    facts.links.insert(9, link(9, "ens2f0s4", ""));
    facts.uses = [(9, default_route())].into();
    let (offered, kept) = pool(&facts, "");
    assert_eq!((offered.devices.contains_key(&id), kept), (false, [(id, default_route())].into()));
    assert!(pool(&facts, r#","allowInUse":["0000:02:00.0"]"#).0.devices.contains_key(&id));
}

#[test]
fn keys_beyond_the_fields_select_by_board_place_speed_firmware_and_mode() {
    let mut facts = facts();
    change(&mut facts, VF, |vf| {
        (vf.subsystem, vf.acpi_index) = (Some((VendorId(0x1028), sriov_host::pci::DeviceId(0x1f9b))), Some("102".to_owned()));
    });
    change(&mut facts, PF, |pf| pf.root = Some("pci0000:00".to_owned()));
    change(&mut facts, "0000:02:00.0", |pf| (pf.root, pf.numa_node) = (Some("pci0000:3a".to_owned()), Some(3)));
    facts.firmware = [(address(PF), "22.31.1014".to_owned())].into();
    facts.link_speeds = [(address(PF), 25_000), (address("0000:02:00.0"), 1000)].into();
    facts.links.get_mut(&2).unwrap().stack.switch_id = Some("beef".to_owned());
    let vfs = &["01:10.0", "01:10.2", "01:10.4", "01:10.6"][..];
    for (selector, devices) in [
        (r#"{"subsystemVendors":["1028"]}"#, &["01:10.0"][..]),
        (r#"{"subsystemDevices":["1f9b","1f9c"]}"#, &["01:10.0"]),
        (r#"{"subsystemVendors":["15b3"]}"#, &[]),
        (r#"{"acpiIndexes":["101-104"]}"#, &["01:10.0"]),
        (r#"{"acpiIndexes":["103-104"]}"#, &[]),
        (r#"{"numaNodes":["2-3"]}"#, &["02:00.0"]),
        (r#"{"numaNodes":["1"]}"#, vfs),
        (r#"{"pcieRoots":["pci0000:00"]}"#, vfs),
        (r#"{"pcieRoots":["pci0000:3a"]}"#, &["02:00.0"]),
        (r#"{"linkSpeeds":["10000-100000"]}"#, vfs),
        (r#"{"linkSpeeds":["1000"]}"#, &["02:00.0"]),
        (r#"{"firmwareVersions":["22.31.1014"]}"#, vfs),
        (r#"{"firmwareVersions":["22.*"]}"#, vfs),
        (r#"{"firmwareVersions":["22"]}"#, &[]),
        (r#"{"eswitchModes":["switchdev"]}"#, vfs),
        (r#"{"eswitchModes":["legacy"]}"#, &["02:00.0"]),
    ] {
        assert_eq!(pool(&facts, selector), devices, "{selector}");
    }
}

#[test]
fn topology_info_and_vhost_follow_the_selector_that_took_the_device() {
    let text = r#"{"resourceList":[{"resourceName":"a","excludeTopology":true,"additionalInfo":{"*":{"k":"1","l":"1"},"0000:01:10.0":{"k":"2"}},
        "selectors":[{"pciAddresses":["0000:01:10.0"],"needVhostNet":true},{"drivers":["igbvf"]}]}]}"#;
    let pools = select(&config::parse("c.json", text, "x.io").unwrap().pools, &facts());
    let device = |of: &str| &pools[0].devices[&address(of).into()];
    let extra = |pairs: [(&str, &str); 2]| pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!((device("0000:01:10.0").needs.vhost_net, device("0000:01:10.2").needs.vhost_net), (true, false));
    assert_eq!(device("0000:01:10.0").extra, extra([("k", "2"), ("l", "1")]));
    assert_eq!(device("0000:01:10.2").extra, extra([("k", "1"), ("l", "1")]));
    assert_eq!(device("0000:01:10.0").numa_node, None);
}
