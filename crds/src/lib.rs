//! Pure: the Kubernetes API of the product, group `sriovnetwork.openshift.io/v1`: types, defaults, schemas and the words of its annotations.
//!
//! Field spellings, defaults and enums are those of the Go operator, so that existing objects keep working; what is ours on top says so.
//! The types are loose (`String`, `Option`): each consumer makes them strict in its own `validate` or `desired`. No I/O here; the committed
//! files under `yaml/` are exactly [`manifests::files`], which a test in that module holds.
#![expect(clippy::duplicated_attributes, reason = "each printcolumn has a type of its own")]
#![expect(clippy::struct_excessive_bools, reason = "the wire format has independent flags")]

pub mod bridge;
mod checks;
pub mod conditions;
pub mod keys;
pub mod manifests;
pub mod nad;
pub mod namespace_rule;
pub mod network;
pub mod node_policy;
pub mod node_state;
pub mod operator_config;
pub mod pool_config;
pub mod resolve;
pub mod vf_range;

pub use manifests::manifests;
pub use nad::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec};
pub use namespace_rule::{SriovNamespaceRule, SriovNamespaceRuleSpec};
pub use network::{OVSNetwork, OVSNetworkSpec, SriovIBNetwork, SriovIBNetworkSpec, SriovNetwork, SriovNetworkSpec};
pub use node_policy::{SriovNetworkNodePolicy, SriovNetworkNodePolicySpec};
pub use node_state::{SriovNetworkNodeState, SriovNetworkNodeStateSpec, SriovNetworkNodeStateStatus};
pub use operator_config::{SriovOperatorConfig, SriovOperatorConfigSpec};
pub use pool_config::{SriovNetworkPoolConfig, SriovNetworkPoolConfigSpec};
pub use vf_range::{PfSelector, VfRange, VfRangeError};

/// For `skip_serializing_if`: a false flag is left out, as Go's `omitempty` does.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// For `skip_serializing_if`: a zero is left out, as Go's `omitempty` does.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
