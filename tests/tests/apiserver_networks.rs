//! I/O: tier 1: networks become NetworkAttachmentDefinitions, by the built operator against a real etcd and API server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use sriov_crds::{NetworkAttachmentDefinition, OVSNetwork, SriovIBNetwork, SriovNetwork, keys};
use sriov_tests::apiserver::cluster::{self, Cluster, NAMESPACE, expect_ready, leader, merge};
use sriov_tests::apiserver::{ApiServer, eventually};

/// "At once", on a machine that is busy with other tests. Nothing that polls or resyncs would be this fast.
const PROMPTLY: Duration = Duration::from_secs(3);

struct Networks(Cluster);

impl Networks {
    fn networks(&self, namespace: &str) -> Api<SriovNetwork> {
        Api::namespaced(self.0.admin.clone(), namespace)
    }

    fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.0.admin.clone(), namespace)
    }

    fn nads(&self, namespace: &str) -> Api<NetworkAttachmentDefinition> {
        Api::namespaced(self.0.admin.clone(), namespace)
    }

    async fn apply(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        cluster::apply(&self.networks(namespace), "SriovNetwork", name, spec).await
    }

    async fn expect_ready(&self, namespace: &str, name: &str, status: &str, reason: &str) -> Result<()> {
        eventually(PROMPTLY, reason, async || {
            let network = self.networks(namespace).get(name).await?;
            expect_ready(&network.status.context("no status")?.conditions, status, reason)
        })
        .await?;
        Ok(())
    }

    /// Waits until the NAD's configuration has this value at a JSON pointer; answers the NAD.
    async fn expect_nad(&self, namespace: &str, name: &str, pointer: &str, value: Value) -> Result<NetworkAttachmentDefinition> {
        let config = |nad: &NetworkAttachmentDefinition| -> Result<Value> { Ok(serde_json::from_str(nad.spec.config.as_deref().unwrap_or("null"))?) };
        eventually(PROMPTLY, &format!("NAD {namespace}/{name} has {pointer} {value}"), async || {
            let found = config(&self.nads(namespace).get(name).await?)?;
            ensure!(found.pointer(pointer) == Some(&value), "{found}");
            Ok(())
        })
        .await?;
        Ok(self.nads(namespace).get(name).await?)
    }

    async fn expect_no_nad(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(PROMPTLY, "the NAD goes", async || {
            ensure!(self.nads(namespace).get_opt(name).await?.is_none(), "NAD {namespace}/{name} is still there");
            Ok(())
        })
        .await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn network_attachment_definitions_follow_networks() -> Result<()> {
    let server = ApiServer::start().await?;
    let networks = Networks(Cluster::install(&server).await?);
    let operator = leader(&server, "operator", &[]).await?;
    networks.0.namespace("apps").await?;
    operator.explain(a_nad_is_rendered_and_kept_right(&networks).await)?;
    operator.explain(a_foreign_nad_is_left_alone(&networks).await)?;
    operator.explain(a_nad_follows_its_namespace(&networks).await)?;
    operator.explain(the_other_kinds_have_theirs(&networks).await)?;
    operator.check_rights()
}

async fn a_nad_is_rendered_and_kept_right(networks: &Networks) -> Result<()> {
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 100, "ipam": r#"{"type":"host-local","subnet":"10.1.0.0/24"}"# })).await?;
    let nad = networks.expect_nad("apps", "blue", "/vlan", json!(100)).await?;
    networks.expect_ready("apps", "blue", "True", "NetworkReady").await?;
    ensure!(nad.annotations().get(keys::NAD_RESOURCE_NAME).map(String::as_str) == Some("openshift.io/nics"), "{:?}", nad.metadata);
    ensure!(nad.owner_references().iter().any(|o| o.kind == "SriovNetwork" && o.name == "blue"), "{:?}", nad.metadata);
    let config = nad.spec.config.unwrap_or_default();
    ensure!(
        config.starts_with("{\n    \"cniVersion\": \"1.0.0\",\n    \"name\": \"blue\",\n    \"type\": \"sriov\",\n    \"vlan\": 100,"),
        "{config}"
    );

    let nads = networks.nads("apps");
    merge(&nads, "blue", json!({ "metadata": { "annotations": { "someone": "else" } } })).await?;
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 200 })).await?;
    let nad = networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    ensure!(nad.annotations().get("someone").is_some(), "another's annotation was removed");
    merge(&nads, "blue", json!({ "spec": { "config": "{}" } })).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    nads.delete("blue", &DeleteParams::default()).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;

    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 300, "ipam": "{'type'}" })).await?;
    networks.expect_ready("apps", "blue", "False", "NetworkAttachmentDefinitionInvalid").await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 300 })).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(300)).await?;
    networks.expect_ready("apps", "blue", "True", "NetworkReady").await
}

async fn a_foreign_nad_is_left_alone(networks: &Networks) -> Result<()> {
    let nads = networks.nads("apps");
    let mine = r#"{"cniVersion":"1.0.0","type":"bridge"}"#;
    let object = json!({ "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": { "name": "mine" }, "spec": { "config": mine } });
    nads.patch("mine", &PatchParams::apply("user"), &Patch::Apply(object)).await?;
    networks.apply("apps", "mine", json!({ "resourceName": "nics" })).await?;
    networks.expect_ready("apps", "mine", "False", "NetworkAttachmentDefinitionNotFound").await?;
    ensure!(nads.get("mine").await?.spec.config.as_deref() == Some(mine), "a foreign NAD was overwritten");
    networks.networks("apps").delete("mine", &DeleteParams::default()).await?;
    networks.apply("apps", "mine", json!({ "resourceName": "nics" })).await?;
    networks.expect_ready("apps", "mine", "False", "NetworkAttachmentDefinitionNotFound").await?;
    ensure!(nads.get_opt("mine").await?.is_some(), "a foreign NAD was deleted");
    nads.delete("mine", &DeleteParams::default()).await?;
    networks.expect_nad("apps", "mine", "/type", json!("sriov")).await?;
    networks.expect_ready("apps", "mine", "True", "NetworkReady").await
}

async fn a_nad_follows_its_namespace(networks: &Networks) -> Result<()> {
    networks.apply("apps", "astray", json!({ "resourceName": "nics", "networkNamespace": "default" })).await?;
    networks.expect_ready("apps", "astray", "False", "NetworkAttachmentDefinitionInvalid").await?;
    networks.expect_no_nad("default", "astray").await?;

    networks.apply(NAMESPACE, "shared", json!({ "resourceName": "nics", "networkNamespace": "later" })).await?;
    networks.expect_ready(NAMESPACE, "shared", "False", "NamespaceNotFound").await?;
    networks.0.namespace("later").await?;
    networks.expect_nad("later", "shared", "/type", json!("sriov")).await?;
    networks.expect_ready(NAMESPACE, "shared", "True", "NetworkReady").await?;
    networks.apply(NAMESPACE, "shared", json!({ "resourceName": "nics", "networkNamespace": "apps" })).await?;
    networks.expect_nad("apps", "shared", "/type", json!("sriov")).await?;
    networks.expect_no_nad("later", "shared").await?;
    networks.networks(NAMESPACE).delete("shared", &DeleteParams::default()).await?;
    networks.expect_no_nad("apps", "shared").await?;
    eventually(PROMPTLY, "the network goes", async || {
        ensure!(networks.networks(NAMESPACE).get_opt("shared").await?.is_none(), "its finalizer is still there");
        Ok(())
    })
    .await?;
    Ok(())
}

async fn the_other_kinds_have_theirs(networks: &Networks) -> Result<()> {
    let (infiniband, ovs): (Api<SriovIBNetwork>, Api<OVSNetwork>) = (networks.of("apps"), networks.of("apps"));
    let ipam = |gateway: &str| json!({ "type": "host-local", "subnet": "10.2.0.0/24", "gateway": gateway }).to_string();
    let spec = |gateway: &str| json!({ "resourceName": "hca", "linkState": "auto", "ipam": ipam(gateway) });
    cluster::apply(&infiniband, "SriovIBNetwork", "fabric", spec("10.2.0.1")).await?;
    networks.expect_nad("apps", "fabric", "/type", json!("ib-sriov")).await?;
    networks.expect_nad("apps", "fabric", "/ipam/gateway", json!("10.2.0.1")).await?;
    cluster::apply(&infiniband, "SriovIBNetwork", "fabric", spec("10.2.0.9")).await?;
    networks.expect_nad("apps", "fabric", "/ipam/gateway", json!("10.2.0.9")).await?;
    cluster::apply(&ovs, "OVSNetwork", "switched", json!({ "resourceName": "offload", "vlan": 7, "trunk": [{ "minID": 2, "maxID": 5 }] })).await?;
    networks.expect_nad("apps", "switched", "/type", json!("ovs")).await?;
    networks.expect_nad("apps", "switched", "/trunk/0/maxID", json!(5)).await?;

    // The name is taken by a network of another kind, and then by one of the same kind in another namespace.
    cluster::apply(&infiniband, "SriovIBNetwork", "blue", spec("10.2.0.1")).await?;
    let refused = async |api: &Api<SriovIBNetwork>, name: &str, reason: &str| {
        eventually(PROMPTLY, reason, async || expect_ready(&api.get(name).await?.status.context("no status")?.conditions, "False", reason)).await
    };
    refused(&infiniband, "blue", "NetworkAttachmentDefinitionNotFound").await?;
    networks.expect_nad("apps", "blue", "/type", json!("sriov")).await?;
    let shared: Api<SriovIBNetwork> = networks.of(NAMESPACE);
    let into = |name: &str| json!({ "resourceName": "hca", "networkNamespace": name });
    cluster::apply(&shared, "SriovIBNetwork", "fabric", into("apps")).await?;
    refused(&shared, "fabric", "NetworkAttachmentDefinitionNotFound").await?;
    networks.expect_nad("apps", "fabric", "/ipam/gateway", json!("10.2.0.9")).await?;

    // Only networks of the operator's namespace may name another one; those have a finalizer.
    cluster::apply(&infiniband, "SriovIBNetwork", "astray", into("default")).await?;
    refused(&infiniband, "astray", "NetworkAttachmentDefinitionInvalid").await?;
    networks.expect_no_nad("default", "astray").await?;
    cluster::apply(&shared, "SriovIBNetwork", "sent", into("default")).await?;
    networks.expect_nad("default", "sent", "/type", json!("ib-sriov")).await?;
    shared.delete("sent", &DeleteParams::default()).await?;
    networks.expect_no_nad("default", "sent").await
}
