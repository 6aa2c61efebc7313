//! Pure: the rights of the chart's detector, which labels nodes that have a NIC with VFs, for clusters without node-feature-discovery.

use k8s_openapi::api::core::v1::Node;
use kube::Resource;
use sriov_crds::keys;

use super::grant::Verb::{Get, Patch};
use super::grant::{grant, of};
use super::own_node::{self, OwnNode, check, explain, operation};
use super::{Document, Holder, Names};

/// Name of its DaemonSet, which the chart has, and of its account.
const NAME: &str = "sriov-node-detector";

pub(super) fn documents(names: &Names) -> Vec<Document> {
    let detector = Holder::new(NAME, names);
    let label = grant("Which node and which label is said by the admission policy below.", &[Get, Patch], [of::<Node>()]);
    let mut documents = vec![detector.account("")];
    documents.extend(detector.cluster_role("For the pods that label nodes with a NIC that can have VFs.", vec![label]));
    documents.extend(own_node(&detector));
    documents
}

/// Of its node the detector adds one label with one value.
fn own_node(detector: &Holder<'_>) -> [Document; 2] {
    let resource = Node::plural(&());
    let labels = format!(
        "variables.before.all(key, key in variables.after && variables.before[key] == variables.after[key])\n\
         && variables.after.all(key, key in variables.before\n\
         || (key == '{}' && variables.after[key] == 'true'))",
        keys::CAPABLE_LABEL
    );
    let rest = "object.spec == oldObject.spec && object.metadata.?annotations.orValue({}) == oldObject.metadata.?annotations.orValue({})\n\
                && object.metadata.?finalizers.orValue([]) == oldObject.metadata.?finalizers.orValue([])\n\
                && object.metadata.?ownerReferences.orValue([]) == oldObject.metadata.?ownerReferences.orValue([])";
    let policy = OwnNode {
        resources: operation("", &["*"], [resource.to_string(), format!("{resource}/*")]),
        condition: "is-a-detector",
        variables: vec![("before", "oldObject.metadata.?labels.orValue({})".to_owned()), ("after", "object.metadata.?labels.orValue({})".to_owned())],
        validations: vec![
            check(
                "request.operation == 'UPDATE' && (!has(request.subResource) || request.subResource == '')",
                "a detector labels nodes and does nothing else with them",
            ),
            explain(
                own_node::IS_OWN,
                "'a detector labels its own node only: its pod runs on \"' + variables.node + '\", the node is \"' + request.name + '\"'",
            ),
            check(&labels, &format!("a detector adds the label {}=true and changes no other", keys::CAPABLE_LABEL)),
            check(rest, "a detector changes nothing but labels"),
        ],
    };
    policy.of(detector, "RBAC knows neither labels nor \"its own node\".")
}
