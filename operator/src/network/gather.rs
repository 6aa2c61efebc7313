//! I/O: what a network's NAD is decided from: the object (cache), whether the target namespace exists (cache), and the NAD that is there (one
//! read, because only metadata is watched). Decides nothing.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use sriov_crds::NetworkAttachmentDefinition;

use super::kinds::Network;
use super::validate::Wanted;
use crate::cache::{Cache, Key};
use crate::context::Context;
use crate::resources::{RequestFailed, answered};

/// What is there now.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whether the NAD's namespace exists and is not being deleted.
    pub namespace: bool,
    /// The NAD of that name, whoever made it.
    pub nad: Option<DynamicObject>,
}

/// The network of that name, if there is one and it can be read.
pub(super) fn network<N: Network>(objects: &Cache<DeserializeGuard<N>>, key: &Key) -> Option<Arc<N>> {
    match &objects.get(key)?.0 {
        Ok(network) => Some(Arc::new(network.clone())),
        Err(invalid) => {
            tracing::warn!(kind = %N::kind(&()), %key, error = invalid.error, "network left as it is: the object could not be read");
            None
        }
    }
}

pub(super) async fn found(context: &Context, namespaces: &Cache<PartialObjectMeta<Namespace>>, wanted: &Wanted) -> Result<Found, RequestFailed> {
    let namespace = namespaces.get(&Key::new("", &wanted.namespace)).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
    if !namespace {
        return Ok(Found::default());
    }
    Ok(Found { namespace, nad: nad(context, &wanted.namespace, &wanted.name).await? })
}

/// The NAD as untyped JSON: a foreign one may lack what our type asks for.
pub(super) async fn nad(context: &Context, namespace: &str, name: &str) -> Result<Option<DynamicObject>, RequestFailed> {
    let resource = ApiResource::erase::<NetworkAttachmentDefinition>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    answered(api.get_opt(name)).await.map_err(|e| RequestFailed::new("read", &resource.kind, &Key::new(namespace, name), e))
}
