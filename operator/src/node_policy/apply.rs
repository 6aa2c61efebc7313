//! I/O: the only writer of node states' specs. Writes what `build` found different, in the order: spec, annotation, deletion.

use std::collections::BTreeMap;

use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::json;
use sriov_crds::{SriovNetworkNodeState, SriovNetworkNodeStateSpec, keys};

use super::build::{Desired, Keep};
use crate::context::Context;
use crate::resources::{self, RequestFailed};

const KIND: &str = "SriovNetworkNodeState";

pub(super) async fn node_state(context: &Context, name: &str, desired: &Desired) -> Result<(), RequestFailed> {
    let Desired { spec, create, keep, delete, again: _, disown, held_by: _ } = desired;
    let api: Api<SriovNetworkNodeState> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    if let Some(spec) = spec.as_ref().filter(|_| *create) {
        return create_state(&api, name, spec, context.settings.external_drainer).await;
    }
    if let Some(spec) = spec {
        let object = json!({
            "apiVersion": format!("{}/{}", keys::GROUP, keys::VERSION), "kind": KIND, "metadata": { "name": name }, "spec": spec,
        });
        resources::apply(&api, KIND, name, &object).await?;
    }
    let until = match keep {
        Keep::Leave => None,
        Keep::Clear => Some(json!(null)),
        Keep::Until(until) => Some(json!(until.to_string())),
    };
    if let Some(until) = until {
        resources::merge_metadata(&api, KIND, name, json!({ "annotations": { keys::KEEP_STATE_UNTIL: until } })).await?;
    }
    if *disown {
        // The configuration is the only owner that the Go operator gives a node state.
        resources::merge_metadata(&api, KIND, name, json!({ "ownerReferences": null })).await?;
    }
    if *delete {
        resources::delete(&api, KIND, name).await?;
    }
    Ok(())
}

/// Both sides of the drain handshake begin idle, in the same request: daemons and external drainers wait for the annotations.
async fn create_state(
    api: &Api<SriovNetworkNodeState>,
    name: &str,
    spec: &SriovNetworkNodeStateSpec,
    external_drainer: bool,
) -> Result<(), RequestFailed> {
    let mut annotations = BTreeMap::from([keys::DESIRED_STATE, keys::CURRENT_STATE].map(|key| (key.to_owned(), keys::IDLE.to_owned())));
    if external_drainer {
        annotations.insert(keys::USE_EXTERNAL_DRAINER.to_owned(), "true".to_owned());
    }
    let metadata = ObjectMeta { name: Some(name.to_owned()), annotations: Some(annotations), ..ObjectMeta::default() };
    let state = SriovNetworkNodeState { metadata, spec: spec.clone(), status: None };
    let params = PostParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match resources::answered(api.create(&params, &state)).await {
        // Made a moment ago, and the cache does not show it yet; its own event leads here again.
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(RequestFailed::new("create", KIND, name, error)),
        Ok(_) => Ok(()),
    }
}
