//! I/O: ADD, the whole flow: parse, lock, ownership, originals, journal, PF side, move, up, IPAM, addresses, announcement, result.
//!
//! Invariant: nothing of the machine is changed before the journal is on disk, and each failure after that is undone.

use std::time::{SystemTime, UNIX_EPOCH};

use sriov_host::netlink::Route;
use sriov_host::netns::{NetNs, NsId};

use crate::attach::{self, AttachError};
use crate::conf::VfRequest;
use crate::del::readable;
use crate::device::{self, Device};
use crate::errors::Error;
use crate::io::Moment;
use crate::ipam::{self, Attachment, IpamError};
use crate::journal::{Applied, Journal, Original, OriginalNetdev, Owner, Phase, VERSION};
use crate::log::Level;
use crate::request::Command;
use crate::restore::{boot_id, living_netns, restore};
use crate::result::{CniResult, Interface};
use crate::state::Store;
use crate::undo::Undo;
use crate::{Context, vf_plan};
use crate::{device_info, go_plugin, rdma};
use sriov_host::device_id::DeviceId;

/// Attaches the VF that the configuration names.
pub(crate) fn add(ctx: &Context<'_>) -> Result<CniResult, Error> {
    let wanted = ctx.conf.vf_request(ctx.request.args_mac.as_deref())?;
    let (netns, owner) = owner(ctx)?;
    let store = Store::at(&ctx.conf.state_dir);
    let lock = store.lock(wanted.device, ctx.deadline.at())?;
    let retried = match settle(ctx, &store, &wanted, &owner, &netns)? {
        Earlier::Complete(result) => return Ok(result),
        Earlier::Interrupted => true,
        Earlier::None => false,
    };
    let mut undo = Undo::new(ctx, &store, lock);
    let attaching = Attaching { ctx, store: &store, wanted: &wanted, netns: &netns, retried };
    match attaching.perform(owner, &mut undo) {
        Ok(result) => {
            undo.commit();
            Ok(result)
        }
        Err(error) => Err(error.with(undo.roll_back())),
    }
}

/// The container's namespace, and the caller as its owner.
fn owner(ctx: &Context<'_>) -> Result<(NetNs, Owner), Error> {
    let path = ctx.request.netns.clone().unwrap_or_default();
    let netns = NetNs::open(&path).map_err(Error::NetNs)?;
    let id = netns.id().map_err(Error::NetNs)?;
    if id == NsId::own().map_err(Error::NetNs)? && !ctx.request.netns_override {
        return Err(Error::OwnNetNs { path: path.display().to_string() });
    }
    let owner = Owner {
        container_id: ctx.request.container_id.clone(),
        if_name: ctx.request.if_name.clone(),
        netns_path: path,
        netns_dev: id.dev,
        netns_inode: id.ino,
    };
    Ok((netns, owner))
}

/// What an earlier ADD by the same owner left.
enum Earlier {
    /// Nothing.
    None,
    /// A complete attachment with this result.
    Complete(CniResult),
    /// Something that was taken back now; IPAM may still hold addresses for it.
    Interrupted,
}

/// What an earlier attachment of the VF means for this one: its result if it is the same and complete, an error if another lives, and the VF
/// brought back if it is what a dead or interrupted one left.
fn settle(ctx: &Context<'_>, store: &Store, wanted: &VfRequest, owner: &Owner, netns: &NetNs) -> Result<Earlier, Error> {
    let vf = wanted.device;
    let journal = match readable(ctx, store, vf)? {
        Some(journal) if go_plugin::ended(store, &journal)? => {
            store.forget(&journal)?;
            recorded(ctx, store, vf, owner)?
        }
        None => recorded(ctx, store, vf, owner)?,
        journal => journal,
    };
    let Some(journal) = journal else { return Ok(Earlier::None) };
    let alive = journal.boot_id == boot_id(ctx.host) && living_netns(&journal.owner, None).is_some();
    let own = journal.owner.is(&owner.container_id, &owner.if_name);
    if alive && !own {
        let Owner { container_id, if_name, .. } = journal.owner;
        return Err(Error::Taken { vf, container_id, if_name });
    }
    if let (Phase::Attached, Some(result)) = (journal.phase, &journal.result)
        && alive
        && journal.owner == *owner
        && is_complete(ctx, &journal, netns)?
    {
        ctx.log.write(Level::Info, &format_args!("VF {vf} is already attached: repeated ADD"));
        return Ok(Earlier::Complete(result.clone()));
    }
    ctx.log.write(Level::Info, &format_args!("VF {vf} was left by container {}: restoring it first", journal.owner.container_id));
    restore(ctx, &journal).map_err(|cause| Error::RestoreFirst { vf, cause: Box::new(cause) })?;
    store.forget(&journal)?;
    Ok(if own { Earlier::Interrupted } else { Earlier::None })
}

/// What the Go plugin recorded of a VF that has no journal: an error if it is of another container that lives.
fn recorded(ctx: &Context<'_>, store: &Store, vf: DeviceId, owner: &Owner) -> Result<Option<Journal>, Error> {
    let Some(path) = store.go_allocation(vf)? else { return Ok(None) };
    let own = go_plugin::attachment(ctx, store, &owner.container_id, &owner.if_name)?.filter(|journal| journal.vf == vf);
    if own.is_some() {
        return Ok(own);
    }
    if NetNs::open(&path).is_ok() {
        return Err(Error::TakenBefore { vf, netns: path.display().to_string() });
    }
    // Its container is gone: only the record itself says whose it was.
    for record in store.go_records()? {
        if go_plugin::device_of(&record.conf) == Some(vf)
            && let Some((container_id, if_name)) = record.name.split_once('-')
        {
            return go_plugin::attachment(ctx, store, container_id, if_name);
        }
    }
    Ok(None)
}

/// Whether an attachment is as ADD left it. A DEL that died on its way has set the container's link down first; without a link the PF tells whether it
/// has begun to take the VF's attributes back.
fn is_complete(ctx: &Context<'_>, journal: &Journal, netns: &NetNs) -> Result<bool, Error> {
    if journal.userspace_driver.is_none() {
        let pod = Route::open_in(netns).map_err(AttachError::from)?;
        return Ok(pod.link_by_name(&journal.owner.if_name)?.is_some_and(|link| link.netdev.admin_up));
    }
    if journal.applied.settings.is_empty() {
        return Ok(true);
    }
    let route = Route::open()?;
    let (_, current) = device::attributes(ctx.host, &route, journal.vf, (journal.pf, journal.index))?;
    Ok(vf_plan::unmet(&journal.applied.settings, &current).is_none())
}

/// An ADD that has the VF for itself.
struct Attaching<'a> {
    ctx: &'a Context<'a>,
    store: &'a Store,
    wanted: &'a VfRequest,
    netns: &'a NetNs,
    /// An earlier ADD of the same attachment was interrupted.
    retried: bool,
}

impl Attaching<'_> {
    fn perform(&self, owner: Owner, undo: &mut Undo<'_>) -> Result<CniResult, Error> {
        let Self { ctx, store, wanted, netns, .. } = self;
        let route = Route::open()?;
        let mut device = Device::find(ctx.host, &route, wanted.device)?;
        attach::check_mtu(ctx.host, &route, &device, wanted.mtu)?;
        let pod = if device.netdev.is_some() {
            let pod = Route::open_in(netns).map_err(AttachError::from)?;
            attach::check_name(&pod, &ctx.request.if_name)?;
            attach::refuse_netdev(wanted, &device)?;
            Some(pod)
        } else {
            attach::refuse_without_netdev(wanted, &device)?;
            None
        };
        let mut journal = self.journal(&route, &device, owner)?;
        undo.journal(device.vf, &journal.attempt);
        store.write(&journal)?;
        ctx.io.reached(Moment::Journaled);

        self.configure(&route, &mut device, &mut journal)?;
        ctx.io.reached(Moment::Configured);
        let interface = self.enter(&route, pod.as_ref(), &device, &journal)?;
        ctx.io.reached(Moment::Up);

        let mut result = CniResult::default();
        if let Some(plugin) = &ctx.conf.ipam {
            undo.release_lock();
            result = self.delegate(plugin, undo)?;
            undo.take_lock(store.lock(device.vf, ctx.deadline.at())?);
            if store.read(device.vf)?.is_none_or(|now| now.attempt != journal.attempt) {
                return Err(Error::Overtaken { vf: device.vf });
            }
        }
        ctx.io.reached(Moment::Delegated);
        result.interfaces = vec![interface];
        if let Some(pod) = &pod {
            self.address(pod, &result)?;
        }
        ctx.io.reached(Moment::Addressed);
        if let Some(path) = &journal.device_info {
            // A pod can do without, as it can where the device plugin writes none.
            if let Err(error) = Store::publish(path, &device_info::content(ctx, &device, &journal.rdma)) {
                ctx.log.write(Level::Warning, &error);
            }
        }
        // The Go plugin knows VFs alone.
        if device.vf.pci().is_some() {
            store.write_go_records(device.vf, &journal.owner, &go_plugin::record(ctx, &journal))?;
            journal.go_records = true;
        }
        journal.phase = Phase::Attached;
        journal.result = Some(result.clone());
        store.write(&journal)?;
        ctx.io.reached(Moment::Recorded);
        Ok(result)
    }

    /// What the PF holds of the VF. A VF that is bound anew for it has another netdev and another RDMA device than the journal says.
    fn configure(&self, route: &Route, device: &mut Device, journal: &mut Journal) -> Result<(), Error> {
        let Self { ctx, wanted, .. } = self;
        if !journal.applied.settings.is_empty()
            && attach::configure(ctx.host, route, device, &journal.applied.settings, ctx.deadline.at())?
            && let again = rdma::to_move(ctx.host, device, wanted.rdma_isolation, &ctx.request.path).map_err(AttachError::from)?
            && again != journal.rdma
        {
            journal.rdma = again;
            self.store.write(journal)?;
        }
        if let Some(trunk) = &wanted.trunk {
            attach::set_trunk(ctx.host, device, trunk)?;
        }
        Ok(())
    }

    /// What is there and what will be changed. Reads only.
    fn journal(&self, route: &Route, device: &Device, owner: Owner) -> Result<Journal, Error> {
        let Self { ctx, wanted, .. } = self;
        // Where no PF is, a MAC is the netdev's alone.
        let without_mac = VfRequest { mac: None, ..(*wanted).clone() };
        let asks_the_pf = vf_plan::asks_the_pf(if device.pf.is_some() || device.netdev.is_none() { wanted } else { &without_mac });
        let attributes = if asks_the_pf || device.netdev.is_none() {
            match device.attributes(ctx.host, route) {
                Ok((pf, attributes)) => {
                    attach::check_guid(&pf, wanted.guid)?;
                    Some(attributes)
                }
                // Nothing is asked of the PF: it need not be seen.
                Err(_) if !asks_the_pf => None,
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        let settings = attributes.as_ref().map(|current| vf_plan::asked(wanted, current)).unwrap_or_default();
        let netdev = device.netdev.as_ref().map(|link| OriginalNetdev {
            name: link.netdev.name.clone(),
            device: device.vdpa.as_ref().and(link.parent_device.clone()),
            alt_names: link.netdev.alt_names.clone(),
            mac: link.netdev.mac,
            mtu: link.netdev.mtu,
            up: link.netdev.admin_up,
            promisc: link.promisc,
            allmulti: link.allmulti,
        });
        let trunk = wanted.trunk.as_ref().map(|asked| attach::original_trunk(ctx.host, device, asked)).transpose()?;
        Ok(Journal {
            version: VERSION,
            phase: Phase::Prepared,
            attempt: attempt(),
            boot_id: boot_id(ctx.host),
            network: ctx.conf.name.clone(),
            owner,
            vf: device.vf,
            pf: device.pf,
            index: device.index,
            userspace_driver: device.userspace_driver().map(str::to_owned),
            kernel_driver: device.kernel_driver().map(str::to_owned),
            applied: Applied { settings, mac: netdev.as_ref().and(wanted.mac), mtu: netdev.as_ref().and(wanted.mtu), trunk: wanted.trunk.clone() },
            original: Original { netdev, attributes, trunk },
            rdma: rdma::to_move(ctx.host, device, wanted.rdma_isolation, &ctx.request.path).map_err(AttachError::from)?,
            ipam: ctx.conf.ipam.as_ref().and_then(|_| ctx.conf.wire().get("ipam").cloned()),
            go_records: false,
            device_info: device_info::wanted(ctx),
            result: None,
        })
    }

    /// Moves a netdev into the container and brings it up; a userspace VF stays where it is. Returns the interface of the result.
    fn enter(&self, route: &Route, pod: Option<&Route>, device: &Device, journal: &Journal) -> Result<Interface, Error> {
        let Self { ctx, wanted, netns, .. } = self;
        let name = ctx.request.if_name.clone();
        let sandbox = Some(journal.owner.netns_path.display().to_string());
        let pci_id = device.vf.pci().map(|address| address.to_string());
        let (Some(link), Some(pod)) = (&device.netdev, pod) else {
            let known = journal.original.attributes.as_ref().map(|a| a.mac).filter(|mac| !mac.is_zero());
            let pf = device.pf.map(|pf| crate::device::pf_link(ctx.host, route, pf)).transpose()?.flatten();
            let mtu = wanted.mtu.or(pf.map(|pf| pf.netdev.mtu));
            return Ok(Interface { name, mac: wanted.mac.or(known), mtu, sandbox, pci_id });
        };
        let deadline = ctx.deadline.at();
        attach::move_in(route, link, netns, &name, deadline)?;
        ctx.io.reached(Moment::Moved);
        netns.run_in(|| attach::notify_neighbours(ctx.host, ctx.log, &name)).map_err(AttachError::from)?;
        let up = attach::bring_up(pod, &name, wanted, deadline)?;
        rdma::move_in(&journal.rdma, netns).map_err(AttachError::from)?;
        ctx.log.write(Level::Info, &format_args!("{} of VF {} is {name} in the container", link.netdev.name, device.vf));
        Ok(Interface { name, mac: up.netdev.mac, mtu: Some(up.netdev.mtu), sandbox, pci_id })
    }

    /// Asks IPAM. The VF's lock is free.
    fn delegate(&self, plugin: &str, undo: &mut Undo<'_>) -> Result<CniResult, Error> {
        undo.ipam(plugin);
        if self.retried {
            // The interrupted one may have got addresses; some plugins refuse to give any to the same attachment again.
            ipam::call(self.ctx, plugin, Command::Del, Attachment::of(self.ctx))?;
        }
        match ipam::add(self.ctx, plugin) {
            // The same for one whose journal is gone: a DEL that died before it asked IPAM.
            Err(refused @ IpamError::Refused { .. }) if !self.retried => {
                ipam::call(self.ctx, plugin, Command::Del, Attachment::of(self.ctx)).map_err(|_| refused)?;
                Ok(ipam::add(self.ctx, plugin)?)
            }
            done => Ok(done?),
        }
    }

    fn address(&self, pod: &Route, result: &CniResult) -> Result<(), Error> {
        let Self { ctx, netns, .. } = self;
        let if_name = &ctx.request.if_name;
        if result.ips.is_empty() {
            return Ok(());
        }
        if result.ips.iter().any(|ip| ip.address.addr.is_ipv6()) {
            netns.run_in(|| attach::allow_ipv6(ctx.host, ctx.log, if_name)).map_err(AttachError::from)?;
        }
        Ok(attach::add_addresses(pod, ctx.log, if_name, result)?)
    }
}

/// A name for this run that no other has: two runs in one process differ in time, two in one instant in process.
fn attempt() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}
