//! Pure: steps that failed, and when each may be tried again: by PF and VF, and by what may cure it.
//!
//! What lives here: what is held back. What does not: the waits of a whole round (`retry`).
//!
//! Invariants: one VF that fails over and over costs no other VF a wait, and an event of the machine does not make its steps run in a circle; what is
//! held back is still left to do, and said to be.

use std::collections::BTreeMap;
use std::time::Duration;

use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;
use tokio::time::Instant;

use super::retry::Backoff;
use crate::apply::Outcome;
use crate::machine::Cure;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::plan::step::Step;

/// A change of the machine may cure what time does not; the attempt itself changes it too, so that it is not tried again sooner than this.
const AFTER_A_CHANGE: Duration = Duration::from_secs(20);

/// A VF, a PF, or with neither the machine.
type Target = (Option<PciAddress>, Option<VfIndex>);

fn target(step: &Step) -> Target {
    (step.pf(), step.vf())
}

/// What failed and was not cured yet.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    held: BTreeMap<Target, Held>,
}

#[derive(Debug)]
struct Held {
    line: String,
    cure: Cure,
    backoff: Backoff,
    tried: Instant,
    again: Instant,
}

impl Failures {
    /// The plan without the steps that are held back. The record that replaces a PF's older one waits for all its VFs: the older one says what they were.
    pub(crate) fn due(&self, planned: &Plan, observed: &Observed, now: Instant) -> Plan {
        let is_held = |target: Target| self.held.get(&target).is_some_and(|held| held.again > now);
        let of_pf = |pf| self.held.iter().any(|((of, _), held)| *of == pf && held.again > now);
        let waits = |step: &Step| {
            let replaces = matches!(step, Step::RecordOwnership { pf, .. } if observed.records.contains_key(pf));
            let pf = step.pf();
            is_held(target(step)) || (pf.is_some() && is_held((pf, None))) || (replaces && of_pf(pf))
        };
        Plan { steps: planned.steps.iter().filter(|step| !waits(step)).cloned().collect(), ..planned.clone() }
    }

    /// Takes up what came of steps.
    pub(crate) fn note(&mut self, outcome: &Outcome, now: Instant, random: f64) {
        for failure in &outcome.failed {
            let (cure, line) = (failure.error.cure(), format!("{}: {}", failure.step, failure.error));
            let held = self.held.entry(target(&failure.step)).or_insert_with(|| Held {
                line: String::new(),
                cure,
                backoff: Backoff::default(),
                tried: now,
                again: now,
            });
            let again = now + held.backoff.next(cure.into(), random);
            (held.line, held.cure, held.tried, held.again) = (line, cure, now, again);
        }
    }

    /// Forgets what is not left to do any more.
    pub(crate) fn keep_only(&mut self, residual: &Plan) {
        self.held.retain(|of, _| residual.steps.iter().any(|step| target(step) == *of || (of.1.is_none() && step.pf() == of.0)));
    }

    /// The wish is a new one.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }

    /// Something on the machine changed, which may be the cure.
    pub(crate) fn machine_changed(&mut self, now: Instant) {
        for held in self.held.values_mut().filter(|held| held.cure == Cure::Change) {
            held.again = held.again.min((held.tried + AFTER_A_CHANGE).max(now));
        }
    }

    /// Each failure, one line.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.held.values().map(|held| held.line.clone()).collect()
    }

    /// When the first of them may be tried again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.held.values().map(|held| held.again).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{Failure, apply};
    use crate::desired::Desired;
    use crate::machine::sim::Sim;
    use crate::machine::{Machine as _, StepError};
    use crate::plan::plan;

    const TWO: &str = "interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2}, {pciAddress: '0000:02:00.0', numVfs: 1}]";

    fn failed_on(beginning: &str) -> (Sim, Desired, Failures, Instant) {
        let sim = Sim::with_pfs(&["0000:01:00.0", "0000:02:00.0"]);
        let desired = Desired::read(&serde_saphyr::from_str(TWO).unwrap());
        sim.fail_once_on(beginning);
        let outcome = apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.note(&outcome, now, 0.5);
        (sim, desired, failures, now)
    }

    fn due(sim: &Sim, desired: &Desired, failures: &Failures, at: Instant) -> Vec<String> {
        let observed = sim.observe().unwrap();
        failures.due(&plan(desired, &observed), &observed, at).steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_vf_that_failed_is_held_back_alone_and_for_a_while() {
        let (sim, desired, failures, now) = failed_on("0000:01:00.0 vf 1: bind");
        sim.change(|state| state.inventory.pfs[1].netdev.as_mut().unwrap().admin_up = false);
        assert_eq!(due(&sim, &desired, &failures, now), ["0000:02:00.0: set the PF up"], "the other PF does not wait");
        assert_eq!(failures.lines(), ["0000:01:00.0 vf 1: bind to its kernel driver: told to fail"]);
        let again = failures.next().unwrap();
        assert_eq!(again, now + Duration::from_secs(1));
        assert_eq!(due(&sim, &desired, &failures, again)[0], "0000:01:00.0 vf 1: bind to its kernel driver");
    }

    #[test]
    fn a_pf_that_failed_takes_its_vfs_along_and_is_forgotten_when_nothing_is_left() {
        let (sim, desired, mut failures, now) = failed_on("0000:01:00.0: create");
        assert_eq!(due(&sim, &desired, &failures, now), Vec::<String>::new());
        let observed = sim.observe().unwrap();
        failures.keep_only(&plan(&desired, &observed));
        assert_eq!(failures.lines().len(), 1);
        apply(&sim, &plan(&desired, &observed));
        failures.keep_only(&plan(&desired, &sim.observe().unwrap()));
        assert_eq!((failures.lines().len(), failures.next()), (0, None));
    }

    #[test]
    fn a_record_is_not_replaced_while_a_vf_of_it_is_held_back() {
        let (sim, _, _, _) = failed_on("nothing");
        let other = Desired::read(&serde_saphyr::from_str(&TWO.replace("numVfs: 2", "numVfs: 2, vfGroups: [{vfRange: 0-1, mtu: 1400}]")).unwrap());
        sim.fail_once_on("0000:01:00.0 vf 1: set MTU");
        let mut failures = Failures::default();
        failures.note(&apply(&sim, &plan(&other, &sim.observe().unwrap())), Instant::now(), 0.5);
        assert_eq!(due(&sim, &other, &failures, Instant::now()), Vec::<String>::new(), "neither the VF nor the record");
    }

    #[test]
    fn what_time_does_not_cure_is_tried_seldom_and_soon_after_the_machine_changed() {
        let (_, _, mut failures, now) = failed_on("nothing");
        let step = Step::SetPfUp { pf: "0000:01:00.0".parse().unwrap() };
        let error = StepError::Refused { said: "no".to_owned(), errno: Some(95) };
        assert_eq!(error.cure(), Cure::Change);
        failures.note(&Outcome { failed: vec![Failure { step, error }], ..Outcome::default() }, now, 0.5);
        assert!(failures.next().unwrap() >= now + Duration::from_secs(30), "{:?}", failures.next().unwrap() - now);
        failures.machine_changed(now + Duration::from_secs(1));
        assert_eq!(failures.next().unwrap(), now + AFTER_A_CHANGE, "its own attempt may have been the change");
        failures.machine_changed(now + Duration::from_secs(29));
        assert_eq!(failures.next().unwrap(), now + AFTER_A_CHANGE);
    }
}
