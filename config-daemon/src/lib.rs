//! I/O: the node side: what a node state asks of this machine, done to this machine.
//!
//! ```text
//! let plan     = plan(&desired, &machine.observe()?);     // Pure
//! let done     = apply(&machine, &plan);                  // I/O, in order; a VF's failure is that VF's, a PF's failure that PF's
//! let residual = plan(&desired, &machine.observe()?);     // empty = converged; otherwise it is the drift report
//! ```
//!
//! What lives here: the wish (`desired`), the machine (`observed`, `machine`), the difference (`plan`), doing it (`apply`), telling it (`status`
//! and `situation` to the cluster, `pools` to the device plugin, `metrics` and `health` to who watches), asking for the node (`handshake`) and
//! rebooting it (`reboot`), what is kept on disk (`store`), who has VFs (`store`, `kubelet`), and the loop around all of it (`node_state`).
//!
//! What never lives here: rendering policies (operator), handing VFs to pods (device plugin, CNI), opening files of the machine (`sriov-host`).
//!
//! Invariant: PFs that no policy asks for and that we did not configure are never touched, and a VF that a pod uses is never touched.

pub mod api;
pub mod apply;
pub mod boot;
pub mod bridges;
pub mod capable;
pub mod desired;
pub mod distribution;
pub mod doctor;
pub mod guids;
pub mod handshake;
pub mod health;
pub mod install;
pub mod kubelet;
pub mod machine;
pub mod metrics;
pub mod networks;
pub mod nic_names;
pub mod node_state;
pub mod observed;
pub mod ovsdb;
pub mod plan;
pub mod pools;
pub mod reboot;
pub mod situation;
pub mod status;
pub mod store;
pub mod table;
pub mod udev;
pub mod wish;
