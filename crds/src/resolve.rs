//! Pure: policies -> what is wanted of one node's PFs. The operator renders node states with it, the daemon's `plan -f policy.yaml` the same
//! without a cluster. The merge rules are the Go operator's (api/v1/helper.go, `Apply` and `mergeConfigs`), with one change: a VF range counts
//! with an alternative name too, not only with the primary one (B8).
//!
//! What does not live here: which objects there are (gathering), what is written when (the operator's `build`).
//!
//! Invariants: the result is a function of the policies, their order and the PFs; `policyRevision` is in every spec.

mod bridges;
#[cfg(test)]
mod model;

use std::collections::BTreeMap;

use crate::node_policy::{NicSelector, VFIO_PCI};
use crate::node_state::{Interface, InterfaceStatus, VfGroup};
use crate::{PfSelector, SriovNetworkNodePolicySpec, SriovNetworkNodeStateSpec, VfRange, VfRangeError};

pub use bridges::bridges;

/// The eswitch mode of who says none.
const LEGACY: &str = "legacy";
/// Longest last part of an extended resource name.
const RESOURCE_NAME_LENGTH: usize = 63;

/// A policy that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// VFs wanted on each selected PF.
    pub num_vfs: u16,
    /// `nicSelector.pfNames`, read.
    pub pf_names: Vec<PfSelector>,
    /// Everything else, as it was written.
    pub spec: SriovNetworkNodePolicySpec,
}

/// Why a policy cannot be carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not an object of this kind.
    #[error("the object could not be read: {0}")]
    Unreadable(String),
    /// Not the last part of an extended resource's name.
    #[error("resourceName {0:?} must be 1 to 63 letters, digits, - or _, and begin and end with a letter or digit")]
    ResourceName(String),
    /// Not a number of VFs.
    #[error("numVfs {0} must be from 0 to 65535")]
    NumVfs(i64),
    /// Not a PF name with an optional range.
    #[error("nicSelector.pfNames: {0}")]
    PfName(VfRangeError),
    /// A range that ends beyond the VFs that the policy itself asks for.
    #[error("nicSelector.pfNames: {selector} needs at least {needed} VFs, but numVfs is {num_vfs}")]
    RangeBeyondNumVfs {
        /// The entry.
        selector: PfSelector,
        /// VFs that it needs.
        needed: u32,
        /// VFs that there will be.
        num_vfs: u16,
    },
    /// RDMA on VFs of userspace drivers.
    #[error("isRdma and deviceType vfio-pci exclude each other: RDMA needs the kernel's driver")]
    RdmaWithVfio,
}

impl Policy {
    /// Reads a policy. Only what makes it impossible to carry out makes it malformed here; what is merely unwise is the webhook's.
    pub fn read(name: &str, spec: &SriovNetworkNodePolicySpec) -> Result<Self, Malformed> {
        let mut spec = spec.clone();
        if !is_resource_name(&spec.resource_name) {
            return Err(Malformed::ResourceName(spec.resource_name));
        }
        let num_vfs = u16::try_from(spec.num_vfs).map_err(|_| Malformed::NumVfs(spec.num_vfs))?;
        let pf_names =
            spec.nic_selector.pf_names.iter().map(|text| text.parse()).collect::<Result<Vec<PfSelector>, _>>().map_err(Malformed::PfName)?;
        for selector in &pf_names {
            let Some(needed) = selector.range.map(|range| u32::from(range.last()) + 1) else { continue };
            if needed > u32::from(num_vfs) {
                return Err(Malformed::RangeBeyondNumVfs { selector: selector.clone(), needed, num_vfs });
            }
        }
        if spec.is_rdma && spec.device_type == VFIO_PCI {
            return Err(Malformed::RdmaWithVfio);
        }
        // InfiniBand without RDMA is nothing; the Go operator's webhook says the same.
        let infiniband = spec.link_type.as_deref().is_some_and(|link| link.eq_ignore_ascii_case("ib"));
        spec.is_rdma |= infiniband && spec.device_type != VFIO_PCI;
        Ok(Self { name: name.to_owned(), num_vfs, pf_names, spec })
    }
}

fn is_resource_name(name: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= RESOURCE_NAME_LENGTH
        && alphanumeric(name.chars().next())
        && alphanumeric(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// True when every pair of a policy's node selector is among the node's labels.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Weakest first: the order in which the Go operator applies policies, later ones override.
pub fn order(policies: &mut [Policy]) {
    policies.sort_by(|a, b| b.spec.priority.cmp(&a.spec.priority).then_with(|| a.name.cmp(&b.name)));
}

/// The spec of a node with these PFs; `policies` are those that select it, weakest first.
pub fn spec(policies: &[Policy], pfs: &[InterfaceStatus]) -> SriovNetworkNodeStateSpec {
    let mut interfaces: BTreeMap<&str, Interface> = BTreeMap::new();
    let mut previous = None;
    for policy in policies {
        // Against the policy before it in the order, not against the one that produced the entry: kept from the Go operator.
        let same_priority = previous == Some(policy.spec.priority);
        previous = Some(policy.spec.priority);
        for pf in pfs.iter().filter(|pf| is_selected(policy, pf)) {
            let Some(new) = interface(policy, pf) else { continue };
            let merged = match interfaces.remove(pf.pci_address.as_str()) {
                Some(old) => merge(old, new, same_priority),
                None => new,
            };
            interfaces.insert(&pf.pci_address, merged);
        }
    }
    SriovNetworkNodeStateSpec {
        interfaces: interfaces.into_values().collect(),
        policy_revision: Some(revision(policies)),
        ..SriovNetworkNodeStateSpec::default()
    }
}

/// True when all non-empty fields of the selector agree; an entirely empty one selects nothing.
pub fn is_selected(policy: &Policy, pf: &InterfaceStatus) -> bool {
    let NicSelector { vendor, device_id, root_devices, pf_names: _, net_filter } = &policy.spec.nic_selector;
    let given = |field: &Option<String>| field.as_ref().filter(|text| !text.is_empty()).cloned();
    let (vendor, device_id, net_filter) = (given(vendor), given(device_id), given(net_filter));
    if vendor.is_none() && device_id.is_none() && net_filter.is_none() && root_devices.is_empty() && policy.pf_names.is_empty() {
        return false;
    }
    let equal = |wanted: &str, found: Option<&String>| found.is_some_and(|found| found.eq_ignore_ascii_case(wanted));
    vendor.is_none_or(|v| equal(&v, pf.vendor.as_ref()))
        && device_id.is_none_or(|d| equal(&d, pf.device_id.as_ref()))
        && net_filter.is_none_or(|n| pf.net_filter.as_deref() == Some(n.trim()))
        && (root_devices.is_empty() || root_devices.iter().any(|address| address.eq_ignore_ascii_case(&pf.pci_address)))
        && (policy.pf_names.is_empty() || policy.pf_names.iter().any(|selector| names(pf).any(|name| *name == selector.name)))
}

fn names(pf: &InterfaceStatus) -> impl Iterator<Item = &String> {
    pf.name.iter().chain(&pf.alt_names)
}

/// The VFs that a policy means on a PF that it selects; `None` when it wants no VFs.
pub fn vf_range(policy: &Policy, pf: &InterfaceStatus) -> Option<VfRange> {
    let all = VfRange::all_of(policy.num_vfs)?;
    let named = policy.pf_names.iter().find(|selector| names(pf).any(|name| *name == selector.name));
    Some(named.and_then(|selector| selector.range).unwrap_or(all))
}

/// What one policy alone wants of a PF; nothing when it wants no VFs.
fn interface(policy: &Policy, pf: &InterfaceStatus) -> Option<Interface> {
    let range = vf_range(policy, pf)?;
    let spec = &policy.spec;
    let group = VfGroup {
        resource_name: Some(spec.resource_name.clone()),
        device_type: Some(spec.device_type.clone()),
        vf_range: Some(range.to_string()),
        policy_name: Some(policy.name.clone()),
        mtu: spec.mtu,
        is_rdma: spec.is_rdma,
        vdpa_type: spec.vdpa_type.clone(),
        need_vhost_net: spec.need_vhost_net,
        exclude_topology: spec.exclude_topology,
    };
    Some(Interface {
        pci_address: pf.pci_address.clone(),
        name: pf.name.clone(),
        num_vfs: i64::from(policy.num_vfs),
        mtu: spec.mtu,
        link_type: spec.link_type.clone(),
        eswitch_mode: spec.eswitch_mode.clone(),
        externally_managed: spec.externally_managed,
        vf_groups: vec![group],
    })
}

/// What a policy that has VFs on a PF asks of the PF as a whole and does not get, because a stronger policy decides it: field, asked, got.
///
/// Which VFs are whose is not a matter here, and neither are MTU and number of VFs, of which the larger holds. The Go operator said nothing (B30).
pub fn overridden(spec: &SriovNetworkNodePolicySpec, interface: &Interface) -> Vec<(&'static str, String, String)> {
    let mode = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).unwrap_or(LEGACY).to_lowercase();
    let link = |text: &Option<String>| text.as_deref().unwrap_or_default().to_lowercase();
    let mut fields = vec![
        ("eSwitchMode", mode(&spec.eswitch_mode), mode(&interface.eswitch_mode)),
        ("externallyManaged", spec.externally_managed.to_string(), interface.externally_managed.to_string()),
    ];
    // Unset means any.
    if !link(&spec.link_type).is_empty() {
        let got = Some(link(&interface.link_type)).filter(|got| !got.is_empty()).unwrap_or_else(|| "as it is".to_owned());
        fields.push(("linkType", link(&spec.link_type), got));
    }
    fields.retain(|(_, asked, got)| asked != got);
    fields
}

/// Puts a stronger policy's wish over what weaker ones wanted of the same PF.
fn merge(old: Interface, new: Interface, same_priority: bool) -> Interface {
    let stronger = new.vf_groups.first().cloned();
    let survives = |group: &VfGroup| stronger.as_ref().is_none_or(|s| s.resource_name != group.resource_name && !overlap(s, group));
    let kept: Vec<_> = old.vf_groups.into_iter().filter(survives).collect();
    let mut merged = new;
    if same_priority || !kept.is_empty() {
        merged.mtu = merged.mtu.max(old.mtu);
        merged.num_vfs = merged.num_vfs.max(old.num_vfs);
    }
    merged.vf_groups.extend(kept);
    merged
}

fn overlap(a: &VfGroup, b: &VfGroup) -> bool {
    let range = |group: &VfGroup| group.vf_range.as_deref().and_then(|text| text.parse::<VfRange>().ok());
    range(a).zip(range(b)).is_some_and(|(a, b)| a.overlaps(b))
}

/// A hash (FNV-1a, 64 bits) of names and specs of the policies in their order: it moves exactly when a policy of the node does.
fn revision(policies: &[Policy]) -> String {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let text = policies.iter().map(|p| format!("{}\0{}\0", p.name, serde_json::json!(p.spec)));
    format!("{:016x}", text.flat_map(String::into_bytes).fold(0xcbf2_9ce4_8422_2325, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, text: &str) -> Policy {
        Policy::read(name, &serde_saphyr::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn the_range_of_an_alternative_name_does_not_claim_the_whole_pf() {
        let pf = InterfaceStatus {
            pci_address: "0000:01:00.0".into(),
            name: Some("eth0".into()),
            alt_names: vec!["enp1s0".into()],
            ..InterfaceStatus::default()
        };
        let some = policy("b8", "{resourceName: a, nodeSelector: {}, nicSelector: {pfNames: ['enp1s0#2-3']}, numVfs: 4}");
        let spec = spec(&[some], &[pf]);
        assert_eq!(spec.interfaces[0].vf_groups[0].vf_range.as_deref(), Some("2-3"));
    }

    /// B30 of the field: a weaker policy that shares a PF lost its eswitch mode and nobody was told.
    #[test]
    fn what_a_stronger_policy_decides_for_the_whole_pf_is_told() {
        let pf = InterfaceStatus { pci_address: "0000:01:00.0".into(), name: Some("eth0".into()), ..InterfaceStatus::default() };
        let of = |name, vfs, more| {
            policy(name, &format!("{{resourceName: {name}, nodeSelector: {{}}, nicSelector: {{pfNames: ['eth0#{vfs}']}}, numVfs: 4, {more}}}"))
        };
        let weak = of("weak", "0-1", "priority: 90, eSwitchMode: switchdev, linkType: ETH");
        let strong = of("strong", "2-3", "priority: 10, linkType: eth");
        let merged = spec(&[weak.clone(), strong.clone()], &[pf]).interfaces.remove(0);
        assert_eq!(merged.vf_groups.len(), 2, "both have VFs");
        assert_eq!(overridden(&weak.spec, &merged), [("eSwitchMode", "switchdev".to_owned(), "legacy".to_owned())]);
        assert_eq!(overridden(&strong.spec, &merged), []);
    }

    #[test]
    fn a_policy_without_priority_is_not_the_strongest() {
        let text = |priority| format!("{{resourceName: a, nodeSelector: {{}}, nicSelector: {{pfNames: [eth0]}}, numVfs: 4{priority}}}");
        let mut both = vec![policy("b26", &text("")), policy("named", &text(", priority: 10"))];
        order(&mut both);
        assert_eq!(both.last().unwrap().name, "named");
    }
}
