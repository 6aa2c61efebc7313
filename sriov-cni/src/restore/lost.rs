//! I/O: what can be told of an attachment whose journal is lost.

use sriov_host::netlink::Route;
use sriov_host::netns::NetNs;
use sriov_host::pci::PciAddress;
use sriov_host::vf::{VfAttributes, VfIndex};

use super::boot_id;
use crate::Context;
use crate::attach::AttachError;
use crate::device::{listed, locate};
use crate::journal::{ATTEMPT_LOST, Applied, Journal, Original, OriginalNetdev, Owner, Phase, VERSION};
use crate::log::Level;
use crate::vf_plan;
use crate::vlan_set::VlanSet;
use sriov_host::device_id::DeviceId;

/// What can still be told of an attachment whose journal is lost: the VF is in the namespace of this very call, so that it is this container's,
/// and what the configuration asks was set. It goes back to what a fresh VF has. `None` when it is anywhere else: then nothing says whose it is.
pub(crate) fn lost(ctx: &Context<'_>, vf: DeviceId, owner: (&str, &str)) -> Result<Option<Journal>, crate::Error> {
    let Some(netns) = ctx.request.netns.as_deref().and_then(|path| NetNs::open(path).ok()) else { return Ok(None) };
    let id = netns.id().map_err(crate::Error::NetNs)?;
    let own = NetNs::current().and_then(|own| own.id()).map_err(crate::Error::NetNs)?;
    let Ok(location) = locate(ctx.host, vf) else { return Ok(None) };
    if id == own {
        return Ok(None);
    }
    let Some(link) = listed(&Route::open_in(&netns).map_err(AttachError::from)?, vf)? else { return Ok(None) };
    ctx.log.write(Level::Warning, &format_args!("VF {vf} has no journal: it goes back to the host as a fresh VF"));
    let netdev = link.netdev;
    let fresh = VfAttributes::fresh(location.index);
    let wanted = ctx.conf.vf_request(ctx.request.args_mac.as_deref()).ok().filter(|_| location.pf.is_some());
    // An address that was not asked for may be the administrator's.
    let mac = wanted.as_ref().and_then(|wanted| wanted.mac).and(link.permanent_mac);
    let wanted_trunk = wanted.as_ref().and_then(|wanted| wanted.trunk.clone());
    let settings = wanted.map(|wanted| vf_plan::asked(&wanted, &fresh)).unwrap_or_default();
    let name = usual_name(ctx, location.pf, location.index).unwrap_or(netdev.name);
    Ok(Some(Journal {
        version: VERSION,
        phase: Phase::Prepared,
        attempt: ATTEMPT_LOST.to_owned(),
        boot_id: boot_id(ctx.host),
        network: ctx.conf.name.clone(),
        owner: Owner {
            container_id: owner.0.to_owned(),
            if_name: owner.1.to_owned(),
            netns_path: netns.path().to_owned(),
            netns_dev: id.dev,
            netns_inode: id.ino,
        },
        vf,
        pf: location.pf,
        index: location.index,
        userspace_driver: None,
        kernel_driver: location.driver,
        original: Original {
            netdev: Some(OriginalNetdev { name, device: None, alt_names: Vec::new(), mac, mtu: 0, up: false, promisc: false, allmulti: false }),
            attributes: Some(fresh),
            // No driver has VLANs in the trunk of a fresh VF.
            trunk: wanted_trunk.as_ref().map(|_| VlanSet::default()),
        },
        applied: Applied { settings, mac: None, mtu: None, trunk: wanted_trunk },
        rdma: Vec::new(),
        ipam: None,
        go_records: false,
        device_info: None,
        result: None,
    }))
}

/// The name that udev gives a VF by default: that of its PF without the port, `v` and the index.
fn usual_name(ctx: &Context<'_>, pf: Option<PciAddress>, index: VfIndex) -> Option<String> {
    let pf = ctx.host.sysfs().list_opt(format!("/sys/bus/pci/devices/{}/net", pf?)).ok().flatten()?.into_iter().next()?;
    let stem = pf.rsplit_once("np").filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(pf.as_str(), |(stem, _)| stem);
    Some(format!("{stem}v{index}")).filter(|name| name.len() <= 15)
}
