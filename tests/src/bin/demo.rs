//! I/O: the main job of the product, shown to a person: from a policy to two pods that ping each other over VFs, on a lab on this machine.
//!
//! What lives here: the order of the show and what is printed. What does not: the verbs (`sriov_tests::cluster`), the lab.
//!
//! Invariant: everything that is printed was read from the cluster, a node or the wire a moment before.
#![expect(clippy::print_stdout, reason = "a demonstration prints")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sriov_crds::node_state::SriovNetworkNodeState;
use sriov_tests::cluster::objects::{Policy, host_local, network, pod};
use sriov_tests::cluster::{Cluster, PATIENCE};
use sriov_tests::lab::topology::Topology;
use sriov_tests::lab::{Lab, check_host};

const NODES: [&str; 2] = ["node1", "node2"];
const POOL: &str = "fast";

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let once = match arguments.next().as_deref() {
        None => !std::io::stdout().is_terminal(),
        Some("--once") => true,
        Some(other) => {
            eprintln!("demo: {other:?} is not an option; allowed is --once: end after the show instead of keeping the lab up");
            return Ok(ExitCode::from(2));
        }
    };
    check_host()?;
    let show = Show { started: Instant::now() };
    show.phase("bringing up a control plane and two machines with two emulated igb NICs each");
    let mut lab = Lab::boot(Topology::two_nodes())?;
    let mut cluster = Cluster::of(&mut lab);
    show.run(&mut cluster)?;
    if once {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nThe lab stays up. Look around from another terminal:\n{}\n\nCtrl-C here ends it and leaves nothing.", lab.state().how_to_enter());
    loop {
        // Ctrl-C ends the process from the signal thread.
        thread::sleep(Duration::from_secs(1));
        lab.check()?;
    }
}

struct Show {
    started: Instant,
}

impl Show {
    fn phase(&self, text: &str) {
        println!("\n[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    fn run(&self, cluster: &mut Cluster<'_>) -> Result<()> {
        self.phase("installing the operator: CRDs and deploy/operator.yaml");
        cluster.install()?;
        self.phase("labelling both nodes; each publishes what it has");
        NODES.iter().try_for_each(|node| cluster.set_capable(node, true))?;
        let published = |s: &SriovNetworkNodeState| s.status.as_ref().is_some_and(|s| !s.interfaces.is_empty());
        let states = NODES.iter().map(|node| cluster.wait_node_state(node, "its PFs are published", published)).collect::<Result<Vec<_>>>()?;
        print!("{}", table(&["NODE", "PF", "ADDRESS", "DRIVER", "TOTALVFS", "MTU", "LINK", "IOMMU"], states.iter().flat_map(pf_rows)));

        let policy = Policy::new("fast", POOL, 4, "{pfNames: [enp1s0]}").mtu(9000).yaml();
        self.phase("applying a policy");
        println!("{}", indent(&policy));
        cluster.apply(&policy)?;
        let planned = |s: &SriovNetworkNodeState| s.status.as_ref().and_then(|s| s.plan.as_ref()).is_some_and(|p| !p.steps.is_empty()) || done(s);
        let state = cluster.wait_node_state("node1", "the plan is published", planned)?;
        self.phase("the plan of node1, published before it runs");
        let plan = state.status.and_then(|s| s.plan).unwrap_or_default();
        if plan.steps.is_empty() {
            println!("    (it ran before it could be read here; the daemon's log has it)");
        }
        plan.steps.iter().for_each(|step| println!("    {step}"));
        println!("    disruption: {}", plan.disruption.as_deref().unwrap_or("None"));

        let states = NODES.iter().map(|node| cluster.wait_node_state(node, "its VFs are ready", done)).collect::<Result<Vec<_>>>()?;
        NODES.iter().try_for_each(|node| cluster.wait_allocatable(node, POOL, 4, PATIENCE))?;
        self.phase("the VFs are ready, and the kubelets offer four of openshift.io/fast each");
        print!("{}", table(&["NODE", "PF", "VF", "ADDRESS", "NETDEV", "DRIVER", "MAC", "MTU"], states.iter().flat_map(vf_rows)));
        self.pods(cluster)
    }

    fn pods(&self, cluster: &mut Cluster<'_>) -> Result<()> {
        self.phase("applying a network on VLAN 100 for each node, and a pod on each");
        for (number, node) in NODES.iter().enumerate() {
            let base = 10 * (number + 1);
            let ipam = host_local("192.0.2.0/24", &format!("192.0.2.{base}"), &format!("192.0.2.{}", base + 9));
            let name = format!("blue-{node}");
            cluster.apply(&network(&name, POOL, &ipam, &["vlan: 100"]))?;
            let kind = "network-attachment-definitions.k8s.cni.cncf.io";
            cluster.wait("the NAD exists", PATIENCE, || cluster.get::<Value>("default", kind, &name))?;
            cluster.apply(&pod(&format!("on-{node}"), node, &name, POOL, 1))?;
        }
        let mut rows = Vec::new();
        for node in NODES {
            let name = format!("on-{node}");
            cluster.wait_pod(&name)?;
            rows.push(pod_row(cluster, node, &name)?);
        }
        self.phase("both pods run, each with a VF as its second interface");
        let peer = rows[1][3].split('/').next().unwrap_or_default().to_owned();
        print!("{}", table(&["POD", "NODE", "INTERFACE", "ADDRESS", "MAC", "VF"], rows.into_iter()));

        self.phase(&format!("on-node1 pings {peer} over the VFs; the wire between the machines is watched"));
        let mut capture = cluster.lab.capture("icmp or (vlan and icmp)")?;
        println!("{}", indent(&cluster.exec("on-node1", &["ping", "-c", "3", "-W", "5", &peer])?));
        let frame = capture.wait_for("an echo", |frame| frame.ethertype == 0x0800, Duration::from_secs(10))?;
        let tags: Vec<String> = frame.tags.iter().map(|t| format!("VLAN {} priority {}", t.vlan, t.priority)).collect();
        println!("    on the wire: {} > {}  tags: {}", frame.source, frame.destination, tags.join(", "));
        self.phase("done");
        Ok(())
    }
}

/// The policy's VFs are there and the daemon answers for the present generation.
fn done(state: &SriovNetworkNodeState) -> bool {
    let Some(status) = &state.status else { return false };
    let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && status.observed_generation == state.metadata.generation && status.interfaces.iter().any(|i| i.vfs.len() == 4)
}

fn pf_rows(state: &SriovNetworkNodeState) -> Vec<Vec<String>> {
    let status = state.status.clone().unwrap_or_default();
    let iommu = status.system.and_then(|s| s.iommu).unwrap_or_default();
    let row = |i: sriov_crds::node_state::InterfaceStatus| {
        let link = i.link_speed.or(i.link_admin_state).unwrap_or_default();
        let mtu = i.mtu.unwrap_or_default().to_string();
        vec![
            name_of(state),
            i.name.unwrap_or_default(),
            i.pci_address,
            i.driver.unwrap_or_default(),
            i.total_vfs.to_string(),
            mtu,
            link,
            iommu.clone(),
        ]
    };
    status.interfaces.into_iter().map(row).collect()
}

fn vf_rows(state: &SriovNetworkNodeState) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for pf in state.status.clone().unwrap_or_default().interfaces {
        for vf in pf.vfs {
            let mtu = vf.mtu.map(|m| m.to_string()).unwrap_or_default();
            let (netdev, driver, mac) = (vf.name.unwrap_or_default(), vf.driver.unwrap_or_default(), vf.mac.unwrap_or_default());
            rows.push(vec![name_of(state), pf.name.clone().unwrap_or_default(), vf.vf_id.to_string(), vf.pci_address, netdev, driver, mac, mtu]);
        }
    }
    rows
}

fn name_of(state: &SriovNetworkNodeState) -> String {
    state.metadata.name.clone().unwrap_or_default()
}

fn pod_row(cluster: &Cluster<'_>, node: &str, name: &str) -> Result<Vec<String>> {
    let seen: Value = cluster.get("default", "pod", name)?.with_context(|| format!("pod {name}"))?;
    let status = seen["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap_or("[]");
    let status: Value = serde_json::from_str(status)?;
    let second = status.as_array().and_then(|all| all.iter().find(|n| n["interface"] == "net1")).cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let devices = cluster.devices_of(name, POOL)?.join(",");
    Ok(vec![name.to_owned(), node.to_owned(), text(&second["interface"]), text(&second["ips"][0]), text(&second["mac"]), devices])
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Rows under a heading, in columns as wide as their widest cell.
fn table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![heading.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("    {}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}
