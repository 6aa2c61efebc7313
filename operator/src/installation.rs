//! I/O: what an installer runs once and then ends: bringing the CustomResourceDefinitions up to date, and taking away what the operator made when it
//! was uninstalled. The Helm chart runs both as hooks, with rights of their own that the operator does not have.
//!
//! Invariant: what users made stays: policies, networks, pools, rules of namespaces, the operator configuration, a Secret with their own certificates, and
//! the kinds themselves. VFs and running pods are not touched.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::conditions::{is_crd_established, is_deleted};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use sriov_crds::{NetworkAttachmentDefinition, OVSNetwork, SriovIBNetwork, SriovNetwork, SriovNetworkNodeState, keys, manifests};
use tracing::info;

use crate::admission::{INJECTOR_CONFIGURATION, OPERATOR_CONFIGURATION, ROTATE_AT};
use crate::lease;
use crate::resources::{self, RequestFailed};

/// How long the API server gets to serve a kind, and the garbage collector to end the pods of the DaemonSet.
const PATIENCE: Duration = Duration::from_mins(2);
/// The kind that Multus brings; it is Multus's wherever it is.
const NAD: &str = "network-attachment-definitions.k8s.cni.cncf.io";

/// Why an installation step was not finished; a Job tries again.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The API server refused something.
    #[error(transparent)]
    Request(#[from] RequestFailed),
    /// A watch ended with an error.
    #[error("failed to watch {object}: {cause}")]
    Watch {
        /// What was waited for.
        object: String,
        /// What kube said.
        cause: kube::runtime::wait::Error,
    },
    /// It took too long.
    #[error("waited {} s for {object} to be {what}", PATIENCE.as_secs())]
    TooLate {
        /// What was waited for.
        object: String,
        /// The state that did not come.
        what: &'static str,
    },
}

/// Applies our CustomResourceDefinitions and waits until they are served. A NAD kind that is there already is left to Multus.
pub async fn apply_crds(client: Client) -> Result<(), InstallationError> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in manifests() {
        let name = crd.name_any();
        let present = api.get_opt(&name).await.map_err(|e| RequestFailed::new("read", "CustomResourceDefinition", &name, e))?;
        if name == NAD && present.is_some() {
            continue;
        }
        let mut value =
            serde_json::to_value(&crd).map_err(|e| RequestFailed::new("serialise", "CustomResourceDefinition", &name, kube::Error::SerdeError(e)))?;
        value["apiVersion"] = CustomResourceDefinition::api_version(&()).into();
        value["kind"] = CustomResourceDefinition::kind(&()).into();
        resources::apply(&api, "CustomResourceDefinition", &name, &value).await?;
        within(&name, "served", Box::pin(await_condition(api.clone(), &name, is_crd_established()))).await?;
        info!("{name} is up to date");
    }
    Ok(())
}

/// Takes away what the operator made in `namespace` and, for networks and nodes, elsewhere. `secret` has the certificates of its admission server. The
/// operator must have ended or lost its rights.
pub async fn uninstall(client: &Client, namespace: &str, secret: &str) -> Result<(), InstallationError> {
    // First: nobody answers them any more.
    for name in [OPERATOR_CONFIGURATION, INJECTOR_CONFIGURATION] {
        resources::delete(&Api::<ValidatingWebhookConfiguration>::all(client.clone()), "ValidatingWebhookConfiguration", name).await?;
        resources::delete(&Api::<MutatingWebhookConfiguration>::all(client.clone()), "MutatingWebhookConfiguration", name).await?;
    }
    for name in [keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET] {
        Box::pin(delete_daemon_set(client, namespace, name)).await?;
    }
    let states: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), namespace);
    for state in names("SriovNetworkNodeState", &states).await? {
        resources::delete(&states, "SriovNetworkNodeState", &state.name_any()).await?;
    }
    release::<SriovNetwork>(client).await?;
    release::<SriovIBNetwork>(client).await?;
    release::<OVSNetwork>(client).await?;
    for nad in names("NetworkAttachmentDefinition", &Api::<NetworkAttachmentDefinition>::all(client.clone())).await? {
        if nad.annotations().contains_key(keys::NAD_OWNER_REF) {
            let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &nad.namespace().unwrap_or_default());
            resources::delete(&nads, "NetworkAttachmentDefinition", &nad.name_any()).await?;
        }
    }
    give_nodes_back(client).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get_opt(secret).await.map_err(|e| RequestFailed::new("read", "Secret", secret, e))?;
    if found.is_some_and(|found| found.annotations().contains_key(ROTATE_AT)) {
        resources::delete(&secrets, "Secret", secret).await?;
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    resources::delete(&leases, "Lease", lease::NAME).await?;
    info!("what the operator made is gone; policies, networks and VFs are as they were");
    Ok(())
}

/// Deletes a DaemonSet of nodes and waits until its pods are gone, so that no daemon writes a node state again.
async fn delete_daemon_set(client: &Client, namespace: &str, name: &str) -> Result<(), InstallationError> {
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let found = daemon_sets.get_opt(name).await.map_err(|e| RequestFailed::new("read", "DaemonSet", name, e))?;
    let Some(found) = found else { return Ok(()) };
    // Foreground: it is gone when its pods are.
    let foreground = daemon_sets.delete(name, &DeleteParams::foreground()).await;
    foreground.map_err(|e| RequestFailed::new("delete", "DaemonSet", name, e))?;
    let identity = found.uid().unwrap_or_default();
    let gone = await_condition(daemon_sets, name, is_deleted(&identity));
    within(name, "deleted", Box::pin(gone)).await?;
    info!(name, "a DaemonSet of nodes is gone");
    Ok(())
}

/// Takes our marks off the nodes, and a cordon of ours with them; a user's stays.
async fn give_nodes_back(client: &Client) -> Result<(), InstallationError> {
    let nodes: Api<Node> = Api::all(client.clone());
    for node in names("Node", &nodes).await? {
        let (name, marks) = (node.name_any(), [keys::NODE_DRAIN_STATE, keys::CORDONED]);
        if !marks.iter().any(|mark| node.annotations().contains_key(*mark)) {
            continue;
        }
        let mut patch = json!({ "metadata": { "annotations": { keys::NODE_DRAIN_STATE: null, keys::CORDONED: null } } });
        if node.annotations().contains_key(keys::CORDONED) {
            patch["spec"] = json!({ "unschedulable": null });
        }
        let params = PatchParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        nodes.patch_metadata(&name, &params, &Patch::Merge(patch)).await.map_err(|e| RequestFailed::new("patch", "Node", &name, e))?;
    }
    Ok(())
}

/// Takes our finalizer off all networks of a kind: nobody is left who would answer it, and the user's deletion would wait for ever.
async fn release<K>(client: &Client) -> Result<(), InstallationError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let kind = K::kind(&());
    for network in names(&kind, &Api::<K>::all(client.clone())).await? {
        let kept: Vec<&String> = network.finalizers().iter().filter(|finalizer| *finalizer != keys::NETWORK_FINALIZER).collect();
        if kept.len() < network.finalizers().len() {
            let api: Api<K> = Api::namespaced(client.clone(), &network.namespace().unwrap_or_default());
            resources::merge_metadata(&api, &kind, &network.name_any(), json!({ "finalizers": kept })).await?;
        }
    }
    Ok(())
}

/// Metadata of all objects of a kind; none when the kind is not installed.
async fn names<K>(kind: &str, api: &Api<K>) -> Result<Vec<PartialObjectMeta<K>>, RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
        Err(error) => Err(RequestFailed::new("list", kind, "all", error)),
    }
}

async fn within<T>(
    object: &str,
    what: &'static str,
    wait: impl Future<Output = Result<T, kube::runtime::wait::Error>>,
) -> Result<(), InstallationError> {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(cause)) => Err(InstallationError::Watch { object: object.to_owned(), cause }),
        Err(_) => Err(InstallationError::TooLate { object: object.to_owned(), what }),
    }
}
