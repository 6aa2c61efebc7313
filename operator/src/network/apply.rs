//! I/O: the only writer of NADs. Order: leave the namespace of an earlier NAD, note the new one and the finalizer on the network, then write the
//! NAD; so a crash in between never leaves a NAD that nobody would remove.

use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sriov_crds::{NetworkAttachmentDefinition, keys};

use super::build::{Desired, owner_ref};
use super::gather;
use super::kinds::Network;
use super::validate::target;
use crate::cache::Key;
use crate::context::Context;
use crate::resources::{self, RequestFailed};

const KIND: &str = "NetworkAttachmentDefinition";

fn nads(context: &Context, namespace: &str) -> Api<NetworkAttachmentDefinition> {
    Api::namespaced(context.client.clone(), namespace)
}

pub(super) async fn nad<N: Network>(context: &Context, network: &N, desired: &Desired) -> Result<(), RequestFailed> {
    let Desired { namespace, leave, nad, finalizer } = desired;
    if let Some(old) = leave {
        remove(context, network, old).await?;
    }
    remember(context, network, namespace, *finalizer).await?;
    if let Some(nad) = nad {
        resources::apply(&nads(context, namespace), KIND, &network.name_any(), nad).await?;
        tracing::info!(namespace, name = network.name_any(), "network attachment definition written");
    }
    Ok(())
}

/// For a network that is being deleted: its NAD goes, then our finalizer.
pub(super) async fn give_up<N: Network>(context: &Context, network: &N) -> Result<(), RequestFailed> {
    if !network.finalizers().iter().any(|f| f == keys::NETWORK_FINALIZER) {
        return Ok(());
    }
    let last = network.annotations().get(keys::LAST_NETWORK_NAMESPACE).filter(|last| !last.is_empty());
    let namespace = last.cloned().unwrap_or_else(|| target(network));
    remove(context, network, &namespace).await?;
    let api: Api<N> = Api::namespaced(context.client.clone(), &network.namespace().unwrap_or_default());
    resources::release(&api, network, keys::NETWORK_FINALIZER).await
}

/// Deletes a NAD of ours whose network is not there any more: it went while no operator ran, or its finalizer was taken off by hand.
pub(super) async fn orphan(context: &Context, key: &Key, owner_ref: &str) -> Result<(), RequestFailed> {
    let Some(nad) = gather::nad(context, &key.namespace, &key.name).await? else { return Ok(()) };
    let ours = nad.labels().get(keys::MANAGED_BY).is_some_and(|by| by == keys::FIELD_MANAGER);
    if ours && nad.annotations().get(keys::NAD_OWNER_REF).is_some_and(|owner| owner == owner_ref) {
        resources::delete(&nads(context, &key.namespace), KIND, &key.name).await?;
        tracing::info!(%key, owner_ref, "network attachment definition without a network deleted");
    }
    Ok(())
}

/// Deletes the network's NAD of a namespace if it is the network's.
async fn remove<N: Network>(context: &Context, network: &N, namespace: &str) -> Result<(), RequestFailed> {
    let name = network.name_any();
    let there = gather::nad(context, namespace, &name).await?;
    if there.is_some_and(|nad| nad.annotations().get(keys::NAD_OWNER_REF) == Some(&owner_ref(network))) {
        resources::delete(&nads(context, namespace), KIND, &name).await?;
        tracing::info!(namespace, name, "network attachment definition deleted");
    }
    Ok(())
}

async fn remember<N: Network>(context: &Context, network: &N, namespace: &str, finalizer: bool) -> Result<(), RequestFailed> {
    let mut change = serde_json::Map::new();
    if network.annotations().get(keys::LAST_NETWORK_NAMESPACE).map(String::as_str) != Some(namespace) {
        change.insert("annotations".to_owned(), json!({ keys::LAST_NETWORK_NAMESPACE: namespace }));
    }
    if finalizer && !network.finalizers().iter().any(|f| f == keys::NETWORK_FINALIZER) {
        let mut finalizers = network.finalizers().to_vec();
        finalizers.push(keys::NETWORK_FINALIZER.to_owned());
        change.insert("finalizers".to_owned(), json!(finalizers));
    }
    if change.is_empty() { Ok(()) } else { merge(context, network, Value::Object(change)).await }
}

/// With the resourceVersion that was read: a merge patch replaces the whole list of finalizers.
async fn merge<N: Network>(context: &Context, network: &N, mut metadata: Value) -> Result<(), RequestFailed> {
    metadata["resourceVersion"] = json!(network.resource_version());
    let api: Api<N> = Api::namespaced(context.client.clone(), &network.namespace().unwrap_or_default());
    match resources::merge_metadata(&api, &N::kind(&()), &network.name_any(), metadata).await {
        // The network is gone, finalizer and all.
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}
