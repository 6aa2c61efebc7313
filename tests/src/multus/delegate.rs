//! Pure: from a network's configuration and a pod's requests to what each CNI plugin gets. No files, no processes.
//!
//! Plugin configurations belong to their plugins, so they stay JSON objects here; only the keys that the contract names are touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::PodRef;
use super::annotation::Selection;

/// One network of one pod, ready to run and to be remembered until DEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delegate {
    /// As `network-status` names it: `<namespace>/<name>`, or the first network's own name.
    pub network: String,
    /// `name` of the configuration.
    pub name: String,
    /// `cniVersion` of the configuration.
    pub cni_version: Option<String>,
    /// Configurations in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
    /// `disableCheck` of a configuration list.
    pub disable_check: bool,
    /// Interface in the pod.
    pub interface: String,
    /// Whether this is the pod's first network.
    pub is_default: bool,
    /// What was requested, by capability.
    pub runtime_config: Map<String, Value>,
    /// `CNI_ARGS`.
    pub cni_args: String,
    /// The device's information: the file that the device plugin wrote and its copy for this network.
    pub device_info: Option<(PathBuf, PathBuf)>,
    /// What ADD returned.
    pub result: Option<Value>,
}

/// What the kubelet gave the pod: resource name to device ids.
pub type Devices = BTreeMap<String, Vec<String>>;

/// Hands out a pod's devices: for each resource in sorted order, one for each use.
#[derive(Debug, Default)]
pub struct Allotment {
    devices: Devices,
    used: BTreeMap<String, usize>,
}

impl Allotment {
    /// Sorts each resource's devices as text.
    pub fn new(mut devices: Devices) -> Self {
        for ids in devices.values_mut() {
            ids.sort_unstable();
        }
        Self { devices, used: BTreeMap::new() }
    }

    /// The next device of the resource; `None` when there is none left, which Multus leaves to the plugin to complain about.
    pub fn next(&mut self, resource: &str) -> Option<String> {
        let used = self.used.entry(resource.to_owned()).or_default();
        let device = self.devices.get(resource)?.get(*used)?.clone();
        *used += 1;
        Some(device)
    }
}

/// A NAD with what one use of it needs.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// What the pod asked for; its namespace and name are the NAD's.
    pub selection: &'a Selection,
    /// The NAD's configuration, or the file's that stands in for an empty one.
    pub config: &'a str,
    /// The NAD's resource with the device from the kubelet.
    pub device: Option<(&'a str, &'a str)>,
}

/// Reads one configuration or a list (CNI §1). `fallback` names a configuration that has no name.
pub fn network(text: &str, fallback: &str) -> Result<Delegate> {
    let mut conf: Map<String, Value> = serde_json::from_str(text).with_context(|| format!("parse the configuration of network {fallback:?}"))?;
    let name = conf.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or(fallback).to_owned();
    let cni_version = conf.get("cniVersion").and_then(Value::as_str).map(str::to_owned);
    let disable_check = conf.get("disableCheck").and_then(Value::as_bool).unwrap_or(false);
    let plugins = match conf.remove("plugins") {
        None => vec![conf],
        Some(plugins) => serde_json::from_value(plugins).with_context(|| format!("parse `plugins` of network {name:?} as a list of objects"))?,
    };
    ensure!(!plugins.is_empty(), "network {name:?} has no plugin");
    for plugin in &plugins {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        ensure!(!kind.is_empty() && !kind.contains('/'), "network {name:?} has a plugin with `type` {kind:?}; expected the name of a program");
    }
    Ok(Delegate {
        network: name.clone(),
        name,
        cni_version,
        plugins,
        disable_check,
        interface: String::new(),
        is_default: false,
        runtime_config: Map::new(),
        cni_args: String::new(),
        device_info: None,
        result: None,
    })
}

/// The delegate for one NAD. `device_info_folder` and `container` only name the files of the device information.
pub fn attach(attachment: &Attachment<'_>, pod: &PodRef, container: &str, interface: &str, device_info_folder: &Path) -> Result<Delegate> {
    let selection = attachment.selection;
    let mut delegate = network(attachment.config, &selection.name)?;
    delegate.network = format!("{}/{}", selection.namespace, selection.name);
    interface.clone_into(&mut delegate.interface);
    for plugin in &mut delegate.plugins {
        if let Some((_, device)) = attachment.device {
            plugin.insert("deviceID".to_owned(), device.into());
            plugin.insert("pciBusID".to_owned(), device.into());
        }
        merge_cni_args(plugin, &selection.cni_args);
    }
    if let Some((resource, device)) = attachment.device {
        let copy = format!("{}-{}-{container}_{interface}", selection.namespace, selection.name);
        let original = format!("{}-{device}-device.json", resource.replace('/', "-"));
        delegate.device_info = Some((device_info_folder.join("dp").join(original), device_info_folder.join("cni").join(copy.replace('/', "-"))));
    }
    let copy = delegate.device_info.as_ref().map(|(_, copy)| copy.as_path());
    delegate.runtime_config = requests(selection, attachment.device.map(|(_, device)| device), copy);
    delegate.cni_args = cni_args(pod, container, Some(selection));
    Ok(delegate)
}

/// The names of the interfaces of the networks besides the first, in their order.
pub fn interfaces(first: &str, selections: &[Selection]) -> Result<Vec<String>> {
    let mut names = vec![first.to_owned()];
    for (index, selection) in selections.iter().enumerate() {
        let name = selection.interface.clone().unwrap_or_else(|| format!("net{}", index + 1));
        if names.contains(&name) {
            bail!("network {}/{} asks for interface {name:?}, which another network of the pod has", selection.namespace, selection.name);
        }
        names.push(name);
    }
    names.remove(0);
    Ok(names)
}

/// `CNI_ARGS` for a plugin. MAC and IP are there for plugins without the capabilities.
pub fn cni_args(pod: &PodRef, container: &str, selection: Option<&Selection>) -> String {
    let mut pairs = vec![
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", pod.namespace.clone()),
        ("K8S_POD_NAME", pod.name.clone()),
        ("K8S_POD_INFRA_CONTAINER_ID", container.to_owned()),
        ("K8S_POD_UID", pod.uid.clone().unwrap_or_default()),
    ];
    if let Some(mac) = selection.and_then(|selection| selection.mac.clone()) {
        pairs.push(("MAC", mac));
    }
    if let Some(selection) = selection.filter(|selection| !selection.ips.is_empty()) {
        pairs.push(("IP", selection.ips.join(",")));
    }
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
}

/// What plugin number `index` reads from standard input (CNI §4, "Deriving runtime configuration").
pub fn plugin_config(delegate: &Delegate, index: usize, previous: Option<&Value>) -> Result<Map<String, Value>> {
    let mut config = delegate.plugins.get(index).with_context(|| format!("network {:?} has no plugin {index}", delegate.name))?.clone();
    config.insert("name".to_owned(), delegate.name.clone().into());
    if let Some(version) = &delegate.cni_version {
        config.insert("cniVersion".to_owned(), version.clone().into());
    }
    let declared = |capability: &str| config.get("capabilities").is_some_and(|capabilities| capabilities[capability] == true);
    let passed: Map<String, Value> = delegate
        .runtime_config
        .iter()
        .filter(|(capability, _)| declared(capability))
        .map(|(capability, value)| (capability.clone(), value.clone()))
        .collect();
    if !passed.is_empty() {
        config.insert("runtimeConfig".to_owned(), passed.into());
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Ok(config)
}

/// Adds to `args.cni`; what the NAD says there stays unless the pod says otherwise.
fn merge_cni_args(plugin: &mut Map<String, Value>, requested: &Map<String, Value>) {
    if requested.is_empty() {
        return;
    }
    let args = plugin.entry("args").or_insert_with(|| json!({}));
    let mut merged = args["cni"].as_object().cloned().unwrap_or_default();
    merged.extend(requested.clone());
    args["cni"] = merged.into();
}

/// The capability arguments of one selection. The kubelet's device goes before one that the pod names.
fn requests(selection: &Selection, device: Option<&str>, device_info: Option<&Path>) -> Map<String, Value> {
    let mut requests = Map::new();
    let mut put = |capability: &str, value: Option<Value>| {
        if let Some(value) = value {
            requests.insert(capability.to_owned(), value);
        }
    };
    put("mac", selection.mac.clone().map(Value::from));
    put("ips", (!selection.ips.is_empty()).then(|| selection.ips.clone().into()));
    put("infinibandGUID", selection.infiniband_guid.clone().map(Value::from));
    put("portMappings", (!selection.port_mappings.is_empty()).then(|| selection.port_mappings.clone().into()));
    put("bandwidth", selection.bandwidth.clone());
    put("deviceID", device.map(str::to_owned).or_else(|| selection.device_id.clone()).map(Value::from));
    put("CNIDeviceInfoFile", device_info.map(|path| path.to_string_lossy().into_owned().into()));
    requests
}

#[cfg(test)]
mod tests;
