//! I/O: arguments, logging, leader election, start and stop. No logic of the operator itself.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use futures::future::{Either, select};
use kube::{Api, Client, Config};
use sriov_operator::context::{Context, Settings};
use sriov_operator::fleet::{Fleet, Listener};
use sriov_operator::lease::{self, Leadership};
use sriov_operator::probes::{self, Health, Phase};
use sriov_operator::{admission, drain, installation, network, node_policy, operator_config};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Minutes that a node state is kept when its node left, unless said otherwise.
const STALE_MINUTES: u64 = 30;

/// The cluster side of the SR-IOV network operator.
#[derive(Parser)]
#[command(name = "sriov-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until told to stop. Inside a cluster with the pod's ServiceAccount, outside with KUBECONFIG.
    Run(Box<Run>),
    /// Brings the CustomResourceDefinitions up to date and ends. A NAD kind that is there stays as it is.
    ApplyCrds,
    /// Takes away what the operator made, once it has ended. Policies, networks, VFs and running pods stay.
    Uninstall {
        /// The operator's namespace.
        #[arg(long, env = "NAMESPACE")]
        namespace: String,
        /// Secret with the certificates of the admission server; one that somebody else made stays.
        #[arg(long, env = "ADMISSION_CONTROLLERS_CERTIFICATES_OPERATOR_SECRET_NAME", default_value = "operator-webhook-cert")]
        webhook_secret: String,
    },
}

#[derive(Args)]
struct Run {
    /// The operator's namespace; without it that of the pod or of the kubeconfig's context.
    #[arg(long, env = "NAMESPACE")]
    namespace: Option<String>,
    /// First part of extended resource names.
    #[arg(long, env = "RESOURCE_PREFIX", default_value = "openshift.io")]
    resource_prefix: String,
    /// Image of the node DaemonSet, with the config daemon, the device plugin and the CNI plugin.
    #[arg(long, env = "SRIOV_NETWORK_CONFIG_DAEMON_IMAGE")]
    node_image: String,
    /// Folder on the nodes where the container runtime looks for CNI plugins.
    #[arg(long, env = "SRIOV_CNI_BIN_PATH", default_value = "/opt/cni/bin")]
    cni_bin_path: String,
    /// Folder of the kubelet on the nodes (its --root-dir).
    #[arg(long, env = "KUBELET_PATH", default_value = "/var/lib/kubelet")]
    kubelet_path: String,
    /// Pull secrets for the node DaemonSet, separated by commas.
    #[arg(long, env = "IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    /// Minutes that a node state is kept when its node left; 0 deletes at once, anything that is no number counts as 30.
    #[arg(long, env = "STALE_NODE_STATE_CLEANUP_DELAY_MINUTES", default_value = "30")]
    stale_node_state_cleanup_delay_minutes: String,
    /// Seconds after which a drain that came to no end gives the node back.
    #[arg(long, env = "DRAIN_TIMEOUT_SECONDS", default_value_t = 900)]
    drain_timeout_seconds: u64,
    /// Whether another controller drains: `true` marks all node states for it.
    #[arg(long, env = "USE_EXTERNAL_DRAINER", default_value = "false")]
    use_external_drainer: String,
    /// Where /healthz and /readyz are served: host:port, :port, or 0 for nowhere.
    #[arg(long, env = "HEALTH_PROBE_BIND_ADDRESS", default_value = "0")]
    health_probe_bind_address: String,
    /// Where /metrics is served: host:port, :port, or 0 for nowhere.
    #[arg(long, env = "METRICS_BIND_ADDRESS", default_value = "0")]
    metrics_bind_address: String,
    /// Name of this process in the leader election; must differ between processes.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    #[command(flatten)]
    admission: admission::Settings,
}

fn main() -> Result<()> {
    let command = Arguments::parse().command;
    let (filter, log) = reload::Layer::new(log_filter(None));
    tracing_subscriber::registry().with(filter).with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match command {
            Command::Run(run) => Box::pin(start(*run, log)).await,
            Command::ApplyCrds => Ok(installation::apply_crds(Client::try_default().await?).await?),
            Command::Uninstall { namespace, webhook_secret } => {
                Ok(installation::uninstall(&Client::try_default().await?, &namespace, &webhook_secret).await?)
            }
        }
    })
}

/// `RUST_LOG`, or info; on top of it what the operator configuration says of this program (0 to 2).
fn log_filter(level: Option<i64>) -> EnvFilter {
    let base = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "info".to_owned());
    let ours = match level {
        None => return EnvFilter::new(base),
        Some(..=0) => "info",
        Some(1) => "debug",
        Some(_) => "trace",
    };
    EnvFilter::new(format!("{base},sriov_operator={ours}"))
}

async fn start(run: Run, log: reload::Handle<EnvFilter, Registry>) -> Result<()> {
    run.admission.check()?;
    let (health_at, metrics_at) = (probes::address(&run.health_probe_bind_address)?, probes::address(&run.metrics_bind_address)?);
    let mut config = Config::infer().await.context("failed to find a cluster: neither in a pod nor with a kubeconfig")?;
    // The client would keep asking by itself for as long as the API server says 429, and a budget that holds a pod says just that: nobody would
    // hear of it, and no drain would time out. The queue tries again, and says why.
    config.default_retry = false;
    let namespace = run.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    let identity = run.identity.unwrap_or_else(|| format!("sriov-operator-{}", std::process::id()));
    let minutes = run.stale_node_state_cleanup_delay_minutes.parse().unwrap_or(STALE_MINUTES);
    let settings = Settings {
        namespace,
        resource_prefix: run.resource_prefix,
        node_image: run.node_image,
        cni_bin_path: run.cni_bin_path,
        kubelet_path: run.kubelet_path,
        image_pull_secrets: run.image_pull_secrets.into_iter().filter(|name| !name.is_empty()).collect(),
        stale_state_delay: Duration::from_secs(minutes.saturating_mul(60)),
        admission: run.admission,
        drain_timeout: Duration::from_secs(run.drain_timeout_seconds.max(1)),
        external_drainer: run.use_external_drainer == "true",
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, identity, "operator started");
    let mut leadership = Leadership::new(Api::namespaced(client.clone(), &settings.namespace), lease::NAME, &identity);
    let set_level = move |level| {
        if let Err(error) = log.reload(log_filter(level)) {
            tracing::warn!(%error, "log level not changed");
        }
    };
    let context = Arc::new(Context::new(client, settings, &identity).with_log_level(set_level));
    let health = Health::default();
    let addresses = probes::serve(health_at, metrics_at, health.clone(), context.metrics.clone()).await?;
    tracing::info!(?addresses, "probes and metrics");
    // Each replica answers, whoever leads.
    let (serve, served) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(admission::serve(Arc::clone(&context), async { served.await.unwrap_or_default() }));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let result = match select(stop, pin!(lead(&context, &mut leadership, &health))).await {
        Either::Left(((), _)) => Ok(()),
        Either::Right((lost, _)) => lost,
    };
    tracing::info!("operator stops");
    leadership.release().await;
    drop(serve);
    serving.await.context("the admission server broke down")?;
    result
}

/// Waits for the lease and works while it is held; returns only when it is lost.
async fn lead(context: &Context, leadership: &mut Leadership, health: &Health) -> Result<()> {
    health.set(Phase::Standby);
    leadership.acquire().await;
    health.set(Phase::Listing);
    context.metrics.leads();
    tracing::info!("this process is the leader");
    tokio::select! {
        lost = leadership.hold() => Err(lost.into()),
        // A watch ends only with the process.
        () = work(context, health) => bail!("all watches ended"),
    }
}

async fn work(context: &Context, health: &Health) {
    let fleet = Fleet::default();
    let (policies, drains) = (node_policy::Controller::new(context, &fleet), drain::Controller::new(context, &fleet));
    let listeners: [&dyn Listener; 2] = [&policies, &drains];
    let complete = async {
        fleet.ready().await;
        health.set(Phase::Leading);
    };
    futures::join!(
        fleet.watch(context, &listeners),
        complete,
        policies.run(),
        drains.run(),
        network::run(context),
        operator_config::run(context),
        admission::run(context)
    );
}
