//! Pure (tests): what the field's program was seen to do to nodes, and this one must never do. The letters are those of the list of defects that the
//! names of these tests stand for; those about the cluster side, the status or the disk are tested where that code is.

use sriov_host::inventory::{EswitchMode, Iommu, RdmaMode};

use super::disruption::Disruption;
use super::refusal::Reason;
use super::{Plan, plan};
use crate::apply::apply;
use crate::desired::Desired;
use crate::kubelet::Held;
use crate::machine::Machine as _;
use crate::machine::sim::Sim;
use crate::observed::Observed;
use crate::plan::step::Step;
use crate::pools::pools;

const PF: &str = "0000:01:00.0";
const OTHER: &str = "0000:02:00.0";

fn desired(yaml: &str) -> Desired {
    Desired::read(&serde_saphyr::from_str(yaml).unwrap())
}

fn one(numvfs: u16, more: &str, group: &str) -> Desired {
    desired(&format!(
        "interfaces: [{{pciAddress: '{PF}', numVfs: {numvfs}{more}, vfGroups: [{{vfRange: 0-{}, policyName: p, resourceName: r{group}}}]}}]",
        numvfs - 1
    ))
}

/// A machine on which this wish has been fulfilled.
fn machine(wish: &Desired) -> Sim {
    let sim = Sim::with_pfs(&[PF, OTHER]);
    apply(&sim, &plan(wish, &sim.observe().unwrap()));
    assert!(now(&sim, wish).is_empty(), "{}", now(&sim, wish));
    sim
}

fn now(sim: &Sim, wish: &Desired) -> Plan {
    plan(wish, &sim.observe().unwrap())
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

#[test]
fn b1_a_pf_that_needs_nothing_never_hides_what_another_needs() {
    let both = |first: u16, second: u16| {
        desired(&format!("interfaces: [{{pciAddress: '{PF}', numVfs: {first}}}, {{pciAddress: '{OTHER}', numVfs: {second}}}]"))
    };
    let sim = machine(&both(2, 2));
    sim.change(|state| _ = state.vfs_in_use.insert("0000:01:10.0".parse().unwrap(), "pod".to_owned()));
    assert_eq!(now(&sim, &both(4, 2)).disruption.as_str(), "EvictPods", "the last PF needs nothing");
    sim.change(|state| {
        state.vfs_in_use.clear();
        state.vfs_in_use.insert("0000:02:10.0".parse().unwrap(), "pod".to_owned());
    });
    assert_eq!(now(&sim, &both(2, 4)).disruption.as_str(), "EvictPods", "the first PF needs nothing");
}

#[test]
fn b3_a_reboot_is_never_asked_for_what_a_reboot_cannot_bring() {
    let sim = Sim::with_pfs(&[PF]);
    sim.change(|state| state.inventory.iommu = sriov_host::inventory::Iommu { active: false, command_line: "intel_iommu=on".to_owned() });
    let planned = now(&sim, &one(1, "", ", deviceType: vfio-pci"));
    assert_eq!((planned.disruption, planned.refusals[0].reason, planned.steps.len()), (Disruption::None, Reason::IommuInactive, 0));
    assert!(planned.refusals[0].message.contains("another reboot without that does not help"), "{}", planned.refusals[0].message);
}

#[test]
fn b3_a_reboot_that_was_made_is_never_asked_for_again_for_what_the_kernel_was_then_told() {
    let sim = Sim::with_pfs(&[PF]);
    let kernel = |running: &str, staged: &str| {
        sim.change(|state| {
            state.inventory.iommu = Iommu { active: false, command_line: running.to_owned() };
            state.inventory.kernel.staged = vec![staged.to_owned()];
        });
        now(&sim, &one(1, "", ", deviceType: vfio-pci"))
    };
    let before = kernel("quiet", "quiet intel_iommu=on");
    assert_eq!((before.disruption.as_str(), before.refusals[0].reason, before.steps.len()), ("Reboot", Reason::RebootRequired, 0), "{before}");
    let after = kernel("quiet intel_iommu=on", "quiet intel_iommu=on");
    assert_eq!((after.disruption, after.refusals[0].reason), (Disruption::None, Reason::IommuInactive), "firmware has it off");
    assert_eq!(kernel("quiet", "quiet").disruption, Disruption::None, "a reboot would bring the same again");
}

#[test]
fn b5_an_rdma_mode_that_nobody_asks_for_is_never_changed() {
    let sim = Sim::with_pfs(&[PF]);
    sim.change(|state| state.inventory.kernel.rdma_mode = Some(RdmaMode::Exclusive));
    for wish in ["policyRevision: r", "policyRevision: r\nsystem: {}", "policyRevision: r\nsystem: {rdmaMode: ''}"] {
        assert!(now(&sim, &desired(wish)).is_empty(), "{wish}");
    }
}

#[test]
fn b5_an_administrators_own_setting_of_the_rdma_mode_is_never_removed_and_ours_is() {
    let sim = Sim::with_pfs(&[PF]);
    sim.change(|state| state.inventory.kernel.rdma_mode = Some(RdmaMode::Exclusive));
    let nobody = desired("policyRevision: r");
    assert!(now(&sim, &nobody).is_empty(), "their file is not looked at");
    sim.change(|state| state.staged_rdma_mode = Some(RdmaMode::Exclusive));
    let planned = now(&sim, &nobody);
    assert_eq!((lines(&planned).len(), planned.disruption), (1, Disruption::None), "ours goes, and nothing is rebooted");
    let unknown = desired("policyRevision: r\nsystem: {rdmaMode: mine}");
    assert!(now(&sim, &unknown).steps.is_empty(), "a word that is not understood takes nothing away");
}

#[test]
fn b8_a_range_behind_an_alternative_name_never_becomes_the_whole_pf() {
    let sim = Sim::with_pfs(&[PF]);
    sim.change(|state| state.inventory.pfs[0].netdev.as_mut().unwrap().alt_names.push("enp1s0np0".to_owned()));
    let policy = "kind: SriovNetworkNodePolicy\nmetadata: {name: p}\n\
                  spec: {resourceName: r, nodeSelector: {}, nicSelector: {pfNames: ['enp1s0np0#2-3']}, numVfs: 4, deviceType: vfio-pci}";
    let wish = crate::wish::read(policy, None, &sim.observe().unwrap()).unwrap().desired;
    let userspace: Vec<String> = lines(&now(&sim, &wish)).into_iter().filter(|line| line.contains("vfio-pci")).collect();
    assert_eq!(userspace, [format!("{PF} vf 2: bind to vfio-pci"), format!("{PF} vf 3: bind to vfio-pci")]);
}

#[test]
fn b10_a_vf_that_left_all_groups_never_stays_with_vfio_or_its_mtu() {
    let sim = machine(&one(2, "", ", deviceType: vfio-pci"));
    assert_eq!(
        lines(&now(&sim, &desired(&format!("interfaces: [{{pciAddress: '{PF}', numVfs: 2}}]"))))[0],
        format!("{PF} vf 0: bind to its kernel driver")
    );
    let sim = machine(&one(2, "", ", mtu: 9000"));
    assert_eq!(lines(&now(&sim, &desired(&format!("interfaces: [{{pciAddress: '{PF}', numVfs: 2}}]"))))[0], format!("{PF} vf 0: set MTU 1500"));
}

#[test]
fn b11_a_step_that_fails_never_costs_the_other_vfs() {
    let wish = one(4, "", ", mtu: 4000");
    for failing in ["bind", "set administrative MAC", "set MTU"] {
        let sim = Sim::with_pfs(&[PF]);
        sim.fail_once_on(&format!("{PF} vf 2: {failing}"));
        apply(&sim, &now(&sim, &wish));
        let left = now(&sim, &wish);
        assert!(!left.steps.is_empty() && left.steps.iter().all(|step| step.vf().is_none_or(|vf| vf.0 == 2)), "{failing}: {left}");
        assert!(!left.changes_numvfs(PF.parse().unwrap()), "{failing}: {left}");
        assert!(!sim.log().iter().any(|line| line.contains("remove")), "{failing}: {:?}", sim.log());
    }
}

#[test]
fn b12_a_failure_never_loses_its_words() {
    let (sim, wish) = (Sim::with_pfs(&[PF, OTHER]), one(2, "", ""));
    sim.fail_once_on(&format!("{PF} vf 1: bind"));
    assert_eq!(apply(&sim, &now(&sim, &wish)).lines(), [format!("{PF} vf 1: bind to its kernel driver: told to fail")]);
}

#[test]
fn b13_a_record_never_says_what_was_not_done() {
    let sim = machine(&one(2, "", ", deviceType: vfio-pci"));
    let wish = desired(&format!("interfaces: [{{pciAddress: '{PF}', numVfs: 2}}]"));
    sim.fail_once_on(&format!("{PF} vf 1: bind"));
    apply(&sim, &now(&sim, &wish));
    let record = sim.observe().unwrap().records[&PF.parse().unwrap()].clone();
    assert_eq!(record.interface.vf_groups.len(), 1, "the old record still tells that VF 1 was for userspace");
    assert_eq!(lines(&now(&sim, &wish))[0], format!("{PF} vf 1: bind to its kernel driver"), "so it is known what is left");
}

#[test]
fn b14_what_a_pf_was_first_is_never_forgotten() {
    let sim = machine(&one(2, ", mtu: 4000", ""));
    for wish in [one(2, ", mtu: 9000", ""), one(3, ", mtu: 9000", ""), desired("policyRevision: gone")] {
        apply(&sim, &now(&sim, &wish));
    }
    assert_eq!(sim.observe().unwrap().inventory.pfs[0].netdev.as_ref().unwrap().mtu, 1500);
}

#[test]
fn b15_externally_managed_vfs_that_are_right_never_cost_anything() {
    let sim = Sim::with_pfs(&[PF]);
    sim.make_vfs(PF.parse().unwrap(), 2);
    let wish = one(2, ", externallyManaged: true", "");
    apply(&sim, &now(&sim, &wish));
    let renewed = one(2, ", externallyManaged: true", ", isRdma: false");
    assert!(now(&sim, &renewed).is_empty(), "{}", now(&sim, &renewed));
}

#[test]
fn b17_a_vf_that_the_kubelet_counts_to_a_pod_is_never_taken_from_it() {
    // Init containers, limits and ResourceClaims alike: what counts is what the kubelet gave. No CNI journal tells of a pod that uses vfio.
    let sim = machine(&one(2, "", ", deviceType: vfio-pci"));
    let held = Held { by: "pod red/dpdk".to_owned(), resource: "openshift.io/r".to_owned() };
    sim.change(|state| state.add_held([("0000:01:10.2".parse().unwrap(), held)].into()));
    for wish in [one(4, "", ", deviceType: vfio-pci"), one(2, "", ""), desired("policyRevision: gone")] {
        let planned = now(&sim, &wish);
        let touches = |step: &Step| step.vf().is_some_and(|vf| vf.0 == 1) || matches!(step, Step::SetNumVfs { .. });
        assert!(!planned.steps.iter().any(touches), "{planned}");
        assert_eq!((planned.disruption.as_str(), planned.disruption.vfs().len()), ("EvictPods", 1), "{planned}");
        apply(&sim, &planned);
        assert_eq!(sim.crimes(), Vec::<String>::new());
    }
}

#[test]
fn b20_a_bridge_that_is_asked_for_never_stops_a_clouds_machine() {
    const CASE: &str = include_str!("../../testdata/plan/virtual_machine_nic_goes_to_userspace_without_an_iommu/observed.yaml");
    let observed: Observed = serde_saphyr::from_str(CASE).unwrap();
    let wish = |more: &str| {
        desired(&format!(
            "{{policyRevision: r1, interfaces: [{{pciAddress: '{PF}', numVfs: 1, vfGroups: [{{vfRange: 0-0, policyName: p, resourceName: r, deviceType: vfio-pci}}]}}]{more}}}"
        ))
    };
    let bridge = ", bridges: {ovs: [{name: br1, bridge: {}, uplinks: [{pciAddress: '0000:01:00.0', name: eth1, interface: {}}]}]}";
    let (without, bridged) = (plan(&wish(""), &observed), plan(&wish(bridge), &observed));
    assert!(without.steps.len() > 2, "{without}");
    assert!(without.steps.iter().all(|step| bridged.steps.contains(step)), "{bridged}");
}

#[test]
fn b25_functions_of_one_card_never_share_a_fate() {
    let card: Vec<String> = (0..4).map(|function| format!("0000:01:00.{function}")).collect();
    let names: Vec<&str> = card.iter().map(String::as_str).collect();
    let sim = Sim::with_pfs(&names);
    let wishes: Vec<String> = card.iter().map(|pf| format!("{{pciAddress: '{pf}', numVfs: 1}}")).collect();
    sim.fail_once_on("0000:01:00.2: create");
    let wish = desired(&format!("interfaces: [{}]", wishes.join(", ")));
    apply(&sim, &now(&sim, &wish));
    let numvfs: Vec<u16> = sim.observe().unwrap().inventory.pfs.iter().map(|pf| pf.numvfs).collect();
    assert_eq!(numvfs, [1, 1, 0, 1]);
}

#[test]
fn b26_a_policy_without_priority_never_wins_by_saying_nothing() {
    let sim = Sim::with_pfs(&[PF]);
    let policy = |name: &str, numvfs: u16, more: &str| {
        format!(
            "---\nkind: SriovNetworkNodePolicy\nmetadata: {{name: {name}}}\nspec: {{resourceName: r, nodeSelector: {{}}, nicSelector: {{vendor: '8086'}}, \
             numVfs: {numvfs}{more}}}\n"
        )
    };
    let file = policy("silent", 2, "") + &policy("strong", 3, ", priority: 10");
    let wish = crate::wish::read(&file, None, &sim.observe().unwrap()).unwrap().desired;
    assert!(now(&sim, &wish).to_string().contains("create 3 VFs"), "{}", now(&sim, &wish));
}

#[test]
fn b27_vfs_are_never_offered_before_they_are_there() {
    let (sim, wish) = (Sim::with_pfs(&[PF]), one(2, "", ""));
    let offered = |sim: &Sim| {
        let observed = sim.observe().unwrap();
        pools(&wish, &observed, &plan(&wish, &observed)).vfs().len()
    };
    for step in &now(&sim, &wish).steps {
        assert!(offered(&sim) < 2, "before: {step}");
        sim.perform(step).unwrap();
    }
    assert_eq!(offered(&sim), 2);
}

#[test]
fn b30_policies_that_fight_for_a_pf_are_never_decided_by_luck() {
    let policy = |name: &str, mode: &str, priority: u8| {
        format!(
            "---\nkind: SriovNetworkNodePolicy\nmetadata: {{name: {name}}}\nspec: {{resourceName: {name}, nodeSelector: {{}}, numVfs: 4, priority: {priority}, \
             eSwitchMode: {mode}, nicSelector: {{rootDevices: ['{PF}']}}}}\n"
        )
    };
    for (a, b, mode) in [(10, 20, EswitchMode::Switchdev), (20, 10, EswitchMode::Legacy)] {
        let sim = Sim::with_pfs(&[PF]);
        sim.change(|state| state.inventory.pfs[0].driver = Some("mlx5_core".to_owned()));
        let (one, other) = (policy("one", "switchdev", a), policy("other", "legacy", b));
        let read = |file: String| crate::wish::read(&file, None, &sim.observe().unwrap()).unwrap().desired;
        let wish = read(format!("{one}{other}"));
        assert_eq!(wish, read(format!("{other}{one}")), "the order in which they are told does not matter");
        apply(&sim, &now(&sim, &wish));
        assert!(now(&sim, &wish).is_empty(), "one of them wins for good: {}", now(&sim, &wish));
        assert_eq!(sim.observe().unwrap().inventory.pfs[0].eswitch_mode, mode);
    }
}

#[test]
fn b28_drift_never_drains() {
    let wish = one(2, "", ", mtu: 4000");
    let sim = machine(&wish);
    sim.change(|state| {
        let pf = &mut state.inventory.pfs[0];
        pf.netdev.as_mut().unwrap().admin_up = false;
        pf.vfs[0].netdev.as_mut().unwrap().mtu = 1300;
        pf.vfs[1].driver = Some("vfio-pci".to_owned());
        pf.vfs[1].netdev = None;
    });
    let repair = now(&sim, &wish);
    assert_eq!((&repair.disruption, repair.refusals.len()), (&Disruption::None, 0), "{repair}");
    // The same, while pods have the VFs: what a pod did to its own VF is the pod's.
    sim.change(|state| {
        for vf in ["0000:01:10.0", "0000:01:10.2"] {
            state.vfs_in_use.insert(vf.parse().unwrap(), "pod".to_owned());
        }
        state.inventory.pfs[0].vfs[1].driver = Some("igbvf".to_owned());
    });
    let repair = now(&sim, &wish);
    assert_eq!((&repair.disruption, lines(&repair)), (&Disruption::None, vec![format!("{PF}: set the PF up")]));
}

#[test]
fn b29_a_wish_that_was_not_rendered_yet_never_takes_vfs_away() {
    let sim = machine(&one(2, "", ""));
    assert!(now(&sim, &desired("interfaces: []")).is_empty());
    assert!(!now(&sim, &desired("policyRevision: rendered")).is_empty(), "rendered and empty is something else");
}
