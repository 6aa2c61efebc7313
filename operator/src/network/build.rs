//! Pure: the NAD of a network, and whose a NAD is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use sriov_crds::conditions::network as reason;
use sriov_crds::keys;

use super::gather::Found;
use super::json::{Json, Object};
use super::kinds::Network;
use super::validate::{Refusal, Wanted};
use crate::context::Settings;

/// CNI version of rendered configurations.
const CNI_VERSION: &str = "1.0.0";

/// What is to be done for one network.
#[derive(Debug, PartialEq)]
pub(super) struct Desired {
    /// Namespace of the NAD.
    pub namespace: String,
    /// Namespace that an earlier NAD of this network is in, when it is another.
    pub leave: Option<String>,
    /// The NAD to write, when it differs from what is there.
    pub nad: Option<Value>,
    /// Whether the network needs our finalizer: no garbage collection crosses namespaces.
    pub finalizer: bool,
}

/// `Kind.group/namespace/name`, by which a NAD names its network.
pub(super) fn owner_ref<N: Network>(network: &N) -> String {
    owner_ref_of::<N>(&network.namespace().unwrap_or_default(), &network.name_any())
}

/// The same of a network that is not there.
pub(super) fn owner_ref_of<N: Network>(namespace: &str, name: &str) -> String {
    format!("{}.{}/{namespace}/{name}", N::kind(&()), keys::GROUP)
}

pub(super) fn desired<N: Network>(network: &N, wanted: Wanted, found: &Found, settings: &Settings) -> Result<Desired, Refusal> {
    if !found.namespace {
        return Err(Refusal {
            reason: reason::NAMESPACE_NOT_FOUND,
            message: format!("namespace {} does not exist; the NetworkAttachmentDefinition is made when it does", wanted.namespace),
        });
    }
    let own = network.namespace().unwrap_or_default();
    let namespace = wanted.namespace.clone();
    let nad = nad(network, wanted, settings);
    if let Some(there) = &found.nad {
        refuse_foreign(there, &nad, &owner_ref(network))?;
    }
    let last = network.annotations().get(keys::LAST_NETWORK_NAMESPACE);
    let differs = found.nad.as_ref().is_none_or(|there| !contains(&json!(there), &nad));
    Ok(Desired {
        leave: last.filter(|last| !last.is_empty() && **last != namespace).cloned(),
        nad: differs.then_some(nad),
        finalizer: own == settings.namespace,
        namespace,
    })
}

/// The whole object as it is applied.
fn nad<N: Network>(network: &N, wanted: Wanted, settings: &Settings) -> Value {
    let (namespace, name) = (wanted.namespace.clone(), wanted.name.clone());
    let config = config_of(network, wanted);
    let mut metadata = json!({
        "name": name,
        "namespace": namespace,
        "labels": { keys::MANAGED_BY: keys::FIELD_MANAGER },
        "annotations": {
            keys::NAD_RESOURCE_NAME: format!("{}/{}", settings.resource_prefix, network.resource_name()),
            keys::NAD_OWNER_REF: owner_ref(network),
        },
    });
    if network.namespace().as_deref() == metadata["namespace"].as_str() {
        metadata["ownerReferences"] = json!([OwnerReference {
            api_version: N::api_version(&()).into_owned(),
            kind: N::kind(&()).into_owned(),
            name: network.name_any(),
            uid: network.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
    }
    json!({ "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": metadata, "spec": { "config": config } })
}

/// The CNI configuration, as text.
pub(super) fn config_of<N: Network>(network: &N, wanted: Wanted) -> String {
    let Wanted { namespace: _, name, capabilities, ipam, meta_plugins } = wanted;
    config(&name, network.plugin(capabilities, ipam), meta_plugins).pretty()
}

fn config(name: &str, plugin: Json, meta_plugins: Vec<Json>) -> Json {
    let head = Object::default().with("cniVersion", Json::from(CNI_VERSION)).with("name", Json::from(name));
    if meta_plugins.is_empty() {
        return head.with_all(plugin).build();
    }
    head.with("plugins", Json::Array([vec![plugin], meta_plugins].concat())).build()
}

/// A NAD with another owner is not ours. One without any (an old operator, or a person, made it) is taken over only when that changes nothing
/// that its readers see.
fn refuse_foreign(there: &DynamicObject, ours: &Value, owner_ref: &str) -> Result<(), Refusal> {
    let message = match there.annotations().get(keys::NAD_OWNER_REF) {
        Some(owner) if owner == owner_ref => return Ok(()),
        Some(owner) => format!("it belongs to {owner}"),
        None if same_content(there, ours) => return Ok(()),
        None => format!("it was not made for this network; annotate it with {}={owner_ref} to hand it over", keys::NAD_OWNER_REF),
    };
    let name = there.name_any();
    let namespace = there.namespace().unwrap_or_default();
    Err(Refusal {
        reason: reason::NAD_NOT_FOUND,
        message: format!("a NetworkAttachmentDefinition {name} is already in namespace {namespace} and is left as it is: {message}"),
    })
}

fn same_content(there: &DynamicObject, ours: &Value) -> bool {
    let config = |text: &Value| text.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let resource = there.annotations().get(keys::NAD_RESOURCE_NAME).map(String::as_str);
    resource == ours["metadata"]["annotations"][keys::NAD_RESOURCE_NAME].as_str()
        && config(&there.data["spec"]["config"]).is_some_and(|there| Some(there) == config(&ours["spec"]["config"]))
}

/// True when everything of `wanted` is in `there`, whatever else is. Lists are equal as a whole, except owner references, of which ours counts.
fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(key, value)| match there.get(key) {
            Some(Value::Array(present)) if key == "ownerReferences" => {
                value.as_array().is_some_and(|ours| ours.iter().all(|our| present.iter().any(|there| contains(there, our))))
            }
            Some(present) => contains(present, value),
            None => false,
        }),
        _ => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;
    use sriov_crds::{OVSNetwork, SriovIBNetwork, SriovNetwork};

    use super::super::validate;
    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "operators".into(),
            resource_prefix: "example.com".into(),
            node_image: String::new(),
            cni_bin_path: String::new(),
            kubelet_path: String::new(),
            image_pull_secrets: vec![],
            stale_state_delay: Duration::ZERO,
            admission: crate::admission::Settings::for_tests(),
            drain_timeout: Duration::from_mins(15),
            external_drainer: false,
        }
    }

    #[derive(Deserialize)]
    struct Input {
        network: Value,
        #[serde(default)]
        nad: Option<DynamicObject>,
        #[serde(default, rename = "namespaceMissing")]
        namespace_missing: bool,
    }

    fn run<N: Network>(input: Input) -> Value {
        let network: N = serde_json::from_value(input.network).unwrap();
        let settings = settings();
        let found = Found { namespace: !input.namespace_missing, nad: input.nad };
        match validate::network(&network, &settings).and_then(|wanted| desired(&network, wanted, &found, &settings)) {
            Err(refusal) => json!({ "reason": refusal.reason, "message": refusal.message }),
            Ok(desired) => json!({ "nad": desired.nad, "leave": desired.leave, "finalizer": desired.finalizer }),
        }
    }

    #[test]
    fn golden() {
        crate::golden::check("network", |input: Input| match input.network["kind"].as_str() {
            Some("SriovIBNetwork") => run::<SriovIBNetwork>(input),
            Some("OVSNetwork") => run::<OVSNetwork>(input),
            _ => run::<SriovNetwork>(input),
        });
    }

    #[test]
    fn what_is_there_is_enough_when_it_holds_what_is_wanted() {
        let wanted = json!({ "metadata": { "annotations": { "a": "1" }, "ownerReferences": [{ "uid": "u" }] }, "spec": { "config": "{}" } });
        let more = json!({
            "metadata": { "annotations": { "a": "1", "theirs": "x" }, "ownerReferences": [{ "uid": "v" }, { "uid": "u", "kind": "k" }] },
            "spec": { "config": "{}" },
        });
        assert!(contains(&more, &wanted));
        assert!(!contains(&json!({ "metadata": {}, "spec": { "config": "{}" } }), &wanted));
    }
}
