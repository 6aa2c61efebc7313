//! Pure: a pool, which is one resource of the kubelet: its name, its devices, their health, and what the kubelet is told of them.
//!
//! Invariant: devices are ordered by id, so that two equal pools are equal values and equal messages.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use sriov_host::device_id::DeviceId;
use sriov_host::pci::PciAddress;

use crate::api::deviceplugin_v1beta1 as api;

/// `deviceplugin/v1beta1/constants.go`: the two words for health.
const HEALTHY: &str = "Healthy";
const UNHEALTHY: &str = "Unhealthy";

/// The name of a resource in two parts, printed as `prefix/resource`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName {
    prefix: String,
    resource: String,
}

/// A part of a name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {given:?} was given, allowed is {allowed}")]
pub struct NameError {
    /// `resourcePrefix` or `resourceName`.
    pub key: &'static str,
    /// The refused text.
    pub given: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl PoolName {
    /// The name of these parts. The prefix must be a DNS name in lower case; the resource has letters, digits, `_` and `-`.
    /// Both become parts of file names, and neither can hold a `/`.
    pub fn new(prefix: &str, resource: &str) -> Result<Self, NameError> {
        let label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            label.bytes().all(|byte| inner(byte) || byte == b'-')
                && label.bytes().next().is_some_and(inner)
                && label.bytes().last().is_some_and(inner)
        };
        if prefix.len() > 253 || !prefix.split('.').all(label) {
            let allowed = "a DNS name in lower case such as openshift.io";
            return Err(NameError { key: "resourcePrefix", given: prefix.to_owned(), allowed });
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=63).contains(&resource.len()) || !resource.bytes().all(plain) {
            let allowed = "1 to 63 letters, digits, _ and -";
            return Err(NameError { key: "resourceName", given: resource.to_owned(), allowed });
        }
        Ok(Self { prefix: prefix.to_owned(), resource: resource.to_owned() })
    }

    /// The name of the pool's socket in the kubelet's folder.
    pub fn socket_name(&self) -> String {
        format!("{}_{}.sock", self.prefix, self.resource)
    }

    /// The environment variable with the pool's device ids. `-` stays, as in the field, though a shell cannot name it.
    pub fn variable(&self) -> String {
        format!("PCIDEVICE_{}_{}", self.prefix, self.resource).to_uppercase().replace('.', "_")
    }

    /// As [`PoolName::variable`], in the form that a shell can name. Equal to it for names without `-`.
    pub fn posix_variable(&self) -> String {
        self.variable().replace('-', "_")
    }

    /// The name of a device-info file.
    pub fn device_info_name(&self, device: &str) -> String {
        format!("{}-{device}-device.json", self.stem())
    }

    /// The part of file names that stands for the pool.
    pub fn stem(&self) -> String {
        format!("{}-{}", self.prefix, self.resource)
    }

    /// The kind of the pool's devices in the Container Device Interface, `vendor/class`. Both parts must start with a letter and end with a letter or
    /// a digit, which resource names need not; one kind a pool keeps the specs of two pools apart.
    pub fn cdi_kind(&self) -> String {
        let vendor = if self.prefix.starts_with(|first: char| first.is_ascii_digit()) { "x." } else { "" };
        let end = if self.resource.ends_with(['_', '-']) { "x" } else { "" };
        format!("{vendor}{}/net-{}{end}", self.prefix, self.resource)
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.prefix, self.resource)
    }
}

/// One resource with the devices that it has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Prefix and name.
    pub name: PoolName,
    /// By id; a device is in at most one pool.
    pub devices: BTreeMap<DeviceId, Device>,
    /// How several devices for one container go together; `None` leaves the choice to the kubelet.
    pub preference: Option<Preference>,
    /// Whether Multus is told of the devices that are given.
    pub has_device_info: bool,
}

/// One device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its driver when it was looked at.
    pub driver: Option<String>,
    /// The NUMA node that the kubelet is told; `None` when the platform tells none, or the pool wants none told.
    pub numa_node: Option<u16>,
    /// Whether the kubelet may give it to a pod.
    pub health: Health,
    /// What goes with it.
    pub needs: Needs,
    /// Where it is, for choosing devices that go together.
    pub place: Place,
    /// Free keys for the `extra` part of the `_INFO` variable.
    pub extra: BTreeMap<String, String>,
}

/// What goes with a device beyond what its driver needs, as its selector says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    /// The nodes of its RDMA device.
    pub rdma: bool,
    /// Its vDPA device.
    pub vdpa: Option<VdpaType>,
    /// `/dev/vhost-net` and `/dev/net/tun`.
    pub vhost_net: bool,
}

/// How a vDPA device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VdpaType {
    /// By user space, through `/dev/vhost-vdpa-N`.
    Vhost,
    /// By the kernel, as a virtio netdev.
    Virtio,
}

impl VdpaType {
    /// The word of config files and device-info files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Vhost => "vhost",
            Self::Virtio => "virtio",
        }
    }

    /// The driver of the vDPA bus.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Vhost => "vhost_vdpa",
            Self::Virtio => "virtio_vdpa",
        }
    }
}

/// Where a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// NUMA node, also when the kubelet is told none.
    pub numa_node: Option<u16>,
    /// The PCI root that it hangs on.
    pub root: Option<String>,
    /// Its PF; of a PF itself, and of a VF whose PF is not on this machine, none.
    pub pf: Option<PciAddress>,
}

/// How several devices for one container go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Preference {
    /// On as few PFs as can be, and on those that have the fewest devices left.
    Pack,
    /// Evenly, always from the PF with the most devices left.
    Spread,
    /// Each on a PF of its own, as long as there are any: for bonds.
    DifferentPf,
    /// On one NUMA node.
    SameNuma,
    /// On one PCI root.
    SamePcieRoot,
}

/// Whether a device can be given to a pod, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// It can.
    Healthy,
    /// It has no driver.
    Unbound,
    /// It has another driver than each selector that names it asks for.
    OtherDriver {
        /// What it has.
        bound: String,
        /// What would be right.
        expected: Vec<String>,
    },
    /// It has a vfio driver and no IOMMU group.
    MissGroup,
    /// Its selector wants RDMA, and it has no RDMA device.
    MissRdma,
    /// Its selector wants a vDPA device, and it has none of that type.
    MissVdpa(VdpaType),
    /// Its selector wants vhost-net, and the machine has not both nodes for it.
    MissVhostNet,
    /// Its PF has no carrier, and its pool does not ignore that.
    NoCarrier {
        /// The PF.
        pf: PciAddress,
    },
    /// A health reporter of its PF is in the error state.
    SickPf {
        /// The PF.
        pf: PciAddress,
        /// The reporter.
        reporter: String,
    },
    /// A pod has it that got it from another pool.
    HeldThrough {
        /// The other pool, as in file names.
        pool: String,
    },
    /// It is gone from the machine while a pod has it.
    Vanished,
}

impl Health {
    /// One of the kubelet's two words.
    pub fn word(&self) -> &'static str {
        if *self == Self::Healthy { HEALTHY } else { UNHEALTHY }
    }

    /// The reason in one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Healthy => "",
            Self::Unbound => "Unbound",
            Self::OtherDriver { .. } => "OtherDriver",
            Self::MissGroup => "MissGroup",
            Self::MissRdma => "MissRdma",
            Self::MissVdpa(_) => "MissVdpa",
            Self::MissVhostNet => "MissVhostNet",
            Self::NoCarrier { .. } => "NoCarrier",
            Self::SickPf { .. } => "SickPf",
            Self::HeldThrough { .. } => "HeldThrough",
            Self::Vanished => "Vanished",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Unbound => f.write_str("no driver is bound"),
            Self::OtherDriver { bound, expected } => write!(f, "driver {bound} is bound, expected is {}", expected.join(" or ")),
            Self::MissGroup => f.write_str("it has no IOMMU group, which its vfio driver needs"),
            Self::MissRdma => f.write_str("it has no RDMA device"),
            Self::MissVdpa(wanted) => write!(f, "it has no vDPA device with driver {}", wanted.driver()),
            Self::MissVhostNet => f.write_str("the machine has not both /dev/vhost-net and /dev/net/tun; load vhost_net"),
            Self::NoCarrier { pf } => write!(f, "PF {pf} has no carrier"),
            Self::SickPf { pf, reporter } => write!(f, "devlink health reporter {reporter} of PF {pf} is in the error state"),
            Self::HeldThrough { pool } => write!(f, "a pod has it, given by pool {pool}"),
            Self::Vanished => f.write_str("it is gone from this machine"),
        }
    }
}

impl Pool {
    /// A pool without devices: what is sent last before a pool goes away.
    pub fn empty(name: PoolName) -> Self {
        Self { name, devices: BTreeMap::new(), preference: None, has_device_info: true }
    }

    /// How many devices the kubelet may give to pods.
    pub fn healthy(&self) -> usize {
        self.devices.values().filter(|device| device.health == Health::Healthy).count()
    }

    /// The message that tells the kubelet the whole pool.
    pub fn offer(&self) -> api::ListAndWatchResponse {
        let device = |(id, device): (&DeviceId, &Device)| api::Device {
            id: id.to_string(),
            health: device.health.word().to_owned(),
            topology: device.numa_node.map(|node| api::TopologyInfo { nodes: vec![api::NumaNode { id: i64::from(node) }] }),
        };
        api::ListAndWatchResponse { devices: self.devices.iter().map(device).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_fields_file_and_variable_names() {
        let name = PoolName::new("openshift.io", "intel-nics_A").unwrap();
        assert_eq!(name.to_string(), "openshift.io/intel-nics_A");
        assert_eq!(name.socket_name(), "openshift.io_intel-nics_A.sock");
        assert_eq!(name.variable(), "PCIDEVICE_OPENSHIFT_IO_INTEL-NICS_A");
        assert_eq!(name.posix_variable(), "PCIDEVICE_OPENSHIFT_IO_INTEL_NICS_A");
        assert_eq!(name.cdi_kind(), "openshift.io/net-intel-nics_A");
        assert_eq!(PoolName::new("4x.io", "9_").unwrap().cdi_kind(), "x.4x.io/net-9_x");
        assert_eq!(name.device_info_name("0000:01:10.0"), "openshift.io-intel-nics_A-0000:01:10.0-device.json");
    }

    #[test]
    fn names_that_could_leave_a_folder_or_that_kubernetes_refuses_are_refused() {
        for (prefix, resource) in [("", "a"), ("../x", "a"), ("x/y", "a"), ("Intel.com", "a"), ("-a.io", "a"), ("a..io", "a")] {
            assert_eq!(PoolName::new(prefix, resource).unwrap_err().key, "resourcePrefix", "{prefix}");
        }
        for resource in ["", "a/b", "a.b", "ä", " a"] {
            assert_eq!(PoolName::new("intel.com", resource).unwrap_err().key, "resourceName", "{resource}");
        }
        assert!(PoolName::new("intel.com", &"a".repeat(64)).is_err());
    }

    #[test]
    fn the_offer_tells_health_and_numa_node() {
        let device =
            |numa_node, health| Device { driver: None, numa_node, health, needs: Needs::default(), place: Place::default(), extra: BTreeMap::new() };
        let address = |text: &str| text.parse::<DeviceId>().unwrap();
        let mut pool = Pool::empty(PoolName::new("intel.com", "a").unwrap());
        pool.devices.insert(address("0000:01:10.2"), device(None, Health::Unbound));
        pool.devices.insert(address("0000:01:10.0"), device(Some(1), Health::Healthy));

        let offer = pool.offer().devices;
        assert_eq!((offer[0].id.as_str(), offer[0].health.as_str()), ("0000:01:10.0", "Healthy"));
        assert_eq!(offer[0].topology.as_ref().unwrap().nodes[0].id, 1);
        assert_eq!((offer[1].id.as_str(), offer[1].health.as_str()), ("0000:01:10.2", "Unhealthy"));
        assert_eq!(offer[1].topology, None);
        assert_eq!(pool.healthy(), 1);
    }
}
