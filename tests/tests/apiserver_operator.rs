//! I/O: tier 1: the built operator against a real etcd and API server, with exactly the rights that `deploy/` gives it. No node exists; the test
//! speaks for the daemons, with their rights.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sriov_crds::node_state::VfGroup;
use sriov_crds::{
    NetworkAttachmentDefinition, SriovNetwork, SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkNodeStateSpec, SriovOperatorConfig, keys,
};
use sriov_tests::apiserver::{ApiServer, Operator, User, eventually};
use tokio::sync::Mutex;

/// The operator's namespace.
const NAMESPACE: &str = "sriov-network-operator";
/// "At once", on a machine that is busy with other tests. Nothing that polls or resyncs would be this fast.
const PROMPTLY: Duration = Duration::from_secs(3);
/// For what is not asked to be fast.
const SOON: Duration = Duration::from_secs(30);

/// One API server at a time: it is the largest process of the tests.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn api_server() -> Result<ApiServer> {
    let server = ApiServer::start().await?;
    let mut warnings = server.install_crds().await?;
    warnings.extend(server.install_deploy().await?);
    ensure!(warnings.is_empty(), "the API server warns: {warnings:#?}");
    Ok(server)
}

/// Nothing that a test does before this can be seen as slow: the operator's watches run.
async fn working_operator(server: &ApiServer, name: &str, environment: &[(&str, &str)]) -> Result<Operator> {
    let operator = server.operator(name, environment)?;
    eventually(SOON, "the operator leads", async || {
        ensure!(operator.log().contains("this process is the leader"), "{}", operator.log());
        Ok(())
    })
    .await?;
    Ok(operator)
}

struct Cluster {
    admin: Client,
    nodes: Api<Node>,
    states: Api<SriovNetworkNodeState>,
    policies: Api<SriovNetworkNodePolicy>,
    daemon: Api<SriovNetworkNodeState>,
}

impl Cluster {
    async fn of(server: &ApiServer) -> Result<Self> {
        let admin = server.client(User::Admin).await?;
        Ok(Self {
            nodes: Api::all(admin.clone()),
            states: Api::namespaced(admin.clone(), NAMESPACE),
            policies: Api::namespaced(admin.clone(), NAMESPACE),
            daemon: Api::namespaced(server.client(User::Daemon).await?, NAMESPACE),
            admin,
        })
    }

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
        let status = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": node },
            "status": { "interfaces": [pf("0000:01:00.0", "enp1s0"), pf("0000:02:00.0", "enp2s0")], "syncStatus": "Succeeded" },
        });
        self.daemon.patch_status(node, &PatchParams::apply("daemon").force(), &Patch::Apply(status)).await?;
        Ok(())
    }

    async fn policy(&self, name: &str, spec: Value) -> Result<()> {
        let mut whole = json!({ "resourceName": name, "nodeSelector": {}, "numVfs": 4 });
        whole.as_object_mut().context("an object")?.extend(spec.as_object().context("an object")?.clone());
        let object =
            json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy", "metadata": { "name": name }, "spec": whole });
        self.policies.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
        Ok(())
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

async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

fn expect_ready(conditions: &[Condition], status: &str, reason: &str) -> Result<()> {
    let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no Ready condition")?;
    ensure!(ready.status == status && ready.reason == reason, "Ready is {} {}: {}", ready.status, ready.reason, ready.message);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn node_states_follow_labels_reports_and_policies() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = api_server().await?;
    let cluster = Cluster::of(&server).await?;
    for node in ["node1", "node2"] {
        cluster.create_node(node).await?;
    }
    let operator = working_operator(&server, "first", &[]).await?;
    operator.explain(labels_decide(&cluster).await)?;
    operator.explain(policies_merge(&cluster).await)?;
    operator.explain(a_malformed_policy_stops_nobody(&cluster).await)?;
    operator.explain(edits_are_undone_and_deleted_policies_leave(&cluster).await)?;
    operator.explain(a_node_that_left_is_kept_for_a_while(&cluster).await)?;
    operator.check_rights()?;
    operator.stop().await?;

    let operator = working_operator(&server, "second", &[("STALE_NODE_STATE_CLEANUP_DELAY_MINUTES", "0")]).await?;
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

struct Networks {
    server: ApiServer,
    admin: Client,
}

impl Networks {
    fn networks(&self, namespace: &str) -> Api<SriovNetwork> {
        Api::namespaced(self.admin.clone(), namespace)
    }

    fn nads(&self, namespace: &str) -> Api<NetworkAttachmentDefinition> {
        Api::namespaced(self.admin.clone(), namespace)
    }

    async fn namespace(&self, name: &str) -> Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        Api::<Namespace>::all(self.admin.clone()).create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        Ok(())
    }

    async fn apply(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetwork", "metadata": { "name": name }, "spec": spec });
        self.networks(namespace).patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    async fn expect_ready(&self, namespace: &str, name: &str, status: &str, reason: &str) -> Result<()> {
        eventually(PROMPTLY, reason, async || {
            let network = self.networks(namespace).get(name).await?;
            expect_ready(&network.status.context("no status")?.conditions, status, reason)
        })
        .await?;
        Ok(())
    }

    /// Waits until the NAD's configuration has this value at a JSON pointer; answers the NAD.
    async fn expect_nad(&self, namespace: &str, name: &str, pointer: &str, value: Value) -> Result<NetworkAttachmentDefinition> {
        let config = |nad: &NetworkAttachmentDefinition| -> Result<Value> { Ok(serde_json::from_str(nad.spec.config.as_deref().unwrap_or("null"))?) };
        eventually(PROMPTLY, &format!("NAD {namespace}/{name} has {pointer} {value}"), async || {
            let found = config(&self.nads(namespace).get(name).await?)?;
            ensure!(found.pointer(pointer) == Some(&value), "{found}");
            Ok(())
        })
        .await?;
        Ok(self.nads(namespace).get(name).await?)
    }

    async fn expect_no_nad(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(PROMPTLY, "the NAD goes", async || {
            ensure!(self.nads(namespace).get_opt(name).await?.is_none(), "NAD {namespace}/{name} is still there");
            Ok(())
        })
        .await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn network_attachment_definitions_follow_networks() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = api_server().await?;
    let admin = server.client(User::Admin).await?;
    let operator = working_operator(&server, "operator", &[]).await?;
    let networks = Networks { server, admin };
    networks.namespace("apps").await?;
    operator.explain(a_nad_is_rendered_and_kept_right(&networks).await)?;
    operator.explain(a_foreign_nad_is_left_alone(&networks).await)?;
    operator.explain(a_nad_follows_its_namespace(&networks).await)?;
    operator.check_rights()?;
    drop(networks.server);
    Ok(())
}

async fn a_nad_is_rendered_and_kept_right(networks: &Networks) -> Result<()> {
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 100, "ipam": r#"{"type":"host-local","subnet":"10.1.0.0/24"}"# })).await?;
    let nad = networks.expect_nad("apps", "blue", "/vlan", json!(100)).await?;
    networks.expect_ready("apps", "blue", "True", "NetworkReady").await?;
    ensure!(nad.annotations().get(keys::NAD_RESOURCE_NAME).map(String::as_str) == Some("openshift.io/nics"), "{:?}", nad.metadata);
    ensure!(nad.owner_references().iter().any(|o| o.kind == "SriovNetwork" && o.name == "blue"), "{:?}", nad.metadata);
    let config = nad.spec.config.unwrap_or_default();
    ensure!(
        config.starts_with("{\n    \"cniVersion\": \"1.0.0\",\n    \"name\": \"blue\",\n    \"type\": \"sriov\",\n    \"vlan\": 100,"),
        "{config}"
    );

    let nads = networks.nads("apps");
    merge(&nads, "blue", json!({ "metadata": { "annotations": { "someone": "else" } } })).await?;
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 200 })).await?;
    let nad = networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    ensure!(nad.annotations().get("someone").is_some(), "another's annotation was removed");
    merge(&nads, "blue", json!({ "spec": { "config": "{}" } })).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    nads.delete("blue", &DeleteParams::default()).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;

    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 300, "ipam": "{'type'}" })).await?;
    networks.expect_ready("apps", "blue", "False", "NetworkAttachmentDefinitionInvalid").await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(200)).await?;
    networks.apply("apps", "blue", json!({ "resourceName": "nics", "vlan": 300 })).await?;
    networks.expect_nad("apps", "blue", "/vlan", json!(300)).await?;
    networks.expect_ready("apps", "blue", "True", "NetworkReady").await
}

async fn a_foreign_nad_is_left_alone(networks: &Networks) -> Result<()> {
    let nads = networks.nads("apps");
    let mine = r#"{"cniVersion":"1.0.0","type":"bridge"}"#;
    let object = json!({ "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": { "name": "mine" }, "spec": { "config": mine } });
    nads.patch("mine", &PatchParams::apply("user"), &Patch::Apply(object)).await?;
    networks.apply("apps", "mine", json!({ "resourceName": "nics" })).await?;
    networks.expect_ready("apps", "mine", "False", "NetworkAttachmentDefinitionNotFound").await?;
    ensure!(nads.get("mine").await?.spec.config.as_deref() == Some(mine), "a foreign NAD was overwritten");
    networks.networks("apps").delete("mine", &DeleteParams::default()).await?;
    networks.apply("apps", "mine", json!({ "resourceName": "nics" })).await?;
    networks.expect_ready("apps", "mine", "False", "NetworkAttachmentDefinitionNotFound").await?;
    ensure!(nads.get_opt("mine").await?.is_some(), "a foreign NAD was deleted");
    nads.delete("mine", &DeleteParams::default()).await?;
    networks.expect_nad("apps", "mine", "/type", json!("sriov")).await?;
    networks.expect_ready("apps", "mine", "True", "NetworkReady").await
}

async fn a_nad_follows_its_namespace(networks: &Networks) -> Result<()> {
    networks.apply("apps", "astray", json!({ "resourceName": "nics", "networkNamespace": "default" })).await?;
    networks.expect_ready("apps", "astray", "False", "NetworkAttachmentDefinitionInvalid").await?;
    networks.expect_no_nad("default", "astray").await?;

    networks.apply(NAMESPACE, "shared", json!({ "resourceName": "nics", "networkNamespace": "later" })).await?;
    networks.expect_ready(NAMESPACE, "shared", "False", "NamespaceNotFound").await?;
    networks.namespace("later").await?;
    networks.expect_nad("later", "shared", "/type", json!("sriov")).await?;
    networks.expect_ready(NAMESPACE, "shared", "True", "NetworkReady").await?;
    networks.apply(NAMESPACE, "shared", json!({ "resourceName": "nics", "networkNamespace": "apps" })).await?;
    networks.expect_nad("apps", "shared", "/type", json!("sriov")).await?;
    networks.expect_no_nad("later", "shared").await?;
    networks.networks(NAMESPACE).delete("shared", &DeleteParams::default()).await?;
    networks.expect_no_nad("apps", "shared").await?;
    eventually(PROMPTLY, "the network goes", async || {
        ensure!(networks.networks(NAMESPACE).get_opt("shared").await?.is_none(), "its finalizer is still there");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_daemon_set_follows_the_configuration_under_one_leader() -> Result<()> {
    let _alone = ALONE.lock().await;
    let server = api_server().await?;
    let admin = server.client(User::Admin).await?;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(admin.clone(), NAMESPACE);
    let configs: Api<SriovOperatorConfig> = Api::namespaced(admin.clone(), NAMESPACE);
    let first = working_operator(&server, "first", &[]).await?;
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
    let server = api_server().await?;
    let cluster = Cluster::of(&server).await?;
    let client = server.client(User::Daemon).await?;
    let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": "node1" } });
    cluster.states.patch("node1", &PatchParams::apply("operator"), &Patch::Apply(object)).await?;
    cluster.report("node1", 1500).await?;
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
    drop(cluster.admin);
    Ok(())
}
