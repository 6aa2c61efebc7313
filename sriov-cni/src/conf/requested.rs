//! Pure: what is asked of a VF by several keys together: which device, which MAC, VLAN, trunk and GUID, each from the place that wins.

use serde_json::{Map, Value};
use sriov_host::device_id::DeviceId;
use sriov_host::guid::Guid;
use sriov_host::mac::MacAddr;
use sriov_host::vlan::VlanProto;

use super::values::{flag, invalid, number, one_of, text};
use super::{ConfError, VlanRequest};
use crate::vlan_set::VlanSet;

/// What names the device, with its key: `deviceID` as the kubelet's choice through Multus, then the pod's own, then the older key.
pub(super) fn device_value(wire: &Map<String, Value>) -> Option<(&'static str, &Value)> {
    let runtime = wire.get("runtimeConfig").and_then(|r| r.get("deviceID"));
    [("deviceID", wire.get("deviceID")), ("runtimeConfig.deviceID", runtime), ("pciBusID", wire.get("pciBusID"))]
        .into_iter()
        .find_map(|(key, value)| value.filter(|v| !v.is_null() && v.as_str() != Some("")).map(|value| (key, value)))
}

/// A device's id as configurations have it. A vDPA device has the id of the VF that it is made of; the Go operator's name for it (`vdpa:0000:65:00.2`) is
/// taken, too.
pub(crate) fn device_id(text: &str) -> Option<DeviceId> {
    match text.strip_prefix("vdpa:") {
        Some(address) => address.parse().ok().map(DeviceId::Pci),
        None => text.parse().ok(),
    }
}

pub(super) fn requested_mac(wire: &Map<String, Value>, args_mac: Option<&str>) -> Result<Option<MacAddr>, ConfError> {
    let parse = |key: &'static str, given: &str| {
        given.parse().ok().filter(|mac: &MacAddr| !mac.is_zero() && !mac.is_multicast()).ok_or_else(|| {
            invalid(key, &given.into(), "a unicast MAC address that is not zero, as 02:00:5e:10:00:01, 02-00-5e-10-00-01 or 0200.5e10.0001")
        })
    };
    let own = text(wire, "mac")?.map(|given| parse("mac", given)).transpose()?;
    let args = args_mac.map(|given| parse("MAC of CNI_ARGS", given)).transpose()?;
    let runtime = match wire.get("runtimeConfig").and_then(|r| r.get("mac")) {
        None | Some(Value::Null) => None,
        Some(Value::String(given)) if given.is_empty() => None,
        Some(Value::String(given)) => Some(parse("runtimeConfig.mac", given)?),
        Some(other) => return Err(invalid("runtimeConfig.mac", other, "a text")),
    };
    Ok(runtime.or(args).or(own))
}

pub(super) fn requested_vlan(wire: &Map<String, Value>) -> Result<Option<VlanRequest>, ConfError> {
    let id = number(wire, "vlan", 0..=4094)?;
    let qos = number(wire, "vlanQoS", 0..=7)?;
    // In any case, as in the field: the operator's networks may say 802.1Q and 802.1AD.
    let lower = wire.get("vlanProto").and_then(Value::as_str).map(str::to_ascii_lowercase);
    let proto = match lower.as_deref() {
        Some("802.1q") => Some(VlanProto::Dot1q),
        Some("802.1ad") => Some(VlanProto::Dot1ad),
        _ => one_of(wire, "vlanProto", &[("802.1q", VlanProto::Dot1q), ("802.1ad", VlanProto::Dot1ad)])?,
    };
    let Some(id) = id else {
        for key in ["vlanQoS", "vlanProto"] {
            if let Some(given) = wire.get(key).filter(|v| !v.is_null() && v.as_str() != Some("")) {
                return Err(invalid(key, given, "nothing without vlan: it describes the tag"));
            }
        }
        return Ok(None);
    };
    if id == 0 && qos.is_some_and(|qos| qos != 0) {
        return Err(invalid("vlanQoS", &wire["vlanQoS"], "0 with vlan 0: there is no tag to carry a priority"));
    }
    if id == 0 && proto == Some(VlanProto::Dot1ad) {
        return Err(invalid("vlanProto", &wire["vlanProto"], "802.1q with vlan 0: there is no tag"));
    }
    let narrow = || {
        let id = u16::try_from(id).ok()?.try_into().ok()?;
        let qos = u8::try_from(qos.unwrap_or_default()).ok()?.try_into().ok()?;
        Some(VlanRequest { id, qos, proto: proto.unwrap_or_default() })
    };
    narrow().map(Some).ok_or_else(|| invalid("vlan", &wire["vlan"], "a VLAN id and priority in the ranges of IEEE 802.1Q"))
}

/// A trunk lets the VF tag for itself, which a VLAN that the PF adds excludes.
pub(super) fn requested_trunk(wire: &Map<String, Value>) -> Result<Option<VlanSet>, ConfError> {
    const ALLOWED: &str = "a list of VLAN ids and ranges from 1 to 4094, as \"1-10,20\"";
    let Some(value) = wire.get("vlanTrunk").filter(|v| !v.is_null() && v.as_str() != Some("")) else { return Ok(None) };
    let trunk = value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| invalid("vlanTrunk", value, ALLOWED))?;
    if number(wire, "vlan", 0..=4094)?.is_some_and(|vlan| vlan != 0) {
        return Err(invalid("vlanTrunk", value, "nothing together with a vlan: the PF tags all frames with that"));
    }
    Ok(Some(trunk))
}

/// The GUID of an InfiniBand VF: the runtime's, else the one that ib-kubernetes puts into the pod's arguments (`args.cni.guid`), as in ib-sriov-cni.
pub(super) fn requested_guid(wire: &Map<String, Value>) -> Result<Option<Guid>, ConfError> {
    let places = [
        ("runtimeConfig.infinibandGUID", wire.get("runtimeConfig").and_then(|r| r.get("infinibandGUID"))),
        ("args.cni.guid", wire.get("args").and_then(|args| args.get("cni")?.get("guid"))),
    ];
    let mut guids = Vec::new();
    for (key, value) in places {
        if let Some(value) = value.filter(|v| !v.is_null() && v.as_str() != Some("")) {
            let guid = value.as_str().and_then(|text| text.parse().ok()).filter(|guid: &Guid| guid.is_assignable());
            guids.push(guid.ok_or_else(|| invalid(key, value, "a GUID that is neither zero nor all ones, as c2:11:22:33:44:55:66:77"))?);
        }
    }
    Ok(guids.first().copied())
}

/// The keys of ib-sriov-cni beyond the GUID. With ib-kubernetes nothing is attached before that has given the pod its GUID. The partition key is for
/// ib-kubernetes, which tells the subnet manager; a VF has it from there, so that nothing is set here.
pub(super) fn check_infiniband(wire: &Map<String, Value>) -> Result<(), ConfError> {
    if let Some(pkey) = text(wire, "pkey")? {
        let number = pkey.strip_prefix("0x").and_then(|digits| u16::from_str_radix(digits, 16).ok());
        // The highest bit says how the member may speak; without the others there is no partition.
        if number.is_none_or(|pkey| pkey == 0 || pkey == 0x8000) {
            return Err(invalid("pkey", &wire["pkey"], "a partition key in hexadecimal from 0x0001 to 0xffff, not 0x8000"));
        }
    }
    if flag(wire, "ibKubernetesEnabled")? == Some(true) {
        let args = wire.get("args").and_then(|args| args.get("cni"));
        let configured = args.and_then(|cni| cni.get("mellanox.infiniband.app")?.as_str()) == Some("configured");
        if !configured || requested_guid(wire)?.is_none() {
            return Err(ConfError::Missing {
                key: "args.cni.guid",
                hint: "ibKubernetesEnabled is true, and ib-kubernetes has not given this pod a GUID (yet); does it run and watch this network?",
            });
        }
    }
    Ok(())
}
