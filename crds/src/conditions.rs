//! Pure: every condition type and reason that the product writes, in one table, and the one rule for changing a condition list.
//!
//! Invariant of [`set`]: `lastTransitionTime` moves only when the status does, and nothing changes when nothing is new, so that a writer can
//! skip the write.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The object does what it says.
pub const READY: &str = "Ready";
/// Work is under way.
pub const PROGRESSING: &str = "Progressing";
/// Something asked for was refused or failed.
pub const DEGRADED: &str = "Degraded";
/// On a node state: the IOMMU that `vfio-pci` needs is active.
pub const IOMMU_READY: &str = "IommuReady";
/// On a node state: pods must leave before the node can be as asked.
pub const DRAIN_REQUIRED: &str = "DrainRequired";
/// On a node state: the node must be rebooted before it can be as asked.
pub const REBOOT_REQUIRED: &str = "RebootRequired";
/// On a node state: the machine was as asked, and somebody changed it since.
pub const DRIFT_DETECTED: &str = "DriftDetected";
/// Whether the pods that are in the way have left a node; written by the operator, and only while the daemon asks for a drain.
pub const DRAINED: &str = "Drained";

/// Reasons of [`DRAINED`] on a node state.
pub mod drain {
    /// The pods are gone.
    pub const COMPLETE: &str = "DrainComplete";
    /// Pods are leaving; the message names them.
    pub const EVICTING: &str = "Evicting";
    /// A PodDisruptionBudget allows no eviction now; the message names it.
    pub const WAITING_FOR_PDB: &str = "WaitingForPodDisruptionBudget";
    /// As many nodes of the pool as may be are being drained.
    pub const WAITING_FOR_POOL: &str = "WaitingForPool";
    /// A node of the pool failed, and the pool stops then.
    pub const POOL_STOPPED: &str = "PoolStopped";
    /// More than one pool selects the node.
    pub const POOLS_OVERLAP: &str = "PoolsOverlap";
    /// The pods did not leave in time; the node was given back and is tried again.
    pub const TIMED_OUT: &str = "DrainTimedOut";
}

/// Reasons on a pool.
pub mod pool {
    /// The pool is used.
    pub const ACCEPTED: &str = "Accepted";
    /// Something in it means nothing; its nodes are drained as if no pool selected them, one at a time.
    pub const INVALID: &str = "InvalidPool";
    /// Another pool selects some of its nodes; those are not drained.
    pub const OVERLAP: &str = "PoolsOverlap";
    /// What it allows comes to no node at all.
    pub const NOTHING_ALLOWED: &str = "NothingAllowed";
    /// Nodes are being drained or wait for it.
    pub const DRAINING: &str = "Draining";
    /// No node asks for a drain.
    pub const IDLE: &str = "Idle";
    /// A node failed, so no other is drained.
    pub const STOPPED: &str = "Stopped";
}

/// Reasons on a node state.
pub mod node {
    /// The kernel has an active IOMMU.
    pub const IOMMU_ACTIVE: &str = "IommuActive";
    /// The operator (or an external drainer) was asked to make the pods leave.
    pub const WAITING_FOR_DRAIN: &str = "WaitingForDrain";
    /// The node was drained, and VFs are still in use.
    pub const DRAINED_BUT_IN_USE: &str = "DrainedButInUse";
    /// An earlier drain is being taken back; a new one is asked for after it.
    pub const WAITING_FOR_ROLLBACK: &str = "WaitingForRollback";
    /// `disableDrain` is set: the pods are waited for.
    pub const DRAIN_DISABLED: &str = "DrainDisabled";
    /// The machine is told to reboot.
    pub const REBOOTING: &str = "Rebooting";
    /// The reboot that was asked for happened and changed nothing; it is not asked for again.
    pub const REBOOT_DID_NOT_HELP: &str = "RebootDidNotHelp";
    /// What was changed from outside is changed back.
    pub const REPAIRING: &str = "Repairing";
    /// What was changed from outside stays so, because the daemon was told to report only.
    pub const NOT_REPAIRED: &str = "NotRepaired";
    /// Everything asked is so.
    pub const CONVERGED: &str = "Converged";
    /// The operator has not rendered a spec yet.
    pub const NOT_RENDERED: &str = "NotRendered";
    /// The published plan is being carried out.
    pub const APPLYING: &str = "Applying";
    /// A step failed; it is tried again.
    pub const STEP_FAILED: &str = "StepFailed";
    /// At least one PF is left alone; the message lists them.
    pub const REFUSED: &str = "Refused";
    /// The spec could not be understood.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The machine could not be read.
    pub const OBSERVE_FAILED: &str = "ObserveFailed";
    /// Steps wait until VFs that pods use are free.
    pub const WAITING_FOR_VFS_IN_USE: &str = "WaitingForVfsInUse";
    /// Nothing is to be done.
    pub const IDLE: &str = "Idle";
    /// The PF's model is not listed in `supported-nic-ids`.
    pub const UNSUPPORTED_NIC: &str = "UnsupportedNic";
    /// VFs for userspace drivers were asked for without an active IOMMU.
    pub const IOMMU_INACTIVE: &str = "IommuInactive";
    /// More VFs were asked for than the PF can have.
    pub const TOO_MANY_VFS: &str = "TooManyVfs";
    /// Something was asked for that this version does not do.
    pub const UNSUPPORTED_SETTING: &str = "UnsupportedSetting";
}

/// Reasons on a policy (ours).
pub mod policy {
    /// The policy is well-formed and takes part in rendering.
    pub const ACCEPTED: &str = "Accepted";
    /// The policy is malformed and is left out; the message says what is wrong.
    pub const INVALID: &str = "InvalidPolicy";
    /// At least one node has not carried it out yet.
    pub const CONFIGURING: &str = "Configuring";
    /// All nodes that it selects carried it out.
    pub const CONFIGURED: &str = "Configured";
    /// It selects no node that is managed.
    pub const NO_NODES: &str = "NoMatchingNodes";
    /// At least one node could not carry it out.
    pub const NODES_FAILED: &str = "NodesFailed";
    /// A stronger policy on the same PF decides something else for the whole PF.
    pub const OVERRIDDEN: &str = "Overridden";
    /// It names a bridge, and the feature gate that makes bridges is off.
    pub const BRIDGE_IGNORED: &str = "BridgeIgnored";
}

/// Reasons on the three network kinds.
pub mod network {
    /// The NetworkAttachmentDefinition is in place.
    pub const READY: &str = "NetworkReady";
    /// It is not there, or belongs to someone else.
    pub const NAD_NOT_FOUND: &str = "NetworkAttachmentDefinitionNotFound";
    /// It could not be rendered from what the object says.
    pub const NAD_INVALID: &str = "NetworkAttachmentDefinitionInvalid";
    /// Its namespace does not exist (yet).
    pub const NAMESPACE_NOT_FOUND: &str = "NamespaceNotFound";
}

/// Reasons on a rule of namespaces.
pub mod namespace_rule {
    /// The webhook holds it.
    pub const ENFORCED: &str = "Enforced";
    /// The webhook is switched off.
    pub const WEBHOOK_OFF: &str = "WebhookOff";
}

/// Reasons on the operator configuration.
pub mod operator_config {
    /// Everything is deployed as asked.
    pub const READY: &str = "OperatorConfigReady";
    /// Something could not be deployed.
    pub const SYNC_FAILED: &str = "OperatorConfigSyncFailed";
    /// Not all nodes run the present pods of the DaemonSets yet; the message counts them.
    pub const ROLLING_OUT: &str = "RollingOut";
}

/// What a writer says about one condition type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One of the type constants of this module.
    pub kind: &'static str,
    /// True, or false.
    pub status: bool,
    /// One of the reason constants of this module.
    pub reason: &'static str,
    /// For people; may be empty.
    pub message: String,
}

/// Puts `outcome` into `conditions`, answers whether anything but the time of writing changed. `generation` is that of the object that the
/// outcome is about, `now` is used only when the status moves.
pub fn set(conditions: &mut Vec<Condition>, outcome: Outcome, generation: Option<i64>, now: &Time) -> bool {
    let status = if outcome.status { "True" } else { "False" };
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == outcome.kind) else {
        conditions.push(Condition {
            type_: outcome.kind.to_owned(),
            status: status.to_owned(),
            reason: outcome.reason.to_owned(),
            message: outcome.message,
            observed_generation: generation,
            last_transition_time: now.clone(),
        });
        return true;
    };
    let last_transition_time = if old.status == status { old.last_transition_time.clone() } else { now.clone() };
    let new = Condition {
        type_: outcome.kind.to_owned(),
        status: status.to_owned(),
        reason: outcome.reason.to_owned(),
        message: outcome.message,
        observed_generation: generation,
        last_transition_time,
    };
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn ready(status: bool, message: &str) -> Outcome {
        Outcome { kind: READY, status, reason: network::READY, message: message.to_owned() }
    }

    #[test]
    fn time_moves_only_with_the_status() {
        let mut conditions = vec![];
        assert!(set(&mut conditions, ready(false, "no"), Some(1), &at(10)));
        assert!(set(&mut conditions, ready(false, "still no"), Some(1), &at(20)));
        assert_eq!(conditions[0].last_transition_time, at(10));
        assert!(set(&mut conditions, ready(true, ""), Some(1), &at(30)));
        assert_eq!(conditions[0].last_transition_time, at(30));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn saying_the_same_again_changes_nothing() {
        let mut conditions = vec![];
        set(&mut conditions, ready(true, "fine"), Some(1), &at(10));
        let before = conditions.clone();
        assert!(!set(&mut conditions, ready(true, "fine"), Some(1), &at(20)));
        assert_eq!(conditions, before);
        assert!(set(&mut conditions, ready(true, "fine"), Some(2), &at(20)), "a new generation is answered");
    }
}
