//! I/O: what tests and the demo do with a lab's cluster: install the product, apply objects, wait, look at VFs from the node's side.
//!
//! What lives here: verbs that more than one scenario needs, each through the tools that a user has (`kubectl`, `ip` on the node). What does
//! not: bringing the cluster up (`lab`), the scenarios (`tests/cluster_*.rs`, `demo`).
//!
//! Invariant: nothing sleeps a fixed time; each wait has a deadline and says at the deadline what it saw.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sriov_crds::keys;
use sriov_crds::node_state::{InterfaceStatus, SriovNetworkNodeState};

use crate::lab::Lab;
use crate::lab::guest::Guest;

mod multus;
pub mod objects;

use objects::{CAPABLE_LABEL, OPERATOR_NAMESPACE, RESOURCE_PREFIX};

/// How long things may take in a guest without hardware virtualisation, on a machine with other work.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Where a node's kubelet writes its log.
const KUBELET_LOG: &str = "/var/log/kubelet.log";

/// A lab whose cluster the product is, or will be, installed on.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// The machines.
    pub lab: &'a mut Lab,
}

/// A VF as its node sees it, to be compared before and after a pod had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfSnapshot {
    /// Netdev's name, alternative names, MAC and MTU.
    pub netdev: Option<(String, Vec<String>, String, u64)>,
    /// What the PF reports of the VF, all keys of `ip -j link`'s `vfinfo_list` entry.
    pub attributes: Value,
    /// Bound driver.
    pub driver: String,
}

impl<'a> Cluster<'a> {
    /// The cluster of a lab.
    pub fn of(lab: &'a mut Lab) -> Self {
        Self { lab }
    }

    /// Puts Multus on the nodes, and nothing of ours.
    pub fn install_multus(&self) -> Result<()> {
        multus::install(self)
    }

    /// Puts Multus on the nodes, applies the CRDs and deploy/, and waits for the operator.
    pub fn install(&self) -> Result<()> {
        multus::install(self)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let path = |relative: &str| root.join(relative).display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &path("crds/yaml")])?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])?;
        self.kubectl(&["apply", "--server-side", "-f", &path("deploy/operator.yaml")])?;
        self.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/sriov-network-operator", "--timeout=180s"])?;
        Ok(())
    }

    /// A guest by its number.
    pub fn guest(&self, number: u8) -> Result<&Guest> {
        self.lab.guest(number)
    }

    /// Runs kubectl with all permissions; an error shows what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.lab.kubectl(arguments)
    }

    /// Applies objects, as a user would.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.lab.run_dir().file("applied.yaml");
        fs::write(&file, yaml)?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).with_context(|| format!("apply\n{yaml}"))
    }

    /// Deletes an object and waits until it is gone.
    pub fn delete(&self, namespace: &str, kind: &str, name: &str) -> Result<()> {
        self.kubectl(&["-n", namespace, "delete", kind, name, "--ignore-not-found", "--timeout=120s"]).map(drop)
    }

    /// Reads an object; `None` when there is none.
    pub fn get<T: DeserializeOwned>(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<T>> {
        let text = self.kubectl(&["-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json"])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("read {kind} {name}"))
    }

    /// Reads all objects of a kind in a namespace.
    pub fn list<T: DeserializeOwned>(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<T>> {
        let text = self.kubectl(&["-n", namespace, "get", kind, "-l", selector, "-o", "json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        serde_json::from_value(list["items"].take()).with_context(|| format!("read the list of {kind}"))
    }

    /// Asks until the answer is `Ok(Some(_))`. An error or `None` means "not yet"; the last of them is told at the deadline.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = ask();
            if let Ok(Some(found)) = answer {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let reason = answer.err().map_or_else(|| "not so yet".to_owned(), |error| format!("{error:#}"));
                bail!("waited {} s for: {what}; at the deadline: {reason}", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(250));
        }
    }

    /// Labels a node for the operator, or takes the label away.
    pub fn set_capable(&self, node: &str, capable: bool) -> Result<()> {
        let label = if capable { format!("{CAPABLE_LABEL}=true") } else { format!("{CAPABLE_LABEL}-") };
        self.kubectl(&["label", "node", node, &label, "--overwrite"]).map(drop)
    }

    /// The node state of a node.
    pub fn node_state(&self, node: &str) -> Result<Option<SriovNetworkNodeState>> {
        self.get(OPERATOR_NAMESPACE, "sriovnetworknodestates.sriovnetwork.openshift.io", node)
    }

    /// Waits until a node's state satisfies `holds`; the error shows the last state.
    pub fn wait_node_state(&self, node: &str, what: &str, holds: impl Fn(&SriovNetworkNodeState) -> bool) -> Result<SriovNetworkNodeState> {
        self.wait(&format!("{node}: {what}"), PATIENCE, || {
            let state = self.node_state(node)?.context("there is no node state")?;
            ensure!(holds(&state), "spec {}\nstatus {}", serde_json::to_string(&state.spec)?, serde_json::to_string(&state.status)?);
            Ok(Some(state))
        })
    }

    /// Waits until the node state answers its own generation with condition `Ready` of this status.
    pub fn wait_ready(&self, node: &str, ready: &str) -> Result<SriovNetworkNodeState> {
        self.wait_node_state(node, &format!("Ready is {ready}"), |state| {
            let status = state.status.as_ref();
            status.is_some_and(|s| {
                s.observed_generation == state.metadata.generation && condition(state, "Ready").is_some_and(|(value, _, _)| value == ready)
            })
        })
    }

    /// Waits until a node allows `count` devices of a pool.
    pub fn wait_allocatable(&self, node: &str, resource: &str, count: u32, limit: Duration) -> Result<()> {
        let key = format!("{RESOURCE_PREFIX}/{resource}");
        self.wait(&format!("{node} allows {count} of {key}"), limit, || {
            let node: Node = self.get("", "node", node)?.context("there is no such node")?;
            let allocatable = node.status.and_then(|s| s.allocatable).unwrap_or_default();
            let found = allocatable.get(&key).map_or("none", |q| q.0.as_str()).to_owned();
            // A pool that never was is no different from one that is empty.
            ensure!(found == count.to_string() || (count == 0 && found == "none"), "it allows {found}");
            Ok(Some(()))
        })
    }

    /// Waits until a pod runs and all its containers are ready.
    pub fn wait_pod(&self, name: &str) -> Result<Pod> {
        self.wait(&format!("pod {name} runs"), PATIENCE, || {
            let pod: Pod = self.get("default", "pod", name)?.context("there is no such pod")?;
            let status = pod.status.clone().unwrap_or_default();
            let ready = status.container_statuses.unwrap_or_default().iter().all(|c| c.ready);
            if status.phase.as_deref() == Some("Running") && ready {
                return Ok(Some(pod));
            }
            let events = self.kubectl(&[
                "get",
                "events",
                "--field-selector",
                &format!("involvedObject.name={name}"),
                "-o",
                "custom-columns=R:.reason,M:.message",
                "--no-headers",
            ])?;
            bail!("phase {:?}, events:\n{events}", status.phase)
        })
    }

    /// Runs a command in a pod's container and gives its output.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(command);
        self.kubectl(&arguments)
    }

    /// The VFs that a pod was given, in the kubelet's words.
    pub fn devices_of(&self, pod: &str, resource: &str) -> Result<Vec<String>> {
        let variable = format!("PCIDEVICE_{}_{}", RESOURCE_PREFIX.replace('.', "_").to_uppercase(), resource.to_uppercase());
        let text = self.exec(pod, &["sh", "-c", &format!("echo ${variable}")])?;
        Ok(text.trim().split(',').map(str::to_owned).collect())
    }

    /// The pods of both DaemonSets of nodes on a node.
    pub fn node_pods(&self, node: &str) -> Result<Vec<Pod>> {
        let apps = format!("app in ({}, {})", keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET);
        let pods: Vec<Pod> = self.list(OPERATOR_NAMESPACE, "pods", &apps)?;
        Ok(pods.into_iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)).collect())
    }

    /// How many pods the config daemon's DaemonSet wants.
    pub fn daemon_set_size(&self) -> Result<Option<i32>> {
        let set: Option<DaemonSet> = self.get(OPERATOR_NAMESPACE, "daemonset", keys::NODE_DAEMON_SET)?;
        Ok(set.and_then(|s| s.status).map(|s| s.desired_number_scheduled))
    }

    /// How many lines a node's kubelet has written to its log.
    pub fn kubelet_log_lines(&self, number: u8) -> Result<usize> {
        Ok(self.guest(number)?.read_text(KUBELET_LOG)?.lines().count())
    }

    /// What a kubelet's log says of a pool since its first `skip` lines: how many devices may be given, at each change. The device manager writes a
    /// line whenever that number changes, so that no dip is too short to be seen.
    pub fn kubelet_counts(&self, number: u8, resource: &str, skip: usize) -> Result<Vec<u32>> {
        let log = self.guest(number)?.read_text(KUBELET_LOG)?;
        let name = format!("resourceName=\"{RESOURCE_PREFIX}/{resource}\"");
        let count = |line: &str| -> Option<u32> {
            if line.contains("Endpoint became unhealthy") {
                return Some(0);
            }
            line.contains("Processed device updates for resource")
                .then(|| line.split_once("healthyCount=")?.1.split_whitespace().next()?.parse().ok())?
        };
        Ok(log.lines().skip(skip).filter(|line| line.contains(&name)).filter_map(count).collect())
    }

    /// A VF from its node's side.
    pub fn vf(&self, number: u8, pf: &str, index: usize) -> Result<VfSnapshot> {
        let guest = self.guest(number)?;
        let links: Value = serde_json::from_str(&guest.run(&["ip", "-j", "-d", "link"])?)?;
        let links = links.as_array().context("ip -j link is a list")?;
        let device = format!("/sys/class/net/{pf}/device/virtfn{index}");
        let driver = guest.run(&["readlink", "-f", &format!("{device}/driver")])?;
        let name = guest.command(&["ls", &format!("{device}/net")]).outcome()?.text();
        let attributes = link(links, pf)?["vfinfo_list"].as_array().and_then(|l| l.iter().find(|v| v["vf"] == index)).cloned();
        let netdev = match name.trim() {
            "" => None,
            name => {
                let link = link(links, name)?;
                let alt_names = link["altnames"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
                let mtu = link["mtu"].as_u64().context("mtu")?;
                Some((name.to_owned(), alt_names, link["address"].as_str().unwrap_or_default().to_owned(), mtu))
            }
        };
        let driver = driver.trim().rsplit('/').next().unwrap_or_default().to_owned();
        Ok(VfSnapshot { netdev, attributes: attributes.with_context(|| format!("{pf} reports no VF {index}"))?, driver })
    }

    /// Waits until a VF is as it was.
    pub fn wait_vf(&self, number: u8, pf: &str, index: usize, before: &VfSnapshot) -> Result<()> {
        self.wait(&format!("node{number} {pf} vf {index} is as it was"), PATIENCE, || {
            let now = self.vf(number, pf, index)?;
            ensure!(now == *before, "before: {before:?}\nnow: {now:?}");
            Ok(Some(()))
        })
    }

    /// Index of a VF on its PF, by its PCI address.
    pub fn index_of(&self, number: u8, pf: &str, vf: &str) -> Result<usize> {
        let text = self
            .guest(number)?
            .sh(&format!("for l in /sys/class/net/{pf}/device/virtfn*; do echo ${{l##*virtfn}} $(basename $(readlink $l)); done"))?;
        let found = text.lines().find_map(|line| line.split_once(' ').filter(|(_, address)| *address == vf).map(|(index, _)| index.parse()));
        found.with_context(|| format!("{vf} is no VF of {pf}:\n{text}"))?.context("an index")
    }
}

fn link<'a>(links: &'a [Value], name: &str) -> Result<&'a Value> {
    links.iter().find(|l| l["ifname"] == name).with_context(|| format!("there is no link {name}"))
}

/// Status, reason and message of a node state's condition.
pub fn condition<'a>(state: &'a SriovNetworkNodeState, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = &state.status.as_ref()?.conditions;
    conditions.iter().find(|c| c.type_ == kind).map(|c| (c.status.as_str(), c.reason.as_str(), c.message.as_str()))
}

/// A PF in a node state's status.
pub fn pf<'a>(state: &'a SriovNetworkNodeState, name: &str) -> Option<&'a InterfaceStatus> {
    state.status.as_ref()?.interfaces.iter().find(|i| i.name.as_deref() == Some(name))
}

/// An error that shows both sides when they differ.
pub fn same<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    ensure!(found == expected, "{what}: found {found:?}, expected {expected:?}");
    Ok(())
}
