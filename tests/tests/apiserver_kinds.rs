//! I/O: tier 1: our kinds as a real API server sees them: what users of the Go operator have is accepted, what it always refused is refused, and
//! people see the columns that they need.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sriov_crds::SriovNetworkNodeState;
use sriov_tests::apiserver::{ApiServer, User, apply, workspace};

const NAMESPACE: &str = "sriov-network-operator";

fn fixture(name: &str) -> Result<String> {
    let file = workspace().join("tests/testdata/go_operator").join(name);
    std::fs::read_to_string(&file).with_context(|| format!("read {}", Path::new(name).display()))
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("sriovnetwork.openshift.io", "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &plural(kind));
    if kind == "SriovNamespaceRule" { Api::all_with(client.clone(), &resource) } else { Api::namespaced_with(client.clone(), NAMESPACE, &resource) }
}

fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    lower.strip_suffix('y').map_or_else(|| format!("{lower}s"), |stem| format!("{stem}ies"))
}

async fn refusal(client: &Client, kind: &str, spec: &Value) -> Result<String> {
    let object: DynamicObject =
        serde_json::from_value(json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": kind, "metadata": { "name": "wrong" }, "spec": spec }))?;
    match api(client, kind).create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
        Ok(_) => Ok("accepted".to_owned()),
        Err(kube::Error::Api(status)) => Ok(status.message),
        Err(other) => Err(other.into()),
    }
}

/// A policy that is fine but for `change`.
fn policy(change: &Value) -> Value {
    let mut spec = json!({ "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 4 });
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        spec.extend(change.clone());
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_of_the_field_have_is_accepted_and_what_it_refused_is_refused() -> Result<()> {
    let server = ApiServer::start().await?;
    server.install_crds().await?;
    let client = server.client(User::Admin).await?;
    apply(&client, "apiVersion: v1\nkind: Namespace\nmetadata: {name: sriov-network-operator}\n").await?;
    for file in ["policies.yaml", "networks.yaml", "settings.yaml"] {
        let warnings = apply(&client, &fixture(file)?).await.with_context(|| format!("apply {file}"))?;
        let ours: Vec<_> = warnings.iter().filter(|w| !w.contains("finalizer")).collect();
        ensure!(ours.is_empty(), "{ours:?}");
    }
    a_status_of_the_go_daemon_is_kept_whole(&client).await?;
    defaults_are_filled_in(&client).await?;
    what_one_object_decides_is_refused(&client).await?;
    a_stored_object_that_breaks_a_rule_can_still_be_written(&client).await?;
    people_see_the_columns(&client).await
}

async fn a_status_of_the_go_daemon_is_kept_whole(client: &Client) -> Result<()> {
    let wanted: Value = serde_saphyr::from_str(&fixture("node_state_status.yaml")?)?;
    let states: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), NAMESPACE);
    states.patch_status("worker-0", &PatchParams::apply("daemon").validation_strict(), &Patch::Apply(&wanted)).await?;
    let state = states.get("worker-0").await?;
    ensure!(serde_json::to_value(&state.status)? == wanted["status"], "{:#}", serde_json::to_value(&state.status)?);
    let spec: Value = serde_json::to_value(&state.spec)?;
    ensure!(spec["interfaces"][0]["vfGroups"][0]["isRdma"] == true && spec["system"]["rdmaMode"] == "", "{spec:#}");
    Ok(())
}

async fn defaults_are_filled_in(client: &Client) -> Result<()> {
    let policy = api(client, "SriovNetworkNodePolicy").get("least").await?;
    ensure!(policy.data["spec"]["priority"] == 99 && policy.data["spec"]["deviceType"] == "netdevice", "{:#}", policy.data);
    let network = api(client, "SriovNetwork").get("everything").await?;
    ensure!(network.data["spec"]["logLevel"] == "" && network.data["spec"]["minTxRate"] == 0, "{:#}", network.data);
    Ok(())
}

async fn what_one_object_decides_is_refused(client: &Client) -> Result<()> {
    let policies = [
        (json!({ "resourceName": "-a" }), "1 to 63 letters"),
        (json!({ "resourceName": "a".repeat(64) }), "1 to 63 letters"),
        (json!({ "priority": 100 }), "priority"),
        (json!({ "nicSelector": {} }), "at least one field"),
        (json!({ "nicSelector": { "vendor": "", "pfNames": [] } }), "at least one field"),
        (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1", "vendor": "1d0f" } }), "netFilter excludes vendor"),
        (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1" }, "eSwitchMode": "legacy" }), "netFilter excludes eSwitchMode"),
        (json!({ "nicSelector": { "netFilter": "aws/NetworkID:1" }, "linkType": "IB" }), "netFilter excludes eSwitchMode"),
        (json!({ "nicSelector": { "pfNames": ["eth0#1"] } }), "a name and a VF range"),
        (json!({ "nicSelector": { "pfNames": ["eth0#0-1#2-3"] } }), "a name and a VF range"),
        (json!({ "nicSelector": { "pfNames": ["eth1", "eth0#3-1"] } }), "must not end before it begins"),
        (json!({ "nicSelector": { "pfNames": ["eth0#0-4"] } }), "end below numVfs"),
        (json!({ "deviceType": "vfio-pci", "isRdma": true }), "exclude each other"),
        (json!({ "eSwitchMode": "switchdev", "linkType": "ib" }), "needs linkType eth"),
        (json!({ "vdpaType": "virtio" }), "vdpaType needs"),
        (json!({ "vdpaType": "virtio", "eSwitchMode": "switchdev", "deviceType": "vfio-pci" }), "vdpaType needs"),
        (json!({ "bridge": { "ovs": {} } }), "bridge needs"),
        (json!({ "bridge": { "ovs": {} }, "eSwitchMode": "switchdev", "externallyManaged": true }), "bridge needs"),
    ];
    for (change, expected) in policies {
        let said = refusal(client, "SriovNetworkNodePolicy", &policy(&change)).await?;
        ensure!(said.contains(expected), "{change}: {said}");
    }
    let others = [
        ("SriovNetworkPoolConfig", json!({ "maxUnavailable": "0%" }), "from 1% to 100%"),
        ("SriovNetworkPoolConfig", json!({ "maxUnavailable": "some" }), "from 1% to 100%"),
        ("SriovNetworkPoolConfig", json!({ "maxUnavailable": -1 }), "a number from 0"),
        ("SriovNetworkPoolConfig", json!({ "maxUnavailable": 1, "ovsHardwareOffloadConfig": { "name": "m" } }), "excludes maxUnavailable"),
        ("SriovNamespaceRule", json!({ "namespaceSelector": {}, "vlans": ["4095"] }), "0 to 4094"),
        ("SriovNamespaceRule", json!({ "namespaceSelector": {}, "vlans": ["9-3"] }), "0 to 4094"),
        ("SriovNamespaceRule", json!({ "vlans": [] }), "namespaceSelector"),
        ("SriovNetwork", json!({ "resourceName": "a", "vlan": 4095 }), "vlan"),
        ("SriovNetwork", json!({ "resourceName": "a", "vlanProto": "802.1x" }), "vlanProto"),
        ("SriovIBNetwork", json!({ "resourceName": "a", "linkState": "up" }), "linkState"),
        ("OVSNetwork", json!({ "resourceName": "a", "trunk": [{ "id": 4096 }] }), "trunk"),
        ("SriovOperatorConfig", json!({ "logLevel": 3 }), "logLevel"),
        ("SriovOperatorConfig", json!({ "disablePlugins": ["intel"] }), "disablePlugins"),
        ("SriovNetworkPoolConfig", json!({ "maxUnavailable": "100%" }), "accepted"),
        ("SriovNamespaceRule", json!({ "namespaceSelector": {}, "vlans": ["0", "100-4094"], "maxTxRate": 10 }), "accepted"),
    ];
    for (kind, spec, expected) in others {
        let said = refusal(client, kind, &spec).await?;
        ensure!(said.contains(expected), "{kind} {spec}: {said}");
    }
    Ok(())
}

/// As the Go operator stored it while its webhook was off: the rules come with an upgrade of the CustomResourceDefinition.
async fn a_stored_object_that_breaks_a_rule_can_still_be_written(client: &Client) -> Result<()> {
    let crds: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> = Api::all(client.clone());
    let name = "sriovnetworknodepolicies.sriovnetwork.openshift.io";
    let with_rules = sriov_crds::manifests().into_iter().find(|crd| crd.name_any() == name).context("the CRD")?;
    let mut without = serde_json::to_value(&with_rules)?;
    let spec = without.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").context("the spec")?;
    spec.as_object_mut().context("an object")?.remove("x-kubernetes-validations");
    let force = PatchParams::apply("tests").force();
    crds.patch(name, &force, &Patch::Apply(&without)).await?;
    let old = policy(&json!({ "deviceType": "vfio-pci", "isRdma": true }));
    let policies = api(client, "SriovNetworkNodePolicy");
    let object =
        json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "old" }, "spec": old });
    sriov_tests::apiserver::eventually(std::time::Duration::from_secs(20), "the schema without rules is in force", async || {
        policies.patch("old", &PatchParams::apply("user"), &Patch::Apply(&object)).await?;
        Ok(())
    })
    .await?;
    crds.patch(name, &force, &Patch::Apply(&with_rules)).await?;
    sriov_tests::apiserver::eventually(std::time::Duration::from_secs(20), "the rules are in force again", async || {
        let said = refusal(client, "SriovNetworkNodePolicy", &policy(&json!({ "deviceType": "vfio-pci", "isRdma": true }))).await?;
        ensure!(said.contains("exclude each other"), "{said}");
        Ok(())
    })
    .await?;
    let label = json!({ "metadata": { "labels": { "seen": "yes" } } });
    policies.patch("old", &PatchParams::default(), &Patch::Merge(&label)).await.context("label a policy that breaks a rule")?;
    let status = json!({ "status": { "conditions": [] } });
    policies.patch_status("old", &PatchParams::default(), &Patch::Merge(&status)).await.context("write its status")?;
    Ok(())
}

async fn people_see_the_columns(client: &Client) -> Result<()> {
    let said = json!({ "status": { "pfCount": 2, "vfCount": 9, "conditions": [{ "type": "Ready", "status": "False", "reason": "Refused", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } });
    let states: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), NAMESPACE);
    states.patch_status("worker-0", &PatchParams::default(), &Patch::Merge(&said)).await?;
    let path = format!("/apis/sriovnetwork.openshift.io/v1/namespaces/{NAMESPACE}/sriovnetworknodestates");
    let mut request = kube::core::Request::new(path).list(&ListParams::default())?;
    // What kubectl asks for when it prints a list.
    request.headers_mut().insert("accept", "application/json;as=Table;v=v1;g=meta.k8s.io".parse()?);
    let table: Value = client.request(request).await?;
    let names: Vec<_> = table["columnDefinitions"].as_array().context("columns")?.iter().filter_map(|c| c["name"].as_str()).collect();
    let cells = table["rows"][0]["cells"].as_array().context("cells")?;
    let cell = |name: &str| names.iter().position(|n| *n == name).map(|at| cells[at].clone());
    ensure!(cell("PFs") == Some(json!(2)) && cell("VFs") == Some(json!(9)), "{names:?} {cells:?}");
    ensure!(cell("Ready") == Some(json!("False")) && cell("Reason") == Some(json!("Refused")), "{names:?} {cells:?}");
    ensure!(cell("Age").is_some_and(|age| age.is_string()), "{names:?} {cells:?}");
    Ok(())
}
