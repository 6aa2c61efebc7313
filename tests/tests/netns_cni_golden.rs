//! I/O: attaching a netdev, one file of `sriov-cni/testdata/attach` a case: what is there before, what is asked, what ADD prints, what the container has
//! then, what is remembered for the way back; and always that CHECK agrees and that the netdev is as before after DEL, or after an ADD that failed. A veth stands for the
//! VF's netdev, in namespaces of each case's own. Needs root.
//!
//! What does not live here: what needs no namespace (`sriov-cni/tests/program.rs`), and attributes that a PF holds (emulated hardware).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sriov_cni::request::Command::{Add, Check, Del};
use sriov_host::netlink::{Link, LinkChange, Route};
use sriov_tests::cni::{Machine, NETDEV, Pod, as_host, host_link};

/// The text of a value with the words of a case put in the place of what each run has otherwise.
fn in_words(value: &Value, words: &[(&str, String)]) -> Result<Value> {
    let mut text = value.to_string();
    for (word, meaning) in words.iter().filter(|(_, meaning)| !meaning.is_empty()) {
        text = text.replace(meaning, word);
    }
    Ok(serde_json::from_str(&text)?)
}

fn prepare(machine: &Machine, before: &Value) -> Result<()> {
    let (route, link) = (Route::open()?, host_link(NETDEV)?);
    let asked = changes(before)?;
    route.change_link(link.netdev.ifindex, &asked)?;
    for name in before["alt_names"].as_array().into_iter().flatten() {
        route.add_alt_name(link.netdev.ifindex, name.as_str().context("a name")?)?;
    }
    before["shown_as"].as_str().map_or(Ok(()), |name| machine.netdev_is_now(name))
}

fn changes(asked: &Value) -> Result<LinkChange<'static>> {
    Ok(LinkChange {
        mtu: asked["mtu"].as_u64().map(u32::try_from).transpose()?,
        mac: asked["mac"].as_str().map(str::parse).transpose()?,
        up: asked["up"].as_bool(),
        ..LinkChange::default()
    })
}

/// What the container has under the name.
fn inside(pod: &Pod) -> Result<Value> {
    let Some(link) = pod.route()?.link_by_name("net1")? else { return Ok(Value::Null) };
    let addresses = pod.route()?.addresses(link.netdev.ifindex)?;
    // The kernel's own IPv6 address comes at some moment.
    let addresses: Vec<String> = addresses.iter().filter(|a| a.address.is_ipv4()).map(|a| format!("{}/{}", a.address, a.prefix)).collect();
    let Link { netdev, allmulti, promisc, .. } = link;
    Ok(json!({
        "name": netdev.name, "mac": netdev.mac, "mtu": netdev.mtu, "up": netdev.admin_up, "allmulti": allmulti, "promisc": promisc,
        "alt_names": netdev.alt_names, "addresses": addresses,
    }))
}

/// What the journal has of the netdev as it was.
fn remembered(machine: &Machine) -> Result<Value> {
    let [journal] = machine.journals().try_into().map_err(|found| anyhow::anyhow!("one journal is expected: {found:?}"))?;
    let journal: Value = serde_json::from_slice(&std::fs::read(machine.state().join("v1").join(journal))?)?;
    Ok(journal["original"]["netdev"].clone())
}

/// What differs from the case; empty where nothing does.
fn differences(case: &Value) -> Result<Vec<String>> {
    // A PF that is seen is asked for a MAC, and this one has no netdev.
    let machine = if case["without_pf"] == true { Machine::without_pf()? } else { Machine::new()? };
    let pod = Pod::new("c0ffee")?;
    prepare(&machine, &case["before"])?;
    if let Some(name) = case["pod"].as_str() {
        pod.route()?.add_link_veth(name, "peer")?;
    }
    let before = host_link(NETDEV)?;
    let mut conf = machine.conf(&case["asked"]);
    if conf["ipam"] == "@HOST-LOCAL@" {
        conf["ipam"] = machine.host_local();
    }
    let words = [
        ("@MAC@", before.netdev.mac.map(|mac| mac.to_string()).filter(|_| case["before"]["mac"].is_null()).unwrap_or_default()),
        ("@NETNS@", pod.path().display().to_string()),
        ("@PLUGINS@", machine.plugins.display().to_string()),
    ];
    let mut found = Vec::new();
    let mut expect = |what: &str, value: &Value, expected: &Value| -> Result<()> {
        let value = in_words(value, &words)?;
        found.extend((value != *expected).then(|| format!("{what}:\n  expected {expected}\n  found    {value}")));
        Ok(())
    };
    match machine.call(Add, &pod, &conf) {
        Ok(result) => {
            expect("ADD", &result.unwrap_or_default(), &case["ADD"])?;
            expect("inside", &inside(&pod)?, &case["inside"])?;
            expect("remembered", &remembered(&machine)?, &case["remembered"])?;
            if conf["cniVersion"] != "0.2.0" {
                machine.call(Check, &pod, &conf).context("CHECK")?;
            }
            if !case["meanwhile"].is_null() {
                pod.route()?.change_link(pod.link("net1")?.netdev.ifindex, &changes(&case["meanwhile"])?)?;
            }
            machine.call(Del, &pod, &conf).context("DEL")?;
        }
        Err(error) => expect("ADD", &error.to_json("1.1.0".parse()?), &case["ADD"])?,
    }
    let (mut before, mut after) = (before, host_link(NETDEV)?);
    // It comes back as another object of the kernel, with its names in whatever order.
    for link in [&mut before, &mut after] {
        (link.netdev.ifindex, link.netdev.carrier) = (0, false);
        link.netdev.alt_names.sort_unstable();
    }
    found.extend((after != before).then(|| format!("afterwards:\n  expected {before:?}\n  found    {after:?}")));
    found.extend((!machine.journals().is_empty() || !machine.leases().is_empty()).then(|| "something is left".to_owned()));
    Ok(found)
}

#[test]
fn each_attachment_is_as_its_case_says() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sriov-cni/testdata/attach");
    let mut files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(files.len() >= 15, "cases are missing: {}", files.len());
    let mut found = Vec::new();
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let case: Value = serde_json::from_slice(&std::fs::read(file)?).with_context(|| name.clone())?;
        let differs = std::sync::Mutex::new(Vec::new());
        as_host(|| {
            let told = differences(&case)?;
            differs.lock().map_err(|_| anyhow::anyhow!("the lock is poisoned"))?.extend(told);
            Ok(())
        })
        .with_context(|| name.clone())?;
        found.extend(differs.into_inner()?.into_iter().map(|text| format!("{name}: {text}")));
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
