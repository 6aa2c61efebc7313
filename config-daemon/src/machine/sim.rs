//! Pure (tests): a kernel with state, as far as SR-IOV goes.
//!
//! What it does as the real one does (spec/lab notes on igb, kernel 6.12): numvfs from N to M is EBUSY, above totalvfs ERANGE; 0 drops VFs with
//! their settings; VFs may be seen late; they get a driver by themselves only when autoprobe is on; VFs of a PF whose autoprobe is off cannot get their kernel driver; a VF
//! probes with its administrative MAC, or with a random one; an administrative MAC does not reach a netdev that exists; the netdev is gone while
//! another driver has the VF; an eswitch changes its mode as its family wants it and loses it with the VFs; bnxt_en ignores the number of VFs while
//! its PF is down; firmware runs with what it was told from the next start of the machine on, and counts VFs for each function of a card from the first
//! setting on, with 0 for those that were not told; Open vSwitch has an interface once; representors come and go with switchdev mode; a vDPA device needs its bus driver and goes with the VF's kernel driver. Any step can be told to fail. Steps may come from several threads.
//!
//! Invariant: it counts what must never happen (`crimes`), so that tests need not look for it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use sriov_crds::bridge::OvsBridge;
use sriov_host::function::Vdpa;
use sriov_host::inventory::{EswitchMode, Facts, FirmwareSettings, Inventory, Iommu, LinkType, Netdev, Pf, Vf};
use sriov_host::mac::MacAddr;
use sriov_host::pci::{DeviceId, PciAddress, VendorId};
use sriov_host::vf::{VfAttributes, VfIndex};

use super::{Machine, ObserveError, StepError};
use crate::bridges::{Bridges, Found, FoundInterface};
use crate::observed::{Observed, Staging};
use crate::plan::family::{Eswitch, Family, Traffic};
use crate::plan::step::{Driver, Step, VFIO_PCI};

pub(crate) struct Sim {
    state: Mutex<Observed>,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    fail_once: Option<String>,
    fail_at: Option<usize>,
    late: bool,
    hidden: bool,
    log: Vec<String>,
    crimes: Vec<String>,
    random: u16,
    /// Functions whose firmware counts for itself.
    counts_alone: BTreeSet<PciAddress>,
    /// Firmware starts as it was, whatever it was told.
    stubborn: bool,
}

impl Sim {
    pub(crate) fn new(state: Observed) -> Self {
        Self { state: Mutex::new(state), notes: Mutex::new(Notes { random: 1, ..Notes::default() }) }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    /// Steps performed or failed so far, in words.
    pub(crate) fn log(&self) -> Vec<String> {
        self.notes().log.clone()
    }

    /// What must never happen, and did.
    pub(crate) fn crimes(&self) -> Vec<String> {
        self.notes().crimes.clone()
    }

    /// The next VFs that are made are seen only after another step.
    pub(crate) fn make_late(&self, late: bool) {
        self.notes().late = late;
    }

    /// A machine with idle igb PFs at these addresses, an IOMMU and vfio-pci.
    pub(crate) fn with_pfs(addresses: &[&str]) -> Self {
        let pfs = addresses.iter().enumerate().map(|(i, address)| idle_pf(address.parse().unwrap(), u32::try_from(i).unwrap() + 2)).collect();
        let iommu = Iommu { active: true, command_line: "intel_iommu=on".to_owned() };
        let inventory = Inventory { iommu, pfs, ..Inventory::default() };
        let vdpa_drivers_loadable = ["vhost_vdpa".to_owned()].into();
        Self::new(Observed { inventory, vdpa_drivers_loadable, vfio_pci_loaded: true, machine_id: "sim".to_owned(), ..Observed::default() })
    }

    /// Gives a PF firmware that can be told, and runs as it is told now.
    pub(crate) fn give_firmware(&self, pf: PciAddress, totalvfs: u16) {
        self.change(|state| {
            let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).unwrap();
            (found.vendor, found.driver, found.totalvfs) = (VendorId(0x15b3), Some("mlx5_core".to_owned()), totalvfs);
            found.facts.firmware_settings = FirmwareSettings { enable_sriov: Some(totalvfs > 0), total_vfs: Some(u32::from(totalvfs)) };
            state.boot_id = "boot 0".to_owned();
        });
    }

    /// From now on firmware starts as it was.
    pub(crate) fn make_stubborn(&self) {
        self.notes().stubborn = true;
    }

    /// Starts the machine anew: what firmware was told counts, VFs are gone.
    pub(crate) fn reboot(&self) {
        let (mut state, stubborn) = (self.state.lock().unwrap(), self.notes().stubborn);
        state.boot_id.push('+');
        state.autoprobe_off.clear();
        state.vfs_in_use.clear();
        for pf in &mut state.inventory.pfs {
            (pf.numvfs, pf.vfs, pf.eswitch_mode) = (0, Vec::new(), EswitchMode::Legacy);
            let told = &pf.facts.firmware_settings;
            if stubborn || !told.is_offered() {
                continue;
            }
            let total = if told.enable_sriov == Some(false) { 0 } else { told.total_vfs.unwrap_or(7) };
            let total = u16::try_from(total).unwrap();
            if total < pf.totalvfs {
                self.crime(format!("{}: its firmware allows {total} VFs after a reboot, and allowed {} before", pf.address, pf.totalvfs));
            }
            pf.totalvfs = total;
        }
    }

    /// What `mlx5_core` does (nv_param.c, v6.18): the first setting ends the count for the whole card.
    fn tell_firmware(&self, state: &mut Observed, pf: PciAddress, settings: &FirmwareSettings) -> Result<(), StepError> {
        let card: Vec<&mut Pf> = state.inventory.pfs.iter_mut().filter(|p| p.address.slot() == pf.slot()).collect();
        for member in card {
            let told = &mut member.facts.firmware_settings;
            if member.address == pf {
                if told.is_offered() && settings.total_vfs.is_some_and(|total| total < u32::from(member.totalvfs)) {
                    self.crime(format!("{pf}: its firmware was told fewer VFs than it runs with"));
                }
                if (told.total_vfs.is_none() && settings.total_vfs.is_some()) || (told.enable_sriov.is_none() && settings.enable_sriov.is_some()) {
                    return Err(StepError::refused("no such parameter"));
                }
                *told = settings.clone();
                self.notes().counts_alone.insert(pf);
            } else if told.is_offered() && !self.notes().counts_alone.contains(&member.address) {
                *told = FirmwareSettings { enable_sriov: told.enable_sriov.map(|_| false), total_vfs: told.total_vfs.map(|_| 0) };
                self.notes().counts_alone.insert(member.address);
            }
        }
        Ok(())
    }

    /// The next step whose text begins so fails.
    pub(crate) fn fail_once_on(&self, beginning: &str) {
        self.notes().fail_once = Some(beginning.to_owned());
    }

    /// The step with this number, counted from now, fails.
    pub(crate) fn fail_step(&self, number: usize) {
        let mut notes = self.notes();
        notes.fail_at = Some(notes.log.len() + number);
    }

    /// Lets a test be the rest of the world.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.state.lock().unwrap());
    }

    /// VFs as a stranger makes them: autoprobe on, random MACs.
    pub(crate) fn make_vfs(&self, pf: PciAddress, count: u16) {
        let mut state = self.state.lock().unwrap();
        let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).unwrap();
        found.numvfs = count;
        found.vfs = (0..count).map(|i| fresh_vf(found, VfIndex(i))).collect();
        for vf in &mut found.vfs {
            self.probe(vf);
        }
    }

    /// Writes a step down; answers whether it was told to fail.
    fn begin(&self, text: &str) -> bool {
        let mut notes = self.notes();
        notes.hidden = false;
        let once = notes.fail_once.take_if(|beginning| text.starts_with(beginning.as_str())).is_some();
        let fails = once || notes.fail_at == Some(notes.log.len());
        notes.log.push(text.to_owned());
        fails
    }

    fn crime(&self, text: String) {
        self.notes().crimes.push(text);
    }

    fn next_mac(&self) -> MacAddr {
        let mut notes = self.notes();
        notes.random += 1;
        let [a, b] = notes.random.to_be_bytes();
        MacAddr([0x02, 0xff, 0xff, 0, a, b])
    }

    fn probe(&self, vf: &mut Vf) {
        let admin = vf.attributes.as_ref().map_or(MacAddr::ZERO, |a| a.mac);
        let mac = if admin.is_zero() { self.next_mac() } else { admin };
        let name = format!("vf{}", vf.address);
        vf.driver = Some("igbvf".to_owned());
        vf.netdev = Some(netdev(100 + u32::from(vf.address.routing_id()), &name, mac));
    }

    fn set_numvfs(&self, state: &mut Observed, pf: PciAddress, to: u16) -> Result<(), StepError> {
        let autoprobe = !state.autoprobe_off.contains(&pf);
        let in_use: Vec<PciAddress> = state.vfs_in_use.keys().copied().collect();
        let bridges = state.bridges.clone();
        let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).ok_or_else(|| StepError::refused("no such PF"))?;
        if to > found.totalvfs {
            return Err(StepError::refused("ERANGE"));
        }
        if found.numvfs > 0 && to > 0 {
            self.crime(format!("{pf}: numvfs {} to {to} without 0 between", found.numvfs));
            return Err(StepError::refused("EBUSY"));
        }
        for vf in found.vfs.iter().filter(|vf| in_use.contains(&vf.address) || !vf.facts.uses.is_empty()) {
            self.crime(format!("VF {} removed while in use", vf.address));
        }
        self.look_for_bridge(bridges.as_ref(), found, "numvfs written");
        let family = Family::of(found);
        if family.traffic == Traffic::Stops && !found.facts.uses.is_empty() {
            self.crime(format!("{pf}: the host's traffic was stopped"));
        }
        if family.driver == "bnxt_en" && found.netdev.as_ref().is_none_or(|netdev| !netdev.admin_up) {
            self.crime(format!("{pf}: numvfs written while it is down"));
            return Ok(());
        }
        if family.eswitch == Eswitch::AfterVfs {
            if to > 0 && found.eswitch_mode == EswitchMode::Switchdev {
                self.crime(format!("{pf}: VFs made in switchdev mode"));
            }
            found.eswitch_mode = EswitchMode::Legacy;
        }
        found.numvfs = to;
        found.vfs = (0..to).map(|i| fresh_vf(found, VfIndex(i))).collect();
        if autoprobe {
            for vf in &mut found.vfs {
                self.probe(vf);
            }
        }
        represent(found);
        let mut notes = self.notes();
        if to > 0 && std::mem::take(&mut notes.late) {
            notes.hidden = true;
            return Err(StepError::refused("the VFs did not appear in time"));
        }
        Ok(())
    }

    fn set_eswitch(&self, state: &mut Observed, pf: PciAddress, mode: EswitchMode) -> Result<(), StepError> {
        let bridges = state.bridges.clone();
        let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).ok_or_else(|| StepError::refused("no such PF"))?;
        if found.eswitch_mode == mode {
            return Ok(());
        }
        self.look_for_bridge(bridges.as_ref(), found, "eswitch mode set");
        if !found.facts.uses.is_empty() {
            self.crime(format!("{pf}: the netdev that the host uses was taken away"));
        }
        let wrong = match (Family::of(found).eswitch, mode) {
            (Eswitch::Missing, _) => true,
            (Eswitch::BeforeVfs, _) => found.numvfs > 0,
            (Eswitch::AfterVfs, EswitchMode::Switchdev) => found.numvfs == 0 || found.vfs.iter().any(|vf| vf.driver.is_some()),
            (Eswitch::AfterVfs, EswitchMode::Legacy) => found.vfs.iter().any(|vf| vf.driver.is_some()),
        };
        if wrong {
            self.crime(format!("{pf}: eswitch mode {mode:?} set at the wrong time"));
            return Err(StepError::refused("EOPNOTSUPP"));
        }
        found.eswitch_mode = mode;
        represent(found);
        Ok(())
    }

    fn vf_step(&self, state: &mut Observed, step: &Step, index: VfIndex) -> Result<(), StepError> {
        let address = step.pf().unwrap();
        let autoprobe = !state.autoprobe_off.contains(&address);
        let in_use = state.vfs_in_use.clone();
        let vdpa_drivers = state.vdpa_drivers.clone();
        let pf = state.inventory.pfs.iter_mut().find(|p| p.address == address);
        let vf = pf.and_then(|pf| pf.vfs.iter_mut().find(|vf| vf.index == index)).ok_or_else(|| StepError::refused("no such VF"))?;
        if in_use.contains_key(&vf.address) || !vf.facts.uses.is_empty() {
            self.crime(format!("VF {} changed while in use: {step}", vf.address));
        }
        match step {
            Step::SetAdminMac { mac, .. } => match &mut vf.attributes {
                Some(attributes) => attributes.mac = *mac,
                None => return Err(StepError::refused("EOPNOTSUPP")),
            },
            Step::SetVfGuid { guid, .. } => {
                match &mut vf.attributes {
                    Some(attributes) => (attributes.node_guid, attributes.port_guid) = (Some(*guid), Some(*guid)),
                    None => return Err(StepError::refused("EOPNOTSUPP")),
                }
                (vf.netdev, vf.driver, vf.facts.vdpa) = (None, None, None);
            }
            Step::MakeVdpa { .. } if vf.netdev.is_none() => return Err(StepError::refused("ENODEV: no driver that offers vDPA")),
            Step::MakeVdpa { kind, .. } if !vdpa_drivers.contains(kind.driver()) => return Err(StepError::refused("ENOENT: no such driver")),
            Step::MakeVdpa { kind, .. } => {
                let name = vf.facts.vdpa.take().map_or_else(|| sriov_host::vdpa::name_of(vf.address), |vdpa| vdpa.name);
                vf.facts.vdpa = Some(Vdpa { name, driver: Some(kind.driver().to_owned()), node: None });
            }
            Step::RemoveVdpa { .. } => vf.facts.vdpa = None,
            Step::BindDriver { driver: Driver::VfioPci, .. } => {
                (vf.netdev, vf.facts.vdpa) = (None, None);
                vf.driver = Some(VFIO_PCI.to_owned());
            }
            Step::BindDriver { driver: Driver::KernelDefault, .. } if !autoprobe => {
                return Err(StepError::refused("ENODEV: autoprobe is off"));
            }
            // As the host's verb: a VF that has a kernel driver is left alone.
            Step::BindDriver { driver: Driver::KernelDefault, .. } if Driver::KernelDefault.is(vf.driver.as_deref()) => {}
            Step::BindDriver { driver: Driver::KernelDefault, .. } => self.probe(vf),
            Step::SetVfMtu { mtu, .. } => match &mut vf.netdev {
                Some(netdev) => netdev.mtu = *mtu,
                None => return Err(StepError::refused("ENODEV")),
            },
            _ => return Err(StepError::refused("not a VF step")),
        }
        Ok(())
    }
}

/// Open vSwitch.
impl Sim {
    /// No PF may change under a bridge that it is the uplink of.
    fn look_for_bridge(&self, bridges: Option<&Bridges>, pf: &Pf, what: &str) {
        if pf.netdev.as_ref().is_some_and(|netdev| bridges.is_some_and(|bridges| bridges.with_interface(&netdev.name).is_some())) {
            self.crime(format!("{}: {what} while it is the uplink of a bridge", pf.address));
        }
    }

    fn bridge_step(&self, state: &mut Observed, step: &Step) -> Result<(), StepError> {
        let seen = state.clone();
        let pf = step.pf().and_then(|pf| seen.pf(pf));
        let bridges = state.bridges.as_mut().ok_or_else(|| StepError::refused("nobody manages bridges"))?;
        match step {
            Step::RemoveBridge { name, .. } => {
                if !bridges.kept.contains_key(name) {
                    self.crime(format!("the bridge {name} of a stranger was removed"));
                }
                let there = bridges.found.get(name);
                let is_port =
                    |vf: &&Vf| vf.facts.representor.as_ref().is_some_and(|port| there.is_some_and(|bridge| bridge.interface(port).is_some()));
                let users = pf.into_iter().flat_map(|pf| pf.vfs.iter().filter(is_port).filter_map(|vf| seen.user_of(pf, vf)));
                if users.count() > 0 {
                    self.crime(format!("bridge {name} removed under a VF in use"));
                }
                bridges.kept.remove(name);
                bridges.found.remove(name);
            }
            Step::MakeBridge { pf: address, wanted, netdev } => {
                if pf.is_none_or(|pf| pf.eswitch_mode != EswitchMode::Switchdev || !pf.facts.uses.is_empty()) {
                    self.crime(format!("{address}: a bridge that it cannot be in"));
                }
                if bridges.found.contains_key(&wanted.name) || bridges.with_interface(netdev).is_some() {
                    return Err(StepError::refused("constraint violation"));
                }
                let record = wanted.record(*address, netdev);
                bridges.found.insert(wanted.name.clone(), as_made(&record));
                bridges.kept.insert(wanted.name.clone(), record);
            }
            Step::CorrectBridge { pf: address, wanted, netdev } => {
                if !bridges.found.contains_key(&wanted.name) || !bridges.kept.contains_key(&wanted.name) {
                    return Err(StepError::refused("no such bridge"));
                }
                let record = wanted.record(*address, netdev);
                let mut made = as_made(&record);
                if let Some(there) = bridges.found.remove(&wanted.name) {
                    made.interfaces.extend(there.interfaces.into_iter().filter(|port| port.name != *netdev));
                }
                bridges.found.insert(wanted.name.clone(), made);
                bridges.kept.insert(wanted.name.clone(), record);
            }
            _ => {}
        }
        Ok(())
    }
}

/// A bridge as the database has it when it was made so.
pub(crate) fn as_made(record: &OvsBridge) -> Found {
    let bridge = record.bridge.clone().unwrap_or_default();
    let uplink = record.uplinks[0].clone();
    let interface = uplink.interface.unwrap_or_default();
    let interface = FoundInterface {
        name: uplink.name.unwrap_or_default(),
        port: "port".to_owned(),
        kind: interface.kind,
        options: interface.options,
        external_ids: interface.external_ids,
        other_config: interface.other_config,
        mtu_request: interface.mtu_request,
        error: None,
        ofport: Some(1),
    };
    Found {
        uuid: "bridge".to_owned(),
        datapath_type: bridge.datapath_type,
        fail_mode: bridge.fail_mode,
        external_ids: bridge.external_ids,
        other_config: bridge.other_config,
        interfaces: vec![interface],
    }
}

impl Machine for Sim {
    fn observe(&self) -> Result<Observed, ObserveError> {
        let mut seen = self.state.lock().unwrap().clone();
        if self.notes().hidden {
            seen.inventory.pfs.iter_mut().for_each(|pf| pf.vfs.clear());
        }
        Ok(seen)
    }

    fn perform(&self, step: &Step) -> Result<(), StepError> {
        if self.begin(&step.to_string()) {
            return Err(StepError::refused("told to fail"));
        }
        let mut state = self.state.lock().unwrap();
        if let Some(vf) = step.vf() {
            return self.vf_step(&mut state, step, vf);
        }
        match step {
            Step::RecordOwnership { pf, record } => _ = state.records.insert(*pf, record.as_ref().clone()),
            Step::Forget { pf } => _ = state.records.remove(pf),
            Step::SetAutoprobe { pf, on: true } => _ = state.autoprobe_off.remove(pf),
            Step::SetAutoprobe { pf, on: false } => _ = state.autoprobe_off.insert(*pf),
            Step::SetNumVfs { pf, to, .. } => return self.set_numvfs(&mut state, *pf, *to),
            Step::SetEswitchMode { pf, mode } => return self.set_eswitch(&mut state, *pf, *mode),
            Step::LoadModule { module } if module == VFIO_PCI => state.vfio_pci_loaded = true,
            Step::StageRdmaMode { mode } => state.staged_rdma_mode = *mode,
            Step::SetRdmaMode { mode } => state.inventory.kernel.rdma_mode = Some(*mode),
            Step::SetPfUp { pf } | Step::SetPfMtu { pf, .. } => {
                let found = state.inventory.pfs.iter_mut().find(|p| p.address == *pf).and_then(|p| p.netdev.as_mut());
                let netdev = found.ok_or_else(|| StepError::refused("ENODEV"))?;
                match step {
                    Step::SetPfMtu { to, .. } => netdev.mtu = *to,
                    _ => netdev.admin_up = true,
                }
                if state.inventory.pfs.iter().any(|p| p.address == *pf && !p.facts.uses.is_empty()) && matches!(step, Step::SetPfMtu { .. }) {
                    self.crime(format!("{pf}: the MTU of a port that the host uses was changed"));
                }
            }
            Step::StageFirmware { pf, settings, .. } | Step::KeepFirmware { pf, settings } => {
                let before = if let Step::StageFirmware { before, .. } = step { before } else { settings };
                let staging = Staging { boot: state.boot_id.clone(), before: before.clone(), wanted: settings.clone() };
                state.staged_firmware.insert(*pf, staging);
                return self.tell_firmware(&mut state, *pf, settings);
            }
            Step::UnstageFirmware { pf, settings } => {
                state.staged_firmware.remove(pf);
                if settings.is_offered() {
                    return self.tell_firmware(&mut state, *pf, settings);
                }
            }
            Step::AllowNoIommu => state.vfio_without_iommu = true,
            Step::LoadModule { module } => {
                if state.vdpa_drivers_loadable.remove(module) {
                    state.vdpa_drivers.insert(module.clone());
                }
            }
            Step::NameRepresentors { pf, base } => {
                let found = state.inventory.pfs.iter_mut().find(|p| p.address == *pf).ok_or_else(|| StepError::refused("no such PF"))?;
                for vf in found.vfs.iter_mut().filter(|vf| vf.facts.representor_idle) {
                    vf.facts.representor = Some(format!("{base}_{}", vf.index));
                }
            }
            Step::MakeBridge { .. } | Step::CorrectBridge { .. } | Step::RemoveBridge { .. } => return self.bridge_step(&mut state, step),
            Step::EnableOffload { .. }
            | Step::SetSteering { .. }
            | Step::SetAdminMac { .. }
            | Step::SetVfGuid { .. }
            | Step::MakeVdpa { .. }
            | Step::RemoveVdpa { .. }
            | Step::BindDriver { .. }
            | Step::SetVfMtu { .. } => {}
        }
        Ok(())
    }
}

/// Switchdev mode makes a representor for each VF, which the kernel names as it likes; legacy mode takes them away.
fn represent(pf: &mut Pf) {
    let switchdev = pf.eswitch_mode == EswitchMode::Switchdev;
    for vf in pf.vfs.iter_mut().filter(|vf| !switchdev || vf.facts.representor.is_none()) {
        vf.facts.representor = switchdev.then(|| format!("eth{}", vf.address.routing_id()));
        vf.facts.representor_idle = switchdev;
    }
}

fn idle_pf(address: PciAddress, ifindex: u32) -> Pf {
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, ifindex.to_be_bytes()[3]]);
    Pf {
        address,
        vendor: VendorId(0x8086),
        device: DeviceId(0x10c9),
        vf_device: Some(DeviceId(0x10ca)),
        driver: Some("igb".to_owned()),
        totalvfs: 7,
        numvfs: 0,
        numa_node: None,
        eswitch_mode: EswitchMode::Legacy,
        netdev: Some(Netdev { admin_up: false, ..netdev(ifindex, &format!("pf{ifindex}"), mac) }),
        link_speed_mbps: Some(1000),
        vfs: Vec::new(),
        facts: Facts::default(),
    }
}

fn netdev(ifindex: u32, name: &str, mac: MacAddr) -> Netdev {
    Netdev {
        ifindex,
        name: name.to_owned(),
        alt_names: Vec::new(),
        mac: Some(mac),
        mtu: 1500,
        max_mtu: Some(9216),
        admin_up: true,
        carrier: true,
        link_type: LinkType::Ether,
    }
}

fn fresh_vf(pf: &Pf, index: VfIndex) -> Vf {
    let attributes = VfAttributes { link_state: None, ..VfAttributes::fresh(index) };
    Vf {
        index,
        address: pf.address.offset(128 + 2 * u32::from(index.0)).unwrap(),
        vendor: pf.vendor,
        device: DeviceId(0x10ca),
        driver: None,
        iommu_group: Some(10 + u32::from(index.0)),
        numa_node: None,
        netdev: None,
        attributes: Some(attributes),
        facts: Facts::default(),
    }
}
