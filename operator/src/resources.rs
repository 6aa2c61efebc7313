//! I/O: the few ways in which anything is written: server-side apply of a whole object, a merge into metadata, deletion, and the `Ready`
//! condition with its Event. All controllers write through here, all as one field manager.
//!
//! Invariant: a status is written only when it differs from what is there.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sriov_crds::conditions::{self, Outcome};
use sriov_crds::keys::FIELD_MANAGER;

use crate::context::Context;
use crate::queue::{Retry, Retryable};

/// A write or read that the API server refused or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {kind} {object}: {cause}")]
pub struct RequestFailed {
    verb: &'static str,
    kind: String,
    object: String,
    cause: Box<kube::Error>,
}

impl RequestFailed {
    /// While doing `verb` with an object.
    pub fn new(verb: &'static str, kind: &str, object: &(impl ToString + ?Sized), cause: kube::Error) -> Self {
        Self { verb, kind: kind.to_owned(), object: object.to_string(), cause: Box::new(cause) }
    }

    /// True when the API server answered that the object, or its namespace, does not exist.
    pub fn is_not_found(&self) -> bool {
        is_not_found(&self.cause)
    }
}

impl RequestFailed {
    /// What the API server said when it would not take the object as it is: a schema, a webhook or a right is in the way, not the moment.
    pub fn refusal(&self) -> Option<&str> {
        match self.cause.as_ref() {
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Some(&status.message),
            _ => None,
        }
    }
}

impl Retryable for RequestFailed {
    fn retry(&self) -> Retry {
        Retry::Backoff
    }

    fn reason(&self) -> &'static str {
        match self.cause.as_ref() {
            kube::Error::Api(status) => match status.code {
                403 => "Forbidden",
                404 => "NotFound",
                409 => "Conflict",
                422 => "Refused",
                429 => "TooManyRequests",
                500.. => "ServerError",
                _ => "Rejected",
            },
            _ => "NoAnswer",
        }
    }
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Server-side apply of `object`, which must have `apiVersion`, `kind` and a name. Takes fields over from other managers: what we render is ours.
pub async fn apply<K>(api: &Api<K>, kind: &str, name: &str, object: &impl Serialize) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = PatchParams::apply(FIELD_MANAGER).force();
    // The answer's metadata is enough, and an object of a foreign kind may not fit `K`.
    let value = serde_json::to_value(object).map_err(|e| RequestFailed::new("serialise", kind, name, kube::Error::SerdeError(e)))?;
    api.patch_metadata(name, &params, &Patch::Apply(value)).await.map_err(|e| RequestFailed::new("apply", kind, name, e))?;
    Ok(())
}

/// Merges `metadata` (any part of `ObjectMeta`, null removes) into an object.
pub async fn merge_metadata<K>(api: &Api<K>, kind: &str, name: &str, metadata: serde_json::Value) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_metadata(name, &params, &patch).await.map_err(|e| RequestFailed::new("patch", kind, name, e))?;
    Ok(())
}

/// Deletes an object; one that is not there is as good.
pub async fn delete<K>(api: &Api<K>, kind: &str, name: &str) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Err(error) if !is_not_found(&error) => Err(RequestFailed::new("delete", kind, name, error)),
        _ => Ok(()),
    }
}

/// Writes `outcome` as the condition of its type if that says something new, with an Event when status or reason moved. `existing` are the
/// object's conditions as read.
pub async fn report<K>(context: &Context, object: &K, existing: &[Condition], outcome: Outcome) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let mut conditions = existing.to_vec();
    let before = existing.iter().find(|c| c.type_ == outcome.kind).map(|c| (c.status.clone(), c.reason.clone()));
    if !conditions::set(&mut conditions, outcome.clone(), object.meta().generation, &Time(Timestamp::now())) {
        return Ok(());
    }
    write_status(context, object, &json!({ "conditions": conditions })).await?;
    let status = if outcome.status { "True" } else { "False" };
    if before.as_ref().is_none_or(|(old_status, old_reason)| old_status != status || old_reason != outcome.reason) {
        publish(context, object, &outcome).await;
    }
    Ok(())
}

/// Server-side apply of an object's whole status.
pub async fn write_status<K>(context: &Context, object: &K, status: &impl Serialize) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    let api = Api::<K>::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let status = json!({ "apiVersion": K::api_version(&()), "kind": kind, "metadata": { "name": name }, "status": status });
    api.patch_status(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(status))
        .await
        .map_err(|e| RequestFailed::new("write the status of", &kind, &name, e))?;
    Ok(())
}

/// An Event that says an outcome.
pub async fn publish<K: Resource<DynamicType = ()>>(context: &Context, object: &K, outcome: &Outcome) {
    let event = Event {
        type_: if outcome.status { EventType::Normal } else { EventType::Warning },
        reason: outcome.reason.to_owned(),
        note: Some(outcome.message.clone()).filter(|m| !m.is_empty()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    // The condition is the record; a lost Event is worth a line, not another try.
    if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(%error, "event not written");
    }
}
