//! I/O: `kubectl sriov`: arguments, reading the cluster, printing. What is said is decided in the library.

mod cluster;

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use kubectl_sriov::table::Style;
use kubectl_sriov::{Snapshot, doctor, history, node, plan, pods, status};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use sriov_crds::SriovNetworkNodePolicy;

/// What the SR-IOV network operator did, does and would do in a cluster.
#[derive(Debug, Parser)]
#[command(name = "kubectl-sriov", bin_name = "kubectl sriov", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Common {
    /// Namespace of the operator.
    #[arg(short = 'N', long, global = true, default_value = kubectl_sriov::DEFAULT_NAMESPACE)]
    operator_namespace: String,
    /// A file of this user's kubectl [default: KUBECONFIG, or ~/.kube/config].
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Read objects from a file (YAML or JSON, lists as `kubectl get -o yaml` writes them) instead of a cluster.
    #[arg(long, global = true, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// For people, or for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cluster on one screen: what is wrong, plans in progress, PFs with used and free VFs.
    Status,
    /// Everything about one node.
    Node {
        /// Its name.
        name: String,
    },
    /// What policies would change on each node. Changes nothing.
    Plan {
        /// SriovNetworkNodePolicy objects; "-" is standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Who holds which VF.
    Pods {
        /// Only of this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Looks at the chain from a node's label to a pod's interface and names the first broken link with its cure.
    Doctor {
        /// `node/NAME`, `pod/NAME` or `pod/NAMESPACE/NAME`; without it all managed nodes.
        subject: Option<String>,
    },
    /// What happened, oldest first.
    History {
        /// Only of this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Prints `status` again whenever something changes, until interrupted.
    Watch,
    /// Prints a script that completes this program's words in a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Exit codes: 0, 1 when a chain is broken (`doctor`) or a policy cannot be carried out (`plan`), 2 for errors.
fn run(cli: &Cli) -> Result<ExitCode> {
    if let Verb::Completion { shell } = cli.verb {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command().bin_name("kubectl-sriov"), "kubectl-sriov", &mut script);
        return print(&String::from_utf8(script)?).map(|_| ExitCode::SUCCESS);
    }
    if cli.common.from.is_empty() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        return runtime.block_on(online(cli));
    }
    let mut snapshot = Snapshot { operator_namespace: Some(cli.common.operator_namespace.clone()), ..Snapshot::default() };
    for file in &cli.common.from {
        for object in documents(file)? {
            snapshot.add(object);
        }
    }
    if snapshot.is_empty() {
        let files: Vec<String> = cli.common.from.iter().map(|file| file.display().to_string()).collect();
        bail!("{} holds no object that a view shows: no Node, Pod, Event, NetworkAttachmentDefinition or object of the operator", files.join(", "));
    }
    show(cli, &snapshot)
}

async fn online(cli: &Cli) -> Result<ExitCode> {
    let common = &cli.common;
    let client = cluster::connect(common.kubeconfig.as_deref(), common.context.clone()).await?;
    if !matches!(cli.verb, Verb::Watch) {
        return show(cli, &cluster::read(&client, &common.operator_namespace).await?);
    }
    let clear = if std::io::stdout().is_terminal() { "\u{1b}[2J\u{1b}[H" } else { "" };
    cluster::watch(&client, &common.operator_namespace, |snapshot| {
        if print(clear)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        output(cli, &status::status(snapshot), |view| view.text(style()))
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

fn style() -> Style {
    if std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) && std::io::stdout().is_terminal() { Style::Coloured } else { Style::Plain }
}

fn show(cli: &Cli, snapshot: &Snapshot) -> Result<ExitCode> {
    let style = style();
    let mut code = ExitCode::SUCCESS;
    let _ = match &cli.verb {
        Verb::Status | Verb::Watch | Verb::Completion { .. } => output(cli, &status::status(snapshot), |view| view.text(style)),
        Verb::Node { name } => {
            let view =
                node::node(snapshot, name).with_context(|| format!("node {name} has no node state: `kubectl sriov doctor node/{name}` says why"))?;
            output(cli, &view, |view| view.text(style))
        }
        Verb::Plan { file } => {
            let plan = plan::plan(snapshot, &policies(file)?);
            if !plan.malformed.is_empty() {
                code = ExitCode::FAILURE;
            }
            output(cli, &plan, |view| view.text(style))
        }
        Verb::Pods { node } => output(cli, &pods::pods(snapshot, node.as_deref()), |view| view.text(style)),
        Verb::History { node } => output(cli, &history::history(snapshot, node.as_deref()), |view| view.text(style)),
        Verb::Doctor { subject } => {
            let diagnoses = diagnoses(snapshot, subject.as_deref())?;
            if !diagnoses.iter().all(doctor::Diagnosis::is_whole) {
                code = ExitCode::FAILURE;
            }
            output(cli, &diagnoses, |all| all.iter().map(|d| d.text(style)).collect::<Vec<_>>().join("\n"))
        }
    }?;
    Ok(code)
}

fn diagnoses(snapshot: &Snapshot, subject: Option<&str>) -> Result<Vec<doctor::Diagnosis>> {
    let Some(subject) = subject else {
        let nodes = snapshot.nodes.iter().filter(|node| snapshot.is_managed(node)).filter_map(|node| node.metadata.name.as_deref());
        let all: Vec<_> = nodes.map(|name| doctor::node(snapshot, name)).collect();
        if all.is_empty() {
            bail!("no node is managed: kubectl label node NODE {}=true", sriov_crds::keys::CAPABLE_LABEL);
        }
        return Ok(all);
    };
    let parts: Vec<&str> = subject.split('/').collect();
    let (namespace, name) = match parts[..] {
        ["node", name] => return Ok(vec![doctor::node(snapshot, name)]),
        ["pod", name] => ("default", name),
        ["pod", namespace, name] => (namespace, name),
        _ => bail!("{subject:?} is no subject; expected node/NAME, pod/NAME or pod/NAMESPACE/NAME"),
    };
    let found = doctor::pod(snapshot, namespace, name).with_context(|| format!("there is no pod {name} in namespace {namespace}"))?;
    Ok(vec![found])
}

fn output<T: Serialize>(cli: &Cli, view: &T, text: impl FnOnce(&T) -> String) -> Result<ControlFlow<()>> {
    print(&match cli.common.output {
        Output::Table => text(view),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(view)?),
        Output::Yaml => serde_saphyr::to_string(view)?,
    })
}

fn policies(file: &Path) -> Result<Vec<SriovNetworkNodePolicy>> {
    // `kubectl get -o yaml` writes a list.
    let flat = |mut object: Value| match object["items"].as_array_mut() {
        Some(items) => std::mem::take(items),
        None => vec![object],
    };
    let objects: Vec<Value> = documents(file)?.into_iter().flat_map(flat).collect();
    let kind = |object: &Value| object["kind"].as_str().unwrap_or("objects without a kind").to_owned();
    let kinds: BTreeSet<String> = objects.iter().map(kind).collect();
    let policies = objects.into_iter().filter(|object| object["kind"] == "SriovNetworkNodePolicy").map(|object| policy(file, object));
    let policies = policies.collect::<Result<Vec<_>>>()?;
    if policies.is_empty() {
        let found = if kinds.is_empty() { "nothing".to_owned() } else { kinds.into_iter().collect::<Vec<_>>().join(", ") };
        bail!("{} holds no SriovNetworkNodePolicy; it holds {found}", file.display());
    }
    Ok(policies)
}

fn policy(file: &Path, object: Value) -> Result<SriovNetworkNodePolicy> {
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
        bail!("{} has a SriovNetworkNodePolicy without metadata.name", file.display());
    };
    SriovNetworkNodePolicy::deserialize(object).with_context(|| format!("{}: SriovNetworkNodePolicy {name}", file.display()))
}

fn documents(file: &Path) -> Result<Vec<Value>> {
    let text = if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.with_context(|| format!("read {}", file.display()))?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("read the YAML of {}", file.display()))
}

/// Whether anybody still reads.
fn print(text: &str) -> Result<ControlFlow<()>> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        written => written.map(|()| ControlFlow::Continue(())).context("write"),
    }
}
