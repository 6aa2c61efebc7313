//! I/O: one judgement for each path: reads what is needed (`census`), lets the pure rooms decide, puts the answer together.
//!
//! Invariant: a policy is never refused because the cluster could not be looked at, or because its nodes are not there yet; a NAD and a pod are
//! left to the failure policy of their webhook then.

use std::time::Duration;

use kube::core::DeserializeGuard;
use sriov_crds::{SriovNetworkNodePolicy, SriovNetworkPoolConfig, SriovNetworkPoolConfigSpec, SriovNetworkSpec, SriovOperatorConfigSpec};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::policy::{self, conflicts, forecast};
use super::review::{Answer, Request};
use super::{census, pods, rules, settings};
use crate::context::Context;
use crate::network;
use crate::operator_config::gates;

/// A look at the whole cluster may take this long, within the time that the API server gives.
const CENSUS: Duration = Duration::from_secs(6);
/// How many look at the whole cluster at a time, which bounds memory.
static LOOKS: Semaphore = Semaphore::const_new(2);

/// Nothing can be said.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unjudged {
    /// The API server did not say what was asked of it.
    #[error("failed to read what is needed for a judgement: {0}")]
    Read(#[from] kube::Error),
}

/// Policies: what was left out.
pub(super) fn fill_in(request: &Request) -> Answer {
    Answer { patch: policy::defaults(&request.object), ..Answer::allow() }
}

/// Our kinds.
pub(super) async fn ours(context: &Context, request: &Request) -> Result<Answer, Unjudged> {
    // Labels, finalizers and statuses of what is stored are nobody's business, also when the rules became stricter.
    if request.operation == "DELETE" || request.leaves_spec() {
        return Ok(Answer::allow());
    }
    match request.kind.kind.as_str() {
        "SriovNetworkNodePolicy" => Ok(self::policy(context, request).await),
        "SriovOperatorConfig" => config(context, request).await,
        "SriovNetworkPoolConfig" => Ok(pool(context, request).await),
        "SriovNetwork" | "SriovIBNetwork" | "OVSNetwork" => network(context, request).await,
        _ => Ok(Answer::allow()),
    }
}

async fn policy(context: &Context, request: &Request) -> Answer {
    let operator_namespace = &context.settings.namespace;
    if policy::is_legacy_default(&request.name, &request.namespace, operator_namespace) {
        return Answer::allow();
    }
    let object: DeserializeGuard<SriovNetworkNodePolicy> = match request.object() {
        Ok(object) => object,
        Err(why) => return Answer::refuse(why),
    };
    let models = match census::models(context).await {
        Ok(models) if !context.settings.admission.dev_mode => models,
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%error, "the list of supported NICs could not be read; every model passes");
            None
        }
    };
    let policy = match policy::check(&object, models.as_ref()) {
        Ok(policy) => policy,
        Err(refused) => return Answer::refuse(refused.to_string()),
    };
    let mut warnings = policy::remarks(&policy, &request.namespace, operator_namespace);
    if request.namespace != *operator_namespace {
        return Answer { warnings, ..Answer::allow() };
    }
    match look(context).await {
        Ok(census) => {
            let others: Vec<_> = census.policies.iter().filter(|other| other.name != policy.name).cloned().collect();
            let refusal = conflicts::first(&policy, &others, &census.nodes);
            if !census.manages_bridges && policy.spec.bridge.as_ref().is_some_and(|bridge| bridge.ovs.is_some()) {
                warnings.push(gates::BRIDGE_IGNORED.to_owned());
            }
            if refusal.is_none() {
                warnings.extend(forecast::warnings(&policy, &census.policies, &census.nodes, census.drain_disabled));
            }
            Answer { refusal, warnings, ..Answer::allow() }
        }
        Err(why) => {
            warnings.push(format!("not known what this policy will do, and whether it agrees with others: {why}"));
            Answer { warnings, ..Answer::allow() }
        }
    }
}

async fn look(context: &Context) -> Result<census::Census, String> {
    let look = async {
        let _slot = LOOKS.acquire().await;
        census::take(context).await
    };
    match timeout(CENSUS, look).await {
        Ok(census) => census.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the cluster could not be looked at within {} s", CENSUS.as_secs())),
    }
}

async fn config(context: &Context, request: &Request) -> Result<Answer, Unjudged> {
    if let Some(why) = settings::misplaced_config(&request.name, &request.namespace, &context.settings.namespace) {
        return Ok(Answer::refuse(why));
    }
    let spec: SriovOperatorConfigSpec = match serde_json::from_value(request.object["spec"].clone()) {
        Ok(spec) => spec,
        Err(error) => return Ok(Answer::refuse(format!("spec could not be read: {error}"))),
    };
    let old: Option<SriovOperatorConfigSpec> = serde_json::from_value(request.old_object["spec"].clone()).ok();
    if settings::switches_drain_off(&spec, old.as_ref())
        && let Some(node) = census::node_in_progress(context).await?
    {
        return Ok(Answer::refuse(format!(
            "disableDrain cannot be set while node {node} is being configured: wait until its node state is no longer InProgress"
        )));
    }
    Ok(Answer { warnings: settings::config_remarks(&spec), ..Answer::allow() })
}

async fn pool(context: &Context, request: &Request) -> Answer {
    let spec: SriovNetworkPoolConfigSpec = match serde_json::from_value(request.object["spec"].clone()) {
        Ok(spec) => spec,
        Err(error) => return Answer::refuse(format!("spec could not be read: {error}")),
    };
    if let Err(why) = settings::pool(&spec) {
        return Answer::refuse(why);
    }
    let mut warnings = settings::pool_remarks(&spec);
    if request.namespace != context.settings.namespace {
        warnings.push(format!("only pools of namespace {} count", context.settings.namespace));
        return Answer { warnings, ..Answer::allow() };
    }
    let look = async { Ok::<_, kube::Error>((census::pools(context, &request.name).await?, census::labels(context).await?)) };
    match timeout(CENSUS, look).await {
        Ok(Ok((others, nodes))) => {
            let refusal = settings::overlap(&SriovNetworkPoolConfig::new(&request.name, spec), &others, &nodes);
            Answer { refusal, warnings, ..Answer::allow() }
        }
        // As of policies: what could not be looked at refuses nothing, and the pool's condition says it later.
        Ok(Err(error)) => Answer { warnings: [warnings, vec![format!("not known whether pools overlap: {error}")]].concat(), ..Answer::allow() },
        Err(_) => Answer {
            warnings: [warnings, vec!["not known whether pools overlap: the nodes could not be listed in time".to_owned()]].concat(),
            ..Answer::allow()
        },
    }
}

async fn network(context: &Context, request: &Request) -> Result<Answer, Unjudged> {
    let preview = match network::preview(&request.kind.kind, &request.object, &context.settings) {
        Ok(preview) => preview,
        Err(why) => return Ok(Answer::refuse(why)),
    };
    if request.kind.kind == "SriovNetwork"
        && let Ok(spec) = serde_json::from_value::<SriovNetworkSpec>(request.object["spec"].clone())
        && let Err(why) = settings::rates(&spec)
    {
        return Ok(Answer::refuse(why));
    }
    // The namespace of the NAD counts, which is where pods use it.
    held_by_rules(context, &preview.namespace, &preview.config).await
}

/// A NetworkAttachmentDefinition, whoever writes it.
pub(super) async fn nad(context: &Context, request: &Request) -> Result<Answer, Unjudged> {
    if request.operation == "DELETE" || request.leaves_spec() {
        return Ok(Answer::allow());
    }
    let config = request.object.pointer("/spec/config").and_then(serde_json::Value::as_str).unwrap_or_default();
    held_by_rules(context, &request.namespace, config).await
}

async fn held_by_rules(context: &Context, namespace: &str, config: &str) -> Result<Answer, Unjudged> {
    let rules = census::rules(context, namespace).await?;
    Ok(match rules::check(config, &rules) {
        Ok(()) => Answer::allow(),
        Err(why) => Answer::refuse(format!("not allowed in namespace {namespace}: {why}")),
    })
}

/// A pod that names networks.
pub(super) async fn pod(context: &Context, request: &Request) -> Result<Answer, Unjudged> {
    let networks = match pods::networks(&request.object, &request.namespace) {
        Ok(networks) => networks,
        Err(why) => return Ok(Answer::refuse(why)),
    };
    let mut attached = vec![];
    for name in &networks {
        // A pod cannot be changed later, so it would never get what the network needs.
        let Some(nad) = census::nad(context, name).await? else {
            let pods::NetworkName { namespace, name } = name;
            return Ok(Answer::refuse(format!(
                "network {name} is not there: create NetworkAttachmentDefinition {name} in namespace {namespace} first"
            )));
        };
        attached.push(nad);
    }
    let claims = request.object.pointer("/spec/resourceClaims").and_then(serde_json::Value::as_array);
    // Only then it matters which resources are ours.
    let ours = if claims.is_some_and(|claims| !claims.is_empty()) { census::resources(context).await? } else { std::collections::BTreeSet::new() };
    let switches = census::switches(context).await?;
    let pods::Injection { patch, warnings } = pods::inject(&request.object, &attached, &ours, &switches);
    Ok(Answer { warnings, patch, ..Answer::allow() })
}
