//! I/O: tier 1: nothing of a lab outlives its process, however that ends.
//!
//! What lives here: a lab without guests (namespace, bridges, a daemon) whose program is ended in each way. What does not: guests, which end
//! by the same means.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use sriov_tests::lab::attach::State;
use sriov_tests::lab::run_dir::ProcessId;

const LIMIT: Duration = Duration::from_secs(30);

/// A program with a lab, in a folder of its own so that tests beside it see only theirs.
struct LabProgram {
    child: Child,
    id: ProcessId,
    folder: PathBuf,
    holder: ProcessId,
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "waited {LIMIT:?} for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn lab(base: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(arguments).env("TMPDIR", base).stdin(Stdio::null());
    command
}

fn up(base: &Path) -> Result<LabProgram> {
    let mut child = lab(base, &["up", "--tier", "2", "--nodes", "0"]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    // Lent, not taken: a program whose output nobody takes any more ends in another way than the one under test.
    let mut stdout = BufReader::new(child.stdout.as_mut().context("pipe from the lab")?);
    while !line.contains("The lab is up") {
        line.clear();
        ensure!(stdout.read_line(&mut line)? > 0, "the lab did not come up");
    }
    let folder = base.join(format!("sriov-lab.{}.0", child.id()));
    let state: State = serde_json::from_slice(&std::fs::read(folder.join("state.json"))?)?;
    let holder = ProcessId::of(state.holder).context("the holder of the namespace has gone")?;
    let id = ProcessId::of(child.id()).context("the lab has gone")?;
    Ok(LabProgram { child, id, folder, holder })
}

#[test]
fn the_network_of_a_lab_has_no_way_out() {
    let base = tempfile::tempdir().unwrap();
    let mut program = up(base.path()).unwrap();
    let output = Command::new("nsenter").args(["--net", "--target", &program.holder.pid.to_string(), "ip", "-j", "link"]).output().unwrap();
    let links: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut names: Vec<_> = links.iter().map(|link| link["ifname"].as_str().unwrap()).collect();
    names.retain(|name| !matches!(*name, "sit0" | "tunl0" | "ip6tnl0" | "gre0" | "gretap0" | "erspan0" | "ip_vti0" | "ip6_vti0" | "ip6gre0"));
    names.sort_unstable();
    program.id.signal(Signal::TERM);
    program.child.wait().unwrap();
    assert_eq!(names, ["lo", "mgmt0", "wire0"]);
}

#[test]
fn a_signal_ends_the_lab_and_removes_its_folder() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let base = tempfile::tempdir().unwrap();
        let mut program = up(base.path()).unwrap();
        program.id.signal(signal);
        assert_eq!(program.child.wait().unwrap().code(), Some(status));
        assert!(!program.folder.exists());
        wait_until("the holder of the namespace ends", || !program.holder.is_alive());
    }
}

#[test]
fn down_ends_the_lab_of_another_process() {
    let base = tempfile::tempdir().unwrap();
    let mut program = up(base.path()).unwrap();
    let status = thread::scope(|scope| {
        // Reaped beside, or `down` would wait for a zombie.
        scope.spawn(|| program.child.wait().unwrap());
        lab(base.path(), &["down"]).status().unwrap()
    });
    assert!(status.success());
    assert!(!program.id.is_alive() && !program.folder.exists());
    wait_until("the holder of the namespace ends", || !program.holder.is_alive());
}

#[test]
fn a_killed_lab_leaves_only_a_folder_and_the_next_lab_removes_it() {
    let base = tempfile::tempdir().unwrap();
    let mut program = up(base.path()).unwrap();
    program.id.signal(Signal::KILL);
    program.child.wait().unwrap();
    wait_until("the holder of the namespace ends", || !program.holder.is_alive());
    assert!(program.folder.exists(), "this test needs a leftover");
    let mut next = up(base.path()).unwrap();
    assert!(!program.folder.exists() && next.folder.exists());
    next.id.signal(Signal::TERM);
    next.child.wait().unwrap();
}

#[test]
fn a_daemon_dies_with_the_process_that_started_it() {
    // The same program started again plays the lab; it starts a daemon and says its number.
    if let Some(folder) = std::env::var_os("LAB_LEFTOVERS_FOLDER") {
        play_a_lab_with_a_daemon(Path::new(&folder)).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_daemon_dies_with_the_process_that_started_it", "--nocapture"])
        .env("LAB_LEFTOVERS_FOLDER", folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let number = folder.path().join("daemon");
    wait_until("the daemon runs", || number.exists());
    let daemon = ProcessId::of(std::fs::read_to_string(&number).unwrap().parse().unwrap()).unwrap();
    assert!(daemon.is_alive());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the daemon ends", || !daemon.is_alive());
}

/// Comes back only with an error.
fn play_a_lab_with_a_daemon(folder: &Path) -> Result<()> {
    use sriov_tests::lab::{net::Namespace, process::Processes};
    let namespace = std::sync::Arc::new(Namespace::create()?);
    let processes = Processes::new(&namespace, folder)?;
    let daemon = processes.daemon("sleep", &["sleep".to_owned(), "1000".to_owned()], &folder.join("sleep.log"))?;
    std::fs::write(folder.join("partial"), daemon.id().pid.to_string())?;
    std::fs::rename(folder.join("partial"), folder.join("daemon"))?;
    loop {
        thread::park();
    }
}
