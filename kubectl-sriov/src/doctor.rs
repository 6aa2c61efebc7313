//! Pure: `kubectl sriov doctor`: the chain from a node's label to a VF in a pod, link by link, up to the first that is broken, with its cure.
//!
//! Invariant: a link is judged only when those before it hold, because a broken link breaks all that follow.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde_json::Value;
use sriov_crds::conditions::{READY, node::APPLYING};
use sriov_crds::node_policy::VFIO_PCI;
use sriov_crds::node_state::SriovNetworkNodeState;
use sriov_crds::{keys, resolve};

use crate::snapshot::{NETWORKS, Snapshot, condition, pf_name};
use crate::table::{Style, Tone};

/// The links that were looked at; the last one is the first that is broken, if one is.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Node or pod.
    pub subject: String,
    /// In order.
    pub links: Vec<Link>,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// What must hold.
    pub what: String,
    /// Whether it does.
    pub holds: bool,
    /// What was found.
    pub found: String,
    /// What to do, if it does not hold.
    pub cure: Option<String>,
}

type Finding = Result<String, (String, String)>;

/// Adds links until one is broken.
struct Chain(Diagnosis);

impl Chain {
    fn new(subject: String) -> Self {
        Self(Diagnosis { subject, links: vec![] })
    }

    fn link(&mut self, what: &str, look: impl FnOnce() -> Finding) {
        if !self.0.is_whole() {
            return;
        }
        let link = match look() {
            Ok(found) => Link { what: what.to_owned(), holds: true, found, cure: None },
            Err((found, cure)) => Link { what: what.to_owned(), holds: false, found, cure: Some(cure) },
        };
        self.0.links.push(link);
    }
}

fn broken<T>(found: impl Into<String>, cure: impl Into<String>) -> Result<T, (String, String)> {
    Err((found.into(), cure.into()))
}

/// The chain of a node, up to devices that the kubelet offers.
pub fn node(snapshot: &Snapshot, name: &str) -> Diagnosis {
    let mut chain = Chain::new(format!("node {name}"));
    node_links(&mut chain, snapshot, name);
    chain.0
}

fn node_links(chain: &mut Chain, snapshot: &Snapshot, name: &str) {
    let selector = snapshot.selector().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    chain.link("the node exists and is managed", || match snapshot.node(name) {
        None => broken("the cluster has no node of this name", "kubectl get nodes"),
        Some(node) if snapshot.is_managed(node) => Ok(format!("it has {selector}")),
        Some(_) => broken(format!("it lacks {selector}"), format!("kubectl label node {name} {selector}")),
    });
    chain.link("the operator made a node state", || match snapshot.state(name) {
        Some(_) => Ok(name.to_owned()),
        None => broken(
            format!("there is none in namespace {}", snapshot.namespace()),
            format!("look at the operator: kubectl -n {} logs deployment/sriov-network-operator", snapshot.namespace()),
        ),
    });
    chain.link("the config daemon runs on the node", || runs(snapshot, name, keys::NODE_DAEMON_SET));
    let empty = SriovNetworkNodeState::default();
    let state = snapshot.state(name).unwrap_or(&empty);
    let status = state.status.clone().unwrap_or_default();
    chain.link("the daemon answers for the latest wish", || match status.observed_generation {
        found if found == state.metadata.generation && found.is_some() => Ok(format!("generation {}", found.unwrap_or_default())),
        found => broken(
            format!("it answered generation {found:?} of {:?}", state.metadata.generation),
            "look at the log of the container config-daemon in the node's pod",
        ),
    });
    chain.link("the node has PFs that can have VFs", || {
        match status.interfaces.iter().filter(|pf| pf.total_vfs > 0).map(pf_name).collect::<Vec<_>>() {
            pfs if pfs.is_empty() => {
                broken("none was found", "switch SR-IOV on in the firmware (BIOS) and in the NIC; the kernel must have its driver")
            }
            pfs => Ok(pfs.join(", ")),
        }
    });
    chain.link("a policy wants VFs on it", || wanted(snapshot, name, state));
    chain.link("the NICs are in supported-nic-ids", || {
        let wanted = |address: &str| state.spec.interfaces.iter().any(|i| i.pci_address == address && i.num_vfs > 0);
        match status.interfaces.iter().find(|pf| pf.supported == Some(false) && wanted(&pf.pci_address)) {
            None => Ok("all that are wanted".to_owned()),
            Some(pf) => {
                let ids = format!("{} {}", pf.vendor.as_deref().unwrap_or("?"), pf.device_id.as_deref().unwrap_or("?"));
                broken(format!("{} ({ids}) is not", pf_name(pf)), format!("add '{ids} <VF device>' to the ConfigMap {}", keys::SUPPORTED_NIC_IDS))
            }
        }
    });
    chain.link("vfio-pci has an IOMMU", || {
        let vfio = state.spec.interfaces.iter().flat_map(|i| &i.vf_groups).any(|group| group.device_type.as_deref() == Some(VFIO_PCI));
        let iommu = status.system.as_ref().and_then(|system| system.iommu.as_deref()).unwrap_or("unknown");
        match (vfio, iommu) {
            (false, _) => Ok("no policy asks for vfio-pci".to_owned()),
            (true, "active") => Ok("active".to_owned()),
            (true, found) => {
                broken(found, "switch VT-d or AMD-Vi on in the firmware and add intel_iommu=on iommu=pt to the kernel command line (AMD: iommu=pt)")
            }
        }
    });
    chain.link("the node is as asked", || match condition(&status.conditions, READY) {
        Some(ready) if ready.status == "True" => Ok(ready.reason.clone()),
        Some(ready) if ready.reason == APPLYING => broken(
            format!("{}: {}", ready.reason, ready.message),
            "the daemon is at work on it: look again when `kubectl sriov watch` shows that it is done",
        ),
        Some(ready) => broken(format!("{}: {}", ready.reason, ready.message), "the message says what is refused or waited for"),
        None => broken("no condition Ready", "look at the log of the container config-daemon in the node's pod"),
    });
    chain.link("the device plugin runs on the node", || runs(snapshot, name, keys::PLUGIN_DAEMON_SET));
    chain.link("the kubelet offers the devices", || offered(snapshot, name, state));
}

fn runs(snapshot: &Snapshot, node: &str, daemon_set: &str) -> Finding {
    let labelled = |pod: &&Pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get("app")).is_some_and(|app| app == daemon_set);
    let here = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let Some(pod) = snapshot.pods.iter().filter(labelled).find(here) else {
        return broken("no pod of the DaemonSet is on it", format!("kubectl -n {} describe daemonset {daemon_set}", snapshot.namespace()));
    };
    let name = pod.metadata.name.clone().unwrap_or_default();
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
    match statuses.iter().find(|container| !container.ready) {
        None if !statuses.is_empty() => Ok(name),
        None => broken(format!("{name} has not started"), format!("kubectl -n {} describe pod {name}", snapshot.namespace())),
        Some(container) => broken(
            format!("container {} of {name} is not ready, {} restarts", container.name, container.restart_count),
            format!("kubectl -n {} logs {name} -c {} --previous", snapshot.namespace(), container.name),
        ),
    }
}

fn wanted(snapshot: &Snapshot, name: &str, state: &SriovNetworkNodeState) -> Finding {
    let wanted: Vec<String> = state
        .spec
        .interfaces
        .iter()
        .filter(|i| i.num_vfs > 0)
        .map(|i| format!("{} on {}", i.num_vfs, i.name.as_ref().unwrap_or(&i.pci_address)))
        .collect();
    if !wanted.is_empty() {
        return Ok(wanted.join(", "));
    }
    let labels = snapshot.node(name).and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
    let selecting = snapshot
        .policies
        .iter()
        .filter(|policy| resolve::selects(&policy.spec.node_selector, &labels))
        .filter_map(|policy| policy.metadata.name.clone());
    match selecting.collect::<Vec<_>>() {
        none if none.is_empty() => broken("no policy selects the node", "apply a SriovNetworkNodePolicy whose nodeSelector the node's labels fit"),
        some => broken(
            format!("{} select the node but none of its PFs", some.join(", ")),
            format!("compare nicSelector with `kubectl sriov node {name}`"),
        ),
    }
}

fn offered(snapshot: &Snapshot, name: &str, state: &SriovNetworkNodeState) -> Finding {
    let allocatable = snapshot.node(name).and_then(|node| node.status.as_ref()).and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let mut pools: Vec<String> = state.spec.interfaces.iter().flat_map(|i| &i.vf_groups).filter_map(|group| group.resource_name.clone()).collect();
    pools.sort();
    pools.dedup();
    let mut counts = Vec::new();
    for pool in pools {
        let found = allocatable.iter().find(|(resource, _)| resource.ends_with(&format!("/{pool}")));
        match found.map(|(resource, quantity)| (resource, quantity.0.as_str())) {
            None | Some((_, "0")) => {
                return broken(format!("none of {pool}"), "look at the log of the node's pod of the DaemonSet sriov-device-plugin");
            }
            Some((resource, count)) => counts.push(format!("{count} of {resource}")),
        }
    }
    Ok(counts.join(", "))
}

/// The chain of a pod, up to an interface in it; `None` when there is no such pod.
pub fn pod(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<Diagnosis> {
    let is = |pod: &&Pod| pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name);
    let pod = snapshot.pods.iter().find(is)?;
    let mut chain = Chain::new(format!("pod {namespace}/{name}"));
    let networks = networks(pod, namespace);
    chain.link("the pod asks for networks", || match &networks {
        Ok(networks) if networks.is_empty() => broken(format!("it has no annotation {NETWORKS}"), "name the NAD in that annotation"),
        Ok(networks) => Ok(networks.join(", ")),
        Err(error) => broken(
            format!("the annotation {NETWORKS} cannot be read: {error}"),
            "write names separated by commas, or a JSON list of objects with `name`",
        ),
    });
    let networks = networks.unwrap_or_default();
    chain.link("the cluster has Multus's kind", || {
        if snapshot.without_nads {
            broken("it does not know NetworkAttachmentDefinition", "install Multus; docs/ says how on K3s, RKE2 and Kubespray")
        } else {
            Ok("it knows NetworkAttachmentDefinition".to_owned())
        }
    });
    for network in &networks {
        nad_links(&mut chain, snapshot, pod, network);
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    chain.link("the pod has a node", || match node.as_str() {
        "" => broken(scheduling(pod), "free a VF, or have a policy make more; `kubectl sriov status` shows which PFs have free ones"),
        node => Ok(node.to_owned()),
    });
    node_links(&mut chain, snapshot, &node);
    chain.link("Multus attached the networks", || attached(snapshot, pod, &networks));
    Some(chain.0)
}

fn nad_links(chain: &mut Chain, snapshot: &Snapshot, pod: &Pod, network: &str) {
    let nad = snapshot.nad(network);
    chain.link(&format!("the NAD {network} exists"), || match nad {
        Some(_) => Ok("it does".to_owned()),
        None => broken(
            "there is none",
            "set networkNamespace of the SriovNetwork to the pod's namespace, or write <namespace>/<name> in the pod's annotation",
        ),
    });
    let resource = nad.and_then(|nad| nad.metadata.annotations.as_ref()?.get(keys::NAD_RESOURCE_NAME)).cloned();
    // A NAD of another kind, macvlan for instance, needs no device.
    let Some(resource) = resource else { return };
    chain.link(&format!("the pod requests {resource}"), || {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
        let requests = containers
            .iter()
            .any(|c| c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|requests| requests.contains_key(&resource)));
        if requests {
            Ok("it does".to_owned())
        } else {
            broken("it does not", format!("add {resource}: \"1\" to requests and limits of a container, or switch the injector on"))
        }
    });
}

/// `<namespace>/<name>` of each network that a pod asks for.
fn networks(pod: &Pod, namespace: &str) -> Result<Vec<String>, String> {
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(NETWORKS)).map(|text| text.trim().to_owned()).unwrap_or_default();
    let full = |name: &str| if name.contains('/') { name.to_owned() } else { format!("{namespace}/{name}") };
    if !text.starts_with('[') {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        return Ok(names.map(|name| full(name.split('@').next().unwrap_or(name))).collect());
    }
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let one = |network: &Value| {
        let name = network["name"].as_str().ok_or("a network without `name`")?;
        Ok(network["namespace"].as_str().map_or_else(|| full(name), |namespace| format!("{namespace}/{name}")))
    };
    list.iter().map(one).collect()
}

fn scheduling(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let message = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False").and_then(|c| c.message);
    message.unwrap_or_else(|| "the scheduler has not chosen one".to_owned())
}

fn attached(snapshot: &Snapshot, pod: &Pod, networks: &[String]) -> Finding {
    let (namespace, name) = (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
    let there: Vec<String> = snapshot
        .attachments()
        .into_iter()
        .filter(|a| a.namespace == namespace && a.pod == name)
        .map(|a| format!("{} on {}", a.interface, a.pci_address))
        .collect();
    if !there.is_empty() {
        return Ok(there.join(", "));
    }
    let about = |event: &&k8s_openapi::api::events::v1::Event| {
        event.regarding.as_ref().is_some_and(|r| r.kind.as_deref() == Some("Pod") && r.name.as_deref() == Some(name.as_str()))
    };
    let failed = snapshot.events.iter().filter(about).rfind(|event| event.reason.as_deref() == Some("FailedCreatePodSandBox"));
    if let Some(note) = failed.and_then(|event| event.note.clone()) {
        return broken(note, "the text begins with the plugin that failed; the codes of ours are in sriov-cni/README.md");
    }
    let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    if running {
        return broken(
            format!("the pod runs without {}", networks.join(", ")),
            "Multus is not the first plugin of the node: its file must sort first in the CNI configuration folder, and with Cilium `cni.exclusive` must be false",
        );
    }
    broken("not yet", format!("kubectl -n {namespace} describe pod {name}"))
}

impl Diagnosis {
    /// Whether every link holds.
    pub fn is_whole(&self) -> bool {
        self.links.iter().all(|link| link.holds)
    }

    /// For people.
    pub fn text(&self, style: Style) -> String {
        let mut text = format!("{}\n", self.subject);
        for link in &self.links {
            let mark = if link.holds { style.paint(Tone::Good, "ok    ") } else { style.paint(Tone::Bad, "BROKEN") };
            _ = writeln!(text, "  {mark}  {}: {}", link.what, link.found);
            if let Some(cure) = &link.cure {
                _ = writeln!(text, "          cure: {cure}");
            }
        }
        text
    }
}
