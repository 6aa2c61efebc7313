//! I/O: the lab on the command line: bring it up, look around, take it down.
//!
//! What lives here: arguments and what people read. What does not: the lab itself (`sriov_tests::lab`).
//!
//! Invariant: a lab that this program brought up ends with this program; `--detach` only moves that program into the background.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use rustix::process::Signal;
use sriov_tests::lab::attach::Attached;
use sriov_tests::lab::protocol::Reply;
use sriov_tests::lab::run_dir::{ProcessId, base, remove_leftovers};
use sriov_tests::lab::topology::{Node, Tier, Topology};
use sriov_tests::lab::{Lab, check_host, process};

/// How long the background program gets to bring the lab up.
const UP_LIMIT: Duration = Duration::from_mins(15);

/// How long a lab gets to end by itself.
const DOWN_LIMIT: Duration = Duration::from_secs(30);

/// A Kubernetes cluster with emulated SR-IOV NICs on this machine.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Cli {
    /// Process of the lab that is meant, if several run.
    #[arg(long, global = true, value_name = "PID")]
    lab: Option<u32>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Brings a lab up and keeps it until Ctrl-C.
    Up(Up),
    /// Takes a lab down and leaves nothing of it.
    Down,
    /// Lists the labs of this machine.
    Status,
    /// Runs a command in a guest, with this program's standard input when it is not a terminal.
    Exec {
        /// Such as node1.
        node: String,
        /// The command is killed after this many seconds.
        #[arg(long, default_value_t = 60)]
        limit: u64,
        /// Program and arguments, after `--`.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Runs kubectl with all permissions.
    Kubectl {
        /// Arguments of kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// 2: guests alone; 3: with a control plane.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    tier: u8,
    /// Guests; 0 makes the networks alone.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=9))]
    nodes: u8,
    /// Memory of a guest in MiB.
    #[arg(long, default_value_t = 1280)]
    memory: u32,
    /// Virtual processors of a guest.
    #[arg(long, default_value_t = 1)]
    processors: u8,
    /// Added to the guests' kernel command line; may be given more than once.
    #[arg(long, value_name = "ARGUMENT")]
    kernel_argument: Vec<String>,
    /// Guests get no IOMMU.
    #[arg(long)]
    no_iommu: bool,
    /// Returns when the lab is up and leaves it running.
    #[arg(long)]
    detach: bool,
}

impl Up {
    fn topology(&self) -> Topology {
        let node = |number| Node {
            iommu: !self.no_iommu,
            memory_mib: self.memory,
            processors: self.processors,
            kernel_arguments: self.kernel_argument.clone(),
            ..Node::new(number)
        };
        let tier = if self.tier == 2 { Tier::Guests } else { Tier::Cluster };
        Topology { tier, nodes: (1..=self.nodes).map(node).collect() }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::Up(up) if up.detach => detach(),
        Verb::Up(up) => keep(&up),
        Verb::Down => down(cli.lab),
        Verb::Status => status(),
        Verb::Exec { node, limit, argv } => exec(cli.lab, &node, Duration::from_secs(limit), &argv),
        Verb::Kubectl { arguments } => kubectl(cli.lab, &arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn keep(up: &Up) -> Result<ExitCode> {
    check_host()?;
    let mut lab = Lab::boot(up.topology())?;
    println!("\nThe lab is up after {:.1} s. Ctrl-C takes it down. Meanwhile:\n{}", lab.age().as_secs_f64(), lab.state().how_to_enter());
    loop {
        // Ctrl-C ends the process from the signal thread.
        thread::sleep(Duration::from_secs(1));
        lab.check()?;
    }
}

fn detach() -> Result<ExitCode> {
    check_host()?;
    let first = log_of(std::process::id());
    let file = File::create(&first).with_context(|| format!("create {}", first.display()))?;
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--detach");
    let child = Command::new(std::env::current_exe()?)
        .args(arguments)
        // Its own group: Ctrl-C in the terminal is not meant for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn();
    let mut child = child.context("start the background program")?;
    // Named after the lab's process, so that `down` finds it.
    let log = log_of(child.id());
    fs::rename(&first, &log)?;
    let until = Instant::now() + UP_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            let said = process::last_lines(&log, 30);
            fs::remove_file(&log)?;
            bail!("the lab did not come up ({status}):\n{said}");
        }
        let lab = Attached::all()?.into_iter().find(|lab| lab.owner.pid == child.id());
        if let Some(state) = lab.and_then(|lab| lab.state) {
            println!("The lab of process {} is up; its log: {}\n{}", child.id(), log.display(), state.how_to_enter());
            println!("  lab down      # leaves nothing");
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() > until {
            end(ProcessId::of(child.id()))?;
            bail!("the lab is not up after {UP_LIMIT:?}; see {}", log.display());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn log_of(pid: u32) -> PathBuf {
    base().join(format!("sriov-lab-up.{pid}.log"))
}

fn end(owner: Option<ProcessId>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    owner.signal(Signal::TERM);
    let until = Instant::now() + DOWN_LIMIT;
    while owner.is_alive() {
        if Instant::now() > until {
            owner.signal(Signal::KILL);
            ensure!(Instant::now() < until + DOWN_LIMIT, "process {} does not end", owner.pid);
        }
        thread::sleep(Duration::from_millis(50));
    }
    // Only a lab in the background has one.
    fs::remove_file(log_of(owner.pid)).ok();
    remove_leftovers(&base())
}

fn down(pid: Option<u32>) -> Result<ExitCode> {
    let lab = Attached::find(pid)?;
    end(Some(lab.owner))?;
    println!("The lab of process {} is down.", lab.owner.pid);
    Ok(ExitCode::SUCCESS)
}

fn status() -> Result<ExitCode> {
    let labs = Attached::all()?;
    if labs.is_empty() {
        println!("No lab runs.");
    }
    for lab in labs {
        match lab.state {
            Some(state) => println!("The lab of process {} is up:\n{}", lab.owner.pid, state.how_to_enter()),
            None => println!("The lab of process {} is coming up in {}", lab.owner.pid, lab.folder.display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(pid: Option<u32>, node: &str, limit: Duration, argv: &[String]) -> Result<ExitCode> {
    let guest = Attached::find(pid)?.guest(node)?;
    let argv: Vec<_> = argv.iter().map(String::as_str).collect();
    let outcome = guest.command(&argv).limit(limit).outcome()?;
    print!("{}", outcome.text());
    eprint!("{}", outcome.errors());
    match outcome.reply {
        Reply::Exited(status) => Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from)),
        other => bail!("{node}: {}: {other:?}", argv.join(" ")),
    }
}

fn kubectl(pid: Option<u32>, arguments: &[String]) -> Result<ExitCode> {
    let (mut argv, processes) = Attached::find(pid)?.kubectl()?;
    argv.extend_from_slice(arguments);
    // Its standard streams are this program's own, so `kubectl exec -it` and `apply -f -` work.
    let status = processes.spawn(&argv, |_| {})?.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
