//! I/O: tier 1: drains and pools, by the built operator against a real etcd and API server with exactly the rights that `deploy/` gives. No kubelet
//! runs; the tests speak for the daemons, with their rights, and end pods.

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sriov_crds::keys;
use sriov_tests::apiserver::cluster::{self, merge};
use sriov_tests::apiserver::{ApiServer, Operator, eventually};
use tokio::sync::Mutex;

/// Long enough for a busy machine, short enough to fail.
const SOON: Duration = Duration::from_secs(15);
/// Time in which something that must not happen would have happened.
const A_WHILE: Duration = Duration::from_millis(1500);
/// What the operator is told, so that a test need not wait for minutes.
const DRAIN_TIMEOUT: &str = "4";

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The shared verbs, and those of drains and of pods in the namespace `web`.
struct Cluster {
    shared: cluster::Cluster,
    pods: Api<Pod>,
    budgets: Api<PodDisruptionBudget>,
}

impl Deref for Cluster {
    type Target = cluster::Cluster;

    fn deref(&self) -> &cluster::Cluster {
        &self.shared
    }
}

impl Cluster {
    async fn start(server: &ApiServer) -> Result<Self> {
        let shared = cluster::Cluster::install(server).await?;
        shared.namespace("web").await?;
        let (pods, budgets) = (Api::namespaced(shared.admin.clone(), "web"), Api::namespaced(shared.admin.clone(), "web"));
        Ok(Self { shared, pods, budgets })
    }

    async fn create_nodes(&self, names: &[&str], rack: &str) -> Result<()> {
        for name in names {
            self.create_node(name).await?;
            merge(&self.nodes, name, json!({ "metadata": { "labels": { "rack": rack } } })).await?;
        }
        Ok(())
    }

    async fn current(&self, node: &str) -> Result<String> {
        Ok(self.states.get(node).await?.annotations().get(keys::CURRENT_STATE).cloned().unwrap_or_default())
    }

    async fn expect_current(&self, node: &str, expected: &str) -> Result<()> {
        eventually(SOON, &format!("{node} is {expected}"), async || {
            let current = self.current(node).await?;
            ensure!(current == expected, "{node} is {current}; {:?}", self.drained(node).await?);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Reason and message of the condition `Drained`.
    async fn drained(&self, node: &str) -> Result<Option<(String, String)>> {
        let conditions = self.states.get(node).await?.status.map(|s| s.conditions).unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c.type_ == "Drained").map(|c| (c.reason, c.message)))
    }

    async fn expect_drained(&self, node: &str, reason: &str, text: &str) -> Result<()> {
        eventually(SOON, &format!("{node} says {reason}: {text}"), async || {
            let found = self.drained(node).await?;
            ensure!(found.as_ref().is_some_and(|(r, m)| r == reason && m.contains(text)), "{node} says {found:?}");
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn expect_given_back(&self, node: &str) -> Result<()> {
        self.expect_current(node, keys::IDLE).await?;
        eventually(SOON, "the condition goes with the drain", async || {
            ensure!(self.drained(node).await?.is_none(), "{:?}", self.drained(node).await?);
            ensure!(!self.is_cordoned_by_us(node).await?, "still marked");
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn is_cordoned(&self, node: &str) -> Result<bool> {
        Ok(self.nodes.get(node).await?.spec.unwrap_or_default().unschedulable.unwrap_or(false))
    }

    async fn is_cordoned_by_us(&self, node: &str) -> Result<bool> {
        Ok(self.nodes.get(node).await?.annotations().contains_key(keys::CORDONED))
    }

    /// A running pod on a node; `spec` is put over the least one.
    async fn pod(&self, name: &str, node: &str, resource: Option<&str>, metadata: Value) -> Result<()> {
        let needs = resource.map(|resource| json!({ "requests": { resource: "1" }, "limits": { resource: "1" } }));
        let mut meta = json!({ "name": name, "labels": { "app": name } });
        meta.as_object_mut().context("an object")?.extend(metadata.as_object().context("an object")?.clone());
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            // Without a kubelet only a pod that needs no time to end does end.
            "spec": { "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{ "name": "c", "image": "x", "resources": needs }] },
        });
        self.pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        // A budget does not hold pods that are not ready.
        let running = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
        self.pods.patch_status(name, &PatchParams::default(), &Patch::Merge(running)).await?;
        Ok(())
    }

    async fn has_pod(&self, name: &str) -> Result<bool> {
        Ok(self.pods.get_opt(name).await?.is_some())
    }

    async fn budget(&self, name: &str, allowed: i32) -> Result<()> {
        let object = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": name },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": name } } },
        });
        self.budgets.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(object)).await?;
        let status = json!({ "status": {
            "disruptionsAllowed": allowed, "currentHealthy": 1 + allowed, "desiredHealthy": 1, "expectedPods": 1, "observedGeneration": 1 } });
        self.budgets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    async fn expect_pool(
        &self,
        name: &str,
        what: &str,
        check: impl Fn(&sriov_crds::pool_config::SriovNetworkPoolConfigStatus) -> bool,
    ) -> Result<()> {
        eventually(SOON, what, async || {
            let status = self.pools.get(name).await?.status.context("no status")?;
            ensure!(check(&status), "{status:?}");
            Ok(())
        })
        .await?;
        Ok(())
    }
}

async fn leader(server: &ApiServer, name: &str) -> Result<Operator> {
    cluster::leader(server, name, &[("DRAIN_TIMEOUT_SECONDS", DRAIN_TIMEOUT)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_takes_what_is_in_the_way_and_gives_the_node_back() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::start(&server).await?;
    cluster.create_nodes(&["n1", "n2"], "1").await?;
    let operator = leader(&server, "first").await?;
    for node in ["n1", "n2"] {
        cluster.expect_state(node).await?;
        ensure!(cluster.current(node).await? == keys::IDLE, "a new node state is not idle");
    }
    operator.explain(only_the_named_pods_leave(&cluster).await)?;
    operator.explain(a_users_cordon_stays(&cluster).await)?;
    operator.explain(a_reboot_takes_all_but_daemon_sets(&cluster).await)?;
    operator.explain(a_budget_is_respected_and_the_node_given_back(&cluster).await)?;
    operator.explain(switched_off_nothing_is_evicted(&cluster).await)?;
    operator.explain(an_external_drainers_node_is_untouched(&cluster).await)?;
    operator.check_rights()
}

async fn only_the_named_pods_leave(cluster: &Cluster) -> Result<()> {
    cluster.pod("user", "n1", Some("openshift.io/nics"), json!({})).await?;
    cluster.pod("other", "n1", Some("openshift.io/others"), json!({})).await?;
    cluster.pod("plain", "n1", None, json!({})).await?;
    cluster.pod("elsewhere", "n2", Some("openshift.io/nics"), json!({})).await?;
    cluster
        .status("n1", json!({ "plan": { "disruption": "EvictPods", "evictResources": ["openshift.io/nics"] }, "syncStatus": "InProgress" }))
        .await?;
    cluster.ask("n1", keys::DRAIN_REQUIRED).await?;
    cluster.expect_current("n1", keys::DRAIN_COMPLETE).await?;
    ensure!(cluster.is_cordoned("n1").await? && cluster.is_cordoned_by_us("n1").await?, "not cordoned");
    ensure!(!cluster.has_pod("user").await?, "the user of the VFs is still there");
    for pod in ["other", "plain", "elsewhere"] {
        ensure!(cluster.has_pod(pod).await?, "{pod} was evicted");
    }
    cluster.expect_drained("n1", "DrainComplete", "gone").await?;
    let state = cluster.nodes.get("n1").await?.annotations().get(keys::NODE_DRAIN_STATE).cloned();
    ensure!(state.as_deref() == Some(keys::DRAIN_REQUIRED), "the node says {state:?}");
    cluster.ask("n1", keys::IDLE).await?;
    cluster.expect_given_back("n1").await?;
    ensure!(!cluster.is_cordoned("n1").await?, "still cordoned");
    Ok(())
}

async fn a_users_cordon_stays(cluster: &Cluster) -> Result<()> {
    merge(&cluster.nodes, "n1", json!({ "spec": { "unschedulable": true } })).await?;
    cluster.ask("n1", keys::DRAIN_REQUIRED).await?;
    cluster.expect_current("n1", keys::DRAIN_COMPLETE).await?;
    cluster.ask("n1", keys::IDLE).await?;
    cluster.expect_given_back("n1").await?;
    ensure!(cluster.is_cordoned("n1").await?, "a user's cordon was taken back");
    merge(&cluster.nodes, "n1", json!({ "spec": { "unschedulable": null } })).await
}

async fn a_reboot_takes_all_but_daemon_sets(cluster: &Cluster) -> Result<()> {
    let owner = json!({ "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "1", "controller": true }] });
    cluster.pod("daemon", "n1", None, owner).await?;
    cluster.ask("n1", keys::REBOOT_REQUIRED).await?;
    cluster.expect_current("n1", keys::DRAIN_COMPLETE).await?;
    for pod in ["other", "plain"] {
        ensure!(!cluster.has_pod(pod).await?, "{pod} is still there");
    }
    ensure!(cluster.has_pod("daemon").await?, "a DaemonSet's pod was evicted");
    cluster.ask("n1", keys::IDLE).await?;
    cluster.expect_given_back("n1").await
}

async fn a_budget_is_respected_and_the_node_given_back(cluster: &Cluster) -> Result<()> {
    cluster.pod("frontend", "n1", Some("openshift.io/nics"), json!({})).await?;
    cluster.budget("frontend", 0).await?;
    cluster.ask("n1", keys::DRAIN_REQUIRED).await?;
    cluster.expect_drained("n1", "WaitingForPodDisruptionBudget", "waiting for PDB web/frontend").await?;
    ensure!(cluster.is_cordoned("n1").await?, "not cordoned while it waits");
    cluster.expect_drained("n1", "DrainTimedOut", "waiting for PDB web/frontend").await?;
    ensure!(!cluster.is_cordoned("n1").await?, "a drain that failed left its cordon");
    ensure!(cluster.current("n1").await? == keys::IDLE, "a drain that failed kept its place");
    ensure!(cluster.has_pod("frontend").await?, "a budget was broken");
    // The place is free for another meanwhile, and the node comes again by itself.
    cluster.ask("n2", keys::DRAIN_REQUIRED).await?;
    cluster.expect_current("n2", keys::DRAIN_COMPLETE).await?;
    cluster.ask("n2", keys::IDLE).await?;
    cluster.budget("frontend", 1).await?;
    cluster.expect_current("n1", keys::DRAIN_COMPLETE).await?;
    ensure!(!cluster.has_pod("frontend").await?, "frontend is still there");
    cluster.ask("n1", keys::IDLE).await?;
    cluster.expect_given_back("n1").await
}

async fn switched_off_nothing_is_evicted(cluster: &Cluster) -> Result<()> {
    cluster.pod("stays", "n1", Some("openshift.io/nics"), json!({})).await?;
    merge(&cluster.configs, "default", json!({ "spec": { "disableDrain": true } })).await?;
    // Asked again until the operator has seen the switch: it works from watches.
    tokio::time::sleep(A_WHILE).await;
    cluster.ask("n1", keys::DRAIN_REQUIRED).await?;
    cluster.expect_current("n1", keys::DRAIN_COMPLETE).await?;
    ensure!(cluster.has_pod("stays").await? && !cluster.is_cordoned("n1").await?, "drained although switched off");
    cluster.expect_drained("n1", "DrainComplete", "disableDrain").await?;
    cluster.ask("n1", keys::IDLE).await?;
    cluster.expect_given_back("n1").await?;
    merge(&cluster.configs, "default", json!({ "spec": { "disableDrain": false } })).await
}

async fn an_external_drainers_node_is_untouched(cluster: &Cluster) -> Result<()> {
    merge(&cluster.states, "n1", json!({ "metadata": { "annotations": { keys::USE_EXTERNAL_DRAINER: "true" } } })).await?;
    cluster.ask("n1", keys::DRAIN_REQUIRED).await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(cluster.current("n1").await? == keys::IDLE && !cluster.is_cordoned("n1").await? && cluster.has_pod("stays").await?, "touched");
    ensure!(cluster.drained("n1").await?.is_none(), "{:?}", cluster.drained("n1").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_bound_how_many_nodes_are_away_across_a_hand_over() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::start(&server).await?;
    cluster.create_nodes(&["a1", "a2", "a3", "a4"], "a").await?;
    let rack = |rack: &str| json!({ "matchLabels": { "rack": rack } });
    cluster.pool("a", json!({ "nodeSelector": rack("a"), "maxUnavailable": "50%" })).await?;
    let first = leader(&server, "first").await?;
    for node in ["a1", "a2", "a3", "a4"] {
        cluster.expect_state(node).await?;
        cluster.ask(node, keys::DRAIN_REQUIRED).await?;
    }
    let away = async || {
        let mut away = vec![];
        for node in ["a1", "a2", "a3", "a4"] {
            if cluster.current(node).await? == keys::DRAIN_COMPLETE {
                away.push(node);
            }
        }
        Ok::<_, anyhow::Error>(away)
    };
    let expect_away = async |count: usize| {
        eventually(SOON, &format!("{count} nodes are away"), async || {
            ensure!(away().await?.len() == count, "{:?}", away().await?);
            Ok(())
        })
        .await
    };
    first.explain(expect_away(2).await)?;
    let gone = away().await?;
    let waiting = ["a1", "a2", "a3", "a4"].into_iter().find(|node| !gone.contains(node)).context("one waits")?;
    cluster.expect_drained(waiting, "WaitingForPool", "at most 2").await?;
    cluster.expect_pool("a", "the pool counts", |s| (s.nodes, s.allowed, s.draining, s.waiting) == (4, Some(2), 2, 2)).await?;
    first.check_rights()?;
    first.stop().await?;

    let second = leader(&server, "second").await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(away().await? == gone, "the next leader did not know who is away");
    cluster.ask(gone[0], keys::IDLE).await?;
    second.explain(cluster.expect_given_back(gone[0]).await)?;
    second.explain(expect_away(2).await)?;

    // A pool that selects them too stops what has not begun.
    cluster.pool("b", json!({ "nodeSelector": rack("a") })).await?;
    cluster.expect_pool("b", "it says that it overlaps", |s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "PoolsOverlap")).await?;
    cluster.ask(gone[0], keys::DRAIN_REQUIRED).await?;
    second.explain(cluster.expect_drained(gone[0], "PoolsOverlap", "a, b").await)?;
    cluster.pools.delete("b", &DeleteParams::default()).await?;
    cluster.expect_drained(gone[0], "WaitingForPool", "at most 2").await?;

    // A failed node stops the others, where the pool says so.
    let stopping = json!({ "nodeSelector": rack("a"), "maxUnavailable": 4, "rollout": { "stopOnFailure": true } });
    let failed = away().await?[0];
    cluster.status(failed, json!({ "syncStatus": "Failed", "lastSyncError": "no" })).await?;
    tokio::time::sleep(A_WHILE).await;
    cluster.pool("a", stopping).await?;
    second.explain(cluster.expect_drained(gone[0], "PoolStopped", failed).await)?;
    cluster.status(failed, json!({ "syncStatus": "Succeeded" })).await?;
    second.explain(expect_away(4).await)?;
    second.check_rights()
}
