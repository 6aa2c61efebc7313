//! Pure: `kubectl sriov plan -f`: what policies would ask of each node, compared with what is asked of it now. Nothing is changed anywhere.
//!
//! The rules are those that the operator renders with (`sriov_crds::resolve`). What the daemon would do step by step it publishes itself once the policy
//! is there; here is said what that costs: VFs are made anew whenever their number changes, so whoever holds one has to leave.

use std::fmt::Write as _;

use std::collections::BTreeMap;

use serde::Serialize;
use sriov_crds::SriovNetworkNodePolicy;
use sriov_crds::keys::LEGACY_DEFAULT_POLICY;
use sriov_crds::node_policy::VFIO_PCI;
use sriov_crds::node_state::{Interface, InterfaceStatus};
use sriov_crds::resolve::{self, Policy};

use crate::snapshot::{Snapshot, pf_name};
use crate::table::{Cell, Style, Tone, table};

/// What policies would change.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// Policies that cannot be carried out, and why; the rest is planned without them.
    pub malformed: Vec<String>,
    /// The changes, what disturbs most first.
    pub changes: Vec<Change>,
    /// Nodes for which nothing would change.
    pub unchanged: Vec<String>,
    /// Managed nodes that have not told what they have, so that nothing can be said of them.
    pub unknown: Vec<String>,
}

/// What a change costs, the dearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Disruption {
    /// It cannot be so before the node has booted with an IOMMU.
    Reboot,
    /// VFs that pods hold go: the node is drained of those pods.
    Drain,
    /// The same where `disableDrain` is set: nobody takes the pods away, and the change waits for them.
    WaitForPods,
    /// Nobody notices.
    None,
}

impl Disruption {
    fn cell(self) -> Cell {
        match self {
            Self::Reboot => Cell::toned("reboot", Tone::Bad),
            Self::Drain => Cell::toned("drain", Tone::Warning),
            Self::WaitForPods => Cell::toned("waits for pods", Tone::Warning),
            Self::None => Cell::toned("none", Tone::Good),
        }
    }
}

/// What would change on one PF.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What it costs.
    pub disruption: Disruption,
    /// Pods that hold a VF that would go, `<namespace>/<name>`. A drain or eviction waits for them.
    pub disturbed: Vec<String>,
    /// The node.
    pub node: String,
    /// The PF.
    pub pf: String,
    /// What it has now and would have.
    pub what: Vec<String>,
}

/// What applying `wanted` would change; a policy that exists by that name is replaced.
pub fn plan(snapshot: &Snapshot, wanted: &[SriovNetworkNodePolicy]) -> Plan {
    let name = |policy: &SriovNetworkNodePolicy| policy.metadata.name.clone().unwrap_or_default();
    let mut policies: BTreeMap<String, &SriovNetworkNodePolicy> = snapshot.policies.iter().map(|policy| (name(policy), policy)).collect();
    policies.extend(wanted.iter().map(|policy| (name(policy), policy)));
    policies.remove(LEGACY_DEFAULT_POLICY);
    let mut view = Plan::default();
    let mut read = Vec::new();
    for (name, policy) in policies {
        match Policy::read(&name, &policy.spec) {
            Ok(policy) => read.push(policy),
            Err(error) => view.malformed.push(format!("policy {name}: {error}")),
        }
    }
    resolve::order(&mut read);
    let mut nodes: Vec<_> = snapshot.nodes.iter().filter(|node| snapshot.is_managed(node)).collect();
    nodes.sort_by_key(|node| node.metadata.name.clone());
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        if snapshot.state(&name).is_none_or(|state| state.status.is_none()) {
            view.unknown.push(name);
            continue;
        }
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let selecting: Vec<Policy> = read.iter().filter(|policy| resolve::selects(&policy.spec.node_selector, &labels)).cloned().collect();
        let changes = node_changes(snapshot, &name, &selecting);
        if changes.is_empty() {
            view.unchanged.push(name);
        }
        view.changes.extend(changes);
    }
    view.changes.sort();
    view
}

fn node_changes(snapshot: &Snapshot, node: &str, policies: &[Policy]) -> Vec<Change> {
    let Some(state) = snapshot.state(node) else { return vec![] };
    let pfs = state.status.as_ref().map(|status| status.interfaces.as_slice()).unwrap_or_default();
    let wanted = resolve::spec(policies, pfs).interfaces;
    let find = |list: &[Interface], pf: &InterfaceStatus| list.iter().find(|i| i.pci_address == pf.pci_address).cloned();
    let change = |pf: &InterfaceStatus| {
        let (old, new) = (find(&state.spec.interfaces, pf).unwrap_or_default(), find(&wanted, pf).unwrap_or_default());
        let mut what = differences(&old, &new, pf);
        let without_iommu = state.status.as_ref().and_then(|status| status.system.as_ref()?.iommu.as_deref()) == Some("inactive");
        let reboot = without_iommu && new.vf_groups.iter().any(|group| group.device_type.as_deref() == Some(VFIO_PCI));
        if reboot {
            what.push("vfio-pci needs an IOMMU, which is inactive".to_owned());
        }
        let anew = new.num_vfs != pf.num_vfs && !new.externally_managed;
        let held = if anew { snapshot.used(node, pf) } else { std::collections::BTreeSet::new() };
        let pods = snapshot.attachments().into_iter().filter(|a| a.node == node && held.contains(&a.pci_address));
        let mut disturbed: Vec<String> = pods.map(|a| format!("{}/{}", a.namespace, a.pod)).collect();
        disturbed.dedup();
        let disruption = match (reboot, disturbed.is_empty()) {
            (true, _) => Disruption::Reboot,
            (false, true) => Disruption::None,
            (false, false) if snapshot.drain_disabled() => Disruption::WaitForPods,
            (false, false) => Disruption::Drain,
        };
        (!what.is_empty()).then(|| Change { disruption, disturbed, node: node.to_owned(), pf: pf_name(pf), what })
    };
    pfs.iter().filter_map(change).collect()
}

/// One text for each thing that differs.
fn differences(old: &Interface, new: &Interface, pf: &InterfaceStatus) -> Vec<String> {
    let mut texts = Vec::new();
    if old.num_vfs != new.num_vfs {
        texts.push(format!("VFs {} -> {}", old.num_vfs, new.num_vfs));
    }
    if new.num_vfs > pf.total_vfs {
        texts.push(format!("refused: the PF can have {} VFs", pf.total_vfs));
    }
    if new.num_vfs > 0 && pf.supported == Some(false) {
        texts.push("refused: the model is not in supported-nic-ids".to_owned());
    }
    let shown = |value: Option<i64>| value.map_or_else(|| "as it is".to_owned(), |value| value.to_string());
    if old.mtu != new.mtu {
        texts.push(format!("MTU {} -> {}", shown(old.mtu), shown(new.mtu)));
    }
    let mode = |i: &Interface| i.eswitch_mode.clone().filter(|mode| !mode.is_empty()).unwrap_or_else(|| "legacy".to_owned());
    if mode(old) != mode(new) {
        texts.push(format!("eswitch {} -> {}", mode(old), mode(new)));
    }
    let groups = |i: &Interface| {
        let group = |g: &sriov_crds::node_state::VfGroup| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{} as {} of {}", text(&g.vf_range), text(&g.device_type), text(&g.resource_name))
        };
        i.vf_groups.iter().map(group).collect::<Vec<_>>().join(", ")
    };
    let (before, after) = (groups(old), groups(new));
    if before != after {
        let or_nothing = |text: String| if text.is_empty() { "nothing".to_owned() } else { text };
        texts.push(format!("VF groups {} -> {}", or_nothing(before), or_nothing(after)));
    }
    texts
}

impl Plan {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        let mut text: String = self.malformed.iter().map(|line| style.paint(Tone::Bad, line) + "\n").collect();
        if !self.changes.is_empty() {
            let rows: Vec<Vec<Cell>> = self.changes.iter().map(Change::row).collect();
            text += &table(&["DISRUPTION", "NODE", "PF", "CHANGE", "PODS THAT MUST LEAVE"], &rows, style);
        }
        if !self.unchanged.is_empty() {
            _ = writeln!(text, "unchanged: {}", self.unchanged.join(", "));
        }
        for node in &self.unknown {
            let line = format!("unknown: {node} has not told what it has; `kubectl sriov doctor node/{node}` says why");
            text += &style.paint(Tone::Warning, &line);
            text.push('\n');
        }
        if text.is_empty() { "no node is managed\n".to_owned() } else { text }
    }
}

impl Change {
    fn row(&self) -> Vec<Cell> {
        let pods = if self.disturbed.is_empty() { Cell::toned("none", Tone::Good) } else { Cell::toned(self.disturbed.join(","), Tone::Warning) };
        vec![self.disruption.cell(), self.node.clone().into(), self.pf.clone().into(), self.what.join("; ").into(), pods]
    }
}
