//! I/O: RDMA devices through the host crate's own netlink: `rdma-devices` prints the namespace mode and the devices, `rdma-devices move NAME NETNS` moves one.
//!
//! For guests whose only RDMA device is a software one, which belongs to no VF, so that none of the products can be asked to move it.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use std::os::fd::AsFd as _;

use anyhow::{Context, Result, bail};
use sriov_host::netlink::Rdma;
use sriov_host::netns::NetNs;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rdma = Rdma::open()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            println!("{}", rdma.mode()?.map_or("none", |mode| mode.as_str()));
            rdma.devices()?.iter().for_each(|device| println!("{} {}", device.index, device.name));
        }
        ["move", name, netns] => {
            let device =
                rdma.devices()?.into_iter().find(|device| device.name == *name).with_context(|| format!("there is no RDMA device {name}"))?;
            rdma.move_device(&device, NetNs::open(netns)?.as_fd())?;
        }
        ["rename", name, new] => {
            let device =
                rdma.devices()?.into_iter().find(|device| device.name == *name).with_context(|| format!("there is no RDMA device {name}"))?;
            rdma.rename_device(&device, new)?;
        }
        _ => bail!("usage: rdma-devices [move NAME NETNS | rename NAME NEW]"),
    }
    Ok(())
}
