//! Pure (tests): a kernel with state, as far as SR-IOV goes.
//!
//! What it does as the real one does (spec/lab notes on igb, kernel 6.12): numvfs from N to M is EBUSY, above totalvfs ERANGE; 0 drops VFs with
//! their settings; VFs may be seen late; they get a driver by themselves only when autoprobe is on; VFs of a PF whose autoprobe is off cannot get their kernel driver; a VF
//! probes with its administrative MAC, or with a random one; an administrative MAC does not reach a netdev that exists; the netdev is gone while
//! another driver has the VF. Any step can be told to fail.
//!
//! Invariant: it counts what must never happen (`crimes`), so that tests need not look for it.

use std::cell::{Cell, RefCell};

use sriov_host::inventory::{EswitchMode, Inventory, Iommu, LinkType, Netdev, Pf, Vf};
use sriov_host::mac::MacAddr;
use sriov_host::pci::{DeviceId, PciAddress, VendorId};
use sriov_host::rate::Mbps;
use sriov_host::vf::{VfAttributes, VfIndex, VfVlan};

use super::{Machine, ObserveError, StepError};
use crate::observed::Observed;
use crate::plan::step::{Driver, Step, VFIO_PCI};

pub(crate) struct Sim {
    state: RefCell<Observed>,
    fail_once: RefCell<Option<String>>,
    fail_at: Cell<Option<usize>>,
    /// The next VFs that are made are seen only after another step.
    pub(crate) late: Cell<bool>,
    hidden: Cell<bool>,
    /// Steps performed or failed so far, in words.
    pub(crate) log: RefCell<Vec<String>>,
    /// What must never happen.
    pub(crate) crimes: RefCell<Vec<String>>,
    random: Cell<u16>,
}

impl Sim {
    pub(crate) fn new(state: Observed) -> Self {
        let (fail_once, log, crimes) = (RefCell::default(), RefCell::default(), RefCell::default());
        let (late, hidden) = (Cell::new(false), Cell::new(false));
        Self { state: RefCell::new(state), fail_once, fail_at: Cell::new(None), late, hidden, log, crimes, random: Cell::new(1) }
    }

    /// A machine with idle igb PFs at these addresses, an IOMMU and vfio-pci.
    pub(crate) fn with_pfs(addresses: &[&str]) -> Self {
        let pfs = addresses.iter().enumerate().map(|(i, address)| idle_pf(address.parse().unwrap(), u32::try_from(i).unwrap() + 2)).collect();
        let iommu = Iommu { active: true, command_line: "intel_iommu=on".to_owned() };
        let inventory = Inventory { iommu, pfs };
        Self::new(Observed { inventory, vfio_pci_loaded: true, machine_id: "sim".to_owned(), ..Observed::default() })
    }

    /// The next step whose text begins so fails.
    pub(crate) fn fail_once_on(&self, beginning: &str) {
        *self.fail_once.borrow_mut() = Some(beginning.to_owned());
    }

    /// The step with this number, counted from now, fails.
    pub(crate) fn fail_step(&self, number: usize) {
        self.fail_at.set(Some(self.log.borrow().len() + number));
    }

    /// Lets a test be the rest of the world.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.state.borrow_mut());
    }

    /// VFs as a stranger makes them: autoprobe on, random MACs.
    pub(crate) fn make_vfs(&self, pf: PciAddress, count: u16) {
        let mut state = self.state.borrow_mut();
        let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).unwrap();
        found.numvfs = count;
        found.vfs = (0..count).map(|i| fresh_vf(found, VfIndex(i))).collect();
        for vf in &mut found.vfs {
            self.probe(vf);
        }
    }

    fn told_to_fail(&self, text: &str) -> bool {
        let once = self.fail_once.borrow_mut().take_if(|beginning| text.starts_with(beginning.as_str())).is_some();
        once || self.fail_at.get() == Some(self.log.borrow().len())
    }

    fn crime(&self, text: String) {
        self.crimes.borrow_mut().push(text);
    }

    fn next_mac(&self) -> MacAddr {
        self.random.set(self.random.get() + 1);
        let [a, b] = self.random.get().to_be_bytes();
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
        let found = state.inventory.pfs.iter_mut().find(|p| p.address == pf).ok_or_else(|| StepError::Refused("no such PF".to_owned()))?;
        if to > found.totalvfs {
            return Err(StepError::Refused("ERANGE".to_owned()));
        }
        if found.numvfs > 0 && to > 0 {
            self.crime(format!("{pf}: numvfs {} to {to} without 0 between", found.numvfs));
            return Err(StepError::Refused("EBUSY".to_owned()));
        }
        for vf in found.vfs.iter().filter(|vf| in_use.contains(&vf.address)) {
            self.crime(format!("VF {} removed while in use", vf.address));
        }
        found.numvfs = to;
        found.vfs = (0..to).map(|i| fresh_vf(found, VfIndex(i))).collect();
        if autoprobe {
            for vf in &mut found.vfs {
                self.probe(vf);
            }
        }
        if to > 0 && self.late.take() {
            self.hidden.set(true);
            return Err(StepError::Refused("the VFs did not appear in time".to_owned()));
        }
        Ok(())
    }

    fn vf_step(&self, state: &mut Observed, step: &Step, index: VfIndex) -> Result<(), StepError> {
        let autoprobe = !state.autoprobe_off.contains(&step.pf());
        let in_use = state.vfs_in_use.clone();
        let pf = state.inventory.pfs.iter_mut().find(|p| p.address == step.pf());
        let vf = pf.and_then(|pf| pf.vfs.iter_mut().find(|vf| vf.index == index)).ok_or_else(|| StepError::Refused("no such VF".to_owned()))?;
        if in_use.contains_key(&vf.address) {
            self.crime(format!("VF {} changed while in use: {step}", vf.address));
        }
        match step {
            Step::SetAdminMac { mac, .. } => match &mut vf.attributes {
                Some(attributes) => attributes.mac = *mac,
                None => return Err(StepError::Refused("EOPNOTSUPP".to_owned())),
            },
            Step::BindDriver { driver: Driver::VfioPci, .. } => {
                vf.netdev = None;
                vf.driver = Some(VFIO_PCI.to_owned());
            }
            Step::BindDriver { driver: Driver::KernelDefault, .. } if !autoprobe => {
                return Err(StepError::Refused("ENODEV: autoprobe is off".to_owned()));
            }
            Step::BindDriver { driver: Driver::KernelDefault, .. } => self.probe(vf),
            Step::SetVfMtu { mtu, .. } => match &mut vf.netdev {
                Some(netdev) => netdev.mtu = *mtu,
                None => return Err(StepError::Refused("ENODEV".to_owned())),
            },
            _ => return Err(StepError::Refused("not a VF step".to_owned())),
        }
        Ok(())
    }
}

impl Machine for Sim {
    fn observe(&self) -> Result<Observed, ObserveError> {
        let mut seen = self.state.borrow().clone();
        if self.hidden.get() {
            seen.inventory.pfs.iter_mut().for_each(|pf| pf.vfs.clear());
        }
        Ok(seen)
    }

    fn perform(&self, step: &Step) -> Result<(), StepError> {
        self.hidden.set(false);
        let text = step.to_string();
        let fail = self.told_to_fail(&text);
        self.log.borrow_mut().push(text);
        if fail {
            return Err(StepError::Refused("told to fail".to_owned()));
        }
        let mut state = self.state.borrow_mut();
        if let Some(vf) = step.vf() {
            return self.vf_step(&mut state, step, vf);
        }
        match step {
            Step::RecordOwnership { pf, record } => _ = state.records.insert(*pf, record.as_ref().clone()),
            Step::Forget { pf } => _ = state.records.remove(pf),
            Step::SetAutoprobe { pf, on: true } => _ = state.autoprobe_off.remove(pf),
            Step::SetAutoprobe { pf, on: false } => _ = state.autoprobe_off.insert(*pf),
            Step::SetNumVfs { pf, to, .. } => return self.set_numvfs(&mut state, *pf, *to),
            Step::SetPfUp { pf } | Step::SetPfMtu { pf, .. } => {
                let found = state.inventory.pfs.iter_mut().find(|p| p.address == *pf).and_then(|p| p.netdev.as_mut());
                let netdev = found.ok_or_else(|| StepError::Refused("ENODEV".to_owned()))?;
                match step {
                    Step::SetPfMtu { to, .. } => netdev.mtu = *to,
                    _ => netdev.admin_up = true,
                }
            }
            Step::SetAdminMac { .. } | Step::BindDriver { .. } | Step::SetVfMtu { .. } => {}
        }
        Ok(())
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
    let attributes = VfAttributes {
        index,
        mac: MacAddr::ZERO,
        vlan: VfVlan::default(),
        min_tx_rate: Mbps(0),
        max_tx_rate: Mbps(0),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: None,
    };
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
    }
}
