//! Pure: whether a policy contradicts another one, or a PF, on a node that exists. Names are resolved by the functions that render, so what is
//! compared here is what would be carried out.
//!
//! Invariant: two policies that name the same PF (by name, alternative name or address) are refused exactly when their sets of VF indices meet,
//! whatever the order of their entries. A broad selector (vendor, device) may be overridden by priority; that is only foretold (`forecast`).

use sriov_crds::node_state::InterfaceStatus;
use sriov_crds::resolve::{Policy, is_selected, selects, vf_range};

use super::forecast::Node;

const INTEL: &str = "8086";
pub(super) const MELLANOX: &str = "15b3";
/// The Go operator's limit (pkg/webhook/validate.go): what the firmware allows is not known before it is asked.
const MELLANOX_VFS: u16 = 128;

/// The first contradiction, in one sentence.
pub(in crate::admission) fn first(policy: &Policy, others: &[Policy], nodes: &[Node]) -> Option<String> {
    nodes.iter().filter(|node| selects(&policy.spec.node_selector, &node.labels)).find_map(|node| {
        let others: Vec<_> = others.iter().filter(|other| selects(&other.spec.node_selector, &node.labels)).collect();
        let with_resource = others
            .iter()
            .find(|other| other.spec.resource_name == policy.spec.resource_name && other.spec.exclude_topology != policy.spec.exclude_topology);
        if let Some(other) = with_resource {
            return Some(format!(
                "policy {} has the same resourceName {} with another excludeTopology, on node {}: both must say the same",
                other.name, policy.spec.resource_name, node.name
            ));
        }
        node.pfs.iter().flatten().filter(|pf| is_selected(policy, pf)).find_map(|pf| {
            of_pf(policy, pf)
                .or_else(|| others.iter().find_map(|other| between(policy, other, pf)))
                .map(|what| format!("PF {} of node {}: {what}", title(pf), node.name))
        })
    })
}

/// Address, and the name if there is one.
pub(super) fn title(pf: &InterfaceStatus) -> String {
    pf.name.as_ref().map_or_else(|| pf.pci_address.clone(), |name| format!("{name} ({})", pf.pci_address))
}

fn of_pf(policy: &Policy, pf: &InterfaceStatus) -> Option<String> {
    let (spec, num_vfs) = (&policy.spec, policy.num_vfs);
    let vendor = pf.vendor.as_deref().unwrap_or_default();
    if vendor == INTEL && i64::from(num_vfs) > pf.total_vfs {
        return Some(format!("numVfs {num_vfs} is more than the {} that it can have", pf.total_vfs));
    }
    if vendor == MELLANOX && num_vfs > MELLANOX_VFS {
        return Some(format!("numVfs {num_vfs} is more than {MELLANOX_VFS}"));
    }
    if spec.vdpa_type.as_deref().is_some_and(|kind| !kind.is_empty()) && vendor != MELLANOX {
        return Some("vdpaType is only possible on NICs of vendor 15b3".to_owned());
    }
    if !spec.externally_managed {
        return None;
    }
    if i64::from(num_vfs) > pf.num_vfs {
        return Some(format!("externallyManaged with numVfs {num_vfs}, but it has {} VFs now: create them first", pf.num_vfs));
    }
    if let (Some(wanted), Some(mtu)) = (spec.mtu, pf.mtu)
        && wanted > mtu
    {
        return Some(format!("externallyManaged with mtu {wanted}, but its MTU is {mtu}: raise it first"));
    }
    match (spec.link_type.as_deref(), pf.link_type.as_deref()) {
        (Some(wanted), Some(found)) if !wanted.is_empty() && !wanted.eq_ignore_ascii_case(found) => {
            Some(format!("externallyManaged with linkType {wanted}, but it is {found}"))
        }
        _ => None,
    }
}

fn between(policy: &Policy, other: &Policy, pf: &InterfaceStatus) -> Option<String> {
    if !is_selected(other, pf) {
        return None;
    }
    let (ours, theirs) = vf_range(policy, pf).zip(vf_range(other, pf))?;
    if policy.spec.externally_managed != other.spec.externally_managed {
        return Some(format!("policy {} says otherwise about externallyManaged: both must say the same", other.name));
    }
    (names_pfs(policy) && names_pfs(other) && ours.overlaps(theirs)).then(|| format!("VFs {ours} overlap with VFs {theirs} of policy {}", other.name))
}

/// True when the policy says which PFs it means, one by one.
fn names_pfs(policy: &Policy) -> bool {
    !policy.pf_names.is_empty() || !policy.spec.nic_selector.root_devices.is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use sriov_crds::SriovNetworkNodePolicySpec;
    use sriov_crds::node_policy::NicSelector;

    use super::*;

    fn policy(name: &str, pf_names: &[&str], root_devices: &[&str], num_vfs: u16) -> Policy {
        Policy {
            name: name.to_owned(),
            num_vfs,
            pf_names: pf_names.iter().map(|text| text.parse().unwrap()).collect(),
            spec: SriovNetworkNodePolicySpec {
                resource_name: name.to_owned(),
                num_vfs: num_vfs.into(),
                priority: 99,
                nic_selector: NicSelector {
                    pf_names: pf_names.iter().map(ToString::to_string).collect(),
                    root_devices: root_devices.iter().map(ToString::to_string).collect(),
                    ..NicSelector::default()
                },
                ..SriovNetworkNodePolicySpec::default()
            },
        }
    }

    fn pf(index: u8) -> InterfaceStatus {
        InterfaceStatus {
            pci_address: format!("0000:0{index}:00.0"),
            name: Some(format!("eth{index}")),
            alt_names: vec![format!("alt{index}")],
            vendor: Some("1077".to_owned()),
            total_vfs: 8,
            num_vfs: 2,
            mtu: Some(1500),
            link_type: Some("ETH".to_owned()),
            ..InterfaceStatus::default()
        }
    }

    fn node() -> Node {
        Node { name: "n".to_owned(), labels: BTreeMap::new(), pfs: Some(vec![pf(0), pf(1), pf(2)]), iommu_inactive: false }
    }

    fn conflict(policy: &Policy, other: &Policy) -> Option<String> {
        first(policy, std::slice::from_ref(other), &[node()])
    }

    /// B9 of the field: the first pair that does not overlap ended the search.
    #[test]
    fn an_overlap_is_not_missed_behind_an_entry_that_does_not_overlap() {
        let other = policy("there", &["eth0#0-1", "eth1#0-3"], &[], 8);
        assert!(conflict(&policy("new", &["eth0#4-5", "eth1#2-7"], &[], 8), &other).unwrap().contains("overlap with VFs 0-3 of policy there"));
        assert_eq!(conflict(&policy("new", &["eth0#2-7", "eth1#4-7"], &[], 8), &other), None);
    }

    /// B9 of the field: a name without a range was compared as (-1, -1).
    #[test]
    fn a_whole_pf_is_not_taken_for_disjoint_from_its_parts() {
        assert!(conflict(&policy("new", &["eth0"], &[], 4), &policy("there", &["eth0#0-3"], &[], 8)).is_some());
        assert!(conflict(&policy("new", &["eth0"], &[], 4), &policy("there", &["alt0#4-7"], &[], 8)).is_none(), "4 VFs are 0-3");
    }

    /// B9 of the field: names and addresses were never compared with each other.
    #[test]
    fn a_pf_named_in_two_ways_is_not_taken_for_two() {
        let by_address = policy("there", &[], &["0000:01:00.0"], 8);
        assert!(conflict(&policy("new", &["eth1#6-7"], &[], 8), &by_address).is_some());
        assert!(conflict(&policy("new", &["alt1"], &[], 1), &by_address).is_some());
        assert!(conflict(&policy("new", &["eth2"], &[], 1), &by_address).is_none());
    }

    #[test]
    fn a_broad_selector_may_be_overridden() {
        let mut broad = policy("there", &[], &[], 8);
        broad.spec.nic_selector.vendor = Some("1077".to_owned());
        assert_eq!(conflict(&policy("new", &["eth0"], &[], 1), &broad), None);
        broad.spec.externally_managed = true;
        assert!(conflict(&policy("new", &["eth0"], &[], 1), &broad).unwrap().contains("externallyManaged"));
    }

    #[test]
    fn what_a_pf_cannot_is_refused_where_the_field_refuses_it() {
        let said = |vendor: &str, change: fn(&mut Policy)| {
            let mut wanted = policy("new", &["eth0"], &[], 4);
            change(&mut wanted);
            wanted.num_vfs = u16::try_from(wanted.spec.num_vfs).unwrap();
            let mut node = node();
            node.pfs.as_mut().unwrap()[0].vendor = Some(vendor.to_owned());
            first(&wanted, &[], &[node]).unwrap_or_default()
        };
        assert!(said(INTEL, |p| p.spec.num_vfs = 9).contains("PF eth0 (0000:00:00.0) of node n: numVfs 9 is more than the 8"));
        assert_eq!(said("14e4", |p| p.spec.num_vfs = 9), "", "other vendors are only foretold");
        assert!(said(MELLANOX, |p| p.spec.num_vfs = 129).contains("more than 128"));
        assert_eq!(said(MELLANOX, |p| p.spec.vdpa_type = Some("virtio".into())), "");
        assert!(said(INTEL, |p| p.spec.vdpa_type = Some("virtio".into())).contains("15b3"));
        let external = |p: &mut Policy| p.spec.externally_managed = true;
        assert!(said(INTEL, external).contains("it has 2 VFs now"));
        assert_eq!(
            said(INTEL, |p| {
                p.spec.externally_managed = true;
                p.spec.num_vfs = 2;
                p.spec.mtu = Some(1500);
                p.spec.link_type = Some("eth".into());
            }),
            ""
        );
        assert!(
            said(INTEL, |p| {
                p.spec.externally_managed = true;
                p.spec.num_vfs = 2;
                p.spec.mtu = Some(9000);
            })
            .contains("its MTU is 1500")
        );
        assert!(
            said(INTEL, |p| {
                p.spec.externally_managed = true;
                p.spec.num_vfs = 2;
                p.spec.link_type = Some("ib".into());
            })
            .contains("but it is ETH")
        );
    }

    #[test]
    fn one_resource_has_one_topology_setting_on_a_node() {
        let mut there = policy("there", &["eth1"], &[], 1);
        there.spec.resource_name = "new".to_owned();
        there.spec.exclude_topology = true;
        assert!(conflict(&policy("new", &["eth0"], &[], 1), &there).unwrap().contains("excludeTopology"));
        there.spec.node_selector = [("rack".to_owned(), "7".to_owned())].into();
        assert_eq!(conflict(&policy("new", &["eth0"], &[], 1), &there), None, "not on the same node");
    }

    #[derive(Clone, Debug)]
    struct Entry {
        pf: u8,
        way: u8,
        range: Option<(u16, u16)>,
    }

    fn entries() -> impl Strategy<Value = (u16, Vec<Entry>)> {
        (1_u16..12).prop_flat_map(|num_vfs| {
            let range = proptest::option::of((0..num_vfs, 0..num_vfs).prop_map(|(a, b)| (a.min(b), a.max(b))));
            let entry = (0_u8..3, 0_u8..3, range).prop_map(|(pf, way, range)| Entry { pf, way, range });
            (Just(num_vfs), proptest::collection::vec(entry, 1..4))
        })
    }

    fn from(name: &str, (num_vfs, entries): &(u16, Vec<Entry>)) -> Policy {
        let by_name = |e: &&Entry| e.way < 2;
        let text = |e: &Entry| {
            let name = if e.way == 0 { format!("eth{}", e.pf) } else { format!("alt{}", e.pf) };
            e.range.map_or(name.clone(), |(a, b)| format!("{name}#{a}-{b}"))
        };
        // The selector's fields are and-ed, so one policy uses one of them.
        let names: Vec<_> = entries.iter().filter(by_name).map(text).collect();
        let addresses: Vec<_> = entries.iter().map(|e| format!("0000:0{}:00.0", e.pf)).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        if names.is_empty() { policy(name, &[], &addresses, *num_vfs) } else { policy(name, &names, &[], *num_vfs) }
    }

    /// Slow and obvious: which VFs of which PF a policy's texts mean. The first entry that names a PF counts, as in rendering.
    fn model(policy: &Policy) -> BTreeSet<(u8, u16)> {
        let mut vfs = BTreeSet::new();
        for pf in 0..3 {
            let names = [format!("eth{pf}"), format!("alt{pf}")];
            let entry = policy.spec.nic_selector.pf_names.iter().find(|text| names.iter().any(|n| text.split('#').next() == Some(n)));
            let whole = 0..policy.num_vfs;
            match entry {
                Some(text) => match text.split_once('#') {
                    Some((_, range)) => {
                        let (a, b) = range.split_once('-').unwrap();
                        vfs.extend((a.parse::<u16>().unwrap()..=b.parse().unwrap()).map(|vf| (pf, vf)));
                    }
                    None => vfs.extend(whole.map(|vf| (pf, vf))),
                },
                None if policy.spec.nic_selector.root_devices.contains(&format!("0000:0{pf}:00.0")) => vfs.extend(whole.map(|vf| (pf, vf))),
                None => {}
            }
        }
        vfs
    }

    proptest! {
        #[test]
        fn two_policies_that_name_pfs_are_refused_exactly_when_they_share_a_vf(a in entries(), b in entries()) {
            let (a, b) = (from("a", &a), from("b", &b));
            let share = !model(&a).is_disjoint(&model(&b));
            prop_assert_eq!(conflict(&a, &b).is_some(), share, "{:?} {:?}", a.spec.nic_selector, b.spec.nic_selector);
            prop_assert_eq!(conflict(&b, &a).is_some(), share, "the order of creation does not matter");
        }
    }
}
