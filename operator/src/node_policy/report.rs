//! I/O: what became of a policy (its `Ready` condition) and of a node (the log; the node state's status is the daemon's).

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use sriov_crds::SriovNetworkNodePolicy;
use sriov_crds::conditions::{self, Outcome};
use sriov_crds::keys::LEGACY_DEFAULT_POLICY;
use sriov_crds::resolve::{Malformed, Policy};

use super::build::{Desired, Keep};
use super::validate::Node;
use crate::context::Context;
use crate::queue::Next;
use crate::resources::{self, RequestFailed};

pub(super) async fn policy(
    context: &Context,
    policy: &DeserializeGuard<SriovNetworkNodePolicy>,
    result: Result<Policy, Malformed>,
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
    let outcome = match result {
        Ok(_) => Outcome {
            kind: conditions::READY,
            status: true,
            reason: conditions::policy::ACCEPTED,
            message: "the policy is carried out on the nodes and PFs that it selects".to_owned(),
        },
        Err(malformed) => Outcome {
            kind: conditions::READY,
            status: false,
            reason: conditions::policy::INVALID,
            message: format!("{malformed}; nodes that have VFs of this policy stay as they are until it is corrected"),
        },
    };
    let existing = object.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    resources::report(context, object, existing, outcome).await
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
