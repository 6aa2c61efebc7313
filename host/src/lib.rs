//! I/O: the Linux machine as the products see it: PCI functions in sysfs, links over netlink, network namespaces.
//!
//! What lives here: value types of the domain (`pci`, `mac`, `vlan`, `rate`, `vf`, `inventory`), the only code that opens files of the
//! machine (`sysfs`), one netlink verb per kernel operation (`netlink`), driver binding (`driver`), namespaces (`netns`), events (`uevent`).
//!
//! What never lives here: Kubernetes, policy, decisions, async, YAML. Async callers use `spawn_blocking`.
//!
//! Invariant: the root of the file system is a value ([`Host::at`]), never a global, so that tests run in parallel on trees of their own.

use std::path::{Path, PathBuf};

use crate::pci::PciAddress;
use crate::sysfs::Sysfs;

pub mod auxiliary;
pub mod boot_config;
pub mod cloud;
pub mod device_id;
pub mod discover;
pub mod driver;
pub mod function;
pub mod guid;
pub mod host_use;
pub mod inventory;
pub mod kernel;
pub mod mac;
pub mod module;
pub mod netlink;
pub mod netns;
pub mod nic;
pub mod pci;
pub mod rate;
pub mod sriov;
pub mod storage;
pub mod sysfs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod uevent;
pub mod vdpa;
pub mod vf;
pub mod vlan;

/// A machine, named by the folder under which its `/sys` and `/proc` are found. Netlink has no root: it always speaks to the network
/// namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Host {
    sysfs: Sysfs,
}

impl Host {
    /// The machine that this process runs on, with `/sys` where it always is.
    pub fn system() -> Self {
        Self::at("/")
    }

    /// The machine whose files are below `root`: `/host` in a container that mounts them there, a folder of its own in a test.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { sysfs: Sysfs::new(root) }
    }

    /// Its files.
    pub fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// The folder under which its files are found.
    pub fn root(&self) -> &Path {
        self.sysfs.root()
    }
}

/// The sysfs folder of a PCI function, as a path on the machine (not below the root).
pub(crate) fn pci_device(address: PciAddress) -> String {
    format!("/sys/bus/pci/devices/{address}")
}
