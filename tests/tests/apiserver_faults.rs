//! I/O: tier 1: the built operator behind a proxy that answers half of its writes, lists and watches with an error, breaks connections after the request
//! was carried out, keeps silent, and ends watches; and objects that nobody would write. The API server itself is real.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use sriov_crds::{NetworkAttachmentDefinition, SriovNetwork, keys};
use sriov_tests::apiserver::cluster::{Cluster, NAMESPACE, SOON, apply, leader};
use sriov_tests::apiserver::faults::{Fault, FaultyProxy};
use sriov_tests::apiserver::{ApiServer, User, eventually};

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
/// With every second request lost, keys wait for their next try, and watches for theirs.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn everything_converges_while_half_of_the_requests_fail() -> Result<()> {
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    let proxy = FaultyProxy::start(&server, User::Operator).await?;
    for node in NODES {
        cluster.create_node(node).await?;
    }
    proxy.trouble(true);
    let operator = leader(&server, "troubled", &[("KUBECONFIG", &proxy.kubeconfig())]).await?;
    operator.explain(node_states_come_and_follow(&cluster).await)?;
    operator.explain(a_nad_comes_and_goes(&cluster).await)?;
    operator.explain(a_drain_comes_to_its_end(&cluster).await)?;
    let met = proxy.met();
    for fault in [Fault::Conflict, Fault::TooManyRequests, Fault::ServerError, Fault::LostAnswer, Fault::TruncatedList, Fault::ExpiredWatch] {
        ensure!(met.contains_key(&fault), "{fault:?} was never met: {met:?}");
    }
    proxy.trouble(false);
    operator.explain(silence_holds_up_one_node_and_not_for_ever(&cluster, &proxy).await)?;
    operator.explain(what_came_and_went_while_a_watch_was_away_is_missed(&cluster, &proxy).await)?;
    operator.explain(objects_that_nobody_would_write_stop_nothing(&cluster).await)?;
    operator.check_rights()?;
    operator.stop().await
}

async fn node_states_come_and_follow(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        eventually(PATIENCE, "a node has a state", async || Ok(cluster.states.get(node).await.map(drop)?)).await?;
        cluster.report(node).await?;
    }
    cluster.policy("one", json!({ "nicSelector": { "pfNames": ["eth0"] } })).await?;
    cluster.expect_groups(&NODES, PATIENCE, &[("eth0", "0-3", "one")]).await?;
    cluster.policy("one", json!({ "nicSelector": { "pfNames": ["eth0"] }, "numVfs": 6 })).await?;
    cluster.expect_groups(&NODES, PATIENCE, &[("eth0", "0-5", "one")]).await?;
    cluster.policies.delete("one", &DeleteParams::default()).await?;
    cluster.expect_groups(&NODES, PATIENCE, &[]).await?;
    let states = cluster.states.list(&kube::api::ListParams::default()).await?;
    let names: Vec<String> = states.iter().map(ResourceExt::name_any).collect();
    ensure!(names == NODES, "{names:?}");
    Ok(())
}

async fn a_nad_comes_and_goes(cluster: &Cluster) -> Result<()> {
    let namespace = json!({ "metadata": { "name": "apps" } });
    Api::<Namespace>::all(cluster.admin.clone()).create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    let networks: Api<SriovNetwork> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "apps");
    apply(&networks, "SriovNetwork", "blue", json!({ "resourceName": "nics", "networkNamespace": "apps", "vlan": 7 })).await?;
    eventually(PATIENCE, "the network is ready", async || {
        let conditions = networks.get("blue").await?.status.context("no status")?.conditions;
        let says: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        ensure!(says == [("Ready", "True"), ("Progressing", "False"), ("Degraded", "False")], "{says:?}");
        Ok(())
    })
    .await?;
    ensure!(nads.get("blue").await?.labels().get(keys::MANAGED_BY).is_some_and(|by| by == keys::FIELD_MANAGER), "no label");
    networks.delete("blue", &DeleteParams::default()).await?;
    eventually(PATIENCE, "the network and its NAD are gone", async || {
        ensure!(nads.get_opt("blue").await?.is_none() && networks.get_opt("blue").await?.is_none(), "still there");
        Ok(())
    })
    .await
    .map(drop)
}

/// Cordon, evictions, annotations, and what is taken back. An API server that has no time answers an eviction with the number that a budget has, too.
async fn a_drain_comes_to_its_end(cluster: &Cluster) -> Result<()> {
    let (node, pods) = (NODES[0], Api::<Pod>::namespaced(cluster.admin.clone(), "apps"));
    for name in ["a", "b", "c", "d"] {
        let needs = json!({ "openshift.io/nics": "1" });
        let container = json!({ "name": "c", "image": "x", "resources": { "requests": needs, "limits": needs } });
        // Without a kubelet only a pod that needs no time to end does end.
        let spec = json!({ "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container] });
        pods.create(&PostParams::default(), &serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec }))?).await?;
    }
    let is = async |phase: &str, cordoned: bool| {
        eventually(PATIENCE, &format!("the node is {phase}"), async || {
            let (state, node) = (cluster.states.get(node).await?, cluster.nodes.get(node).await?);
            ensure!(state.annotations().get(keys::CURRENT_STATE).is_some_and(|is| is == phase), "{:?}: {:?}", state.annotations(), state.status);
            let found = (node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false), node.annotations().contains_key(keys::CORDONED));
            ensure!(found == (cordoned, cordoned), "cordoned, and marked so: {found:?}");
            Ok(())
        })
        .await
    };
    cluster.ask(node, keys::DRAIN_REQUIRED).await?;
    is(keys::DRAIN_COMPLETE, true).await?;
    ensure!(pods.list(&kube::api::ListParams::default()).await?.items.is_empty(), "pods are left");
    cluster.ask(node, keys::IDLE).await?;
    is(keys::IDLE, false).await.map(drop)
}

/// The operator gives up on a request after 20 s.
async fn silence_holds_up_one_node_and_not_for_ever(cluster: &Cluster, proxy: &FaultyProxy) -> Result<()> {
    proxy.silence("sriovnetworknodestates");
    cluster.policy("two", json!({ "nicSelector": { "pfNames": ["eth1"] } })).await?;
    eventually(Duration::from_secs(10), "the other nodes do not wait", async || {
        let states = cluster.states.list(&kube::api::ListParams::default()).await?;
        let done = states.iter().filter(|state| !state.spec.interfaces.is_empty()).count();
        ensure!(done >= NODES.len() - 1, "{done} of {} nodes", NODES.len());
        Ok(())
    })
    .await?;
    ensure!(proxy.met().contains_key(&Fault::Silence), "nothing was silenced");
    cluster.expect_groups(&NODES, Duration::from_secs(40), &[("eth1", "0-3", "two")]).await
}

/// Such a NAD is in no list and no event that the operator ever sees.
async fn what_came_and_went_while_a_watch_was_away_is_missed(cluster: &Cluster, proxy: &FaultyProxy) -> Result<()> {
    let networks: Api<SriovNetwork> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "apps");
    proxy.away("network-attachment-definitions");
    apply(&networks, "SriovNetwork", "grey", json!({ "resourceName": "nics", "networkNamespace": "apps" })).await?;
    eventually(SOON, "the network says that its NAD is there", async || {
        let conditions = networks.get("grey").await?.status.context("no status")?.conditions;
        ensure!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "{conditions:?}");
        Ok(())
    })
    .await?;
    // The operator's own marks on the network make it look once more; that is over when nothing comes back.
    eventually(SOON, "nobody notices that the NAD went", async || {
        nads.delete("grey", &DeleteParams::default()).await.ok();
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(nads.get_opt("grey").await?.is_none(), "it came back");
        Ok(())
    })
    .await?;
    proxy.back();
    // The watch comes back when its own delay is over.
    eventually(PATIENCE, "the NAD is there again", async || Ok(nads.get("grey").await.map(drop)?)).await?;
    ensure!(proxy.met().contains_key(&Fault::Away), "the watch was not away");
    Ok(())
}

async fn objects_that_nobody_would_write_stop_nothing(cluster: &Cluster) -> Result<()> {
    let many: Vec<String> = (0..512).map(|n| format!("{:04x}:00:00.0", n + 1)).collect();
    cluster.policy("long", json!({ "nicSelector": { "rootDevices": many }, "priority": 1 })).await?;
    let networks: Api<SriovNetwork> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let routes: Vec<Value> = (0..3000).map(|n| json!({ "dst": format!("10.{}.{}.0/24", n / 250, n % 250) })).collect();
    let ipam = json!({ "type": "static", "routes": routes }).to_string();
    apply(&networks, "SriovNetwork", "long", json!({ "resourceName": "nics", "ipam": ipam })).await?;
    // Deeper than any parser follows.
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    apply(&networks, "SriovNetwork", "deep", json!({ "resourceName": "nics", "ipam": deep })).await?;
    let reason = async |name: &str| {
        let conditions = networks.get(name).await?.status.context("no status")?.conditions;
        conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| c.reason).context("no Ready")
    };
    eventually(SOON, "the deep one is refused and the long one rendered", async || {
        let found = (reason("deep").await?, reason("long").await?);
        ensure!(found == ("NetworkAttachmentDefinitionInvalid".to_owned(), "NetworkReady".to_owned()), "{found:?}");
        Ok(())
    })
    .await?;
    cluster.policy("two", json!({ "nicSelector": { "pfNames": ["eth1"] }, "numVfs": 2 })).await?;
    cluster.expect_groups(&NODES, SOON, &[("eth1", "0-1", "two")]).await
}
