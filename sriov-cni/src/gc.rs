//! I/O: GC: everything of this network that the runtime does not know any more is detached as DEL would.
//!
//! Invariant: without a list of valid attachments nothing is removed; other networks' attachments are never touched; one failure does not stop
//! the others.

use sriov_host::pci::PciAddress;

use crate::Context;
use crate::conf::ConfError;
use crate::del::bring_back;
use crate::errors::Error;
use crate::go_plugin::device_of;
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
            Ok(journal) if stale(&journal) => {
                let gone = Gone { container_id: &journal.owner.container_id, if_name: &journal.owner.if_name };
                failures.extend(collect(ctx, &store, journal.vf, gone, stale));
            }
            Ok(_) => {}
            Err(error) => ctx.log.write(Level::Warning, &error),
        }
    }
    for record in store.go_records()? {
        let known = valid.iter().any(|known| record.name == format!("{}-{}", known.container_id, known.ifname));
        // Container ids of the known runtimes have no '-', interface names may.
        if !known
            && record.conf["name"].as_str() == Some(&ctx.conf.name)
            && let (Some(vf), Some((container_id, if_name))) = (device_of(&record.conf), record.name.split_once('-'))
        {
            failures.extend(collect(ctx, &store, vf, Gone { container_id, if_name }, stale));
        }
    }
    if let Some(plugin) = &ctx.conf.ipam {
        // What a DEL that died could not ask for any more.
        for owner in store.owing(&ctx.conf.name)? {
            if !valid.iter().any(|known| owner.is(&known.container_id, &known.ifname)) {
                let gone = Attachment { container_id: &owner.container_id, if_name: &owner.if_name, netns: None };
                failures.extend(ipam::call(ctx, plugin, Command::Del, gone).err().map(Error::from));
            }
        }
        failures.extend(ipam::call_if_known(ctx, plugin, Command::Gc).err().map(Error::from));
    }
    Error::all(failures).map_or(Ok(()), Err)
}

/// An attachment that the runtime does not know.
#[derive(Clone, Copy)]
struct Gone<'a> {
    container_id: &'a str,
    if_name: &'a str,
}

fn collect(ctx: &Context<'_>, store: &Store, vf: PciAddress, gone: Gone<'_>, stale: impl Fn(&Journal) -> bool) -> Vec<Error> {
    let Gone { container_id, if_name } = gone;
    ctx.log.write(Level::Info, &format_args!("VF {vf}: container {container_id} is gone"));
    let mut failures: Vec<Error> = bring_back(ctx, store, vf, (container_id, if_name), stale).err().into_iter().collect();
    if let Some(plugin) = &ctx.conf.ipam {
        failures.extend(ipam::call(ctx, plugin, Command::Del, Attachment { container_id, if_name, netns: None }).err().map(Error::from));
    }
    failures
}
