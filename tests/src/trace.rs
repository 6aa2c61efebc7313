//! I/O: a program under ptrace: its system calls are counted and it can be killed on entry to any of them.
//!
//! A call that a process is killed at does not happen, so that killing at call 1, 2, 3 ... until a run survives leaves, one after the other, each
//! state that a `kill -9` can leave. What does not live here: what such a state means; the tracer itself (`trace/tracer.c`).
//!
//! Invariant: calls are counted over all threads of the program from its start on (calls of programs that it starts are not its own), and the
//! program has ended when a function returns.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;

const SOURCE: &str = include_str!("trace/tracer.c");

/// Calls by their numbers on x86_64 that change something outside of the process: write, sendto, sendmsg, fsync, and those that rename, make and
/// remove names. Opening a file, which can make it empty, is not among them.
const LASTING: [u32; 12] = [1, 18, 20, 44, 46, 74, 82, 83, 87, 263, 264, 316];

/// In the place of a call's number: nothing is killed, and only sends stop the program, so that its time is its own, from right before it is executed
/// until the kernel gets its first message.
pub const TIME: &str = "time";

/// A program that does nothing but read its standard input and send a message on a netlink socket: the least that a start can cost.
const LEAST: &str = include_str!("trace/least.c");

/// The tracer, built for this machine and, being static, for any guest.
#[derive(Debug)]
pub struct Tracer {
    folder: TempDir,
    runs: AtomicUsize,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Numbers of the system calls that it made, in order, without the one that it was killed at.
    pub calls: Vec<u32>,
    /// How many of them came before the first message on a netlink socket, and how long after its start that was (the tracer's own time included,
    /// which is little with [`TIME`]).
    pub first_netlink: Option<(usize, Duration)>,
    /// The most memory that it had resident, in KiB. Unknown for a program that was killed.
    pub peak_kib: u64,
    /// Its exit code; `None` when it was killed at the call that was asked for.
    pub exit: Option<u8>,
    /// What it printed, both streams.
    pub output: String,
}

#[derive(Deserialize)]
struct Report {
    exit: i32,
    before_netlink: i64,
    netlink_ns: u64,
    peak_kib: u64,
    calls: Vec<u32>,
}

impl Tracer {
    /// Builds it.
    pub fn build() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, text, form) in [("tracer", SOURCE, "-static"), ("least", LEAST, "-static-pie")] {
            let source = folder.path().join(name).with_extension("c");
            std::fs::write(&source, text)?;
            let mut compiler = Command::new("gcc");
            compiler.args(["-O1", form, "-Wall", "-Wextra", "-Werror", "-o"]).arg(folder.path().join(name)).arg(&source);
            let output = compiler.output().context("run gcc")?;
            ensure!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { folder, runs: AtomicUsize::new(0) })
    }

    /// The program: `tracer REPORT CALL PROGRAM [ARGUMENT...]`.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("tracer")
    }

    /// A program that does the least that can be done from its start to a first netlink message, in the form of ours (static, position independent).
    pub fn least(&self) -> PathBuf {
        self.folder.path().join("least")
    }

    /// Runs `command`, an absolute path with arguments and environment, to its end, and gives it `stdin`.
    pub fn run(&self, command: &Command, stdin: &[u8]) -> Result<Trace> {
        self.kill_at(command, stdin, 0)
    }

    /// Runs a program and kills it when it is about to make system call number `call`, from 1. A program that has fewer ends by itself.
    pub fn kill_at(&self, command: &Command, stdin: &[u8], call: usize) -> Result<Trace> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let report = self.folder.path().join(format!("{number}.json"));
        // A file, so that a program that does not read blocks nobody.
        let input = self.folder.path().join(format!("{number}.stdin"));
        std::fs::write(&input, stdin)?;
        let mut tracer = Command::new(self.program());
        tracer.arg(&report).arg(call.to_string()).arg(command.get_program()).args(command.get_args());
        tracer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(std::fs::File::open(&input)?);
        // Programs that were started by one that was killed may outlive it; the output is at its end when they have ended too.
        let output = tracer.output().context("run the tracer")?;
        let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        ensure!(output.status.success(), "the tracer ended with {}: {printed}", output.status);
        let trace = Trace::of_report(&std::fs::read(&report)?, printed);
        for file in [&report, &input] {
            std::fs::remove_file(file)?;
        }
        trace
    }
}

impl Trace {
    /// Reads what the tracer reported.
    pub fn of_report(report: &[u8], output: String) -> Result<Self> {
        let report: Report =
            serde_json::from_slice(report).with_context(|| format!("the tracer's report is {:?}", String::from_utf8_lossy(report)))?;
        let first_netlink = usize::try_from(report.before_netlink).ok().map(|calls| (calls, Duration::from_nanos(report.netlink_ns)));
        Ok(Self { calls: report.calls, first_netlink, peak_kib: report.peak_kib, exit: u8::try_from(report.exit).ok(), output })
    }

    /// The places, from 1, before which to kill a program so that each call which changes something outside of it is the last one once.
    pub fn after_lasting_calls(&self) -> Vec<usize> {
        (1..=self.calls.len()).filter(|at| LASTING.contains(&self.calls[at - 1])).map(|at| at + 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_runs_to_its_end_with_its_input_and_environment() {
        let mut command = shell("cat; echo \"$WORD\"; exit 3");
        command.env("WORD", "there");
        let trace = Tracer::build().unwrap().run(&command, b"hello ").unwrap();
        assert_eq!((trace.exit, trace.output.as_str()), (Some(3), "hello there\n"));
        assert!(trace.calls.len() > 10 && trace.peak_kib > 100, "{trace:?}");
        assert_eq!(trace.first_netlink, None);
    }

    #[test]
    fn a_program_that_is_timed_stops_at_its_sockets_alone() {
        let tracer = Tracer::build().unwrap();
        let report = tracer.folder.path().join("timed.json");
        let mut command = Command::new(tracer.program());
        let python = "import socket; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.sendto(b'x' * 16, (0, 0))";
        command.arg(&report).args([TIME, "/usr/bin/env", "python3", "-c", python]);
        let output = command.output().unwrap();
        let trace = Trace::of_report(&std::fs::read(&report).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned()).unwrap();
        let (before, after) = trace.first_netlink.unwrap_or_else(|| panic!("no message: {trace:?}"));
        assert!(trace.exit == Some(0) && trace.calls[before] == 44 && trace.calls.len() < 20, "{trace:?}");
        assert!(after > Duration::ZERO && after < Duration::from_secs(20), "{after:?}");
    }

    #[test]
    fn a_program_is_killed_before_the_call_and_never_after_its_last() {
        let tracer = Tracer::build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made");
        let script = shell(&format!(": > {}", file.display()));
        let all = tracer.run(&script, b"").unwrap();
        let mut first_with_file = None;
        for at in 1..=all.calls.len() {
            let _ = std::fs::remove_file(&file);
            let trace = tracer.kill_at(&script, b"", at).unwrap();
            assert_eq!((trace.exit, trace.calls.len()), (None, at - 1));
            first_with_file = first_with_file.or(file.exists().then_some(at));
        }
        let first = first_with_file.expect("the script makes a file");
        assert!(first > 1, "{first} of {:?}", all.calls);
        assert_eq!(tracer.kill_at(&script, b"", all.calls.len() + 1).unwrap().exit, Some(0));
    }
}
