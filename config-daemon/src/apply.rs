//! I/O: performs the steps of a plan.
//!
//! What lives here: who a failure belongs to, and what may run at the same time. What does not: what the steps are (`plan`), how each is done
//! (`machine`).
//!
//! Guarantees: each step is logged before it is performed, in the plan's own words. Steps of the whole machine come first. Then PFs run side by
//! side, each in the plan's order; VFs of one PF side by side only where its driver takes that. A VF's failed step takes the rest of that VF's
//! steps away, a PF's failed step the rest of that PF's; other VFs and PFs go on. A record that replaces an older one is not written when a VF of
//! its PF failed, because the older one says what that VF was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;
use tracing::{info, warn};

use crate::machine::{Machine, StepError};
use crate::plan::Plan;
use crate::plan::step::Step;

/// VFs of one PF that are configured at the same time, where the driver takes it. Most of a VF's time is its driver's probe, which waits for
/// firmware; more than this does not make firmware faster.
const VF_WORKERS: usize = 8;

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

    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.skipped += other.skipped;
        self.failed.extend(other.failed);
    }
}

/// Performs the plan.
pub fn apply(machine: &(impl Machine + Sync), plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let mut pfs: BTreeMap<PciAddress, Vec<&Step>> = BTreeMap::new();
    for step in &plan.steps {
        match step.pf() {
            Some(pf) => pfs.entry(pf).or_default().push(step),
            // A PF that needs it will say so itself when it failed.
            None => _ = perform(machine, step, &mut outcome),
        }
    }
    if pfs.len() < 2 {
        for (pf, steps) in &pfs {
            outcome.add(apply_pf(machine, steps, plan.parallel_vfs.contains(pf)));
        }
        return outcome;
    }
    thread::scope(|scope| {
        let work = |pf, steps| move || apply_pf(machine, steps, plan.parallel_vfs.contains(pf));
        let running: Vec<_> = pfs.iter().map(|(pf, steps)| scope.spawn(work(pf, steps.as_slice()))).collect();
        for worker in running {
            outcome.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    outcome
}

/// The steps of one PF, in order; runs of VF steps side by side where that is allowed.
fn apply_pf(machine: &(impl Machine + Sync), steps: &[&Step], parallel: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let mut failed_vfs = BTreeSet::new();
    let mut rest = steps;
    while let Some((step, after)) = rest.split_first() {
        if step.vf().is_some() {
            let run = rest.iter().take_while(|step| step.vf().is_some()).count();
            let (now, later) = rest.split_at(run);
            let done = apply_vfs(machine, now, if parallel { VF_WORKERS } else { 1 });
            failed_vfs.extend(done.failed.iter().filter_map(|failure| failure.step.vf()));
            outcome.add(done);
            rest = later;
            continue;
        }
        rest = after;
        if matches!(step, Step::RecordOwnership { .. }) && !failed_vfs.is_empty() {
            outcome.skipped += 1;
        } else if !perform(machine, step, &mut outcome) {
            outcome.skipped += rest.len();
            break;
        }
    }
    outcome
}

/// The steps of VFs of one PF: each VF's in order, VFs by so many workers.
fn apply_vfs(machine: &(impl Machine + Sync), steps: &[&Step], workers: usize) -> Outcome {
    let mut vfs: BTreeMap<VfIndex, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        if let Some(vf) = step.vf() {
            vfs.entry(vf).or_default().push(step);
        }
    }
    let vfs: Vec<Vec<&Step>> = vfs.into_values().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcome = Outcome::default();
        while let Some(steps) = vfs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = steps.iter().take_while(|step| perform(machine, step, &mut outcome)).count();
            // The one that failed is counted as failed.
            outcome.skipped += steps.len().saturating_sub(done + 1);
        }
        outcome
    };
    if workers.min(vfs.len()) < 2 {
        return work();
    }
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers.min(vfs.len())).map(|_| scope.spawn(work)).collect();
        let mut outcome = Outcome::default();
        for worker in running {
            outcome.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        // Which worker met which failure is chance; the report is not.
        outcome.failed.sort_by_key(|failure| failure.step.vf());
        outcome
    })
}

fn perform(machine: &impl Machine, step: &Step, outcome: &mut Outcome) -> bool {
    info!("{step}");
    match machine.perform(step) {
        Ok(()) => outcome.done += 1,
        Err(error) => {
            warn!("{step}: failed: {error}");
            outcome.failed.push(Failure { step: step.clone(), error });
            return false;
        }
    }
    true
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

    fn residual_after(sim: &Sim, failing: &str) -> (Outcome, Vec<String>) {
        let desired = Desired::read(&serde_saphyr::from_str(TWO_PFS).unwrap());
        sim.fail_once_on(failing);
        let outcome = apply(sim, &plan(&desired, &sim.observe().unwrap()));
        let residual = plan(&desired, &sim.observe().unwrap());
        (outcome, residual.steps.iter().map(ToString::to_string).collect())
    }

    fn igb() -> Sim {
        Sim::with_pfs(&["0000:01:00.0", "0000:02:00.0"])
    }

    #[test]
    fn a_vf_that_fails_fails_alone() {
        for driver in ["igb", "mlx5_core"] {
            let sim = igb();
            sim.change(|state| state.inventory.pfs.iter_mut().for_each(|pf| pf.driver = Some(driver.to_owned())));
            let (outcome, residual) = residual_after(&sim, "0000:01:00.0 vf 1: bind");
            assert_eq!((outcome.failed.len(), outcome.skipped), (1, 1), "{driver}: its MTU step is left out");
            assert_eq!(residual, ["0000:01:00.0 vf 1: bind to its kernel driver", "0000:01:00.0 vf 1: set MTU 1400"], "{driver}");
        }
    }

    #[test]
    fn a_pf_that_fails_fails_alone() {
        let (outcome, residual) = residual_after(&igb(), "0000:01:00.0: create 3 VFs");
        assert_eq!(outcome.failed.len(), 1);
        assert!(!residual.is_empty() && residual.iter().all(|step| step.starts_with("0000:01:00.0")), "{residual:?}");
        assert_eq!(outcome.lines(), ["0000:01:00.0: create 3 VFs (sriov_numvfs 3): told to fail"]);
    }

    #[test]
    fn vfs_run_side_by_side_only_where_the_driver_takes_it() {
        for (driver, together) in [("mlx5_core", true), ("igb", false), ("unheard_of", false)] {
            let sim = igb();
            sim.change(|state| state.inventory.pfs.iter_mut().for_each(|pf| pf.driver = Some(driver.to_owned())));
            let desired = Desired::read(&serde_saphyr::from_str(TWO_PFS).unwrap());
            let planned = plan(&desired, &sim.observe().unwrap());
            assert_eq!(!planned.parallel_vfs.is_empty(), together, "{driver}");
            let outcome = apply(&sim, &planned);
            assert_eq!((outcome.done, outcome.failed.len()), (planned.steps.len(), 0), "{driver}");
            let order =
                |vf: &str| -> Vec<String> { sim.log().into_iter().filter(|line| line.starts_with(&format!("0000:01:00.0 vf {vf}"))).collect() };
            assert_eq!(order("2").len(), 3, "{driver}: {:?}", sim.log());
            assert!(order("2")[0].contains("MAC") && order("2")[2].contains("MTU"), "a VF's own steps stay in order");
        }
    }
}
