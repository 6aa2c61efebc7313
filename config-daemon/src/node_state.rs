//! I/O: the daemon: node state -> wish -> plan -> steps -> status, whenever the cluster or the machine says that something changed.
//!
//! What lives here: the loop, its waits, what is published when. What does not: deciding (`plan`), doing (`apply`), wording (`status`).
//!
//! Guarantees:
//! - A round depends only on the wish and the machine, never on why it runs, so that lost events, restarts and kills do no harm.
//! - The plan is published before it runs. A change costs at most two status writes, none when the status would stay the same.
//! - VFs leave the device plugin's pools before they are changed and enter them when they are ready.
//! - Without an API server the last wish holds; a deleted or not yet rendered node state changes nothing.

pub(crate) mod events;
pub(crate) mod inputs;
pub(crate) mod retry;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sriov_crds::node_state::{SriovNetworkNodeState, SriovNetworkNodeStateSpec, SriovNetworkNodeStateStatus};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::apply::{Outcome, apply};
use crate::desired::Desired;
use crate::machine::linux::Linux;
use crate::machine::{Machine, ObserveError};
use crate::observed::{Observed, SupportedNics};
use crate::plan::refusal::Reason;
use crate::plan::{Plan, plan};
use crate::pools::pools;
use crate::status::{Phase, Report, status, unobserved};
use events::Events;
use inputs::{Inputs, Seen};
use retry::{Backoff, Retry};

/// Field manager of the status.
const FIELD_MANAGER: &str = "sriov-network-config-daemon";
/// Longest wait for one status write. Work on the machine does not wait for an API server that is away.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for the first words of the cluster before the first status is published without them.
const FIRST_WORDS: Duration = Duration::from_secs(3);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Device events cannot be had.
    #[error(transparent)]
    Listen(#[from] events::ListenError),
    /// A thread that listens has ended; its own words are in the log.
    #[error("changes of the machine are not told any more")]
    EventsEnded,
    /// A blocking task was lost.
    #[error("a task of the daemon was lost: {0}")]
    TaskLost(#[from] JoinError),
}

/// Runs until an error that a restart may cure.
pub async fn run(client: Client, namespace: &str, node: &str, machine: Linux) -> Result<(), RunError> {
    let events = Events::listen(&machine.store().pod_folders())?;
    let (sender, inputs) = watch::channel(Inputs::default());
    let api: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), namespace);
    let nics: Api<ConfigMap> = Api::namespaced(client, namespace);
    let watches = async {
        tokio::join!(inputs::watch_node_state(api.clone(), node.to_owned(), sender.clone()), inputs::watch_supported_nics(nics, sender.clone()))
    };
    let daemon = Daemon {
        machine: Arc::new(machine),
        api: api.clone(),
        node: node.to_owned(),
        inputs,
        events,
        wish: None,
        published: None,
        backoff: Backoff::default(),
    };
    tokio::select! {
        ended = daemon.run() => ended,
        _ = watches => Err(RunError::EventsEnded),
    }
}

struct Daemon {
    machine: Arc<Linux>,
    api: Api<SriovNetworkNodeState>,
    node: String,
    inputs: watch::Receiver<Inputs>,
    events: Events,
    /// The last rendered wish, which holds while the object is gone.
    wish: Option<SriovNetworkNodeStateSpec>,
    /// What the object with this uid says by our last write.
    published: Option<(String, SriovNetworkNodeStateStatus)>,
    backoff: Backoff,
}

/// What a round ends with: the worst thing that is left.
type RoundEnd = Option<Retry>;

impl Daemon {
    async fn run(mut self) -> Result<(), RunError> {
        // Not reached in time: the first round says so in the status, or there is no object to say it in.
        let complete = |inputs: &Inputs| inputs.node_state.is_some() && inputs.nics.is_some();
        _ = timeout(FIRST_WORDS, self.inputs.wait_for(complete)).await;
        loop {
            self.inputs.mark_unchanged();
            let end = self.round().await?;
            let again = match end {
                None => {
                    self.backoff.reset();
                    None
                }
                Some(retry) => {
                    let wait = self.backoff.next(retry, random());
                    debug!("{retry:?} again in {wait:?}");
                    Some(Instant::now() + wait)
                }
            };
            self.wait(again).await?;
        }
    }

    /// Waits for a change of the cluster or the machine, or for the next try.
    async fn wait(&mut self, again: Option<Instant>) -> Result<(), RunError> {
        let timer = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.inputs.changed() => {
                self.backoff.reset();
                changed.map_err(|_| RunError::EventsEnded)
            }
            event = self.events.next() => {
                event.ok_or(RunError::EventsEnded)?;
                self.events.settle().await;
                Ok(())
            }
            () = timer => Ok(()),
        }
    }

    async fn round(&mut self) -> Result<RoundEnd, RunError> {
        let inputs = self.inputs.borrow().clone();
        let object = inputs.node_state.as_ref();
        let (desired, waiting_for) = self.desired(&inputs);
        let observed = match self.observe(inputs.nics.clone()).await? {
            Ok(observed) => observed,
            Err(error) => return Ok(Some(self.cannot_observe(object, &error).await)),
        };
        let planned = plan(&desired, &observed);
        if let Some(text) = waiting_for {
            let written = self.publish(object, &observed, &planned, &Phase::NotRendered(text)).await;
            return Ok(if written { None } else { Some(Retry::Publish) });
        }
        if planned.steps.is_empty() {
            return Ok(self.finish(object, &desired, &observed, Vec::new()).await);
        }
        self.publish(object, &observed, &planned, &Phase::Applying).await;
        if !self.write_pools(&desired, &observed, &planned) {
            // VFs that the device plugin may hand out at any moment must not be changed.
            return Ok(Some(Retry::Step));
        }
        let outcome = self.apply(planned).await?;
        self.events.settle().await;
        match self.observe(inputs.nics.clone()).await? {
            Ok(observed) => Ok(self.finish(object, &desired, &observed, outcome.lines()).await),
            Err(error) => Ok(Some(self.cannot_observe(object, &error).await)),
        }
    }

    /// The wish that holds, and what is waited for when there is none.
    fn desired(&mut self, inputs: &Inputs) -> (Desired, Option<String>) {
        if let Some(object) = &inputs.node_state {
            if !Desired::read(&object.spec).rendered {
                return (Desired::default(), Some("the operator has not rendered this node's spec yet; nothing is changed until then".to_owned()));
            }
            if self.wish.as_ref() != Some(&object.spec) {
                if let Err(error) = self.machine.store().keep_wish(&object.spec) {
                    warn!("{error}");
                }
                self.wish = Some(object.spec.clone());
            }
        }
        match (&self.wish, &inputs.nics) {
            (Some(_), None) => {
                (Desired::default(), Some("the ConfigMap supported-nic-ids could not be read yet; nothing is changed until then".to_owned()))
            }
            (Some(wish), Some(_)) => (Desired::read(wish), None),
            (None, _) => (Desired::default(), Some("there is no node state for this node".to_owned())),
        }
    }

    /// Publishes what is left to do and offers what is ready.
    async fn finish(&mut self, object: Option<&Seen>, desired: &Desired, observed: &Observed, failures: Vec<String>) -> RoundEnd {
        let residual = plan(desired, observed);
        let offered = self.write_pools(desired, observed, &residual);
        let left = !failures.is_empty() || !residual.steps.is_empty();
        let written = self.publish(object, observed, &residual, &Phase::Settled(failures)).await;
        if left || !offered {
            Some(Retry::Step)
        } else if !written {
            Some(Retry::Publish)
        } else if !observed.faults.is_empty() {
            Some(Retry::Observe)
        } else {
            residual.refusals.iter().any(|r| r.reason == Reason::VfsInUse).then_some(Retry::VfsInUse)
        }
    }

    async fn observe(&self, nics: Option<SupportedNics>) -> Result<Result<Observed, ObserveError>, RunError> {
        let machine = Arc::clone(&self.machine);
        let observed = spawn_blocking(move || machine.observe()).await?;
        Ok(observed.map(|observed| Observed { supported_nics: nics, ..observed }))
    }

    async fn apply(&self, planned: Plan) -> Result<Outcome, RunError> {
        let machine = Arc::clone(&self.machine);
        Ok(spawn_blocking(move || apply(machine.as_ref(), &planned)).await?)
    }

    fn write_pools(&self, desired: &Desired, observed: &Observed, planned: &Plan) -> bool {
        match self.machine.store().write_pools(&pools(desired, observed, planned)) {
            Ok(true) => info!("the device plugin's pools changed"),
            Ok(false) => {}
            Err(error) => {
                warn!("{error}");
                return false;
            }
        }
        true
    }

    async fn cannot_observe(&mut self, object: Option<&Seen>, error: &ObserveError) -> Retry {
        warn!("{error}");
        if let Some(object) = object {
            let earlier = self.earlier(object);
            self.write(object, unobserved(earlier, &error.to_string(), object.generation, &now())).await;
        }
        Retry::Observe
    }

    async fn publish(&mut self, object: Option<&Seen>, observed: &Observed, planned: &Plan, phase: &Phase) -> bool {
        let Some(object) = object else { return true };
        let earlier = self.earlier(object);
        let report = Report { observed, plan: planned, phase, generation: object.generation };
        self.write(object, status(report, &earlier.conditions, &now())).await
    }

    fn earlier(&self, object: &Seen) -> SriovNetworkNodeStateStatus {
        match &self.published {
            Some((uid, status)) if *uid == object.uid => status.clone(),
            _ => {
                let mut status = object.status.clone();
                // The operator's: repeated by the daemon it would never go away.
                status.conditions.retain(|condition| condition.type_ != sriov_crds::conditions::DRAINED);
                status
            }
        }
    }

    /// Writes the status unless it is written already; answers whether it stands.
    async fn write(&mut self, object: &Seen, status: SriovNetworkNodeStateStatus) -> bool {
        if self.earlier(object) == status {
            return true;
        }
        // The uid makes the write fail, instead of answering for another object, when this one was deleted and made anew.
        let patch = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodeState",
            "metadata": { "name": self.node, "uid": object.uid }, "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match timeout(PUBLISH_DEADLINE, self.api.patch_status(&self.node, &params, &Patch::Apply(&patch))).await {
            Ok(Ok(_)) => {
                self.published = Some((object.uid.clone(), status));
                return true;
            }
            Ok(Err(error)) => warn!("cannot write the status of node state {}: {error}", self.node),
            Err(_) => warn!("cannot write the status of node state {} within {PUBLISH_DEADLINE:?}", self.node),
        }
        false
    }
}

/// Whole seconds: the API keeps no more, and a status that is read back must equal the one written.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// From 0 to 1, different in each process.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(std::process::id());
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
