//! I/O: the Linux machine as the products see it: PCI functions in sysfs, links over netlink, network namespaces.
//!
//! What lives here: value types of the domain (`pci`, `mac`, `vlan`, `rate`, `vf`, `inventory`), the only code that opens files of the
//! machine (`sysfs`), one netlink verb per kernel operation (`netlink`), driver binding (`driver`), namespaces (`netns`), events (`uevent`).
//!
//! What never lives here: Kubernetes, policy, decisions, async, YAML. Async callers use `spawn_blocking`.
//!
//! Invariant: the root of the file system is a value ([`Host::at`]), never a global, so that tests run in parallel on trees of their own.

pub mod inventory;
pub mod mac;
pub mod pci;
pub mod rate;
pub mod vf;
pub mod vlan;
