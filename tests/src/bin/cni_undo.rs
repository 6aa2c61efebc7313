//! I/O: "apply, then undo" (`sriov_tests::undo`) in a guest, whose kernel has a simulated PF that holds attributes of VFs: `cni-undo PF CASES SEED`.

use anyhow::{Context, Result, bail};
use sriov_host::netlink::Route;
use sriov_tests::cni::{Machine, NETDEV};
use sriov_tests::undo::apply_then_undo;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pf, cases, seed] = arguments.as_slice() else { bail!("usage: cni-undo PF CASES SEED") };
    let machine = Machine::new()?;
    let done = apply_then_undo(&machine, Some(pf), cases.parse()?, seed.parse()?);
    // The stand-in for the VF's netdev is in the guest's own namespace.
    let route = Route::open()?;
    if let Some(link) = route.link_by_name(NETDEV)? {
        route.del_link(link.netdev.ifindex).context("take the stand-in away")?;
    }
    done
}
