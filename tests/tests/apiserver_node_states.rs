//! I/O: tier 1: policies and labels become node states, by the built operator against a real etcd and API server. No node exists; the test speaks
//! for the daemons, with their rights.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use serde_json::json;
use sriov_crds::node_state::VfGroup;
use sriov_crds::{SriovNetworkNodeStateSpec, keys};
use sriov_tests::apiserver::cluster::{self, SOON, apply, expect_ready, leader, merge};
use sriov_tests::apiserver::{ApiServer, eventually};

/// "At once", on a machine that is busy with other tests. Nothing that polls or resyncs would be this fast.
const PROMPTLY: Duration = Duration::from_secs(3);
/// From a node's label to its state.
const A_SECOND: Duration = Duration::from_secs(1);

/// The shared verbs, and those of nodes with the PFs `enp1s0` and `enp2s0`.
struct Cluster(cluster::Cluster);

impl Deref for Cluster {
    type Target = cluster::Cluster;

    fn deref(&self) -> &cluster::Cluster {
        &self.0
    }
}

impl Cluster {
    async fn create_node(&self, name: &str) -> Result<()> {
        let labels = BTreeMap::from([(keys::OS_LABEL.to_owned(), "linux".to_owned())]);
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
        self.nodes.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await?;
        Ok(())
    }

    async fn label(&self, node: &str, capable: Option<&str>) -> Result<()> {
        merge(&self.nodes, node, json!({ "metadata": { "labels": { keys::CAPABLE_LABEL: capable } } })).await
    }

    /// What the daemon of a node with two PFs writes, with the daemon's rights.
    async fn report(&self, node: &str, mtu: u32) -> Result<()> {
        let pf = |address: &str, name: &str| json!({ "pciAddress": address, "name": name, "vendor": "8086", "deviceID": "10c9", "totalvfs": 7, "mtu": mtu, "altNames": [format!("{name}alt")] });
        self.status(node, json!({ "interfaces": [pf("0000:01:00.0", "enp1s0"), pf("0000:02:00.0", "enp2s0")], "syncStatus": "Succeeded" })).await
    }

    /// Waits until the groups of a node's first PFs are these: PF name, VF range and policy, strongest first.
    async fn expect_groups(&self, node: &str, what: &str, expected: &[(&str, &str, &str)]) -> Result<Duration> {
        eventually(PROMPTLY, what, async || {
            let state = self.states.get(node).await?;
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let of = |name: String, group: &VfGroup| (name, text(&group.vf_range), text(&group.policy_name));
            let groups: Vec<_> =
                state.spec.interfaces.iter().flat_map(|i| i.vf_groups.iter().map(|g| of(i.name.clone().unwrap_or_default(), g))).collect();
            let expected: Vec<_> = expected.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect();
            ensure!(groups == expected, "{node} has {groups:?}, expected {expected:?}");
            ensure!(state.spec.policy_revision.is_some(), "no policyRevision");
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_states_follow_labels_reports_and_policies() -> Result<()> {
    let server = ApiServer::start().await?;
    let cluster = Cluster(cluster::Cluster::install(&server).await?);
    for node in ["node1", "node2"] {
        cluster.create_node(node).await?;
    }
    let operator = leader(&server, "first", &[]).await?;
    operator.explain(labels_decide(&cluster).await)?;
    operator.explain(a_node_has_its_state_within_a_second_of_its_label(&cluster).await)?;
    operator.explain(policies_merge(&cluster).await)?;
    operator.explain(a_malformed_policy_stops_nobody(&cluster).await)?;
    operator.explain(bridges_follow_the_feature_gate(&cluster).await)?;
    operator.explain(edits_are_undone_and_deleted_policies_leave(&cluster).await)?;
    operator.explain(a_node_that_left_is_kept_for_a_while(&cluster).await)?;
    operator.check_rights()?;
    operator.stop().await?;

    let operator = leader(&server, "second", &[("STALE_NODE_STATE_CLEANUP_DELAY_MINUTES", "0")]).await?;
    cluster.label("node2", None).await?;
    let gone = async || {
        ensure!(cluster.states.get_opt("node2").await?.is_none(), "the state of node2 is still there");
        Ok(())
    };
    eventually(SOON, "a delay of 0 deletes at once", gone).await?;
    operator.check_rights()
}

async fn labels_decide(cluster: &Cluster) -> Result<()> {
    cluster.label("node1", Some("true")).await?;
    let took = eventually(PROMPTLY, "a labelled node has a state", async || {
        let state = cluster.states.get("node1").await?;
        ensure!(state.spec.policy_revision.is_none() && state.spec.interfaces.is_empty(), "rendered before the daemon reported");
        Ok(())
    })
    .await?;
    eprintln!("label -> node state: {} ms", took.as_millis());
    ensure!(cluster.states.get_opt("node2").await?.is_none(), "a node without label has a state");
    cluster.report("node1", 1500).await?;
    let took = cluster.expect_groups("node1", "a reported node without policies is rendered empty", &[]).await?;
    eprintln!("first report -> rendered: {} ms", took.as_millis());
    Ok(())
}

/// The median of some, because the machine may be busy with other tests; nothing that polls would have it.
async fn a_node_has_its_state_within_a_second_of_its_label(cluster: &Cluster) -> Result<()> {
    let mut times = vec![];
    for number in 0..5 {
        let name = format!("late{number}");
        cluster.create_node(&name).await?;
        let labelled = Instant::now();
        cluster.label(&name, Some("true")).await?;
        cluster.expect_state(&name).await?;
        times.push(labelled.elapsed());
        cluster.nodes.delete(&name, &DeleteParams::default()).await?;
        cluster.states.delete(&name, &DeleteParams::default()).await?;
    }
    times.sort();
    ensure!(times[times.len() / 2] < A_SECOND, "from a label to a node state: {times:?}");
    Ok(())
}

async fn policies_merge(cluster: &Cluster) -> Result<()> {
    cluster.policy("weak", json!({ "nicSelector": { "pfNames": ["enp1s0#0-3"] }, "numVfs": 6, "priority": 90 })).await?;
    let took = cluster.expect_groups("node1", "a policy is rendered", &[("enp1s0", "0-3", "weak")]).await?;
    eprintln!("policy -> rendered: {} ms", took.as_millis());
    cluster
        .policy("strong", json!({ "nicSelector": { "pfNames": ["enp1s0alt#4-5"] }, "numVfs": 6, "priority": 10, "deviceType": "vfio-pci" }))
        .await?;
    let both = [("enp1s0", "4-5", "strong"), ("enp1s0", "0-3", "weak")];
    cluster.expect_groups("node1", "disjoint ranges share a PF", &both).await?;
    cluster
        .policy("strong", json!({ "nicSelector": { "pfNames": ["enp1s0alt#3-5"] }, "numVfs": 6, "priority": 10, "deviceType": "vfio-pci" }))
        .await?;
    cluster.expect_groups("node1", "the stronger of two overlapping policies wins", &[("enp1s0", "3-5", "strong")]).await?;
    cluster.policy("strong", json!({ "nicSelector": { "pfNames": ["enp1s0alt#4-5"] }, "numVfs": 6, "priority": 10 })).await?;
    cluster.expect_groups("node1", "and the weaker is back when they do not overlap", &both).await?;
    // A second node is configured as soon as it reports, without any other event.
    cluster.label("node2", Some("true")).await?;
    eventually(PROMPTLY, "a second node has a state", async || {
        cluster.states.get("node2").await?;
        Ok(())
    })
    .await?;
    cluster.report("node2", 1500).await?;
    cluster.expect_groups("node2", "a new node is configured at once", &both).await?;
    let generation = cluster.states.get("node2").await?.metadata.generation;
    cluster.report("node2", 9000).await?;
    cluster.label("node2", Some("true")).await?;
    cluster.policy("other", json!({ "nodeSelector": { "no": "node" }, "nicSelector": { "vendor": "8086" } })).await?;
    eventually(PROMPTLY, "the unrelated policy was seen", async || {
        let status = cluster.policies.get("other").await?.status.context("no status")?;
        expect_ready(&status.conditions, "True", "Accepted")
    })
    .await?;
    ensure!(cluster.states.get("node2").await?.metadata.generation == generation, "a spec was written although nothing changed");
    Ok(())
}

async fn a_malformed_policy_stops_nobody(cluster: &Cluster) -> Result<()> {
    // Malformed in a way that the API server's rules let through.
    cluster.policy("bad", json!({ "nicSelector": { "pfNames": ["enp2s0"] }, "numVfs": 70_000 })).await?;
    eventually(PROMPTLY, "a malformed policy says so", async || {
        let status = cluster.policies.get("bad").await?.status.context("no status")?;
        expect_ready(&status.conditions, "False", "InvalidPolicy")
    })
    .await?;
    cluster.policy("more", json!({ "nicSelector": { "pfNames": ["enp2s0"] }, "numVfs": 2, "nodeSelector": { keys::CAPABLE_LABEL: "true" } })).await?;
    let expected = [("enp1s0", "4-5", "strong"), ("enp1s0", "0-3", "weak"), ("enp2s0", "0-1", "more")];
    for node in ["node1", "node2"] {
        cluster.expect_groups(node, "others are rendered beside a malformed policy", &expected).await?;
    }
    // One that is in use and becomes malformed keeps its VFs.
    cluster
        .policy("more", json!({ "nicSelector": { "pfNames": ["enp2s0"] }, "numVfs": 70_000, "nodeSelector": { keys::CAPABLE_LABEL: "true" } }))
        .await?;
    eventually(PROMPTLY, "it says so", async || {
        let status = cluster.policies.get("more").await?.status.context("no status")?;
        expect_ready(&status.conditions, "False", "InvalidPolicy")
    })
    .await?;
    cluster.expect_groups("node1", "its VFs stay", &expected).await?;
    for name in ["bad", "more"] {
        cluster.policies.delete(name, &DeleteParams::default()).await?;
    }
    cluster.expect_groups("node2", "deleted, it leaves", &expected[..2]).await?;
    Ok(())
}

async fn bridges_follow_the_feature_gate(cluster: &Cluster) -> Result<()> {
    let ovs = json!({ "ovs": { "bridge": { "failMode": "secure" }, "uplink": { "interface": { "externalIDs": { "a": "b" } } } } });
    let spec = json!({ "nicSelector": { "pfNames": ["enp2s0"] }, "numVfs": 2, "mtu": 9000, "eSwitchMode": "switchdev", "bridge": ovs });
    cluster.policy("bridged", spec).await?;
    let degraded = async |status: &str, reason: &str| {
        let found = cluster.policies.get("bridged").await?.status.context("no status")?.conditions;
        let found = found.iter().find(|condition| condition.type_ == "Degraded").context("no condition")?;
        ensure!(found.status == status && found.reason == reason, "{} {}: {}", found.status, found.reason, found.message);
        Ok(())
    };
    eventually(PROMPTLY, "with the gate off the policy says what is not done", async || degraded("True", "BridgeIgnored").await).await?;
    let bridges = async |expected: &[&str]| {
        let spec = cluster.states.get("node1").await?.spec;
        ensure!(spec.interfaces.iter().any(|pf| pf.name.as_deref() == Some("enp2s0")), "its VFs are not there");
        let found: Vec<_> = spec.bridges.iter().flat_map(|bridges| &bridges.ovs).map(|bridge| bridge.name.as_str()).collect();
        ensure!(found == expected, "{found:?}");
        Ok(())
    };
    eventually(PROMPTLY, "and it has its VFs without a bridge", async || bridges(&[]).await).await?;
    let gate =
        async |on: bool| apply(&cluster.configs, "SriovOperatorConfig", "default", json!({ "featureGates": { "manageSoftwareBridges": on } })).await;
    gate(true).await?;
    eventually(PROMPTLY, "with the gate on it has its bridge", async || bridges(&["br-0000_02_00.0"]).await).await?;
    let bridge = cluster.states.get("node1").await?.spec.bridges.context("bridges")?.ovs.remove(0);
    let uplink = bridge.uplinks[0].interface.clone().context("interface")?;
    ensure!(uplink.mtu_request == Some(9000) && uplink.external_ids.contains_key("a"), "{bridge:?}");
    eventually(PROMPTLY, "and the policy says no more", async || degraded("False", "Configured").await).await?;
    gate(false).await?;
    eventually(PROMPTLY, "with the gate off it goes", async || bridges(&[]).await).await?;
    cluster.policies.delete("bridged", &DeleteParams::default()).await?;
    cluster.configs.delete("default", &DeleteParams::default()).await?;
    let expected = [("enp1s0", "4-5", "strong"), ("enp1s0", "0-3", "weak")];
    cluster.expect_groups("node1", "deleted, it leaves", &expected).await.map(drop)
}

async fn edits_are_undone_and_deleted_policies_leave(cluster: &Cluster) -> Result<()> {
    let both = [("enp1s0", "4-5", "strong"), ("enp1s0", "0-3", "weak")];
    merge(&cluster.states, "node1", json!({ "spec": { "interfaces": [] } })).await?;
    cluster.expect_groups("node1", "a hand-edited spec is rendered again", &both).await?;
    cluster.states.delete("node1", &DeleteParams::default()).await?;
    eventually(PROMPTLY, "a deleted state is made anew, not rendered", async || {
        let state = cluster.states.get("node1").await?;
        ensure!(state.metadata.deletion_timestamp.is_none() && state.spec == SriovNetworkNodeStateSpec::default(), "{:?}", state.spec);
        Ok(())
    })
    .await?;
    cluster.report("node1", 1500).await?;
    cluster.expect_groups("node1", "and rendered when the daemon reported", &both).await?;
    for name in ["weak", "strong", "other"] {
        cluster.policies.delete(name, &DeleteParams::default()).await?;
    }
    for node in ["node1", "node2"] {
        cluster.expect_groups(node, "the interfaces leave with their policies", &[]).await?;
    }
    Ok(())
}

async fn a_node_that_left_is_kept_for_a_while(cluster: &Cluster) -> Result<()> {
    let until = async |node: &str| Ok::<_, anyhow::Error>(cluster.states.get(node).await?.annotations().get(keys::KEEP_STATE_UNTIL).cloned());
    cluster.label("node2", None).await?;
    eventually(PROMPTLY, "a node that left is marked", async || {
        until("node2").await?.context("no annotation")?;
        Ok(())
    })
    .await?;
    cluster.label("node2", Some("true")).await?;
    eventually(PROMPTLY, "a node that came back is not", async || {
        ensure!(until("node2").await?.is_none(), "still marked");
        Ok(())
    })
    .await?;
    cluster.nodes.delete("node1", &DeleteParams::default()).await?;
    eventually(PROMPTLY, "a deleted node is marked", async || {
        until("node1").await?.context("no annotation")?;
        Ok(())
    })
    .await?;
    Ok(())
}
