//! I/O: tier 1: the operator configuration and the node DaemonSet, and what a daemon may do, against a real etcd and API server with exactly the rights
//! that `deploy/` gives.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use sriov_crds::{SriovNetworkNodePolicy, keys};
use sriov_tests::apiserver::cluster::{Cluster, NAMESPACE, SOON, expect_ready, leader, merge};
use sriov_tests::apiserver::{ApiServer, User, eventually};
use tokio::sync::Mutex;

/// "At once", on a machine that is busy with other tests. Nothing that polls or resyncs would be this fast.
const PROMPTLY: Duration = Duration::from_secs(3);

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn the_node_daemon_set_follows_the_configuration_under_one_leader() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let Cluster { admin, configs, .. } = Cluster::install(&server).await?;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(admin, NAMESPACE);
    let first = leader(&server, "first", &[]).await?;
    let selector = async |expected: &[(&str, &str)]| {
        eventually(PROMPTLY, "the DaemonSet has the selector", async || {
            let pod = daemon_sets.get(keys::NODE_DAEMON_SET).await?.spec.template.spec.context("no pod")?;
            let expected: BTreeMap<_, _> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            ensure!(pod.node_selector.as_ref() == Some(&expected), "{:?}", pod.node_selector);
            Ok(())
        })
        .await
    };
    let default = [(keys::CAPABLE_LABEL, "true"), (keys::OS_LABEL, "linux")];
    selector(&default).await?;
    let daemon_set = daemon_sets.get(keys::NODE_DAEMON_SET).await?;
    ensure!(daemon_set.owner_references().is_empty(), "it would go with its owner");
    let image = daemon_set.spec.template.spec.context("no pod")?.containers[0].image.clone();
    ensure!(image.as_deref() == Some("localhost/sriov-node:test"), "{image:?}");
    eventually(PROMPTLY, "the configuration is ready", async || {
        expect_ready(&configs.get("default").await?.status.context("no status")?.conditions, "True", "OperatorConfigReady")
    })
    .await?;

    // As the DaemonSet controller would say it.
    let rolling = json!({ "status": { "observedGeneration": 9, "desiredNumberScheduled": 3, "updatedNumberScheduled": 1,
        "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3 } });
    daemon_sets.patch_status(keys::NODE_DAEMON_SET, &PatchParams::default(), &Patch::Merge(rolling)).await?;
    eventually(PROMPTLY, "the configuration tells the rollout", async || {
        let conditions = configs.get("default").await?.status.context("no status")?.conditions;
        let told = conditions.iter().find(|c| c.type_ == "Progressing").context("no Progressing")?;
        ensure!(told.status == "True" && told.message.starts_with("1 of 3 nodes"), "{told:?}");
        Ok(())
    })
    .await?;

    let second = server.operator("second", &[])?;
    merge(&configs, "default", json!({ "spec": { "configDaemonNodeSelector": { "rack": "7" } } })).await?;
    selector(&[("rack", "7")]).await?;
    merge(&daemon_sets, keys::NODE_DAEMON_SET, json!({ "spec": { "template": { "spec": { "hostNetwork": false } } } })).await?;
    eventually(PROMPTLY, "an edit is undone", async || {
        let pod = daemon_sets.get(keys::NODE_DAEMON_SET).await?.spec.template.spec.context("no pod")?;
        ensure!(pod.host_network == Some(true), "{:?}", pod.host_network);
        Ok(())
    })
    .await?;
    daemon_sets.delete(keys::NODE_DAEMON_SET, &DeleteParams::background()).await?;
    selector(&[("rack", "7")]).await?;
    ensure!(!second.log().contains("this process is the leader"), "two leaders");

    first.check_rights()?;
    first.stop().await?;
    let took = eventually(SOON, "the other takes over", async || {
        ensure!(second.log().contains("this process is the leader"), "not yet");
        Ok(())
    })
    .await?;
    eprintln!("stop of the leader -> next leader: {} ms", took.as_millis());
    configs.delete("default", &DeleteParams::default()).await?;
    selector(&default).await?;
    second.check_rights()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_may_do_its_work_and_nothing_else() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    let client = server.client(User::Daemon).await?;
    let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": "node1" } });
    cluster.states.patch("node1", &PatchParams::apply("operator"), &Patch::Apply(object)).await?;
    cluster.report("node1").await?;
    merge(&cluster.daemon, "node1", json!({ "metadata": { "annotations": { keys::DESIRED_STATE: "Idle" } } })).await?;
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let nics = config_maps.get(keys::SUPPORTED_NIC_IDS).await?.data.unwrap_or_default();
    ensure!(nics.len() == 48, "{} supported NICs", nics.len());
    let is_id = |word: &str| word.len() == 4 && word.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(nics.values().all(|v| v.split(' ').count() == 3 && v.split(' ').all(is_id)), "{nics:?}");

    let refused = |result: Result<(), kube::Error>, what: &str| match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        other => Err(anyhow::anyhow!("the daemon could {what}: {other:?}")),
    };
    refused(Api::<Node>::all(client.clone()).list(&ListParams::default()).await.map(drop), "list nodes")?;
    refused(config_maps.list(&ListParams::default()).await.map(drop), "list config maps")?;
    refused(cluster.daemon.delete("node1", &DeleteParams::default()).await.map(drop), "delete a node state")?;
    let policies: Api<SriovNetworkNodePolicy> = Api::namespaced(client, NAMESPACE);
    refused(policies.list(&ListParams::default()).await.map(drop), "list policies")?;
    Ok(())
}
