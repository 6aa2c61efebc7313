//! I/O: sets attributes of a VF through the host crate's own netlink, in one message, and prints what the PF then reports of all its VFs, as JSON.
//!
//! For guests whose PF has no PCI device (netdevsim), where none of the products can be asked to do it.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use anyhow::{Context, Result};
use sriov_host::netlink::Route;
use sriov_host::vf::{VfIndex, VfSetting};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("usage: vf-attributes PF INDEX '[settings]': no {what}"));
    let (pf, index, settings) = (next("PF")?, next("INDEX")?, next("settings")?);
    let settings: Vec<VfSetting> = serde_json::from_str(&settings).context("read the settings")?;
    let route = Route::open()?;
    let link = route.link_by_name(&pf)?.with_context(|| format!("there is no link {pf}"))?;
    route.set_vf(link.netdev.ifindex, VfIndex(index.parse()?), &settings)?;
    println!("{}", serde_json::to_string(&route.vfs(link.netdev.ifindex)?)?);
    Ok(())
}
