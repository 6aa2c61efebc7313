//! Pure: the node state's spec, which is loose, as a wish that can be planned, which is strict.
//!
//! What lives here: reading the spec and refusing what is not understood or not offered. What does not: comparing with the machine (`plan`).
//!
//! Invariants: a bad entry is that PF's refusal and no one else's; a PF that is named in the spec, however badly, never counts as "no longer wanted".

use std::collections::BTreeMap;

use sriov_crds::bridge::OvsBridge;
use sriov_crds::node_state::{Interface, SriovNetworkNodeStateSpec, VfGroup as LooseGroup};
use sriov_crds::vf_range::VfRange;
use sriov_host::inventory::{EswitchMode, LinkType, RdmaMode};
use sriov_host::pci::PciAddress;
use sriov_host::vf::VfIndex;

use crate::bridges::{Wanted, pf_of};
use crate::plan::refusal::{Reason, Refusal};

/// What the policies want of this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// False until the operator has rendered the spec for the first time: an empty spec then means "not known yet", not "nothing wanted".
    pub rendered: bool,
    /// Each PF that is named, with its wish or why it cannot have one.
    pub pfs: BTreeMap<PciAddress, Result<DesiredPf, Refusal>>,
    /// Namespace mode of RDMA devices; `None` leaves it as it is.
    pub rdma_mode: Option<RdmaMode>,
    /// Entries without a readable address. As long as there is one, no PF is given up, because it might be the one meant.
    pub unreadable: Vec<Refusal>,
    /// The bridge of each PF that has one, or why it cannot be had.
    pub bridges: BTreeMap<PciAddress, Result<Wanted, Refusal>>,
    /// Bridges of which it is not understood whose they are. As long as there is one, no bridge is removed.
    pub unreadable_bridges: Vec<Refusal>,
    /// Settings of the whole machine that are not understood.
    pub refused: Vec<Refusal>,
}

/// The wish for one PF.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredPf {
    /// Its address.
    pub address: PciAddress,
    /// The name that the operator knew it by; for messages only.
    pub name: String,
    /// VFs wanted.
    pub numvfs: u16,
    /// Least MTU of the PF, in bytes.
    pub mtu: Option<u32>,
    /// Link layer asked for.
    pub link_type: Option<LinkType>,
    /// Mode of the embedded switch; the API's empty value is legacy.
    pub eswitch_mode: EswitchMode,
    /// Somebody else makes the VFs; we only bind and address them.
    pub externally_managed: bool,
    /// Who gets which VFs; the first group that covers a VF has it.
    pub groups: Vec<VfGroup>,
    /// The entry as it came, for the record.
    pub interface: Interface,
}

/// One policy's share of a PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfGroup {
    /// Pool that the VFs go to.
    pub resource_name: String,
    /// Policy that asks.
    pub policy_name: String,
    /// Kind of driver.
    pub device_type: DeviceType,
    /// The VFs meant.
    pub range: VfRange,
    /// MTU of the VFs' netdevs, in bytes.
    pub mtu: Option<u32>,
    /// RDMA wanted (device plugin).
    pub is_rdma: bool,
    /// Also hand out `/dev/vhost-net` and `/dev/net/tun` (device plugin).
    pub need_vhost_net: bool,
    /// Tell the kubelet no NUMA node (device plugin).
    pub exclude_topology: bool,
    /// A vDPA device on each VF.
    pub vdpa: Option<VdpaType>,
}

/// How the vDPA device of a VF is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VdpaType {
    /// By user space, through `/dev/vhost-vdpa-N`.
    Vhost,
    /// By the kernel, as a virtio netdev.
    Virtio,
}

impl VdpaType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vhost, Self::Virtio];

    /// The driver of the vDPA bus, which is also its module's name.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Vhost => "vhost_vdpa",
            Self::Virtio => "virtio_vdpa",
        }
    }

    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vhost => "vhost",
            Self::Virtio => "virtio",
        }
    }
}

/// Kind of driver that a group's VFs are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// The kernel's own driver: a netdev.
    Netdevice,
    /// `vfio-pci`: a device for userspace.
    VfioPci,
}

impl Desired {
    /// The wish in a spec. Never fails: what is not understood is a refusal inside.
    pub fn read(spec: &SriovNetworkNodeStateSpec) -> Self {
        let mut desired = Self { rendered: spec.policy_revision.is_some() || !spec.interfaces.is_empty(), ..Self::default() };
        match spec.system.as_ref().and_then(|system| system.rdma_mode.as_deref()) {
            None | Some("") => {}
            Some("shared") => desired.rdma_mode = Some(RdmaMode::Shared),
            Some("exclusive") => desired.rdma_mode = Some(RdmaMode::Exclusive),
            Some(other) => {
                let message = format!("the node state's spec.system.rdmaMode is {other:?}: expected shared or exclusive; the mode is left as it is");
                desired.refused.push(Refusal { pf: None, name: String::new(), reason: Reason::InvalidSpec, message });
            }
        }
        for interface in &spec.interfaces {
            let Ok(address) = interface.pci_address.parse::<PciAddress>() else {
                let message = format!(
                    "an entry of the node state's spec.interfaces has the pciAddress {:?}: expected domain:bus:device.function, for example 0000:3b:00.1; \
                     until it is corrected no PF is given up",
                    interface.pci_address
                );
                let name = interface.name.clone().unwrap_or_default();
                desired.unreadable.push(Refusal { pf: None, name, reason: Reason::InvalidSpec, message });
                continue;
            };
            let wish = match desired.pfs.get(&address) {
                Some(_) => Err(invalid(address, interface, "it is listed twice in the node state's spec.interfaces: list it once")),
                None => DesiredPf::read(address, interface),
            };
            desired.pfs.insert(address, wish);
        }
        for entry in spec.bridges.iter().flat_map(|bridges| &bridges.ovs) {
            desired.read_bridge(entry);
        }
        desired
    }

    fn read_bridge(&mut self, entry: &OvsBridge) {
        let invalid = |pf, said: &str| {
            let message = format!("bridge {:?} of the node state's spec.bridges: {said}", entry.name);
            Refusal { pf, name: String::new(), reason: Reason::InvalidSpec, message }
        };
        match (Wanted::read(entry), pf_of(entry)) {
            (Ok((pf, _)), _) if !self.pfs.contains_key(&pf) => {
                self.bridges.insert(pf, Err(invalid(Some(pf), "its PF is not among spec.interfaces: it is left as it is")));
            }
            (Ok((pf, _)), _) if self.bridges.contains_key(&pf) => {
                self.bridges.insert(pf, Err(invalid(Some(pf), "its PF is the uplink of another bridge too: list one")));
            }
            (Ok((pf, wanted)), _) => _ = self.bridges.insert(pf, Ok(wanted)),
            (Err(said), Some(pf)) => _ = self.bridges.insert(pf, Err(invalid(Some(pf), &said))),
            (Err(said), None) => self.unreadable_bridges.push(invalid(None, &format!("{said}; until it is corrected no bridge is removed"))),
        }
    }

    /// The wish for one PF, if it is wanted and understood.
    pub fn pf(&self, address: PciAddress) -> Option<&DesiredPf> {
        self.pfs.get(&address)?.as_ref().ok()
    }
}

impl DesiredPf {
    fn read(address: PciAddress, interface: &Interface) -> Result<Self, Refusal> {
        let refuse = |said: String| invalid(address, interface, &said);
        let groups = interface.vf_groups.iter().map(VfGroup::read).collect::<Result<Vec<_>, String>>().map_err(refuse)?;
        let eswitch_mode = eswitch_mode(interface.eswitch_mode.as_deref()).map_err(refuse)?;
        if let Some(group) = groups.iter().find(|group| group.vdpa.is_some() && eswitch_mode != EswitchMode::Switchdev) {
            return Err(refuse(format!("policy {:?} asks for vdpaType, which needs eSwitchMode switchdev: set that too", group.policy_name)));
        }
        Ok(Self {
            address,
            name: interface.name.clone().unwrap_or_default(),
            numvfs: u16::try_from(interface.num_vfs).map_err(|_| refuse(format!("numVfs is {}: expected 0 to {}", interface.num_vfs, u16::MAX)))?,
            mtu: mtu(interface.mtu).map_err(refuse)?,
            link_type: link_type(interface.link_type.as_deref()).map_err(refuse)?,
            eswitch_mode,
            externally_managed: interface.externally_managed,
            groups,
            interface: interface.clone(),
        })
    }

    /// The group that has this VF.
    pub fn group_of(&self, vf: VfIndex) -> Option<&VfGroup> {
        self.groups.iter().find(|group| group.contains(vf))
    }

    /// The largest MTU that is asked for the PF or one of its VFs.
    pub fn largest_mtu(&self) -> Option<u32> {
        self.groups.iter().map(|g| g.mtu).chain([self.mtu]).flatten().max()
    }

    /// The policies behind this wish, for messages.
    pub fn policies(&self) -> String {
        let mut names: Vec<String> = self.groups.iter().map(|g| format!("{:?}", g.policy_name)).collect();
        names.sort();
        names.dedup();
        match names.len() {
            0 => "the node state".to_owned(),
            1 => format!("policy {}", names[0]),
            _ => format!("policies {} together", names.join(", ")),
        }
    }
}

impl VfGroup {
    fn read(group: &LooseGroup) -> Result<Self, String> {
        let resource_name = group.resource_name.clone().unwrap_or_default();
        let policy_name = group.policy_name.clone().unwrap_or_default();
        let device_type = match group.device_type.as_deref() {
            None | Some("" | "netdevice") => DeviceType::Netdevice,
            Some("vfio-pci") => DeviceType::VfioPci,
            Some(other) => return Err(format!("policy {policy_name:?} has deviceType {other:?}: expected netdevice or vfio-pci")),
        };
        let vdpa = vdpa(group, device_type).map_err(|said| format!("policy {policy_name:?} {said}"))?;
        let text = group.vf_range.as_deref().unwrap_or_default();
        let range = text.parse::<VfRange>().map_err(|error| format!("policy {policy_name:?}: {error}"))?;
        Ok(Self {
            device_type,
            range,
            mtu: mtu(group.mtu)?,
            is_rdma: group.is_rdma,
            need_vhost_net: group.need_vhost_net,
            exclude_topology: group.exclude_topology,
            vdpa,
            resource_name,
            policy_name,
        })
    }

    /// Whether the VF belongs to this group, when no earlier group has it.
    pub fn contains(&self, vf: VfIndex) -> bool {
        self.range.contains(vf.0)
    }
}

fn vdpa(group: &LooseGroup, device_type: DeviceType) -> Result<Option<VdpaType>, String> {
    let kind = match group.vdpa_type.as_deref() {
        None | Some("") => return Ok(None),
        Some("vhost") => VdpaType::Vhost,
        Some("virtio") => VdpaType::Virtio,
        Some(other) => return Err(format!("has vdpaType {other:?}: expected vhost or virtio")),
    };
    if device_type != DeviceType::Netdevice {
        return Err("asks for vdpaType, which needs deviceType netdevice: a device for userspace has no vDPA device".to_owned());
    }
    if group.is_rdma {
        return Err("asks for vdpaType and isRdma, of which the device plugin hands out one: remove one".to_owned());
    }
    Ok(Some(kind))
}

/// MTU 0 is how the API writes "unset".
fn mtu(mtu: Option<i64>) -> Result<Option<u32>, String> {
    match mtu {
        None | Some(0) => Ok(None),
        Some(mtu) => u32::try_from(mtu).map(Some).map_err(|_| format!("mtu is {mtu}: expected 1 to {}", u32::MAX)),
    }
}

fn eswitch_mode(text: Option<&str>) -> Result<EswitchMode, String> {
    match text {
        None | Some("" | "legacy") => Ok(EswitchMode::Legacy),
        Some("switchdev") => Ok(EswitchMode::Switchdev),
        Some(other) => Err(format!("eSwitchMode is {other:?}: expected legacy or switchdev")),
    }
}

fn link_type(text: Option<&str>) -> Result<Option<LinkType>, String> {
    match text {
        None | Some("") => Ok(None),
        Some("eth" | "ETH") => Ok(Some(LinkType::Ether)),
        Some("ib" | "IB") => Ok(Some(LinkType::Infiniband)),
        Some(other) => Err(format!("linkType is {other:?}: expected eth or ib")),
    }
}

fn invalid(address: PciAddress, interface: &Interface, said: &str) -> Refusal {
    Refusal::of(address, interface.name.as_deref().unwrap_or_default(), Reason::InvalidSpec, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Desired {
        Desired::read(&serde_saphyr::from_str(yaml).unwrap())
    }

    #[test]
    fn an_empty_spec_without_revision_is_not_rendered_yet() {
        assert!(!read("interfaces: []").rendered);
        assert!(read("policyRevision: abc").rendered, "rendered, and nothing wanted");
        assert!(read("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1}]").rendered, "a spec of the Go operator carries no revision");
    }

    #[test]
    fn a_bad_entry_is_its_own_refusal_only() {
        let desired = read(
            "interfaces:
- {pciAddress: '0000:01:00.0', numVfs: 2, vfGroups: [{vfRange: 0-1, policyName: a, resourceName: r}]}
- {pciAddress: '0000:01:00.1', numVfs: 2, vfGroups: [{vfRange: 1-0, policyName: b}]}
- {pciAddress: '0000:02:00.0', numVfs: -1}
- {pciAddress: '0000:02:00.1', eSwitchMode: switchdove}
- {pciAddress: '0000:03:00.0', vfGroups: [{vfRange: 0-0, deviceType: igb_uio}]}
- {pciAddress: '0000:03:00.1', linkType: fddi}
- {pciAddress: '0000:04:00.0', vfGroups: [{vfRange: 0-0, vdpaType: vhost, policyName: c}]}
- {pciAddress: '0000:04:00.1', eSwitchMode: switchdev, vfGroups: [{vfRange: 0-0, vdpaType: vhost, deviceType: vfio-pci, policyName: c}]}
- {pciAddress: '0000:05:00.0', eSwitchMode: switchdev, vfGroups: [{vfRange: 0-0, vdpaType: virtio, isRdma: true, policyName: c}]}
- {pciAddress: '0000:05:00.1', eSwitchMode: switchdev, vfGroups: [{vfRange: 0-0, vdpaType: vduse, policyName: c}]}
- {pciAddress: eth0}",
        );
        assert_eq!(desired.pf("0000:01:00.0".parse().unwrap()).unwrap().groups[0].range.last(), 1);
        let said: Vec<String> =
            desired.pfs.values().filter_map(|pf| pf.as_ref().err()).map(|r| format!("{} {}", r.reason.as_str(), r.message)).collect();
        let expected = [
            "InvalidSpec PF 0000:01:00.1: policy \"b\": empty VF range 1-0: the last index must not be below the first",
            "InvalidSpec PF 0000:02:00.0: numVfs is -1: expected 0 to 65535",
            "InvalidSpec PF 0000:02:00.1: eSwitchMode is \"switchdove\": expected legacy or switchdev",
            "InvalidSpec PF 0000:03:00.0: policy \"\" has deviceType \"igb_uio\": expected netdevice or vfio-pci",
            "InvalidSpec PF 0000:03:00.1: linkType is \"fddi\": expected eth or ib",
            "InvalidSpec PF 0000:04:00.0: policy \"c\" asks for vdpaType, which needs eSwitchMode switchdev: set that too",
            "InvalidSpec PF 0000:04:00.1: policy \"c\" asks for vdpaType, which needs deviceType netdevice: a device for userspace has no vDPA device",
            "InvalidSpec PF 0000:05:00.0: policy \"c\" asks for vdpaType and isRdma, of which the device plugin hands out one: remove one",
            "InvalidSpec PF 0000:05:00.1: policy \"c\" has vdpaType \"vduse\": expected vhost or virtio",
        ];
        assert_eq!(said, expected);
        assert_eq!(desired.unreadable.len(), 1);
    }

    #[test]
    fn the_first_group_that_covers_a_vf_has_it() {
        let desired = read(
            "interfaces:
- pciAddress: 0000:01:00.0
  numVfs: 4
  vfGroups: [{vfRange: 0-1, policyName: strong, resourceName: s}, {vfRange: 0-3, policyName: weak, resourceName: w}]",
        );
        let pf = desired.pf("0000:01:00.0".parse().unwrap()).unwrap();
        let names: Vec<_> = (0..5).map(|i| pf.group_of(VfIndex(i)).map_or("-", |g| g.policy_name.as_str())).collect();
        assert_eq!(names, ["strong", "strong", "weak", "weak", "-"]);
        assert_eq!(pf.policies(), "policies \"strong\", \"weak\" together");
    }

    #[test]
    fn a_pf_listed_twice_is_refused() {
        let desired = read("interfaces: [{pciAddress: '0000:01:00.0', numVfs: 1}, {pciAddress: '0000:01:00.0', numVfs: 2}]");
        assert!(desired.pfs.values().all(Result::is_err) && desired.pfs.len() == 1);
    }
}
