//! Pure: the CNI configuration of each kind's main plugin. Keys and their order are the Go operator's (bindata/manifests/cni-config), because
//! readers compare text.

use sriov_crds::network::{OVSNetworkSpec, SriovIBNetworkSpec, SriovNetworkSpec, TrunkConfig};

use super::json::{Json, Object};

fn text(field: Option<&String>) -> Option<Json> {
    field.filter(|text| !text.is_empty()).map(|text| Json::from(text.as_str()))
}

fn not_zero(number: i64) -> Option<Json> {
    Some(number).filter(|n| *n != 0).map(Json::from)
}

pub(super) fn sriov(spec: &SriovNetworkSpec, capabilities: Option<Json>, ipam: Json) -> Json {
    let rate = |rate: Option<i64>| rate.filter(|r| *r >= 0).map(Json::from);
    Object::default()
        .with("type", Json::from("sriov"))
        .with("vlan", Json::from(spec.vlan))
        .with_some("spoofchk", text(spec.spoof_chk.as_ref()))
        .with_some("trust", text(spec.trust.as_ref()))
        .with("vlanQoS", Json::from(spec.vlan_qos))
        .with_some("vlanProto", text(spec.vlan_proto.as_ref()))
        .with_some("min_tx_rate", rate(spec.min_tx_rate))
        .with_some("max_tx_rate", rate(spec.max_tx_rate))
        .with_some("capabilities", capabilities)
        .with_some("link_state", text(spec.link_state.as_ref()))
        .with_some("logLevel", text(spec.log_level.as_ref()))
        .with_some("logFile", text(spec.log_file.as_ref()))
        .with("ipam", ipam)
        .build()
}

pub(super) fn infiniband(spec: &SriovIBNetworkSpec, capabilities: Option<Json>, ipam: Json) -> Json {
    Object::default()
        .with("type", Json::from("ib-sriov"))
        .with_some("capabilities", capabilities)
        .with_some("link_state", text(spec.link_state.as_ref()))
        .with("ipam", ipam)
        .build()
}

pub(super) fn ovs(spec: &OVSNetworkSpec, capabilities: Option<Json>, ipam: Json) -> Json {
    let trunk = |trunk: &TrunkConfig| {
        Object::default()
            .with_some("minID", trunk.min_id.map(Json::from))
            .with_some("maxID", trunk.max_id.map(Json::from))
            .with_some("id", trunk.id.map(Json::from))
            .build()
    };
    let trunks = (!spec.trunk.is_empty()).then(|| Json::Array(spec.trunk.iter().map(trunk).collect()));
    Object::default()
        .with("type", Json::from("ovs"))
        .with_some("capabilities", capabilities)
        .with_some("bridge", text(spec.bridge.as_ref()))
        .with_some("vlan", not_zero(spec.vlan))
        .with_some("mtu", not_zero(spec.mtu))
        .with_some("trunk", trunks)
        .with_some("interface_type", text(spec.interface_type.as_ref()))
        .with("ipam", ipam)
        .build()
}
