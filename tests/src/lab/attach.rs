//! I/O: a running lab as another process sees it: the command line tool, or a person beside a test.
//!
//! What lives here: the state file in the lab's folder, finding the labs that run. What does not: bringing up and taking down.
//!
//! Invariant: the state file appears when the lab is complete, and never describes a part of it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::guest::Guest;
use super::net::Namespace;
use super::process::Processes;
use super::qmp::Monitor;
use super::run_dir::{ProcessId, RunDir, base, running};
use super::topology::Topology;

const FILE: &str = "state.json";

/// What a lab tells others about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// A process inside the lab's network namespace.
    pub holder: u32,
    /// What was brought up.
    pub topology: Topology,
    /// kubectl with the argument that names the lab's cluster, if it has one.
    pub kubectl: Option<Vec<String>>,
    /// The lab's folder.
    pub folder: PathBuf,
}

impl State {
    /// Says that the lab is complete.
    pub fn write(&self, run: &RunDir) -> Result<()> {
        let partial = run.file("state.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(partial, run.file(FILE))?)
    }

    /// How a person gets in.
    pub fn how_to_enter(&self) -> String {
        let lab = lab_program();
        let mut lines = vec![format!("  nsenter --net --target {} bash      # the lab's network, on this machine", self.holder)];
        for node in &self.topology.nodes {
            lines.push(format!("  {lab} exec {} -- ip -d link      # a command in a guest", node.name()));
        }
        if self.kubectl.is_some() {
            lines.push(format!("  {lab} kubectl -- get nodes"));
        }
        lines.push(format!("  consoles and logs: {}", self.folder.display()));
        lines.join("\n")
    }
}

/// How a person starts the lab's command line tool: the one that was built with this program.
fn lab_program() -> String {
    let built =
        std::env::current_exe().ok().and_then(|own| own.ancestors().skip(1).take(2).map(|folder| folder.join("lab")).find(|lab| lab.is_file()));
    built.map_or_else(|| "cargo run --quiet --bin lab --".to_owned(), |lab| lab.display().to_string())
}

/// A lab that another process runs.
#[derive(Debug)]
pub struct Attached {
    /// The process that the lab ends with.
    pub owner: ProcessId,
    /// What it says about itself; `None` while it comes up.
    pub state: Option<State>,
    /// Its folder.
    pub folder: PathBuf,
}

impl Attached {
    /// All labs of this machine.
    pub fn all() -> Result<Vec<Self>> {
        let labs = running(&base())?.into_iter();
        Ok(labs
            .map(|(owner, folder)| {
                let state = fs::read(folder.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
                Self { owner, state, folder }
            })
            .collect())
    }

    /// The lab of this process, or the only one.
    pub fn find(pid: Option<u32>) -> Result<Self> {
        let mut labs: Vec<_> = Self::all()?.into_iter().filter(|lab| pid.is_none_or(|pid| lab.owner.pid == pid)).collect();
        match (labs.len(), labs.pop()) {
            (1, Some(lab)) => Ok(lab),
            (0, _) => bail!("no lab runs{}", pid.map_or_else(String::new, |pid| format!(" in process {pid}"))),
            (count, _) => bail!("{count} labs run: name one with --lab PID (see lab status)"),
        }
    }

    fn state(&self) -> Result<&State> {
        self.state.as_ref().with_context(|| format!("the lab of process {} is still coming up", self.owner.pid))
    }

    /// One of its guests.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let state = self.state()?;
        let node = state.topology.nodes.iter().find(|node| node.name() == name).with_context(|| format!("the lab has no guest {name}"))?;
        let file = |what: &str| self.folder.join(format!("{name}.{what}"));
        let namespace = Arc::new(Namespace::of(state.holder)?);
        Ok(Guest::new(node.clone(), namespace, Monitor::at(&file("qmp")), file("console")))
    }

    /// Its kubectl and a way to start processes in its namespace.
    pub fn kubectl(&self) -> Result<(Vec<String>, Processes)> {
        let state = self.state()?;
        let argv = state.kubectl.clone().context("this lab has no control plane")?;
        Ok((argv, Processes::new(&Arc::new(Namespace::of(state.holder)?), &self.folder)?))
    }
}
