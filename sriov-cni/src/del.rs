//! I/O: DEL: the VF back to what it was, its journal away, its addresses back to IPAM. Success when nothing is left to do.
//!
//! Invariant: IPAM is asked whatever happened before, because its records can outlive ours; a VF that belongs to somebody else by now is not
//! touched; the journal goes last, and stays when something could not be brought back.

use serde_json::Value;

use crate::Context;
use crate::errors::Error;
use crate::go_plugin;
use crate::ipam::{self, Attachment};
use crate::journal::Journal;
use crate::log::Level;
use crate::restore::{lost, restore};
use crate::state::{StateError, Store};
use sriov_host::device_id::DeviceId;

/// Detaches whatever the container has under this interface name.
pub(crate) fn del(ctx: &Context<'_>) -> Result<(), Error> {
    let store = Store::at(&ctx.conf.state_dir);
    let owner = (&*ctx.request.container_id, &*ctx.request.if_name);
    let belongs = |journal: &Journal| journal.owner.is(owner.0, owner.1);
    let (mut failures, mut ipam) = (Vec::new(), None);
    match vfs_of_attachment(ctx, &store, owner) {
        Ok(vfs) if vfs.is_empty() => ctx.log.write(Level::Info, &"nothing is attached"),
        Ok(vfs) => {
            for vf in vfs {
                match bring_back(ctx, &store, vf, owner, belongs) {
                    Ok(then) => ipam = ipam.or(then),
                    Err(error) => failures.push(error),
                }
            }
        }
        Err(error) => failures.push(error),
    }
    // The configuration of the call is the one of ADD for all known runtimes; where it has no IPAM, ours may remember.
    let attachment = Attachment { ipam: ipam.as_ref().filter(|_| ctx.conf.ipam.is_none()), ..Attachment::of(ctx) };
    failures.extend(ipam::take_back(ctx, attachment).err().map(Error::from));
    Error::all(failures).map_or(Ok(()), Err)
}

/// The VF of the attachment: the one that the configuration names, and the one that the container's record names, which differ when somebody
/// changed the first. Only when there is neither (a runtime that lost the configuration), all journals are looked through.
fn vfs_of_attachment(ctx: &Context<'_>, store: &Store, owner: (&str, &str)) -> Result<Vec<DeviceId>, Error> {
    let recorded = store.go_record(&format!("{}-{}", owner.0, owner.1))?.and_then(|record| go_plugin::device_of(&record.conf));
    // Without journal and record there may still be the netdev in the container.
    let named = ctx.conf.device.filter(|vf| store.has(*vf) || (store.exists() && ctx.request.netns.is_some()));
    let mut vfs: Vec<DeviceId> = named.into_iter().chain(recorded.filter(|vf| named != Some(*vf))).collect();
    if ctx.conf.device.is_none() && vfs.is_empty() {
        let all = store.all()?.into_iter().filter_map(Result::ok);
        vfs.extend(all.filter(|journal| journal.owner.is(owner.0, owner.1)).map(|journal| journal.vf));
    }
    Ok(vfs)
}

/// Brings a VF back if its journal `belongs`, or without a journal if the Go plugin recorded it for `owner`, and forgets the attachment. Returns the
/// `ipam` that it was made with.
pub(crate) fn bring_back(
    ctx: &Context<'_>,
    store: &Store,
    vf: DeviceId,
    owner: (&str, &str),
    belongs: impl Fn(&Journal) -> bool,
) -> Result<Option<Value>, Error> {
    let _lock = store.lock(vf, ctx.deadline.at())?;
    // Read under the lock: between the look and the lock the VF may have been given to another container.
    let journal = match readable(ctx, store, vf)? {
        // Ended by the Go plugin, which may have given the VF to this container since.
        Some(journal) if !belongs(&journal) && go_plugin::ended(store, &journal)? => {
            store.forget(&journal)?;
            go_plugin::attachment(ctx, store, owner.0, owner.1)?.filter(|journal| journal.vf == vf)
        }
        Some(journal) => Some(journal).filter(belongs),
        None => match go_plugin::attachment(ctx, store, owner.0, owner.1)?.filter(|journal| journal.vf == vf) {
            Some(journal) => Some(journal),
            None => lost(ctx, vf, owner)?,
        },
    };
    let Some(journal) = journal else {
        // A record that is left of an attachment which is over, or whose VF is somebody else's by now.
        store.remove_go_record(owner.0, owner.1)?;
        return Ok(None);
    };
    if go_plugin::ended(store, &journal)? {
        ctx.log.write(Level::Info, &format_args!("VF {vf} was detached by the Go plugin"));
    } else {
        restore(ctx, &journal)?;
    }
    if ctx.conf.ipam.is_some() || journal.ipam.is_some() {
        // The VF is free from here on, and IPAM is asked without its lock.
        store.owe(&journal)?;
    } else {
        store.forget(&journal)?;
    }
    Ok(journal.ipam)
}

/// A VF's journal. One that can't be read is put out of the way, so that it stops no pod.
pub(crate) fn readable(ctx: &Context<'_>, store: &Store, vf: DeviceId) -> Result<Option<Journal>, Error> {
    match store.read(vf) {
        Err(error @ StateError::Journal { .. }) => {
            let aside = store.set_aside(vf)?;
            ctx.log.write(Level::Warning, &format_args!("{error}; it is now {}", aside.display()));
            Ok(None)
        }
        journal => Ok(journal?),
    }
}
