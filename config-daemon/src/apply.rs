//! I/O: performs the steps of a plan, in order.
//!
//! What lives here: who a failure belongs to. What does not: what the steps are (`plan`), how each is done (`machine`).
//!
//! Guarantees: each step is logged before it is performed, in the plan's own words. A VF's failed step takes the rest of that VF's steps away, a
//! PF's failed step the rest of that PF's; other VFs and PFs go on. A record that replaces an older one is not written when a VF of its PF failed,
//! because the older one says what that VF was.

use std::collections::BTreeSet;

use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;
use tracing::{info, warn};

use crate::machine::{Machine, StepError};
use crate::plan::Plan;
use crate::plan::step::Step;

/// What came of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Steps performed.
    pub done: usize,
    /// Steps that failed, with why.
    pub failed: Vec<Failure>,
    /// Steps left out because of an earlier failure on their VF or PF.
    pub skipped: usize,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Why.
    pub error: StepError,
}

impl Outcome {
    /// Each failure as one line, for a status.
    pub fn lines(&self) -> Vec<String> {
        self.failed.iter().map(|failure| format!("{}: {}", failure.step, failure.error)).collect()
    }
}

/// Performs the plan.
pub fn apply(machine: &impl Machine, plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let mut given_up: BTreeSet<PciAddress> = BTreeSet::new();
    let mut failed_vfs: BTreeSet<(PciAddress, VfIndex)> = BTreeSet::new();
    for step in &plan.steps {
        let pf = step.pf();
        let after_vf = step.vf().is_some_and(|vf| failed_vfs.contains(&(pf, vf)));
        let after_any_vf = matches!(step, Step::RecordOwnership { .. }) && failed_vfs.iter().any(|(failed, _)| *failed == pf);
        if given_up.contains(&pf) || after_vf || after_any_vf {
            outcome.skipped += 1;
            continue;
        }
        info!("{step}");
        match machine.perform(step) {
            Ok(()) => outcome.done += 1,
            Err(error) => {
                warn!("{step}: failed: {error}");
                match step.vf() {
                    Some(vf) => _ = failed_vfs.insert((pf, vf)),
                    None => _ = given_up.insert(pf),
                }
                outcome.failed.push(Failure { step: step.clone(), error });
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Desired;
    use crate::machine::sim::Sim;
    use crate::plan::plan;

    const TWO_PFS: &str = "
interfaces:
- {pciAddress: '0000:01:00.0', numVfs: 3, vfGroups: [{vfRange: 0-2, policyName: a, resourceName: a, mtu: 1400}]}
- {pciAddress: '0000:02:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, policyName: b, resourceName: b}]}";

    fn residual_after(failing: &str) -> (Outcome, Vec<String>) {
        let desired = Desired::read(&serde_saphyr::from_str(TWO_PFS).unwrap());
        let sim = Sim::with_pfs(&["0000:01:00.0", "0000:02:00.0"]);
        sim.fail_once_on(failing);
        let outcome = apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let residual = plan(&desired, &sim.observe().unwrap());
        (outcome, residual.steps.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_vf_that_fails_fails_alone() {
        let (outcome, residual) = residual_after("0000:01:00.0 vf 1: bind");
        assert_eq!((outcome.failed.len(), outcome.skipped), (1, 1), "its MTU step is left out");
        assert_eq!(residual, ["0000:01:00.0 vf 1: bind to its kernel driver", "0000:01:00.0 vf 1: set MTU 1400"]);
    }

    #[test]
    fn a_pf_that_fails_fails_alone() {
        let (outcome, residual) = residual_after("0000:01:00.0: create 3 VFs");
        assert_eq!(outcome.failed.len(), 1);
        assert!(!residual.is_empty() && residual.iter().all(|step| step.starts_with("0000:01:00.0")), "{residual:?}");
        assert_eq!(outcome.lines(), ["0000:01:00.0: create 3 VFs (sriov_numvfs 3): told to fail"]);
    }
}
