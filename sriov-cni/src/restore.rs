//! I/O: a VF back to what its journal remembers, from wherever it is: still in the host, in a living container, or thrown out of a dead one.
//!
//! What does not live here: who may ask for it (`del`, `gc`, `add`, `undo`), locks and the journal file.
//!
//! Invariant: only what the journal says was applied is taken back, nothing that has its value already is written, and doing it twice is the
//! same as doing it once.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sriov_host::Host;
use sriov_host::discover::{self, DiscoverError};
use sriov_host::mac::MacAddr;
use sriov_host::netlink::route::OpenRouteError;
use sriov_host::netlink::{Link, LinkChange, NetlinkError, Route};
use sriov_host::netns::{NetNs, NetNsError, NsId};
use sriov_host::uevent::{UeventError, UeventSocket};

use crate::Context;
use crate::attach::{AttachError, set_attributes};
use crate::device::{DeviceError, netdev_in_host, pf_link};
use crate::journal::{Journal, OriginalNetdev, Owner};
use crate::log::{Level, Log};
use crate::quirks::{self, MacOrder};
use crate::vf_plan;

/// How long the kernel may take to throw a netdev out of a namespace that ended; it does so some time after the last reference is gone.
const RETURN_WAIT: Duration = Duration::from_secs(5);

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
    let location = match discover::vf_location(host, journal.vf) {
        Ok(location) => location,
        // A VF that is made again is as fresh as its driver makes it.
        Err(DiscoverError::MissingDevice(_) | DiscoverError::NotAVf(_)) => {
            log.write(Level::Info, &format_args!("VF {} no longer exists: nothing to restore", journal.vf));
            return Ok(());
        }
        Err(cause) => return Err(DeviceError::Find { vf: journal.vf, cause }.into()),
    };
    let route = Route::open()?;
    let given_now = ctx.request.netns.as_deref();
    let restoring = Restoring { host, log, route: &route, journal, given_now };
    let has_netdev = location.driver.as_deref().is_some_and(|driver| !quirks::is_userspace(driver));
    let Some(original) = journal.original.netdev.as_ref().filter(|_| has_netdev) else { return restoring.attributes() };
    restoring.netdev(original)?;
    restoring.attributes()?;
    restoring.last_look(original)
}

struct Restoring<'a> {
    host: &'a Host,
    log: &'a Log,
    route: &'a Route,
    journal: &'a Journal,
    given_now: Option<&'a Path>,
}

impl Restoring<'_> {
    fn netdev(&self, original: &OriginalNetdev) -> Result<(), RestoreError> {
        let vf = self.journal.vf;
        if let Some(link) = netdev_in_host(self.host, self.route, vf)? {
            return self.finish(link, original);
        }
        let netns = living_netns(&self.journal.owner, self.given_now);
        if let Some(netns) = &netns
            && self.bring_out(netns, original)?
            && let Some(link) = self.route.link_by_name(&original.name)?
        {
            return self.finish(link, original);
        }
        let deadline = Instant::now() + if netns.is_some() { Duration::ZERO } else { RETURN_WAIT };
        let link = self
            .wait(deadline)?
            .ok_or_else(|| RestoreError::Missing { vf: vf.to_string(), netns: self.journal.owner.netns_path.display().to_string() })?;
        self.finish(link, original)
    }

    /// Waits until the VF's netdev is in the host, under whatever name.
    fn wait(&self, deadline: Instant) -> Result<Option<Link>, RestoreError> {
        // The first look comes after this, so that a netdev that arrives now is not missed.
        let events = UeventSocket::open()?;
        let look = || Ok::<_, RestoreError>(netdev_in_host(self.host, self.route, self.journal.vf)?);
        match events.wait_until(deadline, look)? {
            Some(link) => Ok(Some(link)),
            // sysfs may have been mounted for another network namespace.
            None => Ok(self.route.link_by_pci(self.journal.vf)?),
        }
    }

    /// Takes the netdev out of a living container: down, its old name, address and MTU, then the move. The rename comes before the move,
    /// because udev gives a netdev that arrives under a foreign name its old name as an alternative one, which then blocks the rename
    /// (seen on Linux 6.12). The move itself takes away all addresses and routes. False when the container does not have it.
    fn bring_out(&self, netns: &NetNs, original: &OriginalNetdev) -> Result<bool, RestoreError> {
        let pod = Route::open_in(netns).map_err(|error| match error {
            OpenRouteError::Enter(error) => RestoreError::NetNs(error),
            OpenRouteError::Open(error) => RestoreError::Netlink(error),
        })?;
        let Some(link) = self.find_in_pod(&pod)? else { return Ok(false) };
        let ifindex = link.netdev.ifindex;
        if link.netdev.admin_up {
            change(&pod, ifindex, &LinkChange { up: Some(false), ..LinkChange::default() }, || format!("set {} down", link.netdev.name))?;
        }
        self.address_and_mtu(&pod, &link, original)?;
        let host = NetNs::current()?;
        let mut leaving = LinkChange { netns: Some(host.as_fd()), ..LinkChange::default() };
        match rename(&pod, &link, &original.name) {
            Ok(()) => {}
            // The container has another link of that name; the kernel can also rename while moving.
            Err(error) if error.errno() == Errno::EXIST.raw_os_error() => leaving.name = Some(&original.name),
            Err(cause) => return Err(RestoreError::Change { what: format!("rename {} to {}", link.netdev.name, original.name), cause }),
        }
        change(&pod, ifindex, &leaving, || format!("move {} back to the host", original.name))?;
        self.log.write(Level::Info, &format_args!("{} of VF {} is back in the host", original.name, self.journal.vf));
        Ok(true)
    }

    /// The VF's netdev in the container. Kernels before 5.14 do not tell a netdev's device; then name and address must both be ours.
    fn find_in_pod(&self, pod: &Route) -> Result<Option<Link>, NetlinkError> {
        if let Some(link) = pod.link_by_pci(self.journal.vf)? {
            return Ok(Some(link));
        }
        let Some(original) = &self.journal.original.netdev else { return Ok(None) };
        for name in [&self.journal.owner.if_name, &original.name] {
            if let Some(link) = pod.link_by_name(name)?
                && link.parent.is_none()
                && (link.netdev.mac == original.mac || link.netdev.mac == self.journal.applied.mac)
            {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// In the host: name, alternative names, address, MTU and state of a netdev that is back.
    fn finish(&self, mut link: Link, original: &OriginalNetdev) -> Result<(), RestoreError> {
        let ifindex = link.netdev.ifindex;
        if link.netdev.name != original.name {
            if link.netdev.admin_up {
                let down = LinkChange { up: Some(false), ..LinkChange::default() };
                change(self.route, ifindex, &down, || format!("set {} down", link.netdev.name))?;
                link.netdev.admin_up = false;
            }
            rename(self.route, &link, &original.name)
                .map_err(|cause| RestoreError::Change { what: format!("rename {} to {}", link.netdev.name, original.name), cause })?;
            self.log.write(Level::Info, &format_args!("VF {}: {} is {} again", self.journal.vf, link.netdev.name, original.name));
        }
        self.address_and_mtu(self.route, &link, original)?;
        for name in original.alt_names.iter().filter(|name| !link.netdev.alt_names.contains(name)) {
            // udev may have been faster.
            match self.route.add_alt_name(ifindex, name) {
                Err(cause) if cause.errno() != Errno::EXIST.raw_os_error() => {
                    return Err(RestoreError::Change { what: format!("give {} its alternative name {name}", original.name), cause });
                }
                _ => {}
            }
        }
        if link.netdev.admin_up != original.up {
            let state = LinkChange { up: Some(original.up), ..LinkChange::default() };
            change(self.route, ifindex, &state, || format!("set {} {}", original.name, if original.up { "up" } else { "down" }))?;
        }
        Ok(())
    }

    /// Gives a netdev its old address and MTU where they differ and we may have changed them. An address that is refused now may be taken
    /// after the PF's attributes are back: many drivers let an administrative MAC bind the netdev. `last_look` decides.
    fn address_and_mtu(&self, route: &Route, link: &Link, original: &OriginalNetdev) -> Result<(), RestoreError> {
        let ifindex = link.netdev.ifindex;
        if link.netdev.mtu != original.mtu {
            let back = LinkChange { mtu: Some(original.mtu), ..LinkChange::default() };
            change(route, ifindex, &back, || format!("give {} its MTU {} back", link.netdev.name, original.mtu))?;
        }
        let (Some(target), Some(own)) = (self.changed_mac(link, original), link.netdev.mac) else { return Ok(()) };
        if quirks::mac_order(self.journal.kernel_driver.as_deref()) == MacOrder::NetdevFirst {
            self.release_mac(own, target)?;
        }
        if let Err(error) = route.change_link(ifindex, &LinkChange { mac: Some(target), ..LinkChange::default() }) {
            self.log.write(Level::Debug, &error);
        }
        Ok(())
    }

    /// With everything else back, the netdev must have its address.
    fn last_look(&self, original: &OriginalNetdev) -> Result<(), RestoreError> {
        let Some(link) = self.route.link_by_name(&original.name)? else { return Ok(()) };
        let Some(mac) = self.changed_mac(&link, original) else { return Ok(()) };
        let back = LinkChange { mac: Some(mac), ..LinkChange::default() };
        change(self.route, link.netdev.ifindex, &back, || format!("give {} its MAC {mac} back", original.name))
    }

    /// The original address, if we may have changed it and the link has another.
    fn changed_mac(&self, link: &Link, original: &OriginalNetdev) -> Option<MacAddr> {
        original.mac.filter(|mac| self.journal.applied.mac.is_some() && link.netdev.mac != Some(*mac))
    }

    fn release_mac(&self, own: MacAddr, target: MacAddr) -> Result<(), RestoreError> {
        let Some(pf) = pf_link(self.host, self.route, self.journal.pf)? else { return Ok(()) };
        let Some(current) = self.route.vf(pf.netdev.ifindex, self.journal.index)? else { return Ok(()) };
        if let Some(release) = vf_plan::release_mac(&current, own, target) {
            set_attributes(self.route, &pf, self.journal.index, &[release])?;
        }
        Ok(())
    }

    /// The attributes that the PF holds.
    fn attributes(&self) -> Result<(), RestoreError> {
        let (Some(original), false) = (&self.journal.original.attributes, self.journal.applied.settings.is_empty()) else { return Ok(()) };
        let (vf, pf, index) = (self.journal.vf, self.journal.pf, self.journal.index);
        let link = pf_link(self.host, self.route, pf)?.ok_or(DeviceError::NoPfNetdev { vf, pf })?;
        let current = self.route.vf(link.netdev.ifindex, index)?.ok_or(DeviceError::NotReported { vf, pf, index })?;
        let back = vf_plan::inverse(&self.journal.applied.settings, original, &current);
        set_attributes(self.route, &link, index, &back)?;
        for setting in &back {
            self.log.write(Level::Info, &format_args!("VF {index} of {}: {setting}", link.netdev.name));
        }
        Ok(())
    }
}

/// Renames a link; an alternative name of its own must not stand in the way. udev may be giving it that name right now, so that it is looked
/// for once more when the kernel says that the name is taken.
fn rename(route: &Route, link: &Link, name: &str) -> Result<(), NetlinkError> {
    if link.netdev.name == name {
        return Ok(());
    }
    let ifindex = link.netdev.ifindex;
    let renamed = LinkChange { name: Some(name), ..LinkChange::default() };
    let release = |link: &Link| link.netdev.alt_names.iter().any(|alt| alt == name).then(|| route.del_alt_name(ifindex, name)).transpose();
    release(link)?;
    match route.change_link(ifindex, &renamed) {
        Err(error) if error.errno() == Errno::EXIST.raw_os_error() => match route.link_by_index(ifindex)?.as_ref().map(release).transpose()? {
            Some(Some(())) => route.change_link(ifindex, &renamed),
            _ => Err(error),
        },
        done => done,
    }
}

fn change(route: &Route, ifindex: u32, change: &LinkChange<'_>, what: impl FnOnce() -> String) -> Result<(), RestoreError> {
    route.change_link(ifindex, change).map_err(|cause| RestoreError::Change { what: what(), cause })
}
