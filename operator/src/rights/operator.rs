//! Pure: the operator's rights. No secrets but its own certificates; what has a known name is named.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::ResourceClaim;
use sriov_crds::{
    NetworkAttachmentDefinition, OVSNetwork, SriovIBNetwork, SriovNamespaceRule, SriovNetwork, SriovNetworkNodePolicy, SriovNetworkNodeState,
    SriovNetworkPoolConfig, SriovOperatorConfig, keys,
};

use super::grant::Verb::{Create, Delete, Get, List, Patch, Update, Watch};
use super::grant::{READ, grant, of, part, status};
use super::{Document, Grant, Holder, Names, When};
use crate::admission::{CONTROL_SWITCHES, INJECTOR_CONFIGURATION, OPERATOR_CONFIGURATION};
use crate::lease;
use crate::operator_config::LEFT_DAEMON_SETS;

pub(super) fn documents(names: &Names) -> Vec<Document> {
    let operator = Holder::new(&names.operator, names);
    let mut documents = vec![operator.account("")];
    let why = "The operator, in its own namespace. No secrets but its own certificates, no wildcard; what has a known name is named.";
    documents.extend(operator.role(why, in_its_namespace(names)));
    let why = "The operator, in the whole cluster: networks live in any namespace, and nodes and namespaces in none.";
    documents.extend(operator.cluster_role(why, in_the_cluster()));
    documents
}

fn in_its_namespace(names: &Names) -> Vec<Grant> {
    let asked = [of::<SriovNetworkNodePolicy>(), of::<SriovOperatorConfig>(), of::<SriovNetworkPoolConfig>()];
    let finalized = [of::<SriovOperatorConfig>(), of::<SriovNetworkPoolConfig>()];
    let told =
        [status::<SriovNetworkNodePolicy>(), status::<SriovOperatorConfig>(), status::<SriovNetworkPoolConfig>(), status::<SriovNetworkNodeState>()];
    let ours = [keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET];
    let secret = [names.secret.as_str()];
    let maps = [keys::SUPPORTED_NIC_IDS, CONTROL_SWITCHES];
    vec![
        grant("What users ask for.", &READ, asked),
        grant("The Go operator's finalizers are taken off.", &[Patch], finalized),
        grant("What becomes of it.", &[Patch], told),
        grant("One for each node, as long as it is managed.", &[Get, List, Watch, Create, Patch, Delete], [of::<SriovNetworkNodeState>()]),
        grant("NICs that may be configured, and the injector's switches, read when somebody asks.", &[Get], [of::<ConfigMap>()]).named(maps),
        grant("Its certificates. Without a name: none can be granted before it exists.", &[Create], [of::<Secret>()]).only(When::OwnCertificates),
        grant("Its certificates, whoever makes them.", &READ, [of::<Secret>()]).named(secret),
        grant("Its certificates move on.", &[Update], [of::<Secret>()]).named(secret).only(When::OwnCertificates),
        grant("Those of nodes, and which the Go operator left.", &[Get, List, Watch, Create], [of::<DaemonSet>()]),
        grant("Those of nodes follow the configuration.", &[Patch], [of::<DaemonSet>()]).named(ours),
        grant("Ours are made anew when their pods are the Go operator's; the others are what it left.", &[Delete], [of::<DaemonSet>()])
            .named(ours.into_iter().chain(LEFT_DAEMON_SETS)),
        grant("One of several operators leads.", &[Create], [of::<Lease>()]),
        grant("It holds this lease, or waits for it.", &[Get, Update], [of::<Lease>()]).named([lease::NAME]),
    ]
}

fn in_the_cluster() -> Vec<Grant> {
    let networks = [of::<SriovNetwork>(), of::<SriovIBNetwork>(), of::<OVSNetwork>()];
    let told = [status::<SriovNetwork>(), status::<SriovIBNetwork>(), status::<OVSNetwork>()];
    let configurations = [of::<MutatingWebhookConfiguration>(), of::<ValidatingWebhookConfiguration>()];
    let all = [Get, List, Watch, Create, Patch, Delete];
    vec![
        grant("Which nodes are managed, and where networks are wanted.", &READ, [of::<Node>(), of::<Namespace>()]),
        grant("Draining: a cordon, and the marks of it.", &[Patch], [of::<Node>()]),
        grant("Draining: which pods are in the way.", &[List, Watch], [of::<Pod>()]),
        grant("Draining: pods leave by eviction only, so that their budgets are respected.", &[Create], [part::<Pod>("eviction")]),
        grant("Draining: whether the claims of a pod hold VFs.", &[Get], [of::<ResourceClaim>()]),
        grant("Networks; the patch is a finalizer and where their NAD is.", &[Get, List, Watch, Patch], networks),
        grant("What becomes of them.", &[Patch], told),
        grant("What the networks of a namespace may ask for.", &READ, [of::<SriovNamespaceRule>()]),
        grant("Whether a rule is in force.", &[Patch], [status::<SriovNamespaceRule>()]),
        grant("By which API servers ask the operator.", &all, configurations).named([OPERATOR_CONFIGURATION, INJECTOR_CONFIGURATION]),
        grant("What networks become.", &all, [of::<NetworkAttachmentDefinition>()]),
        grant("What happened, for who looks at an object.", &[Create, Patch], [of::<Event>()]),
    ]
}
