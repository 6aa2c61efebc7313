//! I/O: tier 1: several operators on one cluster: who leads, what a killed leader leaves to the next, and what survives a restart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;
use sriov_crds::keys;
use sriov_tests::apiserver::cluster::{Cluster, NAMESPACE, SOON, leader};
use sriov_tests::apiserver::{ApiServer, Operator, eventually};
use tokio::sync::Mutex;

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

fn leads(operator: &Operator) -> bool {
    operator.log().contains("this process is the leader")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_that_race_one_leads_and_the_other_follows_a_kill() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    cluster.create_node("n1").await?;
    let (first, second) = (server.operator("first", &[])?, server.operator("second", &[])?);
    eventually(SOON, "one leads", async || {
        ensure!(leads(&first) || leads(&second), "nobody does");
        Ok(())
    })
    .await?;
    cluster.expect_state("n1").await?;
    // Longer than the time between two tries for the lease.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(leads(&first) != leads(&second), "both lead");
    let (leading, waiting) = if leads(&first) { (first, second) } else { (second, first) };
    leading.check_rights()?;
    // Killed: nothing is released, so its lease has to run out.
    drop(leading);
    cluster.create_node("n2").await?;
    let took = eventually(Duration::from_secs(40), "the other takes over", async || {
        ensure!(leads(&waiting), "not yet");
        Ok(())
    })
    .await?;
    eprintln!("kill of the leader -> next leader: {} ms", took.as_millis());
    waiting.explain(cluster.expect_state("n2").await)?;
    waiting.check_rights()
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_of_a_rollout_are_kept_across_a_restart_and_drains_tell_their_events() -> Result<()> {
    const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    for node in NODES {
        cluster.create_node(node).await?;
    }
    cluster.pool("canary", json!({ "maxUnavailable": 4, "rollout": { "stages": [1] } })).await?;
    let first = leader(&server, "first", &[]).await?;
    for node in NODES {
        cluster.expect_state(node).await?;
        cluster.ask(node, keys::DRAIN_REQUIRED).await?;
    }
    let away = async |operator: &Operator, count: usize| {
        let wait = eventually(SOON, "so many nodes are away", async || {
            let away = cluster.away(&NODES).await?;
            ensure!(away.len() == count, "{away:?}, expected {count}");
            Ok(())
        });
        operator.explain(wait.await.map(drop))
    };
    away(&first, 1).await?;
    let canary = cluster.away(&NODES).await?.remove(0);
    let done = async |operator: &Operator, expected: i64| {
        let wait = eventually(SOON, "the pool counts who is through", async || {
            let status = cluster.pools.get("canary").await?.status.context("no status")?;
            ensure!(status.done == expected, "{status:?}");
            Ok(())
        });
        operator.explain(wait.await.map(drop))
    };
    // The canary is through, and the rest is let go: all others at once.
    cluster.ask(&canary, keys::IDLE).await?;
    away(&first, 3).await?;
    done(&first, 1).await?;
    let gone = cluster.away(&NODES).await?;
    first.check_rights()?;
    first.stop().await?;

    let second = leader(&server, "second", &[]).await?;
    // Two finish; one is still away, so the rollout is the same, and a node that asks again is not held back by the first stage.
    for node in &gone[..2] {
        cluster.ask(node, keys::IDLE).await?;
    }
    away(&second, 1).await?;
    done(&second, 3).await?;
    cluster.ask(&canary, keys::DRAIN_REQUIRED).await?;
    away(&second, 2).await?;
    drain_events(&cluster, &canary).await?;
    second.check_rights()
}

async fn drain_events(cluster: &Cluster, node: &str) -> Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    eventually(SOON, "the drain told its begin and end", async || {
        let all = events.list(&ListParams::default()).await?;
        let of_node = all.iter().filter(|event| event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(node));
        let reasons: Vec<_> = of_node.filter_map(|event| Some((event.reason.clone()?, event.type_.clone()?))).collect();
        for reason in ["DrainStarted", "DrainComplete"] {
            ensure!(reasons.iter().any(|(found, kind)| found == reason && kind == "Normal"), "{reasons:?}");
        }
        Ok(())
    })
    .await
    .map(drop)
}
