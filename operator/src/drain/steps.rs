//! Pure: the state machine of one node's drain: what is next, from what the daemon asks, what was done, and what the cluster is like.
//!
//! Words and order are the Go operator's (`desired-state`, `current-state`), because external drainers read them. A word that means nothing asks
//! for nothing.

use kube::ResourceExt;
use sriov_crds::{SriovNetworkNodeState, keys};

/// What the daemon asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Nothing,
    /// Users of VFs leave.
    Users,
    /// All pods leave.
    Everything,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Draining,
    Complete,
}

/// Everything that the next step depends on.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(super) struct View {
    pub request: Request,
    pub phase: Phase,
    /// Another controller answers.
    pub external: bool,
    /// There is a node object.
    pub node: bool,
    /// The operator made the node unschedulable.
    pub cordoned: bool,
    /// The configuration says not to drain.
    pub disabled: bool,
    /// It is the only node.
    pub alone: bool,
}

/// What is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, and nothing is known.
    Rest,
    /// Nothing: it is another's affair.
    Leave,
    /// Ask the pools for a place.
    Ask,
    /// See to it that pods leave.
    Evict,
    /// The daemon works.
    Hold,
    /// The daemon may work without a drain, because of this.
    Pass(&'static str),
    /// Undo what was done.
    GiveBack,
}

impl Request {
    pub(super) fn of(state: &SriovNetworkNodeState) -> Self {
        match state.annotations().get(keys::DESIRED_STATE).map(String::as_str) {
            Some(keys::DRAIN_REQUIRED) => Self::Users,
            Some(keys::REBOOT_REQUIRED) => Self::Everything,
            _ => Self::Nothing,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => keys::IDLE,
            Self::Users => keys::DRAIN_REQUIRED,
            Self::Everything => keys::REBOOT_REQUIRED,
        }
    }
}

impl Phase {
    pub(super) fn of(state: &SriovNetworkNodeState) -> Self {
        match state.annotations().get(keys::CURRENT_STATE).map(String::as_str) {
            Some(keys::DRAINING) => Self::Draining,
            Some(keys::DRAIN_COMPLETE) => Self::Complete,
            _ => Self::Idle,
        }
    }
}

pub(super) fn decide(view: View) -> Step {
    if view.external {
        return Step::Leave;
    }
    match (view.request, view.phase) {
        (Request::Nothing, Phase::Idle) if !(view.cordoned && view.node) => Step::Rest,
        (Request::Nothing, _) => Step::GiveBack,
        (_, Phase::Complete) => Step::Hold,
        // Nothing can be evicted from a node that does not exist, and nobody can be told of it.
        _ if !view.node => Step::Leave,
        _ if view.disabled => Step::Pass("draining is switched off (disableDrain)"),
        // Its pods have nowhere to go, and come back with it.
        (Request::Everything, _) if view.alone => Step::Pass("it is the only node of the cluster"),
        (_, Phase::Idle) => Step::Ask,
        (_, Phase::Draining) => Step::Evict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: View =
        View { request: Request::Nothing, phase: Phase::Idle, external: false, node: true, cordoned: false, disabled: false, alone: false };

    #[test]
    fn a_drain_goes_its_way_and_back() {
        use {Phase::*, Request::*};
        let table = [
            (Nothing, Idle, Step::Rest),
            (Users, Idle, Step::Ask),
            (Users, Draining, Step::Evict),
            (Users, Complete, Step::Hold),
            (Nothing, Complete, Step::GiveBack),
            (Nothing, Draining, Step::GiveBack),
            (Everything, Idle, Step::Ask),
            (Everything, Draining, Step::Evict),
            (Everything, Complete, Step::Hold),
        ];
        for (request, phase, expected) in table {
            assert_eq!(decide(View { request, phase, ..VIEW }), expected, "{request:?} {phase:?}");
        }
    }

    #[test]
    fn a_cordon_of_ours_that_was_left_is_taken_back() {
        assert_eq!(decide(View { cordoned: true, ..VIEW }), Step::GiveBack);
        assert_eq!(decide(View { cordoned: true, node: false, ..VIEW }), Step::Rest);
    }

    #[test]
    fn an_external_drainers_node_is_never_touched() {
        for request in [Request::Nothing, Request::Users, Request::Everything] {
            for phase in [Phase::Idle, Phase::Draining, Phase::Complete] {
                assert_eq!(decide(View { request, phase, external: true, cordoned: true, ..VIEW }), Step::Leave);
            }
        }
    }

    #[test]
    fn switched_off_the_daemon_works_at_once() {
        for phase in [Phase::Idle, Phase::Draining] {
            assert!(matches!(decide(View { request: Request::Users, phase, disabled: true, ..VIEW }), Step::Pass(_)));
        }
    }

    #[test]
    fn an_only_node_reboots_without_a_drain_and_is_drained_for_the_rest() {
        assert!(matches!(decide(View { request: Request::Everything, alone: true, ..VIEW }), Step::Pass(_)));
        assert_eq!(decide(View { request: Request::Users, alone: true, ..VIEW }), Step::Ask);
    }

    #[test]
    fn a_word_that_means_nothing_asks_for_nothing() {
        let state = |desired: &str, current: &str| -> SriovNetworkNodeState {
            let mut state = SriovNetworkNodeState::new("n", sriov_crds::SriovNetworkNodeStateSpec::default());
            state.annotations_mut().insert(keys::DESIRED_STATE.into(), desired.into());
            state.annotations_mut().insert(keys::CURRENT_STATE.into(), current.into());
            state
        };
        assert_eq!(Request::of(&state("drain_required", "")), Request::Nothing);
        assert_eq!(Request::of(&state("Drain_Required", "")), Request::Users);
        assert_eq!(Request::of(&state("Reboot_Required", "")), Request::Everything);
        assert_eq!(Phase::of(&state("", "DrainComplete")), Phase::Complete);
        assert_eq!(Phase::of(&state("", "draining")), Phase::Idle);
    }
}
