//! I/O: the webhook configurations in the cluster: there while they are switched on and there is a certificate, with the bundle of now; gone
//! otherwise. Also the condition of the rules of namespaces, which are held only while the webhook is on.
//!
//! Invariant: a configuration never names a bundle that the server's certificate does not chain to.

use std::fmt;

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, ResourceExt};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sriov_crds::conditions::{self, Outcome, namespace_rule as reason};
use sriov_crds::{SriovNamespaceRule, SriovOperatorConfig, keys};

use super::certificates;
use super::configurations::{self, INJECTOR_CONFIGURATION, OPERATOR_CONFIGURATION, Target, Trust, Wanted};
use crate::cache::{Cache, Change, Key};
use crate::context::{Context, Settings};
use crate::operator_config::gates;
use crate::queue::{self, Next, Queue};
use crate::resources::{self, RequestFailed, answered};

/// The one thing that is reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Everything;

impl fmt::Display for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("webhook configurations")
    }
}

#[derive(Default)]
struct Caches {
    configs: Cache<DeserializeGuard<SriovOperatorConfig>>,
    secrets: Cache<Secret>,
    rules: Cache<DeserializeGuard<SriovNamespaceRule>>,
    mutating: Cache<PartialObjectMeta<MutatingWebhookConfiguration>>,
    injector: Cache<PartialObjectMeta<MutatingWebhookConfiguration>>,
    validating: Cache<PartialObjectMeta<ValidatingWebhookConfiguration>>,
}

/// Runs the controller; ends only by being dropped.
pub async fn run(context: &Context) {
    let caches = Caches::default();
    let (queue, requests) = queue::new();
    // Without any object there is no event either.
    queue.add(Everything);
    let reconcile_all = async {
        caches.configs.ready().await;
        caches.secrets.ready().await;
        caches.rules.ready().await;
        caches.mutating.ready().await;
        caches.injector.ready().await;
        caches.validating.ready().await;
        requests.serve(1, |_| reconcile(context, &caches)).await;
    };
    futures::join!(watch_inputs(context, &caches, &queue), watch_outputs(context, &caches, &queue), reconcile_all);
}

fn only(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

async fn watch_inputs(context: &Context, caches: &Caches, queue: &Queue<Everything>) {
    let (client, namespace) = (&context.client, &context.settings.namespace);
    let configs = caches.configs.watch(Api::namespaced(client.clone(), namespace), only(keys::DEFAULT_CONFIG), |change| {
        queue_if(queue, spec_changed(&change));
    });
    let secret = only(&context.settings.admission.secret);
    let secrets = caches.secrets.watch(Api::namespaced(client.clone(), namespace), secret, |_| queue.add(Everything));
    let rules = caches.rules.watch(Api::all(client.clone()), watcher::Config::default(), |change| queue_if(queue, spec_changed(&change)));
    futures::join!(configs, secrets, rules);
}

async fn watch_outputs(context: &Context, caches: &Caches, queue: &Queue<Everything>) {
    let client = &context.client;
    let mutating = caches.mutating.watch(Api::all(client.clone()), only(OPERATOR_CONFIGURATION), |change| queue_if(queue, spec_changed(&change)));
    let injector = caches.injector.watch(Api::all(client.clone()), only(INJECTOR_CONFIGURATION), |change| queue_if(queue, spec_changed(&change)));
    let validating = caches.validating.watch(Api::all(client.clone()), only(OPERATOR_CONFIGURATION), |change| queue_if(queue, spec_changed(&change)));
    let again = || queue.add(Everything);
    let listed = futures::future::join3(caches.mutating.each_relist(again), caches.injector.each_relist(again), caches.validating.each_relist(again));
    futures::join!(mutating, injector, validating, listed);
}

fn queue_if(queue: &Queue<Everything>, changed: bool) {
    if changed {
        queue.add(Everything);
    }
}

/// Generation, identity or deletion changed; a status did not.
fn spec_changed<T: Resource>(change: &Change<'_, T>) -> bool {
    let parts = |object: &T| (object.meta().uid.clone(), object.meta().generation, object.meta().deletion_timestamp.is_some());
    change.old.map(parts) != change.new.map(parts)
}

async fn reconcile(context: &Context, caches: &Caches) -> Result<Next, RequestFailed> {
    let settings = &context.settings;
    let config = caches.configs.get(&Key::new(&settings.namespace, keys::DEFAULT_CONFIG));
    // One that cannot be read leaves things as they are.
    if config.as_ref().is_some_and(|config| config.0.is_err()) {
        tracing::warn!("webhook configurations left as they are: the operator configuration could not be read");
        return Ok(Next::Wait);
    }
    let wanted = wanted(config.as_deref().and_then(|config| config.0.as_ref().ok()), caches);
    let trust = trust(settings, caches);
    if trust.is_none() && (wanted.webhook || wanted.injector) {
        tracing::info!("webhook configurations wait for the certificates");
        return Ok(Next::Wait);
    }
    let target = Target { service: settings.admission.service.clone(), namespace: settings.namespace.clone(), trust: trust.unwrap_or_default() };
    let mutating = wanted.webhook.then(|| configurations::mutating(&target));
    let validating = wanted.webhook.then(|| configurations::validating(&target, &wanted.rules));
    let injector = wanted.injector.then(|| configurations::injector(&target, wanted.pods_fail_closed));
    put(context, &caches.mutating, OPERATOR_CONFIGURATION, mutating).await?;
    put(context, &caches.validating, OPERATOR_CONFIGURATION, validating).await?;
    put(context, &caches.injector, INJECTOR_CONFIGURATION, injector).await?;
    for rule in caches.rules.list() {
        if let Ok(rule) = &rule.0 {
            report(context, rule, wanted.webhook).await?;
        }
    }
    Ok(Next::Wait)
}

/// `None` while there is no certificate that could be trusted.
fn trust(settings: &Settings, caches: &Caches) -> Option<Trust> {
    let Settings { namespace, admission, .. } = settings;
    if admission.cert_manager {
        // The chart's Certificate has the name of its Secret, as the Go operator's.
        return Some(Trust::InjectedFrom(format!("{namespace}/{}", admission.secret)));
    }
    let secret = caches.secrets.get(&Key::new(namespace, &admission.secret));
    secret.as_deref().and_then(certificates::bundle).map(Trust::Bundle)
}

fn wanted(config: Option<&SriovOperatorConfig>, caches: &Caches) -> Wanted {
    let Some(config) = config.filter(|config| config.metadata.deletion_timestamp.is_none()) else { return Wanted::default() };
    let rules = caches.rules.list();
    let rules = rules.iter().filter_map(|rule| rule.0.as_ref().ok()).filter(|rule| rule.metadata.deletion_timestamp.is_none());
    Wanted {
        webhook: config.spec.enable_operator_webhook,
        injector: config.spec.enable_injector,
        pods_fail_closed: gates::is_on(&config.spec.feature_gates, gates::MATCH_CONDITION),
        rules: rules.map(|rule| (rule.name_any(), rule.spec.namespace_selector.clone())).collect(),
    }
}

/// The API server drops an apply that changes nothing.
async fn put<K>(context: &Context, cache: &Cache<PartialObjectMeta<K>>, name: &str, wanted: Option<K>) -> Result<(), RequestFailed>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope> + Clone + fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::all(context.client.clone());
    let kind = K::kind(&());
    match wanted {
        Some(object) => {
            let mut value = serde_json::to_value(&object).map_err(|e| RequestFailed::new("serialise", &kind, name, kube::Error::SerdeError(e)))?;
            value["apiVersion"] = json!(K::api_version(&()));
            value["kind"] = json!(kind);
            resources::apply(&api, &kind, name, &value).await
        }
        None if cache.get(&Key::new("", name)).is_some() => resources::delete(&api, &kind, name).await,
        None => Ok(()),
    }
}

async fn report(context: &Context, rule: &SriovNamespaceRule, held: bool) -> Result<(), RequestFailed> {
    let (reason, message) = if held {
        (reason::ENFORCED, "networks and NetworkAttachmentDefinitions of the selected namespaces are held to it when they are written".to_owned())
    } else {
        (reason::WEBHOOK_OFF, "nobody holds it: enableOperatorWebhook is not set in SriovOperatorConfig default".to_owned())
    };
    let mut all = rule.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let outcome = Outcome { kind: conditions::READY, status: held, reason, message };
    if !conditions::set(&mut all, outcome, rule.metadata.generation, &Time(Timestamp::now())) {
        return Ok(());
    }
    let name = rule.name_any();
    let status = json!({
        "apiVersion": SriovNamespaceRule::api_version(&()), "kind": SriovNamespaceRule::kind(&()), "metadata": { "name": name },
        "status": { "conditions": all },
    });
    let api: Api<SriovNamespaceRule> = Api::all(context.client.clone());
    answered(api.patch_status(&name, &PatchParams::apply(keys::FIELD_MANAGER).force(), &Patch::Apply(status)))
        .await
        .map_err(|error| RequestFailed::new("write the status of", "SriovNamespaceRule", &name, error))?;
    Ok(())
}
