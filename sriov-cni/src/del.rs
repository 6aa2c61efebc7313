//! I/O: DEL: the VF back to what it was, its journal away, its addresses back to IPAM. Success when nothing is left to do.
//!
//! Invariant: IPAM is asked whatever happened before, because its records can outlive ours; a VF that belongs to somebody else by now is not
//! touched; the journal goes last, and stays when something could not be brought back.

use std::time::Instant;

use sriov_host::pci::PciAddress;

use crate::errors::Error;
use crate::ipam::{self, Attachment};
use crate::journal::Journal;
use crate::log::Level;
use crate::request::Command;
use crate::restore::restore;
use crate::state::{StateError, Store};
use crate::{Context, LOCK_WAIT};

/// Detaches whatever the container has under this interface name.
pub(crate) fn del(ctx: &Context<'_>) -> Result<(), Error> {
    let store = Store::at(&ctx.conf.state_dir);
    let owned = |journal: &Journal| journal.owner.is(&ctx.request.container_id, &ctx.request.if_name);
    let mut failures = Vec::new();
    match vf_of_attachment(ctx, &store, owned) {
        Ok(None) => ctx.log.write(Level::Info, &"nothing is attached"),
        Ok(Some(vf)) => failures.extend(bring_back(ctx, &store, vf, owned).err()),
        Err(error) => failures.push(error),
    }
    if let Some(plugin) = &ctx.conf.ipam {
        failures.extend(ipam::call(ctx, plugin, Command::Del, Attachment::of(ctx)).err().map(Error::from));
    }
    Error::all(failures).map_or(Ok(()), Err)
}

/// The VF of the attachment. The configuration normally names it; when it does not (a runtime that lost it), all journals are looked through.
fn vf_of_attachment(ctx: &Context<'_>, store: &Store, owned: impl Fn(&Journal) -> bool) -> Result<Option<PciAddress>, Error> {
    if let Some(vf) = ctx.conf.device {
        return Ok(Some(vf).filter(|vf| store.has(*vf)));
    }
    Ok(store.all()?.into_iter().filter_map(Result::ok).find(|journal| owned(journal)).map(|journal| journal.vf))
}

/// Brings a VF back if its journal is `owned`, and removes the journal. A journal that can't be read is put out of the way: what it knew is
/// lost, and no retry can bring it back.
pub(crate) fn bring_back(ctx: &Context<'_>, store: &Store, vf: PciAddress, owned: impl Fn(&Journal) -> bool) -> Result<(), Error> {
    let _lock = store.lock(vf, Instant::now() + LOCK_WAIT)?;
    let journal = match store.read(vf) {
        Ok(journal) => journal,
        Err(error @ StateError::Journal { .. }) => {
            let aside = store.set_aside(vf)?;
            ctx.log.write(Level::Warning, &format_args!("{error}; it is now {}", aside.display()));
            None
        }
        Err(error) => return Err(error.into()),
    };
    // Read under the lock: between the look and the lock the VF may have been given to another container.
    let Some(journal) = journal.filter(owned) else { return Ok(()) };
    restore(ctx, &journal)?;
    store.remove(vf)?;
    Ok(())
}
