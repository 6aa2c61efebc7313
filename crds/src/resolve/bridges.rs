//! Pure: policies -> the software bridges that are wanted of one node, one a PF. The rules are the Go operator's (api/v1/helper.go, `ApplyBridgeConfig`).
//!
//! What does not live here: whether bridges are managed at all (a feature gate), whether the PF can have one (its daemon says).
//!
//! Invariant: a PF has the bridge of the strongest policy that selects it, and none when that one names none; bridges are in order of name.

use std::collections::BTreeMap;

use super::{Policy, is_selected};
use crate::bridge::{Bridges, OvsBridge, OvsPolicy, OvsUplink};
use crate::node_state::InterfaceStatus;

/// The bridges of a node with these PFs; `policies` are those that select it, weakest first. `None` when there is none.
pub fn bridges(policies: &[Policy], pfs: &[InterfaceStatus]) -> Option<Bridges> {
    let mut wanted: BTreeMap<String, OvsBridge> = BTreeMap::new();
    for policy in policies {
        let ovs = policy.spec.bridge.as_ref().and_then(|bridge| bridge.ovs.as_ref());
        for pf in pfs.iter().filter(|pf| is_selected(policy, pf)) {
            let name = bridge_name(&pf.pci_address);
            match ovs {
                Some(ovs) => _ = wanted.insert(name.clone(), bridge(name, ovs, policy.spec.mtu, pf)),
                None => _ = wanted.remove(&name),
            }
        }
    }
    (!wanted.is_empty()).then(|| Bridges { ovs: wanted.into_values().collect() })
}

/// The name of a PF's bridge: 15 bytes, which is as long as the kernel lets a name be.
fn bridge_name(pf: &str) -> String {
    format!("br-{}", pf.replace(':', "_"))
}

fn bridge(name: String, ovs: &OvsPolicy, mtu: Option<i64>, pf: &InterfaceStatus) -> OvsBridge {
    let mut interface = ovs.uplink.as_ref().and_then(|uplink| uplink.interface.clone());
    if let Some(mtu) = mtu.filter(|mtu| *mtu > 0) {
        interface.get_or_insert_default().mtu_request = Some(mtu);
    }
    let uplink = OvsUplink { pci_address: pf.pci_address.clone(), name: pf.name.clone(), interface };
    OvsBridge { name, bridge: ovs.bridge.clone(), uplinks: vec![uplink] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, more: &str) -> Policy {
        let text = format!("{{resourceName: a, nodeSelector: {{}}, numVfs: 4, eSwitchMode: switchdev, {more}}}");
        Policy::read(name, &serde_saphyr::from_str(&text).unwrap()).unwrap()
    }

    fn pf(address: &str, name: &str) -> InterfaceStatus {
        InterfaceStatus { pci_address: address.into(), name: Some(name.into()), ..InterfaceStatus::default() }
    }

    fn names(policies: &[Policy]) -> Vec<String> {
        let pfs = [pf("0000:d8:00.0", "p0"), pf("0000:3b:00.1", "p1")];
        bridges(policies, &pfs).into_iter().flat_map(|bridges| bridges.ovs).map(|bridge| bridge.name).collect()
    }

    #[test]
    fn each_pf_has_a_bridge_of_its_own_in_order_of_name() {
        let both = "bridge: {ovs: {}}, nicSelector: {pfNames: [p0, p1]}";
        assert_eq!(names(&[policy("both", both)]), ["br-0000_3b_00.1", "br-0000_d8_00.0"]);
        assert_eq!(names(&[policy("both", both), policy("none", "nicSelector: {pfNames: [p1]}")]), ["br-0000_d8_00.0"]);
        assert_eq!(names(&[policy("none", "nicSelector: {pfNames: [p1]}"), policy("both", both)]).len(), 2, "the stronger one counts");
        assert_eq!(bridges(&[policy("none", "nicSelector: {pfNames: [p1]}")], &[pf("0000:3b:00.1", "p1")]), None);
    }

    #[test]
    fn the_mtu_of_the_policy_is_asked_of_the_uplink() {
        let uplink = |more: &str| {
            let more = format!("nicSelector: {{pfNames: [p0]}}, {more}");
            let found = bridges(&[policy("p", &more)], &[pf("0000:d8:00.0", "p0")]).unwrap();
            found.ovs[0].uplinks[0].interface.as_ref().and_then(|interface| interface.mtu_request)
        };
        assert_eq!(uplink("mtu: 9000, bridge: {ovs: {}}"), Some(9000));
        assert_eq!(uplink("mtu: 9000, bridge: {ovs: {uplink: {interface: {mtuRequest: 1500}}}}"), Some(9000));
        assert_eq!(uplink("bridge: {ovs: {uplink: {interface: {mtuRequest: 1500}}}}"), Some(1500));
        assert_eq!(uplink("bridge: {ovs: {}}"), None);
    }
}
