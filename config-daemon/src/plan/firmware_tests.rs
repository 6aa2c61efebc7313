//! Pure (tests): settings of firmware on the simulated kernel, whose firmware counts VFs for each function of a card from the first setting on, takes
//! what it was told when the machine starts, or does not.

use proptest::prelude::*;
use sriov_host::host_use::HostUse;
use sriov_host::inventory::FirmwareSettings;
use sriov_host::pci::PciAddress;

use super::*;
use crate::apply::apply;
use crate::handshake::Need;
use crate::machine::Machine as _;
use crate::machine::sim::Sim;
use crate::plan::disruption::Disruption;
use crate::plan::plan;

/// A function of a card with so many functions as a device can have.
fn function(number: usize) -> PciAddress {
    format!("0000:03:00.{number}").parse().unwrap()
}

/// A card whose functions run with so many VFs each.
fn card_of(running: &[u16]) -> Sim {
    let names: Vec<String> = (0..running.len()).map(|number| function(number).to_string()).collect();
    let sim = Sim::with_pfs(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, totalvfs) in running.iter().enumerate() {
        sim.give_firmware(function(number), *totalvfs);
    }
    sim
}

fn wish(wanted: &[Option<u16>], more: &str) -> Desired {
    let of = |(number, numvfs): (usize, &Option<u16>)| numvfs.map(|numvfs| format!("{{pciAddress: '{}', numVfs: {numvfs}{more}}}", function(number)));
    let entries: Vec<String> = wanted.iter().enumerate().filter_map(of).collect();
    Desired::read(&serde_saphyr::from_str(&format!("{{policyRevision: r, interfaces: [{}]}}", entries.join(", "))).unwrap())
}

fn now(sim: &Sim, wish: &Desired) -> Plan {
    plan(wish, &sim.observe().unwrap())
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

/// Rounds as the daemon runs them, until nothing is left to do; answers what is left to say.
fn rounds(sim: &Sim, wish: &Desired) -> Plan {
    for _ in 0..4 {
        let next = now(sim, wish);
        if next.steps.is_empty() {
            return next;
        }
        apply(sim, &next);
    }
    panic!("not settled after 4 rounds: {}", now(sim, wish));
}

fn totals(sim: &Sim) -> Vec<u16> {
    sim.observe().unwrap().inventory.pfs.iter().map(|pf| pf.totalvfs).collect()
}

fn told(sim: &Sim) -> Vec<Option<u32>> {
    sim.observe().unwrap().inventory.pfs.iter().map(|pf| pf.facts.firmware_settings.total_vfs).collect()
}

#[test]
fn firmware_is_told_once_and_the_machine_rebooted_once() {
    let (sim, wanted) = (card_of(&[8]), wish(&[Some(32)], ""));
    let first = now(&sim, &wanted);
    assert_eq!(lines(&first), ["0000:03:00.0: tell its firmware for its next start: total_vfs 32, enable_sriov true"]);
    assert_eq!((Need::of(&first), first.disruption_word()), (Need::Nothing, "Reboot"), "nobody is drained for what is not told yet: {first}");
    apply(&sim, &first);
    let second = now(&sim, &wanted);
    assert_eq!((Need::of(&second), second.steps.len(), second.disruption_word()), (Need::Reboot, 0, "Reboot"), "{second}");
    assert_eq!(first.refusals, second.refusals, "the same words before and after");
    sim.reboot();
    assert!(rounds(&sim, &wanted).is_empty());
    let end = sim.observe().unwrap();
    assert_eq!((end.inventory.pfs[0].numvfs, end.staged_firmware.len(), sim.crimes()), (32, 0, Vec::new()));
}

#[test]
fn b1_a_reboot_that_one_function_needs_is_never_lost_to_another_that_needs_none() {
    for (running, wanted) in [([8, 64], [Some(32), Some(2)]), ([64, 8], [Some(2), Some(32)])] {
        let (sim, wanted) = (card_of(&running), wish(&wanted, ""));
        let left = rounds(&sim, &wanted);
        assert_eq!(Need::of(&left), Need::Reboot, "{left}");
        sim.reboot();
        assert!(rounds(&sim, &wanted).is_empty());
        assert_eq!(sim.crimes(), Vec::<String>::new());
    }
}

#[test]
fn b25_no_function_of_a_card_is_ever_forgotten_however_many_there_are() {
    let (sim, wanted) = (card_of(&[4, 0, 8, 2]), wish(&[Some(16), Some(3), None, Some(5)], ""));
    let left = rounds(&sim, &wanted);
    assert_eq!((Need::of(&left), told(&sim)), (Need::Reboot, vec![Some(16), Some(3), Some(8), Some(5)]), "{left}");
    sim.reboot();
    assert!(rounds(&sim, &wanted).is_empty());
    assert_eq!((totals(&sim), sim.crimes()), (vec![16, 3, 8, 5], Vec::new()));
}

#[test]
fn firmware_that_does_not_take_it_is_never_rebooted_for_again() {
    let (sim, wanted) = (card_of(&[8]), wish(&[Some(32)], ""));
    sim.make_stubborn();
    rounds(&sim, &wanted);
    for _ in 0..2 {
        sim.reboot();
        let left = rounds(&sim, &wanted);
        assert_eq!((Need::of(&left), left.refusals[0].reason, left.disruption_word()), (Need::Nothing, Reason::FirmwareNotTaken, "None"), "{left}");
        let said = &left.refusals[0].message;
        assert!(said.contains("was told so (total_vfs 32, enable_sriov true)") && said.contains("allows 8 (sriov_totalvfs)"), "{said}");
        assert!(said.contains("switch the machine off and on") && said.contains("mstconfig -d 0000:03:00.0 set SRIOV_EN=1 NUM_OF_VFS=32"), "{said}");
    }
    // More than it was told is another matter, fewer than it runs with is none.
    assert_eq!(Need::of(&rounds(&sim, &wish(&[Some(40)], ""))), Need::Reboot);
    assert!(rounds(&sim, &wish(&[Some(4)], "")).is_empty());
    assert_eq!(sim.observe().unwrap().staged_firmware.len(), 0);
}

#[test]
fn a_policy_that_is_taken_back_before_the_reboot_costs_none() {
    for after in [wish(&[None, None], ""), wish(&[Some(4), None], "")] {
        let sim = card_of(&[8, 8]);
        rounds(&sim, &wish(&[Some(32), None], ""));
        let back = now(&sim, &after);
        let said = "0000:03:00.0: tell its firmware again what it was told before: total_vfs 8, enable_sriov true";
        assert!(lines(&back).contains(&said.to_owned()), "{back}");
        let left = rounds(&sim, &after);
        assert_eq!((Need::of(&left), told(&sim)), (Need::Nothing, vec![Some(8), Some(8)]), "{left}");
        assert!(sim.observe().unwrap().staged_firmware.is_empty());
        sim.reboot();
        assert_eq!((totals(&sim), sim.crimes()), (vec![8, 8], Vec::new()));
    }
}

#[test]
fn what_an_administrator_told_firmware_is_rebooted_for_once_and_never_put_back() {
    let (sim, wanted) = (card_of(&[8]), wish(&[Some(32)], ""));
    sim.change(|state| state.inventory.pfs[0].facts.firmware_settings.total_vfs = Some(64));
    assert_eq!(Need::of(&rounds(&sim, &wanted)), Need::Reboot);
    assert_eq!(told(&sim), [Some(64)], "never fewer than it was told");
    rounds(&sim, &wish(&[None], ""));
    assert_eq!(told(&sim), [Some(64)]);
    rounds(&sim, &wanted);
    sim.change(|state| state.inventory.pfs[0].facts.firmware_settings.total_vfs = Some(40));
    rounds(&sim, &wish(&[None], ""));
    assert_eq!(told(&sim), [Some(40)], "what was changed since is theirs");
}

#[test]
fn a_wish_that_is_not_understood_takes_nothing_back() {
    let sim = card_of(&[8]);
    rounds(&sim, &wish(&[Some(32)], ""));
    let unclear = Desired::read(&serde_saphyr::from_str("interfaces: [{pciAddress: '0000:03:00.0', numVfs: -1}]").unwrap());
    let unreadable = Desired::read(&serde_saphyr::from_str("interfaces: [{pciAddress: eth0, numVfs: 1}]").unwrap());
    for wish in [unclear, unreadable, Desired::default()] {
        assert_eq!(lines(&now(&sim, &wish)), Vec::<String>::new());
    }
}

#[test]
fn firmware_that_is_not_ours_is_left_alone_and_the_command_is_told() {
    let left_alone = card_of(&[8]);
    left_alone.change(|state| _ = state.left_firmware.insert(MELLANOX));
    let without = card_of(&[8]);
    without.change(|state| state.inventory.pfs[0].facts.firmware_settings = FirmwareSettings::default());
    let other = Sim::with_pfs(&["0000:03:00.0"]);
    for (sim, more, why) in [
        (card_of(&[8]), ", externallyManaged: true", "externally managed"),
        (left_alone, "", "disablePlugins"),
        (without, "", "Linux 6.18"),
        (other, "", "in the NIC's firmware setup and reboot"),
    ] {
        let planned = now(&sim, &wish(&[Some(32)], more));
        assert_eq!((planned.steps.len(), planned.refusals[0].reason, planned.disruption_word()), (0, Reason::TooManyVfs, "None"), "{planned}");
        let said = &planned.refusals[0].message;
        let command = "run  mstconfig -d 0000:03:00.0 set SRIOV_EN=1 NUM_OF_VFS=32  on the node and reboot it";
        assert!(said.contains(why) && (why.contains("setup") || said.contains(command)), "{said}");
    }
}

#[test]
fn a_switch_alone_helps_where_it_is_off_and_is_not_asked_for_a_number() {
    let sim = card_of(&[0]);
    let settings = |sim: &Sim, on| {
        let switch = FirmwareSettings { enable_sriov: Some(on), total_vfs: None };
        sim.change(|state| state.inventory.pfs[0].facts.firmware_settings = switch);
    };
    settings(&sim, false);
    let wanted = wish(&[Some(4)], "");
    assert_eq!(lines(&now(&sim, &wanted)), ["0000:03:00.0: tell its firmware for its next start: enable_sriov true"]);
    assert_eq!(Need::of(&rounds(&sim, &wanted)), Need::Reboot);
    sim.reboot();
    assert!(rounds(&sim, &wanted).is_empty());
    let planned = now(&sim, &wish(&[Some(9)], ""));
    assert_eq!((planned.steps.len(), planned.refusals[0].reason), (0, Reason::TooManyVfs), "{planned}");
}

#[test]
fn nobody_is_rebooted_for_a_pf_that_is_refused_anyway() {
    let sim = card_of(&[8]);
    let planned = now(&sim, &wish(&[Some(32)], ", linkType: IB"));
    assert_eq!((planned.steps.len(), planned.refusals[0].reason, &planned.disruption), (0, Reason::LinkTypeMismatch, &Disruption::None), "{planned}");
    let said = &planned.refusals[0].message;
    assert!(said.contains("run  mstconfig -d 0000:03:00.0 set LINK_TYPE_P1=1  on the node"), "{said}");
}

#[test]
fn a_card_is_reset_by_one_function_and_not_while_the_host_uses_any() {
    let (sim, wanted) = (card_of(&[8, 8]), wish(&[Some(32), Some(32)], ""));
    assert!(now(&sim, &wanted).reset_firmware.is_empty(), "nothing is told yet");
    assert_eq!(rounds(&sim, &wanted).reset_firmware, [function(0)].into());
    let route = HostUse::DefaultRoute { link: "eth0".to_owned(), family: "IPv4".to_owned() };
    sim.change(|state| state.inventory.pfs[1].facts.uses.push(route));
    let left = rounds(&sim, &wanted);
    assert_eq!((left.reset_firmware.len(), Need::of(&left)), (0, Need::Reboot), "the reboot is made all the same: {left}");
}

#[test]
fn firmware_that_cannot_be_told_keeps_no_pod_from_leaving_and_reboots_nobody() {
    let sim = card_of(&[8, 8]);
    apply(&sim, &now(&sim, &wish(&[None, Some(2)], "")));
    sim.change(|state| {
        let vf = state.inventory.pfs[1].vfs[0].address;
        state.vfs_in_use.insert(vf, "pod".to_owned());
    });
    sim.fail_once_on("0000:03:00.0: tell its firmware");
    let wanted = wish(&[Some(32), Some(4)], "");
    apply(&sim, &now(&sim, &wanted));
    let left = now(&sim, &wanted);
    assert_eq!((Need::of(&left), left.disruption.as_str()), (Need::Drain, "EvictPods"), "{left}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a card runs with and policies ask for, wherever the program dies on the way: after one reboot all is as asked, nothing was shrunk, and
    /// without a reason there is no reboot.
    #[test]
    fn one_reboot_is_enough_from_any_state_and_after_death_at_any_step(
        running in prop::collection::vec(0u16..=8, 1..5), wanted in prop::collection::vec(prop::option::of(0u16..=12), 4),
        earlier in prop::collection::vec(prop::option::of(0u16..=12), 4), dies in 0usize..16, fails in 0usize..16,
    ) {
        let sim = card_of(&running);
        let mut before = now(&sim, &wish(&earlier[..running.len()], ""));
        before.steps.truncate(dies);
        sim.fail_step(fails);
        apply(&sim, &before);
        let (wanted, numbers) = (wish(&wanted[..running.len()], ""), &wanted[..running.len()]);
        let left = rounds(&sim, &wanted);
        let needed = numbers.iter().zip(&running).any(|(wanted, running)| wanted.unwrap_or_default() > *running);
        prop_assert_eq!(Need::of(&left) == Need::Reboot, needed, "{}", left);
        prop_assert!(sim.observe().unwrap().staged_firmware.len() <= numbers.len());
        sim.reboot();
        let left = rounds(&sim, &wanted);
        prop_assert!(left.is_empty(), "{left}");
        prop_assert!(sim.crimes().is_empty(), "{:?}", sim.crimes());
        let end = sim.observe().unwrap();
        prop_assert!(end.staged_firmware.is_empty(), "{:?}", end.staged_firmware);
        for (number, pf) in end.inventory.pfs.iter().enumerate() {
            let (wanted, earlier) = (numbers[number].unwrap_or_default(), earlier[number].unwrap_or_default());
            // What an earlier wish had firmware told is not lowered while more is wanted than runs.
            let most = if wanted > running[number] { wanted.max(earlier) } else { running[number] };
            prop_assert!(pf.numvfs == wanted && (wanted.max(running[number])..=most).contains(&pf.totalvfs), "{}: {} of {}", pf.address, pf.numvfs, pf.totalvfs);
        }
    }
}
