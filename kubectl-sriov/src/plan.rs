//! Pure: `kubectl sriov plan -f`: what policies would ask of each node, compared with what is asked of it now. Nothing is changed anywhere.
//!
//! The rules are those that the operator renders with (`sriov_crds::resolve`). What the daemon would do step by step it publishes itself once the policy
//! is there; here is said what that costs: VFs are made anew whenever their number or the eswitch mode changes, and one that gets another driver is unbound,
//! so whoever holds one has to leave. So has who is behind a bridge that goes; which VFs are its ports no object tells, so all of the PF count.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use sriov_crds::bridge::{Bridges, OvsBridge};
use sriov_crds::keys::LEGACY_DEFAULT_POLICY;
use sriov_crds::node_policy::VFIO_PCI;
use sriov_crds::node_state::{Interface, InterfaceStatus, VfGroup, VfStatus};
use sriov_crds::resolve::{self, Policy};
use sriov_crds::{SriovNetworkNodePolicy, VfRange};

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
    /// It cannot be so before the node has booted: with an IOMMU, or with a NIC whose firmware allows more VFs.
    Reboot,
    /// VFs that somebody holds go: the node is drained of those pods.
    Drain,
    /// The same where `disableDrain` is set: nobody takes the pods away, and the change waits for them.
    WaitForPods,
    /// The PF stays as it is, because what is asked cannot be had.
    Refused,
    /// Nobody notices.
    None,
}

impl Disruption {
    fn cell(self) -> Cell {
        match self {
            Self::Reboot => Cell::toned("reboot", Tone::Bad),
            Self::Drain => Cell::toned("drain", Tone::Warning),
            Self::WaitForPods => Cell::toned("waits for pods", Tone::Warning),
            Self::Refused => Cell::toned("refused", Tone::Bad),
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
    /// Who holds a VF that would go: pods as `<namespace>/<name>`, others as the daemon calls them. The change waits for them.
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
    let mut view = Plan::default();
    for policy in wanted {
        match policy.metadata.namespace.as_deref().filter(|namespace| *namespace != snapshot.namespace()) {
            None => {
                policies.insert(name(policy), policy);
            }
            Some(elsewhere) => {
                let (name, ours) = (name(policy), snapshot.namespace());
                view.malformed.push(format!("policy {name}: it is for namespace {elsewhere}, and the operator reads policies of {ours} only"));
            }
        }
    }
    policies.remove(LEGACY_DEFAULT_POLICY);
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
    let mut wanted = resolve::spec(policies, pfs).interfaces;
    // Another operator wrote this one, which has no fields for these.
    if state.spec.policy_revision.is_none() {
        for group in wanted.iter_mut().flat_map(|interface| &mut interface.vf_groups) {
            (group.need_vhost_net, group.exclude_topology) = (false, false);
        }
    }
    let find = |list: &[Interface], pf: &InterfaceStatus| list.iter().find(|i| i.pci_address == pf.pci_address).cloned().unwrap_or_default();
    let bridges = snapshot.manages_bridges().then(|| resolve::bridges(policies, pfs)).flatten();
    let wish = |pf| Wish {
        pf,
        old: find(&state.spec.interfaces, pf),
        new: find(&wanted, pf),
        old_bridge: bridge_of(state.spec.bridges.as_ref(), pf),
        new_bridge: bridge_of(bridges.as_ref(), pf),
    };
    let wishes = pfs.iter().map(wish);
    let without_iommu = state.status.as_ref().and_then(|status| status.system.as_ref()?.iommu.as_deref()) == Some("inactive");
    wishes.filter_map(|wish| wish.change(snapshot, node, without_iommu)).collect()
}

/// The bridge whose uplink a PF is.
fn bridge_of(bridges: Option<&Bridges>, pf: &InterfaceStatus) -> Option<OvsBridge> {
    let is_uplink = |bridge: &&OvsBridge| bridge.uplinks.iter().any(|uplink| uplink.pci_address == pf.pci_address);
    bridges?.ovs.iter().find(is_uplink).cloned()
}

/// What a PF is, is to be now and would be to be.
struct Wish<'a> {
    pf: &'a InterfaceStatus,
    old: Interface,
    new: Interface,
    old_bridge: Option<OvsBridge>,
    new_bridge: Option<OvsBridge>,
}

impl Wish<'_> {
    fn change(&self, snapshot: &Snapshot, node: &str, without_iommu: bool) -> Option<Change> {
        let mut what = self.differences();
        what.extend(self.bridge_difference());
        if what.is_empty() {
            return None;
        }
        let firmware = self.new.num_vfs > self.pf.total_vfs && !self.new.externally_managed && snapshot.tells_firmware(node, self.pf);
        let refusals = self.refusals(firmware);
        let iommu = without_iommu && self.new.vf_groups.iter().any(|group| group.device_type.as_deref() == Some(VFIO_PCI));
        if iommu {
            what.push("vfio-pci needs an IOMMU, which is inactive".to_owned());
        }
        if firmware {
            what.push(format!("the NIC's firmware allows {} VFs and is told to allow more from its next start on", self.pf.total_vfs));
        }
        let reboot = iommu || firmware;
        what.extend(refusals.iter().map(|why| format!("refused: {why}")));
        // What is refused leaves the PF as it is.
        let disturbed = if refusals.is_empty() { self.holders(snapshot, node) } else { vec![] };
        let disruption = match (refusals.is_empty(), reboot, disturbed.is_empty()) {
            (false, ..) => Disruption::Refused,
            (true, true, _) => Disruption::Reboot,
            (true, false, true) => Disruption::None,
            (true, false, false) if snapshot.drain_disabled() => Disruption::WaitForPods,
            (true, false, false) => Disruption::Drain,
        };
        Some(Change { disruption, disturbed, node: node.to_owned(), pf: pf_name(self.pf), what })
    }

    /// What the daemon would not do; `firmware` says that the number of VFs is a matter of the next start.
    fn refusals(&self, firmware: bool) -> Vec<String> {
        let (new, pf) = (&self.new, self.pf);
        let mut why = Vec::new();
        if new.num_vfs > pf.total_vfs && !firmware {
            why.push(format!("the PF can have {} VFs", pf.total_vfs));
        }
        if new.num_vfs > 0 && pf.supported == Some(false) {
            why.push("the model is not in supported-nic-ids".to_owned());
        }
        if let (Some(wanted), Some(is)) = (given(new.link_type.as_ref()), given(pf.link_type.as_ref()))
            && !wanted.eq_ignore_ascii_case(is)
        {
            why.push(format!("the port is {}, and the kernel cannot change that", is.to_uppercase()));
        }
        if new.externally_managed && new.num_vfs > pf.num_vfs {
            why.push(format!("somebody else makes the VFs, and there are {}", pf.num_vfs));
        }
        why
    }

    /// Who holds the VFs that would go.
    fn holders(&self, snapshot: &Snapshot, node: &str) -> Vec<String> {
        let pods = snapshot.attachments();
        let of = |vf: &VfStatus| {
            let pod = pods.iter().find(|a| a.node == node && a.pci_address == vf.pci_address);
            pod.map(|a| format!("{}/{}", a.namespace, a.pod)).or_else(|| vf.assigned.clone())
        };
        let mut holders: Vec<String> = self.pf.vfs.iter().filter(|vf| self.bridge_goes() || self.goes(vf)).filter_map(of).collect();
        holders.sort();
        holders.dedup();
        holders
    }

    /// Whether a VF is made anew or gets another driver or vDPA device, so that nobody may hold it.
    fn goes(&self, vf: &VfStatus) -> bool {
        let (new, pf) = (&self.new, self.pf);
        let wanted = !new.pci_address.is_empty();
        let externally = if wanted { new.externally_managed } else { self.old.externally_managed };
        if !externally && (new.num_vfs != pf.num_vfs || wanted && mode(new.eswitch_mode.as_ref()) != mode(pf.eswitch_mode.as_ref())) {
            return true;
        }
        let has = |group: &&VfGroup| {
            let range = group.vf_range.as_deref().and_then(|text| text.parse::<VfRange>().ok());
            range.zip(u16::try_from(vf.vf_id).ok()).is_some_and(|(range, index)| range.contains(index))
        };
        new.vf_groups.iter().find(has).is_some_and(|group| {
            let userspace = group.device_type.as_deref() == Some(VFIO_PCI);
            userspace != (vf.driver.as_deref() == Some(VFIO_PCI)) || given(group.vdpa_type.as_ref()) != given(vf.vdpa_type.as_ref())
        })
    }

    /// Whether the bridge is removed, or is to be one that only another bridge can be.
    fn bridge_goes(&self) -> bool {
        let kind = |bridge: &OvsBridge| {
            let (of, uplink) = (bridge.bridge.clone().unwrap_or_default(), bridge.uplinks.first().and_then(|uplink| uplink.interface.clone()));
            (of.datapath_type, of.fail_mode, uplink.map(|uplink| (uplink.kind, uplink.options)).unwrap_or_default())
        };
        self.old_bridge.as_ref().is_some_and(|old| self.new_bridge.as_ref().is_none_or(|new| kind(old) != kind(new)))
    }

    fn bridge_difference(&self) -> Option<String> {
        let name = |bridge: &Option<OvsBridge>| bridge.as_ref().map_or_else(|| "nothing".to_owned(), |bridge| bridge.name.clone());
        let (old, new) = (name(&self.old_bridge), name(&self.new_bridge));
        match (self.old_bridge == self.new_bridge, old == new) {
            (true, _) => None,
            (false, false) => Some(format!("bridge {old} -> {new}")),
            (false, true) => Some(format!("bridge {new}: {}", if self.bridge_goes() { "made anew" } else { "other settings" })),
        }
    }

    /// One text for each thing that differs.
    fn differences(&self) -> Vec<String> {
        let (old, new) = (&self.old, &self.new);
        let shown = |value: Option<i64>| value.map_or_else(|| "as it is".to_owned(), |value| value.to_string());
        let link = |i: &Interface| given(i.link_type.as_ref()).map_or_else(|| "as it is".to_owned(), str::to_uppercase);
        let maker = |i: &Interface| if i.externally_managed { "somebody else" } else { "the operator" }.to_owned();
        let groups = |i: &Interface| i.vf_groups.iter().map(group).collect::<Vec<_>>().join(", ");
        let or_nothing = |text: String| if text.is_empty() { "nothing".to_owned() } else { text };
        let both = [
            ("VFs", old.num_vfs.to_string(), new.num_vfs.to_string()),
            ("MTU", shown(old.mtu), shown(new.mtu)),
            ("link type", link(old), link(new)),
            ("eswitch", mode(old.eswitch_mode.as_ref()), mode(new.eswitch_mode.as_ref())),
            ("VFs made by", maker(old), maker(new)),
            ("VF groups", or_nothing(groups(old)), or_nothing(groups(new))),
        ];
        both.into_iter().filter(|(_, before, after)| before != after).map(|(what, before, after)| format!("{what} {before} -> {after}")).collect()
    }
}

/// Fields of the API that are empty are as good as absent.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

fn mode(text: Option<&String>) -> String {
    given(text).unwrap_or("legacy").to_lowercase()
}

/// Everything that the daemon and the device plugin make of a group.
fn group(group: &VfGroup) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let more = [
        group.mtu.map(|mtu| format!("MTU {mtu}")),
        group.is_rdma.then(|| "RDMA".to_owned()),
        given(group.vdpa_type.as_ref()).map(|kind| format!("vDPA {kind}")),
        group.need_vhost_net.then(|| "vhost-net".to_owned()),
        group.exclude_topology.then(|| "no NUMA node".to_owned()),
    ];
    let more: Vec<String> = more.into_iter().flatten().collect();
    let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
    format!("{} as {} of {}{more}", text(&group.vf_range), text(&group.device_type), text(&group.resource_name))
}

impl Plan {
    /// For people.
    pub fn text(&self, style: Style) -> String {
        let mut text: String = self.malformed.iter().map(|line| style.paint(Tone::Bad, line) + "\n").collect();
        if !self.changes.is_empty() {
            let rows: Vec<Vec<Cell>> = self.changes.iter().map(Change::row).collect();
            text += &table(&["DISRUPTION", "NODE", "PF", "CHANGE", "MUST LEAVE FIRST"], &rows, style);
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
