//! I/O: the config daemon's bridges in a real Open vSwitch: Debian's database server and its daemon with the datapath of user space, in a network
//! namespace of their own, where a veth stands for the netdev of a PF. Tier 1: needs root, /dev/net/tun and the lab's build.
//!
//! What is real: the database, its schema and constraints, the daemon that makes bridges and says what is wrong. What is not: the PF and its VFs, which are
//! values of a golden case of the plan, and hardware offload.

use std::fs;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sriov_config_daemon::bridges::followed;
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::machine::Machine as _;
use sriov_config_daemon::machine::linux::Linux;
use sriov_config_daemon::machine::ovs::Ovs;
use sriov_config_daemon::observed::Observed;
use sriov_config_daemon::ovsdb::DEFAULT_SOCKET;
use sriov_config_daemon::ovsdb::follow::Names;
use sriov_config_daemon::plan::{Plan, plan};
use sriov_config_daemon::status::{Phase, Report, status};
use sriov_config_daemon::store::Store;
use sriov_host::netlink::Route;
use sriov_tests::cni::as_host;
use sriov_tests::lab::artifacts::{product, workspace};
use sriov_tests::openvswitch::OpenVswitch;
use tempfile::TempDir;
use tokio::sync::watch;

/// A PF in switchdev mode with two VFs, as it should be.
const CASE: &str = "config-daemon/testdata/plan/switchdev_already_right";
const BRIDGE: &str = "br-0000_01_00.0";
const UPLINK: &str = "ens1f0";
const SOON: Duration = Duration::from_secs(20);

/// A machine with Open vSwitch. Its network namespace is that of the thread that made it.
struct Bench {
    root: TempDir,
    machine: Linux,
    ovs: OpenVswitch,
}

impl Bench {
    /// With a database in which nothing is, not even a switch.
    fn new() -> Result<Self> {
        Self::with_socket_in("run/openvswitch")
    }

    fn with_socket_in(folder: &'static str) -> Result<Self> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join("sys/bus/pci/devices"))?;
        fs::create_dir_all(root.path().join("sys/class/net"))?;
        let ovs = OpenVswitch::new(root.path(), folder)?;
        let store = Store::new(root.path(), root.path().join("pools.json"));
        let socket = if folder == "run/openvswitch" { DEFAULT_SOCKET.to_owned() } else { ovs.socket() };
        let machine = Linux::new(root.path(), store).with_bridges(Ovs::new(root.path(), &socket));
        Ok(Self { root, machine, ovs })
    }

    /// The PF of the golden case with the bridges of this machine; `user` has its second VF.
    fn observe(&self, user: Option<&str>) -> Result<Observed> {
        let mut observed: Observed = serde_saphyr::from_str(&fs::read_to_string(workspace().join(CASE).join("observed.yaml"))?)?;
        observed.add_bridges(self.machine.observe()?.bridges.context("bridges are not looked at")?);
        if let Some(user) = user {
            observed.vfs_in_use.insert("0000:01:00.3".parse()?, user.to_owned());
        }
        Ok(observed)
    }

    fn plan(&self, wish: &Desired) -> Result<Plan> {
        Ok(plan(wish, &self.observe(None)?))
    }

    /// One round as the daemon makes it; what it did.
    fn settle(&self, wish: &Desired) -> Result<Vec<String>> {
        let planned = self.plan(wish)?;
        for step in &planned.steps {
            self.machine.perform(step).with_context(|| step.to_string())?;
        }
        let left = self.plan(wish)?;
        ensure!(left.is_empty(), "after {planned}is left: {left}");
        Ok(planned.steps.iter().map(ToString::to_string).collect())
    }

    fn kept(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.root.path().join("etc/sriov-operator/managed-ovs-bridges.json"))?)?)
    }
}

/// The case's wish, with a bridge of these settings.
fn wish(bridge: &str, interface: &str) -> Result<Desired> {
    let mut text = fs::read_to_string(workspace().join(CASE).join("desired.yaml"))?;
    if !bridge.is_empty() {
        let bridges = format!(
            "bridges: {{ovs: [{{name: {BRIDGE}, bridge: {bridge}, uplinks: [{{pciAddress: '0000:01:00.0', name: {UPLINK}, interface: {interface}}}]}}]}}\n"
        );
        text.push_str(&bridges);
    }
    Ok(Desired::read(&serde_saphyr::from_str(&text)?))
}

fn until(what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        match check() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => bail!("{what}, within {SOON:?}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn add_uplink() -> Result<()> {
    let route = Route::open()?;
    route.add_link_veth(UPLINK, "wire")?;
    Ok(())
}

fn link(name: &str) -> Result<Option<u32>> {
    Ok(Route::open()?.link_by_name(name)?.map(|link| link.netdev.mtu))
}

#[test]
fn bridges_are_made_corrected_and_removed_and_nobody_elses() -> Result<()> {
    as_host(|| {
        add_uplink()?;
        let mut bench = Bench::new()?;
        let first = wish("{datapathType: netdev, externalIDs: {a: '1'}}", "{mtuRequest: 1400}")?;
        let step = bench.plan(&first)?.steps.remove(0);
        let said = bench.machine.perform(&step).expect_err("a database without a switch").to_string();
        ensure!(said.contains("has no switch"), "{said}");
        bench.ovs.start_switch()?;
        // Somebody's own bridge.
        bench.ovs.add_bridge("br-ex")?;
        let done = bench.settle(&first).with_context(|| bench.ovs.logs())?;
        ensure!(done == [format!("0000:01:00.0: make Open vSwitch bridge {BRIDGE} with uplink {UPLINK}")], "{done:?}");
        ensure!(link(BRIDGE)?.is_some() && link(UPLINK)? == Some(1400), "{:?} {:?}", link(BRIDGE)?, link(UPLINK)?);
        ensure!(bench.kept()?[BRIDGE]["uplinks"][0]["name"] == UPLINK, "{}", bench.kept()?);
        settings_change_under_traffic(&bench)?;
        another_kind_waits_for_pods(&bench)?;
        ensure!(bench.settle(&wish("", "")?)? == [format!("0000:01:00.0: remove Open vSwitch bridge {BRIDGE}")]);
        ensure!(link(BRIDGE)?.is_none() && bench.kept()? == json!({}), "{}", bench.kept()?);
        ensure!(bench.ovs.column("Bridge", "br-ex", "name")? == "br-ex", "the stranger's bridge");
        Ok(())
    })
}

fn settings_change_under_traffic(bench: &Bench) -> Result<()> {
    let row = bench.ovs.column("Bridge", BRIDGE, "_uuid")?;
    let set = |key: &str, value: &str| bench.ovs.set_external_id(BRIDGE, key, value);
    let first = wish("{datapathType: netdev, externalIDs: {a: '1'}}", "{mtuRequest: 1400}")?;
    set("admin", "mine")?;
    ensure!(bench.plan(&first)?.is_empty(), "the administrator's keys are none of ours");
    let observed = bench.observe(None)?;
    let report = Report { observed: &observed, plan: &Plan::default(), phase: &Phase::Settled(vec![]), generation: None };
    let told = status(report, &[], &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)).bridges;
    let told = json!(told.context("no bridges in the status")?);
    ensure!(told["ovs"][0]["bridge"]["externalIDs"] == json!({ "a": "1" }), "only keys of ours: {told}");
    ensure!(told["ovs"][0]["uplinks"][0]["interface"]["mtuRequest"] == 1400, "{told}");
    set("a", "changed")?;
    ensure!(bench.settle(&first)?.len() == 1, "what was changed is changed back");
    // A key leaves the policy, another comes.
    bench.settle(&wish("{datapathType: netdev, externalIDs: {b: '2'}}", "{mtuRequest: 1450}")?)?;
    ensure!(bench.ovs.column("Bridge", BRIDGE, "external_ids")? == json!(["map", [["admin", "mine"], ["b", "2"]]]));
    ensure!(link(UPLINK)? == Some(1450), "{:?}", link(UPLINK)?);
    ensure!(bench.ovs.column("Bridge", BRIDGE, "_uuid")? == row, "it is the same bridge");
    // An administrator takes the uplink out.
    let ports = bench.ovs.column("Bridge", BRIDGE, "ports")?;
    let port = bench.ovs.column("Port", UPLINK, "_uuid")?;
    let mutations = json!([["ports", "delete", ["set", [port]]]]);
    bench.ovs.transact(vec![json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", BRIDGE]], "mutations": mutations })])?;
    bench.settle(&wish("{datapathType: netdev, externalIDs: {b: '2'}}", "{mtuRequest: 1450}")?)?;
    ensure!(bench.ovs.column("Bridge", BRIDGE, "ports")? != ports, "a new port");
    ensure!(bench.ovs.column("Bridge", BRIDGE, "_uuid")? == row, "of the same bridge");
    Ok(())
}

fn another_kind_waits_for_pods(bench: &Bench) -> Result<()> {
    let secure = wish("{datapathType: netdev, failMode: secure}", "{}")?;
    let waits = plan(&secure, &bench.observe(Some("pod red/web"))?);
    ensure!(waits.steps.is_empty() && waits.disruption.as_str() == "EvictPods", "{waits}");
    let row = bench.ovs.column("Bridge", BRIDGE, "_uuid")?;
    ensure!(bench.settle(&secure)?.len() == 2, "removed and made");
    ensure!(bench.ovs.column("Bridge", BRIDGE, "_uuid")? != row && bench.ovs.column("Bridge", BRIDGE, "fail_mode")? == "secure");
    Ok(())
}

#[test]
fn what_open_vswitch_says_is_told_and_cured_by_time() -> Result<()> {
    as_host(|| {
        let mut bench = Bench::new()?;
        bench.ovs.start_switch()?;
        let wish = wish("{datapathType: netdev}", "{}")?;
        let step = bench.plan(&wish)?.steps.remove(0);
        let said = bench.machine.perform(&step).expect_err("there is no such netdev").to_string();
        ensure!(said.contains(UPLINK) && said.contains("No such device"), "{said}");
        let told = bench.plan(&wish)?.to_string();
        ensure!(told.contains("BridgeUnavailable") && told.contains(BRIDGE) && told.contains("No such device"), "{told}");
        // The netdev comes: Open vSwitch takes it by itself.
        add_uplink()?;
        until("the bridge is as asked", || {
            let left = bench.plan(&wish)?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
    })
}

#[test]
fn a_switch_that_does_not_run_is_no_success() -> Result<()> {
    as_host(|| {
        let bench = Bench::new()?;
        bench.ovs.init()?;
        let wish = wish("{}", "{}")?;
        let step = bench.plan(&wish)?.steps.remove(0);
        let start = Instant::now();
        let said = bench.machine.perform(&step).expect_err("nobody carries it out").to_string();
        ensure!(said.contains("ovs-vswitchd has not carried it out"), "{said}");
        ensure!(start.elapsed() < SOON, "{:?}", start.elapsed());
        let told = bench.plan(&wish)?.to_string();
        ensure!(told.contains("ovs-vswitchd has not made it: is it running?"), "{told}");
        Ok(())
    })
}

/// Changes of what has these names, as the daemon follows them.
fn follow(bench: &Bench, names: Names) -> Result<(watch::Sender<Names>, Receiver<()>)> {
    let (give, take) = watch::channel(names);
    let (told, changes) = channel();
    let ovsdb = bench.machine.ovsdb().context("bridges are not managed")?.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || runtime.block_on(ovsdb.follow(&followed(), take, || _ = told.send(()))));
    Ok((give, changes))
}

/// Waits for a change, and until no more are told.
fn told(changes: &Receiver<()>, what: &str) -> Result<()> {
    changes.recv_timeout(SOON).with_context(|| format!("{what} is not told within {SOON:?}"))?;
    while changes.recv_timeout(Duration::from_millis(300)).is_ok() {}
    Ok(())
}

#[test]
fn what_somebody_does_to_a_bridge_is_told_at_once_and_undone() -> Result<()> {
    as_host(|| {
        add_uplink()?;
        let mut bench = Bench::new()?;
        bench.ovs.start_switch()?;
        bench.ovs.add_bridge("br-ex")?;
        let wish = wish("{datapathType: netdev, externalIDs: {a: '1'}}", "{}")?;
        bench.settle(&wish)?;
        let observed = bench.observe(None)?;
        let wanted = wish.bridges.iter().filter_map(|(pf, wanted)| Some((*pf, wanted.as_ref().ok()?)));
        let names = observed.bridges.as_ref().context("bridges are not looked at")?.names(wanted, &observed.inventory.pfs);
        ensure!(names == [BRIDGE.to_owned(), UPLINK.to_owned()].into(), "{names:?}");
        let (_names, changes) = follow(&bench, names)?;
        told(&changes, "the first connection")?;

        bench.ovs.set_external_id(BRIDGE, "a", "2")?;
        told(&changes, "another external id")?;
        ensure!(bench.settle(&wish)? == [format!("0000:01:00.0: correct the settings of Open vSwitch bridge {BRIDGE} with uplink {UPLINK}")]);
        told(&changes, "our own correction")?;
        bench.ovs.delete_bridge(BRIDGE)?;
        told(&changes, "the end of the bridge")?;
        ensure!(bench.machine.look_at_bridges()?.bridges.is_some_and(|bridges| !bridges.found.contains_key(BRIDGE)), "a look at bridges sees it");
        ensure!(bench.settle(&wish)? == [format!("0000:01:00.0: make Open vSwitch bridge {BRIDGE} with uplink {UPLINK}")]);
        told(&changes, "our own bridge")?;
        ensure!(bench.ovs.column("Bridge", BRIDGE, "external_ids")? == json!(["map", [["a", "1"]]]));

        bench.ovs.stop_database()?;
        let said = bench.plan(&wish)?.to_string();
        ensure!(said.contains("BridgeUnavailable"), "{said}");
        bench.ovs.start_database()?;
        told(&changes, "a database that was started anew")?;
        bench.ovs.delete_bridge(BRIDGE)?;
        told(&changes, "the end of the bridge in it")?;
        ensure!(bench.settle(&wish).with_context(|| bench.ovs.logs())?.len() == 1, "it is made again");
        told(&changes, "our own bridge")?;
        bench.ovs.set_external_id("br-ex", "of", "somebody")?;
        ensure!(changes.recv_timeout(Duration::from_secs(1)).is_err(), "somebody else's bridge wakes nobody");
        Ok(())
    })
}

/// The program as it is shipped, in this namespace.
fn program(bench: &Bench, arguments: &[&str], socket: Option<&str>) -> Result<(bool, String)> {
    let mut command = Command::new(product("sriov-config-daemon")?);
    command.arg(arguments[0]).arg("--root").arg(bench.root.path()).args(&arguments[1..]).env_clear();
    let output = command.envs(socket.map(|socket| ("OVSDB_SOCKET_PATH", socket))).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_program_touches_bridges_only_when_told_to_and_finds_the_database_that_it_is_told() -> Result<()> {
    const MANAGE: &str = "--manage-software-bridges";
    as_host(|| {
        add_uplink()?;
        let mut bench = Bench::with_socket_in("srv/switch")?;
        bench.ovs.start_switch()?;
        let wish = wish("{datapathType: netdev}", "{}")?;
        let socket = bench.ovs.socket();
        bench.settle(&wish).with_context(|| bench.ovs.logs())?;
        let is_there = || Ok::<_, anyhow::Error>(bench.ovs.column("Bridge", BRIDGE, "name").is_ok() && bench.kept()?.get(BRIDGE).is_some());
        let said = program(&bench, &["reset", "--ovs-socket-path", &socket], None)?;
        ensure!(said.0 && is_there()?, "with the gate off bridges stay as they are: {said:?}");
        let (done, said) = program(&bench, &["reset", MANAGE], None)?;
        ensure!(!done && said.contains("BridgeUnavailable") && said.contains("var/run/openvswitch/db.sock") && is_there()?, "{said}");
        // At boot nobody knows of Open vSwitch whether it runs yet: even a bridge that no policy asks for any more is the daemon's business.
        bench.machine.store().keep_wish(&serde_json::from_value(json!({ "policyRevision": "r1", "interfaces": [] }))?)?;
        let (done, said) = program(&bench, &["apply", "--systemd", MANAGE], Some(&socket))?;
        ensure!(done && is_there()?, "{said}");
        let (done, said) = program(&bench, &["reset", MANAGE], Some(&socket))?;
        ensure!(done && said.contains("1 of 1 steps done") && !is_there()?, "{said}");
        bench.settle(&wish).with_context(|| bench.ovs.logs())?;
        let (done, said) = program(&bench, &["reset", MANAGE, "--ovs-socket-path", &socket], Some("unix:///nowhere"))?;
        ensure!(done && said.contains("1 of 1 steps done") && !is_there()?, "{said}");
        Ok(())
    })
}
