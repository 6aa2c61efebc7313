//! Pure: a policy before it is stored: what is filled in (the Go operator's mutating webhook), and what one policy alone must not say.
//!
//! What other objects decide is in `conflicts` and `forecast`. Rules are the Go operator's (pkg/webhook/mutate.go and validate.go); most of them
//! are CEL rules of the CustomResourceDefinition too, and stay here for clusters whose API server has an older copy of it.

pub(super) mod conflicts;
pub(super) mod forecast;

use std::collections::BTreeMap;

use kube::core::DeserializeGuard;
use serde_json::{Value, json};
use sriov_crds::node_policy::{DEFAULT_PRIORITY, NETDEVICE, VFIO_PCI};
use sriov_crds::resolve::{Malformed, Policy};
use sriov_crds::{SriovNetworkNodePolicy, keys};

use crate::node_policy::validate;

/// The models of `supported-nic-ids`: vendor and PF device, lower case.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Models(Vec<(String, String)>);

impl Models {
    /// Of the ConfigMap's data; a malformed line counts for nothing.
    pub(super) fn of(data: &BTreeMap<String, String>) -> Self {
        let model = |line: &String| {
            let mut words = line.split_whitespace().map(str::to_ascii_lowercase);
            words.next().zip(words.next())
        };
        Self(data.values().filter_map(model).collect())
    }

    fn has(&self, vendor: Option<&str>, device: Option<&str>) -> bool {
        let equal = |wanted: Option<&str>, model: &str| wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(model));
        self.0.iter().any(|(v, d)| equal(vendor, v) && equal(device, d))
    }
}

/// Why a policy alone is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("numVfs is 0: it must be at least 1; delete the policy to remove VFs")]
    NoVfs,
    #[error("nicSelector is empty: give vendor, deviceID, rootDevices, pfNames or netFilter")]
    NoSelector,
    #[error("nicSelector.netFilter excludes {0}")]
    NetFilterWith(&'static str),
    #[error("{0} is not in ConfigMap supported-nic-ids: add it there first")]
    UnknownModel(String),
    #[error("eSwitchMode switchdev needs linkType eth, given: {0}")]
    SwitchdevLink(String),
    #[error("vdpaType needs deviceType netdevice and eSwitchMode switchdev")]
    Vdpa,
    #[error("bridge needs eSwitchMode switchdev and a PF that is not externallyManaged")]
    Bridge,
}

/// Named so by the Go operator; it and its leftovers are never looked at.
pub(super) fn is_legacy_default(name: &str, namespace: &str, operator_namespace: &str) -> bool {
    name == keys::LEGACY_DEFAULT_POLICY && namespace == operator_namespace
}

/// JSON patch operations that fill in what was left out.
pub(super) fn defaults(object: &Value) -> Vec<Value> {
    let Some(spec) = object.get("spec").and_then(Value::as_object) else { return vec![] };
    if object.pointer("/metadata/name").and_then(Value::as_str) == Some(keys::LEGACY_DEFAULT_POLICY) {
        return vec![];
    }
    let mut patch = vec![];
    if !spec.contains_key("priority") {
        patch.push(json!({ "op": "add", "path": "/spec/priority", "value": DEFAULT_PRIORITY }));
    }
    let text = |key: &str| spec.get(key).and_then(Value::as_str).unwrap_or_default();
    let infiniband = text("linkType").eq_ignore_ascii_case("ib") && text("deviceType") != VFIO_PCI;
    let wanted = spec.get("isRdma").cloned().unwrap_or(Value::Null);
    if infiniband && wanted != json!(true) {
        patch.push(json!({ "op": "add", "path": "/spec/isRdma", "value": true }));
    } else if !spec.contains_key("isRdma") {
        patch.push(json!({ "op": "add", "path": "/spec/isRdma", "value": false }));
    }
    patch
}

/// The policy in strict form. `models` is `None` when every model is allowed.
pub(super) fn check(object: &DeserializeGuard<SriovNetworkNodePolicy>, models: Option<&Models>) -> Result<Policy, Refused> {
    let policy = validate::policy(object)?;
    if policy.num_vfs == 0 {
        return Err(Refused::NoVfs);
    }
    let spec = &policy.spec;
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let selector = &spec.nic_selector;
    let (vendor, device, net_filter) = (given(&selector.vendor), given(&selector.device_id), given(&selector.net_filter));
    if vendor.is_none() && device.is_none() && net_filter.is_none() && selector.root_devices.is_empty() && policy.pf_names.is_empty() {
        return Err(Refused::NoSelector);
    }
    let link = given(&spec.link_type).unwrap_or_else(|| "eth".to_owned());
    let ethernet = link.eq_ignore_ascii_case("eth");
    let switchdev = spec.eswitch_mode.as_deref() == Some("switchdev");
    let bridge = spec.bridge.as_ref().is_some_and(|bridge| bridge.ovs.is_some());
    if net_filter.is_some() {
        let excluded = [
            ("nicSelector.vendor", vendor.is_some()),
            ("nicSelector.deviceID", device.is_some()),
            ("nicSelector.rootDevices", !selector.root_devices.is_empty()),
            ("nicSelector.pfNames", !policy.pf_names.is_empty()),
            ("eSwitchMode", given(&spec.eswitch_mode).is_some()),
            ("bridge", bridge),
            ("a linkType that is not eth", !ethernet),
        ];
        if let Some((field, _)) = excluded.into_iter().find(|(_, is)| *is) {
            return Err(Refused::NetFilterWith(field));
        }
    }
    if switchdev && !ethernet {
        return Err(Refused::SwitchdevLink(link));
    }
    if given(&spec.vdpa_type).is_some() && !(spec.device_type == NETDEVICE && switchdev) {
        return Err(Refused::Vdpa);
    }
    if bridge && (!switchdev || spec.externally_managed) {
        return Err(Refused::Bridge);
    }
    if let Some(models) = models.filter(|models| !models.has(vendor.as_deref(), device.as_deref())) {
        return Err(Refused::UnknownModel(unknown(models, vendor.as_deref(), device.as_deref())));
    }
    Ok(policy)
}

fn unknown(models: &Models, vendor: Option<&str>, device: Option<&str>) -> String {
    match (vendor, device) {
        (Some(vendor), Some(device)) if models.has(Some(vendor), None) => format!("deviceID {device} of vendor {vendor}"),
        (Some(vendor), _) => format!("vendor {vendor}"),
        (None, device) => format!("deviceID {}", device.unwrap_or_default()),
    }
}

/// What one policy alone says that is probably not meant.
pub(super) fn remarks(policy: &Policy, namespace: &str, operator_namespace: &str) -> Vec<String> {
    let mut remarks = vec![];
    if namespace != operator_namespace {
        remarks.push(format!("policies count only in namespace {operator_namespace}; this one, in {namespace}, does nothing"));
    }
    let names: Vec<_> = policy.pf_names.iter().map(|selector| &selector.name).collect();
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    if let Some((_, name)) = twice {
        remarks.push(format!("nicSelector.pfNames names {name} more than once; only the first entry counts"));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(change: &Value) -> DeserializeGuard<SriovNetworkNodePolicy> {
        let mut spec = json!({ "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 4 });
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "p" }, "spec": spec,
        }))
        .unwrap()
    }

    fn models() -> Models {
        let lines = [("a", "8086 10c9 10ca"), ("b", "15b3 101d 101e"), ("short", "15b3"), ("empty", "")];
        Models::of(&lines.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    fn said(change: &Value) -> String {
        check(&guard(change), Some(&models())).map_or_else(|refused| refused.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn what_was_left_out_is_filled_in_as_the_field_does() {
        let patch = |spec: Value| defaults(&json!({ "metadata": { "name": "p" }, "spec": spec }));
        let add = |path: &str, value: Value| json!({ "op": "add", "path": path, "value": value });
        assert_eq!(patch(json!({})), [add("/spec/priority", json!(99)), add("/spec/isRdma", json!(false))]);
        assert!(patch(json!({ "priority": 0, "isRdma": true })).is_empty(), "0 is a priority");
        assert_eq!(patch(json!({ "priority": 1, "linkType": "IB", "isRdma": false })), [add("/spec/isRdma", json!(true))]);
        assert!(patch(json!({ "priority": 1, "linkType": "ib", "isRdma": false, "deviceType": "vfio-pci" })).is_empty());
        assert!(defaults(&json!({ "metadata": { "name": "default" }, "spec": {} })).is_empty());
        assert!(defaults(&json!({ "metadata": { "name": "p" } })).is_empty(), "a missing spec is the schema's");
    }

    #[test]
    fn each_rule_of_the_field_refuses_what_it_is_about() {
        assert_eq!(said(&json!({})), "fine");
        assert_eq!(said(&json!({ "nicSelector": { "vendor": "15B3", "deviceID": "101D" } })), "fine");
        for (change, expected) in [
            (json!({ "numVfs": 0 }), "at least 1"),
            (json!({ "nicSelector": {} }), "nicSelector is empty"),
            (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1", "vendor": "8086" } }), "excludes nicSelector.vendor"),
            (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1" }, "eSwitchMode": "legacy" }), "excludes eSwitchMode"),
            (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1" }, "linkType": "ib" }), "a linkType that is not eth"),
            (json!({ "nicSelector": { "vendor": "dead" } }), "vendor dead is not in ConfigMap"),
            (json!({ "nicSelector": { "vendor": "8086", "deviceID": "101d" } }), "deviceID 101d of vendor 8086 is not in"),
            (json!({ "nicSelector": { "deviceID": "ffff" } }), "deviceID ffff is not in"),
            (json!({ "eSwitchMode": "switchdev", "linkType": "IB" }), "needs linkType eth, given: IB"),
            (json!({ "vdpaType": "virtio" }), "vdpaType needs"),
            (json!({ "bridge": { "ovs": {} } }), "bridge needs"),
            (json!({ "nicSelector": { "pfNames": ["eth0#2-9"] } }), "at least 10 VFs"),
            (json!({ "numVfs": "many" }), "could not be read"),
        ] {
            assert!(said(&change).contains(expected), "{change}: {}", said(&change));
        }
    }

    #[test]
    fn no_malformed_line_of_the_list_of_nics_ends_the_webhook() {
        assert!(check(&guard(&json!({ "nicSelector": { "vendor": "dead" } })), Some(&Models::default())).is_err());
        assert!(check(&guard(&json!({ "nicSelector": { "vendor": "dead" } })), None).is_ok(), "development mode takes every model");
    }

    #[test]
    fn a_policy_that_cannot_be_meant_so_is_remarked_upon() {
        let policy = check(&guard(&json!({ "nicSelector": { "pfNames": ["eth0#0-1", "eth0#2-3"] } })), None).unwrap();
        let remarks = remarks(&policy, "elsewhere", "ops");
        assert!(remarks[0].contains("count only in namespace ops") && remarks[1].contains("eth0 more than once"), "{remarks:?}");
    }
}
