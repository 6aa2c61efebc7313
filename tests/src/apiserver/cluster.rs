//! I/O: verbs on the objects of a cluster that consists of an API server only: nodes, what their daemons say (with the daemons' rights), policies, pools.
//! What does not live here: what a test expects of the operator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkPoolConfig, SriovOperatorConfig, keys};

use super::{ApiServer, Operator, User, eventually};

/// The operator's namespace.
pub const NAMESPACE: &str = "sriov-network-operator";
/// Long enough for a busy machine, short enough to fail.
pub const SOON: Duration = Duration::from_secs(30);

/// The objects of a cluster, as its administrator.
pub struct Cluster {
    /// The administrator.
    pub admin: Client,
    /// All nodes.
    pub nodes: Api<Node>,
    /// Node states.
    pub states: Api<SriovNetworkNodeState>,
    /// Policies.
    pub policies: Api<SriovNetworkNodePolicy>,
    /// Pools.
    pub pools: Api<SriovNetworkPoolConfig>,
    /// Operator configurations.
    pub configs: Api<SriovOperatorConfig>,
    /// Node states, as the daemons.
    pub daemon: Api<SriovNetworkNodeState>,
}

impl Cluster {
    /// Installs our kinds and `deploy/`, of which nothing runs.
    pub async fn install(server: &ApiServer) -> Result<Self> {
        let mut warnings = server.install_crds().await?;
        warnings.extend(server.install_deploy().await?);
        ensure!(warnings.is_empty(), "the API server warns: {warnings:#?}");
        let admin = server.client(User::Admin).await?;
        Ok(Self {
            nodes: Api::all(admin.clone()),
            states: Api::namespaced(admin.clone(), NAMESPACE),
            policies: Api::namespaced(admin.clone(), NAMESPACE),
            pools: Api::namespaced(admin.clone(), NAMESPACE),
            configs: Api::namespaced(admin.clone(), NAMESPACE),
            daemon: Api::namespaced(server.client(User::Daemon).await?, NAMESPACE),
            admin,
        })
    }

    /// Makes a node that is managed.
    pub async fn create_node(&self, name: &str) -> Result<()> {
        let labels = json!({ keys::OS_LABEL: "linux", keys::CAPABLE_LABEL: "true" });
        self.nodes.create(&PostParams::default(), &serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?).await?;
        Ok(())
    }

    /// Makes a namespace.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        Api::<Namespace>::all(self.admin.clone()).create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        Ok(())
    }

    /// Waits until the node has a state.
    pub async fn expect_state(&self, node: &str) -> Result<()> {
        eventually(SOON, &format!("{node} has a state"), async || Ok(self.states.get(node).await.map(drop)?)).await.map(drop)
    }

    /// A daemon says that its node has the PFs `eth0` and `eth1`, and is as asked.
    pub async fn report(&self, node: &str) -> Result<()> {
        let pf = |address: &str, name: &str| json!({ "pciAddress": address, "name": name, "vendor": "8086", "deviceID": "10c9", "totalvfs": 7 });
        self.status(node, json!({ "interfaces": [pf("0000:01:00.0", "eth0"), pf("0000:02:00.0", "eth1")], "syncStatus": "Succeeded" })).await
    }

    /// What a daemon says, with its rights.
    pub async fn status(&self, node: &str, status: Value) -> Result<()> {
        let object =
            json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": { "name": node }, "status": status });
        self.daemon.patch_status(node, &PatchParams::apply("daemon").force(), &Patch::Apply(object)).await?;
        Ok(())
    }

    /// Writes a policy for all nodes; `spec` is put over the least one.
    pub async fn policy(&self, name: &str, spec: Value) -> Result<()> {
        let mut whole = json!({ "resourceName": name, "nodeSelector": {}, "numVfs": 4 });
        whole.as_object_mut().context("an object")?.extend(spec.as_object().context("an object")?.clone());
        apply(&self.policies, "SriovNetworkNodePolicy", name, whole).await
    }

    /// Writes a pool.
    pub async fn pool(&self, name: &str, spec: Value) -> Result<()> {
        apply(&self.pools, "SriovNetworkPoolConfig", name, spec).await
    }

    /// A daemon asks for a drain, or says that it needs none any more.
    pub async fn ask(&self, node: &str, desired: &str) -> Result<()> {
        merge(&self.daemon, node, json!({ "metadata": { "annotations": { keys::DESIRED_STATE: desired } } })).await
    }

    /// Waits until each of the nodes' states has exactly these groups: PF, VF range, policy.
    pub async fn expect_groups(&self, nodes: &[&str], limit: Duration, expected: &[(&str, &str, &str)]) -> Result<()> {
        eventually(limit, &format!("{} nodes have {expected:?}", nodes.len()), async || {
            for node in nodes {
                let state = self.states.get(node).await?;
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                let pfs = state.spec.interfaces.iter();
                let groups: Vec<_> =
                    pfs.flat_map(|pf| pf.vf_groups.iter().map(|g| (text(&pf.name), text(&g.vf_range), text(&g.policy_name)))).collect();
                let expected: Vec<_> = expected.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect();
                ensure!(groups == expected && state.spec.policy_revision.is_some(), "{node} has {groups:?}");
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Those of the nodes that are drained now.
    pub async fn away(&self, nodes: &[&str]) -> Result<Vec<String>> {
        let mut away = vec![];
        for node in nodes {
            if self.states.get(node).await?.annotations().get(keys::CURRENT_STATE).is_some_and(|state| state == keys::DRAIN_COMPLETE) {
                away.push((*node).to_owned());
            }
        }
        Ok(away)
    }
}

/// Starts an operator and waits until it leads.
pub async fn leader(server: &ApiServer, name: &str, environment: &[(&str, &str)]) -> Result<Operator> {
    let operator = server.operator(name, environment)?;
    eventually(SOON, "the operator leads", async || {
        ensure!(operator.log().contains("this process is the leader"), "{}", operator.log());
        Ok(())
    })
    .await?;
    Ok(operator)
}

/// Server-side apply of one of our objects, as a user.
pub async fn apply<K>(api: &Api<K>, kind: &str, name: &str, spec: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let object = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await?;
    Ok(())
}

/// A merge patch.
pub async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Fails unless the condition `Ready` is this.
pub fn expect_ready(conditions: &[Condition], status: &str, reason: &str) -> Result<()> {
    let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no Ready condition")?;
    ensure!(ready.status == status && ready.reason == reason, "Ready is {} {}: {}", ready.status, ready.reason, ready.message);
    Ok(())
}
