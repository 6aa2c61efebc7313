//! I/O (values only): what every controller is given: the client, the settings of this process, the recorder of events. No logic.

use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use sriov_crds::keys::FIELD_MANAGER;

use crate::admission;
use crate::metrics::Metrics;

/// Given to every controller.
pub struct Context {
    /// Speaks to the API server.
    pub client: Client,
    /// Of this process.
    pub settings: Settings,
    /// Writes Events.
    pub recorder: Recorder,
    /// What Prometheus is told.
    pub metrics: Metrics,
    log_level: Box<dyn Fn(Option<i64>) + Send + Sync>,
}

/// Settings of this process, from flags and environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's namespace: policies, node states and the operator configuration count only here.
    pub namespace: String,
    /// First part of extended resource names, as in `openshift.io`.
    pub resource_prefix: String,
    /// Image of the node DaemonSet.
    pub node_image: String,
    /// Folder on the nodes where the container runtime looks for CNI plugins.
    pub cni_bin_path: String,
    /// Absolute path of the kubelet's folder on nodes.
    pub kubelet_path: String,
    /// Names of pull secrets for the node DaemonSet.
    pub image_pull_secrets: Vec<String>,
    /// How long a node state is kept when its node is not selected any more; zero deletes at once.
    pub stale_state_delay: Duration,
    /// Of the admission server.
    pub admission: admission::Settings,
    /// After what time a drain that has come to no end gives the node back.
    pub drain_timeout: Duration,
    /// Whether another controller answers the daemons that ask for a drain.
    pub external_drainer: bool,
}

impl Context {
    /// Of one process, known to others as `identity`.
    pub fn new(client: Client, settings: Settings, identity: &str) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, settings, metrics: Metrics::default(), log_level: Box::new(|_| {}) }
    }

    /// With a way to change what is logged.
    #[must_use]
    pub fn with_log_level(self, set: impl Fn(Option<i64>) + Send + Sync + 'static) -> Self {
        Self { log_level: Box::new(set), ..self }
    }

    /// Logs as much as the operator configuration says: 0 to 2, or as the process was started.
    pub fn set_log_level(&self, level: Option<i64>) {
        (self.log_level)(level);
    }
}
