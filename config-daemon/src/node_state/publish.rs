//! I/O: everything that the daemon writes to the API server: the status, the annotation of the handshake, Events.
//!
//! What does not live here: what is said (`status`, `situation`) and when (`node_state`).
//!
//! Invariants: nothing is written that stands already; work on the machine never waits longer than a deadline for an API server that is away;
//! Events are told on the side and never waited for, but before a reboot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::{Value, json};
use sriov_crds::conditions::DRAINED;
use sriov_crds::keys::DESIRED_STATE;
use sriov_crds::node_state::{SYNC_FAILED, SriovNetworkNodeState, SriovNetworkNodeStateStatus};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::inputs::Seen;
use crate::metrics::{Metrics, Phase as Timed};
use crate::observed::Observed;
use crate::plan::Plan;
use crate::situation::{Happening, Situation, conditions};
use crate::status::{Phase, Report, status, unobserved};

/// Field manager of the status and of the annotations.
const FIELD_MANAGER: &str = "sriov-network-config-daemon";
/// Longest wait for one write.
const DEADLINE: Duration = Duration::from_secs(10);

/// Writes for this node.
pub(super) struct Publisher {
    api: Api<SriovNetworkNodeState>,
    node: String,
    recorder: Recorder,
    /// What the object with this uid says by our last write.
    published: Option<(String, SriovNetworkNodeStateStatus)>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    pub(super) fn new(client: Client, api: Api<SriovNetworkNodeState>, node: &str, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: "sriovnetwork.openshift.io/config-daemon".to_owned(), instance: Some(node.to_owned()) };
        Self { api, node: node.to_owned(), recorder: Recorder::new(client, reporter), published: None, metrics }
    }

    /// Writes the status; answers whether it stands. Without an object there is nothing to write to.
    pub(super) async fn publish(&mut self, object: Option<&Seen>, observed: &Observed, planned: &Plan, phase: &Phase, situation: &Situation) -> bool {
        let Some(object) = object else { return true };
        let (earlier, now) = (self.earlier(object), now());
        let report = Report { observed, plan: planned, phase, generation: object.generation };
        let mut new = status(report, &earlier.conditions, &now);
        conditions(&mut new.conditions, situation, observed, object.generation, &now);
        if situation.is_left_changed() {
            new.sync_status = Some(SYNC_FAILED.to_owned());
            new.last_sync_error = Some(situation.drift.join("; "));
        }
        let failed = |status: &SriovNetworkNodeStateStatus| (status.sync_status.clone(), status.last_sync_error.clone());
        if failed(&earlier) != failed(&new) {
            let text = |status: &SriovNetworkNodeStateStatus| status.sync_status.clone().unwrap_or_else(|| "unknown".to_owned());
            let mut note = format!("Status changed from: {} to: {}", text(&earlier), text(&new));
            let error = new.last_sync_error.clone().unwrap_or_default();
            if !error.is_empty() {
                note = format!("{note}. Last error: {error}");
            }
            // The words of the Go daemon.
            self.tell(Some(object), &[Happening::new(!error.is_empty(), "SyncStatusChanged", &note)]);
        }
        self.write(object, new).await
    }

    /// The machine could not be looked at: what was known stays, the conditions say it.
    pub(super) async fn cannot_observe(&mut self, object: Option<&Seen>, error: &str) {
        if let Some(object) = object {
            let earlier = self.earlier(object);
            self.write(object, unobserved(earlier, error, object.generation, &now())).await;
        }
    }

    /// Writes what the node asks of the drain controller; answers whether it stands.
    pub(super) async fn ask(&self, object: &Seen, state: &str) -> bool {
        let patch = self.patch(object, &json!({ "annotations": { DESIRED_STATE: state } }));
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.timed("annotations", self.api.patch(&self.node, &params, &Patch::Apply(&patch))).await
    }

    /// Tells Events without waiting.
    pub(super) fn tell(&self, object: Option<&Seen>, happenings: &[Happening]) {
        let Some(object) = object.filter(|_| !happenings.is_empty()) else { return };
        let (recorder, reference, happenings) = (self.recorder.clone(), self.reference(object), happenings.to_vec());
        tokio::spawn(async move { send(&recorder, &reference, &happenings).await });
    }

    /// Tells Events and waits, with a deadline.
    pub(super) async fn tell_now(&self, object: &Seen, happenings: &[Happening]) {
        send(&self.recorder, &self.reference(object), happenings).await;
    }

    fn reference(&self, object: &Seen) -> ObjectReference {
        ObjectReference {
            api_version: Some("sriovnetwork.openshift.io/v1".to_owned()),
            kind: Some("SriovNetworkNodeState".to_owned()),
            name: Some(self.node.clone()),
            namespace: self.api.namespace().map(str::to_owned),
            uid: Some(object.uid.clone()),
            ..ObjectReference::default()
        }
    }

    fn earlier(&self, object: &Seen) -> SriovNetworkNodeStateStatus {
        match &self.published {
            Some((uid, status)) if *uid == object.uid => status.clone(),
            _ => {
                let mut status = object.status.clone();
                // The operator's: repeated by the daemon it would never go away.
                status.conditions.retain(|condition| condition.type_ != DRAINED);
                status
            }
        }
    }

    /// The uid makes the write fail, instead of answering for another object, when this one was deleted and made anew.
    fn patch(&self, object: &Seen, metadata: &Value) -> Value {
        let mut patch = json!({ "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState", "metadata": metadata });
        patch["metadata"]["name"] = json!(self.node);
        patch["metadata"]["uid"] = json!(object.uid);
        patch
    }

    /// Writes the status unless it is written already; answers whether it stands.
    async fn write(&mut self, object: &Seen, status: SriovNetworkNodeStateStatus) -> bool {
        if self.earlier(object) == status {
            return true;
        }
        let mut patch = self.patch(object, &json!({}));
        patch["status"] = json!(status);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = self.timed("status", self.api.patch_status(&self.node, &params, &Patch::Apply(&patch))).await;
        if written {
            self.published = Some((object.uid.clone(), status));
        }
        written
    }

    async fn timed<T>(&self, what: &str, request: impl Future<Output = kube::Result<T>>) -> bool {
        let since = Instant::now();
        let answer = timeout(DEADLINE, request).await;
        self.metrics.took(Timed::Publish, since);
        match answer {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => warn!("cannot write the {what} of node state {}: {error}", self.node),
            Err(_) => warn!("cannot write the {what} of node state {} within {DEADLINE:?}", self.node),
        }
        false
    }
}

async fn send(recorder: &Recorder, reference: &ObjectReference, happenings: &[Happening]) {
    for happening in happenings {
        let event = Event {
            type_: if happening.warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.to_owned(),
            note: Some(happening.note.clone()),
            action: "Configure".to_owned(),
            secondary: None,
        };
        // Lost Events lose nothing: the status says what is so.
        match timeout(DEADLINE, recorder.publish(&event, reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("event {} not told: {error}", happening.reason),
            Err(_) => debug!("event {} not told within {DEADLINE:?}", happening.reason),
        }
    }
}

/// Whole seconds: the API keeps no more, and a status that is read back must equal the one written.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
