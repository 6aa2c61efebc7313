//! Pure: the drain handshake: what this node asks for (`desired-state`), what was answered (`current-state`), and what follows.
//!
//! Values and order are the Go operator's (drain protocol, states Idle / Drain_Required / Reboot_Required and Idle / Draining / DrainComplete), so
//! that its external drainers keep working. What does not live here: writing annotations (`node_state`), evicting pods (operator).
//!
//! Invariants: a reboot is only made in answer to `DrainComplete` on `Reboot_Required`, or where draining is switched off; a request is taken back
//! only when nothing is left to do; a partial drain is never turned into a reboot: it is taken back first.

use sriov_crds::conditions::node;
use sriov_crds::keys::{DRAIN_COMPLETE, DRAIN_REQUIRED, DRAINING, IDLE, REBOOT_REQUIRED};

use crate::plan::Plan;

/// What must happen before the node can be as asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// Pods that use VFs must leave.
    Drain,
    /// The machine must be rebooted, so all pods must leave.
    Reboot,
}

/// The annotations of the node state, as last seen. A missing one counts as `Idle`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// `desired-state`: ours.
    pub asked: Option<String>,
    /// `current-state`: the drain controller's.
    pub answered: Option<String>,
    /// `use-external-drainer` is `true`: the operator wrote that somebody else drains.
    pub external: bool,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing is asked, nothing is needed.
    Rest,
    /// Write `desired-state`.
    Ask(&'static str),
    /// Wait, for this reason.
    Wait(&'static str),
    /// Reboot the machine now.
    Reboot,
}

impl Need {
    /// What the plan needs, by its disruption.
    pub fn of(plan: &Plan) -> Self {
        match plan.disruption.as_str() {
            "EvictPods" | "Drain" => Self::Drain,
            "Reboot" => Self::Reboot,
            _ => Self::Nothing,
        }
    }
}

impl Heard {
    fn asked(&self) -> &str {
        self.asked.as_deref().filter(|text| !text.is_empty()).unwrap_or(IDLE)
    }

    fn answered(&self) -> &str {
        self.answered.as_deref().filter(|text| !text.is_empty()).unwrap_or(IDLE)
    }
}

/// The next move. `finished` says that no step is left or failed; `drains` that draining is switched on.
pub fn next(need: Need, finished: bool, heard: &Heard, drains: bool) -> Move {
    let (asked, answered) = (heard.asked(), heard.answered());
    if !drains {
        return match need {
            Need::Reboot => Move::Reboot,
            _ if asked != IDLE => Move::Ask(IDLE),
            Need::Drain => Move::Wait(node::DRAIN_DISABLED),
            Need::Nothing => Move::Rest,
        };
    }
    match (need, asked) {
        (Need::Nothing, asked) if asked != IDLE && finished => Move::Ask(IDLE),
        // Also when what the drain was for is not done yet: given back now, the VFs would be taken into use, and drained again.
        (Need::Nothing, _) => Move::Rest,
        (_, IDLE) if answered != IDLE => Move::Wait(node::WAITING_FOR_ROLLBACK),
        (Need::Reboot, DRAIN_REQUIRED) => Move::Ask(IDLE),
        (Need::Reboot, REBOOT_REQUIRED) if answered == DRAIN_COMPLETE => Move::Reboot,
        (Need::Drain, _) if answered == DRAIN_COMPLETE => Move::Wait(node::DRAINED_BUT_IN_USE),
        (Need::Drain | Need::Reboot, DRAIN_REQUIRED | REBOOT_REQUIRED) => Move::Wait(node::WAITING_FOR_DRAIN),
        // From rest, or from a word that no version of us writes.
        (Need::Drain, _) => Move::Ask(DRAIN_REQUIRED),
        (Need::Reboot, _) => Move::Ask(REBOOT_REQUIRED),
    }
}

/// The handshake in words, for conditions and logs.
pub fn sentence(next: Move, heard: &Heard) -> String {
    match next {
        Move::Rest => String::new(),
        Move::Ask(IDLE) => "the node is given back".to_owned(),
        Move::Ask(state) => format!("asking for {state}"),
        Move::Wait(node::DRAIN_DISABLED) => "disableDrain is set, so the pods that use these VFs are waited for: delete them, or unset disableDrain".to_owned(),
        Move::Wait(node::WAITING_FOR_ROLLBACK) => format!("an earlier drain is being taken back (current-state is {})", heard.answered()),
        Move::Wait(node::DRAINED_BUT_IN_USE) => {
            "the node was drained, and these VFs are still in use: by pods that a drain leaves alone (DaemonSets, static pods) or by the host; delete those pods".to_owned()
        }
        Move::Wait(_) if heard.answered() == DRAINING => "the node is being drained".to_owned(),
        Move::Wait(_) => {
            let who = if heard.external { "the external drainer" } else { "the operator's drain controller (limits: SriovNetworkPoolConfig maxUnavailable)" };
            format!("{} was asked for, {who} has not begun", heard.asked())
        }
        Move::Reboot => "the machine is rebooted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(asked: &str, answered: &str) -> Heard {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Heard { asked: given(asked), answered: given(answered), external: false }
    }

    #[test]
    fn a_drain_is_asked_for_waited_for_used_and_given_back() {
        let steps = [
            (Need::Drain, false, heard("", ""), Move::Ask(DRAIN_REQUIRED)),
            (Need::Drain, false, heard(DRAIN_REQUIRED, IDLE), Move::Wait(node::WAITING_FOR_DRAIN)),
            (Need::Drain, false, heard(DRAIN_REQUIRED, DRAINING), Move::Wait(node::WAITING_FOR_DRAIN)),
            (Need::Drain, false, heard(DRAIN_REQUIRED, DRAIN_COMPLETE), Move::Wait(node::DRAINED_BUT_IN_USE)),
            (Need::Nothing, true, heard(DRAIN_REQUIRED, DRAIN_COMPLETE), Move::Ask(IDLE)),
            (Need::Nothing, true, heard(IDLE, DRAIN_COMPLETE), Move::Rest),
        ];
        for (need, finished, heard, expected) in steps {
            assert_eq!(next(need, finished, &heard, true), expected, "{need:?} {heard:?}");
        }
    }

    #[test]
    fn a_change_that_disturbs_nobody_drains_nothing() {
        assert_eq!(next(Need::Nothing, false, &heard(IDLE, IDLE), true), Move::Rest);
        assert_eq!(next(Need::Nothing, true, &heard("", ""), true), Move::Rest);
    }

    #[test]
    fn a_failed_change_does_not_give_a_drained_node_back() {
        assert_eq!(next(Need::Nothing, false, &heard(DRAIN_REQUIRED, DRAIN_COMPLETE), true), Move::Rest);
    }

    #[test]
    fn a_partial_drain_is_not_turned_into_a_reboot() {
        assert_eq!(next(Need::Reboot, false, &heard(DRAIN_REQUIRED, DRAIN_COMPLETE), true), Move::Ask(IDLE));
        assert_eq!(next(Need::Reboot, false, &heard(IDLE, DRAIN_COMPLETE), true), Move::Wait(node::WAITING_FOR_ROLLBACK));
        assert_eq!(next(Need::Reboot, false, &heard(IDLE, IDLE), true), Move::Ask(REBOOT_REQUIRED));
        assert_eq!(next(Need::Reboot, false, &heard(REBOOT_REQUIRED, DRAINING), true), Move::Wait(node::WAITING_FOR_DRAIN));
        assert_eq!(next(Need::Reboot, false, &heard(REBOOT_REQUIRED, DRAIN_COMPLETE), true), Move::Reboot);
    }

    #[test]
    fn with_drains_switched_off_pods_are_waited_for_and_reboots_happen() {
        assert_eq!(next(Need::Drain, false, &heard(IDLE, IDLE), false), Move::Wait(node::DRAIN_DISABLED));
        assert_eq!(next(Need::Drain, false, &heard(DRAIN_REQUIRED, DRAINING), false), Move::Ask(IDLE), "switched off while a drain was asked for");
        assert_eq!(next(Need::Reboot, false, &heard(IDLE, IDLE), false), Move::Reboot);
    }
}
