//! Pure: the volume `podnetinfo`, by which programs in a pod read its annotations (network status), labels and huge pages. Names and paths are
//! those of the field's network-resources-injector, which readers such as app-netutil know.

use serde_json::{Value, json};

const VOLUME: &str = "podnetinfo";
const FOLDER: &str = "/etc/podnetinfo";
/// Kubernetes' page sizes and how the files name them.
const PAGES: [(&str, &str); 2] = [("1Gi", "1G"), ("2Mi", "2M")];

/// The volume and a mount of it in each container; nothing when the pod has a volume of that name. `with_huge_pages` says whether those are in it.
pub(super) fn volume(pod: &Value, with_huge_pages: bool) -> Vec<Value> {
    let list = |at: &str| pod.pointer(at).and_then(Value::as_array);
    let Some(containers) = list("/spec/containers") else { return vec![] };
    let volumes = list("/spec/volumes");
    if volumes.is_some_and(|volumes| volumes.iter().any(|volume| volume["name"] == VOLUME)) {
        return vec![];
    }
    let pages: Vec<_> = containers.iter().map(|container| if with_huge_pages { huge_pages(container) } else { vec![] }).collect();
    let mut items = vec![json!({ "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } })];
    if pod.pointer("/metadata/labels").and_then(Value::as_object).is_some_and(|labels| !labels.is_empty()) {
        items.insert(0, json!({ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }));
    }
    items.extend(pages.iter().flatten().cloned());
    let volume = json!({ "name": VOLUME, "downwardAPI": { "items": items } });
    let mut patch = vec![append(volumes.is_some(), "/spec/volumes", &volume)];
    for (at, container) in containers.iter().enumerate() {
        let mounts = container["volumeMounts"].as_array();
        // A pod that keeps something of its own there goes on to do so.
        if mounts.is_none_or(|mounts| mounts.iter().all(|mount| mount["mountPath"] != FOLDER)) {
            let mount = json!({ "name": VOLUME, "mountPath": FOLDER, "readOnly": true });
            patch.push(append(mounts.is_some(), &format!("/spec/containers/{at}/volumeMounts"), &mount));
        }
        let variables = container["env"].as_array();
        let named = variables.is_some_and(|variables| variables.iter().any(|variable| variable["name"] == "CONTAINER_NAME"));
        if !pages[at].is_empty() && !named {
            let variable = json!({ "name": "CONTAINER_NAME", "value": container["name"] });
            patch.push(append(variables.is_some(), &format!("/spec/containers/{at}/env"), &variable));
        }
    }
    patch
}

fn append(exists: bool, path: &str, value: &Value) -> Value {
    if exists { json!({ "op": "add", "path": format!("{path}/-"), "value": value }) } else { json!({ "op": "add", "path": path, "value": [value] }) }
}

/// One file for each size and side that the container names.
fn huge_pages(container: &Value) -> Vec<Value> {
    let Some(name) = container["name"].as_str() else { return vec![] };
    let mut items = vec![];
    for (size, short) in PAGES {
        for (side, word) in [("requests", "request"), ("limits", "limit")] {
            let resource = format!("hugepages-{size}");
            if container["resources"][side].get(&resource).is_some() {
                items.push(json!({
                    "path": format!("hugepages_{short}_{word}_{name}"),
                    "resourceFieldRef": { "containerName": name, "resource": format!("{side}.{resource}"), "divisor": "1Mi" },
                }));
            }
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::super::tests::apply;
    use super::*;

    fn patched(mut pod: Value) -> Value {
        let patch = volume(&pod, true);
        for operation in &patch {
            apply(&mut pod, operation);
        }
        assert!(volume(&pod, true).is_empty(), "a second round adds nothing");
        pod
    }

    #[test]
    fn each_container_can_read_annotations_and_labels() {
        let pod = patched(
            json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "one" }, { "name": "two", "volumeMounts": [{ "name": "x", "mountPath": "/x" }] }] } }),
        );
        let paths: Vec<_> = pod["spec"]["volumes"][0]["downwardAPI"]["items"].as_array().unwrap().iter().map(|i| i["path"].clone()).collect();
        assert_eq!(paths, ["labels", "annotations"]);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], FOLDER);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 2);
        assert!(pod["spec"]["containers"][0].get("env").is_none());
    }

    #[test]
    fn a_pod_without_labels_has_no_file_of_them() {
        let pod = patched(json!({ "spec": { "volumes": [{ "name": "own" }], "containers": [{ "name": "one" }] } }));
        assert_eq!(pod["spec"]["volumes"][1]["downwardAPI"]["items"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn huge_pages_are_told_to_the_container_that_has_them() {
        let pod = patched(
            json!({ "spec": { "containers": [{ "name": "dpdk", "resources": { "requests": { "hugepages-1Gi": "2Gi" }, "limits": { "hugepages-1Gi": "2Gi", "hugepages-2Mi": "4Mi" } } }] } }),
        );
        let items = &pod["spec"]["volumes"][0]["downwardAPI"]["items"];
        let paths: Vec<_> = items.as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["annotations", "hugepages_1G_request_dpdk", "hugepages_1G_limit_dpdk", "hugepages_2M_limit_dpdk"]);
        assert_eq!(items[1]["resourceFieldRef"]["resource"], "requests.hugepages-1Gi");
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "dpdk");
    }

    #[test]
    fn switched_off_huge_pages_are_not_told() {
        let pod = json!({ "spec": { "containers": [{ "name": "dpdk", "resources": { "limits": { "hugepages-1Gi": "2Gi" } } }] } });
        let patch = volume(&pod, false);
        assert_eq!(patch[0]["value"][0]["downwardAPI"]["items"].as_array().unwrap().len(), 1);
        assert!(patch.iter().all(|operation| !operation["path"].as_str().unwrap().ends_with("/env")), "{patch:?}");
    }
}
