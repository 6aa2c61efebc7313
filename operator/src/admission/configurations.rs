//! Pure: the webhook configuration objects, from typed builders. Names are the Go operator's, so that its leftovers are taken over.
//!
//! Invariant: a dead webhook cannot block the cluster. What our own kinds must not say is held by CEL and by the controllers, so their webhooks
//! fail open; pods without the networks annotation never come here; and only NADs of namespaces that a rule selects fail closed, because nobody
//! else would hold the rule. Deletions are never asked about.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference, ValidatingWebhook,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::ObjectMeta;
use sriov_crds::keys;

/// Both configurations that are about our kinds.
pub(crate) const OPERATOR_CONFIGURATION: &str = "sriov-operator-webhook-config";
/// The configuration that is about pods.
pub(crate) const INJECTOR_CONFIGURATION: &str = "network-resources-injector-config";

/// Path of the mutation of policies.
pub(super) const MUTATE_POLICIES: &str = "/mutating-custom-resource";
/// Path of the validation of our kinds.
pub(super) const VALIDATE: &str = "/validating-custom-resource";
/// Path of the validation of NADs.
pub(super) const VALIDATE_NADS: &str = "/validating-network-attachment-definition";
/// Path of the injector.
pub(super) const INJECT: &str = "/mutate";

/// Name of the webhooks for our kinds.
const OPERATOR_WEBHOOK: &str = "operator-webhook.sriovnetwork.openshift.io";
const FAIL_OPEN: &str = "Ignore";
const FAIL_CLOSED: &str = "Fail";
/// Seconds that the API server waits; the answer takes milliseconds.
const TIMEOUT: i32 = 10;
/// By which cert-manager knows that it is to write the authority, and whose.
const INJECT_CA_FROM: &str = "cert-manager.io/inject-ca-from";
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Whom the API server calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Target {
    /// Service of the admission server.
    pub service: String,
    /// Its namespace, the operator's.
    pub namespace: String,
    /// What it is trusted by.
    pub trust: Trust,
}

/// How API servers know the admission server.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// By these certificates, PEM.
    Bundle(Vec<u8>),
    /// By what cert-manager writes into the configurations: it takes the authority of this Certificate, `namespace/name`.
    InjectedFrom(String),
}

impl Default for Trust {
    fn default() -> Self {
        Self::Bundle(Vec::new())
    }
}

/// What is switched on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// `enableOperatorWebhook`.
    pub webhook: bool,
    /// `enableInjector`.
    pub injector: bool,
    /// Feature gate `resourceInjectorMatchCondition`.
    pub pods_fail_closed: bool,
    /// Rules of namespaces: name and selector.
    pub rules: Vec<(String, LabelSelector)>,
}

impl Target {
    fn client_config(&self, path: &str) -> WebhookClientConfig {
        WebhookClientConfig {
            // Left out it is another's field: our applies leave cert-manager's alone.
            ca_bundle: match &self.trust {
                Trust::Bundle(bundle) => Some(ByteString(bundle.clone())),
                Trust::InjectedFrom(_) => None,
            },
            service: Some(ServiceReference {
                name: self.service.clone(),
                namespace: self.namespace.clone(),
                path: Some(path.to_owned()),
                port: Some(443),
            }),
            url: None,
        }
    }

    /// Asked about `rules` at `path`, and left out while nobody answers.
    fn webhook(&self, name: impl Into<String>, path: &str, rules: Vec<RuleWithOperations>) -> ValidatingWebhook {
        ValidatingWebhook {
            name: name.into(),
            client_config: self.client_config(path),
            rules: Some(rules),
            failure_policy: Some(FAIL_OPEN.to_owned()),
            side_effects: "None".to_owned(),
            timeout_seconds: Some(TIMEOUT),
            admission_review_versions: vec!["v1".to_owned()],
            ..ValidatingWebhook::default()
        }
    }
}

/// The same webhook with an answer that may change the object, for which the API has a type of its own.
fn changing(webhook: ValidatingWebhook) -> MutatingWebhook {
    // All fields by name: one that a later version adds is not left behind.
    let ValidatingWebhook {
        admission_review_versions,
        client_config,
        failure_policy,
        match_conditions,
        match_policy,
        name,
        namespace_selector,
        object_selector,
        rules,
        side_effects,
        timeout_seconds,
    } = webhook;
    MutatingWebhook {
        admission_review_versions,
        client_config,
        failure_policy,
        match_conditions,
        match_policy,
        name,
        namespace_selector,
        object_selector,
        reinvocation_policy: None,
        rules,
        side_effects,
        timeout_seconds,
    }
}

fn rule(group: &str, resources: &[&str], operations: &[&str]) -> RuleWithOperations {
    let texts = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
    RuleWithOperations {
        api_groups: texts(&[group]),
        api_versions: texts(&["v1"]),
        operations: texts(operations),
        resources: texts(resources),
        scope: Some("Namespaced".to_owned()),
    }
}

fn named(name: &str, target: &Target) -> ObjectMeta {
    let annotations = match &target.trust {
        Trust::Bundle(_) => None,
        Trust::InjectedFrom(certificate) => Some([(INJECT_CA_FROM.to_owned(), certificate.clone())].into()),
    };
    ObjectMeta { name: Some(name.to_owned()), annotations, ..ObjectMeta::default() }
}

/// Fills in and corrects policies.
pub(super) fn mutating(target: &Target) -> MutatingWebhookConfiguration {
    let rules = vec![rule(keys::GROUP, &["sriovnetworknodepolicies"], &["CREATE", "UPDATE"])];
    let webhook = changing(target.webhook(OPERATOR_WEBHOOK, MUTATE_POLICIES, rules));
    MutatingWebhookConfiguration { metadata: named(OPERATOR_CONFIGURATION, target), webhooks: Some(vec![webhook]) }
}

/// Judges our kinds, and the NADs of namespaces that rules select.
pub(super) fn validating(target: &Target, rules: &[(String, LabelSelector)]) -> ValidatingWebhookConfiguration {
    let kinds = ["sriovnetworknodepolicies", "sriovoperatorconfigs", "sriovnetworkpoolconfigs", "sriovnetworks", "sriovibnetworks", "ovsnetworks"];
    let mut webhooks = vec![target.webhook(OPERATOR_WEBHOOK, VALIDATE, vec![rule(keys::GROUP, &kinds, &["CREATE", "UPDATE"])])];
    for (name, selector) in rules {
        let nads = rule("k8s.cni.cncf.io", &["network-attachment-definitions"], &["CREATE", "UPDATE"]);
        let webhook = target.webhook(format!("{name}.rules.sriovnetwork.openshift.io"), VALIDATE_NADS, vec![nads]);
        webhooks.push(ValidatingWebhook { failure_policy: Some(FAIL_CLOSED.to_owned()), namespace_selector: Some(selector.clone()), ..webhook });
    }
    ValidatingWebhookConfiguration { metadata: named(OPERATOR_CONFIGURATION, target), webhooks: Some(webhooks) }
}

/// Gives pods that name networks what they need. `fail_closed` refuses such pods while nobody answers.
pub(super) fn injector(target: &Target, fail_closed: bool) -> MutatingWebhookConfiguration {
    let webhook = target.webhook("network-resources-injector-config.k8s.io", INJECT, vec![rule("", &["pods"], &["CREATE"])]);
    let has = |key: &str| format!("'{key}' in object.metadata.annotations");
    let expression = format!("has(object.metadata.annotations) && ({} || {})", has(keys::POD_NETWORKS), has(keys::POD_DEFAULT_NETWORK));
    let excluded = LabelSelectorRequirement {
        key: NAMESPACE_NAME.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec!["kube-system".to_owned(), target.namespace.clone()]),
    };
    let webhook = ValidatingWebhook {
        failure_policy: Some(if fail_closed { FAIL_CLOSED } else { FAIL_OPEN }.to_owned()),
        match_conditions: Some(vec![MatchCondition { name: "pod-names-networks".to_owned(), expression }]),
        namespace_selector: Some(LabelSelector { match_expressions: Some(vec![excluded]), match_labels: None }),
        ..webhook
    };
    // What another webhook adds to the pod afterwards is counted too; a second round adds nothing by itself.
    let webhook = MutatingWebhook { reinvocation_policy: Some("IfNeeded".to_owned()), ..changing(webhook) };
    MutatingWebhookConfiguration { metadata: named(INJECTOR_CONFIGURATION, target), webhooks: Some(vec![webhook]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { service: "s".into(), namespace: "ops".into(), trust: Trust::Bundle(b"pem".to_vec()) }
    }

    #[test]
    fn with_cert_manager_there_is_its_annotation_and_no_bundle_of_ours() {
        let target = Target { trust: Trust::InjectedFrom("ops/cert".into()), ..target() };
        let (mutating, injector, validating) = (mutating(&target), injector(&target, false), validating(&target, &[]));
        for metadata in [&mutating.metadata, &injector.metadata, &validating.metadata] {
            assert_eq!(metadata.annotations.as_ref().unwrap()["cert-manager.io/inject-ca-from"], "ops/cert");
        }
        let clients = [mutating.webhooks.unwrap(), injector.webhooks.unwrap()].concat().into_iter().map(|w| w.client_config);
        assert!(clients.chain(validating.webhooks.unwrap().into_iter().map(|w| w.client_config)).all(|client| client.ca_bundle.is_none()));
        assert!(super::mutating(&self::target()).metadata.annotations.is_none());
    }

    /// B22 of the field sets policies to Ignore when it ends; here there is nothing to set.
    #[test]
    fn a_dead_webhook_does_not_block_the_cluster() {
        let all = validating(&target(), &[]).webhooks.unwrap();
        assert!(all.iter().all(|w| w.failure_policy.as_deref() == Some("Ignore")));
        for webhook in mutating(&target()).webhooks.unwrap().into_iter().chain(injector(&target(), false).webhooks.unwrap()) {
            assert_eq!(webhook.failure_policy.as_deref(), Some("Ignore"));
            assert!(webhook.rules.unwrap().iter().all(|rule| !rule.operations.as_ref().unwrap().contains(&"DELETE".to_owned())));
        }
    }

    #[test]
    fn only_nads_of_ruled_namespaces_and_pods_by_their_gate_fail_closed() {
        let selector = LabelSelector { match_labels: Some([("team".to_owned(), "a".to_owned())].into()), ..LabelSelector::default() };
        let all = validating(&target(), &[("tenants".to_owned(), selector.clone())]).webhooks.unwrap();
        let closed: Vec<_> = all.iter().filter(|w| w.failure_policy.as_deref() == Some("Fail")).collect();
        assert_eq!((closed.len(), closed[0].name.as_str()), (1, "tenants.rules.sriovnetwork.openshift.io"));
        assert_eq!(closed[0].namespace_selector, Some(selector));
        let pods = injector(&target(), true).webhooks.unwrap();
        assert_eq!(pods[0].failure_policy.as_deref(), Some("Fail"));
        let condition = &pods[0].match_conditions.as_ref().unwrap()[0].expression;
        assert!(condition.contains("'k8s.v1.cni.cncf.io/networks' in object.metadata.annotations"), "{condition}");
        let excluded = pods[0].namespace_selector.as_ref().unwrap().match_expressions.as_ref().unwrap()[0].values.clone().unwrap();
        assert_eq!(excluded, ["kube-system", "ops"], "neither the cluster's own pods nor ours wait for us");
    }
}
