//! Pure (tests): what holds for every wish, every state of the machine and every failure, tried on the simulated kernel.

use proptest::prelude::*;
use sriov_crds::bridge::{OvsBridge, OvsBridgeConfig, OvsInterface, OvsUplink};
use sriov_crds::node_state::{Interface, SriovNetworkNodeStateSpec, VfGroup};
use sriov_host::host_use::HostUse;
use sriov_host::inventory::EswitchMode;
use sriov_host::pci::PciAddress;

use super::family::{Eswitch, FAMILIES, Family};
use super::plan;
use super::step::Step;
use crate::apply::apply;
use crate::bridges::{Bridges, Found, FoundInterface};
use crate::desired::{Desired, VdpaType};
use crate::machine::Machine;
use crate::machine::sim::Sim;
use crate::observed::Observed;
use crate::plan::refusal::Reason;
use crate::pools::pools;

const PFS: [&str; 3] = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"];

fn address(pf: usize) -> PciAddress {
    PFS[pf].parse().unwrap()
}

/// A bridge for each PF: none, or one of a few that differ by settings, by kind, or by nothing.
fn bridge() -> impl Strategy<Value = Option<(bool, Option<i64>)>> {
    prop::option::of((any::<bool>(), prop::option::of(prop_oneof![Just(1500i64), Just(9000)])))
}

/// The wish with bridges for PFs that go to switchdev mode; of which two PFs there are.
fn with_bridges(wishes: &[Wish], bridges: &[Option<(bool, Option<i64>)>]) -> Desired {
    let mut spec = spec(wishes);
    let entries = spec.interfaces.iter().filter(|pf| pf.eswitch_mode.is_some()).filter_map(|pf| {
        let at = PFS.iter().position(|address| *address == pf.pci_address)?;
        let (secure, mtu_request) = (*bridges.get(at)?)?;
        let bridge = OvsBridgeConfig { fail_mode: secure.then(|| "secure".to_owned()), ..OvsBridgeConfig::default() };
        let interface = OvsInterface { mtu_request, ..OvsInterface::default() };
        let uplink = OvsUplink { pci_address: pf.pci_address.clone(), name: None, interface: Some(interface) };
        Some(OvsBridge { name: format!("br-{}", pf.pci_address.replace(':', "_")), bridge: Some(bridge), uplinks: vec![uplink] })
    });
    spec.bridges = Some(sriov_crds::bridge::Bridges { ovs: entries.collect() });
    Desired::read(&spec)
}

/// A wish for one PF: VFs, the first VF for userspace, MTU of the netdevs, switchdev mode (where its driver has it).
fn wish() -> impl Strategy<Value = Wish> {
    let mtu = prop::option::of(prop_oneof![Just(1500i64), Just(9000)]);
    prop_oneof![1 => Just(None), 4 => (0u16..=7, prop::option::of(0u16..7), mtu, any::<bool>()).prop_map(Some)]
}

type Wish = Option<(u16, Option<u16>, Option<i64>, bool)>;

/// A driver for all PFs of a machine: each family, and one that nobody has heard of.
fn driver() -> impl Strategy<Value = &'static str> {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.driver).chain(["unheard_of"]).collect();
    prop::sample::select(names)
}

fn desired(wishes: &[Wish]) -> Desired {
    Desired::read(&spec(wishes))
}

fn spec(wishes: &[Wish]) -> SriovNetworkNodeStateSpec {
    let group = |name: &str, kind: &str, first: u16, last: u16, mtu| VfGroup {
        resource_name: Some(name.to_owned()),
        policy_name: Some(name.to_owned()),
        device_type: Some(kind.to_owned()),
        vf_range: Some(format!("{first}-{last}")),
        mtu,
        ..VfGroup::default()
    };
    let interfaces = wishes.iter().enumerate().filter_map(|(pf, wish)| {
        let (numvfs, vfio_from, mtu, switchdev) = (*wish)?;
        let eswitch_mode = (switchdev && numvfs > 0).then(|| "switchdev".to_owned());
        let split = vfio_from.unwrap_or(numvfs).min(numvfs);
        let mut vf_groups = Vec::new();
        if split > 0 {
            // Not a choice of its own, so that the cases stay as many: every other switchdev wish has vDPA devices.
            let vdpa_type = (eswitch_mode.is_some() && numvfs % 2 == 1).then(|| "vhost".to_owned());
            vf_groups.push(VfGroup { vdpa_type, ..group("net", "netdevice", 0, split - 1, mtu) });
        }
        if split < numvfs {
            vf_groups.push(group("dpdk", "vfio-pci", split, numvfs - 1, None));
        }
        Some(Interface { pci_address: PFS[pf].to_owned(), num_vfs: i64::from(numvfs), mtu, eswitch_mode, vf_groups, ..Interface::default() })
    });
    SriovNetworkNodeStateSpec { interfaces: interfaces.collect(), policy_revision: Some("r".to_owned()), ..Default::default() }
}

/// A machine that earlier wishes, strangers and pods have left in some state. PF 2 belongs to a stranger.
fn machine(driver: &str, earlier: &[Wish], stranger_vfs: u16, stopped_at: usize, pods: &[(usize, u16)]) -> Sim {
    let sim = Sim::with_pfs(&PFS);
    sim.change(|state| state.inventory.pfs.iter_mut().for_each(|pf| pf.driver = Some(driver.to_owned())));
    if stranger_vfs > 0 {
        sim.make_vfs(address(2), stranger_vfs);
    }
    let mut first = plan(&desired(earlier), &sim.observe().unwrap());
    first.steps.truncate(stopped_at);
    apply(&sim, &first);
    hold(&sim, pods);
    sim
}

/// Pods take VFs; those of even index are attached to the bridge of their PF, where it has one.
fn hold(sim: &Sim, pods: &[(usize, u16)]) {
    sim.change(|state| {
        for (pf, index) in pods {
            let found = state.inventory.pfs.iter_mut().find(|p| p.address == address(*pf)).unwrap();
            if let Some(vf) = found.vfs.get_mut(usize::from(*index)) {
                vf.netdev = None;
                let bridge = state.bridges.as_mut().and_then(|bridges| bridges.found.get_mut(&format!("br-{}", PFS[*pf].replace(':', "_"))));
                if let (Some(bridge), Some(name), 0) = (bridge, vf.facts.representor.clone(), index % 2) {
                    bridge.interfaces.push(FoundInterface { name, ..FoundInterface::default() });
                }
                state.vfs_in_use.insert(vf.address, "pod".to_owned());
            }
        }
    });
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
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2),
        strangers in 0u16..=7, stopped in 0usize..60, pods in prop::collection::vec((0usize..2, 0u16..7), 0..3),
    ) {
        let sim = machine(driver, &earlier, strangers, stopped, &pods);
        let wanted = desired(&wanted);
        let rounds = settle(&sim, &wanted);
        prop_assert!(rounds <= 1, "{rounds} rounds: {:?}", sim.log());
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
        let end = sim.observe().unwrap();
        for (address, wish) in &wanted.pfs {
            let (wish, pf) = (wish.as_ref().unwrap(), end.pf(*address).unwrap());
            let waits = plan(&wanted, &end).refusals.iter().any(|r| r.pf == Some(*address));
            prop_assert!(waits || pf.numvfs == wish.numvfs, "{address} has {} VFs", pf.numvfs);
            prop_assert!(waits || pf.eswitch_mode == wish.eswitch_mode, "{address} is in {:?}", pf.eswitch_mode);
            let named = |vf: &sriov_host::inventory::Vf| vf.facts.representor.as_deref().is_none_or(|name| !name.starts_with("eth"));
            prop_assert!(waits || pf.vfs.iter().all(named), "{address} has representors as the kernel names them: {:?}", pf.vfs);
            for vf in &pf.vfs {
                let wanted = wish.group_of(vf.index).and_then(|group| group.vdpa).map(VdpaType::driver);
                let found = vf.facts.vdpa.as_ref().and_then(|vdpa| vdpa.driver.as_deref());
                prop_assert!(waits || end.user_of(pf, vf).is_some() || found == wanted, "{} has vDPA driver {found:?}, not {wanted:?}", vf.address);
            }
            prop_assert!(waits || !end.autoprobe_off.contains(address), "{address} is left with autoprobe off");
        }
    }

    #[test]
    fn a_failure_or_death_at_any_step_leaves_a_state_that_converges(
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), fails in 0usize..60, dies in any::<bool>(), late in any::<bool>(),
    ) {
        let sim = machine(driver, &earlier, 0, 60, &[]);
        sim.make_late(late);
        let wanted = desired(&wanted);
        let mut first = plan(&wanted, &sim.observe().unwrap());
        if dies {
            first.steps.truncate(fails);
        } else {
            sim.fail_step(fails);
        }
        apply(&sim, &first);
        settle(&sim, &wanted);
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
        let left = plan(&wanted, &sim.observe().unwrap());
        prop_assert!(left.steps.is_empty() && left.refusals.iter().all(|refusal| refusal.reason == Reason::Unsupported), "{left}");
    }

    #[test]
    fn after_death_at_any_step_vfs_that_are_right_are_not_made_again(wanted in prop::collection::vec(wish(), 2), dies in 0usize..60) {
        let sim = machine("igb", &[None, None], 0, 0, &[]);
        let wanted = desired(&wanted);
        let mut first = plan(&wanted, &sim.observe().unwrap());
        first.steps.truncate(dies);
        apply(&sim, &first);
        settle(&sim, &wanted);
        for pf in PFS {
            let made = sim.log().iter().filter(|line| line.starts_with(pf) && line.contains(": create")).count();
            let removed = sim.log().iter().filter(|line| line.starts_with(pf) && line.contains(": remove")).count();
            prop_assert!(made <= 1 && removed == 0, "{pf}: {:?}", sim.log());
        }
        let log = sim.log();
        for line in log.iter().filter(|line| line.contains("bind")) {
            prop_assert_eq!(log.iter().filter(|other| *other == line).count(), 1, "{} twice", line);
        }
    }

    #[test]
    fn pfs_that_nobody_asked_for_are_never_touched(
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), strangers in 0u16..=7,
    ) {
        let sim = machine(driver, &earlier, strangers, 60, &[]);
        let before = pf_of(&sim.observe().unwrap(), 2);
        settle(&sim, &desired(&wanted));
        prop_assert_eq!(pf_of(&sim.observe().unwrap(), 2), before);
    }

    #[test]
    fn a_spec_that_is_not_rendered_yet_changes_nothing(earlier in prop::collection::vec(wish(), 2), stopped in 0usize..60) {
        let sim = machine("igb", &earlier, 3, stopped, &[]);
        prop_assert!(plan(&Desired::default(), &sim.observe().unwrap()).is_empty());
    }

    #[test]
    fn macs_survive_making_vfs_anew(numvfs in 1u16..=7) {
        let sim = machine("igb", &[None, None], 0, 0, &[]);
        let macs = |sim: &Sim| -> Vec<_> { pf_of(&sim.observe().unwrap(), 0).vfs.iter().map(|vf| vf.netdev.as_ref().unwrap().mac).collect() };
        let wanted = desired(&[Some((numvfs, None, None, false)), None]);
        settle(&sim, &wanted);
        let first = macs(&sim);
        settle(&sim, &desired(&[Some((0, None, None, false)), None]));
        settle(&sim, &wanted);
        prop_assert_eq!(macs(&sim), first);
    }

    #[test]
    fn pools_never_hold_a_vf_that_is_about_to_change(
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), stopped in 0usize..60,
    ) {
        let sim = machine(driver, &earlier, 0, stopped, &[]);
        let (wanted, before) = (desired(&wanted), sim.observe().unwrap());
        let next = plan(&wanted, &before);
        let shrunk = pools(&wanted, &before, &next);
        for step in &next.steps {
            let offered = shrunk.vfs().into_iter().any(|(pf, vf)| Some(pf) == step.pf() && (step.vf() == Some(vf) || next.changes_numvfs(pf)));
            prop_assert!(!offered, "{step} changes a VF that is offered in {shrunk:?}");
        }
    }

    #[test]
    fn a_port_that_the_host_uses_never_loses_its_traffic(
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2), stopped in 0usize..60, vf in prop::option::of(0usize..7),
    ) {
        let sim = machine(driver, &earlier, 0, stopped, &[]);
        let used = HostUse::Address { link: "x".to_owned(), address: "10.0.0.5/24".to_owned() };
        // The PF itself, or one of its VFs.
        sim.change(|state| match vf {
            None => state.inventory.pfs[0].facts.uses.push(used),
            Some(vf) => state.inventory.pfs[0].vfs.get_mut(vf).into_iter().for_each(|vf| vf.facts.uses.push(used.clone())),
        });
        settle(&sim, &desired(&wanted));
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
    }

    #[test]
    fn numvfs_goes_through_zero_and_modes_change_when_their_driver_takes_it(
        driver in driver(), earlier in prop::collection::vec(wish(), 2), wanted in prop::collection::vec(wish(), 2),
    ) {
        let sim = machine(driver, &earlier, 0, 60, &[]);
        for step in plan(&desired(&wanted), &sim.observe().unwrap()).steps {
            prop_assert!(!matches!(step, Step::SetNumVfs { from: 1.., to: 1.., .. }), "{step}");
            prop_assert!(!matches!(step, Step::SetEswitchMode { .. }) || Family::named(driver).eswitch != Eswitch::Missing, "{driver}: {step}");
        }
    }

    /// A stranger's bridge is there from the start, which nobody may touch.
    #[test]
    fn bridges_converge_from_any_state_and_never_change_under_pods_or_vfs(
        driver in prop::sample::select(vec!["mlx5_core", "ice"]), earlier in prop::collection::vec((wish(), bridge()), 2),
        wanted in prop::collection::vec((wish(), bridge()), 2), stopped in 0usize..60, fails in prop::option::of(0usize..40),
        pods in prop::collection::vec((0usize..2, 0u16..7), 0..3),
    ) {
        let (earlier, bridges): (Vec<_>, Vec<_>) = earlier.into_iter().unzip();
        let sim = machine(driver, &[], 0, 0, &[]);
        sim.change(|state| {
            let stranger = ("br-ex".to_owned(), Found::default());
            state.bridges = Some(Bridges { found: [stranger].into(), ..Bridges::default() });
        });
        let mut first = plan(&with_bridges(&earlier, &bridges), &sim.observe().unwrap());
        first.steps.truncate(stopped);
        apply(&sim, &first);
        hold(&sim, &pods);
        let (wanted, bridges): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let wanted = with_bridges(&wanted, &bridges);
        if let Some(number) = fails {
            sim.fail_step(number);
        }
        settle(&sim, &wanted);
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
        let end = sim.observe().unwrap();
        let left = plan(&wanted, &end);
        prop_assert!(left.steps.is_empty(), "{left}");
        let known = end.bridges.unwrap();
        prop_assert!(known.found.contains_key("br-ex"));
        if left.refusals.is_empty() {
            let asked: Vec<&String> = wanted.bridges.values().flatten().map(|bridge| &bridge.name).collect();
            prop_assert_eq!(known.kept.keys().collect::<Vec<_>>(), asked.clone());
            prop_assert!(asked.iter().all(|name| known.found.contains_key(*name)), "{:?}", known.found);
        }
    }

    #[test]
    fn giving_everything_up_leaves_no_trace(driver in driver(), earlier in prop::collection::vec(wish(), 2), stopped in 0usize..60) {
        let sim = machine(driver, &earlier, 0, stopped, &[]);
        settle(&sim, &Desired { rendered: true, ..Desired::default() });
        let end = sim.observe().unwrap();
        prop_assert!(end.records.is_empty() && end.autoprobe_off.is_empty());
        for pf in &end.inventory.pfs {
            let mtu = pf.netdev.as_ref().map(|netdev| netdev.mtu);
            prop_assert_eq!((pf.numvfs, pf.eswitch_mode, mtu), (0, EswitchMode::Legacy, Some(1500)), "{}", pf.address);
        }
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
    }
}
