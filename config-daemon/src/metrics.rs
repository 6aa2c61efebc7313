//! Pure: what the daemon counts, and the text that Prometheus reads. Names and labels are listed in the crate's README.
//!
//! What does not live here: the HTTP server (`health`).
//!
//! Invariant: labels are bounded: step kinds, reasons and verbs are words of the code, never names of objects.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::apply::Outcome;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::plan::step::Step;
use crate::pools::Pools;

/// A round that takes longer is stuck: making VFs has a deadline of two minutes a PF.
const STUCK: Duration = Duration::from_mins(10);

/// Bounds of the phase histogram, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0, 300.0];

type One = [(&'static str, String); 1];
type Two = [(&'static str, String); 2];

/// A part of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking at the machine.
    Observe,
    /// Performing a plan.
    Apply,
    /// Writing to the API server.
    Publish,
}

/// The counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    steps: Family<Two, Counter>,
    seconds: Family<One, Histogram, fn() -> Histogram>,
    vfs: Family<One, Gauge<i64, AtomicI64>>,
    refusals: Family<One, Gauge<i64, AtomicI64>>,
    left: Gauge<i64, AtomicI64>,
    drifts: Counter<u64, AtomicU64>,
    rounds: Counter<u64, AtomicU64>,
    requests: Family<One, Counter>,
    ready: AtomicBool,
    working_since: Mutex<Option<Instant>>,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sriov_config_daemon");
        let metrics = Self {
            steps: Family::default(),
            seconds: Family::new_with_constructor(histogram as fn() -> Histogram),
            vfs: Family::default(),
            refusals: Family::default(),
            left: Gauge::default(),
            drifts: Counter::default(),
            rounds: Counter::default(),
            requests: Family::default(),
            ready: AtomicBool::new(false),
            working_since: Mutex::new(None),
            registry: Registry::default(),
        };
        registry.register("plan_steps", "Steps of plans, by kind and result (done, failed)", metrics.steps.clone());
        registry.register("phase_seconds", "Seconds by phase of a round", metrics.seconds.clone());
        registry.register("vfs", "VFs of this machine by state: offered, in_use, other", metrics.vfs.clone());
        registry.register("refusals", "Wishes that are not fulfilled, by reason", metrics.refusals.clone());
        registry.register("steps_left", "Steps that are left after the last round; 0 when the machine is as asked", metrics.left.clone());
        registry.register("drifts", "Times that a machine which was as asked was found changed", metrics.drifts.clone());
        registry.register("rounds", "Looks at the machine and the wish", metrics.rounds.clone());
        registry.register("api_requests", "Requests to the API server, by verb", metrics.requests.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// The text that Prometheus reads (OpenMetrics 1.0).
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        _ = encode(&mut text, &self.registry);
        text
    }

    /// One request to the API server.
    pub fn request(&self, verb: &str) {
        self.requests.get_or_create(&[("verb", verb.to_owned())]).inc();
    }

    /// A round begins.
    pub fn begin(&self) {
        self.rounds.inc();
        *self.working_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// A round is over, so the daemon is ready.
    pub fn end(&self) {
        self.ready.store(true, Ordering::Relaxed);
        *self.working_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a first round was completed.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether a round has been running for too long.
    pub fn is_stuck(&self) -> bool {
        self.working_since.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > STUCK)
    }

    /// A phase is over.
    pub fn took(&self, phase: Phase, since: Instant) {
        self.seconds.get_or_create(&[("phase", format!("{phase:?}").to_lowercase())]).observe(since.elapsed().as_secs_f64());
    }

    /// A plan was performed.
    pub fn performed(&self, plan: &Plan, outcome: &Outcome) {
        let count = |step: &Step, result: &str| _ = self.steps.get_or_create(&[("kind", kind(step)), ("result", result.to_owned())]).inc();
        outcome.failed.iter().for_each(|failure| count(&failure.step, "failed"));
        // Which steps were left out is not told; the failed ones are, and those after them on the same PF are few.
        plan.steps.iter().filter(|step| !outcome.failed.iter().any(|f| f.step == **step)).take(outcome.done).for_each(|step| count(step, "done"));
    }

    /// The machine was changed from outside.
    pub fn drifted(&self) {
        self.drifts.inc();
    }

    /// How the machine is after a round.
    pub fn settled(&self, observed: &Observed, residual: &Plan, offered: &Pools) {
        self.left.set(i64::try_from(residual.steps.len()).unwrap_or(i64::MAX));
        self.refusals.clear();
        for refusal in &residual.refusals {
            self.refusals.get_or_create(&[("reason", refusal.reason.as_str().to_owned())]).inc();
        }
        let offered = offered.vfs();
        self.vfs.clear();
        for state in ["offered", "in_use", "other"] {
            self.vfs.get_or_create(&[("state", state.to_owned())]).set(0);
        }
        for pf in &observed.inventory.pfs {
            for vf in &pf.vfs {
                let state = match observed.user_of(pf, vf) {
                    Some(_) => "in_use",
                    None if offered.contains(&(pf.address, vf.index)) => "offered",
                    None => "other",
                };
                self.vfs.get_or_create(&[("state", state.to_owned())]).inc();
            }
        }
    }
}

/// The variant's name.
fn kind(step: &Step) -> String {
    format!("{step:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::apply;
    use crate::desired::Desired;
    use crate::machine::Machine as _;
    use crate::machine::sim::Sim;
    use crate::plan::plan;
    use crate::pools::pools;

    #[test]
    fn steps_vfs_and_what_is_left_are_counted() {
        let sim = Sim::with_pfs(&["0000:01:00.0"]);
        let spec = "interfaces: [{pciAddress: '0000:01:00.0', numVfs: 2, vfGroups: [{vfRange: 0-1, resourceName: a}]}]";
        let desired = Desired::read(&serde_saphyr::from_str(spec).unwrap());
        let planned = plan(&desired, &sim.observe().unwrap());
        sim.fail_once_on("0000:01:00.0 vf 1: bind");
        let metrics = Metrics::default();
        metrics.performed(&planned, &apply(&sim, &planned));
        let (observed, text) = (sim.observe().unwrap(), || metrics.text());
        let residual = plan(&desired, &observed);
        metrics.settled(&observed, &residual, &pools(&desired, &observed, &residual));
        metrics.request("watch");
        assert!(text().contains("sriov_config_daemon_plan_steps_total{kind=\"BindDriver\",result=\"failed\"} 1\n"), "{}", text());
        assert!(text().contains("sriov_config_daemon_plan_steps_total{kind=\"SetNumVfs\",result=\"done\"} 1\n"), "{}", text());
        assert!(text().contains(&format!("sriov_config_daemon_steps_left {}\n", residual.steps.len())), "{}", text());
        assert!(text().contains("sriov_config_daemon_vfs{state=\"offered\"} 1\n"), "{}", text());
        assert!(text().contains("sriov_config_daemon_api_requests_total{verb=\"watch\"} 1\n"), "{}", text());
        assert!(text().ends_with("# EOF\n"));
    }

    #[test]
    fn a_daemon_is_ready_after_its_first_round() {
        let metrics = Metrics::default();
        metrics.begin();
        assert!(!metrics.is_ready() && !metrics.is_stuck());
        metrics.end();
        assert!(metrics.is_ready());
    }
}
