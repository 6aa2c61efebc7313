//! Pure: what is done about the Open vSwitch bridges of PFs.
//!
//! Decisions: a bridge is made after the VFs of its PF are, and goes before they are made anew, because its uplink must not change under it. Settings
//! that Open vSwitch changes while traffic flows are changed so. A bridge that has to go, or to be another one, waits for the pods behind it, as all does
//! that takes VFs away; making one disturbs nobody.
//!
//! What does not live here: how bridges are compared (`bridges`), other steps of the PF (`order`).
//!
//! Invariants: a bridge that we did not make is neither changed nor removed; without an answer of the database nothing is done to bridges, and all else is.

use sriov_host::inventory::{EswitchMode, Pf};
use sriov_host::pci::PciAddress;

use super::refusal::{Reason, Refusal};
use super::step::Step;
use super::{Plan, VfUser};
use crate::bridges::{Bridges, Difference, Found, Wanted, pf_of};
use crate::desired::{Desired, DesiredPf};
use crate::observed::Observed;

/// What cures a database that does not answer.
const START: &str = "start Open vSwitch, or name its socket with --ovs-socket-path (OVSDB_SOCKET_PATH); all else is done. Where Open vSwitch was removed \
                     for good, delete /etc/sriov-operator/managed-ovs-bridges.json";

/// What belongs around the other steps of a PF.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) before: Vec<Step>,
    pub(super) after: Vec<Step>,
    pub(super) refusals: Vec<Refusal>,
    /// The change that waits, and for whom.
    pub(super) waiting: Option<(String, Vec<VfUser>)>,
}

/// The bridge of a PF that is configured; `renew` says that its VFs are made anew.
pub(super) fn around(wish: &DesiredPf, pf: &Pf, renew: bool, desired: &Desired, observed: &Observed) -> Around {
    let mut around = Around::default();
    let wanted = desired.bridges.get(&pf.address);
    let Some(bridges) = &observed.bridges else {
        around.refusals.extend(wanted.map(|_| not_managed(wish, pf)));
        return around;
    };
    if let Some(fault) = &bridges.fault {
        around.refusals.extend((wanted.is_some() || bridges.of(pf.address).next().is_some()).then(|| unreachable(pf, fault)));
        return around;
    }
    if renew {
        around.before = removals(pf, bridges);
    }
    match wanted {
        None => {}
        Some(Err(refusal)) => around.refusals.push(refusal.clone()),
        Some(Ok(wanted)) => match obstacle(wanted, wish, pf, bridges) {
            Some(refusal) => around.refusals.push(refusal),
            None => agree(wanted, pf, renew, (bridges, observed), &mut around),
        },
    }
    around
}

/// The bridges of a PF go.
pub(super) fn removals(pf: &Pf, bridges: &Bridges) -> Vec<Step> {
    bridges.of(pf.address).map(|name| Step::RemoveBridge { pf: Some(pf.address), name: name.clone() }).collect()
}

/// Bridges of ours that nobody wants any more, also of PFs that are gone.
pub(super) fn leftovers(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    plan.refusals.extend(desired.unreadable_bridges.iter().cloned());
    // Those of PFs that are wanted are told with the PF.
    let alone = desired.bridges.iter().filter(|(pf, _)| !desired.pfs.contains_key(pf));
    plan.refusals.extend(alone.filter_map(|(_, wanted)| wanted.as_ref().err().cloned()));
    let Some(bridges) = observed.bridges.as_ref().filter(|_| desired.unreadable_bridges.is_empty()) else { return };
    for (name, kept) in &bridges.kept {
        let address = pf_of(kept);
        let wanted = address.and_then(|pf| desired.bridges.get(&pf));
        let is_wanted = wanted.is_some_and(|wanted| wanted.as_ref().map_or(true, |wanted| wanted.name == *name));
        if let Some(fault) = &bridges.fault {
            let is_told = plan.refusals.iter().any(|refusal| refusal.pf == address && refusal.reason == Reason::BridgeUnavailable);
            plan.refusals.extend((!is_wanted && !is_told).then(|| not_removed(name, address, fault, observed)));
            continue;
        }
        let goes = plan.steps.iter().any(|step| matches!(step, Step::RemoveBridge { name: going, .. } if going == name));
        let waits = plan.refusals.iter().any(|refusal| refusal.pf.is_some() && refusal.pf == address && refusal.reason == Reason::VfsInUse);
        if is_wanted || goes || waits {
            continue;
        }
        let pf = address.and_then(|address| observed.pf(address));
        match (pf, bridges.found.get(name)) {
            (Some(pf), Some(found)) if !behind(pf, found, observed).is_empty() => {
                plan.wait(pf, &format!("no policy asks for bridge {name} any more, so it is to be removed"), &behind(pf, found, observed));
            }
            _ => plan.steps.push(Step::RemoveBridge { pf: address, name: name.clone() }),
        }
    }
}

/// What keeps the PF from being the uplink of this bridge.
fn obstacle(wanted: &Wanted, wish: &DesiredPf, pf: &Pf, bridges: &Bridges) -> Option<Refusal> {
    let (name, policies) = (&wanted.name, wish.policies());
    if wish.eswitch_mode != EswitchMode::Switchdev || wish.externally_managed {
        let said = format!(
            "{policies} asks for bridge {name}, which needs eSwitchMode switchdev and a PF that is not externallyManaged: set that, or remove bridge"
        );
        return Some(refuse(pf, Reason::InvalidSpec, &said));
    }
    let Some(netdev) = &pf.netdev else {
        let said = format!("{policies} asks for bridge {name}, and this PF has no netdev in the host's network namespace that could be its uplink");
        return Some(refuse(pf, Reason::BridgeConflict, &said));
    };
    if bridges.found.contains_key(name) && !bridges.kept.contains_key(name) {
        let said = format!(
            "{policies} asks for bridge {name}, and there is one of that name that this operator did not make: remove it (ovs-vsctl del-br {name}), or remove \
             bridge from the policy"
        );
        return Some(refuse(pf, Reason::BridgeConflict, &said));
    }
    let (other, _) = bridges.with_interface(&netdev.name).filter(|(other, _)| !bridges.kept.contains_key(*other))?;
    let said = format!(
        "{policies} asks for bridge {name}, and {} is a port of bridge {other}, which this operator did not make: take it out (ovs-vsctl del-port {other} {}), \
         or remove bridge from the policy",
        netdev.name, netdev.name
    );
    Some(refuse(pf, Reason::BridgeConflict, &said))
}

fn agree(wanted: &Wanted, pf: &Pf, renew: bool, (bridges, observed): (&Bridges, &Observed), around: &mut Around) {
    let netdev = pf.netdev.as_ref().map(|netdev| netdev.name.clone()).unwrap_or_default();
    let make = || Step::MakeBridge { pf: pf.address, wanted: Box::new(wanted.clone()), netdev: netdev.clone() };
    let ours = bridges.kept.get(&wanted.name).zip(bridges.found.get(&wanted.name));
    let Some((kept, found)) = ours.filter(|_| !renew) else {
        around.after.push(make());
        return;
    };
    match wanted.difference(pf.address, &netdev, kept, found) {
        Difference::Nothing => around.refusals.extend(not_taken_up(pf, &wanted.name, &netdev, found)),
        Difference::Settings => {
            around.after.push(Step::CorrectBridge { pf: pf.address, wanted: Box::new(wanted.clone()), netdev: netdev.clone() });
        }
        Difference::Whole => {
            let users = behind(pf, found, observed);
            if users.is_empty() {
                around.after.extend([Step::RemoveBridge { pf: Some(pf.address), name: wanted.name.clone() }, make()]);
            } else {
                around.waiting = Some((format!("bridge {} is to be another kind of bridge, for which it is made anew", wanted.name), users));
            }
        }
    }
}

/// Users of the VFs whose traffic goes through the bridge: those whose representor is a port of it. Where that cannot be told all VFs count.
fn behind(pf: &Pf, found: &Found, observed: &Observed) -> Vec<VfUser> {
    let is_port = |representor: &Option<String>| representor.as_ref().is_none_or(|name| found.interface(name).is_some());
    let through = pf.vfs.iter().filter(|vf| !found.is_in_kernel() || is_port(&vf.facts.representor));
    through.filter_map(|vf| Some((vf.address, observed.user_of(pf, vf)?))).collect()
}

fn not_taken_up(pf: &Pf, bridge: &str, netdev: &str, found: &Found) -> Option<Refusal> {
    let uplink = found.interface(netdev)?;
    let said = match (&uplink.error, uplink.ofport) {
        (Some(error), _) => format!("Open vSwitch cannot use {netdev} as the uplink of bridge {bridge}: {error}"),
        (None, Some(0..)) => return None,
        (None, _) => format!("bridge {bridge} with uplink {netdev} is in Open vSwitch's database, and ovs-vswitchd has not made it: is it running?"),
    };
    Some(refuse(pf, Reason::BridgeUnavailable, &said))
}

fn not_managed(wish: &DesiredPf, pf: &Pf) -> Refusal {
    let said = format!(
        "{} asks for a bridge, and this program was not told to make bridges: it is, in a cluster, by the feature gate manageSoftwareBridges, and on the \
         command line by --manage-software-bridges",
        wish.policies()
    );
    refuse(pf, Reason::Unsupported, &said)
}

fn unreachable(pf: &Pf, fault: &str) -> Refusal {
    let said = format!("its bridge cannot be looked after: {fault}: {START}");
    refuse(pf, Reason::BridgeUnavailable, &said)
}

fn not_removed(name: &str, address: Option<PciAddress>, fault: &str, observed: &Observed) -> Refusal {
    let said = format!("no policy asks for bridge {name} any more, and it cannot be removed: {fault}: {START}");
    match address.and_then(|address| observed.pf(address)) {
        Some(pf) => refuse(pf, Reason::BridgeUnavailable, &said),
        None => Refusal { pf: address, name: String::new(), reason: Reason::BridgeUnavailable, message: said },
    }
}

fn refuse(pf: &Pf, reason: Reason, said: &str) -> Refusal {
    Refusal::of(pf.address, pf.netdev.as_ref().map_or("", |netdev| netdev.name.as_str()), reason, said)
}
