//! Pure: the objects of a cluster that the views are made from, and the questions that more than one view asks of them.
//!
//! Invariant: an object that cannot be read is named in [`Snapshot::unreadable`] and leaves the others alone.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sriov_crds::node_state::{InterfaceStatus, SriovNetworkNodeState, VfStatus};
use sriov_crds::{NetworkAttachmentDefinition, SriovNetworkNodePolicy, SriovOperatorConfig, keys, resolve};

/// Annotation in which Multus says what a pod's interfaces are.
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// Annotation in which a pod asks for networks.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// Where the operator runs unless somebody says otherwise.
pub const DEFAULT_NAMESPACE: &str = "sriov-network-operator";

/// A cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Where the operator runs, if not in [`DEFAULT_NAMESPACE`].
    pub operator_namespace: Option<String>,
    /// Whether the cluster was asked for NADs and does not know the kind, so that Multus cannot run.
    pub without_nads: bool,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Node states of the operator's namespace.
    pub states: Vec<SriovNetworkNodeState>,
    /// Policies of the operator's namespace.
    pub policies: Vec<SriovNetworkNodePolicy>,
    /// Operator configurations.
    pub configs: Vec<SriovOperatorConfig>,
    /// NADs of all namespaces.
    pub nads: Vec<NetworkAttachmentDefinition>,
    /// Pods of all namespaces.
    pub pods: Vec<Pod>,
    /// Events of all namespaces.
    pub events: Vec<Event>,
    /// Objects that could not be read, and why.
    pub unreadable: Vec<String>,
}

/// A VF in a pod, as Multus reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Where it runs.
    pub node: String,
    /// Interface in the pod.
    pub interface: String,
    /// `<namespace>/<name>` of the NAD.
    pub network: String,
    /// PCI address of the VF.
    pub pci_address: String,
    /// Addresses without prefix length.
    pub addresses: Vec<String>,
    /// MAC, if the interface has one.
    pub mac: Option<String>,
}

impl Snapshot {
    /// From objects with `kind`; lists are opened, kinds that no view needs are left out.
    pub fn read(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut snapshot = Self::default();
        for object in objects {
            snapshot.add(object);
        }
        snapshot
    }

    /// Puts one object, or each of a list, in its place.
    pub fn add(&mut self, mut object: Value) {
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            for item in std::mem::take(items) {
                self.add(item);
            }
            return;
        }
        let unreadable = &mut self.unreadable;
        match object["kind"].as_str().unwrap_or_default() {
            "Node" => put(&mut self.nodes, object, unreadable),
            "SriovNetworkNodeState" => put(&mut self.states, object, unreadable),
            "SriovNetworkNodePolicy" => put(&mut self.policies, object, unreadable),
            "SriovOperatorConfig" => put(&mut self.configs, object, unreadable),
            "NetworkAttachmentDefinition" => put(&mut self.nads, object, unreadable),
            "Pod" => put(&mut self.pods, object, unreadable),
            "Event" => put(&mut self.events, object, unreadable),
            _ => {}
        }
    }

    /// Where the operator runs.
    pub fn namespace(&self) -> &str {
        self.operator_namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }

    /// Whether nothing was read that a view shows.
    pub fn is_empty(&self) -> bool {
        let ours = self.states.is_empty() && self.policies.is_empty() && self.configs.is_empty();
        ours && self.nodes.is_empty() && self.nads.is_empty() && self.pods.is_empty() && self.events.is_empty() && self.unreadable.is_empty()
    }

    /// The node state of a node.
    pub fn state(&self, node: &str) -> Option<&SriovNetworkNodeState> {
        self.states.iter().find(|state| state.metadata.name.as_deref() == Some(node))
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name))
    }

    /// Whether nodes are configured without draining.
    pub fn drain_disabled(&self) -> bool {
        self.configs.iter().any(|config| config.metadata.name.as_deref() == Some(keys::DEFAULT_CONFIG) && config.spec.disable_drain)
    }

    /// Whether daemons make the bridges of policies.
    pub fn manages_bridges(&self) -> bool {
        let is_on = |config: &SriovOperatorConfig| config.spec.feature_gates.get("manageSoftwareBridges").copied().unwrap_or(false);
        self.configs.iter().any(|config| config.metadata.name.as_deref() == Some(keys::DEFAULT_CONFIG) && is_on(config))
    }

    /// Whether the daemon of a node tells the firmware of a PF how many VFs it is to allow: kernels can since Linux 6.18, for NICs of this vendor. What was
    /// taken over into an older kernel no object tells.
    pub fn tells_firmware(&self, node: &str, pf: &InterfaceStatus) -> bool {
        let kernel = self.node(node).and_then(|node| Some(node.status.as_ref()?.node_info.as_ref()?.kernel_version.as_str()));
        let mut numbers = kernel.unwrap_or_default().split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let is_left = |config: &SriovOperatorConfig| config.spec.disable_plugins.iter().any(|plugin| plugin == "mellanox");
        let left = self.configs.iter().any(|config| config.metadata.name.as_deref() == Some(keys::DEFAULT_CONFIG) && is_left(config));
        pf.vendor.as_deref() == Some("15b3") && version >= (6, 18) && !left
    }

    /// Labels that a node must have to be managed.
    pub fn selector(&self) -> BTreeMap<String, String> {
        let config = self.configs.iter().find(|config| config.metadata.name.as_deref() == Some(keys::DEFAULT_CONFIG));
        let chosen = config.map(|config| config.spec.config_daemon_node_selector.clone()).filter(|selector| !selector.is_empty());
        chosen.unwrap_or_else(|| [(keys::CAPABLE_LABEL.to_owned(), "true".to_owned())].into())
    }

    /// Whether the operator manages the node.
    pub fn is_managed(&self, node: &Node) -> bool {
        resolve::selects(&self.selector(), node.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
    }

    /// Every VF that a living pod holds and Multus reported, in order of node and address.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut all: Vec<Attachment> = self.pods.iter().filter(|pod| !has_ended(pod)).flat_map(attachments_of).collect();
        all.sort_by(|a, b| (&a.node, &a.pci_address, &a.pod).cmp(&(&b.node, &b.pci_address, &b.pod)));
        all
    }

    /// PCI addresses of the VFs of a PF that somebody holds: pods by Multus, and whatever the daemon says of the VF.
    pub fn used(&self, node: &str, pf: &InterfaceStatus) -> BTreeSet<String> {
        let held: BTreeSet<String> = self.attachments().into_iter().filter(|a| a.node == node).map(|a| a.pci_address).collect();
        let busy = |vf: &&VfStatus| vf.assigned.is_some() || held.contains(&vf.pci_address);
        pf.vfs.iter().filter(busy).map(|vf| vf.pci_address.clone()).collect()
    }

    /// The PF and the VF with a PCI address on a node.
    pub fn vf(&self, node: &str, address: &str) -> Option<(&InterfaceStatus, &VfStatus)> {
        let pfs = self.state(node)?.status.as_ref()?.interfaces.iter();
        pfs.flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf))).find(|(_, vf)| vf.pci_address == address)
    }

    /// A NAD by `<namespace>/<name>`.
    pub fn nad(&self, network: &str) -> Option<&NetworkAttachmentDefinition> {
        let (namespace, name) = network.split_once('/')?;
        self.nads.iter().find(|nad| nad.metadata.namespace.as_deref() == Some(namespace) && nad.metadata.name.as_deref() == Some(name))
    }
}

fn put<T: DeserializeOwned>(list: &mut Vec<T>, object: Value, unreadable: &mut Vec<String>) {
    let name = format!("{} {}", object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
    match serde_json::from_value(object) {
        Ok(object) => list.push(object),
        Err(error) => unreadable.push(format!("{name}: {error}")),
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn attachments_of(pod: &Pod) -> Vec<Attachment> {
    let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let networks: Vec<Value> = annotation(NETWORK_STATUS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attachment = |network: &Value| {
        let pci_address = network["device-info"]["pci"]["pci-address"].as_str()?.to_owned();
        Some(Attachment {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            interface: text(&network["interface"]),
            network: text(&network["name"]),
            pci_address,
            addresses: network["ips"].as_array().into_iter().flatten().map(text).collect(),
            mac: network["mac"].as_str().map(str::to_owned),
        })
    };
    networks.iter().filter_map(attachment).collect()
}

/// A condition by its type.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Name of a PF for people.
pub fn pf_name(pf: &InterfaceStatus) -> String {
    pf.name.clone().unwrap_or_else(|| pf.pci_address.clone())
}
