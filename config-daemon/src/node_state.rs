//! I/O: the daemon: node state -> wish -> plan -> steps -> status, whenever the cluster or the machine says that something changed.
//!
//! What lives here: the loop, its waits, what follows what. What does not: deciding (`plan`, `handshake`), doing (`apply`, `reboot`), wording
//! (`status`, `situation`), writing to the cluster (`publish`).
//!
//! Guarantees:
//! - A round depends only on the wish and the machine, never on why it runs, so that lost events, restarts and kills do no harm.
//! - The plan is published before it runs. A change costs at most two status writes, none when the status would stay the same.
//! - VFs leave the device plugin's pools before they are changed and enter them when they are ready.
//! - Without an API server the last wish holds, also over a restart; a deleted or not yet rendered node state changes nothing.
//! - An idle daemon waits: no timer runs unless something is left to do.

pub(crate) mod events;
pub(crate) mod inputs;
mod publish;
pub(crate) mod retry;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use sriov_crds::node_state::{SriovNetworkNodeState, SriovNetworkNodeStateSpec};
use sriov_crds::operator_config::SriovOperatorConfig;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::apply::{Outcome, apply};
use crate::desired::Desired;
use crate::handshake::{self, Heard, Move, Need};
use crate::machine::linux::Linux;
use crate::machine::{Machine, ObserveError};
use crate::metrics::{Metrics, Phase as Timed};
use crate::observed::{Observed, SupportedNics};
use crate::plan::refusal::Reason;
use crate::plan::{Plan, plan};
use crate::pools::{Pools, pools};
use crate::reboot::Rebooter;
use crate::situation::{DriftPolicy, Happening, Situation, moved, performed};
use crate::status::Phase;
use events::Events;
use inputs::{Inputs, Seen};
use publish::Publisher;
use retry::{Backoff, Retry, random};

/// Longest wait for the first words of the cluster before the first round is made without them.
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

/// What the daemon is told on its command line.
#[derive(Debug)]
pub struct Settings {
    /// The operator's namespace.
    pub namespace: String,
    /// This node.
    pub node: String,
    /// Every NIC may be configured, also one that `supported-nic-ids` does not list.
    pub every_nic: bool,
    /// What happens when somebody changes the machine.
    pub drift: DriftPolicy,
    /// How the machine is rebooted.
    pub rebooter: Rebooter,
}

/// Runs until an error that a restart may cure.
pub async fn run(client: Client, settings: Settings, machine: Linux, metrics: Arc<Metrics>) -> Result<(), RunError> {
    let events = Events::listen(&machine.store().pod_folders())?;
    let (sender, inputs) = watch::channel(Inputs::default());
    let namespace = settings.namespace.as_str();
    let api: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), namespace);
    let nics: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let configs: Api<SriovOperatorConfig> = Api::namespaced(client.clone(), namespace);
    let node = settings.node.clone();
    let watches = async {
        tokio::join!(
            inputs::watch_node_state(api.clone(), node, sender.clone()),
            inputs::watch_supported_nics(nics, sender.clone()),
            inputs::watch_operator_config(configs, sender.clone())
        )
    };
    let publisher = Publisher::new(client, api.clone(), &settings.node, Arc::clone(&metrics));
    let daemon = Daemon {
        machine: Arc::new(machine),
        inputs,
        events,
        wish: None,
        nics: None,
        publisher,
        backoff: Backoff::default(),
        settled: None,
        drift: None,
        settings,
        metrics,
    };
    tokio::select! {
        ended = daemon.run() => ended,
        _ = watches => Err(RunError::EventsEnded),
    }
}

struct Daemon {
    machine: Arc<Linux>,
    inputs: watch::Receiver<Inputs>,
    events: Events,
    /// The last rendered wish, which holds while the object is gone.
    wish: Option<SriovNetworkNodeStateSpec>,
    /// The supported NICs that were kept, until the cluster tells them.
    nics: Option<SupportedNics>,
    publisher: Publisher,
    backoff: Backoff,
    /// The wish that the machine was last found to be as, with nothing left to do.
    settled: Option<SriovNetworkNodeStateSpec>,
    /// What was changed since, with that wish.
    drift: Option<(SriovNetworkNodeStateSpec, Vec<String>)>,
    settings: Settings,
    metrics: Arc<Metrics>,
}

/// What a round ends with: the worst thing that is left.
type RoundEnd = Option<Retry>;

/// What a round is about.
struct Round<'a> {
    object: Option<&'a Seen>,
    desired: &'a Desired,
    nics: Option<&'a SupportedNics>,
    drains: Option<bool>,
}

impl Daemon {
    async fn run(mut self) -> Result<(), RunError> {
        self.recall();
        // Not reached in time: the first round is made with what was kept, or says what it waits for.
        let complete = |inputs: &Inputs| inputs.node_state.is_some() && inputs.nics.is_some() && inputs.drains.is_some();
        _ = timeout(FIRST_WORDS, self.inputs.wait_for(complete)).await;
        loop {
            self.inputs.mark_unchanged();
            self.metrics.begin();
            let end = self.round().await?;
            self.metrics.end();
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

    /// Takes up what an earlier process kept, so that a machine without its API server is as it was asked to be.
    fn recall(&mut self) {
        match (self.machine.store().kept_wish(), self.machine.store().kept_nics()) {
            (Ok(wish), Ok(nics)) => (self.wish, self.nics) = (wish.filter(|spec| Desired::read(spec).rendered), nics),
            (Err(error), _) | (_, Err(error)) => warn!("{error}"),
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
        let nics = self.supported_nics(&inputs);
        let (desired, waiting_for) = self.desired(&inputs, nics.is_some() || self.settings.every_nic);
        let nics = if self.settings.every_nic { None } else { nics };
        let round = Round { object, desired: &desired, nics: nics.as_ref(), drains: inputs.drains };
        let observed = match self.observe(round.nics).await? {
            Ok(observed) => observed,
            Err(error) => return Ok(Some(self.cannot_observe(object, &error).await)),
        };
        let planned = plan(&desired, &observed);
        if let Some(text) = waiting_for {
            let written = self.publisher.publish(object, &observed, &planned, &Phase::NotRendered(text), &Situation::default()).await;
            return Ok(if written { None } else { Some(Retry::Publish) });
        }
        if let Err(error) = self.machine.store().write_rules(&desired) {
            warn!("{error}");
        }
        let repairs = self.look_for_drift(&planned);
        if planned.steps.is_empty() || !repairs {
            return Ok(self.finish(&round, &observed, None).await);
        }
        let situation = self.situation(&round, &planned, Move::Rest);
        self.publisher.publish(object, &observed, &planned, &Phase::Applying, &situation).await;
        if !self.write_pools(&pools(&desired, &observed, &planned)) {
            // VFs that the device plugin may hand out at any moment must not be changed.
            return Ok(Some(Retry::Step));
        }
        let outcome = self.apply(&planned).await?;
        self.publisher.tell(object, &performed(&planned, &outcome));
        self.events.settle().await;
        match self.observe(round.nics).await? {
            Ok(observed) => Ok(self.finish(&round, &observed, Some(&outcome)).await),
            Err(error) => Ok(Some(self.cannot_observe(object, &error).await)),
        }
    }

    /// The NICs that may be configured: the cluster's list, or before it is known the one that was kept.
    fn supported_nics(&mut self, inputs: &Inputs) -> Option<SupportedNics> {
        if let Some(nics) = &inputs.nics
            && self.nics.as_ref() != Some(nics)
        {
            if let Err(error) = self.machine.store().keep_nics(&inputs.nic_entries) {
                warn!("{error}");
            }
            self.nics = Some(nics.clone());
        }
        self.nics.clone()
    }

    /// The wish that holds, and what is waited for when there is none.
    fn desired(&mut self, inputs: &Inputs, nics_known: bool) -> (Desired, Option<String>) {
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
        match &self.wish {
            Some(_) if !nics_known => {
                (Desired::default(), Some("the ConfigMap supported-nic-ids could not be read yet; nothing is changed until then".to_owned()))
            }
            Some(wish) => (Desired::read(wish), None),
            None => (Desired::default(), Some("there is no node state for this node".to_owned())),
        }
    }

    /// Remembers what was changed since the machine was as asked; answers whether steps are performed.
    fn look_for_drift(&mut self, planned: &Plan) -> bool {
        let Some(wish) = &self.wish else { return true };
        let known = self.drift.take().filter(|(of, _)| of == wish);
        if planned.steps.is_empty() {
            self.drift = None;
        } else if self.settled.as_ref() == Some(wish) {
            let lines: Vec<String> = planned.steps.iter().map(ToString::to_string).collect();
            info!("the machine was as asked and was changed from outside: {}", lines.join("; "));
            self.metrics.drifted();
            self.settled = None;
            self.drift = Some((wish.clone(), lines));
        } else {
            self.drift = known;
        }
        self.drift.is_none() || self.settings.drift == DriftPolicy::Repair
    }

    /// Publishes what is left to do, offers what is ready, and goes on with the handshake. `outcome` is that of this round's plan, if there was one.
    async fn finish(&mut self, round: &Round<'_>, observed: &Observed, outcome: Option<&Outcome>) -> RoundEnd {
        let residual = plan(round.desired, observed);
        let offered = pools(round.desired, observed, &residual);
        let is_offered = self.write_pools(&offered);
        self.metrics.settled(observed, &residual, &offered);
        let failures = outcome.map(Outcome::lines).unwrap_or_default();
        let left_alone = self.drift.is_some() && self.settings.drift == DriftPolicy::Report;
        let finished = failures.is_empty() && (residual.steps.is_empty() || left_alone);
        if finished && !left_alone {
            self.drift = None;
            // With something refused the machine is not as asked: what then follows a change (pods that end) is no drift.
            self.settled = if residual.is_empty() { self.wish.clone() } else { None };
        }
        let heard = round.object.map(|object| object.heard.clone()).unwrap_or_default();
        let next = match (round.object, round.drains) {
            (Some(_), Some(drains)) => handshake::next(Need::of(&residual), finished, &heard, drains),
            _ => Move::Rest,
        };
        let situation = self.situation(round, &residual, next);
        let told = if left_alone { Phase::Settled(Vec::new()) } else { Phase::Settled(failures) };
        let shown = if left_alone { &Plan { steps: Vec::new(), ..residual.clone() } } else { &residual };
        let written = self.publisher.publish(round.object, observed, shown, &told, &situation).await;
        let answered = self.act(round.object, &residual, &heard, &situation).await;
        if !finished || !is_offered {
            Some(Retry::Step)
        } else if !written || !answered {
            Some(Retry::Publish)
        } else if !observed.faults.is_empty() {
            Some(Retry::Observe)
        } else {
            residual.refusals.iter().any(|r| r.reason == Reason::VfsInUse).then_some(Retry::VfsInUse)
        }
    }

    fn situation(&self, round: &Round<'_>, planned: &Plan, next: Move) -> Situation {
        let need = Need::of(planned);
        let rebooted = need == Need::Reboot && self.machine.was_rebooted_for(&cause(planned));
        Situation {
            need,
            next: (next != Move::Rest).then_some(next),
            heard: round.object.map(|object| object.heard.clone()).unwrap_or_default(),
            drift: self.drift.as_ref().map(|(_, lines)| lines.clone()).unwrap_or_default(),
            repaired: self.settings.drift == DriftPolicy::Repair,
            reboot_did_not_help: rebooted,
        }
    }

    /// The next move of the handshake; answers whether it was made.
    async fn act(&mut self, object: Option<&Seen>, residual: &Plan, heard: &Heard, situation: &Situation) -> bool {
        let Some(object) = object else { return true };
        if situation.need != Need::Reboot && residual.steps.is_empty() {
            self.machine.forget_reboot();
        }
        if situation.reboot_did_not_help {
            return true;
        }
        match situation.next.unwrap_or(Move::Rest) {
            next @ Move::Ask(state) => {
                info!("{}", handshake::sentence(next, heard));
                let asked = self.publisher.ask(object, state).await;
                if asked {
                    self.publisher.tell(Some(object), moved(next, residual, heard).as_slice());
                }
                asked
            }
            next @ Move::Reboot => {
                self.publisher.tell_now(object, moved(next, residual, heard).as_slice()).await;
                self.reboot(object, &cause(residual)).await
            }
            Move::Wait(_) | Move::Rest => true,
        }
    }

    /// Remembers the cause, then reboots. What could not be remembered is not rebooted for: it might be again and again.
    async fn reboot(&self, object: &Seen, cause: &str) -> bool {
        if let Err(error) = self.machine.remember_reboot(cause) {
            warn!("not rebooting: {error}");
            return false;
        }
        warn!("rebooting this machine: {cause}");
        let rebooter = self.settings.rebooter.clone();
        match spawn_blocking(move || rebooter.reboot()).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!("{error}");
                self.machine.forget_reboot();
                self.publisher.tell(Some(object), &[Happening::new(true, "RebootFailed", &error.to_string())]);
                false
            }
            Err(_) => false,
        }
    }

    async fn observe(&self, nics: Option<&SupportedNics>) -> Result<Result<Observed, ObserveError>, RunError> {
        let (machine, since) = (Arc::clone(&self.machine), std::time::Instant::now());
        let observed = spawn_blocking(move || machine.observe()).await?;
        self.metrics.took(Timed::Observe, since);
        Ok(observed.map(|observed| Observed { supported_nics: nics.cloned(), ..observed }))
    }

    async fn apply(&self, planned: &Plan) -> Result<Outcome, RunError> {
        let (machine, plan, since) = (Arc::clone(&self.machine), planned.clone(), std::time::Instant::now());
        let outcome = spawn_blocking(move || apply(machine.as_ref(), &plan)).await?;
        self.metrics.took(Timed::Apply, since);
        self.metrics.performed(planned, &outcome);
        Ok(outcome)
    }

    fn write_pools(&self, pools: &Pools) -> bool {
        match self.machine.store().write_pools(pools) {
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
        self.publisher.cannot_observe(object, &error.to_string()).await;
        Retry::Observe
    }
}

/// What a reboot would be for: the same words for the same plan.
fn cause(planned: &Plan) -> String {
    planned.disruption.to_string()
}
