//! Pure: tests of the config format. Whole files with their outcome are in `testdata/config`.

use proptest::prelude::*;
use sriov_host::inventory::{EswitchMode, LinkType};
use sriov_host::pci::{DeviceId, VendorId};

use super::*;
use crate::pool::{Needs, VdpaType};

fn parsed(text: &str) -> Config {
    parse("c.json", text, "intel.com").unwrap()
}

/// One resource `a` with these further keys.
fn one(keys: &str) -> Result<PoolSpec, String> {
    let mut config = parsed(&format!(r#"{{"resourceList":[{{"resourceName":"a",{keys}}}]}}"#));
    match config.errors.pop() {
        Some(error) => Err(error.to_string()),
        None => Ok(config.pools.remove(0)),
    }
}

fn selected(keys: &str) -> Result<Selector, String> {
    one(&format!(r#""selectors":{{{keys}}}"#)).map(|mut pool| pool.selectors.remove(0))
}

#[test]
fn golden_files_are_read_as_written_beside_them() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/config");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let case = entry.unwrap().path();
        let read = |name: &str| std::fs::read_to_string(case.join(name)).unwrap();
        let config = parsed(&read("config.json"));
        let lines = config.pools.iter().map(|pool| format!("{} {}\n", pool.name, pool.selectors.len()));
        let outcome: String = lines.chain(config.errors.iter().map(|error| format!("{error}\n"))).collect();
        assert_eq!(outcome, read("outcome.txt"), "{}", case.display());
        cases += 1;
    }
    assert!(cases >= 3, "{folder} lost its cases");
}

#[test]
fn all_keys_of_a_selector_are_read() {
    let selector = selected(
        r#""vendors":["8086"],"devices":["10ca","154C"],"drivers":["igbvf","vfio-pci"],"pciAddresses":["0000:01:10.0"],"acpiIndexes":["101"],
        "pfNames":["ens1f0#0-1"],"rootDevices":["0000:01:00.0"],"linkTypes":["ether"],"ddpProfiles":["GTPv1-C/U IPv4/IPv6 payload"],
        "pKeys":["0x8001"],"needVhostNet":true,"isRdma":true,"vdpaType":"""#,
    );
    let expected = Selector {
        vendors: vec![VendorId(0x8086)],
        devices: vec![DeviceId(0x10ca), DeviceId(0x154c)],
        drivers: vec!["igbvf".to_owned(), "vfio-pci".to_owned()],
        pci_addresses: vec!["0000:01:10.0".parse().unwrap()],
        acpi_indexes: vec![101..=101],
        pf_names: vec![Ranged { pf: "ens1f0".to_owned(), indexes: Some(vec![0..=1]) }],
        root_devices: vec![Ranged { pf: "0000:01:00.0".parse().unwrap(), indexes: None }],
        link_types: vec![LinkType::Ether],
        ddp_profiles: vec!["GTPv1-C/U IPv4/IPv6 payload".to_owned()],
        p_keys: vec!["0x8001".to_owned()],
        needs: Needs { rdma: true, vdpa: None, vhost_net: true },
        ..Selector::default()
    };
    assert_eq!(selector, Ok(expected));
    let ours = selected(
        r#""subsystemVendors":["1028"],"subsystemDevices":["1f9b"],"numaNodes":["0","2-3"],"pcieRoots":["pci0000:3a"],"linkSpeeds":["25000-100000"],
        "firmwareVersions":["22.31.*"],"eswitchModes":["legacy","switchdev"],"acpiIndexes":["101-104"]"#,
    );
    let expected = Selector {
        subsystem_vendors: vec![VendorId(0x1028)],
        subsystem_devices: vec![DeviceId(0x1f9b)],
        numa_nodes: vec![0..=0, 2..=3],
        pcie_roots: vec!["pci0000:3a".to_owned()],
        link_speeds: vec![25_000..=100_000],
        firmware_versions: vec!["22.31.*".to_owned()],
        eswitch_modes: vec![EswitchMode::Legacy, EswitchMode::Switchdev],
        acpi_indexes: vec![101..=104],
        ..Selector::default()
    };
    assert_eq!(ours, Ok(expected));
    assert_eq!(selected(r#""vdpaType":"virtio""#).unwrap().needs.vdpa, Some(VdpaType::Virtio));
}

#[test]
fn keys_that_the_go_plugin_does_not_know_choose_policies() {
    let pool = one(r#""selectors":{},"allocationPolicy":"differentPf","carrierPolicy":"unhealthy","allowInUse":["0000:01:00.0"]"#).unwrap();
    assert_eq!((pool.preference, pool.needs_carrier), (Some(Preference::DifferentPf), true));
    assert_eq!(pool.allow_in_use, ["0000:01:00.0".parse().unwrap()]);
    let plain = one(r#""selectors":{}"#).unwrap();
    assert_eq!((plain.preference, plain.needs_carrier, plain.allow_in_use), (None, false, vec![]));
}

#[test]
fn an_accelerator_is_selected_by_what_it_has() {
    let pool =
        one(r#""deviceType":"accelerator","selectors":{"vendors":["8086"],"devices":["0d5d"],"drivers":["vfio-pci"],"pfNames":[],"isRdma":false}"#);
    assert_eq!(pool.unwrap().device_type, DeviceType::Accelerator);
    let error = one(r#""deviceType":"accelerator","selectors":[{"linkTypes":["ether"]}]"#).unwrap_err();
    assert!(error.ends_with(r#"selectors[0].linkTypes: "a value" was given, allowed is nothing with deviceType accelerator"#), "{error}");
}

#[test]
fn selectors_are_one_object_or_a_list() {
    assert_eq!(one(r#""selectors":{}"#).unwrap().selectors.len(), 1);
    assert_eq!(one(r#""selectors":[{},{"vendors":["8086"]}]"#).unwrap().selectors.len(), 2);
    assert_eq!(one(r#""selectors":[]"#).unwrap().selectors.len(), 0);
}

#[test]
fn a_value_of_the_wrong_kind_names_file_resource_and_key() {
    for (keys, key, given) in [
        (r#""selectors":7"#, "selectors", "7"),
        (r#""selectors":[{},7]"#, "selectors[1]", "7"),
        (r#""selectors":{"vendors":"8086"}"#, "selectors.vendors", r#""8086""#),
        (r#""selectors":[{"vendors":["x"]}]"#, "selectors[0].vendors", r#""x""#),
        (r#""selectors":{"pfNames":["p#3-1"]}"#, "selectors.pfNames", r#""p#3-1""#),
        (r#""selectors":{"rootDevices":["ens1#0"]}"#, "selectors.rootDevices", r#""ens1#0""#),
        (r#""selectors":{"linkTypes":["eth"]}"#, "selectors.linkTypes", r#""eth""#),
        (r#""selectors":{"needVhostNet":"yes"}"#, "selectors.needVhostNet", r#""yes""#),
        (r#""selectors":{"isRdma":"true"}"#, "selectors.isRdma", r#""true""#),
        (r#""selectors":{"pKeys":["8001"]}"#, "selectors.pKeys", r#""8001""#),
        (r#""selectors":{"acpiIndexes":["x"]}"#, "selectors.acpiIndexes", r#""x""#),
        (r#""selectors":{"ddpProfiles":[""]}"#, "selectors.ddpProfiles", r#""""#),
        (r#""selectors":{},"allocationPolicy":"best""#, "allocationPolicy", r#""best""#),
        (r#""selectors":{},"carrierPolicy":true"#, "carrierPolicy", "true"),
        (r#""selectors":{},"allowInUse":["ens1"]"#, "allowInUse", r#""ens1""#),
        (r#""selectors":{"auxTypes":["sf"]}"#, "selectors.auxTypes", r#""a value""#),
        (r#""deviceType":"auxNetDevice","selectors":{"auxTypes":["eth"]}"#, "selectors.auxTypes", r#""eth""#),
        (r#""deviceType":"auxNetDevice","selectors":{"auxTypes":["sf"],"pciAddresses":["0000:01:00.0"]}"#, "selectors.pciAddresses", r#""a value""#),
        (r#""selectors":{"numaNodes":["1-0"]}"#, "selectors.numaNodes", r#""1-0""#),
        (r#""selectors":{"linkSpeeds":["fast"]}"#, "selectors.linkSpeeds", r#""fast""#),
        (r#""selectors":{"eswitchModes":["none"]}"#, "selectors.eswitchModes", r#""none""#),
        (r#""selectors":{"pcieRoots":["0000:3a"]}"#, "selectors.pcieRoots", r#""0000:3a""#),
        (r#""selectors":{"subsystemVendors":["dell"]}"#, "selectors.subsystemVendors", r#""dell""#),
        (r#""selectors":{"firmwareVersions":[""]}"#, "selectors.firmwareVersions", r#""""#),
        (r#""selectors":{"vdpaType":"x"}"#, "selectors.vdpaType", r#""x""#),
        (r#""selectors":{},"excludeTopology":1"#, "excludeTopology", "1"),
        (r#""selectors":{},"deviceType":"nic""#, "deviceType", r#""nic""#),
        (r#""selectors":{},"resourcePrefix":"A/b""#, "resourcePrefix", r#""A/b""#),
        (r#""selectors":{},"additionalInfo":{"ens1":{}}"#, "additionalInfo", r#""ens1""#),
    ] {
        let error = one(keys).unwrap_err();
        assert!(error.starts_with(&format!("c.json: resource a: {key}: {given} was given, allowed is ")), "{error}");
    }
}

#[test]
fn each_selector_of_subfunctions_names_their_type() {
    let aux = |selectors: &str| one(&format!(r#""deviceType":"auxNetDevice","selectors":{selectors}"#));
    assert_eq!(aux(r#"{"auxTypes":["sf"],"pfNames":["ens1f0#0-3"],"isRdma":true}"#).unwrap().device_type, DeviceType::AuxNetDevice);
    for (selectors, key) in [("{}", "selectors.auxTypes"), (r#"[{"auxTypes":["sf"]},{"auxTypes":[]}]"#, "selectors[1].auxTypes")] {
        let error = aux(selectors).unwrap_err();
        assert_eq!(error, format!("c.json: resource a: {key}: missing, allowed is a list of sf"));
    }
}

#[test]
fn rdma_and_vdpa_exclude_each_other_in_one_selector_only() {
    assert!(selected(r#""isRdma":true,"vdpaType":"vhost""#).unwrap_err().contains("only without isRdma"));
    assert!(one(r#""selectors":[{"isRdma":true},{"vdpaType":"vhost"}]"#).is_ok());
    let second = one(r#""selectors":[{},{"isRdma":true,"vdpaType":"virtio"}]"#).unwrap_err();
    assert!(second.contains("selectors[1].vdpaType"), "{second}");
}

proptest! {
    /// Whatever is in the file, reading it ends, and a good resource before and after is still there.
    #[test]
    fn no_text_breaks_the_parser_or_hides_a_good_resource(key in "[a-zA-Z]{1,12}|vendors|pfNames|rootDevices|selectors|resourceName|additionalInfo|vdpaType",
            value in json_value()) {
        let bad = serde_json::json!({ "resourceName": "x", "selectors": [{ &key: &value }], &key: &value });
        let text = serde_json::json!({ "resourceList": [{ "resourceName": "first", "selectors": {} }, bad, value, { "resourceName": "last", "selectors": {} }] });
        let config = parsed(&text.to_string());
        let names: Vec<String> = config.pools.iter().map(|pool| pool.name.to_string()).collect();
        prop_assert_eq!(names.first().map(String::as_str), Some("intel.com/first"));
        prop_assert_eq!(names.last().map(String::as_str), Some("intel.com/last"));
        for error in &config.errors {
            prop_assert!(error.to_string().starts_with("c.json: resource "), "{}", error);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(text in ".{0,200}") {
        let _ = parse("c.json", &text, "intel.com");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z0-9#:.,-]{0,16}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn a_misspelt_key_is_not_overlooked() {
    let error = selected(r#""pfName":["ens1f0"]"#).unwrap_err();
    assert!(error.starts_with("c.json: resource a: selectors.pfName: not a key of this format, known here are vendors, devices"), "{error}");
    assert!(one(r#""selectors":{},"exclude":true"#).unwrap_err().contains("resource a: exclude: not a key"));
    assert!(one(r#""deviceType":"netDevice""#).unwrap_err().contains("resource a: selectors: missing"));
}

#[test]
fn additional_info_keeps_star_and_addresses_in_their_usual_form() {
    let pool = one(r#""selectors":{},"additionalInfo":{"*":{"k":"1"},"0000:3B:10.0":{"k":"2"}}"#).unwrap();
    assert_eq!(pool.additional_info.keys().collect::<Vec<_>>(), ["*", "0000:3b:10.0"]);
}

#[test]
fn a_file_that_is_no_configuration_is_an_error_as_a_whole() {
    for (text, reason) in [
        ("", "EOF"),
        ("[]", "not a JSON object"),
        ("{}", "resourceList is missing"),
        (r#"{"resourceList":{}}"#, "resourceList is not a list"),
        (r#"{"resourceList":[],"other":1}"#, "\"other\" is not a key"),
    ] {
        let error = parse("c.json", text, "intel.com").unwrap_err().to_string();
        assert!(error.starts_with("c.json: ") && error.contains(reason), "{error}");
    }
    assert_eq!(parsed(r#"{"resourceList":[]}"#), Config::default());
    assert_eq!(parsed(r#"{"resourceList":null}"#), Config::default());
}
