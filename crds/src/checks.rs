//! Pure: the CEL rules of our kinds, as one table: kind, where in the schema, rule, message. The API server holds them also when no webhook runs.
//!
//! Only what the Go operator's webhook always refused is refused here, and only what one object alone decides. The API server leaves a part that
//! an update does not change alone (ratcheting), so objects that were stored without a webhook can still be written.
//! Lists and texts that rules walk over have generous limits, because the cost of a rule is estimated from them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule};

/// Longest list of PFs or VLANs.
const LONGEST_LIST: i64 = 512;
/// Longest entry of those; a netdev name has 15 characters, an alternative one 127.
const LONGEST_TEXT: i64 = 160;

struct Check {
    kind: &'static str,
    path: &'static [&'static str],
    rule: &'static str,
    message: &'static str,
}

const POLICY: &str = "SriovNetworkNodePolicy";
const POOL: &str = "SriovNetworkPoolConfig";
const RULE: &str = "SriovNamespaceRule";

const CHECKS: &[Check] = &[
    Check {
        kind: POLICY,
        path: &["spec", "resourceName"],
        rule: "self.matches('^[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?$')",
        message: "resourceName must be 1 to 63 letters, digits, - or _, and begin and end with a letter or digit",
    },
    Check {
        kind: POLICY,
        path: &["spec", "nicSelector"],
        rule: "(has(self.vendor) && self.vendor != '') || (has(self.deviceID) && self.deviceID != '') || (has(self.netFilter) && self.netFilter != '') \
               || (has(self.rootDevices) && size(self.rootDevices) > 0) || (has(self.pfNames) && size(self.pfNames) > 0)",
        message: "at least one field of nicSelector must be given; an empty one selects nothing",
    },
    Check {
        kind: POLICY,
        path: &["spec", "nicSelector"],
        rule: "!(has(self.netFilter) && self.netFilter != '') || !((has(self.vendor) && self.vendor != '') || (has(self.deviceID) && self.deviceID != '') \
               || (has(self.rootDevices) && size(self.rootDevices) > 0) || (has(self.pfNames) && size(self.pfNames) > 0))",
        message: "netFilter excludes vendor, deviceID, rootDevices and pfNames",
    },
    Check {
        kind: POLICY,
        path: &["spec", "nicSelector", "pfNames"],
        rule: "self.all(p, p.matches('^[^#]+(#[0-9]{1,5}-[0-9]{1,5})?$'))",
        message: "an entry of pfNames is a name, or a name and a VF range as in ens1f0#0-3",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!has(self.nicSelector.pfNames) || self.nicSelector.pfNames.all(p, !p.matches('^[^#]+#[0-9]{1,5}-[0-9]{1,5}$') || \
               (int(p.split('#')[1].split('-')[0]) <= int(p.split('#')[1].split('-')[1]) && int(p.split('#')[1].split('-')[1]) < self.numVfs))",
        message: "a VF range of pfNames must not end before it begins, and must end below numVfs",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!(has(self.nicSelector.netFilter) && self.nicSelector.netFilter != '') || (!has(self.eSwitchMode) && !(has(self.bridge) && has(self.bridge.ovs)) \
               && (!has(self.linkType) || self.linkType.lowerAscii() == 'eth'))",
        message: "netFilter excludes eSwitchMode, bridge and a linkType that is not eth",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!(has(self.isRdma) && self.isRdma && has(self.deviceType) && self.deviceType == 'vfio-pci')",
        message: "isRdma and deviceType vfio-pci exclude each other: RDMA needs the kernel's driver",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!(has(self.eSwitchMode) && self.eSwitchMode == 'switchdev') || !has(self.linkType) || self.linkType.lowerAscii() == 'eth'",
        message: "eSwitchMode switchdev needs linkType eth",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!has(self.vdpaType) || ((!has(self.deviceType) || self.deviceType == 'netdevice') && has(self.eSwitchMode) && self.eSwitchMode == 'switchdev')",
        message: "vdpaType needs deviceType netdevice and eSwitchMode switchdev",
    },
    Check {
        kind: POLICY,
        path: &["spec"],
        rule: "!(has(self.bridge) && has(self.bridge.ovs)) || (has(self.eSwitchMode) && self.eSwitchMode == 'switchdev' \
               && !(has(self.externallyManaged) && self.externallyManaged))",
        message: "bridge needs eSwitchMode switchdev and a PF that is not externallyManaged",
    },
    Check {
        kind: POOL,
        path: &["spec", "maxUnavailable"],
        rule: "type(self) == int ? self >= 0 : self.matches('^([1-9][0-9]?|100)%$')",
        message: "maxUnavailable must be a number from 0, or a percentage from 1% to 100%",
    },
    Check {
        kind: POOL,
        path: &["spec"],
        rule: "!(has(self.ovsHardwareOffloadConfig) && has(self.ovsHardwareOffloadConfig.name) && self.ovsHardwareOffloadConfig.name != '') \
               || (!has(self.maxUnavailable) && !has(self.nodeSelector))",
        message: "ovsHardwareOffloadConfig.name excludes maxUnavailable and nodeSelector",
    },
    Check {
        kind: RULE,
        path: &["spec", "vlans"],
        rule: "self.all(v, v.matches('^[0-9]{1,4}(-[0-9]{1,4})?$') && v.split('-').all(n, int(n) <= 4094) \
               && (!v.contains('-') || int(v.split('-')[0]) <= int(v.split('-')[1])))",
        message: "an entry of vlans is a number from 0 to 4094, or a range as in 100-199",
    },
];

/// Lists that rules walk over.
const LISTS: &[(&str, &[&str])] =
    &[(POLICY, &["spec", "nicSelector", "pfNames"]), (POLICY, &["spec", "nicSelector", "rootDevices"]), (RULE, &["spec", "vlans"])];

/// Puts the rules of a kind into its schema.
pub(crate) fn add(kind: &str, root: &mut JSONSchemaProps) {
    for (_, path) in LISTS.iter().filter(|(of, _)| *of == kind) {
        let Some(list) = at(root, path) else { continue };
        list.max_items = Some(LONGEST_LIST);
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut list.items {
            item.max_length = Some(LONGEST_TEXT);
        }
    }
    for check in CHECKS.iter().filter(|check| check.kind == kind) {
        let Some(schema) = at(root, check.path) else { continue };
        let rule = ValidationRule { rule: check.rule.to_owned(), message: Some(check.message.to_owned()), ..ValidationRule::default() };
        schema.x_kubernetes_validations.get_or_insert_default().push(rule);
    }
}

fn at<'a>(root: &'a mut JSONSchemaProps, path: &[&str]) -> Option<&'a mut JSONSchemaProps> {
    path.iter().try_fold(root, |schema, name| schema.properties.as_mut()?.get_mut(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_and_each_limit_has_its_place() {
        let crds = crate::manifests();
        for (kind, path) in CHECKS.iter().map(|check| (check.kind, check.path)).chain(LISTS.iter().copied()) {
            let crd = crds.iter().find(|crd| crd.spec.names.kind == kind).unwrap();
            let mut root = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
            assert!(at(&mut root, path).is_some(), "{kind} has no {path:?}");
        }
    }
}
