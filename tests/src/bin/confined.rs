//! I/O: `confined NAME,NAME.. PROGRAM ARGUMENT..` runs a program as user 0 with these capabilities and no others, as a container runtime runs a container
//! from which all others are dropped: it cannot get them back, and neither can what it starts.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [names, program, rest @ ..] = arguments.as_slice() else { bail!("usage: confined NAME,NAME.. PROGRAM ARGUMENT..") };
    let mut kept = CapabilitySet::empty();
    for name in names.split(',') {
        kept |= CapabilitySet::from_name(name).with_context(|| format!("there is no capability {name:?}"))?;
    }
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The last that this kernel knows came before.
            Err(Errno::INVAL) => break,
            answer => answer.with_context(|| format!("cannot drop capability {number}"))?,
        }
    }
    set_no_new_privs(true).context("cannot give new privileges up")?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("cannot run {program}"))
}
