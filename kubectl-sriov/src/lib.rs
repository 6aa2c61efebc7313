//! Pure: what `kubectl sriov` says about a cluster, as functions of a [`Snapshot`]; reading the cluster and printing are in `main` and `cluster`.
//!
//! Each view is a value that serialises (`-o json|yaml`) and becomes tables for people ([`table`]). Invariant: a view never fails; what it cannot read
//! of an object it says.

pub mod doctor;
pub mod history;
pub mod node;
pub mod plan;
pub mod pods;
pub mod snapshot;
pub mod status;
pub mod table;

pub use snapshot::{DEFAULT_NAMESPACE, Snapshot};

#[cfg(test)]
mod golden;
