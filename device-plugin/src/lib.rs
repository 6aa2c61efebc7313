//! I/O: VFs as resources of the kubelet. A local file says which pools there are, sysfs says which VFs there are, the kubelet's sockets get both.
//!
//! The loop in one line: config file x inventory -> pools ([`select`], pure) -> one server a pool -> kubelet, again at each change of any of them.
//!
//! What does not live here: the API server (this program has no cluster credentials), changes of the machine (that is the config daemon),
//! moving a VF into a pod (that is the CNI).
//!
//! Invariant: a device is in at most one pool, and a change of file or machine never restarts the process.

pub mod allocate;
pub mod api;
pub mod args;
pub mod authority;
pub mod cdi;
pub mod claims;
pub mod config;
pub mod device_info;
pub mod facts;
pub mod handover;
pub mod http;
pub mod kubelet;
pub mod machine;
pub mod metrics;
pub mod once;
pub mod pod_resources;
pub mod pool;
pub mod prefer;
pub mod privileges;
pub mod run;
pub mod select;
pub mod server;
pub mod socket;
pub mod watch;
pub mod watcher;
pub mod whole_look;
