//! I/O: arguments, logging, leader election, start and stop. No logic of the operator itself.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use futures::future::{Either, select};
use kube::{Api, Client, Config};
use sriov_operator::context::{Context, Settings};
use sriov_operator::lease::Leadership;
use sriov_operator::{network, node_policy, operator_config};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

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
    Run(Run),
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
    /// Pull secrets for the node DaemonSet, separated by commas.
    #[arg(long, env = "IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    /// Minutes that a node state is kept when its node left; 0 deletes at once, anything that is no number counts as 30.
    #[arg(long, env = "STALE_NODE_STATE_CLEANUP_DELAY_MINUTES", default_value = "30")]
    stale_node_state_cleanup_delay_minutes: String,
    /// Name of this process in the leader election; must differ between processes.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
}

fn main() -> Result<()> {
    let Command::Run(run) = Arguments::parse().command;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(start(run))
}

async fn start(run: Run) -> Result<()> {
    let config = Config::infer().await.context("failed to find a cluster: neither in a pod nor with a kubeconfig")?;
    let namespace = run.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    let identity = run.identity.unwrap_or_else(|| format!("sriov-operator-{}", std::process::id()));
    let minutes = run.stale_node_state_cleanup_delay_minutes.parse().unwrap_or(STALE_MINUTES);
    let settings = Settings {
        namespace,
        resource_prefix: run.resource_prefix,
        node_image: run.node_image,
        cni_bin_path: run.cni_bin_path,
        image_pull_secrets: run.image_pull_secrets.into_iter().filter(|name| !name.is_empty()).collect(),
        stale_state_delay: Duration::from_secs(minutes.saturating_mul(60)),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, identity, "operator started");
    let mut leadership = Leadership::new(Api::namespaced(client.clone(), &settings.namespace), "sriov-network-operator", &identity);
    let context = Context::new(client, settings, &identity);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let result = match select(stop, pin!(lead(&context, &mut leadership))).await {
        Either::Left(((), _)) => Ok(()),
        Either::Right((lost, _)) => lost,
    };
    tracing::info!("operator stops");
    leadership.release().await;
    result
}

/// Waits for the lease and works while it is held; returns only when it is lost.
async fn lead(context: &Context, leadership: &mut Leadership) -> Result<()> {
    leadership.acquire().await;
    tracing::info!("this process is the leader");
    tokio::select! {
        lost = leadership.hold() => Err(lost.into()),
        // A watch ends only with the process.
        () = work(context) => bail!("all watches ended"),
    }
}

async fn work(context: &Context) {
    futures::join!(node_policy::run(context), network::run(context), operator_config::run(context));
}
