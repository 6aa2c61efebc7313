//! I/O: what a judgement needs of the cluster, read when it is needed: nothing is kept in memory between two writes of a policy, and nothing is
//! stale. Long lists are read in pages and reduced page by page, so that memory does not follow the number of nodes' VFs.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node as KubeNode};
use kube::api::{Api, ListParams, ObjectMeta};
use kube::core::{DeserializeGuard, PartialObjectMeta, Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use sriov_crds::node_state::SYNC_IN_PROGRESS;
use sriov_crds::resolve::Policy;
use sriov_crds::{
    NetworkAttachmentDefinition, SriovNamespaceRule, SriovNamespaceRuleSpec, SriovNetworkNodePolicy, SriovNetworkNodeState, SriovNetworkPoolConfig,
    SriovOperatorConfig, keys,
};

use super::pods::{Attached, NetworkName, SWITCHES_FILE, Switches};
use super::policy::Models;
use super::policy::forecast::Node;
use crate::context::Context;
use crate::node_policy::validate;
use crate::operator_config::gates;

/// Objects a page.
const PAGE: u32 = 500;
/// ConfigMap by which users of the field's network-resources-injector switch parts of it.
pub(crate) const CONTROL_SWITCHES: &str = "nri-control-switches";
/// On a NAD: label of the nodes that have the network (network-resources-injector).
const NAD_NODE_SELECTOR: &str = "k8s.v1.cni.cncf.io/nodeSelector";

/// Everything about policies and the nodes that they are for.
pub(super) struct Census {
    /// Policies that can be carried out, as they are stored.
    pub policies: Vec<Policy>,
    /// Managed nodes.
    pub nodes: Vec<Node>,
    /// The operator configuration's `disableDrain`.
    pub drain_disabled: bool,
    /// Whether daemons make the bridges that policies name.
    pub manages_bridges: bool,
}

async fn pages<K>(api: &Api<K>, params: ListParams, mut each: impl FnMut(K)) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = params.limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

fn namespaced<K>(context: &Context) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(context.client.clone(), &context.settings.namespace)
}

/// The stored policies that can be carried out, but for the legacy one.
pub(super) async fn policies(context: &Context) -> kube::Result<Vec<Policy>> {
    let mut policies = vec![];
    let api: Api<DeserializeGuard<SriovNetworkNodePolicy>> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    pages(&api, ListParams::default(), |object| {
        if object.name_any() != keys::LEGACY_DEFAULT_POLICY && object.meta().deletion_timestamp.is_none() {
            policies.extend(validate::policy(&object).ok());
        }
    })
    .await?;
    Ok(policies)
}

/// Extended resources that our policies define, with their prefix.
pub(super) async fn resources(context: &Context) -> kube::Result<BTreeSet<String>> {
    let prefix = &context.settings.resource_prefix;
    Ok(policies(context).await?.into_iter().map(|policy| format!("{prefix}/{}", policy.spec.resource_name)).collect())
}

/// The managed nodes by name, without what their daemons say.
async fn managed(context: &Context, config: Option<&SriovOperatorConfig>) -> kube::Result<BTreeMap<String, Node>> {
    let selector = validate::node_selector(config.map(|config| &config.spec.config_daemon_node_selector));
    let labels: Vec<_> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let api = Api::<KubeNode>::all(context.client.clone());
    let mut params = ListParams::default().labels(&labels.join(",")).limit(PAGE);
    loop {
        let page = api.list_metadata(&params).await?;
        for node in page.items {
            let name = node.name_any();
            nodes.insert(name.clone(), Node { name, labels: node.metadata.labels.unwrap_or_default(), ..Node::default() });
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(nodes),
        }
    }
}

/// The managed nodes, of which only the labels are known.
pub(super) async fn labels(context: &Context) -> kube::Result<Vec<Node>> {
    let config = namespaced::<SriovOperatorConfig>(context).get_opt(keys::DEFAULT_CONFIG).await?;
    Ok(managed(context, config.as_ref()).await?.into_values().collect())
}

/// The stored pools but the one of this name. One that cannot be read selects nobody.
pub(super) async fn pools(context: &Context, but: &str) -> kube::Result<Vec<SriovNetworkPoolConfig>> {
    let mut pools = vec![];
    let api: Api<DeserializeGuard<SriovNetworkPoolConfig>> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    pages(&api, ListParams::default(), |pool| pools.extend(pool.0.ok().filter(|pool| pool.name_any() != but))).await?;
    Ok(pools)
}

pub(super) async fn take(context: &Context) -> kube::Result<Census> {
    let config = namespaced::<SriovOperatorConfig>(context).get_opt(keys::DEFAULT_CONFIG).await?;
    let mut nodes = managed(context, config.as_ref()).await?;
    let states: Api<DeserializeGuard<SriovNetworkNodeState>> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    pages(&states, ListParams::default(), |state| {
        let Some(node) = nodes.get_mut(&state.name_any()) else { return };
        let Some(said) = state.0.ok().and_then(|state| state.status).filter(validate::was_reported) else { return };
        node.iommu_inactive = said.system.is_some_and(|system| system.iommu.as_deref() == Some("inactive"));
        let mut pfs = said.interfaces;
        for pf in &mut pfs {
            pf.vfs = vec![];
        }
        node.pfs = Some(pfs);
    })
    .await?;
    Ok(Census {
        policies: policies(context).await?,
        nodes: nodes.into_values().collect(),
        drain_disabled: config.as_ref().is_some_and(|config| config.spec.disable_drain),
        manages_bridges: config.is_some_and(|config| gates::is_on(&config.spec.feature_gates, gates::BRIDGES)),
    })
}

/// The models that may be named; `None` when the list is not there.
pub(super) async fn models(context: &Context) -> kube::Result<Option<Models>> {
    let list = namespaced::<ConfigMap>(context).get_opt(keys::SUPPORTED_NIC_IDS).await?;
    Ok(list.map(|list| Models::of(&list.data.unwrap_or_default())))
}

/// What the ConfigMap of the field's injector says; the defaults when there is none.
pub(super) async fn switches(context: &Context) -> kube::Result<Switches> {
    let there = namespaced::<ConfigMap>(context).get_opt(CONTROL_SWITCHES).await?;
    Ok(there.and_then(|map| map.data?.remove(SWITCHES_FILE)).map_or_else(Switches::default, |text| Switches::read(&text)))
}

/// The first node, by name, whose state says that it is being configured.
pub(super) async fn node_in_progress(context: &Context) -> kube::Result<Option<String>> {
    let mut found: Option<String> = None;
    let states: Api<DeserializeGuard<SriovNetworkNodeState>> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    pages(&states, ListParams::default(), |state| {
        let name = state.name_any();
        let busy = state.0.is_ok_and(|state| state.status.is_some_and(|status| status.sync_status.as_deref() == Some(SYNC_IN_PROGRESS)));
        if busy && found.as_ref().is_none_or(|found| name < *found) {
            found = Some(name);
        }
    })
    .await?;
    Ok(found)
}

/// What a pod's network says; `None` when there is no such NAD.
pub(super) async fn nad(context: &Context, network: &NetworkName) -> kube::Result<Option<Attached>> {
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(context.client.clone(), &network.namespace);
    let there: Option<PartialObjectMeta<_>> = api.get_metadata_opt(&network.name).await?;
    Ok(there.map(|nad| {
        let text = |key: &str| nad.annotations().get(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        Attached { resource: text(keys::NAD_RESOURCE_NAME), node_selector: text(NAD_NODE_SELECTOR) }
    }))
}

/// The rules that select a namespace, by name. A rule whose selector cannot be read selects every namespace, so that it is never lost.
pub(super) async fn rules(context: &Context, namespace: &str) -> kube::Result<Vec<(String, SriovNamespaceRuleSpec)>> {
    let rules = Api::<SriovNamespaceRule>::all(context.client.clone()).list(&ListParams::default()).await?;
    if rules.items.is_empty() {
        return Ok(vec![]);
    }
    let there = Api::<Namespace>::all(context.client.clone()).get_metadata_opt(namespace).await?;
    let metadata: ObjectMeta = there.map(|namespace| namespace.metadata).unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let selects =
        |rule: &SriovNamespaceRule| Selector::try_from(rule.spec.namespace_selector.clone()).map_or(true, |selector| selector.matches(&labels));
    Ok(rules.items.into_iter().filter(selects).map(|rule| (rule.name_any(), rule.spec)).collect())
}
