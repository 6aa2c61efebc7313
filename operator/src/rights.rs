//! Pure: what each program of ours may do in a cluster: accounts, roles, bindings, and the admission policies that say what RBAC cannot, from typed builders
//! with the reason of each rule. `cargo xtask gen-rights` writes the chart's templates from them.
//!
//! What does not live here: applying them. That is the installer's: a program that writes roles can give itself any right that it may grant.
//! Invariants: a right names its object by the type or the constant by which the code does that needs it, so that no right outlives a name; nothing is a
//! wildcard; each rule is about one API group and tells why it is there.

mod detector;
mod grant;
mod hooks;
mod nodes;
mod operator;
mod own_node;

use std::collections::BTreeMap;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject};
use kube::api::ObjectMeta;
use serde::Serialize;

pub use grant::Grant;

const RBAC: &str = "rbac.authorization.k8s.io";

/// What whoever installs the operator may choose. The chart's generator gives expressions of Helm, a test gives names.
#[derive(Clone, Debug)]
pub struct Names {
    /// Of the operator's Deployment, its account and its roles.
    pub operator: String,
    /// Where everything is installed.
    pub namespace: String,
    /// Secret with the certificates of the admission server.
    pub secret: String,
}

/// On which choice of whoever installs the operator something depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The operator makes its certificates itself, cert-manager does not.
    OwnCertificates,
    /// The chart's detector of NICs runs.
    NodeDetector,
}

/// The objects of one file.
#[derive(Debug)]
pub struct Page {
    /// Name of the file.
    pub file: &'static str,
    /// Left out: always.
    pub when: Option<When>,
    /// In the order in which they are written.
    pub documents: Vec<Document>,
}

/// One object.
#[derive(Debug)]
pub struct Document {
    /// What it is for; empty where the object before it says so.
    pub why: &'static str,
    /// The object; a role is without its rules.
    pub object: Object,
    /// The rules of a role.
    pub grants: Vec<Grant>,
}

/// An object that gives or bounds rights.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "each variant is the kind of its name")]
pub enum Object {
    ServiceAccount(ServiceAccount),
    Role(Role),
    RoleBinding(RoleBinding),
    ClusterRole(ClusterRole),
    ClusterRoleBinding(ClusterRoleBinding),
    ValidatingAdmissionPolicy(Box<ValidatingAdmissionPolicy>),
    ValidatingAdmissionPolicyBinding(Box<ValidatingAdmissionPolicyBinding>),
}

/// All files.
pub fn pages(names: &Names) -> Vec<Page> {
    vec![
        Page { file: "config-daemon-rights.yaml", when: None, documents: nodes::documents(names) },
        Page { file: "hooks-rights.yaml", when: None, documents: hooks::documents(names) },
        Page { file: "node-detector-rights.yaml", when: Some(When::NodeDetector), documents: detector::documents(names) },
        Page { file: "operator-rights.yaml", when: None, documents: operator::documents(names) },
    ]
}

/// Who has rights: an account, and the roles and bindings of its name.
struct Holder<'a> {
    name: String,
    namespace: &'a str,
    /// Of all of these objects.
    annotations: BTreeMap<String, String>,
}

impl<'a> Holder<'a> {
    fn new(name: impl Into<String>, names: &'a Names) -> Self {
        Self { name: name.into(), namespace: &names.namespace, annotations: BTreeMap::new() }
    }

    fn metadata(&self, namespaced: bool) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: namespaced.then(|| self.namespace.to_owned()),
            annotations: Some(self.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        }
    }

    fn account(&self, why: &'static str) -> Document {
        Document {
            why,
            object: Object::ServiceAccount(ServiceAccount { metadata: self.metadata(true), ..ServiceAccount::default() }),
            grants: vec![],
        }
    }

    /// Rights in the namespace.
    fn role(&self, why: &'static str, grants: Vec<Grant>) -> [Document; 2] {
        let role = Role { metadata: self.metadata(true), rules: None };
        let binding = RoleBinding { metadata: self.metadata(true), role_ref: self.reference("Role"), subjects: Some(vec![self.subject()]) };
        [Document { why, object: Object::Role(role), grants }, Document { why: "", object: Object::RoleBinding(binding), grants: vec![] }]
    }

    /// Rights in the whole cluster.
    fn cluster_role(&self, why: &'static str, grants: Vec<Grant>) -> [Document; 2] {
        let role = ClusterRole { metadata: self.metadata(false), ..ClusterRole::default() };
        let binding =
            ClusterRoleBinding { metadata: self.metadata(false), role_ref: self.reference("ClusterRole"), subjects: Some(vec![self.subject()]) };
        [
            Document { why, object: Object::ClusterRole(role), grants },
            Document { why: "", object: Object::ClusterRoleBinding(binding), grants: vec![] },
        ]
    }

    fn reference(&self, kind: &str) -> RoleRef {
        RoleRef { api_group: Some(RBAC.to_owned()), kind: kind.to_owned(), name: self.name.clone() }
    }

    fn subject(&self) -> Subject {
        Subject { api_group: None, kind: "ServiceAccount".to_owned(), name: self.name.clone(), namespace: Some(self.namespace.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::Resource;

    use super::*;

    fn documents() -> Vec<Document> {
        let names = Names { operator: "operator".into(), namespace: "ops".into(), secret: "certificates".into() };
        pages(&names).into_iter().flat_map(|page| page.documents).collect()
    }

    #[test]
    fn each_rule_is_about_one_group_without_wildcards_and_tells_why() {
        let documents = documents();
        let grants: Vec<_> = documents.iter().flat_map(|document| &document.grants).collect();
        assert!(grants.len() > 30, "{}", grants.len());
        for grant in grants {
            let rule = &grant.rule;
            assert!(grant.why.ends_with('.'), "{rule:?}: {:?}", grant.why);
            assert_eq!(rule.api_groups.as_ref().unwrap().len(), 1, "groups and resources are multiplied: {rule:?}");
            let words = [&rule.verbs, rule.resources.as_ref().unwrap(), rule.api_groups.as_ref().unwrap()];
            assert!(words.into_iter().flatten().all(|word| !word.contains('*')), "{rule:?}");
            assert!(!rule.verbs.is_empty() && !rule.resources.as_ref().unwrap().is_empty(), "{rule:?}");
        }
    }

    #[test]
    fn nobody_writes_roles_and_secrets_are_named() {
        for grant in documents().iter().flat_map(|document| &document.grants) {
            let rule = &grant.rule;
            assert!(!rule.api_groups.iter().flatten().any(|group| group == RBAC), "{rule:?}");
            let secrets = rule.resources.iter().flatten().any(|resource| *resource == Secret::plural(&()));
            let named = rule.resource_names.as_ref().is_some_and(|names| *names == ["certificates"]);
            assert!(!secrets || named || rule.verbs == ["create"], "a name cannot be granted for creations only: {rule:?}");
        }
    }

    #[test]
    fn each_role_is_bound_to_an_account_that_is_there() {
        let documents = documents();
        let accounts: Vec<_> = documents
            .iter()
            .filter_map(|document| match &document.object {
                Object::ServiceAccount(account) => account.metadata.name.clone(),
                _ => None,
            })
            .collect();
        assert_eq!(
            accounts,
            ["sriov-network-config-daemon", "sriov-device-plugin", "operator-crds", "operator-uninstall", "sriov-node-detector", "operator"]
        );
        let roles = documents.iter().filter(|document| !document.grants.is_empty()).count();
        let subjects = documents.iter().filter_map(|document| match &document.object {
            Object::RoleBinding(binding) => Some(binding.subjects.clone().unwrap()),
            Object::ClusterRoleBinding(binding) => Some(binding.subjects.clone().unwrap()),
            _ => None,
        });
        let subjects: Vec<_> = subjects.flatten().collect();
        assert_eq!(subjects.len(), roles);
        assert!(subjects.iter().all(|subject| accounts.contains(&subject.name) && subject.namespace.as_deref() == Some("ops")), "{subjects:?}");
    }
}
