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
    each_value_that_the_go_schema_allows_is_accepted(&client).await?;
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

fn words(field: &str, words: &[&str]) -> Vec<Value> {
    words.iter().map(|word| json!({ field: word })).collect()
}

fn numbers(field: &str, numbers: &[i64]) -> Vec<Value> {
    numbers.iter().map(|number| json!({ field: number })).collect()
}

fn both(field: &str) -> Vec<Value> {
    vec![json!({ field: true }), json!({ field: false })]
}

/// As [`allowed_values`], of policies.
fn allowed_of_policies() -> Vec<Value> {
    [
        words("resourceName", &["a", "A_b-9"]),
        vec![json!({ "resourceName": "r".repeat(63) }), json!({ "nodeSelector": { "a": "b", "c": "" } }), json!({ "nodeSelector": {} })],
        numbers("numVfs", &[0, 1, 128, 256]),
        numbers("priority", &[0, 1, 98, 99]),
        numbers("mtu", &[1, 1500, 9216]),
        words("deviceType", &["netdevice", "vfio-pci"]),
        words("linkType", &["eth", "ETH", "ib", "IB"]),
        words("eSwitchMode", &["legacy", "switchdev"]),
        ["virtio", "vhost"].map(|kind| json!({ "vdpaType": kind, "eSwitchMode": "switchdev" })).to_vec(),
        [both("isRdma"), both("needVhostNet"), both("excludeTopology"), both("externallyManaged")].concat(),
        [
            json!({ "vendor": "8086" }),
            json!({ "deviceID": "158b" }),
            json!({ "rootDevices": ["0000:86:00.0", "0000:86:00.1"] }),
            json!({ "pfNames": ["eth0", "ens1f0#0-3", "ens1f1#3-3"] }),
            json!({ "vendor": "15b3", "deviceID": "101d", "rootDevices": ["0000:01:00.0"], "pfNames": ["a"] }),
            json!({ "netFilter": "openstack/NetworkID:ada9ec67-2c97-467c-b674-c47200e2f5da" }),
            json!({ "netFilter": "aws/NetworkID:0123456789abcdef0" }),
        ]
        .map(|selector| json!({ "nicSelector": selector }))
        .to_vec(),
        ["secure", "standalone"]
            .map(|mode| {
                let map = json!({ "a": "b" });
                let bridge = json!({ "datapathType": "netdev", "externalIDs": map, "otherConfig": map, "failMode": mode });
                let interface = json!({ "type": "dpdk", "options": map, "externalIDs": map, "otherConfig": map, "mtuRequest": 9000 });
                json!({ "eSwitchMode": "switchdev", "bridge": { "ovs": { "bridge": bridge, "uplink": { "interface": interface } } } })
            })
            .to_vec(),
    ]
    .concat()
}

/// Every field of the Go operator's kinds with each value that its schema tells apart: the ends of ranges, all words, each part of nested objects.
fn allowed_values() -> Vec<(&'static str, Value, Vec<Value>)> {
    let any_network = [
        words("networkNamespace", &["", "default"]),
        words("capabilities", &["", "{ \"ips\": true }"]),
        words("metaPlugins", &["", "{ \"type\": \"tuning\" }"]),
        words("ipam", &["", "{ \"type\": \"host-local\" }"]),
    ]
    .concat();
    let link_states = words("linkState", &["auto", "enable", "disable"]);
    let networks = [
        numbers("vlan", &[0, 1, 4094]),
        numbers("vlanQoS", &[0, 7]),
        words("vlanProto", &["802.1q", "802.1Q", "802.1ad", "802.1AD"]),
        words("spoofChk", &["on", "off"]),
        words("trust", &["on", "off"]),
        numbers("minTxRate", &[0, 100]),
        numbers("maxTxRate", &[0, 100]),
        words("logLevel", &["panic", "error", "warning", "info", "debug", ""]),
        words("logFile", &["", "/var/log/cni.log"]),
        link_states.clone(),
        any_network.clone(),
    ]
    .concat();
    let trunk = json!([{ "minID": 0, "maxID": 4095 }, { "id": 0 }, { "id": 4095 }]);
    let ovs = [
        words("bridge", &["", "br0"]),
        numbers("vlan", &[0, 4095]),
        numbers("mtu", &[0, 9000]),
        words("interfaceType", &["", "dpdk"]),
        vec![json!({ "trunk": trunk })],
        any_network.clone(),
    ]
    .concat();
    let configs = [
        both("enableInjector"),
        both("enableOperatorWebhook"),
        both("disableDrain"),
        both("enableOvsOffload"),
        both("useCDI"),
        numbers("logLevel", &[0, 1, 2]),
        words("configurationMode", &["daemon", "systemd"]),
        vec![
            json!({}),
            json!({ "configDaemonNodeSelector": { "a": "b" } }),
            json!({ "disablePlugins": [] }),
            json!({ "disablePlugins": ["mellanox"] }),
        ],
        vec![json!({ "featureGates": { "metricsExporter": true, "noSuchGate": false } }), json!({ "configDaemonEnvVars": { "A": "b" } })],
    ]
    .concat();
    let selector = json!({ "matchLabels": { "a": "b" }, "matchExpressions": [{ "key": "c", "operator": "NotIn", "values": ["d"] }] });
    let pools = [
        numbers("maxUnavailable", &[0, 1, 1000]),
        words("maxUnavailable", &["1%", "50%", "100%"]),
        words("rdmaMode", &["shared", "exclusive"]),
        vec![
            json!({}),
            json!({ "nodeSelector": {} }),
            json!({ "nodeSelector": selector }),
            json!({ "ovsHardwareOffloadConfig": { "name": "worker" } }),
        ],
    ]
    .concat();
    let resource = json!({ "resourceName": "nics" });
    vec![
        ("SriovNetworkNodePolicy", policy(&json!({})), allowed_of_policies()),
        ("SriovNetwork", resource.clone(), networks),
        ("SriovIBNetwork", resource.clone(), [link_states, any_network].concat()),
        ("OVSNetwork", resource, ovs),
        ("SriovOperatorConfig", json!({}), configs),
        ("SriovNetworkPoolConfig", json!({}), pools),
    ]
}

async fn each_value_that_the_go_schema_allows_is_accepted(client: &Client) -> Result<()> {
    let params = PatchParams { dry_run: true, ..PatchParams::apply("user").force().validation_strict() };
    for (kind, least, changes) in allowed_values() {
        for change in changes {
            let mut spec = least.clone();
            spec.as_object_mut().context("an object")?.extend(change.as_object().context("an object")?.clone());
            let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": kind, "metadata": { "name": "allowed" }, "spec": spec });
            let stored = api(client, kind).patch("allowed", &params, &Patch::Apply(&object)).await.with_context(|| format!("{kind} {change}"))?;
            for (field, value) in change.as_object().context("an object")? {
                ensure!(stored.data["spec"].get(field) == Some(value), "{kind} {change} was stored as {:#}", stored.data["spec"]);
            }
        }
    }
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
