//! I/O: runs commands, one a line of its input, and after each looks at the machine twice: at what the kernel's events named since, beginning with the
//! last look, and at everything. Prints for each what the first look read; ends with an error where the two differ.
//!
//! For guests, where the kernel announces changes as it does; on values the same is a property test of the host crate.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use std::io::BufRead as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sriov_host::Host;
use sriov_host::discover::{Changes, KeptSurvey, Read, survey};
use sriov_host::netlink::LinkMonitor;
use sriov_host::uevent::UeventSocket;

/// Nothing is announced for so long after the last consequence of a command.
const QUIET: Duration = Duration::from_millis(500);
/// Longest wait until both looks agree: carriers come and go between them.
const AGREED: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let (host, devices, links) = (Host::system(), UeventSocket::open()?, LinkMonitor::open()?);
    let mut kept = KeptSurvey::default();
    kept.look(&host, &Changes::everything())?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let status =
            Command::new("/bin/sh").args(["-ec", &line]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").status().with_context(|| line.clone())?;
        ensure!(status.success(), "{line}: {status}");
        let (deadline, mut read) = (Instant::now() + AGREED, Vec::new());
        loop {
            let look = kept.look(&host, &announced(&devices, &links)?)?;
            read.push(match look.read {
                Read::Everything => "everything".to_owned(),
                Read::Pfs(pfs) => pfs.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
            });
            let (seen, whole) = (look.survey.inventory, survey(&host)?.inventory);
            if seen == whole {
                break;
            }
            if Instant::now() > deadline {
                bail!("after {line:?}, of which {read:?} was read:\n{seen:#?}\nis not\n{whole:#?}");
            }
        }
        println!("{}", read.join(" "));
    }
    Ok(())
}

/// What is announced until nothing is, as the config daemon takes it.
fn announced(devices: &UeventSocket, links: &LinkMonitor) -> Result<Changes> {
    let mut changes = Changes::default();
    loop {
        let mut quiet = true;
        while let Some(event) = devices.next(Instant::now() + QUIET)? {
            quiet = false;
            if changes.add_device(&event) && changes.is_everything() {
                eprintln!("{} {} means everything", event.action, event.devpath);
            }
        }
        while let Some(link) = links.next(Instant::now())? {
            quiet = false;
            changes.add_link(link.netdev.ifindex);
            if link.parent_device.is_none() && link.stack.kind.is_none() {
                eprintln!("{} names no parent: everything", link.netdev.name);
            }
        }
        if quiet {
            return Ok(changes);
        }
    }
}
