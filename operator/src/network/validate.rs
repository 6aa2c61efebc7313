//! Pure: a loose network object -> [`Wanted`], or a [`Refusal`] that becomes its condition. The user's JSON texts are read here, so that nothing
//! is ever pasted into a configuration.

use kube::ResourceExt;
use serde_json::Value;
use sriov_crds::conditions::network as reason;

use super::json::Json;
use super::kinds::Network;
use crate::context::Settings;

/// Why there is no NAD (or it is not changed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Condition reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What a network asks for, in strict form.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Namespace of the NAD.
    pub namespace: String,
    /// Name of the NAD.
    pub name: String,
    /// A JSON object, if given.
    pub capabilities: Option<Json>,
    /// A JSON object; empty when none is given.
    pub ipam: Json,
    /// JSON objects of plugins to chain.
    pub meta_plugins: Vec<Json>,
}

pub(super) fn network<N: Network>(network: &N, settings: &Settings) -> Result<Wanted, Refusal> {
    let own = network.meta().namespace.clone().unwrap_or_default();
    if network.network_namespace().is_some_and(|namespace| namespace != own) && own != settings.namespace {
        return Err(invalid(format!(
            "networkNamespace is only allowed on objects in namespace {}, this one is in {own}: create it there, or leave networkNamespace out",
            settings.namespace
        )));
    }
    if network.resource_name().is_empty() {
        return Err(invalid("resourceName is empty: it must be the resourceName of a SriovNetworkNodePolicy".to_owned()));
    }
    let texts = network.texts();
    let capabilities = match texts.capabilities {
        "" => None,
        text => Some(object("capabilities", text)?),
    };
    let ipam = if texts.ipam.is_empty() { Json::Object(vec![]) } else { object("ipam", texts.ipam)? };
    Ok(Wanted { namespace: target(network), name: network.name_any(), capabilities, ipam, meta_plugins: plugins(texts.meta_plugins)? })
}

/// Namespace of the NAD.
pub(super) fn target<N: Network>(network: &N) -> String {
    network.network_namespace().map(str::to_owned).or_else(|| network.namespace()).unwrap_or_default()
}

fn invalid(message: String) -> Refusal {
    Refusal { reason: reason::NAD_INVALID, message }
}

fn object(field: &str, text: &str) -> Result<Json, Refusal> {
    match serde_json::from_str(text) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) => Err(invalid(format!("{field} must be a JSON object, given: {text}"))),
        Err(error) => Err(invalid(format!("{field} is not JSON: {error}"))),
    }
}

/// The field is a list without its brackets, and each entry a plugin.
fn plugins(text: &str) -> Result<Vec<Json>, Refusal> {
    if text.is_empty() {
        return Ok(vec![]);
    }
    let plugins: Vec<Json> =
        serde_json::from_str(&format!("[{text}]")).map_err(|error| invalid(format!("metaPlugins is not a list of JSON objects: {error}")))?;
    let is_plugin = |plugin: &Json| match plugin {
        Json::Object(entries) => entries.iter().any(|(key, value)| key == "type" && matches!(value, Json::Scalar(Value::String(_)))),
        _ => false,
    };
    if !plugins.iter().all(is_plugin) {
        return Err(invalid(format!("metaPlugins must be JSON objects with a type each, separated by commas, given: {text}")));
    }
    Ok(plugins)
}
