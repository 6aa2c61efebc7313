//! I/O: tier 2: the CNI under adverse conditions on a real kernel with real VFs: killed between its system calls, raced, and driven by the
//! reference library's `cnitool`.
//!
//! What lives here: what `netns_cni_kills` and `netns_cni_races` show at every boundary without attributes of a PF, shown here with them at the
//! boundaries that matter. What does not: what the verbs do (`vm_cni_igb`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_tests::lab::Lab;
use sriov_tests::lab::guest::{Guest, GuestCommand, Outcome};
use sriov_tests::lab::topology::{Nic, Topology};
use sriov_tests::trace::{Trace, Tracer};

sriov_tests::lab_tests! { Topology::one_guest();
    vfs_are_prepared,
    an_add_killed_between_its_messages_is_cleaned_up,
    a_del_killed_between_its_messages_is_cleaned_up,
    a_del_that_is_slow_in_ipam_leaves_the_settings_of_the_next_pod,
    of_two_plugins_that_race_for_a_vf_one_wins,
    cnitool_drives_each_verb,
}

const PLUGIN: &str = "/opt/cni/bin/sriov";
const TRACER: &str = "/usr/local/bin/tracer";
const VF: &str = "0000:01:10.0";

/// Kills that are tried of those that the tracer shows; each costs seconds on an emulated processor.
const SAMPLES: usize = 12;

fn first(lab: &Lab) -> Result<(&Guest, Nic)> {
    let guest = lab.guest(1)?;
    Ok((guest, guest.node().nics().next().context("no PF")?))
}

fn vfs_are_prepared(lab: &mut Lab) -> Result<()> {
    let (guest, nic) = first(lab)?;
    lab.install(guest, "sriov", PLUGIN)?;
    guest.copy_program(&Tracer::build()?.program(), TRACER)?;
    guest.run(&["/usr/sbin/ip", "link", "set", &nic.netdev(), "up"])?;
    guest.write_attribute(&format!("/sys/bus/pci/devices/{}/sriov_numvfs", nic.pci_address()), "2")?;
    let there = || Ok((snapshot(guest, nic)?["netdev"] != Value::Null).then_some(()));
    guest.poll(Instant::now() + Duration::from_mins(1), "the VF has its netdev", there)?;
    let carrier = || Ok((guest.read_text(&format!("/sys/class/net/{}/carrier", nic.netdev()))? == "1").then_some(()));
    guest.poll(Instant::now() + Duration::from_secs(30), "the PF has a carrier", carrier)?;
    guest.sh("for name in a b; do ip netns add $name; done")?;
    Ok(())
}

/// What must be the same before and after: the first VF's netdev with its names, what the PF holds of it, and the records of attachments.
fn snapshot(guest: &Guest, nic: Nic) -> Result<Value> {
    guest.run(&["udevadm", "settle", "--timeout=30"])?;
    let links: Vec<Value> = serde_json::from_str(&guest.run(&["/usr/sbin/ip", "-j", "-d", "link"])?)?;
    let pf = links.iter().find(|link| link["ifname"] == nic.netdev()).context("the PF has gone")?;
    let netdev = links.iter().find(|link| link["parentdev"] == VF);
    let netdev = netdev.map(|link| json!([link["ifname"], link["altnames"], link["address"], link["mtu"], link["flags"][0]]));
    let journals = guest.sh("ls /var/lib/cni/sriov/v1 2>/dev/null || true")?;
    Ok(json!({ "netdev": netdev, "held": pf["vfinfo_list"][0], "journals": journals.trim() }))
}

/// A network that asks for everything that the PF of an igb can hold.
fn network() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "sriov", "deviceID": VF, "vlan": 100, "vlanQoS": 3, "mac": "02:00:5e:10:00:01", "mtu": 1400,
        "spoofchk": "off", "trust": "on", "max_tx_rate": 200,
        "ipam": { "type": "static", "addresses": [{ "address": "203.0.113.1/24" }] },
    })
}

/// A call for container and namespace `pod`, of a program before the plugin's own arguments if there is one.
fn call<'a>(guest: &'a Guest, verb: &str, pod: &str, conf: &Value, before: &[&str]) -> GuestCommand<'a> {
    let mut conf = conf.clone();
    if verb == "GC" {
        conf["cni.dev/valid-attachments"] = json!([]);
    }
    let command = guest.command(&[before, &[PLUGIN]].concat()).stdin(conf.to_string()).env("CNI_COMMAND", verb).env("CNI_CONTAINERID", pod);
    command.env("CNI_NETNS", format!("/run/netns/{pod}")).env("CNI_IFNAME", "net1").env("CNI_PATH", "/opt/cni/bin")
}

fn succeed(guest: &Guest, verb: &str, pod: &str, conf: &Value) -> Result<Outcome> {
    let outcome = call(guest, verb, pod, conf, &[]).outcome()?;
    ensure!(outcome.success(), "{verb} of {pod}: {outcome}");
    Ok(outcome)
}

/// A call that is killed before system call `at`; 0 is never.
fn traced(guest: &Guest, verb: &str, at: usize) -> Result<Trace> {
    let outcome = call(guest, verb, "a", &network(), &[TRACER, "/run/trace.json", &at.to_string()]).outcome()?;
    ensure!(outcome.success(), "{verb} that is killed before call {at}: {outcome}");
    Trace::of_report(&guest.read("/run/trace.json")?, outcome.text())
}

/// Whether a call could be killed before system call `at`: one whose waits end sooner than those of the `whole` one makes fewer calls, and may
/// have ended by then.
fn kill(guest: &Guest, verb: &str, at: usize, whole: usize) -> Result<bool> {
    let trace = traced(guest, verb, at)?;
    let Some(exit) = trace.exit else { return Ok(true) };
    let made = trace.calls.len();
    ensure!(
        exit == 0 && made < at && at * 10 > whole * 9,
        "{verb} made {made} calls, was to be killed before call {at}, and ended with {exit}: {}",
        trace.output
    );
    Ok(false)
}

/// Kills `verb` at samples of the boundaries after messages and file operations, each verb cleaning up in turn.
fn killed(lab: &Lab, verb: &str) -> Result<()> {
    let (guest, nic) = first(lab)?;
    let before = snapshot(guest, nic)?;
    let prepare = || if verb == "DEL" { succeed(guest, "ADD", "a", &network()).map(drop) } else { Ok(()) };
    prepare()?;
    let whole = traced(guest, verb, 0)?;
    ensure!(whole.exit == Some(0), "{}", whole.output);
    if verb == "ADD" {
        succeed(guest, "DEL", "a", &network())?;
    }
    ensure!(snapshot(guest, nic)? == before, "an undisturbed {verb}");
    let places = whole.after_lasting_calls();
    ensure!(places.len() > SAMPLES, "{verb} makes only {} calls that last: {:?}", places.len(), whole.calls);
    for sample in 0..SAMPLES {
        // The last ones first: what is done by then is the most that can be left.
        let at = places[places.len() - 1 - sample * places.len() / SAMPLES];
        let cleaner = ["DEL", "GC", "ADD"][sample % 3];
        let what = || format!("{cleaner} after a {verb} that was killed before call {at} of {}", whole.calls.len());
        prepare()?;
        if !kill(guest, verb, at, whole.calls.len())? {
            // It came to its end before; the first of the places is reached by each.
            succeed(guest, "DEL", "a", &network())?;
            prepare()?;
            ensure!(kill(guest, verb, places[0], whole.calls.len())?, "{}: nor before call {}", what(), places[0]);
        }
        succeed(guest, cleaner, "a", &network()).with_context(what)?;
        if cleaner == "ADD" {
            let held = snapshot(guest, nic)?["held"].clone();
            ensure!(held["vlan_list"][0]["vlan"] == 100 && held["address"] == "02:00:5e:10:00:01", "{}: {held}", what());
            succeed(guest, "DEL", "a", &network()).with_context(what)?;
        }
        let after = snapshot(guest, nic)?;
        ensure!(after == before, "{}: {after} and was {before}", what());
    }
    Ok(())
}

fn an_add_killed_between_its_messages_is_cleaned_up(lab: &mut Lab) -> Result<()> {
    killed(lab, "ADD")
}

fn a_del_killed_between_its_messages_is_cleaned_up(lab: &mut Lab) -> Result<()> {
    killed(lab, "DEL")
}

/// An IPAM plugin whose DEL waits for a file.
const SLOW_IPAM: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "203.0.113.9/24"}]}' ;;
DEL) : > /run/slow.called; while [ ! -e /run/slow.go ]; do /bin/busybox sleep 0.1; done ;;
esac
"#;

fn a_del_that_is_slow_in_ipam_leaves_the_settings_of_the_next_pod(lab: &mut Lab) -> Result<()> {
    let (guest, nic) = first(lab)?;
    let before = snapshot(guest, nic)?;
    guest.write("/opt/cni/bin/slow-ipam", SLOW_IPAM.as_bytes(), 0o755)?;
    let mut slow = network();
    slow["ipam"] = json!({ "type": "slow-ipam" });
    succeed(guest, "ADD", "a", &slow)?;
    let next = json!({ "cniVersion": "1.1.0", "name": "net", "type": "sriov", "deviceID": VF, "vlan": 200, "spoofchk": "on" });
    std::thread::scope(|scope| {
        let del = scope.spawn(|| succeed(guest, "DEL", "a", &slow));
        let called = || guest.read("/run/slow.called").map(Some);
        let added = guest.poll(Instant::now() + Duration::from_secs(30), "DEL asks IPAM", called).and_then(|_| succeed(guest, "ADD", "b", &next));
        guest.write("/run/slow.go", b"", 0o644)?;
        del.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        added
    })?;
    let during = snapshot(guest, nic)?;
    ensure!(during["held"]["vlan_list"][0]["vlan"] == 200 && during["held"]["trust"] == false, "{during}");
    ensure!(during["netdev"] == Value::Null && during["journals"] == format!("{VF}.json"), "{during}");
    succeed(guest, "DEL", "b", &next)?;
    assert_eq!(snapshot(guest, nic)?, before);
    Ok(())
}

fn of_two_plugins_that_race_for_a_vf_one_wins(lab: &mut Lab) -> Result<()> {
    let (guest, nic) = first(lab)?;
    let before = snapshot(guest, nic)?;
    let network = |pod: &str| {
        let mut network = network();
        network["vlan"] = json!(if pod == "a" { 101 } else { 102 });
        network
    };
    for _ in 0..3 {
        let outcomes = std::thread::scope(|scope| {
            let adds = ["a", "b"].map(|pod| scope.spawn(move || call(guest, "ADD", pod, &network(pod), &[]).outcome()));
            adds.map(|add| add.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let [a, b] = outcomes;
        let (a, b) = (a?, b?);
        ensure!(a.success() != b.success(), "{a}\n{b}");
        let (loser, vlan) = if a.success() { (&b, 101) } else { (&a, 102) };
        let refusal: Value = serde_json::from_slice(&loser.stdout).with_context(|| loser.to_string())?;
        ensure!(refusal["code"] == 11, "{refusal}");
        let during = snapshot(guest, nic)?;
        ensure!(during["held"]["vlan_list"][0]["vlan"] == vlan, "{during}");
        for pod in ["a", "b"] {
            succeed(guest, "DEL", pod, &network(pod))?;
        }
        assert_eq!(snapshot(guest, nic)?, before);
    }
    Ok(())
}

fn cnitool_drives_each_verb(lab: &mut Lab) -> Result<()> {
    let (guest, nic) = first(lab)?;
    let before = snapshot(guest, nic)?;
    let mut plugin = network();
    for of_the_list in ["cniVersion", "name"] {
        plugin.as_object_mut().context("an object")?.remove(of_the_list);
    }
    let list = json!({ "cniVersion": "1.1.0", "name": "tool-net", "plugins": [plugin] });
    guest.write("/run/cnitool/10-net.conflist", list.to_string().as_bytes(), 0o644)?;
    let tool = |verb: &str| {
        let command = guest.command(&["/opt/cni/bin/cnitool", verb, "tool-net", "/run/netns/a"]);
        let command = command.env("NETCONFPATH", "/run/cnitool").env("CNI_PATH", "/opt/cni/bin").env("CNI_IFNAME", "net1");
        command.output()
    };
    tool("status")?;
    let result: Value = serde_json::from_str(&tool("add")?)?;
    ensure!(result["interfaces"][0]["mac"] == "02:00:5e:10:00:01" && result["interfaces"][0]["pciID"] == VF, "{result}");
    ensure!(result["cniVersion"] == "1.1.0" && result["ips"][0]["address"] == "203.0.113.1/24", "{result}");
    tool("check")?;
    tool("del")?;
    ensure!(snapshot(guest, nic)? == before, "after del");
    tool("add")?;
    // It hands no list of valid attachments to GC, after a DEL for each that it remembers. A GC that took that for "none is valid" would take
    // VFs from pods of other runtimes.
    let refused = format!("{:#}", tool("gc").err().context("GC without a list must be refused")?);
    ensure!(refused.contains("cni.dev/valid-attachments is missing"), "{refused}");
    ensure!(snapshot(guest, nic)? == before, "after gc");
    Ok(())
}
