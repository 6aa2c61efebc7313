//! I/O: the netdev of a VF back in the host, with its old name, address, MTU and flags.
//!
//! What does not live here: what the PF holds of the VF, RDMA devices.

use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::io::Errno;
use sriov_host::mac::MacAddr;
use sriov_host::netlink::route::OpenRouteError;
use sriov_host::netlink::{Link, LinkChange, NetlinkError, Route};
use sriov_host::netns::NetNs;
use sriov_host::uevent::UeventSocket;

use super::{RestoreError, Restoring, living_netns};
use crate::attach::{clear_alt_names, set_attributes};
use crate::deadline::while_busy;
use crate::device::{by_device, listed, netdev_in_host, pf_link};
use crate::journal::OriginalNetdev;
use crate::log::Level;
use crate::quirks::{self, MacOrder};
use crate::vf_plan;

/// A netdev that is in the host again.
pub(super) struct Back {
    pub(super) ifindex: u32,
    /// It came back with its original address.
    pub(super) has_its_mac: bool,
}

impl Restoring<'_> {
    /// Brings the netdev back.
    pub(super) fn netdev(&self, original: &OriginalNetdev) -> Result<Back, RestoreError> {
        let vf = self.journal.vf;
        if let Some(link) = netdev_in_host(self.host, self.route, vf)? {
            return self.finish(link, original);
        }
        let netns = living_netns(&self.journal.owner, self.given_now);
        if let Some(netns) = &netns
            && let Some(name) = self.bring_out(netns, original)?
            && let Some(link) = self.route.link_by_name(&name)?
        {
            return self.finish(link, original);
        }
        // The kernel throws a netdev out of a namespace that ended some time after the last reference is gone.
        let link = self
            .wait(if netns.is_some() { Instant::now() } else { self.deadline })?
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
            None => Ok(listed(self.route, self.journal.vf)?),
        }
    }

    /// Takes the netdev out of a living container: down, its old name, address and MTU, then the move. The rename comes before the move,
    /// because udev gives a netdev that arrives under a foreign name its old name as an alternative one, which then blocks the rename
    /// (seen on Linux 6.12). The move itself takes away all addresses and routes. Returns the name in the host; `None` when the container does
    /// not have it.
    fn bring_out(&self, netns: &NetNs, original: &OriginalNetdev) -> Result<Option<String>, RestoreError> {
        let pod = Route::open_in(netns).map_err(|error| match error {
            OpenRouteError::Enter(error) => RestoreError::NetNs(error),
            OpenRouteError::Open(error) => RestoreError::Netlink(error),
        })?;
        let Some(link) = self.find_in_pod(&pod)? else { return Ok(None) };
        let ifindex = link.netdev.ifindex;
        if link.netdev.admin_up {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            self.change(&pod, ifindex, &down, || format!("set {} down", link.netdev.name))?;
        }
        self.properties(&pod, &link, original)?;
        let link = self.forget_alt_names(&pod, link, original)?;
        let host = NetNs::current()?;
        let mut leaving = LinkChange { netns: Some(host.as_fd()), ..LinkChange::default() };
        if self.route.link_by_name(&original.name)?.is_some() {
            self.log.write(Level::Warning, &format_args!("the host has another {}: VF {} gets a free name", original.name, self.journal.vf));
            let name = free_name(self.route)?;
            leaving.name = Some(&name);
            self.leave(&pod, &link, &leaving)?;
            return Ok(Some(name));
        }
        match rename(&pod, &link, &original.name) {
            Ok(()) => {}
            // The container has another link of that name; the kernel can also rename while moving.
            Err(error) if error.errno() == Errno::EXIST.raw_os_error() => leaving.name = Some(&original.name),
            Err(cause) => return Err(RestoreError::Change { what: format!("rename {} to {}", link.netdev.name, original.name), cause }),
        }
        self.leave(&pod, &link, &leaving)?;
        self.log.write(Level::Info, &format_args!("{} of VF {} is back in the host", original.name, self.journal.vf));
        Ok(Some(original.name.clone()))
    }

    /// Takes the alternative names away that the container gave its netdev. (Those that a netdev has which the kernel threw out of a namespace may be
    /// udev's.)
    fn forget_alt_names(&self, pod: &Route, mut link: Link, original: &OriginalNetdev) -> Result<Link, NetlinkError> {
        if self.journal.knows_alt_names() {
            let (known, foreign) = link.netdev.alt_names.into_iter().partition::<Vec<_>, _>(|name| original.alt_names.contains(name));
            foreign.iter().try_for_each(|name| pod.del_alt_name(link.netdev.ifindex, name))?;
            link.netdev.alt_names = known;
        }
        Ok(link)
    }

    /// The move itself. An alternative name that the host has too, from the container's own doing, would stop it.
    fn leave(&self, pod: &Route, link: &Link, leaving: &LinkChange<'_>) -> Result<(), RestoreError> {
        let ifindex = link.netdev.ifindex;
        let moved = while_busy(self.deadline, || pod.change_link(ifindex, leaving));
        match moved {
            Err(error) if error.errno() == Errno::EXIST.raw_os_error() && clear_alt_names(pod, link, self.route)? => {
                self.change(pod, ifindex, leaving, || format!("move {} back to the host", link.netdev.name))
            }
            moved => moved.map_err(|cause| RestoreError::Change { what: format!("move {} back to the host", link.netdev.name), cause }),
        }
    }

    /// The VF's netdev in the container. Kernels before 5.14 do not tell a netdev's device; then name and address must both be ours.
    fn find_in_pod(&self, pod: &Route) -> Result<Option<Link>, NetlinkError> {
        let Some(original) = &self.journal.original.netdev else { return Ok(None) };
        let found = match &original.device {
            Some(device) => by_device(pod, device)?,
            None => listed(pod, self.journal.vf)?,
        };
        if found.is_some() {
            return Ok(found);
        }
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
    pub(super) fn finish(&self, mut link: Link, original: &OriginalNetdev) -> Result<Back, RestoreError> {
        let ifindex = link.netdev.ifindex;
        if link.netdev.name != original.name {
            if link.netdev.admin_up {
                let down = LinkChange { up: Some(false), ..LinkChange::default() };
                self.change(self.route, ifindex, &down, || format!("set {} down", link.netdev.name))?;
                link.netdev.admin_up = false;
            }
            match rename(self.route, &link, &original.name) {
                Ok(()) => self.log.write(Level::Info, &format_args!("VF {}: {} is {} again", self.journal.vf, link.netdev.name, original.name)),
                // Everything that works on VFs knows them by address: a name that somebody else took is no reason to keep a pod from ending.
                Err(error) if error.errno() == Errno::EXIST.raw_os_error() => {
                    self.log.write(Level::Warning, &format_args!("VF {} stays {}: {error}", self.journal.vf, link.netdev.name));
                }
                Err(cause) => return Err(RestoreError::Change { what: format!("rename {} to {}", link.netdev.name, original.name), cause }),
            }
        }
        self.properties(self.route, &link, original)?;
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
            self.change(self.route, ifindex, &state, || format!("set {} {}", original.name, if original.up { "up" } else { "down" }))?;
        }
        Ok(Back { ifindex, has_its_mac: changed_mac(&link, original).is_none() })
    }

    /// Gives a netdev its old MTU, flags and address where they differ, whoever changed them. An address that is refused now may be taken
    /// after the PF's attributes are back: many drivers let an administrative MAC bind the netdev. `last_look` decides.
    fn properties(&self, route: &Route, link: &Link, original: &OriginalNetdev) -> Result<(), RestoreError> {
        let ifindex = link.netdev.ifindex;
        let differs = |now: bool, then: bool| (now != then).then_some(then);
        let back = LinkChange {
            // 0 is unknown (a lost journal).
            mtu: Some(original.mtu).filter(|mtu| *mtu != 0 && *mtu != link.netdev.mtu),
            promisc: differs(link.promisc, original.promisc),
            allmulti: differs(link.allmulti, original.allmulti),
            ..LinkChange::default()
        };
        if back.mtu.is_some() || back.promisc.is_some() || back.allmulti.is_some() {
            self.change(route, ifindex, &back, || format!("give {} its MTU and flags back", link.netdev.name))?;
        }
        let (Some(target), Some(own)) = (changed_mac(link, original), link.netdev.mac) else { return Ok(()) };
        // Without a MAC of ours the administrative one is not ours to release either.
        if self.journal.applied.mac.is_some() && quirks::mac_order(self.journal.kernel_driver.as_deref()) == MacOrder::NetdevFirst {
            self.release_mac(own, target)?;
        }
        if let Err(error) = route.change_link(ifindex, &LinkChange { mac: Some(target), ..LinkChange::default() }) {
            self.log.write(Level::Debug, &error);
        }
        Ok(())
    }

    /// With everything else back, the netdev must have its address.
    pub(super) fn last_look(&self, original: &OriginalNetdev, ifindex: u32) -> Result<(), RestoreError> {
        let Some(link) = self.route.link_by_index(ifindex)? else { return Ok(()) };
        let Some(mac) = changed_mac(&link, original) else { return Ok(()) };
        let back = LinkChange { mac: Some(mac), ..LinkChange::default() };
        match self.change(self.route, ifindex, &back, || format!("give {} its MAC {mac} back", original.name)) {
            // The container changed it, not we.
            Err(error) if self.journal.applied.mac.is_none() => self.log.write(Level::Warning, &error),
            done => done?,
        }
        Ok(())
    }

    fn change(&self, route: &Route, ifindex: u32, change: &LinkChange<'_>, what: impl FnOnce() -> String) -> Result<(), RestoreError> {
        while_busy(self.deadline, || route.change_link(ifindex, change)).map_err(|cause| RestoreError::Change { what: what(), cause })
    }

    fn release_mac(&self, own: MacAddr, target: MacAddr) -> Result<(), RestoreError> {
        let Some(pf) = self.journal.pf else { return Ok(()) };
        let Some(pf) = pf_link(self.host, self.route, pf)? else { return Ok(()) };
        let Some(current) = self.route.vf(pf.netdev.ifindex, self.journal.index)? else { return Ok(()) };
        if let Some(release) = vf_plan::release_mac(&current, own, target) {
            set_attributes(self.route, &pf, self.journal.index, &[release])?;
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

/// The original address, if the link has another.
fn changed_mac(link: &Link, original: &OriginalNetdev) -> Option<MacAddr> {
    original.mac.filter(|mac| link.netdev.mac != Some(*mac))
}

/// A name that no link of this namespace has, in the kernel's own manner (`dev3`).
fn free_name(route: &Route) -> Result<String, NetlinkError> {
    let mut number = 0_u32;
    loop {
        let name = format!("dev{number}");
        if route.link_by_name(&name)?.is_none() {
            return Ok(name);
        }
        number += 1;
    }
}
