//! Pure: the configuration's rules, one table each.

use serde_json::json;

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "a table of json! values reads better without borrows")]
fn conf(extra: Value) -> NetConf {
    let mut wire = json!({"cniVersion": "1.0.0", "name": "blue", "type": "sriov", "deviceID": "0000:01:10.2"});
    wire.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    NetConf::parse(wire.to_string().as_bytes()).unwrap()
}

fn request(extra: Value) -> Result<VfRequest, ConfError> {
    conf(extra).vf_request(None)
}

fn refusal(extra: Value) -> String {
    request(extra).unwrap_err().to_string()
}

#[test]
fn an_empty_request_leaves_everything_alone() {
    let wanted = VfRequest {
        device: "0000:01:10.2".parse().unwrap(),
        mac: None,
        mtu: None,
        allmulti: None,
        promisc: None,
        vlan: None,
        min_tx_rate: None,
        max_tx_rate: None,
        spoof_check: None,
        trust: None,
        link_state: None,
        trunk: None,
        guid: None,
        rdma_isolation: None,
        vfio_pci_mode: false,
    };
    assert_eq!(request(json!({})).unwrap(), wanted);
    let absent = json!({"vlan": null, "mac": "", "spoofchk": "", "min_tx_rate": null, "ipam": {}, "trust": null});
    assert_eq!(request(absent).unwrap(), wanted);
}

#[test]
fn each_key_has_its_meaning() {
    let wanted = request(json!({
        "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1ad", "mac": "02-00-5E-10-00-01", "mtu": 9000, "min_tx_rate": 10, "max_tx_rate": 100,
        "spoofchk": "off", "trust": "on", "link_state": "enable", "allmulti": "on", "promisc": "off", "logLevel": "debug", "logFile": "/var/log/sriov.log"
    }))
    .unwrap();
    let vlan = VlanRequest { id: 100.try_into().unwrap(), qos: 3.try_into().unwrap(), proto: VlanProto::Dot1ad };
    assert_eq!(wanted.vlan, Some(vlan));
    assert_eq!(wanted.mac.unwrap().to_string(), "02:00:5e:10:00:01");
    assert_eq!((wanted.mtu, wanted.min_tx_rate, wanted.max_tx_rate), (Some(9000), Some(Mbps(10)), Some(Mbps(100))));
    assert_eq!((wanted.spoof_check, wanted.trust, wanted.link_state), (Some(false), Some(true), Some(VfLinkState::Enable)));
    assert_eq!((wanted.allmulti, wanted.promisc), (Some(true), Some(false)));
}

#[test]
fn vlan_zero_is_not_the_same_as_no_vlan() {
    assert_eq!(request(json!({"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1q"})).unwrap().vlan.unwrap().id.get(), 0);
    assert_eq!(request(json!({})).unwrap().vlan, None);
}

#[test]
fn a_tag_protocol_may_be_in_capitals() {
    for (given, meant) in [("802.1Q", VlanProto::Dot1q), ("802.1AD", VlanProto::Dot1ad), ("802.1ad", VlanProto::Dot1ad)] {
        assert_eq!(request(json!({"vlan": 100, "vlanProto": given})).unwrap().vlan.unwrap().proto, meant);
    }
}

#[test]
fn a_wrong_value_is_refused_with_key_given_and_allowed() {
    for (wire, message) in [
        (json!({"vlan": 4095}), "vlan is 4095: allowed is a whole number from 0 to 4094"),
        (json!({"vlan": -1}), "vlan is -1: allowed is a whole number from 0 to 4094"),
        (json!({"vlan": "100"}), "vlan is \"100\": allowed is a whole number from 0 to 4094"),
        (json!({"vlan": 1.5}), "vlan is 1.5: allowed is a whole number from 0 to 4094"),
        (json!({"vlan": 1, "vlanQoS": 8}), "vlanQoS is 8: allowed is a whole number from 0 to 7"),
        (json!({"vlanQoS": 1}), "vlanQoS is 1: allowed is nothing without vlan: it describes the tag"),
        (json!({"vlanProto": "802.1q"}), "vlanProto is \"802.1q\": allowed is nothing without vlan: it describes the tag"),
        (json!({"vlan": 0, "vlanQoS": 1}), "vlanQoS is 1: allowed is 0 with vlan 0: there is no tag to carry a priority"),
        (json!({"vlan": 0, "vlanProto": "802.1ad"}), "vlanProto is \"802.1ad\": allowed is 802.1q with vlan 0: there is no tag"),
        (json!({"vlan": 1, "vlanProto": "802.1x"}), "vlanProto is \"802.1x\": allowed is \"802.1q\" or \"802.1ad\""),
        (json!({"spoofchk": "On"}), "spoofchk is \"On\": allowed is \"on\" or \"off\""),
        (json!({"spoofchk": true}), "spoofchk is true: allowed is \"on\" or \"off\""),
        (json!({"trust": "yes"}), "trust is \"yes\": allowed is \"on\" or \"off\""),
        (json!({"link_state": "up"}), "link_state is \"up\": allowed is \"auto\" or \"enable\" or \"disable\""),
        (json!({"min_tx_rate": -5}), "min_tx_rate is -5: allowed is a whole number from 0 to 4294967295"),
        (json!({"mtu": 67}), "mtu is 67: allowed is a whole number from 68 to 65535"),
        (json!({"logLevel": "loud"}), "logLevel is \"loud\": allowed is panic, error, warning, info or debug"),
        (json!({"logFile": "sriov.log"}), "logFile is \"sriov.log\": allowed is an absolute path"),
        (
            json!({"deviceID": "enp1s0v0"}),
            "deviceID is \"enp1s0v0\": allowed is the PCI address of a VF, for example 0000:3b:02.1, or the name of a sub-function, for example \
             mlx5_core.sf.4",
        ),
        (json!({"allmulti": true}), "allmulti is true: allowed is \"on\" or \"off\""),
        (json!({"promisc": "yes"}), "promisc is \"yes\": allowed is \"on\" or \"off\""),
        (json!({"deadlineSeconds": 0}), "deadlineSeconds is 0: allowed is a whole number from 1 to 300"),
        (json!({"capabilities": ["mac"]}), "capabilities is [\"mac\"]: allowed is an object"),
        (json!({"runtimeConfig": "mac"}), "runtimeConfig is \"mac\": allowed is an object"),
        (json!({"runtimeConfig": {"mac": 5}}), "runtimeConfig.mac is 5: allowed is a text"),
        (
            json!({"runtimeConfig": {"CNIDeviceInfoFile": "/var/run/../../etc/passwd"}}),
            "runtimeConfig.CNIDeviceInfoFile is \"/var/run/../../etc/passwd\": allowed is an absolute path without \"..\"",
        ),
        (json!({"vlanTrunk": "100-99"}), "vlanTrunk is \"100-99\": allowed is a list of VLAN ids and ranges from 1 to 4094, as \"1-10,20\""),
        (json!({"vlanTrunk": 100}), "vlanTrunk is 100: allowed is a list of VLAN ids and ranges from 1 to 4094, as \"1-10,20\""),
        (
            json!({"vlanTrunk": "100-200", "vlan": 5}),
            "vlanTrunk is \"100-200\": allowed is nothing together with a vlan: the PF tags all frames with that",
        ),
        (
            json!({"runtimeConfig": {"infinibandGUID": "c2:11:22:33:44:55"}}),
            "runtimeConfig.infinibandGUID is \"c2:11:22:33:44:55\": allowed is a GUID that is neither zero nor all ones, as c2:11:22:33:44:55:66:77",
        ),
        (
            json!({"args": {"cni": {"guid": "00:00:00:00:00:00:00:00"}}}),
            "args.cni.guid is \"00:00:00:00:00:00:00:00\": allowed is a GUID that is neither zero nor all ones, as c2:11:22:33:44:55:66:77",
        ),
        (json!({"pkey": "7fff"}), "pkey is \"7fff\": allowed is a partition key in hexadecimal from 0x0001 to 0xffff, not 0x8000"),
        (json!({"pkey": "0x8000"}), "pkey is \"0x8000\": allowed is a partition key in hexadecimal from 0x0001 to 0xffff, not 0x8000"),
        (json!({"rdmaIsolation": "on"}), "rdmaIsolation is \"on\": allowed is true or false"),
        (json!({"vfioPciMode": "true"}), "vfioPciMode is \"true\": allowed is true or false"),
        (json!({"ibKubernetesEnabled": 1}), "ibKubernetesEnabled is 1: allowed is true or false"),
    ] {
        assert_eq!(refusal(wire), message);
    }
    for mac in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00:5e:10:00"] {
        assert!(refusal(json!({"mac": mac})).starts_with(&format!("mac is {mac:?}: allowed is a unicast MAC address")), "{mac}");
    }
}

#[test]
fn an_unknown_key_is_refused_and_the_meant_one_is_named() {
    for (wire, message) in [
        (json!({"max-tx-rate": 5}), "unknown key \"max-tx-rate\" with value 5: did you mean \"max_tx_rate\"?"),
        (json!({"VLAN": 5}), "unknown key \"VLAN\" with value 5: did you mean \"vlan\"?"),
        (json!({"OrigVfState": {}}), "unknown key \"OrigVfState\" with value {}"),
        (json!({"VFID": 3}), "unknown key \"VFID\" with value 3"),
        (json!({"Master": "eth0"}), "unknown key \"Master\" with value \"eth0\""),
        (json!({"MTU": 9000}), "unknown key \"MTU\" with value 9000: did you mean \"mtu\"?"),
    ] {
        let error = request(wire).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(matches!(error, ConfError::UnknownKey { .. }));
    }
}

#[test]
fn what_runtimes_inject_is_accepted() {
    let injected = json!({
        "dns": {"nameservers": ["192.0.2.1"]}, "capabilities": {"mac": true, "ips": true}, "runtimeConfig": {"ips": ["192.0.2.5/24"]},
        "args": {"cni": {"a": 1}}, "prevResult": {"cniVersion": "1.0.0"}, "pciBusID": "0000:01:10.2", "resourceName": "example.com/pool",
        "cni.dev/valid-attachments": [], "cni.dev/attachments": [], "ipam": {"type": "host-local", "subnet": "192.0.2.0/24"}
    });
    assert!(request(injected).is_ok());
}

#[test]
fn the_winning_mac_is_the_runtimes_then_the_arguments_then_the_networks() {
    let all = conf(json!({"mac": "02:00:00:00:00:01", "runtimeConfig": {"mac": "02:00:00:00:00:03"}}));
    let mac = |conf: &NetConf, args: Option<&str>| conf.vf_request(args).unwrap().mac.unwrap().0[5];
    assert_eq!(mac(&all, Some("02:00:00:00:00:02")), 3);
    let own = conf(json!({"mac": "02:00:00:00:00:01"}));
    assert_eq!(mac(&own, Some("02:00:00:00:00:02")), 2);
    assert_eq!(mac(&own, None), 1);
    let error = own.vf_request(Some("nonsense")).unwrap_err().to_string();
    assert!(error.starts_with("MAC of CNI_ARGS is \"nonsense\""), "{error}");
}

#[test]
fn the_device_comes_from_the_kubelet_before_the_pods_annotation() {
    let both = conf(json!({"runtimeConfig": {"deviceID": "0000:01:10.4"}}));
    assert_eq!(both.device.unwrap().to_string(), "0000:01:10.2");
    let annotation = conf(json!({"deviceID": "", "runtimeConfig": {"deviceID": "0000:01:10.4"}}));
    assert_eq!(annotation.device.unwrap().to_string(), "0000:01:10.4");
    let upper = conf(json!({"deviceID": "0000:3B:02.1"}));
    assert_eq!(upper.device.unwrap().to_string(), "0000:3b:02.1");
    let vdpa = conf(json!({"deviceID": "vdpa:0000:3b:02.1"}));
    assert_eq!(vdpa.device, upper.device);
    assert_eq!(conf(json!({"deviceID": "vdpa:mlx5_core.sf.4"})).device, None);
    let number = conf(json!({"deviceID": "", "runtimeConfig": {"deviceID": 5}})).vf_request(None).unwrap_err().to_string();
    assert!(number.starts_with("runtimeConfig.deviceID is 5: allowed is the PCI address"), "{number}");
    let none = conf(json!({"deviceID": null}));
    assert!(none.vf_request(None).unwrap_err().to_string().contains("k8s.v1.cni.cncf.io/resourceName"));
}

#[test]
fn the_guid_is_the_runtimes_then_that_of_ib_kubernetes_which_is_waited_for_where_the_network_says_so() {
    let (runtime, args) = ("c2:11:22:33:44:55:66:77", "c2:11:22:33:44:55:66:88");
    let both = json!({"runtimeConfig": {"infinibandGUID": runtime}, "args": {"cni": {"guid": args}}, "pkey": "0x8001"});
    assert_eq!(request(both).unwrap().guid.unwrap().to_string(), runtime);
    let ready = json!({"ibKubernetesEnabled": true, "args": {"cni": {"guid": args, "mellanox.infiniband.app": "configured"}}});
    assert_eq!(request(ready).unwrap().guid.unwrap().to_string(), args);
    for early in [json!({"ibKubernetesEnabled": true}), json!({"ibKubernetesEnabled": true, "args": {"cni": {"guid": args}}})] {
        assert!(refusal(early).starts_with("args.cni.guid is missing: ibKubernetesEnabled is true"));
    }
    assert_eq!(request(json!({"ibKubernetesEnabled": false, "rdmaIsolation": true})).unwrap().rdma_isolation, Some(true));
}

#[test]
fn a_sub_function_and_a_vdpa_device_are_named_by_their_ids() {
    assert_eq!(conf(json!({"deviceID": "mlx5_core.sf.4"})).device.unwrap().to_string(), "mlx5_core.sf.4");
    assert_eq!(conf(json!({"deviceID": "vdpa:0000:3b:02.1"})).device.unwrap().to_string(), "0000:3b:02.1");
    assert_eq!(request(json!({"vlanTrunk": "20,1-10"})).unwrap().trunk.unwrap().to_string(), "1-10,20");
}

#[test]
fn del_forgives_what_add_refuses() {
    let old = conf(json!({"vlan": 5000, "spoofchk": "On", "max-tx-rate": 5, "deviceID": "bad", "logLevel": "loud"}));
    assert_eq!(old.device, None);
    assert_eq!(conf(json!({"logFile": "sriov.log"})).log_file, None, "a refused path is not written to");
    assert!(old.vf_request(None).is_err());
}

#[test]
fn what_no_verb_can_do_without_is_refused_for_all() {
    for (stdin, start) in [
        ("", "failed to decode"),
        ("[]", "failed to decode"),
        ("{\"name\": \"a\", \"cniVersion\": \"9.0.0\"}", "cniVersion \"9.0.0\" is not supported"),
        ("{}", "name is missing"),
        ("{\"name\": \"../a\"}", "name is"),
        ("{\"name\": \"a\", \"stateDir\": \"var/lib\"}", "stateDir is \"var/lib\": allowed is an absolute path"),
        ("{\"name\": \"a\", \"ipam\": {\"type\": \"../../bin/sh\"}}", "ipam is"),
        ("{\"name\": \"a\", \"ipam\": \"dhcp\"}", "ipam is"),
        ("{\"name\": \"a\", \"cni.dev/valid-attachments\": {}}", "cni.dev/valid-attachments is"),
    ] {
        let error = NetConf::parse(stdin.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(start), "{stdin}: {error}");
    }
}
