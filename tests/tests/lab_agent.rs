//! I/O: tier 1: the guest agent and its client, over the loopback of a namespace that plays the guest.
//!
//! What lives here: what both ends must do whatever the guest is. What does not: guests (`vm_host_igb`).

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sriov_tests::lab::guest::Guest;
use sriov_tests::lab::net::Namespace;
use sriov_tests::lab::process::{Daemon, Processes};
use sriov_tests::lab::protocol::Reply;
use sriov_tests::lab::qmp::Monitor;
use sriov_tests::lab::topology::Node;
use tempfile::TempDir;

/// An agent and its client. Fields end in this order.
struct Agent {
    guest: Guest,
    _daemon: Daemon,
    _processes: Processes,
    folder: TempDir,
}

impl Agent {
    fn start() -> Result<Self> {
        let (folder, node) = (tempfile::tempdir()?, Node::new(1));
        let namespace = Arc::new(Namespace::create()?);
        namespace.ip_batch(&format!("link set lo up\naddr add {}/32 dev lo\n", node.address()))?;
        let processes = Processes::new(&namespace, folder.path())?;
        let argv = [env!("CARGO_BIN_EXE_guest-agent"), "serve"].map(str::to_owned);
        let daemon = processes.daemon("guest-agent", &argv, &folder.path().join("agent.log"))?;
        let guest = Guest::new(node, namespace, Monitor::at(Path::new("/nowhere")), folder.path().join("console"));
        guest.wait_until_up(Instant::now() + Duration::from_secs(30))?;
        Ok(Self { guest, _daemon: daemon, _processes: processes, folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

#[test]
fn a_command_keeps_its_input_its_streams_its_environment_and_its_status() -> Result<()> {
    let agent = Agent::start()?;
    let command = agent.guest.command(&["/bin/sh", "-c", "cat; echo \"$GIVEN\" >&2; exit 7"]);
    let outcome = command.stdin("in 'put'\n").env("GIVEN", "a $b").outcome()?;
    assert_eq!((outcome.reply.clone(), outcome.text(), outcome.errors()), (Reply::Exited(7), "in 'put'\n".to_owned(), "a $b\n".to_owned()));
    Ok(())
}

#[test]
fn a_command_that_is_not_there_is_an_error_with_its_name() -> Result<()> {
    let error = Agent::start()?.guest.run(&["no-such-command"]).err().context("it ran")?;
    ensure!(format!("{error:#}").contains("run no-such-command: No such file"), "{error:#}");
    Ok(())
}

#[test]
fn a_command_is_killed_at_its_limit_with_its_children() -> Result<()> {
    let agent = Agent::start()?;
    let marker = agent.path("child-lived");
    let script = format!("(sleep 2; touch {marker}) & sleep 100");
    let outcome = agent.guest.command(&["/bin/sh", "-c", &script]).limit(Duration::from_millis(300)).outcome()?;
    assert_eq!(outcome.reply, Reply::TimedOut);
    thread::sleep(Duration::from_millis(2500));
    ensure!(!Path::new(&marker).exists(), "the command's child was not killed");
    Ok(())
}

#[test]
fn a_child_that_keeps_the_pipe_does_not_hold_up_the_answer() -> Result<()> {
    let started = Instant::now();
    let output = Agent::start()?.guest.run(&["/bin/sh", "-c", "sleep 20 & echo now"])?;
    ensure!(output == "now\n" && started.elapsed() < Duration::from_secs(15), "{output:?} after {:?}", started.elapsed());
    Ok(())
}

#[test]
fn files_of_any_content_pass_both_ways_with_their_mode() -> Result<()> {
    let agent = Agent::start()?;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let path = agent.path("new folder/a 'file'");
    agent.guest.write(&path, b"old", 0o600)?;
    agent.guest.write(&path, &content, 0o640)?;
    ensure!(agent.guest.read(&path)? == content, "the content changed on the way");
    assert_eq!(agent.guest.run(&["stat", "-c", "%a", &path])?.trim(), "640");
    Ok(())
}

#[test]
fn a_thousand_short_requests_all_get_their_answer() -> Result<()> {
    let agent = Agent::start()?;
    let path = agent.path("short");
    agent.guest.write(&path, b"content", 0o600)?;
    for number in 0..1000 {
        let content = agent.guest.read(&path).with_context(|| format!("request {number}"))?;
        ensure!(content == b"content", "request {number}: {content:?}");
    }
    Ok(())
}

#[test]
fn a_started_program_outlives_its_request_and_its_log_can_be_followed() -> Result<()> {
    let agent = Agent::start()?;
    let log = agent.path("log");
    let id = agent.guest.command(&["/bin/sh", "-c", "echo first; sleep 0.5; echo second; exec sleep 1000"]).spawn(&log)?;
    assert_eq!(agent.guest.follow(&log, Duration::from_secs(3))?, "first\nsecond\n");
    agent.guest.run(&["kill", "-9", &id.to_string()])?;
    let gone = || Ok((!Path::new(&format!("/proc/{id}")).exists()).then_some(()));
    agent.guest.poll(Instant::now() + Duration::from_secs(10), "the killed program is reaped", gone)
}
