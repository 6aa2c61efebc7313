//! Pure: what the Go operator left behind when ours took its place: DaemonSets of parts that are built in now, and pods of our DaemonSets' names that
//! have its containers. What does not live here: deleting it.
//!
//! Invariant: only what an operator configuration owns is called a leftover, so that nothing of a user's is, whatever its name.

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::ResourceExt;
use sriov_crds::keys;

/// DaemonSets that the Go operator makes (spec of its bindata), besides those whose names ours have.
pub(crate) const DAEMON_SETS: [&str; 3] = ["network-resources-injector", "operator-webhook", "sriov-network-metrics-exporter"];

/// The operator configuration is its controller.
pub(super) fn is_owned_by_configuration(daemon_set: &DaemonSet) -> bool {
    daemon_set.owner_references().iter().any(|owner| owner.kind == "SriovOperatorConfig" && owner.api_version.starts_with(keys::GROUP))
}

/// True for a DaemonSet that is to be deleted for good.
pub(super) fn is_leftover(daemon_set: &DaemonSet) -> bool {
    DAEMON_SETS.contains(&daemon_set.name_any().as_str()) && is_owned_by_configuration(daemon_set)
}

/// True for one of our name whose pods have containers that ours do not have: server-side apply would only add ours to them.
pub(super) fn is_foreign(there: &DaemonSet, ours: &DaemonSet) -> bool {
    let names = |daemon_set: &DaemonSet| -> Vec<String> {
        let pod = daemon_set.spec.template.spec.iter();
        pod.flat_map(|pod| pod.containers.iter().chain(pod.init_containers.iter().flatten())).map(|container| container.name.clone()).collect()
    };
    // An init container of ours that is not wanted any more goes by itself.
    let mut known = names(ours);
    known.push(super::daemon_sets::INSTALL_UNIT.to_owned());
    names(there).iter().any(|name| !known.contains(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(name: &str, owner: &str, containers: &[&str]) -> DaemonSet {
        let containers: Vec<_> = containers.iter().map(|name| json!({ "name": name })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": name, "ownerReferences": [{ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": owner, "name": "default", "uid": "u" }] },
            "spec": { "selector": {}, "template": { "spec": { "containers": containers } } },
        }))
        .unwrap()
    }

    #[test]
    fn a_users_daemon_set_of_the_same_name_is_no_leftover() {
        assert!(is_leftover(&daemon_set("operator-webhook", "SriovOperatorConfig", &[])));
        assert!(!is_leftover(&daemon_set("operator-webhook", "Deployment", &[])));
        assert!(!is_leftover(&daemon_set("other", "SriovOperatorConfig", &[])));
    }

    #[test]
    fn containers_that_are_not_ours_make_it_foreign() {
        let ours = daemon_set("d", "", &["config-daemon", "more"]);
        assert!(is_foreign(&daemon_set("d", "", &["sriov-network-config-daemon"]), &ours));
        assert!(is_foreign(&daemon_set("p", "", &["sriov-device-plugin"]), &daemon_set("p", "", &["device-plugin"])));
        assert!(!is_foreign(&daemon_set("d", "", &["config-daemon"]), &ours));
        assert!(!is_foreign(&daemon_set("d", "", &["config-daemon", "install-unit"]), &ours));
    }
}
