//! I/O (memory only): what Prometheus is told. Every metric of the operator is made here, so that this file is the list of them; labels are
//! controllers, reasons and states, never objects, so that their number is bounded.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type Labels = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];

/// Seconds that a reconciliation takes: from one cached look to a slow API server.
const RECONCILE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Seconds that a drain takes: from an empty node to a patient budget.
const DRAIN_SECONDS: [f64; 9] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

fn reconcile_histogram() -> Histogram {
    Histogram::new(RECONCILE_SECONDS)
}

/// All metrics of the process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<Labels, Counter>,
    errors: Family<TwoLabels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    depth: Family<Labels, Gauge>,
    nodes: Family<Labels, Gauge>,
    drains: Family<Labels, Counter>,
    drain_seconds: Histogram,
    leader: Gauge,
}

/// One controller's queue.
#[derive(Debug, Clone)]
pub struct Meter {
    controller: &'static str,
    metrics: Metrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sriov_operator");
        let reconciles = Family::default();
        registry.register("reconcile", "Reconciliations by controller", reconciles.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Reconciliations that failed, by controller and reason", errors.clone());
        let seconds = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(reconcile_histogram);
        registry.register("reconcile_duration_seconds", "Time of a reconciliation by controller", seconds.clone());
        let depth = Family::default();
        registry.register("queue_depth", "Keys that wait, by controller", depth.clone());
        let nodes = Family::default();
        registry.register("nodes", "Managed nodes by state: Configured, Pending, Failed, DrainRequired, Draining, DrainComplete", nodes.clone());
        let drains = Family::default();
        registry.register("drains", "Drains by outcome: Complete, TimedOut, Withdrawn", drains.clone());
        let drain_seconds = Histogram::new(DRAIN_SECONDS);
        registry.register("drain_duration_seconds", "Time from a drain's begin until the pods are gone", drain_seconds.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 while this process holds the lease", leader.clone());
        Self { registry: Arc::new(registry), reconciles, errors, seconds, depth, nodes, drains, drain_seconds, leader }
    }
}

impl Metrics {
    /// Of one controller's queue.
    pub fn meter(&self, controller: &'static str) -> Meter {
        Meter { controller, metrics: self.clone() }
    }

    /// This process holds the lease.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// How many managed nodes are in a state.
    pub fn nodes(&self, state: &'static str, count: usize) {
        self.nodes.get_or_create(&[("state", state)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A drain ended; `took` when its pods are gone.
    pub fn drained(&self, outcome: &'static str, took: Option<Duration>) {
        self.drains.get_or_create(&[("outcome", outcome)]).inc();
        if let Some(took) = took {
            self.drain_seconds.observe(took.as_secs_f64());
        }
    }

    /// The text format of Prometheus and OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        prometheus_client::encoding::text::encode(&mut text, &self.registry).ok();
        text
    }
}

impl Meter {
    /// A reconciliation ended, with the reason when it failed.
    pub fn finished(&self, took: Duration, failure: Option<&'static str>) {
        let labels = [("controller", self.controller)];
        self.metrics.reconciles.get_or_create(&labels).inc();
        self.metrics.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if let Some(reason) = failure {
            self.metrics.errors.get_or_create(&[("controller", self.controller), ("reason", reason)]).inc();
        }
    }

    /// So many keys wait.
    pub fn depth(&self, keys: usize) {
        self.metrics.depth.get_or_create(&[("controller", self.controller)]).set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_can_be_read_as_text() {
        let metrics = Metrics::default();
        let meter = metrics.meter("drain");
        meter.finished(Duration::from_millis(3), None);
        meter.finished(Duration::from_millis(3), Some("Conflict"));
        meter.depth(7);
        metrics.drained("Complete", Some(Duration::from_secs(20)));
        metrics.nodes("Configured", 3);
        metrics.leads();
        let text = metrics.text();
        for line in [
            r#"sriov_operator_reconcile_total{controller="drain"} 2"#,
            r#"sriov_operator_reconcile_errors_total{controller="drain",reason="Conflict"} 1"#,
            r#"sriov_operator_reconcile_duration_seconds_count{controller="drain"} 2"#,
            r#"sriov_operator_queue_depth{controller="drain"} 7"#,
            r#"sriov_operator_drains_total{outcome="Complete"} 1"#,
            r#"sriov_operator_drain_duration_seconds_bucket{le="30.0"} 1"#,
            r#"sriov_operator_nodes{state="Configured"} 3"#,
            "sriov_operator_leader 1",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}
