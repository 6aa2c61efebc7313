//! I/O: the processes that a test starts beside its own: servers, the operator, config daemons. What does not live here: their arguments.
//!
//! Invariant: each ends with its value and with the thread that started it, whatever ends first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::process::last_lines;

/// A process that is killed on drop.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// `setpriv` lets the kernel kill the process when the thread that started it ends, so not even `kill -9` of a test leaves one.
    pub(super) fn start(program: &Path, arguments: &[String], environment: &[(&str, &str)], log: PathBuf) -> Result<Self> {
        let output = File::options().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone()?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("run setpriv with {}", program.display()))?;
        Ok(Self { child, log })
    }

    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}; the end of its log:\n{}", self.log.display(), last_lines(&self.log, 15));
        }
        Ok(())
    }
}

impl Server {
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Server {
    /// Seconds of a processor that it used so far.
    pub(super) fn processor_seconds(&self) -> Result<f64> {
        // Linux counts these in hundredths of a second for programs, whatever the kernel's clock (proc(5)).
        const TICKS: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / TICKS)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has been reaped.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A running config daemon; killed on drop.
#[derive(Debug)]
pub struct RunningDaemon {
    pub(super) server: Server,
}

impl RunningDaemon {
    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.server.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.child.id()
    }

    /// Adds the end of its log to an error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("the end of the daemon's log:\n{}", last_lines(&self.server.log, 30)))
    }
}

/// A running operator; killed on drop.
#[derive(Debug)]
pub struct Operator {
    pub(super) server: Server,
}

impl Operator {
    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.server.log).unwrap_or_default()
    }

    /// Fails when the API server refused it anything: its rights are to be exactly enough.
    pub fn check_rights(&self) -> Result<()> {
        let log = self.log();
        let refused: Vec<_> = log.lines().filter(|line| line.contains("orbidden")).collect();
        ensure!(refused.is_empty(), "the operator lacks rights:\n{}", refused.join("\n"));
        Ok(())
    }

    /// The most memory that it had so far, in MB of 1,000,000 bytes.
    pub fn peak_memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }

    /// Adds the end of its log to an error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("the end of the operator's log:\n{}", last_lines(&self.server.log, 60)))
    }

    /// Asks it to end and waits for it.
    pub async fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.server.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.server.child.try_wait()? {
                ensure!(status.success(), "the operator ended with {status}:\n{}", last_lines(&self.server.log, 15));
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the operator does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
