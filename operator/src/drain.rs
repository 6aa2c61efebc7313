//! I/O: the drain controller: answers a daemon that asks for its node to be emptied, within what the pools allow, and gives the node back.
//!
//! Rooms: `steps` (pure: what is next for one node), `pools` (pure: who may go now), `pods` (pure: which pods are in the way), `evict`, `apply`
//! and `report` (the API). One node is one key, and every step is found anew from what the caches say, so that another process can go on at any
//! point. Nothing is asked of the API server for a node that waits.
//!
//! Invariants: a cordon that the operator did not make is never taken back; a drain that does not come to an end gives the node back.

mod apply;
mod evict;
mod listen;
mod pods;
pub(crate) mod pools;
mod report;
mod steps;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use sriov_crds::conditions::{Outcome, drain as reason};
use sriov_crds::{SriovNetworkNodeState, keys};
use tokio::time::Instant;

use crate::cache::{Cache, Key};
use crate::context::Context;
use crate::fleet::{Fleet, PoolGuard};
use crate::queue::{self, Next, Queue, Requests, Retry, Retryable};
use crate::resources::{self, RequestFailed};
use pods::Scope;
use pools::Pools;
use steps::{Phase, Request, Step, View};

/// How many nodes are worked on at a time; a drain that waits for pods takes no place here.
const CONCURRENCY: usize = 16;
/// Shortest time between two writes of one pool's status, and between two counts of the nodes.
const SUMMARY_PERIOD: Duration = Duration::from_secs(1);
/// After what time an eviction that a budget refused is asked for again, as kubectl does.
const BUDGET_PERIOD: Duration = Duration::from_secs(5);
/// Longest time that a node whose drain came to no end waits for another.
const LONGEST_REST: Duration = Duration::from_mins(5);

/// What is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Node(String),
    Pool(String),
    /// The number of nodes by state.
    Census,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Census => f.write_str("all nodes"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Request(#[from] RequestFailed),
}

impl Retryable for Error {
    fn retry(&self) -> Retry {
        let Self::Request(request) = self;
        request.retry()
    }

    fn reason(&self) -> &'static str {
        let Self::Request(request) = self;
        request.reason()
    }
}

/// A drain under way.
struct Drain {
    started: Instant,
    cordoned: Cell<bool>,
    pods: Arc<Cache<Pod>>,
    /// ResourceClaims that were looked at: whether they hold a VF.
    claims: RefCell<BTreeMap<(String, String), bool>>,
    /// DaemonSet pods that are waited for; those made after them are not, or there would be no end.
    of_daemon_sets: RefCell<Option<BTreeSet<String>>>,
    _watch: evict::PodWatch,
}

/// The controller.
pub struct Controller<'a> {
    context: &'a Context,
    fleet: &'a Fleet,
    queue: Queue<Subject>,
    requests: RefCell<Option<Requests<Subject>>>,
    pools: RefCell<Pools>,
    drains: RefCell<BTreeMap<String, Rc<Drain>>>,
    /// Nodes whose drain came to no end, until when they wait.
    resting: RefCell<BTreeMap<String, Instant>>,
    summarised: RefCell<BTreeMap<Subject, Instant>>,
}

impl<'a> Controller<'a> {
    /// Of this process, on these caches.
    pub fn new(context: &'a Context, fleet: &'a Fleet) -> Self {
        let (queue, requests) = queue::new();
        let requests = requests.measured(context.metrics.meter("drain"));
        Self {
            context,
            fleet,
            queue,
            requests: RefCell::new(Some(requests)),
            pools: RefCell::default(),
            drains: RefCell::default(),
            resting: RefCell::default(),
            summarised: RefCell::default(),
        }
    }

    /// Runs; ends only by being dropped.
    pub async fn run(&self) {
        let Some(requests) = self.requests.take() else { return };
        self.fleet.ready().await;
        for pool in self.fleet.pools.list() {
            let done = pool.0.as_ref().ok().and_then(|pool| pool.status.as_ref()).map_or(0, |status| status.done);
            self.pools.borrow_mut().resume(&pool.name_any(), usize::try_from(done).unwrap_or(0));
        }
        requests.serve(CONCURRENCY, |subject| self.reconcile(subject)).await;
    }

    async fn reconcile(&self, subject: Subject) -> Result<Next, Error> {
        match &subject {
            Subject::Node(name) => self.node(name).await,
            Subject::Pool(_) | Subject::Census => {
                let last = self.summarised.borrow().get(&subject).copied();
                if let Some(left) = last.and_then(|last| SUMMARY_PERIOD.checked_sub(last.elapsed())) {
                    return Ok(Next::After(left));
                }
                self.summarised.borrow_mut().insert(subject.clone(), Instant::now());
                match &subject {
                    Subject::Pool(name) => self.pool(name).await?,
                    _ => report::census(self.context, self.fleet),
                }
                Ok(Next::Wait)
            }
        }
    }

    async fn pool(&self, name: &str) -> Result<(), Error> {
        let Some(object) = self.fleet.pools.get(&self.key(name)) else { return Ok(()) };
        let api: Api<PoolGuard> = Api::namespaced(self.context.client.clone(), &self.context.settings.namespace);
        resources::release(&api, object.as_ref(), keys::POOL_FINALIZER).await?;
        let Ok(object) = &object.0 else { return Ok(()) };
        let (counts, invalid) = {
            let pools = self.pools.borrow();
            (pools.counts(name), pools.invalid(name).cloned())
        };
        Ok(report::pool(self.context, object, counts, invalid).await?)
    }

    fn key(&self, name: &str) -> Key {
        Key::new(&self.context.settings.namespace, name)
    }

    async fn node(&self, name: &str) -> Result<Next, Error> {
        let Some(state) = self.fleet.states.get(&self.key(name)) else {
            self.drains.borrow_mut().remove(name);
            return Ok(Next::Wait);
        };
        // Its annotations are there also when the rest cannot be read, but what the plan names is not; the node then waits.
        let Ok(state) = &state.0 else { return Ok(Next::Wait) };
        let view = self.view(name, state);
        match steps::decide(view) {
            Step::Leave => Ok(Next::Wait),
            Step::Rest => {
                self.forget(name);
                if self.context.settings.external_drainer {
                    apply::leave_to_another(self.context, name).await?;
                }
                report::drained(self.context, state, None).await?;
                Ok(Next::Wait)
            }
            Step::Hold => {
                self.drains.borrow_mut().remove(name);
                Ok(Next::Wait)
            }
            Step::Pass(why) => {
                apply::current_state(self.context, name, keys::DRAIN_COMPLETE).await?;
                self.say(state, true, reason::COMPLETE, why.to_owned()).await?;
                Ok(Next::Wait)
            }
            Step::GiveBack => self.give_back(name, state, &view).await,
            Step::Ask => self.ask(name, state, view.request).await,
            Step::Evict => self.evict(name, state, view.request).await,
        }
    }

    fn view(&self, name: &str, state: &SriovNetworkNodeState) -> View {
        let node = self.fleet.nodes.get(&Key::new("", name));
        let config = self.fleet.config(&self.context.settings.namespace);
        View {
            request: Request::of(state),
            phase: Phase::of(state),
            external: state.annotations().get(keys::USE_EXTERNAL_DRAINER).is_some_and(|value| value == "true"),
            node: node.is_some(),
            cordoned: node.is_some_and(|node| node.annotations().contains_key(keys::CORDONED)),
            disabled: config.is_some_and(|config| config.spec.disable_drain),
            alone: self.pools.borrow().nodes() == 1,
        }
    }

    fn forget(&self, name: &str) {
        self.drains.borrow_mut().remove(name);
        self.resting.borrow_mut().remove(name);
    }

    async fn ask(&self, name: &str, state: &SriovNetworkNodeState, request: Request) -> Result<Next, Error> {
        let until = self.resting.borrow().get(name).copied();
        if let Some(left) = until.and_then(|until| until.checked_duration_since(Instant::now())).filter(|left| !left.is_zero()) {
            return Ok(Next::After(left));
        }
        let answer = self.pools.borrow_mut().admit(name);
        if let Err(refusal) = answer {
            let (reason, message) = report::waiting(&refusal);
            self.say(state, false, reason, message).await?;
            return Ok(Next::Wait);
        }
        if let Err(error) = apply::current_state(self.context, name, keys::DRAINING).await {
            self.pools.borrow_mut().withdraw(name);
            return Err(error.into());
        }
        tracing::info!(node = name, ?request, "drain begins");
        report::event(self.context, state, true, "DrainStarted", "pods that are in the way are evicted").await;
        self.evict(name, state, request).await
    }

    async fn evict(&self, name: &str, state: &SriovNetworkNodeState, request: Request) -> Result<Next, Error> {
        let drain = self.drain(name);
        let timeout = self.context.settings.drain_timeout;
        if !drain.cordoned.get() {
            apply::cordon(self.context, name, request.as_str()).await?;
            drain.cordoned.set(true);
        }
        drain.pods.ready().await;
        let left = evict::round(self.context, &drain, &self.scope(state, request)).await?;
        if left.is_empty() {
            apply::current_state(self.context, name, keys::DRAIN_COMPLETE).await?;
            self.context.metrics.drained("Complete", Some(drain.started.elapsed()));
            tracing::info!(node = name, ms = u64::try_from(drain.started.elapsed().as_millis()).unwrap_or(u64::MAX), "drain complete");
            report::event(self.context, state, true, "DrainComplete", "the pods that were in the way are gone").await;
            self.say(state, true, reason::COMPLETE, "the pods that were in the way are gone".to_owned()).await?;
            self.drains.borrow_mut().remove(name);
            return Ok(Next::Wait);
        }
        let Some(time_left) = timeout.checked_sub(drain.started.elapsed()).filter(|left| !left.is_zero()) else {
            return self.give_up(name, state, &left).await;
        };
        let (reason, message) = report::leaving(&left);
        self.say(state, false, reason, message).await?;
        Ok(Next::After(if left.blocked() { BUDGET_PERIOD.min(time_left) } else { time_left }))
    }

    /// The record of the drain, which begins with the first asking for it.
    fn drain(&self, name: &str) -> Rc<Drain> {
        let begin = || {
            let pods = Arc::new(Cache::default());
            let watch = evict::PodWatch::start(self.context.client.clone(), name, Arc::clone(&pods), self.queue.clone());
            Rc::new(Drain {
                started: Instant::now(),
                cordoned: Cell::new(false),
                pods,
                claims: RefCell::default(),
                of_daemon_sets: RefCell::default(),
                _watch: watch,
            })
        };
        Rc::clone(self.drains.borrow_mut().entry(name.to_owned()).or_insert_with(begin))
    }

    fn scope(&self, state: &SriovNetworkNodeState, request: Request) -> Scope {
        if request == Request::Everything {
            return Scope::Everything;
        }
        let plan = state.status.as_ref().and_then(|status| status.plan.as_ref());
        let resources = plan.map(|plan| plan.evict_resources.iter().cloned().collect()).unwrap_or_default();
        Scope::Users { prefix: format!("{}/", self.context.settings.resource_prefix), resources }
    }

    async fn give_up(&self, name: &str, state: &SriovNetworkNodeState, left: &evict::Left) -> Result<Next, Error> {
        let timeout = self.context.settings.drain_timeout;
        let rest = timeout.min(LONGEST_REST);
        let why = format!("{}; not within {} s, so the node was given back; it is tried again in {} s", left, timeout.as_secs(), rest.as_secs());
        apply::uncordon(self.context, name).await?;
        apply::current_state(self.context, name, keys::IDLE).await?;
        self.resting.borrow_mut().insert(name.to_owned(), Instant::now() + rest);
        self.drains.borrow_mut().remove(name);
        self.context.metrics.drained("TimedOut", None);
        tracing::warn!(node = name, why, "drain given up");
        report::event(self.context, state, false, "DrainTimedOut", &why).await;
        self.say(state, false, reason::TIMED_OUT, why).await?;
        Ok(Next::After(rest))
    }

    async fn give_back(&self, name: &str, state: &SriovNetworkNodeState, view: &View) -> Result<Next, Error> {
        if view.node {
            apply::uncordon(self.context, name).await?;
        }
        if view.phase != Phase::Idle {
            apply::current_state(self.context, name, keys::IDLE).await?;
        }
        if view.phase == Phase::Draining {
            self.context.metrics.drained("Withdrawn", None);
        }
        tracing::info!(node = name, "node given back");
        self.forget(name);
        report::drained(self.context, state, None).await?;
        Ok(Next::Wait)
    }

    async fn say(&self, state: &SriovNetworkNodeState, status: bool, reason: &'static str, message: String) -> Result<(), RequestFailed> {
        let outcome = Outcome { kind: sriov_crds::conditions::DRAINED, status, reason, message };
        report::drained(self.context, state, Some(outcome)).await
    }
}
