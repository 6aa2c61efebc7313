//! Pure: what is to be changed on this machine so that it is as the policies want it, as a value.
//!
//! What lives here: which PFs are configured, given up or left alone. What does not: the order of changes on a PF (`order`), the checks of a PF
//! (`refusal`), doing it (`apply`, `machine`).
//!
//! Invariants: PFs that are neither wanted nor recorded as ours get no step; VFs that somebody uses get no step; what is right gets no step, so an
//! empty plan is the definition of "done".

pub mod disruption;
pub mod order;
pub mod refusal;
pub mod step;

use std::fmt;

use sriov_host::inventory::Pf;
use sriov_host::pci::PciAddress;

use crate::desired::{Desired, DesiredPf};
use crate::observed::{Observed, Record};
use disruption::Disruption;
use refusal::{Reason, Refusal};
use step::Step;

/// What to do, what not, and what it costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// By PF.
    pub refusals: Vec<Refusal>,
    /// What must happen to pods before the refusals that wait for them go away.
    pub disruption: Disruption,
}

/// Compares wish and machine.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if !desired.rendered {
        return plan;
    }
    plan.refusals.extend(desired.unreadable.iter().cloned());
    for wish in desired.pfs.values() {
        match wish {
            Ok(wish) => configure(wish, observed, &mut plan),
            Err(refusal) => plan.refusals.push(refusal.clone()),
        }
    }
    if desired.unreadable.is_empty() {
        for (address, record) in observed.records.iter().filter(|(address, _)| !desired.pfs.contains_key(address)) {
            // A PF that is not there keeps its record: it may come back with the VFs that we made.
            if let Some(pf) = observed.pf(*address) {
                give_up(pf, record, observed, &mut plan);
            }
        }
    }
    plan
}

impl Plan {
    /// Whether nothing is left to do and nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// Whether a step of this plan removes or creates VFs of the PF.
    pub fn changes_numvfs(&self, pf: PciAddress) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::SetNumVfs { pf: changed, .. } if *changed == pf))
    }
}

fn configure(wish: &DesiredPf, observed: &Observed, plan: &mut Plan) {
    let pf = match refusal::check(wish, observed) {
        Ok(pf) => pf,
        Err(refusal) => return plan.refusals.push(refusal),
    };
    let renew = !wish.externally_managed && pf.numvfs != wish.numvfs;
    if renew && let Some(users) = users_of(pf, observed) {
        let change = format!("{} asks for {} VFs instead of {}, for which all VFs are made anew", wish.policies(), wish.numvfs, pf.numvfs);
        return plan.wait(pf, &change, &users);
    }
    let order = if renew { order::make(wish, pf, observed) } else { order::adjust(wish, pf, observed) };
    plan.steps.extend(order.steps);
    if !order.waiting.is_empty() {
        plan.wait(pf, &format!("{} asks for another driver", wish.policies()), &order.waiting);
    }
}

/// Takes back what we did to a PF that no policy wants any more.
fn give_up(pf: &Pf, record: &Record, observed: &Observed, plan: &mut Plan) {
    if !record.interface.externally_managed {
        if pf.numvfs > 0
            && let Some(users) = users_of(pf, observed)
        {
            return plan.wait(pf, "no policy asks for its VFs any more, so they are to be removed", &users);
        }
        plan.steps.extend(order::take_back(pf, record, observed));
    }
    plan.steps.push(Step::Forget { pf: pf.address });
}

/// A VF and who uses it.
pub(crate) type User = (PciAddress, String);

fn users_of(pf: &Pf, observed: &Observed) -> Option<Vec<User>> {
    let users: Vec<User> = pf.vfs.iter().filter_map(|vf| Some((vf.address, observed.user_of(pf, vf)?.to_owned()))).collect();
    (!users.is_empty()).then_some(users)
}

impl Plan {
    fn wait(&mut self, pf: &Pf, change: &str, users: &[User]) {
        let list: Vec<String> = users.iter().map(|(vf, user)| format!("{vf} ({user})")).collect();
        let said = format!("{change}; waiting, because VFs are in use: {}. It is done as soon as those pods have ended", list.join(", "));
        let name = pf.netdev.as_ref().map_or("", |n| n.name.as_str());
        self.refusals.push(Refusal::of(pf.address, name, Reason::VfsInUse, &said));
        self.disruption.add(users.iter().map(|(vf, _)| *vf));
    }
}

impl fmt::Display for Plan {
    /// One line a step, one a refusal, one for the disruption; "nothing to do" when empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "nothing to do");
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "refused ({}): {}", refusal.reason.as_str(), refusal.message)?;
        }
        writeln!(f, "disruption: {}", self.disruption)
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
