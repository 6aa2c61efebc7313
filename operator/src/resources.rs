//! I/O: the few ways in which anything is written: server-side apply of a whole object, a merge into metadata, deletion, and conditions with their
//! Event. All controllers write through here, all as one field manager.
//!
//! Invariants: a status is written only when it differs from what is there; every request comes to an end, answered or not.

use std::fmt::Debug;
use std::time::Duration;

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

/// Longest time from a request to its answer. The API server itself gives up after a minute, and is far faster when it works at all.
const ANSWER: Duration = Duration::from_secs(20);

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

/// Gives up on a request that is not answered: a connection can die without a word, and the key that asked would never be reconciled again.
pub async fn answered<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(format!("no answer within {} s", ANSWER.as_secs()).into())),
    }
}

/// Server-side apply of `object`, which must have `apiVersion`, `kind` and a name. Takes fields over from other managers: what we render is ours.
pub async fn apply<K>(api: &Api<K>, kind: &str, name: &str, object: &impl Serialize) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = PatchParams::apply(FIELD_MANAGER).force();
    // The answer's metadata is enough, and an object of a foreign kind may not fit `K`.
    let value = serde_json::to_value(object).map_err(|e| RequestFailed::new("serialise", kind, name, kube::Error::SerdeError(e)))?;
    answered(api.patch_metadata(name, &params, &Patch::Apply(value))).await.map_err(|e| RequestFailed::new("apply", kind, name, e))?;
    Ok(())
}

/// Merges `metadata` (any part of `ObjectMeta`, null removes) into an object.
pub async fn merge_metadata<K>(api: &Api<K>, kind: &str, name: &str, metadata: serde_json::Value) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    answered(api.patch_metadata(name, &params, &patch)).await.map_err(|e| RequestFailed::new("patch", kind, name, e))?;
    Ok(())
}

/// Deletes an object; one that is not there is as good.
pub async fn delete<K>(api: &Api<K>, kind: &str, name: &str) -> Result<(), RequestFailed>
where
    K: Clone + DeserializeOwned + Debug,
{
    match answered(api.delete(name, &DeleteParams::default())).await {
        Err(error) if !is_not_found(&error) => Err(RequestFailed::new("delete", kind, name, error)),
        _ => Ok(()),
    }
}

/// Writes `outcomes` as the conditions of their types if that says something new, with an Event when status or reason of the first one moved.
/// `existing` are the object's conditions as read.
pub async fn report<K>(context: &Context, object: &K, existing: &[Condition], outcomes: &[Outcome]) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let mut conditions = existing.to_vec();
    let now = Time(Timestamp::now());
    let news = outcomes.iter().filter(|outcome| conditions::set(&mut conditions, (*outcome).clone(), object.meta().generation, &now)).count();
    if news == 0 {
        return Ok(());
    }
    write_status(context, object, &json!({ "conditions": conditions })).await?;
    let Some(first) = outcomes.first() else { return Ok(()) };
    let said = existing.iter().any(|c| c.type_ == first.kind && c.reason == first.reason && (c.status == "True") == first.status);
    if !said {
        publish(context, object, first).await;
    }
    Ok(())
}

/// Takes a finalizer off an object that has it. Nothing happens to an object that changed meanwhile but another try.
pub async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if !object.finalizers().iter().any(|f| f == finalizer) {
        return Ok(());
    }
    let others: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    // A merge patch replaces the whole list, so it must still be the one that was read.
    let metadata = json!({ "finalizers": others, "resourceVersion": object.resource_version() });
    match merge_metadata(api, &K::kind(&()), &object.name_any(), metadata).await {
        // It is gone, finalizer and all.
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Server-side apply of an object's whole status.
pub async fn write_status<K>(context: &Context, object: &K, status: &impl Serialize) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    let api = Api::<K>::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let status = json!({ "apiVersion": K::api_version(&()), "kind": kind, "metadata": { "name": name }, "status": status });
    answered(api.patch_status(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(status)))
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
    if let Err(error) = answered(context.recorder.publish(&event, &object.object_ref(&()))).await {
        tracing::warn!(%error, "event not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_never_answered_ends_and_is_tried_again() {
        let error = answered(std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        let failed = RequestFailed::new("apply", "Kind", "name", error);
        assert_eq!((failed.reason(), failed.retry()), ("NoAnswer", Retry::Backoff));
        assert!(failed.to_string().contains("no answer within 20 s"), "{failed}");
    }
}
