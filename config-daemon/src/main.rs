//! I/O: the command line. No logic: each command reads its input, calls the library and prints.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use sriov_config_daemon::apply::apply;
use sriov_config_daemon::desired::Desired;
use sriov_config_daemon::install::install;
use sriov_config_daemon::machine::Machine as _;
use sriov_config_daemon::machine::linux::Linux;
use sriov_config_daemon::node_state;
use sriov_config_daemon::plan::plan;
use sriov_config_daemon::store::Store;
use sriov_config_daemon::table::table;
use sriov_crds::SriovNetworkNodeStateSpec;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

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
    /// Show what would be done to this machine, and do nothing. Needs no cluster.
    Plan(Wish),
    /// Do what a node state asks of this machine. Needs no cluster.
    Apply(Wish),
    /// Take back everything that was done to this machine: VFs, MTUs, records. Needs no cluster.
    Reset {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Copy the CNI plugin to where the container runtime looks for it, unless it is there.
    InstallCni {
        /// The program.
        #[arg(long)]
        from: PathBuf,
        /// Where it goes.
        #[arg(long)]
        to: PathBuf,
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
}

#[derive(Debug, Args)]
struct Wish {
    #[command(flatten)]
    machine: MachineArgs,
    /// A SriovNetworkNodeState as YAML or JSON; "-" is standard input.
    #[arg(short, long)]
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// The part of a SriovNetworkNodeState that is a wish.
#[derive(Deserialize)]
struct NodeStateFile {
    spec: SriovNetworkNodeStateSpec,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match perform(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(&args),
        Command::Observe { machine, output } => observe(&machine, output),
        Command::Plan(wish) => {
            let desired = wish.read()?;
            print(&plan(&desired, &wish.machine.open().observe()?).to_string())
        }
        Command::Apply(wish) => {
            let desired = wish.read()?;
            converge(&wish.machine.open(), &desired)
        }
        // "Rendered, and nothing wanted" is the wish that gives every PF up.
        Command::Reset { machine } => converge(&machine.open(), &Desired { rendered: true, ..Desired::default() }),
        Command::InstallCni { from, to } => {
            let copied = install(&from, &to)?;
            info!("{} {}", to.display(), if copied { "installed" } else { "is installed already" });
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

/// Exits with 0 when nothing is left to do, with 1 when something was refused or failed.
fn converge(machine: &Linux, desired: &Desired) -> anyhow::Result<ExitCode> {
    let planned = plan(desired, &machine.observe()?);
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
        let client = kube::Client::try_default().await.context("failed to find the cluster (in-cluster service account or KUBECONFIG)")?;
        info!("following node state {} in namespace {}", args.node_name, args.namespace);
        tokio::select! {
            ended = node_state::run(client, &args.namespace, &args.node_name, args.machine.open()) => ended.map_err(anyhow::Error::from),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    // A step that is under way may end; the next is not begun when the process ends here, and a restart goes on from whatever is then so.
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended.map(|()| ExitCode::SUCCESS)
}

impl MachineArgs {
    fn open(&self) -> Linux {
        Linux::new(&self.root, Store::new(&self.root, &self.pools_file))
    }
}

impl Wish {
    fn read(&self) -> anyhow::Result<Desired> {
        let text = if self.file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(&self.file) };
        let text = text.with_context(|| format!("failed to read {}", self.file.display()))?;
        let file: NodeStateFile = serde_saphyr::from_str(&text).with_context(|| format!("{} is not a SriovNetworkNodeState", self.file.display()))?;
        Ok(Desired::read(&file.spec))
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
