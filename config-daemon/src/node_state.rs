//! I/O: the daemon: node state -> wish -> plan -> steps -> status, whenever the cluster or the machine says that something changed.
//!
//! What lives here: the loop, its waits, what follows what. What does not: deciding (`plan`, `handshake`), doing (`apply`, `reboot`), wording
//! (`status`, `situation`), writing to the cluster (`publish`).
//!
//! Guarantees:
//! - What is done depends only on the wish and a look at the whole machine, never on what an event said, so that lost events, restarts and kills do no
//!   harm. An event costs a look at what it names, and one at everything when something is to be done.
//! - The plan is published before it runs. A change costs at most two status writes, none when the status would stay the same.
//! - VFs leave the device plugin's pools before they are changed and enter them when they are ready.
//! - Without an API server the last wish holds, also over a restart; a deleted or not yet rendered node state changes nothing.
//! - An idle daemon waits: no timer runs unless something is left to do.

pub(crate) mod events;
mod failures;
pub(crate) mod inputs;
mod publish;
pub(crate) mod retry;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use sriov_crds::node_state::{SriovNetworkNodeState, SriovNetworkNodeStateSpec};
use sriov_crds::operator_config::SriovOperatorConfig;
use sriov_host::discover::Changes;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::apply::{Outcome, apply};
use crate::bridges::followed;
use crate::desired::Desired;
use crate::handshake::Move;
use crate::machine::ObserveError;
use crate::machine::linux::Linux;
use crate::metrics::{Metrics, Phase as Timed};
use crate::observed::{Observed, SupportedNics};
use crate::ovsdb::follow::Names;
use crate::plan::{Plan, plan};
use crate::pools::{Pools, pools};
use crate::reboot::Rebooter;
use crate::situation::{DriftPolicy, Situation, performed};
use crate::status::Phase;
use events::Events;
use failures::Failures;
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
    /// Whether firmware that waits for a reboot is reset before it.
    pub resets_firmware: bool,
    /// Takes the `logLevel` of the operator configuration, each time that it changes.
    pub log_level: fn(Option<i64>),
}

/// Runs until an error that a restart may cure.
pub async fn run(client: Client, settings: Settings, machine: Linux, metrics: Arc<Metrics>) -> Result<(), RunError> {
    let events = Events::listen(&machine.store().pod_folders())?;
    let (sender, inputs) = watch::channel(Inputs::default());
    let namespace = settings.namespace.as_str();
    let api: Api<SriovNetworkNodeState> = Api::namespaced(client.clone(), namespace);
    let nics: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let configs: Api<SriovOperatorConfig> = Api::namespaced(client.clone(), namespace);
    let (node, log_level) = (settings.node.clone(), settings.log_level);
    let watches = async {
        tokio::join!(
            inputs::watch_node_state(api.clone(), node, sender.clone()),
            inputs::watch_supported_nics(nics, sender.clone()),
            inputs::watch_operator_config(configs, sender.clone(), log_level)
        )
    };
    let publisher = Publisher::new(client, api.clone(), &settings.node, Arc::clone(&metrics));
    let (ovsdb, changed) = (machine.ovsdb().cloned(), events.waker());
    let (bridge_names, names) = watch::channel(Names::new());
    let bridges = async {
        match ovsdb {
            Some(ovsdb) => ovsdb.follow(&followed(), names, changed).await,
            None => std::future::pending().await,
        }
    };
    let daemon = Daemon {
        machine: Arc::new(machine),
        inputs,
        events,
        bridge_names,
        wish: None,
        nics: None,
        publisher,
        backoff: Backoff::default(),
        failures: Failures::default(),
        settled: None,
        drift: None,
        settings,
        metrics,
    };
    tokio::select! {
        ended = daemon.run() => ended,
        _ = watches => Err(RunError::EventsEnded),
        () = bridges => Err(RunError::EventsEnded),
    }
}

struct Daemon {
    machine: Arc<Linux>,
    inputs: watch::Receiver<Inputs>,
    events: Events,
    /// What of Open vSwitch's database is followed.
    bridge_names: watch::Sender<Names>,
    /// The last rendered wish, which holds while the object is gone.
    wish: Option<SriovNetworkNodeStateSpec>,
    /// The supported NICs that were kept, until the cluster tells them.
    nics: Option<SupportedNics>,
    publisher: Publisher,
    backoff: Backoff,
    failures: Failures,
    /// The wish that the machine was last found to be as, with nothing left to do.
    settled: Option<SriovNetworkNodeStateSpec>,
    /// What was changed since, with that wish.
    drift: Option<(SriovNetworkNodeStateSpec, Vec<String>)>,
    settings: Settings,
    metrics: Arc<Metrics>,
}

/// What a round ends with.
#[derive(Clone, Copy, Debug, Default)]
struct RoundEnd {
    /// The worst thing that is left, besides steps that failed.
    retry: Option<Retry>,
    /// When the first step that failed may be tried again.
    held: Option<Instant>,
}

impl From<Retry> for RoundEnd {
    fn from(retry: Retry) -> Self {
        Self { retry: Some(retry), held: None }
    }
}

/// Why a round is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The machine said that something changed, and what.
    Event,
    /// Open vSwitch's database said that something of our bridges changed.
    Bridges,
    /// The start, another wish, another try.
    Other,
}

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
        let (mut why, mut again) = (Why::Other, None);
        loop {
            self.inputs.mark_unchanged();
            self.metrics.begin();
            let end = self.round(why).await?;
            self.metrics.end();
            let next = match end.retry {
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
            // A look at bridges alone puts off no other.
            again = if why == Why::Bridges { [again, next].into_iter().flatten().min() } else { next };
            why = self.wait([again, end.held].into_iter().flatten().min()).await?;
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
    async fn wait(&mut self, again: Option<Instant>) -> Result<Why, RunError> {
        let timer = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.inputs.changed() => {
                self.backoff.reset();
                changed.map(|()| Why::Other).map_err(|_| RunError::EventsEnded)
            }
            event = self.events.next() => {
                event.ok_or(RunError::EventsEnded)?;
                self.events.settle().await;
                self.failures.machine_changed(Instant::now());
                Ok(if self.events.of_machine() { Why::Event } else { Why::Bridges })
            }
            () = timer => Ok(Why::Other),
        }
    }

    async fn round(&mut self, why: Why) -> Result<RoundEnd, RunError> {
        let inputs = self.inputs.borrow().clone();
        let object = inputs.node_state.as_ref();
        let nics = self.supported_nics(&inputs);
        let (desired, waiting_for) = self.desired(&inputs, nics.is_some() || self.settings.every_nic);
        let nics = if self.settings.every_nic { None } else { nics };
        let round = Round { object, desired: &desired, nics: nics.as_ref(), drains: inputs.drains };
        let (observed, planned) = match self.look(&round, why).await? {
            Ok(looked) => looked,
            Err(error) => return Ok(self.cannot_observe(object, &error).await.into()),
        };
        if let Some(text) = waiting_for {
            let written = self.publisher.publish(object, &observed, &planned, &Phase::NotRendered(text), &Situation::default()).await;
            return Ok(RoundEnd { retry: (!written).then_some(Retry::Publish), held: None });
        }
        if let Err(error) = self.machine.store().write_rules(&desired) {
            warn!("{error}");
        }
        let repairs = self.look_for_drift(&planned);
        let due = self.failures.due(&planned, &observed, Instant::now());
        if due.steps.is_empty() || !repairs {
            return Ok(self.finish(&round, &observed, None).await);
        }
        let situation = self.situation(&round, &planned, Move::Rest);
        self.publisher.publish(object, &observed, &planned, &Phase::Applying, &situation).await;
        if !self.write_pools(&pools(&desired, &observed, &planned)) {
            // VFs that the device plugin may hand out at any moment must not be changed.
            return Ok(Retry::Step.into());
        }
        let outcome = self.apply(&due).await?;
        self.publisher.tell(object, &performed(&due, &outcome));
        self.events.settle().await;
        match self.observe(round.nics, Why::Other).await? {
            Ok(observed) => Ok(self.finish(&round, &observed, Some(&outcome)).await),
            Err(error) => Ok(self.cannot_observe(object, &error).await.into()),
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
                self.failures.clear();
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

    /// What is there and what is to be done. Steps are planned from a look at everything: what only seems to be missing, because a change of it was not
    /// announced, leads to a second look and not to a step.
    async fn look(&self, round: &Round<'_>, why: Why) -> Result<Result<(Observed, Plan), ObserveError>, RunError> {
        let observed = match self.observe(round.nics, why).await? {
            Ok(observed) => observed,
            Err(error) => return Ok(Err(error)),
        };
        let planned = plan(round.desired, &observed);
        if why == Why::Other || planned.steps.is_empty() {
            return Ok(Ok((observed, planned)));
        }
        let observed = self.observe(round.nics, Why::Other).await?;
        Ok(observed.map(|observed| {
            let planned = plan(round.desired, &observed);
            (observed, planned)
        }))
    }

    /// A look at what events named, at bridges, or at everything.
    async fn observe(&self, nics: Option<&SupportedNics>, why: Why) -> Result<Result<Observed, ObserveError>, RunError> {
        let (machine, since) = (Arc::clone(&self.machine), std::time::Instant::now());
        let changes = match why {
            // What was named without a reason to look stays for the next look at the machine.
            Why::Bridges => None,
            Why::Event => Some(self.events.take()),
            Why::Other => {
                self.events.take();
                Some(Changes::everything())
            }
        };
        let observed = spawn_blocking(move || changes.map_or_else(|| machine.look_at_bridges(), |changes| machine.look(&changes))).await?;
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
