//! I/O: the two services that Multus asks: the API server (pods, NADs) and the kubelet's PodResources. [`Cluster`] is the seam for tests without them.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use sriov_crds::NetworkAttachmentDefinition;
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use super::delegate::Devices;
use super::status::NetworkStatus;
use super::{Conf, NETWORK_STATUS, PodRef};
use sriov_device_plugin::api::podresources_v1::pod_resources_lister_client::PodResourcesListerClient;
use sriov_device_plugin::api::podresources_v1::{ListPodResourcesRequest, PodResources};

/// Each question must be answered within this time; the runtime gives a whole sandbox four minutes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The kubelet lists all pods of the node in one message, in bytes.
const MESSAGE_LIMIT: usize = 16 << 20;

/// What is asked of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// What is asked of a NAD.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// `spec.config`; empty means a file of the node.
    pub config: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// The world that Multus asks. Every call waits for its answer.
pub trait Cluster {
    /// The pod, or `None` if there is none of that name.
    fn pod(&self, pod: &PodRef) -> Result<Option<PodFacts>>;
    /// The NAD; absence is an error.
    fn network(&self, namespace: &str, name: &str) -> Result<Network>;
    /// What the kubelet allocated to the pod's containers.
    fn devices(&self, pod: &PodRef) -> Result<Devices>;
    /// Writes the pod's `network-status`; a pod that is gone is fine.
    fn publish(&self, pod: &PodRef, status: &[NetworkStatus]) -> Result<()>;
}

/// The real one. Nothing is opened before it is asked.
pub struct Kubernetes {
    runtime: Runtime,
    kubeconfig: PathBuf,
    socket: PathBuf,
    client: OnceCell<kube::Client>,
}

impl Kubernetes {
    /// Takes the paths from the configuration.
    pub fn new(conf: &Conf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the asynchronous runtime")?;
        Ok(Self { runtime, kubeconfig: conf.kubeconfig.clone(), socket: conf.pod_resources_socket.clone(), client: OnceCell::new() })
    }

    fn client(&self) -> Result<kube::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let shown = self.kubeconfig.display();
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).with_context(|| format!("read the kubeconfig {shown}"))?;
        let client = self.ask("connect to the API server", async {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            let config = config.with_context(|| format!("use the kubeconfig {shown}"))?;
            kube::Client::try_from(config).context("make a client for the API server")
        })?;
        Ok(self.client.get_or_init(|| client).clone())
    }

    fn ask<T>(&self, what: &str, question: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await });
        answer.map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs())).flatten().with_context(|| what.to_owned())
    }
}

impl Cluster for Kubernetes {
    fn pod(&self, pod: &PodRef) -> Result<Option<PodFacts>> {
        let pods: Api<Pod> = Api::namespaced(self.client()?, &pod.namespace);
        let found = self.ask(&format!("get pod {}/{}", pod.namespace, pod.name), async { Ok(pods.get_metadata_opt(&pod.name).await?) })?;
        Ok(found.map(|found| PodFacts { uid: found.metadata.uid.unwrap_or_default(), annotations: found.metadata.annotations.unwrap_or_default() }))
    }

    fn network(&self, namespace: &str, name: &str) -> Result<Network> {
        let networks: Api<NetworkAttachmentDefinition> = Api::namespaced(self.client()?, namespace);
        let what = format!("get NetworkAttachmentDefinition {namespace}/{name}");
        let found = self.ask(&what, async { Ok(networks.get(name).await?) })?;
        Ok(Network { config: found.spec.config.unwrap_or_default(), annotations: found.metadata.annotations.unwrap_or_default() })
    }

    fn devices(&self, pod: &PodRef) -> Result<Devices> {
        let listed = self.ask("list the kubelet's pod resources", list(&self.socket))?;
        Ok(devices_of(pod, &listed))
    }

    fn publish(&self, pod: &PodRef, status: &[NetworkStatus]) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client()?, &pod.namespace);
        let text = serde_json::to_string_pretty(status).context("encode the network status")?;
        let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": {NETWORK_STATUS: text}}}));
        self.ask(&format!("write the network status of pod {}/{}", pod.namespace, pod.name), async {
            match pods.patch_status(&pod.name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
                other => Ok(other.map(drop)?),
            }
        })
    }
}

async fn list(socket: &Path) -> Result<Vec<PodResources>> {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await;
    let channel = channel.with_context(|| format!("connect to {}", socket.display()))?;
    let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
    Ok(client.list(ListPodResourcesRequest {}).await?.into_inner().pod_resources)
}

/// Pure: one pod's devices, those of all its containers together.
fn devices_of(pod: &PodRef, listed: &[PodResources]) -> Devices {
    let mut devices = Devices::new();
    let own = listed.iter().filter(|listed| listed.name == pod.name && listed.namespace == pod.namespace);
    for allocated in own.flat_map(|own| &own.containers).flat_map(|container| &container.devices) {
        devices.entry(allocated.resource_name.clone()).or_default().extend(allocated.device_ids.iter().cloned());
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use sriov_device_plugin::api::podresources_v1::{ContainerDevices, ContainerResources};

    fn container(devices: &[(&str, &str)]) -> ContainerResources {
        let devices = devices.iter().map(|(resource, id)| ContainerDevices {
            resource_name: (*resource).to_owned(),
            device_ids: vec![(*id).to_owned()],
            ..ContainerDevices::default()
        });
        ContainerResources { devices: devices.collect(), ..ContainerResources::default() }
    }

    #[test]
    fn devices_of_all_containers_of_the_pod_are_put_together() {
        let pod = |namespace: &str, containers| PodResources { name: "web".into(), namespace: namespace.into(), containers };
        let listed = [
            pod("blue", vec![container(&[("a", "0000:09:10.0")])]),
            pod("red", vec![container(&[("a", "0000:01:10.2"), ("a", "0000:01:10.0")]), container(&[("a", "0000:01:10.4"), ("b", "x")])]),
        ];
        let own = PodRef { namespace: "red".into(), name: "web".into(), uid: None };
        let devices = devices_of(&own, &listed);
        assert_eq!(devices["a"], ["0000:01:10.2", "0000:01:10.0", "0000:01:10.4"]);
        assert_eq!(devices["b"], ["x"]);
        assert!(devices_of(&PodRef { name: "other".into(), ..own }, &listed).is_empty());
    }
}
