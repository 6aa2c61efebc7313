//! I/O: what the cluster says: this node's state object and the list of supported NICs, watched.
//!
//! What does not live here: what is done about it (`node_state`).
//!
//! Invariants: while the API server is away the last words stay; our own status writes wake nobody.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;
use sriov_crds::keys::{CURRENT_STATE, DEFAULT_CONFIG, DESIRED_STATE, SUPPORTED_NIC_IDS, USE_EXTERNAL_DRAINER};
use sriov_crds::node_state::{SriovNetworkNodeState, SriovNetworkNodeStateSpec, SriovNetworkNodeStateStatus};
use sriov_crds::operator_config::SriovOperatorConfig;
use tokio::sync::watch::Sender;
use tracing::{info, warn};

use super::retry::WatchBackoff;
use crate::handshake::Heard;
use crate::observed::SupportedNics;

/// The cluster's side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// The node's object; `None` until it is seen, and when it is deleted.
    pub(crate) node_state: Option<Seen>,
    /// The supported NICs; `None` until the API server answered. A missing ConfigMap lists none.
    pub(crate) nics: Option<SupportedNics>,
    /// The entries that `nics` was read from.
    pub(crate) nic_entries: BTreeMap<String, String>,
    /// Whether nodes are drained; `None` until the API server answered. Without an operator configuration they are.
    pub(crate) drains: Option<bool>,
}

/// The node's object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    pub(crate) generation: Option<i64>,
    pub(crate) spec: SriovNetworkNodeStateSpec,
    /// As it was when the object was first seen; afterwards we are its only writer.
    pub(crate) status: SriovNetworkNodeStateStatus,
    /// The drain handshake.
    pub(crate) heard: Heard,
}

impl From<SriovNetworkNodeState> for Seen {
    fn from(object: SriovNetworkNodeState) -> Self {
        let uid = object.uid().unwrap_or_default();
        let annotation = |key: &str| object.annotations().get(key).cloned();
        let external = annotation(USE_EXTERNAL_DRAINER).is_some_and(|text| text == "true");
        let heard = Heard { asked: annotation(DESIRED_STATE), answered: annotation(CURRENT_STATE), external };
        Self { heard, uid, generation: object.metadata.generation, status: object.status.unwrap_or_default(), spec: object.spec }
    }
}

/// Watches this node's object; never ends.
pub(crate) async fn watch_node_state(api: Api<SriovNetworkNodeState>, node: String, inputs: Sender<Inputs>) {
    let take = |object: Option<SriovNetworkNodeState>| {
        let seen = object.map(Seen::from);
        inputs.send_if_modified(|inputs| {
            let same = |a: &Seen, b: &Seen| (&a.uid, a.generation, &a.spec, &a.heard) == (&b.uid, b.generation, &b.spec, &b.heard);
            let changed = match (&inputs.node_state, &seen) {
                (Some(old), Some(new)) => !same(old, new),
                (None, None) => false,
                _ => true,
            };
            if changed {
                inputs.node_state = seen;
            }
            changed
        });
    };
    watch_one(api, node, take).await;
}

/// Watches the ConfigMap `supported-nic-ids`; never ends.
pub(crate) async fn watch_supported_nics(api: Api<ConfigMap>, inputs: Sender<Inputs>) {
    let take = |object: Option<ConfigMap>| {
        if object.is_none() {
            warn!("there is no ConfigMap {SUPPORTED_NIC_IDS}: no NIC may be configured until there is");
        }
        let entries = object.and_then(|map| map.data).unwrap_or_default();
        let nics = SupportedNics::read(&entries);
        inputs.send_if_modified(|inputs| {
            let changed = inputs.nics.as_ref() != Some(&nics);
            if changed {
                for text in &nics.unreadable {
                    warn!("{text}");
                }
                inputs.nics = Some(nics);
                inputs.nic_entries = entries;
            }
            changed
        });
    };
    watch_one(api, SUPPORTED_NIC_IDS.to_owned(), take).await;
}

/// Watches the operator configuration; never ends.
pub(crate) async fn watch_operator_config(api: Api<SriovOperatorConfig>, inputs: Sender<Inputs>, set_log_level: fn(Option<i64>)) {
    let mut known = None;
    let take = move |object: Option<SriovOperatorConfig>| {
        let level = object.as_ref().and_then(|config| config.spec.log_level);
        if known.replace(level) != Some(level) {
            set_log_level(level);
        }
        let drains = !object.is_some_and(|config| config.spec.disable_drain);
        inputs.send_if_modified(|inputs| inputs.drains.replace(drains) != Some(drains));
    };
    watch_one(api, DEFAULT_CONFIG.to_owned(), take).await;
}

/// Calls `take` with each version of the object with this name, and with `None` when there is none.
async fn watch_one<K>(api: Api<K>, name: String, mut take: impl FnMut(Option<K>))
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher::watcher(api, config).backoff(WatchBackoff::default()));
    let kind = K::kind(&());
    let (mut listed, mut away) = (false, false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut away) {
                    info!("watching {kind} {name} again");
                }
                match event {
                    Event::Init => listed = false,
                    Event::InitApply(object) | Event::Apply(object) => {
                        listed = true;
                        take(Some(object));
                    }
                    Event::InitDone if listed => {}
                    Event::InitDone | Event::Delete(_) => take(None),
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!("cannot watch {kind} {name}, going on with what is known: {error}");
                }
            }
        }
    }
}
