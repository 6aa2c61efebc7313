//! I/O: CHECK: whether an attachment is still what ADD left: the netdev in the container, its addresses, its RDMA
//! device, the PF's attributes, IPAM.
//!
//! Invariant: nothing is changed.

use std::fmt::Display;

use sriov_host::netlink::Route;
use sriov_host::netns::NetNs;

use crate::Context;
use crate::attach::AttachError;
use crate::device::{Device, DeviceError};
use crate::errors::Error;
use crate::go_plugin;
use crate::ipam::{self, Attachment};
use crate::journal::{Journal, Phase};
use crate::request::Command;
use crate::result::CniResult;
use crate::state::Store;
use crate::{rdma, trunk, vf_plan};

/// Compares the attachment with its journal, or with `prevResult` where the runtime gives one.
pub(crate) fn check(ctx: &Context<'_>) -> Result<(), Error> {
    let wanted = ctx.conf.vf_request(ctx.request.args_mac.as_deref())?;
    let owner = (&*ctx.request.container_id, &*ctx.request.if_name);
    let store = Store::at(&ctx.conf.state_dir);
    let journal = match store.read(wanted.device)? {
        Some(journal) if !go_plugin::ended(&store, &journal)? => Some(journal),
        _ => go_plugin::attachment(ctx, &store, owner.0, owner.1)?.filter(|journal| journal.vf == wanted.device),
    };
    let attached = |journal: &Journal| journal.owner.is(owner.0, owner.1) && journal.phase == Phase::Attached;
    let journal = journal.filter(attached).ok_or_else(|| differs(format!("VF {}", wanted.device), "not attached", "it attached"))?;
    let previous = ctx.conf.prev_result.as_ref().and_then(|value| CniResult::decode(value).ok());
    let expected = previous.or_else(|| journal.result.clone()).unwrap_or_default();

    if journal.userspace_driver.is_none() {
        in_container(ctx, &journal, &expected)?;
    }
    // What the Go plugin set is in its record only by kind, so that there is nothing to compare with.
    if !journal.applied.settings.is_empty() && journal.result.is_some() {
        let route = Route::open()?;
        let device = Device { vf: journal.vf, pf: journal.pf, index: journal.index, driver: String::new(), vdpa: None, netdev: None };
        let (pf, current) = device.attributes(ctx.host, &route)?;
        if let Some(vf_plan::Unmet(setting)) = vf_plan::unmet(&journal.applied.settings, &current) {
            return Err(differs(format!("{} of VF {} on {}", setting.name(), journal.index, pf.netdev.name), "something else", setting));
        }
    }
    if let (Some(asked), Some(pf)) = (&journal.applied.trunk, journal.pf)
        && let Some(found) = trunk::read(ctx.host, pf, journal.index).map_err(DeviceError::from)?
        && found != *asked
    {
        return Err(differs(format!("vlanTrunk of VF {} on {pf}", journal.index), found, asked));
    }
    if let Some(plugin) = &ctx.conf.ipam {
        ipam::call(ctx, plugin, Command::Check, Attachment::of(ctx))?;
    }
    Ok(())
}

fn in_container(ctx: &Context<'_>, journal: &Journal, expected: &CniResult) -> Result<(), Error> {
    let if_name = &ctx.request.if_name;
    let netns = NetNs::open(ctx.request.netns.clone().unwrap_or_default()).map_err(Error::NetNs)?;
    if let Some(device) = rdma::absent(&journal.rdma, &netns).map_err(AttachError::from)? {
        return Err(differs(format!("RDMA device {} of VF {}", device.name, journal.vf), "not there", "it in the container"));
    }
    let pod = Route::open_in(&netns).map_err(AttachError::from)?;
    let link = pod.link_by_name(if_name)?.ok_or_else(|| differs(format!("interface {if_name}"), "not there", "it in the container"))?;
    if link.parent.is_some_and(|parent| Some(parent) != journal.vf.pci()) {
        return Err(differs(format!("interface {if_name}"), "of another device", format!("VF {}", journal.vf)));
    }
    if !link.netdev.admin_up {
        return Err(differs(format!("interface {if_name}"), "down", "it up"));
    }
    if let Some(interface) = expected.interfaces.iter().find(|i| i.name == *if_name) {
        if let (Some(expected), found) = (interface.mac, link.netdev.mac)
            && found != Some(expected)
        {
            return Err(differs(format!("MAC of {if_name}"), found.map_or("none".to_owned(), |m| m.to_string()), expected));
        }
        if let Some(expected) = interface.mtu.filter(|mtu| *mtu != link.netdev.mtu) {
            return Err(differs(format!("MTU of {if_name}"), link.netdev.mtu, expected));
        }
    }
    let addresses = pod.addresses(link.netdev.ifindex)?;
    for ip in &expected.ips {
        // Of a chain's result, the other interfaces' addresses are not ours.
        let ours = ip.interface.is_none_or(|index| expected.interfaces.get(index).is_none_or(|i| i.name == *if_name));
        if ours && !addresses.iter().any(|found| found.address == ip.address.addr && found.prefix == ip.address.len) {
            return Err(differs(format!("address {} of {if_name}", ip.address), "not there", "it on the interface"));
        }
    }
    Ok(())
}

fn differs(what: String, found: impl Display, expected: impl Display) -> Error {
    Error::Differs { what, found: found.to_string(), expected: expected.to_string() }
}
