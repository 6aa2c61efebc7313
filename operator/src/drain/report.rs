//! I/O: what became of a drain: the condition `Drained` of a node state, a pool's status, Events, and the number of nodes by state.
//!
//! Invariant: of a node state's conditions only `Drained` is ours; the daemon owns the others.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde_json::json;
use sriov_crds::conditions::{self, DEGRADED, DRAINED, Outcome, PROGRESSING, READY, drain, pool as reason};
use sriov_crds::node_state::{SYNC_FAILED, SYNC_SUCCEEDED};
use sriov_crds::{SriovNetworkNodeState, SriovNetworkPoolConfig, keys};

use super::evict::Left;
use super::pools::{Counts, Invalid, REST, Refusal};
use super::steps::{Phase, Request};
use crate::context::Context;
use crate::fleet::Fleet;
use crate::resources::{self, RequestFailed, answered};

/// Writes the condition, or takes it away, if that changes anything.
pub(super) async fn drained(context: &Context, state: &SriovNetworkNodeState, outcome: Option<Outcome>) -> Result<(), RequestFailed> {
    let existing = state.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == DRAINED);
    let mut ours: Vec<Condition> = existing.cloned().into_iter().collect();
    match outcome {
        None if existing.is_none() => return Ok(()),
        None => ours.clear(),
        Some(outcome) => {
            // Of no generation: a drain is about a moment, not about a spec.
            if !conditions::set(&mut ours, outcome, None, &Time(Timestamp::now())) {
                return Ok(());
            }
        }
    }
    let (name, kind) = (state.name_any(), "SriovNetworkNodeState");
    let api: Api<SriovNetworkNodeState> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let status = json!({
        "apiVersion": SriovNetworkNodeState::api_version(&()), "kind": kind, "metadata": { "name": name, "uid": state.uid() },
        "status": { "conditions": ours },
    });
    let params = PatchParams::apply(keys::FIELD_MANAGER).force();
    match answered(api.patch_status(&name, &params, &Patch::Apply(status))).await {
        Err(error) => Err(RequestFailed::new("write the status of", kind, &name, error)),
        Ok(_) => Ok(()),
    }
}

/// Why a node waits for its turn. Counts are left out: they would be written anew for every node with each one that is through.
pub(super) fn waiting(refusal: &Refusal) -> (&'static str, String) {
    let called = |pool: &str| if pool == REST { "the nodes without a pool".to_owned() } else { format!("pool {pool}") };
    match refusal {
        Refusal::Overlap(pools) => (
            drain::POOLS_OVERLAP,
            format!("pools {} select this node, and a node may be in one only; it is not drained until one is", pools.join(", ")),
        ),
        Refusal::Invalid(why) => (drain::WAITING_FOR_POOL, why.clone()),
        Refusal::Full { pool, allowed: 0 } => (drain::WAITING_FOR_POOL, format!("{} allow no node to be away (maxUnavailable)", called(pool))),
        Refusal::Full { pool, allowed } => {
            (drain::WAITING_FOR_POOL, format!("waiting for its turn: of {} at most {allowed} may be away at a time", called(pool)))
        }
        Refusal::Stage { pool, nodes } => {
            (drain::WAITING_FOR_POOL, format!("waiting for its turn: of {} {nodes} must be through before the next stage begins", called(pool)))
        }
        Refusal::Stopped { pool, node } => (drain::POOL_STOPPED, format!("{} is stopped, because node {node} failed", called(pool))),
    }
}

/// What a drain waits for.
pub(super) fn leaving(left: &Left) -> (&'static str, String) {
    (if left.blocked() { drain::WAITING_FOR_PDB } else { drain::EVICTING }, left.to_string())
}

/// An Event on the node state. The condition is the record; a lost Event is worth a line, not another try.
pub(super) async fn event(context: &Context, state: &SriovNetworkNodeState, normal: bool, reason: &str, note: &str) {
    let event = Event {
        type_: if normal { EventType::Normal } else { EventType::Warning },
        reason: reason.to_owned(),
        // The API takes 1,024 bytes.
        note: Some(note.chars().take(900).collect()),
        action: "Drain".to_owned(),
        secondary: None,
    };
    if let Err(error) = answered(context.recorder.publish(&event, &state.object_ref(&()))).await {
        tracing::warn!(%error, "event not written");
    }
}

/// Writes a pool's status if it says something new.
pub(super) async fn pool(
    context: &Context,
    object: &SriovNetworkPoolConfig,
    counts: Option<Counts>,
    invalid: Option<Invalid>,
) -> Result<(), RequestFailed> {
    let before = object.status.clone().unwrap_or_default();
    // One that is not for nodes (hardware offload) has no counts.
    let Some(counts) = counts else { return Ok(()) };
    let mut status = before.clone();
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    status.nodes = number(counts.nodes);
    status.allowed = counts.allowed.map(number);
    (status.draining, status.waiting, status.done) = (number(counts.away), number(counts.waiting), number(counts.done));
    for outcome in verdict(&counts, invalid.as_ref()) {
        conditions::set(&mut status.conditions, outcome, object.metadata.generation, &Time(Timestamp::now()));
    }
    if status == before {
        return Ok(());
    }
    resources::write_status(context, object, &status).await
}

fn verdict(counts: &Counts, invalid: Option<&Invalid>) -> [Outcome; 3] {
    let outcome = |kind, status, reason, message: String| Outcome { kind, status, reason, message };
    let overlap = counts.overlap.as_ref().map(|(node, pools)| format!("pools {} select node {node}; a node may be in one only", pools.join(", ")));
    let ready = match (invalid, &overlap) {
        (Some(invalid), _) => {
            outcome(READY, false, reason::INVALID, format!("{invalid}; its nodes are drained as if they were in no pool, one at a time"))
        }
        (None, Some(overlap)) => outcome(READY, false, reason::OVERLAP, overlap.clone()),
        (None, None) if counts.allowed == Some(0) => {
            let message = format!("maxUnavailable of {} nodes comes to 0, so that none is ever drained", counts.nodes);
            outcome(READY, false, reason::NOTHING_ALLOWED, message)
        }
        (None, None) => outcome(READY, true, reason::ACCEPTED, String::new()),
    };
    let busy = counts.away + counts.waiting > 0;
    let progress = if busy { format!("{} away, {} waiting, {} through", counts.away, counts.waiting, counts.done) } else { String::new() };
    let progressing = outcome(PROGRESSING, busy, if busy { reason::DRAINING } else { reason::IDLE }, progress);
    let degraded = match &counts.stopped_by {
        Some(node) => outcome(DEGRADED, true, reason::STOPPED, format!("node {node} failed; no other node is drained until it succeeds")),
        None => outcome(DEGRADED, false, reason::IDLE, String::new()),
    };
    [ready, progressing, degraded]
}

/// Counts the managed nodes by state, for the metrics.
pub(super) fn census(context: &Context, fleet: &Fleet) {
    let mut counts: BTreeMap<&str, usize> =
        ["Configured", "Pending", "Failed", "DrainRequired", "Draining", "DrainComplete"].map(|state| (state, 0)).into();
    for state in fleet.states.list() {
        let Ok(state) = &state.0 else { continue };
        let sync = state.status.as_ref().and_then(|s| s.sync_status.as_deref());
        let is = match (Phase::of(state), Request::of(state), sync) {
            (Phase::Draining, ..) => "Draining",
            (Phase::Complete, ..) => "DrainComplete",
            (Phase::Idle, Request::Users | Request::Everything, _) => "DrainRequired",
            (_, _, Some(SYNC_SUCCEEDED)) => "Configured",
            (_, _, Some(SYNC_FAILED)) => "Failed",
            _ => "Pending",
        };
        *counts.entry(is).or_default() += 1;
    }
    for (state, count) in counts {
        context.metrics.nodes(state, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_says_what_is_wrong_with_it() {
        let ready = |counts: Counts, invalid: Option<Invalid>| {
            let [ready, _, degraded] = verdict(&counts, invalid.as_ref());
            format!("{} {} | {} {}", ready.reason, ready.message, degraded.reason, degraded.message)
        };
        let fine = Counts { nodes: 4, allowed: Some(1), ..Counts::default() };
        assert_eq!(ready(fine.clone(), None), "Accepted  | Idle ");
        assert!(ready(Counts { allowed: Some(0), ..fine.clone() }, None).starts_with("NothingAllowed maxUnavailable of 4 nodes comes to 0"));
        let overlap = Counts { overlap: Some(("n".into(), vec!["a".into(), "b".into()])), ..fine.clone() };
        assert!(ready(overlap, None).starts_with("PoolsOverlap pools a, b select node n"));
        assert!(
            ready(Counts { stopped_by: Some("n".into()), ..fine }, None)
                .ends_with("Stopped node n failed; no other node is drained until it succeeds")
        );
    }
}
