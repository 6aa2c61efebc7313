//! Pure: the rights of the pods on nodes: the config daemon's, and the device plugin's, which has none.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use kube::Resource;
use sriov_crds::{SriovNetworkNodeState, SriovOperatorConfig, keys};

use super::grant::Verb::{Create, Get, List, Patch, Watch};
use super::grant::{READ, grant, of, status};
use super::own_node::{self, OwnNode, check, explain, operation};
use super::{Document, Grant, Holder, Names};

pub(super) fn documents(names: &Names) -> Vec<Document> {
    let daemon = Holder::new(keys::NODE_DAEMON_SET, names);
    let plugin = Holder::new(keys::PLUGIN_DAEMON_SET, names);
    let mut documents = vec![
        daemon.account(""),
        plugin.account(
            "The device plugin has no rights and no token; its pods have an account of their own, so that rules for accounts can tell them apart.",
        ),
    ];
    let why = "The config daemon: node states and their status, the list of NICs, the operator configuration (disableDrain), nothing of nodes, pods or\n\
               policies. That it writes its own node's state only, and of that only what is its own, is the admission policy below.";
    documents.extend(daemon.role(why, grants()));
    documents.extend(own_node(&daemon));
    documents
}

fn grants() -> Vec<Grant> {
    let state = || [of::<SriovNetworkNodeState>()];
    vec![
        grant("What its node is to be; the patch is the annotation by which it asks for a drain.", &[Get, List, Watch, Patch], state()),
        grant("What its node is.", &[Patch], [status::<SriovNetworkNodeState>()]),
        grant("Whether drains are switched off.", &READ, [of::<SriovOperatorConfig>()]).named([keys::DEFAULT_CONFIG]),
        grant("NICs that may be configured.", &READ, [of::<ConfigMap>()]).named([keys::SUPPORTED_NIC_IDS]),
        grant("What happened on its node.", &[Create, Patch], [of::<Event>()]),
    ]
}

/// Of its node's state the daemon writes its status, and the annotation by which it asks for a drain.
fn own_node(daemon: &Holder<'_>) -> [Document; 2] {
    let resource = SriovNetworkNodeState::plural(&());
    let mine = format!("[\"{}\"]", keys::DESIRED_STATE);
    let before = "request.operation != 'UPDATE' || !has(oldObject.metadata.annotations) ? {} : oldObject.metadata.annotations";
    let after = "request.operation == 'DELETE' || !has(object.metadata.annotations) ? {} : object.metadata.annotations";
    let annotations = "variables.after.all(key, key in variables.mine || (key in variables.before && variables.before[key] == variables.after[key]))\n\
                       && variables.before.all(key, key in variables.mine || key in variables.after)";
    let metadata = "request.operation != 'UPDATE' || (object.metadata.?labels.orValue({}) == oldObject.metadata.?labels.orValue({})\n\
                    && object.metadata.?finalizers.orValue([]) == oldObject.metadata.?finalizers.orValue([])\n\
                    && object.metadata.?ownerReferences.orValue([]) == oldObject.metadata.?ownerReferences.orValue([]))";
    let policy = OwnNode {
        resources: operation(keys::GROUP, &["CREATE", "UPDATE", "DELETE"], [resource.to_string(), format!("{resource}/status")]),
        condition: "is-a-config-daemon",
        variables: vec![("mine", mine), ("before", before.to_owned()), ("after", after.to_owned())],
        validations: vec![
            check("request.operation == 'UPDATE'", "a config daemon neither creates nor deletes node states"),
            explain(
                own_node::IS_OWN,
                "'a config daemon writes the state of its own node only: its pod runs on \"' + variables.node + '\", the state is of \"' + request.name + '\"'",
            ),
            check(
                "request.operation != 'UPDATE' || object.spec == oldObject.spec",
                "a config daemon does not change the spec, which is the operator's",
            ),
            check(annotations, &format!("a config daemon changes no annotation but {}", keys::DESIRED_STATE)),
            check(metadata, "a config daemon does not change labels, finalizers and owners"),
        ],
    };
    policy.of(
        daemon,
        "RBAC cannot say \"its own\": every node's daemon is the same ServiceAccount. The token says on which node its pod runs (Kubernetes 1.30).",
    )
}
