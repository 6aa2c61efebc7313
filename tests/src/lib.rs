//! I/O: what the tests that need more than one process are built with.
//!
//! What lives here: the lab (guests under QEMU, a control plane, networks), the harness of the tests that use it, and stand-ins for the
//! programs around ours. What does not: the tests themselves (`tests/<tier>_<subject>.rs`) and anything a product could use.
//!
//! Invariant: whatever is started here ends with the process that started it, however that ends.

pub mod apiserver;
pub mod cluster;
pub mod cni;
pub mod harness;
pub mod kubelet;
pub mod lab;
pub mod multus;
pub mod openvswitch;
pub mod pages;
pub mod pairs;
pub mod plugin;
pub mod pod_resources;
pub mod trace;
pub mod undo;
