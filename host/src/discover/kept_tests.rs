//! I/O (tests): looks that begin with the last one, on machines that are values: what they find is what a whole look finds, and what they cost does not
//! depend on the other PFs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::host_use::HostNetwork;
use crate::inventory::{EswitchMode, FirmwareSettings, RdmaMode};
use crate::mac::MacAddr;
use crate::netlink::{InterfaceAddress, NetlinkError, Stack};
use crate::sysfs::OPERATIONS;
use crate::testing::{SysfsTree, link};
use crate::uevent::Uevent;
use crate::vf::{VfAttributes, VfIndex, VfVlan};

/// A VF of the model.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each may change alone")]
struct Vf {
    driver: Option<&'static str>,
    in_pod: bool,
    vdpa: bool,
    rdma: bool,
    mac: u8,
    /// Of its representor.
    renamed: bool,
    up: bool,
}

/// A PF of the model.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each may change alone")]
struct Nic {
    present: bool,
    bound: bool,
    switchdev: bool,
    mtu: u32,
    vlan: bool,
    bonded: bool,
    /// An address on the PF, or on its VLAN.
    address: Option<bool>,
    vfs: Vec<Vf>,
}

/// A machine: PFs `0000:<n+1>:00.0`, of which the first two are ports of one hardware switch.
#[derive(Clone, Debug)]
struct World {
    nics: Vec<Nic>,
}

const BOND: u32 = 9;

fn pf_address(nic: usize) -> String {
    format!("0000:{:02x}:00.0", nic + 1)
}

fn vf_address(nic: usize, vf: usize) -> String {
    format!("0000:{:02x}:10.{vf}", nic + 1)
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn index_of(nic: usize, what: usize) -> u32 {
    u32::try_from((nic + 1) * 100 + what).unwrap()
}

/// Interface indexes of a PF's netdev, its VLAN, its VFs' netdevs and their representors.
fn pf_link(nic: usize) -> u32 {
    index_of(nic, 0)
}

fn vlan_link(nic: usize) -> u32 {
    index_of(nic, 1)
}

fn vf_link(nic: usize, vf: usize) -> u32 {
    index_of(nic, 10 + vf)
}

fn representor_link(nic: usize, vf: usize) -> u32 {
    index_of(nic, 50 + vf)
}

impl World {
    fn new(nics: usize, vfs: usize) -> Self {
        let vf = Vf { driver: Some("mlx5_core"), ..Vf::default() };
        let nic = Nic { present: true, bound: true, mtu: 1500, vfs: vec![vf; vfs], ..Nic::default() };
        Self { nics: vec![nic; nics] }
    }

    fn tree(&self) -> SysfsTree {
        let mut tree = SysfsTree::new().file("/sys/class/iommu/dmar0/version", "1\n").dir("/sys/kernel/iommu_groups/0").dir("/sys/bus/vdpa/devices");
        for (number, nic) in self.nics.iter().enumerate().filter(|(_, nic)| nic.present) {
            let device = format!("/sys/bus/pci/devices/{}", pf_address(number));
            tree = function(tree, &device, "0x101d", nic.bound.then_some("mlx5_core"))
                .file(&format!("{device}/sriov_totalvfs"), "8\n")
                .file(&format!("{device}/sriov_numvfs"), &format!("{}\n", nic.vfs.len()));
            for (index, vf) in nic.vfs.iter().enumerate() {
                let (at, folder) = (vf_address(number, index), format!("/sys/bus/pci/devices/{}", vf_address(number, index)));
                tree = function(tree, &folder, "0x101e", vf.driver)
                    .link(&format!("{device}/virtfn{index}"), &format!("../{at}"))
                    .link(&format!("{folder}/physfn"), &format!("../{}", pf_address(number)));
                if vf.rdma {
                    tree = tree.dir(&format!("{folder}/infiniband/mlx5_{number}_{index}"));
                }
                if vf.vdpa {
                    tree = tree.link(&format!("/sys/bus/vdpa/devices/vdpa:{at}"), &format!("../../../devices/pci0000:00/{at}/vdpa:{at}"));
                }
            }
        }
        tree
    }

    fn facts(&self) -> NetFacts {
        let mut facts = NetFacts::default();
        for (number, nic) in self.nics.iter().enumerate().filter(|(_, nic)| nic.present) {
            facts.firmware.insert(address(&pf_address(number)), "1".to_owned());
            facts.eswitch_modes.insert(address(&pf_address(number)), if nic.switchdev { EswitchMode::Switchdev } else { EswitchMode::Legacy });
            let switch_id = nic.switchdev.then(|| if number < 2 { "aa".to_owned() } else { format!("b{number}") });
            let of_switch = Stack { switch_id, ..Stack::default() };
            for (index, _) in nic.vfs.iter().enumerate().filter(|(_, vf)| vf.driver == Some("mlx5_core") && !vf.in_pod) {
                facts.links.push(of(&vf_address(number, index), link(vf_link(number, index), &format!("v{number}_{index}"))));
            }
            for (index, vf) in nic.vfs.iter().enumerate().filter(|_| nic.switchdev) {
                let name = format!("{}{number}_{index}", if vf.renamed { "rep" } else { "eth" });
                let mut port = of(&pf_address(number), link(representor_link(number, index), &name));
                (port.phys_port_name, port.netdev.admin_up) = (Some(format!("pf{number}vf{index}")), vf.up);
                facts.links.push(Link { stack: of_switch.clone(), ..port });
            }
            if nic.bound {
                let mut uplink = of(&pf_address(number), link(pf_link(number), &format!("p{number}")));
                uplink.netdev.mtu = nic.mtu;
                // Ports are counted from 1 here, so that a port alone in its switch is joined otherwise than one of two.
                uplink.phys_port_name = nic.switchdev.then(|| format!("p{}", number + 1));
                facts.links.push(Link { stack: Stack { master: nic.bonded.then_some(BOND), ..of_switch }, ..uplink });
                facts.vf_attributes.insert(pf_link(number), (0..nic.vfs.len()).map(|index| attributes(index, nic.vfs[index].mac)).collect());
            }
            if nic.bound && nic.vlan {
                let stack = Stack { lower: Some(pf_link(number)), kind: Some("vlan".to_owned()), ..Stack::default() };
                facts.links.push(Link { stack, ..link(vlan_link(number), &format!("p{number}.7")) });
            }
            if let Some(on_vlan) = nic.address {
                let found: IpAddr = [10, 0, 0, 5].into();
                let found = InterfaceAddress { address: found, prefix: 24, tentative: false, dad_failed: false, link_local: false };
                facts.network.addresses.push((if on_vlan { vlan_link(number) } else { pf_link(number) }, found));
            }
        }
        let stack = Stack { kind: Some("bond".to_owned()), ..Stack::default() };
        facts.links.push(Link { stack, ..link(BOND, "bond0") });
        facts.links.sort_by_key(|link| link.netdev.ifindex);
        facts
    }

    /// What the kernel announces when this machine has become that one, no more: the functions and links that differ.
    fn announce(&self, other: &Self, changes: &mut Changes) {
        let (before, after) = (self.facts(), other.facts());
        for ifindex in before.links.iter().chain(&after.links).map(|link| link.netdev.ifindex) {
            let find = |facts: &NetFacts| facts.links.iter().find(|link| link.netdev.ifindex == ifindex).cloned();
            let attributes = |facts: &NetFacts| facts.vf_attributes.get(&ifindex).cloned();
            if find(&before) != find(&after) || attributes(&before) != attributes(&after) {
                changes.add_link(ifindex);
            }
        }
        for (number, (before, after)) in self.nics.iter().zip(&other.nics).enumerate() {
            if (before.present, before.bound, before.switchdev, before.vfs.len()) != (after.present, after.bound, after.switchdev, after.vfs.len()) {
                changes.add_function(address(&pf_address(number)));
            }
            for index in 0..before.vfs.len().max(after.vfs.len()) {
                let shown = |nic: &Nic| nic.vfs.get(index).filter(|_| nic.present).map(|vf| (vf.driver, vf.in_pod, vf.vdpa, vf.rdma));
                if shown(before) != shown(after) {
                    changes.add_function(address(&vf_address(number, index)));
                }
            }
        }
    }

    /// One change, as somebody may make it.
    fn change(&mut self, what: u8, nic: usize, vf: usize) {
        let nic = &mut self.nics[nic];
        let mut with_vf = |change: fn(&mut Vf)| nic.vfs.get_mut(vf).into_iter().for_each(change);
        match what {
            0 => with_vf(|vf| vf.driver = Some("vfio-pci")),
            1 => with_vf(|vf| vf.driver = Some("mlx5_core")),
            2 => with_vf(|vf| vf.driver = None),
            3 => with_vf(|vf| vf.in_pod = !vf.in_pod),
            4 => with_vf(|vf| vf.vdpa = !vf.vdpa),
            5 => with_vf(|vf| vf.rdma = !vf.rdma),
            6 => with_vf(|vf| vf.mac += 1),
            7 => with_vf(|vf| vf.renamed = !vf.renamed),
            8 => with_vf(|vf| vf.up = !vf.up),
            9 => nic.vfs = vec![Vf { driver: Some("mlx5_core"), ..Vf::default() }; vf],
            10 => nic.mtu = if nic.mtu == 1500 { 9000 } else { 1500 },
            11 => nic.vlan = !nic.vlan,
            12 => nic.bonded = !nic.bonded,
            13 => nic.address = nic.address.map_or(Some(false), |on_vlan| (!on_vlan).then_some(true)),
            14 => nic.switchdev = !nic.switchdev,
            15 => nic.bound = !nic.bound,
            16 => *nic = Nic { present: !nic.present, bound: true, mtu: 1500, ..Nic::default() },
            _ => {}
        }
    }
}

fn function(tree: SysfsTree, device: &str, id: &str, driver: Option<&str>) -> SysfsTree {
    let tree = tree.file(&format!("{device}/vendor"), "0x15b3\n").file(&format!("{device}/device"), &format!("{id}\n"));
    let tree = tree.file(&format!("{device}/class"), "0x020000\n").file(&format!("{device}/numa_node"), "0\n");
    match driver {
        Some(driver) => tree.link(&format!("{device}/driver"), &format!("../../../../bus/pci/drivers/{driver}")),
        None => tree,
    }
}

fn of(parent: &str, link: Link) -> Link {
    Link { parent: Some(address(parent)), parent_device: Some(parent.to_owned()), ..link }
}

fn attributes(index: usize, mac: u8) -> VfAttributes {
    VfAttributes {
        index: VfIndex(u16::try_from(index).unwrap()),
        mac: MacAddr([2, 0, 0, 0, 0, mac]),
        vlan: VfVlan::default(),
        min_tx_rate: crate::rate::Mbps(0),
        max_tx_rate: crate::rate::Mbps(0),
        spoof_check: None,
        trust: None,
        link_state: None,
        node_guid: None,
        port_guid: None,
    }
}

/// Netlink as a value, counting what it is asked.
struct Counted<'a> {
    facts: &'a NetFacts,
    asked: Cell<usize>,
    /// The PF of which nothing can be said.
    mute: Option<PciAddress>,
}

impl<'a> Counted<'a> {
    fn new(facts: &'a NetFacts) -> Self {
        Self { facts, asked: Cell::new(0), mute: None }
    }

    fn facts(&self) -> &'a NetFacts {
        self.asked.set(self.asked.get() + 1);
        self.facts
    }
}

impl Answers for Counted<'_> {
    fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.facts().links()
    }

    fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        self.facts().link(ifindex)
    }

    fn network(&self, host: &Host) -> Result<HostNetwork, NetlinkError> {
        self.facts().network(host)
    }

    fn rdma_mode(&self) -> Option<RdmaMode> {
        self.facts().rdma_mode()
    }

    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
        if self.mute == Some(pf) {
            return Err(crate::netlink::Subject::new("read the eswitch mode", pf.to_string()).refused(5, None));
        }
        self.facts().eswitch_mode(pf)
    }

    fn firmware(&self, pf: PciAddress) -> Option<String> {
        self.facts().firmware(pf)
    }

    fn firmware_settings(&self, pf: PciAddress) -> FirmwareSettings {
        self.facts().firmware_settings(pf)
    }

    fn vfs(&self, ifindex: u32) -> Result<Vec<VfAttributes>, NetlinkError> {
        self.facts().vfs(ifindex)
    }
}

fn look(kept: &mut KeptSurvey, world: &World, changes: &Changes) -> Look {
    kept.look_with(&world.tree().build().unwrap().host(), &world.facts(), changes).unwrap()
}

/// A look at the changes, and what a whole look finds.
fn both(kept: &mut KeptSurvey, world: &World, changes: &Changes) -> (Look, Inventory) {
    let (fake, facts) = (world.tree().build().unwrap(), world.facts());
    let look = kept.look_with(&fake.host(), &facts, changes).unwrap();
    let survey = whole(&fake.host(), &facts).unwrap().1;
    assert!(survey.faults.is_empty(), "{:?}", survey.faults);
    (look, survey.inventory)
}

fn named(pfs: &[usize]) -> Read {
    Read::Pfs(pfs.iter().map(|pf| address(&pf_address(*pf))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several changes may come together before a look.
    #[test]
    fn after_any_changes_a_look_at_them_finds_what_a_whole_look_finds(
        steps in proptest::collection::vec((proptest::collection::vec((0u8..17, 0usize..3, 0usize..4), 1..4), any::<bool>()), 1..8)
    ) {
        let mut world = World::new(3, 2);
        let (mut kept, mut changes) = (KeptSurvey::default(), Changes::default());
        look(&mut kept, &world, &Changes::everything());
        for (ops, looks) in steps {
            for (what, nic, vf) in ops {
                let before = world.clone();
                world.change(what, nic, vf);
                before.announce(&world, &mut changes);
            }
            if looks {
                let (found, whole) = both(&mut kept, &world, &std::mem::take(&mut changes));
                prop_assert!(matches!(found.read, Read::Pfs(_)), "nothing here needs a whole look");
                prop_assert_eq!(found.survey.inventory, whole);
            }
        }
        let (found, whole) = both(&mut kept, &world, &changes);
        prop_assert_eq!(found.survey.inventory, whole);
    }
}

#[test]
fn what_an_event_costs_does_not_grow_with_the_other_pfs() {
    let cost = |nics: usize| {
        let mut world = World::new(nics, 4);
        let mut kept = KeptSurvey::default();
        let first = look(&mut kept, &world, &Changes::default());
        assert_eq!(first.read, Read::Everything, "the first look has nothing to begin with");
        let before = world.clone();
        world.change(0, 1, 2);
        let mut changes = Changes::default();
        before.announce(&world, &mut changes);
        let (fake, facts) = (world.tree().build().unwrap(), world.facts());
        let (answers, start) = (Counted::new(&facts), OPERATIONS.get());
        let again = kept.look_with(&fake.host(), &answers, &changes).unwrap();
        assert_eq!(again.read, named(&[1]));
        let cost = (OPERATIONS.get() - start, answers.asked.get());
        let (answers, start) = (Counted::new(&facts), OPERATIONS.get());
        whole(&fake.host(), &answers).unwrap();
        (cost, (OPERATIONS.get() - start, answers.asked.get()))
    };
    let ((few, whole_of_few), (many, whole_of_many)) = (cost(2), cost(12));
    assert_eq!(few, many, "files read and netlink questions for one VF's new driver, beside 1 and 11 other PFs");
    assert!(few.0 > 10 && few.1 > 2, "nothing was counted: {few:?}");
    assert!(whole_of_many.0 > 5 * whole_of_few.0 && whole_of_few.0 > few.0, "{few:?} {whole_of_few:?} {whole_of_many:?}");
}

#[test]
fn a_link_that_belongs_to_no_pf_costs_no_file_but_counts_for_what_the_host_uses() {
    let mut world = World::new(2, 1);
    let mut kept = KeptSurvey::default();
    look(&mut kept, &world, &Changes::default());
    world.nics[0].vlan = true;
    let mut changes = Changes::default();
    changes.add_link(vlan_link(0));
    let found = look(&mut kept, &world, &changes);
    assert_eq!(found.read, named(&[]));
    assert_eq!(found.survey.inventory.pfs[0].facts.uses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["p0.7 (vlan) stands on it"]);
}

#[test]
fn what_is_not_certain_is_a_whole_look() {
    let world = World::new(2, 1);
    let host = world.tree().build().unwrap();
    let (mut kept, mut facts) = (KeptSurvey::default(), world.facts());
    let mut read = |facts: &NetFacts, changes: &Changes, mute: Option<PciAddress>| {
        let look = kept.look_with(&host.host(), &Counted { mute, ..Counted::new(facts) }, changes).unwrap();
        (look.read, look.survey.faults.len())
    };
    let (nothing, mut of_second) = (Changes::default(), Changes::default());
    of_second.add_function(address(&pf_address(1)));
    assert_eq!(read(&facts, &nothing, None).0, Read::Everything);
    assert_eq!(read(&facts, &nothing, None).0, named(&[]));
    assert_eq!(read(&facts, &Changes::everything(), None).0, Read::Everything, "events were lost");
    assert_eq!(read(&facts, &of_second, Some(address(&pf_address(1)))), (named(&[1]), 1));
    assert_eq!(read(&facts, &nothing, None), (Read::Everything, 0), "a PF that could not be read is read again");
    facts.links.push(link(7000, "hardware"));
    let mut unknown = Changes::default();
    unknown.add_link(7000);
    assert_eq!(read(&facts, &unknown, None).0, Read::Everything, "a kernel that names no parents");
}

#[test]
fn a_look_that_fails_leaves_nothing_to_begin_with() {
    let world = World::new(1, 1);
    let (mut kept, facts, host) = (KeptSurvey::default(), world.facts(), world.tree().build().unwrap());
    let is_whole = |kept: &mut KeptSurvey| kept.look_with(&host.host(), &facts, &Changes::default()).unwrap().read == Read::Everything;
    assert!(is_whole(&mut kept) && !is_whole(&mut kept));
    let empty = SysfsTree::new().without("/sys/bus/pci").build().unwrap();
    assert!(kept.look_with(&empty.host(), &facts, &Changes::everything()).is_err());
    assert!(is_whole(&mut kept));
}

#[test]
fn facts_of_the_machine_stay_as_they_were_read() {
    let world = World::new(1, 1);
    let (mut kept, host) = (KeptSurvey::default(), world.tree().build().unwrap());
    let facts = NetFacts { rdma_mode: Some(RdmaMode::Exclusive), vf_attributes: BTreeMap::new(), ..world.facts() };
    kept.look_with(&host.host(), &facts, &Changes::default()).unwrap();
    let again = kept.look_with(&host.host(), &facts, &Changes::default()).unwrap().survey.inventory;
    assert_eq!((again.kernel.rdma_mode, again.iommu.command_line.as_str()), (Some(RdmaMode::Exclusive), "quiet"));
    // The RDMA core was loaded: its event names no device, and is no reason to read any.
    let mut loaded = Changes::default();
    let event = Uevent { action: "add".into(), devpath: "/module/ib_core".into(), subsystem: "module".into(), fields: BTreeMap::new() };
    assert!(loaded.add_device(&event));
    let later = NetFacts { rdma_mode: Some(RdmaMode::Shared), ..facts.clone() };
    let look = kept.look_with(&host.host(), &later, &loaded).unwrap();
    assert_eq!((look.read, look.survey.inventory.kernel.rdma_mode), (named(&[]), Some(RdmaMode::Shared)));
}

#[test]
fn what_firmware_is_told_is_asked_once_and_a_function_is_a_pf_as_soon_as_its_driver_tells() {
    let told = |total| FirmwareSettings { enable_sriov: Some(true), total_vfs: Some(total) };
    let (at, at_off) = (address(&pf_address(0)), address("0000:0f:00.0"));
    let off = format!("/sys/bus/pci/devices/{at_off}");
    let facts = |total| NetFacts { firmware_settings: [(at, told(total)), (at_off, told(8))].into(), ..World::new(1, 1).facts() };
    let base = World::new(1, 1).tree();
    let (without, with) = (function(base.clone(), &off, "0x101d", None), function(base, &off, "0x101d", Some("mlx5_core")));
    let mut kept = KeptSurvey::default();
    let mut read = |tree: &SysfsTree, total: u32, function: PciAddress| {
        let mut changes = Changes::default();
        changes.add_function(function);
        let found = kept.look_with(&tree.build().unwrap().host(), &facts(total), &changes).unwrap().survey.inventory.pfs;
        found.into_iter().map(|pf| (pf.address, pf.totalvfs, pf.facts.firmware_settings.total_vfs)).collect::<Vec<_>>()
    };
    assert_eq!(read(&without, 8, at), [(at, 8, Some(8))]);
    assert_eq!(read(&without, 16, at), [(at, 8, Some(8))], "an event of the PF is no reason to ask its firmware again");
    assert_eq!(read(&with, 16, at_off), [(at, 8, Some(8)), (at_off, 0, Some(8))]);
    assert_eq!(read(&without, 16, at_off), [(at, 8, Some(8))]);
}
