//! Pure: the admission policies that bind what an account of nodes' pods writes to the node that its token names, which RBAC cannot.

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec, Validation, Variable,
};
use kube::api::ObjectMeta;

use super::{Document, Holder, Object};

/// True when the object has the name of the node on which the writer's pod runs.
pub(super) const IS_OWN: &str = "variables.node != '' && request.name == variables.node";
/// The node that the writer's token names; empty when it names none.
const NODE: &str =
    "'authentication.kubernetes.io/node-name' in request.userInfo.extra ? request.userInfo.extra['authentication.kubernetes.io/node-name'][0] : ''";

/// What an account may write, besides what its roles say.
pub(super) struct OwnNode {
    /// Where this counts.
    pub resources: NamedRuleWithOperations,
    /// Name of the condition that the writer is the account.
    pub condition: &'static str,
    /// Names and expressions, after `node`.
    pub variables: Vec<(&'static str, String)>,
    /// What must be true of a write.
    pub validations: Vec<Validation>,
}

impl OwnNode {
    /// The policy for an account, and its binding. A write that cannot be judged is refused.
    pub(super) fn of(self, account: &Holder<'_>, why: &'static str) -> [Document; 2] {
        // There may be one installation a namespace.
        let name = format!("{}.{}", account.name, account.namespace);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let writer = format!("request.userInfo.username == 'system:serviceaccount:{}:{}'", account.namespace, account.name);
        let variable = |(name, expression): (&str, String)| Variable { name: name.to_owned(), expression };
        let policy = ValidatingAdmissionPolicy {
            metadata: metadata.clone(),
            spec: Some(ValidatingAdmissionPolicySpec {
                failure_policy: Some("Fail".to_owned()),
                match_constraints: Some(MatchResources { resource_rules: Some(vec![self.resources]), ..MatchResources::default() }),
                match_conditions: Some(vec![MatchCondition { name: self.condition.to_owned(), expression: writer }]),
                variables: Some([("node", NODE.to_owned())].into_iter().chain(self.variables).map(variable).collect()),
                validations: Some(self.validations),
                ..ValidatingAdmissionPolicySpec::default()
            }),
            status: None,
        };
        let spec = ValidatingAdmissionPolicyBindingSpec {
            policy_name: name,
            validation_actions: vec!["Deny".to_owned()],
            ..ValidatingAdmissionPolicyBindingSpec::default()
        };
        let binding = ValidatingAdmissionPolicyBinding { metadata, spec };
        [
            Document { why, object: Object::ValidatingAdmissionPolicy(Box::new(policy)), grants: vec![] },
            Document { why: "", object: Object::ValidatingAdmissionPolicyBinding(Box::new(binding)), grants: vec![] },
        ]
    }
}

/// These operations with these resources, of any version.
pub(super) fn operation(group: &str, operations: &[&str], resources: impl Into<Vec<String>>) -> NamedRuleWithOperations {
    NamedRuleWithOperations {
        api_groups: Some(vec![group.to_owned()]),
        api_versions: Some(vec!["*".to_owned()]),
        operations: Some(operations.iter().map(|&operation| operation.to_owned()).collect()),
        resources: Some(resources.into()),
        ..NamedRuleWithOperations::default()
    }
}

/// A write for which `expression` is false is refused with these words.
pub(super) fn check(expression: &str, message: &str) -> Validation {
    Validation { expression: expression.to_owned(), message: Some(message.to_owned()), ..Validation::default() }
}

/// The same with words that an expression makes.
pub(super) fn explain(expression: &str, message: &str) -> Validation {
    Validation { expression: expression.to_owned(), message_expression: Some(message.to_owned()), ..Validation::default() }
}
