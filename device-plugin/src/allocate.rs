//! Pure: what a container gets with its devices: environment and device nodes. The field's format, bit for bit:
//! `sriov-network-device-plugin pkg/resources/pool_stub.go` (`GetEnvs`, `GetDeviceSpecs`) and `pkg/infoprovider`.
//!
//! What does not live here: looking at the devices (`server`), the device-info file (`device_info`).
//!
//! Invariant: a device is given only if it is in the pool, was there a moment ago, and has the driver with which it was offered.

use std::collections::BTreeMap;

use sriov_host::pci::PciAddress;

use crate::api::deviceplugin_v1beta1 as api;
use crate::pool::{Device, Health, Pool, PoolName};

const VFIO_CONTAINER: &str = "/dev/vfio/vfio";
const VHOST_NET: &str = "/dev/vhost-net";
const TUN: &str = "/dev/net/tun";

/// What a look at the machine at the moment of allocation found of one device. Group numbers change over a reboot, so they are never kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Bound driver.
    pub driver: Option<String>,
    /// IOMMU group number.
    pub iommu_group: Option<u32>,
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
        address: PciAddress,
        /// Its pool.
        pool: PoolName,
        /// Why.
        health: Health,
    },
    /// It is gone from the machine.
    #[error("{address} of {pool} is no longer on this node")]
    LoseDevice {
        /// The device.
        address: PciAddress,
        /// Its pool.
        pool: PoolName,
    },
    /// It has another driver than when it was offered.
    #[error("{address} of {pool} has driver {found}, it was offered with {offered}")]
    LoseDriver {
        /// The device.
        address: PciAddress,
        /// Its pool.
        pool: PoolName,
        /// What it has now, `none` if unbound.
        found: String,
        /// What it had.
        offered: String,
    },
    /// A vfio driver without a group: the machine runs without an IOMMU.
    #[error("{address} of {pool} has driver {driver} but no IOMMU group")]
    MissGroup {
        /// The device.
        address: PciAddress,
        /// Its pool.
        pool: PoolName,
        /// Its driver.
        driver: String,
    },
}

/// The answer for one container. `look` tells what is at an address now, `None` when nothing is.
pub fn container(pool: &Pool, ids: &[String], look: &dyn Fn(PciAddress) -> Option<Present>) -> Result<api::ContainerAllocateResponse, AllocateError> {
    let mut info = BTreeMap::new();
    let mut nodes = Nodes::default();
    for id in ids {
        let (address, device) = offered(pool, id)?;
        let present = look(address).ok_or_else(|| AllocateError::LoseDevice { address, pool: pool.name.clone() })?;
        info.insert(id.as_str(), provide(pool, address, device, &present, &mut nodes)?);
    }
    let variable = pool.name.variable();
    let info = serde_json::json!(info).to_string();
    Ok(api::ContainerAllocateResponse {
        envs: BTreeMap::from([(format!("{variable}_INFO"), info), (variable, ids.join(","))]),
        devices: nodes.0,
        ..Default::default()
    })
}

fn offered<'a>(pool: &'a Pool, id: &str) -> Result<(PciAddress, &'a Device), AllocateError> {
    let device = id.parse().ok().and_then(|address| Some((address, pool.devices.get(&address)?)));
    let (address, device) = device.ok_or_else(|| AllocateError::MissDevice { id: id.to_owned(), pool: pool.name.clone() })?;
    if device.health != Health::Healthy {
        return Err(AllocateError::RefuseUnhealthy { address, pool: pool.name.clone(), health: device.health.clone() });
    }
    Ok((address, device))
}

/// Provider -> key -> value of one device in the `_INFO` variable.
type Info = BTreeMap<&'static str, BTreeMap<String, String>>;

fn provide(pool: &Pool, address: PciAddress, device: &Device, present: &Present, nodes: &mut Nodes) -> Result<Info, AllocateError> {
    if present.driver != device.driver {
        let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "none".to_owned());
        let (found, offered) = (name(&present.driver), name(&device.driver));
        return Err(AllocateError::LoseDriver { address, pool: pool.name.clone(), found, offered });
    }
    let mut info = Info::from([("generic", keys([("deviceID", address.to_string())]))]);
    if let Some(driver) = present.driver.as_deref().filter(|driver| is_vfio(driver)) {
        let group = present.iommu_group.ok_or_else(|| AllocateError::MissGroup { address, pool: pool.name.clone(), driver: driver.to_owned() })?;
        let group = format!("/dev/vfio/{group}");
        nodes.add(VFIO_CONTAINER);
        nodes.add(&group);
        info.insert("vfio", keys([("mount", VFIO_CONTAINER.to_owned()), ("dev-mount", group)]));
    }
    if device.need_vhost_net {
        nodes.add(VHOST_NET);
        nodes.add(TUN);
        info.insert("vhost", keys([("net-mount", VHOST_NET.to_owned()), ("tun-mount", TUN.to_owned())]));
    }
    if !device.extra.is_empty() {
        info.insert("extra", device.extra.clone());
    }
    Ok(info)
}

fn keys<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `vfio-pci`, and its variants for one family of devices (`mlx5_vfio_pci`).
fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("_vfio_pci")
}

/// Device nodes, each path once, in order of first use.
#[derive(Default)]
struct Nodes(Vec<api::DeviceSpec>);

impl Nodes {
    fn add(&mut self, path: &str) {
        if self.0.iter().all(|node| node.host_path != path) {
            self.0.push(api::DeviceSpec { container_path: path.to_owned(), host_path: path.to_owned(), permissions: "rw".to_owned() });
        }
    }
}

#[cfg(test)]
mod tests;
