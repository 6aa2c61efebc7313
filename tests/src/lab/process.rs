//! I/O: the processes of a lab: short tools and long-running daemons, all inside the lab's namespace.
//!
//! What lives here: starting, stopping, logs. What does not: what they are (`vm`, `control_plane`).
//!
//! Every process is started by one thread that lives as long as the lab, through `setpriv --pdeathsig KILL`: the kernel kills the process
//! when that thread ends, so not even `kill -9` of the lab leaves one behind. (Their own children would stay; none of them has any.)
//!
//! Invariant: nothing is started in another way, and with the environment of the caller: no proxy setting can lead out of the namespace.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::net::Namespace;
use super::run_dir::ProcessId;

type Job = Box<dyn FnOnce() + Send>;

/// Starts the processes of one lab.
#[derive(Debug)]
pub struct Processes {
    jobs: mpsc::Sender<Job>,
    home: PathBuf,
    alive: Arc<Mutex<Vec<ProcessId>>>,
}

impl Processes {
    /// Processes live in this namespace and have this folder as their home.
    pub fn new(namespace: &Arc<Namespace>, home: &Path) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        let namespace = Arc::clone(namespace);
        thread::Builder::new().name("lab-parent".to_owned()).spawn(move || {
            let outcome = namespace.enter();
            drop(namespace);
            let failed = outcome.is_err();
            entered.send(outcome).ok();
            if !failed {
                for job in queue {
                    job();
                }
            }
        })?;
        result.recv().context("start the thread that owns the lab's processes")??;
        Ok(Self { jobs, home: home.to_owned(), alive: Arc::default() })
    }

    /// Starts a command; see the file's head for how it ends.
    pub fn spawn(&self, argv: &[String], set_io: impl FnOnce(&mut Command) + Send + 'static) -> Result<Child> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(argv).env_clear().current_dir(&self.home).env("HOME", &self.home);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let (sender, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            set_io(&mut command);
            sender.send(command.spawn()).ok();
        });
        self.jobs.send(job).map_err(|_| anyhow!("the thread that owns the lab's processes is gone"))?;
        result.recv()?.with_context(|| format!("run {}", argv.join(" ")))
    }

    /// Runs a tool to its end and gives its standard output; another status than 0 is an error with its standard error.
    pub fn output(&self, argv: &[String]) -> Result<String> {
        let child = self.spawn(argv, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        })?;
        let output = child.wait_with_output()?;
        let [said, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        ensure!(output.status.success(), "{}: {}: {}\n{}", argv.join(" "), output.status, errors.trim(), said.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts a daemon whose output is appended to a log file.
    pub fn daemon(&self, name: &str, argv: &[String], log: &Path) -> Result<Daemon> {
        let mut file = OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        writeln!(file, "# {}", argv.join(" "))?;
        let errors = file.try_clone()?;
        let child = self.spawn(argv, |command| {
            command.stdin(Stdio::null()).stdout(file).stderr(errors);
        })?;
        let id = ProcessId::of(child.id()).with_context(|| format!("{name} ended at once, see {}", log.display()))?;
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        Ok(Daemon { name: name.to_owned(), child, id, log: log.to_owned() })
    }

    /// A way to kill all daemons that needs nothing of the lab, for a signal handler.
    pub fn killer(&self) -> impl FnOnce() + Send + use<> {
        let alive = Arc::clone(&self.alive);
        move || {
            let daemons = std::mem::take(&mut *alive.lock().unwrap_or_else(PoisonError::into_inner));
            for id in &daemons {
                id.signal(Signal::KILL);
            }
            // Taken off the process table here: not every machine has an init that does it for processes whose parent has gone.
            for id in &daemons {
                if let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) {
                    waitpid(Some(pid), WaitOptions::empty()).ok();
                }
            }
        }
    }
}

/// A running daemon; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    id: ProcessId,
    log: PathBuf,
}

impl Daemon {
    /// Fails, with the end of the log, when the daemon has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}; the end of its log:\n{}", self.name, last_lines(&self.log, 15));
        }
        Ok(())
    }

    /// Its process.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Asks it to end and kills it after the given time.
    pub fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        self.id.signal(Signal::TERM);
        let until = Instant::now() + grace;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that has been reaped.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The end of a text file, or why it cannot be read.
pub fn last_lines(path: &Path, count: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(count)..].join("\n")
        }
        Err(error) => format!("(read {}: {error})", path.display()),
    }
}
