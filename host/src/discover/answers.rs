//! I/O: what a look asks netlink, as a trait: the kernel answers in the product, a value in tests and benchmarks.
//!
//! What does not live here: which PF is asked about (`discover`, `kept`).
//!
//! Invariant: links are in order of their index, so that two looks at the same machine are the same.

use rustix::io::Errno;

use super::{DiscoverError, NetFacts};
use crate::host_use::HostNetwork;
use crate::inventory::{EswitchMode, FirmwareSettings, RdmaMode};
use crate::netlink::devlink::{Device, Devlink};
use crate::netlink::rdma::Rdma;
use crate::netlink::{Link, NetlinkError, Route};
use crate::pci::PciAddress;
use crate::vf::VfAttributes;
use crate::{Host, storage};

/// Who answers what sysfs does not tell.
pub trait Answers {
    /// All links of the namespace, in order of index.
    fn links(&self) -> Result<Vec<Link>, NetlinkError>;
    /// The link with this index; `None` when it is not in this namespace.
    fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError>;
    /// Addresses and routes of the host, and the storage that it reaches by them.
    fn network(&self, host: &Host) -> Result<HostNetwork, NetlinkError>;
    /// Namespace mode of RDMA devices; `None` where it is not known.
    fn rdma_mode(&self) -> Option<RdmaMode>;
    /// Eswitch mode of a PF; `None` without the right to ask.
    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError>;
    /// Version of a PF's firmware.
    fn firmware(&self, pf: PciAddress) -> Option<String>;
    /// What a PF's firmware is told about VFs for its next start.
    fn firmware_settings(&self, pf: PciAddress) -> FirmwareSettings;
    /// What the PF with this netdev reports of its VFs.
    fn vfs(&self, ifindex: u32) -> Result<Vec<VfAttributes>, NetlinkError>;
}

/// The kernel, in the network namespace of the thread that made this.
#[derive(Debug)]
pub(super) struct Kernel {
    route: Route,
    devlink: Devlink,
}

impl Kernel {
    pub(super) fn open() -> Result<Self, DiscoverError> {
        Ok(Self { route: Route::open()?, devlink: Devlink::open()? })
    }
}

impl Answers for Kernel {
    fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = self.route.links()?;
        links.sort_by_key(|link| link.netdev.ifindex);
        Ok(links)
    }

    fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        self.route.link_by_index(ifindex)
    }

    fn network(&self, host: &Host) -> Result<HostNetwork, NetlinkError> {
        Ok(HostNetwork { addresses: self.route.all_addresses()?, routes: self.route.routes_out()?, storage: storage::peers(host) })
    }

    fn rdma_mode(&self) -> Option<RdmaMode> {
        // Unknown is fine: it is compared only where a policy asks for a mode.
        Rdma::open().and_then(|rdma| rdma.mode()).ok().flatten()
    }

    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
        match self.devlink.eswitch_mode(pf) {
            // devlink answers this question only with CAP_NET_ADMIN. A process without it changes nothing either.
            Err(error) if error.is(Errno::PERM) => Ok(None),
            answer => answer.map(Some),
        }
    }

    fn firmware(&self, pf: PciAddress) -> Option<String> {
        // Not worth a fault: nothing is decided by it.
        self.devlink.firmware(&Device::from(pf)).ok().flatten()
    }

    fn firmware_settings(&self, pf: PciAddress) -> FirmwareSettings {
        // What cannot be read cannot be set either, and is then told like a driver without these parameters.
        self.devlink.firmware_settings(&Device::from(pf)).unwrap_or_default()
    }

    fn vfs(&self, ifindex: u32) -> Result<Vec<VfAttributes>, NetlinkError> {
        self.route.vfs(ifindex)
    }
}

/// A machine whose netlink is a value. `links` must be in order of index.
impl Answers for NetFacts {
    fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        Ok(self.links.clone())
    }

    fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links.iter().find(|link| link.netdev.ifindex == ifindex).cloned())
    }

    fn network(&self, _host: &Host) -> Result<HostNetwork, NetlinkError> {
        Ok(self.network.clone())
    }

    fn rdma_mode(&self) -> Option<RdmaMode> {
        self.rdma_mode
    }

    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
        Ok(self.eswitch_modes.get(&pf).copied())
    }

    fn firmware(&self, pf: PciAddress) -> Option<String> {
        self.firmware.get(&pf).cloned()
    }

    fn firmware_settings(&self, pf: PciAddress) -> FirmwareSettings {
        self.firmware_settings.get(&pf).cloned().unwrap_or_default()
    }

    fn vfs(&self, ifindex: u32) -> Result<Vec<VfAttributes>, NetlinkError> {
        Ok(self.vf_attributes.get(&ifindex).cloned().unwrap_or_default())
    }
}
