//! Pure: which pods of a node are in the way, and what a refused eviction says.
//!
//! Invariant: a pod that uses none of the devices in question is not touched when no reboot is needed.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::ResourceExt;
use kube::core::Status;

/// Driver of VFs that are handed out by Dynamic Resource Allocation, as the field names it.
pub(super) const CLAIM_DRIVER: &str = "sriovnetwork.k8snetworkplumbingwg.io";
/// The kubelet's own copy of a static pod; nobody can evict it.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Which pods must leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All, because the node reboots. DaemonSet pods come back by themselves, and stay.
    Everything,
    /// Those that use VFs: of these extended resources, or of all with this prefix (that ends with a slash) when none is named.
    Users { prefix: String, resources: BTreeSet<String> },
}

/// A pod that must leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// It is on its way already.
    pub going: bool,
    /// Its DaemonSet makes it anew on the same node.
    pub of_daemon_set: bool,
}

/// The pods of a node that must leave, in order of namespace and name. `uses_claimed_vf` answers for `namespace` and name of a ResourceClaim.
pub(super) fn leaving<'a>(pods: impl IntoIterator<Item = &'a Pod>, scope: &Scope, uses_claimed_vf: &dyn Fn(&str, &str) -> bool) -> Vec<Leaving> {
    let must = |pod: &&Pod| {
        let of_daemon_set = is_of_daemon_set(pod);
        is_there(pod)
            && match scope {
                Scope::Everything => !of_daemon_set,
                Scope::Users { prefix, resources } => {
                    uses(pod, prefix, resources) || claims(pod).iter().any(|c| uses_claimed_vf(&pod_namespace(pod), c))
                }
            }
    };
    let mut all: Vec<_> = pods.into_iter().filter(must).map(of).collect();
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    all
}

fn of(pod: &Pod) -> Leaving {
    Leaving {
        namespace: pod_namespace(pod),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        going: pod.metadata.deletion_timestamp.is_some(),
        of_daemon_set: is_of_daemon_set(pod),
    }
}

fn pod_namespace(pod: &Pod) -> String {
    pod.namespace().unwrap_or_default()
}

/// Neither ended (an ended pod holds no device) nor the kubelet's own.
fn is_there(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed")) && !pod.annotations().contains_key(MIRROR)
}

fn is_of_daemon_set(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet")
}

/// Containers of every kind, requests and limits, and what the pod asks for as a whole.
fn uses(pod: &Pod, prefix: &str, resources: &BTreeSet<String>) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter_map(|c| c.resources.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| c.resources.as_ref());
    let named = |needs: &ResourceRequirements| {
        let names =
            needs.requests.iter().chain(needs.limits.iter()).flat_map(|amounts| amounts.iter().filter(|(_, q)| q.0 != "0").map(|(name, _)| name));
        names.into_iter().any(|name| if resources.is_empty() { name.starts_with(prefix) } else { resources.contains(name) })
    };
    containers.chain(ephemeral).chain(spec.resources.as_ref()).any(named)
}

/// Names of the ResourceClaims that a pod uses; those made from a template are in its status.
pub(super) fn claims(pod: &Pod) -> Vec<String> {
    let direct = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()).filter_map(|c| c.resource_claim_name.clone());
    let made = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten()).filter_map(|c| c.resource_claim_name.clone());
    direct.chain(made).collect()
}

/// Whether a claim was given a VF.
pub(super) fn has_vf(claim: &ResourceClaim) -> bool {
    let devices = claim.status.as_ref().and_then(|s| s.allocation.as_ref()).and_then(|a| a.devices.as_ref());
    devices.iter().flat_map(|d| d.results.iter().flatten()).any(|result| result.driver == CLAIM_DRIVER)
}

/// The budget that forbids an eviction, as the API server says: it names it only in the text of the cause. `None` when the refusal has another
/// reason, as when the API server has too much to do.
pub(super) fn budget(refusal: &Status) -> Option<String> {
    let cause = refusal.details.as_ref()?.causes.iter().find(|cause| cause.reason == "DisruptionBudget")?;
    let name = cause.message.strip_prefix("The disruption budget ").and_then(|rest| rest.split(' ').next());
    Some(name.unwrap_or(&cause.message).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, spec: &Value, metadata: &Value) -> Pod {
        let mut meta = json!({ "name": name, "namespace": "web", "uid": name });
        meta.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        let mut whole = json!({ "containers": [{ "name": "c" }] });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({ "metadata": meta, "spec": whole })).unwrap()
    }

    fn wants(resource: &str) -> Value {
        json!([{ "name": "x", "resources": { "requests": { resource: "1" } } }])
    }

    fn names(pods: &[Pod], scope: &Scope) -> Vec<String> {
        leaving(pods, scope, &|_, claim| claim == "vf").into_iter().map(|p| p.name).collect()
    }

    fn users(resources: &[&str]) -> Scope {
        Scope::Users { prefix: "openshift.io/".into(), resources: resources.iter().map(|r| (*r).to_owned()).collect() }
    }

    fn pods() -> Vec<Pod> {
        let none = json!({});
        let daemon = json!({ "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "1", "controller": true }] });
        vec![
            pod("by-request", &json!({ "containers": wants("openshift.io/nics") }), &none),
            pod("by-limit", &json!({ "containers": [{ "name": "x", "resources": { "limits": { "openshift.io/nics": "1" } } }] }), &none),
            pod("by-init", &json!({ "initContainers": wants("openshift.io/nics") }), &none),
            pod("by-claim", &json!({ "resourceClaims": [{ "name": "n", "resourceClaimName": "vf" }] }), &none),
            pod("by-daemon-set", &json!({ "containers": wants("openshift.io/nics") }), &daemon),
            pod("other-resource", &json!({ "containers": wants("openshift.io/others") }), &none),
            pod("other-claim", &json!({ "resourceClaims": [{ "name": "n", "resourceClaimName": "gpu" }] }), &none),
            pod("alike", &json!({ "containers": wants("openshift.iox/nics") }), &none),
            pod("plain", &none, &none),
            pod("plain-daemon", &none, &daemon),
            pod("mirror", &none, &json!({ "annotations": { MIRROR: "1" } })),
        ]
    }

    #[test]
    fn only_users_of_the_named_resources_leave() {
        let expected = ["by-claim", "by-daemon-set", "by-init", "by-limit", "by-request"];
        assert_eq!(names(&pods(), &users(&["openshift.io/nics"])), expected);
    }

    #[test]
    fn without_names_all_users_of_our_prefix_leave_and_no_lookalike() {
        let expected = ["by-claim", "by-daemon-set", "by-init", "by-limit", "by-request", "other-resource"];
        assert_eq!(names(&pods(), &users(&[])), expected);
    }

    #[test]
    fn a_reboot_takes_all_but_daemon_sets_and_mirrors() {
        let all = names(&pods(), &Scope::Everything);
        assert!(all.contains(&"plain".to_owned()) && all.contains(&"alike".to_owned()));
        assert!(!all.iter().any(|name| name.contains("daemon") || name == "mirror"), "{all:?}");
    }

    #[test]
    fn a_pod_that_ended_holds_nothing() {
        let mut ended = pods().remove(0);
        ended.status = Some(serde_json::from_value(json!({ "phase": "Succeeded" })).unwrap());
        assert!(names(&[ended], &users(&[])).is_empty());
    }

    #[test]
    fn a_refusal_names_its_budget_and_an_overload_has_none() {
        let status = |causes: Value| -> Status {
            serde_json::from_value(json!({ "status": "Failure", "message": "no", "code": 429, "details": { "causes": causes } })).unwrap()
        };
        let cause = json!([{ "reason": "DisruptionBudget", "message": "The disruption budget frontend needs 2 healthy pods and has 2 currently" }]);
        assert_eq!(budget(&status(cause)).as_deref(), Some("frontend"));
        assert_eq!(budget(&status(json!([]))), None);
    }

    #[test]
    fn a_claim_counts_when_it_was_given_a_vf() {
        let claim = |driver: &str| -> ResourceClaim {
            let result = json!({ "driver": driver, "pool": "p", "device": "d", "request": "r" });
            serde_json::from_value(json!({ "metadata": {}, "spec": {}, "status": { "allocation": { "devices": { "results": [result] } } } })).unwrap()
        };
        assert!(has_vf(&claim(CLAIM_DRIVER)));
        assert!(!has_vf(&claim("gpu.example.com")));
    }
}
