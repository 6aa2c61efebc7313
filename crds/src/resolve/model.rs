//! Pure (tests only): the merge rules once more, VF by VF and with no thought of speed, to compare [`super::spec`] with. It is written from the rules'
//! text (what users of the Go operator rely on), not from the code: every policy in its order, every PF, every VF index by itself.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What a policy contributes to a PF: the VFs that it has, by index.
#[derive(Clone, Debug, PartialEq)]
struct Claim {
    policy: String,
    resource: String,
    vfs: BTreeSet<u16>,
}

/// What is known of a PF after some policies.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    num_vfs: i64,
    mtu: Option<i64>,
    eswitch_mode: Option<String>,
    link_type: Option<String>,
    externally_managed: bool,
    /// Strongest first.
    claims: Vec<Claim>,
}

fn model(policies: &[Policy], pfs: &[InterfaceStatus]) -> BTreeMap<String, Wanted> {
    let mut all = BTreeMap::new();
    for pf in pfs {
        let mut wanted: Option<Wanted> = None;
        for (place, policy) in policies.iter().enumerate() {
            let names: Vec<&String> = pf.name.iter().chain(&pf.alt_names).collect();
            let entries: Vec<&PfSelector> = policy.pf_names.iter().filter(|entry| names.contains(&&entry.name)).collect();
            let by_name = policy.pf_names.is_empty() || !entries.is_empty();
            let roots = &policy.spec.nic_selector.root_devices;
            let by_address = roots.is_empty() || roots.contains(&pf.pci_address);
            let vendor = &policy.spec.nic_selector.vendor;
            let by_vendor = vendor.is_none() || *vendor == pf.vendor;
            let says_something = !policy.pf_names.is_empty() || !roots.is_empty() || vendor.is_some();
            if !(says_something && by_name && by_address && by_vendor) || policy.num_vfs == 0 {
                continue;
            }
            let only = entries.first().and_then(|entry| entry.range);
            let vfs: BTreeSet<u16> = (0..policy.num_vfs).filter(|vf| only.is_none_or(|r| r.first() <= *vf && *vf <= r.last())).collect();
            let resource = policy.spec.resource_name.clone();
            let equal = place > 0 && policies[place - 1].spec.priority == policy.spec.priority;
            let before = wanted.take();
            let earlier = before.as_ref().map(|b| b.claims.clone()).unwrap_or_default();
            let survivors: Vec<Claim> = earlier.into_iter().filter(|c| c.resource != resource && c.vfs.is_disjoint(&vfs)).collect();
            let joins = before.is_some() && (equal || !survivors.is_empty());
            let best = |new: Option<i64>, old: Option<i64>| if joins && old > new { old } else { new };
            wanted = Some(Wanted {
                num_vfs: best(Some(i64::from(policy.num_vfs)), before.as_ref().map(|b| b.num_vfs)).unwrap_or(0),
                mtu: best(policy.spec.mtu, before.as_ref().and_then(|b| b.mtu)),
                eswitch_mode: policy.spec.eswitch_mode.clone(),
                link_type: policy.spec.link_type.clone(),
                externally_managed: policy.spec.externally_managed,
                claims: [vec![Claim { policy: policy.name.clone(), resource, vfs }], survivors].concat(),
            });
        }
        wanted.map(|wanted| all.insert(pf.pci_address.clone(), wanted));
    }
    all
}

fn seen(spec: &SriovNetworkNodeStateSpec) -> BTreeMap<String, Wanted> {
    let claim = |group: &VfGroup| {
        let range: VfRange = group.vf_range.as_deref().unwrap().parse().unwrap();
        Claim {
            policy: group.policy_name.clone().unwrap(),
            resource: group.resource_name.clone().unwrap(),
            vfs: (range.first()..=range.last()).collect(),
        }
    };
    let wanted = |pf: &Interface| Wanted {
        num_vfs: pf.num_vfs,
        mtu: pf.mtu,
        eswitch_mode: pf.eswitch_mode.clone(),
        link_type: pf.link_type.clone(),
        externally_managed: pf.externally_managed,
        claims: pf.vf_groups.iter().map(claim).collect(),
    };
    spec.interfaces.iter().map(|pf| (pf.pci_address.clone(), wanted(pf))).collect()
}

fn pfs() -> Vec<InterfaceStatus> {
    let pf = |n: u8, vendor: &str| InterfaceStatus {
        pci_address: format!("0000:0{n}:00.0"),
        name: Some(format!("eth{n}")),
        alt_names: vec![format!("alt{n}")],
        vendor: Some(vendor.to_owned()),
        ..InterfaceStatus::default()
    };
    vec![pf(0, "8086"), pf(1, "8086"), pf(2, "15b3")]
}

fn policy() -> impl Strategy<Value = Policy> {
    let range = (0..8u16, 0..8u16).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let entry = (0..3u8, any::<bool>(), proptest::option::of(range));
    let nic = (proptest::collection::vec(entry, 0..3), proptest::option::of(0..3u8), proptest::option::of(any::<bool>()));
    let scalars = (0..3u8, 0..9u16, prop_oneof![Just(5), Just(50), Just(99)], proptest::option::of(1..3i64), any::<bool>(), any::<bool>());
    ((0..1000u16), nic, scalars).prop_map(|(name, (entries, root, vendor), (resource, count, priority, mtu, switchdev, external))| {
        let names: Vec<String> = entries
            .iter()
            .map(|(pf, alternative, range)| {
                let name = format!("{}{pf}", if *alternative { "alt" } else { "eth" });
                // A range beyond the number of VFs is refused before rendering.
                let last = count.saturating_sub(1);
                range.filter(|_| count > 0).map_or(name.clone(), |(a, b)| format!("{name}#{}-{}", a.min(last), b.min(last)))
            })
            .collect();
        let spec = json!({
            "resourceName": format!("r{resource}"), "nodeSelector": {}, "numVfs": count, "priority": priority, "mtu": mtu.map(|mtu| mtu * 1500),
            "eSwitchMode": switchdev.then_some("switchdev"), "externallyManaged": external,
            "nicSelector": {
                "pfNames": names, "rootDevices": root.map(|n| vec![format!("0000:0{n}:00.0")]).unwrap_or_default(),
                "vendor": vendor.map(|intel| if intel { "8086" } else { "15b3" }),
            },
        });
        Policy::read(&format!("p{name}"), &serde_json::from_value(spec).unwrap()).unwrap()
    })
}

proptest! {
    #[test]
    fn rendering_agrees_with_the_rules_taken_vf_by_vf(mut policies in proptest::collection::vec(policy(), 0..7)) {
        order(&mut policies);
        prop_assert_eq!(seen(&spec(&policies, &pfs())), model(&policies, &pfs()));
    }

    /// Neither the order of writing nor that of the PFs counts, and no VF is in two groups.
    #[test]
    fn rendering_depends_on_nothing_else(mut policies in proptest::collection::vec(policy(), 0..7), turn in 0..7usize) {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies.dedup_by(|a, b| a.name == b.name);
        let mut other = policies.clone();
        let by = turn.min(other.len());
        other.rotate_left(by);
        order(&mut policies);
        order(&mut other);
        let reversed: Vec<_> = pfs().into_iter().rev().collect();
        let rendered = spec(&policies, &pfs());
        prop_assert_eq!(&rendered, &spec(&other, &reversed));
        for wanted in seen(&rendered).values() {
            let all: usize = wanted.claims.iter().map(|claim| claim.vfs.len()).sum();
            let different: BTreeSet<u16> = wanted.claims.iter().flat_map(|claim| claim.vfs.clone()).collect();
            prop_assert_eq!(all, different.len(), "a VF in two groups");
        }
    }
}
