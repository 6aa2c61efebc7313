//! Pure: the resource injector: what a pod that names networks needs besides, as a JSON patch. Contract: that of the field's
//! network-resources-injector (specification `dataplane`, 4.7).
//!
//! Invariants: what the pod asks for itself counts, in whichever container; running over a patched pod again adds nothing; resource claims are
//! never touched, and a pod that has some gets only resources of our own policies, because only those are known not to come by a claim.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

mod downward;
mod selection;
mod switches;

pub(super) use selection::{NetworkName, networks};
pub(super) use switches::{FILE as SWITCHES_FILE, Switches};

/// What a named network's NAD says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Attached {
    /// The extended resource whose devices it hands out.
    pub resource: Option<String>,
    /// Label (`key=value`) of the nodes that have the network.
    pub node_selector: Option<String>,
}

/// What a pod gets: operations of a JSON patch, and what it is told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Injection {
    /// RFC 6902.
    pub patch: Vec<Value>,
    /// For the author.
    pub warnings: Vec<String>,
}

/// One entry of `attached` for each network that the pod names; `ours` are the resources of our policies.
pub(super) fn inject(pod: &Value, attached: &[Attached], ours: &BTreeSet<String>, switches: &Switches) -> Injection {
    let mut injection = Injection { patch: vec![], warnings: switches.remarks.clone() };
    let has_claims = pod.pointer("/spec/resourceClaims").and_then(Value::as_array).is_some_and(|claims| !claims.is_empty());
    let mut needed: BTreeMap<&str, u64> = BTreeMap::new();
    for resource in attached.iter().filter_map(|a| a.resource.as_deref()) {
        if has_claims && !ours.contains(resource) {
            injection
                .warnings
                .push(format!("{resource} is not requested for this pod, because it has resource claims; request it yourself if it comes by none"));
        } else {
            *needed.entry(resource).or_default() += 1;
        }
    }
    if !needed.is_empty() {
        injection.patch.extend(requests(pod, &needed));
        injection.patch.extend(downward::volume(pod, switches.huge_pages));
        injection.patch.extend(switches.annotations(pod));
    }
    injection.patch.extend(node_selector(pod, attached, &mut injection.warnings));
    injection
}

/// Whole `resources` of each container that gets something: claims and everything else in them is carried over.
fn requests(pod: &Value, needed: &BTreeMap<&str, u64>) -> Vec<Value> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let sidecars = pod.pointer("/spec/initContainers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // Devices of an init container that ends are handed on to the others, so those do not count; a sidecar keeps its own.
    let sidecars: Vec<_> = sidecars.iter().filter(|container| container["restartPolicy"] == "Always").collect();
    let mut changed: BTreeMap<usize, Map<String, Value>> = BTreeMap::new();
    for (resource, count) in needed {
        let own: Vec<_> = containers.iter().map(|container| requested(container, resource)).collect();
        let of_sidecars = sidecars.iter().map(|container| requested(container, resource).unwrap_or(0));
        let there: u64 = own.iter().map(|amount| amount.unwrap_or(0)).chain(of_sidecars).fold(0, u64::saturating_add);
        let Some(missing) = count.checked_sub(there).filter(|missing| *missing > 0) else { continue };
        let at = own.iter().position(Option::is_some).unwrap_or(0);
        let Some(container) = containers.get(at) else { continue };
        let amount = json!((own[at].unwrap_or(0) + missing).to_string());
        let resources = changed.entry(at).or_insert_with(|| container["resources"].as_object().cloned().unwrap_or_default());
        for side in ["requests", "limits"] {
            let map = resources.entry(side).or_insert_with(|| json!({}));
            if !map.is_object() {
                *map = json!({});
            }
            map[*resource] = amount.clone();
        }
    }
    changed
        .into_iter()
        .map(|(at, resources)| json!({ "op": "add", "path": format!("/spec/containers/{at}/resources"), "value": resources }))
        .collect()
}

/// How many of a resource a container asks for; `None` when it does not name it. An amount that is no whole number is the API server's to refuse.
fn requested(container: &Value, resource: &str) -> Option<u64> {
    let amount = |side: &str| match container.get("resources")?.get(side)?.get(resource)? {
        Value::String(text) => Some(text.parse().unwrap_or(u64::MAX)),
        number => Some(number.as_u64().unwrap_or(u64::MAX)),
    };
    amount("limits").max(amount("requests"))
}

fn node_selector(pod: &Value, attached: &[Attached], warnings: &mut Vec<String>) -> Vec<Value> {
    let there = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    let mut selector = there.cloned().unwrap_or_default();
    let mut changed = false;
    for label in attached.iter().filter_map(|a| a.node_selector.as_deref()) {
        let (key, value) = label.split_once('=').map_or((label, ""), |(key, value)| (key.trim(), value.trim()));
        match selector.get(key) {
            None => {
                selector.insert(key.to_owned(), json!(value));
                changed = true;
            }
            Some(own) if *own != json!(value) => warnings.push(format!("a network is only on nodes with {key}={value}, but nodeSelector says {own}")),
            Some(_) => {}
        }
    }
    if changed { vec![json!({ "op": "add", "path": "/spec/nodeSelector", "value": selector })] } else { vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NICS: &str = "openshift.io/nics";

    fn networks_of(resources: &[&str]) -> Vec<Attached> {
        resources.iter().map(|r| Attached { resource: Some((*r).to_owned()), node_selector: None }).collect()
    }

    fn container(resources: &Value) -> Value {
        json!({ "name": "c", "resources": resources })
    }

    fn pod(containers: &[Value]) -> Value {
        json!({ "metadata": {}, "spec": { "containers": containers } })
    }

    /// What each container asks for after the patch: requests and limits, which must be the same.
    fn asked(mut pod: Value, attached: &[Attached]) -> Vec<Value> {
        for round in 0..2 {
            let patch = inject(&pod, attached, &BTreeSet::new(), &Switches::default()).patch;
            assert!(round == 0 || patch.is_empty(), "a second round adds {patch:?}");
            for operation in patch {
                apply(&mut pod, &operation);
            }
        }
        let containers = pod["spec"]["containers"].as_array().unwrap().clone();
        for c in &containers {
            assert_eq!(c["resources"]["requests"], c["resources"]["limits"]);
        }
        containers.iter().map(|c| c["resources"]["limits"].clone()).collect()
    }

    /// Only what our patches use: `add` of a member, and of an element at the end.
    pub(super) fn apply(pod: &mut Value, operation: &Value) {
        assert_eq!(operation["op"], "add");
        let (parent, last) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap_or_else(|| panic!("no parent of {operation}")) {
            Value::Array(items) => items.push(operation["value"].clone()),
            object => object[last.replace("~1", "/")] = operation["value"].clone(),
        }
    }

    #[test]
    fn several_networks_of_one_resource_are_added_up() {
        let attached = networks_of(&[NICS, NICS, "example.com/ib"]);
        assert_eq!(asked(pod(&[json!({ "name": "c" })]), &attached), [json!({ NICS: "2", "example.com/ib": "1" })]);
    }

    #[test]
    fn what_any_container_asks_for_counts() {
        let second = container(&json!({ "limits": { NICS: "1" }, "requests": { NICS: "1" } }));
        let both = pod(&[container(&json!({})), second]);
        assert_eq!(asked(both.clone(), &networks_of(&[NICS])), [Value::Null, json!({ NICS: "1" })]);
        assert_eq!(asked(both, &networks_of(&[NICS, NICS])), [Value::Null, json!({ NICS: "2" })], "what is missing goes where the rest is");
        let only_limit = pod(&[container(&json!({ "limits": { NICS: 2, "cpu": "1" }, "requests": { NICS: 2, "cpu": "1" } }))]);
        assert_eq!(asked(only_limit, &networks_of(&[NICS])), [json!({ NICS: 2, "cpu": "1" })], "more than needed stays");
    }

    #[test]
    fn init_containers_end_and_sidecars_stay() {
        let mut with_init = pod(&[container(&json!({}))]);
        with_init["spec"]["initContainers"] = json!([{ "name": "i", "resources": { "limits": { NICS: "1" } } }]);
        assert_eq!(asked(with_init.clone(), &networks_of(&[NICS])), [json!({ NICS: "1" })]);
        with_init["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
        assert_eq!(asked(with_init, &networks_of(&[NICS])), [Value::Null]);
    }

    #[test]
    fn claims_are_left_alone() {
        let mut claiming = pod(&[container(&json!({ "claims": [{ "name": "gpu" }] }))]);
        assert_eq!(
            inject(&claiming, &networks_of(&[NICS]), &BTreeSet::new(), &Switches::default()).patch[0]["value"]["claims"],
            json!([{ "name": "gpu" }])
        );
        claiming["spec"]["resourceClaims"] = json!([{ "name": "gpu" }]);
        let foreign = inject(&claiming, &networks_of(&["example.com/dra"]), &BTreeSet::from([NICS.to_owned()]), &Switches::default());
        assert!(foreign.patch.is_empty() && foreign.warnings[0].contains("example.com/dra"), "{foreign:?}");
        let ours = inject(&claiming, &networks_of(&[NICS]), &BTreeSet::from([NICS.to_owned()]), &Switches::default());
        assert_eq!(ours.patch[0]["value"]["limits"], json!({ NICS: "1" }));
    }

    #[test]
    fn networks_without_a_resource_cost_nothing() {
        assert_eq!(inject(&pod(&[json!({})]), &[Attached::default()], &BTreeSet::new(), &Switches::default()), Injection::default());
    }

    #[test]
    fn a_network_that_is_on_some_nodes_brings_the_pod_there() {
        let on = |label: &str| vec![Attached { resource: None, node_selector: Some(label.to_owned()) }];
        let patch = inject(&pod(&[json!({})]), &on("rack=7"), &BTreeSet::new(), &Switches::default()).patch;
        assert_eq!(patch, [json!({ "op": "add", "path": "/spec/nodeSelector", "value": { "rack": "7" } })]);
        let mut elsewhere = pod(&[json!({})]);
        elsewhere["spec"]["nodeSelector"] = json!({ "rack": "8" });
        let told = inject(&elsewhere, &on("rack=7"), &BTreeSet::new(), &Switches::default());
        assert!(told.patch.is_empty() && told.warnings[0].contains("rack=7"));
    }

    #[test]
    fn odd_pods_are_not_the_end_of_the_webhook() {
        for odd in [
            json!({}),
            json!({ "spec": { "containers": [] } }),
            json!({ "spec": { "containers": 7, "nodeSelector": [] } }),
            pod(&[json!({ "resources": [] })]),
        ] {
            inject(&odd, &networks_of(&[NICS]), &BTreeSet::new(), &Switches::default());
        }
        let nonsense = pod(&[container(&json!({ "limits": { NICS: "-3x" }, "requests": { NICS: "-3x" } }))]);
        assert!(requests(&nonsense, &BTreeMap::from([(NICS, 1)])).is_empty(), "the API server refuses it in its own words");
    }
}
