//! Pure: what is said of a round besides whether the node is as asked: IOMMU, drain, reboot, drift as conditions, and changes as Kubernetes Events.
//!
//! What does not live here: `Ready`, `Progressing`, `Degraded` (`status`), publishing (`node_state`).
//!
//! Invariant: the same situation gives the same conditions, so that nothing is written when nothing changed; an Event is made of a change only.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use sriov_crds::conditions::{self, DRAIN_REQUIRED, DRIFT_DETECTED, IOMMU_READY, Outcome as Said, READY, REBOOT_REQUIRED, node};

use crate::apply::Outcome;
use crate::handshake::{Heard, Move, Need, sentence};
use crate::observed::Observed;
use crate::plan::Plan;
use crate::plan::step::Step;

/// Longest note of an Event, in bytes; the API takes 1 kB, and a cut note says that it was cut.
const NOTE_LIMIT: usize = 900;

/// How a machine that was as asked, and is not any more, is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriftPolicy {
    /// Changed back at once, as far as that disturbs nobody.
    #[default]
    Repair,
    /// Left as it is and reported: the node is not ready, until the wish changes or the daemon is started again.
    Report,
    /// Left as it is; the condition tells it, and the node counts as ready.
    Ignore,
}

/// What this round found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// What the plan needs.
    pub need: Need,
    /// What follows for the handshake.
    pub next: Option<Move>,
    /// The annotations that `next` answers.
    pub heard: Heard,
    /// The steps that undo what somebody changed, each one line.
    pub drift: Vec<String>,
    /// What is done about it.
    pub drift_policy: DriftPolicy,
    /// A reboot for the same cause was made already.
    pub reboot_did_not_help: bool,
}

/// Sets the four conditions.
pub fn conditions(all: &mut Vec<Condition>, situation: &Situation, observed: &Observed, generation: Option<i64>, now: &Time) {
    for (kind, (status, reason, message)) in
        [(IOMMU_READY, iommu(observed)), (DRAIN_REQUIRED, drain(situation)), (REBOOT_REQUIRED, reboot(situation)), (DRIFT_DETECTED, drift(situation))]
    {
        conditions::set(all, Said { kind, status, reason, message }, generation, now);
    }
    if situation.is_left_changed() {
        let (_, reason, message) = drift(situation);
        conditions::set(all, Said { kind: READY, status: false, reason, message }, generation, now);
    }
}

impl Situation {
    /// Something was changed from outside and stays so, and somebody wants to know.
    pub fn is_left_changed(&self) -> bool {
        !self.drift.is_empty() && self.drift_policy == DriftPolicy::Report
    }
}

type Verdict = (bool, &'static str, String);

fn idle() -> Verdict {
    (false, node::IDLE, String::new())
}

fn iommu(observed: &Observed) -> Verdict {
    if observed.inventory.iommu.active {
        return (true, node::IOMMU_ACTIVE, "VFs can be given to userspace drivers (vfio-pci)".to_owned());
    }
    let said = "the kernel has no active IOMMU, so deviceType vfio-pci is not possible: enable it in the firmware (Intel VT-d, AMD-Vi) and boot with \
                intel_iommu=on iommu=pt; `sriov-config-daemon doctor` tells which of the two is missing";
    (false, node::IOMMU_INACTIVE, said.to_owned())
}

fn drain(situation: &Situation) -> Verdict {
    if situation.need != Need::Drain {
        return idle();
    }
    let next = situation.next.unwrap_or(Move::Wait(node::WAITING_FOR_DRAIN));
    let reason = if let Move::Wait(reason) = next { reason } else { node::WAITING_FOR_DRAIN };
    (true, reason, sentence(next, &situation.heard))
}

fn reboot(situation: &Situation) -> Verdict {
    if situation.need != Need::Reboot {
        return idle();
    }
    if situation.reboot_did_not_help {
        let said =
            "the machine was rebooted for this, and it is still not as asked; it is not rebooted for it again. See status.plan for what is missing";
        return (true, node::REBOOT_DID_NOT_HELP, said.to_owned());
    }
    let next = situation.next.unwrap_or(Move::Wait(node::WAITING_FOR_DRAIN));
    let reason = match next {
        Move::Reboot => node::REBOOTING,
        Move::Wait(reason) => reason,
        Move::Rest | Move::Ask(_) => node::WAITING_FOR_DRAIN,
    };
    (true, reason, sentence(next, &situation.heard))
}

fn drift(situation: &Situation) -> Verdict {
    if situation.drift.is_empty() {
        return idle();
    }
    let (reason, end) = match situation.drift_policy {
        DriftPolicy::Repair => (node::REPAIRING, "it is changed back"),
        DriftPolicy::Report => (node::NOT_REPAIRED, "it stays so, because the daemon runs with --drift report"),
        DriftPolicy::Ignore => (node::NOT_REPAIRED, "it stays so and the node counts as ready, because the daemon runs with --drift ignore"),
    };
    (true, reason, format!("the machine was as asked and was changed from outside; {end}: {}", situation.drift.join("; ")))
}

/// A Kubernetes Event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Whether somebody should look.
    pub warning: bool,
    /// One word for programs.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

impl Happening {
    /// An Event; a long note is cut.
    pub fn new(warning: bool, reason: &'static str, note: &str) -> Self {
        let mut note = note.to_owned();
        if note.len() > NOTE_LIMIT {
            let end = (0..=NOTE_LIMIT).rev().find(|&at| note.is_char_boundary(at)).unwrap_or_default();
            note.truncate(end);
            note.push_str(" ... (all of it is in the node state's status)");
        }
        Self { warning, reason, note }
    }
}

/// What a performed plan gives to tell: one Event for what was done to each PF, one for each failure.
pub fn performed(plan: &Plan, outcome: &Outcome) -> Vec<Happening> {
    let mut told = Vec::new();
    let failed = |step: &Step| outcome.failed.iter().any(|failure| failure.step == *step);
    // Steps of the whole machine belong to no PF.
    let pfs: BTreeSet<_> = plan.steps.iter().map(Step::pf).collect();
    for pf in pfs {
        // After a step of the PF itself failed the rest was left out.
        if outcome.failed.iter().any(|failure| failure.step.pf() == pf && failure.step.vf().is_none()) {
            continue;
        }
        let lines: Vec<String> = plan.steps.iter().filter(|step| step.pf() == pf && !failed(step)).map(ToString::to_string).collect();
        if !lines.is_empty() {
            told.push(Happening::new(false, "Configured", &lines.join("; ")));
        }
    }
    told.extend(outcome.lines().iter().map(|line| Happening::new(true, "StepFailed", line)));
    told
}

/// What the handshake gives to tell; `None` for waits, which the conditions tell.
pub fn moved(next: Move, plan: &Plan, heard: &Heard) -> Option<Happening> {
    let why: Vec<&str> = plan.refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    match next {
        Move::Ask(sriov_crds::keys::IDLE) => Some(Happening::new(false, "DrainReleased", &sentence(next, heard))),
        Move::Ask(_) => Some(Happening::new(false, "DrainRequested", &format!("{}: {}", sentence(next, heard), why.join("; ")))),
        // The word of the Go daemon.
        Move::Reboot => Some(Happening::new(false, "RebootNode", &format!("{}: {}", sentence(next, heard), why.join("; ")))),
        Move::Rest | Move::Wait(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::apply::apply;
    use crate::desired::Desired;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;
    use crate::plan::plan;

    fn said(situation: &Situation, observed: &Observed) -> Vec<String> {
        let mut all = vec![];
        conditions(&mut all, situation, observed, Some(1), &Time(Timestamp::from_second(1).unwrap()));
        all.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
    }

    #[test]
    fn all_four_are_said_also_when_nothing_is_the_matter() {
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        let quiet = ["IommuReady=True IommuActive", "DrainRequired=False Idle", "RebootRequired=False Idle", "DriftDetected=False Idle"];
        assert_eq!(said(&Situation::default(), &sim.observe().unwrap()), quiet);
        let without = Observed::default();
        assert_eq!(said(&Situation::default(), &without)[0], "IommuReady=False IommuInactive");
    }

    #[test]
    fn a_reboot_that_did_not_help_is_not_told_as_one_to_come() {
        let situation = Situation { need: Need::Reboot, reboot_did_not_help: true, ..Situation::default() };
        assert_eq!(said(&situation, &Observed::default())[2], "RebootRequired=True RebootDidNotHelp");
    }

    #[test]
    fn drift_names_what_was_changed() {
        let situation =
            Situation { drift: vec!["0000:01:00.0 vf 1: set MTU 1400".to_owned()], drift_policy: DriftPolicy::Repair, ..Situation::default() };
        let mut all = vec![];
        conditions(&mut all, &situation, &Observed::default(), None, &Time(Timestamp::from_second(1).unwrap()));
        let drift = all.iter().find(|c| c.type_ == DRIFT_DETECTED).unwrap();
        assert_eq!((drift.status.as_str(), drift.reason.as_str()), ("True", "Repairing"));
        assert!(drift.message.contains("vf 1: set MTU 1400"), "{}", drift.message);
    }

    #[test]
    fn drift_that_is_ignored_is_told_and_does_not_make_the_node_unready() {
        for (drift_policy, ready) in [(DriftPolicy::Repair, true), (DriftPolicy::Report, false), (DriftPolicy::Ignore, true)] {
            let situation = Situation { drift: vec!["0000:01:00.0: set the PF up".to_owned()], drift_policy, ..Situation::default() };
            let mut all = vec![];
            conditions::set(
                &mut all,
                Said { kind: READY, status: true, reason: node::CONVERGED, message: String::new() },
                None,
                &Time(Timestamp::from_second(1).unwrap()),
            );
            conditions(&mut all, &situation, &Observed::default(), None, &Time(Timestamp::from_second(2).unwrap()));
            let is = |kind: &str| all.iter().find(|c| c.type_ == kind).is_some_and(|c| c.status == "True");
            assert_eq!((is(READY), is(DRIFT_DETECTED)), (ready, true), "{drift_policy:?}");
        }
    }

    #[test]
    fn each_pf_and_each_failure_is_an_event_and_a_failure_says_what_the_kernel_said() {
        let text = "
interfaces:
- {pciAddress: '0000:01:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: a}]}
- {pciAddress: '0000:02:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: a}]}";
        let (sim, desired) = (Sim::with_pfs(&["0000:01:00.0", "0000:02:00.0"]), Desired::read(&serde_saphyr::from_str(text).unwrap()));
        let planned = plan(&desired, &sim.observe().unwrap());
        sim.fail_once_on("0000:01:00.0: create 1 VF");
        let told = performed(&planned, &apply(&sim, &planned));
        let reasons: Vec<_> = told.iter().map(|t| (t.reason, t.warning)).collect();
        assert_eq!(reasons, [("Configured", false), ("StepFailed", true)]);
        assert!(told[0].note.starts_with("0000:02:00.0"), "{}", told[0].note);
        assert!(told[1].note.contains("0000:01:00.0: create 1 VF") && told[1].note.contains("told to fail"), "{}", told[1].note);
    }

    #[test]
    fn a_note_is_never_longer_than_the_api_takes() {
        let long = Happening::new(false, "Configured", &"ü".repeat(900));
        assert!(long.note.len() < 1024, "{}", long.note.len());
    }
}
