//! Pure: the rights of the two Jobs that Helm runs (`apply-crds`, `uninstall`), each of an account that is there only while its Job runs, so that the
//! operator does not have them.

use std::collections::BTreeMap;

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use sriov_crds::{NetworkAttachmentDefinition, OVSNetwork, SriovIBNetwork, SriovNetwork, SriovNetworkNodeState, keys};

use super::grant::Verb::{Create, Delete, Get, List, Patch, Watch};
use super::grant::{grant, of};
use super::{Document, Grant, Holder, Names};
use crate::admission::{INJECTOR_CONFIGURATION, OPERATOR_CONFIGURATION};
use crate::lease;

pub(super) fn documents(names: &Names) -> Vec<Document> {
    let crds = hook("crds", "pre-install,pre-upgrade", names);
    let why = "Without names: server-side apply creates what is missing, and a name cannot be granted before it exists.";
    let kinds = grant(why, &[Get, List, Watch, Create, Patch], [of::<CustomResourceDefinition>()]);
    let mut documents = vec![crds.account("Helm never upgrades CustomResourceDefinitions.")];
    documents.extend(crds.cluster_role("", vec![kinds]));

    let uninstall = hook("uninstall", "post-delete", names);
    documents.push(uninstall.account("Helm does not know what the operator made."));
    documents.extend(uninstall.role("", what_the_operator_made(names)));
    documents.extend(uninstall.cluster_role("", what_the_operator_made_elsewhere()));
    documents
}

/// An account, and with it its rights, that is there before the Job of its name (weight 1) and not after it.
fn hook<'a>(job: &str, moment: &str, names: &'a Names) -> Holder<'a> {
    let annotations = [("helm.sh/hook", moment), ("helm.sh/hook-weight", "0"), ("helm.sh/hook-delete-policy", "before-hook-creation,hook-succeeded")];
    let annotations: BTreeMap<_, _> = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Holder { annotations, ..Holder::new(format!("{}-{job}", names.operator), names) }
}

fn what_the_operator_made(names: &Names) -> Vec<Grant> {
    let daemon_sets = [keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET];
    vec![
        grant("They go first, and are waited for.", &[Get, List, Watch, Delete], [of::<DaemonSet>()]).named(daemon_sets),
        grant("What nodes were to be.", &[List, Delete], [of::<SriovNetworkNodeState>()]),
        grant("Who led.", &[Delete], [of::<Lease>()]).named([lease::NAME]),
        grant("Certificates, if the operator made them.", &[Get, Delete], [of::<Secret>()]).named([names.secret.as_str()]),
    ]
}

fn what_the_operator_made_elsewhere() -> Vec<Grant> {
    let networks = [of::<SriovNetwork>(), of::<SriovIBNetwork>(), of::<OVSNetwork>()];
    let configurations = [of::<MutatingWebhookConfiguration>(), of::<ValidatingWebhookConfiguration>()];
    vec![
        grant("Finalizers that nobody would take off any more.", &[List, Patch], networks),
        grant("What networks became.", &[List, Delete], [of::<NetworkAttachmentDefinition>()]),
        grant("Nobody answers them any more.", &[Delete], configurations).named([OPERATOR_CONFIGURATION, INJECTOR_CONFIGURATION]),
        grant("Marks and cordons of drains.", &[List, Patch], [of::<Node>()]),
    ]
}
