//! I/O: what became of a policy (its status) and of a node (the log; the node state's status is the daemon's).

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use sriov_crds::SriovNetworkNodePolicy;
use sriov_crds::conditions::{self, DEGRADED, Outcome, PROGRESSING, READY, policy as reason};
use sriov_crds::keys::LEGACY_DEFAULT_POLICY;
use sriov_crds::node_policy::SriovNetworkNodePolicyStatus;
use sriov_crds::resolve::{Malformed, Policy};

use super::build::{Desired, Keep};
use super::tally::Tally;
use super::validate::Node;
use crate::context::Context;
use crate::operator_config::gates;
use crate::queue::Next;
use crate::resources::{self, RequestFailed};

pub(super) async fn policy(
    context: &Context,
    policy: &DeserializeGuard<SriovNetworkNodePolicy>,
    result: Result<Policy, Malformed>,
    tally: &Tally,
) -> Result<(), RequestFailed> {
    let Ok(object) = &policy.0 else {
        // A status cannot be written to an object whose spec its own schema would refuse.
        if let Err(error) = result {
            tracing::warn!(policy = policy.0.as_ref().err().and_then(|e| e.metadata.name.as_deref()), %error, "policy left out");
        }
        return Ok(());
    };
    if object.metadata.name.as_deref() == Some(LEGACY_DEFAULT_POLICY) {
        return Ok(());
    }
    let before = object.status.clone().unwrap_or_default();
    let mut status = SriovNetworkNodePolicyStatus {
        matched_nodes: tally.matched,
        configured_nodes: tally.configured,
        pending_nodes: tally.pending,
        failed_nodes: tally.failed,
        first_failure: tally.first_failure.clone(),
        conditions: before.conditions.clone(),
    };
    let outcomes = verdict(result.err().as_ref(), tally);
    let ready = outcomes[0].clone();
    for outcome in outcomes {
        conditions::set(&mut status.conditions, outcome, object.metadata.generation, &Time(Timestamp::now()));
    }
    if status == before {
        return Ok(());
    }
    resources::write_status(context, object, &status).await?;
    let same = |c: &Condition| c.type_ == ready.kind && c.reason == ready.reason && (c.status == "True") == ready.status;
    if !before.conditions.iter().any(same) {
        resources::publish(context, object, &ready).await;
    }
    Ok(())
}

/// `Ready`, `Progressing` and `Degraded`.
fn verdict(malformed: Option<&Malformed>, tally: &Tally) -> [Outcome; 3] {
    let outcome = |kind, status, reason, message: String| Outcome { kind, status, reason, message };
    let ready = match malformed {
        None => outcome(READY, true, reason::ACCEPTED, "the policy is carried out on the nodes and PFs that it selects".to_owned()),
        Some(malformed) => {
            let message = format!("{malformed}; nodes that have VFs of this policy stay as they are until it is corrected");
            outcome(READY, false, reason::INVALID, message)
        }
    };
    let progressing = match tally.matched {
        0 => outcome(PROGRESSING, false, reason::NO_NODES, "no managed node has the labels of its nodeSelector".to_owned()),
        _ if tally.pending == 0 => outcome(PROGRESSING, false, reason::CONFIGURED, String::new()),
        _ => outcome(PROGRESSING, true, reason::CONFIGURING, format!("{} of {} nodes are to answer", tally.pending, tally.matched)),
    };
    let degraded = match (&tally.first_failure, &tally.overridden) {
        (None, None) if tally.bridge_ignored => outcome(DEGRADED, true, reason::BRIDGE_IGNORED, gates::BRIDGE_IGNORED.to_owned()),
        (None, None) => outcome(DEGRADED, false, reason::CONFIGURED, String::new()),
        (None, Some((first, nodes))) => outcome(DEGRADED, true, reason::OVERRIDDEN, format!("not all as asked on {nodes} nodes; {first}")),
        (Some(first), _) => {
            let message = format!("{} of {} nodes failed; node {}: {}", tally.failed, tally.matched, first.node, first.message);
            outcome(DEGRADED, true, reason::NODES_FAILED, message)
        }
    };
    [ready, progressing, degraded]
}

pub(super) fn node(name: &str, node: &Node, desired: &Desired) -> Next {
    if let Some(spec) = &desired.spec {
        let policies: Vec<_> = node.policies.iter().map(|p| p.name.as_str()).collect();
        tracing::info!(node = name, pfs = spec.interfaces.len(), ?policies, "node state written");
    }
    if let Keep::Until(until) = &desired.keep {
        tracing::info!(node = name, %until, "node is not selected any more; its state is kept for a while");
    }
    if desired.delete {
        tracing::info!(node = name, "node state of a node that left deleted");
    }
    if !desired.held_by.is_empty() {
        tracing::warn!(node = name, policies = ?desired.held_by, "spec left as it is: these policies are malformed and have VFs here");
    }
    match desired.again {
        None => Next::Wait,
        Some(again) => Next::After(Duration::try_from(again.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)),
    }
}
