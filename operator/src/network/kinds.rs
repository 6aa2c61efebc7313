//! Pure: what the three kinds of network have in common, so that everything else is written once.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sriov_crds::network::NetworkStatus;
use sriov_crds::{OVSNetwork, SriovIBNetwork, SriovNetwork};

use super::cni_conf;
use super::json::Json;

/// A kind whose objects become NetworkAttachmentDefinitions.
pub(super) trait Network:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
    /// Last part of the extended resource name.
    fn resource_name(&self) -> &str;
    /// Namespace of the NAD, when it is not the object's own.
    fn network_namespace(&self) -> Option<&str>;
    /// The fields that are JSON as text.
    fn texts(&self) -> Texts<'_>;
    /// Conditions as read.
    fn conditions(&self) -> &[Condition];
    /// The CNI configuration of the main plugin, keys in the field's order.
    fn plugin(&self, capabilities: Option<Json>, ipam: Json) -> Json;
}

/// Fields that are JSON as text; empty is unset.
pub(super) struct Texts<'a> {
    pub capabilities: &'a str,
    pub ipam: &'a str,
    pub meta_plugins: &'a str,
}

macro_rules! network {
    ($kind:ty, $plugin:path) => {
        impl Network for $kind {
            fn resource_name(&self) -> &str {
                &self.spec.resource_name
            }
            fn network_namespace(&self) -> Option<&str> {
                self.spec.network_namespace.as_deref().filter(|namespace| !namespace.is_empty())
            }
            fn texts(&self) -> Texts<'_> {
                Texts {
                    capabilities: trimmed(self.spec.capabilities.as_ref()),
                    ipam: trimmed(self.spec.ipam.as_ref()),
                    meta_plugins: trimmed(self.spec.meta_plugins.as_ref()),
                }
            }
            fn conditions(&self) -> &[Condition] {
                self.status.as_ref().map(|status: &NetworkStatus| status.conditions.as_slice()).unwrap_or_default()
            }
            fn plugin(&self, capabilities: Option<Json>, ipam: Json) -> Json {
                $plugin(&self.spec, capabilities, ipam)
            }
        }
    };
}

network!(SriovNetwork, cni_conf::sriov);
network!(SriovIBNetwork, cni_conf::infiniband);
network!(OVSNetwork, cni_conf::ovs);

fn trimmed(field: Option<&String>) -> &str {
    field.map_or("", |text| text.trim())
}
