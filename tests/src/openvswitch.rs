//! I/O: a real Open vSwitch whose socket is below a folder: Debian's database server, and its daemon with the datapath of user space in the network
//! namespace of the thread that starts it.
//!
//! What does not live here: what is made in it (`netns_bridges`, `apiserver_daemon`).
//!
//! Invariant: its processes end with this value and with the thread that started them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sriov_config_daemon::ovsdb::Ovsdb;

use crate::lab::artifacts::Artifacts;

const SOON: Duration = Duration::from_secs(20);
const SERVER: &str = "ovsdb-server";
const SWITCH: &str = "ovs-vswitchd";

/// A database, and perhaps a switch.
#[derive(Debug)]
pub struct OpenVswitch {
    root: PathBuf,
    /// Of its files, below the root.
    folder: &'static str,
    running: BTreeMap<&'static str, Child>,
    artifacts: Artifacts,
}

impl Drop for OpenVswitch {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl OpenVswitch {
    /// A database in which nothing is, not even a switch, with its socket `db.sock` in `folder` below `root`.
    pub fn new(root: &Path, folder: &'static str) -> Result<Self> {
        let ovs = Self { root: root.to_owned(), folder, running: BTreeMap::new(), artifacts: Artifacts::load()? };
        fs::create_dir_all(ovs.folder())?;
        let created = Command::new(ovs.artifacts.program("ovsdb-tool")?)
            .arg("create")
            .args([ovs.folder().join("conf.db"), ovs.artifacts.program("vswitch.ovsschema")?.into()])
            .status()?;
        ensure!(created.success(), "ovsdb-tool: {created}");
        let mut ovs = ovs;
        ovs.start_database()?;
        Ok(ovs)
    }

    fn folder(&self) -> PathBuf {
        self.root.join(self.folder)
    }

    /// By what a program with the same root finds it.
    pub fn socket(&self) -> String {
        format!("unix:///{}/db.sock", self.folder)
    }

    /// Starts the database with what it had.
    pub fn start_database(&mut self) -> Result<()> {
        let remote = format!("--remote=punix:{}", self.folder().join("db.sock").display());
        self.start(SERVER, &[self.folder().join("conf.db").display().to_string(), remote])?;
        let deadline = Instant::now() + SOON;
        while let Err(error) = self.transact(vec![json!({ "op": "select", "table": "Bridge", "where": [] })]) {
            if Instant::now() > deadline {
                bail!("the database does not answer: {error:#}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// As an upgrade of the package does, or a crash.
    pub fn stop_database(&mut self) -> Result<()> {
        let mut server = self.running.remove(SERVER).context("it does not run")?;
        server.kill()?;
        server.wait()?;
        // What a killed server leaves is in the next one's way.
        fs::remove_file(self.folder().join("db.sock"))?;
        Ok(())
    }

    /// What `ovs-ctl` does at boot.
    pub fn init(&self) -> Result<()> {
        self.transact(vec![json!({ "op": "insert", "table": "Open_vSwitch", "row": {} })]).map(drop)
    }

    /// What `ovs-ctl` does at boot, and the daemon.
    pub fn start_switch(&mut self) -> Result<()> {
        self.init()?;
        let remote = format!("unix:{}", self.folder().join("db.sock").display());
        self.start(SWITCH, &[remote, "--disable-system".to_owned()])
    }

    fn start(&mut self, program: &'static str, arguments: &[String]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log(program))?;
        // The kernel ends it when this thread ends, however the test does.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", &self.artifacts.program(program)?]).args(arguments).args(["-vsyslog:off", "-vconsole:warn"]);
        command.arg(format!("--unixctl={}", self.folder().join(format!("{program}.ctl")).display())).env("OVS_RUNDIR", self.folder());
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context(program.to_owned())?;
        self.running.insert(program, child);
        Ok(())
    }

    fn log(&self, program: &str) -> PathBuf {
        self.folder().join(format!("{program}.log"))
    }

    /// What its programs said.
    pub fn logs(&self) -> String {
        [SERVER, SWITCH].map(|program| fs::read_to_string(self.log(program)).unwrap_or_default()).concat()
    }

    /// As an administrator.
    pub fn transact(&self, operations: Vec<Value>) -> Result<Vec<Value>> {
        Ok(Ovsdb::new(&self.root, &self.socket()).open(SOON)?.transact(operations)?)
    }

    /// A column of the row with this name.
    pub fn column(&self, table: &str, name: &str, column: &str) -> Result<Value> {
        let answers = self.transact(vec![json!({ "op": "select", "table": table, "where": [["name", "==", name]], "columns": [column] })])?;
        let rows = answers[0]["rows"].as_array().context("no rows")?;
        ensure!(rows.len() == 1, "{} rows of {name} in {table}", rows.len());
        Ok(rows[0][column].clone())
    }

    /// As `ovs-vsctl add-br`, of the datapath of user space.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        let row = json!({ "name": name, "datapath_type": "netdev" });
        let insert = json!({ "op": "insert", "table": "Bridge", "uuid-name": "b", "row": row });
        self.transact(vec![insert, change(&json!(["bridges", "insert", ["set", [["named-uuid", "b"]]]]))]).map(drop)
    }

    /// As `ovs-vsctl del-br`.
    pub fn delete_bridge(&self, name: &str) -> Result<()> {
        let row = self.column("Bridge", name, "_uuid")?;
        self.transact(vec![change(&json!(["bridges", "delete", ["set", [row]]]))]).map(drop)
    }

    /// As `ovs-vsctl set Bridge <name> external_ids:<key>=<value>`.
    pub fn set_external_id(&self, bridge: &str, key: &str, value: &str) -> Result<()> {
        let mutations = json!([["external_ids", "delete", ["set", [key]]], ["external_ids", "insert", ["map", [[key, value]]]]]);
        self.transact(vec![json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]], "mutations": mutations })]).map(drop)
    }
}

fn change(mutation: &Value) -> Value {
    json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [mutation, ["next_cfg", "+=", 1]] })
}
