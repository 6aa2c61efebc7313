//! I/O: networks -> NetworkAttachmentDefinitions: `SriovNetwork`, `SriovIBNetwork` and `OVSNetwork`, in any namespace.
//! `gather -> validate -> build -> apply -> report`, once for each network by itself.
//!
//! Invariant: a NAD that another owner has is never written and never deleted, and of a NAD that is ours only what we render is touched. Ours is a NAD
//! whose annotation names the network; one without a network is deleted only when it carries our label too.

mod apply;
mod build;
mod cni_conf;
mod gather;
mod json;
mod kinds;
mod report;
mod triggers;
mod validate;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher;
use sriov_crds::conditions::network as reason;
use sriov_crds::{NetworkAttachmentDefinition, OVSNetwork, SriovIBNetwork, SriovNetwork};

use crate::cache::{Cache, Change, Key};
use crate::context::{Context, Settings};
use crate::queue::{self, Next, Queue, Requests};
use crate::resources::RequestFailed;
use kinds::Network;

/// How many networks of a kind are worked on at a time.
const CONCURRENCY: usize = 8;

/// What the watches of this controller know, besides the networks themselves.
#[derive(Default)]
struct Shared {
    namespaces: Cache<PartialObjectMeta<Namespace>>,
    nads: Cache<PartialObjectMeta<NetworkAttachmentDefinition>>,
    /// NADs that carry our label, by the network that they name.
    made: RefCell<BTreeMap<String, BTreeSet<Key>>>,
}

impl Shared {
    /// Keeps `made` as the NADs are.
    fn note(&self, change: &Change<'_, PartialObjectMeta<NetworkAttachmentDefinition>>) {
        let mut made = self.made.borrow_mut();
        if let Some((owner, key)) = change.old.and_then(triggers::made_for)
            && let Some(keys) = made.get_mut(&owner)
        {
            keys.remove(&key);
            if keys.is_empty() {
                made.remove(&owner);
            }
        }
        if let Some((owner, key)) = change.new.and_then(triggers::made_for) {
            made.entry(owner).or_default().insert(key);
        }
    }
}

/// One kind of network with its queue.
struct Kind<N> {
    objects: Cache<DeserializeGuard<N>>,
    queue: Queue<Key>,
}

impl<N: Network> Kind<N> {
    fn new() -> (Self, Requests<Key>) {
        let (queue, requests) = queue::new();
        (Self { objects: Cache::default(), queue }, requests)
    }
}

/// The NAD that a network would be rendered to.
pub(crate) struct Preview {
    /// Its namespace.
    pub namespace: String,
    /// Its CNI configuration, JSON.
    pub config: String,
}

/// What an object of one of the three kinds would be rendered to, or why it cannot be; for those who judge it before it is stored.
pub(crate) fn preview(kind: &str, object: &serde_json::Value, settings: &Settings) -> Result<Preview, String> {
    fn of<N: Network>(object: &serde_json::Value, settings: &Settings) -> Result<Preview, String> {
        let network: N = serde_json::from_value(object.clone()).map_err(|error| format!("the object could not be read: {error}"))?;
        let wanted = validate::network(&network, settings).map_err(|refusal| refusal.message)?;
        let (namespace, config) = (wanted.namespace.clone(), build::config_of(&network, wanted));
        Ok(Preview { namespace, config })
    }
    match kind {
        "SriovIBNetwork" => of::<SriovIBNetwork>(object, settings),
        "OVSNetwork" => of::<OVSNetwork>(object, settings),
        _ => of::<SriovNetwork>(object, settings),
    }
}

/// Runs the controller; ends only by being dropped.
pub async fn run(context: &Context) {
    let shared = Shared::default();
    let (sriov, sriov_requests) = Kind::<SriovNetwork>::new();
    let (infiniband, infiniband_requests) = Kind::<SriovIBNetwork>::new();
    let (ovs, ovs_requests) = Kind::<OVSNetwork>::new();
    let nads = watch_nads(context, &shared, [&sriov.queue, &infiniband.queue, &ovs.queue]);
    let namespaces = async {
        let came = |name: &str| {
            triggers::queue_waiting(&sriov, name);
            triggers::queue_waiting(&infiniband, name);
            triggers::queue_waiting(&ovs, name);
        };
        let on_change = |change: Change<'_, _>| triggers::namespace_came(&change).into_iter().for_each(came);
        shared.namespaces.watch(Api::all(context.client.clone()), watcher::Config::default(), on_change).await;
    };
    let listed = shared.nads.each_relist(|| {
        triggers::queue_without_nad(&sriov, &shared.nads);
        triggers::queue_without_nad(&infiniband, &shared.nads);
        triggers::queue_without_nad(&ovs, &shared.nads);
    });
    futures::join!(
        nads,
        listed,
        namespaces,
        serve(context, &shared, &sriov, sriov_requests),
        serve(context, &shared, &infiniband, infiniband_requests),
        serve(context, &shared, &ovs, ovs_requests),
    );
}

async fn watch_nads(context: &Context, shared: &Shared, queues: [&Queue<Key>; 3]) {
    let on_change = |change: Change<'_, _>| {
        shared.note(&change);
        // Which kind it came from is not asked: a key without an object costs nothing.
        for key in triggers::networks_of_nad(&change, &context.settings.namespace) {
            for queue in queues {
                queue.add(key.clone());
            }
        }
    };
    shared.nads.watch(Api::all(context.client.clone()), watcher::Config::default(), on_change).await;
}

async fn serve<N: Network>(context: &Context, shared: &Shared, kind: &Kind<N>, requests: Requests<Key>) {
    let follow = kind.objects.watch(Api::all(context.client.clone()), watcher::Config::default(), |change| {
        if triggers::network_matters(&change) {
            change.new.or(change.old).iter().for_each(|network| kind.queue.add(Key::of(*network)));
        }
    });
    let reconcile_all = async {
        kind.objects.ready().await;
        shared.namespaces.ready().await;
        shared.nads.ready().await;
        requests.measured(context.metrics.meter("network")).serve(CONCURRENCY, |key| reconcile(context, shared, kind, key)).await;
    };
    futures::join!(follow, reconcile_all);
}

async fn reconcile<N: Network>(context: &Context, shared: &Shared, kind: &Kind<N>, key: Key) -> Result<Next, RequestFailed> {
    if kind.objects.get(&key).is_none() {
        let owner_ref = build::owner_ref_of::<N>(&key.namespace, &key.name);
        let orphans = shared.made.borrow().get(&owner_ref).cloned().unwrap_or_default();
        for orphan in &orphans {
            apply::orphan(context, orphan, &owner_ref).await?;
        }
        return Ok(Next::Wait);
    }
    let Some(network) = gather::network(&kind.objects, &key) else { return Ok(Next::Wait) };
    let network: &Arc<N> = &network;
    if network.meta().deletion_timestamp.is_some() {
        apply::give_up(context, network.as_ref()).await?;
        return Ok(Next::Wait);
    }
    let outcome = match validate::network(network.as_ref(), &context.settings) {
        Err(refusal) => Err(refusal),
        Ok(wanted) => {
            let found = gather::found(context, &shared.namespaces, &wanted).await?;
            match build::desired(network.as_ref(), wanted, &found, &context.settings) {
                Err(refusal) => Err(refusal),
                Ok(desired) => match apply::nad(context, network.as_ref(), &desired).await {
                    Ok(()) => Ok(()),
                    // Said where people look, and tried again: what is in the way may go without a change of the network.
                    Err(error) => {
                        if let Some(why) = error.refusal() {
                            let refusal = validate::Refusal { reason: reason::NAD_INVALID, message: format!("not stored: {why}") };
                            report::network(context, network.as_ref(), Err(refusal)).await?;
                        }
                        return Err(error);
                    }
                },
            }
        }
    };
    report::network(context, network.as_ref(), outcome).await?;
    Ok(Next::Wait)
}
