//! I/O: one guest of a lab: typed commands, files, restarts.
//!
//! What lives here: the client's side of `protocol`, and waiting for a guest. What does not: QEMU's command line (`vm`), SR-IOV.
//!
//! Invariant: every call has a time limit, also when the guest's kernel hangs; a command is an argument vector.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::net::Namespace;
use super::protocol::{CHUNK, Failure, Kind, PORT, Reply, Request, read_frame, write_frame, write_json};
use super::qmp::Monitor;
use super::topology::Node;

/// Limit of a command that was given none.
const DEFAULT_LIMIT: Duration = Duration::from_mins(1);

/// How much later than the agent the client gives up.
const SLACK: Duration = Duration::from_secs(15);

/// A guest that runs or boots.
#[derive(Debug)]
pub struct Guest {
    node: Node,
    namespace: Arc<Namespace>,
    monitor: Monitor,
    console: PathBuf,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub reply: Reply,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.reply == Reply::Exited(0)
    }

    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}; standard output: {}; standard error: {}", self.reply, self.text().trim_end(), self.errors().trim_end())
    }
}

/// A command for a guest, not yet run.
#[derive(Debug)]
pub struct GuestCommand<'a> {
    guest: &'a Guest,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl GuestCommand<'_> {
    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// What the command reads.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    /// The command is killed after this time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it; an unsuccessful end is an outcome, not an error.
    pub fn outcome(self) -> Result<Outcome> {
        let name = format!("{}: {}", self.guest.name(), self.argv.join(" "));
        let limit_ms = u64::try_from(self.limit.as_millis())?;
        let request = Request::Exec { argv: self.argv, env: self.env, limit_ms };
        self.guest.call(&request, &mut self.stdin.as_slice(), self.limit).with_context(|| name)
    }

    /// Runs it and gives its standard output; another end than status 0 is an error that shows all it said.
    pub fn output(self) -> Result<String> {
        let name = format!("{}: {}", self.guest.name(), self.argv.join(" "));
        let outcome = self.outcome()?;
        ensure!(outcome.success(), "{name}: {outcome}");
        Ok(outcome.text())
    }

    /// Starts it and leaves it running, its output appended to a file in the guest; gives its process id.
    pub fn spawn(self, log: &str) -> Result<u32> {
        let name = format!("{}: {}", self.guest.name(), self.argv.join(" "));
        let request = Request::Spawn { argv: self.argv, env: self.env, log: log.to_owned() };
        match self.guest.call(&request, &mut io::empty(), Duration::ZERO).with_context(|| name)?.reply {
            Reply::Spawned(id) => Ok(id),
            other => bail!("the agent answered {other:?} to a request to start a process"),
        }
    }
}

impl Guest {
    /// The guest of this node.
    pub fn new(node: Node, namespace: Arc<Namespace>, monitor: Monitor, console: PathBuf) -> Self {
        Self { node, namespace, monitor, console }
    }

    /// Its place in the topology.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Host name.
    pub fn name(&self) -> String {
        self.node.name()
    }

    /// QEMU's monitor.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// File on the host that holds the serial console's output.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// A command for this guest.
    pub fn command(&self, argv: &[&str]) -> GuestCommand<'_> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        GuestCommand { guest: self, argv, env: Vec::new(), stdin: Vec::new(), limit: DEFAULT_LIMIT }
    }

    /// Runs a command that must succeed and gives its standard output.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.command(argv).output()
    }

    /// Runs a shell script that must succeed, stopping at the first failing command, and gives its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.command(&["/bin/sh", "-e", "-c", script]).output()
    }

    /// Content of a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let request = Request::Read { path: path.to_owned() };
        Ok(self.call(&request, &mut io::empty(), DEFAULT_LIMIT).with_context(|| self.name())?.stdout)
    }

    /// Content of a text file without the white space around it, such as a sysfs attribute.
    pub fn read_text(&self, path: &str) -> Result<String> {
        Ok(String::from_utf8(self.read(path)?)?.trim().to_owned())
    }

    /// Replaces a file.
    pub fn write(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.send(path, &mut &*content, mode)
    }

    /// Writes a kernel attribute in place; the error keeps the kernel's answer.
    pub fn write_attribute(&self, path: &str, value: &str) -> Result<()> {
        // `dd` writes what it read in one call and names the error number's text.
        self.command(&["dd", "status=none", &format!("of={path}"), "conv=notrunc"]).stdin(value).output().map(drop)
    }

    /// Copies an executable of the host into the guest.
    pub fn copy_program(&self, from: &Path, to: &str) -> Result<()> {
        let mut file = fs::File::open(from).with_context(|| format!("open {}", from.display()))?;
        self.send(to, &mut file, 0o755)
    }

    fn send(&self, path: &str, content: &mut impl Read, mode: u32) -> Result<()> {
        let request = Request::Write { path: path.to_owned(), mode };
        self.call(&request, content, DEFAULT_LIMIT).with_context(|| self.name()).map(drop)
    }

    /// What a log file in the guest holds and gets within the given time.
    pub fn follow(&self, path: &str, limit: Duration) -> Result<String> {
        let request = Request::Follow { path: path.to_owned(), limit_ms: u64::try_from(limit.as_millis())? };
        Ok(self.call(&request, &mut io::empty(), limit).with_context(|| self.name())?.text())
    }

    /// Identifies one boot of the guest's kernel.
    pub fn boot_id(&self) -> Result<String> {
        self.read_text("/proc/sys/kernel/random/boot_id")
    }

    /// Waits until the agent answers and the guest's start script is over.
    pub fn wait_until_up(&self, deadline: Instant) -> Result<()> {
        self.poll(deadline, "the guest is up", || self.boot_id().map(|_| Some(())))
    }

    /// Restarts the guest without warning and waits until it is up again.
    pub fn reset(&self, deadline: Instant) -> Result<()> {
        let before = self.boot_id()?;
        self.monitor.reset()?;
        self.poll(deadline, "the guest is up after its restart", || Ok((self.boot_id()? != before).then_some(())))
    }

    /// Asks until there is an answer; an error or `None` means not yet.
    pub fn poll<T>(&self, deadline: Instant, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            let answer = ask();
            if let Ok(Some(found)) = answer {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let reason = answer.err().map_or_else(|| "not so yet".to_owned(), |error| format!("{error:#}"));
                bail!("{}: waited for: {what}; at the deadline: {reason}", self.name());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn call(&self, request: &Request, input: &mut impl Read, limit: Duration) -> Result<Outcome> {
        let address = SocketAddr::from((self.node.address(), PORT));
        let mut stream = self.namespace.connect(address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(SLACK))?;
        write_json(&mut stream, Kind::Request, request)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = input.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            write_frame(&mut stream, Kind::Data, &chunk[..count])?;
        }
        write_frame(&mut stream, Kind::End, b"")?;
        collect(&mut stream, Instant::now() + limit + SLACK)
    }
}

fn collect(stream: &mut TcpStream, until: Instant) -> Result<Outcome> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        ensure!(!rest.is_zero(), "no end within the time limit; so far: {}", String::from_utf8_lossy(&stdout));
        stream.set_read_timeout(Some(rest))?;
        let frame = read_frame(stream).context("lost the connection to the agent")?;
        match frame.kind {
            Kind::Output => stdout.extend(frame.payload),
            Kind::Error => stderr.extend(frame.payload),
            Kind::Reply => return Ok(Outcome { reply: serde_json::from_slice(&frame.payload)?, stdout, stderr }),
            Kind::Failure => {
                let failure: Failure = serde_json::from_slice(&frame.payload)?;
                bail!("{}", failure.message);
            }
            other => bail!("the agent sent a frame of kind {other:?}"),
        }
    }
}
