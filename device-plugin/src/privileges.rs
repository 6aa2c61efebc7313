//! I/O: gives up what this program never needs: all capabilities, and the way to new ones.
//!
//! Reading sysfs, asking netlink and speaking on sockets of root's folders takes the user root, and no capability.
//!
//! Invariant: it happens before any other thread runs, so that it holds for all of them.

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// A right that could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb}: {errno}")]
pub struct DropError {
    verb: &'static str,
    errno: rustix::io::Errno,
}

/// Empties the capability sets of this thread, and with them those of each thread and program that it starts.
pub fn drop_all() -> Result<(), DropError> {
    set_no_new_privs(true).map_err(|errno| DropError { verb: "forbid new privileges", errno })?;
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    set_capabilities(None, none).map_err(|errno| DropError { verb: "drop the capabilities", errno })
}
