//! I/O: the config daemon's commands that need no cluster, in a guest.
//!
//! What lives here: copying the program there, the form of a wish, reading what it prints. What does not: what is right (the tests).
//!
//! Invariants: the program is the one that the images hold; it runs as user 0 with the capabilities that its DaemonSet has, and no others.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sriov_host::inventory::{Inventory, Pf};

use super::Lab;
use super::artifacts::workspace;
use super::guest::{Guest, Outcome};
use super::topology::Nic;

/// Where the program is in a guest.
pub const PROGRAM: &str = "/usr/local/bin/sriov-config-daemon";

/// Where the program is that takes all capabilities away but some (`confined NAME,NAME.. PROGRAM ARGUMENT..`).
pub const CONFINED: &str = "/usr/local/bin/confined";

/// The operator's DaemonSets as they are shipped.
const DAEMON_SETS: &str = "operator/testdata/operator_config/defaults/expected.yaml";

/// Making VFs takes seconds each under emulation.
const LIMIT: Duration = Duration::from_mins(2);

/// The config daemon in one guest.
#[derive(Debug)]
pub struct ConfigDaemon<'a> {
    guest: &'a Guest,
    /// Where its program is there.
    program: &'a str,
    /// The capabilities that it has; all where it is compared with another program.
    capabilities: Option<String>,
}

/// What is wanted of one PF: a number of VFs in groups.
#[derive(Debug, Clone)]
pub struct Wish {
    interface: Value,
}

impl Wish {
    /// So many VFs on a PF, for nothing yet.
    pub fn vfs(nic: Nic, count: u8) -> Self {
        Self { interface: json!({ "pciAddress": nic.pci_address(), "name": nic.netdev(), "numVfs": count, "vfGroups": [] }) }
    }

    /// A range such as `0-1` of them for a driver kind, `netdevice` or `vfio-pci`.
    #[must_use]
    pub fn group(mut self, range: &str, device_type: &str) -> Self {
        let group = json!({ "vfRange": range, "deviceType": device_type, "resourceName": "pool", "policyName": format!("{device_type}-policy") });
        if let Some(groups) = self.interface["vfGroups"].as_array_mut() {
            groups.push(group);
        }
        self
    }

    /// The MTU of the PF and of every group so far.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.interface["mtu"] = json!(mtu);
        self.interface["vfGroups"].as_array_mut().into_iter().flatten().for_each(|group| group["mtu"] = json!(mtu));
        self
    }
}

impl<'a> ConfigDaemon<'a> {
    /// Copies the program into the guest.
    pub fn install(lab: &Lab, guest: &'a Guest) -> Result<Self> {
        lab.install(guest, "sriov-config-daemon", PROGRAM)?;
        lab.install(guest, "confined", CONFINED)?;
        Self::installed(guest)
    }

    /// Copies another build of the program into the guest, or another program that knows the same commands.
    pub fn install_program(guest: &'a Guest, program: &Path, to: &'a str) -> Result<Self> {
        guest.copy_program(program, to)?;
        Ok(Self { guest, program: to, capabilities: None })
    }

    /// The program that an earlier test installed.
    pub fn installed(guest: &'a Guest) -> Result<Self> {
        Ok(Self { guest, program: PROGRAM, capabilities: Some(capabilities()?) })
    }

    fn run(&self, arguments: &[&str], input: String) -> Result<Outcome> {
        let confined = self.capabilities.iter().flat_map(|capabilities| [CONFINED, capabilities]);
        let command: Vec<&str> = confined.chain([self.program]).chain(arguments.iter().copied()).collect();
        self.guest.command(&command).stdin(input).limit(LIMIT).outcome()
    }

    /// What the program sees of the machine.
    pub fn observe(&self) -> Result<Inventory> {
        let outcome = self.run(&["observe", "-o", "json"], String::new())?;
        serde_json::from_slice(&outcome.stdout).with_context(|| format!("observe: {outcome}"))
    }

    /// What it sees of one PF.
    pub fn pf(&self, nic: Nic) -> Result<Pf> {
        let found = self.observe()?.pfs.into_iter().find(|pf| pf.address.to_string() == nic.pci_address());
        found.with_context(|| format!("observe does not show the PF {}", nic.pci_address()))
    }

    /// What it would do, as it says it.
    pub fn plan(&self, wishes: &[Wish]) -> Result<String> {
        Ok(self.run(&["plan", "-f", "-"], node_state(wishes))?.text())
    }

    /// Does it; status 0 when all is done.
    pub fn apply(&self, wishes: &[Wish]) -> Result<Outcome> {
        self.run(&["apply", "-f", "-"], node_state(wishes))
    }

    /// Takes everything back.
    pub fn reset(&self) -> Result<Outcome> {
        self.run(&["reset"], String::new())
    }
}

/// The capabilities of the daemon's container, as its DaemonSet names them.
pub fn capabilities() -> Result<String> {
    let objects: Vec<Value> = serde_saphyr::from_str(&fs::read_to_string(workspace().join(DAEMON_SETS))?)?;
    let mut containers = objects.iter().filter_map(|object| object["spec"]["template"]["spec"]["containers"].as_array()).flatten();
    let daemon = containers.find(|container| container["name"] == "config-daemon").context("no container config-daemon")?;
    let added = daemon["securityContext"]["capabilities"]["add"].as_array().context("no capabilities")?;
    Ok(added.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","))
}

/// A SriovNetworkNodeState with these interfaces, as the operator writes it.
pub fn node_state(wishes: &[Wish]) -> String {
    let interfaces: Vec<_> = wishes.iter().map(|wish| &wish.interface).collect();
    json!({
        "apiVersion": "sriovnetwork.openshift.io/v1",
        "kind": "SriovNetworkNodeState",
        "metadata": { "name": "node1" },
        "spec": { "interfaces": interfaces, "policyRevision": "test" },
    })
    .to_string()
}
