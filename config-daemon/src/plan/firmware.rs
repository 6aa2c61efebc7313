//! Pure: what the firmware of NICs is to be told about VFs, compared with what it is told and with what it runs with.
//!
//! What lives here: the comparison, the words for what only the vendor's tool can set. What does not: reading and writing the settings
//! (`sriov_host::netlink::devlink`), the reboot (`handshake`).
//!
//! Decisions:
//! - `total_vfs` is a ceiling: it is raised to what is asked for, and never lowered below what runs, so that another number of VFs costs no reboot.
//! - On `mlx5_core` the first setting makes the firmware count VFs for each function by itself, with numbers of which nobody knows what they are
//!   (drivers/net/ethernet/mellanox/mlx5/core/lib/nv_param.c, v6.18, `per_pf_total_vf`). So the other functions of a card, however many, are told what
//!   they run with in the same plan, also those that nobody asked for.
//! - What firmware was told before is kept in a file with the boot that it was told in. After another boot it either runs with it, and the file goes; or
//!   it does not, which is told and never rebooted for again; or nobody wants it any more, and it is told what it was told before.
//!
//! Invariant: a reboot is asked for only when all functions of the card are told what they are to be.

use std::collections::BTreeSet;

use sriov_host::inventory::{FirmwareSettings, LinkType, Pf};
use sriov_host::pci::{PciAddress, VendorId};

use super::Plan;
use super::refusal::Reason;
use super::step::Step;
use crate::desired::{Desired, DesiredPf};
use crate::observed::{Observed, Staging};

/// The vendor whose tool is `mstconfig`: NVIDIA, once Mellanox.
pub const MELLANOX: VendorId = VendorId(0x15b3);

/// How far the firmware of a PF is that allows fewer VFs than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It is to be told.
    ToTell,
    /// It was told, in this boot.
    Told,
    /// It was told, the machine was started anew, and it runs as before.
    NotTaken,
}

/// Whether a PF is asked for more VFs than its firmware allows, and the firmware can be told otherwise.
pub(crate) fn can_help(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> bool {
    let settings = &pf.facts.firmware_settings;
    // A switch alone helps only where it is what is missing.
    let offered = settings.total_vfs.is_some() || (settings.enable_sriov.is_some() && pf.totalvfs == 0);
    wish.numvfs > pf.totalvfs && !wish.externally_managed && !pf.facts.lone && offered && !is_left_alone(pf, observed)
}

/// What is told of such a PF, whose VFs stay as they are meanwhile.
pub(crate) fn lacking(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<(Reason, String)> {
    if !can_help(wish, pf, observed) {
        return None;
    }
    let (asked, now) = (format!("{} asks for {} VFs", wish.policies(), wish.numvfs), allows(pf));
    if progress(wish, pf, observed) == Progress::NotTaken {
        let told = observed.staged_firmware.get(&pf.address).map(|staging| words(&staging.wanted)).unwrap_or_default();
        let said = format!(
            "{asked}; the NIC's firmware was told so ({told}) and the machine was started anew, and still {now}; it is not rebooted for it again: switch the \
             machine off and on, because some NICs keep their firmware running over a reboot; if that does not help, {}",
            by_hand(wish, pf)
        );
        return Some((Reason::FirmwareNotTaken, said));
    }
    let said = format!("{asked}, and {now}; the firmware is told so for its next start, for which this node is drained and rebooted, once");
    Some((Reason::FirmwareTold, said))
}

/// Why more VFs than the NIC has cannot be had, and what to do.
pub(crate) fn too_many(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> String {
    let asked = format!("{} asks for {} VFs, the NIC has at most {} (sriov_totalvfs)", wish.policies(), wish.numvfs, pf.totalvfs);
    let why = match () {
        () if pf.facts.lone => "",
        () if wish.externally_managed => " (an externally managed PF's firmware is left alone)",
        () if is_left_alone(pf, observed) => " (this operator was told to leave its firmware alone, disablePlugins)",
        () if pf.vendor == MELLANOX => " (this kernel cannot set it; Linux 6.18 and later can, on most NICs)",
        () => "",
    };
    format!("{asked}: set numVfs to {} or less, or {}{why}", pf.totalvfs, by_hand(wish, pf))
}

/// The vendor's tool for another kind of port, for which the kernel has no word.
pub(crate) fn other_link(wanted: LinkType, pf: &Pf) -> String {
    if pf.vendor != MELLANOX {
        return "set the type in the NIC's firmware setup".to_owned();
    }
    // A card has the types of two ports; its functions are in their order.
    let port = (pf.address.function() + 1).min(2);
    let number = if wanted == LinkType::Infiniband { 1 } else { 2 };
    format!("run  mstconfig -d {} set LINK_TYPE_P{port}={number}  on the node and reboot it", pf.address)
}

/// The steps on firmware, and the reboot for them.
pub(crate) fn settle(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    // One that is rebooted for something else too is told at the same time. All other refusals come first: nobody is rebooted for a PF that is refused.
    let waits = |pf: &&Pf| [Reason::RebootRequired, Reason::FirmwareTold].iter().any(|reason| plan.refuses(pf.address, *reason));
    let asked = observed.inventory.pfs.iter().filter(waits).filter_map(|pf| Some((pf, desired.pf(pf.address)?)));
    let is_lacking = |(pf, wish): &(&Pf, &DesiredPf)| can_help(wish, pf, observed) && progress(wish, pf, observed) != Progress::NotTaken;
    let lacking: Vec<(&Pf, &DesiredPf)> = asked.filter(is_lacking).collect();
    let cards: BTreeSet<Card> = lacking.iter().map(|(pf, _)| card(pf.address)).collect();
    let told: BTreeSet<Card> = observed.staged_firmware.keys().map(|pf| card(*pf)).filter(|card| !cards.contains(card)).collect();
    for of in told {
        let members: Vec<&Pf> = observed.inventory.pfs.iter().filter(|pf| card(pf.address) == of).collect();
        let keep: Vec<Step> = members.iter().filter(|pf| !is_left_alone(pf, observed)).filter_map(|pf| keep(pf, false)).collect();
        // What was told before is forgotten last: it says that the others may have to be told.
        if keep.is_empty() {
            plan.steps.extend(members.iter().filter_map(|pf| take_back(pf, desired, observed)));
        }
        plan.steps.extend(keep);
    }
    for of in cards {
        let members: Vec<&Pf> = observed.inventory.pfs.iter().filter(|pf| card(pf.address) == of && !pf.facts.lone).collect();
        let wishes: Vec<(&Pf, &DesiredPf)> = lacking.iter().copied().filter(|(pf, _)| card(pf.address) == of).collect();
        let steps = tell(&members, &wishes, desired, observed);
        let why = reboot_reason(&wishes);
        if steps.is_empty() {
            plan.disruption.reboot(&why);
            // A reset takes the netdevs of the whole card away for a while: not those that the machine itself needs.
            if members.iter().all(|pf| pf.facts.uses.is_empty()) {
                plan.reset_firmware.extend(members.first().map(|pf| pf.address));
            }
        } else {
            plan.reboot_follows.push(why);
            plan.steps.extend(steps);
        }
    }
}

/// What the functions of one card are still to be told.
fn tell(members: &[&Pf], wishes: &[(&Pf, &DesiredPf)], desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let first = wishes.iter().any(|(pf, wish)| progress(wish, pf, observed) == Progress::ToTell);
    for pf in members {
        let told = &pf.facts.firmware_settings;
        match wishes.iter().find(|(lacking, _)| lacking.address == pf.address) {
            Some((_, wish)) if progress(wish, pf, observed) == Progress::ToTell => {
                let before = observed.staged_firmware.get(&pf.address).filter(|staging| staging.boot == observed.boot_id);
                let before = before.map_or_else(|| told.clone(), |staging| staging.before.clone());
                steps.push(Step::StageFirmware { pf: pf.address, settings: raised(told, wish.numvfs.max(pf.totalvfs)), before });
            }
            Some(_) => {}
            // Nothing is forgotten before the reboot.
            None => steps.extend(take_back(pf, desired, observed).filter(tells).or_else(|| keep(pf, first))),
        }
    }
    steps
}

fn tells(step: &Step) -> bool {
    matches!(step, Step::UnstageFirmware { settings, .. } if settings.is_offered())
}

/// A function that is to keep what it runs with: one that is told less, or any.
fn keep(pf: &Pf, any: bool) -> Option<Step> {
    let told = &pf.facts.firmware_settings;
    let wrong = pf.totalvfs > 0 && told.is_offered() && (any || !suffices(told, pf.totalvfs));
    wrong.then(|| Step::KeepFirmware { pf: pf.address, settings: raised(told, pf.totalvfs) })
}

/// The settings that are left to do when a PF runs with what it was told, or when nobody asks for it any more.
fn take_back(pf: &Pf, desired: &Desired, observed: &Observed) -> Option<Step> {
    let staging = observed.staged_firmware.get(&pf.address)?;
    let forget = |settings| Some(Step::UnstageFirmware { pf: pf.address, settings });
    if is_running(pf, &staging.wanted) {
        return forget(FirmwareSettings::default());
    }
    let wanted = match desired.pfs.get(&pf.address) {
        None => !desired.unreadable.is_empty(),
        Some(Err(_)) => true,
        Some(Ok(wish)) => wish.numvfs > pf.totalvfs,
    };
    if wanted || is_left_alone(pf, observed) {
        return None;
    }
    // What somebody else told it since is theirs.
    let ours = pf.facts.firmware_settings == staging.wanted;
    forget(if ours { staging.before.clone() } else { FirmwareSettings::default() })
}

fn progress(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Progress {
    let told = suffices(&pf.facts.firmware_settings, wish.numvfs);
    match observed.staged_firmware.get(&pf.address).filter(|staging| suffices(&staging.wanted, wish.numvfs)) {
        Some(Staging { boot, .. }) if *boot != observed.boot_id => Progress::NotTaken,
        Some(_) if told => Progress::Told,
        _ => Progress::ToTell,
    }
}

/// Whether a NIC that starts with these settings has so many VFs, as far as they tell.
fn suffices(settings: &FirmwareSettings, numvfs: u16) -> bool {
    settings.enable_sriov != Some(false) && settings.total_vfs.is_none_or(|total| total >= u32::from(numvfs))
}

fn is_running(pf: &Pf, wanted: &FirmwareSettings) -> bool {
    pf.totalvfs > 0 && wanted.total_vfs.is_none_or(|total| u32::from(pf.totalvfs) >= total)
}

/// These settings, with so many VFs; never fewer than they are. What is not offered stays so.
fn raised(told: &FirmwareSettings, numvfs: u16) -> FirmwareSettings {
    FirmwareSettings { enable_sriov: told.enable_sriov.map(|_| true), total_vfs: told.total_vfs.map(|total| total.max(u32::from(numvfs))) }
}

fn is_left_alone(pf: &Pf, observed: &Observed) -> bool {
    observed.left_firmware.contains(&pf.vendor)
}

/// The settings as devlink calls them.
pub(crate) fn words(settings: &FirmwareSettings) -> String {
    let total = settings.total_vfs.map(|total| format!("total_vfs {total}"));
    let enable = settings.enable_sriov.map(|on| format!("enable_sriov {on}"));
    [total, enable].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn allows(pf: &Pf) -> String {
    match pf.totalvfs {
        0 => "SR-IOV is off in the NIC's firmware".to_owned(),
        total => format!("the NIC's firmware allows {total} (sriov_totalvfs)"),
    }
}

/// What a person does at the node.
fn by_hand(wish: &DesiredPf, pf: &Pf) -> String {
    by_hand_of(pf.vendor, pf.address, wish.numvfs)
}

/// As [`by_hand`], of a NIC that is no PF.
pub(crate) fn by_hand_of(vendor: VendorId, address: PciAddress, numvfs: u16) -> String {
    match vendor {
        MELLANOX => format!("run  mstconfig -d {address} set SRIOV_EN=1 NUM_OF_VFS={numvfs}  on the node and reboot it"),
        _ => "raise the limit in the NIC's firmware setup and reboot".to_owned(),
    }
}

fn reboot_reason(wishes: &[(&Pf, &DesiredPf)]) -> String {
    let each: Vec<String> = wishes.iter().map(|(pf, wish)| format!("{} VFs in the firmware of PF {}", wish.numvfs, pf.address)).collect();
    each.join("; ")
}

/// The functions of one device. Those of a card with a slot for each processor are devices of their own, of which each counts by itself.
type Card = (u32, u8, u8);

fn card(address: PciAddress) -> Card {
    address.slot()
}

#[cfg(test)]
#[path = "firmware_tests.rs"]
mod tests;
