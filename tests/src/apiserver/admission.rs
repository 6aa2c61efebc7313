//! I/O: a cluster whose API server calls the operator's admission server: by its Service name, over TLS, trusted by the bundle that the operator wrote.
//! Only the last hop is bent: the Service is an ExternalName of a loopback address, because no kube-proxy runs here.
//!
//! What does not live here: what a test expects of the answers.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::{Value, json};
use sriov_crds::{SriovNetworkNodePolicy, SriovOperatorConfig, keys};

use super::cluster::{self, NAMESPACE, SOON};
use super::{ApiServer, Operator, eventually};

/// The Service of the admission server.
const SERVICE: &str = "operator-webhook-service";

/// An API server, the administrator, and where operators listen.
pub struct Admission {
    /// The API server.
    pub server: ApiServer,
    /// The administrator.
    pub admin: Client,
    /// Loopback addresses of the first and the second operator.
    pub addresses: [String; 2],
}

impl Admission {
    /// Installs our kinds and `deploy/`, and lets the Service lead to the first operator.
    pub async fn start() -> Result<Self> {
        let server = ApiServer::start().await?;
        let cluster::Cluster { admin, .. } = cluster::Cluster::install(&server).await?;
        let id = std::process::id();
        let address = |net: u32| format!("127.{net}.{}.{}", id / 250 % 250 + 1, id % 250 + 1);
        let started = Self { server, admin, addresses: [address(77), address(78)] };
        started.route().await?;
        Ok(started)
    }

    /// Starts the first or second operator and waits until it listens.
    pub async fn operator(&self, number: usize, more: &[(&str, &str)]) -> Result<Operator> {
        let address = format!("{}:443", self.addresses[number]);
        let mut environment = vec![("WEBHOOK_ADDRESS", address.as_str())];
        environment.extend_from_slice(more);
        let operator = self.server.operator(&format!("operator-{number}"), &environment)?;
        eventually(SOON, "the operator listens", async || {
            ensure!(operator.log().contains("admission server listens"), "{}", operator.log());
            Ok(())
        })
        .await?;
        Ok(operator)
    }

    async fn route(&self) -> Result<()> {
        let services: Api<Service> = self.ours();
        services.delete(SERVICE, &DeleteParams::default()).await?;
        let service = json!({
            "metadata": { "name": SERVICE }, "spec": { "type": "ExternalName", "externalName": self.addresses[0] },
        });
        services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        Ok(())
    }

    /// Objects of the operator's namespace.
    pub fn ours<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// Changes the operator configuration.
    pub async fn configure(&self, spec: Value) -> Result<()> {
        let configs: Api<SriovOperatorConfig> = self.ours();
        configs.patch("default", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await?;
        Ok(())
    }

    /// Writes an object (or only pretends to); answers what was stored and the warnings, or why it was refused.
    pub async fn create<K: Resource>(&self, api: &Api<K>, object: Value, dry_run: bool) -> Result<Result<(Value, Vec<String>), String>> {
        let request =
            kube::core::Request::new(api.resource_url()).create(&PostParams { dry_run, ..PostParams::default() }, object.to_string().into_bytes())?;
        let response = self.admin.send(request.map(kube::client::Body::from)).await?;
        let warnings: Vec<_> = response.headers().get_all("warning").iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
        let success = response.status().is_success();
        let body: Value = serde_json::from_slice(&response.into_body().collect_bytes().await?)?;
        Ok(if success { Ok((body, warnings)) } else { Err(body["message"].as_str().unwrap_or_default().to_owned()) })
    }

    /// Policies.
    pub fn policies(&self) -> Api<SriovNetworkNodePolicy> {
        self.ours()
    }

    /// Pretends to write a policy; `change` is put over a least one.
    pub async fn try_policy(&self, change: &Value) -> Result<Result<(Value, Vec<String>), String>> {
        self.create(&self.policies(), policy("tried", change), true).await
    }

    /// Fails unless an object is refused, with this in the answer.
    pub async fn expect_refused<K: Resource>(&self, api: &Api<K>, object: Value, why: &str) -> Result<()> {
        match self.create(api, object.clone(), true).await? {
            Err(said) if said.contains(why) => Ok(()),
            other => bail!("{object}: expected a refusal with {why:?}: {other:?}"),
        }
    }

    /// Waits until writes are judged, which an answer without our warning would not be.
    pub async fn judged(&self) -> Result<Duration> {
        eventually(SOON, "policies are judged", async || {
            let (_, warnings) = self.try_policy(&json!({ "nodeSelector": { "none": "such" } })).await?.map_err(anyhow::Error::msg)?;
            ensure!(!warnings.is_empty(), "no warning");
            Ok(())
        })
        .await
    }
}

/// A policy; `change` is put over the least one.
pub fn policy(name: &str, change: &Value) -> Value {
    let mut spec = json!({ "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 4 });
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        spec.extend(change.clone());
    }
    json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": name }, "spec": spec })
}

/// A `SriovNetwork`.
pub fn network(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetwork", "metadata": { "name": name }, "spec": spec })
}

/// A NAD.
pub fn nad(name: &str, config: &str) -> Value {
    json!({ "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": { "name": name }, "spec": { "config": config } })
}

/// A pod of two containers with the annotation of networks.
pub fn pod(name: &str, networks: Option<&str>) -> Value {
    let annotations = networks.map(|networks| json!({ keys::POD_NETWORKS: networks }));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "annotations": annotations },
        "spec": { "containers": [{ "name": "c", "image": "i" }, { "name": "d", "image": "i" }] },
    })
}
