//! Pure (types): what one look at the machine found, as plain data. This is "observed" everywhere; `discover` fills it.

use serde::{Deserialize, Serialize};

use crate::function::Vdpa;
use crate::guid::Guid;
use crate::host_use::HostUse;
use crate::mac::MacAddr;
use crate::pci::{DeviceId, PciAddress, VendorId};
use crate::vf::{VfAttributes, VfIndex};

/// The SR-IOV side of a machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The IOMMU.
    pub iommu: Iommu,
    /// Each network function that can have VFs, in order of address; on a virtual machine of a cloud each network function (see [`Facts::lone`]).
    pub pfs: Vec<Pf>,
    /// The kernel as a whole.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kernel: Kernel,
}

/// Facts about the kernel that plans depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Lockdown: `integrity` or `confidentiality`; `None` when there is none.
    #[serde(default)]
    pub lockdown: Option<String>,
    /// Whether RDMA devices are shared between network namespaces; `None` without the RDMA core.
    #[serde(default)]
    pub rdma_mode: Option<RdmaMode>,
    /// Command lines that the boot loader may use next; empty where that is not known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub staged: Vec<String>,
}

/// Whom RDMA devices belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdmaMode {
    /// All network namespaces (the kernel's default).
    Shared,
    /// One namespace each.
    Exclusive,
}

impl RdmaMode {
    /// The API's and the kernel's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        }
    }
}

/// What a plan, or a person, wants to know of a function beyond SR-IOV.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What the host itself uses its netdev for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uses: Vec<HostUse>,
    /// Netdev of its representor (a VF of a PF in switchdev mode).
    #[serde(default, skip_serializing_if = "is_default")]
    pub representor: Option<String>,
    /// Whether the representor is down and a port of nothing, so that nobody minds what it is called.
    #[serde(default, skip_serializing_if = "is_default")]
    pub representor_idle: bool,
    /// Whether it is a function without VFs on a virtual machine, where the hypervisor keeps the PF: it then counts as a PF with one VF, itself.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lone: bool,
    /// The network of the cloud that it is in, in the form that policies select by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub net_filter: Option<String>,
    /// RDMA devices on it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rdma: Vec<String>,
    /// GUID of its first RDMA device, by which an InfiniBand subnet knows the adapter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_guid: Option<Guid>,
    /// GUID of its InfiniBand port: the end of its netdev's hardware address.
    #[serde(default, skip_serializing_if = "is_default")]
    pub port_guid: Option<Guid>,
    /// Its vDPA device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vdpa: Option<Vdpa>,
    /// Type of its IOMMU group: `DMA`, `DMA-FQ`, `identity`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub iommu_type: Option<String>,
    /// Version of the firmware, as devlink tells it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub firmware: Option<String>,
    /// What its firmware is told about VFs for its next start (a PF), which need not be what it runs with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub firmware_settings: FirmwareSettings,
    /// Whether the BARs of its VFs have addresses (a PF); `None` when it has no such BARs or that is not told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vf_space: Option<bool>,
    /// Version of the driver's module, where it has one of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub driver_version: Option<String>,
}

/// What a NIC's own memory says about VFs, by the kernel's permanent devlink parameters; it counts when the device starts anew. What the driver does not
/// tell is `None`, and cannot be set either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareSettings {
    /// Whether the function shows the SR-IOV capability (`enable_sriov`; bnxt_en since 4.20, mlx5_core since 6.18).
    #[serde(default, skip_serializing_if = "is_default")]
    pub enable_sriov: Option<bool>,
    /// The most VFs, which `sriov_totalvfs` is after the next start (`total_vfs`; mlx5_core since 6.18).
    #[serde(default, skip_serializing_if = "is_default")]
    pub total_vfs: Option<u32>,
}

impl FirmwareSettings {
    /// Whether the kernel offers any of them.
    pub fn is_offered(&self) -> bool {
        self.enable_sriov.is_some() || self.total_vfs.is_some()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether DMA of devices is translated, which `vfio-pci` needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iommu {
    /// True when the kernel has an active IOMMU (an entry in `/sys/class/iommu` and groups in `/sys/kernel/iommu_groups`).
    pub active: bool,
    /// The kernel command line, to tell what is missing on it.
    pub command_line: String,
}

/// A physical function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pf {
    /// Its PCI address, by which it is known.
    pub address: PciAddress,
    /// PCI vendor.
    pub vendor: VendorId,
    /// PCI device.
    pub device: DeviceId,
    /// PCI device id of its VFs (`sriov_vf_device`).
    pub vf_device: Option<DeviceId>,
    /// Bound kernel driver.
    pub driver: Option<String>,
    /// `sriov_totalvfs`: the most VFs it can have. 0 for a function whose firmware has SR-IOV off and can be told otherwise (see
    /// [`FirmwareSettings`]).
    pub totalvfs: u16,
    /// `sriov_numvfs`: the VFs it has now.
    pub numvfs: u16,
    /// NUMA node, if the platform tells one.
    pub numa_node: Option<u16>,
    /// Eswitch mode by devlink; legacy where the driver has no devlink eswitch.
    pub eswitch_mode: EswitchMode,
    /// Its netdev in the namespace looked at; `None` without driver or when the netdev is elsewhere.
    pub netdev: Option<Netdev>,
    /// Link speed in Mbit/s, when the link is up.
    pub link_speed_mbps: Option<u32>,
    /// The VFs it has now, in order of index.
    pub vfs: Vec<Vf>,
    /// The rest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub facts: Facts,
}

/// A virtual function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vf {
    /// Index on its PF.
    pub index: VfIndex,
    /// PCI address.
    pub address: PciAddress,
    /// PCI vendor.
    pub vendor: VendorId,
    /// PCI device.
    pub device: DeviceId,
    /// Bound driver; `None` when unbound.
    pub driver: Option<String>,
    /// IOMMU group number (`/dev/vfio/<group>`).
    pub iommu_group: Option<u32>,
    /// NUMA node, if the platform tells one.
    pub numa_node: Option<u16>,
    /// Its netdev in the namespace looked at; `None` when bound to a userspace driver, unbound, or moved to a pod.
    pub netdev: Option<Netdev>,
    /// What the PF reports of it; `None` when the PF has no netdev here or its driver left the VF out.
    pub attributes: Option<VfAttributes>,
    /// The rest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub facts: Facts,
}

/// A network device of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netdev {
    /// Interface index in its namespace.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Alternative names.
    #[serde(default)]
    pub alt_names: Vec<String>,
    /// Hardware address; `None` for links without a six-byte address.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest MTU that the driver takes, in bytes; `None` when the kernel tells no limit.
    pub max_mtu: Option<u32>,
    /// Administratively up.
    pub admin_up: bool,
    /// Carrier present.
    pub carrier: bool,
    /// Link layer.
    pub link_type: LinkType,
}

/// Link layer of a netdev (`ARPHRD_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkType {
    /// `ARPHRD_ETHER`, 1.
    #[default]
    Ether,
    /// `ARPHRD_INFINIBAND`, 32.
    Infiniband,
    /// Any other.
    Other,
}

/// Mode of the embedded switch, in devlink's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EswitchMode {
    /// VFs are configured through their PF's netdev.
    #[default]
    Legacy,
    /// VFs have representors.
    Switchdev,
}

impl Pf {
    /// The PF's names: primary first, then alternative names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.netdev.iter().flat_map(|n| std::iter::once(n.name.as_str()).chain(n.alt_names.iter().map(String::as_str)))
    }
}
