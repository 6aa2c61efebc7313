//! Pure: what is to be changed on this machine so that it is as the policies want it, as a value.
//!
//! What lives here: which PFs are configured, given up or left alone. What does not: the order of changes on a PF (`order`), the checks of a PF
//! (`refusal`), doing it (`apply`, `machine`).
//!
//! Invariants: PFs that are neither wanted nor recorded as ours get no step; VFs that somebody uses get no step; what is right gets no step, so an
//! empty plan is the definition of "done".

mod bridge;
pub mod disruption;
pub mod family;
pub mod firmware;
mod iommu;
pub mod order;
pub mod refusal;
pub mod step;
mod traffic;

use std::collections::BTreeSet;
use std::fmt;

use sriov_host::inventory::Pf;
use sriov_host::pci::PciAddress;

use crate::desired::{Desired, DesiredPf, VdpaType};
use crate::observed::{Observed, Record, User};
use disruption::Disruption;
use family::Family;
use refusal::{Reason, Refusal};
use step::{Driver, Step, VFIO_PCI, mode_word};

/// What to do, what not, and what it costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// By PF.
    pub refusals: Vec<Refusal>,
    /// What must happen to pods before the refusals that wait for them go away.
    pub disruption: Disruption,
    /// What the machine must be rebooted for when the steps are done, which stage it. Until then it is not rebooted for that.
    pub reboot_follows: Vec<String>,
    /// A PF of each card whose firmware takes what it was told when it is reset, which may be tried before a reboot.
    pub reset_firmware: BTreeSet<PciAddress>,
    /// PFs whose driver takes steps of several VFs at the same time.
    pub parallel_vfs: BTreeSet<PciAddress>,
}

/// Compares wish and machine.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if !desired.rendered {
        return plan;
    }
    plan.refusals.extend(desired.unreadable.iter().chain(&desired.refused).cloned());
    rdma_mode(desired, observed, &mut plan);
    let first = plan.steps.len();
    for wish in desired.pfs.values() {
        match wish {
            Ok(wish) => configure(wish, desired, observed, &mut plan),
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
    bridge::leftovers(desired, observed, &mut plan);
    firmware::settle(desired, observed, &mut plan);
    plan.steps.splice(first..first, machine_steps(observed, &plan.steps));
    plan
}

impl Plan {
    /// Whether nothing is left to do and nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// What happens to pods, in the word for a status: the worst of what is needed now and of what follows the steps.
    pub fn disruption_word(&self) -> &'static str {
        if self.reboot_follows.is_empty() { self.disruption.as_str() } else { Disruption::Reboot(String::new()).as_str() }
    }

    /// Whether something is refused of a PF for this reason.
    fn refuses(&self, pf: PciAddress, reason: Reason) -> bool {
        self.refusals.iter().any(|refusal| refusal.pf == Some(pf) && refusal.reason == reason)
    }

    /// Whether a step of this plan removes or creates VFs of the PF.
    pub fn changes_numvfs(&self, pf: PciAddress) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::SetNumVfs { pf: changed, .. } | Step::SetEswitchMode { pf: changed, .. } if *changed == pf))
    }
}

/// What the steps of PFs need of the whole machine. It follows from the steps, so that nothing is loaded for what is refused or waits.
fn machine_steps(observed: &Observed, steps: &[Step]) -> Vec<Step> {
    let mut first = Vec::new();
    let to_vfio = |step: &&Step| matches!(step, Step::BindDriver { driver: Driver::VfioPci, .. });
    if !observed.vfio_pci_loaded && observed.vfio_pci_loadable && steps.iter().any(|step| to_vfio(&step)) {
        first.push(Step::LoadModule { module: VFIO_PCI.to_owned() });
    }
    let is_lone = |step: &Step| step.pf().and_then(|pf| observed.pf(pf)).is_some_and(|pf| pf.facts.lone);
    if !observed.inventory.iommu.active && !observed.vfio_without_iommu && steps.iter().filter(to_vfio).any(is_lone) {
        first.push(Step::AllowNoIommu);
    }
    for wanted in VdpaType::ALL {
        let makes = |step: &Step| matches!(step, Step::MakeVdpa { kind, .. } if *kind == wanted);
        if observed.vdpa_drivers_loadable.contains(wanted.driver()) && steps.iter().any(makes) {
            first.push(Step::LoadModule { module: wanted.driver().to_owned() });
        }
    }
    first
}

/// The namespace mode of RDMA devices: at once where the kernel lets it, and for the next boot in a file of ours. A mode that nobody asks for is left.
fn rdma_mode(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Some(found) = observed.inventory.kernel.rdma_mode else { return };
    if desired.rdma_mode != observed.staged_rdma_mode && desired.refused.is_empty() {
        plan.steps.push(Step::StageRdmaMode { mode: desired.rdma_mode });
    }
    let Some(mode) = desired.rdma_mode.filter(|mode| *mode != found) else { return };
    if !observed.has_namespaces {
        return plan.steps.push(Step::SetRdmaMode { mode });
    }
    let said = format!(
        "rdmaMode {} is asked for and RDMA devices are {}; the kernel changes that only while no network namespace but the host's exists, which is so at \
         boot: this node is drained and rebooted for it, once",
        mode.as_str(),
        found.as_str(),
    );
    plan.disruption.reboot(&format!("RDMA devices {}", mode.as_str()));
    plan.refusals.push(Refusal { pf: None, name: String::new(), reason: Reason::RebootRequired, message: said });
}

fn configure(wish: &DesiredPf, desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let pf = match refusal::check(wish, observed) {
        Ok(pf) => pf,
        Err(refusal) => {
            if refusal.reason == Reason::RebootRequired {
                plan.disruption.reboot(&format!("for PF {}: what the boot loader stages for the kernel", wish.address));
            }
            return plan.refusals.push(refusal);
        }
    };
    let renew = !wish.externally_managed && !pf.facts.lone && (pf.numvfs != wish.numvfs || pf.eswitch_mode != wish.eswitch_mode);
    let order = if renew { order::make(wish, pf, observed) } else { order::adjust(wish, pf, observed) };
    let bridge = bridge::around(wish, pf, renew, desired, observed);
    let (steps, in_use) = traffic::spare(pf, [bridge.before, order.steps, bridge.after].concat());
    let refused = steps.is_empty() && in_use.is_some();
    plan.refusals.extend(in_use);
    if refused && renew {
        return;
    }
    if renew && let Some(users) = users_of(pf, observed) {
        let change = if pf.numvfs == wish.numvfs {
            format!("{} asks for eswitch mode {}, for which all VFs are made anew", wish.policies(), mode_word(wish.eswitch_mode))
        } else {
            format!("{} asks for {} VFs instead of {}, for which all VFs are made anew", wish.policies(), wish.numvfs, pf.numvfs)
        };
        return plan.wait(pf, &change, &users);
    }
    plan.refusals.extend(bridge.refusals);
    if !order.waiting.is_empty() {
        plan.wait(pf, &format!("{} asks for another driver", wish.policies()), &order.waiting);
    }
    if let Some((change, users)) = bridge.waiting {
        plan.wait(pf, &change, &users);
    }
    if pf.facts.lone && !order.waiting.is_empty() {
        // It is its only VF, so that all of it waits: it is not even said to be ours.
        return;
    }
    if Family::of(pf).parallel_vfs {
        plan.parallel_vfs.insert(pf.address);
    }
    plan.steps.extend(steps);
}

/// Takes back what we did to a PF that no policy wants any more.
fn give_up(pf: &Pf, record: &Record, observed: &Observed, plan: &mut Plan) {
    if !record.interface.externally_managed {
        if pf.numvfs > 0
            && let Some(users) = users_of(pf, observed)
        {
            return plan.wait(pf, "no policy asks for its VFs any more, so they are to be removed", &users);
        }
        if pf.facts.lone {
            plan.steps.extend(order::give_back(pf, record));
            return plan.steps.push(Step::Forget { pf: pf.address });
        }
        let bridges = observed.bridges.as_ref().filter(|bridges| bridges.fault.is_none()).map(|bridges| bridge::removals(pf, bridges));
        let (steps, in_use) = traffic::spare(pf, [bridges.unwrap_or_default(), order::take_back(pf, record, observed)].concat());
        if let Some(refusal) = in_use {
            // Its record stays, so that it is taken back when the host has left the port.
            return plan.refusals.push(refusal);
        }
        plan.steps.extend(steps);
    }
    plan.steps.push(Step::Forget { pf: pf.address });
}

/// A VF and who uses it.
pub(crate) type VfUser = (PciAddress, User);

fn users_of(pf: &Pf, observed: &Observed) -> Option<Vec<VfUser>> {
    let users: Vec<VfUser> = pf.vfs.iter().filter_map(|vf| Some((vf.address, observed.user_of(pf, vf)?))).collect();
    (!users.is_empty()).then_some(users)
}

impl Plan {
    fn wait(&mut self, pf: &Pf, change: &str, users: &[VfUser]) {
        let list: Vec<String> = users.iter().map(|(vf, user)| format!("{vf} ({user})")).collect();
        let by_host = users.iter().filter(|(_, user)| matches!(user, User::Host(_))).count();
        let when = match by_host {
            0 => "It is done as soon as those pods have ended",
            all if all == users.len() => "It is done when the host does not use them any more: take them out of its network configuration",
            _ => "It is done when those pods have ended and the host does not use its VFs any more: take them out of its network configuration",
        };
        let said = format!("{change}; waiting, because VFs are in use: {}. {when}", list.join(", "));
        let name = pf.netdev.as_ref().map_or("", |n| n.name.as_str());
        self.refusals.push(Refusal::of(pf.address, name, Reason::VfsInUse, &said));
        for (vf, user) in users {
            match user {
                User::Pod(_) => self.disruption.add([*vf], true),
                User::Unknown => self.disruption.add([*vf], false),
                // No drain frees it.
                User::Host(_) => {}
            }
        }
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
        write!(f, "disruption: {}", self.disruption)?;
        if !self.reboot_follows.is_empty() {
            write!(f, ", then {}", Disruption::Reboot(self.reboot_follows.join("; ")))?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod defects;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
