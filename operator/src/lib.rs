//! I/O: the cluster side of the product. Policies become one `SriovNetworkNodeState` a node, networks become NetworkAttachmentDefinitions, and the
//! operator configuration becomes the DaemonSet that runs on selected nodes.
//!
//! Each controller has five rooms: `gather` (reads caches and the API) -> `validate` (pure) -> `build` (pure) -> `apply` (the only writer) ->
//! `report` (conditions and events). Watches feed [`cache::Cache`]s, their changes feed a [`queue`] of keys, and a key is reconciled from what
//! the caches say now, never from why it was queued. Nothing polls, and nothing here touches a machine: the operator links no `host`.

pub mod admission;
pub mod cache;
pub mod context;
pub mod drain;
pub mod fleet;
pub mod installation;
pub mod lease;
pub mod metrics;
pub mod network;
pub mod node_policy;
pub mod operator_config;
pub mod probes;
pub mod queue;
pub mod resources;
pub mod rights;

#[cfg(test)]
mod golden;
