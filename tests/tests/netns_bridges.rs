//! I/O: the config daemon's bridges in a real Open vSwitch: Debian's database server and its daemon with the datapath of user space, in a network
//! namespace of their own, where a veth stands for the netdev of a PF. Tier 1: needs root, /dev/net/tun and the lab's build.
//!
//! What is real: the database, its schema and constraints, the daemon that makes bridges and says what is wrong. What is not: the PF and its VFs, which are
//! values of a golden case of the plan, and hardware offload.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::machine::Machine as _;
use sriov_config_daemon::machine::linux::Linux;
use sriov_config_daemon::machine::ovs::Ovs;
use sriov_config_daemon::observed::Observed;
use sriov_config_daemon::ovsdb::{DEFAULT_SOCKET, Ovsdb};
use sriov_config_daemon::plan::{Plan, plan};
use sriov_config_daemon::status::{Phase, Report, status};
use sriov_config_daemon::store::Store;
use sriov_host::netlink::Route;
use sriov_tests::cni::as_host;
use sriov_tests::lab::artifacts::{Artifacts, workspace};
use tempfile::TempDir;

/// A PF in switchdev mode with two VFs, as it should be.
const CASE: &str = "config-daemon/testdata/plan/switchdev_already_right";
const BRIDGE: &str = "br-0000_01_00.0";
const UPLINK: &str = "ens1f0";
const SOON: Duration = Duration::from_secs(20);

/// A machine with Open vSwitch. Its network namespace is that of the thread that made it.
struct Bench {
    root: TempDir,
    machine: Linux,
    running: Vec<Child>,
    artifacts: Artifacts,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in self.running.iter_mut().rev() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Bench {
    /// With a database in which nothing is, not even a switch.
    fn new() -> Result<Self> {
        let (root, artifacts) = (tempfile::tempdir()?, Artifacts::load()?);
        fs::create_dir_all(root.path().join("run/openvswitch"))?;
        fs::create_dir_all(root.path().join("sys/bus/pci/devices"))?;
        fs::create_dir_all(root.path().join("sys/class/net"))?;
        let store = Store::new(root.path(), root.path().join("pools.json"));
        let machine = Linux::new(root.path(), store).with_bridges(Ovs::new(root.path(), DEFAULT_SOCKET));
        let mut bench = Self { root, machine, running: Vec::new(), artifacts };
        let created = Command::new(bench.artifacts.program("ovsdb-tool")?)
            .arg("create")
            .args([bench.folder().join("conf.db"), bench.artifacts.program("vswitch.ovsschema")?.into()])
            .status()?;
        ensure!(created.success(), "ovsdb-tool: {created}");
        let remote = format!("--remote=punix:{}", bench.folder().join("db.sock").display());
        bench.start("ovsdb-server", &[bench.folder().join("conf.db").display().to_string(), remote])?;
        until("the database answers", || bench.database().map(drop))?;
        Ok(bench)
    }

    /// The folder that Open vSwitch has for itself.
    fn folder(&self) -> PathBuf {
        self.root.path().join("run/openvswitch")
    }

    fn start(&mut self, program: &str, arguments: &[String]) -> Result<()> {
        let log = File::create(self.root.path().join(format!("{program}.log")))?;
        // The kernel ends it when this thread ends, however the test does.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", &self.artifacts.program(program)?]).args(arguments).args(["-vsyslog:off", "-vconsole:warn"]);
        command.arg(format!("--unixctl={}", self.folder().join(format!("{program}.ctl")).display())).env("OVS_RUNDIR", self.folder());
        self.running.push(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context(program.to_owned())?);
        Ok(())
    }

    /// What `ovs-ctl` does at boot, and the daemon.
    fn start_switch(&mut self) -> Result<()> {
        self.transact(vec![json!({ "op": "insert", "table": "Open_vSwitch", "row": {} })])?;
        let remote = format!("unix:{}", self.folder().join("db.sock").display());
        self.start("ovs-vswitchd", &[remote, "--disable-system".to_owned()])
    }

    fn database(&self) -> Result<Vec<Value>> {
        self.transact(vec![json!({ "op": "select", "table": "Bridge", "where": [] })])
    }

    /// As an administrator.
    fn transact(&self, operations: Vec<Value>) -> Result<Vec<Value>> {
        Ok(Ovsdb::new(self.root.path(), DEFAULT_SOCKET).open(SOON)?.transact(operations)?)
    }

    /// A column of the bridge, or of its uplink.
    fn column(&self, table: &str, name: &str, column: &str) -> Result<Value> {
        let answers = self.transact(vec![json!({ "op": "select", "table": table, "where": [["name", "==", name]], "columns": [column] })])?;
        let rows = answers[0]["rows"].as_array().context("no rows")?;
        ensure!(rows.len() == 1, "{} rows of {name} in {table}", rows.len());
        Ok(rows[0][column].clone())
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

fn logs(bench: &Bench) -> String {
    let read = |name: &str| fs::read_to_string(Path::new(bench.root.path()).join(name)).unwrap_or_default();
    read("ovsdb-server.log") + &read("ovs-vswitchd.log")
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
        bench.start_switch()?;
        // Somebody's own bridge.
        bench.transact(vec![
            json!({ "op": "insert", "table": "Bridge", "uuid-name": "b", "row": { "name": "br-ex", "datapath_type": "netdev" } }),
            json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["bridges", "insert", ["set", [["named-uuid", "b"]]]]] }),
        ])?;
        let done = bench.settle(&first).with_context(|| logs(&bench))?;
        ensure!(done == [format!("0000:01:00.0: make Open vSwitch bridge {BRIDGE} with uplink {UPLINK}")], "{done:?}");
        ensure!(link(BRIDGE)?.is_some() && link(UPLINK)? == Some(1400), "{:?} {:?}", link(BRIDGE)?, link(UPLINK)?);
        ensure!(bench.kept()?[BRIDGE]["uplinks"][0]["name"] == UPLINK, "{}", bench.kept()?);
        settings_change_under_traffic(&bench)?;
        another_kind_waits_for_pods(&bench)?;
        ensure!(bench.settle(&wish("", "")?)? == [format!("0000:01:00.0: remove Open vSwitch bridge {BRIDGE}")]);
        ensure!(link(BRIDGE)?.is_none() && bench.kept()? == json!({}), "{}", bench.kept()?);
        ensure!(bench.column("Bridge", "br-ex", "name")? == "br-ex", "the stranger's bridge");
        Ok(())
    })
}

fn settings_change_under_traffic(bench: &Bench) -> Result<()> {
    let row = bench.column("Bridge", BRIDGE, "_uuid")?;
    let set = |key: &str, value: &str| {
        let mutations = json!([["external_ids", "delete", ["set", [key]]], ["external_ids", "insert", ["map", [[key, value]]]]]);
        bench.transact(vec![json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", BRIDGE]], "mutations": mutations })])
    };
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
    ensure!(bench.column("Bridge", BRIDGE, "external_ids")? == json!(["map", [["admin", "mine"], ["b", "2"]]]));
    ensure!(link(UPLINK)? == Some(1450), "{:?}", link(UPLINK)?);
    ensure!(bench.column("Bridge", BRIDGE, "_uuid")? == row, "it is the same bridge");
    // An administrator takes the uplink out.
    let ports = bench.column("Bridge", BRIDGE, "ports")?;
    let port = bench.column("Port", UPLINK, "_uuid")?;
    let mutations = json!([["ports", "delete", ["set", [port]]]]);
    bench.transact(vec![json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", BRIDGE]], "mutations": mutations })])?;
    bench.settle(&wish("{datapathType: netdev, externalIDs: {b: '2'}}", "{mtuRequest: 1450}")?)?;
    ensure!(bench.column("Bridge", BRIDGE, "ports")? != ports, "a new port");
    ensure!(bench.column("Bridge", BRIDGE, "_uuid")? == row, "of the same bridge");
    Ok(())
}

fn another_kind_waits_for_pods(bench: &Bench) -> Result<()> {
    let secure = wish("{datapathType: netdev, failMode: secure}", "{}")?;
    let waits = plan(&secure, &bench.observe(Some("pod red/web"))?);
    ensure!(waits.steps.is_empty() && waits.disruption.as_str() == "EvictPods", "{waits}");
    let row = bench.column("Bridge", BRIDGE, "_uuid")?;
    ensure!(bench.settle(&secure)?.len() == 2, "removed and made");
    ensure!(bench.column("Bridge", BRIDGE, "_uuid")? != row && bench.column("Bridge", BRIDGE, "fail_mode")? == "secure");
    Ok(())
}

#[test]
fn what_open_vswitch_says_is_told_and_cured_by_time() -> Result<()> {
    as_host(|| {
        let mut bench = Bench::new()?;
        bench.start_switch()?;
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
        bench.transact(vec![json!({ "op": "insert", "table": "Open_vSwitch", "row": {} })])?;
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
