//! I/O: a VF back to what its journal remembers, from wherever it is: still in the host, in a living container, or thrown out of a dead one.
//!
//! What does not live here: who may ask for it (`del`, `gc`, `add`, `undo`), locks and the journal file.
//!
//! Invariant: only what the journal says was applied is taken back, nothing that has its value already is written, and doing it twice is the
//! same as doing it once.

use std::path::Path;
use std::time::Instant;

use sriov_host::Host;
use sriov_host::discover::DiscoverError;
use sriov_host::netlink::{Link, NetlinkError, Route};
use sriov_host::netns::{NetNs, NetNsError, NsId};
use sriov_host::sysfs::SysfsError;
use sriov_host::uevent::UeventError;
use sriov_host::vf::VfSetting;

use crate::Context;
use crate::attach::{AttachError, set_attributes};
use crate::device::{DeviceError, attributes, has_netdev, locate};
use crate::infiniband::{self, ProbeError};
use crate::journal::{Journal, Owner};
use crate::log::{Level, Log};
use crate::rdma::{self, RdmaError};
use crate::{trunk, vf_plan};

mod lost;
mod netdev;

pub(crate) use lost::lost;

/// A VF that could not be brought back. CNI error code 105.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It has a network driver but its netdev is nowhere.
    #[error("the netdev of VF {vf} is neither in the host nor in the container's namespace {netns}")]
    Missing {
        /// The VF.
        vf: String,
        /// Where it was.
        netns: String,
    },
    /// A change of its netdev failed.
    #[error("failed to {what}: {cause}")]
    Change {
        /// The change.
        what: String,
        /// Why.
        cause: NetlinkError,
    },
    /// Its PF refused.
    #[error(transparent)]
    Attributes(#[from] AttachError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Kernel events.
    #[error(transparent)]
    Uevent(#[from] UeventError),
    /// Its RDMA device.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
    /// Binding it anew.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Its trunk.
    #[error("failed to bring the VLAN trunk back: {0}")]
    Trunk(SysfsError),
}

/// The owner's network namespace if it is still the one of ADD, by the path of ADD or by the one that the runtime gives now.
pub(crate) fn living_netns(owner: &Owner, given_now: Option<&Path>) -> Option<NetNs> {
    let remembered = NsId { dev: owner.netns_dev, ino: owner.netns_inode };
    let same = |path: &Path| NetNs::open(path).ok().filter(|netns| netns.id().is_ok_and(|id| id == remembered));
    same(&owner.netns_path).or_else(|| given_now.and_then(same))
}

/// Identifies the running kernel; empty where it can't be read.
pub(crate) fn boot_id(host: &Host) -> String {
    host.sysfs().read_opt("/proc/sys/kernel/random/boot_id").ok().flatten().unwrap_or_default()
}

/// Brings the VF back.
pub(crate) fn restore(ctx: &Context<'_>, journal: &Journal) -> Result<(), RestoreError> {
    let Context { host, log, .. } = *ctx;
    if journal.boot_id != boot_id(host) {
        log.write(Level::Info, &format_args!("VF {} was attached before a reboot: nothing to restore", journal.vf));
        return Ok(());
    }
    let gone = || log.write(Level::Info, &format_args!("VF {} no longer exists: nothing to restore", journal.vf));
    let location = match locate(host, journal.vf) {
        Ok(location) if location.pf.is_some() == journal.pf.is_some() => location,
        // A VF that is made again is as fresh as its driver makes it.
        Ok(_) | Err(DeviceError::NotAVf { .. } | DeviceError::FindSubFunction { .. }) => {
            gone();
            return Ok(());
        }
        Err(DeviceError::Find { cause, .. }) if matches!(*cause, DiscoverError::MissingDevice(_)) => {
            gone();
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let route = Route::open()?;
    let given_now = ctx.request.netns.as_deref();
    let restoring = Restoring { host, log, route: &route, journal, given_now, deadline: ctx.deadline.at() };
    restoring.run(location.driver.as_deref())
}

struct Restoring<'a> {
    host: &'a Host,
    log: &'a Log,
    route: &'a Route,
    journal: &'a Journal,
    given_now: Option<&'a Path>,
    deadline: Instant,
}

impl Restoring<'_> {
    /// All of it, in an order that leaves each step to be done again when a later one fails. An RDMA device goes before its netdev: programs that look
    /// for devices when a netdev appears find both.
    fn run(&self, driver: Option<&str>) -> Result<(), RestoreError> {
        if !self.journal.rdma.is_empty()
            && let Some(netns) = living_netns(&self.journal.owner, self.given_now)
        {
            rdma::move_out(&self.journal.rdma, &netns)?;
        }
        match self.journal.original.netdev.as_ref().filter(|_| driver.is_some_and(has_netdev)) {
            None => self.attributes()?,
            Some(original)
                if infiniband::needs_probe(driver, &self.journal.applied.settings) && infiniband::needs_probe(driver, &self.pending()?.1) =>
            {
                self.attributes()?;
                let (Some(vf), Some(driver)) = (self.journal.vf.pci(), driver) else { return Ok(()) };
                // Its netdev is made anew in the host, wherever the old one is.
                let link = infiniband::probe_again(self.host, self.route, vf, driver, self.deadline)?;
                self.finish(link, original)?;
            }
            Some(original) => {
                let back = self.netdev(original)?;
                self.attributes()?;
                // The PF's attributes may have changed the address; otherwise it is as it was seen.
                if !self.journal.applied.settings.is_empty() || !back.has_its_mac {
                    self.last_look(original, back.ifindex)?;
                }
            }
        }
        self.trunk()?;
        Ok(rdma::wait(self.host, self.journal.vf, &self.journal.rdma, self.deadline)?)
    }

    /// The PF with what it has to set to bring the VF's attributes back.
    fn pending(&self) -> Result<(Option<Link>, Vec<VfSetting>), RestoreError> {
        let (Some(original), false) = (&self.journal.original.attributes, self.journal.applied.settings.is_empty()) else {
            return Ok((None, Vec::new()));
        };
        let (link, current) = attributes(self.host, self.route, self.journal.vf, (self.journal.pf, self.journal.index))?;
        Ok((Some(link), vf_plan::inverse(&self.journal.applied.settings, original, &current)))
    }

    /// The attributes that the PF holds.
    fn attributes(&self) -> Result<(), RestoreError> {
        let (Some(pf), back) = self.pending()? else { return Ok(()) };
        set_attributes(self.route, &pf, self.journal.index, &back)?;
        for setting in &back {
            self.log.write(Level::Info, &format_args!("VF {} of {}: {setting}", self.journal.index, pf.netdev.name));
        }
        Ok(())
    }

    /// The trunk, where the driver still has the file.
    fn trunk(&self) -> Result<(), RestoreError> {
        let (Some(original), Some(pf)) = (self.journal.original.trunk.as_ref().filter(|_| self.journal.applied.trunk.is_some()), self.journal.pf)
        else {
            return Ok(());
        };
        let index = self.journal.index;
        let Some(current) = trunk::read(self.host, pf, index).map_err(RestoreError::Trunk)? else { return Ok(()) };
        trunk::write(self.host, pf, index, &current, original).map_err(RestoreError::Trunk)
    }
}
