//! I/O, tier 2: the VF attributes that the emulated igb does not take (802.1ad, guaranteed rate, link state), on the kernel's simulated device. It has no
//! PCI functions, so this proves the netlink side alone.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sriov_host::mac::MacAddr;
use sriov_host::rate::Mbps;
use sriov_host::vf::{VfAttributes, VfIndex, VfLinkState, VfSetting, VfVlan};
use sriov_host::vlan::{VlanId, VlanProto, VlanQos};
use sriov_tests::cluster::same;
use sriov_tests::lab::Lab;
use sriov_tests::lab::guest::Guest;
use sriov_tests::lab::topology::{Node, Topology};

sriov_tests::lab_tests! {
    Topology::guests([Node::new(1)]);
    all_attributes_go_in_one_message_and_read_back,
    a_setting_of_one_vf_leaves_the_others_alone,
    a_vf_that_is_not_there_is_refused_with_the_kernels_words,
    switchdev_mode_brings_a_representor_for_each_vf_and_goes_back,
    a_health_reporter_that_could_not_recover_is_found_until_it_has,
    an_rdma_device_is_known_by_its_number_and_one_that_its_driver_cannot_move_is_refused,
    a_parameter_is_read_and_set_in_its_modes_and_a_reload_makes_the_driver_take_it,
    what_a_driver_has_no_parameter_or_reload_for_is_refused_in_words,
}

const PROGRAM: &str = "/usr/local/bin/vf-attributes";
const DEVICE: &str = "/sys/bus/netdevsim/devices/netdevsim10";

/// The simulated PF's netdev, made with two VFs on the first call.
fn pf(lab: &Lab) -> Result<(&Guest, String)> {
    let guest = lab.guest(1)?;
    if guest.run(&["ls", DEVICE]).is_err() {
        lab.install(guest, "vf-attributes", PROGRAM)?;
        guest.run(&["modprobe", "netdevsim"])?;
        guest.write_attribute("/sys/bus/netdevsim/new_device", "10 1")?;
        guest.write_attribute(&format!("{DEVICE}/sriov_numvfs"), "2")?;
    }
    let name = guest.run(&["ls", &format!("{DEVICE}/net")])?.trim().to_owned();
    Ok((guest, name))
}

fn set(guest: &Guest, pf: &str, index: u16, settings: &[VfSetting]) -> Result<Vec<VfAttributes>> {
    let text = guest.run(&[PROGRAM, pf, &index.to_string(), &serde_json::to_string(settings)?])?;
    serde_json::from_str(&text).context("read the attributes")
}

/// What `ip` shows of a VF.
fn shown(guest: &Guest, pf: &str, index: usize) -> Result<Value> {
    let links: Value = serde_json::from_str(&guest.run(&["ip", "-j", "-d", "link", "show", "dev", pf])?)?;
    Ok(links[0]["vfinfo_list"][index].clone())
}

fn all_attributes_go_in_one_message_and_read_back(lab: &mut Lab) -> Result<()> {
    let (guest, pf) = pf(lab)?;
    let mac = MacAddr([0x02, 0, 0, 0, 0, 0x2a]);
    let vlan = VfVlan { id: VlanId::try_from(100)?, qos: VlanQos::try_from(3)?, proto: VlanProto::Dot1ad };
    let settings = [
        VfSetting::Mac(mac),
        VfSetting::Vlan(vlan),
        VfSetting::Rate { min: Mbps(50), max: Mbps(200) },
        VfSetting::SpoofCheck(true),
        VfSetting::LinkState(VfLinkState::Enable),
        VfSetting::Trust(true),
    ];
    let found = set(guest, &pf, 1, &settings)?.into_iter().find(|vf| vf.index == VfIndex(1)).context("VF 1 is not reported")?;
    let expected = VfAttributes {
        index: VfIndex(1),
        mac,
        vlan,
        min_tx_rate: Mbps(50),
        max_tx_rate: Mbps(200),
        spoof_check: Some(true),
        trust: Some(true),
        link_state: Some(VfLinkState::Enable),
        node_guid: None,
        port_guid: None,
    };
    same("attributes", &found, &expected)?;
    // Another program's reading of the same.
    let shown = shown(guest, &pf, 1)?;
    same("VLAN by ip", &shown["vlan_list"][0], &json!({"vlan": 100, "qos": 3, "protocol": "802.1ad"}))?;
    same("link state by ip", &shown["link_state"], &json!("enable"))?;
    same("rates by ip", &(shown["rate"]["min_tx"].clone(), shown["rate"]["max_tx"].clone()), &(json!(50), json!(200)))
}

fn a_setting_of_one_vf_leaves_the_others_alone(lab: &mut Lab) -> Result<()> {
    let (guest, pf) = pf(lab)?;
    let before = shown(guest, &pf, 1)?;
    let after = set(guest, &pf, 0, &[VfSetting::LinkState(VfLinkState::Disable)])?;
    same("link state of VF 0", &after[0].link_state, &Some(VfLinkState::Disable))?;
    same("VF 1", &shown(guest, &pf, 1)?, &before)
}

fn a_vf_that_is_not_there_is_refused_with_the_kernels_words(lab: &mut Lab) -> Result<()> {
    let (guest, pf) = pf(lab)?;
    let outcome = guest.command(&[PROGRAM, &pf, "7", "[{\"Trust\":true}]"]).outcome()?;
    same("it succeeds", &outcome.success(), &false)?;
    same("the kernel's error is told", &outcome.errors().contains("Invalid argument"), &true)
}

fn switchdev_mode_brings_a_representor_for_each_vf_and_goes_back(lab: &mut Lab) -> Result<()> {
    let (guest, pf) = pf(lab)?;
    let program = "/usr/local/bin/eswitch";
    lab.install(guest, "eswitch", program)?;
    let set = |mode: &str| -> Result<Value> { Ok(serde_json::from_str(&guest.run(&[program, "netdevsim", "netdevsim10", mode, &pf])?)?) };
    set("switchdev")?;
    // udev gives the representors their names a moment later; setting the mode that it has changes nothing.
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let up = set("switchdev")?;
    same("mode", &up["mode"], &json!("switchdev"))?;
    same("offload", &up["offload"], &json!(true))?;
    let names: Vec<&str> = [0, 1].iter().filter_map(|vf| up["representors"][vf.to_string()].as_str()).collect();
    same("representors", &names.len(), &2)?;
    // Another program's reading of the same.
    let ports: Value = serde_json::from_str(&guest.run(&["devlink", "-j", "port", "show"])?)?;
    let by_devlink = ports["port"].as_object().context("devlink shows no ports")?.values();
    for (vf, name) in names.iter().enumerate() {
        let fits = |port: &&Value| port["flavour"] == "pcivf" && port["vfnum"] == json!(vf);
        let port = by_devlink.clone().find(fits).with_context(|| format!("devlink shows no port of VF {vf}"))?;
        same("representor by devlink", &port["netdev"], &json!(name))?;
    }
    let down = set("legacy")?;
    same("mode", &down["mode"], &json!("legacy"))?;
    same("representors", &down["representors"], &json!({}))
}

/// What the device plugin makes a PF's VFs unhealthy for.
fn a_health_reporter_that_could_not_recover_is_found_until_it_has(lab: &mut Lab) -> Result<()> {
    const KNOBS: &str = "/sys/kernel/debug/netdevsim/netdevsim10/health";
    let (guest, pf) = pf(lab)?;
    let faulty = || -> Result<Value> {
        let said: Value = serde_json::from_str(&guest.run(&["/usr/local/bin/eswitch", "netdevsim", "netdevsim10", "legacy", &pf])?)?;
        Ok(said["faultyReporter"].clone())
    };
    same("before", &faulty()?, &Value::Null)?;
    guest.sh("test -e /sys/kernel/debug/netdevsim || mount -t debugfs none /sys/kernel/debug")?;
    guest.write_attribute(&format!("{KNOBS}/fail_recover"), "1")?;
    // The write is answered with the failure to recover.
    guest.sh(&format!("echo broken > {KNOBS}/break_health || true"))?;
    same("after it broke", &faulty()?, &json!("dummy"))?;
    // Another program's reading of the same.
    let shown = guest.run(&["devlink", "health", "show", "netdevsim/netdevsim10", "reporter", "dummy"])?;
    same("devlink says error", &shown.contains("state error"), &true)?;
    guest.write_attribute(&format!("{KNOBS}/fail_recover"), "0")?;
    guest.run(&["devlink", "health", "recover", "netdevsim/netdevsim10", "reporter", "dummy"])?;
    same("after it recovered", &faulty()?, &Value::Null)
}

/// The kernel's software device (`rdma_rxe`) can't be taken away from programs that have it open, so that the kernel refuses to move it: what a product
/// tells of a refusal is proven here, a successful move is not.
fn an_rdma_device_is_known_by_its_number_and_one_that_its_driver_cannot_move_is_refused(lab: &mut Lab) -> Result<()> {
    const RDMA: &str = "/usr/local/bin/rdma-devices";
    let guest = lab.guest(1)?;
    lab.install(guest, "rdma-devices", RDMA)?;
    guest.sh("modprobe rdma_rxe && ip link add soft0 type dummy && ip link set soft0 up && rdma system set netns exclusive")?;
    guest.sh("rdma link add rxe0 type rxe netdev soft0 && ip netns add rdma-pod")?;
    let listed = guest.run(&[RDMA])?;
    let (mode, device) = listed.trim().split_once('\n').context("a mode and a device")?;
    assert_eq!(mode, "exclusive");
    let number = device.strip_suffix(" rxe0").with_context(|| listed.clone())?;
    guest.run(&[RDMA, "rename", "rxe0", "rxe7"])?;
    assert_eq!(guest.run(&[RDMA])?.trim(), format!("exclusive\n{number} rxe7"), "a rename leaves the number");
    assert!(guest.sh("rdma dev show")?.contains("rxe7"));
    let outcome = guest.command(&[RDMA, "move", "rxe7", "/run/netns/rdma-pod"]).outcome()?;
    assert!(!outcome.success(), "{outcome}");
    let words = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(words.contains("cannot move the RDMA device to another namespace [rxe7]: Operation not supported"), "{words}");
    guest.sh("ip netns del rdma-pod; rdma link del rxe7; ip link del soft0")?;
    Ok(())
}

/// A device of its own, because a reload makes its netdevs anew.
fn reloadable(lab: &Lab) -> Result<&Guest> {
    let guest = lab.guest(1)?;
    if guest.run(&["ls", "/sys/bus/netdevsim/devices/netdevsim11"]).is_err() {
        lab.install(guest, "devlink-params", PARAMS)?;
        guest.run(&["modprobe", "netdevsim"])?;
        guest.write_attribute("/sys/bus/netdevsim/new_device", "11 1")?;
    }
    Ok(guest)
}

const PARAMS: &str = "/usr/local/bin/devlink-params";

fn param(guest: &Guest, words: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&guest.run(&[&[PARAMS, "netdevsim", "netdevsim11"], words].concat())?)?)
}

/// netdevsim has a generic number and a switch of its own, both for the driver's next start.
fn a_parameter_is_read_and_set_in_its_modes_and_a_reload_makes_the_driver_take_it(lab: &mut Lab) -> Result<()> {
    let guest = reloadable(lab)?;
    same("the number", &param(guest, &["show", "max_macs"])?, &json!({ "generic": true, "values": { "driverinit": "32" } }))?;
    same("the switch", &param(guest, &["show", "test1"])?, &json!({ "generic": false, "values": { "driverinit": "true" } }))?;
    same("the number that was set", &param(guest, &["set", "max_macs", "driverinit", "16"])?["values"]["driverinit"], &json!("16"))?;
    same("the switch that was set", &param(guest, &["set", "test1", "driverinit", "false"])?["values"]["driverinit"], &json!("false"))?;
    // Another program's reading of the same, and what the driver itself works with: its own word for the number is a file.
    let value = |name: &str| -> Result<Value> {
        let shown: Value = serde_json::from_str(&guest.run(&["devlink", "-j", "dev", "param", "show", "netdevsim/netdevsim11", "name", name])?)?;
        Ok(shown["param"]["netdevsim/netdevsim11"][0]["values"][0]["value"].clone())
    };
    same("the number by devlink", &value("max_macs")?, &json!(16))?;
    same("the switch by devlink", &value("test1")?, &json!(false))?;
    guest.sh("test -e /sys/kernel/debug/netdevsim || mount -t debugfs none /sys/kernel/debug")?;
    let works_with = || guest.run(&["cat", "/sys/kernel/debug/netdevsim/netdevsim11/max_macs"]).map(|text| text.trim().to_owned());
    same("before the reload", &works_with()?, &"32".to_owned())?;
    same("what the reload did", &param(guest, &["reload", "driver_reinit"])?, &json!(["driver_reinit"]))?;
    same("after the reload", &works_with()?, &"16".to_owned())
}

/// The firmware's parameters and its reset need hardware. What is proven here is that their absence is told, and how a kernel's refusal is.
fn what_a_driver_has_no_parameter_or_reload_for_is_refused_in_words(lab: &mut Lab) -> Result<()> {
    let guest = reloadable(lab)?;
    same("a parameter that is not there", &param(guest, &["show", "total_vfs"])?, &Value::Null)?;
    same("what firmware is told", &param(guest, &["firmware"])?, &json!({}))?;
    for (words, said) in [
        (
            vec!["set", "total_vfs", "permanent", "8"],
            "cannot set devlink parameter total_vfs of netdevsim/netdevsim11: its driver has no such parameter",
        ),
        (vec!["set", "max_macs", "permanent", "8"], "to 8 (permanent): it has driverinit"),
        (vec!["set", "max_macs", "driverinit", "true"], "to true (driverinit): it has driverinit"),
        (
            vec!["reload", "fw_activate"],
            "cannot reload [netdevsim/netdevsim11: fw_activate]: Operation not supported (os error 95): Requested reload action is not supported",
        ),
    ] {
        let outcome = guest.command(&[&[PARAMS, "netdevsim", "netdevsim11"], words.as_slice()].concat()).outcome()?;
        assert!(!outcome.success() && outcome.errors().contains(said), "{words:?}: {outcome}");
    }
    Ok(())
}
