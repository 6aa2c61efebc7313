//! I/O: sets a device's eswitch mode through the host crate's own devlink and prints the mode, the representors that follow, and the health reporter that is in
//! the error state, as JSON.
//!
//! For guests whose device has no PCI address (netdevsim), where none of the products can be asked to do it.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use anyhow::{Context, Result};
use serde_json::json;
use sriov_host::discover::representors;
use sriov_host::inventory::EswitchMode;
use sriov_host::netlink::Route;
use sriov_host::netlink::devlink::{Device, Devlink};
use sriov_host::netlink::ethtool::Ethtool;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("usage: eswitch BUS DEVICE MODE UPLINK: no {what}"));
    let device = Device { bus: next("BUS")?, name: next("DEVICE")? };
    let mode = match next("MODE")?.as_str() {
        "switchdev" => EswitchMode::Switchdev,
        _ => EswitchMode::Legacy,
    };
    let uplink = next("UPLINK")?;
    let devlink = Devlink::open()?;
    devlink.set_eswitch_mode(&device, mode)?;
    let route = Route::open()?;
    let uplink = route.link_by_name(&uplink)?.context("there is no such uplink")?;
    if mode == EswitchMode::Switchdev {
        Ethtool::open()?.enable_feature(uplink.netdev.ifindex, "hw-tc-offload")?;
    }
    let offload = Ethtool::open()?.feature(uplink.netdev.ifindex, "hw-tc-offload")?;
    let found = representors(&uplink, &route.links()?);
    let faulty = devlink.faulty_reporter(&device)?;
    println!("{}", json!({ "mode": devlink.eswitch_mode_of(&device)?, "representors": found, "offload": offload, "faultyReporter": faulty }));
    Ok(())
}
