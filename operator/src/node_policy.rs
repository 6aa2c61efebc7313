//! I/O: policies -> one `SriovNetworkNodeState` a node. `gather -> validate -> build -> apply -> report`, once for each node by itself: a node's
//! trouble stays its own, and a node is looked at only when its labels, a policy that selects it, its state or the operator configuration changed.
//!
//! Invariant: a node state's spec is a function of the policies that select its node and of the PFs that its daemon reported, nothing else.

mod apply;
mod build;
mod gather;
mod report;
mod tally;
mod triggers;
pub(crate) mod validate;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::cache::Change;
use crate::context::Context;
use crate::fleet::{ConfigGuard, Fleet, Listener, NodeMeta, PolicyGuard, PoolGuard, StateGuard};
use crate::queue::{self, Next, Queue, Requests, Retry, Retryable};
use crate::resources::RequestFailed;

/// How many nodes or policies are worked on at a time.
const CONCURRENCY: usize = 16;
/// Shortest time between two writes of one policy's status: it counts nodes, which change one after the other.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// What is reconciled: a node's state from all policies, or a policy's own status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Node(String),
    Policy(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Policy(name) => write!(f, "policy {name}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Gather(#[from] gather::Error),
    #[error(transparent)]
    Request(#[from] RequestFailed),
}

impl Retryable for Error {
    fn retry(&self) -> Retry {
        match self {
            Self::Gather(_) => Retry::WhenChanged,
            Self::Request(request) => request.retry(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Gather(_) => "Unreadable",
            Self::Request(request) => request.reason(),
        }
    }
}

/// The controller.
pub struct Controller<'a> {
    context: &'a Context,
    fleet: &'a Fleet,
    queue: Queue<Subject>,
    requests: RefCell<Option<Requests<Subject>>>,
    /// When a policy's status was looked at last.
    reported: RefCell<BTreeMap<String, Instant>>,
}

impl<'a> Controller<'a> {
    /// Of this process, on these caches.
    pub fn new(context: &'a Context, fleet: &'a Fleet) -> Self {
        let (queue, requests) = queue::new();
        let requests = requests.measured(context.metrics.meter("node_policy"));
        Self { context, fleet, queue, requests: RefCell::new(Some(requests)), reported: RefCell::default() }
    }

    /// Runs; ends only by being dropped.
    pub async fn run(&self) {
        let Some(requests) = self.requests.take() else { return };
        self.fleet.ready().await;
        requests.serve(CONCURRENCY, |subject| self.reconcile(subject)).await;
    }

    fn add_nodes(&self, names: impl IntoIterator<Item = String>) {
        names.into_iter().for_each(|name| self.queue.add(Subject::Node(name)));
    }

    /// The statuses of the policies that may select a node with these labels count it.
    fn add_policies_of(&self, node: &str) {
        let Some(node) = self.fleet.nodes.get(&crate::cache::Key::new("", node)) else { return };
        for policy in self.fleet.policies.list().iter().filter(|policy| validate::may_select(policy, node.labels())) {
            self.queue.add(Subject::Policy(policy.name_any()));
        }
    }

    async fn reconcile(&self, subject: Subject) -> Result<Next, Error> {
        match subject {
            Subject::Policy(name) => self.policy(&name).await,
            Subject::Node(name) => {
                let gathered = gather::node(self.fleet, self.context, &name)?;
                let node = validate::node(gathered);
                let desired = build::desired(&node, Timestamp::now(), self.context.settings.stale_state_delay);
                apply::node_state(self.context, &name, &desired).await?;
                Ok(report::node(&name, &node, &desired))
            }
        }
    }

    async fn policy(&self, name: &str) -> Result<Next, Error> {
        let last = self.reported.borrow().get(name).copied();
        if let Some(left) = last.and_then(|last| STATUS_PERIOD.checked_sub(last.elapsed())) {
            return Ok(Next::After(left));
        }
        let Some(policy) = gather::policy(self.fleet, self.context, name) else {
            self.reported.borrow_mut().remove(name);
            return Ok(Next::Wait);
        };
        self.reported.borrow_mut().insert(name.to_owned(), Instant::now());
        let standings = gather::standings(self.fleet, self.context, &policy);
        let tally = tally::Tally {
            overridden: gather::overridden(self.fleet, &policy),
            bridge_ignored: gather::bridge_ignored(self.fleet, self.context, &policy),
            ..tally::count(&standings)
        };
        report::policy(self.context, &policy, validate::policy(&policy), &tally).await?;
        Ok(Next::Wait)
    }
}

impl Listener for Controller<'_> {
    fn node(&self, change: &Change<'_, NodeMeta>) {
        if triggers::node_matters(change) {
            let Some(name) = change.new.or(change.old).map(ResourceExt::name_any) else { return };
            self.queue.add(Subject::Node(name));
            // Which policies count it may have changed; those of before are only known by their selectors.
            for policy in self.fleet.policies.list() {
                let selects = |node: Option<&NodeMeta>| node.is_some_and(|node| validate::may_select(&policy, node.labels()));
                if selects(change.old) || selects(change.new) {
                    self.queue.add(Subject::Policy(policy.name_any()));
                }
            }
        }
    }

    fn policy(&self, change: &Change<'_, PolicyGuard>) {
        if triggers::policy_matters(change) {
            change.new.iter().for_each(|policy| self.queue.add(Subject::Policy(policy.name_any())));
            let (nodes, states) = (self.fleet.nodes.list(), self.fleet.states.list());
            self.add_nodes(triggers::nodes_of_policy(change, &nodes, &states));
        }
    }

    fn state(&self, change: &Change<'_, StateGuard>) {
        let Some(name) = change.new.or(change.old).map(ResourceExt::name_any) else { return };
        if triggers::standing_matters(change) {
            self.add_policies_of(&name);
        }
        if triggers::state_matters(change) {
            self.queue.add(Subject::Node(name));
        }
    }

    fn states_listed(&self) {
        self.add_nodes(self.fleet.nodes.list().iter().map(|node| node.name_any()));
    }

    fn pool(&self, change: &Change<'_, PoolGuard>) {
        if triggers::pool_matters(change) {
            self.add_nodes(self.fleet.nodes.list().iter().map(|node| node.name_any()));
        }
    }

    fn config(&self, change: &Change<'_, ConfigGuard>) {
        if triggers::config_matters(change) {
            self.add_nodes(self.fleet.nodes.list().iter().map(|node| node.name_any()));
            self.add_nodes(self.fleet.states.list().iter().map(|state| state.name_any()));
            self.fleet.policies.list().iter().for_each(|policy| self.queue.add(Subject::Policy(policy.name_any())));
        }
    }
}
