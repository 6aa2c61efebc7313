//! I/O: reads a cluster into a [`Snapshot`]; writes nothing.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, Request};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use kubectl_sriov::Snapshot;
use serde_json::Value;

/// How long reading may take before a person is told that it does.
const SILENCE: Duration = Duration::from_secs(1);
/// Changes come in groups; what is shown is what stands after this long without one.
const CALM: Duration = Duration::from_millis(300);
/// When a cluster that could not be read is read again, if nothing else says that it can be.
const RETRY: Duration = Duration::from_secs(2);

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
    let mut snapshot = Snapshot { operator_namespace: Some(namespace.to_owned()), ..Snapshot::default() };
    for ((kind, _), objects) in kinds.iter().zip(futures::future::try_join_all(lists).await?) {
        match objects {
            Some(objects) => objects.into_iter().for_each(|object| snapshot.add(object)),
            None if *kind == "NetworkAttachmentDefinition" => snapshot.without_nads = true,
            None => bail!(
                "the cluster does not know {kind} objects: the operator's CustomResourceDefinitions are not installed, or this is another cluster"
            ),
        }
    }
    Ok(snapshot)
}

/// All objects of a kind; `None` where the cluster does not know it.
async fn list(client: &Client, kind: &str, path: &str) -> Result<Option<Vec<Value>>> {
    let request = Request::new(path.to_owned()).list(&ListParams::default())?;
    let mut list: Value = match client.request(request).await {
        Ok(list) => list,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        // The whole of what the API server says, and not its form.
        Err(kube::Error::Api(status)) => bail!("list {kind} objects: {}", said(&status)),
        Err(error) => return Err(error).with_context(|| format!("list {kind} objects")),
    };
    let mut items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    // Items of a list do not say what they are.
    for item in &mut items {
        item["kind"] = kind.into();
    }
    Ok(Some(items))
}

fn said(status: &kube::core::Status) -> String {
    let message = if status.message.is_empty() { &status.reason } else { &status.message };
    match status.code {
        401 => format!("{message}: the cluster does not take the credentials of this kubeconfig"),
        403 => format!("{message}; which rights `kubectl sriov` needs is in docs/kubectl-sriov.md"),
        _ => message.clone(),
    }
}

/// Shows the cluster now and after each change, until interrupted or nobody looks any more. An API server that goes away for a while is waited for.
pub(crate) async fn watch(client: &Client, namespace: &str, mut show: impl FnMut(&Snapshot) -> Result<ControlFlow<()>>) -> Result<()> {
    let resource =
        |kind: &str, plural: &str| ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("sriovnetwork.openshift.io", "v1", kind), plural);
    let streams =
        [("SriovNetworkNodeState", "sriovnetworknodestates"), ("SriovNetworkNodePolicy", "sriovnetworknodepolicies")].map(|(kind, plural)| {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource(kind, plural));
            watcher(api, watcher::Config::default()).default_backoff().boxed()
        });
    let mut changes = futures::stream::select_all(streams);
    // What cannot be read at all is told at once.
    let mut latest = Ok(read(client, namespace).await?);
    loop {
        let failed = match latest {
            Ok(snapshot) if show(&snapshot)?.is_break() => return Ok(()),
            Ok(_) => false,
            Err(error) => {
                eprintln!("{error:#}; trying again");
                true
            }
        };
        tokio::select! {
            change = changes.next() => if change.is_none() { return Ok(()) },
            () = tokio::time::sleep(RETRY), if failed => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        while let Ok(Some(_)) = tokio::time::timeout(CALM, changes.next()).await {}
        latest = read(client, namespace).await;
    }
}
