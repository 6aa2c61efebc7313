//! I/O: the command line. No logic: each command reads its input, calls the library and prints.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sriov_config_daemon::apply::apply;
use sriov_config_daemon::boot::{install_unit, restore};
use sriov_config_daemon::capable;
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::distribution;
use sriov_config_daemon::doctor::diagnose;
use sriov_config_daemon::health::{CountRequests, serve};
use sriov_config_daemon::install::{Installed, install_cni};
use sriov_config_daemon::kubelet::{self, Kubelet};
use sriov_config_daemon::machine::Machine as _;
use sriov_config_daemon::machine::linux::Linux;
use sriov_config_daemon::machine::ovs::Ovs;
use sriov_config_daemon::metrics::Metrics;
use sriov_config_daemon::node_state::{self, Settings};
use sriov_config_daemon::observed::Observed;
use sriov_config_daemon::ovsdb::DEFAULT_SOCKET;
use sriov_config_daemon::plan::firmware::MELLANOX;
use sriov_config_daemon::plan::plan;
use sriov_config_daemon::reboot::Rebooter;
use sriov_config_daemon::situation::DriftPolicy;
use sriov_config_daemon::store::Store;
use sriov_config_daemon::table::table;
use sriov_config_daemon::wish;
use sriov_host::Host;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Configures the SR-IOV network functions of this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow this node's SriovNetworkNodeState in the cluster.
    Run(Run),
    /// Show the network functions of this machine. Needs no cluster.
    Observe {
        #[command(flatten)]
        machine: MachineArgs,
        /// Form of the output.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show what would be done to this machine, and do nothing. Needs no cluster and no root.
    Plan(WishArgs),
    /// Do what policies or a node state ask of this machine. Needs no cluster.
    Apply(ApplyArgs),
    /// Say what keeps this machine from having VFs, and what to do about it. Needs no cluster and no root.
    Doctor {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Take back everything that was done to this machine: VFs, MTUs, records. Needs no cluster.
    Reset {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Put the unit of systemd mode, and the program that it runs, onto the host below --root.
    InstallUnit {
        #[command(flatten)]
        machine: MachineArgs,
        /// The program.
        #[arg(long)]
        from: PathBuf,
    },
    /// Label this node as capable of SR-IOV once it has a network function that can have VFs, and rest; for clusters without node-feature-discovery.
    LabelNode {
        /// Folder below which the machine's /sys is found.
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Name of this node.
        #[arg(long, env = "NODE_NAME")]
        node_name: String,
    },
    /// Copy the CNI plugin to where the container runtime looks for it, unless it is there.
    InstallCni {
        /// The program.
        #[arg(long)]
        from: PathBuf,
        /// Where it goes.
        #[arg(long)]
        to: PathBuf,
        /// Replace a program whose journals this one can't read, too: pods that it attached may not be detached then.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct MachineArgs {
    /// Folder below which the machine's /sys, /etc, /run and /var are found.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// File that the device plugin reads.
    #[arg(long, default_value = "/run/sriov-operator/device-plugin/config.json")]
    pools_file: PathBuf,
    /// Folder of the kubelet (its --root-dir), below --root.
    #[arg(long, env = "KUBELET_PATH", default_value = kubelet::DEFAULT_FOLDER)]
    kubelet_path: String,
    /// Make and remove the Open vSwitch bridges that policies name.
    #[arg(long)]
    manage_software_bridges: bool,
    /// Parts for vendors that are left out, separated by commas: "mellanox" leaves the firmware settings of NICs of vendor 15b3 as they are.
    #[arg(long, value_enum, value_delimiter = ',')]
    disable_plugins: Vec<Plugin>,
    /// Socket of Open vSwitch's database, below --root.
    #[arg(long, env = "OVSDB_SOCKET_PATH", default_value = DEFAULT_SOCKET)]
    ovs_socket_path: String,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    machine: MachineArgs,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// The operator's namespace.
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
    /// Where /metrics, /healthz and /readyz are served; nothing is when it is not given.
    #[arg(long, env = "HTTP_BIND_ADDRESS")]
    http_bind_address: Option<SocketAddr>,
    /// "TRUE" lets every NIC be configured, also one that the ConfigMap supported-nic-ids does not list.
    #[arg(long, env = "DEV_MODE", default_value = "")]
    dev_mode: String,
    /// What happens when somebody changes the machine after it was configured.
    #[arg(long, env = "SRIOV_DRIFT_POLICY", value_enum, default_value_t = Drift::Repair)]
    drift: Drift,
    /// Before a reboot for settings of a NIC's firmware, do not ask the kernel to reset the NIC.
    #[arg(long)]
    no_firmware_reset: bool,
    /// Folder into which the chart puts the CNI plugin; told when this machine's distribution looks for plugins elsewhere.
    #[arg(long, env = "SRIOV_CNI_BIN_PATH")]
    cni_bin_path: Option<String>,
    /// There is a kubelet, as on every machine where this runs in a pod: not to find it is an error.
    #[arg(long)]
    expect_kubelet: bool,
    /// "systemd" lets the unit of systemd mode apply at boot what this node was last asked for.
    #[arg(long, env = "CONFIGURATION_MODE", default_value = "daemon")]
    configuration_mode: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Plugin {
    /// NVIDIA, once Mellanox.
    Mellanox,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Drift {
    /// It is changed back, as far as that disturbs nobody.
    Repair,
    /// It stays so and is reported: the node is not ready, until the wish changes or the daemon is started again.
    Report,
    /// It stays so; the node counts as ready.
    Ignore,
}

#[derive(Debug, Args)]
struct WishArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// SriovNetworkNodePolicies (several documents or a List) or one SriovNetworkNodeState, as YAML or JSON; "-" is standard input.
    #[arg(short, long)]
    file: PathBuf,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Args)]
struct ApplyArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// SriovNetworkNodePolicies (several documents or a List) or one SriovNetworkNodeState, as YAML or JSON; "-" is standard input.
    #[arg(short, long, required_unless_present = "systemd")]
    file: Option<PathBuf>,
    /// Apply what this machine was last asked for by its cluster, as at boot.
    #[arg(long, conflicts_with = "file")]
    systemd: bool,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Args)]
struct Choice {
    /// Labels of the node that policies are chosen for, as key=value; without them every policy counts.
    #[arg(long, value_delimiter = ',')]
    labels: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// What is logged; the cluster may change it while the daemon runs.
static LOG: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn main() -> ExitCode {
    let (filter, handle) = reload::Layer::new(log_filter(None));
    // Set here alone, so that it cannot be set already.
    _ = LOG.set(handle);
    tracing_subscriber::registry().with(filter).with(fmt::layer().with_writer(std::io::stderr).with_target(false)).init();
    match perform(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
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
    EnvFilter::new(format!("{base},sriov_config_daemon={ours}"))
}

fn set_log_level(level: Option<i64>) {
    if let Some(Err(error)) = LOG.get().map(|log| log.reload(log_filter(level))) {
        tracing::warn!("the log level is not changed: {error}");
    } else {
        // Said at the lowest level that it may have now.
        tracing::debug!("logLevel is {level:?}");
    }
}

fn perform(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(&args),
        Command::Observe { machine, output } => observe(&machine, output),
        Command::Plan(args) => {
            let observed = args.machine.open().observe()?;
            let desired = read_wish(&args.file, &args.choice, &observed)?;
            print(&plan(&desired, &observed).to_string())
        }
        Command::Apply(args) => match &args.file {
            Some(file) => {
                let machine = args.machine.open();
                let desired = read_wish(file, &args.choice, &machine.observe()?)?;
                converge(&machine, &desired)
            }
            None => restore_kept(&args.machine),
        },
        Command::Doctor { machine } => doctor(&machine),
        // "Rendered, and nothing wanted" is the wish that gives every PF up.
        Command::Reset { machine } => converge(&machine.open(), &Desired { rendered: true, ..Desired::default() }),
        Command::LabelNode { root, node_name } => label_node(&root, &node_name),
        Command::InstallUnit { machine, from } => {
            let changed = install_unit(&from, &machine.root)?;
            info!("the unit of systemd mode {}", if changed { "was put in place" } else { "is in place already" });
            Ok(ExitCode::SUCCESS)
        }
        Command::InstallCni { from, to, force } => {
            match install_cni(&from, &to, force)? {
                Installed::Copied => info!("{} installed", to.display()),
                Installed::Same => info!("{} is installed already", to.display()),
                Installed::Kept { there, ours } => warn!(
                    "{} stays: it writes journals of version {there}, and the program of this image reads version {ours}; --force replaces it",
                    to.display()
                ),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn observe(machine: &MachineArgs, output: Output) -> anyhow::Result<ExitCode> {
    let inventory = machine.open().observe()?.inventory;
    print(&match output {
        Output::Table => table(&inventory),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&inventory)?),
        Output::Yaml => serde_saphyr::to_string(&inventory)?,
    })
}

/// Exits with 1 when something keeps a NIC from having VFs.
fn doctor(machine: &MachineArgs) -> anyhow::Result<ExitCode> {
    let linux = machine.open();
    let observed = Observed { supported_nics: linux.store().kept_nics()?, ..linux.observe()? };
    let host = Host::at(&machine.root);
    if let Some(found) = distribution::detect(host.sysfs()) {
        print(&format!("{found}\n"))?;
    }
    let findings = diagnose(&observed, &sriov_host::nic::platform(&host));
    if findings.is_empty() {
        print("nothing stands in the way of VFs on this machine\n")?;
    }
    for finding in &findings {
        print(&format!("{finding}\n"))?;
    }
    Ok(if findings.iter().any(|finding| finding.blocks) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Exits with 0 when the machine is as it was last asked to be, or was never asked.
fn restore_kept(machine: &MachineArgs) -> anyhow::Result<ExitCode> {
    let Some(restored) = restore(&machine.open())? else {
        info!("no wish was kept on this machine, so nothing is changed");
        return Ok(ExitCode::SUCCESS);
    };
    let failure = restored.failure();
    info!("{} steps done{}", restored.done, if failure.is_empty() { String::new() } else { format!("; {failure}") });
    Ok(if failure.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_wish(file: &Path, choice: &Choice, observed: &Observed) -> anyhow::Result<Desired> {
    let text = if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.with_context(|| format!("failed to read {}", file.display()))?;
    let wish = wish::read(&text, choice.labels()?.as_ref(), observed).with_context(|| format!("{} is not understood", file.display()))?;
    for note in wish.notes {
        tracing::warn!("{note}");
    }
    Ok(wish.desired)
}

impl Choice {
    fn labels(&self) -> anyhow::Result<Option<BTreeMap<String, String>>> {
        let pair = |text: &String| {
            let (key, value) = text.split_once('=').with_context(|| format!("--labels {text:?}: expected key=value"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        self.labels.as_ref().map(|labels| labels.iter().map(pair).collect()).transpose()
    }
}

/// Exits with 0 when nothing is left to do, with 1 when something was refused or failed.
fn converge(machine: &Linux, desired: &Desired) -> anyhow::Result<ExitCode> {
    let planned = plan(desired, &machine.observe()?);
    machine.store().write_rules(desired)?;
    let outcome = apply(machine, &planned);
    let residual = plan(desired, &machine.observe()?);
    let mut text = format!("{} of {} steps done\n", outcome.done, planned.steps.len());
    for line in outcome.lines() {
        text.push_str("failed: ");
        text.push_str(&line);
        text.push('\n');
    }
    print(&format!("{text}left: {residual}"))?;
    Ok(if residual.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(args: &Run) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("failed to start the runtime")?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let metrics = Arc::new(Metrics::default());
        let config = kube::Config::infer().await.context("failed to find the cluster (in-cluster service account or KUBECONFIG)")?;
        let client = kube::client::ClientBuilder::try_from(config)?.with_layer(&CountRequests(Arc::clone(&metrics))).build();
        info!("following node state {} in namespace {}", args.node_name, args.namespace);
        let served = async {
            match args.http_bind_address {
                Some(address) => serve(address, Arc::clone(&metrics)).await,
                None => std::future::pending().await,
            }
        };
        tell_distribution(args);
        let kubelet = args.machine.kubelet();
        let machine = args.machine.open().with_kubelet(if args.expect_kubelet { kubelet.expected() } else { kubelet });
        machine.store().set_systemd_mode(args.configuration_mode == "systemd")?;
        tokio::select! {
            ended = node_state::run(client, args.settings(), machine, Arc::clone(&metrics)) => ended.map_err(anyhow::Error::from),
            ended = served => ended.map_err(anyhow::Error::from),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    // A step that is under way may end; the next is not begun when the process ends here, and a restart goes on from whatever is then so.
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended.map(|()| ExitCode::SUCCESS)
}

/// Says which distribution was found on this machine, and whether the chart was installed for another.
fn tell_distribution(args: &Run) {
    match distribution::detect(Host::at(&args.machine.root).sysfs()) {
        None => info!("no known distribution was found; CNI plugin in {}", args.cni_bin_path.as_deref().unwrap_or("/opt/cni/bin")),
        Some(found) => {
            info!("found {found}");
            if let Some(objection) = args.cni_bin_path.as_deref().and_then(|folder| found.objection(folder)) {
                tracing::warn!("{objection}");
            }
        }
    }
}

fn label_node(root: &Path, node: &str) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the runtime")?;
    let ended = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let client = kube::Client::try_default().await.context("failed to find the cluster (in-cluster service account or KUBECONFIG)")?;
        tokio::select! {
            ended = capable::run(client, node, Host::at(root)) => ended.map_err(anyhow::Error::from),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    // A thread may still wait for devices.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

impl Run {
    fn settings(&self) -> Settings {
        Settings {
            namespace: self.namespace.clone(),
            node: self.node_name.clone(),
            every_nic: self.dev_mode == "TRUE",
            drift: match self.drift {
                Drift::Repair => DriftPolicy::Repair,
                Drift::Report => DriftPolicy::Report,
                Drift::Ignore => DriftPolicy::Ignore,
            },
            rebooter: Rebooter::new(&self.machine.root),
            resets_firmware: !self.no_firmware_reset,
            log_level: set_log_level,
        }
    }
}

impl MachineArgs {
    fn kubelet(&self) -> Kubelet {
        Kubelet::at(&self.root, &self.kubelet_path)
    }

    fn open(&self) -> Linux {
        let left = self.disable_plugins.iter().map(|Plugin::Mellanox| MELLANOX).collect();
        let machine = Linux::new(&self.root, Store::new(&self.root, &self.pools_file)).with_kubelet(self.kubelet()).leaving_firmware(left);
        if self.manage_software_bridges { machine.with_bridges(Ovs::new(&self.root, &self.ovs_socket_path)) } else { machine }
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
