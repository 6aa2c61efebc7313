//! Pure (tests): what holds for every wish, every state of the machine and every failure, tried on the simulated kernel.

use proptest::prelude::*;
use sriov_crds::node_state::{Interface, SriovNetworkNodeStateSpec, VfGroup};
use sriov_host::pci::PciAddress;

use super::plan;
use crate::apply::apply;
use crate::desired::Desired;
use crate::machine::Machine;
use crate::machine::sim::Sim;
use crate::observed::Observed;
use crate::pools::pools;

const PFS: [&str; 3] = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"];

fn address(pf: usize) -> PciAddress {
    PFS[pf].parse().unwrap()
}

/// A wish for one PF: VFs, the first VF for userspace, MTU of the netdevs.
fn wish() -> impl Strategy<Value = Option<(u16, Option<u16>, Option<i64>)>> {
    prop_oneof![1 => Just(None), 4 => (0u16..=7, prop::option::of(0u16..7), prop::option::of(prop_oneof![Just(1500i64), Just(9000)])).prop_map(Some)]
}

type Wish = Option<(u16, Option<u16>, Option<i64>)>;

fn desired(wishes: &[Wish]) -> Desired {
    let group = |name: &str, kind: &str, first: u16, last: u16, mtu| VfGroup {
        resource_name: Some(name.to_owned()),
        policy_name: Some(name.to_owned()),
        device_type: Some(kind.to_owned()),
        vf_range: Some(format!("{first}-{last}")),
        mtu,
        ..VfGroup::default()
    };
    let interfaces = wishes.iter().enumerate().filter_map(|(pf, wish)| {
        let (numvfs, vfio_from, mtu) = (*wish)?;
        let split = vfio_from.unwrap_or(numvfs).min(numvfs);
        let mut vf_groups = Vec::new();
        if split > 0 {
            vf_groups.push(group("net", "netdevice", 0, split - 1, mtu));
        }
        if split < numvfs {
            vf_groups.push(group("dpdk", "vfio-pci", split, numvfs - 1, None));
        }
        Some(Interface { pci_address: PFS[pf].to_owned(), num_vfs: i64::from(numvfs), mtu, vf_groups, ..Interface::default() })
    });
    Desired::read(&SriovNetworkNodeStateSpec { interfaces: interfaces.collect(), policy_revision: Some("r".to_owned()), ..Default::default() })
}

/// A machine that earlier wishes, strangers and pods have left in some state. PF 2 belongs to a stranger.
fn machine(earlier: &[Wish], stranger_vfs: u16, stopped_at: usize, pods: &[(usize, u16)], late: bool) -> Sim {
    let sim = Sim::with_pfs(&PFS);
    if stranger_vfs > 0 {
        sim.make_vfs(address(2), stranger_vfs);
    }
    let mut first = plan(&desired(earlier), &sim.observe().unwrap());
    first.steps.truncate(stopped_at);
    apply(&sim, &first);
    sim.late.set(late);
    sim.change(|state| {
        for (pf, index) in pods {
            let found = state.inventory.pfs.iter_mut().find(|p| p.address == address(*pf)).unwrap();
            if let Some(vf) = found.vfs.get_mut(usize::from(*index)) {
                vf.netdev = None;
                state.vfs_in_use.insert(vf.address, "pod".to_owned());
            }
        }
    });
    sim
}

fn pf_of(observed: &Observed, pf: usize) -> sriov_host::inventory::Pf {
    observed.pf(address(pf)).unwrap().clone()
}

/// Rounds as the daemon runs them, until nothing is left to do.
fn settle(sim: &Sim, wanted: &Desired) -> usize {
    for round in 0..4 {
        let next = plan(wanted, &sim.observe().unwrap());
        if next.steps.is_empty() {
            return round;
        }
        apply(sim, &next);
    }
    panic!("not settled after 4 rounds: {}", plan(wanted, &sim.observe().unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_round_converges_from_any_state(
        earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2),
        strangers in 0u16..=7, stopped in 0usize..60, pods in prop::collection::vec((0usize..2, 0u16..7), 0..3),
    ) {
        let sim = machine(&earlier, strangers, stopped, &pods, false);
        let wanted = desired(&wanted);
        let rounds = settle(&sim, &wanted);
        prop_assert!(rounds <= 1, "{rounds} rounds: {:?}", sim.log.borrow());
        prop_assert!(sim.crimes.borrow().is_empty(), "{:?}", sim.crimes.borrow());
        let end = sim.observe().unwrap();
        for (address, wish) in &wanted.pfs {
            let (wish, pf) = (wish.as_ref().unwrap(), end.pf(*address).unwrap());
            let waits = plan(&wanted, &end).refusals.iter().any(|r| r.pf == Some(*address));
            prop_assert!(waits || pf.numvfs == wish.numvfs, "{address} has {} VFs", pf.numvfs);
            prop_assert!(waits || !end.autoprobe_off.contains(address), "{address} is left with autoprobe off");
        }
    }

    #[test]
    fn a_failure_or_death_at_any_step_leaves_a_state_that_converges(
        earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), fails in 0usize..60, dies in any::<bool>(), late in any::<bool>(),
    ) {
        let sim = machine(&earlier, 0, 60, &[], late);
        let wanted = desired(&wanted);
        let mut first = plan(&wanted, &sim.observe().unwrap());
        if dies {
            first.steps.truncate(fails);
        } else {
            sim.fail_step(fails);
        }
        apply(&sim, &first);
        settle(&sim, &wanted);
        prop_assert!(sim.crimes.borrow().is_empty(), "{:?}", sim.crimes.borrow());
        prop_assert!(plan(&wanted, &sim.observe().unwrap()).is_empty());
    }

    #[test]
    fn after_death_at_any_step_vfs_that_are_right_are_not_made_again(wanted in prop::collection::vec(wish(), 2), dies in 0usize..60) {
        let sim = machine(&[None, None], 0, 0, &[], false);
        let wanted = desired(&wanted);
        let mut first = plan(&wanted, &sim.observe().unwrap());
        first.steps.truncate(dies);
        apply(&sim, &first);
        settle(&sim, &wanted);
        for pf in PFS {
            let made = sim.log.borrow().iter().filter(|line| line.starts_with(pf) && line.contains(": create")).count();
            let removed = sim.log.borrow().iter().filter(|line| line.starts_with(pf) && line.contains(": remove")).count();
            prop_assert!(made <= 1 && removed == 0, "{pf}: {:?}", sim.log.borrow());
        }
        let log = sim.log.borrow();
        for line in log.iter().filter(|line| line.contains("bind")) {
            prop_assert_eq!(log.iter().filter(|other| *other == line).count(), 1, "{} twice", line);
        }
    }

    #[test]
    fn pfs_that_nobody_asked_for_are_never_touched(
        earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), strangers in 0u16..=7,
    ) {
        let sim = machine(&earlier, strangers, 60, &[], false);
        let before = pf_of(&sim.observe().unwrap(), 2);
        settle(&sim, &desired(&wanted));
        prop_assert_eq!(pf_of(&sim.observe().unwrap(), 2), before);
    }

    #[test]
    fn a_spec_that_is_not_rendered_yet_changes_nothing(earlier in prop::collection::vec(wish(), 2), stopped in 0usize..60) {
        let sim = machine(&earlier, 3, stopped, &[], false);
        prop_assert!(plan(&Desired::default(), &sim.observe().unwrap()).is_empty());
    }

    #[test]
    fn macs_survive_making_vfs_anew(numvfs in 1u16..=7) {
        let sim = machine(&[None, None], 0, 0, &[], false);
        let macs = |sim: &Sim| -> Vec<_> { pf_of(&sim.observe().unwrap(), 0).vfs.iter().map(|vf| vf.netdev.as_ref().unwrap().mac).collect() };
        let wanted = desired(&[Some((numvfs, None, None)), None]);
        settle(&sim, &wanted);
        let first = macs(&sim);
        settle(&sim, &desired(&[Some((0, None, None)), None]));
        settle(&sim, &wanted);
        prop_assert_eq!(macs(&sim), first);
    }

    #[test]
    fn pools_never_hold_a_vf_that_is_about_to_change(
        earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), stopped in 0usize..60,
    ) {
        let sim = machine(&earlier, 0, stopped, &[], false);
        let (wanted, before) = (desired(&wanted), sim.observe().unwrap());
        let next = plan(&wanted, &before);
        let shrunk = pools(&wanted, &before, &next);
        for step in &next.steps {
            let offered = shrunk.vfs().into_iter().any(|(pf, vf)| pf == step.pf() && (step.vf() == Some(vf) || next.changes_numvfs(pf)));
            prop_assert!(!offered, "{step} changes a VF that is offered in {shrunk:?}");
        }
    }
}
