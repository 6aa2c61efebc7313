//! Pure: tests of the config format. Whole files with their outcome are in `testdata/config`.

use super::*;

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
        r#""vendors":["8086"],"devices":["10ca","154C"],"drivers":["igbvf","vfio-pci"],"pciAddresses":["0000:01:10.0"],
        "pfNames":["ens1f0#0-1"],"rootDevices":["0000:01:00.0"],"linkTypes":["ether"],"needVhostNet":true,"isRdma":false,"vdpaType":"""#,
    );
    let expected = Selector {
        vendors: vec![VendorId(0x8086)],
        devices: vec![DeviceId(0x10ca), DeviceId(0x154c)],
        drivers: vec!["igbvf".to_owned(), "vfio-pci".to_owned()],
        pci_addresses: vec!["0000:01:10.0".parse().unwrap()],
        pf_names: vec![Ranged { pf: "ens1f0".to_owned(), indexes: Some(vec![0..=1]) }],
        root_devices: vec![Ranged { pf: "0000:01:00.0".parse().unwrap(), indexes: None }],
        link_types: vec![LinkType::Ether],
        need_vhost_net: true,
    };
    assert_eq!(selector, Ok(expected));
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
fn keys_that_this_version_cannot_serve_are_refused_by_name() {
    for (keys, key) in [
        (r#""selectors":{"isRdma":true}"#, "selectors.isRdma"),
        (r#""selectors":{"vdpaType":"vhost"}"#, "selectors.vdpaType"),
        (r#""selectors":{"pKeys":["0x1"]}"#, "selectors.pKeys"),
        (r#""selectors":{"ddpProfiles":["GTPv1-C/U IPv4/IPv6 payload"]}"#, "selectors.ddpProfiles"),
        (r#""selectors":{"acpiIndexes":["101"]}"#, "selectors.acpiIndexes"),
        (r#""selectors":{},"deviceType":"accelerator""#, "deviceType"),
        (r#""selectors":{"auxTypes":["sf"]},"deviceType":"auxNetDevice""#, "deviceType"),
    ] {
        let error = one(keys).unwrap_err();
        assert!(error.starts_with(&format!("c.json: resource a: {key}: ")) && error.ends_with("is not supported by this version"), "{error}");
    }
    assert!(selected(r#""isRdma":true,"vdpaType":"vhost""#).unwrap_err().contains("only without isRdma"));
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
