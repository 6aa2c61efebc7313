//! I/O: tier 1: what the operator's admission server says of writes, as a real API server asks it. Certificates, whoever makes them:
//! `apiserver_certificates`. Here they live for seconds, so that everything happens while they are moved on.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sriov_crds::{NetworkAttachmentDefinition, SriovNamespaceRule, SriovNetworkNodeState, SriovNetworkPoolConfig, SriovOperatorConfig, keys};
use sriov_tests::apiserver::admission::{Admission, nad, network, pod, policy};
use sriov_tests::apiserver::cluster::{NAMESPACE, SOON};
use sriov_tests::apiserver::{Operator, eventually};

const CONFIGURATION: &str = "sriov-operator-webhook-config";
/// Certificates are moved on every third of this.
const SHORT: [(&str, &str); 1] = [("WEBHOOK_CERTIFICATE_SECONDS", "9")];

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_judged_by_an_operator_that_a_real_api_server_trusts() -> Result<()> {
    let cluster = Admission::start().await?;
    let first = cluster.operator(0, &SHORT).await?;
    cluster.configure(json!({ "enableOperatorWebhook": true, "enableInjector": true })).await?;
    let took = first.explain(cluster.judged().await)?;
    eprintln!("switched on -> judged: {} ms", took.as_millis());
    first.explain(policies_are_judged(&cluster).await)?;
    first.explain(a_bridge_that_would_not_be_made_is_warned_of(&cluster).await)?;
    first.explain(other_kinds_are_judged(&cluster).await)?;
    first.explain(pods_get_what_their_networks_need(&cluster).await)?;
    first.explain(namespaces_are_held_to_their_rules(&cluster).await)?;
    first.explain(nonsense_ends_nothing(&cluster).await)?;
    first.explain(an_edited_configuration_is_put_right(&cluster).await)?;
    let second = cluster.operator(1, &SHORT).await?;
    second.explain(a_replica_that_does_not_lead_answers_too(&cluster, &second).await)?;
    second.check_rights()?;
    second.stop().await?;
    first.check_rights()?;
    first.stop().await?;
    a_dead_webhook_does_not_block_the_cluster(&cluster).await?;
    let again = cluster.operator(0, &SHORT).await?;
    again.explain(what_is_switched_off_is_removed(&cluster).await)?;
    again.check_rights()?;
    again.stop().await
}

async fn policies_are_judged(cluster: &Admission) -> Result<()> {
    let (_, warnings) = cluster.try_policy(&json!({})).await?.map_err(anyhow::Error::msg)?;
    ensure!(warnings.iter().any(|w| w.contains("no managed node matches nodeSelector now")), "GitOps-safe: {warnings:?}");
    let labels = json!({ keys::OS_LABEL: "linux", keys::CAPABLE_LABEL: "true" });
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(json!({ "metadata": { "name": "worker", "labels": labels } }))?).await?;
    let states: Api<SriovNetworkNodeState> = cluster.ours();
    let said = json!({ "status": { "syncStatus": "Succeeded", "interfaces": [
        { "pciAddress": "0000:01:00.0", "name": "eth0", "altNames": ["front"], "vendor": "8086", "deviceID": "10c9", "totalvfs": 7, "numVfs": 2 },
    ] } });
    eventually(SOON, "the node has a state", async || {
        states.patch_status("worker", &PatchParams::default(), &Patch::Merge(&said)).await?;
        Ok(())
    })
    .await?;
    let (_, warnings) = cluster.try_policy(&json!({})).await?.map_err(anyhow::Error::msg)?;
    ensure!(warnings.iter().any(|w| w.contains("matches 1 of 1 managed nodes (worker) and 1 PFs: 4 VFs on each")), "{warnings:?}");
    ensure!(warnings.iter().any(|w| w.contains("drains: VFs that exist are made anew or bound anew on worker")), "{warnings:?}");
    let (stored, _) = cluster.try_policy(&json!({ "linkType": "IB" })).await?.map_err(anyhow::Error::msg)?;
    ensure!(stored["spec"]["isRdma"] == true && stored["spec"]["priority"] == 99, "{stored:#}");

    let there = policy("there", &json!({ "nicSelector": { "pfNames": ["front#0-3"] }, "resourceName": "first" }));
    cluster.create(&cluster.policies(), there, false).await?.map_err(anyhow::Error::msg)?;
    for (change, why) in [
        (json!({ "numVfs": 8 }), "numVfs 8 is more than the 7"),
        (json!({ "numVfs": 0 }), "at least 1"),
        (json!({ "nicSelector": { "pfNames": ["eth0#3-3"] } }), "VFs 3-3 overlap with VFs 0-3 of policy there"),
        (json!({ "nicSelector": { "rootDevices": ["0000:01:00.0"] } }), "overlap"),
        (json!({ "nicSelector": { "vendor": "beef" } }), "supported-nic-ids"),
        (json!({ "nicSelector": { "pfNames": ["eth0#5-6"] }, "numVfs": 7, "externallyManaged": true }), "externallyManaged"),
    ] {
        cluster.expect_refused(&cluster.policies(), policy("tried", &change), why).await?;
    }
    cluster.try_policy(&json!({ "nicSelector": { "pfNames": ["eth0#4-5"] }, "numVfs": 6 })).await?.map_err(anyhow::Error::msg)?;
    // Only what an update changes is judged: this one got in before the one above.
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    cluster.policies().patch("there", &PatchParams::default(), &Patch::Merge(&label)).await?;
    Ok(())
}

/// What the controller would say of it later is said at once.
async fn a_bridge_that_would_not_be_made_is_warned_of(cluster: &Admission) -> Result<()> {
    let free = json!({ "pfNames": ["eth0#4-5"] });
    let bridged = json!({ "nicSelector": free, "numVfs": 6, "eSwitchMode": "switchdev", "bridge": { "ovs": {} } });
    for (gates, warned) in [(json!(null), true), (json!({ "manageSoftwareBridges": true }), false), (json!({ "manageSoftwareBridges": false }), true)]
    {
        cluster.configure(json!({ "featureGates": gates })).await?;
        let (_, warnings) = cluster.try_policy(&bridged).await?.map_err(anyhow::Error::msg)?;
        let told = warnings.iter().any(|w| w.contains("its bridge is not made, because the feature gate manageSoftwareBridges is off"));
        ensure!(told == warned, "with featureGates {gates}: {warnings:?}");
    }
    cluster.configure(json!({ "featureGates": null })).await
}

async fn other_kinds_are_judged(cluster: &Admission) -> Result<()> {
    let networks: Api<sriov_crds::SriovNetwork> = cluster.ours();
    for (spec, why) in [
        (json!({ "resourceName": "a", "ipam": "{'type'}" }), "ipam is not JSON"),
        (json!({ "resourceName": "a", "metaPlugins": "{\"no\": \"type\"}" }), "metaPlugins must be"),
        (json!({ "resourceName": "a", "minTxRate": 20, "maxTxRate": 10 }), "minTxRate 20 is above maxTxRate 10"),
    ] {
        cluster.expect_refused(&networks, network("tried", &spec), why).await?;
    }
    let elsewhere: Api<sriov_crds::SriovNetwork> = Api::namespaced(cluster.admin.clone(), "default");
    let astray = network("tried", &json!({ "resourceName": "a", "networkNamespace": "kube-system" }));
    cluster.expect_refused(&elsewhere, astray, "networkNamespace is only allowed").await?;
    let configs: Api<SriovOperatorConfig> = cluster.ours();
    let other = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovOperatorConfig", "metadata": { "name": "other" }, "spec": {} });
    cluster.expect_refused(&configs, other, "only the SriovOperatorConfig named default").await?;

    // B21 of the field: nobody said that pools overlap until a drain waited for ever.
    let pools: Api<SriovNetworkPoolConfig> = cluster.ours();
    let pool = |name: &str, os: &str| {
        let spec = json!({ "maxUnavailable": 1, "nodeSelector": { "matchLabels": { keys::OS_LABEL: os } } });
        json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkPoolConfig", "metadata": { "name": name }, "spec": spec })
    };
    cluster.create(&pools, pool("first", "linux"), false).await?.map_err(anyhow::Error::msg)?;
    cluster.expect_refused(&pools, pool("second", "linux"), "pool first has worker already").await?;
    cluster.create(&pools, pool("second", "windows"), true).await?.map_err(anyhow::Error::msg)?;
    pools.delete("first", &DeleteParams::default()).await?;

    let states: Api<SriovNetworkNodeState> = cluster.ours();
    let sync = |text: &str| Patch::Merge(json!({ "status": { "syncStatus": text } }));
    states.patch_status("worker", &PatchParams::default(), &sync("InProgress")).await?;
    let refused = cluster.configure(json!({ "disableDrain": true })).await;
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("while node worker is being configured")), "drains were switched off");
    states.patch_status("worker", &PatchParams::default(), &sync("Succeeded")).await?;
    cluster.configure(json!({ "disableDrain": true })).await?;
    cluster.configure(json!({ "disableDrain": false })).await
}

async fn pods_get_what_their_networks_need(cluster: &Admission) -> Result<()> {
    let networks: Api<sriov_crds::SriovNetwork> = Api::namespaced(cluster.admin.clone(), "default");
    cluster.create(&networks, network("blue", &json!({ "resourceName": "nics" })), false).await?.map_err(anyhow::Error::msg)?;
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "default");
    eventually(SOON, "the NAD is there", async || Ok(nads.get("blue").await.map(drop)?)).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "default");
    let (two, _) = cluster.create(&pods, pod("two", Some("blue, default/blue@net2")), true).await?.map_err(anyhow::Error::msg)?;
    ensure!(two["spec"]["containers"][0]["resources"]["requests"]["openshift.io/nics"] == "2", "{two:#}");
    ensure!(two["spec"]["containers"][0]["resources"]["limits"]["openshift.io/nics"] == "2", "{two:#}");
    ensure!(two["spec"]["containers"][1]["volumeMounts"][0]["mountPath"] == "/etc/podnetinfo", "{two:#}");
    cluster.expect_refused(&pods, pod("lost", Some("nowhere")), "network nowhere is not there").await?;
    let (plain, _) = cluster.create(&pods, pod("plain", None), true).await?.map_err(anyhow::Error::msg)?;
    ensure!(plain["spec"].get("volumes").is_none(), "{plain:#}");

    // The ConfigMap by which users of the field's injector switch it.
    let config = json!({ "features": { "enableHugePageDownApi": false }, "user-defined-injections": {
        "feature.example/more": { "op": "add", "path": "/metadata/annotations", "value": { "more": "of it" } },
    } });
    let switches = json!({ "metadata": { "name": "nri-control-switches" }, "data": { "config.json": config.to_string() } });
    cluster.ours::<ConfigMap>().create(&PostParams::default(), &serde_json::from_value(switches)?).await?;
    let mut asking = pod("asking", Some("blue"));
    asking["metadata"]["labels"] = json!({ "feature.example/more": "true" });
    asking["spec"]["containers"][0]["resources"] = json!({ "limits": { "hugepages-1Gi": "1Gi", "memory": "1Gi" } });
    let (asking, _) = cluster.create(&pods, asking, true).await?.map_err(anyhow::Error::msg)?;
    ensure!(asking["metadata"]["annotations"]["more"] == "of it", "{asking:#}");
    ensure!(asking["metadata"]["annotations"][keys::POD_NETWORKS] == "blue", "its own annotation went: {asking:#}");
    let files = asking["spec"]["volumes"][0]["downwardAPI"]["items"].as_array().context("no files")?;
    ensure!(files.len() == 2, "huge pages were switched off: {files:?}");
    cluster.ours::<ConfigMap>().delete("nri-control-switches", &DeleteParams::default()).await?;
    Ok(())
}

async fn namespaces_are_held_to_their_rules(cluster: &Admission) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.admin.clone());
    for (name, team) in [("tenant", "a"), ("free", "b")] {
        let namespace = json!({ "metadata": { "name": name, "labels": { "team": team } } });
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    }
    let networks: Api<sriov_crds::SriovNetwork> = Api::namespaced(cluster.admin.clone(), "tenant");
    let tenant: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "tenant");
    cluster.create(&networks, network("old", &json!({ "resourceName": "nics", "vlan": 7 })), false).await?.map_err(anyhow::Error::msg)?;
    eventually(SOON, "a network from before the rule has its NAD", async || Ok(tenant.get("old").await.map(drop)?)).await?;
    let rules: Api<SriovNamespaceRule> = Api::all(cluster.admin.clone());
    let rule = json!({
        "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNamespaceRule", "metadata": { "name": "tenants" },
        "spec": { "namespaceSelector": { "matchLabels": { "team": "a" } }, "vlans": ["100-199"], "maxTxRate": 1000 },
    });
    cluster.create(&rules, rule, false).await?.map_err(anyhow::Error::msg)?;
    eventually(SOON, "the rule says that it is enforced", async || {
        let conditions = rules.get("tenants").await?.status.context("no status")?.conditions;
        ensure!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True" && c.reason == "Enforced"), "{conditions:?}");
        Ok(())
    })
    .await?;
    let free: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "free");
    let hidden = r#"{"type":"multus","delegates":[{"type":"s\u0072iov","vlan":7,"max_tx_rate":10}]}"#;
    eventually(SOON, "the rule is in force", async || cluster.expect_refused(&tenant, nad("x", hidden), "VLAN 7 is not among 100-199").await).await?;
    cluster.expect_refused(&tenant, nad("x", r#"{"type":"sriov","vlan":100}"#), "max_tx_rate must be given").await?;
    cluster.create(&tenant, nad("x", r#"{"type":"sriov","vlan":100,"max_tx_rate":10}"#), true).await?.map_err(anyhow::Error::msg)?;
    cluster.create(&tenant, nad("x", r#"{"type":"bridge","vlan":7}"#), true).await?.map_err(anyhow::Error::msg)?;
    cluster.create(&free, nad("x", hidden), true).await?.map_err(anyhow::Error::msg)?;
    let wrong = network("x", &json!({ "resourceName": "nics", "vlan": 100, "maxTxRate": 10, "trust": "on" }));
    cluster.expect_refused(&networks, wrong, "trust on is not allowed").await?;
    let shared: Api<sriov_crds::SriovNetwork> = cluster.ours();
    let into = network("x", &json!({ "resourceName": "nics", "networkNamespace": "tenant", "vlan": 5, "maxTxRate": 10 }));
    cluster.expect_refused(&shared, into, "not allowed in namespace tenant").await?;
    // The operator is held to it too, and says so where people look.
    tenant.delete("old", &DeleteParams::default()).await?;
    eventually(SOON, "the network says why it has no NAD", async || {
        let conditions = networks.get("old").await?.status.context("no status")?.conditions;
        ensure!(
            conditions.iter().any(|c| c.status == "False" && c.reason == "NetworkAttachmentDefinitionInvalid" && c.message.contains("VLAN 7")),
            "{conditions:?}"
        );
        Ok(())
    })
    .await
    .map(drop)
}

/// Straight to a server, as anyone who reaches it could; answers the status code, `000` for none.
fn post(address: &str, path: &str, body: &[u8]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), body)?;
    let (data, url) = (format!("@{}", file.path().display()), format!("https://{address}{path}"));
    let arguments = ["-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", "--data-binary", &data, &url];
    let output = Command::new("curl").args(arguments).stderr(Stdio::inherit()).output().context("run curl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn nonsense_ends_nothing(cluster: &Admission) -> Result<()> {
    let post = |path: &str, body: &[u8]| post(&cluster.addresses[0], path, body);
    for path in ["/mutating-custom-resource", "/validating-custom-resource", "/validating-network-attachment-definition", "/mutate"] {
        for body in [&b""[..], b"{", b"[]", br#"{"apiVersion":"admission.k8s.io/v1beta1","request":{}}"#, "[".repeat(200_000).as_bytes()] {
            let code = post(path, body)?;
            ensure!(code == "400", "{path}: {code} for {} bytes", body.len());
        }
        let empty = br#"{"apiVersion":"admission.k8s.io/v1","request":{"uid":"u","namespace":"default","name":"x","kind":{"kind":"SriovNetworkNodePolicy"},"object":{"spec":[]}}}"#;
        let code = post(path, empty)?;
        ensure!(code == "200", "{path}: {code} for an odd object");
    }
    let huge = post("/mutate", &vec![b' '; 20 << 20])?;
    ensure!(huge == "413" || huge == "000", "a body of 20 MiB was taken: {huge}");
    ensure!(post("/nowhere", b"{}")? == "404", "a path that is not served");
    // An object as large as the API server takes, with every list full.
    let names: Vec<_> = (0..500).map(|n| format!("eth{n}#0-3")).collect();
    let large = json!({ "nicSelector": { "pfNames": names }, "nodeSelector": { "none": "such" } });
    let mut large = policy("large", &large);
    large["metadata"]["annotations"] = json!({ "ballast": "x".repeat(200_000) });
    let (_, warnings) = cluster.create(&cluster.policies(), large, true).await?.map_err(anyhow::Error::msg)?;
    ensure!(warnings.iter().any(|w| w.contains("no managed node matches")), "{warnings:?}");
    cluster.judged().await.map(drop)
}

async fn an_edited_configuration_is_put_right(cluster: &Admission) -> Result<()> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let rules = async |name: &str| -> Result<Option<String>> {
        let webhooks = configurations.get(name).await?.webhooks.context("no webhooks")?;
        Ok(webhooks.first().and_then(|webhook| webhook.failure_policy.clone()))
    };
    let edit = json!([{ "op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail" }]);
    let edit: Patch<()> = Patch::Json(serde_json::from_value(edit)?);
    configurations.patch(CONFIGURATION, &PatchParams::default(), &edit).await?;
    eventually(SOON, "the edit is undone", async || {
        ensure!(rules(CONFIGURATION).await?.as_deref() == Some("Ignore"), "edited");
        Ok(())
    })
    .await?;
    configurations.delete(CONFIGURATION, &DeleteParams::default()).await?;
    eventually(SOON, "it is there again", async || Ok(configurations.get(CONFIGURATION).await.map(drop)?)).await.map(drop)
}

async fn a_replica_that_does_not_lead_answers_too(cluster: &Admission, replica: &Operator) -> Result<()> {
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "request": {
        "uid": "u", "operation": "CREATE", "namespace": NAMESPACE, "name": "p", "kind": { "kind": "SriovNetworkNodePolicy" }, "object": policy("p", &json!({})),
    } });
    eventually(SOON, "the replica has the certificates", async || {
        let code = post(&cluster.addresses[1], "/validating-custom-resource", review.to_string().as_bytes())?;
        ensure!(code == "200", "{code}");
        Ok(())
    })
    .await?;
    ensure!(!replica.log().contains("this process is the leader"), "it leads");
    Ok(())
}

/// B22 of the field: at its end the operator set failure policies to Ignore and took finalizers away.
async fn a_dead_webhook_does_not_block_the_cluster(cluster: &Admission) -> Result<()> {
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let webhooks = configurations.get(CONFIGURATION).await?.webhooks.context("no webhooks")?;
    let policies: Vec<_> = webhooks.iter().filter_map(|webhook| webhook.failure_policy.as_deref()).collect();
    ensure!(policies == ["Ignore", "Fail"], "the end of the operator changed them: {policies:?}");
    // Nobody says that it overlaps.
    cluster.try_policy(&json!({})).await?.map_err(anyhow::Error::msg)?;
    cluster.policies().delete("there", &DeleteParams::default()).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "default");
    for (name, networks) in [("plain", None), ("blue", Some("blue"))] {
        cluster.create(&pods, pod(name, networks), true).await?.map_err(anyhow::Error::msg)?;
    }
    let nads = |namespace: &str| Api::<NetworkAttachmentDefinition>::namespaced(cluster.admin.clone(), namespace);
    cluster.create(&nads("free"), nad("x", r#"{"type":"sriov","vlan":7}"#), true).await?.map_err(anyhow::Error::msg)?;
    // Only what nobody else would hold is refused.
    cluster.expect_refused(&nads("tenant"), nad("x", r#"{"type":"sriov","vlan":7}"#), "tenants.rules.sriovnetwork.openshift.io").await
}

async fn what_is_switched_off_is_removed(cluster: &Admission) -> Result<()> {
    cluster.configure(json!({ "enableOperatorWebhook": false, "enableInjector": false })).await?;
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    eventually(SOON, "the configurations go", async || {
        let left = [
            mutating.list(&kube::api::ListParams::default()).await?.items.len(),
            validating.list(&kube::api::ListParams::default()).await?.items.len(),
        ];
        ensure!(left == [0, 0], "{left:?}");
        Ok(())
    })
    .await?;
    let rules: Api<SriovNamespaceRule> = Api::all(cluster.admin.clone());
    eventually(SOON, "the rule says that nobody holds it", async || {
        let conditions = rules.get("tenants").await?.status.context("no status")?.conditions;
        ensure!(conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "WebhookOff"), "{conditions:?}");
        Ok(())
    })
    .await
    .map(drop)
}
