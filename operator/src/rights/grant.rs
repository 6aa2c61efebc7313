//! Pure: one rule of a role: verbs on kinds, which are given as types, so that a right has the group and the plural of the kind that the code asks for.

use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::Resource;

use super::When;

/// One rule of a role.
#[derive(Debug)]
pub struct Grant {
    /// What the right is for, a sentence.
    pub why: &'static str,
    /// Without it: always.
    pub when: Option<When>,
    /// The right.
    pub rule: PolicyRule,
}

/// What may be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

/// All that a cache needs.
pub(super) const READ: [Verb; 3] = [Verb::Get, Verb::List, Verb::Watch];

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// A kind, or a part of its objects.
pub(super) struct Target {
    group: String,
    resource: String,
}

/// The objects of a kind.
pub(super) fn of<K: Resource<DynamicType = ()>>() -> Target {
    Target { group: K::group(&()).into_owned(), resource: K::plural(&()).into_owned() }
}

/// A subresource of a kind.
pub(super) fn part<K: Resource<DynamicType = ()>>(name: &str) -> Target {
    Target { resource: format!("{}/{name}", K::plural(&())), ..of::<K>() }
}

/// What its controller tells of a kind's objects.
pub(super) fn status<K: Resource<DynamicType = ()>>() -> Target {
    part::<K>("status")
}

/// The right to do `verbs` with all of `targets`, which are kinds of one group.
pub(super) fn grant(why: &'static str, verbs: &[Verb], targets: impl IntoIterator<Item = Target>) -> Grant {
    let (mut groups, resources): (Vec<_>, Vec<_>) = targets.into_iter().map(|target| (target.group, target.resource)).unzip();
    groups.dedup();
    let rule = PolicyRule {
        api_groups: Some(groups),
        resources: Some(resources),
        verbs: verbs.iter().map(|verb| verb.word().to_owned()).collect(),
        ..PolicyRule::default()
    };
    Grant { why, when: None, rule }
}

impl Grant {
    /// Only objects of these names.
    pub(super) fn named<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.rule.resource_names = Some(names.into_iter().map(str::to_owned).collect());
        self
    }

    /// Only after this choice.
    pub(super) fn only(self, when: When) -> Self {
        Self { when: Some(when), ..self }
    }
}
