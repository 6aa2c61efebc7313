//! Pure: golden cases of what plugins get (`testdata/multus/delegate`: network, selection and device in, one configuration for each plugin out), and tables.

use super::*;

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    selection: Selection,
    nad: Value,
    #[serde(default)]
    device: Option<(String, String)>,
    expected: Vec<Value>,
    expected_args: Option<String>,
}

fn pod() -> PodRef {
    PodRef { namespace: "red".into(), name: "web".into(), uid: Some("u1".into()) }
}

#[test]
fn each_golden_case_gives_the_configurations_that_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/multus/delegate");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let case: Case = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let device = case.device.as_ref().map(|(resource, device)| (resource.as_str(), device.as_str()));
        let config = case.nad.to_string();
        let attachment = Attachment { selection: &case.selection, config: &config, device };
        let delegate = attach(&attachment, &pod(), "c1", "net1", Path::new("/devinfo")).unwrap();
        let configs: Vec<Value> = (0..delegate.plugins.len()).map(|index| plugin_config(&delegate, index, None).unwrap().into()).collect();
        assert_eq!(configs, case.expected, "{}", path.display());
        if let Some(args) = case.expected_args {
            assert_eq!(delegate.cni_args, args, "{}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} cases in {}", folder.display());
}

#[test]
fn devices_are_handed_out_sorted_and_once() {
    let devices = Devices::from([
        ("example.com/a".into(), vec!["0000:01:10.2".into(), "0000:01:10.0".into()]),
        ("example.com/b".into(), vec!["0000:02:10.0".into()]),
    ]);
    let mut allotment = Allotment::new(devices);
    let taken: Vec<_> = ["a", "b", "a", "a", "c"].iter().map(|name| allotment.next(&format!("example.com/{name}"))).collect();
    let expected = [Some("0000:01:10.0"), Some("0000:02:10.0"), Some("0000:01:10.2"), None, None];
    assert_eq!(taken.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
}

#[test]
fn interfaces_are_numbered_by_place_and_named_once() {
    let named = |name: Option<&str>| Selection { name: "n".into(), interface: name.map(str::to_owned), ..Selection::default() };
    assert_eq!(interfaces("eth0", &[named(None), named(Some("data0")), named(None)]).unwrap(), ["net1", "data0", "net3"]);
    assert_eq!(interfaces("eth0", &[]).unwrap(), Vec::<String>::new());
    assert!(interfaces("eth0", &[named(Some("eth0"))]).is_err());
    assert!(interfaces("eth0", &[named(Some("net2")), named(None)]).is_err());
}

#[test]
fn a_previous_result_enters_the_configuration() {
    let delegate = network(r#"{"type":"sriov"}"#, "n").unwrap();
    let previous = json!({"ips": []});
    assert_eq!(plugin_config(&delegate, 0, Some(&previous)).unwrap()["prevResult"], previous);
    assert!(plugin_config(&delegate, 1, None).is_err());
}

#[test]
fn a_configuration_that_runs_nothing_is_refused() {
    for config in
        ["", "[]", "{}", r#"{"type":""}"#, r#"{"type":"../sriov"}"#, r#"{"plugins":[]}"#, r#"{"plugins":[{"ipam":{}}]}"#, r#"{"plugins":{}}"#]
    {
        assert!(network(config, "n").is_err(), "{config} was taken");
    }
}

#[test]
fn device_information_is_found_and_copied_by_name() {
    let selection = Selection { namespace: "blue".into(), name: "fast".into(), ..Selection::default() };
    let attachment = Attachment { selection: &selection, config: r#"{"type":"sriov"}"#, device: Some(("example.com/pool_a", "0000:01:10.0")) };
    let delegate = attach(&attachment, &pod(), "c1", "net2", Path::new("/devinfo")).unwrap();
    let (original, copy) = delegate.device_info.unwrap();
    assert_eq!(original, Path::new("/devinfo/dp/example.com-pool_a-0000:01:10.0-device.json"));
    assert_eq!(copy, Path::new("/devinfo/cni/blue-fast-c1_net2"));
}
