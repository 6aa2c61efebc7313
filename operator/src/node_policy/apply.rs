//! I/O: the only writer of node states' specs. Writes what `build` found different, in the order: spec, annotation, deletion.

use kube::Api;
use serde_json::json;
use sriov_crds::{SriovNetworkNodeState, keys};

use super::build::{Desired, Keep};
use crate::context::Context;
use crate::resources::{self, RequestFailed};

const KIND: &str = "SriovNetworkNodeState";

pub(super) async fn node_state(context: &Context, name: &str, desired: &Desired) -> Result<(), RequestFailed> {
    let Desired { spec, keep, delete, again: _, held_by: _ } = desired;
    let api: Api<SriovNetworkNodeState> = Api::namespaced(context.client.clone(), &context.settings.namespace);
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
    if *delete {
        resources::delete(&api, KIND, name).await?;
    }
    Ok(())
}
