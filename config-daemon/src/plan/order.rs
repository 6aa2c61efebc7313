//! Pure: the steps on one PF, in the order in which the kernel and the drivers take them.
//!
//! What lives here: the orders. What does not: whether the PF may be touched at all (`plan`, `refusal`).
//!
//! Why this order:
//! - The record comes first, so that a PF that we touched is known as ours whenever we die. An existing record is replaced last, because until then
//!   it tells which VFs had a group before.
//! - Autoprobe is off while VFs are made, so that each is bound once, to the right driver. It must be on again before a VF is bound to its kernel
//!   driver: `pci_device_can_probe` (drivers/pci/pci-driver.c, v6.12) refuses a VF of a PF whose autoprobe is off.
//! - `sriov_numvfs` goes through 0: the kernel answers N to M with EBUSY (Documentation/ABI/testing/sysfs-bus-pci, v6.12).
//! - The PF is up, and its MTU raised, before VFs are made: `bnxt_en` ignores the write while its PF is down, and `igbvf` probes with a random MAC
//!   then. The MTU is raised when the old VFs are gone, because drivers that lay out buffers by it refuse it otherwise.
//! - The eswitch changes its mode where the driver wants it (`family`): before there are VFs, or when there are and none has a driver yet. The way
//!   to another number of VFs in switchdev mode is the same as the way there, because drivers that want VFs first take the mode back with them.
//! - Representors are named when the eswitch has its mode, which is when they are there, and before anybody uses them.
//! - GUIDs are set before the driver is bound: `mlx5_core` reads them when it is probed. A vDPA device comes last, because it is a child of the
//!   VF's kernel driver and goes with it.
//! - The administrative MAC is set before the driver is bound: an `igbvf` netdev takes it over only when it is probed.
//!
//! Invariant: a VF that somebody uses gets no step.

use sha2::{Digest, Sha256};
use sriov_host::driver::is_userspace;
use sriov_host::function::Vdpa;
use sriov_host::guid::Guid;
use sriov_host::inventory::{EswitchMode, LinkType, Netdev, Pf, Vf};
use sriov_host::mac::MacAddr;
use sriov_host::pci::PciAddress;
use sriov_host::vdpa;
use sriov_host::vf::VfIndex;

use super::VfUser;
use super::family::{Eswitch, Family};
use super::step::{Driver, Step};
use crate::desired::{DesiredPf, DeviceType, VdpaType, VfGroup};
use crate::guids::stable_guid;
use crate::observed::{Observed, Record};

/// Linux's default MTU, for PFs whose first MTU nobody wrote down.
const DEFAULT_MTU: u32 = 1500;

/// `IFNAMSIZ` without its closing zero.
const MAX_NAME_BYTES: usize = 15;

/// The steps of a PF, and the VFs that cannot have theirs yet.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) steps: Vec<Step>,
    pub(crate) waiting: Vec<VfUser>,
}

/// Makes all VFs of a PF anew.
pub(crate) fn make(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Order {
    let mut steps = Vec::new();
    steps.extend(first_record(wish, pf, observed));
    let autoprobe_off = observed.autoprobe_off.contains(&pf.address);
    if wish.numvfs > 0 && !autoprobe_off {
        steps.push(Step::SetAutoprobe { pf: pf.address, on: false });
    }
    if pf.numvfs > 0 {
        steps.push(Step::SetNumVfs { pf: pf.address, from: pf.numvfs, to: 0 });
    }
    let (before, after) = eswitch(wish, pf);
    steps.extend(before);
    steps.extend(pf_netdev(wish, pf));
    if wish.numvfs > 0 {
        steps.push(Step::SetNumVfs { pf: pf.address, from: 0, to: wish.numvfs });
    }
    steps.extend(after);
    if wish.numvfs > 0 && wish.eswitch_mode == EswitchMode::Switchdev {
        steps.extend(representor_base(wish, pf).map(|base| Step::NameRepresentors { pf: pf.address, base }));
    }
    if wish.numvfs > 0 || autoprobe_off {
        steps.push(Step::SetAutoprobe { pf: pf.address, on: true });
    }
    for index in (0..wish.numvfs).map(VfIndex) {
        steps.extend(vf(wish, pf, &VfNow::fresh(index, pf), observed));
    }
    steps.extend(later_record(wish, observed));
    Order { steps, waiting: Vec::new() }
}

/// Corrects what is wrong on a PF that has the right number of VFs.
pub(crate) fn adjust(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Order {
    let mut order = Order::default();
    order.steps.extend(first_record(wish, pf, observed));
    if observed.autoprobe_off.contains(&pf.address) && !wish.externally_managed && !pf.facts.lone {
        order.steps.push(Step::SetAutoprobe { pf: pf.address, on: true });
    }
    if !pf.facts.lone {
        order.steps.extend(pf_netdev(wish, pf));
    }
    order.steps.extend(misnamed(wish, pf));
    for index in (0..pf.numvfs).map(VfIndex) {
        let Some(now) = pf.vfs.iter().find(|vf| vf.index == index) else {
            // Made, but not seen yet: its steps wait for it.
            order.steps.extend(vf(wish, pf, &VfNow::fresh(index, pf), observed));
            continue;
        };
        match observed.user_of(pf, now) {
            None => order.steps.extend(vf(wish, pf, &VfNow::of(now), observed)),
            // What a pod's VF has of MAC and MTU is the pod's; only its driver is compared, and only reported.
            Some(user) => {
                let other = |step: &Step| match step {
                    // Of a VF without GUIDs its driver is not wrong.
                    Step::BindDriver { driver, .. } => !driver.is(now.driver.as_deref()),
                    step => matches!(step, Step::MakeVdpa { .. } | Step::RemoveVdpa { .. }),
                };
                let wrong = vf(wish, pf, &VfNow::of(now), observed).iter().any(other);
                order.waiting.extend(wrong.then_some((now.address, user)));
            }
        }
    }
    if order.waiting.is_empty() {
        order.steps.extend(later_record(wish, observed));
    }
    order
}

/// Gives a NIC of a virtual machine back to its kernel driver, and its MTU, where we changed them.
pub(crate) fn give_back(pf: &Pf, record: &Record) -> Vec<Step> {
    let (address, mut steps) = (pf.address, Vec::new());
    for vf in &pf.vfs {
        let left = group_left(record, vf.index);
        let vfio = left.as_ref().is_some_and(|group| group.device_type == DeviceType::VfioPci);
        if vfio && vf.driver.as_deref().is_none_or(is_userspace) {
            steps.push(Step::BindDriver { pf: address, vf: vf.index, driver: Driver::KernelDefault });
        }
        let (set, original) = (left.and_then(|group| group.mtu), record.original_mtu.unwrap_or(DEFAULT_MTU));
        if vf.netdev.as_ref().is_some_and(|netdev| netdev.mtu != original && Some(netdev.mtu) == set) {
            steps.push(Step::SetVfMtu { pf: address, vf: vf.index, mtu: original });
        }
    }
    steps
}

/// What the names of a PF's representors begin with: the name by which policies know the PF. `None` where a name would be too long for the kernel.
pub(crate) fn representor_base(wish: &DesiredPf, pf: &Pf) -> Option<String> {
    let found = pf.netdev.as_ref().map_or("", |netdev| netdev.name.as_str());
    let base = if wish.name.is_empty() { found } else { &wish.name };
    let longest = format!("{base}_{}", wish.numvfs.saturating_sub(1));
    (!base.is_empty() && !wish.externally_managed && longest.len() <= MAX_NAME_BYTES).then(|| base.to_owned())
}

/// Names representors anew, when one has another name and nobody uses it.
fn misnamed(wish: &DesiredPf, pf: &Pf) -> Option<Step> {
    if wish.eswitch_mode != EswitchMode::Switchdev {
        return None;
    }
    let base = representor_base(wish, pf)?;
    let wrong = |vf: &Vf| vf.facts.representor_idle && vf.facts.representor.as_ref().is_some_and(|name| *name != format!("{base}_{}", vf.index));
    pf.vfs.iter().any(wrong).then_some(Step::NameRepresentors { pf: pf.address, base })
}

/// Takes back what was done to a PF that is not wanted any more.
pub(crate) fn take_back(pf: &Pf, record: &Record, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if pf.numvfs > 0 {
        steps.push(Step::SetNumVfs { pf: pf.address, from: pf.numvfs, to: 0 });
    }
    let original = record.original_eswitch_mode.unwrap_or_default();
    let changed = record.interface.eswitch_mode.as_deref() == Some("switchdev");
    if changed && pf.eswitch_mode != original {
        steps.push(Step::SetEswitchMode { pf: pf.address, mode: original });
    }
    if observed.autoprobe_off.contains(&pf.address) {
        steps.push(Step::SetAutoprobe { pf: pf.address, on: true });
    }
    // A port that the host uses keeps its MTU: the host may count on it by now.
    let raised = pf.facts.uses.is_empty() && record.interface.mtu.is_some_and(|mtu| mtu > 0);
    let original = record.original_mtu.unwrap_or(DEFAULT_MTU);
    if let Some(netdev) = pf.netdev.as_ref().filter(|n| raised && n.mtu != original && n.link_type == LinkType::Ether) {
        steps.push(Step::SetPfMtu { pf: pf.address, from: netdev.mtu, to: original });
    }
    steps
}

fn first_record(wish: &DesiredPf, pf: &Pf, observed: &Observed) -> Option<Step> {
    if observed.records.contains_key(&wish.address) {
        return None;
    }
    let record = Record {
        interface: wish.interface.clone(),
        original_mtu: pf.netdev.as_ref().map(|n| n.mtu),
        original_eswitch_mode: (wish.eswitch_mode != EswitchMode::Legacy || pf.eswitch_mode != EswitchMode::Legacy).then_some(pf.eswitch_mode),
        net_filter: pf.facts.net_filter.clone(),
    };
    Some(Step::RecordOwnership { pf: wish.address, record: Box::new(record) })
}

fn later_record(wish: &DesiredPf, observed: &Observed) -> Option<Step> {
    let old = observed.records.get(&wish.address).filter(|old| old.interface != wish.interface)?;
    let record = Record { interface: wish.interface.clone(), ..old.clone() };
    Some(Step::RecordOwnership { pf: wish.address, record: Box::new(record) })
}

/// The steps of the eswitch, on a PF that has no VFs any more: those before VFs are made, and those after.
fn eswitch(wish: &DesiredPf, pf: &Pf) -> (Vec<Step>, Vec<Step>) {
    let (address, family) = (pf.address, Family::of(pf));
    let set = |mode| Step::SetEswitchMode { pf: address, mode };
    let offload = || {
        let steering = family.steering.map(|mode| Step::SetSteering { pf: address, mode });
        [Step::EnableOffload { pf: address }].into_iter().chain(steering)
    };
    match (pf.eswitch_mode, wish.eswitch_mode, family.eswitch) {
        // Nothing to do but the number of VFs.
        (EswitchMode::Legacy, EswitchMode::Legacy, _)
        | (_, _, Eswitch::Missing)
        | (EswitchMode::Switchdev, EswitchMode::Switchdev, Eswitch::BeforeVfs) => (Vec::new(), Vec::new()),
        (EswitchMode::Switchdev, EswitchMode::Legacy, _) => (vec![set(EswitchMode::Legacy)], Vec::new()),
        (EswitchMode::Legacy, EswitchMode::Switchdev, Eswitch::BeforeVfs) => (offload().chain([set(EswitchMode::Switchdev)]).collect(), Vec::new()),
        (EswitchMode::Switchdev, EswitchMode::Switchdev, Eswitch::AfterVfs) => {
            (std::iter::once(set(EswitchMode::Legacy)).chain(offload()).collect(), vec![set(EswitchMode::Switchdev)])
        }
        (EswitchMode::Legacy, EswitchMode::Switchdev, Eswitch::AfterVfs) => (offload().collect(), vec![set(EswitchMode::Switchdev)]),
    }
}

fn pf_netdev(wish: &DesiredPf, pf: &Pf) -> Vec<Step> {
    let mut steps = Vec::new();
    let Some(netdev) = &pf.netdev else { return steps };
    if !netdev.admin_up {
        steps.push(Step::SetPfUp { pf: pf.address });
    }
    // Raised, never lowered: other users of the PF may need what it has.
    if let Some(mtu) = wish.mtu.filter(|mtu| *mtu > netdev.mtu && !wish.externally_managed) {
        steps.push(Step::SetPfMtu { pf: pf.address, from: netdev.mtu, to: mtu });
    }
    steps
}

/// A VF as it is, or as it will be when it has just been made.
struct VfNow<'a> {
    index: VfIndex,
    driver: Option<&'a str>,
    /// `None` when the PF does not report one, so it is not set either.
    admin_mac: Option<MacAddr>,
    netdev: Option<&'a Netdev>,
    /// What the PF holds, or where it does not tell, what the VF's driver read; `None` when neither tells.
    guid: Option<Guid>,
    vdpa: Option<&'a Vdpa>,
}

impl<'a> VfNow<'a> {
    fn fresh(index: VfIndex, pf: &Pf) -> Self {
        Self { index, driver: None, admin_mac: pf.netdev.as_ref().map(|_| MacAddr::ZERO), netdev: None, guid: Some(Guid(0)), vdpa: None }
    }

    fn of(vf: &'a Vf) -> Self {
        let guid = vf.attributes.as_ref().and_then(|a| a.node_guid).or(vf.facts.node_guid);
        // A VF without a driver was just made, as far as one can tell.
        let guid = guid.or(vf.driver.is_none().then_some(Guid(0)));
        Self {
            index: vf.index,
            driver: vf.driver.as_deref(),
            admin_mac: vf.attributes.as_ref().map(|a| a.mac),
            netdev: vf.netdev.as_ref(),
            guid,
            vdpa: vf.facts.vdpa.as_ref(),
        }
    }
}

fn vf(wish: &DesiredPf, pf: &Pf, now: &VfNow<'_>, observed: &Observed) -> Vec<Step> {
    let (address, index) = (pf.address, now.index);
    let Some(group) = wish.group_of(index) else { return without_group(wish, pf, now, observed) };
    let driver = Driver::of(group.device_type);
    let bound = driver.is(now.driver);
    let mut steps = Vec::new();
    let ether = pf.netdev.as_ref().is_some_and(|n| n.link_type == LinkType::Ether);
    if ether && now.admin_mac == Some(MacAddr::ZERO) {
        // A netdev that stays keeps its address, which the PF then enforces; any other VF gets one that survives making it anew.
        let kept = now.netdev.filter(|_| bound).and_then(|n| n.mac);
        let mac = kept.unwrap_or_else(|| stable_mac(&observed.machine_id, address, index));
        steps.push(Step::SetAdminMac { pf: address, vf: index, mac });
    }
    let guid = guid(pf, now, observed);
    steps.extend(guid.map(|guid| Step::SetVfGuid { pf: address, vf: index, guid }));
    if bound && group.vdpa.is_none() && is_ours(pf, now) {
        steps.push(Step::RemoveVdpa { pf: address, vf: index });
    }
    if !bound || (guid.is_some() && driver == Driver::KernelDefault) {
        steps.push(Step::BindDriver { pf: address, vf: index, driver });
    }
    if driver == Driver::KernelDefault
        && let Some(mtu) = group.mtu
        && (!bound || now.netdev.is_some_and(|n| n.mtu != mtu))
    {
        steps.push(Step::SetVfMtu { pf: address, vf: index, mtu });
    }
    let wanted = |kind: &VdpaType| guid.is_some() || now.vdpa.and_then(|vdpa| vdpa.driver.as_deref()) != Some(kind.driver());
    steps.extend(group.vdpa.filter(wanted).map(|kind| Step::MakeVdpa { pf: address, vf: index, kind }));
    steps
}

/// The GUID that an InfiniBand VF is to get: the administrator's, or where there is none and the VF has none, one that survives making it anew.
fn guid(pf: &Pf, now: &VfNow<'_>, observed: &Observed) -> Option<Guid> {
    let infiniband = pf.netdev.as_ref().is_some_and(|netdev| netdev.link_type == LinkType::Infiniband);
    // What nobody tells cannot be compared, and would be set for ever.
    let found = now.guid.filter(|_| infiniband)?;
    match observed.guids.of(pf).and_then(|guids| guids.get(now.index)) {
        Some(given) => Some(given).filter(|given| *given != found),
        None => (!found.is_assignable()).then(|| stable_guid(&observed.machine_id, pf.address, now.index)),
    }
}

/// Whether a VF has a vDPA device of the operator's, which its name says.
fn is_ours(pf: &Pf, now: &VfNow<'_>) -> bool {
    let address = pf.vfs.iter().find(|vf| vf.index == now.index).map(|vf| vf.address);
    now.vdpa.is_some_and(|vdpa| address.is_some_and(|address| vdpa.name == vdpa::name_of(address)))
}

/// A VF of no group goes back to what a fresh one is: its kernel driver when it has none or when the group that it left had given it to
/// userspace, and the default MTU when that group had set another.
fn without_group(wish: &DesiredPf, pf: &Pf, now: &VfNow<'_>, observed: &Observed) -> Vec<Step> {
    let left = observed.records.get(&pf.address).and_then(|old| group_left(old, now.index));
    let bind = match now.driver {
        None => !wish.externally_managed,
        Some(driver) => is_userspace(driver) && left.as_ref().is_some_and(|group| group.device_type == DeviceType::VfioPci),
    };
    let mut steps = Vec::new();
    if is_ours(pf, now) {
        steps.push(Step::RemoveVdpa { pf: pf.address, vf: now.index });
    }
    if bind {
        steps.push(Step::BindDriver { pf: pf.address, vf: now.index, driver: Driver::KernelDefault });
    }
    let set = left.and_then(|group| group.mtu);
    if !bind && now.netdev.is_some_and(|netdev| netdev.mtu != DEFAULT_MTU && Some(netdev.mtu) == set) {
        steps.push(Step::SetVfMtu { pf: pf.address, vf: now.index, mtu: DEFAULT_MTU });
    }
    steps
}

/// The group that a VF had when its PF was configured last.
fn group_left(old: &Record, vf: VfIndex) -> Option<VfGroup> {
    let spec = sriov_crds::node_state::SriovNetworkNodeStateSpec { interfaces: vec![old.interface.clone()], ..Default::default() };
    let old = crate::desired::Desired::read(&spec);
    old.pfs.values().flatten().find_map(|pf| pf.group_of(vf).cloned())
}

/// A locally administered unicast address that is the same each time this VF is made on this machine, and differs from all others.
pub(crate) fn stable_mac(machine_id: &str, pf: PciAddress, vf: VfIndex) -> MacAddr {
    let digest = Sha256::digest(format!("sriov admin mac\n{}\n{pf}\n{vf}", machine_id.trim()));
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    mac[0] = (mac[0] & 0xfc) | 0x02;
    MacAddr(mac)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn macs_are_local_unicast_stable_and_all_different() {
        let pfs: [PciAddress; 2] = ["0000:01:00.0".parse().unwrap(), "0000:01:00.1".parse().unwrap()];
        let mut seen = BTreeSet::new();
        for machine in ["a", "b"] {
            for pf in pfs {
                for vf in (0..64).map(VfIndex) {
                    let mac = stable_mac(machine, pf, vf);
                    assert_eq!(mac, stable_mac(&format!("{machine}\n"), pf, vf), "stable");
                    assert_eq!(mac.0[0] & 3, 2, "{mac} is locally administered and unicast");
                    assert!(seen.insert(mac), "{mac} twice");
                }
            }
        }
    }
}
