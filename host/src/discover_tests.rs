//! I/O (tests): the inventory of trees written by hand after what an emulated igb shows, with netlink's part given as values; and of the
//! machine that the tests run on.

use super::*;
use crate::inventory::LinkType;
use crate::mac::MacAddr;
use crate::netlink::{LinkChange, Route};
use crate::testing::{SysfsTree, igb_pf, new_netns};
use crate::vf::VfVlan;

const PF: &str = "0000:01:00.0";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn device(address: &str) -> String {
    format!("/sys/bus/pci/devices/{address}")
}

fn link(ifindex: u32, name: &str, parent: Option<&str>) -> Link {
    let netdev = Netdev {
        ifindex,
        name: name.to_owned(),
        alt_names: Vec::new(),
        mac: Some(MacAddr([0x52, 0x54, 0, 0xaa, 0, 1])),
        mtu: 1500,
        max_mtu: Some(9216),
        admin_up: true,
        carrier: true,
        link_type: LinkType::Ether,
    };
    Link {
        netdev,
        parent: parent.map(address),
        parent_device: parent.map(str::to_owned),
        phys_port_name: None,
        permanent_mac: None,
        port_guid: None,
        promisc: false,
        allmulti: false,
        stack: crate::netlink::Stack::default(),
    }
}

fn attributes(index: u16) -> VfAttributes {
    VfAttributes {
        index: VfIndex(index),
        mac: MacAddr::ZERO,
        vlan: VfVlan::default(),
        min_tx_rate: crate::rate::Mbps(0),
        max_tx_rate: crate::rate::Mbps(0),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: None,
        node_guid: None,
        port_guid: None,
    }
}

fn survey_of(tree: &SysfsTree, facts: &NetFacts) -> Survey {
    survey_with(&tree.build().unwrap().host(), facts).unwrap()
}

#[test]
fn a_pf_is_joined_with_its_netdev_and_its_vfs() {
    let tree = igb_pf(SysfsTree::new(), 2).file(&format!("{}/net/enp1s0/speed", device(PF)), "1000\n");
    let facts = NetFacts {
        links: vec![link(2, "eth0", None), link(3, "enp1s0", Some(PF)), link(5, "enp1s0v1", Some("0000:01:10.2"))],
        vf_attributes: BTreeMap::from([(3, vec![attributes(1)])]),
        ..NetFacts::default()
    };
    let survey = survey_of(&tree, &facts);
    assert!(survey.faults.is_empty() && survey.inventory.iommu.active);
    let [pf] = survey.inventory.pfs.as_slice() else { panic!("{:?}", survey.inventory) };
    assert_eq!((pf.address, pf.vendor, pf.device, pf.vf_device), (address(PF), VendorId(0x8086), DeviceId(0x10c9), Some(DeviceId(0x10ca))));
    assert_eq!((pf.driver.as_deref(), pf.totalvfs, pf.numvfs, pf.numa_node), (Some("igb"), 7, 2, None));
    assert_eq!((pf.netdev.as_ref(), pf.link_speed_mbps), (Some(&facts.links[1].netdev), Some(1000)));
    let [first, second] = pf.vfs.as_slice() else { panic!("{:?}", pf.vfs) };
    assert_eq!(
        (first.index, first.address, first.driver.as_deref(), first.iommu_group),
        (VfIndex(0), address("0000:01:10.0"), Some("igbvf"), Some(8))
    );
    assert_eq!((&first.netdev, &first.attributes), (&None, &None));
    assert_eq!((second.netdev.as_ref(), &second.attributes), (Some(&facts.links[2].netdev), &Some(attributes(1))));
}

#[test]
fn vfs_are_in_order_of_index_not_of_text() {
    let mut tree = igb_pf(SysfsTree::new(), 3);
    for (index, vf) in [(10, "0000:01:12.4"), (2, "0000:01:10.4")] {
        let source = device("0000:01:10.0");
        tree = tree.link(&format!("{}/virtfn{index}", device(PF)), &format!("../{vf}"));
        for (name, value) in [("vendor", "0x8086"), ("device", "0x10ca")] {
            tree = tree.file(&format!("{}/{name}", source.replace("0000:01:10.0", vf)), value);
        }
    }
    let survey = survey_of(&tree, &NetFacts::default());
    let indexes: Vec<_> = survey.inventory.pfs[0].vfs.iter().map(|vf| vf.index.0).collect();
    assert_eq!(indexes, [0, 1, 2, 10]);
}

#[test]
fn only_network_functions_that_can_have_vfs_are_pfs() {
    let other = |class: &str, total: &str| {
        igb_pf(SysfsTree::new(), 0).file(&format!("{}/class", device(PF)), class).file(&format!("{}/sriov_totalvfs", device(PF)), total)
    };
    for (tree, pfs) in [(other("0x020000", "7"), 1), (other("0x020700", "7"), 1), (other("0x010802", "7"), 0), (other("0x020000", "0"), 0)] {
        assert_eq!(survey_of(&tree, &NetFacts::default()).inventory.pfs.len(), pfs);
    }
    let tree = igb_pf(SysfsTree::new(), 0).without(&format!("{}/sriov_totalvfs", device(PF)));
    assert_eq!(survey_of(&tree, &NetFacts::default()).inventory.pfs, []);
}

#[test]
fn a_function_without_the_capability_is_a_pf_where_its_firmware_can_be_told_to_show_it() {
    let driver = |tree: SysfsTree, name: &str| {
        let at = device(PF);
        tree.link(&format!("{at}/driver"), &format!("../../../../bus/pci/drivers/{name}"))
            .link(&format!("/sys/bus/pci/drivers/{name}/{PF}"), &format!("../../../../devices/pci0000:00/{PF}"))
    };
    let on = igb_pf(SysfsTree::new(), 0);
    let off =
        ["sriov_totalvfs", "sriov_numvfs", "sriov_vf_device"].iter().fold(on.clone(), |tree, name| tree.without(&format!("{}/{name}", device(PF))));
    let none = on.clone().file(&format!("{}/sriov_totalvfs", device(PF)), "0\n");
    let told = FirmwareSettings { enable_sriov: Some(false), total_vfs: Some(16) };
    let facts = NetFacts { firmware_settings: BTreeMap::from([(address(PF), told.clone())]), ..NetFacts::default() };
    for (tree, totalvfs) in [(&on, 7), (&off, 0), (&none, 0)] {
        let found = whole(&driver(tree.clone(), "mlx5_core").build().unwrap().host(), &facts).unwrap().1;
        assert!(found.faults.is_empty(), "{:?}", found.faults);
        let [pf] = found.inventory.pfs.as_slice() else { panic!("{:?}", found.inventory.pfs) };
        assert_eq!((pf.totalvfs, pf.numvfs, &pf.facts.firmware_settings), (totalvfs, 0, &told));
    }
    let of = |tree: SysfsTree, facts: &NetFacts| whole(&tree.build().unwrap().host(), facts).unwrap().1.inventory.pfs;
    assert_eq!(of(driver(off.clone(), "mlx5_core"), &NetFacts::default()), [], "a kernel that does not offer it");
    assert_eq!(of(driver(off.clone(), "e1000e"), &facts), [], "a driver that is not asked");
    let vf = driver(off, "mlx5_core").dir("/sys/bus/pci/devices/0000:00:01.0").link(&format!("{}/physfn", device(PF)), "../0000:00:01.0");
    assert_eq!(of(vf, &facts), [], "a VF");
    assert_eq!(of(driver(on, "igb"), &facts)[0].facts.firmware_settings, FirmwareSettings::default(), "a driver that is not asked");
}

#[test]
fn one_bad_device_does_not_hide_another() {
    let bad = "0000:00:1f.0";
    let tree = igb_pf(SysfsTree::new(), 1)
        .file(&format!("{}/class", device(bad)), "0x020000")
        .file(&format!("{}/sriov_totalvfs", device(bad)), "8")
        .file(&format!("{}/sriov_numvfs", device(bad)), "many")
        .file(&format!("{}/vendor", device(bad)), "0x15b3")
        .file(&format!("{}/device", device(bad)), "0x101d");
    let survey = survey_of(&tree, &NetFacts::default());
    assert_eq!(survey.inventory.pfs.iter().map(|pf| pf.address).collect::<Vec<_>>(), [address(PF)]);
    let [(faulty, error)] = survey.faults.as_slice() else { panic!("{:?}", survey.faults) };
    assert_eq!(*faulty, address(bad));
    assert!(error.to_string().contains("sriov_numvfs") && error.to_string().contains("many"), "{error}");
}

#[test]
fn a_vf_that_vanishes_while_it_is_read_is_left_out() {
    let tree = igb_pf(SysfsTree::new(), 3).without(&device("0000:01:10.2"));
    let survey = survey_of(&tree, &NetFacts::default());
    let indexes: Vec<_> = survey.inventory.pfs[0].vfs.iter().map(|vf| vf.index.0).collect();
    assert_eq!((indexes, survey.faults.len()), (vec![0, 2], 0));
}

#[test]
fn a_machine_without_pci_in_sight_is_an_error_and_not_an_empty_machine() {
    let tree = SysfsTree::new().without("/sys/bus/pci");
    assert!(survey_with(&tree.build().unwrap().host(), &NetFacts::default()).is_err());
}

#[test]
fn a_representor_is_not_taken_for_its_pf() {
    let mut representor = link(2, "eth5", Some(PF));
    representor.phys_port_name = Some("pf0vf0".to_owned());
    let mut port = link(7, "enp1s0np0", Some(PF));
    port.phys_port_name = Some("p0".to_owned());
    let facts =
        NetFacts { links: vec![representor, port], eswitch_modes: BTreeMap::from([(address(PF), EswitchMode::Switchdev)]), ..NetFacts::default() };
    let pf = survey_of(&igb_pf(SysfsTree::new(), 1), &facts).inventory.pfs.remove(0);
    assert_eq!((pf.netdev.map(|netdev| netdev.ifindex), pf.eswitch_mode), (Some(7), EswitchMode::Switchdev));
}

#[test]
fn links_that_name_no_parent_are_found_by_their_index_and_name_in_sysfs() {
    let tree = igb_pf(SysfsTree::new(), 0).file(&format!("{}/net/enp1s0/ifindex", device(PF)), "3\n");
    let netdev = |links: Vec<Link>| survey_of(&tree, &NetFacts { links, ..NetFacts::default() }).inventory.pfs.remove(0).netdev;
    assert_eq!(netdev(vec![link(3, "enp1s0", None)]).map(|netdev| netdev.ifindex), Some(3));
    assert_eq!(netdev(vec![link(3, "other", None)]), None, "the same index in another namespace is another link");
    assert_eq!(netdev(vec![link(3, "enp1s0", Some("0000:02:00.0"))]), None);
}

#[test]
fn a_vf_is_located_by_offset_and_stride_or_by_the_links() {
    let located = |tree: &SysfsTree| vf_location(&tree.build().unwrap().host(), address("0000:01:11.0")).unwrap();
    let expected = VfLocation { pf: address(PF), index: VfIndex(4), driver: Some("igbvf".to_owned()), iommu_group: Some(12) };
    let tree = igb_pf(SysfsTree::new(), 5);
    assert_eq!(located(&tree), expected);
    assert_eq!(located(&tree.clone().file(&format!("{}/sriov_stride", device(PF)), "1")), expected);
    assert_eq!(located(&tree.without(&format!("{}/sriov_offset", device(PF)))), expected);
}

#[test]
fn what_is_not_a_vf_is_told_apart() {
    let fake = igb_pf(SysfsTree::new(), 1).without(&format!("{}/virtfn0", device(PF))).build().unwrap();
    let error = |text| vf_location(&fake.host(), address(text)).unwrap_err();
    assert!(matches!(error(PF), DiscoverError::NotAVf(_)));
    assert!(matches!(error("0000:7f:00.0"), DiscoverError::MissingDevice(_)));
    assert!(matches!(error("0000:01:10.0"), DiscoverError::NotListed { .. }));
}

#[test]
fn the_machine_itself_can_be_surveyed() {
    let survey = survey(&Host::system()).unwrap();
    assert!(!survey.inventory.iommu.command_line.is_empty());
    assert!(survey.faults.is_empty(), "{:?}", survey.faults);
}

#[test]
fn netlink_and_files_meet_for_one_pf() {
    let fake = igb_pf(SysfsTree::new(), 1).build().unwrap();
    let found = new_netns().unwrap().run_in(|| {
        let route = Route::open().unwrap();
        route.add_link_veth("enp1s0", "wire").unwrap();
        let ifindex = route.link_by_name("enp1s0").unwrap().unwrap().netdev.ifindex;
        route.change_link(ifindex, &LinkChange { mtu: Some(9000), ..LinkChange::default() }).unwrap();
        let folder = fake.path().join(format!("sys/bus/pci/devices/{PF}/net/enp1s0"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ifindex"), ifindex.to_string()).unwrap();
        (pf(&fake.host(), address(PF)).unwrap(), pf(&fake.host(), address("0000:7f:00.0")).unwrap())
    });
    let (found, missing) = found.unwrap();
    assert_eq!(found.unwrap().netdev.map(|netdev| netdev.mtu), Some(9000));
    assert_eq!(missing, None);
}

#[test]
fn representors_belong_to_the_vfs_of_their_uplinks_port() {
    let port = |ifindex, name: &str, port: &str, switch: &str| {
        let stack = crate::netlink::Stack { switch_id: Some(switch.to_owned()), ..crate::netlink::Stack::default() };
        Link { phys_port_name: Some(port.to_owned()), stack, ..link(ifindex, name, Some(PF)) }
    };
    let links = [
        port(3, "enp1s0np0", "p0", "aa"),
        port(4, "enp1s0npf0vf0", "pf0vf0", "aa"),
        port(5, "enp1s0npf0vf11", "c1pf0vf11", "aa"),
        port(6, "other_port", "pf1vf1", "aa"),
        port(7, "other_card", "pf0vf2", "bb"),
        link(8, "enp1s0v0", Some("0000:01:10.0")),
    ];
    let found = representors(&links[0], &links);
    assert_eq!(found, BTreeMap::from([(VfIndex(0), "enp1s0npf0vf0".to_owned()), (VfIndex(11), "enp1s0npf0vf11".to_owned())]));
    let alone = [port(3, "eni10np1", "p1", "cc"), port(4, "eni10npf0vf1", "pf0vf1", "cc")];
    assert_eq!(representors(&alone[0], &alone).len(), 1, "ports are counted from 1 there, and the switch has one function");
    assert!(representors(&link(3, "enp1s0", Some(PF)), &links).is_empty(), "an uplink of no switch has none");
}

#[test]
fn a_function_tells_its_rdma_devices_iommu_type_and_what_the_host_uses_it_for() {
    let tree = igb_pf(SysfsTree::new(), 1).dir(&format!("{}/infiniband/mlx5_0", device(PF))).file("/sys/kernel/iommu_groups/8/type", "DMA-FQ\n");
    let address =
        crate::netlink::InterfaceAddress { address: [10, 0, 0, 5].into(), prefix: 24, tentative: false, dad_failed: false, link_local: false };
    let network = HostNetwork { addresses: vec![(3, address)], ..HostNetwork::default() };
    let facts = NetFacts {
        links: vec![link(3, "enp1s0", Some(PF))],
        network,
        firmware: BTreeMap::from([(PF.parse().unwrap(), "1.63".to_owned())]),
        ..NetFacts::default()
    };
    let pf = survey_of(&tree, &facts).inventory.pfs.remove(0);
    assert_eq!((pf.facts.rdma, pf.facts.firmware.as_deref()), (vec!["mlx5_0".to_owned()], Some("1.63")));
    assert_eq!(pf.facts.uses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["address 10.0.0.5/24 is on enp1s0"]);
    assert_eq!(pf.vfs[0].facts.iommu_type.as_deref(), Some("DMA-FQ"));
}

/// A virtual machine with a virtio NIC (whose netdev hangs on its virtio device) and a VF of Intel's without its PF, and a disk.
fn virtual_machine() -> SysfsTree {
    let function = |tree: SysfsTree, at: &str, vendor: &str, id: &str, class: &str, driver: &str| {
        tree.file(&format!("{}/vendor", device(at)), vendor)
            .file(&format!("{}/device", device(at)), id)
            .file(&format!("{}/class", device(at)), class)
            .link(&format!("{}/driver", device(at)), &format!("../../../../bus/pci/drivers/{driver}"))
    };
    let tree = function(SysfsTree::new(), "0000:00:06.0", "0x8086", "0x154c", "0x020000", "iavf");
    let tree =
        function(tree, "0000:00:03.0", "0x1af4", "0x1000", "0x020000", "virtio-pci").dir(&format!("{}/virtio1/net/eth0", device("0000:00:03.0")));
    function(tree, "0000:00:04.0", "0x1af4", "0x1001", "0x010000", "virtio-pci")
}

#[test]
fn a_clouds_virtual_machine_has_its_nics_as_pfs_with_one_vf_and_bare_metal_has_not() {
    let virtio = Link { parent: None, parent_device: Some("virtio1".to_owned()), ..link(2, "eth0", None) };
    let gateway = crate::netlink::RouteOut { dst: [0, 0, 0, 0].into(), prefix: 0, priority: 100, ifindexes: vec![2] };
    let network = HostNetwork { routes: vec![gateway], ..HostNetwork::default() };
    let facts = NetFacts { links: vec![virtio, link(3, "eth1", Some("0000:00:06.0"))], network, ..NetFacts::default() };
    assert!(survey_of(&virtual_machine(), &facts).inventory.pfs.is_empty(), "nobody says that this is a cloud's");
    let tree = virtual_machine().file("/sys/class/dmi/id/product_name", "OpenStack Nova\n");
    let survey = survey_of(&tree, &facts);
    assert!(survey.faults.is_empty(), "{:?}", survey.faults);
    let [first, second] = survey.inventory.pfs.as_slice() else { panic!("{:?}", survey.inventory.pfs) };
    for (pf, at, name, driver) in [(first, "0000:00:03.0", "eth0", "virtio-pci"), (second, "0000:00:06.0", "eth1", "iavf")] {
        assert_eq!((pf.address, pf.totalvfs, pf.numvfs, pf.facts.lone), (address(at), 1, 1, true));
        assert_eq!((pf.vfs.len(), pf.vfs[0].address, pf.vfs[0].index), (1, address(at), VfIndex(0)));
        assert_eq!((pf.vfs[0].driver.as_deref(), pf.vfs[0].netdev.as_ref().map(|netdev| netdev.name.as_str())), (Some(driver), Some(name)));
    }
    assert!(!first.vfs[0].facts.uses.is_empty() && second.vfs[0].facts.uses.is_empty(), "{:?}", first.vfs[0].facts.uses);
}

#[test]
fn vdpa_devices_and_guids_are_told_of_their_functions() {
    let vf = "0000:01:10.0";
    let tree = igb_pf(SysfsTree::new(), 1)
        .file(&format!("{}/infiniband/mlx5_2/node_guid", device(vf)), "0c42:a103:0016:054c\n")
        .link("/sys/bus/vdpa/devices/vdpa:0000:01:10.0", &format!("../../../devices/pci0000:00/{vf}/vdpa:{vf}"))
        .link(&format!("/sys/devices/pci0000:00/{vf}/vdpa:{vf}/driver"), "../../../../bus/vdpa/drivers/virtio_vdpa");
    let guid = crate::guid::Guid(0x0c42_a103_0016_054d);
    let facts = NetFacts { links: vec![Link { port_guid: Some(guid), ..link(3, "ib0", Some(PF)) }], ..NetFacts::default() };
    let pf = survey_of(&tree, &facts).inventory.pfs.remove(0);
    assert_eq!((pf.facts.port_guid, pf.facts.vdpa.as_ref()), (Some(guid), None));
    let found = pf.vfs[0].facts.vdpa.as_ref().unwrap();
    assert_eq!((found.name.as_str(), found.driver.as_deref()), ("vdpa:0000:01:10.0", Some("virtio_vdpa")));
    assert_eq!(pf.vfs[0].facts.node_guid, Some(crate::guid::Guid(0x0c42_a103_0016_054c)));
}
