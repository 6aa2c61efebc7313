//! Pure: which attributes the PF has to set for a VF, from what is asked and what is there; and the inverse.
//!
//! Invariant: nothing that already has its value is set again (each administrative MAC can reset a VF), and the inverse touches nothing that
//! the plan did not.

use sriov_host::mac::MacAddr;
use sriov_host::vf::{VfAttributes, VfSetting, VfVlan};

use crate::conf::VfRequest;

/// An attribute that still has another value after the driver accepted the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmet(pub VfSetting);

/// The settings that `wanted` names, whether or not they are in place. A rate that is not named keeps its present value, because the kernel
/// takes both in one.
pub fn asked(wanted: &VfRequest, current: &VfAttributes) -> Vec<VfSetting> {
    let rate = (wanted.min_tx_rate.is_some() || wanted.max_tx_rate.is_some())
        .then(|| VfSetting::Rate { min: wanted.min_tx_rate.unwrap_or(current.min_tx_rate), max: wanted.max_tx_rate.unwrap_or(current.max_tx_rate) });
    let vlan = wanted.vlan.map(|v| VfSetting::Vlan(VfVlan { id: v.id, qos: v.qos, proto: v.proto }));
    [
        wanted.mac.map(VfSetting::Mac),
        vlan,
        rate,
        wanted.spoof_check.map(VfSetting::SpoofCheck),
        wanted.link_state.map(VfSetting::LinkState),
        wanted.trust.map(VfSetting::Trust),
        wanted.guid.map(VfSetting::NodeGuid),
        wanted.guid.map(VfSetting::PortGuid),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether anything is asked of the PF over netlink (a trunk is not).
pub fn asks_the_pf(wanted: &VfRequest) -> bool {
    let VfRequest { device: _, mtu: _, allmulti: _, promisc: _, rdma_isolation: _, vfio_pci_mode: _, mac, vlan, min_tx_rate, max_tx_rate, .. } =
        wanted;
    let VfRequest { spoof_check, trust, link_state, guid, .. } = wanted;
    let limits = min_tx_rate.is_some() || max_tx_rate.is_some();
    let switches = spoof_check.is_some() || trust.is_some() || link_state.is_some();
    mac.is_some() || vlan.is_some() || limits || switches || guid.is_some()
}

/// The settings of `asked` that are not in place.
pub fn changes(asked: &[VfSetting], current: &VfAttributes) -> Vec<VfSetting> {
    asked.iter().copied().filter(|setting| value_of(setting, current) != Some(*setting)).collect()
}

/// The settings that bring back `original` where `applied` may have changed it and `current` differs.
pub fn inverse(applied: &[VfSetting], original: &VfAttributes, current: &VfAttributes) -> Vec<VfSetting> {
    let back: Vec<_> = applied.iter().filter_map(|setting| value_of(setting, original)).collect();
    changes(&back, current)
}

/// The first of `applied` that the driver accepted but did not take over. What a driver does not report can't be checked.
pub fn unmet(applied: &[VfSetting], after: &VfAttributes) -> Option<Unmet> {
    applied.iter().find(|setting| value_of(setting, after).is_some_and(|value| value != **setting)).copied().map(Unmet)
}

/// What has to be taken away before the netdev's own address can be changed (`quirks::MacOrder::NetdevFirst`).
pub fn release_mac(current: &VfAttributes, netdev: MacAddr, target: MacAddr) -> Option<VfSetting> {
    (netdev != target && !current.mac.is_zero()).then_some(VfSetting::Mac(MacAddr::ZERO))
}

/// The attribute that `setting` is about, with its value in `attributes`; `None` when the driver does not report it.
fn value_of(setting: &VfSetting, attributes: &VfAttributes) -> Option<VfSetting> {
    Some(match setting {
        VfSetting::Mac(_) => VfSetting::Mac(attributes.mac),
        VfSetting::Vlan(_) => VfSetting::Vlan(attributes.vlan),
        VfSetting::Rate { .. } => VfSetting::Rate { min: attributes.min_tx_rate, max: attributes.max_tx_rate },
        VfSetting::SpoofCheck(_) => VfSetting::SpoofCheck(attributes.spoof_check?),
        VfSetting::LinkState(_) => VfSetting::LinkState(attributes.link_state?),
        VfSetting::Trust(_) => VfSetting::Trust(attributes.trust?),
        VfSetting::NodeGuid(_) => VfSetting::NodeGuid(attributes.node_guid?),
        VfSetting::PortGuid(_) => VfSetting::PortGuid(attributes.port_guid?),
    })
}

#[cfg(test)]
mod tests {
    use sriov_host::rate::Mbps;
    use sriov_host::vf::VfIndex;

    use super::*;
    use crate::conf::NetConf;

    fn fresh() -> VfAttributes {
        VfAttributes::fresh(VfIndex(1))
    }

    fn wanted(extra: &str) -> VfRequest {
        let wire = format!(r#"{{"name":"a","cniVersion":"1.0.0","type":"sriov","deviceID":"0000:01:10.2"{extra}}}"#);
        NetConf::parse(wire.as_bytes()).unwrap().vf_request(None).unwrap()
    }

    fn text(settings: &[VfSetting]) -> Vec<String> {
        settings.iter().map(ToString::to_string).collect()
    }

    const ALL: &str = r#","vlan":100,"vlanQoS":2,"mac":"02:00:00:00:00:01","max_tx_rate":50,"spoofchk":"off","trust":"on","link_state":"enable""#;

    /// What a driver that takes everything reports afterwards.
    fn perform(settings: &[VfSetting], attributes: &mut VfAttributes) {
        for setting in settings {
            match *setting {
                VfSetting::Mac(mac) => attributes.mac = mac,
                VfSetting::Vlan(vlan) => attributes.vlan = vlan,
                VfSetting::Rate { min, max } => (attributes.min_tx_rate, attributes.max_tx_rate) = (min, max),
                VfSetting::SpoofCheck(on) => attributes.spoof_check = Some(on),
                VfSetting::LinkState(state) => attributes.link_state = Some(state),
                VfSetting::Trust(on) => attributes.trust = Some(on),
                VfSetting::NodeGuid(guid) => attributes.node_guid = Some(guid),
                VfSetting::PortGuid(guid) => attributes.port_guid = Some(guid),
            }
        }
    }

    #[test]
    fn nothing_asked_is_nothing_set() {
        assert!(!asks_the_pf(&wanted(r#","mtu":9000"#)));
        assert!(asked(&wanted(""), &fresh()).is_empty());
    }

    #[test]
    fn everything_asked_is_set_once() {
        let settings = changes(&asked(&wanted(ALL), &fresh()), &fresh());
        assert_eq!(
            text(&settings),
            ["mac 02:00:00:00:00:01", "vlan 100 qos 2 proto 802.1q", "min_tx_rate 0 max_tx_rate 50", "spoofchk off", "state enable", "trust on"]
        );
        let mut after = fresh();
        perform(&settings, &mut after);
        assert!(changes(&asked(&wanted(ALL), &after), &after).is_empty());
        assert_eq!(unmet(&settings, &after), None);
    }

    #[test]
    fn what_is_in_place_is_not_set_again() {
        let settings = changes(&asked(&wanted(r#","vlan":0,"spoofchk":"on","trust":"on""#), &fresh()), &fresh());
        assert_eq!(text(&settings), ["trust on"]);
    }

    #[test]
    fn a_rate_that_is_not_named_keeps_its_value() {
        let current = VfAttributes { min_tx_rate: Mbps(5), ..fresh() };
        assert_eq!(text(&asked(&wanted(r#","max_tx_rate":50"#), &current)), ["min_tx_rate 5 max_tx_rate 50"]);
    }

    #[test]
    fn an_attribute_that_the_driver_does_not_report_is_set_but_neither_checked_nor_restored() {
        let silent = VfAttributes { trust: None, ..fresh() };
        let settings = changes(&asked(&wanted(r#","trust":"on""#), &silent), &silent);
        assert_eq!(text(&settings), ["trust on"]);
        assert_eq!(unmet(&settings, &silent), None);
        assert!(inverse(&settings, &silent, &silent).is_empty());
    }

    #[test]
    fn apply_then_inverse_changes_nothing() {
        let original = VfAttributes { mac: MacAddr([2, 0, 0, 0, 0, 9]), max_tx_rate: Mbps(7), ..fresh() };
        let settings = changes(&asked(&wanted(ALL), &original), &original);
        // A crash can come after any number of them.
        for done in 0..=settings.len() {
            let mut current = original.clone();
            perform(&settings[..done], &mut current);
            let back = inverse(&settings, &original, &current);
            perform(&back, &mut current);
            assert_eq!(current, original, "after {done} settings");
        }
    }

    #[test]
    fn both_identifiers_of_an_infiniband_vf_are_set_and_brought_back() {
        let own: sriov_host::guid::Guid = "02:00:00:00:00:00:00:01".parse().unwrap();
        let original = VfAttributes { node_guid: Some(own), port_guid: Some(own), ..fresh() };
        let settings = asked(&wanted(r#","runtimeConfig":{"infinibandGUID":"c2:11:22:33:44:55:66:77"}"#), &original);
        assert_eq!(text(&settings), ["node_guid c2:11:22:33:44:55:66:77", "port_guid c2:11:22:33:44:55:66:77"]);
        let mut current = original.clone();
        perform(&settings, &mut current);
        let back = inverse(&settings, &original, &current);
        assert_eq!(text(&back), ["node_guid 02:00:00:00:00:00:00:01", "port_guid 02:00:00:00:00:00:00:01"]);
        assert!(asks_the_pf(&wanted(r#","runtimeConfig":{"infinibandGUID":"c2:11:22:33:44:55:66:77"}"#)));
        assert!(!asks_the_pf(&wanted(r#","vlanTrunk":"1-10","rdmaIsolation":true"#)));
    }

    #[test]
    fn the_inverse_leaves_alone_what_was_not_applied() {
        let foreign = VfAttributes { vlan: VfVlan { id: 7.try_into().unwrap(), ..VfVlan::default() }, ..fresh() };
        assert!(inverse(&[VfSetting::Trust(true)], &fresh(), &foreign).is_empty());
    }

    #[test]
    fn a_setting_that_the_driver_ignored_is_found() {
        assert_eq!(unmet(&[VfSetting::SpoofCheck(true), VfSetting::Trust(true)], &fresh()), Some(Unmet(VfSetting::Trust(true))));
    }

    #[test]
    fn an_administrative_mac_is_released_only_where_it_is_in_the_way() {
        let (a, b) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let set = VfAttributes { mac: a, ..fresh() };
        assert_eq!(release_mac(&set, a, b), Some(VfSetting::Mac(MacAddr::ZERO)));
        assert_eq!(release_mac(&set, a, a), None);
        assert_eq!(release_mac(&fresh(), a, b), None);
    }
}
