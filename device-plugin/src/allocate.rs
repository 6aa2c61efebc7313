//! Pure: what a container gets with its devices: environment and device nodes. The field's format, bit for bit:
//! `sriov-network-device-plugin pkg/resources/pool_stub.go` (`GetEnvs`, `GetDeviceSpecs`) and `pkg/infoprovider`. Beyond the field: names of
//! variables that a shell can name, the nodes of iommufd, and a node for `uio_pci_generic`.
//!
//! What does not live here: looking at the devices (`server`), files (`device_info`, `cdi`).
//!
//! Invariant: a device is given only if it is in the pool, was there a moment ago, has the driver with which it was offered, and has each node
//! that its driver and its selector ask for.

use std::collections::BTreeMap;

use sriov_host::function::Access;

use crate::pool::{Device, Health, Pool, PoolName, VdpaType};
use crate::select::is_vfio;
use sriov_host::device_id::DeviceId;

const VFIO_CONTAINER: &str = "/dev/vfio/vfio";
const IOMMUFD: &str = "/dev/iommu";
const VHOST_NET: &str = "/dev/vhost-net";
const TUN: &str = "/dev/net/tun";

/// Drivers that give a device to user space by `/dev/uioN`.
const UIO_DRIVERS: [&str; 3] = ["uio", "igb_uio", "uio_pci_generic"];

/// What one container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// The devices in the order asked for.
    pub devices: Vec<Granted>,
}

/// One device that a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub address: DeviceId,
    /// Its device nodes, in the field's order.
    pub nodes: Vec<Node>,
    /// Its RDMA devices, if its selector asks for RDMA.
    pub rdma: Vec<String>,
    /// Its vDPA device, if its selector asks for one: type, name, and the path of its node.
    pub vdpa: Option<(VdpaType, String, Option<String>)>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Path on the host.
    pub host: String,
    /// Path in the container.
    pub container: String,
}

/// Why a device cannot be given. The kubelet shows it in the pod's status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The kubelet asks for what was not offered, or no longer is.
    #[error("{id} is not a device of {pool}")]
    MissDevice {
        /// The device id asked for.
        id: String,
        /// The pool asked.
        pool: PoolName,
    },
    /// It is offered as unhealthy, and the kubelet has not yet seen that.
    #[error("{address} of {pool} cannot be used: {health}")]
    RefuseUnhealthy {
        /// The device.
        address: DeviceId,
        /// Its pool.
        pool: PoolName,
        /// Why.
        health: Health,
    },
    /// It is gone from the machine.
    #[error("{address} of {pool} is no longer on this node")]
    LoseDevice {
        /// The device.
        address: DeviceId,
        /// Its pool.
        pool: PoolName,
    },
    /// It has another driver than when it was offered.
    #[error("{address} of {pool} has driver {found}, it was offered with {offered}")]
    LoseDriver {
        /// The device.
        address: DeviceId,
        /// Its pool.
        pool: PoolName,
        /// What it has now, `none` if unbound.
        found: String,
        /// What it had.
        offered: String,
    },
    /// A node that goes with it is not there.
    #[error("{address} of {pool} has no {what}")]
    MissNode {
        /// The device.
        address: DeviceId,
        /// Its pool.
        pool: PoolName,
        /// What is missing, and for what.
        what: String,
    },
    /// Another pod still has it.
    #[error("{address} of {pool} is still in use by {by}")]
    RefuseHeld {
        /// The device.
        address: DeviceId,
        /// Its pool.
        pool: PoolName,
        /// Who has it.
        by: String,
    },
}

impl AllocateError {
    /// The reason in one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissDevice { .. } => "MissDevice",
            Self::RefuseUnhealthy { .. } => "RefuseUnhealthy",
            Self::LoseDevice { .. } => "LoseDevice",
            Self::LoseDriver { .. } => "LoseDriver",
            Self::MissNode { .. } => "MissNode",
            Self::RefuseHeld { .. } => "RefuseHeld",
        }
    }
}

/// What a container gets that asked for these devices. `look` looks at a device as it is now.
pub fn container(pool: &Pool, ids: &[String], look: &dyn Fn(&DeviceId) -> Option<Access>) -> Result<Grant, AllocateError> {
    let mut info = BTreeMap::new();
    let mut devices = Vec::new();
    for id in ids {
        let (address, device) = offered(pool, id)?;
        let access = look(&address).ok_or_else(|| AllocateError::LoseDevice { address, pool: pool.name.clone() })?;
        let (granted, keys) = Giving { pool, address, device, access: &access }.give()?;
        devices.push(granted);
        info.insert(id.as_str(), keys);
    }
    let info = serde_json::json!(info).to_string();
    let mut envs = BTreeMap::new();
    for variable in [pool.name.variable(), pool.name.posix_variable()] {
        envs.insert(format!("{variable}_INFO"), info.clone());
        envs.insert(variable, ids.join(","));
    }
    Ok(Grant { envs, devices })
}

fn offered<'a>(pool: &'a Pool, id: &str) -> Result<(DeviceId, &'a Device), AllocateError> {
    let device = id.parse().ok().and_then(|address: DeviceId| pool.devices.get(&address).map(|device| (address, device)));
    let (address, device) = device.ok_or_else(|| AllocateError::MissDevice { id: id.to_owned(), pool: pool.name.clone() })?;
    if device.health != Health::Healthy {
        return Err(AllocateError::RefuseUnhealthy { address, pool: pool.name.clone(), health: device.health.clone() });
    }
    Ok((address, device))
}

/// Provider -> key -> value of one device in the `_INFO` variable.
type Info = BTreeMap<&'static str, BTreeMap<String, String>>;

/// One device on its way to a container.
struct Giving<'a> {
    pool: &'a Pool,
    address: DeviceId,
    device: &'a Device,
    access: &'a Access,
}

impl Giving<'_> {
    fn give(&self) -> Result<(Granted, Info), AllocateError> {
        if self.access.driver != self.device.driver {
            let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "none".to_owned());
            let (found, offered) = (name(&self.access.driver), name(&self.device.driver));
            return Err(AllocateError::LoseDriver { address: self.address, pool: self.pool.name.clone(), found, offered });
        }
        let mut granted = Granted { address: self.address, nodes: Vec::new(), rdma: Vec::new(), vdpa: None };
        let mut info = Info::from([("generic", keys([("deviceID", self.address.to_string())]))]);
        self.user_space_driver(&mut granted, &mut info)?;
        if let Some(wanted) = self.device.needs.vdpa {
            self.vdpa(wanted, &mut granted, &mut info)?;
        }
        if self.device.needs.rdma {
            self.rdma(&mut granted, &mut info)?;
        }
        if self.device.needs.vhost_net {
            granted.nodes.extend([VHOST_NET, TUN].map(Node::same));
            info.insert("vhost", keys([("net-mount", VHOST_NET.to_owned()), ("tun-mount", TUN.to_owned())]));
        }
        if !self.device.extra.is_empty() {
            info.insert("extra", self.device.extra.clone());
        }
        Ok((granted, info))
    }

    fn user_space_driver(&self, granted: &mut Granted, info: &mut Info) -> Result<(), AllocateError> {
        let Some(driver) = self.access.driver.as_deref() else { return Ok(()) };
        if is_vfio(driver) {
            let group = self.access.iommu_group.ok_or_else(|| self.miss(format!("IOMMU group, which driver {driver} needs")))?;
            let inside = format!("/dev/vfio/{group}");
            let outside = if self.access.no_iommu { format!("/dev/vfio/noiommu-{group}") } else { inside.clone() };
            granted.nodes.extend([Node::same(VFIO_CONTAINER), Node { host: outside, container: inside.clone() }]);
            let mut vfio = keys([("mount", VFIO_CONTAINER.to_owned()), ("dev-mount", inside)]);
            if let Some(own) = self.access.vfio_node.as_ref().filter(|_| self.access.iommufd && !self.access.no_iommu) {
                let own = format!("/dev/vfio/devices/{own}");
                granted.nodes.extend([Node::same(IOMMUFD), Node::same(&own)]);
                vfio.extend(keys([("iommufd-mount", IOMMUFD.to_owned()), ("cdev-mount", own)]));
            }
            info.insert("vfio", vfio);
        } else if UIO_DRIVERS.contains(&driver) {
            let node = self.access.uio.as_ref().ok_or_else(|| self.miss(format!("uio node, which driver {driver} makes")))?;
            let node = format!("/dev/{node}");
            granted.nodes.push(Node::same(&node));
            info.insert("uio", keys([("mount", node)]));
        }
        Ok(())
    }

    fn vdpa(&self, wanted: VdpaType, granted: &mut Granted, info: &mut Info) -> Result<(), AllocateError> {
        let vdpa = self.access.vdpa.as_ref().filter(|vdpa| vdpa.driver.as_deref() == Some(wanted.driver()));
        let vdpa = vdpa.ok_or_else(|| self.miss(format!("vDPA device with driver {}", wanted.driver())))?;
        let path = match (wanted, &vdpa.node) {
            (VdpaType::Virtio, _) => None,
            (VdpaType::Vhost, Some(node)) => Some(format!("/dev/{node}")),
            (VdpaType::Vhost, None) => return Err(self.miss(format!("node of its vDPA device {}", vdpa.name))),
        };
        granted.nodes.extend(path.as_deref().map(Node::same));
        info.insert("vdpa", path.iter().map(|path| ("mount".to_owned(), path.clone())).collect());
        granted.vdpa = Some((wanted, vdpa.name.clone(), path));
        Ok(())
    }

    fn rdma(&self, granted: &mut Granted, info: &mut Info) -> Result<(), AllocateError> {
        let first = self.access.rdma.first().ok_or_else(|| self.miss("RDMA device".to_owned()))?;
        let mut told = keys([("rdma_dev", first.clone())]);
        for node in &self.access.rdma_nodes {
            let path = format!("/dev/infiniband/{node}");
            granted.nodes.push(Node::same(&path));
            let kind = ["uverbs", "umad", "issm", "rdma_cm"].into_iter().find(|kind| node.starts_with(kind));
            told.extend(kind.map(|kind| (kind.to_owned(), path)));
        }
        info.insert("rdma", told);
        granted.rdma.clone_from(&self.access.rdma);
        Ok(())
    }

    fn miss(&self, what: String) -> AllocateError {
        AllocateError::MissNode { address: self.address, pool: self.pool.name.clone(), what }
    }
}

impl Node {
    fn same(path: &str) -> Self {
        Self { host: path.to_owned(), container: path.to_owned() }
    }
}

impl Grant {
    /// The nodes of all devices, each path of the host once, in order of first use.
    pub fn nodes(&self) -> Vec<&Node> {
        let mut nodes: Vec<&Node> = Vec::new();
        for node in self.devices.iter().flat_map(|device| &device.nodes) {
            if nodes.iter().all(|other| other.host != node.host) {
                nodes.push(node);
            }
        }
        nodes
    }
}

fn keys<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests;
