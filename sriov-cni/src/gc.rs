//! I/O: GC: everything of this network that the runtime does not know any more is detached as DEL would.
//!
//! Invariant: without a list of valid attachments nothing is removed; other networks' attachments are never touched; one failure does not stop
//! the others.

use crate::Context;
use crate::conf::ConfError;
use crate::del::bring_back;
use crate::errors::Error;
use crate::ipam::{self, Attachment};
use crate::journal::Journal;
use crate::log::Level;
use crate::request::Command;
use crate::state::Store;

/// Detaches what is not in `cni.dev/valid-attachments`, then lets IPAM do the same.
pub(crate) fn gc(ctx: &Context<'_>) -> Result<(), Error> {
    let valid = ctx
        .conf
        .valid_attachments
        .as_ref()
        .ok_or(ConfError::Missing { key: "cni.dev/valid-attachments", hint: "GC removes what is not in this list, so that it must be there" })?;
    let stale =
        |journal: &Journal| journal.network == ctx.conf.name && !valid.iter().any(|known| journal.owner.is(&known.container_id, &known.ifname));
    let store = Store::at(&ctx.conf.state_dir);
    let mut failures = Vec::new();
    for journal in store.all()? {
        match journal {
            Ok(journal) if stale(&journal) => failures.extend(collect(ctx, &store, &journal, stale)),
            Ok(_) => {}
            Err(error) => ctx.log.write(Level::Warning, &error),
        }
    }
    if let Some(plugin) = &ctx.conf.ipam {
        let whole_network = Attachment { container_id: "", if_name: "", netns: None };
        failures.extend(ipam::call(ctx, plugin, Command::Gc, whole_network).err().map(Error::from));
    }
    Error::all(failures).map_or(Ok(()), Err)
}

fn collect(ctx: &Context<'_>, store: &Store, journal: &Journal, stale: impl Fn(&Journal) -> bool) -> Vec<Error> {
    let owner = &journal.owner;
    ctx.log.write(Level::Info, &format_args!("VF {}: container {} is gone", journal.vf, owner.container_id));
    let mut failures: Vec<Error> = bring_back(ctx, store, journal.vf, stale).err().into_iter().collect();
    if let Some(plugin) = &ctx.conf.ipam {
        let gone = Attachment { container_id: &owner.container_id, if_name: &owner.if_name, netns: None };
        failures.extend(ipam::call(ctx, plugin, Command::Del, gone).err().map(Error::from));
    }
    failures
}
