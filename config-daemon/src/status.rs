//! Pure: what the node state's status says: the machine, the plan, how it went.
//!
//! What does not live here: when it is written, and the write (`node_state`).
//!
//! Invariant: the same input gives the same status, so that nothing is written when nothing changed; condition times move only with their status.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use sriov_crds::conditions::{self, DEGRADED, PROGRESSING, READY, node};
use sriov_crds::node_state::{
    InterfaceStatus, PlanStatus, Refusal as RefusalStatus, SYNC_FAILED, SYNC_IN_PROGRESS, SYNC_SUCCEEDED, SriovNetworkNodeStateStatus, System,
    VfStatus,
};
use sriov_host::inventory::{EswitchMode, LinkType, Pf, Vf};

use crate::bridges::Bridges;
use crate::desired::VdpaType;
use crate::nic_names;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::plan::disruption::Disruption;
use crate::plan::refusal::{Reason, Refusal};

/// Where the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The wish is not known yet; the text says what is waited for.
    NotRendered(String),
    /// The plan is about to be carried out.
    Applying,
    /// The plan is what is left to do. With the steps that failed, one line each.
    Settled(Vec<String>),
}

/// What a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The machine.
    pub observed: &'a Observed,
    /// What is to be done, or left to do.
    pub plan: &'a Plan,
    /// Where the daemon is.
    pub phase: &'a Phase,
    /// `metadata.generation` of the spec that the plan answers.
    pub generation: Option<i64>,
}

/// The status. `earlier` gives the times of conditions that stay as they are, `now` the time of those that change.
pub fn status(report: Report<'_>, earlier: &[Condition], now: &Time) -> SriovNetworkNodeStateStatus {
    let Report { observed, plan, phase, generation } = report;
    let verdict = Verdict::of(plan, phase);
    let mut all = earlier.to_vec();
    for (kind, (status, reason, message)) in [(READY, verdict.ready), (PROGRESSING, verdict.progressing), (DEGRADED, verdict.degraded)] {
        conditions::set(&mut all, conditions::Outcome { kind, status, reason, message }, generation, now);
    }
    let iommu = if observed.inventory.iommu.active { "active" } else { "inactive" };
    let interfaces: Vec<_> = observed.inventory.pfs.iter().map(|pf| interface(pf, observed, plan)).collect();
    SriovNetworkNodeStateStatus {
        pf_count: i64::try_from(interfaces.len()).ok(),
        vf_count: Some(interfaces.iter().map(|pf| pf.num_vfs).sum()),
        interfaces,
        bridges: observed.bridges.as_ref().and_then(Bridges::told),
        system: Some(System { rdma_mode: observed.inventory.kernel.rdma_mode.map(|mode| mode.as_str().to_owned()), iommu: Some(iommu.to_owned()) }),
        sync_status: Some(verdict.sync.to_owned()),
        last_sync_error: Some(verdict.error),
        observed_generation: generation,
        plan: Some(plan_status(plan, observed)),
        conditions: all,
    }
}

/// The status when the machine could not even be looked at: what was known stays, the conditions say it.
pub fn unobserved(earlier: SriovNetworkNodeStateStatus, error: &str, generation: Option<i64>, now: &Time) -> SriovNetworkNodeStateStatus {
    let mut status = earlier;
    for (kind, is) in [(READY, false), (PROGRESSING, false), (DEGRADED, true)] {
        let outcome = conditions::Outcome { kind, status: is, reason: node::OBSERVE_FAILED, message: error.to_owned() };
        conditions::set(&mut status.conditions, outcome, generation, now);
    }
    status.sync_status = Some(SYNC_FAILED.to_owned());
    status.last_sync_error = Some(error.to_owned());
    status
}

type Said = (bool, &'static str, String);

struct Verdict {
    ready: Said,
    progressing: Said,
    degraded: Said,
    sync: &'static str,
    error: String,
}

impl Verdict {
    fn of(plan: &Plan, phase: &Phase) -> Self {
        let (waiting, refused): (Vec<&Refusal>, Vec<&Refusal>) = plan.refusals.iter().partition(|r| r.reason == Reason::VfsInUse);
        let refusals = join(refused.iter().map(|r| r.message.as_str()));
        let idle = || (false, node::IDLE, String::new());
        let degraded = || if refused.is_empty() { idle() } else { (true, common_reason(&refused), refusals.clone()) };
        match phase {
            Phase::NotRendered(text) => {
                let ready = (false, node::NOT_RENDERED, text.clone());
                Self { ready, progressing: idle(), degraded: idle(), sync: SYNC_IN_PROGRESS, error: String::new() }
            }
            Phase::Applying => {
                let said = (true, node::APPLYING, format!("{} steps, listed in status.plan", plan.steps.len()));
                let ready = (false, node::APPLYING, said.2.clone());
                Self { ready, progressing: said, degraded: degraded(), sync: SYNC_IN_PROGRESS, error: refusals }
            }
            Phase::Settled(failures) if !failures.is_empty() || !plan.steps.is_empty() => {
                // Without a failure of this round: the machine was changed by somebody in the meantime, or a change has not taken effect.
                let left = || join(plan.steps.iter().map(|step| format!("left to do: {step}")));
                let failed = if failures.is_empty() { left() } else { join(failures.iter().map(String::as_str)) };
                let said = |is| (is, node::STEP_FAILED, format!("{failed}; it is tried again"));
                let error = join([failed.as_str(), refusals.as_str()].into_iter().filter(|text| !text.is_empty()));
                Self { ready: said(false), progressing: said(true), degraded: said(true), sync: SYNC_FAILED, error }
            }
            Phase::Settled(_) if !refused.is_empty() => {
                let ready = (false, common_reason(&refused), refusals.clone());
                let progressing = if waiting.is_empty() { idle() } else { wait(&waiting, true) };
                Self { ready, progressing, degraded: degraded(), sync: SYNC_FAILED, error: refusals }
            }
            Phase::Settled(_) if !waiting.is_empty() => {
                let error = join(waiting.iter().map(|r| r.message.as_str()));
                Self { ready: wait(&waiting, false), progressing: wait(&waiting, true), degraded: idle(), sync: SYNC_IN_PROGRESS, error }
            }
            Phase::Settled(_) => {
                let ready = (true, node::CONVERGED, "the node is as its policies ask".to_owned());
                Self { ready, progressing: idle(), degraded: idle(), sync: SYNC_SUCCEEDED, error: String::new() }
            }
        }
    }
}

fn wait(waiting: &[&Refusal], is: bool) -> Said {
    (is, node::WAITING_FOR_VFS_IN_USE, join(waiting.iter().map(|r| r.message.as_str())))
}

fn common_reason(refused: &[&Refusal]) -> &'static str {
    let first = refused.first().map(|r| r.reason);
    match first {
        Some(reason) if refused.iter().all(|r| r.reason == reason) => reason.as_str(),
        _ => node::REFUSED,
    }
}

fn join(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| text.as_ref().to_owned()).collect();
    texts.join("; ")
}

/// The resources whose pods must leave. None when of a single VF it is not known: those of all our resources count then.
fn evict_resources(plan: &Plan, observed: &Observed) -> Vec<String> {
    let Disruption::EvictPods(vfs) = &plan.disruption else { return Vec::new() };
    let known: Option<BTreeSet<&String>> = vfs.iter().map(|vf| observed.resources.get(vf)).collect();
    known.unwrap_or_default().into_iter().cloned().collect()
}

fn plan_status(plan: &Plan, observed: &Observed) -> PlanStatus {
    let refusal = |refusal: &Refusal| RefusalStatus {
        pci_address: refusal.pf.map(|pf| pf.to_string()).unwrap_or_default(),
        name: (!refusal.name.is_empty()).then(|| refusal.name.clone()),
        reason: refusal.reason.as_str().to_owned(),
        message: refusal.message.clone(),
    };
    PlanStatus {
        disruption: Some(plan.disruption_word().to_owned()),
        steps: plan.steps.iter().map(ToString::to_string).collect(),
        evict_resources: evict_resources(plan, observed),
        refusals: plan.refusals.iter().map(refusal).collect(),
    }
}

/// The PFs as a status has them, without a plan.
pub fn interfaces(observed: &Observed) -> Vec<InterfaceStatus> {
    observed.inventory.pfs.iter().map(|pf| interface(pf, observed, &Plan::default())).collect()
}

fn interface(pf: &Pf, observed: &Observed, plan: &Plan) -> InterfaceStatus {
    let netdev = pf.netdev.as_ref();
    let refusals: Vec<&str> = plan.refusals.iter().filter(|r| r.pf == Some(pf.address)).map(|r| r.message.as_str()).collect();
    InterfaceStatus {
        pci_address: pf.address.to_string(),
        name: netdev.map(|n| n.name.clone()),
        alt_names: netdev.map(|n| n.alt_names.clone()).unwrap_or_default(),
        mac: netdev.and_then(|n| n.mac).map(|mac| mac.to_string()),
        driver: pf.driver.clone(),
        vendor: Some(pf.vendor.to_string()),
        device_id: Some(pf.device.to_string()),
        model: nic_names::name(pf.vendor, pf.device),
        net_filter: pf.facts.net_filter.clone(),
        mtu: netdev.map(|n| i64::from(n.mtu)),
        num_vfs: i64::from(pf.numvfs),
        total_vfs: i64::from(pf.totalvfs),
        link_speed: pf.link_speed_mbps.map(|mbps| format!("{mbps} Mb/s")),
        link_type: netdev.and_then(|n| link_type(n.link_type)),
        link_admin_state: netdev.map(|n| if n.admin_up { "up" } else { "down" }.to_owned()),
        eswitch_mode: Some(match pf.eswitch_mode {
            EswitchMode::Legacy => "legacy".to_owned(),
            EswitchMode::Switchdev => "switchdev".to_owned(),
        }),
        externally_managed: observed.records.get(&pf.address).is_some_and(|record| record.interface.externally_managed),
        supported: observed.supported_nics.as_ref().map(|nics| nics.contains(pf.vendor, pf.device)),
        refusal: (!refusals.is_empty()).then(|| refusals.join("; ")),
        vfs: pf.vfs.iter().map(|vf| virtual_function(pf, vf, observed)).collect(),
    }
}

fn virtual_function(pf: &Pf, vf: &Vf, observed: &Observed) -> VfStatus {
    let netdev = vf.netdev.as_ref();
    VfStatus {
        pci_address: vf.address.to_string(),
        vf_id: i64::from(vf.index.0),
        name: netdev.map(|n| n.name.clone()),
        mac: netdev.and_then(|n| n.mac).map(|mac| mac.to_string()),
        driver: vf.driver.clone(),
        vendor: Some(vf.vendor.to_string()),
        device_id: Some(vf.device.to_string()),
        mtu: netdev.map(|n| i64::from(n.mtu)),
        assigned: observed.user_of(pf, vf).map(|user| user.to_string()),
        representor_name: vf.facts.representor.clone(),
        vdpa_type: vf
            .facts
            .vdpa
            .as_ref()
            .and_then(|vdpa| VdpaType::ALL.into_iter().find(|kind| vdpa.driver.as_deref() == Some(kind.driver())))
            .map(|kind| kind.as_str().to_owned()),
        guid: vf.attributes.as_ref().and_then(|a| a.node_guid).or(vf.facts.node_guid).map(|guid| guid.to_string()),
        iommu_group: vf.iommu_group.map(i64::from),
        ..VfStatus::default()
    }
}

fn link_type(link_type: LinkType) -> Option<String> {
    match link_type {
        LinkType::Ether => Some("ETH".to_owned()),
        LinkType::Infiniband => Some("IB".to_owned()),
        LinkType::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use sriov_host::inventory::RdmaMode;

    use super::*;
    use crate::apply::apply;
    use crate::desired::Desired;
    use crate::kubelet::Held;
    use crate::machine::Machine;
    use crate::machine::sim::Sim;
    use crate::plan::plan;

    const PF: &str = "0000:01:00.0";

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn desired(text: &str) -> Desired {
        Desired::read(&serde_saphyr::from_str(text).unwrap())
    }

    fn say(sim: &Sim, desired: &Desired, phase: &Phase, earlier: &[Condition], second: i64) -> SriovNetworkNodeStateStatus {
        let observed = sim.observe().unwrap();
        status(Report { observed: &observed, plan: &plan(desired, &observed), phase, generation: Some(3) }, earlier, &at(second))
    }

    fn conditions(status: &SriovNetworkNodeStateStatus) -> Vec<String> {
        status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
    }

    #[test]
    fn a_change_goes_from_applying_to_converged() {
        let (sim, desired) =
            (Sim::with_pfs(&[PF]), desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1, vfGroups: [{vfRange: 0-0, resourceName: r}]}]"));
        let first = say(&sim, &desired, &Phase::Applying, &[], 1);
        assert_eq!(conditions(&first), ["Ready=False Applying", "Progressing=True Applying", "Degraded=False Idle"]);
        assert_eq!(first.sync_status.as_deref(), Some("InProgress"));
        assert_eq!(first.plan.as_ref().unwrap().steps[0], "0000:01:00.0: record that this operator configures it");
        apply(&sim, &plan(&desired, &sim.observe().unwrap()));
        let settled = Phase::Settled(vec![]);
        let second = say(&sim, &desired, &settled, &first.conditions, 2);
        assert_eq!(conditions(&second), ["Ready=True Converged", "Progressing=False Idle", "Degraded=False Idle"]);
        assert_eq!((second.sync_status.as_deref(), second.last_sync_error.as_deref()), (Some("Succeeded"), Some("")));
        assert_eq!(second.conditions[2].last_transition_time, at(1), "Degraded did not change");
        assert_eq!(second.interfaces[0].vfs.len(), 1);
        assert_eq!(second.interfaces[0].link_speed.as_deref(), Some("1000 Mb/s"));
        assert_eq!(say(&sim, &desired, &settled, &second.conditions, 9), second, "nothing new, nothing to write");
    }

    #[test]
    fn a_refusal_degrades_with_its_reason_and_its_words() {
        let (sim, desired) =
            (Sim::with_pfs(&[PF]), desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 9, vfGroups: [{vfRange: 0-8, policyName: p}]}]"));
        let said = say(&sim, &desired, &Phase::Settled(vec![]), &[], 1);
        assert_eq!(conditions(&said), ["Ready=False TooManyVfs", "Progressing=False Idle", "Degraded=True TooManyVfs"]);
        assert_eq!(said.sync_status.as_deref(), Some("Failed"));
        assert!(said.last_sync_error.unwrap().contains("at most 7"), "{:?}", said.conditions[0].message);
        assert_eq!(said.plan.unwrap().refusals[0].reason, "TooManyVfs");
    }

    #[test]
    fn waiting_for_pods_is_progress_not_degradation() {
        let (sim, two) = (Sim::with_pfs(&[PF]), desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2}]"));
        apply(&sim, &plan(&two, &sim.observe().unwrap()));
        sim.change(|state| _ = state.vfs_in_use.insert("0000:01:10.2".parse().unwrap(), "container abc".to_owned()));
        let said = say(&sim, &desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 4}]"), &Phase::Settled(vec![]), &[], 1);
        let expected = ["Ready=False WaitingForVfsInUse", "Progressing=True WaitingForVfsInUse", "Degraded=False Idle"];
        assert_eq!(conditions(&said), expected);
        assert_eq!(said.plan.unwrap().disruption.as_deref(), Some("EvictPods"));
        assert_eq!(said.interfaces[0].vfs[1].assigned.as_deref(), Some("container abc"));
    }

    #[test]
    fn what_was_found_of_rdma_representors_and_models_is_told() {
        let sim = Sim::with_pfs(&[PF]);
        sim.make_vfs(PF.parse().unwrap(), 1);
        sim.change(|state| {
            state.inventory.kernel.rdma_mode = Some(RdmaMode::Exclusive);
            state.inventory.pfs[0].vfs[0].facts.representor = Some("enp1s0_0".to_owned());
        });
        let said = say(&sim, &desired("policyRevision: r"), &Phase::Settled(vec![]), &[], 1);
        assert_eq!(said.system.unwrap().rdma_mode.as_deref(), Some("exclusive"));
        assert_eq!(said.interfaces[0].vfs[0].representor_name.as_deref(), Some("enp1s0_0"));
        assert_eq!(said.interfaces[0].model.as_deref(), Some("Intel Corporation 82576 Gigabit Network Connection"));
    }

    #[test]
    fn only_the_resources_whose_vfs_stand_in_the_way_are_to_be_evicted() {
        let (sim, two) = (Sim::with_pfs(&[PF, "0000:02:00.0"]), "{pciAddress: '0000:01:00.0', numVfs: 2}, {pciAddress: '0000:02:00.0', numVfs: 2}");
        apply(&sim, &plan(&desired(&format!("interfaces: [{two}]")), &sim.observe().unwrap()));
        let held = |resource: &str| Held { by: "pod red/web".to_owned(), resource: resource.to_owned() };
        sim.change(|state| {
            state.add_held([("0000:01:10.0".parse().unwrap(), held("x/a")), ("0000:02:10.0".parse().unwrap(), held("x/b"))].into());
        });
        let wish = desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 4}, {pciAddress: '0000:02:00.0', numVfs: 2}]");
        let told = |sim: &Sim| say(sim, &wish, &Phase::Settled(vec![]), &[], 1).plan.unwrap();
        assert_eq!((told(&sim).disruption.as_deref(), told(&sim).evict_resources), (Some("EvictPods"), vec!["x/a".to_owned()]), "not x/b");
        assert!(told(&sim).refusals[0].message.contains("0000:01:10.0 (pod red/web)"), "{:?}", told(&sim).refusals);
        // Of one more user only the CNI tells, so that the resource is not known.
        sim.change(|state| _ = state.vfs_in_use.insert("0000:01:10.2".parse().unwrap(), "container abc".to_owned()));
        assert_eq!(told(&sim).evict_resources, Vec::<String>::new(), "all of ours then");
    }

    #[test]
    fn a_failed_step_is_told_with_its_error() {
        let (sim, desired) = (Sim::with_pfs(&[PF]), desired("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1}]"));
        let said = say(&sim, &desired, &Phase::Settled(vec!["0000:01:00.0: create 1 VF: EBUSY".to_owned()]), &[], 1);
        assert_eq!(conditions(&said), ["Ready=False StepFailed", "Progressing=True StepFailed", "Degraded=True StepFailed"]);
        assert_eq!(said.last_sync_error.as_deref(), Some("0000:01:00.0: create 1 VF: EBUSY"));
    }

    #[test]
    fn a_machine_that_cannot_be_read_keeps_what_was_known() {
        let (sim, desired) = (Sim::with_pfs(&[PF]), desired("policyRevision: r"));
        let known = say(&sim, &desired, &Phase::Settled(vec![]), &[], 1);
        let said = unobserved(known.clone(), "no /sys", Some(3), &at(2));
        assert_eq!(said.interfaces, known.interfaces);
        assert_eq!(conditions(&said), ["Ready=False ObserveFailed", "Progressing=False ObserveFailed", "Degraded=True ObserveFailed"]);
    }
}
