//! I/O: reads a cluster into a [`Snapshot`]; writes nothing.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, Request};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use kubectl_sriov::Snapshot;
use serde_json::Value;

/// How long reading may take before a person is told that it does.
const SILENCE: Duration = Duration::from_secs(1);
/// Changes come in groups; what is shown is what stands after this long without one.
const CALM: Duration = Duration::from_millis(300);

/// A client of what the kubeconfig says.
pub(crate) async fn connect(kubeconfig: Option<&Path>, context: Option<String>) -> Result<Client> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = match kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    Client::try_from(config.context("find the cluster")?).context("make a client")
}

/// Everything that the views need.
pub(crate) async fn read(client: &Client, namespace: &str) -> Result<Snapshot> {
    let reading = read_all(client, namespace);
    tokio::pin!(reading);
    if let Ok(read) = tokio::time::timeout(SILENCE, &mut reading).await {
        return read;
    }
    if std::io::stderr().is_terminal() {
        eprintln!("reading the cluster ...");
    }
    reading.await
}

async fn read_all(client: &Client, namespace: &str) -> Result<Snapshot> {
    let ours = |plural: &str| format!("/apis/sriovnetwork.openshift.io/v1/namespaces/{namespace}/{plural}");
    let kinds = [
        ("Node", "/api/v1/nodes".to_owned()),
        ("Pod", "/api/v1/pods".to_owned()),
        ("Event", "/apis/events.k8s.io/v1/events".to_owned()),
        ("NetworkAttachmentDefinition", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions".to_owned()),
        ("SriovNetworkNodeState", ours("sriovnetworknodestates")),
        ("SriovNetworkNodePolicy", ours("sriovnetworknodepolicies")),
        ("SriovOperatorConfig", ours("sriovoperatorconfigs")),
    ];
    let lists = kinds.iter().map(|(kind, path)| list(client, kind, path));
    let mut snapshot = Snapshot::default();
    for objects in futures::future::try_join_all(lists).await? {
        for object in objects {
            snapshot.add(object);
        }
    }
    Ok(snapshot)
}

async fn list(client: &Client, kind: &str, path: &str) -> Result<Vec<Value>> {
    let request = Request::new(path.to_owned()).list(&ListParams::default())?;
    let mut list: Value = match client.request(request).await {
        Ok(list) => list,
        // The kind is not installed.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(vec![]),
        Err(error) => return Err(error).with_context(|| format!("list {kind} objects")),
    };
    let mut items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    // Items of a list do not say what they are.
    for item in &mut items {
        item["kind"] = kind.into();
    }
    Ok(items)
}

/// Shows the cluster now and after each change, until interrupted.
pub(crate) async fn watch(client: &Client, namespace: &str, mut show: impl FnMut(Snapshot) -> Result<()>) -> Result<()> {
    let resource =
        |kind: &str, plural: &str| ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("sriovnetwork.openshift.io", "v1", kind), plural);
    let streams =
        [("SriovNetworkNodeState", "sriovnetworknodestates"), ("SriovNetworkNodePolicy", "sriovnetworknodepolicies")].map(|(kind, plural)| {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource(kind, plural));
            watcher(api, watcher::Config::default()).boxed()
        });
    let mut changes = futures::stream::select_all(streams);
    loop {
        show(read(client, namespace).await?)?;
        tokio::select! {
            change = changes.next() => if change.is_none() { return Ok(()) },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        while let Ok(Some(_)) = tokio::time::timeout(CALM, changes.next()).await {}
    }
}
