//! I/O: the only writer of nodes, and of `current-state`.
//!
//! Invariant: the mark [`keys::CORDONED`] and `spec.unschedulable` are written in one request, so that there is no moment at which a cordon of
//! ours looks like a user's or the other way round.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sriov_crds::{SriovNetworkNodeState, keys};

use crate::context::Context;
use crate::resources::{self, RequestFailed};

pub(super) async fn current_state(context: &Context, name: &str, state: &str) -> Result<(), RequestFailed> {
    let api: Api<SriovNetworkNodeState> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    resources::merge_metadata(&api, "SriovNetworkNodeState", name, json!({ "annotations": { keys::CURRENT_STATE: state } })).await
}

/// Marks a node state that was made before another controller came to drain. Taking the mark away is the user's: it may be his own.
pub(super) async fn leave_to_another(context: &Context, name: &str) -> Result<(), RequestFailed> {
    let api: Api<SriovNetworkNodeState> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    resources::merge_metadata(&api, "SriovNetworkNodeState", name, json!({ "annotations": { keys::USE_EXTERNAL_DRAINER: "true" } })).await
}

/// Makes the node unschedulable, unless it is already.
pub(super) async fn cordon(context: &Context, name: &str, request: &str) -> Result<(), RequestFailed> {
    let node = read(&context.client, name).await?;
    let is_cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    let says = node.annotations().get(keys::NODE_DRAIN_STATE).is_some_and(|state| state == request);
    let patch = match (is_cordoned, says) {
        (true, true) => return Ok(()),
        (true, false) => json!({ "metadata": { "annotations": { keys::NODE_DRAIN_STATE: request } } }),
        (false, _) => json!({
            // What was read must still hold, or a user's cordon of this moment would be taken for ours.
            "metadata": { "resourceVersion": node.resource_version(), "annotations": { keys::NODE_DRAIN_STATE: request, keys::CORDONED: "true" } },
            "spec": { "unschedulable": true },
        }),
    };
    write(&context.client, name, "cordon", patch).await
}

/// Takes a cordon of ours back; a user's stays.
pub(super) async fn uncordon(context: &Context, name: &str) -> Result<(), RequestFailed> {
    let node = match read(&context.client, name).await {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    let ours = node.annotations().contains_key(keys::CORDONED);
    let rests = node.annotations().get(keys::NODE_DRAIN_STATE).is_none_or(|state| state == keys::IDLE);
    let patch = match (ours, rests) {
        (false, true) => return Ok(()),
        (false, false) => json!({ "metadata": { "annotations": { keys::NODE_DRAIN_STATE: keys::IDLE } } }),
        (true, _) => json!({
            "metadata": { "annotations": { keys::NODE_DRAIN_STATE: keys::IDLE, keys::CORDONED: null } },
            "spec": { "unschedulable": null },
        }),
    };
    write(&context.client, name, "uncordon", patch).await
}

async fn read(client: &Client, name: &str) -> Result<Node, RequestFailed> {
    resources::answered(Api::all(client.clone()).get(name)).await.map_err(|e| RequestFailed::new("read", "Node", name, e))
}

async fn write(client: &Client, name: &str, verb: &'static str, patch: Value) -> Result<(), RequestFailed> {
    let api: Api<Node> = Api::all(client.clone());
    let params = PatchParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    resources::answered(api.patch_metadata(name, &params, &Patch::Merge(patch))).await.map_err(|e| RequestFailed::new(verb, "Node", name, e))?;
    Ok(())
}
