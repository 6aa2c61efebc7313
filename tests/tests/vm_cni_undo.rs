//! I/O: tier 2: after an ADD of any configuration and its DEL the kernel's simulated PF holds of its VFs what it held before; and limits of MTU that
//! only a real driver has.
//!
//! What does not live here: the property itself (`sriov_tests::undo`), which has the netdev of a veth in the place of a VF's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_tests::lab::Lab;
use sriov_tests::lab::topology::Topology;

sriov_tests::lab_tests! { Topology::one_guest();
    what_an_add_of_any_configuration_changes_its_del_takes_back,
    an_mtu_above_the_limit_of_the_driver_is_refused_before_anything_changes,
}

const PROGRAM: &str = "/usr/local/bin/cni-undo";
const PLUGIN: &str = "/opt/cni/bin/sriov";
const SIMULATED: &str = "/sys/bus/netdevsim/devices/netdevsim10";
const CASES: &str = "40";

fn what_an_add_of_any_configuration_changes_its_del_takes_back(lab: &mut Lab) -> Result<()> {
    let guest = lab.guest(1)?;
    lab.install(guest, "cni-undo", PROGRAM)?;
    guest.run(&["modprobe", "-a", "netdevsim", "veth"])?;
    guest.write_attribute("/sys/bus/netdevsim/new_device", "10 1")?;
    guest.write_attribute(&format!("{SIMULATED}/sriov_numvfs"), "2")?;
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let pf = guest.run(&["ls", &format!("{SIMULATED}/net")])?.trim().to_owned();
    let outcome = guest.command(&[PROGRAM, &pf, CASES, "1"]).env("CNI_PLUGINS_DIR", "/opt/cni/bin").limit(Duration::from_mins(5)).outcome()?;
    ensure!(outcome.success(), "{outcome}");
    Ok(())
}

/// An igb's VF and PF take 9216 bytes less the header at most.
fn an_mtu_above_the_limit_of_the_driver_is_refused_before_anything_changes(lab: &mut Lab) -> Result<()> {
    let guest = lab.guest(1)?;
    let nic = guest.node().nics().next().context("no PF")?;
    let vf = format!("0000:{:02x}:10.0", nic.index + 1);
    lab.install(guest, "sriov", PLUGIN)?;
    guest.sh("ip netns add mtu")?;
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", nic.pci_address()), "1")?;
    let there = || guest.run(&["ls", &format!("/sys/bus/pci/devices/{vf}/net")]).map(|names| (!names.is_empty()).then_some(()));
    guest.poll(Instant::now() + Duration::from_mins(1), "the VF has a netdev", there)?;
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let link = || -> Result<Value> {
        let links: Vec<Value> = serde_json::from_str(&guest.run(&["/usr/sbin/ip", "-j", "-d", "link"])?)?;
        links.into_iter().find(|link| link["parentdev"] == vf.as_str()).context("the VF's netdev is not in the host")
    };
    let before = link()?;
    let most = before["max_mtu"].as_u64().context("the driver tells no limit")?;
    ensure!((1500..65535).contains(&most), "{before}");
    let call = |verb: &str, mtu: u64| {
        let conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "sriov", "deviceID": vf, "mtu": mtu});
        let command = guest.command(&[PLUGIN]).stdin(conf.to_string()).env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "mtu");
        command.env("CNI_NETNS", "/run/netns/mtu").env("CNI_IFNAME", "net1").env("CNI_PATH", "/opt/cni/bin").outcome()
    };
    let refused = call("ADD", most + 1)?;
    let told: Value = serde_json::from_slice(&refused.stdout)?;
    ensure!(!refused.success() && told["code"] == 7, "{refused}");
    let message = told["msg"].as_str().unwrap_or_default();
    ensure!(message.starts_with(&format!("mtu is {}: ", most + 1)) && message.ends_with(&format!("takes at most {most}")), "{message}");
    ensure!(link()? == before, "a refused ADD changed the netdev");
    ensure!(guest.sh("ls /var/lib/cni/sriov/v1")?.trim().is_empty(), "a refused ADD left a journal");

    let added = call("ADD", most)?;
    ensure!(added.success() && serde_json::from_slice::<Value>(&added.stdout)?["interfaces"][0]["mtu"] == most, "{added}");
    let removed = call("DEL", most)?;
    ensure!(removed.success() && link()?["mtu"] == before["mtu"], "{removed}");
    Ok(())
}
