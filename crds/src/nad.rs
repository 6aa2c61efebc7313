//! Pure: `NetworkAttachmentDefinition`, the kind of the Kubernetes Network Plumbing Working Group that Multus reads. Not our kind: the schema
//! is that of the public specification (version 1.3, section 3), shipped so that a cluster without Multus' own copy can be set up.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network that pods can be attached to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    singular = "network-attachment-definition",
    plural = "network-attachment-definitions",
    shortname = "net-attach-def",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    doc = "A network that pods can be attached to, as the Network Plumbing Working Group defines it."
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAttachmentDefinitionSpec {
    /// A CNI configuration or configuration list, JSON as text; unset means a file of that name on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}
