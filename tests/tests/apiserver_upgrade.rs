//! I/O: tier 1: what the Go operator left behind, taken over by ours, and what deletions mean afterwards: nothing that pods use is destroyed, and nothing
//! hangs. Fixtures are `testdata/go_operator`, and the objects below in the form in which the Go operator writes them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sriov_crds::{NetworkAttachmentDefinition, SriovNetwork, keys};
use sriov_tests::apiserver::cluster::{Cluster, NAMESPACE, SOON, apply, leader, merge};
use sriov_tests::apiserver::{ApiServer, Operator, User, eventually, workspace};
use sriov_tests::lab::artifacts::Artifacts;
use tempfile::TempDir;

/// DaemonSets that the Go operator makes.
const PARTS: [&str; 2] = ["operator-webhook", "network-resources-injector"];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_go_operator_left_is_taken_over_and_nothing_hangs() -> Result<()> {
    let server = ApiServer::start().await?;
    let cluster = Cluster::install(&server).await?;
    let owner = leave_behind(&cluster).await?;
    let operator = leader(&server, "ours", &[]).await?;
    operator.explain(its_daemon_sets_go_and_ours_takes_its_name(&cluster).await)?;
    operator.explain(its_node_state_stays_and_is_nobodys(&cluster).await)?;
    operator.explain(its_nad_is_kept_right(&cluster).await)?;
    operator.explain(its_finalizers_hold_nothing(&cluster).await)?;
    operator.explain(without_a_configuration_everything_stays(&cluster, &owner).await)?;
    operator.explain(what_it_rendered_leaves_with_its_cause(&cluster).await)?;
    operator.check_rights()?;
    operator.stop().await?;
    a_network_that_went_while_no_operator_ran(&server, &cluster).await?.check_rights()
}

fn daemon_set(name: &str, owner: &Value, containers: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": name, "ownerReferences": owner },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name, "component": "network" } }, "spec": { "hostPID": true, "containers": containers } },
        },
    })
}

/// Answers the owner reference that the Go operator gives to what it makes.
async fn leave_behind(cluster: &Cluster) -> Result<Value> {
    merge(&cluster.configs, "default", json!({ "metadata": { "finalizers": [keys::CONFIG_FINALIZER] } })).await?;
    let config = cluster.configs.get("default").await?;
    let owner = json!([{ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovOperatorConfig", "name": "default",
        "uid": config.uid().context("uid")?, "controller": true, "blockOwnerDeletion": true }]);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let go = json!([{ "name": "c", "image": "registry.example/go:1" }]);
    for name in PARTS {
        daemon_sets.create(&PostParams::default(), &serde_json::from_value(daemon_set(name, &owner, &go))?).await?;
    }
    for name in [keys::NODE_DAEMON_SET, keys::PLUGIN_DAEMON_SET] {
        let container = json!([{ "name": name, "image": "registry.example/go:1" }]);
        daemon_sets.create(&PostParams::default(), &serde_json::from_value(daemon_set(name, &owner, &container))?).await?;
    }
    // Of the same name as a part, but a user's.
    daemon_sets.create(&PostParams::default(), &serde_json::from_value(daemon_set("sriov-network-metrics-exporter", &Value::Null, &go))?).await?;
    cluster.pool("old", json!({ "nodeSelector": { "matchLabels": { "old": "pool" } } })).await?;
    cluster.pool("offload", json!({ "ovsHardwareOffloadConfig": { "name": "worker" } })).await?;
    for pool in ["old", "offload"] {
        merge(&cluster.pools, pool, json!({ "metadata": { "finalizers": [keys::POOL_FINALIZER] } })).await?;
    }
    cluster.create_node("worker-0").await?;
    // As the Go operator rendered it: no revision, its own field manager, and an owner that takes it along.
    let group = json!({ "resourceName": "nics", "deviceType": "netdevice", "vfRange": "0-3", "policyName": "nics" });
    let state = json!({
        "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState",
        "metadata": { "name": "worker-0", "ownerReferences": owner, "annotations": { keys::DESIRED_STATE: "Idle", keys::CURRENT_STATE: "Idle" } },
        "spec": {
            "interfaces": [{ "pciAddress": "0000:01:00.0", "name": "eth0", "numVfs": 4, "vfGroups": [group] }],
            "bridges": { "ovs": [{ "name": "br-0000_01_00.0", "bridge": {}, "uplinks": [{ "pciAddress": "0000:01:00.0", "name": "eth0", "interface": {} }] }] },
            "system": { "rdmaMode": "exclusive" },
        },
    });
    cluster.states.create(&PostParams::default(), &serde_json::from_value(state)?).await?;
    cluster.report("worker-0").await?;
    cluster.policy("nics", json!({ "nicSelector": { "pfNames": ["eth0"] } })).await?;
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "default");
    let config = "{\n    \"cniVersion\": \"1.0.0\",\n    \"name\": \"shared\",\n    \"type\": \"sriov\",\n    \"vlan\": 5,\n    \"vlanQoS\": 0,\n    \"logLevel\": \"info\",\n    \"ipam\": {}\n}";
    let nad = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": "shared", "annotations": {
            keys::NAD_RESOURCE_NAME: "openshift.io/nics", "someone": "else",
            keys::NAD_OWNER_REF: format!("SriovNetwork.sriovnetwork.openshift.io/{NAMESPACE}/shared") } },
        "spec": { "config": config },
    });
    nads.create(&PostParams::default(), &serde_json::from_value(nad)?).await?;
    let networks: Api<SriovNetwork> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    apply(&networks, "SriovNetwork", "shared", json!({ "resourceName": "nics", "networkNamespace": "default", "vlan": 5 })).await?;
    let marks = json!({ "finalizers": [keys::NETWORK_FINALIZER], "annotations": { keys::LAST_NETWORK_NAMESPACE: "default" } });
    merge(&networks, "shared", json!({ "metadata": marks })).await?;
    Ok(owner)
}

async fn its_daemon_sets_go_and_ours_takes_its_name(cluster: &Cluster) -> Result<()> {
    let daemon_sets: Api<DaemonSet> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    eventually(SOON, "its parts go", async || {
        for name in PARTS {
            ensure!(daemon_sets.get_opt(name).await?.is_none(), "{name} is still there");
        }
        let ours = daemon_sets.get(keys::NODE_DAEMON_SET).await?;
        let pod = ours.spec.template.spec.clone().context("no pod")?;
        let containers: Vec<_> = pod.containers.iter().map(|c| c.name.as_str()).collect();
        ensure!(containers == ["config-daemon"] && pod.host_pid.is_none(), "{containers:?} {:?}", pod.host_pid);
        let plugin = daemon_sets.get(keys::PLUGIN_DAEMON_SET).await?;
        let name = plugin.spec.template.spec.as_ref().context("no pod")?.containers[0].name.as_str();
        ensure!(name == "device-plugin", "the Go operator's plugin is still there");
        ensure!([ours, plugin].iter().all(|set| set.owner_references().is_empty()), "it would go with the configuration");
        Ok(())
    })
    .await?;
    ensure!(daemon_sets.get_opt("sriov-network-metrics-exporter").await?.is_some(), "a user's DaemonSet was deleted");
    Ok(())
}

async fn its_node_state_stays_and_is_nobodys(cluster: &Cluster) -> Result<()> {
    cluster.expect_groups(&["worker-0"], SOON, &[("eth0", "0-3", "nics")]).await?;
    eventually(SOON, "the node state has no owner", async || {
        let state = cluster.states.get("worker-0").await?;
        ensure!(state.owner_references().is_empty(), "{:?}", state.owner_references());
        Ok(())
    })
    .await
    .map(drop)
}

async fn its_nad_is_kept_right(cluster: &Cluster) -> Result<()> {
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "default");
    eventually(SOON, "the NAD is marked as ours", async || {
        let nad = nads.get("shared").await?;
        ensure!(nad.labels().get(keys::MANAGED_BY).is_some_and(|by| by == keys::FIELD_MANAGER), "{:?}", nad.metadata);
        ensure!(nad.annotations().get("someone").is_some(), "another's annotation went");
        let config: Value = serde_json::from_str(nad.spec.config.as_deref().unwrap_or_default())?;
        ensure!(config["vlan"] == 5, "{config}");
        Ok(())
    })
    .await
    .map(drop)
}

async fn its_finalizers_hold_nothing(cluster: &Cluster) -> Result<()> {
    eventually(SOON, "its finalizers are off, also without a deletion", async || {
        ensure!(cluster.configs.get("default").await?.finalizers().is_empty(), "the configuration's");
        for pool in ["old", "offload"] {
            ensure!(cluster.pools.get(pool).await?.finalizers().is_empty(), "{pool}'s");
        }
        Ok(())
    })
    .await?;
    // One that comes back with a restored backup and is deleted at once.
    merge(&cluster.pools, "old", json!({ "metadata": { "finalizers": [keys::POOL_FINALIZER] } })).await?;
    cluster.pools.delete("old", &DeleteParams::default()).await?;
    eventually(SOON, "the pool goes", async || {
        ensure!(cluster.pools.get_opt("old").await?.is_none(), "it hangs");
        Ok(())
    })
    .await
    .map(drop)
}

/// B24 and B29 of the field: node states, daemons and so all VFs went with the configuration.
async fn without_a_configuration_everything_stays(cluster: &Cluster, owner: &Value) -> Result<()> {
    let daemon_sets: Api<DaemonSet> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let before = daemon_sets.get(keys::NODE_DAEMON_SET).await?.uid();
    // The Go operator once more, between two looks of ours.
    merge(&cluster.states, "worker-0", json!({ "metadata": { "ownerReferences": owner } })).await?;
    cluster.configs.delete("default", &DeleteParams::default()).await?;
    eventually(SOON, "the configuration goes and nothing has it as its owner", async || {
        ensure!(cluster.configs.get_opt("default").await?.is_none(), "it hangs");
        let (state, daemon_set) = (cluster.states.get("worker-0").await?, daemon_sets.get(keys::NODE_DAEMON_SET).await?);
        ensure!(state.owner_references().is_empty() && daemon_set.owner_references().is_empty(), "garbage collection would take it");
        ensure!(daemon_set.uid() == before, "the daemons were made anew");
        Ok(())
    })
    .await?;
    cluster.expect_groups(&["worker-0"], SOON, &[("eth0", "0-3", "nics")]).await
}

/// The Go operator is a field manager of its own: what it rendered, and ours renders the same, has two owners, and does not go by not being said again.
async fn what_it_rendered_leaves_with_its_cause(cluster: &Cluster) -> Result<()> {
    let spec = cluster.states.get("worker-0").await?.spec;
    let mode = spec.system.and_then(|system| system.rdma_mode).unwrap_or_default();
    ensure!(spec.bridges.is_none_or(|bridges| bridges.ovs.is_empty()), "a bridge without the feature gate");
    ensure!(mode.is_empty(), "an RDMA mode {mode:?} that no pool asks for");
    cluster.policies.delete("nics", &DeleteParams::default()).await?;
    cluster.expect_groups(&["worker-0"], SOON, &[]).await
}

async fn a_network_that_went_while_no_operator_ran(server: &ApiServer, cluster: &Cluster) -> Result<Operator> {
    let networks: Api<SriovNetwork> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let nads: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.admin.clone(), "default");
    // As somebody does whose deletion hangs because nobody answers.
    merge(&networks, "shared", json!({ "metadata": { "finalizers": null } })).await?;
    networks.delete("shared", &DeleteParams::default()).await?;
    // The same without our label is not ours to delete.
    let other = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": "other", "annotations": { keys::NAD_OWNER_REF: format!("SriovNetwork.sriovnetwork.openshift.io/{NAMESPACE}/other") } },
        "spec": { "config": "{}" },
    });
    nads.patch("other", &PatchParams::apply("user"), &Patch::Apply(other)).await?;
    ensure!(nads.get_opt("shared").await?.is_some(), "nobody was there to delete it");
    let operator = leader(server, "again", &[]).await?;
    let gone = eventually(SOON, "the NAD without a network goes", async || {
        ensure!(nads.get_opt("shared").await?.is_none(), "still there");
        Ok(())
    });
    operator.explain(gone.await)?;
    ensure!(nads.get_opt("other").await?.is_some(), "a NAD without our label was deleted");
    Ok(operator)
}

/// Roles are the chart's: what a newer chart does not give any more is taken away by its upgrade, whole roles and single rules, and so is what a value switched on.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_the_new_chart_does_not_give_is_gone_after_the_upgrade() -> Result<()> {
    let server = ApiServer::start().await?;
    let folder = TempDir::new()?;
    let (old, new) = (folder.path().join("old"), workspace().join("deploy/chart"));
    // `crds` is a link.
    run(Command::new("cp").arg("-rL").args([&new, &old]))?;
    give_more(&old.join("templates/operator-rights.yaml"))?;

    let helm = |chart: &Path, values: &str| -> Result<()> {
        let mut command = Command::new(Artifacts::load()?.program("helm")?);
        // No Job runs here.
        command.args([
            "upgrade",
            "--install",
            "sriov-network-operator",
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--no-hooks",
            "--set",
            values,
        ]);
        command.arg(chart).env("KUBECONFIG", server.kubeconfig(User::Admin));
        run(command.envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, folder.path()))))
    };
    let admin = server.client(User::Admin).await?;
    let (roles, cluster_roles) = (Api::<Role>::namespaced(admin.clone(), NAMESPACE), Api::<ClusterRole>::all(admin.clone()));
    let bindings = Api::<ClusterRoleBinding>::all(admin);
    let gone = ["sriov-network-left", "sriov-node-detector"];
    let reads_secrets = async || -> Result<bool> {
        let kept = roles.get("sriov-network-operator").await?.rules.unwrap_or_default();
        Ok(kept.iter().any(|rule| rule.verbs == ["list"] && rule.resources.as_ref().is_some_and(|resources| *resources == ["secrets"])))
    };

    helm(&old, "nodeDetector.enabled=true")?;
    for name in gone {
        cluster_roles.get(name).await?;
    }
    bindings.get("sriov-node-detector").await?;
    ensure!(reads_secrets().await?, "the old chart gives it");

    helm(&new, "nodeDetector.enabled=false")?;
    for name in gone {
        ensure!(cluster_roles.get_opt(name).await?.is_none(), "ClusterRole {name} is still there");
    }
    ensure!(bindings.get_opt("sriov-node-detector").await?.is_none(), "its binding is still there");
    ensure!(!reads_secrets().await?, "the right to read all secrets is still there");
    cluster_roles.get("sriov-network-operator").await?;
    Ok(())
}

/// Makes an older chart: one that gave a role more, and a rule more of one that there is still.
fn give_more(template: &Path) -> Result<()> {
    let text = fs::read_to_string(template)?;
    let (before, after) = text.split_once("rules:\n").context("no role")?;
    let rule = "- apiGroups: [\"\"]\n  resources: [secrets]\n  verbs: [list]\n";
    let another = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: sriov-network-left\nrules:\n";
    Ok(fs::write(template, format!("{before}rules:\n{rule}{after}---\n{another}{rule}"))?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
