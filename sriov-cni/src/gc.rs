//! I/O: GC: everything of this network that the runtime does not know any more is detached as DEL would.
//!
//! Invariant: without a list of valid attachments nothing is removed; other networks' attachments are never touched; one failure does not stop
//! the others.

use crate::Context;
use crate::conf::ConfError;
use crate::del::bring_back;
use crate::errors::Error;
use crate::go_plugin::device_of;
use crate::ipam::{self, Attachment};
use crate::journal::{Journal, Owner};
use crate::log::Level;
use crate::request::Command;
use crate::state::Store;
use sriov_host::device_id::DeviceId;

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
                let Owner { container_id, if_name, .. } = &journal.owner;
                let gone = Attachment { container_id, if_name, netns: None, ipam: journal.ipam.as_ref() };
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
            failures.extend(collect(ctx, &store, vf, Attachment { container_id, if_name, netns: None, ipam: None }, stale));
        }
    }
    // What a DEL that died could not ask for any more.
    for Journal { owner, ipam, .. } in store.owing(&ctx.conf.name)? {
        if !valid.iter().any(|known| owner.is(&known.container_id, &known.ifname)) {
            let gone = Attachment { container_id: &owner.container_id, if_name: &owner.if_name, netns: None, ipam: ipam.as_ref() };
            failures.extend(ipam::take_back(ctx, gone).err().map(Error::from));
        }
    }
    if let Some(plugin) = &ctx.conf.ipam {
        failures.extend(ipam::call_if_known(ctx, plugin, Command::Gc).err().map(Error::from));
    }
    Error::all(failures).map_or(Ok(()), Err)
}

/// Detaches an attachment that the runtime does not know.
fn collect(ctx: &Context<'_>, store: &Store, vf: DeviceId, gone: Attachment<'_>, stale: impl Fn(&Journal) -> bool) -> Vec<Error> {
    let Attachment { container_id, if_name, .. } = gone;
    ctx.log.write(Level::Info, &format_args!("VF {vf}: container {container_id} is gone"));
    let detached = bring_back(ctx, store, vf, (container_id, if_name), stale).err();
    detached.into_iter().chain(ipam::take_back(ctx, gone).err().map(Error::from)).collect()
}
