//! Pure: which changes of watched objects can change a NAD, and of which networks.

use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Resource, ResourceExt};
use sriov_crds::{NetworkAttachmentDefinition, keys};

use super::Kind;
use super::kinds::Network;
use crate::cache::{Cache, Change, Key};

/// Anything but a status: spec, annotations, finalizers, deletion.
pub(super) fn network_matters<N: Network>(change: &Change<'_, DeserializeGuard<N>>) -> bool {
    let parts = |network: &DeserializeGuard<N>| {
        let meta = network.meta();
        (meta.generation, meta.deletion_timestamp.is_some(), meta.annotations.clone(), meta.finalizers.clone())
    };
    change.old.map(parts) != change.new.map(parts)
}

/// The networks that a NAD may belong to: the one it names, and those that want to make one of its name.
pub(super) fn networks_of_nad(change: &Change<'_, PartialObjectMeta<NetworkAttachmentDefinition>>, operator_namespace: &str) -> Vec<Key> {
    let sides = change.old.into_iter().chain(change.new);
    let mut keys: Vec<_> = sides
        .flat_map(|nad| {
            let named = nad.annotations().get(keys::NAD_OWNER_REF).and_then(|owner| owner_key(owner));
            [Some(Key::of(nad)), Some(Key::new(operator_namespace, &nad.name_any())), named]
        })
        .flatten()
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// The network that a NAD of ours names, and the NAD.
pub(super) fn made_for(nad: &PartialObjectMeta<NetworkAttachmentDefinition>) -> Option<(String, Key)> {
    nad.labels().get(keys::MANAGED_BY).filter(|by| *by == keys::FIELD_MANAGER)?;
    Some((nad.annotations().get(keys::NAD_OWNER_REF)?.clone(), Key::of(nad)))
}

/// Of `Kind.group/namespace/name`.
fn owner_key(owner_ref: &str) -> Option<Key> {
    let mut parts = owner_ref.split('/').skip(1);
    Some(Key::new(parts.next()?, parts.next()?))
}

/// The name of a namespace that was not there (or was going away) before.
pub(super) fn namespace_came<'a>(change: &Change<'a, PartialObjectMeta<Namespace>>) -> Option<&'a str> {
    let usable = |namespace: &&PartialObjectMeta<Namespace>| namespace.metadata.deletion_timestamp.is_none();
    if change.old.as_ref().is_some_and(usable) {
        return None;
    }
    change.new.filter(usable).and_then(|namespace| namespace.metadata.name.as_deref())
}

/// Queues the networks whose NAD is to be in this namespace.
pub(super) fn queue_waiting<N: Network>(kind: &Kind<N>, namespace: &str) {
    queue_where(kind, |network| super::validate::target(network) == namespace);
}

/// Queues the networks whose NAD is not there.
pub(super) fn queue_without_nad<N: Network>(kind: &Kind<N>, nads: &Cache<PartialObjectMeta<NetworkAttachmentDefinition>>) {
    queue_where(kind, |network| nads.get(&Key::new(&super::validate::target(network), &network.name_any())).is_none());
}

fn queue_where<N: Network>(kind: &Kind<N>, matters: impl Fn(&N) -> bool) {
    for network in kind.objects.list() {
        if network.0.as_ref().is_ok_and(&matters) {
            kind.queue.add(Key::of(network.as_ref()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use kube::runtime::watcher::Event;
    use serde_json::json;
    use sriov_crds::SriovNetwork;

    use super::*;
    use crate::queue::Next;
    use crate::resources::RequestFailed;

    async fn fill<T: Resource + serde::de::DeserializeOwned>(cache: &Cache<T>, objects: &[serde_json::Value]) {
        let events = objects.iter().map(|object| Ok(Event::Apply(serde_json::from_value(object.clone()).unwrap())));
        cache.follow(futures::stream::iter(events), |_| {}).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_networks_whose_nad_is_not_in_a_new_list_another_look_is_asked() {
        let (kind, requests) = Kind::<SriovNetwork>::new();
        let network = |name: &str| json!({ "metadata": { "name": name, "namespace": "operators" }, "spec": { "resourceName": "nics", "networkNamespace": "apps" } });
        fill(
            &kind.objects,
            &[network("here"), network("went"), json!({ "metadata": { "name": "unreadable", "namespace": "operators" }, "spec": 1 })],
        )
        .await;
        let nads = Cache::default();
        fill(
            &nads,
            &[json!({ "metadata": { "name": "here", "namespace": "apps" } }), json!({ "metadata": { "name": "went", "namespace": "other" } })],
        )
        .await;
        queue_without_nad(&kind, &nads);
        let looked = RefCell::new(vec![]);
        let serving = requests.serve(1, |key| {
            looked.borrow_mut().push(key);
            async { Ok::<_, RequestFailed>(Next::Wait) }
        });
        tokio::time::timeout(Duration::from_secs(1), serving).await.ok();
        assert_eq!(looked.into_inner(), [Key::new("operators", "went")]);
    }

    #[test]
    fn a_nad_leads_to_its_owner_and_to_networks_of_its_name() {
        let nad: PartialObjectMeta<NetworkAttachmentDefinition> = serde_json::from_value(json!({ "metadata": {
            "name": "net", "namespace": "apps", "annotations": { keys::NAD_OWNER_REF: "SriovNetwork.sriovnetwork.openshift.io/elsewhere/net" },
        }}))
        .unwrap();
        let found = networks_of_nad(&Change { old: Some(&nad), new: None }, "operators");
        assert_eq!(found, [Key::new("apps", "net"), Key::new("elsewhere", "net"), Key::new("operators", "net")]);
        assert_eq!(owner_key("nonsense"), None);
    }
}
