//! I/O: tier 1: what is counted over many nodes: policies' statuses, metrics, and the requests that a drain of many nodes costs. The built operator
//! against a real etcd and API server, with exactly the rights that `deploy/` gives; the tests speak for the daemons, with their rights.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use sriov_crds::keys;
use sriov_tests::apiserver::cluster::{Cluster, leader, merge};
use sriov_tests::apiserver::requests::Requests;
use sriov_tests::apiserver::{ApiServer, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

/// Long enough for a busy machine, short enough to fail.
const SOON: Duration = Duration::from_secs(15);
/// Time in which something that must not happen would have happened.
const A_WHILE: Duration = Duration::from_millis(1500);
/// Longer than any period in which a lease is renewed.
const IDLE: Duration = Duration::from_secs(6);
/// For the drains of all nodes.
const ALL_DRAINS: Duration = Duration::from_mins(1);
/// Requests that the API server does not owe to the number of nodes.
const SLACK: f64 = 1.0;

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn fetch(address: &str, path: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_metrics_and_settings_are_live() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    for node in ["n1", "n2", "n3"] {
        cluster.create_node(node).await?;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let probe = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let (metrics, probes) = (port.to_string(), probe.to_string());
    let operator = leader(&server, "operator", &[("METRICS_BIND_ADDRESS", &metrics), ("HEALTH_PROBE_BIND_ADDRESS", &probes)]).await?;
    for node in ["n1", "n2", "n3"] {
        cluster.expect_state(node).await?;
    }
    operator.explain(a_policy_counts_its_nodes(&cluster).await)?;
    operator.explain(a_weaker_policys_settings_are_not_overridden_in_silence(&cluster).await)?;
    operator.explain(a_pools_rdma_mode_is_rendered_and_stays_when_unknown(&cluster).await)?;
    eventually(SOON, "the process is ready", async || {
        let answer = fetch(&probes, "/readyz").await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })
    .await?;
    eventually(SOON, "the metrics count the nodes", async || {
        let text = fetch(&metrics, "/metrics").await?;
        for line in [r#"sriov_operator_nodes{state="Configured"} 1"#, r#"sriov_operator_nodes{state="Failed"} 1"#, "sriov_operator_leader 1"] {
            ensure!(text.contains(line), "no {line} in\n{text}");
        }
        ensure!(text.contains(r#"sriov_operator_reconcile_total{controller="node_policy"}"#), "{text}");
        Ok(())
    })
    .await?;
    // The level of the log follows the configuration without a restart.
    ensure!(!operator.log().contains("DEBUG sriov_operator"), "debug lines before they were asked for");
    merge(&cluster.configs, "default", json!({ "spec": { "logLevel": 2 } })).await?;
    eventually(SOON, "debug lines come", async || {
        merge(&cluster.nodes, "n3", json!({ "metadata": { "labels": { "turn": format!("{:?}", std::time::Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric(), "").chars().rev().take(40).collect::<String>() } } })).await?;
        ensure!(operator.log().contains("DEBUG sriov_operator"), "no debug line");
        Ok(())
    })
    .await?;
    operator.check_rights()
}

async fn a_policy_counts_its_nodes(cluster: &Cluster) -> Result<()> {
    let policy = json!({
        "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": "p" },
        "spec": { "resourceName": "nics", "nodeSelector": {}, "nicSelector": { "vendor": "8086" }, "numVfs": 2 },
    });
    cluster.policies.patch("p", &PatchParams::apply("user").force(), &Patch::Apply(policy)).await?;
    let pf = json!([{ "pciAddress": "0000:01:00.0", "name": "eth0", "vendor": "8086" }]);
    for node in ["n1", "n2", "n3"] {
        cluster.status(node, json!({ "interfaces": pf, "syncStatus": "InProgress" })).await?;
        eventually(SOON, "it is rendered", async || {
            ensure!(!cluster.states.get(node).await?.spec.interfaces.is_empty(), "no interfaces");
            Ok(())
        })
        .await?;
    }
    let generation = cluster.states.get("n1").await?.metadata.generation;
    cluster.status("n1", json!({ "interfaces": pf, "syncStatus": "Succeeded", "observedGeneration": generation })).await?;
    cluster
        .status("n2", json!({ "interfaces": pf, "syncStatus": "Failed", "lastSyncError": "no room for VFs", "observedGeneration": generation }))
        .await?;
    eventually(SOON, "the policy counts its nodes", async || {
        let status = cluster.policies.get("p").await?.status.context("no status")?;
        let counts = (status.matched_nodes, status.configured_nodes, status.pending_nodes, status.failed_nodes);
        ensure!(counts == (3, 1, 1, 1), "{status:?}");
        let first = status.first_failure.context("no failure")?;
        ensure!(first.node == "n2" && first.message == "no room for VFs", "{first:?}");
        let reasons: Vec<_> = status.conditions.iter().map(|c| format!("{} {} {}", c.type_, c.status, c.reason)).collect();
        ensure!(reasons == ["Ready True Accepted", "Progressing True Configuring", "Degraded True NodesFailed"], "{reasons:?}");
        Ok(())
    })
    .await?;
    Ok(())
}

/// B30 of the field.
async fn a_weaker_policys_settings_are_not_overridden_in_silence(cluster: &Cluster) -> Result<()> {
    let partition = |range: &str, priority: u32, mode: &str| json!({ "nicSelector": { "pfNames": [format!("eth0#{range}")] }, "priority": priority, "eSwitchMode": mode });
    cluster.policies.delete("p", &DeleteParams::default()).await?;
    let degraded = async |reason: &str, text: &str| {
        eventually(SOON, reason, async || {
            let conditions = cluster.policies.get("weak").await?.status.context("no status")?.conditions;
            let told = conditions.iter().find(|c| c.type_ == "Degraded").context("no Degraded")?;
            ensure!(told.reason == reason && told.message.contains(text), "{told:?}");
            Ok(())
        })
        .await
    };
    // n2 failed before and would be told of first.
    let pf = json!([{ "pciAddress": "0000:01:00.0", "name": "eth0", "vendor": "8086" }]);
    cluster.status("n2", json!({ "interfaces": pf, "syncStatus": "InProgress" })).await?;
    cluster.policy("weak", partition("0-1", 90, "switchdev")).await?;
    degraded("Configured", "").await?;
    cluster.policy("strong", partition("2-3", 10, "legacy")).await?;
    degraded(
        "Overridden",
        "not all as asked on 3 nodes; node n1: eSwitchMode of PF 0000:01:00.0 is legacy and not switchdev, as policy strong decides",
    )
    .await?;
    cluster.policy("strong", partition("2-3", 10, "switchdev")).await?;
    degraded("Configured", "").await?;
    for name in ["weak", "strong"] {
        cluster.policies.delete(name, &DeleteParams::default()).await?;
    }
    cluster.status("n2", json!({ "interfaces": pf, "syncStatus": "Failed", "lastSyncError": "no room for VFs" })).await
}

async fn a_pools_rdma_mode_is_rendered_and_stays_when_unknown(cluster: &Cluster) -> Result<()> {
    let mode = async |expected: Option<&str>| {
        eventually(SOON, &format!("rdmaMode is {expected:?}"), async || {
            // An empty text asks for nothing, as in what the Go operator writes.
            let mode = cluster.states.get("n1").await?.spec.system.and_then(|s| s.rdma_mode).filter(|mode| !mode.is_empty());
            ensure!(mode.as_deref() == expected, "{mode:?}");
            Ok(())
        })
        .await
    };
    cluster
        .pool("rdma", json!({ "nodeSelector": { "matchLabels": { keys::OS_LABEL: "linux" } }, "rdmaMode": "exclusive", "maxUnavailable": 1 }))
        .await?;
    mode(Some("exclusive")).await?;
    cluster.pool("second", json!({ "rdmaMode": "shared" })).await?;
    tokio::time::sleep(A_WHILE).await;
    mode(Some("exclusive")).await?;
    cluster.pools.delete("second", &DeleteParams::default()).await?;
    cluster.pools.delete("rdma", &DeleteParams::default()).await?;
    mode(None).await?;
    Ok(())
}

/// All of these nodes ask, and each of their daemons goes on at once when its turn comes. Answers what it cost and how many were away at most.
async fn drain(cluster: &Cluster, nodes: &[String]) -> Result<(Requests, usize)> {
    let before = Requests::of(&cluster.admin).await?;
    for node in nodes {
        cluster.ask(node, keys::DRAIN_REQUIRED).await?;
    }
    let (mut through, mut most) = (BTreeSet::new(), 0);
    let begin = Instant::now();
    loop {
        ensure!(begin.elapsed() < ALL_DRAINS, "{} of {} nodes were drained", through.len(), nodes.len());
        let states = cluster.states.list(&ListParams::default()).await?.items;
        let in_phase = |phase: &str| -> Vec<String> {
            states.iter().filter(|s| s.annotations().get(keys::CURRENT_STATE).is_some_and(|is| is == phase)).map(ResourceExt::name_any).collect()
        };
        let drained = in_phase(keys::DRAIN_COMPLETE);
        most = most.max(drained.len() + in_phase(keys::DRAINING).len());
        for node in drained {
            if through.insert(node.clone()) {
                cluster.ask(&node, keys::IDLE).await?;
            }
        }
        if through.len() == nodes.len() && in_phase(keys::IDLE).len() == states.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The last conditions go after the last annotations.
    tokio::time::sleep(A_WHILE).await;
    Ok((Requests::of(&cluster.admin).await?.since(&before), most))
}

/// The Go operator asked for every node of a pool for every node that waits, every five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_many_nodes_costs_each_as_many_requests_as_one_of_few() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    let nodes: Vec<String> = (0..30).map(|number| format!("n{number:02}")).collect();
    for node in &nodes {
        cluster.create_node(node).await?;
    }
    cluster.pool("all", json!({ "maxUnavailable": 3 })).await?;
    let metrics = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let operator = leader(&server, "operator", &[("METRICS_BIND_ADDRESS", &metrics)]).await?;
    for node in &nodes {
        cluster.expect_state(node).await?;
    }
    let of = |requests: &Requests, nodes: usize| requests.total() / f64::from(u32::try_from(nodes).unwrap_or(u32::MAX));
    let (few, _) = operator.explain(drain(&cluster, &nodes[..6]).await)?;
    let (many, most) = operator.explain(drain(&cluster, &nodes).await)?;
    eprintln!("6 nodes: {few:?}; 30 nodes: {many:?}, at most {most} away");
    ensure!(most <= 3, "{most} nodes were away, 3 may be");
    ensure!(many.reads == 0.0, "node states were read one by one: {many:?}");
    ensure!(of(&many, 30) <= of(&few, 6) + SLACK, "a node of 30: {:.1} requests, of 6: {:.1}", of(&many, 30), of(&few, 6));
    let text = fetch(&metrics, "/metrics").await?;
    for line in ["sriov_operator_drains_total{outcome=\"Complete\"} 36\n", "sriov_operator_drain_duration_seconds_count 36\n"] {
        ensure!(text.contains(line), "no {line} in\n{text}");
    }
    operator.explain(no_object_tells_of_more_than_one_node(&cluster, &nodes).await)?;
    tokio::time::sleep(A_WHILE).await;
    let before = Requests::of(&cluster.admin).await?;
    tokio::time::sleep(IDLE).await;
    let idle = Requests::of(&cluster.admin).await?.since(&before);
    ensure!(idle.total() == 0.0, "nothing happened, and the operator asked: {idle:?}");
    operator.check_rights()
}

/// The Go operator keeps one ConfigMap for all nodes, which has no room for more at 1 MiB.
async fn no_object_tells_of_more_than_one_node(cluster: &Cluster, nodes: &[String]) -> Result<()> {
    cluster.policy("all", json!({ "nicSelector": { "vendor": "8086" } })).await?;
    let why = "no room for VFs; ".repeat(200);
    let fail = async |failing: &[String]| {
        for node in failing {
            cluster.status(node, json!({ "syncStatus": "Failed", "lastSyncError": why })).await?;
        }
        eventually(SOON, &format!("{} nodes failed", failing.len()), async || {
            let status = cluster.policies.get("all").await?.status.context("no status")?;
            ensure!(usize::try_from(status.failed_nodes)? == failing.len() && status.first_failure.is_some(), "{status:?}");
            Ok(())
        })
        .await?;
        let (policy, pool) = (cluster.policies.get("all").await?, cluster.pools.get("all").await?);
        let config = cluster.configs.get("default").await?;
        let said = [json!(policy.status), json!(pool.status), json!(config.status), json!(policy.spec), json!(pool.spec), json!(config.spec)];
        Ok::<_, anyhow::Error>(said.map(|part| part.to_string().len()))
    };
    let (one, all) = (fail(&nodes[..1]).await?, fail(nodes).await?);
    eprintln!("bytes when 1 node failed: {one:?}, when {} failed: {all:?}", nodes.len());
    ensure!(one[0] > why.len(), "the failure of the first node is not told: {one:?}");
    // Counts have a digit more.
    ensure!(one.iter().zip(&all).all(|(one, all)| *all <= one + 20), "1 node: {one:?} bytes, {} nodes: {all:?}", nodes.len());
    Ok(())
}
