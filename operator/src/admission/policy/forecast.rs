//! Pure: what a policy will do to the nodes that exist, as sentences for the person who writes it. The specs before and after are rendered by
//! the very functions of `node_policy`, so this is not a second opinion.
//!
//! Nothing here refuses: a policy may come before its nodes, and what cannot be done now may be possible later.

use std::collections::{BTreeMap, BTreeSet};

use sriov_crds::VfRange;
use sriov_crds::node_policy::VFIO_PCI;
use sriov_crds::node_state::{Interface, InterfaceStatus};
use sriov_crds::resolve::{Policy, is_selected, order, overridden, selects, spec};

use crate::admission::review::some_of;

use super::conflicts::{MELLANOX, title};

/// A managed node as far as a policy is concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::admission) struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The PFs that its daemon reported, without their VFs; `None` before the first report.
    pub pfs: Option<Vec<InterfaceStatus>>,
    /// Whether it was seen to have no working IOMMU.
    pub iommu_inactive: bool,
}

/// What is gathered over all nodes, each a sorted set of names.
#[derive(Default)]
struct Seen {
    pfs: usize,
    without_report: BTreeSet<String>,
    without_pf: BTreeSet<String>,
    drained: BTreeSet<String>,
    relinked: BTreeSet<String>,
    /// More VFs than the firmware allows, which can be told otherwise.
    firmware: BTreeSet<String>,
    without_iommu: BTreeSet<String>,
    cannot: BTreeMap<String, BTreeSet<String>>,
    stronger: BTreeMap<String, BTreeSet<String>>,
    weaker: BTreeMap<String, BTreeSet<String>>,
    /// What a stronger policy decides for a PF on which a weaker one keeps VFs, as a sentence about the weaker one.
    overridden: BTreeMap<String, BTreeSet<String>>,
}

/// The warnings for `policy` as it is to become. `stored` are all policies as they are, an earlier form of it among them; `nodes` are all
/// managed nodes.
pub(in crate::admission) fn warnings(policy: &Policy, stored: &[Policy], nodes: &[Node], drain_disabled: bool) -> Vec<String> {
    let matching: Vec<_> = nodes.iter().filter(|node| selects(&policy.spec.node_selector, &node.labels)).collect();
    if matching.is_empty() {
        let known = if nodes.is_empty() { "no node is managed yet".to_owned() } else { format!("{} nodes are managed", nodes.len()) };
        return vec![format!("no managed node matches nodeSelector now ({known}): the policy waits for one")];
    }
    let mut seen = Seen::default();
    for node in &matching {
        look(policy, stored, node, &mut seen);
    }
    let names: Vec<_> = matching.iter().map(|node| node.name.clone()).collect();
    let mut warnings = vec![format!(
        "matches {} of {} managed nodes ({}) and {} PFs: {} VFs on each",
        matching.len(),
        nodes.len(),
        some_of(&names),
        seen.pfs,
        policy.num_vfs
    )];
    warnings.extend(seen.sentences(policy, drain_disabled));
    warnings
}

fn look(policy: &Policy, stored: &[Policy], node: &Node, seen: &mut Seen) {
    let Some(pfs) = &node.pfs else {
        seen.without_report.insert(node.name.clone());
        return;
    };
    let on_node = |candidate: &&Policy| selects(&candidate.spec.node_selector, &node.labels);
    let mut before: Vec<_> = stored.iter().filter(on_node).cloned().collect();
    let mut after: Vec<_> = before.iter().filter(|other| other.name != policy.name).cloned().collect();
    let others = after.clone();
    after.push(policy.clone());
    order(&mut before);
    order(&mut after);
    let (before, after) = (spec(&before, pfs), spec(&after, pfs));
    let find = |interfaces: &[Interface], pf: &InterfaceStatus| interfaces.iter().find(|i| i.pci_address == pf.pci_address).cloned();
    let mut matched = 0;
    for pf in pfs.iter().filter(|pf| is_selected(policy, pf)) {
        matched += 1;
        let (old, Some(new)) = (find(&before.interfaces, pf), find(&after.interfaces, pf)) else { continue };
        let place = format!("{}: {}", node.name, title(pf));
        shadows(policy, &others, pf, (old.as_ref(), &new), &place, seen);
        overrides(policy, &others, &new, &place, seen);
        limits(policy, node, pf, &new, &place, seen);
        if disturbs(pf, old.as_ref(), &new) {
            seen.drained.insert(node.name.clone());
        }
    }
    seen.pfs += matched;
    if matched == 0 {
        seen.without_pf.insert(node.name.clone());
    }
}

fn has_group(interface: &Interface, policy: &str) -> bool {
    interface.vf_groups.iter().any(|group| group.policy_name.as_deref() == Some(policy))
}

fn shadows(policy: &Policy, others: &[Policy], pf: &InterfaceStatus, (old, new): (Option<&Interface>, &Interface), place: &str, seen: &mut Seen) {
    if !has_group(new, &policy.name) {
        for group in &new.vf_groups {
            seen.stronger.entry(group.policy_name.clone().unwrap_or_default()).or_default().insert(place.to_owned());
        }
        return;
    }
    for other in others.iter().filter(|other| is_selected(other, pf) && !has_group(new, &other.name)) {
        if old.is_some_and(|old| has_group(old, &other.name)) {
            seen.weaker.entry(other.name.clone()).or_default().insert(place.to_owned());
        }
    }
}

/// Of this policy and of those that it shares the PF with.
fn overrides(policy: &Policy, others: &[Policy], new: &Interface, place: &str, seen: &mut Seen) {
    for one in others.iter().chain([policy]).filter(|one| has_group(new, &one.name)) {
        let whose = if one.name == policy.name { "this policy".to_owned() } else { format!("policy {}", one.name) };
        for (field, asked, got) in overridden(&one.spec, new) {
            let what = format!("{field} will be {got} and not {asked}, which {whose} asks for, because a stronger policy shares the PF: ");
            seen.overridden.entry(what).or_default().insert(place.to_owned());
        }
    }
}

fn limits(policy: &Policy, node: &Node, pf: &InterfaceStatus, new: &Interface, place: &str, seen: &mut Seen) {
    // Its firmware can be told otherwise, by the daemon where the node's kernel is new enough.
    let can_be_told = pf.total_vfs == 0 || pf.vendor.as_deref() == Some(MELLANOX);
    let by_firmware = can_be_told && !new.externally_managed && new.num_vfs > pf.total_vfs;
    let why = if pf.supported == Some(false) {
        Some("its model is not in ConfigMap supported-nic-ids".to_owned())
    } else if by_firmware {
        seen.firmware.insert(place.to_owned());
        None
    } else if new.num_vfs > pf.total_vfs {
        Some(format!("it can have {} VFs at most", pf.total_vfs))
    } else {
        None
    };
    if let Some(why) = why {
        seen.cannot.entry(why).or_default().insert(place.to_owned());
    }
    if policy.spec.device_type == VFIO_PCI && node.iommu_inactive {
        seen.without_iommu.insert(node.name.clone());
    }
    let link = policy.spec.link_type.as_deref().filter(|link| !link.is_empty());
    if link.zip(pf.link_type.as_deref()).is_some_and(|(wanted, found)| !wanted.eq_ignore_ascii_case(found)) {
        seen.relinked.insert(place.to_owned());
    }
}

/// True when VFs that are there now must go or change their driver, so that pods which use them must leave.
fn disturbs(pf: &InterfaceStatus, old: Option<&Interface>, new: &Interface) -> bool {
    if pf.num_vfs == 0 || new.externally_managed {
        return false;
    }
    let mode = |mode: Option<&String>| mode.filter(|mode| !mode.is_empty()).map_or("legacy", String::as_str).to_owned();
    let remade = pf.num_vfs != new.num_vfs || mode(pf.eswitch_mode.as_ref()) != mode(new.eswitch_mode.as_ref());
    let last = u16::try_from(pf.num_vfs.min(new.num_vfs)).unwrap_or(u16::MAX);
    let rebound = old.is_some_and(|old| (0..last).any(|vf| driver_of(old, vf) != driver_of(new, vf)));
    remade || rebound
}

fn driver_of(interface: &Interface, vf: u16) -> Option<&str> {
    let range = |text: Option<&String>| text.and_then(|text| text.parse::<VfRange>().ok());
    interface.vf_groups.iter().find(|group| range(group.vf_range.as_ref()).is_some_and(|range| range.contains(vf)))?.device_type.as_deref()
}

impl Seen {
    fn sentences(&self, policy: &Policy, drain_disabled: bool) -> Vec<String> {
        let list = |set: &BTreeSet<String>| some_of(&set.iter().cloned().collect::<Vec<_>>());
        let mut said = vec![];
        let mut say = |set: &BTreeSet<String>, before: &str, after: &str| {
            if !set.is_empty() {
                said.push(format!("{before}{}{after}", list(set)));
            }
        };
        let leave = if drain_disabled { ", at once, because disableDrain is set" } else { "; pods that use them have to leave first" };
        say(&self.drained, "drains: VFs that exist are made anew or bound anew on ", leave);
        say(&self.without_iommu, "needs a reboot with the IOMMU switched on before vfio-pci can be used: ", "");
        say(&self.relinked, "needs firmware settings and a reboot, because linkType differs: ", "");
        let how = " (where the node's kernel cannot make them, its node state has the command)";
        say(&self.firmware, "needs firmware settings and a reboot, because numVfs is more than the NIC's firmware allows: ", how);
        for (why, places) in &self.cannot {
            say(places, "cannot be carried out on ", &format!(": {why}"));
        }
        for (other, places) in &self.stronger {
            say(places, &format!("stronger policy {other} shadows this one (priority {}) on ", policy.spec.priority), "");
        }
        for (other, places) in &self.weaker {
            say(places, &format!("shadows weaker policy {other} on "), "");
        }
        for (what, places) in &self.overridden {
            say(places, what, "");
        }
        say(&self.without_pf, "selects no PF on ", "");
        say(&self.without_report, "not known yet what it does on ", ": no PF was reported there");
        said
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::core::DeserializeGuard;
    use serde::Deserialize;
    use sriov_crds::SriovNetworkNodePolicy;

    use super::super::{check, conflicts};
    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        policy: serde_json::Value,
        #[serde(default)]
        stored: Vec<serde_json::Value>,
        #[serde(default)]
        nodes: Vec<NodeInput>,
        #[serde(default)]
        drain_disabled: bool,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NodeInput {
        name: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        pfs: Option<Vec<InterfaceStatus>>,
        #[serde(default)]
        iommu_inactive: bool,
    }

    fn policy(mut value: serde_json::Value) -> Policy {
        value["apiVersion"] = "sriovnetwork.openshift.io/v1".into();
        value["kind"] = "SriovNetworkNodePolicy".into();
        let guard: Arc<DeserializeGuard<SriovNetworkNodePolicy>> = Arc::new(serde_json::from_value(value).unwrap());
        check(&guard, None).unwrap()
    }

    #[test]
    fn golden() {
        crate::golden::check("admission", |input: Input| {
            let nodes: Vec<_> =
                input.nodes.into_iter().map(|n| Node { name: n.name, labels: n.labels, pfs: n.pfs, iommu_inactive: n.iommu_inactive }).collect();
            let stored: Vec<_> = input.stored.into_iter().map(policy).collect();
            let policy = policy(input.policy);
            let others: Vec<_> = stored.iter().filter(|other| other.name != policy.name).cloned().collect();
            serde_json::json!({
                "refused": conflicts::first(&policy, &others, &nodes),
                "warnings": warnings(&policy, &stored, &nodes, input.drain_disabled),
            })
        });
    }
}
