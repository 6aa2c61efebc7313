//! I/O: the RDMA device of a VF or sub-function, which goes into the container with the netdev where the machine's RDMA devices belong to one network
//! namespace each ("exclusive" mode). In shared mode every namespace sees all of them, and there is nothing to do.
//!
//! What does not live here: setting the mode (the config daemon's).
//!
//! Invariant: a device is known by its number, which is in the journal before the move; one that the kernel can't move is an error and not a pod
//! that finds no RDMA device.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Instant;

use sriov_host::Host;
use sriov_host::inventory::RdmaMode;
use sriov_host::netlink::route::OpenRouteError;
use sriov_host::netlink::{NetlinkError, Rdma, RdmaDevice};
use sriov_host::netns::{NetNs, NetNsError};
use sriov_host::sysfs::SysfsError;
use sriov_host::uevent::{UeventError, UeventSocket};

use crate::device::Device;
use crate::io::find_plugin;
use crate::journal::RdmaRecord;
use sriov_host::device_id::DeviceId;

/// The plugin that does the same for networks of the Go plugin.
const CHAINED: &str = "rdma";

/// An RDMA device that is not where it has to be. CNI error codes 102 and 105.
#[derive(Debug, thiserror::Error)]
pub enum RdmaError {
    /// A network asks for what the machine can't give.
    #[error("rdmaIsolation is true, but {why}")]
    Asked {
        /// What is missing.
        why: String,
    },
    /// sysfs shows a device that the RDMA core does not.
    #[error("the RDMA device {name} of {vf} is not in the host's network namespace: is it still in another container?")]
    Elsewhere {
        /// The device.
        vf: DeviceId,
        /// Its RDMA device.
        name: String,
    },
    /// The kernel refused the move.
    #[error("{cause} (its driver may not be able to; rdmaIsolation false leaves it in the host)")]
    Move {
        /// The kernel's answer.
        cause: NetlinkError,
    },
    /// It did not come back from a namespace that ended.
    #[error("the RDMA device {name} of {vf} is neither in the host nor in the container")]
    Missing {
        /// The device.
        vf: DeviceId,
        /// Its RDMA device.
        name: String,
    },
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file of the machine.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Kernel events.
    #[error(transparent)]
    Uevent(#[from] UeventError),
}

impl From<OpenRouteError> for RdmaError {
    fn from(error: OpenRouteError) -> Self {
        match error {
            OpenRouteError::Enter(error) => Self::NetNs(error),
            OpenRouteError::Open(error) => Self::Netlink(error),
        }
    }
}

/// The RDMA devices that have to go along: all of the device's in exclusive mode, unless the network does not want it; none otherwise. Where a network
/// does not say, and the plugin `rdma` is on CNI_PATH, they are left to that: chained behind this one, it fails when it finds none in the host.
pub(crate) fn to_move(host: &Host, device: &Device, asked: Option<bool>, path: &[PathBuf]) -> Result<Vec<RdmaRecord>, RdmaError> {
    if asked == Some(false) || device.netdev.is_none() {
        return Ok(Vec::new());
    }
    let names = names_of(host, device.vf)?;
    let refuse = |why: String| if asked == Some(true) { Err(RdmaError::Asked { why }) } else { Ok(Vec::new()) };
    if names.is_empty() {
        return refuse(format!("{} has no RDMA device", device.vf));
    }
    let rdma = Rdma::open()?;
    if rdma.mode()? != Some(RdmaMode::Exclusive) {
        return refuse("RDMA devices are shared by all network namespaces here: rdmaMode exclusive of the node's pool changes that".to_owned());
    }
    if asked.is_none() && find_plugin(path, CHAINED).is_some() {
        return Ok(Vec::new());
    }
    let there = rdma.devices()?;
    let known = |name: String| match there.iter().find(|device| device.name == name) {
        Some(found) => Ok(RdmaRecord { index: found.index, name }),
        None => Err(RdmaError::Elsewhere { vf: device.vf, name }),
    };
    names.into_iter().map(known).collect()
}

/// Moves them into the container.
pub(crate) fn move_in(devices: &[RdmaRecord], netns: &NetNs) -> Result<(), RdmaError> {
    if devices.is_empty() {
        return Ok(());
    }
    let rdma = Rdma::open()?;
    devices.iter().try_for_each(|device| rdma.move_device(&device.known(), netns.as_fd()).map_err(|cause| RdmaError::Move { cause }))
}

/// The first of them that a container does not see. In shared mode every namespace sees all that there are.
pub(crate) fn absent<'a>(devices: &'a [RdmaRecord], netns: &NetNs) -> Result<Option<&'a RdmaRecord>, RdmaError> {
    if devices.is_empty() {
        return Ok(None);
    }
    let there = Rdma::open_in(netns)?.devices()?;
    Ok(devices.iter().find(|device| there.iter().all(|found| found.index != device.index)))
}

/// Takes them back from a container that lives, under their old names. What is not there is left to [`wait`].
pub(crate) fn move_out(devices: &[RdmaRecord], netns: &NetNs) -> Result<(), RdmaError> {
    if devices.is_empty() {
        return Ok(());
    }
    let (pod, host) = (Rdma::open_in(netns)?, NetNs::current()?);
    let there = pod.devices()?;
    for device in devices {
        // In shared mode by now, every namespace has it.
        let Some(found) = there.iter().find(|found| found.index == device.index) else { continue };
        if pod.mode()? != Some(RdmaMode::Exclusive) {
            break;
        }
        if found.name != device.name {
            pod.rename_device(found, &device.name)?;
        }
        pod.move_device(&device.known(), host.as_fd()).map_err(|cause| RdmaError::Move { cause })?;
    }
    Ok(())
}

/// Waits until they are in the host: the kernel throws them out of a namespace some time after its end. A device whose driver was bound anew has
/// another number and needs nothing.
pub(crate) fn wait(host: &Host, vf: DeviceId, devices: &[RdmaRecord], deadline: Instant) -> Result<(), RdmaError> {
    if devices.is_empty() {
        return Ok(());
    }
    let rdma = Rdma::open()?;
    let events = UeventSocket::open()?;
    let missing = || -> Result<Option<String>, RdmaError> {
        let here = rdma.devices()?;
        let present = |device: &RdmaRecord| here.iter().any(|found| found.index == device.index || found.name == device.name);
        let again = !names_of(host, vf)?.is_empty();
        Ok(devices.iter().find(|device| !present(device) && !again).map(|device| device.name.clone()))
    };
    match events.wait_until(deadline, || Ok::<_, RdmaError>(missing()?.is_none().then_some(())))? {
        Some(()) => Ok(()),
        None => missing()?.map_or(Ok(()), |name| Err(RdmaError::Missing { vf, name })),
    }
}

/// The RDMA devices that sysfs shows of a device.
fn names_of(host: &Host, vf: DeviceId) -> Result<Vec<String>, SysfsError> {
    Ok(host.sysfs().list_opt(format!("{}/infiniband", vf.folder()))?.unwrap_or_default())
}

impl RdmaRecord {
    fn known(&self) -> RdmaDevice {
        RdmaDevice { index: self.index, name: self.name.clone() }
    }
}
